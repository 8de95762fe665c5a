"""Writing files so that no reader, and no crash, ever meets half of one."""

from __future__ import annotations

import os
from contextlib import suppress
from pathlib import Path

__all__ = ["replace"]


def replace(path: Path, content: bytes) -> None:
    """Write a file so that a reader sees the old one or the new one, never a part.

    Raises
    ------
    OSError
        It cannot be written; the old one is untouched.
    """
    temporary = path.with_name(f".{path.name}.tmp")
    try:
        temporary.write_bytes(content)
        os.replace(temporary, path)
    except OSError:
        with suppress(OSError):  # on a full disk the part that was written is in the way
            temporary.unlink()
        raise
