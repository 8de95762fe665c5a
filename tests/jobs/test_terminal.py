"""What the command line prints fits a terminal: lines end between words, whatever the width."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path

import pytest

pytest.importorskip("typer")  # of the extra "cli"

import typer.rich_utils
from typer.testing import CliRunner

import glass_flows.cli
from cases import first
from glass_flows import Sampler, Steering, steer
from glass_flows.cli import app
from glass_flows.cli.options import console, fitting, print_page, print_table
from glass_flows.jobs import Job, digits_denoiser
from glass_flows.runs import RunFolder
from glass_flows.worlds.digits import IMAGE

FRAME = str.maketrans("│╭╮╰╯─:", " " * 7)


def words(text):
    return set(text.translate(FRAME).split())


@pytest.fixture(params=[80, 60])
def width(request, monkeypatch):
    monkeypatch.setattr(console, "_width", request.param)
    return request.param


@pytest.mark.slow
def test_runs_are_told_in_whole_words(width, tmp_path):
    names = [f"00000-two-blue-squares-s{seed}-steering" for seed in range(3)]
    for seed, name in enumerate(names):
        job = Job(
            "digits", Steering(4, scale=2.0 + seed), Sampler(2, 1), reward="class:8", seed=seed
        )
        folder = RunFolder(tmp_path / name, job.as_json(), title="two blue squares on white")
        result = steer(
            digits_denoiser(), lambda z: z.mean((1, 2, 3)), job.method, job.sampler,
            shape=IMAGE, seed=seed, record=folder,
        )  # fmt: skip
        folder.finish(result)
    for command, head in (("list", "evaluations status"), ("compare", "method.scale evaluations")):
        shown = CliRunner().invoke(app, ["runs", command, str(tmp_path)])
        assert shown.exit_code == 0, shown.output
        assert {*head.split(), *names} <= words(shown.output)
    shown = CliRunner().invoke(app, ["runs", "show", str(tmp_path / names[0])]).output
    assert {"boundary", "log-evidence", "evaluations", "seconds"} <= words(shown)


HEADS = (
    "method reward judge ESS evals s",
    "method reward gain wins,_% apart evals s GiB",
    "method judge,_% gain reward Fréchet diversity passes",
)


@pytest.mark.parametrize("head", HEADS)
def test_tables_of_figures_are_told_in_whole_words(head, width, capsys):
    names = [name.replace("_", " ") for name in head.split()]
    rows = [
        [method, *(["100.0% ± 50.0%", "-31.25 ± 10.50", "2.87/4"] * 3)[: len(names) - 1]]
        for method in ("best-of-n: ODE", "steering: GLASS, Algorithm 1", "refinement: no exchange")
    ]
    print_table(names, rows, "class:8, 256 populations (± one standard error)")
    shown = capsys.readouterr().out
    assert words(" ".join([*names, *chain(*rows)])) <= words(shown)
    assert max(map(len, shown.splitlines())) <= width


@pytest.mark.slow
def test_any_table_keeps_its_words_and_its_width(monkeypatch, capsys):
    rng = random.Random(0)
    shapes = set()
    for _ in range(150):
        width, columns = rng.randint(20, 100), rng.randint(1, 8)
        monkeypatch.setattr(console, "_width", width)
        word = lambda: "".join(rng.choices("abcdé-/.", k=rng.randint(1, 14)))  # noqa: E731
        texts = [
            [" ".join(word() for _ in range(rng.randint(1, 3))) for _ in range(columns)]
            for _ in range(rng.randint(2, 4))
        ]
        print_table(texts[0], texts[1:])
        shown = capsys.readouterr().out
        shapes.add(fitting(texts, width - 2 * columns + 1) is None)
        assert words(" ".join(chain(*texts))) <= words(shown), (width, texts, shown)
        assert max(map(len, shown.splitlines())) <= width, (width, texts, shown)
    assert shapes == {True, False}


def test_a_column_is_narrowed_only_where_it_must_be():
    lines = [["a", "two words"], ["b c", "x"]]
    assert fitting(lines, 12) == [3, 9]
    assert fitting(lines, 8) == [3, 5]
    assert fitting(lines, 6) == [1, 5]
    assert fitting(lines, 5) is None


def test_a_page_is_shown_as_tables(width, capsys):
    rows = "".join(f"| method {i} | {i}.25 ± 0.5 | {'evaluations ' * 5}|\n" for i in range(2))
    head = "| method | reward | evaluations |\n| --- | --- | --- |"
    print_page(f"What it is.\n\n{head}\n{rows}\nEnd.\n")
    shown = capsys.readouterr().out
    assert {"What", "method", "evaluations", "1.25", "End."} <= words(shown)
    assert "|" not in shown
    assert max(map(len, shown.splitlines())) <= width


def test_all_tables_are_printed_by_one_function():
    files = Path(glass_flows.cli.__file__).parent.glob("*.py")
    assert [f.name for f in files if "rich.table" in f.read_text("utf-8")] == ["options.py"]


@pytest.mark.parametrize("command", first(["align", "batch", "compare", "train digits"]))
def test_help_keeps_its_words_at_80_columns(command, monkeypatch):
    def shown(width):
        monkeypatch.setattr(typer.rich_utils, "MAX_WIDTH", width)
        return words(CliRunner().invoke(app, [*command.split(), "--help"]).output)

    wide = shown(1000)
    assert len(wide) > 60
    assert shown(80) <= wide
