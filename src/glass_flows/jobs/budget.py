"""Particles, transitions and evaluations for a time or a number of network evaluations.

A short measurement says what an evaluation and a look at the reward cost, for this model on this
machine; then every split of the budget has a price, and of those that spend it the best is taken.
What is best is read off our results (docs/results.md): up to 24 evaluations a particle the images
gain, more particles and more looks at the reward are worth more than more accurate transitions.
"""

from __future__ import annotations

import json
import math
import re
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidArgument, check_count, shown
from ..files import replace

__all__ = ["Budget", "Prices", "Split", "choose", "chosen_for", "parse_budget"]

_UNITS = {"s": 1.0, "sec": 1.0, "min": 60.0, "m": 60.0, "h": 3600.0}
_ENOUGH = 24  # evaluations of a particle, beyond which images hardly gain
_K, _M = range(2, 25), (2, 3, 4, 6, 8)
_N = sorted({round(2 * 1.03**i) for i in range(240)})  # 2 to 2,300, in steps of 3 % or of one
_FILLED = 0.94  # a split that spends less of the budget is taken only if none spends more
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

    def of(self, particles: int, transitions: int, steps: int) -> float:
        """A whole run."""
        each = steps * self.evaluation + self.look
        return self.run + transitions * (steps * self.call + particles * each)


class Split(NamedTuple):
    """N, K and M, and what they are thought to cost."""

    particles: int
    transitions: int
    steps: int
    price: float


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


def choose(prices: Prices, amount: float) -> Split:
    """The best split that costs no more than `amount`, and nearly as much.

    Raises
    ------
    InvalidArgument
        Even the smallest costs more.
    """
    every = [(prices.of(n, k, m), n, k, m) for n in _N for k in _K for m in _M]
    within = [one for one in every if one[0] <= amount]
    if not within:
        raise InvalidArgument(
            f"the budget is too small: two particles of {_K[0]}x{_M[0]} evaluations cost "
            f"{min(every)[0]:.3g}, it is {amount:.3g}"
        )
    filling = [one for one in within if one[0] >= _FILLED * amount]
    price, particles, transitions, steps = max(filling or within, key=_worth)
    return Split(particles, transitions, steps, price)


def _worth(split: tuple[float, int, int, int]) -> float:
    _, particles, transitions, steps = split
    evaluations = transitions * steps
    images = 1.5 * math.log(min(evaluations, _ENOUGH)) + 0.1 * math.log(evaluations)
    return images + math.log(particles) + 0.2 * math.log(transitions)


def measure(
    trial: Trial, budget: Budget, clock: Callable[[], float] = time.monotonic, beside: int = 0
) -> Split:
    """Measure, and choose what is left of the budget for.

    The first trial warms up; four more, of one and of four particles, tell evaluations, looks,
    calls and what a run takes by itself apart. Then a quarter of the particles that this would
    choose, on a part of the way, tell what a larger batch saves, and it is chosen again. What a
    pilot asks, of so many evaluations `beside`, is kept for it.
    """
    began = clock()
    if budget.seconds is None:
        short_run, long_run = trial(1, 1, 1), trial(1, 1, 2)
        prices = Prices(long_run - short_run, max(0, 2 * short_run - long_run))
        return choose(prices, budget.amount - beside * prices.evaluation)

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
    choice = choose(prices, left() - beside * evaluation)
    n = max(5, choice.particles // 4)
    if prices.of(n, 1, 2) + prices.of(n, 1, 4) < 2 * _TRIAL * budget.amount:
        broad, many = batch(n)
        evaluation = min(max((many - one) / (n - 1), 1e-9), many / n)
        look = max(0.0, (broad - run - 2 * many) / n)
        choice = choose(
            Prices(evaluation, look, many - n * evaluation, run), left() - beside * evaluation
        )
    return choice


def chosen_for(
    text: str,
    folder: Path,
    trial: Trial,
    announce: Callable[[str], None] = lambda text: None,
    job: Mapping[str, Any] = _NO_JOB,
    beside: int = 0,
) -> Split:
    """The choice for a budget, kept in the folder: gone on with, a run has the same sizes.

    It is that of a `job`, as JSON without its prompts and its seed; for another one, and where the
    file cannot be read, it is measured again.
    """
    budget, file = parse_budget(text), folder / "budget.json"
    what = {"budget": str(budget), "job": dict(job)}
    with suppress(OSError, ValueError, TypeError, LookupError, AttributeError):
        known = json.loads(file.read_text(encoding="utf-8"))
        if {"job": what["job"], **known, "choice": None} == {**what, "choice": None}:
            price = float(known["choice"].pop("price"))
            sizes = {name: check_count(name, n) for name, n in known["choice"].items()}
            return Split(**sizes, price=price)
    announce(f"measuring, to spend {budget}")
    choice = measure(trial, budget, beside=beside)
    replace(file, json.dumps({**what, "choice": choice._asdict()}).encode())
    cost = f"{choice.price:.3g}{' s' if budget.seconds is not None else ' evaluations'}"
    announce(
        f"{choice.particles} particles, {choice.transitions} transitions of {choice.steps} "
        f"evaluations: {cost}"
    )
    return choice
