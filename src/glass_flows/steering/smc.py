"""Feynman-Kac steering: sequential Monte Carlo over the transitions of a sampler.

Particles carry log-weights. At every steered boundary the values V of the particles are taken (the
free one, λ r(D_t(x_t)), costs no network evaluation), a potential turns them into a factor of the
weight, and a population whose effective sample size has fallen under a fraction of N is resampled.
At the end the product of the factors along every path is exp(λ r(x_1)): the weighted particles
target p(z) exp(λ r(z)), whatever values, potentials, schedules and thresholds did on the way.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, cast

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..execute import Boundary
from ..guidance import Guidance, GuidedDenoiser
from ..noise import RESAMPLING, KeyedNoise
from ..plans import Table
from ..settings import SHARE, Choice, Listed, Number, Object, setting
from .held_out import Beside
from .method import BOUNDARIES, GUIDANCE, VALUE, Course, Method
from .overoptimisation import Rung
from .population import Run, place, steered_boundaries
from .potentials import POTENTIALS, Potential
from .resampling import RESAMPLERS
from .results import Costs, SteeringResult
from .schedules import Adaptive, ScaleSchedule, share_at
from .state import History, Selection, Step, under
from .strength import SCALE, Scale
from .twist import Twist, Twister, informative
from .values import FreeValue, Look, Value, scaled
from .weights import LogWeights

__all__ = ["BestOf", "Steering", "SteeringStep", "ancestors_of"]


SCHEDULE = Listed(
    Object(
        "schedule",
        "'constant', 'linear', 'adaptive[:ESS]', a function of t, or a list of K shares of lambda",
        heads={"constant": None, "linear": None, "adaptive": Adaptive},
        functions=True,
    ),
    item=Number("be a finite number >= 0 (a share of lambda)", lambda v: 0.0 <= v < math.inf),
)
TWIST = Object("twist", "a number eta >= 0, 'ETA:cap=CAP' or Twist(scale, cap, ...)", bare=Twist)
DEGENERATE = Choice("degenerate", ("error", "carry"))


@dataclass(frozen=True, repr=False)
class Steering(Method):
    """Feynman-Kac steering: sequential Monte Carlo over the transitions of a sampler.

    Parameters
    ----------
    potential : str
        "difference", "max", "sum", "immediate" or "terminal", all with the same exact target, or
        one of the "fkd-" compatibility names: see :mod:`glass_flows.steering.potentials`.
    schedule : "constant", "linear", "adaptive[:ESS]", a function of t, or K shares
        Share λ_k/λ of λ that each boundary uses; the end always uses all of it. Adaptive is the
        largest at which the effective sample size stays at the fraction ESS of N.
    resampling : str
        "systematic", "ssp", "stratified", "residual" or "multinomial".
    ess_threshold : float
        In [0, 1]: a population is resampled when its effective sample size is at most this fraction
        of N; 1 is at every boundary, 0 never (importance sampling).
    twist : float, "ETA:cap=CAP", or Twist
        η >= 0 of the twisted noise, guidance by the reward's gradient whose weight is exact; 0 is
        off. The cap is the longest shift, in standard deviations of the noise.
    """

    potential: str = setting("difference", Choice("potential", POTENTIALS))
    schedule: ScaleSchedule = setting("constant", SCHEDULE)
    boundaries: int | tuple[int, ...] | None = setting(None, BOUNDARIES)
    resampling: str = setting("systematic", Choice("resampling scheme", RESAMPLERS))
    ess_threshold: float = setting(0.5, SHARE)
    value: Value = setting(FreeValue(), VALUE)
    guidance: Guidance | None = setting(None, GUIDANCE)
    twist: Twist = setting(Twist(0.0), TWIST)
    degenerate: str = setting("error", DEGENERATE)
    word: ClassVar[str] = "steering"
    weighted: ClassVar[bool] = True
    remedy: ClassVar[str] = (
        "lower the scale, or let it rise slowly (schedule='adaptive'), or refine"
    )

    @property
    def tilts(self) -> bool:
        """Of one particle nothing chooses."""
        return self.particles > 1 or self.guided or self.twist.scale > 0.0

    @property
    def twisted(self) -> bool:
        return self.twist.scale > 0.0 and self.scale != 0.0

    @property
    def differentiates(self) -> bool:
        return self.guided or self.twisted

    @property
    def looks_with(self) -> Value:
        return self.value

    def steered(self, table: Table) -> frozenset[int]:
        return steered_boundaries(table, self.boundaries, self.ess_threshold > 0 or self.twisted)

    def check_table(self, table: Table) -> None:
        for k in self.steered(table) | {0}:
            share_at(self.schedule, k, table.times[k], len(table))

    def begin(self, run: Run) -> Weighted:
        return Weighted(self, run)

    def biases(self, denoiser: DenoiserLike) -> tuple[str, ...]:
        found = []
        if self.guided or isinstance(denoiser, GuidedDenoiser):
            found.append("reward guidance tilts the proposal, and the weights do not undo it")
        if not POTENTIALS[self.potential].exact:
            found.append(f"the potential {self.potential!r} has no exact terminal correction")
        return tuple(found)


@dataclass(frozen=True, repr=False)
class BestOf(Method):
    """Best-of-N: independent samples, weighted by their rewards at the end, never resampled.

    Parameters
    ----------
    scale : float, "auto", or "auto:NATS"
        λ >= 0 of the weights exp(λ r(z)), and of guidance. It does not choose, so that 1 stands
        here and plain samples pay no pilot.
    """

    scale: Scale = setting(1.0, SCALE)
    guidance: Guidance | None = setting(None, GUIDANCE)
    degenerate: str = setting("error", DEGENERATE)
    word: ClassVar[str] = "best-of-n"
    weighted: ClassVar[bool] = True

    @property
    def tilts(self) -> bool:
        return self.guided

    @property
    def _steering(self) -> Steering:
        return Steering(
            self.particles,
            self.scale,
            ess_threshold=0.0,
            guidance=self.guidance,
            degenerate=self.degenerate,
        )

    def steered(self, table: Table) -> frozenset[int]:
        return frozenset()

    def begin(self, run: Run) -> Weighted:
        return Weighted(self._steering, run)

    def biases(self, denoiser: DenoiserLike) -> tuple[str, ...]:
        return self._steering.biases(denoiser)


@dataclass(frozen=True)
class SteeringStep(Step):
    """What happened at one boundary of weighted particles.

    Attributes
    ----------
    log_weights : LogWeights
        After resampling.
    ess : Tensor
        (P,), before resampling.
    log_evidence : Tensor
        (P,), the estimate so far.
    share : Tensor
        (P,), λ_k/λ; NaN where no values were taken.
    twist_share : Tensor
        (P,), the share of the twist that past transitions have earned; 0 without.
    """

    log_weights: LogWeights
    ess: Tensor
    log_evidence: Tensor
    share: Tensor
    twist_share: Tensor

    def remembered(self) -> dict[str, Tensor]:
        names = ("ess", "share", "twist_share")
        return super().remembered() | {name: getattr(self, name) for name in names}

    def told(self) -> dict[str, Any]:
        names = ("ess", "log_evidence", "share", "twist_share")
        weights = {"log_weights": self.log_weights.values}
        return super().told() | weights | {name: getattr(self, name) for name in names}


_EXCLUDED = (
    "particles were dropped whose value on the way was -inf, as that of an excluded estimate D is, "
    "though their end might not be excluded: give the reward a finite floor, or ess_threshold=0"
)


class Weighted(Course):
    """Particles with weights: look, weigh, resample, twist."""

    def __init__(self, settings: Steering, run: Run) -> None:
        self.settings, self.run, self.table = settings, run, run.table
        P, N = run.population.count, settings.particles
        self.steered = settings.steered(self.table)
        self.paths = self.before = _Products.start(P, N, POTENTIALS[settings.potential])
        self.twister = Twister(settings.twist, self.table, P, run.split, run.shards.pieces)
        self.share = torch.zeros(P, 1, dtype=torch.float64)
        self.log_evidence = torch.zeros(P, dtype=torch.float64)
        self.excluded = torch.zeros(P, dtype=torch.bool)  # whether a weight of zero was dropped
        self.values: Tensor | None = None  # V of this boundary, (P, N)
        self.rewards = torch.empty(P, N)
        self.weights = LogWeights.uniform(P, N)

    def _steerable(self, boundary: Boundary) -> bool:
        return boundary.index in self.steered and boundary.stochastic

    def _may_resample(self, boundary: Boundary) -> bool:
        return self._steerable(boundary) and self.settings.ess_threshold > 0

    def wants_gradient(self, boundary: Boundary) -> bool:
        return self._steerable(boundary) and self.settings.twisted

    def value(self, look: Look) -> None:
        run, boundary, settings = self.run, look.boundary, self.settings
        self.paths = self.before = self.paths.drawn(self.twister.log_ratio())
        self.values, self.rewards = None, torch.full_like(self.paths.total, math.nan)
        if boundary.final:
            self.rewards = run.split(run.scorer.rewards(boundary.x, look.where))
            self.values, self.share = (
                scaled(run.scale, self.rewards),
                torch.ones_like(self.share),
            )
            self.paths = self.paths.ended(self.values)
        elif boundary.index in self.steered:
            self.values, behind = run.valued(settings.value, look)
            self.rewards = self.rewards if behind is None else behind
            self.share = self._share(boundary, self.values)
            self.paths = self.paths.valued(scaled(self.share, self.values))
        must_live = boundary.final or self._may_resample(boundary)
        may_vanish = settings.degenerate == "carry" or not must_live
        self.weights = self.paths.weights(look.where, all_may_vanish=may_vanish)
        self.twister.learn(self.values)

    def _share(self, boundary: Boundary, value: Tensor) -> Tensor:
        """λ_k/λ of each population, (P, 1)."""
        schedule = self.settings.schedule
        if isinstance(schedule, Adaptive):
            return schedule.choose(
                lambda share: self.paths.valued(scaled(share, value)).log_weights(), self.share
            )
        fixed = share_at(schedule, boundary.index, boundary.t, len(self.table))
        return torch.full_like(self.share, fixed)

    def _share_ahead(self, index: int) -> Tensor:
        """λ/λ of the next steered boundary, (P, 1); the present one if it is yet to be chosen."""
        ahead = min((k for k in self.steered if k > index), default=len(self.table))
        schedule = self.settings.schedule
        if isinstance(schedule, Adaptive) and ahead < len(self.table):
            return self.share
        fixed = share_at(schedule, ahead, self.table.times[ahead], len(self.table))
        return torch.full_like(self.share, fixed)

    @property
    def shares(self) -> Tensor:
        return self.weights.normalized()

    def clean(self, boundary: Boundary) -> Tensor | None:
        return None if self.values is None else super().clean(boundary)

    def ladder(self, last: Step, history: Mapping[str, Tensor]) -> list[Rung]:
        """Of independent draws: themselves, and weighted by the whole λ."""
        weights = history["beside.weights"][-1]
        roots = Selection.everyone(*weights.shape).ancestors
        tilted = self.settings.twisted or self.run.moving is not self.run.model
        if tilted or not (history["ancestors"] == roots).all():
            return []
        plain = Rung(0.0, last.also, last.rewards, Beside.of({}, weights, None).weights, roots)
        return [plain, replace(plain, scale=self.run.scale, weights=weights)]

    def select(self, boundary: Boundary) -> Selection:
        ess, share = self.weights.ess(), self.settings.ess_threshold
        least, strict = share * self.settings.particles, POTENTIALS[self.settings.potential].strict
        few = ess < least if strict and share < 1.0 else ess <= least  # 1 is at every boundary
        tired = few & (ess > 0.0) & self._may_resample(boundary)
        noise, scheme = self.run.noise, self.settings.resampling
        return Selection(ancestors_of(self.weights, tired, scheme, noise, boundary.index), tired)

    def gather(self, selection: Selection) -> None:
        tired = selection.selected
        if tired.any():
            gained = torch.where(tired, self.weights.log_mean(), 0.0)
            self.log_evidence = self.log_evidence + gained
            without = (self.weights.values == -math.inf).any(1)
            self.excluded = self.excluded | (tired & without)
        self.paths = self.paths.chosen(selection.ancestors, tired, self.before)

    def move(self, look: Look, selection: Selection) -> None:
        boundary, run = look.boundary, self.run
        if not self.wants_gradient(boundary) or self.values is None:
            return
        gradient = run.scale * look.gradient()
        at_D = scaled(run.scale, run.split(look.rewards()))
        whole, D = map(run.shards.gather, (gradient, look.estimate.untilted))
        prior = informative(whole, D, at_D)
        (gradient,) = run.shards.select(run.population.rows(selection.ancestors), gradient)
        survivors = self.values.gather(1, selection.ancestors)
        ahead = self._share_ahead(boundary.index)
        self.twister.shift(boundary, gradient, survivors, ahead, prior, run.shards.own)

    def step(
        self, boundary: Boundary, selection: Selection, costs: Costs, history: History
    ) -> SteeringStep:
        weights = self.paths.weights(place(boundary), all_may_vanish=True)
        ess = self.weights.ess()
        return SteeringStep(
            boundary=boundary,
            rewards=self.rewards,
            ancestors=selection.ancestors,
            resampled=selection.selected,
            costs=costs,
            history=history,
            log_weights=weights,
            ess=ess,
            log_evidence=self.log_evidence + weights.log_mean(),
            share=torch.full_like(ess, math.nan) if self.values is None else self.share[:, 0],
            twist_share=self.twister.used,
        )

    def carried(self) -> dict[str, Tensor]:
        twist = {f"twist.{name}": found for name, found in self.twister.state().items()}
        names = ("share", "log_evidence", "excluded")
        own = {name: getattr(self, name) for name in names}
        return {**self.paths.state(), **own, **twist}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        self.paths = self.before = self.paths.restored(carried)
        self.share, self.log_evidence = carried["share"], carried["log_evidence"]
        self.excluded = carried["excluded"]
        self.twister.restore(under("twist.", carried))

    def weighed(self, last: Step) -> tuple[Tensor, Tensor, Tensor]:
        end = cast(SteeringStep, last)
        return end.rewards, end.log_weights.values, end.log_evidence

    def result(self, last: Step, biases: tuple[str, ...]) -> SteeringResult:
        end = cast(SteeringStep, last)
        if self.excluded.any():
            biases = (*biases, _EXCLUDED)
        samples, history = end.boundary.x, end.history.stacked()
        return SteeringResult(
            samples=samples.view(*end.ancestors.shape, *samples.shape[1:]),
            rewards=end.rewards,
            ancestry=history["ancestors"][:-1],
            costs=end.costs,
            log_weights=end.log_weights.values,
            ess=history["ess"],
            log_evidence=end.log_evidence,
            shares=history["share"],
            twist_shares=history["twist_share"][:-1],
            biases=biases,
        )


@dataclass(frozen=True)
class _Products:
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
    def start(cls, populations: int, particles: int, potential: Potential) -> _Products:
        zero = torch.zeros(populations, particles, dtype=torch.float64)
        return cls(potential, zero, zero, torch.full_like(zero, potential.start), zero)

    def state(self) -> dict[str, Tensor]:
        """The tensors."""
        return {name: found for name, found in vars(self).items() if name != "potential"}

    def restored(self, tensors: Mapping[str, Tensor]) -> _Products:
        """With the tensors of :meth:`state`, among others, in the place of its own."""
        return _Products(self.potential, **{name: tensors[name] for name in self.state()})

    def drawn(self, log_ratio: Tensor | float) -> _Products:
        return replace(self, log_ratio=self.log_ratio + log_ratio)

    def valued(self, value: Tensor) -> _Products:
        total, memory = self.potential.update(self.total, value, self.memory)
        return replace(self, total=total, memory=memory)

    def ended(self, value: Tensor) -> _Products:
        return replace(self, total=self.potential.terminal(self.total, value, self.memory))

    def log_weights(self) -> Tensor:
        return self.total - self.settled + self.log_ratio

    def weights(self, where: str, *, all_may_vanish: bool) -> LogWeights:
        one = LogWeights.uniform(*self.total.shape)
        remedy = ", or pass degenerate='carry' to go on without resampling"
        return one.times(self.log_weights(), where, all_may_vanish=all_may_vanish, remedy=remedy)

    def chosen(self, ancestors: Tensor, resampled: Tensor, before: _Products) -> _Products:
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


def ancestors_of(
    weights: LogWeights, tired: Tensor, resampling: str, noise: KeyedNoise, index: int
) -> Tensor:
    """(P, N): resampled where `tired`, 0..N-1 elsewhere."""
    P, N = weights.values.shape
    ancestors = torch.arange(N).repeat(P, 1)  # int64, which numpy's are not on every system
    if tired.any():
        shares, resample = weights.normalized().numpy(), RESAMPLERS[resampling]
        rows = ancestors.numpy()
        for p in torch.nonzero(tired).flatten().tolist():
            rows[p] = resample(shares[p], noise.bits(RESAMPLING, index, p))
    return ancestors
