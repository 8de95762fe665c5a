"""Bundled real models on 8x8 handwritten digits: a generator, a reward and a judge.

Small enough for a laptop's CPU, real enough to show what a sampler does to a *learned* network:
a class-conditional flow-matching network (about 0.5M parameters) and two classifiers trained on
disjoint halves of the images, one to be optimised as a reward, one to judge the outcome.

Symbols: t in [0, 1] (0 is noise, 1 is data), x_t = t z + (1 - t) ε, velocity z - ε.
Pixels are grey levels in [-1, 1]: -1 is paper, 1 is ink.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal, TypeVar

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torch.nn import functional as F

from ..checkpoints import check_tensors
from ..errors import InvalidArgument, MissingExtra, ShapeError, WeightsFileError, check_name

CLASSES = 10
NULL_CLASS = 10
"""Label of the unconditional model (what label dropout trains)."""

IMAGE = (1, 8, 8)

# `model` in the metadata of a weights file; its file name in the package is FILES[name].
NETWORK = "digits-network"
FILES = {
    NETWORK: "digits.safetensors",
    "digits-reward": "digits_reward.safetensors",
    "digits-judge": "digits_judge.safetensors",
}

_SPLIT_SEED = 20260101
_Model = TypeVar("_Model", bound=nn.Module)


# ------------------------------------------------------------------------------------- networks


class _Block(nn.Module):
    """Residual MLP whose normalised input is scaled and shifted by the condition (adaLN)."""

    def __init__(self, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.modulation = nn.Linear(hidden, 2 * hidden)
        self.up = nn.Linear(hidden, hidden)
        self.down = nn.Linear(hidden, hidden)
        nn.init.zeros_(self.modulation.weight)
        nn.init.zeros_(self.modulation.bias)

    def forward(self, h: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.modulation(condition).chunk(2, dim=-1)
        return h + self.down(F.silu(self.up(self.norm(h) * (1 + scale) + shift)))


class DigitsNet(nn.Module):
    """Class-conditional velocity network for 8x8 digits: an adaLN residual MLP.

    Predicts E[z - ε | x_t = x, label] on the linear path x_t = t z + (1 - t) ε.

    Parameters
    ----------
    hidden, depth : int, at least 1
        Width and number of residual blocks. The bundled weights use the defaults (496k parameters).
    """

    _FREQUENCIES = 64

    def __init__(self, hidden: int = 192, depth: int = 3) -> None:
        super().__init__()
        if hidden < 1 or depth < 1:
            raise InvalidArgument(
                f"hidden and depth must be at least 1, got hidden={hidden}, depth={depth}"
            )
        self.pixels_in = nn.Linear(64, hidden)
        self.time = nn.Linear(2 * self._FREQUENCIES, hidden)
        self.label = nn.Embedding(CLASSES + 1, hidden)
        self.blocks = nn.ModuleList(_Block(hidden) for _ in range(depth))
        self.norm = nn.LayerNorm(hidden, elementwise_affine=False)
        self.pixels_out = nn.Linear(hidden, 64)
        nn.init.zeros_(self.pixels_out.weight)  # the untrained network is the zero velocity
        nn.init.zeros_(self.pixels_out.bias)

    def forward(self, x: Tensor, t: Tensor, label: Tensor | None = None) -> Tensor:
        """Velocity at x and time t.

        Parameters
        ----------
        x : Tensor, (B, 1, 8, 8), floating point
            Computed in the dtype of the weights, whatever the dtype of x.
        t : Tensor, (B,) or 0-d, in [0, 1]
            0 is noise, 1 is data. The range is not checked: that would synchronise a GPU.
        label : integer Tensor, (B,), or None
            Classes 0 to 9; 10 (`NULL_CLASS`) is the unconditional model, as is None.

        Returns
        -------
        Tensor, (B, 1, 8, 8), dtype of x

        Raises
        ------
        ShapeError
            A shape or a dtype other than these.
        InvalidArgument
            A label outside 0..10 (found on the CPU only: on a GPU torch itself reports it).
        """
        _check_images(x)
        batch = x.shape[0]
        if t.shape not in ((), (batch,)) or not t.is_floating_point():
            raise ShapeError(
                f"t must be a floating-point tensor of shape ({batch},) or (), "
                f"got {t.dtype} of shape {tuple(t.shape)}"
            )
        condition = F.silu(self._embed_time(t) + self._embed_label(label, x))
        h = self.pixels_in(x.flatten(1).to(self.pixels_in.weight.dtype))
        for block in self.blocks:
            h = block(h, condition)
        return self.pixels_out(self.norm(h)).to(x.dtype).reshape(x.shape)

    def _embed_time(self, t: Tensor) -> Tensor:
        # The angles need more digits than bfloat16 has, hence the wide type and no buffer
        # (which .to(bfloat16) would round).
        weight = self.time.weight
        wide = torch.promote_types(weight.dtype, torch.float32)
        frequencies = torch.logspace(0, 2, self._FREQUENCIES, dtype=wide, device=weight.device)
        angles = t.to(frequencies).reshape(-1, 1) * frequencies
        return self.time(torch.cat([angles.cos(), angles.sin()], dim=-1).to(weight.dtype))

    def _embed_label(self, label: Tensor | None, x: Tensor) -> Tensor:
        batch = x.shape[0]
        if label is None:
            label = torch.full((batch,), NULL_CLASS, device=x.device)
        if label.shape != (batch,) or label.is_floating_point() or label.dtype == torch.bool:
            raise ShapeError(
                f"label must be an integer tensor of shape ({batch},), "
                f"got {label.dtype} of shape {tuple(label.shape)}"
            )
        try:
            return self.label(label.long())
        except IndexError:
            raise InvalidArgument(
                f"labels must be classes 0 to 9, or {NULL_CLASS} for the unconditional model, "
                f"got values from {int(label.min())} to {int(label.max())}"
            ) from None


class DigitsClassifier(nn.Module):
    """Small convolutional classifier of 8x8 digits (51k parameters), smooth in its input."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(1, 24, 3, padding=1)
        self.conv2 = nn.Conv2d(24, 40, 3, stride=2, padding=1)
        self.hidden = nn.Linear(40 * 4 * 4, 64)
        self.logits = nn.Linear(64, CLASSES)

    def features(self, x: Tensor) -> Tensor:
        """Activations before the last layer: (B, 1, 8, 8) -> (B, 64), dtype of the weights.

        Raises :class:`ShapeError` on another shape or on a dtype that is not floating point.
        """
        _check_images(x)
        # SiLU, not ReLU: gradients of a reward should be smooth.
        h = F.silu(self.conv1(x.to(self.conv1.weight.dtype)))
        h = F.silu(self.conv2(h))
        return F.silu(self.hidden(h.flatten(1)))

    def forward(self, x: Tensor) -> Tensor:
        """Class logits: (B, 1, 8, 8) -> (B, 10), dtype of the weights; errors as `features`."""
        return self.logits(self.features(x))


