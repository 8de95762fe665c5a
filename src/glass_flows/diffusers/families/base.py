"""The contract of a family: how one kind of pipeline is asked for a prediction and for an image.

A family is the body of its pipeline's loop and what comes before and after it, and nothing of the
sampler. To add one: subclass :class:`Family` in a file of its own, and list it in
`families/__init__.py`.
"""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from copy import copy
from functools import cache
from typing import Any, ClassVar

import diffusers
import numpy as np
import torch
from diffusers.pipelines.flux.pipeline_flux import calculate_shift
from torch import Tensor

from ...denoisers import Denoiser, Fitting
from ...errors import MOST_PIXELS, InvalidArgument, ShapeError, check_name, shown
from ...pixels import listed_images, opened
from ...plans import Sampler
from ...settings import Count, Kind, Number
from ..decoding import decode_latents, encode_latents, encoding, picture, unit_range, wide
from ..parts import caches_of, usual_size
from ..refusals import named_before_network
from ..schedules import Schedule

__all__ = [
    "Family",
    "OwnDefaults",
    "Packed",
    "decode_latents",
    "encoding",
    "joined",
    "picture",
    "unit_range",
    "wide",
]

_SIDE = Count(optional=True, most=MOST_PIXELS)
_KINDS: dict[str, Kind] = {
    "guidance_scale": Number(),
    "true_cfg_scale": Number(),
    "guidance_rescale": Number(),
    "cfg_truncation": Number(optional=True),
    "clip_skip": Count(0),
    "max_sequence_length": Count(),
    "max_area": Count(),
    "controlnet_conditioning_scale": Number(),
    "control_mode": Count(0, optional=True),
}
_GUIDED_ONLY = ("negative_", "guidance_rescale", "cfg_")


class OwnDefaults:
    """`options` of a family: these call arguments, with the defaults of the pipeline's own call."""

    def __init__(self, names: str) -> None:
        self.names = names.split()

    def __get__(self, instance: Any, family: type[Family]) -> dict[str, Any]:
        call = getattr(diffusers, family.pipelines[0]).__call__
        takes = inspect.signature(call).parameters
        return {name: takes[name].default for name in self.names}


