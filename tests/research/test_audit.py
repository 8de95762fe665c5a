"""Audits: right verdicts on samplers with known faults, no false alarm on right ones.

Rates. An audit raises a false alarm with probability at most 1e-3 (its `level`) on a sampler whose
error falls at least as K^(-1/2); `python -m benchmarks.audit --rates` measures it, and how often
the faults are named rightly (docs/audit.md).
"""

from __future__ import annotations

import importlib
import itertools
import json
import math
import sys
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import glass_flows
from cases import fast, first
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument, NonFinite, UnknownName
from glass_flows.measures import Measure
from glass_flows.research.audit import audit, figures, laws, verdict
from glass_flows.research.audit.run import _Run
from glass_flows.research.audit.subjects import OfScheduler
from glass_flows.research.audit.watch import Look, Watch
from glass_flows.worlds import GaussianMixture

ROOT = Path(__file__).parent.parent.parent
sys.path.insert(0, str(ROOT))  # of the benchmarks
bench = importlib.import_module("benchmarks.audit")
SMALL = {"samples": 1_000, "transitions": (4, 8, 16)}
FAST = {
    "DDPM", "Flow-GRPO's SDE", "GLASS, DDPM, M = 2", "Heun", "FlowMatchEulerDiscreteScheduler",
}  # fmt: skip
ALL = [n if n in FAST else pytest.param(n, marks=pytest.mark.slow) for n in bench.RIGHT]


def exact(denoiser, shape, steps, generator):
    """One transition to the data by the exact law of `line` or `modes`, which it has looked up."""
    law = denoiser.watch.law
    denoiser(torch.randn(shape, generator=generator, dtype=torch.float64), 0.0)
    if isinstance(law, GaussianMixture):
        return law.sample(shape[0], generator=generator)
    noise = torch.randn(shape, generator=generator, dtype=torch.float64)
    return law.means + law.stds * noise


# --- verdicts -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", fast(["residual noise", "stale D"], bench.FAULTY))
def test_faults_are_named(name):
    function, kind = bench.FAULTY[name]
    found = audit(function, **{**SMALL, "samples": 2_000})
    assert not found.right
    assert found.faults[0].kind == kind, found.verdict


@pytest.mark.filterwarnings("ignore:__array_wrap__")  # of diffusers, on numpy 2
@pytest.mark.parametrize("name", first(ALL))
def test_right_ones_raise_no_alarm(name):
    given = bench.RIGHT[name]
    function, options = given if isinstance(given, tuple) else (given, {})
    if isinstance(function, str):
        pytest.importorskip("diffusers")
    found = audit(function, options=options, **SMALL)
    assert found.right, found.verdict
    assert not found.notes
    assert found.verdict[0].startswith("right: no error above 0.02 lasts; at K = 16")


def test_twenty_are_right_and_at_least_six_are_not():
    assert len(bench.RIGHT) == 20
    assert len(bench.FAULTY) >= 6


@pytest.mark.parametrize(
    ("change", "kind"),
    [(lambda z: z + 0.1, "left"), (lambda z: 0.8 * z, "left"), (lambda z: z, None)],
)
def test_exact_samples_pass_and_changed_ones_do_not(change, kind):
    def sampler(*given):
        return change(exact(*given))

    found = audit(sampler, **SMALL)
    assert [fault.kind for fault in found.faults][:1] == ([kind] if kind else [])


def changed(law_change, *given):
    """Exact, then changed about the exact mean of the data that it is."""
    z, law = exact(*given), given[0].watch.law
    mean = law.mean() if isinstance(law, GaussianMixture) else law.means
    return law_change(z, mean)


@pytest.mark.parametrize(
    ("change", "kind", "sign"),
    [
        (lambda z, mean: mean + 0.7 * (z - mean), "narrow", -1),
        (lambda z, mean: mean + 1.4 * (z - mean), "wide", 1),
        (lambda z, mean: z + 0.2 * (z != laws.POINT), "bias", 1),
        (lambda z, mean: z - 0.2 * (z != laws.POINT), "bias", -1),
    ],
)
def test_what_is_wrong_with_the_samples_is_said_with_its_sign(change, kind, sign):
    found = audit(partial(changed, change), **SMALL)
    assert [fault.kind for fault in found.faults] == [kind]
    assert math.copysign(1, found.faults[0].error.value) == sign


