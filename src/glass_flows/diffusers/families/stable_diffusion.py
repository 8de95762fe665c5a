"""Stable Diffusion 1.x, 2.x and XL: a UNet with classifier-free guidance in one doubled batch."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion import rescale_noise_cfg
from torch import Tensor

from .base import Family, OwnDefaults

_OPTIONS = (
    "negative_prompt guidance_scale guidance_rescale clip_skip cross_attention_kwargs "
    "ip_adapter_image ip_adapter_image_embeds"
)
_ADDED = {"pooled": "text_embeds", "sizes": "time_ids", "images": "image_embeds"}


class StableDiffusion(Family):
    """StableDiffusionPipeline; the state is the latents. The safety checker is not run."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionPipeline",)
    options = OwnDefaults(_OPTIONS)

    doubled: ClassVar[bool] = True
    encoded: ClassVar[tuple[str, ...]] = ("words", "-words")
    reads: ClassVar[Mapping[str, bool]] = {}

    @property
    def network(self) -> Any:
        return self.pipe.unet

    def prepare(self) -> None:
        scale = self.pipe.vae_scale_factor
        side = self.network.config.sample_size
        if isinstance(side, int):
            self.height, self.width = self.height or side * scale, self.width or side * scale
        self.default_size(8 if scale >= 8 else scale)
        channels = self.network.config.in_channels
        self.shape = (channels, self.height // scale, self.width // scale)
        embedded = self.network.config.time_cond_proj_dim is not None
        self.passes = 2 if self.given["guidance_scale"] > 1 and not embedded else 1

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        added = {_ADDED[name]: value for name, value in texts.items() if name in _ADDED}
        return self.network(
            x,
            timestep,
            encoder_hidden_states=texts["words"],
            timestep_cond=self._embedded_scale(x),
            cross_attention_kwargs=self.given["cross_attention_kwargs"],
            added_cond_kwargs=added or None,
            return_dict=False,
        )[0]

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        result, rescale = super().guide(conditional, unconditional), self.given["guidance_rescale"]
        if rescale > 0.0:
            result = rescale_noise_cfg(result, conditional, guidance_rescale=rescale)
        return result

    def _embedded_scale(self, x: Tensor) -> Tensor | None:
        """The guidance scale as an input, for networks distilled with it."""
        size = self.network.config.time_cond_proj_dim
        if size is None:
            return None
        scales = torch.tensor(self.given["guidance_scale"] - 1).repeat(len(x))
        found: Tensor = self.pipe.get_guidance_scale_embedding(scales, embedding_dim=size)
        return found.to(x)


class StableDiffusionXL(StableDiffusion):
    """StableDiffusionXLPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusionXLPipeline",)
    options = OwnDefaults(
        f"{_OPTIONS} prompt_2 negative_prompt_2 original_size crops_coords_top_left target_size "
        "negative_original_size negative_crops_coords_top_left negative_target_size"
    )

    encoded: ClassVar[tuple[str, ...]] = ("words", "-words", "pooled", "-pooled")
    reads: ClassVar[Mapping[str, bool]] = {"statistics": True, "upcast": True}

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        found = super().encode(prompts)
        words, pooled = found["cond"]["words"], found["cond"]["pooled"]
        own = None in (self.given["negative_original_size"], self.given["negative_target_size"])
        for part, prefix in zip(found, ("", "" if own else "negative_")):
            sizes = self._sizes(prefix, pooled, words.dtype)
            found[part]["sizes"] = sizes.to(self.device).expand(len(prompts), -1)
        return found

    def _sizes(self, prefix: str, pooled: Tensor, dtype: torch.dtype) -> Tensor:
        """SDXL's conditioning on sizes and crops, (1, 6)."""
        own = (self.height, self.width)
        second = self.pipe.text_encoder_2
        sizes: Tensor = self.pipe._get_add_time_ids(
            tuple(self.given[prefix + "original_size"] or own),
            tuple(self.given[prefix + "crops_coords_top_left"]),
            tuple(self.given[prefix + "target_size"] or own),
            dtype=dtype,
            text_encoder_projection_dim=int(pooled.shape[-1])
            if second is None
            else second.config.projection_dim,
        )
        return sizes
