"""Kills, full disks, damaged files, two commands at once: the right bits, or an error by name.

Some of each kind here; `faults.py` is run by hand for many (docs/runs.md).
"""

from __future__ import annotations

import itertools
import os
import random
import re
import shlex
import signal
import sys
import time
from contextlib import suppress

import faults
import pytest
import torch
from typer.testing import CliRunner

from cases import fast
from glass_flows.cli import app, main
from glass_flows.errors import FolderInUse, InvalidArgument
from glass_flows.folders import LOCKS, alone
from glass_flows.sit import SiT, SiTConfig, convert
from glass_flows.stops import keep, standing, stoppable

# Batches and refinement are killed by tests of their own, too (test_batch.py, test_refine.py).
QUICK = ("align",)
BY_HAND = ("also", "again", "compare shapes", "compare own", "audit")  # which others are like


def some(names):
    left = (name for name in names if name not in BY_HAND)
    return [pytest.param(name, marks=[pytest.mark.slow] * (name not in QUICK)) for name in left]


@pytest.fixture(scope="module")
def trials(tmp_path_factory):
    """Trials by command, each prepared once."""
    found: dict[str, faults.Trial] = {}

    def of(name: str) -> faults.Trial:
        if name not in found:
            found[name] = faults.Trial(name, tmp_path_factory.mktemp("faults"))
        return found[name]

    return of


@pytest.mark.parametrize("name", some(faults.COMMANDS))
def test_killed_at_a_file_or_at_a_time_it_ends_with_the_same_bits(name, trials):
    draw = random.Random(name)
    assert "killed" in {trials(name).killed(draw) for _ in range(4)}


@pytest.mark.slow
@pytest.mark.parametrize("name", some(faults.COMMANDS))
def test_a_full_disk_is_said_by_name_and_nothing_is_lost(name, trials):
    draw = random.Random(name)
    assert "refused" in {trials(name).full(draw) for _ in range(3)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["align digits", "init", pytest.param("budget", marks=pytest.mark.slow)]
)
def test_a_finished_run_given_again_draws_nothing(name, trials):
    trials(name).idle()


@pytest.mark.parametrize(
    ("name", "finished"),
    fast([("align", True)], itertools.product(["align", "batch", "train"], [False, True])),
)
def test_a_damaged_file_is_named_or_written_again(name, finished, trials):
    """In every way that there is, half of them while it runs."""
    draw = random.Random(name)
    ways = draw.sample(list(faults.DAMAGES), len(faults.DAMAGES))
    for how in ways[finished::2]:
        trials(name).damaged(draw, finished, how)


def test_of_two_commands_in_one_folder_one_runs_and_one_is_refused(tmp_path):
    wanted = {}
    for seed in (1, 2):
        faults.aligned(tmp_path / str(seed), seed)
        wanted[seed] = faults.content(tmp_path / str(seed))
    for i in range(2):
        faults.two_at_once(tmp_path / f"two{i}", wanted, random.Random(i))


def held(folder, pipe):
    with alone(folder):
        pipe.send(os.getpid())
        time.sleep(60)


WRITING = (  # every command that is given a folder
    "align --out OUT",
    "align --model shapes --prompt 'two blue squares' --out OUT",
    "sample --count 1 --out OUT",
    "batch P.txt --out OUT",
    "evaluate IMAGES --reward faults:ink --out OUT",
    "audit DDIMScheduler --out OUT",
    "compare --out OUT",
    "compare --model shapes --out OUT",
    "compare --model shapes --prompts P.txt --scale 1 --out OUT",
    "reproduce kernel --quick --out OUT",
    "train digits --out OUT",
    "train digits-turbo --out OUT",
    "train shapes --out OUT",
    "train clip --out OUT",
    "convert reward hps P.txt OUT",
)


