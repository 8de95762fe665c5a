"""What `check_model` tries of a pipeline: a function for each row of its table.

A trial draws with as few evaluations as show it, and compares what came out with what must come
out: sampling the same thing in two ways, or a choice with the rewards it was made by. That a call
returned is not taken for working.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property, partial, wraps
from statistics import median
from typing import Any

import diffusers
import torch
from PIL import Image
from torch import Tensor

from ..diffusers import GlassScheduler, steer_pipeline
from ..diffusers.beginnings import beginning
from ..diffusers.decoding import as_it_was
from ..diffusers.families import family_of
from ..diffusers.inside_loop import pictures_of
from ..diffusers.parts import code_of, networks_of, usual_size
from ..errors import GlassError
from ..guidance import Guidance
from ..images import ImageResult
from ..noise import KeyedNoise
from ..pixels import to_pictures
from ..plans import Sampler
from ..rewards import FunctionReward
from ..settings import build
from ..steering import Beam, BestOf, Method, PosteriorValue, Refine, Steering, Step, Twist
from ..videos import VideoResult
from .costs import elapsed, free_bytes, peak, timed

SAMPLER = Sampler(2, 2, 0.4)
"""Of all trials: two transitions of two evaluations."""
_MANY = 4  # particles
_LARGE = 1e6  # a λ at which the best particle goes on, and no other
_ALIKE = 1e-4  # largest relative difference of what is the same, in float32
_ALIKE_HALVED = 5e-2  # the same of a network in bfloat16 or float16
_SPARED = 0.8  # of the memory that is free
_SIDES = (8, 16, 32)  # in latents, the sizes tried before the pipeline's own


class NotHere(Exception):
    """What was to be tried does not apply to this pipeline."""


class Wrong(Exception):
    """What came out is not what must come out."""


def own_images() -> dict[str, Any]:
    """For a pipeline that takes images and is given none, by the names of its arguments."""
    down = Image.linear_gradient("L")
    image = Image.merge("RGB", (down, down.rotate(90), Image.radial_gradient("L")))
    mask = down.point(lambda v: 255 * (v > 127))
    found = {"image": image, "control_image": image, "mask_image": mask}
    return {name: one.resize((64, 64)) for name, one in found.items()}


def square(side: int, areas: bool) -> dict[str, int]:
    """Call arguments of a picture of so many pixels a side; some say `areas`, too."""
    return {"height": side, "width": side, **({"max_area": side * side} if areas else {})}


def _tilt(images: Tensor) -> Tensor:
    """How much brighter the right side is than the left, of images (B, 3, H, W) or videos."""
    ramp = torch.linspace(-1.0, 1.0, images.shape[-1], dtype=images.dtype, device=images.device)
    return (images * ramp).flatten(1).mean(1)


REWARD = FunctionReward(_tilt, "brighter on the right", range=(-1.0, 1.0))


def difference(a: Tensor, b: Tensor) -> float:
    """|a - b| / |b|, infinite of what is not finite or of other shape."""
    if a.shape != b.shape:
        return math.inf
    a, b = a.detach().double().cpu(), b.detach().double().cpu()
    found = float((a - b).norm() / b.norm().clamp(min=1e-300))
    return found if math.isfinite(found) else math.inf


def state_of(pipe: Any) -> dict[str, Any]:
    """What a pipeline's parts are, by name."""
    modules = (torch.nn.Module,)
    return {
        name: (id(part), *((part.dtype, part.device) if isinstance(part, modules) else ()))
        for name, part in pipe.components.items()
    }


