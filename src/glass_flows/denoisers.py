"""One contract for every model: `denoiser(x, t)` is E[z | x_t = x].

:class:`Denoiser` turns a network that predicts velocity, ε, v, score or the sample into that, with
classifier-free guidance, the network's own clock and dtype, and large batches split.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from copy import copy
from dataclasses import MISSING, astuple, dataclass, field, fields, replace
from typing import Any, Protocol, Union, cast

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint as recomputed

from .errors import (
    DegeneratePrediction,
    InvalidArgument,
    ShapeError,
    check_count,
    check_number,
    shown,
)
from .noise import check_tensor
from .paths import DiscreteDiffusion, Path, check_time
from .settings import (
    ANY_COUNT,
    Checked,
    Choice,
    Count,
    Function,
    Is,
    Kind,
    Number,
    Object,
    Switch,
    setting,
)

__all__ = [
    "CLOCKS",
    "DEVICE",
    "DTYPE",
    "PREDICTIONS",
    "BaseDenoiser",
    "Clock",
    "Costs",
    "Denoiser",
    "DenoiserLike",
    "Estimate",
    "Fitting",
    "WrappedDenoiser",
    "as_denoiser",
    "check_device",
    "clean_estimate",
]


@dataclass(frozen=True)
class Estimate:
    """What one evaluation says about the data.

    Attributes
    ----------
    D : Tensor
        (B, *shape), the clean estimate that moves the particles: tilted under reward guidance.
    untilted : Tensor
        (B, *shape), the model's own E[z | x_t = x]; the same tensor without reward guidance.
    rewards, gradient : Tensor or None
        r(untilted), (B,) float64 on the CPU, and ∇r there, shaped like D, if guidance took them.
    """

    D: Tensor
    untilted: Tensor
    rewards: Tensor | None = None
    gradient: Tensor | None = None


@dataclass(frozen=True)
class Costs:
    """What a run has asked for so far, in all, counted per particle.

    Attributes
    ----------
    network_evaluations : int
        Forward passes (a guided evaluation with two batches counts as two).
    network_gradients : int
        Backward passes through the network.
    reward_evaluations, decodes : int
        Samples scored, and decoded for it.
    """

    network_evaluations: int = 0
    network_gradients: int = 0
    reward_evaluations: int = 0
    decodes: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __sub__(self, other: Costs) -> Costs:
        return Costs(*(a - b for a, b in zip(astuple(self), astuple(other))))

    def __mul__(self, count: int) -> Costs:
        return Costs(*(count * one for one in astuple(self)))

    def __str__(self) -> str:
        told = ((getattr(self, one.name), one.name.replace("_", " ")) for one in fields(self))
        return ", ".join(f"{count:,} {name}" for count, name in told if count) or "nothing"


class DenoiserLike(Protocol):
    """The least that a model of one's own must be; :func:`as_denoiser` makes a whole of it."""

    @property
    def path(self) -> Path: ...

    @property
    def evaluations_per_call(self) -> int:
        """Network evaluations per particle of one call (2 under classifier-free guidance)."""

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """E[z | x_t = x] for x of shape (B, *shape) and one time t in [0, 1]."""


class BaseDenoiser(ABC):
    """The contract of every model: what samplers, steering and guidance may ask of it.

    Subclasses define `path` and a call; the rest has defaults that are right for a plain function
    of (x, t) on no device in particular.

    Attributes
    ----------
    path : Path
    device : torch.device or None
        Where its parameters are; None for a plain function.
    cfg_scale : float
        w of classifier-free guidance, 1 without: samplers make their grid for it.
    evaluations_per_call : int
        Forward passes of the network per particle of one call.
    costs_per_call : Costs
        All that one call asks for, per particle.
    recomputes : bool
        Whether a backward pass costs a second forward pass.
    """

    path: Path

    @abstractmethod
    def __call__(self, x: Tensor, t: float) -> Tensor:
        """E[z | x_t = x], a new tensor shaped like x (B, *shape), for one time t in [0, 1]."""

    def estimate(self, x: Tensor, t: float) -> Estimate:
        """The same with all else that the evaluation says."""
        D = self(x, t)
        return Estimate(D, D)

    def spread(self, populations: int, particles: int) -> BaseDenoiser:
        """For a batch of P populations of N particles, with one row of conditioning for each P."""
        return self

    def rows(self, part: slice, batch: int) -> BaseDenoiser:
        """For `part` of a batch of `batch` rows."""
        return self

    def at_cfg_scale(self, scale: float) -> BaseDenoiser | None:
        """The same network under another classifier-free guidance; None where it cannot tell."""
        return self if scale == self.cfg_scale else None

    @property
    def device(self) -> torch.device | None:
        return None

    @property
    def cfg_scale(self) -> float:
        return 1.0

    @property
    def evaluations_per_call(self) -> int:
        return 1

    @property
    def costs_per_call(self) -> Costs:
        return Costs(self.evaluations_per_call)

    @property
    def recomputes(self) -> bool:
        return False


