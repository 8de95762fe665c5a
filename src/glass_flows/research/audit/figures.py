"""The figures of an audit: how far samples and network inputs are from exact, with their errors.

Every figure is a :class:`~glass_flows.measures.Measure` that is zero for an exact sampler.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from torch import Tensor

from ...measures import Measure
from ...worlds.mixtures import GaussianMixture
from .laws import COPIES, POINT, SPREADS, Independent
from .watch import Look

PARTS = {"early": (0.0, 0.5), "middle": (0.5, 2.0), "late": (2.0, math.inf)}
"""Of the way, by α/σ."""
_BLOCKS = 20  # parts of the samples whose energy distances give their mean its error
_NONE = 1e-12  # in the place of a variance of zero, in units of the exact one
_ALIKE = 1e-4  # a noise's share in all, below which it is rounding


def line_figures(samples: Tensor, law: Independent) -> dict[str, Measure]:
    """Of samples (N, d) of `line`: noise left at the point, and moments of each spread."""
    n = len(samples) * COPIES
    groups = samples.split(COPIES, 1)
    left = float((groups[0] - POINT).square().mean().sqrt())
    found = {"noise left": Measure(left, left / math.sqrt(2 * n))}
    centred = (samples - samples.mean(0))[:, COPIES:]
    for i, spread in enumerate(SPREADS, start=1):
        # about the mean of each coordinate, and over all copies
        ratio = float(groups[i].var(0).mean().sqrt()) / spread
        error = max(ratio, 1.0) / math.sqrt(2 * n)
        found[f"std {spread:g}"] = Measure(off_exact(ratio), error)
        shift = float(groups[i].mean() - law.means[COPIES * i]) / spread
        found[f"mean {spread:g}"] = Measure(shift, ratio / math.sqrt(n))
    scaled = centred / centred.std(0).clamp(min=1e-12)
    correlation = (scaled.T @ scaled) / len(samples)
    pairs = correlation[tuple(torch.triu_indices(len(correlation), len(correlation), 1))]
    return {**found, "correlation": Measure(float(pairs.mean()), (n * len(pairs) / COPIES) ** -0.5)}


def mode_figures(samples: Tensor, law: GaussianMixture, exact: Tensor) -> dict[str, Measure]:
    """Of samples (N, 2) of `modes`: moments, and the energy distance to as many exact ones."""
    n, mean, covariance = len(samples), law.mean(), law.covariance()
    stds = covariance.diagonal().sqrt()
    centred = samples - mean
    found = {}
    for i in range(2):
        values = centred[:, i] / stds[i]
        found[f"modes mean {i + 1}"] = Measure(float(values.mean()), float(values.std()) / n**0.5)
        squares = values.square()
        ratio = max(float(squares.mean()), _NONE) ** 0.5
        error = float(squares.std()) / n**0.5 / (2 * ratio**2) * max(ratio, 1.0)
        found[f"modes std {i + 1}"] = Measure(off_exact(ratio), error)
    product = centred.prod(1) / stds.prod()
    shift = float(product.mean() - covariance[0, 1] / stds.prod())
    found["modes correlation"] = Measure(shift, float(product.std()) / n**0.5)
    return {**found, "energy distance": _energy(samples, exact)}


def _energy(a: Tensor, b: Tensor) -> Measure:
    """2 E|a - b| - E|a - a'| - E|b - b'| over E|b - b'|, without bias (Székely & Rizzo 2013)."""
    values = []
    for one, other in zip(a.chunk(_BLOCKS), b.chunk(_BLOCKS), strict=True):
        n, m = len(one), len(other)
        within = torch.pdist(one).sum() * 2 / (n * (n - 1))
        own = torch.pdist(other).sum() * 2 / (m * (m - 1))
        values.append(float((2 * torch.cdist(one, other).mean() - within - own) / own))
    return Measure(float(np.mean(values)), float(np.std(values, ddof=1)) / len(values) ** 0.5)


def input_figures(batches: Sequence[Sequence[Look]], rows: int) -> dict[str, Measure]:
    """Of what the network was asked about `line`: signal, noise and spreads, early to late.

    Signal and noise are those of the coordinates at the point, α̂ = mean/m and σ̂. The errors are
    those of one look, which bound the errors of means over looks at the same samples.
    """
    n = rows * COPIES
    found = {}
    for part, (low, high) in PARTS.items():
        looks = [one for batch in batches for one in batch if low <= one.amplitude < high]
        if not looks:
            continue
        each = torch.tensor([_off(one) for one in looks], dtype=torch.float64)
        offs, sizes = each.mean(0).tolist(), (1 + each.clamp(min=0)).mean(0).tolist()
        # α̂ has the error σ/m√n; of all looks that of the noisiest
        reach = max(one.sigma / math.hypot(one.alpha, one.sigma) for one in looks)
        found[f"input signal {part}"] = Measure(offs[0], reach / (POINT * math.sqrt(n)))
        for i, name in enumerate(("noise", *(f"std {s:g}" for s in SPREADS)), start=1):
            found[f"input {name} {part}"] = Measure(offs[i], sizes[i] / math.sqrt(2 * n))
    return found


