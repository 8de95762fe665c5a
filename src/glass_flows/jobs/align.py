"""`glass-flows align`: steer a model towards a reward, and show what that is worth."""

from __future__ import annotations

import json
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InvalidArgument, RunFolderError, check_count
from ..images import ImageResult
from ..plans import Sampler
from ..runs import RunFolder, clear_run, started_by_torchrun
from ..steering import BestOf, Method, SearchResult, Shards, Steering, SteeringResult
from ..steering.loop import Watch
from .budget import chosen_for
from .job import Job
from .models import Digits, Model
from .pictures import Strip, digit_image, image_grid, make_folder, save_png

__all__ = ["Aligned", "Comparison", "Judged", "Line", "align", "compare_digits"]

Announce = Callable[[str], None]


# --- the digits: a comparison at equal cost -------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """One line of the table; every mean is over the populations, with its standard error.

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
        Wall time of all populations; for plain samples the share of the independent samples' time.
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
class Comparison:
    methods: tuple[Line, ...]
    picture: Path
    results: Path


@dataclass(frozen=True)
class _Returned:
    """What one method hands back: one image per population."""

    method: str
    images: Tensor
    rewards: Tensor
    ess: Tensor | None
    evaluations: int
    gradients: int
    seconds: float

    def line(self, verdict: Tensor) -> Line:
        ess = None if self.ess is None else float(self.ess.mean())
        figures = (*_mean(self.rewards), *_mean(verdict))
        return Line(self.method, *figures, ess, self.evaluations, self.gradients, self.seconds)


def compare_digits(
    job: Job,
    out: str | os.PathLike[str],
    *,
    model: Digits | None = None,
    methods: Mapping[str, Method] | None = None,
    progress: bool | None = None,
    announce: Announce = lambda text: None,
) -> Comparison:
    """Plain samples, best-of-N and a method or several, at equal network passes per image.

    Writes `alignment.png` (images before and after, bordered by the judge's verdict) and
    `results.json` into `out`, and a run's folder for each method (:mod:`glass_flows.runs`).
    `job.populations` independent ones give the standard errors; `methods` by title are those of
    the comparison, by default the job's own.
    """
    model = model or Digits(job.model, job.model.partition(":")[2], job.loading)
    check_count("populations", job.populations, least=2)  # a standard error needs two
    label = model.label(job)
    jobs = _jobs(job, methods)
    # Bad settings stop here, before the folder is made and anything is drawn.
    for one in jobs.values():
        one.method.check_table(one.sampler.plan(model.denoiser.path))
    folder = make_folder(out)
    particles = job.method.particles
    drawn = []
    for name, one in jobs.items():
        announce(f"{name}: {particles} particles, {job.populations} populations")
        drawn.append(_timed(name, model, one, folder, progress))
    returned = [one for one, _ in drawn]
    passes = max((r.evaluations + r.gradients for r in returned), default=0) // particles
    passes = passes or job.sampler.evaluations
    announce(f"plain and best of {particles}: ODE samples of {passes} evaluations")
    ode = replace(job, method=BestOf(particles), sampler=Sampler.ode(passes))
    best, many = _timed(f"best of {particles}", model, ode, folder, progress)
    plain = replace(
        best,
        method="plain",
        images=many.samples[:, 0],
        rewards=many.rewards[:, 0],
        ess=None,
        evaluations=passes,
        gradients=0,
        seconds=best.seconds / particles,
    )
    returned = [plain, best, *returned]
    evidence = {
        one.method: result.log_evidence.tolist()
        for one, result in drawn
        if isinstance(result, SteeringResult)
    }
    return _write_comparison(job, label, model, returned, evidence, folder)


def _jobs(job: Job, methods: Mapping[str, Method] | None) -> dict[str, Job]:
    """The job of every method; best-of-N stands in the table anyway."""
    if methods is None:
        methods = {} if isinstance(job.method, BestOf) else {job.method.word: job.method}
    return {name: replace(job, method=method) for name, method in methods.items()}


