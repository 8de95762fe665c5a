"""For mkdocs, which reads the API from the sources (mkdocs.yml): docstrings as people see them.

Docstrings are written for `help`. The site makes links of their roles, and griffe, which reads
their types, is told what it would read otherwise.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterator
from typing import Any

import griffe

ROLE = re.compile(r":\w+:`([^`]+)`")
_SECTION = re.compile(r"^(?=[A-Z][a-z ]+\n---)", re.MULTILINE)
_SHARED = re.compile(r"^(\w+(?:, \w+)+)( : .*)?\n((?: .*\n?|\n(?= ))+)", re.MULTILINE)
"""Several names and what is said of all of them."""


class Docstrings(griffe.Extension):
    """What a front's settings say of themselves, defaults of settings, types, and links for roles.

    A front's docstring has ``{settings}`` in the place of its settings: it is taken from the
    function, as `help` shows it. A setting's default stands in a call, ``setting(default, kind)``.
    """

    def on_attribute_instance(self, *, attr: griffe.Attribute, **rest: Any) -> None:
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "setting":
            default = value.arguments[0]
            attr.value = None if str(default) == "MISSING" else default

    def on_package(self, *, pkg: griffe.Module, **rest: Any) -> None:
        for obj in _objects(pkg):
            if obj.is_function:
                for parameter in obj.parameters:
                    parameter.default = _public(obj, parameter.default)
            if obj.docstring is not None:
                obj.docstring.value = linked(obj, typed(_told(obj)))


def _objects(obj: griffe.Object) -> Iterator[griffe.Object]:
    yield obj
    for member in obj.members.values():
        if not member.is_alias:
            yield from _objects(member)


def _told(obj: griffe.Object) -> str:
    text = obj.docstring.value
    if "{settings}" not in text:
        return text
    try:
        return inspect.cleandoc(griffe.dynamic_import(obj.path).__doc__)
    except ImportError:  # of an extra that is not installed
        return text.replace("{settings}", "settings\n    See Settings.")


def _public(obj: griffe.Object, default: Any) -> Any:
    """A default that has a name of its own, ``_SAMPLER = Sampler()``, as what it is."""
    own = obj.module.members.get(str(default)) if str(default).startswith("_") else None
    return default if own is None else own.value


def typed(text: str) -> str:
    """A docstring whose types griffe reads as they are meant.

    It gives all names of a line the type of the first: one name a line. "optional" is no type, and
    a default is no part of one. Alternatives with commas would be a tuple.
    """
    return "".join(map(_typed_section, _SECTION.split(text)))


def _typed_section(text: str) -> str:
    if text.startswith("Raises\n"):
        return re.sub(r"^\w+(, \w+)+$", lambda m: m[0].replace(", ", " | "), text, flags=re.M)
    if not text.startswith(("Parameters\n", "Attributes\n")):
        return text
    text = re.sub(r"^(\w+, .*) and the rest\n(.*)\.$", r"\1\n\2, as is the rest.", text, flags=re.M)
    text = re.sub(r"^([\w, ]+) : optional$", r"\1", text, flags=re.M)
    text = re.sub(r"^(\w+ : .*); by default (.*)$", r"\1, default: \2", text, flags=re.M)
    text = re.sub(r"^(\w+ : .*, [^,\n]*[^,\n]) or ", r"\1, or ", text, flags=re.M)
    return _SHARED.sub(_one_by_one, text)


def _one_by_one(found: re.Match[str]) -> str:
    names, kind, told = found.groups()
    return "".join(f"{name}{kind or ''}\n{told.rstrip()}\n" for name in names.split(", "))


def linked(obj: griffe.Object, text: str) -> str:
    """A docstring with its roles as links, where what they name stands on a page."""

    def link(found: re.Match[str]) -> str:
        name = found[1].lstrip("~").lstrip(".")
        shown = name.rpartition(".")[2] if found[1].startswith("~") else name
        path = _path(obj, name)
        code = f"<code>{shown}</code>"
        return f'<autoref optional identifier="{path}">{code}</autoref>' if path else f"`{shown}`"

    return ROLE.sub(link, text)


def _path(obj: griffe.Object, name: str) -> str | None:
    """Where what a docstring of `obj` calls `name` is defined."""
    first, dot, rest = name.partition(".")
    try:
        path = name if first == obj.package.path else obj.resolve(first) + dot + rest
        return obj.modules_collection[path].canonical_path
    except (griffe.NameResolutionError, griffe.AliasResolutionError, KeyError):
        return None
