"""Networks as posterior means: predictions, clocks, guidance, dtypes, splitting, bad input."""

from __future__ import annotations

import math

import pytest
import torch

from glass_flows import Denoiser
from glass_flows.errors import (
    DegeneratePrediction,
    InvalidArgument,
    ShapeError,
    TimeError,
    UnknownName,
)
from glass_flows.models import GaussianMixture
from glass_flows.paths import EDM, Cosine, DiscreteDiffusion, Linear, VariancePreserving

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
