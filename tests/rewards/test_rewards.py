"""Rewards: the protocol, its checks, gradients against finite differences, and composites."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import first
from glass_flows.errors import (
    GlassError,
    InvalidArgument,
    MissingExtra,
    NonFinite,
    RewardError,
    ShapeError,
)
from glass_flows.rewards import (
    Cached,
    ClassReward,
    Clipped,
    Decoded,
    FunctionReward,
    Normalised,
    OfImages,
    Product,
    Reward,
    WeightedSum,
    as_reward,
    evaluate,
    evaluate_with_gradient,
)
from glass_flows.rewards.base import numbers

Z = torch.randn(7, 2, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
WORDS = ["a", "bb", "ccc", "dddd", "eeeee", "ffffff", "ggggggg"]
HERE = r"at boundary 2 \(t = 0\.33\)"
place = "boundary 2 (t = 0.33)"


def sines(z):
    return z.sin().flatten(1).sum(1)


def squares(z):
    return -0.5 * z.square().flatten(1).sum(1)


def length_times_sum(z, prompts):
    lengths = torch.tensor([float(len(prompt)) for prompt in prompts], dtype=z.dtype)
    return lengths * z.flatten(1).sum(1)


class Watched(Reward):
    """Keeps what it was asked."""

    name = "watched"

    def __init__(self, function=sines, **attributes):
        self.function, self.asked = function, []
        vars(self).update(attributes)

    def score(self, z, prompts):
        self.asked.append((z, prompts))
        return self.function(z) if prompts is None else self.function(z, prompts)

    @property
    def sizes(self):
        return [len(z) for z, _ in self.asked]


def finite_differences(reward, z, prompts=None, step=1e-6):
    gradient = torch.empty_like(z)
    for index in np.ndindex(*z.shape):
        up, down = z.clone(), z.clone()
        up[index] += step
        down[index] -= step
        change = reward(up, prompts)[index[0]] - reward(down, prompts)[index[0]]
        gradient[index] = change / (2 * step)
    return gradient


# --- calls: batches, prompts, devices ---------------------------------------------------------


@pytest.mark.parametrize(
    ("most", "sizes"), [(None, [7]), (7, [7]), (3, [3, 3, 1]), (1, [1] * 7), (100, [7])]
)
def test_batches_are_split_and_joined_in_order(most, sizes):
    reward = Watched(max_batch=most)
    torch.testing.assert_close(reward(Z), sines(Z), rtol=0, atol=0)
    assert reward.sizes == sizes
    assert torch.equal(torch.cat([z for z, _ in reward.asked]), Z)


@pytest.mark.parametrize("whole", [False, True])
def test_answers_in_the_same_memory_are_told_apart(whole):
    """As those of a compiled network: in chunks, and of one image at a time."""
    memory = torch.zeros(1, dtype=torch.int64 if whole else torch.float32)

    def first_number(z):
        return memory.copy_(z.flatten()[:1])

    z = torch.arange(1.0, 4.0).view(3, 1, 1, 1).expand(3, 3, 4, 4)
    for reward in (
        FunctionReward(first_number, max_batch=1),
        OfImages(first_number, takes="tensor", each=True),
    ):
        assert reward(z).tolist() == [1.0, 2.0, 3.0]


def test_prompts_travel_with_their_samples():
    reward = Watched(length_times_sum, takes_prompts=True, max_batch=2)
    torch.testing.assert_close(reward(Z, WORDS), length_times_sum(Z, WORDS))
    assert [prompts for _, prompts in reward.asked] == [
        WORDS[0:2],
        WORDS[2:4],
        WORDS[4:6],
        ["g" * 7],
    ]
    values, gradient = reward.value_and_gradient(Z, tuple(WORDS))
    torch.testing.assert_close(values, length_times_sum(Z, WORDS))
    expected = torch.arange(1.0, 8.0, dtype=torch.float64)[:, None, None].expand_as(Z)
    torch.testing.assert_close(gradient, expected)


def test_a_reward_without_prompts_is_not_handed_them():
    reward = Watched()
    reward(Z, WORDS)
    reward(Z, ["too", "few"])
    assert [prompts for _, prompts in reward.asked] == [None, None]
    torch.testing.assert_close(FunctionReward(sines)(Z, WORDS), sines(Z))


@pytest.mark.parametrize(
    ("prompts", "given"),
    [
        (None, "got None"),
        ("seven!!", "got 'seven!!'"),
        (WORDS[:6], "got 6 of them"),
        ([*WORDS, "h"], "got 8 of them"),
        (7, "got 7"),
    ],
)
def test_prompts_must_be_one_per_sample(prompts, given):
    reward = FunctionReward(length_times_sum, takes_prompts=True, max_batch=2)
    for composite in (reward, 2.0 * reward, Decoded(reward, torch.sin), Cached(reward)):
        for ask in (composite, composite.value_and_gradient):
            with pytest.raises(InvalidArgument, match=f"a list of 7, one per sample, {given}$"):
                ask(Z, prompts)


def test_samples_are_moved_to_the_rewards_device():
    reward = FunctionReward(lambda z: z.flatten(1).sum(1), device="meta")
    assert reward(Z).device.type == "meta"
    assert reward.device == torch.device("meta")
    assert FunctionReward(sines)(Z.to("meta")).device.type == "meta"  # None leaves them
    with pytest.raises(InvalidArgument, match=r"device must be a torch.device .* got 'bad'"):
        FunctionReward(sines, device="bad")


def test_whole_numbers_become_floats():
    reward = FunctionReward(lambda z: (z > 0).flatten(1).sum(1), differentiable=False)
    assert reward(Z).dtype == torch.get_default_dtype()
    half = WeightedSum([reward, lambda z: torch.full((7,), 0.5)], [1.0, 1.0])
    torch.testing.assert_close(half(Z), reward(Z) + 0.5)


def test_an_empty_batch_has_no_rewards():
    for reward in (as_reward(sines), Cached(sines), Decoded(sines, torch.sin, max_batch=2)):
        assert reward(Z[:0]).shape == (0,)
        assert reward.value_and_gradient(Z[:0])[1].shape == (0, 2, 3)


def test_functions_become_rewards():
    assert as_reward(sines).name == "sines"
    assert as_reward(lambda z: z).name == "reward"
    assert as_reward(partial(sines)).name == "sines"
    assert as_reward(torch.nn.Flatten(0)).name == "Flatten"
    assert FunctionReward(sines, "waves").name == "waves"
    assert repr(as_reward(sines)) == "FunctionReward('sines')"
    own = Watched()
    assert as_reward(own) is own
    for wrong in (3, None, "sines", ClassReward):
        with pytest.raises(InvalidArgument, match=r"must be a Reward or a function .* got "):
            as_reward(wrong)
    nowhere = [(math.inf, math.inf), (-math.inf, -math.inf)]
    for bounds in [(1.0, 0.0), (math.nan, 1.0), (0.0, math.nan), *nowhere]:
        with pytest.raises(InvalidArgument, match=r"range.* must be"):
            FunctionReward(sines, range=bounds)
    with pytest.raises(InvalidArgument, match="max_batch must be an integer >= 1, got 0"):
        FunctionReward(sines, max_batch=0)


# --- gradients --------------------------------------------------------------------------------

DIFFERENTIABLE = {
    "function": as_reward(sines),
    "sum": WeightedSum([sines, squares], [2.0, -0.7]),
    "product": Product([sines, squares, sines]),
    "clipped": Clipped(sines, -0.5, 0.8),
    "normalised": Normalised(squares, -2.0, 0.3),
    "cached": Cached(sines),
    "decoded": Decoded(squares, lambda z: torch.cat([z.sin(), z.cos() * z], 1), max_batch=4),
    "all": Cached(WeightedSum([sines, squares], [1, 1])) * Decoded(sines, torch.exp)
    + 0.3 * as_reward(squares),
    "prompts": as_reward(sines) + FunctionReward(length_times_sum, takes_prompts=True, max_batch=2),
    "classes": ClassReward(lambda z: z.flatten(1) @ torch.eye(6, dtype=z.dtype), 2),
}


@pytest.mark.parametrize("name", DIFFERENTIABLE)
@pytest.mark.parametrize("mode", first([torch.inference_mode, torch.no_grad, torch.enable_grad]))
def test_gradients_are_those_of_finite_differences(name, mode):
    reward = DIFFERENTIABLE[name]
    with mode():
        values, gradient = reward.value_and_gradient(Z.clone(), WORDS)
    torch.testing.assert_close(values, reward(Z, WORDS), rtol=1e-14, atol=1e-14)
    torch.testing.assert_close(gradient, finite_differences(reward, Z, WORDS), rtol=1e-7, atol=1e-7)
    assert not values.requires_grad and not gradient.requires_grad
    assert torch.is_inference_mode_enabled() is False


def test_gradients_are_taken_chunk_by_chunk():
    reward = Watched(squares, max_batch=3)
    values, gradient = reward.value_and_gradient(Z)
    assert reward.sizes == [3, 3, 1]
    leaves = [z for z, _ in reward.asked]
    # A graph of its own for each, on memory of its own.
    assert all(z.requires_grad and z.untyped_storage().nbytes() == 8 * z.numel() for z in leaves)
    torch.testing.assert_close(values, squares(Z), rtol=0, atol=0)
    torch.testing.assert_close(gradient, -Z, rtol=0, atol=0)


def test_a_composite_is_differentiated_in_the_smallest_of_its_parts_batches():
    small, large, free = Watched(max_batch=2), Watched(max_batch=5), Watched()
    reward = Cached(Product([small + 3.0 * large, free.clipped(-9.0, 9.0)]))
    reward(Z)
    assert (small.sizes, large.sizes, free.sizes) == ([2, 2, 2, 1], [5, 2], [7])
    for part in (small, large, free):
        part.asked.clear()
    reward.value_and_gradient(Z)
    assert small.sizes == large.sizes == free.sizes == [2, 2, 2, 1]


def test_gradients_leave_samples_and_parameters_alone():
    weight = torch.nn.Parameter(torch.tensor(2.0, dtype=torch.float64))
    reward = FunctionReward(lambda z: weight * sines(z))
    z = Z.clone().requires_grad_()
    values, gradient = reward.value_and_gradient(z)
    torch.testing.assert_close(gradient, 2.0 * Z.cos())
    assert z.grad is None and weight.grad is None and not values.requires_grad


def test_a_gradient_has_the_dtype_of_the_samples():
    reward = FunctionReward(lambda z: sines(z.double()))
    values, gradient = reward.value_and_gradient(Z.float())
    assert values.dtype == torch.float64
    assert gradient.dtype == torch.float32


def test_a_reward_that_has_no_gradient_says_so():
    hard = FunctionReward(lambda z: (z > 0).flatten(1).sum(1), "hard", differentiable=False)
    for reward in (hard, hard + as_reward(sines), hard.clipped(0, 1), Cached(hard)):
        assert reward.differentiable is False
        with pytest.raises(InvalidArgument, match=r"hard.*has no gradient.*differentiable=False"):
            reward.value_and_gradient(Z)
    with pytest.raises(InvalidArgument, match=rf"'hard' has no gradient.* {HERE}$"):
        evaluate_with_gradient(hard, Z, place)


@pytest.mark.parametrize(
    "function",
    [torch.no_grad()(sines), lambda z: sines(z.detach()), lambda z: torch.ones(len(z))],
)
def test_a_result_without_a_graph_is_an_error(function):
    with pytest.raises(RewardError, match="'lost' does not depend on the samples by autograd"):
        FunctionReward(function, "lost").value_and_gradient(Z)
    parameter = torch.nn.Parameter(torch.ones(()))
    lost = FunctionReward(lambda z: parameter * function(z), "lost")  # requires grad, but not of z
    with pytest.raises(RewardError, match=rf"'lost' does not depend on the samples.* {HERE}$"):
        evaluate_with_gradient(lost, Z, place)


# --- evaluate ---------------------------------------------------------------------------------


def test_evaluate_gives_detached_float64_on_the_cpu():
    weight = torch.nn.Parameter(torch.ones(()))
    rewards = evaluate(lambda z: weight * sines(z), Z.float(), place)
    assert rewards.dtype == torch.float64 and not rewards.requires_grad
    torch.testing.assert_close(rewards, sines(Z.float()).double(), rtol=0, atol=0)
    rewards, gradient = evaluate_with_gradient(sines, Z.float(), place)
    assert rewards.dtype == torch.float64 and gradient.dtype == torch.float32
    prompted = FunctionReward(length_times_sum, takes_prompts=True)
    torch.testing.assert_close(evaluate(prompted, Z, place, WORDS), length_times_sum(Z, WORDS))
    torch.testing.assert_close(
        evaluate_with_gradient(prompted, Z, place, WORDS)[0], length_times_sum(Z, WORDS)
    )


def test_evaluate_keeps_no_graph():
    graphs = []
    leaf = Z.clone().requires_grad_()
    evaluate(lambda z: [graphs.append(sines(z).requires_grad), sines(z)][1], leaf, place)
    assert graphs == [False]


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda z: z, r"\(7, 2, 3\) of torch.float64"),
        (lambda z: sines(z)[:, None], r"\(7, 1\) of"),
        (lambda z: sines(z).sum(), r"\(\) of"),
        (lambda z: sines(z).to(torch.complex64), r"\(7,\) of torch.complex64"),
        (lambda z: 1.0, "float"),
        (lambda z: [1.0] * 7, "list"),
        (lambda z: None, "NoneType"),
    ],
)
@pytest.mark.parametrize("ask", [evaluate, evaluate_with_gradient])
def test_shapes_are_checked(ask, function, given):
    match = rf"^the reward 'odd' .* shape \(7,\), one number per sample, got {given}.* {HERE}$"
    with pytest.raises(ShapeError, match=match):
        ask(FunctionReward(function, "odd"), Z, place)


@pytest.mark.parametrize(
    ("function", "given"),
    [
        (lambda z: sines(z)[:, None, None], r"\(7, 1, 1\) of"),
        (lambda z: sines(z).sum(), r"\(\) of"),
        (lambda z: [1.0] * 6, "list"),
        (lambda z: [1.0] * 6 + ["1.0"], "list"),
        (lambda z: np.array(["1.0"] * 7), "ndarray"),
        (lambda z: 1.0, "float"),
    ],
)
def test_answers_of_plain_functions_are_one_number_per_sample(function, given):
    with pytest.raises(ShapeError, match=rf"shape \(7,\), one number per sample, got {given}"):
        as_reward(function)(Z)


def test_a_wrong_shape_in_a_late_chunk_is_found():
    reward = FunctionReward(lambda z: torch.zeros(3), "stuck", max_batch=3)
    with pytest.raises(ShapeError, match=r"'stuck' must return a real tensor of shape \(1,\)"):
        reward(Z)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_values_that_are_no_numbers_are_named(bad):
    def patchy(z):
        return torch.where(z[:, 0, 0] == Z[4, 0, 0], bad, sines(z))

    match = rf"'patchy' returned NaN or \+inf {HERE} for particles \[4\] \(1 of 7\)$"
    for ask in (evaluate, evaluate_with_gradient):
        for most in (None, 2):
            with pytest.raises(NonFinite, match=match) as caught:
                ask(FunctionReward(patchy, max_batch=most), Z, place)
            assert caught.value.particles == (4,)


def test_minus_infinity_is_a_reward():
    def strict(z):
        return torch.where(z[:, 0, 0] > 0, sines(z), -math.inf)

    rewards, gradient = evaluate_with_gradient(strict, Z, place)
    torch.testing.assert_close(rewards, strict(Z))
    assert torch.isneginf(rewards).any() and torch.isfinite(gradient).all()
    assert torch.equal(evaluate(Clipped(strict, -5.0), Z, place) == -5.0, torch.isneginf(rewards))
    with pytest.raises(RewardError, match=r"returned -inf, outside .* \[-99, inf\]"):
        evaluate(FunctionReward(strict, range=(-99.0, math.inf)), Z, place)


@pytest.mark.parametrize("power", [0.5, 0.0])
def test_gradients_that_are_no_numbers_are_named(power):
    z = torch.tensor([[1.0, 2.0], [3.0, 0.0], [4.0, 1.0], [0.0, 0.0]])  # slope inf or NaN at 0
    root = FunctionReward(lambda z: (z.sqrt() if power else (z * z).sqrt()).sum(1), "root")
    match = rf"gradient of the reward 'root' has NaN or infinity {HERE} for particles \[1, 3\]"
    with pytest.raises(NonFinite, match=match) as caught:
        evaluate_with_gradient(root, z, place)
    assert caught.value.particles == (1, 3)


@pytest.mark.parametrize("top", [2.0, 2.2, 1e-4])  # 2.2 rounds up
def test_the_declared_range_is_held(top):
    def constant(value, dtype=torch.float64):
        bounds = (-1.0, top)
        return FunctionReward(lambda z: torch.full((7,), value, dtype=dtype), "c", range=bounds)

    evaluate(constant(-1.0), Z, place)
    evaluate(constant(top, torch.float32), Z, place)
    evaluate(constant(top, torch.bfloat16), Z, place)
    evaluate(constant(top + 0.9e-6 * max(top, 1.0)), Z, place)
    evaluate(constant(-1.0 - 0.9e-6), Z, place)
    evaluate(FunctionReward(lambda z: torch.full((7,), -0.9e-6), range=(0.0, 1e-3)), Z, place)
    evaluate(FunctionReward(lambda z: torch.full((7,), 9e-4), range=(-1e3, 0.0)), Z, place)
    for wrong in (top + 1.2e-6 * max(top, 1.0), -1.0 - 3e-6):
        with pytest.raises(
            RewardError, match=rf"'c' returned {wrong:.9g}, outside.*\[-1, {top:g}\], {HERE}"
        ):
            evaluate(constant(wrong), Z, place)
    one = FunctionReward(lambda z: torch.arange(7.0), "c", range=(0.0, 5.0))
    with pytest.raises(RewardError, match=r"returned 6, .* particles \[6\] \(1 of 7\)"):
        evaluate(one, Z, place)


def test_exceptions_become_reward_errors_with_their_place():
    calls = []

    def fragile(z):
        calls.append(len(z))
        if len(calls) == 3:
            raise KeyError("model 5")
        return sines(z)

    reward = FunctionReward(fragile, max_batch=2)
    for ask in (evaluate, evaluate_with_gradient):
        calls.clear()
        with pytest.raises(
            RewardError,
            match=rf"'fragile' raised KeyError: 'model 5' {HERE} [(]test_rewards.py:\d+: raise Key",
        ) as e:
            ask(reward, Z, place)
        assert isinstance(e.value.__cause__, KeyError)
        assert isinstance(e.value, RuntimeError)
        assert calls == [2, 2, 2]


def test_interrupts_are_not_caught():
    def stop(z):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate(stop, Z, place)


class TwoParts(GlassError):
    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")
        self.second = second


@pytest.mark.parametrize(
    ("error", "attribute", "value"),
    [
        (NonFinite("not a number", (2, 5)), "particles", (2, 5)),
        (MissingExtra("transformers", "rewards", "CLIP"), "extra", "rewards"),
        (TwoParts("one", "two"), "second", "two"),
        (ShapeError("logits are flat"), "args", (f"logits are flat at {place}",)),
    ],
)
def test_named_errors_keep_their_type_and_name_the_place(error, attribute, value):
    def raising(z):
        raise error

    with pytest.raises(type(error)) as caught:
        evaluate(raising, Z, place)
    assert type(caught.value) is type(error)
    assert str(caught.value) == f"{error} at {place}"
    assert getattr(caught.value, attribute) == value
    assert caught.value.__cause__ is error


# --- composites -------------------------------------------------------------------------------


def bounded(i, low, high):
    return FunctionReward(lambda z: z[:, i].clamp(low, high), f"z{i}", range=(low, high))


A, B = bounded(0, -1.0, 2.0), bounded(1, -3.0, 0.5)
UP = bounded(2, 1.0, math.inf)
PAIRS = torch.tensor([[0.5, -2.0, 3.0], [-5.0, 5.0, 0.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("reward", "values", "bounds", "name"),
    [
        (A + B, [-1.5, -0.5], (-4.0, 2.5), "sum(z0, z1)"),
        (2.0 * A, [1.0, -2.0], (-2.0, 4.0), "sum(z0)"),
        (A * -2, [-1.0, 2.0], (-4.0, 2.0), "sum(z0)"),
        (WeightedSum([A, B], [1, -2.0]), [4.5, -2.0], (-2.0, 8.0), "sum(z0, z1)"),
        (WeightedSum([UP, A], [0, 2]), [1.0, -2.0], (-2.0, 4.0), "sum(z0)"),
        (WeightedSum([A, UP], [1, -1]), [-2.5, -2.0], (-math.inf, 1.0), "sum(z0, z2)"),
        (A * B, [-1.0, -0.5], (-6.0, 3.0), "product(z0, z1)"),
        (A * UP, [1.5, -1.0], (-math.inf, math.inf), "product(z0, z2)"),
        (A.clipped(0.0) * UP, [1.5, 0.0], (0.0, math.inf), "product(clipped(z0), z2)"),
        (UP * UP, [9.0, 1.0], (1.0, math.inf), "product(z2, z2)"),
        (UP.clipped(1.5, 2.5), [2.5, 1.5], (1.5, 2.5), "clipped(z2)"),
        (UP.clipped(-3.0, 0.0), [0.0, 0.0], (0.0, 0.0), "clipped(z2)"),
        (A.clipped(high=0.0), [0.0, -1.0], (-1.0, 0.0), "clipped(z0)"),
        (Normalised(A, 1.0, 0.5), [-1.0, -4.0], (-4.0, 2.0), "normalised(z0)"),
        (Decoded(A, lambda z: z * 2), [1.0, -1.0], (-1.0, 2.0), "z0"),
        (Cached(UP), [3.0, 1.0], (1.0, math.inf), "cached(z2)"),
    ],
)
def test_values_and_ranges_of_composites(reward, values, bounds, name):
    assert evaluate(reward, PAIRS, place).tolist() == values
    assert reward.range == bounds
    assert reward.name == name


def composites(parts):
    number = st.floats(-3.0, 3.0)
    return st.one_of(
        st.lists(st.tuples(parts, number.filter(bool)), min_size=1, max_size=3).map(
            lambda pairs: WeightedSum(*zip(*pairs))
        ),
        st.lists(parts, min_size=1, max_size=3).map(Product),
        st.tuples(parts, number, st.floats(0.1, 3.0)).map(
            lambda p: Clipped(p[0], p[1], p[1] + p[2])
        ),
        st.tuples(parts, number, st.floats(0.1, 3.0)).map(lambda p: Normalised(*p)),
        parts.map(Cached),
        parts.map(lambda part: Decoded(part, lambda z: 1.5 * z.flip(1))),
    )


ends = st.one_of(st.just(math.inf), st.floats(-3.0, 3.0))
leaves = st.tuples(st.integers(0, 2), ends, ends).map(
    lambda p: bounded(p[0], min(-p[1], p[2], 4.0), max(-p[1], p[2], -4.0))
)


@pytest.mark.slow
@settings(max_examples=200, deadline=None)
@given(st.recursive(leaves, composites, max_leaves=5), st.integers(0, 2**32))
def test_values_lie_in_the_range_by_interval_arithmetic(reward, seed):
    z = 4.0 * torch.randn(16, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    low, high = reward.range
    values = reward(z)
    slack = 1e-12 * max([1.0, *(abs(end) for end in (low, high) if math.isfinite(end))])
    assert not torch.isnan(values).any()
    assert (values >= low - slack).all() and (values <= high + slack).all()


def test_composites_take_over_what_their_parts_need():
    prompted = FunctionReward(length_times_sum, takes_prompts=True)
    mixed = Decoded(as_reward(sines) * prompted, torch.sin, max_batch=3) + as_reward(squares)
    assert mixed.takes_prompts and mixed.differentiable and mixed.decodes == 1
    expected = sines(Z.sin()) * length_times_sum(Z.sin(), WORDS) + squares(Z)
    torch.testing.assert_close(mixed(Z, WORDS), expected)
    twice = Decoded(Decoded(sines, torch.sin), torch.exp)
    assert (twice.decodes, (twice + twice).decodes, (twice * mixed).decodes) == (2, 4, 3)
    assert Cached(twice).decodes == 2
    assert WeightedSum([sines, prompted], [1.0, 0.0]).takes_prompts is False
    assert not (as_reward(sines) + as_reward(squares)).takes_prompts


def test_parts_are_combined_in_the_dtype_of_the_first():
    single = FunctionReward(lambda z: sines(z).float())
    assert (single + as_reward(sines))(Z).dtype == torch.float32
    assert (as_reward(sines) * single)(Z).dtype == torch.float64


def test_decoding_is_split():
    sizes = []
    part = Watched(squares, max_batch=2)
    reward = Decoded(part, lambda z: [sizes.append(len(z)), z.exp()][1], max_batch=5)
    torch.testing.assert_close(reward(Z), squares(Z.exp()))
    assert sizes == [5, 2]
    assert part.sizes == [2, 2, 1, 2]


def test_normalised_from_samples():
    prompted = FunctionReward(length_times_sum, takes_prompts=True)
    values = Normalised.from_samples(prompted, Z, WORDS)(Z, WORDS)
    assert values.mean().item() == pytest.approx(0.0, abs=1e-12)
    assert values.square().mean().item() == pytest.approx(1.0)
    for same in (Z[:1], Z[:1].expand(7, -1, -1)):
        with pytest.raises(InvalidArgument, match="standard deviation"):
            Normalised.from_samples(sines, same)
    with pytest.raises(InvalidArgument, match="standard deviation"):  # 1.4e-17 by rounding
        Normalised.from_samples(lambda z: torch.full((7,), 0.1, dtype=torch.float64), Z)
    with pytest.raises(InvalidArgument, match="mean -inf"):
        Normalised.from_samples(lambda z: torch.where(z[:, 0, 0] > 0, 0.0, -math.inf), Z)
    with pytest.raises(NonFinite, match="the samples to normalise by"):
        Normalised.from_samples(lambda z: torch.full((7,), math.nan), Z)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: WeightedSum([sines], [1.0, 2.0]), "1 parts and 2 weights"),
        (lambda: WeightedSum([sines, sines], [0.0, 0.0]), "not all 0"),
        (lambda: WeightedSum([], []), "not all 0"),
        (lambda: math.nan * as_reward(sines), "must be finite"),
        (lambda: WeightedSum([3], [1.0]), "got 3"),
        (lambda: Product([]), "at least one part"),
        (lambda: Clipped(sines, 1.0, 1.0), "low must be below high"),
        (lambda: Clipped(sines, math.nan), "low must be a number"),
        (lambda: Normalised(sines, math.inf, 1.0), "mean must be finite, got inf"),
        (lambda: Normalised(sines, 0.0, 0.0), "std must be .* got 0.0"),
        (lambda: Normalised(sines, 0.0, math.nan), "std must be .* got nan"),
        (lambda: Cached(sines, 0), "size must be an integer >= 1"),
        (lambda: Decoded(sines, None), "decode must be callable"),
        (lambda: Decoded(sines, torch.sin, max_batch=0), "max_batch must be"),
    ],
)
def test_composites_check_their_arguments(build, match):
    with pytest.raises(InvalidArgument, match=match):
        build()


def test_operators_refuse_what_is_no_reward():
    for wrong in (lambda: A + 1.0, lambda: A + sines, lambda: A * "2", lambda: True * A):
        with pytest.raises(TypeError):
            wrong()


# --- the cache --------------------------------------------------------------------------------


def test_the_cache_asks_once_about_equal_samples():
    part = Watched()
    reward = Cached(part)
    batch = Z[[0, 1, 0, 2, 1, 0]]
    torch.testing.assert_close(reward(batch), sines(batch), rtol=0, atol=0)
    assert (part.sizes, reward.misses, reward.hits) == ([3], 3, 3)
    torch.testing.assert_close(reward(Z[[2, 3]]), sines(Z[[2, 3]]), rtol=0, atol=0)
    assert torch.equal(part.asked[1][0], Z[[3]])
    torch.testing.assert_close(reward(Z[:4]), sines(Z[:4]), rtol=0, atol=0)
    assert (part.sizes, reward.misses, reward.hits) == ([3, 1], 4, 8)


def test_the_cache_tells_dtypes_shapes_and_prompts_apart():
    part = Watched(lambda z, prompts=None: z.flatten(1).sum(1).double())
    reward = Cached(part)
    for zeros in (torch.zeros(1, 4), torch.zeros(1, 2, dtype=torch.float64), torch.zeros(1, 2, 2)):
        reward(zeros)
    assert reward.misses == 3
    prompted = Cached(Watched(length_times_sum, takes_prompts=True))
    same = Z[:1].expand(3, -1, -1)
    values = prompted(same, ["a", "bb", "a"])
    torch.testing.assert_close(values, length_times_sum(same, ["a", "bb", "a"]))
    assert (prompted.misses, prompted.hits) == (2, 1)
    assert prompted._parts[0].asked[0][1] == ["a", "bb"]


def test_the_cache_drops_the_least_recently_used():
    reward = Cached(sines, size=2)
    for i, misses in [(0, 1), (1, 2), (0, 2), (2, 3), (0, 3), (1, 4), (2, 5)]:
        torch.testing.assert_close(reward(Z[[i]]), sines(Z[[i]]), rtol=0, atol=0)
        assert reward.misses == misses
    torch.testing.assert_close(reward(Z), sines(Z), rtol=0, atol=0)  # more than it holds


def test_gradients_pass_the_cache():
    part = Watched(squares)
    reward = Cached(part)
    reward(Z)
    _, gradient = reward.value_and_gradient(Z)
    torch.testing.assert_close(gradient, -Z)
    assert (part.sizes, reward.hits, reward.misses) == ([7, 7], 0, 7)
    leaf = Z.clone().requires_grad_()
    with torch.no_grad():
        reward(leaf)
    assert reward.hits == 7
    assert reward(leaf).requires_grad


def test_the_cache_keeps_no_graph():
    weight = torch.nn.Parameter(torch.ones(()))
    reward = Cached(lambda z: weight * sines(z))
    assert not reward(Z).requires_grad


def test_flat_samples_can_be_cached():
    z = torch.tensor([1.0, 2.0, 1.0])
    reward = Cached(lambda z: z * 2)
    assert reward(z).tolist() == [2.0, 4.0, 2.0] and reward.misses == 2


def test_the_cache_tells_numbers_from_lists_of_one():
    reward = Cached(lambda z: z.reshape(len(z)) + z.ndim)
    numbers = torch.tensor([1.0, 2.0])
    assert reward(numbers).tolist() == [2.0, 3.0]
    assert reward(numbers[:, None]).tolist() == [3.0, 4.0]
    assert Cached(sines).size == 1024


def test_the_cache_reads_samples_whatever_their_strides():
    reward = Cached(sines)
    reward(Z[:, :, 0].contiguous())
    torch.testing.assert_close(reward(Z[:, :, 0]), sines(Z[:, :, 0]), rtol=0, atol=0)
    assert reward.hits == 7


# --- classes ----------------------------------------------------------------------------------


def test_class_rewards_are_rewards():
    reward = ClassReward(lambda z: z, 1, floor=-11.8)
    assert isinstance(reward, Reward)
    assert reward.name == "log p(1)"
    assert reward.range == (-11.8, 0.0)
    logits = torch.tensor([[40.0, 0.0], [0.0, 40.0], [0.0, 0.0]])
    for dtype in (torch.float64, torch.float32, torch.bfloat16):  # -11.8 rounds
        values = evaluate(reward, logits.to(dtype), place)
        torch.testing.assert_close(
            values, torch.tensor([-11.8, 0.0, -math.log(2)]).double(), rtol=0.01, atol=0
        )
    with pytest.raises(ShapeError, match=rf"more than 5 classes\), got \(3, 2\) {HERE}"):
        evaluate(ClassReward(lambda z: z, 5), logits, place)
    values, gradient = evaluate_with_gradient(reward, logits[2:], place)
    torch.testing.assert_close(gradient, torch.tensor([[-0.5, 0.5]]))


def test_a_reward_is_clipped_from_above_alone():
    expected = sines(Z).double().clamp(max=0.2)
    assert torch.equal(evaluate(Clipped(sines, high=0.2), Z, ""), expected)


def test_nothing_to_normalise_by_is_named():
    with pytest.raises(InvalidArgument, match="no samples to normalise by"):
        Normalised.from_samples(FunctionReward(lambda z: z.sum(1)), torch.zeros(0, 3))


@pytest.mark.parametrize(
    ("rewards", "differ"),
    [([99.0, 101.0], True), ([0.0, 0.0], False), ([1e6, 1e6 + 2e-10], False), ([0, 1e-9], True)],
)
def test_rewards_differ_by_more_than_rounding(rewards, differ):
    """Which is 1e-16 of their size."""
    values = torch.tensor(rewards, dtype=torch.float64)
    if differ:
        found = Normalised.from_samples(lambda z: values, values)
        assert (found.mean, found.std) == (sum(rewards) / 2, (rewards[1] - rewards[0]) / 2)
        return
    with pytest.raises(InvalidArgument, match="give samples whose rewards are finite and differ"):
        Normalised.from_samples(lambda z: values, values)


def test_one_sample_in_batches_of_one_is_one_call():
    asked = []

    def bright(z):
        asked.append(len(z))
        return z.flatten(1).sum(1)

    reward = FunctionReward(bright, "bright", max_batch=1)
    assert reward(torch.ones(1, 2)).tolist() == [2.0]
    assert asked == [1]


@pytest.mark.parametrize("bad", [5.0, (0.0,), (0.0, 1.0, 2.0), (1.0, 0.0), (0.0, math.nan)])
def test_a_range_is_a_pair_that_rises(bad):
    with pytest.raises(InvalidArgument, match="range"):
        FunctionReward(lambda z: z.sum(1), range=bad)
    assert FunctionReward(lambda z: z.sum(1), range=(0, 0)).range == (0.0, 0.0)


def test_numbers_that_a_function_returned():
    assert numbers([1.5], 1).tolist() == [1.5]
    assert numbers(torch.ones(1, 1, 1), 1, alone=True).tolist() == [1.0]
    assert numbers(torch.ones(2), 1, alone=True) is None
    for alone in (torch.ones(1, 1, 1), torch.tensor(2.0), 2.0, np.float32(2.0)):
        assert numbers(alone, 1) is None
        assert numbers(alone, 1, alone=True).shape == (1,)
        assert numbers(alone, 2, alone=True) is None
    assert numbers([1.0, "2.0", 3.0], 2) is None
    assert numbers(torch.ones(3, 1), 3).shape == (3,) and numbers(torch.ones(3, 2), 3) is None
    assert numbers(np.array([1, 2]), 2).dtype == torch.int64
    whole = [torch.tensor([1]), torch.tensor([0.5], dtype=torch.float64), True, 2.0]
    assert numbers(whole, 4).tolist() == [1.0, 0.5, 1.0, 2.0]
    assert numbers(whole, 4).dtype == torch.float64
    for kind, dtype in ((np.float32, torch.float32), (np.longdouble, torch.float64)):
        found = numbers(np.array([1.0, 2.0], dtype=kind), 2)
        assert found.tolist() == [1.0, 2.0] and found.dtype == dtype


def test_a_range_is_held_but_for_four_roundings():
    reward = FunctionReward(lambda z: z, range=(-1.0, 1.0))
    top = torch.tensor([1.03125], dtype=torch.bfloat16)  # eps is 2^-7
    assert evaluate(reward, top, place).tolist() == [1.03125]
    with pytest.raises(RewardError, match="outside its declared range"):
        evaluate(reward, top + 2.0**-7, place)


@pytest.mark.parametrize(
    "z", [[1.0, 2.0], torch.tensor(1.0), torch.eye(2).to_sparse()], ids=["list", "number", "sparse"]
)
def test_what_is_no_dense_batch_is_refused(z):
    with pytest.raises(ShapeError, match="a reward is asked about a dense tensor"):
        evaluate(FunctionReward(lambda z: z.sum(1)), z, "here")


def test_prompts_that_a_function_can_do_without_are_left_out():
    def optional(z, prompts=None):
        return z.flatten(1).sum(1) + (0 if prompts is None else 100)

    assert not as_reward(optional).takes_prompts and as_reward(length_times_sum).takes_prompts
    torch.testing.assert_close(as_reward(optional)(Z, WORDS), Z.flatten(1).sum(1))
    found = as_reward(length_times_sum)(Z, WORDS)
    torch.testing.assert_close(found, length_times_sum(Z, WORDS))


def test_a_reward_that_writes_into_its_samples_changes_none():
    z = torch.ones(4, 3)
    reward = FunctionReward(lambda z: z.mul_(2.0).sum(1), max_batch=3)
    assert evaluate(reward, z, place).tolist() == [6.0] * 4
    assert reward.value_and_gradient(z)[1].tolist() == [[2.0] * 3] * 4
    assert torch.equal(z, torch.ones(4, 3))


def test_gradients_of_samples_that_are_numbers():
    root = FunctionReward(lambda z: z.sqrt(), "root")
    values, gradient = evaluate_with_gradient(root, torch.tensor([1.0, 4.0, 16.0]), place)
    assert values.tolist() == [1.0, 2.0, 4.0] and gradient.tolist() == [0.5, 0.25, 0.125]
    with pytest.raises(NonFinite, match=r"has NaN or infinity .* for particles \[1\] \(1 of 3\)"):
        evaluate_with_gradient(root, torch.tensor([1.0, 0.0, 16.0]), place)
