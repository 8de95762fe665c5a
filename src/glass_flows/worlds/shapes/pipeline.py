"""The parts of the Shapes pipeline: a genuine ``FluxPipeline``, small, built without any download.

Needs the extra "diffusers".
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor

from ...errors import MissingExtra, WeightsFileError
from ...progress import without_widgets
from ...whole import load_parts, quiet
from .world import BACKGROUNDS, COLOURS, MAX_WORDS, NUMBERS, RELATIONS, SHAPES, SIDE, SIZES

MAX_TOKENS = MAX_WORDS + 1
"""Words and their end. Pass it to the pipeline as `max_sequence_length`: Flux masks no padding, and
this network was trained with so much of it."""
CLIP_TOKENS = MAX_WORDS + 2
"""Words, their beginning and their end."""
NEGATIVE = ""
"""The unconditional prompt of `true_cfg_scale`."""

CALL: dict[str, Any] = {
    "height": SIDE,
    "width": SIDE,
    "max_sequence_length": MAX_TOKENS,
    "negative_prompt": NEGATIVE,
    "true_cfg_scale": 3.0,
}
"""The arguments to call the pipeline with."""
BUNDLED = Path(__file__).parent.parent / "weights" / "shapes"
"""Folder of the trained pipeline, as ``FluxPipeline.from_pretrained`` takes it."""


def _words() -> list[str]:
    plurals = [f"{s}s" for s in SHAPES]
    links = " ".join(RELATIONS.values()).split()
    numbers = NUMBERS.values()
    every = ["a", "an", "and", "on", *SHAPES, *plurals, *COLOURS, *SIZES, *BACKGROUNDS, *links]
    return list(dict.fromkeys([*every, *numbers]))


def t5_tokenizer() -> Any:
    """A ``T5Tokenizer`` with one token per word of the world."""
    transformers = import_transformers()
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    vocabulary = [*special, *((f"▁{w}", -1.0) for w in _words())]
    return transformers.T5Tokenizer(vocab=vocabulary, extra_ids=0, model_max_length=MAX_TOKENS)


def clip_tokenizer() -> Any:
    """A ``CLIPTokenizer``: letters, and merges that join each word of the world into one token."""
    transformers = import_transformers()
    letters = [chr(c) for c in range(ord("a"), ord("z") + 1)]
    tokens = dict.fromkeys([*letters, *(f"{c}</w>" for c in letters)])
    merges: list[tuple[str, str]] = []
    for word in _words():
        # A merge added last is applied last, so words that are already one token stay one.
        while len(parts := _encode(word, merges)) > 1:
            merges.append((parts[0], parts[1]))
            tokens[parts[0] + parts[1]] = None
    vocabulary = {token: i for i, token in enumerate(tokens)}
    for mark in ("<|startoftext|>", "<|endoftext|>"):
        vocabulary[mark] = len(vocabulary)
    return transformers.CLIPTokenizer(vocab=vocabulary, merges=merges, model_max_length=CLIP_TOKENS)


def tokens(tokenizer: Any, sentences: Sequence[str]) -> Tensor:
    """Numbers of the words (B, length), of the full length that the tokenizer was made for."""
    found: Tensor = tokenizer(
        list(sentences), padding="max_length", truncation=True, return_tensors="pt"
    ).input_ids
    return found


def _encode(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Byte-pair encoding: of all merges that apply, the earliest comes first."""
    parts = [*word[:-1], f"{word[-1]}</w>"]
    while pairs := [pair for pair in pairwise(parts) if pair in merges]:
        i = list(pairwise(parts)).index(min(pairs, key=merges.index))
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    return parts


def build_pipeline() -> Any:
    """An untrained ``FluxPipeline``, its weights drawn from torch's generator.

    Of the architecture that the files of the bundled one say: latents of 8×8×8 become 16 tokens of
    32 numbers; 2 double and 4 single blocks of width 128; both text encoders have 2 layers. 3.4
    million parameters.

    Raises
    ------
    MissingExtra
        diffusers or transformers is not installed.
    """
    transformers = import_transformers()
    import diffusers

    t5 = transformers.T5EncoderModel(
        transformers.T5Config.from_pretrained(BUNDLED / "text_encoder_2")
    )
    # T5's attention sees places only through this table. From its usual .09, moved by 0.001 a
    # step, it takes thousands of steps until a noun finds its adjective; from here a hundred.
    table = t5.encoder.block[0].layer[0].SelfAttention.relative_attention_bias
    torch.nn.init.normal_(table.weight, std=2.0)
    clip = transformers.CLIPTextModel(
        transformers.CLIPTextConfig.from_pretrained(BUNDLED / "text_encoder")
    )

    def untrained(kind: Any, part: str, **changes: float) -> Any:
        return kind.from_config(kind.load_config(BUNDLED / part), **changes)

    return diffusers.FluxPipeline(
        # Shifts that leave the times as they are: without any it would pass for FLUX.1-schnell.
        scheduler=untrained(diffusers.FlowMatchEulerDiscreteScheduler, "scheduler"),
        vae=untrained(diffusers.AutoencoderKL, "vae", shift_factor=0.0, scaling_factor=1.0),
        text_encoder=clip,
        tokenizer=clip_tokenizer(),
        text_encoder_2=t5,
        tokenizer_2=t5_tokenizer(),
        transformer=untrained(diffusers.FluxTransformer2DModel, "transformer"),
    )


def load_pipeline(folder: str | Path = BUNDLED) -> Any:
    """The Shapes pipeline of a folder, in float32, to be called with :data:`CALL`.

    Raises
    ------
    MissingExtra
        diffusers or transformers is not installed.
    WeightsFileError
        The folder holds no such pipeline.
    """
    import_transformers()
    import diffusers

    given = {"dtype": torch.float32, "local_files_only": True}
    with quiet():  # of an image processor that it does not have
        kind = diffusers.FluxPipeline
    with named_folder(folder, "Shapes pipeline", "shapes"):
        parts = load_parts(kind, str(folder), **given)
        with quiet():
            return kind.from_pretrained(str(folder), use_safetensors=True, **given, **parts)


@contextmanager
def named_folder(folder: str | Path, what: str, command: str) -> Iterator[None]:
    """WeightsFileError for what goes wrong in reading a folder, with the command that writes it."""
    try:
        yield
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise WeightsFileError(
            f"{str(folder)!r} holds no {what} ({error}); write one with "
            f"`glass-flows train {command} --out FOLDER`"
        ) from error


def import_transformers() -> Any:
    """The package, once it is clear that diffusers is there too."""
    without_widgets()
    try:
        import diffusers  # noqa: F401
        import transformers
    except ImportError as error:
        raise MissingExtra("diffusers", "diffusers", "the Shapes pipeline") from error
    return transformers