@dataclass
class Bench:
    """A pipeline with what all trials share.

    Attributes
    ----------
    pipe : DiffusionPipeline
    prompts : tuple
        Two of them, unlike each other; None for a pipeline that takes no prompt.
    call : dict
        The pipeline's call arguments; :meth:`settle` adds the size.
    decode : callable, optional
        As of :func:`glass_flows.steer_pipeline`.
    own : dict
        Those of them that were not given.
    refused : str
        Why it does not draw at a smaller size.
    figures : dict
        Numbers that the present trial found.
    evaluations, calls : dict
        Of so many plain samples, those that were planned, and the seconds of each network call.
    """

    pipe: Any
    prompts: tuple[Any, Any]
    call: dict[str, Any]
    decode: Callable[[Tensor], Tensor] | None = None
    own: dict[str, Any] = field(default_factory=dict)
    refused: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    evaluations: dict[int, int] = field(default_factory=dict)
    calls: dict[int, list[float]] = field(default_factory=dict)
    _plain: dict[int, ImageResult] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.before = state_of(self.pipe)

    @cached_property
    def family(self) -> Any:
        """The adapter's class; None without."""
        return None if self.decode is not None else family_of(self.pipe)

    @property
    def device(self) -> torch.device:
        return torch.device(self.pipe._execution_device)

    @property
    def adapter(self) -> Any:
        return self.family(self.pipe, **self.call)

    @cached_property
    def begins_with_image(self) -> bool:
        """Whether noise on an image of its call is where it begins."""
        if self.family is None:
            return False
        with torch.no_grad():
            return self.adapter.around([self.prompts[0]]) is not None

    @property
    def areas(self) -> bool:
        """Whether it fills an area, which its call does not say."""
        return "max_area" in self.takes and "max_area" not in self.call

    @property
    def passes(self) -> int:
        """Network evaluations of one of the sampler: two under classifier-free guidance."""
        return self.plain().result.network_evaluations // self.evaluations[1]

    @property
    def networks(self) -> list[torch.nn.Module]:
        return networks_of(self.pipe)

    @property
    def takes(self) -> Mapping[str, inspect.Parameter]:
        """Parameters of the pipeline's call."""
        return inspect.signature(self.pipe.__call__).parameters

    @property
    def alike(self) -> float:
        """Largest relative difference of what is the same, in the network's dtype."""
        dtype = next(self.networks[0].parameters()).dtype if self.networks else torch.float32
        return _ALIKE if dtype in (torch.float32, torch.float64) else _ALIKE_HALVED

    def draw(
        self,
        method: Method | None = None,
        sampler: Sampler = SAMPLER,
        *,
        prompt: Any = None,
        seed: int = 0,
        **more: Any,
    ) -> ImageResult:
        """Images of the first prompt, by plain sampling, unless others are asked for."""
        return steer_pipeline(
            self.pipe, self.prompts[0] if prompt is None else prompt, REWARD,
            method or BestOf(1), sampler, seed=seed, progress=False, decode=self.decode,
            **more, **self.call,
        )  # fmt: skip

    def plain(self, particles: int = 1) -> ImageResult:
        """So many plain samples, drawn once, with the seconds of each call of the network."""
        if particles not in self._plain:
            with timed(self.networks, self.device) as seconds:
                result, steps = self.watched(BestOf(particles))
            planned = (step.boundary.transition for step in steps)
            self.evaluations[particles] = sum(one.evaluations for one in planned if one)
            self.calls[particles], self._plain[particles] = seconds, result
        return self._plain[particles]

    def watched(self, method: Method, **more: Any) -> tuple[ImageResult, list[Step]]:
        """A result, and the steps on the way."""
        steps: list[Step] = []
        return self.draw(method, on_boundary=steps.append, **more), steps

    def settle(self) -> None:
        """Find the smallest size at which it draws, and keep the sample; what failed is raised."""
        own = {"height", "width"} & {*self.takes, *(self.family.takes() if self.family else ())}
        if len(own) < 2 or own & set(self.call):
            self.plain()
            return
        areas = self.areas
        for side in self._sides():
            self.call |= square(side, areas)
            try:
                self.plain()
                return
            except Exception as error:  # of whatever is too small for it
                self.refused = self.refused or f"{side} x {side}: {first_line(error)}"
        for name in square(1, areas):
            self.call.pop(name, None)
        self.plain()

    def _sides(self) -> list[int]:
        usual, scale = usual_size(self.pipe)
        most = math.inf if usual is None else usual * scale
        return [n * scale for n in _SIDES if n * scale < most]

    def loop(self, scheduler: Any, **more: Any) -> Tensor:
        """The clean state (1, *shape) that the pipeline's own loop ends with, by a scheduler.

        Where it draws what its encoder says of an image, the mean is taken, as by adapters.
        """
        pipe, own, last = self.pipe, self.pipe.scheduler, list[Tensor]()
        step = scheduler.step

        @wraps(step)  # pipelines look at what it takes
        def kept(*args: Any, **given: Any) -> Any:
            given.pop("generator", None)  # what noise there is, is keyed
            output = step(*args, **given)
            last[:] = [output[0]]
            return output

        given = {n: value for n, value in self.call.items() if n in self.takes}
        name = "class_labels" if "class_labels" in self.takes else "prompt"
        if name in self.takes:
            given[name] = [self.prompts[0]]
        if '"latent"' in code_of(pipe):  # so that its decoder has no part in this
            given["output_type"] = "latent"
        bar = dict(vars(pipe).get("_progress_bar_config", {}))
        try:
            scheduler.step, pipe.scheduler = kept, scheduler
            pipe.set_progress_bar_config(**{**bar, "disable": True})
            with _means(pipe):
                pipe(
                    num_inference_steps=SAMPLER.transitions,
                    generator=torch.Generator().manual_seed(0),
                    **given,
                    **more,
                )
        finally:
            pipe.scheduler = own
            pipe.set_progress_bar_config(**bar)
            del scheduler.step
        return last[0][:1]  # some double their batch for guidance

    def to_pictures(self) -> Callable[[Tensor], Tensor]:
        """From clean states to images, as the engine that runs it makes them."""
        if self.family is not None:
            decode: Callable[[Tensor], Tensor] = self.adapter.decode
            return decode
        return self.decode or pictures_of(self.pipe, self.takes, self.call)

    def same(self, a: Tensor, b: Tensor, otherwise: str, figure: str = "difference") -> str:
        """How much alike two samples are that must be alike; :class:`Wrong` if they are not."""
        found = self.figures[figure] = difference(a, b)
        if found > self.alike:
            raise Wrong(f"{otherwise}: relative difference {found:.2g}")
        return "the same bits" if found == 0.0 else f"relative difference {found:.1e}"


