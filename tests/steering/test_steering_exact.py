"""Steering against closed forms: evidence and tilted law for every setting, weights in plain loops.

Statistical checks. A run of P independent populations of 8 particles gives P independent estimates
exp(log_evidence) of the evidence; divided by the true one their mean is 1, and weighted by them the
population's mean of f - E_tilted f has mean 0, both exactly, whatever P and N (the five f are the
first and second moments in two dimensions, judged together by Hotelling's T²). P is such that an
evidence off by 5 % is found with power 0.9 at the Bonferroni level: every check asserts that its
standard error allows that. Of the product of all settings a few cases are run in which every two
values of two settings meet (`covering`).
"""

from __future__ import annotations

import functools
import itertools
import math
import zlib

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from cases import fast, first, one_in
from glass_flows import Twist, beam, best_of, greedy, plan, sample, steer
from glass_flows.denoisers import Estimate
from glass_flows.errors import DegenerateWeights
from glass_flows.execute import Boundary, iterate
from glass_flows.noise import KeyedNoise
from glass_flows.paths import EDM, Linear
from glass_flows.plans import DDIM, Default, Paper
from glass_flows.sampling import starting_noise
from glass_flows.steering import (
    POTENTIALS,
    RESAMPLERS,
    Adaptive,
    PosteriorValue,
    Steering,
    iterate_steering,
)
from glass_flows.steering.loop import Watch, pass_boundaries
from glass_flows.steering.population import Population, Run
from glass_flows.steering.twist import noise_gain
from glass_flows.worlds import GaussianMixture
from statistics_rules import LEVEL, accept, covering

slow = pytest.mark.slow

PATH = Linear()
TIMES = (0.0, 0.4, 0.7, 1.0)
N = 8
EXACT = ["difference", "max", "sum", "immediate", "terminal"]
FKD = ["fkd-difference", "fkd-max", "fkd-sum", "fkd-immediate"]
SCHEMES = sorted(RESAMPLERS)
# The smallest bias that must be found, in standard errors, at power 0.9.
RESOLUTION = 0.05 / (stats.norm.isf(LEVEL / 2) + stats.norm.isf(0.1))


def row(*numbers):
    return torch.tensor(numbers, dtype=torch.float64)


MIXTURE = GaussianMixture(
    row(1.0, 0.4, -0.9, 0.7, -0.1, -1.2).view(3, 2), row(0.35, 0.5, 0.25), row(0.5, 0.3, 0.2)
)
GAUSSIAN = GaussianMixture(row(0.3, -0.5).view(1, 2), 0.7)


class Quadratic:
    """r(z) = b·z - c |z - m|²/2, whose tilted laws are known."""

    def __init__(self, slope=(0.0, 0.0), curvature=0.0, centre=(0.0, 0.0)) -> None:
        self.slope, self.curvature, self.centre = row(*slope), curvature, row(*centre)

    def __call__(self, z):
        z = z.double()
        return z @ self.slope - 0.5 * self.curvature * (z - self.centre).square().sum(1)

    def tilted(self, law, scale=1.0):
        """(tilted law, log-evidence) under λ r."""
        return law.tilted(scale * self.slope, scale * self.curvature, self.centre)


REWARDS = {
    "linear": Quadratic((1.1, -0.6)),
    "quadratic": Quadratic((0.2, 0.1), 1.3, (1.0, 0.4)),
}
# λ such that the weights have light tails: sums and products of values tilt more than the target
SCALES = {"difference": 1.0, "max": 0.85, "sum": 0.45, "immediate": 0.75, "terminal": 0.85}


def table_of(solver="default", steps=2, rho=0.4, times=TIMES, path=PATH, transitions=None):
    return plan(path, transitions=transitions or len(times) - 1, steps=steps, rho=rho,
                times=times, solver=solver)  # fmt: skip


def exact_boundaries(run, law, seed):
    """As the executor stops, but x_t' is drawn from the exact kernel p(x_t' | x_t)."""
    generator = torch.Generator().manual_seed(seed)
    path, x = run.table.path, run.x
    for k, step in enumerate(run.table):
        D = run.moving(x, step.t)
        boundary = Boundary(k, step.t, x, Estimate(D, D), step)
        yield boundary
        x = law.transition_sample(
            path, boundary.x, step.t, step.t_next, step.rho or 0.0, generator=generator
        )
    yield Boundary(len(run.table), 1.0, x, Estimate(x, x), None)


def exact_steps(law, reward, chosen, *, populations, seed, table=None):
    """All steps of a steered run with the exact kernel."""
    population = Population.of(chosen.particles, (2,), populations, seed=seed, dtype=torch.float64)
    run = Run(table or table_of(), law.denoiser(PATH), reward, chosen, population)
    boundaries = exact_boundaries(run, law, seed + 1)
    return list(pass_boundaries(chosen.begin(run), Watch(), boundaries))


def last_of(steps):
    """(log_evidence, log_weights, samples) of the end."""
    end = steps[-1]
    return end.log_evidence, end.log_weights.values, end.boundary.x.view(*end.ancestors.shape, 2)


def result_of(result):
    return result.log_evidence, result.log_weights, result.samples


def features(z):
    """First and second moments, (..., 5)."""
    return torch.cat([z, z.square(), z.prod(-1, keepdim=True)], -1)


def expected_features(law):
    mean, second = law.mean(), law.covariance() + law.mean().outer(law.mean())
    return torch.cat([mean, second.diagonal(), second[0, 1:]])


def masses(end, log_evidence, moments):
    """Per population: evidence over the true one, mean 1; and the five moments, mean 0."""
    estimate, log_weights, z = end
    mass = torch.exp(estimate - log_evidence)
    share = torch.softmax(log_weights, 1)
    return mass, mass[:, None] * ((share[:, :, None] * features(z)).sum(1) - moments)


def z_value(values, expected=0.0, other_error=0.0):
    error = math.hypot(float(values.std()) / len(values) ** 0.5, other_error)
    return (float(values.mean()) - expected) / error


def p_of(z):
    return special.erfc(abs(z) / math.sqrt(2.0))


def hotelling(values, other=None):
    """p-value of "the mean is 0" of vectors (n, d), or "the means agree" with other ones."""
    mean, covariance = values.mean(0), values.T.cov() / len(values)
    if other is not None:
        mean, covariance = mean - other.mean(0), covariance + other.T.cov() / len(other)
    square = float(mean @ torch.linalg.solve(covariance, mean))
    n, d = len(values), len(mean)
    return stats.f.sf(square * (n - d) / (d * (n - 1)), d, n - d)


def check(mass, centred):
    """The run is unbiased, and its error small enough to say so."""
    assert float(mass.std()) / len(mass) ** 0.5 <= RESOLUTION
    assert accept([p_of(z_value(mass, 1.0)), hotelling(centred)])


def check_exact(end, law, reward, scale):
    tilted, log_evidence = reward.tilted(law, scale)
    check(*masses(end, log_evidence, expected_features(tilted)))


def seed_of(*names):
    return zlib.crc32("-".join(map(str, names)).encode())


