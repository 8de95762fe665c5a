"""λ that takes care of itself, and the line on the strength of a run.

Statistical tests have fixed seeds; each accepts a right result with a probability of 1e-5 or less
to fail (4.5 standard errors).
"""

import json
import math
from dataclasses import replace

import pytest
import torch

from cases import first
from glass_flows import Greedy, Refine, Sampler, Steering, beam, best_of, greedy, refine, steer
from glass_flows.errors import InvalidArgument, RewardError
from glass_flows.guidance import Guidance, GuidedDenoiser
from glass_flows.noise import PILOT, KeyedNoise
from glass_flows.paths import Linear
from glass_flows.rewards import Cached, Decoded, FunctionReward
from glass_flows.runs import RunFolder
from glass_flows.steering import BestOf, Shards, iterate_steering
from glass_flows.steering.pilot import EVALUATIONS, SAMPLES
from glass_flows.steering.strength import NATS, Auto, Found, Strength, number, scale_for, spent
from glass_flows.worlds.mixtures import GaussianMixture

GAUSS = GaussianMixture(means=torch.zeros(1, 2).double(), std=2.0)
DENOISER = GAUSS.denoiser(Linear())
SLOPE = 0.05
SMALL = {"shape": (2,), "particles": 6, "seed": 3, "dtype": torch.float64, "progress": False}
SHORT = {**SMALL, "transitions": 3, "steps": 3, "rho": 0.3}


def linear(z):
    """Standard deviation 2 SLOPE = 0.1."""
    return SLOPE * z[:, 0]


