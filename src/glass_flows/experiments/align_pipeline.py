"""`glass-flows align` for a diffusers pipeline: from the hub, or from a local folder."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidArgument, check_name
from ..models.shapes import Prompt, accepts
from ..models.shapes.clip import BUNDLED as SHAPES_CLIP
from ..models.shapes.pipeline import BUNDLED as SHAPES_PIPELINE
from ..models.shapes.pipeline import CALL
from ..rewards import Reward, as_reward
from .pictures import make_folder

__all__ = ["SHAPES", "PipelineReport", "align_pipeline", "load_pipeline", "load_reward"]

SHAPES = "shapes"
"""Name of the bundled pipeline."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True)
class PipelineReport:
    """What was written, and the figures of the run.

    Attributes
    ----------
    rewards : list of list of float
        For every prompt those of its particles.
    evaluations, gradients : int
        Forward and backward passes of the network in all.
    biases : tuple of str
        Reasons for which the weighted particles miss the target; empty for exact weights.
    accepted : list of list of bool
        For the model "shapes": whether the judge accepts each image.
    """

    images: tuple[Path, ...]
    picture: Path
    results: Path
    rewards: list[list[float]]
    evaluations: int
    gradients: int
    biases: tuple[str, ...]
    accepted: list[list[bool]]


def load_reward(text: str, *, model: str = "", device: str | None = None) -> Reward:
    """A reward by its name, or a function of your own.

    Parameters
    ----------
    text : str
        A name of :data:`~glass_flows.integrations.rewards.PRETRAINED`; with ":" and a hub id or a
        folder after it, weights of your own of that kind. Or "module:function": a function of
        images (B, 3, H, W) in [0, 1], or a Reward. The module is looked for in the current folder
        first. Its code is run: name only your own.
    model : str
        For "shapes", "clip" is the CLIP of that world.
    device : str, optional
        For a pre-trained reward.

    Raises
    ------
    InvalidArgument, UnknownName, MissingExtra
        There is no such reward, or it cannot be loaded.
    """
    from ..integrations.rewards import PRETRAINED, pretrained_reward

    name, _, attribute = text.partition(":")
    if name in PRETRAINED:
        place: str | Path | None = attribute or None
        if place is None and (name, model) == ("clip", SHAPES):
            place = SHAPES_CLIP
        return pretrained_reward(name, place, device=device)
    if not attribute:
        check_name("reward", name, (*PRETRAINED, "module:function"))
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InvalidArgument(
            f"cannot import the reward's module {name!r}: {error}. --reward for a pipeline is "
            f"{', '.join(PRETRAINED)}, or 'module:function' of your own"
        ) from error
    finally:
        sys.path.remove(here)
    if not hasattr(module, attribute):
        public = [a for a in vars(module) if not a.startswith("_")]
        check_name(f"reward in module {name}", attribute, public)
    return as_reward(getattr(module, attribute))


def load_pipeline(
    model: str,
    *,
    device: str | None = None,
    dtype: str | None = None,
    offload: str = "none",
    revision: str | None = None,
    lora: str | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> Any:
    """A diffusers pipeline by hub id or local folder, safetensors only, on its device.

    Parameters
    ----------
    model : str
        "shapes" is the bundled one.
    device : str, optional
        "cuda" where there is one, else "cpu".
    dtype : "float32", "bfloat16" or "float16", optional
        bfloat16 on CUDA, else float32.
    offload : "none", "model" or "sequential"
        diffusers' CPU offloading.
    lora : str, optional
        Hub id or path of LoRA weights.

    Raises
    ------
    InvalidArgument
        Nothing could be loaded from there; the reason is named.
    """

    import diffusers  # isort: skip

    check_name("offload", offload, _OFFLOADS)
    home = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = dtype or ("bfloat16" if home.startswith("cuda") else "float32")
    kind = _DTYPES[check_name("dtype", name, _DTYPES)]
    place = str(SHAPES_PIPELINE) if model == SHAPES else model
    local = os.path.isdir(place)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            place,
            dtype=kind,
            revision=revision,
            use_safetensors=True,
            local_files_only=local,
        )
        if lora is not None:
            pipe.load_lora_weights(lora)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        step = (
            "the folder must hold a diffusers pipeline, model_index.json and safetensors"
            if local
            else "check the id's spelling and the network (HF_HUB_OFFLINE unset, a token for gated "
            "models), or download the model and give its folder"
        )
        raise InvalidArgument(
            f"cannot load a diffusers pipeline from {model!r}: {error} ({step})"
        ) from error
    except (MemoryError, torch.OutOfMemoryError) as error:
        raise _too_large(model) from error
    announce(memory_line(pipe, home, offload))
    try:
        if offload == "model":
            pipe.enable_model_cpu_offload(device=home)
        elif offload == "sequential":
            pipe.enable_sequential_cpu_offload(device=home)
        else:
            pipe.to(home)
    except torch.OutOfMemoryError as error:
        raise _too_large(model) from error
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
    if device.startswith("cuda"):
        free = torch.cuda.mem_get_info(torch.device(device))[0]
    else:
        free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    line = f"weights: {needed / 1e9:.2f} GB on {device}, {free / 1e9:.1f} GB free there"
    if needed > 0.8 * free:
        line += "; this may not fit: try --offload model, --dtype bfloat16 or --max-batch 1"
    return line


