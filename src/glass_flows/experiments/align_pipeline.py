"""`glass-flows align` for a diffusers pipeline: from the hub, or from a local folder."""

from __future__ import annotations

import importlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from ..errors import InvalidArgument, MissingExtra, check_name
from ..models.shapes import Prompt, accepts
from ..models.shapes.clip import BUNDLED as SHAPES_CLIP
from ..models.shapes.pipeline import BUNDLED as SHAPES_PIPELINE
from ..models.shapes.pipeline import CALL
from ..rewards import Reward, as_reward
from ..runs import RunFolder, clear_run, started_by_torchrun
from ..steering import Shards
from .budget import chosen_for, sizes
from .pictures import Row, image_grid, make_folder

__all__ = [
    "SHAPES",
    "Judged",
    "PipelineReport",
    "align_pipeline",
    "load_pipeline",
    "load_reward",
    "of_shapes",
]

SHAPES = "shapes"
"""Name of the bundled pipeline; with ":" and a folder after it, of another of that world."""
_DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True)
class Judged:
    """Whether the judge of the Shapes world accepts each image, for every prompt.

    Attributes
    ----------
    plain : list of list of bool
        Of as many plain samples as there are particles.
    returned : list of list of bool
        Of the images of the run.
    """

    plain: list[list[bool]]
    returned: list[list[bool]]


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
    judged : Judged, optional
        For the model "shapes".
    """

    images: tuple[Path, ...]
    picture: Path
    results: Path
    rewards: list[list[float]]
    evaluations: int
    gradients: int
    biases: tuple[str, ...]
    judged: Judged | None = None


def of_shapes(model: str) -> bool:
    """Whether a model's name is that of a pipeline of the Shapes world."""
    return model.partition(":")[0] == SHAPES


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
        For one of the Shapes world "clip" is the CLIP of that world.
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
        if place is None and name == "clip" and of_shapes(model):
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
        "shapes" is the bundled one, "shapes:FOLDER" another of that world.
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
    MissingExtra
        diffusers is not installed.
    """
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("diffusers", "diffusers", f"the pipeline {model!r}") from error
    check_name("offload", offload, _OFFLOADS)
    home = device or ("cuda" if torch.cuda.is_available() else "cpu")
    name = dtype or ("bfloat16" if home.startswith("cuda") else "float32")
    kind = _DTYPES[check_name("dtype", name, _DTYPES)]
    place = (model.partition(":")[2] or str(SHAPES_PIPELINE)) if of_shapes(model) else model
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
    micro_batch: int | None = None,
    budget: str | None = None,
    overwrite: bool = False,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
    **options: Any,
) -> PipelineReport:
    """Steer a pipeline and write every image, a sheet of them and the figures into `out`.

    `out` is the folder of the run (:mod:`glass_flows.runs`): one that was stopped goes on where it
    was. Under torchrun the particles are dealt out to all processes, of which the first writes.
    `options` are those of :func:`glass_flows.steer_pipeline`. For "shapes" the sheet also holds as
    many plain samples, and a judge by image analysis says which images meet their prompt.

    Parameters
    ----------
    micro_batch : int, optional
        Rows that the network and the reward see at a time; with the same number the results have
        the same bits for any number of processes.
    budget : str, optional
        A time ("2min") or a number of network evaluations ("2000") for the run, instead of
        `particles`, `transitions` and `steps`; see :mod:`.budget`.
    overwrite : bool
        Throw away another run that is in `out`.
    """
    from ..integrations.diffusers import can_record, steer_pipeline

    if not prompts:
        raise InvalidArgument("give at least one --prompt")
    demands: list[Prompt] = []
    if of_shapes(model):
        demands = [Prompt.parse(text) for text in prompts]
        prompts = [str(demand) for demand in demands]
        options = {**CALL, "decode_batch": None, **options}
    scored = load_reward(reward, model=model, device=loading.get("device"))
    folder = make_folder(out)
    dealt_out = micro_batch is not None or started_by_torchrun()
    shards = Shards(micro_batch) if dealt_out else None
    first = shards is None or shards.rank == 0
    options = {"method": "steering", "seed": 0, **options}
    if budget is not None and dealt_out:
        raise InvalidArgument("--budget measures one process: not under torchrun, no --micro-batch")
    pipe = load_pipeline(model, announce=announce, **loading)
    asked: list[Any] = list(prompts)
    if type(pipe).__name__ == "DiTPipeline":
        asked = [int(p) if p.isdigit() else pipe.get_label_ids(p)[0] for p in prompts]
    if budget is not None:

        def trial(*numbers: int) -> int:
            given = options | sizes(*numbers)
            found = steer_pipeline(pipe, asked, scored, progress=False, **given)
            return found.result.costs.network_evaluations

        options |= chosen_for(budget, folder, trial, announce).sizes
    job = {
        "model": model,
        "prompts": list(prompts),
        "reward": reward,
        "method": options["method"],
        "seed": options["seed"],
        "settings": {**options, **loading, "micro_batch": micro_batch},
    }
    if overwrite:
        if first:
            clear_run(folder)
        if shards is not None:
            shards.total(0)  # the others wait until it is gone
    record = RunFolder(folder, job, title="; ".join(prompts), writes=first)
    keeps = can_record(pipe, options["method"])
    with record.failures():
        result = steer_pipeline(
            pipe,
            asked,
            scored,
            progress=progress if first else False,
            record=record if keeps else None,
            shards=shards,
            **options,
        )
    N = result.rewards.shape[1]
    files = result.save(folder) if first else []
    names = [file.name for file in files]
    record.finish(result.result, [names[i : i + N] for i in range(0, len(names), N)])
    picture = folder / "best-first.png"
    judged = None
    if demands and first:
        plain = _plain(pipe, asked, scored, progress, options)
        judged = Judged(_verdicts(plain, demands), _verdicts(result, demands))
        sheet = image_grid(
            [
                _row(f"{prompt}: {name}", shown.images[i], shown.rewards[i], accepted[i])
                for i, prompt in enumerate(prompts)
                for name, shown, accepted in (
                    ("plain", plain, judged.plain),
                    (options["method"], result, judged.returned),
                )
            ]
        )
    else:
        sheet = _sheet(result.images, result.rewards)
    costs = result.result.costs
    found = PipelineReport(
        images=tuple(files),
        picture=picture,
        results=folder / "results.json",
        rewards=result.rewards.tolist(),
        evaluations=costs.network_evaluations,
        gradients=costs.network_gradients,
        biases=getattr(result.result, "biases", ()),
        judged=judged,
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
    if judged is not None:
        data["judge_accepts"] = asdict(judged)
    if first:
        sheet.save(picture)
        found.results.write_text(json.dumps(data, indent=2) + "\n", encoding="utf-8")
    return found


def _plain(
    pipe: Any, asked: list[Any], reward: Reward, progress: bool | None, options: dict[str, Any]
) -> Any:
    """Samples of the ODE with the options that a call of the pipeline knows, best of N or not."""
    from ..integrations.diffusers import steer_pipeline

    kept = {"particles", "seed", "start", "max_batch", "decode_batch", *CALL}
    steps = options["transitions"] * options["steps"]
    return steer_pipeline(
        pipe,
        asked,
        reward,
        method="best-of-n",
        transitions=1,
        steps=steps,
        progress=progress,
        **{name: value for name, value in options.items() if name in kept},
    )


def _verdicts(result: Any, demands: Sequence[Prompt]) -> list[list[bool]]:
    return [
        accepts([np.asarray(image.convert("RGB")) for image in row], [demand] * len(row))
        for row, demand in zip(result.images, demands)
    ]


def _row(
    caption: str, images: list[Image.Image], rewards: torch.Tensor, accepted: list[bool]
) -> Row:
    """The images of one prompt, best first."""
    order = rewards.argsort(descending=True).tolist()
    arrays = np.stack([np.asarray(images[i].convert("RGB")) for i in order])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
    return Row(caption, pixels, [accepted[i] for i in order])


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
