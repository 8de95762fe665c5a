"""Folders of images side by side."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from scipy import stats
from typer.testing import CliRunner

transformers = pytest.importorskip("transformers")

from glass_flows.cli import app  # noqa: E402
from glass_flows.errors import InvalidArgument, NonFinite, UnknownName  # noqa: E402
from glass_flows.jobs.evaluate import (  # noqa: E402
    evaluate_folders,
    load_features,
    read_images,
)
from glass_flows.jobs.prompts import PromptEntry, write_geneval  # noqa: E402
from glass_flows.measures import bootstrap, precision_recall  # noqa: E402
from glass_flows.rewards.pretrained import pretrained_reward  # noqa: E402
from glass_flows.runs import RunFolder  # noqa: E402
from glass_flows.steering import Costs, SearchResult  # noqa: E402
from glass_flows.worlds.shapes import prompts, render, sample_scene  # noqa: E402
from glass_flows.worlds.shapes.clip import BUNDLED  # noqa: E402

CLIP = f"clip:{BUNDLED}"


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Scenes under their own prompts, and the same files under scenes of other prompts."""
    home, rng = tmp_path_factory.mktemp("images"), np.random.default_rng(0)
    asked = prompts("test", 12)
    right = [Image.fromarray(render(*sample_scene(p, rng), rng)) for p in asked]
    for i, prompt in enumerate(asked):
        entry = PromptEntry(i, str(prompt))
        write_geneval(home / "right", entry, [right[i]])
        write_geneval(home / "wrong", entry, [right[i - 1]])
    return home


def test_rewards_and_differences_are_those_of_the_reward(folders, tmp_path):
    wrong, right = evaluate_folders(
        [folders / "wrong", folders / "right"], tmp_path, rewards=[CLIP]
    )
    reward = pretrained_reward("clip", BUNDLED)
    found = read_images(folders / "right")
    assert [one.name for one in found][:2] == ["00000/samples/00000.png", "00001/samples/00000.png"]
    pixels = torch.stack(
        [torch.from_numpy(np.array(Image.open(one.file))).movedim(-1, 0) / 255 for one in found]
    )
    expected = reward(pixels, [one.prompt for one in found]).mean()
    assert right.rewards[CLIP][0] == pytest.approx(float(expected), rel=1e-5)
    gain, low, high = right.gains[CLIP]
    assert gain == pytest.approx(right.rewards[CLIP][0] - wrong.rewards[CLIP][0])
    assert 0 < low < gain < high
    assert (right.pairs, wrong.pairs) == (12, 0)
    assert wrong.gains == {}
    written = json.loads((tmp_path / "evaluation.json").read_text())
    assert written[1]["gains"][CLIP] == [gain, low, high]


def test_the_same_images_are_at_no_distance_and_static_is_far(folders, tmp_path):
    (tmp_path / "static").mkdir()
    rng = np.random.default_rng(1)
    for i in range(12):
        pixels = rng.integers(0, 256, (32, 32, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / "static" / f"{i}.png")
    own, far = evaluate_folders(
        [folders / "right", tmp_path / "static"],
        tmp_path / "out",
        features=CLIP,
        reference=folders / "wrong",  # the same images in another order
    )
    assert own.frechet == pytest.approx(0.0, abs=1e-4)
    assert (own.precision, own.recall) == (1.0, 1.0)
    assert far.frechet > 10 * max(own.frechet, 0.01)
    assert far.recall < 0.5
    assert far.diversity < own.diversity  # one kind of static


def test_prompts_inside_a_png_are_read(tmp_path):
    info = PngInfo()
    info.add_itxt("prompt", "a «red» circle")
    (tmp_path / "a" / "b").mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "b" / "x.png", pnginfo=info)
    Image.new("RGB", (8, 8)).save(tmp_path / "a" / "y.jpg")
    assert [(f.name, f.prompt) for f in read_images(tmp_path)] == [
        ("a/b/x.png", "a «red» circle"),
        ("a/y.jpg", None),
    ]


def test_dino_of_a_folder(tmp_path):
    config = transformers.Dinov2Config(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, image_size=28, patch_size=14
    )
    torch.manual_seed(0)
    network = transformers.Dinov2Model(config).eval()
    network.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(
        json.dumps(
            {
                "image_processor_type": "BitImageProcessor",
                "do_resize": True,
                "size": {"shortest_edge": 28},
                "do_center_crop": True,
                "crop_size": {"height": 28, "width": 28},
                "image_mean": [0.5, 0.5, 0.5],
                "image_std": [0.25, 0.25, 0.25],
            }
        )
    )
    images = torch.rand(2, 3, 28, 28)
    found = load_features(f"dino:{tmp_path}")(images)
    with torch.no_grad():
        expected = network(pixel_values=(images - 0.5) / 0.25).pooler_output
    torch.testing.assert_close(found, expected)


