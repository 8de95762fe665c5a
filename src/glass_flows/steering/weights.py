"""Log-weights of particles: immutable, never exponentiated without a max shift."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import DegenerateWeights


@dataclass(frozen=True)
class LogWeights:
    """Unnormalised log-weights of P independent populations of N particles, float64 on the CPU.

    Attributes
    ----------
    values : Tensor
        (P, N); -inf is a particle of weight zero.
    """

    values: Tensor

    @classmethod
    def uniform(cls, populations: int, particles: int) -> LogWeights:
        """All weights 1."""
        return cls(torch.zeros(populations, particles, dtype=torch.float64))

    def times(
        self, log_factors: Tensor, where: str, *, all_may_vanish: bool = False, remedy: str = ""
    ) -> LogWeights:
        """Multiply by exp(log_factors), (P, N); `where` names the place in errors.

        Raises :class:`DegenerateWeights` if a weight is NaN or +inf, or (unless `all_may_vanish`)
        all weights of a population are 0.
        """
        values = self.values + log_factors.to(self.values)
        bad = torch.nonzero(torch.isnan(values) | (values == math.inf))
        if len(bad):
            population, particle = bad[0].tolist()
            raise DegenerateWeights(
                f"the weight of particle {particle} (population {population}) became "
                f"{float(values[population, particle])} at {where}"
            )
        dead = torch.nonzero((values == -math.inf).all(1)).flatten()
        if len(dead) and not all_may_vanish:
            raise DegenerateWeights(
                f"all {values.shape[1]} particles of population {int(dead[0])} have weight zero at "
                f"{where}: the reward excludes them all. Use more particles or a reward that is "
                f"finite everywhere (a floor){remedy}"
            )
        return LogWeights(values)

    def normalized(self) -> Tensor:
        """Weights that sum to 1 in each population, (P, N)."""
        return torch.softmax(self.values, 1)

    def ess(self) -> Tensor:
        """Effective sample size 1/Σ w², (P,), between 1 and N; 0 if all weights are 0."""
        return effective_size(self.values)

    def log_mean(self) -> Tensor:
        """log of the mean weight, (P,)."""
        return torch.logsumexp(self.values, 1) - math.log(self.values.shape[1])


def effective_size(log_weights: Tensor) -> Tensor:
    """(Σ w)²/Σ w² of log-weights (P, N), shape (P,); 0 if all weights are 0."""
    log_sum = torch.logsumexp(log_weights, 1)
    size = torch.exp(2.0 * log_sum - torch.logsumexp(2.0 * log_weights, 1))
    size = size.clamp(max=float(log_weights.shape[1]))  # rounding may put it above N
    return torch.where(log_sum == -math.inf, 0.0, size)


def weighted_mean(weights: Tensor, values: Tensor) -> Tensor:
    """Along the last dimension, of weights with the sum 1; a weight of 0 forgets even -inf."""
    return torch.where(weights == 0.0, 0.0, weights * values).sum(-1)
