"""GLASS as a sampler function of k-diffusion, against formulas and stand-ins written here.

The stand-ins have what ComfyUI's and Forge's models show a sampler: `model_sampling` or `predictor`
inside models within models, and masks that are blended in at every call.
"""

from __future__ import annotations

import inspect
import math
import re
import sys
import types
from itertools import pairwise
from pathlib import Path

import pytest
import torch
from scipy import stats

import glass_flows
from cases import first
from glass_flows import Denoiser
from glass_flows.errors import InvalidArgument, NonFinite, PlanError, ShapeError
from glass_flows.execute import run
from glass_flows.k_diffusion import sample_glass
from glass_flows.noise import SINGLE, FixedNoise, KeyedNoise, key_of
from glass_flows.paths import Linear
from glass_flows.worlds import GaussianMixture
from glass_flows.worlds.digits import load_digits_network
from statistics_rules import accept

PAGE = Path(__file__).parents[2] / "docs" / "k_diffusion.md"
F64 = torch.float64


def normals(*shape, seed=0):
    return torch.randn(*shape, dtype=F64, generator=torch.Generator().manual_seed(seed))


MIXTURE = GaussianMixture(1.5 * normals(5, 3, seed=1), std=0.3)
EPS_SIGMAS = [14.6, 9.0, 5.0, 3.0, 1.9, 1.2, 0.7, 0.4, 0.2, 0.08, 0.0]
FLOW_SIGMAS = [1.0, 0.95, 0.88, 0.8, 0.7, 0.59, 0.47, 0.35, 0.22, 0.1, 0.0]


class Sampling:
    """Of ε, v and EDM models, x = z + σ ε."""

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        factor = (1 + sigma**2) ** 0.5 if max_denoise else sigma
        return factor.view(-1, *[1] * (noise.ndim - 1)) * noise + latent_image

    def mix(self, sigma):
        return 1.0, sigma


class Discrete(Sampling):
    """A thousand trained levels; the model rounds to the nearest in log σ."""

    sigmas = torch.linspace(math.log(0.0292), math.log(14.6146), 1000).exp()

    def timestep(self, sigma):
        return (sigma.log()[None] - self.sigmas.log()[:, None]).abs().argmin(0)


class Continuous(Sampling):
    """EDM: a list of levels, for schedules only."""

    sigmas = Discrete.sigmas

    def timestep(self, sigma):
        return sigma.log() / 4


class Flow:
    """x = (1 - σ) z + s σ ε."""

    sigmas = torch.arange(1, 1001) / 1000

    def __init__(self, noise_scale=1.0):
        self.noise_scale = noise_scale

    def timestep(self, sigma):
        return 1000 * sigma

    def noise_scaling(self, sigma, noise, latent_image, max_denoise=False):
        sigma = sigma.view(-1, *[1] * (noise.ndim - 1))
        return self.noise_scale * sigma * noise + (1 - sigma) * latent_image

    def mix(self, sigma):
        return 1 - sigma, self.noise_scale * sigma


class Model:
    """A mixture's exact answers, as deep inside as ComfyUI's model; it keeps what it is asked."""

    def __init__(self, sampling, mixture=MIXTURE, latent=None, noise=None, told=1.0):
        self.sampling, self.mixture, self.told = sampling, mixture, told
        self.latent, self.noise, self.asked = latent, noise, []
        base = types.SimpleNamespace(model_sampling=sampling)
        self.inner_model = types.SimpleNamespace(inner_model=base)

    def __call__(self, x, sigma, denoise_mask=None, seed=None):
        assert sigma.shape == x.shape[:1] and (sigma == sigma[0]).all() and sigma.dtype == x.dtype
        level = sigma[0].item()
        if denoise_mask is not None:
            kept = self.sampling.noise_scaling(sigma, self.noise, self.latent)
            x = denoise_mask * x + (1 - denoise_mask) * kept
        self.asked.append((x.clone(), level))
        D = self.mixture.posterior_mean(x, *self.sampling.mix(self.told * level)).to(x)
        return D if denoise_mask is None else denoise_mask * D + (1 - denoise_mask) * self.latent


def levels_of(sampling):
    return FLOW_SIGMAS if isinstance(sampling, Flow) else EPS_SIGMAS


def start_of(sampling, batch=6, dtype=F64):
    """x at the first level, of the model's own samples."""
    signal, noise = sampling.mix(levels_of(sampling)[0])
    return (signal * MIXTURE.sample(batch, seed=2) + noise * normals(batch, 3)).to(dtype)


def euler(model, x, sigmas):
    """Karras et al. 2022, Algorithm 2 without churn."""
    for sigma, following in pairwise(sigmas):
        slope = (x - model(x, x.new_full(x.shape[:1], sigma))) / sigma
        x = x + slope * (following - sigma)
    return x


SAMPLINGS = [Sampling(), Continuous(), Flow(), Flow(1.7)]


# --- one evaluation per transition ----------------------------------------------------------------


@pytest.mark.parametrize("sampling", SAMPLINGS, ids=["eps", "edm", "flow", "scaled flow"])
@pytest.mark.parametrize("last", [None, -3])
def test_one_evaluation_and_rho_1_is_euler(sampling, last):
    x, sigmas = start_of(sampling), levels_of(sampling)[:last]
    ours = sample_glass(Model(sampling), x, sigmas, steps=1, rho=1.0)
    assert torch.allclose(ours, euler(Model(sampling), x, sigmas), rtol=0, atol=1e-11)


