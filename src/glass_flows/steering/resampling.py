"""Resampling schemes: weights to ancestors, one small function each, one signature.

Each takes normalised weights (N,) and a numpy Philox bit generator, and returns N ancestor indices
such that particle i has N w_i offspring on average.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import numpy.typing as npt

__all__ = ["RESAMPLERS", "Resampler", "multinomial", "systematic"]

Resampler = Callable[[npt.NDArray[np.float64], np.random.BitGenerator], npt.NDArray[np.int64]]


def systematic(
    weights: npt.NDArray[np.float64], bits: np.random.BitGenerator
) -> npt.NDArray[np.int64]:
    """One uniform, N equally spaced points: offspring counts are within 1 of N w_i."""
    count = len(weights)
    points = (np.random.Generator(bits).random() + np.arange(count)) / count
    return _invert(weights, points)


def multinomial(
    weights: npt.NDArray[np.float64], bits: np.random.BitGenerator
) -> npt.NDArray[np.int64]:
    """N independent draws."""
    return _invert(weights, np.sort(np.random.Generator(bits).random(len(weights))))


RESAMPLERS: dict[str, Resampler] = {"systematic": systematic, "multinomial": multinomial}


def _invert(
    weights: npt.NDArray[np.float64], points: npt.NDArray[np.float64]
) -> npt.NDArray[np.int64]:
    """The particle whose share of [0, 1) holds each point; never one of weight zero."""
    edges = np.cumsum(weights)
    edges /= edges[-1]
    return np.searchsorted(edges, points, side="right").astype(np.int64)
