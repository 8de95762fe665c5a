"""FLUX.1: guidance embedded in the network, or true classifier-free guidance, or none."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux_kontext import retrieve_latents
from torch import Tensor

from .base import OwnDefaults, Packed


class Flux(Packed):
    """FluxPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxPipeline",)
    options = OwnDefaults(
        "prompt_2 negative_prompt true_cfg_scale guidance_scale max_sequence_length "
        "joint_attention_kwargs ip_adapter_image ip_adapter_image_embeds"
    )

    guidance_argument: ClassVar[str] = "true_cfg_scale"
    embeds_guidance: ClassVar[bool] = True

    def prepare(self) -> None:
        super().prepare()
        self.image_ids = self.ids_of(self.rows, self.columns)

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        conditioning = super().encode(prompts)
        image, known = (self.given.get(f"ip_adapter_image{end}") for end in ("", "_embeds"))
        if image is not None or known is not None:
            blank = [np.zeros((self.width, self.height, 3), dtype=np.uint8)]
            blank *= self.network.encoder_hid_proj.num_ip_adapters
            for part, given in (("cond", (image, known)), ("uncond", (blank, None))):
                if part in conditioning:
                    conditioning[part]["images"] = self.pipe.prepare_ip_adapter_image_embeds(
                        *given, self.device, len(prompts)
                    )
        shown = self.shown(len(prompts))
        return {part: {**texts, **shown} for part, texts in conditioning.items()}

    def read(self, prompts: Sequence[Any], **others: Any) -> dict[str, Any]:
        words, pooled, self.text_ids = self.texts(prompts, **others)
        return {"words": words, "pooled": pooled}

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        inputs = self.inputs(x, timestep, texts)
        output: Tensor = self.network(**inputs, **self.told(x, texts))[0]
        return output[:, : x.shape[1]]

    def inputs(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> dict[str, Any]:
        """What the network is asked with, and a ControlNet beside it."""
        extra = dict(self.given["joint_attention_kwargs"] or {})
        if "images" in texts:
            extra["ip_adapter_image_embeds"] = texts["images"]
        return {
            "hidden_states": self.seen(x, texts),
            "timestep": timestep.to(x.dtype) / 1000,
            "encoder_hidden_states": texts["words"],
            "txt_ids": self.text_ids,
            "img_ids": self.image_ids,
            "joint_attention_kwargs": extra,
            "return_dict": False,
        }

    # --- where other pipelines around the network differ ------------------------------------------

    def shown(self, count: int) -> dict[str, Any]:
        """What is made of images that were given: tensors of one row for each prompt."""
        return {}

    def seen(self, x: Tensor, texts: dict[str, Any]) -> Tensor:
        """The network's input at x."""
        return x

    def told(self, x: Tensor, texts: dict[str, Any]) -> dict[str, Any]:
        """What else it is told."""
        return {"guidance": self.embedded_guidance(x), "pooled_projections": texts["pooled"]}

    # --- what they have in common -----------------------------------------------------------------

    def ids_of(self, rows: int, columns: int) -> Tensor:
        """Positions of the tokens of an image, (tokens, 3)."""
        ids: Tensor = self.pipe._prepare_latent_image_ids(
            1, rows, columns, self.device, self.network.dtype
        )
        return ids

    def sized(self, name: str, count: int) -> Tensor:
        """Images that were given, in the size that is drawn, in [-1, 1]: one, or one a prompt."""
        tool, size = self.pipe.image_processor, {"height": self.height, "width": self.width}
        return torch.cat([tool.preprocess(one, **size) for one in self.pictures(name, count)])

    def mean_of(self, pixels: Tensor) -> Tensor:
        """The mean of what the encoder says of them, (B, channels, height, width)."""
        vae = self.pipe.vae
        found = vae.encode(pixels.to(self.device, vae.dtype))
        mean: Tensor = retrieve_latents(found, sample_mode="argmax")
        return mean

    def latents_of(self, pixels: Tensor) -> Tensor:
        """The same as latents of the model."""
        config = self.pipe.vae.config
        latents: Tensor = (self.mean_of(pixels) - config.shift_factor) * config.scaling_factor
        return latents

    def for_prompts(self, images: Tensor, count: int) -> Tensor:
        """One for all as one for each."""
        return images.expand(count, *images.shape[1:])

    def decode(self, x: Tensor) -> Tensor:
        return self.decode_latents(self.unpacked(x))

    def encode_images(self, images: Tensor) -> Tensor:
        return self.packed(self.encode_latents(images))
