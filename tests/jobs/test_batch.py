"""`glass-flows batch`: whatever stops it, the results are those of an undisturbed run."""

from __future__ import annotations

import contextlib
import csv
import itertools
import json
import multiprocessing
import os
import pickle
import random
import re
import resource
import signal
import subprocess
import threading
import time
from concurrent.futures import Future
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path

import pytest
import torch
from typer.testing import CliRunner

from glass_flows.cli import app
from glass_flows.errors import FolderInUse, InvalidArgument, RunFolderError, UnknownName
from glass_flows.folders import alone
from glass_flows.jobs import items, workers
from glass_flows.jobs.batch import run_batch
from glass_flows.jobs.items import Work, Worker, items_of
from glass_flows.jobs.models import Digits
from glass_flows.jobs.prompts import PromptEntry
from glass_flows.jobs.spelling import Options, jobs_of, read_seeds
from glass_flows.runs import folder as folder_module
from glass_flows.runs import read_run


def work_of(methods=("best-of-n", "steering", "twist"), threads=None, **options):
    options = {"particles": "6", "scale": "4", **options}
    sampler = {"transitions": "4", "steps": "1"}
    _, jobs = jobs_of("digits", methods, Options(options, sampler), reward="class", threads=threads)
    return Work(jobs)


WORK = work_of()
PROMPTS = [PromptEntry(i, str(digit)) for i, digit in enumerate((8, 3))]
METHODS = ["best-of-n", "steering", "twist"]
ITEMS = items_of(PROMPTS, [0, 1], METHODS)
MANY = items_of(PROMPTS, range(6), METHODS)  # time enough to kill somebody
FORK = multiprocessing.get_context("fork")  # the models are imported already


def test_an_item_is_the_job_of_its_method_with_its_prompt_and_its_seed():
    found = [(item.method, WORK.of(item)) for item in items_of(PROMPTS, [3, 5], METHODS[:2])]
    told = list(itertools.product(("8", "3"), (3, 5), METHODS[:2]))
    assert [(*job.prompts, job.seed, method) for method, job in found] == told
    assert all(job.method == WORK.jobs[method].method for method, job in found)


def content(out: Path) -> dict[str, object]:
    """Every file of a batch, without times and what tells how often it was taken up."""
    found: dict[str, object] = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file() and p.name != ".lock"):
        name = str(file.relative_to(out))
        if file.name == "events.jsonl":
            events = [json.loads(line) for line in file.read_text().splitlines()]
            found[name] = [{**event, "seconds": 0} for event in events]
        elif file.name == "run.json":
            about = json.loads(file.read_text())
            found[name] = {k: v for k, v in about.items() if k not in ("created", "resumed")}
        else:
            found[name] = file.read_bytes()
    return found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("undisturbed")
    started = time.monotonic()
    report = run_batch(WORK, ITEMS, out, progress=False)
    assert (report.finished, report.failed, report.left) == (len(ITEMS), 0, 0)
    return content(out), time.monotonic() - started


@pytest.fixture(scope="module")
def many_undisturbed(tmp_path_factory):
    out = tmp_path_factory.mktemp("many")
    run_batch(WORK, MANY, out, progress=False)
    return content(out)


def in_child(work, *given) -> multiprocessing.Process:
    child = FORK.Process(target=work, args=given)
    child.start()
    return child


def go(out):
    run_batch(WORK, ITEMS, out, progress=False)


