"""What a diffusers scheduler says about its model: path, prediction, clock and outer times.

A scheduler's own class lays out its grid, with the shift, spacing and zero-terminal-SNR rules of
its configuration; nothing of that is repeated here. Only the clock is turned round: t = 1 - σ for
flows, and timestep k of a discrete table sits at t = 1 - (k + 1)/T.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

import diffusers
import torch
from torch import Tensor

from ..errors import InvalidArgument, PlanError
from ..grids import snap_to_trained
from ..paths import DiscreteDiffusion, KnownTimes, Linear, Path, check_time

__all__ = ["Schedule"]

_FLOW = {
    "FlowMatchEulerDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
    "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler",
}
# Multistep solvers, for flows when they say so, and with a grid of one timestep per step.
_EITHER = (
    "DEISMultistepScheduler",
    "DPMSolverMultistepScheduler",
    "DPMSolverSinglestepScheduler",
    "UniPCMultistepScheduler",
)
_OWN_GRID = (
    *_EITHER,
    "DDIMParallelScheduler",
    "DDIMScheduler",
    "DDPMParallelScheduler",
    "DDPMScheduler",
    "EulerAncestralDiscreteScheduler",
    "EulerDiscreteScheduler",
    "LMSDiscreteScheduler",
)
# Their own grids repeat timesteps or go between them: DDIM lays out theirs from the same settings.
_GRID_OF_DDIM = (
    "DPMSolverSDEScheduler",
    "HeunDiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "PNDMScheduler",
)
_DISCRETE = (*_OWN_GRID, *_GRID_OF_DDIM)
_PREDICTIONS = {"epsilon": "epsilon", "v_prediction": "v", "sample": "sample"}
_FEW = "it belongs to a model distilled to few steps, which is no denoiser"
_OWN_SCALES = "its preconditioning is part of the scheduler and not taken over"
_WHY_NOT = {
    "LCMScheduler": _FEW,
    "TCDScheduler": _FEW,
    "SCMScheduler": _FEW,
    "FlowMatchLCMScheduler": _FEW,
    "CMStochasticIterativeScheduler": "it belongs to a consistency model, which is no denoiser",
    "EDMEulerScheduler": _OWN_SCALES,
    "EDMDPMSolverMultistepScheduler": _OWN_SCALES,
}


@dataclass(frozen=True)
class Schedule:
    """A scheduler's configuration, read.

    Attributes
    ----------
    base : SchedulerMixin
        An instance of our own that lays out grids and thresholds estimates.
    path : Path
        :class:`Linear` for flows, :class:`DiscreteDiffusion` for trained tables, inside
        :class:`KnownTimes` where the network rounds its clock.
    prediction : str
        A name from :data:`glass_flows.denoisers.PREDICTIONS`.
    scale : float
        The network's clock counts 0 .. `scale` (1000 as a rule).
    """

    base: Any
    path: Path
    prediction: str
    scale: float

    @classmethod
    def of(cls, config: Mapping[str, Any], time_dtype: str | None = None) -> Schedule:
        """Read the configuration of a diffusers scheduler (`pipe.scheduler.config`).

        Parameters
        ----------
        time_dtype : str, optional
            The dtype, "bfloat16" or "float16", to which a flow network rounds its clock.

        Raises
        ------
        InvalidArgument
            The scheduler is not one whose model is known to be a denoiser.
        """
        name = str(config.get("_class_name", "none"))
        if name not in _FLOW and name not in _DISCRETE:
            why = _WHY_NOT.get(name, "it is none of those whose models are known here")
            raise InvalidArgument(
                f"GLASS cannot stand in for {name}: {why}. Allowed: "
                f"{', '.join(sorted((*_FLOW, *_DISCRETE)))}"
            )
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        if settings.get("invert_sigmas"):
            raise InvalidArgument("invert_sigmas=True (Mochi's clock) is not supported")
        predicts = settings.get("prediction_type", "epsilon")
        flow = name in _FLOW or (name in _EITHER and predicts == "flow_prediction")
        kind = _FLOW.get(name, name if name in _OWN_GRID else "DDIMScheduler")
        if kind != name and kind == "DDIMScheduler":  # whose defaults are not those of the others
            settings = {"clip_sample": False, "set_alpha_to_one": True, **settings}
        base = getattr(diffusers, kind).from_config(settings)
        scale = float(base.config.num_train_timesteps)
        if flow:
            if name in _EITHER and not settings.get("use_flow_sigmas"):
                raise InvalidArgument(f"{name} predicts a flow, but has use_flow_sigmas=False")
            path: Path = Linear()
            if time_dtype is not None:
                path = KnownTimes(path, _told_apart(time_dtype, scale))
            return cls(base, path, "reverse_velocity", scale)
        if predicts not in _PREDICTIONS:
            raise InvalidArgument(
                f"{name} has prediction_type={predicts!r}; allowed: {', '.join(_PREDICTIONS)}"
            )
        table = DiscreteDiffusion(base.alphas_cumprod.double().tolist())
        return cls(base, table, _PREDICTIONS[predicts], scale)

    @property
    def discrete(self) -> bool:
        return isinstance(self.path, DiscreteDiffusion)

    def outer_times(
        self,
        transitions: int | None = None,
        *,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> tuple[float, ...]:
        """The starts of the transitions, as the scheduler's own grid has them, and data."""
        if timesteps is not None and sigmas is not None:
            raise InvalidArgument("give timesteps or sigmas, not both")
        if timesteps is not None:
            starts = [self.time(float(k)) for k in timesteps]
        elif sigmas is not None and self.discrete:  # noise over signal, as these schedulers count
            levels = [min(max(1.0 / float(s), 0.0), self.path.amplitude(1.0)) for s in sigmas if s]
            low = self.path.amplitude(0.0)
            starts = [self.path.time(max(level, low)) for level in levels]
        else:
            given = {name: v for name, v in (("sigmas", sigmas), ("mu", mu)) if v is not None}
            count = transitions if sigmas is None else len(sigmas)
            # The stretch to a terminal sigma is 0/0 for a single one, which is where noise is.
            alone = count == 1 and self.base.config.get("shift_terminal")
            if not alone:
                self.base.set_timesteps(count, **given)
            if alone:
                starts = [0.0]
            elif self.discrete:
                starts = [self.time(float(k)) for k in self.base.timesteps]
            else:
                starts = [1.0 - float(sigma) for sigma in self.base.sigmas[:-1]]
        times = (*starts, 1.0)
        if any(s >= t for s, t in pairwise(times)):
            raise PlanError(f"the scheduler's own times do not fall towards data: {times}")
        return snap_to_trained(self.path, times)

    def model_time(self, path: Path, t: float) -> float:
        """What the network is told at time t: a clock for :class:`glass_flows.Denoiser`."""
        if isinstance(path, DiscreteDiffusion):
            return path.timestep(t)
        told = self.scale * (1.0 - t)
        return float(int(told + 1e-4)) if self._whole else told

    @property
    def _whole(self) -> bool:
        """Whether the base tells its network whole timesteps only, rounded down (DPM-Solver)."""
        return not self.discrete and not self.base.timesteps.is_floating_point()

    def time(self, told: float) -> float:
        """The inverse of :meth:`model_time`."""
        if isinstance(self.path, DiscreteDiffusion):
            count = len(self.path.alphas_cumprod)
            t = (count - 1.0 - told) / count  # the path's own fractions, so that both are equal
        else:
            t = 1.0 - told / self.scale
        return check_time(t, f"the time of timestep {told:g}")

    def thresholded(self, D: Tensor) -> Tensor:
        """The estimate clipped as the scheduler's configuration says (pixel-space models)."""
        config = self.base.config
        if config.get("thresholding"):
            return self.base._threshold_sample(D)
        if config.get("clip_sample"):
            limit = config.get("clip_sample_range", 1.0)
            return D.clamp(-limit, limit)
        return D


@lru_cache
def _told_apart(dtype: str, scale: float) -> tuple[float, ...]:
    """Times t at which scale (1 - t) comes through a network's rounding unchanged.

    The pipelines cast the timestep and divide it by `scale`, the networks multiply it again.
    """
    rounding = getattr(torch, dtype, None)
    if not isinstance(rounding, torch.dtype) or not rounding.is_floating_point:
        raise InvalidArgument(f"time_dtype must name a floating-point dtype, got {dtype!r}")
    told = torch.arange(1, int(8 * scale) + 1, dtype=torch.float64) / 8.0
    kept = told.to(rounding)
    again = (kept / scale) * scale
    exact = (kept.double() == told) & (again.double() == told)
    return tuple(1.0 - k / scale for k in reversed(told[exact].tolist()))
