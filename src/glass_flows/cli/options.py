"""Command line options from the fields of settings objects."""

from __future__ import annotations

import functools
import inspect
import re
import textwrap
import typing
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import groupby, zip_longest
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from ..batching import Batching
from ..fronts import Group, One
from ..jobs.job import Loading, Placement
from ..jobs.spelling import Options, read_arguments
from ..noise import check_seed
from ..plans import Sampler
from ..research.contest import Contest
from ..rewards.videos import Viewing
from ..runs.command import flag
from ..runs.listing import clean
from ..settings import Count, Number, Switch, spelled
from ..steering.methods import METHODS, AnyMethod

console = Console()


def _seed(given: int | None) -> int | None:
    return None if given is None else check_seed(given)


Seed = Annotated[int, typer.Option(help="Same seed, same result.", callback=_seed)]
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
        "':FOLDER' or a hub id after it other weights; or 'module:function' of your own, of images "
        "(tensors in 0..1, PIL, arrays; all or one of them), and of prompts if it takes them."
    ),
]


def announce(text: str) -> None:
    """What goes on, beside the results."""
    console.print(text, style="dim", markup=False)


def say(text: str) -> None:
    """A text for people, which ends its lines between words."""
    console.print(Text(clean(text)))


def print_table(
    head: Sequence[str], lines: Iterable[Sequence[Any]], title: str | None = None
) -> None:
    """A table of texts as they are: rich's marks and a terminal's commands mean nothing in them.

    One with a title is of figures, which stand at the right. No word is ever broken: what is too
    wide for the terminal even with a line for each word becomes a list, a block for each line.
    """
    texts = [[clean(str(entry)) for entry in line] for line in (head, *lines)]
    texts[0] += [""] * (max(map(len, texts)) - len(head))
    widths = fitting(texts, console.width - 2 * len(texts[0]) + 1)
    if widths is None:
        _print_list(texts, title)
        return
    table = Table(
        title=title and Text(title), box=box.SIMPLE, padding=(0, 1, 0, 0), pad_edge=False,
        show_edge=False,
    )  # fmt: skip
    for i, (name, width) in enumerate(zip(texts[0], widths, strict=True)):
        table.add_column(Text(name), justify="right" if title and i else "left", width=width)
    for line in texts[1:]:
        table.add_row(*map(Text, line))
    console.print("", table, "", sep="\n")


def fitting(lines: Sequence[Sequence[str]], room: int) -> list[int] | None:
    """Widths of columns that hold every word whole, in `room` altogether; None if it is too small.

    The widest that can be narrower is made so, again and again.
    """
    columns = list(zip_longest(*lines, fillvalue=""))
    least = [max(cell_len(w) for text in c for w in ["", *text.split()]) for c in columns]
    widths = [max(map(cell_len, column)) for column in columns]
    while sum(widths) > room:
        left = [i for i, width in enumerate(widths) if width > least[i]]
        if not left:
            return None
        widths[max(left, key=lambda i: widths[i])] -= 1
    return widths


def _print_list(texts: Sequence[Sequence[str]], title: str | None) -> None:
    (corner, *names), *lines = texts
    if title:
        say(title)
    longest = max(map(cell_len, names), default=0)
    words = (word for _, *entries in lines for entry in entries for word in entry.split())
    beside = longest + 4 + max(map(cell_len, words), default=0) <= console.width
    for first, *entries in lines:
        typer.echo()
        _print_whole(f"{corner} {first}".strip())
        for name, entry in zip(names, entries, strict=False):
            if entry and not beside:
                _print_whole(f"{name}:", "  ")
            if entry:
                _print_whole(entry, f"  {name:{longest}}  " if beside else "    ")
    typer.echo()


def _print_whole(text: str, before: str = "") -> None:
    """After `before`, in lines that end between words, however long a word is."""
    rest = " " * cell_len(before)
    lines = textwrap.wrap(
        text, console.width, initial_indent=rest, subsequent_indent=rest,
        break_long_words=False, break_on_hyphens=False,
    )  # fmt: skip
    typer.echo(before + "\n".join(lines)[len(rest) :])


