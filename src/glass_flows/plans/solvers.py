"""Solvers of the inner flow, as numbers.

The inner flow of a transition is, with q = inner signal / inner noise (precisions add: what x and
the inner state know of z has precision P = a² + q²),

    u(q0) = ε,   du/dq = D_{t*}(y),   y = σ* (a x/σ + q u) / √P,   x' = γ x + σ̄ u(q1),

where t* is the time of amplitude √P and σ* its noise level. With θ = arctan(q/c) and
c = √(1/σ_data² + a²) the denoiser of Gaussian data is linear in s = sin θ, and θ stays finite when
q1 = ∞ (σ̄ = 0), where σ̄ u becomes ᾱ u/q: that limit is taken in the coefficients, never clipped.
"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, is_dataclass, replace
from itertools import accumulate, pairwise
from typing import Any, ClassVar, Protocol, cast

from ..errors import InvalidArgument, PlanError, shown
from ..grids import snap_to_trained
from ..paths import Path
from ..registry import Registry
from ..settings import (
    NOT_NEGATIVE,
    POSITIVE,
    SHARE,
    Checked,
    Choice,
    Listed,
    Object,
    setting,
)
from .kernels import Ends, Kernel, Rho, resolve_rho
from .table import Mix, Row, Transition

__all__ = [
    "Default",
    "EulerMaruyama",
    "FirstOrder",
    "InnerFlow",
    "Paper",
    "SecondOrder",
    "Solver",
    "resolve_solver",
    "solver_for",
]


_NEAR_DATA = 1e4  # amplitude α/σ


@dataclass(frozen=True)
class InnerFlow:
    """One transition's inner flow: everything that a solver needs to know.

    `known` is a, the amplitude with which x informs the query: α_t/σ_t, or 0 for ODE steps and for
    a start from pure noise, where x enters as the inner state u(q0) = x/σ_t instead (`start`).
    """

    path: Path
    ends: Ends
    kernel: Kernel
    rho: float | None
    known: float
    start: Mix
    q0: float
    q1: float
    note: str = ""

    @classmethod
    def glass(cls, path: Path, ends: Ends, rho: float) -> InnerFlow:
        """The stochastic transition: u(0) = ε is drawn and q runs from 0 to ᾱ/σ̄."""
        kernel = Kernel.of(ends, rho)
        q1 = kernel.alpha_bar / kernel.sigma_bar if kernel.sigma_bar > 0 else math.inf
        return cls(path, ends, kernel, rho, ends.amplitude, Mix(eps=1.0), 0.0, q1)

    @classmethod
    def ode(cls, path: Path, ends: Ends, note: str) -> InnerFlow:
        """The probability-flow ODE: the state is x/σ, and q is the path's own amplitude."""
        kernel = Kernel(0.0, ends.alpha_next, ends.sigma_next)
        q1 = ends.alpha_next / ends.sigma_next if ends.sigma_next > 0 else math.inf
        start = Mix(x=1.0 / ends.sigma)
        return cls(path, ends, kernel, None, 0.0, start, ends.amplitude, q1, note)

    @classmethod
    def of(cls, path: Path, ends: Ends, rule: Rho, pure: bool) -> InnerFlow:
        """The flow for a ρ rule; from pure noise x_0 carries no information, so ε = x_0/σ_0."""
        rho = 0.0 if rule == "ode" else resolve_rho(rule, ends)
        if pure or ends.alpha == 0.0:
            return cls.ode(
                path, replace(ends, alpha=0.0), "from pure noise: rho = 0, eps = x/sigma"
            )
        if rule == "ode":
            return cls.ode(path, ends, "probability-flow ODE")
        return cls.glass(path, ends, rho)

    def amplitude(self, q: float) -> float:
        return math.hypot(self.known, q)

    def on_path(self, q: float) -> bool:
        """Whether the path has a time of this precision (EDM and trained tables end early).

        Only a start from pure noise knows less than the path's own start.
        """
        if q == self.q0:
            return self.ends.alpha == self.path.alpha(self.ends.t)
        return self.amplitude(q) <= self.path.amplitude(1.0) * (1 + 1e-9)

    def query(self, q: float, nearest: bool = False) -> tuple[float, Mix]:
        """(t*, network input as a mix of x and u) at q; off the path, at its nearest end.

        `nearest` moves t* to the nearest trained time, keeping the noise power.
        """
        trained = self.path.trained_times if nearest else None
        if q == self.q0 and (trained is None or self.ends.t in trained):
            return self.ends.t, Mix(x=1.0)  # D_t(x_t) itself, before any randomness
        amplitude = self.amplitude(q)
        low, high = self.path.amplitude(0.0), self.path.amplitude(1.0)
        t = self.path.time(min(max(amplitude, low), high))
        if trained is not None:
            t = min(trained, key=lambda candidate: abs(candidate - t))
        if amplitude > min(high, _NEAR_DATA):
            # More is known than the network was trained on, or t has lost the digits of σ: keep the
            # signal.
            scale = self.path.alpha(t) / amplitude**2
        else:
            scale = self.path.sigma(t) / amplitude
        return t, Mix(x=scale * self.known / self.ends.sigma, u=scale * q)

    def finish(self, rows: Sequence[Row], first: Mix, law: float | None) -> Transition:
        return Transition(
            **vars(self.ends),
            **vars(self.kernel),
            rho=self.rho,
            input=first,
            rows=tuple(rows),
            law=law,
            note=self.note,
        )