def fast_first(count, cases):
    """All of them slow but the first `count`."""
    return [pytest.param(*case, marks=slow if i >= count else ()) for i, case in enumerate(cases)]


in_law = pytest.mark.usefixtures("one_stream")


# ------------------------------------------------------------------------- 1. the whole product


@in_law
@pytest.mark.parametrize(
    ("threshold", "reward", "resampling", "potential"),
    fast_first(2, covering([1.0, 0.5], REWARDS, SCHEMES, EXACT)),
)
def test_exact_kernel(threshold, reward, resampling, potential):
    """Transitions of the exact law: evidence and tilted moments in closed form."""
    scale = SCALES[potential]
    chosen = Steering(N, scale, potential, resampling=resampling, ess_threshold=threshold)
    steps = exact_steps(MIXTURE, REWARDS[reward], chosen,
                        populations=2800 if resampling == "multinomial" else 2600,
                        seed=seed_of(threshold, reward, resampling, potential))  # fmt: skip
    share = steps[2].resampled.double().mean()
    assert share == 1.0 if threshold == 1.0 else share < 1.0
    check_exact(last_of(steps), MIXTURE, REWARDS[reward], scale)


@in_law
@pytest.mark.parametrize(
    ("potential", "reward"),
    fast_first(1, zip(EXACT, itertools.cycle(REWARDS))),
)
def test_exact_kernel_never_resampled(potential, reward):
    """Values are taken and potentials multiplied, and cancel: importance sampling."""
    chosen = Steering(N, 1.0, potential, boundaries=1, ess_threshold=0.0)
    steps = exact_steps(MIXTURE, REWARDS[reward], chosen, populations=2400,
                        seed=seed_of(potential, reward))  # fmt: skip
    assert not any(step.resampled.any() for step in steps)
    assert all(step.rewards.isfinite().all() for step in steps)
    end = steps[-1]
    torch.testing.assert_close(end.log_weights.values, end.rewards, rtol=0, atol=1e-12)
    check_exact(last_of(steps), MIXTURE, REWARDS[reward], 1.0)


@in_law
@pytest.mark.parametrize(
    ("threshold", "reward", "resampling", "potential"),
    [
        *fast_first(2, covering([1.0, 0.5], REWARDS, SCHEMES, EXACT)),
        *fast_first(0, [(0.0, "linear", "systematic", potential) for potential in EXACT]),
    ],
)
def test_twisted_noise_on_gaussian_data(threshold, reward, resampling, potential):
    """The default solver is exact here, so that the twist's law and evidence are known too."""
    scale = SCALES[potential]
    result = steer(
        GAUSSIAN.denoiser(PATH), REWARDS[reward], shape=(2,), particles=N, transitions=3, steps=2,
        rho=0.4, times=TIMES, solver=Default(sigma_data=0.7), scale=scale, potential=potential,
        resampling=resampling, ess_threshold=threshold,
        twist=Twist(1.0, cap=1.5, sigma_data=0.7, trust=2.0), populations=1600, dtype=torch.float64,
        seed=seed_of(threshold, reward, resampling, potential),
    )  # fmt: skip
    assert (result.twist_shares[1:] > 0.0).double().mean() > 0.9
    check_exact(result_of(result), GAUSSIAN, REWARDS[reward], scale)


def test_the_default_solver_is_exact_for_gaussian_data():
    """What the tests above rest on."""
    table = table_of(Default(sigma_data=0.7))
    assert all(step.law == 0.7 for step in table)


@slow
@in_law
def test_an_evidence_off_by_five_percent_is_found():
    """The power claimed: rejected for at least 9 of 12 seeds (0.9 at worst, at the resolution)."""
    found, passed = 0, 0
    tilted, log_evidence = REWARDS["linear"].tilted(MIXTURE)
    chosen = Steering(N, 1.0, ess_threshold=0.5)
    for seed in range(12):
        end = last_of(exact_steps(MIXTURE, REWARDS["linear"], chosen, populations=2400,
                                  seed=900 + seed))  # fmt: skip
        for shift in (math.log(1.05), math.log(0.95)):
            mass, _ = masses(end, log_evidence - shift, expected_features(tilted))
            found += p_of(z_value(mass, 1.0)) <= LEVEL
        mass, centred = masses(end, log_evidence, expected_features(tilted))
        passed += min(p_of(z_value(mass, 1.0)), hotelling(centred)) > LEVEL
    assert found >= 21
    assert passed == 12


@slow
@in_law
@pytest.mark.parametrize("wrong", [0.94, 1.06])
def test_a_target_off_by_six_percent_is_found(wrong):
    """The moments see a wrong λ, too: compared with the law tilted by 0.94 λ or 1.06 λ."""
    chosen = Steering(N, 1.0, ess_threshold=1.0)
    end = last_of(exact_steps(MIXTURE, REWARDS["linear"], chosen, populations=9600, seed=31))
    _, log_evidence = REWARDS["linear"].tilted(MIXTURE)
    tilted, _ = REWARDS["linear"].tilted(MIXTURE, wrong)
    _, centred = masses(end, log_evidence, expected_features(tilted))
    assert hotelling(centred) <= LEVEL


# -------------------------------------------------------- 1b. the sampler's own law, any solver

SAMPLERS = {
    "default": {"solver": "default", "steps": 2, "rho": 0.4},
    "ddpm": {"solver": "default", "steps": 1, "rho": "ddpm"},
    "ddim": {"solver": "default", "steps": 1, "rho": DDIM(0.7)},
    "first-order": {"solver": "first-order", "steps": 2, "rho": -0.5},
    "paper": {"solver": Paper(), "steps": 2, "rho": 0.4},
    "euler-maruyama": {"solver": "euler-maruyama", "steps": 1, "rho": None},
}


@functools.cache
def plain(name):
    """Rewards and moments of 150,000 samples of the unsteered table."""
    z = sample(MIXTURE.denoiser(PATH), (150_000, 2), transitions=3, times=TIMES, **SAMPLERS[name],
               randomness="stream", seed=77, dtype=torch.float64)  # fmt: skip
    return REWARDS["linear"](z), features(z)


def check_own_law(name, scale=1.0, **options):
    """Evidence and unnormalised moments agree with plain Monte Carlo of the same table."""
    result = steer(
        MIXTURE.denoiser(PATH), REWARDS["linear"], shape=(2,), particles=N, transitions=3,
        times=TIMES, **SAMPLERS[name], scale=scale, dtype=torch.float64, **options,
    )  # fmt: skip
    rewards, moments = plain(name)
    weight = torch.exp(scale * rewards)
    true, tilted = weight.mean(), weight[:, None] * moments
    error = float(weight.std() / true) / len(weight) ** 0.5
    mass, moments = masses(result_of(result), true.log(), 0.0)
    assert math.hypot(float(mass.std()) / len(mass) ** 0.5, error) <= RESOLUTION
    assert accept([p_of(z_value(mass, 1.0, error)), hotelling(moments, tilted / true)])
    return result


