"""Outer times: where the transitions of a sampler start and end.

A grid is called with a path and a number K of transitions and returns K + 1 increasing times from
0 to 1. A timestep shift is a choice of grid and lives here only: paths and solvers know nothing of
it, so that it cannot be applied twice.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import islice, pairwise
from typing import Any, Union

from .errors import (
    MOST_EVALUATIONS,
    InvalidArgument,
    PlanError,
    TimeError,
    check_count,
    check_name,
    shown,
)
from .fronts import front
from .paths import Path, check_time
from .settings import POSITIVE, Checked, Count, Is, setting

__all__ = ["Grid", "Karras", "Shifted", "Times", "Uniform", "outer_times", "snap_to_trained"]

Grid = Callable[[Path, int], tuple[float, ...]]
Times = Union[str, Grid, Sequence[float], None]


PATH = Is(Path, "an object such as glass_flows.paths.Linear()")
_ASKED = front(path=PATH, transitions=Count(most=MOST_EVALUATIONS))


@dataclass(frozen=True)
class Uniform:
    """Equal steps in t."""

    @_ASKED
    def __call__(self, path: Path, transitions: int) -> tuple[float, ...]:
        return snap_to_trained(path, [i / transitions for i in range(transitions + 1)])


@dataclass(frozen=True)
class Shifted(Checked):
    """Equal steps in t, shifted towards noise as FLUX and SD3 do: t ← t / (t + s (1 - t)).

    In their clock σ = 1 - t this is σ ← s σ / (1 + (s - 1) σ). `shift` s > 0 (SD3: 3; s = 1 is
    uniform). On the linear path it divides every amplitude α/σ by s.
    """

    shift: float = setting(3.0, POSITIVE)

    @classmethod
    def from_tokens(cls, tokens: int) -> Shifted:
        """FLUX's resolution-dependent shift e^μ, μ linear from 0.5 (256 tokens) to 1.15 (4096)."""
        tokens = check_count("tokens", tokens, most=10**6)  # e^μ is finite up to there
        return cls(math.exp(0.5 + (tokens - 256) * (1.15 - 0.5) / (4096 - 256)))

    @_ASKED
    def __call__(self, path: Path, transitions: int) -> tuple[float, ...]:
        uniform = [i / transitions for i in range(transitions + 1)]
        return snap_to_trained(path, [t / (t + self.shift * (1.0 - t)) for t in uniform])


@dataclass(frozen=True)
class Karras(Checked):
    """Equal steps in (σ/α)^(1/ρ) down to σ_min (Karras et al. 2022, eq. 5), then data.

    K levels from σ_max to σ_min and then data, as in k-diffusion. `sigma_min` and `sigma_max` are
    noise-to-signal ratios σ/α; they default to the path's own ends, and to 0.002 and 80 where those
    are 0 and infinite. Where σ_min is the path's own end no transition can start there: then it is
    the last of K + 1 levels, and data takes its place.
    """

    rho: float = setting(7.0, POSITIVE)
    sigma_min: float | None = setting(None, replace(POSITIVE, optional=True))
    sigma_max: float | None = setting(None, replace(POSITIVE, optional=True))

    def check(self) -> None:
        low, high = self.sigma_min, self.sigma_max
        if low is not None and high is not None and low >= high:
            raise InvalidArgument(f"need 0 < sigma_min < sigma_max, got {low!r} and {high!r}")

    @_ASKED
    def __call__(self, path: Path, transitions: int) -> tuple[float, ...]:
        first, last = path.amplitude(0.0), path.amplitude(1.0)
        high = self.sigma_max or (1.0 / first if first > 0 else 80.0)
        low = self.sigma_min or (1.0 / last if math.isfinite(last) else 0.002)
        if low >= high:
            raise InvalidArgument(f"sigma_min {low!r} is not below sigma_max {high!r} on this path")
        if first > 0 and abs(high * first - 1.0) > 1e-9:
            raise InvalidArgument(
                f"sigma_max = {high!r} is not where this path starts, {1.0 / first:.6g}: make the "
                "path itself start there, e.g. EDM(sigma_max=...)"
            )
        root = 1.0 / self.rho
        steps = transitions - 1 if 1.0 / low < last else transitions
        try:
            levels = [
                (high**root + i / steps * (low**root - high**root)) ** self.rho
                for i in range(1, transitions)
            ]
            inner = [path.time(min(max(1.0 / level, first), last)) for level in levels]
        except ArithmeticError as error:
            raise InvalidArgument(
                f"with rho = {self.rho!r} the levels differ by more than floats hold: take one of "
                "1 to 10 (7 is usual)"
            ) from error
        return snap_to_trained(path, [0.0, *inner, 1.0])


