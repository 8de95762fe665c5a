"""The first job: steer a bundled model towards a reward, beside plain and best-of-N samples."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor

from ..denoisers import Denoiser
from ..errors import InvalidArgument, RunFolderError, check_count, check_name
from ..models.digits import IMAGE, NULL_CLASS, load_digits_classifier, load_digits_network
from ..paths import Linear
from ..plans import Rho, plan
from ..rewards import ClassReward
from ..runs import RunFolder, clear_run
from ..steering import (
    SearchResult,
    Steering,
    SteeringResult,
    Twist,
    beam,
    best_of,
    greedy,
    steer,
)
from .pictures import Row, digit_image, image_grid, make_folder, save_png

__all__ = [
    "DIGITS_STD",
    "AlignReport",
    "MethodReport",
    "align",
    "digits_denoiser",
    "parse_class_reward",
    "search_of",
]

Result = TypeVar("Result", bound=SearchResult)
DIGITS_STD = 0.7  # of the digits' pixels in [-1, 1]
DIGITS_TWIST = Twist(sigma_data=DIGITS_STD)


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
    evaluations, gradients : int
        Forward and backward passes of the network per image returned.
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
    gradients: int
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
    gradients: int
    seconds: float


def align(
    out: str | os.PathLike[str],
    *,
    model: str = "digits",
    reward: str = "class:8",
    method: str = "steering",
    particles: int = 8,
    children: int = 2,
    transitions: int = 6,
    steps: int = 4,
    rho: Rho = 0.4,
    solver: str = "default",
    runs: int = 256,
    seed: int = 0,
    twist: float | Twist = DIGITS_TWIST,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> AlignReport:
    """Plain samples, best-of-N and steering or search, at equal network passes per image.

    Writes `alignment.png` (images before and after, bordered by the judge's verdict) and
    `results.json` into `out`, and a run's folder for each method (:mod:`glass_flows.runs`). `runs`
    independent populations give the standard errors.

    Parameters
    ----------
    method : str
        "steering" (without and with twisted noise), "beam" (N/w beams of w children), "greedy" or
        "svdd" (N/w particles of w children each, of which the best or a random one goes on).
    children : int
        w, for the searches; must divide N.
    twist : float or Twist
        0 leaves the line with twisted noise out.
    options
        The rest of :class:`~glass_flows.steering.Steering`; the searches know `scale`, `value`,
        `boundaries` and `guidance`.
    """
    check_name("model", model, ("digits",))
    check_name("method", method, ("steering", *_SEARCHES))
    label = parse_class_reward(reward)
    check_count("runs", runs, least=2)  # a standard error needs two
    denoiser = digits_denoiser()
    # Bad settings stop here, before the folder is made and anything is drawn.
    table = plan(denoiser.path, transitions=transitions, steps=steps, rho=rho, solver=solver)
    jobs: dict[str, Callable[..., SearchResult]] = {}
    if method == "steering":
        Steering(particles, twist=twist, **options).check(table)
        jobs["steering"] = partial(steer, particles=particles, **options)
        if Steering(particles, twist=twist).twisted:
            jobs["steering + twist"] = partial(jobs["steering"], twist=twist)
    else:
        jobs[method] = search_of(method, particles, children, options)
    folder = make_folder(out)
    score = ClassReward(load_digits_classifier("reward"), label)
    judge = load_digits_classifier("judge")
    shared: dict[str, Any] = {"shape": IMAGE, "populations": runs, "seed": seed}
    shared |= {"progress": progress}
    sampler = {"transitions": transitions, "steps": steps, "rho": rho, "solver": solver}
    told = {"model": model, "reward": reward, "seed": seed, "runs": runs}
    aligned = []
    for name, job in jobs.items():
        announce(f"{name}: {particles} particles, {runs} runs")
        settings = {**sampler, **options, "particles": particles, **getattr(job, "keywords", {})}
        keep = None
        if method == "steering":
            keep = _folder(folder, name, {**told, "method": name, "settings": settings})
        aligned.append(_timed(name, partial(job, denoiser, score, **sampler, **shared), keep))
    passes = max(one.evaluations + one.gradients for one, _ in aligned) // particles
    announce(f"plain and best of {particles}: ODE samples of {passes} evaluations, {runs} runs")
    best, many = _timed(
        f"best of {particles}",
        partial(
            best_of, denoiser, score, particles=particles, transitions=1, steps=passes, **shared
        ),
        _folder(
            folder,
            f"best of {particles}",
            {**told, "method": "best-of-n", "settings": {"particles": particles, "steps": passes}},
        ),
    )
    plain = _Returned(
        "plain", many.samples[:, 0], many.rewards[:, 0], None, passes, 0, best.seconds / particles
    )
    returned = [plain, best, *(one for one, _ in aligned)]
    verdicts = [judge(one.images).argmax(1) == label for one in returned]
    settings = {"model": model, "reward": reward, "method": method, "particles": particles}
    settings |= {"children": children} if method != "steering" else {"twist": twist}
    settings |= {"runs": runs, "seed": seed, **sampler, **options}
    settings = {k: v if isinstance(v, (int, float, str)) else repr(v) for k, v in settings.items()}
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
    payload = {
        "settings": settings,
        "methods": [asdict(method) for method in methods],
        "log_evidence": {
            one.method: result.log_evidence.tolist()
            for one, result in aligned
            if isinstance(result, SteeringResult)
        },
    }
    results.write_text(json.dumps(payload, indent=1) + "\n")
    return AlignReport(methods, picture, results)


_SEARCHES: dict[str, Callable[..., SearchResult]] = {
    "beam": beam,
    "greedy": greedy,
    "svdd": partial(greedy, pick="sample"),
}


def search_of(
    method: str, particles: int, children: int, options: dict[str, Any]
) -> Callable[..., SearchResult]:
    """A search of N particles in all, its options checked."""
    check_count("particles", particles)
    if particles % check_count("children", children):
        raise InvalidArgument(f"children = {children} must divide particles = {particles}")
    known = ("scale", "value", "boundaries", "guidance")
    foreign = sorted(set(options) - set(known))
    if foreign:
        raise InvalidArgument(
            f"method {method!r} has no {', '.join(foreign)}: it knows {', '.join(known)}"
        )
    Steering(particles, **options)
    parents = {"beams" if method == "beam" else "particles": particles // children}
    return partial(_SEARCHES[method], **parents, children=children, **options)


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
        returned.gradients,
        returned.seconds,
    )


def _folder(out: Path, name: str, job: dict[str, Any]) -> RunFolder:
    """Where a method's run is kept; a run of other settings, which took seconds, is replaced."""
    home = out / "runs" / re.sub(r"[^a-z0-9]+", "-", name)
    title = f"{job['reward']}: {name}"
    try:
        folder = RunFolder(home, job, title=title)
    except RunFolderError:
        clear_run(home)
        folder = RunFolder(home, job, title=title)
    folder.pictures = lambda z: [digit_image(image) for image in z]
    return folder


def _timed(
    name: str, work: Callable[..., Result], folder: RunFolder | None = None
) -> tuple[_Returned, Result]:
    start = time.perf_counter()
    result = work() if folder is None else work(record=folder)
    if folder is not None:
        folder.finish(result)
    runs = len(result.samples)
    return _Returned(
        name,
        result.best,
        result.rewards.amax(1),
        result.ess if isinstance(result, SteeringResult) else None,
        result.network_evaluations // runs,
        result.network_gradients // runs,
        time.perf_counter() - start,
    ), result


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over the runs and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)