@slow
def test_the_solvers_are_inexact():
    """So that the tests below are about the samplers' own laws, not the mixture's."""
    _, log_evidence = REWARDS["linear"].tilted(MIXTURE)
    for name in SAMPLERS:
        rewards, _ = plain(name)
        assert p_of(z_value(rewards.exp(), math.exp(log_evidence))) < LEVEL, name


@in_law
@pytest.mark.parametrize(
    ("adaptive", "threshold", "potential"),
    fast_first(0, covering([True, False], [1.0, 0.5, 0.0], EXACT)),
)
def test_twisted_noise_with_an_inexact_solver(adaptive, threshold, potential):
    result = check_own_law(
        "default", SCALES[potential], potential=potential, ess_threshold=threshold,
        twist=Twist(0.8, cap=1.0, sigma_data=0.8, adaptive=adaptive), populations=1500,
        seed=seed_of(adaptive, threshold, potential),
    )  # fmt: skip
    if adaptive:
        assert (result.twist_shares[2] < 1.0).any()
    else:
        assert (result.twist_shares[1:] == 1.0).all()


@pytest.mark.slow
@in_law
@pytest.mark.parametrize(("sampler", "twist"), fast_first(1, covering(SAMPLERS, [0.0, 1.0])))
def test_evidence_is_of_the_sampler_whatever_the_solver(sampler, twist):
    check_own_law(sampler, ess_threshold=0.6, twist=twist, resampling="ssp", populations=2000,
                  seed=seed_of(sampler, twist))  # fmt: skip


# ------------------------------------------------------------------------------- 2. schedules

SCHEDULES = {
    "linear": "linear",
    "list": [0.3, 1.4, 0.2],
    "callable": lambda t: t * t,
    "zero": [0.0, 0.0, 0.0],
    "adaptive": Adaptive(0.5),
}


@in_law
@pytest.mark.parametrize(
    ("schedule", "potential", "threshold"),
    fast(
        [("linear", "max", 0.5)],
        covering(SCHEDULES, ["difference", "immediate", "max"], [1.0, 0.5]),
    ),
)
def test_evidence_under_schedules(schedule, potential, threshold):
    scale = SCALES[potential]
    chosen = Steering(N, scale, potential, SCHEDULES[schedule], ess_threshold=threshold)
    steps = exact_steps(MIXTURE, REWARDS["linear"], chosen, populations=2400,
                        seed=seed_of(schedule, potential, threshold))  # fmt: skip
    check_exact(last_of(steps), MIXTURE, REWARDS["linear"], scale)


@in_law
@pytest.mark.parametrize("potential", ["difference", pytest.param("immediate", marks=slow)])
@pytest.mark.parametrize(
    ("ess", "boundaries", "bound"), [(0.5, [2], 0.3), pytest.param(0.8, None, 0.6, marks=slow)]
)
def test_evidence_under_adaptive_schedules_that_bind(potential, ess, boundaries, bound):
    """The same where the bisection has work to do, with a bounded reward."""
    reward, scale = Quadratic(curvature=0.8, centre=(1.0, 0.4)), 2.5
    chosen = Steering(N, scale, potential, Adaptive(ess), boundaries, ess_threshold=ess)
    steps = exact_steps(MIXTURE, reward, chosen, populations=2500 if boundaries else 4200,
                        seed=seed_of(potential, ess))  # fmt: skip
    assert (steps[2].share < 1.0).double().mean() > bound
    check_exact(last_of(steps), MIXTURE, reward, scale)


@pytest.mark.parametrize(
    ("potential", "threshold", "ess"), covering(EXACT[:4], [0.0, 0.6], [0.4, 0.8])
)
def test_adaptive_shares_hold_the_effective_size(potential, threshold, ess):
    """λ_k leaves ESS at its fraction, never falls, and is all of λ where that leaves more.

    Where ESS is under its fraction even at the last boundary's share, it is that share.
    """
    result = steer(
        MIXTURE.denoiser(PATH), REWARDS["linear"], shape=(2,), particles=20, transitions=6,
        steps=2, rho=0.3, scale=40.0, potential=potential, schedule=Adaptive(ess),
        boundaries=range(1, 6), ess_threshold=threshold, populations=9, seed=4,
        dtype=torch.float64,
    )  # fmt: skip
    shares, sizes = result.shares[1:], result.ess[1:]
    assert result.shares[0].isnan().all()
    assert (shares[-1] == 1.0).all()
    assert ((shares >= 0) & (shares <= 1)).all()
    assert (shares.diff(dim=0) >= 0).all()
    before = torch.cat([torch.zeros(1, 9).double(), shares[:-2]])
    held = (sizes[:-1] - ess * 20).abs() < 1e-6
    room = (shares[:-1] == 1.0) & (sizes[:-1] >= ess * 20)
    stuck = (shares[:-1] - before < 1e-9) & (sizes[:-1] < ess * 20)
    assert (held | room | stuck).all()
    assert held[0].all()  # from equal weights, and λ is large
    assert (held & (shares[:-1] < 1)).double().mean() >= 0.2


def test_the_adaptive_share_is_the_largest_where_the_size_falls_steadily():
    """One boundary, from equal weights: a plain scan over shares agrees with the bisection."""
    chosen = Steering(16, 8.0, schedule=Adaptive(0.4), boundaries=[2], ess_threshold=0.4)
    steps = list(iterate_steering(table_of(steps=3), MIXTURE.denoiser(PATH), REWARDS["linear"],
                                  chosen, shape=(2,), populations=12, seed=3,
                                  dtype=torch.float64))  # fmt: skip
    value, grid = 8.0 * steps[2].rewards.numpy(), np.linspace(0, 1, 2001)
    for p in range(12):
        w = np.exp(grid[:, None] * (value[p] - value[p].max()))
        sizes = w.sum(1) ** 2 / (w**2).sum(1)
        largest = grid[np.flatnonzero(sizes >= 0.4 * 16).max()]
        assert abs(float(steps[2].share[p]) - largest) < 1e-3
    assert (steps[2].resampled | (steps[2].share == 1.0)).all()
    assert torch.isnan(steps[1].share).all()


# ------------------------------------------------------------------------------ 3. boundaries

FOUR = (0.0, 0.25, 0.5, 0.75, 1.0)


BOUNDARIES = [
    (2, {0, 2}),
    ([1], {1}),
    (range(1, 4), {1, 2, 3}),
    (1, {0, 1, 2, 3}),
    (None, {1, 2, 3}),
    ([], set()),
    ([3, 1], {1, 3}),
]


