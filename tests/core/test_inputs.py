"""What calls take: dtypes, numbers of all sorts, limits, functions that write into their input."""

from __future__ import annotations

import contextlib
import math
import time

import numpy as np
import pytest
import torch

import glass_flows as g
from cases import first
from glass_flows import execute, noise
from glass_flows.errors import InvalidArgument, NonFinite, RewardError, ShapeError
from glass_flows.paths import Linear
from glass_flows.rewards import Cached, Clipped, Decoded, evaluate_with_gradient
from glass_flows.steering import PosteriorValue
from statistics_rules import covering

PLAIN = g.Denoiser(lambda x, t: 0.5 * torch.tanh(x), Linear(), prediction="sample")
SHORT = {"transitions": 3, "steps": 2, "rho": 0.4, "seed": 1}


def reward(z):
    return z.square().sum(1)


def steered(denoiser=PLAIN, reward=reward, **given):
    return g.steer(denoiser, reward, shape=(3,), particles=4, **{**SHORT, **given})


# --- dtypes -------------------------------------------------------------------------------------

STATES = {
    "transition": lambda x: g.transition(PLAIN, x, 0.2, 0.5, rho=0.4, steps=1, seed=0),
    "noise of a transition": lambda x: g.transition(
        PLAIN, torch.ones(4, 3), 0.2, 0.5, rho=0.4, steps=1, noise=x
    ),
    "sample": lambda x: g.sample(PLAIN, x, seed=0),
    "posterior": lambda x: g.posterior(PLAIN, x, 0.3, samples=1, steps=1, seed=0),
    "run": lambda x: execute.run(g.Sampler(2, 1).plan(Linear()), PLAIN, x, noise.KeyedNoise(0)),
    "steer": lambda x: steered(x=x),
    "denoiser": lambda x: PLAIN(x, 0.3),
    "guided": lambda x: g.GuidedDenoiser(PLAIN, reward)(x, 0.3),
    "keyed noise": lambda x: noise.KeyedNoise(0)(0, x),
}
each_state = pytest.mark.parametrize("call", STATES.values(), ids=STATES)


@each_state
@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_a_state_that_is_not_of_real_numbers_is_refused(call, dtype):
    with pytest.raises(ShapeError, match=str(dtype)):
        call(torch.ones(4, 3, dtype=dtype))


@each_state
@pytest.mark.parametrize(
    "given", [torch.ones(4, 3, device="meta"), torch.ones(4, 3).to_sparse(), torch.ones(0, 3)]
)
def test_a_state_without_values_is_refused(call, given):
    with pytest.raises(ShapeError):
        call(given)


@pytest.fixture
def default_dtype():
    before = torch.get_default_dtype()
    yield torch.set_default_dtype
    torch.set_default_dtype(before)


@pytest.mark.parametrize(
    ("default", "expected"),
    [
        (torch.float64, torch.float64),
        (torch.float32, torch.float32),
        (torch.float16, torch.float32),
    ],
)
def test_states_are_of_torchs_default_dtype(default_dtype, default, expected):
    known = g.sample(PLAIN, (4, 3), dtype=expected, **SHORT), steered(dtype=expected)
    other = g.sample(PLAIN, (4, 3), dtype=torch.float64, **SHORT)
    default_dtype(default)
    drawn = g.sample(PLAIN, (4, 3), **SHORT)
    assert drawn.dtype == expected
    assert torch.equal(drawn, known[0])
    assert torch.equal(steered().samples, known[1].samples)
    assert torch.equal(g.sample(PLAIN, (4, 3), dtype=torch.float64, **SHORT), other)


def test_a_complex_answer_of_a_network_is_refused():
    model = g.Denoiser(lambda x, t: x + 0.1j, Linear(), prediction="sample")
    with pytest.raises(ShapeError, match="complex64"):
        model(torch.ones(2, 3), 0.5)


# --- numbers of all sorts -----------------------------------------------------------------------


