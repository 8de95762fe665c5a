"""`--budget`: what is chosen costs what was asked for."""

from __future__ import annotations

import importlib
import itertools
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cases import first
from glass_flows import BestOf, Refine, Sampler, Steering
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument
from glass_flows.jobs import Job
from glass_flows.jobs.budget import (
    Budget,
    Kept,
    Prices,
    choose,
    left_out,
    measure,
    parse_budget,
    told,
    ways,
)
from glass_flows.jobs.models import Digits, Pipeline

STEERING, BEST = Job("shapes", Steering(), Sampler()), Job("shapes", BestOf(), Sampler.ode(24))
REFINE = Job("shapes", Refine(), Sampler.ode(6))
STEERED, REFINED, PICKED = (tuple(ways(job)) for job in (STEERING, REFINE, BEST))


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


@pytest.mark.slow
@settings(max_examples=12, deadline=None)
@given(
    st.floats(1e-4, 100),
    st.floats(0, 100),
    st.floats(0, 10),
    st.floats(1.0, 50.0),
    st.sampled_from([STEERED, REFINED, PICKED]),
)
def test_the_choice_spends_the_budget_and_no_more(evaluation, look, call, times, among):
    prices = Prices(evaluation, look, call * evaluation)
    amount = times * prices.of(12, 24, 6)
    choice = choose(prices, amount, among)
    price = prices.of(choice.particles, choice.way.evaluations, choice.way.looks)
    assert price == choice.price <= amount
    assert price >= 0.85 * amount
    sized = choice.sized()
    assert sized.method.evaluations(sized.sampler) <= choice.way.evaluations
    moves = sized.method.moves if among is REFINED else 0
    looks = {"steering": sized.sampler.transitions, "refine": 1 + moves, "best-of-n": 1}
    assert choice.way.looks == looks[sized.method.word]
    assert sized.method.word == among[0].job.method.word


thinned = pytest.mark.parametrize("every", first([8, 1]))  # of the ways an eighth shows it


@thinned
def test_more_budget_buys_evaluations_first_and_then_particles(every):
    prices = Prices(1.0, 0.0)
    few, some, many = (choose(prices, amount, STEERED[::every]) for amount in (40, 250, 2000))
    assert few.way.evaluations < 24
    assert few.particles >= 2
    assert 16 <= some.way.evaluations <= 32
    assert many.particles > some.particles > few.particles


@thinned
def test_looks_that_cost_much_are_taken_seldom(every):
    for among in (REFINED[::every], STEERED[::every]):
        cheap, dear = (choose(Prices(1.0, look), 300, among) for look in (0.0, 10.0))
        assert dear.way.looks < cheap.way.looks
    assert dear.way.steps > cheap.way.steps


@thinned
def test_refinement_is_chosen_where_its_moves_keep_a_law(every):
    """And not under guidance, where looks on the way are cheaper than moves."""
    for guidance, word in ((1.0, "refine"), (3.0, "steering")):
        both = [way for job in (STEERING, REFINE) for way in ways(job, guidance)][::every]
        for amount in (200, 1000):
            split = choose(Prices(1.0, 0.2), amount, both)
            assert split.way.job.method.word == split.sized(guidance).method.word == word
    said = told(split, Prices(1.0, 0.2), Budget(evaluations=1000))
    assert said.startswith(f"steering: {split.particles} particles, ")
    assert said.endswith("a look at the reward costs as much as 0.2 evaluations")


@pytest.mark.slow
def test_moves_after_a_given_picture_have_all_evaluations():
    begun = Job("shapes", Refine(), Sampler.ode(6), init=("a.png",))
    given, drawn = (choose(Prices(1.0, 0.0), 400, ways(job)).way for job in (begun, REFINE))
    assert given.evaluations == drawn.evaluations
    assert given.looks == drawn.looks + 2


def test_where_the_way_begins_with_an_image_only_what_is_run_is_counted():
    """Of K transitions, or of the ODE's evaluations, all but int(K - K strength) at the front."""
    assert [left_out(k, 0.75) for k in (1, 3, 4, 7, 8)] == [0, 0, 1, 1, 2]
    for way in ways(STEERING, share=0.75):
        run = way.transitions - way.transitions // 4
        assert way.transitions > 3
        assert (way.evaluations, way.looks) == (run * way.steps, run)
    for way in ways(BEST, share=0.75):
        assert way.evaluations == way.steps - way.steps // 4
    begun, whole = (list(ways(REFINE, share=share)) for share in (0.5, 1.0))
    assert [w.evaluations for w in begun] == [w.evaluations - 3 for w in whole]  # of six
    split = choose(Prices(1.0, 0.0), 300, ways(STEERING, share=0.5))
    assert 0.94 * 300 <= split.particles * split.way.evaluations <= 300
    assert "of which" in told(split, Prices(1.0, 0.0), Budget(evaluations=300))
    with pytest.raises(InvalidArgument, match="all begin with noise alone and the image"):
        choose(Prices(1.0, 0.0), 300, ways(STEERING, share=0.99))