class WrappedDenoiser(BaseDenoiser):
    """A denoiser around another, which costs what that costs and is where that is."""

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser = as_denoiser(denoiser)
        self.path = self.denoiser.path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.estimate(x, t).D

    def estimate(self, x: Tensor, t: float) -> Estimate:
        return self.denoiser.estimate(x, t)

    def at_cfg_scale(self, scale: float) -> BaseDenoiser | None:
        """The same around the same network under another classifier-free guidance."""
        denoiser = self.denoiser.at_cfg_scale(scale)
        if denoiser is None:
            return None
        other = copy(self)
        other.denoiser = denoiser
        return other

    @property
    def device(self) -> torch.device | None:
        return self.denoiser.device

    @property
    def cfg_scale(self) -> float:
        return self.denoiser.cfg_scale

    @property
    def evaluations_per_call(self) -> int:
        return self.denoiser.evaluations_per_call

    @property
    def costs_per_call(self) -> Costs:
        more = self.evaluations_per_call - self.denoiser.evaluations_per_call  # of a subclass
        return self.denoiser.costs_per_call + Costs(more)

    @property
    def recomputes(self) -> bool:
        return self.denoiser.recomputes


class _Foreign(BaseDenoiser):
    """Somebody's own object with a path and a call."""

    def __init__(self, denoiser: DenoiserLike) -> None:
        self.denoiser, self.path = denoiser, denoiser.path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        own = check_tensor(x).clone()  # whatever is written there changes no particle
        return self.denoiser(own, t)

    @property
    def evaluations_per_call(self) -> int:
        return self.denoiser.evaluations_per_call


def as_denoiser(given: object) -> BaseDenoiser:
    """`given` as a whole denoiser: itself, or around any object with a path and a call.

    Raises
    ------
    InvalidArgument
        It is neither.
    """
    if isinstance(given, BaseDenoiser):
        return given
    try:
        path = cast(DenoiserLike, given).path
        check_count("evaluations_per_call", cast(DenoiserLike, given).evaluations_per_call)
    except AttributeError:
        path = None
    if not isinstance(path, Path) or not callable(given) or isinstance(given, type):
        raise InvalidArgument(
            f"expected a denoiser, got {type(given).__name__}: wrap a network as "
            "glass_flows.Denoiser(network, path, prediction=...)"
        )
    return _Foreign(cast(DenoiserLike, given))


# --- what the network predicts ----------------------------------------------------------------
# Each returns (coefficient of x, coefficient of the network's output) in D = c_x x + c_out out.


def _from_velocity(path: Path, t: float) -> tuple[float, float]:
    # v = α' D + σ' (x - α D)/σ; σα' - ασ' = σ² a' > 0 whenever the path moves
    sigma, sigma_dot = path.sigma(t), path.sigma_dot(t)
    wronskian = sigma * path.alpha_dot(t) - path.alpha(t) * sigma_dot
    return -sigma_dot / wronskian, sigma / wronskian


def _from_reverse_velocity(path: Path, t: float) -> tuple[float, float]:
    of_x, of_output = _from_velocity(path, t)
    return of_x, -of_output


def _from_sample(path: Path, t: float) -> tuple[float, float]:
    return 0.0, 1.0


def _from_epsilon(path: Path, t: float) -> tuple[float, float]:
    alpha = _signal(path, t, "epsilon")
    return 1.0 / alpha, -path.sigma(t) / alpha


def _from_score(path: Path, t: float) -> tuple[float, float]:
    alpha = _signal(path, t, "score")
    return 1.0 / alpha, path.sigma(t) ** 2 / alpha


