"""Steering that meets bad input: named errors, nothing asked in vain, and no particles lost.

And several conditions at once: every population keeps its own conditioning and prompt.
"""

from __future__ import annotations

import math
import re

import pytest
import torch

from cases import fast, first
from glass_flows import (
    Denoiser,
    Guidance,
    GuidedDenoiser,
    Twist,
    beam,
    best_of,
    greedy,
    plan,
    steer,
)
from glass_flows.errors import (
    MOST_PARTICLES,
    DegenerateWeights,
    InvalidArgument,
    NonFinite,
    RewardError,
    ShapeError,
    UnknownName,
)
from glass_flows.paths import Linear
from glass_flows.rewards import FunctionReward
from glass_flows.steering import Adaptive, PosteriorValue, Shards, Steering, iterate_steering
from glass_flows.steering.population import Population
from statistics_rules import covering

SAMPLER = {"transitions": 3, "steps": 2, "rho": 0.4}
SETTINGS = {
    "shape": (2,),
    "particles": 6,
    "scale": 1.0,
    "seed": 1,
    "dtype": torch.float64,
    **SAMPLER,
}
TIMES = ("boundary 1 (t = 0.333333)", "boundary 2 (t = 0.666667)", "the end")


def network(x, t):
    return torch.tanh(2.0 * x) + 0.1 * t[:, None]


DENOISER = Denoiser(network, Linear(), "sample")


def good(z):
    return z.sum(1)


def literally(text):
    """A pattern for `match`, where the text has brackets."""
    return "".join(f"\\{c}" if c in r"()[]+." else c for c in text)


def never_asked(x, t, **conditioning):
    raise AssertionError("the network was asked")


UNASKED = Denoiser(never_asked, Linear(), "sample")


class Spoilt:
    """The good reward, but for one call."""

    def __init__(self, call, spoil):
        self.call, self.spoil, self.calls = call, spoil, 0

    def __call__(self, z):
        self.calls += 1
        return self.spoil(z) if self.calls == self.call + 1 else good(z)


def at(index, value):
    def spoil(z):
        rewards = good(z)
        rewards[index] = value
        return rewards

    return spoil


def lacking(z):
    raise KeyError("no such prompt")


SPOILS = {
    "shape": (
        lambda z: z,
        ShapeError,
        "the reward 'spoilt' must return a real tensor of shape (6,), one number per sample, "
        "got (6, 2) of torch.float64",
    ),
    "mean": (lambda z: good(z).mean(), ShapeError, "got () of torch.float64"),
    "list": (lambda z: good(z).tolist(), ShapeError, "got list"),
    "nan": (at(3, math.nan), NonFinite, "the reward 'spoilt' returned NaN or +inf"),
    "inf": (at(3, math.inf), NonFinite, "the reward 'spoilt' returned NaN or +inf"),
    "raises": (lacking, RewardError, "the reward 'spoilt' raised KeyError: 'no such prompt'"),
    "veto": (lambda z: good(z) - math.inf, DegenerateWeights, "the reward excludes them all"),
    "range": (lambda z: good(z) + 1e4, RewardError, "outside its declared range [-100, 100]"),
}


def spoilt(call, kind):
    spoil = Spoilt(call, SPOILS[kind][0])
    return FunctionReward(spoil, "spoilt", range=(-100.0, 100.0) if kind == "range" else ALL)


ALL = (-math.inf, math.inf)


# --- bad rewards, nothing lost ------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "kind", "twist"),
    fast(lambda case: case[0] != 2, covering([0, 1, 2], SPOILS, [0.0, 1.0])),
)
def test_bad_rewards_are_named_and_the_particles_kept(call, kind, twist):
    settings = {**SETTINGS, "twist": twist, "ess_threshold": 0.9}
    _, error, message = SPOILS[kind]
    with pytest.raises(error) as caught:
        steer(DENOISER, spoilt(call, kind), **settings)
    assert message in str(caught.value)
    assert TIMES[call] in str(caught.value)
    if kind in ("nan", "inf"):
        assert caught.value.particles == (3,)
    boundary = caught.value.boundary
    assert boundary.index == call + 1
    assert boundary.final == (call == 2)

    # the same run with a good reward
    names = ("particles", "scale", "twist", "ess_threshold")
    steering = Steering(**{name: settings[name] for name in names})
    rest = {name: settings[name] for name in ("shape", "seed", "dtype")}
    steps = iterate_steering(plan(Linear(), **SAMPLER), DENOISER, good, steering, **rest)
    for step in steps:
        if step.boundary.index == boundary.index:
            break
        resampled = step.resampled
    assert bool(resampled) or call == 0  # and there was something to repeat
    rows = step.ancestors[0]
    assert torch.equal(step.boundary.x, boundary.x[rows])
    assert torch.equal(step.boundary.D, boundary.D[rows])
    if boundary.final:
        assert torch.equal(boundary.x, steer(DENOISER, good, **settings).samples[0])
    else:
        assert torch.equal(boundary.D, DENOISER(boundary.x, boundary.t))