def test_precision_and_recall_of_sets_that_overlap_in_part():
    rng = np.random.default_rng(0)
    real = rng.uniform(0, 1, (400, 2))
    left = rng.uniform(0, 1, (400, 2)) * [0.5, 1.0]  # half of the real ones' square
    precision, recall = precision_recall(left, real)
    assert precision > 0.95
    assert 0.4 < recall < 0.65
    assert precision_recall(real + 10, real) == (0.0, 0.0)


def test_bootstrap_intervals_are_those_of_the_mean():
    values = np.random.default_rng(3).normal(2.0, 1.0, 400)
    low, high = bootstrap(values)
    expected = stats.norm.interval(0.95, values.mean(), stats.sem(values))
    assert (low, high) == pytest.approx(expected, abs=0.02)
    assert bootstrap(values) == (low, high)


def test_what_cannot_be_measured_is_refused(folders, tmp_path):
    with pytest.raises(InvalidArgument, match="nothing to measure"):
        evaluate_folders([folders / "right"], tmp_path)
    with pytest.raises(InvalidArgument, match="give them, too"):
        evaluate_folders([folders / "right"], tmp_path, rewards=[CLIP], reference=folders / "right")
    with pytest.raises(InvalidArgument, match="is no folder"):
        evaluate_folders([tmp_path / "none"], tmp_path, features=CLIP)
    with pytest.raises(UnknownName, match=r"'vgg'.*dino"):
        evaluate_folders([folders / "right"], tmp_path, features="vgg")
    with pytest.raises(InvalidArgument, match="cannot load AutoModel"):
        load_features(f"dino:{tmp_path}")
    bare = tmp_path / "bare"
    bare.mkdir()
    Image.new("RGB", (32, 32)).save(bare / "x.png")
    with pytest.raises(InvalidArgument, match=r"x\.png.*has none"):
        evaluate_folders([bare], tmp_path, rewards=[CLIP])
    (bare / "x.png").write_bytes(b"no image")
    with pytest.raises(InvalidArgument, match="is no image"):
        read_images(bare)


def test_nan_from_a_reward_names_the_files(folders, tmp_path, monkeypatch):
    (tmp_path / "spoilt.py").write_text(
        "asked = []\ndef nan(images):\n    asked.append(len(images))\n"
        "    return images[:, 0, 0, 0] * (1.0 if sum(asked) <= 7 else float('nan'))\n"
    )
    monkeypatch.chdir(tmp_path)
    with pytest.raises(NonFinite, match=r"among 00000/samples/00000\.png to"):
        evaluate_folders([folders / "right"], tmp_path / "out", rewards=["spoilt:nan"])


def test_the_command(folders, tmp_path):
    command = ["evaluate", str(folders / "wrong"), str(folders / "right"), "--reward", CLIP]
    result = CliRunner().invoke(
        app, [*command, "--features", CLIP, "--out", str(tmp_path)], catch_exceptions=False
    )
    assert result.exit_code == 0
    assert "more than the first" in " ".join(result.output.split())
    assert (tmp_path / "evaluation.md").read_text().count("\n") == 6


def test_of_a_run_only_what_came_out_is_measured(tmp_path):
    """Not the sheet beside it, nor the estimates on its way."""
    run = tmp_path / "batch" / "00000-a-cat-s0"
    record = RunFolder(run, title="a cat")
    (run / "estimates").mkdir()
    for name in ("000-00.png", "best-first.png", "estimates/003.png", "../mine.png"):
        Image.new("RGB", (8, 8)).save(run / name)
    result = SearchResult(torch.zeros(1, 1, 2), torch.zeros(1, 1), torch.zeros(0, 1, 1), Costs())
    record.finish(result, [["000-00.png"]])
    names = [one.name for one in read_images(tmp_path / "batch")]
    assert names == ["00000-a-cat-s0/000-00.png", "mine.png"]


def test_a_model_without_rewards_has_nothing_to_say(folders, tmp_path):
    with pytest.raises(InvalidArgument, match=r"'shapes' is asked for its rewards"):
        evaluate_folders([folders / "right"], tmp_path, features=CLIP, model="shapes")