def _from_v(path: Path, t: float) -> tuple[float, float]:
    alpha, sigma = path.alpha(t), path.sigma(t)
    power = alpha**2 + sigma**2
    return alpha / power, -sigma / power


def _signal(path: Path, t: float, prediction: str) -> float:
    alpha = path.alpha(t)
    if alpha == 0.0 or math.isinf(1.0 / alpha):
        raise DegeneratePrediction(
            f"a network that predicts {prediction!r} says nothing about the data at t = {t:g}, "
            f"where alpha = {alpha:.3g} on the {path.name} path. Use a network that predicts "
            "velocity, v or the sample, or run a table that starts later: "
            "glass_flows.execute.run(plan(..., times=[0.001, ...]), denoiser, x, noise)"
        )
    return alpha


PREDICTIONS: dict[str, Callable[[Path, float], tuple[float, float]]] = {
    "velocity": _from_velocity,
    "reverse_velocity": _from_reverse_velocity,
    "epsilon": _from_epsilon,
    "v": _from_v,
    "score": _from_score,
    "sample": _from_sample,
}


def clean_estimate(coefficients: tuple[float, float], x: Tensor, output: Tensor) -> Tensor:
    """D = c_x x + c_out output, a new tensor, for the coefficients of one of `PREDICTIONS`."""
    of_x, of_output = coefficients
    if of_x == 0.0:  # a copy even at 1.0: networks may use their output's memory again
        return output * of_output
    if of_x == 1.0:
        return torch.add(x, output, alpha=of_output)
    return (x * of_x).add_(output, alpha=of_output)


# --- the time that the network wants ------------------------------------------------------------


def _timestep(path: Path, t: float) -> float:
    if not isinstance(path, DiscreteDiffusion):
        raise InvalidArgument(
            f"time='timestep' is the index in a trained table; the {path.name} path has none. "
            f"Allowed here: {', '.join(map(repr, sorted(CLOCKS)))} or a callable of (path, t)"
        )
    return path.timestep(t)


CLOCKS: dict[str, Callable[[Path, float], float]] = {
    "t": lambda path, t: t,
    "1-t": lambda path, t: 1.0 - t,
    "1000t": lambda path, t: 1000.0 * t,
    "1000(1-t)": lambda path, t: 1000.0 * (1.0 - t),
    "sigma": lambda path, t: path.sigma(t),
    "log(sigma)/4": lambda path, t: 0.25 * math.log(path.sigma(t)),
    "log_snr": lambda path, t: 2.0 * math.log(a) if (a := path.amplitude(t)) > 0 else -math.inf,
    "timestep": _timestep,
}

Clock = Union[str, Callable[[Path, float], float]]


_CLOCK = Object(
    "time convention",
    f"{', '.join(map(repr, CLOCKS))} or a function of (path, t)",
    heads=dict.fromkeys(CLOCKS),
    functions=True,
)
_NAMED = Is(Mapping, "a mapping of names to values")


@dataclass(frozen=True)
class _Dtype(Kind):
    """A real floating-point dtype of torch."""

    optional: bool = True

    def check(self, name: str, given: object) -> torch.dtype:
        if isinstance(given, torch.dtype) and given.is_floating_point:
            return given
        raise InvalidArgument(
            f"{name} must be a real floating torch.dtype such as torch.bfloat16, got {shown(given)}"
        )


