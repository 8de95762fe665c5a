"""The drop-in scheduler on unmodified tiny pipelines of every family."""

import copy
import json

import diffusers
import numpy as np
import pytest
import torch

import tiny_pipelines as tiny
from cases import fast, first
from glass_flows.diffusers import GlassScheduler, LatentNoise, Schedule
from glass_flows.errors import (
    DegeneratePrediction,
    InvalidArgument,
    NonFinite,
    PlanError,
    ShapeError,
    UnknownName,
)

UNETS = ("sd", "sdxl", "dit")


def draw(pipe, name, steps=4, seed=3, **changes):
    given = {**tiny.CALL[name], **changes}
    output = "np" if name == "dit" else "latent"
    generator = torch.Generator().manual_seed(seed)
    images = pipe(
        **given, num_inference_steps=steps, generator=generator, output_type=output
    ).images
    return torch.as_tensor(images)


def calls(pipe, job):
    """How often the network was called."""
    count = []
    handle = tiny.network(pipe).register_forward_pre_hook(lambda *_: count.append(1))
    result = job()
    handle.remove()
    return result, len(count)


# --- 1. the family's own sampler is a corner of it --------------------------------------


@pytest.mark.parametrize(
    "name", first(tiny.some("flux", "sd3", "sdxl", "sd", "sana", "qwenimage", "kontext"))
)
def test_one_evaluation_that_keeps_its_noise_is_the_familys_own_sampler(name):
    pipe = tiny.build(name)
    own = pipe.scheduler
    if name in UNETS:
        short = own.config.get("set_alpha_to_one", True)
        pipe.scheduler = diffusers.DDIMScheduler.from_config(
            own.config, clip_sample=False, set_alpha_to_one=short
        )
    if name == "sana":
        pipe.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(
            own.config, solver_order=1
        )
    theirs = draw(pipe, name, steps=3)
    pipe.scheduler = own
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=1.0, steps=1, start="trained")
    ours = draw(pipe, name, steps=3)
    assert (ours - theirs).norm() <= 1e-5 * theirs.norm()


@pytest.mark.parametrize("eta", [0.0, 0.5, 1.0])
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_ddim_with_any_eta_step_by_step(eta, prediction):
    """The same coefficients as diffusers' DDIM, given the same noise."""
    settings = {"clip_sample": False, "prediction_type": prediction, "timestep_spacing": "trailing"}
    own = diffusers.DDIMScheduler(**settings)
    ours = GlassScheduler.from_config(
        {**own.config, "_class_name": "DDIMScheduler"}, rho=f"ddim:{eta}", steps=1, end="data"
    )
    own.set_timesteps(5), ours.set_timesteps(5)
    assert own.timesteps.tolist() == ours.timesteps.tolist()
    noise = torch.Generator().manual_seed(0)
    x = y = torch.randn(2, 3, 4, 4, generator=noise)
    keyed = LatentNoise(x)
    for k, t in enumerate(own.timesteps):
        output = torch.randn(x.shape, generator=noise)
        eps = keyed(k, x)
        x = own.step(output, t, x, eta=eta, variance_noise=eps).prev_sample
        y = ours.step(output, t, y).prev_sample
        torch.testing.assert_close(y, x, rtol=1e-4, atol=1e-4)


# --- 2. counts, seeds, progress ---------------------------------------------------------


@pytest.mark.parametrize("name", first(tiny.some("flux", "sd", "qwenimage", "flux_img2img")))
def test_the_network_is_called_k_times_m_and_a_second_call_repeats_the_first(name):
    pipe = tiny.build(name)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    apart = ("flux2_klein", "qwenimage", "chroma", "chroma_img2img", "flux_controlnet",
             "qwenimage_edit")  # fmt: skip
    own = 2 if name in apart else 1  # two calls for guidance
    first, count = calls(pipe, lambda: draw(pipe, name, steps=2))
    rows = pipe.scheduler.table.evaluations
    assert rows == len(pipe.scheduler.timesteps)
    assert count == own * (rows // 2 if name in tiny.FROM_IMAGE else rows)  # half of the way
    # timesteps end at 1 with the spacing "leading": there the last transition has fewer
    assert rows == 4 or (name in UNETS and rows == 3)
    assert torch.equal(draw(pipe, name, steps=2), first)
    assert not torch.equal(draw(pipe, name, steps=2, seed=4), first)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2, seed=1)
    other = draw(pipe, name, steps=2)
    by_generator = name in ("sd", "sdxl", "sana")
    assert torch.equal(other, first) == by_generator


