"""A device that is not the CPU's, on machines that have no other.

Within :class:`Elsewhere` tensors on :data:`DEVICE` hold their numbers on the CPU, and behave as
those of an accelerator do: an operation on tensors of both devices fails, and each time that the
host has to wait for a number of the device is written down.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

__all__ = ["DEVICE", "Elsewhere"]

DEVICE = torch.device("meta")  # whose tensors hold nothing by themselves, and need no driver

_aten = torch.ops.aten
_READS = {  # what cannot be known without waiting: numbers, and shapes that depend on them
    _aten._local_scalar_dense.default,
    _aten.equal.default,
    _aten.masked_select.default,
    _aten.nonzero.default,
}
_MAY_MIX = {_aten.copy_.default, _aten.index.Tensor}  # as CUDA allows


class _Far(Tensor):
    """A tensor on :data:`DEVICE`."""

    held: Tensor

    @staticmethod
    def __new__(cls, held: Tensor) -> _Far:
        far = Tensor._make_wrapper_subclass(
            cls, held.shape, held.stride(), held.storage_offset(), dtype=held.dtype, device=DEVICE
        )
        far.held = held
        return far

    @classmethod
    def __torch_dispatch__(cls, operation, types, args=(), kwargs=None):
        raise AssertionError(f"{operation} outside of Elsewhere")

    @property
    def is_meta(self) -> bool:
        return False

    def tolist(self) -> Any:
        return self.cpu().tolist()

    def numpy(self, **options: Any) -> Any:
        raise TypeError("can't convert a tensor of the device to numpy: call .cpu() first")


class Elsewhere(TorchDispatchMode):
    """The context in which :data:`DEVICE` is there.

    Attributes
    ----------
    waits : list of str
        Where in the package the host waited for the device, ``file:function``, in order.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits: list[str] = []
        self._literals = _Literals()

    def __enter__(self) -> Elsewhere:
        self._literals.__enter__()
        super().__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        super().__exit__(*error)
        self._literals.__exit__(*error)

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        given = [a for a in _leaves((args, kwargs)) if isinstance(a, Tensor)]
        far = [a for a in given if isinstance(a, _Far)]
        near = [a for a in given if not isinstance(a, _Far)]
        named = kwargs.get("device")
        there = bool(far) if named is None else torch.device(named) == DEVICE
        downloads = operation is _aten._to_copy.default and not there
        if far and (operation in _READS or downloads):
            self.waits.append(_caller())
        if far and any(a.ndim for a in near) and operation not in _MAY_MIX:
            shapes = [tuple(a.shape) for a in near]
            raise RuntimeError(f"{operation}: tensors of {shapes} are on the CPU, others elsewhere")

        def here(argument: Any) -> Any:
            if isinstance(argument, torch.device):
                return torch.device("cpu")
            return argument.held if isinstance(argument, _Far) else argument

        def back(result: Any) -> Any:
            if not isinstance(result, Tensor) or not there:
                return result
            own = [a for a in far if a.held is result]  # what worked in place
            return own[0] if own else _Far(result.resolve_conj().resolve_neg())

        return _map(back, operation(*_map(here, args), **_map(here, kwargs)))


def _leaves(tree: Any) -> Iterator[Any]:
    """As torch's tree_leaves, for what operations are given, and at a third of its time."""
    if isinstance(tree, (tuple, list, dict)):
        for branch in tree.values() if isinstance(tree, dict) else tree:
            yield from _leaves(branch)
    else:
        yield tree


def _map(change: Callable[[Any], Any], tree: Any) -> Any:
    if isinstance(tree, dict):
        return {name: _map(change, branch) for name, branch in tree.items()}
    if isinstance(tree, (tuple, list)):
        return type(tree)([_map(change, branch) for branch in tree])
    return change(tree)


class _Literals(TorchFunctionMode):
    """Tensors made from Python numbers, which torch would make without asking the dispatcher."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = dict(kwargs or {})
        if function in (torch.tensor, torch.as_tensor) and _is_there(kwargs.get("device")):
            device = kwargs.pop("device")
            return function(*args, **kwargs).to(device)
        if function is Tensor.__getitem__ and isinstance(args[0], _Far):
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            return function(args[0], tuple(map(_uploaded, index)))
        if function is Tensor.__format__ and isinstance(args[0], _Far):
            return "a number elsewhere"  # of messages that transformers has ready
        return function(*args, **kwargs)


def _is_there(device: Any) -> bool:
    return device is not None and torch.device(device) == DEVICE


def _uploaded(index: Any) -> Any:
    index = torch.tensor(index) if isinstance(index, list) else index
    return index.to(DEVICE) if isinstance(index, Tensor) else index


def _caller() -> str:
    """The innermost function of the package that is running."""
    frame = sys._getframe()
    while frame is not None:
        file = Path(frame.f_code.co_filename)
        if "glass_flows" in file.parts:
            return f"{file.name}:{frame.f_code.co_name}"
        frame = frame.f_back
    return "elsewhere"
