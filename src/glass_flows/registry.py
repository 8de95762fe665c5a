"""Things by name, open to others.

A registry is a mapping of names to things of one kind. What is not ours is added from outside, in
either of two ways:

    POTENTIALS.register("mine", Potential(...))      # or a decorator: @RESAMPLERS.register("mine")

    [project.entry-points."glass_flows.potentials"]  # of an installed package
    mine = "my_package:potential"

Entry points are looked for once, when a name is asked for that is not known or when all names are
wanted, and loaded when they are used.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from importlib import metadata
from typing import Any, Generic, TypeVar

from .errors import InvalidArgument, shown

T = TypeVar("T")


class Registry(Mapping[str, T], Generic[T]):
    """Things by name.

    Parameters
    ----------
    what : str
        Of what, in the plural: the group of entry points is "glass_flows." and this.
    things : mapping
        Those that the library brings along.
    check : callable
        (name, thing) to the thing, or raises InvalidArgument: what may be registered.
    """

    def __init__(
        self,
        what: str,
        things: Mapping[str, T],
        check: Callable[[str, Any], T] = lambda name, thing: thing,
    ) -> None:
        self.what, self.check = what, check
        self._things = dict(things)
        self._waiting: dict[str, metadata.EntryPoint] | None = None

    def register(self, name: str, thing: Any = None) -> Any:
        """Add a thing under a name that is free; without `thing` a decorator.

        Raises
        ------
        InvalidArgument
            The name is taken, or no name, or the thing is not of this kind.
        """
        if thing is None:
            return lambda decorated: self.register(name, decorated)
        if not isinstance(name, str) or not name.isprintable() or set(name or " ") & set(" :,=<"):
            raise InvalidArgument(
                f"a name among the {self.what} is a text without spaces and :,=<, got {shown(name)}"
            )
        if name in self._things and self._things[name] is not thing:
            raise InvalidArgument(f"there is a {name!r} among the {self.what} already")
        self._things[name] = self.check(name, thing)
        return thing

    def _found(self) -> dict[str, metadata.EntryPoint]:
        """Entry points of installed packages that are not loaded yet."""
        if self._waiting is None:
            points = metadata.entry_points(group=f"glass_flows.{self.what}")
            self._waiting = {point.name: point for point in points}
        return self._waiting

    @property
    def loaded(self) -> Mapping[str, T]:
        """What is here: all but the entry points that nobody has asked for yet."""
        return self._things

    def load(self) -> None:
        """Load all entry points; one that cannot be says why when it is asked for by its name."""
        for name in self:
            with suppress(InvalidArgument):
                self[name]

    def __getitem__(self, name: str) -> T:
        if name not in self._things:
            point = self._found()[name]
            try:
                thing = point.load()
            except Exception as error:
                raise InvalidArgument(
                    f"{name!r} of the {self.what} is in the package's entry point "
                    f"{point.value!r}, which cannot be loaded: {error}"
                ) from error
            self._things[name] = self.check(name, thing)
        return self._things[name]

    def __iter__(self) -> Iterator[str]:
        yield from (ours := list(self._things))
        yield from (name for name in self._found() if name not in ours)

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __contains__(self, name: object) -> bool:
        return name in self._things or name in self._found()
