"""Calls drawn at random, with right and wrong arguments: right, refused by name, or a fault.

A :class:`Surface` is one call with what its arguments may rightly be; wrong ones come from one pool
for all.
"""

from __future__ import annotations

import argparse
import itertools
import math
import random
import signal
import traceback
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

import glass_flows as g
from glass_flows import grids, paths, plans, rewards
from glass_flows.errors import GlassError
from glass_flows.steering import Acceptance, Adaptive, PosteriorValue, Ramp
from glass_flows.steering.strength import Auto

TESTS = Path(__file__).parent
PATIENCE = 10.0  # seconds that a call may take
LINEAR = paths.Linear()
TABLE = g.plan(LINEAR, transitions=2, steps=2, rho=0.4)
TRAINED = paths.DiscreteDiffusion(np.linspace(0.99, 0.01, 12))


def any_of(*values: Any) -> Callable[[random.Random], Any]:
    """One of the values; functions without arguments make theirs anew."""
    return lambda rng: made(rng.choice(values))


def made(value: Any) -> Any:
    return value() if isinstance(value, New) else value


class New:
    """A value that is made anew for every call, since it might be changed."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self.make = make

    def __call__(self) -> Any:
        return self.make()


class Strange:
    """An object that cannot even be shown."""

    def __repr__(self) -> str:
        raise RuntimeError("no repr")


def returning(value: Any) -> Callable[..., Any]:
    return lambda *_, **__: value


def writing(x: Tensor, *_: Any, **__: Any) -> Tensor:
    """A function that writes into its input."""
    return x.mul_(0.5)


NUMBERS = [
    *(0, 1, 3, -1, 2**31, 2**63, 10**9, 10**400, -(10**400), 10**5000, True, False),
    *(0.0, 0.3, 1.5, -0.5, 1e-320, 1e308, math.nan, math.inf, -math.inf, 1 + 2j),
    *(Decimal("0.5"), Fraction(1, 3), np.float32(0.5), np.float64("nan"), np.int64(2)),
    *(np.uint8(3), np.bool_(True), np.complex64(1j), np.array(0.5), np.array(2), np.array("a")),
]
LISTS = [
    *([], (), {}, [1], [2, 3], (0.0, 0.5, 1.0), [0.5, math.nan], [1, None], ["a"], [[0.5]]),
    *(range(3), range(10**12), set(), {"a": 1}, {"type": "sampler"}, np.array([1, 2]), np.zeros(0)),
    *(np.array([0.0, 1.0]), np.array([[1.0]]), np.array(["a"]), [10**400], [True], [2**63]),
    New(itertools.count),
]
TEXTS = [
    *(
        "",
        "abc",
        "3",
        "none",
        "free",
        "posterior:0",
        "posterior:x",
        "adaptive:2",
        "1:cap=x",
        "ddpm",
    ),
    *("ode", "ddim:2", "paper:-1", "shifted:0", "karras:nan", "nan", "1,2", ",", ":", "=", "\0"),
    *("a" * 5000, "9" * 5000, "[", "]", "cuda", "cuda:9", "meta", "cpu", "euler-maruyama", b"abc"),
]
TENSORS = [
    New(lambda: torch.tensor(0.5)),
    New(lambda: torch.tensor(2)),
    New(lambda: torch.tensor(True)),
    New(lambda: torch.tensor(math.nan)),
    New(lambda: torch.tensor([0.0, 1.0])),
    New(lambda: torch.zeros(0, 3)),
    New(lambda: torch.zeros(4, 2)),
    New(lambda: torch.full((2, 3), math.nan)),
    New(lambda: torch.full((4, 3), math.inf)),
    *(
        New(lambda dtype=dtype: torch.ones(4, 3, dtype=dtype))
        for dtype in (torch.int64, torch.bool, torch.complex64, torch.float16, torch.bfloat16)
    ),
    New(lambda: torch.ones(4, 3, device="meta")),
    New(lambda: torch.ones(4, 3).to_sparse()),
    New(lambda: torch.ones(4, 3, requires_grad=True)),
]
OBJECTS = [
    *(None, object(), Strange(), float, int, g.Denoiser, torch.float32, torch.int64, LINEAR, TABLE),
    *(torch.device("cpu"), torch.device("meta"), New(torch.Generator), g.Sampler(1, 1), g.Twist()),
    *(g.Guidance(), returning(None), returning("x"), returning(math.nan), returning(0.5), writing),
    *(
        returning(torch.zeros(4)),
        returning(torch.zeros(2, 2)),
        returning(1j),
        returning([0.0, 1.0]),
    ),
    *(returning(10**400), lambda x, *_, **__: x, lambda x, *_, **__: x > 0),
]
WRONG = any_of(*NUMBERS, *LISTS, *TEXTS, *TENSORS, *OBJECTS)


# --- what is right ------------------------------------------------------------------------------


def network(x: Tensor, t: Tensor, **conditioning: Any) -> Tensor:
    return 0.5 * x


class Foreign:
    """A model of somebody's own."""

    path = LINEAR
    evaluations_per_call = 1

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return 0.3 * x


