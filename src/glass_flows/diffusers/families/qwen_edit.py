"""Qwen-Image-Edit: an image that the text encoder reads, and whose tokens the network sees."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents
from diffusers.pipelines.qwenimage import pipeline_qwenimage_edit as own
from PIL import Image
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...errors import ShapeError
from ...pixels import to_bytes, to_images
from ..decoding import latent_statistics
from .base import OwnDefaults
from .qwen import QwenImage

_AREA = 1024 * 1024


class QwenImageEdit(QwenImage):
    """QwenImageEditPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("QwenImageEditPipeline",)
    options = OwnDefaults(
        "image negative_prompt true_cfg_scale guidance_scale max_sequence_length attention_kwargs"
    )

    def prepare(self) -> None:
        given = self.given["image"]
        self.images = [_as_image(one) for one in self.pictures("image", _count(given))]
        sizes = {own.calculate_dimensions(_AREA, one.width / one.height)[:2] for one in self.images}
        if len(sizes) > 1:
            told = ", ".join(f"{width} x {height}" for width, height in sorted(sizes))
            raise ShapeError(f"images of one batch must have one size, as resized here {told}")
        (size,) = sizes
        side = self.pipe.vae_scale_factor * 2
        width, height = (one // side * side for one in size)
        self.width, self.height = self.width or width, self.height or height
        super().prepare()
        self.images = [self.pipe.image_processor.resize(one, *size[::-1]) for one in self.images]
        self.shapes = [*self.shapes, (1, size[1] // side, size[0] // side)]

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        self.pictures("image", len(prompts))
        self.of_prompts = self.images * (len(prompts) // len(self.images))
        image = torch.cat([self._latents(one) for one in self.of_prompts])
        return {name: {**one, "image": image} for name, one in super().encode(prompts).items()}

    def read(self, prompts: Sequence[Any], **others: Any) -> dict[str, Any]:
        """One by one, each with its image, as the text encoder reads them."""
        words = [
            self.texts([text], image=image, negative_prompt=None)[0][0]
            for text, image in zip(prompts, self.of_prompts, strict=True)
        ]
        lengths = torch.tensor([len(one) for one in words], device=self.device)
        places = torch.arange(int(lengths.max()), device=self.device)
        mask = (places < lengths[:, None]).long()
        return {
            "words": pad_sequence(words, batch_first=True),
            "mask": None if mask.all() else mask,
        }

    def _latents(self, image: Image.Image) -> Tensor:
        """The tokens of an image, (1, tokens, 4 channels)."""
        pixels = self.pipe.image_processor.preprocess(image, image.height, image.width)
        found = self.pipe.vae.encode(pixels[:, :, None].to(self.device, self.pipe.vae.dtype))
        latents = retrieve_latents(found, sample_mode="argmax")
        mean, std = latent_statistics(self.pipe.vae, latents)
        return self.packed(((latents - mean) / std)[:, :, 0])

    def seen(self, x: Tensor, texts: dict[str, Any]) -> Tensor:
        return torch.cat([x, texts["image"].to(x.dtype)], dim=1)


def _count(given: Any) -> int:
    """How many images there are, whatever they are."""
    many = isinstance(given, (list, tuple)) or (isinstance(given, Tensor) and given.ndim == 4)
    return len(given) if many else 1


def _as_image(given: Any) -> Image.Image:
    """In memory: tensors (1, 3, height, width) rounded to bytes, which the text encoder reads."""
    if isinstance(given, Tensor):
        (given,) = to_images(list(to_bytes(given)))
    image: Image.Image = given.convert("RGB")
    return image