@pytest.mark.parametrize("sampling", [Discrete(), Flow(1.7)], ids=["eps", "flow"])
def test_it_is_euler_in_float32_on_trained_levels(sampling):
    given = torch.tensor(levels_of(sampling))
    if isinstance(sampling, Discrete):
        given = torch.cat([sampling.sigmas[[999, 900, 700, 400, 200, 50]], torch.zeros(1)])
    x = start_of(sampling, dtype=torch.float32)
    ours = sample_glass(Model(sampling), x, given, {}, None, True, steps=1, rho=1.0)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, euler(Model(sampling), x, given.tolist()), rtol=0, atol=1e-5)


class Recorded:
    """A noise sampler that keeps what it was asked and what it gave."""

    def __init__(self, x):
        self.x, self.ends, self.drawn = x, [], []

    def __call__(self, sigma, sigma_next):
        self.ends.append((float(sigma), float(sigma_next)))
        self.drawn.append(normals(*self.x.shape, seed=100 + len(self.drawn)))
        return self.drawn[-1]


@pytest.mark.parametrize("eta", [1.0, 0.4])
def test_ancestral_is_that_of_k_diffusion(eta):
    """Ancestral Euler: down to σ_down, and noise of σ_up, with σ_down² + σ_up² = σ'²."""
    x, model = start_of(Sampling()), Model(Sampling())
    noise = Recorded(x)
    ours = sample_glass(model, x, EPS_SIGMAS, steps=1, rho=f"ancestral:{eta}", noise_sampler=noise)
    for i, (sigma, following) in enumerate(pairwise(EPS_SIGMAS)):
        up = eta * following * math.sqrt(1 - (following / sigma) ** 2)
        down = math.sqrt(following**2 - up**2)
        D = MIXTURE.posterior_mean(x, 1.0, sigma)
        x = x + (x - D) / sigma * (down - sigma)
        if following:
            x = x + up * noise.drawn[i]
    assert torch.allclose(ours, x, rtol=0, atol=1e-10)
    assert noise.ends == list(pairwise(EPS_SIGMAS[:-1]))  # none where σ' is 0


def test_ancestral_of_a_flow_is_that_of_flows():
    """ComfyUI's and LTX's: to σ_down = σ' (1 + (σ'/σ - 1) η), rescaled, and noise up to σ'."""
    eta, x = 0.5, start_of(Flow())
    noise = Recorded(x)
    ours = sample_glass(
        Model(Flow()), x, FLOW_SIGMAS, steps=1, rho=f"ancestral:{eta}", noise_sampler=noise
    )
    drawn = iter(noise.drawn)
    for sigma, following in pairwise(FLOW_SIGMAS):
        D = MIXTURE.posterior_mean(x, 1 - sigma, sigma)
        at = sigma == 1.0  # pure noise is kept
        down = following if at else following * (1 + (following / sigma - 1) * eta)
        x = x + (x - D) / sigma * (down - sigma)
        if following and not at:
            rescaled = (1 - following) / (1 - down)
            x = rescaled * x + math.sqrt(following**2 - (rescaled * down) ** 2) * next(drawn)
    assert torch.allclose(ours, x, rtol=0, atol=1e-10)
    assert next(drawn, None) is None


# --- several evaluations: our executor ------------------------------------------------------------


def executed(x, sigmas, to_linear, network, steps, rho, solver, noises):
    """The same sampler, planned and run on the linear path: `to_linear` is (time, scale) of σ."""
    starts = [*range(0, len(sigmas) - 1, steps), len(sigmas) - 1]
    table = glass_flows.plan(
        Linear(),
        transitions=len(starts) - 1,
        steps=[b - a for a, b in pairwise(starts)],
        times=[to_linear(sigmas[i])[0] for i in starts],
        rho=rho,
        solver=solver,
    )
    begin, end = (to_linear(sigmas[i])[1] for i in (0, -1))
    denoiser = Denoiser(network, Linear(), prediction="sample")
    drawn = iter(noises)
    by_number = [next(drawn) if t.stochastic else torch.zeros_like(x) for t in table]
    return run(table, denoiser, x / begin, FixedNoise(by_number)) * end


def clean(x, t):
    """E[z | x_t = x] of the mixture on the linear path, as a network of t."""
    return MIXTURE.posterior_mean(x, t[0].item(), 1 - t[0].item())


LINEAR_OF = {
    "eps": (Sampling(), lambda s: (1 / (1 + s), 1 + s)),
    "flow": (Flow(), lambda s: (1 - s, 1.0)),
    "scaled flow": (Flow(1.7), lambda s: ((1 - s) / (1 + 0.7 * s), 1 + 0.7 * s)),
}


