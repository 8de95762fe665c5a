"""What a diffusers scheduler says about its model: path, prediction, clock and outer times.

A scheduler's own class lays out its grid, with the shift, spacing and zero-terminal-SNR rules of
its configuration; nothing of that is repeated here. Only the clock is turned round: t = 1 - σ for
flows, and timestep k of a discrete table sits at t = 1 - (k + 1)/T.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from math import isfinite
from typing import Any

import diffusers
import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument, PlanError, check_count, check_number, shown
from ..grids import snap_to_trained
from ..paths import DiscreteDiffusion, KnownTimes, Linear, Path, check_time

_MOST = 10_000  # transitions of a flow, whose times are no table

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
_FEW = (
    "it belongs to a model distilled to few steps, for which a transition is one evaluation: put "
    "{} in its place, and use steps=1, rho=0.0"
)
_TRAILING = "DDIMScheduler.from_config(pipe.scheduler.config, timestep_spacing='trailing')"
_FLOWING = "FlowMatchEulerDiscreteScheduler.from_config(pipe.scheduler.config)"
_OWN_SCALES = "its preconditioning is part of the scheduler and not taken over"
_WHY_NOT = {
    "LCMScheduler": _FEW.format(_TRAILING),
    "TCDScheduler": _FEW.format(_TRAILING),
    "FlowMatchLCMScheduler": _FEW.format(_FLOWING),
    "SCMScheduler": "it belongs to Sana-Sprint, whose clock is an angle of its own",
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
        if "_class_name" not in config:
            raise InvalidArgument(
                "this configuration does not say which scheduler it belongs to (it was not loaded "
                "from a file): use GlassScheduler.from_pipeline(pipe)"
            )
        name = str(config["_class_name"])
        if name not in _FLOW and name not in _DISCRETE:
            why = _WHY_NOT.get(name, "it is none of those whose models are known here")
            raise InvalidArgument(
                f"GLASS cannot stand in for {name}: {why}. Allowed: "
                f"{', '.join(sorted((*_FLOW, *_DISCRETE)))}"
            )
        check_clock(time_dtype)
        settings = {key: value for key, value in config.items() if not key.startswith("_")}
        if settings.get("invert_sigmas"):
            raise InvalidArgument("invert_sigmas=True (Mochi's clock) is not supported")
        if settings.get("timestep_type") == "continuous":
            raise InvalidArgument(
                f"{name} has timestep_type='continuous' (Stable Video Diffusion's clock): only the "
                "discrete timesteps of a trained table are known"
            )
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
        given = {
            name: _falling(name, listed, end=None if name == "timesteps" and self.discrete else 0.0)
            for name, listed in (("timesteps", timesteps), ("sigmas", sigmas))
            if listed is not None
        }
        count = 0
        if not given or transitions is not None:
            count = check_count("num_inference_steps", transitions)
        for name, values in given.items():
            if count not in (0, len(values), len(values) + 1):  # with the end or without
                raise InvalidArgument(
                    f"{name} lists {len(values)} values, but num_inference_steps={count}: leave "
                    "one of them out"
                )
        known = self.path.trained_times
        most = _MOST if known is None else len(known)
        if count > most:
            raise PlanError(f"num_inference_steps={count} do not fit: ask for at most {most}")
        if mu is not None:
            self._takes("mu")
            check_number("mu", mu, "be finite", isfinite)
        if timesteps is not None:
            starts = [self.time(k) for k in given["timesteps"]]
        elif sigmas is not None and self.discrete:
            starts = [self._at_level(sigma) for sigma in given["sigmas"]]
        else:
            starts = self._grid(count, given.get("sigmas"), mu)
        return snap_to_trained(self.path, (*starts, 1.0))

    def _takes(self, name: str) -> None:
        """Refuse what the scheduler's own grid has no use for."""
        if name not in inspect.signature(self.base.set_timesteps).parameters:
            raise InvalidArgument(
                f"the grid of {type(self.base).__name__} takes no {name}: leave it out"
            )

    def _at_level(self, sigma: float) -> float:
        """The time of a noise-to-signal ratio, as discrete schedulers count sigmas."""
        least, most = (1.0 / max(self.path.amplitude(t), 1e-6) for t in (self.time(0.0), 0.0))
        if not 0.0 < sigma <= 1.01 * most:  # 14.615 is published for 14.6146
            raise InvalidArgument(
                f"sigma {sigma:g} is none of this model: noise over signal is from {least:.4g} to "
                f"{most:.4g}"
            )
        return self.path.time(max(1.0 / sigma, self.path.amplitude(0.0)))

    def _grid(self, count: int, sigmas: Sequence[float] | None, mu: float | None) -> list[float]:
        """The starts that the scheduler's own class lays out."""
        base, given = self.base, {"sigmas": sigmas, "mu": mu}
        if sigmas is not None:
            self._takes("sigmas")
            count = len(sigmas)
            if not 0.0 < sigmas[-1] <= sigmas[0] <= 1.0:
                raise InvalidArgument(
                    f"sigmas of a flow lie in (0, 1], got {sigmas[0]:g} to {sigmas[-1]:g}"
                )
        if count == 1 and base.config.get("shift_terminal"):
            # The stretch to a terminal sigma is 0/0 for a single one, which is where noise is.
            return [0.0]
        try:
            base.set_timesteps(count, **{name: v for name, v in given.items() if v is not None})
        except (AssertionError, ValueError) as error:
            raise InvalidArgument(
                f"the grid of {type(base).__name__} refuses {count} steps with mu={mu}: {error}"
            ) from error
        if not self.discrete:
            starts = [1.0 - float(sigma) for sigma in base.sigmas[:-1]]
            _check_falling("sigmas of the scheduler's own grid", [1.0 - t for t in starts])
            return starts
        # Grids in σ round to the same timestep twice; such starts go to the next trained ones.
        return [self.time(float(k)) for k in base.timesteps]

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
        return check_time(self._time(told), f"the time of timestep {told:g}")

    def times(self, told: Tensor) -> list[float]:
        """The same of a thousand of its own timesteps at once, which one by one takes a while."""
        found: list[float] = self._time(told).tolist()
        return found

    def _time(self, told: Any) -> Any:
        if isinstance(self.path, DiscreteDiffusion):
            count = len(self.path.alphas_cumprod)
            return (count - 1.0 - told) / count  # the path's own fractions, so that both are equal
        return 1.0 - told / self.scale

    @property
    def clips(self) -> bool:
        """Whether estimates are clipped (pixel-space models)."""
        return bool(self.base.config.get("thresholding") or self.base.config.get("clip_sample"))

    def thresholded(self, D: Tensor) -> Tensor:
        """The estimate clipped as the scheduler's configuration says (pixel-space models)."""
        config = self.base.config
        if config.get("thresholding"):
            return self.base._threshold_sample(D)
        if config.get("clip_sample"):
            limit = config.get("clip_sample_range", 1.0)
            return D.clamp(-limit, limit)
        return D