def test_a_wrong_law_with_right_moments_is_seen():
    def normal(z, mean):
        if z.shape[1] != 2:
            return z
        law = laws.modes()
        root = torch.linalg.cholesky(law.covariance())
        generator = torch.Generator().manual_seed(len(z))
        return mean + torch.randn(z.shape, generator=generator, dtype=z.dtype) @ root.T

    found = audit(partial(changed, normal), samples=4_000, transitions=(4, 16))
    assert [fault.kind for fault in found.faults] == ["shape"]


def test_correlated_coordinates_are_seen():
    def mixed(z, mean):
        if z.shape[1] == 2:
            return z
        deviations = z - mean
        shared = deviations[:, 4:5] / 0.2 * laws.line().stds
        return mean + math.sqrt(0.8) * deviations + math.sqrt(0.2) * shared

    found = audit(partial(changed, mixed), samples=4_000, transitions=(4, 16))
    assert "correlated" in [fault.kind for fault in found.faults]


def test_a_seed_set_inside_is_seen():
    def sampler(denoiser, shape, steps, generator):
        return bench.euler(denoiser, shape, steps, torch.Generator().manual_seed(0))

    found = audit(sampler, **SMALL)
    assert "the seed is set inside" in found.verdict[0]


def test_a_constant_is_narrow_and_no_seed_is_blamed():
    found = audit(lambda denoiser, shape, steps, generator: torch.ones(shape), **SMALL)
    assert "narrow" in [fault.kind for fault in found.faults]
    assert not any("reused" in line for line in found.verdict)


def test_noise_from_elsewhere_and_no_questions_are_noted():
    torch.manual_seed(0)

    def sampler(denoiser, shape, steps, generator):
        elsewhere = torch.Generator().manual_seed(int(torch.randint(2**31, ())))
        law = denoiser.watch.law
        if isinstance(law, GaussianMixture):
            return law.sample(shape[0], generator=elsewhere)
        return law.means + law.stds * torch.randn(shape, generator=elsewhere, dtype=torch.float64)

    found = audit(sampler, **SMALL)
    assert len(found.notes) == 2
    assert "never asked" in found.notes[0]
    assert "an equal generator gives other samples" in found.notes[1]


def test_inputs_of_some_batches_only_are_not_looked_at():
    asked = []

    def sampler(denoiser, shape, steps, generator):
        asked.append(shape)
        if len(asked) == 2:  # of the first K
            denoiser(torch.zeros(10, shape[1], dtype=torch.float64), 0.5)
        return bench.euler(denoiser, shape, steps, generator)

    found = audit(sampler, samples=1_000, transitions=(2, 8))
    inputs = [any(name.startswith("input") for name in row.figures) for row in found.rows]
    assert inputs == [False, True]
    assert found.notes == (
        "it asked about some of the samples only at a K: inputs were not looked at there",
    )


# --- what lasts -----------------------------------------------------------------------------------

COUNTS = (4, 8, 16, 32, 64)


def series(error, spread=0.0):
    return {k: {"std 1": Measure(error(k), spread)} for k in COUNTS}


@pytest.mark.parametrize("order", [0.5, 1.0, 2.0])
@pytest.mark.parametrize("size", [-3.0, 0.4, 3.0])
def test_discretisation_never_lasts(order, size):
    assert verdict.lasting(series(lambda k: size * k**-order), "std 1", 1e-9, 4) is None
    assert verdict.order(series(lambda k: size * k**-order), ["std 1"]) == pytest.approx(order)


@pytest.mark.parametrize("order", [0.5, 1.0])
@pytest.mark.parametrize("size", [-3.9, -1.0, 2.0, 300.0])
def test_a_ratio_that_tends_to_1_never_lasts_however_far_it_is(order, size):
    """Standard deviations 1 + c K^-p over exact ones: logarithms of large ones would seem to."""
    errors = series(lambda k: figures.off_exact(1 + size * (k / 4) ** -order / 4))
    assert verdict.lasting(errors, "std 1", 1e-9, 4) is None
    for ratio in (0.01, 1.0, 7.0):
        assert figures.ratio_of(figures.off_exact(ratio)) == pytest.approx(ratio)


