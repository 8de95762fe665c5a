"""What is wrong with a sampler: errors that do not vanish as K grows, and what causes them.

A right sampler has an error, too, of discretisation, which falls at least as K^(-1/2). If the error
e at the largest K is b + c K^-p with p >= 1/2 and e' is that at a quarter of K, then b lies
between e and 2 e - e' (between e and 3.4 e - 2.4 e' for half of K). An error lasts if all of these,
with their uncertainty, are beyond the tolerance, on one side. What a finer grid could explain is
not called a fault, then, but for an error that is not of its order yet at the K compared, as one
that changes its sign there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import NormalDist

from ...measures import Measure
from .figures import PARTS
from .laws import CLOSE

_ORDER = 0.5
_FAR = 4  # the largest K over that with which it is compared


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong.

    Attributes
    ----------
    kind : str
        "dependent", "reused", "stale", "time", "lost", "scale", "noise", "left", "narrow", "wide",
        "bias", "correlated" or "shape".
    transitions : int
        K at which `error` was measured.
    error : Measure
        Of which figure, and how large, says `text`.
    """

    kind: str
    transitions: int
    error: Measure
    text: str

    def __str__(self) -> str:
        size = f"{self.error.value:+.3g} ± {self.error.error:.1g}"
        return f"{self.text} (K = {self.transitions}: {size})"


@dataclass(frozen=True)
class Evidence:
    """All that was measured: for every K its figures, and what is no figure of one K.

    Attributes
    ----------
    figures : mapping of K to figures by name
    dependence : Measure
        Of particles of one batch: 0 where they are independent.
    repeated : bool
        Other generators gave the same samples.
    unused : (int, int)
        Questions whose answer was not used, and those that could be judged.
    noises : (int, int)
        Independent noises in so many inputs.
    """

    figures: Mapping[int, Mapping[str, Measure]]
    dependence: Measure
    repeated: bool
    unused: tuple[int, int]
    noises: tuple[int, int]


def references(counts: Sequence[int]) -> list[int]:
    """The K with which the largest is compared: from a quarter of it, else the nearest to that."""
    *smaller, last = sorted(counts)
    near = [k for k in smaller if _FAR * k >= last]
    return near or smaller[-1:]


def lasting(
    figures: Mapping[int, Mapping[str, Measure]], name: str, tolerance: float, z: float
) -> Measure | None:
    """The error at the largest K if it lasts, else None."""
    last = max(figures)
    end = figures[last].get(name)
    starts = {k: figures[k][name] for k in references(list(figures)) if name in figures[k]}
    if end is None or not starts:
        return None
    sign = math.copysign(1.0, end.value)
    bounds = [sign * end.value - z * end.error]
    for k, start in starts.items():
        share = (k / last) ** _ORDER
        limit = (end.value - share * start.value) / (1 - share)
        error = math.hypot(end.error, share * start.error) / (1 - share)
        bounds.append(sign * limit - z * error)
    return end if min(bounds) > tolerance else None


def order(figures: Mapping[int, Mapping[str, Measure]], names: Sequence[str]) -> float | None:
    """p of an error K^-p, of the largest of these at each K, while it is three errors large."""
    seen = []
    for k in sorted(figures):
        worst = max((figures[k][n] for n in names if n in figures[k]), key=lambda m: abs(m.value))
        if abs(worst.value) > 3 * worst.error:
            seen.append((math.log(k), math.log(abs(worst.value))))
    if len(seen) < 2:
        return None
    (low, first), (high, last) = seen[0], seen[-1]
    return (first - last) / (high - low)


def diagnose(evidence: Evidence, tolerance: float, level: float) -> list[Fault]:
    """What is wrong, causes before their effects; nothing if nothing is.

    Parameters
    ----------
    tolerance : float
        Errors that last are allowed up to here, relative to the exact standard deviation.
    level : float
        Probability of a false alarm, over all figures together, where errors are as above and none
        that lasts is larger than `tolerance`.
    """
    figures = evidence.figures
    last = max(figures)
    names = sorted({name for one in figures.values() for name in one})
    z = NormalDist().inv_cdf(1 - level / (len(names) + 1))
    if evidence.repeated:
        text = "reused noise: other generators give the same samples; the seed is set inside"
        return [Fault("dependent", last, evidence.dependence, text)]
    if evidence.dependence.value - z * evidence.dependence.error > 0.25:
        text = (
            "reused noise: samples of a batch depend on one another, so that no other figure has a "
            "known error; one noise drawn for several. Variance of a batch's mean over that of "
            "independent samples, less 1"
        )
        return [Fault("dependent", last, evidence.dependence, text)]
    lasts: dict[str, Measure] = {}
    for name in names:
        allowed = CLOSE if name == "energy distance" else tolerance
        if found := lasting(figures, name, allowed, z):
            lasts[name] = found
    return [*_causes(evidence, lasts, last), *_ends(lasts, last)]


