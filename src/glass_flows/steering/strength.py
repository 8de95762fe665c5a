"""How strongly a run steers: λ for a stated strength, and what a λ came to.

The law p(z) exp(λ r(z)) / Z that is steered to is

    KL(λ) = λ E_λ[r] - log Z                                                              (1)

nats away from the model's own p, whatever the reward's scale; the best of N samples is log N -
(N - 1)/N away (Beirami et al. 2024, arXiv 2401.01879). ``scale="auto"`` is the λ at which (1) is so
much, found from the rewards of a few plain samples (:mod:`.pilot`).
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from typing import Any, Union

import torch
from torch import Tensor

from ..errors import InvalidArgument, shown
from ..settings import NOT_NEGATIVE, POSITIVE, Checked, Object, setting
from .values import scaled
from .weights import effective_size

NATS = 1.2
"""The strength of "auto", in nats: about that of the best of 8 samples, log 8 - 7/8 = 1.20."""
_TOP, _WIDTH = 6, 0.7  # best rewards, and of their mean excess over the next: so the tail goes on
_SMOOTH = 0.01, 0.9  # the least and most of the variance: with some, every strength is reached
_SHOWN = 0.4  # of log n: the strength that n samples tell of, whose upper tail is cut
_ROUNDING = 1e-6  # of its size, within which a reward is the same
_NOTHING = 0.1  # nats, under which a run has as good as not steered
_FAR = 3.0  # times λ must be, at least, for another strength to be advised


@dataclass(frozen=True, repr=False)
class Auto(Checked):
    """λ for a stated strength, from the spread of the reward in a small pilot of plain samples.

    Parameters
    ----------
    nats : float, optional
        KL divergence of the tilted law from the model's. None is the reward's own λ
        (:attr:`glass_flows.rewards.Reward.steering_scale`) if it has one, else 1.2 nats.
    """

    nats: float | None = setting(None, replace(POSITIVE, optional=True))

    def __repr__(self) -> str:
        """As its text, which says the same."""
        return repr(SCALE.write(self))


Scale = Union[float, Auto]


class _ScaleKind(Object):
    """A number as text is one of a command line only."""

    def read(self, name: str, given: object) -> Scale:
        if isinstance(given, str) and not given.startswith("auto"):
            raise InvalidArgument(f"{name} must be {self.allowed}, got {shown(given)}")
        found: Scale = super().read(name, given)
        return found


SCALE = _ScaleKind(
    "scale",
    "a finite number >= 0, 'auto' or 'auto:NATS'",
    heads={"auto": Auto},
    numbers=NOT_NEGATIVE,
)


def number(scale: Scale) -> float:
    """λ, once it is a number."""
    if isinstance(scale, Auto):
        raise InvalidArgument(
            "scale='auto' is found in a pilot by steer, refine, steer_pipeline and the other calls "
            "that run a method; here give a number"
        )
    return scale


# --- λ for a strength -----------------------------------------------------------------------------


def spread(rewards: Tensor) -> Tensor:
    """Deviations from the mean of each population that has two rewards or more, of (P, n), pooled.

    They are widened by √(n/(n - 1)), so that their mean square is the variance. Those that are
    -inf are left out. Raises :class:`InvalidArgument`, with the reason, where nothing is spread.
    """
    rewards, known = rewards.double(), torch.isfinite(rewards)
    n = known.sum(1, keepdim=True, dtype=torch.float64)
    means = torch.where(known, rewards, 0.0).sum(1, keepdim=True) / n
    e = ((rewards - means) * (n / (n - 1.0)).sqrt())[known & (n > 1.0)]
    if not len(e):
        raise InvalidArgument("all but one at most are excluded (-inf)")
    size = rewards[known].abs().max()
    if float(e.abs().max()) <= _ROUNDING * float(size):
        raise InvalidArgument("all are the same")
    return e


def scale_for(rewards: Tensor, nats: float) -> float:
    """λ at which the tilted law is so many nats from the one that rewards (P, n) were drawn by.

    (1) of the rewards themselves, each blurred by a Gaussian, whose log Z is known, of the width
    that the upper tail has at its end: where the best rewards lie together nothing better is
    hidden, and else n samples do not show the tail that the tilted law is made of. What they cannot
    tell of, beyond 0.4 log n nats, is taken to grow as it does for a Gaussian, with λ². Populations
    count by their deviations from their own means. Three digits are kept: rewards of another batch
    size or device, which round differently, give the same λ.
    """
    e = spread(rewards)
    width, top = float(e.square().mean().sqrt()), e.sort(descending=True).values
    best = min(_TOP, max(1, len(e) // 4))
    blur = _WIDTH * float(top[:best].mean() - top[best]) / width
    least, most = _SMOOTH
    smooth = min(max(blur**2, least), most)
    standard = math.sqrt(1.0 - smooth) * e / width
    told_of = min(nats, _SHOWN * math.log(len(e)))
    low, high = 0.0, math.sqrt(2.0 * told_of / smooth)  # there the Gaussian part alone suffices
    for _ in range(60):
        middle = (low + high) / 2
        gained = smooth * middle**2 / 2 + float(_divergence(middle * standard))
        low, high = (middle, high) if gained < told_of else (low, middle)
    return float(f"{low / width * math.sqrt(nats / told_of):.3g}")


def _divergence(tilts: Tensor) -> Tensor:
    """(1) of equally likely samples with these λ r, (..., n): log n less the weights' entropy."""
    weights = torch.softmax(tilts, -1)
    return (weights * tilts).sum(-1) - torch.logsumexp(tilts, -1) + math.log(tilts.shape[-1])


