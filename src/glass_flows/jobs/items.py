"""The items of a batch: one run each, in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import FolderInUse, OtherJob, RunFolderError
from ..runs import RunFolder, clear_run, disk_is_full
from ..steering.loop import Watch
from .job import Job
from .models import Model, resolve
from .prompts import PromptEntry

_PATIENCE = 10.0  # seconds for the worker of a batch that was killed to follow it


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


Over = tuple[Item, str | None]
"""An item that is over, and why its folder cannot be written into, if it cannot."""


@dataclass(frozen=True)
class Work:
    """What the items of a batch have in common: a job for each method, without prompt and seed.

    Where jobs begin with a picture for each prompt, `numbers` are those of the prompts.
    """

    jobs: Mapping[str, Job]
    numbers: tuple[int, ...] = ()

    def of(self, item: Item) -> Job:
        job = self.jobs[item.method]
        init = job.init
        if len(init) > 1:
            init = (init[self.numbers.index(item.number)],)
        return replace(job, prompts=(item.prompt,), seed=item.seed, init=init)

    @property
    def any(self) -> Job:
        """One of the jobs: they have the same model."""
        return next(iter(self.jobs.values()))

    @property
    def model(self) -> Model:
        """Theirs, not loaded."""
        return resolve(self.any.model, self.any.loading)


def items_of(
    prompts: Sequence[PromptEntry], seeds: Sequence[int], methods: Sequence[str]
) -> list[Item]:
    """All of them: prompt by prompt, seed by seed, method by method."""
    return [
        Item(entry.number, entry.text, entry.category, seed, method)
        for entry in prompts
        for seed in seeds
        for method in dict.fromkeys(methods)
    ]


def load_model(work: Work, model: Model | None = None) -> Model:
    """The model of a batch, loaded; sets torch's threads of this process."""
    job = work.any
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    model = model or work.model
    model.load()
    return model


class Worker:
    """A process with the model: this one, one of this machine, or an actor of Ray."""

    def __init__(self, work: Work, model: Model | None = None) -> None:
        self.work, self.model = work, load_model(work, model)

    def do(self, item: Item, out: Path) -> Over:
        """Run one item in its folder; what it raises is written there.

        Returns
        -------
        item
        problem : str or None
            Why its folder cannot be written into: it is damaged, another process is at it, ...

        Raises
        ------
        RunFolderError
            The disk is full: that is no matter of this item alone.
        """
        try:
            folder = folder_of(self.model, self.work, item, out)
            if folder.finished:
                folder.check()
            else:
                self._draw(self.work.of(item), folder)
        except RunFolderError as error:
            if disk_is_full(error):
                raise
            return item, str(error)
        return item, None

    def _draw(self, job: Job, folder: RunFolder) -> None:
        try:
            _draw(self.model, job, folder)
        except RunFolderError:
            raise
        except Exception as error:
            folder.fail(error)


def _draw(model: Model, job: Job, folder: RunFolder) -> None:
    job = replace(job, prompts=model.read_prompts(job.prompts))
    watch = Watch(folder if model.records else None, progress=False)
    result = model.run(job, watch)
    names = result.write(folder.folder)
    folder.finish(
        result.result, names, prompts=result.prompts, seed=job.seed, accepted=model.judge(result),
        **result.beside(names),
    )  # fmt: skip


def folder_of(model: Model, work: Work, item: Item, out: Path) -> RunFolder:
    """Of an item.

    Raises
    ------
    OtherJob
        It holds a run of other settings or weights.
    RunFolderError
        It is damaged, or cannot be written.
    """
    job = work.of(item)
    return RunFolder(
        out / item.name,
        job.as_json(),
        title=item.prompt,
        weights={**model.weights(job.reward, job.also), **job.beginnings()},
        patience=_PATIENCE,
    )


def clear_others(model: Model, work: Work, items: Sequence[Item], out: Path) -> None:
    """Throw away what the items' folders hold of other jobs."""
    for item in items:
        try:
            if (out / item.name).exists():
                folder_of(model, work, item, out)
        except FolderInUse:
            raise
        except RunFolderError:  # of another job, of an older version, or damaged
            clear_run(out / item.name)


def is_finished(model: Model, work: Work, item: Item, out: Path) -> bool:
    """Whether nothing is to be done; a damaged one is left to whoever runs it.

    Raises
    ------
    OtherJob
        It holds a run of other settings or weights.
    """
    if not (out / item.name).exists():
        return False
    try:
        folder = folder_of(model, work, item, out)
        if folder.finished:
            folder.check()
        return folder.finished
    except OtherJob:
        raise
    except RunFolderError:
        return False