@pytest.mark.parametrize("kind", LINEAR_OF)
@pytest.mark.parametrize(
    ("steps", "rho", "solver"),
    [(4, 0.4, "second-order"), (3, "ddpm", "default"), (5, 0.9, "default:guidance=5"),
     (10, -0.3, "second-order"), (4, "ode", "first-order"), (2, 0.0, "default")],
)  # fmt: skip
@pytest.mark.parametrize("last", first([None, -2]))
def test_several_evaluations_are_our_executor(kind, steps, rho, solver, last):
    sampling, to_linear = LINEAR_OF[kind]
    sigmas = levels_of(sampling)[:last]
    steps = min(steps, len(sigmas) - 1)
    x, model = start_of(sampling), Model(sampling)
    noise = Recorded(x)
    ours = sample_glass(model, x, sigmas, rho=rho, steps=steps, solver=solver, noise_sampler=noise)
    theirs = executed(x, sigmas, to_linear, clean, steps, rho, solver, noise.drawn)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-9)
    assert len(model.asked) == len(sigmas) - 1  # as many as for Euler


@pytest.mark.parametrize("kind", ["flow", "eps"])
def test_the_digits_network_is_sampled_as_by_our_executor(kind):
    """A real network as a flow, and as a model of ε over a change of path."""
    network, label = load_digits_network().double(), torch.arange(4)
    denoiser = Denoiser(network, Linear(), conditioning={"label": label})

    def flow(x, sigma, seed=None):
        return denoiser(x, 1 - sigma[0].item())

    def eps(x, sigma, seed=None):
        return denoiser(x / (1 + sigma[0].item()), 1 / (1 + sigma[0].item()))

    sampling, to_linear = LINEAR_OF[kind]
    sigmas = levels_of(sampling)
    x = sampling.mix(sigmas[0])[1] * normals(4, 1, 8, 8)
    noise = Recorded(x)
    model = {"flow": flow, "eps": eps}[kind]
    ours = sample_glass(model, x, sigmas, {"seed": 0}, flow=kind == "flow", noise_sampler=noise)

    def sample(x, t):
        return denoiser(x, t[0].item())

    theirs = executed(x, sigmas, to_linear, sample, 4, 0.4, "second-order", noise.drawn)
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-8)


# --- what is asked, and what is told --------------------------------------------------------------


class Point:
    """All data is one point: whatever it is asked, the model answers with it."""

    def __init__(self, sampling, z):
        self.sampling, self.z, self.asked = sampling, z, []
        self.model_sampling = sampling

    def __call__(self, x, sigma, seed=None):
        self.asked.append((x.clone(), sigma[0].item()))
        return self.z.expand_as(x).clone()


@pytest.mark.parametrize("sampling", [Discrete(), Flow(1.7)], ids=["eps", "flow"])
@pytest.mark.parametrize("rho", [0.4, "ddpm", -0.5])
def test_every_query_has_the_noise_of_the_level_that_is_told(sampling, rho):
    sigmas = levels_of(sampling)
    z, batch = torch.full((5,), 0.7, dtype=F64), 2000
    signal, noise = sampling.mix(sigmas[0])
    model = Point(sampling, z)
    end = sample_glass(
        model, signal * z + noise * normals(batch, 5), sigmas[:-1], {"seed": 3}, rho=rho
    )
    p_values = []
    for x, level in [*model.asked, (end, sigmas[-2])]:
        signal, noise = sampling.mix(level)
        power = ((x - signal * z) / noise).square().sum().item()
        share = stats.chi2.cdf(power, 5 * batch)
        p_values.append(2 * min(share, 1 - share))
    assert accept(p_values)


def test_the_callback_is_told_of_every_evaluation():
    told, answers, model, x = [], [], Model(Flow()), start_of(Flow(), 1)

    def answering(x, sigma, seed):
        assert seed == 5
        answers.append(model(x, sigma))
        return answers[-1]

    sample_glass(answering, x, FLOW_SIGMAS, {"seed": 5}, told.append, flow=True, steps=4)
    assert [asked["i"] for asked in told] == list(range(10))
    assert all(set(asked) == {"x", "i", "sigma", "sigma_hat", "denoised"} for asked in told)
    for asked, answer, (given, level) in zip(told, answers, model.asked):
        assert torch.equal(asked["x"], given)
        assert asked["sigma"].ndim == 0 and asked["sigma"] == asked["sigma_hat"] == level
        assert asked["denoised"] is answer
    starts = [told[i]["sigma"].item() for i in (0, 4, 8)]
    assert starts == [1.0, 0.7, 0.22]  # to the last digit
    assert torch.equal(told[0]["x"], x)


def test_what_a_callback_raises_passes_through():
    class Interrupted(Exception):
        pass

    def stop(asked):
        if asked["i"] == 2:
            raise Interrupted

    model = Model(Flow())
    with pytest.raises(Interrupted):
        sample_glass(model, start_of(Flow()), FLOW_SIGMAS, callback=stop)
    assert len(model.asked) == 3


def test_a_callback_may_edit_the_answer_in_place():
    """As extensions of Euler's do."""

    def blacken(asked):
        asked["denoised"].zero_()

    x = start_of(Flow())
    edited = sample_glass(Model(Flow()), x, FLOW_SIGMAS, {"seed": 0}, blacken)
    black = sample_glass(lambda x, s, seed: 0 * x, x, FLOW_SIGMAS, {"seed": 0}, flow=True)
    assert torch.equal(edited, black)


@pytest.mark.parametrize(("disable", "shown"), [(False, True), (None, False), (True, False)])
def test_a_bar_unless_it_is_disabled(disable, shown, capsys):
    sample_glass(Model(Flow()), start_of(Flow()), FLOW_SIGMAS, disable=disable)
    assert ("10/10" in capsys.readouterr().err) == shown


