"""`--init`: pictures that refinement begins with, checked before anything is loaded."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

from glass_flows import Refine, Sampler, Steering
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument, OtherJob
from glass_flows.jobs import Job, models, resolve
from glass_flows.jobs.align import align, compare_digits
from glass_flows.jobs.pictures import digit_image, digit_of
from glass_flows.pixels import open_image
from glass_flows.runs import read_run
from glass_flows.worlds.digits import digits_images

JOB = Job("digits", Refine(2, 4.0, moves=2), Sampler.ode(2), ("8",), seed=1)


def save(image, file):
    image.save(file)
    return str(file)


@pytest.fixture
def digit(tmp_path):
    return save(digit_image(digits_images()[3]), tmp_path / "digit.png")


def invoke(tmp_path, *options):
    return CliRunner().invoke(app, ["align", *options, "--out", str(tmp_path / "out")])


def test_a_digit_is_read_as_it_is_written(digit):
    image = digits_images()[3]
    assert float((digit_of(open_image(digit)) - image).abs().max()) <= 0.5 / 127.5 + 1e-6
    again = digit_image(digit_of(open_image(digit)))
    assert again.tobytes() == open_image(digit).tobytes()


def test_chains_of_digits_begin_with_it(digit, tmp_path):
    job = Job("digits", Refine(2, moves=0), Sampler.ode(2), ("8",), seed=1, init=(digit,))
    samples = resolve("digits").steer(job).samples
    assert (samples == digit_of(open_image(digit))).all()
    report = compare_digits(Job(**{**vars(job), "populations": 2}), tmp_path / "out")
    assert [line.method for line in report.methods] == ["plain", "best of 2", "refine"]
    evidence = json.loads(report.results.read_text())["log_evidence"]["refine"]
    assert len(evidence) == 2


def test_the_job_says_so_and_is_read_again(digit):
    job = Job("digits", Refine(), Sampler(), init=(digit,))
    assert job.as_json()["init"] == [digit]
    assert Job.from_json(json.loads(json.dumps(job.as_json()))) == job
    assert "init" not in JOB.as_json()
    with pytest.raises(InvalidArgument, match=r"init: only for the method refine.*steering"):
        Job("digits", Steering(), Sampler(), init=(digit,))


def test_a_run_of_another_picture_is_another_run(digit, tmp_path):
    """Whether it is finished or not: the bytes count, not the name."""
    job, out = Job(**{**vars(JOB), "init": (digit,)}), tmp_path / "out"

    class Killed(Exception):
        pass

    model = resolve("digits")
    steer, model.steer = model.steer, lambda *given: (_ for _ in ()).throw(Killed)
    with pytest.raises(Killed):
        align(model, job, out)
    (out / "events.jsonl").touch()
    model.steer = steer
    before = open_image(digit)
    digit_image(digits_images()[5]).save(digit)
    with pytest.raises(OtherJob, match="init 0"):
        align(model, job, out)
    before.save(digit)
    first = align(model, job, out)
    assert align(model, job, out).rewards == first.rewards
    digit_image(digits_images()[5]).save(digit)
    with pytest.raises(OtherJob, match="init 0"):
        align(model, job, out)


@pytest.mark.slow
def test_from_the_command_line(digit, tmp_path):
    result = invoke(
        tmp_path, "--prompt", "8", "--method", "refine", "--moves", "1", "--populations", "2",
        "--particles", "2", "--init", digit,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert read_run(tmp_path / "out" / "runs" / "refine").job["init"] == [digit]
    assert "init" not in read_run(tmp_path / "out" / "runs" / "best-of-2").job


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--method", "steering", "--init", "DIGIT"], "--init: only for --method refine"),
        (["--method", "best-of-n", "--init", "DIGIT"], "--init: only for --method refine"),
        (["--init", "DIGIT"], "only for --method refine"),
        (["--method", "refine", "--init", "nowhere.png"], "'nowhere.png' cannot be read as an"),
        (["--method", "refine", "--init", "TEXT"], "cannot be read as an image"),
        (["--method", "refine", "--init", "BIG"], "is 64 x 64 pixels, and 'digits' draws 8 x 8"),
        (["--method", "refine", "--init", "DIGIT", "--init", "DIGIT"], "2 pictures to begin with"),
        (["--model", "shapes", "--method", "refine", "--init", "DIGIT"], "draws 32 x 32: resize"),
        (
            ["--model", "shapes", "--method", "refine", "--init", "BIG", "--init", "BIG"],
            "2 pictures to begin with for 1 prompt: give one for all",
        ),
        (["--model", "FOLDER", "--method", "refine", "--init", "TEXT"], "cannot be read as an"),
        (["--model", "sit:FOLDER", "--method", "refine", "--init", "BIG"], "--init: only for a"),
    ],
)
def test_what_is_wrong_is_said_before_anything_is_loaded(
    options, said, digit, tmp_path, monkeypatch
):
    def loaded(*given, **named):
        raise AssertionError("something was loaded")

    monkeypatch.setattr(models, "load_pipeline", loaded)
    monkeypatch.setattr(models, "digits_denoiser", loaded)
    (tmp_path / "text.png").write_text("no picture")
    (tmp_path / "folder").mkdir()
    places = {
        "DIGIT": digit,
        "TEXT": str(tmp_path / "text.png"),
        "BIG": save(Image.new("RGB", (64, 64)), tmp_path / "big.png"),
        "FOLDER": str(tmp_path / "folder"),
        "sit:FOLDER": f"sit:{tmp_path / 'folder'}",
    }
    given = [places.get(one, one) for one in options]
    result = invoke(tmp_path, "--prompt", "two blue squares" if "shapes" in given else "8", *given)
    assert isinstance(result.exception, InvalidArgument), result.output
    assert said in str(result.exception)
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_a_picture_of_the_shapes_pipeline(tmp_path):
    """Begun with what best-of-n drew; its autoencoder gives the picture back, nearly."""
    first, prompt = tmp_path / "first", ["--model", "shapes", "--prompt", "two blue squares"]
    result = CliRunner().invoke(
        app, ["align", *prompt, "--method", "plain", "--steps", "4", "--out", str(first)]
    )
    assert result.exit_code == 0, result.output
    picture = str(first / "000-00.png")
    result = invoke(
        tmp_path, *prompt, "--method", "refine", "--moves", "0", "--particles", "2",
        "--init", picture,
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    found, given = (
        torch.from_numpy(np.array(Image.open(file).convert("RGB"))).float()
        for file in (tmp_path / "out" / "000-00.png", picture)
    )
    assert float((found - given).abs().mean()) < 12.0  # of 255


def test_a_batch_begins_with_a_picture_for_each_prompt(tmp_path):
    files = [save(digit_image(digits_images()[i]), tmp_path / f"{i}.png") for i in (3, 5)]
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("8\n1\n8\n")
    given = [
        "batch", str(prompts), "--method", "refine", "--method", "best-of-n", "--moves", "0",
        "--particles", "2", "--duplicates", "--out", str(out),
    ]  # fmt: skip
    result = CliRunner().invoke(app, [*given, "--init", files[0], "--init", files[1]])
    assert "2 pictures to begin with for 3 prompts" in str(result.exception)
    every = [f"--init={file}" for file in (*files, files[1])]
    result = CliRunner().invoke(app, [*given, *every])
    assert result.exit_code == 0, result.output
    begun = {run.job["prompts"][0]: run for run in map(read_run, sorted(out.glob("*-refine")))}
    assert len(list(out.glob("*-refine"))) == 3
    assert [begun[p].job["init"] for p in ("8", "1")] == [[files[1]], [files[1]]]
    first = read_run(next(out.glob("00000-*-refine")))
    assert first.job["init"] == [files[0]]
    shown = open_image(first.folder / first.samples[0][0].file).resize((8, 8), Image.Resampling.BOX)
    assert (digit_of(shown) == digit_of(open_image(files[0]))).all()
    assert all("init" not in read_run(run).job for run in out.glob("*-best-of-n"))
    digit_image(digits_images()[7]).save(files[0])
    result = CliRunner().invoke(app, [*given, *every])
    assert result.exit_code != 0
    assert "init 0" in " ".join((str(result.exception), result.output))


@pytest.mark.slow
def test_one_picture_is_for_every_prompt_of_a_batch(digit, tmp_path):
    prompts, out = tmp_path / "prompts.txt", tmp_path / "out"
    prompts.write_text("8\n1\n")
    given = ["batch", str(prompts), "--method", "refine", "--moves", "1", "--init", digit]
    result = CliRunner().invoke(app, [*given, "--particles", "2", "--out", str(out)])
    assert result.exit_code == 0, result.output
    assert [read_run(run).job["init"] for run in out.glob("*-refine")] == [[digit], [digit]]
    result = CliRunner().invoke(app, ["batch", str(prompts), "--init", digit, "--out", str(out)])
    assert "--init: only for --method refine" in str(result.exception)