def model(path: paths.Path = LINEAR, **options: Any) -> g.Denoiser:
    return g.Denoiser(network, path, prediction="sample", **options)


def reward(z: Tensor) -> Tensor:
    return z.flatten(1).sum(1)


def spoiling(z: Tensor) -> Tensor:
    """A reward that writes into its input."""
    return z.mul_(2.0).flatten(1).sum(1)


states = any_of(New(lambda: torch.randn(4, 3)), New(lambda: torch.randn(4, 3).double()))
times = any_of(0.0, 0.3, 0.5, np.float32(0.25), torch.tensor(0.4))
later = any_of(0.6, 0.9, 1.0, np.array(0.75), 1)
models = any_of(
    *(model(), model(paths.EDM()), model(TRAINED), Foreign(), model(max_batch=2)),
    model(conditioning={"y": torch.zeros(1, 2)}),
    g.GuidedDenoiser(model(), reward),
    g.Denoiser(writing, LINEAR),
)
seeds = any_of(None, 0, 1, np.int64(5), torch.tensor(7), 2**63 - 1)
rewarded = any_of(
    reward,
    spoiling,
    rewards.FunctionReward(reward, differentiable=False),
    2.0 * rewards.as_reward(reward),
    rewards.Cached(spoiling),
    rewards.Clipped(reward, -1.0, 1.0),
    lambda z: torch.where(z.flatten(1).sum(1) > 0, 0.0, -math.inf),
)
devices, dtypes = (
    any_of(None, "cpu", torch.device("cpu")),
    any_of(None, torch.float32, torch.float64),
)
switches = any_of(True, False)
paths_ = any_of(LINEAR, paths.Cosine(), paths.EDM(), paths.VariancePreserving(), TRAINED)
solvers = any_of("default", "first-order", "paper", plans.Default(2.0), plans.Paper(0.5))
positive = any_of(1, 0.5, 2.0, np.float32(3), torch.tensor(1.5), Fraction(1, 2))

SAMPLER = {
    "transitions": any_of(1, 2, 3, np.int32(2), torch.tensor(2)),
    "steps": any_of(1, 2, 3, np.array(2), np.array([1, 2])),
    "rho": any_of(0.4, "ddpm", "ode", "ddim:0.5", g.DDIM(0.5), np.array(0.3), returning(0.2), -1),
    "times": any_of(None, "uniform", "shifted:2", "karras", grids.Karras(), (0.0, 0.4, 1.0)),
    "solver": solvers,
    "start": any_of("trained", "pure"),
}
METHOD = {
    "particles": any_of(2, 4, np.int64(4)),
    "scale": any_of(0, 1.0, 5, np.float32(2), torch.tensor(0.5), "auto", "auto:0.5", Auto(2)),
    "value": any_of(
        "free", "posterior:2:2", PosteriorValue(1, 2), lambda x, t, D: D.mul_(2).sum(1)
    ),
    "boundaries": any_of(None, 1, 2, [0], [0, 1], np.array([0]), 10**9),
    "guidance": any_of(None, "reward", "network:0.5", g.Guidance(clip=1.0)),
}
STEERING = {
    **METHOD,
    "potential": any_of("difference", "max", "sum", "immediate", "terminal", "fkd-max"),
    "schedule": any_of("constant", "linear", "adaptive", Adaptive(0.3), lambda t: t),
    "resampling": any_of("systematic", "ssp", "multinomial"),
    "ess_threshold": any_of(0, 0.5, 1.0, np.float64(0.7)),
    "twist": any_of(0.0, 1, "1:cap=2", g.Twist(0.5)),
    "degenerate": any_of("error", "carry"),
}
SEARCH = {**METHOD, "children": any_of(1, 2)}
REFINE = {
    **{name: METHOD[name] for name in ("particles", "scale")},
    **{name: STEERING[name] for name in ("resampling", "ess_threshold", "degenerate")},
    "moves": any_of(0, 1, 3, np.int64(2)),
    "move_times": any_of(0.3, "ramp", "adaptive:0.5", (0.2, 0.7), Ramp(), Acceptance(), [0.5]),
    "move_steps": any_of(None, 1, 3, [1, 2], np.array([2])),
    "move_guidance": any_of(None, 1, 1.0),
    "schedule": any_of(None, "linear", "adaptive", lambda u: u),
    "returned": any_of("best", "last"),
    "until": any_of(None, 0.0, -math.inf, 10**3),
    "rescore": any_of(0, 2),
}
# --- surfaces -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Surface:
    """A call, and what its arguments may rightly be.

    `check` is given the result and the arguments, and raises AssertionError if it is not right;
    arguments that are not `needed` are mostly left out, and the `fixed` one is never wrong.
    """

    name: str
    call: Callable[..., Any]
    needed: Mapping[str, Callable[[random.Random], Any]]
    given: Mapping[str, Callable[[random.Random], Any]] = field(default_factory=dict)
    check: Callable[[Any, Mapping[str, Any]], None] = lambda result, given: None
    fixed: str = ""

    def draw(self, rng: random.Random) -> dict[str, Any]:
        chosen = [name for name in self.given if rng.random() < 0.25]
        both = {**self.needed, **self.given}
        drawn = {name: both[name](rng) for name in (*self.needed, *chosen)}
        for _ in range(rng.choice((0, 0, 1, 1, 1, 2))):
            drawn[rng.choice([name for name in both if name != self.fixed])] = WRONG(rng)
        return drawn


