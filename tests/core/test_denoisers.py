"""Networks as posterior means: predictions, clocks, guidance, dtypes, splitting, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from glass_flows import Denoiser
from glass_flows.denoisers import (
    DEVICE,
    DTYPE,
    PREDICTIONS,
    BaseDenoiser,
    Costs,
    Estimate,
    Fitting,
    WrappedDenoiser,
    as_denoiser,
    check_device,
    clean_estimate,
)
from glass_flows.errors import (
    DegeneratePrediction,
    InvalidArgument,
    ShapeError,
    TimeError,
    UnknownName,
)
from glass_flows.paths import EDM, Cosine, DiscreteDiffusion, Linear, Path, VariancePreserving
from glass_flows.sampling import Tally
from glass_flows.worlds import GaussianMixture

ZERO_SNR = DiscreteDiffusion([0.99 * (1 - k / 9) for k in range(10)])
PATHS = [Linear(), Cosine(), VariancePreserving(), EDM(), ZERO_SNR]
MIXTURE = GaussianMixture(
    torch.randn(4, 3, generator=torch.Generator().manual_seed(1)).double(), 0.4
)


def targets(path, t, x):
    """What each kind of network would predict at (x, t), from the exact D by definition."""
    alpha, sigma = path.alpha(t), path.sigma(t)
    D = MIXTURE.denoiser(path)(x, t)
    eps = (x - alpha * D) / sigma
    velocity = path.alpha_dot(t) * D + path.sigma_dot(t) * eps
    return D, {
        "velocity": velocity,
        "reverse_velocity": -velocity,
        "epsilon": eps,
        "v": alpha * eps - sigma * D,
        "score": -eps / sigma,
        "sample": D,
    }


@pytest.mark.parametrize(
    "prediction", ["velocity", "reverse_velocity", "epsilon", "v", "score", "sample"]
)
@pytest.mark.parametrize("path", PATHS, ids=lambda p: p.name)
@pytest.mark.parametrize("t", [0.1, 0.43, 0.9])
def test_every_prediction_becomes_the_posterior_mean(path, prediction, t):
    x = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    D, predicted = targets(path, t, x)
    denoiser = Denoiser(lambda x, t: predicted[prediction], path, prediction=prediction)
    torch.testing.assert_close(denoiser(x, t), D, rtol=1e-9, atol=1e-9)


def test_the_score_is_the_gradient_of_the_log_density():
    # Ties "score" and "epsilon" to a definition that does not go through the denoiser.
    path, t = Linear(), 0.4
    blurred = GaussianMixture(
        path.alpha(t) * MIXTURE.means, math.hypot(path.alpha(t) * 0.4, path.sigma(t))
    )
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    (score,) = torch.autograd.grad(blurred.log_prob(x).sum(), x)
    denoiser = Denoiser(lambda x, t: score, path, prediction="score")
    torch.testing.assert_close(denoiser(x.detach(), t), MIXTURE.denoiser(path)(x.detach(), t))


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("path", [Linear(), Cosine(), ZERO_SNR], ids=lambda p: p.name)
def test_predictions_that_say_nothing_at_pure_noise_are_refused(path, prediction):
    denoiser = Denoiser(lambda x, t: x, path, prediction=prediction)
    with pytest.raises(DegeneratePrediction, match=r"alpha = 0"):
        denoiser(torch.zeros(1, 2), 0.0)
    denoiser(torch.zeros(1, 2), 0.2)  # and nowhere else


@pytest.mark.parametrize("prediction", ["velocity", "v", "epsilon", "score", "sample"])
@pytest.mark.parametrize("path", [Linear(), Cosine(), VariancePreserving()], ids=lambda p: p.name)
def test_at_data_the_state_is_the_answer_and_nothing_is_asked(path, prediction):
    def network(x, t):
        raise AssertionError("asked at sigma = 0")

    x = torch.randn(2, 3)
    assert torch.equal(Denoiser(network, path, prediction=prediction)(x, 1.0), x)


@pytest.mark.parametrize(
    ("path", "clock", "t", "expected"),
    [
        (Linear(), "t", 0.3, 0.3),
        (Linear(), "1-t", 0.3, 0.7),
        (Linear(), "1000t", 0.3, 300.0),
        (Linear(), "1000(1-t)", 0.3, 700.0),
        (EDM(0.01, 100.0), "sigma", 0.5, 1.0),
        (EDM(0.01, 100.0), "log(sigma)/4", 0.25, 0.25 * math.log(10.0)),
        (Linear(), "log_snr", 0.8, math.log(16.0)),
        (Linear(), "log_snr", 0.2, -math.log(16.0)),
        (ZERO_SNR, "timestep", 0.3, 6.0),
        (Linear(), lambda path, t: 7.0 + path.sigma(t), 0.25, 7.75),
    ],
)
def test_the_network_is_told_the_time_in_its_own_clock(path, clock, t, expected):
    told = []

    def network(x, t):
        told.append(t)
        return x

    Denoiser(network, path, prediction="sample", time=clock)(torch.zeros(3, 2), t)
    assert told[0].shape == (3,)
    torch.testing.assert_close(told[0], torch.full((3,), expected))


def test_an_infinite_log_snr_is_refused_by_name():
    denoiser = Denoiser(lambda x, t: x, Linear(), "sample", time="log_snr")
    with pytest.raises(DegeneratePrediction, match="time='log_snr' is -inf at t = 0"):
        denoiser(torch.zeros(1, 1), 0.0)


@pytest.mark.parametrize(("w", "expected", "cost"), [(0.0, 1.0, 1), (1.0, 5.0, 1), (3.0, 13.0, 2)])
def test_classifier_free_guidance(w, expected, cost):
    calls = []

    def network(x, t, level, keep):
        calls.append(keep)
        return level.expand_as(x)

    denoiser = Denoiser(
        network,
        Linear(),
        prediction="sample",
        conditioning={"level": torch.full((1, 1), 5.0), "keep": "as it is"},
        unconditional={"level": torch.full((1, 1), 1.0)},
        guidance_scale=w,
    )
    torch.testing.assert_close(denoiser(torch.zeros(2, 3), 0.5), torch.full((2, 3), expected))
    assert calls == ["as it is"] * cost == ["as it is"] * denoiser.evaluations_per_call


def test_guidance_without_an_unconditional_input_is_refused():
    with pytest.raises(InvalidArgument, match="unconditional"):
        Denoiser(lambda x, t: x, Linear(), guidance_scale=3.0)


def test_condition_replaces_one_argument():
    denoiser = Denoiser(
        lambda x, t, a, b: x + a + b, Linear(), "sample", conditioning={"a": 1.0, "b": 2.0}
    )
    assert denoiser.condition(b=5.0)(torch.zeros(1, 1), 0.5).item() == 6.0
    assert denoiser(torch.zeros(1, 1), 0.5).item() == 3.0


def test_large_batches_are_split_and_conditioning_with_them():
    sizes = []

    def network(x, t, own, shared):
        sizes.append(len(x))
        assert len(t) == len(own) == len(shared) == len(x)
        return x + own[:, None] + shared

    x, own = torch.randn(7, 2), torch.arange(7.0)
    shared = torch.tensor([[10.0, 20.0]])
    denoiser = Denoiser(
        network, Linear(), "sample", conditioning={"own": own, "shared": shared}, max_batch=3
    )
    torch.testing.assert_close(denoiser(x, 0.5), x + own[:, None] + shared)
    assert sizes == [3, 3, 1]


def test_the_network_runs_in_its_own_dtype_and_the_state_keeps_its():
    layer = torch.nn.Linear(2, 2).to(torch.bfloat16)
    seen = []

    class Network(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x, t):
            seen.append((x.dtype, t.dtype))
            return self.layer(x)

    D = Denoiser(Network(), Linear(), "sample")(torch.zeros(1, 2), 0.5)
    assert D.dtype == torch.float32
    assert seen == [(torch.bfloat16, torch.float32)]
    Denoiser(Network(), Linear(), "sample", dtype=torch.bfloat16)(torch.zeros(1, 2).double(), 0.5)
    assert seen[1] == (torch.bfloat16, torch.float32)
    layer.double()
    Denoiser(Network(), Linear(), "sample")(torch.zeros(1, 2), 0.5)
    assert seen[2] == (torch.float64, torch.float64)


def test_networks_that_reuse_their_output_lose_nothing():
    memory = torch.empty(2, 3)

    def network(x, t, level):
        return memory.copy_(level * x)

    guided = Denoiser(
        network,
        Linear(),
        "sample",
        conditioning={"level": 5.0},
        unconditional={"level": 1.0},
        guidance_scale=3.0,
    )
    x = torch.randn(2, 3)
    torch.testing.assert_close(guided(x, 0.5), 13.0 * x)
    plain = Denoiser(network, Linear(), "sample", conditioning={"level": 2.0})
    first = plain(x, 0.5)
    plain(-x, 0.5)
    torch.testing.assert_close(first, 2.0 * x)


def test_nested_conditioning_is_split_too():
    def network(x, t, added, pair):
        assert isinstance(pair, tuple)
        return x + added["own"][:, None] + pair[1]

    x, own = torch.randn(5, 2), torch.arange(5.0)
    inputs = {"added": {"own": own, "kept": "text"}, "pair": (None, torch.ones(1, 1))}
    denoiser = Denoiser(network, Linear(), "sample", conditioning=inputs, max_batch=2)
    torch.testing.assert_close(denoiser(x, 0.5), x + own[:, None] + 1)
    inputs["added"]["own"] = torch.zeros(3)
    with pytest.raises(ShapeError, match=r"added\['own'\]"):
        denoiser(x, 0.5)


def conditioned(labels, null=(9.0,), **options):
    """A network whose conditioning is nested: its own and a shared part, text, and a scale."""
    return Denoiser(
        lambda x, t, label, added: x + label[:, None] + added["pair"][1] * added["scale"],
        Linear(),
        "sample",
        conditioning={
            "label": torch.tensor(labels),
            "added": {"pair": ["text", torch.tensor([[0.5, 0.25]])], "scale": 2.0},
        },
        unconditional={"label": torch.tensor(null)},
        **options,
    )


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_rows_are_the_denoiser_of_a_part_of_the_batch(w):
    whole = conditioned([1.0, 2.0, 3.0, 4.0, 5.0], guidance_scale=w)
    x = torch.randn(5, 2)
    for part in (slice(0, 2), slice(2, 3), slice(3, 5)):
        few = whole.rows(part, 5)
        assert torch.equal(few(x[part], 0.4), whole(x, 0.4)[part])
        assert len(few.conditioning["label"]) == part.stop - part.start
        assert few.conditioning["added"]["pair"][0] == "text"
    each = conditioned([1.0, 2.0, 3.0, 4.0, 5.0], null=range(5), guidance_scale=w)
    assert torch.equal(each.rows(slice(1, 4), 5)(x[1:4], 0.4), each(x, 0.4)[1:4])
    with pytest.raises(ShapeError, match=r"'label' must have .* 1 \(shared\) or 6"):
        whole.rows(slice(0, 2), 6)


def test_rows_without_an_unconditional_input():
    plain = Denoiser(lambda x, t, own: x + own, Linear(), conditioning={"own": torch.ones(3, 1)})
    assert plain.rows(slice(0, 1), 3).unconditional is None


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
def test_conditioning_is_spread_over_the_particles_of_each_population(w):
    x = torch.randn(6, 2)
    repeated = conditioned([1.0, 1.0, 1.0, 4.0, 4.0, 4.0], null=[7.0] * 3 + [8.0] * 3)
    by_hand = repeated.rows(slice(0, 6), 6)
    for few in (
        conditioned([1.0, 4.0], null=[7.0, 8.0], guidance_scale=w).spread(2, 3),
        as_denoiser(conditioned([1.0, 4.0], null=[7.0, 8.0], guidance_scale=w)).spread(2, 3),
    ):
        expected = torch.lerp(
            by_hand.condition(label=by_hand.unconditional["label"])(x, 0.4), by_hand(x, 0.4), w
        )
        torch.testing.assert_close(few(x, 0.4), expected)
    shared = conditioned([3.0], guidance_scale=w).spread(2, 3)
    assert torch.equal(shared(x, 0.4), conditioned([3.0], guidance_scale=w)(x, 0.4))
    assert shared.conditioning["label"].shape == (1,)


def test_what_is_nested_is_spread_too_and_the_rest_left_alone():
    given = {
        "own": {"deep": (torch.tensor([[1.0], [2.0]]), None, [torch.tensor([5, 6])])},
        "shared": torch.ones(1, 4),
        "text": "a cat",
        "number": 3,
    }
    model = Denoiser(lambda x, t, **c: x, Linear(), conditioning=given).spread(2, 2)
    first, nothing, last = model.conditioning["own"]["deep"]
    assert first.tolist() == [[1.0], [1.0], [2.0], [2.0]]
    assert nothing is None
    assert isinstance(last, list)
    assert last[0].tolist() == [5, 5, 6, 6]
    assert model.conditioning["shared"].shape == (1, 4)
    assert model.conditioning["text"] == "a cat"
    assert model.conditioning["number"] == 3
    assert model.unconditional is None


@pytest.mark.parametrize(
    ("value", "match"),
    [
        (torch.zeros(6), r"conditioning\['label'\] .* or 2 .* got shape \(6,\)"),
        (torch.zeros(3, 4), r"conditioning\['label'\] .* got shape \(3, 4\)"),
        (torch.tensor(1.0), r"conditioning\['label'\] .* got shape \(\)"),
        ({"a": [torch.zeros(3)]}, r"conditioning\['label'\]\['a'\]\[0\] .* got shape \(3,\)"),
    ],
)
def test_conditioning_that_cannot_be_spread_is_named(value, match):
    model = Denoiser(lambda x, t, label: x, Linear(), conditioning={"label": value})
    with pytest.raises(ShapeError, match=match):
        model.spread(2, 3)
    other = Denoiser(
        lambda x, t, label: x,
        Linear(),
        conditioning={"label": torch.zeros(2)},
        unconditional={"label": value},
    )
    with pytest.raises(ShapeError, match=match.replace("conditioning", "unconditional")):
        other.spread(2, 3)


def test_denoisers_without_conditioning_are_spread_as_they_are():
    exact = MIXTURE.denoiser(Linear())
    assert exact.spread(2, 3) is exact
    assert exact.rows(slice(0, 1), 2) is exact


def test_the_estimate_of_a_plain_denoiser_is_its_own_untilted_one():
    x = torch.randn(5, 3, dtype=torch.float64)
    answer = MIXTURE.denoiser(Linear()).estimate(x, 0.4)
    assert torch.equal(answer.D, MIXTURE.denoiser(Linear())(x, 0.4))
    assert answer.untilted is answer.D
    assert answer.rewards is None
    assert answer.gradient is None


class Own:
    """Somebody's own model: a path, what it costs, and a call."""

    path, evaluations_per_call = Linear(), 3

    def __call__(self, x, t):
        return 0.5 * x


