"""The training loop of the bundled models: EMA, checkpoints, resumption to the same bits.

It is deterministic for a seed, a machine and a number of threads, also across an interruption: its
whole state, random generator included, is checkpointed.
"""

from __future__ import annotations

import copy
import json
import math
import shutil
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch import Tensor, nn

from .errors import InvalidArgument, NonFinite, WeightsFileError, check_count
from .files import replace
from .progress import track
from .stops import keep

Loss = Callable[[nn.Module, torch.Generator], Tensor]


@dataclass(frozen=True)
class TrainingTask:
    """What to train, and how.

    Attributes
    ----------
    name : str
        On the progress bar and in the checkpoint.
    build : () -> module
        Called under the job's seed.
    loss : (module, generator) -> scalar
        Draws its batch from the generator alone, so that a resumed run repeats it.
    learning_rate : float
        The highest; reached after `warmup` steps, then along a cosine down to 0.
    ema : float
        Decay of the average of the weights.
    clip : float, optional
        Largest norm of the gradient.
    """

    name: str
    build: Callable[[], nn.Module]
    loss: Loss
    steps: int
    seed: int
    learning_rate: float
    ema: float = 0.995
    warmup: int = 0
    clip: float | None = None
    betas: tuple[float, float] = (0.9, 0.999)
    device: torch.device | str = "cpu"

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        rise = min(1.0, (step + 1) / self.warmup) if self.warmup else 1.0
        return rise * self.learning_rate * (1 + math.cos(math.pi * step / self.steps)) / 2


class Training:
    """Everything that a step changes: model, EMA, optimiser, random generator, step count."""

    def __init__(self, job: TrainingTask) -> None:
        self.job, self.step, self.loss = job, 0, math.nan
        with torch.random.fork_rng(devices=[]):  # initialise without touching the user's stream
            torch.default_generator.manual_seed(job.seed)
            self.model = job.build().to(job.device).train()
        self.ema = copy.deepcopy(self.model).eval().requires_grad_(False)
        self.optimizer = torch.optim.AdamW(
            self.model.parameters(), job.learning_rate, job.betas, fused=True
        )
        self.generator = torch.Generator().manual_seed(job.seed)

    def advance(self) -> None:
        """One optimiser step on a cosine from the learning rate down to 0, then the EMA."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.job.rate(self.step)
        loss = self.job.loss(self.model, self.generator)
        self.optimizer.zero_grad()
        loss.backward()
        if self.job.clip is not None:
            nn.utils.clip_grad_norm_(self.model.parameters(), self.job.clip)
        self.optimizer.step()
        with torch.no_grad():
            for average, current in zip(
                self.ema.parameters(), self.model.parameters(), strict=True
            ):
                average.lerp_(current, 1 - self.job.ema)
        self.step += 1
        self.loss = float(loss.detach())

    def state(self) -> dict[str, Tensor]:
        """The whole state as flat named tensors, for a safetensors file."""
        tensors = {f"model.{k}": v for k, v in self.model.state_dict().items()}
        tensors |= {f"ema.{k}": v for k, v in self.ema.state_dict().items()}
        for name, parameter in self.model.named_parameters():
            for key, value in self.optimizer.state[parameter].items():
                tensors[f"optimizer.{key}.{name}"] = value
        tensors["generator"] = self.generator.get_state()
        tensors["step"] = torch.tensor(self.step)
        return tensors

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`state`; KeyError, RuntimeError if they belong to something else."""

        def part(prefix: str) -> dict[str, Tensor]:
            return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

        self.model.load_state_dict(part("model."))
        self.ema.load_state_dict(part("ema."))
        for name, parameter in self.model.named_parameters():
            self.optimizer.state[parameter] = {
                key: tensors[f"optimizer.{key}.{name}"].to(parameter.device)
                for key in ("step", "exp_avg", "exp_avg_sq")
            }
        self.generator.set_state(tensors["generator"])
        self.step = int(tensors["step"])


def fit(
    job: TrainingTask, path: Path, settings: Mapping[str, int], every: int, progress: bool
) -> nn.Module:
    """Run a job to its end, from its checkpoint at `path` if there is one; its EMA model."""
    training = Training(job)
    metadata = {
        "checkpoint": job.name,
        "settings": json.dumps(dict(settings), sort_keys=True),
        "torch": torch.__version__,
        "threads": str(torch.get_num_threads()),
    }
    if path.exists():
        _resume(training, path, metadata)
    left = range(training.step, job.steps)
    for _ in track(left, len(left), show=None if progress else False, description=job.name):
        training.advance()
        if training.step % every == 0 or training.step == job.steps:
            if not math.isfinite(training.loss):
                raise NonFinite(
                    f"the loss of {job.name} is {training.loss} at step {training.step}; "
                    "train with another seed or a larger batch"
                )
            save_tensors(path, training.state(), metadata)
            keep("training", f"step {training.step} of {job.steps} of {job.name}")
    return training.ema


def _resume(training: Training, path: Path, metadata: dict[str, str]) -> None:
    try:
        with safe_open(path, framework="pt") as file:
            found = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        if found == metadata:
            training.restore(tensors)
            return
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsFileError(
            f"checkpoint {str(path)!r} is damaged ({error}). Start afresh with resume=False, "
            "or give another folder."
        ) from error
    raise InvalidArgument(
        f"checkpoint {str(path)!r} was made by {found}, but this run is {metadata}. Resume with "
        "the same settings, start afresh with resume=False, or give another folder."
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors; copies, since weights that two names share are no matter for the format."""
    apart = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    replace(path, save(apart, metadata))


def fingerprint(folder: str | Path | None) -> int:
    """A number that stands for the weights in a folder, so that others are not taken for them."""
    found = 0
    for file in sorted(Path(folder).rglob("*.safetensors")) if folder is not None else ():
        found = zlib.crc32(file.read_bytes(), found)
    return found


@contextmanager
def checkpoints(
    out: str | Path, settings: Mapping[str, int], every: int, resume: bool, progress: bool
) -> Iterator[Callable[..., Any]]:
    """``fit(task, file, settings)`` with checkpoints in ``out/checkpoints``, removed at the end.

    Before a minute of training is spent the numbers are checked (the seed from 0, the others from
    1) and whether the folder can be written. The default of `settings` are those given here.

    Raises
    ------
    InvalidArgument
        Of a number or the folder.
    """
    for name, value in {**settings, "checkpoint_every": every}.items():
        check_count(name, value, least=0 if name == "seed" else 1)
    folder = Path(out) / "checkpoints"
    if not resume:
        shutil.rmtree(folder, ignore_errors=True)
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidArgument(
            f"cannot write in the folder {str(folder)!r} ({error}); give an output folder that "
            "can be made or written"
        ) from error
    yield lambda task, file, own=settings: fit(task, folder / file, own, every, progress)
    shutil.rmtree(folder)
    keep("training", None)
