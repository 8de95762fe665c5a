"""Few-step models are told from others, and several evaluations to a transition are warned of."""

import re
import warnings
from itertools import pairwise
from types import SimpleNamespace

import diffusers
import pytest

import tiny_pipelines as tiny
from cases import first, one_in
from glass_flows import Sampler, paths, plan, steer_pipeline
from glass_flows.diffusers import GlassScheduler
from glass_flows.diffusers.few_steps import few_steps_of
from glass_flows.errors import InvalidArgument
from glass_flows.jobs.models import resolve


def schnell():
    pipe = tiny.build("flux", guidance_embeds=False)
    pipe.scheduler = diffusers.FlowMatchEulerDiscreteScheduler(shift=1.0)
    return pipe


def klein():
    pipe = tiny.build("flux2_klein")
    pipe.register_to_config(is_distilled=True)
    return pipe


def consistency():
    """A latent consistency model behind DDIM's grid; its UNet takes the guidance scale."""
    pipe = tiny.build("sd")
    pipe.unet.register_to_config(time_cond_proj_dim=256)
    return pipe


def named(name, family="sdxl"):
    pipe = tiny.build(family)
    pipe.register_to_config(_name_or_path=name)  # as if loaded from there
    return pipe


def brightness(images):
    return images.mean((1, 2, 3))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (schnell, "FLUX.1-schnell"),
        (klein, "a distilled Flux2KleinPipeline"),
        (consistency, "a latent consistency model"),
    ],
)
def test_few_step_models_are_told_by_their_configuration(make, name):
    assert few_steps_of(make()).name == name


@pytest.mark.parametrize(
    ("name", "rho"),
    one_in(
        3,
        [
            ("black-forest-labs/FLUX.1-schnell", "'ode'"),
            ("stabilityai/sdxl-turbo", "'ddpm'"),
            ("/models/Z-Image-Turbo/", "'ode'"),
            ("ByteDance/SDXL-Lightning", "'ode'"),
            ("ByteDance/Hyper-SD", "'ode'"),
            ("SimianLuo/LCM_Dreamshaper_v7", "0.0"),
            ("h1t/TCD-SDXL-LoRA", "0.0"),
            ("tianweiy/DMD2", "0.0"),
            ("Efficient-Large-Model/Sana_Sprint_1.6B", "0.0"),
        ],
    ),
)
def test_few_step_models_are_told_by_their_names(name, rho):
    pipe = named(name)
    assert few_steps_of(pipe).rho == rho
    pipe.register_to_config(_name_or_path="")
    pipe.unet.register_to_config(_name_or_path=name)  # only its network comes from there
    assert few_steps_of(pipe).rho == rho
    pipe.unet.register_to_config(_name_or_path="")
    assert few_steps_of(pipe) is None
    pipe.unet.peft_config = {"default_0": None, name.rstrip("/").rpartition("/")[2]: None}
    assert few_steps_of(pipe).rho == rho


@pytest.mark.parametrize("family", one_in(4, tiny.FIRST))
def test_ordinary_pipelines_are_taken_for_none(family):
    assert few_steps_of(tiny.build(family)) is None


def test_the_bundled_shapes_are_taken_for_none():
    assert few_steps_of(resolve("shapes").load()) is None


@pytest.mark.parametrize(
    "name",
    one_in(
        3,
        [
            "stabilityai/stable-diffusion-xl-base-1.0",
            "black-forest-labs/FLUX.1-dev",
            "black-forest-labs/FLUX.2-klein-base-4B",
            "Tongyi-MAI/Z-Image",
            "Efficient-Large-Model/Sana_1600M_1024px_diffusers",
            "segmind/SSD-1B",  # smaller by distillation, with the steps of its teacher
            "someone/hypernetworks",
            "someone/malcmore",
            "turbo-experiments/plain-sdxl",
        ],
    ),
)
def test_names_of_ordinary_models_say_nothing(name):
    assert few_steps_of(named(name)) is None


@pytest.mark.slow
def test_several_evaluations_are_warned_of_once():
    pipe = schnell()
    with pytest.warns(UserWarning, match=r"FLUX\.1-schnell.*4 evaluations.*steps=1") as caught:
        GlassScheduler.from_pipeline(pipe)
        GlassScheduler.from_pipeline(pipe, steps=2)
        steer_pipeline(
            pipe, "a cat", brightness, "plain", Sampler(1, 2), height=16, width=16,
            max_sequence_length=32,
        )  # fmt: skip
    assert [one.filename for one in caught] == [__file__]  # the line of the user
    with pytest.warns(UserWarning, match="sdxl-turbo looks distilled"):
        steer_pipeline(
            named("stabilityai/sdxl-turbo"), "a cat", brightness, "plain", Sampler(1, [2]),
            height=16, width=16,
        )  # fmt: skip