@pytest.mark.parametrize(("boundaries", "taken"), BOUNDARIES)
@pytest.mark.parametrize("threshold", [0.0, 1.0])
def test_boundaries_where_values_are_taken(boundaries, taken, threshold):
    """Rewards are asked for exactly there and at the end, and particles resampled if noise follows.

    By default, and where nothing is resampled or twisted, at the end only.
    """
    if boundaries is None and threshold == 0.0:
        taken = set()
    chosen = Steering(N, 1.0, boundaries=boundaries, ess_threshold=threshold)
    steps = exact_steps(
        MIXTURE, REWARDS["linear"], chosen, populations=3, table=table_of(times=FOUR), seed=1
    )
    assert {k for k in range(4) if steps[k].rewards.isfinite().all()} == taken
    assert all(steps[k].rewards.isnan().all() for k in range(4) if k not in taken)
    moved = {k for k in range(4) if steps[k].resampled.any()}
    assert moved == (taken - {0} if threshold else set())
    assert steps[-1].costs.reward_evaluations == 3 * N * (len(taken) + 1)
    assert steps[-1].costs.decodes == 0


@in_law
@pytest.mark.parametrize(
    "boundaries",
    [2, *(pytest.param(given, marks=slow) for given, _ in BOUNDARIES if given != 2)],
    ids=str,
)
def test_evidence_whatever_the_boundaries(boundaries):
    chosen = Steering(N, 1.0, boundaries=boundaries, ess_threshold=1.0)
    steps = exact_steps(
        MIXTURE, REWARDS["linear"], chosen, populations=1700, table=table_of(times=FOUR),
        seed=seed_of(boundaries),
    )  # fmt: skip
    check_exact(last_of(steps), MIXTURE, REWARDS["linear"], 1.0)


# ---------------------------------------------------------------------------------- 4. values


def exact_value(law, slope):
    """V(x, t, D) = log E[exp(b·z) | x_t = x], written with loops over the components."""

    def value(x, t, D):
        alpha, sigma = PATH.alpha(t), PATH.sigma(t)
        logs, tilts = [], []
        for j in range(len(law.means)):
            m, v, w = law.means[j], float(law.stds[j]) ** 2, float(law.log_weights[j])
            total = alpha**2 * v + sigma**2
            distance = (x - alpha * m).square().sum(1)
            logs.append(w - 0.5 * distance / total - math.log(total))
            centre = m + alpha * v / total * (x - alpha * m)
            tilts.append(centre @ slope + 0.5 * v * sigma**2 / total * float(slope @ slope))
        logs, tilts = torch.stack(logs), torch.stack(tilts)
        return torch.logsumexp(logs + tilts, 0) - torch.logsumexp(logs, 0)

    return value


@in_law
@pytest.mark.parametrize(
    ("value", "potential", "threshold"),
    fast([("posterior", "max", 0.5)], covering(["exact", "posterior"], EXACT[:4], [1.0, 0.5])),
)
def test_evidence_with_other_values(value, potential, threshold):
    """Exact kernel; for the posterior value the draws behind it come from the solver."""
    scale = SCALES[potential]
    values = {
        "posterior": PosteriorValue(samples=3, steps=2),
        "exact": exact_value(MIXTURE, scale * REWARDS["linear"].slope),
    }
    chosen = Steering(N, scale, potential, ess_threshold=threshold, value=values[value])
    steps = exact_steps(MIXTURE, REWARDS["linear"], chosen, populations=2400,
                        seed=seed_of(value, potential, threshold))  # fmt: skip
    check_exact(last_of(steps), MIXTURE, REWARDS["linear"], scale)


