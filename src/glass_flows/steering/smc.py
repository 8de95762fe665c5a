"""Feynman-Kac steering: sequential Monte Carlo over the transitions of a sampler.

Particles carry log-weights. At every steered boundary the values V of the particles are taken (the
free one, λ r(D_t(x_t)), costs no network evaluation), a potential turns them into a factor of the
weight, and a population whose effective sample size has fallen under a fraction of N is resampled.
At the end the product of the factors along every path is exp(λ r(x_1)): the weighted particles
target p(z) exp(λ r(z)), whatever values, potentials, schedules and thresholds did on the way.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..errors import InvalidArgument, check_count, check_name, check_number
from ..execute import Boundary, check_denoiser
from ..grids import Times
from ..guidance import Guidance, GuidedDenoiser
from ..noise import RESAMPLING, KeyedNoise
from ..plans import Rho, Solver, Table, plan
from ..progress import progress_bar
from ..rewards import RewardLike
from .potentials import POTENTIALS, Potential
from .resampling import RESAMPLERS
from .run import (
    Boundaries,
    Costs,
    Population,
    Run,
    SearchResult,
    kept,
    place,
    steered_boundaries,
)
from .saved import History, Recorder, Saved, under
from .schedules import Adaptive, Schedule, check_schedule, share_at
from .shards import Shards
from .twist import Twist, Twister, informative
from .values import AnyValue, planned_calls, resolve_value, scaled
from .weights import LogWeights

__all__ = [
    "Steering",
    "SteeringResult",
    "SteeringStep",
    "check_scale",
    "collect",
    "iterate_steering",
    "steer",
    "steer_boundaries",
]


@dataclass(frozen=True)
class Steering:
    """The settings of a steered run, checked when made; see :func:`steer` for each.

    Names and numbers become what they stand for: `value` is a Value, `twist` a Twist.
    """

    particles: int
    scale: float = 1.0
    potential: str = "difference"
    schedule: Schedule = "constant"
    boundaries: Boundaries = None
    resampling: str = "systematic"
    ess_threshold: float = 0.5
    value: Any = "free"
    guidance: Guidance | None = None
    twist: Any = 0.0
    degenerate: str = "error"

    def __post_init__(self) -> None:
        check_count("particles", self.particles)
        check_scale(self.scale)
        check_number("ess_threshold", self.ess_threshold, "lie in [0, 1]", lambda v: 0 <= v <= 1)
        check_name("potential", self.potential, POTENTIALS)
        check_name("resampling scheme", self.resampling, RESAMPLERS)
        check_name("degenerate", self.degenerate, ("error", "carry"))
        if self.guidance is not None and not isinstance(self.guidance, Guidance):
            raise InvalidArgument(
                f"guidance must be glass_flows.Guidance(...) or None, got {self.guidance!r}"
            )
        object.__setattr__(self, "schedule", check_schedule(self.schedule))
        object.__setattr__(self, "value", resolve_value(self.value))
        if not isinstance(self.twist, Twist):
            check_number("twist", self.twist, "be finite and >= 0", lambda v: 0 <= v < math.inf)
            object.__setattr__(self, "twist", Twist(self.twist))

    @property
    def guided(self) -> bool:
        return self.guidance is not None and self.guidance.scale > 0.0

    @property
    def twisted(self) -> bool:
        return self.twist.scale > 0.0 and self.scale > 0.0

    def steered(self, table: Table) -> frozenset[int]:
        """The transition starts at which values are taken."""
        return steered_boundaries(table, self.boundaries, self.ess_threshold > 0 or self.twisted)

    def check(self, table: Table) -> None:
        """Raise unless the table can be steered in this way."""
        for k in self.steered(table) | {0}:
            share_at(self.schedule, k, table.times[k], len(table))

    def share(
        self, boundary: Boundary, table: Table, paths: _Paths, value: Tensor, before: Tensor
    ) -> Tensor:
        """λ_k/λ of each population at a boundary, (P, 1); `before` is the last one."""
        if isinstance(self.schedule, Adaptive):
            return self.schedule.choose(
                lambda share: paths.valued(scaled(share, value)).log_weights(), before
            )
        fixed = share_at(self.schedule, boundary.index, boundary.t, len(table))
        return torch.full_like(before, fixed)

    def share_ahead(self, index: int, table: Table, share: Tensor) -> Tensor:
        """λ/λ of the next steered boundary, (P, 1); the present one if it is yet to be chosen."""
        ahead = min((k for k in self.steered(table) if k > index), default=len(table))
        if isinstance(self.schedule, Adaptive) and ahead < len(table):
            return share
        fixed = share_at(self.schedule, ahead, table.times[ahead], len(table))
        return torch.full_like(share, fixed)

    def biases(self, denoiser: DenoiserLike) -> tuple[str, ...]:
        """Why the weighted particles would not target p(z) exp(λ r(z)), p the sampler's own law."""
        found = []
        if self.guided or isinstance(denoiser, GuidedDenoiser):
            found.append("reward guidance tilts the proposal, and the weights do not undo it")
        if not POTENTIALS[self.potential].exact:
            found.append(f"the potential {self.potential!r} has no exact terminal correction")
        return tuple(found)


