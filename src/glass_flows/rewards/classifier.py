"""Rewards from classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import InvalidArgument, ShapeError
from .base import Prompts, Reward

__all__ = ["ClassReward"]


@dataclass(frozen=True)
class ClassReward(Reward):
    """log p(label | z) under a classifier, at most 0; at λ = 1 the target is p(z | label).

    Parameters
    ----------
    classifier : callable
        (B, *shape) to logits (B, C).
    label : int
        In 0..C-1.
    floor : float
        Smallest value returned (-inf for none): keeps single particles from vanishing.
    """

    classifier: Callable[[Tensor], Tensor]
    label: int
    floor: float = -12.0

    def __post_init__(self) -> None:
        if isinstance(self.label, bool) or not isinstance(self.label, int) or self.label < 0:
            raise InvalidArgument(f"label must be an integer >= 0, got {self.label!r}")
        if not self.floor < 0.0:
            raise InvalidArgument(f"floor must be negative, got {self.floor!r}")
        # A frozen dataclass has no setters.
        vars(self).update(name=f"log p({self.label})", range=(self.floor, 0.0))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        logits = self.classifier(z)
        if logits.ndim != 2 or self.label >= logits.shape[1]:
            raise ShapeError(
                f"label {self.label} needs logits of shape (batch, more than {self.label} classes)"
                f", got {tuple(logits.shape)}"
            )
        return torch.log_softmax(logits, 1)[:, self.label].clamp(min=self.floor)
