"""`glass-flows report` and `glass-flows runs`: looking at runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..runs.listing import Seen

__all__ = ["report", "runs_app"]

runs_app = typer.Typer(help="List, show and compare runs.", no_args_is_help=True)
Folders = Annotated[
    list[Path], typer.Argument(help="Runs, or folders that hold some, such as that of a batch.")
]
Json = Annotated[bool, typer.Option("--json", help="Print JSON instead of tables.")]


def report(
    folders: Folders,
    out: Annotated[
        Path | None,
        typer.Option(help="The file; report.html, in the folder of the run if there is one only."),
    ] = None,
) -> None:
    """Draw runs as one HTML file: images, family tree, rewards, ESS, cost, configuration.

    It asks for nothing from anywhere, and can be sent to somebody. Several runs stand side by side.

    Example: glass-flows report out/squares

    Example: glass-flows report out/batch --out batch.html
    """
    from ..runs.report import write_report

    alone = len(folders) == 1 and (folders[0] / "run.json").exists()
    target = out or (folders[0] / "report.html" if alone else Path("report.html"))
    typer.echo(f"report: {write_report(folders, target)}")


@runs_app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Every run below it is listed.")] = Path(),
    json: Json = False,
) -> None:
    """Every run below a folder, with its status and what it came to."""
    from ..runs import find_runs
    from ..runs.listing import as_json, figure, overview, position

    found = [overview(run) for run in find_runs(folder)]
    if json:
        typer.echo(as_json(found))
        return
    if not found:
        typer.echo(f"no runs below {folder}")
        return
    head = ("run", "status", "method", "reward, best", "mean", "boundary", "evaluations", "title")
    lines = []
    for one in found:
        name = str(Path(one["folder"]).relative_to(folder)) or "."
        if one["status"] == "damaged":
            lines.append([name, "damaged", "", "", "", "", "", ""])
            continue
        evaluations = one["costs"].get("network_evaluations", math.nan)
        lines.append(
            [
                name,
                one["status"],
                one["method"],
                figure(one["best"]),
                figure(one["mean"]),
                position(one["boundary"], one["transitions"]),
                figure(evaluations),
                _short(one["title"]),
            ]
        )
    _print(head, lines)
    for one in found:
        if one["status"] == "damaged":
            _say(one["error"])


@runs_app.command("show")
def show_run(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    json: Json = False,
) -> None:
    """One run: its configuration, its figures, and what happened at each boundary."""
    from ..runs.listing import as_json, flat, look, overview, rows

    seen = look(folder)
    if json:
        boundaries = [asdict(boundary) for boundary in seen.boundaries]
        found = {**overview(folder), "job": seen.record.job, "boundaries": boundaries}
        typer.echo(as_json(found))
        return
    _print(("", seen.heading), [["status", seen.record.status], *flat(seen.record.job).items()])
    _print(("", "figures"), zip(_FIGURES, _figures(seen)))
    if seen.record.error is not None:
        _say(f"{seen.record.error['type']}: {seen.record.error['message']}")
    if table := rows(seen.boundaries):
        _print(list(table[0]), [list(row.values()) for row in table])


@runs_app.command("compare")
def compare_runs(folders: Folders, json: Json = False) -> None:
    """Runs beside each other: in what their jobs differ, and what they came to."""
    from ..runs.listing import as_json, differences, expand, look, names, overview

    runs = expand(folders)
    seen = [look(run) for run in runs]
    differing = differences([one.record.job for one in seen])
    if json:
        typer.echo(as_json({"runs": [overview(run) for run in runs], "differences": differing}))
        return
    lines = [["status", *(one.record.status for one in seen)]]
    lines += [[name, *values] for name, values in differing.items()]
    lines += [list(line) for line in zip(_FIGURES, *map(_figures, seen))]
    _print(("", *names(runs)), lines)


_FIGURES = (
    "reward, best",
    "reward, mean",
    "ESS at the end",
    "log-evidence",
    "network evaluations",
    "seconds",
)


def _figures(seen: Seen) -> list[str]:
    """A run's figures as text, in the order of `_FIGURES`."""
    from ..runs.listing import figure

    found = seen.figures
    evaluations = str(found.costs["network_evaluations"]) if found.costs else "-"
    return [
        figure(found.best),
        figure(found.mean),
        figure(found.ess, 3),
        figure(found.log_evidence),
        evaluations,
        figure(found.seconds),
    ]


def _short(text: str, most: int = 40) -> str:
    """One line of at most so many characters."""
    line = " ".join(text.split())
    return line if len(line) <= most else line[: most - 3] + "..."


def _print(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """A table of texts as they are: rich's marks and a terminal's commands mean nothing in them."""
    from ..runs.listing import clean

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(Text(clean(name)), overflow="fold")
    for line in lines:
        table.add_row(*(Text(clean(str(entry))) for entry in line))
    Console().print(table)


def _say(text: str) -> None:
    from ..runs.listing import clean

    Console().print(Text(clean(text)))
