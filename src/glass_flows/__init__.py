"""glass-flows: GLASS transitions, steering and friends for pre-trained flow and diffusion models.

The method is GLASS Flows (arXiv 2509.25170): the stochastic transitions p(x_t' | x_t) of a model,
sampled with an inner ODE built from the model itself.
"""

from __future__ import annotations

from . import errors, execute, grids, models, noise, paths, plans
from .denoisers import Denoiser
from .plans import DDIM, Table, plan
from .sampling import posterior, sample, transition

__all__ = [
    "DDIM",
    "Denoiser",
    "Table",
    "errors",
    "execute",
    "grids",
    "models",
    "noise",
    "paths",
    "plan",
    "plans",
    "posterior",
    "sample",
    "transition",
]
__version__ = "0.1.0"
