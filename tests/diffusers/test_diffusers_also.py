"""Held-out rewards on pipelines: of the same pictures, decoded once, in both engines."""

from __future__ import annotations

from functools import cache

import numpy as np
import pytest
import torch

import tiny_pipelines as tiny
from glass_flows import Refine, Sampler, Steering, steer_pipeline
from glass_flows.diffusers.decoding import Pictures
from glass_flows.errors import RewardError, ShapeError, UnknownName
from glass_flows.rewards import FunctionReward
from glass_flows.steering import Greedy

PROMPTS = ["a cat", "a dog"]
METHODS = {
    "steering": Steering(2, scale=20.0),
    "twist": Steering(2, scale=20.0, twist=1.0),
    "posterior": Steering(2, scale=20.0, value="posterior:1:2"),
    "greedy": Greedy(2, scale=20.0),
    "refine": Refine(2, scale=20.0, moves=2),
    "refine, last": Refine(2, scale=20.0, moves=2, returned="last"),
}
FAST = (("steering", 1),)


@cache
def shared(name):
    return tiny.build(name)


def redness(images):
    return images[:, 0].mean((1, 2))


def blueness(images):
    return images[:, 2].mean((1, 2))


def lengths(images, prompts):
    return torch.tensor([float(len(prompt)) for prompt in prompts])


ALSO = {"blue": blueness, "words": FunctionReward(lengths, takes_prompts=True)}


def draw(pipe, method, **changes):
    sampler = Sampler.ode(2) if isinstance(method, Refine) else Sampler(2, 2)
    given = {"seed": 0, "progress": False, "height": 16, "width": 16, **changes}
    return steer_pipeline(pipe, PROMPTS, redness, method, sampler, **given)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "decode_batch"),
    [
        pytest.param(name, size, marks=[pytest.mark.slow] * ((name, size) not in FAST))
        for name in METHODS
        for size in (1, None)
    ],
)
def test_the_same_images_decoded_once(name, decode_batch, monkeypatch):
    pipe, asked, decoded = shared("sd"), [], []
    real = Pictures.__call__

    def count(self, z):
        decoded.append(len(z))
        return real(self, z)

    def seen(images):
        asked.append(len(images))
        return blueness(images)

    monkeypatch.setattr(Pictures, "__call__", count)
    plain = draw(pipe, METHODS[name], decode_batch=decode_batch)
    once = sum(decoded)
    decoded.clear()
    found = draw(
        pipe, METHODS[name], decode_batch=decode_batch, also={**ALSO, "blue": FunctionReward(seen)}
    )
    for one, two in zip(plain.rows, found.rows):
        assert all((np.asarray(a) == np.asarray(b)).all() for a, b in zip(one, two))
    assert plain.result.costs == found.result.costs
    assert torch.equal(plain.result.samples, found.result.samples)
    # A posterior value looks at its own draws: there the estimates are decoded for these alone.
    extra = {"posterior": 4 * int((~found.result.paths["blue"][:-1].isnan()).all(1).sum())}
    assert sum(decoded) == once + extra.get(name, 0)
    assert sum(asked) - len(asked[:1]) * (decode_batch or 4) == found.result.also_evaluations / 2
    for p, row in enumerate(found.rows):
        for n, image in enumerate(row):
            pixels = torch.from_numpy(np.array(image)).permute(2, 0, 1)[None] / 255
            assert found.result.also["blue"][p, n] == pytest.approx(
                float(blueness(pixels)), abs=0.003
            )
    assert found.result.also["words"].tolist() == [[5.0, 5.0][: found.rewards.shape[1]]] * 2


@pytest.mark.slow
def test_a_pipeline_in_its_own_loop(monkeypatch):
    import diffusers

    base = tiny.build("sd")
    pipe = diffusers.StableDiffusionPAGPipeline(**base.components, requires_safety_checker=False)
    pipe.set_progress_bar_config(disable=True)
    plain = draw(pipe, METHODS["steering"])
    found = draw(pipe, METHODS["steering"], also=ALSO)
    assert torch.equal(plain.result.samples, found.result.samples)
    pixels = [
        torch.from_numpy(np.array(image)).permute(2, 0, 1) / 255
        for row in found.rows
        for image in row
    ]
    expected = blueness(torch.stack(pixels)).view(2, 2).double()
    torch.testing.assert_close(found.result.also["blue"], expected, rtol=0, atol=0.003)
    assert found.result.paths["words"][-1].tolist() == [5.0, 5.0]


def test_its_form_is_tried_before_the_network_is_asked(monkeypatch):
    pipe = shared("sd")
    monkeypatch.setattr(pipe.unet, "forward", lambda *a, **k: pytest.fail("asked"))
    with pytest.raises(ShapeError, match="one number per image"):
        draw(pipe, METHODS["steering"], also={"pixels": lambda images: images})


def test_one_that_fails_is_named():
    calls = []

    def failing(images):
        calls.append(1)
        if len(calls) > 1:  # not the one that learns its form
            raise ValueError("no")
        return blueness(images)

    with pytest.raises(RewardError, match="held out as 'mine'"):
        draw(shared("sd"), METHODS["steering"], also={"mine": FunctionReward(failing)})


@pytest.mark.parametrize("also", ["aesthetic:nowhere", ["aesthetic:nowhere"], {"a": "aesthetic:x"}])
def test_what_is_named_is_loaded_when_all_else_is_right(also):
    with pytest.raises(UnknownName, match="takes no 'wrong_argument'"):
        draw(shared("sd"), METHODS["steering"], also=also, wrong_argument=1)
    with pytest.raises(UnknownName, match="aestetic"):
        draw(shared("sd"), METHODS["steering"], also="aestetic", wrong_argument=1)
