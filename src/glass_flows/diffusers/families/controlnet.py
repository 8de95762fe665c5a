"""FLUX with a ControlNet, which is told an image and adds to the blocks of the network."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
from diffusers.models import FluxMultiControlNetModel
from torch import Tensor

from ...errors import InvalidArgument
from .base import OwnDefaults
from .flux import Flux


class FluxControlNet(Flux):
    """FluxControlNetPipeline with one ControlNet, which acts at all times."""

    pipelines: ClassVar[tuple[str, ...]] = ("FluxControlNetPipeline",)
    options = OwnDefaults(
        "control_image control_mode controlnet_conditioning_scale prompt_2 negative_prompt "
        "true_cfg_scale guidance_scale max_sequence_length joint_attention_kwargs "
        "ip_adapter_image ip_adapter_image_embeds"
    )

    def prepare(self) -> None:
        super().prepare()
        if isinstance(self.pipe.controlnet, FluxMultiControlNetModel):
            raise InvalidArgument(
                "several ControlNets: only in the pipeline's own loop, with decode= given"
            )
        if (self.given["control_mode"] is None) == bool(self.pipe.controlnet.union):
            does = "needs a" if self.pipe.controlnet.union else "is of one kind and takes no"
            raise InvalidArgument(f"this ControlNet {does} control_mode")

    def shown(self, count: int) -> dict[str, Any]:
        image = self.sized("control_image", count).contiguous()
        if self.pipe.controlnet.input_hint_block is None:
            image = self.packed(self.latents_of(image))
        return {"control": self.for_prompts(image.to(self.device, self.network.dtype), count)}

    def predict(
        self, x: Tensor, timestep: Tensor, *, cond: Any, uncond: Any = None, **more: Any
    ) -> Tensor:
        """The ControlNet is asked once, about the prompt, as in the pipeline."""
        added = self._added(x, timestep, cond)
        uncond = None if uncond is None else {**uncond, **added}
        return super().predict(x, timestep, cond={**cond, **added}, uncond=uncond, **more)

    def _added(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> dict[str, Any]:
        """What it adds to the network's blocks."""
        net, mode = self.pipe.controlnet, self.given["control_mode"]
        scale = torch.tensor([self.given["guidance_scale"]], device=x.device).expand(len(x))
        double, single = net(
            **self.inputs(x, timestep, texts),
            controlnet_cond=texts["control"].to(x.dtype),
            controlnet_mode=None if mode is None else torch.full((len(x), 1), mode).to(x.device),
            conditioning_scale=self.given["controlnet_conditioning_scale"],
            guidance=scale if net.config.guidance_embeds else None,
            pooled_projections=texts["pooled"],
        )
        return {"double": double, "single": single}

    def told(self, x: Tensor, texts: dict[str, Any]) -> dict[str, Any]:
        return {
            **super().told(x, texts),
            "controlnet_block_samples": texts["double"],
            "controlnet_single_block_samples": texts["single"],
            "controlnet_blocks_repeat": self.pipe.controlnet.input_hint_block is not None,
        }