def plain(given: Any) -> Any:
    """Without numpy and torch: what a configuration can be saved with."""
    if isinstance(given, Tensor) and (given.is_meta or given.layout != torch.strided):
        return given  # it holds no numbers that could be listed
    if isinstance(given, (np.generic, np.ndarray, Tensor)):
        return given.tolist()
    if isinstance(given, Mapping):
        return {key: plain(value) for key, value in given.items()}
    return [plain(value) for value in given] if isinstance(given, (list, tuple)) else given


def _falling(name: str, given: Any, end: float | None) -> list[float]:
    """A list, array or tensor of numbers that fall, without the `end` at which all grids arrive."""
    listed = plain(given)
    if not isinstance(listed, list) or not listed:
        raise InvalidArgument(f"{name} must be a list of numbers, at least one, got {shown(given)}")
    values = [check_number(f"{name}[{i}]", v, "be finite", isfinite) for i, v in enumerate(listed)]
    if values[-1] == end and len(values) > 1:
        values.pop()
    _check_falling(name, values)
    return values


def _check_falling(name: str, values: Sequence[float]) -> None:
    for i, (before, after) in enumerate(pairwise(values)):
        if not before > after:
            raise PlanError(
                f"{name} must fall towards data: entry {i} is {before:g}, entry {i + 1} {after:g}"
            )


def check_clock(time_dtype: object) -> None:
    """Raise InvalidArgument for what names no dtype to which a network could round its clock."""
    named = getattr(torch, time_dtype, None) if isinstance(time_dtype, str) else None
    floats = isinstance(named, torch.dtype) and named.is_floating_point
    if time_dtype is not None and not floats:
        raise InvalidArgument(
            f"time_dtype must name a floating-point dtype, such as 'bfloat16', got "
            f"{shown(time_dtype)}"
        )


@lru_cache
def _told_apart(dtype: str, scale: float) -> tuple[float, ...]:
    """Times t at which scale (1 - t) comes through a network's rounding unchanged.

    The pipelines cast the timestep and divide it by `scale`, the networks multiply it again.
    """
    rounding: torch.dtype = getattr(torch, dtype)
    told = torch.arange(1, int(8 * scale) + 1, dtype=torch.float64) / 8.0
    kept = told.to(rounding)
    again = (kept / scale) * scale
    exact = (kept.double() == told) & (again.double() == told)
    return tuple(1.0 - k / scale for k in reversed(told[exact].tolist()))
