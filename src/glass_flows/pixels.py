"""Pixels: images to and from files and tensors, and sheets of them."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .errors import InvalidArgument, check_count, shown
from .rewards.forms import to_bytes
from .rewards.videos import chosen

_ON_A_SHEET = 16  # frames of a video
_FRAME = 256  # longest side of a frame on a sheet, in pixels

__all__ = [
    "contact_sheet",
    "files_in",
    "listed_images",
    "open_image",
    "opened",
    "sheet_of",
    "to_bytes",
    "to_images",
    "to_pictures",
]


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


def sheet_of(frames: Sequence[Image.Image]) -> Image.Image:
    """The contact sheet of a video: at most 16 of its frames, evenly spaced, as in a text."""
    shown = [frames[i] for i in chosen(len(frames), _ON_A_SHEET)]
    columns = math.ceil(math.sqrt(len(shown)))
    rows = [shown[i : i + columns] for i in range(0, len(shown), columns)]
    return contact_sheet(rows, _FRAME, Image.Resampling.BICUBIC)


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


def listed_images(given: Any) -> list[Any] | None:
    """Pictures in memory or in files, and their lists, as a list; None of anything else."""
    listed = [given] if isinstance(given, (str, os.PathLike, Image.Image)) else given
    kinds = (str, os.PathLike, Image.Image)
    plain = isinstance(listed, (list, tuple)) and listed
    return list(listed) if plain and all(isinstance(one, kinds) for one in listed) else None


def opened(call: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments of a pipeline's call, with pictures in the place of their files.

    A text or path is the file of a picture where the argument's name ends in "image", as those of
    diffusers do: image, mask_image, control_image, ip_adapter_image.
    """
    return {name: _opened(value) if _pictured(name) else value for name, value in call.items()}


def files_in(call: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The files that :func:`opened` opens, by the names of their arguments."""
    found = {name: listed_images(value) or [] for name, value in call.items() if _pictured(name)}
    files = {
        name: tuple(os.fspath(one) for one in listed if not isinstance(one, Image.Image))
        for name, listed in found.items()
    }
    return {name: listed for name, listed in files.items() if listed}


def _pictured(name: str) -> bool:
    return name == "image" or name.endswith("_image")


def _opened(value: Any) -> Any:
    if isinstance(value, (str, os.PathLike)):
        return open_image(os.fspath(value)).convert("RGB")
    return [_opened(one) for one in value] if isinstance(value, (list, tuple)) else value
