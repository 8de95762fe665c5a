"""The command line: `glass-flows --help`."""

from __future__ import annotations

import sys
from typing import Annotated, Any

import typer
from rich.console import Console
from typer.core import TyperGroup

from .. import __version__
from ..errors import GlassError
from ..stops import stoppable
from .research import check, compare, reproduce, train_app
from .runs import report, runs_app
from .tools import convert_app, evaluate, plan
from .work import align, batch, sample

__all__ = ["app", "main"]

_PANELS: dict[str, dict[str, Any]] = {
    "Draw": {"align": align, "batch": batch, "sample": sample},
    "Look at what was drawn": {"report": report, "runs": runs_app, "evaluate": evaluate},
    "Study": {
        "plan": plan, "check": check, "compare": compare, "reproduce": reproduce,
        "train": train_app, "convert": convert_app,
    },
}  # fmt: skip
"""In the order of a person's work."""


class _InOrder(TyperGroup):
    def list_commands(self, ctx: Any) -> list[str]:
        return [name for commands in _PANELS.values() for name in commands]


app = typer.Typer(
    cls=_InOrder,
    help="GLASS transitions and reward steering for pre-trained flow and diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode="rich",
    pretty_exceptions_enable=False,
)
for panel, commands in _PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(command)


def main() -> None:
    """Entry point: errors of ours end in one line and exit code 2; a signal in one line, too."""
    try:
        with stoppable():
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
