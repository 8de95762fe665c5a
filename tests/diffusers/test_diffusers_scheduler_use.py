"""The drop-in scheduler as people use it: copied, saved, given lists, counting evaluations."""

import copy
import logging
import pickle
import threading

import diffusers
import numpy as np
import pytest
import torch

import tiny_pipelines as tiny
from cases import fast, first, one_in
from glass_flows.diffusers import GlassScheduler
from glass_flows.diffusers.scheduler import _note_calls
from glass_flows.errors import InvalidArgument, UnknownName

_BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
FLOW = diffusers.FlowMatchEulerDiscreteScheduler(shift=3.0)
DDIM = diffusers.DDIMScheduler(
    **_BETAS, clip_sample=False, set_alpha_to_one=False, timestep_spacing="trailing"
)


def glass(own=FLOW, **options):
    return GlassScheduler.from_config({**own.config, "_class_name": type(own).__name__}, **options)


def noise(seed=0):
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(seed))


def go_on(ours, x, rows):
    for row in rows:
        x = ours.step(0.3 * x.sin(), ours.timesteps[row], x, return_dict=False)[0]
    return x


def draw(pipe, name, **changes):
    output = "np" if name == "dit" else "latent"
    given = {**tiny.CALL[name], "num_inference_steps": 2, "output_type": output, **changes}
    return torch.as_tensor(pipe(**given, generator=torch.Generator().manual_seed(3)).images)


# --- torch.inference_mode -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "M"),
    fast([("flux", 2)], [(name, M) for name in tiny.FIRST for M in (1, 2)]),
)
def test_inference_mode_changes_nothing(name, M):
    pipe = tiny.build(name)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=M)
    expected = draw(pipe, name)
    with torch.inference_mode():
        assert torch.equal(draw(pipe, name), expected)


@pytest.mark.parametrize("in_place", [True, False])
def test_edits_are_seen_without_counters_of_versions(in_place):
    def edited(x, at, factor):
        ours = glass(steps=2)
        ours.set_timesteps(2)
        x = go_on(ours, x, range(at))
        x = x.mul_(factor) if in_place else x * factor
        return go_on(ours, x, range(at, 4))

    expected = edited(noise(), 2, 1.5)
    with torch.inference_mode():
        torch.testing.assert_close(edited(noise(), 2, 1.5), expected)
        assert not torch.equal(edited(noise(), 2, 1.0), expected)
        edited(noise(), 1, 1.0)
        with pytest.raises(InvalidArgument, match="inside a transition"):
            edited(noise(), 1, 1.5)


# --- copies -------------------------------------------------------------------------------------

COPIES = {"deepcopy": copy.deepcopy, "pickle": lambda ours: pickle.loads(pickle.dumps(ours))}


