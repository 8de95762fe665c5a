"""Steering's formulas one by one, against plain loops: what `tools/mutants.py` asks first."""

from __future__ import annotations

import inspect
import math
from itertools import product
from types import SimpleNamespace

import pytest
import torch

from glass_flows import (
    Denoiser,
    Guidance,
    GuidedDenoiser,
    Steering,
    Table,
    Twist,
    beam,
    best_of,
    greedy,
    steer,
)
from glass_flows.denoisers import Estimate
from glass_flows.errors import InvalidArgument, NonFinite, ShapeError, TimeError
from glass_flows.execute import Boundary
from glass_flows.noise import POSTERIOR, START, KeyedNoise
from glass_flows.paths import EDM, Linear
from glass_flows.plans import Default, plan
from glass_flows.rewards import Decoded, FunctionReward
from glass_flows.steering import POTENTIALS, Adaptive, BestOf, LogWeights, PosteriorValue
from glass_flows.steering.method import Course, Method
from glass_flows.steering.population import Population, Run, steered_boundaries
from glass_flows.steering.results import Costs, SearchResult
from glass_flows.steering.schedules import share_at
from glass_flows.steering.search import Beam, Greedy
from glass_flows.steering.shards import Pieces, Shards
from glass_flows.steering.smc import Weighted
from glass_flows.steering.state import History, Scene, Selection, Step
from glass_flows.steering.strength import Auto
from glass_flows.steering.twist import Twister, informative, noise_gain
from glass_flows.steering.values import FreeValue, Look, Scorer, ValueFunction, scaled
from glass_flows.steering.weights import effective_size, weighted_mean
from glass_flows.worlds import GaussianMixture
from statistics_rules import Wide

CAP = math.log(1e10)


def real(numbers):
    return torch.tensor(numbers, dtype=torch.float64)


def pair(*numbers):
    return real([numbers])


