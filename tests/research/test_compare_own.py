"""The comparison on one's own model, prompts and reward: run on a tiny DiT."""

from __future__ import annotations

import json

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("diffusers")

from typer.testing import CliRunner

import tiny_pipelines as tiny
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument
from glass_flows.plans import Sampler
from glass_flows.research.compare_own import recipes


def invoke(*arguments):
    return CliRunner().invoke(app, ["compare", *map(str, arguments)])


@pytest.fixture(scope="module")
def compared(tmp_path_factory):
    folder = tmp_path_factory.mktemp("own")
    file = folder / "prompts.txt"
    file.write_text("207\n88\n", encoding="utf-8")
    (folder / "reward_of_mine.py").write_text("def red(z):\n    return z[:, 0].mean((1, 2))\n")
    model = tiny.save("dit", folder / "dit")
    given = ("--model", model, "--prompts", file, "--reward", "reward_of_mine:red", "--scale", 5)
    options = (*given, "--evaluations", 12, "--particles", 2, "--out", folder / "out")
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        yield options, invoke(*options), folder / "out"


def test_every_method_may_ask_the_network_as_often():
    """But for refinement's last evaluations, fewer than a move."""
    for name, recipe in recipes(8, 24, 1.0).items():
        assert recipe.method.evaluations(recipe.sampler) == 24, name
    assert recipes(4, 10, 1.0)["refine"].sampler == Sampler.ode(7)
    guided = recipes(8, 24, 1.0, guidance=3.0)["refine"]
    assert guided.method.evaluations(guided.sampler, 3.0) == 24
    assert guided.method.move_steps is None and guided.method.moves < 6


def test_the_table_the_figures_and_the_sheet(compared):
    _, shown, folder = compared
    assert shown.exit_code == 0, shown.output
    found = json.loads((folder / "comparison.json").read_text(encoding="utf-8"))
    methods = {one["method"]: one for one in found["methods"]}
    assert list(methods) == ["plain", "best-of-n", "steering", "refine"]
    runs = [json.loads(f.read_text(encoding="utf-8")) for f in folder.glob("*-refine/result.json")]
    best = [max(sample["reward"] for sample in run["samples"]) for run in runs]
    assert methods["refine"]["reward"]["value"] == pytest.approx(np.mean(best))
    base = list(folder.glob("*-best-of-n/result.json"))
    rewards = [
        max(s["reward"] for s in json.loads(f.read_text(encoding="utf-8"))["samples"]) for f in base
    ]
    gain = methods["refine"]["gain"]["value"]
    assert gain == pytest.approx(np.mean(best) - np.mean(rewards))
    assert methods["best-of-n"]["gain"]["value"] == 0.0
    assert methods["best-of-n"]["wins"]["value"] == 0.5
    # Two passes of the network for an evaluation: classifier-free guidance.
    assert methods["plain"]["evaluations"] == 24
    assert methods["best-of-n"]["evaluations"] == methods["refine"]["evaluations"] == 48
    assert methods["refine"]["rewards"] == 2 * 2  # the start and one move
    with Image.open(folder / "comparison.png") as sheet:
        assert sheet.size == (4 * 16, 2 * 16)
    assert "| refine |" in (folder / "comparison.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_same_command_again_draws_nothing(compared):
    options, first, folder = compared
    times = {f: f.stat().st_mtime_ns for f in folder.glob("*/result.json")}
    again = invoke(*options)
    assert again.exit_code == 0
    assert {f: f.stat().st_mtime_ns for f in folder.glob("*/result.json")} == times
    assert again.output.splitlines()[-20:] == first.output.splitlines()[-20:]


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (["--prompts", "p.txt"], "--prompts needs --scale"),
        (["--scale", "1"], "--scale: not for --model shapes"),
        (["--prompts", "p.txt", "--scale", "-1"], "scale must be"),
        (["--prompts", "p.txt", "--scale", "1", "--only", "plain"], "--only: not with --prompts"),
        (["--height", "64"], "--height: only with --prompts"),
    ],
)
def test_what_does_not_go_together_is_refused(tmp_path, given, said):
    shown = invoke("--model", "shapes", *given, "--out", tmp_path / "none")
    assert isinstance(shown.exception, InvalidArgument) and said in str(shown.exception)
    assert not (tmp_path / "none").exists()


def test_too_few_evaluations_are_refused():
    with pytest.raises(InvalidArgument, match="at least 9"):
        recipes(4, 8, 1.0)
    with pytest.raises(InvalidArgument, match="at least 12"):
        recipes(4, 11, 1.0, guidance=5.0)  # a move has half of it
