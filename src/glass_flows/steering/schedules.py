"""λ along the path: the share λ_k/λ of its final value that boundary k uses.

The last boundary, the samples, always has the whole λ: whatever the schedule, even one chosen from
the particles themselves, the weights target p(z) exp(λ r(z)) and the evidence stays unbiased.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Union

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..settings import NOT_NEGATIVE, Checked, Number, setting
from .weights import effective_size

__all__ = ["Adaptive", "ScaleSchedule", "share_at"]

_BISECTIONS = 40


@dataclass(frozen=True)
class Adaptive(Checked):
    """The largest share, never falling, at which ESS stays at `ess` of the particles.

    Found by bisection between the share of the last boundary and 1, for each population.
    """

    ess: float = setting(0.5, Number("lie in (0, 1)", lambda v: 0.0 < v < 1.0))

    def choose(self, log_weights: Callable[[Tensor], Tensor], least: Tensor) -> Tensor:
        """The shares (P, 1), given the log-weights (P, N) as a function of the shares."""
        low, high = least, torch.ones_like(least)
        wanted = self.ess * log_weights(low).shape[1]
        enough = effective_size(log_weights(high))[:, None] >= wanted
        for _ in range(_BISECTIONS):
            middle = 0.5 * (low + high)
            fits = effective_size(log_weights(middle))[:, None] > wanted
            low, high = torch.where(fits, middle, low), torch.where(fits, high, middle)
        # the upper end, whose ESS is at most what was wanted: a threshold equal to it resamples
        return torch.where(enough, torch.ones_like(high), high)


ScaleSchedule = Union[str, Sequence[float], Callable[[float], float], Adaptive]

_NAMED: dict[str, Callable[[float], float]] = {"constant": lambda t: 1.0, "linear": lambda t: t}


def share_at(schedule: ScaleSchedule, index: int, t: float, transitions: int) -> float:
    """λ_k/λ at the start of transition `index`; 1 at the end, and where particles choose it."""
    if index == transitions or isinstance(schedule, Adaptive):
        return 1.0
    if isinstance(schedule, str):
        return _NAMED[schedule](t)
    if callable(schedule):
        return NOT_NEGATIVE.check(f"the schedule's share of lambda at t = {t:.6g}", schedule(t))
    if len(schedule) != transitions:
        raise InvalidArgument(
            f"schedule lists {len(schedule)} shares of lambda for {transitions} transitions"
        )
    return schedule[index]