def normal(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


# --------------------------------------------------------------------------------- potentials

VALUES = (-1.5, 0.25, -0.5, 2.0)  # sums of these have no rounding
PRODUCTS = {  # log of the product of the potentials after each of the values
    "difference": (-1.5, 0.25, -0.5, 2.0),
    "max": (-1.5, -1.25, -1.0, 1.0),
    "sum": (-1.5, -2.75, -4.5, -4.25),
    "immediate": (-1.5, -1.25, -1.75, 0.25),
    "terminal": (0.0, 0.0, 0.0, 0.0),
    "fkd-difference": (-1.5, 0.25, -0.5, 2.0),
    "fkd-max": (0.0, 0.25, 0.5, 2.5),
    "fkd-sum": (-1.5, -2.75, -4.5, -4.25),
    "fkd-immediate": (-1.5, -1.25, -1.75, 0.25),
}
ENDS = {"fkd-difference": 3.5, "fkd-max": 3.5, "fkd-sum": 3.75, "fkd-immediate": 3.5}


@pytest.mark.parametrize("name", PRODUCTS)
def test_the_product_of_the_potentials_after_every_value(name):
    potential = POTENTIALS[name]
    total = pair(0.0, 0.0)
    memory = torch.full_like(total, potential.start)
    for value, expected in zip(VALUES, PRODUCTS[name]):
        total, memory = potential.update(total, pair(value, value), memory)
        assert total.tolist() == [[expected, expected]]
    end = potential.terminal(total, pair(3.5, 3.5), memory)
    assert end[0, 0].item() == pytest.approx(ENDS.get(name, 3.5), abs=1e-14)
    released = name.startswith("fkd-")
    assert (potential.carries, potential.exact, potential.strict) == (
        not released,
        not released,
        released,
    )


@pytest.mark.parametrize("name", [name for name in POTENTIALS if name.startswith("fkd-")])
def test_a_released_weight_is_at_most_1e10(name):
    potential, zero = POTENTIALS[name], pair(0.0)
    total, _ = potential.update(zero, pair(700.0), zero)
    assert total.item() == CAP == pytest.approx(23.025850929940457, rel=1e-15)
    assert potential.terminal(pair(2.0), pair(700.0), zero).item() == 2.0 + CAP


def test_only_potentials_are_registered():
    with pytest.raises(InvalidArgument, match="must be a Potential"):
        POTENTIALS.register("mine", abs)
    assert "mine" not in POTENTIALS


# ------------------------------------------------------------------------ weights and schedules


def test_sizes_and_means_of_weights_in_plain_numbers():
    weights = LogWeights(real([[0.0, 1.0, 2.0], [-2000.0, -2000.0, -math.inf]]))
    w = [1.0, math.e, math.e**2]
    size = sum(w) ** 2 / sum(v * v for v in w)
    torch.testing.assert_close(weights.ess(), real([size, 2.0]))
    means = real([math.log(sum(w) / 3), math.log(2 / 3) - 2000.0])
    torch.testing.assert_close(weights.log_mean(), means, rtol=1e-15, atol=0)
    assert effective_size(pair(-math.inf, -math.inf)).tolist() == [0.0]
    assert effective_size(torch.full((1, 7), 0.3).double()).item() <= 7.0


@pytest.mark.parametrize("ess", [0.6, 0.8])
def test_an_adaptive_share_leaves_the_size_that_was_wanted(ess):
    """Two particles of log-weights 0 and s v: size (1 + e)²/(1 + e²) with e = exp(s v)."""
    v = 6.0
    choose = Adaptive(ess).choose
    share = choose(lambda s: torch.cat([0.0 * s, s * v, 0.0 * s, s * v], 1), pair(0.0)).item()
    e = math.exp(share * v)
    assert 2 * (1 + e) ** 2 / (1 + e * e) == pytest.approx(4 * ess, rel=1e-9)
    assert 2 * (1 + e) ** 2 / (1 + e * e) <= 4 * ess * (1 + 1e-12)  # so that a threshold resamples
    assert choose(lambda s: torch.cat([s, s * 1.01], 1), pair(0.25)).item() == 1.0
    never = choose(lambda s: torch.cat([s, s - 99.0, s - 99.0, s - 99.0], 1), pair(0.25)).item()
    assert never == pytest.approx(0.25, abs=1e-10)  # too few at any share: as before


def test_shares_of_named_schedules():
    assert share_at("constant", 1, 0.25, 4) == 1.0
    assert share_at("linear", 1, 0.25, 4) == 0.25
    assert share_at("linear", 4, 0.25, 4) == 1.0  # the end
    assert share_at([0.5, 0.0, 2.0], 1, 0.25, 3) == 0.0
    assert share_at(lambda t: 0.0, 1, 0.25, 3) == 0.0
    assert share_at(Adaptive(), 1, 0.25, 3) == 1.0
    for bad in (-1e-9, math.inf, math.nan, "much"):
        with pytest.raises(InvalidArgument, match="finite number >= 0"):
            share_at(lambda t, bad=bad: bad, 1, 0.25, 3)


@pytest.mark.parametrize(("above", "expected"), [(2.0, 1.0), (1.0, 0.5)])
def test_an_adaptive_share_where_the_size_rests_at_what_was_wanted(above, expected):
    """It is 4 of 4 up to 0.5, just the half up to 0.75, and then `above`."""

    def log_weights(share):
        alive = 4.0 if share < 0.5 else 2.0 if share <= 0.75 else above
        return pair(*(0.0 if i < alive else -math.inf for i in range(4)))

    found = Adaptive(0.5).choose(log_weights, pair(0.0)).item()
    assert found == pytest.approx(expected, abs=1e-11)


def test_shares_of_lambda():
    for bad in (0.0, 1.0, 1.5):
        with pytest.raises(InvalidArgument, match=r"lie in \(0, 1\)"):
            Adaptive(bad)
    assert share_at(math.sqrt, 1, 0.25, 3) == 0.5
    assert share_at([0.5, 0.25], 1, 0.25, 2) == 0.25


def test_a_scale_of_zero_forgets_infinities_and_no_other_does():
    values = torch.tensor([-math.inf, 2.0])
    assert scaled(0.0, values).tolist() == [0.0, 0.0]
    assert scaled(0.5, values).tolist() == [-math.inf, 1.0]


# ------------------------------------------------------------------------------------- the twist


def tables():
    for path, steps in product((Linear(), EDM()), (1, 3)):
        yield plan(path, transitions=3, steps=steps, rho=0.3, solver=Default(sigma_data=0.7))


@pytest.mark.parametrize("table", list(tables()), ids=range(4))
@pytest.mark.parametrize("shape", [(4, 2), (4, 2, 3)])
def test_the_shift_is_the_gradient_times_how_far_noise_reaches(table, shape):
    gradient = normal(*shape)
    gradient[3] = 0.0
    for step in table.transitions[1:]:
        twist = Twist(0.6, cap=0.2, sigma_data=0.7)
        spread = step.alpha_next**2 * 0.49 + step.sigma_next**2
        follow = step.alpha_next * 0.49 / spread if step.sigma_next > 0.0 else 1.0  # ∂D/∂x'
        slope = step.alpha * 0.49 / (step.alpha**2 * 0.49 + step.sigma**2)
        variance = 0.49 * (1.0 - step.alpha * slope)
        gain = math.sqrt(step.sigma_bar**2 + step.alpha_bar**2 * variance * (len(step.rows) > 1))
        assert noise_gain(step, table.path, 0.7) == pytest.approx(gain, rel=1e-9)
        wanted = 0.6 * gain * follow * gradient
        for i, row in enumerate(wanted):
            length = float(row.norm())
            wanted[i] = row * min(1.0, 0.2 / length) if length else row
        found = twist.shift(step, table.path, gradient)
        torch.testing.assert_close(found, wanted, rtol=1e-9, atol=0)
        lengths = found.reshape(4, -1).norm(dim=1)
        assert (lengths <= 0.2 * (1 + 1e-12)).all()


def slope_of(gradients, estimates, values):
    """In loops: the slope of V_j - V_i on (g_i + g_j)·(D_j - D_i)/2, over finite differences."""
    top = bottom = 0.0
    for i, j in product(range(len(values)), repeat=2):
        difference = values[j] - values[i]
        if math.isfinite(difference):
            rise = 0.5 * float(
                ((gradients[i] + gradients[j]) * (estimates[j] - estimates[i])).sum()
            )
            top, bottom = top + rise * difference, bottom + rise**2
    return min(max(top / bottom, 0.0), 1.0) if bottom else 1.0


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
def test_what_gradients_explain_over_all_pairs(shape):
    P, N = 5, 4
    g, D = normal(P * N, *shape, seed=1), normal(P * N, *shape, seed=2)
    values = normal(P, N, seed=3) * 0.3
    values[1, 2] = -math.inf
    values[2] = -math.inf
    g[12:16] = 0.0
    values[4] = (g[16:] * D[16:]).reshape(N, -1).sum(1) * 0.3
    found = informative(g, D, values)
    assert found.shape == (P, 1)
    for p in range(P):
        rows = slice(p * N, p * N + N)
        expected = slope_of(g[rows], D[rows], values[p].tolist())
        assert found[p].item() == pytest.approx(expected, rel=1e-12, abs=1e-14)
    assert found[2].item() == found[3].item() == 1.0  # nothing says otherwise


def test_gradients_explain_quadratic_values_wholly_and_their_opposite_not_at_all():
    D = normal(6, 2)
    values, g = -0.5 * D.square().sum(1)[None], -D
    assert informative(g, D, values).item() == pytest.approx(1.0, rel=1e-12)
    assert informative(g, D, 0.25 * values).item() == pytest.approx(0.25, rel=1e-12)
    assert informative(g, D, 4.0 * values).item() == 1.0
    assert informative(g, 1e-3 * D, 2.5e-4 * values).item() == pytest.approx(0.25, rel=1e-12)
    assert informative(g, D, -values).item() == 0.0


def a_boundary(step, x):
    return Boundary(1, step.t, x, Estimate(x, x), step)


@pytest.mark.parametrize("adaptive", [True, False])
def test_a_twister_weighs_its_shift_and_learns_from_it(adaptive):
    """Two populations of three, in pieces of two rows, with a value of -inf on the way."""
    P, N, trust, cap = 2, 3, 0.7, 9.0
    table = plan(Linear(), transitions=3, steps=2, rho=0.3)
    twist = Twist(0.8, cap=cap, adaptive=adaptive, trust=trust)
    pieces = [slice(0, 2), slice(2, 4), slice(4, 6)]
    twister = Twister(twist, table, P, lambda own: own.view(P, N), pieces)
    assert twister.log_ratio() == 0.0
    assert twister.used.tolist() == [0.0, 0.0]
    step, prior = table.transitions[1], real([[0.5], [0.9]])
    share = real([[0.5], [1.5]])
    top, bottom = torch.zeros(2, P, 1).double()
    for turn in range(3):
        gradient, value = 0.4 * normal(6, 2, seed=turn), normal(P, N, seed=10 + turn)
        boundary = a_boundary(step, normal(6, 2, seed=20 + turn))
        twister.shift(boundary, gradient, value, share, prior)
        wish = share.repeat_interleave(N, 0) * gradient
        delta = twist.shift(step, table.path, wish)
        trusted = ((trust * prior + top) / (trust + bottom)).clamp(0.0, 1.0)
        if not adaptive:
            trusted = torch.ones_like(trusted)
        expected = trusted.repeat_interleave(N, 0) * delta
        torch.testing.assert_close(boundary.delta, expected, rtol=1e-12, atol=0)
        torch.testing.assert_close(twister.used, trusted[:, 0], rtol=1e-12, atol=0)
        boundary.noise = normal(6, 2, seed=30 + turn)
        if turn == 1:  # what is kept of it is enough
            kept = {name: tensor.clone() for name, tensor in twister.state().items()}
            twister = Twister(twist, table, P, lambda own: own.view(P, N), pieces)
            twister.restore(kept)
        drawn = boundary.noise + boundary.delta
        exact = 0.5 * (boundary.noise.square() - drawn.square()).sum(1).view(P, N)
        torch.testing.assert_close(twister.log_ratio(), exact, rtol=1e-10, atol=1e-12)
        assert twister.used.tolist() == [0.0, 0.0]
        now = normal(P, N, seed=40 + turn)
        if turn == 0:  # of the first population two particles say something, of the second one
            now[0, 1] = now[1, 0] = now[1, 2] = -math.inf
        if turn == 1:  # more than was promised
            now = value + 9.0 * (delta * drawn).sum(1).view(P, N)
        twister.learn(None)  # a boundary without values
        twister.learn(now)
        twister.learn(now)  # and learns once
        for p in range(P):
            ours = [n for n in range(N) if math.isfinite(now[p, n])]
            x = [float(delta[p * N + n] @ drawn[p * N + n]) for n in ours]
            y = [float(share[p] * (now[p, n] - value[p, n])) for n in ours]
            x, y = (real(v) - sum(v) / len(v) for v in (x, y))
            top[p] += x @ y
            bottom[p] += x @ x
        torch.testing.assert_close(twister._products, top, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(twister._squares, bottom, rtol=1e-9, atol=1e-12)


def test_the_end_has_no_noise_to_shift():
    table = plan(Linear(), transitions=2, steps=2, rho=0.3)
    x = torch.zeros(1, 2)
    end = Boundary(2, 1.0, x, Estimate(x, x), None)
    one = pair(1.0)
    with pytest.raises(InvalidArgument, match="draws no noise"):
        Twister(Twist(), table, 1, lambda v: v, [slice(0, 1)]).shift(end, x, one, one, one)


def test_the_twist_that_is_documented():
    assert (Twist().scale, Twist().cap, Twist().sigma_data) == (1.0, 0.75, 1.0)
    assert (Twist().adaptive, Twist().trust) == (True, 8.0)
    assert Steering().twist == Twist(0.0)


@pytest.mark.parametrize(("field", "zero"), [("scale", True), ("cap", False), ("sigma_data", False),
                                             ("trust", False)])  # fmt: skip
def test_the_numbers_of_a_twist_have_ends(field, zero):
    assert vars(Twist(**{field: 1e-300}))[field] == 1e-300
    if zero:
        assert Twist(scale=0.0).scale == 0.0
    else:
        with pytest.raises(InvalidArgument, match=field):
            Twist(**{field: 0.0})
    if field == "cap":
        assert Twist(cap=math.inf).cap == math.inf
    else:
        with pytest.raises(InvalidArgument, match=field):
            Twist(**{field: math.inf})
    with pytest.raises(InvalidArgument, match="adaptive"):
        Twist(adaptive=1)


# ----------------------------------------------------------------- settings, populations, costs


def test_the_settings_of_methods_have_ends():
    assert Steering(schedule=[0.0, 2.0]).schedule == (0.0, 2.0)
    for bad in (-1e-9, math.inf):
        with pytest.raises(InvalidArgument, match="share of lambda"):
            Steering(schedule=[bad, 1.0])
    assert (Steering(scale=0.0).scale, Steering(boundaries=[0]).boundaries) == (0.0, (0,))
    with pytest.raises(InvalidArgument, match="scale"):
        Steering(scale=math.inf)
    with pytest.raises(InvalidArgument, match="ess_threshold"):
        Steering(ess_threshold=1.5)
    assert [Steering(ess_threshold=v).ess_threshold for v in (0.0, 1.0)] == [0.0, 1.0]


def test_the_settings_that_are_documented():
    assert (Steering().particles, Steering().scale, Steering().ess_threshold) == (8, Auto(), 0.5)
    assert (Beam().particles, Beam().scale) == (8, Auto())
    assert Steering.weighted
    assert BestOf.weighted
    assert not Beam.weighted
    assert Beam().children == 2
    for call, names in (
        (steer, {"particles": 8, "scale": "auto", "transitions": 6, "steps": 4, "rho": 0.4}),
        (best_of, {"particles": 8, "scale": 1.0, "transitions": 1, "steps": 24}),
        (beam, {"particles": 8, "children": 2, "scale": "auto", "transitions": 6, "steps": 4}),
        (greedy, {"particles": 8, "children": 2, "scale": "auto", "transitions": 6, "steps": 4}),
    ):
        told = inspect.signature(call).parameters
        assert {name: told[name].default for name in names} == names


@pytest.mark.parametrize(
    ("twist", "scale", "guidance", "twisted", "guided"),
    [
        (0.0, 1.0, None, False, False),
        (0.5, 0.5, None, True, False),
        (0.5, 0.0, None, False, False),
        (0.0, 1.0, Guidance(0.5), False, True),
        (0.5, 0.5, Guidance(0.0), True, False),
    ],
)
def test_when_gradients_are_wanted(twist, scale, guidance, twisted, guided):
    chosen = Steering(scale=scale, twist=twist, guidance=guidance)
    assert (chosen.twisted, chosen.guided) == (twisted, guided)
    assert chosen.differentiates == (twisted or guided)


def test_where_a_method_looks_by_default():
    """Wherever noise follows, if resampling or a twist can act on what is seen there."""
    table = plan(Linear(), transitions=3, steps=2, rho=0.3)
    assert Steering(ess_threshold=0.0).steered(table) == set()
    assert Steering(ess_threshold=0.5).steered(table) == {1, 2}
    assert Steering(ess_threshold=0.0, twist=0.5).steered(table) == {1, 2}
    assert Steering(boundaries=2).steered(table) == {0, 2}
    assert Steering(boundaries=[]).steered(table) == set()
    assert BestOf().steered(table) == BestOf()._steering.steered(table) == set()
    assert steered_boundaries(table, [2], decides=False) == {2}
    assert steered_boundaries(table, [0], decides=True) == {0}
    one = plan(Linear(), transitions=1, steps=2, rho=0.3)
    assert steered_boundaries(one, [], decides=True) == steered_boundaries(one, None, True) == set()
    assert steered_boundaries(table, None, decides=False) == set()
    with pytest.raises(InvalidArgument, match="numbered 0 to 2"):
        steered_boundaries(table, [0, 3], decides=True)
    with pytest.raises(InvalidArgument, match="2 shares of lambda for 3"):
        Steering(schedule=[0.5, 1.0]).check_table(table)
    with pytest.raises(InvalidArgument, match="2 shares of lambda for 1"):  # seen though unused
        Steering(schedule=[0.5, 1.0]).check_table(plan(Linear(), transitions=1, steps=2, rho=0.3))


def test_the_calls_that_a_progress_bar_counts():
    table = plan(Linear(), transitions=3, steps=[2, 3, 4], rho=0.3)
    chosen = Steering(value=PosteriorValue(3, 5), boundaries=1)
    assert chosen.calls(table) == 9 + 3 * 5 + 2 * 3 * 4  # pure noise is asked once more
    assert chosen.calls(table, 1) == 7 + 2 * 3 * 4
    assert Steering().calls(table) == 9


def test_a_method_of_ones_own_is_taken_to_steer_by_lambda():
    assert Method.tilts.fget(Beam()) and not Method.weighted


def test_a_run_that_is_stopped_ends_at_data_one_boundary_on():
    boundary = next(iter(a_run().boundaries()))
    end = Course.end(None, boundary)
    assert (end.index, end.t, end.final) == (1, 1.0, True)
    assert end.x is boundary.D and end.estimate.D is end.estimate.untilted is boundary.D


def test_boundaries_are_listed_from_0_or_left_to_the_method():
    assert Steering(boundaries=None).boundaries is None
    assert Steering(boundaries=[0, 2]).boundaries == (0, 2)
    assert Steering(guidance=None).guidance is None
    for bad in ([-1], [None], 0):
        with pytest.raises(InvalidArgument, match="boundaries"):
            Steering(boundaries=bad)


def test_when_lambda_has_a_say_in_a_search():
    """The order of λ r(D) is that of r(D); guidance, posterior values and shares depend on λ."""
    plain, own = {}, {"value": lambda x, t, D: x[:, 0]}
    deep, guided = {"value": PosteriorValue(2, 2)}, {"guidance": "reward"}
    for given, told in ((plain, False), (own, False), (deep, True), (guided, True)):
        assert Beam(**given).tilts == Greedy(**given, pick="best").tilts == told
        assert Greedy(**given, pick="sample").tilts
    assert Beam(**deep, **guided).tilts


def test_a_search_looks_where_it_is_told_and_takes_no_gradients():
    steps = []
    result = beam(
        Denoiser(lambda x, t: 0.5 * x, Linear(), "sample"),
        FunctionReward(torch.no_grad()(lambda z: z.sum(1)), differentiable=False),
        shape=(2,), particles=4, children=2, boundaries=[2], transitions=4, steps=1, rho=0.3,
        seed=0, on_boundary=steps.append,
    )  # fmt: skip
    assert [bool(step.rewards.isnan().all()) for step in steps] == [True, True, False, True, False]
    assert [len(set(line.tolist())) for line in result.ancestry[:, 0]] == [4, 4, 2, 4]
    assert result.reward_evaluations == 8
    assert result.slots is None and result.samples.shape == (1, 4, 2)


def test_where_nothing_is_selected_everyone_is_their_own_ancestor():
    everyone = Selection.everyone(3, 2)
    assert everyone.ancestors.tolist() == [[0, 1]] * 3
    assert everyone.selected.tolist() == [False] * 3


def test_the_pictures_of_a_step_are_decoded_from_its_estimates():
    x = normal(2, 3)
    boundary = Boundary(1, 1.0, x, Estimate(x, x), None)
    everyone = Selection.everyone(1, 2)
    told = (boundary, pair(0.0, 0.0), everyone.ancestors, everyone.selected, Costs(), History())
    step = Step(*told, scene=Scene(decode=lambda z: [float(one.sum()) for one in z]))
    assert step.images() == pytest.approx(x.sum(1).tolist())
    with pytest.raises(InvalidArgument, match=r"make pictures of step\.estimates"):
        Step(*told).images()


def test_populations_in_one_batch():
    one = Population.of(3, (2,), prompts=["a", "b"])
    assert (one.count, len(one), one.prompts) == (2, 6, ("a",) * 3 + ("b",) * 3)
    assert Population.of(3, (2,)).count == 1
    assert Population.of(3, (2,), 4).prompts is None
    ancestors = torch.tensor([[2, 0, 0], [1, 1, 2]])
    assert one.rows(ancestors).tolist() == [2, 0, 0, 4, 4, 5]
    model = GaussianMixture(torch.zeros(1, 2), 1.0).denoiser(Linear())
    assert one.home(model) is None
    assert Population.of(3, (2,), device="cpu").home(model) == torch.device("cpu")
    for bad in ({"prompts": "ab"}, {"prompts": 3}, {"prompts": ["a"], "populations": 2}):
        with pytest.raises(InvalidArgument, match="prompts"):
            Population.of(3, (2,), **bad)
    for bad in (2, "2", None):
        with pytest.raises(InvalidArgument, match="shape"):
            Population.of(3, bad)


def test_the_ends_of_a_population():
    assert not Population(3, 1, (2,)).given
    assert Population.of(3, (2,), dtype=torch.float64).dtype == torch.float64
    assert Population.of(3, (2,)).dtype == torch.float32
    with pytest.raises(InvalidArgument, match="populations x particles, got 33554432"):
        Population.of(2**13, (1,), 2**12)
    with pytest.raises(InvalidArgument, match="comes first"):
        Population.of(3, (2,)).noising(normal(1, 2), Linear(), 0.5)


def halving(x, t):
    return 0.5 * x


def a_run(shards=None, *, table=None, model=halving, reward=None, method=None, **population):
    denoiser = model if isinstance(model, GuidedDenoiser) else Denoiser(model, Linear(), "sample")
    return Run(
        table or plan(Linear(), transitions=3, steps=2, rho=0.4),
        denoiser,
        reward or (lambda z: z.sum(1)),
        method or Steering(4, 1.0),
        Population.of(4, (2,), seed=0, **population),
        shards=shards,
    )


@pytest.mark.parametrize(
    ("micro", "count", "cut"), [(None, 1, False), (4, 1, False), (2, 1, True), (None, 2, True)]
)
def test_a_batch_is_cut_where_its_rows_do_not_go_together(micro, count, cut):
    """Into micro-batches, or for processes: the second of two has rows 2 and 3."""
    shards = Shards(micro)
    shards.rank, shards.count = count - 1, count
    run = a_run(shards)
    assert isinstance(run.model.denoiser, Pieces) == cut
    assert len(run.x) == 4 // count
    assert torch.equal(run.x, KeyedNoise(0)(0, torch.empty(4, 2), START)[run.shards.own])


def test_a_run_begins_with_its_first_boundary_and_no_gradient():
    run = a_run()
    assert (run.first, run.asked, run.found) == (0, run.tilt, None)
    boundary = next(iter(run.boundaries()))
    assert boundary.index == 0
    assert run.look(boundary)._wanted is False


def test_who_may_begin_with_what():
    assert Population.of(3, ()).shape == ()
    assert not Population.of(3, (2,)).given and Population.of(3, (2,), x=normal(3, 2)).given
    whole = plan(Linear(), transitions=3, steps=2, rho=0.4)
    late = whole.since(1)
    with pytest.raises(TimeError, match="samples start at noise"):
        a_run(table=late)
    x = normal(4, 2)
    assert torch.equal(a_run(table=late, x=x).x, x)
    early = Table(whole.path, whole.transitions[:2], {})
    with pytest.raises(TimeError, match="steering ends at data"):
        a_run(table=early, x=x)
    with pytest.raises(ShapeError, match="one for each particle"):
        a_run(x=x[:3])
    chains = Population.of(4, (2,), seed=0).refining(x)
    model = Denoiser(halving, Linear(), "sample")
    Run(late, model, lambda z: z.sum(1), Steering(4, 1.0), chains)


def test_who_may_be_guided_by_what():
    told = {None: False, Guidance(0.0): False, Guidance(0.5): True}
    flat = FunctionReward(lambda z: z.sum(1), differentiable=False)
    guided = GuidedDenoiser(Denoiser(halving, Linear(), "sample"), lambda z: z.sum(1))
    for guidance, guides in told.items():
        method = Steering(4, 1.0, guidance=guidance)
        assert a_run(method=method).guides == guides
        for options, match in (({"reward": flat}, "no gradient"), ({"model": guided}, "already")):
            if guides:
                with pytest.raises(InvalidArgument, match=match):
                    a_run(method=method, **options)
            else:
                a_run(method=method, **options)
    asking = FunctionReward(lambda z, prompts: z.sum(1), takes_prompts=True)
    with pytest.raises(InvalidArgument, match="takes prompts"):
        a_run(reward=asking)
    a_run(reward=asking, prompts=["a"])
    a_run(prompts=["a"])


def test_what_a_run_has_cost_is_counted_on_from_before():
    run = a_run(reward=Decoded(lambda z: z.sum(1), lambda z: z))
    next(iter(run.boundaries()))
    run.scorer.rewards(normal(4, 2), "here")
    assert run.costs == Costs(4, 0, 4, 4)
    run.resume(Costs(10, 20, 30, 40))
    assert run.costs == Costs(10, 20, 30, 40)
    run.scorer.rewards(normal(4, 2), "here")
    assert run.costs == Costs(10, 20, 34, 44)


def test_an_error_between_boundaries_has_the_last_one():
    boundaries = a_run(model=lambda x, t: x / (t < 0.5)[:, None]).boundaries()
    with pytest.raises(NonFinite) as raised:
        for last in boundaries:
            seen = last
    assert raised.value.boundary is seen


@pytest.mark.parametrize("answer", [[1.0, None], (1.0,), (1.0, None, None)])
def test_a_value_is_a_pair(answer):
    run = a_run()
    look = run.look(next(iter(run.boundaries())))
    with pytest.raises(InvalidArgument, match=r"a value returns \(V, rewards or None\)"):
        run.valued(lambda look: answer, look)


class Memory:
    """A recorder that keeps what it is told, and goes on from `at`."""

    pictures = None

    def __init__(self, at=None):
        self.at, self.begun, self.kept, self.steps = at, [], [], []

    def saved(self):
        return self.at

    def begin(self, run):
        self.begun.append(run)

    def save(self, saved):
        self.kept.append(saved)

    def step(self, step):
        self.steps.append(step)


def recorded(record, **options):
    given = {"transitions": 4, "steps": 1, "rho": 0.3, "seed": 3, "ess_threshold": 1.0}
    given |= {"also": {"held": lambda z: z[:, 0]}, **options}
    model = Denoiser(halving, Linear(), "sample")
    return steer(model, lambda z: z.sum(1), shape=(2,), particles=4, record=record, **given)


@pytest.mark.parametrize("scale", [1.5, "auto"])
def test_from_every_boundary_that_is_kept_it_goes_on_to_the_same_end(scale):
    first = Memory()
    whole = recorded(first, scale=scale)
    assert [one.index for one in first.kept] == [0, 1, 2, 3, 4]
    assert len(first.steps) == 5 and len(first.begun) == 1
    assert recorded(None, scale=scale).rewards.tolist() == whole.rewards.tolist()
    for saved in first.kept:
        record = Memory(saved)
        again = recorded(record, scale=scale)
        assert record.begun[0].first == record.kept[0].index == saved.index
        for name in ("samples", "rewards", "log_weights", "ancestry"):
            assert torch.equal(getattr(again, name), getattr(whole, name))
        assert torch.equal(again.also["held"], whole.also["held"])
        assert again.strength.scale == whole.strength.scale
        assert again.costs == whole.costs


def test_a_recorded_run_needs_a_seed():
    with pytest.raises(InvalidArgument, match="needs a seed="):
        recorded(Memory(), scale=1.0, seed=None)
    with pytest.raises(InvalidArgument, match="record must be"):
        recorded("run", scale=1.0)


@pytest.mark.parametrize(("answer", "at"), [(True, 1), (False, None), (None, None)])
def test_only_true_ends_a_run(answer, at):
    """At the boundary where it is said: its clean estimates are the samples."""
    seen = []

    def watch(step):
        seen.append(step)
        return answer if step.boundary.index == 1 else False

    result = recorded(None, scale=1.0, on_boundary=watch)
    assert result.stopped == at
    assert [step.boundary.index for step in seen] == ([0, 1, 2] if at else [0, 1, 2, 3, 4])
    for bad in (1, "yes"):
        with pytest.raises(InvalidArgument, match="on_boundary returns True"):
            recorded(None, scale=1.0, on_boundary=lambda step, bad=bad: bad)
    at_the_end = recorded(None, scale=1.0, on_boundary=lambda step: step.boundary.final)
    assert at_the_end.stopped is None


def test_held_out_rewards_follow_the_lines_of_what_is_returned():
    result = recorded(None, scale=5.0)
    assert torch.equal(result.also["held"], result.samples[..., 0].double())
    assert recorded(None, scale=5.0, also=None).also == {}


def test_costs_add_up():
    one, two = Costs(1, 2, 3, 4), Costs(10, 20, 30, 40)
    assert one + two == Costs(11, 22, 33, 44)
    assert two - one == Costs(9, 18, 27, 36)
    assert Costs() == Costs(0, 0, 0, 0)


def test_lines_of_ancestors_and_the_best_of_each_population():
    ancestry = torch.tensor([[[0, 1, 2]], [[2, 2, 0]], [[1, 0, 0]]])
    samples = torch.arange(6.0).view(1, 3, 2)
    result = SearchResult(samples, pair(0.5, 2.0, 1.0), ancestry, Costs())
    assert result.lineage[:, 0].tolist() == [[2, 2, 2], [2, 2, 2], [1, 0, 0], [0, 1, 2]]
    assert result.best.tolist() == [[2.0, 3.0]]


def test_posterior_values_take_the_first_evaluation_from_the_boundary():
    value = PosteriorValue(samples=3, steps=4)
    assert value.extra_calls(Linear(), 0.5) == 3 * 3
    assert value.extra_calls(Linear(), 0.0) == 3 * 4  # draws from noise of their own


def test_other_values_take_no_evaluations():
    for value in (FreeValue(), ValueFunction(lambda x, t, D: x[:, 0])):
        assert value.extra_calls(Linear(), 0.0) == value.extra_calls(Linear(), 0.5) == 0


def test_what_posterior_values_cost_by_default():
    """Four draws of three evaluations, the first of which the boundary has made already."""
    assert PosteriorValue().extra_calls(Linear(), 0.5) == 4 * 2
    assert PosteriorValue().extra_calls(Linear(), 0.0) == 4 * 3


def look_at(t, estimate, *, path=None, noise=None, pieces=None, first=0, **options):
    """A look with V = z summed, of four particles of two numbers."""
    pieces = [slice(0, 4)] if pieces is None else pieces
    scorer = Scorer(FunctionReward(lambda z: z.sum(1)), None, pieces, first)
    boundary = Boundary(1, t, normal(4, 2), estimate, None)
    denoiser = Denoiser(lambda x, t: x, path or Linear(), "sample")
    return Look(boundary, denoiser, scorer, 1.0, noise or KeyedNoise(0), "here", **options)


def guided_estimate():
    return Estimate(normal(4, 2, seed=1), normal(4, 2, seed=2))


def test_a_scorer_counts_from_nothing():
    scorer = Scorer(FunctionReward(lambda z: z.sum(1)), None, [slice(0, 4)])
    assert (scorer.evaluations, scorer.decodes) == (0, 0)
    scorer.rewards(normal(4, 2), "here")
    assert (scorer.evaluations, scorer.decodes) == (4, 0)
    with pytest.raises(NonFinite) as raised:
        scorer.rewards(real([[0.0], [0.0], [math.nan], [0.0]]), "here")
    assert raised.value.particles == (2,)


def test_a_look_shows_the_guided_estimate_and_the_untilted_one():
    estimate = guided_estimate()
    seen = look_at(0.4, estimate).estimate
    assert torch.equal(seen.D, estimate.D) and torch.equal(seen.untilted, estimate.untilted)
    assert seen.D is not estimate.D and seen.untilted is not estimate.untilted
    seen = look_at(0.4, Estimate(estimate.D, estimate.D)).estimate
    assert torch.equal(seen.D, estimate.D) and seen.untilted is seen.D


def test_a_look_takes_no_gradient_that_nobody_wants():
    for wanted in ({}, {"gradient": False}, {"gradient": True}):
        look = look_at(0.4, guided_estimate(), **wanted)
        look.rewards()
        assert (look._gradient is not None) == wanted.get("gradient", False)


def test_draws_of_a_posterior_begin_with_the_noise_of_the_path():
    """V at pure noise: draws of M = 1, which are D = x itself, and x has deviation two."""
    look = look_at(0.0, guided_estimate(), path=Wide())
    _, rewards = PosteriorValue(1, 1)(look)
    noise = KeyedNoise(0)(1, normal(4, 2), POSTERIOR, 0)
    torch.testing.assert_close(rewards, 2.0 * noise.sum(1))


def test_a_posterior_value_is_not_larger_than_a_table():
    PosteriorValue(1000, 100)
    with pytest.raises(InvalidArgument, match="at most 100,000 network evaluations"):
        PosteriorValue(1000, 101)


def test_a_value_that_is_not_finite_is_named_by_its_row_of_the_batch():
    pieces = [slice(0, 2), slice(2, 4)]
    look = look_at(0.4, Estimate(normal(4, 2), normal(4, 2)), pieces=pieces, first=10)
    bad = look.x[3, 0]
    value = ValueFunction(lambda x, t, D: torch.where(x[:, 0] == bad, math.nan, x[:, 0]))
    with pytest.raises(NonFinite) as raised:
        value(look)
    assert raised.value.particles == (13,)


def test_a_weighted_mean_is_along_the_particles_and_forgets_what_has_no_weight():
    weights = torch.tensor([[0.25, 0.75, 0.0], [0.5, 0.0, 0.5]])
    values = torch.tensor([[4.0, 8.0, -math.inf], [1.0, math.nan, 3.0]])
    assert weighted_mean(weights, values).tolist() == [7.0, 2.0]
    assert weighted_mean(weights[:1], values[:1]).tolist() == [7.0]


def test_a_gradient_that_is_not_finite_is_named_by_its_row_of_the_batch():
    scorer = Scorer(FunctionReward(lambda z: z.sqrt().sum(1)), None, [slice(0, 2), slice(2, 4)], 10)
    z = torch.tensor([[1.0], [1.0], [1.0], [0.0]])
    with pytest.raises(NonFinite) as raised:
        scorer.with_gradient(z, "here")
    assert raised.value.particles == (13,)


def test_lines_of_a_result_show_six_populations():
    for P, dots in ((6, False), (7, True)):
        rewards = torch.arange(float(P))[:, None]
        nobody = torch.zeros(0, P, 1, dtype=torch.long)
        first = SearchResult(torch.zeros(P, 1, 2), rewards, nobody, Costs()).lines()[0]
        assert first.startswith("best reward 0, 1, 2, 3, 4, 5")
        assert (", ...;" in first) == dots and " 6" not in first.partition(";")[0]


def test_noise_around_a_sample_has_the_path_s_amplitudes():
    """α_t z + σ_t ε, z that of the particle's population."""
    noise = torch.randn(6, 2, generator=torch.Generator().manual_seed(0)).double()
    around = torch.tensor([[2.0, -3.0], [0.5, 7.0]]).double()
    one = Population.of(3, (2,), 2, x=noise)
    begun = one.noising(around, Linear(), 0.2)
    each = around[[0, 0, 0, 1, 1, 1]]
    torch.testing.assert_close(begun.x, 0.2 * each + 0.8 * noise)
    assert begun.around is around
    with pytest.raises(InvalidArgument, match="noise to begin with"):
        Population.of(3, (2,), 2).noising(around, Linear(), 0.2)


def test_the_last_weights_are_those_of_the_ladder():
    """Independent draws, plain and weighted: by what they weigh at the end, not on the way."""
    weights = torch.tensor([[[0.5, 0.5]], [[0.9, 0.1]], [[0.2, 0.8]]]).double()
    ancestors = torch.arange(2).expand(2, 1, 2)
    model = object()
    course = SimpleNamespace(
        settings=SimpleNamespace(twisted=False),
        run=SimpleNamespace(moving=model, model=model, scale=3.0),
    )
    last = SimpleNamespace(also={}, rewards=torch.zeros(1, 2))
    history = {"beside.weights": weights, "ancestors": ancestors}
    plain, whole = Weighted.ladder(course, last, history)
    assert (plain.scale, whole.scale) == (0.0, 3.0)
    assert torch.equal(whole.weights, weights[2])
    assert Weighted.ladder(course, last, {**history, "ancestors": ancestors.flip(-1)}) == []