def test_an_object_with_a_path_and_a_call_becomes_a_whole_denoiser():
    x = torch.ones(2, 3)
    whole = as_denoiser(Own())
    assert torch.equal(whole.estimate(x, 0.4).D, 0.5 * x)
    assert whole.spread(2, 3) is whole.rows(slice(0, 1), 2) is whole
    assert (whole.evaluations_per_call, whole.costs_per_call) == (3, Costs(3, 0, 0, 0))
    assert (whole.device, whole.recomputes) == (None, False)
    assert as_denoiser(whole) is whole
    for wrong in (lambda x, t: x, torch.nn.Linear(2, 2), 5, Own):
        with pytest.raises(InvalidArgument, match="expected a denoiser"):
            as_denoiser(wrong)


def test_a_wrapper_costs_what_is_inside_and_hands_on_whole_estimates():
    one = Estimate(torch.ones(1), torch.zeros(1))

    class Knowing(BaseDenoiser):
        path = Linear()

        def __call__(self, x, t):
            raise AssertionError("asked twice")

        def estimate(self, x, t):
            return one

        device = torch.device("meta")
        evaluations_per_call, costs_per_call, recomputes = 2, Costs(2, 3, 4, 5), True

    wrapper = WrappedDenoiser(Knowing())
    assert wrapper.estimate(torch.zeros(1), 0.4) is one
    assert wrapper(torch.zeros(1), 0.4) is one.D
    for name in ("path", "device", "evaluations_per_call", "costs_per_call", "recomputes"):
        assert getattr(wrapper, name) == getattr(Knowing(), name)


