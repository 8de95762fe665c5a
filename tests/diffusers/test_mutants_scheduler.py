"""The numbers of the drop-in scheduler, one at a time, against values written out by hand."""

import logging

import diffusers
import pytest
import torch

from glass_flows import Sampler
from glass_flows.diffusers import GlassScheduler, LatentNoise, compile_table
from glass_flows.diffusers.scheduler import _note_calls
from glass_flows.errors import InvalidArgument, UnknownName

FLOW = diffusers.FlowMatchEulerDiscreteScheduler()
DDIM = diffusers.DDIMScheduler(clip_sample=False)
EULER = diffusers.EulerDiscreteScheduler(timestep_spacing="trailing")


def glass(own=FLOW, /, *given, **options):
    """Its scheduler; with a number of steps or a list, its grid too."""
    ours = GlassScheduler.from_config({**own.config, "_class_name": type(own).__name__}, **options)
    if given:
        ours.set_timesteps(*given)
    return ours


def halves():
    """One evaluation at timestep 1000, one at 500."""
    ours = glass(FLOW, rho=1.0, steps=1)
    ours.set_timesteps(sigmas=[1.0, 0.5])
    return ours


def noise():
    return torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))


class Elsewhere(torch.Tensor):
    """A tensor of another device, as far as one can tell without reading it."""

    @property
    def device(self):
        return torch.device("cuda")


def elsewhere(number):
    return torch.tensor(float(number)).as_subclass(Elsewhere)


# --- as it is made ------------------------------------------------------------------------------


def test_what_is_not_said():
    ours = glass(DDIM)
    said = {"rho": 0.4, "steps": 4, "solver": "default", "start": "trained", "end": "auto",
            "seed": 0, "time_dtype": None, "count": "transitions"}  # fmt: skip
    assert {name: ours.config[name] for name in said} == said
    assert GlassScheduler.order == ours.order == 1
    assert "_class_name" not in ours.config and "_class_name" in ours.config.base  # another's


def test_the_noise_of_latents_is_that_of_every_version():
    """Other seeds would be other images from the same latents."""
    rows = torch.tensor([[1.0, -2.0], [0.0, 0.0]])
    for noise_of, seeds in (
        (LatentNoise(rows), [6587323138258847858, 1135576387336077261]),
        (LatentNoise(rows, 5), [7367193610846562274, 6240892936226999822]),
    ):
        assert [source.seed for source in noise_of.sources] == seeds


def test_before_its_grid_it_has_the_trained_timesteps():
    for own, first in ((DDIM, 999), (FLOW, 1000)):
        ours = glass(own)
        assert ours.timesteps.tolist() == pytest.approx(list(range(first, first - 1000, -1)))
        assert type(ours.timesteps) is torch.Tensor
        ours.set_begin_index()
        assert ours.begin_index == 0
        ours.set_begin_index(999)
        assert ours.begin_index == 999
        with pytest.raises(InvalidArgument, match="left to run after 1000 of 1000 evaluations"):
            ours.set_begin_index(1000)


# --- its grid -----------------------------------------------------------------------------------


def test_timesteps_between_trained_ones_are_not_rounded():
    ours = glass(DDIM, 2, solver="paper", steps=3)
    path = ours.schedule.path
    told = [path.timestep(row.time) for transition in ours.table for row in transition.rows]
    assert any(k == int(k) for k in told) and any(k != int(k) for k in told)
    assert ours.timesteps.dtype == torch.float32
    assert ours.timesteps.tolist() == pytest.approx(told, rel=1e-6)
    assert glass(DDIM, 2).timesteps.dtype == torch.int64
    assert halves().timesteps.dtype == torch.float32  # as the flow's own


def test_sigmas_stand_beside_timesteps_and_end_at_data():
    assert halves().sigmas.tolist() == [1.0, 0.5, 0.0]
    a = float(DDIM.alphas_cumprod[500])
    ours = glass(DDIM, 2, steps=1)
    assert ours.timesteps.tolist() == [500, 0]
    assert float(ours.sigmas[0]) == pytest.approx(((1 - a) / a) ** 0.5, rel=1e-6)
    assert float(ours.sigmas[-1]) == 0.0
    blind = diffusers.DDIMScheduler(rescale_betas_zero_snr=True, timestep_spacing="trailing")
    assert float(glass(blind, 2, steps=1).sigmas[0]) == pytest.approx(1e6)  # in infinity's place