@pytest.mark.parametrize("make", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("own", [FLOW, DDIM])
@pytest.mark.parametrize("row", one_in(3, range(5)))
def test_a_copy_goes_on_between_transitions(own, row, make):
    ours = glass(own, steps=2)
    ours.at_boundary = lambda boundary: None  # which cannot be pickled
    ours.set_timesteps(2)
    x = go_on(ours, noise(), range(row))
    other = make(ours)
    expected = go_on(ours, x, range(row, 4))
    if row % 2:
        with pytest.raises(InvalidArgument, match="copied inside a transition"):
            go_on(other, x, range(row, 4))
        with pytest.raises(InvalidArgument, match="copied inside a transition"):
            go_on(make(other), x, range(row, 4))
    else:
        assert torch.equal(go_on(other, x, range(row, 4)), expected)
    other.set_timesteps(2)
    assert torch.equal(go_on(other, noise(), range(4)), go_on_afresh(ours))


def go_on_afresh(ours):
    ours.set_timesteps(2)
    return go_on(ours, noise(), range(4))


def test_a_copy_keeps_what_was_handed_to_it():
    """Edits at the boundary pass through in a copy, too."""
    ours = glass(steps=2)
    ours.set_timesteps(2)
    x = go_on(ours, noise(), range(2))
    other = copy.deepcopy(ours)
    assert torch.equal(go_on(other, 1.5 * x, (2, 3)), go_on(ours, 1.5 * x, (2, 3)))


def test_a_state_for_each_view():
    """Pipelines of several views (panorama) put back the scheduler's dict of each before a step."""
    ours = glass(DDIM, steps=1, rho="ddpm")
    alone = []
    for view in (0, 1):
        ours.set_timesteps(3)
        alone.append(go_on(ours, noise(view), range(3)))
    ours.set_timesteps(3)
    states, x = [copy.deepcopy(ours.__dict__)] * 2, [noise(0), noise(1)]
    for row in range(3):
        for view in (0, 1):
            ours.__dict__.update(states[view])
            x[view] = go_on(ours, x[view], [row])
            states[view] = copy.deepcopy(ours.__dict__)
    assert torch.equal(torch.stack(x), torch.stack(alone))


def test_timesteps_are_copied_as_plain_tensors():
    ours = glass(steps=2)
    ours.set_timesteps(3)
    for other in (copy.deepcopy(ours.timesteps), pickle.loads(pickle.dumps(ours.timesteps))):
        assert type(other) is torch.Tensor and torch.equal(other, ours.timesteps)


def test_interrupted_it_can_be_copied_and_used_again():
    pipe = tiny.build("flux")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    expected = draw(pipe, "flux")

    def stop(pipe, i, t, given):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        draw(pipe, "flux", callback_on_step_end=stop)
    pipe.scheduler = copy.deepcopy(pipe.scheduler)
    assert torch.equal(draw(pipe, "flux"), expected)


def test_threads_with_copies_get_what_they_get_alone():
    one, found = glass(DDIM, steps=2), {}

    def job(seed):
        ours = copy.deepcopy(one)
        ours.set_timesteps(4)
        found.setdefault(seed, []).append(go_on(ours, noise(seed), range(len(ours.timesteps))))

    for seed in range(3):
        job(seed)
    threads = [threading.Thread(target=job, args=(seed,)) for seed in range(3)]
    [thread.start() for thread in threads], [thread.join() for thread in threads]
    assert all(torch.equal(*both) for both in found.values())


def test_what_was_stopped_is_not_gone_on_with():
    ours = glass(steps=1)
    ours.set_timesteps(3)
    x = noise()
    with pytest.raises(ArithmeticError):
        ours.step(x * torch.nan, ours.timesteps[0], x)
    with pytest.raises(InvalidArgument, match="or it was stopped"):
        ours.step(x, ours.timesteps[0], x)


# --- saved --------------------------------------------------------------------------------------


def test_numpy_in_configurations_is_saved(tmp_path):
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    own = diffusers.DDIMScheduler(trained_betas=betas, clip_sample=np.bool_(False))
    ours = glass(own, rho=np.float32(0.5), steps=np.int64(2), seed=np.int32(3), count="evaluations")
    ours.save_pretrained(tmp_path)
    loaded = GlassScheduler.from_pretrained(tmp_path)
    assert dict(loaded.config.base) == dict(ours.config.base)
    kept = ("rho", "steps", "seed", "count")
    assert [loaded.config[name] for name in kept] == [0.5, 2, 3, "evaluations"]
    results = []
    for scheduler in (ours, loaded):
        scheduler.set_timesteps(4)
        results.append(go_on(scheduler, noise(), range(len(scheduler.timesteps))))
    assert torch.equal(*results)
    lists = glass(diffusers.DDIMScheduler(trained_betas=betas.tolist(), clip_sample=False))
    assert torch.equal(lists.alphas_cumprod, ours.alphas_cumprod)


def test_objects_that_have_a_text_are_kept_as_that():
    from glass_flows.plans import DDIM as Eta
    from glass_flows.plans import Paper

    assert glass(rho=Eta(0.5), steps=1).config.rho == "ddim:0.5"
    assert glass(solver=Paper(0.5)).config.solver == "paper:0.5"
    for wrong in ({"rho": lambda s, t: 0.5}, {"rho": [0.4] * 6}):
        with pytest.raises(InvalidArgument, match="kept in its configuration"):
            glass(**wrong)


# --- what pipelines pass to step ----------------------------------------------------------------


def pixels():
    torch.manual_seed(0)
    unet = diffusers.UNet2DModel(
        sample_size=8, block_out_channels=(8, 8), norm_num_groups=4, layers_per_block=1,
        down_block_types=("DownBlock2D",) * 2, up_block_types=("UpBlock2D",) * 2,
    )  # fmt: skip
    pipe = diffusers.DDIMPipeline(unet=unet, scheduler=diffusers.DDIMScheduler(clip_sample=False))
    pipe.set_progress_bar_config(disable=True)
    return pipe


@pytest.mark.slow
def test_eta_is_zero_or_an_option_of_the_scheduler():
    pipe = pixels()
    own = pipe.scheduler
    job = {"num_inference_steps": 3, "output_type": "np"}

    def images(**more):
        return pipe(**job, generator=torch.Generator().manual_seed(0), **more).images

    theirs = images()
    pipe.scheduler = glass(own, rho=1.0, steps=1)
    np.testing.assert_allclose(images(), theirs, atol=1e-5)
    pipe.scheduler = glass(own, steps=2)
    assert np.isfinite(images(eta=0.0)).all()
    with pytest.raises(InvalidArgument, match=r"rho='ddim:0\.5' and steps=1"):
        images(eta=0.5)
    with pytest.raises(InvalidArgument, match=r"eta must lie in \[0, 1\]"):
        images(eta=1.5)
    pipe.scheduler = own
    theirs = images(eta=0.5)
    pipe.scheduler = glass(own, rho="ddim:0.5", steps=1)  # the remedy, typed back
    np.testing.assert_allclose(images(), theirs, atol=1e-5)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"eta": 0.5}, "rho='ddim:0.5'"),
        ({"eta": "x"}, "eta must lie"),
        ({"variance_noise": torch.zeros(1)}, "passes variance_noise to"),
        ({"s_noise": 1.1, "s_churn": 0.5}, "passes s_churn, s_noise to"),
        ({"per_token_timesteps": torch.zeros(1)}, "per_token_timesteps"),
    ],
)
def test_what_other_schedulers_take(given, message):
    ours = glass(steps=1)
    ours.set_timesteps(2)
    with pytest.raises(InvalidArgument, match=message):
        ours.step(noise(), ours.timesteps[0], noise(), **given)
    nothing = {**dict.fromkeys(given), "eta": 0.0}
    ours.step(noise(), ours.timesteps[0], noise(), **nothing)


