"""Named exceptions. Every one says what was given, what is allowed and how to fix it.

All derive from :class:`GlassError`; those about arguments are also `ValueError`, those about
missing packages also `ImportError`, so that general handlers keep working.
"""

from __future__ import annotations

import difflib
import operator
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Real
from typing import Any

__all__ = [
    "DegeneratePrediction",
    "DegenerateWeights",
    "FolderInUse",
    "GlassError",
    "InvalidArgument",
    "MissingExtra",
    "NonFinite",
    "OtherJob",
    "PlanError",
    "RewardError",
    "RunFolderError",
    "ShapeError",
    "TimeError",
    "UnknownName",
    "WeightsFileError",
    "check_count",
    "check_name",
    "check_number",
    "did_you_mean",
    "missing_name",
]


class GlassError(Exception):
    """Base class of every error that glass-flows raises on purpose.

    Attributes
    ----------
    boundary : glass_flows.execute.Boundary or None
        Where a steered run stopped, with its particles: what was finished is not lost.
    """

    boundary: Any = None


class InvalidArgument(GlassError, ValueError):
    """An argument is outside its allowed range."""


class ShapeError(InvalidArgument):
    """A tensor has the wrong shape, dtype or device."""


class TimeError(InvalidArgument):
    """A time is outside [0, 1], or times are not increasing."""


class PlanError(InvalidArgument):
    """A sampler with these settings has no table of finite numbers."""


class DegeneratePrediction(InvalidArgument):
    """What the network predicts says nothing about the data at the time asked for."""


class UnknownName(InvalidArgument):
    """An option's name is not one of those allowed; the message names the nearest."""


class NonFinite(GlassError, ArithmeticError):
    """A network, a reward or a user's function returned NaN or infinity.

    Attributes
    ----------
    particles : tuple of int
        Indices in the batch of the affected particles.
    first : int
        Row of the batch from which those in the message are counted.
    """

    def __init__(self, message: str, particles: tuple[int, ...] = ()) -> None:
        super().__init__(message)
        self.particles, self.first = particles, 0

    def __str__(self) -> str:
        text = super().__str__()
        return f"{text}, counted from row {self.first} of the batch" if self.first else text


@contextmanager
def rows_from(first: int) -> Iterator[None]:
    """What is raised inside of rows of a batch's part, which begins at row `first`."""
    try:
        yield
    except NonFinite as error:
        if not error.first:  # the part is not one of a part, of which this was said already
            error.first = first
            error.particles = tuple(first + particle for particle in error.particles)
        raise


class RewardError(GlassError, RuntimeError):
    """A reward raised, left its declared range, or has no gradient where one is needed."""


class DegenerateWeights(GlassError, ArithmeticError):
    """Particle weights are NaN, infinite, or all zero; the message names the boundary."""


class MissingExtra(GlassError, ImportError):
    """An optional dependency is not installed; the message holds the install line."""

    def __init__(self, package: str, extra: str, purpose: str) -> None:
        super().__init__(
            f"{purpose} needs the package {package!r}, which is not installed. "
            f"Install it with: pip install 'glass-flows[{extra}]'"
        )
        self.package, self.extra = package, extra


class RunFolderError(GlassError):
    """A run's folder cannot be written or read, or belongs to another job."""


class FolderInUse(RunFolderError):
    """Another process writes into the folder; the message says which, and since when."""


class OtherJob(RunFolderError):
    """The folder holds a run of another job, of other weights or of other circumstances."""


class WeightsFileError(GlassError):
    """A weights file is missing, damaged, or belongs to another model."""


def check_count(name: str, given: object, least: int = 1) -> int:
    """Return `given` as an int of at least `least`, or raise :class:`InvalidArgument`."""
    try:
        count = least - 1 if isinstance(given, bool) else operator.index(given)  # type: ignore[arg-type]
    except TypeError:
        count = least - 1
    if count < least:
        raise InvalidArgument(f"{name} must be an integer >= {least}, got {given!r}")
    return count


def check_number(name: str, given: object, rule: str, holds: Callable[[float], bool]) -> float:
    """Return `given` as a float if it is a number that `holds`, else raise InvalidArgument.

    `rule` says what holds: "be finite", "lie in [0, 1]".
    """
    if isinstance(given, Real) and not isinstance(given, bool) and holds(float(given)):
        return float(given)
    raise InvalidArgument(f"{name} must {rule}, got {given!r}")


def check_name(kind: str, given: object, allowed: Iterable[str]) -> str:
    """Return `given` if it is one of `allowed`, else raise :class:`UnknownName`."""
    names = allowed if isinstance(allowed, Collection) else list(allowed)
    if isinstance(given, str) and given in names:  # of a registry without looking at all of it
        return given
    raise missing_name(kind, given, names)


def missing_name(kind: str, given: object, allowed: Iterable[str]) -> UnknownName:
    """The error for a name that is not one of `allowed`, with the nearest."""
    names = sorted(allowed)
    hint = did_you_mean(given, names)
    return UnknownName(f"unknown {kind} {given!r}.{hint} Allowed: {', '.join(map(repr, names))}.")


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """The question for a message, with a blank before it; nothing if no name is near."""
    near = difflib.get_close_matches(str(given), names, n=1, cutoff=0.5)
    return f" Did you mean {near[0]!r}?" if near else ""
