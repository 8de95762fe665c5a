"""Settings, each spelled once.

A settings object is a frozen dataclass. Every field has a :class:`Kind`, which reads what may be
given for it from Python, a command line or a file, and writes it again. So an object has one text
and one JSON form, both of which leave out what is as by default (or, where a default has changed,
as it was when files began to leave it out):

    sampler transitions=12 rho=ddim:0.5
    {"type": "sampler", "version": 1, "transitions": 12, "rho": "ddim:0.5"}

A value that is an object is written as its name and what differs from its defaults, by position
or by name, with colons between: ``posterior:2``, ``posterior:steps=2``, ``adaptive:0.6``; an object
within it that has colons of its own is in brackets, ``posterior:solver=[paper:0.5]``. A list is
written with commas between. A function is written as ``<name>``, which cannot be read back. Texts
with blanks are in quotes, as for a shell.
"""

from __future__ import annotations

import functools
import inspect
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import MISSING, Field, dataclass, field, fields, is_dataclass
from numbers import Integral, Real
from typing import Any, ClassVar, Self, TypeVar, Union, cast

from .errors import (
    MOST_COUNT,
    MOST_EVALUATIONS,
    InvalidArgument,
    UnknownName,
    check_count,
    check_name,
    check_number,
    did_you_mean,
    plain,
    shown,
)

