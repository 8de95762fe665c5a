"""Resampling: exact laws by enumeration, laws by frequency, and the edges of rounding.

Rule of the statistical tests (see statistics_rules): in every scheme the offspring count of one
particle is a sum of independent coin tosses, whose chances `coins` writes down from the literature.
How often a count reaches k in RUNS resamplings is then binomial, and its exact p-value is judged.
The streams are fixed, one per scheme and weight vector.
"""

from __future__ import annotations

import itertools
import math
from fractions import Fraction
from functools import cache

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import special, stats

from cases import first, one_in
from glass_flows.errors import InvalidArgument
from glass_flows.noise import KeyedNoise
from glass_flows.steering.resampling import RESAMPLERS
from glass_flows.steering.smc import ancestors_of
from glass_flows.steering.weights import LogWeights
from statistics_rules import accept

RUNS = 2000
SCHEMES = sorted(RESAMPLERS)
WITHIN_ONE = ("ssp", "systematic")  # the counts are ⌊N w⌋ or ⌈N w⌉
VECTORS = {
    "ragged": (0.05, 0.0, 0.32, 0.13, 0.4, 0.1),
    "equal": (1 / 7,) * 7,
    "halves": (1 / 16, 3 / 16) * 4,
    "ties": (0.11, 0.11, 0.11, 0.23, 0.23, 0.21),
    "nearly one": (1e-3, 1 - 3e-3, 0.0, 2e-3),
    "nearly whole": (0.249, 0.251, 0.4985, 0.0015),
}


def shares_of(weights) -> np.ndarray:
    """N w_i, the mean counts, to the last digit."""
    exact = [Fraction(w) for w in weights]
    return np.array([float(w * len(exact) / sum(exact)) for w in exact])


def coins(scheme: str, weights) -> tuple[np.ndarray, np.ndarray]:
    """Each particle's certain offspring (N,) and the chances (N, tosses) of the others."""
    shares = shares_of(weights)
    n = len(shares)
    floors = np.floor(shares + 1e-9)
    rest = np.clip(shares - floors, 0.0, 1.0)
    if scheme == "multinomial":
        return np.zeros(n), np.tile(shares[:, None] / n, n)
    if scheme == "stratified":
        edges = np.r_[0.0, np.cumsum(shares)]
        cells = np.arange(n)
        overlap = np.minimum(edges[1:, None], cells + 1) - np.maximum(edges[:-1, None], cells)
        return np.zeros(n), np.round(np.maximum(overlap, 0.0), 12)
    if scheme == "residual":
        missing = round(n - floors.sum())
        return floors, np.tile(rest[:, None] / max(missing, 1), missing)
    return floors, rest[:, None]


def variance_of(scheme: str, weights) -> np.ndarray:
    _, chances = coins(scheme, weights)
    return (chances * (1 - chances)).sum(1)


def counts_of(scheme: str, weights, bits) -> np.ndarray:
    weights = np.asarray(weights, dtype=float)
    return np.bincount(RESAMPLERS[scheme](weights, bits), minlength=len(weights))


@cache
def drawn(scheme: str, name: str) -> np.ndarray:
    """Offspring counts (RUNS, N)."""
    bits = np.random.Philox([SCHEMES.index(scheme), list(VECTORS).index(name)])
    return np.stack([counts_of(scheme, VECTORS[name], bits) for _ in range(RUNS)])


def scripted(uniforms, into=None) -> np.random.MT19937:
    """Bits behind uniforms chosen by hand: a Mersenne twister with its next outputs filled in."""
    integers = (np.asarray(uniforms) * 2.0**53).astype(np.uint64)
    words = np.stack([integers >> 26 << 5, (integers & (2**26 - 1)) << 6], 1)  # 27 and 26 bits
    key = np.zeros(624, dtype=np.uint32)
    key[: words.size] = _untempered(words.astype(np.uint32).ravel())
    bits = into or np.random.MT19937(0)
    bits.state = {"bit_generator": "MT19937", "state": {"key": key, "pos": 0}}
    return bits


def _untempered(y: np.ndarray) -> np.ndarray:
    """The inverse of the twister's output function."""
    y = y ^ y >> 18
    y = y ^ y << 15 & 0xEFC60000
    x = y
    for _ in range(5):
        x = y ^ x << 7 & 0x9D2C5680
    y = x
    for _ in range(3):
        x = y ^ x >> 11
    return x


