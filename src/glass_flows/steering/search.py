"""Search: the best of independent samples, beams, and greedy selection at every transition.

The same machinery as steering, with a rule that keeps the best instead of weights: beams and greedy
selection do not target p(z) exp(λ r(z)), they look for a high reward.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..errors import check_count, check_name
from ..execute import Boundary, check_denoiser
from ..grids import Times
from ..guidance import Guidance
from ..noise import RESAMPLING, KeyedNoise
from ..plans import Rho, Solver, plan
from ..progress import progress_bar
from ..rewards import RewardLike
from .run import Boundaries, Population, Run, SearchResult, kept, place, steered_boundaries
from .smc import SteeringResult, check_scale, steer
from .values import AnyValue, planned_calls, resolve_value, scaled
from .weights import LogWeights

__all__ = ["beam", "best_of", "greedy"]

Choice = Callable[[Tensor, Boundary, KeyedNoise], Tensor]
"""Values (G, S) of G groups at a boundary to ancestors (G, S) within each group."""


def best_of(
    denoiser: DenoiserLike,
    reward: RewardLike,
    *,
    shape: Sequence[int],
    particles: int,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho] = "ode",
    **options: Any,
) -> SteeringResult:
    """Best-of-N: N independent samples per population, never resampled; `result.best` is it.

    By default with the probability-flow ODE, which is best as one transition of many steps; any ρ
    works. Rewards are taken at the end only. Options as in :func:`~glass_flows.steer`.
    """
    return steer(
        denoiser,
        reward,
        shape=shape,
        particles=particles,
        transitions=transitions,
        steps=steps,
        rho=rho,
        ess_threshold=0.0,
        **options,
    )


def beam(
    denoiser: DenoiserLike,
    reward: RewardLike,
    *,
    shape: Sequence[int],
    beams: int,
    children: int,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho],
    **options: Any,
) -> SearchResult:
    """Beam search: at every boundary keep the best b of b·w particles, each with w children.

    Parameters
    ----------
    beams, children : int
        b and w >= 1; a population is N = b w particles all along, each child with noise of its own.
    options
        `scale`, `value`, `boundaries`, `guidance`, `populations`, `prompts`, `times`, `solver`,
        `start`, `seed`, `dtype`, `device`, `x` and `progress` as in :func:`~glass_flows.steer`.

    Returns
    -------
    SearchResult
        All b w particles of the last generation; `best` is the best of them.
    """
    check_count("beams", beams)
    check_count("children", children)

    def keep(values: Tensor, boundary: Boundary, noise: KeyedNoise) -> Tensor:
        return values.topk(beams, dim=1).indices.repeat_interleave(children, 1)

    return _search(
        denoiser, reward, shape, beams * children, 1, keep, transitions, steps, rho, **options
    )


def greedy(
    denoiser: DenoiserLike,
    reward: RewardLike,
    *,
    shape: Sequence[int],
    particles: int,
    children: int,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho],
    pick: str = "best",
    scale: float = 1.0,
    **options: Any,
) -> SearchResult:
    """Each of N particles has w children at every transition and goes on from one of them.

    With ``pick="sample"`` this is SVDD (Li et al., "Derivative-Free Guidance in Continuous and
    Discrete Diffusion Models with Soft Value-Based Decoding", arXiv 2408.08252): the child is drawn
    with probability proportional to exp(V), where V = λ r(D) and λ is the 1/α of that paper. With
    ``pick="best"`` it is the limit of large λ.

    Parameters
    ----------
    particles, children : int
        N and w >= 1: a population costs as much as N w particles.
    pick : "best" or "sample"
    options
        As in :func:`beam`.

    Returns
    -------
    SearchResult
        The N particles picked at the end; its `ancestry` numbers all N w children, of which
        particle i's are i w to i w + w - 1.
    """
    check_count("particles", particles)
    check_count("children", children)
    check_name("pick", pick, ("best", "sample"))

    def choose(values: Tensor, boundary: Boundary, noise: KeyedNoise) -> Tensor:
        if pick == "best":
            return values.argmax(1, keepdim=True).expand_as(values)
        weights = LogWeights.uniform(*values.shape).times(values, place(boundary))
        drawn = [
            np.random.Generator(noise.bits(RESAMPLING, boundary.index, g)).choice(children, p=share)
            for g, share in enumerate(weights.normalized().numpy())
        ]
        return torch.tensor(drawn)[:, None].expand_as(values)

    return _search(
        denoiser, reward, shape, particles * children, particles, choose, transitions, steps, rho,
        scale=scale, last=True, **options,
    )  # fmt: skip


@torch.no_grad()
def _search(
    denoiser: DenoiserLike,
    reward: RewardLike,
    shape: Sequence[int],
    particles: int,
    groups: int,
    choose: Choice,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho],
    *,
    last: bool = False,
    scale: float = 1.0,
    value: AnyValue = "free",
    boundaries: Boundaries = None,
    guidance: Guidance | None = None,
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Keep at every steered boundary, and with `last` at the end, what `choose` says in a group."""
    check_denoiser(denoiser)
    check_scale(scale)
    valued = resolve_value(value)
    table = plan(
        denoiser.path, transitions=transitions, steps=steps, rho=rho, times=times, solver=solver,
        start=start,
    )  # fmt: skip
    steered = steered_boundaries(table, boundaries, decides=True)
    population = Population.of(particles, populations, prompts)
    P, size = population.count, particles // groups
    first = torch.arange(groups).repeat_interleave(size) * size
    ancestry = []
    with progress_bar(planned_calls(table, steered, valued), progress, "searching") as advance:
        run = Run(
            table, denoiser, reward, population, shape=shape, scale=scale, guidance=guidance,
            seed=seed, dtype=dtype, device=device, x=x, advance=advance,
        )  # fmt: skip

        def ancestors(values: Tensor, boundary: Boundary) -> Tensor:
            chosen = choose(values.view(P * groups, size), boundary, run.noise)
            return chosen.reshape(P, -1) + first

        for boundary in run.boundaries():
            chosen = torch.arange(particles).repeat(P, 1)
            with kept(boundary):
                if boundary.final:
                    rewards = run.scorer.rewards(boundary.x, place(boundary)).view(P, -1)
                elif boundary.index in steered and boundary.stochastic:
                    values, _ = valued(run.look(boundary))
                    chosen = ancestors(values, boundary)
                    boundary.select(population.rows(chosen).to(boundary.x.device))
            ancestry.append(chosen)
        samples = boundary.x.view(P, particles, *shape)
        if last:
            with kept(boundary):
                slots = ancestors(scaled(scale, rewards), boundary)[:, ::size]
            rewards = rewards.gather(1, slots)
            samples = samples[torch.arange(P)[:, None], slots.to(samples.device)]
    return SearchResult(samples, rewards, torch.stack(ancestry[:-1]), run.costs)
