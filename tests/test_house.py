"""What is measured of the house is noticed; whether it is within its limits, CI asks the tool."""

from __future__ import annotations

import ast
import importlib
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
sys.path.insert(0, str(ROOT / "tools"))
house = importlib.import_module("house")


def measured(text):
    return list(house.functions("glass_flows.jobs.x", ast.parse(text)))


def test_lengths_are_without_docstrings_and_parameters_without_self():
    text = "class A:\n  def f(self, a, *b, c=1, **d):\n    '''x\n    y'''\n    return a\n"
    (found,) = measured(text)
    assert (found.lines, found.parameters) == (2, ["a", "c", "b", "d"])
    (found,) = measured("@front(a=B)\ndef f(): pass")
    assert found.front


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("def f(a=1, b='x', c=None): pass", ["a", "b", "c"]),
        ("def f(q, a=1, *, b='x', c=None): pass", ["a", "b", "c"]),
        ("def f(a=2, b='x', c=None): pass", []),
        ("def f(a, b, c): pass", []),
    ],
)
def test_defaults_that_stand_twice_are_found(text, same):
    kinds = ("a: int = setting(1, K)", "b: str = setting('x', K)", "c: int = setting(None, K)")
    held = "class S:\n  " + "\n  ".join(kinds)
    (found,) = measured(text)
    assert house.repeated(found, house.settings({"m": ast.parse(held)})) == same


def test_circles_are_found_through_packages_and_inside_functions():
    sources = {
        "glass_flows": "from .a import one",
        "glass_flows.a": "def one():\n    from .p import two",
        "glass_flows.p": "from .b import two",
        "glass_flows.p.b": "from ..a import one\ntwo = 2",
        "glass_flows.c": "from .a import one",
    }
    trees = {name: ast.parse(text) for name, text in sources.items()}
    assert house.circles(house.graph(trees)) == [["glass_flows.a", "glass_flows.p.b"]]
    sources["glass_flows.p.b"] = "two = 2"
    trees = {name: ast.parse(text) for name, text in sources.items()}
    assert house.circles(house.graph(trees)) == []


@pytest.mark.slow
def test_the_rooms_of_the_architecture_page_are_those_of_the_house():
    import rooms

    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    _, _, rest = page.partition("<!-- begin: python tools/rooms.py -->\n\n")
    found, end, _ = rest.partition("\n\n<!-- end -->")
    lines = list(rooms.lines())
    assert end and found == "\n".join(lines), "paste what `python tools/rooms.py` prints"
    told = {line.split(" | ")[0].removeprefix("| ").strip("`") for line in lines}
    for file in rooms.SOURCE.rglob("*.py"):
        place = file.relative_to(rooms.SOURCE).as_posix().removesuffix("__init__.py")
        assert place in told | {"", "__main__.py"}, place
    assert all(line.endswith(". |") for line in found.splitlines()[2:])