@pytest.mark.parametrize("kind", ["shape", "nan", "raises"])
@pytest.mark.parametrize("call", [0, 2], ids=["boundary 1", "the end"])
@pytest.mark.parametrize(
    ("search", "options"),
    [(beam, {"children": 2}), (greedy, {"children": 2})],
    ids=["beam", "greedy"],
)
def test_search_keeps_its_particles_too(search, options, call, kind):
    settings = {**SETTINGS, **options}
    _, error, message = SPOILS[kind]
    with pytest.raises(error) as caught:
        search(DENOISER, spoilt(call, kind), **settings)
    assert message in str(caught.value)
    assert TIMES[call] in str(caught.value)
    assert caught.value.boundary.index == call + 1
    if call == 2:
        finished = search(DENOISER, good, **settings).samples.view(-1, 2)
        kept = caught.value.boundary.x
        assert all(any(torch.equal(z, x) for x in kept) for z in finished)


def test_best_of_n_keeps_its_samples():
    settings = {**SETTINGS, "rho": "ode"}
    with pytest.raises(RewardError) as caught:
        best_of(DENOISER, spoilt(0, "raises"), **settings)
    assert caught.value.boundary.final
    assert torch.equal(caught.value.boundary.x, best_of(DENOISER, good, **settings).samples[0])


def test_a_greedy_draw_without_weight_keeps_the_samples():
    settings = {**SETTINGS, "particles": 12, "children": 2, "pick": "sample"}
    with pytest.raises(DegenerateWeights) as caught:
        greedy(DENOISER, spoilt(2, "veto"), **settings)
    assert caught.value.boundary.final
    assert "the end" in str(caught.value)
    assert "degenerate" not in str(caught.value)  # greedy has no such option


@pytest.mark.parametrize("through", ["reward", "network"])
@pytest.mark.parametrize("call", [0, 3, 5])
def test_a_bad_reward_under_guidance_is_named(call, through):
    """Two calls to a transition: the one at a boundary, and one within the transition."""
    guidance = Guidance(through=through)
    with pytest.raises(RewardError, match=r"raised KeyError: .* at t = 0\.\d+ \(guidance\)|t = 0 "):
        steer(DENOISER, spoilt(call, "raises"), guidance=guidance, **SETTINGS)


@pytest.mark.parametrize(("call", "index"), [(2, 0), (3, 1), (5, 2)])
def test_a_bad_reward_under_guidance_keeps_the_last_boundary(call, index):
    with pytest.raises(RewardError) as caught:
        steer(DENOISER, spoilt(call, "raises"), guidance=Guidance(), **SETTINGS)
    assert caught.value.boundary.index == index
    assert caught.value.boundary.x.shape == (6, 2)


# --- rewards without a gradient -----------------------------------------------------------------

WITHOUT = FunctionReward(good, "judge", differentiable=False)


@pytest.mark.parametrize(
    "options",
    [
        {"twist": 1.0},
        {"twist": Twist(0.1)},
        {"guidance": Guidance()},
        {"guidance": Guidance(through="network")},
    ],
    ids=str,
)
def test_gradients_are_not_asked_of_a_reward_that_has_none(options):
    with pytest.raises(
        InvalidArgument, match="reward 'judge' has no gradient: use twist=0 and guidance=None"
    ) as caught:
        steer(UNASKED, WITHOUT, **options, **SETTINGS)
    assert caught.value.boundary is None
    steer(DENOISER, WITHOUT, **SETTINGS)


@pytest.mark.parametrize("search", [beam, greedy])
def test_search_asks_no_gradient_of_a_reward_that_has_none(search):
    with pytest.raises(InvalidArgument, match="'judge' has no gradient"):
        search(UNASKED, WITHOUT, children=2, guidance=Guidance(), **SETTINGS)


