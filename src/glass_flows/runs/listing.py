"""Runs as figures: what they came to, boundary by boundary, and in what they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

from ..errors import InvalidArgument, RunFolderError
from .folder import RunRecord, find_runs, read_run

__all__ = [
    "COSTS",
    "Passed",
    "RunFigures",
    "Seen",
    "as_json",
    "clean",
    "differences",
    "expand",
    "figure",
    "flat",
    "look",
    "names",
    "overview",
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

Rewards = list[list[float]]
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
    rewards: Rewards
    ancestors: list[list[int]]
    ess: list[float]
    resampled: list[bool]
    log_evidence: list[float]
    costs: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class RunFigures:
    """What a run came to, or has come to so far; NaN where it has no such figure.

    Attributes
    ----------
    best, mean : float
        Of the particles' rewards; `best` is the mean of the populations' best. Of a run that is
        not finished those of its last clean estimates.
    ess, log_evidence : float
        At the last boundary, the means over the populations.
    costs : dict
        By the names of :data:`COSTS`, of all particles together; empty if nothing is known.
    seconds : float
    """

    best: float
    mean: float
    ess: float
    log_evidence: float
    costs: dict[str, int]
    seconds: float


@dataclass(frozen=True)
class Seen:
    """A run's folder, read and checked.

    Attributes
    ----------
    rewards : list of list of float
        (P, N), those of the result, or the last that were taken; empty if there are none yet.
    images : list of list of str
        For each population its final images, best first; may be empty.
    """

    record: RunRecord
    boundaries: list[Passed]
    rewards: Rewards
    images: list[list[str]]

    @property
    def heading(self) -> str:
        """Its title, else its first prompt, else the name of its folder."""
        first = next(iter(self.record.prompts), "")
        return self.record.title or first or self.record.folder.resolve().name

    @property
    def method(self) -> str:
        method = self.record.job.get("method", "")
        return str(method["type"] if isinstance(method, dict) else method)

    @property
    def boundary(self) -> int | None:
        """The last that it has passed."""
        return self.boundaries[-1].boundary if self.boundaries else None

    @property
    def figures(self) -> RunFigures:
        last = self.boundaries[-1] if self.boundaries else None
        counted = _counted(self.record.result or {}) or (last.costs if last else {})
        return RunFigures(
            best=_mean([max(row) for row in _taken(self.rewards)]),
            mean=_mean([r for row in _taken(self.rewards) for r in row]),
            ess=_mean(last.ess) if last else math.nan,
            log_evidence=_mean(last.log_evidence) if last else math.nan,
            costs=counted,
            seconds=last.seconds if last else math.nan,
        )


def look(folder: str | Path) -> Seen:
    """Read a run, also while it goes on.

    Raises
    ------
    RunFolderError
        There is no run, or a file in it is not what a run of its size writes.
    """
    record = read_run(folder)
    with _undamaged(record, "run.json"):
        _check_about(record)
    with _undamaged(record, "error.json"):
        if record.error is not None:
            record.error["type"], record.error["message"]
    with _undamaged(record, "result.json"):
        record = _sized(record)
    P, N, n = record.populations, record.particles, record.returned
    result = record.result
    with _undamaged(record, "events.jsonl"):
        boundaries = [_passed(event, P, N) for event in record.events]
    rewards = next((b.rewards for b in reversed(boundaries) if _taken(b.rewards)), [])
    images: list[list[str]] = []
    if result is not None:
        with _undamaged(record, "result.json"):
            rewards = [_list(row, n, _number) for row in _list(result["rewards"], P, list)]
            images = [[str(name) for name in row] for row in result["images"]]
            if images:
                _list(images, P, len)
            _counted(result)
    return Seen(record, boundaries, rewards, images)


def expand(folders: Sequence[str | Path], most: int | None = None) -> list[Path]:
    """The runs at or under folders, each once; those under a folder by name.

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
            raise RunFolderError(
                f"{str(folder)!r} {'holds no run' if folder.is_dir() else 'is no folder'}: give "
                "the folder of a run, with its run.json, or one that holds such folders"
            )
        for run in inside:
            found.setdefault(run.resolve(), run)
    if most is not None and len(found) > most:
        raise InvalidArgument(
            f"{len(found)} runs were found, at most {most} are shown together: name some of them, "
            "or a folder that holds fewer"
        )
    return list(found.values())


def rows(boundaries: Sequence[Passed], population: int | None = None) -> list[dict[str, str]]:
    """What happened at each boundary, as text by column.

    Without a population those are means over all of them, and costs, which have no share, are told.
    """
    return [_row(boundary, population) for boundary in boundaries]


def overview(folder: Path) -> dict[str, Any]:
    """A run's line in a list; one that cannot be read has the status "damaged" and an "error"."""
    try:
        seen = look(folder)
    except RunFolderError as error:
        return {"folder": str(folder), "status": "damaged", "error": str(error)}
    return {
        "folder": str(folder),
        "status": seen.record.status,
        "title": seen.heading,
        "method": seen.method,
        "created": seen.record.created,
        "boundary": seen.boundary,
        "transitions": seen.record.transitions,
        **asdict(seen.figures),
        "error": seen.record.error,
    }


