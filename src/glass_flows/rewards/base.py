"""What a reward is, and the one place where rewards are asked and checked.

A reward says what it needs (prompts, a device, small batches) and what it gives (a range, a
gradient); `Reward.__call__` sees to the former, :func:`evaluate` holds it to the latter.
"""

from __future__ import annotations

import math
import operator
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import reduce
from inspect import Parameter
from numbers import Real
from typing import Any, Protocol, Union, cast, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..denoisers import check_device
from ..errors import (
    GlassError,
    InvalidArgument,
    NonFinite,
    RewardError,
    ShapeError,
    line_of,
    shown,
)
from ..settings import ANY_COUNT, Checked, Is, Listed, Number, Switch, Text, setting
from .signatures import Signature, name_of

Prompts = Union[Sequence[Any], None]
Range = tuple[float, float]


class Reward(ABC):
    """One number per clean sample, higher is better. Subclasses define :meth:`score`.

    Rewards combine: ``a + b``, ``2.0 * a``, ``a * b`` and ``a.clipped(low, high)``.

    Attributes
    ----------
    name : str
        For messages and tables.
    range : (float, float)
        Lowest and highest value; (-inf, inf) promises nothing.
    takes_prompts : bool
        Whether a prompt per sample is needed.
    takes_video : bool
        Whether samples are videos (B, F, 3, H, W), of which a reward of images sees single frames.
    differentiable : bool
        Whether autograd can differentiate :meth:`score` with respect to the samples.
    max_batch : int, optional
        Largest batch :meth:`score` is handed; None for any.
    device : torch.device, optional
        Where samples are moved before they are scored; None leaves them where they are.
    decodes : int
        Decoder calls per sample, for counting costs.
    steering_scale : float, optional
        λ >= 0 that suits it, which ``scale="auto"`` then takes; None finds one in a pilot.
    """

    name: str = "reward"
    range: tuple[float, float] = (-math.inf, math.inf)
    takes_prompts: bool = False
    takes_video: bool = False
    differentiable: bool = True
    max_batch: int | None = None
    device: torch.device | None = None
    decodes: int = 0
    steering_scale: float | None = None

    @abstractmethod
    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        """(B, *shape) samples, at most `max_batch`, to (B,); prompts are None if it takes none."""

    def __call__(self, z: Tensor, prompts: Prompts = None) -> Tensor:
        """Rewards (B,) of (B, *shape) samples on the reward's device; autograd flows through.

        Raises
        ------
        InvalidArgument
            It takes prompts and was not given one for every sample.
        ShapeError
            :meth:`score` did not return one real number per sample.
        """
        prompts = self._own_prompts(prompts, len(_checked_samples(z)))
        values = []
        for chunk, words in _chunks(z, prompts, self.max_batch):
            # A copy of its own: whatever is written into it changes no particle.
            own = chunk.to(self.device or chunk.device, copy=True)
            one = self.score(own, words)
            if not isinstance(one, Tensor) or one.shape != chunk.shape[:1] or one.is_complex():
                given = type(one).__name__
                if isinstance(one, Tensor):
                    given = f"{tuple(one.shape)} of {one.dtype}"
                raise ShapeError(
                    f"the reward {self.name!r} must return a real tensor of shape "
                    f"({len(chunk)},), one number per sample, got {given}"
                )
            kind = one.dtype if one.is_floating_point() else torch.get_default_dtype()
            values.append(one.to(kind, copy=True))  # a network may answer in the same memory again
        return torch.cat(values)

    def value_and_gradient(self, z: Tensor, prompts: Prompts = None) -> tuple[Tensor, Tensor]:
        """Rewards (B,), detached, and their gradients, like z; also under ``torch.no_grad``.

        Differentiated chunk by chunk: there is never more than one chunk's graph in memory.

        Raises
        ------
        InvalidArgument
            The reward is not differentiable, or as in a call.
        RewardError
            Its result does not depend on the samples by autograd.
        """
        if not self.differentiable:
            raise InvalidArgument(
                f"the reward {self.name!r} has no gradient (differentiable=False): "
                "use a method that asks for values only, or a differentiable reward"
            )
        prompts = self._own_prompts(prompts, len(_checked_samples(z)))
        values, gradients = [], []
        with torch.inference_mode(False), torch.enable_grad():
            for chunk, words in _chunks(z, prompts, self._gradient_batch):
                # A clone: tensors made in inference mode take no gradient.
                leaf = chunk.clone().detach().requires_grad_()
                value = self(leaf, words)
                gradient = None
                if value.requires_grad:
                    (gradient,) = torch.autograd.grad(value.sum(), leaf, allow_unused=True)
                if gradient is None:
                    raise RewardError(
                        f"the result of the reward {self.name!r} does not depend on the samples by "
                        "autograd (computed under no_grad, or detached?): keep the graph, or "
                        "declare it with differentiable=False"
                    )
                values.append(value.detach())
                gradients.append(gradient)
        return torch.cat(values), torch.cat(gradients)

    @property
    def _gradient_batch(self) -> int | None:
        """Largest batch that is differentiated at once."""
        return self.max_batch

    def _own_prompts(self, prompts: Prompts, batch: int) -> Prompts:
        """The prompts to be handed to :meth:`score`: one per sample, or None if it takes none."""
        if not self.takes_prompts:
            return None
        given = shown(prompts)
        if isinstance(prompts, Sequence) and not isinstance(prompts, str):
            if len(prompts) == batch:
                return prompts
            given = f"{len(prompts)} of them"
        raise InvalidArgument(
            f"the reward {self.name!r} takes prompts: give a list of {batch}, one per sample, "
            f"got {given}"
        )

    def __add__(self, other: Reward) -> WeightedSum:
        if not isinstance(other, Reward):
            return NotImplemented
        return WeightedSum((self, other), (1.0, 1.0))

    def __mul__(self, other: Reward | float) -> WeightedSum | Product:
        if isinstance(other, Real) and not isinstance(other, bool):
            return WeightedSum((self,), (other,))
        return Product((self, other)) if isinstance(other, Reward) else NotImplemented

    __rmul__ = __mul__

    def clipped(self, low: float = -math.inf, high: float = math.inf) -> Clipped:
        """This reward, no lower than `low` and no higher than `high`."""
        return Clipped(self, low, high)