def _off(look: Look) -> list[float]:
    """Signal in units of the state; noise and spreads as :func:`off_exact`."""
    means, variances = look.mean.split(COPIES), look.variance.split(COPIES)
    size = math.hypot(look.alpha, look.sigma)
    signal = (float(means[0].mean()) / POINT - look.alpha) / size
    exact = [math.hypot(look.alpha * spread, look.sigma) for spread in (0.0, *SPREADS)]
    ratios = (float(v.mean()) ** 0.5 / e for v, e in zip(variances, exact, strict=True))
    return [signal, *map(off_exact, ratios)]


def off_exact(ratio: float) -> float:
    """Of a standard deviation over the exact one: less 1 above 1, its logarithm below.

    A ratio 1 + c K^-p then never looks as if it lasted, however large c is. Above 1 a logarithm
    would flatten it; below, the ratio itself has a floor.
    """
    return ratio - 1.0 if ratio > 1.0 else math.log(max(ratio, _NONE))


def ratio_of(off: float) -> float:
    """The ratio that is so far :func:`off_exact`."""
    return 1.0 + off if off > 0.0 else math.exp(off)


def dependence(batches: Iterable[Sequence[Tensor]]) -> Measure:
    """Variance of batches' means, times their size, over the variance within, less 1.

    Parameters
    ----------
    batches : for every K the batches of samples, each (N, d) of independent coordinates
    """
    ratios = []
    for one in batches:
        centres = torch.stack([part.mean(0) for part in one])
        inside = torch.stack([part.var(0) for part in one]).mean(0).clamp(min=_NONE)
        ratios.append((centres.var(0) * len(one[0]) / inside)[COPIES:])  # without the point
    values = torch.cat(ratios)
    freedom = len(values) * (len(one) - 1)
    ratio = float(values.mean())
    return Measure(ratio - 1, math.sqrt(2 / freedom))


def independent_noises(looks: Sequence[Look]) -> tuple[int, int]:
    """How many independent noises are in the inputs at the point, and how many inputs were kept."""
    states = [look.x[:, :COPIES].reshape(-1) for look in looks if look.x is not None]
    noises = torch.stack([(state - state.mean()) / state.std() for state in states])
    spectrum = torch.linalg.eigvalsh(noises @ noises.T / noises.shape[1])
    return int((spectrum > _ALIKE * len(states)).sum()), len(states)


def unused_answers(looks: Sequence[Look]) -> tuple[int, int]:
    """Of how many questions the next input depends on the answer before, and not on theirs.

    The next input is regressed on all inputs and answers so far, with coefficients c of the newest
    answer and c' of that before. The newest is used if |c| is more than four errors, and not if it
    is, within four errors, less than half of |c'|; else it is not judged.

    Returns
    -------
    (int, int)
        Those, and how many could be judged.
    """
    kept = [(look.x.reshape(-1), look.D.reshape(-1)) for look in looks
            if look.x is not None and look.D is not None]  # fmt: skip
    unused = judged = 0
    for j in range(1, len(kept) - 1):
        known = torch.stack([part for pair in kept[: j + 1] for part in pair], 1)
        y = kept[j + 1][0]
        newest, before = _coefficient(y, known, -1), _coefficient(y, known, -3)
        if newest is None:
            continue
        least = 0.0 if before is None else abs(before.value) - 4 * before.error
        ignored = abs(newest.value) + 4 * newest.error < least / 2
        unused += ignored
        judged += ignored or abs(newest.value) > 4 * newest.error
    return unused, judged


def _coefficient(y: Tensor, known: Tensor, column: int) -> Measure | None:
    """Of one column in the regression of y on all; None where the others say it already."""
    others = torch.cat([known[:, :column], known[:, column:][:, 1:]], 1)
    own = known[:, column]
    rest = own - _fitted(own, others)
    if float(rest.norm()) < 1e-5 * float(own.norm()):
        return None
    value = float(y @ rest / (rest @ rest))
    left = y - _fitted(y, known)
    return Measure(value, float(left.norm() / rest.norm()) / math.sqrt(len(y)))


def _fitted(y: Tensor, known: Tensor) -> Tensor:
    basis, sizes, _ = torch.linalg.svd(known, full_matrices=False)
    basis = basis[:, sizes > 1e-9 * sizes[0]]
    return basis @ (basis.T @ y)
