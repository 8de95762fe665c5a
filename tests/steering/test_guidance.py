"""Reward guidance: exact tilts, gradients, memory, limits, and what it costs within steering."""

from __future__ import annotations

import math
import re
from dataclasses import astuple

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from glass_flows import Denoiser, Guidance, GuidedDenoiser, Twist, plan, sample, steer
from glass_flows.errors import InvalidArgument, NonFinite, RewardError, ShapeError, UnknownName
from glass_flows.jobs import digits_denoiser
from glass_flows.paths import EDM, DiscreteDiffusion, Linear
from glass_flows.rewards import ClassReward, Decoded, FunctionReward
from glass_flows.steering import PosteriorValue, Steering, iterate_steering
from glass_flows.worlds import GaussianMixture, load_digits_classifier
from statistics_rules import LEVEL, PATHS, SAMPLES, accept, covering, law_p_values, time_of

SLOPE = torch.tensor([0.8, -0.5], dtype=torch.float64)
CENTRE = torch.tensor([0.4, 0.1], dtype=torch.float64)
MIXTURE = GaussianMixture(
    torch.tensor([[1.0, 0.4], [-0.9, 0.7], [-0.1, -1.2]], dtype=torch.float64),
    [0.35, 0.5, 0.25],
    [0.5, 0.3, 0.2],
)
REWARDS = {"linear": (SLOPE, 0.0), "quadratic": (0.5 * SLOPE, 1.3)}
EACH_PATH = pytest.mark.parametrize("path", PATHS.values(), ids=PATHS)
THROUGH = pytest.mark.parametrize("through", ["reward", "network"])


