"""Edges of planning and of a table's self-check that mutation testing found unwatched."""

from __future__ import annotations

import dataclasses

import pytest

from glass_flows.errors import PlanError, TimeError
from glass_flows.paths import EDM, DiscreteDiffusion, Linear
from glass_flows.plans import DDIM, Ends, Kernel, Table, plan, plan_transition
from glass_flows.plans.table import Mix


def test_a_transition_to_its_own_start_is_named():
    with pytest.raises(TimeError, match=r"need t < t_next, got 0\.5 >= 0\.5"):
        plan_transition(Linear(), 0.5, 0.5, rho=0.4, steps=2)


def test_an_untrained_start_names_the_two_times_around_it():
    path = DiscreteDiffusion([0.9, 0.7, 0.5, 0.1])  # trained at 0, 1/4, 1/2, 3/4
    with pytest.raises(PlanError, match=r"trained times are 0\.25 and 0\.5\. Named"):
        plan_transition(path, 0.3, 1.0, rho=0.4, steps=2)


def test_a_free_value_needs_the_state_and_its_time():
    """D_t(x_t): the network sees x alone, and is asked at t."""
    (transition,) = plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=2)
    assert transition.free_value
    assert not dataclasses.replace(transition, input=Mix(x=1.0, eps=0.1)).free_value
    elsewhere = dataclasses.replace(transition.rows[0], time=0.4)
    assert not dataclasses.replace(transition, rows=(elsewhere, transition.rows[1])).free_value


def test_every_transition_of_a_table_needs_a_row():
    table = plan(Linear(), transitions=2, steps=2, rho=0.4)
    for k in (0, 1):
        transitions = list(table.transitions)
        transitions[k] = dataclasses.replace(transitions[k], rows=())
        with pytest.raises(PlanError, match="at least one row"):
            Table(table.path, tuple(transitions), table.settings)


def test_the_self_check_is_relative_where_noise_is_large():
    """At σ = 80 variances are 6400: an error of 1e-10 of them is rounding, a ρ off by 1e-6 is not.

    ρ enters the covariance of start and end only, whose scale is the product of both standard
    deviations.
    """
    path = EDM()
    (transition,) = plan_transition(path, 0.0, path.time(1 / 70), rho=0.4, steps=2)
    wider = transition.sigma_next * (1 + 1e-10)
    dataclasses.replace(transition, sigma_next=wider).verify(path)
    ends = Ends.of(path, transition.t, transition.t_next)
    for rho in (0.4 + 1e-6, 0.4 - 1e-6):
        claimed = dataclasses.replace(
            transition, rho=rho, **dataclasses.asdict(Kernel.of(ends, rho))
        )
        with pytest.raises(PlanError, match="covariance"):
            claimed.verify(path)


@pytest.mark.parametrize("ends", [(0.5, 0.5), (0.7, 0.5), (0.5, 1.5), (-0.1, 0.5)])
def test_transitions_go_forward_within_the_unit_interval(ends):
    (transition,) = plan_transition(Linear(), 0.3, 0.7, rho=0.4, steps=2)
    wrong = dataclasses.replace(transition, t=ends[0], t_next=ends[1], law=None)
    with pytest.raises(PlanError, match="in \\[0, 1\\]"):
        wrong.verify(Linear())


@pytest.mark.parametrize(
    "name", ["alpha", "sigma", "alpha_next", "sigma_next", "gamma", "alpha_bar", "sigma_bar"]
)
@pytest.mark.parametrize("error", [1.5e-8, -1.5e-8])
def test_ends_and_kernel_are_checked_where_no_law_is_claimed(name, error):
    """To 1e-8 of the larger of 1 and the number itself, in both directions."""
    path = EDM()
    (transition,) = plan_transition(path, 0.9, 0.95, rho=0.4, steps=2)
    plain = dataclasses.replace(transition, law=None)
    value = getattr(plain, name)
    with pytest.raises(PlanError, match=f"{name} is"):
        dataclasses.replace(plain, **{name: value + error}).verify(path)
    if name in ("alpha_bar", "sigma_bar"):  # the others move γ along
        dataclasses.replace(plain, **{name: value + 0.1 * error}).verify(path)


@pytest.mark.parametrize(
    ("rho", "solver", "shown"),
    [
        (None, "euler-maruyama", None),
        ("ddpm", "default", "ddpm"),
        (0.5, "default", 0.5),
        (DDIM(0.5), "default", "DDIM(eta=0.5)"),
        ([0.5, "ode"], "default", "(0.5, 'ode')"),
    ],
)
def test_settings_name_rho_in_words_that_json_has(rho, solver, shown):
    table = plan(Linear(), transitions=2, steps=1, rho=rho, solver=solver)
    assert table.settings["rho"] == shown
    assert Table.from_json(table.to_json()).settings["rho"] == shown
