"""What refinement begins with: latents or pictures, as clean states of a pipeline."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import InvalidArgument, ShapeError, shown
from ..pixels import open_image, to_pictures
from .families import Family

_ALLOWED = (
    "init must be an image or its file, a list of them, images (B, 3, height, width) in [0, 1], "
    "or clean latents"
)


def beginning(init: Any, adapter: Family, prompts: int) -> Tensor:
    """Clean states: those that are given, or those of pictures, one for all prompts or for each.

    A tensor is of pictures if it is (3, height, width) or (B, 3, height, width) in the size that
    the pipeline draws, else of latents: of those, the population says what is wrong with them.
    """
    size = (adapter.height, adapter.width)
    if isinstance(init, Tensor):
        if init.shape[-3:] != (3, *size) or init.ndim not in (3, 4):
            if init.ndim == 4 and init.shape[1] == 3 and init.shape[1:] != adapter.shape:
                _check_size(init.shape[2], init.shape[3], *size)  # pictures: no latents gone wrong
            return init
        pictures = _checked(init if init.ndim == 4 else init[None])
    else:
        images = _opened(init)
        for image in images:
            _check_size(image.height, image.width, *size)
        pictures = to_pictures(images)
    if len(pictures) not in (1, prompts):
        raise InvalidArgument(
            f"init has {len(pictures)} images for {prompts} prompt{'s' * (prompts > 1)}: give one "
            "for all, or one for each"
        )
    if type(adapter).decode is not Family.decode and not _encodes(type(adapter)):
        raise InvalidArgument(
            f"{type(adapter).__name__} decodes in a way of its own and has no encode_images of its "
            "own: give clean latents as init, or write it (docs/diffusers/new-family.md)"
        )
    with torch.no_grad():  # one by one, as they are decoded
        states = [adapter.encode_images(one[None].to(adapter.device)) for one in pictures]
    return states[0][0] if len(states) == 1 else torch.cat(states)


def _encodes(family: type[Family]) -> bool:
    """Whether the class that defines its `decode`, or one below it, defines `encode_images`."""
    order = family.__mro__
    defines = [
        next(i for i, kind in enumerate(order) if name in vars(kind))
        for name in ("encode_images", "decode")
    ]
    return defines[0] <= defines[1]


def _opened(init: Any) -> list[Image.Image]:
    """Pictures in memory or in files."""
    one = isinstance(init, (str, os.PathLike, Image.Image))
    listed = [init] if one else init
    if not isinstance(listed, Sequence) or not listed:
        raise InvalidArgument(f"{_ALLOWED}, got {shown(init)}")
    found = []
    for given in listed:
        if isinstance(given, (str, os.PathLike)):
            given = open_image(os.fspath(given))
        if not isinstance(given, Image.Image):
            raise InvalidArgument(f"{_ALLOWED}, got {shown(given)} in a list")
        found.append(given)
    return found


def _check_size(height: int, width: int, drawn_height: int, drawn_width: int) -> None:
    if (height, width) != (drawn_height, drawn_width):
        raise ShapeError(
            f"init is {width} x {height} pixels, and what is drawn is {drawn_width} x "
            f"{drawn_height}: resize it (image.resize(({drawn_width}, {drawn_height})) of PIL), or "
            f"give height={height}, width={width}"
        )


def _checked(pictures: Tensor) -> Tensor:
    if not pictures.is_floating_point():
        raise InvalidArgument(f"images as init must be floats in [0, 1], got {pictures.dtype}")
    low, high = (float(one) for one in pictures.aminmax())
    if not (low >= 0.0 and high <= 1.0):
        raise InvalidArgument(f"images as init must lie in [0, 1], got {low:.4g} to {high:.4g}")
    return pictures.float()
