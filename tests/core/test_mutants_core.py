"""Noise, execution and sampling in plain loops: what `tools/mutants.py` asks first."""

from __future__ import annotations

import math
import struct
from functools import partial

import numpy as np
import pytest
import torch

from glass_flows import Denoiser, Sampler, noise, posterior, sample, transition
from glass_flows.batching import Batching
from glass_flows.denoisers import BaseDenoiser, Costs
from glass_flows.errors import InvalidArgument, NonFinite, ShapeError
from glass_flows.execute import check_state
from glass_flows.noise import (
    POSTERIOR,
    RESAMPLING,
    SINGLE,
    START,
    TRANSITION,
    FixedNoise,
    KeyedNoise,
    StreamNoise,
    _normal,
    check_seed,
)
from glass_flows.paths import EDM, Linear
from glass_flows.sampling import Tally
from statistics_rules import Wide


def box_muller(seed, purpose, step, particle, draw, size):
    """One particle's normals in float64: a radius from 31 bits, an angle from 32."""
    bits = np.random.Philox(key=[seed, purpose], counter=[0, draw, step, particle])
    cosines, sines = [], []
    for word in map(int, bits.random_raw(math.ceil(size / 2))):
        low, high = word & 0xFFFFFFFF, word >> 32
        radius = math.sqrt(-2.0 * math.log(((low & 0x7FFFFFFF) + 0.5) / 2.0**31))
        angle = math.pi * (high - (high >> 31) * 2**32) / 2.0**31
        cosines.append(radius * math.cos(angle))
        sines.append(radius * math.sin(angle))
    return [*cosines, *sines][:size]


@pytest.mark.parametrize("size", [1, 2, 5])
@pytest.mark.parametrize("draw", [0, 3])
def test_noise_number_by_number(size, draw):
    found = KeyedNoise(9, first_particle=4)(2, torch.empty(3, size), POSTERIOR, draw)
    expected = [box_muller(9, 3, 2, 4 + i, draw, size) for i in range(3)]
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    plain = KeyedNoise(9)(2, torch.empty(2, size))
    expected = [box_muller(9, 1, 2, i, 0, size) for i in range(2)]
    torch.testing.assert_close(plain, torch.tensor(expected), rtol=1e-5, atol=1e-5)
    whole = StreamNoise(9)(2, torch.empty(2, size))
    expected = box_muller(9, 1, 2, 2**63, 0, 2 * size)
    torch.testing.assert_close(whole.flatten(), torch.tensor(expected), rtol=1e-5, atol=1e-5)


def test_the_numbers_of_the_purposes_are_for_ever():
    """They are parts of keys: with others a seed would give other samples."""
    assert (START, TRANSITION, RESAMPLING, POSTERIOR, SINGLE) == (0, 1, 2, 3, 4)
    bits = KeyedNoise(9).bits(2, 5, 6).random_raw(3)
    assert (bits == np.random.Philox(key=[9, 2], counter=[0, 0, 5, 6]).random_raw(3)).all()


def test_bits_are_those_of_philox_in_every_part_of_their_state():
    ours, numpys = (
        KeyedNoise(9).bits(2, 5, 6, 7),
        np.random.Philox(key=[9, 2], counter=[0, 7, 5, 6]),
    )
    np.testing.assert_equal(ours.state, numpys.state)


def test_seeds_have_ends():
    assert check_seed(0) == 0
    assert check_seed(np.int64(2**63 - 1)) == 2**63 - 1
    for bad in (True, -1, 2**63, 1.0):
        with pytest.raises(InvalidArgument, match="seed must be an integer"):
            check_seed(bad)
    torch.manual_seed(5)
    drawn = check_seed(None)
    torch.manual_seed(5)
    assert drawn == int(torch.randint(2**62, ()).item())


