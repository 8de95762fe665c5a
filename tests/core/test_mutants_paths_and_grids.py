"""Edges of paths and grids that mutation testing (tools/mutants.py) found unwatched."""

from __future__ import annotations

import math

import pytest

from glass_flows.errors import InvalidArgument
from glass_flows.grids import Karras, outer_times
from glass_flows.paths import EDM, DiscreteDiffusion, Linear


def test_slopes_at_trained_times_look_towards_data():
    """At a kink of the angle the derivatives are those of the segment that a sampler enters."""
    path = DiscreteDiffusion([0.75, 0.5, 0.0])  # angles 0, π/4, π/3 at 0, 1/3, 2/3; then π/2
    for t, angle, slope in zip(
        path.trained_times,
        (0.0, math.pi / 4, math.pi / 3),
        (math.pi / 4, math.pi / 12, math.pi / 6),
    ):
        assert path.alpha_dot(t) == pytest.approx(3 * slope * math.cos(angle), rel=1e-12)
        assert path.sigma_dot(t) == pytest.approx(-3 * slope * math.sin(angle), rel=1e-12)


@pytest.mark.parametrize("amplitude", [1e17, 1e200])
def test_amplitudes_whose_angle_rounds_to_a_right_angle(amplitude):
    """arctan(1e17) is π/2 in floats, where a discrete table ends: its time is data's."""
    path = DiscreteDiffusion([0.75, 0.5, 0.0])
    assert math.atan(amplitude) == 0.5 * math.pi
    assert path.time(amplitude) == pytest.approx(1.0, rel=1e-15)


@pytest.mark.parametrize(("rho", "level"), [(1.0, 5.0), (0.5, math.sqrt(41.0))])
def test_karras_spaces_levels_by_their_root(rho, level):
    """Levels 9, middle, 1, then data: the middle is 5 for ρ = 1, √((81 + 1)/2) for ρ = 1/2."""
    times = outer_times(Linear(), 3, Karras(rho, 1.0, 9.0))
    assert [(1 - t) / t for t in times[1:3]] == pytest.approx([level, 1.0], rel=1e-14)
    assert times[3] == 1.0


def test_karras_needs_room_between_its_levels():
    """σ_min equal to the default σ_max leaves no level in between."""
    with pytest.raises(InvalidArgument, match="not below"):
        outer_times(Linear(), 3, Karras(sigma_min=80.0))


@pytest.mark.parametrize("sigma_min", [0.15, 0.9])
def test_karras_ends_at_a_level_above_the_path_s_own(sigma_min):
    """The last start is σ_min itself unless the path ends there."""
    times = outer_times(EDM(0.1, 20.0), 4, Karras(sigma_min=sigma_min))
    assert EDM(0.1, 20.0).sigma(times[-2]) == pytest.approx(sigma_min, rel=1e-10)


def test_trained_times_come_back_to_the_bit():
    path = DiscreteDiffusion([0.999 * (1 - k / 300) ** 2 for k in range(300)])
    assert all(path.time(path.amplitude(t)) == t for t in path.trained_times)