class Solver(Protocol):
    """Compiles one outer step t → t' of at most `steps` evaluations into transitions."""

    name: ClassVar[str]

    def transitions(
        self, path: Path, ends: Ends, rule: Rho, steps: int, pure: bool
    ) -> tuple[Transition, ...]: ...

    def config(self) -> dict[str, Any]: ...


# --- the project's own solver, and first order ------------------------------------------------


def _grid_shape(steps: int, trust: float, guided: float = 0.0) -> tuple[float, float, float]:
    """First and last step as shares of the others, and how far the grid crowds towards θ = π/2.

    Measured (`docs/accuracy.md`). Both ends want short steps, from four evaluations on less where
    the last two are not trusted (`trust` 0). The crowding grows to 1.3 from five evaluations to
    seven; from 20 to 40, where it has done its work, it fades again: convergence is cleanest on
    the uniform grid.

    Under strong guidance (`guided` 1) D turns late in the transition. The first step is no longer
    the one that knows least and is not shortened, and the grid crowds more, most where θ ends below
    75°; with three evaluations there is too little to crowd, and the first step is the longest.
    """
    fading = min(1.0, max((40 - steps) / 20.0, 0.0))
    if steps <= 3:
        plain, strong = (0.6, 0.6, 1.0), (1.2, 0.6, 1.4)
    else:
        last = 0.9 - 0.3 * trust
        plain = 0.7 - 0.1 * trust, last, 1.0 + 0.3 * min((steps - 4) / 3.0, fading)
        strong = 1.0, last, 1.0 + (0.5 + 0.5 * trust) * fading
    first, last, warp = (a + guided * (b - a) for a, b in zip(plain, strong))
    return first, last, warp


