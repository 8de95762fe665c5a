"""FLUX.2, with guidance embedded in the network, and Klein, with classifier-free guidance."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from .base import OwnDefaults, Packed, picture

__all__ = ["Flux2", "Flux2Klein"]


class Flux2(Packed):
    """Flux2Pipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline",)
    options = OwnDefaults(
        "guidance_scale max_sequence_length text_encoder_out_layers attention_kwargs"
    )

    embeds_guidance: ClassVar[bool] = True
    encoded: ClassVar[tuple[str, ...]] = ("words", "ids")

    def prepare(self) -> None:
        super().prepare()
        like = torch.empty(1, self.shape[1], self.rows, self.columns)
        self.image_ids = self.pipe._prepare_latent_ids(like).to(self.device)

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        return self.network(
            hidden_states=x,
            timestep=timestep.to(x.dtype) / 1000,
            guidance=self.embedded_guidance(x),
            encoder_hidden_states=texts["words"],
            txt_ids=texts["ids"],
            img_ids=self.image_ids.expand(len(x), -1, -1),
            joint_attention_kwargs=self.given["attention_kwargs"],
            return_dict=False,
        )[0][:, : x.shape[1]]

    def shift_of(self, transitions: int) -> float:
        return compute_empirical_mu(image_seq_len=self.shape[0], num_steps=transitions)

    def decode(self, x: Tensor) -> Tensor:
        vae, size = self.pipe.vae, (1, -1, 1, 1)
        latents = x.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        mean = vae.bn.running_mean.view(size).to(latents)
        variance = vae.bn.running_var.view(size) + vae.config.batch_norm_eps
        latents = latents * torch.sqrt(variance).to(latents) + mean
        return picture(vae, self.pipe._unpatchify_latents(latents))


class Flux2Klein(Flux2):
    """Flux2KleinPipeline; its distilled checkpoints take no guidance."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)

    embeds_guidance: ClassVar[bool] = False

    def prepare(self) -> None:
        super().prepare()
        guided = self.given["guidance_scale"] > 1 and not self.pipe.config.is_distilled
        self.passes = 2 if guided else 1

    def embedded_guidance(self, x: Tensor) -> Tensor | None:
        return None
