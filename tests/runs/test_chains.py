"""Recorded refinement: moves, acceptance, the best so far, and a page that tells of them."""

from __future__ import annotations

import io
import json
import math
import shutil

import pytest
import torch
from PIL import Image
from rich.console import Console
from test_report import page_of
from typer.testing import CliRunner

from glass_flows import refine
from glass_flows.cli import app
from glass_flows.errors import RunFolderError
from glass_flows.folders import LOCKS
from glass_flows.jobs import digits_denoiser
from glass_flows.jobs.pictures import digit_image
from glass_flows.rewards import ClassReward
from glass_flows.runs import RunFolder, clear_run, read_run
from glass_flows.worlds.digits import IMAGE, load_digits_classifier

K, N, P = 5, 6, 2


class Killed(Exception):
    pass


def run(folder, stop=None, **changes):
    """Steps and result of a recorded run; killed after a boundary if it is to `stop`."""
    steps = []

    def look(step):
        steps.append((step, step.boundary.x.clone()))
        if step.boundary.index == stop:
            raise Killed

    record = RunFolder(folder, {"method": "refine"})
    record.pictures = lambda z: [digit_image(image) for image in z]
    result = refine(
        digits_denoiser(), ClassReward(load_digits_classifier("reward"), 8),
        **{"shape": IMAGE, "particles": N, "populations": P, "moves": K, "move_times": (0.2, 0.6),
           "scale": 4.0, "seed": 3, "ess_threshold": 0.9, "steps": 2, "record": record,
           "progress": False, "on_boundary": look, **changes},
    )  # fmt: skip
    record.finish(result)
    return [step for step, _ in steps], result


@pytest.fixture(scope="module")
def known(tmp_path_factory):
    folder = tmp_path_factory.mktemp("chains") / "one"
    return folder, *run(folder)


def test_a_sheet_shows_what_was_proposed(known):
    folder, steps, _ = known
    for step in steps:
        sheet = Image.open(folder / "estimates" / f"{step.boundary.index:03}.png").convert("L")
        for i, z in enumerate(step.boundary.estimate.untilted):
            p, n = divmod(i, N)
            tile = sheet.crop((8 * n, 8 * p, 8 * n + 8, 8 * p + 8))
            assert tile.tobytes() == digit_image(z).tobytes()


def test_the_events_tell_of_moves(known):
    folder, steps, _ = known
    events = read_run(folder).events
    for event, step in zip(events, steps, strict=True):
        assert event["accepted"] == step.accepted.tolist()
        assert event["proposed"] == step.proposed.tolist()
        assert event["time"] == step.time
    assert [step.time for step in steps] == [0.2, 0.6, 0.2, 0.6, 0.2, 1.0]
    assert any(step.resampled.any() for step in steps)
    assert not torch.stack([step.accepted for step in steps]).all()


def test_chains_are_followed_through_rejections_and_exchanges(known):
    """Against the states themselves, as a boundary has them before any exchange."""
    folder, steps, _ = known
    record = read_run(folder)
    for p, chains in enumerate(record.chains):
        for k, step in enumerate(steps[:-1]):  # at the end its rewards are of what is returned
            assert chains.rewards[k] == step.rewards[p].tolist()
        seen = torch.stack(
            [torch.where(s.accepted, s.proposed, -math.inf)[p].amax() for s in steps]
        )
        assert chains.best == seen.cummax(0).values.tolist()


def best_seen(steps, p):
    """The proposal of the highest reward that was accepted up to each boundary."""
    found = []
    for step in steps:
        row = torch.where(step.accepted, step.proposed, -math.inf)[p]
        n = int(row.argmax())
        if not found or row[n] > found[-1][0]:
            found.append((float(row[n]), digit_image(step.boundary.estimate.untilted[p * N + n])))
        else:
            found.append(found[-1])
    return found


@pytest.mark.slow
def test_the_best_so_far_is_on_disk_after_every_move(known, tmp_path):
    _, steps, _ = known
    for stop in range(K):
        with pytest.raises(Killed):
            run(tmp_path / str(stop), stop)
        for p in range(P):
            reward, picture = best_seen(steps, p)[stop]
            with Image.open(tmp_path / str(stop) / f"best-{p:03}.png") as found:
                assert found.text["reward"] == repr(reward)
                assert found.convert("L").tobytes() == picture.tobytes()


def test_taken_up_again_it_leaves_the_same_files(known, tmp_path):
    folder, _, _ = known
    names = [f"best-{p:03}.png" for p in range(P)]
    names += [f"estimates/{k:03}.png" for k in range(K + 1)]
    for stop in (0, 2, 4):
        with pytest.raises(Killed):
            run(tmp_path / str(stop), stop)
        run(tmp_path / str(stop))
        for name in names:
            assert (tmp_path / str(stop) / name).read_bytes() == (folder / name).read_bytes()
    clear_run(tmp_path / "2")
    assert not [p for p in (tmp_path / "2").rglob("*") if p.is_file() and p.name not in LOCKS]


def test_what_is_rejected_is_dim_and_the_way_to_the_best_is_marked(known, tmp_path):
    folder, steps, _ = known
    nodes = page_of([folder], tmp_path / "r.html").all("g", "node")
    assert len(nodes) == P * (K + 1) * N
    kinds = [node["class"].split()[1:] for node in nodes]
    for i, kind in enumerate(kinds):
        p, k, n = i // ((K + 1) * N), i // N % (K + 1), i % N
        assert ("rejected" in kind) == (not steps[k].accepted[p, n])
    for p in range(P):
        own = kinds[p * (K + 1) * N : (p + 1) * (K + 1) * N]
        line = [own[k * N : (k + 1) * N] for k in range(K + 1)]
        slots = [[n for n in range(N) if "best" in column[n]] for column in line]
        last = max(k for k in range(K + 1) if slots[k])
        (n,) = slots[last]
        assert float(steps[last].proposed[p, n]) == best_seen(steps, p)[-1][0]
        for k in range(last):  # each descends from the one before
            assert slots[k] == [int(steps[k].ancestors[p, slots[k + 1][0]])]