def test_noise_is_found_from_each_latent_by_itself():
    x = torch.randn(3, 2, 4, generator=torch.Generator().manual_seed(0))
    whole, last = LatentNoise(x), LatentNoise(x[2:])
    assert torch.equal(whole(1, x)[2:], last(1, x[2:]))
    assert not torch.equal(whole(1, x)[0], whole(1, x)[1])
    assert not torch.equal(whole(1, x), whole(2, x))
    assert not torch.equal(whole(1, x), LatentNoise(x, 5)(1, x))
    twins = LatentNoise(torch.cat([x[:1], x[:1]]))(0, x[:2])
    assert torch.equal(twins[0], twins[1])  # the same latents, the same image
    with pytest.raises(ShapeError):
        whole(1, x[:2])


@pytest.mark.slow
@pytest.mark.parametrize("name", fast(["flux"], ["flux", "sd3", "sdxl"]))
def test_the_progress_bar_counts_right(name, monkeypatch):
    pipe = tiny.build(name)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=3)
    seen = {}

    class Bar:
        def __init__(self, total):
            seen.update(total=total, done=0)

        def __enter__(self):
            return self

        def __exit__(self, *_):
            pass

        def update(self):
            seen["done"] += 1

    monkeypatch.setattr(pipe, "progress_bar", lambda total: Bar(total))
    draw(pipe, name)
    assert seen["total"] == seen["done"] == (12 if name == "flux" else 4)


# --- 3. what is taken over --------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "settings"),
    [
        ("DDIMScheduler", {}),
        ("DDPMScheduler", {}),
        ("PNDMScheduler", {"skip_prk_steps": True}),
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"use_karras_sigmas": True}),
        ("EulerAncestralDiscreteScheduler", {"timestep_spacing": "trailing"}),
        ("LMSDiscreteScheduler", {}),
        ("HeunDiscreteScheduler", {}),
        ("DPMSolverMultistepScheduler", {"use_karras_sigmas": True}),
        ("UniPCMultistepScheduler", {}),
        ("DEISMultistepScheduler", {}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("FlowMatchHeunDiscreteScheduler", {"shift": 2.0}),
        (
            "UniPCMultistepScheduler",
            {"prediction_type": "flow_prediction", "use_flow_sigmas": True},
        ),
    ],
)
def test_schedulers_that_it_stands_on(kind, settings):
    own = getattr(diffusers, kind)(**settings)
    ours = GlassScheduler.from_config({**own.config, "_class_name": kind}, rho=0.4, steps=3)
    ours.set_timesteps(5)
    table = ours.table
    assert len(table) == 5 and table.times[-1] == 1.0
    own.set_timesteps(5)
    starts = [row.time for tr in table for row in tr.rows[:1]]
    told = [ours.schedule.model_time(ours.schedule.path, t) for t in starts]
    unique = list(dict.fromkeys(float(t) for t in own.timesteps))
    if len(unique) == 5:  # others repeat timesteps, or go between them
        np.testing.assert_allclose(told, unique, atol=0.51)
    x = torch.randn(2, 3, 4, 4)
    for t in ours.timesteps:
        x = ours.step(torch.zeros_like(x), t, x, return_dict=False)[0]
    assert torch.isfinite(x).all()


def test_the_dynamic_shift_is_the_base_schedulers():
    own = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    ours = GlassScheduler.from_config(
        {**own.config, "_class_name": type(own).__name__}, rho=1.0, steps=1
    )
    sigmas = np.linspace(1.0, 0.25, 4)
    for mu in (0.5, 1.15):
        own.set_timesteps(sigmas=sigmas, mu=mu), ours.set_timesteps(sigmas=sigmas, mu=mu)
        torch.testing.assert_close(ours.timesteps, own.timesteps, rtol=0, atol=1e-4)
        torch.testing.assert_close(ours.sigmas, own.sigmas, rtol=0, atol=1e-6)
    with pytest.raises(ValueError, match="mu"):
        ours.set_timesteps(4)


