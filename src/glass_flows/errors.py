"""Named exceptions. Every one says what was given, what is allowed and how to fix it.

All derive from :class:`GlassError`; those about arguments are also `ValueError`, those about
missing packages also `ImportError`, so that general handlers keep working.
"""

from __future__ import annotations

import difflib
import math
import os
import traceback
from collections.abc import Callable, Collection, Iterable, Iterator
from contextlib import contextmanager
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

__all__ = [
    "MOST_COUNT",
    "MOST_EVALUATIONS",
    "MOST_NUMBERS",
    "MOST_PARTICLES",
    "MOST_PIXELS",
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
    "check_text",
    "did_you_mean",
    "frames_of",
    "line_of",
    "missing_name",
    "plain",
    "reach",
    "shown",
]

# Limits: what is above them would run for hours or out of memory before it said anything. They are
# listed in docs/settings.md.
MOST_COUNT = 2**31 - 1
"""Of any count that has no limit of its own."""
MOST_EVALUATIONS = 100_000
"""Network evaluations of one sample, K M: their table takes seconds to plan."""
MOST_PARTICLES = 2**24
"""Rows of a batch, P N: each has a stream of its own."""
MOST_PIXELS = 2**14
"""Of a side of an image: the largest square has three gigabytes in float32."""
MOST_NUMBERS = 2**33
"""In a state, P N samples: 32 GiB in float32."""
_HERE, _PYTHON = Path(__file__).parent, Path(os.__file__).parent


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


@runtime_checkable
class _Scalar(Protocol):
    """A scalar of numpy, or an array or a tensor, which may be one."""

    ndim: int

    def item(self) -> object: ...


def plain(given: object) -> Any:
    """A scalar of numpy, a 0-d array or a 0-d tensor as the number it holds; all else as it is."""
    if given.__class__ in (float, int, str):  # as nearly always, and a protocol asks for long
        return given
    if isinstance(given, _Scalar) and given.ndim == 0:
        try:
            return given.item()
        except RuntimeError:  # a tensor without a value: on the meta device, or under vmap
            return given
    return given


def shown(given: object, longest: int = 100) -> str:
    """What was given, quoted, for a message: at most `longest` characters of it."""
    try:
        text = repr(given)
    except Exception:  # an integer of more digits than Python writes, or an object of a user's
        text = f"<{type(given).__name__}>"
    return text if len(text) <= longest else f"{text[:longest]}... ({len(text):,} characters)"


def check_count(name: str, given: object, least: int = 1, most: int = MOST_COUNT) -> int:
    """Return `given` as an int from `least` to `most`, or raise :class:`InvalidArgument`."""
    count = plain(given)
    if isinstance(count, Integral) and not isinstance(count, bool):
        count = int(count)
        if least <= count <= most:
            return count
        if count > most:
            raise InvalidArgument(f"{name} must be at most {most:,}, got {shown(given)}")
    raise InvalidArgument(f"{name} must be an integer >= {least}, got {shown(given)}")


def check_number(name: str, given: object, rule: str, holds: Callable[[float], bool]) -> float:
    """Return `given` as a float if it is a number that `holds`, else raise InvalidArgument.

    `rule` says what holds: "be finite", "lie in [0, 1]".
    """
    number = plain(given)
    if isinstance(number, Real) and not isinstance(number, bool):
        try:
            value = float(number)
        except OverflowError:  # an integer beyond all floats: not one of them
            value = math.nan
        if holds(value):
            return value
    raise InvalidArgument(f"{name} must {rule}, got {shown(given)}")


def frames_of(error: BaseException, most: int = 3) -> list[str]:
    """Where somebody's own code raised, as "FILE:LINE in FUNCTION: CODE", the last frames of it.

    Of the error that was first, the frames below ours, without those of Python and of what is
    installed; none if the error was raised by ours.
    """
    found = _own_frames(error)[-most:]
    return [f"{frame.filename}:{frame.lineno} in {frame.name}: {frame.line}" for frame in found]


def line_of(error: BaseException) -> str:
    """The last of :func:`frames_of` as "FILE:LINE: CODE" for a message; "" if there is none."""
    found = _own_frames(error)
    if not found:
        return ""
    return f"{Path(found[-1].filename).name}:{found[-1].lineno}: {found[-1].line}"


def reach(error: BaseException) -> int:
    """The line of somebody's own function at which it raised or called what did; 0 of none."""
    found = _own_frames(error)
    return (found[0].lineno or 0) if found else 0


def _own_frames(error: BaseException) -> list[traceback.FrameSummary]:
    first = error
    while first.__cause__ is not None:
        first = first.__cause__
    frames = traceback.extract_tb(first.__traceback__)
    ours = [i for i, frame in enumerate(frames) if _HERE in Path(frame.filename).parents]
    below = frames[ours[-1] + 1 :] if ours else frames
    return [
        frame
        for frame in below
        if not frame.filename.startswith("<")
        and "site-packages" not in frame.filename
        and _PYTHON not in Path(frame.filename).parents
    ]


def check_text(name: str, given: str) -> str:
    """Return `given` if it can be written into a file, else raise InvalidArgument."""
    try:
        given.encode()
    except UnicodeEncodeError as error:
        near = given[max(0, error.start - 20) : error.end + 20]
        raise InvalidArgument(
            f"{name} holds half of a character, the surrogate {given[error.start]!a}, in {near!a}"
        ) from None
    return given


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
    return UnknownName(
        f"unknown {kind} {shown(given)}.{hint} Allowed: {', '.join(map(repr, names))}."
    )


def did_you_mean(given: object, names: Iterable[str]) -> str:
    """The question for a message, with a blank before it; nothing if no name is near."""
    near = (
        difflib.get_close_matches(given, names, n=1, cutoff=0.5) if isinstance(given, str) else []
    )
    return f" Did you mean {near[0]!r}?" if near else ""
