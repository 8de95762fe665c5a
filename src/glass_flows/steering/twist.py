"""Twisted noise: reward guidance with an exact weight.

All randomness of a transition is in ε ~ N(0, I), drawn after D is known. Drawing ε from N(δ, I)
instead and multiplying the weight by N(ε; 0, I)/N(ε; δ, I) leaves every expectation as it was,
whatever the network, the solver and δ, as long as δ is a function of what is known before ε.

With δ = η s j ∇_z λ r(z) at z = D_t(x_t), the next value moves by about |δ|²/η: s is how far ε
moves x_t', j how far x_t' moves the next D, both for data N(m, σ_data² I), where the solver is
linear and s is read off the table: s = √(σ̄² + ᾱ² v) for exact transitions, σ̄ for DDIM's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..execute import Boundary
from ..guidance import shortened
from ..paths import Path
from ..plans.table import Mix, Table, Transition
from ..settings import NOT_NEGATIVE, POSITIVE, Checked, Number, Switch, setting
from .values import scaled

__all__ = ["Twist", "Twister", "noise_gain"]


@dataclass(frozen=True)
class Twist(Checked):
    """How to shift the noise.

    Parameters
    ----------
    scale : float
        η >= 0; 0 is off, 1 the shift that is right for linear rewards and Gaussian data.
    cap : float
        Longest |δ| per particle, in standard deviations of the noise (> 0).
    sigma_data : float
        Standard deviation of the data: 0.7 for pixels in [-1, 1], 1 for scaled latents.
    adaptive : bool
        Learn from every transition how much of the promised rise the values made, and shift by
        that share of δ at the next: a gradient that says nothing turns the twist off. The share is
        found for each population from its own past, so that the weights stay exact.
    trust : float
        Weight (> 0) of what the present gradients say of themselves (:func:`informative`) against
        the transitions of the past, in units of Σ (δ·ε)² over the population.
    """

    scale: float = setting(1.0, NOT_NEGATIVE)
    cap: float = setting(0.75, Number("be > 0", lambda cap: cap > 0.0))
    sigma_data: float = setting(1.0, POSITIVE)
    adaptive: bool = setting(True, Switch())
    trust: float = setting(8.0, POSITIVE)

    def shift(self, transition: Transition, path: Path, gradient: Tensor) -> Tensor:
        """δ shaped like `gradient`, ∇_z λ r at D with λ that of the next boundary."""
        data = 1.0 / self.sigma_data**2
        if transition.sigma_next == 0.0:
            follow = 1.0
        else:
            amplitude = transition.alpha_next / transition.sigma_next
            follow = amplitude / transition.sigma_next / (data + amplitude**2)
        delta = self.scale * noise_gain(transition, path, self.sigma_data) * follow * gradient
        return shortened(delta, self.cap)


def noise_gain(transition: Transition, path: Path, sigma_data: float) -> float:
    """∂x_t'/∂ε of a planned transition for data N(m, σ_data² I): its rows, with D linear in y."""
    registers = dict.fromkeys(("x", "u", "D", "D_prev"), 0.0) | {"eps": 1.0}

    def mixed(mix: Mix) -> float:
        return sum(weight * registers[name] for name, weight in mix.terms())

    y = mixed(transition.input)
    for row in transition.rows:
        alpha, sigma = path.alpha(row.time), path.sigma(row.time)
        slope = alpha * sigma_data**2 / (alpha**2 * sigma_data**2 + sigma**2)
        registers |= {"D_prev": registers["D"], "D": slope * y}
        if row.update is not None:
            registers["u"] = mixed(row.update)
        y = mixed(row.emit)
    return y


