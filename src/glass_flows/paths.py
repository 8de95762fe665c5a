"""Probability paths x_t = α_t z + σ_t ε, as float64 scalars with exact limits at both ends.

Time runs from t = 0 (noise) to t = 1 (data). The amplitude signal-to-noise a = α/σ grows with t
and is what the planner thinks in; a² is the SNR. Nothing here touches a tensor.
"""

from __future__ import annotations

import bisect
import functools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, fields, is_dataclass
from itertools import islice, pairwise
from numbers import Real
from typing import Any, ClassVar

from .errors import (
    MOST_EVALUATIONS,
    InvalidArgument,
    TimeError,
    check_name,
    check_number,
    plain,
    shown,
)
from .settings import NOT_NEGATIVE, POSITIVE, Checked, Is, setting

__all__ = [
    "EDM",
    "Cosine",
    "DiscreteDiffusion",
    "KnownTimes",
    "Linear",
    "Path",
    "VariancePreserving",
    "check_time",
    "from_config",
]


def check_time(t: Any, name: str = "t") -> float:
    """Return `t` as a float in [0, 1], or raise :class:`TimeError`."""
    if t.__class__ is float and 0.0 <= t <= 1.0:  # as nearly always
        return t
    value = plain(t)
    if isinstance(value, bool) or not isinstance(value, Real):
        raise TimeError(f"{name} must be a number in [0, 1], got {shown(t)}")
    if not 0 <= value <= 1:  # type: ignore[operator]
        raise TimeError(f"{name} must lie in [0, 1] (0 is noise, 1 is data), got {shown(t)}")
    return float(value)


def _at_time(method: Callable[..., Any]) -> Callable[..., Any]:
    """A method of a path that is given a checked time."""

    @functools.wraps(method)
    def asked(self: Path, t: float) -> Any:
        return method(self, check_time(t))

    return asked


class Path(ABC):
    """A path x_t = α_t z + σ_t ε with z data and ε ~ N(0, I).

    Every method takes a time t in [0, 1] and returns a Python float (float64); derivatives are
    with respect to t. Limits are exact: `Linear().amplitude(1.0)` is `inf`, never a clipped value.
    """

    name: ClassVar[str]

    def __init_subclass__(cls, **options: Any) -> None:
        """Times are checked on their way into every path, also into those of others."""
        super().__init_subclass__(**options)
        for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "amplitude", "timestep"):
            if name in vars(cls):
                setattr(cls, name, _at_time(vars(cls)[name]))

    @abstractmethod
    def alpha(self, t: float) -> float:
        """Signal coefficient α_t."""

    @abstractmethod
    def sigma(self, t: float) -> float:
        """Noise coefficient σ_t."""

    @abstractmethod
    def alpha_dot(self, t: float) -> float:
        """dα/dt."""

    @abstractmethod
    def sigma_dot(self, t: float) -> float:
        """dσ/dt (negative; -inf where σ falls to 0 with a vertical slope)."""

    def amplitude(self, t: float) -> float:
        """Amplitude signal-to-noise a = α/σ; `inf` where σ = 0."""
        sigma = self.sigma(t)
        return self.alpha(t) / sigma if sigma > 0 else math.inf

    def time(self, amplitude: float) -> float:
        """Inverse of :meth:`amplitude`.

        Raises :class:`InvalidArgument` if no time has this amplitude.
        """
        amplitude = check_number("amplitude", amplitude, "be a number", lambda value: True)
        low, high = self.amplitude(0.0), self.amplitude(1.0)
        if not low * (1 - 1e-12) <= amplitude <= high * (1 + 1e-12):
            raise InvalidArgument(
                f"no time of the {self.name} path has amplitude alpha/sigma = {amplitude!r}: "
                f"they run from {low:.6g} at t = 0 to {high:.6g} at t = 1"
            )
        if amplitude <= low:
            return 0.0
        return 1.0 if amplitude >= high else self._time(amplitude)

    @abstractmethod
    def _time(self, amplitude: float) -> float:
        """The time of an amplitude strictly between those of the ends."""

    @property
    def trained_times(self) -> tuple[float, ...] | None:
        """Times at which the network was trained, increasing; None if it knows all of them."""
        return None

    def config(self) -> dict[str, Any]:
        """The path as JSON-ready data; :func:`from_config` reads it back."""
        shown: list[str] = [f.name for f in fields(self) if f.init] if is_dataclass(self) else []
        return {"name": self.name, **{name: getattr(self, name) for name in shown}}


