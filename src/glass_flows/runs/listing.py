"""Runs as figures: what they came to, boundary by boundary, and in what two of them differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InvalidArgument, RunFolderError
from .folder import RunRecord, find_runs, read_run

__all__ = [
    "COSTS",
    "Figures",
    "Passed",
    "as_json",
    "clean",
    "differences",
    "expand",
    "figure",
    "figures",
    "flat",
    "heading",
    "method_of",
    "names",
    "number",
    "overview",
    "passed",
    "position",
    "rows",
]

COSTS = {
    "network_evaluations": "network evaluations",
    "network_gradients": "network gradients",
    "reward_evaluations": "reward evaluations",
    "decodes": "decodes",
}
"""What a run counts, and its name for people."""

_T = TypeVar("_T")


@dataclass(frozen=True)
class Passed:
    """A boundary that a run has passed; P populations of N particles.

    Attributes
    ----------
    rewards : list of list of float
        (P, N), before resampling; NaN where none was taken.
    ancestors : list of list of int
        (P, N), the slot that each particle was copied from here.
    ess, resampled, log_evidence : list
        (P,), ESS before resampling.
    costs, seconds
        So far.
    """

    boundary: int
    t: float
    final: bool
    rewards: list[list[float]]
    ancestors: list[list[int]]
    ess: list[float]
    resampled: list[bool]
    log_evidence: list[float]
    costs: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Figures:
    """What a run came to, or has come to so far; NaN where it has no such figure.

    Attributes
    ----------
    best, mean : float
        Of the particles' rewards, the best of each population; where there are several, the means
        over them. Of a run that is not finished those of its last clean estimates.
    ess, log_evidence : float
        At the last boundary, the means over the populations.
    costs : dict
        By the names of :data:`COSTS`, of all particles together; empty if nothing is known.
    """

    best: float
    mean: float
    ess: float
    log_evidence: float
    costs: dict[str, int]
    seconds: float


def expand(folders: Sequence[str | Path], most: int | None = None) -> list[Path]:
    """The runs at or under folders, each once; under a folder by name.

    Raises
    ------
    RunFolderError
        A folder holds no run.
    InvalidArgument
        There are more than `most`.
    """
    found: dict[Path, Path] = {}
    for folder in map(Path, folders):
        inside = [folder] if (folder / "run.json").exists() else find_runs(folder)
        if not inside:
            read_run(folder)  # says what is wrong
        for run in inside:
            found.setdefault(run.resolve(), run)
    if most is not None and len(found) > most:
        raise InvalidArgument(
            f"{len(found)} runs were found, at most {most} can be shown at a time: name some of "
            "them, or a folder that holds fewer"
        )
    return list(found.values())


def passed(record: RunRecord) -> list[Passed]:
    """The boundaries of a run, checked.

    Raises
    ------
    RunFolderError
        An event is not what a run of this size writes.
    """
    try:
        return [_passed(event, record.populations, record.particles) for event in record.events]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise RunFolderError(
            f"{str(record.folder / 'events.jsonl')!r} is damaged ({error!r}); delete it to look at "
            "the rest of the run"
        ) from error


def figures(record: RunRecord, boundaries: Sequence[Passed]) -> Figures:
    """The figures of a run with these boundaries."""
    rewards = _rewards(record, boundaries)
    valued = [[r for r in row if not math.isnan(r)] for row in rewards]
    last = boundaries[-1] if boundaries else None
    return Figures(
        best=_mean([max(row) for row in valued if row]),
        mean=_mean([r for row in valued for r in row]),
        ess=_mean(last.ess) if last else math.nan,
        log_evidence=_mean(last.log_evidence) if last else math.nan,
        costs=last.costs if record.result is None and last else _counted(record.result or {}),
        seconds=last.seconds if last else math.nan,
    )


def rows(boundaries: Sequence[Passed], population: int | None = None) -> list[dict[str, str]]:
    """What happened at each boundary, as text by column; means over the populations without one."""
    return [_row(passed, population) for passed in boundaries]


def overview(folder: Path) -> dict[str, Any]:
    """A run's line in a list; one that cannot be read has the status "damaged" and an "error"."""
    line: dict[str, Any] = {"folder": str(folder)}
    try:
        record = read_run(folder)
        boundaries = passed(record)
        found = asdict(figures(record, boundaries))
    except RunFolderError as error:
        return {**line, "status": "damaged", "error": str(error)}
    return {
        **line,
        "status": record.status,
        "title": heading(record),
        "method": method_of(record),
        "created": record.created,
        "boundary": boundaries[-1].boundary if boundaries else None,
        "transitions": record.transitions,
        **found,
        "error": record.error,
    }


