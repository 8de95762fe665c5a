"""Time spent outside the network, at the shape of FLUX latents: `python -m benchmarks.overhead`.

A free network (it hands back one tensor) leaves the sampler's own work: linear combinations, the
conversion from velocity to D, the check for NaN, the noise. It is set beside the step of the
scheduler that FLUX comes with, as it is and drawing noise at every step, and beside a
straightforward implementation of Algorithm 1 that builds and inverts the 2x2 matrix at every step,
its state in float64 (the authors' default) and in float32. All take turns in one run, and only
ratios mean something on another machine. On one thread it is processor time that is counted, which
others on the machine disturb least.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

import glass_flows
from glass_flows.diffusers import GlassScheduler
from glass_flows.execute import run
from glass_flows.noise import KeyedNoise

LATENTS, RHO = (4096, 64), 0.4
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}


def algorithm1(
    velocity: Callable[[Tensor, Tensor], Tensor],
    x: Tensor,
    times: list[float],
    rho: float,
    steps: int,
    dtype: torch.dtype,
) -> Tensor:
    """Algorithm 1 as one would write it from the paper: linear path, Euler in s, σ̄_0 = 1."""
    x = x.to(dtype)
    s = torch.linspace(0.001, 0.999, steps + 1, dtype=dtype)
    for t, t_next in pairwise(times):
        sigma, alpha, sigma_next = max(1.0 - t, 1e-3), t, 1.0 - t_next
        gamma = rho * sigma_next / sigma
        alpha_end = t_next - gamma * alpha
        sigma_end = sigma_next * (1.0 - rho**2) ** 0.5
        inner = gamma * x + torch.randn(x.shape, dtype=dtype)
        for i in range(steps):
            alpha_bar, sigma_bar = s[i] * alpha_end, (1 - s[i]) + s[i] * sigma_end
            mu = torch.stack([torch.tensor(alpha, dtype=dtype), alpha_bar + gamma * alpha])
            shared = torch.tensor(gamma * sigma**2, dtype=dtype)
            noise = torch.stack(
                [
                    torch.stack([torch.tensor(sigma**2, dtype=dtype), shared]),
                    torch.stack([shared, sigma_bar**2 + gamma**2 * sigma**2]),
                ]
            )
            weights = torch.linalg.inv(noise) @ mu
            precision = (mu * weights).sum()
            statistic = (weights[0] * x + weights[1] * inner) / precision
            asked = precision.sqrt() / (1 + precision.sqrt())
            network_input = (asked * statistic).float()
            v = velocity(network_input, asked.float().expand(x.shape[0])).to(dtype)
            D = asked * statistic + (1 - asked) * v
            w1 = (sigma_end - 1.0) / sigma_bar
            w2 = alpha_end - alpha_bar * w1
            inner = inner + (s[i + 1] - s[i]) * (w1 * inner + w2 * D - w1 * gamma * x)
        x = inner
    return x


class FreeNetwork:
    """Hands back one tensor, and notes when it is called: what passes in between is overhead."""

    def __init__(self, answer: Tensor, clock: Callable[[], float]) -> None:
        self.answer, self.clock = answer, clock
        self.marks: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.marks.append(self.clock())
        return self.answer


def glass(K: int, M: int, solver: str, network: FreeNetwork, x: Tensor) -> Callable[[], object]:
    """Our executor in its own loop."""
    path = glass_flows.paths.Linear()
    table = glass_flows.plan(path, transitions=K, steps=M, rho=RHO, solver=solver)
    return partial(run, table, glass_flows.Denoiser(network, path), x, KeyedNoise(0))


def scheduled(scheduler: Any, count: int, network: FreeNetwork, x: Tensor) -> Callable[[], object]:
    """A diffusers scheduler in the loop of its pipelines, asked for `count` steps."""

    def work() -> None:
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=1.15)
        scheduler.set_begin_index(0)
        latents = x
        for t in scheduler.timesteps:
            latents = scheduler.step(network(latents, t), t, latents, return_dict=False)[0]

    return work


class Row:
    """One sampler: the time between its network calls, each piece with its fastest repeat."""

    def __init__(self, name: str, work: Callable[[], object]) -> None:
        self.name, self.work, self.pieces = name, work, [float("inf")] * 10_000
        self.calls = 0

    def repeat(self, network: FreeNetwork) -> None:
        network.marks = []
        self.work()
        marks = [*network.marks, network.clock()]
        self.calls = len(network.marks)
        spent = (after - before for before, after in pairwise(marks))
        self.pieces = [min(both) for both in zip(self.pieces, spent)]

    @property
    def seconds(self) -> float:
        """Per network evaluation."""
        return sum(self.pieces) / self.calls


def only_noise(network: FreeNetwork, x: Tensor, generator: torch.Generator) -> None:
    """No sampler, only torch's own normals: what drawing noise costs at the very least."""
    network(x, x)
    torch.empty_like(x).normal_(generator=generator)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--batch", type=int, default=8, help="latents (default: 8)")
    parser.add_argument("--transitions", type=int, default=6, help="K (default: 6)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=9, help="rounds of all (default: 9)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    K, x = options.transitions, torch.randn(options.batch, *LATENTS)
    clock = time.process_time if options.threads == 1 else time.perf_counter
    network = FreeNetwork(torch.randn(x.shape), clock)
    own, noisy = (
        FlowMatchEulerDiscreteScheduler(**FLUX, stochastic_sampling=stochastic)
        for stochastic in (False, True)
    )
    config = {**own.config, "_class_name": type(own).__name__}
    drop_in = {M: GlassScheduler.from_config(config, rho=RHO, steps=M) for M in (1, 4, 10)}
    times = [i / K for i in range(K + 1)]
    rows = [
        Row("FlowMatchEuler", scheduled(own, 4 * K, network, x)),
        Row("FlowMatchEuler, stochastic", scheduled(noisy, 4 * K, network, x)),
        Row("torch's own noise alone", partial(only_noise, network, x, torch.Generator())),
        *(
            Row(f"GlassScheduler, M = {M}", scheduled(scheduler, K, network, x))
            for M, scheduler in drop_in.items()
        ),
        *(
            Row(f"glass-flows, {solver}, M = {M}", glass(K, M, solver, network, x))
            for solver, M in (("default", 1), ("default", 4), ("default", 10),
                              ("first-order", 10), ("paper", 10))
        ),
        *(
            Row(
                f"Algorithm 1, {str(dtype)[6:]}, M = 10",
                partial(algorithm1, network, x, times, RHO, 10, dtype),
            )
            for dtype in (torch.float32, torch.float64)
        ),
    ]  # fmt: skip
    with torch.no_grad():
        for _ in range(options.repeats):  # by turns, so that what disturbs one disturbs all
            for row in rows:
                row.repeat(network)
    euler = rows[0].seconds
    plain = rows[-2].seconds
    print(f"state {tuple(x.shape)} float32, K = {K}, rho = {RHO}, {options.threads} thread(s)\n")
    print("| sampler | ms per evaluation | of FlowMatchEuler's step | of Algorithm 1, float32 |")
    print("|---|---|---|---|")
    for row in rows:
        each = row.seconds
        print(f"| {row.name} | {1e3 * each:.2f} | {each / euler:.2f} | {each / plain:.2f} |")
    return 0


if __name__ == "__main__":
    sys.exit(main())
