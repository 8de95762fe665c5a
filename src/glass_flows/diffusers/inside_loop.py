"""Pipelines without an adapter: they run their own loop, and are steered from inside `step`."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..denoisers import BaseDenoiser
from ..errors import InvalidArgument, ShapeError, check_name
from ..execute import Boundary
from ..noise import PILOT, START, KeyedNoise
from ..paths import Path
from ..pixels import opened
from ..plans.sampler import RHO, SOLVER
from ..rewards import Frames
from ..steering import BestOf, Costs, Method, PosteriorValue, Refine, SearchResult, Step
from ..steering.loop import Watch, come_to, pass_boundaries
from ..steering.pilot import SAMPLES, found_by, needs_pilot, own_scale, pilot_sampler, settled
from ..steering.population import Population, Run, kept
from ..steering.strength import Auto, Found
from .asked import Asked
from .chunks import batch_of, in_chunks
from .decoding import Picture, Pictures, as_it_was
from .own_code import own_decoder, returned_fields
from .parts import caches_of, network_of, networks_of
from .refusals import named_before_network
from .scheduler import GlassScheduler
from .videos import argument, decoding_one, own_video_decoder

_PROMPTS: tuple[tuple[str, Any], ...] = (("prompt", str), ("class_labels", (int, str)))
_COUNTS = ("batch_size", "num_images_per_prompt")  # of pipelines that take no prompt
_TEXT = re.compile(r"(negative_)?prompt(_\d+)?")
_FRAMES = 9  # of a trial of a reward of videos, where a pipeline does not say how many
_FAR = 5.0  # grey levels of 255 in the mean: other batches round differently, by less than one


def run_inside(asked: Asked, watch: Watch) -> tuple[SearchResult, list[Picture]]:
    """The result and the pictures of its samples: images, or of a video its frames."""
    takes = inspect.signature(asked.pipe.__call__).parameters
    _check(asked, takes)
    _check_sampler(asked)
    frames = None
    if asked.decode is not None or returns(asked.pipe) == "frames":
        # `decode` may still make images: of these they are the rewards that they were.
        asked = asked.of_videos()
        told = argument("num_frames", takes, asked.call)
        frames = told if isinstance(told, int) and told > 0 else _FRAMES
    loop = _InsideLoop(asked, watch, takes)
    asked.try_reward(*_size(asked, takes), torch.device(asked.pipe._execution_device), frames)
    loop.found, loop.before = _found(asked, watch, takes)
    result, output = loop.run(_scheduler(asked))
    return result, loop.returned(result, output)


def returns(pipe: Any) -> str:
    """What pictures a pipeline returns: "images", "frames" of videos, or "" of neither."""
    fields = returned_fields(pipe)
    return next((name for name in ("images", "frames") if name in fields), "")


def pictures_of(
    pipe: Any, takes: Mapping[str, Any], call: Mapping[str, Any]
) -> Callable[[Tensor], Tensor]:
    """From clean states to what the pipeline makes of them: images, or videos of frames."""
    if returns(pipe) == "frames":
        return own_video_decoder(pipe, takes, call)
    return own_decoder(pipe, returns(pipe) == "images")


def _scheduler(asked: Asked) -> GlassScheduler:
    sampler = asked.sampler
    return GlassScheduler.from_pipeline(
        asked.pipe,
        rho=RHO.write(sampler.rho),
        steps=sampler.steps,
        solver=SOLVER.write(sampler.solver),
        start=sampler.start,
        end="data",
        seed=asked.seed,
    )


def _found(asked: Asked, watch: Watch, takes: Mapping[str, Any]) -> tuple[Found | None, Costs]:
    """λ of "auto", and what it cost: the loop runs once more, beside, for plain samples."""
    scale = asked.method.scale
    if not (isinstance(scale, Auto) and needs_pilot(asked.method, asked.scored)):
        return own_scale(asked.method, asked.scored), Costs()
    if any(caches_of(network) for network in networks_of(asked.pipe)):
        raise InvalidArgument(
            "a cache needs the whole batch, and the pilot of scale='auto' is another: give scale= "
            "a number, or call disable_cache()"
        )
    most = asked.batching.max_batch  # no more at a time than the run itself
    beside = replace(
        asked,
        method=BestOf(max(2, -(-SAMPLES // len(asked.prompts))), scale=0.0),
        sampler=pilot_sampler(asked.sampler),
        batching=replace(
            asked.batching, max_batch=most if isinstance(most, int) else len(asked.rows)
        ),
        seed=KeyedNoise(asked.seed).seed_of(PILOT),
        latents=None,
        also={},
    )
    loop = _InsideLoop(beside, Watch(progress=watch.progress), takes)
    if "output_type" in takes:  # its rewards are known, and nobody wants the pictures
        loop.makes, loop.given["output_type"] = "", "latent"
    result, _ = loop.run(_scheduler(beside))
    costs = result.costs
    return found_by(scale, result.rewards, asked.scored, costs.network_evaluations), costs


def _check(asked: Asked, takes: Mapping[str, Any]) -> None:
    """Raise if the pipeline's own loop cannot do what is asked of it."""
    wanted = (
        "generator",
        "num_inference_steps",
        *(["latents"] if asked.latents is not None else []),
    )
    for name in wanted:
        check_name(f"argument of {asked.name}", name, takes)
    if asked.latents is not None and len(asked.latents) != len(asked.rows):
        raise ShapeError(
            f"latents must be {len(asked.rows)} rows, one for each particle, "
            f"got {tuple(asked.latents.shape)}"
        )
    if not isinstance(network_of(asked.pipe), torch.nn.Module):
        raise InvalidArgument(f"{asked.name} has no transformer or unet to count")
    if unused := [name for name in ("output_type", "return_dict") if name in asked.call]:
        raise InvalidArgument(f"{', '.join(unused)}: images are returned as PIL; leave it out")
    if asked.batching.checkpoint:
        raise InvalidArgument(
            f"checkpoint needs an adapter, which {asked.name} has not: no gradient of its network "
            "is taken here. Leave it out"
        )
    cached = any(caches_of(network) for network in networks_of(asked.pipe))
    if cached and isinstance(asked.batching.max_batch, int):
        raise InvalidArgument("a cache needs the whole batch: leave out max_batch")


