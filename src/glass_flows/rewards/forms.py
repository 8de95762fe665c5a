"""Rewards of images as people have them: which form a function takes is found out by asking it.

A form is a kind of image (:data:`KINDS`), a batch of them or one at a time. Before a function is
used it is asked about three pictures in every form that its parameters leave open, in the order of
:data:`FORMS`; the first in which it gives one number for each picture is the one.
"""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, groupby, islice
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import (
    GlassError,
    InvalidArgument,
    RewardError,
    ShapeError,
    check_name,
    line_of,
    reach,
    shown,
)
from ..progress import note
from ..settings import Switch
from .base import FunctionReward, Prompts, ReadFunction, Reward, numbers

__all__ = ["FORMS", "KINDS", "Form", "OfImages", "pictures", "recognise", "to_bytes", "try_reward"]

_COUNT = 3  # pictures of a trial
_FAR = 1e30  # stands for infinity in differences
_OTHER = 0.01, 0.05  # of the size and of the spread of rewards: what rounding does not explain
_Ask = Callable[[Any, Any], Any]


# --- forms ----------------------------------------------------------------------------------------


def to_bytes(pictures: Tensor) -> Tensor:
    """(B, 3, H, W) in [0, 1] to (B, H, W, 3) uint8 on the same device, as diffusers rounds."""
    if not isinstance(pictures, Tensor) or pictures.ndim != 4 or pictures.is_complex():
        given = tuple(pictures.shape) if isinstance(pictures, Tensor) else shown(pictures)
        raise ShapeError(f"pictures must be a real tensor (batch, 3, height, width), got {given}")
    scaled = pictures.detach().float().clamp(0, 1) * 255
    return scaled.round().to(torch.uint8).permute(0, 2, 3, 1).contiguous()


def _array(z: Tensor) -> Any:
    return to_bytes(z).cpu().numpy()


def _images(z: Tensor) -> list[Any]:
    from PIL import Image

    return [Image.fromarray(one) for one in _array(z)]


@dataclass(frozen=True)
class Kind:
    """A kind of image: how a batch of it is made, and what is said of one and of several."""

    made: Callable[[Tensor], Any]
    one: str
    many: str


KINDS = {
    "tensor": Kind(lambda z: z, "tensor (3, {H}, {W})", "tensors ({B}, 3, {H}, {W})"),
    "pil": Kind(_images, "PIL image", "a list of {B} PIL images"),
    "numpy": Kind(_array, "array ({H}, {W}, 3) of uint8", "arrays ({B}, {H}, {W}, 3) of uint8"),
    "floats": Kind(
        lambda z: _array(z).astype(np.float32) / 255,
        "array ({H}, {W}, 3) of float32",
        "arrays ({B}, {H}, {W}, 3) of float32",
    ),
}
"""What a function may be handed; all but tensors are rounded to 8 bits, as images are saved."""


@dataclass(frozen=True)
class Form:
    """What a function of images takes.

    Attributes
    ----------
    takes : str
        A name of :data:`KINDS`.
    each : bool
        One image at a time, with its prompt, instead of a batch with a list of prompts.
    """

    takes: str = "tensor"
    each: bool = False

    def ask(self, ask: _Ask, z: Tensor, prompts: Prompts) -> Any:
        """What a function answers to (B, 3, H, W) images; of one image a list of B answers."""
        made = KINDS[self.takes].made(z)
        if not self.each:
            return ask(made, None if prompts is None else list(prompts))
        answers = (ask(one, word) for one, word in zip(made, prompts or [None] * len(z)))
        # Copies: a network may answer in the same memory again.
        return [one.clone() if isinstance(one, Tensor) else one for one in answers]

    def said(self, z: Tensor | None = None) -> str:
        """In words, with the sizes of images if they are given."""
        sizes = dict(zip("BCHW", "BCHW" if z is None else map(str, z.shape)))
        kind = KINDS[self.takes]
        if self.each:
            return f"one {kind.one.format(**sizes)}"
        return kind.many.format(**sizes).replace("of B ", "of ")


FORMS = (
    Form(),
    Form("pil"),
    Form("numpy"),
    Form("pil", each=True),  # before tensors, which many functions of images take by mistake
    Form("tensor", each=True),
    Form("numpy", each=True),
    Form("floats"),
    Form("floats", each=True),
)
"""In the order in which they are tried: a function of a batch of tensors is always found first."""


# --- rewards in a form ----------------------------------------------------------------------------


