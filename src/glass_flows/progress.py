"""Progress bars that appear only where somebody waits for them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from typing import TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .settings import Switch

__all__ = ["PROGRESS", "Advance", "note", "progress_bar", "track"]

PROGRESS = Switch(optional=True)

T = TypeVar("T")
_PATIENCE = 2.0  # seconds before a bar appears by itself


class Advance:
    """Advances a bar by one when it is called; without a bar nothing happens."""

    def __init__(self, advance: Callable[[], None], say: Callable[[str], None]) -> None:
        self._advance, self.say = advance, say

    def __call__(self) -> None:
        self._advance()


@contextmanager
def progress_bar(
    total: int, show: bool | None = None, description: str = "sampling"
) -> Iterator[Advance]:
    """A bar on standard error, as a function that advances it by one.

    Its `say` puts a text beside the description.

    `show` None shows the bar on a terminal once two seconds have passed; False never.
    """
    console = Console(stderr=True)
    if show is False or (show is None and not console.is_terminal):
        yield Advance(lambda: None, lambda text: None)
        return
    columns = (TextColumn("{task.description}", markup=False), BarColumn(), MofNCompleteColumn())
    bar = Progress(*columns, TimeRemainingColumn(), console=console, transient=not show)
    task = bar.add_task(description, total=total)
    since = time.monotonic()

    def advance() -> None:
        if not bar.live.is_started and (show or time.monotonic() - since > _PATIENCE):
            bar.start()
        bar.advance(task)

    def say(text: str) -> None:
        bar.update(task, description=f"{description}: {text}" if text else description)

    try:
        yield Advance(advance, say)
    finally:
        if bar.live.is_started:
            bar.stop()


def track(
    steps: Iterable[T], total: int, show: bool | None = None, description: str = "sampling"
) -> Iterator[T]:
    """Yield from `steps` under a :func:`progress_bar`."""
    with progress_bar(total, show, description) as advance:
        for step in steps:
            advance()
            yield step


@lru_cache(maxsize=1024)
def note(text: str) -> None:
    """A line on standard error, the first time: on a terminal or in a notebook, of one process."""
    console = Console(stderr=True)
    if (console.is_terminal or console.is_jupyter) and os.environ.get("RANK", "0") == "0":
        console.print(text, style="dim", markup=False, highlight=False, soft_wrap=True)
