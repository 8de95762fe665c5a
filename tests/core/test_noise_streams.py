"""The noise as a random number library is tested: streams, keys, and streams across keys.

What makes keyed noise different is the sequence across its keys: the first numbers of a thousand
particles, of a thousand steps, of a thousand seeds must be as random as a thousand numbers of one
stream. So every test is run on sequences taken along a stream and along each part of the key. The
alarm rate is that of tests/statistics_rules.py, over all p-values of the suite.
"""

from __future__ import annotations

import itertools

import numpy as np
import pytest
import torch
from scipy import stats

from cases import fast, first
from glass_flows.noise import (
    POSTERIOR,
    RESAMPLING,
    SINGLE,
    START,
    TRANSITION,
    KeyedNoise,
    StreamNoise,
)
from statistics_rules import accept

COUNT = 2**14
PARTS = ("stream", "particle", "step", "seed", "draw")


def words(part, count=COUNT, **fixed):
    """`count` 64-bit words along one part of the key, or along one stream."""
    key = {"seed": 7, "purpose": TRANSITION, "step": 3, "particle": 5, "draw": 0, **fixed}

    def first(seed, purpose, step, particle, draw):
        return KeyedNoise(seed).bits(purpose, step, particle, draw).random_raw(1)[0]

    if part == "stream":
        seed, *rest = (key[name] for name in ("seed", "purpose", "step", "particle", "draw"))
        return KeyedNoise(seed).bits(*rest).random_raw(count)
    return np.array([first(**{**key, part: i}) for i in range(count // 4)], dtype=np.uint64)


def normals(part, count=COUNT):
    """Standard normals along one part of the key: the first of each, or one long stream."""
    if part == "stream":
        return KeyedNoise(7)(3, torch.empty(1, count))[0].numpy()
    if part == "particle":
        return KeyedNoise(7)(3, torch.empty(count, 1))[:, 0].numpy()
    one = torch.empty(1, 1)
    calls = {
        "step": lambda i: KeyedNoise(7)(i, one),
        "seed": lambda i: KeyedNoise(i)(3, one),
        "draw": lambda i: KeyedNoise(7)(3, one, TRANSITION, i),
    }
    return torch.cat([calls[part](i) for i in range(count // 4)])[:, 0].numpy()


def equidistributed(cells, bins):
    return stats.chisquare(np.bincount(cells, minlength=bins)).pvalue


def p_values_of_words(found):
    """Bits, bytes, pairs of nibbles one after the other, runs, and distances between neighbours."""
    bits = np.unpackbits(found.view(np.uint8)).reshape(len(found), 64)
    for position in range(64):  # every bit is a fair coin, and so is its change to the next word
        for coin in (bits[:, position], bits[1:, position] ^ bits[:-1, position]):
            yield stats.binomtest(int(coin.sum()), len(coin)).pvalue
    bytes_ = found.view(np.uint8).reshape(len(found), 8)
    yield from (equidistributed(bytes_[:, i], 256) for i in range(8))
    for shift in (0, 28, 60):  # low, middle and high nibbles of words that follow each other
        nibbles = ((found >> np.uint64(shift)) & np.uint64(15)).astype(int)
        yield equidistributed(16 * nibbles[:-1:2] + nibbles[1::2], 256)
    flips = np.unpackbits((found[1:] ^ found[:-1]).view(np.uint8)).reshape(-1, 64).sum(1)
    yield stats.kstest(stats.norm.cdf((flips.mean() - 32) / (4 / len(flips) ** 0.5)), "uniform")[1]
    expected = stats.binom.pmf(np.arange(22, 43), 64, 0.5)
    inside = np.bincount(flips, minlength=65)[22:43]
    counts = np.append(inside, len(flips) - inside.sum())
    yield stats.chisquare(counts, len(flips) * np.append(expected, 1 - expected.sum())).pvalue


def p_values_of_normals(found):
    """The law, its tails, correlations of numbers and of squares, and pairs on a grid."""
    found = found.astype(float)
    yield stats.kstest(found, "norm").pvalue
    uniform = stats.norm.cdf(found)
    yield equidistributed((uniform * 256).astype(int), 256)
    tail = int((np.abs(found) > 3).sum())
    yield stats.binomtest(tail, len(found), 2 * stats.norm.sf(3)).pvalue
    for lag, power in itertools.product((1, 2, 3, 7), (1, 2)):
        values = found**power - (power == 2)
        product = values[lag:] * values[:-lag] / (2 if power == 2 else 1)
        yield 2 * stats.norm.sf(abs(product.sum()) / len(product) ** 0.5)
    cells = (uniform * 16).astype(int)
    yield equidistributed(16 * cells[:-1:2] + cells[1::2], 256)


@pytest.mark.parametrize("part", fast(["stream"], PARTS))
@pytest.mark.parametrize("purpose", first([RESAMPLING, TRANSITION]))
def test_integers_are_random_along_a_stream_and_along_every_part_of_the_key(part, purpose):
    assert accept(list(p_values_of_words(words(part, purpose=purpose))))


@pytest.mark.parametrize(  # normals are made of the words, whose keys are all looked at above
    "part",
    [pytest.param(p, marks=[pytest.mark.slow] * (p in ("step", "seed", "draw"))) for p in PARTS],
)
def test_normals_are_random_along_a_stream_and_along_every_part_of_the_key(part):
    assert accept(list(p_values_of_normals(normals(part))))


@pytest.mark.parametrize("source", [KeyedNoise, StreamNoise])
def test_normals_of_whole_batches(source):
    """Particles × values, read along either side."""
    found = source(11)(2, torch.empty(128, 256)).numpy()
    assert accept([*p_values_of_normals(found.ravel()), *p_values_of_normals(found.T.ravel())])


def test_keys_that_differ_in_one_place_have_nothing_in_common():
    """Streams of 2^14 normals of neighbouring keys: correlations, of numbers and of squares."""
    base = {"seed": 3, "step": 1, "purpose": TRANSITION, "draw": 0, "first_particle": 0}

    def stream(seed, step, purpose, draw, first_particle):
        like = torch.empty(1, COUNT)
        return KeyedNoise(seed, first_particle)(step, like, purpose, draw)[0].double().numpy()

    changes = [("seed", v) for v in (2, 4, 3 + 2**32, 3 + 2**62)]
    changes += [("step", v) for v in (0, 2, 1 + 2**20)]
    changes += [("purpose", v) for v in (START, RESAMPLING, POSTERIOR, SINGLE)]
    changes += [("draw", v) for v in (1, 2, 1000)]
    changes += [("first_particle", v) for v in (1, 2, 1000, 2**40)]
    one, found = stream(**base), []
    for name, value in changes:
        other = stream(**{**base, name: value})
        assert not np.isin(one, other).mean() > 0.01  # no part of one is in the other
        for a, b in ((one, other), (one**2 - 1, other**2 - 1), (one**2 - 1, other)):
            z = (a * b).sum() / np.sqrt((a**2).sum() * (b**2).mean())
            found.append(2 * stats.norm.sf(abs(z)))
    assert accept(found)


def test_swapped_parts_of_a_key_are_another_key():
    """(step, particle) = (1, 2) and (2, 1), (seed, purpose), (draw, step): no word is shared."""
    seen = {}
    for seed, purpose, step, particle, draw in itertools.product(range(4), repeat=5):
        word = int(KeyedNoise(seed).bits(purpose, step, particle, draw).random_raw(1)[0])
        assert seen.setdefault(word, None) is None
        seen[word] = (seed, purpose, step, particle, draw)
    assert len(seen) == 4**5


def test_streams_of_neighbours_do_not_overlap():
    """A counter that runs on into the next particle's would repeat it from its second block on."""
    streams = [KeyedNoise(7).bits(TRANSITION, 3, i).random_raw(4096) for i in range(16)]
    assert len(np.unique(np.concatenate(streams))) == 16 * 4096


@pytest.mark.parametrize("batch, size", [(1, 2**18 + 3), (9, 2**15 + 2), (3, 2**17), (300, 5)])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_stream_is_that_of_its_key_wherever_it_is_cut_and_whoever_draws_it(batch, size, threads):
    """Box-Muller in float64 on the words of each particle's stream, drawn in one go."""
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        found = KeyedNoise(7, 2)(3, torch.empty(batch, size)).double().numpy()
    finally:
        torch.set_num_threads(before)
    for i in range(batch):
        bits = KeyedNoise(7).bits(TRANSITION, 3, 2 + i).random_raw((size + 1) // 2)
        low, high = bits.view(np.int32).reshape(-1, 2).T.astype(float)
        uniform = ((low % 2**31).astype(np.float32) + np.float32(0.5)).astype(float) / 2**31
        radius = np.sqrt(-2 * np.log(uniform))
        angle = np.pi * high / 2**31
        expected = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:size]
        np.testing.assert_allclose(found[i], expected, atol=5e-6)


@pytest.mark.slow
@pytest.mark.parametrize(
    "spoil",
    first(
        [
            lambda w: w & ~np.uint64(1 << 17),  # a bit that is stuck
            lambda w: np.sort(w),  # neighbours that are near
            lambda w: w >> np.uint64(1),  # half of the range
            lambda w: np.repeat(w[::2], 2),  # numbers that come twice
            lambda w: (w & ~np.uint64(15)) | np.uint64(7),  # low bits that say nothing
        ]
    ),
)
def test_the_tests_of_integers_find_what_is_wrong(spoil):
    assert not accept(list(p_values_of_words(spoil(words("stream")))))


@pytest.mark.parametrize(
    "spoil",
    [
        lambda x: 1.06 * x,
        lambda x: x + 0.05,
        lambda x: np.clip(x, -2.9, 2.9),
        lambda x: x + 0.06 * np.roll(x, 1),
        lambda x: (np.abs(x.reshape(-1, 2)) * np.sign(x[::2, None])).ravel(),
        lambda x: np.sort(x.reshape(-1, 2), 1).ravel(),
    ],
)
def test_the_tests_of_normals_find_what_is_wrong(spoil):
    assert not accept(list(p_values_of_normals(spoil(normals("stream", 2**15)))))
