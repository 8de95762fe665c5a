"""Which cases of a test are among the fast ones; CI runs the others, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest


def fast(some: Callable[[Any], bool] | Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """For parametrize: all of `values`, of which those that are not among `some` are slow.

    A tuple is a case of several arguments.
    """
    among = some if callable(some) else list(some).__contains__
    return [
        value
        if among(value)
        else pytest.param(*(value if isinstance(value, tuple) else [value]), marks=pytest.mark.slow)
        for value in values
    ]
