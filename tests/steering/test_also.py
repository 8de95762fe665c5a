"""Held-out rewards change nothing, and over-optimisation is told where it is."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from statistics import NormalDist

import pytest
import torch
from test_steering import DENOISER, reward

from cases import fast
from glass_flows import Sampler, Steering, beam, best_of, greedy, plan, refine, steer
from glass_flows.errors import InvalidArgument, NonFinite, OtherJob, RewardError
from glass_flows.paths import Linear
from glass_flows.rewards import FunctionReward
from glass_flows.runs import RunFolder, read_run
from glass_flows.steering import iterate_steering, over_optimised
from glass_flows.steering.overoptimisation import LEVEL, Rung, falls

P, N = 3, 8
GIVEN = {
    "shape": (2,), "particles": N, "populations": P, "scale": 3.0, "seed": 1,
    "dtype": torch.float64,
}  # fmt: skip
CALLS = {
    "steer": (steer, {"transitions": 3}),
    "twist": (steer, {"transitions": 3, "twist": 1.0}),
    "posterior": (steer, {"transitions": 2, "value": "posterior:2:2"}),
    "own value": (steer, {"transitions": 3, "value": lambda x, t, D: D[:, 0]}),
    "best_of": (best_of, {"steps": 4}),
    "beam": (beam, {"transitions": 3}),
    "greedy": (greedy, {"transitions": 3}),
    "refine": (refine, {"moves": 4, "steps": 4}),
    "refine, last": (refine, {"moves": 4, "steps": 4, "returned": "last"}),
}


def first(z):
    return z[:, 0]


def rude(z):
    """Draws from torch's generator, writes into what it is given, and has no gradient."""
    torch.rand(3)
    return (z.mul_(2.0) > 0).double().detach().mean(1)


def noisy(z):
    """A reward whose bits are those of the generator."""
    return reward(z) + 0.1 * torch.rand(len(z), dtype=z.dtype)


def run(name, scored=reward, **given):
    call, own = CALLS[name]
    return call(DENOISER, scored, **{**GIVEN, **own, **given})


# --- nothing changes ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*CALLS])
def test_the_run_has_the_same_bits_and_costs(name):
    scored = reward if name == "twist" else noisy
    torch.manual_seed(0)
    plain = run(name, scored)
    torch.manual_seed(0)
    found = run(name, scored, also={"first": first, "rude": rude})
    for field in fields(plain):
        if field.name not in ("also", "paths", "warnings"):
            one, two = getattr(plain, field.name), getattr(found, field.name)
            same = torch.equal if isinstance(one, torch.Tensor) else (lambda a, b: a == b)
            assert same(one.nan_to_num() if same is torch.equal else one,
                        two.nan_to_num() if same is torch.equal else two), field.name  # fmt: skip
    assert (plain.also, plain.paths, plain.warnings) == ({}, {}, ())
    assert plain.also_evaluations == 0
    torch.testing.assert_close(found.also["first"], found.samples[..., 0])


@pytest.mark.parametrize("name", [*CALLS])
def test_every_boundary_with_values_is_scored_and_no_other(name):
    steps = []
    found = run(name, also=first, on_boundary=steps.append)
    taken = torch.tensor([not bool(step.also["first"].isnan().any()) for step in steps])
    own = torch.tensor([not bool(step.rewards.isnan().any()) for step in steps])
    assert name == "own value" or (taken[-1] and (taken == own).all())
    if name == "own value":
        assert taken.tolist() == [False, True, True, True]
    assert found.also_evaluations == int(taken.sum()) * P * N
    path = found.paths["first"]
    assert path.shape == found.paths["reward"].shape == (len(steps), P)
    assert (path.isnan().any(1) == ~taken).all()
    weights = torch.full((P, N), 1.0 / N)
    if hasattr(found, "log_weights"):
        weights = torch.softmax(found.log_weights, 1)
    torch.testing.assert_close(path[-1], (weights * steps[-1].also["first"]).sum(1))
    torch.testing.assert_close(found.paths["reward"][-1], (weights * steps[-1].rewards).sum(1))


def test_on_the_way_the_estimates_are_scored_and_weighted_before_selection():
    steps = []

    def look(step):
        at = step.boundary
        if not at.final:
            steps.append((step, first(at.estimate.untilted).view(P, N)))

    found = run("steer", also=first, on_boundary=look, ess_threshold=0.0, boundaries=1)
    for step, values in steps:
        assert torch.equal(step.also["first"], values)
        expected = (step.log_weights.normalized() * values).sum(1)
        torch.testing.assert_close(found.paths["first"][step.boundary.index], expected)


