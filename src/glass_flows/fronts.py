"""Calls for people: every setting by its own name, or settings objects, and errors that help.

A front's signature is explicit, so that editors and `help` know it. It names the settings and
repeats their defaults, which are checked, when the function is made, against those of the object
that stands in the signature; the function itself gets the objects only.
"""

from __future__ import annotations

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol, TypeVar, cast

from .errors import InvalidArgument, UnknownName, did_you_mean, shown
from .settings import Kind, Settings, explanations, kinds

F = TypeVar("F", bound=Callable[..., Any])

FOREIGN = {
    "num_inference_steps": "transitions= (K) and steps= (M): the network is asked K M times",
    "inference_steps": "transitions= (K) and steps= (M): the network is asked K M times",
    "num_steps": "transitions= (K) and steps= (M): the network is asked K M times",
    "generator": "seed=, from which every particle has streams of its own",
    "num_images_per_prompt": "particles= (N)",
    "num_videos_per_prompt": "particles= (N)",
    "num_particles": "particles= (N)",
    "beams": "particles=, all that are moved, and children= of each that goes on",
    "batch_size": "particles= (N), and max_batch= for what the network sees at a time",
    "callback_on_step_end": "on_boundary=, a function of the step at every boundary",
    "callback": "on_boundary=, a function of the step at every boundary",
    "eta": "rho='ddim:ETA'",
    "lambda_": "scale= (λ)",
    "reward_fn": "the reward, as the argument after the model and the prompt",
    "scheduler": "rho=, solver= and start=",
}
"""Names of other libraries, and what stands for them here."""


def refuse_foreign(name: str) -> None:
    """Answer a name of another library with ours."""
    if name in FOREIGN:
        raise InvalidArgument(f"{name} is not an argument here: give {FOREIGN[name]}")


class Group(Protocol):
    """An object that a front makes of settings by name."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        """The settings, by name."""

    @property
    def told(self) -> Mapping[str, tuple[str, str]]:
        """What each may be, and what it means."""

    def make(
        self, given: Any, default: Any, named: Mapping[str, Any], made: Mapping[str, Any]
    ) -> Any:
        """The object: from what was `given` for it (None if nothing), or `named` over `default`.

        `made` holds the objects of the groups before this one.
        """

    def default_of(self, name: str, default: Any) -> Any:
        """What a setting is when it is not given."""


@dataclass(frozen=True)
class One:
    """The settings of one class."""

    cls: type[Settings]

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return kinds(self.cls)

    @property
    def told(self) -> Mapping[str, tuple[str, str]]:
        return explanations(self.cls)

    def make(
        self, given: Any, default: Any, named: Mapping[str, Any], made: Mapping[str, Any]
    ) -> Settings:
        if given is None:
            held = {name: getattr(default, name) for name in self.kinds}
            return self.cls(**{**held, **self.cls.completed(named)})
        if not isinstance(given, self.cls):
            raise InvalidArgument(f"expected {self.cls.__name__}(...), got {shown(given)}")
        if named:
            raise InvalidArgument(
                f"{', '.join(named)} given beside {shown(given)}: put them into it"
            )
        return given

    def default_of(self, name: str, default: Any) -> Any:
        return getattr(default, name)


def front(**groups: type[Settings] | Group | Kind) -> Callable[[F], F]:
    """Let a function be called with settings by name, or with the objects that hold them.

    `groups` says for parameters of the function of which class they are; the function's signature
    also names that class's settings, and the function itself is given the object only. A parameter
    with a :class:`Kind` is read by it: the function is given what is right. In the function's
    docstring ``{settings}`` becomes what the classes' docstrings say of them.
    """
    read = {name: one for name, one in groups.items() if isinstance(one, Kind)}
    owned = {
        name: One(one) if isinstance(one, type) else one
        for name, one in groups.items()
        if not isinstance(one, Kind)
    }

    def decorate(function: F) -> F:
        name, signature = function.__name__, inspect.signature(function)
        parameters = signature.parameters
        owners = {n: owner for owner, one in owned.items() for n in one.kinds if n in parameters}
        open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
        _check_defaults(name, parameters, owned)

        @functools.wraps(function)
        def call(*args: Any, **given: Any) -> Any:
            for unknown in [n for n in given if n not in parameters]:
                refuse_foreign(unknown)
                if not open_ended:
                    raise UnknownName(
                        f"{name}() has no argument {unknown!r}.{did_you_mean(unknown, parameters)} "
                        f"help({name}) lists them"
                    )
            named: dict[str, dict[str, Any]] = {owner: {} for owner in owned}
            for setting in [n for n in given if n in owners]:
                named[owners[setting]][setting] = given.pop(setting)
            try:
                bound = signature.bind(*args, **given)
            except TypeError as error:
                raise InvalidArgument(f"{name}(): {error}") from None
            for argument, kind in read.items():
                value = bound.arguments.get(argument, parameters[argument].default)
                bound.arguments[argument] = kind.read(argument, value)
            made: dict[str, Any] = {}
            for owner, one in owned.items():
                given_for, default = bound.arguments.get(owner), parameters[owner].default
                made[owner] = one.make(given_for, default, named[owner], made)
            bound.arguments |= made
            return function(*bound.args, **bound.kwargs)

        call.__doc__ = _documented(inspect.cleandoc(function.__doc__ or ""), owned, parameters)
        call.__dict__["front"] = owned
        return cast(F, call)

    return decorate


def _check_defaults(
    function: str, parameters: Mapping[str, inspect.Parameter], groups: Mapping[str, Group]
) -> None:
    """Every default that a signature repeats is that of the object in it."""
    for owner, one in groups.items():
        for name in [n for n in one.kinds if n in parameters]:
            repeated = one.kinds[name].read(name, parameters[name].default)
            if repeated != one.default_of(name, parameters[owner].default):
                raise TypeError(f"{function}(): the default of {name} is not {repeated!r}")


def _documented(
    text: str, groups: Mapping[str, Group], parameters: Mapping[str, inspect.Parameter]
) -> str:
    entries = [
        f"{name} : {allowed}; by default {parameters[name].default!r}\n"
        + textwrap.indent(textwrap.fill(meaning, 92, break_on_hyphens=False), "    ")
        for one in groups.values()
        for name, (allowed, meaning) in one.told.items()
        if name in parameters
    ]
    return text.replace("{settings}", "\n".join(entries))
