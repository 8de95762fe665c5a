"""Stable Diffusion 3 and 3.5: classifier-free guidance in one doubled batch."""

from __future__ import annotations

from typing import Any, ClassVar

from torch import Tensor

from .base import Family, OwnDefaults


class StableDiffusion3(Family):
    """StableDiffusion3Pipeline; the state is the latents, (channels, height, width)."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    options = OwnDefaults(
        "prompt_2 prompt_3 negative_prompt negative_prompt_2 negative_prompt_3 guidance_scale "
        "max_sequence_length clip_skip joint_attention_kwargs ip_adapter_image"
    )

    doubled: ClassVar[bool] = True
    encoded: ClassVar[tuple[str, ...]] = ("words", "-words", "pooled", "-pooled")

    def prepare(self) -> None:
        side = self.pipe.patch_size
        rows, columns = self.default_size(self.pipe.vae_scale_factor * side)
        self.shape = (self.network.config.in_channels, rows * side, columns * side)
        self.passes = 2 if self.given["guidance_scale"] > 1 else 1

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        extra = self.given["joint_attention_kwargs"]
        if "images" in texts:
            extra = {**(extra or {}), "ip_adapter_image_embeds": texts["images"][0]}
        return self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=texts["words"],
            pooled_projections=texts["pooled"],
            joint_attention_kwargs=extra,
            return_dict=False,
        )[0]

    def grid(self, transitions: int) -> dict[str, Any]:
        if not self.pipe.scheduler.config.get("use_dynamic_shifting"):
            return {}
        side = self.network.config.patch_size
        tokens = (self.shape[1] // side) * (self.shape[2] // side)
        return {"mu": self.dynamic_shift(tokens, largest=1.16)}
