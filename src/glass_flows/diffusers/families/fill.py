"""FLUX with images among the channels of its input: fill, inside a mask, and control."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from torch import Tensor

from ...plans import Sampler
from ..schedules import Schedule
from .base import OwnDefaults
from .flux import Flux
from .from_image import FromImage


class _Beside(Flux):
    """The network's input is the state with the channels of an image beside it."""

    guidance_argument: ClassVar[str] = "guidance_scale"

    def prepare(self) -> None:
        super().prepare()
        self.shape = (self.shape[0], 4 * self.pipe.vae.config.latent_channels)

    def seen(self, x: Tensor, texts: dict[str, Any]) -> Tensor:
        return torch.cat([x, texts["image"].to(x.dtype)], dim=2)


class FluxControl(_Beside):
    """FluxControlPipeline: FLUX.1 Depth and Canny."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxControlPipeline",)
    options = OwnDefaults(
        "control_image prompt_2 guidance_scale max_sequence_length joint_attention_kwargs"
    )

    def shown(self, count: int) -> dict[str, Any]:
        pixels = self.sized("control_image", count).contiguous()  # laid out as there: the same bits
        latents = self.packed(self.latents_of(pixels))
        return {"image": self.for_prompts(latents, count)}


class FluxFill(_Beside, FromImage):
    """FluxFillPipeline: where `mask_image` is white, it draws."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxFillPipeline",)
    options = OwnDefaults(
        "image mask_image strength prompt_2 guidance_scale max_sequence_length "
        "joint_attention_kwargs"
    )

    def timed(self, schedule: Schedule, sampler: Sampler) -> Sampler:
        whole = self.given["strength"] == 1.0  # from noise
        return Flux.timed(self, schedule, sampler) if whole else super().timed(schedule, sampler)

    def around(self, prompts: Sequence[Any]) -> Tensor | None:
        return None if self.given["strength"] == 1.0 else super().around(prompts)

    def shown(self, count: int) -> dict[str, Any]:
        pipe, size = self.pipe, {"height": self.height, "width": self.width}
        masks = [pipe.mask_processor.preprocess(one, **size)
                 for one in self.pictures("mask_image", count)]  # fmt: skip
        pixels, mask = self.sized("image", count), torch.cat(masks)
        hidden, rows = pixels * (1 - mask), max(len(pixels), len(mask))
        shape = (rows, pipe.vae.config.latent_channels, 1, *size.values())
        mask, image = pipe.prepare_mask_latents(
            mask, self.mean_of(hidden), *shape, self.network.dtype, self.device, None
        )
        return {"image": self.for_prompts(torch.cat((image, mask), dim=-1), count)}
