"""Steering and search in one call."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import cast

import torch
from torch import Tensor

from ..denoisers import DenoiserLike
from ..execute import check_table
from ..fronts import front
from ..grids import Times
from ..guidance import Guidance
from ..plans import Rho, Sampler, Solver, Table
from ..rewards import RewardLike
from ..settings import Function, Is
from .held_out import Also, held_out
from .loop import Watch, begin, conduct, pass_boundaries
from .method import Method
from .pilot import pilot_of
from .population import Boundaries, Population
from .refinement import BEGINNING, MoveTimes, Ramp, Refine
from .results import RefinedResult, SearchResult, SteeringResult
from .schedules import ScaleSchedule
from .search import Beam, Greedy
from .shards import Shards
from .smc import BestOf, Steering
from .state import Observer, Recorder, Step
from .strength import Auto
from .twist import Twist
from .values import AnyValue

__all__ = ["beam", "best_of", "greedy", "iterate_steering", "refine", "steer"]

_STEERING, _BEST_OF, _BEAM, _GREEDY = Steering(), BestOf(), Beam(), Greedy()
_REFINE, _RAMP = Refine(), Ramp()
_SAMPLER, _ODE, _SHORT = Sampler(), Sampler.ode(24), Sampler.ode(BEGINNING)


@front(method=Steering, sampler=Sampler)
def steer(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Steering = _STEERING,
    sampler: Sampler = _SAMPLER,
    *,
    shape: Sequence[int],
    particles: int = 8,
    scale: float | str | Auto = "auto",
    potential: str = "difference",
    schedule: ScaleSchedule = "constant",
    boundaries: Boundaries = None,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    value: AnyValue = "free",
    guidance: Guidance | str | None = None,
    twist: float | str | Twist = 0.0,
    degenerate: str = "error",
    transitions: int = 6,
    steps: int | Sequence[int] = 4,
    rho: Rho | Sequence[Rho] = 0.4,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    on_boundary: Observer | None = None,
    progress: bool | None = None,
) -> SteeringResult:
    """Samples of p(z) exp(λ r(z)) by sequential Monte Carlo at transition boundaries.

    The settings are given by name, or as objects:
    ``steer(denoiser, reward, Steering(8, scale=5), Sampler(6, 4, 0.4), shape=(3, 32, 32))``.

    Parameters
    ----------
    denoiser : Denoiser
        Its conditioning has one row for all, or one for each population.
    reward : callable or Reward
        (B, *shape) clean samples to (B,) rewards, higher is better. -inf excludes a sample,
        and where particles are resampled also those whose estimate D is excluded, which biases the
        law (and `biases` of the result says so): give such rewards a finite floor, or
        ``ess_threshold=0``.
    shape : sequence of int
        Of one sample, without the batch.
    {settings}
    populations : int
        P >= 1 independent runs in one batch of P N particles; by default the number of prompts,
        or 1.
    prompts : sequence, optional
        One for each population, handed to rewards that take prompts.
    seed : int, optional
        Every particle has streams of its own, found from (seed, particle, transition): the same
        whatever the batch size, dtype or device. By default drawn from torch's global generator.
    dtype, device
        Of the state: float32 or float64, by default torch's default dtype (float32 where that has
        fewer bits), where the network's parameters are.
    x : Tensor, optional
        (P N, *shape), the particles at the first of `times`, instead of noise drawn from the seed;
        that time need not be 0 then. They stay in their own dtype and on their own device.
    also : reward, list of them, or dict by name, optional
        Held-out rewards: they score the samples, and the clean estimates wherever values are taken,
        and steer nothing. In `also`, `paths` and `warnings` of the result, and `also` of a step;
        their evaluations are counted apart (`also_evaluations`). They need no gradient.
    shards : Shards, optional
        Deal the particles out to the processes of torch.distributed, all of which make this call
        and get the whole result.
    record : Recorder, optional
        Keeps the run, and if it has kept a part of it already, this call goes on from there; see
        :class:`glass_flows.runs.RunFolder`. Needs a seed.
    on_boundary : callable, optional
        Called with a :class:`SteeringStep` when all is done at a boundary, and at the end. It
        returns True to end the run there, None or False to go on: the clean estimates of the
        boundary are then scored and weighted as the samples, `stopped` of the result is its number,
        and `biases` says so. Refinement ends its chains where they are.
    progress : bool or None
        Show a progress bar; None shows one on a terminal or in a notebook once the run takes over
        two seconds.

    Returns
    -------
    SteeringResult

    Raises
    ------
    InvalidArgument, ShapeError, UnknownName, PlanError
        Before anything is drawn.
    NonFinite, RewardError, DegenerateWeights
        On the way; their `boundary` holds the particles as they were, at the end the samples.

    Notes
    -----
    Times run from 0 to 1. A transition must draw noise for its start to be resampled (copies would
    stay copies): with the ODE nothing ever is.

    Example
    -------
    >>> result = steer(denoiser, lambda z: z.mean(1), shape=(16,), scale=5.0, seed=0)
    >>> result.best, result.log_evidence
    """
    population = Population.of(
        method.particles, shape, populations, prompts, seed=seed, dtype=dtype, device=device, x=x
    )
    watch = Watch(record, on_boundary, progress)
    found = conduct(denoiser, reward, method, sampler, population, shards, watch, also)
    return cast(SteeringResult, found)


@front(method=BestOf, sampler=Sampler)
def best_of(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: BestOf = _BEST_OF,
    sampler: Sampler = _ODE,
    *,
    shape: Sequence[int],
    particles: int = 8,
    scale: float | str | Auto = 1.0,
    guidance: Guidance | str | None = None,
    degenerate: str = "error",
    transitions: int = 1,
    steps: int | Sequence[int] = 24,
    rho: Rho | Sequence[Rho] = "ode",
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    on_boundary: Observer | None = None,
    progress: bool | None = None,
) -> SteeringResult:
    """Best-of-N: N independent samples per population, never resampled; `result.best` is it.

    By default with the probability-flow ODE, which is best as one transition of many steps; any ρ
    works. Rewards are taken at the end only.

    Parameters
    ----------
    {settings}
    denoiser, reward, shape and the rest
        As in :func:`steer`.

    Example
    -------
    >>> best_of(denoiser, lambda z: z.mean(1), shape=(16,), particles=8, seed=0).best
    """
    population = Population.of(
        method.particles, shape, populations, prompts, seed=seed, dtype=dtype, device=device, x=x
    )
    watch = Watch(record, on_boundary, progress)
    found = conduct(denoiser, reward, method, sampler, population, shards, watch, also)
    return cast(SteeringResult, found)


@front(method=Beam, sampler=Sampler)
def beam(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Beam = _BEAM,
    sampler: Sampler = _SAMPLER,
    *,
    shape: Sequence[int],
    particles: int = 8,
    children: int = 2,
    scale: float | str | Auto = "auto",
    value: AnyValue = "free",
    boundaries: Boundaries = None,
    guidance: Guidance | str | None = None,
    transitions: int = 6,
    steps: int | Sequence[int] = 4,
    rho: Rho | Sequence[Rho] = 0.4,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    on_boundary: Observer | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Beam search: at every boundary the best N/w of N particles go on, each with w children.

    Parameters
    ----------
    {settings}
    denoiser, reward, shape and the rest
        As in :func:`steer`.

    Returns
    -------
    SearchResult
        All N particles of the last generation; `best` is the best of them.

    Example
    -------
    >>> beam(denoiser, lambda z: z.mean(1), shape=(16,), particles=8, children=2, seed=0).best
    """
    population = Population.of(
        method.particles, shape, populations, prompts, seed=seed, dtype=dtype, device=device, x=x
    )
    watch = Watch(record, on_boundary, progress)
    return conduct(denoiser, reward, method, sampler, population, shards, watch, also)


