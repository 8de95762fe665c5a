"""The command line and the first job, end to end on the bundled models."""

from __future__ import annotations

import inspect
import json
import sys
from dataclasses import replace

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import glass_flows
import glass_flows.cli
from cases import fast, first
from glass_flows import Table, sample
from glass_flows.cli import app
from glass_flows.cli.research import TRAINERS, train_app
from glass_flows.errors import InvalidArgument, UnknownName
from glass_flows.jobs import Job, compare_digits, digits_denoiser, resolve
from glass_flows.jobs.pictures import Strip, image_grid, make_folder
from glass_flows.jobs.spelling import twisted
from glass_flows.plans import Sampler
from glass_flows.research import train_digits
from glass_flows.research.check import checks
from glass_flows.settings import build
from glass_flows.steering import Refine, Steering
from glass_flows.training import Training
from glass_flows.worlds import load_digits_classifier


def invoke(*arguments):
    return CliRunner().invoke(app, list(arguments))


def test_help_teaches():
    for arguments in (
        [],
        ["align"],
        ["sample"],
        ["plan"],
        ["check"],
        ["audit"],
        ["train"],
        ["train", "digits"],
    ):
        shown = CliRunner().invoke(app, [*arguments, "--help"])
        assert shown.exit_code == 0
    assert (
        "Example: glass-flows align --model digits --reward class:8"
        in invoke("align", "--help").output
    )
    (switch,) = (line for line in invoke("align", "--help").output.splitlines() if "--no-c" in line)
    assert "TEXT" not in switch
    assert "0.2.0" in invoke("--version").output


@pytest.mark.slow
def test_the_job_steers_and_reports(tmp_path):
    job = Job("digits", Steering(8, 1.0), Sampler(), reward="class:8", populations=40, seed=3)
    methods = twisted(job.method, sigma_data=0.7, asked=False)
    report = compare_digits(job, tmp_path / "new" / "folder", methods=methods, progress=False)
    plain, best, steered, shifted = report.methods
    assert [m.method for m in report.methods] == [
        "plain",
        "best of 8",
        "steering",
        "steering + twist",
    ]
    # equal cost, and the effect that the job exists to show (differences of 5 standard errors)
    assert plain.evaluations == 24
    assert best.evaluations == steered.evaluations == shifted.evaluations == 192
    assert plain.reward + 1.0 < best.reward < steered.reward
    assert steered.accuracy >= best.accuracy > plain.accuracy + 0.2
    assert shifted.reward > best.reward
    assert plain.ess is None
    assert 1 <= best.ess <= steered.ess <= 8
    written = json.loads(report.results.read_text())
    assert Job.from_json(written["job"]) == job
    assert [len(v) for v in written["log_evidence"].values()] == [40, 40]
    assert written["methods"][2]["reward"] == steered.reward
    with Image.open(report.picture) as picture:
        assert picture.width > 400
        assert Job.from_json(json.loads(picture.text["settings"])) == job


def test_of_several_methods_one_with_an_idle_setting_is_refused_before_all(tmp_path):
    job = Job("digits", Steering(2), Sampler(2, 2), reward="class:8", populations=2)
    methods = {"steering": job.method, "refine": Refine(2, moves=1, move_guidance=0.5)}
    with pytest.raises(InvalidArgument, match="this denoiser is under none"):
        compare_digits(job, tmp_path / "out", methods=methods, progress=False)
    assert not any((tmp_path / "out").glob("runs/*"))


@pytest.mark.slow
def test_the_job_repeats_from_its_seed(tmp_path):
    def figures(folder, seed):
        job = Job("digits", Steering(2), Sampler(2, 2), reward="class:8", populations=3, seed=seed)
        report = compare_digits(job, folder)
        return [(m.reward, m.accuracy) for m in report.methods]

    assert figures(tmp_path / "a", 1) == figures(tmp_path / "b", 1)
    assert figures(tmp_path / "a", 1) != figures(tmp_path / "c", 2)


