"""Settings objects: one text and one JSON form, errors that name the setting, and calls by name."""

from __future__ import annotations

import copy
import inspect
import json
import math
import pickle
import re
from dataclasses import FrozenInstanceError, dataclass, fields, replace
from functools import partial
from typing import ClassVar

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from cases import fast, one_in
from glass_flows import (
    DDIM,
    Beam,
    BestOf,
    Greedy,
    Guidance,
    Refine,
    Sampler,
    Steering,
    Twist,
    beam,
    best_of,
    greedy,
    posterior,
    refine,
    sample,
    steer,
    transition,
)
from glass_flows.batching import Batching
from glass_flows.errors import InvalidArgument, TimeError, UnknownName
from glass_flows.fronts import FOREIGN, front
from glass_flows.grids import Karras, Shifted, Uniform
from glass_flows.jobs.job import Loading
from glass_flows.paths import Linear
from glass_flows.plans import Default, EulerMaruyama, FirstOrder, Paper, plan
from glass_flows.plans.sampler import RHO
from glass_flows.rewards import Viewing
from glass_flows.settings import (
    Choice,
    Count,
    Listed,
    Number,
    Object,
    Switch,
    Text,
    build,
    explanations,
    kinds,
    setting,
    spelled,
)
from glass_flows.steering import (
    METHODS,
    POTENTIALS,
    RESAMPLERS,
    Acceptance,
    Adaptive,
    PosteriorValue,
    Ramp,
    RefinedResult,
    RefineStep,
    SearchResult,
    SteeringResult,
    SteeringStep,
    Step,
    iterate_steering,
    method_of,
    read_method,
)
from glass_flows.steering.methods import AnyMethod, every_setting, sampler_for
from glass_flows.steering.refinement import BEGINNING
from glass_flows.steering.strength import Auto
from glass_flows.steering.values import FreeValue, ValueFunction
from glass_flows.worlds import GaussianMixture

CLASSES = [Sampler, Steering, BestOf, Beam, Greedy, Refine, Batching, Viewing, Loading]
METHOD_CLASSES = [Steering, BestOf, Beam, Greedy, Refine]
each_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__)
quick = settings(max_examples=20, deadline=None, derandomize=True)


def names_of(cls):
    return [one.name for one in fields(cls)]


def strict(one):
    """Through a JSON file that has no NaN or infinity, and back."""
    return json.loads(json.dumps(one.as_json(), allow_nan=False))


# --- any object -------------------------------------------------------------------------------

counts = st.integers(1, 20_000)  # of five transitions, and below all limits
positive = st.floats(1e-300, 1e300)
not_negative = st.floats(0.0, 1e300)
shares = st.floats(0.0, 1.0)


def sometimes(strategy):
    return st.none() | strategy


def solvers_of(size):
    return st.one_of(
        st.sampled_from(["default", "first-order", "paper"]),
        st.builds(Default, size),
        st.builds(FirstOrder, size),
        st.builds(
            Paper,
            sigma0=size,
            s_range=st.tuples(st.floats(0.0, 0.4), st.floats(0.5, 1.0)),
            schedule=st.sampled_from(["linear", "cosine"]),
            off_grid=st.sampled_from(["fractional", "nearest"]),
        ),
    )


rules = st.one_of(
    st.floats(-1.0, 1.0),
    st.sampled_from(["ddpm", "ode", "ddim", "ddim:0.25"]),
    st.builds(DDIM, shares),
)


def grids_of(size):
    least, most = sometimes(st.floats(1e-3, 0.5)), sometimes(st.floats(0.6, 100.0))
    return st.one_of(
        st.sampled_from([None, "uniform", "shifted", "karras", "shifted:2", Uniform()]),
        st.builds(Shifted, size),
        st.builds(Karras, size, least, most),
    )


def listed(kind, size):
    return kind | st.lists(kind, min_size=size, max_size=size)


@st.composite
def samplers(draw, counts=counts, size=positive, moments=shares):
    K = draw(st.integers(1, 5))
    times = st.lists(moments, min_size=K + 1, max_size=K + 1, unique=True).map(sorted)
    start = draw(st.sampled_from(["trained", "pure"]))
    chosen = {
        "transitions": K,
        "steps": draw(listed(counts, K)),
        "times": draw(grids_of(size) | times),
        "start": start,
    }
    if draw(st.booleans()):
        noisy = st.builds(EulerMaruyama, size) | st.just("euler-maruyama")
        return Sampler(**chosen, rho=None, solver=draw(noisy))
    return Sampler(**chosen, rho=draw(listed(rules, K)), solver=draw(solvers_of(size)))


guidances = st.one_of(
    st.sampled_from([None, "reward", "network", "network:0.5", "reward:2:clip=1.5"]),
    st.builds(
        Guidance,
        scale=not_negative,
        through=st.sampled_from(["reward", "network"]),
        clip=sometimes(positive),
        sigma_data=positive,
        max_batch=sometimes(counts),
    ),
)
values = st.one_of(
    st.sampled_from(["free", "posterior", "posterior:2", "posterior:2:5", "posterior:steps=1"]),
    st.builds(PosteriorValue, st.integers(1, 300), st.integers(1, 300), solvers_of(positive)),
)
twists = st.one_of(
    not_negative,
    st.just("1:cap=2"),
    st.builds(Twist, not_negative, positive | st.just(math.inf), positive, st.booleans(), positive),
)
schedules = st.one_of(
    st.sampled_from(["constant", "linear", "adaptive", "adaptive:0.3"]),
    st.builds(Adaptive, st.floats(0.001, 0.999)),
    st.lists(not_negative, max_size=6),
)
boundaries = st.none() | counts | st.lists(st.integers(0, 10**6), max_size=6)
scales = not_negative | st.just("auto") | st.builds(Auto, sometimes(positive))
sizes = {"particles": counts, "scale": scales}
carried = st.sampled_from(["error", "carry"])


@st.composite
def searches(draw, cls, **more):
    children, parents = draw(st.integers(1, 9)), draw(st.integers(1, 9))
    chosen = {"scale": scales, "value": values, "boundaries": boundaries}
    rest = {name: draw(one) for name, one in {**chosen, "guidance": guidances, **more}.items()}
    return cls(children * parents, children=children, **rest)


inside = st.floats(0.001, 0.999)
move_times = st.one_of(
    inside,
    st.lists(inside, min_size=1, max_size=5),
    st.sampled_from(["ramp", "ramp:0.2", "ramp:last=0.9", "adaptive", "adaptive:0.5:0.2"]),
    st.builds(Ramp, inside, inside),
    st.builds(Acceptance, inside, inside),
)
texts = st.none() | st.text() | st.sampled_from(["none", "a b", "it's", '"', "\\", "x=y", "cuda:1"])
ANY = {
    Sampler: samplers(),
    Steering: st.builds(
        Steering,
        **sizes,
        potential=st.sampled_from(sorted(POTENTIALS)),
        schedule=schedules,
        boundaries=boundaries,
        resampling=st.sampled_from(sorted(RESAMPLERS)),
        ess_threshold=shares,
        value=values,
        guidance=guidances,
        twist=twists,
        degenerate=carried,
    ),
    BestOf: st.builds(BestOf, **sizes, guidance=guidances, degenerate=carried),
    Beam: searches(Beam),
    Greedy: searches(Greedy, pick=st.sampled_from(["best", "sample"])),
    Refine: st.builds(
        Refine,
        **sizes,
        moves=st.integers(0, 50),
        move_times=move_times,
        move_steps=sometimes(counts | st.lists(counts, min_size=1, max_size=5)),
        move_guidance=sometimes(shares),
        schedule=st.sampled_from([None, "constant", "linear", "adaptive:0.3"]),
        resampling=st.sampled_from(sorted(RESAMPLERS)),
        ess_threshold=shares,
        returned=st.sampled_from(["best", "last"]),
        until=sometimes(st.floats(-1e300, 1e300)),
        rescore=st.integers(0, 1000),
        degenerate=carried,
    ),
    Batching: st.builds(
        Batching,
        max_batch=sometimes(counts | st.just("auto")),
        decode_batch=sometimes(counts),
        checkpoint=st.booleans(),
    ),
    Viewing: st.builds(Viewing, frames=sometimes(counts | st.sampled_from(["first", "all"]))),
    Loading: st.builds(
        Loading,
        device=texts,
        dtype=st.sampled_from([None, "float32", "bfloat16", "float16"]),
        offload=st.sampled_from(["none", "model", "sequential"]),
        revision=texts,
        lora=texts,
    ),
}


