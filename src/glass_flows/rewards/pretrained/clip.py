"""Rewards on CLIP: agreement of image and text, and the look of an image alone."""

from __future__ import annotations

import html
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import MissingExtra
from .base import Preprocessing, PretrainedReward


class ImageTextReward(PretrainedReward):
    """Agreement of image and prompt under a ``CLIPModel``: scale · cos(image, text).

    CLIP score (Hessel et al. 2021, arXiv 2104.08718, there 2.5 max(cos, 0)), PickScore (Kirstain et
    al. 2023, arXiv 2305.01569) and HPS v2 (Wu et al. 2023, arXiv 2306.09341) differ in weights,
    scale and the fit of images only. Prompts are cut to the model's length.

    Parameters
    ----------
    network : transformers.CLIPModel
    processor : transformers.CLIPProcessor
    scale : float, optional
        Factor of the cosine; exp(logit_scale) of the model by default.
    fit : str
        As in :class:`Preprocessing`.
    clean : bool
        Mend prompts before they become tokens, as CLIP and HPS v2 do in their authors' code
        (curled quotes, wrong decodings, HTML entities); PickScore's authors do not.
    options
        As in :class:`PretrainedReward`.
    """

    name = "clip"
    takes_prompts = True

    def __init__(
        self,
        network: Any,
        processor: Any,
        scale: float | None = None,
        *,
        fit: str = "floor",
        clean: bool = True,
        **options: Any,
    ) -> None:
        preprocess = Preprocessing(processor.image_processor, fit)
        super().__init__(network, preprocess, **options)
        self.scale = float(network.logit_scale.exp()) if scale is None else scale
        self.range = (-abs(self.scale), abs(self.scale))
        self.tokenizer = processor.tokenizer
        self.cleaned = _cleaning() if clean else str
        self._texts: dict[str, Tensor] = {}

    def score(self, z: Tensor, prompts: Sequence[Any] | None) -> Tensor:
        seen = self._see(z)
        read = self._read([self.cleaned(str(p)) for p in prompts or ()])
        wide = torch.promote_types(seen.dtype, torch.float32)
        return self.scale * F.cosine_similarity(seen.to(wide), read.to(seen.device, wide), dim=-1)

    @torch.no_grad()
    def features(self, images: Tensor) -> Tensor:
        """What the network makes of images (B, 3, H, W) in [0, 1]: (B, d), before any text."""
        return self._see(images.to(self.device))

    def _see(self, images: Tensor) -> Tensor:
        pixels = self.preprocess(images).to(self.network.dtype)
        return self.network.get_image_features(pixel_values=pixels).pooler_output

    @torch.no_grad()
    def _read(self, prompts: list[str]) -> Tensor:
        """Features (B, d) of texts; each text is read once.

        Their last bits must not depend on which texts happen to come together, so each is read by
        itself; and in two rows, since one alone is multiplied by routines whose last bits depend on
        where the weights lie in memory.
        """
        network = self.network
        length = network.config.text_config.max_position_embeddings
        for new in dict.fromkeys(p for p in prompts if p not in self._texts):
            words = self._tokens(self.tokenizer, [new] * 2, length)
            self._texts[new] = network.get_text_features(**words).pooler_output[0]
        return torch.stack([self._texts[p] for p in prompts])


def _cleaning() -> Callable[[str], str]:
    """What CLIP's authors do to a text before its tokens; transformers' tokenizer leaves it out."""
    try:
        from ftfy import fix_text
    except ImportError as error:
        raise MissingExtra("ftfy", "rewards", "the text of a CLIP reward") from error
    return lambda text: html.unescape(html.unescape(fix_text(text))).strip()


class AestheticReward(PretrainedReward):
    """How people would rate an image, 1 to 10, whatever it shows: linear in CLIP's unit feature.

    LAION's improved aesthetic predictor (sac+logos+ava1-l14-linearMSE; Schuhmann et al. 2022, arXiv
    2210.08402). Its scores are not held to the scale.

    Parameters
    ----------
    vision : transformers.CLIPVisionModelWithProjection
    head : torch.nn.Linear
        Of the feature, to one number.
    processor : transformers.CLIPImageProcessor
    options
        As in :class:`PretrainedReward`.
    """

    name = "aesthetic"

    def __init__(self, vision: Any, head: nn.Linear, processor: Any, **options: Any) -> None:
        network = nn.ModuleDict({"vision": vision, "head": head})
        super().__init__(network, Preprocessing(processor, "round"), **options)

    def score(self, z: Tensor, prompts: Sequence[Any] | None) -> Tensor:
        vision, head = self.network["vision"], self.network["head"]
        seen = vision(pixel_values=self.preprocess(z).to(vision.dtype)).image_embeds
        rating: Tensor = head(F.normalize(seen.to(head.weight.dtype), dim=-1))
        return rating.squeeze(-1)
