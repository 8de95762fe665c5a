"""Pipelines of videos, steered from inside their own loop: what rewards see is what is returned."""

from __future__ import annotations

import subprocess
import sys
from contextlib import contextmanager
from functools import cache

import diffusers
import jsonschema
import numpy as np
import pytest
import torch
from PIL import Image

import glass_flows.diffusers.videos as module
import more_pipelines as more
from cases import first
from glass_flows import Steering, steer_pipeline
from glass_flows.diffusers import pipeline as front
from glass_flows.diffusers.asked import Asked
from glass_flows.errors import InvalidArgument, RewardError, RunFolderError, ShapeError
from glass_flows.jobs.evaluate import read_images
from glass_flows.rewards import Frames, Viewing
from glass_flows.runs import RunFolder, clear_run, read_run
from glass_flows.videos import VideoResult, save_video

FEW = {
    "particles": 2, "scale": 1.0, "transitions": 2, "steps": 1, "seed": 0, "progress": False,
}  # fmt: skip
ROUNDED = 0.5 / 255 + 1e-6  # by how much a mean of pixels may move that are rounded to 8 bits


@cache
def shared(name):
    """A pipeline that no test changes, and the arguments of its call."""
    pipe, call = more.build(f"{name}Pipeline")
    del call["prompt"]
    if name == "LTX":  # which has statistics that do nothing
        drawn = torch.Generator().manual_seed(1)
        pipe.vae.latents_mean.copy_(0.5 * torch.randn(8, generator=drawn))
        pipe.vae.latents_std.copy_(1 + 0.5 * torch.rand(8, generator=drawn))
    return pipe, call


def steer(name, reward, *rest, **given):
    pipe, call = shared(name)
    return steer_pipeline(pipe, "a cat", reward, *rest, **{**FEW, **call, **given})


@contextmanager
def unasked(pipe):
    """Within, the network must not be called."""

    def called(*given):
        raise AssertionError("the network was asked")

    handle = pipe.transformer.register_forward_pre_hook(called)
    try:
        yield
    finally:
        handle.remove()


def red(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


def of_frame(frame):
    pixels = np.asarray(frame, dtype=np.float64) / 255
    return pixels[..., 0].mean() - pixels[..., 1:].mean()


def check_rewards(result, places):
    """They are the means over these frames of those that are returned."""
    for video, reward in zip(result.frames, result.rewards.flatten().tolist(), strict=True):
        assert abs(np.mean([of_frame(video[i]) for i in places]) - reward) < 2 * ROUNDED


def moves(video):
    return video[-1].mean() - 2 * video[0].mean()


def grows(videos):
    return videos[:, -1].mean((1, 2, 3)) - 2 * videos[:, 0].mean((1, 2, 3))


# --- pipelines ------------------------------------------------------------------------------------


def wan_frames(pipe, z, call):
    """Independently: the latents in the statistics of the autoencoder."""
    config = pipe.vae.config
    scaled = [z[:, c] * config.latents_std[c] + config.latents_mean[c] for c in range(z.shape[1])]
    return pipe.vae.decode(torch.stack(scaled, 1)).sample


def ltx_frames(pipe, z, call):
    """Independently: tokens run over frames, lines and columns."""
    laid_out = z.unflatten(1, (-1, call["height"] // 4, call["width"] // 4)).movedim(-1, 1)
    mean, std = (x.view(1, -1, 1, 1, 1) for x in (pipe.vae.latents_mean, pipe.vae.latents_std))
    return pipe.vae.decode(laid_out * std + mean).sample


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "decoded"),
    [("Wan", wan_frames), pytest.param("LTX", ltx_frames, marks=pytest.mark.slow)],
)
def test_rewards_are_those_of_the_frames_that_the_pipeline_returns(name, decoded):
    sizes = {"LTX": {"height": 64, "width": 32}, "Wan": {"num_frames": 9}}[name]
    pipe, call = shared(name)
    call = {**call, **sizes}
    result = steer(name, red, **sizes)
    assert isinstance(result, VideoResult) and len(result.frames) == 2
    check_rewards(result, [0, 3, 5, 8])
    assert result.rate == {"Wan": 16.0, "LTX": 25.0}[name]
    with torch.no_grad():
        videos = decoded(pipe, result.result.samples[0], call)
    for video, frames in zip(pipe.video_processor.postprocess_video(videos, "pil"), result.frames):
        assert len(frames) == 9
        for one, other in zip(frames, video, strict=True):
            difference = np.asarray(one).astype(int) - np.asarray(other).astype(int)
            assert abs(difference).max() <= 1  # rounded in batches of other sizes
    again = steer(name, red, **sizes)
    assert [f.tobytes() for v in again.frames for f in v] == [
        f.tobytes() for v in result.frames for f in v
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("frames", "places"),
    [
        (2, [0, 4]),
        *(
            pytest.param(*one, marks=pytest.mark.slow)
            for one in (("first", [0]), ("all", range(5)))
        ),
    ],
)
def test_the_frames_that_were_asked_for_are_scored(frames, places):
    check_rewards(steer("Wan", red, frames=frames), list(places))
    held = steer("Wan", grows, frames=frames, also={"red": red}).result.also["red"]
    with_red = steer("Wan", red, frames=frames)
    assert held.shape == with_red.rewards.shape


@pytest.mark.parametrize("method", first(["beam", "plain", "twist", "best-of-n", "greedy", "svdd"]))
def test_every_method_of_the_loop_returns_the_frames_that_it_scored(method):
    pipe, call = shared("Wan")
    given = {**FEW, **call}
    if method == "plain":
        del given["particles"], given["scale"]
    result = steer_pipeline(pipe, "a cat", red, method, **given)
    check_rewards(result, [0, 1, 3, 4])
    assert result.frames[result.order[0][0]] == result.best_frames[0]


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (("refine",), "refinement needs an adapter, which WanPipeline has not"),
        ((Steering(2, guidance="reward:1"),), "guidance needs an adapter"),
        ((Steering(2, value="posterior:2"),), "a posterior value needs an adapter"),
    ],
)
def test_what_the_loop_cannot_do_is_refused_before_the_network_is_asked(given, told):
    pipe, call = shared("Wan")
    kept = {k: v for k, v in FEW.items() if k in ("seed", "progress", "transitions", "steps")}
    kept = {} if given == ("refine",) else kept
    with unasked(pipe), pytest.raises(InvalidArgument, match=told):
        steer_pipeline(pipe, "a cat", red, *given, **kept, **call)