def differences(jobs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """The settings in which jobs differ, by dotted name: the text of each job, "-" where none."""
    told = [flat(job) for job in jobs]
    every = dict.fromkeys(name for job in told for name in job)
    found = {name: [job.get(name, "-") for job in told] for name in every}
    return {name: texts for name, texts in found.items() if len(set(texts)) > 1}


def flat(job: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Settings as text, nested ones by their dotted names: "settings.scale"."""
    found: dict[str, str] = {}
    for name, value in job.items():
        if name == "version":
            continue
        if name == "type":  # of the object whose settings these are
            found[prefix.removesuffix(".")] = str(value)
        elif isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
            found[f"{prefix}{name}"] = text
    return found


def names(folders: Sequence[Path]) -> list[str]:
    """Short names: the folder's own, or its path where two would be called the same."""
    short = [folder.resolve().name for folder in folders]
    return [n if short.count(n) == 1 else str(f) for n, f in zip(short, folders)]


def position(boundary: int | None, transitions: int) -> str:
    """The last boundary passed, of K: "3/6"."""
    return "-" if boundary is None else f"{boundary}/{transitions}"


def figure(value: float, digits: int = 4) -> str:
    """A figure for people; "-" where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def clean(text: str) -> str:
    """Text with what does not print, such as a terminal's commands, shown as its escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def as_json(value: Any) -> str:
    """JSON with null for NaN and text for infinity, as in the folder of a run."""
    return json.dumps(_plain(value), indent=1, allow_nan=False)


@contextmanager
def _undamaged(record: RunRecord, name: str) -> Iterator[None]:
    try:
        yield
    except (KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise RunFolderError(
            f"{str(record.folder / name)!r} is damaged ({error!r}); start the same run again, or "
            "move the file away to look at the rest of the run"
        ) from error


def _check_about(record: RunRecord) -> None:
    for name, kind in (("title", str), ("created", str), ("table_text", str), ("versions", dict)):
        if not isinstance(getattr(record, name), kind):
            raise TypeError(f"{name} is {getattr(record, name)!r}")
    if not isinstance(record.job, dict):
        raise TypeError(f"job is {record.job!r}")
    for name in ("populations", "particles", "returned", "transitions"):
        if type(getattr(record, name)) is not int:
            raise TypeError(f"{name} is {getattr(record, name)!r}")


def _sized(record: RunRecord) -> RunRecord:
    """With the sizes of its result where it told none, as searches do."""
    if record.populations or record.result is None:
        return record
    rewards = record.result["rewards"]
    N = max(map(len, rewards), default=0)
    return replace(record, populations=len(rewards), particles=N, returned=N)


def _passed(event: Mapping[str, Any], P: int, N: int) -> Passed:
    def slot(value: Any) -> int:
        if type(value) is not int or not 0 <= value < N:
            raise ValueError(f"{value!r} is no slot of {N} particles")
        return value

    return Passed(
        boundary=int(event["boundary"]),
        t=float(event["t"]),
        final=bool(event["final"]),
        rewards=[_list(row, N, _number) for row in _list(event["rewards"], P, list)],
        ancestors=[_list(row, N, slot) for row in _list(event["ancestors"], P, list)],
        ess=_list(event.get("ess", [None] * P), P, _number),
        resampled=_list(event["resampled"], P, bool),
        log_evidence=_list(event.get("log_evidence", [None] * P), P, _number),
        costs=_counted(event),
        seconds=_number(event["seconds"]),
    )


def _list(values: Sequence[Any], length: int, read: Callable[[Any], _T]) -> list[_T]:
    if len(values) != length:
        raise ValueError(f"{len(values)} values instead of {length}")
    return [read(value) for value in values]


def _number(value: Any) -> float:
    """As it is written in a run's folder: null is NaN, infinity is text."""
    return math.nan if value is None else float(value)


def _counted(event: Mapping[str, Any]) -> dict[str, int]:
    costs = event.get("costs", {})
    return {name: int(costs[name]) for name in COSTS if costs}


def _row(passed: Passed, population: int | None) -> dict[str, str]:
    chosen = range(len(passed.ess)) if population is None else [population]
    rewards = _taken([passed.rewards[p] for p in chosen])
    again = sum(passed.resampled[p] for p in chosen)
    every = "yes" if len(chosen) == 1 else f"{again} of {len(chosen)}"
    row = {
        "boundary": str(passed.boundary),
        "t": figure(passed.t, 3),
        "best": figure(_mean([max(row) for row in rewards])),
        "mean": figure(_mean([r for row in rewards for r in row])),
        "ESS": figure(_mean([passed.ess[p] for p in chosen]), 3),
        "resampled": every if again else "",
        "log-evidence": figure(_mean([passed.log_evidence[p] for p in chosen])),
    }
    if population is None:
        row["evaluations"] = figure(passed.costs.get("network_evaluations", math.nan))
        row["seconds"] = figure(passed.seconds)
    return row


def _taken(rewards: Rewards) -> Rewards:
    """Without NaN, and without populations that have no other."""
    rows = [[r for r in row if not math.isnan(r)] for row in rewards]
    return [row for row in rows if row]


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