@dataclass(frozen=True)
class SteeringStep:
    """What happened at one boundary; P populations of N particles.

    Attributes
    ----------
    boundary : Boundary
        The executor's pause, after resampling and with the shift of its noise; what it holds may
        still be changed. At the end it holds the samples.
    rewards : Tensor
        (P, N), before resampling: r(D_t(x_t)) for the free value, its mean over the draws for the
        posterior one, at the end r(x_1); NaN where none was taken.
    log_weights : LogWeights
        After resampling.
    ess : Tensor
        (P,), before resampling.
    ancestors : Tensor
        (P, N) int64, within the population; 0..N-1 where nothing was resampled.
    resampled : Tensor
        (P,) bool.
    log_evidence : Tensor
        (P,), the estimate so far.
    share : Tensor
        (P,), λ_k/λ; NaN where no values were taken.
    twist_share : Tensor
        (P,), the share of the twist that past transitions have earned; 0 without.
    costs : Costs
    history : History
        This boundary and those before.
    """

    boundary: Boundary
    rewards: Tensor
    log_weights: LogWeights
    ess: Tensor
    ancestors: Tensor
    resampled: Tensor
    log_evidence: Tensor
    share: Tensor
    twist_share: Tensor
    costs: Costs
    history: History


@dataclass(frozen=True)
class SteeringResult(SearchResult):
    """All particles of a finished run, P populations of N, with their weights.

    Attributes
    ----------
    samples, rewards, ancestry, costs
        See :class:`SearchResult`.
    log_weights : Tensor
        (P, N), unnormalised: weighted by them the samples target p(z) exp(λ r(z)).
    ess : Tensor
        (K + 1, P), effective sample size at every boundary and at the end, before resampling.
    log_evidence : Tensor
        (P,), an estimate of log E_p[exp(λ r)]; its exponential is unbiased.
    shares : Tensor
        (K + 1, P), λ_k/λ; NaN where no values were taken.
    twist_shares : Tensor
        (K, P), the share of the twist used at each transition; 0 where there was none.
    biases : tuple of str
        Reasons for which the weighted particles do not target p(z) exp(λ r(z)), where p is the
        law of the sampler itself; empty if they do.
    """

    log_weights: Tensor
    ess: Tensor
    log_evidence: Tensor
    shares: Tensor
    twist_shares: Tensor
    biases: tuple[str, ...]


def check_scale(scale: float) -> None:
    """Raise unless λ is a finite number >= 0."""
    rule = "be a finite number >= 0"
    check_number("scale (lambda)", scale, rule, lambda v: 0.0 <= v < math.inf)