@dataclass(frozen=True)
class Default(Checked):
    """Predictor-corrector in s = sin θ; `steps` evaluations, no more.

    D is interpolated linearly in s through the last two evaluations and integrated exactly against
    dq; once D is known at a new point, the step that led there is redone with it. Where fewer than
    two evaluations can be trusted, D has the slope ε/c that Gaussian data of standard deviation
    `sigma_data` gives it: in the first step, which knows one D, and in the last of a transition
    whose noise all but ends (θ1 > 75°), where extrapolation hurts. The table is exact for such
    data at any number of evaluations from two on, whatever the guidance: that changes the grid and
    the share of the last slope only. With one evaluation it is DDIM/DDPM.

    The grid is uniform in θ but for shorter first and last steps, and from five evaluations on a
    crowding towards θ = π/2; `docs/accuracy.md` has the measurements behind it. On paths with
    trained timesteps every query lands on one of them; a transition with fewer trained timesteps
    in reach than `steps` uses those it has, and its note says so.

    Parameters
    ----------
    sigma_data : float
        Standard deviation of the data, > 0.
    guidance : float or None
        w >= 0 of classifier-free guidance D_u + w (D_c - D_u), for which the grid is made: that of
        w <= 1 as w goes to 1, all the way to that of strong guidance at w >= 5. None is the
        denoiser's own w, or 1 where a table is planned for no denoiser in particular.
    """

    sigma_data: float = setting(1.0, POSITIVE)
    guidance: float | None = setting(None, replace(NOT_NEGATIVE, optional=True))
    name: ClassVar[str] = "default"
    slope: ClassVar[float] = 1.0
    """Share of the slope ε/c that D is given where it is not found from evaluations."""

    @property
    def strength(self) -> float:
        """How far the grid is that of strong guidance: 0 up to w = 1, 1 from w = 5 on."""
        return min(max((self.guidance or 0.0) - 1.0, 0.0) / 4.0, 1.0)

    def config(self) -> dict[str, Any]:
        held = replace(self, guidance=1.0) if self.guidance is None else self
        return {"solver": self.name, **asdict(held)}

    def transitions(
        self, path: Path, ends: Ends, rule: Rho, steps: int, pure: bool
    ) -> tuple[Transition, ...]:
        flow = InnerFlow.of(path, ends, rule, pure)
        sphere = _Sphere.of(flow, self.sigma_data)
        trust = sphere.trust(flow.q1)
        shape = _grid_shape(steps, trust, self.strength)
        nodes, note = sphere.nodes(flow, steps, *shape)
        trust *= 1.0 - 0.5 * self.strength  # D turns: the last slope is old
        count = len(nodes)
        rows: list[Row] = []
        for i, (q, following) in enumerate(zip(nodes, (*nodes[1:], flow.q1))):
            update = flow.start if i == 0 else sphere.linear_step(nodes[i - 1], q, nodes[i - 1], q)
            if i == 0:
                sloped = count > 1 and self.slope > 0.0
                step = sphere.first_step(q, following) if sloped else _hold(q, following)
            elif i < count - 1 or flow.q0 > 0.0:
                step = sphere.linear_step(nodes[i - 1], q, q, following)
            else:
                share = max(trust, 0.5) if count == 2 else trust
                step = sphere.closing_step(
                    nodes[i - 1], q, following, flow.start, share, self.slope
                )
            rows.append(_row(flow, q, update, following, step))
        law = self.sigma_data * self.slope if count > 1 else 0.0
        exact = all(flow.on_path(q) for q in nodes)
        note = _join(flow.note, note)
        return (replace(flow, note=note).finish(rows, Mix(x=1.0), law if exact else None),)


@dataclass(frozen=True)
class SecondOrder(Default):
    """The default solver, which never supposes more of D than its evaluations show.

    D keeps its first value over the first step, and its last one where the slope through the last
    two is not trusted, instead of the slope of Gaussian data. So the table is exact for a point
    mass, at any number of evaluations: where a part of the sample is known, as in inpainting, D is
    that part whatever is asked, every query holds it at its own noise level, and the end is it.
    Where nothing is known it is less accurate than "default" (`docs/k_diffusion.md` has figures).
    """

    name: ClassVar[str] = "second-order"
    slope: ClassVar[float] = 0.0


@dataclass(frozen=True)
class FirstOrder(Checked):
    """D held constant over each step of a uniform θ grid: Euler in q."""

    sigma_data: float = setting(1.0, POSITIVE)
    name: ClassVar[str] = "first-order"

    def config(self) -> dict[str, Any]:
        return {"solver": self.name, **asdict(self)}

    def transitions(
        self, path: Path, ends: Ends, rule: Rho, steps: int, pure: bool
    ) -> tuple[Transition, ...]:
        flow = InnerFlow.of(path, ends, rule, pure)
        nodes, note = _Sphere.of(flow, self.sigma_data).nodes(flow, steps)
        rows: list[Row] = []
        for q, following in zip(nodes, (*nodes[1:], flow.q1)):
            known = flow.start if q == flow.q0 else Mix(u=1.0)
            step = _hold(q, following)
            if math.isfinite(following):
                known, step = replace(known, D=step.D), Mix(u=1.0)
            rows.append(_row(flow, q, known, following, step))
        law = 0.0 if all(flow.on_path(q) for q in nodes) else None
        return (replace(flow, note=_join(flow.note, note)).finish(rows, Mix(x=1.0), law),)


