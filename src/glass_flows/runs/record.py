"""A run as it was found on disk: read and checked, and what it came to."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from ..errors import RunFolderError
from ..steering import Costs
from .chains import Chains, Moved
from .result import RESULT, Sample, loose, samples_of

__all__ = ["COSTS", "FORMAT", "Passed", "RunRecord", "find_runs", "plain", "read_run"]

FORMAT = 2
_READ = (1, FORMAT)  # formats whose figures can be shown; only the last can be gone on with
_KINDS = {
    "title": str, "created": str, "job": dict, "versions": dict, "table_text": str,
    "populations": int, "particles": int, "returned": int, "transitions": int,
}  # fmt: skip
_NOT_BEGUN = {"table": None, "table_text": "", "populations": 0, "particles": 0, "transitions": 0}
COSTS = {one.name: one.name.replace("_", " ") for one in fields(Costs)}
"""What a run counts, and its name for people."""

Rewards = list[list[float]]


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
    also : dict
        Held-out rewards by name, as `rewards`.
    moved : Moved or None
        Of refinement what the move to here did; `rewards` are those of the chains, at the end of
        what is returned.
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
    also: dict[str, Rewards] = field(default_factory=dict)
    moved: Moved | None = None

    @classmethod
    def of(cls, event: Mapping[str, Any], P: int, N: int) -> Passed:
        """From a line of a run of this size; ValueError and others if it is none."""
        ancestors, none = np.array(event["ancestors"]), [None] * P
        if ancestors.dtype.kind != "i" or not ((ancestors >= 0) & (ancestors < N)).all():
            raise ValueError(f"{event['ancestors']!r} are no slots of {N} particles")
        return cls(
            boundary=int(event["boundary"]),
            t=float(event["t"]),
            final=bool(event["final"]),
            rewards=_floats(event["rewards"], P, N),
            ancestors=_of_shape(ancestors, P, N),
            ess=_floats(event.get("ess", none), P),
            resampled=_of_shape(np.array(event["resampled"], bool), P),
            log_evidence=_floats(event.get("log_evidence", none), P),
            costs=_counted(event),
            seconds=_floats(event["seconds"]),
            also={name: _floats(v, P, N) for name, v in event.get("also", {}).items()},
            moved=Moved.of(event, P, N),
        )


class Plain(NamedTuple):
    """An image without steering."""

    file: str | None
    reward: float


@dataclass(frozen=True)
class RunRecord:
    """A run as it was found on disk.

    Attributes
    ----------
    job : dict
        All that results depend on.
    table, table_text : dict or None, str
        The sampler.
    populations, particles, returned, transitions : int
        P, N, how many of the N are returned, and K; 0 where the run had not begun.
    prompts : list of str
        One for each population, or none.
    events : list of dict
        In order of the boundaries.
    result, error : dict or None
    samples : list of list of Sample
        Those that came out, (P, returned), with their rewards and files; empty before the end.
    """

    folder: Path
    title: str
    created: str
    job: dict[str, Any]
    table: dict[str, Any] | None
    table_text: str
    populations: int
    particles: int
    returned: int
    transitions: int
    prompts: list[str]
    versions: dict[str, Any]
    result: dict[str, Any] | None
    error: dict[str, Any] | None
    samples: list[list[Sample]]

    @property
    def status(self) -> str:
        """ "finished", "failed" or "unfinished"."""
        if self.result is not None:
            return "finished"
        return "unfinished" if self.error is None else "failed"

    @property
    def heading(self) -> str:
        """Its title, else its first prompt, else the name of its folder."""
        return self.title or next(iter(self.prompts), "") or self.folder.resolve().name

    @property
    def method(self) -> str:
        method = self.job.get("method", "")
        return str(method.get("type", "") if isinstance(method, dict) else method)

    @cached_property
    def events(self) -> list[dict[str, Any]]:
        return read_events(self.folder)

    @cached_property
    def boundaries(self) -> list[Passed]:
        """The events, checked.

        Raises
        ------
        RunFolderError
            One is not what a run of this size writes.
        """
        with _undamaged(self.folder / "events.jsonl"):
            return [Passed.of(event, self.populations, self.particles) for event in self.events]

    @cached_property
    def chains(self) -> list[Chains]:
        """Those of refinement, one for each population; nothing of other methods."""
        moves = [b.moved for b in self.boundaries if b.moved is not None]
        if not moves or len(moves) < len(self.boundaries):
            return []
        ancestors = [[b.ancestors[p] for b in self.boundaries] for p in range(self.populations)]
        return [Chains(moves, ancestors[p], p) for p in range(self.populations)]

    @property
    def given(self) -> bool:
        """Whether the chains of refinement began with samples that were given."""
        return bool(self.chains) and not self.boundaries[0].costs.get("network_evaluations")

    @cached_property
    def rewards(self) -> Rewards:
        """(P, N), those of the result, or the last that were taken; empty if there are none yet."""
        if self.result is not None:
            return [[sample.reward for sample in row] for row in self.samples]
        return next((b.rewards for b in reversed(self.boundaries) if taken(b.rewards)), [])

    @property
    def boundary(self) -> int | None:
        """The last that it has passed."""
        return self.boundaries[-1].boundary if self.boundaries else None

    @cached_property
    def figures(self) -> dict[str, Any]:
        """What it came to, or has come to so far; NaN where it has no such figure.

        "best" and "mean" of the particles' rewards, where "best" is the mean of the populations'
        best; of a run that is not finished those of its last clean estimates, of refinement "best"
        of all that was seen so far. "ess" and
        "log_evidence" at the last boundary, means over the populations. "costs" by the names of
        :data:`COSTS`, of all particles together, empty if nothing is known. "seconds".
        """
        last = self.boundaries[-1] if self.boundaries else None
        rewards = taken(self.rewards)
        best = [max(row) for row in rewards]
        if self.result is None and self.chains:
            best = [one.best[-1] for one in self.chains]
        return {
            "best": mean(best),
            "mean": mean([r for row in rewards for r in row]),
            "ess": mean(last.ess) if last else math.nan,
            "log_evidence": mean(last.log_evidence) if last else math.nan,
            "costs": _counted(self.result or {}) or (last.costs if last else {}),
            "seconds": last.seconds if last else math.nan,
        }

    @property
    def videos(self) -> bool:
        """Whether videos came out, of which the images are contact sheets."""
        return any(one.video for row in self.samples for one in row)

    @cached_property
    def also(self) -> dict[str, Rewards]:
        """Held-out rewards of what came out, by name, (P, returned)."""
        every = dict.fromkeys(name for row in self.samples for one in row for name in one.also)
        rows = self.samples
        return {
            name: [[one.also.get(name, math.nan) for one in row] for row in rows] for name in every
        }

    @cached_property
    def plain(self) -> list[list[Plain]]:
        """Images without steering, drawn for comparison, of each population; nothing without."""
        rows = [one.get("plain") or () for one in (self.result or {}).get("populations", ())]
        found = [[Plain(o.get("file"), float(loose(o)["reward"])) for o in row] for row in rows]
        return found if any(found) else []

    def sheet(self, boundary: int) -> Path | None:
        """The picture of the clean estimates at a boundary, if there is one."""
        file = self.folder / "estimates" / f"{boundary:03}.png"
        return file if file.exists() else None

    def estimates(self, boundary: int) -> Image.Image | None:
        """The same, opened; None where it cannot be."""
        file = self.sheet(boundary)
        return None if file is None else _open(file)

    def picture(self, name: str) -> Image.Image | None:
        """An image of the folder; what lies elsewhere is none of its pictures."""
        file = (self.folder / name).resolve()
        return _open(file) if file.is_relative_to(self.folder.resolve()) else None


def read_run(folder: str | Path) -> RunRecord:
    """A run's folder, also while the run goes on.

    Raises
    ------
    RunFolderError
        There is no run, or a file is damaged, of another version, or not what a run of its size
        writes.
    """
    home = Path(folder)
    if not (home / "run.json").exists():
        raise RunFolderError(
            f"{str(home)!r} is no run: it has no run.json. Runs are written by `glass-flows align` "
            "and `glass-flows batch`, and listed by `glass-flows runs list FOLDER`"
        )
    with _undamaged(home / "run.json"):
        about = _json(home / "run.json") or {}
        if about["format"] not in _READ:
            raise ValueError(f"format {about['format']!r}, this version reads {_READ}")
        about = {**_NOT_BEGUN, "returned": about.get("particles", 0), **about}
        for name, kind in _KINDS.items():
            if type(about[name]) is not kind:
                raise TypeError(f"{name} is {about[name]!r}")
        prompts = [str(p) for p in about.get("prompts") or about["job"].get("prompts") or ()]
    with _undamaged(home / "error.json"):
        if (error := _json(home / "error.json")) is not None:
            error["type"], error["message"]
            error["frames"] = list(map(str, error.get("frames", ())))
    samples: list[list[Sample]] = []
    with _undamaged(home / RESULT):
        if (result := _json(home / RESULT)) is not None:
            seed = about.get("seed", about["job"].get("seed"))
            samples = samples_of(result, prompts, seed)
            _check_result(result, samples, about)
    known = {name: about[name] for name in ("table", *_KINDS)}
    return RunRecord(
        folder=home, prompts=prompts, result=result, error=error, samples=samples, **known
    )


def _check_result(
    result: Mapping[str, Any], samples: list[list[Sample]], about: dict[str, Any]
) -> None:
    """Raise if it is not that of a run of these sizes; of one that told none it tells them."""
    if not about["populations"]:
        N = max(map(len, samples), default=0)
        about |= {"populations": len(samples), "particles": N, "returned": N}
    rewards = [[sample.reward for sample in row] for row in samples]
    _floats(rewards, about["populations"], about["returned"])
    _counted(result)


def find_runs(folder: str | Path) -> list[Path]:
    """Every run at or under a folder, by name."""
    return sorted(file.parent for file in Path(folder).rglob("run.json"))


def read_events(folder: Path) -> list[dict[str, Any]]:
    """The whole lines, in order of the boundaries, up to one that is missing or cut off."""
    file, found = folder / "events.jsonl", list[dict[str, Any]]()
    with _undamaged(file):
        lines = file.read_bytes().split(b"\n") if file.exists() else []
    for line in lines:
        try:
            event = json.loads(line)
            if event["boundary"] != len(found):
                break
        except (ValueError, KeyError, TypeError):
            break
        found.append(event)
    return found


def taken(rewards: Rewards) -> Rewards:
    """Without NaN, and without populations that have no other."""
    rows = [[r for r in row if not math.isnan(r)] for row in rewards]
    return [row for row in rows if row]


def mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan


def plain(value: Any) -> Any:
    """As JSON holds it: tensors as lists, NaN as null, infinity as text."""
    if isinstance(value, Tensor):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {name: plain(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


@contextmanager
def _undamaged(file: Path) -> Iterator[None]:
    try:
        yield
    except (
        OSError, KeyError, IndexError, TypeError, ValueError, AttributeError, OverflowError,
        RecursionError,
    ) as error:  # fmt: skip
        raise RunFolderError(
            f"{str(file)!r} is damaged ({error!r}): move it away, to look at the rest of the run "
            "or to go on with the same command"
        ) from error


def _open(file: Path) -> Image.Image | None:
    try:
        with Image.open(file) as image:
            image.load()
            return image.copy()
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _json(file: Path) -> dict[str, Any] | None:
    try:
        found: dict[str, Any] = json.loads(file.read_text(encoding="utf-8"))
        return found
    except FileNotFoundError:
        return None


def _floats(values: Any, *shape: int) -> Any:
    """As :func:`plain` has written them, in this shape."""
    return _of_shape(np.array(values, float), *shape)


def _of_shape(values: Any, *shape: int) -> Any:
    if values.shape != shape:
        raise ValueError(f"values of shape {values.shape} instead of {shape}")
    return values.tolist()


def _counted(event: Mapping[str, Any]) -> dict[str, int]:
    costs = event.get("costs", {})
    return {name: int(costs[name]) for name in COSTS if costs}
