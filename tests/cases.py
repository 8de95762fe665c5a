"""Which cases of a test are among the fast ones; CI runs the others, too."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def fast(some: Callable[[Any], bool] | Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """For parametrize: all of `values`, of which those that are not among `some` are slow.

    A tuple is a case of several arguments.
    """
    among = some if callable(some) else list(some).__contains__
    return [value if among(value) else slow(value) for value in values]


def first(values: Iterable[Any]) -> list[Any]:
    """For parametrize: of `values` the first is a fast case, and no other."""
    one, *others = values
    return [one, *map(slow, others)]


def slow(case: Any) -> Any:
    """A case, or what pytest.param made of it, as a slow one."""
    if isinstance(case, ParameterSet):
        return case._replace(marks=[*case.marks, pytest.mark.slow])
    return pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)


def one_in(count: int, values: Iterable[Any]) -> list[Any]:
    """For parametrize: of `values` the first and each `count`-th after it are fast cases."""
    return [value if i % count == 0 else slow(value) for i, value in enumerate(values)]