def test_the_exact_value_function_is_the_evidence_of_the_posterior():
    """It is a martingale: at t = 0 the log-evidence, and its mean exponential never changes."""
    value = exact_value(MIXTURE, REWARDS["linear"].slope)
    _, log_evidence = REWARDS["linear"].tilted(MIXTURE)
    x = torch.randn(5, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(value(x, 0.0, x), torch.full((5,), log_evidence).double())
    z = MIXTURE.posterior_sample(PATH, x[:1].expand(200_000, 2), 0.5, seed=1)
    drawn = torch.exp(REWARDS["linear"](z))
    assert accept(p_of(z_value(drawn, float(value(x[:1], 0.5, x).exp()))))


@slow
@in_law
def test_the_exact_value_function_lowers_the_variance():
    """Resampling by the exact value leaves far less log-variance than by λ r(D).

    r(D) overlooks what is still open at x_t: the reward prefers the mean of the narrow mode, and
    pays for a tail of the wide one.
    """
    law = GaussianMixture(row(4.0, 0.0, -4.0, 0.0).view(2, 2), row(0.15, 2.2), row(0.95, 0.05))
    reward = Quadratic((1.0, 0.0))
    times = tuple(np.linspace(0.0, 1.0, 13))
    variance = {}
    for name, value in (("free", "free"), ("exact", exact_value(law, reward.slope))):
        chosen = Steering(N, 1.0, ess_threshold=1.0, value=value)
        end = exact_steps(law, reward, chosen, populations=600, table=table_of(times=times),
                          seed=6)[-1]  # fmt: skip
        variance[name] = float(end.log_evidence.var())
    assert variance["exact"] < 0.4 * variance["free"]


class Asked:
    """A denoiser that remembers every particle and time it was asked about."""

    evaluations_per_call = 1

    def __init__(self, law, path=PATH):
        self.path, self.inner, self.inputs = path, law.denoiser(path), []

    def __call__(self, x, t):
        self.inputs += [(t, *map(float, one)) for one in x]
        return self.inner(x, t)


@pytest.mark.parametrize("samples", [1, 3])
@pytest.mark.parametrize("steps", [1, 2, 4])
@pytest.mark.parametrize("boundaries", first([None, 1, [2]]))
def test_network_evaluations_of_the_posterior_value(samples, steps, boundaries):
    """N (K M + n (m - 1) per boundary); pure noise says nothing, and its draws cost n m."""
    denoiser = Asked(MIXTURE)
    result = steer(
        denoiser, REWARDS["linear"], shape=(2,), particles=4, populations=2, transitions=3,
        steps=[2, 3, 2], rho=0.4, times=TIMES, value=PosteriorValue(samples, steps), seed=2,
        boundaries=boundaries, ess_threshold=1.0, scale=1.0, dtype=torch.float64,
    )  # fmt: skip
    late, pure = {None: (2, 0), 1: (2, 1)}.get(boundaries if boundaries != [2] else 0, (1, 0))
    each = 7 + late * samples * (steps - 1) + pure * samples * steps
    assert result.network_evaluations == len(denoiser.inputs) == 8 * each
    assert result.reward_evaluations == 8 * ((late + pure) * samples + 1)


def test_one_evaluation_is_the_posterior_mean():
    """PosteriorValue(steps=1) has no noise left: every draw is D itself, the free value."""
    results = [
        steer(MIXTURE.denoiser(PATH), REWARDS["linear"], shape=(2,), particles=4, populations=2,
              transitions=3, steps=2, rho=0.4, value=value, seed=2, dtype=torch.float64)
        for value in ("free", PosteriorValue(2, 1))
    ]  # fmt: skip
    torch.testing.assert_close(results[0].ess, results[1].ess)
    assert torch.equal(results[0].samples, results[1].samples)


@pytest.mark.parametrize("steps", [2, 3])
def test_the_first_evaluation_is_not_repeated(steps):
    """All inputs of a run differ: D_t(x_t) of the boundary starts the posterior draws too."""
    denoiser = Asked(MIXTURE)
    steer(denoiser, REWARDS["linear"], shape=(2,), particles=4, populations=2, transitions=3,
          steps=2, rho=0.4, times=TIMES, value=PosteriorValue(3, steps), seed=2,
          ess_threshold=1.0, scale=1.0, dtype=torch.float64)  # fmt: skip
    assert len(set(denoiser.inputs)) == len(denoiser.inputs)


@pytest.mark.parametrize("particles", one_in(3, [3, 4, 5, 8, 9, 10, 22, 55]))
def test_a_threshold_of_one_resamples_equal_weights_too(particles):
    """1 resamples at every boundary, also where rounding could put the size above N.

    Multinomial resampling shows it; and for the potentials that forget the weight of a boundary
    that did not resample it is a matter of the evidence: here that of a constant reward.
    """
    for potential, resampling in (("terminal", "multinomial"), ("fkd-difference", "systematic")):
        result = steer(
            MIXTURE.denoiser(PATH), lambda z: torch.full((len(z),), 1.7), shape=(2,),
            particles=particles, transitions=4, steps=2, rho=0.2, potential=potential,
            resampling=resampling, ess_threshold=1.0, scale=1.0, populations=4, seed=5,
        )  # fmt: skip
        assert (result.ess <= particles).all()
        torch.testing.assert_close(result.log_evidence, torch.full((4,), 1.7).double())
        if resampling == "multinomial":
            moved = (result.ancestry[1:] != torch.arange(particles)).any(2)
            assert moved.any(1).all()


# ------------------------------------------------------------- 5. the weights, in plain loops


def log_potential(name, values, last, product_so_far):
    """log G_k of one particle from the values along its line, the last of them now."""
    if last and name != "difference":
        return values[-1] - product_so_far
    if name == "difference":
        return values[-1] - (values[-2] if len(values) > 1 else 0.0)
    return {"max": max(values), "sum": sum(values), "immediate": values[-1], "terminal": 0.0}[name]


class Line:
    """One particle's past."""

    def __init__(self):
        self.values, self.factors, self.ratios, self.weight = [], [], [], 0.0

    def copy(self):
        new = Line()
        new.values, new.factors = list(self.values), list(self.factors)
        new.ratios = list(self.ratios)
        return new


def ess_of(logs):
    w = np.exp(np.array(logs) - max(logs))
    return w.sum() ** 2 / (w**2).sum()


def log_mean(logs):
    return max(logs) + math.log(np.mean(np.exp(np.array(logs) - max(logs))))


def log_density_ratio(boundary, i):
    """log N(ε; 0, I) - log N(ε; δ, I) for the noise that particle i got."""
    delta = boundary.delta[i].flatten().double().numpy()
    drawn = boundary.noise[i].flatten().double().numpy() + delta
    return float(-0.5 * (drawn**2).sum() + 0.5 * ((drawn - delta) ** 2).sum())


def replay(steps, potential, scale, threshold):
    """Weights, sizes and evidence of every step recomputed; returns the lines at the end."""
    P, size = steps[0].ancestors.shape
    finals = []
    for p in range(P):
        lines, evidence = [Line() for _ in range(size)], 0.0
        for k, step in enumerate(steps):
            last = k == len(steps) - 1
            if k and steps[k - 1].boundary.delta is not None:
                for n, line in enumerate(lines):
                    line.ratios.append(log_density_ratio(steps[k - 1].boundary, p * size + n))
                    line.weight += line.ratios[-1]
            taken = not math.isnan(float(step.share[p]))
            if taken:
                for n, line in enumerate(lines):
                    share = 1.0 if last else float(step.share[p])
                    line.values.append(share * scale * float(step.rewards[p, n]))
                    factor = log_potential(potential, line.values, last, sum(line.factors))
                    line.factors.append(factor)
                    line.weight += factor
            weights = [line.weight for line in lines]
            assert float(step.ess[p]) == pytest.approx(ess_of(weights), rel=1e-8)
            if taken and not last and step.boundary.stochastic and threshold > 0:
                tired = ess_of(weights) <= threshold * size * (1 + 1e-12)
                assert bool(step.resampled[p]) == tired
            else:
                assert not step.resampled[p]
            if step.resampled[p]:
                evidence += log_mean(weights)
                lines = [lines[a].copy() for a in step.ancestors[p].tolist()]
            else:
                assert step.ancestors[p].tolist() == list(range(size))
            weights = [line.weight for line in lines]
            np.testing.assert_allclose(step.log_weights.values[p], weights, rtol=1e-9, atol=1e-9)
            assert float(step.log_evidence[p]) == pytest.approx(
                evidence + log_mean(weights), rel=1e-9, abs=1e-9
            )
        finals.append(lines)
    return finals


@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    potential=st.sampled_from(EXACT),
    threshold=st.sampled_from([0.0, 0.4, 0.7, 1.0]),
    scale=st.sampled_from([0.3, 1.0, 4.0]),
    schedule=st.sampled_from(["constant", "linear", (0.2, 1.3, 0.4, 0.9), Adaptive(0.6)]),
    boundaries=st.sampled_from([None, 1, 2, [1], [1, 3]]),
    twist=st.sampled_from([0.0, 0.7, Twist(1.0, adaptive=False), Twist(2.0, cap=0.4, trust=0.1)]),
    resampling=st.sampled_from(SCHEMES),
    particles=st.integers(1, 6),
    seed=st.integers(0, 2**20),
)
def test_no_weight_is_lost(
    potential, threshold, scale, schedule, boundaries, twist, resampling, particles, seed
):
    """Every weight, size and evidence on the way; and Π G along every line is exp(λ r(x_1))."""
    chosen = Steering(particles, scale, potential, schedule, boundaries, resampling, threshold,
                      twist=twist)  # fmt: skip
    steps = list(iterate_steering(table_of(times=FOUR, rho=0.2), MIXTURE.denoiser(PATH),
                                  REWARDS["quadratic"], chosen, shape=(2,), populations=2,
                                  seed=seed, dtype=torch.float64))  # fmt: skip
    shifted = [step.boundary.delta is not None for step in steps]
    assert any(shifted) == chosen.twisted
    for p, lines in enumerate(replay(steps, potential, scale, threshold)):
        for n, line in enumerate(lines):
            reward = scale * float(steps[-1].rewards[p, n])
            assert sum(line.factors) == pytest.approx(reward, rel=1e-9, abs=1e-9)
            assert len(line.ratios) == sum(shifted)


def explained(gradients, estimates, values):
    """The slope of V_j - V_i on (g_i + g_j)·(D_j - D_i)/2 over all pairs, between 0 and 1."""
    top = bottom = 0.0
    for i, j in itertools.product(range(len(values)), repeat=2):
        rise = 0.5 * (gradients[i] + gradients[j]) @ (estimates[j] - estimates[i])
        top, bottom = top + rise * (values[j] - values[i]), bottom + rise**2
    return min(max(top / bottom, 0.0), 1.0)


