"""Published checkpoints: state dicts read as tensors only, checked by name, shape and value."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import WeightsFileError

__all__ = ["Refuse", "State", "check_tensors", "read_tensors"]

State = dict[str, Tensor]
Refuse = Callable[[str], WeightsFileError]  # of a problem, the error that names the file


def read_tensors(path: str | os.PathLike[str], refuse: Refuse, *wrappers: str) -> State:
    """The tensors of a file by name, of the first of `wrappers` that is a dict in it.

    Pickled files are read with ``weights_only=True``: one that holds code is refused.
    """
    try:
        if Path(path).suffix == ".safetensors":
            found: Any = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise refuse("there is no such file") from None
    except (pickle.UnpicklingError, RuntimeError, EOFError, OSError, SafetensorError) as error:
        raise refuse(f"it is damaged, or holds more than tensors ({error})") from error
    for wrapper in wrappers:
        if isinstance(found, dict) and isinstance(found.get(wrapper), dict):
            found = found[wrapper]
    if not isinstance(found, dict) or not all(isinstance(v, Tensor) for v in found.values()):
        raise refuse("it is not a state dict of tensors")
    return {str(key).removeprefix("module."): tensor for key, tensor in found.items()}


def check_tensors(
    expected: Mapping[str, Tensor], state: State, refuse: Refuse, where: str = ""
) -> None:
    """Raise unless `state` holds the tensors expected and no other, in shape and finite."""
    for what, names in (
        ("missing", expected.keys() - state.keys()),
        ("not known", state.keys() - expected.keys()),
    ):
        if names:
            raise refuse(f"{where}tensors {what}: {', '.join(sorted(names)[:8])}")
    for name, tensor in expected.items():
        if state[name].shape != tensor.shape:
            given, wanted = tuple(state[name].shape), tuple(tensor.shape)
            raise refuse(f"{where}{name} is {given}, expected {wanted}")
        if not bool(torch.isfinite(state[name]).all()):
            raise refuse(f"{where}{name} holds NaN or infinity")
