"""What a function says of itself: which of its parameters are handed samples, and which prompts."""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from inspect import Parameter
from types import GenericAlias
from typing import Any

from torch import nn

from ..errors import InvalidArgument

_PROMPT = re.compile(r"(^|_)(prompt|caption|text)s?(_|$)")
_MANY = re.compile(r"(^|_)(images|imgs|pictures|pics|photos|arrays|tensors|batch|samples)(_|$)")
_TEXT = re.compile(r"\bstr\b")
_KINDS = (
    (re.compile(r"\bTensor\b"), ("tensor",)),
    (re.compile(r"(?=.*ndarray)(?=.*float)", re.IGNORECASE), ("floats",)),
    (re.compile(r"ndarray|NDArray"), ("numpy", "floats")),
    (re.compile(r"\bImage\b"), ("pil",)),
)
_LIST = re.compile(
    r"^(typing\.|collections\.abc\.|t\.)?(list|List|Sequence|Iterable|tuple|Tuple)\b"
)
_FILLED = (Parameter.POSITIONAL_ONLY, Parameter.POSITIONAL_OR_KEYWORD, Parameter.KEYWORD_ONLY)


@dataclass(frozen=True)
class Signature:
    """Which parameters of a function are handed samples and prompts.

    Attributes
    ----------
    samples, prompts : inspect.Parameter or None
        None for samples of a function that does not say (it is handed them by position), for
        prompts of one that takes none.
    swapped : bool
        Whether prompts come first.
    """

    samples: Parameter | None = None
    prompts: Parameter | None = None
    swapped: bool = False

    @classmethod
    def of(cls, function: Callable[..., Any], name: str) -> Signature:
        """Read from names and annotations; two parameters without defaults are samples and prompts.

        One with a default keeps it, but for `prompt` or `prompts` whose default is None.

        Raises
        ------
        InvalidArgument
            More than two have no default, or there are none at all.
        """
        whole = function.forward if isinstance(function, nn.Module) else function
        try:
            parameters = list(inspect.signature(whole).parameters.values())
        except (TypeError, ValueError):  # of C, or compiled: it does not say
            return cls()
        filled = [one for one in parameters if one.kind in _FILLED]
        needed = [one for one in filled if one.default is Parameter.empty]
        if not needed and filled and filled[0].kind is not Parameter.KEYWORD_ONLY:
            needed = filled[:1]
        if len(needed) > 2 or not parameters:
            told = ", ".join(one.name for one in needed) or "none"
            raise InvalidArgument(
                f"the reward {name!r} takes {len(needed)} arguments ({told}): a reward is a "
                "function of images, and of prompts if it takes them; bind the rest with "
                "functools.partial, or give it defaults"
            )
        if not needed:
            return cls()
        if len(needed) == 2:
            first, second = needed
            swapped = _is_prompt(first) and not _is_prompt(second)
            return cls(*((second, first) if swapped else (first, second)), swapped)
        given = (p for p in filled if p.name in ("prompt", "prompts") and p is not needed[0])
        return cls(needed[0], next((p for p in given if p.default is None), None))

    def call(self, function: Callable[..., Any], samples: Any, prompts: Any) -> Any:
        """The function's answer; prompts are left out if it takes none."""
        pairs = [(self.samples, samples)]
        if self.prompts is not None:
            pairs.append((self.prompts, prompts))
        if self.swapped:
            pairs.reverse()
        named = {p.name: given for p, given in pairs if p is not None and _by_name(p, self.prompts)}
        return function(*(g for p, g in pairs if p is None or p.name not in named), **named)

    @property
    def says_many(self) -> bool:
        """Whether it is of many samples at once, by the name or the annotation of its parameter."""
        return self.samples is not None and bool(
            _MANY.search(self.samples.name) or _LIST.search(_annotation(self.samples))
        )

    @property
    def says_one(self) -> bool:
        """Whether it is of one sample."""
        if self.samples is None or self.says_many:
            return False
        return self.kinds == ("pil",) or bool(
            re.search(r"(^|_)(image|img|im|picture|pic|photo|pil|sample)(_|$)", self.samples.name)
        )

    @property
    def kinds(self) -> tuple[str, ...]:
        """What its annotation says that samples are; () if nothing."""
        if self.samples is None:
            return ()
        text = _annotation(self.samples)
        return next((kinds for pattern, kinds in _KINDS if pattern.search(text)), ())


def name_of(function: object) -> str:
    """What a function is called, for people."""
    while isinstance(function, partial):
        function = function.func
    name = getattr(function, "__name__", type(function).__name__)
    return str(name).replace("<lambda>", "reward")


def _by_name(parameter: Parameter, prompts: Parameter | None) -> bool:
    """Prompts with a default may stand behind other parameters that have one."""
    optional = parameter is prompts and parameter.default is not Parameter.empty
    return optional or parameter.kind is Parameter.KEYWORD_ONLY


def _is_prompt(parameter: Parameter) -> bool:
    return bool(_PROMPT.search(parameter.name) or _TEXT.search(_annotation(parameter)))


def _annotation(parameter: Parameter) -> str:
    """As text: what is annotated is not always there to be looked up."""
    given = parameter.annotation
    if given is Parameter.empty:
        return ""
    if isinstance(given, str):
        return given
    return (
        str(given)
        if isinstance(given, GenericAlias) or not isinstance(given, type)
        else given.__name__
    )
