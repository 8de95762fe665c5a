"""Runs as texts: what they came to, boundary by boundary, and in what they differ."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ..errors import RunFolderError
from .record import COSTS, Passed, RunRecord, find_runs, mean, plain, read_run, taken

_LONGEST = 40  # of a text in a table


def expand(folders: Sequence[str | Path]) -> list[RunRecord]:
    """The runs at or under folders, each once; those under a folder by name.

    Raises
    ------
    RunFolderError
        A folder holds no run, or a damaged one.
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
    return list(map(read_run, found.values()))


def rows(run: RunRecord, population: int | None = None) -> list[dict[str, str]]:
    """What happened at each boundary, as text by column; of refinement at each move.

    Without a population those are means over all of them, and costs, which have no share, are told.
    """
    chosen = range(run.populations) if population is None else [population]
    evidence = [b.log_evidence[p] for b in run.boundaries for p in chosen]
    found = []
    for k, passed in enumerate(run.boundaries):
        row = _move(run, k, chosen) if run.chains else _boundary(passed, chosen)
        again = sum(passed.resampled[p] for p in chosen)
        every = "yes" if len(chosen) == 1 else f"{again} of {len(chosen)}"
        row["ESS"] = figure(mean([passed.ess[p] for p in chosen]), 3)
        row["exchanged" if run.chains else "resampled"] = every if again else ""
        if not (run.chains and all(map(math.isnan, evidence))):
            row["log-evidence"] = figure(mean([passed.log_evidence[p] for p in chosen]))
        if population is None:
            row["evaluations"] = figure(passed.costs.get("network_evaluations", math.nan))
            row["seconds"] = figure(passed.seconds)
        found.append(row)
    return found


def overview(folder: Path) -> dict[str, Any]:
    """A run's line in a list; one that cannot be read has the status "damaged" and an "error"."""
    try:
        run = read_run(folder)
        return {
            "folder": str(folder),
            "status": run.status,
            "title": run.heading,
            "method": run.method,
            "created": run.created,
            "boundary": run.boundary,
            "transitions": run.transitions,
            **run.figures,
            "error": run.error,
        }
    except RunFolderError as error:
        return {"folder": str(folder), "status": "damaged", "error": str(error)}


def facts(run: RunRecord) -> dict[str, str]:
    """What a run came to, for people."""
    figures = run.figures
    ess = f"{figure(figures['ess'], 3)} of {run.particles}"
    chains, last = run.chains, len(run.boundaries) - 1
    found = {
        "best reward": figure(figures["best"]),
        "mean reward": figure(figures["mean"]),
        "ESS at the end": "-" if math.isnan(figures["ess"]) else ess,
        "log-evidence": figure(figures["log_evidence"]),
        "move" if chains else "boundary": position(run.boundary, run.transitions),
    }
    if chains:
        found["best seen"] = figure(mean([one.best[-1] for one in chains]))
        found["accepted"] = "-"
        if last:
            every = [one.acceptance(k) for one in chains for k in range(1, last + 1)]
            found["accepted"] = f"{mean(every):.0%}"
        if math.isnan(figures["log_evidence"]):
            del found["log-evidence"]
    return found | {
        **{told: f"{figures['costs'][name]:,}" for name, told in COSTS.items() if figures["costs"]},
        "seconds": figure(figures["seconds"]),
    }


def differences(jobs: Sequence[Mapping[str, Any]], missing: str = "-") -> dict[str, list[str]]:
    """The settings in which jobs differ, by dotted name: the text of each job."""
    told = [flat(job) for job in jobs]
    every = dict.fromkeys(name for job in told for name in job)
    found = {name: [job.get(name, missing) for job in told] for name in every}
    return {name: texts for name, texts in found.items() if len(set(texts)) > 1}


def apart(there: Mapping[str, Any], here: Mapping[str, Any], most: int = 80) -> str:
    """What differs, for a message; of a value at most so many characters."""
    found = differences((there, here), missing="the default")
    return "; ".join(
        f"{name}: {short(old, most)} there, {short(new, most)} here"
        for name, (old, new) in found.items()
    )


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


def names(runs: Sequence[RunRecord]) -> list[str]:
    """Short names: the folder's own, or its path where two would be called the same."""
    own = [run.folder.resolve().name for run in runs]
    return [n if own.count(n) == 1 else str(run.folder) for n, run in zip(own, runs)]


def position(boundary: int | None, transitions: int) -> str:
    """The last boundary passed, of K: "3/6"."""
    return "-" if boundary is None else f"{boundary}/{transitions}"


def figure(value: float, digits: int = 4) -> str:
    """A figure for people; "-" where there is none."""
    if math.isnan(value):
        return "-"
    return f"{value:,.0f}" if abs(value) >= 10**digits else f"{value:.{digits}g}"


def short(text: str, most: int) -> str:
    """At most so many characters of it."""
    return text if len(text) <= most else text[: most - 3] + "..."


def clean(text: str) -> str:
    """Text with what does not print, such as a terminal's commands, shown as its escape."""
    if text.isprintable():
        return text
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def as_json(value: Any) -> str:
    """JSON with null for NaN and text for infinity, as in the folder of a run."""
    return json.dumps(plain(value), indent=1, allow_nan=False)


def as_text(lines: Sequence[Mapping[str, Any]]) -> str:
    """A table of lines by column, in plain text."""
    if not lines:
        return "(nothing)"
    told = [[figure(v) if isinstance(v, float) else str(v) for v in one.values()] for one in lines]
    cells = [[clean(short(text, _LONGEST)) for text in row] for row in [list(lines[0]), *told]]
    widths = [max(map(len, column)) for column in zip(*cells)]
    right = [isinstance(value, (int, float)) for value in lines[0].values()]
    return "\n".join(
        "  ".join(
            text.rjust(width) if number else text.ljust(width)
            for text, width, number in zip(row, widths, right)
        ).rstrip()
        for row in cells
    )


def _move(run: RunRecord, k: int, chosen: Sequence[int]) -> dict[str, str]:
    """What move k did; 0 is how the chains began."""
    before = run.boundaries[k - 1].moved if k else None
    chains = [run.chains[p] for p in chosen]
    row = {"move": str(k) if k else "begin", "noised to": "", "share of λ": "", "accepted": ""}
    if before is not None:
        row["noised to"] = figure(before.time, 3)
        row["share of λ"] = figure(mean([before.share[p] for p in chosen]), 3)
        row["accepted"] = f"{mean([one.acceptance(k) for one in chains]):.0%}"
    row["best seen"] = figure(mean([one.best[k] for one in chains]))
    row["mean"] = figure(mean([r for one in chains for r in one.rewards[k]]))
    return row


def _boundary(passed: Passed, chosen: Sequence[int]) -> dict[str, str]:
    rewards = taken([passed.rewards[p] for p in chosen])
    return {
        "boundary": str(passed.boundary),
        "t": figure(passed.t, 3),
        "best": figure(mean([max(row) for row in rewards])),
        "mean": figure(mean([r for row in rewards for r in row])),
    }
