"""The result of a run: one file, one order, strict JSON; and what reads it."""

from __future__ import annotations

import json
import math
from importlib import resources
from pathlib import Path

import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

from cases import first
from glass_flows.errors import InvalidArgument, RunFolderError
from glass_flows.jobs import Job, align, compare_digits, resolve
from glass_flows.jobs.batch import run_batch
from glass_flows.jobs.evaluate import evaluate_folders, read_images
from glass_flows.jobs.items import Work, items_of
from glass_flows.jobs.prompts import PromptEntry
from glass_flows.plans import Sampler
from glass_flows.rewards.pretrained import pretrained_reward
from glass_flows.runs import RunFolder, read_run
from glass_flows.steering import (
    Beam,
    BestOf,
    Costs,
    Refine,
    SearchResult,
    Steering,
    SteeringResult,
)
from glass_flows.worlds.shapes import prompts, render, sample_scene
from glass_flows.worlds.shapes.clip import BUNDLED

SCHEMA = json.loads(
    resources.files("glass_flows.runs").joinpath("result.schema.json").read_text("utf-8")
)
METHODS = {
    "steering": Steering(4, scale=4),
    "beam": Beam(4, children=2),
    "best-of-n": BestOf(4),
    "refine": Refine(4, scale=4, moves=2),
}
ODE = Sampler.ode(4)


def strictly(file):
    def refuse(name):
        raise ValueError(f"{name} is no JSON")

    return json.loads(Path(file).read_text(encoding="utf-8"), parse_constant=refuse)