@pytest.mark.parametrize("sign", [-1, 1])
def test_what_lasts_is_what_a_finer_grid_cannot_explain(sign):
    """b + c/K of one sign: e = b + c/64, and a quarter of K bounds b by b - 2 c/64 = b - 0.02."""
    b, c = 0.1, 0.64
    errors = series(lambda k: sign * (b + c / k))
    assert verdict.lasting(errors, "std 1", b - 0.021, 4) == Measure(sign * 0.11, 0.0)
    assert verdict.lasting(errors, "std 1", b - 0.019, 4) is None
    assert verdict.lasting(series(lambda k: sign * b), "std 1", b - 1e-9, 4)
    assert verdict.lasting(series(lambda k: sign * b), "std 1", b + 1e-9, 4) is None
    growing = series(lambda k: sign * k / 64)  # of which the end is the bound
    assert verdict.lasting(growing, "std 1", 0.999, 4) == Measure(sign, 0.0)
    assert verdict.lasting(growing, "std 1", 1.001, 4) is None


def test_an_error_within_its_uncertainty_does_not_last():
    """Constant b: the bound from half of K has √(1 + 1/2)/(1 - √½) of the error, 4.18 of it."""
    wide = math.sqrt(1.5) / (1 - math.sqrt(0.5))
    assert verdict.lasting(series(lambda k: 0.1, 0.001), "std 1", 0.1 - 4 * wide * 1.01e-3, 4)
    assert not verdict.lasting(series(lambda k: 0.1, 0.001), "std 1", 0.1 - 4 * wide * 0.99e-3, 4)

    growing = series(lambda k: k / 64, 0.001)  # of which the end is the bound
    assert verdict.lasting(growing, "std 1", 0.9961 - 1e-3, 4)
    assert not verdict.lasting(growing, "std 1", 0.9961, 4)


def test_other_k_are_compared_from_a_quarter_of_the_largest():
    assert verdict.references((4, 8, 16, 32, 64)) == [16, 32]
    assert verdict.references((4, 64)) == [4]
    assert verdict.references((2, 5, 64)) == [5]


@pytest.mark.parametrize(
    ("signal", "noise", "noises", "kind", "told"),
    [
        (-0.2, -0.2, 9, "lost", "too little signal and noise"),
        (0.2, 0.2, 9, "scale", "too much signal for the time told, and too much noise"),
        (-0.2, 0.01, 9, "scale", "too little signal for the time told, and the right noise"),
        (0.2, -0.2, 9, "time", "of another time"),
        (-0.2, 0.2, 9, "time", "of another time"),
        (0.01, 0.2, 9, "noise", "have more of it"),
        (-0.01, -0.2, 9, "noise", "have less of it"),
        (0.01, 0.2, 2, "reused", "share one noise"),
        (0.01, 0.2, 1, "noise", "have more of it"),
    ],
)
def test_signal_and_noise_of_the_inputs_say_what_was_done(signal, noise, noises, kind, told):
    values = {"input signal middle": signal, "input noise middle": noise, "noise left": 0.0}
    drawn = {name: Measure(value, 0.001) for name, value in values.items()}
    found = verdict.diagnose(
        verdict.Evidence({4: drawn, 16: drawn}, Measure(0.0, 0.1), False, (0, 5), (noises, 8)),
        0.02, 1e-3,
    )  # fmt: skip
    assert [fault.kind for fault in found] == [kind]
    assert told in found[0].text


# --- figures --------------------------------------------------------------------------------------


