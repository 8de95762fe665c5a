"""Plans at the ends of what can be asked: starts a hair before data, thousands of evaluations."""

from __future__ import annotations

import itertools

import pytest

from cases import fast, first
from glass_flows import Sampler
from glass_flows.paths import EDM, Cosine, Linear, VariancePreserving
from glass_flows.plans import plan_transition

PATHS = [Linear(), Cosine(), VariancePreserving(), EDM()]


@pytest.mark.parametrize("gap", fast([1e-9], [1e-6, 1e-7, 1e-8, 1e-9, 1e-10, 1e-11, 1e-12]))
@pytest.mark.parametrize("path", first(PATHS), ids=lambda path: path.name)
def test_starts_a_hair_before_data_keep_their_law(path, gap):
    """A float t near 1 holds 1 - t to few digits; what is asked there must not inherit that loss.

    Every table checks its first two moments on Gaussian data to 1e-8 when it is made.
    """
    asked = itertools.product(
        ("default", "first-order", "paper"), (1.0, 1 - gap / 2), (1, 2, 5, 12)
    )
    for solver, t_next, steps in asked:
        for rho in (-0.9, 0.0, 0.4, 1.0, "ddpm", *(["ode"] * (solver != "paper"))):
            table = plan_transition(path, 1 - gap, t_next, rho=rho, steps=steps, solver=solver)
            (transition,) = table
            assert transition.law is not None or path.name == "edm", (rho, solver, t_next, steps)
            assert all(1 - gap <= row.time <= 1.0 for row in transition.rows)


@pytest.mark.slow
@pytest.mark.parametrize(("transitions", "steps"), [(1, 3000), (300, 10)])
def test_thousands_of_evaluations(transitions, steps):
    table = Sampler(transitions, steps, 0.4).plan(Linear())
    assert table.evaluations == 3000


@pytest.mark.parametrize(("nearness", "evaluations"), [(1.5, 3), (1.001, 3), (1 + 1e-8, 1)])
def test_an_ode_that_is_nearly_at_the_end_of_its_path_takes_one_evaluation(nearness, evaluations):
    path = EDM()
    t = path.time(path.amplitude(1.0) / nearness)
    table = plan_transition(path, t, 1.0, rho="ode", steps=3, solver="default")
    assert table.evaluations == evaluations
