"""Reward guidance: a denoiser tilted by the gradient of a value.

Tilting the data's law by exp(V) turns the denoiser into D + (σ_t²/α_t) ∇_x V_t(x) (Tweedie), with
V_t(x) = log E[exp(λ r(z)) | x_t = x]. With the exact V the guided sampler draws from
p(z) exp(λ r(z)). The estimate V = λ r(D_t(x)) gives two rules, as ∂D/∂x = (α/σ²) Cov[z | x]:

- through the network, (σ²/α) (∂D/∂x)ᵀ λ∇r(D): the reward guidance of GLASS Flows
  (arXiv 2509.25170);
- through the reward alone, v λ∇r(D): Cov[z | x] ≈ v I with v = 1/(1/σ_data² + α²/σ²), the
  posterior variance of Gaussian data; no backward pass through the network.

Near pure noise D hardly depends on x, and σ²/α blows up what a learned network has wrong there: at
amplitudes a = α/σ of 0.03 and less the first rule goes over into the second, with the shares
1 - exp(-(a/0.03)²) and exp(-(a/0.03)²).

Both bias the law of the samples: as proposals of steering they change its target from
p(z) exp(λ r(z)) to (the guided sampler's law) exp(λ r(z)). Twisted noise is the exact alternative
(:mod:`glass_flows.steering.twist`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from copy import copy
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from .denoisers import BaseDenoiser, Costs, DenoiserLike, Estimate, WrappedDenoiser
from .errors import InvalidArgument, ShapeError
from .noise import check_tensor
from .paths import check_time
from .rewards import Reward, as_reward, evaluate_with_gradient
from .rewards.base import check_finite
from .settings import ANY_COUNT, NOT_NEGATIVE, POSITIVE, Checked, Choice, Function, Is, setting

__all__ = ["Guidance", "GuidedDenoiser"]

_EARLIEST = 1e-3  # least amplitude at which values are asked: σ²/α is infinite at 0
_LEARNED = 0.03  # amplitude where a network's ∂D/∂x starts to say something


@dataclass(frozen=True)
class Guidance(Checked):
    """How to guide.

    Parameters
    ----------
    scale : float
        Strength w >= 0; 1 is the tilt of the estimate V itself.
    through : "reward" or "network"
        Where the gradient flows: through the reward at D only, or through the network too.
    schedule : callable, optional
        t to a factor >= 0 of the strength.
    clip : float, optional
        Longest step of D, |D_guided - D| per particle in units of the posterior's standard
        deviation √v.
    sigma_data : float
        Standard deviation of the data, for v.
    max_batch : int, optional
        Through the network: largest batch whose activations are kept at a time. For less memory
        still, ``Denoiser(checkpoint=True)``.
    """

    scale: float = setting(1.0, NOT_NEGATIVE)
    through: str = setting("reward", Choice("guidance through", ("reward", "network")))
    schedule: Callable[[float], float] | None = setting(
        None, Function("a function of t, or None", optional=True)
    )
    clip: float | None = setting(None, replace(POSITIVE, optional=True))
    sigma_data: float = setting(1.0, POSITIVE)
    max_batch: int | None = setting(None, ANY_COUNT)

    def strength(self, t: float) -> float:
        """w at time t, with the schedule's factor."""
        if self.schedule is None:
            return self.scale
        name = f"the factor of the guidance schedule at t = {t:.6g}"
        return self.scale * float(NOT_NEGATIVE.check(name, self.schedule(t)))


_GUIDANCE = Is(Guidance, "glass_flows.Guidance(...) or None", optional=True)
_VALUE = Function("a function V(x, t) in log units, or None", optional=True)
_PROMPTS = Is(Sequence, "a list with one prompt per row of the batch, or None", optional=True)


