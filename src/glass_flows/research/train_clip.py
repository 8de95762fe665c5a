"""Trains the CLIP of :mod:`glass_flows.worlds.shapes`, the reward that steering there maximises.

Contrastive as the original (Radford et al. 2021, arXiv 2103.00020), and every picture also against
sentences that contradict its own in one word: without these a CLIP reads a bag of words
(Yuksekgonul et al. 2023, arXiv 2210.01936). It shares nothing with the judge but the world.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..folders import alone_in_out
from ..jobs.job import device_named
from ..training import Loss, TrainingTask, checkpoints, fingerprint
from ..worlds.shapes import Prompt, contradict, holds
from ..worlds.shapes.clip import build_clip, build_clip_processor, load_clip
from ..worlds.shapes.pipeline import clip_tokenizer, tokens
from .train_shapes import draw_scenes, half_precision, matmul_attention, pixels

__all__ = ["train_clip"]

BATCH, WRONG = 128, 2
_NOISE = 0.15  # largest standard deviation of the noise that pictures get, of a range of 2


@alone_in_out
def train_clip(
    out: str | Path,
    *,
    steps: int = 3_000,
    scenes: int = 60_000,
    seed: int = 1,
    start: str | Path | None = None,
    device: str | None = None,
    resume: bool = True,
    checkpoint_every: int = 500,
    progress: bool = True,
) -> Path:
    """Train the CLIP of the Shapes world and write it, with its processor, as a folder.

    Parameters
    ----------
    out : folder for the model; ``out/checkpoints`` holds the state of an unfinished run.
    steps : optimiser steps, 128 scenes each.
    scenes : different scenes that are drawn, all from sentences of the part "train".
    start : folder of a trained Shapes CLIP to go on from.
    seed, device, resume, checkpoint_every, progress : as in :func:`.train_shapes.train_shapes`.

    Raises
    ------
    InvalidArgument, WeightsFileError, MissingExtra, NonFinite
        As in :func:`.train_digits.train_digits`.
    """
    settings = {"steps": steps, "scenes": scenes, "seed": seed}
    home = device_named(device)
    if start is not None:
        load_clip(start)  # refused before the scenes are drawn
    with (
        checkpoints(out, settings, checkpoint_every, resume, progress) as fit,
        matmul_attention(home),
    ):
        settings["start"] = fingerprint(start)
        task = TrainingTask(
            "shapes-clip",
            lambda: build_clip() if start is None else load_clip(start),
            _clip_loss(scenes, seed, home),
            steps,
            seed,
            1e-3,
            ema=0.998,
            warmup=100,
            clip=1.0,
            betas=(0.9, 0.98),
            device=home,
        )
        clip: Any = fit(task, "clip.safetensors")
        clip.to("cpu").save_pretrained(out)
        build_clip_processor().save_pretrained(out)
    return Path(out)


def _lie(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """A contradiction that is itself of the part "train".

    Else a sentence that is held back would only ever be seen as wrong, and be learnt so.
    """
    while not holds("train", found := contradict(prompt, rng)):
        pass
    return found


def _clip_loss(count: int, seed: int, device: torch.device) -> Loss:
    """Picture against all sentences and the reverse; picture against its own lies."""
    images, said, _ = draw_scenes(count, seed)
    rng = np.random.default_rng(seed)
    wrong = [str(_lie(p, rng)) for p in said for _ in range(WRONG)]
    words = tokens(clip_tokenizer(), [*map(str, said), *wrong])
    right_ids, wrong_ids = words[:count], words[count:].view(count, WRONG, -1)
    # Where things lie is learnt last, and not at all from the few scenes that it decides.
    related = torch.tensor([i for i, prompt in enumerate(said) if prompt.relation is not None])
    own = torch.arange(BATCH, device=device)

    def loss(clip: Any, generator: torch.Generator) -> Tensor:
        pick = torch.randint(count, (BATCH,), generator=generator)
        half = torch.randint(len(related), (BATCH // 2,), generator=generator)
        pick[: BATCH // 2] = related[half]
        x = pixels(images[pick.numpy()], device)
        spread = _NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        x = x + (spread * torch.randn(x.shape, generator=generator)).to(device)
        ids = torch.cat([right_ids[pick], wrong_ids[pick].flatten(0, 1)]).to(device)
        with half_precision(device):
            seen = clip.get_image_features(pixel_values=x).pooler_output
            read = clip.get_text_features(input_ids=ids).pooler_output
        seen, read = F.normalize(seen.float(), dim=-1), F.normalize(read.float(), dim=-1)
        scale = clip.logit_scale.exp().clamp(max=100)
        every = scale * seen @ read.T
        against = every[:, BATCH:].view(BATCH, BATCH, WRONG)[own, own]
        among = torch.cat([every.diagonal()[:, None], against], 1)
        return (
            F.cross_entropy(every, own)
            + F.cross_entropy(every[:, :BATCH].T, own)
            + F.cross_entropy(among, torch.zeros_like(own))
        )

    return loss