def gaussian(n, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(1, n, generator=generator, dtype=torch.float64)


# --- λ for a strength -----------------------------------------------------------------------------


def test_a_gaussian_reward_has_the_strength_of_the_formula():
    """KL = (λ σ)²/2; 100,000 draws tell σ to 0.2 % and the tail well enough for 3 %."""
    draws = 3.0 * gaussian(100_000) + 7.0
    for nats in (0.1, 0.5, NATS, 3.0):
        assert scale_for(draws, nats) == pytest.approx(math.sqrt(2 * nats) / 3.0, rel=0.03)


def test_two_values_have_the_strength_of_the_formula():
    """A tenth of the samples succeed: KL(q) of a coin, whatever the reward's unit."""
    for unit in (1e-3, 1.0, 1e3):
        draws = unit * torch.tensor([[1.0] * 100 + [0.0] * 900])
        scale = scale_for(draws, 0.7)
        q = 1 / (1 + 9 * math.exp(-scale * unit))
        exact = q * math.log(q / 0.1) + (1 - q) * math.log((1 - q) / 0.9)
        assert exact == pytest.approx(0.7, rel=0.1)  # a hundredth of the variance is taken away


def test_more_than_the_values_can_give_is_a_number():
    assert 0.0 < scale_for(torch.tensor([[0.0, 1.0] * 12]), 50.0) < 1000.0


def test_the_scale_of_the_reward_and_its_origin_do_not_matter():
    draws = gaussian(24, 1)
    one = scale_for(draws, NATS)
    assert scale_for(1000 * draws, NATS) == pytest.approx(one / 1000, rel=1e-9)
    assert scale_for(draws - 5e4, NATS) == one
    assert one == float(f"{one:.3g}")


def test_populations_count_within_themselves():
    """Means that are far apart, and populations of two samples, say what one of many says."""
    draws = gaussian(60_000, 2)
    pairs = draws[:, :6000].view(-1, 2) + 10.0 * torch.arange(3000).double()[:, None]
    assert scale_for(pairs, 0.5) == pytest.approx(1.0, rel=0.1)
    assert scale_for(draws.view(3, -1) + torch.tensor([[0.0], [50.0], [-9.0]]), 0.5) == (
        pytest.approx(1.0, rel=0.03)
    )


@pytest.mark.slow
def test_a_few_draws_of_a_gaussian_come_within_a_factor_of_two():
    """Of 100 pilots about four in five; by the exact KL. Standard error of the share 4 %."""
    scales = torch.tensor([scale_for(gaussian(SAMPLES, i), NATS) for i in range(100)])
    exact = scales.square() / 2
    assert ((exact > NATS / 2) & (exact < 2 * NATS)).double().mean() > 0.66
    assert NATS / 1.4 < exact.median() < 1.4 * NATS


@pytest.mark.parametrize("scale", [0.0, 0.7, 2.0])
def test_what_is_spent_is_the_divergence(scale):
    """Of 200,000 weighted draws of a Gaussian: λ²/2, to 3 %."""
    draws = gaussian(200_000, 4)
    evidence = torch.logsumexp(scale * draws, 1) - math.log(draws.shape[1])
    (got,) = spent(scale, draws, scale * draws, evidence).tolist()
    assert got == pytest.approx(scale**2 / 2, rel=0.03, abs=1e-9)


def test_excluded_samples_spend_no_nan():
    rewards = torch.tensor([[0.0, -math.inf]])
    told = spent(2.0, rewards, 2.0 * rewards, torch.tensor([-math.log(2.0)]))
    assert told.tolist() == pytest.approx([math.log(2.0)])
    nothing = torch.zeros_like(rewards)
    assert spent(0.0, rewards, nothing, torch.zeros(1)).tolist() == [0.0]


# --- auto -----------------------------------------------------------------------------------------

CALLS = {
    "steer": (steer, {"transitions": 3, "steps": 3}),
    "twist": (steer, {"transitions": 3, "steps": 3, "twist": 0.5}),
    "guidance": (steer, {"transitions": 3, "steps": 3, "guidance": "reward:0.5"}),
    "refine": (refine, {"moves": 3}),
    "svdd": (greedy, {"transitions": 3, "steps": 3, "pick": "sample"}),
    "beam": (beam, {"transitions": 3, "steps": 3, "value": "posterior:2:2"}),
    "best-of-n": (best_of, {"steps": 8, "scale": "auto:1.2", "guidance": "reward:0.1"}),
}


@pytest.mark.parametrize("name", first(CALLS))
def test_a_run_on_auto_is_that_on_the_number_and_its_pilot(name):
    call, options = CALLS[name]
    options = {"populations": 2, **SMALL, **options}
    found = call(DENOISER, linear, **options)
    scale = found.strength.scale
    plain = call(DENOISER, linear, **{**options, "scale": scale})
    assert torch.equal(found.samples, plain.samples)
    assert torch.equal(found.rewards, plain.rewards)
    pilot = found.strength.found
    assert (pilot.samples, pilot.nats, pilot.excluded) == (SAMPLES, NATS, 0)
    assert found.network_evaluations - plain.network_evaluations == pilot.evaluations
    assert pilot.evaluations == SAMPLES * EVALUATIONS
    assert found.reward_evaluations - plain.reward_evaluations == SAMPLES
    assert plain.strength.found is None
    assert "for 1.2 nats by 24 plain samples" in str(found.strength)
    assert scale * 0.1 == pytest.approx(math.sqrt(2 * NATS), rel=0.6)  # by 24 draws


def test_where_lambda_has_no_say_nothing_is_spent_on_it():
    for call in (beam, greedy):
        result = call(DENOISER, linear, **SHORT)
        assert torch.equal(result.samples, call(DENOISER, linear, scale=1.0, **SHORT).samples)
        assert result.strength.scale == 1.0
        assert result.network_evaluations == 6 * 9
    assert best_of(DENOISER, linear, **SMALL).strength.scale == 1.0
    own = greedy(DENOISER, lambda z: 0 * z.sum(1), value=lambda x, t, D: D[:, 0], **SHORT)
    assert own.strength.scale == 1.0
    alone = steer(DENOISER, linear, **{**SHORT, "particles": 1})
    assert alone.strength.found.samples == 0 and alone.network_evaluations == 9
    assert steer(DENOISER, linear, twist=1.0, **{**SHORT, "particles": 1}).strength.found.samples


def test_every_process_takes_what_the_first_has_seen(monkeypatch):
    """A pilot too small to be dealt out is drawn by all of them, which may round differently."""
    told = steer(DENOISER, linear, **SHORT).strength.scale
    monkeypatch.setattr(Shards, "agreed", lambda self, rewards: 2.0 * rewards)
    assert steer(DENOISER, linear, **SHORT).strength.scale == pytest.approx(told / 2, rel=5e-3)


def test_what_cannot_run_is_refused_before_the_pilot():
    asked = []

    def counted(z):
        asked.append(len(z))
        return linear(z)

    needy = FunctionReward(lambda z, prompts: linear(z), "needy", takes_prompts=True)
    guided = GuidedDenoiser(DENOISER, linear, Guidance(0.5), scale=1.0)
    for options in ({"also": needy}, {"denoiser": guided, "guidance": "reward:0.5"}):
        with pytest.raises(InvalidArgument, match=r"takes prompts|guided already"):
            steer(options.pop("denoiser", DENOISER), counted, **{**SHORT, **options})
    assert asked == []


def test_a_reward_may_bring_its_own():
    own = FunctionReward(linear, "own")
    own.steering_scale = 7.0
    for reward in (own, Cached(own), Decoded(own, lambda z: z)):
        result = steer(DENOISER, reward, **SHORT)
        assert result.strength.scale == 7.0
        assert result.network_evaluations == 6 * 9
        assert "the reward's own" in str(result.strength)
    asked = steer(DENOISER, own, scale="auto:1.2", **SHORT)
    assert asked.strength.scale == steer(DENOISER, linear, **SHORT).strength.scale != 7.0


def test_few_evaluations_are_the_pilots_own():
    """As few-step models want it: the run's own sampler, here with its own noise."""
    few = {**SMALL, "transitions": 4, "steps": 1, "rho": 0.3}
    assert steer(DENOISER, linear, **few).strength.found.evaluations == SAMPLES * 4


def test_the_pilot_has_noise_of_its_own():
    seeds = {KeyedNoise(seed).seed_of(PILOT) for seed in range(100)}
    assert len(seeds) == 100
    assert seeds.isdisjoint(range(100))
    scales = {steer(DENOISER, linear, **{**SHORT, "seed": i}).strength.scale for i in range(4)}
    assert len(scales) > 1
    assert steer(DENOISER, linear, **SHORT).strength == steer(DENOISER, linear, **SHORT).strength


@pytest.mark.slow
def test_the_evidence_is_unbiased():
    """At the λ of each run: Ẑ/Z(λ) has the mean 1 over 20 runs of 24 populations, each with a λ of
    its own, within 4.5 standard errors."""
    ratios = []
    for seed in range(20):
        result = steer(
            DENOISER, linear, shape=(2,), particles=8, transitions=2, steps=2, rho=0.3,
            ess_threshold=1.0, populations=24, dtype=torch.float64, seed=seed, progress=False,
        )  # fmt: skip
        exact = (result.strength.scale * 2 * SLOPE) ** 2 / 2
        ratios.append((result.log_evidence - exact).exp().mean())
    found = torch.stack(ratios)
    error = found.std() / len(found) ** 0.5
    assert error < 0.12
    assert abs(found.mean() - 1.0) < 4.5 * error


def test_the_model_behind_a_guided_denoiser_is_the_plain_one():
    guided = GuidedDenoiser(DENOISER, linear, scale=30.0)
    told = steer(guided, linear, **SHORT).strength
    assert told.scale == steer(DENOISER, linear, **SHORT).strength.scale


def test_particles_given_on_the_way_are_of_no_known_law():
    given = {**SHORT, "x": torch.zeros(6, 2).double(), "times": [0.3, 0.5, 0.8, 1.0]}
    with pytest.raises(InvalidArgument, match=r"particles are given at t = 0\.3: give scale="):
        steer(DENOISER, linear, **given)
    assert steer(DENOISER, linear, scale=2.0, **given).strength.scale == 2.0
    noise = torch.ones(6, 2).double()
    assert steer(DENOISER, linear, **{**SHORT, "x": noise}).strength.scale == (
        steer(DENOISER, linear, **SHORT).strength.scale
    )


def test_it_is_found_by_the_iterator_too():
    steps = list(
        iterate_steering(
            Sampler(3, 3, 0.3).plan(Linear()), DENOISER, linear, Steering(6), shape=(2,), seed=3,
            dtype=torch.float64,
        )
    )  # fmt: skip
    whole = steer(DENOISER, linear, **SHORT)
    assert torch.equal(steps[-1].log_weights.values, whole.log_weights)
    assert steps[-1].costs == whole.costs
    with pytest.raises(InvalidArgument, match="here give a number"):
        number(Auto())


@pytest.mark.parametrize(
    ("reward", "match"),
    [
        (
            lambda z: torch.full((len(z),), 3.0),
            "of 24 plain samples' .* all are the same",
        ),
        (lambda z: 1e6 + 1e-3 * z[:, 0], "all are the same"),
        (lambda z: torch.full((len(z),), -math.inf), r"all but one at most are excluded \(-inf\)"),
    ],
)
def test_a_pilot_that_says_nothing_is_named(reward, match):
    with pytest.raises(RewardError, match=match + ".*give scale= a number"):
        steer(DENOISER, reward, **SHORT)


def test_excluded_samples_are_named_and_left_out():
    def half(z):
        return torch.where(z[:, 1] > 0.0, linear(z), -math.inf)

    strength = steer(DENOISER, half, ess_threshold=0.0, **SHORT).strength
    assert 4 < strength.found.excluded < 20
    assert f"{strength.found.excluded} of them excluded (-inf)" in str(strength)


# --- the same λ whatever happens ------------------------------------------------------------------


class Stopped(Exception):
    pass


@pytest.mark.parametrize("name", ["steer", "refine"])
def test_a_run_that_was_stopped_goes_on_with_its_lambda(tmp_path, name):
    call, options = CALLS[name]
    options = {"populations": 2, **SMALL, **options}
    asked = []

    def counted(z):
        asked.append(len(z))
        return linear(z)

    def stop(step):
        if step.boundary.index == 1:
            raise Stopped

    whole = call(DENOISER, counted, **options)
    with pytest.raises(Stopped):
        call(DENOISER, counted, record=RunFolder(tmp_path), on_boundary=stop, **options)
    del asked[:]
    folder = RunFolder(tmp_path)
    resumed = call(DENOISER, counted, record=folder, **options)
    assert SAMPLES not in asked  # the pilot is not drawn again
    assert torch.equal(resumed.samples, whole.samples)
    assert resumed.strength == whole.strength
    assert resumed.costs == whole.costs
    folder.finish(resumed)
    told = json.loads((tmp_path / "run.json").read_text())
    assert told["method"]["scale"] == "auto"
    assert told["scale"] == told["pilot"]["scale"] == whole.strength.scale
    result = json.loads((tmp_path / "result.json").read_text())
    assert result["strength"]["told"] == str(whole.strength)
    assert RunFolder(tmp_path).result().strength == whole.strength


@pytest.mark.parametrize("micro_batch", [1, 4, 100])
def test_pieces_find_the_same(micro_batch):
    options = {**SHORT, "populations": 2}
    cut = steer(DENOISER, linear, shards=Shards(micro_batch), **options)
    whole = steer(DENOISER, linear, **options)
    assert cut.strength.found.scale == whole.strength.found.scale
    assert cut.costs == whole.costs


def test_no_piece_of_a_pilot_is_larger_than_the_run():
    sizes = []

    def counted(z):
        sizes.append(len(z))
        return linear(z)

    steer(DENOISER, counted, **{**SHORT, "particles": 5})
    assert max(sizes) == 5
    assert sum(sizes[:5]) == SAMPLES


# --- what is told ---------------------------------------------------------------------------------


def test_nothing_steered_and_one_ancestor_are_told():
    options = {**SHORT, "particles": 8, "transitions": 6}
    weak = steer(DENOISER, linear, scale=0.01, **options).strength
    assert "; nothing was steered: try scale ≈ " in str(weak)
    advised = float(str(weak).rsplit("≈ ", 1)[1])
    assert advised * 0.1 == pytest.approx(math.sqrt(2 * NATS), rel=0.7)  # by 8 rewards
    strong = steer(DENOISER, linear, scale=3000.0, **options)
    assert len(set(strong.lineage[0, 0].tolist())) == 1
    assert str(strong.strength).endswith(
        "; all images share one ancestor: lower the scale, or let it rise slowly "
        "(schedule='adaptive'), or refine"
    )
    for scale in (0.0, 14.0, "auto"):
        told = steer(DENOISER, linear, scale=scale, **options).strength
        assert told.advice == ""
        assert "best of 8: 1.20" in str(told)
    flat = steer(DENOISER, lambda z: torch.zeros(len(z)), scale=1.0, **options).strength
    assert "nothing was steered: of the rewards all are the same" in str(flat)


def test_best_of_n_gets_no_advice_about_lambda():
    strength = best_of(DENOISER, linear, scale=1e-3, **{**SMALL, "particles": 8}).strength
    assert strength.advice == ""
    assert strength.best_of == pytest.approx(math.log(8) - 7 / 8)
    assert strength.ancestors == [8]


def test_searches_know_no_divergence():
    strength = beam(DENOISER, linear, **SHORT).strength
    assert math.isnan(strength.nats[0])
    assert strength.ess == []
    assert "KL spent not known" in str(strength)
    one = greedy(DENOISER, linear, **SHORT)
    assert one.strength.ancestors == [3]  # a particle of each pair goes on


@pytest.mark.usefixtures("one_stream")
def test_a_refined_run_spends_what_its_chains_have():
    """Where the chains stand, and not the best that they have seen: (λ σ)²/2, by 2,000 chains, to
    4.5 standard errors of its two parts, about 10 %."""
    options = {"shape": (2,), "particles": 2000, "seed": 1, "dtype": torch.float64, "moves": 12}
    result = refine(DENOISER, linear, scale=10.0, move_times=0.2, **options)
    assert result.strength.nats[0] == pytest.approx(0.5, rel=0.25)
    given = refine(DENOISER, linear, scale=10.0, init=torch.zeros(2).double(), **SMALL)
    assert math.isnan(given.strength.nats[0])


def test_the_line_survives_json():
    for result in (steer(DENOISER, linear, **SHORT), beam(DENOISER, linear, **SHORT)):
        data = json.loads(json.dumps(result.strength.as_json()).replace("NaN", "null"))
        read = Strength.from_json(data)
        assert str(read) == str(result.strength)
    assert Found.of(Found(2.0, 1.2, 0.5, 24, 3, 144).tensor()) == Found(2.0, 1.2, 0.5, 24, 3, 144)


# --- the settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize("cls", [Steering, Refine, Greedy])
def test_files_of_before_mean_a_lambda_of_one(cls):
    assert cls().scale == Auto()
    assert cls.from_json({"type": cls.word, "version": 1}).scale == 1.0
    assert cls.parse(cls.word).scale == 1.0
    assert cls.from_json(cls(scale=1.0).as_json()) == cls(scale=1.0)
    assert cls.from_json(cls().as_json()) == cls()
    assert cls(scale="auto:2.5").as_json()["scale"] == "auto:2.5"
    assert replace(cls(), scale="auto:2.5").scale == Auto(2.5)
    assert eval(repr(cls(scale="auto:2.5")), {cls.__name__: cls}) == cls(scale=Auto(2.5))
    assert BestOf().scale == 1.0


def test_a_population_that_has_no_strength_leaves_that_of_the_others_known():
    """One whose particles are all excluded, say: the mean is of the others, and says so."""
    known = Strength(1.0, 4, [0.3, math.nan, 0.5], 0.64, [], [2, 2, 2])
    assert "KL spent 0.40 nats in 2 of 3 populations (best of 4: 0.64)" in str(known)
    assert "0.40 nats" in known.short
    none = replace(known, nats=[math.nan] * 3)
    assert "not known" in str(none) and "nats" not in none.short
