"""A model by its name: one object that knows its defaults, prompts, rewards, and how to judge.

===========================  ==================================================================
digits, digits:FOLDER        the bundled handwritten digits, or others that you trained
shapes, shapes:FOLDER        the bundled small FluxPipeline, or another of that world
sit:FOLDER                   a converted SiT, with Stable Diffusion's autoencoder in FOLDER/vae
FOLDER                       a diffusers pipeline
ORGANISATION/NAME            a diffusers pipeline on the Hugging Face hub
===========================  ==================================================================
"""

from __future__ import annotations

import inspect
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from inspect import isabstract
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..checkpoints import identity
from ..denoisers import Denoiser
from ..errors import (
    InvalidArgument,
    MissingExtra,
    check_name,
    check_number,
    check_text,
    missing_name,
    shown,
)
from ..images import ImageResult
from ..paths import Linear
from ..pixels import open_image, to_bytes, to_images
from ..registry import Registry
from ..rewards import ClassReward, Decoded, FunctionReward, Reward
from ..rewards.forms import try_reward
from ..rewards.named import check_reward, load_reward
from ..steering import Method, SearchResult, Shards
from ..steering.loop import Watch, conduct
from ..steering.population import Population
from ..whole import load_whole
from ..worlds.digits import (
    FILES,
    IMAGE,
    NETWORK,
    NULL_CLASS,
    load_digits_classifier,
    load_digits_network,
)
from ..worlds.shapes import Prompt, accepts
from ..worlds.shapes.clip import BUNDLED as SHAPES_CLIP
from ..worlds.shapes.pipeline import BUNDLED as SHAPES_PIPELINE
from ..worlds.shapes.pipeline import CALL
from .job import Job, Loading
from .pictures import digit_image, digit_of
from .pipelines import load_pipeline

__all__ = [
    "MODELS",
    "Digits",
    "Model",
    "Pipeline",
    "Shapes",
    "SiT",
    "digits_denoiser",
    "kind_of",
    "resolve",
]

Announce = Callable[[str], None]
_OF_PIPELINES = ("batching", "loading", "viewing", "call", "micro_batch", "budget")


