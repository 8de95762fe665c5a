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
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save

from ..errors import InvalidArgument, WeightsFileError, check_count
from ..files import replace, written
from ..folders import alone_in_out
from ..guidance import Guidance
from ..jobs import Job
from ..jobs.models import Shapes
from ..jobs.pictures import Strip, image_grid, make_folder, save_png
from ..measures import Measure, mean, share
from ..plans import Sampler
from ..progress import progress_bar
from ..steering import BestOf, Steering, Twist
from ..steering.loop import Watch
from ..stops import keep
from ..worlds.shapes import CATEGORIES, Prompt, prompts
from .recipe import (
    Entry,
    Methods,
    Recipe,
    Report,
    Returned,
    contest,
    judged,
    refinement,
    trials,
    write_contest,
)
from .writing import blank_plot, key_of

_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 8.0)  # λ, of a reward whose spread is about 10
# Half way the CLIP is asked about what is no picture yet: all of λ at once follows one lucky guess.
_ADAPTIVE = "adaptive:0.5"
_GUIDES = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)  # w, through the reward
_CAPS = (0.75, 1.5, 3.0)  # of the twist
_CHUNK = 10  # prompts that share a batch
_COLUMNS = 8  # of each half of the grid
_PLAIN, _BEST, _STEERED = "plain", "best-of-n", "steering"
_GUIDED, _TWISTED = "  + guidance", "  + twist"
_NUMBERS = ("rewards", "verdicts", "evaluations")  # kept of what was drawn, beside the images


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


def methods(particles: int, transitions: int, steps: int, guidance: float = 1.0) -> Methods:
    """The methods by title: all spend K M evaluations on each of their particles, of a network
    under this classifier-free guidance.

    Guidance and twist take the λ that was chosen without them.
    """
    sampler = Sampler(transitions, steps, 0.4)
    return {
        _PLAIN: [_plain(transitions * steps)],
        _BEST: [Recipe(BestOf(particles), sampler.baseline())],
        _STEERED: [Recipe(Steering(particles, s, schedule=_ADAPTIVE), sampler) for s in _SCALES],
        _GUIDED: [Guidance(w) for w in _GUIDES],
        _TWISTED: [Twist(cap=cap) for cap in _CAPS],
        "refinement": [
            refinement(particles, scale, transitions * steps, guidance) for scale in _SCALES
        ],
    }


def _plain(evaluations: int) -> Recipe:
    return Recipe(BestOf(1), Sampler.ode(evaluations))