@pytest.mark.slow
def test_zero_terminal_snr():
    settings = {
        "rescale_betas_zero_snr": True,
        "timestep_spacing": "trailing",
        "clip_sample": False,
    }
    pipe = tiny.build("sd", prediction_type="v_prediction",
                      scheduler=diffusers.DDIMScheduler(prediction_type="v_prediction",
                                                        steps_offset=1, **settings))  # fmt: skip
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=3)
    assert torch.isfinite(draw(pipe, "sd")).all()
    assert pipe.scheduler.table.transitions[0].alpha == 0.0
    blind = GlassScheduler.from_config(
        {**diffusers.DDIMScheduler(**settings).config, "_class_name": "DDIMScheduler"}
    )
    blind.set_timesteps(4)
    with pytest.raises(DegeneratePrediction):
        blind.step(torch.zeros(1, 3, 4, 4), blind.timesteps[0], torch.randn(1, 3, 4, 4))


def test_estimates_are_clipped_where_the_base_clips():
    for settings in ({"clip_sample": True, "clip_sample_range": 1.5}, {"thresholding": True}):
        own = diffusers.DDPMScheduler(**settings)
        ours = GlassScheduler.from_config({**own.config, "_class_name": "DDPMScheduler"})
        ours.set_timesteps(4)
        x = 5 * torch.randn(2, 3, 4, 4)
        D = ours.step(torch.zeros_like(x), ours.timesteps[0], x).pred_original_sample
        assert D.abs().max() <= (1.5 if "clip_sample_range" in settings else 1.0)


def test_learned_variances_are_dropped_and_other_shapes_refused():
    own = diffusers.DDIMScheduler(clip_sample=False)
    x = torch.randn(2, 4, 8, 8)
    output = torch.randn(2, 8, 8, 8)
    results = []
    for given in (output, output[:, :4]):
        ours = GlassScheduler.from_config({**own.config, "_class_name": "DDIMScheduler"})
        ours.set_timesteps(2)
        results.append(ours.step(given, ours.timesteps[0], x).prev_sample)
    assert torch.equal(*results)
    ours.set_timesteps(2)
    with pytest.raises(ShapeError, match="learned variance"):
        ours.step(output[:, :5], ours.timesteps[0], x)


@pytest.mark.slow
def test_custom_timesteps_and_sigmas():
    pipe = tiny.build("sdxl")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    draw(pipe, "sdxl", timesteps=[900, 500, 100])
    assert pipe.scheduler.timesteps[::2].tolist() == [900, 500, 100]
    assert torch.equal(pipe.scheduler.timesteps[:], pipe.scheduler.timesteps[0:])
    with pytest.raises(PlanError, match="fall"):
        pipe.scheduler.set_timesteps(timesteps=[100, 500])
    pipe = tiny.build("sd3")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    draw(pipe, "sd3", sigmas=[1.0, 0.5])
    assert len(pipe.scheduler.timesteps) == 4


@pytest.mark.parametrize(
    "options",
    first(
        [
            {"rho": "ode", "steps": 3},
            {"rho": "ddpm", "steps": 1},
            {"rho": "ddim:0.5", "steps": 1},
            {"rho": -0.3, "steps": 2},
            {"rho": 0.4, "steps": 3, "solver": "paper"},
            {"rho": 0.4, "steps": 3, "solver": "first-order"},
            {"rho": None, "steps": 2, "solver": "euler-maruyama"},
            {"rho": 0.4, "steps": 2, "start": "pure"},
            {"rho": 0.4, "steps": 2, "end": "trained"},
        ]
    ),
)
@pytest.mark.parametrize("name", first(["flux", "sd"]))
def test_every_sampler_runs(options, name):
    pipe = tiny.build(name)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, **options)
    assert torch.isfinite(draw(pipe, name, steps=2)).all()


@pytest.mark.parametrize("name", ["flux", pytest.param("qwenimage", marks=pytest.mark.slow)])
def test_half_precision_networks_are_asked_at_times_they_can_tell(name):
    pipe = tiny.build(name, dtype=torch.bfloat16)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=3)
    images = draw(pipe, name)
    assert images.dtype == torch.bfloat16 and torch.isfinite(images).all()
    told = pipe.scheduler.timesteps
    assert torch.equal(told.bfloat16().float(), told)
    assert torch.equal((told.bfloat16() / 1000 * 1000).float(), told)
    assert (
        tiny.build("sd3", dtype=torch.bfloat16)
        and GlassScheduler.from_pipeline(tiny.build("sd3", dtype=torch.bfloat16)).config.time_dtype
        is None
    )  # it keeps its clock in float32


