"""The executor: runs any table against any denoiser.

:func:`iterate` stops at every transition boundary, after the first network evaluation (the clean
image estimate D_t(x_t)) and before the transition's noise is drawn, which is where steering looks,
resamples and shifts the noise. :func:`run` merely exhausts it. :func:`interpret` is the same turned
inside out, for loops that somebody else owns.
"""

from __future__ import annotations

from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

import torch
from torch import Tensor
from torch.autograd.forward_ad import unpack_dual

from .denoisers import DenoiserLike, Estimate, as_denoiser
from .errors import InvalidArgument, NonFinite, ShapeError, check_count, shown
from .noise import Draw, check_like, check_tensor, wrong
from .plans.table import Mix, Table, Transition
from .settings import Function

_BLOCK = 2**17  # numbers combined at a time on the CPU: a few registers of them fit its cache

__all__ = [
    "Boundary",
    "Query",
    "check_state",
    "interpret",
    "iterate",
    "run",
]


class Boundary:
    """A pause at the start of a transition, or at the end of the table.

    Attributes
    ----------
    index : int
        Number of the transition about to run; K at the end.
    t : float
        Time of `x`.
    x : Tensor
        (B, *shape), the state x_t; at the end the samples.
    D : Tensor
        (B, *shape), the first denoiser output of the transition: D_t(x_t) if
        `transition.free_value`. At the end the samples themselves.
    estimate : Estimate
        D as it came from the denoiser, before any `select`, with the model's own D where reward
        guidance tilts it.
    transition : Transition or None
        The transition about to run; None at the end.
    noise : Tensor or None
        Once the transition has drawn a shifted noise: ε before the shift.
    """

    def __init__(
        self, index: int, t: float, x: Tensor, estimate: Estimate, transition: Transition | None
    ) -> None:
        self.index, self.t, self.x, self.transition = index, t, x, transition
        self.estimate, self.D = estimate, estimate.D
        self.delta: Tensor | None = None
        self.noise: Tensor | None = None

    @property
    def final(self) -> bool:
        return self.transition is None

    @property
    def stochastic(self) -> bool:
        """Whether noise follows, so that copies of a particle part."""
        return self.transition is not None and self.transition.stochastic

    def select(self, ancestors: Tensor) -> None:
        """Replace particle i by particle `ancestors[i]` (int64, shape (B,)), x and D together.

        Copies part again only if the transition draws noise (`transition.stochastic`).
        """
        self._still_open("resample")
        if not isinstance(ancestors, Tensor):
            raise ShapeError(f"ancestors must be an int64 tensor, got {shown(ancestors)}")
        if ancestors.shape != self.x.shape[:1] or ancestors.dtype != torch.int64:
            raise ShapeError(
                f"ancestors must be int64 of shape {tuple(self.x.shape[:1])}, "
                f"got {ancestors.dtype} of shape {tuple(ancestors.shape)}"
            )
        if wrong(((ancestors < 0) | (ancestors >= len(self.x))).any()):
            raise InvalidArgument(
                f"ancestors must lie in 0..{len(self.x) - 1}, got {ancestors.tolist()}"
            )
        self.x, self.D = self.x[ancestors], self.D[ancestors]

    def shift(self, delta: Tensor) -> None:
        """Draw this transition's ε from N(δ, I) instead of N(0, I); δ shaped like x."""
        self._still_open("shift the noise")
        if self.transition is None or not self.transition.stochastic:
            raise InvalidArgument(f"boundary {self.index} draws no noise that could be shifted")
        if check_tensor(delta, "delta").shape != self.x.shape:
            raise ShapeError(
                f"delta must be shaped like x, {tuple(self.x.shape)}, got {tuple(delta.shape)}"
            )
        self.delta = delta.to(self.x)

    def _still_open(self, wish: str) -> None:
        if self.transition is not None and self.transition.input.eps:
            raise InvalidArgument(
                f"cannot {wish} at boundary {self.index}: the first query of this transition has "
                "already used its noise (a cut s range of the paper's solver does this)"
            )


@dataclass
class Query:
    """A network evaluation that a sampler waits for.

    Attributes
    ----------
    y : Tensor
        (B, *shape), the network's input. At the start of a transition it is x_t itself (unless the
        table's first query uses noise), and another tensor may be put in its place.
    time : float
        In [0, 1].
    index, row : int
        Number of the transition, and of the evaluation within it.
    """

    y: Tensor
    time: float
    index: int
    row: int