def _check_images(x: Tensor) -> None:
    if x.ndim != 4 or tuple(x.shape[1:]) != IMAGE or not x.is_floating_point():
        raise ShapeError(
            "digits must be a floating-point tensor of shape (B, 1, 8, 8), "
            f"got {x.dtype} of shape {tuple(x.shape)}"
        )


# -------------------------------------------------------------------------------------- weights


def load_digits_network(path: str | Path | None = None) -> DigitsNet:
    """The trained velocity network, float32, on the CPU, in eval mode, without gradients.

    Parameters
    ----------
    path : path of a ``.safetensors`` file written by ``glass-flows train digits``; None takes
        the weights that ship with the package.

    Raises
    ------
    WeightsFileError
        The file is missing, damaged, of another model, or holds NaN or infinity.
    """
    return _load(DigitsNet(), NETWORK, path)


def load_digits_classifier(
    role: Literal["reward", "judge"], path: str | Path | None = None
) -> DigitsClassifier:
    """One of the two classifiers, float32, on the CPU, in eval mode, without weight gradients.

    They were trained on disjoint halves of the images (see :func:`digits_split`): optimise the
    one, report the other, or the figures measure how well the reward was fooled.

    Parameters
    ----------
    role : "reward" or "judge"
    path : as in :func:`load_digits_network`

    Raises
    ------
    UnknownName
        Another role.
    WeightsFileError
        As in :func:`load_digits_network`; a file of the other role is refused too.
    """
    check_name("role", role, ("reward", "judge"))
    return _load(DigitsClassifier(), f"digits-{role}", path)