def spent(scale: float, rewards: Tensor, log_weights: Tensor, log_evidence: Tensor) -> Tensor:
    """(1) of each population, (P,), from rewards and log-weights (P, N) and log-evidence (P,)."""
    weights = torch.softmax(log_weights, 1)
    tilts = torch.where(weights > 0.0, scaled(scale, rewards.double()), 0.0)
    return (weights * tilts).sum(1) - log_evidence


# --- what is told ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Found:
    """What ``scale="auto"`` has found.

    Attributes
    ----------
    scale : float
        λ.
    nats : float
        The strength that was asked for; NaN where the reward brought its own λ, 0 where λ has no
        say.
    spread : float
        Standard deviation of the pilot's rewards, within populations; NaN without a pilot.
    samples, excluded, evaluations : int
        Of the pilot: plain samples, those of them with a reward of -inf, network evaluations.
    """

    scale: float
    nats: float = math.nan
    spread: float = math.nan
    samples: int = 0
    excluded: int = 0
    evaluations: int = 0

    def tensor(self) -> Tensor:
        """For the state of a run."""
        return torch.tensor(astuple(self), dtype=torch.float64)

    @classmethod
    def of(cls, tensor: Tensor) -> Found:
        """Inverse of :meth:`tensor`."""
        scale, nats, width, *counts = tensor.tolist()
        return cls(scale, nats, width, *map(int, counts))

    def __str__(self) -> str:
        if not self.samples:
            return "it chooses nothing here" if self.nats == 0.0 else "the reward's own"
        excluded = f", {self.excluded} of them excluded (-inf)" * bool(self.excluded)
        return f"for {self.nats:.3g} nats by {self.samples} plain samples{excluded}"


