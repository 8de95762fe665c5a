"""Steering a diffusers pipeline in one line: :func:`steer_pipeline`.

Pipelines with an adapter (:mod:`.families`) are run by our own executor: in chunks, with gradients,
with every method. Any other runs its own loop with a :class:`GlassScheduler`, and is steered from
inside `step`.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path as FilePath
from typing import Any

import torch
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from ...denoisers import DenoiserLike
from ...errors import InvalidArgument, ShapeError, check_count, check_name
from ...execute import Boundary
from ...noise import START, KeyedNoise, check_seed
from ...paths import Path
from ...plans import Rho, Solver
from ...rewards import Decoded, RewardLike
from ...steering import Recorder, SearchResult, Shards, Steering, beam, best_of, greedy, steer
from ...steering.run import Population, Run
from ...steering.smc import SteeringStep, collect, steer_boundaries
from .families import Family, family_of
from .refusals import check_pipeline, rounds_its_clock
from .scheduler import GlassScheduler, config_of
from .schedules import Schedule

__all__ = ["PipelineResult", "can_record", "steer_pipeline"]

_STEERING = {f.name for f in fields(Steering)} - {"particles"}
_METHODS = ("steering", "best-of-n", "beam", "greedy", "svdd")


@dataclass(frozen=True)
class PipelineResult:
    """Images with their rewards, and all that is known of the run.

    Attributes
    ----------
    images : list of list of PIL.Image
        For every prompt its N particles.
    rewards : Tensor
        (P, N), of the images.
    prompts : tuple
        P of them.
    result : SearchResult
        Samples (latents), weights, ancestry, costs; a SteeringResult for "steering".
    settings : dict
        What was asked for, with the seed; JSON-ready.
    """

    images: list[list[Image.Image]]
    rewards: Tensor
    prompts: tuple[Any, ...]
    result: SearchResult
    settings: Mapping[str, Any]

    @property
    def best(self) -> list[Image.Image]:
        """The image of the highest reward for each prompt."""
        chosen = self.rewards.argmax(1).tolist()
        return [row[i] for row, i in zip(self.images, chosen)]

    def save(self, folder: str | FilePath) -> list[FilePath]:
        """Write every image as PNG, best first, with prompt, reward and settings inside it."""
        target = FilePath(folder)
        target.mkdir(parents=True, exist_ok=True)
        written = []
        for p, prompt in enumerate(self.prompts):
            order = self.rewards[p].argsort(descending=True).tolist()
            for rank, i in enumerate(order):
                info = PngInfo()
                info.add_itxt("prompt", str(prompt))
                info.add_itxt("reward", repr(self.rewards[p, i].item()))
                info.add_itxt("settings", json.dumps(dict(self.settings)))
                file = target / f"{p:03d}-{rank:02d}.png"
                self.images[p][i].save(file, pnginfo=info)
                written.append(file)
        return written


def steer_pipeline(
    pipe: Any,
    prompt: Any,
    reward: RewardLike,
    *,
    particles: int = 8,
    transitions: int = 6,
    steps: int = 4,
    rho: Rho = 0.4,
    method: str = "steering",
    children: int = 2,
    solver: str | Solver = "default",
    start: str = "trained",
    seed: int | None = None,
    latents: Tensor | None = None,
    max_batch: int | str | None = "auto",
    decode_batch: int | None = 1,
    checkpoint: bool = False,
    decode: Callable[[Tensor], Tensor] | None = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    progress: bool | None = None,
    **options: Any,
) -> PipelineResult:
    """Images of a diffusers pipeline, steered towards a reward.

    Parameters
    ----------
    pipe : DiffusionPipeline
        As the user has it: loaded, moved, with LoRA, offloading, a quantised or compiled network.
        It is not changed.
    prompt : str or list
        One population of particles for each; class labels for DiT.
    reward : callable or Reward
        Images (B, 3, H, W) in [0, 1], and prompts if it takes them, to (B,); higher is better.
        Gradients (guidance, twist) flow through it into the decoder.
    particles : int
        N per prompt.
    transitions, steps, rho, solver, start
        K transitions of M network evaluations each on the pipeline's own grid; see
        :func:`glass_flows.plan`.
    method : "steering", "best-of-n", "beam", "greedy" or "svdd"
        For the searches N counts all children: b = N/w beams (or particles) of `children` = w.
    seed : int, optional
        Every particle has streams of its own, found from (seed, particle).
    latents : Tensor, optional
        (P N, *shape), the starting noise, as the pipeline's scheduler sees it: packed for FLUX and
        Qwen-Image.
    max_batch : int, "auto" or None
        Samples through the network at a time: "auto" all, and half of them where the device runs
        out of memory, and so on; None all.
    decode_batch : int or None
        Samples through the decoder and the reward at a time; None for all at once.
    checkpoint : bool
        Recompute instead of keeping activations, for guidance through the network.
    decode : callable, optional
        Clean latents to images in [0, 1], for pipelines without an adapter whose latents are not
        simply those of their autoencoder.
    shards, record
        As in :func:`glass_flows.steer`: the particles dealt out to several processes, and a run
        that is kept and can be gone on with. For "steering" and "best-of-n" on pipelines with an
        adapter, see :func:`can_record`.
    options
        Settings of :func:`glass_flows.steer` (`scale`, `potential`, `schedule`, `boundaries`,
        `resampling`, `ess_threshold`, `value`, `guidance`, `twist`, `degenerate`), and the
        pipeline's own call arguments (`height`, `width`, `guidance_scale`, `negative_prompt`, ...).

    Raises
    ------
    InvalidArgument, UnknownName, PlanError
        Before the network is asked.
    NonFinite, RewardError, DegenerateWeights
        On the way; their `boundary` holds the particles.
    """
    check_pipeline(pipe)
    check_count("particles", particles)
    check_name("method", method, _METHODS)
    prompts = [prompt] if isinstance(prompt, (str, int)) else list(prompt)
    if not prompts:
        raise InvalidArgument("give a prompt, or a list with at least one")
    seed = check_seed(seed)
    steering = {name: value for name, value in options.items() if name in _STEERING}
    call = {name: value for name, value in options.items() if name not in _STEERING}
    population = Population.of(particles, None, prompts)
    family = family_of(pipe)
    kept = {"shards": shards, "record": record}
    kept = {name: given for name, given in kept.items() if given is not None}
    if kept and (decode is not None or not can_record(pipe, method)):
        raise InvalidArgument(
            f"{', '.join(kept)}: only for method='steering' and 'best-of-n' on pipelines with an "
            f"adapter, not for {method!r} on {type(pipe).__name__}; leave it out"
        )
    if family is None or decode is not None:
        takes = inspect.signature(pipe.__call__).parameters
        check_name(f"argument of {type(pipe).__name__}", "generator", takes)
        for name in call:
            check_name(f"argument of {type(pipe).__name__}", name, takes)
        if method not in ("steering", "best-of-n"):
            raise InvalidArgument(
                f"{type(pipe).__name__} has no adapter, and is steered from inside its own loop: "
                f"there only method='steering' and 'best-of-n' exist, got {method!r}"
            )
        if method == "best-of-n":
            steering["ess_threshold"] = 0.0
        settings = Steering(particles, **steering)
        job = _ThroughScheduler(pipe, reward, population, settings, seed, decode, decode_batch)
        scheduler = GlassScheduler.from_pipeline(
            pipe, rho=rho, steps=steps, solver=solver, start=start, end="data", seed=seed
        )
        result, images = job.run(scheduler, transitions, latents, call)
    else:
        adapter = family(pipe, **call)
        config = config_of(pipe.scheduler)
        schedule = Schedule.of(config, rounds_its_clock(pipe))
        times = adapter.times(schedule, transitions)
        recorded = _Recorder(adapter, len(prompts) * particles)
        scored = Decoded(reward, recorded, max_batch=decode_batch)
        denoiser = adapter.denoiser(prompts, schedule, max_batch=max_batch, checkpoint=checkpoint)
        if record is not None:
            record.pictures = recorded.known
        runner = _runner(method, particles, children)
        result = runner(
            denoiser,
            scored,
            shape=adapter.shape,
            transitions=len(times) - 1,
            steps=steps,
            rho=rho,
            times=times,
            solver=solver,
            start=start,
            seed=seed,
            prompts=prompts,
            x=_starting(adapter, population, latents, seed),
            progress=progress,
            **kept,
            **steering,
        )
        images = recorded.images(result.samples, shards)
        if hasattr(pipe, "maybe_free_model_hooks"):
            pipe.maybe_free_model_hooks()
    shown = {"pipeline": type(pipe).__name__, "method": method, "particles": particles}
    shown |= {"transitions": transitions, "steps": steps, "rho": rho, "solver": solver}
    shown |= {"start": start, "seed": seed, **options}
    readable = {k: v if isinstance(v, (int, float, str)) else repr(v) for k, v in shown.items()}
    P, N = result.rewards.shape
    grouped = [images[p * N : (p + 1) * N] for p in range(P)]
    return PipelineResult(grouped, result.rewards, tuple(prompts), result, readable)


def can_record(pipe: Any, method: str) -> bool:
    """Whether :func:`steer_pipeline` can keep such a run, and deal it out to processes."""
    return method in ("steering", "best-of-n") and family_of(pipe) is not None


def _runner(method: str, particles: int, children: int) -> Callable[..., SearchResult]:
    """A function of (denoiser, reward, **settings) for one of the methods."""
    if method in ("steering", "best-of-n"):
        chosen: Callable[..., SearchResult] = steer if method == "steering" else best_of
        return lambda *args, **settings: chosen(*args, particles=particles, **settings)
    check_count("children", children)
    if particles % children:
        raise InvalidArgument(f"particles={particles} is no multiple of children={children}")
    kept = particles // children
    if method == "beam":
        return lambda *args, **given: beam(*args, beams=kept, children=children, **given)
    pick = "best" if method == "greedy" else "sample"
    return lambda *args, **given: greedy(
        *args, particles=kept, children=children, pick=pick, **given
    )


def _starting(adapter: Family, population: Population, latents: Tensor | None, seed: int) -> Tensor:
    """The pipeline's starting noise, one stream per particle, or the user's own, in float32."""
    sizes = (population.count * population.particles, *adapter.shape)
    if latents is None:
        like = torch.empty(sizes, dtype=torch.float32, device=adapter.device)
        return KeyedNoise(seed)(0, like, START)
    if tuple(latents.shape) != sizes:
        raise ShapeError(f"latents must be {sizes}, one for each particle, got {latents.shape}")
    wide = latents if latents.dtype == torch.float64 else latents.float()
    return wide.to(adapter.device)


class _Recorder:
    """Decodes, and keeps the last images: those of the end need not be decoded again."""

    def __init__(self, adapter: Family, keep: int) -> None:
        self.adapter, self.keep = adapter, keep
        self.kept: list[tuple[Tensor, Tensor]] = []

    def __call__(self, z: Tensor) -> Tensor:
        pictures = self.adapter.decode(z)
        kept = zip(z.detach().cpu(), _bytes(pictures))
        self.kept = [*self.kept, *kept][-self.keep :]
        return pictures

    def known(self, z: Tensor) -> list[Image.Image] | None:
        """Images of (B, *shape) states if all have been decoded already."""
        found = [self._find(one) for one in z.cpu()]
        known = [pixels for pixels in found if pixels is not None]
        return _images(known) if len(known) == len(found) else None

    def images(self, samples: Tensor, shards: Shards | None = None) -> list[Image.Image]:
        """PIL images of (P, N, *shape) samples, each from the process that decoded it."""
        states = samples.flatten(0, 1).cpu()
        if shards is None:
            return _images([self._pixels(z) for z in states])
        own = torch.stack([self._pixels(z) for z in states[shards.own]])
        return _images(list(shards.gather(own)))

    def _find(self, z: Tensor) -> Tensor | None:
        return next((pixels for state, pixels in self.kept if torch.equal(state, z)), None)

    def _pixels(self, z: Tensor) -> Tensor:
        known = self._find(z)
        if known is None:
            with torch.no_grad():
                (known,) = _bytes(self.adapter.decode(z[None].to(self.adapter.device)))
        return known


def _images(pixels: list[Tensor]) -> list[Image.Image]:
    return [Image.fromarray(one.numpy()) for one in pixels]


def _bytes(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8, as diffusers rounds."""
    scaled = pictures.detach().float().clamp(0, 1) * 255
    return scaled.round().to("cpu", torch.uint8).permute(0, 2, 3, 1).contiguous()