def normal(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def states(mixture, path, t, n=40):
    z = mixture.sample(n, seed=1)
    return path.alpha(t) * z + path.sigma(t) * normal(*z.shape, seed=2)


def tilt_of(answer):
    return answer.D - answer.untilted


# --- the exact value function -----------------------------------------------------------------


def exact_value(path, slope, curvature):
    """V_t(x) = log E[exp(b·z - c|z - m|²/2) | x_t = x]: the posterior is a mixture again."""
    means, variances = MIXTURE.means, MIXTURE.stds.square()

    def value(x, t):
        alpha, sigma = path.alpha(t), path.sigma(t)
        total = alpha**2 * variances + sigma**2
        apart = x[:, None] - alpha * means
        fit = MIXTURE.log_weights - 0.5 * apart.square().sum(2) / total - torch.log(total)
        y = means + (alpha * variances / total)[:, None] * apart - CENTRE
        inner = variances * sigma**2 / total
        shrink = 1.0 + curvature * inner
        gain = y @ slope + 0.5 * inner * slope.square().sum() - 0.5 * curvature * y.square().sum(2)
        gain = gain / shrink - torch.log(shrink) + CENTRE @ slope
        return torch.logsumexp(fit + gain, 1) - torch.logsumexp(fit, 1)

    return value


@pytest.mark.parametrize("kind", REWARDS)
@EACH_PATH
def test_the_exact_value_gives_the_denoiser_of_the_tilted_law(path, kind):
    slope, curvature = REWARDS[kind]
    model = MIXTURE.denoiser(path)
    guided = GuidedDenoiser(model, value=exact_value(path, slope, curvature))
    tilted = MIXTURE.tilted(slope, curvature, CENTRE)[0].denoiser(path)
    for amplitude in (0.02, 0.1, 0.4, 1.0, 3.0, 20.0):
        t = time_of(path, amplitude)
        x = states(MIXTURE, path, t)
        answer = guided.estimate(x, t)
        torch.testing.assert_close(answer.D, tilted(x, t), rtol=0, atol=1e-8)
        assert torch.equal(answer.untilted, model(x, t))
        assert torch.equal(guided(x, t), answer.D)
    x = states(MIXTURE, path, 0.0)
    torch.testing.assert_close(guided(x, 0.0), tilted(x, 0.0), rtol=0, atol=2e-3)
    assert torch.equal(guided.estimate(x, 0.0).untilted, model(x, 0.0))


ODE = {"transitions": 1, "steps": 24, "rho": "ode"}
GLASS = {"transitions": 4, "steps": 8, "rho": 0.4}


def p_values_of_guided_samples(kind, sampler, strength):
    slope, curvature = REWARDS[kind]
    value = exact_value(Linear(), slope, curvature)
    guided = GuidedDenoiser(MIXTURE.denoiser(Linear()), value=value, guidance=Guidance(strength))
    options = {"seed": 3, "randomness": "stream", "dtype": torch.float64}
    z = sample(guided, (SAMPLES, 2), **options, **sampler)
    law = MIXTURE.tilted(slope, curvature, CENTRE)[0]
    return law_p_values(z, (law.log_weights.exp(), law.means, law.stds.square()))


@pytest.mark.slow  # that its denoiser is that of the tilted law is shown above, exactly
@pytest.mark.parametrize("kind", ["linear", "quadratic"])
@pytest.mark.parametrize("sampler", [ODE, GLASS], ids=["ode", "glass"])
def test_with_the_exact_value_the_sampler_draws_from_the_tilted_law(kind, sampler):
    assert accept(p_values_of_guided_samples(kind, sampler, 1.0))


@pytest.mark.slow
def test_a_tilt_of_nine_tenths_would_be_found():
    assert p_values_of_guided_samples("linear", ODE, 0.9).min() < LEVEL


@THROUGH
@EACH_PATH
def test_for_gaussian_data_and_a_linear_reward_both_rules_are_the_exact_tilt(path, through):
    data = GaussianMixture(torch.tensor([[0.3, -0.5]], dtype=torch.float64), 0.7)
    guidance = Guidance(through=through, sigma_data=0.7)
    guided = GuidedDenoiser(data.denoiser(path), lambda z: z @ SLOPE, guidance, scale=1.7)
    exact = data.tilted(1.7 * SLOPE)[0].denoiser(path)
    trained = path.trained_times
    early = [path.time(path.amplitude(0.0) + a) for a in (2e-4, 9e-4, 0.01, 0.03)]
    for t in (0.0, *(early if trained is None else trained[1:60:9])):
        x = states(data, path, t)
        torch.testing.assert_close(guided(x, t), exact(x, t), rtol=0, atol=1e-8)
    for amplitude in (0.1, 1.0, 20.0):
        t = time_of(path, amplitude)
        x = states(data, path, t)
        torch.testing.assert_close(guided(x, t), exact(x, t), rtol=0, atol=1e-9)


# --- gradients --------------------------------------------------------------------------------


class Network(torch.nn.Module):
    """Smooth, nonlinear, float64, with a label for every row."""

    def __init__(self, size=3, hidden=7):
        super().__init__()
        self.enter, self.label = normal(size, hidden, seed=1), normal(5, hidden, seed=2)
        self.leave = torch.nn.Parameter(0.4 * normal(hidden, size, seed=3))
        self.rows = []

    def forward(self, x, t, label):
        self.rows.append(len(x))
        assert len(label) == len(t) == len(x)
        hidden = torch.tanh(x @ self.enter + t[:, None] + self.label[label])
        return torch.tanh(hidden @ self.leave) + 0.5 * x


ROWS = 5
LABELS = torch.tensor([1, 2, 3, 4, 2])


def learned(path, prediction="sample", **options):
    return Denoiser(
        Network(),
        path,
        prediction,
        **{
            "conditioning": {"label": LABELS},
            "unconditional": {"label": torch.tensor([0])},
            "guidance_scale": 2.0,
            **options,
        },
    )


def wavy(z):
    return torch.sin(z[:, 0]) * z[:, 1] - 0.3 * z[:, 2].pow(3) + z.sum(1)


def differences(function, x, step=1e-5):
    """The gradient of each row's value, by central differences."""
    result = torch.empty_like(x)
    for i in range(x.shape[1]):
        move = torch.zeros_like(x)
        move[:, i] = step
        result[:, i] = (function(x + move) - function(x - move)) / (2.0 * step)
    return result


@pytest.mark.parametrize("prediction", ["sample", "velocity", "epsilon", "v", "score"])
@pytest.mark.parametrize("path", [PATHS[n] for n in ("linear", "vp", "edm")], ids=lambda p: p.name)
@torch.no_grad()
def test_both_rules_are_the_gradients_they_say(path, prediction):
    model = learned(path, prediction)
    for amplitude in (0.4, 2.0):
        t = time_of(path, amplitude)
        x = normal(ROWS, 3, seed=7)
        D = model(x, t)
        deep = GuidedDenoiser(model, wavy, Guidance(0.6, through="network"), scale=1.5)
        answer = deep.estimate(x, t)
        slope = differences(lambda y: 1.5 * wavy(model(y, t)), x)  # noqa: B023
        expected = 0.6 * path.sigma(t) ** 2 / path.alpha(t) * slope
        torch.testing.assert_close(tilt_of(answer), expected, rtol=1e-6, atol=1e-7)

        shallow = GuidedDenoiser(model, wavy, Guidance(0.6, sigma_data=0.8), scale=1.5)
        other = shallow.estimate(x, t)
        variance = 1 / (1 / 0.8**2 + path.alpha(t) ** 2 / path.sigma(t) ** 2)
        expected = 0.6 * variance * differences(lambda z: 1.5 * wavy(z), D)
        torch.testing.assert_close(tilt_of(other), expected, rtol=1e-6, atol=1e-7)

        for found in (answer, other):  # r and ∇r at the model's own D, without λ
            torch.testing.assert_close(found.untilted, D, rtol=0, atol=1e-14)
            torch.testing.assert_close(found.rewards, wavy(D), rtol=0, atol=1e-13)
            torch.testing.assert_close(found.gradient, differences(wavy, D), rtol=1e-6, atol=1e-7)


def test_near_pure_noise_the_network_is_believed_by_its_amplitude():
    """Shares 1 - exp(-(a/0.03)²) of the gradient through the network; the rest is v λ∇r."""
    path, model = Linear(), learned(Linear())
    guided = GuidedDenoiser(model, wavy, Guidance(0.6, "network", sigma_data=0.8), scale=1.5)
    x = normal(ROWS, 3, seed=7)
    for amplitude in (0.0, 1e-9, 3e-4, 0.01, 0.03, 0.08):
        t = path.time(amplitude)
        answer = guided.estimate(x, t)
        tilt = 0.8**2 / (1 + 0.8**2 * amplitude**2) * answer.gradient
        if amplitude > 1e-6:
            believed = 1 - math.exp(-((amplitude / 0.03) ** 2))
            slope = differences(lambda y: wavy(model(y, t)).detach(), x)  # noqa: B023
            tilt = (1 - believed) * tilt + believed * path.sigma(t) ** 2 / path.alpha(t) * slope
        torch.testing.assert_close(tilt_of(answer), 0.9 * tilt, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(answer.untilted, model(x, t).detach(), rtol=0, atol=1e-14)


@pytest.mark.parametrize("shape", [(), (3,), (1, 3), (3, 1, 1)])
@THROUGH
def test_samples_of_any_shape_are_guided_alike(shape, through):
    model = Denoiser(lambda x, t: torch.tanh(2 * x), Linear(), "sample")
    guidance = Guidance(through=through, clip=0.2)
    x = normal(4, *shape, seed=5)

    def reward(z):
        return z.reshape(4, -1).pow(2).sum(1)

    flat = GuidedDenoiser(model, reward, guidance)(x.reshape(4, -1), 0.5)
    torch.testing.assert_close(GuidedDenoiser(model, reward, guidance)(x, 0.5), flat.view(x.shape))


@pytest.mark.parametrize("options", [{}, {"checkpoint": True}, {"max_batch": 2}], ids=str)
@pytest.mark.parametrize("limit", [None, 1, 2, 4, 5, 9])
def test_chunks_and_checkpoints_change_nothing(limit, options):
    x = normal(ROWS, 3, seed=7)
    reward = FunctionReward(
        lambda z, prompts: torch.stack([wavy(z[i : i + 1])[0] * p for i, p in enumerate(prompts)]),
        takes_prompts=True,
    )
    prompts = [1.0, -2.0, 0.5, 3.0, 0.1]

    def guided(limit, **options):
        guidance = Guidance(through="network", max_batch=limit)
        return GuidedDenoiser(learned(Linear(), **options), reward, guidance, prompts=prompts)

    whole = guided(None).estimate(x, 0.4)
    model = guided(limit, **options)
    parts = model.estimate(x, 0.4)
    for name in ("D", "untilted", "rewards", "gradient"):
        torch.testing.assert_close(getattr(parts, name), getattr(whole, name), rtol=0, atol=1e-12)
    asked = min(limit or ROWS, options.get("max_batch", ROWS))
    assert max(model.denoiser.network.rows) == min(asked, ROWS)
    assert model.denoiser.network.leave.grad is None


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
@pytest.mark.parametrize("kind", ["reward", "network", "value"])
def test_the_tilt_is_the_same_number_in_every_mode(kind, mode):
    model = learned(Linear())
    if kind == "value":
        guided = GuidedDenoiser(model, value=lambda x, t: wavy(x) * (1 + t))
    else:
        guided = GuidedDenoiser(model, wavy, Guidance(through=kind))
    x = normal(ROWS, 3, seed=7)
    expected = guided(x, 0.4)
    with mode():
        found = guided(normal(ROWS, 3, seed=7).requires_grad_(mode is torch.enable_grad), 0.4)
    assert torch.equal(found, expected)
    assert not found.requires_grad


# --- memory -----------------------------------------------------------------------------------


class Watched:
    """A network that knows how many bytes of its activations are alive at any of its calls."""

    def __init__(self):
        self.matrices = [0.3 * normal(4, 64, seed=1), 0.3 * normal(64, 64, seed=2)]
        self.leave = (0.1 * normal(64, 4, seed=3)).requires_grad_()
        self.kept, self.peak, self.calls = [], 0, 0

    def __call__(self, x, t, level=0.0):
        self.calls += 1
        for matrix in self.matrices:
            x = torch.tanh(x @ matrix + level)
            self.kept.append((StorageWeakRef(x.untyped_storage()), x.nbytes))
        alive = sum(size for storage, size in self.kept if not storage.expired())
        self.peak = max(self.peak, alive)
        return x @ self.leave


ROW_BYTES = 2 * 64 * 8  # of one particle in one call


@pytest.mark.parametrize(
    ("limit", "options", "rows"),
    [
        (None, {}, 12),
        (2, {}, 2),
        (1, {}, 1),
        (None, {"guidance_scale": 3.0}, 24),
        (2, {"guidance_scale": 3.0}, 4),
        (None, {"guidance_scale": 3.0, "checkpoint": True}, 12),
        (1, {"guidance_scale": 3.0, "checkpoint": True}, 1),
        (None, {"checkpoint": True, "max_batch": 3}, 3),
        (None, {"max_batch": 3}, 12),
    ],
    ids=str,
)
def test_chunks_and_checkpoints_bound_the_activations_alive(limit, options, rows):
    network = Watched()
    model = Denoiser(network, Linear(), "sample", unconditional={"level": 0.5}, **options)
    guidance = Guidance(through="network", max_batch=limit)
    GuidedDenoiser(model, lambda z: z.sum(1), guidance)(normal(12, 4, seed=4), 0.4)
    assert network.peak == rows * ROW_BYTES


def test_the_reward_alone_keeps_no_activations_of_the_network():
    network = Watched()
    model = Denoiser(network, Linear(), "sample", max_batch=1)
    GuidedDenoiser(model, lambda z: z.sum(1))(normal(12, 4, seed=4), 0.4)
    assert network.peak == 64 * 8  # of one particle, one layer


def test_checkpoints_keep_a_differentiable_sample_at_the_memory_of_one_call():
    gradients, peaks, calls = [], [], []
    for checkpoint in (False, True):
        network = Watched()
        model = Denoiser(network, Linear(), "sample", checkpoint=checkpoint)
        noise = normal(3, 4, seed=5).requires_grad_()
        z = sample(model, noise, transitions=3, steps=2, rho=0.4, seed=0, differentiable=True)
        forward = network.calls
        gradients.append(torch.autograd.grad(z.square().sum(), (noise, network.leave)))
        peaks.append(network.peak // (3 * ROW_BYTES))
        calls.append((forward, network.calls))
    assert peaks == [6, 1]
    assert calls == [(6, 6), (6, 12)]
    for plain, again in zip(*gradients):
        torch.testing.assert_close(again, plain, rtol=0, atol=1e-14)


# --- clip, schedule, limits -------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["reward", "network", "value"])
def test_a_clip_bounds_the_step_in_posterior_deviations_and_keeps_its_direction(kind):
    path, x = Linear(), normal(ROWS, 3, seed=7) * torch.logspace(-3, 1, ROWS).double()[:, None]

    def guided(clip):
        if kind == "value":
            guidance = Guidance(clip=clip, sigma_data=0.6)
            return GuidedDenoiser(
                learned(path), value=lambda x, t: wavy(x) + 2 * x.pow(4).sum(1), guidance=guidance
            )
        guidance = Guidance(through=kind, clip=clip, sigma_data=0.6)
        return GuidedDenoiser(learned(path), lambda z: z.pow(4).sum(1), guidance)

    met = []
    for t in (0.0, 0.02, 0.5, 0.9):
        free, bound = (tilt_of(guided(clip).estimate(x, t)) for clip in (None, 0.7))
        longest = 0.7 / math.sqrt(1 / 0.6**2 + path.amplitude(t) ** 2)
        length = free.norm(dim=1)
        met.extend((length > longest).tolist())
        torch.testing.assert_close(
            bound.norm(dim=1), length.clamp(max=longest), rtol=1e-9, atol=1e-14
        )
        cosine = torch.nn.functional.cosine_similarity(bound, free)
        torch.testing.assert_close(cosine, torch.ones_like(cosine))
    assert {True, False} == set(met)


def test_a_gradient_of_zero_is_not_divided_by():
    guided = GuidedDenoiser(learned(Linear()), lambda z: 0.0 * z.sum(1), Guidance(clip=1.0))
    x = normal(ROWS, 3)
    assert torch.equal(guided(x, 0.3), guided.denoiser(x, 0.3))


@pytest.mark.parametrize("kind", ["reward", "network", "value"])
def test_the_schedule_multiplies_the_strength(kind):
    def guided(schedule, scale=1.5):
        guidance = Guidance(scale, "reward" if kind == "value" else kind, schedule)
        if kind == "value":
            return GuidedDenoiser(learned(Linear()), value=lambda x, t: wavy(x), guidance=guidance)
        return GuidedDenoiser(learned(Linear()), wavy, guidance)

    x = normal(ROWS, 3, seed=7)
    whole = guided(None)
    half = guided(lambda t: torch.tensor(0.5) if t < 0.6 else 0)
    for t in (0.0, 0.3):
        torch.testing.assert_close(
            tilt_of(half.estimate(x, t)), 0.5 * tilt_of(whole.estimate(x, t))
        )
    assert torch.equal(half(x, 0.7), whole.denoiser(x, 0.7))
    for nothing in (guided(None, 0.0), guided(lambda t: 0.0)):  # also where alpha is 0
        for t in (0.0, 1e-4, 0.5):
            assert torch.equal(nothing(x, t), whole.denoiser(x, t))
    assert half.guidance.strength(0.3) == 0.75
    for bad, shown in ((-1.0, "-1.0"), (math.nan, "nan"), (math.inf, "inf"), ("1", "'1'")):
        expected = f"guidance schedule at t = 0.3 must be a finite number >= 0, got {shown}"
        with pytest.raises(InvalidArgument, match=re.escape(expected)):
            guided(lambda t: bad)(x, 0.3)  # noqa: B023


@EACH_PATH
@pytest.mark.parametrize("kind", ["reward", "network", "value"])
def test_the_earliest_times_are_guided_too(path, kind):
    """Where α/σ is under 1e-3, and at all trained times of tables with zero terminal SNR."""
    slope = 0.5 * SLOPE
    if kind == "value":
        guided = GuidedDenoiser(MIXTURE.denoiser(path), value=exact_value(path, slope, 0.0))
    else:
        guided = GuidedDenoiser(
            MIXTURE.denoiser(path), lambda z: z @ slope, Guidance(through=kind, sigma_data=0.9)
        )
    trained = path.trained_times
    early = (0.0, 1e-7, 5e-4) if trained is None else trained[:4]
    tilted = MIXTURE.tilted(slope)[0].denoiser(path)
    for t in early:
        x = states(MIXTURE, path, t)
        answer = guided.estimate(x, t)
        assert torch.isfinite(answer.D).all()
        assert torch.equal(answer.untilted, guided.denoiser(x, t))
        if kind == "value":
            torch.testing.assert_close(answer.D, tilted(x, t), rtol=0, atol=2e-3)
        elif path.amplitude(t) < 1e-3:  # v = 0.81 there
            step = (0.81 * slope).expand_as(x)
            torch.testing.assert_close(tilt_of(answer), step, rtol=0, atol=2e-3)


def test_a_table_whose_first_level_is_far_from_noise_is_guided():
    path = DiscreteDiffusion([0.9, 0.4, 0.0])
    model = Denoiser(lambda x, t: torch.tanh(x), path, "sample", time="timestep")
    x = normal(4, 2)
    for guided in (
        GuidedDenoiser(model, lambda z: z.sum(1), Guidance(through="network")),
        GuidedDenoiser(model, value=lambda x, t: x.sum(1) * t),
    ):
        assert torch.isfinite(guided(x, 0.0)).all()
        assert torch.equal(guided.estimate(x, 0.0).untilted, torch.tanh(x))


def test_where_every_level_is_nearly_noise_the_last_is_asked():
    """None of them has an amplitude of 1e-3."""
    path, told = DiscreteDiffusion([1e-8, 4e-9, 1e-9]), []

    def value(x, t):
        told.append(t)
        return x.sum(1)

    GuidedDenoiser(Denoiser(lambda x, t: x, path, "sample"), value=value)(normal(2, 3), 0.0)
    assert told == [path.trained_times[-1]]
    assert path.timestep(told[0]) == 0.0


@THROUGH
def test_the_data_are_of_deviation_one_unless_it_is_said(through):
    data = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 1.0)
    guided = GuidedDenoiser(data.denoiser(Linear()), lambda z: z @ SLOPE, Guidance(through=through))
    exact = data.tilted(SLOPE)[0].denoiser(Linear())
    for t in (0.0, 0.4, 0.9):
        x = states(data, Linear(), t)
        torch.testing.assert_close(guided(x, t), exact(x, t), rtol=0, atol=1e-8)


@pytest.mark.parametrize("kind", ["reward", "network", "value"])
def test_at_data_nothing_is_asked_and_nothing_moves(kind):
    def never(*given):
        raise AssertionError("asked at sigma = 0")

    model = Denoiser(never, Linear(), "sample")
    if kind == "value":
        guided = GuidedDenoiser(model, value=never)
    else:
        guided = GuidedDenoiser(model, never, Guidance(through=kind))
    x = normal(2, 3)
    assert torch.equal(guided(x, 1.0), x)
    answer = guided.estimate(x, 1.0)
    assert answer.rewards is None
    assert torch.equal(answer.untilted, x)


@pytest.mark.parametrize("kind", ["reward", "network"])
def test_guidance_of_a_guided_denoiser_adds_up(kind):
    """The outer one sees the inner one as its model; in float64 linear rewards just add."""
    path = EDM()
    data = GaussianMixture(torch.zeros(1, 2, dtype=torch.float64), 0.7)
    inner = GuidedDenoiser(
        data.denoiser(path), lambda z: z @ SLOPE, Guidance(through=kind, sigma_data=0.7)
    )
    outer = GuidedDenoiser(inner, lambda z: z[:, 0], Guidance(sigma_data=0.7))
    x = states(data, path, 0.5)
    exact = data.tilted(SLOPE + torch.tensor([1.0, 0.0]).double())[0].denoiser(path)
    torch.testing.assert_close(outer(x, 0.5), exact(x, 0.5))
    torch.testing.assert_close(outer.estimate(x, 0.5).untilted, inner(x, 0.5))
    assert outer.path == path
    assert outer.device is None


# --- within steering --------------------------------------------------------------------------


class Counters:
    """A network, a decoder and a reward that count the particles they are asked about."""

    def __init__(self):
        self.forward = self.backward = self.rewards = self.decodes = 0

    def network(self, x, t, label):
        self.forward += len(x)
        return torch.tanh(_Noticed.apply(x, self) + 0.1 * label)

    def decode(self, z):
        self.decodes += len(z)
        return 2.0 * z

    def score(self, z):
        self.rewards += len(z)
        return z.sin().sum(1)


class _Noticed(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, counters):
        ctx.counters = counters
        return x.clone()

    @staticmethod
    def backward(ctx, gradient):
        ctx.counters.backward += len(gradient)
        return gradient, None


def counted(guidance, **options):
    """(counters, result) of a small steered run of 6 particles, 3 transitions of 2 evaluations."""
    counters = Counters()
    model = {key: options.pop(key) for key in ("guidance_scale", "checkpoint") if key in options}
    denoiser = Denoiser(
        counters.network,
        Linear(),
        "sample",
        conditioning={"label": torch.tensor([[1.0], [2.0]])},
        unconditional={"label": 0.0},
        **model,
    )
    result = steer(
        denoiser,
        Decoded(counters.score, counters.decode),
        shape=(2,),
        scale=1.0,
        particles=3,
        populations=2,
        transitions=3,
        steps=2,
        rho=0.4,
        seed=1,
        guidance=guidance,
        **options,
    )
    return counters, result


GUIDANCES = {
    "none": None,
    "zero": Guidance(0.0, "network"),
    "reward": Guidance(),
    "network": Guidance(through="network"),
    "network in parts": Guidance(through="network", max_batch=2),
    "sometimes": Guidance(through="network", schedule=lambda t: float(t > 0.5)),
}


TAKEN = {"free": {}, "twist": {"twist": 1.0}, "posterior": {"value": PosteriorValue(2, 3)}}


@pytest.mark.parametrize(
    ("guidance", "taken", "w", "checkpoint"),
    covering(GUIDANCES, TAKEN, [1.0, 2.0], [False, True]),
)
def test_the_costs_are_the_true_ones(guidance, taken, w, checkpoint):
    true, result = counted(
        GUIDANCES[guidance], guidance_scale=w, checkpoint=checkpoint, **TAKEN[taken]
    )
    assert result.network_evaluations == true.forward
    assert result.network_gradients == true.backward
    assert result.reward_evaluations == true.rewards
    assert result.decodes == true.decodes == true.rewards


@pytest.mark.parametrize("twist", [0.0, 1.0])
@pytest.mark.parametrize("through", [None, "reward", "network"])
def test_what_guidance_took_is_not_taken_again(through, twist):
    guidance = None if through is None else Guidance(through=through)
    true, _ = counted(guidance, twist=twist)
    batch, calls = 6, 3 * 2
    assert true.forward == batch * calls
    assert true.backward == (batch * calls if through == "network" else 0)
    # without guidance at the two boundaries with noise; with it at every call; once at the end
    assert true.rewards == batch * (1 + (2 if guidance is None else calls))


@THROUGH
def test_values_and_twist_see_the_untilted_estimate(through):
    model = learned(Linear(), conditioning={"label": torch.tensor([2])})
    twist = Twist(adaptive=False, cap=100.0)
    settings = Steering(
        4, 1.3, boundaries=1, ess_threshold=0.0, guidance=Guidance(through=through), twist=twist
    )
    table = plan(Linear(), transitions=3, steps=2, rho=0.4)
    steps = iterate_steering(
        table, model, wavy, settings, shape=(3,), populations=2, seed=1, dtype=torch.float64
    )
    shifted = 0
    for step in steps:
        boundary = step.boundary
        if boundary.final:
            break
        D = model(boundary.x, boundary.t).detach()
        torch.testing.assert_close(boundary.estimate.untilted, D, rtol=0, atol=1e-13)
        torch.testing.assert_close(step.rewards.flatten(), wavy(D), rtol=0, atol=1e-12)
        assert not torch.allclose(boundary.D, D, rtol=0, atol=1e-3)
        assert torch.equal(boundary.D, boundary.estimate.D)
        if boundary.stochastic:
            slope = differences(lambda z: 1.3 * wavy(z), D)
            expected = twist.shift(boundary.transition, table.path, slope)
            torch.testing.assert_close(boundary.delta, expected, rtol=1e-6, atol=1e-7)
            shifted += 1
    assert shifted == 2


@THROUGH
def test_a_posterior_value_draws_from_the_model_itself(through):
    """Neither its draws nor their first evaluation are tilted."""
    model = MIXTURE.denoiser(Linear())

    def steps(guidance):
        settings = Steering(
            5, boundaries=1, ess_threshold=0.0, guidance=guidance, value=PosteriorValue(2, 3)
        )
        table = plan(Linear(), transitions=1, steps=4, rho=0.4, times=[0.0, 1.0])
        return list(
            iterate_steering(
                table, model, lambda z: z @ SLOPE, settings, shape=(2,), seed=1,
                dtype=torch.float64,
            )
        )  # fmt: skip

    plain, guided = steps(None), steps(Guidance(through=through))
    torch.testing.assert_close(plain[0].rewards, guided[0].rewards, rtol=0, atol=1e-12)
    assert not torch.allclose(plain[1].rewards, guided[1].rewards)


@pytest.mark.parametrize("guidance", GUIDANCES.values(), ids=GUIDANCES)
def test_the_result_says_that_guidance_biases_it(guidance):
    biases = counted(guidance)[1].biases
    if guidance is None or guidance.scale == 0.0:
        assert biases == ()
    else:
        (reason,) = biases
        assert "guidance tilts the proposal" in reason


def test_what_a_call_asks_for():
    """Forward and backward passes, rewards and decodings."""
    model = Denoiser(lambda x, t: x, Linear(), "sample")
    decoded = Decoded(wavy, lambda z: z)

    def asks(*given, **options):
        one = GuidedDenoiser(model, *given, **options)
        return astuple(one.costs_per_call)

    assert asks(value=lambda x, t: x.sum(1)) == (1, 0, 0, 0)
    assert asks(wavy) == (1, 0, 1, 0)
    assert asks(decoded) == (1, 0, 1, 1)
    assert asks(decoded, Guidance(through="network")) == (1, 1, 1, 1)


def test_guidance_of_no_strength_is_no_guidance():
    none, zero = counted(None)[1], counted(Guidance(0.0, "network"))[1]
    assert torch.equal(none.samples, zero.samples)
    assert torch.equal(none.log_evidence, zero.log_evidence)


@pytest.mark.slow
@pytest.mark.parametrize("through", [pytest.param("reward", marks=pytest.mark.slow), "network"])
def test_guidance_raises_the_reward_of_a_learned_model(through):
    reward, judge = (ClassReward(load_digits_classifier(n), 8) for n in ("reward", "judge"))

    def run(guidance):
        result = steer(
            digits_denoiser(), reward, shape=(1, 8, 8), particles=4, populations=24, transitions=4,
            steps=3, rho=0.4, ess_threshold=0.5, guidance=guidance, seed=2,
        )  # fmt: skip
        with torch.no_grad():
            return result.rewards.mean().item(), judge(result.samples.flatten(0, 1)).mean().item()

    plain = run(None)
    guided = run(Guidance(through=through, sigma_data=0.7))
    # measured: from -1.9 and -2.1 to about -0.8 and -1.1; standard error about 0.2
    assert guided[0] > plain[0] + 0.4
    assert guided[1] > plain[1] + 0.4


def test_a_guided_denoiser_of_ones_own_is_steered_with_its_prompts_spread():
    reward = FunctionReward(
        lambda z, prompts: z @ SLOPE * torch.tensor(prompts, dtype=z.dtype), takes_prompts=True
    )
    model = MIXTURE.denoiser(Linear())
    guided = GuidedDenoiser(model, reward, Guidance(sigma_data=0.5), prompts=[4.0, -4.0])
    spread = guided.spread(2, 3)
    assert list(spread.prompts) == [4.0] * 3 + [-4.0] * 3
    x = normal(6, 2)
    tilt = tilt_of(spread.estimate(x, 0.4)) @ SLOPE
    assert (tilt[:3] > 0).all()
    assert (tilt[3:] < 0).all()
    with pytest.raises(InvalidArgument, match="one prompt for each of its 3 populations, got 2"):
        guided.spread(3, 3)
    assert GuidedDenoiser(model, lambda z: z.sum(1)).spread(3, 3).prompts is None


# --- bad input --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"through": "netwrk"}, UnknownName, "guidance through 'netwrk'. Did you mean 'network'"),
        ({"through": None}, UnknownName, "'network', 'reward'"),
        ({"scale": -1.0}, InvalidArgument, "Guidance scale must be a finite number >= 0, got -1.0"),
        ({"scale": math.nan}, InvalidArgument, "got nan"),
        ({"scale": math.inf}, InvalidArgument, "got inf"),
        ({"scale": "1"}, InvalidArgument, "got '1'"),
        ({"clip": 0.0}, InvalidArgument, "clip must be a finite number > 0, got 0.0"),
        ({"clip": math.nan}, InvalidArgument, "clip .* got nan"),
        ({"sigma_data": 0}, InvalidArgument, "sigma_data must be a finite number > 0, got 0"),
        ({"sigma_data": math.inf}, InvalidArgument, "sigma_data"),
        (
            {"schedule": 0.5},
            InvalidArgument,
            "Guidance schedule must be a function of t, or None, got 0.5",
        ),
        ({"max_batch": 0}, InvalidArgument, "Guidance max_batch must be an integer >= 1, got 0"),
    ],
)
def test_bad_settings_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        Guidance(**arguments)


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        ({}, "a reward or by a value function, one of them"),
        ({"reward": wavy, "value": lambda x, t: x.sum(1)}, "one of them"),
        ({"reward": wavy, "scale": -1.0}, r"scale \(lambda\) must be a finite number >= 0"),
        ({"reward": 3.0}, "a reward must be"),
        ({"value": lambda x, t: x.sum(1), "scale": 2.0}, r"log units .* Guidance\(scale=...\)"),
        ({"value": lambda x, t: x.sum(1), "prompts": ["a"]}, "belong to a reward"),
        (
            {"reward": FunctionReward(wavy, "judge", differentiable=False)},
            "the reward 'judge' has none .* steering without guidance",
        ),
        ({"denoiser": torch.tanh, "reward": wavy}, "wrap a network as glass_flows.Denoiser"),
    ],
)
def test_bad_guided_denoisers_are_named(arguments, match):
    with pytest.raises(InvalidArgument, match=match):
        GuidedDenoiser(**{"denoiser": MIXTURE.denoiser(Linear()), **arguments})


