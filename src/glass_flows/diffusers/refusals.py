"""Where a pipeline would silently do the wrong thing with GLASS: said before anything runs.

A pipeline's loop knows timesteps, not transitions. What it counts, compares or blends by timestep
is wrong inside a transition, and there is no argument by which it would tell its scheduler. So
:func:`check_call`, called by `set_timesteps`, looks at the call that it is made from.
"""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

import torch
from diffusers import DiffusionPipeline

from ..errors import InvalidArgument, check_number

__all__ = ["check_call", "check_pipeline", "network_of", "refuse_eta", "rounds_its_clock"]

# Pipelines that replace or require a certain scheduler, or keep its state themselves.
_PIPELINES = {
    "AnyFlowFARPipeline": "its network is asked for an interval, not for a time",
    "AnyFlowPipeline": "its network is asked for an interval, not for a time",
    "BriaPipeline": "it decides by its scheduler's type",
    "Cosmos2TextToImagePipeline": "it preconditions by its scheduler's sigmas, and changes them",
    "Cosmos2VideoToWorldPipeline": "it preconditions by its scheduler's sigmas, and changes them",
    "Cosmos2_5_PredictBasePipeline": "it tells its network the scheduler's sigmas itself",
    "Cosmos2_5_TransferPipeline": "it tells its network the scheduler's sigmas itself",
    "CosmosTextToWorldPipeline": "it turns back its scheduler's counter",
    "CosmosVideoToWorldPipeline": "it turns back its scheduler's counter",
    "EasyAnimateControlPipeline": "it decides by its scheduler's type",
    "EasyAnimateInpaintPipeline": "it decides by its scheduler's type",
    "EasyAnimatePipeline": "it decides by its scheduler's type",
    "HunyuanImagePipeline": "its mean-flow networks are asked for an interval, not for a time",
    "HunyuanImageRefinerPipeline": "its networks are asked for an interval, not for a time",
    "LEditsPPPipelineStableDiffusion": "it inverts its own scheduler",
    "LEditsPPPipelineStableDiffusionXL": "it inverts its own scheduler",
    "LTXConditionPipeline": "it steps single tokens by sigmas of their own",
    "LongCatAudioDiTPipeline": "it replaces its scheduler without saying so",
    "SanaSprintImg2ImgPipeline": "it is distilled to few steps: its network is no denoiser",
    "SanaSprintPipeline": "it is distilled to few steps: its network is no denoiser",
    "StableCascadeDecoderPipeline": "it decides by its scheduler's type",
    "StableCascadePriorPipeline": "it decides by its scheduler's type",
}
_FEW_STEPS = re.compile(r"schnell|turbo|lightning|lcm|sprint|hyper-?sd", re.IGNORECASE)
_CACHES = "FirstBlockCacheConfig"  # looks at what it caches; the others count on ordered steps
_ROUNDING = ("Flux", "Qwen", "Chroma", "HiDream", "Bria", "OmniGen", "Lumina", "LongCat", "Ovis")


def check_pipeline(pipe: Any) -> None:
    """Raise :class:`InvalidArgument` if this pipeline cannot be sampled rightly by a table."""
    if not isinstance(pipe, DiffusionPipeline):
        raise InvalidArgument(
            f"expected a diffusers pipeline, got {type(pipe).__name__}. Modular pipelines count "
            "guidance by network steps and are not supported: use the pipeline class itself"
        )
    for kind in type(pipe).__mro__:
        why = _PIPELINES.get(kind.__name__)
        if why is not None:
            raise InvalidArgument(f"{kind.__name__} is not supported: {why}")
    if not hasattr(getattr(pipe, "scheduler", None), "config"):
        raise InvalidArgument(f"{type(pipe).__name__} has no scheduler that GLASS could replace")
    _warn_if_distilled(pipe)


