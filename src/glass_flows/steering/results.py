"""What a finished run comes to."""

from __future__ import annotations

from dataclasses import astuple, dataclass, field

import torch
from torch import Tensor

from .strength import Strength

__all__ = ["Costs", "RefinedResult", "SearchResult", "SteeringResult", "WeightedResult"]


@dataclass(frozen=True)
class Costs:
    """What a run has asked for so far, in all, counted per particle.

    Attributes
    ----------
    network_evaluations : int
        Forward passes (a guided evaluation with two batches counts as two).
    network_gradients : int
        Backward passes through the network.
    reward_evaluations, decodes : int
        Samples scored, and decoded for it.
    """

    network_evaluations: int = 0
    network_gradients: int = 0
    reward_evaluations: int = 0
    decodes: int = 0

    def __add__(self, other: Costs) -> Costs:
        return Costs(*(a + b for a, b in zip(astuple(self), astuple(other))))

    def __sub__(self, other: Costs) -> Costs:
        return Costs(*(a - b for a, b in zip(astuple(self), astuple(other))))


@dataclass(frozen=True)
class SearchResult:
    """All particles of a finished run, P populations of N.

    Attributes
    ----------
    samples : Tensor
        (P, N, *shape).
    rewards : Tensor
        (P, N), r of the samples, not multiplied by λ.
    ancestry : Tensor
        (K, P, N): ancestors chosen at the start of each transition, within the population.
    costs : Costs
        Also as `network_evaluations`, `network_gradients`, `reward_evaluations`, `decodes`. Those
        of a pilot that found λ are counted.
    strength : Strength or None
        How strongly the run has steered, ``print(result.strength)``; None of what is no run.
    """

    samples: Tensor
    rewards: Tensor
    ancestry: Tensor
    costs: Costs
    strength: Strength | None = field(default=None, kw_only=True)

    @property
    def best(self) -> Tensor:
        """The sample of the highest reward in each population, (P, *shape)."""
        return self.samples[torch.arange(len(self.samples)), self.rewards.argmax(1)]

    @property
    def lineage(self) -> Tensor:
        """(K + 1, P, N): the slot that each final particle's line held before every transition."""
        slots = [torch.arange(self.rewards.shape[1]).expand(len(self.rewards), -1)]
        for ancestors in self.ancestry.flip(0):
            slots.append(ancestors.gather(1, slots[-1]))
        return torch.stack(slots[::-1])

    @property
    def network_evaluations(self) -> int:
        return self.costs.network_evaluations

    @property
    def network_gradients(self) -> int:
        return self.costs.network_gradients

    @property
    def reward_evaluations(self) -> int:
        return self.costs.reward_evaluations

    @property
    def decodes(self) -> int:
        return self.costs.decodes


@dataclass(frozen=True)
class WeightedResult(SearchResult):
    """All particles of a finished run, P populations of N, with their weights.

    Attributes
    ----------
    samples, rewards, ancestry, costs
        See :class:`SearchResult`.
    log_weights : Tensor
        (P, N), unnormalised: weighted by them the samples target p(z) exp(λ r(z)).
    ess : Tensor
        (K + 1, P), effective sample size at every boundary and at the end, before resampling.
    log_evidence : Tensor
        (P,), an estimate of log E_p[exp(λ r)]; its exponential is unbiased.
    shares : Tensor
        (K + 1, P), λ_k/λ; NaN where no values were taken.
    biases : tuple of str
        Reasons for which the weighted particles do not target p(z) exp(λ r(z)), where p is the
        law of the sampler itself; empty if they do.
    """

    log_weights: Tensor
    ess: Tensor
    log_evidence: Tensor
    shares: Tensor
    biases: tuple[str, ...]


@dataclass(frozen=True)
class SteeringResult(WeightedResult):
    """What steering comes to.

    Attributes
    ----------
    samples, rewards, ancestry, costs, log_weights, ess, log_evidence, shares, biases
        See :class:`WeightedResult`.
    twist_shares : Tensor
        (K, P), the share of the twist used at each transition; 0 where there was none.
    """

    twist_shares: Tensor


@dataclass(frozen=True)
class RefinedResult(WeightedResult):
    """What refinement comes to, after K moves.

    Attributes
    ----------
    samples, rewards, ancestry, costs, log_weights, ess, log_evidence, shares, biases
        See :class:`WeightedResult`; the end of a boundary's transition is here that of a move. The
        evidence is NaN where the chains did not begin with samples of p.
    acceptance : Tensor
        (K, P), the share of proposals that each move accepted.
    move_times : Tensor
        (K,), the time that each move noised to, on the linear path's clock.
    """

    acceptance: Tensor
    move_times: Tensor