def test_a_wrapper_that_asks_twice_says_so_once():
    class Twice(WrappedDenoiser):
        evaluations_per_call = 2

    tally = Tally(Twice(Denoiser(lambda x, t: x, Linear())))
    tally(torch.zeros(3, 1), 0.5)
    assert tally.costs == Costs(6)


@pytest.mark.parametrize("w", [0.0, 1.0, 2.5])
@pytest.mark.parametrize("limit", [None, 2])
def test_a_checkpoint_gives_the_same_gradient_for_one_more_evaluation(w, limit):
    layer = torch.nn.Linear(2, 2).double()
    calls = []

    def network(x, t, label):
        calls.append(len(x))
        return torch.tanh(layer(x) + label[:, None])

    def gradients(checkpoint):
        calls.clear()
        denoiser = Denoiser(
            network,
            Linear(),
            conditioning={"label": torch.tensor([1.0, 2.0, 3.0]).double()},
            unconditional={"label": torch.zeros(1).double()},
            guidance_scale=w,
            max_batch=limit,
            checkpoint=checkpoint,
        )
        x = torch.linspace(-1, 1, 6).double().view(3, 2).requires_grad_()
        D = denoiser(x, 0.4)
        forward = list(calls)
        return D, torch.autograd.grad(D.sin().sum(), (x, layer.weight)), forward, list(calls)

    plain, expected, forward, all_calls = gradients(False)
    assert all_calls == forward
    again, found, forward, all_calls = gradients(True)
    assert torch.equal(again, plain)
    assert sum(all_calls) == 2 * sum(forward) == 2 * 3 * (1 if w in (0.0, 1.0) else 2)
    for one, other in zip(found, expected):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-14)