@pytest.mark.parametrize("returned", ["best", "last"])
def test_of_refinement_the_chains_are_scored(returned):
    """Also where a proposal was refused, and after exchanges."""
    chains, slots = [], torch.arange(N).expand(P, -1)

    def look(step):
        # What is held after an exchange, put back to before it, is what was scored.
        held = first(step.boundary.D).view(P, N)
        if not step.boundary.final:
            chains.append((held, step.also["first"].gather(1, step.ancestors)))

    found = run("refine", also=first, on_boundary=look, returned=returned, schedule="constant")
    exchanged = (found.ancestry != slots).any()
    refused = (found.acceptance < 1.0).any()
    assert exchanged and refused
    for held, scored in chains:
        torch.testing.assert_close(scored, held)


def test_an_iterator_has_them_too():
    method, table = Steering(N, scale=2.0), plan(Linear(), transitions=2, steps=2, rho=0.4)
    given = {"shape": (2,), "seed": 0, "dtype": torch.float64}
    steps = list(iterate_steering(table, DENOISER, reward, method, **given, also=[first]))
    assert [list(step.also) for step in steps] == [["first"]] * 3


# --- names and errors -----------------------------------------------------------------------------


def test_names_are_theirs():
    named = FunctionReward(first, "colour")
    assert list(run("best_of", also=[first, named]).also) == ["first", "colour"]
    assert list(run("best_of", also=named).also) == ["colour"]
    assert list(run("best_of", also={"a": first, "b": first}).also) == ["a", "b"]


@pytest.mark.parametrize(
    ("also", "told"),
    [
        ([first, first], "two of first, first have the same name"),
        ({"reward": first}, "got 'reward'"),
        ({3: first}, "a held-out reward needs a name"),
        ({"a": 3}, "a reward must be"),
        ("no reward", "a reward must be"),
    ],
)
def test_what_are_none_is_said_before_anything_is_drawn(also, told):
    with pytest.raises(InvalidArgument, match=told):
        run("steer", also=also)


def test_one_that_reads_prompts_needs_them():
    reads = FunctionReward(lambda z, prompts: z[:, 0], "reads", takes_prompts=True)
    with pytest.raises(InvalidArgument, match="held-out reward 'judge' takes prompts"):
        run("steer", also={"judge": reads})
    assert run("steer", also={"judge": reads}, prompts=["a", "b", "c"]).also["judge"].shape == (
        P,
        N,
    )


def test_errors_name_the_reward_and_the_place():
    def raising(z):
        raise ValueError("no")

    with pytest.raises(RewardError, match=r"at boundary 1 \(t = .*\) \(held out as 'mine'\)"):
        run("steer", also={"mine": raising})
    with pytest.raises(
        NonFinite, match=r"NaN.*at the end \(held out as 'mine'\) for particles"
    ) as error:
        run("best_of", also={"mine": lambda z: z[:, 0] * math.nan})
    assert error.value.boundary.final


# --- kept -----------------------------------------------------------------------------------------


class Stopped(BaseException):
    pass


@pytest.mark.parametrize("name", ["steer", "refine", "refine, last", "greedy"])
def test_a_run_that_was_stopped_has_the_same(name, tmp_path):
    also = {"first": first, "low": lambda z: -z[:, 1]}
    whole = run(name, also=also)

    def stop(step):
        if step.boundary.index == 2:
            raise Stopped

    folder = tmp_path / "run"
    with pytest.raises(Stopped):
        run(name, also=also, on_boundary=stop, record=RunFolder(folder))
    with pytest.raises(OtherJob, match=r'differs in also: \["first", "low"\] there'):
        run(name, also=first, record=RunFolder(folder))
    record = RunFolder(folder)
    found = run(name, also=also, record=record)
    record.finish(found)
    kept = record.result()
    for one in (found, kept):
        for held in ("also", "paths"):
            ours, theirs = getattr(one, held), getattr(whole, held)
            assert ours.keys() == theirs.keys()
            for key in ours:
                torch.testing.assert_close(ours[key], theirs[key], rtol=0, atol=0, equal_nan=True)
        assert one.warnings == whole.warnings
    told = read_run(folder)
    values = [[sample.also["first"] for sample in row] for row in told.samples]
    assert values == whole.also["first"].tolist()
    assert list(told.boundaries[-1].also) == ["first", "low"]