def test_a_scheduler_put_in_by_hand_is_warned_of_when_it_is_asked():
    pipe = named("stabilityai/sd-turbo", "sd")
    config = {**pipe.scheduler.config, "_class_name": type(pipe.scheduler).__name__}
    pipe.scheduler = GlassScheduler.from_config(config, steps=2)
    with pytest.warns(UserWarning, match="sd-turbo looks distilled"):
        pipe(num_inference_steps=2, output_type="latent", **tiny.CALL["sd"])


@pytest.mark.parametrize(("make", "family"), first([(schnell, "flux"), (klein, "flux2_klein")]))
def test_what_the_warning_says_to_use_runs_without_one(make, family):
    with pytest.warns(UserWarning, match="looks distilled") as caught:
        GlassScheduler.from_pipeline(make())
    quote, rho = re.search(r"rho=('?)([\w.]+)\1 for", str(caught[0].message)).groups()
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        pipe = make()
        pipe.scheduler = GlassScheduler.from_pipeline(
            pipe, steps=1, rho=rho if quote else float(rho)
        )
        pipe(num_inference_steps=2, output_type="latent", **tiny.CALL[family])


def test_a_distilled_klein_is_asked_once_for_an_evaluation():
    """As its own pipeline, which ignores the guidance scale."""
    call = {**tiny.CALL["flux2_klein"]}
    result = steer_pipeline(
        klein(),
        call.pop("prompt"),
        brightness,
        particles=2,
        scale=1.0,
        transitions=2,
        steps=1,
        **call,
    )
    assert result.result.network_evaluations == 2 * 2


@pytest.mark.parametrize(
    ("kind", "family", "settings"),
    first(
        [
            ("LCMScheduler", "sd", {}),
            ("TCDScheduler", "sd", {}),
            ("FlowMatchLCMScheduler", "flux", {}),
        ]
    ),
)
def test_schedulers_of_few_step_models_name_one_that_does(kind, family, settings):
    pipe = tiny.build(family)
    pipe.scheduler = getattr(diffusers, kind).from_config(pipe.scheduler.config, **settings)
    with pytest.raises(InvalidArgument, match=f"stand in for {kind}.*few steps") as raised:
        GlassScheduler.from_pipeline(pipe)
    told = str(raised.value)
    instead = re.search(r"put (.*) in its place", told).group(1)
    pipe.scheduler = eval(instead, {**vars(diffusers), "pipe": pipe})
    assert "steps=1, rho=0.0" in told
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, steps=1, rho=0.0)
    pipe(num_inference_steps=4, output_type="latent", **tiny.CALL[family])
    if family == "sd":  # from the noise that the model was trained to start from
        assert pipe.scheduler.timesteps[0] == 999


def test_turbos_own_sampler_is_ddpm():
    """Euler ancestral, restated: σ↓ = σ'²/σ, σ↑² = σ'² (σ² - σ'²)/σ², σ is noise over signal."""
    table = plan(paths.Linear(), transitions=5, steps=1, rho="ddpm")
    for one, (t, t_next) in list(zip(table, pairwise(table.times)))[1:-1]:
        before, after = (1 - t) / t, (1 - t_next) / t_next
        down, up = after**2 / before, after * (before**2 - after**2) ** 0.5 / before
        of = SimpleNamespace(x=one.gamma * t / t_next, D=one.alpha_bar / t_next)
        assert of.x == pytest.approx(down / before, abs=1e-12)
        assert pytest.approx(1 - down / before, abs=1e-12) == of.D
        assert one.sigma_bar / t_next == pytest.approx(up, abs=1e-12)


def test_the_sampler_of_consistency_models_is_rho_zero():
    """z, noised again: x' = α' D + σ' ε."""
    table = plan(paths.Linear(), transitions=5, steps=1, rho=0.0)
    for one, t_next in list(zip(table, table.times[1:]))[1:-1]:
        assert (one.gamma, one.alpha_bar, one.sigma_bar) == pytest.approx((0, t_next, 1 - t_next))


@pytest.mark.slow
def test_moves_of_refinement_are_transitions_too():
    """Of samples drawn in single evaluations, whose moves take three."""
    options = {"transitions": 2, "steps": 1, "rho": "ddpm", "moves": 1, "particles": 1, "seed": 0}
    with pytest.warns(UserWarning, match="3 evaluations to a transition.*steps=1, move_steps=1"):
        steer_pipeline(schnell(), "a cat", brightness, "refine", height=16, width=16, **options)
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        options |= {"move_steps": 1}
        steer_pipeline(schnell(), "a cat", brightness, "refine", height=16, width=16, **options)
