"""Pictures of the Shapes world with what the judge sees in them, right and wrong ones alike.

A reward that is maximised is asked about pictures that no scene of the world looks like. So beside
scenes there are pictures between two scenes, and samples of the pipeline, its mistakes included.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..jobs.models import Shapes
from ..pixels import to_bytes
from ..plans import Sampler
from ..steering import Steering
from ..steering.loop import Watch
from ..worlds.shapes import (
    SHAPES,
    Finding,
    Placed,
    Prompt,
    Thing,
    contradictions,
    examine,
    holds,
    render,
    sample_prompt,
    sample_scene,
)
from ..worlds.shapes.pipeline import CALL
from ..worlds.shapes.world import MAX_WORDS, NUMBERS, RELATIONS, SIDE, related
from .recipe import Recipe

SENTENCES = 11  # of every picture
_BATCH = 64
_PARTICLES = 16
_EVALUATIONS = (4, 8, 12)  # fewer make less of a picture


@dataclass(frozen=True)
class Judged:
    """Pictures (N, 32, 32, 3), what the judge sees in each, and what each was drawn for."""

    images: NDArray[np.uint8]
    findings: tuple[Finding, ...]
    asked: tuple[Prompt, ...]

    @classmethod
    def by_the_judge(cls, images: NDArray[np.uint8], asked: Sequence[Prompt]) -> Judged:
        return cls(images, tuple(map(examine, images)), tuple(asked))

    def joined(self, other: Judged) -> Judged:
        """These and others."""
        images = np.concatenate([self.images, other.images])
        return Judged(images, self.findings + other.findings, self.asked + other.asked)

    def accepted(self) -> NDArray[np.bool_]:
        """Whether each picture is what it was drawn for."""
        return np.array([f.meets(p) for f, p in zip(self.findings, self.asked)])


def pixels(images: NDArray[np.uint8], device: torch.device | str = "cpu") -> Tensor:
    """(B, 3, 32, 32) in [-1, 1]."""
    return torch.from_numpy(images).to(device).permute(0, 3, 1, 2).float() / 127.5 - 1


def train_prompt(rng: np.random.Generator) -> Prompt:
    """A random prompt of the part "train"."""
    while not holds("train", prompt := sample_prompt(rng)):
        pass
    return prompt


def scenes(count: int, rng: np.random.Generator, free: bool = False) -> Judged:
    """Scenes of random prompts; `free` ones hold one to four objects that no prompt asks for."""
    images = np.empty((count, SIDE, SIDE, 3), np.uint8)
    findings, asked = [], []
    for image in images:
        prompt = train_prompt(rng)
        objects, background = sample_scene(prompt, rng)
        if free:
            objects = _free(rng)
        image[:] = render(objects, background, rng)
        findings.append(Finding(tuple(objects), (0.0,) * len(objects), 0.0, background))
        asked.append(prompt)
    found = Judged(images, tuple(findings), tuple(asked))
    if not free:
        return found
    about = tuple(describe(one, rng) or train_prompt(rng) for one in findings)
    return Judged(images, found.findings, about)


def _free(rng: np.random.Generator) -> list[Placed]:
    """One to four objects of any kind, each in a quarter of its own."""
    parts = [sample_scene(Prompt((Thing(str(rng.choice(SHAPES))),)), rng)[0][0] for _ in range(4)]
    quarters = rng.permutation(4)[: int(rng.integers(1, 5))]
    half = SIDE / 2
    return [
        one._replace(x=one.x % half + half * (q % 2), y=one.y % half + half * (q // 2))
        for one, q in zip(parts, quarters)
    ]


@torch.no_grad()
def between(vae: Any, count: int, rng: np.random.Generator) -> Judged:
    """What an autoencoder makes of latents between those of two scenes, with noise.

    Half of them are the first scene but for a little noise.
    """
    one, two = scenes(count, rng), scenes(count, rng)
    generator = torch.Generator().manual_seed(int(rng.integers(2**31)))
    images = []
    for i in range(0, count, _BATCH):
        z, other = (
            vae.encode(pixels(part.images[i : i + _BATCH])).latent_dist.mean for part in (one, two)
        )
        size = len(z)
        mask = torch.rand(size, 1, 3, 3, generator=generator)
        mask = F.interpolate(mask, z.shape[-2:], mode="bilinear")
        share = torch.rand(size, 1, 1, 1, generator=generator)
        mask = ((mask - 1 + 0.7 * share) * 4).sigmoid() * (share > 0.5)
        noise = torch.randn(z.shape, generator=generator) * z.std()
        strength = 0.6 * torch.rand(size, 1, 1, 1, generator=generator) ** 2
        z = torch.lerp(z, other, mask) + strength * noise
        images.append(_bytes(vae.decode(z).sample / 2 + 0.5))
    return Judged.by_the_judge(np.concatenate(images), one.asked)


@torch.no_grad()
def samples(pipe: Any, count: int, rng: np.random.Generator) -> Judged:
    """Plain samples of a Shapes pipeline, of 4, 8 or 12 evaluations."""
    pipe.set_progress_bar_config(disable=True)
    asked = [train_prompt(rng) for _ in range(count)]
    images = []
    for i in range(0, count, _BATCH):
        part = [str(p) for p in asked[i : i + _BATCH]]
        call = {**CALL, "negative_prompt": [CALL["negative_prompt"]] * len(part)}
        drawn = pipe(
            part,
            num_inference_steps=_EVALUATIONS[i // _BATCH % len(_EVALUATIONS)],
            generator=torch.Generator().manual_seed(int(rng.integers(2**31))),
            output_type="pt",
            **call,
        )
        images.append(_bytes(drawn.images))
    return Judged.by_the_judge(np.concatenate(images), asked)


def steered(model: Shapes, reward: str, count: int, rng: np.random.Generator) -> Judged:
    """What steering by a reward makes: populations of 16 particles, 8 transitions, λ of 0.25."""
    recipe = Recipe(Steering(_PARTICLES, 0.25), Sampler(8, 1, 0.4))
    asked: list[Prompt] = []
    images: list[NDArray[np.uint8]] = []
    while len(asked) < count:
        some = [train_prompt(rng) for _ in range(_BATCH // _PARTICLES)]
        job = recipe.job(
            model, prompts=tuple(map(str, some)), reward=reward, seed=int(rng.integers(2**31))
        )
        for prompt, row in zip(some, model.run(job, Watch(progress=False)).rows):
            images += [np.asarray(image.convert("RGB")) for image in row]
            asked += [prompt] * len(row)
    return Judged.by_the_judge(np.stack(images), asked)


def describe(finding: Finding, rng: np.random.Generator, part: str = "train") -> Prompt | None:
    """A sentence of one or two objects that are there, or of their number: true if no other is.

    None if there is no object, or twenty such sentences are of another part.
    """
    for _ in range(20):
        prompt = _describe(finding, rng)
        if prompt is not None and len(str(prompt).split()) <= MAX_WORDS and holds(part, prompt):
            return prompt
    return None


def _describe(finding: Finding, rng: np.random.Generator) -> Prompt | None:
    objects = finding.objects
    if not objects:
        return None
    background = finding.background if rng.random() < 0.25 else None
    coloured = rng.random() < 0.7
    first, *others = (objects[i] for i in rng.permutation(len(objects)))

    def thing(one: Placed, sized: float) -> Thing:
        size = one.size if rng.random() < sized else None
        return Thing(one.shape, one.colour if coloured else None, size)

    if len(objects) in NUMBERS and all(one.shape == first.shape for one in others):
        return Prompt((thing(first, 0.0),), len(objects), None, background)
    for second in others:
        if second.shape != first.shape and not (coloured and second.colour == first.colour):
            offset = first.x - second.x, first.y - second.y
            held = [r for r in RELATIONS if related(r, *offset)]
            relation = held[0] if held and rng.random() < 0.6 else None
            return Prompt((thing(first, 0.25), thing(second, 0.25)), 1, relation, background)
    return Prompt((thing(first, 0.5),), 1, None, background)


def sentences(
    judged: Judged, rng: np.random.Generator
) -> tuple[list[list[Prompt]], NDArray[np.bool_]]:
    """:data:`SENTENCES` prompts for each picture, and which of them the judge accepts of it.

    What it was drawn for; three descriptions; contradictions of these, the kinds in turn; and a
    prompt of no relation to it. All are of the part "train": a sentence that is held back would
    else only ever be seen as wrong, and be learnt so.
    """
    found = []
    for finding, asked in zip(judged.findings, judged.asked):
        said = [asked, *(describe(finding, rng) or train_prompt(rng) for _ in range(3))]
        lies = [p for one in said[:2] for p in _lies(one, rng)]
        said += [lies[i % len(lies)] for i in range(SENTENCES - 5)]
        found.append([*said, train_prompt(rng)])
    verdicts = [[f.meets(p) for p in row] for f, row in zip(judged.findings, found)]
    return found, np.array(verdicts)


def _lies(prompt: Prompt, rng: np.random.Generator) -> list[Prompt]:
    """A contradiction of every kind, in random order; any sentence if there is none."""
    kinds = [[p for p in kind if holds("train", p)] for kind in contradictions(prompt).values()]
    one_each = [kind[int(rng.integers(len(kind)))] for kind in kinds if kind]
    return [one_each[i] for i in rng.permutation(len(one_each))[:3]] or [train_prompt(rng)]


def _bytes(images: Tensor) -> NDArray[np.uint8]:
    found: NDArray[np.uint8] = to_bytes(images.clamp(0, 1)).numpy()
    return found