RewardLike = Union[Reward, Callable[..., Any]]


class FunctionReward(Reward):
    """A plain function as a reward.

    Parameters
    ----------
    function : callable
        (B, *shape) to (B,); called as ``function(z, prompts)`` if it takes prompts.
    name : str, optional
        The function's own name by default.
    range, takes_prompts, differentiable, max_batch, device
        See :class:`Reward`.

    Raises
    ------
    InvalidArgument
        No callable, an empty range, or `max_batch` below 1.
    """

    signature: Signature | None = None  # how a function is called that was taken as it is

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        range: tuple[float, float] = (-math.inf, math.inf),
        takes_prompts: bool = False,
        differentiable: bool = True,
        max_batch: int | None = None,
        device: torch.device | str | None = None,
    ) -> None:
        if isinstance(function, type) or not callable(function):
            raise InvalidArgument(
                f"a reward must be a Reward or a function of a batch, got {shown(function)}"
            )
        if name is None:
            name = name_of(function)
        ends = Listed(NOT_NAN).read("range", range)
        if not isinstance(ends, tuple) or len(ends) != 2 or not _holds(*ends):
            raise InvalidArgument(f"range must be (low, high) with low <= high, got {shown(range)}")
        self.function = function
        self.name = str(Text().check("name", name))
        self.range = (ends[0], ends[1])
        self.takes_prompts = Switch().check("takes_prompts", takes_prompts)
        self.differentiable = Switch().check("differentiable", differentiable)
        self.max_batch = ANY_COUNT.read("max_batch", max_batch)
        self.device = check_device(device)

    def _ask(self, z: Any, prompts: Any) -> Any:
        """What the function answers."""
        if self.signature is not None:
            return self.signature.call(self.function, z, prompts)
        return self.function(z, prompts) if self.takes_prompts else self.function(z)

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        given: Tensor = self._ask(z, prompts)
        found = None if self.signature is None else numbers(given, len(z))
        return given if found is None else found  # of what is wrong is told where it was asked

    def __repr__(self) -> str:
        return f"FunctionReward({self.name!r})"


