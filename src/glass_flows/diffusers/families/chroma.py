"""Chroma: FLUX without embedded guidance, with classifier-free guidance and masked texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from torch import Tensor

from .base import OwnDefaults
from .flux import Flux
from .from_image import FromImage

_OPTIONS = (
    "negative_prompt guidance_scale max_sequence_length joint_attention_kwargs ip_adapter_image "
    "ip_adapter_image_embeds"
)


class Chroma(Flux):
    """ChromaPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("ChromaPipeline",)
    options = OwnDefaults(_OPTIONS)

    guidance_argument: ClassVar[str] = "guidance_scale"
    embeds_guidance: ClassVar[bool] = False

    def prepare(self) -> None:
        super().prepare()
        self.passes = 2 if self.given["guidance_scale"] > 1 else 1

    def read(self, prompts: Sequence[Any], **others: Any) -> dict[str, Any]:
        asked = {"negative_prompt": None, "do_classifier_free_guidance": False, **others}
        words, self.text_ids, mask, *_ = self.texts(prompts, **asked)
        return {"words": words, "mask": mask}

    def told(self, x: Tensor, texts: dict[str, Any]) -> dict[str, Any]:
        mask = self.pipe._prepare_attention_mask(
            batch_size=len(x),
            sequence_length=x.shape[1],
            dtype=x.dtype,
            attention_mask=texts["mask"],
        )
        return {"attention_mask": mask}


class ChromaImg2Img(FromImage, Chroma):
    """ChromaImg2ImgPipeline."""

    pipelines: ClassVar[tuple[str, ...]] = ("ChromaImg2ImgPipeline",)
    options = OwnDefaults(f"image strength {_OPTIONS}")

    def ids_of(self, rows: int, columns: int) -> Tensor:
        """Without a batch among the arguments, here only."""
        ids: Tensor = self.pipe._prepare_latent_image_ids(
            rows, columns, self.device, self.network.dtype
        )
        return ids