@dataclass(frozen=True)
class Linear(Path):
    """Flow matching's straight path (rectified flow, FLUX, SD3, SiT): α = t, σ = 1 - t."""

    name: ClassVar[str] = "linear"

    def alpha(self, t: float) -> float:
        return t

    def sigma(self, t: float) -> float:
        return 1.0 - t

    def alpha_dot(self, t: float) -> float:
        return 1.0

    def sigma_dot(self, t: float) -> float:
        return -1.0

    def _time(self, amplitude: float) -> float:
        return amplitude / (1.0 + amplitude)


@dataclass(frozen=True)
class Cosine(Path):
    """α = sin(πt/2), σ = cos(πt/2) (trigonometric flow)."""

    name: ClassVar[str] = "cosine"

    def alpha(self, t: float) -> float:
        return math.sin(0.5 * math.pi * t)

    def sigma(self, t: float) -> float:
        return math.sin(0.5 * math.pi * (1.0 - t))  # cos(π/2) is not 0 in floats, this is

    def alpha_dot(self, t: float) -> float:
        return 0.5 * math.pi * self.sigma(t)

    def sigma_dot(self, t: float) -> float:
        return -0.5 * math.pi * self.alpha(t)

    def _time(self, amplitude: float) -> float:
        return math.atan(amplitude) / (0.5 * math.pi)


@dataclass(frozen=True)
class VariancePreserving(Checked, Path):
    """The VP diffusion with linear β(τ) = β_min + τ (β_max - β_min), τ = 1 - t.

    log α = -τ² (β_max - β_min)/4 - τ β_min/2 and σ² = 1 - α² (Song et al. 2021, eq. 33).
    """

    beta_min: float = setting(0.1, NOT_NEGATIVE)
    beta_max: float = setting(20.0, POSITIVE)
    name: ClassVar[str] = "variance_preserving"

    def check(self) -> None:
        if self.beta_min > self.beta_max:
            raise InvalidArgument(
                f"need beta_min <= beta_max, "
                f"got beta_min={self.beta_min!r}, beta_max={self.beta_max!r}"
            )

    def _log_alpha(self, t: float) -> float:
        tau = 1.0 - t
        return -0.25 * tau * tau * (self.beta_max - self.beta_min) - 0.5 * tau * self.beta_min

    def alpha(self, t: float) -> float:
        return math.exp(self._log_alpha(t))

    def sigma(self, t: float) -> float:
        return math.sqrt(-math.expm1(2.0 * self._log_alpha(t)))

    def alpha_dot(self, t: float) -> float:
        beta = self.beta_min + (1.0 - t) * (self.beta_max - self.beta_min)
        return 0.5 * beta * self.alpha(t)

    def sigma_dot(self, t: float) -> float:
        sigma = self.sigma(t)
        return -self.alpha(t) * self.alpha_dot(t) / sigma if sigma > 0 else -math.inf

    def _time(self, amplitude: float) -> float:
        level = 0.5 * math.log1p(amplitude**-2)  # -log α
        half, slope = 0.5 * self.beta_min, self.beta_max - self.beta_min
        return 1.0 - 2.0 * level / (half + math.sqrt(half * half + slope * level))