@pytest.mark.parametrize("one", [np.int64, np.uint8, np.array, torch.tensor])
def test_counts_may_be_of_numpy_and_torch(one):
    assert g.Sampler(one(3), one(2)) == g.Sampler(3, 2)
    assert g.Steering(one(4)) == g.Steering(4)
    plain = g.transition(PLAIN, torch.ones(2, 3), 0.2, 0.5, rho=0.4, steps=2, seed=5)
    other = g.transition(PLAIN, torch.ones(2, 3), 0.2, 0.5, rho=0.4, steps=one(2), seed=one(5))
    assert torch.equal(plain, other)


@pytest.mark.parametrize("one", [np.float64, np.float32, np.array, torch.tensor])
def test_numbers_may_be_of_numpy_and_torch(one):
    assert g.Sampler(rho=one(0.5)) == g.Sampler(rho=0.5)
    assert g.DDIM(one(0.5)) == g.DDIM(0.5)
    assert g.Twist(one(0.5)) == g.Twist(0.5)
    assert g.Guidance(one(0.5)) == g.Guidance(0.5)
    assert g.Steering(scale=one(0.5)) == g.Steering(scale=0.5)
    assert PLAIN.path.alpha(one(0.5)) == 0.5
    assert g.plan(Linear(), transitions=2, steps=1, rho=one(0.5)) == g.Sampler(2, 1, 0.5).plan(
        Linear()
    )


@pytest.mark.parametrize(
    "wrong", [True, np.bool_(True), torch.tensor(True), "0.5", 0.5j, float, None, [], math.nan]
)
def test_what_is_no_number_is_refused(wrong):
    for make in (g.DDIM, g.Twist, g.Guidance, g.grids.Shifted, g.plans.Paper, PLAIN.path.alpha):
        with pytest.raises(InvalidArgument):
            make(wrong)
    for make in (g.grids.Karras, g.paths.EDM, g.plans.Default):
        with pytest.raises(InvalidArgument, match=f"{make.__name__} "):
            make(wrong)


def test_an_unknown_name_is_refused_by_small_objects_too():
    with pytest.raises(InvalidArgument, match=r"unknown setting of Twist 'capp'.*'cap'"):
        g.Twist(capp=1.0)


# --- limits -------------------------------------------------------------------------------------

HUGE = {
    "transitions": lambda: g.Sampler(10**9),
    "steps": lambda: g.Sampler(1, 2**63),
    "both": lambda: g.Sampler(1000, 1000),
    "plan": lambda: g.plan(Linear(), transitions=10**9, steps=1, rho=0.4),
    "rho": lambda: g.Sampler(rho=10**400),
    "scale": lambda: steered(scale=10**400),
    "digits": lambda: steered(scale=10**5000),
    "particles": lambda: g.Steering(10**9),
    "populations": lambda: steered(populations=10**9),
    "shape": lambda: g.sample(PLAIN, (2, 10**6, 10**6)),
    "batch": lambda: g.sample(PLAIN, (10**9, 1)),
    "samples": lambda: g.posterior(PLAIN, torch.ones(8, 3), 0.5, samples=2**24, steps=1),
    "draws": lambda: PosteriorValue(1000, 1000),
    "children": lambda: g.Beam(8, children=2**63),
    "grid": lambda: g.grids.Uniform()(Linear(), 10**9),
    "times": lambda: g.Sampler(2, times=range(10**12)),
}


@pytest.mark.parametrize("call", HUGE.values(), ids=HUGE)
def test_what_would_take_hours_is_refused_at_once(call):
    began = time.process_time()
    with pytest.raises(InvalidArgument) as refused:
        call()
    assert time.process_time() - began < 1.0
    assert len(str(refused.value)) < 1000


def test_what_is_large_and_possible_is_taken():
    assert g.Sampler(1, 100_000).evaluations == 100_000
    assert g.Sampler(100_000, 1).evaluations == 100_000
    assert g.Steering(2**24).particles == 2**24
    assert torch.equal(
        steered(boundaries=2**31 - 1).samples, steered(boundaries=3).samples
    )  # the first only


def test_what_lies_on_another_device_is_named():
    model = g.Denoiser(
        lambda x, t, y: 0.5 * x + y,
        Linear(),
        prediction="sample",
        conditioning={"a": 1, "y": torch.ones(1, 3, device="meta")},
    )
    with pytest.raises((ShapeError, TypeError), match=r"y"):
        model(torch.ones(2, 3), 0.5)


