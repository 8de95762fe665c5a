"""The one loop: every method that looks at particles on their way goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor

from ..denoisers import DenoiserLike, as_denoiser
from ..errors import InvalidArgument, plain, shown
from ..execute import Boundary
from ..plans import Sampler, Table
from ..progress import PROGRESS, progress_bar
from ..rewards import Reward, RewardLike
from ..settings import Function, Is
from .held_out import Also, Beside, held_out
from .method import Course, Method
from .overoptimisation import falls
from .pilot import Pilot, own_scale, pilot_of, settled
from .population import Population, Run, kept
from .results import Costs, SearchResult
from .shards import Shards
from .state import History, Observer, Recorder, Saved, Scene, Step
from .strength import Found, Strength
from .values import Look
from .weights import weighted_mean

_RECORD = Is(
    Recorder,
    "glass_flows.runs.RunFolder(...), of a path and not the path itself, or None",
    optional=True,
)
_NONE: Mapping[str, Reward] = {}
_OBSERVER = Function("a function of a step, or None", optional=True)


class Watch:
    """Who is told of a run, and where it goes on.

    Parameters
    ----------
    record : Recorder, optional
        Keeps the run; if it has kept a part of it already, the run goes on from there.
    on_boundary : callable, optional
        Called with every step; True ends the run there.
    progress : bool or None
        Show a bar; None shows one on a terminal or in a notebook once the run takes over two
        seconds.

    Attributes
    ----------
    decode : callable, optional
        Clean states (n, *shape) to n PIL images, for ``step.images()``.
    stopped : Boundary or None
        Where `on_boundary` ended the run.
    """

    decode: Callable[[Tensor], list[Any]] | None = None
    stopped: Boundary | None = None

    def __init__(
        self,
        record: Recorder | None = None,
        on_boundary: Observer | None = None,
        progress: bool | None = None,
    ) -> None:
        self.record: Recorder | None = _RECORD.read("record", record)
        self.on_boundary: Observer | None = _OBSERVER.read("on_boundary", on_boundary)
        self.progress: bool | None = PROGRESS.read("progress", progress)
        self.saved: Saved | None = None

    def resume(self, seed: int | None) -> None:
        """Look for an earlier part of the run."""
        if self.record is None:
            return
        if seed is None:
            raise InvalidArgument("a recorded run needs a seed=, so that it can go on where it was")
        self.saved = self.record.saved()

    def before(self, boundary: Boundary, course: Course, run: Run, history: History) -> None:
        if self.saved is not None and boundary.index == self.saved.index:
            run.resume(self.saved.costs)
        if self.record is not None:
            x = run.shards.gather(boundary.x)
            carried = course.carried()
            if run.found is not None:
                carried["found"] = run.found.tensor()
            self.record.save(Saved(boundary.index, x, carried, history.stacked(), run.costs))

    def after(self, step: Step, run: Run) -> None:
        if self.record is not None:
            self.record.step(step)
        answer = None if self.on_boundary is None else plain(self.on_boundary(step))
        if not isinstance(answer, (bool, type(None))):
            with kept(step.boundary):
                raise InvalidArgument(
                    "on_boundary returns True to end the run at this boundary, and None or False "
                    f"to go on, got {shown(answer)}"
                )
        # One process that wants to stop stops all of them.
        (wishes,) = run.shards.total(int(answer is True))
        if wishes and not step.boundary.final:
            self.stopped = step.boundary


def conduct(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Method,
    sampler: Sampler,
    population: Population,
    shards: Shards | None = None,
    watch: Watch | None = None,
    also: Also = None,
) -> SearchResult:
    """Run a method from its start, or from where it was, to its end."""
    denoiser, beside = as_denoiser(denoiser), held_out(also)
    watch = watch or Watch()
    table, method = sampler.plan(denoiser.path, denoiser.cfg_scale), method.fitted(denoiser)
    method.check_table(table)
    watch.resume(population.seed)
    first = 0 if watch.saved is None else watch.saved.index
    calls = method.calls(table, first, denoiser.cfg_scale)
    if population.init is not None and not first:  # nothing is drawn to begin with
        calls -= table.evaluations
    pilot = None
    if watch.saved is None:
        pilot = pilot_of(method, reward, table, denoiser, population, shards, beside)
        calls += 0 if pilot is None else pilot.calls
    with progress_bar(calls, watch.progress, method.word) as advance:
        course = begin(
            table, denoiser, reward, method, population, shards, watch, advance, beside, pilot
        )
        for last in pass_boundaries(course, watch, course.boundaries()):
            advance.say(last.news())
        return come_to(course, last, method.biases(denoiser), watch)


def begin(
    table: Table,
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Method,
    population: Population,
    shards: Shards | None,
    watch: Watch,
    advance: Callable[[], None] = lambda: None,
    also: Mapping[str, Reward] = _NONE,
    pilot: Pilot | None = None,
) -> Course:
    """The course of a method through a table, at its first boundary or at the one that was saved.

    Here λ becomes a number: all below sees no other.
    """
    saved, found, spent = watch.saved, own_scale(method, reward), Costs()
    if saved is not None and "found" in saved.carried:
        found = Found.of(saved.carried["found"])
    elif pilot is not None:
        found, spent = pilot.draw(denoiser, reward, advance)
    run = Run(
        table,
        denoiser,
        reward,
        one := settled(method, found),
        population if saved is None else population.at(saved.x.to(population.home(denoiser))),
        first=0 if saved is None else saved.index,
        shards=shards,
        advance=advance,
        also=also,
        asked=method,
        found=found,
    )
    run.resume(spent)
    if watch.record is not None:
        watch.record.begin(run)
    return one.begin(run)


@torch.no_grad()
def pass_boundaries(course: Course, watch: Watch, source: Iterable[Boundary]) -> Iterator[Step]:
    """At every boundary that `source` stops at: look, weigh, select, and shift the noise.

    Where `watch` is told to stop, the clean estimates there are the end.
    """
    run, history, watch.stopped = course.run, History(), None
    if watch.saved is not None:
        course.restore(watch.saved.carried)
        history = History.of(watch.saved.history)
    for boundary in source:
        watch.before(boundary, course, run, history)
        yield _passed(boundary, course, watch, history)
        if watch.stopped is not None:  # no state is kept of it: resumed, the run stops here again
            yield _passed(course.end(boundary), course, watch, history)
            return


def _passed(boundary: Boundary, course: Course, watch: Watch, history: History) -> Step:
    run = course.run
    look = run.look(boundary, gradient=course.wants_gradient(boundary))
    with kept(boundary):
        course.value(look)
        also, shares = _asked_beside(course, look, history), course.shares
        selection = course.select(boundary)
    run.gather(boundary, selection.ancestors, selection.selected)
    if not boundary.final:
        course.gather(selection)
        with kept(boundary):
            course.move(look, selection)
    step = course.step(boundary, selection, run.costs, history)
    beside = Beside.of(also, step.rewards, shares) if run.beside else None
    step = replace(step, beside=beside, scene=Scene(run.shards.own, watch.decode))
    history.add(step)
    watch.after(step, run)
    return step


def _asked_beside(course: Course, look: Look, history: History) -> dict[str, Tensor]:
    """What held-out rewards say of the particles, (P, N), once values have been taken."""
    found, before = course.run.held_out(course.clean(look.boundary), look.where), history.tensors
    for name, new in found.items():
        past = before.get(f"also.{name}")
        held = None if not past else past[-1].gather(1, before["ancestors"][-1])
        found[name] = course.settled(look.boundary, new, held)
    return found


def come_to(course: Course, last: Step, biases: tuple[str, ...], watch: Watch) -> SearchResult:
    """What a run comes to, at its end or where it was stopped, and how strongly it has steered."""
    stop = watch.stopped
    if stop is not None:
        biases = (*biases, course.stop_bias(stop))
    result = course.result(last, biases)
    method = cast(Method, course.run.tilt)
    strength = Strength.of(
        course.run.scale,
        course.run.population.particles,
        result.lineage[0],
        course.weighed(last),
        found=course.run.found,
        tilts=method.tilts,
        remedy=method.remedy,
    )
    stopped = None if stop is None else stop.index
    return replace(result, strength=strength, stopped=stopped, **_held_out(course, last))


def _held_out(course: Course, last: Step) -> dict[str, Any]:
    """What held-out rewards have seen of a whole run, as fields of its result."""
    if not last.also:
        return {}
    history, slots = last.history.stacked(), course.returned(last)
    told = {"reward": history["beside.rewards"]}
    told |= {name: history[f"also.{name}"] for name in last.also}
    return {
        "also": {name: values.gather(1, slots) for name, values in last.also.items()},
        "paths": {name: weighted_mean(history["beside.weights"], v) for name, v in told.items()},
        "warnings": tuple(str(one) for one in falls(course.ladder(last, history))),
    }
