"""docs/first_steps.ipynb runs from the first cell to the last, and holds what it shows."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("nbclient")
pytest.importorskip("ipykernel")
pytest.importorskip("diffusers")

import nbformat

sys.path.insert(0, str(Path(__file__).parent.parent / "tools"))
import notebook


def test_what_it_shows_is_kept():
    kept = nbformat.read(notebook.NOTEBOOK, as_version=4)
    shown = [cell for cell in kept.cells if cell.cell_type == "code" and cell.outputs]
    assert len(shown) >= 6
    assert not [out for cell in shown for out in cell.outputs if out.output_type == "error"]
    text = Path(notebook.NOTEBOOK).read_text(encoding="utf-8")
    assert len(text) < 1_000_000
    assert "/work/" not in text
    assert "Warning" not in text


@pytest.mark.slow
def test_it_runs():
    found = notebook.run()
    told = "".join(
        str(out.get("data", {}).get("text/plain", "")) for cell in found.cells
        if cell.cell_type == "code" for out in cell.outputs
    )  # fmt: skip
    for word in ("best-of-n: 8 images", "steering: 8 images", "refine: 4 images", "log_weight"):
        assert word in told