@contextmanager
def _means(pipe: Any) -> Iterator[None]:
    """Within, what the autoencoder draws of an image is the mean."""
    vae = pipe.components.get("vae")
    if not hasattr(vae, "encode"):
        yield
        return
    encode, own = vae.encode, vars(vae).get("encode")

    def encoded(*args: Any, **given: Any) -> Any:
        found = encode(*args, **given)
        if "latent_dist" in found:
            law = found.latent_dist
            law.sample = lambda generator=None: law.mode()
        return found

    vae.encode = encoded
    try:
        yield
    finally:
        del vae.encode
        if own is not None:
            vae.encode = own


def first_line(error: BaseException) -> str:
    """What an error says, for one row; with its kind if it is none of ours."""
    line = next(iter(str(error).strip().splitlines()), "")
    known = isinstance(error, (GlassError, NotHere, Wrong))
    return line if known and line else f"{type(error).__name__}: {line}".rstrip(": ")


def samples(result: ImageResult) -> Tensor:
    """Of one prompt, (N, *shape), on the CPU."""
    return result.result.samples[0].cpu()


def first_picture(result: ImageResult) -> tuple[Image.Image, int]:
    """The image, or the first frame of a video and how many it has."""
    if isinstance(result, VideoResult):
        return result.frames[0][0], len(result.frames[0])
    return result.image, 0


# --- what is drawn --------------------------------------------------------------------------------


