"""`glass-flows report` and `glass-flows runs`: looking at runs."""

from __future__ import annotations

import math
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from ..errors import RunFolderError
from .options import print_table, say

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
    from ..runs.listing import as_json, figure, overview, position, short

    if not folder.is_dir():
        raise RunFolderError(f"{str(folder)!r} is no folder")
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
        line = [str(Path(one["folder"]).relative_to(folder)) or ".", one["status"]]
        if one["status"] != "damaged":
            line += [one["method"], figure(one["best"]), figure(one["mean"])]
            line += [position(one["boundary"], one["transitions"])]
            line += [figure(one["costs"].get("network_evaluations", math.nan))]
            line += [short(" ".join(one["title"].split()), 40)]
        lines.append(line)
    print_table(head, lines)
    for one in found:
        if one["status"] == "damaged":
            say(one["error"])


@runs_app.command("show")
def show_run(
    folder: Annotated[Path, typer.Argument(help="A run.")],
    json: Json = False,
) -> None:
    """One run: its configuration, its figures, and what happened at each boundary."""
    from ..runs import read_run
    from ..runs.listing import as_json, facts, flat, overview, rows

    run = read_run(folder)
    if json:
        boundaries = [asdict(boundary) for boundary in run.boundaries]
        typer.echo(as_json({**overview(folder), "job": run.job, "boundaries": boundaries}))
        return
    print_table(("", run.heading), [("status", run.status), *flat(run.job).items()])
    print_table(("", "figures"), facts(run).items())
    if run.error is not None:
        say(f"{run.error['type']}: {run.error['message']}")
        for frame in run.error["frames"]:  # of somebody's own code
            say(f"  {frame}")
    if table := rows(run):
        print_table(list(table[0]), [list(row.values()) for row in table])


@runs_app.command("compare")
def compare_runs(folders: Folders, json: Json = False) -> None:
    """Runs beside each other: in what their jobs differ, and what they came to."""
    from ..runs.listing import as_json, differences, expand, facts, names, overview

    runs = expand(folders)
    differing = differences([run.job for run in runs])
    if json:
        found = [overview(run.folder) for run in runs]
        typer.echo(as_json({"runs": found, "differences": differing}))
        return
    told = [facts(run) for run in runs]
    lines = {"status": [run.status for run in runs], **differing}
    lines |= {name: [one.get(name, "-") for one in told] for one in told for name in one}
    print_table(("", *names(runs)), [(name, *texts) for name, texts in lines.items()])