class ReadFunction(FunctionReward):
    """A function as somebody has it, of which names and annotations say what it is handed."""

    signature: Signature

    def __init__(
        self,
        function: Callable[..., Any],
        name: str | None = None,
        *,
        range: tuple[float, float] = FunctionReward.range,
        max_batch: int | None = None,
    ) -> None:
        if isinstance(function, Reward):
            raise InvalidArgument(f"{function.name!r} is a Reward already: take it as it is")
        super().__init__(function, name, range=range, max_batch=max_batch)
        self.signature = Signature.of(function, self.name)
        self.takes_prompts = self.signature.prompts is not None


def _holds(low: float, high: float) -> bool:
    return low <= high and low < math.inf and high > -math.inf


def as_reward(reward: object) -> Reward:
    """A reward unchanged, a function of samples as a :class:`FunctionReward`.

    It may return a tensor (B,) or (B, 1), an array or a list of numbers, of which only tensors have
    gradients. One of two arguments without defaults takes prompts, before the samples if names say
    so.

    Raises
    ------
    InvalidArgument
        It is neither, or takes more than samples and prompts.
    """
    if isinstance(reward, Reward):
        return reward
    if isinstance(reward, str):
        raise InvalidArgument(
            "a reward must be a Reward or a function of a batch of samples, got "
            f"{shown(reward)}: names are for rewards of images, glass_flows.load_reward({reward!r})"
        )
    made = FunctionReward(cast(RewardLike, reward))
    signature = Signature.of(made.function, made.name)
    if signature.prompts is not None and signature.prompts.default is not Parameter.empty:
        signature = replace(signature, prompts=None)  # it goes without
    made.signature, made.takes_prompts = signature, signature.prompts is not None
    return made


def numbers(given: object, count: int, alone: bool = False) -> Tensor | None:
    """What a function returned for `count` samples as (count,); None if it is no number for each.

    Takes tensors and arrays (count,) and (count, 1), and lists of numbers, or of tensors or arrays
    with one element; gradients of tensors are kept. `alone`: of one sample also a number by itself.
    """
    if isinstance(given, (list, tuple)):
        listed = [numbers(one, 1, alone=True) for one in given]
        found = [one for one in listed if one is not None]
        if len(found) != len(listed) or len(found) != count:
            return None
        widest = reduce(torch.promote_types, (one.dtype for one in found), torch.bool)
        return torch.cat([one.to(found[0].device, widest) for one in found]) if found else None
    if isinstance(given, Tensor):
        tensor = given
    elif isinstance(given, (_Array, Real)):
        array = np.array(given)
        if array.dtype.kind not in "biuf":
            return None
        wide = array.dtype.itemsize > 8  # floats of which torch has none
        tensor = torch.from_numpy(array.astype(float) if wide else array)
    else:
        return None
    if tensor.shape in ((count,), (count, 1)) or (alone and count == 1 and tensor.numel() == 1):
        return tensor.reshape(count)
    return None


@runtime_checkable
class _Array(Protocol):
    """An array of numpy, or what can be made one."""

    def __array__(self) -> Any: ...


_LISTED = Is((list, tuple), "a list")
NOT_NAN = Number("be a number, and not NaN", lambda value: not math.isnan(value))


# --- rewards made of rewards ---------------------------------------------------------------------


class Composite(Reward):
    """What follows from the parts."""

    _parts: tuple[Reward, ...]

    def _declare(self, parts: Sequence[Reward], name: str, range: Range, decodes: int = 0) -> None:
        """Set the attributes; frozen dataclasses have no setters, hence the dictionary."""
        if len({part.takes_video for part in parts}) > 1:
            named = ", ".join(part.name for part in parts if not part.takes_video)
            raise InvalidArgument(
                f"{name} of rewards of videos and of images ({named}): say which frames those of "
                "images see, glass_flows.rewards.Frames(reward, 4)"
            )
        vars(self).update(
            _parts=tuple(parts),
            name=f"{name}({', '.join(part.name for part in parts)})",
            range=range,
            takes_prompts=any(part.takes_prompts for part in parts),
            takes_video=parts[0].takes_video,  # as all
            differentiable=all(part.differentiable for part in parts),
            decodes=decodes + sum(part.decodes for part in parts),
        )

    @property
    def _gradient_batch(self) -> int | None:
        # The graph of a composite holds those of its parts: the tightest limit holds for all.
        sizes = (self.max_batch, *(part._gradient_batch for part in self._parts))
        return min((size for size in sizes if size is not None), default=None)

    def _values(self, z: Tensor, prompts: Prompts) -> list[Tensor]:
        """What the parts say, in the dtype and on the device of the first."""
        values = [part(z, prompts) for part in self._parts]
        return [value.to(values[0]) for value in values]