@front(method=Greedy, sampler=Sampler)
def greedy(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Greedy = _GREEDY,
    sampler: Sampler = _SAMPLER,
    *,
    shape: Sequence[int],
    particles: int = 8,
    children: int = 2,
    pick: str = "best",
    scale: float | str | Auto = "auto",
    value: AnyValue = "free",
    boundaries: Boundaries = None,
    guidance: Guidance | str | None = None,
    transitions: int = 6,
    steps: int | Sequence[int] = 4,
    rho: Rho | Sequence[Rho] = 0.4,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    on_boundary: Observer | None = None,
    progress: bool | None = None,
) -> SearchResult:
    """Each of N/w particles has w children at every transition and goes on from one of them.

    With ``pick="sample"`` this is SVDD (Li et al., "Derivative-Free Guidance in Continuous and
    Discrete Diffusion Models with Soft Value-Based Decoding", arXiv 2408.08252), whose 1/α is λ.

    Parameters
    ----------
    {settings}
    denoiser, reward, shape and the rest
        As in :func:`steer`.

    Returns
    -------
    SearchResult
        The N/w particles picked at the end; its `ancestry` numbers all N, of which those of group
        i are i w to i w + w - 1.

    Example
    -------
    >>> greedy(denoiser, lambda z: z.mean(1), shape=(16,), particles=8, pick="sample", seed=0).best
    """
    population = Population.of(
        method.particles, shape, populations, prompts, seed=seed, dtype=dtype, device=device, x=x
    )
    watch = Watch(record, on_boundary, progress)
    return conduct(denoiser, reward, method, sampler, population, shards, watch, also)