def test_too_little_is_refused_with_what_it_takes():
    with pytest.raises(InvalidArgument, match=r"two particles of 4 evaluations cost 8, it is 7"):
        choose(Prices(1.0, 0.0), 7, STEERED)


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


@pytest.mark.parametrize(
    ("seconds", "machine"),
    first(
        [
            (1000, {"evaluation": 0.01, "look": 0.01, "call": 0.2}),  # a GPU: one costs as twenty
            (30, {"evaluation": 0.01, "look": 0.01, "call": 0.2}),
            (1000, {"evaluation": 0.05, "look": 0.0}),
            (30, {"evaluation": 0.02, "look": 0.05, "warm": 1.0}),
            (120, {"evaluation": 0.05, "look": 0.001, "run": 0.3}),
        ]
    ),
)
def test_measured_and_spent_it_is_within_fifteen_percent(seconds, machine):
    model = Machine(**machine)
    prices, left = measure(model.trial, Budget(seconds=seconds), STEERED, model.clock)
    choice, measured = choose(prices, left, STEERED), model.now
    model.trial(choice.particles, choice.way.transitions, choice.way.steps)
    assert model.now == pytest.approx(seconds, rel=0.15)
    assert measured < 0.5 * seconds


@pytest.mark.slow
def test_evaluations_are_counted_and_never_exceeded():
    for passes in (1, 2):
        model = Machine(1.0, 0.0)
        prices, left = measure(
            lambda *n, p=passes, m=model: p * m.trial(*n), Budget(evaluations=1000), STEERED
        )
        choice = choose(prices, left, STEERED)
        assert 850 <= passes * choice.particles * choice.way.evaluations <= 1000


def test_prices_are_kept_so_that_a_run_can_be_gone_on_with(tmp_path):
    numbers = itertools.count(1)
    first = Kept("600", tmp_path).prices(lambda *n: next(numbers), STEERED)
    calls = next(numbers)
    assert Kept("600", tmp_path).prices(lambda *n: next(numbers), STEERED) == first
    assert next(numbers) == calls + 1  # nothing was measured
    assert json.loads((tmp_path / "budget.json").read_text())["budget"] == "600 network evaluations"


