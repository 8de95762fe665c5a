"""`glass-flows align`: steer a model towards a reward, and show what that is worth."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InvalidArgument, check_count
from ..files import replace as replace_file
from ..folders import alone, alone_in_out
from ..images import ImageResult
from ..plans import Sampler
from ..runs import RESULT, RunFolder, clear_run, find_runs, read_run, started_by_torchrun
from ..runs.record import mean
from ..runs.result import loose
from ..steering import (
    BestOf,
    Costs,
    Method,
    Refine,
    SearchResult,
    Shards,
    Steering,
    WeightedResult,
    over_optimised,
)
from ..steering.loop import Watch
from ..steering.pilot import EVALUATIONS, SAMPLES, needs_pilot
from .budget import Kept, choose, told, ways
from .job import Job
from .models import Digits, Model
from .pictures import Strip, digit_image, image_grid, save_png

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
    also : dict of (float, float)
        Mean of each held-out reward of them, with its standard error.
    ess : float or None
        Mean effective sample size over boundaries; None where nothing is weighted.
    evaluations, gradients : int
        Forward and backward passes of the network per image returned.
    seconds : float
        Wall time of all populations; for plain samples the share of the independent samples' time.
    strength : str
        How strongly it has steered; "" of what does not steer.
    """

    method: str
    reward: float
    reward_error: float
    accuracy: float
    accuracy_error: float
    also: dict[str, tuple[float, float]]
    ess: float | None
    evaluations: int
    gradients: int
    seconds: float
    strength: str = ""


@dataclass(frozen=True)
class Comparison:
    methods: tuple[Line, ...]
    picture: Path
    results: Path
    warnings: tuple[str, ...] = ()


