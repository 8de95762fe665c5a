"""Gaussian mixtures: models whose denoiser, posterior, transitions and tilted laws are exact.

This is the ground truth of the whole project. For z ~ Σ_j w_j N(m_j, s_j² I) and
x_t = α z + σ ε everything below is a mixture again, in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..denoisers import BaseDenoiser
from ..errors import InvalidArgument, ShapeError, TimeError
from ..noise import check_seed
from ..paths import Path, check_time
from ..plans import Rho
from ..plans.kernels import Ends, Kernel, resolve_rho

__all__ = ["GaussianMixture", "MixtureDenoiser", "digits_mixture"]


class GaussianMixture:
    """p(z) = Σ_j w_j N(z; m_j, s_j² I).

    Parameters
    ----------
    means : Tensor
        (J, *shape); its dtype (float32 or float64) and device are the mixture's.
    std : float or Tensor
        s > 0, one for all components or of shape (J,).
    weights : Tensor, optional
        (J,) non-negative, of any positive sum; equal by default.
    """

    def __init__(
        self,
        means: Tensor,
        std: float | Sequence[float] | Tensor,
        weights: Sequence[float] | Tensor | None = None,
    ) -> None:
        means = torch.as_tensor(means)
        if means.ndim < 2 or means.dtype not in (torch.float32, torch.float64):
            raise ShapeError(
                "means must be a float32 or float64 tensor (components, *shape), got "
                f"{tuple(means.shape)} {means.dtype}"
            )
        if not bool(torch.isfinite(means).all()):
            raise InvalidArgument("means contain NaN or infinity")
        count = means.shape[0]
        stds = torch.as_tensor(std, dtype=means.dtype, device=means.device)
        if stds.shape not in ((), (1,), (count,)):
            raise ShapeError(
                f"std must be a number or have shape ({count},), got {tuple(stds.shape)}"
            )
        stds = stds.expand(count)
        if weights is None:
            weights = torch.ones(count)
        mass = torch.as_tensor(weights, dtype=means.dtype, device=means.device)
        if mass.shape != (count,):
            raise ShapeError(f"weights must have shape ({count},), got {tuple(mass.shape)}")
        if not bool((stds > 0).all()) or not bool(torch.isfinite(stds).all()):
            raise InvalidArgument(f"std must be positive, got {std!r}")
        if not bool((mass >= 0).all()) or not bool(torch.isfinite(mass).all()) or mass.sum() <= 0:
            raise InvalidArgument("weights must be non-negative with a positive, finite sum")
        self.means, self.stds = means, stds
        self.log_weights = torch.log(mass / mass.sum())
        self.flat_means = means.reshape(count, -1)

    @property
    def shape(self) -> torch.Size:
        """Shape of one sample."""
        return self.means.shape[1:]

    @property
    def dimension(self) -> int:
        return self.flat_means.shape[1]

    def denoiser(self, path: Path) -> MixtureDenoiser:
        """The exact E[z | x_t = x] on `path`."""
        return MixtureDenoiser(self, path)

    def sample(
        self, n: int, *, seed: int | None = None, generator: torch.Generator | None = None
    ) -> Tensor:
        """(n, *shape) independent samples."""
        generator = _generator(seed, generator)
        j = _choose(self.log_weights.expand(n, -1), generator)
        return _around(self.flat_means[j], self.stds[j].square(), generator).view(n, *self.shape)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(z), shape (B,), for z of shape (B, *shape)."""
        flat = self._flat(z, "z")
        return _log_density(flat, self.log_weights, self.flat_means, self.stds.square())

    def mean(self) -> Tensor:
        """E[z], of the sample's shape."""
        return (self.log_weights.exp() @ self.flat_means).view(self.shape)

    def covariance(self) -> Tensor:
        """Cov[z], (d, d) for flattened samples."""
        w = self.log_weights.exp()
        centred = self.flat_means - w @ self.flat_means
        inner = (w @ self.stds.square()) * torch.eye(self.dimension).to(self.means)
        return centred.T @ (w[:, None] * centred) + inner

    # --- exact conditionals -------------------------------------------------------------------

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[z | α z + σ ε = x], for σ > 0."""
        flat = self._flat(x, "x")
        logits, pull, gain = self._conditional(flat, alpha, sigma)
        share = torch.softmax(logits, 1)
        mean = share @ (pull[:, None] * self.flat_means) + (share @ gain)[:, None] * flat
        return mean.view(x.shape)

    def posterior_sample(
        self,
        path: Path,
        x: Tensor,
        t: float,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One exact draw of p(z | x_t = x) per particle, shaped like x."""
        flat, generator = self._flat(x, "x"), _generator(seed, generator)
        alpha, sigma = path.alpha(check_time(t)), path.sigma(t)
        return self._conditional_draw(flat, alpha, sigma, generator).view(x.shape)

    def posterior_log_prob(self, path: Path, z: Tensor, x: Tensor, t: float) -> Tensor:
        """log p(z | x_t = x), shape (B,)."""
        flat = self._flat(x, "x")
        logits, centres, variances = self._posterior(flat, path.alpha(check_time(t)), path.sigma(t))
        return _log_density(self._flat(z, "z"), torch.log_softmax(logits, 1), centres, variances)

    def posterior_log_mean_exp(self, path: Path, x: Tensor, t: float, linear: Tensor) -> Tensor:
        """log E[exp(b·z) | x_t = x], shape (B,): the value of a linear reward b·z.

        Parameters
        ----------
        linear : Tensor
            b, of the sample's shape.
        """
        flat, b = self._flat(x, "x"), self._flat(linear[None], "linear")[0]
        logits, pull, gain = self._conditional(flat, path.alpha(check_time(t)), path.sigma(t))
        centres = pull * (self.flat_means @ b) + gain * (flat @ b)[:, None]
        spread = self.stds.square() * pull * (b @ b)
        return torch.logsumexp(torch.log_softmax(logits, 1) + centres + spread / 2, 1)

    def transition_sample(
        self,
        path: Path,
        x: Tensor,
        t: float,
        t_next: float,
        rho: Rho,
        *,
        seed: int | None = None,
        generator: torch.Generator | None = None,
    ) -> Tensor:
        """One exact draw of p(x_t' | x_t = x) per particle, for any ρ in [-1, 1]."""
        ends, kernel = _kernel(path, t, t_next, rho)
        flat, generator = self._flat(x, "x"), _generator(seed, generator)
        z = self._conditional_draw(flat, ends.alpha, ends.sigma, generator)
        variance = torch.full_like(z[:, 0], kernel.sigma_bar**2)
        return _around(kernel.gamma * flat + kernel.alpha_bar * z, variance, generator).view(
            x.shape
        )

    def transition_log_prob(
        self, path: Path, x_next: Tensor, x: Tensor, t: float, t_next: float, rho: Rho
    ) -> Tensor:
        """log p(x_t' = x_next | x_t = x), shape (B,)."""
        ends, kernel = _kernel(path, t, t_next, rho)
        flat, at = self._flat(x, "x"), self._flat(x_next, "x_next")
        logits, centres, variances = self._posterior(flat, ends.alpha, ends.sigma)
        centres = kernel.gamma * flat[:, None, :] + kernel.alpha_bar * centres
        variances = kernel.alpha_bar**2 * variances + kernel.sigma_bar**2
        return _log_density(at, torch.log_softmax(logits, 1), centres, variances)

    # --- exact tilting --------------------------------------------------------------------------

    def tilted(
        self,
        linear: Tensor | None = None,
        curvature: float = 0.0,
        centre: Tensor | None = None,
    ) -> tuple[GaussianMixture, float]:
        """The law ∝ p(z) exp(r(z)) with r(z) = b·z - c |z - m|²/2, and log E[exp r(z)].

        Parameters
        ----------
        linear : Tensor, optional
            b, of the sample's shape.
        curvature : float
            c; negative values are allowed while 1 + c s_j² > 0 for every component.
        centre : Tensor, optional
            m, of the sample's shape; 0 by default.

        Returns
        -------
        (GaussianMixture, float)
            The tilted mixture and the log-evidence.
        """
        zero = torch.zeros_like(self.flat_means[0])
        b = zero if linear is None else self._flat(linear[None], "linear")[0]
        m = zero if centre is None else self._flat(centre[None], "centre")[0]
        variances = self.stds.square()
        shrink = 1.0 + curvature * variances
        if not bool((shrink > 0).all()):
            raise InvalidArgument(
                f"curvature {curvature!r} has no normalisable tilt: it must exceed "
                f"{-1.0 / float(variances.max()):.6g}"
            )
        # r(m + y) = b·m + b·y - c|y|²/2 with y = z - m ~ N(m_j - m, s_j²)
        y = self.flat_means - m
        tilted_y = (y + variances[:, None] * b) / shrink[:, None]
        gain = (
            -0.5 * self.dimension * torch.log(shrink)
            + (y @ b + 0.5 * variances * (b @ b) - 0.5 * curvature * y.square().sum(1)) / shrink
            + b @ m
        )
        scores = self.log_weights + gain
        evidence = torch.logsumexp(scores, 0)
        means = (tilted_y + m).view_as(self.means)
        stds = torch.sqrt(variances / shrink)
        return GaussianMixture(means, stds, torch.exp(scores - evidence)), float(evidence)

    # --- the algebra ----------------------------------------------------------------------------

    def _flat(self, x: Tensor, name: str) -> Tensor:
        if x.shape[1:] != self.shape:
            raise ShapeError(
                f"{name} must have shape (batch, {', '.join(map(str, self.shape))}), "
                f"got {tuple(x.shape)}"
            )
        return x.to(self.means).reshape(x.shape[0], -1)

    def _conditional(
        self, flat: Tensor, alpha: float, sigma: float
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Component logits given x, and E[z | x, j] = pull_j m_j + gain_j x."""
        variances = self.stds.square()
        spread = alpha**2 * variances + sigma**2  # of x given j
        # |x - α m|² without the (B, J, d) tensor; |x|²/spread is kept, for unequal stds
        squares = (
            flat.square().sum(1, keepdim=True)
            - 2.0 * alpha * flat @ self.flat_means.T
            + alpha**2 * self.flat_means.square().sum(1)
        )
        logits = self.log_weights - 0.5 * (squares / spread + self.dimension * torch.log(spread))
        return logits, sigma**2 / spread, alpha * variances / spread

    def _posterior(self, flat: Tensor, alpha: float, sigma: float) -> tuple[Tensor, ...]:
        """Logits (B, J), centres (B, J, d) and variances (J,) of p(z | x)."""
        logits, pull, gain = self._conditional(flat, alpha, sigma)
        centres = pull[:, None] * self.flat_means + gain[:, None] * flat[:, None, :]
        return logits, centres, self.stds.square() * pull

    def _conditional_draw(
        self, flat: Tensor, alpha: float, sigma: float, generator: torch.Generator
    ) -> Tensor:
        """One draw of p(z | x) per row: first the component, then the sample."""
        logits, pull, gain = self._conditional(flat, alpha, sigma)
        j = _choose(logits, generator)
        centre = pull[j, None] * self.flat_means[j] + gain[j, None] * flat
        return _around(centre, (self.stds.square() * pull)[j], generator)


@dataclass(frozen=True)
class MixtureDenoiser(BaseDenoiser):
    """A mixture's exact denoiser on a path; usable wherever a Denoiser is."""

    mixture: GaussianMixture
    path: Path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        alpha, sigma = self.path.alpha(t), self.path.sigma(t)
        if sigma == 0.0:
            return x / alpha
        return self.mixture.posterior_mean(x, alpha, sigma).to(x)


def digits_mixture(std: float = 0.1, dtype: torch.dtype = torch.float64) -> GaussianMixture:
    """A kernel of width `std` on each of scikit-learn's 1,797 digits, in [-1, 1], (1, 8, 8)."""
    from .digits import digits_images

    return GaussianMixture(digits_images().to(dtype), std)


def _kernel(path: Path, t: float, t_next: float, rho: Rho) -> tuple[Ends, Kernel]:
    """The kernel of t → t_next, times checked."""
    t, t_next = check_time(t), check_time(t_next, "t_next")
    if t >= t_next:
        raise TimeError(f"a transition goes towards data: need t < t_next, got {t!r} >= {t_next!r}")
    ends = Ends.of(path, t, t_next)
    return ends, Kernel.of(ends, resolve_rho(rho, ends))


def _generator(seed: int | None, generator: torch.Generator | None) -> torch.Generator:
    if generator is None:
        number = check_seed(seed)
        # torch's CPU generator looks at 32 bits only: fold the others in
        return torch.Generator().manual_seed((number ^ (number >> 32)) & 0xFFFFFFFF)
    if seed is not None:
        raise InvalidArgument("give either seed or generator, not both")
    return generator


def _choose(logits: Tensor, generator: torch.Generator) -> Tensor:
    """A component per row of logits (B, J)."""
    shares = torch.softmax(logits, 1).to(generator.device)
    return torch.multinomial(shares, 1, generator=generator)[:, 0].to(logits.device)


def _around(centres: Tensor, variances: Tensor, generator: torch.Generator) -> Tensor:
    """centres (B, d) + √variances (B,) · ε."""
    noise = torch.randn(
        centres.shape, generator=generator, dtype=centres.dtype, device=generator.device
    )
    return centres + variances.sqrt()[:, None] * noise.to(centres.device)


def _log_density(at: Tensor, log_weights: Tensor, centres: Tensor, variances: Tensor) -> Tensor:
    """log Σ_j w_j N(at; c_j, v_j I), shape (B,); centres (J, d) or (B, J, d)."""
    if not bool((variances > 0).all()):
        raise InvalidArgument("this law has no density: some of its variance is zero")
    exact = "donot_use_mm_for_euclid_dist"  # |at - c|² without cancellation
    if centres.ndim == 2:
        distances = torch.cdist(at, centres, compute_mode=exact)
    else:
        distances = torch.cdist(at[:, None], centres, compute_mode=exact)[:, 0]
    dimension = at.shape[1]
    exponents = -0.5 * (
        distances.square() / variances + dimension * torch.log(2.0 * math.pi * variances)
    )
    return torch.logsumexp(log_weights + exponents, 1)