def test_values_that_json_has_not_are_kept(tmp_path):
    record = RunFolder(tmp_path)
    found = run("best_of", also={"hard": lambda z: torch.where(z[:, 0] > 0, 1.0, -math.inf)})
    record.finish(found)
    samples = read_run(tmp_path).samples
    values = [[sample.also["hard"] for sample in row] for row in samples]
    assert values == found.also["hard"].tolist()
    assert -math.inf in values[0]


# --- over-optimisation ----------------------------------------------------------------------------


def rung(scale, values, roots=None, rewards=None):
    values = values.double()
    n = values.shape[1]
    roots = torch.arange(n).expand(len(values), -1) if roots is None else roots
    rewards = torch.full_like(values, float(scale)) if rewards is None else rewards
    return Rung(scale, {"h": values}, rewards, torch.full_like(values, 1.0 / n), roots)


def test_the_statistic_is_the_difference_over_its_error():
    """Two groups of m: T² = d² m / (2 s²), s² the variance of all 2m."""
    low, high = torch.tensor([[1.0, 2, 3, 4, 5, 6]]), torch.tensor([[0.0, 1, 2, 3, 4, 5]])
    both = torch.cat([low, high], 1)
    z = NormalDist().inv_cdf(1 - LEVEL)
    edge = z * float(both.std()) * math.sqrt(2 / 6)  # d = 1 is less
    assert edge > 1.0
    assert falls([rung(0, low), rung(1, high)]) == ()
    for shift in (-0.02, 0.02):  # the same centred groups, d so that T is z but for a hair
        a = low - low.mean()
        # s² = (2 Σa² + m d²/2) / (2m - 1); T = d √(m/2) / s = z, solved for d²
        m, squares = 6, float(2 * (a**2).sum())
        d = math.sqrt(z**2 * squares / ((2 * m - 1) * m / 2 - z**2 * m / 2))
        told = falls([rung(0, a), rung(1, a - d * (1 + shift))])
        assert bool(told) == (shift > 0)


def test_copies_of_one_particle_are_one_draw():
    low, high = torch.randn(1, 16, generator=torch.Generator().manual_seed(0)), torch.zeros(1, 16)
    low = low - low.mean() + 1.0
    assert falls([rung(0, low), rung(1, high)])
    one = torch.zeros(1, 16, dtype=torch.long)
    assert falls([rung(0, low), rung(1, high, roots=one)]) == ()
    assert rung(0, low, roots=one).draws.tolist() == [1.0]
    families = torch.tensor([[0] * 8 + [1] * 8])
    assert rung(0, low, roots=families).draws.tolist() == [2.0]


def test_it_is_told_only_where_the_reward_rises():
    fall = [
        rung(s, torch.randn(4, 8, generator=torch.Generator().manual_seed(s)) - s) for s in (0, 5)
    ]
    (told,) = falls(fall)
    assert (told.name, told.beyond, told.seen) == ("h", 0, 5)
    assert "over-optimised beyond λ = 0: there the held-out 'h' is" in str(told)
    constant = [replace(one, rewards=torch.zeros(4, 8)) for one in fall]
    assert falls(constant) == ()
    rise = [replace(one, also={"h": -one.also["h"]}) for one in fall]
    assert falls(rise) == ()


def test_it_begins_where_the_held_out_reward_is_highest():
    means, draws = [0.0, 2.0, 1.9, -3.0, -9.0], torch.Generator().manual_seed(0)
    rungs = [rung(k, torch.randn(4, 8, generator=draws) + m) for k, m in enumerate(means)]
    (told,) = falls(rungs)
    assert (told.beyond, told.seen) == (1, 3)
    assert told.held_out[0] == pytest.approx(2.0, abs=0.6)


def test_constant_and_infinite_values_tell_nothing():
    weights = torch.softmax(
        torch.randn(2, 8, generator=torch.Generator().manual_seed(0)).double(), 1
    )
    constant = [rung(k, torch.full((2, 8), 0.3)) for k in (0, 1)]
    assert falls([constant[0], replace(constant[1], weights=weights)]) == ()
    assert falls([rung(0, torch.zeros(2, 8)), rung(1, torch.full((2, 8), -math.inf))]) == ()


@pytest.mark.slow
@pytest.mark.parametrize("kind", fast(["copies"], ["normal", "verdicts", "copies"]))
def test_false_alarms_are_at_most_one_in_twenty(kind):
    """Of 300 sweeps over five λ in which nothing falls: more than 26 have a chance of 1 in 300."""
    draws, alarms = torch.Generator().manual_seed(3), 0
    for _ in range(300):
        values = torch.randn(5, 4, 8, generator=draws)
        roots = None
        if kind == "verdicts":
            values = (values > -0.7).double()
        if kind == "copies":
            roots = torch.randint(2, (4, 8), generator=draws)
            values = values.gather(2, roots.expand(5, -1, -1))
        alarms += bool(falls([rung(k, one, roots) for k, one in enumerate(values)]))
    assert alarms <= 26


