"""What is asked of a pipeline."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
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
    def of(cls, pipe: Any, prompt: Any, *, seed: int | None, **rest: Any) -> Asked:
        """With one prompt or a list, and a seed or none."""
        prompts = (prompt,) if isinstance(prompt, (str, int)) else tuple(prompt)
        if not prompts:
            raise InvalidArgument("give a prompt, or a list with at least one")
        return cls(pipe, prompts, seed=check_seed(seed), **rest)

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
