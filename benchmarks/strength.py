"""Whether ``scale="auto"`` reaches its strength, and what strength is worth having.

    python -m benchmarks.strength check [--plain DIGITS SHAPES]
    python -m benchmarks.strength choose [--populations 64]

`check` steers twenty times with 8 particles, on the digits and on Shapes, towards four rewards
whose scales differ by 1,000, and compares the strength that each λ has, by many plain samples of
the run's own sampler, with the one that was asked for. `choose` steers 8 particles towards digits
at rising strengths.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator

import torch
from torch import Tensor

import glass_flows
from glass_flows import Sampler, Steering
from glass_flows.jobs import resolve
from glass_flows.pixels import to_pictures
from glass_flows.rewards import ClassReward, FunctionReward, Reward, as_reward
from glass_flows.steering import SteeringResult
from glass_flows.steering.strength import NATS, Auto, spent
from glass_flows.worlds.digits import IMAGE

PROMPTS = ("a red circle and a blue square", "two yellow squares")
STRENGTHS = (0.3, 0.6, 0.9, 1.2, 1.6, 2.0, 3.0, 5.0, 10.0)


def thousandth(reward: Reward) -> Reward:
    words = reward.takes_prompts
    return FunctionReward(
        (lambda z, prompts: reward(z, prompts) / 1000) if words else lambda z: reward(z) / 1000,
        "a thousandth of it",
        takes_prompts=words,
    )


def four(own: Reward) -> dict[str, Reward]:
    """The world's own reward, and three of other scales."""
    plain: dict[str, Callable[[Tensor], Tensor]] = {
        "brightness": lambda z: z.mean((1, 2, 3)),
        "top heavy": lambda z: (
            10 * (z[:, :, : z.shape[2] // 2].mean((1, 2, 3)) - z.mean((1, 2, 3)))
        ),
    }
    found = {"own": own, "a thousandth of it": thousandth(own)}
    return found | {name: FunctionReward(f, name) for name, f in plain.items()}


def exact(scale: float, rewards: Tensor) -> float:
    """The strength of λ by the rewards of many plain samples."""
    r = rewards.double().view(1, -1)
    log_z = torch.logsumexp(scale * r, 1) - torch.tensor(float(r.numel())).log()
    return float(spent(scale, r, scale * r, log_z))


Runs = Iterator[tuple[str, str, int, SteeringResult, Tensor]]


def digits(plain: int) -> Runs:
    model = resolve("digits")
    z = glass_flows.sample(model.denoiser, (plain, *IMAGE), Sampler(), seed=10**6, progress=False)
    for name, reward in four(ClassReward(model.classifiers["reward"], 8)).items():
        with torch.no_grad():
            rewards = reward(z)
        for seed in range(3):
            result = glass_flows.steer(
                model.denoiser, reward, shape=IMAGE, particles=8, seed=seed, progress=False
            )
            yield "digits", name, seed, result, rewards


def shapes(plain: int) -> Runs:
    model = resolve("shapes")
    own = as_reward(model.load_reward("clip"))
    for seed, prompt in enumerate(PROMPTS):
        call = {"progress": False, "decode_batch": None, **model.call}
        drawn = glass_flows.steer_pipeline(
            model.pipe, prompt, own, "best-of-n", Sampler(), particles=plain, seed=10**6, **call
        )
        pictures = to_pictures(drawn.images)
        for name, reward in four(own).items():
            rewards = reward(pictures, [prompt] * plain)
            result = glass_flows.steer_pipeline(
                model.pipe, prompt, reward, particles=8, seed=seed, **call
            )
            yield f"shapes, {prompt}", name, seed, result.result, rewards


def check(counts: list[int]) -> None:
    print("| world | reward | seed | spread | λ | nats by plain samples | nats told by the run |")
    print("|-|-|-|-|-|-|-|")
    held, told, runs = 0, 0, 0
    for world in (digits(counts[0]), shapes(counts[1])):
        for name, reward, seed, result, rewards in world:
            strength = result.strength
            got, said = exact(strength.scale, rewards), sum(strength.nats)
            runs += 1
            held += NATS / 2 <= got <= 2 * NATS
            told += NATS / 2 <= said <= 2 * NATS
            print(
                f"| {name} | {reward} | {seed} | {float(rewards.std()):.3g} | "
                f"{strength.scale:.3g} | {got:.2f} | {said:.2f} |",
                flush=True,
            )
    print(
        f"\nWithin a factor of two of {NATS} nats: {held} of {runs}; as the runs tell it: {told}."
    )


def choose(populations: int) -> None:
    model = resolve("digits")
    judge = model.classifiers["judge"]
    print("| nats | λ | best reward | judge, % | mean reward | ESS | ancestors | one ancestor, % |")
    print("|-|-|-|-|-|-|-|-|")
    for nats in STRENGTHS:
        found = []
        for label in (1, 3, 8):
            reward = ClassReward(model.classifiers["reward"], label)
            result = glass_flows.steer(
                model.denoiser, reward, Steering(8, Auto(nats)), shape=IMAGE,
                populations=populations, seed=label, progress=False,
            )  # fmt: skip
            with torch.no_grad():
                right = judge(result.best).argmax(1) == label
            strength, mean = result.strength, lambda listed: sum(listed) / len(listed)
            alone = [one == 1 for one in strength.ancestors]
            columns = (
                strength.scale, result.rewards.amax(1).mean(), 100 * right.double().mean(),
                result.rewards.mean(), result.ess.mean(), mean(strength.ancestors),
                100 * mean(alone),
            )  # fmt: skip
            found.append([float(one) for one in columns])
        means = torch.tensor(found).mean(0).tolist()
        print(f"| {nats:.1f} | " + " | ".join(f"{one:.3g}" for one in means) + " |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("what", choices=("check", "choose"))
    parser.add_argument("--plain", nargs=2, type=int, default=[4000, 300])
    parser.add_argument("--populations", type=int, default=64)
    given = parser.parse_args()
    torch.set_num_threads(1)
    if given.what == "check":
        check(given.plain)
    else:
        choose(given.populations)


if __name__ == "__main__":
    main()
