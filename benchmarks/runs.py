"""What keeping a run costs, how many prompts a minute a batch does, and whether a budget holds.

    python -m benchmarks.runs [--prompts 12] [--budget 60s]

On the Shapes pipeline, 8 particles of 6 transitions of 4 evaluations (two passes each). Everything
on one thread per process, in one run, as ratios where it can be.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path

import torch

from glass_flows.experiments.align_pipeline import load_reward
from glass_flows.experiments.batch import Work, items_of, run_batch, runner_of
from glass_flows.experiments.prompt_sets import PromptEntry
from glass_flows.integrations.diffusers import steer_pipeline
from glass_flows.models.shapes import prompts
from glass_flows.models.shapes.pipeline import CALL, load_pipeline
from glass_flows.runs import RunFolder

SETTINGS = {"particles": 8, "transitions": 6, "steps": 4, "rho": 0.4, "scale": 0.5}


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


def overhead(home: Path, rounds: int) -> None:
    pipe, reward = load_pipeline(), load_reward("clip", model="shapes")
    shares = []
    for i in range(rounds + 1):
        record = Timed(home / f"run-{i}")
        start = time.perf_counter()
        result = steer_pipeline(
            pipe, "two blue squares", reward, seed=i, record=record, decode_batch=None,
            progress=False, **SETTINGS, **CALL,
        )  # fmt: skip
        record.finish(result.result)
        if i:  # the first warms up
            shares.append(record.spent / (time.perf_counter() - start))
    share = 100 * sum(shares) / len(shares)
    print(f"run folder: {share:.2f} % of the time ({rounds} runs, {max(shares) * 100:.2f} at most)")


def throughput(home: Path, count: int) -> None:
    listed = [PromptEntry(i, str(p)) for i, p in enumerate(prompts("test", count, 0))]
    work = Work("shapes", "clip", SETTINGS, threads=1)
    for workers in (1, 2):
        start = time.perf_counter()
        run_batch(work, items_of(listed, [0], ["steering"]), home / f"{workers}", workers=workers,
                  progress=False)  # fmt: skip
        seconds = time.perf_counter() - start
        print(f"{workers} workers: {60 * count / seconds:.1f} prompts a minute, loading included")


def budgets(home: Path, texts: list[str]) -> None:
    work = Work("shapes", "clip", {"rho": 0.4, "scale": 0.5}, threads=1)
    items = items_of([PromptEntry(0, "two blue squares")], [0], ["steering"])
    runner_of(work)  # the first time takes longer
    start = time.perf_counter()
    runner_of(work)
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
    with tempfile.TemporaryDirectory() as home:
        if given.rounds:
            overhead(Path(home), given.rounds)
        if given.prompts:
            throughput(Path(home), given.prompts)
        budgets(Path(home), given.budget)


if __name__ == "__main__":
    main()