def test_the_grid_is_made_for_the_guidance_that_the_program_says():
    def levels(solver="second-order", extra=(), cfg=None):
        model = Model(Flow())
        model.inner_model.cfg = cfg
        extra_args = {"seed": 0, **dict(extra)}

        def asked(x, sigma, seed, cond_scale=None):
            return model(x, sigma)

        asked.inner_model = model.inner_model
        sample_glass(asked, start_of(Flow()), FLOW_SIGMAS, extra_args, solver=solver)
        return [level for _, level in model.asked]

    guided = levels("second-order:guidance=4")
    assert guided == levels(cfg=4.0) == levels(extra={"cond_scale": 4})
    assert guided != levels() == levels(cfg=1.0) == levels(cfg="4")
    assert levels("second-order:guidance=1", cfg=4.0) == levels()


# --- trained levels -------------------------------------------------------------------------------


def asked_levels(model, sigmas, **settings):
    sample_glass(model, 10 * normals(2, 3), sigmas, {"seed": 0}, **settings)
    return [level for _, level in model.asked]


class Wrapper(Discrete):
    """k-diffusion's own model of a table, whose clock goes on between the levels."""

    noise_scaling = timestep = None

    def __init__(self):
        self.asked = []

    def __getattribute__(self, name):
        if name in ("noise_scaling", "timestep"):
            raise AttributeError(name)
        return super().__getattribute__(name)

    def sigma_to_t(self, sigma):
        low, high = math.log(0.0292), math.log(14.6146)
        return (sigma.log() - low) / (high - low) * 999

    def __call__(self, x, sigma, seed=None):
        self.asked.append((x, sigma[0].item()))
        return x * 0


@pytest.mark.parametrize("make", [lambda: Model(Discrete()), Wrapper], ids=["comfy", "k-diffusion"])
@pytest.mark.parametrize(("steps", "rho"), [(4, 0.4), (1, 1.0), (3, 0.9)])
def test_trained_levels_only_are_asked_about(make, steps, rho):
    trained = set(Discrete.sigmas.double().tolist())
    first = Discrete.sigmas[-1].item()
    levels = asked_levels(make(), [first, *EPS_SIGMAS[1:]], steps=steps, rho=rho)
    assert len(levels) == 10 and set(levels) <= trained
    for i in range(0, 10, steps):  # where a transition starts, the nearest to what was given
        off = abs(math.log(levels[i] / [first, *EPS_SIGMAS[1:]][i]))
        assert off <= 0.52 * math.log(14.6146 / 0.0292) / 999


def test_the_first_and_the_last_level_are_those_given():
    """x is at the first, and must be at the last: neither can be moved."""
    model, noise = Model(Discrete()), Recorded(normals(2, 3))
    given = [3.0001, 1.0, 0.5, 0.30001]
    sample_glass(model, 3 * normals(2, 3), given, steps=1, noise_sampler=noise)
    assert model.asked[0][1] == 3.0001
    assert noise.ends[-1][1] == pytest.approx(0.30001, abs=1e-15)
    assert model.asked[1][1] != 1.0  # but this one was


class Shares(Continuous):
    """A clock from 0 to 1, which meets the number of the first level only."""

    def timestep(self, sigma):
        return (sigma / self.sigmas[0]).log() / (self.sigmas[-1] / self.sigmas[0]).log()


@pytest.mark.parametrize(
    "sampling", [Flow(), Continuous(), Shares()], ids=lambda s: type(s).__name__
)
def test_a_list_of_levels_that_nobody_counts_is_no_table(sampling):
    given = levels_of(sampling)
    assert asked_levels(Model(sampling), given, steps=1, rho=1.0) == given[:-1]


def test_nothing_is_asked_below_the_lowest_level_of_a_model():
    given = [14.6, 5.0, 1.0, 0.3, 0.05, 0.04, 0.03, 0.0]
    assert min(asked_levels(Model(Continuous()), given, steps=4)) > 0.0291
    silent = Model(Sampling())  # has no list
    assert min(asked_levels(silent, given, steps=4)) < 0.028


# --- whose noise, and how it is mixed in ----------------------------------------------------------


def test_noise_does_not_depend_on_the_batch():
    x, extra = start_of(Flow()), {"seed": 7}
    whole = sample_glass(Model(Flow()), x, FLOW_SIGMAS, extra)
    part = sample_glass(Model(Flow()), x[:2], FLOW_SIGMAS, extra)
    assert torch.allclose(whole[:2], part, rtol=0, atol=1e-12)
    twins = sample_glass(Model(Flow()), x[:1].repeat(2, 1), FLOW_SIGMAS, extra)
    assert (twins[0] - twins[1]).abs().max() > 1e-3  # rows have noise of their own


def test_every_seed_of_64_bits_is_another():
    x = start_of(Flow(), 2)
    seeds = [0, 1, 2**63 - 1, 2**63, 2**64 - 1, torch.tensor(1)]
    ends = [sample_glass(Model(Flow()), x, FLOW_SIGMAS, {"seed": s}) for s in seeds]
    assert torch.equal(ends[1], ends.pop())
    for i, one in enumerate(ends):
        assert all((one - other).abs().max() > 1e-3 for other in ends[:i])
    with pytest.raises(InvalidArgument, match="seed must be"):
        sample_glass(Model(Flow()), x, FLOW_SIGMAS, {"seed": 2**64})
    torch.manual_seed(0)
    drawn = sample_glass(Model(Flow()), x, FLOW_SIGMAS)
    torch.manual_seed(0)
    assert torch.equal(drawn, sample_glass(Model(Flow()), x, FLOW_SIGMAS, {"seed": None}))


