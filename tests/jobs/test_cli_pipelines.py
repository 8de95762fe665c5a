"""`glass-flows align` on a diffusers pipeline in a local folder."""

import json
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tiny_pipelines as tiny
from glass_flows.cli import app
from glass_flows.errors import GlassError, InvalidArgument, MissingExtra
from glass_flows.jobs import Job, pipelines
from glass_flows.jobs.pipelines import memory_line
from glass_flows.rewards.named import load_reward

REWARDS = """
from glass_flows.rewards import FunctionReward


def red(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def said(images, prompts):
    return images.mean((1, 2, 3)) + len(prompts[0])


length = FunctionReward(said, takes_prompts=True)
"""


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_of_mine.py").write_text(REWARDS)


def align(*arguments):
    return CliRunner().invoke(app, ["align", *arguments], catch_exceptions=False)


# Classes, a text with an image. That every family is loaded and steered is in
# tests/diffusers/test_diffusers_steering.py.
KINDS = ("dit", "flux_img2img")


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in KINDS)) for n in tiny.FAMILIES]
)
def test_a_saved_pipeline_of_every_family(name, tmp_path, monkeypatch, short_pilots):
    tiny.save(name, tmp_path / name)
    parts = pipelines.load_parts
    monkeypatch.setattr(
        pipelines, "load_parts", lambda *args, **given: parts(*args, **given) | tiny.unsaved(name)
    )
    given = dict(tiny.CALL[name])
    prompts = given.pop("prompt", None) or [str(c) for c in given.pop("class_labels")]
    prompts = [prompts] if isinstance(prompts, str) else prompts
    words = [word for prompt in prompts for word in ("--prompt", prompt)]
    for key, value in given.items():
        if isinstance(value, Image.Image):
            value.save(f"{key}.png")
            given[key] = f"{key}.png"
        words += ["--argument", f"{key}={json.dumps(given[key])}"]
    shown = align(
        "--model", str(tmp_path / name), *words, "--reward", "rewards_of_mine:red",
        "--particles", "2", "--transitions", "2", "--steps", "2", "--out", str(tmp_path / "out"),
        "--decode-batch", "2", "--twist", "0.5", *([] if name == "sd3" else ["--scale", "1"]),
    )  # fmt: skip
    assert shown.exit_code == 0, shown.output
    assert "weights: " in shown.output and "network evaluations: " in shown.output
    figures = json.loads((tmp_path / "out" / "result.json").read_text())
    assert figures["costs"]["network_evaluations"] > 0
    places = [(sample["population"], sample["particle"]) for sample in figures["samples"]]
    assert places == [(p, n) for p in range(len(prompts)) for n in range(2)]
    with Image.open(tmp_path / "out" / "000-00.png") as image:
        assert image.text["prompt"] == prompts[0] or name == "dit"
        job = json.loads(image.text["settings"])
    assert job == figures["job"]
    read = Job.from_json(job)
    assert (read.seed, read.model, read.method.particles) == (0, str(tmp_path / name), 2)
    assert read.call == json.loads(json.dumps(given))
    assert (tmp_path / "out" / "best-first.png").exists()


@pytest.mark.slow
def test_the_same_seed_writes_the_same_images(tmp_path):
    tiny.save("flux", tmp_path / "flux")
    few = ["--prompt", "a cat", "--height", "16", "--width", "16", "--particles", "2",
           "--transitions", "1", "--steps", "2", "--argument",
           "max_sequence_length=32", "--scale", "1",
           "--reward", "rewards_of_mine:length"]  # fmt: skip
    for out in ("one", "two"):
        assert align("--model", str(tmp_path / "flux"), *few, "--out", out).exit_code == 0
    one, two = (Image.open(tmp_path / out / "000-00.png").tobytes() for out in ("one", "two"))
    assert one == two


