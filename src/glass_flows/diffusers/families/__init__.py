"""Denoiser adapters, one short file for each family of pipelines."""

from __future__ import annotations

from typing import Any

from ...errors import InvalidArgument
from ...registry import Registry
from .base import Family
from .chroma import Chroma, ChromaImg2Img
from .controlnet import FluxControlNet
from .dit import DiT
from .fill import FluxControl, FluxFill
from .flux import Flux
from .flux2 import Flux2, Flux2Klein
from .from_image import FluxImg2Img
from .kontext import FluxKontext
from .qwen import QwenImage
from .qwen_edit import QwenImageEdit
from .sana import Sana
from .sd3 import StableDiffusion3
from .stable_diffusion import StableDiffusion, StableDiffusionXL
from .zimage import ZImage

__all__ = ["FAMILIES", "Family", "family_of"]

_OURS: tuple[type[Family], ...] = (
    Flux,
    StableDiffusion3,
    StableDiffusionXL,
    StableDiffusion,
    Flux2,
    Flux2Klein,
    Sana,
    QwenImage,
    ZImage,
    DiT,
    FluxKontext,
    FluxImg2Img,
    Chroma,
    ChromaImg2Img,
    FluxFill,
    FluxControl,
    FluxControlNet,
    QwenImageEdit,
)


def _is_family(name: str, thing: Any) -> type[Family]:
    if not isinstance(thing, type) or not issubclass(thing, Family):
        raise InvalidArgument(f"the family of {name} must be a subclass of Family, got {thing!r}")
    if thing.ask is Family.ask and thing.predict is Family.predict:
        raise InvalidArgument(f"the family of {name} must define ask() or predict(), got {thing!r}")
    return thing


FAMILIES: Registry[type[Family]] = Registry(
    "families", {name: family for family in _OURS for name in family.pipelines}, _is_family
)
"""By the names of the pipelines' classes."""


def family_of(pipe: Any) -> type[Family] | None:
    """The family of a pipeline's class; None for one that has no adapter."""
    return FAMILIES.get(type(pipe).__name__)
