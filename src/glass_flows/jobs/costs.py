"""What a run takes on this machine: bytes of a device, seconds of a network."""

from __future__ import annotations

import os
import time
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


def peak(networks: Sequence[nn.Module], device: torch.device, run: Callable[[], Any]) -> int | None:
    """Most bytes held while one of these networks was asked, beyond those before the run.

    On CUDA torch's allocator tells. On a CPU they are those of all tensors that operations made,
    while they were alive, without what operations use inside: the size of the process says less,
    since memory that was given back stays with it. None elsewhere.
    """
    most, alive = 0, Alive()
    if device.type not in ("cpu", "cuda"):
        return None
    before = torch.cuda.memory_allocated(device) if device.type == "cuda" else 0

    def begin(*_: Any) -> None:
        alive.most = alive.now
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)

    def end(*_: Any) -> None:
        nonlocal most
        cuda = device.type == "cuda"
        most = max(most, torch.cuda.max_memory_allocated(device) - before if cuda else alive.most)

    with ExitStack() as stack:
        for network in networks:
            stack.callback(network.register_forward_pre_hook(begin).remove)
            stack.callback(network.register_forward_hook(end).remove)
        if device.type == "cpu":
            stack.enter_context(alive)
        run()
    return most


class Alive(TorchDispatchMode):
    """Counts the bytes of tensors that operations make, as long as they live: `now`, and at `most`.

    What a kernel needs for itself is not seen.
    """

    def __init__(self) -> None:
        super().__init__()
        self.known: weakref.WeakSet[Any] = weakref.WeakSet()
        self.now = self.most = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = {one.untyped_storage().data_ptr() for one in _tensors((args, kwargs))}
        output = func(*args, **(kwargs or {}))
        for one in _tensors(output):
            storage = one.untyped_storage()
            if storage in self.known or storage.data_ptr() in given:  # a view
                continue
            size = storage.nbytes()
            self.known.add(storage)
            self.now += size
            self.most = max(self.most, self.now)
            weakref.finalize(storage, self._gone, size)
        return output

    def _gone(self, size: int) -> None:
        self.now -= size


def _tensors(tree: Any) -> list[Tensor]:
    return [one for one in tree_leaves(tree) if isinstance(one, Tensor)]


def free_bytes(device: torch.device) -> int:
    """What a device has left: on CUDA also what torch keeps of it without using it."""
    if device.type == "cuda":
        kept = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
        return int(torch.cuda.mem_get_info(device)[0] + kept)
    return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")


def elapsed(device: torch.device, run: Callable[[], Any]) -> float:
    """Seconds until a run has finished on its device."""
    _wait(device)
    began = time.perf_counter()
    run()
    _wait(device)
    return time.perf_counter() - began


@contextmanager
def timed(networks: Sequence[nn.Module], device: torch.device) -> Iterator[list[float]]:
    """Seconds of each call of one of these networks within."""
    spent: list[float] = []

    def begin(*_: Any) -> None:
        _wait(device)
        spent.append(-time.perf_counter())

    def end(*_: Any) -> None:
        _wait(device)
        spent[-1] += time.perf_counter()

    with ExitStack() as stack:
        for network in networks:
            stack.callback(network.register_forward_pre_hook(begin).remove)
            stack.callback(network.register_forward_hook(end).remove)
        yield spent


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
