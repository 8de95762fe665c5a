"""Over-optimisation over the runs of a batch: the same prompts and seeds at rising λ."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..runs import RunRecord, Sample
from ..runs.record import mean
from ..steering.overoptimisation import Rung, falls
from .items import Item

Place = tuple[int, int]
"""Prompt and seed."""


def warnings_of(runs: Mapping[Item, RunRecord]) -> list[str]:
    """Where finished runs with held-out rewards are over-optimised.

    Those are compared that differ in λ alone. Of best-of-N without guidance, of the largest N, the
    samples without weights stand at λ = 0 for every other method, too.
    """
    by_job: dict[str, dict[str, dict[Place, RunRecord]]] = {}
    plain: dict[int, dict[Place, RunRecord]] = {}
    for item, run in runs.items():
        place, method = (item.number, item.seed), dict(run.job["method"])
        if method["type"] == "best-of-n" and not method.get("guidance"):
            plain.setdefault(len(run.samples[0]), {})[place] = run
            continue
        scale = str(method.pop("scale", 1.0))
        about = {**run.job, "method": method, "prompts": [], "seed": 0}
        key = json.dumps(about, sort_keys=True)
        by_job.setdefault(key, {}).setdefault(scale, {})[place] = run
    found = []
    for by_scale in by_job.values():
        if plain:
            by_scale.setdefault("0.0", plain[max(plain)])
        shared = sorted(set.intersection(*map(set, by_scale.values())))
        if not shared:
            continue
        groups = [[runs[place] for place in shared] for runs in by_scale.values()]
        scales = map(_scale, by_scale, groups)
        ordered = sorted(zip(scales, groups), key=lambda pair: pair[0])
        word = ordered[-1][1][0].method
        found += [f"{word}: {one}" for one in falls([_rung(*pair) for pair in ordered])]
    return found


def _scale(text: str, runs: Sequence[RunRecord]) -> float:
    """λ; of "auto", which every run finds for its own prompt, the mean."""
    if not text.startswith("auto"):
        return float(text)
    return mean([one.result["strength"]["scale"] for one in runs if one.result is not None])


def _rung(scale: float, runs: Sequence[RunRecord]) -> Rung:
    """Of runs of one population each; best-of-N has no weights at λ = 0, whatever its own λ."""
    plain = scale == 0.0 and runs[0].job["method"]["type"] == "best-of-n"
    rows = [run.samples[0] for run in runs]

    def table(of: Callable[[Sample], Any]) -> Tensor:
        return torch.tensor([[of(sample) for sample in row] for row in rows], dtype=torch.float64)

    log_weights = table(lambda one: 0.0 if plain else one.log_weight or 0.0)
    also = {}
    for name in rows[0][0].also:
        also[name] = table(lambda one: one.also.get(name, math.nan))  # noqa: B023
    return Rung(
        scale,
        also,
        table(lambda one: one.reward),
        torch.softmax(log_weights, 1),
        table(lambda one: one.ancestor).long(),
    )
