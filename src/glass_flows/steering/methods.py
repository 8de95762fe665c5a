"""The methods by name, and a method from what a person writes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, fields, replace
from inspect import isabstract
from typing import Any, cast

from ..errors import InvalidArgument, check_name, shown
from ..fronts import One
from ..plans import Sampler
from ..registry import Registry
from ..settings import Is, Kind, build, defaults, explanations, kinds
from .method import Method
from .refinement import BEGINNING, Refine
from .search import Beam, Greedy
from .smc import BestOf, Steering
from .twist import Twist

__all__ = [
    "METHODS",
    "AnyMethod",
    "Preset",
    "SamplerOfMethod",
    "every_setting",
    "foreign_settings",
    "idle_settings",
    "method_of",
    "read_method",
    "sampler_for",
]


@dataclass(frozen=True)
class Preset:
    """A method under a name of its own: a class, and the fields that the name stands for."""

    kind: type[Method]
    fields: Mapping[str, Any]


def _preset(name: str, given: Any) -> Preset:
    """A preset, or the class of a method, which files and texts know by the same name."""
    if isinstance(given, Preset):
        return given
    if not (isinstance(given, type) and issubclass(given, Method)) or isabstract(given):
        raise InvalidArgument(
            f"method {name!r} must be a subclass of glass_flows.steering.Method with all that is "
            f"abstract there, or a Preset of one, got {shown(given)}"
        )
    if (word := vars(given).get("word")) != name:
        raise InvalidArgument(
            f"method {name!r}: its class attribute `word`, its name in files, must be the same, "
            f"got {shown(word)}"
        )
    if plain := [field.name for field in fields(given) if "kind" not in field.metadata]:
        raise InvalidArgument(
            f"method {name!r}: {', '.join(plain)} must be made by glass_flows.settings.setting("
            "default, kind), which says how they are read and written"
        )
    if untold := [field for field in kinds(given) if field not in explanations(given)]:
        raise InvalidArgument(
            f"method {name!r}: its docstring says nothing of {', '.join(untold)} under Parameters, "
            "from where the help comes"
        )
    return Preset(given, {})


METHODS: Registry[Preset] = Registry(
    "methods",
    {
        "plain": Preset(BestOf, {"particles": 1}),
        "best-of-n": Preset(BestOf, {}),
        "steering": Preset(Steering, {}),
        "twist": Preset(Steering, {"twist": Twist()}),
        "beam": Preset(Beam, {}),
        "greedy": Preset(Greedy, {}),
        "svdd": Preset(Greedy, {"pick": "sample"}),
        "refine": Preset(Refine, {}),
    },
    _preset,
)


def method_of(
    method: str | Method, given: Mapping[str, Any], texts: Mapping[str, str] | None = None
) -> Method:
    """A method by name with the settings `given` from Python and as `texts`, or one that is made.

    Raises
    ------
    UnknownName
        There is no such method.
    InvalidArgument
        The method has no such setting: it could not act.
    """
    given = Is(Mapping, "a mapping of settings by name").check("given", given)
    named = {**given, **(texts or {})}
    if isinstance(method, Method):
        if named:
            raise InvalidArgument(f"{', '.join(named)}: given beside {method!r}; put them into it")
        return method
    preset = METHODS[check_name("method", method, METHODS)]
    if foreign := foreign_settings(method, named):
        raise InvalidArgument(
            f"method {method!r} has no {', '.join(foreign)}: it has "
            f"{', '.join(name for name in kinds(preset.kind) if name not in preset.fields)}"
        )
    return build(preset.kind, given, texts, **preset.fields)


def foreign_settings(method: str, names: Mapping[str, Any]) -> list[str]:
    """Those names that a method has no setting for, or stands for itself."""
    preset = METHODS[method]
    allowed = kinds(preset.kind)
    settled = {
        name for name in preset.fields if name != "twist"
    }  # a twist of other strength is one
    return [name for name in names if name not in allowed or name in settled]


def every_setting() -> dict[str, list[type[Method]]]:
    """The settings of all methods that are loaded, with the classes that have them."""
    found: dict[str, list[type[Method]]] = {}
    for kind in dict.fromkeys(preset.kind for preset in METHODS.loaded.values()):
        for name in kinds(kind):
            found.setdefault(name, []).append(kind)
    return found


def read_method(data: Mapping[str, Any]) -> Method:
    """A method from its JSON form."""
    data = Is(Mapping, "an object, as of as_json()").check("the settings of a method", data)
    return METHODS[check_name("method", data.get("type"), METHODS)].kind.from_json(data)


def sampler_for(method: Method, sampler: Sampler, asked: Collection[str]) -> Sampler:
    """Best-of-N spends its evaluations on the ODE, unless ρ is among the settings asked for.

    So does refinement for the samples that it begins with; a few of them, if not told how many.
    """
    if not _on_the_ode(method, sampler, asked):
        return sampler
    if not isinstance(method, Refine):
        return sampler.baseline()
    sized = {"transitions", "steps"} & set(asked)
    return replace(sampler.baseline(None if sized else BEGINNING), solver=sampler.solver)


def idle_settings(method: Method, sampler: Sampler, asked: Collection[str]) -> list[str]:
    """Settings of the sampler that were asked for, and are nothing to :func:`sampler_for`'s ODE."""
    if not _on_the_ode(method, sampler, asked):
        return []
    names = {"times"} if isinstance(method, Refine) else {"times", "solver"}
    return sorted(names & set(asked))


def _on_the_ode(method: Method, sampler: Sampler, asked: Collection[str]) -> bool:
    return isinstance(method, (BestOf, Refine)) and "rho" not in asked and sampler.rho is not None


class SamplerOfMethod(One):
    """The sampler of a front whose method, made before, may be any."""

    def make(
        self, given: Any, default: Any, named: Mapping[str, Any], made: Mapping[str, Any]
    ) -> Sampler:
        found = cast(Sampler, super().make(given, default, named, made))
        if given is not None:
            return found
        if idle := idle_settings(made["method"], found, named):
            raise InvalidArgument(
                f"{', '.join(idle)}: nothing to {made['method']!r} without rho=, which runs the "
                "ODE in one go; give rho='ode' or another, too"
            )
        return sampler_for(made["method"], found, named)


class AnyMethod:
    """All methods as one group of a front: a name with settings, or an object."""

    @property
    def kinds(self) -> Mapping[str, Kind]:
        return {name: kinds(owners[0])[name] for name, owners in every_setting().items()}

    @property
    def told(self) -> Mapping[str, tuple[str, str]]:
        found = {}
        for name, owners in every_setting().items():
            known = [explanations(owner)[name] for owner in owners]
            allowed, meaning = max(known, key=lambda told: len(told[1]))
            names = (n for n, preset in METHODS.loaded.items() if preset.kind in owners)
            found[name] = allowed, f"{meaning} Of the methods {', '.join(names)}."
        return found

    def make(
        self, given: Any, default: Any, named: Mapping[str, Any], made: Mapping[str, Any]
    ) -> Method:
        return method_of(default if given is None else given, named)

    def default_of(self, name: str, default: Any) -> Any:
        """Of the method that is meant if none is given, or of the first that has it."""
        owners, own = every_setting()[name], METHODS[default].kind if default else Steering
        return defaults(own if own in owners else owners[0])[name]
