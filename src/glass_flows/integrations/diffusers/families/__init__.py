"""Denoiser adapters, one short file for each family of pipelines."""

from __future__ import annotations

from typing import Any

from .base import Family
from .dit import DiT
from .flux import Flux
from .flux2 import Flux2, Flux2Klein
from .qwen import QwenImage
from .sana import Sana
from .sd3 import StableDiffusion3
from .stable_diffusion import StableDiffusion, StableDiffusionXL
from .zimage import ZImage

__all__ = ["FAMILIES", "Family", "family_of"]

FAMILIES: tuple[type[Family], ...] = (
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
)


def family_of(pipe: Any) -> type[Family] | None:
    """The family of a pipeline's class; None for one that has no adapter."""
    name = type(pipe).__name__
    return next((family for family in FAMILIES if name in family.pipelines), None)
