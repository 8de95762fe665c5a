"""Published pickled rewards to folders of safetensors that :func:`pretrained_reward` loads.

==============  ============================================================================
hps             a ``CLIPModel`` and its processor
imagereward     vision/ and text/ (BLIP's), head.safetensors and a tokenizer
aesthetic       CLIP's image half with its image processor, and head.safetensors
==============  ============================================================================
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from ...checkpoints import Refuse, State, check_tensors, read_tensors
from ...errors import InvalidArgument, WeightsFileError, check_name
from .hub import BERT, CLIP_H, CLIP_L, HEAD, Place, transformers_for
from .load import PRETRAINED

Parts = list[tuple[str, Any]]  # a file's path and its tensors, or a folder and what saves itself

_WEIGHTS = "model.safetensors"
_LAYERS = (0, 2, 4, 6, 7)  # of both heads; the numbers between them are of dropout
_HEAD_WIDTH = 64  # of an attention head, in BERT and in both of BLIP's image encoders
# Buffers that transformers' classes build themselves.
_BUFFERS = ("position_ids", "attn_mask")
# BLIP's projections for its contrastive loss, which ImageReward saves and does not use.
_UNUSED = ("blip.vision_proj.", "blip.text_proj.")

_OPEN_CLIP = (
    (r"^visual\.conv1\.", "vision_model.embeddings.patch_embedding."),
    (r"^visual\.class_embedding$", "vision_model.embeddings.class_embedding"),
    (r"^visual\.positional_embedding$", "vision_model.embeddings.position_embedding.weight"),
    (r"^visual\.ln_pre\.", "vision_model.pre_layrnorm."),  # so spelt there
    (r"^visual\.ln_post\.", "vision_model.post_layernorm."),
    (r"^visual\.proj$", "visual_projection.weight"),
    (r"^visual\.transformer\.resblocks\.", "vision_model.encoder.layers."),
    (r"^token_embedding\.", "text_model.embeddings.token_embedding."),
    (r"^positional_embedding$", "text_model.embeddings.position_embedding.weight"),
    (r"^transformer\.resblocks\.", "text_model.encoder.layers."),
    (r"^ln_final\.", "text_model.final_layer_norm."),
    (r"^text_projection$", "text_projection.weight"),
    (r"\.ln_([12])\.", r".layer_norm\1."),
    (r"\.attn\.", ".self_attn."),
    (r"\.mlp\.c_fc\.", ".mlp.fc1."),
    (r"\.mlp\.c_proj\.", ".mlp.fc2."),
)
_BLIP_VISION = (
    (r"^cls_token$", "embeddings.class_embedding"),
    (r"^pos_embed$", "embeddings.position_embedding"),
    (r"^patch_embed\.proj\.", "embeddings.patch_embedding."),
    (r"^norm\.", "post_layernorm."),
    (r"^blocks\.", "encoder.layers."),
    (r"\.norm([12])\.", r".layer_norm\1."),
    (r"\.attn\.proj\.", ".self_attn.projection."),
    (r"\.attn\.", ".self_attn."),
)


def convert_reward(
    name: str,
    checkpoint: str | os.PathLike[str],
    out: str | os.PathLike[str],
    *,
    base: str | os.PathLike[str] | None = None,
) -> Path:
    """Read a reward's published file and write the folder `out` that ``pretrained_reward`` loads.

    Only tensors are read (``weights_only=True``): a file that holds code is refused. Nothing is
    written before all of them are checked.

    Parameters
    ----------
    name : "hps", "imagereward" or "aesthetic"
    checkpoint : path
        HPS v2's or v2.1's state dict (of open_clip), ImageReward.pt, or the aesthetic predictor's
        linear head; pickled or in safetensors.
    out : path
        The folder, made if needed.
    base : str or path, optional
        Folder or hub id of what the file lacks: of "hps" the ``CLIPModel``'s configuration and
        processor, of "imagereward" BERT's tokenizer, of "aesthetic" the ``CLIPModel`` itself.
        By default the published one, at a pinned commit.

    Raises
    ------
    UnknownName
        Of the reward, or it needs no conversion.
    WeightsFileError
        No such file, not that model (the tensors are named), or one that holds more than tensors.
    InvalidArgument
        The base cannot be loaded or does not fit.
    MissingExtra
        transformers is not installed.
    """
    source = PRETRAINED[check_name("reward to convert", name, CONVERTIBLE)]
    transformers_for(f"converting the reward {name!r}")

    def refuse(problem: str) -> WeightsFileError:
        return WeightsFileError(
            f"checkpoint {os.fspath(checkpoint)!r} for the reward {name!r}: {problem}; "
            f"the file wanted is {source.file}"
        )

    convert, place = _CONVERTERS[name]
    if base is not None and os.fspath(base) != place.model:
        place = Place(os.fspath(base))
    read = read_tensors(checkpoint, refuse, "state_dict", "model")
    state = {key: tensor for key, tensor in read.items() if not key.endswith(_BUFFERS)}
    parts = convert(state, place, refuse)
    target = Path(out)
    for path, part in parts:
        if isinstance(part, dict):
            (target / path).parent.mkdir(parents=True, exist_ok=True)
            tensors = {k: v.contiguous() for k, v in part.items()}
            save_file(tensors, target / path, metadata={"format": "pt"})
        else:
            part.save_pretrained(target / path)
    return target


def _hps(found: State, base: Place, refuse: Refuse) -> Parts:
    """open_clip's names to transformers': queries, keys and values are parted there."""
    from transformers import AutoConfig, CLIPConfig, CLIPModel, CLIPProcessor

    # Of a folder without any, CLIPConfig's own loader would return its defaults.
    config, processor = base.load(AutoConfig), base.load(CLIPProcessor)
    if not isinstance(config, CLIPConfig):
        raise InvalidArgument(
            f"{base.model!r} is a {config.model_type}: give as base a CLIPModel with its processor"
        )
    state: State = {}
    for key, tensor in found.items():
        if ".attn.in_proj_" in key:
            for letter, third in zip("qkv", tensor.chunk(3)):
                state[key.replace("in_proj_", f"{letter}_proj.")] = third.clone()
        else:  # open_clip multiplies its projections from the right
            state[key] = tensor.T if key in ("visual.proj", "text_projection") else tensor
    state = _renamed(state, _OPEN_CLIP)
    check_tensors(_tensors(CLIPModel, config), state, refuse, "by transformers' names, ")
    return [("", config), ("", processor), (_WEIGHTS, state)]


def _imagereward(found: State, base: Place, refuse: Refuse) -> Parts:
    from transformers import BertTokenizer, BlipTextModel, BlipVisionModel

    vision = _renamed(_under(found, "blip.visual_encoder."), _BLIP_VISION)
    text, layers = _under(found, "blip.text_encoder."), _under(found, "mlp.layers.")
    known = ("blip.visual_encoder.", "blip.text_encoder.", "mlp.layers.", *_UNUSED)
    if strange := sorted(key for key in found if not key.startswith(known)):
        raise refuse(f"tensors not known: {', '.join(strange[:8])}")
    try:
        vision_config, text_config = _vision_sizes(vision), _text_sizes(text)
    except (KeyError, IndexError, ValueError) as error:
        raise refuse(f"it is not an ImageReward ({error})") from error
    expected = _tensors(BlipVisionModel, vision_config)
    check_tensors(expected, vision, refuse, "blip.visual_encoder, by transformers' names: ")
    expected = _tensors(BlipTextModel, text_config, add_pooling_layer=False)
    check_tensors(expected, text, refuse, "blip.text_encoder, by transformers' names: ")
    head = _folded(layers, text_config.hidden_size, refuse)
    tokenizer = base.load(BertTokenizer)
    tokenizer.add_tokens(["[DEC]", "[ENC]"], special_tokens=True)  # BLIP's, in this order
    if len(tokenizer) != text_config.vocab_size:
        raise InvalidArgument(
            f"the tokenizer of {base.model!r} has {len(tokenizer)} words with BLIP's two, the "
            f"weights have {text_config.vocab_size}: give the base that belongs to them"
        )
    weights = [("vision/" + _WEIGHTS, vision), ("text/" + _WEIGHTS, text), (HEAD, head)]
    return [("vision", vision_config), ("text", text_config), ("", tokenizer), *weights]


def _aesthetic(found: State, base: Place, refuse: Refuse) -> Parts:
    from transformers import CLIPModel, CLIPProcessor

    # The head first: it is the small one of the two.
    layers = {key.removeprefix("layers."): tensor for key, tensor in found.items()}
    first = layers.get("0.weight", torch.empty(1, 0))
    head = _folded(layers, first.shape[-1], refuse)
    network, processor = base.network(CLIPModel, dtype=torch.float32), base.load(CLIPProcessor)
    width = network.config.projection_dim
    if width != head["weight"].shape[1]:
        raise InvalidArgument(
            f"the head is of features of {head['weight'].shape[1]} numbers, the CLIPModel of "
            f"{base.model!r} has {width}: give the base that belongs to it"
        )
    config = network.config.vision_config
    config.projection_dim = width
    halves = ("vision_model.", "visual_projection.")
    state = {key: part for key, part in network.state_dict().items() if key.startswith(halves)}
    return [("", config), ("", processor.image_processor), (_WEIGHTS, state), (HEAD, head)]


_CONVERTERS: dict[str, tuple[Callable[[State, Place, Refuse], Parts], Place]] = {
    "hps": (_hps, CLIP_H),
    "imagereward": (_imagereward, BERT),
    "aesthetic": (_aesthetic, CLIP_L),
}
CONVERTIBLE = tuple(_CONVERTERS)
"""The rewards that :func:`convert_reward` knows."""


def _tensors(kind: Any, config: Any, **options: Any) -> State:
    """Those of ``kind(config)``, without memory."""
    with torch.device("meta"):
        return kind(config, **options).state_dict()


def _under(state: State, prefix: str) -> State:
    return {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}


def _renamed(state: State, table: tuple[tuple[str, str], ...]) -> State:
    renamed = {}
    for key, tensor in state.items():
        for pattern, name in table:
            key = re.sub(pattern, name, key)
        renamed[key] = tensor
    return renamed


def _folded(layers: State, width: int, refuse: Refuse) -> State:
    """Five linear layers as the one, (1, width) and (1,), that they are: nothing lies between."""
    expected = {f"{i}.{part}" for i in _LAYERS for part in ("weight", "bias")}
    if strange := sorted(expected ^ layers.keys()):
        raise refuse(f"tensors of the head missing or not known: {', '.join(strange[:8])}")
    weight = torch.eye(width, dtype=torch.float64)
    bias = torch.zeros(width, dtype=torch.float64)
    try:
        for i in _LAYERS:
            matrix = layers[f"{i}.weight"].double()
            weight, bias = matrix @ weight, matrix @ bias + layers[f"{i}.bias"].double()
    except RuntimeError as error:
        raise refuse(f"layer {i} of the head does not take the one before ({error})") from error
    if weight.shape != (1, width) or bias.shape != (1,):
        raise refuse(f"the head gives {len(weight)} numbers, not one")
    if not bool(torch.isfinite(weight).all() and torch.isfinite(bias).all()):
        raise refuse("the head holds NaN or infinity")
    return {"weight": weight.float(), "bias": bias.float()}


def _vision_sizes(state: State) -> Any:
    """A ``BlipVisionConfig``; the ViT's layer norms have ε = 1e-6 (BLIP, models/vit.py)."""
    from transformers import BlipVisionConfig

    width, _, patch, _ = state["embeddings.patch_embedding.weight"].shape
    patches = state["embeddings.position_embedding"].shape[1] - 1
    return BlipVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["encoder.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=_depth(state, "encoder.layers."),
        num_attention_heads=_heads(width),
        image_size=math.isqrt(patches) * patch,
        patch_size=patch,
        layer_norm_eps=1e-6,
    )


def _text_sizes(state: State) -> Any:
    """A ``BlipTextConfig``, with cross attention; the rest is BERT's."""
    from transformers import BlipTextConfig

    words, width = state["embeddings.word_embeddings.weight"].shape
    return BlipTextConfig(
        vocab_size=words,
        hidden_size=width,
        encoder_hidden_size=state["encoder.layer.0.crossattention.self.key.weight"].shape[1],
        intermediate_size=len(state["encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=_depth(state, "encoder.layer."),
        num_attention_heads=_heads(width),
        max_position_embeddings=len(state["embeddings.position_embeddings.weight"]),
        layer_norm_eps=1e-12,
        is_decoder=True,
    )


def _depth(state: State, prefix: str) -> int:
    return len({key.split(".")[2] for key in state if key.startswith(prefix)})


def _heads(width: int) -> int:
    if width % _HEAD_WIDTH:
        raise ValueError(f"width {width} is no multiple of {_HEAD_WIDTH}, an attention head's")
    return width // _HEAD_WIDTH
