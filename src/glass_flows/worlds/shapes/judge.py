"""The judge of the Shapes world: plain image analysis, which no gradient reaches.

It unmixes every pixel into background and one of the colours, takes connected patches, and fits
each shape to each patch by centroid and area. A patch is an object if the picture of the fitted
shape differs from it by at most :data:`TOLERANCE` of its area: clean renders stay below 0.12,
blobs do not pass.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import numpy as np
from numpy.typing import NDArray

from ...errors import MissingExtra, ShapeError
from .world import (
    AREA,
    BACKGROUNDS,
    COLOURS,
    SHAPES,
    SIDE,
    Placed,
    Prompt,
    coverage,
    related,
)

TOLERANCE = 0.2
_DIRT = 8.0  # pixels of a colour that belong to no object
_SPECK = 6.0  # a patch of fewer pixels is dirt
_CONTRAST = 60.0  # distance from the background, in grey levels, from which a pixel is looked at
_PALETTE = np.array(list(COLOURS.values()), float)
_Y, _X = np.mgrid[0:SIDE, 0:SIDE] + 0.5


@dataclass(frozen=True)
class Finding:
    """What the judge sees in an image.

    Attributes
    ----------
    objects : tuple of Placed
    residuals : tuple of float
        For each the misfit of its shape, as a fraction of its area.
    dirt : float
        Coloured pixels that belong to no object.
    background : "black" or "white"
    """

    objects: tuple[Placed, ...]
    residuals: tuple[float, ...]
    dirt: float
    background: str

    def clean(self) -> bool:
        """Whether every object has the shape that it is taken for, and nothing else is there."""
        return self.dirt <= _DIRT and all(r <= TOLERANCE for r in self.residuals)

    def meets(self, prompt: Prompt) -> bool:
        """Whether exactly the objects that a prompt names are there, as it names them."""
        wanted = prompt.wanted
        if len(self.objects) != len(wanted) or not self.clean():
            return False
        if prompt.background not in (None, self.background):
            return False
        for order in permutations(self.objects):
            fits = all(
                one.shape == want.shape
                and want.colour in (None, one.colour)
                and want.size in (None, one.size)
                for one, want in zip(order, wanted)
            )
            if fits and prompt.relation is not None:
                first, second = order
                fits = related(prompt.relation, first.x - second.x, first.y - second.y)
            if fits:
                return True
        return False


def examine(image: NDArray[np.uint8]) -> Finding:
    """Read an image (32, 32, 3) of 0 to 255.

    Raises
    ------
    ShapeError
        Another shape.
    MissingExtra
        scipy is not installed.
    """
    if image.shape != (SIDE, SIDE, 3):
        raise ShapeError(f"the judge reads images of shape (32, 32, 3), got {image.shape}")
    try:
        from scipy import ndimage
    except ImportError as error:
        raise MissingExtra("scipy", "shapes", "the judge of the Shapes world") from error
    pixels = image.astype(float)
    ground = np.median(pixels.reshape(-1, 3), 0)
    offset = pixels - ground
    contrast = np.linalg.norm(offset, axis=-1)
    axes = _PALETTE - ground
    length = np.linalg.norm(axes, axis=-1)
    along = offset @ axes.T / length  # (32, 32, colours), in grey levels
    # The colour of the smallest angle; how much of it, from 0 (background) to 1.
    colour = np.argmax(along, -1)
    alpha = np.clip(along / length, 0, 1.15)
    own = np.take_along_axis(alpha, colour[..., None], -1)[..., 0]
    seen = (contrast > _CONTRAST) & (own > 0.35)
    objects, residuals, dirt = [], [], 0.0
    # What is no mixture of background and a colour (grey, say) is dirt; a soft edge is one.
    strange = np.linalg.norm(offset - own[..., None] * axes[colour], axis=-1) > _CONTRAST
    dirt += float(strange.sum())
    for k, name in enumerate(COLOURS):
        patches, count = ndimage.label(seen & (colour == k))
        for i in range(1, count + 1):
            patch = patches == i
            if own[patch].sum() < _SPECK:
                dirt += float(own[patch].sum())
                continue
            near = ndimage.binary_dilation(patch, np.ones((3, 3)))
            part = np.where(near, alpha[..., k], 0)
            mass = part.sum()
            x, y = (part * _X).sum() / mass, (part * _Y).sum() / mass
            misfit, shape = min(
                (float(np.abs(part - coverage(s, x, y, np.sqrt(mass / a))).sum() / mass), j)
                for j, (s, a) in enumerate(zip(SHAPES, AREA))
            )
            radius = float(np.sqrt(mass / AREA[shape]))
            objects.append(Placed(SHAPES[shape], name, float(x), float(y), radius))
            residuals.append(misfit)
    middle = np.mean([np.mean(c) for c in BACKGROUNDS.values()])
    background = "white" if ground.mean() > middle else "black"
    return Finding(tuple(objects), tuple(residuals), dirt, background)


def accepts(
    images: Sequence[NDArray[np.uint8]] | NDArray[np.uint8],
    prompts: Sequence[Prompt],
) -> list[bool]:
    """Whether each image meets its prompt."""
    return [examine(i).meets(p) for i, p in zip(images, prompts, strict=True)]
