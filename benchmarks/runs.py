"""What keeping a run costs, how many prompts a minute a batch does, and whether a budget holds.

    python -m benchmarks.runs [--prompts 12] [--budget 60s]

On the Shapes pipeline, 8 particles of 6 transitions of 4 evaluations (two passes each). Everything
on one thread per process, in one run, as ratios where it can be.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import torch

from glass_flows import Sampler, Steering
from glass_flows.jobs import Job, Model, resolve
from glass_flows.jobs.batch import run_batch
from glass_flows.jobs.items import Work, items_of, load_model
from glass_flows.jobs.prompts import PromptEntry
from glass_flows.research.recipe import Recipe
from glass_flows.runs import RunFolder
from glass_flows.steering.loop import Watch
from glass_flows.worlds.shapes import prompts


class Timed(RunFolder):
    """A run's folder that knows how long it has taken."""

    spent = 0.0

    def saved(self):
        return self._timed(super().saved)

    def begin(self, *given):
        self._timed(super().begin, *given)

    def save(self, *given):
        self._timed(super().save, *given)

    def step(self, *given):
        self._timed(super().step, *given)

    def finish(self, *given):
        self._timed(super().finish, *given)

    def _timed(self, work, *given):
        start = time.perf_counter()
        try:
            return work(*given)
        finally:
            self.spent += time.perf_counter() - start


def overhead(model: Model, job: Job, home: Path, rounds: int) -> None:
    shares = []
    for i in range(rounds + 1):
        record = Timed(home / f"run-{i}")
        start = time.perf_counter()
        asked = replace(job, prompts=("two blue squares",), seed=i)
        record.finish(model.run(asked, Watch(record, progress=False)).result)
        if i:  # the first warms up
            shares.append(record.spent / (time.perf_counter() - start))
    share = 100 * sum(shares) / len(shares)
    print(f"run folder: {share:.2f} % of the time ({rounds} runs, {max(shares) * 100:.2f} at most)")


def throughput(work: Work, home: Path, count: int) -> None:
    listed = [PromptEntry(i, str(p)) for i, p in enumerate(prompts("test", count, 0))]
    for workers in (1, 2):
        start = time.perf_counter()
        run_batch(work, items_of(listed, [0], ["steering"]), home / f"{workers}", workers=workers,
                  progress=False)  # fmt: skip
        seconds = time.perf_counter() - start
        print(f"{workers} workers: {60 * count / seconds:.1f} prompts a minute, loading included")


def budgets(work: Work, home: Path, texts: list[str]) -> None:
    items = items_of([PromptEntry(0, "two blue squares")], [0], ["steering"])
    load_model(work)  # the first time takes longer
    start = time.perf_counter()
    load_model(work)
    loading = time.perf_counter() - start  # is not of the budget
    for text in texts:
        start = time.perf_counter()
        run_batch(work, items, home / f"budget-{text}", budget=text, progress=False, announce=print)
        print(f"budget {text}: {time.perf_counter() - start - loading:.1f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--budget", nargs="*", default=["30s", "90s"])
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = resolve("shapes")
    job = Recipe(Steering(8, 0.5), Sampler(6, 4, 0.4)).job(model, threads=1)
    work = Work({"steering": job})
    with tempfile.TemporaryDirectory() as home:
        if given.rounds:
            overhead(model, job, Path(home), given.rounds)
        if given.prompts:
            throughput(work, Path(home), given.prompts)
        budgets(work, Path(home), given.budget)


if __name__ == "__main__":
    main()