HIGHEST = 1 - 2.0**-53


def test_scripted_uniforms_come_out_as_written():
    written = [0.0, HIGHEST, 0.5, *np.random.default_rng(0).random(40)]
    assert np.random.Generator(scripted(written)).random(43).tolist() == written


def test_all_schemes_are_registered_under_their_names():
    names = ["multinomial", "residual", "ssp", "stratified", "systematic"]
    assert [RESAMPLERS[name].__name__ for name in names] == names == SCHEMES


# --- exact laws -------------------------------------------------------------------------------

# Particles in quarters of an offspring: every chance is then a multiple of 1/GRID (for SSP 1/2, 1/3
# and 1/4 turn up), so that uniforms on the midpoints of GRID equal cells give the law exactly.
GRID = {"residual": 8, "stratified": 4, "systematic": 4, "ssp": 12}
QUARTERS = [
    (0.25, 1.25, 0.25, 2.25),  # one offspring over
    (1.5, 0.25, 0.75, 1.5),  # two
    (0.75, 0.75, 1.75, 0.75),  # three
    (0.0, 0.5, 0.0, 3.5),
    (1.0, 1.0, 1.0, 1.0),
]


@pytest.mark.parametrize("scheme", GRID)
@pytest.mark.parametrize("shares", one_in(3, map(list, QUARTERS)))
def test_the_law_is_exact_on_a_grid(scheme, shares):
    weights = np.array(shares) / 4
    over, loose = 4 - int(np.floor(shares).sum()), sum(share % 1 > 0 for share in shares)
    drawn_once = {"residual": over, "stratified": 4, "systematic": 1, "ssp": max(loose - 1, 0)}
    midpoints = (np.arange(GRID[scheme]) + 0.5) / GRID[scheme]
    points = itertools.product(midpoints, repeat=drawn_once[scheme])
    bits = np.random.MT19937(0)
    counts = np.stack([counts_of(scheme, weights, scripted(point, bits)) for point in points])
    np.testing.assert_allclose(counts.mean(0), shares, rtol=0, atol=1e-12)
    covariance = np.cov(counts.T, bias=True)
    np.testing.assert_allclose(
        covariance.diagonal(), variance_of(scheme, weights), rtol=0, atol=1e-12
    )
    _, chances = coins(scheme, weights)
    if scheme in ("residual", "stratified"):  # each toss gives one particle one offspring
        expected = np.diag(chances.sum(1)) - chances @ chances.T
        np.testing.assert_allclose(covariance, expected, rtol=0, atol=1e-12)
    if scheme == "ssp":  # negatively associated, here in pairs
        assert (covariance - np.diag(covariance.diagonal()) < 1e-12).all()


@pytest.mark.parametrize("shares", [(0.55, 0.5, 1.95), (0.5, 0.45, 2.05)])
def test_ssp_is_exact_where_two_remainders_nearly_add_up(shares):
    """Nineteenths settle the first pair, of sum 1.05 or 0.95, and twentieths the second."""
    midpoints = [(np.arange(n) + 0.5) / n for n in (19, 20)]
    bits = np.random.MT19937(0)
    counts = np.stack(
        [
            counts_of("ssp", np.array(shares) / 3, scripted(point, bits))
            for point in itertools.product(*midpoints)
        ]
    )
    np.testing.assert_allclose(counts.mean(0), shares, rtol=0, atol=1e-12)


@pytest.mark.parametrize("scheme", ["multinomial", "stratified", "systematic"])
@pytest.mark.parametrize("name", VECTORS)
def test_points_fall_into_shares(scheme, name):
    """The same uniforms, laid out in fractions: one point per stratum, N in step, or anywhere."""
    weights = [Fraction(w) for w in VECTORS[name]]
    n, total = len(weights), sum(weights)
    edges = [Fraction(round(1e9 * n * e / total), 10**9) for e in itertools.accumulate(weights)]
    for seed in range(50):
        uniforms = [Fraction(u) for u in np.random.Generator(np.random.Philox(seed)).random(n)]
        points = {
            "multinomial": sorted(n * u for u in uniforms),
            "stratified": [i + u for i, u in enumerate(uniforms)],
            "systematic": [i + uniforms[0] for i in range(n)],
        }[scheme]
        expected = [next(i for i, edge in enumerate(edges) if edge > point) for point in points]
        got = RESAMPLERS[scheme](np.array(VECTORS[name]), np.random.Philox(seed))
        assert got.tolist() == expected


