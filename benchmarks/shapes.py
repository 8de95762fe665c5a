"""How well the Shapes pipeline follows held-out prompts, and its CLIP the judge.

    python -m benchmarks.shapes [--model shapes:FOLDER] [--images 100] [--evaluations 24] [--seed 0]
    python -m benchmarks.shapes --clip [--reward clip:FOLDER] ...
    python -m benchmarks.shapes --particles [--reward clip:FOLDER] ...

Plain samples at the guidance of `CALL`. Single objects are the categories "single" and "colours",
two objects "two", "position" and "attribution"; "test" holds few sentences of a single object, so
each is drawn several times.

`--clip` asks whether a true sentence scores higher than one that contradicts it, by the kind of the
contradiction, of scenes and of what the pipeline draws (its mistakes described as what they are);
and whether of two samples for one prompt that the judge tells apart the accepted one scores higher.

`--particles` steers with more and more particles: what the judge accepts of the best image.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence

import numpy as np
import torch

from glass_flows.errors import InvalidArgument
from glass_flows.jobs.models import Shapes, resolve
from glass_flows.measures import Measure, mean, share
from glass_flows.plans import Sampler
from glass_flows.research.judged_scenes import describe
from glass_flows.research.recipe import Recipe, judged
from glass_flows.rewards import Reward, evaluate
from glass_flows.steering import BestOf, Steering
from glass_flows.steering.loop import Watch
from glass_flows.worlds.shapes import (
    SINGLE,
    TWO,
    Prompt,
    contradictions,
    examine,
    holds,
    prompts,
    render,
    sample_prompt,
    sample_scene,
)

GROUPS = {"single object": SINGLE, "counting": ("counting",), "two objects": TWO}
KINDS = ("shape", "colour", "size", "count", "background", "relation", "exchanged")
CHUNK = 10  # prompts that share a batch
SAMPLES = 16  # of each prompt, that are told apart


def plain_acceptance(
    model: Shapes, *, per_group: int = 100, evaluations: int = 24, seed: int = 0
) -> dict[str, Measure]:
    """What the judge accepts of plain samples for held-out prompts, by kinds of prompt."""
    plain, found = Recipe(BestOf(1), Sampler.ode(evaluations)), {}
    for group, categories in GROUPS.items():
        sentences = all_of("test", categories, per_group)
        asked = tuple(str(sentences[i % len(sentences)]) for i in range(per_group))
        verdicts: list[bool] = []
        for i in range(0, per_group, CHUNK):
            job = plain.job(model, prompts=asked[i : i + CHUNK], seed=seed + i)
            verdicts += judged(model, model.run(job, Watch(progress=False))) or []
        found[group] = share(np.array(verdicts, float))
    return found


def told_apart(
    reward: Reward,
    images: Sequence[np.ndarray],
    true: Sequence[Prompt],
    most: int,
    seed: int,
) -> dict[str, Measure]:
    """How often a true sentence scores higher than a contradiction, by the kind of that.

    Of at most so many pictures (32, 32, 3) for each kind.
    """
    rng, found = np.random.default_rng(seed), {}
    for kind in KINDS:
        able = [i for i, p in enumerate(true) if kind in contradictions(p)][:most]
        if len(able) < 2:
            continue
        lies = [contradictions(true[i])[kind] for i in able]
        wrong = [str(some[rng.integers(len(some))]) for some in lies]
        shown = torch.from_numpy(np.stack([images[i] for i in able])).permute(0, 3, 1, 2) / 255
        right, other = (
            evaluate(reward, shown, "the benchmark", asked)
            for asked in ([str(true[i]) for i in able], wrong)
        )
        found[kind] = share((right > other).double().numpy())
    return found


def clip_on_scenes(reward: Reward, *, per_kind: int = 200, seed: int = 0) -> dict[str, Measure]:
    """:func:`told_apart` on scenes of held-out sentences."""
    rng = np.random.default_rng(seed)
    drawn = (sample_prompt(rng) for _ in range(80 * per_kind))
    asked = [prompt for prompt in drawn if holds("test", prompt)]
    return told_apart(
        reward, [render(*sample_scene(p, rng), rng) for p in asked], asked, per_kind, seed
    )


def clip_on_samples(
    model: Shapes,
    named: str,
    *,
    count: int = 100,
    evaluations: int = 12,
    per_kind: int = 200,
    seed: int = 0,
) -> tuple[dict[str, Measure], dict[str, Measure]]:
    """On samples for held-out prompts: contradictions by kind, and pairs by category.

    The first is :func:`told_apart` on all that the judge finds clean, with held-out sentences that
    describe what is there; the second how often of an accepted and a rejected sample of a prompt
    the accepted one scores higher, a mean over prompts that have both.
    """
    recipe, rng = Recipe(BestOf(SAMPLES), Sampler.ode(evaluations)), np.random.default_rng(seed)
    asked = prompts("test", count, seed)
    images, true = [], []
    ordered: dict[str, list[float]] = {}
    for i in range(0, count, CHUNK):
        part = asked[i : i + CHUNK]
        job = recipe.job(model, prompts=tuple(map(str, part)), reward=named, seed=seed + i)
        result = model.run(job, Watch(progress=False))
        for prompt, row, scores in zip(part, result.rows, result.rewards.double().numpy()):
            pictures = [np.asarray(image.convert("RGB")) for image in row]
            findings = [examine(picture) for picture in pictures]
            for picture, finding in zip(pictures, findings):
                said = describe(finding, rng, "test")
                if said is not None and finding.meets(said):
                    images.append(picture)
                    true.append(said)
            good = np.array([finding.meets(prompt) for finding in findings])
            if good.any() and not good.all():
                pairs = scores[good][:, None] > scores[~good]
                ordered.setdefault(prompt.category, []).append(float(pairs.mean()))
    order = rng.permutation(len(images))
    by_kind = told_apart(
        model.load_reward(named),
        [images[i] for i in order],
        [true[i] for i in order],
        per_kind,
        seed,
    )
    by_category = {c: mean(np.array(v)) for c, v in ordered.items() if len(v) > 1}
    every = [v for values in ordered.values() for v in values]
    return by_kind, {**by_category, "all": mean(np.array(every))}


def by_particles(
    model: Shapes,
    named: str,
    *,
    count: int = 60,
    transitions: int = 20,
    scale: float = 0.25,
    particles: Sequence[int] = (4, 8, 16, 32),
    seed: int = 0,
) -> Iterator[tuple[int, Measure, Measure]]:
    """What the judge accepts of the best image, and of all, over the number of particles."""
    asked = prompts("test", count, seed)
    for size in particles:
        recipe = Recipe(Steering(size, scale), Sampler(transitions, 1, 0.4))
        best, every = [], []
        for i in range(0, count, CHUNK):
            part = tuple(str(p) for p in asked[i : i + CHUNK])
            job = recipe.job(model, prompts=part, reward=named, seed=seed + i)
            result = model.run(job, Watch(progress=False))
            best += judged(model, result) or []
            every += [float(np.mean(row)) for row in model.judge(result)]
        yield size, share(np.array(best, float)), mean(np.array(every))


def all_of(part: str, categories: Sequence[str], most: int) -> list[Prompt]:
    """As many different prompts as there are, at most so many."""
    while True:
        try:
            return prompts(part, most, categories=categories)
        except InvalidArgument:
            most -= 1


def percent(one: Measure | None) -> str:
    """With the ends of its interval."""
    if one is None:
        return "-"
    low, high = (min(max(100 * end, 0), 100) for end in one.interval)
    return f"{100 * one.value:.0f} ({low:.0f} to {high:.0f})"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes", help="shapes, or shapes:FOLDER")
    parser.add_argument("--reward", default="clip", help="clip, or clip:FOLDER")
    parser.add_argument("--images", type=int, default=100, help="for each kind of prompt")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--clip", action="store_true", help="measure the reward, not the pipeline")
    parser.add_argument("--particles", action="store_true", help="steer with more and more")
    given = parser.parse_args()
    model = resolve(given.model)
    if not isinstance(model, Shapes):
        parser.error(f"--model is shapes or shapes:FOLDER, got {given.model!r}")
    if given.clip:
        drawn = clip_on_scenes(model.load_reward(given.reward), seed=given.seed)
        kinds, categories = clip_on_samples(
            model, given.reward, count=given.images, seed=given.seed
        )
        print("| contradiction | of scenes, % (95 %) | of samples, % (95 %) |\n|-|-|-|")
        for kind in KINDS:
            print(f"| {kind} | {percent(drawn.get(kind))} | {percent(kinds.get(kind))} |")
        print("\n| prompts | accepted above rejected, % (95 %) |\n|-|-|")
        for category, ordered in categories.items():
            print(f"| {category} | {percent(ordered)} |")
    elif given.particles:
        print("| particles | judge accepts the best, % (95 %) | of all, % (95 %) |\n|-|-|-|")
        for size, best, every in by_particles(model, given.reward, seed=given.seed):
            print(f"| {size} | {percent(best)} | {percent(every)} |", flush=True)
    else:
        found = plain_acceptance(
            model, per_group=given.images, evaluations=given.evaluations, seed=given.seed
        )
        print("| prompts | judge accepts, % (95 %) |\n|-|-|")
        for group, accepted in found.items():
            print(f"| {group} | {percent(accepted)} |")


if __name__ == "__main__":
    main()
