"""How many samples go through networks at a time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .settings import Count, Object, Settings, Switch, setting

__all__ = ["Batching"]

_MAX_BATCH = Object(
    "max_batch",
    "an integer >= 1, 'auto' or none",
    heads={"auto": None},
    numbers=Count(),
    optional=True,
)


@dataclass(frozen=True, repr=False)
class Batching(Settings):
    """How many samples go through a pipeline's networks at a time; the last bits depend on it.

    Parameters
    ----------
    max_batch : int, "auto" or None
        Through the denoising network: "auto" is all, and half of them where the device runs out of
        memory, and so on; None is all.
    decode_batch : int or None
        Through the decoder and the reward; None is all at once.
    checkpoint : bool
        Recompute activations instead of keeping them, for guidance through the network.
    """

    max_batch: int | str | None = setting("auto", _MAX_BATCH)
    decode_batch: int | None = setting(1, Count(optional=True))
    checkpoint: bool = setting(False, Switch())
    word: ClassVar[str] = "batching"
