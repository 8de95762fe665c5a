"""Held-out rewards: they score beside the one that steers, and change nothing of the run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Union

import torch
from torch import Tensor

from ..errors import InvalidArgument, shown
from ..rewards import Reward, RewardLike, as_reward

Also = Union[RewardLike, Mapping[str, RewardLike], list[RewardLike], tuple[RewardLike, ...], None]

_RESERVED = ("reward", "not_finite")  # the one that steers, and a word of result.json


def held_out(also: Any, made: Callable[[Any], Reward] = as_reward) -> dict[str, Reward]:
    """Held-out rewards by name, from one, a list of them, or a mapping of names to them, each
    `made` from what was given.

    Raises
    ------
    InvalidArgument
        One is no reward, two have the same name, or a name is no text or has a meaning already.
    """
    if also is None:
        return {}
    if isinstance(also, Mapping):
        named = [(name, made(one)) for name, one in also.items()]
    else:
        listed = also if isinstance(also, (list, tuple)) else [also]
        named = [((one := made(given)).name, one) for given in listed]
    for name, _ in named:
        if not isinstance(name, str) or not name or name in _RESERVED:
            raise InvalidArgument(
                f"also: a held-out reward needs a name, and not {' or '.join(map(repr, _RESERVED))}"
                f", got {shown(name)}: give a mapping, also={{'NAME': reward}}"
            )
    found = dict(named)
    if len(found) < len(named):
        raise InvalidArgument(
            f"also: two of {', '.join(name for name, _ in named)} have the same name: give a "
            "mapping, also={'NAME': reward}"
        )
    return found


@dataclass(frozen=True)
class Beside:
    """What stands beside each other at a boundary, before selection, (P, N) each.

    Attributes
    ----------
    also : dict of Tensor
        Values of the held-out rewards by name; NaN where no values were taken.
    rewards : Tensor
        Of the reward that steers.
    weights : Tensor
        Of the particles, with the sum 1 in each population.
    """

    also: Mapping[str, Tensor]
    rewards: Tensor
    weights: Tensor

    @classmethod
    def of(cls, also: Mapping[str, Tensor], rewards: Tensor, shares: Tensor | None) -> Beside:
        """With equal weights where there are none."""
        equal = torch.full_like(rewards, 1.0 / rewards.shape[1], dtype=torch.float64)
        return cls(also, rewards.double(), equal if shares is None else shares)

    def remembered(self) -> dict[str, Tensor]:
        """As a history keeps it."""
        values = {f"also.{name}": value for name, value in self.also.items()}
        return {**values, "beside.rewards": self.rewards, "beside.weights": self.weights}


def apart(z: Tensor) -> Any:
    """A context in which torch's generators may be drawn from, and are as before after it."""
    return torch.random.fork_rng([z.device] if z.is_cuda else [])
