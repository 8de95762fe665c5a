"""Rewards made of rewards. Parts are called as rewards: their batches, devices, prompts hold."""

from __future__ import annotations

import hashlib
import math
import operator
from collections import OrderedDict
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import repeat

import torch
from torch import Tensor

from ..errors import InvalidArgument, check_count
from .protocol import Prompts, Reward, RewardLike, as_reward, evaluate

__all__ = ["Cached", "Clipped", "Decoded", "Normalised", "Product", "WeightedSum"]

Range = tuple[float, float]
Key = tuple[object, ...]


class _Composite(Reward):
    """What follows from the parts."""

    _parts: tuple[Reward, ...]

    def _declare(self, parts: Sequence[Reward], name: str, range: Range, decodes: int = 0) -> None:
        """Set the attributes; frozen dataclasses have no setters, hence the dictionary."""
        vars(self).update(
            _parts=tuple(parts),
            name=f"{name}({', '.join(part.name for part in parts)})",
            range=range,
            takes_prompts=any(part.takes_prompts for part in parts),
            differentiable=all(part.differentiable for part in parts),
            decodes=decodes + sum(part.decodes for part in parts),
        )

    @property
    def _gradient_batch(self) -> int | None:
        # The graph of a composite holds those of its parts: the tightest limit holds for all.
        sizes = (self.max_batch, *(part._gradient_batch for part in self._parts))
        return min((size for size in sizes if size is not None), default=None)

    def _values(self, z: Tensor, prompts: Prompts) -> list[Tensor]:
        """What the parts say, in the dtype and on the device of the first."""
        values = [part(z, prompts) for part in self._parts]
        return [value.to(values[0]) for value in values]


@dataclass(frozen=True)
class WeightedSum(_Composite):
    """Σ weight · part. A part of weight 0 is not asked.

    Parameters
    ----------
    parts : sequence of Reward or callable
    weights : sequence of float
        Finite, one per part, not all 0.
    """

    parts: Sequence[RewardLike]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        parts, weights = tuple(map(as_reward, self.parts)), tuple(self.weights)
        if len(parts) != len(weights):
            raise InvalidArgument(
                f"give one weight per part, got {len(parts)} parts and {len(weights)} weights"
            )
        if not all(map(math.isfinite, weights)) or not any(weights):
            raise InvalidArgument(f"weights must be finite and not all 0, got {weights}")
        vars(self).update(parts=parts, weights=weights)
        asked = [part for w, part in zip(weights, parts) if w]
        ends = [sorted(w * end for end in part.range) for w, part in zip(weights, parts) if w]
        self._declare(asked, "sum", (sum(low for low, _ in ends), sum(high for _, high in ends)))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        terms = zip(filter(None, self.weights), self._values(z, prompts))
        return reduce(operator.add, (w * value for w, value in terms))


@dataclass(frozen=True)
class Product(_Composite):
    """The product of the parts (Reward or callable), at least one."""

    parts: Sequence[RewardLike]

    def __post_init__(self) -> None:
        parts = tuple(map(as_reward, self.parts))
        if not parts:
            raise InvalidArgument("a product needs at least one part, got none")
        vars(self).update(parts=parts)
        self._declare(parts, "product", reduce(_times, (part.range for part in parts)))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return reduce(operator.mul, self._values(z, prompts))


def _times(a: Range, b: Range) -> Range:
    """The product of two intervals; infinity is no value there, so that 0 · inf is 0."""
    corners = [x * y if x and y else 0.0 for x in a for y in b]
    return min(corners), max(corners)


class _Wrapper(_Composite):
    """A composite of one part; its `range` maps the part's ends by `ends`."""

    part: RewardLike

    def _wrap(self, ends: Callable[[float], float] = float, decodes: int = 0) -> None:
        part = as_reward(self.part)
        low, high = map(ends, part.range)
        vars(self).update(part=part)
        self._declare([part], type(self).__name__.lower(), (low, high), decodes)


@dataclass(frozen=True)
class Clipped(_Wrapper):
    """The part, no lower than `low` (also where it is -inf) and no higher than `high`."""

    part: RewardLike
    low: float = -math.inf
    high: float = math.inf

    def __post_init__(self) -> None:
        if not self.low < self.high:
            raise InvalidArgument(f"low must be below high, got {self.low!r} and {self.high!r}")
        self._wrap(lambda end: min(max(end, self.low), self.high))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return self._parts[0](z, prompts).clamp(self.low, self.high)


