"""Grids of small images as PNG."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ..errors import InvalidArgument
from ..files import replace, written

SHEET = "glass-flows sheet"
"""The text inside a PNG that is no sample, but shows several."""
_GOOD, _BAD, _PLAIN = (34, 139, 60), (200, 60, 50), (205, 205, 205)


@dataclass(frozen=True)
class Strip:
    """One captioned row: images (n, 1 or 3, H, W) in [-1, 1] and, per image, a verdict or None.

    Of one channel, 1 is black.
    """

    caption: str
    images: Tensor
    verdicts: Sequence[bool | None]


def image_grid(rows: Sequence[Strip], columns: int = 16, size: int = 48) -> Image.Image:
    """The rows under their captions; green borders for a good verdict, red for a bad one."""
    gap, text = 6, 26
    columns = min(columns, max([8, *(len(row.images) for row in rows)]))
    lines = [-(-len(row.images) // columns) for row in rows]
    width = columns * (size + gap) + gap
    height = sum(text + n * (size + gap) for n in lines) + gap
    sheet = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(sheet)
    top = gap
    for row, count in zip(rows, lines):
        draw.text((gap, top), row.caption, fill="black", font=ImageFont.load_default(15))
        top += text
        for i, (image, verdict) in enumerate(zip(row.images, row.verdicts)):
            x, y = gap + i % columns * (size + gap), top + i // columns * (size + gap)
            ink = -image[0] if len(image) == 1 else image.movedim(0, -1)
            tile = Image.fromarray((127.5 * (1 + ink.clamp(-1, 1))).round().byte().cpu().numpy())
            tile = tile.resize((size, size), Image.Resampling.BICUBIC)
            colour = {True: _GOOD, False: _BAD, None: _PLAIN}[verdict]
            draw.rectangle((x - 2, y - 2, x + size + 1, y + size + 1), outline=colour, width=2)
            sheet.paste(tile, (x, y))
        top += count * (size + gap)
    return sheet


def digit_image(image: Tensor) -> Image.Image:
    """One of the bundled digits, (1, 8, 8) in [-1, 1], 1 is black."""
    grey = (127.5 * (1 - image[0].clamp(-1, 1))).round().byte()
    return Image.fromarray(grey.cpu().numpy())


def digit_of(image: Image.Image) -> Tensor:
    """(1, 8, 8) in [-1, 1] of a grey picture: inverse of :func:`digit_image`."""
    grey = torch.from_numpy(np.array(image.convert("L"), dtype=np.float32))
    return 1 - grey[None] / 127.5


def make_folder(out: str | os.PathLike[str]) -> Path:
    """Create the output folder before any work is done; :class:`InvalidArgument` if impossible."""
    folder = Path(out)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):  # of no name: others may do the same
            pass
    except OSError as error:
        raise InvalidArgument(
            f"cannot write to the output folder {str(folder)!r}: {error}"
        ) from error
    return folder


def save_png(image: Image.Image, file: Path, **settings: object) -> Path:
    """Write a sheet as PNG with the settings it was made with as text inside."""
    info = PngInfo()
    info.add_text(SHEET, "of several images")
    for key, value in settings.items():
        info.add_text(key, str(value))
    replace(file, written(partial(image.save, format="PNG", pnginfo=info)))
    return file