def test_the_noise_of_a_clipped_estimate():
    ours = glass(diffusers.DDIMScheduler(clip_sample=True), steps=1)
    ours.set_timesteps(2)
    x = noise()
    with pytest.raises(InvalidArgument, match="passes use_clipped_model_output to"):
        ours.step(x, ours.timesteps[0], x, use_clipped_model_output=False)
    ours.step(x, ours.timesteps[0], x, use_clipped_model_output=True)


# --- grids --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [list, tuple, np.array, torch.tensor])
@pytest.mark.parametrize("own", [FLOW, DDIM])
def test_lists_of_every_kind_and_with_the_end_or_without(own, kind):
    given = [1.0, 0.75, 0.5, 0.25] if own is FLOW else [14.615, 5.0, 1.0, 0.2]
    tables = []
    for listed in (given, [*given, 0.0]):
        ours = glass(own, steps=2)
        ours.set_timesteps(sigmas=kind(listed))
        tables.append(ours.table)
    assert len(tables[0]) == 4 and tables[0].to_json() == tables[1].to_json()


def test_sigmas_that_end_in_zero_in_a_pipeline():
    pipe = tiny.build("flux")
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=2)
    one, two = (draw(pipe, "flux", sigmas=[1.0, 0.5, *end]) for end in ([], [0.0]))
    assert torch.equal(one, two)