# --- the denoiser -------------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Denoiser(Checked, BaseDenoiser):
    """A network as the posterior mean D_t(x) = E[z | x_t = x].

    Parameters
    ----------
    network : callable
        ``network(x, t, **conditioning)`` with x of shape (B, *shape) and t of shape (B,), float32
        or, for networks in float64, float64; returns a tensor shaped like x, and must not write
        to x.
    path : Path
        The probability path the network was trained on.
    prediction : str
        "velocity" (dx/dt towards data), "reverse_velocity" (towards noise, as FLUX and SD3),
        "epsilon", "v" (α ε - σ z), "score" or "sample" (E[z | x_t], x0-prediction).
    time : str or callable
        What the network is told: "t" (0 noise, 1 data), "1-t", "1000t", "1000(1-t)", "sigma",
        "log(sigma)/4" (EDM's c_noise), "log_snr" (2 log α/σ), "timestep" (index in a
        :class:`~glass_flows.paths.DiscreteDiffusion` table), or a callable of (path, t).
    conditioning, unconditional : mapping
        Keyword arguments of the network. Tensors, also inside nested mappings, lists and tuples,
        have a leading dimension of B or of 1 (shared by the batch); anything else is passed as it
        is. Steering takes 1 row, or one row for each population.
    guidance_scale : float
        w in D_u + w (D_c - D_u), classifier-free guidance; 1 asks the conditional network only and
        0 the unconditional one only. A guided D is no posterior mean of anything, so that with
        w ≠ 1 the samples' law does depend on ρ.
    dtype : torch.dtype or None
        What x is cast to for the network; None takes that of the network's parameters. The state
        and D keep the dtype of x.
    max_batch : int or None
        Largest batch of one network call; larger ones are split.
    checkpoint : bool
        Where gradients are taken, keep no activations of a network call and call the network
        again on the way back: memory of one call instead of all, at one more evaluation each.
    passes : int
        Evaluations per sample behind one call of `network`, for counting: 2 for a function that
        applies classifier-free guidance by itself.
    network_cfg : float
        w of that guidance, for the grid of the samplers. What a network distilled with guidance is
        told is none.
    network_at : callable, optional
        w -> that function under another w, which refinement's moves ask for. `network_cfg` must say
        under which it is.
    """

    network: Callable[..., Tensor] = setting(MISSING, Function("callable"))
    path: Path = setting(MISSING, Is(Path, "a glass_flows.paths.Path"))
    prediction: str = setting("velocity", Choice("prediction", PREDICTIONS))
    time: Clock = setting("t", _CLOCK)
    conditioning: Mapping[str, Any] = field(default_factory=dict, metadata={"kind": _NAMED})
    unconditional: Mapping[str, Any] | None = setting(None, replace(_NAMED, optional=True))
    guidance_scale: float = setting(1.0, Number())
    dtype: torch.dtype | None = setting(None, _Dtype())
    max_batch: int | None = setting(None, ANY_COUNT)
    checkpoint: bool = setting(False, Switch())
    passes: int = setting(1, Count())
    network_cfg: float = setting(1.0, Number())
    network_at: Callable[[float], Callable[..., Tensor]] | None = setting(
        None, Function("a callable of w, or None", optional=True)
    )

    @classmethod
    def called(cls, name: str) -> str:
        return name

    def check(self) -> None:
        if self.guidance_scale != 1.0 and self.unconditional is None:
            raise InvalidArgument(
                f"guidance_scale={self.guidance_scale} needs the network's unconditional inputs: "
                "pass unconditional={...}, e.g. the null label or the empty prompt"
            )
        if self.guidance_scale != 1.0 and self.network_at is not None:
            raise InvalidArgument(
                f"network_at is for a network that guides by itself, and guidance_scale="
                f"{self.guidance_scale:g} guides it from outside: give one of them"
            )

    @property
    def recomputes(self) -> bool:
        return self.checkpoint

    @property
    def evaluations_per_call(self) -> int:
        return self.passes * (1 if self.guidance_scale in (0.0, 1.0) else 2)

    @property
    def cfg_scale(self) -> float:
        return self.network_cfg if self.guidance_scale == 1.0 else self.guidance_scale

    def at_cfg_scale(self, scale: float) -> Denoiser | None:
        if scale == self.cfg_scale:
            return self
        if self.network_at is not None:  # and guidance_scale is 1, by the check
            return replace(self, network=self.network_at(scale), network_cfg=scale)
        if self.unconditional is not None and self.network_cfg == 1.0:
            return replace(self, guidance_scale=scale)
        return None

    @property
    def device(self) -> torch.device | None:
        """Where the network's parameters are; None for a plain function."""
        parameter = self._parameter()
        return None if parameter is None else parameter.device

    def condition(self, **conditioning: Any) -> Denoiser:
        """The same denoiser with these conditioning arguments set or replaced."""
        return replace(self, conditioning={**self.conditioning, **conditioning})

    def rows(self, part: slice, batch: int) -> Denoiser:
        """The denoiser of `part` of a batch of `batch` rows: its conditioning cut to size."""
        return replace(
            self,
            conditioning=_cut(self.conditioning, part, batch),
            unconditional=_cut(self.unconditional, part, batch),
        )

    def spread(self, populations: int, particles: int) -> Denoiser:
        """The denoiser of a batch of P populations of N particles, one row for each population.

        Conditioning with a leading dimension of 1 stays shared; one of P is repeated N times each.
        Raises :class:`ShapeError` for any other.
        """
        return replace(
            self,
            conditioning=_spread(self.conditioning, populations, particles, "conditioning"),
            unconditional=_spread(self.unconditional, populations, particles, "unconditional"),
        )

    def __call__(self, x: Tensor, t: float) -> Tensor:
        """E[z | x_t = x], shaped like x; t is one time in [0, 1] for the whole batch.

        Raises :class:`ShapeError` if the network returns another shape, and
        :class:`DegeneratePrediction` where its prediction says nothing about the data.
        """
        t = check_time(t)
        check_tensor(x)
        if self.path.sigma(t) == 0.0:
            return x / self.path.alpha(t)  # x is the data: nothing to ask
        coefficients = PREDICTIONS[self.prediction](self.path, t)
        return clean_estimate(coefficients, x, self._output(x, t))

    def _output(self, x: Tensor, t: float) -> Tensor:
        """The network's output; guidance is affine, so it can be applied before the conversion."""
        w = self.guidance_scale
        if w == 1.0:
            return self._ask(x, t, self.conditioning)
        unconditional = self._ask(x, t, {**self.conditioning, **(self.unconditional or {})})
        if w == 0.0:
            return unconditional
        kept = unconditional.clone()  # a compiled network may answer in the same memory again
        return torch.lerp(kept, self._ask(x, t, self.conditioning), w)

    def _ask(self, x: Tensor, t: float, conditioning: Mapping[str, Any]) -> Tensor:
        batch, limit = x.shape[0], self.max_batch or x.shape[0]
        parameter = self._parameter()
        dtype = self.dtype or (x.dtype if parameter is None else parameter.dtype)
        clock = CLOCKS[self.time] if isinstance(self.time, str) else self.time
        given = clock(self.path, t)
        told = check_number("what `time` returns", given, "be a number", lambda value: True)
        if not math.isfinite(told):
            raise DegeneratePrediction(
                f"time={self.time!r} is {told} at t = {t:g}: ask later than that"
            )
        wide = torch.float64 if dtype == torch.float64 else torch.float32
        times = torch.full((batch,), told, dtype=wide, device=x.device)
        asked = x.to(dtype, copy=True)  # a network that writes into its input changes no particle
        return _in_parts(self._call, limit, asked, times, conditioning).to(x.dtype)

    def _call(self, x: Tensor, times: Tensor, /, **inputs: Any) -> Tensor:
        """One call of the network, its answer checked."""
        try:
            if self.checkpoint and torch.is_grad_enabled():
                output = recomputed(self.network, x, times, use_reentrant=False, **inputs)
            else:
                output = self.network(x, times, **inputs)
        except (RuntimeError, NotImplementedError) as error:
            _check_places(self, inputs, x.device, error)
            raise
        if not isinstance(output, Tensor) or output.shape != x.shape or output.is_complex():
            given = type(output).__name__
            if isinstance(output, Tensor):
                given = f"{tuple(output.shape)} of {output.dtype}"
            raise ShapeError(
                f"the network must return a real tensor shaped like its input {tuple(x.shape)}, "
                f"got {given}"
            )
        return output

    def _parameter(self) -> Tensor | None:
        """The network's first floating-point parameter, if it is a module."""
        if not isinstance(self.network, torch.nn.Module):
            return None
        return next((p for p in self.network.parameters() if p.is_floating_point()), None)