def test_the_posterior_mean_is_that_of_a_mixture_of_one():
    law = laws.Independent(torch.tensor([0.3, -1.0]).double(), torch.tensor([0.7, 0.7]).double())
    one = GaussianMixture(law.means[None], 0.7)
    x = torch.randn(5, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for alpha, sigma in ((0.3, 0.7), (1.0, 5.0), (0.9, 0.1)):
        expected = one.posterior_mean(x, alpha, sigma)
        torch.testing.assert_close(law.posterior_mean(x, alpha, sigma), expected)


def test_figures_of_samples_whose_moments_are_known():
    """Two points per coordinate, m ± s: every figure in closed form."""
    law = laws.line()
    signs = torch.tensor([[1.0], [-1.0]]).double().repeat(500, 1)
    z = law.means + 0.9 * law.stds * signs + 0.01
    found = figures.line_figures(z, law)
    bessel = math.sqrt(1000 / 999)
    wide = figures.line_figures(law.means + 3 * law.stds * signs, law)["std 0.5"]
    assert wide.value == pytest.approx(3 * bessel - 1)
    assert wide.error == pytest.approx(3 * bessel / math.sqrt(2 * 4000))
    assert found["noise left"].value == pytest.approx(0.01)
    assert found["std 0.5"].value == pytest.approx(math.log(0.9 * bessel))
    assert found["std 0.5"].error == pytest.approx(1 / math.sqrt(2 * 4000))
    assert found["mean 0.2"].value == pytest.approx(0.05)
    assert found["mean 0.2"].error == pytest.approx(0.9 * bessel / math.sqrt(4000))
    assert found["correlation"].value == pytest.approx(1 / bessel**2)
    assert found["correlation"].error == pytest.approx(1 / math.sqrt(1000 * 120))


def test_figures_of_a_mixture_whose_moments_are_known():
    """Corners of a rectangle about the exact mean: every figure in closed form."""
    law = laws.modes()
    stds = law.covariance().diagonal().sqrt()
    corners = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0], [-1.0, -1.0]]).double()
    z = law.mean() + stds * (0.8 * corners.repeat(50, 1) + torch.tensor([0.1, 0.0]))
    found = figures.mode_figures(z, law, law.sample(200, seed=0))
    assert found["modes mean 1"].value == pytest.approx(0.1)
    assert found["modes mean 2"].value == pytest.approx(0.0, abs=1e-12)
    assert found["modes std 1"].value == pytest.approx(math.log(0.64 + 0.01) / 2)
    wide = figures.mode_figures(2 * z, law, law.sample(200, seed=0))["modes std 1"]
    above = law.mean()[0] / stds[0] + 0.2  # 2 z is 1.6 (± 1) + this
    square = 1.6**2 + above**2
    assert wide.value == pytest.approx(math.sqrt(square) - 1)
    spread = 2 * 1.6 * abs(above) * math.sqrt(200 / 199)  # of its square
    assert wide.error == pytest.approx(spread / math.sqrt(200 * square) / 2)
    assert found["modes std 2"].value == pytest.approx(math.log(0.8))
    exact_correlation = float(law.covariance()[0, 1] / stds.prod())
    assert found["modes correlation"].value == pytest.approx(-exact_correlation)
    assert abs(exact_correlation) > 0.02


def test_inputs_are_compared_with_the_time_told():
    law = laws.line()
    alpha, sigma = 0.6, 0.4
    shown = Look(alpha, sigma, 0.5 * law.means, (alpha * law.stds) ** 2 + 0.3**2)
    found = figures.input_figures([[shown], [shown]], 1_000)
    assert set(found) == {f"input {n} middle" for n in
                          ("signal", "noise", *(f"std {s:g}" for s in laws.SPREADS))}  # fmt: skip
    assert found["input signal middle"].value == pytest.approx(-0.1 / math.hypot(0.6, 0.4))
    assert found["input noise middle"].value == pytest.approx(math.log(0.75))
    ratio = (0.36 + 0.09) / (0.36 + 0.16)
    assert found["input std 1 middle"].value == pytest.approx(math.log(ratio) / 2)
    assert found["input std 1 middle"].error == pytest.approx(1 / math.sqrt(2 * 4000))
    noisy = Look(alpha, sigma, 0.5 * law.means, (alpha * law.stds) ** 2 + 0.8**2)
    found = figures.input_figures([[shown], [noisy]], 1_000)["input noise middle"]
    assert found.value == pytest.approx((math.log(0.75) + 1.0) / 2)
    assert found.error == pytest.approx(1.5 / math.sqrt(2 * 4000))


def test_dependence_is_the_excess_of_a_mean():
    """Batches whose samples come in equal pairs: twice the variance."""
    generator = torch.Generator().manual_seed(0)

    def drawn(copies):
        return [torch.randn(200, 404, generator=generator).double().repeat(copies, 1)
                for _ in range(4)]  # fmt: skip

    alone, pairs = (figures.dependence([drawn(c)] * 1) for c in (1, 2))
    assert alone.error == pytest.approx(math.sqrt(2 / 1200))
    assert abs(alone.value) < 5 * alone.error
    assert abs(pairs.value - 1) < 10 * pairs.error + 0.01


