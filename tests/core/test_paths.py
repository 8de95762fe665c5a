"""Paths against high-precision formulas of their own definition, at both ends and in between."""

from __future__ import annotations

import itertools
import math

import mpmath
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from glass_flows.errors import GlassError, InvalidArgument, TimeError, UnknownName
from glass_flows.paths import (
    EDM,
    Cosine,
    DiscreteDiffusion,
    Linear,
    Path,
    VariancePreserving,
    check_time,
    from_config,
)
from statistics_rules import PATHS, stable_diffusion_table, zero_snr_table

mp = mpmath.mp.clone()
mp.dps = 40


def vp(beta_min: float, beta_max: float):
    """α = exp(-½ ∫_0^{1-t} β(r) dr) with β(r) = β_min + r (β_max - β_min)."""
    low, high = mp.mpf(beta_min), mp.mpf(beta_max)

    def alpha(t):
        r = 1 - t
        return mp.exp(-(low * r + (high - low) * r**2 / 2) / 2)

    return alpha, lambda t: mp.sqrt(1 - alpha(t) ** 2)


def edm(low: float, high: float):
    """σ falls geometrically from σ_max to σ_min."""
    low, high = mp.mpf(low), mp.mpf(high)
    return lambda t: mp.mpf(1), lambda t: high * (low / high) ** t


DEFINITIONS = [
    (Linear(), lambda t: t, lambda t: 1 - t),
    (Cosine(), lambda t: mp.sin(mp.pi * t / 2), lambda t: mp.cos(mp.pi * t / 2)),
    (VariancePreserving(), *vp(0.1, 20.0)),
    (VariancePreserving(0.3, 7.0), *vp(0.3, 7.0)),
    (VariancePreserving(0.0, 5.0), *vp(0.0, 5.0)),
    (VariancePreserving(2.0, 2.0), *vp(2.0, 2.0)),
    (EDM(), *edm(0.002, 80.0)),
    (EDM(0.05, 3.0), *edm(0.05, 3.0)),
]
TIMES = [0.03, 0.1, 0.25, 0.5, 0.61, 0.9, 0.99]


@pytest.mark.parametrize(
    ("path", "alpha", "sigma"), DEFINITIONS, ids=[repr(path) for path, *_ in DEFINITIONS]
)
@pytest.mark.parametrize("t", TIMES)
def test_values_and_derivatives(path, alpha, sigma, t):
    exact = mp.mpf(t)
    assert path.alpha(t) == pytest.approx(float(alpha(exact)), rel=1e-13)
    assert path.sigma(t) == pytest.approx(float(sigma(exact)), rel=1e-13)
    assert path.alpha_dot(t) == pytest.approx(float(mp.diff(alpha, exact)), rel=1e-12, abs=1e-13)
    assert path.sigma_dot(t) == pytest.approx(float(mp.diff(sigma, exact)), rel=1e-12)
    amplitude = float(alpha(exact) / sigma(exact))
    assert path.amplitude(t) == pytest.approx(amplitude, rel=1e-13)
    assert path.time(amplitude) == pytest.approx(t, rel=1e-11)


@pytest.mark.parametrize(
    ("path", "t", "alpha", "sigma", "alpha_dot", "sigma_dot"),
    [
        (Linear(), 0.25, 0.25, 0.75, 1.0, -1.0),
        (Cosine(), 1 / 3, 0.5, 0.8660254037844386, 1.3603495231756633, -0.7853981633974483),
        (VariancePreserving(2.0, 2.0), 0.5, 0.6065306597126334, 0.7950600976206501,
         0.6065306597126334, -0.36787944117144233 / 0.7950600976206501),
        (EDM(0.5, 8.0), 0.5, 1.0, 2.0, 0.0, -5.545177444479562),
    ],
)  # fmt: skip
def test_numbers_by_hand(path, t, alpha, sigma, alpha_dot, sigma_dot):
    got = (path.alpha(t), path.sigma(t), path.alpha_dot(t), path.sigma_dot(t))
    assert got == pytest.approx((alpha, sigma, alpha_dot, sigma_dot), rel=1e-12)


# ------------------------------------------------------------------------------------------ ends