@dataclass(frozen=True)
class WeightedSum(Composite):
    """Σ weight · part. A part of weight 0 is not asked.

    Parameters
    ----------
    parts : sequence of Reward or callable
    weights : sequence of float
        Finite, one per part, not all 0.
    """

    parts: Sequence[RewardLike]
    weights: Sequence[float]

    def __post_init__(self) -> None:
        parts = tuple(map(as_reward, _LISTED.check("parts", self.parts)))
        weights = Listed(Number()).read("weights", _LISTED.check("weights", self.weights))
        if len(parts) != len(weights):
            raise InvalidArgument(
                f"give one weight per part, got {len(parts)} parts and {len(weights)} weights"
            )
        if not any(weights):
            raise InvalidArgument(f"weights must be finite and not all 0, got {weights}")
        vars(self).update(parts=parts, weights=weights)
        asked = [part for w, part in zip(weights, parts) if w]
        ends = [sorted(w * end for end in part.range) for w, part in zip(weights, parts) if w]
        self._declare(asked, "sum", (sum(low for low, _ in ends), sum(high for _, high in ends)))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        terms = zip(filter(None, self.weights), self._values(z, prompts))
        return reduce(operator.add, (w * value for w, value in terms))


@dataclass(frozen=True)
class Product(Composite):
    """The product of the parts (Reward or callable), at least one."""

    parts: Sequence[RewardLike]

    def __post_init__(self) -> None:
        parts = tuple(map(as_reward, _LISTED.check("parts", self.parts)))
        if not parts:
            raise InvalidArgument("a product needs at least one part, got none")
        vars(self).update(parts=parts)
        self._declare(parts, "product", reduce(_times, (part.range for part in parts)))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return reduce(operator.mul, self._values(z, prompts))


def _times(a: Range, b: Range) -> Range:
    """The product of two intervals; infinity is no value there, so that 0 · inf is 0."""
    corners = [x * y if x and y else 0.0 for x in a for y in b]
    return min(corners), max(corners)


class Wrapper(Checked, Composite):
    """A composite of one part; its `range` maps the part's ends by `ends`."""

    part: RewardLike

    def _wrap(self, ends: Callable[[float], float] = float, decodes: int = 0) -> None:
        part = as_reward(self.part)
        low, high = map(ends, part.range)
        vars(self).update(part=part)
        self._declare([part], type(self).__name__.lower(), (low, high), decodes)


@dataclass(frozen=True)
class Clipped(Wrapper):
    """The part, no lower than `low` (also where it is -inf) and no higher than `high`."""

    part: RewardLike
    low: float = setting(-math.inf, NOT_NAN)
    high: float = setting(math.inf, NOT_NAN)

    def check(self) -> None:
        if not self.low < self.high:
            raise InvalidArgument(f"low must be below high, got {self.low!r} and {self.high!r}")
        self._wrap(lambda end: min(max(end, self.low), self.high))

    def score(self, z: Tensor, prompts: Prompts) -> Tensor:
        return self._parts[0](z, prompts).clamp(self.low, self.high)


# --- asked and checked ---------------------------------------------------------------------------

_WILD = "has NaN or infinity"


def evaluate(reward: RewardLike, z: Tensor, where: str, prompts: Prompts = None) -> Tensor:
    """r(z) as float64 on the CPU, (B,), detached and checked; every error names the place.

    Parameters
    ----------
    reward : Reward or callable
    z : Tensor
        (B, *shape).
    where : str
        The place, as "boundary 2 (t = 0.33)".
    prompts : sequence, optional
        B of them, for a reward that takes them.

    Raises
    ------
    NonFinite
        NaN or +inf. -inf is a reward: it excludes a sample.
    RewardError
        The reward raised, or left its range by more than rounding (1e-6 of the larger bound).
    ShapeError, InvalidArgument
        As in a call of the reward.
    """
    reward = as_reward(reward)
    with _placed(reward, where), torch.no_grad():
        values = reward(z, prompts)
    return _checked(reward, values, where)


