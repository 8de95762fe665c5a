"""Trains the models of :mod:`glass_flows.worlds.digits`: about one minute on two CPU cores.

Three jobs share one loop: the velocity network (flow matching) and two classifiers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..folders import alone_in_out
from ..training import Loss, Trained, TrainingTask, checkpoints, save_tensors
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
from .writing import write_markdown

LEARNING_RATE = 2e-3
LABEL_DROPOUT = 0.1
UNIFORM_TIMES = 0.25
CLASSIFIER_BATCH = 256
SAMPLES = 2000  # per guidance strength, for the model card


@alone_in_out
def train_digits(
    out: str | Path,
    *,
    steps: int = 1000,
    batch: int = 512,
    seed: int = 0,
    overwrite: bool = False,
    checkpoint_every: int = 100,
    progress: bool = True,
    announce: Callable[[str], None] = lambda text: None,
    classifier_steps: int = 600,
) -> dict[str, float]:
    """Train the digits network and its two classifiers (about a minute on two cores).

    Parameters
    ----------
    out : folder for ``digits.safetensors``, ``digits_reward.safetensors``,
        ``digits_judge.safetensors`` and ``MODEL_CARD.md``; made if missing.
    steps : Training steps of the network. Far beyond 1000 of 512 images it starts to memorise the
        1797 that there are.
    batch : Images per step.
    seed : at least 0; the same seed, threads and machine give the same weights bit for bit.
    overwrite : Train afresh: throw away the folder's checkpoints, and replace its weights once the
        new ones are there. Without it a training goes on from its checkpoints, of one that is
        finished nothing is done, and one with other settings is refused.
    checkpoint_every, progress : steps between checkpoints (in ``out/checkpoints``, removed at the
        end); whether to show progress bars on standard error, if that is a terminal.
    classifier_steps : Training steps of each classifier.

    Returns
    -------
    dict of the figures in the model card, by name, and ``seconds`` of wall-clock time.

    Raises
    ------
    InvalidArgument
        A number out of range, a folder that cannot be written, or one that holds a training with
        other settings, or weights of which nothing is known.
    WeightsFileError
        A checkpoint is damaged, or the weights of a finished training are.
    MissingExtra
        scikit-learn, which holds the images, is not installed.
    NonFinite
        The loss became NaN or infinite.
    """
    start = time.monotonic()
    settings = {"steps": steps, "batch": batch, "classifier_steps": classifier_steps, "seed": seed}
    trained = Trained(Path(out), "digits", settings, tuple(FILES.values()))
    if (kept := trained.kept(overwrite, announce)) is not None:
        return {**kept, "seconds": time.monotonic() - start}
    with checkpoints(trained, checkpoint_every, progress) as fit:
        jobs = _jobs(steps, batch, seed, classifier_steps)
        models: dict[str, nn.Module] = {one.name: fit(one, FILES[one.name]) for one in jobs}
        figures = _evaluate(models, seed)
        for name, model in models.items():
            # One metadata key only: their order in the file is not fixed, and its bytes should be.
            save_tensors(Path(out) / FILES[name], model.state_dict(), {"model": name})
        sizes = {name: sum(p.numel() for p in model.parameters()) for name, model in models.items()}
        seconds = time.monotonic() - start
        write_markdown(
            Path(out) / "MODEL_CARD.md",
            "digits",
            **figures,
            **settings,
            network=sizes[NETWORK],
            classifier=sizes["digits-judge"],
            samples=SAMPLES,
            classifier_batch=CLASSIFIER_BATCH,
            seconds=seconds,
            torch=torch.__version__,
            threads=torch.get_num_threads(),
        )
        trained.finish(figures)
    return {**figures, "seconds": seconds}


# ---------------------------------------------------------------------------------- three jobs


def _jobs(steps: int, batch: int, seed: int, classifier_steps: int) -> list[TrainingTask]:
    images, labels = digits_images(), digits_labels()
    reward, judge = digits_split()
    to_optimise, to_report = (
        _classifier_loss(images[half], labels[half]) for half in (reward, judge)
    )
    jobs: list[tuple[str, Callable[[], nn.Module], Loss, int]] = [
        (NETWORK, DigitsNet, _flow_loss(images, labels, batch), steps),
        ("digits-reward", DigitsClassifier, to_optimise, classifier_steps),
        ("digits-judge", DigitsClassifier, to_report, classifier_steps),
    ]
    return [TrainingTask(*job, 3 * seed + i, LEARNING_RATE) for i, job in enumerate(jobs)]


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