class Model(ABC):
    """A model by its name. Nothing is loaded before it is needed, and then once.

    Attributes
    ----------
    name : str
        As it was given.
    place : str
        What stands after the scheme, or the name itself.
    reward_name : str
        The reward of this model if none is asked for.
    sigma_data : float
        Standard deviation of its data, for twisted noise and guidance.
    takes : tuple of str
        Of "batching", "loading", "viewing", "call", "micro_batch", "budget", "populations", "init"
        and "also": what can act.
    batching, call : dict
        Defaults of its own.
    needs_folder : bool
        Whether a folder must stand after the scheme; after any there may be one.
    records : bool
        Whether its runs are kept at every boundary.
    """

    reward_name: ClassVar[str] = "clip"
    sigma_data: ClassVar[float] = 1.0
    takes: ClassVar[tuple[str, ...]] = _OF_PIPELINES
    batching: ClassVar[Mapping[str, Any]] = {}
    call: ClassVar[Mapping[str, Any]] = {}
    needs_folder: ClassVar[bool] = False

    def __init__(
        self,
        name: str,
        place: str,
        loading: Loading,
        announce: Announce = lambda text: None,
    ) -> None:
        self.name, self.place, self.loading, self.announce = name, place, loading, announce
        self._rewards: dict[str, Reward] = {}

    @property
    def records(self) -> bool:
        return True

    def read_prompts(self, prompts: Sequence[str]) -> tuple[str, ...]:
        """Prompts as the model writes them; :class:`InvalidArgument` if it cannot read one."""
        if not prompts:
            raise InvalidArgument("give at least one --prompt")
        return tuple(check_text("the prompt", prompt) for prompt in prompts)

    def reward(self, job: Job) -> Reward:
        """The reward of a job, loaded once."""
        text = job.reward or self.reward_name
        if text not in self._rewards:
            self._rewards[text] = self.load_reward(text)
        return self._rewards[text]

    def beside(self, job: Job) -> dict[str, Reward]:
        """The held-out rewards of a job by name, loaded once."""
        return {text: self.reward(replace(job, reward=text)) for text in job.also}

    def check_reward(self, text: str) -> None:
        """Raise if a text can be none of its rewards, before anything is loaded."""
        check_reward(text)

    def load_reward(self, text: str) -> Reward:
        """A reward by its name."""
        return load_reward(text, device=self.loading.device)

    def size(self, job: Job) -> tuple[int, int] | None:
        """Height and width of its pictures, as far as they are known before it is loaded."""
        return None

    def check_init(self, job: Job) -> None:
        """Raise if a job's pictures cannot be what they are for, before anything is loaded."""
        for files in job.pictures.values():
            for file in files:
                open_image(file)
        if len(job.init) > 1 and len(job.init) != len(job.prompts):
            raise InvalidArgument(
                f"{len(job.init)} pictures to begin with for {len(job.prompts)} prompt"
                f"{'s' * (len(job.prompts) != 1)}: give one for all, or one for each"
            )
        size = self.size(job)
        for file in job.init:
            image = open_image(file)
            if size is not None and size != (image.height, image.width):
                height, width = size
                raise InvalidArgument(
                    f"{file} is {image.width} x {image.height} pixels, and {self.name!r} draws "
                    f"{width} x {height}: resize it (image.resize(({width}, {height})) of PIL)"
                )

    def places(self, reward: str) -> dict[str, str | Path]:
        """Where that comes from on which the bits depend: files, folders, and ids on a hub."""
        from ..rewards.pretrained import REWARDS

        kind, _, place = reward.partition(":")
        return {"model": self.place, "reward": place if kind in REWARDS else ""}

    def weights(self, reward: str = "", also: Sequence[str] = ()) -> dict[str, str]:
        """Which weights and tokenizers are used with rewards, as far as they are known."""
        loading, found = self.loading, dict[str, str]()
        for name, place in self.places(reward or self.reward_name).items():
            revision = loading.revision if name == "model" else None
            if place and (one := identity(place, revision)) is not None:
                found[name] = one
        for text in also:
            beside = self.places(text).get("reward")
            if beside and (one := identity(beside)) is not None:
                found[f"also {text}"] = one
        if loading.lora is not None and (one := identity(loading.lora)) is not None:
            found["lora"] = one
        return found

    @abstractmethod
    def load(self) -> object:
        """Load what is large; later calls do nothing."""

    def guidance(self, job: Job) -> float:
        """w of the classifier-free guidance that a job's network is under; 1 is none."""
        return 1.0

    def share(self, job: Job) -> float:
        """Of the transitions of a job those that are run: the strength of image-to-image."""
        return 1.0

    def check_method(self, method: Method) -> None:  # noqa: B027 (most run them all)
        """Raise if it is known, once the model is loaded, that a method cannot be run on it."""

    @abstractmethod
    def run(
        self, job: Job, watch: Watch | None = None, shards: Shards | None = None
    ) -> ImageResult:
        """Draw the images of a job."""

    def judge(self, result: ImageResult) -> list[list[bool]] | None:
        """Whether an independent judge accepts each image; None where there is none."""
        return None


def _is_class(text: str, most: float = math.inf) -> bool:
    """Whether a prompt is the number of a class."""
    return re.fullmatch("[0-9]{1,9}", text) is not None and int(text) <= most


# --- the bundled digits ---------------------------------------------------------------------------


def digits_denoiser(
    label: int | None = None, guidance: float = 1.0, folder: str | Path | None = None
) -> Denoiser:
    """The digits network; `label` None is the unconditional model."""
    if label is not None and not 0 <= label <= 9:
        raise InvalidArgument(f"the digits are 0 to 9, got class {label!r}")
    null = {"label": torch.tensor([NULL_CLASS])}
    given = null if label is None else {"label": torch.tensor([label])}
    return Denoiser(
        load_digits_network(folder and Path(folder) / FILES[NETWORK]),
        Linear(),
        prediction="velocity",
        conditioning=given,
        unconditional=null,
        guidance_scale=guidance,
    )


