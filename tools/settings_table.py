"""Print the tables of docs/settings.md: every setting with its default and its meaning.

    python tools/settings_table.py

All of it is read from the classes, and tests/test_docs.py holds the page to it.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator, Sequence
from dataclasses import Field, fields
from typing import Any

from glass_flows import Beam, BestOf, Greedy, Refine, Sampler, Steering
from glass_flows.batching import Batching
from glass_flows.jobs import Loading
from glass_flows.jobs.job import Placement
from glass_flows.rewards import Viewing
from glass_flows.settings import Kind, Listed, Object, Settings, explanations, kinds, spelled

CLASSES: tuple[type[Settings], ...] = (
    Sampler,
    Steering,
    BestOf,
    Beam,
    Greedy,
    Refine,
    Batching,
    Viewing,
    Loading,
    Placement,
)


def text() -> str:
    """The part of the page between its marks."""
    return "\n\n".join([*map(section, CLASSES), objects()]) + "\n"


def section(cls: type[Settings]) -> str:
    """Heading, what it is, and the table of its settings."""
    first = inspect.cleandoc(cls.__doc__ or "").splitlines()[0]
    rows = []
    for one in fields(cls):
        allowed, meaning = explanations(cls)[one.name]
        if allowed == "as of Steering":  # said once in the source
            allowed, meaning = explanations(Steering)[one.name]
        default = spelled(kinds(cls)[one.name].write(one.default))
        rows.append((code(one.name), code(default), cell(allowed), cell(meaning)))
    head = ("setting", "default", "may be", "what it is")
    return f"### {cls.__name__}\n\n{cell(first)} In text {code(cls.word)}.\n\n{table(head, rows)}"


def objects() -> str:
    """The objects that a value may be, with their parts in order."""
    found: dict[tuple[str, str], tuple[str, str]] = {}
    for cls in CLASSES:
        for name, kind in kinds(cls).items():
            for head, made, settled in heads(kind):
                parts = [one for one in fields(made) if one.init and one.name not in settled]
                listed = (code(f"{one.name}={plain(one)}") for one in parts)
                found.setdefault((name, head), (made.__name__, ", ".join(listed)))
    rows = [
        (code(name), code(head) if head else "a number", code(made), parts)
        for (name, head), (made, parts) in found.items()
        if parts
    ]
    titles = ("setting", "begins with", "is", "parts in order, with their defaults")
    return f"### Objects in values\n\n{table(titles, rows)}"


def heads(kind: Kind) -> Iterator[tuple[str, Any, Sequence[str]]]:
    """Name, class and settled fields of every object that a kind can be."""
    one = kind.one if isinstance(kind, Listed) else kind
    if isinstance(one, Object):
        for head, made, preset in one.objects():
            yield head, made, list(preset)


def plain(one: Field[Any]) -> str:
    kind = one.metadata.get("kind")
    return spelled(one.default if kind is None else kind.write(one.default))


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["-"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def cell(text: str) -> str:
    """Of a docstring, as Markdown in a table."""
    return re.sub(r":\w+:`~?([^`]*)`", r"`\1`", text.replace("``", "`")).replace("|", r"\|")


def code(text: str) -> str:
    return f"`{text}`"


if __name__ == "__main__":
    print(text(), end="")