def test_guidance_of_no_strength_asks_for_no_gradient():
    plain = steer(DENOISER, WITHOUT, **SETTINGS)
    off = steer(DENOISER, WITHOUT, guidance=Guidance(0.0), **SETTINGS)
    assert torch.equal(plain.samples, off.samples)


@pytest.mark.parametrize(
    "function", [torch.no_grad()(good), lambda z: good(z.detach())], ids=["no_grad", "detached"]
)
def test_a_reward_that_hides_its_lack_of_a_gradient_is_named(function):
    reward = FunctionReward(function, "judge")
    lost = "reward 'judge' does not depend on the samples by autograd.*differentiable=False"
    with pytest.raises(RewardError, match=rf"{lost}.* at boundary 1 \(t = 0.333333\)") as caught:
        steer(DENOISER, reward, twist=1.0, **SETTINGS)
    boundary = caught.value.boundary
    assert boundary.index == 1
    assert torch.equal(boundary.D, DENOISER(boundary.x, boundary.t))
    for through in ("reward", "network"):
        with pytest.raises(RewardError, match=rf"{lost}.* at t = 0 \(guidance\)"):
            steer(DENOISER, reward, guidance=Guidance(through=through), **SETTINGS)


def test_a_network_without_a_gradient_is_named():
    blind = Denoiser(torch.no_grad()(network), Linear(), "sample")
    with pytest.raises(InvalidArgument, match=r"Use Guidance\(through='reward'\)"):
        steer(blind, good, guidance=Guidance(through="network"), **SETTINGS)
    steer(blind, good, guidance=Guidance(), **SETTINGS)


# --- networks ---------------------------------------------------------------------------------


class Breaking:
    """A network whose output is NaN for one particle at one call."""

    def __init__(self, call):
        self.call, self.calls = call, 0

    def __call__(self, x, t):
        self.calls += 1
        output = network(x, t)
        if self.calls == self.call + 1:
            output[4] = math.nan
        return output


@pytest.mark.parametrize(
    ("call", "named"),
    [(0, "transition 0, evaluation 0 (t = 0)"), (3, "transition 1, evaluation 1 (t = ")],
)
def test_nan_from_the_network_names_transition_and_evaluation(call, named):
    with pytest.raises(NonFinite, match=literally(named)) as caught:
        steer(Denoiser(Breaking(call), Linear(), "sample"), good, **SETTINGS)
    assert caught.value.particles == (4,)
    assert "for particles 4 (1 of 6)" in str(caught.value)


@pytest.mark.parametrize(("call", "index"), [(3, 1), (5, 2)])
def test_nan_from_the_network_keeps_the_last_boundary(call, index):
    with pytest.raises(NonFinite) as caught:
        steer(Denoiser(Breaking(call), Linear(), "sample"), good, ess_threshold=0.0, **SETTINGS)
    boundary = caught.value.boundary
    assert boundary.index == index
    assert torch.equal(boundary.D, DENOISER(boundary.x, boundary.t))


def test_nan_in_a_posterior_draw_keeps_the_boundary():
    breaking = Denoiser(Breaking(3), Linear(), "sample")  # two calls to boundary 1, one to its D
    with pytest.raises(NonFinite, match=r"evaluation 1 .* particles 4 ") as caught:
        steer(breaking, good, value=PosteriorValue(2, 3), **SETTINGS)
    boundary = caught.value.boundary
    assert boundary.index == 1
    assert torch.equal(boundary.D, DENOISER(boundary.x, boundary.t))