def test_a_checkpoint_costs_nothing_without_gradients():
    calls = []

    def network(x, t):
        calls.append(len(x))
        return torch.tanh(x)

    denoiser = Denoiser(network, Linear(), "sample", checkpoint=True)
    with torch.no_grad():
        denoiser(torch.zeros(3, 2, requires_grad=True), 0.4)
    assert calls == [3]


def test_the_device_is_that_of_the_parameters():
    assert Denoiser(torch.nn.Linear(2, 2), Linear()).device == torch.device("cpu")
    assert Denoiser(lambda x, t: x, Linear()).device is None


@pytest.mark.parametrize(
    ("arguments", "error", "match"),
    [
        ({"prediction": "velocty"}, UnknownName, "Did you mean 'velocity'"),
        ({"time": "1-s"}, UnknownName, "Did you mean '1-t'"),
        ({"guidance_scale": math.nan}, InvalidArgument, "finite"),
        ({"max_batch": 0}, InvalidArgument, "max_batch"),
        ({"max_batch": 2.5}, InvalidArgument, "max_batch must be an integer >= 1, got 2.5"),
        ({"guidance_scale": "7"}, InvalidArgument, "finite, got '7'"),
        ({"dtype": "bfloat16"}, InvalidArgument, "torch.dtype"),
        ({"conditioning": None}, InvalidArgument, "conditioning must be a mapping"),
        ({"path": "linear"}, InvalidArgument, "path"),
        ({"network": None}, InvalidArgument, "callable"),
    ],
)
def test_bad_settings_are_named(arguments, error, match):
    with pytest.raises(error, match=match):
        Denoiser(**{"network": lambda x, t: x, "path": Linear(), **arguments})