# --- 4. saved, loaded, copied -----------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "name", ["sd", *(pytest.param(n, marks=pytest.mark.slow) for n in ("flux", "sana"))]
)
def test_it_is_saved_and_loaded_with_its_pipeline(name, tmp_path):
    pipe = tiny.build(name)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho="ddim:0.5", steps=2, seed=9)
    expected = draw(pipe, name)
    pipe.save_pretrained(tmp_path)
    again = diffusers.DiffusionPipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    assert isinstance(again.scheduler, GlassScheduler)
    assert again.scheduler.config.seed == 9 and again.scheduler.config.rho == "ddim:0.5"
    # Where in memory weights are read to may change the last bits of their products.
    torch.testing.assert_close(draw(again, name), expected, rtol=1e-4, atol=1e-5)
    alone = GlassScheduler.from_pretrained(tmp_path, subfolder="scheduler", rho=0.1)
    assert alone.config.rho == 0.1 and alone.config.steps == 2
    text = json.loads((tmp_path / "scheduler" / "scheduler_config.json").read_text())
    assert text["_class_name"] == "GlassScheduler"


def test_it_is_made_from_a_saved_configuration_of_another(tmp_path):
    tiny.save("flux", tmp_path)
    loaded = GlassScheduler.from_pretrained(tmp_path, subfolder="scheduler", rho=0.2)
    assert loaded.config.base["_class_name"] == "FlowMatchEulerDiscreteScheduler"
    assert loaded.config.use_dynamic_shifting  # pipelines read the settings that they know
    pipe = diffusers.FluxPipeline.from_pretrained(tmp_path, local_files_only=True)
    assert GlassScheduler.from_config(pipe.scheduler.config).config.base == loaded.config.base
    with pytest.raises(UnknownName, match="Did you mean 'steps'"):
        GlassScheduler.from_config(pipe.scheduler.config, step=3)
    with pytest.raises(InvalidArgument, match="from_pipeline"):
        GlassScheduler.from_config(dict(diffusers.DDIMScheduler().config))
    with pytest.raises(InvalidArgument, match="from_pipeline"):
        GlassScheduler()


def test_another_pipeline_made_from_this_one_keeps_it():
    pipe = tiny.build("flux")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    other = diffusers.FluxImg2ImgPipeline.from_pipe(pipe)
    assert isinstance(other.scheduler, GlassScheduler)
    again = GlassScheduler.from_pipeline(pipe, rho=0.1)  # stands on the first one's base
    assert again.config.base == pipe.scheduler.config.base


@pytest.mark.slow
def test_copies():
    pipe = tiny.build("flux")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    fresh = copy.deepcopy(pipe.scheduler)
    expected = draw(pipe, "flux")
    used = copy.deepcopy(pipe.scheduler)
    for scheduler in (fresh, used):
        pipe.scheduler = scheduler
        assert torch.equal(draw(pipe, "flux"), expected)


# --- 5. image to image ------------------------------------------------------------------


def test_noising_is_the_paths():
    for name, level in (("flux", 400.0), ("sd", 399)):
        ours = GlassScheduler.from_pipeline(tiny.build(name))
        z, eps = torch.randn(2, 4, 3, 3), torch.randn(2, 4, 3, 3)
        path, t = ours.schedule.path, ours.schedule.time(level)
        expected = path.alpha(t) * z + path.sigma(t) * eps
        for noised in (ours.add_noise(z, eps, torch.tensor([level])),
                       ours.scale_noise(z, torch.tensor([level] * 2), eps)):  # fmt: skip
            torch.testing.assert_close(noised, expected)
        with pytest.raises(ShapeError):
            ours.add_noise(z, eps, torch.tensor([level] * 3))


def image_to_image(pipe, kind, name, strength, steps=4):
    given = dict(tiny.CALL[name])
    job = kind.from_pipe(pipe)
    job.set_progress_bar_config(disable=True)
    picture = torch.rand(1, 3, given["height"], given["width"],
                         generator=torch.Generator().manual_seed(1))  # fmt: skip
    if "StableDiffusion" in kind.__name__:
        given.pop("height"), given.pop("width")
    return job(image=picture, strength=strength, num_inference_steps=steps, output_type="pt",
               generator=torch.Generator().manual_seed(2), **given).images  # fmt: skip