# --- settings ---------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"potential": "differnce"}, "unknown potential 'differnce'. Did you mean 'difference'?"),
        ({"potential": "fkd-sun"}, "Did you mean 'fkd-sum'?"),
        ({"resampling": "sytematic"}, "scheme 'sytematic'. Did you mean 'systematic'?"),
        ({"schedule": "liner"}, "unknown schedule 'liner'. Did you mean 'linear'?"),
        ({"schedule": "adaptative"}, "Did you mean 'adaptive'?"),
        ({"degenerate": "cary"}, "unknown degenerate 'cary'. Did you mean 'carry'?"),
        pytest.param(
            {"value": "posteriour"},
            "unknown value 'posteriour'. Did you mean 'posterior'?",
            marks=(),
        ),
        ({"solver": "papper"}, "unknown solver 'papper'. Did you mean 'paper'?"),
        ({"times": "karas"}, "Did you mean 'karras'?"),
    ],
    ids=str,
)
def test_unknown_names_are_answered_with_the_nearest(options, message):
    with pytest.raises(UnknownName, match=literally(message).replace("?", r"\?")):
        steer(UNASKED, good, **{**SETTINGS, **options})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Guidance(through="netwrk"), "Did you mean 'network'"),
        (lambda: greedy(UNASKED, good, children=2, pick="bst", **SETTINGS), "Did you mean 'best'"),
        pytest.param(lambda: PosteriorValue(solver="papper"), "Did you mean 'paper'", marks=()),
    ],
)
def test_unknown_names_elsewhere_are_answered_too(make, match):
    with pytest.raises(UnknownName, match=match):
        make()


BAD = [
    ({"particles": 0}, "particles must be an integer >= 1, got 0"),
    ({"particles": 2.0}, "particles must be an integer >= 1, got 2.0"),
    ({"populations": 0}, "populations must be an integer >= 1, got 0"),
    ({"scale": -1.0}, "scale must be a finite number >= 0, got -1.0"),
    ({"scale": math.nan}, "scale must be a finite number >= 0, got nan"),
    ({"ess_threshold": 1.1}, "ess_threshold must lie in [0, 1], got 1.1"),
    ({"ess_threshold": -0.1}, "ess_threshold must lie in [0, 1], got -0.1"),
    ({"ess_threshold": math.nan}, "ess_threshold must lie in [0, 1], got nan"),
    ({"twist": -1.0}, "got -1.0"),
    ({"twist": math.nan}, "got nan"),
    ({"twist": math.inf}, "got inf"),
    ({"boundaries": 0}, "boundaries must be an integer >= 1, got 0"),
    ({"boundaries": -2}, "boundaries must be an integer >= 1, got -2"),
    ({"boundaries": 1.5}, "boundaries must be an integer >= 1, got 1.5"),
    ({"boundaries": [1, 3]}, "numbered 0 to 2 (the end always counts), got 3"),
    ({"boundaries": [-1]}, "boundaries[0] must be an integer >= 0, got -1"),
    ({"boundaries": [1, 0.5]}, "boundaries[1] must be an integer >= 0, got 0.5"),
    ({"boundaries": "all"}, "boundaries must be an integer >= 1, got 'all'"),
    ({"schedule": [1.0, 1.0]}, "schedule lists 2 shares of lambda for 3 transitions"),
    ({"schedule": [1.0] * 4}, "schedule lists 4 shares of lambda for 3 transitions"),
    (
        {"schedule": [1.0, -0.5, 1.0]},
        "schedule[1] must be a finite number >= 0 (a share of lambda), got -0.5",
    ),
    (
        {"schedule": [1.0, math.nan, 1.0]},
        "schedule[1] must be a finite number >= 0 (a share of lambda), got nan",
    ),
    (
        {"schedule": ["a", 1.0, 1.0]},
        "schedule[0] must be a finite number >= 0 (a share of lambda), got 'a'",
    ),
    (
        {"schedule": lambda t: -t},
        "at t = 0.333333 must be a finite number >= 0, got -0.3333333333333333",
    ),
    ({"schedule": 0.5}, "schedule must be 'constant', 'linear', 'adaptive"),
    ({"value": 3}, "value must be 'free', 'posterior', PosteriorValue(samples, steps) or"),
    (
        {"guidance": 1.0},
        "guidance must be glass_flows.Guidance(...), 'reward[:SCALE]', 'network[:SCALE]', with "
        "':clip=...' after it, or None, got 1.0",
    ),
    (
        {"prompts": "a cat"},
        "prompts must be a list with one for each population, or None, got 'a cat'",
    ),
    ({"prompts": ["a", "b"], "populations": 3}, "2 prompts given for 3 populations"),
    ({"prompts": ["a", "b"], "populations": 1}, "2 prompts given for 1 populations"),
    ({"shape": (0,)}, "shape"),
    ({"seed": -1}, "seed"),
    *(
        pytest.param(*case, marks=())
        for case in [
            ({"scale": "1"}, "scale must be a finite number >= 0, 'auto' or 'auto:NATS', got '1'"),
            ({"ess_threshold": "0.5"}, "ess_threshold must lie in [0, 1], got '0.5'"),
            ({"twist": "abc"}, "got 'abc'"),
            ({"twist": None}, "got None"),
            ({"schedule": [1.0, 1.0], "rho": "ode"}, "schedule lists 2 shares"),
            ({"shape": 3}, "shape"),
        ]
    ),
]


