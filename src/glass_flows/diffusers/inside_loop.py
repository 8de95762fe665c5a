"""Pipelines without an adapter: they run their own loop, and are steered from inside `step`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..denoisers import BaseDenoiser
from ..errors import InvalidArgument, check_name
from ..execute import Boundary
from ..noise import START, KeyedNoise
from ..paths import Path
from ..plans.sampler import RHO, SOLVER
from ..rewards import Decoded
from ..steering import PosteriorValue, SearchResult, Step
from ..steering.loop import Watch, pass_boundaries
from ..steering.population import Population, Run
from .asked import Asked
from .families.base import decode_latents
from .refusals import network_of
from .scheduler import GlassScheduler

__all__ = ["run_inside"]

_PROMPTS = ("prompt", "class_labels")


def run_inside(asked: Asked, watch: Watch) -> tuple[SearchResult, list[Image.Image]]:
    """The result and the images of its samples."""
    takes = inspect.signature(asked.pipe.__call__).parameters
    for name in ("generator", *(["latents"] if asked.latents is not None else [])):
        check_name(f"argument of {asked.name}", name, takes)
    if not any(name in takes for name in _PROMPTS):
        raise InvalidArgument(f"{asked.name} takes neither of {', '.join(_PROMPTS)}")
    if unused := [name for name in ("output_type", "return_dict") if name in asked.call]:
        raise InvalidArgument(f"{', '.join(unused)}: images are returned as PIL; leave it out")
    if isinstance(asked.batching.max_batch, int) or asked.batching.checkpoint:
        raise InvalidArgument(
            f"max_batch and checkpoint need an adapter: {asked.name} has none, and its own loop "
            "asks its network about all particles at once. Take fewer particles, or decode_batch="
        )
    posterior = isinstance(asked.method.looks_with, PosteriorValue)
    if asked.method.guided or posterior:
        wish = "a posterior value" if posterior else "guidance"
        raise InvalidArgument(
            f"{wish} needs an adapter, which {asked.name} has not: its network is asked by its own "
            "loop only. Use value='free' and twist=1, or write an adapter "
            "(docs/diffusers/new-family.md)"
        )
    sampler = asked.sampler
    listed = isinstance(sampler.steps, tuple) or isinstance(sampler.rho, tuple)
    if listed or callable(sampler.rho) or sampler.times is not None:
        raise InvalidArgument(
            f"{asked.name} has no adapter, and runs its own loop on its own grid: times=, lists of "
            "steps or rho, and a function for rho need an adapter"
        )
    scheduler = GlassScheduler.from_pipeline(
        asked.pipe,
        rho=RHO.write(sampler.rho),
        steps=sampler.steps,
        solver=SOLVER.write(sampler.solver),
        start=sampler.start,
        end="data",
        seed=asked.seed,
    )
    return _InsideLoop(asked, watch).run(scheduler)


class _Witness(BaseDenoiser):
    """Stands for the pipeline's network where only counts and the path are asked of a denoiser."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        raise InvalidArgument(
            "a pipeline without an adapter runs its own loop: its network can be asked nothing else"
        )


class _InsideLoop:
    """A method inside `step`: between D and the draw of ε, the scheduler's state permuted."""

    def __init__(self, asked: Asked, watch: Watch) -> None:
        self.asked, self.watch = asked, watch
        decode = asked.decode or self._decode
        self.scored = Decoded(asked.reward, decode, max_batch=asked.batching.decode_batch)
        self.steps: Iterator[Step] | None = None
        self.called = 0

    @contextmanager
    def _bar(self) -> Iterator[None]:
        """The pipeline's own progress bar, shown or not as it was asked for."""
        pipe, wanted = self.asked.pipe, self.watch.progress
        if wanted is None:
            yield
            return
        held = dict(vars(pipe).get("_progress_bar_config", {}))
        pipe.set_progress_bar_config(**{**held, "disable": not wanted})
        try:
            yield
        finally:
            pipe.set_progress_bar_config(**held)

    def _repeated(self, name: str, given: Any) -> Any:
        """A text of each prompt, such as the negative one, for each of its particles."""
        asked = self.asked
        if "prompt" not in name or not isinstance(given, (list, tuple)):
            return given
        if len(given) != len(asked.prompts):
            raise InvalidArgument(f"{len(given)} of {name} given for {len(asked.prompts)} prompts")
        return [one for one in given for _ in range(asked.method.particles)]

    def run(self, scheduler: GlassScheduler) -> tuple[SearchResult, list[Image.Image]]:
        asked, pipe = self.asked, self.asked.pipe
        prompts = [p for p in asked.prompts for _ in range(asked.method.particles)]
        noise = KeyedNoise(asked.seed)
        seeds = [int(noise.bits(START, 0, i).random_raw()) >> 1 for i in range(len(prompts))]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        own, scheduler.at_boundary = pipe.scheduler, self._at_boundary
        given = {name: self._repeated(name, one) for name, one in asked.call.items()}
        if asked.latents is not None:
            given["latents"] = asked.latents
        takes = inspect.signature(pipe.__call__).parameters
        given[next(name for name in _PROMPTS if name in takes)] = prompts
        try:
            pipe.scheduler = scheduler
            with self._counted(), self._bar():
                images = pipe(
                    num_inference_steps=asked.sampler.transitions, generator=generators, **given
                ).images
        finally:
            pipe.scheduler = own
        P, N = self.last.rewards.shape
        biases = asked.method.biases(_Witness(scheduler.schedule.path))
        returned = (self.course.returned(self.last) + torch.arange(P)[:, None] * N).flatten()
        return self.course.result(self.last, biases), [images[i] for i in returned.tolist()]

    def _at_boundary(self, boundary: Boundary) -> None:
        asked = self.asked
        if self.steps is None:
            table = asked.pipe.scheduler.running
            asked.method.check_table(table)
            population = Population.of(
                asked.method.particles,
                tuple(boundary.x.shape[1:]),
                prompts=asked.prompts,
                seed=asked.seed,
                x=boundary.x,
            )
            witness = _Witness(table.path)
            self.job = Run(table, witness, self.scored, asked.method, population)
            self.course = asked.method.begin(self.job)
            self.steps = pass_boundaries(self.job, self._pending(), self.course, self.watch)
        self.boundary = boundary
        self.job.model.network_evaluations = self.called
        self.last = next(self.steps)

    def _pending(self) -> Iterator[Boundary]:
        while True:
            yield self.boundary

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the rows of every network call."""
        network = network_of(self.asked.pipe)
        if not isinstance(network, torch.nn.Module):
            raise InvalidArgument(f"{self.asked.name} has no transformer or unet to count")

        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = ("hidden_states", "sample", "x")
            given = args[0] if args else next((kwargs[n] for n in names if n in kwargs), None)
            if given is None:
                raise InvalidArgument(f"cannot tell the batch of a call of {type(module).__name__}")
            self.called += len(given)

        handle = network.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _decode(self, z: Tensor) -> Tensor:
        """Images of latents that are simply those of the pipeline's autoencoder."""
        vae = getattr(self.asked.pipe, "vae", None)
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if vae is None or z.ndim != 4 or z.shape[1] != channels:
            raise InvalidArgument(
                f"{self.asked.name} has no adapter, and its latents {tuple(z.shape)} are "
                "not simply those of its autoencoder: pass decode=, a function from clean latents "
                "to images in [0, 1]"
            )
        return decode_latents(vae, z)
