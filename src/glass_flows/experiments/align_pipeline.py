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

import torch
from PIL import Image

from ..errors import InvalidArgument, check_name
from ..rewards import Reward, as_reward
from .pictures import make_folder

__all__ = ["PipelineReport", "align_pipeline", "load_pipeline", "load_reward"]

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
    """

    images: tuple[Path, ...]
    picture: Path
    results: Path
    rewards: list[list[float]]
    evaluations: int
    gradients: int
    biases: tuple[str, ...]


def load_reward(text: str) -> Reward:
    """The reward named "module:function": a function of images (B, 3, H, W) in [0, 1], or a Reward.

    The module is looked for in the current folder first. Its code is run: name only your own.
    """
    name, _, attribute = text.partition(":")
    if not name or not attribute:
        raise InvalidArgument(f"--reward must be 'module:function' for a pipeline, got {text!r}")
    here = os.getcwd()
    sys.path.insert(0, here)
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        raise InvalidArgument(f"cannot import the reward's module {name!r}: {error}") from error
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
    local = os.path.isdir(model)
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(
            model,
            dtype=kind,
            revision=revision,
            use_safetensors=True,
            local_files_only=local,
        )
        if lora is not None:
            pipe.load_lora_weights(lora)
    except (OSError, ValueError, AttributeError, ImportError) as error:
        raise InvalidArgument(
            f"cannot load a diffusers pipeline from {model!r}: {error}"
        ) from error
    announce(memory_line(pipe, home, offload))
    if offload == "model":
        pipe.enable_model_cpu_offload(device=home)
    elif offload == "sequential":
        pipe.enable_sequential_cpu_offload(device=home)
    else:
        pipe.to(home)
    return pipe


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

    `options` are those of :func:`glass_flows.steer_pipeline`.
    """
    from ..integrations.diffusers import steer_pipeline

    if not prompts:
        raise InvalidArgument("give at least one --prompt")
    scored = load_reward(reward)
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
