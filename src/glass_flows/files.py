"""Files from templates, and written so that no reader, and no crash, ever meets half of one."""

from __future__ import annotations

import errno
import os
import re
import tempfile
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import lru_cache
from io import BytesIO
from pathlib import Path
from typing import Any
from uuid import uuid4

_NONE: Mapping[str, Callable[..., Any]] = {}


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Whole on the disk before it takes the place of the old one, also when the power is cut.

    Raises
    ------
    OSError
        It cannot be written; the old one is untouched.
    """
    check_regular(path)
    temporary = path.with_name(f".{path.name}.{uuid4().hex[:12]}.tmp")
    try:
        with open(temporary, "xb", buffering=0) as file:
            _write(file.fileno(), content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # on a full disk the part that was written is in the way
            temporary.unlink()
        raise


def check_regular(path: Path) -> None:
    """Raise OSError if a file is there that is none of bytes: a folder, a link, a device."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "not a regular file, so that it is not replaced", str(path))


def check_place(path: Path) -> None:
    """Raise OSError if a file cannot be written there, before the work that it is to hold."""
    check_regular(path)
    place = next(one for one in path.absolute().parents if one.exists())
    try:
        with tempfile.TemporaryFile(dir=place):  # of no name
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error


def is_temporary(path: Path) -> bool:
    """Whether it is called as :func:`replace` calls a file before it is whole."""
    return re.fullmatch(r"\..+\.[0-9a-f]{12}\.tmp", path.name) is not None


def written(save: Callable[[BytesIO], object]) -> bytes:
    """What a function writes into a file that it is given."""
    content = BytesIO()
    save(content)
    return content.getvalue()


def append(path: Path, content: bytes) -> None:
    """Write behind what a file holds, all of it or nothing.

    Raises
    ------
    OSError
        It cannot be written; the file is as it was.
    """
    with open(path, "ab", buffering=0) as file:
        before = file.tell()
        try:
            _write(file.fileno(), content)
        except OSError:
            with suppress(OSError):
                file.truncate(before)
            raise


def _write(file: int, content: bytes) -> None:
    """All of it, and on the disk. A system may write less than it was given and call it success."""
    left = memoryview(content)
    while left:
        written = os.write(file, left)
        if not written:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        left = left[written:]
    os.fsync(file)


def render(file: Path, filters: Mapping[str, Callable[..., Any]] = _NONE, **given: Any) -> str:
    """A Jinja template with what it is given; one of HTML escapes every text."""
    return str(_environment(file, tuple(filters.items())).get_template(file.name).render(given))


@lru_cache(maxsize=16)
def _environment(file: Path, filters: tuple[tuple[str, Callable[..., Any]], ...]) -> Any:
    """Of one template, which it keeps compiled."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        autoescape=".html" in file.suffixes,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= dict(filters)
    return environment
