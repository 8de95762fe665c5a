"""Prompts from files: GenEval's metadata, PartiPrompts' table, plain text; and GenEval's folders.

Only a newline ends a line, and a row that is not whole is named, never cut or joined to another.

GenEval (Ghosh et al. 2023, arXiv 2310.11513) lists its prompts as JSON lines with a "tag", and its
evaluator reads a folder for each, ``00000/metadata.jsonl`` and ``00000/samples/00000.png``.
PartiPrompts (Yu et al. 2022, arXiv 2206.10789) is a table with the columns Prompt and Category.
"""

from __future__ import annotations

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InvalidArgument, check_count, check_name, check_text, shown
from ..files import replace, written

__all__ = ["PromptEntry", "read_prompts", "write_geneval"]

_SUFFIXES = (".txt", ".jsonl", ".tsv", ".csv")
_SHOWN = 200  # of a row, in a message
_TEXT, _CATEGORY = ("prompt", "text", "caption"), ("tag", "category")


Rows = Iterable[tuple[int, Any]]
"""Of a file: the number of a line, and what is in it."""


@dataclass(frozen=True)
class PromptEntry:
    """A prompt of a file.

    Attributes
    ----------
    number : int
        Its place in the file, from 0; a slice of the file keeps it.
    text : str
    category : str
        "tag" or "category" of the file; "" where it has none.
    metadata : dict
        The whole entry.
    """

    number: int
    text: str
    category: str = ""
    metadata: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(
    file: str | os.PathLike[str],
    *,
    categories: Sequence[str] = (),
    start: int = 0,
    count: int | None = None,
    duplicates: bool = True,
) -> list[PromptEntry]:
    """Prompts of a file: a line each (.txt), JSON lines (.jsonl), or a table (.tsv, .csv).

    JSON lines and tables hold the prompt under "prompt", "text" or "caption", in any case, and may
    hold a "tag" or "category". A .csv may have semicolons; in a .tsv quotation marks are characters
    of the prompt, unless they are those of a writer of tables (pandas). Empty lines are skipped.

    Parameters
    ----------
    categories : sequence of str
        Only those; all if empty.
    start, count : int
        After that, from this one on and so many.
    duplicates : bool
        Whether a text that stands in the file again counts again.

    Raises
    ------
    InvalidArgument
        There is no such file, nothing in it, or an entry without a prompt; the line is named.
    UnknownName
        A category that the file does not have.
    """
    path = Path(file)
    check_name("kind of prompt file", path.suffix.lower(), _SUFFIXES)
    check_count("start", start, least=0)
    if count is not None:
        check_count("count", count)
    rows = _READERS[path.suffix.lower()](path, _text(path))
    found = [_entry(path, i, line, entry) for i, (line, entry) in enumerate(rows)]
    if not found:
        raise InvalidArgument(f"{str(path)!r} holds no prompts")
    known = list(dict.fromkeys(entry.category for entry in found))
    for category in categories:
        check_name(f"category of {path.name}", category, known)
    chosen = [entry for entry in found if not categories or entry.category in categories]
    if not duplicates:
        first: dict[str, PromptEntry] = {}
        for entry in chosen:
            first.setdefault(entry.text, entry)
        chosen = list(first.values())
    chosen = chosen[start:] if count is None else chosen[start : start + count]
    if not chosen:
        raise InvalidArgument(
            f"{str(path)!r} has no prompt number {start} in that choice; it holds {len(found)}"
        )
    return chosen


def _text(path: Path) -> str:
    """The file, as UTF-8, its lines ended by newlines."""
    try:
        content = path.read_bytes()
        return content.decode("utf-8-sig").replace("\r\n", "\n")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise InvalidArgument(
            f"cannot read the prompts in {str(path)!r}: line {line} is not UTF-8 ({error.reason})"
        ) from error
    except OSError as error:
        raise InvalidArgument(f"cannot read the prompts in {str(path)!r}: {error}") from error


def _refuse(path: Path, line: int, reason: str) -> InvalidArgument:
    return InvalidArgument(f"{str(path)!r}, line {line} {reason}")


def _lines(path: Path, text: str) -> Iterator[tuple[int, str]]:
    """Those that are not empty, with their numbers."""
    for i, line in enumerate(text.split("\n"), start=1):
        if "\r" in line:
            raise _refuse(path, i, "holds a carriage return: end lines with newlines")
        if line.strip():
            yield i, line


