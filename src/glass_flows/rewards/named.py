"""Rewards of images as they are asked for: by a name, as a function, or as an object."""

from __future__ import annotations

import importlib
import os
import sys
from typing import Any

from ..errors import InvalidArgument, check_name, shown
from .base import Reward, RewardLike
from .forms import OfImages
from .videos import OfVideos, says_videos

__all__ = ["as_image_reward", "check_own", "check_reward", "import_own", "load_reward"]


def as_image_reward(reward: RewardLike | str) -> Reward:
    """A reward of images: a Reward unchanged, a function as :class:`OfImages`, a name loaded.

    A function of videos (:func:`~.videos.says_videos`) is one as :class:`OfVideos`.

    Raises
    ------
    InvalidArgument
        It is none of these; and as :func:`load_reward`.
    """
    if isinstance(reward, str):
        return load_reward(reward)
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
    instead = f"a reward for a pipeline is {', '.join(REWARDS)}, or 'module:function' of your own"
    return as_image_reward(import_own("reward", text, instead))


def check_reward(text: str) -> None:
    """Raise as :func:`load_reward` does, as far as the text says it without anything loaded."""
    from .pretrained import REWARDS

    name, _, attribute = text.partition(":")
    if name not in REWARDS and not attribute:
        check_name("reward", name, (*REWARDS, "module:function"))
    if name not in REWARDS:
        check_own("reward", text)


def check_own(kind: str, text: str) -> None:
    """Raise for what is no "module:function", without anything imported."""
    name, _, attribute = text.partition(":")
    if not attribute or not all(part.isidentifier() for part in name.split(".")):
        raise InvalidArgument(
            f"a {kind} of your own is module:function, and {shown(name)} is no name of a module"
        )


def import_own(kind: str, text: str, instead: str = "") -> Any:
    """What "module:function" names; the module is looked for in the current folder first.

    Its code is run.

    Parameters
    ----------
    kind : str
        What it is to be, for messages: "reward", "sampler".
    instead : str
        What is allowed, for the message where there is no such module.

    Raises
    ------
    InvalidArgument, UnknownName
        The module cannot be imported, or has no such name.
    """
    name, _, attribute = text.partition(":")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except (Exception, SystemExit) as error:  # it runs code of somebody's own
        if name.endswith(".py"):
            instead = f"A module is named without .py: {name.removesuffix('.py')}:{attribute}"
        raise InvalidArgument(
            f"cannot import the {kind}'s module {name!r}: {type(error).__name__}: {error}"
            + (f". {instead}" if instead else "")
        ) from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        public = [a for a in vars(module) if not a.startswith("_")]
        check_name(f"{kind} in module {name}", attribute, public)
    return getattr(module, attribute)
