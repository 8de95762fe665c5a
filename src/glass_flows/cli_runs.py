"""`glass-flows report` and `glass-flows runs list|show|compare`: looking at runs."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

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
    from .runs.report import write_report

    alone = len(folders) == 1 and (folders[0] / "run.json").exists()
    target = out or (folders[0] / "report.html" if alone else Path("report.html"))
    typer.echo(f"report: {write_report(folders, target)}")


@runs_app.command("list")
def list_runs(
    folder: Annotated[Path, typer.Argument(help="Every run below it is listed.")] = Path(),
    json: Json = False,
) -> None:
    """Every run below a folder, with its status and what it came to."""
    from .runs import find_runs
    from .runs.listing import as_json, figure, overview, position

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
            lines.append([name, "damaged", "", "", "", "", "", one["error"]])
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
                one["title"],
            ]
        )
    _print(head, lines)


@runs_app.command("show")
def show_run(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    json: Json = False,
) -> None:
    """One run: its configuration, its figures, and what happened at each boundary."""
    from .runs.listing import as_json, flat, look, overview, rows

    seen = look(folder)
    if json:
        typer.echo(as_json({**overview(folder), "job": seen.record.job}))
        return
    _print(("", seen.heading), [["status", seen.record.status], *flat(seen.record.job).items()])
    if seen.record.error is not None:
        _say(f"{seen.record.error['type']}: {seen.record.error['message']}")
    if table := rows(seen.boundaries):
        _print(list(table[0]), [list(row.values()) for row in table])


@runs_app.command("compare")
def compare_runs(folders: Folders, json: Json = False) -> None:
    """Runs beside each other: in what their jobs differ, and what they came to."""
    from .runs.listing import as_json, differences, expand, figure, look, names, overview

    runs = expand(folders)
    seen = [look(run) for run in runs]
    differing = differences([one.record.job for one in seen])
    if json:
        typer.echo(as_json({"runs": [overview(run) for run in runs], "differences": differing}))
        return
    figures = [one.figures for one in seen]
    lines = [["status", *(one.record.status for one in seen)]]
    lines += [[name, *values] for name, values in differing.items()]
    lines += [
        ["reward, best", *(figure(f.best) for f in figures)],
        ["reward, mean", *(figure(f.mean) for f in figures)],
        ["ESS at the end", *(figure(f.ess, 3) for f in figures)],
        ["log-evidence", *(figure(f.log_evidence) for f in figures)],
        ["network evaluations", *(_count(f.costs) for f in figures)],
        ["seconds", *(figure(f.seconds) for f in figures)],
    ]
    _print(("", *names(runs)), lines)


def _count(costs: dict[str, int]) -> str:
    return str(costs["network_evaluations"]) if costs else "-"


def _print(head: Sequence[str], lines: Iterable[Sequence[Any]]) -> None:
    """A table of texts as they are: rich's marks and a terminal's commands mean nothing in them."""
    from .runs.listing import clean

    table = Table(box=box.SIMPLE, padding=(0, 1, 0, 0))
    for name in head:
        table.add_column(Text(clean(name)), overflow="fold")
    for line in lines:
        table.add_row(*(Text(clean(str(entry))) for entry in line))
    Console().print(table)


def _say(text: str) -> None:
    from .runs.listing import clean

    Console().print(Text(clean(text)))