def _check_places(
    denoiser: Denoiser, inputs: Mapping[str, Any], home: torch.device, error: Exception
) -> None:
    """Raise :class:`ShapeError` if a call failed where not all was on the device of x."""

    def check(value: Tensor, name: str) -> Tensor:
        if value.device != home:
            raise ShapeError(
                f"{name!r} is on {value.device} and x on {home}, which the network cannot take: "
                f"{error}"
            ) from error
        return value

    parameter = denoiser._parameter()
    _mapped({} if parameter is None else {"the network's parameters": parameter}, "", check)
    _mapped(inputs, "", check)


def check_device(given: torch.device | str | None) -> torch.device | None:
    """Return the device of this name, or raise :class:`InvalidArgument`."""
    if given is None:
        return None
    try:
        if isinstance(given, bool):
            raise TypeError("no device")
        device = torch.device(given)
        torch.empty(0, device=device)  # whether it is there
    except (RuntimeError, TypeError, ValueError, AssertionError, OverflowError) as error:
        reason = "" if "no device" in str(error) else f": {error}".splitlines()[0]
        raise InvalidArgument(
            f"device must be a torch.device or the name of one that is here, as 'cuda:0', got "
            f"{shown(given)}{reason}"
        ) from None
    return device


class _Device(Kind):
    """A device that is here, or None."""

    optional = True

    def check(self, name: str, given: Any) -> torch.device | None:
        device = check_device(given)
        if device is not None and device.type == "meta":
            raise InvalidArgument(f"{name} must be one that holds values, got {shown(given)}")
        return device


