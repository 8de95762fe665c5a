"""ImageReward (Xu et al. 2023, arXiv 2304.05977): a BLIP that reads the prompt at the image."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor, nn

from .base import Preprocessing, PretrainedReward

_LENGTH = 35  # of prompts, in tokens
_MEAN, _STD = 0.16717362830052426, 1.0333394966054072  # of the head's values, by its authors


class BlipReward(PretrainedReward):
    """Preference for an image given its prompt; mean 0 and variance 1 on its authors' images.

    The text encoder reads the prompt's tokens, 35 at most, and attends to the image's patches in
    every layer; the score is linear in the first token's feature.

    Parameters
    ----------
    vision : transformers.BlipVisionModel
    text : transformers.BlipTextModel
        With cross attention (``is_decoder``), run as an encoder.
    head : torch.nn.Linear
        Of the feature, to one number.
    tokenizer : transformers.BertTokenizer
    options
        As in :class:`PretrainedReward`.
    """

    name = "imagereward"
    takes_prompts = True

    def __init__(
        self, vision: Any, text: Any, head: nn.Linear, tokenizer: Any, **options: Any
    ) -> None:
        from transformers import CLIPImageProcessorPil

        network = nn.ModuleDict({"vision": vision, "text": text, "head": head})
        side = vision.config.image_size
        processor = CLIPImageProcessorPil(  # with CLIP's mean and standard deviation
            size={"shortest_edge": side}, crop_size={"height": side, "width": side}
        )
        super().__init__(network, Preprocessing(processor, "round"), **options)
        self.tokenizer = tokenizer

    def score(self, z: Tensor, prompts: Sequence[Any] | None) -> Tensor:
        vision, text, head = (self.network[part] for part in ("vision", "text", "head"))
        seen = vision(pixel_values=self.preprocess(z).to(vision.dtype)).last_hidden_state
        words = self._tokens(self.tokenizer, [str(p) for p in prompts or ()], _LENGTH)
        read = text(
            input_ids=words.input_ids,
            attention_mask=words.attention_mask,
            encoder_hidden_states=seen,
        ).last_hidden_state[:, 0]
        raw: Tensor = head(read.to(head.weight.dtype))
        return (raw.squeeze(-1) - _MEAN) / _STD
