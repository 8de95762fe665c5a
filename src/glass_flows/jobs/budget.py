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
from dataclasses import replace as replace_job
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidArgument, check_number, shown
from ..files import replace
from ..steering import BestOf, Refine
from .job import Job

__all__ = [
    "Budget",
    "Kept",
    "Prices",
    "Split",
    "Way",
    "choose",
    "left_out",
    "measure",
    "parse_budget",
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
    evaluations : int
        K M, or those of them that are run where a part is left out.
    looks : int
        At the reward.
    worth : float
        Beside the logarithm of the particles.
    """

    job: Job
    transitions: int
    steps: int
    evaluations: int
    looks: int
    worth: float


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


def ways(job: Job, guidance: float = 1.0, share: float = 1.0) -> Iterator[Way]:
    """How a job can spend its evaluations, its network under this classifier-free guidance.

    `share` of the transitions are run, where a pipeline begins with noise on an image; ways that
    would begin with noise alone are none.
    """
    method = job.method
    if isinstance(method, (Refine, BestOf)):
        for count in _E:
            looks, worth, begin = 1, 0.0, count
            if isinstance(method, Refine):
                begin = 0 if job.init else job.sampler.evaluations
                looks += method.filling(count, begin, guidance).moves
                worth = _LOOKS * math.log(looks)
                if guidance in (0.0, 1.0):  # else moves are as good as looks, not better
                    worth = math.log(min(count, _MOVED) / _MOVES)
            left = left_out(begin, share)
            if left or share == 1.0:
                yield Way(job, 1, count, count - left, looks, worth + _images(count - left))
    else:
        for k, m in product(_K, _M):
            left = left_out(k, share)
            if left or share == 1.0:
                looks = k - left
                worth = _LOOKS * math.log(looks) + _images(looks * m)
                yield Way(job, k, m, looks * m, looks, worth)


def left_out(count: int, share: float) -> int:
    """Of so many transitions those before the noise that is put on an image, as pipelines count."""
    return int(max(count - min(count * share, count), 0))


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
    if not every:
        raise InvalidArgument(
            f"of up to {_K[-1]} transitions none is left out at this strength, so that all begin "
            "with noise alone and the image does nothing: lower it, or leave out --budget"
        )
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


class Kept:
    """`budget.json`: what was measured for a budget, and what was chosen with it.

    Gone on with, a run has the same sizes, and of a finished one nothing has to be loaded to know
    them. They are those of a budget and a `job`, as JSON without prompts, seed and method; for
    others, and where the file cannot be read, it is as if there were none.
    """

    def __init__(self, budget: str, folder: Path, job: Mapping[str, Any] = _NO_JOB) -> None:
        self.budget, self.file = parse_budget(budget), folder / "budget.json"
        self.what = {"budget": str(self.budget), "job": dict(job)}
        self.measured: tuple[Prices, float] | None = None
        self.chosen: list[dict[str, Any]] = []
        with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
            known = json.loads(self.file.read_text(encoding="utf-8"))
            if {name: known[name] for name in self.what} == self.what:
                chosen = [dict(one) for one in known["chosen"]]
                self.measured = Prices(**known["prices"]), _price("left", known["left"])
                self.chosen = chosen

    def prices(
        self,
        trial: Trial,
        among: Sequence[Way],
        announce: Callable[[str], None] = lambda text: None,
    ) -> tuple[Prices, float]:
        """The prices, and what is left of the budget; measured if they are not known."""
        if self.measured is None:
            announce(f"measuring, to spend {self.budget}")
            self.measured = measure(trial, self.budget, among)
            self._write(*self.measured)
        return self.measured

    def choice(self, among: Sequence[Job]) -> tuple[Job, str] | None:
        """What was chosen among some jobs, and what was told of it."""
        with suppress(ValueError, TypeError, LookupError, AttributeError):
            (found,) = [one for one in self.chosen if one.items() >= _of(among).items()]
            job = Job.from_json(found["job"])
            return replace_job(job, prompts=among[0].prompts, seed=among[0].seed), found["told"]
        return None

    def choose(self, among: Sequence[Job], chosen: Job, told: str) -> None:
        """Keep a choice that was made at the prices."""
        self.chosen.append({**_of(among), "job": _plain(chosen), "told": told})
        if self.measured is not None:
            self._write(*self.measured)

    def _write(self, prices: Prices, left: float) -> None:
        found = {**self.what, "prices": asdict(prices), "left": left, "chosen": self.chosen}
        replace(self.file, json.dumps(found).encode())


def _of(jobs: Sequence[Job]) -> dict[str, Any]:
    """What a choice among jobs depends on beside the prices: a pilot is of all prompts together."""
    return {"of": list(map(_plain, jobs)), "prompts": len(jobs[0].prompts)}


def _plain(job: Job) -> dict[str, Any]:
    """As JSON, without prompts and seed."""
    found: dict[str, Any] = json.loads(json.dumps(replace_job(job, prompts=(), seed=0).as_json()))
    return found


def told(split: Split, prices: Prices, budget: Budget) -> str:
    """What was chosen, and why."""
    way, unit = split.way, " evaluations" if budget.seconds is None else " s"
    shape = f"{way.transitions} transitions of {way.steps} evaluations"
    if way.transitions == 1:
        shape = f"{way.steps} evaluations"
    if way.evaluations < way.transitions * way.steps:
        shape += f", of which {way.evaluations} evaluations are run"
    dear = prices.look / prices.evaluation
    why = f", since a look at the reward costs as much as {dear:.2g} evaluations" * bool(dear)
    return (
        f"{way.job.method.word}: {split.particles} particles, {shape}, "
        f"{way.looks} look{'s' * (way.looks > 1)} each, {split.price:.3g}{unit}{why}"
    )