@pytest.mark.parametrize("cls", one_in(4, CLASSES))
@given(data=st.data())
@settings(max_examples=20, deadline=None, derandomize=True)
def test_text_and_json_are_read_back(cls, data):
    one = data.draw(ANY[cls])
    assert cls.parse(str(one)) == one
    assert cls.from_json(strict(one)) == one
    assert cls.from_json(strict(one)).as_json() == one.as_json()
    assert str(cls.parse(str(one))) == str(one)
    assert repr(cls.parse(str(one))) == repr(cls.from_json(strict(one)))
    told = one.differing()
    assert build(cls, {}, {name: spelled(value) for name, value in told.items()}) == one
    assert build(cls, told) == one
    assert cls(**one.every()) == one
    assert list(one.every()) == names_of(cls)
    assert one.every().items() >= told.items()


@pytest.mark.parametrize("cls", one_in(4, CLASSES))
@given(data=st.data())
@quick
def test_objects_are_copied_pickled_and_compared(cls, data):
    one = data.draw(ANY[cls])
    for again in (copy.copy(one), copy.deepcopy(one), pickle.loads(pickle.dumps(one))):
        assert type(again) is cls
        assert again == one
        assert hash(again) == hash(one)
    assert replace(one) == one
    name = names_of(cls)[0]
    with pytest.raises(FrozenInstanceError):
        setattr(one, name, getattr(one, name))


@pytest.mark.parametrize("cls", one_in(4, CLASSES))
@given(data=st.data())
@quick
def test_the_repr_is_the_call_that_makes_it(cls, data):
    one = data.draw(ANY[cls])
    names = (*CLASSES, DDIM, Acceptance, Adaptive, Default, EulerMaruyama, FirstOrder, FreeValue,
             Guidance, Karras, Paper, PosteriorValue, Ramp, Shifted, Twist, Uniform)  # fmt: skip
    known = {kind.__name__: kind for kind in names} | {"inf": math.inf}
    assert eval(repr(one), known) == one


@given(data=st.data())
@quick
def test_methods_are_read_by_their_type(data):
    one = data.draw(st.one_of(*(ANY[cls] for cls in METHOD_CLASSES)))
    assert read_method(strict(one)) == one
    assert method_of(one, {}) is one


# --- defaults are left out --------------------------------------------------------------------

# other than by default, as texts
OTHER = {
    Sampler: {
        "transitions": ["1", "7"],
        "steps": ["1", "4,4,4,4,4,5"],
        "rho": ["0.5", "-1", "ddpm", "ode", "ddim", "ddim:0.5", "0.1,ddpm,1,0,ode,ddim:1"],
        "times": ["uniform", "shifted", "shifted:5", "karras", "karras:5:sigma_min=0.1",
                  "0,0.1,0.2,0.3,0.4,0.5,1"],
        "solver": ["first-order", "paper", "default:0.5", "paper:0.5:s_range=0.001,0.999"],
        "start": ["pure"],
    },
    Steering: {
        "particles": ["1", "100"],
        "scale": ["0", "2.5", "1e-05", "1e+22", "auto:2", "auto:0.25"],
        "potential": ["max", "fkd-sum"],
        "schedule": ["linear", "adaptive", "adaptive:0.6", "0.5,", "0,1,2.5", ","],
        "boundaries": ["1", "2", "3,", "0,2", ","],
        "resampling": ["ssp"],
        "ess_threshold": ["0", "1", "0.25"],
        "value": ["posterior", "posterior:2", "posterior:2:steps=5", "posterior:solver=paper"],
        "guidance": ["reward", "network:0.5", "reward:clip=1", "network:2:sigma_data=0.7"],
        "twist": ["1", "0.5:cap=2", "0:cap=2", "1:cap=inf", "2:adaptive=false:trust=1"],
        "degenerate": ["carry"],
    },
    Batching: {
        "max_batch": ["1", "none"], "decode_batch": ["2", "none"], "checkpoint": ["true"],
    },
    Viewing: {"frames": ["1", "9", "first", "all"]},
    Loading: {
        "device": ["cpu", ""], "dtype": ["bfloat16"], "offload": ["model", "sequential"],
        "revision": ["main", "a=b"], "lora": ["some/lora"],
    },
}  # fmt: skip
OTHER[BestOf] = {n: OTHER[Steering][n] for n in ("particles", "scale", "guidance", "degenerate")}
_SEARCH = ("scale", "value", "boundaries", "guidance")
OTHER[Beam] = {n: OTHER[Steering][n] for n in _SEARCH}
OTHER[Beam] |= {"particles": ["2", "100"], "children": ["1", "4", "8"]}
OTHER[Greedy] = {**OTHER[Beam], "pick": ["sample"]}
OTHER[Refine] = {
    **{n: OTHER[Steering][n] for n in ("particles", "scale", "resampling", "degenerate")},
    "ess_threshold": ["0", "1", "0.25"],
    "moves": ["0", "40"],
    "move_times": ["0.35", "0.2,0.6", "0.4,", "ramp:0.2", "ramp:last=0.95", "adaptive",
                   "adaptive:0.5", "adaptive:first=0.45"],
    "move_steps": ["1", "7", "2,3", "4,"],
    "move_guidance": ["0", "0.25", "1"],
    "schedule": ["constant", "linear", "adaptive", "adaptive:0.6"],
    "returned": ["last"],
    "until": ["0", "-2.5"],
    "rescore": ["4"],
}  # fmt: skip
CHANGES = [
    pytest.param(cls, name, text, id=f"{cls.__name__}-{name}={text}")
    for cls in CLASSES
    for name, listed_texts in OTHER[cls].items()
    for text in listed_texts
]


@each_class
def test_every_setting_has_another_value_here(cls):
    assert set(OTHER[cls]) == set(names_of(cls)) == set(kinds(cls))


# What files left out before a default was another one they go on to mean; so it is always named.
NAMED = {cls: {"scale": "auto"} for cls in (Steering, Beam, Greedy, Refine)}
MEANT = {cls: {"scale": 1.0} for cls in NAMED}


@each_class
def test_an_object_as_by_default_is_its_word(cls):
    named = NAMED.get(cls, {})
    word = " ".join([cls.word, *(f"{name}={value}" for name, value in named.items())])
    assert str(cls()) == word
    assert cls().as_json() == {"type": cls.word, "version": 1, **named}
    assert repr(cls()) == f"{cls.__name__}()"
    assert cls().differing() == {}
    assert cls.parse(word) == cls.from_json(cls().as_json()) == cls()
    given = {name: getattr(cls(), name) for name in names_of(cls)}
    assert str(cls(**given)) == word  # the same values given are no difference
    meant = cls(**MEANT.get(cls, {}))
    assert cls.parse(cls.word) == cls.from_json({}) == meant
    assert str(meant) == cls.word
    assert meant.as_json() == {"type": cls.word, "version": 1}
    assert cls(**cls().every()) == cls()


