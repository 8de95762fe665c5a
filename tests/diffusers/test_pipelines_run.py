"""Pipelines that the page of all pipelines calls right, run: they draw what it says."""

import importlib
import inspect
import sys
from pathlib import Path

import diffusers
import pytest
import torch

import more_pipelines as more
import tiny_pipelines as tiny
from cases import fast
from glass_flows.diffusers import GlassScheduler
from glass_flows.errors import InvalidArgument

sys.path.insert(0, str(Path(__file__).resolve().parent.parent.parent / "tools"))
pipelines = importlib.import_module("pipelines")


def euler(own):
    """The pipeline's own scheduler, or one on the same grid, as a deterministic first-order one."""
    settings, kind = own.config, type(own)
    if "Flow" in kind.__name__:
        return own
    if kind is diffusers.UniPCMultistepScheduler:
        return kind.from_config(settings, solver_order=1, disable_corrector=list(range(9)))
    if kind is diffusers.DPMSolverMultistepScheduler:
        return kind.from_config(settings, solver_order=1, algorithm_type="dpmsolver++")
    clipped = settings.get("clip_sample", False)
    return diffusers.DDIMScheduler.from_config(settings, clip_sample=clipped)


def drawn(pipe, call):
    """What it draws, and how often its network is asked."""
    takes = inspect.signature(pipe.__call__).parameters
    given = {name: value for name, value in call.items() if name in takes}
    pixels = isinstance(pipe, diffusers.DDPMPipeline)
    asked = []
    handle = tiny.network(pipe).register_forward_pre_hook(lambda *_: asked.append(1))
    out = pipe(
        num_inference_steps=4, generator=torch.Generator().manual_seed(0), return_dict=False,
        output_type="np" if pixels else "latent", **given,
    )[0]  # fmt: skip
    handle.remove()
    return torch.as_tensor(out).float(), len(asked)


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers' own
@pytest.mark.parametrize("name", fast(["AuraFlowPipeline"], more.BUILD))
def test_a_pipeline_draws_what_its_own_sampler_draws_and_asks_as_often_as_promised(name):
    pipe, call = more.build(name)
    assert type(pipe).__name__ == name
    own = pipe.scheduler
    pipe.scheduler = euler(own)
    right, each = drawn(pipe, call)
    pipe.scheduler = own
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=1.0, steps=1)
    ours, asked = drawn(pipe, call)
    assert asked == each
    assert (ours - right).abs().max() <= 1e-5 * max(right.abs().max(), 10.0)
    transitions = len(pipe.scheduler.running)
    pipe.scheduler = own
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    ours, asked = drawn(pipe, call)
    table = pipe.scheduler.running
    assert len(table) == transitions
    # Only where no trained timestep is left is there one evaluation in place of two.
    assert 2 * transitions - 1 <= (rows := sum(t.evaluations for t in table)) <= 2 * transitions
    assert asked * transitions == each * rows
    assert torch.isfinite(ours).all() and not torch.allclose(ours, right, atol=1e-3)


@pytest.mark.slow
def test_steps_counted_as_timesteps_are_refused_before_the_network_is_asked():
    pipe, call = more.build("KandinskyV22Img2ImgPipeline")
    calls = []
    pipe.unet.register_forward_pre_hook(lambda *_: calls.append(1))
    call = {name: value for name, value in call.items() if name not in ("prompt", "strength")}
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    with pytest.raises(InvalidArgument, match=r"steps=2 and strength=0\.5: it counts.*steps=1"):
        pipe(num_inference_steps=4, strength=0.5, **call)
    assert not calls
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=1)
    pipe(num_inference_steps=4, strength=0.5, **call)
    assert len(calls) == len(pipe.scheduler.running) == 2


def test_the_page_says_which_have_been_run():
    families = pipelines.RUN - set(more.BUILD)
    assert set(more.BUILD) < pipelines.RUN and len(families) == len(tiny.FAMILIES)
    first = tiny.build("dit"), tiny.build("flux")
    assert {type(pipe).__name__ for pipe in first} < families
