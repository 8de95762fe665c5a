"""Rewards on transformers' CLIPModel: preprocessing, score, gradient, loading and its errors."""

from __future__ import annotations

import sys

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional as F

from glass_flows.errors import InvalidArgument, MissingExtra, ShapeError, UnknownName
from glass_flows.integrations.rewards import (
    PRETRAINED,
    ImageTextReward,
    Preprocessing,
    pretrained_reward,
)
from glass_flows.models.shapes.clip import build_clip, build_clip_processor
from glass_flows.rewards import evaluate, evaluate_with_gradient

PROMPTS = ["a red circle", "two blue squares", "a red circle", "a triangle on white"]


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(3)
    return build_clip(), build_clip_processor()


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    home = tmp_path_factory.mktemp("clip")
    for part in parts:
        part.save_pretrained(home)
    return home


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(4, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (40, 48), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("height, width", [(32, 32), (40, 48), (97, 61), (20, 31), (64, 200)])
@pytest.mark.parametrize("edge", [True, False])
def test_preprocessing_is_that_of_the_processor(height, width, edge):
    import transformers

    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32} if edge else {"height": 32, "width": 32},
        crop_size={"height": 28, "width": 30},
    )
    rng = np.random.default_rng(height)
    smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((width, height))
    wanted = processor(smooth, return_tensors="pt").pixel_values
    x = torch.from_numpy(np.asarray(smooth) / 255).permute(2, 0, 1)[None]
    grey_level = 1 / 255 / min(processor.image_std)
    found = Preprocessing(processor)(x)
    # Pillow rounds after each of its two passes.
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1.5 * grey_level


def test_the_score_is_the_models_own(parts, images):
    network, processor = parts
    reward = ImageTextReward(network, processor, 100.0)
    pictures = [
        Image.fromarray(i) for i in (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ]
    batch = processor(text=PROMPTS, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = network(**batch).logits_per_image.diagonal() / network.logit_scale.exp()
    exact = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255
    found = evaluate(reward, exact, "here", PROMPTS)
    torch.testing.assert_close(found.float(), 100 * logits, atol=0.2, rtol=0)
    assert found.std() > 1
    own = evaluate(ImageTextReward(network, processor), exact, "here", PROMPTS)
    torch.testing.assert_close(own / network.logit_scale.exp().item(), found / 100)


def test_the_gradient_reaches_the_pixels(parts, images):
    network, processor = parts
    images = (0.2 + 0.6 * images).double()  # the clamp is not reached
    reward = ImageTextReward(network.double(), processor, max_batch=3)
    try:
        value, gradient = evaluate_with_gradient(reward, images, "here", PROMPTS)
        generator = torch.Generator().manual_seed(2)
        direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
        step = 1e-3
        ahead, behind = (
            evaluate(reward, images + sign * step * direction, "here", PROMPTS) for sign in (1, -1)
        )
    finally:
        network.float()
    wanted = (ahead - behind) / (2 * step)
    found = (gradient * direction).flatten(1).sum(1)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(value, (ahead + behind) / 2, rtol=1e-4, atol=1e-5)


def test_batches_and_repeated_prompts_do_not_change_a_score(parts, images):
    whole = evaluate(ImageTextReward(*parts), images, "here", PROMPTS)
    parted = ImageTextReward(*parts, max_batch=1)
    for i in (2, 0, 3, 1):
        one = evaluate(parted, images[i : i + 1], "here", [PROMPTS[i]])
        torch.testing.assert_close(one, whole[i : i + 1], rtol=1e-5, atol=1e-6)
    assert len(parted._texts) == 3


def test_a_long_prompt_is_cut_to_the_models_length(parts, images):
    evaluate(ImageTextReward(*parts), images[:1], "here", ["a red circle and " * 20])


def test_offloaded_weights_are_on_the_device_only_while_asked(parts, images, monkeypatch):
    network, processor = parts
    reward = ImageTextReward(network, processor, device="cpu:0", offload=True)
    moves = []
    monkeypatch.setattr(network, "to", lambda place: moves.append(str(place)))
    evaluate(reward, images, "here", PROMPTS)
    evaluate_with_gradient(reward, images, "here", PROMPTS)
    assert moves == ["cpu:0", "cpu"] + ["cpu:0"] * 2 + ["cpu"]
    reward(images.requires_grad_(), PROMPTS).sum().backward()
    assert moves[-1] == "cpu:0"


@pytest.mark.parametrize("name", PRETRAINED)
def test_loading_from_a_folder(name, folder, parts, images):
    reward = pretrained_reward(name, folder, device="cpu")
    scale = PRETRAINED[name].scale
    wanted = evaluate(ImageTextReward(*parts, scale), images, "here", PROMPTS)
    torch.testing.assert_close(evaluate(reward, images, "here", PROMPTS), wanted)


def test_errors_name_the_next_step(parts, folder, tmp_path, images, monkeypatch):
    with pytest.raises(UnknownName, match="pickscore"):
        pretrained_reward("pikscore")
    with pytest.raises(InvalidArgument, match="give its folder"):
        pretrained_reward("clip", "nobody/no-such-model")
    with pytest.raises(InvalidArgument, match="must hold a CLIPModel"):
        pretrained_reward("clip", tmp_path)
    with pytest.raises(InvalidArgument, match="convert its weights"):
        pretrained_reward("hps")
    with pytest.raises(ShapeError, match=r"\(batch, 3, H, W\)"):
        ImageTextReward(*parts)(images[:, :1], PROMPTS)
    with pytest.raises(InvalidArgument, match="takes prompts"):
        ImageTextReward(*parts)(images)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"glass-flows\[rewards\]"):
        pretrained_reward("clip", folder)


def test_default_models_are_pinned_to_commits():
    for source in PRETRAINED.values():
        for model, pin in (
            (source.model, source.revision),
            (source.processor, source.processor_revision),
        ):
            assert (model is None) == (pin is None)
            assert pin is None or len(pin) == 40
