"""The data of an audit: laws whose posterior mean is exact, each made to show other faults."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ...worlds.mixtures import GaussianMixture

COPIES = 4  # independent coordinates of each spread, for the figures' errors and the covariance
POINT = 1.2  # where the coordinates without a spread lie
SPREADS = (0.2, 0.5, 1.0, 1.5)
_CENTRES = (0.5, -0.8, 0.4, 0.0)
CLOSE = 1e-3  # energy distance over E|z - z'|: `modes` has it to itself spread 4 % too wide


@dataclass(frozen=True)
class Independent:
    """N(m_i, s_i²), independent coordinates; s_i = 0 is a point mass.

    Parameters
    ----------
    means, stds : Tensor
        (d,), float64.
    """

    means: Tensor
    stds: Tensor

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[z | α z + σ ε = x] of (B, d), for σ > 0."""
        gain = alpha * self.stds**2 / (alpha**2 * self.stds**2 + sigma**2)
        return self.means + gain * (x - alpha * self.means)


def line() -> Independent:
    """`COPIES` coordinates at the point, then as many of each of `SPREADS`.

    At the point D is right whatever is asked, so that what a sampler without an error of its own
    arithmetic makes of the noise is exact there at every K.
    """
    means = torch.tensor((POINT, *_CENTRES), dtype=torch.float64).repeat_interleave(COPIES)
    stds = torch.tensor((0.0, *SPREADS), dtype=torch.float64).repeat_interleave(COPIES)
    return Independent(means, stds)


def modes() -> GaussianMixture:
    """Four modes of unequal weights in the plane: what is no Gaussian, and D no line in x."""
    means = torch.tensor([[1.2, 0.4], [-0.9, 0.9], [-0.4, -1.1], [0.8, -0.9]], dtype=torch.float64)
    return GaussianMixture(means, 0.3, (0.4, 0.3, 0.2, 0.1))
