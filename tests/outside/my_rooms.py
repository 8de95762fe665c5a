"""What somebody else adds to the library, from a file that is no part of it (docs/extending.md)."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch

from glass_flows.diffusers.families import FAMILIES
from glass_flows.diffusers.families.sd3 import StableDiffusion3
from glass_flows.jobs.models import MODELS, Digits
from glass_flows.plans.kernels import RHO_RULES
from glass_flows.plans.solvers import SOLVERS, FirstOrder
from glass_flows.rewards import FunctionReward
from glass_flows.rewards.pretrained import REWARDS
from glass_flows.settings import Number, setting
from glass_flows.steering import METHODS, POTENTIALS, RESAMPLERS, Beam
from glass_flows.steering.potentials import Potential

# Half of a value counts where it is taken; the end makes good what is missing.
POTENTIALS.register("my-half", Potential(lambda total, value, memory: (0.5 * value, memory)))


@RESAMPLERS.register("my-top")
def top(weights, bits):
    """All children to the heaviest."""
    return np.full(len(weights), weights.argmax())


@RHO_RULES.register("my-late")
def late(ends):
    """Keeps the noise early and renews it late."""
    return 1.0 - ends.t_next


@RHO_RULES.register("my-power")
@dataclass(frozen=True)
class Power:
    """DDPM's ρ to a power."""

    exponent: float = 0.5

    def rho(self, ends):
        return ends.rho_ddpm**self.exponent


@SOLVERS.register("my-euler")
@dataclass(frozen=True)
class Euler(FirstOrder):
    """First order, under another name."""

    name: ClassVar[str] = "my-euler"


@REWARDS.register("my-redness")
def redness(place, *, device=None):
    """Mean red, times the number that stands in the place of a folder."""
    factor = float(place or 1.0)
    return FunctionReward(lambda images: factor * images[:, 0].mean((1, 2)), "my-redness")


@FAMILIES.register("MyPipeline")
class MyFamily(StableDiffusion3):
    """Asked as Stable Diffusion 3 is."""


@METHODS.register("my-beam")
@dataclass(frozen=True, repr=False)
class HalfBeam(Beam):
    """Beams that go on by a part of their value.

    Parameters
    ----------
    boldness : float
        >= 0, what a value counts; at 0 the first ones go on.
    """

    boldness: float = setting(1.0, Number("be >= 0", lambda boldness: boldness >= 0))
    word: ClassVar[str] = "my-beam"

    def choose(self, values, boundary, run):
        order = torch.arange(values.shape[1], dtype=values.dtype)
        return super().choose(self.boldness * values - 1e-9 * order, boundary, run)


@MODELS.register("my-digits")
class MyDigits(Digits):
    """The bundled digits, asked for an eight if nothing is asked for."""

    reward_name = "class:8"
