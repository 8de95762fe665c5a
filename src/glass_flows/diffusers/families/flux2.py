"""FLUX.2, with guidance embedded in the network, and Klein, with classifier-free guidance."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux2.pipeline_flux2 import compute_empirical_mu
from torch import Tensor

from ...errors import InvalidArgument
from .base import Family

__all__ = ["Flux2", "Flux2Klein"]


class Flux2(Family):
    """Flux2Pipeline; the state is the packed latents, (tokens, 4 · channels)."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2Pipeline",)
    options: ClassVar[dict[str, Any]] = {
        "guidance_scale": 4.0,
        "max_sequence_length": 512,
        "text_encoder_out_layers": (10, 20, 30),
        "attention_kwargs": None,
    }

    def prepare(self) -> None:
        scale = self.pipe.vae_scale_factor * 2
        self.default_size(scale)
        self.rows, self.columns = self.height // scale, self.width // scale
        channels = self.network.config.in_channels
        self.shape = (self.rows * self.columns, channels)
        like = torch.empty(1, channels, self.rows, self.columns)
        self.image_ids = self.pipe._prepare_latent_ids(like).to(self.device)
        self.check_guidance()

    def check_guidance(self) -> None:
        """Set `passes`: the scale is an input of the network, if it takes one."""
        self.refuse_idle_guidance()

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        return {"cond": self._texts(list(prompts))}

    def _texts(self, prompts: list[str]) -> dict[str, Any]:
        words, ids = self.pipe.encode_prompt(
            prompt=prompts,
            device=self.device,
            max_sequence_length=self.given["max_sequence_length"],
            text_encoder_out_layers=tuple(self.given["text_encoder_out_layers"]),
        )
        return {"words": words, "ids": ids}

    def guidance(self, x: Tensor) -> Tensor | None:
        """The scale as an input of the network, (B,)."""
        return self.embedded_guidance(x)

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep.to(x.dtype) / 1000,
            guidance=self.guidance(x),
            encoder_hidden_states=texts["words"],
            txt_ids=texts["ids"],
            img_ids=self.image_ids.expand(len(x), -1, -1),
            joint_attention_kwargs=self.given["attention_kwargs"],
            return_dict=False,
        )[0]
        return output[:, : x.shape[1]]

    def grid(self, transitions: int) -> dict[str, Any]:
        mu = compute_empirical_mu(image_seq_len=self.shape[0], num_steps=transitions)
        return {"sigmas": np.linspace(1.0, 1 / transitions, transitions), "mu": mu}

    def decode(self, x: Tensor) -> Tensor:
        vae, size = self.pipe.vae, (1, -1, 1, 1)
        latents = x.transpose(1, 2).unflatten(2, (self.rows, self.columns))
        mean = vae.bn.running_mean.view(size).to(latents)
        variance = vae.bn.running_var.view(size) + vae.config.batch_norm_eps
        latents = self.pipe._unpatchify_latents(latents * torch.sqrt(variance).to(latents) + mean)
        return self.unit_range(vae.decode(latents.to(vae.dtype), return_dict=False)[0])


class Flux2Klein(Flux2):
    """Flux2KleinPipeline; the distilled checkpoints are refused, the base ones are meant."""

    pipelines: ClassVar[tuple[str, ...]] = ("Flux2KleinPipeline",)
    options: ClassVar[dict[str, Any]] = {
        **Flux2.options,
        "text_encoder_out_layers": (9, 18, 27),
    }

    def check_guidance(self) -> None:
        if self.pipe.config.is_distilled:
            raise InvalidArgument(
                "this FLUX.2 Klein is distilled to few steps: its network is no denoiser, so that "
                "there is no posterior to draw from. Use the base checkpoint"
            )
        self.passes = 2 if self.given["guidance_scale"] > 1 else 1

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        found = super().encode(prompts)
        if self.passes == 2:
            found["uncond"] = self._texts([""] * len(prompts))
        return found

    def guidance(self, x: Tensor) -> Tensor | None:
        return None
