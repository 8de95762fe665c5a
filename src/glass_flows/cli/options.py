"""Command line options from the fields of settings objects."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..batching import Batching
from ..fronts import Group, One
from ..jobs.job import Loading, Placement
from ..jobs.spelling import Options, read_arguments
from ..plans import Sampler
from ..research.contest import Contest
from ..runs.command import flag
from ..settings import Count, Number, Switch, spelled
from ..steering.methods import METHODS, AnyMethod

__all__ = ["Device", "Model", "Out", "Reward", "Seed", "announce", "print_table", "with_settings"]

console = Console()
Seed = Annotated[int, typer.Option(help="Same seed, same result.", min=0, max=2**63 - 1)]
Out = Annotated[Path, typer.Option(help="Folder for the results; made if it is missing.")]
Device = Annotated[str | None, typer.Option(help="'cuda', 'cuda:1' or 'cpu'.")]
Model = Annotated[
    str,
    typer.Option(
        help="'digits' or 'shapes' (bundled), 'digits:FOLDER' or 'shapes:FOLDER' for one that you "
        "trained, 'sit:FOLDER', or a diffusers pipeline by folder or hub id."
    ),
]
Reward = Annotated[
    str | None,
    typer.Option(
        help="What to steer towards. Digits: 'class:N', log p(N | image); 'class' of the prompt. "
        "Pipelines: 'clip' (default), 'pickscore', 'hps', 'imagereward' or 'aesthetic', with "
        "':FOLDER' or a hub id after it other weights; or 'module:function' of your own, images "
        "(B, 3, H, W) in 0..1 to (B,)."
    ),
]


def announce(text: str) -> None:
    """What goes on, beside the results."""
    console.print(text, style="dim", markup=False)


def print_table(
    head: Sequence[str], lines: Iterable[Sequence[Any]], title: str | None = None
) -> None:
    """A table of texts as they are: rich's marks and a terminal's commands mean nothing in them.

    One with a title is of figures, which stand at the right.
    """
    from ..runs.listing import clean

    table = Table(title=title and Text(title), box=box.SIMPLE, padding=(0, 1, 0, 0))
    for i, name in enumerate(head):
        table.add_column(
            Text(clean(name)), overflow="fold", justify="right" if title and i else "left"
        )
    for line in lines:
        table.add_row(*(Text(clean(str(entry))) for entry in line))
    console.print(table)


METHODS.load()  # those of installed packages have options, too
_PANELS: dict[str, tuple[str, Group, Any]] = {
    "method": (
        "Method, such as: --particles 8 --scale 5 --twist 1:cap=1.5", AnyMethod(), None
    ),
    "sampler": (
        "Sampler, such as: --transitions 12 --steps 2 --rho ddpm", One(Sampler), Sampler()
    ),
    "batching": (
        "Samples at a time (pipelines), such as: --max-batch 4 --decode-batch 2",
        One(Batching), Batching(),
    ),
    "loading": (
        "Loading (pipelines), such as: --dtype bfloat16 --offload model", One(Loading), Loading()
    ),
    "contest": (
        "How much is compared, such as: --populations 96 --tuning-populations 32",
        One(Contest), Contest(),
    ),
    "placement": (
        "Where it runs, such as: --workers 2 --ray local", One(Placement), Placement()
    ),
}  # fmt: skip
"""Heading with an example, settings, and the object with their defaults."""
_CALL = "Call of the pipeline, such as: --height 512 --argument true_cfg_scale=3"


def _call_option(kind: Any, told: str) -> Any:
    return Annotated[kind | None, typer.Option(help=told, rich_help_panel=_CALL)]


_CALL_OPTIONS = {
    "negative_prompt": _call_option(str, "For pipelines that take one."),
    "guidance_scale": _call_option(
        float, "Classifier-free guidance, the pipeline's own argument and default."
    ),
    "height": _call_option(int, "Of the images, in pixels."),
    "width": _call_option(int, "Of the images, in pixels."),
    "argument": _call_option(list[str], "Any other, NAME=VALUE (JSON or text)."),
}


_JOB_OPTIONS = {
    "init": Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture that --method refine begins with, of the size that is drawn; once for "
            "all prompts, or once for each. Digits: 8 x 8 grey."
        ),
    ],
    "populations": Annotated[
        int | None,
        typer.Option(help="Independent runs, for the standard errors (digits; 256).", min=2),
    ],
    "micro_batch": Annotated[
        int | None,
        typer.Option(
            help="Samples through a pipeline's network at a time, cut at the same places for any "
            "number of processes under torchrun: the bits of the result stay the same."
        ),
    ],
    "again": Annotated[
        Path | None,
        typer.Option(
            help="A PNG that glass-flows wrote: its job again. Other options override it by name. "
            "What loads code, weights or files (--model, --reward, ...) is to be given again."
        ),
    ],
}
_TYPED = {"call": _CALL_OPTIONS, "job": _JOB_OPTIONS}


def with_settings(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in the place of its parameter `options`, an option for every setting.

    `groups` are of "job", "method", "sampler", "batching", "loading", "call", "contest" and
    "placement".
    What was given reaches the command as :class:`Options`; defaults stay with the objects.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        owners: dict[str, str] = {}
        annotations = typing.get_type_hints(command, include_extras=True)
        del annotations["options"], annotations["return"]
        signature = inspect.signature(command).parameters
        defaults = {name: signature[name].default for name in annotations}
        for group in groups:
            made = _TYPED[group] if group in _TYPED else _options_of(*_PANELS[group])
            owners |= dict.fromkeys(made, group)
            annotations |= made
            defaults |= dict.fromkeys(made)
        parameters = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=annotation
            )
            for name, annotation in annotations.items()
        ]

        @functools.wraps(command)
        def run(**given: Any) -> None:
            found: dict[str, dict[str, Any]] = {group: {} for group in groups}
            for name, group in owners.items():
                if (value := given.pop(name)) is not None:
                    found[group][name] = str(value).lower() if isinstance(value, bool) else value
            if "call" in found:
                found["call"] |= read_arguments(found["call"].pop("argument", []))
            command(options=Options(**found), **given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = annotations
        return run

    return decorate


def _options_of(title: str, group: Group, default: Any) -> dict[str, Any]:
    found = {}
    for name, kind in group.kinds.items():
        allowed, meaning = group.told[name]
        text = spelled(kind.write(group.default_of(name, default)))
        switch = isinstance(kind, Switch)
        option = typer.Option(
            f"{flag(name)}/--no-{flag(name)[2:]}" if switch else flag(name),
            help=_readable(f"{meaning} ({allowed})"),
            metavar={Count: "INTEGER", Number: "NUMBER"}.get(type(kind), "TEXT"),
            show_default=False if text == "none" or switch else text,
            rich_help_panel=title,
        )
        found[name] = Annotated[(bool if switch else str) | None, option]
    return found


def _readable(text: str) -> str:
    """A docstring's line without its marks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("`", "")
