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
from collections.abc import Callable, Sequence
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
from ..models.shapes import CATEGORIES, SINGLE, TWO, Prompt, accepts, prompts
from ..models.shapes.pipeline import CALL
from ..progress import progress_bar
from ..steering import Twist
from .judging import Estimate, mean, share
from .pictures import Row, image_grid, make_folder, save_png

__all__ = ["ShapesFigures", "ShapesReport", "compare_shapes", "methods", "plain_acceptance"]

Settings = dict[str, Any]
_SCALES = (0.125, 0.25, 0.5, 1.0, 2.0, 8.0)  # λ, of a reward whose spread is about 7
_GUIDES = (0.25, 1.0, 4.0, 16.0, 64.0, 256.0)  # w, through the reward
_CAPS = (0.75, 1.5, 3.0)  # of the twist
_CHUNK = 10  # prompts that share a batch
_COLUMNS = 8  # of each half of the grid
_PLAIN, _BEST, _OURS, _GUIDED, _TWISTED = (
    "plain",
    "best of {N}",
    "FKS + GLASS",
    "  + guidance",
    "  + twist",
)
_GROUPS = {"single object": SINGLE, "counting": ("counting",), "two objects": TWO}


@dataclass(frozen=True)
class ShapesFigures:
    """One method on the held-out prompts.

    Attributes
    ----------
    judge : dict
        Share of the returned images that the judge accepts, by category and over "all".
    gain : Estimate
        What it accepts more than of best-of-N's, prompt by prompt.
    reward : Estimate
        Mean reward of the returned images.
    evaluations : float
        Of the network, per image returned.
    tuned : dict
    """

    method: str
    judge: dict[str, Estimate]
    gain: Estimate
    reward: Estimate
    evaluations: float
    tuned: Settings


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


def methods(particles: int, transitions: int, steps: int) -> dict[str, tuple[Settings, ...]]:
    """For every method the settings among which tuning chooses.

    All spend K M evaluations on each of their particles. Guidance and twist take the λ that was
    chosen without them.
    """
    ode = {"method": "best-of-n", "transitions": 1, "steps": transitions * steps}
    glass = {"transitions": transitions, "steps": steps, "particles": particles}
    return {
        _PLAIN: ({**ode, "particles": 1},),
        _BEST.format(N=particles): ({**ode, "particles": particles},),
        _OURS: tuple({**glass, "scale": scale} for scale in _SCALES),
        _GUIDED: tuple({"guidance": Guidance(w, through="reward")} for w in _GUIDES),
        _TWISTED: tuple({"twist": Twist(cap=cap)} for cap in _CAPS),
    }


