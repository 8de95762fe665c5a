"""Training the Shapes pipeline: interruption, files, the attention that it trains with."""

from __future__ import annotations

import numpy as np
import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from glass_flows import training  # noqa: E402
from glass_flows.errors import InvalidArgument  # noqa: E402
from glass_flows.research import train_shapes as shapes  # noqa: E402
from glass_flows.worlds.shapes import COLOURS, SHAPES, Prompt, accepts, examine, holds  # noqa: E402
from glass_flows.worlds.shapes.pipeline import build_pipeline, t5_tokenizer  # noqa: E402
from glass_flows.worlds.shapes.world import AREA  # noqa: E402

TINY = {
    "steps": 2,
    "vae_steps": 2,
    "text_steps": 2,
    "scenes": 64,
    "checkpoint_every": 1,
    "progress": False,
}
# The fused norm falls back to a slower one when weights and activations differ in type.
pytestmark = pytest.mark.filterwarnings("ignore:Mismatch dtype between input and weight")


def weights(folder):
    pipe = diffusers.FluxPipeline.from_pretrained(folder, local_files_only=True)
    parts = (pipe.vae, pipe.transformer, pipe.text_encoder, pipe.text_encoder_2)
    return [t for part in parts for t in part.state_dict().values()]


SMALL = {"vae": 4, "text": 4, "flow": 4}


@pytest.fixture
def small(monkeypatch):
    monkeypatch.setattr(shapes, "BATCH", SMALL)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The folder of a training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(shapes, "BATCH", SMALL)
        shapes.train_shapes(folder, **TINY)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 3, 5])  # in the autoencoder, the encoders and the flow
def test_an_interrupted_training_ends_with_the_same_bits(
    small, whole, after, tmp_path, monkeypatch
):
    count, advance = [0], training.Training.advance

    def counted(self):
        if count[0] == after:
            raise KeyboardInterrupt
        count[0] += 1
        advance(self)

    with monkeypatch.context() as patch:
        patch.setattr(training.Training, "advance", counted)
        with pytest.raises(KeyboardInterrupt):
            shapes.train_shapes(tmp_path / "parts", **TINY)
    shapes.train_shapes(tmp_path / "parts", **TINY)
    for one, two in zip(weights(whole), weights(tmp_path / "parts"), strict=True):
        assert torch.equal(one, two)
    assert not (tmp_path / "parts" / "checkpoints").exists()
    with open(tmp_path / "parts" / "model_index.json", encoding="utf-8") as index:
        assert "FluxPipeline" in index.read()


@pytest.mark.slow
def test_it_learns(small, tmp_path, monkeypatch):
    monkeypatch.setattr(shapes, "BATCH", {"vae": 16, "text": 16, "flow": 16})
    losses: dict[str, list[float]] = {}
    advance = training.Training.advance

    def recorded(self):
        advance(self)
        losses.setdefault(self.job.name, []).append(self.loss)

    monkeypatch.setattr(training.Training, "advance", recorded)
    shapes.train_shapes(
        tmp_path, **{**TINY, "steps": 40, "vae_steps": 40, "text_steps": 40, "checkpoint_every": 40}
    )
    for curve in losses.values():
        assert len(curve) == 40
        assert sum(curve[-5:]) < 0.85 * sum(curve[:5])
    vae = diffusers.AutoencoderKL.from_pretrained(tmp_path / "vae", local_files_only=True)
    assert vae.config.scaling_factor != 1.0
    assert vae.config.shift_factor != 0.0


@pytest.mark.slow
def test_scenes_are_of_the_part_train_and_meet_their_sentences():
    images, prompts, _ = shapes.draw_scenes(200, seed=3)
    assert all(holds("train", p) for p in prompts)
    assert all(accepts(images, prompts))


@pytest.mark.parametrize(
    "wrong",
    [{"steps": 0}, {"scenes": 1.5}, {"seed": -1}, {"device": "gpu"}, {"device": "cuda:99"}],
)
def test_wrong_settings_are_refused_before_training(wrong, tmp_path):
    with pytest.raises(InvalidArgument):
        shapes.train_shapes(tmp_path, **{**TINY, **wrong})


def test_noise_levels_are_one_of_every_range_in_random_order():
    generator = torch.Generator().manual_seed(0)
    sigma = shapes._noise_levels(64, generator)
    quantile = torch.special.ndtr(sigma.logit() - shapes._NOISIER)
    assert torch.equal((64 * quantile).floor().sort().values, torch.arange(64.0))
    assert not torch.equal(sigma, sigma.sort().values)