class Digits(Model):
    """Handwritten digits: a prompt is a digit, the reward its log-probability, "class[:N]".

    "judge[:N]" is the same to a classifier trained on other images. Its network is unconditional:
    what is drawn is steered by the reward alone.
    """

    reward_name = "class"
    sigma_data = 0.7  # of pixels in [-1, 1]
    takes = ("populations", "budget", "init", "also")

    @cached_property
    def denoiser(self) -> Denoiser:
        return digits_denoiser(folder=self.place or None)

    @cached_property
    def classifiers(self) -> dict[str, Any]:
        """The reward's, and the judge's, trained on other images."""
        home = Path(self.place) if self.place else None
        return {
            role: load_digits_classifier(role, home and home / FILES[f"digits-{role}"])
            for role in ("reward", "judge")
        }

    def places(self, reward: str) -> dict[str, str | Path]:
        home = Path(self.place) if self.place else SHAPES_PIPELINE.parent  # all lie side by side
        return {name: home / file for name, file in FILES.items()}

    def load(self) -> object:
        return self.denoiser, self.classifiers

    def read_prompts(self, prompts: Sequence[str]) -> tuple[str, ...]:
        for prompt in prompts:
            if not _is_class(prompt, 9):
                raise InvalidArgument(
                    f"for the digits a prompt is 0 to 9, got {shown(prompt)}; sentences are for a "
                    "pipeline: --model shapes, a folder or a hub id"
                )
        return tuple(prompts)

    def labels(self, job: Job) -> list[int]:
        """What is wanted of each population: by the reward, or by the prompts."""
        text = job.reward or self.reward_name
        self.check_reward(text)
        value = text.partition(":")[2]
        if not value:
            if not job.prompts:
                raise InvalidArgument(
                    f"the reward {text!r} takes a prompt 0 to 9, or give '{text}:8'"
                )
            return [int(prompt) for prompt in self.read_prompts(job.prompts)]
        return [int(value)]

    def check_reward(self, text: str) -> None:
        kind, _, value = text.partition(":")
        check_name("reward", kind, ("class", "judge"))
        if value and not _is_class(value, 9):
            raise InvalidArgument(f"reward '{kind}:N' needs a digit 0 to 9, got {shown(text)}")

    def label(self, job: Job) -> int:
        """What is wanted, of all populations."""
        label, *more = self.labels(job)
        if more:
            raise InvalidArgument(f"one digit at a time, got {len(more) + 1} prompts: use `batch`")
        return label

    def reward(self, job: Job) -> Reward:
        role = "judge" if job.reward.startswith("judge") else "reward"
        return ClassReward(self.classifiers[role], self.label(job))

    def beside(self, job: Job) -> dict[str, Reward]:
        """Those that name no digit are of the digit that is drawn."""
        drawn = str(self.label(job))
        return {
            text: self.reward(replace(job, reward=text, prompts=job.prompts or (drawn,)))
            for text in job.also
        }

    def size(self, job: Job) -> tuple[int, int]:
        return IMAGE[1:]

    def steer(
        self, job: Job, watch: Watch | None = None, shards: Shards | None = None
    ) -> SearchResult:
        """The samples of a job; images cost time where there are many populations."""
        population = Population.of(job.method.particles, IMAGE, job.populations, seed=job.seed)
        reward = self.reward(job)
        if job.init:
            (file,) = job.init
            population = population.refining(digit_of(open_image(file)))
        return conduct(
            self.denoiser, reward, job.method, job.sampler, population,
            shards=shards, watch=watch, also=self.beside(job),
        )  # fmt: skip

    def run(
        self, job: Job, watch: Watch | None = None, shards: Shards | None = None
    ) -> ImageResult:
        result = self.steer(job, watch, shards)
        size = (64, 64), Image.Resampling.NEAREST
        images = [[digit_image(z).resize(*size) for z in row] for row in result.samples]
        prompts = tuple(map(str, self.labels(job) * job.populations))
        return ImageResult(images, result.rewards, prompts, result, job.as_json())

    def judge(self, result: ImageResult) -> list[list[bool]]:
        return self.verdicts(result.result.samples, [int(p) for p in result.prompts])

    @torch.no_grad()
    def verdicts(self, samples: Tensor, labels: Sequence[int]) -> list[list[bool]]:
        """Of (P, N, *shape) samples, a label for each population."""
        found = self.classifiers["judge"](samples.flatten(0, 1)).argmax(1).view(samples.shape[:2])
        verdicts: list[list[bool]] = (found == torch.tensor(labels)[:, None]).tolist()
        return verdicts


# --- pipelines ------------------------------------------------------------------------------------


