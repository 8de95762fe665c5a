"""What the helpers of parametrize leave among the fast cases."""

import pytest

from cases import fast, first, one_in

SLOW = pytest.param("slow before", marks=pytest.mark.slow)


def left(cases):
    """Those that are not slow."""
    return [case for case in cases if not getattr(case, "marks", ())]


def test_the_first_is_one_that_was_not_slow_already():
    assert left(first([SLOW, 1, 2, 3])) == [1]
    assert left(one_in(2, [SLOW, 1, 2, SLOW, 3])) == [1, 3]
    assert left(fast([2], iter([1, 2, 3]))) == left(fast(lambda one: one == 2, [1, 2, 3])) == [2]
    assert [case.values for case in first([0, 1, (1, 2), [1, 2]])[1:]] == [(1,), (1, 2), ([1, 2],)]


def test_a_test_without_a_fast_case_is_refused():
    for wrong in (lambda: first([SLOW]), lambda: one_in(2, []), lambda: fast([], [1, 2])):
        with pytest.raises(ValueError, match="mark the test itself slow"):
            wrong()
    with pytest.raises(ValueError, match=r"no cases of this test: \[3\]"):
        fast([1, 3], [1, 2])
