"""Settings, each spelled once.

A settings object is a frozen dataclass. Every field has a :class:`Kind`, which reads what may be
given for it from Python, a command line or a file, and writes it again. So an object has one text
and one JSON form, both of which leave out what is as by default:

    sampler transitions=12 rho=ddim:0.5
    {"type": "sampler", "version": 1, "transitions": 12, "rho": "ddim:0.5"}

A value that is an object is written as its name and what differs from its defaults, by position
or by name, with colons between: ``posterior:2``, ``posterior:steps=2``, ``adaptive:0.6``. A list is
written with commas between. A function is written as ``<name>``, which cannot be read back. Texts
with blanks are in quotes, as for a shell.
"""

from __future__ import annotations

import difflib
import inspect
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Protocol, TypeVar, Union, cast

from .errors import InvalidArgument, UnknownName, check_count, check_name, check_number

__all__ = [
    "Choice",
    "Count",
    "Heads",
    "Kind",
    "Listed",
    "Number",
    "Object",
    "Settings",
    "Switch",
    "Text",
    "build",
    "defaults",
    "explanations",
    "setting",
    "spelled",
]

Json = Union[None, bool, int, float, str, list[Any], dict[str, Any]]
S = TypeVar("S", bound="Settings")


class Kind(Protocol):
    """What a field may hold, and how it is spelled."""

    def read(self, name: str, given: object) -> Any:
        """The value for what was given from Python or stood in a JSON file; checked."""
        ...

    def parse(self, name: str, text: str) -> Any:
        """The value for a text."""
        ...

    def write(self, value: Any) -> Json:
        """For a JSON file; :meth:`read` reads it."""
        ...


# --- what a field may hold ------------------------------------------------------------------------


@dataclass(frozen=True)
class Count:
    """An integer of at least `least`; None or "none" too if it is `optional`."""

    least: int = 1
    optional: bool = False

    def read(self, name: str, given: object) -> int | None:
        if given is None and self.optional:
            return None
        return check_count(name, given, self.least)

    def parse(self, name: str, text: str) -> int | None:
        if self.optional and text == "none":
            return None
        return check_count(name, int(text) if _is_integer(text) else text, self.least)

    def write(self, value: int | None) -> Json:
        return value


@dataclass(frozen=True)
class Number:
    """A number that `holds`; `rule` says what that is, as "be finite". None if it is `optional`."""

    rule: str = "be finite"
    holds: Callable[[float], bool] = math.isfinite
    optional: bool = False

    def read(self, name: str, given: object) -> float | None:
        if given is None and self.optional:
            return None
        return check_number(name, given, self.rule, self.holds)

    def parse(self, name: str, text: str) -> float | None:
        if self.optional and text == "none":
            return None
        return check_number(name, number_in(text, name, self.rule), self.rule, self.holds)

    def write(self, value: float | None) -> Json:
        return value


@dataclass(frozen=True)
class Choice:
    """One of some names; `what` says of what. None if it is `optional`."""

    what: str
    names: Iterable[str]
    optional: bool = False

    def read(self, name: str, given: object) -> str | None:
        if given is None and self.optional:
            return None
        return check_name(self.what, given, self.names)

    def parse(self, name: str, text: str) -> str | None:
        if self.optional and text == "none":
            return None
        return check_name(self.what, text, self.names)

    def write(self, value: str | None) -> Json:
        return value


@dataclass(frozen=True)
class Text:
    """Any text; None if it is `optional`."""

    optional: bool = False

    def read(self, name: str, given: object) -> str | None:
        if self.optional and given in (None, "none"):
            return None
        if not isinstance(given, str):
            raise InvalidArgument(f"{name} must be a text, got {given!r}")
        return given

    parse = read

    def write(self, value: str | None) -> Json:
        return value


@dataclass(frozen=True)
class Switch:
    """True or false."""

    def read(self, name: str, given: object) -> bool:
        if not isinstance(given, bool):
            raise InvalidArgument(f"{name} must be True or False, got {given!r}")
        return given

    def parse(self, name: str, text: str) -> bool:
        return check_name(name, text.lower(), ("true", "false")) == "true"

    def write(self, value: bool) -> Json:
        return value


