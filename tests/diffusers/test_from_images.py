"""Pipelines with images: whose image is whose, where image-to-image begins, what is refused."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import pytest
import torch
from diffusers import FluxMultiControlNetModel

import tiny_pipelines as tiny
from cases import fast
from glass_flows import Sampler, Steering, steer_pipeline
from glass_flows.diffusers import Schedule
from glass_flows.diffusers.families import family_of
from glass_flows.diffusers.scheduler import config_of
from glass_flows.errors import InvalidArgument, ShapeError, UnknownName
from glass_flows.jobs import Job
from glass_flows.jobs.align import within
from glass_flows.jobs.job import Loading
from glass_flows.jobs.models import Pipeline
from glass_flows.noise import PILOT, START, KeyedNoise
from glass_flows.rewards import as_reward
from glass_flows.steering.loop import Watch
from glass_flows.steering.pilot import pilot_of
from glass_flows.steering.population import Population

ONE, TWO = tiny.picture(16, 16, 1), tiny.picture(16, 16, 2)
GIVEN_IMAGES = {
    "kontext": "image",
    "flux_img2img": "image",
    "chroma_img2img": "image",
    "flux_fill": "image",
    "flux_control": "control_image",
    "flux_controlnet": "control_image",
    "qwenimage_edit": "image",
}
QUICK = ("kontext", "flux_img2img")


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@cache
def shared(name):
    """A pipeline that no test changes."""
    return tiny.build(name)


def drawn(name, prompts="a cat", method="steering", pipe=None, **changes):
    given = {k: v for k, v in tiny.CALL[name].items() if k != "prompt"}
    asked = {"particles": 2, "transitions": 4, "steps": 1, "scale": 5.0, **given, **changes}
    if method == "best-of-n":
        asked = {"particles": 2, **given, **changes}
    pipe = pipe or shared(name)
    return steer_pipeline(pipe, prompts, redness, method, seed=0, progress=False, **asked)


def test_a_budget_is_spent_on_the_transitions_that_are_run(tmp_path):
    """Prices are measured from an image too, whose K the smallest trials would not reach."""
    model = Pipeline("small", "", Loading())
    model.__dict__["pipe"] = shared("flux_img2img")
    model._rewards["red"] = as_reward(redness)
    call = {k: v for k, v in tiny.CALL["flux_img2img"].items() if k != "prompt"}
    assert call["strength"] == 0.5
    call["image"] = str(tmp_path / "cat.png")
    ONE.save(call["image"])
    job = Job("small", Steering(scale=5.0), Sampler(), ("a cat",), "red", call=call)
    told = []
    (sized,) = within("60", model, [[job]], tmp_path, told.append)
    spent = model.run(sized, Watch(progress=False)).result.network_evaluations
    assert 0.85 * 60 <= spent <= 60
    assert "of which" in told[-1]
    model.__dict__["pipe"] = None  # what was chosen needs no pipeline
    assert within("60", model, [[job]], tmp_path, told.append) == [sized]
    assert told[-1] == told[-2]


def adapter_of(name, **changes):
    pipe = shared(name)
    given = {k: v for k, v in tiny.CALL[name].items() if k != "prompt"}
    schedule = Schedule.of(config_of(pipe.scheduler))
    return family_of(pipe)(pipe, **{**given, **changes}), schedule


# --- whose image is whose -------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name",
    fast(["kontext"], GIVEN_IMAGES),
)
def test_each_prompt_has_its_own_image(name):
    """Two prompts with an image each are what they are by themselves; another image is not."""
    pipe, argument = shared(name), GIVEN_IMAGES[name]
    both = drawn(
        name, ["a cat", "a dog in a hat"], pipe=pipe, ess_threshold=0.0, **{argument: [ONE, TWO]}
    )
    alone = drawn(name, "a cat", pipe=pipe, ess_threshold=0.0, **{argument: ONE})
    torch.testing.assert_close(
        both.result.samples[0], alone.result.samples[0], rtol=1e-4, atol=1e-4
    )
    other = drawn(
        name, ["a cat", "a dog in a hat"], pipe=pipe, ess_threshold=0.0, **{argument: ONE}
    )
    first, second = (one.result.samples for one in (both, other))
    torch.testing.assert_close(first[0], second[0], rtol=1e-4, atol=1e-4)
    assert (first[1] - second[1]).abs().max() > 1e-2


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        n if n == "flux_img2img" else pytest.param(n, marks=pytest.mark.slow)
        for n in tiny.FAMILIES[10:]
    ],
)
def test_refined_and_searched(name):
    """No chain ends worse than it began, rewards are those of samples, evaluations are counted."""
    pipe, rows = tiny.build(name), []
    tiny.network(pipe).register_forward_pre_hook(
        lambda _, args, given: rows.append(len(given["hidden_states"])), with_kwargs=True
    )
    few = {"pipe": pipe, "transitions": 1, "steps": 4}
    first = drawn(name, method="refine", moves=0, **few)
    better = drawn(name, method="refine", moves=2, **few)
    beam = drawn(name, method="beam", pipe=pipe)
    assert (better.rewards >= first.rewards).all()
    assert sum(rows) == sum(one.result.network_evaluations for one in (first, better, beam))
    adapter, _ = adapter_of(name)
    for one in (first, better, beam):
        with torch.no_grad():
            images = adapter.decode(one.result.samples[0]).clamp(0, 1)
        torch.testing.assert_close(one.rewards[0].float(), redness(images), rtol=1e-4, atol=1e-5)


def test_the_mask_says_where_the_image_is_seen():
    """Under a white mask it is not: only its noise-free part is left, which is the same."""
    adapter, _ = adapter_of("flux_fill")
    shown = []
    for image in (ONE, TWO):
        adapter.given |= {"image": image, "mask_image": tiny.half(16, 16)}
        with torch.no_grad():
            shown.append(adapter.shown(1)["image"])
    channels = shown[0].shape[2] // 2  # the image's, and after them the mask's
    assert torch.equal(shown[0][..., channels:], shown[1][..., channels:])
    rows = shown[0][..., channels:].view(4, 4, -1)
    assert (rows[:2] == 0).all() and (rows[2:] == 1).all()
    adapter.given |= {"image": ONE, "mask_image": tiny.half(16, 16).point(lambda v: 255)}
    with torch.no_grad():
        white = adapter.shown(1)["image"]
        adapter.given |= {"image": TWO}
        assert torch.equal(adapter.shown(1)["image"], white)
    assert not torch.equal(shown[0], shown[1])


@pytest.mark.parametrize(
    ("name", "changes", "error", "said"),
    [
        ("kontext", {"image": [ONE, TWO]}, InvalidArgument, "2 of image given for 1 prompt:"),
        ("kontext", {"image": 3}, InvalidArgument, "needs image: an image or its file.*got 3"),
        ("kontext", {"image": 2 * torch.rand(1, 3, 16, 16) + 1}, InvalidArgument, "must lie in"),
        (
            "kontext",
            {"image": torch.rand(1, 1, 16, 16)},
            ShapeError,
            r"\(B, 3, height, width\), got",
        ),
        ("flux_fill", {"mask_image": torch.rand(1, 3, 16, 16)}, ShapeError, r"\(B, 1, height, w"),
        (
            "flux_control",
            {"control_image": torch.rand(0, 3, 16, 16)},
            ShapeError,
            "control_image m",
        ),
        ("kontext", {"image": "none.png"}, InvalidArgument, "'none.png' cannot be read"),
        ("kontext", {"max_area": 512}, InvalidArgument, "height=16: .*fills max_area=512"),
        ("flux_img2img", {"image": None}, InvalidArgument, "FluxImg2ImgPipeline needs image"),
        ("flux_fill", {"mask_image": None}, InvalidArgument, "needs mask_image"),
        ("flux_img2img", {"strength": 0.0}, InvalidArgument, r"strength must lie in \(0, 1\]"),
        ("flux_img2img", {"strength": 0.9}, InvalidArgument, "0.9 begins with pure noise.*0.75"),
        ("flux_img2img", {"strength": 0.5, "transitions": 1}, InvalidArgument, "pure noise"),
        ("flux_img2img", {"start": "pure"}, InvalidArgument, "start='pure' is a start from noise"),
        ("flux_img2img", {"latents": torch.zeros(2, 16, 16)}, InvalidArgument, "latents: FluxImg2"),
        ("flux_controlnet", {"control_mode": 1}, InvalidArgument, "takes no control_mode"),
        ("flux_controlnet", {"control_guidance_end": 0.5}, UnknownName, "control_guidance_end"),
        ("flux_control", {"negative_prompt": "bad"}, UnknownName, "negative_prompt"),
        ("chroma", {"guidance_scale": 1.0}, InvalidArgument, "negative_prompt: nothing to do"),
    ],
)
def test_what_cannot_be_meant_is_refused_before_the_network_is_asked(name, changes, error, said):
    pipe, calls = shared(name), []
    handle = pipe.transformer.register_forward_pre_hook(lambda *_: calls.append(1))
    with pytest.raises(error, match=said):
        drawn(name, pipe=pipe, **changes)
    handle.remove()
    assert not calls


def test_images_of_two_sizes_are_no_batch():
    with pytest.raises(ShapeError, match="16 x 16, 32 x 16"):
        drawn("kontext", ["a", "b"], image=[ONE, tiny.picture(16, 32)])


def test_the_size_that_kontext_draws_is_named_and_right():
    pipe = tiny.build("kontext")
    with pytest.raises(InvalidArgument, match=r"would draw 44 x 8: .*width=44, or max_area=320"):
        drawn("kontext", pipe=pipe, height=8, width=40, max_area=400)
    for remedy in ({"width": 44, "max_area": 400}, {"width": 40, "max_area": 320}):
        adapter = family_of(pipe)(pipe, height=8, **remedy)
        assert (adapter.height, adapter.width) == (8, remedy["width"])
    assert family_of(pipe)(pipe, max_area=400).width == 20  # square, rounded down


def test_several_controlnets_run_in_their_own_loop_only():
    pipe = tiny.build("flux_controlnet")
    pipe.controlnet = FluxMultiControlNetModel([pipe.controlnet])
    with pytest.raises(InvalidArgument, match="several ControlNets"):
        drawn("flux_controlnet", pipe=pipe)


# --- where image-to-image begins ------------------------------------------------------------------


def test_every_particle_begins_with_noise_of_its_own_on_its_image():
    adapter, schedule = adapter_of("flux_img2img")
    seen = []
    drawn("flux_img2img", ["a", "b"], image=[ONE, TWO], on_boundary=seen.append, strength=0.5)
    begin = seen[0].boundary
    assert len(seen) == 3 and begin.t == schedule.outer_times(4, **adapter.grid(4))[2]
    with torch.no_grad():
        adapter.given["image"] = [ONE, TWO]
        z = adapter.around(["a", "b"]).repeat_interleave(2, 0)
    noise = KeyedNoise(0)(0, torch.empty(4, 16, 16), START)
    expected = begin.t * z + (1 - begin.t) * noise  # of the linear path
    torch.testing.assert_close(begin.x, expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("sampler", "left"),
    [
        (Sampler(4, 2), Sampler(2, 2)),
        (Sampler(4, (1, 2, 3, 4), (0.1, 0.2, 0.3, 0.4)), Sampler(2, (3, 4), (0.3, 0.4))),
        (Sampler(7, 2), Sampler(4, 2)),  # 7 - int(7 - 3.5)
        (Sampler.ode(9), Sampler.ode(5)),
        (Sampler(4, 1, times=(0.0, 0.1, 0.3, 0.6, 1.0)), Sampler(2, 1, times=(0.3, 0.6, 1.0))),
        (Sampler(1, 3, times=(0.3, 1.0)), Sampler(1, 3, times=(0.3, 1.0))),
    ],
)
def test_strength_is_a_share_of_the_transitions(sampler, left):
    adapter, schedule = adapter_of("flux_img2img")
    found = adapter.timed(schedule, sampler)
    assert replace(found, times=None) == replace(left, times=None)
    n = sampler.steps if sampler.transitions == 1 else sampler.transitions
    if left.times is not None:
        assert found.times == left.times
    else:
        whole = schedule.outer_times(n, **adapter.grid(n))
        starts = whole[int(n - n / 2) :]
        assert found.times == (starts if sampler.transitions > 1 else (starts[0], 1.0))


def test_the_pilot_begins_with_noise_on_the_images_too():
    adapter, schedule = adapter_of("flux_img2img")
    z = torch.randn(2, 16, 16, generator=torch.Generator().manual_seed(3))
    table = adapter.timed(schedule, Sampler(4, 1)).plan(schedule.path)
    noise = KeyedNoise(7)(0, torch.empty(6, 16, 16), START)
    population = Population.of(3, (16, 16), prompts=["a", "b"], seed=7).at(noise)
    population = population.noising(z, schedule.path, t := table.times[0])
    torch.testing.assert_close(population.x, t * z.repeat_interleave(3, 0) + (1 - t) * noise)
    reward = as_reward(lambda z: z.mean((1, 2)))
    denoiser = adapter.denoiser(["a", "b"], schedule)
    pilot = pilot_of(Steering(3, scale="auto"), reward, table, denoiser, population, None, {})
    n = pilot.population.particles
    own = KeyedNoise(KeyedNoise(7).seed_of(PILOT))(0, torch.empty(2 * n, 16, 16), START)
    expected = t * z.repeat_interleave(n, 0) + (1 - t) * own
    torch.testing.assert_close(pilot.population.x, expected)
    assert pilot.table.times[0] == t


@pytest.mark.slow
def test_the_less_strength_the_closer_to_the_image():
    """In latents, on average over particles; a network of random weights knows no better."""
    pipe, far = shared("flux_img2img"), []
    for strength in (0.25, 0.5, 0.75):
        result = drawn("flux_img2img", pipe=pipe, strength=strength, particles=4, ess_threshold=0.0)
        adapter, _ = adapter_of("flux_img2img")
        with torch.no_grad():
            z = adapter.around(["a cat"])
        far.append((result.result.samples[0] - z).square().mean().item())
    assert far[0] < far[1] < far[2]


@pytest.mark.slow
def test_refinement_begins_with_it_and_fill_from_noise_takes_latents():
    first = drawn("flux_img2img", method="refine", moves=0, transitions=1, steps=4)
    plain = drawn("flux_img2img", method="best-of-n", transitions=1, steps=4, rho="ode")
    assert torch.equal(first.result.samples, plain.result.samples)
    drawn("flux_fill", latents=torch.zeros(2, 16, 16))
    with pytest.raises(InvalidArgument, match="latents: FluxFillPipeline begins with noise on"):
        drawn("flux_fill", latents=torch.zeros(2, 16, 16), strength=0.5)
    with pytest.raises(InvalidArgument, match="init: FluxImg2ImgPipeline begins with noise on"):
        drawn("flux_img2img", method="refine", init=ONE, transitions=1, steps=4)
