"""Prompts from files: GenEval's metadata, PartiPrompts' table, plain text; and GenEval's folders.

GenEval (Ghosh et al. 2023, arXiv 2310.11513) lists its prompts as JSON lines with a "tag", and its
evaluator reads a folder for each, ``00000/metadata.jsonl`` and ``00000/samples/00000.png``.
PartiPrompts (Yu et al. 2022, arXiv 2206.10789) is a table with the columns Prompt and Category.
"""

from __future__ import annotations

import csv
import io
import json
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InvalidArgument, check_count, check_name
from ..files import replace, written

__all__ = ["PromptEntry", "read_prompts", "write_geneval"]

_SUFFIXES = (".txt", ".jsonl", ".tsv", ".csv")
_TEXT, _CATEGORY = ("prompt", "text", "caption"), ("tag", "category")


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
) -> list[PromptEntry]:
    """Prompts of a file: a line each (.txt), JSON lines (.jsonl), or a table (.tsv, .csv).

    JSON lines and tables hold the prompt under "prompt", "text" or "caption", in any case, and may
    hold a "tag" or "category". Empty lines are skipped.

    Parameters
    ----------
    categories : sequence of str
        Only those; all if empty.
    start, count : int
        After that, from this one on and so many.

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
    try:
        text = path.read_text(encoding="utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        raise InvalidArgument(f"cannot read the prompts in {str(path)!r}: {error}") from error
    found = [_entry(path, i, line, entry) for i, (line, entry) in enumerate(_lines(path, text))]
    if not found:
        raise InvalidArgument(f"{str(path)!r} holds no prompts")
    known = list(dict.fromkeys(entry.category for entry in found))
    for category in categories:
        check_name(f"category of {path.name}", category, known)
    chosen = [entry for entry in found if not categories or entry.category in categories]
    chosen = chosen[start:] if count is None else chosen[start : start + count]
    if not chosen:
        raise InvalidArgument(
            f"{str(path)!r} has no prompt number {start} in that choice; it holds {len(found)}"
        )
    return chosen


def _lines(path: Path, text: str) -> Iterable[tuple[int, Mapping[str, Any]]]:
    """Line number and fields of every entry."""
    kind = path.suffix.lower()
    if kind in (".tsv", ".csv"):
        # In a .tsv a quotation mark is a character of the prompt.
        how: dict[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
        reader = csv.DictReader(io.StringIO(text), **(how if kind == ".tsv" else {}))
        try:
            for row in reader:
                yield reader.line_num, row
        except csv.Error as error:
            where = f"{str(path)!r}, line {reader.line_num + 1}"
            raise InvalidArgument(f"{where} cannot be read: {error}") from error
        return
    for i, line in enumerate(text.split("\n"), start=1):  # JSON's texts may hold other breaks
        if not line.strip():
            continue
        if kind == ".txt":
            yield i, {"prompt": line.strip()}
            continue
        try:
            entry = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise InvalidArgument(f"{str(path)!r}, line {i} is not JSON: {error}") from error
        if not isinstance(entry, dict):
            raise InvalidArgument(f"{str(path)!r}, line {i} must be a JSON object, got {line!r}")
        yield i, entry


def _entry(path: Path, number: int, line: int, entry: Mapping[str, Any]) -> PromptEntry:
    fields = {str(key).strip().lower(): value for key, value in entry.items()}
    text = next((fields[name] for name in _TEXT if fields.get(name)), None)
    if not isinstance(text, str) or not text.strip():
        raise InvalidArgument(
            f"{str(path)!r}, line {line} has no prompt: one of {', '.join(_TEXT)} is needed, a "
            f"text, found {dict(entry)!s:.200}"
        )
    category = next((str(fields[name]) for name in _CATEGORY if fields.get(name)), "")
    return PromptEntry(number, text.strip(), category, dict(entry))


def write_geneval(
    folder: str | os.PathLike[str], entry: PromptEntry, images: Sequence[Image.Image]
) -> list[Path]:
    """Write the images of a prompt where GenEval's ``evaluate_images.py`` looks for them."""
    home = Path(folder) / f"{entry.number:05}"
    samples = home / "samples"
    samples.mkdir(parents=True, exist_ok=True)
    metadata = {**entry.metadata, "prompt": entry.text}
    replace(home / "metadata.jsonl", json.dumps(metadata).encode())
    files = []
    for i, image in enumerate(images):
        files.append(samples / f"{i:05}.png")
        replace(files[-1], written(partial(image.save, format="PNG")))
    return files
