"""The bar of a notebook: a line of HTML, without widgets and without warnings."""

from __future__ import annotations

import sys
from types import ModuleType

import pytest

from glass_flows import progress


@pytest.fixture
def shown(monkeypatch):
    """What a notebook would show, one entry for each picture of the bar."""
    found = []

    class Handle:
        def update(self, data, raw):
            found.append(data)

    def display(data, raw, display_id):
        assert raw
        found.append(data)
        return Handle()

    module = ModuleType("IPython.display")
    module.display = display
    monkeypatch.setitem(sys.modules, "IPython", ModuleType("IPython"))
    monkeypatch.setitem(sys.modules, "IPython.display", module)

    class Console:
        is_jupyter, is_terminal = True, False

        def __init__(self, stderr):
            pass

    monkeypatch.setattr(progress, "Console", Console)
    monkeypatch.setattr(progress, "_OFTEN", 0.0)
    return found


def test_a_bar_that_is_asked_for_stays(shown):
    with progress.progress_bar(3, True, "steering") as advance:
        advance()
        advance.say("<best> 2")
        advance()
    assert [one["text/plain"].partition(",")[0] for one in shown] == [
        "steering: 1/3", "steering: <best> 2: 2/3", "steering: <best> 2: 2/3",
    ]  # fmt: skip
    assert "&lt;best&gt;" in shown[1]["text/html"]
    assert '<progress max="3" value="2">' in shown[1]["text/html"]


def test_by_itself_it_comes_late_and_goes(shown, monkeypatch):
    with progress.progress_bar(2) as advance:
        advance()
    assert shown == []
    monkeypatch.setattr(progress, "_PATIENCE", 0.0)
    with progress.progress_bar(2) as advance:
        advance()
    assert [one["text/html"] != "" for one in shown] == [True, False]
    with progress.progress_bar(2, False) as advance:
        advance()
    assert len(shown) == 2
