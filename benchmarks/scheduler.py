"""Time per step of the drop-in scheduler, at FLUX's latents: `python -m benchmarks.scheduler`.

The same K M steps are taken by `GlassScheduler` and by the family's own
`FlowMatchEulerDiscreteScheduler`, with a network that hands back one tensor. The limit: 1.3 times
the family's own scheduler plus the passes over the state that the executor itself is allowed in
`benchmarks.overhead` (24), all measured in the same run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from typing import Any

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import numpy as np
import torch
from diffusers import FlowMatchEulerDiscreteScheduler
from torch import Tensor

from glass_flows.diffusers import GlassScheduler

SHAPE = (8, 4096, 64)
FLUX = {"use_dynamic_shifting": True, "base_shift": 0.5, "max_shift": 1.15, "shift": 3.0}
PASSES = 24


def seconds(scheduler: Any, count: int, latents: Tensor, output: Tensor, repeats: int) -> float:
    """Seconds per step; every step counts with its fastest repeat."""
    best = [float("inf")] * 1000
    for _ in range(repeats):
        scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / count, count), mu=1.15)
        scheduler.set_begin_index(0)
        x = latents
        for i, t in enumerate(scheduler.timesteps):
            start = time.perf_counter()
            x = scheduler.step(output, t, x, return_dict=False)[0]
            best[i] = min(best[i], time.perf_counter() - start)
    steps = len(scheduler.timesteps)
    return sum(best[:steps]) / steps


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--transitions", type=int, default=6, help="K (default: 6)")
    parser.add_argument("--threads", type=int, default=1, help="torch threads (default: 1)")
    parser.add_argument("--repeats", type=int, default=5, help="runs of each (default: 5)")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    torch.manual_seed(0)
    latents, output, scaled = torch.randn(SHAPE), torch.randn(SHAPE), torch.empty(SHAPE)
    own = FlowMatchEulerDiscreteScheduler(**FLUX)
    config = {**own.config, "_class_name": type(own).__name__}
    K = options.transitions
    with torch.no_grad():
        theirs = seconds(own, 4 * K, latents, output, options.repeats)
        rows = {
            M: seconds(
                GlassScheduler.from_config(config, rho=0.4, steps=M),
                K,
                latents,
                output,
                options.repeats,
            )
            for M in (1, 4, 10)
        }
        copies = []
        for _ in range(200):
            start = time.perf_counter()
            torch.mul(latents, 1.1, out=scaled)
            copies.append(time.perf_counter() - start)
    one_pass = min(copies) / 2
    limit = 1.3 * theirs + PASSES * one_pass
    print(f"latents {SHAPE} float32, K = {K}, rho = 0.4, {options.threads} thread(s); one pass")
    print(f"over the state: {1e3 * one_pass:.3f} ms. Noise included.\n")
    print("| scheduler | ms per step | passes | times the family's own |")
    print("|---|---|---|---|")
    print(f"| FlowMatchEuler | {1e3 * theirs:.2f} | {theirs / one_pass:.1f} | 1.00 |")
    for M, each in rows.items():
        print(
            f"| GlassScheduler, M = {M} | {1e3 * each:.2f} | {each / one_pass:.1f} | "
            f"{each / theirs:.2f} |"
        )
    print()
    failed = 0
    for M in (4, 10):
        passed = rows[M] <= limit
        failed += not passed
        print(
            f"{'PASS' if passed else 'FAIL'} M = {M}: {1e3 * rows[M]:.2f} ms <= 1.3 * "
            f"{1e3 * theirs:.2f} + {PASSES} * {1e3 * one_pass:.3f} = {1e3 * limit:.2f} ms"
        )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
