"""Training the Shapes CLIP: what it is asked, against the judge; interruption; that it learns."""

from __future__ import annotations

import numpy as np
import pytest
import torch

transformers = pytest.importorskip("transformers")
pytest.importorskip("diffusers")

from glass_flows import training  # noqa: E402
from glass_flows.errors import InvalidArgument  # noqa: E402
from glass_flows.research import judged_scenes as judged  # noqa: E402
from glass_flows.research import train_clip as clip  # noqa: E402
from glass_flows.worlds.shapes import Placed, Prompt, examine, holds  # noqa: E402
from glass_flows.worlds.shapes.clip import build_clip, load_clip  # noqa: E402
from glass_flows.worlds.shapes.judge import Finding  # noqa: E402

TINY = {"steps": 2, "scenes": 12, "drawn": 8, "checkpoint_every": 1, "progress": False}


@pytest.mark.parametrize("free", [False, True])
def test_the_truth_of_sentences_is_what_the_judge_says_of_the_picture(free):
    """Findings of scenes are known, not seen: on the picture the judge must say the same."""
    rng = np.random.default_rng(1)
    found = judged.scenes(60, rng, free=free)
    said, truth = judged.sentences(found, rng)
    seen = [examine(image) for image in found.images]
    assert [[f.meets(p) for p in row] for f, row in zip(seen, said)] == truth.tolist()
    assert all(holds("train", p) for row in said for p in row)
    assert {len(row) for row in said} == {judged.SENTENCES}
    assert 0.1 < truth.mean() < 0.6
    if not free:
        assert found.accepted().all()
        assert truth[:, 0].all()
        assert not truth[:, 4:-1].any()  # contradictions
    else:
        assert {len(f.objects) for f in found.findings} == {1, 2, 3, 4}


def test_a_description_is_true_if_nothing_else_is_there():
    circle = Placed("circle", "red", 8.0, 8.0, 3.5)
    square = Placed("square", "blue", 24.0, 8.0, 5.3)
    rng = np.random.default_rng(2)
    for objects in ([circle], [circle, square], [circle, circle._replace(x=24.0)]):
        finding = Finding(tuple(objects), (0.0,) * len(objects), 0.0, "black")
        said = [judged.describe(finding, rng) for _ in range(40)]
        assert all(finding.meets(p) and holds("train", p) for p in said if p is not None)
        assert len(set(said)) >= 2
    crowd = Finding((circle, square, square), (0.0,) * 3, 0.0, "black")
    assert not any(crowd.meets(p) for _ in range(40) if (p := judged.describe(crowd, rng)))
    assert judged.describe(Finding((), (), 0.0, "black"), rng) is None


def test_facts_of_a_scene_are_those_that_its_sentence_states():
    prompt = Prompt.parse("a red circle to the left of a blue square")
    circle = Placed("circle", "red", 8.0, 8.0, 3.5)
    square = Placed("square", "blue", 24.0, 8.0, 5.3)
    finding = Finding((circle, square), (0.0, 0.0), 0.0, "white")
    seen, said = clip._facts_seen(finding), clip._facts_said(prompt)
    named = {name for name, fact in zip(clip._FACT_NAMES, said) if fact}
    assert named == {
        (0, ("circle", "red")), (0, ("square", "blue")), (1, ("circle", None)),
        (1, ("square", None)), (2, ("circle", "left")), (2, ("square", "right")),
        (3, 2), (4, None),
    }  # fmt: skip
    extra = {name for name, more in zip(clip._FACT_NAMES, seen > said) if more}
    assert extra == {
        (0, ("circle", None)), (0, ("square", None)), (1, ("circle", "small")),
        (1, ("square", "large")), (4, "white"),
    }  # fmt: skip


@pytest.mark.slow
def test_an_interrupted_training_ends_with_the_same_bits_and_may_end_early(tmp_path, monkeypatch):
    monkeypatch.setattr(clip, "BATCH", 4)
    clip.train_clip(tmp_path / "whole", **TINY)
    advance = training.Training.advance

    def stopped(self):
        if self.step == 1:
            raise KeyboardInterrupt
        advance(self)

    for folder in ("parts", "short"):
        with monkeypatch.context() as patch:
            patch.setattr(training.Training, "advance", stopped)
            with pytest.raises(KeyboardInterrupt):
                clip.train_clip(tmp_path / folder, **TINY)
    clip.train_clip(tmp_path / "parts", **TINY)
    clip.train_clip(tmp_path / "short", **{**TINY, "steps": 1})
    with monkeypatch.context() as patch:  # finished, it is neither repeated nor replaced
        patch.setattr(training.Training, "advance", None)
        clip.train_clip(tmp_path / "short", **{**TINY, "steps": 1})
        with pytest.raises(InvalidArgument, match=r"settings\.steps: 1 there, 2 here"):
            clip.train_clip(tmp_path / "short", **TINY)
    whole, parts, short = (
        load_clip(tmp_path / name).state_dict() for name in ("whole", "parts", "short")
    )
    assert all(torch.equal(whole[key], parts[key]) for key in whole)
    assert not all(torch.equal(whole[key], short[key]) for key in whole)
    assert type(load_clip(tmp_path / "whole")) is transformers.CLIPModel
    # Steered by itself, it goes on.
    clip.train_clip(tmp_path / "more", start=tmp_path / "whole", **{**TINY, "drawn": 32})


@pytest.mark.slow
def test_it_learns_which_sentences_are_true():
    rng = np.random.default_rng(3)
    parts = {"scenes": judged.scenes(24, rng), "free": judged.scenes(24, rng, free=True)}
    loss = clip._clip_loss(parts, 0, torch.device("cpu"))
    torch.manual_seed(0)
    taught = clip._Taught(build_clip())
    optimizer = torch.optim.AdamW(taught.parameters(), 1e-3)
    generator, curve = torch.Generator().manual_seed(0), []
    for _ in range(12):
        value = loss(taught, generator)
        optimizer.zero_grad()
        value.backward()
        optimizer.step()
        curve.append(float(value.detach()))
    assert sum(curve[-3:]) < 0.8 * sum(curve[:3])
