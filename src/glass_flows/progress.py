"""Progress bars that appear only where somebody waits for them: on a terminal, in a notebook."""

from __future__ import annotations

import html
import os
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import lru_cache
from importlib import import_module
from importlib.util import find_spec
from typing import Any, TypeVar

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .settings import Switch

PROGRESS = Switch(optional=True)

T = TypeVar("T")
_PATIENCE = 2.0  # seconds before a bar appears by itself
_OFTEN = 0.2  # seconds between two pictures of a notebook's bar


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

    `show` None shows the bar on a terminal or in a notebook once two seconds have passed; False
    never.
    """
    show = PROGRESS.read("progress", show)
    console = Console(stderr=True)
    if show is False or (show is None and not (console.is_terminal or console.is_jupyter)):
        yield Advance(lambda: None, lambda text: None)
        return
    if console.is_jupyter:
        shown = _InNotebook(total, show, description)
        try:
            yield Advance(shown.advance, shown.say)
        finally:
            shown.stop()
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


class _InNotebook:
    """A bar as a line of HTML, for which nothing beside IPython is needed."""

    def __init__(self, total: int, show: bool | None, description: str) -> None:
        self.total, self.show, self.description = total, show, description
        self.done, self.told, self.handle = 0, "", None
        self.since = self.drawn = time.monotonic()

    def advance(self) -> None:
        self.done += 1
        first = 0.0 if self.show else _PATIENCE
        if time.monotonic() - self.drawn >= (first if self.handle is None else _OFTEN):
            self.draw(self._text())

    def say(self, text: str) -> None:
        self.told = f": {text}" if text else ""

    def _text(self) -> str:
        left = (time.monotonic() - self.since) / max(self.done, 1) * (self.total - self.done)
        return f"{self.description}{self.told}: {self.done}/{self.total}, {left:.0f} s left"

    def draw(self, text: str) -> None:
        notebook: Any = import_module("IPython.display")
        line = f'<progress max="{self.total}" value="{self.done}"></progress> {html.escape(text)}'
        shown = {"text/plain": text, "text/html": line if text else ""}
        if self.handle is None:
            self.handle = notebook.display(shown, raw=True, display_id=True)
        else:
            self.handle.update(shown, raw=True)
        self.drawn = time.monotonic()

    def stop(self) -> None:
        """It stays if it was asked for; else it was there for those who wait."""
        if self.handle is not None:
            done = f"{self.description}{self.told}: {self.done}/{self.total}"
            self.draw(done if self.show else "")


def without_widgets() -> None:
    """Before diffusers or transformers are imported: their bars do without ipywidgets in a
    notebook, and say nothing of it."""
    if find_spec("tqdm") is not None:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message="IProgress not found")
            import_module("tqdm.auto")


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