class Pipeline(Model):
    """A diffusers pipeline."""

    takes = (*_OF_PIPELINES, "init", "also")

    @cached_property
    def pipe(self) -> Any:
        return load_pipeline(self.name, self.loading, self.place, self.announce)

    def load(self) -> object:
        return self.pipe

    @property
    def records(self) -> bool:
        from ..diffusers import can_record

        return can_record(self.pipe)

    def size(self, job: Job) -> tuple[int, int] | None:
        call = {**self.call, **job.call}
        height, width = call.get("height"), call.get("width")
        return (height, width) if isinstance(height, int) and isinstance(width, int) else None

    def guidance(self, job: Job) -> float:
        from ..diffusers.families import family_of

        family = family_of(self.pipe)
        if family is None:
            return 1.0
        return float(family(self.pipe, **{**self.call, **job.call}).cfg_scale)

    def share(self, job: Job) -> float:
        takes = inspect.signature(self.pipe.__call__).parameters
        if "strength" not in takes:
            return 1.0
        given = {**self.call, **job.call}.get("strength", takes["strength"].default)
        return check_number("strength", given, "lie in (0, 1]", lambda s: 0.0 < s <= 1.0)

    def check_method(self, method: Method) -> None:
        from ..diffusers.inside_loop import check_method

        if not self.records:
            check_method(type(self.pipe).__name__, method)

    def as_asked(self, prompts: Sequence[str]) -> list[Any]:
        """As the pipeline takes them: DiT is asked for classes."""
        if type(self.pipe).__name__ != "DiTPipeline":
            return list(prompts)
        return [int(p) if _is_class(p) else p for p in prompts]

    def run(
        self, job: Job, watch: Watch | None = None, shards: Shards | None = None
    ) -> ImageResult:
        reward, prompts = self.reward(job), self.as_asked(job.prompts)
        from ..diffusers import Asked, run_pipeline

        asked = Asked(
            self.pipe,
            tuple(prompts),
            reward,
            job.method,
            job.sampler,
            job.seed,
            job.batching,
            {**self.call, **job.call},
            init=job.init or None,
            also=self.beside(job),
            viewing=job.viewing,
        )
        return replace(run_pipeline(asked, shards, watch), settings=job.as_json())


class Shapes(Pipeline):
    """The FluxPipeline of the Shapes world, whose "clip" is the CLIP of that world, and whose
    "judge" says 1 where image analysis accepts an image, else 0."""

    batching: ClassVar[Mapping[str, Any]] = {"decode_batch": None}
    call: ClassVar[Mapping[str, Any]] = CALL

    def __init__(self, name: str, place: str, *rest: Any) -> None:
        super().__init__(name, place or str(SHAPES_PIPELINE), *rest)

    def read_prompts(self, prompts: Sequence[str]) -> tuple[str, ...]:
        return tuple(str(Prompt.parse(text)) for text in super().read_prompts(prompts))

    def places(self, reward: str) -> dict[str, str | Path]:
        return super().places(self.named(reward))

    def check_reward(self, text: str) -> None:
        from ..rewards.pretrained import REWARDS

        if ":" not in text:  # of the world's own, too
            check_name("reward", text, ("judge", *REWARDS, "module:function"))
        else:
            super().check_reward(text)

    def load_reward(self, text: str) -> Reward:
        if text == "judge":
            given: Any = {"takes_prompts": True, "differentiable": False, "range": (0.0, 1.0)}
            return FunctionReward(_accepted, text, **given)
        return super().load_reward(self.named(text))

    @staticmethod
    def named(reward: str) -> str:
        """The reward, by a name that all models understand."""
        return f"clip:{SHAPES_CLIP}" if reward == "clip" else reward

    def judge(self, result: ImageResult) -> list[list[bool]]:
        return [
            accepts(
                [np.asarray(image.convert("RGB")) for image in row], [Prompt.parse(p)] * len(row)
            )
            for row, p in zip(result.rows, result.prompts)
        ]


def _accepted(images: Tensor, prompts: Sequence[str]) -> Tensor:
    """What the judge of the Shapes world says of images in [0, 1]."""
    pixels = to_bytes(images).cpu().numpy()
    return torch.tensor(accepts(pixels, list(map(Prompt.parse, prompts)))).double()


