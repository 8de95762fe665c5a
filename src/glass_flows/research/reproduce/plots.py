"""Lines over an axis, one for each value of a setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Result

__all__ = ["lines", "points"]


def lines(axis: Any, results: Sequence[Result], x: str, y: str, by: str, factor: float = 1) -> None:
    """`y` over `x` with bars of one standard error, a line for each value of the setting `by`."""
    for name in dict.fromkeys(one[by] for one in results):
        own = [one for one in results if one[by] == name and y in one.values]
        axis.errorbar(
            [one[x] for one in own],
            [factor * one[y] for one in own],
            [factor * one.error(y) for one in own],
            fmt="o-",
            markersize=3.5,
            capsize=2,
            linewidth=1.2,
            label=str(name),
        )
    axis.set(xlabel=x, ylabel=y)


def points(axis: Any, results: Sequence[Result], names: Sequence[str], y: str) -> None:
    """`y` of each result, with its 95 % interval, at its name."""
    axis.errorbar(
        names,
        [one[y] for one in results],
        [1.96 * one.error(y) for one in results],
        fmt="o",
        capsize=2,
    )
