"""The comparison of methods, and the figures it is made of."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from scipy import linalg, stats
from typer.testing import CliRunner

from glass_flows.cli import app
from glass_flows.errors import InvalidArgument, UnknownName
from glass_flows.jobs import resolve
from glass_flows.measures import diversity, frechet_distance, half_samples, mean, share
from glass_flows.plans import Paper
from glass_flows.research import compare as module
from glass_flows.research.compare import chosen_methods, compare, methods
from glass_flows.research.recipe import Recipe

SMALL = {
    "model": resolve("digits"),
    "particles": 2,
    "populations": 4,
    "tuning_populations": 2,
    "evaluations": 12,
    "progress": False,
}


@pytest.fixture
def few(monkeypatch):
    """Two scales to choose from in tuning, and one number of steps."""
    monkeypatch.setattr(module, "_SCALES", (2.0, 8.0))
    monkeypatch.setattr(module, "_STEPS", (4,))


def gaussian(n, d, seed, scale=1.0, shift=0.0):
    rng = np.random.default_rng(seed)
    return rng.standard_normal((n, d)) @ rng.standard_normal((d, d)) * scale + shift


# --- figures --------------------------------------------------------------------------------------


def test_frechet_distance_is_that_of_the_fitted_gaussians():
    a, b = gaussian(200, 5, 0), gaussian(150, 5, 1, 0.5, 0.3)
    first, second = np.cov(a.T), np.cov(b.T)
    root = linalg.sqrtm(first @ second).real
    expected = ((a.mean(0) - b.mean(0)) ** 2).sum() + np.trace(first + second - 2 * root)
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)
    assert frechet_distance(a, a + 2.0) == pytest.approx(5 * 4.0)
    few = a[:3]  # fewer samples than dimensions: covariances without full rank
    assert frechet_distance(few, b) == pytest.approx(frechet_distance(b, few))


def test_diversity_is_the_mean_distance_of_different_samples():
    points = np.array([[0.0, 0.0], [3.0, 4.0], [0.0, 1.0]])
    assert diversity(points) == pytest.approx((5.0 + 1.0 + 18**0.5) / 3)
    assert diversity(np.ones((4, 3))) == 0.0


def test_means_and_their_errors():
    values = np.array([1.0, 2.0, 4.0, 9.0])
    assert mean(values).value == 4.0
    assert mean(values).error == pytest.approx(stats.sem(values))
    low, high = mean(values).interval
    assert (low + high) / 2 == pytest.approx(4.0)
    assert (high - low) / 2 == pytest.approx(1.959964 * stats.sem(values))


@pytest.mark.parametrize(("yes", "n"), [(8, 10), (10, 10), (0, 7), (50, 200)])
def test_the_interval_of_a_share_is_wilsons(yes, n):
    estimate = share(np.r_[np.ones(yes), np.zeros(n - yes)])
    exact = stats.binomtest(yes, n).proportion_ci(method="wilson")
    assert estimate.interval == pytest.approx((exact.low, exact.high), rel=1e-6, abs=1e-12)


def test_half_samples_know_the_error_of_a_mean():
    samples = np.random.default_rng(0).standard_normal((400, 1)) * 3.0
    estimate = half_samples(samples, lambda s: float(s.mean()), rounds=2000)
    assert estimate.value == samples.mean()
    # 2,000 rounds know a standard deviation to 1.6 %: five of those
    assert estimate.error == pytest.approx(3.0 / 20, rel=0.08 + 0.05)


# --- the comparison -------------------------------------------------------------------------------


@pytest.mark.parametrize("evaluations", [12, 24, 60])
def test_every_candidate_spends_what_is_allowed(evaluations):
    for choices in methods(evaluations, 4).values():
        for candidate in choices:
            if not isinstance(candidate, Recipe):
                continue
            guided = getattr(candidate.method, "guidance", None)
            deep = guided is not None and guided.through == "network"
            spent = candidate.method.evaluations(candidate.sampler)
            assert spent * (2 if deep else 1) == evaluations


@pytest.mark.slow
def test_a_comparison_from_end_to_end(few, tmp_path, monkeypatch):
    asked = []
    real = module._Bench.run

    def spy(self, recipe, populations, seed, advance):
        asked.append((populations, seed))
        return real(self, recipe, populations, seed, advance)

    monkeypatch.setattr(module._Bench, "run", spy)
    lines = []
    report = compare(
        tmp_path / "out",
        rewards=["class:8", "class:1"],
        only=["twist", "beam", "network"],
        seed=5,
        announce=lines.append,
        **SMALL,
    )
    names = [line.method.strip() for line in report.methods]
    assert names == [
        "best-of-n: ODE",
        "steering: GLASS",  # what the twist follows
        "+ network guidance",
        "+ twist",
        "beam: GLASS",
    ]
    baseline, ours, guided, twisted, _ = report.methods
    assert baseline.gain.value == baseline.gain.error == 0.0
    assert {(line.forward, line.backward) for line in (baseline, ours, twisted)} == {(12.0, 0.0)}
    assert (guided.forward, guided.backward) == (6.0, 6.0)
    assert twisted.tuned.method.twisted
    assert twisted.tuned == ours.tuned.aided(twisted.tuned.method.twist)
    kept = {key: value for key, value in twisted.tuned.brief().items() if key != "twist"}
    assert kept == ours.tuned.brief()
    # figures on the seed, tuning on others
    assert {seed for populations, seed in asked if populations == 4} == {5}
    tuning = {seed for populations, seed in asked if populations == 2}
    assert tuning == {5 + 1_000_003}
    assert len(lines) == 5
    payload = json.loads(report.results.read_text())
    assert payload["settings"]["rewards"] == ["class:8", "class:1"]
    assert payload["methods"][3]["judge"]["value"] == twisted.judge.value
    assert "| best-of-n: ODE |" in report.table.read_text()
    with Image.open(report.picture) as picture:
        assert picture.width > 400


@pytest.mark.slow
def test_a_comparison_repeats_from_its_seed(few, tmp_path):
    said = []
    one, two, other = (
        compare(tmp_path / name, only=["Euler"], seed=s, announce=said.append, **SMALL).methods[1]
        for name, s in (("a", 1), ("b", 1), ("a", 2))
    )
    replaced = ["replaced" in line for line in said if line.startswith("there is a comparison")]
    assert replaced == [True]  # the last one
    assert one == two
    assert one != other


def test_finished_methods_are_kept_when_one_fails(few, tmp_path, monkeypatch):
    real, seeds = module._Bench.run, []

    def failing(self, recipe, populations, seed, advance):
        seeds.append(seed)
        if isinstance(recipe.sampler.solver, Paper):
            raise RuntimeError("out of luck")
        return real(self, recipe, populations, seed, advance)

    monkeypatch.setattr(module._Bench, "run", failing)
    with pytest.raises(RuntimeError, match="out of luck"):
        compare(tmp_path, only=["GLASS"], **SMALL)
    kept = json.loads((tmp_path / "comparison.json").read_text())["methods"]
    assert [line["method"] for line in kept] == ["best-of-n: ODE", "best-of-n: GLASS"]
    assert len(set(seeds)) == 2  # what was tuned is judged by other samples


@pytest.mark.slow
def test_every_method_runs_and_steering_wins(tmp_path):
    """All methods at 24 passes; steering beats best-of-N by far more than the errors (five σ)."""
    report = compare(
        tmp_path,
        model=resolve("digits"),
        populations=48,
        tuning_populations=8,
        particles=4,
        progress=False,
    )
    assert len(report.methods) == len(methods(24, 4))
    for line in report.methods:
        assert line.forward + line.backward <= 24
        assert line.frechet.value > 0 and line.diversity.value > 0
    by_name = {line.method.strip(): line for line in report.methods}
    for name in ("steering: GLASS", "+ twist", "+ reward guidance"):
        assert by_name[name].reward.value > by_name["best-of-n: ODE"].reward.value + 0.5


@pytest.mark.parametrize(
    ("options", "error", "match"),
    [
        ({"rewards": ["class:ten"]}, InvalidArgument, "a digit 0 to 9"),
        ({"evaluations": 23}, InvalidArgument, "multiple of one of"),
        ({"evaluations": 4}, InvalidArgument, "larger than it"),
        ({"populations": 2}, InvalidArgument, "populations must be an integer >= 4"),
        ({"tuning_populations": 0}, InvalidArgument, "tuning_populations"),
        ({"particles": 0}, InvalidArgument, "particles"),
        ({"only": ["network guidence"]}, UnknownName, "Did you mean '. network guidance'"),
    ],
)
def test_bad_settings_are_named_before_anything_runs(tmp_path, options, error, match):
    with pytest.raises(error, match=match):
        compare(tmp_path / "none", **{**SMALL, **options})
    assert not (tmp_path / "none").exists()


def test_methods_are_chosen_by_parts_of_their_names():
    known = methods(24, 8)
    assert len(chosen_methods(known, ())) == len(known)
    chosen = [title.strip() for title in chosen_methods(known, ["ddpm"])]
    assert chosen == ["best-of-n: ODE", "steering: DDPM", "steering: DDPM, a look at each"]


def test_the_command_prints_one_table(few, tmp_path):
    arguments = ["--evaluations", "12", "--particles", "2", "--populations", "4"]
    arguments += ["--tuning-populations", "2", "--only", "beam", "--reward", "class:1"]
    arguments += ["--out", str(tmp_path)]
    shown = CliRunner().invoke(app, ["compare", *arguments])
    assert shown.exit_code == 0, shown.output
    for text in ("beam: GLASS", "gain", "comparison.md", "comparison.png"):
        assert text in shown.output
    assert torch.is_grad_enabled()


def test_a_misspelt_model_is_named_with_the_nearest(tmp_path):
    with pytest.raises(UnknownName, match="Did you mean 'digits'"):
        CliRunner().invoke(
            app,
            ["compare", "--model", "digit", "--out", str(tmp_path / "none")],
            catch_exceptions=False,
        )
    assert not (tmp_path / "none").exists()