def test_a_watch_puts_parts_together_and_says_where_they_are_none():
    law = laws.line()
    x = torch.randn(10, 20, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    watch = Watch(law, 10, keep=1)
    D = torch.cat([watch.ask(part, 0.5, 0.5) for part in x.split(4)])
    torch.testing.assert_close(D, law.posterior_mean(x, 0.5, 0.5))
    watch.ask(x, 0.6, 0.4)
    assert watch.asked == 20 and watch.whole and len(watch.looks) == 2
    torch.testing.assert_close(watch.looks[0].variance, x.var(0))
    torch.testing.assert_close(watch.looks[0].x, x)
    assert watch.looks[1].x is None
    watch.ask(x[:4], 0.5, 0.5), watch.ask(x, 0.6, 0.4)
    assert not watch.whole
    torch.testing.assert_close(watch.ask(x, 0.5, 0.0), 2 * x)  # without noise


# --- schedulers -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("DDIMScheduler", {"prediction_type": "v_prediction"}),
        ("DDIMScheduler", {"prediction_type": "sample", "eta": 0.5}),
        ("DDIMScheduler", {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True,
                           "timestep_spacing": "trailing"}),
        ("EulerDiscreteScheduler", {}),
        ("EulerDiscreteScheduler", {"prediction_type": "v_prediction"}),
        ("UniPCMultistepScheduler", {"prediction_type": "flow_prediction",
                                     "use_flow_sigmas": True}),
        ("FlowMatchEulerDiscreteScheduler", {"shift": 3.0}),
        ("EDMEulerScheduler", {}),
        ("EDMEulerScheduler", {"prediction_type": "v_prediction"}),
        ("EDMDPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}),
    ],
)  # fmt: skip
def test_an_exact_network_takes_every_scheduler_to_a_point(name, options):
    """Where D is a constant, all of them end in it: the prediction is that of the configuration."""
    pytest.importorskip("diffusers")
    watch = Watch(laws.line(), 200)
    generator = torch.Generator().manual_seed(0)
    z = OfScheduler(name, options).checked(watch, 20, 8, generator)
    torch.testing.assert_close(z[:, :4], torch.full_like(z[:, :4], laws.POINT), atol=2e-2, rtol=0)
    for look in watch.looks:  # and the time told is that of the state
        # standard error 1/√1600 = 2.5 %: five of them
        assert float(look.variance[:4].mean().sqrt()) == pytest.approx(look.sigma, rel=0.125)
        # σ/√800 = 0.035 σ: five of them
        signal = float(look.mean[:4].mean())
        assert signal == pytest.approx(look.alpha * laws.POINT, abs=0.18 * look.sigma + 0.01)


def test_what_a_scheduler_takes_is_asked_of_its_three_places():
    pytest.importorskip("diffusers")
    one = OfScheduler("LCMScheduler", {"original_inference_steps": 1000, "beta_start": 0.001})
    assert one.made.config.original_inference_steps == 1000
    assert one.made.config.beta_start == 0.001
    assert OfScheduler("DDIMScheduler", {"eta": 0.3}).stepped == {"eta": 0.3}
    assert not OfScheduler("DDIMScheduler").made.config.clip_sample
    with pytest.raises(UnknownName, match=r"unknown option of DDIMScheduler 'etta'. Did you mean"):
        OfScheduler("DDIMScheduler", {"etta": 1})
    with pytest.raises(UnknownName, match="unknown option of FlowMatchEulerDiscreteScheduler"):
        OfScheduler("FlowMatchEulerDiscreteScheduler", {"s_churn": 1.0})  # which it ignores


# --- refusals -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"samples": 990}, "samples must be an integer >= 1000"),
        ({"samples": 1_010}, "samples must be a multiple of 20, got 1010"),
        ({"transitions": (8,)}, "at least two numbers, the largest four times"),
        ({"transitions": (8, 16)}, "at least two numbers, the largest four times"),
        ({"transitions": 8}, "transitions must be a list of numbers, got 8"),
        ({"options": ["eta=1"]}, "options must be a mapping by name"),
        ({"tolerance": 0.0}, "tolerance must lie in"),
        ({"level": 1.0}, "level must lie in"),
        ({"path": "lineer"}, "Did you mean 'linear'"),
        ({"path": ""}, "path"),
        ({"path": np.array([1, 2])}, "path"),
        ({"progress": "yes"}, "progress must be"),
        ({"sampler": "DDIMSheduler"}, "Did you mean 'DDIMScheduler'"),
        ({"sampler": "DDIMScheduler", "path": "linear"}, "a scheduler has its own"),
        ({"sampler": "no-module:f"}, "is no name of a module"),
        ({"sampler": "no_such_module:f"}, "cannot import the sampler's module"),
        ({"sampler": "benchmarks.audit:heum"}, "Did you mean 'heun'"),
        ({"sampler": "benchmarks.audit:QUICK"}, "is no function"),
        ({"sampler": lambda denoiser, shape: None}, "cannot be called as"),
        ({"options": {"eta": 1}}, "cannot be called as"),
        ({"sampler": lambda d, shape, k, g: torch.zeros(3)}, "must return a tensor"),
        ({"sampler": lambda d, shape, k, g: 1 / 0}, "raised ZeroDivisionError at K = 4"),
        ({"sampler": lambda d, shape, k, g: torch.full(shape, math.nan)}, "NaN or infinity"),
    ],
)  # fmt: skip
def test_what_cannot_be_audited_is_refused(given, told):
    if isinstance(given.get("sampler"), str):
        pytest.importorskip("diffusers")
    with pytest.raises((InvalidArgument, NonFinite), match=told):
        audit(**{"sampler": bench.euler, **SMALL, **given})


