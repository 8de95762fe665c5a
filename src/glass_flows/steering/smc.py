"""Feynman-Kac steering: sequential Monte Carlo over the transitions of a sampler.

Particles carry log-weights. At every boundary the free value V = λ r(D_t(x_t)) is taken (the first
network evaluation of the transition, no extra one), the weight is multiplied by exp(V - V_before)
along the particle's ancestry, and a population whose effective sample size has fallen under a
fraction of N is resampled. At the end V = λ r(x_1), so that the product of the factors along a path
is exp(λ r(x_1)) exactly: the weighted particles target p(z) exp(λ r(z)), whatever the values were.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..errors import InvalidArgument, NonFinite, PlanError, ShapeError, check_count, check_name
from ..execute import Boundary, check_denoiser, iterate
from ..grids import Times
from ..noise import RESAMPLING, KeyedNoise
from ..plans import Rho, Solver, Table, plan
from ..progress import progress_bar
from ..sampling import check_whole, starting_noise, ticking
from .resampling import RESAMPLERS, Resampler
from .weights import LogWeights

__all__ = [
    "Reward",
    "SteeringResult",
    "SteeringStep",
    "check_settings",
    "evaluate",
    "iterate_steering",
    "steer",
]

Reward = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class SteeringStep:
    """What happened at one boundary; P populations of N particles.

    Attributes
    ----------
    boundary : Boundary
        The executor's pause, after resampling; at the end it holds the samples.
    rewards : Tensor
        (P, N), r(D_t(x_t)) before resampling; at the end r(x_1).
    log_weights : LogWeights
        After resampling.
    ess : Tensor
        (P,), before resampling.
    ancestors : Tensor
        (P, N) int64, within the population; 0..N-1 where nothing was resampled.
    log_evidence : Tensor
        (P,), the estimate of log E[exp(λ V)] so far.
    """

    boundary: Boundary
    rewards: Tensor
    log_weights: LogWeights
    ess: Tensor
    ancestors: Tensor
    log_evidence: Tensor


@dataclass(frozen=True)
class SteeringResult:
    """All particles of a finished run, P populations of N.

    Attributes
    ----------
    samples : Tensor
        (P, N, *shape).
    rewards : Tensor
        (P, N), r of the samples, not multiplied by λ.
    log_weights : Tensor
        (P, N), unnormalised: weighted by them the samples target p(z) exp(λ r(z)).
    ancestry : Tensor
        (K, P, N): ancestors chosen at the start of each transition.
    ess : Tensor
        (K + 1, P), effective sample size at every boundary and at the end, before resampling.
    log_evidence : Tensor
        (P,), an estimate of log E_p[exp(λ r)]; its exponential is unbiased.
    network_evaluations, reward_evaluations : int
        In all, counted per particle (a guided evaluation with two batches counts as two).
    """

    samples: Tensor
    rewards: Tensor
    log_weights: Tensor
    ancestry: Tensor
    ess: Tensor
    log_evidence: Tensor
    network_evaluations: int
    reward_evaluations: int

    @property
    def best(self) -> Tensor:
        """The sample of the highest reward in each population, (P, *shape)."""
        return self.samples[torch.arange(len(self.samples)), self.rewards.argmax(1)]


def steer(
    denoiser: DenoiserLike,
    reward: Reward,
    *,
    shape: Sequence[int],
    particles: int,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho],
    scale: float = 1.0,
    populations: int = 1,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    progress: bool | None = None,
) -> SteeringResult:
    """Samples of p(z) exp(λ r(z)) by sequential Monte Carlo at transition boundaries.

    Parameters
    ----------
    reward : callable
        (B, *shape) clean samples to (B,) rewards, higher is better. -inf excludes a sample,
        and where particles are resampled also those whose estimate D is excluded, which biases the
        law: give such rewards a finite floor, or ``ess_threshold=0``.
    shape : sequence of int
        Of one sample, without the batch.
    particles : int
        N >= 1 per population.
    scale : float
        λ >= 0 of the final target.
    populations : int
        P >= 1 independent runs in one batch of P N particles.
    resampling : "systematic" or "multinomial"
    ess_threshold : float
        Resample a population when its effective sample size is at most this fraction of N: 1
        resamples at every boundary, 0 never (importance sampling).
    transitions, steps, rho, times, solver, start, seed, dtype, device, progress
        See :func:`glass_flows.sample`; times run from 0 to 1. A transition must draw noise for its
        start to be resampled (copies would stay copies): with the ODE nothing ever is.

    Raises
    ------
    InvalidArgument, ShapeError, UnknownName, PlanError, NonFinite, DegenerateWeights
    """
    check_denoiser(denoiser)
    table = plan(
        denoiser.path,
        transitions=transitions,
        steps=steps,
        rho=rho,
        times=times,
        solver=solver,
        start=start,
    )
    ancestry, ess = [], []
    with progress_bar(table.evaluations, progress, "steering") as advance:
        for step in iterate_steering(
            table,
            ticking(denoiser, advance),
            reward,
            shape=shape,
            particles=particles,
            scale=scale,
            populations=populations,
            resampling=resampling,
            ess_threshold=ess_threshold,
            seed=seed,
            dtype=dtype,
            device=device if device is not None else getattr(denoiser, "device", None),
        ):
            ancestry.append(step.ancestors)
            ess.append(step.ess)
    batch = populations * particles
    return SteeringResult(
        samples=step.boundary.x.view(populations, particles, *shape),
        rewards=step.rewards,
        log_weights=step.log_weights.values,
        ancestry=torch.stack(ancestry[:-1]),
        ess=torch.stack(ess),
        log_evidence=step.log_evidence,
        network_evaluations=batch * table.evaluations * denoiser.evaluations_per_call,
        reward_evaluations=batch * len(ess),
    )


@torch.no_grad()
def iterate_steering(
    table: Table,
    denoiser: DenoiserLike,
    reward: Reward,
    *,
    shape: Sequence[int],
    particles: int,
    scale: float = 1.0,
    populations: int = 1,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
) -> Iterator[SteeringStep]:
    """:func:`steer` as an iterator over boundaries, for those who want to look or intervene."""
    check_denoiser(denoiser)
    check_whole(table)
    choose = check_settings(table, particles, populations, scale, resampling, ess_threshold)
    noise = KeyedNoise(seed)
    home = device if device is not None else getattr(denoiser, "device", None)
    x = starting_noise(table, (populations * particles, *shape), noise, dtype, home)
    one = LogWeights.uniform(populations, particles)
    settled = torch.zeros_like(one.values)  # V when the particle was last resampled
    log_evidence = torch.zeros(populations, dtype=torch.float64)
    stay = torch.arange(particles).expand(populations, -1)
    for boundary in iterate(table, denoiser, x, noise):
        where = "the end" if boundary.final else f"boundary {boundary.index} (t = {boundary.t:.6g})"
        rewards = evaluate(reward, boundary.D, where).view(populations, particles)
        value = scale * rewards if scale > 0 else torch.zeros_like(rewards)
        open_to_it = boundary.transition is not None and boundary.transition.stochastic
        needed = boundary.final or (open_to_it and ess_threshold > 0)
        # The factors since the last resampling telescope: only their product is ever formed.
        weights = one.times(value - settled, where, all_may_vanish=not needed)
        ess, ancestors = weights.ess(), stay
        tired = ess <= ess_threshold * particles
        if open_to_it and tired.any() and ess_threshold > 0:
            shares = weights.normalized().numpy()
            ancestors = stay.clone()
            for p in torch.nonzero(tired).flatten().tolist():
                bits = noise.bits(RESAMPLING, boundary.index, p)
                ancestors[p] = torch.from_numpy(choose(shares[p], bits))
            first = torch.arange(populations)[:, None] * particles
            boundary.select((ancestors + first).flatten().to(boundary.x.device))
            settled = torch.where(tired[:, None], value.gather(1, ancestors), settled)
            log_evidence = log_evidence + torch.where(tired, weights.log_mean(), 0.0)
            weights = LogWeights(torch.where(tired[:, None], 0.0, weights.values))
        evidence = log_evidence + weights.log_mean()
        yield SteeringStep(boundary, rewards, weights, ess, ancestors, evidence)


def evaluate(reward: Reward, z: Tensor, where: str) -> Tensor:
    """r(z) as float64 on the CPU, (B,), checked; `where` names the place in errors."""
    rewards = reward(z)
    if not isinstance(rewards, Tensor) or rewards.shape != z.shape[:1]:
        given = tuple(rewards.shape) if isinstance(rewards, Tensor) else type(rewards).__name__
        raise ShapeError(
            f"the reward must return a tensor of shape ({z.shape[0]},), one number per sample, "
            f"got {given} at {where}"
        )
    rewards = rewards.detach().to("cpu", torch.float64)
    bad = torch.nonzero(torch.isnan(rewards) | (rewards == math.inf)).flatten()
    if len(bad):
        raise NonFinite(
            f"the reward returned NaN or +inf at {where} for particles {bad[:8].tolist()} "
            f"({len(bad)} of {len(rewards)})",
            tuple(bad.tolist()),
        )
    return rewards


def check_settings(
    table: Table,
    particles: int,
    populations: int,
    scale: float,
    resampling: str,
    ess_threshold: float,
) -> Resampler:
    """The resampling scheme, once every setting of a steered run has been checked."""
    check_count("particles", particles)
    check_count("populations", populations)
    if not 0.0 <= scale < math.inf:
        raise InvalidArgument(f"scale (lambda) must be a finite number >= 0, got {scale!r}")
    if not 0.0 <= ess_threshold <= 1.0:
        raise InvalidArgument(f"ess_threshold must lie in [0, 1], got {ess_threshold!r}")
    for index, transition in enumerate(table):
        if not transition.free_value:
            raise PlanError(
                f"transition {index} does not start by asking for D_t(x_t), so that it has no free "
                "value to steer by (a cut s range of the paper's solver does this)"
            )
    return RESAMPLERS[check_name("resampling scheme", resampling, RESAMPLERS)]
