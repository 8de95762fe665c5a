"""Trains the CLIP of :mod:`glass_flows.worlds.shapes`, the reward that steering there maximises.

Every picture is asked about many sentences, true ones and ones that contradict it in one word
(without these a CLIP reads a bag of words, Yuksekgonul et al. 2023, arXiv 2210.01936), each a
question of yes or no (SigLIP, Zhai et al. 2023, arXiv 2303.15343). A reward that is maximised finds
what it was never asked about, so a part of the pictures are the pipeline's own, also those that
steering by an earlier CLIP made, with the judge's verdict on each.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..folders import alone_in_out
from ..jobs.job import Loading, device_named
from ..jobs.models import Shapes
from ..training import Loss, Trained, TrainingTask, checkpoints, fingerprint
from ..worlds.shapes import Finding, Prompt
from ..worlds.shapes.clip import build_clip, build_clip_processor, load_clip
from ..worlds.shapes.pipeline import BUNDLED, clip_tokenizer, load_pipeline, tokens
from ..worlds.shapes.world import OPPOSITE, RELATIONS, related
from .judged_scenes import (
    SENTENCES,
    Judged,
    between,
    pixels,
    samples,
    scenes,
    sentences,
    steered,
)
from .train_shapes import TOLD, half_precision, layout_of

BATCH, ASKED = 128, 4  # pictures, and sentences about each
_NOISE = 0.05  # largest standard deviation of the noise that pictures get, of a range of 2
_SHARES = {"scenes": 0.45, "free": 0.15, "between": 0.15, "samples": 0.25}
_LAYOUT, _FACTS = 4.0, 2.0  # weights of what is thrown away
_FACT_NAMES = [(kind, name) for kind, names in enumerate(TOLD) for name in names]


@alone_in_out
def train_clip(
    out: str | Path,
    *,
    steps: int = 3_000,
    scenes: int = 20_000,
    drawn: int = 4_000,
    seed: int = 1,
    pipeline: str | Path | None = None,
    start: str | Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    checkpoint_every: int = 500,
    progress: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train the CLIPModel that is the reward of the Shapes world (15 minutes on one core).

    Parameters
    ----------
    out : folder for the model and its processor; ``out/checkpoints`` holds the state of an
        unfinished run.
    steps : Training steps, 128 pictures each; a checkpoint serves any number.
    scenes : Different scenes to train on; a third as many each of what no sentence asks for, and
        of pictures between two scenes.
    drawn : Samples of the pipeline to train on, with the judge's verdict; with `start` half of them
        are steered by that CLIP.
    pipeline : Folder of a trained Shapes pipeline; the bundled one by default.
    start : Folder of a trained Shapes CLIP to go on from.
    device : cpu, cuda or mps; by default cuda where there is one, else cpu.
    overwrite : Train afresh: throw away the folder's checkpoints, and replace its weights once the
        new ones are there. Without it a training goes on from its checkpoints, of one that is
        finished nothing is done, and one with other settings is refused.
    seed, checkpoint_every, progress : as in :func:`.train_digits.train_digits`.

    Raises
    ------
    InvalidArgument, WeightsFileError, MissingExtra, NonFinite
        As in :func:`.train_digits.train_digits`.
    """
    settings = {"steps": steps, "scenes": scenes, "drawn": drawn, "seed": seed}
    home = device_named(device)
    for given, load in ((pipeline, load_pipeline), (start, load_clip)):
        if given is not None:
            load(given)  # refused before anything is thrown away or drawn
    pipeline = BUNDLED if pipeline is None else pipeline
    settings["start"], settings["pipeline"] = fingerprint(start), fingerprint(pipeline)
    trained = Trained(Path(out), "clip", settings, ("model.safetensors",))
    if trained.kept(overwrite, announce) is not None:
        return Path(out)
    with checkpoints(trained, checkpoint_every, progress) as fit:
        parts = _pictures(scenes, drawn, seed, pipeline, start)
        task = TrainingTask(
            "shapes-clip",
            lambda: _Taught(build_clip() if start is None else load_clip(start)),
            _clip_loss(parts, seed, home),
            steps,
            seed,
            1e-3,
            ema=0.998,
            warmup=100,
            clip=1.0,
            betas=(0.9, 0.98),
            device=home,
        )
        own = {key: value for key, value in settings.items() if key != "steps"}
        clip: Any = fit(task, "clip.safetensors", own).clip
        # Half the bytes; `load_clip` computes in float32 again.
        clip.to("cpu", torch.float16).save_pretrained(out)
        build_clip_processor().save_pretrained(out)
        trained.finish({})
    return Path(out)


