"""Time spent outside the network, at the shape of FLUX latents: `python -m benchmarks.overhead`.

A free network (it hands back one tensor) leaves the sampler's own work: linear combinations, the
conversion from velocity to D, the check for NaN, the noise. It is compared, in the same run, with a
straightforward implementation of Algorithm 1 that builds and inverts the 2x2 matrix at every step,
its state in float64 (the authors' default) and in float32; and with the cost of one pass over the
state in memory (half of a scaled copy, which reads it once and writes it once).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from functools import partial
from itertools import pairwise

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
from torch import Tensor

import glass_flows
from glass_flows.execute import run
from glass_flows.noise import KeyedNoise

SHAPE = (8, 4096, 64)


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

    def __init__(self, answer: Tensor) -> None:
        self.answer = answer
        self.marks: list[float] = []

    def __call__(self, x: Tensor, t: Tensor) -> Tensor:
        self.marks.append(time.perf_counter())
        return self.answer


def overhead(network: FreeNetwork, work: Callable[[], object], repeats: int) -> float:
    """Seconds per network evaluation spent outside the network.

    The run is cut at the network calls, and each piece counts with its fastest repeat: the one that
    other processes disturbed least.
    """
    pieces: list[list[float]] = []
    for _ in range(repeats):
        network.marks = [time.perf_counter()]
        work()
        marks = [*network.marks, time.perf_counter()]
        pieces.append([after - before for before, after in pairwise(marks)])
    return sum(map(min, zip(*pieces))) / (len(pieces[0]) - 1)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--transitions", type=int, default=6, help="K (default: 6)")
    parser.add_argument("--steps", type=int, default=10, help="M (default: 10)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    K, M, rho = options.transitions, options.steps, 0.4
    x = torch.randn(SHAPE)
    network = FreeNetwork(torch.randn(SHAPE))
    path = glass_flows.paths.Linear()
    denoiser = glass_flows.Denoiser(network, path)
    times = [i / K for i in range(K + 1)]
    scaled = torch.empty_like(x)
    rows: dict[str, float] = {}
    with torch.no_grad():
        for solver, steps in (("default", M), ("default", 4), ("first-order", M), ("paper", M)):
            table = glass_flows.plan(path, transitions=K, steps=steps, rho=rho, solver=solver)
            rows[f"glass-flows, {solver}, M = {steps}"] = overhead(
                network, partial(run, table, denoiser, x, KeyedNoise(0)), options.repeats
            )
        for dtype in (torch.float64, torch.float32):
            rows[f"straightforward Algorithm 1, {str(dtype)[6:]}, M = {M}"] = overhead(
                network, partial(algorithm1, network, x, times, rho, M, dtype), options.repeats
            )
        copies: list[float] = []
        for _ in range(200):
            start = time.perf_counter()
            torch.mul(x, 1.1, out=scaled)
            copies.append(time.perf_counter() - start)
    one_pass = min(copies) / 2
    print(
        f"state {SHAPE} float32, K = {K}, rho = {rho}, {options.threads} thread(s); one pass over"
    )
    print(f"the state: {1e3 * one_pass:.3f} ms. Noise included.\n")
    print("| sampler | ms per network evaluation | passes | times ours |")
    print("|---|---|---|---|")
    own = rows[f"glass-flows, default, M = {M}"]
    for name, each in rows.items():
        print(f"| {name} | {1e3 * each:.2f} | {each / one_pass:.1f} | {each / own:.2f} |")
    ratios = {
        dtype: rows[f"straightforward Algorithm 1, {dtype}, M = {M}"] / own
        for dtype in ("float64", "float32")
    }
    verdicts = {
        f"passes {own / one_pass:.1f} <= 24": own / one_pass <= 24,
        f"float64 ratio {ratios['float64']:.2f} >= 5": ratios["float64"] >= 5,
        f"float32 ratio {ratios['float32']:.2f} >= 2.5": ratios["float32"] >= 2.5,
    }
    print()
    for what, passed in verdicts.items():
        print(f"{'PASS' if passed else 'FAIL'} {what}")
    return 0 if all(verdicts.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
