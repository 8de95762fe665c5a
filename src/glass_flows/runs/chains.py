"""Runs of refinement: what their moves did to N chains of clean samples.

Boundary k of such a run is what move k proposed; that of 0 is how the chains began.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Moved:
    """What a move did; P populations of N chains.

    Attributes
    ----------
    proposed : list of list of float
        (P, N), rewards of the proposals.
    accepted : list of list of bool
        (P, N).
    share : list of float
        (P,), the share of λ that the next move accepts by.
    time : float
        Where the next move noises to, on the linear path's clock.
    """

    proposed: list[list[float]]
    accepted: list[list[bool]]
    share: list[float]
    time: float

    @classmethod
    def of(cls, event: Mapping[str, Any], P: int, N: int) -> Moved | None:
        """From a line of events; None of another method, ValueError and others if it is none."""
        if "accepted" not in event:
            return None
        proposed, accepted = (np.array(event["proposed"], float), np.array(event["accepted"], bool))
        share = np.array(event["share"], float)
        if proposed.shape != (P, N) or accepted.shape != (P, N) or share.shape != (P,):
            raise ValueError(f"no moves of {P} populations of {N} chains")
        return cls(proposed.tolist(), accepted.tolist(), share.tolist(), float(event["time"]))


class Chains:
    """The chains of one population.

    Parameters
    ----------
    moves : sequence of Moved
        One for each boundary.
    ancestors : sequence of list of int
        The chain that each slot goes on with after a boundary.

    Attributes
    ----------
    states : list of list of (int, int)
        For every boundary where each chain stands before any exchange: the boundary and the slot
        in which its sample was proposed.
    rewards : list of list of float
        Of those samples.
    best : list of float
        The highest that was accepted up to each boundary; -inf where all is excluded.
    """

    def __init__(self, moves: Sequence[Moved], ancestors: Sequence[list[int]], p: int) -> None:
        self.moves, self.ancestors, self.p = moves, ancestors, p
        self.states: list[list[tuple[int, int]]] = []
        self.best: list[float] = []
        for k, move in enumerate(moves):
            accepted, N = move.accepted[p], len(move.accepted[p])
            before = [(0, n) for n in range(N)] if k == 0 else self.states[-1]
            parents = range(N) if k == 0 else ancestors[k - 1]
            self.states.append([(k, n) if accepted[n] else before[parents[n]] for n in range(N)])
            here = [r for r, ok in zip(move.proposed[p], accepted) if ok]
            self.best.append(max([*self.best[-1:], *here], default=-math.inf))
        self.rewards = [[moves[k].proposed[p][n] for k, n in row] for row in self.states]

    def acceptance(self, k: int) -> float:
        """The share of proposals that move k accepted."""
        accepted = self.moves[k].accepted[self.p]
        return sum(accepted) / len(accepted)

    def fates(self) -> list[list[str]]:
        """Of each proposal: "best" on the line to the highest that was accepted anywhere.

        "alive" if the last states descend from its slot, else "lost".
        """
        alive, fates = set(range(len(self.states[-1]))), list[list[str]]()
        best, line = max(
            ((self.rewards[k][n], -k), n)
            for k, row in enumerate(self.states)
            for n, place in enumerate(row)
            if place == (k, n)
        )
        for k in reversed(range(len(self.states))):
            if k < len(self.states) - 1:
                alive = {self.ancestors[k][n] for n in alive}
            slots = range(len(self.states[k]))
            fates.insert(0, ["alive" if n in alive else "lost" for n in slots])
            if k <= -best[1]:
                fates[0][line] = "best"
                line = self.ancestors[k - 1][line] if k else line
        return fates