def compare_shapes(
    out: str | os.PathLike[str],
    *,
    pipe: Any,
    reward: Any,
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
    pipe : FluxPipeline
        Of the Shapes world.
    reward : ImageTextReward
        On its images.
    count, tuning_count : int
        Prompts of the parts "test" and "tune", the categories in turn.
    transitions, steps : int
        K M evaluations per particle, each of two passes of the network (`true_cfg_scale`).

    What was drawn is kept in ``out/runs``: the same call after an interruption goes on from there.
    """
    check_count("count", count, least=2 * len(CATEGORIES))
    check_count("tuning_count", tuning_count, least=2)
    if not hasattr(reward, "network"):  # whose weights tell what was drawn with it
        raise InvalidArgument(
            f"the comparison takes a pre-trained reward, as of pretrained_reward, got {reward!r}"
        )
    folder = make_folder(out)
    bench = _Bench(pipe, reward, seed, folder / "runs")
    asked, tuning = prompts("test", count), prompts("tune", tuning_count)
    found: list[ShapesFigures] = []
    returned: dict[str, _Returned] = {}
    trials: dict[str, list[tuple[Settings, _Returned]]] = {}
    tuned: dict[str, Settings] = {}
    listed = methods(particles, transitions, steps)
    chunks = -(-count // _CHUNK) * len(listed) + -(-tuning_count // _CHUNK) * sum(
        len(c) for c in listed.values() if len(c) > 1
    )
    with progress_bar(chunks, progress, "comparing") as advance:
        for name, candidates in listed.items():
            first = tuned[_OURS] if name in (_GUIDED, _TWISTED) else {}
            options = [{**first, **candidate} for candidate in candidates]
            best = options[0]
            if len(options) > 1:
                trials[name] = [(o, bench.run(o, tuning, advance)) for o in options]
                best = max(trials[name], key=lambda one: _merit(one[1]))[0]
            tuned[name] = best
            returned[name] = bench.run(best, asked, advance)
            baseline = returned.get(_BEST.format(N=particles), returned[_PLAIN])
            figures = _figures(name, returned[name], baseline, asked, best)
            found.append(figures)
            announce(f"{name.strip()}: judge {figures.judge['all'].value:.1%}, {_brief(best)}")
    settings = {
        "prompts": count, "tuning_prompts": tuning_count, "particles": particles,
        "evaluations": transitions * steps, "reward": reward.name, "seed": seed,
    }  # fmt: skip
    table, results = folder / "shapes.md", folder / "shapes.json"
    table.write_text(_table(found, settings), encoding="utf-8")
    curves = {
        name.strip(): [
            {**_brief(o), "judge": float(r.verdicts.mean()), "reward": float(r.rewards.mean())}
            for o, r in one
        ]
        for name, one in trials.items()
    }
    lines = [{**asdict(line), "tuned": _brief(line.tuned)} for line in found]
    payload = {"settings": settings, "methods": lines, "tuning": curves}
    results.write_text(json.dumps(payload, indent=1) + "\n", encoding="utf-8")
    hacking = _hacking(curves, folder / "hacking.png")
    picture = _grid(bench, tuned[_OURS], transitions * steps, folder / "shapes.png", announce)
    return ShapesReport(tuple(found), table, results, picture, hacking)


def plain_acceptance(
    pipe: Any, *, per_group: int = 100, evaluations: int = 24, seed: int = 0
) -> dict[str, Estimate]:
    """What the judge accepts of plain samples for held-out prompts, by kinds of prompt.

    The part "test" holds few different sentences of a single object; they are drawn several times.
    """
    bench = _Bench(pipe, lambda images: images.mean((1, 2, 3)), seed)
    found = {}
    for group, categories in _GROUPS.items():
        sentences = _all_of("test", categories, per_group)
        asked = [sentences[i % len(sentences)] for i in range(per_group)]
        settings = {"method": "best-of-n", "transitions": 1, "steps": evaluations, "particles": 1}
        found[group] = share(bench.run(settings, asked).verdicts)
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

    def __init__(self, pipe: Any, reward: Any, seed: int, folder: Path | None = None) -> None:
        self.pipe, self.reward, self.seed, self.folder = pipe, reward, seed, folder
        if folder is not None:
            parts = (pipe.transformer, pipe.text_encoder, pipe.text_encoder_2, pipe.vae)
            self.weights = reward.name, _fingerprint(*parts, reward.network)

    def run(
        self,
        settings: Settings,
        asked: Sequence[Prompt],
        advance: Callable[[], None] = lambda: None,
    ) -> _Returned:
        images: list[Image.Image] = []
        rewards: list[float] = []
        spent = 0
        for i in range(0, len(asked), _CHUNK):
            part = [str(prompt) for prompt in asked[i : i + _CHUNK]]
            best, values, evaluations = self._chunk(settings, part, self.seed + i)
            images += best
            rewards += values
            spent += evaluations
            advance()
        verdicts = np.array(accepts([np.asarray(image) for image in images], asked), float)
        return _Returned(images, np.array(rewards), verdicts, spent / len(asked))

    def _chunk(
        self, settings: Settings, sentences: list[str], seed: int
    ) -> tuple[list[Image.Image], list[float], int]:
        """The best image of every sentence, its reward, and the evaluations of all."""
        from ..integrations.diffusers import steer_pipeline

        file = None
        if self.folder is not None:
            key = repr((sorted(settings.items()), sentences, seed, self.weights))
            file = self.folder / f"{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"
            if file.exists():
                kept = load_file(file)
                images = [Image.fromarray(image.numpy()) for image in kept["images"]]
                return images, kept["rewards"].tolist(), int(kept["evaluations"])
        result = steer_pipeline(
            self.pipe,
            sentences,
            self.reward,
            seed=seed,
            decode_batch=None,
            progress=False,
            **CALL,
            **settings,
        )
        best, evaluations = result.rewards.amax(1), result.result.costs.network_evaluations
        if file is not None:
            pixels = torch.from_numpy(np.stack([np.asarray(image) for image in result.best]))
            kept = {"images": pixels, "rewards": best, "evaluations": torch.tensor(evaluations)}
            file.parent.mkdir(exist_ok=True)
            replace(file, save(kept))
        return result.best, best.tolist(), evaluations


def _fingerprint(*modules: Any) -> str:
    """A hash of weights: what was drawn with others is not taken for theirs."""
    found = hashlib.sha256()
    for module in modules:
        for tensor in module.state_dict().values():
            found.update(tensor.detach().float().cpu().contiguous().numpy().tobytes())
    return found.hexdigest()


def _merit(returned: _Returned) -> tuple[float, float]:
    return float(returned.verdicts.mean()), float(returned.rewards.mean())


def _figures(
    name: str, returned: _Returned, baseline: _Returned, asked: Sequence[Prompt], tuned: Settings
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


def _brief(settings: Settings) -> Settings:
    """Settings as plain numbers and names."""
    brief = {k: v for k, v in settings.items() if k in ("transitions", "steps", "scale")}
    if isinstance(twist := settings.get("twist"), Twist):
        brief["twist cap"] = twist.cap
    if isinstance(guidance := settings.get("guidance"), Guidance):
        brief["guidance"] = guidance.scale
    return brief


def _table(lines: Sequence[ShapesFigures], settings: Settings) -> str:
    def percent(estimate: Estimate) -> str:
        low, high = (100 * end for end in estimate.interval)
        return f"{100 * estimate.value:.0f} ({low:.0f} to {high:.0f})"

    columns = [*CATEGORIES, "all"]
    rows = [
        f"| method | {' | '.join(columns)} | more than best-of-N, points | reward "
        "| evaluations per image | tuned |",
        "|---" * (len(columns) + 5) + "|",
    ]
    for line in lines:
        tuned = ", ".join(f"{key} {value:g}" for key, value in _brief(line.tuned).items())
        judged = " | ".join(percent(line.judge[c]) for c in columns)
        rows.append(
            f"| {line.method.strip()} | {judged} "
            f"| {100 * line.gain.value:+.0f} ± {196 * line.gain.error:.0f} "
            f"| {line.reward.value:.2f} ± {line.reward.error:.2f} | {line.evaluations:g} "
            f"| {tuned} |"
        )
    notes = (
        "What the judge accepts, in percent (95 %), of the best image by the reward for each of "
        f"{settings['prompts']} held-out prompts; {settings['particles']} particles of "
        f"{settings['evaluations']} evaluations, each of two passes of the network "
        f"(classifier-free guidance). Tuned by the judge on {settings['tuning_prompts']} other "
        f"prompts. Seed {settings['seed']}."
    )
    return "\n".join(rows) + "\n\n" + notes + "\n"


def _hacking(curves: dict[str, list[Settings]], file: Path) -> Path:
    """Reward and judge over λ and over the scale of guidance."""
    import matplotlib.figure

    figure = matplotlib.figure.Figure(figsize=(9, 3.4), layout="constrained")
    axes = figure.subplots(1, 2)
    for axis, name, key, label in zip(
        axes, (_OURS, _GUIDED.strip()), ("scale", "guidance"), ("λ", "guidance scale w")
    ):
        x = [line[key] for line in curves[name]]
        axis.plot(x, [100 * line["judge"] for line in curves[name]], "o-", color="tab:green")
        axis.set(xscale="log", xlabel=label, ylim=(0, 100), title=name.strip())
        axis.set_xticks(x, [f"{value:g}" for value in x])
        axis.minorticks_off()
        axis.set_ylabel("judge accepts, %", color="tab:green")
        other = axis.twinx()
        other.plot(x, [line["reward"] for line in curves[name]], "s--", color="tab:purple")
        other.set_ylabel("reward", color="tab:purple")
    figure.savefig(file, dpi=110)
    return file


def _grid(
    bench: _Bench,
    tuned: Settings,
    evaluations: int,
    file: Path,
    announce: Callable[[str], None],
) -> Path:
    """Two held-out prompts of each category: plain samples, and the best of as many runs."""
    asked = sorted(prompts("test", 2 * len(CATEGORIES)), key=lambda p: CATEGORIES.index(p.category))
    plain = {"method": "best-of-n", "transitions": 1, "steps": evaluations, "particles": 1}
    announce("drawing the grid")
    rows = []
    for prompt in asked:
        shown = [bench.run(s, [prompt] * _COLUMNS) for s in (plain, tuned)]
        images = [np.asarray(image) for one in shown for image in one.images]
        verdicts = [bool(v) for one in shown for v in one.verdicts]
        pixels: Tensor = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2) / 127.5 - 1
        rows.append(Row(f"{prompt}: plain, steered", pixels, verdicts))
    return save_png(image_grid(rows, 2 * _COLUMNS), file, settings=str(_brief(tuned)))
