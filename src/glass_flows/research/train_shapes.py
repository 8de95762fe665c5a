"""Trains the models of :mod:`glass_flows.worlds.shapes`: the autoencoder, then the flow.

The flow job trains transformer and both text encoders together by flow matching (Lipman et al.
2023) on latents of scenes that are drawn as it goes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..folders import alone_in_out
from ..jobs.job import device_named
from ..training import Loss, Trained, TrainingTask, checkpoints, fingerprint
from ..worlds.shapes import (
    COLOURS,
    SHAPES,
    Placed,
    Prompt,
)
from ..worlds.shapes.pipeline import (
    MAX_TOKENS,
    NEGATIVE,
    build_pipeline,
    load_pipeline,
    tokens,
)
from ..worlds.shapes.world import BACKGROUNDS, OPPOSITE, RELATIONS, SIDE, SIZES, coverage
from .judged_scenes import pixels, scenes

BATCH = {"vae": 32, "text": 128, "flow": 64}
PROMPT_DROPOUT = 0.1
_NOISIER = 1.0  # what goes where is decided at high noise
_NOISES = 2  # noises of one scene in a batch: its sentence is encoded once
_LAYOUT = 2.0  # weight of the layout
_MEANING = 0.1  # weight of what the nouns stand for
_ENCODERS = ("text_encoder", "text_encoder_2")
_WEIGHTS = (
    *(f"{name}/diffusion_pytorch_model.safetensors" for name in ("vae", "transformer")),
    *(f"{name}/model.safetensors" for name in _ENCODERS),
)
# What a thing of a sentence can be, None where nothing is said. Each together with its shape: a
# "red triangle" that has a direction of its own stays apart from a "blue circle" when both are
# added up; a flow that was told of colours and shapes one by one exchanged them.
TOLD: tuple[tuple[object, ...], ...] = (
    tuple(product(SHAPES, (None, *COLOURS))),
    tuple(product(SHAPES, (None, *SIZES))),
    tuple(product(SHAPES, (None, *RELATIONS))),
    (1, 2, 3, 4),
    (None, *BACKGROUNDS),
)
_KINDS = tuple(product(SHAPES, COLOURS))  # of objects
_HELD = 2000  # scenes for the statistics of the latents


@alone_in_out
def train_shapes(
    out: str | Path,
    *,
    steps: int = 8_000,
    vae_steps: int = 1_500,
    text_steps: int | None = None,
    scenes: int = 60_000,
    seed: int = 0,
    start: str | Path | None = None,
    device: str | None = None,
    overwrite: bool = False,
    checkpoint_every: int = 500,
    progress: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> Path:
    """Train a small FluxPipeline on the Shapes world (one to three hours on two cores).

    The folder, in float16, can be opened with diffusers, and steered with `glass-flows align
    --model shapes:FOLDER`.

    Parameters
    ----------
    out : folder for the pipeline; ``out/checkpoints`` holds the state of an unfinished run.
    steps : Training steps of the flow, 64 noised scenes each. A checkpoint serves any number: one
        that it has reached ends the training there, with the moving average of its weights.
    vae_steps : Training steps of the autoencoder, 32 scenes each.
    text_steps : Training steps of the text encoders before those of the flow, 128 sentences each,
        in which they learn what the nouns stand for; 200, and none with `start`, by default.
    scenes : Different scenes to train on, all from sentences of the part "train".
    start : Folder of a trained Shapes pipeline to go on from; its autoencoder is kept as it is.
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
    if text_steps is None:
        text_steps = 200 if start is None else 0
    settings = {"steps": steps, "vae_steps": vae_steps, "scenes": scenes, "seed": seed}
    home = device_named(device)
    before = None if start is None else load_pipeline(start)
    task = partial(TrainingTask, clip=1.0, device=home)
    settings |= {"text_steps": text_steps, "start": fingerprint(start)}
    trained = Trained(Path(out), "shapes", settings, _WEIGHTS)
    if trained.kept(overwrite, announce) is not None:
        return Path(out)
    with checkpoints(trained, checkpoint_every, progress) as fit:
        own = {key: value for key, value in settings.items() if key != "steps"}
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            pipe = build_pipeline()
        images, said, placed = draw_scenes(scenes, seed)
        if before is not None:
            # Into modules of our own: what is loaded remembers the folder, and would save its name.
            for name in ("vae", "transformer", *_ENCODERS):
                getattr(pipe, name).load_state_dict(getattr(before, name).state_dict())
            shift, scale = before.vae.config.shift_factor, before.vae.config.scaling_factor
        else:
            job = task(
                "shapes-vae", lambda: pipe.vae, _vae_loss(images, home), vae_steps, 2 * seed, 2e-3,
                warmup=50, betas=(0.9, 0.99),
            )  # fmt: skip
            pipe.vae = fit(job, "vae.safetensors", own)
        vae: Any = pipe.vae.to(home).eval()
        latents = _encode(vae, images, home)
        if start is None:
            shift, scale = latents[:_HELD].mean().item(), 1 / latents[:_HELD].std().item()
        vae.register_to_config(shift_factor=shift, scaling_factor=scale)

        texts = nn.ModuleDict({name: getattr(pipe, name) for name in _ENCODERS})
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            width, classes = pipe.text_encoder_2.config.d_model, sum(len(names) for names in TOLD)
            texts["meaning"] = nn.Linear(width, classes)
            texts["gist"] = nn.Linear(width, 2 * classes)
            layout = nn.Linear(pipe.transformer.inner_dim, placed.shape[-1])
        language = _Language(pipe, said, home)
        task = partial(task, seed=2 * seed + 1, learning_rate=1e-3, betas=(0.9, 0.98))
        if text_steps:
            own = {k: v for k, v in settings.items() if k not in ("steps", "vae_steps")}
            job = task("shapes-text", lambda: texts, language.loss, text_steps, warmup=50)
            texts = fit(job, "text.safetensors", own)
            texts.requires_grad_(True)
        parts = nn.ModuleDict({**texts, "transformer": pipe.transformer, "layout": layout})
        loss = _flow_loss(pipe, (latents - shift) * scale, language, placed, home)
        job = task("shapes-flow", lambda: parts, loss, steps, ema=0.998, warmup=100)
        learned = fit(job, "flow.safetensors", own)
        for name, part in learned.items():
            if hasattr(pipe, name):
                setattr(pipe, name, part)
        # Half the bytes; `load_pipeline` computes in float32 again.
        pipe.to("cpu", torch.float16).save_pretrained(out)
        trained.finish({})
    return Path(out)


