"""What a pipeline's loop would do wrong inside a transition is refused before it runs."""

import ast
import re

import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback

import tiny_pipelines as tiny
from cases import first
from glass_flows import steer_pipeline
from glass_flows.diffusers import GlassScheduler, rules
from glass_flows.diffusers.refusals import check_call, check_pipeline
from glass_flows.diffusers.rules import RULES, Call
from glass_flows.errors import InvalidArgument
from glass_flows.plans import DDIM


def with_glass(name, steps=2, **variant):
    pipe = tiny.build(name, **variant)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=steps)
    return pipe


def draw(pipe, name, **changes):
    given = {**tiny.CALL[name], **changes}
    return pipe(num_inference_steps=3, output_type="latent", **given).images


# What makes a rule hold that depends on the parts of a pipeline, and a wrong value of each kind.
class Network:
    def __init__(self, **config):
        self.config = config


PARTS = {
    rules._always: {},
    rules._blends: {"unet": Network(in_channels=4)},
    rules._has_audio_scheduler: {"audio_scheduler": diffusers.DDIMScheduler()},
    rules._is_mean_flow: {"transformer": Network(use_meanflow=True)},
    rules._stands_on_unipc: {"scheduler": diffusers.UniPCMultistepScheduler()},
}
WRONG = {
    rules._is_given: "something",
    rules._is_true: True,
    rules._is_below_one: 0.75,
    rules._is_one: 1,
    rules._is_another_eta: 0.5,
    rules._is_part_of_a_window: 1.0,
    rules._cuts_at_an_index: SDCFGCutoffCallback(None, cutoff_step_index=2),
}


def bare(name, rule):
    """A pipeline of such a name, which test_pipelines_table.py looks up in the sources."""
    pipe = type(name, (diffusers.DiffusionPipeline,), {"__call__": lambda self: None})()
    vars(pipe).update(PARTS[rule.only])
    return pipe


def cases(chosen):
    for rule in filter(chosen, RULES):
        for name in rule.names or ("StableDiffusionXLPipeline",):
            for argument in rule.arguments or ("prompt",):
                yield pytest.param(rule, name, argument, id=f"{name}-{argument}-{rule.feature}")


@pytest.mark.parametrize(("rule", "name", "argument"), [*cases(lambda rule: True)])
def test_every_refusal_names_its_pipeline_and_its_remedies_work(rule, name, argument):
    given = {argument: WRONG[rule.wrong]}
    call = Call(bare(name, rule), given, 4, 0.4)
    with pytest.raises(InvalidArgument, match=f"^{name} is not supported.*: it ") as caught:
        rule.check(call)
    told = str(caught.value)
    assert rule.why in told
    ways = told.partition(". Use ")[2].split(", or ") if ". Use " in told else []
    assert len(ways) == rule.inside + rule.random + bool(rule.arguments) + bool(rule.instead)
    if "steps=1" in ways:
        rule.check(Call(call.pipe, given, 1, 0.4))
    if "rho='ode'" in ways:
        rule.check(Call(call.pipe, given, 4, "ode"))
    if rule.arguments:
        (value,) = (re.fullmatch(f"{argument}=(.*)", way) for way in ways if argument in way)
        rule.check(Call(call.pipe, {argument: ast.literal_eval(value.group(1))}, 4, 0.4))
        rule.check(Call(call.pipe, {}, 4, 0.4))
    if rule.only is not rules._always:
        pipe = object.__new__(type(call.pipe))
        vars(pipe).update(unet=Network(in_channels=9), scheduler=diffusers.DDIMScheduler())
        rule.check(Call(pipe, given, 4, 0.4))


@pytest.mark.parametrize(("rule", "name", "argument"), [*cases(lambda rule: rule.whole)])
def test_pipelines_that_are_refused_as_a_whole_are_refused_at_once(rule, name, argument):
    with pytest.raises(InvalidArgument, match=f"{name} is not supported: it"):
        check_pipeline(bare(name, rule))
    for engine in (GlassScheduler.from_pipeline, lambda p: steer_pipeline(p, "a cat", torch.mean)):
        with pytest.raises(InvalidArgument, match=f"{name} is not supported: it"):
            engine(bare(name, rule))


