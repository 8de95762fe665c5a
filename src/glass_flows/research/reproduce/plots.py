"""Lines over an axis, one for each value of a setting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import Result


def of(results: Sequence[Result], **settings: object) -> list[Result]:
    """Those with these settings."""
    wanted = settings.items()
    return [one for one in results if all(one[name] == value for name, value in wanted)]


def lines(axis: Any, results: Sequence[Result], x: str, y: str, by: str, **look: Any) -> None:
    """`y` over `x` with bars of one standard error, a line for each value of the setting `by`.

    `look` is for ``axis.set``.
    """
    for name in dict.fromkeys(one[by] for one in results):
        own = [one for one in of(results, **{by: name}) if y in one.values]
        axis.errorbar(
            [one[x] for one in own],
            [one[y] for one in own],
            [one.error(y) for one in own],
            fmt="o-",
            markersize=3.5,
            capsize=2,
            linewidth=1.2,
            label=str(name),
        )
    axis.set(**{"xlabel": x, "ylabel": y, **look})


def points(axis: Any, results: Sequence[Result], names: Sequence[str], y: str, **look: Any) -> None:
    """`y` of each result, with its 95 % interval, at its name; `look` is for ``axis.set``."""
    values, errors = [one[y] for one in results], [1.96 * one.error(y) for one in results]
    axis.errorbar(names, values, errors, fmt="o", capsize=2)
    axis.set(**look)
