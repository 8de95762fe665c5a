"""Rewards from pre-trained models: CLIP score, PickScore, HPS v2.

transformers' own classes with a preprocessing in torch, so that gradients reach the pixels. Needs
the extra "rewards". Weights are read from safetensors only, and no code from a hub is run.

==========  ==========================  ==============  ==================  ===========
name        score                       usual values    standard deviation  suggested λ
==========  ==========================  ==============  ==================  ===========
clip        100 cos(image, text)        20 to 35        about 2             0.5 to 2
pickscore   exp(logit_scale) cos        18 to 24        about 1             1 to 5
hps         cos(image, text)            0.2 to 0.35     about 0.02          50 to 200
==========  ==========================  ==============  ==================  ===========

A λ is the inverse of the difference in reward that shall multiply the odds by e: about one over the
standard deviation among samples of one prompt, more for a stronger pull.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import InvalidArgument, MissingExtra, ShapeError, check_count, check_name
from ..rewards import Reward

__all__ = ["PRETRAINED", "ImageTextReward", "pretrained_reward"]


class Preprocessing:
    """A ``CLIPImageProcessor``'s resize, crop and normalisation for tensors, differentiable.

    Resizing is bicubic with antialiasing, as Pillow's, without its rounding to whole grey levels.

    Parameters
    ----------
    processor : CLIPImageProcessor
    """

    def __init__(self, processor: Any) -> None:
        resized = dict(processor.size)
        self.edge: int | None = resized.get("shortest_edge")
        self.fixed = (resized.get("height", 0), resized.get("width", 0))
        crop = dict(processor.crop_size if processor.do_center_crop else resized)
        self.size = (crop["height"], crop["width"])
        self.mean = torch.tensor(processor.image_mean)[:, None, None]
        self.std = torch.tensor(processor.image_std)[:, None, None]

    def __call__(self, images: Tensor) -> Tensor:
        """(B, 3, H, W) in [0, 1] to the model's pixel values (B, 3, h, w)."""
        if images.ndim != 4 or images.shape[1] != 3:
            raise ShapeError(
                f"images must be (batch, 3, H, W) in [0, 1], got {tuple(images.shape)}"
            )
        x = images if images.dtype == torch.float64 else images.float()
        height, width = x.shape[-2:]
        short = min(height, width)  # the longer side is rounded down
        if self.edge is None:
            wanted = self.fixed
        else:
            wanted = self.edge * height // short, self.edge * width // short
        if wanted != (height, width):
            x = F.interpolate(x, wanted, mode="bicubic", antialias=True).clamp(0, 1)
        top, left = ((have - want) // 2 for have, want in zip(wanted, self.size))
        if top < 0 or left < 0:
            raise InvalidArgument(
                f"the processor resizes to {wanted} and crops to {self.size}, which is larger"
            )
        x = x[..., top : top + self.size[0], left : left + self.size[1]]
        return (x - self.mean.to(x)) / self.std.to(x)


class ImageTextReward(Reward):
    """Agreement of image and prompt under a ``CLIPModel``: scale · cos(image, text).

    CLIP score (Hessel et al. 2021, arXiv 2104.08718, there 2.5 max(cos, 0)), PickScore (Kirstain et
    al. 2023, arXiv 2305.01569) and HPS v2 (Wu et al. 2023, arXiv 2306.09341) differ in weights and
    scale only. Takes images (B, 3, H, W) in [0, 1] and B prompts, cut to the model's length.

    Parameters
    ----------
    network : transformers.CLIPModel
    processor : transformers.CLIPProcessor
    scale : float, optional
        Factor of the cosine; exp(logit_scale) of the model by default.
    device : str, optional
        "cuda" where there is one.
    max_batch : int, optional
        Most images at a time; all by default.
    offload : bool
        Keep the weights on the CPU while they are not asked.
    """

    takes_prompts = True

    def __init__(
        self,
        network: Any,
        processor: Any,
        scale: float | None = None,
        *,
        name: str = "clip",
        device: str | None = None,
        max_batch: int | None = None,
        offload: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.name = name
        self.device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.max_batch = None if max_batch is None else check_count("max_batch", max_batch)
        self.offload = offload
        if not offload:
            self.network.to(self.device)
        self.scale = float(network.logit_scale.exp()) if scale is None else scale
        self.range = (-abs(self.scale), abs(self.scale))
        self.preprocess = Preprocessing(processor.image_processor)
        self.tokenizer = processor.tokenizer
        self._texts: dict[str, Tensor] = {}

    def __call__(self, z: Tensor, prompts: Sequence[Any] | None = None) -> Tensor:
        # A graph that the caller may still differentiate needs the weights where they are.
        with self._placed(stay=torch.is_grad_enabled()):
            return super().__call__(z, prompts)

    def value_and_gradient(
        self, z: Tensor, prompts: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        with self._placed(stay=False):
            return super().value_and_gradient(z, prompts)

    @contextmanager
    def _placed(self, stay: bool) -> Iterator[None]:
        """With `offload`: the weights on the device, and back unless they shall `stay`."""
        if self.offload:
            self.network.to(self.device)
        yield
        if self.offload and not stay:
            self.network.to("cpu")

    def score(self, z: Tensor, prompts: Sequence[Any] | None) -> Tensor:
        network = self.network
        pixels = self.preprocess(z).to(network.dtype)
        seen = network.get_image_features(pixel_values=pixels).pooler_output
        read = self._read([str(p) for p in prompts or ()])
        wide = torch.promote_types(seen.dtype, torch.float32)
        return self.scale * F.cosine_similarity(seen.to(wide), read.to(seen.device, wide), dim=-1)

    @torch.no_grad()
    def _read(self, prompts: list[str]) -> Tensor:
        """Features (B, d) of texts; each text is read once."""
        network = self.network
        if new := list(dict.fromkeys(p for p in prompts if p not in self._texts)):
            length = network.config.text_config.max_position_embeddings
            words = self.tokenizer(
                new, padding="max_length", truncation=True, max_length=length, return_tensors="pt"
            ).to(self.device)
            self._texts.update(zip(new, network.get_text_features(**words).pooler_output))
        return torch.stack([self._texts[p] for p in prompts])


@dataclass(frozen=True)
class Source:
    """Where a pre-trained reward comes from, as the hub spells it, and how it is built."""

    model: str | None
    revision: str | None
    scale: float | None = None
    processor: str | None = None
    processor_revision: str | None = None


PRETRAINED: dict[str, Source] = {
    "clip": Source(
        "openai/clip-vit-large-patch14", "32bd64288804d66eefd0ccbe215aa642df71cc41", 100.0
    ),
    "pickscore": Source(
        "yuvalkirstain/PickScore_v1",
        "a4e4367c6dfa7288a00c550414478f865b875800",
        None,
        "laion/CLIP-ViT-H-14-laion2B-s32B-b79K",
        "1c2b8495b28150b8a4922ee1c8edee224c284c0c",
    ),
    # Its authors publish a pickled file only: a folder converted to transformers' CLIPModel.
    "hps": Source(None, None, 1.0),
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
) -> ImageTextReward:
    """A reward from pre-trained weights, from the hub or from a folder.

    Parameters
    ----------
    name : "clip", "pickscore" or "hps"
        See the table above for their scales.
    model : str or path, optional
        Another hub id, or a folder, of a ``CLIPModel`` with its processor; "hps" has no default,
        since its authors publish no safetensors.
    revision : str, optional
        Branch, tag or commit on the hub. A default model is pinned to a commit.
    dtype : torch.dtype
        Of the weights.
    device, max_batch, offload : as in :class:`ImageTextReward`

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
    try:
        import transformers
    except ImportError as error:
        raise MissingExtra("transformers", "rewards", f"the reward {name!r}") from error
    own = model is None or str(model) == source.model
    place = str(source.model if model is None else model)
    if model is None and source.model is None:
        raise InvalidArgument(
            f"the reward {name!r} has no published safetensors: convert its weights to a folder of "
            f"transformers' CLIPModel and give that, model=FOLDER (--reward {name}:FOLDER)"
        )
    pin = revision or (source.revision if own else None)
    network = _loaded(transformers.CLIPModel, place, pin, dtype=dtype, use_safetensors=True)
    if own and source.processor is not None:
        place, pin = source.processor, source.processor_revision
    processor = _loaded(transformers.CLIPProcessor, place, pin)
    return ImageTextReward(
        network,
        processor,
        source.scale,
        name=name,
        device=device,
        max_batch=max_batch,
        offload=offload,
    )


def _loaded(kind: Any, place: str, revision: str | None, **options: Any) -> Any:
    """``kind.from_pretrained``; every failure becomes an InvalidArgument with the next step."""
    local = Path(place).exists()
    load: Callable[..., Any] = kind.from_pretrained
    try:
        return load(
            place, revision=revision, local_files_only=local, trust_remote_code=False, **options
        )
    except MemoryError as error:
        raise InvalidArgument(
            f"{place!r} does not fit into memory; use dtype=torch.bfloat16"
        ) from error
    except (OSError, ValueError, RuntimeError, ImportError) as error:
        step = (
            "the folder must hold a CLIPModel in safetensors with its processor"
            if local
            else "check the id's spelling and the network (HF_HUB_OFFLINE unset, a token for gated "
            "models), or download the model and give its folder"
        )
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InvalidArgument(
            f"cannot load a {kind.__name__} from {place!r}: {reason} ({step})"
        ) from error