@pytest.mark.parametrize("M, K, plain", [(1, 1, True), (1, 3, True), (2, 2, False), (2, 3, False)])
def test_where_each_is_a_transition_timesteps_are_a_plain_tensor(M, K, plain):
    ours = glass(FLOW, K, steps=M)
    assert (type(ours.timesteps) is torch.Tensor) == plain
    told = ours.timesteps.tolist()
    assert len(told) == K * M == len(ours.sigmas) - 1
    assert ours.timesteps[K * M :].tolist() == [] if plain else True


def test_only_the_rest_from_a_transition_s_start_is_looked_at():
    ours = glass(FLOW, 3, steps=2)
    told = ours.timesteps.tolist()
    for part in (slice(None), slice(0, None), slice(1, 3), slice(None, None, 2), slice(3, None, 2)):
        assert ours.timesteps[part].tolist() == told[part]
    assert float(ours.timesteps[1]) == told[1]
    with pytest.raises(InvalidArgument, match=r"timesteps\[1:\] counts steps without"):
        ours.timesteps[1:]
    assert ours.timesteps[1 * ours.order :].tolist() == told[2:]


def test_counted_evaluations_begin_with_the_next_transition():
    ours = glass(FLOW, 11, steps=4, count="evaluations")
    told = ours.timesteps.tolist()
    for counted, first in ((0, 0), (1, 4), (4, 4)):
        assert ours.timesteps[counted:].tolist() == told[first:]
    for counted in (5, 11):
        with pytest.raises(InvalidArgument, match=f"after {counted} of 11 evaluations"):
            ours.timesteps[counted:]
    assert ours.num_inference_steps == 11


def test_counted_evaluations_are_as_many_as_are_asked_for_not_times_m():
    ours = glass(FLOW, 600, steps=200, count="evaluations")  # 600 x 200 would be too many
    assert [transition.evaluations for transition in ours.table] == [200, 200, 200]


def test_a_table_by_itself_refuses_what_cannot_act_on_it():
    schedule, each = glass(FLOW).schedule, Sampler(2, (2, 3), 0.4)
    assert [len(one.rows) for one in compile_table(schedule, each, 2)] == [2, 3]
    with pytest.raises(InvalidArgument, match=r"one number of steps each, got steps=\[2, 3\]"):
        compile_table(schedule, each, 5, count="evaluations")
    for name in ("count", "end"):
        with pytest.raises(UnknownName, match=f"{name} 'evals'"):
            compile_table(schedule, Sampler(2, 2, 0.4), 2, **{name: "evals"})


def test_one_step_goes_from_where_that_of_m_steps_does():
    own = diffusers.DDIMScheduler(clip_sample=False, steps_offset=1)
    assert glass(own, 1, steps=1).timesteps.tolist() == [1]
    assert glass(own, 1, steps=4).timesteps.tolist()[0] == 751
    assert glass(own, 2, steps=4).timesteps.tolist()[0] == 501
    ours = glass(own, steps=4)
    ours.set_timesteps(1, timesteps=[301])
    assert ours.timesteps.tolist()[0] == 301
    ours = glass(FLOW, steps=4)
    ours.set_timesteps(1, sigmas=[0.5])
    assert ours.table.times == (0.5, 1.0)


@pytest.mark.parametrize(
    ("own", "options", "given", "last"),
    [
        (DDIM, {"rho": 1.0, "steps": 1}, {"num_inference_steps": 4}, 1.0),  # it goes to α = 1
        (EULER, {"rho": 1.0, "steps": 1}, {"num_inference_steps": 4}, 1.0),  # and has no setting
        (EULER, {"end": "trained"}, {"num_inference_steps": 4}, 0.999),
        (EULER, {"end": "trained"}, {"num_inference_steps": 2}, 0.999),
        (EULER, {"end": "trained", "steps": 1}, {"timesteps": [500]}, 0.999),
        (EULER, {"end": "trained"}, {"timesteps": [800, 400, 0]}, 1.0),  # from 0 only data is left
        (EULER, {"end": "data"}, {"num_inference_steps": 4}, 1.0),
        (EULER, {}, {"num_inference_steps": 4}, 1.0),
        (FLOW, {"end": "trained"}, {"num_inference_steps": 4}, 1.0),
    ],
)
def test_where_it_ends(own, options, given, last):
    ours = glass(own, **options)
    ours.set_timesteps(**given)
    assert ours.table.times[-1] == last
    assert len(ours.table) == len(
        given.get("timesteps", range(given.get("num_inference_steps", 0)))
    )