@dataclass(frozen=True)
class Listed:
    """One value of a kind for all, or a list of them, held as a tuple.

    `item` is the kind of a list's entries where it is another. The text of a list of one ends in a
    comma. Arrays and tensors are lists, too.
    """

    one: Kind
    item: Kind | None = None

    def read(self, name: str, given: object) -> Any:
        if isinstance(given, str):
            return self.parse(name, given)
        if callable(plain := getattr(given, "tolist", None)):
            given = plain()
        if isinstance(given, Sequence) and not isinstance(given, (bytes, bytearray)):
            return tuple(self._item.read(f"{name}[{i}]", item) for i, item in enumerate(given))
        return self.one.read(name, given)

    def parse(self, name: str, text: str) -> Any:
        if "," not in text:
            return self.one.parse(name, text)
        parts = [part.strip() for part in text.split(",") if part.strip()]
        return tuple(self._item.parse(f"{name}[{i}]", part) for i, part in enumerate(parts))

    def write(self, value: Any) -> Json:
        if isinstance(value, tuple):
            return [self._item.write(item) for item in value]
        return self.one.write(value)

    @property
    def _item(self) -> Kind:
        return self.item or self.one


Head = Union[tuple[type, Mapping[str, Any]], None]


class Heads(Mapping[str, Head]):
    """The heads of a registry: its classes by name, and names that stand for themselves."""

    def __init__(self, registry: Mapping[str, Any]) -> None:
        self.registry = registry

    def __getitem__(self, name: str) -> Head:
        thing = self.registry[name]
        return (thing, {}) if isinstance(thing, type) else None

    def __contains__(self, name: object) -> bool:
        return name in self.registry

    def __iter__(self) -> Iterator[str]:
        return iter(self.registry)

    def __len__(self) -> int:
        return len(self.registry)


@dataclass(frozen=True)
class Object:
    """A small object with a name, such as ``posterior:2:3``, or what else `others` may be.

    Attributes
    ----------
    what, allowed : str
        For messages: what it is, and all that may be given.
    heads : dict
        Name to (class, fields that the name stands for), or to None if the name is itself the
        value.
    bare : type, optional
        The class whose first field is written in the place of a name.
    resolve : callable, optional
        From anything else that may be given from Python to the value, or raises InvalidArgument;
        without it only instances of the classes may.
    numbers : Kind, optional
        Of a number, which may stand in the place of the object.
    """

    what: str
    allowed: str
    heads: Mapping[str, Head] = field(default_factory=dict)
    bare: type | None = None
    resolve: Callable[[Any], Any] | None = None
    numbers: Kind | None = None
    optional: bool = False

    def read(self, name: str, given: object) -> Any:
        if given is None and self.optional:
            return None
        if isinstance(given, str):
            return self.parse(name, given)
        if _is_number(given):
            if self.numbers is not None:
                return self.numbers.read(name, given)
            if self.bare is not None:
                return self.bare(given)
        # One by one: the classes of a registry are loaded only as far as they are looked at.
        if any(isinstance(given, cls) for cls in self._classes()):
            return given
        if self.resolve is not None:
            return self.resolve(given)
        raise InvalidArgument(f"{name} must be {self.allowed}, got {given!r}")

    def parse(self, name: str, text: str) -> Any:
        if text == "none" and self.optional:
            return None
        if "<" in text:
            raise InvalidArgument(
                f"{name} = {text} was a function, which cannot be read back: give it again"
            )
        head, *parts = text.split(":")
        if head in self.heads:
            entry = self.heads[head]
            if entry is None and not parts:
                return head
            if entry is not None:
                return _made(name, head, *entry, parts)
        elif _is_number_text(head):
            if self.numbers is not None and not parts:
                return self.numbers.parse(name, text)
            if self.bare is not None:
                return _made(name, self.what, self.bare, {}, [head, *parts])
        elif self.heads:
            near = difflib.get_close_matches(head, self.heads, n=1, cutoff=0.5)
            hint = f" Did you mean {near[0]!r}?" if near else ""
            raise UnknownName(f"unknown {self.what} {head!r}.{hint} {name} must be {self.allowed}")
        raise InvalidArgument(f"{name} must be {self.allowed}, got {text!r}")

    def write(self, value: Any) -> Json:
        if value is None or isinstance(value, str) or _is_number(value):
            return cast(Json, value)
        for head, entry in self.heads.items():
            if entry is not None and type(value) is entry[0]:
                preset = entry[1]
                if all(getattr(value, key) == given for key, given in preset.items()):
                    return ":".join([head, *_told(value, preset)])
        if self.bare is not None and type(value) is self.bare:
            first, *_ = fields(cast(Any, self.bare))
            told = _told(value, {}, always=first.name)
            return ":".join(told)
        return _nameless(value)

    def _classes(self) -> Iterator[type]:
        if self.bare is not None:
            yield self.bare
        for entry in self.heads.values():
            if entry is not None:
                yield entry[0]