@pytest.mark.parametrize(
    ("own", "given", "message"),
    [
        (FLOW, {"sigmas": []}, "sigmas must be a list of numbers, at least one, got"),
        (FLOW, {"sigmas": 0.5}, "sigmas must be a list"),
        (FLOW, {"timesteps": True}, "timesteps must be a list"),
        (FLOW, {"timesteps": "900,500"}, "timesteps must be a list"),
        (FLOW, {"sigmas": [1.0, float("nan")]}, r"sigmas\[1\] must be finite"),
        (FLOW, {"sigmas": [1.0, "x"]}, r"sigmas\[1\] must be finite"),
        (FLOW, {"sigmas": [0.5, 0.5]}, r"entry 0 is 0\.5, entry 1 0\.5"),
        (FLOW, {"sigmas": [0.5, 0.0, 0.2]}, "entry 1 is 0, entry 2"),
        (FLOW, {"sigmas": [14.6, 1.0]}, r"flow lie in \(0, 1\]"),
        (FLOW, {"sigmas": [0.5, -0.1]}, r"flow lie in \(0, 1\]"),
        (FLOW, {"timesteps": [1200.0, 1.0]}, "timestep 1200"),
        (FLOW, {"timesteps": [900.0, 500.0], "num_inference_steps": 5}, "lists 2 values, but num"),
        (FLOW, {"timesteps": [9.0], "sigmas": [0.1]}, "not both"),
        (DDIM, {"timesteps": [100, 500]}, "must fall"),
        (DDIM, {"timesteps": list(range(500))}, "entry 0 is 0, entry 1 1"),
        (DDIM, {"sigmas": [80.0, 1.0]}, "from 0.02917 to 14.61"),
        (DDIM, {"sigmas": [1.0, -1.0]}, "sigma -1 is none"),
        (DDIM, {"num_inference_steps": 4, "mu": 0.5}, "DDIMScheduler takes no mu"),
        (DDIM, {"timesteps": [900, 500], "mu": 0.5}, "DDIMScheduler takes no mu"),
        (FLOW, {"num_inference_steps": 4, "mu": "x"}, "mu must be finite"),
        (DDIM, {}, "num_inference_steps must be an integer >= 1, got None"),
        (DDIM, {"num_inference_steps": 2.5}, "must be an integer"),
        (DDIM, {"num_inference_steps": "4"}, "must be an integer"),
        (DDIM, {"num_inference_steps": 0}, "must be an integer"),
        (DDIM, {"num_inference_steps": True}, "must be an integer"),
        (DDIM, {"num_inference_steps": 10**9}, "at most 1000"),
        (FLOW, {"num_inference_steps": 10**9}, "at most 10000"),
    ],
)
def test_what_is_no_grid_is_named_shortly(own, given, message):
    ours = glass(own, steps=2)
    with pytest.raises(InvalidArgument, match=message) as caught:
        ours.set_timesteps(**given)
    assert len(str(caught.value)) < 300


def test_grids_that_are_refused_by_the_schedulers_own_class():
    dynamic = diffusers.FlowMatchEulerDiscreteScheduler(use_dynamic_shifting=True)
    with pytest.raises(InvalidArgument, match="refuses 4 steps with mu=None"):
        glass(dynamic).set_timesteps(4)
    static = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True
    )
    with pytest.raises(InvalidArgument, match=r"refuses 4 steps with mu=0\.5"):
        glass(static).set_timesteps(4, mu=0.5)
    with pytest.raises(InvalidArgument, match="at most 100,000"):
        glass(steps=60_000).set_timesteps(4)


@pytest.mark.parametrize("K", [20, pytest.param(50, marks=pytest.mark.slow)])
@pytest.mark.parametrize("kind", ["DPMSolverMultistep", "UniPCMultistep", "DEISMultistep"])
@pytest.mark.parametrize("levels", first(["karras", "exponential", "beta"]))
def test_grids_whose_timesteps_round_to_equal_ones(kind, levels, K):
    pytest.importorskip("scipy") if levels == "beta" else None
    own = getattr(diffusers, f"{kind}Scheduler")(**_BETAS, **{f"use_{levels}_sigmas": True})
    ours = glass(own, rho=1.0, steps=1)
    ours.set_timesteps(K), own.set_timesteps(K)
    assert len(ours.table) == K and len(set(ours.timesteps.tolist())) == K
    fresh = np.diff(own.timesteps.numpy(), prepend=2000) != 0
    settled = fresh & (ours.timesteps.numpy() == own.timesteps.numpy())
    assert settled.sum() > 0.6 * K  # only those near repeated ones are moved


