"""FLUX.1: guidance embedded in the network, or true classifier-free guidance, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from ...errors import InvalidArgument
from .base import Family

__all__ = ["Flux"]


class Flux(Family):
    """FluxPipeline; the state is the packed latents, (tokens, 4 · channels)."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    options: ClassVar[dict[str, Any]] = {
        "prompt_2": None,
        "negative_prompt": None,
        "true_cfg_scale": 1.0,
        "guidance_scale": 3.5,
        "max_sequence_length": 512,
        "joint_attention_kwargs": None,
        "ip_adapter_image": None,
        "ip_adapter_image_embeds": None,
    }

    guidance_argument: ClassVar[str] = "true_cfg_scale"

    def prepare(self) -> None:
        self.refuse_idle_guidance()
        self.default_size(self.pipe.vae_scale_factor * 2)
        rows, columns = (
            size // (self.pipe.vae_scale_factor * 2) for size in (self.height, self.width)
        )
        self.shape = (rows * columns, self.network.config.in_channels)
        self.true_cfg = (
            self.given["true_cfg_scale"] > 1 and self.given["negative_prompt"] is not None
        )
        self.passes = 2 if self.true_cfg else 1
        if self.given["true_cfg_scale"] > 1 and not self.true_cfg:
            raise InvalidArgument("true_cfg_scale > 1 needs a negative_prompt")
        self.image_ids = self.pipe._prepare_latent_image_ids(
            1, rows, columns, self.device, self.network.dtype
        )

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        conditioning = {"cond": self._texts(list(prompts), self.for_each("prompt_2", prompts))}
        if self.true_cfg:
            negative = self.for_each("negative_prompt", prompts)
            conditioning["uncond"] = self._texts(negative or [], None)
        image, known = (self.given[f"ip_adapter_image{end}"] for end in ("", "_embeds"))
        if image is not None or known is not None:
            blank = [np.zeros((self.width, self.height, 3), dtype=np.uint8)]
            blank *= self.network.encoder_hid_proj.num_ip_adapters
            for part, given in (("cond", (image, known)), ("uncond", (blank, None))):
                if part in conditioning:
                    conditioning[part]["images"] = self.pipe.prepare_ip_adapter_image_embeds(
                        *given, self.device, len(prompts)
                    )
        return conditioning

    def _texts(self, prompts: list[str], second: list[str] | None) -> dict[str, Any]:
        scale = (self.given["joint_attention_kwargs"] or {}).get("scale")
        words, pooled, self.text_ids = self.pipe.encode_prompt(
            prompt=prompts,
            prompt_2=second,
            device=self.device,
            max_sequence_length=self.given["max_sequence_length"],
            lora_scale=scale,
        )
        return {"words": words, "pooled": pooled}

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        extra = dict(self.given["joint_attention_kwargs"] or {})
        if "images" in texts:
            extra["ip_adapter_image_embeds"] = texts["images"]
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep.to(x.dtype) / 1000,
            guidance=self.embedded_guidance(x),
            pooled_projections=texts["pooled"],
            encoder_hidden_states=texts["words"],
            txt_ids=self.text_ids,
            img_ids=self.image_ids,
            joint_attention_kwargs=extra,
            return_dict=False,
        )[0]
        return output

    def grid(self, transitions: int) -> dict[str, Any]:
        mu = self.dynamic_shift(self.shape[0])
        return {"sigmas": np.linspace(1.0, 1 / transitions, transitions), "mu": mu}

    def decode(self, x: Tensor) -> Tensor:
        latents = self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)
        return self.decode_latents(latents)
