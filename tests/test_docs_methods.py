"""The page "which method?": the two spellings of a row are one method, sampler and beginning."""

from __future__ import annotations

import re
import shlex
from dataclasses import fields
from pathlib import Path

import pytest

pytest.importorskip("typer")  # of the extra "cli"
pytest.importorskip("diffusers")

import typer

from glass_flows import Sampler
from glass_flows.cli import app
from glass_flows.diffusers import pipeline as module
from glass_flows.jobs.spelling import sampler_for
from glass_flows.settings import build
from glass_flows.steering.methods import method_of

PAGE = (Path(__file__).parent.parent / "docs" / "methods.md").read_text()
ROWS = re.findall(r"^\| (.*?) \| .* \| (`-.*?`) \| (`.*?`) \|$", PAGE, re.MULTILINE)
ROWS = [(wish, *(text.replace("`", "") for text in both)) for wish, *both in ROWS]
ALIGN = typer.main.get_command(app).commands["align"]


def of_command(options):
    """What the options of `glass-flows align` come to."""
    given = ALIGN.make_context("align", ["--out", "x", *shlex.split(options)]).params
    given = {name: value for name, value in given.items() if value is not None}
    name = given.get("method") or "steering"
    texts = {"guidance" if k == "reward_guidance" else k: str(v) for k, v in given.items()}
    own = {one.name for one in fields(method_of(name, {}))} & set(texts)
    method = method_of(name, {}, {key: texts[key] for key in own})
    sampled = {one.name: texts[one.name] for one in fields(Sampler) if one.name in texts}
    init = [str(file) for file in given.get("init") or ()]
    return method, sampler_for(method, build(Sampler, {}, sampled), sampled), init


def of_python(arguments, monkeypatch):
    monkeypatch.setattr(module, "run_pipeline", lambda asked, *rest: asked)
    asked = eval(f"module.steer_pipeline(None, 'a cat', len, {arguments})")
    return asked.method, asked.sampler, [] if asked.init is None else [asked.init]


def test_every_row_has_both():
    table = PAGE[PAGE.index("|-|") :].partition("\n\n")[0]
    assert len(ROWS) == table.count("\n")
    assert len(ROWS) > 8


@pytest.mark.parametrize(("wish", "options", "arguments"), ROWS, ids=[row[0] for row in ROWS])
def test_rows_say_the_same_twice(wish, options, arguments, monkeypatch):
    assert of_command(options) == of_python(arguments, monkeypatch)
