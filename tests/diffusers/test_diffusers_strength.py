"""Image-to-image: a strength is a share of the transitions, as of the pipeline's own steps."""

from inspect import signature
from itertools import accumulate, pairwise, product
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch

import tiny_pipelines as tiny
from cases import first
from glass_flows.diffusers import GlassScheduler
from glass_flows.errors import InvalidArgument

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PUBLISHED = {  # with SD 1.5, with SDXL, and in common use
    "pndm": diffusers.PNDMScheduler(**_BETAS, steps_offset=1, skip_prk_steps=True),
    "euler": diffusers.EulerDiscreteScheduler(**_BETAS, steps_offset=1, timestep_spacing="leading"),
    "ddim": diffusers.DDIMScheduler(
        **_BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1
    ),
    "ddpm": diffusers.DDPMScheduler(**_BETAS, clip_sample=False, steps_offset=1),
    "euler a": diffusers.EulerAncestralDiscreteScheduler(**_BETAS, steps_offset=1),
    "dpm++ karras": diffusers.DPMSolverMultistepScheduler(
        **_BETAS, steps_offset=1, use_karras_sigmas=True
    ),
    "trailing": diffusers.DDIMScheduler(
        **_BETAS, clip_sample=False, steps_offset=1, timestep_spacing="trailing"
    ),
}
STRENGTHS = (0.15, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.75, 0.9, 1.0)
FLOWS = {
    "flux": diffusers.FluxImg2ImgPipeline,
    "sd3": diffusers.StableDiffusion3Img2ImgPipeline,
    "qwenimage": diffusers.QwenImageImg2ImgPipeline,
    "zimage": diffusers.ZImageImg2ImgPipeline,
}
UNETS = {
    "sd": diffusers.StableDiffusionImg2ImgPipeline,
    "sdxl": diffusers.StableDiffusionXLImg2ImgPipeline,
}


def glass(own, **options):
    return GlassScheduler.from_config({**own.config, "_class_name": type(own).__name__}, **options)


def lay_out(scheduler, steps, sigmas=False):
    """The number of steps as a pipeline counts them once its scheduler has laid out its times."""
    if not sigmas:
        scheduler.set_timesteps(steps)
        return steps
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1.0 / steps, steps), mu=0.8)
    return len(scheduler.timesteps)


def left_by(kind, scheduler, steps, strength):
    """The timesteps of the pipeline's loop, and its number of steps, by its own arithmetic."""
    takes = list(signature(kind.get_timesteps).parameters)[1:]
    given = {"num_inference_steps": steps, "strength": strength, "device": None}
    given["timesteps"] = scheduler.timesteps
    return kind.get_timesteps(
        SimpleNamespace(scheduler=scheduler),
        **{name: given[name] for name in takes if name in given},
    )


def transitions_left(ours, timesteps):
    """How many whole transitions the rest of the timesteps is."""
    rows = [row for tr in ours.table for row in tr.rows]
    starts = [0, *accumulate(tr.evaluations for tr in ours.table)]
    first = starts.index(len(rows) - len(timesteps))
    told = [ours.schedule.model_time(ours.schedule.path, row.time) for row in rows]
    assert timesteps.tolist() == pytest.approx(told[starts[first] :])
    assert ours.begin_index in (None, starts[first])
    return len(ours.table) - first


def bar(ours, timesteps, left):
    """How far the progress bar of a pipeline's loop comes, whose total is `left`."""
    rows, order = len(timesteps), ours.order
    warm = rows - left * order
    return sum(i + 1 == rows or (i + 1 > warm and (i + 1) % order == 0) for i in range(rows))


def run(ours, timesteps):
    """Go the whole way of a pipeline's loop; the number of transitions."""
    x = torch.zeros(1, 1, 2, 2)
    for t in timesteps:
        x = ours.step(0.1 * x, t, x, return_dict=False)[0]
    with pytest.raises(InvalidArgument, match="evaluations of this run have been made"):
        ours.step(x, timesteps[-1], x)
    return len(ours.running)


