"""Planning: (path, times, ρ, steps, solver) compiled into a table of numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from ..errors import MOST_EVALUATIONS, InvalidArgument, PlanError, TimeError
from ..fronts import front
from ..grids import PATH, Times, outer_times
from ..paths import Path, check_time
from .allowed import GRID, RHOS, SOLVER, START, STEPS, TRANSITIONS
from .kernels import Ends, Rho
from .solvers import Paper, Solver
from .table import Table, Transition


@front(
    path=PATH,
    transitions=TRANSITIONS,
    steps=STEPS,
    rho=RHOS,
    times=GRID,
    solver=SOLVER,
    start=START,
)
def plan(
    path: Path,
    *,
    transitions: int,
    steps: int | Sequence[int],
    rho: Rho | Sequence[Rho],
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
) -> Table:
    """Compile a sampler of K transitions with M inner network evaluations each.

    Parameters
    ----------
    path : Path
        The model's probability path.
    transitions : int
        K >= 1. A single transition from pure noise is the probability-flow ODE.
    steps : int or list of K ints
        M >= 1 network evaluations per transition. M = 1 is DDIM(η)/DDPM, whatever ρ says.
    rho : float, "ddpm", "ode", DDIM(eta), callable of (t, t'), list of K of these, or None
        Correlation of the noises of x_t and x_t', |ρ| <= 1: 1 keeps the noise, 0 renews it.
        "ode" replaces the transition by the probability-flow ODE. None only for Euler-Maruyama.
    times : None, str, grid, callable or list
        Outer times, see :func:`glass_flows.grids.outer_times`; uniform in t by default.
    solver : str or Solver
        "default", "second-order", "first-order", "paper", "euler-maruyama", or an object such as
        ``Paper(s_range=(0.001, 0.999))``.
    start : "trained" or "pure"
        How a start from noise at a first time with α > 0 is read: as x at that time (as deployed
        samplers do) or as carrying no information. The same where α = 0.

    Returns
    -------
    Table
        Self-checked, printable, serialisable.

    Raises
    ------
    InvalidArgument, TimeError, UnknownName, PlanError
    """
    listed = outer_times(path, transitions, times)
    counts, rules = for_each("steps", steps, transitions), for_each("rho", rho, transitions)
    check_size(sum(counts))
    planned_by = cast(Solver, solver)  # the front has resolved its name
    result: list[Transition] = []
    for k, (t, t_next, rule, count) in enumerate(zip(listed, listed[1:], rules, counts)):
        ends = _ends(path, t, t_next, planned_by)
        pure = start == "pure" and k == 0
        result.extend(planned_by.transitions(path, ends, rule, count, pure))
    shown = rho if isinstance(rho, (float, int, str)) or rho is None else repr(rho)
    settings = {"rho": shown, **planned_by.config()}
    return Table(path, tuple(result), settings, start, planned_by)


@front()
def plan_transition(
    path: Path,
    t: float,
    t_next: float,
    *,
    rho: Rho,
    steps: int,
    solver: str | Solver = "default",
) -> Table:
    """Compile the single transition t → t_next; t_next = 1 is data."""
    t, t_next = check_time(t), check_time(t_next, "t_next")
    if t >= t_next:
        raise TimeError(f"a transition goes towards data: need t < t_next, got {t!r} >= {t_next!r}")
    return plan(path, transitions=1, steps=steps, rho=rho, times=(t, t_next), solver=solver)


def for_each(name: str, given: Any, transitions: int) -> tuple[Any, ...]:
    """One value for each transition, of one for all or a tuple of them."""
    listed = given if isinstance(given, tuple) else (given,) * transitions
    if len(listed) != transitions:
        raise InvalidArgument(f"{name} lists {len(listed)} values for {transitions} transitions")
    return listed


def check_size(evaluations: int) -> None:
    """Raise for a table that would take minutes to plan."""
    if evaluations > MOST_EVALUATIONS:
        raise InvalidArgument(
            f"a sample may take at most {MOST_EVALUATIONS:,} network evaluations, transitions x "
            f"steps, got {evaluations}"
        )


def _ends(path: Path, t: float, t_next: float, solver: Solver) -> Ends:
    trained = path.trained_times
    if trained is not None and not isinstance(solver, Paper) and t not in trained:
        nearest = sorted(trained, key=lambda s: abs(s - t))[:2]
        raise PlanError(
            f"the network was not trained at t = {t!r}, where a transition starts; the nearest "
            f"trained times are {' and '.join(f'{s!r}' for s in sorted(nearest))}. Named time "
            "grids move to trained times by themselves; the paper's solver has an off_grid rule"
        )
    return Ends.of(path, t, t_next)
