"""Where the items of a batch run: here, or in several processes of this machine."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from concurrent.futures.process import BrokenProcessPool
from multiprocessing import get_context
from pathlib import Path

from ..errors import RunFolderError
from .items import Item, Work, Worker
from .models import Model

__all__ = ["run_here", "run_in_processes"]

_FRUITLESS = 3  # how often workers may die in a row without finishing anything


def run_here(work: Work, items: Sequence[Item], out: Path, model: Model | None) -> Iterator[None]:
    """Yield once for every item that is over."""
    worker = Worker(work, model)
    for item in items:
        worker.do(item, out)
        yield


def run_in_processes(work: Work, items: Sequence[Item], out: Path, workers: int) -> Iterator[None]:
    """Workers of one machine. One that dies takes the others along; the rest is begun again."""
    left, fruitless = list(items), 0
    while left:
        finished: set[Item] = set()
        with ProcessPoolExecutor(
            min(workers, len(left)), get_context("spawn"), _load, (work,)
        ) as pool:
            futures = {pool.submit(_do, item, out): item for item in left}
            try:
                for future in as_completed(futures):
                    future.result()
                    finished.add(futures[future])
                    yield
            except BrokenProcessPool:
                fruitless = 0 if finished else fruitless + 1
                if fruitless == _FRUITLESS:
                    raise RunFolderError(
                        f"the workers died {_FRUITLESS} times without finishing anything (out of "
                        "memory?): take fewer workers, or --max-batch 1. What is finished is kept"
                    ) from None
            except BaseException:
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        left = [item for item in left if item not in finished]


_worker: Worker | None = None  # of a worker process


def _load(work: Work) -> None:
    global _worker
    _worker = Worker(work)


def _do(item: Item, out: Path) -> None:
    if _worker is None:
        raise RuntimeError("a worker was not started as one")
    _worker.do(item, out)
