"""steer_pipeline on tiny random pipelines of every family, with and without an adapter."""

import diffusers
import pytest
import torch
from PIL import Image

import glass_flows
import tiny_pipelines as tiny
from cases import first
from glass_flows import Guidance
from glass_flows.diffusers import pipeline as module
from glass_flows.errors import InvalidArgument
from glass_flows.rewards import FunctionReward

BUILT = tiny.FAMILIES


def redness(images):
    """Mean of red less that of the others, (B, 3, H, W) in [0, 1] to (B,)."""
    mean = images.mean((2, 3))
    return mean[:, 0] - 0.5 * (mean[:, 1] + mean[:, 2])


def call(name):
    given = dict(tiny.CALL[name])
    prompt = given.pop("prompt", None)
    return ([1, 2] if prompt is None else prompt), {
        key: value for key, value in given.items() if key != "class_labels"
    }


def counted(pipe, job):
    """The result and the rows that the network was called with."""
    rows = []

    def count(_, args, kwargs):
        rows.append(len(args[0] if args else kwargs["hidden_states"]))

    handle = tiny.network(pipe).register_forward_pre_hook(count, with_kwargs=True)
    result = job()
    handle.remove()
    return result, sum(rows)


@pytest.mark.parametrize("name", first(tiny.some("flux", "sd", "dit", "flux_img2img")))
def test_a_saved_pipeline_is_steered_and_its_network_calls_are_counted(name, tmp_path):
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        tiny.save(name, tmp_path / name), local_files_only=True, **tiny.unsaved(name)
    )
    pipe.set_progress_bar_config(disable=True)
    prompt, given = call(name)
    result, rows = counted(
        pipe,
        lambda: glass_flows.steer_pipeline(
            pipe, prompt, redness, particles=2, transitions=2, steps=1, scale=20.0, twist=0.5,
            ess_threshold=1.0, seed=3, **given,
        ),
    )  # fmt: skip
    populations = len(prompt) if isinstance(prompt, list) else 1
    assert len(result.images) == 2 * populations
    assert all(isinstance(image, Image.Image) for image in result.images)
    assert result.rewards.shape == (populations, 2)
    assert result.result.network_evaluations == rows
    assert torch.isfinite(result.result.log_weights).all()
    files = result.save(tmp_path / "out")
    assert len(files) == 2 * populations
    with Image.open(files[0]) as image:
        assert "seed" in image.text["settings"]


@pytest.mark.parametrize(
    "method",
    first(["best-of-n", "svdd", "beam", "greedy"]),
)
def test_searches(method):
    pipe = tiny.build("flux")
    prompt, given = call("flux")
    result = glass_flows.steer_pipeline(
        pipe, [prompt, "a dog"], redness, particles=4, transitions=2, steps=2, method=method,
        seed=1, **given,
    )  # fmt: skip
    assert result.rewards.shape[0] == 2
    best = result.rewards.argmax(1)
    assert all(result.best[p] is result.rows[p][best[p]] for p in range(2))


@pytest.mark.slow
def test_guidance_through_the_network_and_through_the_reward():
    pipe = tiny.build("sd3")
    prompt, given = call("sd3")
    plain = glass_flows.steer_pipeline(
        pipe, prompt, redness, particles=2, transitions=2, steps=2, ess_threshold=0.0, seed=1,
        **given,
    )  # fmt: skip
    for through in ("reward", "network"):
        guided = glass_flows.steer_pipeline(
            pipe, prompt, redness, particles=2, transitions=2, steps=2, scale=30.0, seed=1,
            guidance=Guidance(1.0, through), max_batch=1, **given,
        )  # fmt: skip
        assert guided.rewards.mean() > plain.rewards.mean()
        assert guided.result.biases
    assert guided.result.network_gradients > 0


def test_chunks_do_not_change_the_result():
    pipe = tiny.build("flux")
    prompt, given = call("flux")
    whole, cut = (
        glass_flows.steer_pipeline(
            pipe, prompt, redness, particles=3, transitions=2, steps=2, seed=4, scale=5.0,
            max_batch=size, decode_batch=size, **given,
        )
        for size in (None, 1)
    )  # fmt: skip
    torch.testing.assert_close(whole.result.samples, cut.result.samples, atol=1e-4, rtol=1e-4)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*:FutureWarning")
def test_offloading_hooks_slicing_and_attention_backends_stay_in_force():
    prompt, given = call("flux")

    def rewards(change=lambda pipe: None):
        pipe = tiny.build("flux")
        change(pipe)
        return glass_flows.steer_pipeline(
            pipe, prompt, redness, particles=2, transitions=1, steps=2, seed=0, **given
        ).rewards

    expected = rewards()
    assert torch.equal(rewards(lambda pipe: pipe.enable_model_cpu_offload(device="cpu")), expected)
    for change in (
        lambda pipe: pipe.vae.enable_slicing(),
        lambda pipe: pipe.transformer.set_attention_backend("native"),
    ):
        torch.testing.assert_close(rewards(change), expected)


