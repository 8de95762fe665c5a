"""Trains the models of :mod:`glass_flows.worlds.digits`: about one minute on two CPU cores.

Three jobs share one loop: the velocity network (flow matching) and two classifiers. The loop
is deterministic for a seed, a machine and a number of threads, also across an interruption:
its whole state, random generator included, is checkpointed.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..files import replace
from ..training import Loss, TrainingTask, begin, fit, save_tensors
from ..worlds.digits import (
    CLASSES,
    FILES,
    NETWORK,
    NULL_CLASS,
    DigitsClassifier,
    DigitsNet,
    digits_images,
    digits_labels,
    digits_split,
)

__all__ = ["train_digits"]

LEARNING_RATE = 2e-3
LABEL_DROPOUT = 0.1
UNIFORM_TIMES = 0.25
CLASSIFIER_BATCH = 256
SAMPLES = 2000  # per guidance strength, for the model card


def train_digits(
    out: str | Path,
    *,
    steps: int = 1000,
    batch: int = 512,
    seed: int = 0,
    resume: bool = True,
    checkpoint_every: int = 100,
    progress: bool = True,
    classifier_steps: int = 600,
) -> dict[str, float]:
    """Train the digits network and both classifiers; write their weights and a model card.

    Parameters
    ----------
    out : folder for ``digits.safetensors``, ``digits_reward.safetensors``,
        ``digits_judge.safetensors`` and ``MODEL_CARD.md``; made if missing.
    steps, batch : optimiser steps of the network and images per step, at least 1.
        Far beyond 1000 steps of 512 the network starts to memorise its 1797 images.
    seed : at least 0; the same seed, threads and machine give the same weights bit for bit.
    resume : go on from the checkpoints of an interrupted run in `out`; False discards them.
    checkpoint_every : steps between checkpoints (in ``out/checkpoints``, removed at the end).
    progress : show progress bars on standard error, if that is a terminal.
    classifier_steps : optimiser steps of each classifier, at least 1.

    Returns
    -------
    dict of the figures in the model card, by name, and ``seconds`` of wall-clock time.

    Raises
    ------
    InvalidArgument
        A number out of range, a folder that cannot be written, or a checkpoint in it that was
        made with other settings.
    WeightsFileError
        A checkpoint is damaged.
    MissingExtra
        scikit-learn, which holds the images, is not installed.
    NonFinite
        The loss became NaN or infinite.
    """
    start = time.monotonic()
    settings = {"steps": steps, "batch": batch, "classifier_steps": classifier_steps, "seed": seed}
    folder, checkpoints = Path(out), Path(out) / "checkpoints"
    begin(checkpoints, settings, checkpoint_every, resume)

    models: dict[str, nn.Module] = {}
    for job in _jobs(steps, batch, seed, classifier_steps):
        path = checkpoints / FILES[job.name]
        models[job.name] = fit(job, path, settings, checkpoint_every, progress)
    figures = _evaluate(models, seed)
    for name, model in models.items():
        # One metadata key only: their order in the file is not fixed, and its bytes should be.
        save_tensors(folder / FILES[name], model.state_dict(), {"model": name})
    seconds = time.monotonic() - start
    replace(folder / "MODEL_CARD.md", _model_card(models, settings, figures, seconds).encode())
    shutil.rmtree(checkpoints)
    return {**figures, "seconds": seconds}


# ---------------------------------------------------------------------------------- three jobs


def _jobs(steps: int, batch: int, seed: int, classifier_steps: int) -> list[TrainingTask]:
    images, labels = digits_images(), digits_labels()
    reward, judge = digits_split()

    def classifier(name: str, half: Tensor, job_seed: int) -> TrainingTask:
        loss = _classifier_loss(images[half], labels[half])
        return TrainingTask(name, DigitsClassifier, loss, classifier_steps, job_seed, LEARNING_RATE)

    return [
        TrainingTask(
            NETWORK,
            DigitsNet,
            _flow_loss(images, labels, batch),
            steps,
            3 * seed,
            LEARNING_RATE,
        ),
        classifier("digits-reward", reward, 3 * seed + 1),
        classifier("digits-judge", judge, 3 * seed + 2),
    ]


def _flow_loss(images: Tensor, labels: Tensor, batch: int) -> Loss:
    """Conditional flow matching: E |v(x_t, t, label) - (z - ε)|².

    t is logit-normal, but uniform for a quarter of the images: alone, the former hardly ever
    comes near t = 0, where every sampler starts, and the error there is a third larger.
    """

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (batch,), generator=generator)
        z = _dequantise(images[pick], generator)
        noise = torch.randn(z.shape, generator=generator)
        t = torch.randn(batch, generator=generator).sigmoid()
        uniform = torch.rand(2, batch, generator=generator)
        t = torch.where(uniform[0] < UNIFORM_TIMES, uniform[1], t)
        drop = torch.rand(batch, generator=generator) < LABEL_DROPOUT
        label = labels[pick].masked_fill(drop, NULL_CLASS)
        x = torch.lerp(noise, z, t[:, None, None, None])
        return F.mse_loss(model(x, t, label), z - noise)

    return loss


def _classifier_loss(images: Tensor, labels: Tensor) -> Loss:
    """Smoothed cross-entropy on images with a little noise, half of them shifted by a pixel.

    The augmentation makes the logits mean something on samples that are not quite perfect.
    """

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(images), (CLASSIFIER_BATCH,), generator=generator)
        x = _shift(_dequantise(images[pick], generator), generator)
        level = 0.25 * torch.rand(len(x), 1, 1, 1, generator=generator)
        x = x + level * torch.randn(x.shape, generator=generator)
        return F.cross_entropy(model(x), labels[pick], label_smoothing=0.05)

    return loss


def _dequantise(images: Tensor, generator: torch.Generator) -> Tensor:
    """Fill the 1/8 between two grey levels uniformly: a density, not 17 spikes, is learned."""
    return images + (torch.rand(images.shape, generator=generator) - 0.5) / 8


def _shift(images: Tensor, generator: torch.Generator) -> Tensor:
    """Move half of the (B, 1, 8, 8) images by -1, 0 or 1 pixel in each direction, over paper."""
    count = len(images)
    offset = torch.randint(3, (2, count, 1), generator=generator)
    offset[:, torch.rand(count, generator=generator) < 0.5] = 1  # 1 is the middle: no shift
    rows, columns = offset + torch.arange(8)
    padded = F.pad(images[:, 0], (1, 1, 1, 1), value=-1.0)
    return padded[torch.arange(count)[:, None, None], rows[:, :, None], columns[:, None]][:, None]


# ----------------------------------------------------------------------------------- evaluation


@torch.no_grad()
def _evaluate(models: Mapping[str, nn.Module], seed: int) -> dict[str, float]:
    """The figures of the model card; fractions in [0, 1], distances in pixel units."""
    images, labels = digits_images(), digits_labels()
    reward_half, judge_half = digits_split()
    reward, judge = models["digits-reward"], models["digits-judge"]
    real = _nearest(images, images, same=True)
    figures = {
        # Each classifier on the half that trained the other one.
        "reward_accuracy": _accuracy(reward, images[judge_half], labels[judge_half]),
        "judge_accuracy": _accuracy(judge, images[reward_half], labels[reward_half]),
        "nearest_real": float(real.median()),
    }
    wanted = torch.arange(SAMPLES) % CLASSES
    for guidance in (1, 3):
        generator = torch.Generator().manual_seed(seed)
        samples = _euler(models[NETWORK], wanted, guidance, generator)
        nearest = _nearest(samples, images)
        figures[f"judge_samples_w{guidance}"] = _accuracy(judge, samples, wanted)
        figures[f"reward_samples_w{guidance}"] = _accuracy(reward, samples, wanted)
        figures[f"nearest_w{guidance}"] = float(nearest.median())
        # How many lie closer to a training image than all but 1 % of real images do?
        closest = float((nearest < real.quantile(0.01)).float().mean())
        figures[f"closest_w{guidance}"] = closest
    return figures


def _euler(
    model: nn.Module, label: Tensor, guidance: float, generator: torch.Generator, steps: int = 50
) -> Tensor:
    """Conditional samples (B, 1, 8, 8): Euler on the flow with classifier-free guidance."""
    x = torch.randn(len(label), 1, 8, 8, generator=generator)
    null = torch.full_like(label, NULL_CLASS)
    for i in range(steps):
        t = torch.tensor(i / steps)
        v = model(x, t, null)
        x = x + (v + guidance * (model(x, t, label) - v)) / steps
    return x


def _accuracy(classifier: nn.Module, images: Tensor, labels: Tensor) -> float:
    return float((classifier(images).argmax(1) == labels).float().mean())


def _nearest(images: Tensor, others: Tensor, same: bool = False) -> Tensor:
    """Euclidean distance of each image to the nearest of the others (not itself, if `same`)."""
    distances = torch.cdist(images.flatten(1), others.flatten(1))
    if same:
        distances.fill_diagonal_(math.inf)
    return distances.amin(1)


def _model_card(
    models: Mapping[str, nn.Module], settings: dict[str, int], f: dict[str, float], seconds: float
) -> str:
    sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
    fields: dict[str, object] = {
        **f,
        **settings,
        "network": sizes[NETWORK],
        "classifier": sizes["digits-judge"],
    }
    fields |= {"samples": SAMPLES, "classifier_batch": CLASSIFIER_BATCH, "seconds": seconds}
    fields |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
    return _CARD.format(**fields)


_CARD = """\
# Digits: a class-conditional flow and two classifiers, 8x8 pixels