@pytest.mark.slow
def test_align_prints_a_table(tmp_path):
    shown = invoke("align", "--reward", "class:3", "--populations", "4", "--out", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    for text in ("steering", "best of 8", "reward", "ESS", "alignment.png", "comparison.json"):
        assert text in shown.output


@pytest.mark.parametrize(
    "arguments",
    first(
        [
            ["--method", "beam", "--children", "2"],
            ["--potential", "max", "--schedule", "adaptive:0.6", "--resampling", "ssp"],
            ["--value", "posterior:2:2", "--boundaries", "2", "--twist", "0"],
            ["--reward-guidance", "network:0.5:clip=1"],
            ["--schedule", "0.2,0.6,1", "--potential", "fkd-difference", "--twist", "1:cap=2"],
            ["--method", "twist", "--boundaries", "0,2"],
            ["--method", "best-of-n", "--rho", "ddpm"],
            ["--method", "svdd", "--children", "4", "--reward-guidance", "reward"],
            ["--method", "refine", "--moves", "2", "--move-times", "adaptive:0.5", "--rho", "ddpm"],
        ]
    ),
)
def test_every_method_can_be_reached_from_the_command_line(tmp_path, arguments):
    few = ["--populations", "2", "--particles", "4", "--transitions", "3", "--steps", "2"]
    shown = invoke("align", *few, *arguments, "--out", str(tmp_path))
    assert shown.exit_code == 0, shown.output
    job = Job.from_json(json.loads((tmp_path / "comparison.json").read_text())["job"])
    assert (job.sampler.transitions, job.method.particles, job.populations) == (3, 4, 2)
    names = (word[2:].replace("-", "_").replace("reward_", "") for word in arguments[::2])
    given = dict(zip(names, arguments[1::2]))
    for found in (job.method, job.sampler):
        told = {name: given.pop(name) for name in found.every() if name in given}
        wanted = build(type(found), {}, told)
        for name in told:
            one, other = (getattr(of, name) for of in (found, wanted))
            spread = getattr(other, "sigma_data", None)  # which the model says, if nobody else
            assert (one if spread is None else replace(one, sigma_data=spread)) == other
    assert set(given) <= {"method"}


def test_sample_writes_a_picture(tmp_path):
    shown = invoke(
        "sample", "--class", "3", "--guidance-scale", "2", "--count", "4", "--out", str(tmp_path)
    )
    assert shown.exit_code == 0, shown.output
    with Image.open(tmp_path / "samples.png") as picture:
        assert picture.width > 100


def test_plan_prints_what_will_run():
    shown = invoke("plan", "--transitions", "2", "--steps", "3", "--rho", "ddpm", "--start", "pure")
    assert "2 transitions, 6 network evaluations" in shown.output
    assert "x' = " in shown.output
    table = Table.from_json(
        invoke("plan", "--path", "edm", "--times", "0,0.4,1", "--transitions", "2", "--json").output
    )
    assert table.times == (0.0, 0.4, 1.0)
    em = invoke("plan", "--solver", "euler-maruyama", "--transitions", "2")
    assert "Euler-Maruyama" in em.output
    ddim = invoke("plan", "--rho", "ddim:0.5", "--steps", "1")
    assert "eta=0.5" in ddim.output


@pytest.mark.parametrize(
    ("arguments", "match"),
    [
        (["align", "--reward", "clas:8"], "Did you mean 'class'"),
        (["align", "--reward", "class:12"], "a digit 0 to 9"),
        (["align", "--model", "digit"], "Did you mean 'digits'"),
        (["align", "--rho", "2"], r"rho must lie in [-1, 1]"),
        (
            ["align", "--rho", "much"],
            "rho must be a number in [-1, 1], 'ddpm', 'ode', 'renoise', 'ddim:ETA'",
        ),
        (["align", "--steps", "0"], "steps must be an integer >= 1"),
        (["align", "--method", "beam", "--twist", "1"], "--twist: nothing to --method beam"),
        (["align", "--decode-batch", "3"], "--decode-batch: only for a diffusers pipeline"),
        (["align", "--argument", "seed=1"], "--argument seed=...: that is --seed here"),
        (["align", "--solver", "papr"], "Did you mean 'paper'"),
        (["align", "--potential", "maxx"], "Did you mean 'max'"),
        (["align", "--value", "posterior:x"], "must be an integer >= 1, got 'x'"),
        (["align", "--method", "beam", "--children", "3"], "must divide particles"),
        (["align", "--method", "greedy", "--potential", "max"], "--potential: nothing to"),
        (["compare", "--evaluations", "7"], "multiple of one of"),
        (["align", "--particles", "0"], "particles must be an integer >= 1"),
        (["sample", "--class", "11"], "the digits are 0 to 9"),
        (["sample", "--guidance-scale", "2"], "--guidance-scale needs --class"),
        (["sample", "--model", "flux"], "unknown model"),
        (["plan", "--path", "linar"], "Did you mean 'linear'"),
        (["plan", "--times", "0,x,1", "--transitions", "2"], "times[1] must be"),
    ],
)
def test_mistakes_end_in_one_line_and_exit_code_two(
    arguments, match, tmp_path, monkeypatch, capsys
):
    if arguments[0] != "plan":
        arguments = [*arguments, "--out", str(tmp_path)]
    monkeypatch.setattr(sys, "argv", ["glass-flows", *arguments])
    with pytest.raises(SystemExit) as stopped:
        glass_flows.cli.main()
    assert stopped.value.code == 2
    shown = capsys.readouterr().err
    assert match in shown
    assert "Traceback" not in shown
    assert not list(tmp_path.iterdir())  # nothing was begun


def test_an_output_folder_that_cannot_be_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(InvalidArgument, match="cannot write to the output folder"):
        make_folder(tmp_path / "file" / "below")


@pytest.mark.slow
def test_the_checks_pass_and_can_fail(monkeypatch):
    results = list(checks(seed=1, samples=2000))
    assert len(results) == 33
    assert all(item.passed for item in results)
    monkeypatch.setattr("glass_flows.research.check.transition", lambda d, x, *a, **k: 1.05 * x)
    failed = [item for item in checks(seed=1, samples=2000) if not item.passed]
    assert len(failed) >= 20


def test_check_reports(monkeypatch):
    monkeypatch.setattr("glass_flows.research.check.transition", lambda d, x, *a, **k: 1.5 * x)
    shown = invoke("check", "--samples", "100")
    assert shown.exit_code == 1
    assert "FAIL" in shown.output


def test_training_commands_have_the_options_and_defaults_of_their_functions():
    for command in train_app.registered_commands:
        options = inspect.signature(command.callback).parameters
        function = inspect.signature(TRAINERS[command.name][0]).parameters
        assert set(options) == set(function) - {"checkpoint_every", "progress", "announce"}
        assert all(one.default == function[name].default for name, one in options.items())
        told = {name: one.annotation.__metadata__[0].help for name, one in options.items()}
        assert all(told.values()) and "None" not in told.values()
    assert [one.name for one in train_app.registered_commands] == list(TRAINERS)


def test_training_from_the_command_line(tmp_path, monkeypatch):
    monkeypatch.setattr(train_digits, "SAMPLES", 20)  # of the model card
    small = ("--steps", "2", "--batch", "8", "--classifier-steps", "2")
    shown = invoke("train", "digits", "--out", str(tmp_path), *small)
    assert shown.exit_code == 0, shown.output
    assert (tmp_path / "digits.safetensors").exists()
    assert "weights and model card" in shown.output


SMALL = {
    "digits": ("--steps", "2", "--batch", "8", "--classifier-steps", "1"),
    "digits-turbo": ("--steps", "2", "--batch", "8", "--trajectories", "8"),
}


@pytest.mark.parametrize("name", fast(["digits-turbo"], SMALL))
def test_a_finished_training_is_neither_repeated_nor_replaced_unasked(name, tmp_path, monkeypatch):
    monkeypatch.setattr(train_digits, "SAMPLES", 20)
    steps, advance = [0], Training.advance

    def counted(self):
        steps[0] += 1
        advance(self)

    def trained(*options):
        steps[0] = 0
        shown = invoke("train", name, "--out", str(tmp_path), *SMALL[name], *options)
        text = " ".join((shown.output + str(shown.exception)).split())
        return shown.exit_code, steps[0], text, (tmp_path / "digits.safetensors").read_bytes()

    monkeypatch.setattr(Training, "advance", counted)
    first, count, text, weights = trained()
    assert (first, "finished already" in text) == (0, False)
    code, again, text, kept = trained()
    assert (code, again, kept) == (0, 0, weights)
    assert "finished already: nothing is trained" in text
    code, other, text, kept = trained("--seed", "1")
    assert (code != 0, other, kept) == (True, 0, weights)
    assert "differs in settings.seed: 0 there, 1 here. Give another folder, or" in text
    (tmp_path / "mine.txt").write_text("mine")
    code, anew, text, others = trained("--seed", "1", "--overwrite")
    assert (code, anew, others == weights) == (0, count, False)
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert trained("--seed", "1")[:2] == (0, 0)
    (tmp_path / "digits.safetensors").write_bytes(weights)
    assert "are not those that were trained there" in trained("--seed", "1")[2]
    (tmp_path / "training.json").unlink()  # as of the weights of earlier versions
    code, none, text, kept = trained()
    assert (code != 0, none, kept) == (True, 0, weights)
    assert "holds weights of which no training.json says how they were trained" in text


@pytest.mark.slow
def test_what_another_training_left_is_refused_by_its_name(tmp_path, monkeypatch):
    monkeypatch.setattr(train_digits, "SAMPLES", 20)
    invoke("train", "digits", "--out", str(tmp_path), *SMALL["digits"])
    shown = invoke("train", "digits-turbo", "--out", str(tmp_path), *SMALL["digits-turbo"])
    assert "training: digits there, digits-turbo here" in str(shown.exception)


@pytest.mark.slow
@pytest.mark.parametrize(
    "dtype", [torch.float32, pytest.param(torch.bfloat16, marks=pytest.mark.slow)]
)
def test_conditional_digits_are_what_was_asked(dtype):
    """A real network, guided, its state in float32 whatever it runs in itself."""
    denoiser = digits_denoiser(7, 2.0)
    denoiser.network.to(dtype)
    images = sample(denoiser, (64, 1, 8, 8), transitions=6, steps=4, rho=0.4, seed=0)
    assert images.dtype == torch.float32
    assert (load_digits_classifier("judge")(images).argmax(1) == 7).float().mean() > 0.9


def test_a_grid_shows_ink_dark_and_verdicts_in_colour():
    ink = torch.ones(1, 1, 8, 8)
    grid = image_grid([Strip("x", torch.cat([ink, -ink]), [True, False])], columns=2, size=16)
    # rows: gap 6, caption 26, then tiles of 16 with gaps of 6
    assert grid.getpixel((14, 40)) == (0, 0, 0)
    assert grid.getpixel((36, 40)) == (255, 255, 255)
    good, bad = grid.getpixel((5, 40)), grid.getpixel((27, 40))
    assert good[1] > good[0]
    assert bad[0] > bad[1]


def test_names_are_checked_from_python_too(tmp_path):
    with pytest.raises(UnknownName):
        resolve("flux")


LAZY = ["GlassScheduler", "load_reward", "steer_pipeline"]


def test_what_imports_diffusers_is_there():
    assert set(LAZY) <= set(dir(glass_flows)) & set(glass_flows.__all__)
    assert not set(LAZY) & set(vars(glass_flows))
    assert [getattr(glass_flows, name).__name__ for name in LAZY] == LAZY