@pytest.mark.parametrize(("cls", "name", "text"), one_in(4, CHANGES))
def test_what_differs_is_told_and_nothing_else(cls, name, text):
    one = build(cls, {}, {name: text})
    assert one != cls()
    assert list(one.differing()) == [name]
    told = {n: {**NAMED.get(cls, {}), name: text}.get(n) for n in names_of(cls)}
    told = {n: value for n, value in told.items() if value is not None}
    assert str(one) == " ".join([cls.word, *(f"{n}={value}" for n, value in told.items())])
    assert cls.parse(str(one)) == one
    assert list(strict(one)) == ["type", "version", *told]
    assert cls.from_json(strict(one)) == one
    assert spelled(one.differing()[name]) == text
    assert replace(cls(), **{name: getattr(one, name)}) == one
    assert repr(one).startswith(f"{cls.__name__}({name}=")


def test_the_forms_are_those_of_the_documentation():
    one = Sampler(12, rho="ddim:0.5")
    assert str(one) == "sampler transitions=12 rho=ddim:0.5"
    data = {"type": "sampler", "version": 1, "transitions": 12, "rho": "ddim:0.5"}
    assert one.as_json() == data
    method = Steering(scale=5, boundaries=[2], value=PosteriorValue(2, 5), twist="1:cap=inf")
    assert strict(method) == {
        "type": "steering", "version": 1, "scale": 5.0, "boundaries": [2],
        "value": "posterior:2:steps=5", "twist": "1:cap=inf",
    }  # fmt: skip


def test_lists_of_one_are_no_single_values():
    assert Steering(boundaries=[2]).boundaries == (2,)
    assert str(Steering(scale=1, boundaries=[2])) == "steering boundaries=2,"
    assert Steering(boundaries=2) != Steering(boundaries=[2])
    assert Steering(boundaries=2).as_json()["boundaries"] == 2
    one = Sampler(1, steps=[3], rho=["ddpm"])
    assert str(one) == "sampler transitions=1 steps=3, rho=ddpm,"
    assert (one.steps, one.rho) == ((3,), ("ddpm",))
    assert Sampler.parse(str(one)) == Sampler.from_json(strict(one)) == one
    assert Sampler.from_json(strict(one)) != Sampler(1, 3, "ddpm")


# --- what may be given ------------------------------------------------------------------------


def test_names_and_numbers_become_objects():
    one = Steering(2, 1, twist=0.5, value="posterior:2", schedule="adaptive", guidance="network:2")
    assert one.twist == Twist(0.5)
    assert one.value == PosteriorValue(2)
    assert one.schedule == Adaptive()
    assert one.guidance == Guidance(2.0, "network")
    assert isinstance(one.scale, float)
    assert Steering().value == FreeValue()
    assert Sampler(solver="paper").solver == Paper()
    assert Sampler(rho="0.25").rho == 0.25
    assert Sampler(rho="ddim:0.5").rho == DDIM(0.5)
    assert Sampler(times="uniform").times == Uniform()


def test_arrays_and_tensors_are_lists():
    times = (0.0, 0.25, 1.0)
    for given_times in (times, list(times), np.array(times), torch.tensor(times)):
        assert Sampler(2, times=given_times).times == times
    assert Sampler(2, torch.tensor([1, 2]), rho=torch.tensor([0.5, 1.0])) == Sampler(
        2, [1, 2], rho=[0.5, 1.0]
    )
    assert Sampler(np.int64(3), np.int32(2), np.float32(0.5)) == Sampler(3, 2, 0.5)
    assert Sampler(rho=torch.tensor(0.5)).rho == 0.5
    assert Steering(boundaries=range(1, 4)).boundaries == (1, 2, 3)
    assert Steering(schedule=np.ones(2)).schedule == (1.0, 1.0)
    one = Steering(scale=1, twist=np.float32(0.5))
    assert str(one) == "steering twist=0.5"
    assert Steering.from_json(strict(one)) == one
    with pytest.raises(InvalidArgument, match=r"rho\[0\] must be a number .* got \[0\.0\]"):
        Sampler(1, rho=np.zeros((1, 1)))


def test_euler_maruyama_has_no_rho():
    for solver in ("euler-maruyama", "euler-maruyama:0.5", EulerMaruyama(), EulerMaruyama(0.5)):
        assert build(Sampler, {"solver": solver}).rho is None
        assert Sampler(rho=None, solver=solver) == build(Sampler, {"solver": solver})
        with pytest.raises(InvalidArgument, match=r"Euler-Maruyama has no rho.* got 0\.4"):
            Sampler(solver=solver)
        with pytest.raises(InvalidArgument, match=r"Euler-Maruyama has no rho.* got 0\.2"):
            build(Sampler, {"solver": solver, "rho": 0.2})
    assert build(Sampler, {}, {"solver": "euler-maruyama"}).rho is None
    one = Sampler(rho=None, solver=EulerMaruyama(0.5))
    assert str(one) == "sampler rho=none solver=euler-maruyama:0.5"
    assert Sampler.parse("sampler solver=euler-maruyama:0.5") == one


USUAL = samplers(st.integers(1, 3), st.floats(1.0, 10.0), st.integers(0, 50).map(lambda i: i / 50))


@given(USUAL)
@settings(max_examples=60, deadline=None, derandomize=True)
def test_the_plan_of_a_sampler_is_that_of_its_settings(one):
    """Also of what was read back: bit for bit, or the same refusal."""

    def planned(make):
        try:
            return make()
        except InvalidArgument as error:
            return repr(error)

    expected = planned(lambda: plan(Linear(), **{n: getattr(one, n) for n in names_of(Sampler)}))
    assert planned(lambda: one.plan(Linear())) == expected
    assert planned(lambda: Sampler.parse(str(one)).plan(Linear())) == expected
    assert planned(lambda: Sampler.from_json(strict(one)).plan(Linear())) == expected


def test_the_evaluations_of_a_sampler():
    assert Sampler().evaluations == 24
    assert Sampler(3, [1, 2, 5]).evaluations == 8
    assert Sampler.ode(12) == Sampler(1, 12, "ode")
    assert Sampler(3, [1, 2, 5], start="pure").baseline() == Sampler(1, 8, "ode", start="pure")
    assert Sampler(3).baseline(5) == Sampler.ode(5)
    assert Sampler().at((0.0, 0.5, 1.0)) == Sampler(2, times=(0.0, 0.5, 1.0))
    with pytest.raises(InvalidArgument, match="evaluations must be an integer >= 1, got 0"):
        Sampler.ode(0)


# --- functions --------------------------------------------------------------------------------


def halved(*given):
    return 0.5


class Called:
    """No function, but it can be called; its repr has an address."""

    def __call__(self, *given):
        return 0.5


class Own:
    """A solver of somebody's own."""

    transitions = halved

    def __repr__(self):
        return "Own()"


FUNCTIONS = [
    (Sampler, "rho", halved, "<halved>"),
    (Sampler, "rho", lambda t, u: 0.5, "<lambda>"),
    (Sampler, "rho", [0.0, 0.1, 0.2, 0.3, 0.4, halved], "0,0.1,0.2,0.3,0.4,<halved>"),
    (Sampler, "times", halved, "<halved>"),
    (Sampler, "solver", Own(), "<Own()>"),
    (Steering, "schedule", halved, "<halved>"),
    (Steering, "schedule", Called(), f"<{__name__}.Called object>"),
    (Steering, "value", halved, "<halved>"),
    (Steering, "value", lambda x, t, D: D[:, 0], "<lambda>"),
    (Steering, "value", PosteriorValue(solver=Own()), "posterior:solver=<Own()>"),
    (Steering, "guidance", Guidance(schedule=halved), "reward:schedule=<halved>"),
    (BestOf, "guidance", Guidance(2.0, "network", halved), "network:2:schedule=<halved>"),
    (Beam, "value", halved, "<halved>"),
    (Greedy, "value", halved, "<halved>"),
]