# --- the paper's Algorithm 1 --------------------------------------------------------------------

InnerSchedule = Callable[[float, Kernel, float], tuple[float, float, float, float]]


def linear_schedule(s: float, kernel: Kernel, sigma0: float) -> tuple[float, float, float, float]:
    """ᾱ_s = s ᾱ and σ̄_s = (1-s) σ̄_0 + s σ̄, with their derivatives."""
    return (
        s * kernel.alpha_bar,
        (1 - s) * sigma0 + s * kernel.sigma_bar,
        kernel.alpha_bar,
        (kernel.sigma_bar - sigma0),
    )


def cosine_schedule(s: float, kernel: Kernel, sigma0: float) -> tuple[float, float, float, float]:
    """ᾱ_s = ᾱ sin(πs/2) and σ̄_s = σ̄ + (σ̄_0 - σ̄) cos(πs/2), with their derivatives."""
    half = 0.5 * math.pi
    sine, cosine = math.sin(half * s), math.cos(half * s)
    drop = sigma0 - kernel.sigma_bar
    return (
        kernel.alpha_bar * sine,
        kernel.sigma_bar + drop * cosine,
        half * kernel.alpha_bar * cosine,
        -half * drop * sine,
    )


_SCHEDULES: dict[str, InnerSchedule] = {"linear": linear_schedule, "cosine": cosine_schedule}


_SCHEDULE = Object(
    "inner schedule",
    "'linear', 'cosine' or a function of (s, kernel, sigma0)",
    heads=dict.fromkeys(_SCHEDULES),
    functions=True,
)