class GuidedDenoiser(WrappedDenoiser):
    """A denoiser tilted towards a reward or by a value function; usable in any sampler.

    The tilt is a number to autograd: no gradient flows through a guided denoiser.

    Parameters
    ----------
    denoiser : Denoiser
        E[z | x_t = x] of the model.
    reward : callable, optional
        r on clean samples, with gradients; the value is then V = λ r(D_t(x)).
    guidance : Guidance
    scale : float
        λ of the reward.
    value : callable, optional
        Instead of a reward: V(x, t), (B,) in log units, differentiable in x. The tilt is then
        w (σ²/α) ∇_x V, exact where V is. At amplitudes α/σ below 1e-3 V is asked at the first
        time of at least that, with the same x.
    prompts : sequence, optional
        One per row of the batch, for rewards that take prompts.
    """

    def __init__(
        self,
        denoiser: DenoiserLike,
        reward: object = None,
        guidance: Guidance | None = None,
        *,
        scale: float = 1.0,
        value: Callable[[Tensor, float], Tensor] | None = None,
        prompts: Sequence[object] | None = None,
    ) -> None:
        super().__init__(denoiser)
        if (reward is None) == (value is None):
            raise InvalidArgument("guide by a reward or by a value function, one of them")
        scale = NOT_NEGATIVE.check("scale (lambda)", scale)
        if value is not None and (scale != 1.0 or prompts is not None):
            raise InvalidArgument(
                "a value function is in log units and knows its prompts: scale and prompts belong "
                "to a reward. For a weaker or stronger tilt use Guidance(scale=...)"
            )
        self.value, self.scale = _VALUE.read("value", value), scale
        self.prompts = _PROMPTS.read("prompts", prompts)
        self.guidance = _GUIDANCE.read("guidance", guidance) or Guidance()
        self.reward: Reward | None = None if reward is None else as_reward(reward)
        if self.reward is not None and not self.reward.differentiable:
            raise InvalidArgument(
                f"guidance needs gradients, and the reward {self.reward.name!r} has none "
                "(differentiable=False): use steering without guidance, or another reward"
            )

    @property
    def evaluations_per_call(self) -> int:
        """Forward passes; a checkpointing denoiser makes each twice."""
        again = self._deep and self.denoiser.recomputes
        return self.denoiser.evaluations_per_call * (2 if again else 1)

    @property
    def costs_per_call(self) -> Costs:
        gradients = self.denoiser.evaluations_per_call if self._deep else 0
        of_reward = (0, 0) if self.reward is None else (1, self.reward.decodes)
        return Costs(self.evaluations_per_call, gradients, *of_reward)

    @property
    def _deep(self) -> bool:
        return self.reward is not None and self.guidance.through == "network"

    def spread(self, populations: int, particles: int) -> GuidedDenoiser:
        """See :meth:`Denoiser.spread`; prompts, too, have one for each population."""
        prompts = self.prompts
        if prompts is not None:
            if len(prompts) != populations:
                raise InvalidArgument(
                    f"steering takes a guided denoiser with one prompt for each of its "
                    f"{populations} populations, got {len(prompts)}"
                )
            prompts = [prompt for prompt in prompts for _ in range(particles)]
        return self._around(self.denoiser.spread(populations, particles), prompts)

    def rows(self, part: slice, batch: int) -> GuidedDenoiser:
        """See :meth:`Denoiser.rows`."""
        return self._around(self.denoiser.rows(part, batch), self._words(part))

    def _words(self, part: slice) -> Sequence[object] | None:
        return None if self.prompts is None else self.prompts[part]

    def _around(self, denoiser: BaseDenoiser, prompts: Sequence[object] | None) -> GuidedDenoiser:
        """The same guidance of another denoiser."""
        other = copy(self)
        other.denoiser, other.prompts = denoiser, prompts
        return other

    @torch.no_grad()
    def estimate(self, x: Tensor, t: float) -> Estimate:
        """The tilted and the untilted D, with the rewards and their gradient at the latter."""
        check_tensor(x)
        t = check_time(t)
        strength = self.guidance.strength(t)
        if self.path.sigma(t) == 0.0:
            D = self.denoiser(x, t)
            return Estimate(D, D)
        rewards = gradient = None
        if self.value is not None:
            D = self.denoiser(x, t)
            tilt = strength * self._value_tilt(self.value, x, self._late_enough(t))
        else:
            D, rewards, gradient, tilt = self._reward_tilt(x, t)
            tilt = strength * self.scale * tilt
        if self.guidance.clip is not None:
            tilt = shortened(tilt, self.guidance.clip * math.sqrt(self._variance(t)))
        return Estimate(D + tilt, D, rewards, gradient)

    def _reward_tilt(self, x: Tensor, t: float) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """D, r(D), ∇r at D, and Cov[z | x] ∇r by the rule asked for."""
        reward, variance, where = self.reward, self._variance(t), f"t = {t:.6g} (guidance)"
        if reward is None:
            raise InvalidArgument("there is no reward to be guided by")
        if not self._deep:
            D = self.denoiser(x, t)
            rewards, gradient = evaluate_with_gradient(reward, D, where, self.prompts)
            return D, rewards, gradient, variance * gradient
        D, rewards, gradient, pulled = self._through_network(reward, x, t, where)
        known = -math.expm1(-((self.path.amplitude(t) / _LEARNED) ** 2))
        tilt = (1.0 - known) * variance * gradient
        if known > 0.0:
            tilt += known * self._factor(t) * pulled
        return D, rewards, gradient, tilt

    def _through_network(
        self, reward: Reward, x: Tensor, t: float, where: str
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """D, r(D), ∇r at D, and (∂D/∂x)ᵀ ∇r; the graph of one part of the batch at a time."""
        batch = x.shape[0]
        limit = self.guidance.max_batch or batch
        parts = []
        for first in range(0, batch, limit):
            part = slice(first, min(first + limit, batch))
            denoiser = self.denoiser.rows(part, batch)
            with torch.inference_mode(False), torch.enable_grad():
                leaf = x[part].clone().detach().requires_grad_()
                D = denoiser(leaf, t)
            named = where if limit >= batch else f"{where}, rows {part.start} to {part.stop - 1}"
            rewards, gradient = evaluate_with_gradient(reward, D.detach(), named, self._words(part))
            pulled = None
            if D.requires_grad:
                (pulled,) = torch.autograd.grad(D, leaf, gradient, allow_unused=True)
            if pulled is None:
                raise InvalidArgument(
                    "guidance through the network needs its gradient, but the denoiser's output "
                    "does not depend on x differentiably (is it run under no_grad?). "
                    "Use Guidance(through='reward')"
                )
            parts.append((D.detach(), rewards, gradient, pulled))
        D, rewards, gradient, pulled = (torch.cat(items) for items in zip(*parts))
        return D, rewards, gradient, pulled

    def _value_tilt(self, value: Callable[[Tensor, float], Tensor], x: Tensor, t: float) -> Tensor:
        """(σ²/α) ∇_x V."""
        with torch.inference_mode(False), torch.enable_grad():
            leaf = x.clone().detach().requires_grad_()
            V = value(leaf.clone(), t)
            gradient = None
            if isinstance(V, Tensor) and V.shape == x.shape[:1] and V.requires_grad:
                (gradient,) = torch.autograd.grad(V.sum(), leaf, allow_unused=True)
        if gradient is None:
            given = tuple(V.shape) if isinstance(V, Tensor) else type(V).__name__
            raise ShapeError(
                f"a value function must return a tensor of shape ({x.shape[0]},) that depends on "
                f"x differentiably, got {given} at t = {t:.6g}"
            )
        check_finite(gradient, "the gradient of the value function", f"t = {t:.6g}")
        return self._factor(t) * gradient

    def _factor(self, t: float) -> float:
        """σ²/α."""
        return self.path.sigma(t) ** 2 / self.path.alpha(t)

    def _variance(self, t: float) -> float:
        """v, the posterior variance of data N(m, σ_data² I)."""
        return 1.0 / (1.0 / self.guidance.sigma_data**2 + self.path.amplitude(t) ** 2)

    def _late_enough(self, t: float) -> float:
        if self.path.amplitude(t) >= _EARLIEST:
            return t
        trained = self.path.trained_times
        if trained is None:
            return self.path.time(_EARLIEST)
        return next((s for s in trained if self.path.amplitude(s) >= _EARLIEST), trained[-1])


def shortened(x: Tensor, longest: float) -> Tensor:
    """(B, *shape) with no row longer than that, the direction of each kept."""
    length = x.reshape(len(x), -1).norm(dim=1).clamp(min=torch.finfo(x.dtype).tiny)
    factor: Tensor = (longest / length).clamp(max=1.0).view(-1, *(1,) * (x.ndim - 1))
    return x * factor