def test_subclasses_are_refused_with_their_pipelines():
    class Mine(diffusers.AnyFlowPipeline):
        pass

    with pytest.raises(InvalidArgument, match="AnyFlowPipeline is not supported"):
        check_pipeline(object.__new__(Mine))


def test_transitions_that_draw_no_noise_are_known():
    pipe = object.__new__(diffusers.LTX2ConditionPipeline)
    held = {
        rho: Call(pipe, {}, 1, rho).random for rho in (1.0, "ode", DDIM(0.0), 0.4, "ddpm", None)
    }
    assert held == {1.0: False, "ode": False, DDIM(0.0): False, 0.4: True, "ddpm": True, None: True}


@pytest.mark.parametrize("rule", [rule for rule in RULES if "Pipeline" in rule.instead])
def test_pipelines_that_are_named_instead_run(rule):
    given = {"prompt": "a cat", "image": None, "strength": 1.0}
    for name in re.findall(r"\w+Pipeline\b", rule.instead):
        for other in RULES:
            other.check(Call(bare(name, other), given, 4, 0.4))


def test_what_is_no_pipeline():
    with pytest.raises(InvalidArgument, match="expected a diffusers pipeline, got Linear"):
        GlassScheduler.from_pipeline(torch.nn.Linear(1, 1))
    modular = object.__new__(diffusers.ModularPipeline)
    with pytest.raises(InvalidArgument, match="Modular"):
        GlassScheduler.from_pipeline(modular)


@pytest.mark.slow
@pytest.mark.parametrize("argument", [{"denoising_end": 0.8}])
def test_cuts_by_the_value_of_a_timestep(argument):
    with pytest.raises(InvalidArgument, match=r"denoising_end=0\.8: it cuts"):
        draw(with_glass("sdxl"), "sdxl", **argument)
    assert torch.isfinite(draw(with_glass("sdxl", steps=1), "sdxl", **argument)).all()


def test_a_refiners_start():
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline.from_pipe(
        tiny.build("sdxl"), requires_aesthetics_score=False
    )
    pipe.set_progress_bar_config(disable=True)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    with pytest.raises(InvalidArgument, match=r"denoising_start=0\.5: it cuts"):
        pipe("a cat", image=torch.rand(1, 3, 16, 16), denoising_start=0.5, num_inference_steps=4)


@pytest.mark.slow
def test_windows_counted_in_network_steps():
    with pytest.raises(InvalidArgument, match="skip_guidance_layers"):
        draw(with_glass("sd3"), "sd3", skip_guidance_layers=[0])
    assert torch.isfinite(draw(with_glass("sd3", steps=1), "sd3", skip_guidance_layers=[0])).all()


@pytest.mark.parametrize(
    ("name", "kind"),
    first(
        [
            ("flux", diffusers.FluxInpaintPipeline),
            ("sd", diffusers.StableDiffusionInpaintPipeline),
            ("sdxl", diffusers.StableDiffusionXLInpaintPipeline),
        ]
    ),
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


@pytest.mark.slow
def test_the_noise_of_ddim_is_asked_for_at_the_scheduler():
    pipe = tiny.build("sd")
    own = pipe.scheduler
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    draw(pipe, "sd", eta=0.0)
    with pytest.raises(InvalidArgument, match=r"eta=0\.5.*rho='ddim:0\.5' and steps=1"):
        draw(pipe, "sd", eta=0.5)
    pipe.scheduler = own
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho="ddim:0.5", steps=1)
    draws = [draw(pipe, "sd", generator=torch.Generator().manual_seed(0), **eta)
             for eta in ({}, {"eta": 0.5})]  # fmt: skip
    assert torch.equal(*draws)
    with pytest.raises(InvalidArgument, match=r"rho='ddim:0\.25'"):
        draw(pipe, "sd", eta=0.25)


