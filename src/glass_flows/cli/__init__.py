"""The command line: `glass-flows --help`."""

from __future__ import annotations

import functools
import inspect
import os
import re
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from safetensors import SafetensorError
from typer.core import TyperGroup

from .. import __version__
from ..errors import FolderInUse, GlassError, frames_of
from ..folders import LOCKS, Hold
from ..runs.listing import clean
from ..stops import stoppable
from .research import audit, check, compare, reproduce, train_app
from .runs import report, runs_app
from .tools import check_model, convert_app, evaluate, plan
from .work import align, batch, sample

__all__ = ["app", "main"]

_LONGEST = 2000  # of a message, in characters
# typer has its own click, or takes the installed one
_Usage: Any = typer.BadParameter.__mro__[2]
_PANELS: dict[str, dict[str, Any]] = {
    "Draw": {"align": align, "batch": batch, "sample": sample},
    "Look at what was drawn": {"report": report, "runs": runs_app, "evaluate": evaluate},
    "Study": {
        "check-model": check_model, "plan": plan, "check": check, "audit": audit,
        "compare": compare, "reproduce": reproduce,
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


def _tidy(command: Callable[..., None]) -> Callable[..., None]:
    """A command that takes away again the folder that it made for results, if it stayed empty."""

    @functools.wraps(command)
    def run(*args: Any, **given: Any) -> None:
        out = given.get("out")
        made = [p for p in (out, *out.parents) if not p.exists()] if isinstance(out, Path) else []
        try:
            command(*args, **given)
        except BaseException:
            if made:
                _clear_empty(made)
            raise

    # A paragraph's lines are as wide as the terminal, not as the source.
    run.__doc__ = re.sub(r"(?<!\n)\n(?!\n)", " ", inspect.cleandoc(command.__doc__ or ""))
    return run


def _clear_empty(made: Sequence[Path]) -> None:
    """Remove a folder with its empty folders, and those above that were made for it."""
    inside = [Path(folder) for folder, _, _ in os.walk(made[0], topdown=False)]
    for folder in dict.fromkeys([*inside, *made]):
        with suppress(OSError, FolderInUse):  # something is in it, or another process is at it
            if os.listdir(folder) == [LOCKS[0]]:
                Hold(folder).release()  # takes the lock away, too
            folder.rmdir()


for panel, commands in _PANELS.items():
    for name, command in commands.items():
        if isinstance(command, typer.Typer):
            for one in command.registered_commands:
                one.callback = one.callback and _tidy(one.callback)
            app.add_typer(command, name=name, rich_help_panel=panel)
        else:
            app.command(name, rich_help_panel=panel)(_tidy(command))


def main() -> None:
    """Entry point: whatever is wrong ends in one line and exit code 2; a signal in one line, too.

    Below it, where somebody's own code raised, the last lines of that.
    """
    try:
        with stoppable():
            code = app(standalone_mode=False)
    except typer.Abort:
        sys.exit(1)
    except _Usage as error:
        if type(error).__name__ == "NoArgsIsHelpError":
            error.show()
            sys.exit(error.exit_code)
        _say(error.format_message())
        sys.exit(2)
    except BrokenPipeError:  # whoever read the output has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (GlassError, OSError, SafetensorError, MemoryError) as error:
        _say(str(error) or type(error).__name__, frames_of(error))
        sys.exit(2)
    except RuntimeError as error:
        if "allocate memory" not in str(error) and "out of memory" not in str(error):
            raise
        _say(f"out of memory: {error}")
        sys.exit(2)
    sys.exit(code if isinstance(code, int) else 0)


def _say(text: str, frames: Sequence[str] = ()) -> None:
    """One line of at most some length, and where it comes from."""
    line = clean(" ".join(text.split()))
    if len(line) > _LONGEST:
        line = f"{line[: _LONGEST // 2]} ... {line[-_LONGEST // 4 :]}"
    shown = Console(stderr=True, soft_wrap=True)
    shown.print(f"error: {line}", style="red", markup=False)
    for frame in frames:
        shown.print(f"  {clean(frame)}", style="dim", markup=False, highlight=False)


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