@front(method=Refine, sampler=Sampler)
def refine(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Refine = _REFINE,
    sampler: Sampler = _SHORT,
    *,
    shape: Sequence[int],
    particles: int = 8,
    scale: float | str | Auto = "auto",
    moves: int = 6,
    move_times: MoveTimes | str = _RAMP,
    move_steps: int | Sequence[int] | None = None,
    move_guidance: float | None = None,
    schedule: ScaleSchedule | None = None,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    returned: str = "best",
    until: float | None = None,
    rescore: int = 0,
    degenerate: str = "error",
    transitions: int = 1,
    steps: int | Sequence[int] = BEGINNING,
    rho: Rho | Sequence[Rho] = "ode",
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    init: Tensor | None = None,
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    on_boundary: Observer | None = None,
    progress: bool | None = None,
) -> RefinedResult:
    """Clean samples, noised and redrawn again and again, accepted by their reward.

    Noising a sample and redrawing it with GLASS is a reversible move of the model's own law; with a
    Metropolis step on the reward of clean samples it is an exact sampler of p(z) exp(λ r(z)), which
    needs neither gradients nor rewards of blurred estimates, and goes on as long as one lets it.
    The settings of the sampler say how the first samples are drawn: by default on the ODE.

    Parameters
    ----------
    {settings}
    init : Tensor, optional
        Clean samples to begin with, instead of drawing some: (*shape) for all, (P, *shape) one for
        each population, or (P, N, *shape), such as the `samples` of another result. They stay in
        their own dtype.
    denoiser, reward, shape and the rest
        As in :func:`steer`.

    Returns
    -------
    RefinedResult

    Example
    -------
    >>> refine(denoiser, lambda z: z.mean(1), shape=(16,), scale=5.0, moves=20, seed=0).best
    """
    population = Population.of(
        method.particles, shape, populations, prompts, seed=seed, dtype=dtype, device=device
    ).refining(init)
    watch = Watch(record, on_boundary, progress)
    found = conduct(denoiser, reward, method, sampler, population, shards, watch, also)
    return cast(RefinedResult, found)


@front(
    method=Is(Method, "a settings object such as Steering(8, scale=5)"),
    advance=Function("a function without arguments"),
)
def iterate_steering(
    table: Table,
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Method,
    *,
    shape: Sequence[int],
    populations: int | None = None,
    prompts: Sequence[object] | None = None,
    seed: int | None = None,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    x: Tensor | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    advance: Callable[[], None] = lambda: None,
) -> Iterator[Step]:
    """Any method as an iterator over boundaries, for those who want to look or intervene.

    Takes the sampler as a :class:`~glass_flows.Table` and the method as settings object; what a
    step's boundary holds may be changed before the next step. `advance()` is called after every
    denoiser call, the rest is as in :func:`steer`. A weighted method yields SteeringSteps.
    """
    check_table(table)
    method = method.fitted(denoiser)
    method.check_table(table)
    population = Population.of(
        method.particles, shape, populations, prompts, seed=seed, dtype=dtype, device=device, x=x
    )
    watch = Watch(record)
    watch.resume(seed)
    beside, pilot = held_out(also), None
    if watch.saved is None:
        pilot = pilot_of(method, reward, table, denoiser, population, shards, beside)
    course = begin(
        table, denoiser, reward, method, population, shards, watch, advance, beside, pilot
    )
    return pass_boundaries(course, watch, course.boundaries())
