"""Weights: which they are; and state dicts, read as tensors only, checked by name and shape."""

from __future__ import annotations

import hashlib
import os
import pickle
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from .errors import WeightsFileError

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


def identity(place: str | Path, revision: str | None = None) -> str | None:
    """Which weights these are: a hash of a file or of all files of a folder, or a commit of a hub.

    Hidden files and pages (.md) do not count. None of a hub's model that is not here yet.
    """
    home = Path(place)
    if not home.exists():
        return _commit(str(place), revision)
    files = [home] if home.is_file() else sorted(p for p in home.rglob("*") if p.is_file())
    found = hashlib.sha256()
    for file in files:
        name = file.relative_to(home)
        if file.suffix == ".md" or any(part.startswith(".") for part in name.parts):
            continue
        about = file.stat()
        found.update(name.as_posix().encode())
        found.update(_hash(file.resolve(), about.st_size, about.st_mtime_ns))
    return found.hexdigest()[:16]


@lru_cache(maxsize=4096)
def _hash(file: Path, size: int, time: int) -> bytes:
    """Read again only if size or time are others."""
    with open(file, "rb") as opened:
        return hashlib.file_digest(opened, "sha256").digest()


def _commit(name: str, revision: str | None) -> str | None:
    try:
        from huggingface_hub import try_to_load_from_cache
    except ImportError:
        return None
    with suppress(ValueError):  # of what is no name on the hub
        for file in ("model_index.json", "config.json", "pytorch_lora_weights.safetensors"):
            found = try_to_load_from_cache(name, file, revision=revision)
            if isinstance(found, str):
                return Path(found).parent.name
    return None