# --- laws by frequency ------------------------------------------------------------------------


def _tails(chances) -> np.ndarray:
    """P(at least k heads), k = 1 ... tosses."""
    law = np.ones(1)
    for chance in chances:
        law = np.convolve(law, [1 - chance, chance])
    return np.clip(law[::-1].cumsum()[::-1][1:], 0.0, 1.0)


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", one_in(2, VECTORS))
def test_offspring_counts_follow_their_law(scheme, name):
    """And so are unbiased: the tails of a count sum to its mean, which is N w_i."""
    counts = drawn(scheme, name)
    certain, chances = coins(scheme, VECTORS[name])
    np.testing.assert_allclose(
        certain + chances.sum(1), shares_of(VECTORS[name]), rtol=0, atol=1e-8
    )
    assert (counts >= certain).all()
    assert (counts <= certain + (chances > 0).sum(1)).all()
    for i in range(len(certain)):
        for k, chance in enumerate(_tails(chances[i]), 1):
            if chance > 1e-9:  # what is rarer than that is too rare to judge
                reached = (counts[:, i] >= certain[i] + k).sum()
                below = special.bdtr(reached, RUNS, chance)
                above = special.bdtrc(reached - 1, RUNS, chance) if reached else 1.0
                assert accept(min(1.0, 2 * min(below, above)))


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("name", one_in(3, VECTORS))
def test_mean_counts_are_unbiased(scheme, name):
    """The sum over the runs in units of its error, where normal: more powerful than the tails."""
    counts, shares = drawn(scheme, name), shares_of(VECTORS[name])
    variance = RUNS * variance_of(scheme, VECTORS[name])
    assert (counts[:, shares == 0] == 0).all()
    settled = variance < 1e-6
    assert (counts == np.rint(shares))[:, settled].all()
    wide = variance > 100  # 5.2 sigma, the level, is then normal enough
    z = (counts.sum(0) - RUNS * shares)[wide] / np.sqrt(variance[wide])
    assert accept(2 * stats.norm.sf(abs(z)))


@pytest.mark.parametrize("scheme", [s for s in SCHEMES if s != "multinomial"])
@pytest.mark.parametrize("name", one_in(3, VECTORS))
def test_no_scheme_varies_more_than_multinomial(scheme, name):
    """Exactly for every particle (Douc, Cappe & Moulines 2005); and, as drawn, by the margin."""
    most = variance_of("multinomial", VECTORS[name])
    np.testing.assert_allclose(
        most, shares_of(VECTORS[name]) * (1 - shares_of(VECTORS[name]) / len(most)), atol=1e-12
    )
    assert (variance_of(scheme, VECTORS[name]) <= most + 1e-12).all()
    squares = (drawn(scheme, name) - shares_of(VECTORS[name])) ** 2
    error = squares.std(0) / RUNS**0.5
    assert (squares.mean(0) <= most + 6 * error + 1e-12).all()
    margin = {"ragged": 0.7, "equal": 0.0, "halves": 0.85, "ties": 1.0, "nearly one": 1.0}
    if name in margin:
        assert squares.mean(0).sum() <= margin[name] * most.sum() + 6 * error.sum() + 1e-12


@pytest.mark.parametrize("scheme", WITHIN_ONE)
@pytest.mark.parametrize("name", ["halves", "ties", "ragged"])
def test_ssp_offspring_are_negatively_associated(scheme, name):
    """P(both have the extra one) <= product, judged one-sided. Systematic is the control.

    Particles half an offspring apart get theirs together in systematic resampling.
    """
    counts = drawn(scheme, name)
    certain, chances = coins(scheme, VECTORS[name])
    extra = counts - certain
    pairs = itertools.combinations(np.flatnonzero(chances[:, 0] > 0), 2)
    p_values = [
        stats.binom.sf(extra[:, i] @ extra[:, j] - 1, RUNS, chances[i, 0] * chances[j, 0])
        for i, j in pairs
    ]
    if scheme == "ssp":
        assert accept(p_values)
    elif name == "halves":
        assert min(p_values) < 1e-100