def _write_comparison(
    job: Job,
    label: int,
    model: Digits,
    returned: Sequence[_Returned],
    evidence: Mapping[str, list[float]],
    folder: Path,
) -> Comparison:
    judge = model.classifiers["judge"]
    verdicts = [judge(one.images).argmax(1) == label for one in returned]
    lines = tuple(one.line(verdict) for one, verdict in zip(returned, verdicts))
    rows = [
        Strip(
            f"{line.method}: {line.evaluations} network evaluations per image, "
            f"reward {line.reward:.2f}, judge says {label}: {line.accuracy:.0%}",
            one.images[:32],
            verdict[:32].tolist(),
        )
        for line, one, verdict in zip(lines, returned, verdicts)
    ]
    picture = folder / "alignment.png"
    save_png(image_grid(rows), picture, settings=json.dumps(job.as_json()))
    results = folder / "results.json"
    payload = {
        "job": job.as_json(),
        "methods": [asdict(line) for line in lines],
        "log_evidence": evidence,
    }
    results.write_text(json.dumps(payload, indent=1) + "\n")
    return Comparison(lines, picture, results)


def _timed(
    name: str, model: Digits, job: Job, out: Path, progress: bool | None
) -> tuple[_Returned, SearchResult]:
    """Run a job in its folder; a run of other settings, which took seconds, is replaced."""
    home = out / "runs" / re.sub(r"[^a-z0-9]+", "-", name)
    title = f"{job.title}: {name}"
    try:
        record = RunFolder(home, job.as_json(), title=title)
    except RunFolderError:
        clear_run(home)
        record = RunFolder(home, job.as_json(), title=title)
    record.pictures = lambda z: [digit_image(image) for image in z]
    start = time.perf_counter()
    result = model.steer(job, Watch(record, progress=progress))
    record.finish(result)
    count = len(result.samples)
    return _Returned(
        name,
        result.best,
        result.rewards.amax(1),
        result.ess if isinstance(result, SteeringResult) else None,
        result.network_evaluations // count,
        result.network_gradients // count,
        time.perf_counter() - start,
    ), result


def _mean(values: Tensor) -> tuple[float, float]:
    """Mean over the populations and its standard error."""
    values = values.double()
    return float(values.mean()), float(values.std() / len(values) ** 0.5)


# --- images of prompts ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Judged:
    """Whether the model's judge accepts each image, for every prompt.

    Attributes
    ----------
    plain : list of list of bool
        Of as many plain samples as there are particles.
    returned : list of list of bool
        Of the images of the run.
    """

    plain: list[list[bool]]
    returned: list[list[bool]]


@dataclass(frozen=True)
class Aligned:
    """What was written, and the figures of the run.

    Attributes
    ----------
    rewards : list of list of float
        For every prompt those of its particles.
    evaluations, gradients : int
        Forward and backward passes of the network in all.
    biases : tuple of str
        Reasons for which the weighted particles miss the target; empty for exact weights.
    judged : Judged, optional
        For models with a judge.
    """

    images: tuple[Path, ...]
    picture: Path
    results: Path
    prompts: tuple[str, ...]
    rewards: list[list[float]]
    evaluations: int
    gradients: int
    biases: tuple[str, ...]
    judged: Judged | None = None


def align(
    model: Model,
    job: Job,
    out: str | os.PathLike[str],
    *,
    budget: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Announce = lambda text: None,
) -> Aligned:
    """Draw a job and write every image, a sheet of them and the figures into `out`.

    `out` is the folder of the run (:mod:`glass_flows.runs`): one that was stopped goes on where it
    was. Under torchrun the particles are dealt out to all processes, of which the first writes.
    Where the model has a judge, the sheet also holds as many plain samples, and what it says of
    both.

    Parameters
    ----------
    budget : str, optional
        A time ("2min") or a number of network evaluations ("2000") for the run, instead of
        `particles`, `transitions` and `steps`; see :mod:`.budget`.
    overwrite : bool
        Throw away another run that is in `out`.
    """
    dealt_out = job.micro_batch is not None or started_by_torchrun()
    if budget is not None and dealt_out:
        raise InvalidArgument("--budget measures one process: not under torchrun, no --micro-batch")
    model.reward(job)
    folder = make_folder(out)
    shards = Shards(job.micro_batch) if dealt_out else None
    first = shards is None or shards.rank == 0
    model.load()
    if budget is not None:
        job = job.sized(*chosen_for(budget, folder, lambda *n: trial(model, job, *n), announce))
    if overwrite:
        if first:
            clear_run(folder)
        if shards is not None:
            shards.total(0)  # the others wait until it is gone
    record = RunFolder(folder, job.as_json(), title=job.title, writes=first)
    watch = Watch(record if model.records else None, progress=progress if first else False)
    with record.failures():
        result = model.run(job, watch, shards)
    names = [file.name for file in result.save(folder)] if first else []
    N = result.rewards.shape[1]
    record.finish(result.result, [names[i : i + N] for i in range(0, len(names), N)])
    judged, sheet = None, _sheet(result.images, result.rewards)
    if first and (verdicts := model.judge(result)) is not None:
        plain = model.run(_plain(job), Watch(progress=progress))
        judged = Judged(model.judge(plain) or [], verdicts)
        sheet = _judged_sheet(job, plain, result, judged)
    return _write(job, result, judged, sheet, folder, names)