def test_the_page_speaks_of_moves(known, tmp_path):
    page = page_of([known[0]], tmp_path / "r.html")
    for said in ("noised to", "exchanged", "Over the moves", "Move by move", "best seen"):
        assert said in page.text
    for wrong in ("t = 1.00", "boundary", "Boundary", "Family tree", "clean estimate"):
        assert wrong not in page.text
    heads = [text for text in page.text.split("\n") if text.startswith("t = ")]
    assert heads == [f"t = {t:.2f}" for t in (0.2, 0.6, 0.2, 0.6, 0.2)] * P
    assert len(page.all("figure")) == P * (4 + N)  # four charts, and no image files
    assert page.text.count("log-evidence") == P * 2 + 1
    assert "nan" not in page.text.lower().replace("finance", "")


def test_chains_that_were_given_have_no_evidence(tmp_path):
    steps, result = run(tmp_path / "given", init=torch.zeros(IMAGE))
    assert all(step.log_evidence.isnan().all() for step in steps)
    page = page_of([tmp_path / "given"], tmp_path / "r.html")
    assert "Where the chains stand" in page.text
    assert "given" in page.text and "drawn" not in page.text
    assert "log-evidence" not in page.text
    assert len(page.all("figure")) == P * (3 + N)
    told = CliRunner().invoke(app, ["runs", "show", str(tmp_path / "given")])
    assert "log-evidence" not in told.output
    assert result.log_evidence.isnan().all()


def test_of_an_unfinished_run_the_images_are_where_its_chains_stand(tmp_path):
    """Not its last proposals, of which some were rejected."""
    with pytest.raises(Killed):
        run(tmp_path / "run", 3)
    page = page_of([tmp_path / "run"], tmp_path / "r.html")
    record = read_run(tmp_path / "run")
    assert "Where the chains stand" in page.text
    assert record.figures["best"] == sum(chains.best[-1] for chains in record.chains) / P
    shown = [
        attributes["aria-label"].partition("reward ")[2]
        for tag, attributes in page.elements
        if tag == "svg" and "chain " in attributes.get("aria-label", "") and "reward" in
        attributes["aria-label"] and "moves" not in attributes["aria-label"]
    ]  # fmt: skip
    wanted = [
        f"{reward:.4g}"
        for chains in record.chains
        for reward in sorted(chains.rewards[-1], reverse=True)
    ]
    assert shown == wanted


@pytest.mark.slow
def test_a_run_beside_one_of_another_method_tells_both_stories(known, tmp_path):
    from test_report import make_run

    make_run(tmp_path / "steered")
    for order in ([tmp_path / "steered", known[0]], [known[0], tmp_path / "steered"]):
        page = page_of(order, tmp_path / "r.html")
        assert "Family tree" in page.text and "Chains" in page.text
        table = page.text[page.text.index("Side by side") :]
        assert all(fact in table for fact in ("boundary", "move", "best seen"))


def test_the_commands_tell_of_moves(known, monkeypatch):
    told = CliRunner().invoke(app, ["runs", "show", str(known[0]), "--json"])
    moved = [boundary["moved"] for boundary in json.loads(told.output)["boundaries"]]
    assert [one["time"] for one in moved] == [0.2, 0.6, 0.2, 0.6, 0.2, 1.0]
    monkeypatch.setattr("glass_flows.cli.options.console", Console(width=200))
    told = CliRunner().invoke(app, ["runs", "show", str(known[0])])
    assert "noised to" in told.output and "begin" in told.output


def test_damaged_moves_are_named(known, tmp_path):
    shutil.copytree(known[0], tmp_path / "copy")
    events = tmp_path / "copy" / "events.jsonl"
    events.write_text(events.read_text().replace('"accepted": [[', '"accepted": [[true, ', 1))
    with pytest.raises(RunFolderError, match=r"events.jsonl.*damaged"):
        _ = read_run(tmp_path / "copy").boundaries


def test_a_bar_says_how_it_stands(capsys):
    refine(
        digits_denoiser(), ClassReward(load_digits_classifier("reward"), 8), shape=IMAGE,
        particles=2, moves=2, seed=0, progress=True,
    )  # fmt: skip
    told = capsys.readouterr().err
    assert "refine: best" in told and "accepted" in told and "evaluations" in told
    assert "mean" in told


def test_nothing_is_kept_of_a_chain_that_is_excluded(tmp_path):
    def excluded(z):
        return torch.full((len(z),), -math.inf)

    record = RunFolder(tmp_path / "run", {"method": "refine"})
    record.pictures = lambda z: [digit_image(image) for image in z]
    refine(
        digits_denoiser(), excluded, shape=IMAGE, particles=2, moves=1, seed=0, record=record,
        degenerate="carry", scale=1.0, progress=False,
    )  # fmt: skip
    assert not (tmp_path / "run" / "best-000.png").exists()
    page_of([tmp_path / "run"], tmp_path / "r.html")
    assert io.BytesIO((tmp_path / "r.html").read_bytes()).read(15) == b"<!doctype html>"