def test_order_helps_ssp():
    """A mean over particles: neighbours trade offspring, so that little is lost if they are alike.

    Multinomial's variance is exact. The factors are some 5.5 and 7, their relative errors 5 %.
    """
    rng = np.random.default_rng(3)
    values = np.sort(rng.standard_normal(32))
    weights = rng.dirichlet(np.ones(32))
    mixed = rng.permutation(32)
    bits = np.random.Philox(4)
    variances = [
        np.var([values[order][RESAMPLERS["ssp"](weights[order], bits)].sum() for _ in range(2000)])
        for order in (np.arange(32), mixed)
    ]
    multinomial = 32 * (weights @ values**2 - (weights @ values) ** 2)
    assert variances[0] < 0.3 * variances[1]
    assert variances[1] < 0.3 * multinomial


# --- edges ------------------------------------------------------------------------------------

LADDER = [0.0, 5e-324, 1e-300, 1e-17, 1e-12, 1e-3, 0.1, 1 / 3, 0.5, 1.0]
STREAMS = st.one_of(
    st.integers(0, 2**32).map(np.random.Philox),
    st.sampled_from([0.0, HIGHEST]).map(lambda u: scripted([u] * 300)),
    st.integers(0, 2**32).map(
        lambda seed: scripted(np.random.default_rng(seed).choice([0.0, 2.0**-53, HIGHEST], 300))
    ),
)


@st.composite
def weight_vectors(draw):
    one = st.one_of(st.sampled_from(LADDER), st.floats(0, 1))
    values = np.array(draw(st.lists(one, min_size=1, max_size=40)))
    if values.sum() < 1e-3:
        values[draw(st.integers(0, len(values) - 1))] = 1.0
    return values / values.sum() * draw(st.sampled_from([1.0, 1 - 1e-12, 1 + 1e-12]))


@pytest.mark.parametrize("scheme", first(SCHEMES))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(weights=weight_vectors(), bits=STREAMS)
def test_every_population_is_replaced_in_full(scheme, weights, bits):
    state, before = bits.state, weights.copy()
    ancestors = RESAMPLERS[scheme](weights, bits)
    n = len(weights)
    assert ancestors.shape == (n,)
    assert ancestors.dtype == np.int64
    assert (np.diff(ancestors) >= 0).all()
    assert ancestors[0] >= 0
    assert ancestors[-1] < n
    assert (weights[ancestors] > 0).all()
    assert (weights == before).all()
    bits.state = state
    assert (RESAMPLERS[scheme](weights, bits) == ancestors).all()
    counts, shares = np.bincount(ancestors, minlength=n), shares_of(weights)
    if scheme == "stratified":
        assert (np.abs(counts - shares) < 2).all()
    if scheme in (*WITHIN_ONE, "residual"):
        assert (counts >= np.floor(shares + 1e-10)).all()
    if scheme in WITHIN_ONE:
        assert (counts <= np.ceil(shares)).all()


@pytest.mark.parametrize("scheme", first([s for s in SCHEMES if s != "multinomial"]))
@settings(max_examples=25, deadline=None, derandomize=True)
@given(
    counts=st.lists(st.integers(0, 5), min_size=1, max_size=40).filter(any),
    noise=st.integers(0, 2**32),
    bits=STREAMS,
)
def test_whole_offspring_are_certain(scheme, counts, noise, bits):
    """Whatever the rounding: N w = 3 may come as 2.999999999999, and 1/3 + 1/3 + 1/3 as not 1."""
    counts = np.array(counts)
    counts = np.r_[counts, np.zeros(max(counts.sum() - len(counts), 0), dtype=int)]
    counts[0] += len(counts) - counts.sum()  # as many offspring as particles
    jitter = 1 + 1e-12 * np.random.default_rng(noise).uniform(-1, 1, len(counts))
    for scale in (1 / len(counts), 0.1, 1 / 3, jitter / len(counts)):
        weights = counts * scale
        weights = weights / weights.sum()
        ancestors = RESAMPLERS[scheme](weights, bits)
        assert ancestors.tolist() == np.repeat(np.arange(len(counts)), counts).tolist()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_nearly_whole_is_left_to_chance(scheme):
    """A millionth short of one offspring is no rounding error."""
    weights = np.array([0.5 - 5e-7, 0.5 + 5e-7])
    extremes = [counts_of(scheme, weights, scripted([u] * 2)).tolist() for u in (0.0, HIGHEST)]
    assert [0, 2] in extremes


