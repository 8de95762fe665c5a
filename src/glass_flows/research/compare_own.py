"""The methods side by side on anybody's model: own prompts, own reward, equal network evaluations.

Every prompt is drawn by every method, in a folder of its own (a batch); differences are taken
prompt by prompt. There is no judge: what is compared is the reward that was steered towards, and
`glass-flows evaluate` scores the same images by another one.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from ..errors import InvalidArgument, check_count
from ..files import replace as replace_file
from ..files import written
from ..folders import alone_in_out
from ..jobs.batch import run_batch
from ..jobs.items import Work, items_of
from ..jobs.job import Job
from ..jobs.models import Model
from ..jobs.prompts import PromptEntry
from ..measures import Measure, mean
from ..pixels import contact_sheet, open_image
from ..plans import Sampler
from ..runs import RunRecord, read_run
from ..steering import BestOf, Steering
from .recipe import Recipe, Report, refinement
from .writing import write_json, write_markdown

_PLAIN, _BEST = "plain", "best-of-n"
_SHOWN, _LONGEST = 12, 256  # prompts of the sheet, and pixels of an image there


@dataclass(frozen=True)
class OwnFigures:
    """One method on all prompts; errors are standard errors over the prompts.

    Attributes
    ----------
    reward : Measure
        Of the best image for each prompt.
    gain : Measure
        By which that is higher than best-of-N's, prompt by prompt.
    wins : Measure
        Share of prompts on which it is higher; equal ones count half.
    apart : Measure or None
        Root mean square difference between two images returned for a prompt, of pixels in [0, 1].
    evaluations, rewards : float
        Network evaluations and rewards for each prompt.
    seconds : float
        For each prompt.
    memory : float or None
        GiB of the GPU at its peak.
    """

    method: str
    reward: Measure
    gain: Measure
    wins: Measure
    apart: Measure | None
    evaluations: float
    rewards: float
    seconds: float
    memory: float | None


def recipes(
    particles: int, evaluations: int, scale: float, guidance: float = 1.0
) -> dict[str, Recipe]:
    """The methods by name, all with so many evaluations for each of their particles.

    `guidance` is that of the model's network: under it the moves of refinement take more.
    """
    transitions = max(1, evaluations // 4)
    return {
        _PLAIN: Recipe(BestOf(1), Sampler.ode(evaluations)),
        _BEST: Recipe(BestOf(particles), Sampler.ode(evaluations)),
        "steering": Recipe(Steering(particles, scale), Sampler(transitions, 4, 0.4)),
        "refine": refinement(particles, scale, evaluations, guidance),
    }


@alone_in_out
def compare_own(
    out: str | os.PathLike[str],
    *,
    model: Model,
    job: Job,
    entries: Sequence[PromptEntry],
    scale: float,
    evaluations: int = 24,
    particles: int = 8,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Report[OwnFigures]:
    """Draw every prompt by every method; table, figures, and a sheet of the best images in `out`.

    Parameters
    ----------
    model : Model
        The one of the job.
    job : Job
        Reward, call and seed; its method and sampler are those of the comparison.
    scale : float
        λ of steering and refinement.
    evaluations, particles : int
        Of the network for each particle, and how many there are.

    The same call after an interruption goes on from there.
    """
    check_count("particles", particles, least=2)
    check_count("prompts", len(entries), least=2)  # a standard error needs two
    check_count("evaluations", evaluations)
    ways = recipes(particles, evaluations, scale, model.guidance(job))
    jobs = {n: replace(job, method=r.method, sampler=r.sampler) for n, r in ways.items()}
    items, folder = items_of(entries, [job.seed], list(jobs)), Path(out)
    report = run_batch(Work(jobs), items, folder, model=model, progress=progress, announce=announce)
    if report.failed or report.left:
        raise InvalidArgument(
            f"{report.failed} of {len(items)} runs failed and {report.left} are left, see "
            f"{str(report.table)!r}; the same command tries them again"
        )
    drawn = {name: [read_run(folder / i.name) for i in items if i.method == name] for name in jobs}
    base = _best_rewards(drawn[_BEST])
    lines = tuple(_figures(name, runs, base) for name, runs in drawn.items())
    settings: dict[str, Any] = {
        "model": job.model,
        "reward": job.reward,
        "prompts": len(entries),
        "particles": particles,
        "evaluations": evaluations,
        "scale": scale,
        "seed": job.seed,
    }
    table = write_markdown(folder / "comparison.md", "own", lines=lines, **settings)
    told = [asdict(line) for line in lines]
    results = write_json(folder / "comparison.json", {"settings": settings, "methods": told})
    return Report(lines, table, results, _sheet(drawn, folder / "comparison.png"))


def _best(run: RunRecord) -> Any:
    return max(run.samples[0], key=lambda sample: (not math.isnan(sample.reward), sample.reward))


def _best_rewards(runs: Sequence[RunRecord]) -> np.ndarray[Any, Any]:
    return np.array([_best(run).reward for run in runs])


def _figures(name: str, runs: Sequence[RunRecord], base: np.ndarray[Any, Any]) -> OwnFigures:
    rewards, costs = _best_rewards(runs), [run.figures["costs"] for run in runs]
    # Two batch sizes round differently: what differs by that alone is the same image.
    gain = np.where(np.isclose(rewards, base, rtol=1e-5), 0.0, rewards - base)
    apart = [_apart(run) for run in runs] if len(runs[0].samples[0]) > 1 else []
    peaks = [event["peak_memory"] for run in runs for event in run.events if "peak_memory" in event]
    return OwnFigures(
        name,
        mean(rewards),
        mean(gain),
        mean((np.sign(gain) + 1.0) / 2.0),
        mean(np.array(apart)) if apart else None,
        float(np.mean([cost["network_evaluations"] for cost in costs])),
        float(np.mean([cost["reward_evaluations"] for cost in costs])),
        float(np.mean([run.figures["seconds"] for run in runs])),
        max(peaks) / 2**30 if peaks else None,
    )


def _apart(run: RunRecord) -> float:
    images = [np.asarray(_image(run, sample.file), float) / 255.0 for sample in run.samples[0]]
    flat = [image.ravel() for image in images]
    pairs = [(i, k) for i in range(len(flat)) for k in range(i)]
    return float(np.mean([np.sqrt(np.mean((flat[i] - flat[k]) ** 2)) for i, k in pairs]))


def _image(run: RunRecord, file: str | None) -> Image.Image:
    return open_image(run.folder / (file or "")).convert("RGB")


def _sheet(drawn: Mapping[str, Sequence[RunRecord]], file: Path) -> Path:
    """A row for each of the first prompts: the best image of each method, in their order."""
    columns = [runs[:_SHOWN] for runs in drawn.values()]
    rows = [[_image(run, _best(run).file) for run in row] for row in zip(*columns)]
    sheet = contact_sheet(rows, _LONGEST, Image.Resampling.BICUBIC)
    replace_file(file, written(partial(sheet.save, format="PNG")))
    return file
