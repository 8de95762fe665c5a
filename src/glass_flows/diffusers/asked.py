"""What is asked of a pipeline."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from numbers import Integral
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..batching import Batching
from ..errors import InvalidArgument
from ..noise import check_seed
from ..pixels import listed_images
from ..plans import Sampler
from ..rewards import Decoded, Frames, Reward, RewardLike, as_reward
from ..rewards.forms import try_reward
from ..rewards.named import as_image_reward, check_reward
from ..rewards.videos import Viewing
from ..steering import Method, Refine
from ..steering.held_out import held_out
from .decoding import Pictures


def _listed(prompt: Any) -> tuple[Any, ...]:
    """One prompt or several: texts, or classes as integers of any kind, also of an array."""
    given = prompt.tolist() if isinstance(prompt, (np.ndarray, np.generic, Tensor)) else prompt
    listed = (given,) if given is None or isinstance(given, (str, Integral)) else given
    if isinstance(listed, bytes) or not isinstance(listed, Sequence) or not listed:
        swapped = ": the reward comes after it" if callable(given) else ""
        raise InvalidArgument(
            f"give a prompt, or a list with at least one, got {prompt!r}{swapped}"
        )
    prompts = tuple(
        one.tolist() if isinstance(one, (np.generic, np.ndarray, Tensor)) else one for one in listed
    )
    for one in prompts:
        if isinstance(one, bool) or not isinstance(one, (str, Integral, type(None))):
            raise InvalidArgument(f"a prompt is a text, or a class by its number, got {one!r}")
    return tuple(int(one) if isinstance(one, Integral) else one for one in prompts)


def _check_init(method: Method, latents: Any) -> None:
    """Raise if there is nothing to begin with pictures, or with clean latents."""
    if not isinstance(method, Refine):
        raise InvalidArgument(
            f"init: only for refine, which begins with clean samples; the method is {method.word}"
        )
    if latents is not None:
        raise InvalidArgument("latents are noise to begin with, init is clean: give one of them")


def _says_frames(reward: Reward) -> bool:
    return isinstance(reward, Frames) and reward.frames is not None


def _form(given: Tensor) -> str:
    return f"a tensor {tuple(given.shape)}"


@dataclass(frozen=True)
class Asked:
    """Images of a pipeline for some prompts, by a method.

    Attributes
    ----------
    reward : Reward, callable or str
        Of images; whoever runs it makes it a Reward (:meth:`loaded`).
    prompts : tuple
        One population of particles for each; None for a pipeline that takes no prompt.
    latents : Tensor, optional
        (P N, *shape), the starting noise, as the pipeline's scheduler sees it.
    call : dict
        The pipeline's own call arguments.
    decode : callable, optional
        Clean latents to images in [0, 1], for pipelines without an adapter.
    init : optional
        Clean latents or pictures that refinement begins with (:mod:`.beginnings`).
    also
        Held-out rewards of the images, as they were given; once loaded a dict by name.
    viewing : Viewing
        What rewards see of a video.
    """

    pipe: Any
    prompts: tuple[Any, ...]
    reward: RewardLike | str
    method: Method
    sampler: Sampler
    seed: int
    batching: Batching
    call: Mapping[str, Any] = field(default_factory=dict)
    latents: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    init: Any = None
    also: Any = None
    viewing: Viewing = field(default_factory=Viewing)

    @classmethod
    def of(
        cls, pipe: Any, prompt: Any, *, seed: int | None, latents: Any = None, **rest: Any
    ) -> Asked:
        """With one prompt or a list, and a seed or none."""
        prompts = _listed(prompt)
        if latents is not None and not isinstance(latents, Tensor):
            raise InvalidArgument(f"latents must be a tensor, got {type(latents).__name__}")
        if rest.get("init") is not None:
            _check_init(rest["method"], latents)
        if not callable(rest.get("decode", len)) and rest["decode"] is not None:
            raise InvalidArgument(f"decode must be a function of latents, got {rest['decode']!r}")
        asked = cls(pipe, prompts, seed=check_seed(seed), latents=latents, **rest)
        for given in (asked.reward, *_given(asked.also)):
            if isinstance(given, str):
                check_reward(given)  # it is loaded when all else is right
            else:
                as_image_reward(given)
        return asked

    def loaded(self) -> Asked:
        """With rewards in the place of names and functions."""
        also = held_out(self.also, as_image_reward)
        return replace(self, reward=as_image_reward(self.reward), also=also)

    @property
    def name(self) -> str:
        """Of the pipeline's class."""
        return type(self.pipe).__name__

    @property
    def rows(self) -> tuple[Any, ...]:
        """The prompt of each row of the batch, P N."""
        return tuple(one for one in self.prompts for _ in range(self.method.particles))

    @property
    def scored(self) -> Reward:
        """The reward, once it is one."""
        return as_reward(self.reward)

    def of_videos(self) -> Asked:
        """With rewards of videos, of which those of images see chosen frames; what a reward says
        of them itself is its own."""

        def framed(reward: Reward) -> Reward:
            return reward if _says_frames(reward) else Frames(reward, self.viewing.frames)

        also = {name: framed(one) for name, one in self.also.items()}
        return replace(self, reward=framed(self.scored), also=also)

    def check_viewing(self) -> None:
        """Raise if every reward says itself which frames it sees, once they are loaded."""
        frames, rewards = self.viewing.frames, (self.scored, *self.also.values())
        if frames is not None and all(map(_says_frames, rewards)):
            raise InvalidArgument(
                f"frames={frames!r}: {', '.join(one.name for one in rewards)}: each says itself "
                "which frames it sees (Frames); leave it out"
            )

    def of_latents(self, pictures: Pictures) -> tuple[Reward, dict[str, Reward]]:
        """The reward and the held-out ones, of latents: they see the same pictures."""
        most = self.batching.decode_batch
        beside: dict[str, Reward] = {
            name: Decoded(one, pictures.once_more, max_batch=most)
            for name, one in self.also.items()
        }
        return Decoded(self.scored, pictures, max_batch=most), beside

    def try_reward(
        self, height: int, width: int, device: torch.device, frames: int | None = None
    ) -> None:
        """Recognise every reward, asked about as many rows as it will be asked about at a time;
        of videos with so many `frames`, of which one is enough for a reward of images."""
        rows = self.rows[: self.batching.decode_batch]
        for i, one in enumerate((self.scored, *self.also.values())):
            single = isinstance(one, Frames) and one.of_images
            try_reward(
                one, height, width, rows,
                device=device,
                gradient=self.method.differentiates and i == 0,
                frames=1 if single and frames is not None else frames,
            )  # fmt: skip

    def settings(self) -> dict[str, Any]:
        """What was asked for, JSON-ready."""
        call = {k: v if isinstance(v, (int, float, str)) else repr(v) for k, v in self.call.items()}
        call |= {k: _told(v) for k, v in self.call.items() if k.endswith("image")}
        return {
            "pipeline": self.name,
            "prompts": list(self.prompts),
            "reward": as_reward(self.reward).name,
            "method": self.method.as_json(),
            "sampler": self.sampler.as_json(),
            "batching": self.batching.as_json(),
            "seed": self.seed,
            **({"call": call} if call else {}),
            **({} if self.viewing == Viewing() else {"viewing": self.viewing.as_json()}),
            **({} if self.init is None else {"init": _told(self.init)}),
            **({} if self.latents is None else {"latents": _form(self.latents)}),
        }


def _told(given: Any) -> str:
    """Pictures by their files, or by what they are."""
    if isinstance(given, Tensor):
        return _form(given)
    if (listed := listed_images(given)) is None:
        return repr(given)
    return ", ".join("an image" if isinstance(x, Image.Image) else os.fspath(x) for x in listed)


def _given(also: Any) -> list[Any]:
    """Held-out rewards, however they were given."""
    if isinstance(also, Mapping):
        return list(also.values())
    return list(also) if isinstance(also, (list, tuple)) else [] if also is None else [also]
