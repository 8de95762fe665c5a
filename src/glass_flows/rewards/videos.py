"""Rewards of videos: functions that see how frames move, and which frames a reward sees."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from ..errors import ShapeError
from ..settings import Count, Object, Settings, Switch, setting
from .base import FunctionReward, Prompts, ReadFunction, numbers
from .signatures import Signature, name_of

FRAMES = Object(
    "frames",
    "an integer >= 1, 'first', 'all' or none",
    heads={"first": None, "all": None},
    numbers=Count(),
    optional=True,
)
_OF_IMAGES = 4  # frames, for a reward of images
_VIDEO = re.compile(r"(^|_)video(s?)(_|$)")


@dataclass(frozen=True, repr=False)
class Viewing(Settings):
    """What a reward sees of a video.

    Parameters
    ----------
    frames : int, "first", "all" or None
        So many frames, evenly spaced, the first and the last among them (all if there are fewer; 1
        is the first). A reward of images scores each, and the mean counts; one of videos is handed
        them. None is 4 for a reward of images, and all for one of videos.
    """

    frames: int | str | None = setting(None, FRAMES)
    word: ClassVar[str] = "viewing"


def chosen(count: int, frames: int | str | None, *, of_videos: bool = False) -> list[int]:
    """The frames that a reward sees of `count`, by their places, in order; see :class:`Viewing`.

    Parameters
    ----------
    of_videos : bool
        Whether it is a reward of videos, which None leaves all frames.
    """
    if frames is None:
        frames = "all" if of_videos else _OF_IMAGES
    number = count if frames == "all" else 1 if frames == "first" else min(int(frames), count)
    # At least one apart, so that none comes twice.
    return [round(i * (count - 1) / (number - 1)) for i in range(number)] if number > 1 else [0]


def says_videos(function: Callable[..., Any]) -> bool:
    """Whether a function is one of videos: it has `takes_video`, or its parameter is so named."""
    told = vars(function).get("takes_video") if hasattr(function, "__dict__") else None
    return bool(told) or _named(function) is not None


def _named(function: Callable[..., Any]) -> re.Match[str] | None:
    """The name of its first parameter, if that is of a video or of several."""
    samples = Signature.of(function, name_of(function)).samples if callable(function) else None
    return None if samples is None else _VIDEO.search(samples.name)


class OfVideos(ReadFunction):
    """A function of videos as a reward of (B, F, 3, H, W) in [0, 1].

    It answers with a number, a list, an array or a tensor: one for each video.

    Parameters
    ----------
    function : callable
        Of videos, or of videos and prompts in either order: tensors (B, F, 3, H, W), or one
        (F, 3, H, W). F are the frames that are chosen (:class:`Viewing`), all by default.
    each : bool, optional
        Whether it takes one video (and its prompt) at a time, without the B. By default one whose
        parameter's name holds "video", but not "videos", does.
    name, range, max_batch
        See :class:`FunctionReward`.

    Raises
    ------
    InvalidArgument
        No callable, or one of more than two arguments.

    Example
    -------
    >>> stillness = OfVideos(lambda video: -(video[1:] - video[:-1]).abs().mean())
    """

    takes_video = True

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        each: bool | None = None,
        range: tuple[float, float] = FunctionReward.range,
        max_batch: int | None = None,
    ) -> None:
        super().__init__(function, name, range=range, max_batch=max_batch)
        named, asked = _named(function), Switch(optional=True).read("each", each)
        self.each = bool(named and not named[2]) if asked is None else asked

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        if z.ndim != 5:
            raise ShapeError(
                f"the reward {self.name!r} takes videos (B, F, 3, H, W), got {tuple(z.shape)}"
            )
        words = [None] * len(z) if prompts is None else list(prompts)
        if self.each:
            given = [self._ask(video, word) for video, word in zip(z, words)]
        else:
            given = self._ask(z, words)
        found = numbers(given, len(z))
        if found is None:
            asked = "one video (F, 3, H, W)" if self.each else f"{len(z)} videos {tuple(z.shape)}"
            told = tuple(given.shape) if isinstance(given, Tensor) else type(given).__name__
            raise ShapeError(
                f"the reward {self.name!r} returned {told} for {asked}: it must return one number "
                "per video. A function whose parameter is `videos` is handed a batch of them, one "
                "whose parameter is `video` one at a time (OfVideos(function, each=...))"
            )
        return found

    def __repr__(self) -> str:
        return f"OfVideos({self.name!r}, each={self.each})"