def job_of(method, seed=0):
    sampler = ODE if method == "best-of-n" else Sampler(2, 2)
    return Job("digits", METHODS[method], sampler, prompts=("8",), populations=2, seed=seed)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Runs of every kind of method, by method and seed."""
    home, digits = tmp_path_factory.mktemp("drawn"), resolve("digits")
    return {
        (method, seed): align(digits, job_of(method, seed), home / f"{method}-{seed}")
        for method in METHODS
        for seed in ((0, 1) if method == "steering" else (0,))
    }


@pytest.mark.parametrize("method", first(METHODS))
def test_every_sample_stands_beside_what_is_its_own(drawn, method):
    folder = drawn[method, 0].results.parent
    told = strictly(folder / "result.json")
    jsonschema.validate(told, SCHEMA)
    assert not (folder / "results.json").exists()
    result = RunFolder(folder, job_of(method).as_json()).result()
    N = result.rewards.shape[1]
    for i, sample in enumerate(told["samples"]):
        p, n = divmod(i, N)
        assert (sample["population"], sample["particle"]) == (p, n)
        assert sample["reward"] == float(result.rewards[p, n])
        assert sample["ancestor"] == int(result.lineage[0, p, n])
        assert (sample["prompt"], sample["seed"]) == ("8", 0)
        assert sample["accepted"] is drawn[method, 0].judged.returned[p][n]
        with Image.open(folder / sample["file"]) as image:
            assert float(image.text["reward"]) == sample["reward"]
    for p, population in enumerate(told["populations"]):
        ranked = [told["samples"][i]["reward"] for i in population["best_first"]]
        assert ranked == sorted(result.rewards[p].tolist(), reverse=True)
    if method != "beam":
        assert [s["log_weight"] for s in told["samples"]] == result.log_weights.flatten().tolist()
        assert [p["log_evidence"] for p in told["populations"]] == result.log_evidence.tolist()
    else:
        assert {s["log_weight"] for s in told["samples"]} == {None}
    assert [[s.reward for s in row] for row in read_run(folder).samples] == result.rewards.tolist()


def test_numbers_that_json_has_not_are_null_with_a_flag(tmp_path):
    """A reward of -inf excludes a sample; it is read back as it was."""
    rewards, none = torch.tensor([[1.0, -math.inf, 2.0]]), torch.zeros(0, 1)
    weights = torch.tensor([[0.0, -math.inf, 0.5]])
    record = RunFolder(tmp_path, {"seed": 3, "cap": math.inf}, title="x")
    record.finish(
        SteeringResult(
            torch.zeros(1, 3, 2), rewards, torch.zeros(0, 1, 3, dtype=torch.long), Costs(6),
            weights, none, torch.tensor([-math.inf]), none, none, (),
            also={"judge": torch.tensor([[3.0, math.nan, 5.0]])},
        )
    )  # fmt: skip
    for file in tmp_path.glob("*.json"):
        strictly(file)
    told = strictly(tmp_path / "result.json")
    jsonschema.validate(told, SCHEMA)
    assert told["samples"][1]["reward"] is None
    assert told["samples"][1]["not_finite"] == {"reward": "-inf", "log_weight": "-inf"}
    assert "not_finite" not in told["samples"][0]
    assert told["populations"][0]["not_finite"] == {"log_evidence": "-inf"}
    assert told["populations"][0]["best_first"] == [2, 0, 1]
    (row,) = read_run(tmp_path).samples
    assert [sample.reward for sample in row] == [1.0, -math.inf, 2.0]
    assert [str(sample.also) for sample in row] == [f"{{'judge': {v}}}" for v in (3.0, "nan", 5.0)]
    assert RunFolder(tmp_path, {"seed": 3, "cap": math.inf}).finished  # the same job


@pytest.mark.parametrize(
    "change",
    [
        {"version": 3},
        {"samples": {}},
        {"costs": {"network_evaluations": -1}},
        {"more": 1},
    ],
)
def test_the_schema_refuses_what_is_none(drawn, change):
    told = strictly(drawn["steering", 0].results)
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(told | change, SCHEMA)


@pytest.mark.parametrize(
    ("place", "name", "value"),
    [
        ("samples", "particle", 1),
        ("samples", "population", 7),
        ("samples", "reward", "high"),
        ("samples", "file", "../mine.png"),
        ("samples", "colour", "red"),
        ("populations", "best_first", [0, 0, 1, 2]),
    ],
)
def test_a_result_that_is_none_is_named(drawn, tmp_path, place, name, value):
    home = drawn["steering", 0].results.parent
    told = strictly(home / "result.json")
    told[place][0][name] = value
    (tmp_path / "run.json").write_bytes((home / "run.json").read_bytes())
    (tmp_path / "result.json").write_text(json.dumps(told))
    with pytest.raises(RunFolderError, match=r"result\.json.*damaged"):
        read_run(tmp_path)


# --- evaluate reads it ----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_of_a_run_the_samples_are_counted(drawn, method):
    """Neither the sheet of the best nor the estimates on the way."""
    folder = drawn[method, 0].results.parent
    assert (folder / "best-first.png").exists()
    found = read_images(folder)
    assert [(one.name, one.prompt, one.model) for one in found] == [
        (f"{p:03}-{n:02}.png", "8", "digits") for p in range(2) for n in range(4)
    ]


def test_pairs_are_of_one_prompt_seed_and_particle(drawn, tmp_path, monkeypatch):
    (tmp_path / "grey.py").write_text("def level(images):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    runs = {key: done.results.parent for key, done in drawn.items()}
    one, best, other = evaluate_folders(
        [runs["steering", 0], runs["best-of-n", 0], runs["steering", 1]],
        tmp_path / "out", rewards=["grey:level"], progress=False,
    )  # fmt: skip
    assert (one.images, best.images, other.images) == (8, 8, 8)
    assert best.pairs == 8
    levels = [folder.rewards["grey:level"][0] for folder in (one, best)]
    assert best.gains["grey:level"][0] == pytest.approx(levels[1] - levels[0])
    assert (other.pairs, other.gains) == (0, {})  # of another seed
    strictly(tmp_path / "out" / "evaluation.json")


@pytest.mark.slow
def test_of_a_batch_the_samples_of_all_its_runs(tmp_path, monkeypatch):
    job = Job("digits", METHODS["steering"], Sampler(2, 2))
    work = Work({"steering": job, "best-of-n": Job("digits", METHODS["best-of-n"], ODE)})
    items = items_of([PromptEntry(0, "8"), PromptEntry(1, "3")], [0, 1], list(work.jobs))
    report = run_batch(work, items, tmp_path / "a", progress=False)
    assert (report.finished, report.failed) == (8, 0)
    found = read_images(tmp_path / "a")
    assert len(found) == 8 * 4
    assert {one.prompt for one in found} == {"8", "3"}
    assert len({one.key for one in found}) == len(found)  # two methods are told apart
    for method in work.jobs:
        chosen = [item for item in items if item.method == method]
        run_batch(work, chosen, tmp_path / method, progress=False)
    (tmp_path / "grey.py").write_text("def level(images):\n    return images.mean((1, 2, 3))\n")
    monkeypatch.chdir(tmp_path)
    _, more = evaluate_folders(
        [tmp_path / "best-of-n", tmp_path / "steering"], tmp_path / "out", rewards=["grey:level"]
    )
    assert (more.images, more.pairs) == (16, 16)


def test_of_the_comparison_of_the_digits_nothing_is_a_sample(tmp_path):
    job = Job("digits", Steering(2), Sampler(1, 2), reward="class:8", populations=2)
    report = compare_digits(job, tmp_path, progress=False)
    spent = {line.method: line.evaluations for line in report.methods}
    assert spent["best of 2"] == spent["steering"] > spent["plain"]
    assert report.picture.exists()
    strictly(report.results)
    with pytest.raises(InvalidArgument, match="holds no images"):
        read_images(tmp_path)


def test_an_image_of_a_run_that_is_gone_is_missed(drawn, tmp_path):
    home = drawn["steering", 0].results.parent
    for file in home.iterdir():
        if file.is_file() and file.name != "000-02.png":
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(InvalidArgument, match=r"000-02\.png"):
        read_images(tmp_path)


@pytest.fixture
def scenes(tmp_path):
    """A run of the Shapes, and its images in a folder of no run."""
    rng = np.random.default_rng(0)
    asked = list(map(str, prompts("test", 3)))
    run = RunFolder(tmp_path / "run", {"model": "shapes", "prompts": asked, "seed": 0})
    plain = tmp_path / "plain"
    plain.mkdir()
    files = []
    for p, prompt in enumerate(prompts("test", 3)):
        files.append([f"{p:03}-00.png"])
        image = Image.fromarray(render(*sample_scene(prompt, rng), rng))
        image.save(tmp_path / "run" / files[-1][0])
        image.save(plain / files[-1][0])
    ancestry = torch.zeros(0, 3, 1, dtype=torch.long)
    run.finish(SearchResult(torch.zeros(3, 1, 2), torch.zeros(3, 1), ancestry, Costs()), files)
    return tmp_path / "run", plain, asked


@pytest.mark.slow
def test_the_clip_of_a_run_of_shapes_is_that_of_its_model(scenes, tmp_path):
    run, _, asked = scenes
    (line,) = evaluate_folders([run], tmp_path / "out", rewards=["clip"], progress=False)
    found = read_images(run)
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(one.file))).movedim(-1, 0) / 255 for one in found]
    )
    own = pretrained_reward("clip", BUNDLED)(pixels, asked).double().mean()
    assert line.rewards["clip"][0] == pytest.approx(float(own), rel=1e-6)


def test_folders_of_two_models_need_to_be_told_whose_rewards_are_meant(scenes, tmp_path):
    run, _, _ = scenes
    other = RunFolder(tmp_path / "other", {"model": "some/pipeline", "prompts": ["x"], "seed": 0})
    Image.new("RGB", (8, 8)).save(tmp_path / "other" / "000-00.png")
    ancestry = torch.zeros(0, 1, 1, dtype=torch.long)
    result = SearchResult(torch.zeros(1, 1, 2), torch.zeros(1, 1), ancestry, Costs())
    other.finish(result, [["000-00.png"]])
    with pytest.raises(InvalidArgument, match=r"shapes, some/pipeline.*--model"):
        evaluate_folders([run, tmp_path / "other"], tmp_path / "out", rewards=["clip"])
    assert not (tmp_path / "out").exists()


def test_a_folder_without_prompts_is_refused_before_anything_is_measured(scenes, tmp_path):
    run, plain, _ = scenes
    with pytest.raises(InvalidArgument, match=r"plain/000-00\.png.*has none"):
        evaluate_folders([run, plain], tmp_path / "out", rewards=["clip"])
    assert not (tmp_path / "out").exists()


def test_an_image_bomb_is_no_image(tmp_path, monkeypatch):
    Image.new("RGB", (64, 64)).save(tmp_path / "x.png")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(InvalidArgument, match=r"x\.png.*is no image"):
        read_images(tmp_path)