@pytest.mark.slow
def test_videos_are_decoded_one_by_one_also_by_the_pipeline_itself(monkeypatch):
    pipe, _ = shared("Wan")
    sizes, whole = [], pipe.vae.decode

    def decode(z, *args, **kwargs):
        sizes.append(len(z))
        return whole(z, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", decode, raising=False)
        result = steer("Wan", red, also={"red": lambda images: red(images)})
        assert pipe.vae.decode is decode  # put back
    # One more by the pipeline, of a video that is returned; held-out rewards need none.
    assert sizes == [1] * (result.result.costs.decodes + 1)
    torch.testing.assert_close(result.result.also["red"], result.rewards)
    sizes.clear()
    with monkeypatch.context() as patch:
        patch.setattr(pipe.vae, "decode", decode, raising=False)
        both = steer("Wan", red, decode_batch=2)
    assert set(sizes[:-1]) == {2} and sizes[-1] == 1
    torch.testing.assert_close(both.rewards, result.rewards, atol=1e-4, rtol=1e-4)


def test_another_decoding_than_the_pipelines_is_found_out(monkeypatch):
    own = module._spread
    monkeypatch.setattr(module, "_spread", lambda vae, z: own(vae, z).flip(1))
    with pytest.raises(InvalidArgument, match=r"other images of its latents.*decode=") as raised:
        steer("Wan", red)
    assert raised.value.boundary.final


@pytest.mark.slow
def test_experts_that_take_turns_are_all_counted():
    """Wan 2.2 has one for high noise and one for low, chosen by the value of the timestep."""
    pipe, call = more.build("WanPipeline")
    del call["prompt"]
    other = diffusers.WanTransformer3DModel.from_config(pipe.transformer.config)
    other.load_state_dict(pipe.transformer.state_dict())
    both = diffusers.WanPipeline(**{**pipe.components, "transformer_2": other}, boundary_ratio=0.5)
    calls = {"transformer": [], "transformer_2": []}
    for name, seen in calls.items():
        both.components[name].register_forward_pre_hook(
            lambda m, a, k, seen=seen: seen.append(float(k["timestep"][0])), with_kwargs=True
        )
    result = steer_pipeline(both, "a cat", red, **{**FEW, **call, "transitions": 3, "steps": 2})
    assert min(calls["transformer"]) >= 500 > max(calls["transformer_2"])
    asked = sum(map(len, calls.values()))
    assert result.result.network_evaluations == 2 * asked == 2 * 2 * 3 * 2  # with guidance
    one = steer_pipeline(pipe, "a cat", red, **{**FEW, **call, "transitions": 3, "steps": 2})
    torch.testing.assert_close(one.rewards, result.rewards)  # experts with the same weights


@pytest.mark.slow
def test_prompts_and_chunks():
    prompts = ["a cat", "two dogs"]
    pipe, call = shared("Wan")
    whole = steer_pipeline(pipe, prompts, red, **FEW, **call)
    parts = steer_pipeline(pipe, prompts, red, **FEW, **call, max_batch=1)
    assert whole.rewards.shape == (2, 2) and len(whole.frames) == 4
    assert whole.rows[1][0] is whole.images[2]
    check_rewards(whole, [0, 1, 3, 4])
    torch.testing.assert_close(parts.rewards, whole.rewards, atol=1e-4, rtol=1e-4)
    best = [whole.frames[2 * p + int(whole.rewards[p].argmax())] for p in range(2)]
    assert whole.best_frames == best


def test_a_run_that_is_stopped_returns_the_frames_of_its_estimates():
    seen = []

    def look(step):
        if not step.rewards.isnan().all():
            seen[:] = step.images()
            return True
        return None

    result = steer("Wan", red, transitions=3, on_boundary=look)
    assert result.result.stopped is not None
    check_rewards(result, [0, 1, 3, 4])
    assert [one.tobytes() for one in seen] == [one.tobytes() for one in result.images]


@pytest.mark.slow
def test_what_is_refused_is_not_advised():
    result = steer("Wan", red, scale=1e6, ess_threshold=1)
    advice = result.result.strength.advice
    assert advice.startswith("all images share one ancestor: lower the scale")
    assert "refine" not in advice


@pytest.mark.slow
def test_our_import_prints_no_warnings_of_others():
    code = "from glass_flows import steer_pipeline"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("", "")


@pytest.mark.slow
def test_lambda_is_found_in_a_pilot_of_videos():
    result = steer("Wan", red, scale="auto")
    assert result.result.strength.found is not None and result.result.strength.scale > 0
    check_rewards(result, [0, 1, 3, 4])


# --- what cannot act ------------------------------------------------------------------------------


def test_frames_of_images_are_refused():
    pipe, call = shared("AuraFlow")
    for given, told in (
        ({"reward": red, "frames": 2}, "frames=2: AuraFlowPipeline draws images"),
        ({"reward": grows}, "the reward 'grows' takes videos, and AuraFlowPipeline draws images"),
        ({"reward": red, "also": {"m": moves}}, "'moves' takes videos"),
    ):
        with pytest.raises(InvalidArgument, match=told):
            steer_pipeline(pipe, "a cat", **given, **FEW, **call)
    with pytest.raises(
        InvalidArgument, match=r"argument of that name, too: give .*Frames\(reward, 4\)"
    ):
        asked = Asked.of(pipe, "a cat", reward=red, method=Steering(), sampler=None, seed=0,
                         batching=None, viewing=Viewing(4))  # fmt: skip
        front._check_frames(asked, True, {"frames": None})


@pytest.mark.slow
def test_pictures_that_stand_for_a_video_have_no_frames():
    """`decode` may make one image of a video, and of it no frames can be chosen."""

    def middle(z):
        return z[:, :3, 1].sigmoid()

    whole = steer("Wan", red, decode=middle)
    assert not isinstance(whole, VideoResult)
    for given in ({"reward": red, "frames": 2}, {"reward": grows}):
        with pytest.raises(InvalidArgument, match=r"needs videos \(B, F, 3, H, W\), and here are"):
            steer("Wan", method="best-of-n", decode=middle, **given)
    clips = steer("Wan", grows, decode=lambda z: z[:, :3].sigmoid().transpose(1, 2))
    assert isinstance(clips, VideoResult) and len(clips.frames[0]) == 2  # of the latents
    first = [np.asarray(v[0]).mean() / 255 for v in clips.frames]
    last = [np.asarray(v[-1]).mean() / 255 for v in clips.frames]
    for a, b, reward in zip(first, last, clips.rewards[0].tolist()):
        assert abs(b - 2 * a - reward) < 3 * ROUNDED


def test_a_decoder_that_adds_noise_is_refused():
    pipe, call = more.build("LTXPipeline")
    del call["prompt"]
    pipe.vae.register_to_config(timestep_conditioning=True)
    with pytest.raises(InvalidArgument, match=r"noised first \(decode_timestep\).*pass decode="):
        steer_pipeline(pipe, "a cat", red, **FEW, **call, decode_timestep=0.05)
    with pytest.raises(InvalidArgument, match="num_frames must be an integer"):
        steer_pipeline(pipe, "a cat", red, **FEW, **{**call, "num_frames": "9"})


def test_a_reward_of_videos_is_tried_before_the_network_is_asked():
    pipe, _ = shared("Wan")

    def broken(video):
        raise RewardError(f"of {len(video)} frames")

    with unasked(pipe):
        with pytest.raises(ShapeError, match="must return one number per video"):
            steer("Wan", lambda videos: videos.mean())
        for given in ({"reward": broken}, {"reward": red, "also": broken}):
            with pytest.raises(RewardError, match="of 5 frames"):
                steer("Wan", **given)


def test_frames_that_a_reward_names_are_its_own():
    """Also beside others: `frames` is what those see that say nothing."""
    by_itself = Frames(red, "all")
    also = {"all": by_itself, "first": Frames(red, "first"), "told": Frames(red)}
    result = steer("Wan", red, frames=2, also=also)
    check_rewards(result, [0, 4])
    also = {name: held.flatten().tolist() for name, held in result.result.also.items()}
    for i, video in enumerate(result.frames):
        for name, places in {"all": range(5), "first": [0], "told": [0, 4]}.items():
            assert abs(np.mean([of_frame(video[k]) for k in places]) - also[name][i]) < 2 * ROUNDED
    pipe, _ = shared("Wan")
    with unasked(pipe), pytest.raises(InvalidArgument, match=r"frames=2: red: each says itself"):
        steer("Wan", by_itself, frames=2)


def test_latents_of_an_unknown_pipeline_need_a_decoder(monkeypatch):
    monkeypatch.setattr(module, "code_of", lambda pipe: "latents = latents / 0.7")
    pipe, _ = shared("Wan")
    with unasked(pipe), pytest.raises(InvalidArgument, match=r"latents of its videos.*decode="):
        steer("Wan", red)


# --- files ----------------------------------------------------------------------------------------


def test_saved_videos_are_exact_and_their_sheets_say_what_they_are(tmp_path):
    result = steer("Wan", red, num_frames=9, frames=3)
    files = result.save(tmp_path / "out")
    assert [file.name for file in files] == ["000-00.png", "000-01.png"]
    for rank, n in enumerate(result.order[0]):
        with Image.open(tmp_path / "out" / f"000-{rank:02}.webp") as video:
            assert video.n_frames == 9
            lasts = []
            for k, frame in enumerate(result.frames[n]):
                video.seek(k)
                video.load()
                assert video.convert("RGB").tobytes() == frame.tobytes()
                lasts.append(video.info["duration"])
            assert sum(lasts) == round(9 * 1000 / 16) and set(lasts) == {62, 63}
        with Image.open(tmp_path / "out" / f"000-{rank:02}.png") as sheet:
            assert sheet.size == (3 * 16, 3 * 16)
            assert sheet.text["prompt"] == "a cat"
            assert '"frames": 3' in sheet.text["settings"]
            for k, frame in enumerate(result.frames[n]):
                x, y = 16 * (k % 3), 16 * (k // 3)
                assert sheet.crop((x, y, x + 16, y + 16)).tobytes() == frame.tobytes()
    told = read_run(tmp_path / "out").result
    jsonschema.validate(told, schema())
    assert {one["file"]: one["video"] for one in told["samples"]} == {
        "000-00.png": "000-00.webp", "000-01.png": "000-01.webp",
    }  # fmt: skip
    page = result.report(tmp_path / "page.html").read_text()
    assert "Contact sheets of the videos" in page and "frames scored" in page
    assert repr(result).startswith("steering: 2 videos of 'a cat'")
    assert result.sheet().size == (8 * 16, 2 * 16)
    for rank, n in enumerate(result.order[0]):
        for k, place in enumerate([0, 1, 2, 3, 5, 6, 7, 8]):
            tile = result.sheet().crop((16 * k, 16 * rank, 16 * k + 16, 16 * rank + 16))
            assert tile.tobytes() == result.frames[n][place].tobytes()
    with pytest.raises(InvalidArgument, match=r"a run of videos.*evaluate measures images"):
        read_images(tmp_path / "out")
    again = RunFolder(tmp_path / "out", result.settings, title="a cat")
    again.check()
    (tmp_path / "out" / "000-01.webp").unlink()
    with pytest.raises(RunFolderError, match=r"000-01\.webp.*missing or damaged"):
        again.check()
    again._over()
    clear_run(tmp_path / "out")
    assert not list((tmp_path / "out").glob("*.*p*"))


def schema():
    import json
    from pathlib import Path

    import glass_flows.runs as runs

    return json.loads((Path(runs.__file__).parent / "result.schema.json").read_text())


def test_a_video_lasts_as_long_as_its_rate_says(tmp_path):
    frames = [Image.new("RGB", (4, 4), (9 * k, 0, 0)) for k in range(25)]
    for rate in (24.0, 30.0, 7.0):
        save_video(frames, tmp_path / "x.webp", rate)
        with Image.open(tmp_path / "x.webp") as video:
            lasts = []
            for k in range(25):
                video.seek(k)
                video.load()
                lasts.append(video.info["duration"])
        assert sum(lasts) == round(25 * 1000 / rate)
        assert max(lasts) - min(lasts) <= 1
