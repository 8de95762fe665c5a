"""`scale="auto"` on pipelines: with an adapter, and from inside a loop of the pipeline's own."""

import pytest
import torch

pytest.importorskip("diffusers")

import more_pipelines
from glass_flows import steer_pipeline
from glass_flows.diffusers import inside_loop
from glass_flows.diffusers.families import base
from glass_flows.errors import InvalidArgument
from glass_flows.noise import PILOT, KeyedNoise
from glass_flows.rewards import FunctionReward
from glass_flows.steering import pilot
from tiny_pipelines import CALL, build


def redness(images):
    mean = images.mean((2, 3))
    return mean[:, 0] - 0.5 * (mean[:, 1] + mean[:, 2])


def steered(pipe, **options):
    given = {**CALL["sd"], "particles": 3, "seed": 1, "transitions": 3, "steps": 3}
    prompt = given.pop("prompt", "a cat")
    options = {"progress": False, **given, **options}
    return steer_pipeline(pipe, prompt, redness, **options)


@pytest.mark.slow
@pytest.mark.parametrize("own_loop", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_pilot_finds_lambda_and_changes_no_particle(own_loop):
    pipe, samples = build("sd"), pilot.SAMPLES
    more = {}
    if own_loop:
        vae = pipe.vae
        more["decode"] = lambda z: vae.decode(z / vae.config.scaling_factor).sample / 2 + 0.5
    found = steered(pipe, **more)
    strength = found.result.strength
    plain = steered(pipe, scale=strength.scale, **more)
    assert torch.equal(found.result.samples, plain.result.samples)
    assert torch.equal(found.rewards, plain.rewards)
    assert strength.found.samples == samples
    more_asked = found.result.network_evaluations - plain.result.network_evaluations
    assert more_asked == strength.found.evaluations > 0
    assert found.result.decodes - plain.result.decodes == samples
    assert found.settings["method"]["scale"] == "auto"
    assert steered(pipe, **more).result.strength == strength


def test_a_cache_and_a_pilot_do_not_go_together(monkeypatch):
    monkeypatch.setattr(base, "caches_of", lambda network: ["a cache"])
    with pytest.raises(InvalidArgument, match="pilot of scale='auto' is another: give scale="):
        steered(build("sd"))


@pytest.mark.slow
def test_a_loop_of_its_own_draws_its_pilot_as_it_draws_the_run(monkeypatch):
    """No more rows at a time than the run, nothing held out, no picture that nobody looks at."""
    (pipe, call), rows, also = more_pipelines.build("PixArtSigmaPipeline"), [], []
    pipe.set_progress_bar_config(disable=True)
    forward = type(pipe.transformer).forward

    def counted(self, x, *given, **named):
        rows.append(len(x))
        return forward(self, x, *given, **named)

    def beside(images):
        also.append(len(images))
        return images.mean((1, 2, 3))

    monkeypatch.setattr(type(pipe.transformer), "forward", counted)
    given = {**call, "particles": 2, "transitions": 2, "steps": 1, "seed": 0, "progress": False}
    given.pop("prompt", None)
    held = FunctionReward(beside)
    found = steer_pipeline(pipe, "a cat", redness, also=held, **given)
    asked, most = len(also), max(rows)
    also.clear(), rows.clear()
    plain = steer_pipeline(
        pipe, "a cat", redness, also=held, scale=found.result.strength.scale, **given
    )
    assert torch.equal(found.rewards, plain.rewards)
    assert (asked, most) == (len(also), max(rows))


def test_as_many_prompts_as_a_pilot_has_samples(monkeypatch):
    seeds, real = [], inside_loop._scheduler
    monkeypatch.setattr(inside_loop, "_scheduler", lambda a: seeds.append(a.seed) or real(a))
    pipe, call = more_pipelines.build("PixArtSigmaPipeline")
    call.pop("prompt", None)
    pipe.set_progress_bar_config(disable=True)
    prompts = ["a cat", "a dog"] * (pilot.SAMPLES // 2)
    found = steer_pipeline(
        pipe, prompts, redness, particles=2, transitions=1, steps=1, seed=0, progress=False, **call
    )  # fmt: skip
    assert found.result.strength.found.samples == 2 * pilot.SAMPLES
    assert seeds == [KeyedNoise(0).seed_of(PILOT), 0]  # its samples are none of the run's
