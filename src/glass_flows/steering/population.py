"""One batch of populations on its way through a table, counted."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import astuple, dataclass, replace
from typing import Protocol

import torch
from torch import Tensor

from ..denoisers import DEVICE, DTYPE, BaseDenoiser, Costs, DenoiserLike, as_denoiser
from ..errors import (
    GlassError,
    InvalidArgument,
    PlanError,
    ShapeError,
    TimeError,
    check_count,
    rows_from,
    shown,
)
from ..execute import Boundary, check_state, iterate
from ..fronts import front
from ..guidance import Guidance, GuidedDenoiser
from ..noise import SEED, KeyedNoise, check_like, check_sizes
from ..paths import Path
from ..plans import Table
from ..rewards import FunctionReward, Reward, RewardLike, as_reward, evaluate
from ..sampling import Sizes, Tally, check_whole, starting_noise
from ..settings import ANY_COUNT, Count, Is
from .held_out import apart
from .shards import Pieces, Shards
from .strength import Found, Scale, number
from .values import Look, Scorer, Value

Boundaries = int | Sequence[int] | None

_NONE: Mapping[str, Reward] = {}
_SHAPE = Sizes(0, "list the sizes of one sample, such as (4, 64, 64)")
_PROMPTS = Is((list, tuple), "a list with one for each population, or None", optional=True)
_TENSOR = Is(Tensor, "a tensor, or None", optional=True)


@dataclass(frozen=True)
class Population:
    """P populations of N particles, in one batch population by population, and where they begin.

    Attributes
    ----------
    particles, count : int
        N and P.
    shape : tuple of int
        Of one sample, without the batch.
    prompts : tuple or None
        One per row of the batch.
    seed : int or None
        Of all noise; None draws one from torch's global generator.
    dtype, device
        Of the state.
    x : Tensor or None
        (P N, *shape), the particles at the table's first time, instead of noise from the seed.
    init : Tensor or None
        (P N, *shape), clean samples for methods that begin with some, instead of drawing them.
    given : bool
        Whether x is somebody's own, of whatever law.
    around : Tensor or None
        (P, *shape), the clean samples, noise on which x is: :meth:`noising`.
    """

    particles: int
    count: int
    shape: tuple[int, ...]
    prompts: tuple[object, ...] | None = None
    seed: int | None = None
    dtype: torch.dtype = torch.float32
    device: torch.device | str | None = None
    x: Tensor | None = None
    init: Tensor | None = None
    given: bool = False
    around: Tensor | None = None

    @classmethod
    @front(
        particles=Count(),
        shape=_SHAPE,
        populations=ANY_COUNT,
        prompts=_PROMPTS,
        seed=SEED,
        dtype=DTYPE,
        device=DEVICE,
        x=_TENSOR,
    )
    def of(
        cls,
        particles: int,
        shape: Sequence[int],
        populations: int | None = None,
        prompts: Sequence[object] | None = None,
        *,
        seed: int | None = None,
        dtype: torch.dtype | None = None,
        device: torch.device | str | None = None,
        x: Tensor | None = None,
    ) -> Population:
        """Checked; `prompts` has one for each population, whose number it gives without one."""
        if populations is None:
            populations = 1 if prompts is None else len(prompts)
        check_count("populations", populations)
        check_sizes((populations * particles, *shape))
        if prompts is not None and len(prompts) != populations:
            raise InvalidArgument(f"{len(prompts)} prompts given for {populations} populations")
        rows = None if prompts is None else tuple(p for p in prompts for _ in range(particles))
        own = x is not None
        return cls(
            particles, populations, tuple(shape), rows, seed, dtype or torch.float32, device, x,
            given=own,
        )  # fmt: skip

    def __len__(self) -> int:
        """Rows of the batch, P N."""
        return self.count * self.particles

    def at(self, x: Tensor) -> Population:
        """The same, beginning at x."""
        return replace(self, x=x, init=None)

    def noising(self, around: Tensor, path: Path, t: float) -> Population:
        """The same, beginning at α_t z + σ_t ε: z is its population's, ε what it began with."""
        if self.x is None:
            raise InvalidArgument("noise to begin with, x, is missing: at(noise) comes first")
        z = around.to(self.x).repeat_interleave(self.particles, 0)
        return replace(self, x=path.alpha(t) * z + path.sigma(t) * self.x, around=around)

    def refining(self, init: Tensor | None) -> Population:
        """The same, beginning with clean samples: (*shape) for all, (P, *shape), (P, N, *shape), or
        (P N, *shape) one for each particle."""
        if init is None:
            return self
        sizes, given = (self.count, self.particles, *self.shape), check_like(init, "init")
        if given.shape == (len(self), *self.shape):
            given = given.view(sizes)
        elif given.shape == self.shape:
            given = given.expand(sizes)
        elif given.shape == (self.count, *self.shape):
            given = given[:, None].expand(sizes)
        if given.shape != sizes:
            raise ShapeError(
                f"init must be {self.shape} for all, {(self.count, *self.shape)} for each "
                f"population, or {sizes} for each particle, got {tuple(init.shape)}"
            )
        return replace(self, init=check_state(given.reshape(len(self), *self.shape), "init"))

    def home(self, denoiser: DenoiserLike) -> torch.device | str | None:
        """Where the state is: where it is wanted, or where the network's parameters are."""
        return self.device if self.device is not None else as_denoiser(denoiser).device

    def rows(self, ancestors: Tensor) -> Tensor:
        """Indices into the batch, (P N,), of ancestors (P, N) within each population."""
        return (ancestors + torch.arange(self.count)[:, None] * self.particles).flatten()