GRIDS: dict[str, Callable[[], Grid]] = {"uniform": Uniform, "shifted": Shifted, "karras": Karras}
"""By name, each with its defaults."""


def snap_to_trained(path: Path, times: Sequence[float]) -> tuple[float, ...]:
    """Move interior times to the nearest trained ones, kept distinct; continuous paths pass.

    Raises
    ------
    InvalidArgument, TimeError, PlanError
        No path; times outside [0, 1], or none; more of them than trained timesteps.
    """
    trained = PATH.read("path", path).trained_times
    times = _read(times, "a list of times")
    count = len(times) - 1
    if count < 0:
        raise TimeError("times must be a list of one or more, got none")
    if trained is None:
        return times
    if count > len(trained):
        raise PlanError(
            f"{count} transitions do not fit on {len(trained)} trained timesteps; "
            f"ask for at most {len(trained)}"
        )
    indices: list[int] = []
    for position, t in enumerate(times[:-1]):
        nearest = min(range(len(trained)), key=lambda j: abs(trained[j] - t))
        floor = indices[-1] + 1 if indices else 0
        ceiling = len(trained) - (count - position)
        indices.append(min(max(nearest, floor), ceiling))
    return (*(trained[j] for j in indices), times[-1])


def _read(times: Any, allowed: str, most: int | None = None) -> tuple[float, ...]:
    """A list's times, or the first `most` of them: it might have no end."""
    try:
        return tuple(check_time(t, f"times[{i}]") for i, t in enumerate(islice(times, most)))
    except TypeError:
        raise TimeError(f"times must be {allowed}, got {shown(times)}") from None


def outer_times(path: Path, transitions: int, times: Times = None) -> tuple[float, ...]:
    """K + 1 checked, increasing times for `transitions` = K.

    `times` is None (uniform), "uniform", "shifted", "karras", a grid object, any callable of
    (path, K), or a list of K + 1 times. On a path with trained timesteps named grids move to them.

    Raises
    ------
    InvalidArgument, TimeError, UnknownName
        K < 1, a wrong number of times, times outside [0, 1] or not increasing.
    """
    transitions = check_count("transitions", transitions, most=MOST_EVALUATIONS)
    PATH.read("path", path)
    if times is None:
        times = "uniform"
    if isinstance(times, str):
        times = GRIDS[check_name("time grid", times, GRIDS)]()
    listed: Any = times
    if callable(times) and not isinstance(times, type):
        listed = times(path, transitions)
    allowed = (
        f"None, {', '.join(map(repr, GRIDS))}, a grid such as Shifted(3.0), or a list of "
        f"{transitions + 1} times"
    )
    result = _read(listed, allowed, transitions + 2)
    if len(result) != transitions + 1:
        raise TimeError(
            f"{transitions} transitions need {transitions + 1} times (starts and the end), "
            f"got {len(result) if len(result) < transitions + 2 else 'more'}"
        )
    for i, (before, after) in enumerate(pairwise(result)):
        if before >= after:
            raise TimeError(
                f"times must increase (0 is noise, 1 is data): times[{i}] = {before!r}, "
                f"times[{i + 1}] = {after!r}"
            )
    return result
