"""λ for a strength, its pilot and what is told of it, one by one: what `tools/mutants.py` asks
first."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import optimize

from glass_flows import Sampler, Steering
from glass_flows.denoisers import Denoiser
from glass_flows.errors import InvalidArgument
from glass_flows.noise import PILOT, START, KeyedNoise
from glass_flows.paths import EDM, Linear
from glass_flows.rewards import FunctionReward
from glass_flows.steering import Greedy, Shards
from glass_flows.steering.pilot import found_by, own_scale, pilot_of, pilot_sampler, settled
from glass_flows.steering.population import Population
from glass_flows.steering.strength import NATS, Auto, Found, Strength, scale_for, spent, spread

INF, LINEAR = math.inf, Linear()


def real(rows):
    return torch.tensor(rows, dtype=torch.float64)


# --- λ for a strength -----------------------------------------------------------------------------


def test_the_strength_of_auto_is_about_that_of_the_best_of_eight():
    assert pytest.approx(math.log(8) - 7 / 8, abs=0.005) == NATS


def blurred(rewards, nats):
    """λ of the docstring, by the tilted density itself on a grid and a root of its divergence."""
    pooled = []
    for row in rewards:
        row = [r for r in row if r > -INF]
        pooled += [
            (r - sum(row) / len(row)) * (len(row) / (len(row) - 1)) ** 0.5
            for r in row
            if len(row) > 1
        ]
    e = sorted(pooled, reverse=True)
    n, sigma = len(e), np.sqrt(np.mean(np.square(e)))
    k = sorted([1, n // 4, 6])[1]
    variance = min(max((0.7 * (np.mean(e[:k]) - e[k]) / sigma) ** 2, 0.01), 0.9)
    r, step = np.linspace(-12.0, 12.0, 4001, retstep=True)
    centres = np.sqrt(1 - variance) * np.array(e) / sigma
    p = np.exp(-((r - centres[:, None]) ** 2) / (2 * variance)).mean(0)
    p /= np.sqrt(2 * np.pi * variance)

    def divergence(a):
        log_z = np.log((p * np.exp(a * r)).sum() * step)
        return (p * np.exp(a * r - log_z) * (a * r - log_z)).sum() * step

    told_of = min(nats, 0.4 * np.log(n))
    a = optimize.brentq(lambda a: divergence(a) - told_of, 0.0, 20.0, xtol=1e-12)
    return float(f"{a / sigma * np.sqrt(nats / told_of):.3g}")


REWARDS = {
    "half": [[0.0, 1.0] * 6],  # no tail: the least of the blur
    "ahead": [[*([0.0] * 34), *([1.0] * 5), 1.5]],  # few far ahead: the most of it
    "more": [[0.1 * k**2 for k in range(30)]],
    "eight": [[3.0, 1.0, -0.5, 0.0, 2.2, -INF, 0.7, 0.4, 1.1]],
    "three": [[0.3, 0.0, -0.4]],
    "populations": [[5.0, 5.5, 4.0], [1.0, 0.2, -INF], [7.0, -INF, -INF], [0.0, 0.1, 0.6]],
}


@pytest.mark.parametrize("nats", [0.05, 1.2, 3.0])
@pytest.mark.parametrize("name", REWARDS)
def test_the_scale_is_that_of_the_blurred_rewards(name, nats):
    assert scale_for(real(REWARDS[name]), nats) == blurred(REWARDS[name], nats)


def test_a_spread_is_that_of_an_unbiased_variance():
    e = spread(real([[1.0, 3.0, -INF], [7.0, -INF, -INF], [0.0, 0.0, 3.0]]))
    assert e.tolist() == pytest.approx(
        [-math.sqrt(2), math.sqrt(2), -math.sqrt(1.5), -math.sqrt(1.5), 2 * math.sqrt(1.5)]
    )
    with pytest.raises(InvalidArgument, match=r"^all but one at most are excluded"):
        spread(real([[1.0, -INF], [-INF, 2.0]]))


def test_what_is_spent_of_weighted_particles():
    """Of rewards 0, log 2 and log 3 at λ = 2, with weights 1 : 4 : 9; and one of -inf."""
    rewards = real([[0.0, math.log(2), math.log(3)], [-INF, 0.5, 0.5]])
    evidence = real([math.log(14 / 3), 2 * 0.5 + math.log(2 / 3)])
    found = spent(2.0, rewards, 2.0 * rewards, evidence)
    kl = sum(w / 14 * math.log(w / 14 * 3) for w in (1, 4, 9))
    assert found.tolist() == pytest.approx([kl, math.log(3 / 2)])


# --- what is told ---------------------------------------------------------------------------------


def told(rewards, scale, evidence=0.0, roots=((0, 1),), weights=None, **options):
    rewards = real(rewards)
    weights = torch.zeros_like(rewards) if weights is None else real(weights)
    weighed = (rewards, weights, torch.full((len(rewards),), evidence, dtype=torch.float64))
    particles = rewards.shape[1]
    return Strength.of(scale, particles, torch.tensor(roots), weighed, **options)


def test_a_strength_says_what_the_weights_say():
    found = told([[1.0, 3.0]], 0.5, 0.25, weights=[[0.0, math.log(3)]])
    assert found.nats == pytest.approx([0.5 * 2.5 - 0.25])
    assert found.ess == pytest.approx([1 / (1 / 16 + 9 / 16)])
    assert found.best_of == pytest.approx(math.log(2) - 1 / 2)
    assert (found.ancestors, found.advice) == ([2], "")
    alone = Strength.of(1.0, 5, torch.tensor([[3, 3, 1], [2, 2, 2]]), None)
    assert (alone.ancestors, alone.ess, alone.advice) == ([2, 1], [], "")
    assert all(map(math.isnan, alone.nats)) and len(alone.nats) == 2


def test_advice_is_given_under_a_tenth_of_a_nat_for_three_times_the_scale():
    far = [[0.0, 0.2]]  # an expectation of 0.1
    assert "try scale ≈ " in told(far, 0.99).advice
    assert told(far, 1.0).advice == ""
    assert told(far, 0.0).advice == ""
    assert told(far, 0.5, tilts=False).advice == ""
    assert told([[0.1]], 0.5, roots=[[0]]).advice == ""
    for width in (1.05, 1.1, 1.2):
        other = scale_for(real([[0.0, width]]), NATS)
        said = f"nothing was steered: try scale ≈ {other:.2g}"
        assert told([[0.0, width]], other / 3.0, 1.0).advice == said
        assert told([[0.0, width]], other / 2.99, 1.0).advice == ""


def test_an_ancestor_is_shared_if_it_is_in_most_populations():
    rewards = [[0.0, 9.0]] * 2
    assert told(rewards, 1.0, roots=[[1, 1], [0, 1]], remedy="rest").advice == ""
    both = told(rewards, 1.0, roots=[[1, 1], [0, 0]], remedy="rest").advice
    assert both == "in 2 of 2 populations all images share one ancestor: rest"
    assert told(rewards[:1], 1.0, roots=[[1, 1]], remedy="rest").advice == (
        "all images share one ancestor: rest"
    )
    assert told(rewards[:1], 1.0, roots=[[1]], remedy="rest").advice == ""
    some = told(rewards * 2, 1.0, roots=[[1, 1], [0, 0], [0, 1], [1, 1]], remedy="rest").advice
    assert some.startswith("in 3 of 4 populations all images")


def test_nothing_is_counted_without_a_pilot():
    assert Found(7.0).tensor()[3:].tolist() == [0.0, 0.0, 0.0]


# --- the pilot ------------------------------------------------------------------------------------


def planned(method=None, *, path=LINEAR, shards=None, times=None, sampler=None, **given):
    """The pilot of a run, without the run."""
    given = {"particles": 5, "shape": (2,), "seed": 3, "dtype": torch.float64, **given}
    around = given.pop("around", None)
    table = (sampler or Sampler(3, 3, 0.3, times=times)).plan(path)
    population = Population.of(**given)
    if around is not None:
        begin = population.at(torch.zeros(len(population), 2, dtype=torch.float64))
        population = begin.noising(around, path, table.times[0])
    denoiser = Denoiser(lambda x, t: x, path)
    method = method or Steering(population.particles)
    return pilot_of(method, lambda z: z[:, 0], table, denoiser, population, shards, {})


def test_a_pilot_has_twenty_four_samples_or_two_of_each_population():
    for populations, each in ((1, 24), (5, 5), (6, 4), (13, 2), (30, 2)):
        found = planned(populations=populations).population
        assert (found.count, found.particles, len(found.x)) == (
            populations,
            each,
            populations * each,
        )
    words = planned(prompts=["a"] * 12 + ["b"]).population
    assert words.prompts == ("a",) * 24 + ("b",) * 2


@pytest.mark.parametrize("path", [LINEAR, EDM()])
def test_a_pilot_begins_with_noise_of_its_own_as_the_run_does(path):
    seed = KeyedNoise(3).seed_of(PILOT)
    for given in ({"populations": 3}, {"x": torch.ones(5, 2).double(), "dtype": None}):
        found = planned(path=path, **given).population
        like = torch.empty(24, 2, dtype=torch.float64)
        expected = KeyedNoise(seed)(0, like, START) * (
            1.0 if path is LINEAR else math.sqrt(80**2 + 1)
        )
        assert torch.equal(found.x, expected)
        assert found.seed == seed and found.init is None


def test_a_pilot_is_a_short_ode_from_where_the_run_begins():
    long = planned().table
    assert (long.times, len(long.transitions[0].rows)) == ((0.0, 1.0), 6)
    assert planned().calls == 6
    own = planned(sampler=Sampler(3, 2, 0.3, times="shifted:2"))
    assert own.table == Sampler(3, 2, 0.3, times="shifted:2").plan(LINEAR)
    assert own.calls == 6
    z = torch.tensor([[1.0, -2.0]], dtype=torch.float64)
    later = planned(around=z, times=[0.4, 0.6, 0.8, 1.0])
    assert later.table.times == (0.4, 1.0)
    noise = planned().population.x
    assert (later.population.x - (0.4 * z + 0.6 * noise)).abs().max() < 1e-14
    for few in (Sampler(3, 2, 0.3), Sampler(2, [2, 3], "ddpm")):
        assert pilot_sampler(few) is few
    assert pilot_sampler(Sampler(7, 1, 0.3, start="pure")) == Sampler(6, 1, "ode", start="pure")


@pytest.mark.parametrize(
    ("processes", "given", "size", "dealt"),
    [
        (1, {"particles": 5}, 5, 1),
        (1, {"particles": 5, "micro_batch": 3}, 3, 1),
        (3, {"particles": 7}, 3, 3),  # 24 samples in pieces of 3 are 8 pieces
        (3, {"particles": 24}, 8, 3),  # in pieces of 8 they are 3, one for each
        (3, {"particles": 30}, 10, 3),  # the last is smaller
        (3, {"particles": 36}, 12, 1),  # 2 are too few for 3, so that each draws all of them
        (2, {"particles": 48}, 24, 1),
        (2, {"particles": 48, "micro_batch": 5}, 5, 2),
    ],
)
def test_a_pilot_is_dealt_out_where_there_is_enough_of_it(
    processes, given, size, dealt, monkeypatch
):
    for name, value in {
        "is_initialized": True,
        "get_rank": 0,
        "get_world_size": processes,
        "get_backend": "gloo",
    }.items():
        monkeypatch.setattr(f"torch.distributed.{name}", lambda value=value: value)
    found = planned(shards=Shards(given.pop("micro_batch", None)), **given)
    assert (found.shards.micro_batch, found.shards.count) == (size, dealt)
    alone = planned(shards=Shards.alone(size), **given)  # whatever groups it belongs to
    assert (alone.shards.micro_batch, alone.shards.count) == (size, 1)


def test_lambda_without_a_pilot():
    assert planned(Steering(5, scale=2.0)) is None
    assert planned(Greedy(6), particles=6) is None  # it has no say
    assert planned(Greedy(6, scale=Auto(1.0)), particles=6).scale == Auto(1.0)
    assert settled(Steering(5), Found(3.0)) == Steering(5, scale=3.0)
    assert settled(Steering(5), None) == Steering(5)
    reward = FunctionReward(lambda z: z[:, 0])
    assert own_scale(Greedy(), reward) == Found(1.0, nats=0.0)
    assert own_scale(Steering(), reward) is None
    reward.steering_scale = 0.5
    assert str(own_scale(Steering(), reward)) == str(Found(0.5)) == "the reward's own"


def test_what_a_pilot_has_found():
    rewards = real([[0.0, 1.0, -INF], [5.0, 6.0, 7.0]])
    found = found_by(Auto(0.3), rewards, lambda z: z[:, 0], 36)
    expected = scale_for(rewards, 0.3)
    spread = math.sqrt((2 * 0.5 + 3 * 1.0) / 5)
    assert found == Found(expected, 0.3, pytest.approx(spread), 6, 1, 36)
    assert found_by(Auto(), rewards, lambda z: z[:, 0], 36).nats == NATS
