"""The first job: steer a bundled model towards a reward, beside plain and best-of-N samples."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import InvalidArgument, check_count, check_name
from ..models.digits import IMAGE, NULL_CLASS, load_digits_classifier, load_digits_network
from ..paths import Linear
from ..plans import Rho, plan
from ..rewards import ClassReward
from ..steering import SteeringResult, best_of, check_settings, steer
from .pictures import Row, image_grid, make_folder, save_png

__all__ = ["AlignReport", "MethodReport", "align", "digits_denoiser", "parse_class_reward"]


@dataclass(frozen=True)
class MethodReport:
    """One line of the table; every mean is over the runs, with its standard error.

    Attributes
    ----------
    reward, reward_error : float
        Mean reward of the images returned.
    accuracy, accuracy_error : float
        Share of them that the independent judge accepts.
    ess : float or None
        Mean effective sample size over boundaries; None where nothing is weighted.
    evaluations : int
        Network evaluations per image returned.
    seconds : float
        Wall time of all runs; for plain samples the share of the independent samples' time.
    """

    method: str
    reward: float
    reward_error: float
    accuracy: float
    accuracy_error: float
    ess: float | None
    evaluations: int
    seconds: float


@dataclass(frozen=True)
class AlignReport:
    methods: tuple[MethodReport, ...]
    picture: Path
    results: Path


def digits_denoiser(label: int | None = None, guidance: float = 1.0) -> Denoiser:
    """The bundled digits network; `label` None is the unconditional model."""
    if label is not None and not 0 <= label <= 9:
        raise InvalidArgument(f"the digits are 0 to 9, got class {label!r}")
    null = {"label": torch.tensor([NULL_CLASS])}
    given = null if label is None else {"label": torch.tensor([label])}
    return Denoiser(
        load_digits_network(),
        Linear(),
        prediction="velocity",
        conditioning=given,
        unconditional=null,
        guidance_scale=guidance,
    )


def parse_class_reward(text: str) -> int:
    """The class of "class:8", 0 to 9."""
    kind, _, value = text.partition(":")
    check_name("reward", kind, ("class",))
    if not value.isdigit() or int(value) > 9:
        raise InvalidArgument(f"reward 'class:N' needs a digit 0 to 9, got {text!r}")
    return int(value)


@dataclass(frozen=True)
class _Returned:
    """What one method hands back: one image per run."""

    method: str
    images: Tensor
    rewards: Tensor
    ess: Tensor | None
    evaluations: int
    seconds: float


def align(
    out: str | os.PathLike[str],
    *,
    model: str = "digits",
    reward: str = "class:8",
    particles: int = 8,
    transitions: int = 6,
    steps: int = 4,
    rho: Rho = 0.4,
    scale: float = 1.0,
    runs: int = 256,
    ess_threshold: float = 0.5,
    solver: str = "default",
    seed: int = 0,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> AlignReport:
    """Plain samples, best-of-N and steering at N K M network evaluations per image.

    Writes `alignment.png` (images before and after, bordered by the judge's verdict) and
    `results.json` into `out`. `runs` independent populations give the standard errors.
    """
    check_name("model", model, ("digits",))
    label = parse_class_reward(reward)
    check_count("runs", runs, least=2)  # a standard error needs two
    denoiser = digits_denoiser()
    # Bad settings stop here, before the folder is made and anything is drawn.
    table = plan(denoiser.path, transitions=transitions, steps=steps, rho=rho, solver=solver)
    check_settings(table, particles, runs, scale, "systematic", ess_threshold)
    folder = make_folder(out)
    score = ClassReward(load_digits_classifier("reward"), label)
    judge = load_digits_classifier("judge")
    shared: dict[str, Any] = {
        "shape": IMAGE,
        "particles": particles,
        "populations": runs,
        "seed": seed,
        "progress": progress,
    }
    steered_by: dict[str, Any] = {
        "transitions": transitions,
        "steps": steps,
        "rho": rho,
        "solver": solver,
        "scale": scale,
        "ess_threshold": ess_threshold,
    }
    announce(f"plain and best of {particles}: ODE samples, {runs} runs")
    independent = _timed(
        partial(best_of, denoiser, score, transitions=1, steps=table.evaluations, **shared)
    )
    announce(f"steering: {particles} particles, {runs} runs")
    steered = _timed(partial(steer, denoiser, score, **steered_by, **shared))
    returned = _returned(score, particles, independent, steered)
    verdicts = [judge(one.images).argmax(1) == label for one in returned]
    settings = {"model": model, "reward": reward, "runs": runs, "seed": seed, **steered_by}
    settings |= {"particles": particles, "rho": rho if isinstance(rho, (float, str)) else repr(rho)}
    methods = tuple(_report(one, verdict) for one, verdict in zip(returned, verdicts))
    rows = [
        Row(
            f"{line.method}: {line.evaluations} network evaluations per image, "
            f"reward {line.reward:.2f}, judge says {label}: {line.accuracy:.0%}",
            one.images[:32],
            verdict[:32].tolist(),
        )
        for line, one, verdict in zip(methods, returned, verdicts)
    ]
    picture = save_png(image_grid(rows), folder / "alignment.png", settings=json.dumps(settings))
    results = folder / "results.json"
    log_evidence = steered[0].log_evidence.tolist()
    payload = {
        "settings": settings,
        "methods": [asdict(method) for method in methods],
        "log_evidence": log_evidence,
    }
    results.write_text(json.dumps(payload, indent=1) + "\n")
    return AlignReport(methods, picture, results)


def _returned(
    score: Callable[[Tensor], Tensor],
    particles: int,
    independent: tuple[SteeringResult, float],
    steered: tuple[SteeringResult, float],
) -> list[_Returned]:
    """One image per run from each method; plain is the first of the N independent samples."""
    (many, seconds), (few, steered_seconds) = independent, steered
    runs = len(many.samples)
    cost = many.network_evaluations // runs
    plain, best = many.samples[:, 0], many.rewards.amax(1)
    return [
        _Returned("plain", plain, score(plain), None, cost // particles, seconds / particles),
        _Returned(f"best of {particles}", many.best, best, many.ess[-1], cost, seconds),
        _Returned(
            "steering",
            few.best,
            few.rewards.amax(1),
            few.ess,
            few.network_evaluations // runs,
            steered_seconds,
        ),
    ]


def _report(returned: _Returned, verdicts: Tensor) -> MethodReport:
    reward, reward_error = _mean(returned.rewards)
    accuracy, accuracy_error = _mean(verdicts)
    return MethodReport(
        returned.method,
        reward,
        reward_error,
        accuracy,
        accuracy_error,
        None if returned.ess is None else float(returned.ess.mean()),
        returned.evaluations,
        returned.seconds,
    )


def _timed(work: Callable[[], SteeringResult]) -> tuple[SteeringResult, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over the runs and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