def _plain(path: Path, text: str) -> Rows:
    """A prompt each."""
    return ((i, {"prompt": line}) for i, line in _lines(path, text))


def _json_lines(path: Path, text: str) -> Rows:
    def refuse(name: str) -> None:
        raise ValueError(f"{name} is no number of JSON")

    for i, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, parse_constant=refuse)
        except (ValueError, RecursionError) as error:
            raise _refuse(path, i, f"is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise _refuse(path, i, f"must be a JSON object, got {shown(line, _SHOWN)}")
        yield i, entry


def _tabbed(path: Path, text: str) -> Rows:
    """Fields between tabs, a row a line, whatever quotation marks they hold."""
    return ((i, [_unquoted(part) for part in line.split("\t")]) for i, line in _lines(path, text))


def _unquoted(part: str) -> str:
    """Without the quotation marks that pandas puts around a field that holds some, doubled."""
    inner = part[1:-1]
    if re.fullmatch('"(?:[^"]|"")*"', part) and '""' in inner:
        return inner.replace('""', '"')
    return part


def _separated(path: Path, text: str) -> Rows:
    """Fields between commas, or semicolons where they part the names of the columns."""
    head = text.partition("\n")[0]
    parts = {mark: [name.strip(' "').lower() for name in head.split(mark)] for mark in ",;"}
    mark = max(parts, key=lambda mark: (not set(_TEXT).isdisjoint(parts[mark]), mark == ","))
    before = csv.field_size_limit(len(text) + 1)
    reader = csv.reader(io.StringIO(text), delimiter=mark, strict=True)
    line = 1
    try:
        for row in reader:
            if row:
                yield line, row
            line = reader.line_num + 1
    except csv.Error as error:
        raise _refuse(path, line, f"cannot be read: {error}") from error
    finally:
        csv.field_size_limit(before)


def _table(fields: Callable[[Path, str], Rows]) -> Callable[[Path, str], Rows]:
    """Rows of fields as those of the columns that the first names; each has as many."""

    def rows(path: Path, text: str) -> Rows:
        names: list[str] | None = None
        for line, row in fields(path, text):
            if names is None:
                names = [name.strip().lower() for name in row]
                if len(set(names)) < len(names):
                    raise _refuse(path, line, f"has two columns of one name: {shown(row, _SHOWN)}")
                names = row
            elif len(row) != len(names):
                raise _refuse(
                    path, line,
                    f"has {len(row)} fields, and the table {len(names)} columns: put a prompt that "
                    "holds what separates fields into quotation marks (.csv), or write JSON lines",
                )  # fmt: skip
            else:
                yield line, dict(zip(names, row))

    return rows


_READERS: dict[str, Callable[[Path, str], Rows]] = {
    ".txt": _plain, ".jsonl": _json_lines, ".tsv": _table(_tabbed), ".csv": _table(_separated)
}  # fmt: skip


def _entry(path: Path, number: int, line: int, entry: Mapping[str, Any]) -> PromptEntry:
    fields = {str(key).strip().lower(): value for key, value in entry.items()}
    text = next((fields[name] for name in _TEXT if fields.get(name)), None)
    if not isinstance(text, str) or not text.strip():
        raise _refuse(
            path, line,
            f"has no prompt: one of {', '.join(_TEXT)} is needed, a text, found "
            f"{shown(dict(entry), _SHOWN)}",
        )  # fmt: skip
    category = next((str(fields[name]) for name in _CATEGORY if fields.get(name)), "")
    try:
        check_text("the prompt", text + category)
    except InvalidArgument as error:
        raise _refuse(path, line, f"cannot be taken: {error}") from error
    return PromptEntry(number, text.strip(), category, dict(entry))


def write_geneval(
    folder: str | os.PathLike[str], entry: PromptEntry, images: Sequence[Image.Image]
) -> list[Path]:
    """Write the images of a prompt where GenEval's ``evaluate_images.py`` looks for them.

    Those of an earlier call that were more are deleted.
    """
    home = Path(folder) / f"{entry.number:05}"
    samples = home / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    metadata = {**entry.metadata, "prompt": entry.text}
    replace(home / "metadata.jsonl", json.dumps(metadata).encode())
    files = [samples / f"{i:05}.png" for i in range(len(images))]
    for file, image in zip(files, images):
        replace(file, written(partial(image.save, format="PNG")))
    # The evaluator scores all that are there.
    for file in set(samples.glob("[0-9]" * 5 + ".png")) - set(files):
        file.unlink()
    return files
