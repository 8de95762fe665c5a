"""One run over the processes that torchrun or `accelerate launch` has started."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.distributed as dist


def started_by_torchrun() -> bool:
    """Whether this process is one of several of a launcher."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


@contextmanager
def process_group() -> Iterator[int]:
    """Join the others, NCCL with GPUs and gloo without; yields this process's rank.

    Outside of a launcher there are no others, and the rank is 0. A process that stops with an
    error takes the others along: the launcher stops them.
    """
    if not started_by_torchrun() or dist.is_initialized():
        yield dist.get_rank() if dist.is_available() and dist.is_initialized() else 0
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ.get("LOCAL_RANK", "0")))
        dist.init_process_group("nccl")
    else:
        dist.init_process_group("gloo")
    yield dist.get_rank()
    dist.destroy_process_group()
