"""E[Ẑ] = Z wherever a run names no bias, and not where it names one.

The data are N(m, s²) and the solver is planned for that s, so that every transition has the exact
law: Z is a number, by quadrature. A run of P independent populations gives P independent Ẑ of mean
Z, whatever P and N, whose mean is judged as a normal variable at the Bonferroni level of
tests/statistics_rules.py. Weights have heavy tails: the reward is bounded, λ is small, and every
check asserts that the first Edgeworth term, skewness (z³ - 3z)/(6 √P) at the quantile z of that
level, is below 1, so that it at most doubles the rate of false alarms.

Six settings of up to five values are too many for their product (5625 runs). Of it 25 cases are run
in which every two values of two settings meet: the orthogonal array of the lines a + k b in Z₅².
"""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from scipy import stats

from glass_flows import Guidance, Steering, Twist, steer
from glass_flows.guidance import GuidedDenoiser
from glass_flows.paths import Linear
from glass_flows.plans import Default
from glass_flows.steering import POTENTIALS, RESAMPLERS, PosteriorValue
from glass_flows.worlds import GaussianMixture
from statistics_rules import LEVEL, accept

MEAN, SPREAD = 0.3, 0.7
# Sums and products of values tilt more than the target.
SCALES = {"difference": 1.2, "max": 0.8, "sum": 0.5, "immediate": 0.7, "terminal": 1.0}
LAW = GaussianMixture(torch.tensor([[MEAN]], dtype=torch.float64), SPREAD)
DENOISER = LAW.denoiser(Linear())
POPULATIONS, PARTICLES = 20_000, 4
QUANTILE = stats.norm.isf(LEVEL / 2)


def wave(z):
    """In [-2, 0]: negative, as a memory that starts at 0 would hide, and steep."""
    return torch.sin(3.0 * z[:, 0]) - 1.0


def hard(z):
    """Excludes what lies to the left."""
    return torch.where(z[:, 0] > 0.0, 0.0, -math.inf)


def evidence(reward, scale):
    """E[exp(λ r)] by quadrature over ten standard deviations to each side."""
    x = torch.linspace(-10.0, 10.0, 200_001, dtype=torch.float64)
    mass = torch.exp(scale * reward(MEAN + SPREAD * x[:, None]) - 0.5 * x.square())
    return float(torch.trapezoid(mass, x)) / math.sqrt(2.0 * math.pi)


def run(seed, reward=wave, populations=POPULATIONS, **options):
    return steer(
        DENOISER, reward, shape=(1,), particles=PARTICLES, populations=populations, transitions=3,
        steps=2, rho=0.4, times=(0.0, 0.4, 0.7, 1.0), solver=Default(sigma_data=SPREAD),
        seed=seed, dtype=torch.float64, **options,
    )  # fmt: skip


def ratios(result, scale, reward=wave):
    """Ẑ/Z of every population."""
    return (result.log_evidence.exp() / evidence(reward, scale)).numpy()


def deviation(found):
    """Mean - 1 in standard errors."""
    return (found.mean() - 1.0) / (found.std() / len(found) ** 0.5)


def is_unbiased(found):
    edgeworth = abs(stats.skew(found)) * (QUANTILE**3 - 3 * QUANTILE) / (6 * len(found) ** 0.5)
    assert edgeworth < 1.0, "the normal approximation does not hold"
    return accept(2 * stats.norm.sf(abs(deviation(found))))


def own_value(x, t, D):
    """Wrong by far, which is no matter."""
    return 0.4 * x[:, 0] - 0.2 * D[:, 0].square()


EXACT = [name for name, potential in POTENTIALS.items() if potential.exact]
SETTINGS = {
    "potential": EXACT,
    "resampling": sorted(RESAMPLERS),
    "ess_threshold": [1.0, 0.85, 0.9, 0.8, 0.95],
    "schedule": ["constant", "linear", "adaptive:0.7", [0.2, 1.1, 0.6], math.sqrt],
    "twist": [0.0, Twist(1.0, sigma_data=SPREAD), Twist(0.7, sigma_data=SPREAD, adaptive=False)],
    "value": ["free", own_value, PosteriorValue(2, 2)],
}
LINES = [(a, b, *((a + k * b) % 5 for k in (1, 2, 3, 4))) for a in range(5) for b in range(5)]
NAMED = list(SETTINGS.items())


def case(line):
    """The settings of one line of the array; a setting of fewer than five values repeats some."""
    found = {name: values[i % len(values)] for (name, values), i in zip(NAMED, line)}
    return {"scale": SCALES[found["potential"]], **found}


def test_every_two_values_of_two_settings_meet_in_the_array():
    for (i, (_, first)), (j, (_, second)) in itertools.combinations(enumerate(NAMED), 2):
        met = {(line[i] % len(first), line[j] % len(second)) for line in LINES}
        assert len(met) == len(first) * len(second)


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
@pytest.mark.parametrize("line", LINES, ids=lambda line: "".join(map(str, line)))
def test_the_evidence_is_unbiased_where_nothing_is_said_against_it(line):
    given = case(line)
    result = run(500 + LINES.index(line), **given)
    assert result.biases == ()
    assert is_unbiased(ratios(result, given["scale"]))


def test_biases_name_what_is_no_target_and_nothing_else():
    """One reason for each: a potential without its correction, and guidance by either hand."""
    guided = GuidedDenoiser(DENOISER, wave)
    for (name, potential), guidance, denoiser in itertools.product(
        POTENTIALS.items(), (None, Guidance(0.0), Guidance(1.0)), (DENOISER, guided)
    ):
        tilted = denoiser is guided or (guidance is not None and guidance.scale > 0.0)
        found = Steering(potential=name, guidance=guidance).biases(denoiser)
        assert len(found) == tilted + (not potential.exact)


BIASED = {  # reward, settings with a bias, and what takes it away
    "fkd-difference": (wave, {"potential": "fkd-difference"}, {"potential": "difference"}),
    "fkd-max": (wave, {"potential": "fkd-max"}, {"potential": "max"}),
    "fkd-sum": (wave, {"potential": "fkd-sum"}, {"potential": "sum"}),
    "guidance": (wave, {"guidance": Guidance(1.0, sigma_data=SPREAD)}, {"guidance": None}),
    "exclusion": (hard, {"degenerate": "carry"}, {"degenerate": "carry", "ess_threshold": 0.0}),
}


@pytest.mark.slow
@pytest.mark.usefixtures("one_stream")
@pytest.mark.parametrize("name", BIASED)
def test_where_a_bias_is_named_the_evidence_is_off(name):
    """By more than eight standard errors; and not without what is to blame."""
    reward, given, remedy = BIASED[name]
    given = {"scale": 0.7, "ess_threshold": 0.8, **given}
    result = run(7, reward, 8000, **given)
    assert len(result.biases) == 1
    found = ratios(result, 0.7, reward)
    assert found.std() == 0.0 or abs(deviation(found)) > 8.0
    assert abs(found.mean() - 1.0) > 0.03
    cured = run(7, reward, 8000, **{**given, **remedy})
    assert cured.biases == ()
    assert is_unbiased(ratios(cured, 0.7, reward))
