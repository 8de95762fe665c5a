"""Steering a diffusers pipeline in one line: :func:`steer_pipeline`.

Pipelines with an adapter (:mod:`.families`) are run by our own executor: in chunks, with gradients,
recorded. Any other runs its own loop with a :class:`GlassScheduler`, and is steered from inside
`step`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..batching import Batching
from ..errors import InvalidArgument, UnknownName, did_you_mean
from ..fronts import FOREIGN, front, refuse_foreign
from ..grids import Times
from ..guidance import Guidance
from ..images import ImageResult
from ..pixels import sheet_of
from ..plans import Rho, Sampler, Solver
from ..rewards import RewardLike
from ..rewards.videos import Viewing
from ..steering import Method, Ramp, Recorder, Refine, Shards, Twist
from ..steering.held_out import Also
from ..steering.loop import Watch
from ..steering.methods import AnyMethod, SamplerOfMethod
from ..steering.population import Boundaries
from ..steering.refinement import MoveTimes
from ..steering.schedules import ScaleSchedule
from ..steering.state import Observer
from ..steering.strength import Auto
from ..steering.values import AnyValue
from ..videos import VideoResult
from .adapted import run_adapted
from .asked import Asked
from .families import Family, family_of
from .few_steps import warn_of_several_evaluations
from .inside_loop import returns, run_inside
from .refusals import check_caches, check_pipeline
from .videos import frame_rate

_SAMPLER, _BATCHING, _VIEWING, _RAMP = Sampler(), Batching(), Viewing(), Ramp()


@front(method=AnyMethod(), sampler=SamplerOfMethod(Sampler), batching=Batching, viewing=Viewing)
def steer_pipeline(
    pipe: Any,
    prompt: Any,
    reward: RewardLike | str,
    method: str | Method = "steering",
    sampler: Sampler = _SAMPLER,
    batching: Batching = _BATCHING,
    viewing: Viewing = _VIEWING,
    *,
    particles: int = 8,
    scale: float | str | Auto = "auto",
    potential: str = "difference",
    schedule: ScaleSchedule = "constant",
    boundaries: Boundaries = None,
    resampling: str = "systematic",
    ess_threshold: float = 0.5,
    value: AnyValue = "free",
    guidance: Guidance | str | None = None,
    twist: float | str | Twist = 0.0,
    degenerate: str = "error",
    children: int = 2,
    pick: str = "best",
    moves: int = 6,
    move_times: MoveTimes | str = _RAMP,
    move_steps: int | Sequence[int] | None = None,
    move_guidance: float | None = None,
    returned: str = "best",
    until: float | None = None,
    rescore: int = 0,
    transitions: int = 6,
    steps: int | Sequence[int] = 4,
    rho: Rho | Sequence[Rho] = 0.4,
    times: Times = None,
    solver: str | Solver = "default",
    start: str = "trained",
    max_batch: int | str | None = "auto",
    decode_batch: int | None = 1,
    checkpoint: bool = False,
    frames: int | str | None = None,
    seed: int | None = None,
    latents: Tensor | None = None,
    init: Any = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    also: Also = None,
    shards: Shards | None = None,
    record: Recorder | None = None,
    on_boundary: Observer | None = None,
    progress: bool | None = None,
    **call: Any,
) -> ImageResult:
    """Images or videos of a diffusers pipeline, steered towards a reward.

    The settings are given by name, or as objects:
    ``steer_pipeline(pipe, "a cat", reward, Beam(8, children=4), Sampler(12, 2))``. One that the
    method does not have is refused.

    Parameters
    ----------
    pipe : DiffusionPipeline
        As the user has it: loaded, moved, with LoRA, offloading, a quantised or compiled network.
        It is not changed.
    prompt : str or list
        One population of particles for each; class labels for DiT, integers of any kind, also of
        an array; None for a pipeline that takes no prompt.
    reward : callable, Reward or str
        A function of images, and of prompts if it takes them, to one number each; higher is better.
        Or a name ("clip", "aesthetic:FOLDER", "module:function"), as of
        :func:`glass_flows.load_reward`. It may take tensors (B, 3, H, W) in [0, 1], those that are
        returned before they are rounded to 8 bits; or, rounded, PIL images or arrays; or one of
        them. Which is found out before anything runs, on pictures of the size that is drawn, and
        said in one line (:class:`~glass_flows.rewards.OfImages` says it beforehand). Gradients
        (guidance, twist) need tensors, and flow through the reward into the decoder, also at pixels
        that are clamped to 0 or 1. Of a video it sees chosen frames, whose mean counts; one that
        takes videos (:class:`~glass_flows.rewards.OfVideos`, or `takes_video`) is handed them,
        (B, F, 3, H, W).
    method : "steering", "refine", "plain", "best-of-n", "twist", "beam", "greedy" or "svdd"
        Or an object, such as :class:`~glass_flows.Refine`. Best-of-n and plain spend K M
        evaluations on the ODE, unless `rho` or a `sampler` is given; "refine" begins with a short
        one.
    {settings}
    seed : int, optional
        Every particle has streams of its own, found from (seed, particle).
    latents : Tensor, optional
        (P N, *shape), the starting noise, as the pipeline's scheduler sees it: packed for FLUX and
        Qwen-Image.
    init : image, file, list of them, or Tensor, optional
        What "refine" begins with, instead of drawing it: pictures of the size that is drawn (of
        PIL, their files, or a tensor (B, 3, H, W) in [0, 1]), one for all prompts or one for each;
        or clean latents, (*shape) for all, (P, *shape), or (P, N, *shape) such as
        `result.result.samples` of another run. A tensor that could be either is of pictures if it
        has 3 channels and the size of the pictures. For pipelines with an adapter.
    decode : callable, optional
        Clean latents to images (B, 3, H, W) or videos (B, F, 3, H, W) in [0, 1], for pipelines
        without an adapter whose latents are not simply those of their autoencoder. Of a sound, or
        of a video as one image, it makes the pictures that are scored and returned; the latents
        are in `result.samples`.
    also : reward, list of them, or dict by name, optional
        Held-out rewards of the images, as in :func:`glass_flows.steer`: an image that the reward
        has seen is not decoded again for them. For that those of two batches are kept, unrounded.
    shards, record, on_boundary, progress
        As in :func:`glass_flows.steer`. The first two for pipelines with an adapter, see
        :func:`can_record`.
    call
        The pipeline's own call arguments (`height`, `width`, `guidance_scale`, which is its
        classifier-free guidance, `negative_prompt`, ...). One whose name ends in "image" may be the
        file of an image; with an adapter a list of them is one for each prompt.

    Returns
    -------
    ImageResult
        Of videos a :class:`~glass_flows.videos.VideoResult`.

    Raises
    ------
    InvalidArgument, UnknownName, ShapeError, PlanError
        Before the network is asked; RewardError too, of a reward without the gradient it needs.
    NonFinite, RewardError, DegenerateWeights
        On the way; their `boundary` holds the particles.

    Example
    -------
    >>> result = steer_pipeline(pipe, "a cat on a red chair", reward, particles=8, scale=5, seed=0)
    >>> result.image.save("cat.png")
    >>> better = steer_pipeline(pipe, "a cat on a red chair", reward, "refine", init="cat.png")
    """
    asked = Asked.of(
        pipe, prompt, reward=reward, method=method, sampler=sampler, batching=batching, seed=seed,
        call=call, latents=latents, init=init, decode=decode, also=also, viewing=viewing,
    )  # fmt: skip
    return run_pipeline(asked, shards, Watch(record, on_boundary, progress))


def run_pipeline(
    asked: Asked, shards: Shards | None = None, watch: Watch | None = None
) -> ImageResult:
    """:func:`steer_pipeline` for those who have objects; `watch` is told of the run."""
    pipe, watch = asked.pipe, watch or Watch()
    check_pipeline(pipe)
    check_caches(pipe)
    _warn_of_several_evaluations(asked)
    family = None if asked.decode is not None else family_of(pipe)
    if family is None and (shards is not None or watch.record is not None):
        raise InvalidArgument(
            "record and shards: only on pipelines with an adapter (without decode=), not on "
            f"{asked.name}, which runs its own loop; leave them out"
        )
    if family is None and asked.init is not None:
        raise InvalidArgument(
            f"init: only on pipelines with an adapter (without decode=), not on {asked.name}: how "
            "its pictures become latents is not known"
        )
    loop = inspect.signature(pipe.__call__).parameters
    check_arguments(pipe, asked.call, family)
    videos = family is None and (asked.decode is not None or returns(pipe) == "frames")
    _check_frames(asked, videos, loop)
    asked = asked.loaded()
    _check_rewards(asked, videos)
    if family is None:
        result, pictures = run_inside(asked, watch)
    else:
        result, images = run_adapted(asked, family, shards, watch)
        pictures = [*images]
    frames, N = [one for one in pictures if isinstance(one, list)], result.rewards.shape[1]
    shown = [sheet_of(one) if isinstance(one, list) else one for one in pictures]
    rows = [shown[i : i + N] for i in range(0, len(shown), N)]
    about = (rows, result.rewards, asked.prompts, result, asked.settings())
    if frames:
        return VideoResult(*about, frames=frames, rate=frame_rate(loop, asked.call))
    return ImageResult(*about)


def _check_frames(asked: Asked, videos: bool, takes: Mapping[str, Any]) -> None:
    """Raise if chosen frames cannot act, or could be meant for the pipeline."""
    frames = asked.viewing.frames
    if frames is not None and not videos:
        raise InvalidArgument(f"frames={frames!r}: {asked.name} draws images; leave it out")
    if frames is not None and "frames" in takes:
        raise InvalidArgument(
            f"frames={frames!r} is what a reward sees of a video, and {asked.name} has an argument "
            f"of that name, too: give glass_flows.rewards.Frames(reward, {frames!r}) as the reward"
        )


def _check_rewards(asked: Asked, videos: bool) -> None:
    """Raise if a reward takes videos, and there are none, or if chosen frames cannot act."""
    taking = [one.name for one in (asked.scored, *asked.also.values()) if one.takes_video]
    if taking and not videos:
        raise InvalidArgument(
            f"the reward {taking[0]!r} takes videos, and {asked.name} draws images: take another"
        )
    asked.check_viewing()


def _warn_of_several_evaluations(asked: Asked) -> None:
    """Of transitions, and of the moves of refinement, on a few-step model."""
    steps, method = asked.sampler.steps, asked.method
    if isinstance(method, Refine) and method.moves:
        several = (steps,) if isinstance(steps, int) else steps
        moves = [method.asked(k, method.time(k), 1.0) for k in range(method.moves)]
        warn_of_several_evaluations(asked.pipe, (*several, *moves), "steps=1, move_steps=1")
    else:
        warn_of_several_evaluations(asked.pipe, steps)


def check_arguments(pipe: Any, call: Iterable[str], family: type[Family] | None) -> None:
    """Refuse call arguments that the pipeline does not take; one of ours may have been meant."""
    takes: Iterable[str] = inspect.signature(pipe.__call__).parameters
    if family is not None:
        takes = family.takes()
    ours = inspect.signature(steer_pipeline).parameters
    allowed = [name for name in takes if name not in ours and name not in FOREIGN]
    for name in call:
        refuse_foreign(name)
        if name in allowed:
            continue
        hint = did_you_mean(name, [*allowed, *ours])
        raise UnknownName(
            f"{type(pipe).__name__} takes no {name!r}.{hint} The pipeline's arguments: "
            f"{', '.join(sorted(allowed))}; for ours see help(steer_pipeline)"
        )


def can_record(pipe: Any) -> bool:
    """Whether a run of this pipeline can be kept, and dealt out to processes: with an adapter."""
    return family_of(pipe) is not None
