"""`on_boundary` looks on, and ends a run: the clean estimates there are what it comes to."""

from __future__ import annotations

import math

import pytest
import torch

from cases import fast
from glass_flows import Beam, BestOf, Greedy, Refine, Sampler, Steering, steering
from glass_flows.errors import InvalidArgument
from glass_flows.jobs import digits_denoiser
from glass_flows.runs import RunFolder, read_run

SHAPE, N, P, K = (1, 8, 8), 4, 2, 5
DENOISER = digits_denoiser()
SAMPLER = Sampler(K, 2)
METHODS = {
    "steer": Steering(N, scale=30.0, ess_threshold=1.0, twist=0.5),
    "best_of": BestOf(N),
    "beam": Beam(N, children=2),
    "greedy": Greedy(N, children=2, pick="sample"),
    "refine": Refine(N, scale=30.0, moves=K, ess_threshold=1.0, schedule="linear"),
}


def brightness(z):
    return z.mean((1, 2, 3))


def run(name, method=None, **options):
    call, method = getattr(steering, name), method or METHODS[name]
    given = {"shape": SHAPE, "populations": P, "seed": 3, "progress": False}
    return call(DENOISER, brightness, method, SAMPLER, **{**given, **options})


def at(k, seen=None):
    def look(step):
        if seen is not None:
            seen.append(step)
        return step.boundary.index == k

    return look


@pytest.mark.parametrize("name", METHODS)
def test_the_clean_estimates_of_the_boundary_are_the_samples(name):
    seen = []
    result = run(name, on_boundary=at(2, seen))
    assert result.stopped == 2
    assert [step.boundary.index for step in seen] == [0, 1, 2, 3]  # the last is the end
    stop, end = seen[2:]
    assert end.boundary.final
    assert len(result.ancestry) == 3
    assert result.costs == end.costs
    assert stop.costs.network_evaluations == end.costs.network_evaluations
    torch.testing.assert_close(
        brightness(result.samples.flatten(0, 1)).view(result.rewards.shape), result.rewards,
        check_dtype=False,
    )  # fmt: skip
    if name != "refine":
        known = stop.boundary.D.view(P, N, *SHAPE)
        assert all((known[p] == z).flatten(1).all(1).any() for p in range(P) for z in
                   result.samples[p])  # fmt: skip
    if name in ("steer", "refine"):
        assert "2 of 5" in result.biases[-1]
        assert "on_boundary" in result.biases[-1]
    assert any("stopped at boundary 2: " in line or "2 of 5" in line for line in result.lines())
    assert not any("stopped at boundary" in line for line in run(name).lines())


def test_what_goes_on_is_as_if_nobody_had_looked():
    whole, watched = run("steer"), run("steer", on_boundary=lambda step: False)
    assert torch.equal(whole.samples, watched.samples)
    assert whole.stopped is watched.stopped is None
    at_the_end = run("steer", on_boundary=at(K))
    assert torch.equal(at_the_end.samples, whole.samples)
    assert at_the_end.stopped is None


def test_a_stopped_run_weighs_its_estimates_by_the_reward_alone():
    """Never resampled, with differences as potentials: log w = λ r(D), and the evidence so."""
    method = Steering(N, scale=30.0, ess_threshold=0.0)
    result = run("steer", method, on_boundary=at(3))
    torch.testing.assert_close(result.log_weights, 30.0 * result.rewards.double())
    wanted = (30.0 * result.rewards.double()).logsumexp(1) - math.log(N)
    torch.testing.assert_close(result.log_evidence, wanted)


def test_chains_that_are_stopped_end_where_they_stand():
    seen = []
    method = Refine(N, scale=30.0, moves=K, returned="last", ess_threshold=0.0)
    result = run("refine", method, on_boundary=at(2, seen))
    assert torch.equal(result.samples.flatten(0, 1), seen[2].boundary.x)
    assert torch.equal(result.rewards, seen[2].rewards)
    assert result.acceptance[-1].eq(0).all()  # of the move that was left out
    torch.testing.assert_close(result.log_weights - seen[2].log_weights.values,
                               30.0 * (1 - seen[2].share[:, None]) * result.rewards)  # fmt: skip


@pytest.mark.parametrize("name", fast(["steer", "refine"], METHODS))
def test_taken_up_again_it_stops_at_the_same_place(name, tmp_path):
    """Killed at the boundary before, and then at the end that stopping made."""
    whole, folder = run(name, on_boundary=at(2)), tmp_path / "run"
    for last in (1, 3):

        def look(step, last=last):
            if step.boundary.index == last:
                raise KeyboardInterrupt
            return step.boundary.index == 2

        with pytest.raises(KeyboardInterrupt):
            run(name, record=RunFolder(folder, {"seed": 3}), on_boundary=look)
    record = RunFolder(folder, {"seed": 3})
    again = run(name, record=record, on_boundary=at(2))
    assert again.stopped == 2
    assert torch.equal(again.samples, whole.samples)
    assert torch.equal(again.ancestry, whole.ancestry)
    record.finish(again)
    record.check()
    assert RunFolder(folder, {"seed": 3}).result().stopped == 2
    found = read_run(folder)
    assert found.boundaries[-1].final
    assert len(found.boundaries) == 4


@pytest.mark.parametrize("answer", ["stop", 1, [True], object()])
def test_an_answer_that_says_neither_is_refused(answer):
    with pytest.raises(InvalidArgument, match="True to end the run") as caught:
        run("beam", on_boundary=lambda step: answer)
    assert caught.value.boundary.index == 0


@pytest.mark.parametrize("answer", [torch.tensor(True), True])
def test_true_may_be_that_of_a_tensor(answer):
    assert run("beam", on_boundary=lambda step: answer).stopped == 0


def test_a_step_gives_its_clean_estimates_and_no_pictures_of_what_is_none():
    seen = []
    run("steer", on_boundary=at(None, seen))
    for step in seen[1:]:
        found = brightness(step.estimates).view(P, N)
        torch.testing.assert_close(found, step.rewards, check_dtype=False)
    with pytest.raises(InvalidArgument, match=r"step\.estimates"):
        seen[1].images()
