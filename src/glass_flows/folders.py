"""Folders, each written by one process at a time."""

from __future__ import annotations

import errno
import json
import os
import socket
import sys
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from functools import wraps
from inspect import signature
from pathlib import Path
from typing import ParamSpec, TypeVar

from filelock import FileLock, Timeout
from safetensors import SafetensorError

from .errors import FolderInUse, InvalidArgument, RunFolderError
from .files import is_temporary

P = ParamSpec("P")
R = TypeVar("R")
LOCKS = (".lock", ".lock.json")
"""Names of the lock, and of what tells who holds it."""
FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Numbers of errors after which nothing more can be written anywhere near."""
_DENIED = (
    errno.EACCES, errno.EPERM, errno.EROFS, errno.EISDIR, errno.ENOTDIR, errno.ENOENT,
    errno.EINVAL,  # of what is no regular file
)  # fmt: skip
_LONGEST = 200  # of a command in a message


class _Taken:
    """A folder that this process holds: how often, and what had to be made for it."""

    def __init__(self, lock: FileLock, made: list[Path]) -> None:
        self.lock, self.made, self.count = lock, made, 0


_taken: dict[tuple[int, Path], _Taken] = {}  # by process: a fork holds nothing of its parent's


class Hold:
    """A folder into which only this process writes, until the hold is released or is gone.

    The lock is the operating system's and goes with the process, however it ends. A process may
    hold a folder several times.

    Parameters
    ----------
    folder : path
        Made if it is missing, and taken away again if nothing is written into it.
    patience : float
        Seconds to wait for another process, such as one that is dying.

    Raises
    ------
    FolderInUse
        Another process holds it; the message says which, and since when.
    OSError
        It cannot be made or written.
    """

    def __init__(self, folder: Path, patience: float = 0.0) -> None:
        missing = [place for place in (folder, *folder.parents) if not place.exists()]
        folder.mkdir(parents=True, exist_ok=True)
        key = (os.getpid(), folder.resolve())
        if key not in _taken:
            lock = FileLock(key[1] / LOCKS[0], timeout=patience, thread_local=False)
            try:
                lock.acquire(poll_interval=0.02)
            except Timeout:
                raise FolderInUse(_who(folder)) from None
            _taken[key] = _Taken(lock, missing)
            _settle(key[1])
        _taken[key].count += 1
        self.release = weakref.finalize(self, _release, *key)
        """Give it back; later calls do nothing."""


def _release(process: int, folder: Path) -> None:
    taken = _taken[process, folder]
    taken.count -= 1
    if taken.count or process != os.getpid():
        return
    del _taken[process, folder]
    with suppress(OSError):  # the folder may be gone, with the lock
        (folder / LOCKS[1]).unlink(missing_ok=True)
        if os.listdir(folder) == [LOCKS[0]]:  # nothing was written
            (folder / LOCKS[0]).unlink()
            for place in taken.made:
                place.rmdir()
    taken.lock.release()


def _settle(folder: Path) -> None:
    """Say who holds a folder, and take away what a killed one was writing."""
    with suppress(OSError):  # of a folder below that cannot be read
        for left in _left_over(folder):
            left.unlink(missing_ok=True)
    command = " ".join([Path(sys.argv[0]).name, *sys.argv[1:]])
    found = {
        "pid": os.getpid(),
        "host": socket.gethostname(),
        "command": command if len(command) <= _LONGEST else command[:_LONGEST] + "...",
        "since": datetime.now(UTC).isoformat(timespec="seconds"),
    }
    with suppress(OSError):  # on a full disk nobody learns it
        (folder / LOCKS[1]).write_text(json.dumps(found), encoding="utf-8")


def _left_over(folder: Path, depth: int = 3) -> Iterator[Path]:
    """What was being written, but in folders below that have a lock of their own."""
    for entry in folder.iterdir():
        if is_temporary(entry):
            yield entry
        elif depth and entry.is_dir() and not (entry / LOCKS[0]).exists():
            yield from _left_over(entry, depth - 1)


def _who(folder: Path) -> str:
    try:
        found = json.loads((folder / LOCKS[1]).read_text(encoding="utf-8"))
        who = "process {pid} on {host}, `{command}`, since {since}".format_map(found)
    except (OSError, ValueError, LookupError, TypeError):  # it has only just begun, or is ending
        who = "another process"
    return f"{who} writes into {str(folder)!r}: wait for it, stop it, or give another folder"


@contextmanager
def alone(folder: str | os.PathLike[str]) -> Iterator[Path]:
    """A folder for what is done inside, and for this process alone.

    Raises
    ------
    FolderInUse
        Another process writes into it.
    InvalidArgument
        It cannot be made or written.
    RunFolderError
        The disk is full, or something in the folder cannot be written.
    """
    place = Path(folder)
    try:
        hold = Hold(place)
    except OSError as error:
        raise InvalidArgument(
            f"cannot write to the output folder {str(place)!r}: {error}"
        ) from error
    try:
        yield place
    except (OSError, SafetensorError) as error:
        number = error.errno if isinstance(error, OSError) else None
        if number in FULL + _DENIED or "I/O error" in str(error):
            raise RunFolderError(
                f"cannot write in {str(place)!r}: {error}. Free some space, or give back the right "
                "to write, and start the same again; what was finished is kept"
            ) from error
        raise
    finally:
        hold.release()


def alone_in_out(function: Callable[P, R]) -> Callable[P, R]:
    """A function that has the folder of its argument `out` for itself, as in :func:`alone`."""
    takes = signature(function)

    @wraps(function)
    def has_it(*args: P.args, **kwargs: P.kwargs) -> R:
        with alone(takes.bind(*args, **kwargs).arguments["out"]):
            return function(*args, **kwargs)

    return has_it
