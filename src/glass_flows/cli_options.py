"""What is written on the command line, as what it stands for."""

from __future__ import annotations

import json
from typing import Any

from .errors import InvalidArgument
from .plans import DDIM, Rho

__all__ = ["arguments_of", "number_of", "rho_of"]


def arguments_of(given: list[str]) -> dict[str, Any]:
    """--argument NAME=VALUE, the value as JSON where it is, else as text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(f"--argument must be NAME=VALUE, got {text!r}")
        try:
            found[name] = json.loads(value)
        except ValueError:
            found[name] = value
    return found


def rho_of(text: str, solver: str) -> Rho:
    """--rho: a number, 'ddpm', 'ode' or 'ddim:ETA'; Euler-Maruyama has none."""
    if solver == "euler-maruyama":
        return None
    if text in ("ddpm", "ode"):
        return text
    if text.startswith("ddim:"):
        return DDIM(number_of(text.removeprefix("ddim:"), "--rho ddim:"))
    return number_of(text, "--rho")


def number_of(text: str, option: str) -> float:
    """A number, or :class:`InvalidArgument` that names the option."""
    try:
        return float(text)
    except ValueError:
        allowed = ", 'ddpm', 'ode' or 'ddim:ETA'" if option == "--rho" else ""
        raise InvalidArgument(f"{option} must be a number{allowed}, got {text!r}") from None