__all__ = [
    "ANY_COUNT",
    "MOST",
    "NOT_NEGATIVE",
    "POSITIVE",
    "SHARE",
    "Checked",
    "Choice",
    "Count",
    "Function",
    "Is",
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


class Kind:
    """What a field may hold, and how it is spelled. Subclasses define :meth:`check`.

    Attributes
    ----------
    optional : bool
        Whether it may be None, as a text "none", of whatever case.
    """

    optional: bool = False

    def read(self, name: str, given: object) -> Any:
        """The value for what was given from Python or stood in a JSON file; checked."""
        return None if given is None and self.optional else self.check(name, given)

    def parse(self, name: str, text: str) -> Any:
        """The value for a text."""
        if self.optional and _is_none(text):
            return None
        return self.check(name, self.said(name, text))

    def check(self, name: str, given: object) -> Any:
        """The value, or InvalidArgument."""
        raise NotImplementedError

    def said(self, name: str, text: str) -> object:
        """What a text says, before it is checked."""
        return text

    def write(self, value: Any) -> Json:
        """For a JSON file; :meth:`read` reads it."""
        return cast(Json, value)


# --- what a field may hold ------------------------------------------------------------------------


@dataclass(frozen=True)
class Count(Kind):
    """An integer from `least` to `most`."""

    least: int = 1
    optional: bool = False
    most: int = MOST_COUNT

    def check(self, name: str, given: object) -> int:
        return check_count(name, given, self.least, self.most)

    def said(self, name: str, text: str) -> object:
        return int(text) if _is_integer(text) else text


MOST = 1_000_000
ANY_COUNT = Count(optional=True)


@dataclass(frozen=True)
class Number(Kind):
    """A number that `holds`; `rule` says what that is, as "be finite"."""

    rule: str = "be finite"
    holds: Callable[[float], bool] = math.isfinite
    optional: bool = False

    def check(self, name: str, given: object) -> float:
        return check_number(name, given, self.rule, self.holds)

    def said(self, name: str, text: str) -> object:
        if _is_number_text(text):
            return float(text)
        raise InvalidArgument(f"{name} must {self.rule}, got {shown(text)}")


POSITIVE = Number("be a finite number > 0", lambda value: 0.0 < value < math.inf)
SHARE = Number("lie in [0, 1]", lambda value: 0.0 <= value <= 1.0)
NOT_NEGATIVE = Number("be a finite number >= 0", lambda value: 0.0 <= value < math.inf)


@dataclass(frozen=True)
class Is(Kind):
    """An instance of a class, or of one of a tuple; `allowed` says of which for messages."""

    cls: Any
    allowed: str
    optional: bool = False

    def check(self, name: str, given: object) -> Any:
        if isinstance(given, self.cls):
            return given
        raise InvalidArgument(f"{name} must be {self.allowed}, got {shown(given)}")


@dataclass(frozen=True)
class Function(Kind):
    """Something to be called, and not a class; `allowed` says of what."""

    allowed: str
    optional: bool = False

    def check(self, name: str, given: object) -> Any:
        if callable(given) and not isinstance(given, type):
            return given
        raise InvalidArgument(f"{name} must be {self.allowed}, got {shown(given)}")


@dataclass(frozen=True)
class Choice(Kind):
    """One of some names; `what` says of what."""

    what: str
    names: Iterable[str]
    optional: bool = False

    def check(self, name: str, given: object) -> str:
        return check_name(self.what, given, self.names)


@dataclass(frozen=True)
class Text(Kind):
    """Any text; "none" is None wherever it stands, if it is `optional`."""

    optional: bool = False

    def check(self, name: str, given: object) -> str | None:
        if not isinstance(given, str):
            raise InvalidArgument(f"{name} must be a text, got {shown(given)}")
        return None if self.optional and _is_none(given) else given


@dataclass(frozen=True)
class Switch(Kind):
    """True or false."""

    optional: bool = False

    def check(self, name: str, given: object) -> bool:
        if not isinstance(given, bool):
            allowed = "True, False or None" if self.optional else "True or False"
            raise InvalidArgument(f"{name} must be {allowed}, got {shown(given)}")
        return given

    def said(self, name: str, text: str) -> object:
        return check_name(name, text.lower(), ("true", "false")) == "true"


@dataclass(frozen=True)
class Listed(Kind):
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
            try:
                given = plain()
            except RuntimeError:  # a tensor without values, or one that is not dense
                raise InvalidArgument(f"{name} must hold values, got {shown(given)}") from None
        if isinstance(given, Sequence) and not isinstance(given, (bytes, bytearray)):
            if len(given) > MOST_EVALUATIONS:
                raise InvalidArgument(
                    f"{name} lists at most {MOST_EVALUATIONS:,} values, got {shown(given)}"
                )
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


@dataclass(frozen=True)
class Object(Kind):
    """A small object with a name, such as ``posterior:2:3``, or what else `others` may be.

    Attributes
    ----------
    what, allowed : str
        For messages: what it is, and all that may be given.
    heads : mapping
        Name to a class, or to (class, fields that the name stands for); to anything else if the
        name is itself the value. A registry is one.
    bare : type, optional
        The class whose first field is written in the place of a name.
    functions : bool
        Whether a function may stand in its place.
    resolve : callable, optional
        From anything else that may be given from Python to the value, or raises InvalidArgument;
        without it only instances of the classes may.
    numbers : Kind, optional
        Of a number, which may stand in the place of the object.
    """

    what: str
    allowed: str
    heads: Mapping[str, Any] = field(default_factory=dict)
    bare: type | None = None
    functions: bool = False
    resolve: Callable[[Any], Any] | None = None
    numbers: Kind | None = None
    optional: bool = False

    def read(self, name: str, given: object) -> Any:
        return self.parse(name, given) if isinstance(given, str) else super().read(name, given)

    def check(self, name: str, given: object) -> Any:
        if _is_number(given := plain(given)):
            if self.numbers is not None:
                return self.numbers.read(name, given)
            if self.bare is not None:
                return _named_for(name, self.bare, given)
        if any(isinstance(given, cls) for _, cls, _ in self.objects()):
            return given
        if self.functions and callable(given) and not isinstance(given, type):
            return given
        if self.resolve is not None:
            return self.resolve(given)
        raise InvalidArgument(f"{name} must be {self.allowed}, got {shown(given)}")

    def parse(self, name: str, text: str) -> Any:
        if self.optional and _is_none(text):
            return None
        if "<" in text:
            raise InvalidArgument(
                f"{name} = {text} was a function, which cannot be read back: give it again"
            )
        head, *parts = re.split(r":(?![^\[]*\])", text)
        if head in self.heads:
            if named := self._named(head):
                return _made(name, head, *named, parts)
            if not parts:
                return head
        elif _is_number_text(head):
            if self.numbers is not None and not parts:
                return self.numbers.parse(name, text)
            if self.bare is not None:
                return _made(name, self.what, self.bare, {}, [head, *parts])
        elif self.heads:
            hint = did_you_mean(head, [*self.heads, *["none"] * self.optional])
            raise UnknownName(f"unknown {self.what} {head!r}.{hint} {name} must be {self.allowed}")
        raise InvalidArgument(f"{name} must be {self.allowed}, got {shown(text)}")

    def write(self, value: Any) -> Json:
        if value is None or isinstance(value, str) or _is_number(value):
            return cast(Json, value)
        for head, cls, preset in self.objects():
            if type(value) is cls and all(getattr(value, k) == v for k, v in preset.items()):
                return ":".join(_told(value, head, preset))
        return spelled(value)

    def objects(self) -> Iterator[tuple[str, type, Mapping[str, Any]]]:
        """Name ("" for the bare one), class and settled fields of every object that it can be.

        One by one: the classes of a registry are loaded only as far as they are looked at.
        """
        if self.bare is not None:
            yield "", self.bare, {}
        for head in self.heads:
            if named := self._named(head):
                yield head, *named

    def _named(self, head: str) -> tuple[type, Mapping[str, Any]] | None:
        entry = self.heads[head]
        if isinstance(entry, type):
            return entry, {}
        return entry if isinstance(entry, tuple) else None


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
                f"{name}: {head} takes {', '.join(names) or 'nothing'}, got {shown(part)}"
            )
        if key in values:
            raise InvalidArgument(f"{name}: {key} is given twice in {':'.join([head, *parts])!r}")
        kind = taken[key].metadata.get("kind")
        values[key] = (
            _scalar(text, float if "float" in str(taken[key].type) else int)
            if kind is None
            else kind.parse(f"{name}: {key}", text.removeprefix("[").removesuffix("]"))
        )
    try:
        return _named_for(name, cls, **values)
    except InvalidArgument:
        raise
    except (TypeError, ValueError):
        told = ":".join([head, *parts])
        raise InvalidArgument(f"{name}: {told!r} has a value of the wrong type") from None