@dataclass(frozen=True)
class Paper(Checked):
    """Algorithm 1 of arXiv 2509.25170 to the letter: Euler in s, kept as the reference.

    The inner state x̄_s = γ x + ᾱ_s z + σ̄_s ε starts at γ x + σ̄_0 ε and follows
    dx̄/ds = w1 (x̄ - γ x) + w2 D with w1 = σ̄_s'/σ̄_s, w2 = ᾱ_s' - w1 ᾱ_s. It keeps its ρ and draws a
    fresh ε at t = 0 too.

    Parameters
    ----------
    sigma0 : float
        σ̄_0 > 0 (the paper's and the reference code's value is 1).
    s_range : (float, float)
        Where s starts and ends. The reference code cuts to (0.001, 0.999), which is not exact even
        for a point mass; the table then claims no law.
    schedule : "linear", "cosine" or callable
        (s, kernel, σ̄_0) → (ᾱ_s, σ̄_s, dᾱ_s/ds, dσ̄_s/ds), with ᾱ_s from 0 to the kernel's ᾱ and σ̄_s
        to its σ̄; ε is drawn at the schedule's own σ̄ at s = 0. Euler is exact for a point mass with
        the linear one only.
    off_grid : "fractional" or "nearest"
        On paths with trained timesteps: ask the network at fractional timesteps (exact
        interpolation of the path), or at the nearest trained one (noise power kept).
    """

    sigma0: float = setting(1.0, POSITIVE)
    s_range: tuple[float, float] = setting((0.0, 1.0), Listed(SHARE))
    schedule: str | InnerSchedule = setting("linear", _SCHEDULE)
    off_grid: str = setting("fractional", Choice("off_grid rule", ("fractional", "nearest")))
    name: ClassVar[str] = "paper"

    def check(self) -> None:
        held = self.s_range
        if not isinstance(held, tuple) or len(held) != 2 or held[0] >= held[1]:
            raise InvalidArgument(f"s_range must be 0 <= start < end <= 1, got {held!r}")

    def config(self) -> dict[str, Any]:
        schedule = self.schedule if isinstance(self.schedule, str) else "custom"
        return {
            "solver": self.name,
            **asdict(self),
            "s_range": list(self.s_range),
            "schedule": schedule,
        }

    def transitions(
        self, path: Path, ends: Ends, rule: Rho, steps: int, pure: bool
    ) -> tuple[Transition, ...]:
        _refuse_pure(self.name, path, pure)
        flow = InnerFlow.glass(path, ends, resolve_rho(rule, ends))
        kernel = flow.kernel
        drawn = self.sigma0
        if isinstance(self.schedule, str):
            schedule = _SCHEDULES[self.schedule]
        else:
            schedule = self.schedule
            drawn = _check_schedule(schedule, kernel, drawn)
        first, last = self.s_range
        grid = [first + i / steps * (last - first) for i in range(steps + 1)]
        nearest, rows, queries = self.off_grid == "nearest", [], []
        for s, following in pairwise(grid):
            alpha_bar, sigma_bar, alpha_dot, sigma_dot = schedule(s, kernel, self.sigma0)
            q, slope = alpha_bar / sigma_bar, sigma_dot / sigma_bar
            t, asked = flow.query(q, nearest)
            queries.append((t, replace(asked, u=asked.u / sigma_bar), flow.on_path(q)))
            h = following - s
            carried, signal = 1.0 + h * slope, h * (alpha_dot - slope * alpha_bar)
            start = Mix(eps=carried * drawn) if s == first else Mix(u=carried)
            rows.append((t, replace(start, D=signal)))
        hand_on = [mix for _, mix, _ in queries[1:]] + [Mix(x=kernel.gamma, u=1.0)]
        table = [Row(t, update, emit) for (t, update), emit in zip(rows, hand_on)]
        asked = queries[0][1]
        whole = self.s_range == (0.0, 1.0) and self.schedule == "linear"
        on_path = all(ok for *_, ok in queries)
        snapped = nearest and path.trained_times is not None
        law = 0.0 if whole and on_path and not snapped else None
        return (flow.finish(table, Mix(x=asked.x, eps=asked.u * drawn), law),)


def _check_schedule(schedule: InnerSchedule, kernel: Kernel, sigma0: float) -> float:
    """σ̄ at s = 0, where a schedule of one's own starts; its ends and its slopes must be true."""

    def at(s: float) -> tuple[float, float, float, float]:
        try:
            alpha, sigma, alpha_dot, sigma_dot = map(float, schedule(s, kernel, sigma0))
        except (TypeError, ValueError, ArithmeticError) as error:
            raise PlanError(
                f"the inner schedule must return 4 numbers, (alpha, sigma, and their slopes), "
                f"at s = {s:g}: {error}"
            ) from error
        return alpha, sigma, alpha_dot, sigma_dot

    signal, noise, *_ = at(0.0)
    wanted = {
        "alpha(0)": (signal, 0.0, 1e-9),
        "alpha(1)": (at(1.0)[0], kernel.alpha_bar, 1e-9),
        "sigma(1)": (at(1.0)[1], kernel.sigma_bar, 1e-9),
    }
    step = 1e-5
    for s in (0.25, 0.5, 0.75):
        *_, alpha_dot, sigma_dot = at(s)
        for i, (name, told) in enumerate((("alpha", alpha_dot), ("sigma", sigma_dot))):
            slope = (at(s + step)[i] - at(s - step)[i]) / (2 * step)
            wanted[f"the slope of {name} at {s}"] = told, slope, 1e-4
    for name, (found, right, tolerance) in wanted.items():
        if not math.isclose(found, right, rel_tol=tolerance, abs_tol=tolerance):
            raise PlanError(f"the inner schedule has {name} = {found:.6g}; it must be {right:.6g}")
    if not 0.0 < noise < math.inf:
        raise PlanError(f"the inner schedule has sigma(0) = {noise!r}; it must be positive")
    return noise


# --- Euler-Maruyama ---------------------------------------------------------------------------


