"""Gradients of adapters, reward → image → latents → network, against finite differences."""

import pytest
import torch

import tiny_pipelines as tiny
from cases import first
from glass_flows import Guidance, GuidedDenoiser
from glass_flows.diffusers import Schedule
from glass_flows.diffusers.families import family_of
from glass_flows.diffusers.scheduler import config_of
from glass_flows.rewards import Decoded


def adapted(name):
    """(adapter, denoiser, x, t) in float64."""
    pipe = tiny.build(name, dtype=torch.float64)
    given = dict(tiny.CALL[name])
    prompts = given.pop("class_labels", None) or [given.pop("prompt")]
    adapter = family_of(pipe)(pipe, **given)
    schedule = Schedule.of(config_of(pipe.scheduler))
    denoiser = adapter.denoiser(prompts[:1], schedule)
    x = torch.randn(
        1, *adapter.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(4)
    )
    t = schedule.path.trained_times[500] if schedule.discrete else 0.5
    return adapter, denoiser, x, t


@pytest.fixture
def wide(monkeypatch):
    """Networks cast parts of themselves to float32, whose rounding drowns small differences."""
    to, narrow = torch.Tensor.to, torch.Tensor.float
    casts = ((torch.float32,), {}), ((), {"dtype": torch.float32})

    def kept(self, *args, **options):
        if self.dtype == torch.float64 and (args, options) in casts:
            return self
        return to(self, *args, **options)

    monkeypatch.setattr(torch.Tensor, "to", kept)
    monkeypatch.setattr(
        torch.Tensor, "float", lambda self: self if self.dtype == torch.float64 else narrow(self)
    )


@pytest.mark.parametrize("name", tiny.some("sana"))
def test_gradients_agree_with_finite_differences(name, wide):
    """Five-point differences along one direction; Sana's ReLU has a kink close by."""
    adapter, denoiser, x, t = adapted(name)
    noise = torch.Generator().manual_seed(9)
    weights = torch.randn(adapter.decode(x).shape, generator=noise, dtype=torch.float64)
    along = torch.randn(x.shape, generator=noise, dtype=torch.float64)

    def reward(y):
        return (adapter.decode(denoiser(y, t)) * weights).mean()

    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(reward(leaf), leaf)
    h = 1e-6 if name == "sana" else 1e-4
    with torch.no_grad():
        near = reward(x + h * along) - reward(x - h * along)
        far = reward(x + 2 * h * along) - reward(x - 2 * h * along)
    slope = (8 * near - far) / (12 * h)
    assert abs(slope) > 1e-4
    torch.testing.assert_close((gradient * along).sum(), slope, rtol=1e-7, atol=0.0)


@pytest.mark.parametrize("name", first(["flux", "sd3", "sdxl"]))
def test_guidance_through_the_network_is_that_gradient(name):
    """D + v ∇V by the paper's rule: σ²/α times the gradient with respect to x_t."""
    adapter, denoiser, x, t = adapted(name)
    path = denoiser.path

    def redness(images):
        return images[:, 0].mean((1, 2)) - images[:, 1].mean((1, 2))

    guided = GuidedDenoiser(
        denoiser, Decoded(redness, adapter.decode), Guidance(1.0, "network"), scale=3.0
    )
    leaf = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(redness(adapter.decode(denoiser(leaf, t))).sum(), leaf)
    with torch.no_grad():
        tilt = guided(x, t) - denoiser(x, t)
    expected = 3.0 * path.sigma(t) ** 2 / path.alpha(t) * gradient
    torch.testing.assert_close(tilt, expected, rtol=1e-4, atol=1e-9)