def evaluate_with_gradient(
    reward: RewardLike, z: Tensor, where: str, prompts: Prompts = None
) -> tuple[Tensor, Tensor]:
    """As :func:`evaluate`, with the gradients of r, like z; all of them must be finite."""
    reward = as_reward(reward)
    with _placed(reward, where):
        values, gradient = reward.value_and_gradient(z, prompts)
    wild = _wild(gradient)
    both = torch.stack((values.detach(), wild.to(values.dtype)))  # for one wait for the device
    rewards, wild = both.cpu()
    rewards = _checked(reward, rewards, where)
    _check_particles(wild > 0.0, f"the gradient of the reward {reward.name!r} {_WILD}", where)
    return rewards, gradient


def _checked_samples(z: Tensor) -> Tensor:
    if not isinstance(z, Tensor) or z.ndim < 1 or z.layout != torch.strided:
        raise ShapeError(f"a reward is asked about a dense tensor (batch, *shape), got {shown(z)}")
    return z


def _chunks(z: Tensor, prompts: Prompts, size: int | None) -> Iterator[tuple[Tensor, Prompts]]:
    """Samples with their prompts, at most `size` at a time."""
    batch = max(len(z), 1)
    size = size or batch
    for i in range(0, batch, size):
        yield z[i : i + size], None if prompts is None else prompts[i : i + size]


@contextmanager
def _placed(reward: Reward, where: str) -> Iterator[None]:
    """Errors from within name the place; those of a user's code become a RewardError."""
    try:
        yield
    except GlassError as error:
        # Not by calling the class: signatures differ (MissingExtra, NonFinite, a user's own).
        placed = type(error).__new__(type(error), f"{error} at {where}")
        vars(placed).update(vars(error))
        raise placed from error
    except Exception as error:
        line = line_of(error)
        raise RewardError(
            f"the reward {reward.name!r} raised {type(error).__name__}: {error} at {where}"
            f"{line and f' ({line})'}"
        ) from error


def _checked(reward: Reward, values: Tensor, where: str) -> Tensor:
    """Values as float64 on the CPU, finite or -inf and inside the declared range."""
    if values.is_meta:
        raise ShapeError(f"the reward {reward.name!r} returned a tensor without values at {where}")
    rewards = values.detach().to("cpu", torch.float64)
    wild = torch.isnan(rewards) | (rewards == math.inf)
    _check_particles(wild, f"the reward {reward.name!r} returned NaN or +inf", where)
    low, high = reward.range
    rounding = max(1e-6, 4 * torch.finfo(values.dtype).eps)
    slack = rounding * max([1.0, *(abs(bound) for bound in (low, high) if math.isfinite(bound))])
    outside = torch.nonzero((rewards < low - slack) | (rewards > high + slack)).flatten().tolist()
    if outside:
        raise RewardError(
            f"the reward {reward.name!r} returned {rewards[outside[0]].item():.9g}, outside its "
            f"declared range [{low:g}, {high:g}], at {where} for particles {outside[:8]} "
            f"({len(outside)} of {len(rewards)}); declare a wider range or clip it"
        )
    return rewards


def check_finite(gradient: Tensor, what: str, where: str) -> None:
    """Raise :class:`NonFinite` for particles of whose gradient something is not finite."""
    _check_particles(_wild(gradient).cpu(), f"{what} {_WILD}", where)


def _wild(gradient: Tensor) -> Tensor:
    return ~torch.isfinite(gradient).unsqueeze(-1).flatten(1).all(1)


def _check_particles(bad: Tensor, what: str, where: str) -> None:
    particles = tuple(torch.nonzero(bad).flatten().tolist())
    if particles:
        raise NonFinite(
            f"{what} at {where} for particles {list(particles[:8])} "
            f"({len(particles)} of {len(bad)})",
            particles,
        )