def test_fixed_noise_is_checked():
    like = torch.zeros(2, 3)
    noise = FixedNoise([like + 1.0])
    assert torch.equal(noise(0, like.double()), like.double() + 1.0)
    with pytest.raises(InvalidArgument, match="1 noises given"):
        noise(1, like)
    for bad, error in ((torch.zeros(2, 2), ShapeError), ([1.0], ShapeError), (like / 0, NonFinite)):
        with pytest.raises(error):
            FixedNoise([bad])(0, like)


@pytest.mark.parametrize("shape", [(1,), (1, 1), (3, 2), (1, 0)])
def test_states_of_every_size_are_states(shape):
    assert check_state(torch.zeros(shape)).shape == shape
    assert check_state(torch.zeros(shape, dtype=torch.float64)).shape == shape


@pytest.mark.parametrize(
    "bad", [3, torch.zeros(()), torch.zeros(0, 2), torch.zeros(2, dtype=torch.float16)]
)
def test_what_is_no_state_is_refused(bad):
    with pytest.raises(ShapeError):
        check_state(bad)


def test_a_state_whose_sum_overflows_is_a_state():
    assert check_state(torch.full((2, 3), 3e38)).shape == (2, 3)
    with pytest.raises(NonFinite):
        check_state(torch.tensor([[0.0, math.inf], [0.0, -math.inf]]))


class Counted(BaseDenoiser):
    """Data at 0, on any path, with costs of its own."""

    costs_per_call = Costs(2, 3, 5, 7)

    def __init__(self, path):
        self.path = path

    def __call__(self, x, t):
        return torch.zeros_like(x)


def test_costs_are_per_particle_and_call():
    calls = []
    tally = Tally(Counted(Linear()), lambda: calls.append(1))
    assert sample(tally, (4, 3), transitions=2, steps=3, seed=0).shape == (4, 3)
    assert len(calls) == 6
    assert tally.costs == Costs(*(24 * cost for cost in (2, 3, 5, 7)))


class Believer(BaseDenoiser):
    """Says that the data are what it is asked about, scaled to size."""

    def __init__(self, path):
        self.path, self.asked = path, []

    def __call__(self, x, t):
        self.asked.append(x.clone())
        return x.clone()


@pytest.mark.parametrize("path", [Linear(), EDM()], ids=["linear", "edm"])
def test_samples_start_from_their_own_noise_at_the_scale_of_the_path(path):
    scale = Sampler(2, 1).plan(path).start_scale
    model = Believer(path)
    sample(model, (3, 2), transitions=2, steps=1, seed=8)
    start = KeyedNoise(8)(0, torch.empty(3, 2), START)
    torch.testing.assert_close(model.asked[0], start * scale)
    model = Believer(path)
    sample(model, start, transitions=2, steps=1, seed=8)
    torch.testing.assert_close(model.asked[0], start * scale)


def test_posterior_draws_of_pure_noise_are_samples_and_others_see_x():
    x = torch.arange(6.0).view(3, 2)
    for t, seen in ((0.0, False), (0.5, True)):
        model = Believer(Linear())
        drawn = posterior(model, x, t, samples=2, steps=2, seed=4)
        assert drawn.shape == (2, 3, 2)
        assert torch.equal(model.asked[0], x.repeat(2, 1)) == seen
        assert not torch.equal(drawn[0], drawn[1])
        again = posterior(Believer(Linear()), x[:1], t, samples=1, steps=2, seed=4)
        torch.testing.assert_close(again[0], drawn[0, :1])


def test_a_state_may_be_a_number_for_each_particle():
    assert sample(Believer(Linear()), (3,), transitions=2, steps=1, seed=0).shape == (3,)
    with pytest.raises(InvalidArgument, match=r"must be \(batch, \*sizes\), got \(\)"):
        sample(Believer(Linear()), (), transitions=2, steps=1, seed=0)


