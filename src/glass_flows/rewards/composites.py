"""Rewards around a reward: normalised, on decoded samples, remembered."""

from __future__ import annotations

import hashlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import MISSING, dataclass, field
from itertools import repeat

import torch
from torch import Tensor

from ..errors import InvalidArgument
from ..settings import ANY_COUNT, POSITIVE, Count, Function, Number, setting
from .base import Prompts, RewardLike, Wrapper, evaluate
from .named import as_image_reward
from .videos import FRAMES, chosen

Key = tuple[object, ...]


@dataclass(frozen=True)
class Normalised(Wrapper):
    """(part - mean) / std, with a finite mean and a finite std > 0."""

    part: RewardLike
    mean: float = setting(MISSING, Number())
    std: float = setting(MISSING, POSITIVE)

    def check(self) -> None:
        self._wrap(lambda end: (end - self.mean) / self.std)

    @classmethod
    def from_samples(cls, part: RewardLike, z: Tensor, prompts: Prompts = None) -> Normalised:
        """With mean 0 and standard deviation 1 on these samples, (B, *shape).

        Raises
        ------
        InvalidArgument
            All of the samples have the same reward, some have -inf, or there are none.
        RewardError, NonFinite, ShapeError
            As :func:`evaluate`.
        """
        rewards = evaluate(part, z, "the samples to normalise by", prompts)
        if not len(rewards):
            raise InvalidArgument("no samples to normalise by: give at least two, (B, *shape)")
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
class Decoded(Wrapper):
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
    decode: Callable[[Tensor], Tensor] = setting(MISSING, Function("callable"))
    max_batch: int | None = setting(None, ANY_COUNT)

    def check(self) -> None:
        self._wrap(decodes=1)
        # The same reward, to those who read of it or ask for its λ.
        part = self._parts[0]
        vars(self).update(name=part.name, steering_scale=part.steering_scale)

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return self._parts[0](self.decode(z), prompts)


@dataclass(frozen=True)
class Frames(Wrapper):
    """A reward on chosen frames of videos (B, F, 3, H, W).

    One of images is asked about each of them, of all videos at a time, and the mean counts, so
    that its scale stays that of an image's; one of videos is handed them as a shorter video.

    Parameters
    ----------
    part : Reward or callable
        Of images or of videos, as :func:`glass_flows.diffusers.steer_pipeline` takes them.
    frames : int, "first", "all" or None
        See :class:`~.videos.Viewing`.

    Raises
    ------
    InvalidArgument
        Of images, where frames are chosen or videos are taken.
    """

    part: RewardLike
    frames: int | str | None = setting(None, FRAMES)

    def check(self) -> None:
        vars(self).update(part=as_image_reward(self.part))
        self._wrap()
        part = self._parts[0]
        vars(self).update(name=part.name, steering_scale=part.steering_scale, takes_video=True)

    @property
    def of_images(self) -> bool:
        """Whether frames are scored one by one."""
        return not self._parts[0].takes_video

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        part = self._parts[0]
        self.check_samples(z)
        if z.ndim != 5:
            return part(z, prompts)
        seen = z[:, chosen(z.shape[1], self.frames, of_videos=part.takes_video)]
        if part.takes_video:
            return part(seen, prompts)
        return torch.stack([part(images, prompts) for images in seen.unbind(1)]).mean(0)

    def check_samples(self, z: Tensor) -> None:
        """Raise if frames are chosen, or videos taken, of what are images: pictures of a video."""
        asked = None if self.frames is None else f"frames={self.frames!r}"
        if not self.of_images:
            asked = f"the reward {self.name!r}, which takes videos,"
        if asked is not None and z.ndim != 5:
            raise InvalidArgument(
                f"{asked} needs videos (B, F, 3, H, W), and here are images {tuple(z.shape)}"
            )


@dataclass(eq=False)
class Cached(Wrapper):
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
    size: int = setting(1024, Count())
    hits: int = field(default=0, init=False)
    misses: int = field(default=0, init=False)
    _memory: OrderedDict[Key, Tensor] = field(default_factory=OrderedDict, init=False, repr=False)

    def check(self) -> None:
        self._wrap()
        self.steering_scale = self._parts[0].steering_scale

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
