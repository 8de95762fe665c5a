"""Ctrl-C and SIGTERM: a command ends at once, in one line that says how far its files have come."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

_PATIENCE = 1.5  # seconds that a command has to put things in order
_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_kept: dict[str, str] = {}


class Stopped(BaseException):
    """The signal of this number has come."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.number = number


def keep(what: str, far: str | None) -> None:
    """Note how far the files of something have come; None once it is over, or of no use."""
    _kept.pop(what, None)
    if far is not None:
        _kept[what] = far


def standing() -> str:
    """What is kept so far, for people."""
    if not _kept:
        return "nothing was begun that could be gone on with; the same command begins again"
    without = ", without --overwrite" if "--overwrite" in sys.argv else ""
    return f"kept {', '.join(_kept.values())}; the same command goes on there{without}"


@contextmanager
def stoppable() -> Iterator[None]:
    """SIGINT and SIGTERM end what is inside, and the process with it.

    They are raised as :class:`Stopped`, so that folders are given back and workers are stopped.
    Where that takes too long, in the middle of a large network, the process ends all the same:
    whatever it was writing, files are whole or not there.
    """
    _kept.clear()  # of what this process did before
    heard, said = os.pipe()
    os.set_blocking(said, False)
    over = threading.Lock()

    def end(number: int) -> None:
        over.acquire()  # one of the two says it
        print(f"\nstopped: {standing()}", file=sys.stderr, flush=True)
        os._exit(128 + number)

    def wait() -> None:
        for number in iter(lambda: os.read(heard, 1), b""):
            if number[0] in _SIGNALS:
                threading.Event().wait(_PATIENCE)
                end(number[0])
        os.close(heard)

    def stop(number: int, frame: FrameType | None) -> None:
        for one in _SIGNALS:
            signal.signal(one, signal.SIG_IGN)
        raise Stopped(number)

    threading.Thread(target=wait, daemon=True).start()
    before = {one: signal.signal(one, stop) for one in _SIGNALS}
    signal.set_wakeup_fd(said, warn_on_full_buffer=False)
    try:
        yield
    except Stopped as error:
        end(error.number)
    finally:
        signal.set_wakeup_fd(-1)
        for one, handler in before.items():
            signal.signal(one, handler)
        os.close(said)