def ignoring(network):
    """A module, so that its output has a graph, to its parameters only."""

    class Ignoring(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(1, dtype=torch.float64))

        def forward(self, x, t):
            return network(x) * self.weight

    return Ignoring()


@pytest.mark.parametrize(
    "network",
    [torch.no_grad()(lambda x, t: 2 * x), ignoring(torch.Tensor.detach)],
    ids=["no_grad", "detached"],
)
def test_networks_without_a_gradient_are_named(network):
    model = Denoiser(network, Linear(), "sample")
    guided = GuidedDenoiser(model, lambda z: z.sum(1), Guidance(through="network"))
    with pytest.raises(InvalidArgument, match=r"under no_grad.*Use Guidance\(through='reward'\)"):
        guided(normal(2, 3), 0.5)
    GuidedDenoiser(model, lambda z: z.sum(1))(normal(2, 3), 0.5)


@THROUGH
def test_rewards_without_a_gradient_are_named(through):
    guided = GuidedDenoiser(
        learned(Linear()), FunctionReward(torch.no_grad()(wavy), "r"), Guidance(through=through)
    )
    with pytest.raises(RewardError, match=r"reward 'r' does not depend .* at t = 0.5 \(guidance\)"):
        guided(normal(ROWS, 3), 0.5)


def test_a_part_of_the_batch_is_named_in_errors():
    def bad(z):
        return torch.where(z[:, 0] > 50.0, math.nan, z.sum(1))

    model = Denoiser(lambda x, t: x * 1.0, Linear(), "sample")
    x = torch.zeros(6, 3)
    x[3] = 100.0
    for limit, match in (
        (None, r"at t = 0.5 \(guidance\) for particles \[3\] \(1 of 6\)"),
        (2, r"at t = 0.5 \(guidance\), rows 2 to 3 for particles \[1\] \(1 of 2\)"),
    ):
        guided = GuidedDenoiser(model, bad, Guidance(through="network", max_batch=limit))
        with pytest.raises(NonFinite, match=match):
            guided(x, 0.5)


