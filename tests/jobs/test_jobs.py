"""Jobs, models by name, and the options that spell them."""

from __future__ import annotations

import inspect
import json
from dataclasses import dataclass, fields, replace
from pathlib import Path

import pytest
import torch
import typer
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save_file
from typer.testing import CliRunner

import glass_flows
from cases import first
from glass_flows.batching import Batching
from glass_flows.cli import app
from glass_flows.errors import GlassError, InvalidArgument, RunFolderError, UnknownName
from glass_flows.jobs import Job, Loading, resolve
from glass_flows.jobs.models import Digits, Pipeline, Shapes, SiT
from glass_flows.jobs.spelling import Options, jobs_of, twisted
from glass_flows.plans import Sampler
from glass_flows.rewards import FunctionReward, Viewing
from glass_flows.runs import RunFolder, read_run
from glass_flows.runs.command import flag
from glass_flows.settings import kinds
from glass_flows.steering import METHODS, Beam, BestOf, Greedy, Refine, Steering, Twist
from glass_flows.steering.loop import Watch
from glass_flows.worlds import digits as digits_module
from glass_flows.worlds.digits import FILES

WEIGHTS = Path(digits_module.__file__).parent / "weights"
COMMANDS = typer.main.get_command(app).commands
CLASSES = {
    "method": [Steering, BestOf, Beam, Greedy, Refine],
    "sampler": [Sampler],
    "batching": [Batching],
    "viewing": [Viewing],
    "loading": [Loading],
}


def options(command):
    return {option for p in COMMANDS[command].params for option in p.opts}


# --- jobs -----------------------------------------------------------------------------------------

JOBS = st.builds(
    Job,
    model=st.sampled_from(["digits", "shapes", "a/b"]),
    method=st.one_of(
        st.builds(Steering, st.integers(1, 9), st.floats(0, 9), st.just("max"),
                  twist=st.builds(Twist, st.floats(0, 2), st.floats(0.1, 3))),
        st.builds(Beam, st.just(8), children=st.sampled_from([1, 2, 4])),
        st.builds(BestOf, st.integers(1, 9)),
        st.builds(Refine, st.integers(1, 9), moves=st.integers(0, 9), until=st.floats(-9, 9)),
    ),
    sampler=st.builds(Sampler, st.integers(1, 9), st.integers(1, 9), st.floats(-1, 1)),
    prompts=st.lists(st.text()).map(tuple),
    reward=st.text(),
    seed=st.integers(0, 2**63 - 1),
    populations=st.integers(1, 5),
    call=st.dictionaries(st.text(), st.one_of(st.integers(), st.text(), st.none())),
    batching=st.builds(Batching, st.one_of(st.none(), st.just("auto"), st.integers(1, 9))),
    micro_batch=st.one_of(st.none(), st.integers(1, 5)),
    viewing=st.builds(Viewing, st.sampled_from([None, "first", "all", 1, 4])),
)  # fmt: skip


@pytest.mark.slow
@given(JOBS)
@settings(max_examples=30, deadline=None)
def test_a_job_is_its_json(job):
    text = json.dumps(job.as_json(), allow_nan=False)
    assert Job.from_json(json.loads(text)) == job


def test_json_leaves_out_what_is_as_by_default():
    job = Job("digits", Steering(scale=1.0), Sampler())
    assert job.as_json() == {
        "version": 2,
        "model": "digits",
        "method": {"type": "steering", "version": 1},
        "sampler": {"type": "sampler", "version": 1},
    }
    with pytest.raises(InvalidArgument, match="a job of version 1"):
        Job.from_json({"model": "digits"})
    with pytest.raises(InvalidArgument, match="a job needs method, sampler"):
        Job.from_json({"version": 2, "model": "digits"})
    with pytest.raises(UnknownName, match="Did you mean 'reward'"):
        Job.from_json({**job.as_json(), "rewrad": "clip"})


@dataclass(frozen=True)
class Later(Job):
    """A job as a later version may know it."""

    colour: str = "grey"