class Tilt(Protocol):
    """What a run has to know of the method that looks at it."""

    @property
    def scale(self) -> Scale:
        """λ."""

    @property
    def guidance(self) -> Guidance | None: ...

    @property
    def returns(self) -> int:
        """How many particles of each population are returned."""

    @property
    def differentiates(self) -> bool:
        """Whether gradients of the reward are asked for."""

    def length(self, table: Table) -> int:
        """Boundaries of a run, without its end."""

    def as_json(self) -> Mapping[str, object]:
        """All its settings."""


class Run:
    """A batch on its way: where it stops, how it is looked at, and what that has cost.

    Raises, before anything is drawn, for tables that do not go from noise to data, for conditioning
    that does not fit the populations, and for gradients asked of a reward that has none.

    Attributes
    ----------
    tilt, asked : Tilt
        The method, and as it was asked for, where its λ was to be `found`.
    """

    def __init__(
        self,
        table: Table,
        denoiser: DenoiserLike,
        reward: RewardLike,
        tilt: Tilt,
        population: Population,
        *,
        first: int = 0,
        shards: Shards | None = None,
        advance: Callable[[], None] = lambda: None,
        also: Mapping[str, Reward] = _NONE,
        asked: Tilt | None = None,
        found: Found | None = None,
    ) -> None:
        whole, scored = as_denoiser(denoiser), as_reward(reward)
        check_asked(table, whole, scored, tilt, population, shards, also)
        self.table, self.scale, self.population = table, number(tilt.scale), population
        self.tilt, self.length = tilt, tilt.length(table)
        self.asked, self.found = asked or tilt, found
        self.returns = tilt.returns
        self.shards, self.first, self.before = shards or Shards.alone(), first, Costs()
        self.shards.cut(len(population))
        own, prompts = self.shards.own, population.prompts
        self.noise = KeyedNoise(population.seed, first_particle=own.start)
        about = (prompts and prompts[own], self.shards.pieces, own.start)
        self.scorer = Scorer(scored, *about)
        self.beside = {name: Scorer(one, *about) for name, one in also.items()}
        self.advance, self.tallies = advance, list[Tally]()
        model = whole.spread(population.count, population.particles)
        guidance = tilt.guidance
        self.guides = guidance is not None and guidance.scale > 0.0
        if isinstance(model, GuidedDenoiser):  # of the user's: values see the model behind it
            self.moving = self._tally(model)
            self.model = self._tally(model.denoiser)
        elif self.guides:
            guided = GuidedDenoiser(model, scored, guidance, scale=self.scale, prompts=prompts)
            self.moving = self._tally(guided)
            self.model = self._tally(model)
        else:
            self.moving = self.model = self._tally(model)
        self.x = self._start(whole)

    def _start(self, denoiser: BaseDenoiser) -> Tensor:
        """This process's particles at the first time."""
        begin, own = self.population, self.shards.own
        if begin.init is not None:
            return begin.init[own].to(begin.home(denoiser))
        if begin.x is None:
            mine, home = (own.stop - own.start, *begin.shape), begin.home(denoiser)
            return starting_noise(self.table, mine, self.noise, begin.dtype, home)
        return begin.x[own]

    def _tally(self, model: BaseDenoiser) -> Tally:
        cut = len(self.shards.pieces) > 1 or self.shards.count > 1
        rows = len(self.population)
        return self._counted(Pieces(model, self.shards, rows) if cut else model)

    def _counted(self, model: BaseDenoiser) -> Tally:
        self.tallies.append(Tally(model, self.advance))
        return self.tallies[-1]

    def moving_at(self, cfg_scale: float) -> Tally:
        """What moves the particles, under another classifier-free guidance, counted with the rest.

        Raises :class:`InvalidArgument` if the denoiser cannot tell.
        """
        if cfg_scale == self.moving.cfg_scale:
            return self.moving
        other = self.moving.denoiser.at_cfg_scale(cfg_scale)
        if other is None:
            raise InvalidArgument(f"this denoiser cannot be asked under guidance {cfg_scale:g}")
        return self._counted(other)

    def boundaries(self) -> Iterator[Boundary]:
        """The executor's pauses, the last with the samples."""
        last = None
        try:
            with rows_from(self.shards.own.start):
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

    def gather(self, boundary: Boundary, ancestors: Tensor, selected: Tensor) -> None:
        """Particles become copies of their ancestors (P, N); at the end every process has all."""
        if selected.any():
            rows = self.population.rows(ancestors)
            boundary.x, boundary.D = self.shards.select(rows, boundary.x, boundary.D)
        if boundary.final:
            boundary.x = self.shards.gather(boundary.x)

    def valued(self, value: Value, look: Look) -> tuple[Tensor, Tensor | None]:
        """V at a boundary, checked, and the rewards behind it if there are: (P, N) each."""
        answer = value(look)
        if not isinstance(answer, tuple) or len(answer) != 2:
            raise InvalidArgument(f"a value returns (V, rewards or None), got {shown(answer)}")

        def checked(given: Tensor, name: str) -> Tensor:
            one = FunctionReward(lambda x: given, name)
            with rows_from(self.shards.own.start):
                return self.split(evaluate(one, look.boundary.x, look.where))

        seen, behind = answer
        return checked(seen, "value"), None if behind is None else checked(behind, "reward")

    def held_out(self, z: Tensor | None, where: str) -> dict[str, Tensor]:
        """What held-out rewards say of this process's clean states, (P, N) each; NaN of nothing."""
        if z is None:
            nothing = torch.full((self.population.count, self.population.particles), math.nan)
            return dict.fromkeys(self.beside, nothing.double())
        with apart(z):
            return {
                name: self.split(scorer.rewards(z, f"{where} (held out as {name!r})"))
                for name, scorer in self.beside.items()
            }

    def split(self, values: Tensor) -> Tensor:
        """This process's (n,) of all P N to those of all, (P, N)."""
        whole = self.shards.gather(values)
        return whole.view(self.population.count, self.population.particles)

    def resume(self, costs: Costs) -> None:
        """Count as if this run, which begins on the way, had cost this much so far."""
        self.before = costs - self.costs

    @property
    def costs(self) -> Costs:
        of_scores = Costs(0, 0, self.scorer.evaluations, self.scorer.decodes)
        own = sum((tally.costs for tally in self.tallies), of_scores)
        return self.before + Costs(*self.shards.total(*astuple(own)))


