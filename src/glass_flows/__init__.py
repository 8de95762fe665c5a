"""glass-flows: GLASS transitions, steering and friends for pre-trained flow and diffusion models.

The method is GLASS Flows (arXiv 2509.25170): the stochastic transitions p(x_t' | x_t) of a model,
sampled with an inner ODE built from the model itself.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from . import errors, execute, grids, models, noise, paths, plans, rewards, steering
from .denoisers import Denoiser
from .guidance import Guidance, GuidedDenoiser
from .plans import DDIM, Table, plan
from .sampling import posterior, sample, transition
from .steering import Twist, beam, best_of, greedy, steer

if TYPE_CHECKING:
    from .integrations.diffusers import steer_pipeline

__all__ = [
    "DDIM",
    "Denoiser",
    "Guidance",
    "GuidedDenoiser",
    "Table",
    "Twist",
    "beam",
    "best_of",
    "errors",
    "execute",
    "greedy",
    "grids",
    "models",
    "noise",
    "paths",
    "plan",
    "plans",
    "posterior",
    "rewards",
    "sample",
    "steer",
    "steer_pipeline",
    "steering",
    "transition",
]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    if name == "steer_pipeline":  # imports diffusers, so only when it is wanted
        from .integrations.diffusers import steer_pipeline

        return steer_pipeline
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
