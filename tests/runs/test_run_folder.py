"""A run's folder: what is in it, and that a run goes on from any boundary to the same bits."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import subprocess
import sys

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import tiny_pipelines
from cases import first
from glass_flows import Denoiser, Sampler, Steering, Twist, best_of, steer
from glass_flows.checkpoints import identity
from glass_flows.cli import _clear_empty, app
from glass_flows.diffusers import steer_pipeline
from glass_flows.errors import InvalidArgument, OtherJob, RewardError, RunFolderError
from glass_flows.files import append, replace
from glass_flows.folders import LOCKS, alone
from glass_flows.jobs import Job, digits_denoiser, resolve
from glass_flows.jobs.align import align, compare_digits
from glass_flows.jobs.models import Digits
from glass_flows.paths import Linear
from glass_flows.rewards import ClassReward
from glass_flows.runs import RunFolder, clear_run, find_runs, read_run
from glass_flows.worlds.digits import IMAGE, load_digits_classifier

K, N = 5, 6


class Patient(ClassReward):
    """The reward of the digits, which stops the run after so many questions."""

    def __init__(self, stop: int | None, error: type[BaseException] = KeyboardInterrupt) -> None:
        super().__init__(load_digits_classifier("reward"), 8)
        self.left, self.error = stop, error

    def score(self, z, prompts):
        if self.left is not None:
            if self.left == 0:
                raise self.error("stopped")
            self.left -= 1
        return super().score(z, prompts)


def run(folder, stop=None, error=KeyboardInterrupt, *, of=None, **options):
    """Of the digits, or `of` another denoiser, a reward and a shape."""
    record = RunFolder(folder, {"seed": 3}, title="eights")
    denoiser, reward, shape = of or (digits_denoiser(), Patient(stop, error), IMAGE)
    with record.failures():
        result = steer(
            denoiser,
            reward,
            shape=shape,
            record=record,
            progress=False,
            **{"particles": N, "transitions": K, "steps": 3, "rho": 0.4, "scale": 4.0, "seed": 3}
            | options,
        )
    record.finish(result)
    return result


def small(folder, stop=None, **options):
    """A run that takes milliseconds."""
    asked = []

    def reward(z):
        asked.append(1)
        if len(asked) - 1 == stop:
            raise KeyboardInterrupt
        return z.sum(1)

    halved = Denoiser(lambda x, t: 0.5 * x, Linear(), "sample")
    return run(folder, of=(halved, reward, (2,)), **options)


def same(one, two):
    for name, found in vars(one).items():
        other = getattr(two, name)
        if isinstance(found, torch.Tensor):
            assert torch.equal(found.nan_to_num(), other.nan_to_num()), name
        else:
            assert found == other, name


def timeless(events):
    return [{**event, "seconds": 0} for event in events]


OPTIONS = {
    "plain": {"populations": 2},
    "twist": {"twist": Twist(1.0, 0.75, 0.7), "populations": 2, "ess_threshold": 0.9},
    "adaptive": {"potential": "max", "schedule": "adaptive"},
    "forgetful": {"potential": "immediate", "schedule": "linear", "ess_threshold": 1.0},
    "posterior": {"value": "posterior"},
    "paper": {"solver": "paper"},
}


FAST = ("adaptive",)  # the others have a state of their own, too


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n not in FAST)) for n in OPTIONS]
)
def test_stopped_anywhere_it_goes_on_to_the_same_bits(name, tmp_path):
    whole = run(tmp_path / "whole", **OPTIONS[name])
    stops = 0
    for stop in [0, 1, 2, 1, 0, 3, 5, 5, 5, 5, 5, None]:
        try:
            parts = run(tmp_path / "parts", stop, **OPTIONS[name])
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops >= 4
    same(parts, whole)
    one, two = (read_run(tmp_path / part) for part in ("whole", "parts"))
    assert timeless(one.events) == timeless(two.events)
    assert one.result == two.result
    for file in ("result.safetensors", "result.json"):
        assert (one.folder / file).read_bytes() == (two.folder / file).read_bytes()
    resumed = json.loads((two.folder / "run.json").read_text())["resumed"]
    assert resumed == sorted(resumed)
    assert max(resumed) > 0
    assert "resumed" not in json.loads((one.folder / "run.json").read_text())


def test_the_events_are_what_happened(tmp_path):
    result = run(tmp_path, populations=2)
    found = read_run(tmp_path)
    assert (found.status, found.title) == ("finished", "eights")
    assert (found.populations, found.particles, found.transitions) == (2, N, K)
    assert found.table_text.startswith(f"{K} transitions")
    assert [event["boundary"] for event in found.events] == list(range(K + 1))
    assert [event["ancestors"] for event in found.events[:-1]] == result.ancestry.tolist()
    assert [event["ess"] for event in found.events] == result.ess.tolist()
    last = found.events[-1]
    assert last["final"] is True
    assert last["rewards"] == result.rewards.tolist() == found.rewards
    assert last["log_weights"] == result.log_weights.tolist()
    assert last["log_evidence"] == result.log_evidence.tolist()
    assert last["costs"]["network_evaluations"] == 2 * N * K * 3
    assert found.events[0]["rewards"] != last["rewards"]
    assert not (tmp_path / "state.safetensors").exists()
    (tmp_path / "state.safetensors").write_bytes(b"killed before this was taken away")
    same(RunFolder(tmp_path, {"seed": 3}).result(), result)
    assert not (tmp_path / "state.safetensors").exists()


def test_what_json_does_not_have_is_null_or_text(tmp_path):
    """Best-of-N takes no values on the way; an excluded sample has the weight exp(-inf)."""
    record = RunFolder(tmp_path)

    def half(z):
        ink = z[:, 0, 4, 4]
        return torch.where(ink > ink.mean(), 0.0, -math.inf)

    best_of(
        digits_denoiser(), half,
        shape=IMAGE, particles=N, transitions=2, steps=3, seed=0, record=record, progress=False,
    )  # fmt: skip
    for line in (tmp_path / "events.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    first, *_, last = read_run(tmp_path).events
    assert first["rewards"] == [[None] * N]
    assert "-inf" in last["log_weights"][0]


def test_a_run_is_read_while_it_goes_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3)
    found = read_run(tmp_path)
    assert found.status == "unfinished"
    assert [event["boundary"] for event in found.events] == [0, 1, 2, 3]
    with open(tmp_path / "events.jsonl", "a", encoding="utf-8") as file:
        file.write('{"boundary": 4, "t"')  # a line that is being written
    assert len(read_run(tmp_path).events) == 4


@pytest.mark.slow
def test_a_failure_is_written_with_its_reason_and_forgotten_when_it_is_over(tmp_path):
    with pytest.raises(RewardError):
        run(tmp_path, 2, ValueError)
    found = read_run(tmp_path)
    assert found.status == "failed"
    assert found.error["type"] == "RewardError"
    assert "stopped" in found.error["message"]
    assert found.error["boundary"] == 3  # noise has no value; two more are passed
    run(tmp_path)
    assert read_run(tmp_path).status == "finished"


def test_another_job_is_refused_until_the_run_is_thrown_away(tmp_path):
    run(tmp_path)
    with pytest.raises(
        RunFolderError, match=r"another job, which differs in seed: 3 there, 4 here. Give another"
    ):
        RunFolder(tmp_path, {"seed": 4})
    clear_run(tmp_path)
    assert not RunFolder(tmp_path, {"seed": 4}).finished


def test_a_job_that_never_began_is_in_nobodys_way(tmp_path):
    RunFolder(tmp_path, {"seed": 3}).fail(ValueError("no such model"))
    RunFolder(tmp_path, {"seed": 4})
    assert read_run(tmp_path).job == {"seed": 4}


def test_damage_is_named(tmp_path):
    with pytest.raises(RunFolderError, match="is no run"):
        read_run(tmp_path)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 2)
    (tmp_path / "state.safetensors").write_bytes(b"nothing")
    with pytest.raises(RunFolderError, match=r"state.safetensors.*damaged.*delete it"):
        run(tmp_path)
    (tmp_path / "run.json").write_text('{"format": 99}')
    with pytest.raises(RunFolderError, match="format 99"):
        read_run(tmp_path)
    with pytest.raises(RunFolderError, match="not finished or damaged"):
        RunFolder(tmp_path / "other").result()
    assert find_runs(tmp_path) == [tmp_path, tmp_path / "other"]


def test_a_folder_that_cannot_be_written_is_named_early(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(RunFolderError, match="cannot write the run in"):
        RunFolder(tmp_path / "file" / "run")


def test_a_recorded_run_needs_a_seed(tmp_path):
    with pytest.raises(InvalidArgument, match="seed="):
        run(tmp_path, seed=None)


# --- pipelines ------------------------------------------------------------------------------------

SMALL = {
    "height": 16, "width": 16, "particles": 3, "transitions": 3, "steps": 2, "scale": 1.0,
    "seed": 1,
}  # fmt: skip


def redness(images):
    return images[:, 0].mean((1, 2))


@pytest.mark.slow
def test_a_pipeline_keeps_what_it_decoded_and_goes_on(tmp_path):
    pipe = tiny_pipelines.build("sd3")
    whole = steer_pipeline(
        pipe, "a cat", redness, record=RunFolder(tmp_path / "whole"), progress=False, **SMALL
    )
    calls = []

    def stops(images):
        calls.append(len(images))
        if len(calls) == 5:  # one image at a time: in the middle of the second boundary
            raise KeyboardInterrupt
        return redness(images)

    with pytest.raises(KeyboardInterrupt):
        steer_pipeline(
            pipe, "a cat", stops, record=RunFolder(tmp_path / "parts"), progress=False, **SMALL
        )
    parts = steer_pipeline(
        pipe, "a cat", redness, record=RunFolder(tmp_path / "parts"), progress=False, **SMALL
    )
    same(parts.result, whole.result)
    sheets = [(tmp_path / part / "estimates" / "003.png") for part in ("whole", "parts")]
    assert sheets[0].read_bytes() == sheets[1].read_bytes()
    with Image.open(sheets[0]) as sheet:
        assert sheet.size == (3 * 16, 16)
        for i, image in enumerate(whole.images):  # the last sheet holds the samples
            assert sheet.crop((16 * i, 0, 16 * i + 16, 16)).tobytes() == image.tobytes()


def test_only_what_can_be_kept_is_recorded(tmp_path):
    pipe = tiny_pipelines.build("sd3")
    with pytest.raises(InvalidArgument, match=r"record and shards: only on pipelines with"):
        steer_pipeline(
            pipe, "a cat", redness, decode=lambda z: z, record=RunFolder(tmp_path), **SMALL
        )


def test_align_writes_a_run_and_does_not_overwrite_another(tmp_path, monkeypatch):
    tiny_pipelines.save("sd3", tmp_path / "sd3")
    (tmp_path / "rewards_of_ours.py").write_text("def red(x):\n    return x[:, 0].mean((1, 2))\n")
    monkeypatch.syspath_prepend(tmp_path)
    command = ["align", "--model", str(tmp_path / "sd3"), "--prompt", "a cat", "--height", "16",
               "--width", "16", "--particles", "2", "--transitions", "2", "--steps", "2",
               "--scale", "1", "--reward", "rewards_of_ours:red",
               "--out", str(tmp_path / "out")]  # fmt: skip
    assert CliRunner().invoke(app, command, catch_exceptions=False).exit_code == 0
    found = read_run(tmp_path / "out")
    assert found.status == "finished"
    assert found.job["sampler"]["transitions"] == 2
    assert [(found.folder / sample.file).exists() for sample in found.samples[0]] == [True, True]
    other = CliRunner().invoke(app, [*command, "--seed", "1"])
    assert isinstance(other.exception, RunFolderError)
    again = CliRunner().invoke(app, [*command, "--seed", "1", "--overwrite"])
    assert again.exit_code == 0
    assert read_run(tmp_path / "out").job["seed"] == 1


@pytest.mark.slow
def test_a_pipeline_under_torchrun_has_the_bits_of_one_process(tmp_path):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node"]
    given = ["align", "--model", "shapes", "--prompt", "two blue squares",
             "--particles", "4", "--transitions", "3", "--steps", "2", "--micro-batch", "2",
             "--scale", "0.5"]  # fmt: skip
    alone = CliRunner().invoke(app, [*given, "--out", str(tmp_path / "1")])
    assert alone.exit_code == 0, alone.output
    command += ["2", "-m", "glass_flows", *given, "--out", str(tmp_path / "2")]
    subprocess.run(command, env=environment, check=True, timeout=200)
    names = ["result.safetensors", "000-00.png", "best-first.png", "estimates/002.png"]
    for name in names:
        one, two = ((tmp_path / count / name).read_bytes() for count in ("1", "2"))
        assert one == two, name


OTHERS = (
    ({"scale": 2.0}, "method.scale: 4.0 there, 2.0 here"),
    ({"potential": "max"}, "method.potential: the default there, max here"),
    ({"twist": 1.0}, "method.twist: the default there, 1 here"),
    ({"seed": 4}, "seed: 3 there, 4 here"),
    ({"transitions": 2}, "table"),
    ({"rho": 0.5}, "table"),
)


# questions to the reward: in the first boundary, later
@pytest.mark.parametrize("stop", first([3, 1]))
def test_a_state_of_other_settings_is_not_gone_on_with_whatever_the_job_says(tmp_path, stop):
    """The job {"seed": 3} says nothing of them."""
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path, stop=stop)
    for changes, differs in OTHERS:
        with pytest.raises(RunFolderError, match=f"another job, which differs in .*{differs}"):
            small(tmp_path, **changes)
    whole = small(tmp_path)  # and nothing was lost
    same(whole, small(tmp_path / "again"))


def test_a_state_knows_whose_it_is_without_its_run(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        small(tmp_path / "run", 3)
    (tmp_path / "run" / "run.json").unlink()
    kept = (tmp_path / "run" / "state.safetensors").read_bytes()
    with pytest.raises(OtherJob, match=r"another job.* method.scale: 4.0 there, the default here"):
        small(tmp_path / "run", scale=1.0)
    with pytest.raises(OtherJob, match="another job, which differs in seed: 3 there, 4 here"):
        RunFolder(tmp_path / "run", {"seed": 4})
    assert (tmp_path / "run" / "state.safetensors").read_bytes() == kept
    same(small(tmp_path / "run"), small(tmp_path / "whole"))


def test_a_record_that_was_stopped_goes_on_when_it_is_used_again(tmp_path):
    record, reward = RunFolder(tmp_path), Patient(3)

    def go():
        return steer(digits_denoiser(), reward, shape=IMAGE, record=record, particles=N,
                     scale=1.0, transitions=K, steps=3, seed=3, progress=False)  # fmt: skip

    with pytest.raises(KeyboardInterrupt):
        go()
    asked = reward.left = K + 1
    go()
    assert 0 < reward.left < asked


# --- whose a run is -------------------------------------------------------------------------------


def test_a_run_of_other_weights_is_another_job(tmp_path):
    def begun(weights):
        return RunFolder(tmp_path, {"seed": 3}, weights={"model": weights})

    with pytest.raises(KeyboardInterrupt):
        steer(
            digits_denoiser(), Patient(3), shape=IMAGE, record=begun("ab"), particles=N,
            scale=1.0, transitions=K, steps=3, seed=3, progress=False,
        )  # fmt: skip
    for name in ("run.json", "nothing"):  # the state knows it, too
        (tmp_path / name).unlink(missing_ok=True)
        with pytest.raises(OtherJob, match=r"differs in weights.model: ab there, cd here"):
            begun("cd")
    assert begun("ab").saved().index == 4
    RunFolder(tmp_path, {"seed": 3})  # of a hub they may not be known yet


def test_another_number_of_threads_is_refused_where_the_run_would_go_on(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3)
    kept = {file: file.read_bytes() for file in tmp_path.glob("*.*")}
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(OtherJob, match=f"threads: {before} there, {before + 1} here"):
            run(tmp_path)
    finally:
        torch.set_num_threads(before)
    assert {file: file.read_bytes() for file in kept} == kept


def test_weights_are_known_by_their_files(tmp_path):
    (tmp_path / "model.safetensors").write_bytes(b"one")
    (tmp_path / "README.md").write_text("of no matter")
    first = identity(tmp_path)
    (tmp_path / "README.md").write_text("still")
    assert identity(tmp_path) == first
    (tmp_path / "tokenizer.json").write_text("{}")
    second = identity(tmp_path)
    (tmp_path / "model.safetensors").write_bytes(b"two!")
    assert len({first, second, identity(tmp_path)}) == 3
    assert identity("no-such/model") is None


def test_events_are_those_of_the_state_whatever_became_of_the_file(tmp_path):
    whole = small(tmp_path / "whole")
    for i, damage in enumerate((b"", b"{}\n" * 9, b"\xff\xfe", None)):
        parts = tmp_path / str(i)
        with pytest.raises(KeyboardInterrupt):
            small(parts, 3)
        if damage is None:
            (parts / "events.jsonl").unlink()
        else:
            (parts / "events.jsonl").write_bytes(damage)
        same(small(parts), whole)
        assert timeless(read_run(parts).events) == timeless(read_run(tmp_path / "whole").events)


def test_a_short_write_is_noticed(tmp_path, monkeypatch):
    """A system may write a part and call it success; the next write then tells why."""
    file = tmp_path / "events.jsonl"
    file.write_bytes(b"one\n")
    real, left = os.write, [2, 0]
    monkeypatch.setattr(os, "write", lambda f, data: real(f, data[: left.pop(0)]))
    with pytest.raises(OSError, match="No space"):
        append(file, b"two\n")
    assert file.read_bytes() == b"one\n"
    left[:] = [2, 0]
    with pytest.raises(OSError, match="No space"):
        replace(file, b"three\n")
    assert [p.name for p in tmp_path.iterdir()] == ["events.jsonl"]
    left[:] = [2, 9]
    append(file, b"two\n")
    assert file.read_bytes() == b"one\ntwo\n"


def test_only_what_a_run_wrote_is_thrown_away(tmp_path):
    record = RunFolder(tmp_path)
    for name in ("000-00.png", "mine.png", "estimates/000.png", "estimates/mine.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    result = run(tmp_path / "other")
    P, count = result.rewards.shape
    rest = ["none.png"] * (count - 2)
    record.finish(
        result, [["000-00.png", "../outside.png", *rest]] + [["none.png"] * count] * (P - 1)
    )
    (tmp_path.parent / "outside.png").write_text("not of this run")
    clear_run(tmp_path)
    left = {str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*.png")}
    assert left == {"mine.png", "estimates/mine.png"}
    assert (tmp_path.parent / "outside.png").exists()


def test_images_of_a_run_that_did_not_come_to_its_result_are_thrown_away(tmp_path):
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path, 3)
    found = read_run(tmp_path)
    last = f"{found.populations - 1:03}-{found.returned - 1:02}.png"
    for name in ("000-00.png", last, f"000-{found.returned:02}.png"):
        (tmp_path / name).write_bytes(b"x")
    clear_run(tmp_path)
    assert [p.name for p in tmp_path.glob("*.png")] == [f"000-{found.returned:02}.png"]


@pytest.mark.parametrize("told", ["[]", '{"version": 2, "samples": [1], "populations": [2]}'])
def test_a_run_whose_result_is_damaged_is_thrown_away_too(tmp_path, told):
    RunFolder(tmp_path)
    (tmp_path / "result.json").write_text(told)
    clear_run(tmp_path)
    assert not (tmp_path / "result.json").exists()


def test_of_folders_without_files_only_those_that_somebody_holds_are_left(tmp_path):
    out = tmp_path / "new" / "out"
    for name in ("empty/below", "held", "was held"):
        (out / name).mkdir(parents=True)
    (out / "was held" / ".lock").touch()
    with alone(out), alone(out / "held"):
        _clear_empty([out, tmp_path / "new"])
        assert {p.name for p in out.iterdir()} == {"held", *LOCKS}
    assert {p.name for p in (out / "held").iterdir()} == set()
    _clear_empty([out, tmp_path / "new"])
    assert not (tmp_path / "new").exists()


def test_a_finished_run_given_again_does_no_work(tmp_path, monkeypatch):
    job = Job("digits", Steering(3), Sampler(2, 1), ("8",), seed=1)
    first, said = align(resolve("digits"), job, tmp_path, progress=False), []
    monkeypatch.setattr(Digits, "run", lambda *given: pytest.fail("it is drawn again"))
    monkeypatch.setattr(Digits, "load", lambda *given: pytest.fail("the model is loaded"))
    again = align(resolve("digits"), job, tmp_path, progress=False, announce=said.append)
    assert said == ["finished already: nothing is drawn"]
    assert again == first
    first.images[1].write_bytes(first.images[1].read_bytes()[:-20])
    with pytest.raises(RunFolderError, match=rf"{first.images[1].name}' of a finished run is miss"):
        align(resolve("digits"), job, tmp_path, progress=False)


def test_digits_of_other_settings_are_kept_unless_they_are_to_be_thrown_away(tmp_path):
    job = Job("digits", Steering(3), Sampler(2, 1), reward="class:8", populations=2)
    first = compare_digits(job, tmp_path, progress=False)
    assert compare_digits(job, tmp_path, progress=False).methods == first.methods  # read again
    other = dataclasses.replace(job, seed=1)
    with pytest.raises(OtherJob, match="seed: the default there, 1 here"):
        compare_digits(other, tmp_path, progress=False)
    compare_digits(other, tmp_path, overwrite=True, progress=False)
    assert {read_run(run).job["seed"] for run in find_runs(tmp_path)} == {1}


def test_refused_settings_leave_nothing(tmp_path):
    job = Job("digits", Steering(3, guidance="network:1:clip=0.5"), Sampler(2, 1), ("8", "x"))
    with pytest.raises(InvalidArgument):
        align(resolve("digits"), job, tmp_path / "new" / "out", progress=False)
    assert not (tmp_path / "new").exists()
