"""Figures of merit against numbers that are known: what `tools/mutants.py` asks first."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from glass_flows.measures import (
    Measure,
    bootstrap,
    diversity,
    frechet_distance,
    half_samples,
    mean,
    precision_recall,
    share,
)

LINE = np.array([[0.0], [1.0], [3.0], [6.0], [10.0]])


def test_a_mean_of_numbers():
    found = mean(np.array([1.0, 2.0, 6.0]))
    assert found == Measure(3.0, pytest.approx((7.0 / 3.0) ** 0.5))
    z = stats.norm.ppf(0.975)
    assert found.interval == pytest.approx((3.0 - z * found.error, 3.0 + z * found.error), abs=1e-6)


@pytest.mark.parametrize(("yes", "n"), [(3, 7), (0, 2), (20, 24)])
def test_a_share_of_verdicts(yes, n):
    found = share(np.array([1] * yes + [0] * (n - yes)))
    assert (found.value, found.trials) == (yes / n, n)
    expected = stats.binomtest(yes, n).proportion_ci(method="wilson")
    assert found.interval == pytest.approx((expected.low, expected.high), rel=1e-6, abs=1e-15)


def test_the_distance_of_gaussians_on_one_axis():
    """(μ - μ')² + (s - s')² on each axis, also of deviations under 1, and without any."""
    square = np.array([[1.0, 1], [1, -1], [-1, 1], [-1, -1]]) * 0.75**0.5  # covariance 1
    for s, t in (((0.2, 0.1), (0.5, 0.3)), ((3.0, 0.0), (2.0, 4.0))):
        found = frechet_distance(square * s + [0.7, 0.0], square * t + [0.4, 0.0])
        expected = 0.3**2 + (s[0] - t[0]) ** 2 + (s[1] - t[1]) ** 2
        assert found == pytest.approx(expected)


def test_the_distance_of_samples_from_each_other():
    assert diversity(LINE) == pytest.approx((1 + 3 + 6 + 10 + 2 + 5 + 9 + 3 + 7 + 4) / 10)
    assert diversity(0.1 * LINE) == pytest.approx(0.5)
    plane = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 8.0]])
    assert diversity(plane) == pytest.approx((5 + 5 + 8) / 3)


def test_what_lies_within_is_no_farther_than_a_neighbour():
    """Radii of the line by its first neighbours: 1, 1, 2, 3, 4."""
    points = np.array([[-1.0], [-1.1], [2.0], [14.0], [14.1]])
    precision, _ = precision_recall(points, LINE, neighbours=1)
    assert precision == 3 / 5  # -1 and 14 just so
    assert precision_recall(LINE, points, neighbours=1)[1] == 3 / 5
    far = np.array([[16.0], [19.0], [20.1], [-9.0], [30.0]])
    assert precision_recall(far, LINE)[0] == 2 / 5  # the third of 10 is 7 away, of 0 6


def test_half_samples_are_a_hundred_of_one_seed():
    asked = []

    def figure(samples):
        asked.append(samples)
        return float(samples.mean())

    found = half_samples(LINE, figure)
    assert (found.value, found.trials) == (4.0, None)
    assert [len(one) for one in asked] == [2] * 100 + [5]
    rng = np.random.default_rng(0)
    drawn = np.array([LINE[rng.permutation(5)[:2]] for _ in range(100)])
    assert np.array_equal(drawn, asked[:100])
    middle = [float(one.mean()) for one in drawn]
    spread = sum((one - sum(middle) / 100) ** 2 for one in middle) / 99
    assert found.error == pytest.approx(spread**0.5)


def test_a_bootstrap_is_of_two_thousand_of_one_seed():
    values = np.random.default_rng(1).standard_normal(40)
    drawn = values[np.random.default_rng(0).integers(40, size=(2000, 40))].mean(1)
    assert bootstrap(values) == pytest.approx(tuple(np.percentile(drawn, [2.5, 97.5])), rel=1e-9)
    assert bootstrap(values, rounds=1, seed=3) == pytest.approx(
        (values[np.random.default_rng(3).integers(40, size=40)].mean(),) * 2
    )
