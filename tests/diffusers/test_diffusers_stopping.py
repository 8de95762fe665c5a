"""Previews and stopping on pipelines: through an adapter, and inside the pipeline's own loop."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_diffusers_methods import GIVEN, PROMPTS, M, N, draw, pixels, redness, shared_latents

import tiny_pipelines as tiny
from glass_flows import Beam, Steering
from glass_flows.diffusers import pipeline as module

METHODS = {"steering": Steering(N, scale=50.0, ess_threshold=1.0), "beam": Beam(N, scale=50.0)}


def watched(stop, told):
    def look(step):
        told.append((step.boundary.index, step.images(), step.rewards))
        return step.boundary.index == stop

    return look


@pytest.mark.slow
@pytest.mark.parametrize("name", ["steering", pytest.param("beam", marks=pytest.mark.slow)])
def test_both_engines_show_and_stop_alike(name, monkeypatch):
    latents, pipe, rows = shared_latents(), tiny.build("sd3"), []
    own, told = pipe.scheduler, {"adapter": [], "loop": []}
    through = draw(pipe, METHODS[name], latents=latents, on_boundary=watched(1, told["adapter"]))
    monkeypatch.setattr(module, "family_of", lambda pipe: None)
    handle = tiny.network(pipe).register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    within = draw(pipe, METHODS[name], latents=latents, on_boundary=watched(1, told["loop"]))
    handle.remove()
    assert pipe.scheduler is own
    assert within.result.stopped == through.result.stopped == 1
    # Two for guidance; the evaluation that D is from, and none after it.
    assert within.result.network_evaluations == sum(rows) == 2 * N * (M + 1) * 2
    torch.testing.assert_close(within.rewards, through.rewards, rtol=1e-4, atol=1e-4)
    assert np.abs(pixels(within).astype(int) - pixels(through)).max() <= 1
    for (k, images, rewards), (other, pictures, _) in zip(*told.values(), strict=True):
        assert k == other
        assert len(images) == len(PROMPTS) * N
        seen = torch.stack([torch.from_numpy(np.array(image)) for image in images])
        if not rewards.isnan().any():  # the pictures are those that the reward was asked about
            mean = redness(seen.permute(0, 3, 1, 2) / 255).view(len(PROMPTS), N)
            torch.testing.assert_close(mean, rewards.float(), rtol=0, atol=0.003)
        for image, picture in zip(images, pictures):
            assert np.abs(np.array(image).astype(int) - np.array(picture)).max() <= 1
    assert [k for k, *_ in told["loop"]] == [0, 1, 2]


@pytest.mark.slow
def test_looking_at_pictures_changes_nothing():
    latents, pipe = shared_latents(), tiny.build("sd3")
    plain = draw(pipe, METHODS["steering"], latents=latents)
    looked = draw(pipe, METHODS["steering"], latents=latents, on_boundary=watched(None, []))
    assert (pixels(plain) == pixels(looked)).all()
    assert torch.equal(plain.rewards, looked.rewards)
    assert plain.result.costs == looked.result.costs
    assert plain.settings["call"] == {n: v for n, v in GIVEN.items() if n != "progress"}
