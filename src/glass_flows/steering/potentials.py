"""Potentials: how the values along a particle's path become its weight.

At every steered boundary k a potential G_k multiplies the weight. With the values V_k in log units
(λ r, or an estimate of log E[exp(λ r(x_1)) | x_k]) times the schedule's share λ_k/λ:

| name          | log G_k                 |
|---------------|-------------------------|
| difference    | V_k - V_(k-1)           |
| max           | max_(j <= k) V_j        |
| sum           | Σ_(j <= k) V_j          |
| immediate     | V_k                     |
| terminal      | 0                       |

(Singhal et al., "A General Framework for Inference-time Scaling and Steering of Diffusion Models",
arXiv 2501.06848, section 3.) The last one is the correction exp(λ r(x_1)) / Π_k G_k, so that the
product along every path is exp(λ r(x_1)): all of them have the same target, and differ in which
particles survive on the way.

The names with "fkd-" are the formulas of the code released with that paper, for comparison. They
differ from the exact ones: the reward's memory starts at 0 instead of at nothing (so that max never
sees a negative reward); max and sum end with exp(λ max) and exp(λ Σ) instead of exp(λ r(x_1)); a
boundary that does not resample forgets its potential; weights are capped at 1e10; an effective
sample size just at the threshold does not resample. Their weighted particles do not target
p(z) exp(λ r(z)), and their evidence estimate is not one of it.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..registry import Registry
from ..settings import Is

__all__ = ["POTENTIALS", "Potential"]


@dataclass(frozen=True)
class Potential:
    """One rule, in logs; every tensor is (P, N) float64.

    Attributes
    ----------
    update : callable
        (total, value, memory) to (total, memory): the log-product of the potentials along the path
        after this boundary, and what the particle remembers for the next. Totals instead of factors
        because a value of -inf may come and go: -inf - -inf never has to be formed.
    terminal : callable
        (total, λ r(x_1), memory) to the log-product with the last potential.
    start : float
        Memory before the first boundary.
    carries : bool
        Whether a boundary that does not resample keeps its potential in the weight.
    exact : bool
        Whether the product is exp(λ r(x_1)).
    strict : bool
        Whether a population whose effective sample size is just the threshold is left alone.
    """

    update: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    terminal: Callable[[Tensor, Tensor, Tensor], Tensor] = lambda total, value, memory: value
    start: float = 0.0
    carries: bool = True
    exact: bool = True
    strict: bool = False


def _difference(total: Tensor, value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    return value, memory  # it telescopes


def _max(total: Tensor, value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    highest = torch.maximum(memory, value)
    return total + highest, highest


def _sum(total: Tensor, value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    return total + memory + value, memory + value


def _immediate(total: Tensor, value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    return total + value, memory


def _terminal(total: Tensor, value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    return total, memory


_FKD_CAP = math.log(1e10)


def _fkd(
    statistic: Callable[[Tensor, Tensor], tuple[Tensor, Tensor]], corrected: bool
) -> Potential:
    """`statistic` gives (log G, memory) from (value, memory), as the released code has them."""

    def update(total: Tensor, value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
        log_potential, memory = statistic(value, memory)
        return total + log_potential.clamp(max=_FKD_CAP), memory

    def terminal(total: Tensor, value: Tensor, memory: Tensor) -> Tensor:
        log_potential, _ = statistic(value, memory)
        last = log_potential - total if corrected else log_potential
        return total + last.clamp(max=_FKD_CAP)

    return Potential(update, terminal, carries=False, exact=False, strict=True)


def _higher(value: Tensor, memory: Tensor) -> tuple[Tensor, Tensor]:
    highest = torch.maximum(value, memory)
    return highest, highest


_POTENTIAL = Is(Potential, "a Potential(...)")
_OURS = {
    "difference": Potential(_difference),
    "max": Potential(_max, start=-math.inf),
    "sum": Potential(_sum),
    "immediate": Potential(_immediate),
    "terminal": Potential(_terminal),
    "fkd-difference": _fkd(lambda value, memory: (value - memory, value), corrected=False),
    "fkd-max": _fkd(_higher, corrected=True),
    "fkd-sum": _fkd(lambda value, memory: (value + memory, value + memory), corrected=True),
    "fkd-immediate": _fkd(lambda value, memory: (value, value), corrected=True),
}
POTENTIALS: Registry[Potential] = Registry(
    "potentials",
    _OURS,
    lambda name, thing: _POTENTIAL.check(f"the potential {name!r}", thing),
)