def _named_for(name: str, make: Callable[..., object], *values: Any, **given: Any) -> object:
    """What `make` makes, its refusals beginning with the name of what it is for."""
    try:
        return make(*values, **given)
    except InvalidArgument as error:
        raise type(error)(f"{name}: {error}") from None


def _told(value: Any, head: str, preset: Mapping[str, Any]) -> list[str]:
    """The parts of an object's text: its name or first field, and what is not as by default."""
    listed = [one for one in fields(value) if one.name not in preset]
    found = [head] if head else []
    for i, one in enumerate(listed):
        held, kind = getattr(value, one.name), one.metadata.get("kind")
        if held != _default(one) or not (found or i):
            text = spelled(held if kind is None else kind.write(held))
            text = f"[{text}]" if kind is not None and ":" in text else text
            found.append(text if i == 0 else f"{one.name}={text}")
    return found


def _scalar(text: str, whole: Callable[[str], Any]) -> Any:
    """A value by its looks; `whole` reads integers."""
    if "," in text:
        return tuple(_scalar(part, whole) for part in text.split(","))
    if (word := text.lower()) in ("none", "true", "false"):
        return {"none": None, "true": True, "false": False}[word]
    if _is_integer(text):
        return whole(text)
    return float(text) if _is_number_text(text) else text


def _is_none(text: str) -> bool:
    return text.lower() == "none"


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


def _quoted(text: str) -> str:
    """In quotes, if it would not be one word without."""
    return shlex.quote(text) if re.search(r"[\s'\"\\]", text) else text


def spelled(value: object) -> str:
    """A value of a field, or of its JSON form, as its text; what has none as ``<name>``."""
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        return ",".join(map(spelled, value)) + ("," if len(value) < 2 else "")
    if isinstance(value, bool) or value is None:
        return str(value).lower()
    if isinstance(value, Integral):
        return str(int(value))
    if isinstance(value, Real):
        return repr(float(value)).removesuffix(".0")
    name = getattr(value, "__name__", None) or re.sub(r" at 0x[0-9a-fA-F]+", "", repr(value))
    return f"<{name.strip('<>')}>"


# --- the objects ----------------------------------------------------------------------------------


def setting(default: Any, kind: Kind, unwritten: Any = MISSING) -> Any:
    """A field of a checked object; without a default if that is ``dataclasses.MISSING``.

    `unwritten` is what texts and JSON mean that do not name the field, where that is not what a
    call means: so a default may change, and what was written before it still says the same.
    """
    known = {} if unwritten is MISSING else {"unwritten": unwritten}
    return field(default=default, metadata={"kind": kind, **known})


class Checked:
    """Base of dataclasses whose fields made by :func:`setting` are read by their kinds when made.

    So every value is either right, and held as its kind holds it, or refused by its name.
    """

    def __new__(cls, *values: Any, **given: Any) -> Self:
        names = [one.name for one in fields(cast(Any, cls)) if one.init]
        for name in given:
            check_name(f"setting of {cls.__name__}", name, names)
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
            object.__setattr__(self, name, kind.read(self.called(name), getattr(self, name)))
        self.check()

    @classmethod
    def called(cls, name: str) -> str:
        """What errors call a field."""
        return f"{cls.__name__} {name}"

    def check(self) -> None:
        """Raise unless the fields, each right by itself, go together."""