def test_one_step_with_a_terminal_shift():
    for own in (FLOW, diffusers.FlowMatchEulerDiscreteScheduler(shift_terminal=0.02)):
        ours = glass(own, rho="ode", steps=4)
        ours.set_timesteps(1)
        assert ours.table.times == (0.0, 1.0) and torch.isfinite(ours.timesteps).all()
        ours.set_timesteps(sigmas=[1.0])
        assert ours.table.times == (0.0, 1.0)


def test_continuous_timesteps_are_refused_with_their_reason():
    video = diffusers.EulerDiscreteScheduler(**_BETAS, timestep_type="continuous")
    with pytest.raises(InvalidArgument, match="timestep_type='continuous'"):
        glass(video)


def test_sigmas_are_noise_over_signal_on_trained_tables():
    own = diffusers.EulerDiscreteScheduler(**_BETAS, timestep_spacing="trailing")
    ours = glass(own, rho=1.0, steps=1)
    own.set_timesteps(5), ours.set_timesteps(5)
    torch.testing.assert_close(ours.sigmas, own.sigmas, rtol=1e-5, atol=0.0)
    before = glass(own).sigmas
    expected = ((1 - own.alphas_cumprod) / own.alphas_cumprod).sqrt().flip(0)
    torch.testing.assert_close(before, expected, rtol=1e-4, atol=0.0)


@pytest.mark.parametrize(
    ("options", "short"),
    [
        ({"rho": 1.0, "steps": 1}, True),
        ({"rho": "ddim:0", "steps": 1}, True),
        ({"rho": "ddim:0.1", "steps": 1}, False),
        ({"rho": 1.0, "steps": 2}, False),
        ({"rho": 0.4, "steps": 2, "end": "trained"}, True),
        ({"rho": 1.0, "steps": 1, "end": "data"}, False),
    ],
)
def test_the_end_of_the_pipelines_own_ddim(options, short):
    ours = glass(DDIM, **options)
    ours.set_timesteps(4)
    assert ours.table.times[-1] == (ours.schedule.time(0.0) if short else 1.0)


# --- evaluations counted ------------------------------------------------------------------------


@pytest.mark.parametrize("own", [FLOW, DDIM])
@pytest.mark.parametrize(("n", "M", "rows"), [(8, 4, [4, 4]), (11, 4, [4, 7]), (5, 1, [1] * 5)])
def test_a_budget_is_spent_and_not_exceeded(own, n, M, rows):
    ours = glass(own, steps=M, count="evaluations")
    ours.set_timesteps(n)
    assert [tr.evaluations for tr in ours.table] == rows and len(ours.timesteps) == n
    assert ours.order == 1
    times = ours.schedule.outer_times(n)  # the pipeline's own, of which every M-th starts
    assert ours.table.times == (*times[: n - n % M : M], 1.0)
    go_on(ours, noise(), range(n))


def test_a_transition_is_the_least():
    ours = glass(steps=4, count="evaluations")
    with pytest.raises(
        InvalidArgument, match="at least 4 steps, or make the scheduler with steps=3"
    ):
        ours.set_timesteps(3)


@pytest.mark.parametrize("name", first(["flux", "sd"]))
def test_a_pipelines_steps_are_evaluations(name):
    pipe = tiny.build(name)
    pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=3, count="evaluations")
    called = []
    handle = tiny.network(pipe).register_forward_pre_hook(lambda *_: called.append(1))
    draw(pipe, name, num_inference_steps=7)
    handle.remove()
    assert len(called) <= 7 and len(called) == len(pipe.scheduler.timesteps)
    assert len(pipe.scheduler.table) == 2


