"""Refinement of given pictures: every family encodes what it decodes, and what is no picture."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image

import tiny_pipelines as tiny
from glass_flows import Refine, steer_pipeline
from glass_flows.diffusers import pipeline as module
from glass_flows.diffusers.families import FAMILIES, family_of
from glass_flows.errors import InvalidArgument, ShapeError
from glass_flows.runs import RunFolder

TEXTS = ("prompt", "class_labels")
SIZES = {"height": 16, "width": 16, "max_sequence_length": 32, "progress": False}


def adapter_of(name, pipe=None, **changes):
    pipe = pipe or tiny.build(name)
    call = {k: v for k, v in tiny.CALL[name].items() if k not in TEXTS}
    return family_of(pipe)(pipe, **{**call, **changes})


def drawn(adapter, count=2, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(count, 3, adapter.height, adapter.width, generator=generator)


def configure(pipe):
    """Statistics that are not those of nothing."""
    vae, generator = pipe.vae, torch.Generator().manual_seed(5)

    def some(count, low):
        return (torch.rand(count, generator=generator) + low).tolist()

    kind = type(pipe).__name__
    if kind.startswith("QwenImage"):
        vae.register_to_config(latents_mean=some(4, -0.5), latents_std=some(4, 0.5))
    if kind == "StableDiffusionXLPipeline":
        vae.register_to_config(latents_mean=some(4, -0.5), latents_std=some(4, 0.5))
    if hasattr(vae, "bn"):
        vae.bn.running_mean.copy_(torch.tensor(some(16, -0.5)))
        vae.bn.running_var.copy_(torch.tensor(some(16, 0.5)))


@pytest.mark.parametrize("name", tiny.FAMILIES)
def test_what_is_decoded_is_what_was_encoded(name, monkeypatch):
    """Between the encoder and the decoder all is undone: scales, shifts, statistics, packing."""
    pipe = tiny.build(name)
    configure(pipe)
    adapter = adapter_of(name, pipe)
    images, vae, asked = drawn(adapter), pipe.vae, []
    with torch.no_grad():
        like = vae.encode(2 * (images[:, :, None] if name.startswith("qwenimage") else images) - 1)
    known = like.latent if name == "sana" else like.latent_dist.mode()
    known = torch.randn(known.shape, generator=torch.Generator().manual_seed(1))

    def encode(given):
        asked.append(given)
        if name == "sana":
            return SimpleNamespace(latent=known)
        return SimpleNamespace(latent_dist=SimpleNamespace(mode=lambda: known))

    decode = vae.decode
    monkeypatch.setattr(vae, "encode", encode)
    monkeypatch.setattr(vae, "decode", lambda z, **more: asked.append(z) or decode(z, **more))
    with torch.no_grad():
        states = adapter.encode_images(images)
        assert states.shape == (2, *adapter.shape)
        assert states.dtype == torch.float32
        made = adapter.decode(states)
    torch.testing.assert_close(asked[0].flatten(), (2 * images - 1).flatten(), rtol=0, atol=0)
    torch.testing.assert_close(asked[1], known, rtol=1e-6, atol=1e-6)
    assert made.shape == images.shape
    assert (states.flatten() != known.flatten()).any()


@pytest.mark.parametrize("name", tiny.some("chroma"))
def test_every_family_has_one(name):
    """From an image to a state and to an image again, by the real autoencoder."""
    adapter = adapter_of(name)
    with torch.no_grad():
        states = adapter.encode_images(drawn(adapter))
        assert adapter.decode(states).shape == (2, 3, adapter.height, adapter.width)
    assert torch.isfinite(states).all()
    assert (states[0] != states[1]).any()


@pytest.mark.slow
def test_all_families_are_tested():
    tested = {family_of(tiny.build(name)) for name in tiny.FAMILIES}
    assert tested == set(FAMILIES.values())


def test_an_autoencoder_that_overflows_is_widened_and_put_back():
    pipe = tiny.build("sdxl").to(dtype=torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    adapter, seen = adapter_of("sdxl", pipe), []
    encode = pipe.vae.encode
    pipe.vae.encode = lambda x: seen.append(x.dtype) or encode(x)
    with torch.no_grad():
        states = adapter.encode_images(drawn(adapter))
    assert (seen, pipe.vae.dtype) == ([torch.float32], torch.float16)
    assert states.dtype == torch.float32


def test_sana_puts_back_what_binning_scales_and_crops():
    pipe = tiny.build("sana")
    adapter = adapter_of("sana", pipe)
    adapter.given["use_resolution_binning"], adapter.drawn = True, (32, 32)
    adapter.height, adapter.width = 28, 32  # four rows are cropped from what is drawn
    image = torch.rand(1, 3, 28, 32)
    seen, encode = [], pipe.vae.encode
    pipe.vae.encode = lambda x: seen.append(x) or encode(x)
    with torch.no_grad():
        adapter.encode_images(image)
    crop = pipe.image_processor.resize_and_crop_tensor(seen[0], 32, 28)
    torch.testing.assert_close(crop, 2 * image - 1)
    adapter.height, adapter.width = 64, 64  # scaled, and nothing is cropped
    with torch.no_grad():
        assert adapter.encode_images(torch.rand(1, 3, 64, 64)).shape == (1, *adapter.shape)


# --- in one line ----------------------------------------------------------------------------------


def redness(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.fixture(scope="module")
def pipe():
    return tiny.build("sd3")


def picture(seed=0, size=(16, 16)):
    pixels = np.random.default_rng(seed).integers(0, 256, (*size[::-1], 3), dtype=np.uint8)
    return Image.fromarray(pixels)


def refined(pipe, init, prompts=("a", "b"), method="refine", **changes):
    given = {"particles": 2, "moves": 0, "seed": 0, **SIZES, **changes}
    given = {k: v for k, v in given.items() if method == "refine" or k != "moves"}
    reward = given.pop("reward", redness)
    return steer_pipeline(pipe, list(prompts), reward, method, init=init, **given)


def as_tensor(*images):
    pixels = np.stack([np.asarray(image) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255


@pytest.mark.slow
def test_pictures_of_any_kind_begin_the_same_chains(pipe, tmp_path):
    """One for all, or one for each prompt."""
    one, two = picture(0), picture(1)
    file = tmp_path / "one.png"
    one.save(file)
    same = [one, [one], file, str(file), as_tensor(one), as_tensor(one)[0]]
    samples = [refined(pipe, init).result.samples for init in same]
    assert all(torch.equal(found, samples[0]) for found in samples)
    assert (samples[0] == samples[0][:1, :1]).all()
    for init in ([one, two], (one, two), [file, two], as_tensor(one, two)):
        each = refined(pipe, init)
        assert torch.equal(each.result.samples[0], samples[0][0])
        assert (each.result.samples[1] != samples[0][1]).any()
    adapter = adapter_of("sd3", pipe)
    states = [adapter.encode_images(as_tensor(image)).detach() for image in (one, two)]
    torch.testing.assert_close(each.result.samples[:, 0], torch.cat(states), rtol=0, atol=1e-5)
    assert each.result.network_evaluations == 0


@pytest.mark.slow
def test_latents_begin_them_too(pipe):
    z = torch.randn(2, 2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    for init in (z, z.half(), z.flatten(0, 1), z[:, 0], z[0, 0]):
        found = refined(pipe, init).result.samples
        wanted = init.float()
        if init.ndim == 4 and len(init) == 2:
            wanted = wanted[:, None]
        assert (found == wanted.view(-1, 2, 4, 8, 8) if init.ndim == 4 and len(init) == 4
                else found == wanted).all()  # fmt: skip


def test_a_grid_that_begins_after_noise_takes_pictures_too():
    """As DiT's and Stable Diffusion's do: of a given picture nothing is drawn along it."""
    pipe, given = tiny.build("dit"), {"scale": 1.0, "seed": 0, "progress": False}
    sizes = {"particles": 2, "moves": 1, "move_steps": 2, "transitions": 2, "steps": 2}
    result = steer_pipeline(pipe, 1, redness, "refine", init=picture(), **sizes, **given)
    assert result.result.network_evaluations == 2 * 2 * 2  # the move's alone, under guidance
    with torch.no_grad():
        begun = adapter_of("dit", pipe).encode_images(as_tensor(picture()))
    still = steer_pipeline(
        pipe, 1, redness, "refine", init=picture(), **{**sizes, "moves": 0}, **given
    )
    torch.testing.assert_close(still.result.samples[0, :1], begun, rtol=0, atol=1e-5)


@pytest.mark.slow
def test_a_better_picture_comes_of_it(pipe):
    """The best of each chain is at least what it began with, and it says what that was."""
    up = (refined(pipe, None).rewards.mean() > refined(pipe, picture()).rewards.mean()) * 2.0 - 1.0

    def reward(images):  # of which the model's own have more
        return up * redness(images)

    result = refined(pipe, picture(), moves=6, scale=50.0, reward=reward)
    first = refined(pipe, picture(), reward=reward)
    assert (result.rewards >= first.rewards).all() and (result.rewards > first.rewards).any()
    assert result.settings["init"] == "an image"
    assert any("given" in bias for bias in result.result.biases)


@pytest.mark.parametrize(
    ("init", "error", "said"),
    [
        (picture(size=(20, 16)), ShapeError, r"20 x 16 pixels.*drawn is 16 x 16.*resize\(\(16, 16"),
        (torch.rand(2, 3, 16, 18), ShapeError, "init is 18 x 16 pixels"),
        ([picture()] * 3, InvalidArgument, "3 images for 2 prompts"),
        (torch.rand(3, 3, 16, 16), InvalidArgument, "3 images for 2 prompts"),
        (2 * torch.rand(1, 3, 16, 16), InvalidArgument, r"must lie in \[0, 1\]"),
        (torch.full((1, 3, 16, 16), torch.nan), InvalidArgument, r"must lie in \[0, 1\]"),
        (torch.zeros(1, 3, 16, 16, dtype=torch.uint8), InvalidArgument, "floats"),
        (torch.zeros(3, 8, 8), ShapeError, r"init must be \(4, 8, 8\) for all"),
        ("nowhere.png", InvalidArgument, "'nowhere.png' cannot be read as an image"),
        (3, InvalidArgument, "init must be an image"),
        ([], InvalidArgument, "init must be an image"),
        ([picture(), 3], InvalidArgument, "init must be an image.*got 3 in a list"),
    ],
)
def test_what_cannot_begin_anything_is_refused(pipe, init, error, said):
    with pytest.raises(error, match=said):
        refined(pipe, init)


@pytest.mark.parametrize("method", ["steering", "beam", "best-of-n"])
def test_other_methods_begin_with_noise(pipe, method):
    with pytest.raises(InvalidArgument, match="init: only for refine"):
        refined(pipe, picture(), method=method)


def test_noise_and_pictures_do_not_go_together(pipe):
    with pytest.raises(InvalidArgument, match="give one of them"):
        refined(pipe, picture(), latents=torch.zeros(4, 4, 8, 8))


def test_a_share_of_no_guidance_is_refused_before_anything_is_encoded(pipe, monkeypatch):
    for owner, name in ((pipe, "encode_prompt"), (pipe.vae, "encode")):
        monkeypatch.setattr(owner, name, None)
    with pytest.raises(InvalidArgument, match="this denoiser is under none"):
        refined(pipe, picture(), guidance_scale=1.0, move_guidance=0.5)


def test_without_an_adapter_there_is_no_encoder(pipe):
    with pytest.raises(InvalidArgument, match=r"init: only on pipelines with an adapter"):
        refined(pipe, picture(), decode=lambda z: z[:, :3])


def test_a_family_that_only_decodes_is_asked_to_encode(pipe, monkeypatch):
    """Its own decode would not be undone by another's encode."""

    class Half(type(adapter_of("sd3", pipe))):
        def decode(self, x):
            return super().decode(-x)

    monkeypatch.setattr(module, "family_of", lambda pipe: Half)
    with pytest.raises(InvalidArgument, match="no encode_images of its own"):
        refined(pipe, picture())
    monkeypatch.setattr(Half, "encode_images", lambda self, x: -self.encode_latents(x), False)
    refined(pipe, picture())


