"""GLASS on diffusers pipelines: a drop-in scheduler, denoiser adapters and steering."""

import importlib.util

from ..errors import MissingExtra
from ..progress import without_widgets
from ..whole import quiet

if importlib.util.find_spec("diffusers") is None:
    raise MissingExtra("diffusers", "diffusers", "GLASS on diffusers pipelines")
else:
    without_widgets()

with quiet():  # of image processors of others, which diffusers names as it is imported
    from .pipeline import can_record, run_pipeline, steer_pipeline

from .asked import Asked
from .scheduler import GlassScheduler, GlassSchedulerOutput, LatentNoise, compile_table
from .schedules import Schedule

__all__ = [
    "Asked",
    "GlassScheduler",
    "GlassSchedulerOutput",
    "LatentNoise",
    "Schedule",
    "can_record",
    "compile_table",
    "run_pipeline",
    "steer_pipeline",
]
