"""The result of a run as one file: every sample beside all that is known of it.

``result.json`` is strict JSON of one order, that of the particles; which sample is the best is an
index into it. A number that JSON has not is null, and its text stands under "not_finite".
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import PurePath
from typing import Any

from ..steering import SearchResult

RESULT = "result.json"
RESULT_VERSION = 2
"""1 told images best first and rewards by particle, without a version: glass-flows 0.1."""

Verdicts = Sequence[Sequence[bool]]


@dataclass(frozen=True)
class Sample:
    """One sample that came out of a run.

    Attributes
    ----------
    population, particle : int
        Its place.
    prompt : str or None
    seed : int or None
        Of the run.
    reward : float
        NaN where none was taken.
    log_weight : float or None
        Of its particle; None for searches.
    ancestor : int or None
        The particle of the first boundary that it descends from.
    accepted : bool or None
        What an independent judge says of it.
    file : str or None
        Its image in the folder of the run.
    also : dict
        Values of the held-out rewards by name.
    video : str or None
        Of a video its file in the folder of the run; its image is the contact sheet.
    """

    population: int
    particle: int
    prompt: str | None
    seed: int | None
    reward: float
    log_weight: float | None
    ancestor: int | None
    accepted: bool | None
    file: str | None
    also: Mapping[str, float] = field(default_factory=dict)
    video: str | None = None


def tell(
    result: SearchResult,
    job: Mapping[str, Any],
    prompts: Sequence[Any],
    seed: int | None,
    files: Sequence[Sequence[str]] = (),
    accepted: Verdicts | None = None,
    plain_accepted: Verdicts | None = None,
    plain: SearchResult | None = None,
    plain_files: Sequence[Sequence[str]] = (),
    warnings: Sequence[str] = (),
    videos: Sequence[Sequence[str]] = (),
) -> dict[str, Any]:
    """What ``result.json`` holds; lists of lists are (P, N), by population and particle.

    `plain` are samples drawn for comparison, `plain_files` their images, and `warnings` what they
    say of the result. `videos` are the files of which `files` are contact sheets.
    """
    P, N = result.rewards.shape
    found = vars(result)  # searches have no weights
    weights, evidence = found.get("log_weights"), found.get("log_evidence")
    roots = result.lineage[0].tolist()
    samples = [
        Sample(
            p,
            n,
            str(prompts[p]) if prompts else None,
            seed,
            float(result.rewards[p, n]),
            None if weights is None else float(weights[p, n]),
            roots[p][n],
            None if accepted is None else bool(accepted[p][n]),
            files[p][n] if files else None,
            {name: float(values[p, n]) for name, values in result.also.items()},
            videos[p][n] if videos else None,
        )
        for p in range(P)
        for n in range(N)
    ]
    populations = [
        {
            "prompt": samples[p * N].prompt,
            "log_evidence": None if evidence is None else float(evidence[p]),
            "best_first": [p * N + n for n in best_first(result.rewards[p].tolist())],
            "plain_accepted": None if plain_accepted is None else list(plain_accepted[p]),
            "plain": None if plain is None else _plain(plain, p, plain_files),
        }
        for p in range(P)
    ]
    return {
        "version": RESULT_VERSION,
        "job": job,
        "samples": [_strict(_entry(sample)) for sample in samples],
        "populations": list(map(_strict, populations)),
        "costs": asdict(result.costs),
        "biases": list(found.get("biases", ())),
        "warnings": [*result.warnings, *warnings],
        "paths": {name: path.tolist() for name, path in result.paths.items()},
        "stopped": result.stopped,
        "strength": None if result.strength is None else result.strength.as_json(),
    }


def _entry(sample: Sample) -> dict[str, Any]:
    """Of a sample; an image says nothing of a video."""
    told = asdict(sample)
    return told if sample.video is not None else {k: v for k, v in told.items() if k != "video"}


def _plain(plain: SearchResult, p: int, files: Sequence[Sequence[str]]) -> list[dict[str, Any]]:
    """Rewards of the plain samples of a population, as those of samples are told."""
    also = plain.also.items()
    return [
        _strict(
            {
                "reward": float(reward),
                "also": {name: float(v[p, n]) for name, v in also},
                "file": files[p][n] if files else None,
            }
        )
        for n, reward in enumerate(plain.rewards[p])
    ]


def samples_of(
    found: Mapping[str, Any], prompts: Sequence[str], seed: int | None
) -> list[list[Sample]]:
    """The samples of every population, from ``result.json`` as it was read.

    Raises
    ------
    ValueError, KeyError, TypeError, IndexError
        It is no result; `prompts` and `seed` are of the job, for those of version 1.
    """
    if found.get("version", 1) != RESULT_VERSION:
        return _of_version_1(found, prompts, seed)
    rows: list[list[Sample]] = [[] for _ in found["populations"]]
    for entry in found["samples"]:
        sample = _checked(Sample(**loose(entry)))
        row = rows[sample.population]
        if sample.particle != len(row):
            raise ValueError(f"sample {sample.particle} of population {sample.population} is lost")
        row.append(sample)
    for p, population in enumerate(found["populations"]):
        first = sum(map(len, rows[:p]))
        if sorted(population["best_first"]) != list(range(first, first + len(rows[p]))):
            raise ValueError(f"{population['best_first']!r} are not the samples of population {p}")
    return rows


def best_first(rewards: Sequence[float]) -> list[int]:
    """The places of rewards from the highest on; NaN comes last, equal ones in their order."""
    order = range(len(rewards))
    return sorted(order, key=lambda n: math.inf if math.isnan(rewards[n]) else -rewards[n])


def _of_version_1(
    found: Mapping[str, Any], prompts: Sequence[str], seed: int | None
) -> list[list[Sample]]:
    rows, images, weights = [], found["images"], found.get("log_weights")
    if images and len(images) != len(found["rewards"]):
        raise ValueError(f"images of {len(images)} of {len(found['rewards'])} populations")
    for p, told in enumerate(found["rewards"]):
        rewards = [math.nan if r is None else float(r) for r in told]
        files = dict(zip(best_first(rewards), images[p])) if images else {}
        prompt = prompts[p] if p < len(prompts) else None
        known = [float(w) for w in weights[p]] if weights else [None] * len(rewards)
        rows.append(
            [
                _checked(Sample(p, n, prompt, seed, r, known[n], None, None, files.get(n)))
                for n, r in enumerate(rewards)
            ]
        )
    return rows


def _checked(sample: Sample) -> Sample:
    """Raise unless it is of the right kinds, and its image a file of the run's own folder."""
    if isinstance(sample.reward, bool) or not isinstance(sample.reward, (int, float)):
        raise TypeError(f"the reward {sample.reward!r} is no number")
    if any(type(value) not in (int, float) for value in sample.also.values()):
        raise TypeError(f"{sample.also!r} are no values of held-out rewards")
    for name in (sample.file, sample.video):
        if name is not None and PurePath(name).name != name:
            raise ValueError(f"{name!r} is no name of a file in the folder")
    return sample


def loose(entry: Mapping[str, Any]) -> dict[str, Any]:
    """An entry of ``result.json`` with the numbers that JSON has not."""
    told = {name: value for name, value in entry.items() if name != "not_finite"}
    if isinstance(told.get("also"), Mapping):
        told["also"] = loose(told["also"])
    return told | {name: float(text) for name, text in entry.get("not_finite", {}).items()}


def _strict(told: dict[str, Any]) -> dict[str, Any]:
    """With null for what JSON has no number for; its text goes under "not_finite"."""
    if isinstance(told.get("also"), Mapping):
        told = {**told, "also": _strict(dict(told["also"]))}
    wild = {k: str(v) for k, v in told.items() if isinstance(v, float) and not math.isfinite(v)}
    return {**told, **dict.fromkeys(wild), "not_finite": wild} if wild else told