@alone_in_out
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
) -> Report[ShapesFigures]:
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
    model.load()
    guidance = model.guidance(_plain(1).job(model, reward=reward))
    listed, plot = methods(particles, transitions, steps, guidance), blank_plot()
    folder = make_folder(out)
    bench = _Bench(model, reward, seed, folder / "drawn")
    settings: dict[str, Any] = {
        "prompts": count,
        "tuning_prompts": tuning_count,
        "particles": particles,
        "evaluations": transitions * steps,
        "reward": bench.reward.name,
        "seed": seed,
    }
    found: list[ShapesFigures] = []
    entries: dict[str, Entry] = {}
    chunks = -(-count // _CHUNK) * len(listed)
    chunks += -(-tuning_count // _CHUNK) * trials(listed)
    with progress_bar(chunks, progress, "comparing") as advance:
        for one in contest(
            listed,
            _STEERED,
            lambda recipe, tuned: bench.run(recipe, tuning if tuned else asked, advance),
        ):
            entries[one.title] = one
            baseline = entries.get(_BEST, entries[_PLAIN]).returned
            found.append(_figures(one, baseline, asked))
            judge = found[-1].judge["all"].value
            announce(f"{one.title.strip()}: judge {judge:.1%}, {one.tuned}")
            table, results = write_contest(
                folder / "shapes", settings, found, tuning=_curves(entries)
            )
    hacking = _hacking(entries, plot, folder / "hacking.png")
    announce("drawing the grid")
    picture = _grid(bench, entries[_PLAIN].tuned, entries[_STEERED].tuned, folder / "shapes.png")
    return Report(tuple(found), table, results, picture, hacking)


class _Bench:
    """Draws with a pipeline and judges; keeps what it drew in a folder."""

    def __init__(self, model: Shapes, reward: str, seed: int, folder: Path) -> None:
        self.model, self.named, self.seed, self.folder = model, reward, seed, folder
        self.reward = model.reward(_plain(1).job(model, reward=reward))
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
    ) -> Returned:
        parts = []
        for i in range(0, len(asked), _CHUNK):
            sentences = tuple(map(str, asked[i : i + _CHUNK]))
            job = recipe.job(self.model, prompts=sentences, reward=self.named, seed=self.seed + i)
            parts.append(self._chunk(job))
            advance()
        return Returned.joined(parts)

    def _chunk(self, job: Job) -> Returned:
        """The best image of every prompt of a job, from its file if it was drawn before."""
        file = self.folder / f"{key_of([job.as_json(), self.weights])}.safetensors"
        if file.exists():
            try:
                kept = load_file(file)
                rewards, verdicts, evaluations = (kept[name].numpy() for name in _NUMBERS)
                return Returned(kept["images"], rewards, verdicts, float(evaluations))
            except (SafetensorError, OSError, LookupError, TypeError) as error:
                raise WeightsFileError(
                    f"{str(file)!r} is damaged ({error}); delete it, and it is drawn again"
                ) from error
        result = self.model.run(job, Watch(progress=False))
        found = Returned(
            torch.from_numpy(np.stack([np.asarray(image) for image in result.best])),
            result.rewards.amax(1).double().numpy(),
            np.array(judged(self.model, result), float),
            result.result.network_evaluations,
        )
        self.folder.mkdir(exist_ok=True)
        numbers = {name: torch.tensor(getattr(found, name)) for name in _NUMBERS}
        replace(file, save({"images": found.images, **numbers}))
        keep("drawn", f"{len(list(self.folder.iterdir()))} batches of images")
        return found


def _fingerprint(*modules: Any) -> str:
    """A hash of weights: what was drawn with others is not taken for theirs."""
    found = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _figures(one: Entry, baseline: Returned, asked: Sequence[Prompt]) -> ShapesFigures:
    returned, categories = one.returned, np.array([prompt.category for prompt in asked])
    judge = {c: share(returned.verdicts[categories == c]) for c in CATEGORIES}
    return ShapesFigures(
        one.title,
        {**judge, "all": share(returned.verdicts)},
        mean(returned.verdicts - baseline.verdicts),
        mean(returned.rewards),
        returned.evaluations / len(asked),
        one.tuned,
    )


def _curves(entries: Mapping[str, Entry]) -> dict[str, Any]:
    """What tuning tried, by method."""
    return {
        name.strip(): [
            {**recipe.brief(), **dict(zip(("judge", "reward"), returned.merit))}
            for recipe, returned in one.trials
        ]
        for name, one in entries.items()
        if one.trials
    }


def _hacking(entries: Mapping[str, Entry], figure: Any, file: Path) -> Path:
    """Reward and judge over λ and over the scale of guidance."""
    axes = figure.subplots(1, 2)
    for axis, name, x, label in zip(
        axes, (_STEERED, _GUIDED), (_SCALES, _GUIDES), ("λ", "guidance scale w")
    ):
        judge, reward = zip(*(returned.merit for _, returned in entries[name].trials))
        axis.plot(x, [100 * value for value in judge], "o-", color="tab:green")
        axis.set(xscale="log", xlabel=label, ylim=(0, 100), title=name.strip())
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
        axis.set_ylabel("judge accepts, %", color="tab:green")
        other = axis.twinx()
        other.plot(x, reward, "s--", color="tab:purple")
        other.set_ylabel("reward", color="tab:purple")
    replace(file, written(partial(figure.savefig, dpi=110)))
    return file


def _grid(bench: _Bench, plain: Recipe, steered: Recipe, file: Path) -> Path:
    """Two held-out prompts of each category: plain samples, and the best of as many populations."""
    asked = sorted(prompts("test", 2 * len(CATEGORIES)), key=lambda p: CATEGORIES.index(p.category))
    rows = []
    for prompt in asked:
        shown = Returned.joined(
            [bench.run(recipe, [prompt] * _COLUMNS) for recipe in (plain, steered)]
        )
        pixels = shown.images.permute(0, 3, 1, 2) / 127.5 - 1
        rows.append(Strip(f"{prompt}: plain, steered", pixels, [bool(v) for v in shown.verdicts]))
    return save_png(image_grid(rows, 2 * _COLUMNS), file, settings=json.dumps(steered.brief()))
