"""The items of a batch: one run each, in a folder of its own."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from ..errors import RunFolderError
from ..runs import RESULT, RunFolder, clear_run
from ..steering.loop import Watch
from .job import Job
from .models import Model, resolve
from .prompts import PromptEntry

__all__ = ["Item", "Work", "Worker", "clear_others", "is_finished", "items_of", "load_model"]


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
    """What the items of a batch have in common: a job for each method, without prompt and seed."""

    jobs: Mapping[str, Job]

    def of(self, item: Item) -> Job:
        return replace(self.jobs[item.method], prompts=(item.prompt,), seed=item.seed)

    @property
    def any(self) -> Job:
        """One of the jobs: they have the same model."""
        return next(iter(self.jobs.values()))


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


def load_model(work: Work) -> Model:
    """The model of a batch, loaded; sets torch's threads of this process."""
    job = work.any
    if job.threads is not None:
        torch.set_num_threads(job.threads)
    model = resolve(job.model, job.loading)
    model.load()
    return model


class Worker:
    """A process with the model: this one, one of this machine, or an actor of Ray."""

    def __init__(self, work: Work, model: Model | None = None) -> None:
        self.work, self.model = work, model or load_model(work)

    def do(self, item: Item, out: Path) -> None:
        """Run one item in its folder; what it raises is written there.

        Raises
        ------
        RunFolderError
            The folder cannot be written: that is no matter of this item alone.
        """
        folder = folder_of(self.work, item, out)
        if folder.finished:
            return
        try:
            _draw(self.model, self.work.of(item), folder)
        except RunFolderError:
            raise
        except Exception as error:
            folder.fail(error)


def _draw(model: Model, job: Job, folder: RunFolder) -> None:
    job = replace(job, prompts=model.read_prompts(job.prompts))
    watch = Watch(folder if model.records else None, progress=False)
    result = model.run(job, watch)
    names = [file.name for file in result.save(folder.folder)]
    folder.finish(
        result.result, [names], prompts=result.prompts, seed=job.seed, accepted=model.judge(result)
    )


def folder_of(work: Work, item: Item, out: Path) -> RunFolder:
    """Of an item; :class:`RunFolderError` if it holds a run of other settings."""
    return RunFolder(out / item.name, work.of(item).as_json(), title=item.prompt)


def clear_others(work: Work, items: Sequence[Item], out: Path) -> None:
    """Throw away what the items' folders hold of other jobs."""
    for item in items:
        if not (out / item.name / "run.json").exists():
            continue
        try:
            folder_of(work, item, out)
        except RunFolderError:  # of another job, of an older version, or damaged
            clear_run(out / item.name)


def is_finished(work: Work, item: Item, out: Path) -> bool:
    return (out / item.name / RESULT).exists() and folder_of(work, item, out).finished