@pytest.mark.parametrize("spoilt", [torch.ones(1, 3), torch.ones(2, 3).double(), None])
def test_a_noise_source_must_answer_with_noise(spoilt):
    with pytest.raises(ShapeError, match="noise"):
        execute.run(
            g.Sampler(3, 1).plan(Linear()), PLAIN, torch.ones(2, 3), lambda *_, **__: spoilt
        )


@pytest.mark.parametrize("index", [-1, 4])
def test_ancestors_beyond_the_batch_are_refused(index):
    table = g.Sampler(2, 1).plan(Linear()).since(1)
    boundary = next(execute.iterate(table, PLAIN, torch.ones(4, 3), noise.KeyedNoise(0)))
    with pytest.raises(InvalidArgument, match=r"0\.\.3"):
        boundary.select(torch.tensor([0, 1, 2, index]))


# --- functions that write into their input ------------------------------------------------------


def in_numpy(z):
    answer = reward(z)
    z.numpy()[:] = 7.0  # no version counter sees this
    return answer


def in_place(z):
    answer = reward(z)
    z.detach().zero_()
    return answer


def spoiling_value(x, t, D):
    answer = D.square().sum(1)
    x.zero_()
    D.zero_()
    return answer


MODES = {
    "plain": contextlib.nullcontext,
    "no_grad": torch.no_grad,
    "inference_mode": torch.inference_mode,
}
each_mode = pytest.mark.parametrize("mode", MODES.values(), ids=MODES)
METHODS = {
    "steering": {},
    "posterior": {"value": "posterior:2:2"},
    "reward of a sum": {"of": lambda r: 1.0 * g.rewards.as_reward(r) + g.rewards.as_reward(r)},
    "clipped": {"of": lambda r: Clipped(r, 0.0, 9.0)},
    "cached": {"of": Cached},
    "twist": {"twist": 1.0},
    "guidance": {"guidance": "reward:0.5"},
    "guidance through the network": {"guidance": "network:0.5"},
}


GRADIENTS = ("twist", "guidance", "guidance through the network")  # numpy has none
SPOILT = covering([name for name in METHODS if name not in GRADIENTS], [in_numpy, in_place], MODES)


@pytest.mark.parametrize(
    ("name", "spoiling", "mode"), first(SPOILT) + first(covering(GRADIENTS, [in_place], MODES))
)
def test_a_reward_that_writes_into_its_input_changes_nothing(name, spoiling, mode):
    given, mode = dict(METHODS[name]), MODES[mode]
    of = given.pop("of", lambda r: r)
    with mode():
        right = steered(reward=of(reward), **given)
        if {"twist", "guidance"} & set(given):  # the reward's own graph needs what it overwrote
            with pytest.raises(RewardError, match="modified by an inplace operation"):
                steered(reward=of(spoiling), **given)
            return
        found = steered(reward=of(spoiling), **given)
    assert torch.equal(found.samples, right.samples)
    assert torch.equal(found.log_weights, right.log_weights)


@each_mode
def test_a_value_that_writes_into_its_input_changes_nothing(mode):
    with mode():
        right = steered(value=lambda x, t, D: D.square().sum(1))
        found = steered(value=spoiling_value)
    assert torch.equal(found.samples, right.samples)


class Foreign:
    path, evaluations_per_call = Linear(), 1

    def __init__(self, function):
        self.function = function

    def __call__(self, x, t):
        return self.function(x, t)


@each_mode
@pytest.mark.parametrize(
    "wrap",
    first(
        [
            lambda f: g.Denoiser(f, Linear(), prediction="velocity"),
            lambda f: g.Denoiser(f, Linear(), prediction="velocity", max_batch=3),
            Foreign,
        ]
    ),
)
def test_a_network_that_writes_into_its_input_changes_nothing(wrap, mode):
    def tidy(x, t):
        return torch.tanh(x)

    def spoiling(x, t):
        answer = torch.tanh(x)
        x.fill_(3.0)
        return answer

    with mode():
        right = steered(wrap(tidy), value="posterior:2:2")
        found = steered(wrap(spoiling), value="posterior:2:2")
    assert torch.equal(found.samples, right.samples)


