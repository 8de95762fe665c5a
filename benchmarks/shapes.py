"""How well the Shapes pipeline follows held-out prompts, by the judge.

    python -m benchmarks.shapes [--model shapes:FOLDER] [--images 100] [--evaluations 24] [--seed 0]

Plain samples at the guidance of `CALL`. Single objects are the categories "single" and "colours",
two objects "two", "position" and "attribution"; "test" holds few sentences of a single object, so
each is drawn several times.
"""

from __future__ import annotations

import argparse

from glass_flows.jobs.models import Shapes, resolve
from glass_flows.research.compare_shapes import plain_acceptance


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
    for group, share in found.items():
        low, high = (100 * end for end in share.interval)
        print(f"| {group} | {100 * share.value:.0f} ({low:.0f} to {high:.0f}) |")


if __name__ == "__main__":
    main()