@pytest.mark.parametrize(
    ("path", "start", "end"),
    [
        (Linear(), (0.0, 1.0), (1.0, 0.0)),
        (Cosine(), (0.0, 1.0), (1.0, 0.0)),
        (VariancePreserving(), (math.exp(-5.025), math.sqrt(1 - math.exp(-10.05))), (1.0, 0.0)),
        (EDM(), (1.0, 80.0), (1.0, 0.002)),
        (EDM(0.01, 50.0), (1.0, 50.0), (1.0, 0.01)),
        (DiscreteDiffusion([0.9, 0.36]), (0.6, 0.8), (1.0, 0.0)),
        (DiscreteDiffusion([0.9, 0.5, 0.0]), (0.0, 1.0), (1.0, 0.0)),
    ],
    ids=repr,
)
def test_ends_are_exact(path, start, end):
    assert (path.alpha(0.0), path.sigma(0.0)) == pytest.approx(start, rel=1e-15, abs=0)
    assert (path.alpha(1.0), path.sigma(1.0)) == pytest.approx(end, rel=1e-15, abs=0)
    assert path.amplitude(0.0) == pytest.approx(start[0] / start[1], rel=1e-15, abs=0)
    last = path.amplitude(1.0)
    assert last == (math.inf if end[1] == 0.0 else pytest.approx(end[0] / end[1], rel=1e-15))
    assert path.time(path.amplitude(0.0)) == 0.0
    assert path.time(last) == 1.0


def test_sigma_vanishes_at_data_and_not_before():
    for path in (Linear(), Cosine(), VariancePreserving(), PATHS["discrete"], PATHS["zero-snr"]):
        assert path.sigma(1.0) == 0.0  # exactly: cos(π/2) in floats is 6e-17
        assert path.alpha(1.0) == 1.0
        just_before = math.nextafter(1.0, 0.0)
        assert 0.0 < path.sigma(just_before) < 1e-6
        assert math.isfinite(path.amplitude(just_before))


def test_slopes_at_the_ends():
    half = math.pi / 2
    assert (Cosine().alpha_dot(0.0), Cosine().sigma_dot(0.0)) == (half, 0.0)
    assert (Cosine().alpha_dot(1.0), Cosine().sigma_dot(1.0)) == (0.0, -half)
    assert VariancePreserving().sigma_dot(1.0) == -math.inf
    assert VariancePreserving(0.2, 3.0).alpha_dot(1.0) == pytest.approx(0.1, rel=1e-15)
    assert VariancePreserving(0.2, 3.0).alpha_dot(0.0) == pytest.approx(
        1.5 * math.exp(-0.8), rel=1e-14
    )


def test_small_noise_keeps_its_digits():
    """σ² = 1 - α² loses everything to cancellation near data unless it is written as expm1."""
    t = 1.0 - 2.0**-40
    _, sigma = vp(0.1, 20.0)
    assert VariancePreserving().sigma(t) == pytest.approx(float(sigma(mp.mpf(t))), rel=1e-13)
    assert Cosine().sigma(t) == pytest.approx(float(mp.cos(mp.pi * mp.mpf(t) / 2)), rel=1e-13)


@settings(max_examples=300, deadline=None)
@given(name=st.sampled_from(sorted(PATHS)), t=st.floats(0.0, 1.0))
def test_amplitude_round_trip(name, t):
    path = PATHS[name]
    amplitude = path.amplitude(t)
    back = path.time(amplitude)
    assert 0.0 <= back <= 1.0
    # near data t is ill-conditioned as a function of the amplitude, so compare amplitudes too
    assert back == pytest.approx(t, abs=2e-9)
    if math.isfinite(amplitude):
        assert math.atan(path.amplitude(back)) == pytest.approx(math.atan(amplitude), abs=1e-13)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(PATHS)), share=st.floats(0.0, 1.0))
def test_inverse_round_trip(name, share):
    path = PATHS[name]
    low, high = (math.atan(path.amplitude(t)) for t in (0.0, 1.0))
    amplitude = min(math.tan(low + share * (high - low)), path.amplitude(1.0))
    if amplitude >= 0:
        angle = math.atan(path.amplitude(path.time(amplitude)))
        assert angle == pytest.approx(math.atan(amplitude), abs=1e-12)


@settings(max_examples=200, deadline=None)
@given(name=st.sampled_from(sorted(PATHS)), t=st.floats(0.0, 1.0), s=st.floats(0.0, 1.0))
def test_amplitude_grows(name, t, s):
    path = PATHS[name]
    if t < s - 1e-9:
        assert path.amplitude(t) < path.amplitude(s)
        assert path.alpha(t) <= path.alpha(s)
        assert path.sigma(t) >= path.sigma(s)