def test_more_particles_keep_the_first_ones():
    pipe = tiny.build("flux")
    prompt, given = call("flux")
    few, many = (
        glass_flows.steer_pipeline(
            pipe, prompt, redness, particles=n, transitions=2, steps=2, seed=4,
            method="best-of-n", max_batch=1, **given,
        )
        for n in (2, 3)
    )  # fmt: skip
    assert torch.equal(few.result.samples[0], many.result.samples[0, :2])


@pytest.mark.slow
def test_a_pipeline_without_an_adapter_is_steered_from_inside_its_own_loop(monkeypatch):
    """The same weights, ancestry and images as through the adapter, given the same noise."""
    monkeypatch.setattr(module, "family_of", lambda pipe: None)
    pipe = tiny.build("sd3")
    own = pipe.scheduler
    prompt, given = call("sd3")
    latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
    result, rows = counted(
        pipe,
        lambda: glass_flows.steer_pipeline(
            pipe, [prompt, "a dog"], redness, particles=2, transitions=3, steps=2, scale=50.0,
            ess_threshold=1.0, latents=latents, twist=1.0, seed=3, **given,
        ),
    )  # fmt: skip
    assert pipe.scheduler is own
    assert result.result.network_evaluations == rows == 4 * 3 * 2 * 2
    ancestry = result.result.ancestry
    assert (ancestry[1:] != torch.arange(2)).any()
    resampled = result.result.samples
    assert not torch.equal(resampled[0, 0], resampled[0, 1])  # twins part
    for method in ("steering", "beam", "greedy", "best-of-n"):
        with pytest.raises(InvalidArgument, match="guidance needs an adapter"):
            glass_flows.steer_pipeline(
                pipe, prompt, redness, method=method, guidance=Guidance(), **given
            )
    with pytest.raises(InvalidArgument, match="a posterior value needs an adapter"):
        glass_flows.steer_pipeline(
            pipe, prompt, redness, value="posterior", particles=2, transitions=3, steps=1, **given
        )
    assert pipe.scheduler is own


@pytest.mark.slow
def test_controlnet_and_image_to_image_are_steered_from_inside_their_loops():
    base = tiny.build("sd")
    prompt, given = call("sd")
    given.pop("height"), given.pop("width")
    picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
    settings = {"particles": 3, "transitions": 4, "steps": 2, "scale": 50.0, "ess_threshold": 1.0}
    guided = diffusers.StableDiffusionControlNetPipeline(
        **base.components,
        controlnet=diffusers.ControlNetModel.from_unet(
            base.unet, conditioning_embedding_out_channels=(8, 16)
        ),
        requires_safety_checker=False,
    )
    guided.set_progress_bar_config(disable=True)
    result, rows = counted(
        guided,
        lambda: glass_flows.steer_pipeline(
            guided, prompt, redness, image=picture, seed=1, height=16, width=16, **settings, **given
        ),
    )
    assert result.result.network_evaluations == rows
    assert result.rewards.shape == (1, 3)
    other = diffusers.StableDiffusionImg2ImgPipeline.from_pipe(base)
    other.set_progress_bar_config(disable=True)
    result, rows = counted(
        other,
        lambda: glass_flows.steer_pipeline(
            other, [prompt], redness, image=picture.repeat(3, 1, 1, 1), strength=0.5, seed=1,
            **settings, **given,
        ),
    )  # fmt: skip
    assert len(result.result.ancestry) == 2  # half of the four transitions
    assert result.result.network_evaluations == rows


def test_rewards_get_their_prompts():
    pipe = tiny.build("flux")
    prompt, given = call("flux")
    seen = []

    def asked(images, prompts):
        seen.extend(prompts)
        return images.mean((1, 2, 3))

    glass_flows.steer_pipeline(
        pipe, [prompt, "a dog"], FunctionReward(asked, takes_prompts=True), particles=2,
        transitions=1, steps=2, seed=0, **given,
    )  # fmt: skip
    assert seen[-4:] == [prompt, prompt, "a dog", "a dog"]


@pytest.mark.parametrize(
    "wrong",
    [
        {"method": "beem"},
        {"particles": 0},
        {"hight": 16},
        {"method": "beam", "particles": 3},
        {"latents": torch.zeros(1, 2)},
        {"height": 17},
    ],
)
def test_wrong_settings_stop_early(wrong):
    pipe = tiny.build("flux")
    prompt, given = call("flux")
    with pytest.raises(InvalidArgument):
        glass_flows.steer_pipeline(pipe, prompt, redness, **{**given, **wrong})
    with pytest.raises(InvalidArgument):
        glass_flows.steer_pipeline(object(), prompt, redness)
