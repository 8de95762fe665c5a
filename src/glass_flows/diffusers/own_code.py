"""What the code of a pipeline without an adapter says of its pictures, before anything runs."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import fields
from typing import Any

from diffusers.utils import BaseOutput
from torch import Tensor

from ..errors import InvalidArgument
from .decoding import decode_latents, unit_range
from .parts import code_of, kinds_of, network_of

_OTHERWISE = ("_unpack_latents", "running_mean")  # of code that does more than to scale
_AUTOENCODERS = ("vae", "vqvae", "movq", "vqgan")


def returned_fields(pipe: Any) -> set[str]:
    """Names of what it returns: "images", or "frames" of a video; "images" if it does not say."""
    for kind in kinds_of(pipe):
        found = [
            thing
            for name, thing in vars(sys.modules[kind.__module__]).items()
            if name.endswith("PipelineOutput") and issubclass(thing, BaseOutput)
        ]
        if found:
            return {field.name for output in found for field in fields(output)}
    return {"images"}


def own_decoder(pipe: Any, makes_images: bool) -> Callable[[Tensor], Tensor]:
    """From clean states to its images, where that is to scale them for its autoencoder.

    Pixels need none. What is read of an autoencoder's configuration (statistics, a shift, whether
    it overflows) differs from pipeline to pipeline, and is what the pipeline's own code reads.

    Raises
    ------
    InvalidArgument
        It is more than that, and cannot be told.
    """
    code = code_of(pipe)
    vae, network = pipe.components.get("vae"), network_of(pipe)
    sizes = {} if vae is None else vae.config
    simple = makes_images and not any(word in code for word in _OTHERWISE)
    if simple and "latent_channels" in sizes and "scaling_factor" in sizes:
        reads = {
            "shift": "shift_factor" in code,
            "statistics": "latents_mean" in code,
            "upcast": "needs_upcasting" in code,
        }
        return lambda z: decode_latents(vae, _shaped(pipe, z, sizes["latent_channels"]), **reads)
    channels = network.config.get("in_channels")
    if simple and channels in (1, 3) and not set(_AUTOENCODERS) & set(pipe.components):
        return lambda z: unit_range(_shaped(pipe, z, channels))
    raise needs_decode(pipe, "its latents")


def _shaped(pipe: Any, z: Tensor, channels: int) -> Tensor:
    if z.ndim != 4 or z.shape[1] != channels:
        raise needs_decode(pipe, f"its latents {tuple(z.shape)}")
    return z


def needs_decode(pipe: Any, what: str) -> InvalidArgument:
    """What is to be given where its code does not tell."""
    return InvalidArgument(
        f"{type(pipe).__name__} has no adapter, and {what} are not simply those of its autoencoder "
        "or its images: pass decode=, a function from clean latents to images (B, 3, H, W) or "
        "videos (B, F, 3, H, W) in [0, 1]; of a video also to a frame or a sheet of them"
    )