def trial(model: Model, job: Job, particles: int, transitions: int, steps: int) -> int:
    """Draw once with so many particles, without keeping anything; the evaluations it took."""
    sized = replace(job, method=Steering()).sized(particles, transitions, steps)
    return model.run(sized, Watch(progress=False)).result.network_evaluations


def _plain(job: Job) -> Job:
    """As many samples of the ODE at the same evaluations, with the classifier-free guidance of the
    model's own."""
    method = BestOf(job.method.particles)
    return replace(job, method=method, sampler=job.sampler.baseline(), micro_batch=None)


def _write(
    job: Job,
    result: ImageResult,
    judged: Judged | None,
    sheet: Image.Image,
    folder: Path,
    names: Sequence[str],
) -> Aligned:
    costs, found = result.result.costs, result.result
    weighted = found if isinstance(found, SteeringResult) else None
    aligned = Aligned(
        images=tuple(folder / name for name in names),
        picture=folder / "best-first.png",
        results=folder / "results.json",
        prompts=job.prompts,
        rewards=result.rewards.tolist(),
        evaluations=costs.network_evaluations,
        gradients=costs.network_gradients,
        biases=weighted.biases if weighted else (),
        judged=judged,
    )
    data: dict[str, Any] = {
        "job": job.as_json(),
        "prompts": list(job.prompts),
        "rewards": aligned.rewards,
        "log_weights": weighted and weighted.log_weights.tolist(),
        "log_evidence": weighted and weighted.log_evidence.tolist(),
        **asdict(costs),
        "biases": list(aligned.biases),
    }
    if judged is not None:
        data["judge_accepts"] = asdict(judged)
    if names:
        sheet.save(aligned.picture)
        aligned.results.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return aligned


def _judged_sheet(job: Job, plain: ImageResult, result: ImageResult, judged: Judged) -> Image.Image:
    """For every prompt the plain samples and those of the method, best first."""
    return image_grid(
        [
            _row(f"{prompt}: {name}", shown.images[i], shown.rewards[i], accepted[i])
            for i, prompt in enumerate(job.prompts)
            for name, shown, accepted in (
                ("plain", plain, judged.plain),
                (job.method.word, result, judged.returned),
            )
        ]
    )


def _row(caption: str, images: list[Image.Image], rewards: Tensor, accepted: list[bool]) -> Strip:
    """The images of one prompt, best first."""
    order = rewards.argsort(descending=True).tolist()
    arrays = np.stack([np.asarray(images[i].convert("RGB")) for i in order])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
    return Strip(caption, pixels, [accepted[i] for i in order])


def _sheet(images: list[list[Image.Image]], rewards: Tensor) -> Image.Image:
    """One row per prompt, best image first, at most 256 pixels a side each."""
    first = images[0][0]
    scale = min(1.0, 256 / max(first.size))
    size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    sheet = Image.new("RGB", (size[0] * len(images[0]), size[1] * len(images)), "white")
    for row, (line, values) in enumerate(zip(images, rewards)):
        for column, i in enumerate(values.argsort(descending=True).tolist()):
            tile = line[i].convert("RGB").resize(size)
            sheet.paste(tile, (column * size[0], row * size[1]))
    return sheet
