"""Stable Diffusion 3 and 3.5: classifier-free guidance in one doubled batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from .base import Family

__all__ = ["StableDiffusion3"]


class StableDiffusion3(Family):
    """StableDiffusion3Pipeline; the state is the latents, (channels, height, width)."""

    pipelines: ClassVar[tuple[str, ...]] = ("StableDiffusion3Pipeline",)
    options: ClassVar[dict[str, Any]] = {
        "prompt_2": None,
        "prompt_3": None,
        "negative_prompt": None,
        "negative_prompt_2": None,
        "negative_prompt_3": None,
        "guidance_scale": 7.0,
        "max_sequence_length": 256,
        "clip_skip": None,
        "joint_attention_kwargs": None,
        "ip_adapter_image": None,
    }

    doubled: ClassVar[bool] = True

    def prepare(self) -> None:
        scale = self.pipe.vae_scale_factor
        self.default_size(scale * self.pipe.patch_size)
        channels = self.network.config.in_channels
        self.shape = (channels, self.height // scale, self.width // scale)
        self.passes = 2 if self.given["guidance_scale"] > 1 else 1

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        texts = [name for name in self.options if "prompt" in name]
        words, blank, pooled, blank_pooled = self.pipe.encode_prompt(
            prompt=list(prompts),
            **{name: self.for_each(name, prompts) for name in texts},
            do_classifier_free_guidance=self.passes == 2,
            device=self.device,
            clip_skip=self.given["clip_skip"],
            max_sequence_length=self.given["max_sequence_length"],
            lora_scale=(self.given["joint_attention_kwargs"] or {}).get("scale"),
        )
        found: dict[str, Any] = {"cond": {"words": words, "pooled": pooled}}
        if self.passes == 2:
            found["uncond"] = {"words": blank, "pooled": blank_pooled}
        if self.given["ip_adapter_image"] is not None:
            images = self.pipe.prepare_ip_adapter_image_embeds(
                self.given["ip_adapter_image"], None, self.device, len(prompts), self.passes == 2
            )
            parts = images.chunk(self.passes)
            for name, part in zip(("cond", "uncond"), reversed(parts)):
                found[name]["images"] = part
        return found

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        extra = self.given["joint_attention_kwargs"]
        if "images" in texts:
            extra = {**(extra or {}), "ip_adapter_image_embeds": texts["images"]}
        output: Tensor = self.network(
            hidden_states=x,
            timestep=timestep,
            encoder_hidden_states=texts["words"],
            pooled_projections=texts["pooled"],
            joint_attention_kwargs=extra,
            return_dict=False,
        )[0]
        return output

    def grid(self, transitions: int) -> dict[str, Any]:
        if not self.pipe.scheduler.config.get("use_dynamic_shifting"):
            return {}
        side = self.network.config.patch_size
        tokens = (self.shape[1] // side) * (self.shape[2] // side)
        return {"mu": self.dynamic_shift(tokens, largest=1.16)}

    def decode(self, x: Tensor) -> Tensor:
        return self.decode_latents(x)
