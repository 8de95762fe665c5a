"""Rewards of videos: which frames are seen, and in which order."""

from __future__ import annotations

import itertools

import pytest
import torch

from glass_flows.errors import InvalidArgument, ShapeError
from glass_flows.rewards import Frames, FunctionReward, OfImages, OfVideos, Viewing
from glass_flows.rewards.videos import chosen


def red(images):
    return images[:, 0].mean((1, 2)) - images[:, 1:].mean((1, 2, 3))


@pytest.mark.parametrize(
    ("frames", "places"),
    [
        (None, [0, 3, 5, 8]), (1, [0]), ("first", [0]), (2, [0, 8]), (3, [0, 4, 8]),
        (5, [0, 2, 4, 6, 8]), ("all", list(range(9))), (10, list(range(9))),
    ],
)  # fmt: skip
def test_chosen_frames_are_evenly_spaced_from_the_first_to_the_last(frames, places):
    assert chosen(9, frames) == places
    assert chosen(9, None, of_videos=True) == list(range(9))


def test_no_frame_is_chosen_twice():
    for count, frames in itertools.product(range(1, 40), range(2, 40)):
        places = chosen(count, frames)
        assert len(set(places)) == len(places) == min(count, frames)
        assert places == sorted(places) and places[0] == 0 and places[-1] == count - 1
        steps = [b - a for a, b in itertools.pairwise(places)]
        assert not steps or max(steps) - min(steps) <= 1


def test_a_reward_of_images_is_the_mean_over_chosen_frames():
    z = torch.rand(2, 9, 3, 4, 4, dtype=torch.float64)
    expected = z[:, [0, 4, 8], 0].mean((1, 2, 3)) - z[:, [0, 4, 8], 1:].mean((1, 2, 3, 4))
    torch.testing.assert_close(Frames(red, 3)(z), expected)
    worded = FunctionReward(
        lambda images, prompts: images.mean((1, 2, 3)) + torch.tensor([len(p) for p in prompts]),
        takes_prompts=True,
    )
    told = Frames(worded, "first")(z, ["a", "bcd"])
    torch.testing.assert_close(told, z[:, 0].mean((1, 2, 3)) + torch.tensor([1, 3]))


def moves(video):
    return video[-1].mean() - 2 * video[0].mean()


def grows(videos):
    return videos[:, -1].mean((1, 2, 3)) - 2 * videos[:, 0].mean((1, 2, 3))


def declared(z):
    return grows(z)


declared.takes_video = True


@pytest.mark.parametrize("function", [moves, grows, declared])
def test_a_function_of_videos_is_handed_chosen_frames_in_their_order(function):
    z = torch.rand(2, 9, 3, 4, 4)
    reward = Frames(function, 5)
    assert reward.takes_video and isinstance(reward.part, OfVideos)
    torch.testing.assert_close(reward(z), grows(z[:, [0, 2, 4, 6, 8]]))
    seen = []
    Frames(OfVideos(lambda videos: seen.append(videos) or [0.0] * len(videos)))(z)
    assert torch.equal(seen[0], z)  # all of them by default


def test_what_is_no_reward_of_videos_is_said():
    z = torch.rand(2, 3, 3, 4, 4)
    with pytest.raises(ShapeError, match=r"returned \(\) for 2 videos .*`video` one at a time"):
        OfVideos(lambda videos: videos.mean())(z)
    with pytest.raises(ShapeError, match=r"takes videos \(B, F, 3, H, W\), got \(2, 3, 4, 4\)"):
        OfVideos(grows)(z[:, 0])
    with pytest.raises(InvalidArgument, match=r"videos and of images \(red\).*Frames\(reward, 4\)"):
        OfVideos(grows) + OfImages(red)
    both = OfVideos(grows) + 2 * Frames(red, "first")
    torch.testing.assert_close(both(z), grows(z) + 2 * red(z[:, 0]))
    assert both.takes_video
    with pytest.raises(
        InvalidArgument, match=r"unknown frames 'last'\. frames must be .*'first', 'all'"
    ):
        Viewing("last")
    with pytest.raises(InvalidArgument, match="frames must be an integer >= 1, got 0"):
        Viewing(0)


def test_of_images_a_reward_of_images_stays_what_it_is_and_nothing_else_goes():
    z = torch.rand(2, 3, 4, 4, dtype=torch.float64)
    torch.testing.assert_close(Frames(red)(z), red(z))
    for reward in (Frames(red, 2), Frames(grows)):
        with pytest.raises(InvalidArgument, match=r"needs videos .*here are images \(2, 3, 4, 4\)"):
            reward(z)
    liked = OfImages(red, "liked")
    liked.steering_scale = 3.0
    assert (Frames(liked).name, Frames(liked).steering_scale) == ("liked", 3.0)
    assert Frames(red).takes_video and not OfImages(red).takes_video


def test_a_gradient_reaches_the_chosen_frames_and_no_others():
    z = torch.rand(2, 9, 3, 4, 4, dtype=torch.float64)
    _, gradient = Frames(lambda images: images[:, 0].mean((1, 2)), 3).value_and_gradient(z)
    expected = torch.zeros_like(z)
    expected[:, [0, 4, 8], 0] = 1 / (3 * 16)
    torch.testing.assert_close(gradient, expected)