def test_posterior_draws_begin_with_the_noise_of_the_path():
    asked = []
    for path in (Linear(), Wide()):
        model = Believer(path)
        posterior(model, torch.zeros(3, 2), 0.0, samples=2, steps=2, seed=4)
        asked.append(model.asked[0])
    torch.testing.assert_close(asked[1], 2.0 * asked[0])


@pytest.mark.parametrize("draw", [partial(posterior, t=0.3, samples=2, steps=2), sample])
def test_a_graph_is_kept_where_it_is_asked_for_and_may_be(draw):
    x = torch.ones(3, 2).requires_grad_()
    model = Denoiser(lambda x, t: x.sin(), Linear(), "sample")
    for wanted in (True, False):
        assert draw(model, x, differentiable=wanted, seed=0).requires_grad == wanted
        with torch.no_grad():
            assert not draw(model, x, differentiable=wanted, seed=0).requires_grad
    assert not draw(model, x, seed=0).requires_grad


def test_draws_of_a_posterior_count_as_particles():
    model = Believer(Linear())
    with pytest.raises(InvalidArgument, match=r"particles go into one batch, .*got 25165824"):
        posterior(model, torch.zeros(3, 2), 0.3, samples=2**23, steps=1)
    assert not model.asked


def test_draws_of_a_posterior_are_counted_number_by_number(monkeypatch):
    monkeypatch.setattr(noise, "MOST_NUMBERS", 120)
    x, model = torch.zeros(3, 5), Believer(Linear())
    assert posterior(model, x, 0.3, samples=8, steps=1).shape == (8, 3, 5)
    with pytest.raises(InvalidArgument, match="at most 120 numbers, batch x shape, got 27 x 5"):
        posterior(model, x, 0.3, samples=9, steps=1)


def test_the_noise_of_a_single_transition_is_keyed_by_its_time():
    x, seen = torch.zeros(4, 2), Believer(Linear())
    (key,) = struct.unpack("<Q", struct.pack("<d", 0.3))
    eps = KeyedNoise(5)(key, x, SINGLE)
    given = {"rho": 0.4, "steps": 2}
    expected = transition(seen, x, 0.3, 0.6, noise=eps, **given)
    torch.testing.assert_close(transition(seen, x, 0.3, 0.6, seed=5, **given), expected)
    torch.testing.assert_close(transition(seen, x[:1], 0.3, 0.6, seed=5, **given), expected[:1])
    with pytest.raises(InvalidArgument, match="noise is one ε, but this sampler draws 2 of them"):
        given = {"rho": None, "solver": "euler-maruyama", "steps": 2}
        transition(seen, x, 0.3, 0.6, noise=eps, **given)


def test_a_state_is_where_it_is_wanted_and_else_where_the_network_is():
    class Elsewhere(Believer):
        device = torch.device("meta")

    model = Elsewhere(Linear())
    assert sample(model, (2, 3), transitions=1, steps=1, seed=0, device="cpu").device.type == "cpu"
    with pytest.raises(InvalidArgument, match="meta"):
        sample(model, (2, 3), transitions=1, steps=1, seed=0)


def test_the_longest_and_the_shortest_radius():
    """Of the words 0 and 2^31 - 1, whose angle is 0: √(-2 log 2⁻³²) and 0."""
    drawn = np.empty((2, 2, 1), dtype=np.float32)
    _normal(np.array([[0], [2**31 - 1]], dtype=np.uint64), drawn)
    ends = torch.from_numpy(drawn)[:, :, 0]
    expected = torch.tensor([[math.sqrt(64.0 * math.log(2.0)), 0.0], [0.0, 0.0]])
    torch.testing.assert_close(ends, expected)


def test_noise_of_states_without_numbers():
    assert KeyedNoise(1)(0, torch.empty(2, 0)).shape == (2, 0)


def test_batching_that_is_documented():
    assert Batching() == Batching(max_batch="auto", decode_batch=1, checkpoint=False)
    assert Batching(max_batch=None, decode_batch=None).max_batch is None
