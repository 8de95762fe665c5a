"""A method, particles, transitions and evaluations for a time or a number of network evaluations.

A short measurement says what an evaluation and a look at the reward (with its decode) cost, for
this model on this machine; then every way to spend the budget has a price, and of those that spend
it the best is taken. What is best is read off `python -m benchmarks.budget`, in natural logarithms
of what so many times the particles are worth.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidArgument, check_number, shown
from ..files import replace
from ..steering import BestOf, Refine
from .job import Job

__all__ = [
    "Budget",
    "Prices",
    "Split",
    "Way",
    "choose",
    "measure",
    "parse_budget",
    "prices_for",
    "told",
    "ways",
]

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_K, _M = range(2, 25), (2, 3, 4, 6, 8)
_N = sorted({round(2 * 1.03**i) for i in range(280)})  # 2 to 7,600, in steps of 3 % or of one
_E = sorted({round(6 * 1.05**i) for i in range(80)})  # 6 to 280, of refinement and of the ODE
_ENOUGH = 24  # evaluations of a particle, beyond which plain images hardly gain
_FEW = 8  # particles, below which more of them come first
_LOOKS = 0.6  # twice the looks are worth so many doublings of the particles
_MOVES = 3.5  # refinement is worth its evaluations over this,
_MOVED = 60  # up to so many
_FILLED = 0.94  # a way that spends less of the budget is taken only if none spends more
_MOST = 10**12
_TRIAL = 0.1  # of the budget, at most, for a measurement
_NO_JOB: Mapping[str, Any] = {}

Trial = Callable[[int, int, int], int]
"""Run N particles through K transitions of M evaluations; the network evaluations it took."""


@dataclass(frozen=True)
class Budget:
    """Seconds, or else network evaluations in all."""

    seconds: float | None = None
    evaluations: int | None = None

    @property
    def amount(self) -> float:
        return self.evaluations or 0.0 if self.seconds is None else self.seconds

    def __str__(self) -> str:
        if self.seconds is None:
            return f"{self.evaluations} network evaluations"
        return f"{self.seconds:g} s"


@dataclass(frozen=True)
class Prices:
    """Of an evaluation and a look at the reward for each particle, of a network call, of a run.

    In seconds, or in network evaluations.
    """

    evaluation: float
    look: float
    call: float = 0.0
    run: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            _price(name, value)

    def of(self, particles: int, evaluations: int, looks: int) -> float:
        """A whole run of so many evaluations and looks a particle."""
        each = evaluations * self.evaluation + looks * self.look
        return self.run + evaluations * self.call + particles * each


def _price(name: str, value: float) -> float:
    return check_number(name, value, "be finite and not negative", lambda v: 0 <= v < math.inf)


class Way(NamedTuple):
    """A way of a method to spend evaluations, whatever the number of particles.

    Attributes
    ----------
    job : Job
        Of the method.
    transitions, steps : int
        K and M; of refinement and the ODE one transition of all.
    looks : int
        At the reward.
    worth : float
        Beside the logarithm of the particles.
    """

    job: Job
    transitions: int
    steps: int
    looks: int
    worth: float

    @property
    def evaluations(self) -> int:
        return self.transitions * self.steps


class Split(NamedTuple):
    """A way and N, and what they are thought to cost."""

    way: Way
    particles: int
    price: float

    def sized(self, guidance: float = 1.0) -> Job:
        """The job in these sizes, of a network under this classifier-free guidance."""
        way = self.way
        return way.job.sized(self.particles, way.transitions, way.steps, guidance)


def parse_budget(text: str) -> Budget:
    """'90s', '2min', '1.5h', or a number of network evaluations, '2000'.

    Raises
    ------
    InvalidArgument
        It is none of these, or not positive.
    """
    found = re.fullmatch(r"\s*([0-9]*\.?[0-9]+)\s*([a-z]*)\s*", text.lower())
    number = float(found[1]) if found else 0.0
    if number > _MOST:
        raise InvalidArgument(f"a budget is at most {_MOST:,}, got {shown(text)}")
    if found and number > 0 and found[2] in _UNITS:
        return Budget(seconds=number * _UNITS[found[2]])
    if found and number >= 1 and not found[2] and number == int(number):
        return Budget(evaluations=int(number))
    raise InvalidArgument(
        f"a budget is a time such as 90s, 2min or 1h, or a number of network evaluations such as "
        f"2000, got {shown(text)}"
    )


def ways(job: Job, guidance: float = 1.0) -> Iterator[Way]:
    """How a job can spend its evaluations, its network under this classifier-free guidance."""
    method = job.method
    if isinstance(method, (Refine, BestOf)):
        for count in _E:
            looks, worth = 1, 0.0
            if isinstance(method, Refine):
                begin = 0 if job.init else job.sampler.evaluations
                looks += method.filling(count, begin, guidance).moves
                worth = _LOOKS * math.log(looks)
                if guidance in (0.0, 1.0):  # else moves are as good as looks, not better
                    worth = math.log(min(count, _MOVED) / _MOVES)
            yield Way(job, 1, count, looks, worth + _images(count))
    else:
        for k, m in product(_K, _M):
            yield Way(job, k, m, k, _LOOKS * math.log(k) + _images(k * m))


def _images(evaluations: int) -> float:
    return 1.5 * math.log(min(evaluations, _ENOUGH)) + 0.1 * math.log(evaluations)


def choose(prices: Prices, amount: float, among: Iterable[Way], pilot: float = 0.0) -> Split:
    """The best split that costs no more than `amount` less that of a pilot, and nearly as much.

    Raises
    ------
    InvalidArgument
        Even the smallest costs more.
    """
    amount -= pilot
    every = [Split(way, n, prices.of(n, way.evaluations, way.looks)) for way in among for n in _N]
    within = [one for one in every if one.price <= amount]
    if not within:
        least = min(every, key=lambda one: one.price)
        raise InvalidArgument(
            f"the budget is too small: two particles of {least.way.evaluations} evaluations cost "
            f"{least.price:.3g}, it is {amount + pilot:.3g}"
            + f", of which the pilot of scale='auto' takes {pilot:.3g}: give a number for scale"
            * bool(pilot)
        )
    filling = [one for one in within if one.price >= _FILLED * amount]
    return max(filling or within, key=_worth)


def _worth(split: Split) -> float:
    n = split.particles
    return split.way.worth + math.log(n) + 0.2 * math.log(min(n, _FEW))


def measure(
    trial: Trial, budget: Budget, among: Sequence[Way], clock: Callable[[], float] = time.monotonic
) -> tuple[Prices, float]:
    """The prices, and what is left of the budget.

    The first trial warms up; four more, of one and of four particles, tell evaluations, looks,
    calls and what a run takes by itself apart. Then a quarter of the particles that this would
    choose, on a part of the way, tell what a larger batch saves.
    """
    began = clock()
    if budget.seconds is None:
        short_run, long_run = trial(1, 1, 1), trial(1, 1, 2)
        return Prices(long_run - short_run, max(0, 2 * short_run - long_run)), budget.amount

    def timed(*sizes: int) -> float:
        start = clock()
        trial(*sizes)
        return clock() - start

    def left() -> float:
        return max(0.0, budget.amount - (clock() - began))

    def batch(particles: int) -> tuple[float, float]:
        """Of so many particles: two evaluations with their look, and an evaluation."""
        short, long = timed(particles, 1, 2), timed(particles, 1, 4)
        return short, max((long - short) / 2, 1e-9)

    timed(1, 1, 1)
    (short, one), (broad, four) = batch(1), batch(4)
    evaluation = min(max((four - one) / 3, 1e-9), one)
    look = max(0.0, (broad - short - 6 * evaluation) / 3)
    run = max(0.0, short - 2 * one - look)
    prices = Prices(evaluation, look, one - evaluation, run)
    n = max(5, choose(prices, left(), among).particles // 4)
    if prices.of(n, 2, 1) + prices.of(n, 4, 1) < 2 * _TRIAL * budget.amount:
        broad, many = batch(n)
        evaluation = min(max((many - one) / (n - 1), 1e-9), many / n)
        look = max(0.0, (broad - run - 2 * many) / n)
        prices = Prices(evaluation, look, many - n * evaluation, run)
    return prices, left()


def prices_for(
    text: str,
    folder: Path,
    trial: Trial,
    among: Sequence[Way],
    announce: Callable[[str], None] = lambda text: None,
    job: Mapping[str, Any] = _NO_JOB,
) -> tuple[Prices, float]:
    """What was measured for a budget, and what is left of it, kept in the folder.

    Gone on with, a run has the same prices and so the same sizes. They are those of a `job`, as
    JSON without its prompts and its seed; for another one, and where the file cannot be read, they
    are measured again.
    """
    budget, file = parse_budget(text), folder / "budget.json"
    what = {"budget": str(budget), "job": dict(job)}
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if {name: known[name] for name in what} == what:
            return Prices(**known["prices"]), _price("left", known["left"])
    announce(f"measuring, to spend {budget}")
    prices, left = measure(trial, budget, among)
    replace(file, json.dumps({**what, "prices": asdict(prices), "left": left}).encode())
    return prices, left


def told(split: Split, prices: Prices, budget: str) -> str:
    """What was chosen, and why."""
    way, unit = split.way, " s" if parse_budget(budget).seconds is not None else " evaluations"
    shape = f"{way.transitions} transitions of {way.steps} evaluations"
    if way.transitions == 1:
        shape = f"{way.steps} evaluations"
    dear = prices.look / prices.evaluation
    why = f", since a look at the reward costs as much as {dear:.2g} evaluations" * bool(dear)
    return (
        f"{way.job.method.word}: {split.particles} particles, {shape}, "
        f"{way.looks} look{'s' * (way.looks > 1)} each, {split.price:.3g}{unit}{why}"
    )
