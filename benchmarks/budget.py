"""What particles, evaluations, looks and moves are worth: where `--budget` has its constants from.

    python -m benchmarks.budget [--populations 48] [--out docs/choosing.md]

Steers the digits to each digit in turn (λ = 16) in every split, and prints how often the judge
accepts the best image; then what doubling the particles or the looks adds to its logit.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np

from benchmarks.pages import write_between_marks
from glass_flows import Sampler
from glass_flows.jobs.models import Digits, resolve
from glass_flows.research.digits import draw_digits
from glass_flows.research.recipe import Recipe
from glass_flows.steering import Refine, Steering

COMMAND = "python -m benchmarks.budget"
PARTICLES = (4, 8, 16)
SPLITS = ((3, 2), (6, 2), (12, 1), (6, 4), (12, 2), (24, 1), (12, 4), (24, 2))
MOVED = ((4, 4, 2), (6, 2, 3), (4, 10, 2), (6, 6, 3), (4, 22, 2), (6, 14, 3))
SCALE, SEED = 16.0, 5


def ways() -> Iterator[tuple[str, int, Recipe]]:
    """Title, evaluations, and the recipe of one particle."""
    for k, m in SPLITS:
        yield f"steering, {k} x {m}", k * m, Recipe(Steering(1, SCALE), Sampler(k, m, 0.4))
    for begin, moves, each in MOVED:
        method = Refine(1, SCALE, moves=moves, move_steps=each)
        title = f"refinement, {begin} and {moves} moves of {each}"
        yield title, begin + moves * each, Recipe(method, Sampler.ode(begin))


def accepted(model: Digits, recipe: Recipe, particles: int, populations: int) -> float:
    """Share of the best images that the judge accepts, over all digits."""
    recipe = replace(recipe, method=replace(recipe.method, particles=particles))
    found = [draw_digits(model, recipe, label, populations, SEED).verdicts for label in range(10)]
    return float(np.mean(found))


def logit(share: float, trials: int) -> float:
    """Of a share, which half a trial keeps from 0 and 1."""
    share = min(max(share, 0.5 / trials), 1 - 0.5 / trials)
    return math.log(share / (1 - share))


def report(populations: int) -> Iterator[str]:
    model, trials = resolve("digits"), 10 * populations
    assert isinstance(model, Digits)
    found: dict[tuple[str, int], float] = {}
    yield (
        "| judge accepts, % | evaluations | looks | "
        + " | ".join(f"N = {n}" for n in PARTICLES)
        + " |"
    )
    yield "|" + "-|" * (3 + len(PARTICLES))
    for title, evaluations, recipe in ways():
        shares = [accepted(model, recipe, n, populations) for n in PARTICLES]
        found |= {(title, n): logit(share, trials) for n, share in zip(PARTICLES, shares)}
        method = recipe.method
        looks = 1 + method.moves if isinstance(method, Refine) else recipe.sampler.transitions
        cells = " | ".join(f"{100 * share:.1f}" for share in shares)
        yield f"| {title} | {evaluations} | {looks} | {cells} |"
    particles = np.mean([found[t, 8] - found[t, 4] for t, e, _ in ways() if e <= 12])
    looks = np.mean(
        [found["steering, 12 x 1", n] - found["steering, 6 x 2", n] for n in (4, 8)]
        + [found["steering, 12 x 2", n] - found["steering, 6 x 4", n] for n in (4, 8)]
    )
    yield ""
    yield (
        f"Twice the particles add {particles:.1f} to the logit (at most 12 evaluations, 4 to 8), "
        f"twice the looks at as many evaluations {looks:.1f} (6 to 12). {trials} images a figure: "
        f"errors up to {100 * (0.25 / trials) ** 0.5:.1f} points. λ = {SCALE:g}, seed {SEED}."
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--populations", type=int, default=48, help="of each digit")
    parser.add_argument("--out", type=Path, help="a page, whose marked part is written anew")
    given = parser.parse_args()
    lines = []
    for line in report(given.populations):
        print(line, flush=True)
        lines.append(line)
    if given.out is not None:
        write_between_marks(given.out, COMMAND, "\n".join(lines))


if __name__ == "__main__":
    main()
