"""What the command line says of somebody's own errors, of full disks, and what it leaves alone."""

from __future__ import annotations

import errno
import json
import os
import sys
from pathlib import Path

import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import glass_flows.cli
from glass_flows.errors import InvalidArgument, check_text, shown
from glass_flows.files import replace
from glass_flows.jobs.job import Loading
from glass_flows.jobs.pictures import save_png
from glass_flows.runs import RunFolder, clear_run
from glass_flows.steering import Costs, SearchResult

REWARD = """\
def helper(z):
    return z.no_such_attribute


def mine(z):
    return helper(z)
"""


@pytest.fixture
def command(tmp_path, monkeypatch, capsys):
    """Run a command in a folder of its own: its exit code, and the lines of its errors."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments):
        monkeypatch.setattr(sys, "argv", ["glass-flows", *map(str, arguments)])
        with pytest.raises(SystemExit) as stopped:
            glass_flows.cli.main()
        return stopped.value.code, capsys.readouterr().err.splitlines()

    return run


def finish(folder, P=1, N=2, job=None):
    record = RunFolder(folder, job or {"model": "digits"})
    files = [[f"{p:03}-{n:02}.png" for n in range(N)] for p in range(P)]
    for name in (name for row in files for name in row):
        Image.new("RGB", (8, 8)).save(Path(folder) / name)
    ancestry = torch.zeros(0, P, N, dtype=torch.long)
    record.finish(SearchResult(torch.zeros(P, N, 2), torch.zeros(P, N), ancestry, Costs()), files)


def test_a_bug_of_a_reward_is_shown_where_it_is(command, tmp_path, monkeypatch):
    from glass_flows.jobs.models import Digits
    from glass_flows.rewards.named import load_reward

    (tmp_path / "bugs_of_mine.py").write_text(REWARD)
    monkeypatch.setattr(Digits, "reward", lambda self, job: load_reward("bugs_of_mine:mine"))
    (tmp_path / "p.txt").write_text("8\n")
    code, _ = command("batch", "p.txt", "--out", "out", "--transitions", "1")
    assert code == 1
    (error,) = tmp_path.glob("out/*/error.json")
    told = json.loads(error.read_text())
    assert told["type"] == "RewardError"
    assert told["frames"] == [
        f"{tmp_path}/bugs_of_mine.py:6 in mine: return helper(z)",
        f"{tmp_path}/bugs_of_mine.py:2 in helper: return z.no_such_attribute",
    ]
    code, lines = command("align", "--out", "more", "--transitions", "1", "--populations", "2")
    for words in (["runs", "show"], ["report"]):
        told_of = CliRunner().invoke(glass_flows.cli.app, [*words, str(error.parent)])
        assert told_of.exit_code == 0
        page = error.parent / "report.html"
        text = "".join((page.read_text() if page.exists() else told_of.output).split())
        assert all("".join(line.split()) in text for line in told["frames"])
    assert code == 2
    assert lines[0].startswith("error: the reward 'mine' raised AttributeError")
    assert [line.strip() for line in lines[1:]] == told["frames"]


def test_an_error_of_ours_has_no_frames(command):
    code, lines = command("align", "--out", "out", "--particles", "0")
    assert (code, len(lines)) == (2, 1)


@pytest.mark.parametrize(
    ("text", "says"),
    [("def f(:\n", "SyntaxError"), ("x = 1\n1 / 0\n", "ZeroDivisionError"), ("exit(3)", "Exit")],
)  # fmt: skip
def test_a_module_that_cannot_be_imported_is_named(command, tmp_path, text, says):
    name = f"module_{says.lower()}"
    (tmp_path / f"{name}.py").write_text(text)
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    code, lines = command("evaluate", "images", "--out", "out", "--reward", f"{name}:f")
    assert code == 2
    assert f"cannot import the reward's module '{name}'" in lines[0] and says in lines[0]
    assert [line for line in lines[1:] if f"{name}.py:2 in <module>: 1 / 0" in line] == (
        lines[1:] if says == "ZeroDivisionError" else []
    )
    assert not (tmp_path / "out").exists()


# --- files that cannot be written or read ---------------------------------------------------------


@pytest.fixture
def full(monkeypatch):
    """A disk that is full: nothing longer than an empty file can be written."""

    def fail(*arguments, **given):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for place in ("glass_flows.files.os.replace", "PIL.Image.Image.save"):
        monkeypatch.setattr(place, fail)


FEW = ["--transitions", "1", "--steps", "1"]
WRITERS = {
    "sample": ["sample", "--out", "out", "--count", "2", *FEW],
    "train": ["train", "digits", "--out", "out", "--steps", "1", "--batch", "2",
              "--classifier-steps", "1"],
    "evaluate": ["evaluate", "images", "--out", "out", "--reward", "grey_of_mine:f"],
    "reproduce": ["reproduce", "posterior", "--quick", "--out", "out"],
    "align": ["align", "--out", "out", "--populations", "2", "--particles", "2", *FEW],
    "report": ["report", "run", "--out", "out.html"],
}  # fmt: skip


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow] * (n == "reproduce")) for n in WRITERS]
)
def test_a_full_disk_is_one_line(name, command, tmp_path, request, monkeypatch):
    monkeypatch.setattr("glass_flows.research.train_digits.SAMPLES", 20)  # of the model card
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "grey_of_mine.py").write_text("def f(z):\n    return z.mean((1, 2, 3))\n")
    finish(tmp_path / "run")
    request.getfixturevalue("full")
    code, lines = command(*WRITERS[name])
    assert code == 2
    assert len([line for line in lines if line.startswith("error: ")]) == 1, lines
    assert "No space left on device" in "".join(lines)


@pytest.mark.parametrize("name", ["sample", "train", "evaluate", "reproduce", "align"])
def test_a_file_where_the_folder_should_be_is_one_line(name, command, tmp_path):
    (tmp_path / "images").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "images" / "a.png")
    (tmp_path / "grey_of_mine.py").write_text("def f(z):\n    return z.mean((1, 2, 3))\n")
    (tmp_path / "out").write_text("mine")
    code, lines = command(*WRITERS[name])
    assert (code, len(lines)) == (2, 1)
    assert (tmp_path / "out").read_text() == "mine"


@pytest.mark.parametrize("kind", ["link", "folder", "pipe"])
def test_only_regular_files_are_replaced(kind, command, tmp_path):
    """A report in the place of /dev/null would be the end of it."""
    target = tmp_path / "target"
    (tmp_path / "file").write_text("mine")
    make = {"link": lambda: target.symlink_to("file"), "folder": target.mkdir,
            "pipe": lambda: os.mkfifo(target)}  # fmt: skip
    make[kind]()
    before = target.lstat()
    finish(tmp_path / "run")
    code, lines = command("report", "run", "--out", target)
    assert (code, len(lines)) == (2, 1)
    assert "not a regular file" in lines[0]
    assert target.lstat().st_mode == before.st_mode and (tmp_path / "file").read_text() == "mine"
    with pytest.raises(OSError, match="not a regular file"):
        replace(target, b"x")


def test_overwriting_takes_away_what_the_run_would_have_written(tmp_path):
    finish(tmp_path, P=2, N=3)
    (tmp_path / "estimates").mkdir()
    mine = ["notes.txt", "000-07.png", "holiday.png", "estimates/holiday.png", "report.html"]
    for name in (*mine, "estimates/000.png", "best-first.png"):
        (tmp_path / name).write_bytes(b"x")
    clear_run(tmp_path)
    left = {str(file.relative_to(tmp_path)) for file in tmp_path.rglob("*") if file.is_file()}
    assert left == {*mine, ".lock"}


def test_a_mistake_that_shows_late_leaves_no_failed_run(tmp_path):
    """As a size that a pipeline refuses; what fails on its way stays, to be gone on with."""
    record = RunFolder(tmp_path / "a", {"seed": 0})
    with pytest.raises(InvalidArgument), record.failures():
        raise InvalidArgument("height must be divisible by 16")
    assert not (tmp_path / "a").exists()
    record = RunFolder(tmp_path / "b", {"seed": 0})
    with pytest.raises(RuntimeError), record.failures():
        raise RuntimeError("the network has burnt down")
    assert (tmp_path / "b" / "error.json").exists()


# --- what is said ---------------------------------------------------------------------------------


def test_devices_that_are_not_there_are_refused_by_name(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert Loading().home == "cpu"
    for device in ("foo", "cuda:99", "cpu:x"):
        with pytest.raises(InvalidArgument, match="device"):
            _ = Loading(device=device).home


def test_long_things_are_cut_in_messages():
    assert shown("a cat") == "'a cat'"
    assert len(shown("x" * 8000)) < 130 and "(8,002 characters)" in shown("x" * 8000)


def test_half_a_character_is_no_text():
    assert check_text("the prompt", "a 🐈") == "a 🐈"
    with pytest.raises(InvalidArgument, match="the prompt holds half of a character"):
        check_text("the prompt", "a cat \ud83d on a mat")


def test_a_sheet_is_marked_as_one(tmp_path):
    save_png(Image.new("RGB", (4, 4)), tmp_path / "x.png", seed=0)
    with Image.open(tmp_path / "x.png") as image:
        assert image.text["glass-flows sheet"] == "of several images"