def _warn_if_distilled(pipe: Any) -> None:
    """Models distilled to few steps, told by their configuration or by the name they came from."""
    network = getattr(network_of(pipe), "config", {})
    schnell = (
        type(pipe).__name__.startswith("Flux")
        and network.get("guidance_embeds") is False
        and pipe.scheduler.config.get("use_dynamic_shifting") is False
    )
    name = str(pipe.name_or_path or "")
    if schnell or _FEW_STEPS.search(os.path.basename(name.rstrip("/"))):
        warnings.warn(
            f"{name or 'this pipeline'} looks distilled to few steps (schnell, turbo, ...): its "
            "network is no denoiser, and what GLASS makes of it samples nothing in particular",
            UserWarning,
            stacklevel=_outside(),
        )


def _outside() -> int:
    """The `stacklevel` at which a warning of the calling function points out of this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("glass_flows."):
        frame, level = frame.f_back, level + 1
    return level


def network_of(pipe: Any) -> Any:
    """Its transformer or UNet; None if it has neither."""
    return getattr(pipe, "transformer", None) or getattr(pipe, "unet", None)


def rounds_its_clock(pipe: Any) -> str | None:
    """The dtype to which this pipeline rounds timesteps, None where it keeps float32."""
    dtype = getattr(network_of(pipe), "dtype", None)
    if dtype not in (torch.bfloat16, torch.float16):
        return None
    casts = type(pipe).__name__.startswith(_ROUNDING)
    return str(dtype).removeprefix("torch.") if casts else None


def check_call(steps: int) -> None:
    """Look at the pipeline call, if there is one, for what is wrong with M = `steps` evaluations.

    Raises :class:`InvalidArgument`, which says what to do instead.
    """
    frame = inspect.currentframe()
    while frame is not None:
        pipe = frame.f_locals.get("self")
        if isinstance(pipe, DiffusionPipeline) and frame.f_code.co_name == "__call__":
            _check_arguments(pipe, frame.f_locals, steps)
            return
        frame = frame.f_back


def refuse_eta(eta: Any) -> None:
    """Raise :class:`InvalidArgument` for DDIM's η, which is an option of the scheduler here."""
    if eta is not None and check_number("eta", eta, "lie in [0, 1]", lambda v: 0.0 <= v <= 1.0):
        raise InvalidArgument(
            f"eta={eta!r} is said by the scheduler here: make it with rho='ddim:{eta:g}' and "
            "steps=1, and leave eta out"
        )


def _check_arguments(pipe: Any, given: Mapping[str, Any], steps: int) -> None:
    check_pipeline(pipe)
    refuse_eta(given.get("eta"))
    if steps == 1:  # every evaluation is a transition, and the times fall: all is as usual
        return
    name = type(pipe).__name__
    for argument in ("denoising_end", "denoising_start"):
        if given.get(argument) is not None:
            raise InvalidArgument(
                f"{argument} cuts the timesteps by their value, which lies inside a transition: "
                "use steps=1, or image-to-image with a strength"
            )
    if given.get("skip_guidance_layers") is not None:
        raise InvalidArgument(
            "skip_guidance_layers counts its window in network steps, of which there are "
            f"{steps} per transition here: use steps=1, or leave it out"
        )
    mask = given.get("mask_image", given.get("mask"))
    network = network_of(pipe)
    channels = getattr(getattr(network, "config", None), "in_channels", 4)
    if mask is not None and "Inpaint" in name and channels != 9:  # 9: it takes the mask as input
        raise InvalidArgument(
            f"{name} blends the known region into the network's input, which inside a transition "
            "is not the sampler's state: use steps=1"
        )
    if getattr(network, "is_cache_enabled", False):
        cache = type(getattr(network, "_cache_config", None)).__name__
        if cache != _CACHES:
            raise InvalidArgument(
                f"{cache} reuses features from one timestep to the next, and these times go back "
                "and forth: call disable_cache(), or use steps=1"
            )