@pytest.mark.parametrize("seed", [5, 2**62 + 1, 2**63 + 5])
def test_noise_is_that_of_the_seed_and_of_the_level_given(seed):
    """x' = σ' ε of a model that answers 0, with ρ = 0; the level in between is moved to a trained
    one. Seeds above 63 bits are a second draw."""
    source, draw = KeyedNoise(seed % 2**63), int(seed >= 2**63)
    silent = types.SimpleNamespace(model_sampling=Discrete())
    model = types.SimpleNamespace(inner_model=silent)
    x = normals(2, 3)
    for given in ([9.0, 3.0], [9.0, 5.001, 3.0]):
        end = sample_glass(
            Zeros(model), x, given, {"seed": seed}, steps=1, rho=0.0, solver="first-order"
        )
        noise = source(key_of(given[-2]), x, SINGLE, draw)
        torch.testing.assert_close(end, 3.0 * noise, rtol=0, atol=1e-12)


class Zeros:
    """A model that answers 0, around another."""

    def __init__(self, inner_model):
        self.inner_model = inner_model

    def __call__(self, x, sigma, seed=None):
        return 0 * x


def test_models_within_models_are_looked_into_to_a_depth_of_four():
    known = types.SimpleNamespace(model_sampling=Flow())
    for _ in range(2):
        known = Zeros(known)
    x = normals(2, 3)
    assert sample_glass(Zeros(known), x, [0.5, 0.0], {"seed": 0}, steps=1).shape == x.shape
    with pytest.raises(InvalidArgument, match="does not say how noise is mixed in"):
        sample_glass(Zeros(Zeros(known)), x, [0.5, 0.0], {"seed": 0}, steps=1)


def test_levels_above_one_are_of_no_flow_but_for_rounding():
    x, silent = normals(2, 3), Zeros(None)
    for level in (1.0, 1.0 + 1e-6):
        sample_glass(silent, x, [level, 0.5, 0.0], steps=1, flow=True)
        with pytest.raises(InvalidArgument, match="does not say how noise is mixed in"):
            sample_glass(silent, x, [level, 0.5, 0.0], steps=1)
    for level in (1.00001, 1.5):
        sample_glass(silent, x, [level, 0.5, 0.0], steps=1)
        with pytest.raises(InvalidArgument, match=f"flow's sigmas are at most 1, got {level}"):
            sample_glass(silent, x, [level, 0.5, 0.0], steps=1, flow=True)


@pytest.mark.parametrize("sampling", [Sampling(), Flow(1.7)], ids=["eps", "flow"])
def test_a_schedule_that_is_cut_between_transitions_is_the_whole(sampling):
    sigmas, x = levels_of(sampling), start_of(sampling)
    whole = sample_glass(Model(sampling), x, sigmas, {"seed": 1}, steps=3)
    for cut in (3, 6):
        half = sample_glass(Model(sampling), x, sigmas[: cut + 1], {"seed": 1}, steps=3)
        both = sample_glass(Model(sampling), half, sigmas[cut:], {"seed": 1}, steps=3)
        assert torch.allclose(both, whole, rtol=0, atol=1e-9)


@pytest.mark.parametrize("rho", [0.4, "ddpm"])
def test_a_cut_between_trained_levels_has_the_noise_of_the_whole(rho):
    """The cut is at the level given, the whole one at the nearest trained, at most 0.31 % off."""
    sampling, x = Discrete(), start_of(Discrete())
    settings = {"extra_args": {"seed": 1}, "steps": 3, "rho": rho}
    whole = sample_glass(Model(sampling), x, EPS_SIGMAS, **settings)
    half = sample_glass(Model(sampling), x, EPS_SIGMAS[:4], **settings)
    both = sample_glass(Model(sampling), half, EPS_SIGMAS[3:], **settings)
    assert 0.0 < (both - whole).abs().max() < 0.05
    other = sample_glass(
        Model(sampling), half, EPS_SIGMAS[3:], **{**settings, "extra_args": {"seed": 2}}
    )
    assert (other - whole).abs().max() > 0.5


def test_less_than_two_levels_are_nothing_to_do():
    x = start_of(Flow())
    assert sample_glass(Model(Flow()), x, [0.5]) is x
    assert sample_glass(Model(Flow()), x, torch.zeros(0)) is x
    model = Model(Flow())
    end = sample_glass(model, x, [1.0, 0.0], steps=1)
    torch.testing.assert_close(end, model(x, x.new_ones(6)), rtol=0, atol=1e-12)


def test_a_noise_sampler_is_never_asked_down_to_zero():
    """Brownian paths of k-diffusion begin at the lowest level above 0."""
    noise = Recorded(normals(2, 3))
    sample_glass(Model(Sampling()), 14 * normals(2, 3), EPS_SIGMAS, noise_sampler=noise)
    assert noise.ends == [(14.6, 1.9), (1.9, 0.2), (0.2, 0.08)]
    sample_glass(Model(Sampling()), 14 * normals(2, 3), EPS_SIGMAS, noise_sampler=noise,
                 steps=1, solver="euler-maruyama", rho=None)  # fmt: skip
    assert noise.ends[-2:] == [(0.2, 0.08), (0.08, 0.0)]  # but where nothing is lower


