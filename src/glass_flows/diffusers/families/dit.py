"""DiT: class-conditional diffusion with a learned variance, which is dropped."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...errors import InvalidArgument, UnknownName, did_you_mean
from .base import Family, OwnDefaults, encoding, picture

_NULL = 1000  # the pipeline's own null class


class DiT(Family):
    """DiTPipeline; prompts are class numbers, or names that the pipeline knows."""

    pipelines: ClassVar[tuple[str, ...]] = ("DiTPipeline",)
    options = OwnDefaults("guidance_scale")

    def prepare(self) -> None:
        side = self.network.config.sample_size
        scale = 2 ** (len(self.pipe.vae.config.block_out_channels) - 1)
        if {self.height, self.width} - {None, side * scale}:
            raise InvalidArgument(
                f"this DiT draws {side * scale} x {side * scale} pixels only, got "
                f"height={self.height}, width={self.width}"
            )
        self.height = self.width = side * scale
        self.shape = (self.network.config.in_channels, side, side)
        self.passes = 2 if self.given["guidance_scale"] > 1 else 1

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        labels = [self._label(p) for p in prompts]
        if any(not 0 <= label < _NULL for label in labels):
            raise InvalidArgument(f"classes are numbered 0 to {_NULL - 1}, got {labels}")
        cond = torch.tensor(labels, device=self.device)
        return self.both(cond, torch.full_like(cond, _NULL))

    def _label(self, prompt: Any) -> int:
        """A class by its number or its name."""
        if isinstance(prompt, int):
            return prompt
        if prompt in self.pipe.labels:
            return int(self.pipe.labels[prompt])
        hint = did_you_mean(prompt, self.pipe.labels)
        raise UnknownName(
            f"unknown class {prompt!r}.{hint} Give a number, 0 to {_NULL - 1}, or one of the names "
            "in pipe.labels"
        )

    def predict(
        self, x: Tensor, timestep: Tensor, *, cond: Any, uncond: Any = None, **more: Any
    ) -> Tensor:
        output: Tensor = self.network(
            torch.cat([x] * self.passes),
            timestep=torch.cat([timestep] * self.passes),
            class_labels=cond if uncond is None else torch.cat([cond, uncond]),
        ).sample[:, : x.shape[1]]
        return output if uncond is None else self.guide(*output.chunk(2))

    def decode(self, x: Tensor) -> Tensor:
        return picture(self.pipe.vae, 1 / self.pipe.vae.config.scaling_factor * x)

    def encode_images(self, images: Tensor) -> Tensor:
        latents: Tensor = encoding(self.pipe.vae, images) * self.pipe.vae.config.scaling_factor
        return latents
