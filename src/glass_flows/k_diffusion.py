"""GLASS as a sampler function of k-diffusion, as ComfyUI, Forge and A1111 call it.

Such a function is given a model that answers with the denoised image at (x, σ), and falling noise
levels σ. Models of ε, v and EDM mean x = z + σ ε, which is the path `EDM`. Flows ("CONST") mean
x = (1 - σ) z + s σ ε, with a noise scale s that is nearly always 1. Divided by k = 1 - σ + s σ that
is the path `Linear`, at t = (1 - σ)/k. A table for one of the two is planned and run, and the model
is asked at (k x_t, σ). Nothing of those programs is imported here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, Protocol, cast

import torch
from torch import Tensor

from .denoisers import BaseDenoiser
from .errors import MOST_EVALUATIONS, InvalidArgument, check_count, check_number, shown
from .execute import run
from .fronts import front
from .grids import snap_to_trained
from .noise import SINGLE, Draw, KeyedNoise, check_seed, check_tensor, key_of
from .paths import EDM, KnownTimes, Linear, Path
from .plans import Rho, Solver, Table, plan
from .plans.allowed import SOLVER, START
from .plans.solvers import solver_for
from .progress import PROGRESS, progress_bar
from .settings import Count, Function, Switch

__all__ = ["sample_glass"]

NoiseSampler = Callable[[Tensor, Tensor], Tensor]

_SAYS = ("model_sampling", "predictor")  # ComfyUI's name, and Forge's, for what knows of noise
_SAY = ("noise_scaling", "sigma_to_t", "get_scalings")  # what they, and k-diffusion's models, have
_WRAPPED = 4  # models within models that are looked into
_FUNCTION = Function("a function", optional=True)


@front(
    model=Function("a function model(x, sigma, **extra_args)"),
    noise_sampler=_FUNCTION,
    callback=_FUNCTION,
    disable=PROGRESS,
    flow=Switch(optional=True),
    steps=Count(most=MOST_EVALUATIONS),
    solver=SOLVER,
    start=START,
)
def sample_glass(
    model: Callable[..., Tensor],
    x: Tensor,
    sigmas: Tensor,
    extra_args: Mapping[str, Any] | None = None,
    callback: Callable[[dict[str, Any]], object] | None = None,
    disable: bool | None = None,
    *,
    noise_sampler: NoiseSampler | None = None,
    flow: bool | None = None,
    rho: Rho = 0.4,
    steps: int = 4,
    solver: str | Solver = "second-order",
    start: str = "trained",
) -> Tensor:
    """GLASS transitions over falling noise levels, for programs that call k-diffusion's samplers.

    n + 1 levels are n evaluations of the model, as for Euler. A transition has `steps` of them: it
    goes from sigmas[0] to sigmas[M], from there to sigmas[2 M], and so on; the last one has what is
    left. The levels between only count; inside a transition the model is asked where the inner flow
    is, always at an (x, σ) that it was trained on. With ``steps=1, rho=1`` this is Euler's method.

    Parameters
    ----------
    model : callable
        ``model(x, sigma, **extra_args)`` with sigma of shape (B,) is the denoised image, like x.
    x : Tensor
        (B, *shape), at the noise level sigmas[0].
    sigmas : Tensor or sequence of float
        Falling, >= 0; only the last may be 0. Without one that is, x comes back at the last level.
        Fewer than two are nothing to do. Where the model counts trained levels
        (`model_sampling.sigmas`), those between the first and the last move to the nearest, and
        only trained ones are asked about.
    extra_args : mapping, optional
        For the model. Its "seed", an integer in [0, 2^64), gives every row of the batch a stream of
        its own for every level where a transition starts, whatever the batch; so a schedule that is
        cut where a transition ends has the noise of the whole. By default a seed is drawn from
        torch's global generator.
    callback : callable, optional
        Called after every evaluation with a dict: x and sigma (0-d, also as sigma_hat) as the model
        was asked, the number i of the evaluation from 0, and its answer as denoised.
    disable : bool or None
        True shows no progress bar, None only on a terminal.
    noise_sampler : callable, optional
        ``noise_sampler(sigma, sigma_next)``, called once for every transition that draws noise, in
        place of the seed: standard normal noise like x. Where sigma_next would be 0 it is the
        lowest level given, as samplers of Brownian paths want.
    flow : bool or None
        Whether x is (1 - σ) z + σ ε and not z + σ ε; None asks the model (`noise_scaling`, or that
        it is a wrapper of k-diffusion). Levels above 1 are of no flow.
    rho : float, "ddpm", "ode", "ddim:ETA", another rule, or a list with one per transition
        Correlation of the noises of a transition's ends, in [-1, 1].
    steps : int
        M, evaluations per transition, 1 to n. M = 1 is DDIM(η) or DDPM, by ρ.
    solver : str or Solver
        "second-order" is exact where the model is told the answer, as under a mask. "default" is
        not, and more accurate without guidance. Both make their grid for the classifier-free
        guidance of ComfyUI's guider or A1111's "cond_scale", or for "second-order:guidance=W".
    start : "trained" or "pure"
        How x at the model's highest level is read: as a sample of that level, or as pure noise,
        which makes the first transition an ODE. A flow's σ = 1 is pure noise.

    Returns
    -------
    Tensor
        (B, *shape), in the dtype of x.

    Raises
    ------
    InvalidArgument, ShapeError, PlanError
        Levels that do not fall, more steps than evaluations, a model that says nothing of its noise
        with `flow` not told, or another than told; a mask with a solver that would not keep it.
    NonFinite
        The model returned NaN or infinity.
    """
    given = _falling(sigmas)
    check_tensor(x)
    if len(given) < 2:
        return x
    extra_args = {} if extra_args is None else extra_args
    if not isinstance(extra_args, Mapping):
        raise InvalidArgument(f"extra_args must be a mapping by name, got {shown(extra_args)}")
    levels = _Levels.of(model, given, flow)
    planned_by = solver_for(cast(Solver, solver), _guidance(model, extra_args))
    table = levels.plan(rho, steps, planned_by, start)
    _check_mask(model, extra_args, table)
    if noise_sampler is None:
        noise = _seeded(extra_args.get("seed"), levels, table, steps)
    else:
        noise = _sampled(noise_sampler, levels, table)
    state = x if x.dtype == torch.float64 else x.float()
    show = None if disable is None else not disable
    with torch.no_grad(), progress_bar(table.evaluations, show) as advance:

        def told(asked: dict[str, Any]) -> None:
            if callback is not None:
                callback(asked)
            advance()

        asked = _Asked(model, levels, table.path, extra_args, told, x.dtype)
        end = run(table, asked, state / levels.scale(given[0]), noise)
    return (end * levels.scale(given[-1])).to(x.dtype)


def _falling(sigmas: object) -> tuple[float, ...]:
    """The levels as floats, checked."""
    if isinstance(sigmas, Tensor) and sigmas.ndim == 1:
        sigmas = sigmas.tolist()
    if not isinstance(sigmas, (list, tuple)):
        got = f"shape {tuple(sigmas.shape)}" if isinstance(sigmas, Tensor) else shown(sigmas)
        raise InvalidArgument(f"sigmas must be a list of falling numbers, got {got}")
    given = tuple(
        check_number(f"sigmas[{i}]", s, "be finite and >= 0", lambda v: 0.0 <= v < math.inf)
        for i, s in enumerate(sigmas)
    )
    for i, (before, after) in enumerate(pairwise(given)):
        if before <= after:
            raise InvalidArgument(
                f"sigmas must fall, got {before:.6g} and then {after:.6g} at {i} and {i + 1}: "
                "take a schedule of fewer steps, or drop the repeated levels"
            )
    return given


def _first_of(thing: object, *names: str) -> Any:
    """The first of these attributes that is there and is not None."""
    found = (getattr(thing, name, None) for name in names)
    return next((one for one in found if one is not None), None)


def _check_mask(model: object, extra_args: Mapping[str, Any], table: Table) -> None:
    """A mask, ComfyUI's argument or A1111's attribute, tells the model some of its answer."""
    masked = extra_args.get("denoise_mask") is not None or _first_of(model, "mask") is not None
    if masked and any(transition.law != 0.0 for transition in table):
        raise InvalidArgument(
            f"under a mask the kept part must stay as it is, which {table.solver!r} with "
            f"start={table.start!r} does not promise: use solver='second-order', start='trained'"
        )


# --- noise levels ---------------------------------------------------------------------------------


class _Sampling(Protocol):
    """What ComfyUI and Forge call model sampling: how a latent is noised."""

    def noise_scaling(self, sigma: Tensor, noise: Tensor, latent: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class _Levels:
    """The noise levels of a model and of one call, as times of a path.

    Attributes
    ----------
    given : tuple of float
        The levels of the call, falling.
    path : EDM or Linear
        x = z + σ ε, or a flow's.
    noise_scale : float
        s of a flow.
    trained : tuple of float or None
        Levels that the model counts, rising.
    highest : float
        Of the model's levels; where it has no list of them 1 of a flow, else 0: not known.
    """

    given: tuple[float, ...]
    path: Path
    noise_scale: float
    trained: tuple[float, ...] | None
    highest: float

    @classmethod
    def of(cls, model: object, given: tuple[float, ...], flow: bool | None) -> _Levels:
        source = _source(model)
        found, scale = _mixing(source)
        if flow is not None and found is (not flow):
            kinds = {True: "(1 - sigma) z + sigma eps", False: "z + sigma eps"}
            raise InvalidArgument(
                f"flow={flow} is x = {kinds[flow]}, but this model's is {kinds[not flow]}: leave "
                "flow out"
            )
        flow = found if flow is None else flow
        if given[0] > 1.0 + 1e-6:
            if flow:
                raise InvalidArgument(f"a flow's sigmas are at most 1, got {given[0]:.6g}")
            flow = False
        if flow is None:
            raise InvalidArgument(
                "this model does not say how noise is mixed in: give flow=True for "
                "x = (1 - sigma) z + sigma eps, flow=False for z + sigma eps"
            )
        listed, counts = _listed(source)
        path: Path = Linear()
        if not flow:  # it ends where the model's list does, else below all that may be asked
            lowest = min(s for s in (*listed, *given) if s > 0.0)
            path = EDM(lowest * (0.999 if listed else 1e-3), max(*listed, *given))
        return cls(given, path, scale, listed if counts else None, max(listed, default=float(flow)))

    @cached_property
    def _named(self) -> dict[float, float]:
        """Times whose σ is known to the last digit."""
        return {self.time(s): s for s in (*(self.trained or ()), *self.given) if s > 0.0}

    def time(self, sigma: float) -> float:
        if sigma == 0.0:
            return 1.0
        if isinstance(self.path, EDM):
            return self.path.time(1.0 / sigma)
        return max(1.0 - sigma, 0.0) / self.scale(sigma)

    def sigma(self, t: float) -> float:
        if t in self._named:
            return self._named[t]
        if isinstance(self.path, EDM):
            return self.path.sigma(t)
        return (1.0 - t) / (1.0 - t + self.noise_scale * t)

    def scale(self, sigma: float) -> float:
        """k in x = k x_t."""
        return 1.0 if isinstance(self.path, EDM) else 1.0 + (self.noise_scale - 1.0) * sigma

    def plan(self, rho: Rho, steps: int, solver: Solver, start: str) -> Table:
        """Transitions of `steps` evaluations each, the last of what is left."""
        given, evaluations = self.given, len(self.given) - 1
        if steps > evaluations:
            raise InvalidArgument(
                f"steps={steps} evaluations per transition, but {len(given)} sigmas are "
                f"{evaluations} in all: steps must be at most that"
            )
        if start == "pure" and given[0] < self.highest * (1.0 - 1e-4):
            raise InvalidArgument(
                f"start='pure' reads x as noise alone, but sigmas begin at {given[0]:.6g}, below "
                f"the model's {self.highest:.6g}: use start='trained'"
            )
        counts = [min(steps, evaluations - first) for first in range(0, evaluations, steps)]
        path, times = self.outer(steps)
        return plan(
            path,
            transitions=len(counts),
            steps=counts,
            rho=rho,
            times=times,
            solver=solver,
            start=start,
        )

    def outer(self, steps: int) -> tuple[Path, tuple[float, ...]]:
        """The path as it may be asked, and the times where transitions start, and the end."""
        path, ends = self.path, (*self.given[:-1:steps], self.given[-1])
        times = tuple(map(self.time, ends))
        if self.trained is not None:
            path = KnownTimes(path, sorted({times[0], *map(self.time, self.trained)}))
        return path, snap_to_trained(path, times)


def _within(model: object) -> Iterator[object]:
    """The model, and those within it."""
    for _ in range(_WRAPPED):
        yield model
        model = _first_of(model, "inner_model")


def _source(model: object) -> object:
    """What says how noise is mixed in, of the outermost model within models; or None."""
    for at in _within(model):
        for found in (_first_of(at, *_SAYS), at):
            if any(hasattr(found, name) for name in _SAY):
                return found
    return None


def _guidance(model: object, extra_args: Mapping[str, Any]) -> float:
    """w of classifier-free guidance: A1111's argument, or what ComfyUI's guider holds; else 1."""
    held = (_first_of(at, "cfg") for at in _within(model))
    found = next((w for w in (extra_args.get("cond_scale"), *held) if w is not None), 1.0)
    return float(found) if isinstance(found, (int, float)) else 1.0


def _mixing(source: object) -> tuple[bool | None, float]:
    """Whether the model is a flow, None if it does not say; and its noise scale.

    What noises latents is asked to noise a one with a zero, and the other way round.
    """
    if source is None:
        return None, 1.0
    if not hasattr(source, "noise_scaling"):
        return False, 1.0  # k-diffusion's own wrappers: none is of a flow
    one = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    half = one.new_full((1,), 0.5)
    scaling = cast(_Sampling, source).noise_scaling
    signal = float(scaling(half, torch.zeros_like(one), one.clone()))
    noise = float(scaling(half, one.clone(), torch.zeros_like(one)))
    if (signal, noise) == (1.0, 0.5):
        return False, 1.0
    if signal == 0.5 and noise > 0.0:
        return True, 2.0 * noise
    raise InvalidArgument(
        f"at sigma = 0.5 this model's noise_scaling mixes {signal:.6g} z + {noise:.6g} eps: known "
        "are z + sigma eps and (1 - sigma) z + sigma noise_scale eps"
    )


def _listed(source: object) -> tuple[tuple[float, ...], bool]:
    """The model's list of levels, if it has one, and whether its clock counts them.

    Models of a continuous clock have a list too, for schedules, that nobody counts.
    """
    sigmas, clock = _first_of(source, "sigmas"), _first_of(source, "timestep", "sigma_to_t")
    if not isinstance(sigmas, Tensor) or sigmas.ndim != 1:
        return (), False
    told = clock(sigmas).tolist() if callable(clock) else ()
    counts = bool(told) and all(abs(number - k) < 0.01 for k, number in enumerate(told))
    return tuple(sigmas.double().tolist()), counts


# --- the model and the noise, as the executor wants them ------------------------------------------


class _Asked(BaseDenoiser):
    """A model of k-diffusion's as a denoiser on the linear path, told about after every answer."""

    def __init__(
        self,
        model: Callable[..., Tensor],
        levels: _Levels,
        path: Path,
        extra_args: Mapping[str, Any],
        told: Callable[[dict[str, Any]], None],
        dtype: torch.dtype,
    ) -> None:
        self.model, self.levels, self.path, self.told = model, levels, path, told
        self.extra_args, self.dtype, self.answers = extra_args, dtype, 0

    def __call__(self, x: Tensor, t: float) -> Tensor:
        level = self.levels.sigma(t)
        y = (x * self.levels.scale(level)).to(self.dtype)  # a copy: it may be written to
        sigma = y.new_full((len(y),), level)
        denoised = check_tensor(self.model(y, sigma, **self.extra_args), "what the model returned")
        asked = {"x": y, "i": self.answers, "sigma": sigma[0], "sigma_hat": sigma[0]}
        self.answers += 1
        self.told({**asked, "denoised": denoised})
        return denoised.to(x.dtype, copy=True)  # its memory may be used again