def test_the_twist_learns_its_share_from_the_past():
    """β = (trust · prior + Σ x y)/(trust + Σ x²), x = δ·ε and y the value's rise, both centred."""
    reward, scale, size, trust, cap = Quadratic((1.0, -0.5), 0.9), 2.0, 6, 0.5, 5.0
    chosen = Steering(size, scale, ess_threshold=0.6, twist=Twist(1.0, cap=cap, trust=trust))
    kinked = lambda z: reward(z) + 0.5 * torch.sin(9.0 * z).sum(1)  # noqa: E731
    steps = list(iterate_steering(table_of(times=FOUR, rho=0.2), MIXTURE.denoiser(PATH), kinked,
                                  chosen, shape=(2,), populations=5, seed=3,
                                  dtype=torch.float64))  # fmt: skip
    learned = free = 0
    for p in range(5):
        top = bottom = 0.0
        for k in (1, 2, 3):
            boundary, rows = steps[k].boundary, slice(p * size, p * size + size)
            D = boundary.estimate.D[rows].numpy()
            gradients = scale * (reward.slope.numpy() - 0.9 * D + 4.5 * np.cos(9.0 * D))
            prior = explained(gradients, D, scale * steps[k].rewards[p].numpy())
            share = min(max((trust * prior + top) / (trust + bottom), 0.0), 1.0)
            learned += 0.001 < share < 0.999
            assert float(steps[k].twist_share[p]) == pytest.approx(share, rel=1e-9, abs=1e-12)
            x, y = [], []
            for n in range(size):
                i = p * size + n
                moved = boundary.delta[i].numpy()
                length = np.linalg.norm(moved)
                assert length <= share * cap + 1e-12
                free += length < share * cap * 0.999  # else centring takes |δ|² away
                x.append(float(moved @ (boundary.noise[i].numpy() + moved)))
                old = steps[k].rewards[p, steps[k].ancestors[p, n]]
                y.append(scale * float(steps[k + 1].rewards[p, n] - old))
            if share == 0.0:
                break  # nothing was shifted, and δ is not seen from outside
            x, y = (np.array(x) - np.mean(x)) / share, np.array(y) - np.mean(y)
            top, bottom = top + x @ y, bottom + x @ x
    assert learned > 5
    assert free > 5
    assert steps[0].twist_share.tolist() == [0.0] * 5


# ----------------------------------------------------------------- 6. the compatibility mode


def released_code(steps, name, scale):
    """The formulas of the code released with arXiv 2501.06848, in loops, for given ancestors.

    Yields, per population and boundary, the weights w of the particles as they come, and how the
    weights of resampled populations have multiplied.
    """
    P, size = steps[0].ancestors.shape
    found = []
    for p in range(P):
        memory, past = [0.0] * size, [1.0] * size
        for k, step in enumerate(steps):
            if math.isnan(float(step.rewards[p, 0])):
                continue
            last = k == len(steps) - 1
            w, candidates = [], []
            for i in range(size):
                r = float(step.rewards[p, i])
                if name == "max":
                    rs = max(r, memory[i])
                    weight = math.exp(scale * rs)
                elif name == "sum":
                    rs = r + memory[i]
                    weight = math.exp(scale * rs)
                elif name == "difference":
                    rs = r
                    weight = math.exp(scale * (r - memory[i]))
                else:
                    rs = r
                    weight = math.exp(scale * r)
                if last and name != "difference":
                    weight = math.exp(scale * rs) / past[i]
                w.append(min(weight, 1e10))
                candidates.append(rs)
            found.append((p, k, w))
            if step.resampled[p]:
                chosen = step.ancestors[p].tolist()
                memory = [candidates[a] for a in chosen]
                past = [past[a] * w[a] for a in chosen]
            else:
                memory = candidates
    return found


def plane(shift):
    """A reward with modes of both signs, and shifted ones."""
    return lambda z: z @ row(1.0, -0.7) + 0.8 * torch.sin(3.0 * z).sum(1) + shift


@pytest.mark.parametrize(
    ("name", "threshold", "values"),
    covering(
        [name.removeprefix("fkd-") for name in FKD],
        [0.0, 0.5, 0.8, 1.0],
        [(1.0, 0.0), (2.5, -3.0), (0.7, 2.0), (9.0, 1.0)],
    ),
)
def test_the_compatibility_potentials_are_the_released_formulas(name, threshold, values):
    """Sizes, evidence and last weights, for the same ancestors; the cap of 1e10 is met, too."""
    scale, shift = values
    chosen = Steering(5, scale, "fkd-" + name, boundaries=[1, 2, 3], ess_threshold=threshold)
    steps = list(iterate_steering(table_of(times=FOUR, rho=0.2), MIXTURE.denoiser(PATH),
                                  plane(shift), chosen, shape=(2,), populations=3, seed=17,
                                  dtype=torch.float64))  # fmt: skip
    evidence = [0.0] * 3
    capped = False
    for p, k, w in released_code(steps, name, scale):
        step = steps[k]
        capped |= max(w) == 1e10
        size = sum(w) ** 2 / sum(v * v for v in w)
        assert float(step.ess[p]) == pytest.approx(size, rel=1e-9)
        if max(w) > min(w):
            assert bool(step.resampled[p]) == (k < 4 and size <= threshold * 5)
        if k == 4:
            np.testing.assert_allclose(step.log_weights.values[p], np.log(w), rtol=1e-8, atol=1e-8)
            final = evidence[p] + math.log(np.mean(w))
            assert float(step.log_evidence[p]) == pytest.approx(final, rel=1e-8, abs=1e-8)
        else:
            assert (step.log_weights.values[p] == 0).all()  # used up, or forgotten
            evidence[p] += math.log(np.mean(w)) if step.resampled[p] else 0.0
            assert float(step.log_evidence[p]) == pytest.approx(evidence[p], rel=1e-8, abs=1e-8)
    assert capped == (scale == 9.0) or threshold == 0.0 or name == "difference"


BIASED = {
    # all rewards are negative, so that a memory that starts at 0 hides them
    "max": (Quadratic((0.2, 0.1), 1.3, (1.0, 0.4)), 1.0),
    # the weights of boundaries that did not resample are forgotten
    "difference": (Quadratic((0.0, 0.0), 1.5, (1.0, 0.4)), 0.5),
    # the end is exp(λ Σ r) instead of exp(λ r(x_1))
    "sum": (Quadratic((0.5, -0.3)), 1.0),
}


@slow
@in_law
@pytest.mark.parametrize("name", BIASED)
def test_the_known_bias_of_the_released_formulas(name):
    """Evidence and tilted moments are off by many standard errors; the exact namesake's are not."""
    reward, threshold = BIASED[name]
    tilted, log_evidence = reward.tilted(MIXTURE)
    for potential in (name, "fkd-" + name):
        chosen = Steering(N, 1.0, potential, ess_threshold=threshold)
        assert bool(chosen.biases(MIXTURE)) == (potential != name)
        steps = exact_steps(MIXTURE, reward, chosen, populations=3000, seed=12)
        mass, centred = masses(last_of(steps), log_evidence, expected_features(tilted))
        if potential == name:
            check(mass, centred)
        else:
            assert abs(z_value(mass, 1.0)) > 12
            assert hotelling(centred) < 1e-30


