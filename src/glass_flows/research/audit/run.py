"""An audit: a sampler run on exact data over K, and its figures."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ...errors import InvalidArgument, check_count, check_name, check_number, shown
from ...noise import check_seed
from ...paths import Path, from_config
from ...progress import progress_bar
from ...rewards.named import check_own, import_own
from .figures import (
    dependence,
    independent_noises,
    input_figures,
    line_figures,
    mode_figures,
    unused_answers,
)
from .laws import COPIES, SPREADS, line, modes
from .result import Audit, Row
from .subjects import SCHEDULERS, OfFunction, OfScheduler, Subject
from .verdict import Evidence, diagnose
from .watch import Look, Watch

TRANSITIONS = (4, 8, 16, 32, 64)
_BATCHES = 4  # with generators of their own
_KEPT = 16  # questions whose inputs and answers are kept whole
_ENOUGH = 6  # of them, to say how answers and noises are used
_ROWS = 4_000  # of these kept
_FEWEST, _MOST = 1_000, 200_000
_PLAIN_PATHS = ("linear", "cosine", "variance_preserving", "edm")


def audit(
    sampler: Callable[..., Any] | str,
    *,
    transitions: Sequence[int] = TRANSITIONS,
    samples: int = 20_000,
    options: Mapping[str, Any] | None = None,
    path: str | Path | None = None,
    tolerance: float = 0.02,
    level: float = 1e-3,
    seed: int = 0,
    progress: bool | None = None,
) -> Audit:
    """Audit a sampler on data whose answers are exact.

    Parameters
    ----------
    sampler : callable or str
        A function (denoiser, shape, steps, generator) → samples of this shape: `denoiser(x, t)` is
        E[z | x_t = x] with t = 0 noise and t = 1 data on `denoiser.path`, `steps` is K, all noise
        is drawn from `generator`. Or "module:function", whose code is run: name only your own. Or
        the class name of a diffusers scheduler.
    transitions : sequence of int
        K, at least two, the largest at least four times the smallest.
    samples : int
        N, from 1,000 to 200,000; a multiple of 20.
    options : mapping, optional
        For the function, or the scheduler's configuration and calls, by name.
    path : str or Path, optional
        Of the denoiser that a function is given: "linear" (without it), "cosine",
        "variance_preserving" or "edm".
    tolerance : float
        In (0, 1): errors that last are allowed up to here, relative to standard deviations.
    level : float
        In (0, 0.5): probability of a false alarm on a sampler without a larger one.
    seed : int
    progress : bool, optional
        A bar; None where somebody waits for one.

    Returns
    -------
    Audit

    Raises
    ------
    InvalidArgument, UnknownName
        There is no such sampler or option, or a setting is outside its range; the sampler raised.
    NonFinite
        It returned NaN or infinity.
    """
    counts = _check_counts(transitions)
    samples, seed = check_count("samples", samples, least=_FEWEST, most=_MOST), check_seed(seed)
    if samples % 20:
        raise InvalidArgument(f"samples must be a multiple of 20, got {samples}")
    tolerance = check_number("tolerance", tolerance, "lie in (0, 1)", lambda v: 0 < v < 1)
    level = check_number("level", level, "lie in (0, 0.5)", lambda v: 0 < v < 0.5)
    subject = resolve(sampler, options, path)
    run = _Run(subject, samples, seed)
    with progress_bar(len(counts) * (_BATCHES + 1) + 1, progress, "audit") as advance:
        rows = [run.row(k, advance) for k in counts]
        repeats = run.repeats(counts[0])
        advance()
    figures = {row.transitions: row.figures for row in rows}
    evidence = Evidence(figures, dependence(run.batches), run.repeated, run.unused, run.noises)
    notes = run.notes()
    if not repeats:
        notes.append("an equal generator gives other samples: its noise is from elsewhere")
    faults = tuple(diagnose(evidence, tolerance, level))
    return Audit(subject.name, tuple(rows), faults, tuple(notes), tolerance, level, samples, seed)


def resolve(
    sampler: Callable[..., Any] | str, options: Mapping[str, Any] | None, path: str | Path | None
) -> Subject:
    """What is audited, from what was given."""
    if not isinstance(options, Mapping | None):
        raise InvalidArgument(f"options must be a mapping by name, got {shown(options)}")
    own = dict(options or {})
    if isinstance(sampler, str) and ":" not in sampler:
        names = [name for group in SCHEDULERS.values() for name in group]
        check_name("sampler", sampler, (*names, "module:function"))
        if path is not None:
            raise InvalidArgument("path is for functions: a scheduler has its own; leave it out")
        return OfScheduler(sampler, own)
    path = "linear" if path is None else path
    if not isinstance(path, Path):
        path = from_config({"name": check_name("path", path, _PLAIN_PATHS)})
    if isinstance(sampler, str):
        check_own("sampler", sampler)
        return OfFunction(sampler, import_own("sampler", sampler), path, own)
    name = getattr(sampler, "__name__", type(sampler).__name__)
    return OfFunction(name, sampler, path, own)


def _check_counts(given: Sequence[int]) -> tuple[int, ...]:
    if isinstance(given, str) or not isinstance(given, Sequence):
        raise InvalidArgument(f"transitions must be a list of numbers, got {shown(given)}")
    counts = sorted({check_count("transitions", k, most=1_000) for k in given})
    if len(counts) < 2 or counts[-1] < 4 * counts[0]:
        raise InvalidArgument(
            "transitions must be at least two numbers, the largest four times the smallest: what "
            "is of discretisation falls with K, what is wrong does not; got "
            f"{shown(list(given))}"
        )
    return tuple(counts)


class _Run:
    """The runs of an audit, and what is kept of them."""

    def __init__(self, subject: Subject, samples: int, seed: int) -> None:
        self.subject, self.samples, self.seed = subject, samples, seed
        self.line, self.modes = line(), modes()
        self.batches: list[list[Tensor]] = []
        self.repeated = False
        self.unused = self.noises = (0, 0)
        self.whole, self.asked = True, False

    def row(self, steps: int, advance: Callable[[], None]) -> Row:
        parts, looks, asked, whole = [], [], 0, True
        rows = self.samples // _BATCHES
        for batch in range(_BATCHES):
            watch = Watch(self.line, rows, keep=_KEPT * (batch == 0))
            parts.append(self._draw(watch, len(self.line.means), steps, batch))
            looks.append(watch.looks)
            asked += watch.asked
            whole &= watch.whole
            advance()
        if not whole:  # figures of some batches would have another error
            looks, self.whole = [[] for _ in looks], False
        self.asked |= asked > 0
        varied = bool((parts[0].std(0)[COPIES:] > 0.0).any())
        self.repeated |= varied and torch.equal(parts[0], parts[1])
        self.batches.append(parts)
        figures = line_figures(torch.cat(parts), self.line)
        figures |= input_figures(looks, self.samples)
        watch = Watch(self.modes, self.samples, keep=_KEPT)
        drawn = self._draw(watch, 2, steps, _BATCHES)
        exact = self.modes.sample(self.samples, generator=self._generator(steps, _BATCHES + 1))
        figures |= mode_figures(drawn, self.modes, exact)
        advance()
        if not self.noises[1] and len(looks[0]) >= _ENOUGH:
            self.noises = independent_noises(looks[0])
        if self.unused[1] < _ENOUGH and watch.whole:
            more = unused_answers([_first(look) for look in watch.looks[:_KEPT]])
            self.unused = (self.unused[0] + more[0], self.unused[1] + more[1])
        return Row(steps, asked / self.samples, figures, _marginals(looks))

    def repeats(self, steps: int) -> bool:
        """Whether an equal generator gives the same samples again."""
        again = self._draw(
            Watch(self.line, self.samples // _BATCHES), len(self.line.means), steps, 0
        )
        return torch.equal(again, self.batches[0][0])

    def notes(self) -> list[str]:
        if not self.asked:
            return ["it never asked its network: inputs were not looked at"]
        if not self.whole:
            return [
                "it asked about some of the samples only at a K: inputs were not looked at there"
            ]
        return []

    def _draw(self, watch: Watch, dimension: int, steps: int, batch: int) -> Tensor:
        return self.subject.checked(watch, dimension, steps, self._generator(steps, batch))

    def _generator(self, steps: int, batch: int) -> torch.Generator:
        mixed = (self.seed * 1_000_003 + steps * 101 + batch) & 0xFFFFFFFF
        return torch.Generator().manual_seed(mixed)


def _first(look: Look) -> Look:
    """Its first rows."""
    x, D = (None if kept is None else kept[:_ROWS] for kept in (look.x, look.D))
    return Look(look.alpha, look.sigma, look.mean, look.variance, x, D)


def _marginals(batches: Sequence[Sequence[Look]]) -> tuple[tuple[float, ...], ...]:
    """Noise and standard deviations of inputs over exact ones, question by question."""
    if len({len(looks) for looks in batches}) != 1:
        return ()
    found = []
    for looks in zip(*batches, strict=True):
        alpha, sigma = looks[0].alpha, looks[0].sigma
        variance = torch.stack([look.variance for look in looks]).mean(0).split(COPIES)
        exact = [((alpha * s) ** 2 + sigma**2) ** 0.5 for s in (0.0, *SPREADS)]
        ratios = [float(v.mean()) ** 0.5 / e for v, e in zip(variance, exact, strict=True)]
        found.append((alpha / sigma, *ratios))
    return tuple(found)