def half_precision(device: torch.device) -> AbstractContextManager[object]:
    """bfloat16 for the matrix products where the machine has units for it.

    A CPU that has none emulates it, ten times slower than float32.
    """
    able = device.type != "cpu" or bool(torch.cpu.get_capabilities().get("avx512_bf16"))
    return torch.autocast(device.type, torch.bfloat16, enabled=able)


def draw_scenes(
    count: int, seed: int
) -> tuple[NDArray[np.uint8], list[Prompt], NDArray[np.float16]]:
    """Scenes whose prompts are of the part "train".

    Pictures (count, 32, 32, 3), prompts, and what lies where: for each of 4×4 squares of the
    picture (count, 16, shapes · colours) how much of it each kind of object covers.
    """
    drawn = scenes(count, np.random.default_rng(seed))
    placed = np.stack([layout_of(one.objects) for one in drawn.findings]).astype(np.float16)
    return drawn.images, list(drawn.asked), placed


def layout_of(scene: Sequence[Placed]) -> NDArray[np.float64]:
    """How much of each of 4×4 squares each kind of object covers: (16, shapes · colours)."""
    found = np.zeros((16, len(_KINDS)))
    for one in scene:
        cover = coverage(one.shape, one.x, one.y, one.radius)
        squares = cover.reshape(4, SIDE // 4, 4, SIDE // 4).mean((1, 3)).ravel()
        found[:, _KINDS.index((one.shape, one.colour))] += squares
    return found


def _vae_loss(images: NDArray[np.uint8], device: torch.device) -> Loss:
    """Reconstruction, in squares and in absolute values, and a little of the KL divergence."""

    def loss(vae: Any, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (BATCH["vae"],), generator=generator)
        x = pixels(images[pick.numpy()], device)
        with half_precision(device):
            posterior = vae.encode(x).latent_dist
            noise = torch.randn(posterior.mean.shape, generator=generator).to(device)
            y = vae.decode(posterior.mean + posterior.std * noise).sample.float()
        mean, log_variance = posterior.mean.float(), posterior.logvar.float()
        divergence = (mean.square() + log_variance.exp() - 1 - log_variance).mean() / 2
        return F.mse_loss(y, x) + 0.05 * F.l1_loss(y, x) + 1e-3 * divergence

    return loss


@torch.no_grad()
def _encode(vae: Any, images: NDArray[np.uint8], device: torch.device) -> Tensor:
    """Means of the latents (N, 8, 8, 8), on the CPU."""
    parts = np.array_split(images, -(-len(images) // 500))
    with half_precision(device):
        means = [vae.encode(pixels(part, device)).latent_dist.mean for part in parts]
    return torch.cat([mean.float().cpu() for mean in means])


def _flow_loss(
    pipe: Any,
    latents: Tensor,
    language: _Language,
    placed: NDArray[np.float16],
    device: torch.device,
) -> Loss:
    """E |v(x_σ, σ, prompt) - (ε - z)|² at x_σ = (1 - σ) z + σ ε, σ logit-normal; and what is meant.

    Half way through, the network must also say what lies where in the clean scene, through a linear
    layer that is thrown away: representation alignment (REPA, Yu et al. 2024, arXiv 2410.06940)
    with the truth in place of a pre-trained encoder. So must the text encoders, :class:`_Language`.
    """
    count, channels, height, width = latents.shape
    z_all = pipe._pack_latents(latents, count, channels, height, width)
    positions = pipe._prepare_latent_image_ids(1, height // 2, width // 2, device, torch.float32)
    text_positions = torch.zeros(MAX_TOKENS, 3, device=device)
    layouts = torch.from_numpy(placed)
    pairs = BATCH["flow"] // _NOISES

    def loss(parts: Any, generator: torch.Generator) -> Tensor:
        pick = torch.randint(count, (pairs,), generator=generator)
        drop = torch.rand(pairs, generator=generator) < PROMPT_DROPOUT
        words = pick.masked_fill(drop, count)
        pick = pick.repeat_interleave(_NOISES)
        z = z_all[pick]
        noise = torch.randn(z.shape, generator=generator)
        sigma = _noise_levels(len(pick), generator)
        x = torch.lerp(z, noise, sigma[:, None, None]).to(device)
        half: list[Tensor] = []
        middle = parts["transformer"].single_transformer_blocks[0]
        hook = middle.register_forward_hook(lambda *call: half.append(call[2][1]))
        with half_precision(device):
            text, pooled = language.read(parts, words)
            v = parts["transformer"](
                hidden_states=x,
                encoder_hidden_states=text.repeat_interleave(_NOISES, 0),
                pooled_projections=pooled.repeat_interleave(_NOISES, 0),
                timestep=sigma.to(device),
                img_ids=positions,
                txt_ids=text_positions,
                return_dict=False,
            )[0]
            layout = parts["layout"](half[0])
        hook.remove()
        seen = F.binary_cross_entropy_with_logits(
            layout.float(), layouts[pick].to(device, torch.float32)
        )
        flow = F.mse_loss(v.float(), (noise - z).to(device))
        return flow + _LAYOUT * seen + _MEANING * language.misread(parts, words, text, pooled)

    return loss


class _Language:
    """Sentences as tokens, and what they say: what the text encoders learn before the pictures.

    T5 must say at every noun, and CLIP at the end of the sentence, which shape, colour, size,
    place, number and background each thing has, through linear layers that are thrown away: nothing
    else could teach them what belongs to what, and pictures do it slowly. Number `len(said)` is the
    empty prompt.
    """

    def __init__(self, pipe: Any, said: list[Prompt], device: torch.device) -> None:
        def ids(tokenizer: Any) -> Tensor:
            return tokens(tokenizer, [*map(str, said), NEGATIVE]).to(device)

        self.clip, self.t5 = ids(pipe.tokenizer), ids(pipe.tokenizer_2)
        nothing = [[-1] * (1 + len(TOLD))] * 2
        self.meanings = torch.tensor([*map(_meaning, said), nothing], device=device)

    def read(self, parts: Any, words: Tensor) -> tuple[Tensor, Tensor]:
        """T5's tokens (B, words, width) and CLIP's summary (B, width) of sentences by number."""
        at = words.to(self.t5.device)
        text = parts["text_encoder_2"](self.t5[at])[0]
        return text, parts["text_encoder"](self.clip[at]).pooler_output

    def misread(self, parts: Any, words: Tensor, text: Tensor, pooled: Tensor) -> Tensor:
        """Cross-entropy of what both encoders say of the nouns."""
        told = self.meanings[words.to(self.meanings.device)]
        row, noun = (told[..., 0] >= 0).nonzero(as_tuple=True)
        at = told[row, noun]
        sizes = [len(names) for names in TOLD]
        by_word = parts["meaning"](text[row, at[:, 0]])
        by_gist = parts["gist"](pooled).unflatten(1, (2, -1))[row, noun]
        loss = text.new_zeros(())
        for said in (by_word, by_gist):
            for i, logits in enumerate(said.float().split(sizes, dim=1)):
                loss = loss + F.cross_entropy(logits, at[:, 1 + i])
        return loss

    def loss(self, parts: Any, generator: torch.Generator) -> Tensor:
        words = torch.randint(len(self.meanings) - 1, (BATCH["text"],), generator=generator)
        with half_precision(self.t5.device):
            return self.misread(parts, words, *self.read(parts, words))


def _meaning(prompt: Prompt) -> list[list[int]]:
    """For two nouns of a sentence: its place among the words (-1: no such noun), and :data:`TOLD`.

    The relation of the second is the opposite one: where it lies, seen from the first.
    """
    words = str(prompt).split()
    nouns = [i for i, word in enumerate(words) if word.removesuffix("s") in SHAPES]
    relations = prompt.relation, OPPOSITE.get(str(prompt.relation))
    found = []
    for at, one, relation in zip(nouns, prompt.things, relations):
        pairs = ((one.shape, what) for what in (one.colour, one.size, relation))
        values = (*pairs, prompt.count, prompt.background)
        found.append([at, *(names.index(v) for names, v in zip(TOLD, values))])
    return [*found, [-1] * (1 + len(TOLD))][:2]


def _noise_levels(count: int, generator: torch.Generator) -> Tensor:
    """σ (count,), logit-normal, one from each of `count` equally likely ranges, shuffled.

    Their order is random, so that the noises of one scene are independent.
    """
    order = torch.randperm(count, generator=generator)
    quantile = (order + torch.rand(count, generator=generator)) / count
    return (_NOISIER + torch.special.ndtri(quantile.clamp(1e-6, 1 - 1e-6))).sigmoid()