class OfImages(ReadFunction):
    """A function of images, in whatever form it takes them, as a reward of (B, 3, H, W) in [0, 1].

    What is not said is recognised when it is first asked, on three pictures of the size that it is
    asked about. It answers with a number, a list, an array or a tensor: one for each image.

    Parameters
    ----------
    function : callable
        Of images, or of images and prompts in either order. Two parameters without defaults are
        told apart by their names: that of prompts holds "prompt", "text" or "caption".
    takes : "tensor", "pil", "numpy" or "floats", optional
        Tensors (B, 3, H, W) in [0, 1], a list of PIL images, arrays (B, H, W, 3) of uint8, or of
        float32 in [0, 1]. All but tensors are rounded to 8 bits, as images are saved, and have no
        gradient.
    each : bool, optional
        Whether it takes one image (and its prompt) at a time, without the B.
    name, range, max_batch
        See :class:`FunctionReward`.

    Raises
    ------
    InvalidArgument
        No callable, one of more than two arguments, no such kind of image.

    Example
    -------
    >>> dark = OfImages(lambda image: (np.asarray(image) < 64).mean(), takes="pil", each=True)
    """

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        takes: str | None = None,
        each: bool | None = None,
        range: tuple[float, float] = FunctionReward.range,
        max_batch: int | None = None,
    ) -> None:
        super().__init__(function, name, range=range, max_batch=max_batch)
        kinds = (check_name("kind of image", takes, KINDS),) if takes is not None else None
        each = Switch(optional=True).read("each", each)
        self._open = [f for f in FORMS if f.takes in (kinds or KINDS) and each in (None, f.each)]
        self.form: Form | None = None
        if kinds is not None and each is not None:
            self._settle(self._open[0])

    def _settle(self, form: Form) -> None:
        self.form = form
        self.differentiable = form.takes == "tensor"

    def recognised(self, z: Tensor, prompts: Prompts) -> Form:
        """Its form, found out on pictures of the size of `z` if it is not known; said once."""
        if self.form is not None:
            return self.form
        trial = pictures(int(z.shape[2]), int(z.shape[3]), z.device)
        words = None if prompts is None else list(islice(cycle(prompts), _COUNT))
        with undisturbed(z.device), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # those that are meant come again in the run
            form = recognise(self, trial, words)
        self._settle(form)
        note(f"reward {self.name!r}: a function of {self.said()}")
        return form

    def said(self) -> str:
        """What it takes, in words."""
        if self.form is None:
            return "images"
        prompts = ("its prompt" if self.form.each else "prompts") if self.takes_prompts else ""
        return f"{self.form.said()}{prompts and f' and {prompts}'}"

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        if z.ndim != 4 or z.shape[1] != 3 or not len(z):
            return super().score(z, prompts)  # of no images: as it is
        form = self.recognised(z, prompts)
        if z.requires_grad and torch.is_grad_enabled():
            self._check_gradient(form)
        given = form.ask(self._ask, z, prompts)
        found = numbers(given, len(z), alone=True)
        if found is None:
            raise ShapeError(
                f"the reward {self.name!r} {_answered(given, form)} for {form.said(z)}: "
                "it must return one number per image"
            )
        return found

    def value_and_gradient(self, z: Tensor, prompts: Prompts = None) -> tuple[Tensor, Tensor]:
        if self.form is not None:
            self._check_gradient(self.form)
        return super().value_and_gradient(z, prompts)

    def _check_gradient(self, form: Form) -> None:
        if form.takes != "tensor":
            raise InvalidArgument(
                f"the reward {self.name!r} has no gradient: it takes {self.said()}, and guidance "
                "and twist need a function of tensors; leave them out (guidance=None, twist=0)"
            )

    def __repr__(self) -> str:
        known = "" if self.form is None else f", takes={self.form.takes!r}, each={self.form.each}"
        return f"OfImages({self.name!r}{known})"


def _answered(given: Any, form: Form) -> str:
    """What a function returned instead of one number per image, in words."""
    if form.each:  # a list, which it is not to blame for
        given = next(one for one in given if numbers(one, 1, alone=True) is None)
    if isinstance(given, Tensor):
        told = f"a tensor {tuple(given.shape)} of {given.dtype}"
    elif isinstance(given, np.ndarray):
        told = f"an array {given.shape} of {given.dtype}"
    elif isinstance(given, (list, tuple)) and not form.each:
        told = f"a {type(given).__name__} of {len(given)}, {shown(given, 40)},"
    else:
        told = shown(given, 60)
    alone = numbers(given, 1, alone=True)
    if alone is not None:  # of a batch
        told = f"one number, {alone.item():.4g},"
    return f"returned {told}"


# --- recognised -----------------------------------------------------------------------------------


