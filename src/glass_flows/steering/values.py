"""Values: what a boundary says about the reward at the end, V ≈ log E[exp(λ r(x_1)) | x_t].

Values are in log units at the final λ. They decide which particles survive; the terminal correction
makes the weights exact whatever they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Protocol, TypeVar, Union, cast, runtime_checkable

import torch
from torch import Tensor

from ..denoisers import BaseDenoiser, Estimate, WrappedDenoiser
from ..errors import MOST_EVALUATIONS, InvalidArgument, rows_from, shown
from ..execute import Boundary, run
from ..noise import POSTERIOR, Noise
from ..paths import Path
from ..plans import Default, Solver, Table, plan_transition
from ..plans.allowed import SOLVER
from ..plans.planner import check_size
from ..plans.solvers import solver_for
from ..rewards import FunctionReward, Reward, evaluate, evaluate_with_gradient
from ..settings import Checked, Count, setting

__all__ = ["FreeValue", "Look", "PosteriorValue", "Value", "ValueFunction"]

T = TypeVar("T")


class Scorer:
    """A reward with the prompts of the batch, counting what it is asked.

    It is asked about one of `pieces` of the batch at a time, which begins at row `first`.

    Attributes
    ----------
    evaluations, decodes : int
        Samples scored and decoded so far.
    """

    def __init__(
        self,
        reward: Reward,
        prompts: Sequence[object] | None,
        pieces: Sequence[slice],
        first: int = 0,
    ) -> None:
        self.reward, self.prompts, self.pieces, self.first = reward, prompts, pieces, first
        self.evaluations = self.decodes = 0

    def rewards(self, z: Tensor, where: str) -> Tensor:
        """r(z), (B,) float64 on the CPU."""
        return torch.cat(self._asked(evaluate, z, where))

    def with_gradient(self, z: Tensor, where: str) -> tuple[Tensor, Tensor]:
        """r(z) and ∇r(z), the latter shaped like z."""
        rewards, gradients = zip(*self._asked(evaluate_with_gradient, z, where))
        return torch.cat(rewards), torch.cat(gradients)

    def _asked(self, ask: Callable[..., T], z: Tensor, where: str) -> list[T]:
        self.evaluations += len(z)
        self.decodes += len(z) * self.reward.decodes
        found = []
        for piece in self.pieces:
            prompts = None if self.prompts is None else self.prompts[piece]
            with rows_from(self.first + piece.start):
                found.append(ask(self.reward, z[piece], where, prompts))
        return found


class Look:
    """What a value may use at a boundary, with B particles.

    Attributes
    ----------
    boundary : Boundary
        The pause itself; selection changes what it holds, and not what is here.
    index, t, x : int, float, Tensor
        Of the boundary: x_t is (B, *shape), a copy at every look, as the estimate's tensors are.
    estimate : Estimate
        The first evaluation of the transition; `estimate.untilted` is the model's D_t(x_t).
    denoiser : Denoiser
        The model without reward guidance; its evaluations are counted.
    scorer : Scorer
    scale : float
        λ.
    noise : Noise
    where : str
        The place, for errors.
    gradient : bool
        Whether ∇r will be wanted with r.
    known : Estimate, optional
        An estimate with rewards and gradients of this very reward: they are not taken again.
    """

    def __init__(
        self,
        boundary: Boundary,
        denoiser: BaseDenoiser,
        scorer: Scorer,
        scale: float,
        noise: Noise,
        where: str,
        gradient: bool = False,
        known: Estimate | None = None,
    ) -> None:
        self.boundary, self.index, self.t = boundary, boundary.index, boundary.t
        self._x, self._estimate = boundary.x, boundary.estimate
        self.denoiser, self.scorer, self.scale = denoiser, scorer, scale
        self.noise, self.where = noise, where
        self._wanted = gradient
        self._rewards = None if known is None else known.rewards
        self._gradient = None if known is None else known.gradient

    @property
    def x(self) -> Tensor:
        return self._x.clone()

    @property
    def estimate(self) -> Estimate:
        held = self._estimate
        D = held.D.clone()
        return replace(held, D=D, untilted=D if held.untilted is held.D else held.untilted.clone())

    def rewards(self) -> Tensor:
        """r(D_t(x_t)), (B,); with the gradient in the same pass if that is wanted."""
        if self._rewards is None and self._wanted:
            self.gradient()
        if self._rewards is None:
            self._rewards = self.scorer.rewards(self._estimate.untilted, self.where)
        return self._rewards

    def gradient(self) -> Tensor:
        """∇r at D_t(x_t), (B, *shape)."""
        if self._gradient is None:
            self._rewards, self._gradient = self.scorer.with_gradient(
                self._estimate.untilted, self.where
            )
        return self._gradient


@runtime_checkable
class Value(Protocol):
    """(V, rewards): V (B,) in log units, and the rewards (B,) behind it or None."""

    def __call__(self, look: Look) -> tuple[Tensor, Tensor | None]: ...

    def extra_calls(self, path: Path, t: float) -> int:
        """Denoiser calls at time t beyond the transition's own."""


