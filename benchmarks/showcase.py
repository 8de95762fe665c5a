"""README's picture and its figures: plain samples, best-of-8 and refinement on the Shapes pipeline.

    python -m benchmarks.showcase [--seeds 20] [--picture docs/images/showcase.png]
    python -m benchmarks.showcase --choose      # how often plain samples meet held-out prompts

The four of 96 held-out prompts that plain samples met least often with other seeds (--choose), 24
evaluations a particle; the best of eight by the CLIP, whose judge is image analysis. The picture
shows the first four seeds of each prompt.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from benchmarks.shapes import percent
from glass_flows.files import replace, written
from glass_flows.jobs.models import Shapes, resolve
from glass_flows.measures import share
from glass_flows.plans import Sampler
from glass_flows.research.recipe import Recipe, judged, refinement
from glass_flows.steering import BestOf
from glass_flows.steering.loop import Watch
from glass_flows.worlds.shapes import Prompt, holds, prompts

PROMPTS = (
    "three blue circles on black",
    "four triangles on white",
    "three yellow triangles on white",
    "a small square and a large circle",
)
PARTICLES, EVALUATIONS, SCALE = 8, 24, 0.5
SHOWN, SIZE = 4, 88  # seeds in the picture, pixels of an image
GOOD, BAD = (34, 139, 60), (200, 60, 50)


@dataclass(frozen=True)
class Column:
    """A method: its best image and the judge's verdict for each prompt and seed; seconds."""

    title: str
    images: list[list[Any]]
    verdicts: list[list[bool]]
    seconds: float


def column(title: str, recipe: Recipe, model: Shapes, seeds: int) -> Column:
    images: list[list[Any]] = [[] for _ in PROMPTS]
    verdicts: list[list[bool]] = [[] for _ in PROMPTS]
    began = time.perf_counter()
    for seed in range(seeds):
        job = recipe.job(model, prompts=PROMPTS, reward=model.reward_name, seed=seed)
        result = model.run(job, Watch(progress=False))
        for i, accepted in enumerate(judged(model, result) or []):
            images[i].append(result.best[i])
            verdicts[i].append(accepted)
    each = (time.perf_counter() - began) / (seeds * len(PROMPTS))
    return Column(title, images, verdicts, each)


def columns(model: Shapes, seeds: int) -> Iterator[Column]:
    ode = Sampler.ode(EVALUATIONS)
    guidance = model.guidance(Recipe(BestOf(1), ode).job(model, reward=model.reward_name))
    refined = refinement(PARTICLES, SCALE, EVALUATIONS, guidance)
    for title, recipe in (
        ("plain", Recipe(BestOf(1), ode)),
        (f"best of {PARTICLES}", Recipe(BestOf(PARTICLES), ode)),
        ("refined", refined),
    ):
        yield column(title, recipe, model, seeds)


def choose(model: Shapes, count: int = 96, samples: int = 12) -> list[tuple[int, str]]:
    """How often plain samples meet held-out prompts, the least met first; with seeds of its own."""
    asked, met = [str(prompt) for prompt in prompts("test", count)], []
    recipe = Recipe(BestOf(samples), Sampler.ode(EVALUATIONS))
    for i in range(0, count, 8):
        part = tuple(asked[i : i + 8])
        job = recipe.job(model, prompts=part, reward=model.reward_name, seed=10_000 + i)
        verdicts = model.judge(model.run(job, Watch(progress=False)))
        met += [(sum(row), prompt) for row, prompt in zip(verdicts, part)]
    return sorted(met)


def table(found: Sequence[Column], seeds: int) -> str:
    head = " | ".join(one.title for one in found)
    lines = [f"| judge accepts, of {seeds} seeds | {head} |", "|-|" + "-|" * len(found)]
    for i, prompt in enumerate(PROMPTS):
        cells = " | ".join(str(sum(one.verdicts[i])) for one in found)
        lines.append(f"| {prompt} | {cells} |")
    every = [percent(share(np.array(one.verdicts, float).ravel())) for one in found]
    lines.append(f"| all, % (95 %) | {' | '.join(every)} |")
    lines.append(f"| seconds per image | {' | '.join(f'{one.seconds:.1f}' for one in found)} |")
    return "\n".join(lines)


def picture(found: Sequence[Column]) -> Image.Image:
    """A row for each prompt, a block for each method with a gap between."""
    gap, between, text = 6, 34, 24
    block = SHOWN * (SIZE + gap) - gap
    width = len(found) * block + (len(found) - 1) * between + 2 * between
    height = text + len(PROMPTS) * (SIZE + gap + text) + between
    sheet = Image.new("RGB", (width, height), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(17)
    for k, one in enumerate(found):
        left = between + k * (block + between)
        draw.text((left, gap), one.title, fill="black", font=ImageFont.load_default(20))
        for i in range(len(PROMPTS)):
            top = 2 * text + gap + i * (SIZE + gap + text)
            if k == 0:
                draw.text((left, top - text), PROMPTS[i], fill=(90, 90, 90), font=font)
            for j in range(SHOWN):
                x = left + j * (SIZE + gap)
                tile = one.images[i][j].resize((SIZE, SIZE), Image.Resampling.NEAREST)
                edge = GOOD if one.verdicts[i][j] else BAD
                draw.rectangle(
                    (x - 3, top - 3, x + SIZE + 2, top + SIZE + 2), outline=edge, width=3
                )
                sheet.paste(tile, (x, top))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes", help="shapes, or shapes:FOLDER")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--picture", type=Path)
    parser.add_argument("--choose", action="store_true")
    given = parser.parse_args()
    model = resolve(given.model)
    if not isinstance(model, Shapes):
        parser.error(f"--model is shapes or shapes:FOLDER, got {given.model!r}")
    if seen := [text for text in PROMPTS if holds("train", Prompt.parse(text))]:
        parser.error(f"trained on: {', '.join(seen)}")
    model.load()
    if given.choose:
        for count, prompt in choose(model)[:12]:
            print(f"{count:2} of 12  {prompt}")
        return
    found = list(columns(model, max(given.seeds, SHOWN)))
    print(table(found, max(given.seeds, SHOWN)))
    if given.picture is not None:
        replace(given.picture, written(partial(picture(found).save, format="PNG")))


if __name__ == "__main__":
    main()
