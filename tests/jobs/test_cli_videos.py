"""`glass-flows align` on a pipeline of videos in a local folder, from end to end."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path

import jsonschema
import numpy as np
import pytest
from PIL import Image
from typer.testing import CliRunner

import glass_flows.runs
import glass_flows.videos
import more_pipelines as more
from glass_flows import BestOf, Sampler
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument, OtherJob
from glass_flows.jobs import Job
from glass_flows.jobs.spelling import Options, jobs_of
from glass_flows.rewards import Viewing
from glass_flows.runs import read_run
from glass_flows.runs.command import command_of

REWARDS = """
def red(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def moves(video):
    return (video[1:] - video[:-1]).abs().mean()
"""
SCHEMA = Path(glass_flows.runs.__file__).parent / "result.schema.json"


@pytest.fixture
def wan(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_of_videos.py").write_text(REWARDS)
    pipe, call = _built()
    pipe.save_pretrained(tmp_path / "wan", safe_serialization=True)
    words = [f"--argument={name}={value}" for name, value in call.items() if name != "prompt"]
    return [
        "--model", "wan", "--prompt", "a cat", "--reward", "rewards_of_videos:red", *words,
        "--argument", "num_frames=9", "--particles", "2", "--transitions", "2", "--steps", "1",
        "--scale", "1",
    ]  # fmt: skip


@cache
def _built():
    return more.build("WanPipeline")


def align(*arguments):
    shown = CliRunner().invoke(app, ["align", *arguments], catch_exceptions=False)
    return shown.exit_code, shown.output


def content(folder):
    return {file.name: file.read_bytes() for file in sorted(Path(folder).glob("*.*p*"))}


@pytest.mark.slow
def test_videos_from_the_command_line(wan, monkeypatch):
    code, shown = align(*wan, "--frames", "4", "--also", "rewards_of_videos:moves", "--out", "one")
    assert code == 0, shown
    told = read_run("one").result
    jsonschema.validate(told, json.loads(SCHEMA.read_text()))
    assert told["job"]["viewing"] == {"type": "viewing", "version": 1, "frames": 4}
    best = told["samples"][told["populations"][0]["best_first"][0]]
    assert (best["file"], best["video"]) == ("000-00.png", "000-00.webp")
    assert f"{best['reward']:.4g}" in shown and best["also"]["rewards_of_videos:moves"] > 0
    assert "videos: one\n" in shown and "images: " not in shown
    with Image.open("one/000-00.webp") as video:
        assert video.n_frames == 9
    names = {f"{kind}000-0{n}.{end}" for kind in ("", "plain-") for n in (0, 1)
             for end in ("png", "webp")}  # fmt: skip
    assert set(content("one")) == {*names, "best-first.png"}

    code, shown = align(*wan, "--frames", "4", "--also", "rewards_of_videos:moves", "--out", "one")
    assert code == 0 and "finished already" in shown
    with pytest.raises(OtherJob, match=r"viewing\.frames: 4 there, 2 here"):
        align(*wan, "--frames", "2", "--also", "rewards_of_videos:moves", "--out", "one")

    report = CliRunner().invoke(app, ["report", "one"], catch_exceptions=False)
    assert report.exit_code == 0
    page = Path("one/report.html").read_text()
    assert "Contact sheets of the videos" in page and "without steering" in page

    # A picture is drawn again, with what it was drawn with.
    code, shown = align("--again", "one/000-00.png", "--model", "wan", "--reward",
                        "rewards_of_videos:red", "--also", "rewards_of_videos:moves",
                        "--out", "two")  # fmt: skip
    assert code == 0 and "--frames 4" in shown
    assert content("two") == content("one")

    # Killed while it writes: the same call draws again, and ends with the same files.
    own, written = glass_flows.videos.save_video, []

    def killed(frames, file, rate):
        if written:
            raise KeyboardInterrupt
        written.append(own(frames, file, rate))

    again = [*wan, "--frames", "4", "--also", "rewards_of_videos:moves", "--out", "three"]
    with monkeypatch.context() as patch:
        patch.setattr(glass_flows.videos, "save_video", killed)
        CliRunner().invoke(app, ["align", *again])
    assert not Path("three/result.json").exists() and Path("three/run.json").exists()
    code, shown = align(*again)
    assert code == 0, shown
    assert content("three") == content("one")

    code, shown = align(*wan, "--frames", "first", "--out", "one", "--overwrite")
    assert code == 0 and set(content("one")) == {n for n in content("one") if "plain" not in n}


def test_what_a_reward_sees_is_a_setting_of_the_job():
    job = Job("wan", BestOf(2), Sampler(), ("a cat",), "m:f", viewing=Viewing("first"))
    told = job.as_json()
    assert Job.from_json(json.loads(json.dumps(told))) == job
    assert "viewing" not in Job("wan", BestOf(2), Sampler()).as_json()
    assert "--frames first" in (command_of(told) or "")
    with pytest.raises(InvalidArgument, match="--frames: only for a diffusers pipeline"):
        jobs_of("digits", ["steering"], Options(viewing={"frames": "2"}), reward="class:8")
    with pytest.raises(InvalidArgument, match=r"--argument frames=.*: that is --frames here"):
        jobs_of("shapes", ["steering"], Options(call={"frames": 9}))


@pytest.mark.slow
def test_a_pipeline_of_images_refuses_frames(tmp_path):
    given = ["--model", "shapes", "--prompt", "a red circle", "--out", str(tmp_path)]
    with pytest.raises(InvalidArgument, match="frames=2: FluxPipeline draws images; leave it out"):
        align(*given, "--frames", "2")


def test_ltx_from_a_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "rewards_of_videos.py").write_text(REWARDS)
    pipe, call = more.build("LTXPipeline")
    pipe.save_pretrained(tmp_path / "ltx", safe_serialization=True)
    words = [f"--argument={name}={value}" for name, value in call.items() if name != "prompt"]
    code, shown = align(
        "--model", "ltx", "--prompt", "a cat", "--reward", "rewards_of_videos:moves", *words,
        "--method", "beam", "--particles", "2", "--transitions", "2", "--steps", "1",
        "--scale", "1", "--frames", "all", "--out", "out",
    )  # fmt: skip
    assert code == 0, shown
    told = read_run("out").result
    for sample in told["samples"]:
        with Image.open(Path("out") / sample["video"]) as video:
            frames = []
            for k in range(video.n_frames):
                video.seek(k)
                frames.append(np.asarray(video.convert("RGB"), dtype=np.float64) / 255)
        assert len(frames) == 9
        moved = np.abs(np.diff(frames, axis=0)).mean()
        assert abs(moved - sample["reward"]) < 1 / 255  # rounded to 8 bits