def sampling(bench: Bench) -> str:
    bench.settle()
    result = bench.plain()
    image, frames = first_picture(result)
    for name, asked in (("width", image.width), ("height", image.height)):
        if bench.call.get(name, asked) != asked:
            raise Wrong(f"asked for {name} {bench.call[name]}, it draws {asked}")
    if not torch.isfinite(samples(result)).all():
        raise Wrong("its samples are not finite")
    passes = bench.figures["passes"] = result.result.network_evaluations
    what = f"a video of {frames} frames" if frames else "a picture"
    return f"{what} of {image.width} x {image.height} in {passes} passes through the network"


def own_sampler(bench: Bench) -> str:
    theirs = first_order(bench.pipe.scheduler)
    ours = GlassScheduler.from_pipeline(bench.pipe, rho=1.0, steps=1, start="trained")
    alike = bench.same(
        bench.loop(ours), bench.loop(theirs), f"it is not what {type(theirs).__name__} draws"
    )
    return f"{type(theirs).__name__} in the pipeline's own loop: {alike}"


def first_order(own: Any) -> Any:
    """A pipeline's own scheduler, or one on its grid, as a deterministic one of first order."""
    kind, config = type(own), own.config
    if "Flow" in kind.__name__:
        return diffusers.FlowMatchEulerDiscreteScheduler.from_config(config)
    if kind is diffusers.UniPCMultistepScheduler:
        return kind.from_config(config, solver_order=1, disable_corrector=[0, 1])
    if kind is diffusers.DPMSolverMultistepScheduler:
        return kind.from_config(config, solver_order=1, algorithm_type="dpmsolver++")
    clips = config.get("clip_sample", False)
    short = config.get("set_alpha_to_one", True)
    return diffusers.DDIMScheduler.from_config(config, clip_sample=clips, set_alpha_to_one=short)


def own_loop(bench: Bench) -> str:
    if bench.family is None:
        raise NotHere("it has no adapter: its own loop is what runs")
    # A scheduler does not know of classifier-free guidance, for which our executor has a grid.
    solver = f"default:guidance={bench.adapter.cfg_scale}"
    scheduler = GlassScheduler.from_pipeline(
        bench.pipe, rho=0.4, steps=2, solver=solver, end="data"
    )
    starts: list[Tensor] = []
    scheduler.noise = _of_the_first
    scheduler.at_boundary = lambda boundary: starts.append(boundary.x[:1].clone())
    sampler = build(Sampler, {**vars(SAMPLER), "solver": solver})
    if bench.begins_with_image:  # where only we take no other beginning
        result, steps = bench.watched(BestOf(1), sampler=sampler)
        ours, theirs = samples(result), bench.loop(scheduler, latents=steps[0].boundary.x)
    else:
        theirs = bench.loop(scheduler)
        ours = samples(bench.draw(sampler=sampler, latents=starts[0].float()))
    otherwise = "the adapter does not draw what the pipeline's own loop draws"
    return bench.same(ours, theirs.cpu().to(ours.dtype), otherwise)


def _of_the_first(index: int, like: Tensor, *purpose: Any) -> Tensor:
    """The first particle's noise for all rows: some loops double their batch for guidance."""
    return KeyedNoise(0)(index, like[:1], *purpose).expand_as(like)


def seeds(bench: Bench) -> str:
    first = samples(bench.plain())
    told = bench.same(samples(bench.draw()), first, "the same seed draws another sample")
    other = bench.figures["other seed"] = difference(samples(bench.draw(seed=1)), first)
    if other <= bench.alike:
        raise Wrong("another seed draws the same sample: its noise does not reach what is drawn")
    return f"{told}; another seed, another sample"