def test_a_memory_of_zero_never_sees_negative_rewards():
    """fkd-max with negative rewards resamples at random and weighs all alike: p, not its tilt."""
    steps = exact_steps(MIXTURE, Quadratic(curvature=1.3), Steering(N, 1.0, "fkd-max"),
                        populations=20, seed=12)  # fmt: skip
    assert (steps[-1].log_evidence == 0).all()
    assert (steps[-1].log_weights.values == 0).all()


# ------------------------------------------------------- 7. populations whose weights vanish


class Vetoed:
    """The plane's reward, but -inf for all of population 1 at the listed calls."""

    def __init__(self, *calls):
        self.calls, self.number = calls, 0

    def __call__(self, z):
        values = 4.0 * z @ row(1.0, -0.7)
        if self.number in self.calls:
            values[4:8] = -math.inf
        self.number += 1
        return values


def vetoed(*calls, **options):
    return steer(MIXTURE.denoiser(PATH), Vetoed(*calls), **{
        "shape": (2,), "particles": 4, "populations": 3, "transitions": 4, "steps": 2, "rho": 0.2,
        "ess_threshold": 1.0, "scale": 1.0, "seed": 5, "dtype": torch.float64,
        **options})  # fmt: skip


@pytest.mark.parametrize("potential", EXACT)
def test_a_population_without_weight_is_carried(potential):
    """Vetoed at one boundary only: it is not resampled there, and ends with exp(λ r) in full."""
    free = vetoed(potential=potential)
    result = vetoed(0, potential=potential, degenerate="carry")
    assert result.ess[1, 1] == (4.0 if potential == "terminal" else 0.0)
    if potential != "terminal":
        assert (result.ancestry[1, 1] == torch.arange(4)).all()
        assert (free.ancestry[1, 1] != torch.arange(4)).any()
    for p in (0, 2):
        assert torch.equal(result.samples[p], free.samples[p])
        assert torch.equal(result.log_weights[p], free.log_weights[p])
    assert result.log_evidence.isfinite().all()
    assert result.rewards.isfinite().all()
    # products and sums of values remember the veto until the end corrects it
    later = (result.ancestry[2:, 1] != torch.arange(4)).any()
    assert later == (potential == "difference")
    if potential in ("max", "sum", "immediate"):
        torch.testing.assert_close(result.log_weights[1], result.rewards[1])


@pytest.mark.parametrize("potential", EXACT)
def test_a_population_that_ends_without_weight_has_no_evidence(potential):
    result = vetoed(0, 1, 2, 3, potential=potential, degenerate="carry")
    assert result.log_evidence[1] == -math.inf
    assert (result.log_weights[1] == -math.inf).all()
    assert result.ess[-1, 1] == 0.0
    assert result.log_evidence[[0, 2]].isfinite().all()
    assert result.samples.isfinite().all()


@in_law
def test_the_evidence_counts_the_dead_as_zero():
    """Carried, the evidence is unbiased even if whole populations die: a hard constraint.

    At the end only, since excluding by D is a bias that the documentation names.
    """

    def inside(z):
        return torch.where(z[:, 0] > 1.2, 0.0, -math.inf)

    chosen = Steering(3, 1.0, ess_threshold=0.9, boundaries=[1], degenerate="carry",
                      value=lambda x, t, D: D[:, 0])  # fmt: skip
    steps = exact_steps(MIXTURE, inside, chosen, populations=5000, seed=5)
    mass = steps[-1].log_evidence.exp()
    assert 0.3 < (mass == 0).double().mean() < 0.8
    spread = MIXTURE.stds.numpy()
    shares = stats.norm.sf((1.2 - MIXTURE.means[:, 0].numpy()) / spread)
    exact = float((MIXTURE.log_weights.exp().numpy() * shares).sum())
    assert accept(p_of(z_value(mass / exact, 1.0)))


@pytest.mark.parametrize("call", [0, 1, 2, 3])
def test_the_error_names_place_and_population_and_holds_the_particles(call):
    at = [rf"boundary {k} \(t = {k / 4:.6g}\)" for k in (1, 2, 3)] + ["the end"]
    match = rf"all 4 particles of population 1 have weight zero at {at[call]}"
    with pytest.raises(DegenerateWeights, match=match) as caught:
        vetoed(call)
    boundary = caught.value.boundary
    assert boundary.index == call + 1
    assert boundary.final == (call == 3)
    chosen = Steering(4, 1.0, ess_threshold=1.0)
    steps = iterate_steering(table_of(times=FOUR, rho=0.2), MIXTURE.denoiser(PATH), Vetoed(),
                             chosen, shape=(2,), populations=3, seed=5,
                             dtype=torch.float64)  # fmt: skip
    for step in itertools.islice(steps, call + 2):
        here = step
    drawn = here.boundary.x
    rows = (here.ancestors + 4 * torch.arange(3)[:, None]).flatten()
    torch.testing.assert_close(boundary.x[rows], drawn, rtol=0, atol=0)


@pytest.mark.parametrize("potential", ["difference", "max"])
def test_lineage_follows_the_ancestors(potential):
    """In plain loops; and the values that the particles of a lineage had are its particle's own."""
    result = steer(MIXTURE.denoiser(PATH), REWARDS["linear"], shape=(2,), particles=6,
                   populations=3, transitions=5, steps=2, rho=0.1, ess_threshold=1.0, scale=3.0,
                   potential=potential, seed=1, dtype=torch.float64)  # fmt: skip
    K, P, size = result.ancestry.shape
    assert result.lineage.shape == (K + 1, P, size)
    for p in range(P):
        for n in range(size):
            slot = n
            assert result.lineage[K, p, n] == n
            for k in reversed(range(K)):
                slot = int(result.ancestry[k, p, slot])
                assert result.lineage[k, p, n] == slot
    assert (result.lineage[0] != torch.arange(size)).any()


# ---------------------------------------------------------------------- 8. the twist's gain


@pytest.mark.parametrize("path", [Linear(), EDM()], ids=["linear", "edm"])
@pytest.mark.parametrize("sigma_data", [0.4, 1.0, 1.7])
@pytest.mark.parametrize("rho", [-0.6, 0.0, 0.5, "ddpm"])
def test_the_gain_of_the_noise(path, sigma_data, rho):
    """∂x_t'/∂ε = √(σ̄² + ᾱ² v), v = 1/(1/σ_d² + a²), for exact tables; σ̄ for one evaluation."""
    for steps in (1, 2, 3, 6):
        table = table_of(Default(sigma_data=sigma_data), steps, rho, FOUR, path)
        stochastic = [step for step in table if step.stochastic]
        assert len(stochastic) == (3 if steps > 1 else 2) + (path.alpha(0.0) > 0.0)
        for step in stochastic:
            variance = 1.0 / (1.0 / sigma_data**2 + (step.alpha / step.sigma) ** 2)
            exact = math.sqrt(step.sigma_bar**2 + step.alpha_bar**2 * variance)
            assert step.law == (sigma_data if steps > 1 else 0.0)
            expected = exact if steps > 1 else step.sigma_bar
            assert noise_gain(step, path, sigma_data) == pytest.approx(expected, rel=1e-9)