def _made(
    name: str, head: str, cls: type, preset: Mapping[str, Any], parts: Sequence[str]
) -> object:
    """``cls`` from the parts of its text, by position or by name."""
    taken = {f.name: f for f in fields(cast(Any, cls)) if f.init and f.name not in preset}
    names = list(taken)
    values = dict(preset)
    for i, part in enumerate(parts):
        key, equals, text = part.partition("=")
        if not equals and i < len(names):
            key, text = names[i], part
        if key not in names:
            raise InvalidArgument(
                f"{name}: {head} takes {', '.join(names) or 'nothing'}, got {part!r}"
            )
        if key in values:
            raise InvalidArgument(f"{name}: {key} is given twice in {':'.join([head, *parts])!r}")
        values[key] = _scalar(text, float if "float" in str(taken[key].type) else int)
    try:
        return cls(**values)
    except InvalidArgument as error:
        raise type(error)(f"{name}: {error}") from None
    except (TypeError, ValueError):
        shown = ":".join([head, *parts])
        raise InvalidArgument(f"{name}: {shown!r} has a value of the wrong type") from None


def _told(value: Any, preset: Mapping[str, Any], always: str = "") -> list[str]:
    """The parts of an object's text: what differs from the defaults."""
    listed = [one for one in fields(value) if one.name not in preset]
    found = []
    for i, one in enumerate(listed):
        held = getattr(value, one.name)
        if held == _default(one) and one.name != always:
            continue
        text = spelled(_plain(held))
        found.append(text if i == 0 else f"{one.name}={text}")
    return found


def _plain(value: Any) -> Json:
    if value is None or isinstance(value, (bool, str)):
        return value
    if isinstance(value, Real):
        return int(value) if isinstance(value, Integral) else float(value)
    if isinstance(value, (list, tuple)):
        return [_plain(item) for item in value]
    return _nameless(value)


