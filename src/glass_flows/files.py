"""Files from templates, and written so that no reader, and no crash, ever meets half of one."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

__all__ = ["check_regular", "render", "replace"]

_NONE: Mapping[str, Callable[..., Any]] = {}


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises
    ------
    OSError
        It cannot be written; the old one is untouched.
    """
    check_regular(path)
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # on a full disk the part that was written is in the way
            temporary.unlink()
        raise


def check_regular(path: Path) -> None:
    """Raise OSError if a file is there that is none of bytes: a folder, a link, a device."""
    if path.is_symlink() or (path.exists() and not path.is_file()):
        raise OSError(errno.EINVAL, "not a regular file, so that it is not replaced", str(path))


def render(file: Path, filters: Mapping[str, Callable[..., Any]] = _NONE, **given: Any) -> str:
    """A Jinja template with what it is given; one of HTML escapes every text."""
    import jinja2

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(file.parent),
        autoescape=".html" in file.suffixes,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.filters |= filters
    return environment.get_template(file.name).render(given)