# --- a call, and what becomes of it -------------------------------------------------------------


class TooLong(BaseException):
    """A call took more than its time."""


def _late(*_: Any) -> None:
    raise TooLong


def tensors_in(value: Any) -> list[Tensor]:
    return (
        [value] if isinstance(value, Tensor) and not value.is_meta and not value.is_sparse else []
    )


def attempt(surface: Surface, given: dict[str, Any]) -> str:
    """ "right", "refused", or what went wrong."""
    before = [(one, one.detach().clone()) for value in given.values() for one in tensors_in(value)]
    old = signal.signal(signal.SIGALRM, _late)
    signal.setitimer(signal.ITIMER_REAL, PATIENCE)
    try:
        try:
            result = surface.call(**given)
        except GlassError as error:
            str(error)
            verdict = "refused"
        else:
            surface.check(result, given)
            verdict = "right"
    except (Exception, TooLong) as error:
        frames = traceback.extract_tb(error.__traceback__)
        inside = [f for f in frames if "glass_flows" in f.filename] or list(frames)
        if Path(frames[-1].filename).is_relative_to(TESTS) and frames[-1] is not inside[-1]:
            return "refused"  # by the user's own function, which was asked as it may be
        return (
            f"{type(error).__name__} at {inside[-1].filename}:{inside[-1].lineno}: {error!s:.150}"
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0.0)
        signal.signal(signal.SIGALRM, old)
    changed = any(not torch.equal(x.nan_to_num(), y.nan_to_num()) for x, y in before)
    return "it changed what it was given" if changed else verdict


def fuzz(listed: list[Surface], seed: int, calls: int) -> tuple[Counter[str], dict[str, str]]:
    """How many calls of each surface were right, and an example of everything that went wrong."""
    rng, right, wrong = random.Random(seed), Counter[str](), {}
    torch.manual_seed(seed)
    for number in range(calls):
        surface = listed[number % len(listed)]
        given = surface.draw(rng)
        verdict = attempt(surface, given)
        right[surface.name] += verdict == "right"
        if verdict not in ("right", "refused"):
            key = f"{surface.name}: {verdict}"
            wrong.setdefault(key, ", ".join(f"{k}={_shown(v)}" for k, v in given.items()))
            right["(wrong)"] += 1
    return right, wrong


def _shown(value: Any) -> str:
    try:
        return f"{value!r:.60}"
    except Exception:
        return type(value).__name__


def check(listed: list[Surface], seed: int, calls: int) -> Counter[str]:
    """Raise AssertionError if a call is neither right nor refused; how many were right."""
    right, wrong = fuzz(listed, seed, calls)
    assert not wrong, "\n".join(f"{what}\n    {given}" for what, given in wrong.items())
    return right


def main(every: list[Surface]) -> None:
    """Calls by hand, from a command line."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--calls", type=int, default=3000)
    parser.add_argument("--only", default="", help="surfaces whose name has this in it")
    asked = parser.parse_args()
    listed = [one for one in every if asked.only in one.name]
    right, wrong = fuzz(listed, asked.seed, asked.calls)
    count = right.pop("(wrong)", 0)
    for what, given in sorted(wrong.items()):
        print(f"{what}\n    {given}")
    never = [one.name for one in listed if not right[one.name]]
    print(f"{asked.calls} calls: {right.total()} right, {count} wrong; never right: {never}")
