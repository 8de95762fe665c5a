"""The parts of the Shapes CLIP: a genuine ``CLIPModel``, small, built without any download.

Needs the extra "rewards".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError

from ...errors import WeightsFileError
from .pipeline import CLIP_TOKENS, clip_tokenizer
from .world import SIDE

__all__ = ["BUNDLED", "build_clip", "build_clip_processor", "load_clip"]

BUNDLED = Path(__file__).parent.parent / "weights" / "shapes-clip"
"""Folder of the trained model, as ``CLIPModel.from_pretrained`` takes it."""

_TEXT = {"hidden_size": 96, "intermediate_size": 192, "num_attention_heads": 3}
_VISION = {"hidden_size": 128, "intermediate_size": 256, "num_attention_heads": 4}


def build_clip() -> Any:
    """An untrained ``CLIPModel``, its weights drawn from torch's generator.

    Patches of 8×8; 4 layers of width 128 for the image, 2 of width 96 for the text; 0.7 million
    parameters.

    Raises
    ------
    MissingExtra
        transformers is not installed.
    """
    words = clip_tokenizer()
    import transformers

    text = {
        **_TEXT,
        "num_hidden_layers": 2,
        "vocab_size": len(words),
        "max_position_embeddings": CLIP_TOKENS,
        "bos_token_id": words.bos_token_id,
        "eos_token_id": words.eos_token_id,
        "pad_token_id": words.pad_token_id,
    }
    vision = {**_VISION, "num_hidden_layers": 4, "image_size": SIDE, "patch_size": 8}
    clip = transformers.CLIPModel(
        transformers.CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)
    )
    # transformers' places are fifteen times smaller than its patches, and what depends on where
    # things lie would be learnt long after the rest.
    torch.nn.init.normal_(clip.vision_model.embeddings.position_embedding.weight, std=0.3)
    return clip


def load_clip(folder: str | Path = BUNDLED) -> Any:
    """The Shapes CLIP of a folder, in float32.

    Raises
    ------
    MissingExtra
        transformers is not installed.
    WeightsFileError
        The folder holds no such model.
    """
    clip_tokenizer()
    import transformers

    try:
        return transformers.CLIPModel.from_pretrained(
            folder, dtype=torch.float32, local_files_only=True, use_safetensors=True
        )
    except (OSError, ValueError, SafetensorError) as error:
        raise WeightsFileError(
            f"{str(folder)!r} holds no CLIPModel ({error}); write one with "
            "`glass-flows train clip --out FOLDER`"
        ) from error


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