@pytest.mark.parametrize("name", sorted(PATHS))
def test_amplitudes_beyond_the_ends_are_refused(name):
    path = PATHS[name]
    low, high = path.amplitude(0.0), path.amplitude(1.0)
    outside = [-1.0, math.nan]
    outside += [low * (1 - 1e-9)] if low > 0 else [-1e-9]
    outside += [high * (1 + 1e-9), math.inf] if math.isfinite(high) else []
    for amplitude in outside:
        with pytest.raises(InvalidArgument, match="no time of the"):
            path.time(amplitude)
    # rounding at the very end is forgiven
    assert path.time(low * (1 - 1e-14)) == 0.0
    if math.isfinite(high):
        assert path.time(high * (1 + 1e-14)) == 1.0


# ------------------------------------------------------------------------------- discrete tables


def angle_table(table):
    """(times, angles arctan(α/σ)) with timestep k at 1 - (k+1)/T and data at (1, π/2)."""
    count = len(table)
    times = [1 - (k + 1) / count for k in range(count)]
    angles = [math.asin(math.sqrt(value)) for value in table]
    order = np.argsort(times)
    return np.append(np.array(times)[order], 1.0), np.append(np.array(angles)[order], math.pi / 2)


@pytest.mark.parametrize("table", [[0.95, 0.8, 0.3, 0.04], [0.9, 0.5, 0.0]], ids=str)
@pytest.mark.parametrize("t", [0.0, 0.1, 0.3, 0.49, 0.6, 0.8, 0.97])
def test_discrete_interpolates_the_angle(table, t):
    path = DiscreteDiffusion(table)
    times, angles = angle_table(table)
    angle = float(np.interp(t, times, angles))
    i = max(int(np.searchsorted(times, t, side="right")) - 1, 0)
    slope = (angles[i + 1] - angles[i]) / (times[i + 1] - times[i])
    assert path.alpha(t) == pytest.approx(math.sin(angle), rel=1e-12, abs=1e-15)
    assert path.sigma(t) == pytest.approx(math.cos(angle), rel=1e-12)
    assert path.amplitude(t) == pytest.approx(math.tan(angle), rel=1e-12, abs=1e-15)
    assert path.alpha_dot(t) == pytest.approx(math.cos(angle) * slope, rel=1e-12)
    assert path.sigma_dot(t) == pytest.approx(-math.sin(angle) * slope, rel=1e-12, abs=1e-15)
    assert path.time(math.tan(angle)) == pytest.approx(t, abs=1e-12)


@pytest.mark.parametrize("make", [stable_diffusion_table, zero_snr_table])
def test_trained_times_are_the_table(make):
    table = make(1000)
    path = DiscreteDiffusion(table)
    trained = path.trained_times
    assert len(trained) == 1000
    assert trained[0] == 0.0
    assert all(a < b for a, b in itertools.pairwise(trained))
    for k in (0, 1, 17, 500, 998, 999):
        t = trained[999 - k]
        assert t == pytest.approx(1 - (k + 1) / 1000, abs=1e-15)
        assert path.timestep(t) == k  # exactly: networks index embeddings with it
        assert path.alpha(t) ** 2 == pytest.approx(table[k], rel=1e-12, abs=1e-16)
        assert path.sigma(t) ** 2 == pytest.approx(1 - table[k], rel=1e-12)
    assert path.timestep(1.0) == -1.0
    assert path.timestep(0.5 * (trained[10] + trained[11])) == pytest.approx(988.5, abs=1e-9)


def test_timestep_of_fractions_and_rounding():
    path = DiscreteDiffusion([0.9, 0.5, 0.1])
    assert path.timestep(0.1) == pytest.approx(1.7, rel=1e-14)
    assert path.timestep(1 / 3 + 1e-12) == 1.0
    assert path.timestep(1 / 3 + 1e-6) != 1.0
    assert all(path.timestep(t) == k for k, t in zip((2, 1, 0), path.trained_times))


def test_zero_terminal_snr():
    path = DiscreteDiffusion(zero_snr_table(100))
    assert (path.alpha(0.0), path.sigma(0.0), path.amplitude(0.0)) == (0.0, 1.0, 0.0)
    assert path.time(0.0) == 0.0
    assert path.alpha_dot(0.0) > 0.0
    assert path.sigma_dot(0.0) == 0.0