def align_pipeline(
    out: str | os.PathLike[str],
    *,
    model: str,
    prompts: Sequence[str],
    reward: str,
    loading: dict[str, Any],
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> PipelineReport:
    """Steer a pipeline and write every image, a sheet of them and the figures into `out`.

    `options` are those of :func:`glass_flows.steer_pipeline`. For the model "shapes" a judge by
    image analysis says whether each image meets its prompt.
    """
    from ..integrations.diffusers import steer_pipeline

    if not prompts:
        raise InvalidArgument("give at least one --prompt")
    demands: list[Prompt] = []
    if model == SHAPES:
        demands = [Prompt.parse(text) for text in prompts]
        prompts = [str(demand) for demand in demands]
        options = {**CALL, "decode_batch": None, **options}
    scored = load_reward(reward, model=model, device=loading.get("device"))
    folder = make_folder(out)
    pipe = load_pipeline(model, announce=announce, **loading)
    asked: list[Any] = list(prompts)
    if type(pipe).__name__ == "DiTPipeline":
        asked = [int(p) if p.isdigit() else pipe.get_label_ids(p)[0] for p in prompts]
    result = steer_pipeline(pipe, asked, scored, progress=progress, **options)
    files = result.save(folder)
    picture = folder / "best-first.png"
    _sheet(result.images, result.rewards).save(picture)
    costs = result.result.costs
    found = PipelineReport(
        images=tuple(files),
        picture=picture,
        results=folder / "results.json",
        rewards=result.rewards.tolist(),
        evaluations=costs.network_evaluations,
        gradients=costs.network_gradients,
        biases=getattr(result.result, "biases", ()),
        accepted=[
            accepts([np.asarray(image.convert("RGB")) for image in row], [demand] * len(row))
            for row, demand in zip(result.images, demands)
        ],
    )
    weights = getattr(result.result, "log_weights", None)
    evidence = getattr(result.result, "log_evidence", None)
    data = {
        "model": model,
        "prompts": list(prompts),
        "reward": reward,
        "settings": dict(result.settings),
        "rewards": found.rewards,
        "log_weights": None if weights is None else weights.tolist(),
        "log_evidence": None if evidence is None else evidence.tolist(),
        "network_evaluations": costs.network_evaluations,
        "network_gradients": costs.network_gradients,
        "reward_evaluations": costs.reward_evaluations,
        "decodes": costs.decodes,
        "biases": list(found.biases),
    }
    if demands:
        data["judge_accepts"] = found.accepted
    found.results.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return found


def _sheet(images: list[list[Image.Image]], rewards: torch.Tensor) -> Image.Image:
    """One row per prompt, best image first, at most 256 pixels a side each."""
    first = images[0][0]
    scale = min(1.0, 256 / max(first.size))
    size = (max(1, round(first.width * scale)), max(1, round(first.height * scale)))
    sheet = Image.new("RGB", (size[0] * len(images[0]), size[1] * len(images)), "white")
    for row, (line, values) in enumerate(zip(images, rewards)):
        for column, i in enumerate(values.argsort(descending=True).tolist()):
            tile = line[i].convert("RGB").resize(size)
            sheet.paste(tile, (column * size[0], row * size[1]))
    return sheet
