"""Files for people and programs: tables and pages in Markdown, figures as JSON, plots.

The pages are the templates beside this file.
"""

from __future__ import annotations

import hashlib
import json
import platform
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Any

import torch

from ..errors import MissingExtra
from ..files import render, replace
from ..measures import Measure


def blank_plot() -> Any:
    """A matplotlib figure. Ask for it before the work whose result it will show.

    Raises
    ------
    MissingExtra
        matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise MissingExtra("matplotlib", "plots", "a plot of the results") from error
    return Figure(figsize=(9.0, 3.4), layout="constrained")


def markdown(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table."""
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def write_markdown(file: Path, template: str, **fields: object) -> Path:
    """The template of this name, filled in."""
    filters: dict[str, Callable[..., str]] = {"percent": _percent, "plus_minus": _plus_minus}
    place = Path(__file__).parent / "templates" / f"{template}.md.jinja"
    replace(file, render(place, filters, **fields).encode())
    return file


def _percent(share: Measure, digits: int) -> str:
    value, low, high = (f"{100 * v:.{digits}f}" for v in (share.value, *share.interval))
    return f"{value} ({low} to {high})"


def _plus_minus(one: Measure) -> str:
    return f"{one.value:.2f} ± {one.error:.2f}"


def write_json(file: Path, payload: object) -> Path:
    """An entry a line."""
    replace(file, (json.dumps(payload, indent=1) + "\n").encode())
    return file


def key_of(identity: object) -> str:
    """The name of a file for what has this identity, which is JSON, and is computed as here.

    That is by this torch with as many threads: others come to other last bits.
    """
    here = [torch.__version__, torch.get_num_threads(), platform.machine()]
    return hashlib.sha256(json.dumps([identity, here], sort_keys=True).encode()).hexdigest()[:24]