class SiT(Model):
    """A converted SiT; prompts are classes, the only call argument is `guidance_scale`."""

    call: ClassVar[Mapping[str, Any]] = {"guidance_scale": 4.0}  # of the published samples
    takes = ("loading", "call", "budget", "also")
    needs_folder = True

    @cached_property
    def vae(self) -> Any:
        try:
            import diffusers
        except ImportError as error:
            raise MissingExtra("diffusers", "diffusers", "a SiT's autoencoder") from error
        folder = Path(self.place) / "vae"
        if not folder.is_dir():
            raise InvalidArgument(
                f"{self.place!r} has no folder 'vae': save Stable Diffusion's autoencoder "
                "there, AutoencoderKL.from_pretrained('stabilityai/sd-vae-ft-ema')."
                "save_pretrained(...)"
            )
        try:
            vae = load_whole(diffusers.AutoencoderKL, str(folder), local_files_only=True)
        except (OSError, ValueError, RuntimeError) as error:
            raise InvalidArgument(
                f"cannot load an autoencoder from {str(folder)!r}: {error}"
            ) from error
        return vae.to(self.loading.home)

    @cached_property
    def denoiser(self) -> Denoiser:
        from .. import sit

        return sit.load(self.place, 0, guidance_scale=1.0, device=self.loading.home)

    def load(self) -> object:
        return self.vae, self.denoiser

    def guidance(self, job: Job) -> float:
        return float({**self.call, **job.call}["guidance_scale"])

    def read_prompts(self, prompts: Sequence[str]) -> tuple[str, ...]:
        for prompt in super().read_prompts(prompts):
            if not _is_class(prompt):
                raise InvalidArgument(f"a SiT is asked for classes by number, got {shown(prompt)}")
        return tuple(prompts)

    @torch.no_grad()
    def _pixels(self, samples: Tensor) -> list[Tensor]:
        return [to_bytes(self._decode(z[None]))[0] for z in samples]

    def _decode(self, z: Tensor) -> Tensor:
        images: Tensor = self.vae.decode(z / self.vae.config.scaling_factor).sample
        return (images / 2 + 0.5).clamp(0, 1)

    def run(
        self, job: Job, watch: Watch | None = None, shards: Shards | None = None
    ) -> ImageResult:
        from .. import sit

        self.load()
        call = {**self.call, **job.call}
        for name in call:
            check_name("call argument of a SiT", name, self.call)
        classes, scale = [int(prompt) for prompt in job.prompts], call["guidance_scale"]
        network: Any = self.denoiser.network
        sit.check_classes(network, classes)
        denoiser = replace(
            self.denoiser.condition(label=torch.tensor(classes, device=self.loading.home)),
            guidance_scale=check_number("guidance_scale", scale, "be finite", math.isfinite),
        )
        sizes = network.config
        shape = (sizes.channels, sizes.input_size, sizes.input_size)
        population = Population.of(
            job.method.particles,
            shape,
            prompts=job.prompts,
            seed=job.seed,
            device=self.loading.home,
        )
        reward, also = self.reward(job), self.beside(job)
        side = sizes.input_size * 2 ** (len(self.vae.config.block_out_channels) - 1)
        device, gradient = torch.device(self.loading.home), job.method.differentiates
        try_reward(reward, side, side, classes[:1], device=device, gradient=gradient)
        for one in also.values():
            try_reward(one, side, side, classes[:1], device=device)
        scored = Decoded(reward, self._decode, max_batch=1)
        beside = {name: Decoded(one, self._decode, max_batch=1) for name, one in also.items()}
        result = conduct(
            denoiser, scored, job.method, job.sampler, population,
            shards=shards, watch=watch, also=beside,
        )  # fmt: skip
        images = [to_images(self._pixels(row)) for row in result.samples]
        return ImageResult(images, result.rewards, job.prompts, result, job.as_json())


# --- by name --------------------------------------------------------------------------------------


def _is_model(name: str, given: Any) -> type[Model]:
    if isinstance(given, type) and issubclass(given, Model) and not isabstract(given):
        return given
    raise InvalidArgument(
        f"model {name!r} must be a subclass of Model with `load` and `run`, got {shown(given)}"
    )


MODELS: Registry[type[Model]] = Registry(
    "models", {"digits": Digits, "shapes": Shapes, "sit": SiT}, _is_model
)
"""Models by the scheme that their names begin with."""


def kind_of(name: str) -> type[Model]:
    """The class of a model's name, whether or not there is such a model."""
    scheme = name.partition(":")[0]
    return MODELS.get(scheme, Pipeline)


def resolve(
    name: str, loading: Loading | None = None, announce: Announce = lambda text: None
) -> Model:
    """The model of a name; nothing is loaded yet.

    Raises
    ------
    UnknownName
        It is no scheme, no folder and no hub id; the nearest scheme is named.
    InvalidArgument
        There is no such folder, or a revision is asked of what is not on the hub.
    """
    given = loading or Loading()
    if given.revision is not None and (name.partition(":")[0] in MODELS or Path(name).is_dir()):
        raise InvalidArgument(
            f"revision: only of a model on the hub, and {shown(name)} is none; leave it out"
        )
    scheme, colon, place = name.partition(":")
    if scheme in MODELS:
        kind = MODELS[scheme]
        if (colon or kind.needs_folder) and not Path(place or "?").is_dir():
            raise InvalidArgument(
                f"--model {scheme}: {shown(place)} is no folder; give {scheme}:FOLDER"
            )
        return kind(name, place, given, announce)
    if name and Path(name).is_dir():
        return Pipeline(name, name, given, announce)
    if re.match(r"[./~]", name):
        raise InvalidArgument(f"--model {name}: there is no such folder")
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name):
        return Pipeline(name, name, given, announce)
    raise missing_name("model", name, (*MODELS, "FOLDER", "ORGANISATION/NAME"))
