"""Outer times: uniform, shifted, Karras, snapped to trained timesteps, given as a list."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_flows.errors import InvalidArgument, PlanError, TimeError, UnknownName
from glass_flows.grids import Karras, Shifted, Uniform, outer_times, snap_to_trained
from glass_flows.paths import EDM, Cosine, DiscreteDiffusion, Linear, VariancePreserving
from statistics_rules import CONTINUOUS, PATHS


@pytest.mark.parametrize("name", CONTINUOUS)
def test_uniform(name):
    path = PATHS[name]
    assert outer_times(path, 4) == pytest.approx([0.0, 0.25, 0.5, 0.75, 1.0], abs=1e-15)
    assert (
        outer_times(path, 4) == outer_times(path, 4, "uniform") == outer_times(path, 4, Uniform())
    )
    assert outer_times(path, 1) == (0.0, 1.0)


@pytest.mark.parametrize("shift", [0.4, 1.0, 3.0, 7.5])
@pytest.mark.parametrize("transitions", [1, 5, 28])
def test_shift_of_flux_and_sd3(shift, transitions):
    """In their clock σ falls from 1 to 0 in equal steps, and σ ← s σ/(1 + (s - 1) σ)."""
    sigma = np.linspace(1.0, 0.0, transitions + 1)
    sigma = shift * sigma / (1 + (shift - 1) * sigma)
    times = outer_times(Linear(), transitions, Shifted(shift))
    np.testing.assert_allclose(times, 1 - sigma, rtol=0, atol=1e-15)
    assert (times[0], times[-1]) == (0.0, 1.0)


def test_shift_by_hand():
    """σ = 0.5 and s = 3: 1.5/2 = 0.75, so t = 0.25."""
    assert outer_times(Linear(), 2, Shifted(3.0))[1] == 0.25
    assert outer_times(Linear(), 2, "shifted")[1] == 0.25  # SD3's shift is the default
    assert outer_times(Linear(), 8, Shifted(1.0)) == outer_times(Linear(), 8)
    middle = outer_times(Linear(), 2, Shifted(5.0))[1]
    assert Linear().amplitude(middle) == pytest.approx(Linear().amplitude(0.5) / 5, rel=1e-14)


def test_shift_from_tokens():
    """FLUX: μ = m n + b through (256, 0.5) and (4096, 1.15); the shift is e^μ."""
    assert Shifted.from_tokens(256).shift == pytest.approx(math.exp(0.5), rel=1e-14)
    assert Shifted.from_tokens(4096).shift == pytest.approx(math.exp(1.15), rel=1e-14)
    slope = (1.15 - 0.5) / 3840
    assert Shifted.from_tokens(1024).shift == pytest.approx(
        math.exp(slope * 1024 + 0.5 - slope * 256), rel=1e-14
    )


def karras(high, low, rho, transitions):
    """σ_i = (σ_max^(1/ρ) + i/K (σ_min^(1/ρ) - σ_max^(1/ρ)))^ρ, eq. 5 of Karras et al. 2022."""
    i = np.arange(1, transitions) / transitions
    return (high ** (1 / rho) + i * (low ** (1 / rho) - high ** (1 / rho))) ** rho


@pytest.mark.parametrize("transitions", [2, 5, 18])
@pytest.mark.parametrize("rho", [7.0, 3.0])
def test_karras_on_edm(transitions, rho):
    for path, high, low in ((EDM(), 80.0, 0.002), (EDM(0.1, 20.0), 20.0, 0.1)):
        times = outer_times(path, transitions, Karras(rho))
        assert (times[0], times[-1]) == (0.0, 1.0)
        levels = [path.sigma(t) for t in times[1:-1]]
        np.testing.assert_allclose(levels, karras(high, low, rho, transitions), rtol=1e-10)


def test_karras_on_other_paths():
    """K levels, σ_min the last of them, then data; ratios σ/α, by default 80 to 0.002."""

    def inner(path, transitions, grid):
        times = outer_times(path, transitions, grid)
        assert (times[0], times[-1]) == (0.0, 1.0)
        ratios = [path.sigma(t) / path.alpha(t) for t in times[1:-1]]
        return ratios[:-1], ratios[-1]

    vp = VariancePreserving()
    for path, high in ((Linear(), 80.0), (Cosine(), 80.0), (vp, vp.sigma(0.0) / vp.alpha(0.0))):
        levels, last = inner(path, 6, "karras")
        np.testing.assert_allclose(levels, karras(high, 0.002, 7.0, 5), rtol=1e-9)
        assert last == pytest.approx(0.002, rel=1e-9)
    levels, last = inner(Linear(), 6, Karras(7.0, 0.05, 10.0))
    np.testing.assert_allclose(levels, karras(10.0, 0.05, 7.0, 5), rtol=1e-9)
    assert last == pytest.approx(0.05, rel=1e-9)
    assert outer_times(Linear(), 1, Karras()) == (0.0, 1.0)


def test_karras_by_hand():
    """ρ = 2 from 9 to 1 in two steps: ((3 + 1)/2)² = 4, so that 1 - t = 4 t; then 1 - t = t."""
    times = outer_times(Linear(), 3, Karras(2.0, 1.0, 9.0))
    assert times == pytest.approx((0.0, 0.2, 0.5, 1.0), rel=1e-14)


def test_karras_inside_the_range_of_a_path():
    """A σ_min above the path's own end is a level like any other, as in k-diffusion."""
    path = EDM(0.001, 9.0)
    levels = [path.sigma(t) for t in outer_times(path, 3, Karras(2.0, 1.0))[:-1]]
    assert levels == pytest.approx([9.0, 4.0, 1.0], rel=1e-12)
    with pytest.raises(InvalidArgument, match=r"not where this path starts, 9: .*EDM"):
        outer_times(path, 3, Karras(2.0, 1.0, 8.0))


