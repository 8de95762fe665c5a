"""How well the Shapes pipeline follows held-out prompts, by the judge.

    python -m benchmarks.shapes [--model shapes:FOLDER] [--images 100] [--evaluations 24] [--seed 0]

Plain samples at the guidance of `CALL`. Single objects are the categories "single" and "colours",
two objects "two", "position" and "attribution"; "test" holds few sentences of a single object, so
each is drawn several times.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np

from glass_flows.errors import InvalidArgument
from glass_flows.jobs.models import Shapes, resolve
from glass_flows.measures import Measure, share
from glass_flows.plans import Sampler
from glass_flows.research.recipe import Recipe, judged
from glass_flows.steering import BestOf
from glass_flows.steering.loop import Watch
from glass_flows.worlds.shapes import SINGLE, TWO, Prompt, prompts

GROUPS = {"single object": SINGLE, "counting": ("counting",), "two objects": TWO}
CHUNK = 10  # prompts that share a batch


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


def all_of(part: str, categories: Sequence[str], most: int) -> list[Prompt]:
    """As many different prompts as there are, at most so many."""
    while True:
        try:
            return prompts(part, most, categories=categories)
        except InvalidArgument:
            most -= 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default="shapes", help="shapes, or shapes:FOLDER")
    parser.add_argument("--images", type=int, default=100, help="for each kind of prompt")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = resolve(given.model)
    if not isinstance(model, Shapes):
        parser.error(f"--model is shapes or shapes:FOLDER, got {given.model!r}")
    found = plain_acceptance(
        model, per_group=given.images, evaluations=given.evaluations, seed=given.seed
    )
    print("| prompts | judge accepts, % (95 %) |\n|-|-|")
    for group, accepted in found.items():
        low, high = (100 * end for end in accepted.interval)
        print(f"| {group} | {100 * accepted.value:.0f} ({low:.0f} to {high:.0f}) |")


if __name__ == "__main__":
    main()