def print_page(text: str) -> None:
    """A page of Markdown as people read it in a terminal."""
    for table, part in groupby(text.splitlines(), key=lambda line: line.startswith("|")):
        if not table:
            say("\n".join(part).strip("\n"))
            continue
        head, _, *lines = ([cell.strip() for cell in line.split("|")[1:-1]] for line in part)
        print_table(head, lines)


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
    "viewing": (
        "Videos: what a reward sees of them, such as: --frames first",
        One(Viewing), Viewing(),
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
    "argument": _call_option(
        list[str], "Any other, NAME=VALUE (JSON or text; an image: its file)."
    ),
}


_HELD_OUT_OPTIONS = {
    "also": Annotated[
        list[str] | None,
        typer.Option(
            help="A reward, by name as --reward, that scores the images beside it and steers "
            "nothing; may be given several times. Of digits and shapes also 'judge', their own."
        ),
    ]
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
_TYPED = {"call": _CALL_OPTIONS, "held_out": _HELD_OUT_OPTIONS, "job": _JOB_OPTIONS}


def with_settings(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in the place of its parameter `options`, an option for every setting.

    `groups` are of "job", "held_out", "method", "sampler", "batching", "loading", "viewing",
    "call", "contest" and "placement".
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

        @functools.wraps(command)
        def run(**given: Any) -> None:
            found: dict[str, dict[str, Any]] = {group: {} for group in groups}
            for name, group in owners.items():
                if (value := given.pop(name)) is not None:
                    found[group][name] = str(value).lower() if isinstance(value, bool) else value
            if "call" in found:
                found["call"] |= read_arguments(found["call"].pop("argument", []))
            command(options=Options(**found), **given)

        return _signed(run, annotations, defaults)

    return decorate


def command_for(function: Callable[..., object], name: str, written: str) -> Callable[..., None]:
    """A command that calls a function, with its parameters for options, as its docstring tells.

    What the docstring says before the parameters is the command's help. Of those that it does not
    tell one by one, the function's defaults stay.
    """
    help_text, _, told = (inspect.getdoc(function) or "").partition("\n\nParameters\n")
    meanings = dict(re.findall(r"^(\w+) : (.*(?:\n    .*)*)", told, re.M))
    hints = typing.get_type_hints(function)
    signature = inspect.signature(function).parameters
    places: dict[Any, Any] = {str | Path: Path, str | Path | None: Path | None}
    annotations: dict[str, Any] = {"out": Out}
    for option, meaning in meanings.items():
        text = _readable(" ".join(meaning.split()))
        kind = places.get(hints[option], hints[option])
        annotations.setdefault(option, Annotated[kind, typer.Option(help=text)])
    annotations["seed"] = Seed

    def run(**given: Any) -> None:
        function(**given, announce=announce)
        typer.echo(f"{written}: {given['out']}")

    run.__doc__ = f"{help_text}\n\nExample: glass-flows {name} --out out/{name.split()[-1]}"
    return _signed(run, annotations, {n: signature[n].default for n in annotations})


def _signed(
    command: Callable[..., None], annotations: dict[str, Any], defaults: Mapping[str, Any]
) -> Callable[..., None]:
    """A command with these parameters, as typer looks at them."""
    parameters = [
        inspect.Parameter(
            name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=a
        )
        for name, a in annotations.items()
    ]
    command.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
    command.__annotations__ = annotations
    return command


def _options_of(title: str, group: Group, default: Any) -> dict[str, Any]:
    found = {}
    for name, kind in group.kinds.items():
        allowed, meaning = group.told[name]
        text = spelled(kind.write(group.default_of(name, default)))
        switch = isinstance(kind, Switch)
        option = typer.Option(
            f"{flag(name)}/--no-{flag(name)[2:]}" if switch else flag(name),
            help=_readable(f"{meaning} ({allowed})"),
            metavar={Count: "INTEGER", Number: "NUMBER", Switch: ""}.get(type(kind), "TEXT"),
            show_default=False if text == "none" or switch else text,
            rich_help_panel=title,
        )
        found[name] = Annotated[(bool if switch else str) | None, option]
    return found


def _readable(text: str) -> str:
    """A docstring's line without its marks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("`", "")