def forge(sampling):
    linker = types.SimpleNamespace(predictor=sampling, sigma_to_t=sampling.timestep)
    return types.SimpleNamespace(inner_model=linker)


@pytest.mark.parametrize("sampling", [Discrete(), Flow(), Flow(1.7)])
def test_forge_and_comfy_say_how_noise_is_mixed_in(sampling):
    x, sigmas = start_of(sampling), levels_of(sampling)
    told = sample_glass(Model(sampling), x, sigmas, {"seed": 0})
    model = Model(sampling)
    model.inner_model = forge(sampling)
    assert torch.equal(sample_glass(model, x, sigmas, {"seed": 0}), told)
    flow = isinstance(sampling, Flow)
    assert torch.equal(sample_glass(model, x, sigmas, {"seed": 0}, flow=flow), told)
    with pytest.raises(InvalidArgument, match="leave flow out"):
        sample_glass(model, x, sigmas, {"seed": 0}, flow=not flow)


def test_a_model_that_says_nothing_is_known_by_its_levels_or_told():
    x = start_of(Sampling())
    silent = lambda x, sigma: Model(Sampling())(x, sigma)  # noqa: E731
    told = sample_glass(silent, x, EPS_SIGMAS, flow=False, rho="ode")
    assert torch.equal(sample_glass(silent, x, EPS_SIGMAS, rho="ode"), told)
    with pytest.raises(InvalidArgument, match=r"give flow=True for .* flow=False for"):
        sample_glass(silent, x, EPS_SIGMAS[6:])
    with pytest.raises(InvalidArgument, match="a flow's sigmas are at most 1"):
        sample_glass(silent, x, EPS_SIGMAS, flow=True)
    for signal, noise in ((1.0, 0.0), (0.5, 0.0), (0.5, -0.5), (1.0, 0.25)):
        other = Model(Sampling())
        other.inner_model.inner_model.model_sampling = types.SimpleNamespace(
            noise_scaling=lambda s, eps, z, mix=(signal, noise): mix[0] * z + mix[1] * eps
        )
        with pytest.raises(InvalidArgument, match=f"mixes {signal:g} z"):
            sample_glass(other, x, EPS_SIGMAS)


# --- starts ---------------------------------------------------------------------------------------


def test_a_pure_start_is_an_ode_and_only_at_the_highest_level():
    x, noise = 14.6 * normals(6, 3), Recorded(normals(6, 3))
    sigmas = [Discrete.sigmas[-1].item(), *EPS_SIGMAS[1:]]
    sample_glass(Model(Discrete()), x, sigmas, start="pure", noise_sampler=noise)
    assert len(noise.ends) == 2
    with pytest.raises(InvalidArgument, match=r"below the model's 14.6146: use start='trained'"):
        sample_glass(Model(Discrete()), x, EPS_SIGMAS[2:], start="pure")
    with pytest.raises(InvalidArgument, match=r"begin at 0.88, below the model's 1: use"):
        sample_glass(lambda x, s: x, x, FLOW_SIGMAS[2:], flow=True, start="pure")  # without a list
    least = 1.0 * (1.0 - 1e-4)
    sample_glass(lambda x, s: x, x, [least, 0.5, 0.0], flow=True, start="pure", steps=1)
    with pytest.raises(InvalidArgument, match="below the model's 1: use"):
        sample_glass(lambda x, s: x, x, [0.99989, 0.5, 0.0], flow=True, start="pure", steps=1)


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "message"),
    [
        ({"sigmas": [1.0, 0.5, 0.5, 0.0]}, InvalidArgument, "must fall, got 0.5 and then 0.5 at 1"),
        ({"sigmas": [0.0, 0.5, 1.0]}, InvalidArgument, "must fall"),
        ({"sigmas": [1.0, -0.1]}, InvalidArgument, r"sigmas\[1\] must be finite and >= 0"),
        ({"sigmas": [math.inf, 0.0]}, InvalidArgument, r"sigmas\[0\] must be finite"),
        ({"sigmas": torch.ones(2, 2)}, InvalidArgument, "a list of falling numbers"),
        ({"sigmas": 1.0}, InvalidArgument, "a list of falling numbers"),
        ({"steps": 11}, InvalidArgument, "11 sigmas are 10 in all: steps must be at most that"),
        ({"steps": 0}, InvalidArgument, "steps must be an integer >= 1"),
        ({"rho": 1.5}, InvalidArgument, r"rho must lie in \[-1, 1\]"),
        ({"rho": [0.4, 0.4]}, InvalidArgument, "rho lists 2 values for 3 transitions"),
        ({"solver": "euler-maruyama"}, InvalidArgument, "pass rho=None"),
        ({"flow": "yes"}, InvalidArgument, "flow must be"),
        ({"noise_sampler": 3}, InvalidArgument, "noise_sampler must be"),
        ({"callback": "x"}, InvalidArgument, "callback must be"),
        ({"disable": "yes"}, InvalidArgument, "disable must be"),
        ({"extra_args": ["seed", 0]}, InvalidArgument, "extra_args must be a mapping"),
        ({"eta": 1.0}, InvalidArgument, "rho='ddim:ETA'"),
        ({"x": [1.0]}, ShapeError, "x must be a tensor"),
        ({"start": "pure", "solver": "paper", "sampling": Discrete()}, PlanError, "start='pure'"),
    ],
)
def test_what_cannot_act_is_refused_before_the_model_is_asked(given, error, message):
    sampling = given.pop("sampling", Flow())
    model = Model(sampling)
    sigmas = FLOW_SIGMAS if isinstance(sampling, Flow) else [15.0, 3.0, 1.0, 0.4, 0.2, 0.0]
    with pytest.raises(error, match=message) as caught:
        sample_glass(**{"model": model, "x": normals(2, 3), "sigmas": sigmas, **given})
    assert not model.asked and "\n" not in str(caught.value)