@each_mode
def test_guidance_that_writes_into_its_input_changes_nothing(mode):
    x = torch.randn(4, 3)

    def value(x, t):
        return x.mul(0.5).square().sum(1)

    with mode():
        right = g.GuidedDenoiser(PLAIN, value=value)(x, 0.4)
        found = g.GuidedDenoiser(PLAIN, value=lambda x, t: x.mul_(0.5).square().sum(1))(x, 0.4)
    assert torch.equal(found, right)


def test_a_reward_in_place_has_its_gradient():
    z = torch.randn(4, 3)
    values, gradient = evaluate_with_gradient(lambda z: z.mul_(3.0).square().sum(1), z.clone(), "")
    torch.testing.assert_close(gradient, 18.0 * z)
    torch.testing.assert_close(values, 9.0 * z.square().sum(1).double(), rtol=1e-6, atol=0.0)


def test_a_decoder_that_writes_into_its_input_changes_nothing():
    right = steered(reward=Decoded(reward, lambda z: 2.0 * z))
    found = steered(reward=Decoded(reward, lambda z: z.mul_(2.0)))
    assert torch.equal(found.samples, right.samples)


# --- transforms ---------------------------------------------------------------------------------

LINEAR_MODEL = g.Denoiser(lambda x, t: 0.3 * x, Linear(), prediction="sample")
CALLS = {
    "denoiser": lambda x: LINEAR_MODEL(x, 0.3),
    "ode": lambda x: g.sample(
        LINEAR_MODEL, x, transitions=1, rho="ode", differentiable=True, seed=0
    ),
    "transition": lambda x: g.transition(LINEAR_MODEL, x, 0.2, 0.6, rho=0.4, steps=3, seed=0),
    "sample": lambda x: g.sample(LINEAR_MODEL, x, differentiable=True, seed=0),
    "posterior": lambda x: g.posterior(
        LINEAR_MODEL, x, 0.3, samples=1, steps=2, differentiable=True, seed=0
    )[0],
    "own noise": lambda x: g.transition(
        LINEAR_MODEL, x, 0.2, 0.6, rho=0.4, steps=3, noise=torch.ones_like(x)
    ),
}
each_call = pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)


@each_call
def test_derivatives_are_those_of_a_linear_map(call):
    x, v = torch.randn(2, 4, 3, dtype=torch.float64)
    backwards = torch.func.grad(lambda x: (call(x) * v).sum())(x)
    with torch.autograd.forward_ad.dual_level():
        dual = call(torch.autograd.forward_ad.make_dual(x, v))
        whole, forwards = torch.autograd.forward_ad.unpack_dual(dual)
    torch.testing.assert_close(whole, call(x))
    torch.testing.assert_close(forwards, call(x + v) - call(x))
    torch.testing.assert_close((backwards * v).sum(), (forwards * v).sum())


@pytest.mark.slow  # the first one of a process takes torch seconds
@each_call
def test_jacobians_are_those_of_a_linear_map(call):
    x, v = torch.randn(2, 4, 3, dtype=torch.float64)
    whole, forwards = torch.func.jvp(call, (x,), (v,))
    assert torch.equal(whole, call(x))
    torch.testing.assert_close(forwards, call(x + v) - call(x))
    torch.testing.assert_close(torch.func.jacfwd(call)(x), torch.func.jacrev(call)(x))


@each_call
def test_mapped_calls_are_those_of_each(call):
    x = torch.randn(5, 4, 3, dtype=torch.float64)
    torch.testing.assert_close(torch.func.vmap(call)(x), torch.stack([call(one) for one in x]))


def test_a_seed_cannot_be_drawn_under_vmap():
    with pytest.raises(InvalidArgument, match="give a seed="):
        torch.func.vmap(lambda x: g.sample(LINEAR_MODEL, x))(torch.randn(2, 4, 3))


def test_values_are_looked_at_where_they_can_be():
    x = torch.full((4, 3), math.nan)
    with pytest.raises(NonFinite):
        torch.func.grad(lambda x: CALLS["sample"](x).sum())(x)
    assert bool(torch.func.vmap(CALLS["sample"])(x[None]).isnan().all())