def _load(model: _Model, name: str, path: str | Path | None) -> _Model:
    shipped = Path(__file__).parent / "weights" / FILES[name]
    model.load_state_dict(_read(Path(path or shipped), name, model.state_dict()))
    return model.eval().requires_grad_(False)


def _read(path: Path, name: str, expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of a weights file, after every check that can be made against the model."""

    def refuse(problem: str) -> WeightsFileError:
        return WeightsFileError(
            f"weights file {str(path)!r}: {problem}. Write a good one with "
            f"`glass-flows train digits --out FOLDER` and pass FOLDER/{FILES[name]}; if this is "
            "the file that ships with glass-flows, reinstall the package."
        )

    if not path.is_file():
        raise refuse("there is no such file")
    try:
        with safe_open(path, framework="pt") as file:
            found = (file.metadata() or {}).get("model")
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise refuse(f"it is truncated or not a safetensors file ({error})") from error
    if found != name:
        raise refuse(f"its metadata says model={found!r}, needed is {name!r}")
    check_tensors(expected, tensors, refuse)
    for key, tensor in tensors.items():
        if tensor.dtype != expected[key].dtype:
            raise refuse(f"{key} is {tensor.dtype}, needed is {expected[key].dtype}")
    return tensors


# ----------------------------------------------------------------------------------------- data


def digits_images() -> Tensor:
    """The 1797 images of scikit-learn's `load_digits`: (1797, 1, 8, 8), float32, in [-1, 1].

    Grey levels are k/8 - 1 for k = 0..16. Raises :class:`MissingExtra` without scikit-learn.
    """
    return _digits()[0].clone()


def digits_labels() -> Tensor:
    """Their classes: (1797,), int64, 0..9. Raises :class:`MissingExtra` without scikit-learn."""
    return _digits()[1].clone()


def digits_split() -> tuple[Tensor, Tensor]:
    """Indices of the images that trained the reward and of those that trained the judge.

    Returns
    -------
    reward, judge : int64 Tensors, sorted, (898,) and (899,)
        Disjoint; together all 1797 images. Each class is divided evenly (to one image). Always
        the same: the bundled weights depend on it. What one trained on is held out for the other.

    Raises
    ------
    MissingExtra
        scikit-learn is not installed.
    """
    labels = digits_labels().numpy()
    # numpy promises the stream of RandomState for good, and that of a Generator it does not.
    random = np.random.RandomState(_SPLIT_SEED)
    # Shuffled within each class, classes one after the other, then dealt like cards.
    dealt = np.concatenate([random.permutation(np.flatnonzero(labels == c)) for c in range(10)])
    reward, judge = np.sort(dealt[1::2]), np.sort(dealt[0::2])
    return torch.from_numpy(reward), torch.from_numpy(judge)


@lru_cache(maxsize=1)
def _digits() -> tuple[Tensor, Tensor]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "digits", "The digits data set") from error
    pixels, labels = load_digits(return_X_y=True)
    images = torch.from_numpy(pixels / 8 - 1).float().reshape(-1, *IMAGE)
    return images, torch.from_numpy(labels).long()
