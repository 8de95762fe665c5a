"""What a pipeline is made of: its network, the code of its classes, its caches, its clock."""

from __future__ import annotations

import inspect
import re
from contextlib import suppress
from functools import cache
from typing import Any

import torch
from diffusers import DiffusionPipeline

_CACHING = re.compile(r"cache|fbc_|pyramid_attention")  # names of hooks
_ROUNDING = ("Flux", "Qwen", "Chroma", "HiDream", "Bria", "OmniGen", "Lumina", "LongCat", "Ovis")


def network_of(pipe: Any) -> Any:
    """Its transformer or UNet; None if it has neither."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def networks_of(pipe: Any) -> list[torch.nn.Module]:
    """All that may denoise: some pipelines have experts, each for a part of the way."""
    parts = pipe.components.items()
    named = [part for name, part in parts if name.startswith(("transformer", "unet"))]
    return [part for part in named if isinstance(part, torch.nn.Module)]


def usual_size(pipe: Any) -> tuple[int | None, int]:
    """The side of the latents that it draws by default, if it says so, and pixels for each."""
    side = getattr(pipe, "default_sample_size", None)
    return side if isinstance(side, int) else None, getattr(pipe, "vae_scale_factor", 8)


def rounds_its_clock(pipe: Any) -> str | None:
    """The dtype to which this pipeline rounds timesteps, None where it keeps float32."""
    dtype = getattr(network_of(pipe), "dtype", None)
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    casts = type(pipe).__name__.startswith(_ROUNDING)
    return str(dtype).removeprefix("torch.") if casts else None


def kinds_of(pipe: Any) -> list[type]:
    """A pipeline's class and those it inherits from, as far as they are pipelines of their own."""
    own = [kind for kind in type(pipe).__mro__ if issubclass(kind, DiffusionPipeline)]
    return own[: own.index(DiffusionPipeline)]


def code_of(pipe: Any) -> str:
    """The source of its classes; nothing of one that was typed in by hand."""
    return "".join(map(_source, kinds_of(pipe)))


@cache
def _source(kind: type) -> str:
    """Looked for once: the file is parsed for it, which takes up to a fifth of a second."""
    with suppress(OSError, TypeError):
        return inspect.getsource(kind)
    return ""


def caches_of(network: Any) -> list[str]:
    """Caches on a network, by the names of their configurations, or of their hooks without one."""
    if getattr(network, "is_cache_enabled", False):
        return [type(network._cache_config).__name__]
    modules = network.modules() if isinstance(network, torch.nn.Module) else ()
    hooked = (vars(module).get("_diffusers_hook") for module in modules)
    names = {name for registry in hooked if registry is not None for name in registry.hooks}
    return sorted(name for name in names if _CACHING.search(name))
