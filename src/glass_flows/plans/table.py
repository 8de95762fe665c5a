"""A sampler as a table of numbers: the grammar, its self-check, its print and its JSON.

A transition of the table takes x = x_t to x_t'. Its registers are

    x       the transition's start
    u       the inner state
    eps     standard normal noise, drawn once per transition
    D       the newest denoiser output
    D_prev  the one before

and it runs as (`glass_flows.execute` is this, with tensors)

    y = input(x, eps)
    for row in rows:
        D_prev, D = D, denoiser(y, row.time)
        u = row.update(x, u, eps, D, D_prev)      # a row without update keeps u
        y = row.emit(x, u, eps, D, D_prev)        # the next network input; at last, x_t'

Every coefficient is a float64 known in advance: ODE, DDIM, DDPM, Euler-Maruyama, the paper's GLASS
and ours differ in their numbers only.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from itertools import pairwise
from typing import Any

from ..errors import InvalidArgument, PlanError, check_name, shown
from ..paths import Path, from_config

__all__ = ["Mix", "Row", "Table", "Transition"]

_FORMAT, _VERSION = "glass-flows table", 1
_TOLERANCE = 1e-8


@dataclass(frozen=True)
class Mix:
    """A linear combination of the registers."""

    x: float = 0.0
    u: float = 0.0
    eps: float = 0.0
    D: float = 0.0
    D_prev: float = 0.0

    def terms(self) -> tuple[tuple[str, float], ...]:
        """(register, coefficient) for every coefficient that is not zero."""
        return tuple((name, value) for name, value in vars(self).items() if value != 0.0)

    def __str__(self) -> str:
        return " ".join(f"{value:+.6g} {name}" for name, value in self.terms()) or "0"


@dataclass(frozen=True)
class Row:
    """One network evaluation at `time` and the two linear updates that follow it."""

    time: float
    update: Mix | None
    emit: Mix


@dataclass(frozen=True)
class Transition:
    """x_t → x_t' in `len(rows)` network evaluations.

    Attributes
    ----------
    t, t_next : float
        Start and end in [0, 1]; an end of 1 is data.
    rho : float or None
        Correlation of the noises of x_t and x_t'; None for ODE and Euler-Maruyama steps.
    gamma, alpha_bar, sigma_bar : float
        Kernel: x_t' = γ x_t + ᾱ z + σ̄ ε given z. An ODE step has γ = 0 and σ̄ = σ'.
    alpha, sigma, alpha_next, sigma_next : float
        The path at both ends, as planned: α = 0 for a start from pure noise.
    input : Mix
        First network input, from x (and eps, where the solver does not start at q = 0).
    law : float or None
        The table is exact for data N(m, law² I) for every m; 0 is a point mass, None no law.
    """

    t: float
    t_next: float
    rho: float | None
    gamma: float
    alpha_bar: float
    sigma_bar: float
    alpha: float
    sigma: float
    alpha_next: float
    sigma_next: float
    input: Mix
    rows: tuple[Row, ...]
    law: float | None
    note: str = ""

    @property
    def evaluations(self) -> int:
        return len(self.rows)

    @property
    def stochastic(self) -> bool:
        """Whether the transition draws noise, so that copies of a particle part in it."""
        mixes = [self.input, *(m for row in self.rows for m in (row.update, row.emit) if m)]
        return any(mix.eps != 0.0 for mix in mixes)

    @property
    def free_value(self) -> bool:
        """Whether the first evaluation is D_t(x_t) itself, before any randomness."""
        return self.input == Mix(x=1.0) and self.rows[0].time == self.t

    def verify(self, path: Path) -> None:
        """Check the numbers; raise :class:`PlanError` if they are not what they claim.

        All must be finite. For data N(m, law² I), pushed through the table in closed form, every
        network input must have mean α* m and variance α*² law² + σ*² at its query time t* (for a
        point mass: data coefficient α* and noise power σ*²), and x_t' its exact mean, variance and
        covariance with x_t.
        """
        for mix in (self.input, *(m for row in self.rows for m in (row.update, row.emit) if m)):
            if not all(math.isfinite(value) for value in vars(mix).values()):
                raise PlanError(f"transition {self.t:.6g} -> {self.t_next:.6g}: {mix} not finite")
        self._verify_order()
        self._verify_ends(path)
        if self.law is None:
            return
        spread = self.law
        # A register is (coefficient of m, of the data's deviation, of x_t's noise, of eps).
        zero = (0.0, 0.0, 0.0, 0.0)
        start = (self.alpha, self.alpha * spread, self.sigma, 0.0)
        registers: dict[str, tuple[float, ...]] = {
            "x": start,
            "u": zero,
            "eps": (0.0, 0.0, 0.0, 1.0),
            "D": zero,
            "D_prev": zero,
        }

        def mixed(mix: Mix) -> tuple[float, ...]:
            terms = mix.terms()
            return tuple(sum(c * registers[r][i] for r, c in terms) for i in range(4))

        y = mixed(self.input)
        for number, row in enumerate(self.rows):
            alpha, sigma = path.alpha(row.time), path.sigma(row.time)
            power = alpha**2 * spread**2 + sigma**2
            self._agree(f"row {number}: mean of the network input", y[0], alpha)
            self._agree(f"row {number}: variance of the network input", _square(y), power)
            gain = spread**2 * alpha / power
            D = tuple(gain * c for c in y)
            registers |= {"D_prev": registers["D"]}
            registers |= {"D": (D[0] + sigma**2 / power, *D[1:])}
            if row.update is not None:
                registers |= {"u": mixed(row.update)}
            y = mixed(row.emit)
        before = self.alpha**2 * spread**2 + self.sigma**2
        after = self.alpha_next**2 * spread**2 + self.sigma_next**2
        shared = (
            math.sqrt(before * after)
            if self.rho is None
            else self.alpha * self.alpha_next * spread**2 + self.rho * self.sigma * self.sigma_next
        )
        self._agree("mean of the end", y[0], self.alpha_next)
        self._agree("variance of the end", _square(y), after)
        covariance = sum(a * b for a, b in zip(y[1:], start[1:]))
        self._agree("covariance of start and end", covariance, shared, math.sqrt(before * after))

    def _verify_order(self) -> None:
        """No register is read before it holds something."""
        held = {"x", "eps"}

        def read(mix: Mix, where: str) -> None:
            for register, _ in mix.terms():
                if register not in held:
                    raise PlanError(f"{where} reads {register}, which holds nothing yet")

        read(self.input, "the first network input")
        for number, row in enumerate(self.rows):
            held |= {"D"} if number == 0 else {"D", "D_prev"}
            if row.update is not None:
                read(row.update, f"the update of row {number}")
                held.add("u")
            read(row.emit, f"row {number}")

    def _verify_ends(self, path: Path) -> None:
        """The ends are the path's (t' = 1 is data, α = 0 a pure start), the kernel is that of ρ."""
        if not 0.0 <= self.t < self.t_next <= 1.0:
            raise PlanError(
                f"a transition goes from t to t' > t in [0, 1]: {self.t} -> {self.t_next}"
            )
        data = self.t_next == 1.0
        expected = {
            "alpha": path.alpha(self.t) if self.alpha else 0.0,
            "sigma": path.sigma(self.t),
            "alpha_next": 1.0 if data else path.alpha(self.t_next),
            "sigma_next": 0.0 if data else path.sigma(self.t_next),
        }
        if self.rho is not None:
            gamma = self.rho * self.sigma_next / self.sigma
            expected |= {
                "gamma": gamma,
                "alpha_bar": self.alpha_next - gamma * self.alpha,
                "sigma_bar": self.sigma_next * math.sqrt((1.0 - self.rho) * (1.0 + self.rho)),
            }
        for name, value in expected.items():
            if not abs(getattr(self, name) - value) <= _TOLERANCE * max(abs(value), 1.0):
                raise PlanError(
                    f"transition {self.t:.6g} -> {self.t_next:.6g}: {name} is "
                    f"{getattr(self, name)!r}, the path and rho give {value!r}"
                )

    def _agree(self, what: str, got: float, expected: float, scale: float = 0.0) -> None:
        if not abs(got - expected) <= _TOLERANCE * max(abs(expected), scale, 1.0):
            raise PlanError(
                f"transition {self.t:.6g} -> {self.t_next:.6g} claims to be exact for data "
                f"N(m, {self.law}^2 I), but the {what} is {got!r} instead of {expected!r}"
            )


def _square(register: tuple[float, ...]) -> float:
    return sum(c * c for c in register[1:])


@dataclass(frozen=True)
class Table:
    """A sampler: a path, its transitions and the settings they were planned with.

    Building a table verifies it (:meth:`Transition.verify`). Iterating yields the transitions;
    `str(table)` is for people, :meth:`to_json` and :meth:`from_json` for files.
    """

    path: Path
    transitions: tuple[Transition, ...]
    settings: Mapping[str, Any]
    start: str = "trained"
    solver: object = field(default=None, compare=False, repr=False)
    """What it was planned by; None of one that was read from a file."""

    def __post_init__(self) -> None:
        if not self.transitions or not all(tr.rows for tr in self.transitions):
            raise PlanError("a table needs at least one transition, each with at least one row")
        for before, after in pairwise(self.transitions):
            if before.t_next != after.t:
                raise PlanError(
                    f"a transition ends at {before.t_next} and the next starts at {after.t}"
                )
        check_name("start", self.start, ("trained", "pure"))
        for transition in self.transitions:
            transition.verify(self.path)

    def __iter__(self) -> Iterator[Transition]:
        return iter(self.transitions)

    def __len__(self) -> int:
        return len(self.transitions)

    def since(self, first: int) -> Table:
        """The rest of the table, from transition `first` on."""
        return replace(self, transitions=self.transitions[first:]) if first else self

    @property
    def evaluations(self) -> int:
        """Denoiser evaluations per sample: the number of rows."""
        return sum(transition.evaluations for transition in self.transitions)

    @property
    def times(self) -> tuple[float, ...]:
        return (*(tr.t for tr in self.transitions), self.transitions[-1].t_next)

    @property
    def start_scale(self) -> float:
        """Standard deviation of x at the first time, for samples drawn from noise.

        σ when the start is planned as pure noise, √(α² + σ²) when it is read as x at the first
        trained time (data of unit scale; 1 on variance-preserving paths, as deployed DDIM does).
        """
        first = self.transitions[0]
        return math.hypot(first.alpha, first.sigma)

    def to_json(self) -> str:
        data = {
            "format": _FORMAT,
            "version": _VERSION,
            "path": self.path.config(),
            "settings": dict(self.settings),
            "start": self.start,
            "transitions": [asdict(transition) for transition in self.transitions],
        }
        return json.dumps(data, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Table:
        """Read a table back, verifying it; raises :class:`InvalidArgument` on foreign text."""
        try:
            data = json.loads(text)
            if data["format"] != _FORMAT or data["version"] != _VERSION:
                raise InvalidArgument(
                    f"not a {_FORMAT} of version {_VERSION}: "
                    f"{shown(data['format'])} of version {shown(data['version'])}"
                )
            transitions = tuple(_transition(item) for item in data["transitions"])
            path = from_config(data["path"])
            return cls(path, transitions, dict(data["settings"]), data["start"])
        except InvalidArgument:
            raise
        except (AttributeError, LookupError, TypeError, ValueError, RecursionError) as error:
            raise InvalidArgument(f"not a {_FORMAT}: {shown(error)}") from None

    def __str__(self) -> str:
        lines = [
            f"{len(self)} transitions, {self.evaluations} network evaluations per sample, "
            f"{self.path!r}, start={self.start!r}",
            "settings: " + ", ".join(f"{key}={value}" for key, value in self.settings.items()),
        ]
        for k, tr in enumerate(self.transitions):
            kind = "deterministic" if not tr.stochastic else "draws eps"
            law = {None: "no law claimed", 0.0: "exact for a point mass"}.get(
                tr.law, f"exact for N(m, {tr.law}^2 I)"
            )
            rho = "" if tr.rho is None else f"rho = {tr.rho:.6g}, "
            lines.append(
                f"\n[{k}] t = {tr.t:.6g} -> {'data' if tr.t_next == 1 else f'{tr.t_next:.6g}'}   "
                f"{rho}x' = {tr.gamma:.6g} x + {tr.alpha_bar:.6g} z + {tr.sigma_bar:.6g} eps   "
                f"({kind}; {law}{'; ' + tr.note if tr.note else ''})"
            )
            lines.append(f"    y = {tr.input}")
            for number, row in enumerate(tr.rows):
                timestep = getattr(self.path, "timestep", None)
                asked = f" (timestep {timestep(row.time):g})" if timestep else ""
                lines.append(f"    D = network(y, t = {row.time:.6g}){asked}")
                if row.update is not None:
                    lines.append(f"      u = {row.update}")
                name = "x'" if number == len(tr.rows) - 1 else "y"
                lines.append(f"      {name} = {row.emit}")
        return "\n".join(lines)


def _transition(data: Mapping[str, Any]) -> Transition:
    rows = tuple(
        Row(row["time"], Mix(**row["update"]) if row["update"] else None, Mix(**row["emit"]))
        for row in data["rows"]
    )
    return Transition(**{**data, "input": Mix(**data["input"]), "rows": rows})
