"""A PNG drawn again: its job as the options of a command line, checked as those are.

A PNG may come from a stranger. It decides numbers and words, and nothing that loads code, weights
or files: those the user repeats.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from ..errors import InvalidArgument
from ..runs.command import sampler_texts, text_of, texts_of
from ..runs.listing import clean
from ..settings import spelled
from ..steering.methods import foreign_settings
from .job import Job, Loading, settings_in
from .models import kind_of
from .spelling import Options

_BUNDLED = ("digits", "shapes")
_SIZES = ("particles", "transitions", "steps", "moves")


@dataclass(frozen=True)
class Wish:
    """What a command is asked for; None, or nothing, where it is not said."""

    model: str | None = None
    prompts: tuple[str, ...] = ()
    reward: str | None = None
    method: str | None = None
    seed: int | None = None
    budget: str | None = None
    options: Options = field(default_factory=Options)

    def of_job(self) -> dict[str, Any]:
        """Its further fields, as those of a job."""
        given = self.options.job
        init = tuple(map(str, given.get("init", ())))
        numbers = {n: given[n] for n in ("populations", "micro_batch") if n in given}
        return {"init": init, **numbers}


def repeated(file: str | Path, wish: Wish) -> Wish:
    """A wish, completed by what a PNG was drawn with.

    Raises
    ------
    InvalidArgument
        The file says nothing, or what it says is not allowed; or it names code, weights or files
        that the wish does not.
    """
    told = settings_in(file)
    foreign = "pipeline" in told  # of steer_pipeline, which was given objects
    if "latents" in told:
        raise InvalidArgument(
            f"{str(file)!r} was begun with latents of its own, {told['latents']}, which it does "
            "not hold: call steer_pipeline with them again"
        )
    if foreign:
        told = {name: value for name, value in told.items() if name != "pipeline"}
        told |= {"version": Job.version, "model": wish.model or ""}
        told["init"] = [told["init"]] if "init" in told else []
    job = Job.from_json(told)
    _refuse_to_load(file, job, wish, foreign)
    if job.model == "digits" and job.populations == 1 and "populations" not in wish.options.job:
        raise InvalidArgument(
            f"{str(file)!r} is of a batch of digits, and `align` compares methods on several "
            "populations of them: give --populations, or `batch` the same file and seed again"
        )
    options = wish.options
    return replace(
        wish,
        model=job.model if wish.model is None else wish.model,
        prompts=wish.prompts or tuple(map(str, job.prompts)),
        reward=job.reward if wish.reward is None else wish.reward,
        method=job.method.word if wish.method is None else wish.method,
        seed=job.seed if wish.seed is None else wish.seed,
        options=replace(
            options,
            job={**_numbers(job), **options.job},
            held_out={**({"also": list(job.also)} if job.also else {}), **options.held_out},
            method={**_method_texts(job, wish), **options.method},
            sampler={**_sized(sampler_texts(job.method, job.sampler), wish), **options.sampler},
            batching={**_batching(job, wish), **options.batching},
            loading={**_harmless(job.loading), **options.loading},
            viewing={**texts_of(job.viewing), **options.viewing},
            call={**job.call, **options.call},
        ),
    )


def _numbers(job: Job) -> dict[str, int]:
    """Of its further fields those that load nothing."""
    found = {} if job.micro_batch is None else {"micro_batch": job.micro_batch}
    return found if job.populations == 1 else {**found, "populations": job.populations}


def _method_texts(job: Job, wish: Wish) -> Mapping[str, str]:
    """The settings of its method, as far as the one that is wished for has them."""
    told = _sized(texts_of(job.method), wish)
    unknown = [] if wish.method is None else foreign_settings(wish.method, told)
    return {name: text for name, text in told.items() if name not in unknown}


def _sized(told: Mapping[str, str], wish: Wish) -> dict[str, str]:
    """Without what a budget chooses."""
    left_out = _SIZES if wish.budget is not None else ()
    return {name: text for name, text in told.items() if name not in left_out}


def _batching(job: Job, wish: Wish) -> dict[str, str]:
    """With what is as by default, but not as by the model's own."""
    own = kind_of(job.model if wish.model is None else wish.model).batching
    return {name: text_of(job.batching, name) for name in own} | texts_of(job.batching)


def _harmless(loading: Loading) -> dict[str, str]:
    return {n: text for n, text in texts_of(loading).items() if n not in ("lora", "revision")}


def _refuse_to_load(file: str | Path, job: Job, wish: Wish, foreign: bool) -> None:
    """Raise unless the wish itself names all that would be loaded."""
    if lacking := list(_to_be_named(job, wish, foreign)):
        shown = clean(shlex.join(lacking))
        raise InvalidArgument(
            f"{str(file)!r} was drawn with what a picture must not choose, as it loads code, "
            f"weights or files: look at it, and give it again, or something else: {shown}"
        )


def _to_be_named(job: Job, wish: Wish, foreign: bool) -> Iterator[str]:
    if wish.model is None and (foreign or job.model not in _BUNDLED):
        yield from ("--model", "FOLDER-OR-HUB-ID" if foreign else job.model)
    if wish.reward is None and (foreign or not _by_itself(job.reward)):
        yield from ("--reward", job.reward)
    if not wish.options.held_out.get("also"):
        for name in job.also:
            if not _by_itself(name):
                yield from ("--also", name)
    for name in ("lora", "revision"):
        held = getattr(job.loading, name)
        if held is not None and name not in wish.options.loading:
            yield from (f"--{name}", held)
    if not wish.options.job.get("init"):
        for picture in job.init:
            yield from ("--init", picture)
    for name, value in job.call.items():
        plain = value is None or isinstance(value, (bool, int, float))
        words = re.fullmatch(r"(negative_)?prompt(_\d+)?", name) and isinstance(value, str)
        if not (plain or words or name in wish.options.call):
            yield from ("--argument", f"{name}={spelled(value)}")


def _by_itself(reward: str) -> bool:
    """Whether a reward's name loads nothing of somebody's own."""
    kind, _, place = reward.partition(":")
    return not place or (kind in ("class", "judge") and re.fullmatch("[0-9]", place) is not None)
