"""What happens at a boundary, what a run remembers of it, and who is told."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, runtime_checkable

import torch
from torch import Tensor

from ..denoisers import Costs
from ..errors import InvalidArgument
from ..execute import Boundary
from .held_out import Beside
from .population import Run

__all__ = ["History", "Observer", "Recorder", "Saved", "Scene", "Selection", "Step", "under"]


@dataclass(frozen=True)
class Selection:
    """Who goes on at a boundary.

    Attributes
    ----------
    ancestors : Tensor
        (P, N) int64, within the population; 0..N-1 where nothing is selected.
    selected : Tensor
        (P,) bool, the populations in which it is.
    """

    ancestors: Tensor
    selected: Tensor

    @classmethod
    def everyone(cls, populations: int, particles: int) -> Selection:
        """Nothing is selected."""
        ancestors = torch.arange(particles).repeat(populations, 1)
        return cls(ancestors, torch.zeros(populations, dtype=torch.bool))


@dataclass
class History:
    """What happened at the boundaries so far: tensors by name, one for each boundary."""

    tensors: dict[str, list[Tensor]] = field(default_factory=dict)

    def add(self, step: Step) -> None:
        for name, found in step.remembered().items():
            self.tensors.setdefault(name, []).append(found)

    def stacked(self) -> dict[str, Tensor]:
        """Each with a leading dimension for the boundaries; nothing before the first."""
        return {name: torch.stack(found) for name, found in self.tensors.items()}

    @classmethod
    def of(cls, stacked: Mapping[str, Tensor]) -> History:
        """Inverse of :meth:`stacked`."""
        return cls({name: list(found) for name, found in stacked.items()})


class Scene(NamedTuple):
    """What a step needs of the run to be looked at.

    Attributes
    ----------
    own : slice
        This process's rows of all.
    decode : callable, optional
        Clean states (n, *shape) to n PIL images.
    """

    own: slice = slice(None)
    decode: Callable[[Tensor], list[Any]] | None = None


@dataclass(frozen=True)
class Step:
    """What happened at one boundary; P populations of N particles.

    Attributes
    ----------
    boundary : Boundary
        The executor's pause, after selection and with the shift of its noise; what it holds may
        still be changed. At the end it holds the samples.
    rewards : Tensor
        (P, N), before selection: r(D_t(x_t)) for the free value, its mean over the draws for the
        posterior one, at the end r(x_1); NaN where none was taken.
    ancestors : Tensor
        (P, N) int64, within the population; 0..N-1 where nothing was selected.
    resampled : Tensor
        (P,) bool, where something was.
    costs : Costs
    history : History
        This boundary and those before.
    beside : Beside or None
        What held-out rewards say beside the one that steers; None without any.
    scene : Scene
        Which rows are here, and how they become pictures.
    """

    boundary: Boundary
    rewards: Tensor
    ancestors: Tensor
    resampled: Tensor
    costs: Costs
    history: History
    beside: Beside | None = field(default=None, kw_only=True)

    @property
    def also(self) -> Mapping[str, Tensor]:
        """Values of the held-out rewards by name, (P, N), as `rewards`."""
        return {} if self.beside is None else self.beside.also

    scene: Scene = field(default=Scene(), kw_only=True, repr=False)

    @property
    def estimates(self) -> Tensor:
        """(P N, *shape), the clean estimates D_t(x_t) whose rewards are `rewards`: particle by
        particle, before selection, without the tilt of reward guidance; at the end the samples.

        Of refinement what the move proposed, with the rewards `proposed`. With shards those of
        this process.
        """
        return self.pictured(self.scene.own)

    def images(self) -> list[Any]:
        """PIL images of the estimates, decoded now if the reward has not asked for it already.

        Raises
        ------
        InvalidArgument
            The model's samples are no latents of pictures, as far as is known: use `estimates`.
        """
        if self.scene.decode is None:
            raise InvalidArgument(
                "step.images() decodes what a pipeline draws, and this model is none: make "
                "pictures of step.estimates, a tensor (P N, *shape)"
            )
        found: list[Any] = self.scene.decode(self.estimates)
        return found

    def remembered(self) -> dict[str, Tensor]:
        """What the result is made of."""
        beside = {} if self.beside is None else self.beside.remembered()
        return {"ancestors": self.ancestors, **beside}

    def told(self) -> dict[str, Any]:
        """What an observer writes down of it."""
        return {
            "rewards": self.rewards,
            "ancestors": self.ancestors,
            "resampled": self.resampled,
            **({"also": self.also} if self.also else {}),
        }

    def pictured(self, own: slice) -> Tensor:
        """The clean states of this process whose pictures belong to the boundary."""
        at = self.boundary  # at the end the samples are whole already
        return at.x[own] if at.final else at.estimate.untilted

    def news(self) -> str:
        """How the run stands, for a progress bar."""
        return ""


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
        What the method knows from the boundaries before, and what happened there.
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


Observer = Callable[[Step], bool | None]
"""Called at every boundary, when everything is done there; it ends the run by returning True."""


@runtime_checkable
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

    def begin(self, run: Run) -> None:
        """Before the first boundary."""

    def save(self, saved: Saved) -> None:
        """At every boundary, before anything is done there."""

    def step(self, step: Step) -> None:
        """At every boundary, when everything is done there."""
