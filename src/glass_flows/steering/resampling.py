"""Resampling schemes: weights to ancestors, one small function each, one signature.

Each takes normalised weights (N,) and a numpy bit generator, and returns N ancestor indices in
ascending order such that particle i has N w_i offspring on average, and none if w_i is zero. The
order of the particles matters to stratified, systematic and SSP, which share offspring between
neighbours. Every scheme but multinomial leaves a population of equal weights as it is.

Weights carry rounding: what lies within ``SLACK`` of a whole number of offspring counts as whole,
for otherwise 3 * (1/3) might lose a child. That biases the mean counts by SLACK at most.

Douc, Cappe & Moulines (2005), 'Comparison of resampling schemes for particle filtering', compare
the first four.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import numpy as np
import numpy.typing as npt

from ..errors import InvalidArgument, shown
from ..registry import Registry

__all__ = [
    "RESAMPLERS",
    "Resampler",
    "multinomial",
    "residual",
    "ssp",
    "stratified",
    "systematic",
]

Floats = npt.NDArray[np.float64]
Indices = npt.NDArray[np.int64]
Resampler = Callable[[Floats, np.random.BitGenerator], Indices]

DIGITS = 9
SLACK = 10.0**-DIGITS


def multinomial(weights: Floats, bits: np.random.BitGenerator) -> Indices:
    """N independent draws (Gordon, Salmond & Smith 1993)."""
    points = np.random.Generator(bits).random(len(weights))
    points.sort()
    return _invert(weights, points)


def residual(weights: Floats, bits: np.random.BitGenerator) -> Indices:
    """⌊N w_i⌋ offspring each, the rest multinomial over what is left (Liu & Chen 1998)."""
    counts, rest, missing = _split(weights)
    if missing:
        drawn = _invert(rest, np.random.Generator(bits).random(missing))
        counts += np.bincount(drawn, minlength=len(counts))
    return _ancestors(counts)


def stratified(weights: Floats, bits: np.random.BitGenerator) -> Indices:
    """One uniform point in each of N equal strata (Kitagawa 1996)."""
    count = len(weights)
    edges = weights.cumsum()
    edges = (edges / edges[-1] * count).round(DIGITS)
    below = _points_below(edges, np.random.Generator(bits).random(count))
    return below.searchsorted(np.arange(count), side="right")


def systematic(weights: Floats, bits: np.random.BitGenerator) -> Indices:
    """One uniform, N equally spaced points (Carpenter, Clifford & Fearnhead 1999).

    The offspring are ⌊N w_i⌋ or one more. Whole offspring take as many points wherever they lie,
    so that only the remainders are laid along the points.
    """
    counts, rest, missing = _split(weights)
    if missing:
        edges = rest.cumsum()
        edges = edges / edges[-1] * missing
        below = _points_below(edges, np.random.Generator(bits).random(1))
        counts += below
        counts[1:] -= below[:-1]
    return _ancestors(counts)


def ssp(weights: Floats, bits: np.random.BitGenerator) -> Indices:
    """Srinivasan sampling process: ⌊N w_i⌋ offspring or one more, negatively associated.

    Gerber, Chopin & Whiteley (2019), 'Negative association, ordering and convergence of resampling
    methods'. Of the two remainders p and q at hand one moves to 0 or 1, at the other's cost and
    with both means kept; the one still open meets the next particle's.
    """
    counts, rest, missing = _split(weights)
    if missing:
        # A remainder of zero is settled: none of the others' offspring may go to it.
        loose = rest.nonzero()[0].tolist()
        remainders = rest[loose].tolist()
        uniforms = np.random.Generator(bits).random(len(loose) - 1).tolist()
        held, p = loose[0], remainders[0]
        winners = []
        for rival, q, u in zip(loose[1:], remainders[1:], uniforms):
            if p + q < 1.0:
                if u * (p + q) < q:
                    held = rival
                p += q
            else:
                if u * ((1.0 - p) + (1.0 - q)) < 1.0 - q:
                    held, rival = rival, held
                winners.append(rival)
                p += q - 1.0
        if len(winners) < missing:  # p is 1, but for rounding; otherwise it is 0
            winners.append(held)
        counts[winners] += 1
    return _ancestors(counts)


def _is_resampler(name: str, thing: Any) -> Resampler:
    """Tried on three particles: an ancestor for each, and none of weight zero."""
    found: Any = thing(np.array([0.5, 0.5, 0.0]), np.random.Philox(0)) if callable(thing) else None
    if not (np.shape(found) == (3,) and np.isin(found, (0, 1)).all()):
        raise InvalidArgument(
            f"the resampling scheme {name!r} must be a function of normalised weights (N,) and a "
            f"numpy bit generator to N ancestors, none of weight zero; got {shown(found)} of "
            "[0.5, 0.5, 0.0]"
        )
    return cast(Resampler, thing)


RESAMPLERS: Registry[Resampler] = Registry(
    "resamplers",
    {f.__name__: f for f in (multinomial, residual, ssp, stratified, systematic)},
    _is_resampler,
)


def _split(weights: Floats) -> tuple[Indices, Floats, int]:
    """N w_i as whole offspring and remainders in [0, 1), and how many offspring these make up."""
    shares = weights * (len(weights) / weights.sum())
    whole = np.floor(shares + SLACK)
    counts = whole.astype(np.int64)
    return counts, np.maximum(shares - whole, 0.0), len(weights) - int(counts.sum())


def _points_below(edges: Floats, heights: Floats) -> Indices:
    """How many of the points i + heights[i], i = 0, 1, ..., lie below each edge.

    The last height also serves all i beyond. Points are never formed: i + 0.99... may round up.
    """
    whole = edges.astype(np.int64)
    return whole + (edges - whole > heights.take(whole, mode="clip"))


def _invert(weights: Floats, points: Floats) -> Indices:
    """The particle whose share of [0, 1) holds each point; never one of weight zero."""
    edges = weights.cumsum()
    edges /= edges[-1]  # the last one is 1 exactly, above every point
    return edges.searchsorted(points, side="right")


def _ancestors(counts: Indices) -> Indices:
    """Every index as often as it has offspring."""
    return np.arange(len(counts)).repeat(counts)