@pytest.mark.parametrize(
    ("cls", "name", "function", "text"),
    FUNCTIONS,
    ids=[f"{c[0].__name__}-{c[3]}" for c in FUNCTIONS],
)
def test_functions_are_written_by_their_name_and_not_read(cls, name, function, text):
    one = cls(**{name: function})
    assert spelled(one.differing()[name]) == text
    assert replace(one) == one
    assert " at 0x" not in str(one)  # the same in every process
    again = json.loads(json.dumps(one.as_json(), allow_nan=False))
    refused = r"= .*<.* was a function, which cannot be read back: give it again"
    with pytest.raises(InvalidArgument, match=name + r"(\[5\])? " + refused):
        cls.from_json(again)
    with pytest.raises(InvalidArgument, match=name + r"(\[5\])? " + refused):
        cls.parse(str(one))
    assert build(cls, {name: function}) == one  # given again


def test_a_value_function_is_kept():
    one = Steering(value=halved)
    assert one.value == ValueFunction(halved)
    assert pickle.loads(pickle.dumps(one)) == one


# --- other types and versions -----------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Second(Steering):
    """Steering in another meaning."""

    version: ClassVar[int] = 2


@each_class
def test_another_word_or_version_is_refused(cls):
    for word in ("sampling", "", None, *(other.word for other in CLASSES if other is not cls)):
        with pytest.raises(InvalidArgument, match=f"expected the settings '{cls.word}' of version"):
            cls.from_json({"type": word})
    for version in (2, 0, "1", None, -1):
        with pytest.raises(InvalidArgument, match=f"of version 1, got .* of version {version!r}"):
            cls.from_json({"version": version})
    for text in ("", " ", "other", *(cls.word + more for more in ("@2", "@", "@x", "s"))):
        with pytest.raises(InvalidArgument, match="expected the settings"):
            cls.parse(text)
    assert cls.parse(f"{cls.word}@1") == cls.parse(f"  {cls.word} ") == cls(**MEANT.get(cls, {}))


def test_a_raised_version_is_told_and_asked_for():
    one = Second(4, scale=2.0)
    assert str(one) == "steering@2 particles=4 scale=2"
    assert one.as_json() == {"type": "steering", "version": 2, "particles": 4, "scale": 2.0}
    assert Second.parse(str(one)) == Second.from_json(strict(one)) == one
    for old in (Steering(4).as_json(), {}):
        with pytest.raises(InvalidArgument, match="of version 2, got 'steering' of version 1"):
            Second.from_json(old)
    with pytest.raises(InvalidArgument, match="of version 2, got 'steering' of version 1"):
        Second.parse("steering particles=4")
    with pytest.raises(InvalidArgument, match="of version 1, got 'steering' of version 2"):
        Steering.from_json(one.as_json())


@pytest.mark.parametrize("data", ["sampler", None, 3, ["type"], [("transitions", 3)]])
def test_json_that_is_no_object_is_refused(data):
    with pytest.raises(InvalidArgument, match="the settings 'sampler' must be an object, got"):
        Sampler.from_json(data)


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ("sampler transitions", "'transitions' must be NAME=VALUE"),
        ("sampler transitions = 3", "'transitions' must be NAME=VALUE"),
        ("sampler =3", "unknown setting of Sampler ''"),
        ("sampler transitions=3 transitions=3", "transitions is given twice"),
        ("sampler transitions='3", "No closing quotation"),
        ("sampler transitions=", "transitions must be an integer >= 1, got ''"),
    ],
)
def test_texts_that_are_no_settings_are_refused(text, match):
    with pytest.raises(InvalidArgument, match=match):
        Sampler.parse(text)


# --- typos ------------------------------------------------------------------------------------


def ways(cls, given_values):
    """All ways to make an object from values."""
    return (
        partial(cls, **given_values),
        partial(replace, cls(), **given_values),
        partial(cls.from_json, {"type": cls.word, "version": 1, **given_values}),
        partial(build, cls, given_values),
    )


def ways_of_text(cls, name, text):
    """All ways to make an object from a text."""
    return (
        partial(cls.parse, f"{cls.word} '{name}={text}'"),
        partial(build, cls, {}, {name: text}),
    )


@each_class
def test_a_typo_names_the_nearest_setting(cls):
    for name in names_of(cls):
        typo = name[:-1] + "x"
        expected = re.escape(f"unknown setting of {cls.__name__} {typo!r}. Did you mean {name!r}?")
        for attempt in (
            *ways(cls, {typo: getattr(cls(), name)}),
            *ways_of_text(cls, typo, "1"),
        ):
            with pytest.raises(UnknownName, match=expected) as caught:
                attempt()
            assert all(repr(known) in str(caught.value) for known in names_of(cls))


@pytest.mark.parametrize(
    ("cls", "name", "typo", "nearest"),
    [
        (Sampler, "rho", "dppm", "ddpm"),
        (Sampler, "rho", "dim:0.5", "ddim"),
        (Sampler, "rho", ["ddpm", "oed"], "ode"),
        (Sampler, "times", "karas", "karras"),
        (Sampler, "times", "unifrom", "uniform"),
        (Sampler, "solver", "papper", "paper"),
        (Sampler, "start", "traind", "trained"),
        (Steering, "potential", "differnce", "difference"),
        (Steering, "schedule", "liner", "linear"),
        (Steering, "schedule", "adaptve:0.5", "adaptive"),
        (Steering, "resampling", "sytematic", "systematic"),
        (Steering, "value", "posteriour:3", "posterior"),
        (Steering, "guidance", "netwrk:2", "network"),
        (Steering, "degenerate", "cary", "carry"),
        (Greedy, "pick", "bst", "best"),
        (Batching, "max_batch", "aut", "auto"),
        (Loading, "dtype", "bfloat", "bfloat16"),
        (Loading, "offload", "modle", "model"),
    ],
)
def test_a_misspelt_value_is_answered_with_the_nearest(cls, name, typo, nearest):
    base = {"transitions": 2} if isinstance(typo, list) else {}
    for attempt in (
        *ways(cls, {**base, name: typo}),
        partial(build, cls, base, {name: spelled(typo)}),
    ):
        with pytest.raises(UnknownName, match=rf"Did you mean '{nearest}'\?"):
            attempt()


# --- wrong values -----------------------------------------------------------------------------

NAN, INF = math.nan, math.inf
NO_COUNT = [0, -1, 1.5, 2.0, NAN, True, "x", None, b"x", {}]
NO_GUIDANCE = [1.0, NAN, True, "rewards?", "reward:-1", "reward:x", "reward:1:2:3:4:5:6:7", {},
               "reward:clip=0", "reward:strength=1", "reward:1:scale=2", Guidance, Twist(), halved,
               "reward:max_batch=0", "network:schedule=halved"]  # fmt: skip
NO_VALUE = [0, 3, NAN, True, None, {}, [], "x", "posterior:0", "posterior:x", "posterior:2:0",
            "posterior:draws=3", "free:1", "posterior:2:samples=3", "posterior:1:2:paper:4",
            "posterior:solver=papper", PosteriorValue, FreeValue]  # fmt: skip