def interpret(
    table: Table, x: Tensor, noise: Draw, patient: bool = False, first: int = 0
) -> Generator[Query | Boundary, Estimate | None, None]:
    """Run `table` from x, for those who own the loop: send every :class:`Query` its answer.

    Yields a Query for every row, to be answered by ``send(Estimate(D, D))``, and a
    :class:`Boundary` after the first of every transition, to be answered by ``next``; at last the
    boundary with the samples. :func:`iterate` is this with a denoiser.

    Parameters
    ----------
    patient : bool
        Look for NaN at the end only, so that the host never waits for the device on the way.
    first : int
        Number of the transition to begin with; x is the state at its start.
    """
    watch = _Watch()
    for index, transition in islice(enumerate(table), first, None):
        registers = {"x": x}
        if transition.input.eps:  # such a start is no boundary: its first query needs the noise
            registers["eps"] = _drawn(noise, index, x)
        query = Query(_combine(transition.input, registers), transition.t, index, 0)
        for number, row in enumerate(transition.rows):
            query.time, query.row = row.time, number
            answer = yield query
            if answer is None:
                raise InvalidArgument("a Query is answered by send(Estimate(D, D))")
            if number:
                registers["D_prev"] = registers["D"]
            D = registers["D"] = answer.D
            watch.look(D, query.y, index, number, row.time)
            if number == 0:
                if not patient:
                    watch.report()
                x = query.y if transition.input == Mix(x=1.0) else x
                boundary = Boundary(index, transition.t, x, answer, transition)
                yield boundary
                _check_like(boundary.x, x, "x")
                _check_like(boundary.D, D, "D")
                registers |= {"x": boundary.x, "D": boundary.D}
                if transition.stochastic and "eps" not in registers:
                    eps = _drawn(noise, index, boundary.x)
                    if boundary.delta is not None:
                        boundary.noise, eps = eps, eps + boundary.delta
                    registers["eps"] = eps
            if row.update is not None:
                registers["u"] = _combine(row.update, registers, _ours(registers))
            query.y = _combine(row.emit, registers)
        x = query.y
    watch.report()
    yield Boundary(len(table), table.times[-1], x, Estimate(x, x), None)


_NOISE = Function("a source such as glass_flows.noise.KeyedNoise(seed)")


def iterate(
    table: Table, denoiser: DenoiserLike, x: Tensor, noise: Draw, first: int = 0
) -> Iterator[Boundary]:
    """Run `table` from x at its first time, yielding a :class:`Boundary` at every transition.

    The yielded boundary may be changed (`select`, `shift`, or new tensors in `x` and `D`); the run
    goes on with what it then holds. The last one holds the samples.

    Parameters
    ----------
    denoiser : Denoiser
        Must not write to its input, and must return a new tensor at every call.
    x : Tensor
        (B, *shape), float32 or float64: the state at ``table.times[0]``.
    noise : Noise
        Source of each transition's ε, see :mod:`glass_flows.noise`.
    first : int
        Number of the transition to begin with, 0 to K; x is the state at its start.

    Raises
    ------
    ShapeError, InvalidArgument
        x or a denoiser output has the wrong shape or dtype, or the paths differ.
    NonFinite
        The denoiser returned NaN or infinity: which evaluation, and which particles.
    """
    check_state(x)
    check_table(table)
    first = check_count("first", first, 0, len(table))
    _NOISE.check("noise", noise)
    model = as_denoiser(denoiser)
    if model.path != table.path:
        raise InvalidArgument(
            f"the table was planned for {table.path!r}, the denoiser's path is {model.path!r}"
        )
    steps = interpret(table, x, noise, first=first)
    step: Query | Boundary | None = next(steps)
    while step is not None:
        if isinstance(step, Boundary):
            yield step
            step = next(steps, None)
        elif step.row:
            D = model(step.y, step.time)
            step = steps.send(Estimate(D, D))
        else:  # what a guided denoiser knows besides D is for the boundary
            step = steps.send(model.estimate(step.y, step.time))


def run(table: Table, denoiser: DenoiserLike, x: Tensor, noise: Draw) -> Tensor:
    """The state at the end of the table."""
    for boundary in iterate(table, denoiser, x, noise):
        x = boundary.x
    return x


def check_table(table: object) -> None:
    """Raise unless it is a table."""
    if not isinstance(table, Table):
        raise InvalidArgument(f"table must be of glass_flows.plan(...), got {shown(table)}")


def check_state(x: Tensor, name: str = "x") -> Tensor:
    """Return `x` if it is a finite float32 or float64 tensor with a batch dimension."""
    check_like(x, name)
    if wrong(~torch.isfinite(x.sum())) and wrong(~torch.isfinite(x).all()):
        raise NonFinite(f"{name} contains NaN or infinity")
    return x


