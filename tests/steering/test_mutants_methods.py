"""Methods by name: what a name makes, what it refuses, and on which sampler it runs."""

from __future__ import annotations

import pytest

from glass_flows import Sampler
from glass_flows.errors import InvalidArgument
from glass_flows.fronts import front
from glass_flows.steering import Beam, BestOf, Greedy, Refine, Steering, Twist, method_of
from glass_flows.steering.methods import (
    AnyMethod,
    SamplerOfMethod,
    foreign_settings,
    idle_settings,
)
from glass_flows.steering.refinement import BEGINNING


@front(method=AnyMethod(), sampler=SamplerOfMethod(Sampler))
def made(
    method="steering",
    sampler=Sampler(),  # noqa: B008 - frozen
    *,
    particles=8,
    scale="auto",
    ess_threshold=0.5,
    children=2,
    pick="best",
    transitions=6,
    steps=4,
    rho=0.4,
    times=None,
    solver="default",
    start="trained",
):
    """A method and its sampler.

    {settings}
    """
    return method, sampler


@pytest.mark.parametrize(
    ("given", "method", "sampler"),
    [
        ({}, Steering(), Sampler()),
        ({"particles": 4, "steps": 2}, Steering(4), Sampler(steps=2)),
        ({"method": "plain", "steps": 2}, BestOf(1), Sampler.ode(12)),
        ({"method": "best-of-n", "rho": 0.2}, BestOf(), Sampler(rho=0.2)),
        ({"method": "best-of-n", "start": "pure"}, BestOf(), Sampler(1, 24, "ode", start="pure")),
        ({"method": "twist"}, Steering(twist=Twist()), Sampler()),
        ({"method": "svdd", "children": 4}, Greedy(children=4, pick="sample"), Sampler()),
        ({"method": "greedy", "pick": "sample"}, Greedy(pick="sample"), Sampler()),
        ({"method": Beam(4), "rho": 0.2}, Beam(4), Sampler(rho=0.2)),
        ({"method": "best-of-n", "sampler": Sampler(3, 2)}, BestOf(), Sampler(3, 2)),
        ({"method": "refine"}, Refine(), Sampler.ode(BEGINNING)),
        ({"method": "refine", "transitions": 2}, Refine(), Sampler.ode(8)),
        (
            {"method": "refine", "solver": "paper"},
            Refine(),
            Sampler(1, BEGINNING, "ode", solver="paper"),
        ),
        (
            {"method": "best-of-n", "solver": "euler-maruyama"},
            BestOf(),
            Sampler(rho=None, solver="euler-maruyama"),
        ),
    ],
)  # fmt: skip
def test_a_method_by_name_and_its_sampler(given, method, sampler):
    assert made(**given) == (method, sampler)


@pytest.mark.parametrize(
    ("given", "match"),
    [
        ({"method": "plain", "particles": 2}, "^method 'plain' has no particles: it has scale, "),
        (
            {"method": "svdd", "pick": "best"},
            "'svdd' has no pick: it has particles, scale, children, value, ",
        ),
        ({"method": "beam", "pick": "best"}, "method 'beam' has no pick: it has particles, "),
        ({"method": Beam(), "children": 4}, "children: given beside .*; put them into it"),
        ({"method": "plain", "times": "uniform", "solver": "paper"}, "^solver, times: nothing to"),
        ({"method": "refine", "times": "uniform", "solver": "paper"}, "^times: nothing to .*rho="),
    ],
)
def test_what_cannot_act_is_refused(given, match):
    with pytest.raises(InvalidArgument, match=match):
        made(**given)


def test_settings_that_are_nothing_to_a_method():
    names = ["particles", "children", "pick", "twist", "steps"]
    assert foreign_settings("twist", names) == ["children", "pick", "steps"]
    assert foreign_settings("greedy", names) == ["twist", "steps"]
    assert foreign_settings("svdd", names) == ["pick", "twist", "steps"]
    asked = ["times", "solver", "steps"]
    assert idle_settings(BestOf(), Sampler(), asked) == ["solver", "times"]
    assert idle_settings(Refine(), Sampler(), asked) == ["times"]
    assert idle_settings(BestOf(), Sampler(), [*asked, "rho"]) == []
    assert idle_settings(Steering(), Sampler(), asked) == []
    without = Sampler(rho=None, solver="euler-maruyama")
    assert idle_settings(BestOf(), without, asked) == []


def test_settings_as_texts():
    assert method_of("steering", {"particles": 4}, {"scale": "3"}) == Steering(4, scale=3.0)
    assert method_of("twist", {}, {"twist": "0.5"}) == Steering(twist=0.5)


def test_the_help_is_the_fullest_of_the_methods_that_have_a_setting():
    told = AnyMethod().told
    assert told["pick"][0] == '"best" or "sample"'
    assert told["pick"][1].endswith(" Of the methods greedy, svdd.")
    assert told["scale"][1].endswith(
        " Of the methods plain, best-of-n, steering, twist, beam, greedy, svdd, refine."
    )
    assert "the λ at which that law is 1.2 nats" in told["scale"][1]