def test_a_setting_added_later_leaves_an_old_folder_the_same_job(tmp_path):
    """Of the job, and of its method: both with their defaults."""
    job = Job("digits", Steering(4, scale=2), Sampler(2, 2), seed=3)
    record = RunFolder(tmp_path, job.as_json())
    (tmp_path / "events.jsonl").touch()  # something of it is there

    @dataclass(frozen=True, repr=False)
    class Newer(Steering):
        colour: str = glass_flows.settings.setting("grey", glass_flows.settings.Text())

    held = {f.name: getattr(job, f.name) for f in fields(job)}
    later = Later(**{**held, "method": Newer(4, scale=2)})
    assert RunFolder(tmp_path, later.as_json()).job == record.job
    other = replace(later, method=Newer(4, scale=2, colour="red"))
    with pytest.raises(RunFolderError, match=r"method\.colour: the default there, red here"):
        RunFolder(tmp_path, other.as_json())


def test_only_what_differs_is_shown_with_both_values(tmp_path):
    job = Job("digits", Steering(4, scale=2), Sampler(2, 2), prompts=("x" * 9000,), seed=3)
    RunFolder(tmp_path, job.as_json())
    (tmp_path / "events.jsonl").touch()
    other = replace(job, method=Steering(4, scale=3), sampler=Sampler(2, 2, "ddpm"))
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path, other.as_json())
    assert "method.scale: 2.0 there, 3.0 here; sampler.rho: the default there, ddpm" in str(
        caught.value
    )
    assert "xxxx" not in str(caught.value)
    with pytest.raises(RunFolderError) as caught:
        RunFolder(tmp_path, replace(job, prompts=("y" * 9000,)).as_json())
    assert len(str(caught.value)) < 600


OLD = {
    "format": 1,
    "title": "eights",
    "job": {"model": "digits", "method": "steering", "seed": 0, "settings": {"scale": 4.0}},
    "created": "2026-01-01T00:00:00+00:00",
    "versions": {"glass-flows": "0.1.0"},
    "populations": 1,
    "particles": 2,
    "transitions": 1,
}


def test_a_folder_of_an_older_version_is_shown_and_not_gone_on_with(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(OLD))
    (tmp_path / "result.json").write_text(
        json.dumps({"rewards": [[1.0, 2.0]], "images": [], "costs": {}})
    )
    found = read_run(tmp_path)
    assert (found.status, found.title, found.job["settings"]) == (
        "finished", "eights", {"scale": 4.0},
    )  # fmt: skip
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path)])
    assert shown.exit_code == 0
    assert "settings.scale" in shown.output
    with pytest.raises(RunFolderError, match="older version of glass-flows"):
        RunFolder(tmp_path, OLD["job"])


def test_sizes_act_where_they_can():
    job = Job("digits", Steering(8), Sampler(6, 4))
    assert job.sized(5, 3, 2) == Job("digits", Steering(5), Sampler(3, 2))
    assert replace(job, method=Beam(8, children=4)).sized(11, 3, 2).method.particles == 8
    plain = replace(job, method=BestOf(1), sampler=Sampler.ode(24)).sized(5, 3, 2)
    assert (plain.method, plain.sampler) == (BestOf(1), Sampler.ode(6))


# --- options --------------------------------------------------------------------------------------


@pytest.mark.parametrize("group", CLASSES)
def test_every_field_is_reached_from_the_command_line_and_from_python(group):
    python = set(inspect.signature(glass_flows.steer_pipeline).parameters)
    for cls in CLASSES[group]:
        for name in kinds(cls):
            assert flag(name) in options("align"), name
            assert flag(name) in options("batch"), name
            assert name in python or group == "loading"
    fronts = {
        Steering: "steer",
        BestOf: "best_of",
        Beam: "beam",
        Greedy: "greedy",
        Refine: "refine",
        Sampler: "sample",
    }
    for cls in CLASSES[group]:
        if cls in fronts:
            named = inspect.signature(getattr(glass_flows, fronts[cls])).parameters
            assert set(kinds(cls)) <= set(named)


def test_batch_takes_every_option_of_a_method_of_a_sampler_and_of_a_pipeline_that_align_takes():
    of_one_run = {"--prompt", "--seed", "--populations", "--micro-batch", "--again"}
    assert options("align") - options("batch") == of_one_run


