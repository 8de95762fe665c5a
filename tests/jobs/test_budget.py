"""`--budget`: what is chosen costs what was asked for."""

from __future__ import annotations

import itertools
import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from glass_flows.cli import app
from glass_flows.errors import InvalidArgument
from glass_flows.jobs.budget import (
    Budget,
    Prices,
    choose,
    chosen_for,
    measure,
    parse_budget,
)


@pytest.mark.parametrize(
    ("text", "budget"),
    [
        ("90s", Budget(seconds=90)),
        (" 2 min", Budget(seconds=120)),
        ("1.5h", Budget(seconds=5400)),
        ("2000", Budget(evaluations=2000)),
    ],
)
def test_times_and_numbers(text, budget):
    assert parse_budget(text) == budget


@pytest.mark.parametrize("text", ["", "2 weeks", "-3", "0", "0s", "1.5", "s", "two minutes"])
def test_anything_else_is_refused(text):
    with pytest.raises(InvalidArgument, match="90s, 2min or 1h, or a number"):
        parse_budget(text)


@settings(max_examples=40, deadline=None)
@given(st.floats(1e-4, 100), st.floats(0, 100), st.floats(0, 10), st.floats(1.0, 50.0))
def test_the_choice_spends_the_budget_and_no_more(evaluation, look, call, times):
    prices = Prices(evaluation, look, call * evaluation)
    amount = times * prices.of(12, 6, 4)
    choice = choose(prices, amount)
    price = prices.of(choice.particles, choice.transitions, choice.steps)
    assert price == choice.price <= amount
    assert price >= 0.85 * amount


def test_more_budget_buys_evaluations_first_and_then_particles():
    prices = Prices(1.0, 0.0)
    few, some, many = (choose(prices, amount) for amount in (40, 250, 2000))
    assert few.transitions * few.steps < 24
    assert few.particles >= 2
    assert 16 <= some.transitions * some.steps <= 32
    assert many.particles > some.particles > few.particles


def test_looks_that_cost_much_are_taken_seldom():
    cheap, dear = choose(Prices(1.0, 0.0), 300), choose(Prices(1.0, 10.0), 300)
    assert dear.transitions < cheap.transitions
    assert dear.steps > cheap.steps


def test_too_little_is_refused_with_what_it_takes():
    with pytest.raises(InvalidArgument, match=r"two particles of 2x2 evaluations cost 8, it is 7"):
        choose(Prices(1.0, 0.0), 7)


class Machine:
    """A clock that runs as fast as a model with these prices, whose batches save a part."""

    def __init__(self, evaluation, look, call=0.0, warm=0.0, run=0.0):
        self.now, self.prices, self.call, self.warm = 0.0, (evaluation, look), call, warm
        self.run = run

    def trial(self, particles, transitions, steps):
        evaluation, look = self.prices
        self.now += self.run + self.warm + transitions * steps * self.call
        self.now += particles * transitions * (steps * evaluation + look)
        self.warm = 0.0
        return particles * transitions * steps

    def clock(self):
        return self.now


@pytest.mark.parametrize("seconds", [30, 120, 1000])
@pytest.mark.parametrize(
    "machine",
    [
        {"evaluation": 0.05, "look": 0.0},
        {"evaluation": 0.02, "look": 0.05, "warm": 1.0},
        {"evaluation": 0.05, "look": 0.001, "run": 0.3},
        {"evaluation": 0.01, "look": 0.01, "call": 0.2},  # a GPU: one costs as much as twenty
    ],
)
def test_measured_and_spent_it_is_within_fifteen_percent(seconds, machine):
    model = Machine(**machine)
    choice = measure(model.trial, Budget(seconds=seconds), model.clock)
    measured = model.now
    model.trial(choice.particles, choice.transitions, choice.steps)
    assert model.now == pytest.approx(seconds, rel=0.15)
    assert measured < 0.5 * seconds


def test_evaluations_are_counted_and_never_exceeded():
    for passes in (1, 2):
        model = Machine(1.0, 0.0)
        choice = measure(lambda *n, p=passes, m=model: p * m.trial(*n), Budget(evaluations=1000))
        spent = passes * choice.particles * choice.transitions * choice.steps
        assert 850 <= spent <= 1000


def test_a_choice_is_kept_so_that_a_run_can_be_gone_on_with(tmp_path):
    numbers = itertools.count(1)
    said = []
    first = chosen_for("600", tmp_path, lambda *n: next(numbers), said.append)
    calls = next(numbers)
    assert chosen_for("600", tmp_path, lambda *n: next(numbers)) == first
    assert next(numbers) == calls + 1  # nothing was measured
    assert f"{first.particles} particles, {first.transitions} transitions" in said[-1]
    assert json.loads((tmp_path / "budget.json").read_text())["budget"] == "600 network evaluations"


def test_a_batch_within_a_number_of_evaluations(tmp_path):
    (tmp_path / "prompts.txt").write_text("8\n")
    command = ["batch", str(tmp_path / "prompts.txt"), "--model", "digits"]
    command += ["--budget", "300", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (found,) = (tmp_path / "out").glob("*/result.json")
    assert 255 <= json.loads(found.read_text())["costs"]["network_evaluations"] <= 300
    (tmp_path / "prompts.txt").write_text("seven\n")
    bad = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "bad")])
    assert isinstance(bad.exception, InvalidArgument)
    digits = CliRunner().invoke(app, ["align", "--budget", "2min", "--out", str(tmp_path)])
    assert "--budget: only for a diffusers pipeline" in str(digits.exception)


def test_a_choice_is_that_of_its_job(tmp_path):
    def model(*sizes):
        asked.append(sizes)
        return sizes[0] * sizes[1] * sizes[2]

    asked = []
    first = chosen_for("600", tmp_path, model, job={"model": "a"})
    count = len(asked)
    assert chosen_for("600", tmp_path, model, job={"model": "a"}) == first
    assert len(asked) == count
    chosen_for("600", tmp_path, model, job={"model": "b"})
    assert len(asked) == 2 * count
    file = tmp_path / "budget.json"
    for text in (file.read_text()[:-9], "[]", '{"budget": "600 network evaluations"}'):
        file.write_text(text)
        assert chosen_for("600", tmp_path, model, job={"model": "b"}) == first
    assert len(asked) == 5 * count
    found = json.loads(file.read_text())
    file.write_text(json.dumps({name: found[name] for name in ("budget", "choice")}))  # of 0.2.0
    assert chosen_for("600", tmp_path, model, job={"model": "b"}) == first
    assert len(asked) == 5 * count


def test_sizes_beside_a_budget_are_refused(tmp_path):
    command = ["align", "--model", "shapes", "--prompt", "a red circle", "--budget", "200"]
    command += ["--particles", "4", "--steps", "2", "--out", str(tmp_path)]
    told = CliRunner().invoke(app, command)
    assert "--particles, --steps: --budget chooses them" in str(told.exception)