@dataclass(frozen=True)
class EulerMaruyama(Checked):
    """dx = [v + g²/2 · score] dt + g dw by Euler-Maruyama, as flow-based RL codes use it.

    g² = η² σ (σ α' - α σ')/α, primes for d/dt: on the linear path η² (1-t)/t, Flow-GRPO's
    diffusion with η its noise level (0.7 there), and at η = √2 the time reversal of the noising
    diffusion. Where α = 0 the first step takes the α of its end, as that code does. Every step is
    a transition of one evaluation, and the last one adds its noise too: with few steps the samples
    keep residual noise. On paths with trained timesteps the steps start at them. The table claims
    no law. `rho` must be None.
    """

    noise_level: float = setting(0.7, NOT_NEGATIVE)
    name: ClassVar[str] = "euler-maruyama"

    def config(self) -> dict[str, Any]:
        return {"solver": self.name, **asdict(self)}

    def transitions(
        self, path: Path, ends: Ends, rule: Rho, steps: int, pure: bool
    ) -> tuple[Transition, ...]:
        if rule is not None:
            raise InvalidArgument(f"Euler-Maruyama has no rho: pass rho=None, got {shown(rule)}")
        _refuse_pure(self.name, path, pure)
        t0, t1 = ends.t, ends.t_next
        inner = [t0 + i / steps * (t1 - t0) for i in range(steps)]
        times = snap_to_trained(path, [*inner, t1])
        if times[-2] >= t1:
            raise PlanError(
                f"fewer than {steps} trained timesteps between t = {t0:.6g} and {t1:.6g}"
            )
        return tuple(self._step(path, Ends.of(path, t, s)) for t, s in pairwise(times))

    def _step(self, path: Path, ends: Ends) -> Transition:
        t, h, alpha, sigma = ends.t, ends.t_next - ends.t, ends.alpha, ends.sigma
        alpha_dot, sigma_dot = path.alpha_dot(t), path.sigma_dot(t)
        wronskian = sigma * alpha_dot - alpha * sigma_dot
        variance = self.noise_level**2 * sigma * wronskian / (alpha or ends.alpha_next)
        # v = α' D + σ' E[ε], score = -E[ε]/σ, E[ε] = (x - α D)/σ
        noise_rate = sigma_dot / sigma - 0.5 * variance / sigma**2
        mix = Mix(
            x=1.0 + h * noise_rate,
            D=h * (alpha_dot - alpha * noise_rate),
            eps=math.sqrt(variance * h),
        )
        flow = replace(
            InnerFlow.ode(path, ends, "Euler-Maruyama"), kernel=Kernel(mix.x, mix.D, mix.eps)
        )
        return flow.finish([Row(t, None, mix)], Mix(x=1.0), None)


def _is_solver(name: str, thing: Any) -> type[Solver]:
    if not isinstance(thing, type) or not is_dataclass(thing) or not hasattr(thing, "transitions"):
        raise InvalidArgument(
            f"the solver {name!r} must be a frozen dataclass with transitions(), as of "
            f"glass_flows.plans.Solver, got {shown(thing)}"
        )
    return cast(type[Solver], thing)


SOLVERS: Registry[type[Solver]] = Registry(
    "solvers",
    {cls.name: cls for cls in (Default, SecondOrder, FirstOrder, Paper, EulerMaruyama)},
    _is_solver,
)


def resolve_solver(solver: Solver) -> Solver:
    """A solver of one's own, which is none of `SOLVERS`."""
    if isinstance(solver, type) or not callable(getattr(solver, "transitions", None)):
        raise InvalidArgument(
            f"solver must be one of {sorted(SOLVERS)} or an object like Default(), "
            f"got {shown(solver)}"
        )
    return solver


def solver_for(solver: Solver, guidance: float) -> Solver:
    """The solver for a denoiser under classifier-free guidance w, unless it was told one itself."""
    if isinstance(solver, Default) and solver.guidance is None:
        return replace(solver, guidance=max(guidance, 0.0))
    return solver


def _refuse_pure(name: str, path: Path, pure: bool) -> None:
    if pure and path.alpha(0.0) > 0.0:
        raise PlanError(
            f"start='pure' on the {path.name} path, whose alpha_0 > 0, is for the solvers "
            f"'default' and 'first-order'; {name!r} starts with start='trained'"
        )