@alone_in_out
def compare_digits(
    job: Job,
    out: str | os.PathLike[str],
    *,
    model: Digits | None = None,
    methods: Mapping[str, Method] | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Announce = lambda text: None,
) -> Comparison:
    """Plain samples, best-of-N and a method or several, at equal network passes per image.

    Writes `alignment.png` (images before and after, bordered by the judge's verdict) and
    `comparison.json` into `out`, and a run's folder for each method (:mod:`glass_flows.runs`).
    `job.populations` independent ones give the standard errors; `methods` by title are those of
    the comparison, by default the job's own. What is finished in the folder is not drawn again;
    `overwrite` throws away what was drawn there with other settings.
    """
    model = model or Digits(job.model, job.model.partition(":")[2], job.loading)
    check_count("populations", job.populations, least=2)  # a standard error needs two
    label = model.label(job)
    if methods is None:  # best-of-N stands in the table anyway
        methods = {} if isinstance(job.method, BestOf) else {job.method.word: job.method}
    # Bad settings stop here, before the folder is made and anything is drawn.
    for method in methods.values():
        method.check_table(job.sampler.plan(model.denoiser.path))
        method.check_guidance(model.denoiser.cfg_scale)
    folder, N, count = Path(out), job.method.particles, job.populations
    if overwrite:
        for run in find_runs(folder / "runs"):
            clear_run(run)
    draw = partial(_timed, model, folder, progress, announce)
    drawn = {name: draw(name, replace(job, method=method)) for name, method in methods.items()}
    spent = [result.costs for result, _ in drawn.values()]
    passes = max((c.network_evaluations + c.network_gradients for c in spent), default=0)
    passes = passes // (N * count) or job.method.evaluations(job.sampler)
    ode = replace(job, method=BestOf(N), sampler=Sampler.ode(passes), init=())
    best, seconds = draw(f"best of {N}", ode)
    plain = SearchResult(  # one of those, at its share of the cost
        best.samples[:, :1],
        best.rewards[:, :1],
        best.ancestry[..., :1],
        Costs(best.network_evaluations // N),
        also={name: values[:, :1] for name, values in best.also.items()},
    )
    lines, rows = [], []
    every = {"plain": (plain, seconds / N), f"best of {N}": (best, seconds), **drawn}
    for name, (result, seconds) in every.items():
        verdict = model.classifiers["judge"](result.best).argmax(1) == label
        lines.append(_line(name, result, verdict, seconds))
        told = f"{lines[-1].evaluations} network evaluations per image"
        figures = f"reward {lines[-1].reward:.2f}, judge says {label}: {lines[-1].accuracy:.0%}"
        rows.append(Strip(f"{name}: {told}, {figures}", result.best[:32], verdict[:32].tolist()))
    results = {name: result for name, (result, _) in drawn.items()}
    warnings = _all_warnings(job, best, results)
    settings = job.as_json()
    picture, table = folder / "alignment.png", folder / "comparison.json"
    save_png(image_grid(rows), picture, settings=json.dumps(settings))
    evidence = {
        name: result.log_evidence.tolist()
        for name, result in results.items()
        if isinstance(result, WeightedResult)
    }
    found = {"methods": list(map(asdict, lines)), "log_evidence": evidence}
    payload = {"job": settings, **found, "warnings": warnings}
    replace_file(table, (json.dumps(payload, indent=1) + "\n").encode())
    return Comparison(tuple(lines), picture, table, warnings)


def _all_warnings(
    job: Job, plain: SearchResult, results: Mapping[str, SearchResult]
) -> tuple[str, ...]:
    """Of every method, by itself and beside plain samples."""
    return tuple(
        f"{name}: {one}"
        for name, result in results.items()
        for one in (*result.warnings, *_beside_plain(job, plain, result))
    )


def _beside_plain(job: Job, plain: SearchResult, result: SearchResult) -> list[str]:
    """Where a result is over-optimised beside plain samples."""
    scale = 0.0 if result.strength is None else result.strength.scale
    if not job.also or not scale:
        return []
    return list(map(str, over_optimised({0.0: plain, scale: result})))


def _timed(
    model: Digits, out: Path, progress: bool | None, announce: Announce, name: str, job: Job
) -> tuple[SearchResult, float]:
    """Run a job in its folder, or take what it has come to; and the seconds it took."""
    home = out / "runs" / re.sub(r"[^a-z0-9]+", "-", name)
    title = f"{job.title}: {name}"
    weights = {**model.weights(job.reward, job.also), **job.beginnings()}
    record = RunFolder(home, job.as_json(), title=title, weights=weights)
    if record.finished:
        record.check()
        announce(f"{name}: finished already")
        return record.result(), read_run(home).figures["seconds"]
    announce(f"{name}: {job.method.particles} particles, {job.populations} populations")
    record.pictures = lambda z: [digit_image(image) for image in z]
    result = model.steer(job, Watch(record, progress=progress))
    record.finish(result)
    return result, read_run(home).figures["seconds"]


def _line(name: str, result: SearchResult, verdict: Tensor, seconds: float) -> Line:
    best = result.rewards.argmax(1, keepdim=True)
    return Line(
        name,
        *_mean(result.rewards.amax(1)),
        *_mean(verdict),
        {name: _mean(values.gather(1, best)) for name, values in result.also.items()},
        float(result.ess.mean()) if isinstance(result, WeightedResult) else None,
        result.network_evaluations // len(verdict),
        result.network_gradients // len(verdict),
        seconds,
        "" if result.strength is None or name.startswith("best of") else str(result.strength),
    )


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
    means : dict of dict of float
        With held-out rewards: of "plain" samples and of the method, the mean of "reward" and of
        each of them over all images.
    warnings : tuple of str
        Where the run is over-optimised.
    strength : str
        How strongly the run has steered, in one line; "" of a run of before there was such a line.
    videos : bool
        Whether videos lie beside the images, which are their contact sheets.
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
    means: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    warnings: tuple[str, ...] = ()
    strength: str = ""
    videos: bool = False


def align(
    model: Model,
    job: Job,
    out: str | os.PathLike[str],
    *,
    budget: str | None = None,
    others: Sequence[Job] = (),
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Announce = lambda text: None,
) -> Aligned:
    """Draw a job and write every image, a sheet of them and the figures into `out`.

    `out` is the folder of the run (:mod:`glass_flows.runs`): one that was stopped goes on where it
    was, and of one that is finished only the figures are read. Under torchrun the particles are
    dealt out to all processes, of which the first writes. Where the model has a judge, the sheet
    also holds as many plain samples, and what it says of both; with held-out rewards plain samples
    are drawn, too, and scored beside.

    Parameters
    ----------
    budget : str, optional
        A time ("2min") or a number of network evaluations ("2000") for the run, instead of
        `particles`, `transitions` and `steps`; see :mod:`.budget`.
    others : sequence of Job
        The same by other methods, one of which may be drawn in its place: within a budget it is
        the one whose looks and evaluations are worth most.
    overwrite : bool
        Throw away another run that is in `out`.
    """
    dealt_out = job.micro_batch is not None or started_by_torchrun()
    if budget is not None and dealt_out:
        raise InvalidArgument("--budget measures one process: not under torchrun, no --micro-batch")
    folder, shards = Path(out), Shards(job.micro_batch) if dealt_out else None
    first = shards is None or shards.rank == 0
    with alone(folder) if first else nullcontext():
        if overwrite:
            if first:
                clear_run(folder)
            if shards is not None:
                shards.total(0)  # the others wait until it is gone
        if budget is not None:
            every = [job, *others]
            (job,) = within(budget, model, [every], folder, announce)
        if not (folder / RESULT).exists():
            model.reward(job), model.beside(job)
            model.load()
        weights = {**model.weights(job.reward, job.also), **job.beginnings()}
        record = RunFolder(folder, job.as_json(), title=job.title, writes=first, weights=weights)
        if record.finished:
            record.check()
            announce("finished already: nothing is drawn")
            return _kept(job, record)
        return _drawn(model, job, record, shards, progress)


def _drawn(
    model: Model, job: Job, record: RunFolder, shards: Shards | None, progress: bool | None
) -> Aligned:
    """Draw, and write what came out: last of all that it is finished."""
    watch = Watch(record if model.records else None, progress=progress if record.writes else False)
    with record.failures():
        result = model.run(job, watch, shards)
    if not record.writes:
        return _aligned(job, result.result, record.folder)
    folder = record.folder
    files = result.write(folder)
    told = result.beside(files)
    judged, sheet = None, result.sheet()
    verdicts, plain = model.judge(result), None
    if verdicts is not None or job.also:
        plain = model.run(_plain(job, model.guidance(job)), Watch(progress=progress))
    if plain is not None:
        told |= {"plain": plain.result, "plain_files": plain.write(folder, "plain-")}
        if job.also:
            told["warnings"] = _beside_plain(job, plain.result, result.result)
    if plain is not None and verdicts is not None:
        judged = Judged(model.judge(plain) or [], verdicts)
        sheet = _judged_sheet(job, plain, result, judged)
    save_png(sheet, folder / "best-first.png", settings=json.dumps(job.as_json()))
    record.finish(
        result.result,
        files,
        prompts=result.prompts,
        seed=job.seed,
        accepted=judged and judged.returned,
        plain_accepted=judged and judged.plain,
        **told,
    )
    return _kept(job, record)


def _kept(job: Job, record: RunFolder) -> Aligned:
    """Of a run that is finished."""
    found = read_run(record.folder)
    populations = (found.result or {}).get("populations", ())
    plain = [p["plain_accepted"] for p in populations if p["plain_accepted"] is not None]
    judged = None
    if plain:
        judged = Judged(plain, [[bool(one.accepted) for one in row] for row in found.samples])
    files = [one.file for row in found.samples for one in row if one.file is not None]
    told = found.result if job.also else None
    aligned = _aligned(job, record.result(), record.folder, files, judged, told)
    return replace(aligned, videos=any(one.video for row in found.samples for one in row))


def _aligned(
    job: Job,
    result: SearchResult,
    folder: Path,
    files: Sequence[str] = (),
    judged: Judged | None = None,
    told: Mapping[str, Any] | None = None,
) -> Aligned:
    return Aligned(
        images=tuple(folder / name for name in files),
        picture=folder / "best-first.png",
        results=folder / RESULT,
        prompts=job.prompts,
        rewards=result.rewards.tolist(),
        evaluations=result.network_evaluations,
        gradients=result.network_gradients,
        biases=vars(result).get("biases", ()),
        judged=judged,
        means={} if told is None else _means(job, told),
        warnings=result.warnings if told is None else tuple(told["warnings"]),
        strength="" if result.strength is None else str(result.strength),
    )


def _means(job: Job, told: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """Of plain samples and of those of a result.json: the mean of every reward over all images."""
    plain = [one for population in told["populations"] for one in population["plain"] or ()]
    found = {}
    for name, samples in {"plain": plain, job.method.word: told["samples"]}.items():
        every = [{"reward": one["reward"], **one["also"]} for one in map(loose, samples)]
        found[name] = {text: mean([one[text] for one in every]) for text in ("reward", *job.also)}
    return found


def within(
    budget: str,
    model: Model,
    every: Sequence[Sequence[Job]],
    folder: Path,
    announce: Announce,
    load: Callable[[], object] | None = None,
) -> list[Job]:
    """Of each of some lists of jobs the best, in the sizes for a budget.

    Prices are measured on the very first job, and kept in the folder with what was chosen; nothing
    is loaded where that is known.
    """
    first = every[0][0]
    about = replace(first, prompts=(), seed=0, method=Steering(), init=(), also=()).as_json()
    kept = Kept(budget, folder, about)
    if not all(kept.choice(jobs) for jobs in every):
        (load or model.load)()  # or its time would be taken for that of an evaluation
    return [_within(kept, model, jobs, first, announce) for jobs in every]


def _within(kept: Kept, model: Model, jobs: Sequence[Job], first: Job, announce: Announce) -> Job:
    """The best of some jobs in the sizes for a budget."""
    if (known := kept.choice(jobs)) is None:
        possible = _possible(model, jobs)
        guidance, share = model.guidance(first), model.share(first)
        for job in possible:
            model.check_method(job.method)
            job.method.check_guidance(guidance)
        among = [way for job in possible for way in ways(job, guidance, share)]
        prices, left = kept.prices(partial(_trial, model, first), among, announce)
        pilot = 0.0
        if any(needs_pilot(job.method, model.reward(job)) for job in possible):
            of_each = max(2, -(-SAMPLES // max(1, len(jobs[0].prompts))))
            pilot = of_each * (EVALUATIONS * prices.evaluation + prices.look)
        split = choose(prices, left, among, pilot)
        known = split.sized(guidance), told(split, prices, kept.budget)
        kept.choose(jobs, *known)
    job, text = known
    announce(text)
    return job


def _trial(model: Model, job: Job, particles: int, transitions: int, steps: int) -> int:
    """Draw once, without keeping anything; the evaluations it took."""
    sized = replace(job, method=Steering(scale=1.0), init=(), also=())
    if model.share(job) < 1.0:  # of twice as many transitions one half
        sized, transitions = replace(sized, call={**job.call, "strength": 0.5}), 2 * transitions
    sized = sized.sized(particles, transitions, steps)
    return model.run(sized, Watch(progress=False)).result.network_evaluations


def _possible(model: Model, jobs: Sequence[Job]) -> Sequence[Job]:
    """Without refinement where a pipeline's own loop is run, unless it was asked for by itself."""
    return [job for job in jobs if model.records or not isinstance(job.method, Refine)] or jobs


def _plain(job: Job, guidance: float) -> Job:
    """As many samples of the ODE at the same evaluations, with the classifier-free guidance of the
    model's own."""
    method = BestOf(job.method.particles, scale=0.0)
    sampler = job.sampler.baseline(job.method.evaluations(job.sampler, guidance))
    return replace(job, method=method, sampler=sampler, micro_batch=None, init=())


def _judged_sheet(job: Job, plain: ImageResult, result: ImageResult, judged: Judged) -> Image.Image:
    """For every prompt the plain samples and those of the method, best first."""
    rows = []
    for i, prompt in enumerate(job.prompts):
        for name, shown, accepted in (
            ("plain", plain, judged.plain[i]),
            (job.method.word, result, judged.returned[i]),
        ):
            order = shown.rewards[i].argsort(descending=True).tolist()
            arrays = np.stack([np.asarray(shown.rows[i][k].convert("RGB")) for k in order])
            pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
            rows.append(Strip(f"{prompt}: {name}", pixels, [accepted[k] for k in order]))
    return image_grid(rows)
