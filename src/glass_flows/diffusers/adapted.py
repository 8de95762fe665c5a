"""Pipelines with an adapter, run by our own executor: in chunks, with gradients, every method."""

from __future__ import annotations

from dataclasses import replace

import torch
from PIL import Image

from ..errors import InvalidArgument, ShapeError
from ..noise import START, KeyedNoise
from ..plans import Sampler
from ..steering import SearchResult, Shards
from ..steering.loop import Watch, conduct
from ..steering.pilot import needs_pilot
from ..steering.population import Population
from .asked import Asked
from .beginnings import beginning
from .decoding import Pictures, as_it_was
from .families import Family
from .parts import rounds_its_clock
from .refusals import named_before_network
from .scheduler import config_of
from .schedules import Schedule


def run_adapted(
    asked: Asked, family: type[Family], shards: Shards | None, watch: Watch
) -> tuple[SearchResult, list[Image.Image]]:
    """The result and the images of its samples."""
    adapter = family(asked.pipe, **asked.call)
    _check_cache(adapter, asked, shards)
    asked.method.check_guidance(adapter.cfg_scale)
    population = _population(asked, adapter)
    asked.try_reward(adapter.height, adapter.width, adapter.device)
    schedule = Schedule.of(config_of(asked.pipe.scheduler), rounds_its_clock(asked.pipe))
    sampler, batching = asked.sampler, asked.batching
    sampler = adapter.timed(schedule, sampler)
    population = _from_image(population, asked, adapter, schedule, sampler)
    rows, device = len(asked.rows), adapter.device
    pictures = Pictures(adapter.decode, rows, device, again=bool(asked.also))
    reward, beside = asked.of_latents(pictures)
    denoiser = adapter.denoiser(
        asked.prompts, schedule, max_batch=batching.max_batch, checkpoint=batching.checkpoint
    )
    watch.decode = pictures.shown
    if watch.record is not None:
        watch.record.pictures = pictures.known
    with as_it_was(asked.pipe):
        result = conduct(denoiser, reward, asked.method, sampler, population, shards, watch, beside)
        images = pictures.images(result.samples, shards)
    if hasattr(asked.pipe, "maybe_free_model_hooks"):
        asked.pipe.maybe_free_model_hooks()
    return result, images


def _check_cache(adapter: Family, asked: Asked, shards: Shards | None) -> None:
    if adapter.caches and (shards is not None or asked.method.guided):
        raise InvalidArgument(
            "a cache on the network holds features of the whole batch, and of the step before: "
            "leave out shards and guidance, or call disable_cache()"
        )
    if adapter.caches and needs_pilot(asked.method, asked.scored):
        raise InvalidArgument(
            "a cache on the network holds features of the whole batch, and the pilot of "
            "scale='auto' is another: give scale= a number, or call disable_cache()"
        )


def _from_image(
    population: Population, asked: Asked, adapter: Family, schedule: Schedule, sampler: Sampler
) -> Population:
    """Where the pipeline begins with noise on an image, that in the place of noise."""
    with torch.no_grad(), named_before_network(asked.pipe):
        around = adapter.around(asked.prompts)
    if around is None:
        return population
    for name in ("latents", "init"):
        if getattr(asked, name) is not None:
            raise InvalidArgument(
                f"{name}: {asked.name} begins with noise on its image, as strong as strength says; "
                "leave it out, or take the pipeline that draws from noise"
            )
    return population.noising(around, schedule.path, sampler.plan(schedule.path).times[0])


def _population(asked: Asked, adapter: Family) -> Population:
    """From the pipeline's noise, one stream per particle, or the user's own; in float32."""
    prompts = list(asked.prompts)
    population = Population.of(
        asked.method.particles, adapter.shape, prompts=prompts, seed=asked.seed
    )
    sizes = (len(population), *adapter.shape)
    if asked.init is not None:
        init = beginning(asked.init, adapter, len(asked.prompts))
        halved = init.dtype in (torch.float16, torch.bfloat16)
        population = population.refining(init.float() if halved else init)
        return replace(population, device=adapter.device)
    if asked.latents is None:
        like = torch.empty(sizes, dtype=torch.float32, device=adapter.device)
        return population.at(KeyedNoise(asked.seed)(0, like, START))
    if tuple(asked.latents.shape) != sizes:
        given = tuple(asked.latents.shape)
        raise ShapeError(f"latents must be {sizes}, one for each particle, got {given}")
    wide = asked.latents if asked.latents.dtype == torch.float64 else asked.latents.float()
    return population.at(wide.to(adapter.device))
