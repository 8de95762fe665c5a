"""Sana: a flow on a deeply compressed latent space, trained with DPM-Solver's clock."""

from __future__ import annotations

from typing import Any, ClassVar

from diffusers.pipelines.sana import pipeline_sana
from torch import Tensor
from torch.nn import functional as F

from ...errors import InvalidArgument
from .base import Family, OwnDefaults, encoding, unit_range, wide

_BINS = {16: 512, 32: 1024, 64: 2048, 128: 4096}


class Sana(Family):
    """SanaPipeline; the state is the latents, in float32."""

    pipelines: ClassVar[tuple[str, ...]] = ("SanaPipeline",)
    options = OwnDefaults(
        "negative_prompt guidance_scale clean_caption use_resolution_binning "
        "max_sequence_length complex_human_instruction attention_kwargs"
    )

    doubled: ClassVar[bool] = True
    encoded: ClassVar[tuple[str, ...]] = ("words", "mask", "-words", "-mask")

    def prepare(self) -> None:
        self.height, self.width = self.height or 1024, self.width or 1024
        self.drawn = (self.height, self.width)
        if self.given["use_resolution_binning"]:
            side = _BINS.get(self.network.config.sample_size)
            if side is None:
                raise InvalidArgument(
                    "this Sana knows no resolution bins: use_resolution_binning=False"
                )
            ratios = getattr(pipeline_sana, f"ASPECT_RATIO_{side}_BIN")
            classify = self.pipe.image_processor.classify_height_width_bin
            self.drawn = classify(self.height, self.width, ratios=ratios)
        self.default_size(1 if self.given["use_resolution_binning"] else 32)
        scale = self.pipe.vae_scale_factor
        rows, columns = (size // scale for size in self.drawn)
        self.shape = (self.network.config.in_channels, rows, columns)
        self.passes = 2 if self.given["guidance_scale"] > 1.0 else 1

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        output = self.network(
            x,
            encoder_hidden_states=texts["words"].to(x.dtype),
            encoder_attention_mask=texts["mask"],
            timestep=timestep * self.network.config.timestep_scale,
            return_dict=False,
            attention_kwargs=self.given["attention_kwargs"],
        )[0]
        return wide(output)[:, : x.shape[1]]

    def decode(self, x: Tensor) -> Tensor:
        vae = self.pipe.vae
        latents = x.to(vae.dtype)
        image = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        if self.given["use_resolution_binning"]:
            image = self.pipe.image_processor.resize_and_crop_tensor(image, self.width, self.height)
        return unit_range(image)

    def encode_images(self, images: Tensor) -> Tensor:
        if self.given["use_resolution_binning"]:
            images = _uncropped(images, self.drawn)
        latents: Tensor = encoding(self.pipe.vae, images) * self.pipe.vae.config.scaling_factor
        return latents


def _uncropped(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images of the size that was drawn, before it was scaled to cover theirs and cropped to it."""
    height, width = images.shape[2:]
    rows, columns = size
    if (rows, columns) == (height, width):
        return images
    ratio = max(height / rows, width / columns)
    down, across = int(rows * ratio) - height, int(columns * ratio) - width
    edges = (across // 2, across - across // 2, down // 2, down - down // 2)
    whole = F.pad(images, edges, mode="replicate")
    return F.interpolate(whole, size=size, mode="bilinear", align_corners=False)