def own_noise(bench: Bench) -> str:
    if bench.family is None and "latents" not in bench.takes:
        raise NotHere(f"{type(bench.pipe).__name__} takes no latents")
    if bench.begins_with_image:
        raise NotHere("it begins with noise on the image of its call, and takes no latents")
    shape = samples(bench.plain()).shape
    noise = torch.randn(shape, generator=torch.Generator().manual_seed(0))
    one, again, other = (
        samples(bench.draw(sampler=Sampler(2, 2, "ode"), latents=x, seed=seed))
        for x, seed in ((noise, 0), (noise, 1), (-noise, 0))
    )
    if difference(other, one) <= bench.alike:
        raise Wrong("other latents draw the same sample: they do not reach what is drawn")
    found = bench.figures["difference"] = difference(again, one)
    if found <= bench.alike:
        return "other latents, another sample; by the ODE they alone decide on it"
    if bench.family is not None:
        raise Wrong(f"by the ODE another seed draws another sample of them: {found:.2g}")
    return f"other latents, another sample; the pipeline has noise beside them ({found:.2g})"


def batches(bench: Bench) -> str:
    one = samples(bench.plain())[0]
    told = []
    for n in (2, _MANY):
        row = samples(bench.plain(n))[0]
        told.append(
            f"{n}: "
            + bench.same(row, one, f"the first of {n} is another sample than alone", f"batch {n}")
        )
    return f"the first particle, alone and in batches of {', '.join(told)}"


def micro_batches(bench: Bench) -> str:
    alone = samples(bench.draw(BestOf(_MANY), max_batch=1))
    return f"{_MANY} one by one and at once: " + bench.same(
        alone, samples(bench.plain(_MANY)), "max_batch=1 draws other samples than all at once"
    )


def several_prompts(bench: Bench) -> str:
    first, second = bench.prompts
    if first is None:
        raise NotHere("it takes no prompt")
    # The particles of a batch are counted through: each has the noise of its place in it.
    both = bench.draw(prompt=[first, second]).result.samples[:, 0].cpu()
    ones, others = bench.plain(2), bench.draw(BestOf(2), prompt=second)
    apart = torch.stack([samples(ones)[0], samples(others)[1]])
    told = bench.same(both, apart, "two prompts at once draw other samples than each by itself")
    if difference(samples(others), samples(ones)) == 0.0:
        raise Wrong(f"{first!r} and {second!r} draw the same: prompts do not reach the network")
    return f"two at once and each by itself: {told}"


# --- what is looked at and chosen -----------------------------------------------------------------


def steering(bench: Bench) -> str:
    method = Steering(_MANY, scale=_LARGE, ess_threshold=1.0)
    result, steps = bench.watched(method)
    chosen = _choices(steps)
    for rewards, ancestors in chosen:
        if set(ancestors.tolist()) != {int(rewards.argmax())}:
            raise Wrong(f"of {_MANY} particles another than the best goes on")
    _check_parted(result)
    return f"of {_MANY} particles the best estimate goes on, and its copies part"