@pytest.mark.slow
def test_the_guidance_of_the_pipeline_and_that_of_the_reward(tmp_path):
    """--guidance-scale is the pipeline's own argument: at 1 a call is one pass, else two."""
    tiny.save("sd3", tmp_path / "sd3")
    few = ["--prompt", "a cat", "--height", "16", "--width", "16", "--particles", "2",
           "--transitions", "2", "--steps", "1", "--argument", "max_sequence_length=32",
           "--scale", "1", "--reward", "rewards_of_mine:red"]  # fmt: skip
    found = {}
    for out, more in {
        "own": [],
        "one": ["--guidance-scale", "1"],
        "two": ["--guidance-scale", "2"],
        "reward": ["--reward-guidance", "reward:0.5", "--guidance-scale", "1"],
    }.items():
        shown = align("--model", str(tmp_path / "sd3"), *few, *more, "--out", out)
        assert shown.exit_code == 0, shown.output
        found[out] = json.loads((tmp_path / out / "result.json").read_text())
    assert [found[out]["costs"]["network_evaluations"] for out in ("own", "one", "two")] == [
        8,
        4,
        8,
    ]
    assert found["two"]["job"]["call"]["guidance_scale"] == 2.0
    assert "guidance_scale" not in found["own"]["job"]["call"]
    rewards = {out: [one["reward"] for one in told["samples"]] for out, told in found.items()}
    assert rewards["own"] != rewards["two"] != rewards["one"]
    assert found["reward"]["job"]["method"]["guidance"].startswith("reward:0.5")
    assert "guidance" not in found["one"]["job"]["method"]
    assert found["reward"]["biases"] and not found["one"]["biases"]
    assert rewards["reward"] != rewards["one"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model", "./nothing", "--prompt", "a cat", "--reward", "rewards_of_mine:red"],
         "--model ./nothing: there is no such folder"),
        (["--model", "./nothing", "--prompt", "a cat", "--reward", "no_such_module:red"],
         "--model ./nothing: there is no such folder"),
        (["--model", ".", "--prompt", "a cat", "--reward", "rewards_of_mine:red"],
         "cannot load a diffusers pipeline from '.'.*model_index.json"),
        (["--model", ".", "--prompt", "a cat", "--reward", "class:8"], "cannot import"),
        (["--model", ".", "--prompt", "a cat", "--reward", "red"], "unknown reward 'red'"),
        (["--model", ".", "--prompt", "a", "--reward", "hps"], "glass-flows convert reward hps"),
        (["--model", ".", "--prompt", "a", "--reward", "clip:."], "must hold weights"),
        (["--model", ".", "--prompt", "a", "--reward", "rewards_of_mine:rad"], "Did you mean"),
        (["--model", ".", "--reward", "rewards_of_mine:red"], "at least one --prompt"),
        (["--model", ".", "--prompt", "a", "--argument", "x"], "NAME=VALUE"),
        (["--model", ".", "--prompt", "a", "--argument", "steps=3"],
         "--argument steps=...: that is --steps here"),
        (["--model", ".", "--prompt", "a", "--argument", "guidance=reward"],
         "--argument guidance=...: that is --reward-guidance here"),
        (["--prompt", "a cat"], "for the digits a prompt is 0 to 9, got 'a cat'"),
        (["--height", "16"], "--height: only for a diffusers pipeline; --model is 'digits'"),
        (["--argument", "width=16"], "--width: only for a diffusers pipeline; --model is 'digits'"),
        (["--model", ".", "--prompt", "a", "--reward", "rewards_of_mine:red", "--dtype", "int8"],
         "unknown dtype"),
        (["--model", ".", "--prompt", "a", "--reward", "rewards_of_mine:red", "--offload", "disk"],
         "unknown offload"),
    ],
)  # fmt: skip
def test_wrong_arguments_stop_with_a_reason(arguments, message):
    with pytest.raises(GlassError, match=message):
        align(*arguments, "--out", "out")


@pytest.mark.parametrize(
    ("error", "message"),
    [
        (MemoryError(), "does not fit into memory: try --offload model"),
        (torch.OutOfMemoryError("CUDA"), "does not fit into memory: try --offload model"),
        (OSError("we couldn't connect"), "check the id's spelling and the network"),
    ],
)
def test_what_goes_wrong_on_the_way_to_a_pipeline_has_a_next_step(error, message, monkeypatch):
    import diffusers

    def fails(*args, **kwargs):
        raise error

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", fails)
    with pytest.raises(InvalidArgument, match=message):
        align("--model", "some/model", "--prompt", "a", "--reward", "rewards_of_mine:red",
              "--out", "out")  # fmt: skip


def test_a_reward_is_converted_only_if_it_needs_it(tmp_path):
    with pytest.raises(GlassError, match=r"unknown reward to convert 'clip'.*imagereward"):
        CliRunner().invoke(
            app, ["convert", "reward", "clip", "file.pt", "out"], catch_exceptions=False
        )


def test_rewards_of_ones_own():
    assert load_reward("rewards_of_mine:length").takes_prompts
    with pytest.raises(InvalidArgument, match="cannot import"):
        load_reward("no_such_module:red")


def test_the_memory_line_warns_only_where_it_is_tight(monkeypatch):
    pipe = tiny.build("flux")
    assert "may not fit" not in memory_line(pipe, "cpu", "none")
    monkeypatch.setattr("os.sysconf", lambda name: 100)
    assert "may not fit" in memory_line(pipe, "cpu", "none")
    assert "0.00 GB" in memory_line(pipe, "cpu", "sequential")


@pytest.mark.parametrize("command", ["align", "batch"])
def test_without_diffusers_the_extra_is_named(command, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("a red circle\n")
    monkeypatch.setitem(sys.modules, "diffusers", None)
    given = ["--prompt", "a red circle"] if command == "align" else [str(tmp_path / "prompts.txt")]
    out = ["--model", "shapes", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [command, *given, *out])
    assert isinstance(result.exception, MissingExtra)
    assert "glass-flows[diffusers]" in str(result.exception)
