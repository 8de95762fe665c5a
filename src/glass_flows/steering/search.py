"""Search over independent samples."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..denoisers import DenoiserLike
from ..plans import Rho
from .smc import Reward, SteeringResult, steer

__all__ = ["best_of"]


def best_of(
    denoiser: DenoiserLike,
    reward: Reward,
    *,
    shape: Sequence[int],
    particles: int,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho] = "ode",
    **options: Any,
) -> SteeringResult:
    """Best-of-N: N independent samples per population, never resampled; `result.best` is it.

    By default with the probability-flow ODE, which is best as one transition of many steps; any ρ
    works. Options as in :func:`~glass_flows.steering.steer`.
    """
    return steer(
        denoiser,
        reward,
        shape=shape,
        particles=particles,
        transitions=transitions,
        steps=steps,
        rho=rho,
        ess_threshold=0.0,
        **options,
    )