@pytest.mark.parametrize("t", [-0.1, 1.1, math.nan, "soon", None])
def test_bad_times_are_named(t):
    with pytest.raises(TimeError, match="t must"):
        Denoiser(lambda x, t: x, Linear())(torch.zeros(1, 1), t)


def test_a_network_of_the_wrong_shape_is_named():
    with pytest.raises(ShapeError, match=r"\(4, 2\), got \(4, 1\)"):
        Denoiser(lambda x, t: x[:, :1], Linear())(torch.zeros(4, 2), 0.5)
    with pytest.raises(ShapeError, match="got tuple"):
        Denoiser(lambda x, t: (x,), Linear())(torch.zeros(4, 2), 0.5)


def test_conditioning_of_the_wrong_length_is_named():
    denoiser = Denoiser(lambda x, t, label: x, Linear(), conditioning={"label": torch.zeros(3)})
    with pytest.raises(ShapeError, match=r"'label'.*1 \(shared\) or 4"):
        denoiser(torch.zeros(4, 2), 0.5)


def test_the_timestep_clock_needs_a_trained_table():
    with pytest.raises(InvalidArgument, match="trained table"):
        Denoiser(lambda x, t: x, Linear(), time="timestep")(torch.zeros(1, 1), 0.5)


def test_a_network_is_called_on_as_many_rows_as_fit():
    """One that runs out of memory above three rows; conditioning is cut with the batch."""
    asked = []

    def network(x, t, *, words, shared):
        asked.append(len(x))
        if len(x) > 3:
            raise torch.cuda.OutOfMemoryError("out of memory")
        assert len(words) == len(x) and len(shared) == len(x)
        return x * t[:, None] + words + shared

    fitting = Fitting(network)
    x, words = torch.randn(8, 2), torch.randn(8, 2)
    given = {"words": words, "shared": torch.ones(1, 2)}
    t = torch.linspace(0, 1, 8)
    for _ in range(2):
        torch.testing.assert_close(fitting(x, t, **given), x * t[:, None] + words + 1)
    assert fitting.limit == 2
    assert asked == [8, 4, 2, 2, 2, 2, 2, 2, 2, 2]
    assert torch.equal(fitting(x[:1], t[:1], words=words[:1], shared=given["shared"])[0],
                       x[0] * 0 + words[0] + 1)  # fmt: skip

    def never(x, t):
        raise torch.cuda.OutOfMemoryError("out of memory")

    with pytest.raises(torch.cuda.OutOfMemoryError):
        Fitting(never)(x, t)