def test_the_gain_is_the_derivative():
    """For Gaussian data the gain is what a shift of ε by δ does to x_t', whatever the solver."""
    denoiser = GAUSSIAN.denoiser(PATH)
    x = torch.randn(1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    eps = torch.zeros(2, 1, 2, dtype=torch.float64)
    eps[1] = 1.0
    for solver, steps in (("default", 3), ("first-order", 3), (Paper(), 4)):
        for step in table_of(solver, steps).transitions[1:]:
            one = plan(PATH, transitions=1, steps=steps, rho=0.4, times=(step.t, step.t_next),
                       solver=solver)  # fmt: skip
            ends = [list(iterate(one, denoiser, x, lambda k, like, e=e: e))[-1].x for e in eps]
            gain = noise_gain(one.transitions[0], PATH, 0.7)
            torch.testing.assert_close(ends[1] - ends[0], torch.full_like(x, gain))


# ------------------------------------------------------------------------------------ search


def children_of(result, seed, particles, steps=2, times=FOUR, scale=1.0):
    """Replay a search from its ancestry: (values at every boundary, samples of all children)."""
    table = table_of(steps=steps, times=times, rho=0.2)
    noise, (P, size) = KeyedNoise(seed), result.ancestry.shape[1:]
    assert size == particles
    x = starting_noise(table, (P * size, 2), noise, torch.float64)
    values = []
    for boundary in iterate(table, MIXTURE.denoiser(PATH), x, noise):
        values.append(scale * REWARDS["linear"](boundary.D).view(P, size))
        if not boundary.final:
            rows = [p * size + int(a) for p in range(P) for a in result.ancestry[boundary.index, p]]
            boundary.select(torch.tensor(rows))
    return values, boundary.x.view(P, size, 2)


SEARCH = {
    "shape": (2,), "transitions": 4, "steps": 2, "rho": 0.2, "times": FOUR,
    "dtype": torch.float64,
}  # fmt: skip


def test_a_beam_keeps_the_best():
    """Every boundary with noise keeps the best b of b w particles, w copies of each."""
    result = beam(MIXTURE.denoiser(PATH), REWARDS["linear"], particles=12, children=4,
                  populations=5, seed=7, **SEARCH)  # fmt: skip
    values, samples = children_of(result, 7, 12)
    assert torch.equal(result.samples, samples)
    torch.testing.assert_close(result.rewards, values[-1], rtol=0, atol=0)
    for p in range(5):
        assert result.ancestry[0, p].tolist() == list(range(12))  # noise follows only later
        for k in (1, 2, 3):
            ranked = sorted(range(12), key=lambda i: -float(values[k][p, i]))
            expected = sorted(4 * ranked[:3])
            assert sorted(result.ancestry[k, p].tolist()) == expected
    torch.testing.assert_close(REWARDS["linear"](result.best), result.rewards.amax(1))
    assert result.network_evaluations == 5 * 12 * 4 * 2
    assert result.reward_evaluations == 5 * 12 * 4
    assert len({tuple(z) for z in result.samples[0].tolist()}) == 12  # copies part


def test_greedy_takes_the_best_child():
    result = greedy(MIXTURE.denoiser(PATH), REWARDS["linear"], particles=12, children=4,
                    populations=5, seed=7, **SEARCH)  # fmt: skip
    values, children = children_of(result, 7, 12)
    assert result.samples.shape == (5, 3, 2)
    for p in range(5):
        for i in range(3):
            family = range(4 * i, 4 * i + 4)
            assert result.ancestry[0, p, family].tolist() == list(family)
            for k in (1, 2, 3):
                best = max(family, key=lambda j: float(values[k][p, j]))
                assert result.ancestry[k, p, family].tolist() == [best] * 4
            best = max(family, key=lambda j: float(values[4][p, j]))
            assert torch.equal(result.samples[p, i], children[p, best])
            assert result.rewards[p, i] == values[4][p, best]
    assert result.network_evaluations == 5 * 12 * 4 * 2
    assert result.reward_evaluations == 5 * 12 * 4


@pytest.mark.parametrize("scale", [pytest.param(1.0, marks=slow), 2.5])
def test_greedy_draws_children_in_proportion(scale):
    """SVDD: a child is drawn with probability ∝ exp(λ r(D)) at every boundary and at the end.

    Given the children the choices are independent, so that the number of times that each place was
    chosen, and the sum of the chosen values, have known means and variances.
    """
    P, particles, w = 150, 3, 4
    result = greedy(MIXTURE.denoiser(PATH), REWARDS["linear"], particles=particles * w, children=w,
                    populations=P, pick="sample", scale=scale, seed=11, **SEARCH)  # fmt: skip
    values, children = children_of(result, 11, particles * w, scale=scale)
    ancestry = result.ancestry.view(4, P * particles, w)
    assert (ancestry[1:] == ancestry[1:, :, :1]).all()
    first = torch.arange(particles).repeat(P) * w
    chosen = list(ancestry[1:, :, 0] - first)
    children = children.view(P * particles, w, 2)
    same = (children == result.samples.view(-1, 1, 2)).all(2)
    assert (same.sum(1) == 1).all()
    chosen.append(same.int().argmax(1))
    p_values = []
    for k, picked in enumerate(chosen, 1):
        value = values[k].view(P * particles, w)
        share = torch.softmax(value, 1)
        hits = torch.nn.functional.one_hot(picked, w)
        z = (hits - share).sum(0) / (share * (1 - share)).sum(0).sqrt()
        mean = (share * value).sum(1)
        variance = (share * value.square()).sum(1) - mean.square()
        taken = value.gather(1, picked[:, None])[:, 0]
        score = (taken - mean).sum() / variance.sum().sqrt()
        p_values += [*map(p_of, z.tolist()), p_of(float(score))]
    assert accept(p_values)
    assert result.reward_evaluations == P * particles * w * 4


@pytest.mark.slow
def test_beams_find_more_than_the_best_of_as_many():
    """12 particles: mean reward of the best, over 150 populations, by 6 standard errors."""
    options = {**SEARCH, "transitions": 8, "times": None, "populations": 150, "seed": 21}
    searched = beam(MIXTURE.denoiser(PATH), REWARDS["linear"], particles=12, children=4, **options)
    plainly = best_of(MIXTURE.denoiser(PATH), REWARDS["linear"], particles=12, **options)
    assert searched.network_evaluations == plainly.network_evaluations
    a, b = (REWARDS["linear"](result.best) for result in (searched, plainly))
    error = math.sqrt(float(a.var() + b.var()) / 150)
    assert float(a.mean() - b.mean()) > 6 * error


def test_every_potential_is_here():
    assert {*EXACT, *FKD} == set(POTENTIALS)
    assert [name for name in POTENTIALS if POTENTIALS[name].exact] == EXACT
