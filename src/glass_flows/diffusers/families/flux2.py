"""FLUX.2, with guidance embedded in the network, and Klein, with classifier-free guidance."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from .base import OwnDefaults, Packed, encoding, picture


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
        latents = x.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        mean, std = self._statistics(latents)
        return picture(self.pipe.vae, self.pipe._unpatchify_latents(latents * std + mean))

    def encode_images(self, images: Tensor) -> Tensor:
        latents = self.pipe._patchify_latents(encoding(self.pipe.vae, images))
        mean, std = self._statistics(latents)
        return ((latents - mean) / std).flatten(2).transpose(1, 2)

    def _statistics(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and standard deviation of the autoencoder's batch norm, (1, channels, 1, 1)."""
        norm, eps = self.pipe.vae.bn, self.pipe.vae.config.batch_norm_eps
        mean, variance = (one.view(1, -1, 1, 1) for one in (norm.running_mean, norm.running_var))
        return mean.to(latents), torch.sqrt(variance + eps).to(latents)


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