def _causes(evidence: Evidence, lasts: Mapping[str, Measure], last: int) -> list[Fault]:
    """Of what the network was asked and what was made of it."""
    found = []
    unused, judged = evidence.unused
    if judged >= 2 and unused >= 0.8 * judged:
        share = Measure(unused / judged, 0.0)
        text = (
            "stale D: the next state depends on the network's answer before the newest, and not on "
            "the newest; share of the questions that were judged"
        )
        found.append(Fault("stale", min(evidence.figures), share, text))
    for part in ("middle", "late", "early"):
        names = (f"input signal {part}", f"input noise {part}")
        if any(name in lasts for name in names):
            signal, noise = (evidence.figures[last][name] for name in names)
            noises, states = evidence.noises
            found.append(_of_inputs(part, signal, noise, noises == 2 and states > 4, last))
            break
    return found


def _of_inputs(part: str, signal: Measure, noise: Measure, reused: bool, last: int) -> Fault:
    """Which of the two is off, and to which side, says what was done."""
    where = f"inputs of the network where α/σ is {_spelled(part)}"
    off = [abs(m.value) - 4 * m.error > abs(other.value) / 4 for m, other in
           ((signal, noise), (noise, signal))]  # fmt: skip
    side = [math.copysign(1.0, m.value) for m in (signal, noise)]
    if off[1] and reused:
        text = f"reused noise: the steps of a sample share one noise; noise of {where}"
        return Fault("reused", last, noise, text)
    if off == [False, True]:
        much = "more" if side[1] > 0 else "less"
        text = (
            f"the noise does not add up: {where} have {much} of it than the time told says, and "
            "the right signal; the noise added does not fit what is kept (γ² σ² + σ̄² is not σ'²: a "
            "wrong ρ)"
        )
        return Fault("noise", last, noise, text)
    if off == [True, True] and side == [-1, -1]:
        text = (
            f"variance lost on the way: {where} have too little signal and noise; what is kept of "
            "x is missing (an inner state begun with ε in the place of γ x + ε)"
        )
        return Fault("lost", last, noise, text)
    if off[0] and (not off[1] or side == [1, 1]):
        much = "much" if side[0] > 0 else "little"
        noisy = "too much noise" if off[1] else "the right noise"
        text = f"wrong scale: {where} have too {much} signal for the time told, and {noisy}"
        return Fault("scale", last, signal, text)
    text = (
        f"wrong time: {where} have the signal and noise of another time than is told (a shift "
        "done twice, or on one side only)"
    )
    return Fault("time", last, max(signal, noise, key=lambda m: abs(m.value)), text)


def _spelled(part: str) -> str:
    low, high = PARTS[part]
    return f"above {low:g}" if math.isinf(high) else f"{low:g} to {high:g}"


def _ends(lasts: Mapping[str, Measure], last: int) -> list[Fault]:
    """Of the samples themselves."""
    found = []
    if left := lasts.get("noise left"):
        text = (
            "noise left: samples of a point have this standard deviation at every K; the last step "
            "ends before data, or adds noise"
        )
        found.append(Fault("left", last, left, text))
    stds = [n for n in lasts if n.startswith(("std ", "modes std "))]
    if stds and not (left and all(lasts[n].value > 0 for n in stds)):
        worst = max(stds, key=lambda n: abs(lasts[n].value))
        kind = "narrow" if lasts[worst].value < 0 else "wide"
        text = {
            "narrow": f"variance lost: {_data(worst)} come out too narrow, however many steps; "
            "a mean is put where a sample of the posterior belongs, or noise is missing",
            "wide": f"variance added: {_data(worst)} come out too wide, however many steps",
        }[kind]
        found.append(Fault(kind, last, lasts[worst], f"{text}; error of the standard deviation"))
    means = [n for n in lasts if n.startswith(("mean ", "modes mean "))]
    if means:
        worst = max(means, key=lambda n: abs(lasts[n].value))
        text = f"bias: the mean of {_data(worst)} is off by so many standard deviations"
        found.append(Fault("bias", last, lasts[worst], text))
    for name in ("correlation", "modes correlation"):
        if name in lasts:
            text = (
                f"coordinates that are {'in' * (name == 'correlation')}dependent correlate wrongly"
            )
            found.append(Fault("correlated", last, lasts[name], text))
    if not found and "energy distance" in lasts:
        text = "shape: moments are right, the law of a mixture is not; relative energy distance"
        found.append(Fault("shape", last, lasts["energy distance"], text))
    if not found and (rest := [n for n in lasts if n.startswith("input std")]):
        worst = max(rest, key=lambda n: abs(lasts[n].value))
        text = f"marginals on the way are off ({worst[6:]}), those at the end are not"
        found.append(Fault("wide", last, lasts[worst], text))
    return found


def _data(name: str) -> str:
    spread = name.rpartition(" ")[2]
    return "data of four modes" if name.startswith("modes") else f"data of spread {spread}"
