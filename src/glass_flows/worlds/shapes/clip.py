"""The parts of the Shapes CLIP: a genuine ``CLIPModel``, small, built without any download.

Needs the extra "rewards".
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from ...whole import load_whole
from .pipeline import clip_tokenizer, import_transformers, named_folder

BUNDLED = Path(__file__).parent.parent / "weights" / "shapes-clip"
"""Folder of the trained model, as ``CLIPModel.from_pretrained`` takes it."""


def build_clip() -> Any:
    """An untrained ``CLIPModel``, its weights drawn from torch's generator.

    Of the architecture that the bundled one's ``config.json`` says: patches of 8×8; 4 layers of
    width 128 for the image, 2 of width 96 for the text; 0.7 million parameters.

    Raises
    ------
    MissingExtra
        transformers is not installed.
    """
    transformers = import_transformers()
    clip = transformers.CLIPModel(transformers.CLIPConfig.from_pretrained(BUNDLED))
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
    with named_folder(folder, "CLIPModel", "clip"):
        return load_whole(
            import_transformers().CLIPModel, str(folder), dtype=torch.float32, local_files_only=True
        )


def build_clip_processor() -> Any:
    """Its ``CLIPProcessor``: images of 32×32 to [-1, 1], sentences to words."""
    transformers = import_transformers()
    pictures = transformers.CLIPImageProcessorPil.from_pretrained(BUNDLED)
    return transformers.CLIPProcessor(pictures, clip_tokenizer())
