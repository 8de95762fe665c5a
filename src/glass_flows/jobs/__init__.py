"""Jobs: a model by its name, what is to be drawn, and where it runs."""

from __future__ import annotations

from ..rewards.named import load_reward
from .align import align, compare_digits
from .batch import run_batch
from .job import Job, Loading
from .models import Model, digits_denoiser, resolve

__all__ = [
    "Job",
    "Loading",
    "Model",
    "align",
    "compare_digits",
    "digits_denoiser",
    "load_reward",
    "resolve",
    "run_batch",
]
