"""The parts of the Shapes CLIP: a genuine ``CLIPModel``, small, built without any download.

Needs the extra "rewards".
"""

from __future__ import annotations

from typing import Any

from .pipeline import MAX_TOKENS, clip_tokenizer
from .world import SIDE

__all__ = ["build_clip", "build_clip_processor"]

_WIDTH, _HEADS = 96, 3


def build_clip() -> Any:
    """An untrained ``CLIPModel``, its weights drawn from torch's generator.

    Patches of 4×4, 4 layers for the image and 2 for the text, of width 96; 0.5 million parameters.

    Raises
    ------
    MissingExtra
        transformers is not installed.
    """
    words = clip_tokenizer()
    import transformers

    size = {"hidden_size": _WIDTH, "intermediate_size": 2 * _WIDTH, "num_attention_heads": _HEADS}
    text = {
        **size,
        "num_hidden_layers": 2,
        "vocab_size": len(words),
        "max_position_embeddings": MAX_TOKENS,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {**size, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 4}
    return transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    )


def build_clip_processor() -> Any:
    """Its ``CLIPProcessor``: images of 32×32 to [-1, 1], sentences to words."""
    words = clip_tokenizer()
    import transformers

    pictures = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": SIDE},
        crop_size={"height": SIDE, "width": SIDE},
        image_mean=[0.5] * 3,
        image_std=[0.5] * 3,
    )
    return transformers.CLIPProcessor(pictures, words)
