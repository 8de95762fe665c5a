"""What a sampler asks its network: every input, and the time at which it says that this is one."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor


class Law(Protocol):
    """What has an exact posterior mean."""

    def posterior_mean(self, x: Tensor, alpha: float, sigma: float) -> Tensor: ...


@dataclass(frozen=True)
class Look:
    """One question about all samples: α and σ of the time told, moments of each coordinate.

    `x` and `D`, (B, d), are kept only where they were asked for.
    """

    alpha: float
    sigma: float
    mean: Tensor
    variance: Tensor
    x: Tensor | None = None
    D: Tensor | None = None

    @property
    def amplitude(self) -> float:
        return self.alpha / self.sigma


class Watch:
    """A law that answers as a network does, and remembers what it was asked.

    Parameters
    ----------
    rows : int
        Samples of the run; a sampler may ask about them in parts, one after the other.
    keep : int
        Of so many questions, the first, inputs and answers are kept whole.
    """

    def __init__(self, law: Law, rows: int, keep: int = 0) -> None:
        self.law, self.rows, self.keep = law, rows, keep
        self.looks: list[Look] = []
        self.asked = 0  # rows
        self.whole = True  # every question was about all rows
        self._part: list[tuple[Tensor, Tensor]] = []
        self._at = (0.0, 0.0)

    def ask(self, x: Tensor, alpha: float, sigma: float) -> Tensor:
        """E[z | α z + σ ε = x], of x's dtype."""
        wide = x.detach().double()
        D = wide / alpha if sigma == 0.0 else self.law.posterior_mean(wide, alpha, sigma)
        self.asked += len(x)
        if sigma > 0.0:
            self._remember(wide, D, alpha, sigma)
        return D.to(x.dtype)

    def _remember(self, x: Tensor, D: Tensor, alpha: float, sigma: float) -> None:
        if self._part and self._at != (alpha, sigma):
            self.whole, self._part = False, []
        self._at = (alpha, sigma)
        self._part.append((x, D))
        count = sum(len(part) for part, _ in self._part)
        if count < self.rows:
            return
        if count > self.rows:
            self.whole, self._part = False, []
            return
        x, D = (torch.cat(parts) for parts in zip(*self._part, strict=True))
        self._part = []
        kept = (x.clone(), D) if len(self.looks) < self.keep else (None, None)
        variance, mean = torch.var_mean(x, 0)
        self.looks.append(Look(alpha, sigma, mean, variance, *kept))