class Twister:
    """The shifts of one run: made at a boundary, weighed at the next, and learned from.

    An adaptive twist shifts by a share β of δ: β = Σ x y / Σ x², between 0 and 1, of y (the rise of
    the value over a transition) on x = δ·ε (the rise that δ promised), both centred in their
    population and summed over its past, with :func:`informative` as its prior. For values linear in
    ε the variance of the weights is least at this share, and less than without at any under twice
    it.

    `split` gives what each particle of this process has, (n,), as that of all, (P, N); `pieces` are
    the micro-batches of this process.

    Attributes
    ----------
    used : Tensor
        (P,), the share of the last shift; 0 where the last boundary shifted nothing.
    """

    def __init__(
        self,
        twist: Twist,
        table: Table,
        populations: int,
        split: Callable[[Tensor], Tensor],
        pieces: Sequence[slice],
    ) -> None:
        self.twist, self.table, self.split, self.pieces = twist, table, split, pieces
        self.used = torch.zeros(populations, dtype=torch.float64)
        self._products = torch.zeros(populations, 1, dtype=torch.float64)
        self._squares = torch.zeros(populations, 1, dtype=torch.float64)
        self._pending: _Pending | _Drawn | None = None
        self._promised: _Drawn | None = None

    def shift(
        self,
        boundary: Boundary,
        gradient: Tensor,
        value: Tensor,
        share: Tensor,
        prior: Tensor,
        mine: slice = slice(None),
    ) -> None:
        """Shift the noise of the transition about to run.

        `gradient`, shaped like the boundary's x, is λ ∇r at D and `value` (P, N) is V, both of the
        particles as they now are, and `mine` this process's rows of all; `share` (P, 1) is λ_k/λ of
        the next boundary, `prior` (P, 1) what :func:`informative` says of the gradient.
        """
        if boundary.transition is None:
            raise InvalidArgument("the end draws no noise that could be shifted")

        def each(of_population: Tensor) -> Tensor:
            rows = of_population.expand_as(value).flatten()[mine]
            return rows.view(-1, *(1,) * (gradient.ndim - 1)).to(gradient)

        # Piece by piece: how a sum is split up depends on how many rows there are.
        wish, transition = each(share) * gradient, boundary.transition
        parts = [self.twist.shift(transition, self.table.path, wish[p]) for p in self.pieces]
        delta = torch.cat(parts)
        trusted = self._share(prior) if self.twist.adaptive else torch.ones_like(share)
        boundary.shift(each(trusted) * delta)
        self._pending = _Pending(boundary, delta, trusted, value, share)
        self.used = trusted[:, 0]

    def log_ratio(self) -> Tensor | float:
        """log N(ε; 0, I)/N(ε; βδ, I), (P, N), of the transition that has just run."""
        self._promised, self._pending = self._drawn(), None
        self.used = torch.zeros_like(self.used)
        if self._promised is None:
            return 0.0
        along, square, share = self._promised.along, self._promised.square, self._promised.trusted
        return -share * along - 0.5 * share.square() * square

    def _drawn(self) -> _Drawn | None:
        """What the last shift came to, once its transition has run."""
        pending = self._pending
        if pending is None or isinstance(pending, _Drawn):
            return pending
        noise = pending.boundary.noise
        if noise is None:
            return None
        flat = [part.reshape(len(part), -1) for part in (pending.delta, noise)]
        rows = [[part[piece].double() for part in flat] for piece in self.pieces]
        sums = [torch.stack(((d * e).sum(1), d.square().sum(1))) for d, e in rows]
        along, square = torch.cat(sums, 1).cpu()  # together: one wait for the device
        return _Drawn(
            self.split(along), self.split(square), pending.trusted, pending.value, pending.share
        )

    def state(self) -> dict[str, Tensor]:
        """All that the next boundary needs, when its transition has run."""
        found = {"products": self._products, "squares": self._squares}
        self._pending = self._drawn()
        return found if self._pending is None else {**found, **vars(self._pending)}

    def restore(self, state: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`."""
        left = dict(state)
        self._products, self._squares = left.pop("products"), left.pop("squares")
        self._pending = _Drawn(**left) if left else None

    def learn(self, value: Tensor | None) -> None:
        """What the promised rises came to; `value` (P, N) is V now, None where none was taken."""
        if value is None or self._promised is None:
            return
        drawn, self._promised = self._promised, None
        rise = scaled(drawn.share, value) - scaled(drawn.share, drawn.value)
        known = torch.isfinite(rise)  # a particle whose value is -inf says nothing
        count = known.sum(1, keepdim=True).clamp(min=1)

        def centred(numbers: Tensor) -> Tensor:
            numbers = torch.where(known, numbers, 0.0)
            return torch.where(known, numbers - numbers.sum(1, keepdim=True) / count, 0.0)

        x, y = centred(drawn.along + drawn.trusted * drawn.square), centred(rise)
        self._products = self._products + (x * y).sum(1, keepdim=True)
        self._squares = self._squares + x.square().sum(1, keepdim=True)

    def _share(self, prior: Tensor) -> Tensor:
        """β, (P, 1)."""
        trust = self.twist.trust
        return ((trust * prior + self._products) / (trust + self._squares)).clamp(0.0, 1.0)


def informative(gradient: Tensor, D: Tensor, value: Tensor) -> Tensor:
    """How well gradients (P N, *shape) explain how values (P, N) differ from particle to particle.

    The slope, between 0 and 1, of V_j - V_i on (g_i + g_j)·(D_j - D_i)/2 over all pairs of a
    population, (P, 1): 1 for quadratic values, about 0 for values that wiggle between the
    particles, whose gradients say nothing about the step ahead.
    """
    shape = (*value.shape, -1)
    g, d = gradient.reshape(shape).double(), D.reshape(shape).double()
    across = (g @ d.transpose(1, 2)).cpu()  # g_i · d_j
    own = across.diagonal(dim1=1, dim2=2)
    rise = 0.5 * (across - own[:, :, None] + own[:, None, :] - across.transpose(1, 2))
    difference = value[:, None, :] - value[:, :, None]
    rise = torch.where(torch.isfinite(difference), rise, 0.0)
    difference = torch.where(torch.isfinite(difference), difference, 0.0)
    squares = rise.square().sum((1, 2))
    slope = (rise * difference).sum((1, 2)) / squares
    return torch.where(squares > 0.0, slope, 1.0).clamp(0.0, 1.0)[:, None]


@dataclass(frozen=True)
class _Pending:
    """A shift whose transition has not run yet."""

    boundary: Boundary
    delta: Tensor
    trusted: Tensor
    value: Tensor
    share: Tensor


@dataclass(frozen=True)
class _Drawn:
    """A shift whose noise was drawn: δ·ε and |δ|² of every particle, (P, N)."""

    along: Tensor
    square: Tensor
    trusted: Tensor
    value: Tensor
    share: Tensor