@pytest.mark.parametrize(
    "make",
    [
        lambda: Shifted(0.0),
        lambda: Shifted(-1.0),
        lambda: Shifted(math.inf),
        lambda: Shifted(math.nan),
        lambda: Karras(0.0),
        lambda: Karras(math.inf),
        lambda: Karras(7.0, 0.0, 1.0),
        lambda: Karras(7.0, -1.0),
        lambda: Karras(7.0, None, 0.0),
        lambda: Karras(7.0, None, math.inf),
        lambda: Karras(7.0, 1.0, 1.0),
        lambda: Karras(7.0, 2.0, 1.0),
        lambda: outer_times(Linear(), 3, Karras(7.0, 90.0)),
        lambda: outer_times(Linear(), 3, Karras(7.0, None, 0.001)),
        lambda: outer_times(Linear(), 3, Karras(0.25)),
        lambda: outer_times(Linear(), 3, Karras(1e-300)),
        *(
            lambda kind=kind, given=given: kind(given)
            for kind in (Shifted, Karras)
            for given in ("x", None, True, 1j)
        ),
        lambda: Karras(7.0, "x"),
    ],
)
def test_invalid_grids(make):
    with pytest.raises(InvalidArgument):
        make()


# -------------------------------------------------------------------------------- trained timesteps


@settings(max_examples=150, deadline=None)
@given(
    count=st.integers(2, 40),
    share=st.floats(0.01, 1.0),
    grid=st.sampled_from(["uniform", "shifted", "karras", Shifted(0.2), Karras(2.0)]),
)
def test_named_grids_move_to_trained_times(count, share, grid):
    path = DiscreteDiffusion([0.99 - 0.98 * k / count for k in range(count)])
    transitions = max(1, int(share * count))
    times = outer_times(path, transitions, grid)
    assert len(times) == transitions + 1
    assert times[-1] == 1.0
    assert set(times[:-1]) <= set(path.trained_times)
    assert all(a < b for a, b in itertools.pairwise(times))


def test_snapping_takes_the_nearest():
    path = PATHS["discrete"]  # trained times at multiples of 1/500
    for transitions in (3, 7, 50):
        times = outer_times(path, transitions)
        wanted = [i / transitions for i in range(transitions + 1)]
        assert max(abs(a - b) for a, b in zip(times, wanted)) <= 0.5 / 500 + 1e-12
        assert times[0] == 0.0
    shifted = outer_times(path, 7, "shifted")
    wanted = outer_times(Linear(), 7, "shifted")
    assert max(abs(a - b) for a, b in zip(shifted, wanted)) <= 0.5 / 500 + 1e-12
    assert all(t in path.trained_times for t in shifted[:-1])


def test_snapping_keeps_times_apart():
    path = DiscreteDiffusion([0.9, 0.7, 0.4, 0.1])
    trained = path.trained_times
    assert outer_times(path, 4) == (*trained, 1.0)
    assert outer_times(path, 4, Shifted(50.0)) == (*trained, 1.0)
    assert outer_times(path, 4, Shifted(0.01)) == (*trained, 1.0)
    # a crowd at noise is pushed up, one at data pushed down, by as little as possible
    assert outer_times(path, 3, Shifted(50.0)) == (*trained[:3], 1.0)
    assert outer_times(path, 3, Shifted(0.01)) == (trained[0], *trained[2:], 1.0)
    with pytest.raises(PlanError, match="at most 4"):
        outer_times(path, 5)