def test_no_command_writes_into_a_folder_that_another_process_holds(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "P.txt").write_text("8\n")
    here, there = faults.FORK.Pipe()
    monkeypatch.setattr("sys.argv", ["glass-flows", "align"])
    child = faults.FORK.Process(target=held, args=(tmp_path / "OUT", there))
    child.start()
    who = f"process {here.recv()} on .*, `glass-flows align`, since 20.* writes into 'OUT': wait"
    faults.wait_for((tmp_path / "OUT" / LOCKS[1]).exists)
    faults.evaluated(tmp_path / "a" / "b")  # makes images
    (tmp_path / "images").rename("IMAGES")
    tiny = SiTConfig(4, 2, 4, hidden_size=8, depth=1, heads=4, classes=2, learned_sigma=False)
    torch.save(SiT(tiny).state_dict(), "sit.pt")
    for command in WRITING:
        found = CliRunner().invoke(app, shlex.split(command))
        assert isinstance(found.exception, FolderInUse), (command, found.output, found.exception)
        assert re.match(who, str(found.exception)), command
    with pytest.raises(FolderInUse, match=who):
        convert("sit.pt", "OUT", heads=4)
    assert {file.name for file in (tmp_path / "OUT").iterdir()} == set(LOCKS)
    child.kill()
    child.join()


@pytest.mark.parametrize(
    "number", [signal.SIGKILL, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)]
)
def test_workers_end_with_their_parent(number, tmp_path):
    faults.orphaned(tmp_path / "out", number, random.Random(number), faults.FORK)


def test_training_goes_on_with_as_many_threads_only(tmp_path):
    out = tmp_path / "out"
    assert faults.run(faults.trained, out, faults.Faults(9))[0] == "killed"
    before = torch.get_num_threads()
    torch.set_num_threads(before + 1)
    try:
        with pytest.raises(InvalidArgument, match=f"threads: {before} there, {before + 1} here"):
            faults.trained(out)
    finally:
        torch.set_num_threads(before)
    faults.trained(out)


# --- Ctrl-C and SIGTERM ---------------------------------------------------------------------------


def said(work, tmp_path, number, when):
    """What a child prints that gets a signal, its exit code, and how long it takes."""
    with open(tmp_path / "said", "wb") as file:

        def go():
            sys.stderr = open(file.fileno(), "w", encoding="utf-8", buffering=1)  # noqa: SIM115
            work()

        child = faults.FORK.Process(target=go)
        child.start()
        faults.wait_for(when)
        os.kill(child.pid, number)
        began = time.monotonic()
        child.join()
    return (tmp_path / "said").read_text().strip(), child.exitcode, time.monotonic() - began


@pytest.mark.parametrize(
    ("number", "command", "kept"),
    [
        pytest.param(
            signal.SIGINT,
            "align --particles 4 --transitions 400",
            r"kept up to boundary \d+ of 400",
            marks=pytest.mark.slow,
        ),
        (
            signal.SIGTERM,
            "batch PROMPTS --seeds 0-999",
            r"kept (up to boundary \d of 6, )?\d+ of 1000 items",
        ),
    ],
)
def test_a_signal_ends_a_command_in_one_line(number, command, kept, tmp_path, monkeypatch):
    (tmp_path / "prompts.txt").write_text("8\n")
    given = command.replace("PROMPTS", str(tmp_path / "prompts.txt")).split()
    out = tmp_path / "out"
    monkeypatch.setattr("sys.argv", ["glass-flows", *given, "--out", str(out)])
    there = "runs/*/events.jsonl" if given[0] == "align" else "*/result.json"
    text, code, seconds = said(main, tmp_path, number, lambda: list(out.glob(there)))
    assert code == 128 + number
    assert seconds < 2
    last = text.splitlines()[-1]
    assert "Traceback" not in text
    assert re.fullmatch(f"stopped: {kept}.*; the same command goes on there", last), text


def test_a_signal_ends_what_does_not_listen(tmp_path):
    def deaf():
        with stoppable():
            keep("deaf", "half of it")
            (tmp_path / "began").touch()
            while True:
                with suppress(BaseException):
                    time.sleep(60)

    text, code, seconds = said(deaf, tmp_path, signal.SIGTERM, (tmp_path / "began").exists)
    assert text == "stopped: kept half of it; the same command goes on there"
    assert code == 128 + signal.SIGTERM
    assert seconds < 2


def test_where_it_was_overwritten_the_command_goes_on_without_that(monkeypatch):
    monkeypatch.setattr("glass_flows.stops._kept", {"one": "half of it"})
    monkeypatch.setattr(sys, "argv", ["glass-flows", "align", "--out", "out"])
    assert standing() == "kept half of it; the same command goes on there"
    monkeypatch.setattr(sys, "argv", [*sys.argv, "--overwrite"])
    assert standing() == "kept half of it; the same command goes on there, without --overwrite"
