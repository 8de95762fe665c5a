"""Rewards from classifiers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import MISSING, dataclass

import torch
from torch import Tensor

from ..errors import ShapeError, shown
from ..settings import Checked, Count, Function, Number, setting
from .base import Prompts, Reward


@dataclass(frozen=True)
class ClassReward(Checked, Reward):
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

    classifier: Callable[[Tensor], Tensor] = setting(MISSING, Function("callable"))
    label: int = setting(MISSING, Count(least=0))
    floor: float = setting(-12.0, Number("be negative", lambda floor: floor < 0.0))

    def check(self) -> None:
        # A frozen dataclass has no setters.
        vars(self).update(name=f"log p({self.label})", range=(self.floor, 0.0))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        logits = self.classifier(z)
        if not isinstance(logits, Tensor) or logits.ndim != 2 or self.label >= logits.shape[1]:
            raise ShapeError(
                f"label {self.label} needs logits of shape (batch, more than {self.label} classes)"
                f", got {tuple(logits.shape) if isinstance(logits, Tensor) else shown(logits)}"
            )
        return torch.log_softmax(logits, 1)[:, self.label].clamp(min=self.floor)