def test_a_batch_within_a_number_of_evaluations(tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("8\n")
    command = ["batch", str(tmp_path / "prompts.txt"), "--model", "digits"]
    command += ["--budget", "300", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    (found,) = (tmp_path / "out").glob("*/result.json")
    assert 255 <= json.loads(found.read_text())["costs"]["network_evaluations"] <= 300
    with monkeypatch.context() as patch:  # given again, nothing is loaded
        patch.setattr(Digits, "load", None)
        again = CliRunner().invoke(app, command, catch_exceptions=False)
    assert again.exit_code == 0 and "finished 1" in again.output
    (tmp_path / "prompts.txt").write_text("seven\n")
    bad = CliRunner().invoke(app, [*command[:-1], str(tmp_path / "bad")])
    assert isinstance(bad.exception, InvalidArgument)
    both = [*command[:-1], str(tmp_path / "both"), "--method", "refine", "--method", "steering"]
    (tmp_path / "prompts.txt").write_text("8\n")
    result = CliRunner().invoke(app, both, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    for word in ("refine", "steering"):
        (found,) = (tmp_path / "both").glob(f"*-{word}/result.json")
        assert 255 <= json.loads(found.read_text())["costs"]["network_evaluations"] <= 300
    digits = CliRunner().invoke(app, ["align", "--budget", "2min", "--out", str(tmp_path)])
    assert "--budget: only for a diffusers pipeline" in str(digits.exception)


def test_a_choice_is_of_its_jobs_and_number_of_prompts(tmp_path):
    asked = [replace(job, prompts=("a",), seed=3) for job in (STEERING, REFINE)]
    chosen = asked[1].sized(4, 1, 20)
    kept = Kept("600", tmp_path)
    kept.prices(lambda *n: 1, STEERED)
    kept.choose(asked, chosen, "so")
    others = [replace(job, prompts=("b",), seed=5) for job in asked]
    assert Kept("600", tmp_path).choice(others) == (replace(chosen, prompts=("b",), seed=5), "so")
    two = [replace(job, prompts=("a", "b")) for job in asked]
    for jobs, budget in ((two, "600"), (asked[:1], "600"), (asked, "601")):
        assert Kept(budget, tmp_path).choice(jobs) is None


def test_prices_are_those_of_their_job(tmp_path):
    def model(*sizes):
        asked.append(sizes)
        return sizes[0] * sizes[1] * sizes[2]

    def prices(job):
        return Kept("600", tmp_path, job).prices(model, STEERED)

    asked = []
    first = prices({"model": "a"})
    count = len(asked)
    assert prices({"model": "a"}) == first
    assert len(asked) == count
    prices({"model": "b"})
    assert len(asked) == 2 * count
    file = tmp_path / "budget.json"
    known = json.loads(file.read_text())
    of_another_version = {**{n: known[n] for n in ("budget", "job")}, "choice": {"particles": 3}}
    below = {**known, "left": -1.0}
    for text in (file.read_text()[:-9], "[]", json.dumps(of_another_version), json.dumps(below)):
        file.write_text(text)
        assert prices({"model": "b"}) == first
    assert len(asked) == 6 * count


def test_sizes_beside_a_budget_are_refused(tmp_path):
    command = ["align", "--model", "shapes", "--prompt", "a red circle", "--budget", "200"]
    command += ["--particles", "4", "--steps", "2", "--out", str(tmp_path)]
    told = CliRunner().invoke(app, command)
    assert "--particles, --steps: --budget chooses them" in str(told.exception)
    told = CliRunner().invoke(app, [*command[:7], "--moves", "4", "--out", str(tmp_path)])
    assert "--moves: --budget chooses them" in str(told.exception)


class Stopped(Exception):
    pass


@pytest.mark.slow
@pytest.mark.parametrize(
    ("given", "word"),
    [
        ([], "steering"),
        pytest.param(["--rescore", "3"], "refine", marks=pytest.mark.slow),
        pytest.param(["--twist", "1"], "steering", marks=pytest.mark.slow),
        ("no guidance", "refine"),
        pytest.param("its own loop", "steering", marks=pytest.mark.slow),
    ],
)
def test_without_a_method_the_budget_chooses_it(tmp_path, given, word, monkeypatch):
    """Of those that have the options; Shapes are under guidance, where looks are cheaper. In a
    pipeline's own loop nothing is refined."""
    if isinstance(given, str):
        monkeypatch.setattr(Pipeline, "guidance", lambda self, job: 1.0)
        monkeypatch.setattr(Pipeline, "records", given == "no guidance")
        given = []

    def run(self, job, *rest):
        drawn.append(job)
        raise Stopped

    drawn = []
    align = importlib.import_module("glass_flows.jobs.align")  # not the function of that name
    monkeypatch.setattr(align.Kept, "prices", lambda *n: (Prices(1.0, 0.1), 200.0))
    monkeypatch.setattr(Pipeline, "run", run)
    command = ["align", "--model", "shapes", "--prompt", "a red circle", "--budget", "200"]
    found = CliRunner().invoke(app, [*command, *given, "--out", str(tmp_path)])
    assert isinstance(found.exception, Stopped), found.exception
    assert [job.method.word for job in drawn] == [word]
    assert f"{word}: {drawn[0].method.particles} particles, " in found.output


def test_what_cannot_be_done_is_refused_before_anything_is_measured(tmp_path, monkeypatch):
    def measured(*given):
        raise AssertionError("measured")

    monkeypatch.setattr(Kept, "prices", measured)
    monkeypatch.setattr(Pipeline, "records", False)
    command = ["align", "--model", "shapes", "--prompt", "a red circle", "--budget", "200"]
    for option, wish in (("--method=refine", "refinement"), ("--reward-guidance=reward", "guidan")):
        found = CliRunner().invoke(app, [*command, option, "--out", str(tmp_path)])
        assert str(found.exception).startswith(wish) and "needs an adapter" in str(found.exception)
    monkeypatch.setattr(Pipeline, "records", True)
    monkeypatch.setattr(Pipeline, "guidance", lambda self, job: 1.0)
    idle = ["--method", "refine", "--move-guidance", "0.25"]
    found = CliRunner().invoke(app, [*command, *idle, "--out", str(tmp_path)])
    assert "this denoiser is under none" in str(found.exception)


@pytest.mark.slow
@pytest.mark.parametrize("prompts", [1, 3])
def test_a_pilot_is_within_the_budget_whatever_the_prompts(tmp_path, prompts, short_pilots):
    """Its samples, here 6, are of all prompts together, and a price is of one particle of each."""
    command = ["align", "--model", "shapes", "--method", "steering", "--out", str(tmp_path)]
    for sentence in ("a red circle", "two blue squares", "a small circle")[:prompts]:
        command += ["--prompt", sentence]
    small = CliRunner().invoke(app, [*command, "--budget", "60"])
    assert "it is 60, of which the pilot of scale='auto' takes 72: give" in str(small.exception)
    budget = 72 + 80 * prompts
    result = CliRunner().invoke(app, [*command, "--budget", str(budget)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    spent = json.loads((tmp_path / "result.json").read_text())["costs"]["network_evaluations"]
    assert 0.85 * budget <= spent <= budget