def test_answers_that_are_none():
    x = start_of(Flow())
    with pytest.raises(ShapeError, match="what the model returned"):
        sample_glass(lambda x, s: None, x, FLOW_SIGMAS, flow=True)
    with pytest.raises(ShapeError, match="must return a tensor like its input"):
        sample_glass(lambda x, s: x[:, :2], x, FLOW_SIGMAS, flow=True)
    with pytest.raises(NonFinite, match="NaN"):
        sample_glass(lambda x, s: x * math.nan, x, FLOW_SIGMAS, flow=True)
    with pytest.raises(ShapeError, match="what noise_sampler returned"):
        sample_glass(Model(Flow()), x, FLOW_SIGMAS, noise_sampler=lambda a, b: None)


# --- memory and precision -------------------------------------------------------------------------


def test_models_may_write_to_what_they_are_given_and_use_their_memory_again():
    x = start_of(Flow())
    memory = torch.empty_like(x)

    def careless(y, sigma, seed):
        memory.copy_(Model(Flow())(y, sigma))
        y.zero_()
        return memory

    before = x.clone()
    ours = sample_glass(careless, x, FLOW_SIGMAS, {"seed": 0}, flow=True)
    assert torch.equal(ours, sample_glass(Model(Flow()), x, FLOW_SIGMAS, {"seed": 0}))
    assert torch.equal(x, before)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_the_models_and_not_the_states(dtype):
    """The state is kept in float32: the end is as near as the answers are."""
    x = start_of(Flow(), 200, torch.float32).to(dtype)

    def asked(y, sigma, seed):
        assert y.dtype == sigma.dtype == dtype
        return Model(Flow())(y, sigma)

    ours = sample_glass(asked, x, FLOW_SIGMAS, {"seed": 0}, flow=True)
    exact = sample_glass(Model(Flow()), x.double(), FLOW_SIGMAS, {"seed": 0})
    assert ours.dtype == dtype
    assert (ours.double() - exact).abs().median() < 4 * torch.finfo(dtype).eps


def test_no_graph_is_kept():
    x = start_of(Flow()).requires_grad_()
    assert not sample_glass(Model(Flow()), x, FLOW_SIGMAS).requires_grad


# --- masks ----------------------------------------------------------------------------------------

KEPT, FREE = 60, 4
MASK = (torch.arange(KEPT + FREE) >= KEPT).to(F64)[None]
STRIPES = GaussianMixture(
    torch.linspace(-2, 2, 9, dtype=F64)[:, None].expand(9, KEPT + FREE).contiguous(), std=0.25
)
"""Sixty-four pixels of one of nine greys: the four of a hole must continue the sixty around it."""


class Blended(Model):
    """A1111's way: a mask of its own, and the answer alone is blended."""

    mask = 1 - MASK

    def __call__(self, x, sigma, seed=None):
        D = super().__call__(x, sigma)
        return MASK * D + (1 - MASK) * self.latent


def filled(sampling, kind="comfy", told=1.0, sampler=sample_glass, batch=800):
    """A hole filled, in 48 evaluations; and what was around it."""
    if isinstance(sampling, Flow):
        sigmas = [1 - i / 48 for i in range(49)]
    else:
        ends = 20.0 ** (1 / 7), 0.02 ** (1 / 7)
        sigmas = [(ends[0] + i / 47 * (ends[1] - ends[0])) ** 7 for i in range(48)] + [0.0]
    latent, noise = STRIPES.sample(batch, seed=4), normals(batch, KEPT + FREE, seed=5)
    first = torch.full((batch,), sigmas[0], dtype=F64)
    model = {"comfy": Model, "a1111": Blended}[kind](sampling, STRIPES, latent, noise, told)
    x = sampling.noise_scaling(first, noise, latent)
    if kind == "a1111":
        return sample_glass(model, x, sigmas, {"seed": 0}), latent
    return sample_glass(model, x, sigmas, {"seed": 0, "denoise_mask": MASK}), latent