class _Taught(nn.Module):
    """A CLIP with what is thrown away after the training.

    What lies where, read off the patches; the facts of the picture and those that a sentence
    states, read off what both towers make of them; and below which score the answer is no.
    """

    def __init__(self, clip: Any) -> None:
        super().__init__()
        vision, text = clip.config.vision_config, clip.config.text_config
        self.clip = clip
        self.layout = nn.Linear(vision.hidden_size, len(layout_of([])[0]))
        self.seen = nn.Linear(vision.hidden_size, len(_FACT_NAMES))
        self.said = nn.Linear(text.hidden_size, len(_FACT_NAMES))
        self.threshold = nn.Parameter(torch.tensor(0.5))  # a cosine

    def look(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Directions (B, D), layouts (B, 16, kinds) and facts of pictures."""
        found = self.clip.vision_model(pixel_values=x)
        patches = found.last_hidden_state[:, 1:].mT
        side = round(patches.shape[-1] ** 0.5)
        squares = F.adaptive_avg_pool2d(patches.unflatten(-1, (side, side)), 4).flatten(2).mT
        direction = F.normalize(self.clip.visual_projection(found.pooler_output).float(), dim=-1)
        return direction, self.layout(squares), self.seen(found.pooler_output)

    def read(self, ids: Tensor) -> tuple[Tensor, Tensor]:
        """Directions (B, D) and facts of sentences."""
        found = self.clip.text_model(input_ids=ids).pooler_output
        return F.normalize(self.clip.text_projection(found).float(), dim=-1), self.said(found)

    def scores(self, seen: Tensor, read: Tensor) -> Tensor:
        """(B, K) of pictures (B, D) and their sentences (B, K, D), positive for yes."""
        scale = self.clip.logit_scale.exp().clamp(max=100)
        found: Tensor = scale * ((seen[:, None] * read).sum(-1) - self.threshold)
        return found


def _pictures(
    count: int, drawn: int, seed: int, pipeline: str | Path, start: str | Path | None
) -> dict[str, Judged]:
    """Pictures by where they come from."""
    rng = np.random.default_rng(seed)
    model = Shapes(f"shapes:{pipeline}", str(pipeline), Loading())
    own = samples(model.pipe, drawn if start is None else drawn - drawn // 2, rng)
    if start is not None:
        own = own.joined(steered(model, f"clip:{start}", drawn // 2, rng))
    return {
        "scenes": scenes(count, rng),
        "free": scenes(count // 3, rng, free=True),
        "between": between(model.pipe.vae, count // 3, rng),
        "samples": own,
    }


def _facts_seen(finding: Finding) -> NDArray[np.float32]:
    """Which of the facts that a sentence can state hold of a picture."""
    one_of = {(3, min(len(finding.objects), 4)), (4, finding.background)}
    for i, one in enumerate(finding.objects):
        one_of |= {(0, (one.shape, None)), (0, (one.shape, one.colour)), (1, (one.shape, one.size))}
        for other in (*finding.objects[:i], *finding.objects[i + 1 :]):
            offset = one.x - other.x, one.y - other.y
            one_of |= {(2, (one.shape, r)) for r in RELATIONS if related(r, *offset)}
    return np.array([name in one_of for name in _FACT_NAMES], np.float32)


def _facts_said(prompt: Prompt) -> NDArray[np.float32]:
    """Which facts a sentence states."""
    one_of: set[tuple[int, object]] = {(3, len(prompt.wanted)), (4, prompt.background)}
    for one, relation in zip(prompt.things, (prompt.relation, OPPOSITE.get(str(prompt.relation)))):
        one_of |= {(0, (one.shape, one.colour)), (1, (one.shape, one.size))}
        one_of |= {(2, (one.shape, relation))}
    return np.array([name in one_of for name in _FACT_NAMES], np.float32)


def _clip_loss(parts: dict[str, Judged], seed: int, device: torch.device) -> Loss:
    """Whether each sentence is true of its picture; true ones before false ones; what is there."""
    rng = np.random.default_rng(seed)
    asked = [sentences(part, rng) for part in parts.values()]
    images = np.concatenate([part.images for part in parts.values()])
    findings = [f for part in parts.values() for f in part.findings]
    truth = torch.from_numpy(np.concatenate([truth for _, truth in asked])).float()
    said = [p for rows, _ in asked for row in rows for p in row]
    # Every sentence once: many pictures share theirs.
    number = {prompt: i for i, prompt in enumerate(dict.fromkeys(said))}
    which = torch.tensor([number[p] for p in said]).view(len(images), SENTENCES)
    ids = tokens(clip_tokenizer(), list(map(str, number)))
    stated = torch.from_numpy(np.stack([*map(_facts_said, number)]))
    clean = torch.tensor([f.clean() for f in findings])
    layouts = torch.from_numpy(np.stack([layout_of(f.objects) for f in findings]).astype("f2"))
    facts = torch.from_numpy(np.stack([*map(_facts_seen, findings)]))
    shares = torch.cat(
        [torch.full((len(p.images),), _SHARES[name] / len(p.images)) for name, p in parts.items()]
    )

    def loss(taught: Any, generator: torch.Generator) -> Tensor:
        pick = torch.multinomial(shares, BATCH, True, generator=generator)
        column = torch.rand(BATCH, SENTENCES, generator=generator).argsort(1)[:, :ASKED]
        rows = pick[:, None], column
        about, back = which[rows].unique(return_inverse=True)
        x = pixels(images[pick.numpy()], device)
        spread = _NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        x = x + (spread * torch.randn(x.shape, generator=generator)).to(device)
        with half_precision(device):
            seen, layout, sight = taught.look(x)
            read, statement = taught.read(ids[about].to(device))
        scores = taught.scores(seen, read[back.to(device)])
        true, whole = truth[rows].to(device), clean[pick].to(device)
        cross = F.binary_cross_entropy_with_logits
        # Every true sentence against all false ones of its picture.
        false = scores.masked_fill(true > 0, -torch.inf).logsumexp(1, keepdim=True)
        ranked = (F.softplus(false - scores) * true).sum() / true.sum().clamp(min=1)
        there = cross(layout.float()[whole], layouts[pick].to(device, torch.float32)[whole])
        held = cross(sight.float()[whole], facts[pick].to(device)[whole])
        told = cross(statement.float(), stated[about].to(device))
        return cross(scores, true) + ranked + _LAYOUT * there + _FACTS * (held + told)

    return loss