# --------------------------------------------------------------------------------- lists, callables


def test_lists_and_callables_are_taken_as_they_are():
    assert outer_times(Linear(), 2, [0.1, 0.35, 0.9]) == (0.1, 0.35, 0.9)
    assert outer_times(Linear(), 2, (0, 0.5, 1)) == (0.0, 0.5, 1.0)
    assert all(type(t) is float for t in outer_times(Linear(), 2, (0, 0.5, 1)))
    assert outer_times(Linear(), 2, np.array([0.0, 0.4, 1.0])) == (0.0, 0.4, 1.0)
    seen = []

    def grid(path, transitions):
        seen.append((path, transitions))
        return [0.0, 0.3, 1.0]

    assert outer_times(Cosine(), 2, grid) == (0.0, 0.3, 1.0)
    assert seen == [(Cosine(), 2)]
    # a list is the user's word, also where the network was not trained
    assert outer_times(DiscreteDiffusion([0.9, 0.5]), 2, [0.0, 0.3, 1.0]) == (0.0, 0.3, 1.0)


@pytest.mark.parametrize(
    ("transitions", "times", "error"),
    [
        (0, None, InvalidArgument),
        (-1, None, InvalidArgument),
        (True, None, InvalidArgument),
        (2.0, None, InvalidArgument),
        ("2", None, InvalidArgument),
        (2, "unifrom", UnknownName),
        (2, [0.0, 1.0], TimeError),
        (2, [0.0, 0.2, 0.5, 1.0], TimeError),
        (2, [0.0, 0.5, 0.5], TimeError),
        (2, [0.0, 0.6, 0.5], TimeError),
        (2, [1.0, 0.5, 0.0], TimeError),
        (2, [-0.1, 0.5, 1.0], TimeError),
        (2, [0.0, 0.5, 1.1], TimeError),
        (2, [0.0, math.nan, 1.0], TimeError),
        (2, [0.0, "half", 1.0], TimeError),
        (2, lambda path, transitions: [0.0, 1.0], TimeError),
    ],
)
def test_invalid_times(transitions, times, error):
    with pytest.raises(error):
        outer_times(Linear(), transitions, times)


def test_errors_say_where():
    with pytest.raises(TimeError, match=r"times\[1\] = 0\.6, times\[2\] = 0\.5"):
        outer_times(Linear(), 2, [0.0, 0.6, 0.5])
    with pytest.raises(TimeError, match=r"2 transitions need 3 times"):
        outer_times(Linear(), 2, [0.0, 1.0])
    with pytest.raises(UnknownName, match="'uniform'"):
        outer_times(Linear(), 2, "unifrom")


def test_times_move_to_trained_ones_and_stay_apart():
    path = DiscreteDiffusion([0.9, 0.7, 0.5, 0.3])
    trained = path.trained_times
    assert snap_to_trained(path, [1.0]) == (1.0,)
    assert snap_to_trained(path, np.array([0.0, 0.0, 1.0])) == (*trained[:2], 1.0)
    assert snap_to_trained(Linear(), [0, 0.25, 1]) == (0.0, 0.25, 1.0)
    assert snap_to_trained(path, [*trained, 1.0]) == (*trained, 1.0)
    with pytest.raises(PlanError, match="5 transitions do not fit on 4 trained timesteps"):
        snap_to_trained(path, [0.0, *trained, 1.0])


@pytest.mark.parametrize("path", [Linear(), DiscreteDiffusion([0.9, 0.5])])
@pytest.mark.parametrize(
    ("times", "match"),
    [
        ([], "times must be a list of one or more, got none"),
        (0.5, "times must be a list of times, got 0.5"),
        ("ab", r"times\[0\] must be a number in \[0, 1\], got 'a'"),
        ([0.0, 1.5], r"times\[1\] must lie in \[0, 1\]"),
        (range(10**12), r"times\[2\] must lie in \[0, 1\]"),
    ],
)
def test_times_that_are_none_are_not_moved(path, times, match):
    with pytest.raises(TimeError, match=match):
        snap_to_trained(path, times)


def test_only_times_of_a_path_are_moved():
    with pytest.raises(InvalidArgument, match=r"path must be an object such as .*Linear\(\)"):
        snap_to_trained("linear", [0.0, 1.0])


def test_of_a_list_without_end_no_more_is_read_than_says_that_it_is_too_long():
    read = []

    def endless():
        for k in itertools.count():
            read.append(k)
            yield k / 1000

    with pytest.raises(TimeError, match=r"3 transitions need 4 times .*, got more"):
        outer_times(Linear(), 3, endless())
    assert read == [0, 1, 2, 3, 4]