def _seeded(seed: object, levels: _Levels, table: Table, steps: int) -> Draw:
    """Noise of a seed, keyed by the level where it is drawn instead of a number.

    That is the level of the call: a level that is moved to a trained one is not where the other
    half of a schedule that is cut there starts.
    """
    # Seeds there have 64 bits, ours 63: the highest chooses between two draws.
    told = check_seed(None) if seed is None else check_count("seed", seed, 0, 2**64 - 1)
    high, low = divmod(told, 2**63)
    source, given = KeyedNoise(low), dict(zip(levels.outer(steps)[1], levels.given[:-1:steps]))
    keys = [key_of(given.get(one.t, levels.sigma(one.t))) for one in table]
    return lambda step, like: source(keys[step], like, SINGLE, high)


def _sampled(sampler: NoiseSampler, levels: _Levels, table: Table) -> Draw:
    """Noise of somebody's noise sampler."""
    lowest = min(filter(None, levels.given))

    def draw(step: int, like: Tensor) -> Tensor:
        transition = table.transitions[step]
        sigma = levels.sigma(transition.t)
        following = 0.0 if transition.t_next == 1.0 else levels.sigma(transition.t_next)
        if following == 0.0 and lowest < sigma:
            following = lowest
        drawn = sampler(like.new_tensor(sigma), like.new_tensor(following))
        return check_tensor(drawn, "what noise_sampler returned").to(like)

    return draw
