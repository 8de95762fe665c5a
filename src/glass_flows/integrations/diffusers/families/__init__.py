"""Denoiser adapters, one short file for each family of pipelines."""

from __future__ import annotations

from typing import Any

from .base import Family
from .flux import Flux
from .sd3 import StableDiffusion3
from .stable_diffusion import StableDiffusion, StableDiffusionXL

__all__ = [
    "FAMILIES",
    "Family",
    "Flux",
    "StableDiffusion",
    "StableDiffusion3",
    "StableDiffusionXL",
    "family_of",
]

FAMILIES: tuple[type[Family], ...] = (Flux, StableDiffusion3, StableDiffusionXL, StableDiffusion)


def family_of(pipe: Any) -> type[Family] | None:
    """The family of a pipeline's class; None for one that has no adapter."""
    name = type(pipe).__name__
    return next((family for family in FAMILIES if name in family.pipelines), None)
