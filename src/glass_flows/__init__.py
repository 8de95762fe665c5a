"""glass-flows: GLASS transitions, steering and friends for pre-trained flow and diffusion worlds.

The method is GLASS Flows (arXiv 2509.25170): the stochastic transitions p(x_t' | x_t) of a model,
sampled with an inner ODE built from the model itself.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from . import errors, execute, grids, noise, paths, plans, rewards, steering, worlds
from .denoisers import Denoiser
from .guidance import Guidance, GuidedDenoiser
from .plans import DDIM, Sampler, Table, plan
from .sampling import posterior, sample, transition
from .steering import (
    Beam,
    BestOf,
    Greedy,
    Refine,
    Steering,
    Twist,
    beam,
    best_of,
    greedy,
    refine,
    steer,
)

if TYPE_CHECKING:
    from .diffusers import GlassScheduler, steer_pipeline
    from .jobs.check_model import check_model
    from .research.audit import audit
    from .rewards.named import load_reward

_LAZY = {
    "GlassScheduler": ".diffusers",
    "audit": ".research.audit",
    "check_model": ".jobs.check_model",
    "load_reward": ".rewards.named",
    "steer_pipeline": ".diffusers",
}
"""What imports more than torch and numpy, or is seldom asked for: imported when it is wanted."""

__all__ = [
    "DDIM",
    "Beam",
    "BestOf",
    "Denoiser",
    "GlassScheduler",
    "Greedy",
    "Guidance",
    "GuidedDenoiser",
    "Refine",
    "Sampler",
    "Steering",
    "Table",
    "Twist",
    "audit",
    "beam",
    "best_of",
    "check_model",
    "errors",
    "execute",
    "greedy",
    "grids",
    "load_reward",
    "noise",
    "paths",
    "plan",
    "plans",
    "posterior",
    "refine",
    "rewards",
    "sample",
    "steer",
    "steer_pipeline",
    "steering",
    "transition",
    "worlds",
]
__version__ = "0.2.0"


def __getattr__(name: str) -> Any:
    if name in _LAZY:
        return getattr(importlib.import_module(_LAZY[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_LAZY})