def differences(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The settings in which jobs differ, in the order of their names: the text of each, "-" if none.

    Nested settings are called "settings.scale".
    """
    told = [flat(job) for job in jobs]
    every = sorted({name for job in told for name in job})
    found = {name: [job.get(name, "-") for job in told] for name in every}
    return {name: texts for name, texts in found.items() if len(set(texts)) > 1}


def flat(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text, nested ones by their dotted names."""
    found: dict[str, str] = {}
    for name, value in job.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[f"{prefix}{name}"] = text
    return found


def names(folders: Sequence[Path]) -> list[str]:
    """Short names: the folder's own, the whole path where two would be called the same."""
    short = [folder.resolve().name for folder in folders]
    return [n if short.count(n) == 1 else str(f) for n, f in zip(short, folders)]


def heading(record: RunRecord) -> str:
    """What a run is called: its title, its first prompt, or its folder."""
    first = record.prompts[0] if record.prompts else ""
    return str(record.title or first or record.folder.resolve().name)


def method_of(record: RunRecord) -> str:
    return str(record.job.get("method", ""))


def position(boundary: int | None, transitions: int) -> str:
    """ "3/6": the boundary that was passed last, of K."""
    return "-" if boundary is None else f"{boundary}/{transitions}"


def figure(value: float, digits: int = 4) -> str:
    """A figure for people; "-" where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits < math.inf else f"{value:.{digits}g}"


def clean(text: str) -> str:
    """Text that is safe to show: what does not print (a terminal's commands, say) as its escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def as_json(value: Any) -> str:
    """JSON with null for NaN and text for infinity, as in the folder of a run."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


def number(value: Any) -> float:
    """A figure as it is written in a run's folder: null is NaN, infinity is text."""
    return math.nan if value is None else float(value)


def _passed(event: Mapping[str, Any], P: int, N: int) -> Passed:
    def slot(value: Any) -> int:
        if type(value) is not int or not 0 <= value < N:
            raise ValueError(f"{value!r} is no slot of {N} particles")
        return value

    return Passed(
        boundary=int(event["boundary"]),
        t=float(event["t"]),
        final=bool(event["final"]),
        rewards=[_list(row, N, number) for row in _list(event["rewards"], P, list)],
        ancestors=[_list(row, N, slot) for row in _list(event["ancestors"], P, list)],
        ess=_list(event["ess"], P, number),
        resampled=_list(event["resampled"], P, bool),
        log_evidence=_list(event["log_evidence"], P, number),
        costs=_counted(event),
        seconds=number(event["seconds"]),
    )


def _list(values: Sequence[Any], length: int, read: Callable[[Any], _T]) -> list[_T]:
    if len(values) != length:
        raise ValueError(f"{len(values)} values instead of {length}")
    return [read(value) for value in values]


def _counted(event: Mapping[str, Any]) -> dict[str, int]:
    return {name: int(event["costs"][name]) for name in COSTS if "costs" in event}


def _rewards(record: RunRecord, boundaries: Sequence[Passed]) -> list[list[float]]:
    """(P, N), those of the result, or the last that were taken."""
    if record.result is not None:
        return [[number(r) for r in row] for row in record.result["rewards"]]
    taken = (b.rewards for b in reversed(boundaries))
    return next((rows for rows in taken if any(r == r for row in rows for r in row)), [])


def _row(passed: Passed, population: int | None) -> dict[str, str]:
    chosen = range(len(passed.ess)) if population is None else [population]
    valued = [[r for r in passed.rewards[p] if not math.isnan(r)] for p in chosen]
    again = sum(passed.resampled[p] for p in chosen)
    yes = "yes" if len(chosen) == 1 else f"{again} of {len(chosen)}"
    return {
        "boundary": str(passed.boundary),
        "t": figure(passed.t, 3),
        "best": figure(_mean([max(row) for row in valued if row])),
        "mean": figure(_mean([r for row in valued for r in row])),
        "ESS": figure(_mean([passed.ess[p] for p in chosen]), 3),
        "resampled": yes if again else "",
        "log-evidence": figure(_mean([passed.log_evidence[p] for p in chosen])),
        "evaluations": figure(passed.costs.get("network_evaluations", math.nan)),
        "seconds": figure(passed.seconds),
    }


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value