@pytest.mark.slow
def test_a_method_as_an_object_begins_with_a_picture(pipe):
    result = steer_pipeline(
        pipe, "a", redness, Refine(2, moves=1), init=picture(), seed=0, **SIZES
    )  # fmt: skip
    assert result.rewards.shape == (1, 2)


@pytest.mark.slow
def test_killed_after_any_move_the_refinement_of_a_picture_ends_with_the_same_bits(pipe, tmp_path):
    """Samples, images, and the best so far, though the picture itself is not looked at again."""

    class Killed(Exception):
        pass

    def run(folder, stop=None, init=picture()):  # noqa: B008
        def look(step):
            if step.boundary.index == stop:
                raise Killed

        record = RunFolder(folder, {})
        result = refined(
            pipe, init, moves=4, scale=200.0, ess_threshold=0.9, record=record, on_boundary=look,
            decode_batch=None,
        )  # fmt: skip
        record.finish(result.result)
        return result

    whole = run(tmp_path / "whole")
    assert (tmp_path / "whole" / "best-001.png").exists()
    for stop in (0, 1, 3):
        with pytest.raises(Killed):
            run(tmp_path / str(stop), stop)
        again = run(tmp_path / str(stop))
        assert torch.equal(again.result.samples, whole.result.samples)
        assert torch.equal(again.rewards, whole.rewards)
        assert [a.tobytes() for a in again.images] == [b.tobytes() for b in whole.images]
        for name in ("best-000.png", "best-001.png", "estimates/002.png", "estimates/004.png"):
            found, wanted = (tmp_path / one / name for one in (str(stop), "whole"))
            assert found.read_bytes() == wanted.read_bytes()