def check_asked(
    table: Table,
    denoiser: BaseDenoiser,
    reward: Reward,
    tilt: Tilt,
    population: Population,
    shards: Shards | None,
    also: Mapping[str, Reward],
) -> None:
    """Raise, before anything is drawn, where a run cannot be what is asked for."""
    if not isinstance(shards, (Shards, type(None))):
        raise InvalidArgument(f"shards must be Shards(...) or None, got {shown(shards)}")
    sizes = (len(population), *population.shape)
    if population.x is None:
        if population.init is None:  # else nothing is drawn with it
            check_whole(table)
    elif check_state(population.x).shape != sizes:
        given = tuple(population.x.shape)
        raise ShapeError(f"x must be {sizes}, one for each particle, got {given}")
    elif table.times[-1] != 1.0:
        raise TimeError(f"steering ends at data, t = 1; these times end at {table.times[-1]!r}")
    if tilt.differentiates and not reward.differentiable:
        raise InvalidArgument(
            f"the reward {reward.name!r} has no gradient: use twist=0 and guidance=None"
        )
    if tilt.guidance is not None and tilt.guidance.scale and isinstance(denoiser, GuidedDenoiser):
        raise InvalidArgument(
            "the denoiser is guided already: pass guidance=None, or the model itself"
        )
    _check_prompts(reward, f"reward {reward.name!r}", population)
    for name, one in also.items():
        _check_prompts(one, f"held-out reward {name!r}", population)


def _check_prompts(reward: Reward, name: str, population: Population) -> None:
    if reward.takes_prompts and population.prompts is None:
        raise InvalidArgument(f"the {name} takes prompts: pass prompts=[...]")


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
