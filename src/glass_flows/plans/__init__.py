"""Planning: (path, times, ρ, steps, solver) compiled into a table of numbers. No torch here."""

from .kernels import CPS, DDIM, Ancestral, Ends, Kernel, Precise, Rho, resolve_rho
from .planner import plan, plan_transition
from .sampler import Sampler
from .solvers import (
    Default,
    EulerMaruyama,
    FirstOrder,
    InnerFlow,
    Paper,
    SecondOrder,
    Solver,
)
from .table import Mix, Row, Table, Transition

__all__ = [
    "CPS",
    "DDIM",
    "Ancestral",
    "Default",
    "Ends",
    "EulerMaruyama",
    "FirstOrder",
    "InnerFlow",
    "Kernel",
    "Mix",
    "Paper",
    "Precise",
    "Rho",
    "Row",
    "Sampler",
    "SecondOrder",
    "Solver",
    "Table",
    "Transition",
    "plan",
    "plan_transition",
    "resolve_rho",
]