@pytest.mark.parametrize("prediction", ["epsilon", "score"])
@pytest.mark.parametrize("t", [0.0, 1e-310])  # 1/alpha is infinite at both
def test_predictions_that_say_nothing_of_the_data_are_refused(prediction, t):
    with pytest.raises(DegeneratePrediction, match=f"{prediction!r} says nothing"):
        PREDICTIONS[prediction](Linear(), t)
    assert all(map(math.isfinite, PREDICTIONS[prediction](Linear(), 1e-300)))


def test_devices_by_name():
    assert check_device(None) is None
    assert check_device("cpu") == check_device(torch.device("cpu")) == torch.device("cpu")
    for bad in (True, "nowhere", 1.5):
        with pytest.raises(InvalidArgument, match="device must be") as refused:
            check_device(bad)
        assert (": " in str(refused.value)) == (bad is not True)  # with torch's reason, if it has


def test_a_device_is_taken_by_name_and_must_hold_values():
    assert DEVICE.read("device", "cpu") == torch.device("cpu")
    assert DEVICE.read("device", None) is None and DEVICE.parse("device", "None") is None
    with pytest.raises(InvalidArgument, match="device must be one that holds values, got 'meta'"):
        DEVICE.read("device", "meta")


@pytest.mark.parametrize("coefficients", [(0.0, 0.25), (1.0, -0.5), (2.0, 0.5), (0.0, 1.0)])
def test_the_clean_estimate_is_linear_and_a_tensor_of_its_own(coefficients):
    x, output = torch.tensor([1.0, -2.0]), torch.tensor([4.0, 8.0])
    before = output.clone()
    found = clean_estimate(coefficients, x, output)
    assert torch.equal(found, coefficients[0] * x + coefficients[1] * output)
    found.zero_()
    assert torch.equal(output, before)


@pytest.mark.parametrize("most", [1, 2, 3, 4])
def test_what_does_not_fit_is_asked_in_parts(most):
    def network(x, t):
        if len(x) > most:
            raise torch.cuda.OutOfMemoryError
        return x + t[:, None]

    x, t = torch.arange(8.0).view(4, 2), torch.arange(4.0)
    assert torch.equal(Fitting(network)(x, t), x + t[:, None])