def search(bench: Bench) -> str:
    result, steps = bench.watched(Beam(_MANY, children=2))
    for rewards, ancestors in _choices(steps):
        if set(ancestors.tolist()) != set(rewards.topk(_MANY // 2).indices.tolist()):
            raise Wrong(f"of {_MANY} particles others than the best go on")
    _check_parted(result)
    return f"beam: of {_MANY} particles the best {_MANY // 2} go on with two children each"


def _choices(steps: Sequence[Step]) -> list[tuple[Tensor, Tensor]]:
    """Rewards and ancestors (N,) of the boundaries at which something is chosen."""
    found = []
    for step in steps:
        rewards = step.rewards[0]
        if step.boundary.final or rewards.isnan().any():
            continue
        if rewards.unique().numel() < len(rewards):
            raise Wrong(
                f"particles have the same reward, {float(rewards[0]):.3g}: their pictures do not "
                "depend on their noise"
            )
        found.append((rewards, step.ancestors[0]))
    if not found:
        raise Wrong("nothing was looked at on the way")
    return found


def _check_parted(result: ImageResult) -> None:
    found = samples(result)
    if len(found.flatten(1).unique(dim=0)) < len(found):
        raise Wrong("copies of a particle stay the same: the noise of transitions does not act")


def posterior_values(bench: Bench) -> str:
    method = Steering(2, scale=1.0, value=PosteriorValue(2, 2), ess_threshold=1.0)
    _, steps = bench.watched(method)
    decode, apart = bench.to_pictures(), 0.0
    for step in steps[:-1]:
        if not step.rewards.isnan().any():
            with torch.no_grad():
                free = _tilt(decode(step.estimates).clamp(0, 1)).cpu()
            apart = max(apart, difference(step.rewards[0], free))
    if not 0.0 < apart < math.inf:
        raise Wrong("the values of posterior samples are those of the estimates")
    return f"of two posterior samples each, {apart:.1e} from the rewards of the estimates"


# --- gradients ------------------------------------------------------------------------------------


def gradients(bench: Bench) -> str:
    z = samples(bench.plain()).to(bench.device).requires_grad_()
    decode = bench.to_pictures()
    with as_it_was(bench.pipe), torch.enable_grad():
        (gradient,) = torch.autograd.grad(_tilt(decode(z)).sum(), z)
    norm = bench.figures["norm"] = float(gradient.double().norm())
    if not math.isfinite(norm) or norm == 0.0:
        raise Wrong(f"the gradient of a reward is {norm}: none comes through the decoder")
    return f"of a reward through the decoder: |gradient| {norm:.2g}"


def twist(bench: Bench) -> str:
    return _acts(bench, twist=Twist(1.0, adaptive=False))


def guidance(bench: Bench) -> str:
    told = _acts(bench, guidance=Guidance(1.0, "network", clip=1.0))
    return f"through the network: {told}"


def _acts(bench: Bench, **setting: Any) -> str:
    """Whether a setting changes what is drawn where nothing is chosen."""
    method = Steering(2, scale=_LARGE, ess_threshold=0.0, **setting)
    under, without = samples(bench.draw(method)), samples(bench.plain(2))
    found = bench.figures["difference"] = difference(under, without)
    if not 0.0 < found < math.inf:
        raise Wrong("it changes nothing: no gradient of the reward arrives")
    return f"it moves samples by {found:.1e} of themselves"


# --- from clean samples ---------------------------------------------------------------------------


def refinement(bench: Bench) -> str:
    method = Refine(2, moves=2, move_steps=2, scale=_LARGE, ess_threshold=0.0)
    result, steps = bench.watched(method)
    return _refined(result, steps)


def _refined(result: ImageResult, steps: Sequence[Step]) -> str:
    before, moves = steps[0].rewards, steps[1:]
    if bool((result.rewards < before).any()):
        raise Wrong("a chain ends below where it began")
    proposed = torch.cat([vars(step)["proposed"] for step in moves])
    if not torch.isfinite(proposed).all() or bool((proposed == before).all()):
        raise Wrong("moves propose what is there already")
    accepted = sum(int(vars(step)["accepted"].sum()) for step in moves)
    return f"{accepted} of {proposed.numel()} proposals accepted, no chain below where it began"


def image_to_image(bench: Bench) -> str:
    method = Refine(2, moves=1, move_steps=2, scale=_LARGE, ess_threshold=0.0)
    own = bench.plain().image
    if bench.family is None:
        bench.draw(method, init=own)  # is refused, and says why
        raise Wrong("a picture to begin with is taken and not used")
    if bench.begins_with_image:
        return _of_its_call(bench)
    adapter = bench.adapter
    pictures = [own, own.transpose(Image.Transpose.FLIP_LEFT_RIGHT)]
    states = [beginning(one, adapter, 1) for one in pictures]
    if difference(states[1], states[0]) <= bench.alike:
        raise Wrong("two pictures have the same latents: they do not reach what is drawn")
    z = states[0]
    z = z if z.ndim > len(adapter.shape) else z[None]
    with as_it_was(bench.pipe), torch.no_grad():
        back = adapter.decode(z.float()).clamp(0, 1).cpu()
    off = bench.figures["rms"] = float((back - to_pictures([own])).square().mean().sqrt())
    told = _refined(*bench.watched(method, init=own))
    return f"{told}; its own picture comes back from its latents {off:.2g} off (rms, of 1)"


def _of_its_call(bench: Bench) -> str:
    other = own_images()["image"].transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    drawn = replace(bench, call={**bench.call, "image": other}, _plain={}).draw()
    found = bench.figures["difference"] = difference(samples(drawn), samples(bench.plain()))
    if found <= bench.alike:
        raise Wrong("another image draws the same sample: it does not reach what is drawn")
    return "it begins with noise on the image of its call; another image, another sample"


# --- what it takes --------------------------------------------------------------------------------


def memory(bench: Bench) -> str:
    device, short = bench.device, Sampler(2, 1, 0.4)
    one, many = (
        peak(bench.networks, device, partial(bench.draw, BestOf(n), short)) for n in (1, _MANY)
    )
    if one is None or many is None:
        raise NotHere(f"not measured: what a {device.type} holds is not known here")
    each = bench.figures["bytes per particle"] = (many - one) / (_MANY - 1)
    if each <= 0:
        raise NotHere(f"not measured: {_MANY} particles hold no more than one")
    how = "by torch's allocator" if device.type == "cuda" else "in tensors alive at once"
    free = free_bytes(device)
    largest = bench.figures["largest batch"] = int(_SPARED * free / each)
    return (
        f"the network holds {each / 1e6:.3g} MB for each particle, {how}; {free / 1e9:.3g} GB are "
        f"free: batches up to about {largest:,} of this size, without gradients"
    )


def seconds(bench: Bench) -> str:
    device, told = bench.device, []
    for n in (1, _MANY):
        bench.plain(n)
        calls = bench.calls[n]
        each = max(1, len(calls) // bench.evaluations[n])  # guidance may take two for one
        found = median(sum(calls[i : i + each]) for i in range(0, len(calls), each))
        bench.figures[f"seconds with {n}"] = found
        told.append(f"{found:.2g} s with {n} particle{'s' * (n > 1)}")
    decode, z = bench.to_pictures(), samples(bench.plain()).to(device)
    with torch.no_grad():
        look = median(elapsed(device, lambda: decode(z)) for _ in range(3))
    bench.figures["seconds for a picture"] = look
    return f"an evaluation takes {', '.join(told)}; a picture is decoded in {look:.2g} s"


def left_as_it_was(bench: Bench) -> str:
    now = state_of(bench.pipe)
    if changed := [name for name, held in bench.before.items() if held != now[name]]:
        raise Wrong(f"changed by these trials: {', '.join(changed)}")
    return "scheduler, dtypes and devices"


Trial = Callable[[Bench], str]
TRIALS: dict[str, Trial] = {
    "sampling": sampling,
    "its own sampler, M = 1 and ρ = 1": own_sampler,
    "the adapter, against its own loop": own_loop,
    "noise by seed": seeds,
    "noise of your own": own_noise,
    "batches of 1, 2 and 4": batches,
    "micro-batches": micro_batches,
    "several prompts": several_prompts,
    "steering": steering,
    "search": search,
    "posterior values": posterior_values,
    "gradients": gradients,
    "twist": twist,
    "reward guidance": guidance,
    "refinement": refinement,
    "image-to-image": image_to_image,
    "memory": memory,
    "time": seconds,
    "left as it was": left_as_it_was,
}
"""In the order in which they are tried: what shows that a row works, or raises."""
NEED_AN_ADAPTER = frozenset({"posterior values", "reward guidance", "refinement", "image-to-image"})
"""Refused, before anything runs, of a pipeline that has none."""
