"""The first job: steer a bundled model towards a reward, beside plain and best-of-N samples."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import InvalidArgument, check_name
from ..models.digits import load_digits_classifier, load_digits_network
from ..paths import Linear
from ..plans import Rho, plan
from ..rewards import ClassReward
from ..steering import SteeringResult, best_of, steer
from .pictures import Row, image_grid, make_folder, save_png

__all__ = ["AlignReport", "MethodReport", "align", "digits_denoiser", "parse_class_reward"]

SHAPE = (1, 8, 8)


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
        Wall time of the whole method.
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
    null = {"label": torch.tensor([10])}
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
    runs: int = 64,
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
    if runs < 2:
        raise InvalidArgument(f"runs must be at least 2 (for a standard error), got {runs!r}")
    denoiser = digits_denoiser()
    # Bad settings stop here, before anything is drawn.
    plan(denoiser.path, transitions=transitions, steps=steps, rho=rho, solver=solver)
    folder = make_folder(out)
    score = ClassReward(load_digits_classifier("reward"), label)
    judge = load_digits_classifier("judge")

    def accepted(images: Tensor) -> Tensor:
        return judge(images).argmax(1) == label

    shared: dict[str, Any] = {
        "shape": SHAPE,
        "particles": particles,
        "populations": runs,
        "seed": seed,
        "progress": progress,
    }
    announce(f"best of {particles}: ODE samples, {runs} runs")
    independent, independent_seconds = _timed(
        lambda: best_of(denoiser, score, transitions=1, steps=transitions * steps, **shared)
    )
    announce(f"steering: {particles} particles, {runs} runs")
    steered, steered_seconds = _timed(
        lambda: steer(
            denoiser,
            score,
            transitions=transitions,
            steps=steps,
            rho=rho,
            solver=solver,
            scale=scale,
            ess_threshold=ess_threshold,
            **shared,
        )
    )
    cost = independent.network_evaluations // (runs * particles)
    plain = independent.samples[:, 0]
    returned = {
        "plain": (plain, score(plain), None, cost, independent_seconds / particles),
        f"best of {particles}": (
            independent.best,
            independent.rewards.amax(1),
            independent.ess[-1:],
            cost * particles,
            independent_seconds,
        ),
        "GLASS steering": (
            steered.best,
            steered.rewards.amax(1),
            steered.ess,
            steered.network_evaluations // runs,
            steered_seconds,
        ),
    }
    methods, rows = [], []
    for name, (images, rewards, ess, evaluations, seconds) in returned.items():
        verdicts = accepted(images)
        mean, error = _mean(rewards)
        share, share_error = _mean(verdicts)
        sizes = None if ess is None else float(ess.mean())
        methods.append(
            MethodReport(name, mean, error, share, share_error, sizes, evaluations, seconds)
        )
        caption = (
            f"{name}: {evaluations} network evaluations per image, reward {mean:.2f}, "
            f"judge says {label}: {share:.0%}"
        )
        rows.append(Row(caption, images[:32], verdicts[:32].tolist()))
    settings = {key: value for key, value in shared.items() if key != "progress"}
    settings |= {"model": model, "reward": reward, "transitions": transitions, "steps": steps}
    settings |= {"rho": rho if isinstance(rho, (float, str)) else repr(rho), "scale": scale}
    settings |= {"solver": solver, "ess_threshold": ess_threshold}
    picture = save_png(image_grid(rows), folder / "alignment.png", settings=json.dumps(settings))
    results = folder / "results.json"
    payload = {
        "settings": settings,
        "methods": [asdict(method) for method in methods],
        "log_evidence": steered.log_evidence.tolist(),
    }
    results.write_text(json.dumps(payload, indent=1) + "\n")
    return AlignReport(tuple(methods), picture, results)


def _timed(work: Callable[[], SteeringResult]) -> tuple[SteeringResult, float]:
    start = time.perf_counter()
    return work(), time.perf_counter() - start


def _mean(values: Tensor) -> tuple[float, float]:
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