@dataclass(frozen=True)
class Normalised(_Wrapper):
    """(part - mean) / std, with a finite mean and a finite std > 0."""

    part: RewardLike
    mean: float
    std: float

    def __post_init__(self) -> None:
        if not (math.isfinite(self.mean) and 0.0 < self.std < math.inf):
            raise InvalidArgument(
                "mean must be finite and std finite and above 0, "
                f"got mean {self.mean!r} and std {self.std!r}"
            )
        self._wrap(lambda end: (end - self.mean) / self.std)

    @classmethod
    def from_samples(cls, part: RewardLike, z: Tensor, prompts: Prompts = None) -> Normalised:
        """With mean 0 and standard deviation 1 on these samples, (B, *shape).

        Raises
        ------
        InvalidArgument
            All of the samples have the same reward, or some have -inf.
        RewardError, NonFinite, ShapeError
            As :func:`evaluate`.
        """
        rewards = evaluate(part, z, "the samples to normalise by", prompts)
        mean, std = rewards.mean().item(), rewards.std(correction=0).item()
        # Equal rewards whose mean rounds leave a std of the size of rounding.
        if not std > 1e-12 * abs(mean):
            raise InvalidArgument(
                f"rewards of {len(rewards)} samples have mean {mean:g} and standard deviation "
                f"{std:g}: give samples whose rewards are finite and differ, or the numbers "
                "themselves (mean=, std=)"
            )
        return cls(part, mean, std)

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return (self._parts[0](z, prompts) - self.mean) / self.std


@dataclass(frozen=True)
class Decoded(_Wrapper):
    """A reward of latents: the part asked about ``decode(z)``, one decoder call per sample.

    Parameters
    ----------
    part : Reward or callable
        Of decoded samples.
    decode : callable
        (B, *latent shape) to (B, *shape).
    max_batch : int, optional
        Samples decoded at once; None for all.
    """

    part: RewardLike
    decode: Callable[[Tensor], Tensor]
    max_batch: int | None = None

    def __post_init__(self) -> None:
        if not callable(self.decode):
            raise InvalidArgument(f"decode must be callable, got {self.decode!r}")
        if self.max_batch is not None:
            check_count("max_batch", self.max_batch)
        self._wrap(decodes=1)

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return self._parts[0](self.decode(z), prompts)


@dataclass(eq=False)
class Cached(_Wrapper):
    """The part, asked once about equal samples (and prompts): for rewards that cost much.

    The part must give each sample a value that depends on nothing else. Gradients are not cached:
    where they are asked, the part is. Not for several threads.

    Parameters
    ----------
    part : Reward or callable
    size : int
        Values remembered, the least recently used are dropped first.

    Attributes
    ----------
    hits, misses : int
        Samples answered from memory or from a duplicate in their batch, and samples asked.
    """

    part: RewardLike
    size: int = 1024
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)
    _memory: OrderedDict[Key, Tensor] = field(default_factory=OrderedDict, init=False, repr=False)

    def __post_init__(self) -> None:
        self.size = check_count("size", self.size)
        self._wrap()

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        if not len(z) or (z.requires_grad and torch.is_grad_enabled()):
            return self._parts[0](z, prompts)
        keys = _keys(z, prompts)
        known: dict[Key, Tensor] = {}
        new: dict[Key, int] = {}  # a sample of each key that is not remembered
        for index, key in enumerate(keys):
            if key in self._memory:
                self._memory.move_to_end(key)
                known[key] = self._memory[key]
            else:
                new[key] = index
        if new:
            rows = list(new.values())
            words = None if prompts is None else [prompts[row] for row in rows]
            known |= zip(new, self._parts[0](z[rows], words).detach().unbind())
            self._memory.update((key, known[key]) for key in new)
            while len(self._memory) > self.size:
                self._memory.popitem(last=False)
        self.hits += len(keys) - len(new)
        self.misses += len(new)
        return torch.stack([known[key] for key in keys])


def _keys(z: Tensor, prompts: Prompts) -> list[Key]:
    """The content of each sample: a digest, for images are large."""
    rows = z.detach().cpu().contiguous().unsqueeze(-1).flatten(1).view(torch.uint8).numpy()
    kind = (z.dtype, z.device, z.shape[1:])
    return [
        (hashlib.blake2b(row, digest_size=16).digest(), kind, prompt)
        for row, prompt in zip(rows, repeat(None) if prompts is None else prompts)
    ]
