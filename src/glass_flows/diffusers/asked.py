"""What is asked of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from numbers import Integral
from typing import Any

from torch import Tensor

from ..batching import Batching
from ..errors import InvalidArgument
from ..noise import check_seed
from ..plans import Sampler
from ..rewards import RewardLike
from ..steering import Method

__all__ = ["Asked"]


@dataclass(frozen=True)
class Asked:
    """Images of a pipeline for some prompts, by a method.

    Attributes
    ----------
    prompts : tuple
        One population of particles for each.
    latents : Tensor, optional
        (P N, *shape), the starting noise, as the pipeline's scheduler sees it.
    call : dict
        The pipeline's own call arguments.
    decode : callable, optional
        Clean latents to images in [0, 1], for pipelines without an adapter.
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

    @classmethod
    def of(
        cls, pipe: Any, prompt: Any, *, seed: int | None, latents: Any = None, **rest: Any
    ) -> Asked:
        """With one prompt or a list, and a seed or none."""
        one = isinstance(prompt, (str, Integral)) and not isinstance(prompt, bool)
        listed: Any = (prompt,) if one else prompt
        if hasattr(listed, "tolist"):  # classes, of an array
            listed = listed.tolist()
        if not isinstance(listed, Sequence) or not listed:
            raise InvalidArgument(f"give a prompt, or a list with at least one, got {prompt!r}")
        prompts = tuple(int(p) if isinstance(p, Integral) else p for p in listed)
        if latents is not None and not isinstance(latents, Tensor):
            raise InvalidArgument(f"latents must be a tensor, got {type(latents).__name__}")
        return cls(pipe, prompts, seed=check_seed(seed), latents=latents, **rest)

    @property
    def name(self) -> str:
        """Of the pipeline's class."""
        return type(self.pipe).__name__

    def settings(self) -> dict[str, Any]:
        """What was asked for, JSON-ready."""
        return {
            "pipeline": self.name,
            "method": self.method.as_json(),
            "sampler": self.sampler.as_json(),
            "batching": self.batching.as_json(),
            "seed": self.seed,
            **{k: v if isinstance(v, (int, float, str)) else repr(v) for k, v in self.call.items()},
        }