@dataclass(frozen=True)
class EDM(Checked, Path):
    """Variance exploding: α = 1, σ = σ_max^(1-t) σ_min^t (Karras et al. 2022).

    At t = 1 the network is asked at σ_min; a *plan* that ends at t = 1 ends at data all the same.
    """

    sigma_min: float = setting(0.002, POSITIVE)
    sigma_max: float = setting(80.0, POSITIVE)
    name: ClassVar[str] = "edm"

    def check(self) -> None:
        if self.sigma_min >= self.sigma_max:
            raise InvalidArgument(
                f"need sigma_min < sigma_max, "
                f"got sigma_min={self.sigma_min!r}, sigma_max={self.sigma_max!r}"
            )

    def alpha(self, t: float) -> float:
        return 1.0

    def sigma(self, t: float) -> float:
        return float(self.sigma_max ** (1.0 - t) * self.sigma_min**t)

    def alpha_dot(self, t: float) -> float:
        return 0.0

    def sigma_dot(self, t: float) -> float:
        return -self.sigma(t) * math.log(self.sigma_max / self.sigma_min)

    def _time(self, amplitude: float) -> float:
        return math.log(self.sigma_max * amplitude) / math.log(self.sigma_max / self.sigma_min)


@dataclass(frozen=True)
class DiscreteDiffusion(Path):
    """A table of trained timesteps k = 0..T-1 with ᾱ_k: α = √ᾱ, σ = √(1-ᾱ).

    Timestep k sits at t = 1 - (k+1)/T, so that t = 0 is the noisiest trained timestep and t = 1 is
    data. Between timesteps the angle arctan(α/σ) is interpolated linearly, which stays finite for
    tables with zero terminal SNR (ᾱ_{T-1} = 0) and up to data.

    Parameters
    ----------
    alphas_cumprod : sequence of T >= 2 floats
        Strictly decreasing, each in [0, 1); any 1-d tensor or array works.
    """

    alphas_cumprod: Sequence[float]
    name: ClassVar[str] = "discrete_diffusion"
    _angles: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())
    _times: tuple[float, ...] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        table = tuple(
            check_number(f"alphas_cumprod[{k}]", value, "be finite", math.isfinite)
            for k, value in enumerate(_listed("alphas_cumprod", self.alphas_cumprod))
        )
        if len(table) < 2:
            raise InvalidArgument(f"alphas_cumprod needs at least 2 timesteps, got {len(table)}")
        for k, value in enumerate(table):
            if not 0.0 <= value < 1.0 or (k and value >= table[k - 1]):
                raise InvalidArgument(
                    "alphas_cumprod must decrease strictly from below 1 to at least 0 "
                    f"(timestep 0 is the cleanest); entry {k} is {value!r}"
                    + (f" after {table[k - 1]!r}" if k else "")
                )
        steps = len(table)
        angles = [math.atan2(math.sqrt(v), math.sqrt(1.0 - v)) for v in reversed(table)]
        times = [j / steps for j in range(steps)]
        object.__setattr__(self, "alphas_cumprod", table)
        object.__setattr__(self, "_angles", (*angles, 0.5 * math.pi))
        object.__setattr__(self, "_times", (*times, 1.0))

    def __repr__(self) -> str:
        table = self.alphas_cumprod
        return f"DiscreteDiffusion({len(table)} timesteps, {table[0]:.6g} .. {table[-1]:.6g})"

    @property
    def trained_times(self) -> tuple[float, ...]:
        return self._times[:-1]

    def timestep(self, t: float) -> float:
        """The (possibly fractional) timestep k of time t; -1 at data."""
        k = len(self.alphas_cumprod) * (1.0 - t) - 1.0
        return float(round(k)) if abs(k - round(k)) < 1e-9 else k

    def _segment(self, t: float) -> tuple[float, float]:
        """The angle arctan(α/σ) at t and its slope."""
        i = min(max(bisect.bisect_right(self._times, t) - 1, 0), len(self._times) - 2)
        t0, t1 = self._times[i : i + 2]
        angle0, angle1 = self._angles[i : i + 2]
        slope = (angle1 - angle0) / (t1 - t0)
        return angle0 + slope * (t - t0), slope

    def alpha(self, t: float) -> float:
        return math.sin(self._segment(t)[0])

    def sigma(self, t: float) -> float:
        return math.sin(0.5 * math.pi - self._segment(t)[0])

    def alpha_dot(self, t: float) -> float:
        return self.sigma(t) * self._segment(t)[1]

    def sigma_dot(self, t: float) -> float:
        return -self.alpha(t) * self._segment(t)[1]

    def amplitude(self, t: float) -> float:
        return math.inf if t >= 1.0 else math.tan(self._segment(t)[0])

    def _time(self, amplitude: float) -> float:
        angle = math.atan(amplitude)
        i = min(bisect.bisect_right(self._angles, angle) - 1, len(self._angles) - 2)
        share = (angle - self._angles[i]) / (self._angles[i + 1] - self._angles[i])
        nearest = self._times[i + round(share)]
        t = self._times[i] + share * (self._times[i + 1] - self._times[i])
        return nearest if abs(t - nearest) < 1e-13 else t  # a trained time is met exactly