@pytest.mark.parametrize(
    ("value", "error", "match"),
    [
        (lambda x, t: x, ShapeError, r"shape \(4,\) that depends on x .* got \(4, 3\) at t = 0.5"),
        (lambda x, t: x.sum(), ShapeError, r"got \(\)"),
        (lambda x, t: 1.0, ShapeError, "got float"),
        (lambda x, t: x.detach().sum(1), ShapeError, "differentiably"),
        (torch.no_grad()(lambda x, t: x.sum(1)), ShapeError, "differentiably"),
        (lambda x, t: torch.ones(4, requires_grad=True), ShapeError, "differentiably"),
        (
            lambda x, t: x.sum(1).clamp(min=0.0).sqrt(),
            NonFinite,
            r"value function has NaN or infinity at t = 0.5 for particles \[0, 1, 2, 3\]",
        ),
    ],
)
def test_bad_value_functions_are_named(value, error, match):
    model = Denoiser(lambda x, t: 2 * x, Linear(), "sample")
    with pytest.raises(error, match=match):
        GuidedDenoiser(model, value=value)(torch.zeros(4, 3), 0.5)


def test_prompts_must_be_one_per_row():
    reward = FunctionReward(lambda z, prompts: z.sum(1), "clip score", takes_prompts=True)
    for prompts in (None, ["a"]):
        guided = GuidedDenoiser(learned(Linear()), reward, prompts=prompts)
        with pytest.raises(InvalidArgument, match="'clip score' takes prompts: give a list of 5"):
            guided(normal(ROWS, 3), 0.5)