Small real models for trying out samplers on a CPU. Written by
`glass-flows train digits --out FOLDER` (steps {steps}, batch {batch}, classifier steps
{classifier_steps}, seed {seed}; {seconds:.0f} s, {threads} thread(s), torch {torch}).

| file | what | parameters |
|-|-|-|
| `digits.safetensors` | velocity network | {network:,} |
| `digits_reward.safetensors` | classifier to optimise | {classifier:,} |
| `digits_judge.safetensors` | classifier to report | {classifier:,} |

All float32. Load with `load_digits_network()`, `load_digits_classifier("reward")` and
`load_digits_classifier("judge")` from `glass_flows.worlds.digits`.

## Data and licence

The 1,797 images of scikit-learn's `load_digits`: a copy of the test set of "Optical Recognition
of Handwritten Digits" (E. Alpaydin and C. Kaynak, 1998, UCI Machine Learning Repository, data
set 80), 13 writers, grey levels 0 to 16, here x/8 - 1. scikit-learn is under the BSD 3-clause
licence and states no other for these images; UCI offers its data sets under CC BY 4.0 in
general, which was not verified for this one. These files hold weights, not images.

## Models

- Network: residual MLP, hidden width 192, 3 blocks modulated by time and class (adaLN), trained
  on all 1,797 images. Predicts the velocity z - noise on x_t = t z + (1 - t) noise, t = 0 noise,
  t = 1 data. Classes 0 to 9; class 10 (or none) is unconditional.
