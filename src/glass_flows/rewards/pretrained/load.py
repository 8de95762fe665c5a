"""The rewards by name: where each comes from, and how it is loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch

from ...errors import InvalidArgument, check_name
from ...registry import Registry
from ...rewards import Reward
from .base import PretrainedReward
from .blip import BlipReward
from .clip import AestheticReward, ImageTextReward
from .hub import CLIP_H, CLIP_L, Place, transformers_for

_PICKSCORE = Place("yuvalkirstain/PickScore_v1", "a4e4367c6dfa7288a00c550414478f865b875800")


@dataclass(frozen=True)
class Source:
    """Where a pre-trained reward comes from, and how it is built.

    Attributes
    ----------
    model : Place, optional
        Its safetensors; none where its authors publish a pickled `file` only.
    processor : Place, optional
        Where the model has none.
    scale, fit, clean
        As in :class:`ImageTextReward`.
    file : str
        The pickled file, for :func:`convert_reward`.
    """

    build: Callable[..., PretrainedReward]
    model: Place | None = None
    processor: Place | None = None
    scale: float | None = None
    fit: str = "floor"
    clean: bool = True
    file: str = ""


def _image_text(
    source: Source, model: Place, processor: Place, dtype: torch.dtype, **options: Any
) -> PretrainedReward:
    from transformers import CLIPModel, CLIPProcessor

    network = model.network(CLIPModel, dtype=dtype)
    parts = processor.load(CLIPProcessor)
    return ImageTextReward(
        network, parts, source.scale, fit=source.fit, clean=source.clean, **options
    )


def _aesthetic(
    source: Source, model: Place, processor: Place, dtype: torch.dtype, **options: Any
) -> PretrainedReward:
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    vision = model.network(CLIPVisionModelWithProjection, dtype=dtype)
    head = model.head(vision.config.projection_dim)
    return AestheticReward(vision, head, processor.load(CLIPImageProcessorPil), **options)


def _imagereward(
    source: Source, model: Place, processor: Place, dtype: torch.dtype, **options: Any
) -> PretrainedReward:
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

    vision = model.network(BlipVisionModel, dtype=dtype, subfolder="vision")
    text = model.network(BlipTextModel, dtype=dtype, subfolder="text", add_pooling_layer=False)
    head = model.head(text.config.hidden_size)
    return BlipReward(vision, text, head, processor.load(BertTokenizer), **options)


PRETRAINED: dict[str, Source] = {
    "clip": Source(_image_text, CLIP_L, scale=100.0),
    "pickscore": Source(_image_text, _PICKSCORE, CLIP_H, clean=False),
    "hps": Source(
        _image_text,
        scale=1.0,
        fit="pad",
        file="HPS_v2.1_compressed.pt of xswu/HPSv2 on the hub",
    ),
    "imagereward": Source(_imagereward, file="ImageReward.pt of THUDM/ImageReward on the hub"),
    "aesthetic": Source(
        _aesthetic,
        file="sac+logos+ava1-l14-linearMSE.pth of LAION's improved-aesthetic-predictor on GitHub",
    ),
}
"""The rewards that :func:`pretrained_reward` knows."""


def pretrained_reward(
    name: str,
    model: str | os.PathLike[str] | None = None,
    *,
    revision: str | None = None,
    device: str | None = None,
    dtype: torch.dtype = torch.float32,
    max_batch: int | None = 16,
    offload: bool = False,
) -> PretrainedReward:
    """A reward from pre-trained weights, from the hub or from a folder.

    Parameters
    ----------
    name : "clip", "pickscore", "hps", "imagereward" or "aesthetic"
        See the table of the package for their scales.
    model : str or path, optional
        Another hub id, or a folder. "clip", "pickscore" and "hps" take a ``CLIPModel`` with its
        processor. "hps", "imagereward" and "aesthetic" have no default, since their authors publish
        no safetensors: give what :func:`convert_reward` wrote.
    revision : str, optional
        Branch, tag or commit on the hub. A default model is pinned to a commit.
    dtype : torch.dtype
        Of the weights.
    device, max_batch, offload : as in :class:`PretrainedReward`

    Raises
    ------
    UnknownName
        Of the reward.
    MissingExtra
        transformers is not installed.
    InvalidArgument
        Nothing could be loaded from there; the reason and the next step are named.
    """
    source = PRETRAINED[check_name("reward", name, PRETRAINED)]
    transformers_for(f"the reward {name!r}")
    command = f"`glass-flows convert reward {name} FILE OUT`" if source.file else ""
    default = source.model
    if model is None and default is None:
        raise InvalidArgument(
            f"the reward {name!r} has no published safetensors: download its authors' file "
            f"({source.file}), convert it with {command}, and give what that wrote: model=OUT "
            f"(--reward {name}:OUT)"
        )
    if default is not None and (model is None or str(model) == default.model):
        place = replace(default, revision=revision or default.revision)
        processor = source.processor or place
    else:
        place = processor = Place(str(model), revision, command)
    options = {"name": name, "device": device, "max_batch": max_batch, "offload": offload}
    return source.build(source, place, processor, dtype, **options)


def _is_builder(name: str, thing: Any) -> Callable[..., Reward]:
    if not callable(thing):
        raise InvalidArgument(
            f"the reward {name!r} must be a function (place, device=...) to a Reward, got {thing!r}"
        )
    return cast("Callable[..., Reward]", thing)


REWARDS: Registry[Callable[..., Reward]] = Registry(
    "rewards", {name: partial(pretrained_reward, name) for name in PRETRAINED}, _is_builder
)
"""Rewards by name: functions of (place or None, device=...)."""
