"""The transition kernel p(x_t' | x_t, z) and the inner flow that samples it, as scalars.

Given data z, x_t' = γ x_t + ᾱ z + σ̄ ε with γ = ρ σ'/σ, ᾱ = α' - γ α, σ̄ = σ' √(1 - ρ²), where ρ is
the correlation of the noises of x_t and x_t' (GLASS Flows, arXiv 2509.25170, section 4; every ρ in
[-1, 1] preserves the marginals of an exact model).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from numbers import Real
from typing import Any, Protocol, Union, runtime_checkable

from ..errors import InvalidArgument, check_name, plain, shown
from ..paths import Path
from ..registry import Registry
from ..settings import NOT_NEGATIVE, SHARE, Checked, setting

__all__ = [
    "CPS",
    "DDIM",
    "RHO_RULES",
    "Ancestral",
    "Ends",
    "Kernel",
    "Precise",
    "Rho",
    "resolve_rho",
]

Rho = Union[float, str, "DDIM", Callable[[float, float], float], None]


@dataclass(frozen=True)
class Ends:
    """The two ends of a transition; t' = 1 means data (α' = 1, σ' = 0) on every path."""

    t: float
    t_next: float
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float

    @classmethod
    def of(cls, path: Path, t: float, t_next: float) -> Ends:
        if t_next == 1.0:
            return cls(t, t_next, path.alpha(t), path.sigma(t), 1.0, 0.0)
        return cls(t, t_next, path.alpha(t), path.sigma(t), path.alpha(t_next), path.sigma(t_next))

    @property
    def amplitude(self) -> float:
        return self.alpha / self.sigma

    @property
    def rho_ddpm(self) -> float:
        """a/a', the correlation of DDPM ancestral sampling (0 when t' is data)."""
        return self.amplitude * self.sigma_next / self.alpha_next


@dataclass(frozen=True)
class Kernel:
    """x_t' = γ x_t + ᾱ z + σ̄ ε."""

    gamma: float
    alpha_bar: float
    sigma_bar: float

    @classmethod
    def of(cls, ends: Ends, rho: float) -> Kernel:
        gamma = rho * ends.sigma_next / ends.sigma
        return cls(
            gamma=gamma,
            alpha_bar=ends.alpha_next - gamma * ends.alpha,
            sigma_bar=ends.sigma_next * math.sqrt((1.0 - rho) * (1.0 + rho)),
        )


@dataclass(frozen=True)
class DDIM(Checked):
    """The ρ for which one inner evaluation is DDIM(η): σ̄ = η times DDPM's, ρ >= 0.

    η = 0 is deterministic DDIM (ρ = 1), η = 1 DDPM ancestral sampling (Song et al. 2021, eq. 16).
    """

    eta: float = setting(0.0, SHARE)

    def rho(self, ends: Ends) -> float:
        noise = self.eta**2 * (1.0 - ends.rho_ddpm**2)
        return math.sqrt(1.0 - noise)


@dataclass(frozen=True)
class CPS(Checked):
    """The ρ for which one inner evaluation is coefficients-preserving sampling: cos(η π/2).

    η = 0 is deterministic, η = 1 renews the noise (Wang et al. 2025, arXiv 2509.05952).
    """

    eta: float = setting(1.0, SHARE)

    def rho(self, ends: Ends) -> float:
        return max(0.0, math.cos(self.eta * math.pi / 2))


@dataclass(frozen=True)
class Precise(Checked):
    """(a/a')^(η²/2): the probability-flow ODE with the exact Ornstein-Uhlenbeck noise of level η.

    η = 0 is deterministic, η = √2 DDPM ancestral sampling.
    """

    eta: float = setting(1.0, NOT_NEGATIVE)

    def rho(self, ends: Ends) -> float:
        return float(ends.rho_ddpm ** (self.eta**2 / 2))


@dataclass(frozen=True)
class Ancestral(Checked):
    """The ρ for which one inner evaluation is ancestral Euler of noise level η.

    On the linear path that for flows: on the ODE to σ_down = σ' (1 + (σ'/σ - 1) η), and with noise
    from there to σ', so that ρ = a'/a_down. Elsewhere k-diffusion's on x/α, which is DDIM(η).
    η = 0 is deterministic; η = 1 is DDPM elsewhere, and has less noise on the linear path.
    """

    eta: float = setting(1.0, SHARE)

    def rho(self, ends: Ends) -> float:
        if abs(ends.alpha + ends.sigma - 1) + abs(ends.alpha_next + ends.sigma_next - 1) > 1e-12:
            return DDIM(self.eta).rho(ends)
        share = 1 + (ends.sigma_next / ends.sigma - 1) * self.eta  # σ_down / σ'
        return share * ends.alpha_next / (1 - share * ends.sigma_next)


def _ddpm(ends: Ends) -> float:
    return ends.rho_ddpm


def _renoise(ends: Ends) -> float:
    return 0.0


def _ode(ends: Ends) -> float:
    raise InvalidArgument(
        "rho='ode' replaces the transition by the probability-flow ODE, which has no "
        "correlation; plan it with the solver 'default' or 'first-order'"
    )


def _is_rule(name: str, thing: Any) -> Any:
    if not callable(thing) or (isinstance(thing, type) and not hasattr(thing, "rho")):
        raise InvalidArgument(
            f"the rho rule {name!r} must be a function of the transition's ends, or a frozen "
            f"dataclass with such a method rho(ends), got {shown(thing)}"
        )
    return thing


RHO_RULES: Registry[Any] = Registry(
    "rho_rules",
    {
        "ddpm": _ddpm,
        "ode": _ode,
        "ddim": DDIM,
        "cps": CPS,
        "precise": Precise,
        "ancestral": Ancestral,
        "renoise": _renoise,
    },
    _is_rule,
)
"""ρ by name: functions of a transition's ends, and classes with a method `rho(ends)`."""


@runtime_checkable
class _Rule(Protocol):
    """An instance of a class among the rules."""

    def rho(self, ends: Ends) -> float: ...


def resolve_rho(rule: Rho, ends: Ends) -> float:
    """The number ρ that `rule` gives for one transition, checked to lie in [-1, 1]."""
    given: Any = rule
    if isinstance(rule, str):
        given = RHO_RULES[check_name("rho rule", rule, RHO_RULES)](ends)
    elif isinstance(rule, _Rule):
        given = rule.rho(ends)
    elif callable(rule):
        given = rule(ends.t, ends.t_next)
    number = plain(given)
    real = isinstance(number, Real) and not isinstance(number, bool)
    rho = float(number) if real and abs(number) <= 1.0 else math.nan
    if not -1.0 <= rho <= 1.0:
        raise InvalidArgument(
            f"rho must lie in [-1, 1], got {shown(given)} for the transition {ends.t:.6g} -> "
            f"{ends.t_next:.6g}. Allowed: a number, a rule ({', '.join(RHO_RULES)}), such as "
            "'ddpm' or DDIM(eta), a callable of (t, t'), or a list with one per transition"
        )
    return rho