@pytest.mark.parametrize("sigmas", [False, True])
@pytest.mark.parametrize(("strength", "left"), [(1.0, 3), (0.9, 2), (0.7, 2), (0.34, 1), (0.3, 0)])
def test_a_strength_runs_no_more_evaluations_than_it_stands_for(strength, left, sigmas):
    ours = glass(steps=4, count="evaluations")
    ours.set_timesteps(**({"sigmas": np.linspace(1, 1 / 12, 12)} if sigmas else
                          {"num_inference_steps": 12}))  # fmt: skip
    begin = 12 - int(12 * strength)
    if not left:
        with pytest.raises(InvalidArgument, match="no transition is left"):
            ours.timesteps[begin * ours.order :]
        return
    rest = ours.timesteps[begin * ours.order :]
    assert len(rest) == 4 * left <= 12 * strength
    ours.set_begin_index(begin * ours.order)
    assert ours.begin_index == 12 - len(rest)


def test_many_network_calls_are_said_once(monkeypatch):
    records = []
    seen = logging.Handler()
    seen.emit = records.append
    logger = logging.getLogger("glass_flows.diffusers.scheduler")
    monkeypatch.setattr(logger, "handlers", [seen])
    _note_calls.cache_clear()
    for options, K in (({"steps": 1}, 28), ({"count": "evaluations"}, 28), ({}, 7)):
        glass(**options).set_timesteps(K)
    assert not records
    glass(steps=4).set_timesteps(28), glass(steps=4).set_timesteps(28)
    assert [(record.levelname, record.getMessage()) for record in records] == [
        (
            "WARNING",
            "28 transitions of 4 evaluations: 112 network calls. "
            "GlassScheduler(count='evaluations') counts evaluations instead",
        )
    ]


# --- options ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"seed": 0.5}, "seed must be an integer"),
        ({"seed": True}, "seed must be an integer"),
        ({"seed": 2**63}, r"seed must be an integer in \[0, 2\^63\)"),
        ({"steps": 2.0}, "steps must be an integer"),
        ({"steps": [2, 2]}, "steps must be an integer"),
        ({"rho": "ddim:x"}, "rho"),
        ({"rho": np.array([0.4, 0.5])}, "rho"),
        ({"rho": float}, "rho must be"),
        ({"solver": 3}, "solver"),
        ({"start": None}, "start"),
        ({"end": 1}, "unknown end 1"),
        ({"count": "evals"}, "unknown count 'evals'"),
        ({"time_dtype": 16}, "time_dtype"),
        ({"base": 5}, "base must be a scheduler's configuration, a mapping, got 5"),
        ({"base": {}}, "does not say which scheduler"),
    ],
)
def test_options_are_checked(wrong, message):
    given = {"base": {**FLOW.config, "_class_name": type(FLOW).__name__}, **wrong}
    with pytest.raises(InvalidArgument, match=message):
        GlassScheduler(**given)


@pytest.mark.parametrize("wrong", [5, None, "flux"])
def test_what_is_no_configuration(wrong):
    with pytest.raises(InvalidArgument, match="expected a scheduler's configuration"):
        GlassScheduler.from_config(wrong)
    with pytest.raises(UnknownName, match="'count'"):
        glass(counts="evaluations")


def test_generators_are_one_for_all_or_one_for_each():
    def end(generators):
        ours = glass(steps=2)
        ours.set_timesteps(2)
        x = noise()
        for k in ours.timesteps:
            x = ours.step(0.5 * x, k, x, generator=generators, return_dict=False)[0]
        return x

    def some(*seeds):
        return [torch.Generator().manual_seed(seed) for seed in seeds]

    each = end(some(1, 2))
    assert torch.equal(end(tuple(some(1, 2))), each)
    assert [torch.equal(a, b) for a, b in zip(end(some(1, 3)), each)] == [True, False]
    assert torch.equal(end(some(1)), end(some(1)[0]))
    for wrong in ([], (), [None, None]):
        with pytest.raises(InvalidArgument, match="one for each of 2 samples, got"):
            end(wrong)


@pytest.mark.parametrize("given", [lambda t: t, float, lambda t: t.reshape(1)])
@pytest.mark.parametrize("before", [1, 3])
def test_steps_out_of_order_are_refused_where_the_time_is_known(given, before):
    ours = glass()
    ours.set_timesteps(3)
    x = go_on(ours, noise(), range(before))
    with pytest.raises(InvalidArgument, match="take the steps in the order of `timesteps`"):
        ours.step(x, given(ours.timesteps[before + 4]), x)
    ours.step(x, given(ours.timesteps[before]), x)