def _join(*notes: str) -> str:
    return "; ".join(note for note in notes if note)


def _row(flow: InnerFlow, q: float, update: Mix, following: float, step: Mix) -> Row:
    """The query at q, and what it hands on: the next network input, or x'.

    `step` is u(following); for following = ∞ it is the limit of u/q, and x' = γ x + ᾱ u/q. There u
    itself may not be needed any more: then it is not made.
    """
    if following == flow.q1:
        scale = flow.kernel.alpha_bar if math.isinf(following) else flow.kernel.sigma_bar
        carried = Mix(x=flow.kernel.gamma, u=scale)
    else:
        carried = flow.query(following)[1]
    emit = Mix(
        x=carried.x + carried.u * step.x,
        u=carried.u * step.u,
        eps=carried.u * step.eps,
        D=carried.u * step.D,
        D_prev=carried.u * step.D_prev,
    )
    return Row(flow.query(q)[0], update if emit.u != 0.0 else None, emit)


@dataclass(frozen=True)
class _Sphere:
    """The coordinate s = sin θ, q = c tan θ, and exact integrals against dq in it.

    A start near data has all its sines within 1e-7 of 1, and narrow data has all of them near 0.
    Differences of sines and angles from π/2 are therefore never found by subtraction.
    """

    c: float

    @classmethod
    def of(cls, flow: InnerFlow, sigma_data: float) -> _Sphere:
        return cls(math.hypot(1.0 / sigma_data, flow.known))

    def secant(self, q: float) -> float:
        return math.hypot(1.0, q / self.c)

    def nodes(
        self,
        flow: InnerFlow,
        steps: int,
        first_step: float = 1.0,
        last_step: float = 1.0,
        warp: float = 1.0,
    ) -> tuple[tuple[float, ...], str]:
        """At most `steps` query points from q0, on a θ grid that ends at q1; and a note.

        `first_step` and `last_step` are lengths as shares of the others. The grid is uniform in
        (π/2 - θ)^(1/warp), which for warp > 1 crowds it towards θ = π/2.
        """
        lengths = [1.0] * steps
        lengths[0], lengths[-1] = first_step, last_step
        *starts, whole = accumulate(lengths, initial=0.0)
        shares = [start / whole for start in starts]

        def grid(stop: float, shares: Sequence[float]) -> list[float]:
            first, last = (self._colatitude(q) ** (1.0 / warp) for q in (flow.q0, stop))
            roots = [first + share * (last - first) for share in shares]
            return [flow.q0, *(self.c / math.tan(root**warp) for root in roots[1:])]

        wanted = grid(flow.q1, shares)
        if flow.path.trained_times is not None:
            return _on_trained_times(flow, wanted)
        end = flow.path.amplitude(1.0)
        if flow.amplitude(wanted[-1]) <= end:
            return tuple(wanted), ""
        reach = math.sqrt(max(end**2 - flow.known**2, 0.0))
        if reach <= flow.q0 * (1.0 + 1e-6) or steps == 1:  # nearer, and slopes lose their digits
            return (flow.q0,), "the path ends here: one evaluation"
        shortened = grid(reach, [share / shares[-1] for share in shares])
        return tuple(shortened), "queries end with the path"

    def linear_step(self, qa: float, qb: float, start: float, stop: float) -> Mix:
        """u(stop) from u(start), D linear in s through D_prev at qa and D at qb."""
        rise = self._rise(qa, qb)
        return Mix(
            u=0.0 if math.isinf(stop) else 1.0,
            D=self._above(qa, start, stop) / rise,
            D_prev=-self._above(qb, start, stop) / rise,
        )

    def first_step(self, start: float, stop: float) -> Mix:
        """u(stop) from u(start), D with the slope that Gaussian data gives it.

        Along its flow D = D_0 + s ε/c and u = ε/cos θ + q D_0, so that at `start` the slope is
        ε/c = (u - q D) / (c cos θ).
        """
        rise = self.secant(start) / self.c * self._above(start, start, stop)
        return Mix(u=1.0 + rise, D=stop - start - rise * start)

    def trust(self, q1: float) -> float:
        """How much the last step trusts the slope through the last two evaluations.

        Wholly up to θ1 = 75°, falling to not at all at θ1 = 90°.
        """
        return min(1.0, 4.0 / self.secant(q1))

    def closing_step(
        self, qa: float, qb: float, stop: float, start: Mix, share: float, slope: float = 1.0
    ) -> Mix:
        """The last step from qb, D_prev at qa and D at qb.

        D's slope in s is a `share` of that of the line through both, and for the rest `slope` ε/c
        with ε = u(0), given as `start`: the residual D - s ε/c is held constant.
        """
        line, held, rest = self.linear_step(qa, qb, qb, stop), _hold(qb, stop), 1.0 - share
        rise = slope * self._above(qb, qb, stop) / self.c
        return Mix(
            x=rest * rise * start.x,
            u=line.u,
            eps=rest * rise * start.eps,
            D=share * line.D + rest * held.D,
            D_prev=share * line.D_prev,
        )

    def _colatitude(self, q: float) -> float:
        """π/2 - θ."""
        return math.atan2(self.c, q)

    def _rise(self, qa: float, qb: float) -> float:
        """s_b - s_a = 2 sin(½(θ_b - θ_a)) cos(½(θ_a + θ_b)); q_b may be infinite."""
        a, b = self._colatitude(qa), self._colatitude(qb)
        turn = a if math.isinf(qb) else math.atan2(self.c * (qb - qa), self.c**2 + qa * qb)
        return 2.0 * math.sin(0.5 * turn) * math.sin(0.5 * (a + b))

    def _above(self, base: float, start: float, stop: float) -> float:
        """∫ (s - s_base) dq from start to stop; where stop = ∞, the limit of this over q.

        The mean of s over dq is that of its ends with the weights √(c² + q²).
        """
        if math.isinf(stop):
            return self._rise(base, stop)
        first, last = self.secant(start), self.secant(stop)
        total = first * self._rise(base, start) + last * self._rise(base, stop)
        return (stop - start) * total / (first + last)


