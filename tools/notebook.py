"""Run docs/first_steps.ipynb from the first cell to the last, and keep what it shows.

    python tools/notebook.py             # writes the outputs into the file
    python tools/notebook.py --check     # runs it, and leaves it as it is

tests/test_notebook.py does the second. Times and versions are left out, so that the same outputs
are the same file.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from tempfile import TemporaryDirectory

import nbformat
from nbclient import NotebookClient

NOTEBOOK = Path(__file__).resolve().parent.parent / "docs" / "first_steps.ipynb"


def run(file: Path = NOTEBOOK) -> nbformat.NotebookNode:
    """The notebook, run in an empty folder; CellExecutionError if a cell raises."""
    notebook = nbformat.read(file, as_version=4)
    with TemporaryDirectory() as folder:
        NotebookClient(
            notebook, timeout=300, kernel_name="python3", resources={"metadata": {"path": folder}},
            record_timing=False,
        ).execute()  # fmt: skip
    for cell in notebook.cells:
        cell.metadata.clear()
    notebook.metadata = nbformat.from_dict(
        {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
    )
    return notebook


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    given = parser.parse_args()
    notebook = run()
    if not given.check:
        nbformat.write(notebook, NOTEBOOK)


if __name__ == "__main__":
    main()
