"""FLUX.1: guidance embedded in the network, or true classifier-free guidance, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from torch import Tensor

from .base import OwnDefaults, Packed

__all__ = ["Flux"]


class Flux(Packed):
    """FluxPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    options = OwnDefaults(
        "prompt_2 negative_prompt true_cfg_scale guidance_scale max_sequence_length "
        "joint_attention_kwargs ip_adapter_image ip_adapter_image_embeds"
    )

    guidance_argument: ClassVar[str] = "true_cfg_scale"
    embeds_guidance: ClassVar[bool] = True

    def prepare(self) -> None:
        super().prepare()
        self.image_ids = self.pipe._prepare_latent_image_ids(
            1, self.rows, self.columns, self.device, self.network.dtype
        )

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        conditioning = super().encode(prompts)
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

    def read(self, prompts: Sequence[Any], **others: Any) -> dict[str, Any]:
        words, pooled, self.text_ids = self.texts(prompts, **others)
        return {"words": words, "pooled": pooled}

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        extra = dict(self.given["joint_attention_kwargs"] or {})
        if "images" in texts:
            extra["ip_adapter_image_embeds"] = texts["images"]
        return self.network(
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

    def decode(self, x: Tensor) -> Tensor:
        return self.decode_latents(self.unpacked(x))

    def encode_images(self, images: Tensor) -> Tensor:
        return self.packed(self.encode_latents(images))