@dataclass(frozen=True)
class Strength:
    """How strongly a run has steered, in one line as text.

    Attributes
    ----------
    scale : float
        λ.
    particles : int
        N of each population.
    nats : list of float
        KL spent in each population, λ E[r] - log Z by its weights and evidence; NaN where there are
        none. An estimate from N particles.
    best_of : float
        What the best of N spends, log N - (N - 1)/N.
    ess : list of float
        Effective sample size at the end in each population; empty without weights.
    ancestors : list of int
        Particles of the first boundary from which those that are returned descend.
    found : Found or None
        Of ``scale="auto"``.
    advice : str
        What to change, if little came of the run; else "".
    """

    scale: float
    particles: int
    nats: list[float]
    best_of: float
    ess: list[float]
    ancestors: list[int]
    found: Found | None = None
    advice: str = ""

    @classmethod
    def of(
        cls,
        scale: float,
        particles: int,
        roots: Tensor,
        weighed: tuple[Tensor, Tensor, Tensor] | None,
        *,
        found: Found | None = None,
        tilts: bool = True,
        remedy: str = "",
    ) -> Strength:
        """From the particles of the beginning (P, n) that those returned come from, and what the
        weights say: rewards and log-weights (P, N) and the log-evidence (P,).

        `tilts` says whether λ has a say in who goes on, `remedy` what helps where all images share
        an ancestor.
        """
        (P, count), N = roots.shape, particles
        distinct = [len(set(row)) for row in roots.tolist()]
        nats, ess, advice = [math.nan] * P, list[float](), ""
        if weighed is not None:
            nats = spent(scale, *weighed).tolist()
            ess = effective_size(weighed[1]).tolist()
            advice = _too_weak(scale, nats, weighed[0]) if tilts and N > 1 else ""
        if count > 1 and 2 * distinct.count(1) > P:
            where = "" if P == 1 else f"in {distinct.count(1)} of {P} populations "
            advice = f"{where}all images share one ancestor: {remedy}"
        return cls(scale, N, nats, math.log(N) - (N - 1) / N, ess, distinct, found, advice)

    @property
    def short(self) -> str:
        """λ, and the means over populations of what was spent and of the ancestors."""
        told = [f"λ = {self.scale:.3g}"]
        if not math.isnan(mean := _mean(self.nats)):
            told.append(f"{mean:.2f} nats")
        return ", ".join([*told, f"{_mean(self.ancestors):.3g} of {self.particles} ancestors"])

    def __str__(self) -> str:
        N = self.particles
        told = [f"λ = {self.scale:.3g}" + (f" ({self.found})" if self.found else "")]
        if not math.isnan(mean := _mean(self.nats)):
            known = sum(not math.isnan(one) for one in self.nats)
            some = f" in {known} of {len(self.nats)} populations" if known < len(self.nats) else ""
            told.append(f"KL spent {mean:.2f} nats{some} (best of {N}: {self.best_of:.2f})")
        else:
            told.append(f"KL spent not known (best of {N}: {self.best_of:.2f} nats)")
        if self.ess:
            told.append(f"ESS {_mean(self.ess):.1f} of {N}")
        told.append(f"{_mean(self.ancestors):.3g} of {N} ancestors")
        return ", ".join(told) + (f"; {self.advice}" if self.advice else "")

    def as_json(self) -> dict[str, Any]:
        return {**asdict(self), "told": str(self)}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Strength:
        """Inverse of :meth:`as_json`, also where null stands for NaN."""
        given = {name: value for name, value in data.items() if name != "told"}
        if (found := given.get("found")) is not None:
            numbers: dict[str, Any] = {k: math.nan if v is None else v for k, v in found.items()}
            given["found"] = Found(**numbers)
        given["nats"] = [math.nan if one is None else float(one) for one in given["nats"]]
        return cls(**given)


def _too_weak(scale: float, nats: Sequence[float], rewards: Tensor) -> str:
    """Advice where next to nothing was spent, and another λ would spend more."""
    if scale == 0.0 or not _mean(nats) < _NOTHING:
        return ""
    try:
        other = scale_for(rewards, NATS)
    except InvalidArgument as reason:
        return f"nothing was steered: of the rewards {reason}"
    return f"nothing was steered: try scale ≈ {other:.2g}" if other >= _FAR * scale else ""


def _mean(values: Sequence[float]) -> float:
    """Over those that are known; NaN where none is."""
    known = [value for value in values if not math.isnan(value)]
    return sum(known) / len(known) if known else math.nan
