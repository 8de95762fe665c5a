"""What a pipeline's loop would do wrong inside a transition is refused before it runs."""

import warnings

import diffusers
import pytest
import torch

import tiny_pipelines as tiny
from glass_flows import Sampler, steer_pipeline
from glass_flows.diffusers import GlassScheduler
from glass_flows.diffusers.refusals import _PIPELINES, check_call, check_pipeline
from glass_flows.errors import InvalidArgument


def with_glass(name, steps=2, **variant):
    pipe = tiny.build(name, **variant)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=steps)
    return pipe


def draw(pipe, name, **changes):
    given = {**tiny.CALL[name], **changes}
    return pipe(num_inference_steps=3, output_type="latent", **given).images


@pytest.mark.parametrize("name", _PIPELINES)
def test_pipelines_that_are_refused_exist_and_say_why(name):
    kind = getattr(diffusers, name)
    with pytest.raises(InvalidArgument, match=f"{name} is not supported: it"):
        check_pipeline(object.__new__(kind))


def test_what_is_no_pipeline():
    with pytest.raises(InvalidArgument, match="expected a diffusers pipeline, got Linear"):
        GlassScheduler.from_pipeline(torch.nn.Linear(1, 1))
    modular = object.__new__(diffusers.ModularPipeline)
    with pytest.raises(InvalidArgument, match="Modular"):
        GlassScheduler.from_pipeline(modular)


@pytest.mark.parametrize("argument", [{"denoising_end": 0.8}])
def test_cuts_by_the_value_of_a_timestep(argument):
    with pytest.raises(InvalidArgument, match="denoising_end cuts"):
        draw(with_glass("sdxl"), "sdxl", **argument)
    assert torch.isfinite(draw(with_glass("sdxl", steps=1), "sdxl", **argument)).all()


def test_a_refiners_start():
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(
        tiny.build("sdxl"), requires_aesthetics_score=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    with pytest.raises(InvalidArgument, match="denoising_start cuts"):
        pipe("a cat", image=torch.rand(1, 3, 16, 16), denoising_start=0.5, num_inference_steps=4)


def test_windows_counted_in_network_steps():
    with pytest.raises(InvalidArgument, match="skip_guidance_layers"):
        draw(with_glass("sd3"), "sd3", skip_guidance_layers=[0])
    assert torch.isfinite(draw(with_glass("sd3", steps=1), "sd3", skip_guidance_layers=[0])).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("flux", diffusers.FluxInpaintPipeline),
        ("sd", diffusers.StableDiffusionInpaintPipeline),
        pytest.param("sdxl", diffusers.StableDiffusionXLInpaintPipeline, marks=pytest.mark.slow),
    ],
)
def test_inpainting_blends_into_the_networks_input(name, kind):
    extra = {"requires_aesthetics_score": False} if name == "sdxl" else {}
    given = {k: v for k, v in tiny.CALL[name].items() if k not in ("height", "width")}
    given |= {"height": 16, "width": 16, "strength": 1.0}
    picture, mask = torch.rand(1, 3, 16, 16), torch.zeros(1, 1, 16, 16)
    for steps in (1, 2):
        pipe = kind.from_pipe(tiny.build(name), **extra)
        pipe.set_progress_bar_config(disable=True)
        pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=steps)

        def job(pipe=pipe):
            return pipe(image=picture, mask_image=mask, num_inference_steps=3, output_type="pt",
                        **given).images  # fmt: skip

        if steps == 1:  # every step is a boundary
            assert torch.isfinite(job()).all()
        else:
            with pytest.raises(InvalidArgument, match="blends"):
                job()


def test_the_noise_of_ddim_is_asked_for_at_the_scheduler():
    with pytest.raises(InvalidArgument, match=r"rho='ddim:0\.5'"):
        draw(with_glass("sd"), "sd", eta=0.5)


def test_caches_that_count_on_ordered_times():
    pipe = with_glass("flux")
    config = diffusers.PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2, current_timestep_callback=lambda: 500
    )
    pipe.transformer.enable_cache(config)
    with pytest.raises(InvalidArgument, match=r"PyramidAttentionBroadcastConfig.*disable_cache"):
        draw(pipe, "flux")
    pipe.transformer.disable_cache()
    assert torch.isfinite(draw(pipe, "flux")).all()


def test_a_call_is_found_through_frames_in_between():
    class Fake(diffusers.DiffusionPipeline):
        def __init__(self, scheduler):
            super().__init__()
            self.register_modules(scheduler=scheduler)

        def __call__(self, denoising_end=None):
            self.prepare()

        def prepare(self):
            check_call(2)

    pipe = Fake(diffusers.DDIMScheduler())
    pipe()
    with pytest.raises(InvalidArgument, match="denoising_end"):
        pipe(denoising_end=0.5)
    check_call(2)  # no pipeline is calling


def test_few_step_models_are_warned_of():
    schnell = tiny.build("flux", guidance_embeds=False)
    schnell.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    with pytest.warns(UserWarning, match="schnell") as caught:
        GlassScheduler.from_pipeline(schnell)
        steer_pipeline(
            schnell, "a cat", lambda images: images.mean((1, 2, 3)), "plain", Sampler(1, 1),
            height=16, width=16, max_sequence_length=32,
        )  # fmt: skip
    assert [one.filename for one in caught] == [__file__] * 2  # the line of the user
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        GlassScheduler.from_pipeline(tiny.build("flux"))


def test_few_step_models_are_told_by_their_names(tmp_path):
    tiny.save("sdxl", tmp_path / "sdxl-turbo")
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        tmp_path / "sdxl-turbo", local_files_only=True
    )
    assert str(pipe.name_or_path) == str(tmp_path / "sdxl-turbo")
    for name in ("sdxl-turbo", "Z-Image-Turbo", "SDXL-Lightning"):
        pipe.register_to_config(_name_or_path=str(tmp_path / name))  # as if loaded from there
        with pytest.warns(UserWarning, match=f"{name} looks distilled"):
            GlassScheduler.from_pipeline(pipe)


def test_a_clock_that_runs_backwards():
    mochi = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    config = {**mochi.config, "_class_name": type(mochi).__name__}
    with pytest.raises(InvalidArgument, match="invert_sigmas"):
        GlassScheduler.from_config(config)
