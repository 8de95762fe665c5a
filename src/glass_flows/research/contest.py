"""How much a comparison compares, as settings."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar

from ..settings import MOST, NOT_NEGATIVE, Count, Settings, setting


@dataclass(frozen=True, repr=False)
class Contest(Settings):
    """How much is compared; each for some models only.

    Parameters
    ----------
    populations : int
        Per reward and method (digits).
    tuning_populations : int
        Per reward and candidate setting, on other seeds (digits).
    count : int
        Prompts: held-out ones, and a quarter as many to tune on (shapes; 120), or so many of
        --prompts (all).
    scale : float
        λ of steering and refinement, with --prompts, where nothing is tuned: some 2 to 8 over the
        spread of the reward between images of a prompt.
    """

    populations: int = setting(256, Count(least=2, most=MOST))  # a standard error needs two
    tuning_populations: int = setting(96, Count(least=2, most=MOST))
    count: int | None = setting(None, Count(optional=True))
    scale: float | None = setting(None, replace(NOT_NEGATIVE, optional=True))
    word: ClassVar[str] = "contest"
