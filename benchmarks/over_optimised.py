"""Whether the warning of over-optimisation comes where the judge falls, and not before.

    python -m benchmarks.over_optimised [--prompts 16] [--seed 0]

Refinement on the Shapes pipeline, 8 chains of 6 moves for each prompt under all of its guidance, at
rising λ, towards two rewards: the colour of an image, its mean chroma, which large blobs have most
of; and the bundled CLIP, which was trained against such pictures. Held out are the judge of the
world and, of the first, the CLIP. Every line asks :func:`glass_flows.steering.over_optimised` about
all λ up to its own, and shows the warning of the run itself, over its moves.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping

from torch import Tensor

from benchmarks.shapes import all_of
from glass_flows import Refine, Sampler
from glass_flows.diffusers import steer_pipeline
from glass_flows.jobs.models import Shapes, resolve
from glass_flows.rewards import RewardLike
from glass_flows.steering import SearchResult, over_optimised
from glass_flows.steering.overoptimisation import Rung
from glass_flows.worlds.shapes import SINGLE, TWO

SCALES = {"colour": (0.0, 30.0, 100.0, 300.0, 1000.0), "clip": (0.0, 0.1, 0.3, 1.0, 3.0)}


def colour(images: Tensor) -> Tensor:
    """Mean chroma of images (B, 3, H, W): how far their channels are apart."""
    return (images.amax(1) - images.amin(1)).mean((1, 2))


def runs(
    model: Shapes, reward: RewardLike, also: Mapping[str, RewardLike], name: str, **rest: int
) -> dict[float, SearchResult]:
    """What refinement comes to at every λ of a reward."""
    prompts = [str(p) for p in all_of("test", (*SINGLE, *TWO), rest["prompts"])]
    found = {}
    for scale in SCALES[name]:
        method = Refine(8, scale=scale, move_guidance=1.0, returned="last")
        drawn = steer_pipeline(
            model.pipe, prompts, reward, method, Sampler.ode(6), decode_batch=None,
            also=dict(also), seed=rest["seed"], progress=False, **model.call,
        )  # fmt: skip
        found[scale] = drawn.result
        print(_line(name, found), flush=True)
    return found


def _line(name: str, found: Mapping[float, SearchResult]) -> str:
    scale = max(found)
    result = found[scale]
    rung = Rung.of(scale, result)

    def mean(values: Tensor, form: str = ".3f") -> str:
        return f"{float(rung.mean(values).mean()):{form}}"

    several = over_optimised(found) if len(found) > 1 else ()
    told = "; ".join(f"{one.name} beyond λ = {one.beyond:g}" for one in several)
    alone = "yes" if result.warnings else "no"
    clip = mean(result.also["clip"], ".1f") if "clip" in result.also else "-"
    rewards, judge = mean(result.rewards), mean(result.also["judge"])
    return f"| {name} | {scale:g} | {rewards} | {judge} | {clip} | {told or 'no'} | {alone} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    model = resolve("shapes")
    assert isinstance(model, Shapes)
    judge, clip = map(model.load_reward, ("judge", "clip"))
    rewards: dict[str, tuple[Callable[..., Tensor], dict[str, RewardLike]]] = {
        "colour": (colour, {"judge": judge, "clip": clip}),
        "clip": (clip, {"judge": judge}),
    }
    print("| reward | λ | its mean | judge accepts | CLIP | warning, over λ | of the run itself |")
    print("|-|-|-|-|-|-|-|")
    for name, (reward, also) in rewards.items():
        runs(model, reward, also, name, prompts=given.prompts, seed=given.seed)


if __name__ == "__main__":
    main()
