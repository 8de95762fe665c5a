"""What steering and search share: one batch of populations on its way through a table, counted."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass

import torch
from torch import Tensor

from ..denoisers import DenoiserLike, spread
from ..errors import (
    GlassError,
    InvalidArgument,
    PlanError,
    ShapeError,
    TimeError,
    check_count,
)
from ..execute import Boundary, check_denoiser, check_state, iterate
from ..guidance import Guidance, GuidedDenoiser
from ..noise import KeyedNoise
from ..plans import Table
from ..rewards import RewardLike, as_reward
from ..sampling import Tally, check_whole, starting_noise
from .shards import Pieces, Shards
from .values import Look, Scorer

__all__ = ["Boundaries", "Costs", "Population", "Run", "SearchResult", "steered_boundaries"]

Boundaries = int | Sequence[int] | None


@dataclass(frozen=True)
class Costs:
    """What a run has asked for so far, in all, counted per particle.

    Attributes
    ----------
    network_evaluations : int
        Forward passes (a guided evaluation with two batches counts as two).
    network_gradients : int
        Backward passes through the network.
    reward_evaluations, decodes : int
        Samples scored, and decoded for it.
    """

    network_evaluations: int = 0
    network_gradients: int = 0
    reward_evaluations: int = 0
    decodes: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __sub__(self, other: Costs) -> Costs:
        return Costs(*(a - b for a, b in zip(astuple(self), astuple(other))))


@dataclass(frozen=True)
class SearchResult:
    """All particles of a finished run, P populations of N.

    Attributes
    ----------
    samples : Tensor
        (P, N, *shape).
    rewards : Tensor
        (P, N), r of the samples, not multiplied by λ.
    ancestry : Tensor
        (K, P, N): ancestors chosen at the start of each transition, within the population.
    costs : Costs
        Also as `network_evaluations`, `network_gradients`, `reward_evaluations`, `decodes`.
    """

    samples: Tensor
    rewards: Tensor
    ancestry: Tensor
    costs: Costs

    @property
    def best(self) -> Tensor:
        """The sample of the highest reward in each population, (P, *shape)."""
        return self.samples[torch.arange(len(self.samples)), self.rewards.argmax(1)]

    @property
    def lineage(self) -> Tensor:
        """(K + 1, P, N): the slot that each final particle's line held before every transition."""
        slots = [torch.arange(self.rewards.shape[1]).expand(len(self.rewards), -1)]
        for ancestors in self.ancestry.flip(0):
            slots.append(ancestors.gather(1, slots[-1]))
        return torch.stack(slots[::-1])

    @property
    def network_evaluations(self) -> int:
        return self.costs.network_evaluations

    @property
    def network_gradients(self) -> int:
        return self.costs.network_gradients

    @property
    def reward_evaluations(self) -> int:
        return self.costs.reward_evaluations

    @property
    def decodes(self) -> int:
        return self.costs.decodes


@dataclass(frozen=True)
class Population:
    """How P populations of N particles lie in one batch: population by population.

    Attributes
    ----------
    prompts : tuple or None
        One per row of the batch.
    """

    count: int
    particles: int
    prompts: tuple[object, ...] | None

    @classmethod
    def of(cls, particles: int, count: int | None, prompts: Sequence[object] | None) -> Population:
        """Checked; `prompts` has one for each population, whose number it gives without `count`."""
        if prompts is not None and (isinstance(prompts, str) or not isinstance(prompts, Sequence)):
            raise InvalidArgument(
                f"prompts must be a list with one for each population, got {prompts!r}"
            )
        if count is None:
            count = 1 if prompts is None else len(prompts)
        check_count("populations", count)
        if prompts is not None and len(prompts) != count:
            raise InvalidArgument(f"{len(prompts)} prompts given for {count} populations")
        rows = None if prompts is None else tuple(p for p in prompts for _ in range(particles))
        return cls(count, particles, rows)

    def rows(self, ancestors: Tensor) -> Tensor:
        """Indices into the batch, (P N,), of ancestors (P, N) within each population."""
        return (ancestors + torch.arange(self.count)[:, None] * self.particles).flatten()