@pytest.mark.parametrize(
    ("name", "kind"),
    first(
        [
            ("flux", diffusers.FluxImg2ImgPipeline),
            ("sd", diffusers.StableDiffusionImg2ImgPipeline),
            ("sd3", diffusers.StableDiffusion3Img2ImgPipeline),
        ]
    ),
)
def test_image_to_image_starts_at_a_boundary(name, kind):
    pipe = tiny.build(name)
    theirs = image_to_image(pipe, kind, name, 0.5)
    own = pipe.scheduler
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=1.0, steps=1)
    ours = image_to_image(pipe, kind, name, 0.5)
    torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-3)
    pipe.scheduler = own
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    images, count = calls(pipe, lambda: image_to_image(pipe, kind, name, 0.5))
    assert (
        count == (4 if name != "sd" else pytest.approx(4, abs=1)) and torch.isfinite(images).all()
    )


# --- 6. what goes wrong -----------------------------------------------------------------


@pytest.mark.slow
def test_latents_may_be_edited_at_boundaries_only():
    pipe = tiny.build("flux")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=3)
    plain = draw(pipe, "flux", steps=2)

    def edit(at, factor):
        def callback(pipe, i, t, given):
            return {"latents": given["latents"] * factor} if i == at else {}

        return draw(pipe, "flux", steps=2, callback_on_step_end=callback)

    assert torch.equal(edit(2, 1.0), plain)  # another tensor with the same numbers
    assert not torch.allclose(edit(2, 1.5), plain)
    assert torch.equal(edit(1, 1.0), plain)
    with pytest.raises(InvalidArgument, match=r"inside a transition.*\[0, 3\]"):
        edit(1, 1.5)

    def edit_in_place(at):
        def callback(pipe, i, t, given):
            if i == at:
                given["latents"].mul_(1.5)
            return {}

        return draw(pipe, "flux", steps=2, callback_on_step_end=callback)

    torch.testing.assert_close(edit_in_place(2), edit(2, 1.5))
    with pytest.raises(InvalidArgument, match="inside a transition"):
        edit_in_place(1)


def test_nan_from_the_network_stops_with_its_place():
    pipe = tiny.build("flux")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    count = []

    def break_it(module, given, output):
        count.append(1)
        return (output[0] * torch.nan,) if len(count) == 4 else output

    handle = pipe.transformer.register_forward_hook(break_it)
    with pytest.raises(NonFinite, match="transition 1, evaluation 1"):
        draw(pipe, "flux", steps=3)
    handle.remove()
    assert torch.isfinite(draw(pipe, "flux", steps=3)).all()  # and it can be used again


def test_steps_are_taken_in_order():
    own = diffusers.FlowMatchEulerDiscreteScheduler()
    ours = GlassScheduler.from_config({**own.config, "_class_name": type(own).__name__}, steps=2)
    x = torch.randn(1, 3)
    with pytest.raises(InvalidArgument, match="set_timesteps"):
        ours.step(x, 1000.0, x)
    ours.set_timesteps(2)
    with pytest.raises(InvalidArgument, match="in the order"):
        ours.step(x, 10.0, x)
    ours.set_timesteps(2)
    for t in ours.timesteps:
        x = ours.step(x, t, x).prev_sample
    with pytest.raises(InvalidArgument, match="all 4 evaluations"):
        ours.step(x, t, x)
    ours.set_timesteps(2)
    y = ours.step(x, ours.timesteps[0], x).prev_sample
    with pytest.raises(ShapeError):
        ours.step(y[:, :2], ours.timesteps[1], y[:, :2])


@pytest.mark.parametrize(
    "wrong",
    [
        {"rho": 1.5},
        {"rho": "dpm"},
        {"rho": "ddim:x"},
        {"steps": 0},
        {"solver": "papr"},
        {"start": "pur"},
        {"end": "dat"},
        {"seed": -1},
        {"time_dtype": "int8"},
        {"stps": 3},
    ],
)
def test_wrong_options(wrong):
    with pytest.raises(InvalidArgument):
        GlassScheduler.from_pipeline(tiny.build("flux"), **wrong)


def test_schedulers_whose_models_are_no_denoisers():
    for kind in ("LCMScheduler", "TCDScheduler", "SCMScheduler", "EDMEulerScheduler"):
        config = {**getattr(diffusers, kind)().config, "_class_name": kind}
        with pytest.raises(InvalidArgument, match=f"cannot stand in for {kind}"):
            Schedule.of(config)
    with pytest.raises(InvalidArgument, match="cannot stand in for Mine"):
        Schedule.of({"_class_name": "Mine"})
