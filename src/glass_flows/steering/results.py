"""What a finished run comes to."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..denoisers import Costs
from .strength import Strength

__all__ = ["Costs", "RefinedResult", "SearchResult", "SteeringResult", "WeightedResult"]

_MOST = 6  # numbers in a row of a result's lines


@dataclass(frozen=True, repr=False)
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
        of a pilot that found λ are counted, those of held-out rewards are not.
    strength : Strength or None
        How strongly the run has steered, ``print(result.strength)``; None of what is no run.
    also : dict of Tensor
        Held-out rewards of the samples by name, (P, N); empty without any.
    paths : dict of Tensor
        Means over the particles at every boundary, weighted where they have weights, (K + 1, P): of
        every held-out reward by its name, and "reward" of the one that steers; NaN where no values
        were taken. On the way they are those of the estimates D, of refinement of its chains.
    warnings : tuple of str
        Where the run is over-optimised by what held-out rewards say, as far as it can be told of
        one run (:func:`glass_flows.steering.over_optimised` compares several).
    stopped : int or None
        The boundary at which `on_boundary` ended the run, whose clean estimates are the samples;
        None of a run that came to its end. The transition that was left out stands in `ancestry`
        and the like as one of which nothing came.
    slots : Tensor or None
        (P, n): which of the N of `ancestry` were returned; None where all were.
    """

    samples: Tensor
    rewards: Tensor
    ancestry: Tensor
    costs: Costs
    strength: Strength | None = field(default=None, kw_only=True)
    also: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    paths: Mapping[str, Tensor] = field(default_factory=dict, kw_only=True)
    warnings: tuple[str, ...] = field(default=(), kw_only=True)
    stopped: int | None = field(default=None, kw_only=True)
    slots: Tensor | None = field(default=None, kw_only=True)

    def __repr__(self) -> str:
        P, N = self.rewards.shape
        shape = tuple(self.samples.shape[2:])
        head = f"{type(self).__name__}: {P} population{'s' * (P > 1)} of {N} samples {shape}"
        return "\n".join([head, *self.lines()])

    def lines(self) -> list[str]:
        """What the run came to, in a few lines for people."""
        shown = ", ".join(f"{best:.4g}" for best in self.rewards.amax(1)[:_MOST].tolist())
        more = ", ..." if len(self.rewards) > _MOST else ""
        told = [f"best reward {shown}{more}; mean {float(self.rewards.double().mean()):.4g}"]
        told += [*self._told(), f"cost: {self.costs}"]
        if self.strength is not None:
            told.append(str(self.strength))
        told += self.warnings
        if biases := vars(self).get("biases", ()):
            told.append(f"not exactly weighted: {'; '.join(biases)}")
        elif self.stopped is not None:
            told.append(f"stopped at boundary {self.stopped}: the samples are its clean estimates")
        return told

    def _told(self) -> list[str]:
        """What is said between rewards and cost."""
        return []

    @property
    def best(self) -> Tensor:
        """The sample of the highest reward in each population, (P, *shape)."""
        return self.samples[torch.arange(len(self.samples)), self.rewards.argmax(1)]

    @property
    def lineage(self) -> Tensor:
        """(K + 1, P, n): the slot that each final particle's line held before every transition."""
        P, n = self.rewards.shape
        slots = [torch.arange(n).expand(P, n) if self.slots is None else self.slots]
        for ancestors in self.ancestry.flip(0):
            slots.append(ancestors.gather(1, slots[-1]))
        return torch.stack(slots[::-1])

    @property
    def also_evaluations(self) -> int:
        """Samples scored by held-out rewards, by each of them; not among `reward_evaluations`."""
        paths = (path for name, path in self.paths.items() if name in self.also)
        return sum(int((~path.isnan()).sum()) for path in paths) * self.ancestry.shape[-1]

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


@dataclass(frozen=True, repr=False)
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

    def _told(self) -> list[str]:
        ess, evidence = float(self.ess[-1].mean()), float(self.log_evidence.mean())
        known = "" if math.isnan(evidence) else f", log-evidence {evidence:.4g}"
        return [f"ESS at the end {ess:.3g} of {self.rewards.shape[1]}{known}"]


@dataclass(frozen=True, repr=False)
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


@dataclass(frozen=True, repr=False)
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

    def _told(self) -> list[str]:
        shares = self.acceptance.double().mean(1)
        shown = ", ".join(f"{share:.0%}" for share in shares[:_MOST].tolist())
        more = ", ..." if len(shares) > _MOST else ""
        moves = f"{len(shares)} moves, accepted {shown}{more}" if len(shares) else "no moves"
        return [moves, *super()._told()]