def test_tables_from_tensors_and_arrays_are_the_same():
    table = [0.9, 0.5, 0.1]
    as_tensor = DiscreteDiffusion(torch.tensor(table, dtype=torch.float64))
    as_array = DiscreteDiffusion(np.array(table))
    assert as_tensor == as_array == DiscreteDiffusion(table)
    assert as_tensor.alphas_cumprod == tuple(table)
    assert "3 timesteps, 0.9 .. 0.1" in repr(as_tensor)
    assert as_tensor != DiscreteDiffusion([0.9, 0.5, 0.2])


def test_continuous_paths_know_all_times():
    for path in (Linear(), Cosine(), VariancePreserving(), EDM()):
        assert path.trained_times is None


# ------------------------------------------------------------------------------- invalid inputs


@pytest.mark.parametrize(
    "make",
    [
        lambda: VariancePreserving(-0.1, 20.0),
        lambda: VariancePreserving(5.0, 1.0),
        lambda: VariancePreserving(0.0, 0.0),
        lambda: VariancePreserving(0.1, math.inf),
        lambda: VariancePreserving(math.nan, 1.0),
        lambda: EDM(0.0, 80.0),
        lambda: EDM(-1.0, 80.0),
        lambda: EDM(2.0, 2.0),
        lambda: EDM(3.0, 2.0),
        lambda: EDM(0.1, math.inf),
        lambda: EDM(math.nan, 1.0),
        lambda: DiscreteDiffusion([]),
        lambda: DiscreteDiffusion([0.5]),
        lambda: DiscreteDiffusion([1.0, 0.5]),
        lambda: DiscreteDiffusion([0.5, 0.5]),
        lambda: DiscreteDiffusion([0.5, 0.6]),
        lambda: DiscreteDiffusion([0.5, -0.1]),
        lambda: DiscreteDiffusion([0.9, math.nan]),
    ],
)
def test_invalid_paths_are_named_errors(make):
    with pytest.raises(InvalidArgument) as caught:
        make()
    assert isinstance(caught.value, (GlassError, ValueError))


def test_the_smallest_table_and_constant_beta_are_allowed():
    assert len(DiscreteDiffusion([0.9, 0.5]).trained_times) == 2
    assert VariancePreserving(1.0, 1.0).alpha(0.0) == pytest.approx(math.exp(-0.5), rel=1e-15)


def test_table_errors_name_the_entry():
    with pytest.raises(InvalidArgument, match=r"entry 2 is 0\.7 after 0\.5"):
        DiscreteDiffusion([0.9, 0.5, 0.7])
    with pytest.raises(InvalidArgument, match=r"entry 0 is 1\.5$"):
        DiscreteDiffusion([1.5, 0.5, 0.3])


@pytest.mark.parametrize("t", [-1e-9, 1.0000001, math.nan, math.inf, "soon", None, [0.5]])
def test_times_outside_are_named_errors(t):
    with pytest.raises(TimeError, match="moment"):
        check_time(t, "moment")


@pytest.mark.parametrize("t", [0, 1, 0.0, 1.0, 0.5, torch.tensor(0.25)])
def test_times_inside_become_floats(t):
    assert check_time(t) == float(t)
    assert type(check_time(t)) is float


# -------------------------------------------------------------------------------- configuration


@pytest.mark.parametrize(
    "path",
    [*PATHS.values(), VariancePreserving(0.5, 3.0), EDM(0.1, 9.0)],
    ids=lambda path: f"{path.name}",
)
def test_configuration_round_trip(path):
    config = path.config()
    assert config["name"] == path.name
    assert from_config(config) == path
    assert type(from_config(config)) is type(path)


def test_configuration_keeps_the_numbers():
    assert EDM(0.1, 9.0).config() == {"name": "edm", "sigma_min": 0.1, "sigma_max": 9.0}
    assert Linear().config() == {"name": "linear"}
    with pytest.raises(UnknownName, match="linear"):
        from_config({"name": "liner"})


def test_the_base_class_computes_nothing():
    for method in ("alpha", "sigma", "alpha_dot", "sigma_dot", "_time"):
        with pytest.raises(TypeError, match=method):
            Path()