NO_BOUNDARIES = [0, -1, 1.5, NAN, True, "x", b"", {}, [-1], [0.5], [True], [None], ["x"], "1,x"]
WRONG = {
    Sampler: {
        "transitions": [*NO_COUNT, [3]],
        "steps": [*NO_COUNT, [1] * 5, [1] * 7, [], [1, 1, 1, 1, 1, 0], [1] * 5 + [None], "1,2"],
        "rho": [1.5, -1.1, NAN, INF, True, "x", "", b"x", {}, [0.4] * 5, [0.4] * 7, [], "2",
                "ddim:2", "ddim:x", "ddim:0:1", "ddpm:1", "ddim:t=1", DDIM, Twist(), [0.1, NAN]],
        "times": [True, 0.5, 2, NAN, "x", "", b"x", {}, [], [0.0, 1.0], [0.0] * 7, Karras,
                  [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 1.5], [0.0, 0.1, 0.3, 0.2, 0.4, 0.5, 1.0],
                  [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, NAN], ["uniform"] * 7, "shifted:0", "shifted:x",
                  "karras:sigma_min=-1", "karras:7:sigma=1", "uniform:2", Twist()],
        "solver": [0, 0.5, NAN, True, None, "x", "", "paper:0", "paper:x", "default:2:3:4",
                   "paper:s_range=1", "paper:schedule=cosines", Paper, Twist(), [], halved],
        "start": [0, True, None, "x", "", "pure ", ["pure"]],
    },
    Steering: {
        "particles": NO_COUNT,
        "scale": [-1, -0.1, NAN, INF, True, None, "x", "1", [1.0], {}, 1j, "auto:0", "auto:-1",
                  "auto:x", "auto:1:2", "autos", "auto:inf", Auto],
        "potential": [0, True, None, "x", "", ["max"]],
        "schedule": [0, 0.5, NAN, True, None, "x", "", {}, [-0.1], [NAN], [INF], ["x"], [True],
                     [None], [halved], "0.5", "1,x", "adaptive:0", "adaptive:1.5", "adaptive:x",
                     "linear:2", "adaptive:1:2", Adaptive, Twist()],
        "boundaries": NO_BOUNDARIES,
        "resampling": [0, True, None, "x", "", ["ssp"]],
        "ess_threshold": [-0.1, 1.1, NAN, INF, True, None, "x", "0.5", [0.5]],
        "value": NO_VALUE,
        "guidance": NO_GUIDANCE,
        "twist": [-1, NAN, INF, True, None, "x", "", "-1", "1:cap=0", "1:cap=x", "1:trust=0", "nan",
                  "1:shift=2", "1:0.5:cap=1", "1:adaptive=maybe", [1.0], {}, Twist, Guidance()],
        "degenerate": [0, True, None, "x", ""],
    },
    BestOf: {"particles": NO_COUNT, "guidance": NO_GUIDANCE, "degenerate": [0, None, "x"]},
    Beam: {
        "particles": [*NO_COUNT, 1, 7],
        "children": [*NO_COUNT, 3, 16],
        "value": NO_VALUE,
        "boundaries": NO_BOUNDARIES,
        "guidance": NO_GUIDANCE,
    },
    Greedy: {"children": [*NO_COUNT, 3], "pick": [0, True, None, "x", ""]},
    Refine: {
        "particles": NO_COUNT,
        "moves": [-1, 1.5, NAN, True, "x", None, [3], 10**6],
        "move_times": [0, 1, -0.5, 1.5, NAN, True, None, "x", "", {}, [], [0.5, 1.0], [True],
                       "0.5,x", "ramp:0", "ramp:0.1:2", "ramp:rate=0.5", "adaptive:1",
                       "adaptive:x", Ramp],
        "move_steps": [0, -1, 1.5, NAN, True, "x", {}, [], [0], [1, None], "1,x"],
        "move_guidance": [-0.1, 1.1, NAN, True, "x", [0.5], {}],
        "schedule": [0, 0.5, NAN, True, "x", "", {}, [-0.1], [NAN], [0.5, 1.0], "adaptive:0"],
        "resampling": [0, True, None, "x", ["ssp"]],
        "ess_threshold": [-0.1, 1.1, NAN, True, None, "x", [0.5]],
        "returned": [0, True, None, "x", "", ["best"]],
        "until": [NAN, True, "x", [0.5], {}],
        "rescore": [-1, 1.5, True, None, "x", 1001],
        "degenerate": [0, True, None, "x"],
    },
    Batching: {
        "max_batch": [0, -1, 1.5, NAN, True, "x", "", "0", "1.5", "auto:2", {}, [2], halved],
        "decode_batch": [0, -1, 1.5, NAN, True, "x", "auto", {}, [2]],
        "checkpoint": [0, 1, None, "x", "true", NAN],
    },
    Viewing: {"frames": [0, -1, 1.5, NAN, True, "x", "", "0", "last", "first:2", {}, [2]]},
    Loading: {
        "device": [0, True, {}, b"cpu", torch.device("cpu")],
        "dtype": [0, True, "x", "", torch.float16],
        "offload": [0, True, None, "x", ""],
        "revision": [0, True, ["main"]],
        "lora": [0, True, ["a"]],
    },
}  # fmt: skip
REFUSED = [
    pytest.param(cls, name, value, id=f"{cls.__name__}-{name}={value!r}".split(" at 0x")[0])
    for cls, wrong in WRONG.items()
    for name, refused in wrong.items()
    for value in refused
]
NOT_TEXTS = {("checkpoint", "true"), ("scale", "1"), ("ess_threshold", "0.5"), ("until", "-7")}
"""These are right."""
ANYTHING = {("Loading", "device"), ("Loading", "revision"), ("Loading", "lora")}
REFUSED_TEXTS = [
    pytest.param(cls, name, text, id=f"{cls.__name__}-{name}={text}")
    for cls, wrong in WRONG.items()
    for name, refused in wrong.items()
    if (cls.__name__, name) not in ANYTHING
    for text in ["?", "-7", *(one for one in refused if isinstance(one, str))]
    if (name, text) not in NOT_TEXTS
]


@pytest.mark.parametrize(("cls", "name", "value"), one_in(4, REFUSED))
def test_a_wrong_value_is_refused_by_its_name(cls, name, value):
    for attempt in ways(cls, {name: value}):
        with pytest.raises(InvalidArgument, match=rf"\b{name}\b") as caught:
            attempt()
        if not isinstance(value, (str, list)):  # of these the part that is wrong
            assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("cls", "name", "text"), one_in(4, REFUSED_TEXTS))
def test_a_wrong_text_is_refused_by_its_name(cls, name, text):
    for attempt in ways_of_text(cls, name, text):
        with pytest.raises(InvalidArgument, match=rf"\b{name}\b"):
            attempt()


def test_times_are_checked_when_they_are_given():
    with pytest.raises(TimeError, match=r"2 transitions need 3 times .* got 2"):
        Sampler(2, times=[0.0, 1.0])
    with pytest.raises(TimeError, match=r"times must increase .* times\[1\] = 0.5"):
        Sampler(2, times=[0.0, 0.5, 0.5])
    with pytest.raises(TimeError, match=r"times\[2\] must lie in \[0, 1\]"):
        Sampler(2, times=[0.0, 0.5, 1.01])
    with pytest.raises(TimeError, match=r"a list of 3 times, got 0\.5"):
        Sampler(2, times=0.5)
    assert Sampler(1, times=[0.25, 0.5]).times == (0.25, 0.5)  # a part of the way, for tables


@each_class
def test_values_by_position(cls):
    given_values = [getattr(cls(), name) for name in names_of(cls)]
    assert cls(*given_values) == cls()
    with pytest.raises(InvalidArgument, match=f"has {len(given_values)} settings, got"):
        cls(*given_values, None)
    name = names_of(cls)[0]
    with pytest.raises(InvalidArgument, match=f"{name} is given twice, also by its position"):
        cls(given_values[0], **{name: given_values[0]})