class Family(ABC):
    """One pipeline with the settings of one call, as a denoiser.

    Parameters
    ----------
    pipe : DiffusionPipeline
        Its modules are used as they are: LoRA, offloading hooks, quantised or compiled networks
        and attention backends stay in force.
    height, width : int, optional
        Of the images, in pixels; the pipeline's own default without them.
    options
        The rest of the pipeline's call arguments that the family knows, by their own names; others
        raise UnknownName.

    Attributes
    ----------
    pipelines : tuple of str
        Names of the pipeline classes this is for.
    options : dict
        Call arguments it knows, with their defaults.
    doubled : bool
        Whether guidance asks the network once about a doubled batch [uncond, cond], or twice.
    guidance_argument : str
        The call argument that scales it.
    embeds_guidance : bool
        Whether `guidance_scale` is an input of the network, if that takes one.
    encoded : tuple of str
        Names of what the pipeline's `encode_prompt` returns, with "-" before those of the
        unconditional texts.
    reads : dict
        What the pipeline reads of its autoencoder's configuration: `shift`, `statistics`, `upcast`
        of :func:`~glass_flows.diffusers.decoding.decode_latents`.
    passes : int
        Network evaluations per sample of one prediction (2 under classifier-free guidance).
    shape : tuple of int
        Of one sample of the state, as the pipeline's scheduler sees it, without the batch.
    """

    pipelines: ClassVar[tuple[str, ...]]
    options: ClassVar[dict[str, Any] | OwnDefaults]
    doubled: ClassVar[bool] = False
    guidance_argument: ClassVar[str] = "guidance_scale"
    embeds_guidance: ClassVar[bool] = False
    encoded: ClassVar[tuple[str, ...]] = ("words",)
    reads: ClassVar[Mapping[str, bool]] = {"shift": True}
    passes: int = 1
    shape: tuple[int, ...]

    def __init__(
        self, pipe: Any, *, height: int | None = None, width: int | None = None, **options: Any
    ) -> None:
        for name in options:
            check_name(f"argument of {type(pipe).__name__}", name, self.takes())
        self.pipe = pipe
        self.caches = bool(caches_of(self.network))
        self.height: Any = _SIDE.read("height", height)  # numbers after `prepare`
        self.width: Any = _SIDE.read("width", width)
        self.asked = frozenset(options)
        self.given: dict[str, Any] = {**self.options, **opened(options)}
        for name in self.asked.intersection(_KINDS):
            if self.given[name] is not None or self.options[name] is not None:
                _KINDS[name].read(name, self.given[name])
        if self.embeds_guidance:
            self.refuse_idle_guidance()
        self.prepare()
        self._refuse_idle()

    # --- what a family defines ------------------------------------------------------------------

    @abstractmethod
    def prepare(self) -> None:
        """Check the settings; set `height`, `width`, `shape` and `passes`."""

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        """The conditioning of these prompts: tensors (also nested) of one row for each.

        Called once per run. Its entries are the keyword arguments of :meth:`predict`, "cond" and
        under guidance "uncond", repeated for particles and cut into chunks with the batch; what all
        samples share belongs on `self`.
        """
        found: dict[str, dict[str, Any]] = {"cond": {}, "uncond": {}}
        for name, value in zip(self.encoded, self.texts(prompts)):
            found["uncond" if name[0] == "-" else "cond"][name.removeprefix("-")] = value
        found = self.both(**found)
        self.add_images(found, len(prompts))
        return found

    def ask(self, x: Tensor, timestep: Tensor, texts: dict[str, Any]) -> Tensor:
        """The network's prediction at x (B, *shape), in its dtype, for one conditioning.

        The same operations in the same order as in the pipeline's loop. `timestep` is (B,),
        float32, in the scheduler's units. A learned variance is dropped.
        """
        raise NotImplementedError(f"{type(self).__name__} defines ask() or predict()")

    def guide(self, conditional: Tensor, unconditional: Tensor) -> Tensor:
        """Classifier-free guidance."""
        difference = conditional - unconditional
        guided: Tensor = unconditional + self.given[self.guidance_argument] * difference
        return guided

    def predict(
        self, x: Tensor, timestep: Tensor, *, cond: Any, uncond: Any = None, **more: Any
    ) -> Tensor:
        """The network's prediction with guidance, shaped like x; keywords are those of `encode`."""
        if uncond is None:
            return self.ask(x, timestep, cond)
        if self.doubled:
            both = self.ask(torch.cat([x] * 2), torch.cat([timestep] * 2), joined(uncond, cond))
            unconditional, conditional = both.chunk(2)
        else:
            # A copy: a compiled network may answer in the same memory again.
            conditional = self.ask(x, timestep, cond).clone()
            with self.cached("uncond", x):
                unconditional = self.ask(x, timestep, uncond)
        return self.guide(conditional, unconditional)

    def cached(self, name: str, x: Tensor) -> AbstractContextManager[None]:
        """What a cache on the network holds for calls of this name, and of so many rows."""
        if not self.caches:
            return nullcontext()
        context: AbstractContextManager[None] = self.network.cache_context(f"{name} of {len(x)}")
        return context

    def _predict(self, x: Tensor, timestep: Tensor, **conditioning: Any) -> Tensor:
        with self.cached("cond", x):
            return self.predict(x, timestep, **conditioning)

    def grid(self, transitions: int) -> dict[str, Any]:
        """What the pipeline hands to `set_timesteps` besides the number of steps."""
        return {}

    def decode(self, x: Tensor) -> Tensor:
        """Images (B, 3, height, width) of clean states; differentiable.

        [0, 1] or so: what leaves it is clamped for rewards.
        """
        return self.decode_latents(x)

    def encode_images(self, images: Tensor) -> Tensor:
        """Clean states (B, *shape) of images (B, 3, height, width) in [0, 1], in float32 at least.

        What `decode` does around the autoencoder, undone: a family that has a `decode` of its own
        has this, too, if refinement is to begin with images.
        """
        return self.encode_latents(images)

    # --- what all have --------------------------------------------------------------------------

    @classmethod
    def takes(cls) -> tuple[str, ...]:
        """Names of the call arguments that it knows."""
        return ("height", "width", *cls.options)

    @property
    def network(self) -> Any:
        """The transformer or UNet."""
        return self.pipe.transformer

    @property
    def cfg_scale(self) -> float:
        """w of classifier-free guidance D_u + w (D_c - D_u), 1 without."""
        return float(self.given[self.guidance_argument]) if self.passes == 2 else 1.0

    def guided(self, scale: float) -> Family:
        """The same call under another w of classifier-free guidance, with as many passes."""
        if scale == self.cfg_scale:
            return self
        other, name = copy(self), self.guidance_argument
        other.given = {**self.given, name: self.given[name] + scale - self.cfg_scale}
        return other

    @property
    def device(self) -> torch.device:
        """Where the pipeline runs, also under CPU offloading."""
        return torch.device(self.pipe._execution_device)

    def times(self, schedule: Schedule, sampler: Sampler) -> tuple[float, ...]:
        """The outer times of the pipeline's own grid of K steps.

        A single transition goes from where the grid of its M evaluations starts: many a grid of one
        step starts near data.
        """
        count = sampler.transitions
        if count == 1 and sampler.evaluations > 1:
            grid = self.grid(sampler.evaluations)
            return (schedule.outer_times(sampler.evaluations, **grid)[0], 1.0)
        return schedule.outer_times(count, **self.grid(count))

    def timed(self, schedule: Schedule, sampler: Sampler) -> Sampler:
        """The sampler on the pipeline's own grid, unless it has times."""
        return sampler if sampler.times is not None else sampler.at(self.times(schedule, sampler))

    def around(self, prompts: Sequence[Any]) -> Tensor | None:
        """Clean states (P, *shape), noise on which is where particles begin; None: in noise."""
        return None

    def denoiser(
        self,
        prompts: Sequence[Any],
        schedule: Schedule,
        *,
        max_batch: int | str | None = None,
        checkpoint: bool = False,
    ) -> Denoiser:
        """D_t(x) of the pipeline for these prompts, one row of conditioning for each.

        `max_batch` "auto" finds the largest batch that fits in the device's memory.
        """
        fits = False
        if self.caches:
            if isinstance(max_batch, int) or checkpoint:
                raise InvalidArgument(
                    "a cache on the network holds features of the whole batch: leave out max_batch "
                    "and checkpoint, or call disable_cache()"
                )
            max_batch = None
        if isinstance(max_batch, str):
            check_name("max_batch", max_batch, ("auto",))
            fits, max_batch = True, None
        config = schedule.base.config
        if config.get("clip_sample") or config.get("thresholding"):
            raise InvalidArgument(
                "a scheduler that clips its estimates (clip_sample, thresholding) belongs to a "
                "model of pixels, and the denoiser of this family does not clip"
            )
        with torch.no_grad(), named_before_network(self.pipe):
            conditioning = self.encode(list(prompts))

        @cache  # micro-batches share what one of them has found to fit
        def network(scale: float) -> Callable[..., Tensor]:
            predict = self.guided(scale)._predict
            return Fitting(predict) if fits else predict

        return Denoiser(
            network(self.cfg_scale),
            schedule.path,
            prediction=schedule.prediction,
            time=schedule.model_time,
            conditioning=conditioning,
            dtype=self.network.dtype,
            max_batch=max_batch,
            checkpoint=checkpoint,
            passes=self.passes,
            network_cfg=self.cfg_scale,
            network_at=network if self.passes == 2 else None,
        )

    def texts(self, prompts: Sequence[Any], **others: Any) -> Any:
        """What the pipeline's `encode_prompt` makes of these prompts and the call's arguments.

        It is given those that it takes, texts as one for each prompt; `others` in their place.
        """
        name = type(self.pipe).__name__
        if strange := [one for one in prompts if not isinstance(one, str)]:
            raise InvalidArgument(f"prompts of {name} must be texts, got {strange[0]!r}")
        extra = (value for n, value in self.given.items() if n.endswith("attention_kwargs"))
        given = {
            "prompt": list(prompts),
            "device": self.device,
            "num_images_per_prompt": 1,
            "do_classifier_free_guidance": self.passes == 2,
            "lora_scale": (next(extra, None) or {}).get("scale"),
        }
        for option, value in self.given.items():
            if option not in others:
                given[option] = self.for_each(option, prompts) if "prompt" in option else value
        takes = inspect.signature(type(self.pipe).encode_prompt).parameters
        given = {option: value for option, value in (given | others).items() if option in takes}
        return self.pipe.encode_prompt(**given)

    def both(self, cond: Any, uncond: Any) -> dict[str, Any]:
        """The conditioning, without the second under no guidance."""
        return {"cond": cond, "uncond": uncond} if self.passes == 2 else {"cond": cond}

    def add_images(self, found: dict[str, Any], count: int) -> None:
        """The IP-Adapter's image prompt, if there is one: lists of one row for each prompt."""
        image, known = (self.given.get(f"ip_adapter_image{end}") for end in ("", "_embeds"))
        if image is None and known is None:
            return
        images = self.pipe.prepare_ip_adapter_image_embeds(
            image, known, self.device, count, self.passes == 2
        )
        parts = [one.chunk(self.passes) for one in (images if type(images) is list else [images])]
        for name, part in zip(found, (-1, 0)):
            found[name]["images"] = [image[part] for image in parts]

    def pictures(self, name: str, count: int) -> list[Any]:
        """The images given as `name` for so many prompts: one for all, or one for each.

        PIL images, or tensors (1, 3, height, width) in [0, 1], of a mask (1, 1, height, width).
        """
        given, channels = self.given[name], 1 if name.startswith("mask") else 3
        if isinstance(given, Tensor) and given.ndim in (3, 4) and given.is_floating_point():
            batch = given if given.ndim == 4 else given[None]
            if batch.shape[1] != channels or not batch.numel():
                raise ShapeError(
                    f"{name} must be (B, {channels}, height, width), got {tuple(given.shape)}"
                )
            listed: list[Any] | None = list(batch.split(1))
            low, high = (float(one) for one in given.aminmax())
            if not 0.0 <= low <= high <= 1.0:
                raise InvalidArgument(f"{name} must lie in [0, 1], got {low:.4g} to {high:.4g}")
        else:
            listed = listed_images(given)
        if listed is None:
            raise InvalidArgument(
                f"{type(self.pipe).__name__} needs {name}: an image or its file, a list of them, "
                f"or floats (B, {channels}, height, width) in [0, 1], got {shown(given)}"
            )
        if len(listed) not in (1, count):
            raise InvalidArgument(
                f"{len(listed)} of {name} given for {count} prompt{'s' * (count > 1)}: give one "
                "for all, or one for each"
            )
        return listed

    def dynamic_shift(self, tokens: int, largest: float = 1.15) -> float:
        """`mu` of a picture of so many tokens, as the pipelines find it from the configuration."""
        config = self.pipe.scheduler.config
        mu: float = calculate_shift(
            tokens,
            config.get("base_image_seq_len", 256),
            config.get("max_image_seq_len", 4096),
            config.get("base_shift", 0.5),
            config.get("max_shift", largest),
        )
        return mu

    def for_each(self, name: str, prompts: Sequence[Any]) -> list[str] | None:
        """The text option `name`, one for each prompt; None if it was not given."""
        text = self.given[name]
        if text is None or isinstance(text, str):
            return None if text is None else [text] * len(prompts)
        if not isinstance(text, (list, tuple)) or not all(isinstance(one, str) for one in text):
            raise InvalidArgument(f"{name} must be a text or a list of texts, got {text!r}")
        if len(text) != len(prompts):
            raise InvalidArgument(f"{len(text)} of {name} given for {len(prompts)} prompts")
        return list(text)

    def _refuse_idle(self) -> None:
        """Raise if something was asked for that acts under classifier-free guidance only."""
        asked = [n for n in self.options if n in self.asked and n.startswith(_GUIDED_ONLY)]
        idle = [name for name in asked if self.given[name] != self.options[name]]
        if idle and self.passes == 1:
            raise InvalidArgument(
                f"{', '.join(idle)}: nothing to do without classifier-free guidance, which "
                f"{self.guidance_argument}={self.given[self.guidance_argument]!r} leaves off"
            )

    def embedded_guidance(self, x: Tensor) -> Tensor | None:
        """`guidance_scale` as an input of the network, (B,), float32; None if it takes none."""
        if not self.network.config.guidance_embeds:
            return None
        scale = self.given["guidance_scale"]
        return torch.full([1], scale, device=x.device, dtype=torch.float32).expand(len(x))

    def refuse_idle_guidance(self) -> None:
        """Raise if `guidance_scale` was asked for and the network takes no guidance as an input."""
        if "guidance_scale" in self.asked and not self.network.config.guidance_embeds:
            other = self.guidance_argument != "guidance_scale"
            instead = f": give {self.guidance_argument}, with a negative_prompt" if other else ""
            raise InvalidArgument(
                f"guidance_scale does nothing on this {type(self.pipe).__name__}, whose network "
                f"takes none{instead}"
            )

    def default_size(self, factor: int) -> tuple[int, int]:
        """Set the pipeline's default height and width; returns how many `factor`s they are.

        Raises InvalidArgument if one of them is no multiple.
        """
        side, scale = usual_size(self.pipe)
        for name in ("height", "width"):
            size = getattr(self, name) or (side or 128) * scale
            if size % factor:
                raise InvalidArgument(
                    f"{name} must be a multiple of {factor} for {type(self.pipe).__name__}, "
                    f"got {size}"
                )
            setattr(self, name, size)
        return self.height // factor, self.width // factor

    def decode_latents(self, latents: Tensor) -> Tensor:
        """Images of unpacked latents, as the pipeline reads its autoencoder's configuration."""
        return decode_latents(self.pipe.vae, latents, **self.reads)

    def encode_latents(self, images: Tensor) -> Tensor:
        """Latents of images that :meth:`decode_latents` makes images of."""
        return encode_latents(self.pipe.vae, images, **self.reads)