class _StateDtype(Kind):
    """float32 or float64; None is torch's default, or float32 where that is of fewer bits."""

    def check(self, name: str, given: object) -> torch.dtype:
        if given is None:
            wide = torch.get_default_dtype() == torch.float64
            return torch.float64 if wide else torch.float32
        if isinstance(given, torch.dtype) and given in (torch.float32, torch.float64):
            return given
        raise ShapeError(
            f"{name} must be torch.float32 or torch.float64, that of the state (the network may "
            f"run in another: Denoiser(dtype=torch.bfloat16)), got {shown(given)}"
        )


DEVICE, DTYPE = _Device(), _StateDtype()


class Fitting:
    """A network called on as many rows at a time as fit in the device's memory.

    Starts with the whole batch, and halves its size where the device runs out of memory; what was
    found is kept for later calls. The network must not change anything before it runs out.

    Attributes
    ----------
    limit : int or None
        Largest batch that has been found to fit; None as long as everything did.
    """

    def __init__(self, network: Callable[..., Tensor]) -> None:
        self.network = network
        self.limit: int | None = None

    def __call__(self, x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
        batch = x.shape[0]
        while True:
            size = min(self.limit or batch, batch)
            try:
                return _in_parts(self.network, size, x, t, conditioning)
            except torch.cuda.OutOfMemoryError:
                if size == 1:
                    raise
                self.limit = size // 2
            torch.cuda.empty_cache()  # not inside the handler, whose traceback holds tensors


def _mapped(value: Any, name: str, function: Callable[[Tensor, str], Tensor]) -> Any:
    """Nested conditioning with ``function(tensor, its name)`` in the place of every tensor."""
    if isinstance(value, Mapping):
        named = {key: f"{name}[{key!r}]" if name else key for key in value}
        return {key: _mapped(item, named[key], function) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_mapped(item, f"{name}[{i}]", function) for i, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    return function(value, name) if isinstance(value, Tensor) else value


def _spread(values: Any, populations: int, particles: int, name: str) -> Any:
    """Tensors of one row for each population, repeated for its particles."""

    def spread(value: Tensor, name: str) -> Tensor:
        if value.ndim > 0 and value.shape[0] == 1:
            return value
        if value.ndim == 0 or value.shape[0] != populations:
            raise ShapeError(
                f"steering takes {name} with a leading dimension of 1 (shared) or {populations} "
                f"(one row for each population), got shape {tuple(value.shape)}"
            )
        return value.repeat_interleave(particles, 0)

    return _mapped(values, name, spread)


def _cut(values: Any, part: slice, batch: int) -> Any:
    """One call's share of conditioning."""

    def cut(value: Tensor, name: str) -> Tensor:
        if value.ndim == 0 or value.shape[0] not in (1, batch):
            raise ShapeError(
                f"conditioning {name!r} must have a leading dimension of 1 (shared) or {batch} "
                f"(one per particle), got shape {tuple(value.shape)}"
            )
        if value.shape[0] == batch:
            return value[part]
        return value.expand(part.stop - part.start, *value.shape[1:])

    return _mapped(values, "", cut)


def _in_parts(
    network: Callable[..., Tensor], size: int, x: Tensor, t: Tensor, conditioning: Mapping[str, Any]
) -> Tensor:
    """The network's answer for a batch, of which it sees `size` rows at a time."""
    batch = x.shape[0]
    if size >= batch:
        return network(x, t, **_cut(conditioning, slice(0, batch), batch))
    parts = [slice(i, min(i + size, batch)) for i in range(0, batch, size)]
    # Copies: a compiled network may answer in the same memory again.
    return torch.cat([network(x[p], t[p], **_cut(conditioning, p, batch)).clone() for p in parts])
