"""Command line options from the fields of settings objects."""

from __future__ import annotations

import functools
import inspect
import re
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Annotated, Any

import typer

from ..batching import Batching
from ..jobs.job import Loading, Placement
from ..jobs.spelling import Options, flag, read_arguments
from ..plans import Sampler
from ..settings import Count, Kind, Number, Settings, Switch, explanations, kinds, spelled
from ..steering.methods import METHODS, AnyMethod

__all__ = ["Announce", "Device", "Model", "Out", "Reward", "Seed", "with_settings"]

Announce = Callable[[str], None]
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


@dataclass(frozen=True)
class _Panel:
    """Options of one settings object, under a heading with an example."""

    title: str
    kinds: Mapping[str, Kind]
    told: Mapping[str, tuple[str, str]]
    defaults: Mapping[str, str]


def _panel(title: str, cls: type[Settings]) -> _Panel:
    default = {n: spelled(kinds(cls)[n].write(_default(cls, n))) for n in kinds(cls)}
    return _Panel(title, kinds(cls), explanations(cls), default)


def _default(cls: type[Settings], name: str) -> Any:
    return next(one.default for one in fields(cls) if one.name == name)


def _methods() -> _Panel:
    METHODS.load()  # installed packages' methods have options, too
    every = AnyMethod()
    defaults = {n: spelled(k.write(every.default_of(n, None))) for n, k in every.kinds.items()}
    title = "Method, such as: --particles 8 --scale 5 --twist 1:cap=1.5"
    return _Panel(title, every.kinds, every.told, defaults)


_PANELS: dict[str, Callable[[], _Panel]] = {
    "method": _methods,
    "sampler": lambda: _panel("Sampler, such as: --transitions 12 --steps 2 --rho ddpm", Sampler),
    "batching": lambda: _panel(
        "Samples at a time (pipelines), such as: --max-batch 4 --decode-batch 2", Batching
    ),
    "loading": lambda: _panel(
        "Loading (pipelines), such as: --dtype bfloat16 --offload model", Loading
    ),
    "placement": lambda: _panel("Where it runs, such as: --workers 2 --ray local", Placement),
}
_CALL = "Call of the pipeline, such as: --height 512 --argument true_cfg_scale=3"


def _call_options() -> dict[str, Any]:
    def option(kind: Any, told: str) -> Any:
        return Annotated[kind, typer.Option(help=told, rich_help_panel=_CALL)]

    return {
        "negative_prompt": option(str | None, "For pipelines that take one."),
        "guidance_scale": option(
            float | None, "Classifier-free guidance, the pipeline's own argument and default."
        ),
        "height": option(int | None, "Of the images, in pixels."),
        "width": option(int | None, "Of the images, in pixels."),
        "argument": option(list[str] | None, "Any other, NAME=VALUE (JSON or text)."),
    }


def with_settings(*groups: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """Give a command, in the place of its parameter `options`, an option for every setting.

    `groups` are of "method", "sampler", "batching", "loading", "call" and "placement". What was
    given reaches the command as :class:`Options`; defaults stay with the objects.
    """

    def decorate(command: Callable[..., None]) -> Callable[..., None]:
        hints = typing.get_type_hints(command, include_extras=True)
        owners: dict[str, str] = {}
        expanded: dict[str, Any] = {}
        for group in groups:
            made = _call_options() if group == "call" else _options_of(_PANELS[group]())
            owners |= dict.fromkeys(made, group)
            expanded |= made
        parameters, annotations = [], {}
        for name, one in inspect.signature(command).parameters.items():
            if name == "options":
                continue
            parameters.append(one.replace(annotation=hints[name], kind=one.KEYWORD_ONLY))
            annotations[name] = hints[name]
        for name, annotation in expanded.items():
            parameters.append(
                inspect.Parameter(
                    name, inspect.Parameter.KEYWORD_ONLY, default=None, annotation=annotation
                )
            )
            annotations[name] = annotation

        @functools.wraps(command)
        def run(**given: Any) -> None:
            found: dict[str, dict[str, Any]] = {group: {} for group in groups}
            for name, group in owners.items():
                if (value := given.pop(name)) is not None:
                    found[group][name] = str(value).lower() if isinstance(value, bool) else value
            call = found.get("call", {})
            listed = call.pop("argument", None) or []
            if "call" in found:
                found["call"] = {**call, **read_arguments(listed)}
            command(options=Options(**found), **given)

        run.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        run.__annotations__ = annotations
        return run

    return decorate


def _options_of(panel: _Panel) -> dict[str, Any]:
    found = {}
    for name, kind in panel.kinds.items():
        (allowed, meaning), default = panel.told[name], panel.defaults[name]
        switch = isinstance(kind, Switch)
        option = typer.Option(
            f"{flag(name)}/--no-{flag(name)[2:]}" if switch else flag(name),
            help=_readable(f"{meaning} ({allowed})"),
            metavar={Count: "INTEGER", Number: "NUMBER"}.get(type(kind), "TEXT"),
            show_default=False if default == "none" or switch else default,
            rich_help_panel=panel.title,
        )
        found[name] = Annotated[(bool if switch else str) | None, option]
    return found


def _readable(text: str) -> str:
    """A docstring's line without its marks."""
    return re.sub(r":\w+:`~?([^`]+)`", r"\1", text).replace("`", "")