def pictures(height: int, width: int, device: torch.device | None = None) -> Tensor:
    """A dark, a colourful and a bright picture for trials, (3, 3, H, W) in [0, 1] on 8 bits."""
    drawn = torch.Generator().manual_seed(0)
    coarse = torch.rand(_COUNT, 3, 4, 4, generator=drawn)
    smooth = torch.nn.functional.interpolate(coarse, (height, width), mode="bilinear")
    grain = 0.1 * (torch.rand(_COUNT, 3, height, width, generator=drawn) - 0.5)
    low, high = torch.tensor([0.0, 0.0, 0.7]), torch.tensor([0.3, 1.0, 1.0])
    mixed = low[:, None, None, None] + (high - low)[:, None, None, None] * smooth + grain
    return ((mixed.clamp(0, 1) * 255).round() / 255).to(device or "cpu")


@contextmanager
def undisturbed(device: torch.device) -> Iterator[None]:
    """What a trial draws at random, of torch, numpy and Python, is not missing afterwards."""
    own, arrays = random.getstate(), np.random.get_state()
    with torch.random.fork_rng([device] if device.type == "cuda" else []):
        try:
            yield
        finally:
            random.setstate(own)
            np.random.set_state(arrays)


@dataclass
class _Tried:
    """What came of a form: values, or an answer that is none, or an error."""

    form: Form
    values: Tensor | None = None
    fault: str = ""
    error: Exception | None = None
    counted: bool = False  # whether there was a number for each image
    reached: int = 0  # the line of the function at which it raised

    @property
    def short(self) -> str:
        if self.error is not None:
            return type(self.error).__name__
        return self.fault.rstrip(",")


def recognise(reward: OfImages, trial: Tensor, prompts: Prompts) -> Form:
    """The form in which a function of images gives one number for each of a trial's.

    Parameters
    ----------
    trial : Tensor
        (3, 3, H, W) in [0, 1], pictures that differ (:func:`pictures`).
    prompts : sequence, optional
        One for each, for a function that takes them.

    Raises
    ------
    RewardError
        It raised in every form: of the form in which it came furthest, with the line. Or it mixes
        the images of a batch, returned NaN or +inf, or takes tensors and PIL images alike, and
        says something else of them.
    ShapeError
        It did not return one number for each image in any form.
    """
    tried: list[_Tried] = []
    for form in _left_open(reward):
        one = _try(reward, form, trial, prompts)
        tried.append(one)
        if one.values is not None:
            if form == Form() and Form("pil") in _left_open(reward):
                _check_clear(reward, one, trial, prompts)
            return form
        if one.counted:
            break  # this is the form, and its numbers are wrong: no other shall hide that
    single = reward.signature.says_one

    def likely(one: _Tried) -> tuple[Any, ...]:
        meant = one.form.each == single
        return one.counted, single and meant, one.error is None, one.reached, meant

    most = max(tried, key=likely)
    raise _explained(reward, most, tried, trial) from most.error


def _left_open(reward: OfImages) -> Sequence[Form]:
    """The forms that its parameters allow, of those that were not ruled out by whoever made it."""
    said = reward.signature
    fits = [f for f in reward._open if f.takes in (said.kinds or KINDS)]
    fits = [f for f in fits or reward._open if not (f.each and said.says_many)]
    return fits or reward._open


def _try(reward: OfImages, form: Form, trial: Tensor, prompts: Prompts) -> _Tried:
    """Ask about a trial in one form."""
    one = _Tried(form)
    try:
        given, values = _answer(reward, form, trial, prompts)
        one.counted = values is not None
        if values is None:
            one.fault = _answered(given, form)
        elif bool((values.isnan() | (values == torch.inf)).any()):
            one.fault = "returned NaN or +inf"
        else:
            one.fault = "" if form.each else _mixing(reward, form, trial, prompts, values)
            one.values = None if one.fault else values
    except Exception as error:  # of somebody's own code, or because it takes another form
        one.error, one.reached = error, reach(error)
    return one


def _answer(
    reward: OfImages, form: Form, trial: Tensor, prompts: Prompts
) -> tuple[Any, Tensor | None]:
    """What a function says of a copy of the pictures, and that as float64 on the CPU."""
    with torch.no_grad():
        given = form.ask(reward._ask, trial.clone(), prompts)
    found = numbers(given, len(trial), alone=True)
    return given, None if found is None else found.detach().to("cpu", torch.float64)


