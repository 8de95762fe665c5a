"""The default solver under classifier-free guidance: its grid, its order, and who tells it w."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
import torch

from cases import fast
from glass_flows import (
    Denoiser,
    Guidance,
    GuidedDenoiser,
    Sampler,
    posterior,
    sample,
    steer,
    transition,
)
from glass_flows.denoisers import BaseDenoiser
from glass_flows.errors import InvalidArgument
from glass_flows.paths import Linear
from glass_flows.plans import Default, Paper, plan, plan_transition
from glass_flows.plans.allowed import SOLVER
from glass_flows.plans.solvers import solver_for
from glass_flows.sampling import Tally
from glass_flows.steering import PosteriorValue
from glass_flows.worlds import GaussianMixture
from glass_flows.worlds.digits import digits_images, digits_labels

LINEAR = Linear()


class Guided(BaseDenoiser):
    """D_u + w (D_c - D_u), both exact: of Gaussians on all digits, and on those of a class."""

    def __init__(self, w, std, label=3):
        self.path, self.w = LINEAR, w
        images = digits_images().double()
        self.own = images[digits_labels() == label]
        self.c, self.u = (GaussianMixture(m, std).denoiser(LINEAR) for m in (self.own, images))

    def __call__(self, x, t):
        whole = self.u(x, t)
        return whole + self.w * (self.c(x, t) - whole)

    @property
    def cfg_scale(self):
        return self.w


def drawn(model, t, t_next, n=12):
    generator = torch.Generator().manual_seed(int(1000 * t))
    z = model.own[:n]
    x, eps = (torch.randn(z.shape, generator=generator, dtype=torch.float64) for _ in range(2))
    return t * z + (1 - t) * x, eps


def moved(model, t, t_next, steps, solver="default", n=12, rho=0.4):
    x, eps = drawn(model, t, t_next, n)
    return transition(model, x, t, t_next, rho=rho, steps=steps, solver=solver, noise=eps)


def rms(x):
    return x.square().mean().sqrt().item()


# --- the numbers ---------------------------------------------------------------------------------


@pytest.mark.parametrize("rho", ["ode", "ddpm", 0.4])
@pytest.mark.parametrize("steps", [1, 2, 3, 4, 7, 30])
def test_without_guidance_the_table_is_the_plain_one(steps, rho):
    def table(solver):
        return plan(LINEAR, transitions=4, steps=steps, rho=rho, solver=solver).transitions

    assert table("default") == table(Default(guidance=1.0)) == table(Default(guidance=0.0))
    if 1 < steps < 40:
        assert table("default") != table(Default(guidance=1.5))


@pytest.mark.parametrize("w", [1.0, 2.0, 3.0, 5.0, 9.0])
@pytest.mark.parametrize("ending", ["noise", "data"])
def test_where_the_queries_are(ending, w):
    """Up to three evaluations the first step is 1.2 and the warp 1.4, later 1 and 2 (1.5 before an
    end at data), falling to a warp of 1 from 20 to 40; in proportion to w - 1 up to w = 5."""
    t, t_next, rho, b = 0.3, 0.5 if ending == "noise" else 1.0, 0.4, min((w - 1) / 4, 1)
    gamma = rho * (1 - t_next) / (1 - t)
    a, noise = t / (1 - t), (1 - t_next) * math.sqrt(1 - rho**2)
    c = math.hypot(1.0, a)
    end = math.atan((t_next - gamma * t) / noise / c) if noise else math.pi / 2
    assert noise == 0 or 1 / math.cos(end) < 4  # the last slope is trusted
    strong_warp, last = (2.0, 0.6) if ending == "noise" else (1.5, 0.9)
    for steps, plain, first, warp in (
        (2, (0.6, 1.0), 1.2, 1.4),
        (3, (0.6, 1.0), 1.2, 1.4),
        (4, (0.6 if noise else 0.7, 1.0), 1.0, strong_warp),
        (10, (0.6 if noise else 0.7, 1.3), 1.0, strong_warp),
        (30, (0.6 if noise else 0.7, 1.15), 1.0, (1 + strong_warp) / 2),
        (40, (0.6 if noise else 0.7, 1.0), 1.0, 1.0),
    ):
        first, warp = (old + b * (new - old) for old, new in zip(plain, (first, warp)))
        lengths = np.array([first, *[1.0] * (steps - 2), 0.6 if steps < 4 else last])
        shares = np.concatenate([[0.0], np.cumsum(lengths)[:-1]]) / lengths.sum()
        root = (1 - 2 * end / math.pi) ** (1 / warp)
        expected = math.pi / 2 * (1 - (1 + shares * (root - 1)) ** warp)
        (planned,) = plan_transition(
            LINEAR, t, t_next, rho=rho, steps=steps, solver=Default(guidance=w)
        )
        added = [math.sqrt(max((r.time / (1 - r.time)) ** 2 - a**2, 0.0)) for r in planned.rows]
        assert [math.atan(q / c) for q in added] == pytest.approx(list(expected), abs=1e-7)


@pytest.mark.parametrize(("w", "share"), [(1.0, 1.0), (3.0, 0.75), (5.0, 0.5), (20.0, 0.5)])
def test_the_last_slope_counts_for_half(w, share):
    """The weight of D_prev in x' is that share of the line's, -∫ (s - s_b) dq / (s_b - s_a)."""
    (planned,) = plan_transition(LINEAR, 0.3, 0.5, rho=0.4, steps=4, solver=Default(guidance=w))
    a = 0.3 / 0.7
    c, sine = math.hypot(1, a), lambda q: q / np.hypot(math.hypot(1, a), q)
    qa, qb = (math.sqrt((r.time / (1 - r.time)) ** 2 - a**2) for r in planned.rows[-2:])
    q1 = planned.alpha_bar / planned.sigma_bar
    primitive = math.hypot(c, q1) - math.hypot(c, qb)  # ∫ s dq
    line = -(primitive - sine(qb) * (q1 - qb)) / (sine(qb) - sine(qa))
    assert planned.rows[-1].emit.D_prev == pytest.approx(planned.sigma_bar * share * line, rel=1e-9)


@pytest.mark.parametrize("w", [3.0, 5.0, 50.0])
@pytest.mark.parametrize("sigma_data", [0.5, 1.0])
def test_the_table_stays_exact_for_gaussian_data(sigma_data, w):
    """It verifies itself when it is made, and says for which law."""
    for rho in ("ddpm", 0.4, 0.9):
        for steps in (1, 2, 3, 5):
            table = plan(LINEAR, transitions=3, steps=steps, rho=rho, solver=Default(sigma_data, w))
            assert {one.law for one in table} == {sigma_data if steps > 1 else 0.0}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("t", "t_next"), fast([(0.3, 0.7)], [(0.25, 0.375), (0.3, 0.7), (0.6, 1.0)])
)
def test_second_order_under_guidance(t, t_next):
    model = Guided(5.0, 0.5)
    coarse, middling, fine = (moved(model, t, t_next, steps, n=4) for steps in (80, 160, 320))
    assert 1.8 <= math.log2(rms(coarse - middling) / rms(middling - fine)) <= 2.25


@pytest.mark.slow
def test_four_evaluations_beat_twenty_of_algorithm_1_at_guidance_5():
    """On exact guided mixtures; with the grid of w = 1 they do not do so well."""
    model, ours, plain = Guided(5.0, 0.15), [], []
    for t, t_next in ((0.125, 0.25), (0.25, 0.375), (0.375, 0.5), (0.5, 0.625), (0.625, 0.75)):
        exact = moved(model, t, t_next, 160, "default:guidance=1")
        paper = rms(moved(model, t, t_next, 20, "paper") - exact)
        ours.append(math.log(rms(moved(model, t, t_next, 4) - exact) / paper))
        plain.append(
            math.log(rms(moved(model, t, t_next, 4, "default:guidance=1") - exact) / paper)
        )
    assert np.mean(ours) <= 0.0
    assert np.mean(ours) < np.mean(plain) - 0.2


# --- who tells it --------------------------------------------------------------------------------


class Asked:
    """A network that writes down when it is asked."""

    def __init__(self):
        self.times = []

    def __call__(self, x, t, label):
        self.times.append(round(t[0].item(), 12))
        return x * label.view(-1, 1)

    def denoiser(self, w=5.0, **more):
        return Denoiser(
            self,
            LINEAR,
            prediction="sample",
            conditioning={"label": torch.tensor([0.5], dtype=torch.float64)},
            unconditional={"label": torch.tensor([0.4], dtype=torch.float64)},
            guidance_scale=w,
            dtype=torch.float64,
            **more,
        )


def times_of(table):
    return sorted({round(row.time, 12) for one in table for row in one.rows})


X = torch.randn(2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
CALLS = {
    "transition": (
        lambda d, **kw: transition(d, X, 0.3, 0.6, rho=0.4, steps=4, seed=0, **kw),
        lambda solver: plan_transition(LINEAR, 0.3, 0.6, rho=0.4, steps=4, solver=solver),
    ),
    "posterior": (
        lambda d, **kw: posterior(d, X, 0.3, samples=1, steps=4, seed=0, **kw),
        lambda solver: plan_transition(LINEAR, 0.3, 1.0, rho=0.0, steps=4, solver=solver),
    ),
    "sample": (
        lambda d, **kw: sample(d, X, transitions=2, steps=4, seed=0, progress=False, **kw),
        lambda solver: plan(LINEAR, transitions=2, steps=4, rho=0.4, solver=solver),
    ),
    "steer": (
        lambda d, **kw: steer(
            d, lambda z: z.sum(1), particles=2, scale=1.0, shape=(3,), transitions=2, steps=4,
            seed=0, progress=False, **kw,
        ),
        lambda solver: plan(LINEAR, transitions=2, steps=4, rho=0.4, solver=solver),
    ),
}  # fmt: skip


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("w", [1.0, 2.0, 5.0])
def test_the_denoiser_tells_its_guidance(call, w):
    run, table = CALLS[call]
    network = Asked()
    run(network.denoiser(w))
    assert sorted(set(network.times)) == times_of(table(Default(guidance=w)))
    if w > 1:
        assert sorted(set(network.times)) != times_of(table("default"))


@pytest.mark.parametrize("call", CALLS)
@pytest.mark.parametrize("solver", ["default:guidance=1", "default:guidance=3", "paper"])
def test_a_solver_that_was_told_is_kept(call, solver):
    run, table = CALLS[call]
    network = Asked()
    run(network.denoiser(5.0), solver=solver)
    assert sorted(set(network.times)) == times_of(table(solver))


def test_posterior_values_are_drawn_with_it():
    network = Asked()
    steer(
        network.denoiser(5.0), lambda z: z.sum(1), particles=2, scale=1.0, shape=(3,),
        transitions=3, steps=1,
        value=PosteriorValue(1, 4), seed=0, progress=False, dtype=torch.float64,
    )  # fmt: skip
    drawn = plan_transition(LINEAR, 1 / 3, 1.0, rho=0.0, steps=4, solver=Default(guidance=5.0))
    assert set(times_of(drawn)) <= set(network.times)


def test_whose_guidance_it_is():
    """Wrappers hand it on; a network may apply it itself; negative w counts as none."""
    denoiser = Asked().denoiser(4.0)
    assert denoiser.cfg_scale == Tally(denoiser).cfg_scale == 4.0
    tilted = GuidedDenoiser(denoiser, lambda z: z.sum(1), Guidance(1.0))
    assert tilted.cfg_scale == 4.0
    assert Denoiser(Asked(), LINEAR, passes=2, network_cfg=3.0).cfg_scale == 3.0
    assert Denoiser(Asked(), LINEAR).cfg_scale == 1.0
    assert GaussianMixture(torch.zeros(1, 2), 1.0).denoiser(LINEAR).cfg_scale == 1.0
    assert solver_for(Default(), -2.0) == Default(guidance=0.0)
    assert solver_for(Paper(), 5.0) == Paper()


def test_it_is_recorded_and_spelled():
    sampler = Sampler(solver="default:guidance=5")
    assert SOLVER.write(sampler.solver) == "default:guidance=5"
    assert SOLVER.read("solver", SOLVER.write(sampler.solver)) == Default(guidance=5.0)
    assert SOLVER.read("solver", "default:0.5:guidance=3") == Default(0.5, 3.0)
    table = Sampler().plan(LINEAR, 4.0)
    assert json.loads(table.to_json())["settings"]["guidance"] == 4.0
    assert "guidance=4.0" in str(table)
    assert Sampler().plan(LINEAR).settings["guidance"] == 1.0


@pytest.mark.parametrize("wrong", [-1.0, math.inf, math.nan, "strong", True])
def test_guidance_is_a_finite_number(wrong):
    with pytest.raises(InvalidArgument, match="guidance"):
        Default(guidance=wrong)