@pytest.mark.parametrize("cls", [Beam, Greedy])
def test_children_divide_the_particles(cls):
    assert cls(12, children=4).parents == 3
    with pytest.raises(InvalidArgument, match="children = 4 must divide particles = 10"):
        cls(10, children=4)


# --- kinds ------------------------------------------------------------------------------------


def test_fields_without_a_kind_are_read_by_their_looks_in_any_case():
    @dataclass(frozen=True)
    class Mine:
        first: object = 1
        second: object = 2

    kind = Object("thing", "mine", heads={"mine": Mine})
    for text in ("mine:none:true", "mine:None:True", "mine:NONE:second=TRUE"):
        assert kind.parse("it", text) == Mine(None, True)


@pytest.mark.parametrize(
    ("kind", "text", "value"),
    [
        (Count(), "3", 3),
        (Count(), " +3 ", 3),
        (Count(0), "0", 0),
        (Count(optional=True), "none", None),
        (Count(optional=True), "None", None),
        (RHO, "None", None),
        (Text(optional=True), "NONE", None),
        (Number(), "-1e3", -1000.0),
        (Number(optional=True), "none", None),
        (Choice("letter", "ab"), "a", "a"),
        (Choice("letter", "ab", optional=True), "none", None),
        (Text(), "none", "none"),
        (Text(optional=True), "none", None),
        (Switch(), "True", True),
        (Switch(), "false", False),
        (Listed(Count()), "3", 3),
        (Listed(Count()), "3,", (3,)),
        (Listed(Count()), "3, 4", (3, 4)),
        (Listed(Count()), ",", ()),
        (Listed(Count(), item=Number()), "3,4", (3.0, 4.0)),
        (Listed(Count(optional=True)), "none", None),
    ],
)  # fmt: skip
def test_kinds_read_texts_and_write_them(kind, text, value):
    found = kind.parse("it", text)
    assert found == value
    assert type(found) is type(value)
    assert kind.read("it", kind.write(value)) == value
    assert kind.parse("it", spelled(kind.write(value))) == value


@pytest.mark.parametrize(
    ("kind", "text", "match"),
    [
        (Count(), "none", "it must be an integer >= 1, got 'none'"),
        (Count(2), "1", "it must be an integer >= 2, got 1"),
        (Count(), "1_0", "got '1_0'"),
        (Count(), "٣", "got '٣'"),
        (Number(), "none", "it must be finite, got 'none'"),
        (Number(), "inf", "it must be finite, got inf"),
        (Number("be > 0", lambda v: v > 0), "0", "it must be > 0, got 0.0"),
        (Choice("letter", "ab"), "none", "unknown letter 'none'"),
        (Switch(), "yes", "unknown it 'yes'.* Allowed: 'false', 'true'"),
        (Listed(Count()), "1,x", r"it\[1\] must be an integer >= 1, got 'x'"),
        (Object("thing", "a thing"), "x", "it must be a thing, got 'x'"),
        (Object("thing", "a thing"), "none", "it must be a thing, got 'none'"),
        (Object("thing", "a thing"), "<f>", "it = <f> was a function"),
    ],
)
def test_kinds_refuse_texts_by_name(kind, text, match):
    with pytest.raises(InvalidArgument, match=match):
        kind.parse("it", text)


@pytest.mark.parametrize("optional", [Count(optional=True), Number(optional=True),
                                      Choice("letter", "ab", True), Text(True),
                                      Object("thing", "a thing", optional=True)])  # fmt: skip
def test_none_is_a_value_where_it_may_be(optional):
    assert optional.read("it", None) is None
    assert optional.write(None) is None
    with pytest.raises(InvalidArgument, match=r"\b(it|letter)\b"):
        replace(optional, optional=False).read("it", None)


@given(st.booleans() | st.integers(-(10**20), 10**20) | st.floats(allow_nan=False))
@quick
def test_numbers_are_spelled_exactly(value):
    text = spelled(value)
    if isinstance(value, bool):
        assert Switch().parse("it", text) is value
    else:
        assert type(value)(text) == value
        assert not text.endswith(".0")


# --- settings added later ---------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Longer(Sampler):
    """A sampler with one more setting.

    Parameters
    ----------
    patience : int
        How long.
    steps : int
        Told anew.
    """

    patience: int = setting(3, Count())


@given(samplers())
@quick
def test_a_new_setting_leaves_old_objects_as_they_were(one):
    same = Longer(**{name: getattr(one, name) for name in names_of(Sampler)})
    assert same.as_json() == one.as_json()
    assert str(same) == str(one)
    assert Longer.from_json(strict(one)) == same
    assert Longer.parse(str(one)) == same
    more = replace(same, patience=4)
    assert more.as_json() == {**one.as_json(), "patience": 4}
    assert Longer.parse(str(more)) == more
    with pytest.raises(UnknownName, match="unknown setting of Sampler 'patience'"):
        Sampler.from_json(more.as_json())


def test_explanations_are_inherited_and_told_anew():
    told = explanations(Longer)
    assert told["patience"] == ("int", "How long.")
    assert told["steps"] == ("int", "Told anew.")
    assert told["rho"] == explanations(Sampler)["rho"]


@each_class
def test_every_setting_is_explained(cls):
    told = explanations(cls)
    assert set(told) == set(names_of(cls))
    for allowed, meaning in told.values():
        assert allowed.strip()
        assert meaning.strip()
        assert "\n" not in allowed + meaning


# --- calls by name ----------------------------------------------------------------------------

FRONTS = {
    "steer": (Steering, Sampler),
    "best_of": (BestOf, Sampler),
    "beam": (Beam, Sampler),
    "greedy": (Greedy, Sampler),
    "refine": (Refine, Sampler),
    "sample": (Sampler,),
    "steer_pipeline": (*METHOD_CLASSES, Sampler, Batching, Viewing),
}
each_front = pytest.mark.parametrize("name", FRONTS)


def front_of(name):
    if name == "steer_pipeline":
        pytest.importorskip("diffusers")
    import glass_flows

    return getattr(glass_flows, name)


@each_front
def test_a_front_names_every_setting_with_its_default(name):
    call = front_of(name)
    parameters = inspect.signature(call).parameters
    seen = []
    for owner, group in call.front.items():
        held = parameters[owner].default
        assert parameters[owner].kind is inspect.Parameter.POSITIONAL_OR_KEYWORD
        for setting_name, kind in group.kinds.items():
            parameter = parameters[setting_name]
            assert parameter.kind is inspect.Parameter.KEYWORD_ONLY
            repeated = kind.read(setting_name, parameter.default)
            assert repeated == group.default_of(setting_name, held)
            if not isinstance(group, AnyMethod):
                assert repeated == getattr(held, setting_name)
            seen.append(setting_name)
    assert len(seen) == len(set(seen))  # no name has two meanings
    assert set(seen) == {n for cls in FRONTS[name] for n in names_of(cls)}
    for cls in FRONTS[name]:
        if cls is not Sampler or name not in ("best_of", "refine"):  # whose sampler is the ODE
            for setting_name, kind in kinds(cls).items():
                repeated = kind.read(setting_name, parameters[setting_name].default)
                steerings = (cls, setting_name) in ((Refine, "schedule"), (BestOf, "scale"))
                if name != "steer_pipeline" or not steerings:
                    assert repeated == getattr(cls(), setting_name)