class Run:
    """A batch on its way: where it stops, how it is looked at, and what that has cost.

    Raises, before anything is drawn, for tables that do not go from noise to data, for conditioning
    that does not fit the populations, and for gradients asked of a reward that has none.
    """

    def __init__(
        self,
        table: Table,
        denoiser: DenoiserLike,
        reward: RewardLike,
        population: Population,
        *,
        shape: Sequence[int],
        scale: float,
        guidance: Guidance | None = None,
        gradients: bool = False,
        seed: int | None = None,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str | None = None,
        advance: Callable[[], None] = lambda: None,
        x: Tensor | None = None,
        first: int = 0,
        shards: Shards | None = None,
    ) -> None:
        check_denoiser(denoiser)
        if x is None:
            check_whole(table)
        elif table.times[-1] != 1.0:
            raise TimeError(f"steering ends at data, t = 1; these times end at {table.times[-1]!r}")
        scored = as_reward(reward)
        if gradients and not scored.differentiable:
            raise InvalidArgument(
                f"the reward {scored.name!r} has no gradient: use twist=0 and guidance=None"
            )
        if isinstance(shape, (int, str)) or not isinstance(shape, Sequence):
            raise InvalidArgument(
                f"shape must list the sizes of one sample, such as (4, 64, 64), got {shape!r}"
            )
        if scored.takes_prompts and population.prompts is None:
            raise InvalidArgument(f"the reward {scored.name!r} takes prompts: pass prompts=[...]")
        self.table, self.scale, self.population = table, scale, population
        self.shards, self.first, self.before = shards or Shards.alone(), first, Costs()
        rows = population.count * population.particles
        self.shards.cut(rows)
        own = self.shards.own
        prompts = None if population.prompts is None else population.prompts[own]
        self.noise = KeyedNoise(seed, first_particle=own.start)
        self.scorer = Scorer(scored, prompts, self.shards.pieces)
        model = spread(denoiser, population.count, population.particles)
        self.guides = guidance is not None and guidance.scale > 0.0
        if isinstance(model, GuidedDenoiser):  # of the user's: values see the model behind it
            if self.guides:
                raise InvalidArgument(
                    "the denoiser is guided already: pass guidance=None, or the model itself"
                )
            self.moving = self._tally(model, rows, advance)
            self.model = self._tally(model.denoiser, rows, advance)
        elif self.guides:
            all_prompts = population.prompts
            guided = GuidedDenoiser(model, scored, guidance, scale=scale, prompts=all_prompts)
            self.moving = self._tally(guided, rows, advance)
            self.model = self._tally(model, rows, advance)
        else:
            self.moving = self.model = self._tally(model, rows, advance)
        home = device if device is not None else getattr(denoiser, "device", None)
        sizes = (rows, *shape)
        if x is None:
            mine = (own.stop - own.start, *shape)
            self.x = starting_noise(table, mine, self.noise, dtype, home)
        elif check_state(x).shape != sizes:
            raise ShapeError(f"x must be {sizes}, one for each particle, got {tuple(x.shape)}")
        else:
            self.x = x[own]

    def _tally(self, model: DenoiserLike, rows: int, advance: Callable[[], None]) -> Tally:
        cut = len(self.shards.pieces) > 1 or self.shards.count > 1
        return Tally(Pieces(model, self.shards, rows) if cut else model, advance)

    def boundaries(self) -> Iterator[Boundary]:
        """The executor's pauses, the last with the samples."""
        last = None
        try:
            for boundary in iterate(self.table, self.moving, self.x, self.noise, self.first):
                last = boundary
                yield boundary
        except GlassError as error:  # raised between boundaries: the last one has the particles
            error.boundary = error.boundary or last
            raise

    def look(self, boundary: Boundary, gradient: bool = False) -> Look:
        """What values may use; `gradient` takes ∇r at D in the same pass as r."""
        return Look(
            boundary,
            self.model,
            self.scorer,
            self.scale,
            self.noise,
            place(boundary),
            gradient,
            known=boundary.estimate if self.guides else None,
        )

    def split(self, values: Tensor) -> Tensor:
        """This process's (n,) of all P N to those of all, (P, N)."""
        whole = self.shards.gather(values)
        return whole.view(self.population.count, self.population.particles)

    def resume(self, costs: Costs) -> None:
        """Count as if this run, which begins on the way, had cost this much so far."""
        self.before = costs - self.costs

    @property
    def costs(self) -> Costs:
        tallies = {self.model, self.moving}
        own = (
            sum(tally.network_evaluations for tally in tallies),
            sum(tally.network_gradients for tally in tallies),
            sum(tally.reward_evaluations for tally in tallies) + self.scorer.evaluations,
            sum(tally.decodes for tally in tallies) + self.scorer.decodes,
        )
        return self.before + Costs(*self.shards.total(*own))


def place(boundary: Boundary) -> str:
    """A boundary's name in errors."""
    return "the end" if boundary.final else f"boundary {boundary.index} (t = {boundary.t:.6g})"


@contextmanager
def kept(boundary: Boundary) -> Iterator[None]:
    """Errors raised inside carry the boundary, so that its particles are not lost."""
    try:
        yield
    except GlassError as error:
        error.boundary = boundary
        raise


def steered_boundaries(table: Table, boundaries: Boundaries, decides: bool) -> frozenset[int]:
    """The transition starts at which values are taken; by default all with noise if that `decides`.

    Raises :class:`PlanError` where there is no D_t(x_t) to take a value from.
    """
    count = len(table)
    if boundaries is None:
        chosen = {k for k, transition in enumerate(table) if transition.stochastic and decides}
    elif isinstance(boundaries, Sequence):
        chosen = {check_count("boundaries: every index", k, least=0) for k in boundaries}
        if max(chosen, default=0) >= count:
            raise InvalidArgument(
                f"boundaries are numbered 0 to {count - 1} (the end always counts), "
                f"got {max(chosen)}"
            )
    else:
        chosen = set(range(0, count, check_count("boundaries (every n-th)", boundaries)))
    for k in sorted(chosen):
        if not table.transitions[k].free_value:
            raise PlanError(
                f"transition {k} does not start by asking for D_t(x_t), so that it has no free "
                "value to steer by (a cut s range of the paper's solver does this)"
            )
    return frozenset(chosen)