# --- results --------------------------------------------------------------------------------------


def test_the_command_prints_a_table_and_a_verdict_and_writes_them(tmp_path, monkeypatch):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(ROOT)
    size = ["--samples", "1000", "--transitions", "4,16"]
    out = ["--out", str(tmp_path / "audit")]
    shown = CliRunner().invoke(app, ["audit", "benchmarks.audit:wrong_rho", *size, *out],
                               env={"COLUMNS": "80"})  # fmt: skip
    assert shown.exit_code == 1, shown.output
    assert "the noise does not add up" in shown.output
    assert max(map(len, shown.output.splitlines())) <= 80 or str(tmp_path) in shown.output
    assert shown.output.split("K ")[1].split()[0] == "evals"
    kept = json.loads((tmp_path / "audit" / "audit.json").read_text())
    assert [row["transitions"] for row in kept["rows"]] == [4, 16]
    assert kept["faults"][0]["kind"] == "noise"
    page = (tmp_path / "audit" / "audit.md").read_text()
    assert "| K | evals |" in page and "wrong ρ" in page
    assert (tmp_path / "audit" / "audit.png").read_bytes()[:4] == b"\x89PNG"
    right = CliRunner().invoke(app, ["audit", "benchmarks.audit:heun", *size])
    assert right.exit_code == 0, right.output
    assert "right: no error" in right.output


@pytest.mark.parametrize(
    ("more", "told"),
    [(["--transitions", "4,x"], "--transitions must be numbers"),
     (["--option", "eta"], "--option must be NAME=VALUE")],
)  # fmt: skip
def test_the_command_refuses(more, told):
    shown = CliRunner().invoke(app, ["audit", "DDIMScheduler", *more])
    assert told in str(shown.exception)


def test_every_batch_of_every_seed_has_a_generator_of_its_own():
    run, found = object.__new__(_Run), set()
    for run.seed, K, batch in itertools.product((0, 1), (2, 8), (0, 1)):
        found.add(run._generator(K, batch).initial_seed())
    assert len(found) == 8


@pytest.mark.slow
def test_the_package_has_it_and_equal_seeds_give_equal_figures():
    assert glass_flows.audit is audit
    first, again, other = (audit(bench.heun, seed=s, samples=1_000, transitions=(2, 8))
                           for s in (0, 0, 1))  # fmt: skip
    assert first.rows == again.rows
    assert first.rows != other.rows
    assert first.rows[0].evaluations == 3  # the last step is one of Euler


@pytest.mark.slow
def test_alarms_are_as_rare_as_the_level_says():
    """Forty figures that last at the tolerance, under c K^-1/2: at level 0.2 a fifth alarm.

    Forty of forty-one shares of the level: 0.178 of 1,000 families, with the binomial standard
    error 0.0121: five of them, once in a million.
    """
    rng = np.random.default_rng(0)
    names = ["noise left", *(f"std {i}" for i in range(39))]
    alarms = 0
    for _ in range(1_000):
        drawn = {k: {n: Measure(0.02 + k**-0.5 + 0.01 * e, 0.01)
                     for n, e in zip(names, rng.standard_normal(40), strict=True)}
                 for k in (4, 16)}  # fmt: skip
        evidence = verdict.Evidence(drawn, Measure(0.0, 0.1), False, (0, 5), (3, 8))
        alarms += bool(verdict.diagnose(evidence, 0.02, 0.2))
    assert abs(alarms / 1_000 - (1 - (1 - 0.2 / 41) ** 40)) < 0.0605