@each_front
def test_the_help_of_a_front_tells_every_setting(name):
    call = front_of(name)
    parameters = inspect.signature(call).parameters
    assert "{settings}" not in call.__doc__
    for group in call.front.values():
        for setting_name, (allowed, meaning) in group.told.items():
            default = parameters[setting_name].default
            line = f"\n{setting_name} : {allowed}; by default {default!r}\n    "
            assert call.__doc__.count(line) == 1
            assert meaning in " ".join(call.__doc__.split())
    if name in ("steer", "sample", "steer_pipeline"):  # the others refer to steer
        for other in set(parameters) - set(call.front):
            assert re.search(rf"^([\w, ]+, )?{other}\b", call.__doc__, re.M), other
    assert call.__wrapped__.__doc__.count("{settings}") == 1


def nothing(*args, **given_values):
    raise AssertionError("the network was asked")


nothing.path = Linear()


def asked(name, *args, **given_values):
    """The call, with its first arguments, whatever they are."""
    first = {"sample": (nothing, (2, 2)), "steer_pipeline": (None, "a cat", len)}
    shape = {} if name in first else {"shape": (2,)}
    return front_of(name)(*first.get(name, (nothing, len)), *args, **{**shape, **given_values})


@each_front
@pytest.mark.parametrize("foreign", FOREIGN)
def test_names_of_other_libraries_are_answered_with_ours(name, foreign):
    if foreign in inspect.signature(front_of(name)).parameters:
        pytest.skip("it is an argument here")
    expected = f"^{foreign} is not an argument here: give {re.escape(FOREIGN[foreign])}$"
    with pytest.raises(InvalidArgument, match=expected):
        asked(name, **{foreign: 20})


def test_the_names_people_bring_are_answered():
    answers = {
        "num_inference_steps": "transitions=",
        "generator": "seed=",
        "num_images_per_prompt": "particles=",
        "num_videos_per_prompt": "particles=",
        "callback_on_step_end": "on_boundary=",
    }
    for foreign, ours in answers.items():
        with pytest.raises(InvalidArgument, match=ours):
            asked("steer", **{foreign: 1})
    signature = inspect.signature(steer).parameters
    assert all(re.match(r"\w+", ours)[0] in signature for ours in answers.values())


@pytest.mark.parametrize("name", [name for name in FRONTS if name != "steer_pipeline"])
def test_a_typo_in_a_call_names_the_nearest(name):
    for known in [n for group in front_of(name).front.values() for n in group.kinds]:
        typo = known[:-1] + "x"
        expected = rf"^{name}\(\) has no argument '{typo}'. Did you mean '{known}'\? help\({name}\)"
        with pytest.raises(UnknownName, match=expected):
            asked(name, **{typo: 1})


def test_fronts_without_settings_name_the_nearest_too():
    x = torch.zeros(1, 2)
    for call, given_values, typo, known in (
        (transition, {"rho": 0.0, "steps": 2}, "nois", "noise"),
        (posterior, {"samples": 2, "steps": 2}, "differentiabel", "differentiable"),
    ):
        args = (nothing, x, 0.0, 1.0)[: 4 if call is transition else 3]
        with pytest.raises(UnknownName, match=f"has no argument '{typo}'. Did you mean '{known}'"):
            call(*args, **given_values, **{typo: None})
    with pytest.raises(UnknownName, match=r"iterate_steering\(\) has no argument 'populatins'"):
        iterate_steering(Sampler().plan(Linear()), nothing, len, Beam(), shape=(2,), populatins=2)


@each_front
def test_objects_beside_names_are_refused(name):
    for i, owner in enumerate(front_of(name).front):
        classes = {"sampler": Sampler, "batching": Batching, "viewing": Viewing}
        held = {"method": FRONTS[name][0], **classes}[owner](4)
        names = list(kinds(type(held)))[:2]
        given_values = {n: getattr(held, n) for n in names}
        for args, named in (([None] * i + [held], {}), ([], {owner: held})):
            with pytest.raises(InvalidArgument, match=rf"^{', '.join(names)}.* into it$") as caught:
                asked(name, *args, **named, **given_values)
            assert repr(held) in str(caught.value)


def test_objects_of_another_class_are_refused():
    for name, wrong in (("steer", Sampler()), ("steer", BestOf()), ("best_of", Steering()),
                        ("beam", Greedy()), ("greedy", "greedy"), ("sample", Steering()),
                        ("sample", 6), ("steer", {"particles": 3})):  # fmt: skip
        group = next(iter(front_of(name).front.values()))
        expected = re.escape(f"expected {group.cls.__name__}(...), got {wrong!r}")
        with pytest.raises(InvalidArgument, match=expected):
            asked(name, wrong)


@each_front
def test_a_missing_argument_is_named(name):
    needed = "shape" if name not in ("sample", "steer_pipeline") else None
    with pytest.raises(InvalidArgument, match=rf"^{name}\(\): missing a required argument"):
        front_of(name)()
    if needed:
        with pytest.raises(InvalidArgument, match=r"missing a required .*argument: 'shape'"):
            front_of(name)(nothing, len)


@pytest.mark.parametrize(("cls", "name", "value"), [p for p in REFUSED if p.values[0] is Steering])
def test_wrong_values_are_named_in_calls_too(cls, name, value):
    with pytest.raises(InvalidArgument, match=rf"\b{name}\b"):
        steer(nothing, len, shape=(2,), **{name: value})


@pytest.mark.parametrize("preset", METHODS)
def test_methods_by_name_take_their_settings_and_no_other(preset):
    base = METHODS[preset]
    assert method_of(preset, {}) == base.kind(**base.fields)
    for name, owners in every_setting().items():
        value = getattr(base.kind(**base.fields), name, getattr(owners[0](), name))
        settled = name in base.fields and name != "twist"
        if base.kind in owners and not settled:
            assert method_of(preset, {name: value}) == base.kind(**base.fields)
            text = spelled(kinds(base.kind)[name].write(value))
            assert method_of(preset, {}, {name: text}) == base.kind(**base.fields)
        else:
            with pytest.raises(InvalidArgument, match=f"method '{preset}' has no {name}: it has"):
                method_of(preset, {name: value})
    with pytest.raises(InvalidArgument, match=r"scale: given beside .*; put them into it"):
        method_of(base.kind(), {"scale": 1.0})
    with pytest.raises(UnknownName, match=f"Did you mean '{preset}'"):
        method_of(preset + "s", {})


# --- making fronts ----------------------------------------------------------------------------

_TINY, _ODE = Batching(), Sampler.ode(3)


def test_a_default_that_is_not_the_objects_is_refused():
    with pytest.raises(TypeError, match=r"^bad\(\): the default of decode_batch is not 2$"):

        @front(batching=Batching)
        def bad(batching=_TINY, *, max_batch="auto", decode_batch=2):
            pass

    with pytest.raises(TypeError, match=r"^worse\(\): the default of steps is not 4$"):

        @front(sampler=Sampler)
        def worse(sampler=_ODE, *, transitions=1, steps=4, rho="ode"):
            pass

    with pytest.raises(InvalidArgument, match="checkpoint must be True or False, got 0"):

        @front(batching=Batching)
        def worst(batching=_TINY, *, checkpoint=0):
            pass


@front(batching=Batching, sampler=Sampler)
def small(
    x,
    batching=_TINY,
    sampler=_ODE,
    *,
    max_batch="auto",
    decode_batch=1,
    checkpoint=False,
    transitions=1,
    steps=3,
    rho="ode",
    solver="default",
    other=None,
):
    """A call.

    Parameters
    ----------
    {settings}
    other
        Something else.
    """
    return x, batching, sampler, other