def steer(
    denoiser: DenoiserLike,
    reward: RewardLike,
    *,
    shape: Sequence[int],
    particles: int,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho],
    scale: float = 1.0,
    potential: str = "difference",
    schedule: Schedule = "constant",
    boundaries: Boundaries = None,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    value: AnyValue = "free",
    guidance: Guidance | None = None,
    twist: float | Twist = 0.0,
    degenerate: str = "error",
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    progress: bool | None = None,
) -> SteeringResult:
    """Samples of p(z) exp(λ r(z)) by sequential Monte Carlo at transition boundaries.

    Parameters
    ----------
    denoiser : Denoiser
        Its conditioning has one row for all, or one for each population.
    reward : callable or Reward
        (B, *shape) clean samples to (B,) rewards, higher is better. -inf excludes a sample,
        and where particles are resampled also those whose estimate D is excluded, which biases the
        law: give such rewards a finite floor, or ``ess_threshold=0``.
    shape : sequence of int
        Of one sample, without the batch.
    particles : int
        N >= 1 per population.
    scale : float
        λ >= 0 of the final target.
    potential : str
        "difference", "max", "sum", "immediate" or "terminal", all with the same exact target, or
        one of the "fkd-" compatibility names: see :mod:`glass_flows.steering.potentials`.
    schedule : "constant", "linear", "adaptive", Adaptive(ess), callable of t, or list of K
        Share λ_k/λ of λ that each boundary uses; the end always uses all of it.
    boundaries : None, int or sequence of int
        Where values are taken: every n-th transition start, or those listed. By default wherever
        a transition draws noise, if particles may be resampled or their noise twisted.
    resampling : "systematic", "ssp", "stratified", "residual" or "multinomial"
    ess_threshold : float
        Resample a population when its effective sample size is at most this fraction of N: 1
        resamples at every boundary, 0 never (importance sampling).
    value : "free", "posterior", PosteriorValue(samples, steps), or callable
        "free" is λ r(D_t(x_t)); a posterior value is log-mean-exp of λ r over draws of p(z | x_t);
        a callable V(x, t, D) returns (B,) in log units.
    guidance : Guidance, optional
        Tilt the denoiser that moves the particles; biases the target, and the result says so.
    twist : float or Twist
        η of the twisted noise, 0 for none: guidance whose weight is exact.
    degenerate : "error" or "carry"
        When all weights of a population vanish: stop with DegenerateWeights, or carry the weights
        on without resampling (they count again at later boundaries; a population that ends
        without weight has log-evidence -inf).
    populations : int
        P >= 1 independent runs in one batch of P N particles; by default the number of prompts,
        or 1.
    prompts : sequence, optional
        One for each population, handed to rewards that take prompts.
    transitions, steps, rho, times, solver, start, seed, dtype, device, progress
        See :func:`glass_flows.sample`; times run from 0 to 1. A transition must draw noise for its
        start to be resampled (copies would stay copies): with the ODE nothing ever is.
    x : Tensor, optional
        (P N, *shape), the particles at the first of `times`, instead of noise drawn from the seed;
        that time need not be 0 then.
    shards : Shards, optional
        Deal the particles out to the processes of torch.distributed, all of which make this call
        and get the whole result.
    record : Recorder, optional
        Keeps the run, and if it has kept a part of it already, this call goes on from there; see
        :class:`glass_flows.runs.RunFolder`. Needs a seed.

    Returns
    -------
    SteeringResult

    Raises
    ------
    InvalidArgument, ShapeError, UnknownName, PlanError
        Before anything is drawn.
    NonFinite, RewardError, DegenerateWeights
        On the way; their `boundary` holds the particles as they were, at the end the samples.
    """
    check_denoiser(denoiser)
    if record is not None and seed is None:
        raise InvalidArgument("a recorded run needs a seed=, so that it can go on where it was")
    settings = Steering(
        particles=particles,
        scale=scale,
        potential=potential,
        schedule=schedule,
        boundaries=boundaries,
        resampling=resampling,
        ess_threshold=ess_threshold,
        value=value,
        guidance=guidance,
        twist=twist,
        degenerate=degenerate,
    )
    table = plan(
        denoiser.path,
        transitions=transitions,
        steps=steps,
        rho=rho,
        times=times,
        solver=solver,
        start=start,
    )
    saved = None if record is None else record.saved()
    first = 0 if saved is None else saved.index
    calls = planned_calls(table, settings.steered(table), settings.value, first)
    with progress_bar(calls, progress, "steering") as advance:
        run = iterate_steering(
            table,
            denoiser,
            reward,
            settings,
            shape=shape,
            populations=populations,
            prompts=prompts,
            seed=seed,
            dtype=dtype,
            device=device,
            x=x,
            shards=shards,
            record=record,
            saved=saved,
            advance=advance,
        )
        return collect(run, settings.biases(denoiser))


def collect(steps: Iterable[SteeringStep], biases: tuple[str, ...]) -> SteeringResult:
    """The result of all the steps of a run."""
    (step,) = deque(steps, maxlen=1)
    samples, history = step.boundary.x, step.history.stacked()
    return SteeringResult(
        samples=samples.view(*step.ancestors.shape, *samples.shape[1:]),
        rewards=step.rewards,
        ancestry=history["ancestors"][:-1],
        costs=step.costs,
        log_weights=step.log_weights.values,
        ess=history["ess"],
        log_evidence=step.log_evidence,
        shares=history["share"],
        twist_shares=history["twist_share"][:-1],
        biases=biases,
    )


