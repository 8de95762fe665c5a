"""Sampling in one call: whole samples, single transitions, posterior samples."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from torch import Tensor

from .denoisers import DEVICE, DTYPE, Costs, DenoiserLike, Estimate, WrappedDenoiser, as_denoiser
from .errors import MOST_PARTICLES, InvalidArgument, TimeError, shown
from .execute import check_state, check_table, run
from .fronts import front
from .grids import Times
from .noise import (
    GENERATOR,
    POSTERIOR,
    RANDOMNESS,
    SEED,
    SINGLE,
    START,
    Draw,
    FixedNoise,
    Noise,
    check_sizes,
    key_of,
    noise_source,
)
from .plans import Rho, Sampler, Solver, Table, plan_transition
from .plans.allowed import SOLVER
from .plans.solvers import solver_for
from .progress import PROGRESS, progress_bar
from .settings import Count, Is, Kind, Listed, Switch

__all__ = ["Sizes", "Tally", "check_whole", "posterior", "sample", "starting_noise", "transition"]


class Sizes(Kind):
    """Sizes of a tensor, held as a tuple of at least `least` of them."""

    def __init__(self, least: int, what: str) -> None:
        self.least, self.what = least, what

    def check(self, name: str, given: object) -> tuple[int, ...]:
        found = None if isinstance(given, str) else _SIZES.read(f"{name}: every size", given)
        if not isinstance(found, tuple) or len(found) < self.least:
            raise InvalidArgument(f"{name} must {self.what}, got {shown(given)}")
        return found


_SIZES = Listed(Is(Sequence, "one of a list"), item=Count())
_SHAPE = Sizes(1, "be (batch, *sizes)")


@front(steps=Count(), solver=SOLVER, generator=GENERATOR, seed=SEED)
def transition(
    denoiser: DenoiserLike,
    x: Tensor,
    t: float,
    t_next: float,
    *,
    rho: Rho,
    steps: int,
    solver: str | Solver = "default",
    noise: Tensor | None = None,
    generator: torch.Generator | None = None,
    seed: int | None = None,
) -> Tensor:
    """One sample of p(x_t' | x_t) per particle, in `steps` network evaluations.

    Parameters
    ----------
    denoiser : Denoiser
        ``denoiser(x, t)`` is E[z | x_t = x].
    x : Tensor
        x_t, (B, *shape), float32 or float64.
    t, t_next : float
        0 <= t < t' <= 1; t' = 1 samples the posterior p(z | x_t).
    rho : float, "ddpm", "ode", DDIM(eta) or callable
        Correlation of the noises of x_t and x_t', |ρ| <= 1.
    steps : int
        M >= 1 network evaluations.
    solver : str or Solver
        "default", "second-order", "first-order", "paper", "euler-maruyama" or a solver object.
    noise : Tensor, optional
        The standard normal ε, shaped like x: with it the result is a function of (x, ε).
    generator, seed : optional
        Where ε comes from otherwise: a torch.Generator, or a seed. A seed gives every particle a
        stream of its own for every t, so that the steps of a loop can share one seed. At most one;
        by default a seed drawn from torch's global generator.

    Returns
    -------
    Tensor
        x_t', shaped like x. Gradients flow through it if they are enabled.

    Notes
    -----
    From t = 0 on a path with α_0 = 0, x holds no information: the default solver takes ρ = 0 and
    ε = x/σ_0, and `noise` is not used.
    """
    denoiser = as_denoiser(denoiser)
    check_state(x)
    planned_by = solver_for(cast(Solver, solver), denoiser.cfg_scale)
    table = plan_transition(denoiser.path, t, t_next, rho=rho, steps=steps, solver=planned_by)
    source: Draw
    if noise is None:
        source = _at_times(noise_source(seed, generator), table, SINGLE)
    elif generator is not None or seed is not None:
        raise InvalidArgument("give noise, generator or seed, not several of them")
    elif len(table) > 1:
        raise InvalidArgument(
            f"noise is one ε, but this sampler draws {len(table)} of them; use seed or generator"
        )
    else:
        source = FixedNoise([noise])
        source(0, x)  # check it now
    return run(table, denoiser, x, source)


_SAMPLER = Sampler()


@front(
    sampler=Sampler,
    seed=SEED,
    generator=GENERATOR,
    randomness=RANDOMNESS,
    dtype=DTYPE,
    device=DEVICE,
    differentiable=Switch(),
    progress=PROGRESS,
)
def sample(
    denoiser: DenoiserLike,
    shape_or_noise: Sequence[int] | Tensor,
    sampler: Sampler = _SAMPLER,
    *,
    transitions: int = 6,
    steps: int | Sequence[int] = 4,
    rho: Rho | Sequence[Rho] = 0.4,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    randomness: str = "particle",
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
    differentiable: bool = False,
    progress: bool | None = None,
) -> Tensor:
    """Samples of the model: K transitions of M network evaluations each, from noise to data.

    The settings are given by name, or as an object:
    ``sample(denoiser, (8, 3, 32, 32), Sampler(6, 4))``.

    Parameters
    ----------
    denoiser : Denoiser
        ``denoiser(x, t)`` is E[z | x_t = x].
    shape_or_noise : sequence of int, or Tensor
        (B, *shape) with the batch, or the starting standard normal noise itself (float32 or
        float64; on paths with σ_0 ≠ 1 it is scaled here).
    {settings}
    seed : int, optional
        Every particle has a stream of its own, found from (seed, particle, transition): the same
        whatever the batch size, dtype or device. Default: drawn from torch's global generator.
    generator : torch.Generator, optional
        Instead of a seed.
    randomness : "particle" or "stream"
        "stream" draws whole batches at once: for very large populations.
    dtype, device
        Of the state, if a shape is given: float32 or float64, by default torch's default dtype
        (float32 where that has fewer bits), on the device of the network's parameters.
    differentiable : bool
        Keep the graph through all network evaluations (memory grows with K M).
    progress : bool or None
        Show a progress bar; None shows one on a terminal once the run takes over two seconds.

    Returns
    -------
    Tensor
        (B, *shape).

    Raises
    ------
    InvalidArgument, ShapeError, TimeError, UnknownName, PlanError, NonFinite

    Example
    -------
    >>> z = sample(denoiser, (32, 16), transitions=6, steps=4, rho=0.4, seed=0)
    """
    denoiser = as_denoiser(denoiser)
    table = sampler.plan(denoiser.path, denoiser.cfg_scale)
    check_whole(table)
    source = noise_source(seed, generator, randomness)
    if isinstance(shape_or_noise, Tensor):
        x = check_state(shape_or_noise, "noise") * table.start_scale
    else:
        home = device if device is not None else denoiser.device
        x = starting_noise(table, shape_or_noise, source, dtype, home)
    with (
        torch.set_grad_enabled(differentiable and torch.is_grad_enabled()),
        progress_bar(table.evaluations, progress) as advance,
    ):
        return run(table, Tally(denoiser, advance), x, source)


@front(
    samples=Count(most=MOST_PARTICLES),
    steps=Count(),
    solver=SOLVER,
    seed=SEED,
    generator=GENERATOR,
    differentiable=Switch(),
)
def posterior(
    denoiser: DenoiserLike,
    x: Tensor,
    t: float,
    *,
    samples: int,
    steps: int,
    solver: str | Solver = "default",
    seed: int | None = None,
    generator: torch.Generator | None = None,
    differentiable: bool = False,
) -> Tensor:
    """Draws from p(z | x_t = x), each in `steps` network evaluations.

    Parameters
    ----------
    x : Tensor
        x_t, (B, *shape), float32 or float64.
    t : float
        In [0, 1). At t = 0 on a path with α_0 = 0, x says nothing and the draws are samples of
        the data, each from noise of its own.
    samples : int
        n >= 1 draws per particle.

    Returns
    -------
    Tensor
        (samples, B, *shape).
    """
    denoiser = as_denoiser(denoiser)
    check_state(x)
    check_sizes((samples * x.shape[0], *x.shape[1:]))
    planned_by = solver_for(cast(Solver, solver), denoiser.cfg_scale)
    table = plan_transition(denoiser.path, t, 1.0, rho=0.0, steps=steps, solver=planned_by)
    source = _at_times(noise_source(seed, generator), table, POSTERIOR, samples)
    repeated = x.repeat(samples, *(1,) * (x.ndim - 1))
    if table.transitions[0].alpha == 0.0:
        repeated = source(0, repeated) * table.start_scale
    with torch.set_grad_enabled(differentiable and torch.is_grad_enabled()):
        return run(table, denoiser, repeated, source).view(samples, *x.shape)


@front(shape=_SHAPE, dtype=DTYPE, device=DEVICE)
def starting_noise(
    table: Table,
    shape: Sequence[int],
    source: Noise,
    dtype: torch.dtype | None = None,
    device: torch.device | str | None = None,
) -> Tensor:
    """x at the table's first time, drawn from noise: (B, *shape) for a shape with the batch."""
    check_table(table)
    check_sizes(shape)
    try:
        like = torch.empty(tuple(shape), dtype=dtype, device=device)
    except RuntimeError as error:
        raise InvalidArgument(f"a state of {tuple(shape)} does not fit here: {error}") from error
    return check_state(source(0, like, START) * table.start_scale)


def check_whole(table: Table) -> None:
    """Raise :class:`TimeError` unless the table goes from noise, t = 0, to data, t = 1."""
    check_table(table)
    first, last = table.times[0], table.times[-1]
    if first != 0.0 or last != 1.0:
        raise TimeError(
            f"samples start at noise, t = 0, and end at data, t = 1; these times go from {first!r} "
            f"to {last!r}. For a part of the way plan the table and use glass_flows.execute.run"
        )


def _at_times(source: Noise, table: Table, purpose: int, draws: int = 1) -> Draw:
    """Noise of single transitions, keyed by their time instead of a number, for n draws at once.

    Draw s of particle b has the same noise whatever the batch and the number of draws.
    """

    def draw(step: int, like: Tensor) -> Tensor:
        key, one = key_of(table.transitions[step].t), like[: len(like) // draws]
        return torch.cat([source(key, one, purpose, s) for s in range(draws)])

    return draw


class Tally(WrappedDenoiser):
    """A denoiser that counts what it is asked, per particle, and calls `advance()` at every call.

    Attributes
    ----------
    costs : Costs
        So far.
    """

    def __init__(self, denoiser: DenoiserLike, advance: Callable[[], None] = lambda: None) -> None:
        super().__init__(denoiser)
        self.advance, self.costs = advance, Costs()

    def estimate(self, x: Tensor, t: float) -> Estimate:
        answer = super().estimate(x, t)
        self.costs += self.costs_per_call * len(x)
        self.advance()
        return answer