@dataclass(frozen=True)
class FreeValue:
    """V = λ r(D_t(x_t)), whose D the transition needs anyway."""

    def __call__(self, look: Look) -> tuple[Tensor, Tensor | None]:
        rewards = look.rewards()
        return scaled(look.scale, rewards), rewards

    def extra_calls(self, path: Path, t: float) -> int:
        return 0


@dataclass(frozen=True)
class PosteriorValue(Checked):
    """V = log-mean-exp of λ r over draws of p(z | x_t), each a GLASS transition to data.

    Parameters
    ----------
    samples : int
        n >= 1 draws per particle.
    steps : int
        m >= 1 evaluations each, of which the first is the boundary's own D: n (m - 1) more per
        particle and boundary, and n rewards.
    solver : str or Solver

    Notes
    -----
    Draw s of a particle at a boundary has its own keyed noise. From pure noise x says nothing:
    there the draws are independent samples of m evaluations each.
    """

    samples: int = setting(4, Count(most=MOST_EVALUATIONS))
    steps: int = setting(3, Count(most=MOST_EVALUATIONS))
    solver: str | Solver = setting(Default(), SOLVER)

    def check(self) -> None:
        check_size(self.samples * self.steps)

    def __call__(self, look: Look) -> tuple[Tensor, Tensor | None]:
        solver = solver_for(cast(Solver, self.solver), look.denoiser.cfg_scale)
        table = plan_transition(
            look.denoiser.path, look.t, 1.0, rho=0.0, steps=self.steps, solver=solver
        )
        drawn = torch.stack([self._rewards(look, table, s) for s in range(self.samples)])
        value = torch.logsumexp(scaled(look.scale, drawn), 0) - math.log(self.samples)
        return value, drawn.mean(0)

    def _rewards(self, look: Look, table: Table, draw: int) -> Tensor:
        """Of one draw for each particle."""

        def noise(step: int, like: Tensor) -> Tensor:
            return look.noise(look.index, like, POSTERIOR, draw)

        denoiser, x = look.denoiser, look.x
        if table.transitions[0].alpha == 0.0:  # pure noise: a sample of its own
            x = noise(0, x) * table.start_scale
        elif table.transitions[0].free_value:
            denoiser = _Primed(denoiser, look.estimate.untilted)
        z = run(table, denoiser, x, noise)
        return look.scorer.rewards(z, f"{look.where}, posterior draw {draw}")

    def extra_calls(self, path: Path, t: float) -> int:
        pure = path.alpha(t) == 0.0
        return self.samples * (self.steps if pure else self.steps - 1)


@dataclass(frozen=True)
class ValueFunction:
    """A function of one's own: V(x_t, t, D) to (B,) in log units."""

    function: Callable[[Tensor, float, Tensor], Tensor]

    @property
    def __name__(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))

    def __call__(self, look: Look) -> tuple[Tensor, Tensor | None]:
        whole, found = look.estimate.untilted, []
        for piece in look.scorer.pieces:
            D = whole[piece]
            score = FunctionReward(
                lambda x, D=D: self.function(x, look.t, D.clone()),
                name="value function",
            )
            with rows_from(look.scorer.first + piece.start):
                found.append(evaluate(score, look.x[piece], look.where))
        return torch.cat(found), None

    def extra_calls(self, path: Path, t: float) -> int:
        return 0


def resolve_value(value: Value | Callable[[Tensor, float, Tensor], Tensor]) -> Value:
    """The value of an object, or of a function V(x, t, D)."""
    if isinstance(value, Value) and not isinstance(value, type):
        return value
    if not callable(value) or isinstance(value, type):
        raise InvalidArgument(
            "value must be 'free', 'posterior', PosteriorValue(samples, steps) or a function "
            f"V(x, t, D) in log units, got {shown(value)}"
        )
    return ValueFunction(value)


AnyValue = Union[str, Value, Callable[[Tensor, float, Tensor], Tensor]]


def scaled(scale: float | Tensor, values: Tensor) -> Tensor:
    """scale · values, where a scale of 0 forgets even -inf."""
    scale = torch.as_tensor(scale, dtype=values.dtype)
    return torch.where(scale > 0.0, scale * values, 0.0)


class _Primed(WrappedDenoiser):
    """A denoiser whose first answer is known already."""

    def __init__(self, denoiser: BaseDenoiser, first: Tensor) -> None:
        super().__init__(denoiser)
        self.first: Tensor | None = first

    def estimate(self, x: Tensor, t: float) -> Estimate:
        if self.first is None:
            return super().estimate(x, t)
        answer, self.first = self.first, None
        return Estimate(answer, answer)
