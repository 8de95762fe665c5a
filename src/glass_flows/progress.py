"""Progress bars that appear only where somebody waits for them."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["track"]

T = TypeVar("T")
_PATIENCE = 2.0  # seconds before a bar appears by itself


def track(
    steps: Iterable[T], total: int, show: bool | None = None, description: str = "sampling"
) -> Iterator[T]:
    """Yield from `steps` under a progress bar on standard error.

    `show` None shows the bar on a terminal once two seconds have passed; False never.
    """
    console = Console(stderr=True)
    if show is False or (show is None and not console.is_terminal):
        yield from steps
        return
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=not show)
    task = bar.add_task(description, total=total)
    started, since = False, time.monotonic()
    try:
        for step in steps:
            if not started and (show or time.monotonic() - since > _PATIENCE):
                bar.start()
                started = True
            bar.advance(task)
            yield step
    finally:
        if started:
            bar.stop()
