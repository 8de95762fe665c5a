"""Rewards of images as they are asked for: by a name, as a function, or as an object."""

from __future__ import annotations

import importlib
import os
import sys

from ..errors import InvalidArgument, check_name, shown
from .base import Reward, RewardLike
from .forms import OfImages
from .videos import OfVideos, says_videos

__all__ = ["as_image_reward", "check_reward", "load_reward"]


def as_image_reward(reward: RewardLike | str, *, device: str | None = None) -> Reward:
    """A reward of images: a Reward unchanged, a function as :class:`OfImages`, a name loaded.

    A function of videos (:func:`~.videos.says_videos`) is one as :class:`OfVideos`.

    Raises
    ------
    InvalidArgument
        It is none of these; and as :func:`load_reward`.
    """
    if isinstance(reward, str):
        return load_reward(reward, device=device)
    if isinstance(reward, Reward):
        return reward
    return OfVideos(reward) if says_videos(reward) else OfImages(reward)


def load_reward(text: str, *, device: str | None = None) -> Reward:
    """A reward by its name, or a function of your own.

    Parameters
    ----------
    text : str
        A name of :data:`~glass_flows.rewards.pretrained.REWARDS`; with ":" and a hub id or a
        folder after it, weights of your own of that kind. Or "module:function": a function of
        images (:class:`~glass_flows.rewards.OfImages`), or a Reward. The module is looked for in
        the current folder first. Its code is run: name only your own.
    device : str, optional
        For a pre-trained reward.

    Raises
    ------
    InvalidArgument, UnknownName, MissingExtra
        There is no such reward, or it cannot be loaded.
    """
    from .pretrained import REWARDS

    check_reward(text)
    name, _, attribute = text.partition(":")
    if name in REWARDS:
        return as_image_reward(REWARDS[name](attribute or None, device=device))
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it runs code of somebody's own
        raise InvalidArgument(
            f"cannot import the reward's module {name!r}: {type(error).__name__}: {error}. "
            f"a reward for a pipeline is {', '.join(REWARDS)}, or 'module:function' of your own"
        ) from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        public = [a for a in vars(module) if not a.startswith("_")]
        check_name(f"reward in module {name}", attribute, public)
    return as_image_reward(getattr(module, attribute))


def check_reward(text: str) -> None:
    """Raise as :func:`load_reward` does, as far as the text says it without anything loaded."""
    from .pretrained import REWARDS

    name, _, attribute = text.partition(":")
    if name not in REWARDS and not attribute:
        check_name("reward", name, (*REWARDS, "module:function"))
    if name not in REWARDS and not all(part.isidentifier() for part in name.split(".")):
        raise InvalidArgument(
            f"a reward of your own is module:function, and {shown(name)} is no name of a module"
        )