def _combine(mix: Mix, registers: dict[str, Tensor], ours: bool = False) -> Tensor:
    """A row's linear combination.

    If u has the coefficient 1 and is `ours` (nobody else holds it), the rest is added in place.
    """
    terms = sorted(mix.terms(), key=lambda term: term != ("u", 1.0))
    if not terms:
        return torch.zeros_like(registers["x"])
    (first, scale), *rest = terms
    if scale == 1.0 and not rest:
        return registers[first]
    tensors = [registers[name] for name, _ in terms]
    if _followed(tensors):
        total = tensors[0] * scale
        for tensor, (_, weight) in zip(tensors[1:], rest):
            total = torch.add(total, tensor, alpha=weight)
        return total
    in_place = ours and first == "u" and scale == 1.0
    total = tensors[0] if in_place else torch.empty_like(tensors[0])
    for out, start, *others in _blocks([total, *tensors]):
        if not in_place:
            torch.mul(start, scale, out=out)
        for other, (_, weight) in zip(others, rest):
            out.add_(other, alpha=weight)
    return total


def _followed(tensors: list[Tensor]) -> bool:
    """Whether autograd, backwards or forwards, or a transform such as vmap follows what is done.

    None of them knows what is written into memory that is there already.
    """
    return (
        torch._C._are_functorch_transforms_active()
        or (torch.is_grad_enabled() and any(tensor.requires_grad for tensor in tensors))
        or any(unpack_dual(tensor).tangent is not None for tensor in tensors)  # type: ignore[no-untyped-call]
    )


def _blocks(tensors: list[Tensor]) -> Iterable[tuple[Tensor, ...]]:
    """Matching views of all tensors: on the CPU of a size that its cache holds, else the whole."""
    if tensors[0].device.type != "cpu" or not all(t.is_contiguous() for t in tensors):
        return [tuple(tensors)]
    return zip(*(torch.split(t.view(-1), _BLOCK) for t in tensors))


def _ours(registers: dict[str, Tensor]) -> bool:
    """Whether the tensor in u was made here, and is in no other register."""
    u = registers.get("u")
    return u is not None and all(u is not r for name, r in registers.items() if name != "u")


def _drawn(noise: Draw, index: int, x: Tensor) -> Tensor:
    eps = noise(index, x)
    _check_like(eps, x, "noise")
    return eps


def _check_like(given: Tensor, expected: Tensor, name: str) -> None:
    if not isinstance(given, Tensor) or given.device != expected.device:
        found = given.device if isinstance(given, Tensor) else shown(given)
        raise ShapeError(f"a boundary's {name} must be a tensor on {expected.device}, got {found}")
    if given.shape != expected.shape or given.dtype != expected.dtype:
        raise ShapeError(
            f"a boundary's {name} must stay {expected.dtype} of shape {tuple(expected.shape)}, "
            f"got {given.dtype} of shape {tuple(given.shape)}"
        )


class _Watch:
    """Looks for NaN and infinity without making the host wait at every step.

    A particle's sum is finite exactly if nothing in it is NaN or infinite (or if it overflows,
    which `report` tells apart by name only: such a state is lost as well).
    """

    def __init__(self) -> None:
        self.seen: list[tuple[Tensor, str]] = []

    def look(self, D: Tensor, y: Tensor, index: int, row: int, t: float) -> None:
        if not isinstance(D, Tensor) or D.shape != y.shape or D.dtype != y.dtype:
            given = f"{tuple(D.shape)} {D.dtype}" if isinstance(D, Tensor) else shown(D)
            raise ShapeError(
                f"the denoiser must return a tensor like its input, {tuple(y.shape)} {y.dtype}, "
                f"got {given}"
            )
        where = f"transition {index}, evaluation {row} (t = {t:.6g})"
        self.seen.append((D.detach().reshape(D.shape[0], -1).sum(1), where))

    def report(self) -> None:
        """Raise :class:`NonFinite` for the first evaluation seen that was not finite."""
        if not self.seen:
            return
        wild = ~torch.isfinite(torch.stack([sums for sums, _ in self.seen]))
        if wrong(wild.any()):
            first = int(wild.any(1).nonzero()[0])
            bad = tuple(wild[first].nonzero().flatten().tolist())
            shown = ", ".join(map(str, bad[:8])) + (", ..." if len(bad) > 8 else "")
            raise NonFinite(
                f"the network returned NaN or infinity at {self.seen[first][1]} for particles "
                f"{shown} ({len(bad)} of {wild.shape[1]})",
                bad,
            )
        self.seen.clear()