def test_the_layout_says_how_much_of_each_square_is_covered():
    images, _, placed = shapes.draw_scenes(50, seed=4)
    assert placed.shape == (50, 16, len(SHAPES) * len(COLOURS))
    for image, squares in zip(images, placed):
        area = sum(AREA[SHAPES.index(o.shape)] * o.radius**2 for o in examine(image).objects)
        assert abs(64 * squares.astype(float).sum() - area) < 0.1 * area
        for shape, colour in ((o.shape, o.colour) for o in examine(image).objects):
            assert squares[
                :, SHAPES.index(shape) * len(COLOURS) + list(COLOURS).index(colour)
            ].any()


def test_what_the_nouns_of_a_sentence_are_told():
    coloured, sized, related, counts, backgrounds = shapes.TOLD
    one, two = shapes._meaning(Prompt.parse("a small red circle to the left of a blue square"))
    assert one[:3] == [3, coloured.index(("circle", "red")), sized.index(("circle", "small"))]
    assert one[3:] == [related.index(("circle", "left")), 0, 0]
    assert two[:3] == [10, coloured.index(("square", "blue")), sized.index(("square", None))]
    assert two[3:] == [related.index(("square", "right")), 0, 0]
    many, none = shapes._meaning(Prompt.parse("three triangles on white"))
    assert many[1] == coloured.index(("triangle", None))
    assert many[4:] == [counts.index(3), backgrounds.index("white")]
    assert none == [-1] * 6
    # A noun's number is that of its token, too.
    tokens = t5_tokenizer()("a small red circle to the left of a blue square").input_ids
    words = t5_tokenizer().convert_ids_to_tokens(tokens)
    assert [words[3], words[10]] == ["▁circle", "▁square"]


def test_a_perfect_reading_costs_nothing_and_the_loss_sees_every_word():
    pipe = build_pipeline()
    said = [Prompt.parse("a small red circle above a blue square"), Prompt.parse("two circles")]
    language = shapes._Language(pipe, said, torch.device("cpu"))
    assert language.meanings.shape == (3, 2, 6)
    assert bool((language.meanings[2] == -1).all())  # the empty prompt
    sizes = [len(names) for names in shapes.TOLD]
    # A reader that knows: the features are the truth itself.
    text, pooled = torch.zeros(2, 13, sum(sizes)), torch.zeros(2, 2, sum(sizes))
    for b, nouns in enumerate(language.meanings[:2].tolist()):
        for i, (at, *values) in enumerate(nouns):
            if at >= 0:
                for start, value in zip(np.cumsum([0, *sizes]).tolist(), values):
                    text[b, at, start + value] = pooled[b, i, start + value] = 40.0
    parts = {"meaning": lambda x: x, "gist": lambda x: x.flatten(1)}
    words = torch.tensor([0, 1])
    assert float(language.misread(parts, words, text, pooled)) < 1e-6
    for spoilt in (text, pooled):
        kept = spoilt.clone()
        spoilt.zero_()
        assert float(language.misread(parts, words, text, pooled)) > 1.0
        spoilt.copy_(kept)


@pytest.mark.slow
def test_a_run_from_other_weights_is_not_gone_on_with(small, whole, tmp_path):
    first, second = whole, tmp_path / "second"
    shapes.train_shapes(second, **{**TINY, "seed": 1})
    out = tmp_path / "out"
    advance = training.Training.advance

    def stopped(self):
        if self.step == 1:
            raise KeyboardInterrupt
        advance(self)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training.Training, "advance", stopped)
        with pytest.raises(KeyboardInterrupt):
            shapes.train_shapes(out, start=first, **TINY)
    with pytest.raises(InvalidArgument, match=r"which differs in settings\.start: "):
        shapes.train_shapes(out, start=second, **TINY)
    shapes.train_shapes(out, start=first, **TINY)
    with pytest.MonkeyPatch.context() as patch:  # finished, it is neither repeated nor replaced
        patch.setattr(training.Training, "advance", None)
        shapes.train_shapes(out, start=first, **TINY)
        with pytest.raises(InvalidArgument, match=r"which differs in settings\.start: "):
            shapes.train_shapes(out, start=second, **TINY)
    for file in out.rglob("*.json"):
        assert str(whole) not in file.read_text(), file  # no trace of where it came from
    one, two = (
        diffusers.AutoencoderKL.from_pretrained(folder / "vae", local_files_only=True)
        for folder in (first, out)
    )
    assert one.config.scaling_factor == two.config.scaling_factor != 1.0
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
