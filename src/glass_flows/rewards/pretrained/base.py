"""What all pre-trained rewards share: the preprocessing of images, and where the weights are."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from ...denoisers import check_device
from ...errors import InvalidArgument, ShapeError, check_name
from ...rewards import Reward
from ...settings import ANY_COUNT


class Preprocessing:
    """A ``CLIPImageProcessor``'s resize, crop and normalisation for tensors, differentiable.

    Resizing is bicubic with antialiasing, as Pillow's, without its rounding to whole grey levels.

    Parameters
    ----------
    processor : CLIPImageProcessor
    fit : "floor", "round" or "pad"
        How an image that is not square becomes so: cut, a margin of half a pixel being rounded down
        (transformers) or to even (torchvision); or its longer side resized, and black added.
    """

    def __init__(self, processor: Any, fit: str = "floor") -> None:
        self.fit = check_name("fit", fit, ("floor", "round", "pad"))
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
        wanted = self._wanted(height, width)
        if wanted != (height, width):
            x = F.interpolate(x, wanted, mode="bicubic", antialias=True).clamp(0, 1)
        spare = [have - want for have, want in zip(wanted, self.size)]
        if self.fit == "pad":
            down, right = (-s for s in spare)
            x = F.pad(x, (right // 2, right - right // 2, down // 2, down - down // 2))
        elif min(spare) < 0:
            raise InvalidArgument(
                f"the processor resizes to {wanted} and crops to {self.size}, which is larger"
            )
        else:
            top, left = (round(s / 2) if self.fit == "round" else s // 2 for s in spare)
            x = x[..., top : top + self.size[0], left : left + self.size[1]]
        return (x - self.mean.to(x)) / self.std.to(x)

    def _wanted(self, height: int, width: int) -> tuple[int, int]:
        """Size (h, w) to resize to."""
        if self.fit == "pad":
            scale = min(self.size) / max(height, width)
            return max(1, round(height * scale)), max(1, round(width * scale))
        if self.edge is None:
            return self.fixed
        short = min(height, width)  # the longer side is rounded down
        return self.edge * height // short, self.edge * width // short


class PretrainedReward(Reward):
    """A reward of images (B, 3, H, W) in [0, 1] by a network of transformers, differentiable.

    Parameters
    ----------
    network : torch.nn.Module
    preprocess : Preprocessing
    name : str, optional
        The class's own by default.
    device : str, optional
        "cuda" where there is one.
    max_batch : int, optional
        Most images at a time; all by default.
    offload : bool
        Keep the weights on the CPU while they are not asked.
    """

    def __init__(
        self,
        network: Any,
        preprocess: Preprocessing,
        *,
        name: str | None = None,
        device: str | None = None,
        max_batch: int | None = None,
        offload: bool = False,
    ) -> None:
        self.network = network.eval().requires_grad_(False)
        self.preprocess = preprocess
        self.name = name or self.name
        self.device = check_device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
        self.max_batch = ANY_COUNT.read("max_batch", max_batch)
        self.offload = offload
        if not offload:
            self.network.to(self.device)

    def __call__(self, z: Tensor, prompts: Sequence[Any] | None = None) -> Tensor:
        # A graph that the caller may still differentiate needs the weights where they are.
        with self._placed(stay=torch.is_grad_enabled()):
            return super().__call__(z, prompts)

    def value_and_gradient(
        self, z: Tensor, prompts: Sequence[Any] | None = None
    ) -> tuple[Tensor, Tensor]:
        with self._placed(stay=False):
            return super().value_and_gradient(z, prompts)

    def _tokens(self, tokenizer: Any, texts: Sequence[str], longest: int) -> Any:
        """Texts as a text network reads them, all of the same length, cut to it."""
        return tokenizer(
            list(texts),
            padding="max_length",
            truncation=True,
            max_length=longest,
            return_tensors="pt",
        ).to(self.device)

    @contextmanager
    def _placed(self, stay: bool) -> Iterator[None]:
        """With `offload`: the weights on the device, and back unless they shall `stay`."""
        if self.offload:
            self.network.to(self.device)
        try:
            yield
        finally:
            if self.offload and not stay:
                self.network.to("cpu")
