"""`glass-flows batch`: prompts × seeds × methods, each a run of its own, on one machine.

Every item has its folder and is worth nothing until it is finished there; so the same command goes
on where it was, whatever stopped it. What an item raises is written into its folder and does not
stop the others.
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from dataclasses import replace as replace_job
from functools import partial
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument, RunFolderError
from ..files import render, replace
from ..folders import alone_in_out
from ..progress import progress_bar
from ..runs import RunRecord, read_run
from ..runs.result import best_first, loose
from ..steering.strength import Strength
from ..stops import keep
from .align import within
from .held_out import warnings_of
from .items import Item, Over, Work, clear_others, is_finished, load_model
from .models import Model
from .on_ray import run_with_ray
from .pictures import make_folder
from .workers import run_here, run_in_processes

_NONE: Mapping[Item, str] = {}
_COSTS = ("network_evaluations", "network_gradients", "reward_evaluations")


@dataclass(frozen=True)
class BatchReport:
    """How a batch stands.

    Attributes
    ----------
    finished, failed, left : int
        Items.
    table : Path
        summary.md; summary.csv (and .parquet) lie beside it.
    """

    finished: int
    failed: int
    left: int
    table: Path


@alone_in_out
def run_batch(
    work: Work,
    items: Sequence[Item],
    out: str | Path,
    *,
    model: Model | None = None,
    workers: int = 1,
    ray: str | None = None,
    budget: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> BatchReport:
    """Run what is missing, and write a summary of everything.

    Parameters
    ----------
    model : Model, optional
        The one of the work, if it is loaded already.
    workers : int
        Processes; 1 runs in this one. With Ray actors.
    ray : str, optional
        Address of a Ray cluster that sees `out`, or "local" to start one.
    budget : str, optional
        A time or a number of network evaluations for each item, instead of particles, transitions
        and steps; see :mod:`.budget`.
    overwrite : bool
        Throw away runs of other settings that are in the items' folders.

    Raises
    ------
    FolderInUse
        Another command runs in this folder.
    OtherJob
        An item was one of other settings or weights.
    RunFolderError
        The disk is full.
    """
    home, also = make_folder(out), work.any.also
    model = model or work.model
    with progress_bar(len(items), progress, "batch") as advance:
        if budget is not None:
            work = _sized(work, items[0], model, budget, home, announce)
        if overwrite:
            clear_others(model, work, items, home)
        missing = [item for item in items if not is_finished(model, work, item, home)]
        count = len(items) - len(missing)
        for _ in range(count):
            advance()
        if count:
            announce(f"{count} of {len(items)} are finished already")
        finished: Iterable[Over] = ()
        if missing and ray is not None:
            finished = run_with_ray(work, missing, home, workers, ray)
        elif missing and workers == 1:
            finished = run_here(work, missing, home, model)
        elif missing:
            del model  # its memory is for the workers
            finished = run_in_processes(work, missing, home, workers)
        problems: dict[Item, str] = {}
        keep("batch", f"{count} of {len(items)} items")
        try:
            for item, problem in finished:
                if problem is not None:
                    problems[item] = problem
                count += 1
                keep("batch", f"{count} of {len(items)} items")
                advance()
        except InvalidArgument:  # no item is at fault: nothing can be run in this way
            raise
        except BaseException:
            with suppress(RunFolderError):  # the disk may be full
                summarise(items, home, problems, also)
            raise
        keep("batch", None)
        return summarise(items, home, problems, also)


def _sized(
    work: Work, item: Item, model: Model, budget: str, out: Path, announce: Callable[[str], None]
) -> Work:
    """In the sizes for a budget for each item, as that of this one."""
    prompts, load = work.of(item).prompts, partial(load_model, work, model)
    asked = [[replace_job(job, prompts=prompts)] for job in work.jobs.values()]
    sized = within(budget, model, asked, out, announce, load)
    jobs = {name: replace_job(job, prompts=()) for name, job in zip(work.jobs, sized)}
    return Work(jobs, work.numbers)


# --- the summary ----------------------------------------------------------------------------------


def summarise(
    items: Sequence[Item],
    out: Path,
    problems: Mapping[Item, str] = _NONE,
    also: Sequence[str] = (),
) -> BatchReport:
    """Write summary.csv, summary.md and, with pyarrow, summary.parquet.

    `problems` are those of items whose folders cannot be written into, `also` held-out rewards.
    """
    rows = [_row(item, out, problems.get(item), also) for item in items]
    finished = [item for item, row in zip(items, rows) if row["status"] == "finished"]
    warnings = warnings_of({item: read_run(out / item.name) for item in finished}) if also else []
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        replace(out / "summary.csv", text.getvalue().encode())
        replace(out / "summary.md", _table(rows, also, warnings).encode())
        _parquet(rows, out / "summary.parquet")
    except OSError as error:
        raise RunFolderError(f"cannot write the summary in {str(out)!r}: {error}") from error
    count = {s: sum(row["status"] == s for row in rows) for s in ("finished", "failed")}
    left = len(rows) - sum(count.values())
    return BatchReport(count["finished"], count["failed"], left, out / "summary.md")


def _row(item: Item, out: Path, problem: str | None, also: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {**vars(item), "status": "left"}
    row |= dict.fromkeys(("reward", "mean reward", "log_evidence", *_COSTS))
    row |= dict.fromkeys((*(f"also {name}" for name in also), "scale", "nats", "ancestors"))
    row |= dict.fromkeys(("judge", "image", "error"))
    folder = out / item.name
    try:
        if problem is None and (folder / "run.json").exists():
            row |= _came_to(read_run(folder))
    except RunFolderError as error:
        problem = str(error)
    return row if problem is None else row | {"status": "failed", "error": problem}


def _came_to(run: RunRecord) -> dict[str, Any]:
    """What a row says of a run."""
    if (found := run.result) is None:
        if run.error is None:
            return {}
        return {"status": "failed", "error": f"{run.error['type']}: {run.error['message']}"}
    rewards = [sample.reward for sample in run.samples[0]]
    best = run.samples[0][best_first(rewards)[0]]
    row = {"status": "finished", "reward": best.reward, "mean reward": sum(rewards) / len(rewards)}
    row |= {name: found["costs"][name] for name in _COSTS}
    row |= {f"also {name}": value for name, value in best.also.items()}
    row["log_evidence"] = loose(found["populations"][0])["log_evidence"]
    if (strength := found.get("strength")) is not None:  # of one population
        told = Strength.from_json(strength)
        row["scale"], row["ancestors"] = told.scale, told.ancestors[0]
        row["nats"] = None if math.isnan(told.nats[0]) else told.nats[0]
    row["judge"] = best.accepted
    row["image"] = f"{run.folder.name}/{best.file}"
    return row


_json = partial(json.dumps, ensure_ascii=False)


def _table(rows: Sequence[dict[str, Any]], also: Sequence[str], warnings: Sequence[str]) -> str:
    """Means by method, where they are over-optimised, and what failed."""
    by: dict[str, list[dict[str, Any]]] = {}
    for row in rows:
        by.setdefault(row["method"], []).append(row)
    file = Path(__file__).with_name("summary.md.jinja")
    columns = [f"also {name}" for name in also]
    return render(file, {"json": _json}, rows=rows, methods=by, also=columns, warnings=warnings)


def _parquet(rows: Sequence[dict[str, Any]], file: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    replace(file, sink.getvalue())
