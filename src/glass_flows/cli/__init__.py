"""The command line: `glass-flows --help`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .. import __version__
from ..errors import GlassError
from .research import check, compare, reproduce, train_app
from .runs import report, runs_app
from .tools import convert_app, evaluate, plan
from .work import align, batch, sample

__all__ = ["app", "main"]

_DRAW, _LOOK, _STUDY = "Draw", "Look at what was drawn", "Study"
_PANELS = {
    "align": _DRAW,
    "batch": _DRAW,
    "sample": _DRAW,
    "report": _LOOK,
    "runs": _LOOK,
    "evaluate": _LOOK,
    "plan": _STUDY,
    "check": _STUDY,
    "compare": _STUDY,
    "reproduce": _STUDY,
    "train": _STUDY,
    "convert": _STUDY,
}
"""In the order of a person's work."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return list(_PANELS)


app = typer.Typer(
    cls=_InOrder,
    help="GLASS transitions and reward steering for pre-trained flow and diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for command in (align, batch, sample, report, evaluate, plan, check, compare, reproduce):
    app.command(rich_help_panel=_PANELS[command.__name__])(command)
for name, group in (("runs", runs_app), ("train", train_app), ("convert", convert_app)):
    app.add_typer(group, name=name, rich_help_panel=_PANELS[name])


def main() -> None:
    """Entry point: errors of ours end in one line and exit code 2."""
    try:
        app()
    except GlassError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glass-flows {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass
