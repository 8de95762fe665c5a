"""Both engines of steer_pipeline: the rewards are those of the images, and errors come first."""

from functools import cache, partial
from inspect import signature
from types import SimpleNamespace

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image

import tiny_pipelines as tiny
from cases import fast, first
from glass_flows import Sampler, Steering, Twist, steer_pipeline
from glass_flows.batching import Batching
from glass_flows.diffusers import GlassScheduler
from glass_flows.diffusers import pipeline as module
from glass_flows.diffusers.adapted import _population
from glass_flows.diffusers.asked import Asked
from glass_flows.diffusers.chunks import batch_of, in_chunks
from glass_flows.diffusers.decoding import Pictures
from glass_flows.diffusers.families import Family
from glass_flows.diffusers.inside_loop import _InsideLoop
from glass_flows.diffusers.own_code import own_decoder, returned_fields
from glass_flows.diffusers.parts import network_of
from glass_flows.errors import GlassError, InvalidArgument, RewardError, ShapeError
from glass_flows.rewards import FunctionReward, OfImages

SMALL = {
    "particles": 2, "scale": 1.0, "transitions": 2, "steps": 2, "seed": 0, "progress": False,
}  # fmt: skip
PICTURE = Image.fromarray((np.random.default_rng(0).random((16, 16, 3)) * 255).astype(np.uint8))
STATISTICS = {"latents_mean": [0.5, -0.3, 0.2, 0.1], "latents_std": [1.5, 1.2, 0.8, 0.6]}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


# --- pipelines without an adapter, each with its prompt and its call arguments --------------------


def controlnet():
    base = tiny.build("sd")
    net = diffusers.ControlNetModel.from_unet(
        base.unet, conditioning_embedding_out_channels=(8, 16)
    )
    pipe = diffusers.StableDiffusionControlNetPipeline(
        **base.components, controlnet=net, requires_safety_checker=False
    )
    return quiet(pipe), "a cat", {"image": PICTURE, "height": 16, "width": 16}


def sd_from_image():
    pipe = diffusers.StableDiffusionImg2ImgPipeline(
        **tiny.build("sd").components, requires_safety_checker=False
    )
    return quiet(pipe), "a cat", {"image": PICTURE, "strength": 1.0}


def sdxl_from_image():
    base = tiny.build("sdxl")
    base.vae.register_to_config(**STATISTICS)
    pipe = diffusers.StableDiffusionXLImg2ImgPipeline(**base.components, add_watermarker=False)
    return quiet(pipe), "a cat", {"image": PICTURE, "strength": 1.0}


def sd3_from_image():
    pipe = diffusers.StableDiffusion3Img2ImgPipeline(**tiny.build("sd3").components)
    given = {"image": PICTURE, "strength": 1.0, "height": 16, "width": 16}
    return quiet(pipe), "a cat", {**given, "max_sequence_length": 32}


def zimage_from_image():
    pipe = diffusers.ZImageImg2ImgPipeline(**tiny.build("zimage").components)
    given = {"image": PICTURE.resize((32, 32)), "strength": 1.0, "height": 32, "width": 32}
    return quiet(pipe), "a cat", {**given, "max_sequence_length": 32}


def pixels():
    unet = diffusers.UNet2DModel(
        sample_size=8,
        in_channels=3,
        out_channels=3,
        block_out_channels=(16, 32),
        norm_num_groups=4,
        layers_per_block=1,
        down_block_types=("DownBlock2D", "AttnDownBlock2D"),
        up_block_types=("AttnUpBlock2D", "UpBlock2D"),
        attention_head_dim=4,
    )
    return quiet(diffusers.DDPMPipeline(unet, diffusers.DDPMScheduler())), None, {}


WITHOUT = [controlnet, sd_from_image, sdxl_from_image, sd3_from_image, zimage_from_image, pixels]


def adapted(name):
    given = dict(tiny.CALL[name])
    prompt = given.pop("prompt", None) or given.pop("class_labels")
    return tiny.build(name), prompt, given


def made(kind):
    """A pipeline, its prompt and its call arguments, of a family or of a function above."""
    return adapted(kind) if isinstance(kind, str) else kind()


@cache
def _shared(kind):
    return made(kind)


def shared(kind):
    """The same, of a pipeline that no test changes."""
    pipe, prompt, given = _shared(kind)
    return pipe, prompt, dict(given)


@pytest.fixture
def asked():
    """Of a pipeline: what grows with every call of its network."""
    handles = []

    def count(pipe):
        calls = []
        network = tiny.network(pipe)
        handles.append(network.register_forward_pre_hook(lambda *_: calls.append(1)))
        return calls

    yield count
    for handle in handles:
        handle.remove()


# --- images and rewards ---------------------------------------------------------------------------


def weights(size):
    return torch.randn(size, generator=torch.Generator().manual_seed(7)) / np.prod(size)


def linear(images):
    """A linear functional of the pixels, which must be in [0, 1]."""
    assert images.min() >= 0 and images.max() <= 1
    return (images * weights(images.shape[1:]).to(images)).flatten(1).sum(1)


def of_picture(image):
    """The same of a returned image, and by how much its rounding to 8 bits may move it."""
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1).double() / 255
    w = weights(tuple(pixels.shape)).double()
    return (pixels * w).sum().item(), (w.abs().sum() * (0.5 / 255 + 1e-5)).item()


def check_rewards(images, rewards):
    for image, reward in zip(images, rewards, strict=True):
        found, rounding = of_picture(image)
        assert found == pytest.approx(reward, abs=rounding)


@pytest.mark.parametrize(
    ("kind", "method"),
    first([(k, m) for k in [*tiny.FIRST, *WITHOUT] for m in ("steering", "best-of-n")]),
)
def test_rewards_are_those_of_the_images(kind, method):
    pipe, prompt, given = shared(kind)
    twist = {"twist": 1.0, "scale": 30.0} if method == "steering" else {}
    result = steer_pipeline(pipe, prompt, linear, method, **{**SMALL, **twist}, **given)
    for images, rewards in zip(result.rows, result.rewards.tolist(), strict=True):
        check_rewards(images, rewards)


def test_recorded_pictures_are_those_that_were_scored():
    class Record:
        """Looks at what has been decoded when a step is done."""

        pictures = None

        def saved(self):
            return None

        def begin(self, run):
            self.seen = []

        def save(self, saved):
            pass

        def step(self, step):
            estimates = step.boundary.x if step.boundary.final else step.boundary.D
            self.seen.append((self.pictures(estimates), step.rewards))

    pipe, prompt, given = shared("flux")
    record = Record()
    steer_pipeline(
        pipe, prompt, linear, record=record, ess_threshold=0.0, boundaries=1, **SMALL, **given
    )
    scored = [(images, rewards) for images, rewards in record.seen if images is not None]
    assert len(scored) >= 2
    for images, rewards in scored:
        check_rewards(images, rewards.flatten().tolist())


def test_pixels_are_clamped_and_their_gradient_is_not():
    pictures = Pictures(lambda z: 2 * z, keep=2)
    z = torch.tensor([-1.0, 0.25, 0.75]).view(1, 3, 1, 1).requires_grad_()
    seen = pictures(z)
    assert seen.flatten().tolist() == [0.0, 0.5, 1.0]
    seen.sum().backward()
    assert z.grad.flatten().tolist() == [2.0, 2.0, 2.0]
    assert np.asarray(pictures.images(z.detach()[None])[0]).flatten().tolist() == [0, 128, 255]
    with pytest.raises(ShapeError, match=r"images \(1, 3, height, width\).*got \(1, 3, 2, 4, 4\)"):
        Pictures(lambda z: torch.zeros(1, 3, 2, 4, 4), keep=1)(z)  # channels before frames


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*upcast_vae:FutureWarning")
def test_half_precision_is_widened_where_it_overflows_and_put_back():
    """SDXL's image-to-image decodes in float32, also for rewards with gradients."""
    pipe, prompt, given = sdxl_from_image()
    pipe.to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    seen = []

    def reward(images):
        seen.append(pipe.vae.dtype)
        return linear(images)

    result = steer_pipeline(pipe, prompt, reward, twist=1.0, **SMALL, **given)
    assert pipe.vae.dtype == torch.float16
    assert torch.float32 in seen  # where the gradient goes back
    check_rewards(result.images, result.rewards[0].tolist())


@pytest.mark.slow
def test_another_decoding_than_that_of_the_autoencoder_is_found_out():
    class Brighter(diffusers.StableDiffusionImg2ImgPipeline):
        def __call__(self, *args, **kwargs):
            output = super().__call__(*args, **kwargs)
            output.images = [image.point(lambda v: v // 2 + 100) for image in output.images]
            return output

        __call__.__signature__ = signature(diffusers.StableDiffusionImg2ImgPipeline.__call__)

    base = tiny.build("sd")
    pipe = quiet(Brighter(**base.components, requires_safety_checker=False))
    given = {"image": PICTURE, "strength": 1.0, **SMALL}
    with pytest.raises(InvalidArgument, match=r"other images of its latents.*decode=") as raised:
        steer_pipeline(pipe, "a cat", linear, **given)
    assert raised.value.boundary.final
    decode = own_decoder(pipe, True)
    assert steer_pipeline(pipe, "a cat", linear, decode=decode, **given).rewards.shape == (1, 2)


@pytest.mark.slow
def test_the_generic_decoder_reads_what_the_pipelines_code_reads():
    """A shift that Stable Diffusion's pipelines ignore is ignored, and SD3's is not."""
    z = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    for make, moves in ((sd_from_image, False), (sd3_from_image, True)):
        pipe, _, _ = make()
        pipe.vae.register_to_config(shift_factor=0.0)
        decode = own_decoder(pipe, True)
        before = decode(z)
        pipe.vae.register_to_config(shift_factor=0.7)
        assert torch.equal(decode(z), before) is not moves


@pytest.mark.parametrize(
    ("name", "field"),
    [
        ("LTXPipeline", "frames"),
        ("WanPipeline", "frames"),
        ("StableAudioPipeline", "audios"),
        ("AuraFlowPipeline", "images"),
        ("DDPMPipeline", "images"),
        ("StableDiffusionXLImg2ImgPipeline", "images"),
    ],
)
def test_what_a_pipeline_returns_is_read_from_its_module(name, field):
    assert field in returned_fields(object.__new__(getattr(diffusers, name)))


# --- particles, prompts and texts -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "method"),
    [(n, m) for n in ("flux", "sd3", "sd") for m in ("steering", "best-of-n")],
)
def test_particles_from_one_noise_part_in_both_engines(name, method, monkeypatch):
    pipe, prompt, given = shared(name)
    shape = {"flux": (16, 16)}.get(name, (4, 8, 8))
    one = torch.randn(1, *shape, generator=torch.Generator().manual_seed(1))
    adapter = module.family_of(pipe)(pipe, **given)
    settings = {**SMALL, "particles": 3, "rho": 0.0, "latents": one.repeat(3, *(1,) * len(shape))}
    settings["solver"] = "default:guidance=4"  # a loop of its own does not tell

    def drawn(**more):
        return steer_pipeline(pipe, prompt, linear, method, **settings, **given, **more)

    through, within = drawn(), drawn(decode=adapter.decode)
    for result in (through, within):
        assert len({image.tobytes() for image in result.images}) == 3
    if name != "sd":  # whose pipeline draws from generators, one for each particle
        torch.testing.assert_close(
            within.result.samples, through.result.samples, rtol=1e-4, atol=1e-4
        )


TEXTS = ["ugly blurry", "low quality text"]
LISTS = [
    ("flux", {"negative_prompt": TEXTS, "true_cfg_scale": 3.0}),
    ("flux", {"prompt_2": TEXTS}),
    ("sd3", {"negative_prompt": TEXTS, "prompt_2": TEXTS, "prompt_3": TEXTS[::-1]}),
    ("sd3", {"negative_prompt_2": TEXTS, "negative_prompt_3": TEXTS}),
    ("sdxl", {"negative_prompt": TEXTS, "prompt_2": TEXTS}),
    ("sdxl", {"negative_prompt_2": TEXTS}),
    ("sd", {"negative_prompt": TEXTS}),
    ("sana", {"negative_prompt": TEXTS}),
    ("qwenimage", {"negative_prompt": TEXTS}),
    ("zimage", {"negative_prompt": TEXTS}),
]


@pytest.mark.parametrize(
    ("engine", "name", "texts"),
    fast(
        [("adapter", *LISTS[2])],  # of a loop see how texts are dealt, below
        [(engine, *one) for engine in ("adapter", "loop") for one in LISTS],
    ),
)
def test_a_text_for_each_prompt_of_a_batch(name, texts, engine):
    """As the pipeline itself draws with these lists, by its ODE."""
    pipe, _, given = shared(name)
    given |= texts
    own_scheduler = pipe.scheduler
    prompts = ["a red cat", "a blue dog house"]
    adapter = module.family_of(pipe)(pipe, **given)
    latents = torch.randn(2, *adapter.shape, generator=torch.Generator().manual_seed(1))
    own = {"decode": adapter.decode} if engine == "loop" else {}
    found = steer_pipeline(
        pipe, prompts, linear, "best-of-n", particles=1, transitions=2, steps=1, rho=1.0,
        latents=latents, progress=False, **given, **own,
    ).result.samples[:, 0]  # fmt: skip
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=1.0, steps=1, end="data")
    seen = []
    pipe.scheduler.at_boundary = lambda boundary: seen.append(boundary.x)
    pipe(prompt=prompts, latents=latents, num_inference_steps=2, output_type="latent", **given)
    pipe.scheduler = own_scheduler
    assert torch.equal(found, seen[-1])


def test_texts_and_pictures_are_dealt_to_the_particles_of_their_prompts():
    loop = object.__new__(_InsideLoop)
    prompts, three = ("a", "b"), Steering(3)
    loop.asked = SimpleNamespace(prompts=prompts, rows=("a",) * 3 + ("b",) * 3, method=three)
    assert loop._for_each("negative_prompt", ["x", "y"]) == ["x"] * 3 + ["y"] * 3
    assert loop._for_each("prompt_2", "x") == ["x"] * 6
    with pytest.raises(InvalidArgument, match="1 of prompt_2 given for 2 prompts"):
        loop._for_each("prompt_2", ["x"])
    pixels, dealt = torch.arange(2.0).view(2, 1, 1, 1), [0.0] * 3 + [1.0] * 3
    for given in (pixels, pixels.numpy(), list(pixels)):
        assert [float(one.item()) for one in loop._for_rows(given)] == dealt
    assert loop._for_rows(PICTURE) == [PICTURE] * 6
    assert len(loop._for_rows(pixels[0])) == 6


def test_in_a_loop_rewards_are_told_their_prompts_and_evaluations_are_counted(monkeypatch):
    """Four particles of noise of their own, two at a time, twice in each of two transitions."""
    pipe, _, given = shared("flux")
    decode = module.family_of(pipe)(pipe, **given).decode
    whole, sizes = type(pipe.transformer).forward, []

    def watched(self, *args, **kwargs):
        sizes.append(batch_of(self, args, kwargs))
        return whole(self, *args, **kwargs)

    def words(images, prompts):
        return torch.tensor([float(len(prompt)) for prompt in prompts])

    monkeypatch.setattr(type(pipe.transformer), "forward", watched)
    found = steer_pipeline(pipe, ["a cat", "two dogs"], words, "best-of-n", rho="ode",
                           decode=decode, max_batch=2, **SMALL, **given)  # fmt: skip
    assert found.rewards.tolist() == [[5.0, 5.0], [8.0, 8.0]]
    assert found.result.network_evaluations == sum(sizes) == 4 * 2 * 2 and set(sizes) == {2}
    for one, other in found.result.samples:
        assert not torch.equal(one, other)


PARTS = {
    "reward": linear, "method": Steering(3), "sampler": Sampler(), "batching": Batching(),
}  # fmt: skip


def test_an_adapter_begins_with_noise_of_its_seed():
    adapter = SimpleNamespace(shape=(2,), device=torch.device("cpu"))
    one, again, other = (
        _population(Asked.of(None, ["a", "b"], seed=seed, **PARTS), adapter).x for seed in (1, 1, 2)
    )
    assert torch.equal(one, again) and not torch.isin(one, other).any()
    assert len(one.unique()) == 2 * 3 * 2


def test_the_batching_reaches_the_denoiser(monkeypatch):
    class Seen(Exception):
        pass

    def denoiser(self, prompts, schedule, **batching):
        raise Seen(batching)

    pipe, prompt, given = shared("flux")
    monkeypatch.setattr(module.family_of(pipe), "denoiser", denoiser)
    with pytest.raises(Seen, match="'max_batch': 3, 'checkpoint': True"):
        steer_pipeline(pipe, prompt, linear, guidance="network:1", max_batch=3, checkpoint=True,
                       **SMALL, **given)  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("negative", [pytest.param("ugly", marks=pytest.mark.slow), TEXTS])
def test_texts_of_pipelines_without_an_adapter(negative):
    pipe, _, given = shared(sd_from_image)
    result, other = (
        steer_pipeline(
            pipe, ["a cat", "a dog"], linear, **SMALL, negative_prompt=texts, **given
        ).result.samples
        for texts in (negative, ["ugly", "ugly"])
    )
    assert torch.equal(result[0, 0], other[0, 0]) is (negative == "ugly")
    with pytest.raises(InvalidArgument, match="1 of negative_prompt given for 2 prompts"):
        steer_pipeline(pipe, ["a cat", "a dog"], linear, negative_prompt=["ugly"], **given)


@pytest.mark.parametrize(
    ("labels", "count"),
    first(
        [
            (np.array([1, 2]), 2),
            (np.array(3), 1),
            (np.uint8(3), 1),
            ([np.int64(3)], 1),
            (torch.tensor([1, 2]), 2),
            ([torch.tensor(3), 4], 2),
            (range(2), 2),
        ]
    ),
)
def test_classes_are_integers_of_any_kind(labels, count):
    pipe, _, given = shared("dit")
    result = steer_pipeline(pipe, labels, linear, "best-of-n", **SMALL, **given)
    assert result.rewards.shape == (count, 2)
    assert all(type(label) is int for label in result.prompts)


def test_pipelines_without_prompts_have_populations_of_none():
    pipe, _, _ = shared(pixels)
    for prompt, count in ((None, 1), ("", 1), ([None, None], 2)):
        assert steer_pipeline(pipe, prompt, linear, **SMALL).rewards.shape == (count, 2)
    with pytest.raises(InvalidArgument, match="DDPMPipeline takes no prompt: give None"):
        steer_pipeline(pipe, "a cat", linear, **SMALL)


# --- known before the network is asked ------------------------------------------------------------


def scalar(images):
    return images.mean()


def detached(images):
    return images.detach().mean((1, 2, 3))


ASKED_WRONGLY = [
    ({"reward": scalar}, ShapeError, "returned one number, .* one number per image"),
    ({"reward": FunctionReward(scalar)}, ShapeError, r"\(1,\), one number per sample"),
    ({"reward": lambda images: ["good"] * len(images)}, ShapeError, "returned a list of 3"),
    ({"reward": detached, "twist": 1.0}, RewardError, "does not depend on the samples"),
    (
        {"reward": FunctionReward(linear, differentiable=False), "twist": 1.0},
        InvalidArgument,
        "has no gradient",
    ),
    ({"reward": "clap"}, InvalidArgument, "unknown reward 'clap'. Did you mean 'clip'"),
    ({"reward": 3}, InvalidArgument, "a reward must be"),
    ({"reward": "a cat", "prompt": linear}, InvalidArgument, "the reward comes after"),
    ({"prompt": []}, InvalidArgument, "at least one"),
    ({"prompt": b"cat"}, InvalidArgument, "give a prompt"),
    ({"prompt": [True]}, InvalidArgument, "a prompt is a text, or a class"),
    ({"prompt": 3}, InvalidArgument, "3"),
    ({"prompt": None}, InvalidArgument, "None"),
    ({"prompt_embeds": torch.zeros(1, 8, 32)}, InvalidArgument, "prompt_embeds|both"),
    ({"transitions": 1.5}, InvalidArgument, "transitions must be an integer"),
    ({"decode_batch": 0}, InvalidArgument, "decode_batch"),
    ({"max_batch": 0}, InvalidArgument, "max_batch"),
    ({"decode": "vae"}, InvalidArgument, "decode must be a function"),
    ({"guidance_scale": "3"}, InvalidArgument, "guidance_scale|'>' not supported"),
    ({"latents": torch.zeros(1, 4, 8, 8)}, InvalidArgument, "latents"),
    ({"negative_prompt": ["x", "y"]}, InvalidArgument, "2 of negative_prompt given for 1"),
    ({"generator": torch.Generator()}, InvalidArgument, "seed"),
    ({"num_images_per_prompt": 2}, InvalidArgument, "particles"),
]


@pytest.mark.parametrize("engine", [None, "loop"])
@pytest.mark.parametrize(("wrong", "error", "match"), ASKED_WRONGLY)
def test_what_is_wrong_is_said_before_the_network_is_asked(wrong, error, match, engine, asked):
    pipe, prompt, given = shared(controlnet) if engine else shared("sd")
    calls = asked(pipe)
    settings = {"prompt": prompt, "reward": linear, **SMALL, **given, **wrong}
    with pytest.raises(error, match=match):
        steer_pipeline(pipe, **settings)
    assert not calls


@pytest.mark.parametrize(
    "wrong", [{"strength": "x"}, {"strength": 2.0}, {"image": None}, {"image": 3}]
)
def test_what_the_pipelines_own_code_raises_is_named(wrong, asked):
    pipe, prompt, given = shared(sd_from_image)
    calls, own = asked(pipe), pipe.scheduler
    with pytest.raises(InvalidArgument, match="cannot be called like this") as raised:
        steer_pipeline(pipe, prompt, linear, **SMALL, **{**given, **wrong})
    assert not isinstance(raised.value.__cause__, GlassError)
    assert not calls and pipe.scheduler is own


@pytest.mark.parametrize("kind", ["flux", "zimage", sd_from_image])
def test_encoders_that_were_set_free_are_asked_for(kind):
    pipe, prompt, given = made(kind)
    for name in pipe.components:
        if name.startswith("text_encoder"):
            setattr(pipe, name, None)
    with pytest.raises(InvalidArgument, match="put back text_encoder"):
        steer_pipeline(pipe, prompt, linear, **SMALL, **given)


def test_a_pipeline_is_an_object_that_was_loaded():
    for given in ("org/model", diffusers.FluxPipeline, None):
        with pytest.raises(InvalidArgument, match="from_pretrained"):
            steer_pipeline(given, "a cat", linear)


def test_latents_that_are_more_than_scaled_need_a_decoder(asked, monkeypatch):
    pipe = quiet(tiny.build("kontext"))
    monkeypatch.setattr(module, "family_of", lambda pipe: None)
    calls = asked(pipe)
    with pytest.raises(InvalidArgument, match="pass decode="):
        steer_pipeline(pipe, "a cat", linear, image=PICTURE, **SMALL)
    assert not calls


@pytest.mark.parametrize("made", [FunctionReward, partial(OfImages, takes="tensor", each=False)])
def test_a_reward_of_a_known_form_may_fail_on_the_pictures_of_the_trial(made):
    asked = []

    def scored(images):
        asked.append(torch.rand(1))
        if len(asked) == 1:
            raise ValueError("there is nobody in this picture")
        return linear(images)

    pipe, prompt, given = shared("flux")
    torch.manual_seed(3)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    result = steer_pipeline(pipe, prompt, made(scored), **SMALL, **given)
    assert torch.equal(asked[0], drawn) and torch.equal(asked[1], drawn)
    assert torch.equal(
        result.rewards, steer_pipeline(pipe, prompt, linear, **SMALL, **given).rewards
    )


# --- videos ---------------------------------------------------------------------------------------


def ltx():
    tokenizer = tiny._t5_tokenizer()
    sizes = {
        "spatio_temporal_scaling": (True, True, False, False),
        "decoder_spatio_temporal_scaling": (True, True, False, False),
        "block_out_channels": (8,) * 4,
        "decoder_block_out_channels": (8,) * 4,
        "layers_per_block": (1,) * 5,
        "decoder_layers_per_block": (1,) * 5,
        "decoder_inject_noise": (False,) * 5,
        "upsample_residual": (False,) * 4,
        "upsample_factor": (1,) * 4,
    }
    network = diffusers.LTXVideoTransformer3DModel(
        in_channels=8,
        out_channels=8,
        num_attention_heads=4,
        attention_head_dim=8,
        cross_attention_dim=32,
        num_layers=1,
        caption_channels=32,
    )
    return quiet(
        diffusers.LTXPipeline(
            scheduler=diffusers.FlowMatchEulerDiscreteScheduler(),
            vae=diffusers.AutoencoderKLLTXVideo(
                latent_channels=8, patch_size=1, timestep_conditioning=False, **sizes
            ),
            text_encoder=tiny._t5_encoder(tokenizer, 32),
            tokenizer=tokenizer,
            transformer=network,
        )
    )


def test_videos_are_steered_by_pictures_of_them(asked):
    pipe = ltx()
    given = {"height": 32, "width": 32, "num_frames": 9, "max_sequence_length": 16, **SMALL}
    calls = asked(pipe)
    with pytest.raises(ShapeError, match="choose or lay out its frames"):  # not at the end
        steer_pipeline(pipe, "a cat", linear, "best-of-n", decode=lambda z: z, **given)
    assert len(calls) == 1

    def first(z):
        return z[:, :3, :, None].sigmoid()

    result = steer_pipeline(pipe, "a cat", linear, decode=first, **given)
    check_rewards(result.images, result.rewards[0].tolist())


# --- caches ---------------------------------------------------------------------------------------

CACHES = {
    "PyramidAttentionBroadcastConfig": {
        "spatial_attention_block_skip_range": 2,
        "spatial_attention_timestep_skip_range": (-1, 1001),
        "current_timestep_callback": lambda: 500,
    },
    "MagCacheConfig": {"num_inference_steps": 4, "mag_ratios": [1.0] * 4},
    "TaylorSeerCacheConfig": {"cache_interval": 2, "disable_cache_before_step": 1},
}


@pytest.mark.parametrize(("engine", "steps"), first([("adapter", 1), ("adapter", 2), ("loop", 1)]))
@pytest.mark.parametrize("cache", CACHES)
def test_caches_that_count_on_ordered_steps_are_refused(cache, steps, engine, asked):
    pipe, prompt, given = made("flux")
    calls = asked(pipe)
    own = {"decode": lambda z: z[:, :3, :, None]} if engine == "loop" else {}
    pipe.transformer.enable_cache(getattr(diffusers, cache)(**CACHES[cache]))
    with pytest.raises(InvalidArgument, match=f"{cache}.*disable_cache"):
        steer_pipeline(pipe, prompt, linear, **{**SMALL, "steps": steps}, **given, **own)
    assert not calls


def test_a_cache_put_on_without_the_network_knowing_is_seen():
    pipe, prompt, given = made("flux")
    config = diffusers.PyramidAttentionBroadcastConfig(**CACHES["PyramidAttentionBroadcastConfig"])
    diffusers.apply_pyramid_attention_broadcast(pipe.transformer, config)
    with pytest.raises(InvalidArgument, match=r"pyramid_attention_broadcast.*disable_cache"):
        steer_pipeline(pipe, prompt, linear, **SMALL, **given)


@pytest.mark.parametrize(
    ("name", "extra", "steps"),
    [
        ("flux", {"negative_prompt": "ugly", "true_cfg_scale": 3.0}, 1),
        pytest.param("qwenimage", {}, 2, marks=pytest.mark.slow),
    ],
)
def test_the_first_block_cache_runs_as_in_the_pipelines_own_loop(name, extra, steps):
    """The same features are left out, for each of the two passes; nothing stays for the next."""
    pipe, prompt, given = made(name)
    given |= extra
    adapter = module.family_of(pipe)(pipe, **given)
    latents = torch.randn(2, *adapter.shape, generator=torch.Generator().manual_seed(1))
    settings = {**SMALL, "transitions": 3, "steps": steps, "latents": latents}
    settings["solver"] = "default:guidance=4"  # a loop of its own does not tell
    both = [prompt, prompt]

    def drawn(reward=linear, **more):
        return steer_pipeline(
            pipe, both, reward, **{**settings, "particles": 1}, **given, **more
        ).result.samples

    def nobody(images):
        raise ValueError("there is nobody in this picture")

    plain = drawn()
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    through, within = drawn(), drawn(decode=adapter.decode)
    with pytest.raises(RewardError, match="nobody"):
        drawn(reward=nobody, boundaries=1)  # ends on the way, and leaves its features
    assert torch.equal(drawn(), through)
    assert not torch.allclose(through, plain)  # something was left out
    torch.testing.assert_close(through, within, rtol=1e-4, atol=1e-4)
    with pytest.raises(InvalidArgument, match="whole batch"):
        drawn(max_batch=1)
    with pytest.raises(InvalidArgument, match="whole batch"):
        drawn(guidance="reward")


@pytest.mark.parametrize(
    "family, reason",
    [("flux2", "Flux2Pipeline opens no context"), ("flux2_klein", "cannot read the blocks")],
)
def test_a_pipeline_in_which_the_first_block_cache_fails_says_so(family, reason):
    pipe, prompt, given = made(family)
    pipe.transformer.enable_cache(diffusers.FirstBlockCacheConfig(threshold=10.0))
    with pytest.raises(InvalidArgument, match=reason):
        steer_pipeline(pipe, prompt, linear, **SMALL, **given)


# --- chunks ---------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "most"),
    [
        pytest.param(sd_from_image, 1, marks=pytest.mark.slow),
        (sd3_from_image, 2),
        *(pytest.param(kind, 2, marks=pytest.mark.slow) for kind in WITHOUT),
    ],
)
def test_a_loop_asks_its_network_about_some_particles_at_a_time(kind, most):
    pipe, prompt, given = made(kind)
    network = network_of(pipe)
    whole, sizes = type(network).forward, []
    sampler = {**SMALL, "particles": 3, "ess_threshold": 1.0}

    def drawn(**options):
        return steer_pipeline(pipe, prompt, linear, **sampler, **options, **given)

    def watched(self, *args, **kwargs):
        sizes.append(batch_of(self, args, kwargs))
        return whole(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(type(network), "forward", watched)
        expected, together = drawn(), list(sizes)
        sizes.clear()
        found = drawn(max_batch=most)
    passes = together[0] // 3  # two with classifier-free guidance
    assert set(together) == {3 * passes} and max(sizes) == most * passes
    assert sum(sizes) == sum(together)
    assert found.result.costs == expected.result.costs
    assert torch.equal(found.result.ancestry, expected.result.ancestry)
    torch.testing.assert_close(found.result.samples, expected.result.samples, rtol=1e-4, atol=1e-4)
    assert "forward" not in vars(network)


def test_what_has_a_row_for_each_of_the_batch_is_cut_and_the_rest_is_shared():
    seen = []

    class Network(torch.nn.Module):
        def forward(self, hidden_states, **conditioning):
            seen.append((hidden_states, conditioning))
            return hidden_states + 1.0, [one * 2 for one in conditioning["each"]]

    network, x = Network(), torch.arange(8.0).view(4, 2)
    given = {
        "each": list(x),  # a list of one tensor for each row
        "residuals": [torch.zeros(4, 3), torch.zeros(4, 5)],
        "added": {"time_ids": torch.arange(4.0)[:, None].expand(4, 6), "text": torch.zeros(4, 7)},
        "img_ids": torch.zeros(4, 3),  # places of four tokens
        "shapes": [(1, 2, 2)] * 4,
        "guidance": None,
        "scale": 2.0,
        "one": torch.zeros(1, 9),
    }
    with in_chunks(network, rows=2, most=1):  # two passes
        output, doubled = network(hidden_states=x, **given)
    assert torch.equal(output, x + 1.0) and torch.equal(torch.stack(doubled), 2 * x)
    assert [len(one) for one, _ in seen] == [2, 2]
    for part, (one, told) in zip(([0, 2], [1, 3]), seen):  # both passes of a particle
        assert torch.equal(one, x[part]) and torch.equal(torch.stack(told["each"]), x[part])
        assert [tuple(r.shape) for r in told["residuals"]] == [(2, 3), (2, 5)]
        assert told["added"]["time_ids"][:, 0].tolist() == part
        assert told["added"]["text"].shape == (2, 7) and told["img_ids"].shape == (4, 3)
        assert len(told["shapes"]) == 2 and told["one"].shape == (1, 9)
        assert told["guidance"] is None and told["scale"] == 2.0
    held = network.forward = network.forward  # where offloading hooks keep theirs
    with in_chunks(network, rows=4, most=2), pytest.raises(InvalidArgument, match="what is whose"):
        network(hidden_states=x, each=[torch.zeros(4)] * 4)
    assert vars(network)["forward"] is held


def test_parts_may_be_answered_in_the_same_memory():
    memory = torch.empty(1, 2)

    class Output(dict):
        """As diffusers has them: made by its fields."""

    class Network(torch.nn.Module):
        def forward(self, x):
            memory.copy_(2.0 * x)
            return memory, [memory[0]], Output(sample=memory), "told"

    network, x = Network(), torch.arange(6.0).view(3, 2)
    with in_chunks(network, rows=3, most=1):
        whole, listed, output, told = network(x)
    for found in (whole, torch.stack(listed), output["sample"]):
        assert torch.equal(found, 2.0 * x)
    assert type(output) is Output and told == "told"


def test_both_passes_of_guidance_may_be_answered_in_the_same_memory():
    memory = torch.empty(2, 3)

    class Twice(Family):
        def __init__(self):
            self.caches, self.given = False, {"guidance_scale": 3.0}

        def prepare(self):
            """Of no pipeline."""

        def ask(self, x, timestep, texts):
            return memory.copy_(x * texts)

    x = torch.arange(6.0).view(2, 3)
    assert torch.equal(Twice().predict(x, torch.zeros(2), cond=2.0, uncond=1.0), x + 3.0 * x)


# --- one transition -------------------------------------------------------------------------------


@pytest.mark.parametrize("method", first(["plain", "best-of-n"]))
def test_one_transition_on_a_grid_with_a_terminal_shift(method):
    pipe, prompt, given = shared("qwenimage")
    settings = {"transitions": 1, "steps": 3, "seed": 0, "progress": False}
    result = steer_pipeline(pipe, prompt, linear, method, **settings, **given)
    assert torch.isfinite(result.rewards).all()


@pytest.mark.slow
def test_settings_are_objects_too():
    """numpy's integers, and a method with all its settings, on a pipeline without an adapter."""
    pipe, prompt, given = shared(controlnet)
    method = Steering(np.int64(2), scale=10.0, twist=Twist(0.5))
    settings = {"transitions": np.int32(2), "steps": np.int64(2), "seed": np.int64(3)}
    result = steer_pipeline(pipe, prompt, linear, method, **settings, **given)
    assert result.rewards.shape == (1, 2)


@pytest.mark.slow
def test_one_picture_as_a_tensor_is_of_all_prompts():
    """SD3 takes no batch of one for several, and three prompts do not share three channels."""
    pipe, _, given = sd3_from_image()
    picture = torch.rand(3, 16, 16, generator=torch.Generator().manual_seed(1))
    asked = {**given, "strength": 0.5, "particles": 1, "transitions": 2, "steps": 1, "seed": 0}
    first, other, whole = (
        steer_pipeline(
            pipe, ["a", "b", "c"], lambda x: x.mean((1, 2, 3)), "best-of-n", progress=False,
            **{**asked, "image": image},
        ).result.samples
        for image in (picture, picture[None], picture.expand(3, -1, -1, -1))
    )  # fmt: skip
    assert torch.equal(first, whole) and torch.equal(other, whole)
