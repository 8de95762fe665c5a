"""How well the Shapes pipeline follows held-out prompts, by the judge.

    python -m benchmarks.shapes [--model FOLDER] [--images 100] [--evaluations 24] [--seed 0]

Plain samples at the guidance of `CALL`. Single objects are the categories "single" and "colours",
two objects "two", "position" and "attribution"; "test" holds few sentences of a single object, so
each is drawn several times.
"""

from __future__ import annotations

import argparse

from glass_flows.experiments.compare_shapes import plain_acceptance
from glass_flows.models.shapes.pipeline import BUNDLED, load_pipeline


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", default=str(BUNDLED), help="folder of a Shapes pipeline")
    parser.add_argument("--images", type=int, default=100, help="for each kind of prompt")
    parser.add_argument("--evaluations", type=int, default=24)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    found = plain_acceptance(
        load_pipeline(given.model),
        per_group=given.images,
        evaluations=given.evaluations,
        seed=given.seed,
    )
    print("| prompts | judge accepts, % (95 %) |\n|-|-|")
    for group, share in found.items():
        low, high = (100 * end for end in share.interval)
        print(f"| {group} | {100 * share.value:.0f} ({low:.0f} to {high:.0f}) |")


if __name__ == "__main__":
    main()