def _mixing(reward: OfImages, form: Form, trial: Tensor, prompts: Prompts, values: Tensor) -> str:
    """What is wrong if the reward of a picture depends on those beside it."""
    finite = values.clamp(min=-_FAR)
    i = int((finite - finite.mean()).abs().argmax())
    words = None if prompts is None else [prompts[i]]
    given, alone = _answer(reward, form, trial[i : i + 1], words)
    if alone is None:
        return f"{_answered(given, form)} for one image in a batch of its own"
    unlike = _differ(values[i], alone[0], values)
    if not unlike or _random(reward, form, trial, prompts, values):
        return ""
    return (
        f"mixes the images of a batch: it says {values[i]:.4g} of one beside others, and "
        f"{alone[0]:.4g} of the same alone,"
    )


def _random(reward: OfImages, form: Form, trial: Tensor, prompts: Prompts, values: Tensor) -> bool:
    """Whether a function gives another answer to the same question."""
    _, again = _answer(reward, form, trial, prompts)
    return again is not None and _differ(values, again, values)


def _differ(one: Tensor, other: Tensor, scale: Tensor) -> bool:
    """Whether rewards differ by more than what rounding in batches of another size explains."""
    one, other, scale = (x.clamp(min=-_FAR) for x in (one, other, scale))
    size, spread = _OTHER[0] * scale.abs().max(), _OTHER[1] * (scale.max() - scale.min())
    return not bool(((one - other).abs() <= size + spread).all())


def _check_clear(reward: OfImages, tensors: _Tried, trial: Tensor, prompts: Prompts) -> None:
    """Raise if a function of tensors is one of PIL images just as well, and says something else."""
    images = _try(reward, Form("pil"), trial, prompts)
    if tensors.values is None or images.values is None:
        return
    both = tensors.values, images.values
    if _differ(*both, tensors.values) and not _random(
        reward, tensors.form, trial, prompts, tensors.values
    ):
        says = [", ".join(f"{v:.4g}" for v in one) for one in both]
        raise RewardError(
            f"what the reward {reward.name!r} takes is not clear: it says {says[0]} of "
            f"{tensors.form.said(trial)}, and {says[1]} of {images.form.said(trial)}. "
            f"{_how(reward, images.form)}"
        )


def _explained(
    reward: OfImages, most: _Tried, tried: Sequence[_Tried], trial: Tensor
) -> GlassError:
    """What is wrong with the form that is most likely meant."""
    asked, also = most.form.said(trial), [one for one in tried if one is not most]
    grouped = groupby(also, lambda one: one.short)
    others = "; ".join(f"{', '.join(o.form.said(trial) for o in g)}: {how}" for how, g in grouped)
    rest = f"{others and f'. Tried as well: {others}'}. {_how(reward, most.form)}"
    if most.error is not None:
        raised, line = f"{most.short}: {most.error}".removesuffix(": "), line_of(most.error)
        return RewardError(
            f"the reward {reward.name!r} raised {raised}{line and f' ({line})'} for {asked}{rest}"
        )
    kind = RewardError if most.fault.startswith(("mixes", "returned NaN")) else ShapeError
    return kind(
        f"the reward {reward.name!r} {most.fault} for {asked}: it must return one number per "
        f"image, which depends on that image only{rest}"
    )


def _how(reward: OfImages, form: Form) -> str:
    spelled = f"takes={form.takes!r}{', each=True' if form.each else ''}"
    return (
        f"To say what it takes: glass_flows.rewards.OfImages({reward.name}, {spelled}); takes is "
        f"one of {', '.join(KINDS)}, each=True is of one image at a time"
    )


# --- before a run ---------------------------------------------------------------------------------


def try_reward(
    reward: Reward,
    height: int,
    width: int,
    prompts: Sequence[Any],
    *,
    device: torch.device,
    gradient: bool = False,
    frames: int | None = None,
) -> None:
    """Ask a reward of images once, about pictures of this size, before anything is drawn.

    A function of images is recognised by it. Of what else happens only the form counts: no number
    per image, no gradient where one is wanted. Whatever else a reward raises may be the pictures'
    fault, and is left to the run.

    Parameters
    ----------
    prompts : sequence
        One for each image: as many as the reward will be asked about at a time.
    gradient : bool
        Whether the gradient is asked for.
    frames : int, optional
        Of a reward of videos: it is asked about so many still ones.

    Raises
    ------
    InvalidArgument, ShapeError, RewardError
    """
    made = pictures(height, width, device)
    images = made[[i % _COUNT for i in range(len(prompts))]]
    if frames is not None:
        images = images[:, None].expand(-1, frames, -1, -1, -1)
    with undisturbed(device):
        try:
            if gradient:
                reward.value_and_gradient(images, prompts)
            else:
                with torch.no_grad():
                    reward(images, prompts)
        except (InvalidArgument, RewardError):
            raise
        except Exception:
            return
