"""Where the items of a batch run: here, or in several processes of this machine."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from multiprocessing import active_children, connection, get_context, parent_process
from pathlib import Path

from ..errors import RunFolderError
from .items import Item, Over, Work, Worker
from .models import Model

_FRUITLESS = 3  # how often workers may die in a row without finishing anything


def run_here(work: Work, items: Sequence[Item], out: Path, model: Model | None) -> Iterator[Over]:
    """Every item, when it is over; in this process."""
    worker = Worker(work, model)
    for item in items:
        yield worker.do(item, out)


def run_in_processes(work: Work, items: Sequence[Item], out: Path, workers: int) -> Iterator[Over]:
    """Every item, when it is over; in processes of this machine.

    One that dies takes the others along; the rest is begun again.

    They end with this process, however it ends, and with this iterator.
    """
    left, fruitless = list(items), 0
    while left:
        finished: set[Item] = set()
        count, others = min(workers, len(left)), set(active_children())
        with ProcessPoolExecutor(count, get_context("spawn"), _load, (work,)) as pool:
            with _unheard(signal.SIGINT):
                futures = {pool.submit(_do, item, out): item for item in left}
            try:
                for future in as_completed(futures):
                    over = future.result()
                    finished.add(futures[future])
                    yield over
            except BrokenProcessPool:
                fruitless = 0 if finished else fruitless + 1
                if fruitless == _FRUITLESS:
                    raise RunFolderError(
                        f"the workers died {_FRUITLESS} times without finishing anything (out of "
                        "memory?): take fewer workers, or --max-batch 1. What is finished is kept"
                    ) from None
            except BaseException:  # the pool would wait for what they are at
                for process in set(active_children()) - others:
                    process.kill()
                raise
        left = [item for item in left if item not in finished]


@contextmanager
def _unheard(number: signal.Signals) -> Iterator[None]:
    """Processes that are started inside never get this signal: Ctrl-C is for their parent."""
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, [number])
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


_worker: Worker | None = None  # of a worker process


def _load(work: Work) -> None:
    global _worker
    threading.Thread(target=_follow, daemon=True).start()
    _worker = Worker(work)


def _follow() -> None:
    """End with the process that has started this one, however that ends."""
    parent = parent_process()
    if parent is not None:
        connection.wait([parent.sentinel])
        os._exit(1)


def _do(item: Item, out: Path) -> Over:
    if _worker is None:
        raise RuntimeError("a worker was not started as one")
    return _worker.do(item, out)