- Classifiers: two convolutions, one hidden layer of 64 features, SiLU. Each trained on one half
  of the images, stratified by class (`digits_split()`); the halves are disjoint.

## Training

- All: fused AdamW, learning rate 2e-3 with cosine decay to 0; the weights are an exponential
  moving average (.995). Grey levels are dequantised by +-1/16.
- Network: flow matching, t logit-normal (uniform for a quarter of the images), label dropout
  10 %, zero-initialised output.
- Classifiers: batch {classifier_batch}, noise of standard deviation up to .25, half of the
  images shifted by up to one pixel, label smoothing .05.

## Measured

Samples: {samples:,} per column, balanced over the classes, 50 Euler steps, classifier-free
guidance w. Each classifier is measured on the real images that trained the other one.

| | real | samples, w = 1 | samples, w = 3 |
|-|-|-|-|
| judge is right | {judge_accuracy:.1%} | {judge_samples_w1:.1%} | {judge_samples_w3:.1%} |
| reward is right | {reward_accuracy:.1%} | {reward_samples_w1:.1%} | {reward_samples_w3:.1%} |
| median distance to the nearest image | {nearest_real:.2f} | {nearest_w1:.2f} | {nearest_w3:.2f} |
| nearer than 99 % of real images | 1.0% | {closest_w1:.1%} | {closest_w3:.1%} |

Distances are Euclidean over the 64 pixels, to the nearest training image of the network; for
real images (first column, all 1,797) to the nearest *other* one. Samples much nearer than that
would be a sign of memorisation.

## Limits

- 8x8 pixels, 13 writers, one seed.
- The network saw all images, those of both classifiers' halves included, and the halves share
  writers: accuracy on unseen writers was not measured.
- Many more training steps memorise: after 4,000 (seed 0) the median distance at w = 1 was 1.85,
  below that of real images.
- The classifiers are calibrated neither on noise nor on blurry images, and a sampler can fool
  the reward: report the judge.
"""