def go_into_write(out, number, pipe):
    """Stop in the middle of write `number`, with half of it in the file that is written first."""
    real, count = folder_module.replace, 0

    def half(path, data):
        nonlocal count
        count += 1
        if count == number:
            path.with_name(f".{path.name}.tmp").write_bytes(data[: len(data) // 2])
            pipe.send(path.name)
            time.sleep(60)
        real(path, data)

    folder_module.replace = half
    go(out)
    pipe.send("finished")


@pytest.mark.slow
def test_killed_at_many_moments_it_ends_with_the_same_bits(undisturbed, tmp_path):
    """SIGKILL, half of them at a time and half inside a write, at moments drawn by a seed."""
    (wanted, seconds), moments = undisturbed, 20
    draw = random.Random(0)
    kinds = ["write", "time"] * (moments // 2)
    draw.shuffle(kinds)
    inside = []
    for kind in kinds:
        if kind == "time":
            child = in_child(go, tmp_path)
            child.join(draw.uniform(0.0, 0.08) * seconds)
        else:
            here, there = FORK.Pipe()
            child = in_child(go_into_write, tmp_path, draw.randint(1, 12), there)
            assert here.poll(60)
            inside.append(here.recv())
        child.kill()
        child.join()
        assert child.exitcode in (-signal.SIGKILL, 0)
    assert sum(name != "finished" for name in inside) >= moments // 4
    resumed = [
        json.loads(file.read_text()).get("resumed", []) for file in tmp_path.rglob("run.json")
    ]
    assert max((k for found in resumed for k in found), default=0) > 0  # some on their way
    assert not (tmp_path / "summary.csv").exists() or content(tmp_path) == wanted
    go(tmp_path)
    leftovers = {name for name in content(tmp_path) if Path(name).name.endswith(".tmp")}
    found = content(tmp_path)
    assert {name: found[name] for name in found if name not in leftovers} == wanted


@pytest.mark.slow
def test_a_line_of_events_that_was_cut_off_is_written_again(undisturbed, tmp_path):
    steps = []

    class Stopped(BaseException):
        pass

    def stop_after(k):
        real = folder_module.RunFolder.step

        def step(self, found):
            real(self, found)
            steps.append(found.boundary.index)
            if len(steps) == k:
                raise Stopped

        return step

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(folder_module.RunFolder, "step", stop_after(5))
        with pytest.raises(Stopped):
            go(tmp_path)
    events = tmp_path / ITEMS[1].name / "events.jsonl"
    events.write_bytes(events.read_bytes()[:-40])
    go(tmp_path)
    assert content(tmp_path) == undisturbed[0]


def go_on_a_small_disk(out, limit, pipe):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        go(out)
        pipe.send("finished")
    except RunFolderError as error:
        pipe.send(str(error))


@pytest.mark.slow
def test_a_full_disk_stops_it_with_a_reason_and_it_recovers(undisturbed, tmp_path):
    for limit in (50, 4_000):  # the last is enough for the items of one method
        here, there = FORK.Pipe()
        child = in_child(go_on_a_small_disk, tmp_path, limit, there)
        message = here.recv()
        child.join()
        assert "cannot write" in message
        assert "too large" in message  # the system's own words
        assert "goes on where it was" in message
    go(tmp_path)
    assert content(tmp_path) == undisturbed[0]


def test_workers_are_one_as_many(undisturbed, tmp_path, monkeypatch):
    """Forked ones here, which need no imports; those that are killed below are spawned."""
    monkeypatch.setattr(workers, "get_context", lambda name: FORK)
    work = pickle.loads(pickle.dumps(WORK))  # as spawned ones get it
    report = run_batch(work, ITEMS, tmp_path, workers=2, progress=False)
    assert report.finished == len(ITEMS)
    assert content(tmp_path) == undisturbed[0]


@pytest.mark.slow
def test_what_is_finished_is_not_done_again_and_more_can_be_added(tmp_path, monkeypatch):
    run_batch(WORK, ITEMS[:3], tmp_path, progress=False)
    ran = []
    real = workers.Worker.do
    monkeypatch.setattr(workers.Worker, "do", lambda *given: ran.append(given[1]) or real(*given))
    said = []
    report = run_batch(WORK, ITEMS[:5], tmp_path, progress=False, announce=said.append)
    assert ran == ITEMS[3:5]
    assert said == ["3 of 5 are finished already"]
    assert report.finished == 5


def test_an_item_that_fails_says_why_and_stops_no_other(tmp_path, monkeypatch):
    prompts = [PromptEntry(0, "seven"), PromptEntry(1, "7")]
    items = items_of(prompts, [0], ["steering"])
    report = run_batch(WORK, items, tmp_path, progress=False)
    assert (report.finished, report.failed) == (1, 1)
    error = json.loads((tmp_path / items[0].name / "error.json").read_text())
    assert error["type"] == "InvalidArgument"
    assert "0 to 9, got 'seven'" in error["message"]
    with open(tmp_path / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["status"] for row in rows] == ["failed", "finished"]
    assert '"seven", steering, seed 0: InvalidArgument' in report.table.read_text()
    # It is tried again, and when it succeeds there is no error any more.
    monkeypatch.setattr(Digits, "read_prompts", lambda self, prompts: ("7",))
    report = run_batch(WORK, items, tmp_path, progress=False)
    assert (report.finished, report.failed) == (2, 0)
    assert not (tmp_path / items[0].name / "error.json").exists()


def test_other_settings_in_the_same_folder_are_refused_by_name(tmp_path):
    run_batch(WORK, ITEMS[:1], tmp_path, progress=False)
    (tmp_path / ITEMS[0].name / "result.json").unlink()
    other = work_of(particles="7")
    with pytest.raises(RunFolderError, match=r"differs in method.particles: 6 there, 7 here"):
        run_batch(other, ITEMS[:1], tmp_path, progress=False)


def test_what_other_settings_have_finished_is_not_taken_for_these(tmp_path):
    run_batch(WORK, ITEMS[:1], tmp_path, progress=False)
    other = work_of(particles="7")
    with pytest.raises(RunFolderError, match=r"differs in method.particles: 6 there, 7 here"):
        run_batch(other, ITEMS[:1], tmp_path, progress=False)


@pytest.mark.slow
def test_runs_of_other_settings_can_be_thrown_away(tmp_path):
    run_batch(WORK, ITEMS[:2], tmp_path, progress=False)
    kept = (tmp_path / ITEMS[0].name / "result.safetensors").read_bytes()
    other = Work({**WORK.jobs, "steering": work_of(["steering"], particles="7").jobs["steering"]})
    report = run_batch(other, ITEMS[:2], tmp_path, overwrite=True, progress=False)
    assert report.finished == 2
    assert read_run(tmp_path / ITEMS[1].name).particles == 7
    assert (tmp_path / ITEMS[0].name / "result.safetensors").read_bytes() == kept


def test_damaged_runs_can_be_thrown_away(tmp_path):
    run_batch(WORK, ITEMS[:2], tmp_path, progress=False)
    wanted = content(tmp_path)
    for item, name in zip(ITEMS, ("run.json", "result.json")):
        (tmp_path / item.name / name).write_text("{")
        report = run_batch(WORK, ITEMS[:2], tmp_path, progress=False)
        assert (report.finished, report.failed) == (1, 1)
        assert re.search(rf"{name}.*damaged", report.table.read_text())
        run_batch(WORK, ITEMS[:2], tmp_path, overwrite=True, progress=False)
        assert content(tmp_path) == wanted


def test_particles_that_the_children_do_not_divide_are_refused(tmp_path):
    with pytest.raises(InvalidArgument, match="children = 2 must divide particles = 7"):
        work_of(["beam"], particles="7")


def test_threads_are_those_asked_for(tmp_path):
    before = torch.get_num_threads()
    try:
        run_batch(work_of(threads=before + 1), ITEMS[:1], tmp_path, progress=False)
        assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def hold(out, pipe):
    with alone(out):
        pipe.send(os.getpid())
        time.sleep(60)


def test_two_batches_do_not_share_a_folder(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.argv", ["/bin/glass-flows", "batch", "prompts.txt"])
    here, there = FORK.Pipe()
    child = in_child(hold, tmp_path, there)
    who = f"process {here.recv()} on .*, `glass-flows batch prompts.txt`, since 20"
    with pytest.raises(FolderInUse, match=f"{who}.*stop it, or give another folder"):
        run_batch(WORK, ITEMS[:1], tmp_path, progress=False)
    child.kill()
    child.join()
    run_batch(WORK, ITEMS[:1], tmp_path, progress=False)


def test_what_a_task_does_is_refused_in_a_folder_that_another_process_holds(tmp_path, monkeypatch):
    """A task of Ray is this call, on whatever node."""
    monkeypatch.setattr(items, "_PATIENCE", 0.1)
    worker = pickle.loads(pickle.dumps(Worker))(WORK)
    here, there = FORK.Pipe()
    child = in_child(hold, tmp_path / ITEMS[0].name, there)
    who = here.recv()
    item, problem = worker.do(ITEMS[0], tmp_path)
    assert item == ITEMS[0] and f"process {who} on " in problem and "since 20" in problem
    child.kill()
    child.join()
    assert worker.do(ITEMS[0], tmp_path) == (ITEMS[0], None)
    assert worker.do(ITEMS[0], tmp_path) == (ITEMS[0], None)  # finished


@pytest.mark.slow
def test_a_ray_actor_leaves_a_folder_that_another_process_holds(tmp_path, monkeypatch):
    pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with alone(tmp_path / ITEMS[0].name):
        report = run_batch(WORK, ITEMS[:3], tmp_path, ray="local", progress=False)
    assert (report.finished, report.failed + report.left) == (2, 1)
    assert f"process {os.getpid()} on " in report.table.read_text()
    assert run_batch(WORK, ITEMS[:3], tmp_path, ray="local", progress=False).finished == 3


def test_unknown_methods_are_refused():
    with pytest.raises(UnknownName, match=r"'steer'.*steering"):
        work_of(["steer"])


@pytest.mark.slow
def test_the_command(tmp_path):
    (tmp_path / "prompts.txt").write_text("8\n../../x <script>\n")
    command = ["batch", str(tmp_path / "prompts.txt"), "--model", "digits", "--out"]
    command += [str(tmp_path / "out"), "--seeds", "0,2-3", "--method", "svdd", "--method", "plain"]
    command += ["--transitions", "2", "--steps", "2"]
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 1  # the second prompt is no digit
    assert "finished 6, failed 6, left 0" in result.output
    with open(tmp_path / "out" / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert {row["seed"] for row in rows} == {"0", "2", "3"}
    for row in rows[:6]:
        assert (tmp_path / "out" / row["image"]).exists()
    # A prompt never leaves the folder of the batch.
    assert {p.parent for p in tmp_path.rglob("run.json")} == {
        tmp_path / "out" / name for name in os.listdir(tmp_path / "out") if name[0] == "0"
    }
    bad = CliRunner().invoke(app, [*command, "--seeds", "3-1"])
    assert isinstance(bad.exception, InvalidArgument)


@pytest.mark.slow
def test_the_table_can_be_read_as_parquet(tmp_path):
    parquet = pytest.importorskip("pyarrow.parquet")
    run_batch(WORK, ITEMS[:2], tmp_path, progress=False)
    rows = parquet.read_table(tmp_path / "summary.parquet").to_pylist()
    assert [row["method"] for row in rows] == ["best-of-n", "steering"]
    assert rows[0]["reward"] < 0


@contextlib.contextmanager
def killing_one(out, processes):
    """SIGKILL for the first of `processes()`, once two items are finished; yields the killed."""
    killed = []

    def kill():
        deadline = time.monotonic() + 120
        while time.monotonic() < deadline and not killed:
            if len(list(out.glob("*/result.json"))) >= 2:
                for process in processes()[:1]:
                    os.kill(process, signal.SIGKILL)
                    killed.append(process)
            time.sleep(0.01)

    killer = threading.Thread(target=kill)
    killer.start()
    yield killed
    killer.join()


def ray_actors():
    found = subprocess.run(
        ["pgrep", "-f", "^ray::Worker"], capture_output=True, text=True, check=False
    )
    return list(map(int, found.stdout.split()))


@pytest.mark.slow
def test_a_ray_actor_that_is_killed_loses_and_repeats_nothing(
    many_undisturbed, tmp_path, monkeypatch
):
    pytest.importorskip("ray")
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with killing_one(tmp_path, ray_actors) as killed:
        report = run_batch(WORK, MANY, tmp_path, workers=2, ray="local", progress=False)
    assert len(killed) == 1
    assert report.finished == len(MANY)
    assert content(tmp_path) == many_undisturbed
    taken_up = [json.loads(f.read_text()).get("resumed", []) for f in tmp_path.rglob("run.json")]
    assert sum(map(len, taken_up)) <= 1  # the one that the actor was at


@pytest.mark.slow
def test_a_worker_that_is_killed_loses_nothing(many_undisturbed, tmp_path, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    with killing_one(tmp_path, lambda: [p.pid for p in FORK.active_children()]) as killed:
        report = run_batch(WORK, MANY, tmp_path, workers=2, progress=False)
    assert len(killed) == 1
    assert report.finished == len(MANY)
    assert content(tmp_path) == many_undisturbed


def test_workers_that_only_die_end_with_a_reason(tmp_path, monkeypatch):
    class Pool:
        def __init__(self, *given):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *error):
            return False

        def submit(self, *given):
            future = Future()
            future.set_exception(BrokenProcessPool("killed"))
            return future

    monkeypatch.setattr(workers, "ProcessPoolExecutor", Pool)
    with pytest.raises(RunFolderError, match=r"died 3 times.*fewer workers"):
        run_batch(WORK, ITEMS, tmp_path, workers=2, progress=False)


@pytest.mark.parametrize("text", ["", "3-1", "-1", "0-99999999999", "1.5", "9" * 30, "0-x"])
def test_seeds_that_are_none_are_refused(text):
    with pytest.raises(InvalidArgument, match="--seeds must be like"):
        read_seeds(text)
