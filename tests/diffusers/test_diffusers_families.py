"""Denoiser adapters against the pipelines they stand for, on tiny random pipelines."""

import pytest
import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

import tiny_pipelines as tiny
from cases import fast, first
from glass_flows import Sampler
from glass_flows.denoisers import Fitting
from glass_flows.diffusers import GlassScheduler, LatentNoise, Schedule, compile_table
from glass_flows.diffusers.families import FAMILIES, family_of
from glass_flows.diffusers.scheduler import config_of
from glass_flows.execute import run
from glass_flows.steering.population import Population

BUILT = tiny.FAMILIES
PROMPTLESS = ("dit",)
ONE_FOR_EACH = {
    "flux_control": ("control_image",),
    "flux_controlnet": ("control_image", "negative_prompt"),
}


def settings(name, **changes):
    """The call's arguments without the prompt, and the prompt."""
    given = {**tiny.CALL[name], **changes}
    prompt = given.pop("prompt", None) or given.pop("class_labels", None)
    return given, prompt


def unpacked(name, adapter, x):
    """The scheduler's state as the pipeline takes it: FLUX.2 packs latents that it is given."""
    if not name.startswith("flux2"):
        return x
    return x.transpose(1, 2).unflatten(2, (adapter.rows, adapter.columns))


@pytest.fixture
def mean(monkeypatch):
    """Pipelines draw what the encoder says of an image, for which adapters take its mean."""
    monkeypatch.setattr(
        DiagonalGaussianDistribution, "sample", lambda self, generator=None: self.mode()
    )


def begun(name, adapter, schedule, prompts, K):
    """The table, and where particles begin: in noise, or with noise on the image."""
    seed = torch.Generator().manual_seed(5)
    if name not in tiny.FROM_IMAGE:
        table = compile_table(schedule, Sampler(K, 2, 0.4), K, **adapter.grid(K))
        return table, torch.randn(2, *adapter.shape, generator=seed)
    table = adapter.timed(schedule, Sampler(K, 2, 0.4)).plan(schedule.path)
    noise = adapter.packed(torch.randn(2, 4, 8, 8, generator=seed))
    with torch.no_grad():
        around = adapter.around(prompts)
    population = Population.of(1, adapter.shape, prompts=prompts).at(noise)
    return table, population.noising(around, schedule.path, table.times[0]).x


@pytest.mark.parametrize("name", tiny.some("flux", "sd", "sana", "zimage", *tiny.OTHERS))
def test_the_drop_in_scheduler_equals_the_executor_through_the_adapter(name, mean):
    """Bit for bit, with the same batch: rho = 0.4, transitions of two evaluations."""
    pipe = tiny.build(name)
    given, prompt = settings(name)
    # One for each, as these pipelines encode one for all over and over, or not often enough.
    given |= {key: [given[key]] * 2 for key in ONE_FOR_EACH.get(name, ())}
    adapter = family_of(pipe)(pipe, **given)
    schedule = Schedule.of(config_of(pipe.scheduler))
    prompts = list(prompt) if name in PROMPTLESS else [prompt] * 2
    K = 4 if name in tiny.FROM_IMAGE else 2  # of which half are run
    table, noise = begun(name, adapter, schedule, prompts, K)
    assert len(table) == 2
    denoiser = adapter.denoiser(prompts, schedule)
    with torch.no_grad():
        ours = run(table, denoiser, noise, LatentNoise(noise))
        images = adapter.decode(ours)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    latents = unpacked(name, adapter, noise)
    seen = []
    pipe.scheduler.at_boundary = lambda boundary: seen.append(boundary.x)
    if name == "dit":  # takes no latents, but draws them just so
        given.pop("class_labels", None)
        asked = {"class_labels": prompts, "generator": torch.Generator().manual_seed(5)}
    elif name == "qwenimage_edit":  # takes one prompt at a time
        asked = {"prompt": prompt, "num_images_per_prompt": 2, "latents": latents}
    else:
        asked = {"prompt": prompts, "latents": latents}
    pixels = pipe(**asked, **given, num_inference_steps=K, output_type="pt").images
    assert torch.equal(ours, seen[-1][:2])  # DiT's loop keeps both halves of a doubled batch
    torch.testing.assert_close(images.clamp(0, 1), pixels, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("name", first(["flux_img2img", "chroma_img2img"]))
@pytest.mark.parametrize(("strength", "left"), first([(0.25, 1), (0.7, 3)]))
def test_image_to_image_begins_where_the_pipeline_does(name, strength, left, mean):
    """The same noise on the same image, at the boundary where as much of the way is left."""
    pipe = tiny.build(name)
    given, prompt = settings(name, strength=strength)
    adapter = family_of(pipe)(pipe, **given)
    schedule = Schedule.of(config_of(pipe.scheduler))
    table, start = begun(name, adapter, schedule, [prompt] * 2, 4)
    assert len(table) == left
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    seen = []
    tiny.network(pipe).register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["hidden_states"]), with_kwargs=True
    )
    pipe([prompt] * 2, **given, num_inference_steps=4, output_type="latent",
         generator=torch.Generator().manual_seed(5))  # fmt: skip
    torch.testing.assert_close(start, seen[0], rtol=1e-6, atol=1e-6)
    assert table.times == pytest.approx(pipe.scheduler.running.times, abs=1e-12)


