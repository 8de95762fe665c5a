"""One process of a run that is dealt out."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist
from safetensors.torch import save_file

from glass_flows import Guidance, Twist, beam, greedy, refine, steer
from glass_flows.jobs import digits_denoiser
from glass_flows.rewards import ClassReward
from glass_flows.runs import RunFolder
from glass_flows.steering import Shards
from glass_flows.worlds.digits import IMAGE, load_digits_classifier


def main(out: Path, rank: int, count: int, options: dict) -> None:
    torch.set_num_threads(1)
    if count > 1:
        store = dist.FileStore(str(out / "store"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    shards = Shards(options.pop("micro_batch", 2))
    if "twist" in options:
        options["twist"] = Twist(**options["twist"])
    if "guidance" in options:
        options["guidance"] = Guidance(**options["guidance"])
    folder = RunFolder(out / "run", {"seed": 5}, writes=rank == 0)
    call = {"steer": steer, "beam": beam, "greedy": greedy, "refine": refine}[
        options.pop("call", "steer")
    ]
    result = call(
        digits_denoiser(),
        ClassReward(load_digits_classifier("reward"), 8),
        shape=IMAGE,
        seed=5,
        shards=shards,
        record=folder,
        progress=False,
        **{"particles": 8, "transitions": 4, "steps": 1, "rho": 0.4, "scale": 4.0, **options},
    )
    folder.finish(result)
    tensors = {k: v.contiguous() for k, v in vars(result).items() if isinstance(v, torch.Tensor)}
    save_file(tensors, out / f"{rank}.safetensors")
    about = {"exchanged": shards.exchanged, "gathered": shards.gathered, **asdict(result.costs)}
    (out / f"{rank}.json").write_text(json.dumps(about))
    if count > 1:
        dist.destroy_process_group()
