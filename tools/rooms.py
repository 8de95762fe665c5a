"""Print the rooms of docs/architecture.md: every file of the package with what it holds.

    python tools/rooms.py

Order and layers are those of the import contract in pyproject.toml, each line is the first of a
module's docstring, and tests/test_house.py holds the page to them.
"""

from __future__ import annotations

import ast
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
SOURCE = ROOT / "src" / "glass_flows"


def layers() -> list[list[str]]:
    """Names of modules and packages, from the top of the house to the bottom."""
    contract = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    listed = contract["tool"]["importlinter"]["contracts"][0]["layers"]
    return [[name.strip().split(".")[1] for name in layer.split("|")] for layer in listed]


def files(name: str) -> list[Path]:
    """Of a module or package; a package's own file, which says what it is, comes first."""
    if (SOURCE / f"{name}.py").exists():
        return [SOURCE / f"{name}.py"]
    found = (SOURCE / name).rglob("*.py")
    return sorted(found, key=lambda file: (file.parent, file.name != "__init__.py", file.name))


def told(file: Path) -> str:
    """The first line of a module's docstring, without its marks."""
    text = ast.get_docstring(ast.parse(file.read_text(encoding="utf-8"))) or ""
    line = re.sub(r":\w+:`~?([^`]+)`", r"`\1`", text.split("\n")[0]).replace("``", "`")
    return line.replace("|", "\\|")


def lines() -> Iterator[str]:
    yield "| file | what it holds |"
    yield "|-|-|"
    for file in (file for layer in layers() for name in layer for file in files(name)):
        place = str(file.relative_to(SOURCE).as_posix()).removesuffix("__init__.py")
        yield f"| `{place}` | {told(file)} |"


if __name__ == "__main__":
    print("\n".join(lines()))
