"""The API page shows of docstrings what they mean (tools/docstrings.py)."""

from __future__ import annotations

import importlib
import sys
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")  # of the extra "docs"
sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
docstrings = importlib.import_module("docstrings")

SOURCE = '''
"""See :func:`draw`, :meth:`Box.open` and :class:`~package.Box`, not :func:`nowhere`."""
from dataclasses import MISSING, dataclass

_SIDE = Side(3)

@dataclass
class Box:
    """A box, to :meth:`open`.

    Parameters
    ----------
    size
        Of it.
    side
        Of it.
    """

    size: int = setting(MISSING, Count())
    side: float = setting(2.0, Number())

    def open(self): ...

def draw(x: Tensor, seed: int = 0, generator: Generator = None, dtype: Type = None,
         device: str = "cpu", side=_SIDE, kind="a", count=None):
    """Draw.

    Parameters
    ----------
    side : int; by default Side(3)
        What is as long, as wide,
        and as high.
    kind : "a", "b" or "c"
        What.
    count : int, optional
        How many.
    generator, seed : optional
        Of the noise,

        both paragraphs.
    dtype, device
        Where.

    Raises
    ------
    KeyError, ValueError
        Before.

    Example
    -------
    >>> draw(x, y)
    """
'''


@pytest.fixture(scope="module")
def package():
    extensions = griffe.load_extensions(docstrings.Docstrings)
    with griffe.temporary_visited_package(
        "package", {"__init__.py": SOURCE}, extensions=extensions, docstring_parser="numpy"
    ) as found:
        yield found


def test_roles_are_links_to_where_things_are_defined(package):
    text = package.docstring.value
    assert 'identifier="package.draw"><code>draw</code>' in text
    assert 'identifier="package.Box.open"><code>Box.open</code>' in text
    assert 'identifier="package.Box"><code>Box</code>' in text
    assert "not `nowhere`." in text
    assert 'identifier="package.Box.open"' in package["Box"].docstring.value
    assert not docstrings.ROLE.search(text)


def section(obj, kind):
    return next(s.value for s in obj.docstring.parsed if s.kind.value == kind)


def test_every_parameter_has_its_own_type_and_default(package):
    found = {
        one.name: (str(one.annotation), str(one.default), one.description)
        for one in section(package["draw"], "parameters")
    }
    assert found == {
        "side": ("int", "Side(3)", "What is as long, as wide,\nand as high."),
        "kind": ('"a", "b", or "c"', "'a'", "What."),
        "count": ("int", "None", "How many."),
        "generator": ("Generator", "None", "Of the noise,\n\nboth paragraphs."),
        "seed": ("int", "0", "Of the noise,\n\nboth paragraphs."),
        "dtype": ("Type", "None", "Where."),
        "device": ("str", "'cpu'", "Where."),
    }
    assert str(package["draw"].parameters["side"].default) == "Side(3)"


def test_errors_are_alternatives(package):
    (error,) = section(package["draw"], "raises")
    assert (str(error.annotation), error.description.strip()) == (
        "KeyError | ValueError",
        "Before.",
    )


def test_settings_have_the_defaults_of_their_fields_or_are_required(package):
    found = {one.name: one.default for one in section(package["Box"], "parameters")}
    assert found["size"] is None
    assert str(found["side"]) == "2.0"
