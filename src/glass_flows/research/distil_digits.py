"""Distils the digits network to few steps: `glass-flows train digits-turbo`.

The student answers with the end of the teacher's ODE instead of the mean: at a state x_t of a
trajectory of the probability-flow ODE it is trained to return that trajectory's data, as
consistency models do (Song et al. 2023, arXiv 2303.01469), here by plain regression on drawn
trajectories. So one evaluation is a sample.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import InvalidArgument, check_count
from ..folders import alone_in_out
from ..progress import track
from ..training import Loss, Trained, TrainingTask, checkpoints, save_tensors
from ..worlds import digits
from ..worlds.digits import CLASSES, FILES, IMAGE, NETWORK, NULL_CLASS, load_digits_network

_INTERVALS = 16  # of the teacher's ODE, two evaluations each
_TOGETHER = 2_000
_UNCONDITIONAL = 0.5  # share of the trajectories; steering starts from the unconditional model
_LEARNING_RATE = 1e-3


@alone_in_out
def distil_digits(
    out: str | Path,
    *,
    times: int = _INTERVALS,
    steps: int = 4_000,
    batch: int = 512,
    trajectories: int = 40_000,
    seed: int = 0,
    overwrite: bool = False,
    checkpoint_every: int = 500,
    progress: bool = True,
    announce: Callable[[str], None] = lambda text: None,
) -> nn.Module:
    """Distil the digits network to few steps (three minutes on one core).

    One evaluation of the student is a digit. The folder is a model by the name digits:FOLDER.

    Parameters
    ----------
    out : folder for the student's ``digits.safetensors``, and the classifiers beside it.
    times : At how many times it is trained, i/times for i = 0, 1, ...: 16, or a divisor of it.
        With 16 it knows all times, as latent consistency models do; with 4 four steps only, as
        models for a fixed number of steps.
    steps : Training steps.
    batch : States per step.
    trajectories : Of the ODE of the bundled network, drawn beforehand.
    overwrite : Train afresh: throw away the folder's checkpoints, and replace its weights once the
        new ones are there. Without it a training goes on from its checkpoints, of one that is
        finished nothing is done, and one with other settings is refused.
    seed, checkpoint_every, progress : as in :func:`.train_digits.train_digits`.

    Returns
    -------
    The student.

    Raises
    ------
    InvalidArgument, WeightsFileError, NonFinite
        As in :func:`.train_digits.train_digits`.
    """
    check_count("times", times, most=_INTERVALS)
    if _INTERVALS % times:
        raise InvalidArgument(f"times must divide {_INTERVALS}, got {times}")
    settings = {"times": times, "steps": steps, "batch": batch, "trajectories": trajectories}
    settings["seed"] = seed
    trained = Trained(Path(out), "digits-turbo", settings, tuple(FILES.values()))
    if trained.kept(overwrite, announce) is not None:
        return load_digits_network(Path(out) / FILES[NETWORK])
    with checkpoints(trained, checkpoint_every, progress) as fit:
        states, labels = _drawn(load_digits_network(), trajectories, seed, progress)
        loss = _endpoint_loss(states[:: _INTERVALS // times], states[-1], labels, batch)
        task = TrainingTask(
            "digits-turbo", lambda: load_digits_network().requires_grad_(True), loss,
            steps, seed, _LEARNING_RATE,
        )  # fmt: skip
        student: nn.Module = fit(task, FILES[NETWORK])
        save_tensors(Path(out) / FILES[NETWORK], student.state_dict(), {"model": NETWORK})
        for name, file in FILES.items():
            if name != NETWORK:
                shutil.copyfile(Path(digits.__file__).parent / "weights" / file, Path(out) / file)
        trained.finish({})
    return student


@torch.no_grad()
def _drawn(teacher: nn.Module, count: int, seed: int, progress: bool) -> tuple[Tensor, Tensor]:
    """States at every time of `count` trajectories, (times, count, 1, 8, 8); and their labels."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(CLASSES, (count,), generator=generator)
    free = torch.rand(count, generator=generator) < _UNCONDITIONAL
    labels.masked_fill_(free, NULL_CLASS)
    states = torch.empty(_INTERVALS + 1, count, *IMAGE)
    states[0].normal_(generator=generator)
    parts = labels.split(_TOGETHER)
    first = 0
    for label in track(parts, len(parts), show=None if progress else False, description="teacher"):
        part = slice(first, first := first + len(label))
        for k, (t, t_next) in enumerate(pairwise(torch.linspace(0, 1, _INTERVALS + 1))):
            x, span = states[k, part], t_next - t
            v = teacher(x, t, label)
            ahead = teacher(x + span * v, t_next, label)
            states[k + 1, part] = x + span / 2 * (v + ahead)  # Heun
    return states, labels


def _endpoint_loss(states: Tensor, ends: Tensor, labels: Tensor, batch: int) -> Loss:
    """E |v(x_t, t, label) - (z - x_t)/(1 - t)|², z the end of the trajectory through x_t."""
    times = len(states) - 1

    def loss(model: nn.Module, generator: torch.Generator) -> Tensor:
        pick = torch.randint(len(labels), (batch,), generator=generator)
        k = torch.randint(times, (batch,), generator=generator)
        x, t = states[k, pick], k / times
        wanted = (ends[pick] - x) / (1 - t)[:, None, None, None]
        return F.mse_loss(model(x, t, labels[pick]), wanted)

    return loss