def test_options_mean_what_they_say_whatever_the_method():
    given = Options(
        method={"particles": "6", "scale": "3", "twist": "0.5:cap=2", "children": "3"},
        sampler={"transitions": "4", "steps": "3"},
    )
    _, jobs = jobs_of("digits", list(METHODS), given)
    twist = Twist(0.5, cap=2.0, sigma_data=0.7)
    assert jobs["steering"].method == Steering(6, 3.0, twist=twist)
    assert jobs["twist"].method == Steering(6, 3.0, twist=twist)
    assert jobs["beam"].method == Beam(6, 3.0, children=3)
    assert jobs["svdd"].method == Greedy(6, 3.0, children=3, pick="sample")
    assert jobs["best-of-n"].method == BestOf(6, 3.0)
    assert jobs["plain"].method == BestOf(1, 3.0)
    assert jobs["refine"].method == Refine(6, 3.0)
    for name in ("plain", "best-of-n"):  # the same evaluations on the ODE
        assert jobs[name].sampler == Sampler.ode(12)
    assert jobs["beam"].sampler == Sampler(4, 3)
    _, jobs = jobs_of("digits", ["best-of-n"], Options(sampler={"rho": "ddpm"}))
    assert jobs["best-of-n"].sampler == Sampler(rho="ddpm")
    _, jobs = jobs_of("digits", ["twist"], Options())
    assert jobs["twist"].method.twist == Twist(sigma_data=0.7)
    _, jobs = jobs_of("shapes", ["twist"], Options())
    assert jobs["twist"].method.twist == Twist()
    assert jobs["twist"].batching == Batching(decode_batch=None)


@pytest.mark.parametrize(
    ("model", "methods", "given", "flags"),
    [
        (
            "digits",
            ["beam"],
            Options({"twist": "3", "degenerate": "carry"}),
            "--twist, --degenerate",
        ),
        ("digits", ["beam"], Options({"resampling": "ssp"}), "--resampling"),
        ("digits", ["steering"], Options({"children": "4"}), "--children"),
        ("digits", ["svdd"], Options({"pick": "best"}), "--pick"),
        ("digits", ["plain"], Options({"particles": "6"}), "--particles"),
        ("digits", ["steering"], Options(batching={"decode_batch": "3"}), "--decode-batch"),
        ("digits", ["steering"], Options(loading={"lora": "x"}), "--lora"),
        ("digits", ["steering"], Options(call={"guidance_scale": 7.5}), "--guidance-scale"),
        ("shapes", ["steering"], Options(call={"particles": 7}), "--argument particles"),
    ],
)
def test_an_option_that_cannot_act_is_refused_by_name(model, methods, given, flags):
    with pytest.raises(InvalidArgument, match=flags):
        jobs_of(model, methods, given)
    if "--argument" not in flags and model == "digits" and given.method:
        jobs_of(model, [*METHODS], given)  # of several methods one may have it


def test_all_of_them_are_named_at_once():
    with pytest.raises(InvalidArgument) as caught:
        jobs_of(
            "digits", ["beam"],
            Options({"twist": "3", "guidance": "reward"}, batching={"decode_batch": "3"}),
        )  # fmt: skip
    assert "--decode-batch: only for a diffusers pipeline" in str(caught.value)
    assert "--twist: nothing to --method beam" in str(caught.value)
    assert "--reward-guidance," in str(caught.value)  # is what a beam has


@pytest.mark.parametrize(
    "name", ["seed", "particles", "method", "out", "model", "budget", "reward", "rho", "device"]
)
def test_arguments_of_ours_are_one_line(name, tmp_path):
    given = ["--prompt", "a red circle", "--argument", f"{name}=1", "--out", str(tmp_path / "o")]
    shown = CliRunner().invoke(app, ["align", "--model", "shapes", *given])
    assert isinstance(shown.exception, InvalidArgument)
    assert f"that is --{name} here" in str(shown.exception)
    assert not (tmp_path / "o").exists()


def test_steering_of_digits_stands_beside_its_twist():
    assert twisted(Beam(), 0.7, asked=False) == {}
    both = twisted(Steering(4), 0.7, asked=False)
    assert both == {
        "steering": Steering(4),
        "steering + twist": Steering(4, twist=Twist(sigma_data=0.7)),
    }
    assert list(twisted(Steering(4), 0.7, asked=True)) == ["steering"]


# --- models ---------------------------------------------------------------------------------------


