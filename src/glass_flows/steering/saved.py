"""A run that is kept as it goes, so that it can go on where it was."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

import torch
from torch import Tensor

from .run import Costs, Run

if TYPE_CHECKING:
    from .smc import SteeringStep

__all__ = ["History", "Recorder", "Saved", "under"]


@dataclass
class History:
    """What happened at the boundaries so far, a tensor for each."""

    ancestors: list[Tensor] = field(default_factory=list)
    ess: list[Tensor] = field(default_factory=list)
    share: list[Tensor] = field(default_factory=list)
    twist_share: list[Tensor] = field(default_factory=list)

    def add(self, step: SteeringStep) -> None:
        for name, found in vars(self).items():
            found.append(getattr(step, name))

    def stacked(self) -> dict[str, Tensor]:
        """Each with a leading dimension for the boundaries; nothing before the first."""
        return {name: torch.stack(found) for name, found in vars(self).items() if found}

    @classmethod
    def of(cls, stacked: Mapping[str, Tensor]) -> History:
        """Inverse of :meth:`stacked`."""
        return cls(**{name: list(found) for name, found in stacked.items()})


@dataclass(frozen=True)
class Saved:
    """A run as it comes to a boundary, before anything is done there.

    Attributes
    ----------
    index : int
        Of the boundary, 0 to K.
    x : Tensor
        (P N, *shape), the particles.
    carried, history : dict of Tensor
        What steering knows from the boundaries before, and what happened there.
    costs : Costs
        So far, the boundary's own D included.
    """

    index: int
    x: Tensor
    carried: Mapping[str, Tensor]
    history: Mapping[str, Tensor]
    costs: Costs


def under(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those whose names begin so, by the rest of their names."""
    return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}


class Recorder(Protocol):
    """Keeps a run; :class:`glass_flows.runs.RunFolder` is one.

    Attributes
    ----------
    pictures : callable, optional
        Images of clean estimates (P N, *shape) where they are at hand, else None.
    """

    pictures: Callable[[Tensor], list[Any] | None] | None

    def saved(self) -> Saved | None:
        """Where an earlier run stopped, if there was one."""
        ...

    def begin(self, run: Run) -> None:
        """Before the first boundary."""
        ...

    def save(self, saved: Saved) -> None:
        """At every boundary, before anything is done there."""
        ...

    def step(self, step: SteeringStep) -> None:
        """At every boundary, when everything is done there."""
        ...