def against(z):
    return -reward(z)


@pytest.mark.parametrize("name", ["best_of", "refine", "refine, last"])
def test_one_run_tells_it_by_itself(name):
    """Of independent draws by their weights, of chains from move to move."""
    given = {"particles": 32, "scale": 8.0, "populations": 2}
    found = run(name, also={"against": against, "beside": first, "for": reward}, **given)
    assert len(found.warnings) == 1
    assert "the held-out 'against'" in found.warnings[0]
    if name != "refine":  # which returns the best of each chain, also at λ = 0
        assert run(name, also={"against": against}, **{**given, "scale": 0.0}).warnings == ()


def test_several_runs_tell_it_at_any_method():
    found = {
        s: run("steer", also={"against": against}, scale=s, particles=32) for s in (0.0, 0.1, 9.0)
    }
    (told,) = over_optimised(found)
    assert (told.name, told.seen) == ("against", 9.0)
    assert told.beyond in (0.0, 0.1)
    assert over_optimised({s: found[s] for s in (0.0, 0.1)}) == ()
    greedily = {s: run("greedy", also={"against": against}, scale=s) for s in (0.0, 9.0)}
    assert Rung.of(9.0, greedily[9.0]).draws.tolist() == [N // 2] * P


def test_what_cannot_be_compared_is_refused():
    one, other = run("best_of", also=first), run("best_of", also={"b": first})
    with pytest.raises(InvalidArgument, match="two results or more"):
        over_optimised({1.0: one})
    with pytest.raises(InvalidArgument, match="the same held-out rewards"):
        over_optimised({1.0: one, 2.0: other})
    with pytest.raises(InvalidArgument, match="the same held-out rewards"):
        over_optimised({1.0: run("best_of"), 2.0: run("best_of")})
    with pytest.raises(InvalidArgument, match="number of populations"):
        over_optimised({1.0: one, 2.0: run("best_of", also=first, populations=1)})
    with pytest.raises(InvalidArgument, match="the λ of a result must be a finite number >= 0"):
        over_optimised({-1.0: one, 2.0: one})
    with pytest.raises(InvalidArgument, match="expected a result"):
        over_optimised({1.0: one, 2.0: 3})


def test_the_sampler_may_be_any_object():
    found = steer(DENOISER, reward, Steering(4, scale=2.0), Sampler(2, 2), shape=(2,), also=first,
                  dtype=torch.float64)  # fmt: skip
    assert found.also["first"].shape == (1, 4)


def test_an_excluded_particle_hides_nothing():
    """A weight of 0 and a reward of -inf: means stay numbers, and warnings are told."""

    def sharp(z):
        value = 4.0 * z[:, 0]
        return torch.where(z[:, 1] > 1.0, -math.inf, value)

    found = best_of(
        DENOISER, sharp, shape=(2,), particles=64, populations=4, scale=3.0, seed=1, steps=4,
        also={"against": lambda z: -z[:, 0]}, dtype=torch.float64,
    )  # fmt: skip
    assert (found.rewards == -math.inf).any()
    assert all(found.paths[name][-1].isfinite().all() for name in ("reward", "against"))
    assert found.also_evaluations == 4 * 64 and any("against" in one for one in found.warnings)


def test_guided_draws_are_no_plain_ones():
    given = {"also": {"against": lambda z: -z[:, 0]}, "particles": 64, "scale": 3.0}
    assert run("best_of", lambda z: 4.0 * z[:, 0], **given).warnings
    guided = run("best_of", lambda z: 4.0 * z[:, 0], guidance="reward:0.5", **given)
    assert guided.warnings == ()


def test_of_a_greedy_search_lines_are_those_of_what_is_returned():
    steps = []
    found = run("greedy", on_boundary=lambda step: steps.append(step.ancestors) and None)
    slots = found.slots
    assert slots.shape == found.rewards.shape and (slots // 2 == torch.arange(N // 2)).all()
    assert torch.equal(found.lineage[-1], slots)
    for k in range(len(found.ancestry), 0, -1):
        slots = found.ancestry[k - 1].gather(1, slots)
        assert torch.equal(found.lineage[k - 1], slots)