def seam_p_values(end, latent):
    """Of the step of the mean grey from outside into the hole, and of the spread within it.

    Given the grey, which sixty pixels tell, pixels are N(grey, 0.25²): the step is
    N(0, 0.25² (1/4 + 1/60)).
    """
    step = end[:, KEPT:].mean(1) - latent[:, :KEPT].mean(1)
    within = end[:, KEPT:].var(1, correction=0) * FREE
    powers = {
        step.square().sum().item() / (0.25**2 * (1 / FREE + 1 / KEPT)): len(end),
        within.sum().item() / 0.25**2: len(end) * (FREE - 1),
    }
    shares = [stats.chi2.cdf(power, freedom) for power, freedom in powers.items()]
    return [2 * min(share, 1 - share) for share in shares]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "sampling"),
    [
        pytest.param("comfy", Sampling(), id="comfy-eps"),
        pytest.param("a1111", Flow(), id="a1111-flow"),
        pytest.param("comfy", Flow(), id="comfy-flow", marks=pytest.mark.slow),
        pytest.param("a1111", Sampling(), id="a1111-eps", marks=pytest.mark.slow),
    ],
)
def test_a_mask_keeps_what_is_kept_and_shows_no_seam(sampling, kind):
    end, latent = filled(sampling, kind)
    assert torch.equal(end[:, :KEPT], latent[:, :KEPT])  # to the last bit
    assert accept(seam_p_values(end, latent))


@pytest.mark.parametrize("sampling", [Flow()], ids=["flow"])
def test_a_seam_would_be_seen(sampling):
    """If queries had 5/4 of the noise that the model is told of."""
    assert min(seam_p_values(*filled(sampling, told=0.8))) < 1e-9


def test_a_solver_that_would_not_keep_it_is_refused():
    x = normals(2, KEPT + FREE)
    model = Model(Flow(), STRIPES, x, x)
    for solver in ("default", "paper:s_range=0.001,0.999"):
        with pytest.raises(InvalidArgument, match="use solver='second-order', start='trained'"):
            sample_glass(model, x, FLOW_SIGMAS, {"denoise_mask": MASK}, solver=solver)
    with pytest.raises(InvalidArgument, match="under a mask"):
        sample_glass(Blended(Flow(), STRIPES, x, x), x, FLOW_SIGMAS, solver="default")
    assert not model.asked
    eps, start = Model(Sampling(), STRIPES, x, x), {"start": "pure", "solver": "second-order"}
    with pytest.raises(InvalidArgument, match="with start='pure' does not promise"):
        sample_glass(eps, x, EPS_SIGMAS, {"denoise_mask": MASK}, **start)  # by its first transition
    assert not eps.asked
    sample_glass(model, x, FLOW_SIGMAS, {"denoise_mask": MASK}, solver="first-order")
    sample_glass(model, x, FLOW_SIGMAS, {"denoise_mask": None}, solver="default")


# --- the contract and the page --------------------------------------------------------------------


def test_it_is_called_as_samplers_of_k_diffusion_are():
    parameters = inspect.signature(sample_glass).parameters
    positional = [n for n, p in parameters.items() if p.kind is p.POSITIONAL_OR_KEYWORD]
    assert positional == ["model", "x", "sigmas", "extra_args", "callback", "disable"]
    assert "noise_sampler" in parameters


def node_files():
    """The files of the node, as the page shows them."""
    found = re.findall(r"^`(\S+)`:\n\n```(?:text|toml)\n(.*?)^```", PAGE.read_text(), re.S | re.M)
    return dict(found)


def test_the_node_of_the_page_registers_a_sampler_that_samples(monkeypatch, tmp_path):
    files = node_files()
    assert set(files) == {"__init__.py", "nodes.py", "pyproject.toml"}
    package = tmp_path / "comfyui_glass"
    package.mkdir()
    for name, text in files.items():
        (package / name).write_text(text)

    class KSAMPLER:
        def __init__(self, function, extra_options):
            self.function, self.extra_options = function, extra_options

    sampling = types.ModuleType("comfy.k_diffusion.sampling")
    samplers = types.ModuleType("comfy.samplers")
    samplers.KSAMPLER, samplers.KSampler = KSAMPLER, types.SimpleNamespace(SAMPLERS=["euler"])
    for name in ("comfy", "comfy.k_diffusion"):
        monkeypatch.setitem(sys.modules, name, types.ModuleType(name))
    monkeypatch.setitem(sys.modules, "comfy.samplers", samplers)
    monkeypatch.setitem(sys.modules, "comfy.k_diffusion.sampling", sampling)
    sys.modules["comfy.k_diffusion"].sampling = sampling
    sys.modules["comfy"].samplers = samplers
    monkeypatch.syspath_prepend(str(tmp_path))
    node = __import__("comfyui_glass")
    for name in ("comfyui_glass", "comfyui_glass.nodes"):
        monkeypatch.delitem(sys.modules, name)
    assert samplers.KSampler.SAMPLERS == ["euler", "glass"]
    assert sampling.sample_glass is sample_glass
    ((name, cls),) = node.NODE_CLASS_MAPPINGS.items()
    assert set(node.NODE_DISPLAY_NAME_MAPPINGS) == {name}
    kinds = cls.INPUT_TYPES()["required"]
    given = {key: options[1]["default"] for key, options in kinds.items()}
    assert cls.RETURN_TYPES == ("SAMPLER",)
    (made,) = getattr(cls(), cls.FUNCTION)(**given)
    x = start_of(Flow())
    ours = made.function(Model(Flow()), x, FLOW_SIGMAS, extra_args={"seed": 0}, callback=None,
                         disable=True, **made.extra_options)  # fmt: skip
    assert torch.equal(ours, sample_glass(Model(Flow()), x, FLOW_SIGMAS, {"seed": 0}))


def test_a_model_is_a_function():
    with pytest.raises(InvalidArgument, match=r"model must be a function model\(x, sigma"):
        sample_glass(normals(2, 3), normals(2, 3), [2.0, 1.0], flow=False)