@pytest.mark.parametrize("M", first([2, 1, 4]))
@pytest.mark.parametrize("name", first(PUBLISHED))
def test_what_is_run_is_what_the_pipeline_leaves_of_its_own_steps(name, M):
    ours = glass(PUBLISHED[name], rho=0.4, steps=M)
    for K in (7, 20):
        lay_out(PUBLISHED[name], K), lay_out(ours, K)
        for kind, strength in product(UNETS.values(), STRENGTHS):
            _, expected = left_by(kind, PUBLISHED[name], K, strength)
            timesteps, left = left_by(kind, ours, K, strength)
            assert transitions_left(ours, timesteps) == expected
            if {tr.evaluations for tr in ours.table.transitions[:-1]} == {M}:
                assert bar(ours, timesteps, left) == left
    left_by(kind, ours, K, 0.3)
    assert run(ours, ours.timesteps[14 * ours.order :]) == 6


@pytest.mark.parametrize("M", first([2, 1, 3, 4]))
@pytest.mark.parametrize("sigmas", first([False, True]))
def test_flows_too_whether_they_count_steps_or_rows(sigmas, M):
    own = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=sigmas)
    ours = glass(own, rho=0.4, steps=M)
    for K in (3, 7, 28):
        counted, rows = lay_out(own, K, sigmas), lay_out(ours, K, sigmas)
        for kind, strength in product(FLOWS.values(), STRENGTHS):
            _, expected = left_by(kind, own, counted, strength)
            timesteps, left = left_by(kind, ours, rows, strength)
            assert transitions_left(ours, timesteps) == expected
            assert bar(ours, timesteps, left) == left
    assert run(ours, timesteps) == expected


def test_transitions_that_are_short_of_trained_timesteps_count_as_the_others():
    """Of 60 transitions on 100 timesteps some have two rows, some three."""
    own = diffusers.DDIMScheduler(num_train_timesteps=100, timestep_spacing="trailing")
    ours = glass(own, rho=0.4, steps=3)
    lay_out(ours, 60)
    assert {tr.evaluations for tr in ours.table} == {2, 3}
    for strength in (0.3, 0.5, 1.0):
        timesteps, _ = left_by(UNETS["sd"], ours, 60, strength)
        assert transitions_left(ours, timesteps) == int(60 * strength)


def test_lists_are_counted_in_rows():
    """Pipelines take the number of rows for that of steps once they are given a list."""
    ours = glass(PUBLISHED["euler"], rho=0.4, steps=2)
    ours.set_timesteps(timesteps=[901, 701, 501, 301])
    timesteps, left = left_by(UNETS["sdxl"], ours, len(ours.timesteps), 0.5)
    assert (timesteps.tolist()[0], left) == (501, 4)
    assert run(ours, timesteps) == 2
    ours = glass(PUBLISHED["euler"], rho=0.4, steps=4)
    ours.set_timesteps(timesteps=[901, 3, 2, 1, 0])  # whose transitions are short of timesteps
    starts = [0, *accumulate(tr.evaluations for tr in ours.table)]
    assert starts[3] < 12
    for start in starts[:-1]:
        ours.set_begin_index(start)
        assert ours.begin_index == start
        assert ours.timesteps[start:].tolist() == ours.timesteps.tolist()[start:]


def test_pipelines_that_do_not_say_where_they_begin():
    for kind, M in product(
        (diffusers.AnimateDiffVideoToVideoPipeline, diffusers.KandinskyV22Img2ImgPipeline), (1, 2)
    ):
        ours = glass(PUBLISHED["trailing"], rho=0.4, steps=M)
        lay_out(ours, 7)
        if M == 2 and kind is diffusers.KandinskyV22Img2ImgPipeline:
            with pytest.raises(InvalidArgument, match="without their scheduler's `order`"):
                left_by(kind, ours, 7, 0.5)
        else:
            timesteps, _ = left_by(kind, ours, 7, 0.5)
            assert ours.begin_index is None and run(ours, timesteps) == 3


@pytest.mark.parametrize("begin", [0, None])
def test_a_loop_that_starts_inside_a_transition(begin):
    ours = glass(PUBLISHED["trailing"], rho=0.4, steps=2)
    lay_out(ours, 7)
    if begin is not None:
        ours.set_begin_index(begin)
    with pytest.raises(InvalidArgument, match="where no transition starts"):
        run(ours, torch.tensor(ours.timesteps.tolist()[3:]))


