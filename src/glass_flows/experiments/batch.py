"""`glass-flows batch`: prompts × seeds × methods, each a run of its own, on one machine.

Every item has its folder and is worth nothing until it is finished there; so the same command goes
on where it was, whatever stopped it. What an item raises is written into its folder and does not
stop the others.
"""

from __future__ import annotations

import csv
import dataclasses
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from multiprocessing import get_context
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from filelock import FileLock, Timeout
from PIL import Image

from ..errors import InvalidArgument, RunFolderError, check_name
from ..files import replace
from ..models.digits import IMAGE, load_digits_classifier
from ..models.shapes import Prompt, accepts
from ..models.shapes.pipeline import CALL
from ..progress import progress_bar
from ..rewards import ClassReward
from ..runs import RunFolder, read_run
from ..steering import SearchResult, Steering, Twist, best_of, steer
from .align import digits_denoiser, search_of
from .align_pipeline import load_pipeline, load_reward, of_shapes
from .budget import chosen_for, sizes
from .pictures import digit_image, make_folder, save_png
from .prompt_sets import PromptEntry

__all__ = [
    "METHODS",
    "BatchReport",
    "Item",
    "Work",
    "items_of",
    "run_batch",
    "run_item",
]

METHODS = ("plain", "best-of-n", "steering", "twist", "beam", "greedy", "svdd")
_OF_STEERING = {f.name for f in fields(Steering)} - {"particles"}
_OF_SEARCH = {"scale", "value", "boundaries", "guidance"}
_SHOWN = 20  # failures in the table for people
_FRUITLESS = 3  # how often workers may die in a row without finishing anything


@dataclass(frozen=True)
class Item:
    """One run of a batch."""

    number: int
    prompt: str
    category: str
    seed: int
    method: str

    @property
    def name(self) -> str:
        """Its folder."""
        words = re.sub(r"[^a-z0-9]+", "-", self.prompt.lower()).strip("-")[:40].strip("-")
        return "-".join(filter(None, (f"{self.number:05}", words, f"s{self.seed}", self.method)))


@dataclass(frozen=True)
class Work:
    """What all items have in common.

    Attributes
    ----------
    model : str
        "digits", "shapes", "shapes:FOLDER", or a diffusers pipeline by folder or hub id.
    reward : str
        As for `glass-flows align`; for the digits "class", log p(prompt | image).
    settings : dict
        particles, transitions, steps, rho, solver, and more of :func:`glass_flows.steer`; for
        pipelines also their call arguments.
    children : int
        w of the searches.
    twist : Twist
        Of the method "twist".
    loading : dict
        How the pipeline is loaded: device, dtype, offload, revision, lora.
    threads : int, optional
        Of torch in every worker.
    """

    model: str
    reward: str
    settings: dict[str, Any]
    children: int = 2
    twist: Twist = field(default_factory=Twist)
    loading: dict[str, Any] = field(default_factory=dict)
    threads: int | None = None

    def settings_of(self, method: str) -> dict[str, Any]:
        """Those of a method: what is plain or best of N spends its evaluations on the ODE."""
        given = dict(self.settings)
        if method in ("plain", "best-of-n"):
            steps = given["transitions"] * given["steps"]
            given = {name: v for name, v in given.items() if name not in _OF_STEERING}
            given |= {"transitions": 1, "steps": steps, "rho": 0.0}
            if method == "plain":
                given["particles"] = 1
        elif method == "twist":
            given["twist"] = self.twist
        elif method != "steering":
            given = {k: v for k, v in given.items() if k not in _OF_STEERING or k in _OF_SEARCH}
            given["children"] = self.children
        return given


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


class Runner(Protocol):
    """A model, loaded, that runs items."""

    def trial(self, prompt: str, settings: dict[str, Any]) -> int:
        """Steer once without keeping anything; the network evaluations that it took."""
        ...

    def run(self, item: Item, settings: dict[str, Any], folder: RunFolder) -> None:
        """Run it to its end, from where it was, and finish the folder."""
        ...


def items_of(
    prompts: Sequence[PromptEntry], seeds: Sequence[int], methods: Sequence[str]
) -> list[Item]:
    """All of them: prompt by prompt, seed by seed, method by method."""
    for method in methods:
        check_name("method", method, METHODS)
    return [
        Item(entry.number, entry.text, entry.category, seed, method)
        for entry in prompts
        for seed in seeds
        for method in dict.fromkeys(methods)
    ]