def test_what_a_call_costs_by_default():
    class Plain(BaseDenoiser):
        path = Linear()

        def __call__(self, x, t):
            return x

    plain, denoiser = Plain(), Denoiser(lambda x, t: x, Linear(), "sample")
    for one in (plain, denoiser):
        assert one.costs_per_call == Costs(1)
        assert one.cfg_scale == 1.0 and not one.recomputes


def test_a_signal_is_there_while_its_inverse_is_a_number():
    assert PREDICTIONS["epsilon"](Linear(), 7e-309)[0] == 1.0 / 7e-309
    for t in (0.0, 1e-309):
        with pytest.raises(DegeneratePrediction, match="says nothing about the data"):
            PREDICTIONS["epsilon"](Linear(), t)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_network_that_writes_into_its_input_changes_no_particle(dtype):
    x = torch.ones(4, 3, dtype=dtype)
    for options in ({}, {"max_batch": 2}):
        D = Denoiser(lambda x, t: x.mul_(0.5), Linear(), "sample", **options)(x, 0.3)
        assert torch.equal(D, torch.full_like(x, 0.5)) and torch.equal(x, torch.ones_like(x))


def test_only_what_is_elsewhere_is_named_where_a_call_fails():
    def network(x, t, y):
        raise RuntimeError("no such kernel")

    for device, error, match in (
        ("cpu", RuntimeError, "no such kernel"),
        ("meta", ShapeError, "'y' is on meta and x on cpu, which the network cannot take"),
    ):
        conditioning = {"y": torch.zeros(4, 2, device=device)}
        with pytest.raises(error, match=match):
            Denoiser(network, Linear(), "sample", conditioning=conditioning)(torch.ones(4, 3), 0.3)


def test_a_state_is_of_32_or_64_bits():
    assert [DTYPE.read("dtype", one) for one in (torch.float32, torch.float64, None)] == [
        torch.float32, torch.float64, torch.float32
    ]  # fmt: skip
    for bad in (torch.float16, torch.int64, "float32"):
        with pytest.raises(ShapeError, match=r"dtype must be torch\.float32 or torch\.float64"):
            DTYPE.read("dtype", bad)


class Doubled(Path):
    """x_t = 2 t z + (1 - t) ε: a path that does not end at the data themselves."""

    name = "doubled"

    def alpha(self, t):
        return 2.0 * t

    def sigma(self, t):
        return 1.0 - t

    def alpha_dot(self, t):
        return 2.0

    def sigma_dot(self, t):
        return -1.0

    def _time(self, amplitude):
        return amplitude / (2.0 + amplitude)


def test_a_path_may_end_at_a_multiple_of_the_data():
    assert Denoiser(lambda x, t: x, Doubled())(torch.tensor([[6.0]]), 1.0).item() == 3.0
    assert Denoiser(lambda x, t: x, Doubled(), "sample")(torch.ones(1, 1), 0.0).item() == 1.0


@pytest.mark.parametrize("grad", [False, True])
def test_parts_of_a_batch_may_be_answered_in_the_same_memory(grad):
    memory = torch.empty(1, 2)

    def network(x, t):
        if len(x) > 1:
            raise torch.cuda.OutOfMemoryError
        return memory.copy_(2.0 * x)

    x = torch.arange(6.0).view(3, 2)
    with torch.set_grad_enabled(grad):
        split = Denoiser(network, Linear(), "sample", max_batch=1)
        assert torch.equal(split(x, 0.5), 2.0 * x)
        assert torch.equal(Fitting(network)(x, torch.zeros(3)), 2.0 * x)


@pytest.mark.parametrize(("limit", "sizes"), [(None, [7]), (7, [7]), (9, [7]), (6, [6, 1])])
def test_the_network_sees_no_smaller_batch_than_it_must(limit, sizes):
    seen = []
    network = lambda x, t: seen.append(len(x)) or x  # noqa: E731
    x = torch.arange(7.0)  # samples that are numbers
    assert torch.equal(Denoiser(network, Linear(), "sample", max_batch=limit)(x, 0.5), x)
    assert seen == sizes