def without_addresses(value):
    """Every process must give a test the same name."""
    return re.sub(r" at 0x[0-9a-f]+", "", str(value))


@pytest.mark.parametrize(("options", "message"), BAD, ids=without_addresses)
def test_bad_settings_are_named_before_anything_is_asked(options, message):
    with pytest.raises(InvalidArgument, match=literally(message)):
        steer(UNASKED, good, **{**SETTINGS, **options})


@pytest.mark.parametrize(
    ("make", "match"),
    [
        (lambda: Twist(cap=0.0), "cap .* got 0.0"),
        (lambda: Twist(cap=math.nan), "cap .* got nan"),
        pytest.param(lambda: Twist(scale="a"), "scale .* got 'a'", marks=()),
        (lambda: Twist(sigma_data=0.0), "sigma_data .* got 0.0"),
        (lambda: Twist(trust=-1.0), "trust .* got -1.0"),
        (lambda: Adaptive(ess=1.5), r"Adaptive ess must lie in \(0, 1\), got 1.5"),
        (lambda: Adaptive(ess=0.0), r"must lie in \(0, 1\), got 0.0"),
        pytest.param(lambda: Adaptive(ess="0.5"), r"must lie in \(0, 1\), got '0.5'", marks=()),
        (lambda: PosteriorValue(samples=0), "samples must be an integer >= 1, got 0"),
        (lambda: PosteriorValue(steps=0), "steps must be an integer >= 1, got 0"),
        (lambda: PosteriorValue(steps=1.5), "must be an integer >= 1, got 1.5"),
    ],
)
def test_bad_objects_are_named_when_they_are_made(make, match):
    with pytest.raises(InvalidArgument, match=match):
        make()


@pytest.mark.parametrize("search", [beam, greedy])
def test_an_option_that_search_lacks_is_refused_by_its_name(search):
    with pytest.raises(UnknownName, match=rf"{search.__name__}\(\) has no argument 'twist'"):
        search(UNASKED, good, children=2, twist=1.0, **SETTINGS)


@pytest.mark.parametrize("twist", [0.0, pytest.param(1.0, marks=())])
def test_samples_may_be_single_numbers(twist):
    model = Denoiser(lambda x, t: torch.tanh(2.0 * x), Linear(), "sample")
    flat = steer(model, lambda z: 1.0 * z, twist=twist, **{**SETTINGS, "shape": ()})
    column = steer(model, lambda z: z[:, 0], twist=twist, **{**SETTINGS, "shape": (1,)})
    assert flat.samples.shape == (1, 6)
    torch.testing.assert_close(flat.samples, column.samples[..., 0])
    torch.testing.assert_close(flat.log_weights, column.log_weights)


# --- several conditions at once -----------------------------------------------------------------


class Labelled:
    """Data around 10 times the label; remembers all labels, in the order of the rows."""

    def __init__(self):
        self.labels = []

    def __call__(self, x, t, label):
        assert label.shape == (len(x),)
        self.labels.extend(label.tolist())
        return 10.0 * label[:, None] + torch.tanh(x - 10.0 * label[:, None] * t[:, None])

    def denoiser(self, labels, **options):
        return Denoiser(
            self, Linear(), "sample", conditioning={"label": torch.tensor(labels)}, **options
        )


class Prompted:
    """A reward whose prompts are the labels: a sample with another's prompt is found."""

    takes_prompts = True

    def __init__(self):
        self.prompts = []

    def __call__(self, z, prompts):
        self.prompts.extend(prompts)
        wanted = torch.tensor([10.0 * int(prompt) for prompt in prompts])
        off = (z.detach().mean(1) - wanted).abs()
        assert bool((off < 4.0).all()), "a sample met the prompt of another"
        return (z - wanted[:, None]).sin().sum(1)