def _nameless(value: Any) -> str:
    """What has no text: a function, somebody's own object."""
    name = getattr(value, "__name__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return f"<{name.strip('<>')}>"


def _scalar(text: str, whole: Callable[[str], Any]) -> Any:
    """A value by its looks; `whole` reads integers."""
    if "," in text:
        return tuple(_scalar(part, whole) for part in text.split(","))
    if text in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[text]
    if _is_integer(text):
        return whole(text)
    return float(text) if _is_number_text(text) else text


def _is_integer(text: str) -> bool:
    return re.fullmatch(r"[+-]?[0-9]{1,4000}", text.strip(), re.ASCII) is not None


def _is_number_text(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _is_number(given: object) -> bool:
    return isinstance(given, Real) and not isinstance(given, bool)


def number_in(text: str, name: str, rule: str = "") -> float:
    """A number, or :class:`InvalidArgument` that names the setting."""
    try:
        return float(text)
    except ValueError:
        also = f" and {rule}" if rule else ""
        raise InvalidArgument(f"{name} must be a number{also}, got {text!r}") from None


def _quoted(text: str) -> str:
    """In quotes, if it would not be one word without."""
    return shlex.quote(text) if re.search(r"[\s'\"\\]", text) else text


def spelled(value: Json) -> str:
    """A JSON value of a field as its text."""
    if isinstance(value, list):
        return ",".join(map(spelled, value)) + ("," if len(value) < 2 else "")
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, float):
        return repr(value).removesuffix(".0")
    return str(value)


# --- the objects ----------------------------------------------------------------------------------


def setting(default: Any, kind: Kind) -> Any:
    """A field of a settings object."""
    return field(default=default, metadata={"kind": kind})


@dataclass(frozen=True, repr=False)
class Settings:
    """Base of all settings objects: checked when made, and spelled by their fields.

    Subclasses are frozen dataclasses (``repr=False``) whose fields are made by :func:`setting`.
    Their docstring has a section "Parameters" that says what each field is; help texts and the
    documents of the calls that take these settings are read from it.

    Attributes
    ----------
    word : str
        The first word of the text form.
    version : int
        Raised when the same text comes to mean something else.
    """

    word: ClassVar[str]
    version: ClassVar[int] = 1

    def __new__(cls: type[S], *values: Any, **given: Any) -> S:
        names = list(kinds(cls))
        check_known(cls, given)
        if len(values) > len(names):
            raise InvalidArgument(
                f"{cls.__name__} has {len(names)} settings, got {len(values)} values"
            )
        for name in names[: len(values)]:
            if name in given:
                raise InvalidArgument(f"{name} is given twice, also by its position")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for name, kind in kinds(type(self)).items():
            object.__setattr__(self, name, kind.read(name, getattr(self, name)))
        self.check()

    def check(self) -> None:
        """Raise unless the fields, each right by itself, go together."""

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, with the defaults that depend on it."""
        return dict(given)

    def differing(self) -> dict[str, Json]:
        """The fields that are not as by default, as JSON."""
        found = {}
        for one in fields(self):
            value = getattr(self, one.name)
            if value != _default(one):
                found[one.name] = kinds(type(self))[one.name].write(value)
        return found

    def every(self) -> dict[str, Json]:
        """All fields, as JSON."""
        return {name: kind.write(getattr(self, name)) for name, kind in kinds(type(self)).items()}

    def as_json(self) -> dict[str, Json]:
        return {"type": self.word, "version": self.version, **self.differing()}

    @classmethod
    def from_json(cls: type[S], data: Mapping[str, Any]) -> S:
        """Inverse of :meth:`as_json`.

        Raises
        ------
        InvalidArgument, UnknownName
            It is of another type or version, or does not hold what it should.
        """
        if not isinstance(data, Mapping):
            raise InvalidArgument(f"the settings {cls.word!r} must be an object, got {data!r}")
        given = dict(data)
        word, version = given.pop("type", cls.word), given.pop("version", 1)
        cls._check_head(word, version)
        check_known(cls, given)
        return cls(**given)

    @classmethod
    def parse(cls: type[S], text: str) -> S:
        """Inverse of `str`: the word, and ``name=value`` for what is not as by default."""
        try:
            head, *parts = shlex.split(text) or [""]
        except ValueError as error:
            raise InvalidArgument(f"{error} in {text!r}") from None
        word, at, version = head.partition("@")
        cls._check_head(word, int(version) if _is_integer(version) else version if at else 1)
        given: dict[str, str] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals:
                raise InvalidArgument(f"{part!r} must be NAME=VALUE in {text!r}")
            if name in given:
                raise InvalidArgument(f"{name} is given twice in {text!r}")
            given[name] = value
        return build(cls, {}, given)

    @classmethod
    def _check_head(cls, word: object, version: object) -> None:
        if word != cls.word or version != cls.version:
            raise InvalidArgument(
                f"expected the settings {cls.word!r} of version {cls.version}, "
                f"got {word!r} of version {version!r}"
            )

    def __str__(self) -> str:
        head = self.word if self.version == 1 else f"{self.word}@{self.version}"
        told = (f"{name}={spelled(value)}" for name, value in self.differing().items())
        return " ".join([head, *map(_quoted, told)])

    def __repr__(self) -> str:
        names = self.differing()
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({inside})"


def kinds(cls: type[Settings]) -> dict[str, Kind]:
    """The kind of every field, by name."""
    return {one.name: one.metadata["kind"] for one in fields(cls)}


def check_known(cls: type[Settings], names: Iterable[str]) -> None:
    """Raise :class:`UnknownName`, with the nearest, unless `cls` has fields of these names."""
    for name in names:
        check_name(f"setting of {cls.__name__}", name, kinds(cls))


def build(
    cls: type[S], given: Mapping[str, Any], texts: Mapping[str, str] | None = None, **base: Any
) -> S:
    """An object of values `given` from Python and `texts` of a command line, over `base`.

    Raises
    ------
    InvalidArgument, UnknownName
        A name is not one of a field, or a value is not what it may be.
    """
    found = dict(given)
    check_known(cls, [*found, *(texts or {})])
    for name, text in (texts or {}).items():
        found[name] = kinds(cls)[name].parse(name, text)
    return cls(**{**base, **cls.completed(found)})


def explanations(cls: type[Any]) -> dict[str, tuple[str, str]]:
    """What docstrings of a class and its bases say of their parameters: what is allowed, and what
    it means."""
    found: dict[str, tuple[str, str]] = {}
    for base in reversed(cls.__mro__):
        text = inspect.cleandoc(vars(base).get("__doc__") or "")
        section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", text, re.S | re.M)
        if section is None or not is_dataclass(base):
            continue
        entries = re.findall(r"^(\w[\w, ]*) : (.*)\n((?:    .*\n?|\n)*)", section[1] + "\n", re.M)
        for names, allowed, body in entries:
            told = allowed, " ".join(body.split())
            found |= {name.strip(): told for name in names.split(",")}
    held = {one.name for one in fields(cls)}
    return {name: told for name, told in found.items() if name in held}


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The default of every field that has one, by name."""
    found = {one.name: _default(one) for one in fields(cls)}
    return {name: value for name, value in found.items() if value is not MISSING}


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default
