"""On a device that is not the CPU's: nothing mixes, and the host waits no more often than said."""

from __future__ import annotations

import functools

import pytest
import torch

import glass_flows
import tiny_pipelines
from cases import fast
from elsewhere import DEVICE, Elsewhere
from glass_flows import Denoiser, denoisers
from glass_flows.paths import Linear

SETTINGS = {"rho": 0.4, "seed": 0, "progress": False}
STEERED = {**SETTINGS, "shape": (5,), "particles": 4}


@pytest.fixture(autouse=True)
def named(monkeypatch):
    """The stand-in goes by the name of a device that is refused: its tensors hold no values."""
    monkeypatch.setattr(denoisers._Device, "check", lambda self, name, given: given)


class Network(torch.nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(
            torch.nn.Linear(5, 16), torch.nn.Tanh(), torch.nn.Linear(16, 5)
        )

    def forward(self, x, t):
        return self.layers(x) - x


def reward(z):
    return z.square().sum(-1)


def sampled(model, K, M):
    return glass_flows.sample(model, (4, 5), transitions=K, steps=M, **SETTINGS)


def searched(search, **settings):
    def run(model, K, M):
        how = {**STEERED, **settings}
        return search(model, reward, transitions=K, steps=M, **how).samples

    return run


steered = functools.partial(searched, glass_flows.steer, scale=0.5)

# How often the host waits for each transition, and for each evaluation (docs/performance.md).
RUNS = {
    "sample": (sampled, 1, 0),
    "steer": (steered(), 2, 0),
    "steer, adaptive": (steered(schedule="adaptive:0.6"), 2, 0),
    "steer, max, multinomial": (steered(potential="max", resampling="multinomial"), 2, 0),
    "best of": (searched(glass_flows.best_of), 1, 0),
    "beam": (searched(glass_flows.beam), 2, 0),
    "greedy": (searched(glass_flows.greedy), 2, 0),
    "twist": (steered(twist=1.0), 4, 0),
    "values of two posterior draws": (steered(value="posterior:2:3"), 1 + 2 * 4, 0),
    "guidance": (steered(guidance="reward:0.5:clip=1"), 1, 1),
    "guidance through the network": (steered(guidance="network:0.5"), 1, 1),
}


def elsewhere(run, K, M, **options):
    """The result of a run on the device, and how often the host waited."""
    with Elsewhere() as device:
        result = run(Denoiser(Network().to(DEVICE), Linear(), **options), K, M)
        waits = list(device.waits)
        assert result.device == DEVICE
        return result.cpu(), waits


@pytest.mark.parametrize("name", fast(["greedy"], RUNS))
def test_the_same_bits_and_no_more_waits_than_documented(name):
    run, per_transition, per_step = RUNS[name]
    for options in ({}, {"max_batch": 3}):
        here = run(Denoiser(Network(), Linear(), **options), 2, 2)
        there, waits = elsewhere(run, 2, 2, **options)
        torch.testing.assert_close(there, here, rtol=0, atol=0)
    longer, finer = elsewhere(run, 3, 2)[1], elsewhere(run, 2, 3)[1]
    assert len(longer) - len(waits) == per_transition + 2 * per_step, longer
    assert len(finer) - len(waits) == 2 * per_step, finer


@pytest.mark.slow
def test_transitions_and_posterior_samples_elsewhere():
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(1))

    def one(model, M, device):
        at = x.to(device)
        noise = x.flip(0).to(device)
        return [
            glass_flows.transition(model, at, 0.3, 0.6, rho=0.2, steps=M, seed=1),
            glass_flows.transition(model, at, 0.3, 0.6, rho=0.2, steps=M, noise=noise),
            glass_flows.posterior(model, at, 0.3, samples=3, steps=M, seed=1),
            glass_flows.posterior(model, at, 0.0, samples=3, steps=M, seed=1),
        ]

    here = one(Denoiser(Network(), Linear()), 3, "cpu")
    waits = {}
    for M in (3, 6):
        with Elsewhere() as device:
            there = one(Denoiser(Network().to(DEVICE), Linear()), M, DEVICE)
            waits[M] = len(device.waits)
            if M == 3:
                assert all(torch.equal(a.cpu(), b) for a, b in zip(there, here))
    assert waits[3] == waits[6] <= 18


def stepped(scheduler, network, K, device):
    """A pipeline's loop."""
    scheduler.set_timesteps(K, device=device)
    x = torch.randn(4, 5, generator=torch.Generator().manual_seed(2)).to(device)
    for t in scheduler.timesteps:
        x = scheduler.step(network(x, None), t, x).prev_sample
    return x


def test_the_scheduler_waits_at_the_ends_of_a_run_only(monkeypatch):
    import diffusers

    from glass_flows import GlassScheduler
    from glass_flows.diffusers import scheduler as module

    # The stand-in's tensors are a subclass already, and cannot become another.
    monkeypatch.setattr(module._Timesteps, "of", lambda told, rest: told)
    base = diffusers.FlowMatchEulerDiscreteScheduler()
    config = {**base.config, "_class_name": type(base).__name__}
    waits = []
    with torch.no_grad():
        for K, M in ((3, 2), (6, 2), (3, 5)):
            scheduler = GlassScheduler.from_config(config, rho=0.4, steps=M)
            here = stepped(scheduler, Network(), K, "cpu")
            with Elsewhere() as device:
                there = stepped(scheduler, Network().to(DEVICE), K, DEVICE)
                waits.append(len(device.waits))
                torch.testing.assert_close(there.cpu(), here, rtol=0, atol=0)
    assert waits[0] == waits[1] == waits[2] <= 3, waits


def family(name):
    return pytest.param(name, marks=() if name == "sd" else pytest.mark.slow)


@pytest.mark.slow
@pytest.mark.parametrize("family", [family(name) for name in tiny_pipelines.FAMILIES])
def test_pipelines_are_steered_elsewhere(family, short_pilots):
    call = dict(tiny_pipelines.CALL[family])
    prompt = call.pop("prompt", None) or call.pop("class_labels")

    def steered(device):
        pipe = tiny_pipelines.build(family).to(device)
        return glass_flows.steer_pipeline(
            pipe,
            prompt,
            lambda images: images.mean((1, 2, 3)),
            particles=2,
            transitions=2,
            steps=2,
            scale="auto" if family == "flux" else 1.0,  # one pilot is as another's
            guidance="network:0.5",
            twist=1.0,
            seed=0,
            progress=False,
            **call,
        )

    here = steered("cpu")
    with Elsewhere() as device:
        there = steered(DEVICE)
        samples = there.result.samples.cpu()
    # Pictures are downloaded at the end: of each sample its state and its pixels.
    downloads = sum("decoding.py" in place for place in device.waits)
    assert downloads <= 2 * there.rewards.numel() + 1
    # Kernels differ in their last bits (attention, among others).
    torch.testing.assert_close(samples, here.result.samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(there.rewards, here.rewards, rtol=1e-4, atol=1e-4)


def test_the_stand_in_device_notices_what_an_accelerator_would():
    with Elsewhere() as device:
        there = torch.ones(3, device=DEVICE)
        with pytest.raises(RuntimeError, match="on the CPU, others elsewhere"):
            there + torch.ones(3)
        assert (there + 1.0).device == DEVICE and not device.waits
        assert bool((there > 0).all()) and there.sum().item() == 3.0
        assert torch.equal(there.cpu(), torch.ones(3))
        assert len(device.waits) == 3