def adapted():
    """Stable Diffusion XL with a T2I-adapter, and its call."""
    parts = tiny.build("sdxl").components
    adapter = diffusers.T2IAdapter(
        in_channels=3, channels=[16, 32], num_res_blocks=1, downscale_factor=4,
        adapter_type="full_adapter_xl",
    )  # fmt: skip
    left = {k: v for k, v in parts.items() if k not in ("image_encoder", "feature_extractor")}
    pipe = diffusers.StableDiffusionXLAdapterPipeline(**left, adapter=adapter)
    pipe.set_progress_bar_config(disable=True)
    return pipe, {"image": torch.rand(1, 3, 16, 16), "height": 16, "width": 16}


def seen(pipe):
    """Which evaluations of the network are given the adapter's features."""
    found = []
    pipe.unet.register_forward_pre_hook(
        lambda module, args, kwargs: found.append(
            kwargs.get("down_intrablock_additional_residuals") is not None
        ),
        with_kwargs=True,
    )
    return found


@pytest.mark.parametrize(
    ("steps", "factor", "told"),
    first([(1, 0.5, 2), (1, 1.0, 4), (2, 2.0, 8), (2, 0.0, 0)]),
)
def test_the_window_of_an_adapter(steps, factor, told):
    pipe, call = adapted()
    found = seen(pipe)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=steps)
    pipe("a cat", num_inference_steps=4, adapter_conditioning_factor=factor, **call)
    assert (len(found), sum(found)) == (4 * steps, told)
    assert found == sorted(found, reverse=True)


@pytest.mark.parametrize("given", first([{}, {"adapter_conditioning_factor": 0.5}]))
def test_the_window_of_an_adapter_is_refused_inside_transitions(given):
    pipe, call = adapted()
    found, match = seen(pipe), r"steps=2 and adapter_conditioning_factor=.*Use steps=1, or .*=2\.0"
    with pytest.raises(InvalidArgument, match=match):
        steer_pipeline(
            pipe, "a cat", lambda images: images.mean((1, 2, 3)), particles=2, transitions=2,
            steps=2, seed=0, **call, **given,
        )  # fmt: skip
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    with pytest.raises(InvalidArgument, match=match):
        pipe("a cat", num_inference_steps=4, **call, **given)
    assert not found


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


def test_modular_pipelines_put_in_by_hand_run_with_one_evaluation_per_transition():
    class Blocks(diffusers.ModularPipeline):
        def __init__(self):
            pass

        def __call__(self, steps):
            check_call(steps)

    Blocks()(1)
    with pytest.raises(InvalidArgument, match=r"Blocks .*steps=2: modular .*Use steps=1"):
        Blocks()(2)


@pytest.mark.slow
@pytest.mark.parametrize("steps", [1, 2])
def test_the_cut_off_of_a_callback(steps):
    pipe = with_glass("sd", steps)
    by_index = SDCFGCutoffCallback(None, cutoff_step_index=1)
    for callback in (by_index, MultiPipelineCallbacks([by_index])):
        if steps == 1:
            draw(pipe, "sd", callback_on_step_end=callback)
        else:
            with pytest.raises(InvalidArgument, match="cutoff_step_ratio, the share"):
                draw(pipe, "sd", callback_on_step_end=callback)
    batches = []
    pipe.unet.register_forward_pre_hook(lambda module, args: batches.append(len(args[0])))
    draw(pipe, "sd", callback_on_step_end=SDCFGCutoffCallback(cutoff_step_ratio=0.34))
    cut = int(3 * steps * 0.34) + 1  # guidance doubles the batch up to there
    assert batches == [2] * cut + [1] * (3 * steps - cut)


def test_a_clock_that_runs_backwards():
    mochi = diffusers.FlowMatchEulerDiscreteScheduler(invert_sigmas=True)
    config = {**mochi.config, "_class_name": type(mochi).__name__}
    with pytest.raises(InvalidArgument, match="invert_sigmas"):
        GlassScheduler.from_config(config)
