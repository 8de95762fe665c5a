"""A PNG draws itself again; what it says is checked, and it chooses no code, weights or files."""

from __future__ import annotations

import json
import shlex

import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from typer.testing import CliRunner

from glass_flows import Beam, BestOf, Greedy, Guidance, Refine, Sampler, Steering, Twist
from glass_flows.batching import Batching
from glass_flows.cli import app, work
from glass_flows.errors import InvalidArgument
from glass_flows.jobs import Job, resolve
from glass_flows.jobs.job import Loading
from glass_flows.runs import clear_run, read_run
from glass_flows.runs.command import command_of

SCENE = "a red circle to the left of a blue square"
JOB = Job("shapes", Steering(4, scale=0.5), Sampler(3, 2), (SCENE,), seed=5)


@pytest.fixture
def asked(monkeypatch):
    """The jobs that the command line comes to, instead of drawing them."""
    found = []
    monkeypatch.setattr(work, "_align_images", lambda model, jobs, *rest: found.extend(jobs))
    monkeypatch.setattr(work, "_align_digits", lambda model, job, *rest: found.append(job))
    return found


def invoke(*words):
    """What it says; errors are raised."""
    told = CliRunner().invoke(app, list(map(str, words)), catch_exceptions=False)
    assert told.exit_code == 0, told.output
    return told.output


def png(file, settings):
    info = PngInfo()
    info.add_itxt("settings", settings if isinstance(settings, str) else json.dumps(settings))
    Image.new("RGB", (8, 8)).save(file, pnginfo=info)
    return file


@pytest.mark.parametrize(
    "job",
    [
        JOB,
        Job("shapes", Steering(scale=1e-3, twist=Twist(0.5, cap=2.0), schedule="adaptive"),
            Sampler(steps=(1, 2, 3), transitions=3, rho="ddim:0.5"), (SCENE, "two blue squares"),
            call={"height": 32, "guidance_scale": 3.5, "odd": [1, None, "a b"], "on": True},
            batching=Batching(2, None, True)),
        Job("shapes", Refine(4, moves=3, until=0.9, move_times=(0.2, 0.4)),
            Sampler.ode(6), (SCENE,), micro_batch=2, call={"negative_prompt": "it's bad; rm"}),
        Job("shapes", BestOf(2), Sampler.ode(12), (SCENE,), loading=Loading("cpu", "float32")),
        Job("shapes", BestOf(2), Sampler(4, 3), (SCENE,), reward="clip"),
        Job("shapes", Steering(guidance=Guidance(2.0)),
            Sampler(5, 1, None, solver="euler-maruyama"), ("two blue squares",)),
        Job("digits", Beam(8, children=4), Sampler(times=(0, 0.3, 1), transitions=2),
            reward="class:8", populations=7),
        Job("digits", Greedy(pick="sample", value="posterior:2:3"), Sampler(), ("3",),
            populations=2, seed=2**40),
        Job("digits", Steering(twist=Twist(sigma_data=1.0)), Sampler(), reward="class:1",
            populations=2),
    ],
    ids=str,
)  # fmt: skip
def test_the_command_of_a_job_is_read_as_that_job(job, asked):
    """Sigma_data of 1 is kept on digits, whose own is 0.7."""
    words = shlex.split(command_of(job.as_json(), "out with blanks"))
    assert words[0] == "glass-flows"
    assert words[-2:] == ["--out", "out with blanks"]
    told = job.as_json()
    invoke(*words[1:])
    assert asked == [Job.from_json(json.loads(json.dumps(told)))]


@pytest.mark.parametrize(
    "job",
    [
        {"seed": 3},
        {"model": "shapes", "method": "steering", "sampler": {}},
        Job("shapes", Steering(), Sampler(), ("a",), threads=2).as_json(),
        Job("digits", Steering(), Sampler(), ("3",)).as_json(),
    ],
)
def test_of_what_no_command_draws_there_is_none(job):
    assert command_of(job) is None


def test_again_is_the_same_job_and_other_options_override_by_name(tmp_path, asked):
    file = png(tmp_path / "a.png", JOB.as_json())
    assert Job.from_image(file) == JOB
    said = invoke("align", "--again", file, "--out", tmp_path / "o")
    assert "again: glass-flows align --model shapes" in said
    invoke("align", "--again", file, "--seed", 0, "--particles", 2, "--rho", "ddpm",
           "--prompt", "two blue squares", "--out", tmp_path / "o")  # fmt: skip
    same, other = asked
    assert same == JOB
    assert (other.seed, other.prompts) == (0, ("two blue squares",))
    assert other.method == Steering(2, scale=0.5)
    assert other.sampler == Sampler(3, 2, "ddpm")
    invoke("align", "--again", file, "--method", "beam", "--out", tmp_path / "o")
    assert asked[-1].method == Beam(4, scale=0.5)