@dataclass(frozen=True, repr=False)
class Settings(Checked):
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

    @classmethod
    def called(cls, name: str) -> str:
        return name

    @classmethod
    def completed(cls, given: Mapping[str, Any]) -> dict[str, Any]:
        """`given`, with the defaults that depend on it."""
        return dict(given)

    def differing(self) -> dict[str, Json]:
        """The fields that are not as by default, as JSON."""
        other = (one.name for one in fields(self) if getattr(self, one.name) != _default(one))
        return {name: kinds(type(self))[name].write(getattr(self, name)) for name in other}

    def written(self) -> dict[str, Json]:
        """The fields that a text or a file must name, as JSON."""
        left_out = {one.name: _default(one) for one in fields(self)} | _unwritten(type(self))
        other = (name for name, value in left_out.items() if getattr(self, name) != value)
        return {name: kinds(type(self))[name].write(getattr(self, name)) for name in other}

    def every(self) -> dict[str, Json]:
        """All fields, as JSON."""
        return {name: kind.write(getattr(self, name)) for name, kind in kinds(type(self)).items()}

    def as_json(self) -> dict[str, Json]:
        return {"type": self.word, "version": self.version, **self.written()}

    @classmethod
    def from_json(cls: type[S], data: Mapping[str, Any]) -> S:
        """Inverse of :meth:`as_json`.

        Raises
        ------
        InvalidArgument, UnknownName
            It is of another type or version, or does not hold what it should.
        """
        if not isinstance(data, Mapping):
            raise InvalidArgument(f"the settings {cls.word!r} must be an object, got {shown(data)}")
        given = dict(data)
        word, version = given.pop("type", cls.word), given.pop("version", 1)
        cls._check_head(word, version)
        check_known(cls, given)
        return cls(**{**_unwritten(cls), **given})

    @classmethod
    def parse(cls: type[S], text: str) -> S:
        """Inverse of `str`: the word, and ``name=value`` for what is not as by default."""
        text = str(Text().check("the text of settings", text))
        try:
            head, *parts = shlex.split(text) or [""]
        except ValueError as error:
            raise InvalidArgument(f"{error} in {shown(text)}") from None
        word, at, version = head.partition("@")
        cls._check_head(word, int(version) if _is_integer(version) else version if at else 1)
        given: dict[str, str] = {}
        for part in parts:
            name, equals, value = part.partition("=")
            if not equals:
                raise InvalidArgument(f"{part!r} must be NAME=VALUE in {shown(text)}")
            if name in given:
                raise InvalidArgument(f"{name} is given twice in {shown(text)}")
            given[name] = value
        return build(cls, {}, given, **_unwritten(cls))

    @classmethod
    def _check_head(cls, word: object, version: object) -> None:
        if word != cls.word or version != cls.version:
            raise InvalidArgument(
                f"expected the settings {cls.word!r} of version {cls.version}, "
                f"got {shown(word)} of version {shown(version)}"
            )

    def __str__(self) -> str:
        head = self.word if self.version == 1 else f"{self.word}@{self.version}"
        told = (f"{name}={spelled(value)}" for name, value in self.written().items())
        return " ".join([head, *map(_quoted, told)])

    def __repr__(self) -> str:
        names = self.differing()
        inside = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({inside})"


def kinds(cls: type[Any]) -> dict[str, Kind]:
    """The kind of every field that has one, by name."""
    return {one.name: one.metadata["kind"] for one in fields(cls) if "kind" in one.metadata}


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
        if is_dataclass(base):
            found |= _parameters(vars(base).get("__doc__") or "")
    held = {one.name for one in fields(cls)}
    return {name: told for name, told in found.items() if name in held}


@functools.cache  # every option of the command line asks again
def _parameters(docstring: str) -> Mapping[str, tuple[str, str]]:
    found: dict[str, tuple[str, str]] = {}
    text = inspect.cleandoc(docstring)
    section = re.search(r"^Parameters\n-+\n(.*?)(?=^\w[\w ]*\n-+\n|\Z)", text, re.S | re.M)
    if section is not None:
        entries = re.findall(r"^(\w[\w, ]*) : (.*)\n((?:    .*\n?|\n)*)", section[1] + "\n", re.M)
        for names, allowed, body in entries:
            told = allowed, " ".join(body.split())
            found |= {name.strip(): told for name in names.split(",")}
    return found


def defaults(cls: type[Any]) -> dict[str, Any]:
    """The default of every field that has one, by name."""
    found = {one.name: _default(one) for one in fields(cls)}
    return {name: value for name, value in found.items() if value is not MISSING}


def _default(one: Field[Any]) -> Any:
    if one.default_factory is not MISSING:
        return one.default_factory()
    return one.default


def _unwritten(cls: type[Any]) -> dict[str, Any]:
    """What files mean by leaving a field out, where that is not its default."""
    told = fields(cls)
    return {f.name: f.metadata["unwritten"] for f in told if "unwritten" in f.metadata}
