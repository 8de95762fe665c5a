"""Over-optimisation: where the reward that steers rises, and those held out fall.

Samples at rising λ are compared pair by pair (Gao, Schulman, Hilton, "Scaling Laws for Reward Model
Overoptimization", arXiv 2210.10760, find the same curve for language models). Of a population at
two λ, i below j, with weighted means h_i, h_j of a held-out reward, let n_i = 1/Σ_g W_g², where W_g
is the weight of all particles that come from one particle g of the beginning: copies are not
counted as draws. With the variance s² of the n = n_i + n_j draws together,

    T = Σ_p (h_j - h_i) / sqrt(Σ_p s² (1/n_i + 1/n_j))

is the difference over its standard error if λ did nothing to h, as in a permutation test. A fall is
told where the mean reward is higher at j and T < -z, of the level 5 % divided by the number of
pairs and of held-out rewards (Bonferroni). So at most one comparison in twenty warns where nothing
falls: fewer, since runs of common noise, and the moves of one run, differ less than draws.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from statistics import NormalDist

import torch
from torch import Tensor

from ..errors import InvalidArgument, shown
from ..settings import NOT_NEGATIVE
from .results import SearchResult, WeightedResult
from .weights import weighted_mean

LEVEL = 0.05
"""How often a whole comparison may warn where no held-out reward falls."""
_ROUNDING = 1e-9  # of the values: means of equal numbers differ by this


@dataclass(frozen=True)
class Rung:
    """Clean samples at one λ, (P, N) each.

    Attributes
    ----------
    scale : float
        λ.
    also : dict of Tensor
        Values of the held-out rewards by name.
    rewards, weights, roots : Tensor
        The reward that steers, weights with the sum 1, and the particle of the beginning that each
        comes from.
    move : int, optional
        Of refinement, after which move.
    """

    scale: float
    also: Mapping[str, Tensor]
    rewards: Tensor
    weights: Tensor
    roots: Tensor
    move: int | None = None

    @classmethod
    def of(cls, scale: float, result: SearchResult) -> Rung:
        """What a run at λ came to; draws of another λ are plain ones at λ = 0, without weights."""
        weights = torch.full_like(result.rewards, 1.0 / result.rewards.shape[1])
        own = scale if result.strength is None else result.strength.scale
        if isinstance(result, WeightedResult) and not scale == 0.0 < own:
            weights = torch.softmax(result.log_weights, 1)
        return cls(scale, result.also, result.rewards, weights, result.lineage[0])

    @property
    def place(self) -> str:
        """For people."""
        return f"λ = {self.scale:.4g}" + ("" if self.move is None else f", move {self.move}")

    def mean(self, values: Tensor) -> Tensor:
        """Of each population, (P,)."""
        return weighted_mean(self.weights, values)

    @property
    def draws(self) -> Tensor:
        """1/Σ_g W_g² of each population, (P,): how many draws its weighted particles are worth."""
        families = self.weights.new_zeros(len(self.roots), int(self.roots.max()) + 1)
        families = families.scatter_add(1, self.roots, self.weights)
        return 1.0 / families.square().sum(1)


@dataclass(frozen=True)
class OverOptimised:
    """A held-out reward falls while the one that steers rises.

    Attributes
    ----------
    name : str
        Of the held-out reward.
    beyond : float
        λ from which on it falls: of those below `seen` the one where it is highest.
    seen : float
        The lowest λ at which the fall is certain.
    held_out, rewards : (float, float)
        Means over the populations at the two.
    text : str
        For people.
    """

    name: str
    beyond: float
    seen: float
    held_out: tuple[float, float]
    rewards: tuple[float, float]
    text: str

    def __str__(self) -> str:
        return self.text


def over_optimised(results: Mapping[float, SearchResult]) -> tuple[OverOptimised, ...]:
    """Where held-out rewards fall while λ and the reward that steers rise.

    Parameters
    ----------
    results : dict of SearchResult
        By their λ, two at least, all with the same `also`, prompts and number of populations; λ = 0
        is for plain samples, which best-of-N of any λ draws: its weights are left out there. With
        the same seed differences are seen earlier.

    Returns
    -------
    tuple of OverOptimised
        For each held-out reward that falls where it begins. It is a test of level 5 %: see
        :mod:`glass_flows.steering.overoptimisation`.

    Raises
    ------
    InvalidArgument
        There is nothing to compare.

    Example
    -------
    >>> found = {s: steer(denoiser, reward, scale=s, also=judge, **rest) for s in (0.0, 5.0, 50.0)}
    >>> for warning in over_optimised(found):
    ...     print(warning)
    """
    if not isinstance(results, Mapping) or len(results) < 2:
        raise InvalidArgument(
            f"over_optimised compares two results or more, by their λ, got {shown(results)}"
        )
    for scale, result in results.items():
        NOT_NEGATIVE.check("the λ of a result", scale)
        if not isinstance(result, SearchResult):
            raise InvalidArgument(f"λ = {scale:g}: expected a result, got {shown(result)}")
    asked = {tuple(result.also) for result in results.values()}
    if len(asked) > 1 or () in asked:
        raise InvalidArgument(
            "over_optimised compares results with the same held-out rewards, got "
            f"{', '.join(str(list(names)) for names in asked)}: run them with the same also="
        )
    if len({len(result.rewards) for result in results.values()}) > 1:
        raise InvalidArgument("over_optimised compares results of the same number of populations")
    return falls([Rung.of(float(scale), results[scale]) for scale in sorted(results)])


def falls(rungs: Sequence[Rung]) -> tuple[OverOptimised, ...]:
    """Of rungs in order of their λ, each with the same held-out rewards and populations."""
    pairs = sorted(combinations(range(len(rungs)), 2), key=lambda pair: pair[1])
    if not pairs:
        return ()
    names, draws = list(rungs[0].also), [rung.draws for rung in rungs]
    z = NormalDist().inv_cdf(1.0 - LEVEL / (len(pairs) * len(names)))
    steered = [float(rung.mean(rung.rewards).mean()) for rung in rungs]
    rising = [(i, j) for i, j in pairs if steered[j] > steered[i]]
    found = []
    for name in names:
        seen = [_Seen.of(rung, name, n) for rung, n in zip(rungs, draws)]
        for at in [j for i, j in rising if seen[j].below(seen[i], z)][:1]:
            best = max(range(at), key=lambda k: float(seen[k].means.mean()))
            found.append(_told(name, rungs[best], rungs[at]))
    return tuple(found)


@dataclass(frozen=True)
class _Seen:
    """What is seen of a held-out reward on a rung, by population: (P,) each."""

    means: Tensor
    variances: Tensor
    draws: Tensor

    @classmethod
    def of(cls, rung: Rung, name: str, draws: Tensor) -> _Seen:
        values = rung.also[name]
        means = rung.mean(values)
        return cls(means, rung.mean((values - means[:, None]).square()), draws)

    def below(self, other: _Seen, z: float) -> bool:
        """Whether it is certainly lower here; no where values are not finite."""
        m, n = other.draws, self.draws
        fall, count = other.means - self.means, m + n
        squares = m * other.variances + n * self.variances + m * n / count * fall.square()
        error = (squares / (count - 1.0) * (1.0 / m + 1.0 / n)).sum().sqrt()
        least = _ROUNDING * (other.means.abs() + self.means.abs()).sum()
        return bool(fall.sum() > torch.maximum(z * error, least))


def _told(name: str, below: Rung, above: Rung) -> OverOptimised:
    pair = (below, above)
    held = tuple(float(rung.mean(rung.also[name]).mean()) for rung in pair)
    rewards = tuple(float(rung.mean(rung.rewards).mean()) for rung in pair)
    text = (
        f"over-optimised beyond {below.place}: there the held-out {name!r} is {held[0]:.4g}, and "
        f"{held[1]:.4g} at {above.place}, while the reward rises from {rewards[0]:.4g} to "
        f"{rewards[1]:.4g}"
    )
    return OverOptimised(
        name, below.scale, above.scale, (held[0], held[1]), (rewards[0], rewards[1]), text
    )