def test_a_front_is_given_the_objects():
    assert small(1) == (1, Batching(), Sampler.ode(3), None)
    assert small(1, max_batch=2, steps=5) == (1, Batching(2), Sampler.ode(5), None)
    assert small(1, Batching(3), other=2, rho=0.3) == (1, Batching(3), Sampler(1, 3, 0.3), 2)
    assert small(x=1, sampler=Sampler(), checkpoint=True) == (
        1, Batching(checkpoint=True), Sampler(), None,
    )  # fmt: skip
    assert small(1, None, None) == small(1)
    assert small(1, solver="euler-maruyama")[2] == Sampler(1, 3, None, None, "euler-maruyama")
    with pytest.raises(UnknownName, match="has no argument 'start'"):  # not named by this front
        small(1, start="pure")
    with pytest.raises(InvalidArgument, match=r"small\(\): too many positional arguments"):
        small(1, None, None, None)
    assert inspect.signature(small).parameters["steps"].default == 3
    assert "steps : int, or K of them; by default 3\n" in small.__doc__
    assert "start :" not in small.__doc__


# --- the same run, however it is asked for ----------------------------------------------------

MIXTURE = GaussianMixture(torch.tensor([[-1.0, 0.0], [1.0, 0.5]], dtype=torch.float64), 0.5)
DENOISER = MIXTURE.denoiser(Linear())
REST = {"shape": (2,), "seed": 3, "dtype": torch.float64, "populations": 2}


def reward(z):
    return z[:, 0] - 0.3 * z[:, 1].square()


def same(one, other):
    assert type(one) is type(other)
    for name, found in vars(one).items():
        expected = getattr(other, name)
        if isinstance(found, torch.Tensor):
            assert found.dtype == expected.dtype
            assert torch.equal(found.nan_to_num(-7.0), expected.nan_to_num(-7.0)), name
        else:
            assert found == expected, name


CALLS = [
    (steer, Steering(), Sampler()),
    (steer, Steering(5, 2.0, "max", "linear", 1, "ssp", 0.9), Sampler(3, 2, 0.2)),
    (steer, Steering(4, 3.0, value="posterior:2:2", twist="1:cap=1", boundaries=[1, 2]),
     Sampler(3, [1, 2, 3], ["ddpm", 0.1, "ddim:0.5"], "shifted:2")),
    (steer, Steering(4, schedule=[0.5, 1, 1], guidance="reward:0.5", degenerate="carry"),
     Sampler(3, 2, times=[0, 0.3, 0.6, 1], start="pure")),
    (steer, Steering(4, schedule="adaptive:0.7", ess_threshold=0.7),
     Sampler(3, 2, None, solver="euler-maruyama:0.6")),
    (best_of, BestOf(), Sampler.ode(24)),
    (best_of, BestOf(3, 2.0, "reward"), Sampler(2, 2, 0.3, solver="first-order")),
    (beam, Beam(), Sampler()),
    (beam, Beam(6, 2.0, 3, "posterior:2:2", [1], "reward"), Sampler(3, 2)),
    (greedy, Greedy(), Sampler()),
    (greedy, Greedy(6, 2.0, 3, pick="sample"), Sampler(3, 2, "ddpm")),
    (refine, Refine(), Sampler.ode(BEGINNING)),
    (refine, Refine(6, 2.0, 4, (0.2, 0.6), 2, 1.0, "linear", "ssp", 0.9, "last"),
     Sampler(2, 2, "ddpm")),
]  # fmt: skip


@pytest.mark.parametrize(
    ("call", "method", "sampler"),  # defaults are looked at below, too
    fast(CALLS[1:2], CALLS),
)
def test_settings_by_name_and_as_objects_are_the_same_run(call, method, sampler):
    rest = {**REST, "progress": False}
    named = {**{n: getattr(method, n) for n in names_of(type(method))},
             **{n: getattr(sampler, n) for n in names_of(Sampler)}}  # fmt: skip
    expected = call(DENOISER, reward, method, sampler, **rest)
    kinds_of = {steer: SteeringResult, best_of: SteeringResult, refine: RefinedResult}
    assert type(expected) is kinds_of.get(call, SearchResult)
    same(call(DENOISER, reward, **named, **rest), expected)
    same(call(DENOISER, reward, **{**method.every(), **sampler.every()}, **rest), expected)
    same(call(denoiser=DENOISER, reward=reward, sampler=sampler, method=method, **rest), expected)
    told = {**method.differing(), **{n: sampler.every()[n] for n in names_of(Sampler)}}
    same(call(DENOISER, reward, **told, **rest), expected)
    read = (type(method).parse(str(method)), Sampler.from_json(strict(sampler)))
    same(call(DENOISER, reward, *read, **rest), expected)
    half = {n: getattr(sampler, n) for n in names_of(Sampler)}
    same(call(DENOISER, reward, method, **half, **rest), expected)


def test_a_call_without_settings_is_as_by_default():
    defaults = {steer: Steering(), best_of: BestOf(), beam: Beam(), greedy: Greedy()}
    defaults[refine] = Refine()
    for call, method in defaults.items():
        sampler = {best_of: Sampler.ode(24), refine: Sampler.ode(BEGINNING)}.get(call, Sampler())
        same(call(DENOISER, reward, **REST), call(DENOISER, reward, method, sampler, **REST))
    z = sample(DENOISER, (4, 2), seed=1, dtype=torch.float64)
    assert torch.equal(z, sample(DENOISER, (4, 2), Sampler(), seed=1, dtype=torch.float64))
    named = sample(DENOISER, (4, 2), transitions=2, rho="ddpm", seed=1, dtype=torch.float64)
    chosen = Sampler(2, rho="ddpm")
    assert torch.equal(named, sample(DENOISER, (4, 2), chosen, seed=1, dtype=torch.float64))


@pytest.mark.parametrize(
    ("call", "method", "sampler"), fast([CALLS[i] for i in (1, 6, 8, 10, 12)], CALLS)
)
def test_an_observer_is_called_at_every_boundary_and_at_the_end(call, method, sampler):
    seen = []
    kept = call(DENOISER, reward, method, sampler, on_boundary=seen.append, **REST)
    K = method.length(sampler.plan(Linear()))  # Euler-Maruyama: one for every evaluation
    assert [step.boundary.index for step in seen] == list(range(K + 1))
    assert [step.boundary.final for step in seen] == [False] * K + [True]
    kind = SteeringStep if method.weighted else Step
    kind = RefineStep if call is refine else kind
    assert all(type(step) is kind for step in seen)
    same(kept, call(DENOISER, reward, method, sampler, **REST))
    assert seen[-1].costs == kept.costs
    assert torch.equal(torch.stack([step.ancestors for step in seen[:-1]]), kept.ancestry)
    table = sampler.plan(Linear())
    if not isinstance(sampler.solver, EulerMaruyama) or method.schedule != Adaptive(0.7):
        steps = list(iterate_steering(table, DENOISER, reward, method, **REST))
        assert len(steps) == K + 1
        assert torch.equal(steps[-1].boundary.x, seen[-1].boundary.x)


def test_an_observer_must_be_a_function():
    with pytest.raises(
        InvalidArgument, match="on_boundary must be a function of a step, or None, got 3"
    ):
        steer(nothing, len, shape=(2,), on_boundary=3)


def test_no_other_solver_is_without_rho():
    for solver in ("default", "first-order", "paper"):
        with pytest.raises(InvalidArgument, match=r"rho=None \('none'\) is for Euler-Maruyama"):
            Sampler(rho=None, solver=solver)


def test_best_of_n_and_the_beginning_of_refinement_are_on_the_ode():
    sampler = Sampler(5, 3, 0.2)
    assert sampler_for(Steering(4), sampler, ()) is sampler
    assert sampler_for(BestOf(4), sampler, ("rho",)) is sampler
    assert sampler_for(BestOf(4), sampler, ()) == Sampler.ode(15)
    assert sampler_for(Refine(4), sampler, ()) == Sampler.ode(BEGINNING)
    assert sampler_for(Refine(4), sampler, ("steps",)) == Sampler.ode(15)
