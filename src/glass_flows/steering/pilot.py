"""The pilot of ``scale="auto"``: a few plain samples that say how far the reward is spread.

It has noise of its own, found from the run's seed by a purpose of its own, so that λ depends on no
particle of the run, whose evidence stays unbiased at that λ.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor

from ..denoisers import Costs, DenoiserLike, as_denoiser
from ..errors import InvalidArgument, RewardError
from ..guidance import GuidedDenoiser
from ..noise import PILOT, START, KeyedNoise, check_sizes
from ..plans import Sampler, Table
from ..rewards import Reward, RewardLike, as_reward
from .method import Method
from .population import Population, Run, check_asked, kept
from .shards import Shards
from .smc import BestOf
from .strength import NATS, Auto, Found, scale_for, spread

SAMPLES, EVALUATIONS = 24, 6
"""Plain samples of a pilot in all, and network evaluations of each."""

M = TypeVar("M", bound=Method)


def pilot_sampler(sampler: Sampler) -> Sampler:
    """A pilot's in a pipeline's own loop: few transitions, or the ODE in as many steps."""
    if sampler.evaluations <= EVALUATIONS:
        return sampler
    return Sampler(EVALUATIONS, 1, "ode", start=sampler.start)


def own_scale(method: Method, reward: RewardLike) -> Found | None:
    """λ of "auto" where it needs no pilot: the reward's own, or 1 where λ changes nothing."""
    scale, own = method.scale, as_reward(reward).steering_scale
    if isinstance(scale, Auto) and scale.nats is None:
        if own is not None:
            return Found(own)
        if not method.tilts:
            return Found(1.0, nats=0.0)
    return None


def needs_pilot(method: Method, reward: RewardLike) -> bool:
    return isinstance(method.scale, Auto) and own_scale(method, reward) is None


def settled(method: M, found: Found | None) -> M:
    """The method with λ as a number."""
    return method if found is None else replace(method, scale=found.scale)


def found_by(scale: Auto, rewards: Tensor, reward: RewardLike, evaluations: int) -> Found:
    """λ from the rewards (P, n) of plain samples.

    Raises
    ------
    RewardError
        They are all the same, or nearly all excluded.
    """
    nats = NATS if scale.nats is None else scale.nats
    try:
        value = scale_for(rewards, nats)
        width = float(spread(rewards).square().mean().sqrt())
    except InvalidArgument as reason:
        raise RewardError(
            f"scale='auto': of {rewards.numel()} plain samples' rewards {as_reward(reward).name!r} "
            f"{reason}, such as {float(rewards.flatten()[0]):g}, and say nothing of lambda: give "
            "scale= a number, or a reward with a finite floor that tells more samples apart"
        ) from None
    excluded = int((~torch.isfinite(rewards)).sum())
    return Found(value, nats, width, rewards.numel(), excluded, evaluations)


@dataclass(frozen=True)
class Pilot:
    """Plain samples beside a run: n of each population, by a table of their own.

    Attributes
    ----------
    scale : Auto
    table : Table
        The run's own if it asks for few evaluations, as those of few-step models do; else a short
        ODE from where the run begins.
    population : Population
    shards : Shards
        Dealt out like the run where there is enough of it, in pieces no larger than the run's.
    group : Shards
        The run's, all of whose processes take the rewards that the first has seen.
    """

    scale: Auto
    table: Table
    population: Population
    shards: Shards
    group: Shards

    @property
    def calls(self) -> int:
        """Denoiser calls, for progress bars."""
        return sum(len(transition.rows) for transition in self.table.transitions)

    def draw(
        self, denoiser: DenoiserLike, reward: RewardLike, advance: Callable[[], None]
    ) -> tuple[Found, Costs]:
        """λ, the same in all processes, and what it cost."""
        model = as_denoiser(denoiser)
        if isinstance(model, GuidedDenoiser):  # of the user's: plain is without
            model = model.denoiser
        plain = BestOf(self.population.particles)
        run = Run(
            self.table, model, reward, plain, self.population, shards=self.shards, advance=advance
        )
        with torch.no_grad():
            for end in run.boundaries():  # noqa: B007
                pass
            with kept(end):
                where = "the end of the pilot for scale='auto'"
                rewards = self.group.agreed(run.split(run.scorer.rewards(end.x, where)))
        costs = run.costs
        return found_by(self.scale, rewards, reward, costs.network_evaluations), costs


def pilot_of(
    method: Method,
    reward: RewardLike,
    table: Table,
    denoiser: DenoiserLike,
    population: Population,
    shards: Shards | None,
    also: Mapping[str, Reward],
) -> Pilot | None:
    """The pilot that a method's λ needs; None where it is a number, or found without.

    Raises
    ------
    InvalidArgument
        The run begins with particles that were given at a time after noise, of no known law.
    """
    scale = method.scale
    if not (isinstance(scale, Auto) and needs_pilot(method, reward)):
        return None
    model, P, N = as_denoiser(denoiser), population.count, population.particles
    check_asked(table, model, as_reward(reward), method, population, shards, also)
    if population.given and table.times[0] != 0.0:
        raise InvalidArgument(
            f"scale='auto' draws plain samples from noise, and here particles are given at t = "
            f"{table.times[0]:.6g}: give scale= a number"
        )
    if table.evaluations > EVALUATIONS:
        ode = replace(Sampler.ode(EVALUATIONS), times=(table.times[0], 1.0), start=table.start)
        table = ode.plan(model.path, model.cfg_scale)
    n = max(2, -(-SAMPLES // P))
    check_sizes(sizes := (P * n, *population.shape))
    seed, x = KeyedNoise(population.seed).seed_of(PILOT), population.x
    home = population.home(model) if x is None else x.device
    like = torch.empty(sizes, dtype=population.dtype if x is None else x.dtype, device=home)
    prompts = population.prompts and population.prompts[::N]
    noise = KeyedNoise(seed)(0, like, START)
    beside = replace(
        population,
        particles=n,
        prompts=prompts and tuple(p for p in prompts for _ in range(n)),
        seed=seed,
        x=noise * table.start_scale,
        init=None,
    )
    if population.around is not None:
        beside = beside.at(noise).noising(population.around, table.path, table.times[0])
    group = shards or Shards.alone()
    return Pilot(scale, table, beside, _dealt(group, len(population), P * n), group)


def _dealt(shards: Shards, rows: int, count: int) -> Shards:
    """For `count` samples beside a run of so many rows, in pieces of the same size."""
    size = shards.micro_batch or -(-rows // shards.count)
    if -(-count // size) < shards.count or shards.count == 1:
        return Shards.alone(size)
    return Shards(size)
