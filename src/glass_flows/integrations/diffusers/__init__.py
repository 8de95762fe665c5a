"""GLASS on diffusers pipelines: a drop-in scheduler, denoiser adapters and steering."""

from __future__ import annotations

from .scheduler import GlassScheduler, GlassSchedulerOutput, LatentNoise, compile_table
from .schedules import Schedule

__all__ = ["GlassScheduler", "GlassSchedulerOutput", "LatentNoise", "Schedule", "compile_table"]
