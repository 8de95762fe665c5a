"""The methods side by side on the Shapes pipeline: reward a CLIP, verdict the judge.

Every method hands back the best of its N particles by the reward; the judge, which no method sees,
says whether its prompt is met. λ and the scales are tuned by the judge on other prompts, and the
same trials, carried on to scales that are too large, show where the reward is hacked: the CLIP says
better, the judge says worse.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file, save
from torch import Tensor

from ..errors import InvalidArgument, check_count
from ..files import replace
from ..guidance import Guidance
from ..jobs import Job
from ..jobs.models import Shapes
from ..jobs.pictures import Strip, image_grid, make_folder, save_png
from ..measures import Measure, mean, share
from ..plans import Sampler
from ..progress import progress_bar
from ..steering import BestOf, Steering, Twist
from ..steering.loop import Watch
from ..worlds.shapes import CATEGORIES, SINGLE, TWO, Prompt, prompts
from .recipe import Contender, Recipe, judged, tune

__all__ = ["ShapesFigures", "ShapesReport", "compare_shapes", "methods", "plain_acceptance"]

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 8.0)  # λ, of a reward whose spread is about 7
_GUIDES = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)  # w, through the reward
_CAPS = (0.75, 1.5, 3.0)  # of the twist
_CHUNK = 10  # prompts that share a batch
_COLUMNS = 8  # of each half of the grid
_PLAIN, _BEST, _STEERED = "plain", "best-of-n", "steering"
_GUIDED, _TWISTED = "  + guidance", "  + twist"
_NUMBERS = ("rewards", "verdicts", "evaluations")  # kept of what was drawn, beside the images
_GROUPS = {"single object": SINGLE, "counting": ("counting",), "two objects": TWO}


@dataclass(frozen=True)
class ShapesFigures:
    """One method on the held-out prompts.

    Attributes
    ----------
    judge : dict
        Share of the returned images that the judge accepts, by category and over "all".
    gain : Measure
        What it accepts more than of best-of-N's, prompt by prompt.
    reward : Measure
        Mean reward of the returned images.
    evaluations : float
        Of the network, per image returned.
    tuned : Recipe
    """

    method: str
    judge: dict[str, Measure]
    gain: Measure
    reward: Measure
    evaluations: float
    tuned: Recipe


@dataclass(frozen=True)
class ShapesReport:
    methods: tuple[ShapesFigures, ...]
    table: Path
    results: Path
    picture: Path
    hacking: Path


@dataclass(frozen=True)
class _Returned:
    """What a method handed back: a best image, its reward and the verdict for every prompt."""

    images: list[Image.Image]
    rewards: np.ndarray[Any, Any]
    verdicts: np.ndarray[Any, Any]
    evaluations: float

    @property
    def merit(self) -> tuple[float, float]:
        return float(self.verdicts.mean()), float(self.rewards.mean())


@dataclass(frozen=True)
class _Asked:
    """What is compared, and how much of it."""

    prompts: int
    tuning_prompts: int
    particles: int
    evaluations: int
    reward: str
    seed: int


def methods(particles: int, transitions: int, steps: int) -> dict[str, Contender]:
    """The methods, by title: all spend K M evaluations on each of their particles.

    Guidance and twist take the λ that was chosen without them.
    """
    sampler = Sampler(transitions, steps, 0.4)
    scales = tuple(Recipe(Steering(particles, scale), sampler) for scale in _SCALES)
    guides = tuple(Guidance(w, "reward") for w in _GUIDES)
    listed = [
        Contender(_PLAIN, (_plain(transitions * steps),)),
        Contender(_BEST, (Recipe(BestOf(particles), sampler.baseline()),)),
        Contender(_STEERED, scales),
        Contender(_GUIDED, follows=_STEERED, aids=guides),
        Contender(_TWISTED, follows=_STEERED, aids=tuple(Twist(cap=cap) for cap in _CAPS)),
    ]
    return {one.title: one for one in listed}


def _plain(evaluations: int) -> Recipe:
    return Recipe(BestOf(1), Sampler.ode(evaluations))


def compare_shapes(
    out: str | os.PathLike[str],
    *,
    model: Shapes,
    reward: str = "clip",
    count: int = 120,
    tuning_count: int = 30,
    particles: int = 8,
    transitions: int = 6,
    steps: int = 4,
    seed: int = 0,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> ShapesReport:
    """Tune and run every method; write table, figures, grid and the plot of hacking into `out`.

    Parameters
    ----------
    reward : str
        A pre-trained one, by name.
    count, tuning_count : int
        Prompts of the parts "test" and "tune", the categories in turn.
    transitions, steps : int
        K M evaluations per particle, each of two passes of the network (`true_cfg_scale`).

    What was drawn is kept in ``out/drawn``: the same call after an interruption goes on from there.
    """
    check_count("count", count, least=2 * len(CATEGORIES))
    check_count("tuning_count", tuning_count, least=2)
    asked, tuning = prompts("test", count), prompts("tune", tuning_count)
    listed = methods(particles, transitions, steps)
    folder = make_folder(out)
    bench = _Bench(model, reward, seed, folder / "drawn")
    found: list[ShapesFigures] = []
    returned: dict[str, _Returned] = {}
    trials: dict[str, list[tuple[Recipe, _Returned]]] = {}
    tuned: dict[str, Recipe] = {}
    chunks = -(-count // _CHUNK) * len(listed)
    chunks += -(-tuning_count // _CHUNK) * sum(one.trials for one in listed.values())
    with progress_bar(chunks, progress, "comparing") as advance:
        for name, one in listed.items():
            tuned[name], trials[name] = tune(
                one.options(tuned), lambda recipe: bench.run(recipe, tuning, advance)
            )
            returned[name] = bench.run(tuned[name], asked, advance)
            baseline = returned.get(_BEST, returned[_PLAIN])
            figures = _figures(name, returned[name], baseline, asked, tuned[name])
            found.append(figures)
            announce(f"{name.strip()}: judge {figures.judge['all'].value:.1%}, {_brief(figures)}")
    evaluations = transitions * steps
    told = _Asked(count, tuning_count, particles, evaluations, bench.reward.name, seed)
    table, results = _write(folder, told, found, trials)
    hacking = _hacking(trials, folder / "hacking.png")
    announce("drawing the grid")
    picture = _grid(bench, _plain(evaluations), tuned[_STEERED], folder / "shapes.png")
    return ShapesReport(tuple(found), table, results, picture, hacking)


def plain_acceptance(
    model: Shapes, *, per_group: int = 100, evaluations: int = 24, seed: int = 0
) -> dict[str, Measure]:
    """What the judge accepts of plain samples for held-out prompts, by kinds of prompt.

    The part "test" holds few different sentences of a single object; they are drawn several times.
    """
    bench = _Bench(model, model.reward_name, seed)
    found = {}
    for group, categories in _GROUPS.items():
        sentences = _all_of("test", categories, per_group)
        asked = [sentences[i % len(sentences)] for i in range(per_group)]
        found[group] = share(bench.run(_plain(evaluations), asked).verdicts)
    return found


def _all_of(part: str, categories: Sequence[str], most: int) -> list[Prompt]:
    """As many different prompts as there are, at most so many."""
    while True:
        try:
            return prompts(part, most, categories=categories)
        except InvalidArgument:
            most -= 1


class _Bench:
    """Draws with a pipeline and judges; keeps what it drew in a folder, if it is given one."""

    def __init__(self, model: Shapes, reward: str, seed: int, folder: Path | None = None) -> None:
        self.model, self.named, self.seed, self.folder = model, reward, seed, folder
        self.reward = model.reward(_plain(1).job(model, reward=reward))
        if folder is not None:
            if not hasattr(self.reward, "network"):  # whose weights tell what was drawn with it
                raise InvalidArgument(
                    f"the comparison takes a pre-trained reward, as 'clip', got {reward!r}"
                )
            pipe = model.pipe
            parts = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
            self.weights = _fingerprint(*parts, self.reward.network)

    def run(
        self,
        recipe: Recipe,
        asked: Sequence[Prompt],
        advance: Callable[[], None] = lambda: None,
    ) -> _Returned:
        parts = []
        for i in range(0, len(asked), _CHUNK):
            sentences = tuple(map(str, asked[i : i + _CHUNK]))
            job = recipe.job(self.model, prompts=sentences, reward=self.named, seed=self.seed + i)
            parts.append(self._chunk(job))
            advance()
        return _Returned(
            [image for part in parts for image in part.images],
            np.concatenate([part.rewards for part in parts]),
            np.concatenate([part.verdicts for part in parts]),
            sum(part.evaluations for part in parts) / len(asked),
        )

    def _chunk(self, job: Job) -> _Returned:
        """The best image of every prompt of a job, and the evaluations of all."""
        file = None
        if self.folder is not None:
            key = json.dumps([job.as_json(), self.weights], sort_keys=True)
            file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
            if file.exists():
                return _read(file)
        result = self.model.run(job, Watch(progress=False))
        found = _Returned(
            result.best,
            result.rewards.amax(1).double().numpy(),
            np.array(judged(self.model, result), float),
            result.result.network_evaluations,
        )
        if file is not None:
            file.parent.mkdir(exist_ok=True)
            replace(file, _kept(found))
        return found


def _kept(one: _Returned) -> bytes:
    pixels = torch.from_numpy(np.stack([np.asarray(image) for image in one.images]))
    rest = {name: torch.tensor(getattr(one, name)) for name in _NUMBERS}
    return save({"images": pixels, **rest})


def _read(file: Path) -> _Returned:
    kept = load_file(file)
    images = [Image.fromarray(image.numpy()) for image in kept["images"]]
    rewards, verdicts, evaluations = (kept[name].numpy() for name in _NUMBERS)
    return _Returned(images, rewards, verdicts, float(evaluations))


def _fingerprint(*modules: Any) -> str:
    """A hash of weights: what was drawn with others is not taken for theirs."""
    found = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _figures(
    name: str, returned: _Returned, baseline: _Returned, asked: Sequence[Prompt], tuned: Recipe
) -> ShapesFigures:
    categories = np.array([prompt.category for prompt in asked])
    judge = {c: share(returned.verdicts[categories == c]) for c in CATEGORIES}
    return ShapesFigures(
        name,
        {**judge, "all": share(returned.verdicts)},
        mean(returned.verdicts - baseline.verdicts),
        mean(returned.rewards),
        returned.evaluations,
        tuned,
    )


def _brief(line: ShapesFigures) -> str:
    brief = line.tuned.brief()
    shown = ("transitions", "steps", "scale", "guidance", "twist")
    return ", ".join(f"{name} {brief[name]}" for name in shown if name in brief)


def _write(
    folder: Path,
    asked: _Asked,
    lines: Sequence[ShapesFigures],
    trials: Mapping[str, list[tuple[Recipe, _Returned]]],
) -> tuple[Path, Path]:
    table, results = folder / "shapes.md", folder / "shapes.json"
    table.write_text(_table(lines, asked), encoding="utf-8")
    curves = {
        name.strip(): [
            {**recipe.brief(), **dict(zip(("judge", "reward"), one.merit))} for recipe, one in tried
        ]
        for name, tried in trials.items()
        if tried
    }
    told = [{**asdict(line), "tuned": line.tuned.brief()} for line in lines]
    payload = {"settings": asdict(asked), "methods": told, "tuning": curves}
    results.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    return table, results


def _table(lines: Sequence[ShapesFigures], asked: _Asked) -> str:
    def percent(estimate: Measure) -> str:
        low, high = (100 * end for end in estimate.interval)
        return f"{100 * estimate.value:.0f} ({low:.0f} to {high:.0f})"

    columns = [*CATEGORIES, "all"]
    rows = [
        f"| method | {' | '.join(columns)} | more than best-of-N, points | reward "
        "| evaluations per image | tuned |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for line in lines:
        shares = " | ".join(percent(line.judge[c]) for c in columns)
        rows.append(
            f"| {line.method.strip()} | {shares} "
            f"| {100 * line.gain.value:+.0f} ± {196 * line.gain.error:.0f} "
            f"| {line.reward.value:.2f} ± {line.reward.error:.2f} | {line.evaluations:g} "
            f"| {_brief(line)} |"
        )
    notes = (
        "What the judge accepts, in percent (95 %), of the best image by the reward for each of "
        f"{asked.prompts} held-out prompts; {asked.particles} particles of "
        f"{asked.evaluations} evaluations, each of two passes of the network "
        f"(classifier-free guidance). Tuned by the judge on {asked.tuning_prompts} other "
        f"prompts. Seed {asked.seed}."
    )
    return "\n".join(rows) + "\n\n" + notes + "\n"


def _hacking(trials: Mapping[str, list[tuple[Recipe, _Returned]]], file: Path) -> Path:
    """Reward and judge over λ and over the scale of guidance."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, x, label in zip(
        axes, (_STEERED, _GUIDED), (_SCALES, _GUIDES), ("λ", "guidance scale w")
    ):
        judge, reward = zip(*(one.merit for _, one in trials[name]))
        axis.plot(x, [100 * value for value in judge], "o-", color="tab:green")
        axis.set(xscale="log", xlabel=label, ylim=(0, 100), title=name.strip())
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
        axis.set_ylabel("judge accepts, %", color="tab:green")
        other = axis.twinx()
        other.plot(x, reward, "s--", color="tab:purple")
        other.set_ylabel("reward", color="tab:purple")
    figure.savefig(file, dpi=110)
    return file


def _grid(bench: _Bench, plain: Recipe, steered: Recipe, file: Path) -> Path:
    """Two held-out prompts of each category: plain samples, and the best of as many populations."""
    asked = sorted(prompts("test", 2 * len(CATEGORIES)), key=lambda p: CATEGORIES.index(p.category))
    rows = []
    for prompt in asked:
        shown = [bench.run(recipe, [prompt] * _COLUMNS) for recipe in (plain, steered)]
        images = [np.asarray(image) for one in shown for image in one.images]
        verdicts = [bool(v) for one in shown for v in one.verdicts]
        pixels: Tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
        rows.append(Strip(f"{prompt}: plain, steered", pixels, verdicts))
    return save_png(image_grid(rows, 2 * _COLUMNS), file, settings=json.dumps(steered.brief()))
