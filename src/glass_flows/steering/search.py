"""Search: beams, and greedy selection at every transition.

The same loop as steering, with a rule that keeps the best instead of weights: beams and greedy
selection do not target p(z) exp(λ r(z)), they look for a high reward.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..execute import Boundary
from ..guidance import Guidance
from ..noise import RESAMPLING
from ..plans import Table
from ..settings import Choice, Count, setting
from .method import BOUNDARIES, GUIDANCE, VALUE, Course, Method
from .population import Run, kept, place, steered_boundaries
from .results import Costs, SearchResult
from .state import History, Selection, Step
from .values import FreeValue, Look, Value, ValueFunction, scaled
from .weights import LogWeights

__all__ = ["Beam", "Greedy"]


@dataclass(frozen=True, repr=False)
class _Search(Method):
    """A method that keeps the best.

    Parameters
    ----------
    children : int
        w >= 1, of every particle that goes on, each with noise of its own; must divide N, which
        counts them all.
    """

    remedy: ClassVar[str] = "take more particles or fewer children, or refine"
    children: int = setting(2, Count())
    value: Value = setting(FreeValue(), VALUE)
    boundaries: int | tuple[int, ...] | None = setting(None, BOUNDARIES)
    guidance: Guidance | None = setting(None, GUIDANCE)

    def check(self) -> None:
        if self.particles % self.children:
            raise InvalidArgument(
                f"children = {self.children} must divide particles = {self.particles}, which "
                "counts them all"
            )

    @property
    def parents(self) -> int:
        """N/w, the particles that go on."""
        return self.particles // self.children

    @property
    @abstractmethod
    def groups(self) -> int:
        """Groups of a population within which particles compete."""

    @property
    def tilts(self) -> bool:
        """The order of λ r(D) is that of r(D)."""
        return self.guided or not isinstance(self.value, (FreeValue, ValueFunction))

    @property
    def looks_with(self) -> Value:
        return self.value

    def steered(self, table: Table) -> frozenset[int]:
        return steered_boundaries(table, self.boundaries, decides=True)

    def begin(self, run: Run) -> Chosen:
        return Chosen(self, run)

    @abstractmethod
    def choose(self, values: Tensor, boundary: Boundary, run: Run) -> Tensor:
        """Values (G, S) of G groups at a boundary to ancestors (G, S) within each group."""


@dataclass(frozen=True, repr=False)
class Beam(_Search):
    """Beam search: at every boundary the best N/w of N particles go on, each with w children."""

    word: ClassVar[str] = "beam"

    @property
    def groups(self) -> int:
        return 1

    def choose(self, values: Tensor, boundary: Boundary, run: Run) -> Tensor:
        return values.topk(self.parents, dim=1).indices.repeat_interleave(self.children, 1)


@dataclass(frozen=True, repr=False)
class Greedy(_Search):
    """Each of N/w particles has w children at every transition and goes on from one of them.

    Parameters
    ----------
    pick : "best" or "sample"
        The child of the highest value, or one drawn with probability ∝ exp(V), V = λ r(D): SVDD
        (Li et al., arXiv 2408.08252), of which "best" is the limit of large λ.
    """

    pick: str = setting("best", Choice("pick", ("best", "sample")))
    word: ClassVar[str] = "greedy"

    @property
    def groups(self) -> int:
        return self.parents

    @property
    def tilts(self) -> bool:
        return self.pick == "sample" or super().tilts

    @property
    def returns(self) -> int:
        return self.parents

    def choose(self, values: Tensor, boundary: Boundary, run: Run) -> Tensor:
        if self.pick == "best":
            return values.argmax(1, keepdim=True).expand_as(values)
        weights = LogWeights.uniform(*values.shape).times(values, place(boundary))
        drawn = [
            np.random.Generator(run.noise.bits(RESAMPLING, boundary.index, g)).choice(
                self.children, p=share
            )
            for g, share in enumerate(weights.normalized().numpy())
        ]
        return torch.tensor(drawn)[:, None].expand_as(values)


class Chosen(Course):
    """Particles in groups, of which the chosen go on; nothing is carried along."""

    def __init__(self, settings: _Search, run: Run) -> None:
        self.settings, self.run = settings, run
        self.steered = settings.steered(run.table)
        P, N, groups = run.population.count, settings.particles, settings.groups
        self.first = torch.arange(groups).repeat_interleave(N // groups) * (N // groups)
        self.values: Tensor | None = None
        self.rewards = torch.full((P, N), math.nan, dtype=torch.float64)

    def value(self, look: Look) -> None:
        run, boundary = self.run, look.boundary
        self.values, self.rewards = None, torch.full_like(self.rewards, math.nan)
        if boundary.final:
            self.rewards = run.split(run.scorer.rewards(boundary.x, look.where))
        elif boundary.index in self.steered and boundary.stochastic:
            self.values, behind = run.valued(self.settings.value, look)
            self.rewards = self.rewards if behind is None else behind

    def clean(self, boundary: Boundary) -> Tensor | None:
        return None if self.values is None and not boundary.final else super().clean(boundary)

    def select(self, boundary: Boundary) -> Selection:
        everyone = Selection.everyone(*self.rewards.shape)
        if self.values is None:
            return everyone
        ancestors = self._ancestors(self.values, boundary)
        return Selection(ancestors, torch.ones_like(everyone.selected))

    def _ancestors(self, values: Tensor, boundary: Boundary) -> Tensor:
        P, N = values.shape
        grouped = values.reshape(P * self.settings.groups, -1)
        return self.settings.choose(grouped, boundary, self.run).reshape(P, N) + self.first

    def step(
        self, boundary: Boundary, selection: Selection, costs: Costs, history: History
    ) -> Step:
        return Step(boundary, self.rewards, selection.ancestors, selection.selected, costs, history)

    def result(self, last: Step, biases: tuple[str, ...]) -> SearchResult:
        """All particles, or of every group the one that is picked at the end."""
        P, N = last.rewards.shape
        samples = last.boundary.x.view(P, N, *last.boundary.x.shape[1:])
        rewards, ancestry, slots = last.rewards, last.history.stacked()["ancestors"][:-1], None
        if self.settings.returns < N:
            slots = self.returned(last)
            rewards = rewards.gather(1, slots)
            samples = samples[torch.arange(P)[:, None], slots.to(samples.device)]
        return SearchResult(samples, rewards, ancestry, last.costs, slots=slots)

    def returned(self, last: Step) -> Tensor:
        if self.settings.returns == self.settings.particles:
            return super().returned(last)
        at_end = scaled(self.run.scale, last.rewards)
        with kept(last.boundary):
            return self._ancestors(at_end, last.boundary)[:, :: self.settings.children]
