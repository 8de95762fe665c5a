"""Stochastic samplers of the field are rules for ρ, to the last bit that their sources leave."""

from __future__ import annotations

import importlib
import math
import sys
from itertools import pairwise
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cases import fast
from glass_flows import Sampler, paths, plan
from glass_flows.errors import InvalidArgument
from glass_flows.plans import DDIM, Ancestral, Ends, Precise, resolve_rho

sys.path.insert(0, str(Path(__file__).parent.parent.parent))  # of the benchmarks
bench = importlib.import_module("benchmarks.samplers")

LINEAR = paths.Linear()
TIMES = st.floats(0.01, 0.99)


@pytest.mark.parametrize(
    "row",
    fast(lambda row: "Flow-GRPO" not in row.name, bench.ROWS),
    ids=lambda row: f"{row.rho} {row.name[:30]}",
)
def test_one_step_is_that_of_the_original(row):
    if getattr(row.step, "func", row.step) in (bench.ddim, bench.ddpm, bench.flow_scheduler):
        pytest.importorskip("diffusers")
    assert row.worst() < 1e-6


def test_the_sde_step_of_flow_grpo_leaves_too_much_noise():
    ends = Ends.of(LINEAR, 0.1, 0.3)
    left = bench.noise_left(lambda *given: bench.flow_grpo(0.7, *given), ends)
    assert left > ends.sigma_next + 0.2
    for row in bench.ROWS:
        if row.path is LINEAR and row.step.func.__name__ != "flow_scheduler":
            # standard error 1/√(2 · 200,000) of .7: five of them
            assert bench.noise_left(row.step, ends) == pytest.approx(ends.sigma_next, abs=6e-3)


@given(TIMES, TIMES, TIMES, st.floats(0, 3))
def test_precise_is_one_process(a, b, c, eta):
    """Two transitions one after the other keep what one does; and η = √2 is DDPM."""
    t = sorted((a, b, c))
    rule = Precise(eta)
    parts = [rule.rho(Ends.of(LINEAR, *pair)) for pair in pairwise(t)]
    assert math.prod(parts) == pytest.approx(rule.rho(Ends.of(LINEAR, t[0], t[2])), rel=1e-9)
    ends = Ends.of(LINEAR, t[0], t[2])
    assert Precise(math.sqrt(2)).rho(ends) == pytest.approx(ends.rho_ddpm, rel=1e-12)


@given(TIMES, TIMES, st.floats(0, 1))
def test_ancestral_lies_between_keeping_and_ddpm_of_its_path(a, b, eta):
    t, t_next = sorted((a, b))
    for path in (LINEAR, paths.EDM(), paths.VariancePreserving()):
        ends = Ends.of(path, t, t_next)
        rho = Ancestral(eta).rho(ends)
        assert -1e-12 <= rho <= 1 + 1e-12
        if path is not LINEAR:
            assert rho == DDIM(eta).rho(ends)
        if eta == 0:
            assert rho == pytest.approx(1)


def test_ancestral_of_one_is_not_ddpm_on_the_linear_path():
    ends = Ends.of(LINEAR, 0.1, 0.25)  # a/a' = 1/3
    assert Ancestral().rho(ends) == pytest.approx(0.75 / 0.9 * 0.25 / (1 - 0.75**2 / 0.9))
    assert Ancestral().rho(ends) > ends.rho_ddpm == pytest.approx(1 / 3)


@pytest.mark.parametrize(
    ("text", "last"),
    [("cps:0.5", math.cos(math.pi / 4)), ("precise:1", 0.0), ("ancestral:0.5", 0.5),
     ("renoise", 0.0)],
)  # fmt: skip
@pytest.mark.parametrize("steps", [1, 3])
def test_rules_are_spelled_and_planned(text, last, steps):
    sampler = Sampler(3, steps, text)
    assert Sampler.parse(str(sampler)) == sampler == Sampler.from_json(sampler.as_json())
    assert resolve_rho(sampler.rho, Ends.of(LINEAR, 0.5, 1.0)) == pytest.approx(last)
    for path in (LINEAR, paths.VariancePreserving(), paths.EDM()):
        assert len(plan(path, transitions=3, steps=steps, rho=sampler.rho)) == 3


@pytest.mark.parametrize("text", ["cps:2", "cps:-1", "ancestral:1.5", "precise:-1", "renoise:1"])
def test_levels_out_of_range_are_refused(text):
    with pytest.raises(InvalidArgument):
        Sampler(3, 1, text)
