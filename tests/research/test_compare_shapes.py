"""The methods side by side on an untrained Shapes pipeline: figures, files, resumption."""

from __future__ import annotations

import json
from functools import partial

import pytest
import torch
from PIL import Image
from safetensors.torch import save
from typer.testing import CliRunner

pytest.importorskip("diffusers")

from glass_flows import BestOf, Sampler
from glass_flows.cli import app
from glass_flows.errors import GlassError, InvalidArgument, WeightsFileError
from glass_flows.jobs import Job, resolve
from glass_flows.research import compare_shapes as compare
from glass_flows.research import recipe
from glass_flows.research.writing import key_of
from glass_flows.worlds.shapes.clip import build_clip, build_clip_processor
from glass_flows.worlds.shapes.pipeline import build_pipeline

SMALL = {"count": 12, "tuning_count": 2, "particles": 2, "transitions": 2, "steps": 1}


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    home = tmp_path_factory.mktemp("untrained")
    torch.manual_seed(0)
    build_clip().save_pretrained(home / "clip")
    build_clip_processor().save_pretrained(home / "clip")
    build_pipeline().save_pretrained(home / "pipeline")
    model = resolve(f"shapes:{home / 'pipeline'}")
    return {"model": model, "reward": f"clip:{home / 'clip'}", "progress": False}


@pytest.fixture(autouse=True)
def few(monkeypatch):
    monkeypatch.setattr(compare, "_SCALES", (1.0, 4.0))
    monkeypatch.setattr(compare, "_GUIDES", (0.5, 1.0))
    monkeypatch.setattr(compare, "_CAPS", (0.75,))
    monkeypatch.setattr(compare, "_COLUMNS", 2)
    monkeypatch.setattr(recipe, "BEGINNING", 1)
    monkeypatch.setattr(compare, "refinement", partial(recipe.refinement, move_steps=1))


@pytest.fixture(scope="module")
def compared(parts, tmp_path_factory):
    """The report of a whole comparison, made by the test that asks first."""
    found = []

    def once():
        if not found:
            found.append(compare.compare_shapes(tmp_path_factory.mktemp("all"), **parts, **SMALL))
        return found[0]

    return once


def test_what_was_drawn_is_of_its_weights_and_threads_and_whole_or_named(tmp_path):
    job = Job("shapes", BestOf(2), Sampler.ode(2), ("a red circle",))
    bench = compare._Bench.__new__(compare._Bench)
    bench.folder, bench.weights = tmp_path, "some"
    name = key_of([job.as_json(), "some"])
    file = tmp_path / f"{name}.safetensors"
    for content in (b"", b"x" * 99, save({"images": torch.zeros(1)})):
        file.write_bytes(content)
        with pytest.raises(WeightsFileError, match=f"{name}.* is damaged.*; delete it"):
            bench._chunk(job)
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        assert key_of([job.as_json(), "some"]) != name
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
def test_every_method_is_run_judged_and_written(compared):
    report = compared()
    names = [line.method.strip() for line in report.methods]
    assert names == ["plain", "best-of-n", "steering", "+ guidance", "+ twist", "refinement"]
    plain, best, *steered = report.methods
    # Two passes of the network for each of two evaluations.
    assert plain.evaluations == 4
    assert {line.evaluations for line in (best, *steered)} == {8}
    assert best.reward.value > plain.reward.value
    table = report.table.read_text()
    assert all(f"| {name} |" in table for name in names)
    data = json.loads(report.results.read_text())
    assert len(data["tuning"]["steering"]) == 2
    for file in (report.picture, report.hacking):
        with Image.open(file) as picture:
            assert picture.size[0] > 200


@pytest.mark.slow
def test_an_interrupted_comparison_goes_on_and_ends_with_the_same_figures(
    parts, compared, tmp_path, monkeypatch
):
    whole = compared()
    chunk, left = compare._Bench._chunk, [4]

    def stopped(*given):
        left[0] -= 1
        if left[0] < 0:
            raise KeyboardInterrupt
        return chunk(*given)

    with monkeypatch.context() as patch:
        patch.setattr(compare._Bench, "_chunk", stopped)
        with pytest.raises(KeyboardInterrupt):
            compare.compare_shapes(tmp_path / "parts", **parts, **SMALL)
    kept = len(list((tmp_path / "parts" / "drawn").iterdir()))
    assert kept == 4
    again = compare.compare_shapes(tmp_path / "parts", **parts, **SMALL)
    assert again.methods == whole.methods


@pytest.mark.slow
def test_a_reward_without_weights_is_refused(parts, tmp_path):
    with pytest.raises(InvalidArgument, match="pre-trained reward"):
        compare.compare_shapes(tmp_path, **{**parts, "reward": "builtins:len"}, **SMALL)


@pytest.mark.parametrize(
    "wrong",
    [
        ["--model", "shape"],
        ["--model", "shapes", "--populations", "8"],
        ["--model", "shapes", "--reward", "clip", "--reward", "hps"],
        ["--model", "shapes", "--evaluations", "7"],
        ["--count", "12"],
    ],
)
def test_wrong_options_are_refused(wrong, tmp_path):
    with pytest.raises(GlassError, match=wrong[-2] if wrong[-2] != "--model" else "'shapes'"):
        CliRunner().invoke(app, ["compare", *wrong, "--out", str(tmp_path)], catch_exceptions=False)


def test_too_few_prompts_are_refused(parts, tmp_path):
    with pytest.raises(InvalidArgument, match="count"):
        compare.compare_shapes(tmp_path, **parts, **{**SMALL, "count": 3})
