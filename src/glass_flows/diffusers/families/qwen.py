"""Qwen-Image: true classifier-free guidance, rescaled to the length of the conditional output."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InvalidArgument
from ..decoding import latent_statistics
from .base import OwnDefaults, Packed, encoding, unit_range


class QwenImage(Packed):
    """QwenImagePipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImagePipeline",)
    options = OwnDefaults(
        "negative_prompt true_cfg_scale guidance_scale max_sequence_length attention_kwargs"
    )

    guidance_argument: ClassVar[str] = "true_cfg_scale"
    embeds_guidance: ClassVar[bool] = True
    encoded: ClassVar[tuple[str, ...]] = ("words", "mask")

    def prepare(self) -> None:
        super().prepare()
        self.shapes = [(1, self.rows, self.columns)]
        if self.network.config.guidance_embeds and self.given["guidance_scale"] is None:
            raise InvalidArgument("this Qwen-Image is distilled with guidance: give guidance_scale")

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        both = super().guide(conditional, unconditional)
        length = torch.norm(conditional, dim=-1, keepdim=True)
        return both * (length / torch.norm(both, dim=-1, keepdim=True))

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        output: Tensor = self.network(
            hidden_states=self.seen(x, texts),
            timestep=timestep.to(x.dtype) / 1000,
            guidance=self.embedded_guidance(x),
            encoder_hidden_states_mask=texts["mask"],
            encoder_hidden_states=texts["words"],
            img_shapes=[self.shapes] * len(x),
            attention_kwargs=self.given["attention_kwargs"] or {},
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]

    def seen(self, x: Tensor, texts: dict[str, Any]) -> Tensor:
        """The network's input at x; the sizes of its parts are `shapes`."""
        return x

    def decode(self, x: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = self.unpacked(x).to(vae.dtype)
        mean, std = latent_statistics(vae, latents)
        image = vae.decode(latents / (1.0 / std) + mean, return_dict=False)[0][:, :, 0]
        return unit_range(image)

    def encode_images(self, images: Tensor) -> Tensor:
        latents = encoding(self.pipe.vae, images[:, :, None])  # a video of one frame
        mean, std = latent_statistics(self.pipe.vae, latents)
        return self.packed(((latents - mean) * (1.0 / std))[:, :, 0])
