"""The one loop: every method that looks at particles on their way goes through it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import cast

import torch

from ..denoisers import DenoiserLike, as_denoiser
from ..errors import InvalidArgument
from ..execute import Boundary
from ..plans import Sampler, Table
from ..progress import PROGRESS, progress_bar
from ..rewards import RewardLike
from ..settings import Function, Is
from .method import Course, Method
from .pilot import Pilot, own_scale, pilot_of, settled
from .population import Population, Run, kept
from .results import Costs, SearchResult
from .shards import Shards
from .state import History, Observer, Recorder, Saved, Step
from .strength import Found, Strength

__all__ = ["Watch", "begin", "conduct", "finished", "pass_boundaries"]


_RECORD = Is(
    Recorder,
    "glass_flows.runs.RunFolder(...), of a path and not the path itself, or None",
    optional=True,
)
_OBSERVER = Function("a function of a step, or None", optional=True)


class Watch:
    """Who is told of a run, and where it goes on.

    Parameters
    ----------
    record : Recorder, optional
        Keeps the run; if it has kept a part of it already, the run goes on from there.
    on_boundary : callable, optional
        Called with every step.
    progress : bool or None
        Show a bar; None shows one on a terminal once the run takes over two seconds.
    """

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

    def after(self, step: Step) -> None:
        if self.record is not None:
            self.record.step(step)
        if self.on_boundary is not None:
            self.on_boundary(step)


def conduct(
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Method,
    sampler: Sampler,
    population: Population,
    *,
    shards: Shards | None = None,
    watch: Watch | None = None,
) -> SearchResult:
    """Run a method from its start, or from where it was, to its end."""
    denoiser = as_denoiser(denoiser)
    watch = watch or Watch()
    table = sampler.plan(denoiser.path, denoiser.cfg_scale)
    method.check_table(table)
    watch.resume(population.seed)
    first = 0 if watch.saved is None else watch.saved.index
    calls = method.calls(table, first)
    if population.init is not None and not first:  # nothing is drawn to begin with
        calls -= table.evaluations
    pilot = None
    if watch.saved is None:
        pilot = pilot_of(method, reward, table, denoiser, population, shards)
        calls += 0 if pilot is None else pilot.calls
    with progress_bar(calls, watch.progress, method.word) as advance:
        course = begin(
            table, denoiser, reward, method, population, shards, watch, advance, pilot=pilot
        )
        for last in pass_boundaries(course.run, course.boundaries(), course, watch):
            advance.say(last.news())
        return finished(course, last, method.biases(denoiser))


def begin(
    table: Table,
    denoiser: DenoiserLike,
    reward: RewardLike,
    method: Method,
    population: Population,
    shards: Shards | None,
    watch: Watch,
    advance: Callable[[], None] = lambda: None,
    *,
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
        asked=method,
        found=found,
    )
    run.resume(spent)
    if watch.record is not None:
        watch.record.begin(run)
    return one.begin(run)


def finished(course: Course, last: Step, biases: tuple[str, ...]) -> SearchResult:
    """What a run comes to, and how strongly it has steered."""
    run, result = course.run, course.result(last, biases)
    method = cast(Method, run.tilt)
    strength = Strength.of(
        run.scale,
        result.ancestry,
        course.returned(last),
        course.weighed(last),
        found=run.found,
        tilts=method.tilts,
        remedy=method.remedy,
    )
    return replace(result, strength=strength)


@torch.no_grad()
def pass_boundaries(
    run: Run, source: Iterable[Boundary], course: Course, watch: Watch
) -> Iterator[Step]:
    """At every boundary that `source` stops at: look, weigh, select, and shift the noise."""
    history = History()
    if watch.saved is not None:
        course.restore(watch.saved.carried)
        history = History.of(watch.saved.history)
    for boundary in source:
        watch.before(boundary, course, run, history)
        look = run.look(boundary, gradient=course.wants_gradient(boundary))
        with kept(boundary):
            course.value(look)
            selection = course.select(boundary)
        run.gather(boundary, selection.ancestors, selection.selected)
        if not boundary.final:
            course.gather(selection)
            with kept(boundary):
                course.move(look, selection)
        step = course.step(boundary, selection, run.costs, history)
        history.add(step)
        watch.after(step)
        yield step