def test_a_model_is_told_by_its_scheme(tmp_path):
    (tmp_path / "folder").mkdir()
    found = {
        "digits": Digits,
        f"digits:{tmp_path}": Digits,
        "shapes": Shapes,
        f"shapes:{tmp_path}": Shapes,
        f"sit:{tmp_path}": SiT,
        str(tmp_path / "folder"): Pipeline,
        "black-forest-labs/FLUX.1-dev": Pipeline,
    }
    for name, kind in found.items():
        assert type(resolve(name)) is kind


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("shape", "unknown model 'shape'. Did you mean 'shapes'"),
        ("digit", "Did you mean 'digits'"),
        ("./nothing", "no such folder"),
        ("/no/such/folder", "no such folder"),
        ("shapes:nowhere", "'nowhere' is no folder; give shapes:FOLDER"),
        ("sit:", "is no folder; give sit:FOLDER"),
        ("sit", "is no folder; give sit:FOLDER"),
        ("", "unknown model ''"),
    ],
)
def test_a_model_that_is_none_is_named_before_any_reward_is_loaded(name, match, monkeypatch):
    def fails(*given, **more):
        raise AssertionError("a reward was loaded")

    monkeypatch.setattr("glass_flows.jobs.models.load_reward", fails)
    command = ["align", "--model", name, "--prompt", "a", "--reward", "clip", "--out", "out"]
    shown = CliRunner().invoke(app, command)
    assert isinstance(shown.exception, GlassError)
    assert match in str(shown.exception)


@pytest.mark.slow
def test_digits_of_a_folder_are_other_digits(tmp_path):
    for name in FILES.values():
        with safe_open(WEIGHTS / name, framework="pt") as file:
            tensors, about = {k: file.get_tensor(k) for k in file.keys()}, file.metadata()  # noqa: SIM118
        save_file({k: 0.9 * v for k, v in tensors.items()}, tmp_path / name, about)
    job = Job(f"digits:{tmp_path}", Steering(2), Sampler(2, 2), prompts=("8",))
    own, bundled = resolve(job.model).run(job), resolve("digits").run(replace(job, model="digits"))
    assert not torch.equal(own.result.samples, bundled.result.samples)
    (verdicts,) = resolve(job.model).judge(own)
    assert len(verdicts) == 2


def test_digits_take_prompts_or_a_class():
    digits = resolve("digits")
    job = Job("digits", BestOf(2), Sampler.ode(2), prompts=("3",))
    assert digits.labels(job) == [3]
    assert digits.labels(replace(job, prompts=(), reward="class:5")) == [5]
    for bad in ({"prompts": ()}, {"prompts": ("ten",)}, {"prompts": ("²",)}, {"reward": "class:²"}):
        with pytest.raises(InvalidArgument):
            digits.labels(replace(job, **bad))


# --- searches are kept, too -----------------------------------------------------------------------


class Stops(Digits):
    """The digits, whose reward stops the run after so many questions."""

    left: int | None = None

    def reward(self, job):
        asked = super().reward(job)

        def score(z):
            if self.left is not None:
                if self.left == 0:
                    raise KeyboardInterrupt
                self.left -= 1
            return asked(z)

        return FunctionReward(score)


@pytest.mark.parametrize(
    "method",
    first(
        [
            Beam(8, children=4),
            Greedy(6, 3.0, pick="sample", children=3),
            Greedy(6),
            BestOf(4),
            Refine(4, 4.0, moves=4, ess_threshold=1.0),
        ]
    ),
)
def test_a_killed_search_ends_with_the_same_bits(method, tmp_path):
    job = Job("digits", method, Sampler(5, 2), prompts=("8",), populations=2, seed=4)
    model = Stops("digits", "", Loading())

    def run(folder):
        record = RunFolder(folder, job.as_json())
        result = model.steer(job, Watch(record, progress=False))
        record.finish(result)
        return result

    whole = run(tmp_path / "whole")
    for stop in (0, 1, 2, 0, 0):
        model.left = stop
        try:
            run(tmp_path / "parts")
        except KeyboardInterrupt:
            continue
    model.left = None
    run(tmp_path / "parts")
    for name in ("result.safetensors", "result.json"):
        assert (tmp_path / "parts" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    one, two = (read_run(tmp_path / part).events for part in ("whole", "parts"))
    one, two = ([{**event, "seconds": 0} for event in events] for events in (one, two))
    assert one == two
    assert read_run(tmp_path / "whole").returned == method.returns == whole.rewards.shape[1]
    if not isinstance(method, BestOf):
        assert max(json.loads((tmp_path / "parts" / "run.json").read_text())["resumed"]) > 0
        assert any(event["resampled"] == [True, True] for event in one)