def test_from_twenty_steps_on_the_network_calls_are_told(monkeypatch):
    records = []
    seen = logging.Handler()
    seen.emit = lambda record: records.append(record.args)
    monkeypatch.setattr(logging.getLogger("glass_flows.diffusers.scheduler"), "handlers", [seen])
    _note_calls.cache_clear()
    glass(FLOW, 19, steps=4), glass(FLOW, 20, steps=1), glass(FLOW, 40, count="evaluations")
    looked_at = glass(steps=4)
    looked_at.at_boundary = lambda boundary: None  # a method's, which counts them itself
    looked_at.set_timesteps(20)
    assert records == []
    glass(FLOW, 20, steps=2)
    assert records == [(20, 2, 40)]


# --- its steps ----------------------------------------------------------------------------------


def test_estimates_are_never_less_than_float32():
    for given, kept in ((torch.float64, torch.float64), (torch.bfloat16, torch.float32)):
        ours, x = glass(FLOW, 2), noise().to(given)
        answer = ours.step(0.1 * x, ours.timesteps[0], x)
        assert answer.pred_original_sample.dtype == kept and answer.prev_sample.dtype == given


def test_half_a_percent_of_the_clock_is_rounding():
    for off, message in (
        (5.0, None),
        (-5.0, None),
        (5.01, "given 505.01"),
        (-5.01, "given 494.99"),
    ):
        ours, x = halves(), noise()
        x = ours.step(x, 1000.0, x).prev_sample
        if message is None:
            ours.step(x, 500.0 + off, x)
        else:
            with pytest.raises(InvalidArgument, match=f"timestep 500, step was {message}"):
                ours.step(x, 500.0 + off, x)


def test_timesteps_on_another_device_are_waited_for_once():
    """At the start, where the row depends on them; after that nothing is read."""
    ours, x = halves(), noise()
    ours.step(x, elsewhere(500.0), x)
    assert len(ours.running) == 1
    ours = halves()
    y = ours.step(x, elsewhere(1000.0), x).prev_sample
    ours.step(y, elsewhere(7.0), y)


def test_a_loop_that_says_nothing_starts_at_a_transition_whose_time_is_told_twice():
    """By a clock of whole timesteps, an evaluation of the transition before may be told it, too."""
    own = diffusers.DPMSolverMultistepScheduler(
        prediction_type="flow_prediction", use_flow_sigmas=True, num_train_timesteps=50
    )
    ours = glass(own, 25, steps=4)
    told, starts = ours.timesteps.tolist(), [4 * k for k in range(25)]
    twice = next(r for r in starts if told[r] in told[:r])
    assert told.index(told[twice]) not in starts
    x = noise()
    ours.step(x, told[twice], x)
    assert ours.running.times == ours.table.times[twice // 4 :]


@pytest.mark.parametrize(
    ("rho", "steps", "eta", "taken"),
    [
        ("ddim:0.5", 1, 0.5, True),
        ("ddim:0.5", 1, 0.25, False),
        ("ddim:0.5", 2, 0.5, False),
        (0.4, 1, 0.5, False),
        (0.4, 4, 0.0, True),
        (0.4, 4, None, True),
    ],
)
def test_eta_is_none_or_the_scheduler_s_own(rho, steps, eta, taken):
    ours, x = glass(FLOW, 2, rho=rho, steps=steps), noise()
    if taken:
        ours.step(x, ours.timesteps[0], x, eta=eta)
    else:
        with pytest.raises(InvalidArgument, match="is said by the scheduler here"):
            ours.step(x, ours.timesteps[0], x, eta=eta)


def test_generators_are_all_generators_and_enough():
    one, two, three = (torch.Generator().manual_seed(seed) for seed in range(3))
    for given, right in (([one, two, three], True), ([one], True), ([one, None], False)):
        ours, x = glass(FLOW, 2, steps=1), noise()
        if right:
            ours.step(x, ours.timesteps[0], x, generator=given)
        else:
            with pytest.raises(InvalidArgument, match="one for each of 2 samples"):
                ours.step(x, ours.timesteps[0], x, generator=given)


def test_the_step_before_the_first_has_no_number():
    ours, x = glass(FLOW, 2), noise()
    assert ours.step_index is None
    ours.step(x, ours.timesteps[0], x)
    assert ours.step_index == ours.table_row == 1