def iterate_steering(
    table: Table,
    denoiser: DenoiserLike,
    reward: RewardLike,
    settings: Steering,
    *,
    shape: Sequence[int],
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype = torch.float32,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    saved: Saved | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[SteeringStep]:
    """:func:`steer` as an iterator over boundaries, for those who want to look or intervene.

    Takes the sampler as a :class:`~glass_flows.Table` and the method as :class:`Steering`; what a
    step's boundary holds may be changed before the next step. `advance()` is called after every
    denoiser call. With `saved` the run goes on from there.
    """
    settings.check(table)
    home = device if device is not None else getattr(denoiser, "device", None)
    if saved is not None:
        x = saved.x.to(home)
    run = Run(
        table,
        denoiser,
        reward,
        Population.of(settings.particles, populations, prompts),
        shape=shape,
        scale=settings.scale,
        guidance=settings.guidance,
        gradients=settings.twisted or settings.guided,
        seed=seed,
        dtype=dtype,
        device=device,
        x=x,
        first=0 if saved is None else saved.index,
        shards=shards,
        advance=advance,
    )
    if record is not None:
        record.begin(run)
    return steer_boundaries(run, run.boundaries(), settings, saved, record)


@torch.no_grad()
def steer_boundaries(
    run: Run,
    source: Iterable[Boundary],
    settings: Steering,
    saved: Saved | None = None,
    record: Recorder | None = None,
) -> Iterator[SteeringStep]:
    """The algorithm: at every boundary that `source` stops at look, weigh, resample and twist."""
    P, N, table = run.population.count, settings.particles, run.table
    steered = settings.steered(table)
    paths = _Paths.start(P, N, POTENTIALS[settings.potential])
    twister = Twister(settings.twist, table, P, run.split, run.shards.pieces)
    share = torch.zeros(P, 1, dtype=torch.float64)
    log_evidence = torch.zeros(P, dtype=torch.float64)
    history = History()
    if saved is not None:
        paths = paths.restored(saved.carried)
        share, log_evidence = saved.carried["share"], saved.carried["log_evidence"]
        twister.restore(under("twist.", saved.carried))
        history = History.of(saved.history)
    for boundary in source:
        if saved is not None and boundary.index == saved.index:
            run.resume(saved.costs)
        if record is not None:
            carried = {**paths.state(), "share": share, "log_evidence": log_evidence}
            record.save(_saved(run, boundary, carried, twister, history))
        steerable = boundary.index in steered and boundary.stochastic
        twistable = steerable and settings.twisted
        may_resample = steerable and settings.ess_threshold > 0
        must_live = settings.degenerate == "error" and (boundary.final or may_resample)
        look = run.look(boundary, gradient=twistable)
        paths = before = paths.drawn(twister.log_ratio())
        value, rewards = None, torch.full((P, N), math.nan, dtype=torch.float64)
        with kept(boundary):
            if boundary.final:
                rewards = run.split(run.scorer.rewards(boundary.x, place(boundary)))
                value, share = scaled(settings.scale, rewards), torch.ones_like(share)
                paths = paths.ended(value)
            elif boundary.index in steered:
                seen, behind = settings.value(look)
                value = run.split(seen)
                rewards = rewards if behind is None else run.split(behind)
                share = settings.share(boundary, table, paths, value, share)
                paths = paths.valued(scaled(share, value))
            weights = paths.weights(place(boundary), all_may_vanish=not must_live)
        twister.learn(value)
        ess = weights.ess()
        tired = (ess <= settings.ess_threshold * N) & (ess > 0.0) & may_resample
        ancestors = _ancestors(weights, tired, settings.resampling, run.noise, boundary.index)
        rows = run.population.rows(ancestors)
        if tired.any():
            boundary.x, boundary.D = run.shards.select(rows, boundary.x, boundary.D)
            log_evidence = log_evidence + torch.where(tired, weights.log_mean(), 0.0)
        if not boundary.final:
            paths = paths.chosen(ancestors, tired, before)
        if twistable and value is not None:
            with kept(boundary):
                gradient = settings.scale * look.gradient()
            ahead = settings.share_ahead(boundary.index, table, share)
            at_D = scaled(settings.scale, run.split(look.rewards()))
            whole, D = map(run.shards.gather, (gradient, look.estimate.untilted))
            prior = informative(whole, D, at_D)
            (gradient,) = run.shards.select(rows, gradient)
            survivors = value.gather(1, ancestors)
            twister.shift(boundary, gradient, survivors, ahead, prior, run.shards.own)
        if boundary.final:
            boundary.x = run.shards.gather(boundary.x)
        weights = paths.weights(place(boundary), all_may_vanish=True)
        step = SteeringStep(
            boundary=boundary,
            rewards=rewards,
            log_weights=weights,
            ess=ess,
            ancestors=ancestors,
            resampled=tired,
            log_evidence=log_evidence + weights.log_mean(),
            share=torch.full_like(ess, math.nan) if value is None else share[:, 0],
            twist_share=twister.used,
            costs=run.costs,
            history=history,
        )
        history.add(step)
        if record is not None:
            record.step(step)
        yield step


def _saved(
    run: Run, boundary: Boundary, carried: dict[str, Tensor], twister: Twister, history: History
) -> Saved:
    """All that a run needs to go on from a boundary at which nothing was done yet."""
    twist = {f"twist.{name}": found for name, found in twister.state().items()}
    x = run.shards.gather(boundary.x)
    return Saved(boundary.index, x, carried | twist, history.stacked(), run.costs)


@dataclass(frozen=True)
class _Paths:
    """What the particles carry along their paths, each (P, N) float64.

    Attributes
    ----------
    total, settled : Tensor
        Log-product of the potentials, and what it was when the particle was last resampled: the
        weight is exp(total - settled) times the density ratios of the twists since. What telescopes
        is never formed factor by factor.
    """

    potential: Potential
    total: Tensor
    settled: Tensor
    memory: Tensor
    log_ratio: Tensor

    @classmethod
    def start(cls, populations: int, particles: int, potential: Potential) -> _Paths:
        zero = torch.zeros(populations, particles, dtype=torch.float64)
        return cls(potential, zero, zero, torch.full_like(zero, potential.start), zero)

    def state(self) -> dict[str, Tensor]:
        """The tensors."""
        return {name: found for name, found in vars(self).items() if name != "potential"}

    def restored(self, tensors: Mapping[str, Tensor]) -> _Paths:
        """With the tensors of :meth:`state`, among others, in the place of its own."""
        return _Paths(self.potential, **{name: tensors[name] for name in self.state()})

    def drawn(self, log_ratio: Tensor | float) -> _Paths:
        return replace(self, log_ratio=self.log_ratio + log_ratio)

    def valued(self, value: Tensor) -> _Paths:
        total, memory = self.potential.update(self.total, value, self.memory)
        return replace(self, total=total, memory=memory)

    def ended(self, value: Tensor) -> _Paths:
        return replace(self, total=self.potential.terminal(self.total, value, self.memory))

    def log_weights(self) -> Tensor:
        return self.total - self.settled + self.log_ratio

    def weights(self, where: str, *, all_may_vanish: bool) -> LogWeights:
        one = LogWeights.uniform(*self.total.shape)
        remedy = ", or pass degenerate='carry' to go on without resampling"
        return one.times(self.log_weights(), where, all_may_vanish=all_may_vanish, remedy=remedy)

    def chosen(self, ancestors: Tensor, resampled: Tensor, before: _Paths) -> _Paths:
        """After resampling where `resampled` (P,); `before` is what a forgetful potential keeps."""
        total, memory = self.total.gather(1, ancestors), self.memory.gather(1, ancestors)
        anew = resampled[:, None]
        if not self.potential.carries:
            total = torch.where(anew, total, before.total)
        return replace(
            self,
            total=total,
            memory=memory,
            settled=torch.where(anew, total, self.settled),
            log_ratio=torch.where(anew, 0.0, self.log_ratio),
        )


def _ancestors(
    weights: LogWeights, tired: Tensor, resampling: str, noise: KeyedNoise, index: int
) -> Tensor:
    """(P, N): resampled where `tired`, 0..N-1 elsewhere."""
    P, N = weights.values.shape
    ancestors = torch.arange(N).repeat(P, 1)
    if tired.any():
        shares = weights.normalized().numpy()
        for p in torch.nonzero(tired).flatten().tolist():
            chosen = RESAMPLERS[resampling](shares[p], noise.bits(RESAMPLING, index, p))
            ancestors[p] = torch.from_numpy(chosen)
    return ancestors