@pytest.mark.parametrize(
    ("changes", "lacking", "given"),
    [
        ({"reward": "os:system"}, "--reward os:system", ["--reward", "clip"]),
        ({"reward": "clip:/stranger"}, "--reward clip:/stranger", ["--reward", "clip"]),
        ({"model": "/stranger's"}, "--model '/stranger'\"'\"'s'", ["--model", "shapes"]),
        ({"model": "some/one"}, "--model some/one", ["--model", "shapes"]),
        ({"loading": Loading(lora="some/lora").as_json()}, "--lora some/lora", ["--lora", "mine"]),
        ({"model": "some/one", "loading": Loading(revision="refs/pr/1").as_json()},
         "--model some/one --revision refs/pr/1", ["--model", "some/one", "--revision", "main"]),
        ({"call": {"image": "http://stranger/"}}, "--argument image=http://stranger/",
         ["--argument", "image=0"]),
    ],
)  # fmt: skip
def test_what_loads_code_weights_or_files_is_to_be_given_again(
    changes, lacking, given, tmp_path, asked
):
    file = png(tmp_path / "a.png", {**JOB.as_json(), **changes})
    with pytest.raises(InvalidArgument) as caught:
        invoke("align", "--again", file, "--out", tmp_path / "o")
    assert str(caught.value).endswith(lacking)
    assert not (tmp_path / "o").exists()
    invoke("align", "--again", file, *given, "--out", tmp_path / "o")
    assert len(asked) == 1
    assert "stranger" not in json.dumps(asked[0].as_json())


def test_pictures_to_begin_with_are_given_again(tmp_path):
    job = Job("shapes", Refine(2), Sampler.ode(4), (SCENE,), init=("/secret.png",))
    file = png(tmp_path / "a.png", job.as_json())
    with pytest.raises(InvalidArgument, match=r"--init /secret\.png$"):
        invoke("align", "--again", file, "--out", tmp_path / "o")


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ("", "does not say what it was drawn with"),
        ("[1]", "does not say what it was drawn with"),
        ({**JOB.as_json(), "version": 9}, "a job of version 9"),
        ({**JOB.as_json(), "code": "import os"}, "unknown field of a job 'code'"),
        ({**JOB.as_json(), "seed": -1}, "seed"),
        ({**JOB.as_json(), "reward": 5}, "reward of a job must be of the type str"),
        ({**JOB.as_json(), "call": [1]}, "call of a job must be of the type dict"),
        ({**JOB.as_json(), "model": "digits"}, "of a batch of digits"),
        ({**JOB.as_json(), "method": {"type": "steering", "scale": "1; rm"}}, "scale must"),
        ({**JOB.as_json(), "method": {"type": "steering", "value": "os:system"}}, "value must be"),
    ],
)
def test_what_a_png_says_is_checked(settings, said, tmp_path):
    file = png(tmp_path / "a.png", settings)
    with pytest.raises(InvalidArgument, match=said):
        invoke("align", "--again", file, "--out", tmp_path / "o")


def test_of_an_image_of_a_pipeline_from_python_the_model_and_reward_are_asked_for(tmp_path, asked):
    told = JOB.as_json()
    settings = {"pipeline": "FluxPipeline", "reward": "<lambda>", "prompts": [SCENE], "seed": 4}
    settings |= {"method": told["method"], "sampler": told["sampler"], "call": {"height": 32}}
    file = png(tmp_path / "a.png", settings)
    with pytest.raises(InvalidArgument, match=r"--model FOLDER-OR-HUB-ID --reward '<lambda>'$"):
        invoke("align", "--again", file, "--out", tmp_path / "o")
    invoke("align", "--again", file, "--model", "shapes", "--reward", "clip", "--out", tmp_path)
    (job,) = asked
    assert (job.seed, job.prompts, job.call) == (4, (SCENE,), {"height": 32})
    with pytest.raises(InvalidArgument, match=r"latents of its own, a tensor \(4, 3\)"):
        invoke("align", "--again", png(file, {**settings, "latents": "a tensor (4, 3)"}),
               "--model", "shapes", "--out", tmp_path)  # fmt: skip


@pytest.mark.slow
def test_the_same_seed_gives_the_same_image(tmp_path):
    """Written from Python, and drawn again by the command, which draws plain images beside."""
    job = Job("shapes", Steering(2, scale=0.05), Sampler(2, 1), (SCENE,), seed=11)
    one, two = tmp_path / "one", tmp_path / "two"
    resolve("shapes").run(job).save(one)
    invoke("align", "--again", one / "000-00.png", "--out", two)
    for name in ("000-00.png", "000-01.png"):
        assert (one / name).read_bytes() == (two / name).read_bytes()
    assert (one / "000-00.png").read_bytes() != (one / "000-01.png").read_bytes()
    run = read_run(two)
    assert {plain.file for plain in run.plain[0]} == {"plain-000-00.png", "plain-000-01.png"}
    assert all(run.picture(plain.file).size == (32, 32) for plain in run.plain[0])
    clear_run(two)
    assert not list(two.glob("*.png"))


@pytest.mark.parametrize(
    "changes",
    [{"also": 5}, {"also": "clip"}, {"also": [5]}, {"init": [5]}, {"init": 5}, {"prompts": "a"}],
)
def test_fields_of_other_forms_are_named(tmp_path, changes):
    (name,) = changes
    file = png(tmp_path / "a.png", {**JOB.as_json(), **changes})
    with pytest.raises(InvalidArgument, match=f"{name} of a job must"):
        CliRunner().invoke(app, ["align", "--again", str(file), "--out", str(tmp_path / "o")],
                           catch_exceptions=False)  # fmt: skip