def run_batch(
    work: Work,
    items: Sequence[Item],
    out: str | Path,
    *,
    workers: int = 1,
    ray: str | None = None,
    budget: str | None = None,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> BatchReport:
    """Run what is missing, and write a summary of everything.

    Parameters
    ----------
    workers : int
        Processes; 1 runs in this one. With Ray actors.
    ray : str, optional
        Address of a Ray cluster that sees `out`, or "local" to start one.
    budget : str, optional
        A time or a number of network evaluations for each item, instead of particles, transitions
        and steps; see :mod:`.budget`.

    Raises
    ------
    RunFolderError
        The disk is full, another batch runs in this folder, or it was one of other settings.
    """
    home = make_folder(out)
    with _alone(home), progress_bar(len(items), progress, "batch") as advance:
        runner = None
        if budget is not None:

            def trial(*numbers: int) -> int:
                nonlocal runner
                runner = runner or runner_of(work)
                return runner.trial(items[0].prompt, work.settings | sizes(*numbers))

            chosen = chosen_for(budget, home, trial, announce).sizes
            work = dataclasses.replace(work, settings=work.settings | chosen)
        done = [item for item in items if _finished(work, item, home)]
        for _ in done:
            advance()
        if done:
            announce(f"{len(done)} of {len(items)} are finished already")
        missing = [item for item in items if item not in set(done)]
        finished: Iterable[None] = ()
        if not missing:
            pass
        elif ray is not None:
            from .batch_ray import run_with_ray

            finished = run_with_ray(work, missing, home, workers, ray)
        elif workers == 1:
            finished = _here(work, missing, home, runner)
        else:
            del runner  # its memory is for the workers
            finished = _in_processes(work, missing, home, workers)
        for _ in finished:
            advance()
        return summarise(items, home)


def run_item(runner: Runner, work: Work, item: Item, out: Path) -> None:
    """Run one item in its folder; what it raises is written there.

    Raises
    ------
    RunFolderError
        The folder cannot be written: that is no matter of this item alone.
    """
    folder = _folder(work, item, out)
    if folder.finished:
        return
    try:
        runner.run(item, work.settings_of(item.method), folder)
    except RunFolderError:
        raise
    except Exception as error:
        folder.fail(error)


def _folder(work: Work, item: Item, out: Path) -> RunFolder:
    """Of an item; :class:`RunFolderError` if it holds a run of other settings."""
    job = {
        "model": work.model,
        "prompts": [item.prompt],
        "reward": work.reward,
        "method": item.method,
        "seed": item.seed,
        "settings": work.settings_of(item.method),
    }
    return RunFolder(out / item.name, job, title=item.prompt)


def _finished(work: Work, item: Item, out: Path) -> bool:
    return (out / item.name / "result.json").exists() and _folder(work, item, out).finished


def runner_of(work: Work) -> Runner:
    """The model of a batch, loaded; sets torch's threads of this process."""
    if work.threads is not None:
        torch.set_num_threads(work.threads)
    return _Digits(work) if work.model == "digits" else _Pipeline(work)


# --- the models -----------------------------------------------------------------------------------


class _Digits:
    """The bundled digits: a prompt is a digit, the reward its log-probability."""

    def __init__(self, work: Work) -> None:
        check_name("reward", work.reward, ("class",))
        self.denoiser = digits_denoiser()
        self.classifier = load_digits_classifier("reward")
        self.judge = load_digits_classifier("judge")

    def trial(self, prompt: str, settings: dict[str, Any]) -> int:
        reward = ClassReward(self.classifier, _digit(prompt))
        result = steer(self.denoiser, reward, shape=IMAGE, seed=0, progress=False, **settings)
        return result.network_evaluations

    def run(self, item: Item, settings: dict[str, Any], folder: RunFolder) -> None:
        label, given = _digit(item.prompt), dict(settings)
        sampler: Callable[..., SearchResult]
        if item.method in ("plain", "best-of-n", "steering", "twist"):
            sampler = best_of if item.method in ("plain", "best-of-n") else steer
            folder.pictures = lambda z: [digit_image(image) for image in z]
            given["record"] = folder
        else:
            options = {name: given.pop(name) for name in _OF_SEARCH & given.keys()}
            sampler = search_of(item.method, given.pop("particles"), given.pop("children"), options)
        reward = ClassReward(self.classifier, label)
        result = sampler(
            self.denoiser, reward, shape=IMAGE, seed=item.seed, progress=False, **given
        )
        order = result.rewards[0].argsort(descending=True).tolist()
        names = []
        for rank, i in enumerate(order):
            names.append(f"000-{rank:02}.png")
            about = {"prompt": item.prompt, "reward": result.rewards[0, i].item()}
            picture = digit_image(result.samples[0, i]).resize((64, 64), Image.Resampling.NEAREST)
            save_png(picture, folder.folder / names[-1], **about)
        with torch.no_grad():
            verdict = bool(self.judge(result.best).argmax(1) == label)
        folder.finish(result, [names], {"judge": verdict})


def _digit(prompt: str) -> int:
    if not prompt.isdigit() or int(prompt) > 9:
        raise InvalidArgument(f"for the digits a prompt is 0 to 9, got {prompt!r}")
    return int(prompt)


class _Pipeline:
    """A diffusers pipeline, loaded once."""

    def __init__(self, work: Work) -> None:
        self.pipe = load_pipeline(work.model, **work.loading)
        self.reward = load_reward(work.reward, model=work.model, device=work.loading.get("device"))
        self.shapes = of_shapes(work.model)

    def trial(self, prompt: str, settings: dict[str, Any]) -> int:
        from ..integrations.diffusers import steer_pipeline

        asked, given = self._asked(prompt, settings)
        found = steer_pipeline(self.pipe, asked, self.reward, seed=0, progress=False, **given)
        return found.result.costs.network_evaluations

    def _asked(self, prompt: str, settings: dict[str, Any]) -> tuple[Any, dict[str, Any]]:
        """The prompt as the pipeline takes it, and its call arguments with the settings."""
        if self.shapes:
            return str(Prompt.parse(prompt)), {**CALL, "decode_batch": None, **settings}
        if type(self.pipe).__name__ == "DiTPipeline":
            label = int(prompt) if prompt.isdigit() else self.pipe.get_label_ids(prompt)[0]
            return label, settings
        return prompt, settings

    def run(self, item: Item, settings: dict[str, Any], folder: RunFolder) -> None:
        from ..integrations.diffusers import can_record, steer_pipeline

        method = {"plain": "best-of-n", "twist": "steering"}.get(item.method, item.method)
        prompt, given = self._asked(item.prompt, settings)
        record = folder if can_record(self.pipe, method) else None
        result = steer_pipeline(
            self.pipe, prompt, self.reward, method=method, seed=item.seed, record=record,
            progress=False, **given,
        )  # fmt: skip
        names = [file.name for file in result.save(folder.folder)]
        more = {}
        if self.shapes:
            demand = Prompt.parse(item.prompt)
            (more["judge"],) = accepts([np.asarray(result.best[0].convert("RGB"))], [demand])
        folder.finish(result.result, [names], more)


# --- where the items run --------------------------------------------------------------------------


def _here(work: Work, items: Sequence[Item], out: Path, runner: Runner | None) -> Iterator[None]:
    runner = runner or runner_of(work)
    for item in items:
        run_item(runner, work, item, out)
        yield


def _in_processes(work: Work, items: Sequence[Item], out: Path, workers: int) -> Iterator[None]:
    """Workers of one machine. One that dies takes the others along; the rest is begun again."""
    left, fruitless = list(items), 0
    while left:
        finished: set[Item] = set()
        with ProcessPoolExecutor(
            min(workers, len(left)), get_context("spawn"), _load, (work,)
        ) as pool:
            futures = {pool.submit(_do, item, out): item for item in left}
            try:
                for future in as_completed(futures):
                    future.result()
                    finished.add(futures[future])
                    yield
            except BrokenProcessPool:
                fruitless = 0 if finished else fruitless + 1
                if fruitless == _FRUITLESS:
                    raise RunFolderError(
                        f"the workers died {_FRUITLESS} times without finishing anything (out of "
                        "memory?): take fewer workers, or --max-batch 1. What is finished is kept"
                    ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        left = [item for item in left if item not in finished]


_loaded: tuple[Runner, Work] | None = None  # of a worker process


def _load(work: Work) -> None:
    global _loaded
    _loaded = runner_of(work), work


def _do(item: Item, out: Path) -> None:
    if _loaded is None:
        raise RuntimeError("a worker was not started as one")
    run_item(*_loaded, item, out)


@contextmanager
def _alone(out: Path) -> Iterator[None]:
    """No two batches in one folder at the same time; a batch that was killed holds nothing."""
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise RunFolderError(
            f"another batch runs in {str(out)!r}: wait for it, or give another folder"
        ) from None
    try:
        yield
    finally:
        lock.release()


# --- the summary ----------------------------------------------------------------------------------


def summarise(items: Sequence[Item], out: Path) -> BatchReport:
    """Write summary.csv, summary.md and, with pyarrow, summary.parquet."""
    rows = [_row(item, out) for item in items]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(rows[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    try:
        replace(out / "summary.csv", text.getvalue().encode())
        replace(out / "summary.md", _table(rows).encode())
        _parquet(rows, out / "summary.parquet")
    except OSError as error:
        raise RunFolderError(f"cannot write the summary in {str(out)!r}: {error}") from error
    count = {s: sum(row["status"] == s for row in rows) for s in ("finished", "failed")}
    left = len(rows) - sum(count.values())
    return BatchReport(count["finished"], count["failed"], left, out / "summary.md")


def _row(item: Item, out: Path) -> dict[str, Any]:
    row: dict[str, Any] = {**vars(item), "status": "left"}
    names = ("reward", "mean reward", "log_evidence", "network_evaluations", "network_gradients")
    row |= dict.fromkeys((*names, "reward_evaluations", "judge", "image", "error"))
    folder = out / item.name
    if not (folder / "run.json").exists():
        return row
    run = read_run(folder)
    if run.error is not None:
        row |= {"status": "failed", "error": f"{run.error['type']}: {run.error['message']}"}
    if (found := run.result) is None:
        return row
    rewards = [float(r) for r in found["rewards"][0]]
    row |= {"status": "finished", "reward": max(rewards), "error": None}
    row["mean reward"] = sum(rewards) / len(rewards)
    row |= {name: found["costs"][name] for name in found["costs"] if name in row}
    if found["log_evidence"] is not None:
        row["log_evidence"] = float(found["log_evidence"][0])
    row["judge"] = found.get("judge")
    row["image"] = f"{item.name}/{found['images'][0][0]}"
    return row


def _table(rows: Sequence[dict[str, Any]]) -> str:
    """Means by method, and what failed."""
    lines = ["| method | finished | failed | left | reward | judge, % | evaluations |"]
    lines.append("|" + " --- |" * 7)
    for method in dict.fromkeys(row["method"] for row in rows):
        own = [row for row in rows if row["method"] == method]
        ended = [row for row in own if row["status"] == "finished"]
        failed = sum(row["status"] == "failed" for row in own)
        judged = [row["judge"] for row in ended if row["judge"] is not None]
        figures = [
            f"{np.mean([row['reward'] for row in ended]):.4g}" if ended else "",
            f"{100 * np.mean(judged):.0f}" if judged else "",
            f"{np.mean([row['network_evaluations'] for row in ended]):g}" if ended else "",
        ]
        counts = [len(ended), failed, len(own) - len(ended) - failed]
        lines.append(f"| {' | '.join(map(str, (method, *counts, *figures)))} |")
    failures = [row for row in rows if row["status"] == "failed"]
    if failures:
        lines += ["", "Failed:", ""]
    for row in failures[:_SHOWN]:
        words = json.dumps(row["prompt"], ensure_ascii=False)
        lines.append(
            f"- {row['number']}, {words}, {row['method']}, seed {row['seed']}: {row['error']}"
        )
    if len(failures) > _SHOWN:
        lines.append(f"- and {len(failures) - _SHOWN} more, in summary.csv")
    return "\n".join(lines) + "\n"


def _parquet(rows: Sequence[dict[str, Any]], file: Path) -> None:
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    sink = io.BytesIO()
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(list(rows)), sink)
    replace(file, sink.getvalue())