def _size(asked: Asked, takes: Mapping[str, Any]) -> tuple[int, int]:
    """Height and width of its images, as far as they can be told beforehand."""
    side, scale = (getattr(asked.pipe, n, 0) for n in ("default_sample_size", "vae_scale_factor"))
    usual = side * scale if isinstance(side, int) and isinstance(scale, int) else 0
    given = (argument(name, takes, asked.call) for name in ("height", "width"))
    height, width = (one if isinstance(one, int) else usual or 256 for one in given)
    return height, width


def check_method(name: str, method: Method) -> None:
    """Raise if the own loop of the pipeline of this name cannot be steered by a method."""
    if isinstance(method, Refine):
        raise InvalidArgument(
            f"refinement needs an adapter, which {name} has not: it noises and redraws again "
            "and again, and a loop of its own runs once. Use steering, or write an adapter "
            "(docs/diffusers/new-family.md)"
        )
    posterior = isinstance(method.looks_with, PosteriorValue)
    if method.guided or posterior:
        wish = "a posterior value" if posterior else "guidance"
        raise InvalidArgument(
            f"{wish} needs an adapter, which {name} has not: its network is asked by its own "
            "loop only. Use value='free' and twist=1, or write an adapter "
            "(docs/diffusers/new-family.md)"
        )


def _check_sampler(asked: Asked) -> None:
    check_method(asked.name, asked.method)
    sampler = asked.sampler
    listed = isinstance(sampler.steps, tuple) or isinstance(sampler.rho, tuple)
    if listed or callable(sampler.rho) or sampler.times is not None:
        raise InvalidArgument(
            f"{asked.name} has no adapter, and runs its own loop on its own grid: times=, lists of "
            "steps or rho, and a function for rho need an adapter"
        )


class _Witness(BaseDenoiser):
    """Stands for the pipeline's network where only counts and the path are asked of a denoiser."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        raise InvalidArgument(
            "a pipeline without an adapter runs its own loop: its network can be asked nothing else"
        )


class _Enough(BaseException):
    """Leaves the pipeline's loop where the run was stopped; no pipeline catches it."""