@pytest.mark.parametrize("scheme", ["residual", "ssp", "systematic"])
def test_what_counts_as_whole_owes_nothing(scheme):
    """Its remainder is zero, not below: the edges ascend where a point falls on the rounding."""
    weights = np.array([0.5, 1 - 5e-10, 0.5, 2 + 5e-10]) / 4
    for uniform in (0.5 - 2.5e-10, 0.5, 0.5 + 2.5e-10):
        counts = counts_of(scheme, weights, scripted([uniform] * 3))
        assert counts[[1, 3]].tolist() == [1, 2]


@pytest.mark.parametrize("scheme", SCHEMES)
@pytest.mark.parametrize("n", [1, 2, 3, 8, 100])
@pytest.mark.parametrize("uniform", [0.0, 0.5, HIGHEST])
def test_one_hot_and_equal_weights(scheme, n, uniform):
    for i in {0, n // 2, n - 1}:
        ancestors = RESAMPLERS[scheme](np.eye(n)[i], scripted([uniform] * n))
        assert ancestors.tolist() == [i] * n
    if scheme != "multinomial":
        for weights in (np.full(n, 1 / n), np.full(n, 1.0) / (n + 1e-6)):
            ancestors = RESAMPLERS[scheme](weights, scripted([uniform] * n))
            assert ancestors.tolist() == list(range(n))


@pytest.mark.parametrize("scheme", SCHEMES)
def test_large_populations_of_awkward_weights(scheme):
    """Cumulative sums that have rounded thousands of times, with the uniforms at their ends too."""
    rng = np.random.default_rng(7)
    for n in (1000, 4096, 30_000):
        weights = rng.gamma(0.05, size=n)  # over a hundred orders of magnitude
        weights /= weights.sum()
        shares = weights * n
        uniforms = [0.0, HIGHEST] if n < 10_000 else [0.0]
        for bits in (np.random.Philox(n), *(scripted([u] * 312) for u in uniforms)):
            counts = counts_of(scheme, weights, bits)
            assert counts.sum() == n
            if scheme in WITHIN_ONE:
                assert (np.abs(counts - shares) < 1 + 1e-8).all()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_a_scheme_that_passes_the_trial_may_be_registered(scheme):
    assert RESAMPLERS.check(scheme, RESAMPLERS[scheme]) is RESAMPLERS[scheme]
    for ancestors in ([0, 0, 1], [0, 0, 0], [1, 1, 1]):
        RESAMPLERS.check("mine", lambda weights, bits, found=ancestors: np.array(found))


@pytest.mark.parametrize("ancestors", [[0, 1], [0, 0, 1, 1], [0, 1, 2], [3, 3, 3], [[0, 0, 1]]])
def test_a_scheme_of_another_form_is_refused(ancestors):
    """Too few or too many ancestors, one of weight zero, one that is none, another shape."""
    with pytest.raises(InvalidArgument, match="N ancestors, none of weight zero"):
        RESAMPLERS.check("mine", lambda weights, bits: np.array(ancestors))


def test_what_is_no_function_is_no_scheme():
    with pytest.raises(InvalidArgument, match="'mine' must be a function"):
        RESAMPLERS.check("mine", "systematic")


@pytest.mark.parametrize("tired", [False, True])
def test_ancestors_are_of_64_bits_where_integers_of_numpy_are_of_32(tired, monkeypatch):
    """As with numpy 1 on Windows; boundaries take no others."""
    arange = np.arange
    monkeypatch.setattr(np, "arange", lambda *n, dtype=np.int32: arange(*n, dtype=dtype))
    weights = LogWeights(torch.tensor([[0.0, -math.inf], [0.0, 0.0]], dtype=torch.float64))
    found = ancestors_of(weights, torch.tensor([tired, False]), "systematic", KeyedNoise(0), 1)
    assert found.dtype == torch.int64
    assert found.tolist() == [[0, 0] if tired else [0, 1], [0, 1]]
