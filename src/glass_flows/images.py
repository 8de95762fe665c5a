"""Images of particles with their rewards, and all that is known of the run that drew them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import InvalidArgument, check_count, shown
from .files import replace, written
from .rewards.forms import to_bytes
from .steering import SearchResult

__all__ = [
    "ImageResult",
    "contact_sheet",
    "image_name",
    "open_image",
    "to_bytes",
    "to_images",
    "to_pictures",
]


@dataclass(frozen=True)
class ImageResult:
    """Images with their rewards, and all that is known of the run.

    Attributes
    ----------
    images : list of list of PIL.Image
        For every prompt its N particles.
    rewards : Tensor
        (P, N), of the images.
    prompts : tuple
        P of them.
    result : SearchResult
        Samples (latents), weights, ancestry, costs; a SteeringResult for "steering",
        a RefinedResult for "refine".
    settings : dict
        What was asked for, as JSON: the whole job, or of a pipeline from Python "method",
        "sampler", "batching", the seed and the call arguments.
    """

    images: list[list[Image.Image]]
    rewards: Tensor
    prompts: tuple[Any, ...]
    result: SearchResult
    settings: Mapping[str, Any]

    @property
    def best(self) -> list[Image.Image]:
        """The image of the highest reward for each prompt."""
        chosen = self.rewards.argmax(1).tolist()
        return [row[i] for row, i in zip(self.images, chosen)]

    def save(self, folder: str | Path) -> list[Path]:
        """Write every image as PNG, with prompt, reward and settings inside it.

        ``003-01.png`` is that of particle 1 of prompt 3.
        """
        target = Path(folder)
        target.mkdir(parents=True, exist_ok=True)
        files = []
        for p, prompt in enumerate(self.prompts):
            for n, image in enumerate(self.images[p]):
                info = PngInfo()
                info.add_itxt("prompt", str(prompt))
                info.add_itxt("reward", repr(self.rewards[p, n].item()))
                info.add_itxt("settings", json.dumps(dict(self.settings)))
                file = target / image_name(p, n)
                replace(file, written(partial(image.save, format="PNG", pnginfo=info)))
                files.append(file)
        return files


def image_name(population: int, particle: int) -> str:
    """The file of a particle's image."""
    return f"{population:03d}-{particle:02d}.png"


def contact_sheet(
    rows: Sequence[Sequence[Image.Image]], longest: int, resample: Image.Resampling
) -> Image.Image:
    """Images of one size in rows without gaps, each of at most `longest` pixels a side."""
    if not all(isinstance(row, (list, tuple)) for row in rows) or not any(rows) or not rows[0]:
        raise InvalidArgument(f"a contact sheet needs rows of images, got {shown(rows)}")
    check_count("longest", longest)
    first = rows[0][0]
    scale = min(1.0, longest / max(first.size))
    width, height = (max(1, round(side * scale)) for side in first.size)
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for i, row in enumerate(rows):
        for k, image in enumerate(row):
            tile = image.convert("RGB").resize((width, height), resample)
            sheet.paste(tile, (k * width, i * height))
    return sheet


def to_images(pixels: list[Tensor]) -> list[Image.Image]:
    """PIL images of (H, W, 3) uint8."""
    return [Image.fromarray(one.cpu().numpy()) for one in pixels]


def to_pictures(images: Sequence[Image.Image]) -> Tensor:
    """Images of one size as (B, 3, H, W) in [0, 1], float32: inverse of :func:`to_bytes`."""
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 255


def open_image(file: str | Path) -> Image.Image:
    """An image from a file, the right way up.

    Raises
    ------
    InvalidArgument
        There is none, or it cannot be read.
    """
    try:
        with Image.open(file) as image:
            found: Image.Image = ImageOps.exif_transpose(image)
            found.load()
            return found
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise InvalidArgument(f"{str(file)!r} cannot be read as an image: {error}") from error