ROWS = [3, 0, 7]
WAYS = {
    "free": {},
    "posterior": {"value": PosteriorValue(2, 3)},
    "twist": {"twist": 1.0},
    "guidance": {"guidance": Guidance()},
    "through the network": {"guidance": Guidance(through="network")},
    "in parts": {"guidance": Guidance(through="network", max_batch=4)},
    "all": {
        "guidance": Guidance(through="network", max_batch=5),
        "value": PosteriorValue(2, 3),
        "twist": 1.0,
        "boundaries": 1,
    },
}


@pytest.mark.parametrize("limits", first([[5, 4], [None, None]]), ids=["split", "whole"])
@pytest.mark.parametrize("way", WAYS.values(), ids=WAYS)
def test_every_population_keeps_its_label_and_its_prompt(way, limits):
    network, prompted = Labelled(), Prompted()
    reward = FunctionReward(prompted, "prompted", takes_prompts=True, max_batch=limits[1])
    result = steer(
        network.denoiser(ROWS, max_batch=limits[0]),
        reward,
        prompts=[str(label) for label in ROWS],
        ess_threshold=1.0,
        **{**SETTINGS, "particles": 4},
        **way,
    )
    order = [label for label in ROWS for _ in range(4)]
    calls = [network.labels[i : i + 12] for i in range(0, len(network.labels), 12)]
    assert calls == [order] * (result.network_evaluations // 12)
    words = [prompted.prompts[i : i + 12] for i in range(0, len(prompted.prompts), 12)]
    assert words == [[str(label) for label in order]] * (result.reward_evaluations // 12)
    assert result.samples.shape == (3, 4, 2)
    assert (result.samples.mean((1, 2)) / 10).round().tolist() == ROWS
    assert (result.ancestry != torch.arange(4)).any()  # populations were resampled


@pytest.mark.parametrize("way", first(WAYS.values()), ids=WAYS)
def test_the_same_condition_for_all_may_be_given_once_or_to_each(way):
    def run(labels, **options):
        return steer(
            Labelled().denoiser(labels), good, **{**SETTINGS, "particles": 4}, **way, **options
        )

    shared, each = run([2], populations=3), run([2, 2, 2], populations=3)
    assert torch.equal(shared.samples, each.samples)
    assert torch.equal(shared.log_weights, each.log_weights)
    # the first population is the one-population run, but for rounding in batches
    torch.testing.assert_close(run([2]).samples, shared.samples[:1], rtol=0, atol=1e-5)
    other = run([5, 2, 9], populations=3)
    torch.testing.assert_close(other.samples[1], shared.samples[1], rtol=0, atol=1e-5)
    assert not torch.allclose(other.samples[0], shared.samples[0], rtol=0, atol=1.0)


def test_search_keeps_labels_and_prompts_too():
    for search, options in (
        (beam, {"children": 2}),
        (greedy, {"children": 2}),
        (greedy, {"children": 2, "pick": "sample"}),
    ):
        network, prompted = Labelled(), Prompted()
        settings = {**SETTINGS, "particles": 4}
        result = search(
            network.denoiser(ROWS),
            FunctionReward(prompted, takes_prompts=True),
            prompts=[str(label) for label in ROWS],
            **settings,
            **options,
        )
        order = [label for label in ROWS for _ in range(4)]
        assert network.labels == order * (result.network_evaluations // 12)
        assert prompted.prompts == [str(v) for v in order] * (result.reward_evaluations // 12)
        assert (result.samples.mean((1, 2)) / 10).round().tolist() == ROWS


@pytest.mark.parametrize(
    ("labels", "populations"), [([1, 2], 3), ([1, 2, 3], None), ([1] * 6, None), ([1] * 12, 2)]
)
def test_conditioning_that_fits_no_population_is_named(labels, populations):
    count = populations or 1
    model = Denoiser(
        never_asked, Linear(), "sample", conditioning={"text": {"label": torch.tensor(labels)}}
    )
    expected = (
        rf"conditioning\['text'\]\['label'\] with a leading dimension of 1 \(shared\) or {count} "
        rf"\(one row for each population\), got shape \({len(labels)},\)"
    )
    with pytest.raises(ShapeError, match=expected):
        steer(model, good, populations=populations, **SETTINGS)


def test_prompts_give_the_number_of_populations():
    reward = FunctionReward(lambda z, prompts: good(z), "clip", takes_prompts=True)
    assert steer(DENOISER, reward, prompts=["a", "b"], **SETTINGS).samples.shape == (2, 6, 2)
    with pytest.raises(
        InvalidArgument, match=r"the reward 'clip' takes prompts: pass prompts=\[...\]"
    ):
        steer(UNASKED, reward, **SETTINGS)
    with pytest.raises(InvalidArgument, match="2 prompts given for 3 populations"):
        steer(UNASKED, reward, prompts=["a", "b"], populations=3, **SETTINGS)


def test_the_reward_of_a_guided_denoiser_is_not_that_of_the_steering():
    """A guided denoiser of one's own moves the particles; values see the model behind it."""
    own = GuidedDenoiser(DENOISER, lambda z: 50.0 + z[:, 0])
    steps = iterate_steering(
        plan(Linear(), **SAMPLER), own, lambda z: z[:, 1],
        Steering(6, 1.0, boundaries=1, ess_threshold=0.0), shape=(2,), seed=1, dtype=torch.float64,
    )  # fmt: skip
    for step in steps:
        boundary = step.boundary
        D = boundary.x if boundary.final else DENOISER(boundary.x, boundary.t)
        torch.testing.assert_close(step.rewards[0], D[:, 1], rtol=0, atol=1e-12)


# --- values and micro-batches ---------------------------------------------------------------------


class Answer:
    """A value that returns what it is given."""

    def __init__(self, answer):
        self.answer = answer

    def __call__(self, look):
        return self.answer

    def extra_calls(self, path, t):
        return 0


@pytest.mark.parametrize("method", [steer, beam, greedy])
@pytest.mark.parametrize(
    ("answer", "error", "message"),
    [
        ((torch.tensor([0.0, math.nan, 0, 0, 0, 0]), None), NonFinite, r"NaN or \+inf .*\[1\]"),
        ((torch.zeros(5), None), ShapeError, r"shape \(6,\)"),
        (([0.0] * 6, None), ShapeError, "got list"),
        (torch.zeros(6), InvalidArgument, r"a value returns \(V, rewards or None\)"),
    ],
)
def test_what_a_value_returns_is_checked(method, answer, error, message):
    with pytest.raises(error, match=message):
        method(DENOISER, good, value=Answer(answer), **SETTINGS)


@pytest.mark.parametrize("method", [steer, beam])
@pytest.mark.parametrize("guidance", [None, "reward:1"])
def test_micro_batches_name_the_particles_of_the_whole_batch(method, guidance):
    def broken(z):
        return torch.where(z == z[-1:], math.nan, z).sum(1)  # the last of every micro-batch

    with pytest.raises(NonFinite) as caught:
        method(DENOISER, broken, shards=Shards(6), guidance=guidance, **SETTINGS)
    assert caught.value.particles == (5,)
    calls = []

    def second(z):
        calls.append(len(z))
        return broken(z) if len(calls) == 2 else z.sum(1)

    with pytest.raises(NonFinite, match="counted from row 2 of the batch") as caught:
        method(DENOISER, second, shards=Shards(2), guidance=guidance, **SETTINGS)
    assert caught.value.particles == (3,)


def test_a_value_function_sees_micro_batches_like_the_network_and_the_reward():
    seen = []

    def value(x, t, D):
        assert len(x) == len(D)
        seen.append(len(x))
        return D.sum(1)

    cut = steer(DENOISER, good, value=value, shards=Shards(4), **SETTINGS)
    assert set(seen) == {4, 2}
    torch.testing.assert_close(cut.samples, steer(DENOISER, good, value=value, **SETTINGS).samples)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"record": "runs/a"}, r"record must be glass_flows.runs.RunFolder\(...\)"),
        ({"shards": 2}, "shards must be Shards"),
        ({"progress": "no"}, "progress must be True, False or None"),
        ({"dtype": "float32"}, "dtype must be torch.float32 or torch.float64"),
    ],
)
def test_careless_arguments_are_named(wrong, message):
    with pytest.raises(InvalidArgument, match=message):
        steer(DENOISER, good, **{**SETTINGS, **wrong})


def test_too_many_particles_in_all_are_refused():
    """Of populations that would each fit."""
    with pytest.raises(InvalidArgument, match="populations x particles, got"):
        Population.of(MOST_PARTICLES // 2, (1,), 3)
    assert len(Population.of(MOST_PARTICLES // 4, (1,), 3)) == 3 * (MOST_PARTICLES // 4)
