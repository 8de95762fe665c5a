"""Pipelines with an adapter, run by our own executor: in chunks, with gradients, every method."""

from __future__ import annotations

import torch
from PIL import Image
from torch import Tensor

from ..errors import ShapeError
from ..images import to_bytes, to_images
from ..noise import START, KeyedNoise
from ..rewards import Decoded
from ..steering import SearchResult, Shards
from ..steering.loop import Watch, conduct
from ..steering.population import Population
from .asked import Asked
from .families import Family
from .refusals import rounds_its_clock
from .scheduler import config_of
from .schedules import Schedule

__all__ = ["run_adapted"]


def run_adapted(
    asked: Asked, family: type[Family], shards: Shards | None, watch: Watch
) -> tuple[SearchResult, list[Image.Image]]:
    """The result and the images of its samples."""
    adapter = family(asked.pipe, **asked.call)
    schedule = Schedule.of(config_of(asked.pipe.scheduler), rounds_its_clock(asked.pipe))
    sampler, batching = asked.sampler, asked.batching
    if sampler.times is None:
        sampler = sampler.at(adapter.times(schedule, sampler))
    decoder = _Decoder(adapter, len(asked.prompts) * asked.method.particles)
    denoiser = adapter.denoiser(
        asked.prompts, schedule, max_batch=batching.max_batch, checkpoint=batching.checkpoint
    )
    if watch.record is not None:
        watch.record.pictures = decoder.known
    try:
        result = conduct(
            denoiser,
            Decoded(asked.reward, decoder, max_batch=batching.decode_batch),
            asked.method,
            sampler,
            _population(asked, adapter),
            shards=shards,
            watch=watch,
        )
        images = decoder.images(result.samples, shards)
    finally:
        adapter.restore()
    if hasattr(asked.pipe, "maybe_free_model_hooks"):
        asked.pipe.maybe_free_model_hooks()
    return result, images


def _population(asked: Asked, adapter: Family) -> Population:
    """From the pipeline's noise, one stream per particle, or the user's own; in float32."""
    prompts = list(asked.prompts)
    population = Population.of(
        asked.method.particles, adapter.shape, prompts=prompts, seed=asked.seed
    )
    sizes = (len(population), *adapter.shape)
    if asked.latents is None:
        like = torch.empty(sizes, dtype=torch.float32, device=adapter.device)
        return population.at(KeyedNoise(asked.seed)(0, like, START))
    if tuple(asked.latents.shape) != sizes:
        given = tuple(asked.latents.shape)
        raise ShapeError(f"latents must be {sizes}, one for each particle, got {given}")
    wide = asked.latents if asked.latents.dtype == torch.float64 else asked.latents.float()
    return population.at(wide.to(adapter.device))


class _Decoder:
    """Decodes, and keeps the last images: those of the end need not be decoded again."""

    def __init__(self, adapter: Family, keep: int) -> None:
        self.adapter, self.keep = adapter, keep
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, z: Tensor) -> Tensor:
        pictures = self.adapter.decode(z)
        kept = zip(z.detach().cpu(), to_bytes(pictures))
        self.kept = [*self.kept, *kept][-self.keep :]
        return pictures

    def known(self, z: Tensor) -> list[Image.Image] | None:
        """Images of (B, *shape) states if all have been decoded already."""
        found = [self._find(one) for one in z.cpu()]
        known = [pixels for pixels in found if pixels is not None]
        return to_images(known) if len(known) == len(found) else None

    def images(self, samples: Tensor, shards: Shards | None = None) -> list[Image.Image]:
        """PIL images of (P, n, *shape) samples, each from the process that decoded it."""
        if shards is not None:  # what it decoded last are its own particles at the end
            own = self.kept[-len(range(shards.own.start, shards.own.stop)) :]
            states, pixels = (shards.gather(torch.stack(part)) for part in zip(*own))
            self.kept = list(zip(states, pixels))
        return to_images([self._pixels(z) for z in samples.flatten(0, 1).cpu()])

    def _find(self, z: Tensor) -> Tensor | None:
        return next((pixels for state, pixels in self.kept if torch.equal(state, z)), None)

    def _pixels(self, z: Tensor) -> Tensor:
        known = self._find(z)
        if known is None:
            with torch.no_grad():
                (known,) = to_bytes(self.adapter.decode(z[None].to(self.adapter.device)))
        return known