@pytest.mark.parametrize("M", [1, 2])
def test_a_strength_that_leaves_nothing(M):
    ours = glass(PUBLISHED["ddim"], rho=0.4, steps=M)
    lay_out(ours, 4)
    with pytest.raises(InvalidArgument, match="raise the strength"):
        left_by(UNETS["sd"], ours, 4, 0.1)


@pytest.mark.slow
@pytest.mark.parametrize("M", [1, 2, 4])
def test_every_pipeline_with_a_strength(M):
    """Of the installed diffusers, but for those that slice without `order`: Kandinsky's."""
    own, seen = PUBLISHED["trailing"], 0
    ours = glass(own, rho=0.4, steps=M)
    lay_out(own, 20), lay_out(ours, 20)
    for name in dir(diffusers):
        kind = getattr(diffusers, name)
        if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
            continue
        if not hasattr(kind, "get_timesteps") or name == "LTXConditionPipeline":
            continue
        if M > 1 and "Kandinsky" in name:
            continue
        seen += 1
        for strength in STRENGTHS:
            ours._begin_index = None
            _, expected = left_by(kind, own, 20, strength)
            timesteps, _ = left_by(kind, ours, 20, strength)
            assert transitions_left(ours, timesteps) == expected, name
    assert seen > 40


# --- the same images ----------------------------------------------------------------------------


class OnTimesteps(diffusers.DDIMScheduler):
    """DDIM (Song et al. 2021, eq. 12 with η = 0), written out, on any timesteps."""

    listed, last = (), 1.0

    def set_timesteps(self, num_inference_steps, device=None):
        self.timesteps = torch.tensor(self.listed)

    def step(self, model_output, timestep, sample, return_dict=True, **_):
        table = [*self.listed, None]
        after = dict(pairwise(table))[int(timestep)]
        a = self.alphas_cumprod[int(timestep)]
        b = self.last if after is None else self.alphas_cumprod[after]
        clean = (sample - (1 - a) ** 0.5 * model_output) / a**0.5
        return (b**0.5 * clean + (1 - b) ** 0.5 * model_output,)


def picture(pipe, kind, name, strength, steps=6):
    given = dict(tiny.CALL[name])
    job = kind.from_pipe(pipe, **({"add_watermarker": False} if name == "sdxl" else {}))
    job.set_progress_bar_config(disable=True)
    pixels = torch.rand(1, 3, given["height"], given["width"],
                        generator=torch.Generator().manual_seed(1))  # fmt: skip
    if name in UNETS:
        given.pop("height"), given.pop("width")
    return job(image=pixels, strength=strength, num_inference_steps=steps, output_type="pt",
               generator=torch.Generator().manual_seed(2), **given).images  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sd", pytest.param("sdxl", marks=pytest.mark.slow)])
def test_the_images_are_ddims_on_the_same_timesteps(name):
    pipe = tiny.build(name)
    for own in PUBLISHED.values():
        pipe.scheduler = ours = glass(own, rho=1.0, steps=1)
        image = picture(pipe, UNETS[name], name, 0.7)
        pipe.scheduler = theirs = OnTimesteps(**_BETAS, clip_sample=False, steps_offset=1)
        theirs.listed = ours.timesteps.tolist()
        short = type(own).__name__ in ("DDIMScheduler", "PNDMScheduler")
        short = short and own.config.set_alpha_to_one is False
        theirs.last = theirs.alphas_cumprod[0] if short else torch.tensor(1.0)
        assert len(ours.running) == 4
        torch.testing.assert_close(
            image, picture(pipe, UNETS[name], name, 0.7), atol=1e-5, rtol=1e-4
        )


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    ["flux", *(pytest.param(name, marks=pytest.mark.slow) for name in FLOWS if name != "flux")],
)
def test_the_images_are_eulers(name):
    pipe = tiny.build(name)
    own = pipe.scheduler
    for strength in (0.35, 0.9):
        pipe.scheduler = own
        theirs = picture(pipe, FLOWS[name], name, strength)
        pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=1.0, steps=1)
        torch.testing.assert_close(
            picture(pipe, FLOWS[name], name, strength), theirs, atol=1e-4, rtol=1e-3
        )
        pipe.scheduler = own
        pipe.scheduler = ours = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=4)
        picture(pipe, FLOWS[name], name, strength)
        assert len(ours.running) == 6 - int(6 - 6 * strength)
