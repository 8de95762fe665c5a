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
from ..errors import InvalidArgument, RewardError
from ..noise import check_seed
from ..plans import Sampler
from ..rewards import RewardLike, as_reward
from ..steering import Method, Refine

__all__ = ["Asked"]


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


def _form(given: Tensor) -> str:
    return f"a tensor {tuple(given.shape)}"


@dataclass(frozen=True)
class Asked:
    """Images of a pipeline for some prompts, by a method.

    Attributes
    ----------
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
    """

    pipe: Any
    prompts: tuple[Any, ...]
    reward: RewardLike
    method: Method
    sampler: Sampler
    seed: int
    batching: Batching
    call: Mapping[str, Any] = field(default_factory=dict)
    latents: Tensor | None = None
    decode: Callable[[Tensor], Tensor] | None = None
    init: Any = None

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
        return replace(asked, reward=as_reward(asked.reward))

    @property
    def name(self) -> str:
        """Of the pipeline's class."""
        return type(self.pipe).__name__

    @property
    def rows(self) -> tuple[Any, ...]:
        """The prompt of each row of the batch, P N."""
        return tuple(one for one in self.prompts for _ in range(self.method.particles))

    def try_reward(self, height: int, width: int, device: torch.device) -> None:
        """Ask the reward about a uniform grey, once, of as many rows as it will be asked about.

        Only what it says of its form counts: no number per sample, no gradient where the method
        wants one. Whatever else it raises may be the picture's fault, and is left to the run.
        """
        count = min(self.batching.decode_batch or len(self.rows), len(self.rows))
        grey = torch.full((count, 3, height, width), 0.5, device=device)
        reward, prompts = as_reward(self.reward), self.rows[:count]
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            try:
                if self.method.differentiates:
                    reward.value_and_gradient(grey, prompts)
                else:
                    with torch.no_grad():
                        reward(grey, prompts)
            except (InvalidArgument, RewardError):
                raise
            except Exception:
                return

    def settings(self) -> dict[str, Any]:
        """What was asked for, JSON-ready."""
        call = {k: v if isinstance(v, (int, float, str)) else repr(v) for k, v in self.call.items()}
        return {
            "pipeline": self.name,
            "prompts": list(self.prompts),
            "reward": as_reward(self.reward).name,
            "method": self.method.as_json(),
            "sampler": self.sampler.as_json(),
            "batching": self.batching.as_json(),
            "seed": self.seed,
            **({"call": call} if call else {}),
            **({} if self.init is None else {"init": self._beginning()}),
            **({} if self.latents is None else {"latents": _form(self.latents)}),
        }

    def _beginning(self) -> str:
        """What it began with, for people."""
        if isinstance(self.init, Tensor):
            return _form(self.init)
        one = isinstance(self.init, (str, os.PathLike, Image.Image))
        listed = [self.init] if one else self.init
        return ", ".join(
            os.fspath(x) if isinstance(x, (str, os.PathLike)) else "an image" for x in listed
        )