def test_conditioning_may_have_any_name():
    network = lambda x, t, **given: x + sum(given.values())  # noqa: E731
    given = {"self": 1.0, "times": 2.0, "size": 4.0, "network": 8.0}
    model = Denoiser(network, Linear(), "sample", conditioning=given)
    assert model(torch.zeros(2, 1), 0.5).tolist() == [[15.0], [15.0]]


def inside(w, **options):
    """A network that guides by itself, under w, and can be had under any other."""
    make = lambda w: lambda x, t: x + w  # noqa: E731
    options = {"network_cfg": w, "network_at": make, **options}
    return Denoiser(make(w), Linear(), "sample", passes=2, **options)


def outside(w, **options):
    """x guided away from 0: w x."""
    network = lambda x, t, share: share * x  # noqa: E731
    options = {"conditioning": {"share": 1.0}, "unconditional": {"share": 0.0}, **options}
    return Denoiser(network, Linear(), "sample", guidance_scale=w, **options)


@pytest.mark.parametrize("wrapped", [False, True])
@pytest.mark.parametrize(
    ("made", "answers", "costs"),
    [(inside, {0.0: 2.0, 1.0: 3.0, 2.0: 4.0, 5.0: 7.0}, {0.0: 2, 1.0: 2, 2.0: 2, 5.0: 2}),
     (outside, {0.0: 0.0, 1.0: 2.0, 2.0: 4.0, 5.0: 10.0}, {0.0: 1, 1.0: 1, 2.0: 2, 5.0: 2})],
)  # fmt: skip
def test_the_same_network_under_other_guidance(made, answers, costs, wrapped):
    for old in answers:
        before = WrappedDenoiser(made(old)) if wrapped else made(old)
        for new, answer in answers.items():
            model = before.at_cfg_scale(new)
            assert model(torch.full((1, 1), 2.0), 0.5).item() == answer
            assert (model.cfg_scale, model.evaluations_per_call) == (new, costs[new])
            assert model.costs_per_call == Costs(costs[new])
            assert type(model) is type(before) and model.recomputes is False
            if not wrapped:
                assert (model is before) == (new == old)


def test_guidance_that_a_network_does_not_know_is_none():
    plain = Denoiser(lambda x, t: x, Linear(), "sample")
    for one in (plain, as_denoiser(Own()), WrappedDenoiser(plain)):
        assert one.at_cfg_scale(1.0)(torch.ones(1, 1), 0.5) is not None
        assert one.at_cfg_scale(2.0) is None and one.at_cfg_scale(0.0) is None
    known = inside(5.0, network_at=None)
    assert known.at_cfg_scale(5.0) is known and known.at_cfg_scale(2.0) is None
    # what guides from inside is not guided from outside as well
    both = outside(1.0, network_cfg=5.0)
    assert both.at_cfg_scale(5.0) is both and both.at_cfg_scale(2.0) is None


def test_guidance_is_from_inside_or_from_outside():
    with pytest.raises(InvalidArgument, match=r"network_at is for .* guidance_scale=2 guides it"):
        inside(5.0, guidance_scale=2.0, unconditional={})


@pytest.mark.parametrize(("default", "state"), [(torch.float32, torch.float32),
                                                (torch.float64, torch.float64),
                                                (torch.bfloat16, torch.float32)])  # fmt: skip
def test_by_default_a_state_is_as_wide_as_torch_says_but_at_least_32_bits(default, state):
    before = torch.get_default_dtype()
    try:
        torch.set_default_dtype(default)
        assert DTYPE.read("dtype", None) == state
    finally:
        torch.set_default_dtype(before)


def test_costs_are_counted_one_by_one():
    more, less = Costs(9, 7, 5, 3), Costs(1, 2, 3, 3)
    assert more + less == Costs(10, 9, 8, 6)
    assert more - less == Costs(8, 5, 2, 0)
    assert more * 3 == Costs(27, 21, 15, 9)
    assert Costs() == Costs(0, 0, 0, 0)


def test_a_network_that_is_elsewhere_is_named():
    class Network(torch.nn.Linear):
        def forward(self, x, t):
            return super().forward(x)

    with pytest.raises(ShapeError, match="the network's parameters\" is on meta and x on cpu"):
        Denoiser(Network(2, 2, device="meta"), Linear(), "sample")(torch.zeros(3, 2), 0.5)