# --- pipelines without an adapter -----------------------------------------------------------------


class _Witness:
    """Stands for the pipeline's network where only counts and the path are asked of a denoiser."""

    evaluations_per_call = 1

    def __init__(self, path: Path) -> None:
        self.path = path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        raise InvalidArgument(
            "a pipeline without an adapter runs its own loop, so that its network can be asked "
            "nothing else: posterior values and guidance need an adapter "
            "(docs/diffusers/new-family.md)"
        )


class _ThroughScheduler:
    """Steering from inside `step`: between D and the draw of ε, the scheduler's state permuted."""

    def __init__(
        self,
        pipe: Any,
        reward: RewardLike,
        population: Population,
        settings: Steering,
        seed: int,
        decode: Callable[[Tensor], Tensor] | None,
        decode_batch: int | None,
    ) -> None:
        if settings.guided:
            raise InvalidArgument(
                f"guidance needs an adapter, which {type(pipe).__name__} has not: "
                "use twist=1 instead, or write an adapter (docs/diffusers/new-family.md)"
            )
        self.pipe, self.population, self.settings, self.seed = pipe, population, settings, seed
        self.scored = Decoded(reward, decode or self._decode, max_batch=decode_batch)
        self.steps: Iterator[SteeringStep] | None = None
        self.history: list[SteeringStep] = []
        self.asked = 0

    def run(
        self, scheduler: GlassScheduler, transitions: int, latents: Tensor | None, call: Any
    ) -> tuple[SearchResult, list[Image.Image]]:
        count = self.population.count * self.population.particles
        prompts = list(self.population.prompts or ())
        noise = KeyedNoise(self.seed)
        seeds = [int(noise.bits(START, 0, i).random_raw()) >> 1 for i in range(count)]
        generators = [torch.Generator().manual_seed(s) for s in seeds]
        own, scheduler.at_boundary = self.pipe.scheduler, self._at_boundary
        given = dict(call) if latents is None else {**call, "latents": latents}
        takes = inspect.signature(self.pipe.__call__).parameters
        given[next(name for name in ("prompt", "class_labels") if name in takes)] = prompts
        try:
            self.pipe.scheduler = scheduler
            with self._counted():
                images = self.pipe(
                    num_inference_steps=transitions, generator=generators, **given
                ).images
        finally:
            self.pipe.scheduler = own
        return collect(
            self.history, self.settings.biases(_Witness(scheduler.schedule.path))
        ), images

    def _at_boundary(self, boundary: Boundary) -> None:
        if self.steps is None:
            table = self.pipe.scheduler.running
            self.settings.check(table)
            self.job = Run(
                table,
                _witness(table.path),
                self.scored,
                self.population,
                shape=boundary.x.shape[1:],
                scale=self.settings.scale,
                gradients=self.settings.twisted,
                seed=self.seed,
                x=boundary.x,
            )
            self.steps = steer_boundaries(self.job, self._pending(), self.settings)
        self.boundary = boundary
        self.job.model.network_evaluations = self.asked
        self.history.append(next(self.steps))

    def _pending(self) -> Iterator[Boundary]:
        while True:
            yield self.boundary

    @contextmanager
    def _counted(self) -> Iterator[None]:
        """Count the rows of every network call."""
        network = getattr(self.pipe, "transformer", None) or getattr(self.pipe, "unet", None)
        if not isinstance(network, torch.nn.Module):
            raise InvalidArgument(f"{type(self.pipe).__name__} has no transformer or unet to count")

        def count(module: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            names = ("hidden_states", "sample", "x")
            given = args[0] if args else next((kwargs[n] for n in names if n in kwargs), None)
            if given is None:
                raise InvalidArgument(f"cannot tell the batch of a call of {type(module).__name__}")
            self.asked += len(given)

        handle = network.register_forward_pre_hook(count, with_kwargs=True)
        try:
            yield
        finally:
            handle.remove()

    def _decode(self, z: Tensor) -> Tensor:
        """Images of latents that are simply those of the pipeline's autoencoder."""
        vae = getattr(self.pipe, "vae", None)
        channels = getattr(getattr(vae, "config", None), "latent_channels", None)
        if vae is None or z.ndim != 4 or z.shape[1] != channels:
            raise InvalidArgument(
                f"{type(self.pipe).__name__} has no adapter, and its latents {tuple(z.shape)} are "
                "not simply those of its autoencoder: pass decode=, a function from clean latents "
                "to images in [0, 1]"
            )
        latents = z / vae.config.scaling_factor + (getattr(vae.config, "shift_factor", None) or 0.0)
        image = vae.decode(latents.to(vae.dtype), return_dict=False)[0]
        return (image if image.dtype == torch.float64 else image.float()) / 2 + 0.5


def _witness(path: Path) -> DenoiserLike:
    return _Witness(path)
