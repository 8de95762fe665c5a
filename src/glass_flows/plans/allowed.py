"""What the settings of a sampler may be."""

from __future__ import annotations

from ..errors import MOST_EVALUATIONS
from ..grids import GRIDS
from ..settings import Choice, Count, Listed, Number, Object
from .kernels import RHO_RULES
from .solvers import SOLVERS, resolve_solver

TRANSITIONS = Count(most=MOST_EVALUATIONS)
STEPS = Listed(Count(most=MOST_EVALUATIONS))
RHO = Object(
    "rho rule",
    "a number in [-1, 1], 'ddpm', 'ode', 'renoise', 'ddim:ETA', 'precise:ETA', 'ancestral:ETA', "
    "'cps:ETA', a function of (t, t'), or none",
    heads=RHO_RULES,
    numbers=Number("lie in [-1, 1]", lambda rho: -1.0 <= rho <= 1.0),
    functions=True,
    optional=True,
)
SOLVER = Object(
    "solver",
    "'default', 'second-order', 'first-order', 'paper', 'euler-maruyama', or an object such as "
    "Paper(sigma0=0.5)",
    heads=SOLVERS,
    resolve=resolve_solver,
)
TIMES = Object(
    "time grid",
    "'uniform', 'shifted[:SHIFT]', 'karras[:RHO]', a function of (path, K), or K + 1 times",
    heads=GRIDS,
    numbers=Number(),
    functions=True,
    optional=True,
)
RHOS = Listed(RHO)
GRID = Listed(TIMES, item=Number())
START = Choice("start", ("trained", "pure"))
