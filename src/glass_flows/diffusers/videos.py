"""Videos of pipelines without an adapter: from clean latents to frames, one at a time."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from torch import Tensor

from ..errors import check_count
from .chunks import replaced, rows_of
from .decoding import latent_statistics, unit_range
from .own_code import needs_decode
from .parts import code_of

_STATISTICS = re.compile(r"latents / latents_std \+ latents_mean")  # with latents_std = 1 / std
_PACKED = ("_unpack_latents(", "_denormalize_latents(", "latent_num_frames")
_RATE = 16.0  # frames a second, Wan's, where a pipeline does not say


def own_video_decoder(
    pipe: Any, takes: Mapping[str, Any], call: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """From clean states to videos (B, F, 3, height, width) in [0, 1] or so, as its own code does.

    That of Wan (latents in the statistics of the autoencoder) and of LTX (the same, packed to
    tokens) is known.

    Raises
    ------
    InvalidArgument
        Its own is another: give `decode`.
    """
    code, vae = code_of(pipe), pipe.components.get("vae")
    config = {} if vae is None else vae.config
    if _STATISTICS.search(code) and "latents_std" in config:
        return lambda z: _frames(vae, _spread(vae, z))
    if all(word in code for word in _PACKED) and "audio" not in code:
        return _packed_decoder(pipe, takes, call)
    raise needs_decode(pipe, "the latents of its videos")


def _spread(vae: Any, z: Tensor) -> Tensor:
    """Latents of unit variance as the autoencoder has them."""
    mean, std = latent_statistics(vae, z)
    return z * std + mean


def _packed_decoder(
    pipe: Any, takes: Mapping[str, Any], call: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """LTX's, from tokens (B, S, D); its autoencoder may be told a time, at which it adds noise."""
    vae, timed = pipe.vae, pipe.vae.config.timestep_conditioning
    time = argument("decode_timestep", takes, call)
    if timed and (time != 0.0 or argument("decode_noise_scale", takes, call) not in (None, 0.0)):
        raise needs_decode(pipe, "what it decodes is noised first (decode_timestep): its latents")
    frames, height, width = (
        check_count(name, argument(name, takes, call)) for name in ("num_frames", "height", "width")
    )
    sizes = (
        (frames - 1) // pipe.vae_temporal_compression_ratio + 1,
        height // pipe.vae_spatial_compression_ratio,
        width // pipe.vae_spatial_compression_ratio,
    )
    patches = pipe.transformer_spatial_patch_size, pipe.transformer_temporal_patch_size

    def decode(z: Tensor) -> Tensor:
        laid_out = pipe._unpack_latents(z, *sizes, *patches)
        scaled = pipe._denormalize_latents(
            laid_out, vae.latents_mean, vae.latents_std, vae.config.scaling_factor
        )
        return _frames(vae, scaled, *([z.new_zeros(len(z), dtype=vae.dtype)] if timed else []))

    return decode


def _frames(vae: Any, latents: Tensor, *rest: Tensor) -> Tensor:
    video = vae.decode(latents.to(vae.dtype), *rest, return_dict=False)[0]
    return unit_range(video).transpose(1, 2)


def argument(name: str, takes: Mapping[str, Any], call: Mapping[str, Any]) -> Any:
    """What a pipeline is called with, or its default; None if it takes no such argument."""
    return call.get(name, takes[name].default if name in takes else None)


def frame_rate(takes: Mapping[str, Any], call: Mapping[str, Any]) -> float:
    """Frames a second: what the pipeline is told of it, else 16."""
    told = (argument(name, takes, call) for name in ("frame_rate", "fps"))
    return next((float(one) for one in told if isinstance(one, (int, float)) and one > 0), _RATE)


def decoding_one(vae: Any, row: Callable[[], int | None]) -> AbstractContextManager[None]:
    """Within, an autoencoder decodes a single row of a batch wherever `row` says which.

    So a pipeline that decodes all of its videos at once, for which there may be no memory, shows
    one of them, by which is seen whether it decodes as we do.
    """
    whole = vae.decode

    def decode(z: Tensor, *args: Any, **kwargs: Any) -> Any:
        if (at := row()) is None:
            return whole(z, *args, **kwargs)
        rest, named = (rows_of(held, [at], len(z)) for held in (args, kwargs))
        return whole(z[at : at + 1], *rest, **named)

    return replaced(vae, "decode", decode)