@dataclass(frozen=True)
class KnownTimes(Path):
    """Another path, whose network is asked at certain times only.

    For networks that round their clock: bfloat16 holds 1000 t to within 2, so that such a network
    is best asked at the times that it can tell apart.

    Parameters
    ----------
    path : Path
        One without trained times of its own, or its configuration.
    times : sequence of float
        At least two, increasing, in [0, 1).
    """

    path: Path
    times: Sequence[float]
    name: ClassVar[str] = "known_times"

    def __post_init__(self) -> None:
        path = from_config(self.path) if isinstance(self.path, Mapping) else self.path
        if not isinstance(path, Path) or path.trained_times is not None:
            raise InvalidArgument(f"path must be one without trained times, got {shown(path)}")
        listed = _listed("times", self.times)
        times = tuple(check_time(t, f"times[{i}]") for i, t in enumerate(listed))
        if len(times) < 2 or times[-1] == 1.0 or any(s >= t for s, t in pairwise(times)):
            raise TimeError(
                f"times must be at least two, increasing and below 1, got {shown(times)}"
            )
        object.__setattr__(self, "path", path)
        object.__setattr__(self, "times", times)

    def __repr__(self) -> str:
        return f"KnownTimes({self.path!r}, {len(self.times)} times)"

    @property
    def trained_times(self) -> tuple[float, ...]:
        return tuple(self.times)

    def config(self) -> dict[str, Any]:
        return {"name": self.name, "path": self.path.config(), "times": list(self.times)}

    def alpha(self, t: float) -> float:
        return self.path.alpha(t)

    def sigma(self, t: float) -> float:
        return self.path.sigma(t)

    def alpha_dot(self, t: float) -> float:
        return self.path.alpha_dot(t)

    def sigma_dot(self, t: float) -> float:
        return self.path.sigma_dot(t)

    def amplitude(self, t: float) -> float:
        return self.path.amplitude(t)

    def _time(self, amplitude: float) -> float:
        t = self.path.time(amplitude)
        nearest = min(self.times, key=lambda known: abs(known - t))
        return nearest if abs(t - nearest) < 1e-13 else t  # a known time is met exactly


_PATHS: dict[str, type[Path]] = {
    cls.name: cls
    for cls in (Linear, Cosine, VariancePreserving, EDM, DiscreteDiffusion, KnownTimes)
}


def from_config(config: Mapping[str, Any]) -> Path:
    """Build a path from what :meth:`Path.config` returned."""
    options = dict(Is(Mapping, "a mapping, as of Path.config()").check("config", config))
    name = check_name("path", options.pop("name", None), _PATHS)
    try:
        return _PATHS[name](**options)
    except TypeError as error:
        raise InvalidArgument(f"not the configuration of a {name} path: {error}") from None


def _listed(name: str, given: object) -> Iterable[object]:
    """The entries of what is no text, and no more of them than there may be."""
    scalar = plain(given) is not given
    if scalar or not isinstance(given, Iterable) or isinstance(given, (str, bytes, Mapping)):
        raise InvalidArgument(f"{name} must be a list of numbers, got {shown(given)}")
    return islice(given, MOST_EVALUATIONS + 1)
