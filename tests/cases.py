"""Which cases of a test are among the fast ones; CI runs the others, too.

A tuple is a case of several arguments. None may be left with nothing fast: that is a slow test.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import pytest
from _pytest.mark import ParameterSet


def fast(some: Callable[[Any], bool] | Iterable[Any], values: Iterable[Any]) -> list[Any]:
    """For parametrize: all of `values`, of which those that are not among `some` are slow."""
    cases = list(values)
    if not callable(some):
        few = list(some)
        if strange := [one for one in few if one not in cases]:
            raise ValueError(f"no cases of this test: {strange}")
        some = few.__contains__
    return _with_fast(cases, [i for i, case in enumerate(cases) if some(case)])


def first(values: Iterable[Any]) -> list[Any]:
    """For parametrize: of `values` the first that is not slow already is fast, and no other."""
    cases = list(values)
    return one_in(len(cases), cases)


def one_in(count: int, values: Iterable[Any]) -> list[Any]:
    """For parametrize: as `first`, and each `count`-th after it is fast, too."""
    cases = list(values)
    return _with_fast(cases, [i for i, case in enumerate(cases) if not _is_slow(case)][::count])


def _with_fast(cases: list[Any], places: list[int]) -> list[Any]:
    if not places:
        raise ValueError(f"none of these cases is fast, so mark the test itself slow: {cases}")
    return [case if i in places else _slow(case) for i, case in enumerate(cases)]


def _is_slow(case: Any) -> bool:
    return isinstance(case, ParameterSet) and any(mark.name == "slow" for mark in case.marks)


def _slow(case: Any) -> Any:
    """A case, or what pytest.param made of it, as a slow one."""
    if isinstance(case, ParameterSet):
        return case._replace(marks=[*case.marks, pytest.mark.slow])
    return pytest.param(*(case if isinstance(case, tuple) else [case]), marks=pytest.mark.slow)
