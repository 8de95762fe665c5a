"""Z-Image: prompts of their own lengths, a clock that runs forwards, the output negated."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import torch
from diffusers.pipelines.z_image.pipeline_z_image import get_default_z_image_sigmas
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from ...settings import Number
from .base import Family, OwnDefaults, wide


class ZImage(Family):
    """ZImagePipeline; the state is the latents, in float32."""

    pipelines: ClassVar[tuple[str, ...]] = ("ZImagePipeline",)
    options = OwnDefaults(
        "negative_prompt guidance_scale cfg_normalization cfg_truncation max_sequence_length "
        "joint_attention_kwargs"
    )

    def prepare(self) -> None:
        self.height, self.width = self.height or 1024, self.width or 1024
        rows, columns = self.default_size(self.pipe.vae_scale_factor * 2)
        self.shape = (self.network.in_channels, 2 * rows, 2 * columns)
        self.passes = 2 if self.given["guidance_scale"] > 0 else 1
        if not isinstance(self.given["cfg_normalization"], bool):  # a number scales the limit
            Number().read("cfg_normalization", self.given["cfg_normalization"])

    @property
    def cfg_scale(self) -> float:
        """Its scale counts from the conditional prediction."""
        return 1.0 + self.given["guidance_scale"] if self.passes == 2 else 1.0

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        words, blank = self.texts(prompts)
        return self.both(_padded(words), _padded(blank) if self.passes == 2 else None)

    def predict(
        self, x: Tensor, timestep: Tensor, *, cond: Any, uncond: Any = None, **more: Any
    ) -> Tensor:
        scale, clock = self.given["guidance_scale"], (1000 - timestep) / 1000
        limit = self.given["cfg_truncation"]
        if limit is not None and limit < 1 and float(clock[0]) > limit:
            uncond = None
        if uncond is None:
            return -torch.stack(self._ask(x, clock, _cut(cond))).squeeze(2)
        words = _cut(cond) + _cut(uncond)
        output = self._ask(x.repeat(2, 1, 1, 1), clock.repeat(2), words)
        result = []
        for positive, negative in zip(output[: len(x)], output[len(x) :]):
            one = positive + scale * (positive - negative)
            if self.given["cfg_normalization"]:
                longest = positive.norm() * float(self.given["cfg_normalization"])
                one = one * (longest / one.norm()).clamp(max=1.0)
            result.append(one)
        return -torch.stack(result).squeeze(2)

    def _ask(self, x: Tensor, clock: Tensor, words: list[Tensor]) -> list[Tensor]:
        output = self.network(
            list(x.unsqueeze(2).unbind(0)),
            clock,
            words,
            joint_attention_kwargs=self.given["joint_attention_kwargs"],
            return_dict=False,
        )[0]
        return [wide(one) for one in output]

    def grid(self, transitions: int) -> dict[str, Any]:
        mu = self.dynamic_shift((self.shape[1] // 2) * (self.shape[2] // 2))
        return {"sigmas": get_default_z_image_sigmas(transitions), "mu": mu}


def _padded(words: list[Tensor]) -> dict[str, Tensor]:
    """Embeddings (length, width) of several lengths as one tensor that can be cut by rows."""
    lengths = torch.tensor([len(one) for one in words])
    return {"words": pad_sequence(words, batch_first=True), "lengths": lengths}


def _cut(texts: dict[str, Tensor]) -> list[Tensor]:
    return [one[:length] for one, length in zip(texts["words"], texts["lengths"].tolist())]
