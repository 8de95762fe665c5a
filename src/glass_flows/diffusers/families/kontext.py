"""FLUX Kontext: edits an image, whose tokens the network sees beside those that are drawn."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import PREFERRED_KONTEXT_RESOLUTIONS
from torch import Tensor

from ...errors import InvalidArgument, ShapeError
from .base import OwnDefaults
from .flux import Flux


class FluxKontext(Flux):
    """FluxKontextPipeline; without an image it draws from the prompt alone."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxKontextPipeline",)
    options = OwnDefaults(
        "image prompt_2 negative_prompt true_cfg_scale guidance_scale max_sequence_length "
        "joint_attention_kwargs ip_adapter_image ip_adapter_image_embeds max_area _auto_resize"
    )

    def prepare(self) -> None:
        self._fill_the_area()
        super().prepare()
        self.own_ids = self.image_ids

    def _fill_the_area(self) -> None:
        """Height and width as the pipeline has them, of this aspect ratio in `max_area` pixels."""
        side, multiple = self.pipe.default_sample_size, self.pipe.vae_scale_factor * 2
        full = side * self.pipe.vae_scale_factor
        ratio, area = (self.width or full) / (self.height or full), self.given["max_area"]
        exact = ((area / ratio) ** 0.5, (area * ratio) ** 0.5)
        height, width = (round(one) // multiple * multiple for one in exact)
        for name, asked, drawn in (("height", self.height, height), ("width", self.width, width)):
            if asked not in (None, drawn):
                raise InvalidArgument(
                    f"{name}={asked}: {type(self.pipe).__name__} fills max_area={area} pixels and "
                    f"would draw {width} x {height}: give height={height}, width={width}, or "
                    f"max_area={(self.height or full) * (self.width or full)}"
                )
        self.height, self.width = height, width

    def shown(self, count: int) -> dict[str, Any]:
        self.image_ids = self.own_ids
        if self.given["image"] is None:
            return {}
        pixels = [self._resized(one) for one in self.pictures("image", count)]
        if len({one.shape for one in pixels}) > 1:
            sizes = ", ".join(f"{one.shape[3]} x {one.shape[2]}" for one in pixels)
            raise ShapeError(f"images of one batch must have one size, as resized here {sizes}")
        latents = self.latents_of(torch.cat(pixels))
        ids = self.ids_of(latents.shape[2] // 2, latents.shape[3] // 2)
        ids[..., 0] = 1
        self.image_ids = torch.cat([self.own_ids, ids])
        return {"image": self.for_prompts(self.packed(latents), count)}

    def _resized(self, image: Any) -> Tensor:
        """In [-1, 1], in the size it was trained on that is closest in shape."""
        tool, multiple = self.pipe.image_processor, self.pipe.vae_scale_factor * 2
        height, width = tool.get_default_height_width(image)
        if self.given["_auto_resize"]:
            ratio = width / height
            _, width, height = min(
                (abs(ratio - w / h), w, h) for w, h in PREFERRED_KONTEXT_RESOLUTIONS
            )
        size = (height // multiple * multiple, width // multiple * multiple)
        pixels: Tensor = tool.preprocess(tool.resize(image, *size), *size)
        return pixels

    def seen(self, x: Tensor, texts: dict[str, Any]) -> Tensor:
        return torch.cat([x, texts["image"].to(x.dtype)], dim=1) if "image" in texts else x
