"""The settings of a sampler: how many transitions, of how many evaluations, at which ρ."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, ClassVar

from ..errors import MOST_EVALUATIONS, InvalidArgument, check_count
from ..grids import Times, outer_times
from ..paths import Linear, Path
from ..settings import Settings, setting
from .allowed import GRID, RHO, RHOS, SOLVER, START, STEPS, TRANSITIONS
from .kernels import Rho
from .planner import check_size, for_each, plan
from .solvers import Default, EulerMaruyama, Solver, solver_for
from .table import Table

__all__ = ["RHO", "SOLVER", "Sampler"]


@dataclass(frozen=True, repr=False)
class Sampler(Settings):
    """K transitions of M network evaluations each.

    Parameters
    ----------
    transitions : int
        K >= 1. A single transition from pure noise is the probability-flow ODE.
    steps : int, or K of them
        M >= 1, network evaluations per transition. M = 1 is DDIM(η) or DDPM, by ρ.
    rho : float, "ddpm", "ode", "ddim:ETA", another rule, function of (t, t'), or K of these
        Correlation of the noises of a transition's ends, in [-1, 1]: 1 keeps the noise, 0 renews
        it, as "renoise" does. "ode" is the probability-flow ODE in their place. "precise:ETA",
        "ancestral:ETA" and "cps:ETA" are other samplers' rules. Euler-Maruyama has none.
    times : None, "uniform", "shifted[:SHIFT]", "karras[:RHO]", function of (path, K), or K + 1
        Where transitions start and end, in [0, 1]. None is a pipeline's own grid; else uniform.
    solver : "default", "second-order", "first-order", "paper", "euler-maruyama", or a solver
        Of the inner flow; "paper" is Algorithm 1 of GLASS Flows (arXiv 2509.25170). "default" makes
        its grid for the denoiser's classifier-free guidance, "default:guidance=5" for that one.
    start : "trained" or "pure"
        How a start at a first time with α > 0 is read: as x at that time, as deployed samplers do,
        or as pure noise.

    Raises
    ------
    InvalidArgument, UnknownName
        A value is out of its range, or a list does not have as many entries as there are
        transitions.
    """

    transitions: int = setting(6, TRANSITIONS)
    steps: int | tuple[int, ...] = setting(4, STEPS)
    rho: Rho | tuple[Rho, ...] = setting(0.4, RHOS)
    times: Times = setting(None, GRID)
    solver: Solver = setting(Default(), SOLVER)
    start: str = setting("trained", START)
    word: ClassVar[str] = "sampler"

    def check(self) -> None:
        K = self.transitions
        for name in ("steps", "rho"):
            for_each(name, getattr(self, name), K)
        check_size(self.evaluations)
        if isinstance(self.times, (float, tuple)):
            outer_times(Linear(), K, self.times)  # whether they are any, on whatever path
        without = isinstance(self.solver, EulerMaruyama)
        if without and self.rho is not None:
            raise InvalidArgument(
                f"Euler-Maruyama has no rho: give rho=None ('none'), got {self.rho!r}"
            )
        if not without and self.rho is None:
            raise InvalidArgument(
                "rho=None ('none') is for Euler-Maruyama alone: give a number in [-1, 1] or a rule"
            )

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """Euler-Maruyama has no ρ."""
        solver = SOLVER.read("solver", given.get("solver", Default()))
        return {"rho": None, **given} if isinstance(solver, EulerMaruyama) else dict(given)

    @classmethod
    def ode(cls, evaluations: int) -> Sampler:
        """The probability-flow ODE, in one go: the baseline of everything."""
        return cls(1, check_count("evaluations", evaluations, most=MOST_EVALUATIONS), "ode")

    def baseline(self, evaluations: int | None = None) -> Sampler:
        """The ODE from the same start, at as many evaluations."""
        return replace(Sampler.ode(evaluations or self.evaluations), start=self.start)

    @property
    def evaluations(self) -> int:
        """Network evaluations of a whole sample, K M, if no trained timesteps are missing."""
        return self.transitions * self.steps if isinstance(self.steps, int) else sum(self.steps)

    def at(self, times: Sequence[float]) -> Sampler:
        """With the times of somebody's own grid, whose K may be another than was asked for."""
        return replace(self, transitions=len(times) - 1, times=tuple(times))

    def plan(self, path: Path, guidance: float = 1.0) -> Table:
        """The table of numbers that will be run on a path; see :func:`glass_flows.plan`.

        `guidance` is the denoiser's `cfg_scale`, for a solver that was not told one.
        """
        return plan(
            path,
            transitions=self.transitions,
            steps=self.steps,
            rho=self.rho,
            times=self.times,
            solver=solver_for(self.solver, guidance),
            start=self.start,
        )