class Packed(Family):
    """A family whose state is the packed latents, (tokens, 4 · channels), on FLUX's grid."""

    def prepare(self) -> None:
        self.rows, self.columns = self.default_size(self.pipe.vae_scale_factor * 2)
        self.shape = (self.rows * self.columns, self.network.config.in_channels)
        if self.guidance_argument == "true_cfg_scale":
            strong, negative = self.given["true_cfg_scale"] > 1, self.given["negative_prompt"]
            self.passes = 2 if strong and negative is not None else 1
            if strong and negative is None and "true_cfg_scale" in self.asked:
                raise InvalidArgument("true_cfg_scale > 1 needs a negative_prompt")

    def encode(self, prompts: Sequence[Any]) -> dict[str, Any]:
        if self.passes == 1:
            return {"cond": self.read(prompts)}
        told = "negative_prompt" in self.given
        blank = self.for_each("negative_prompt", prompts) if told else None
        blank = blank or [""] * len(prompts)
        return {"cond": self.read(prompts), "uncond": self.read(blank, prompt_2=None)}

    def read(self, prompts: Sequence[Any], **others: Any) -> dict[str, Any]:
        """The conditioning of these texts."""
        return dict(zip(self.encoded, self.texts(prompts, **others)))

    def shift_of(self, transitions: int) -> float:
        """`mu` of a grid of K steps."""
        return self.dynamic_shift(self.shape[0])

    def grid(self, transitions: int) -> dict[str, Any]:
        sigmas = np.linspace(1.0, 1 / transitions, transitions)
        return {"sigmas": sigmas, "mu": self.shift_of(transitions)}

    def unpacked(self, x: Tensor) -> Tensor:
        """The latents, (B, channels, height, width)."""
        return self.pipe._unpack_latents(x, self.height, self.width, self.pipe.vae_scale_factor)

    def packed(self, latents: Tensor) -> Tensor:
        """The state of latents (B, channels, height, width)."""
        return self.pipe._pack_latents(latents.contiguous(), *latents.shape)


def joined(first: Any, second: Any) -> Any:
    """The conditioning of a doubled batch: tensors, also nested, one after the other."""
    if isinstance(first, dict):
        return {name: joined(first[name], value) for name, value in second.items()}
    if isinstance(second, list):
        return [torch.cat([a, b]) for a, b in zip(first, second)]
    return torch.cat([first, second])
