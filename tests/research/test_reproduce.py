"""`glass-flows reproduce`: cells that are kept, tables, and what the experiments measure."""

from __future__ import annotations

import csv
import json
import math
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tiny_pipelines
from cases import fast, first
from glass_flows.cli import app
from glass_flows.errors import (
    InvalidArgument,
    MissingExtra,
    NonFinite,
    UnknownName,
    WeightsFileError,
)
from glass_flows.jobs import models
from glass_flows.jobs.costs import Alive
from glass_flows.measures import Measure
from glass_flows.paths import Linear
from glass_flows.research.reproduce import (
    EXPERIMENTS,
    Scale,
    exact,
    networks,
    reproduce,
    steered,
    write_page,
)
from glass_flows.research.reproduce.base import (
    Cell,
    Column,
    Experiment,
    Result,
    _values,
    average,
    run_experiment,
)
from glass_flows.research.reproduce.benches import bench_of
from glass_flows.sit import SiT, SiTConfig, convert

QUICK = Scale(quick=True)
TINY = SiTConfig(input_size=8, patch_size=2, channels=4, hidden_size=32, depth=2, heads=4,
                 classes=10, learned_sigma=False)  # fmt: skip


def toy(work, count=4, **options):
    """An experiment whose cells call `work(i)`."""

    def cells(scale, folder):
        return [
            Cell({"row": i // 2, "side": "ab"[i % 2]}, lambda i=i: work(i)) for i in range(count)
        ]

    settings = {
        "columns": (Column("x", "the x", "{:.1f}"),),
        "across": "side",
        "draw": lambda results, figure: figure.subplots().plot([r["x"] for r in results]),
        **options,
    }
    return Experiment("toy", cells, **settings)


def random_walk(i):
    """A result that needs random numbers."""
    return {"x": Measure(float(torch.randn((), generator=torch.Generator().manual_seed(i))), 0.5)}


# --- cells ----------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The toy, not interrupted: its folder and its results."""
    folder = tmp_path_factory.mktemp("whole")
    return folder, run_experiment(toy(random_walk), folder, QUICK, False)


@pytest.mark.parametrize("after", fast([2], range(4)))
def test_interrupted_anywhere_it_ends_with_the_same_files(after, whole, tmp_path):
    done = []

    def interrupted(i):
        if len(done) == after:
            raise KeyboardInterrupt
        done.append(i)
        return random_walk(i)

    with pytest.raises(KeyboardInterrupt):
        run_experiment(toy(interrupted), tmp_path, QUICK, False)
    again = []
    found = run_experiment(toy(lambda i: again.append(i) or random_walk(i)), tmp_path, QUICK, False)
    assert again == list(range(after, 4))  # nothing is done twice
    folder, wanted = whole
    assert found == wanted
    for name in ("table.csv", "table.md", "plot.png"):
        one, two = (part / "toy" / name for part in (folder, tmp_path))
        assert one.read_bytes() == two.read_bytes()


def test_a_cell_is_found_by_all_that_it_depends_on(tmp_path):
    for shared, work, found in ((0, 1.0, 1.0), (1, 2.0, 2.0), (0, 3.0, 1.0)):
        cell = Cell({"row": 0}, lambda work=work: {"x": work})
        assert _values(cell, {"quick": shared}, tmp_path) == {"x": found}
    other = Cell({"row": 1}, lambda: {"x": 4.0})
    assert _values(other, {"quick": 0}, tmp_path) == {"x": 4.0}


@pytest.mark.slow
def test_other_settings_do_not_take_what_is_there(tmp_path):
    run_experiment(toy(random_walk), tmp_path, QUICK, False)
    called = []
    run_experiment(toy(lambda i: called.append(i) or random_walk(i)), tmp_path, Scale(1, True))
    assert called == [0, 1, 2, 3]


def test_a_damaged_cell_is_an_error_that_names_its_file(tmp_path):
    run_experiment(toy(random_walk), tmp_path, QUICK, False)
    file = next((tmp_path / "toy" / "cells").glob("*.json"))
    file.write_text("{")
    with pytest.raises(WeightsFileError, match=f"{file.name}.*delete it"):
        run_experiment(toy(random_walk), tmp_path, QUICK, False)


def test_nan_stops_with_the_cell_named(tmp_path):
    with pytest.raises(NonFinite, match=r"toy, .*'row': 1, 'side': 'a'.*: x is nan"):
        run_experiment(toy(lambda i: {"x": math.nan if i == 2 else 0.0}), tmp_path, QUICK, False)


def test_the_table_has_a_column_for_each_value_and_the_file_every_digit(tmp_path):
    found = run_experiment(
        toy(lambda i: {"x": Measure(i + 1 / 3, 0.25)}), tmp_path, QUICK, progress=False
    )
    table = (tmp_path / "toy" / "table.md").read_text().splitlines()
    assert table == [
        "| row | the x, side = a | b |",
        "| --- | --- | --- |",
        "| 0 | 0.3 ± 0.2 | 1.3 ± 0.2 |",
        "| 1 | 2.3 ± 0.2 | 3.3 ± 0.2 |",
    ]
    with open(tmp_path / "toy" / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert (
        [float(row["x"]) for row in rows]
        == [r["x"] for r in found]
        == [i + 1 / 3 for i in range(4)]
    )
    assert {row["x error"] for row in rows} == {"0.25"}
    about = json.loads((tmp_path / "toy" / "about.json").read_text())
    assert about["quick"] is True
    assert about["seed"] == 0


def test_averages_over_a_setting():
    results = [
        Result({"method": m, "target": t}, {"x": x, "x error": e, "name": "text"})
        for m, t, x, e in (("a", 0, 1.0, 3.0), ("b", 0, 5.0, 0.0), ("a", 1, 3.0, 4.0))
    ]
    one, two = average(results, ("target",))
    assert one.settings == {"method": "a"}
    assert one.values == {"x": 2.0, "x error": 2.5}
    assert two["x"] == 5.0
    assert average(results, ()) is results


def test_results_without_errors_have_that_of_their_spread():
    results = [
        Result({"prompt": i, "category": c}, {"x": x})
        for i, (c, x) in enumerate(zip("aab", (1, 2, 6)))
    ]
    (one,) = average(results, ("prompt", "category"))
    assert one.settings == {}
    assert one["x"] == 3.0
    assert one.error("x") == pytest.approx(np.std([1, 2, 6], ddof=1) / 3**0.5)


# --- what they measure ----------------------------------------------------------------------------


def test_the_mixture_in_the_plane_has_unit_scale():
    mixture = exact.plane_mixture()
    assert mixture.flat_means.shape == (16, 2)
    assert float(mixture.covariance().diagonal().mean()) == pytest.approx(1 + 0.08**2)


@pytest.mark.parametrize("rho", first([-0.4, 0.7, "ddpm"]))
def test_the_correlation_that_theory_has_is_that_of_exact_draws(rho):
    mixture, n = exact.plane_mixture(), 50_000
    x = exact.at_time(mixture.sample(n, seed=1), 0.3, 2)
    y = mixture.transition_sample(Linear(), x, 0.3, 0.7, rho, seed=3)
    wanted = exact._theory(mixture, 0.3, 0.7, rho)
    # five standard errors of a correlation of 2 n pairs at most
    assert exact._correlation(x, y) == pytest.approx(wanted, abs=5 / (2 * n) ** 0.5)


@pytest.mark.slow
@pytest.mark.parametrize("method", networks._METHODS)
def test_every_posterior_sampler_comes_to_the_exact_posterior(method):
    mixture, t, n = exact.plane_mixture(), 0.4, 2_000
    x = exact.at_time(mixture.sample(1, seed=0), t, 1).expand(n, -1).clone()
    truth = mixture.posterior_sample(Linear(), x, t, seed=3)
    apart = [
        networks._energy_distance(
            exact.draw_posterior(method, mixture.denoiser(Linear()), x, t, m, 2), truth
        )
        for m in (1, 100)
    ]
    assert apart[1] < 0.02
    assert apart[0] > 0.1


def test_energy_distance_is_zero_in_the_mean_for_one_law_and_the_gap_for_two():
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(2, 1_000, 2, generator=generator, dtype=torch.float64)
    assert abs(networks._energy_distance(a, b)) < 0.005
    far = torch.tensor([100.0, 0.0], dtype=torch.float64)
    inner = float(torch.cdist(a, a).sum() / (1_000 * 999))
    assert networks._energy_distance(a, b + far) == pytest.approx(200 - 2 * inner, rel=0.01)


@pytest.mark.slow
def test_a_value_from_posterior_samples_is_their_log_mean_exp():
    mixture, t = exact.plane_mixture(), 0.5
    x = exact.at_time(mixture.sample(100, seed=0), t, 1)
    b = torch.tensor([1.0, -2.0], dtype=torch.float64)
    truth = mixture.posterior_log_mean_exp(Linear(), x, t, b)
    found = exact._estimated(mixture.denoiser(Linear()), lambda z: z @ b, x, t, "GLASS", 400, 20, 5)
    agreement = exact._agreement(found, truth)
    assert agreement["correlation"] > 0.99
    assert abs(agreement["bias"].value) < 0.05
    # ... and the denoiser's, by Jensen, is below.
    low = exact._estimated(mixture.denoiser(Linear()), lambda z: z @ b, x, t, "denoiser", 1, 1, 5)
    assert bool((low <= truth).all())


@pytest.mark.slow
def test_every_method_of_the_alignment_spends_the_same():
    bench = bench_of(QUICK)
    for name, recipe in steered.methods(bench).items():
        found = bench.run(recipe, "1", Path())
        assert found["evaluations"] == 24 * recipe.method.particles, name
        assert np.isfinite([found[k].value for k in ("judge", "reward", "Fréchet")]).all()


def test_what_steering_is_worth():
    """Of sixteen runs towards an eight: judge's share 2 standard errors apart (5 %)."""
    bench = bench_of(QUICK)
    bench_methods = steered.methods(bench)
    plain, ours = (
        bench.run(bench_methods[name], "1", Path())["judge"]
        for name in ("plain", "steering: GLASS")
    )
    assert ours.value > plain.value + 2 * math.hypot(plain.error, ours.error)


# --- the command ----------------------------------------------------------------------------------


def test_unknown_names_and_models_are_refused(tmp_path):
    with pytest.raises(UnknownName, match=r"'kernal'.*kernel"):
        reproduce(["kernal"], tmp_path, scale=QUICK)
    with pytest.raises(InvalidArgument, match=r"posterior.*leave --model out"):
        reproduce(["posterior"], tmp_path, scale=Scale(quick=True, model="shapes"))
    result = CliRunner().invoke(app, ["reproduce", "kernel", "--out", str(tmp_path), "--page", "x"])
    assert isinstance(result.exception, InvalidArgument)
    assert "ends in .md" in str(result.exception)
    result = CliRunner().invoke(
        app, ["reproduce", "rho", "--out", str(tmp_path), "--reward", "pickscore"]
    )
    assert "for pipelines" in str(result.exception)


@pytest.mark.slow
def test_all_of_them_run_small_and_make_a_page(tmp_path):
    page = tmp_path / "page" / "results.md"
    page.parent.mkdir()
    command = ["reproduce", "all", "--quick", "--out", str(tmp_path), "--page", str(page)]
    result = CliRunner().invoke(app, command, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    text = page.read_text(encoding="utf-8")
    for name, experiment in EXPERIMENTS.items():
        assert f"## {experiment.says['title']}" in text
        assert (tmp_path / name / "table.md").read_text(encoding="utf-8").rstrip() in text
        assert (page.parent / "results" / f"{name}.png").stat().st_size > 5_000
    assert "**Here.**" not in text  # said of full runs only
    assert "reproduce all --quick" in text
    nothing_loses_digits_over_all_rho_and_times(tmp_path / "stability" / "table.csv")


def nothing_loses_digits_over_all_rho_and_times(table):
    with open(table, encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 24
    assert max(float(row["worst"]) for row in rows) < 1e-3
    assert {row["refused"] for row in rows if row["solver"] == "default"} == {"none"}


@pytest.mark.slow
def test_alignment_on_a_pipeline(tmp_path):
    found = reproduce(["alignment"], tmp_path, scale=Scale(quick=True, model="shapes"))
    with open(found["alignment"] / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["category"] for row in rows} >= {"counting", "two"}
    assert all(0 <= float(row["judge"]) <= 1 for row in rows)
    page = write_page(found, tmp_path / "page.md", Scale(quick=True, model="shapes"))
    assert "--model shapes" in page.read_text(encoding="utf-8")


@pytest.mark.slow
def test_alignment_on_classes_of_a_sit_with_another_reward_beside(tmp_path, monkeypatch):
    """By a list of labels; interrupted and gone on with, nothing is drawn twice."""
    state = {k: torch.randn_like(v) / 5 for k, v in SiT(TINY).state_dict().items()}
    torch.save(state, tmp_path / "sit.pt")
    convert(tmp_path / "sit.pt", tmp_path / "sit", heads=4)
    scale = Scale(
        quick=True,
        model=f"sit:{tmp_path / 'sit'}",
        reward="rewards_of_this_test:redness",
        prompts=str(tmp_path / "labels.txt"),
        also=("rewards_of_this_test:contrast",),
    )
    (tmp_path / "labels.txt").write_text("7\n3\n")
    (tmp_path / "rewards_of_this_test.py").write_text(
        "def redness(images):\n    return images[:, 0].mean((1, 2))\n"
        "def contrast(images):\n    return images.flatten(1).std(1)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(InvalidArgument, match="no folder 'vae'"):
        reproduce(["alignment"], tmp_path, scale=scale)
    tiny_pipelines.build("dit").vae.save_pretrained(tmp_path / "sit" / "vae")
    found = reproduce(["alignment"], tmp_path, scale=scale)["alignment"]
    with open(found / "table.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["target"] for row in rows[:2]] == ["00000", "00001"]
    assert all(
        float(row["contrast"]) > 0 and row["other reward"] == row["contrast"] for row in rows
    )
    images = found / "images" / "best-of-n"
    assert json.loads((images / "00001" / "metadata.jsonl").read_text()) == {"prompt": "3"}
    for row in rows[:2]:  # the file is the image that was scored, in 256 steps
        with Image.open(images / row["target"] / "samples" / "00000.png") as image:
            red = np.asarray(image)[..., 0].mean() / 255
        assert float(row["reward"]) == pytest.approx(red, abs=1 / 255)
    monkeypatch.setattr(models.SiT, "run", lambda *given: pytest.fail("drawn twice"))
    reproduce(["alignment"], tmp_path, scale=scale)


def test_the_memory_of_tensors_is_counted_while_they_live():
    with Alive() as memory:
        a = torch.zeros(1000)
        b = a + 1
        del a
        b.add_(1)
        view = b.view(10, 100)
        del b
        assert (memory.now, memory.most) == (4000, 8000)
        del view
        assert memory.now == 0


def test_without_matplotlib_nothing_is_begun(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingExtra, match=r"glass-flows\[plots\]"):
        run_experiment(EXPERIMENTS["kernel"], tmp_path / "out", QUICK)
    assert not (tmp_path / "out").exists()
