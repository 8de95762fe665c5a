"""`scale="auto"` on pipelines: with an adapter, and from inside a loop of the pipeline's own."""

import pytest
import torch

pytest.importorskip("diffusers")

from glass_flows import steer_pipeline
from glass_flows.diffusers.families import base
from glass_flows.errors import InvalidArgument
from glass_flows.steering.pilot import SAMPLES
from tiny_pipelines import CALL, build


def redness(images):
    mean = images.mean((2, 3))
    return mean[:, 0] - 0.5 * (mean[:, 1] + mean[:, 2])


def steered(pipe, **options):
    given = {**CALL["sd"], "particles": 3, "seed": 1, "transitions": 3, "steps": 3}
    prompt = given.pop("prompt", "a cat")
    options = {"progress": False, **given, **options}
    return steer_pipeline(pipe, prompt, redness, **options)


@pytest.mark.parametrize("own_loop", [False, True])
def test_a_pilot_finds_lambda_and_changes_no_particle(own_loop):
    pipe = build("sd")
    more = {}
    if own_loop:
        vae = pipe.vae
        more["decode"] = lambda z: vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5
    found = steered(pipe, **more)
    strength = found.result.strength
    plain = steered(pipe, scale=strength.scale, **more)
    assert torch.equal(found.result.samples, plain.result.samples)
    assert torch.equal(found.rewards, plain.rewards)
    assert strength.found.samples == SAMPLES
    more_asked = found.result.network_evaluations - plain.result.network_evaluations
    assert more_asked == strength.found.evaluations > 0
    assert found.result.decodes - plain.result.decodes == SAMPLES
    assert found.settings["method"]["scale"] == "auto"
    assert steered(pipe, **more).result.strength == strength


def test_a_cache_and_a_pilot_do_not_go_together(monkeypatch):
    monkeypatch.setattr(base, "caches_of", lambda network: ["a cache"])
    with pytest.raises(InvalidArgument, match="pilot of scale='auto' is another: give scale="):
        steered(build("sd"))
