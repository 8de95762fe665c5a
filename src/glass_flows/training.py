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
from .runs.listing import apart
from .stops import keep

_RECORD, _CHECKPOINTS = "training.json", "checkpoints"
_FROM_ZERO = ("seed", "text_steps")
_FINGERPRINTS = ("start", "pipeline")
_AFRESH = "Give another folder, or train afresh in this one (--overwrite, overwrite=True)"

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
        there, here = (
            {**one, "settings": json.loads(one["settings"])} for one in (found, metadata)
        )
    except (SafetensorError, OSError, ValueError, KeyError, RuntimeError) as error:
        raise WeightsFileError(
            f"checkpoint {str(path)!r} is damaged ({error}). {_AFRESH}"
        ) from error
    raise InvalidArgument(
        f"checkpoint {str(path)!r} is of another training, which differs in {apart(there, here)}. "
        f"Go on with the same settings, or: {_AFRESH}"
    )


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: dict[str, str]) -> None:
    """Write tensors; copies, since weights that two names share are no matter for the format."""
    apart = {k: v.detach().clone(memory_format=torch.contiguous_format) for k, v in tensors.items()}
    replace(path, save(apart, metadata))


def fingerprint(folder: str | Path | None) -> int:
    """A number that stands for the weights in a folder, so that others are not taken for them.

    Checkpoints do not count: they are of a training that may begin with these weights.
    """
    found = 0
    for file in sorted(Path(folder).rglob("*.safetensors")) if folder is not None else ():
        if file.parent.name != _CHECKPOINTS:
            found = zlib.crc32(file.read_bytes(), found)
    return found


@dataclass(frozen=True)
class Trained:
    """What a training leaves in a folder: weights, and ``training.json``, which says of which.

    Attributes
    ----------
    out : Path
    name : str
        Of the training.
    settings : mapping of str to int
        All that its weights depend on: counts, and what :func:`fingerprint` says of others.
    files : tuple of str
        The weights, by their names in the folder.

    Raises
    ------
    InvalidArgument
        A number is out of range.
    """

    out: Path
    name: str
    settings: Mapping[str, int]
    files: tuple[str, ...]

    def __post_init__(self) -> None:
        for name in (one for one in self.settings if one not in _FINGERPRINTS):
            check_count(name, self.settings[name], least=0 if name in _FROM_ZERO else 1)

    def kept(self, overwrite: bool, announce: Callable[[str], None]) -> dict[str, float] | None:
        """The figures of this training if the folder holds it finished; then nothing is to be done.

        With `overwrite` never: checkpoints and record are thrown away, and the weights replaced
        once there are new ones.

        Raises
        ------
        InvalidArgument
            It holds a finished training with other settings, or weights of which nothing is known.
        WeightsFileError
            Record or weights are not those that were written.
        """
        record, folder = self.out / _RECORD, self.out / _CHECKPOINTS
        if overwrite:
            record.unlink(missing_ok=True)
            shutil.rmtree(folder, ignore_errors=True)
            return None
        if not record.exists():
            if any((self.out / name).exists() for name in self.files) and not folder.exists():
                raise InvalidArgument(
                    f"{str(self.out)!r} holds weights of which no {_RECORD} says how they were "
                    f"trained. {_AFRESH}"
                )
            return None
        try:
            there = json.loads(record.read_text(encoding="utf-8"))
            figures, weights = dict(there.pop("figures")), there.pop("weights")
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise WeightsFileError(f"{str(record)!r} is damaged ({error}). {_AFRESH}") from error
        if there != (here := self._whose()):
            raise InvalidArgument(
                f"{str(self.out)!r} holds a finished training, which differs in "
                f"{apart(there, here)}. {_AFRESH}"
            )
        if weights != self._weights():
            raise WeightsFileError(
                f"the weights in {str(self.out)!r} are not those that were trained there. {_AFRESH}"
            )
        shutil.rmtree(folder, ignore_errors=True)  # it may have been killed before it did this
        announce("finished already: nothing is trained")
        return figures

    def finish(self, figures: Mapping[str, float]) -> None:
        """Write that the weights, which are there, are of this training."""
        found = {**self._whose(), "weights": self._weights(), "figures": dict(figures)}
        replace(self.out / _RECORD, (json.dumps(found, indent=1) + "\n").encode())

    def _whose(self) -> dict[str, object]:
        return {"training": self.name, "settings": dict(self.settings)}

    def _weights(self) -> dict[str, int | None]:
        """A number for each file; None of one that is not there."""
        places = {name: self.out / name for name in self.files}
        return {n: zlib.crc32(p.read_bytes()) if p.is_file() else None for n, p in places.items()}


@contextmanager
def checkpoints(trained: Trained, every: int, progress: bool) -> Iterator[Callable[..., Any]]:
    """``fit(task, file, settings)`` with checkpoints in ``out/checkpoints``, removed at the end.

    The default of `settings` are all of the training. What is done inside ends with
    ``trained.finish``. Before a minute is spent it is checked whether the folder can be written.

    Raises
    ------
    InvalidArgument
        Of the folder, or of `every`.
    """
    check_count("checkpoint_every", every)
    folder = trained.out / _CHECKPOINTS
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise InvalidArgument(
            f"cannot write in the folder {str(folder)!r} ({error}); give an output folder that "
            "can be made or written"
        ) from error
    yield lambda task, file, own=trained.settings: fit(task, folder / file, own, every, progress)
    shutil.rmtree(folder)
    keep("training", None)
