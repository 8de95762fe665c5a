"""What one looks at: results as text, in a notebook, as a table, as files and as a page."""

from __future__ import annotations

import json
import math
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from PIL import Image
from test_report import ATTACK, Page

from glass_flows.errors import InvalidArgument, RunFolderError
from glass_flows.images import ImageResult
from glass_flows.runs import read_run
from glass_flows.runs import result as result_file
from glass_flows.steering import Costs, RefinedResult, SearchResult, SteeringResult

P, N, K = 2, 4, 3
REWARDS = torch.tensor([[1.0, 3.0, -math.inf, 2.0], [0.5, 0.25, 4.0, -1.0]], dtype=torch.float64)
PARENTS = torch.arange(N).repeat(K, P, 1)
PARENTS[1] = torch.tensor([1, 1, 3, 3])
SETTINGS = {"pipeline": "Tiny", "method": {"type": "steering", "scale": 5}, "seed": 7}


def drawn(P=P, **settings):
    """P prompts of four images of one colour each, resampled once."""
    weights = torch.zeros(P, N, dtype=torch.float64)
    result = SteeringResult(
        torch.zeros(P, N, 2), REWARDS[:P], PARENTS[:, :P], Costs(40, reward_evaluations=16),
        log_weights=weights, ess=torch.full((K + 1, P), 3.5), log_evidence=weights[:, 0],
        shares=torch.ones(K + 1, P), biases=(ATTACK,), twist_shares=torch.zeros(K, P),
    )  # fmt: skip
    rows = [[Image.new("RGB", (4, 4), (60 * p, 40 * n, 9)) for n in range(N)] for p in range(P)]
    prompts = (ATTACK, "two")[:P]
    return ImageResult(rows, REWARDS[:P], prompts, result, {**SETTINGS, **settings})


def test_images_are_in_one_row_and_the_best_are_named():
    one, two = drawn(1), drawn()
    assert one.images == one.rows[0]
    assert two.images == [*two.rows[0], *two.rows[1]]
    assert one.image is one.rows[0][1]
    assert two.best == [two.rows[0][1], two.rows[1][2]]
    assert two.seed == 7
    with pytest.raises(InvalidArgument, match=r"there are 2: result\.best is"):
        _ = two.image


def test_it_prints_in_a_few_lines_without_tensors_or_a_terminals_commands():
    text = repr(drawn())
    assert len(text.splitlines()) == 5
    assert text.splitlines()[0].startswith('steering: 4 images for each of 2 prompts, "<script>')
    assert text.splitlines()[0].endswith("'two', seed 7")
    assert "best reward 3, 4; mean" in text
    assert "ESS at the end 3.5 of 4, log-evidence 0" in text
    assert "cost: 40 network evaluations, 16 reward evaluations" in text
    assert "not exactly weighted: <script>" in text
    assert "tensor" not in text
    assert "\x1b" not in text


def test_results_of_tensors_print_in_a_few_lines():
    found = drawn().result
    assert repr(found).splitlines()[0] == "SteeringResult: 2 populations of 4 samples (2,)"
    search = SearchResult(found.samples, found.rewards, found.ancestry, Costs(), stopped=2)
    assert repr(search).splitlines()[2:] == [
        "cost: nothing",
        "stopped at boundary 2: the samples are its clean estimates",
    ]
    held = {name: value for name, value in vars(found).items() if name != "twist_shares"}
    moved = RefinedResult(
        **held, acceptance=torch.full((K, P), 0.5), move_times=torch.full((K,), 0.4)
    )
    assert "3 moves, accepted 50%, 50%, 50%" in repr(moved)
    assert len(repr(moved).splitlines()) == 6


def test_in_a_notebook_the_best_stands_first_and_text_stays_text():
    page = Page(drawn()._repr_html_())
    alts = [image["alt"] for image in page.all("img")]
    assert alts[:3] == ["particle 1, reward 3", "particle 3, reward 2", "particle 0, reward 1"]
    assert alts[4] == "particle 2, reward 4"
    assert all(image["src"].startswith("data:image/png;base64,") for image in page.all("img"))
    assert not page.all("script")
    assert page.text.count("<script>") == 2  # of the prompt, and of the bias
    # The only boundary where anybody was resampled, and the end.
    assert len(page.all("circle")) == P * 2 * N
    assert [line["stroke"] for line in page.all("line")].count("#0a7f4f") == P
    many = replace(drawn(1), rows=[[Image.new("RGB", (900, 900))] * N])
    assert len(many._repr_html_()) < 20_000


def test_the_table_is_a_list_of_lines_best_first():
    table = drawn().table()
    assert [line["particle"] for line in table] == [1, 3, 0, 2, 2, 0, 1, 3]
    assert table[0] == {
        "prompt": ATTACK, "particle": 1, "reward": 3.0, "log_weight": 0.0, "ancestor": 1, "seed": 7,
    }  # fmt: skip
    lines = repr(table).splitlines()
    assert len(lines) == 1 + P * N
    assert len({len(line) for line in lines}) == 1
    assert "\x1b" not in repr(table)
    assert len(Page(table._repr_html_()).all("tr")) == 1 + P * N
    assert repr(type(table)()) == "(nothing)"


def test_a_saved_result_is_a_runs_folder_whose_first_image_is_the_best(tmp_path):
    result = drawn()
    files = result.save(tmp_path / "out")
    assert [file.name for file in files][:2] == ["000-00.png", "000-01.png"]
    with Image.open(files[0]) as image:
        assert image.tobytes() == result.rows[0][1].tobytes()
        assert image.text["prompt"] == ATTACK
        assert json.loads(image.text["settings"]) == result.settings
    told = json.loads((tmp_path / "out" / "result.json").read_text())
    schema = Path(result_file.__file__).with_name("result.schema.json").read_text()
    jsonschema.validate(told, json.loads(schema))
    run = read_run(tmp_path / "out")
    assert run.status == "finished"
    assert run.samples[1][2].file == "001-00.png"
    assert run.rewards == REWARDS.tolist()
    assert result.save(tmp_path / "out") == files
    with pytest.raises(RunFolderError, match="seed: 7 there, 8 here"):
        drawn(seed=8).save(tmp_path / "out")


def test_a_report_of_a_result_asks_for_no_folder(tmp_path):
    result, file = drawn(), tmp_path / "new" / "r.html"
    assert result.report(file, plain=drawn()) == file
    page = Page(file.read_text(encoding="utf-8"))
    assert not page.all("script")
    assert "steering scale=5" in page.text
    assert page.all("img")[0]["alt"].startswith("best plain image")
    assert len(page.all("img")) == 2 * P * N
    # Boundaries where nothing was written down and nobody resampled are left out.
    assert len(page.all("g", "node")) == P * 2 * N
    edges = [a["data-edge"] for a in page.all("path", "edge")]
    assert sorted(edges[:N]) == ["1-1 3-0", "1-1 3-1", "1-3 3-2", "1-3 3-3"]
    with pytest.raises(InvalidArgument, match="plain must be of the same prompts"):
        result.report(file, plain=drawn(1))


@pytest.mark.slow
def test_a_report_leaves_images_as_they_are(tmp_path):
    """It shows them smaller."""
    result = drawn(1)
    large = [[image.resize((1000, 900)) for image in row] for row in result.rows]
    result = replace(result, rows=large)
    result.report(tmp_path / "r.html", plain=result)
    assert {image.size for image in result.images} == {(1000, 900)}