class _InsideLoop:
    """A method inside `step`: between D and the draw of ε, the scheduler's state permuted."""

    def __init__(self, asked: Asked, watch: Watch, takes: Mapping[str, Any]) -> None:
        self.asked, self.watch = asked, watch
        self.makes = returns(asked.pipe)
        self.checks = asked.decode is None
        decode = asked.decode or pictures_of(asked.pipe, takes, asked.call)
        if asked.decode is not None and self.makes == "frames":
            self.makes = ""
        self.pictures = Pictures(decode, len(asked.rows), again=bool(asked.also))
        self.scored, self.beside = asked.of_latents(self.pictures)
        self.given = self._call(takes)
        self.steps: Iterator[Step] | None = None
        self.called = 0
        self.ended = False  # what the pipeline does from then on is its own
        watch.decode = self.pictures.shown
        self.found: Found | None = None
        self.before = Costs()

    def _call(self, takes: Mapping[str, Any]) -> dict[str, Any]:
        """What the pipeline is called with, beside what is made anew for each run."""
        asked, given = self.asked, opened(self.asked.call)
        for name in given:
            if _TEXT.fullmatch(name):
                given[name] = self._for_each(name, given[name])
        if "strength" in takes and "mask_image" not in takes and "image" in given:
            given["image"] = self._for_rows(given["image"])
        if asked.latents is not None:
            given["latents"] = asked.latents
        if self.makes != "images" and "output_type" in takes:
            given["output_type"] = "pil" if self.makes else "latent"
        given["num_inference_steps"] = asked.sampler.transitions
        for name, kind in _PROMPTS:
            if name in takes:
                if strange := [one for one in asked.prompts if not isinstance(one, kind)]:
                    raise InvalidArgument(f"{name} of {asked.name} cannot be {strange[0]!r}")
                return given | {name: list(asked.rows)}
        for name in _COUNTS:
            if name in takes and not any(asked.prompts):
                return given | {name: len(asked.rows)}
        raise InvalidArgument(f"{asked.name} takes no prompt: give None (None for each population)")

    def _for_each(self, name: str, given: Any) -> Any:
        """A text for all, or one for each prompt, for each particle."""
        prompts = self.asked.prompts
        texts = [given] * len(prompts) if isinstance(given, str) else given
        if not isinstance(texts, (list, tuple)):
            return given
        if len(texts) != len(prompts):
            raise InvalidArgument(f"{len(texts)} of {name} given for {len(prompts)} prompts")
        return [one for one in texts for _ in range(self.asked.method.particles)]

    def _for_rows(self, given: Any) -> Any:
        """A picture to begin with, of all or of each prompt, for each particle."""
        rows = len(self.asked.rows)
        if isinstance(given, Image.Image):
            return [given] * rows
        if isinstance(given, (Tensor, np.ndarray)) and given.ndim == 3:
            given = given[None]
        listed = isinstance(given, (list, Tensor, np.ndarray))
        if not listed or len(given) not in (1, len(self.asked.prompts)):
            return given
        times = rows // len(given)
        if isinstance(given, list):
            return [one for one in given for _ in range(times)]
        repeat = given.repeat_interleave if isinstance(given, Tensor) else given.repeat
        return repeat(times, 0)

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

    def run(self, scheduler: GlassScheduler) -> tuple[SearchResult, Any]:
        """The result, and what the pipeline came to; None if it was stopped before."""
        asked, pipe = self.asked, self.asked.pipe
        noise = KeyedNoise(asked.seed)
        seeds = [int(noise.bits(START, 0, i).random_raw()) >> 1 for i in range(len(asked.rows))]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        own, scheduler.at_boundary, scheduler.noise = pipe.scheduler, self._at_boundary, noise
        output: Any = None
        try:
            pipe.scheduler = scheduler
            named = named_before_network(pipe, lambda: self.called > 0)
            with (
                self._counted(), self._bar(), self._one_video(), as_it_was(pipe), named,
                suppress(_Enough),
            ):  # fmt: skip
                output = pipe(generator=generators, **self.given)
        finally:
            pipe.scheduler = own
        if self.steps is None or not self.last.boundary.final:
            raise InvalidArgument(
                f"the loop of {asked.name} ended before the last of {asked.sampler.transitions} "
                "transitions: leave out what stops it early (strength, denoising_end, ...)"
            )
        biases = asked.method.biases(_Witness(scheduler.schedule.path))
        result = come_to(self.course, self.last, biases, self.watch)
        if (told := result.strength) is not None:  # refinement is refused here
            told = replace(told, advice=told.advice.removesuffix(", or refine"))
        return replace(result, strength=told), output

    def _places(self) -> list[int]:
        """Of every sample that is returned its row in the pipeline's batch."""
        P, N = self.last.rewards.shape
        rows = self.course.returned(self.last) + torch.arange(P)[:, None] * N
        found: list[int] = rows.flatten().tolist()
        return found

    def _one_video(self) -> AbstractContextManager[None]:
        """At its end a pipeline decodes the first of the videos that are returned, by itself."""
        if self.makes != "frames":
            return nullcontext()
        return decoding_one(self.asked.pipe.vae, lambda: self._places()[0] if self.ended else None)

    def returned(self, result: SearchResult, output: Any) -> list[Picture]:
        """The pictures of the samples, which are those that the rewards have seen."""
        pipe = self.asked.pipe
        if output is None:  # stopped: the pipeline itself did not come to its pictures
            with as_it_was(pipe):
                images = self.pictures.images(result.samples)
            if hasattr(pipe, "maybe_free_model_hooks"):
                pipe.maybe_free_model_hooks()
            return images
        if self.makes != "images":
            videos = self.pictures.images(result.samples)
            if self.makes:
                self._check(videos[0], output.frames[0])
            return videos
        images = [output.images[i] for i in self._places()]
        if self.checks and not any(output.get("nsfw_content_detected") or []):
            self._check(self.pictures.images(result.samples), images)
        return images

    def _check(self, seen: list[Image.Image], returned: list[Image.Image]) -> None:
        """Raise if rewards were those of other pictures than these."""
        if len(seen) == len(returned) and all(map(_alike, seen, returned)):
            return
        with kept(self.boundary):
            raise InvalidArgument(
                f"{self.asked.name} makes other images of its latents than its autoencoder by "
                "itself, so that these rewards are not theirs: pass decode=, a function from clean "
                "latents to images in [0, 1]"
            )

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
            method = settled(asked.method, self.found)
            self.job = Run(
                table, witness, self.scored, method, population,
                also=self.beside, asked=asked.method, found=self.found,
            )  # fmt: skip
            self.course = method.begin(self.job)
            self.steps = pass_boundaries(self.course, self.watch, self._pending())
            if not self.checks:  # a user's own decoder fails now, and not at the end
                made = self.pictures(boundary.x[:1])
                for one in (asked.scored, *asked.also.values()):
                    if isinstance(one, Frames):
                        one.check_samples(made)
        self.boundary = boundary
        self.job.before = self.before
        self.job.model.costs = Costs(self.called)
        with as_it_was(asked.pipe):
            self.last = next(self.steps)
            self.ended = self.last.boundary.final
            if self.watch.stopped is not None:
                self.last = next(self.steps)
                raise _Enough

    def _pending(self) -> Iterator[Boundary]:
        while True:
            yield self.boundary

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the rows of every network call, of all experts; in chunks if it was asked for."""

        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            self.called += batch_of(module, args, kwargs)

        most = self.asked.batching.max_batch
        with ExitStack() as stack:
            for network in networks_of(self.asked.pipe):
                handle = network.register_forward_pre_hook(count, with_kwargs=True)
                stack.callback(handle.remove)
                if isinstance(most, int):
                    stack.enter_context(in_chunks(network, len(self.asked.rows), most))
            yield


def _alike(one: Image.Image, other: Image.Image) -> bool:
    """Whether two images differ by no more than rounding in other batches explains."""
    a, b = (np.asarray(image.convert("RGB"), dtype=float) for image in (one, other))
    return a.shape == b.shape and bool(abs(a - b).mean() <= _FAR)
