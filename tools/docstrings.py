"""For mkdocs, which reads the API from the sources (mkdocs.yml): docstrings as people see them."""

from __future__ import annotations

import inspect
import re
from typing import Any

import griffe


class Docstrings(griffe.Extension):
    """What a front's settings say of themselves, defaults of settings, and no marks of roles.

    A front's docstring has ``{settings}`` in the place of its settings: it is taken from the
    function, as `help` shows it. A setting's default stands in a call, ``setting(default, kind)``.
    """

    def on_instance(self, *, obj: griffe.Object, **rest: Any) -> None:
        if obj.docstring is None:
            return
        if "{settings}" in obj.docstring.value:
            try:
                told = griffe.dynamic_import(obj.path).__doc__
            except ImportError:  # of an extra that is not installed
                told = obj.docstring.value.replace("{settings}", "settings\n    See Settings.")
            obj.docstring.value = inspect.cleandoc(told)
        obj.docstring.value = re.sub(r":\w+:`~?\.?([^`]*)`", r"`\1`", obj.docstring.value)

    def on_attribute_instance(self, *, attr: griffe.Attribute, **rest: Any) -> None:
        value = attr.value
        if isinstance(value, griffe.ExprCall) and str(value.function) == "setting":
            attr.value = value.arguments[0]