def _hold(start: float, stop: float) -> Mix:
    """u(stop) from u(start) with D held constant; the limit of u/q where stop = ∞."""
    return Mix(D=1.0) if math.isinf(stop) else Mix(u=1.0, D=stop - start)


def _on_trained_times(flow: InnerFlow, wanted: list[float]) -> tuple[tuple[float, ...], str]:
    """Move the query points to trained times; the first is already there."""
    levels = [flow.path.amplitude(t) for t in flow.path.trained_times or ()]
    here, end = flow.amplitude(flow.q0), flow.amplitude(flow.q1)
    start = bisect.bisect_right(levels, max(here, levels[0]) * (1 + 1e-9))
    stop = bisect.bisect_left(levels, end * (1 - 1e-9)) if math.isfinite(end) else len(levels)
    reachable = levels[start:stop]
    if len(reachable) < len(wanted) - 1:
        picked, note = reachable, f"only {len(reachable) + 1} trained timesteps in reach"
    else:
        picked, note = _nearest_distinct(reachable, [flow.amplitude(q) for q in wanted[1:]]), ""
    return (flow.q0, *(math.sqrt(level**2 - flow.known**2) for level in picked)), note


def _nearest_distinct(levels: Sequence[float], wanted: Sequence[float]) -> list[float]:
    """The increasing choice of distinct `levels` nearest (in angle) to the increasing `wanted`."""
    chosen: list[int] = []
    for i, level in enumerate(wanted):
        right = bisect.bisect_left(levels, level)
        around = [j for j in (right - 1, right) if 0 <= j < len(levels)]
        nearest = min(around, key=lambda j: abs(math.atan(levels[j]) - math.atan(level)))
        floor = chosen[-1] + 1 if chosen else 0
        chosen.append(min(max(nearest, floor), len(levels) - (len(wanted) - i)))
    return [levels[j] for j in chosen]