@pytest.mark.parametrize(
    "name",
    fast(("flux",), [n for n in tiny.FAMILIES if n not in PROMPTLESS]),
)
def test_sizes_need_not_be_square(name):
    pipe = tiny.build(name)
    area = {"max_area": 32 * 64} if name == "kontext" else {}
    given, prompt = settings(name, height=32, width=64, **area)
    adapter = family_of(pipe)(pipe, **given)
    schedule = Schedule.of(config_of(pipe.scheduler))
    x = torch.randn(1, *adapter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        D = adapter.denoiser([prompt], schedule)(x, schedule.path.trained_times[0]
                                                 if schedule.discrete else 0.3)  # fmt: skip
        assert adapter.decode(D).shape == (1, 3, 32, 64)


def test_sdxl_decodes_in_float32_where_half_precision_overflows():
    pipe = tiny.build("sdxl")
    given, _ = settings("sdxl")
    adapter = family_of(pipe)(pipe, **given)
    x = torch.randn(1, *adapter.shape, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        pipe.vae.to(torch.float16).to(torch.float32)  # the weights as float16 holds them
        expected = adapter.decode(x)
        pipe.vae.to(torch.float16)
        pipe.vae.register_to_config(force_upcast=True)
        assert torch.equal(adapter.decode(x), expected)
        assert pipe.vae.dtype == torch.float16  # and it is as it was


def test_every_family_names_its_pipelines():
    for family in set(FAMILIES.values()):
        assert family.pipelines


@pytest.mark.parametrize(
    ("name", "asked", "w"),
    [
        ("sd3", {"guidance_scale": 4.0}, 4.0),
        ("sd3", {"guidance_scale": 1.0}, 1.0),
        ("flux", {"true_cfg_scale": 3.0, "negative_prompt": "blue"}, 3.0),
        ("flux", {"guidance_scale": 3.5}, 1.0),
        ("zimage", {"guidance_scale": 4.0}, 5.0),
        ("dit", {"guidance_scale": 2.0}, 2.0),
        ("chroma", {"guidance_scale": 2.0}, 2.0),
        ("kontext", {"guidance_scale": 2.0}, 1.0),
        ("flux_controlnet", {"true_cfg_scale": 3.0, "negative_prompt": "blue"}, 3.0),
    ],
)
def test_the_sampler_is_told_of_classifier_free_guidance(name, asked, w):
    """Not of the guidance that a distilled network is told. Z-Image counts from the conditional."""
    pipe = tiny.build(name)
    given, prompt = settings(name)
    given = {k: v for k, v in given.items() if k != "guidance_scale" and "cfg" not in k}
    given = {k: v for k, v in given.items() if not k.startswith("negative")}
    adapter = family_of(pipe)(pipe, **{**given, **asked})
    prompts = list(prompt) if name in PROMPTLESS else [prompt]
    denoiser = adapter.denoiser(prompts, Schedule.of(config_of(pipe.scheduler)))
    assert denoiser.cfg_scale == w


@pytest.mark.slow
@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_another_guidance_is_that_of_another_call(name):
    """Bit for bit; where it is an input of the network, or there is none, it cannot be told."""
    pipe = tiny.build(name)
    given, prompt = settings(name)
    prompts = list(prompt) if name in PROMPTLESS else [prompt]
    adapter, schedule = family_of(pipe)(pipe, **given), Schedule.of(config_of(pipe.scheduler))
    denoiser = adapter.denoiser(prompts, schedule)
    w = denoiser.cfg_scale
    if adapter.passes == 1:
        assert w == 1.0 and denoiser.at_cfg_scale(2.0) is None
        return
    other = given | {adapter.guidance_argument: adapter.given[adapter.guidance_argument] + 0.5}
    expected = family_of(pipe)(pipe, **other).denoiser(prompts, schedule)
    noise = torch.Generator().manual_seed(0)
    x, t = torch.randn(len(prompts), *adapter.shape, generator=noise), 0.4
    t = min(schedule.path.trained_times or [t], key=lambda trained: abs(trained - t))
    moved = denoiser.at_cfg_scale(w + 0.5)
    assert moved.cfg_scale == expected.cfg_scale == w + 0.5
    assert torch.equal(moved(x, t), expected(x, t))
    assert not torch.equal(moved(x, t), denoiser(x, t))


def test_under_another_guidance_micro_batches_share_what_fits():
    """What one of them has found to fit is not found again by running out of memory."""
    pipe = tiny.build("sd")
    given, prompt = settings("sd")
    adapter, schedule = family_of(pipe)(pipe, **given), Schedule.of(config_of(pipe.scheduler))
    denoiser = adapter.denoiser([prompt] * 2, schedule, max_batch="auto")
    first, second = (denoiser.rows(slice(i, i + 1), 2).at_cfg_scale(2.0).network for i in (0, 1))
    assert isinstance(first, Fitting) and first is second is not denoiser.network
