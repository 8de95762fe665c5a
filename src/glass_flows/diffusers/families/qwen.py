"""Qwen-Image: true classifier-free guidance, rescaled to the length of the conditional output."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidArgument
from .base import Family

__all__ = ["QwenImage"]


class QwenImage(Family):
    """QwenImagePipeline; the state is the packed latents, (tokens, 4 · channels)."""

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    options: ClassVar[dict[str, Any]] = {
        "negative_prompt": None,
        "true_cfg_scale": 4.0,
        "guidance_scale": None,
        "max_sequence_length": 512,
        "attention_kwargs": None,
    }

    guidance_argument: ClassVar[str] = "true_cfg_scale"

    def prepare(self) -> None:
        self.refuse_idle_guidance()
        scale = self.pipe.vae_scale_factor * 2
        self.default_size(scale)
        rows, columns = self.height // scale, self.width // scale
        self.shape = (rows * columns, self.network.config.in_channels)
        self.frame = [(1, rows, columns)]
        negative = self.given["negative_prompt"] is not None
        self.passes = 2 if self.given["true_cfg_scale"] > 1 and negative else 1
        if "true_cfg_scale" in self.asked and self.given["true_cfg_scale"] > 1 and not negative:
            raise InvalidArgument("true_cfg_scale > 1 needs a negative_prompt")
        if self.network.config.guidance_embeds and self.given["guidance_scale"] is None:
            raise InvalidArgument("this Qwen-Image is distilled with guidance: give guidance_scale")

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        found = {"cond": self._texts(list(prompts))}
        if self.passes == 2:
            found["uncond"] = self._texts(self.for_each("negative_prompt", prompts) or [])
        return found

    def _texts(self, prompts: list[str]) -> dict[str, Any]:
        words, mask = self.pipe.encode_prompt(
            prompt=prompts,
            device=self.device,
            max_sequence_length=self.given["max_sequence_length"],
        )
        return {"words": words, "mask": mask}

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        both = super().guide(conditional, unconditional)
        length = torch.norm(conditional, dim=-1, keepdim=True)
        return both * (length / torch.norm(both, dim=-1, keepdim=True))

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep.to(x.dtype) / 1000,
            guidance=self.embedded_guidance(x),
            encoder_hidden_states_mask=texts["mask"],
            encoder_hidden_states=texts["words"],
            img_shapes=[self.frame] * len(x),
            attention_kwargs=self.given["attention_kwargs"] or {},
            return_dict=False,
        )[0]
        return output

    def grid(self, transitions: int) -> dict[str, Any]:
        mu = self.dynamic_shift(self.shape[0])
        return {"sigmas": np.linspace(1.0, 1 / transitions, transitions), "mu": mu}

    def decode(self, x: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)
        latents = latents.to(vae.dtype)
        size = (1, vae.config.z_dim, 1, 1, 1)
        mean = torch.tensor(vae.config.latents_mean).view(size).to(latents)
        std = 1.0 / torch.tensor(vae.config.latents_std).view(size).to(latents)
        image = vae.decode(latents / std + mean, return_dict=False)[0][:, :, 0]
        return self.unit_range(image)
