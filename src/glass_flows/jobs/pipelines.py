"""A diffusers pipeline from the hub or a folder, on its device."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

import torch

from ..errors import InvalidArgument, MissingExtra
from ..progress import without_widgets
from ..whole import load_parts, quiet
from .costs import free_bytes
from .job import Loading


def load_pipeline(
    name: str,
    loading: Loading,
    place: str | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Any:
    """A pipeline, safetensors only.

    Parameters
    ----------
    name : str
        Hub id or local folder, for messages too.
    place : str, optional
        Where it is, if the name does not say so.

    Raises
    ------
    InvalidArgument
        Nothing could be loaded from there; the reason is named.
    MissingExtra
        diffusers is not installed.
    """
    place = place or name
    without_widgets()
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("diffusers", "diffusers", f"the pipeline {name!r}") from error
    home = loading.home
    dtype = loading.dtype or ("bfloat16" if home.startswith("cuda") else "float32")
    local = os.path.isdir(place)
    given = {"dtype": getattr(torch, dtype), "local_files_only": True}
    kind = diffusers.DiffusionPipeline
    try:
        if not local:
            place = str(kind.download(place, revision=loading.revision, use_safetensors=True))
        parts = load_parts(kind, place, **given)
        with quiet():
            pipe = kind.from_pretrained(place, use_safetensors=True, **given, **parts)
        if not local:  # else the name of a snapshot, which says nothing of the model
            pipe.register_to_config(_name_or_path=name)
    except (OSError, ValueError, AttributeError, ImportError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise _too_large(name) from error
        step = (
            "the folder must hold a diffusers pipeline, model_index.json and safetensors"
            if local
            else "check the id's spelling and the network (HF_HUB_OFFLINE unset, a token for gated "
            "models), or download the model and give its folder"
        )
        raise InvalidArgument(
            f"cannot load a diffusers pipeline from {name!r}: {error} ({step})"
        ) from error
    except MemoryError as error:
        raise _too_large(name) from error
    if loading.lora is not None:
        try:
            pipe.load_lora_weights(loading.lora)
        except Exception as error:  # whatever the loaders of others come upon
            into = type(pipe).__name__
            raise InvalidArgument(
                f"cannot load LoRA weights from {loading.lora!r} into {into}: {error}"
            ) from error
    announce(memory_line(pipe, home, loading.offload))
    try:
        if loading.offload == "none":
            pipe.to(home)
        elif loading.offload == "model":
            pipe.enable_model_cpu_offload(device=home)
        else:
            pipe.enable_sequential_cpu_offload(device=home)
    except torch.OutOfMemoryError as error:
        raise _too_large(name) from error
    return pipe


def _too_large(model: str) -> InvalidArgument:
    return InvalidArgument(
        f"{model!r} does not fit into memory: try --offload model (or sequential, slower), "
        "--dtype bfloat16, or a smaller model"
    )


def memory_line(pipe: Any, device: str, offload: str) -> str:
    """What the weights need where they will run, beside what is free, as a sentence."""
    modules = [m for m in pipe.components.values() if isinstance(m, torch.nn.Module)]
    sizes = [
        sum(t.numel() * t.element_size() for t in (*m.parameters(), *m.buffers())) for m in modules
    ]
    needed = max(sizes) if offload == "model" else 0 if offload == "sequential" else sum(sizes)
    free = free_bytes(torch.device(device))
    line = f"weights: {needed / 1e9:.2f} GB on {device}, {free / 1e9:.1f} GB free there"
    if needed > 0.8 * free:
        line += "; this may not fit: try --offload model, --dtype bfloat16 or --max-batch 1"
    return line
