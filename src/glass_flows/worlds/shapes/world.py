"""The Shapes world: 32×32 scenes of circles, squares and triangles, and prompts that name them.

A :class:`Prompt` says what must be there ("a small red circle to the left of a blue square"), and
a scene drawn for it fills in the rest at random. Each quarter of the picture holds one object at
most, near its middle: a world that a network of a few million parameters learns in hours on a CPU.
The categories are those of GenEval (Ghosh et al. 2023, arXiv 2310.11513): single object, colours,
counting, two objects, position, attribution.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple, TypeVar

import numpy as np
from numpy.typing import NDArray

from ...errors import InvalidArgument, check_name, shown
from ...noise import check_seed

SIDE = 32
SHAPES = ("circle", "square", "triangle")
COLOURS = {
    "red": (225, 45, 45),
    "green": (40, 175, 65),
    "blue": (50, 90, 235),
    "yellow": (235, 205, 30),
}
BACKGROUNDS = {"black": (26, 26, 30), "white": (226, 226, 222)}
SIZES = {"small": (3.2, 3.8), "large": (5.0, 5.6)}  # radii in pixels
RELATIONS = {
    "left": "to the left of",
    "right": "to the right of",
    "above": "above",
    "below": "below",
}
OPPOSITE = {"left": "right", "right": "left", "above": "below", "below": "above"}
NUMBERS = {2: "two", 3: "three", 4: "four"}
SINGLE = ("single", "colours")
TWO = ("two", "position", "attribution")
MAX_WORDS = 12
"""A longer sentence is refused: the networks read no more."""
CATEGORIES = ("single", "colours", "counting", "two", "position", "attribution")

# A square's half side and a triangle's circumradius in units of the "radius", which makes the
# three shapes of one radius look equally large.
_HALF, _CIRCUM = 0.9, 1.3
# How far each shape reaches from its centroid: sideways, up, down; and its area (radius 1).
_REACH = np.array(
    [[1, 1, 1], [_HALF] * 3, [_CIRCUM * np.sqrt(3) / 2, _CIRCUM, _CIRCUM / 2]],
)
AREA = np.array([np.pi, 4 * _HALF**2, 3 * np.sqrt(3) / 4 * _CIRCUM**2])
_Y, _X = np.mgrid[0:SIDE, 0:SIDE] + 0.5
_JITTER = 0.7  # pixels from the middle of a quarter: large neighbours stay 2 pixels apart
_SALT = "of "  # with it no part is short of sentences of any category

Array = NDArray[np.float64]
T = TypeVar("T")


class Thing(NamedTuple):
    """What a prompt says of one object; None leaves it open."""

    shape: str
    colour: str | None = None
    size: str | None = None

    def words(self, plural: bool = False) -> str:
        noun = self.shape + ("s" if plural else "")
        return " ".join(w for w in (self.size, self.colour, noun) if w is not None)


class Placed(NamedTuple):
    """An object in a picture: centroid and radius in pixels, y downwards."""

    shape: str
    colour: str
    x: float
    y: float
    radius: float

    @property
    def size(self) -> str:
        return "small" if self.radius < (SIZES["small"][1] + SIZES["large"][0]) / 2 else "large"


@dataclass(frozen=True)
class Prompt:
    """A demand on a scene, and its sentence.

    Attributes
    ----------
    things : one or two :class:`Thing`
    count : int
        How many of the only thing, 1 to 4.
    relation : "left", "right", "above", "below" or None
        Where the first of two things lies, seen from the second.
    background : "black", "white" or None
    """

    things: tuple[Thing, ...]
    count: int = 1
    relation: str | None = None
    background: str | None = None

    @property
    def category(self) -> str:
        """One of :data:`CATEGORIES`."""
        if self.count > 1:
            return "counting"
        if len(self.things) == 1:
            return "single" if self.things[0].colour is None else "colours"
        if self.relation is not None:
            return "position"
        return "two" if all(t.colour is None for t in self.things) else "attribution"

    def __str__(self) -> str:
        if self.count > 1:
            text = f"{NUMBERS[self.count]} {self.things[0].words(plural=True)}"
        else:
            link = "and" if self.relation is None else RELATIONS[self.relation]
            text = f" {link} ".join(f"a {t.words()}" for t in self.things)
        return text if self.background is None else f"{text} on {self.background}"

    @property
    def wanted(self) -> tuple[Thing, ...]:
        """Every object that must be there."""
        return self.things * self.count

    @classmethod
    def parse(cls, text: str) -> Prompt:
        """The prompt that a sentence of this world spells.

        Raises
        ------
        InvalidArgument
            The sentence is not of this world, with an example of one that is, or too long.
        """
        words = " ".join(text.lower().replace(".", " ").split())
        if (length := len(words.split())) > MAX_WORDS:
            raise InvalidArgument(
                f"{shown(text)} has {length} words, and a prompt of the Shapes world at most "
                f"{MAX_WORDS}: leave out a size or the background"
            )
        match = _SENTENCE.fullmatch(words)
        if match is None:
            raise InvalidArgument(
                f"{shown(text)} is no prompt of the Shapes world. Write like 'a small red circle "
                "to the left of a blue square', 'three green triangles' or 'a large circle on "
                "white': "
                f"shapes {', '.join(SHAPES)}; colours {', '.join(COLOURS)}; sizes small, large; "
                "and, above, below, to the left of, to the right of; on black, on white"
            )
        found = match.groupdict()
        things = tuple(
            Thing(found[f"shape{n}"], found[f"colour{n}"], found[f"size{n}"])
            for n in ("", "1", "2")
            if found[f"shape{n}"]
        )
        count = {word: number for number, word in NUMBERS.items()}.get(found["number"], 1)
        relation = {words: name for name, words in RELATIONS.items()}.get(found["link"])
        return cls(things, count, relation, found["background"])


def _grammar() -> re.Pattern[str]:
    def one_of(names: Iterable[str]) -> str:
        return "|".join(names)

    def thing(n: str) -> str:
        size, colour = f"(?P<size{n}>{one_of(SIZES)})", f"(?P<colour{n}>{one_of(COLOURS)})"
        return f"(?:{size} )?(?:{colour} )?(?P<shape{n}>{one_of(SHAPES)})"

    many = f"(?P<number>{one_of(NUMBERS.values())}) {thing('')}s"
    links = one_of(("and", *RELATIONS.values()))
    pair = f"an? {thing('1')}(?: (?P<link>{links}) an? {thing('2')})?"
    return re.compile(f"(?:{many}|{pair})(?: on (?P<background>{one_of(BACKGROUNDS)}))?")


_SENTENCE = _grammar()


def sample_prompt(rng: np.random.Generator, category: str | None = None) -> Prompt:
    """A random prompt, of a category or of any.

    Raises
    ------
    UnknownName
        `category` is none of :data:`CATEGORIES`.
    """
    if category is None:
        category = str(rng.choice(CATEGORIES, p=(0.04, 0.06, 0.3, 0.1, 0.25, 0.25)))
    check_name("category", category, CATEGORIES)
    while len(str(prompt := _draw(rng, category)).split()) > MAX_WORDS:
        pass
    return prompt


def _one_of(rng: np.random.Generator, names: Iterable[T]) -> T:
    listed = list(names)
    return listed[int(rng.integers(len(listed)))]


def _draw(rng: np.random.Generator, category: str) -> Prompt:
    def thing(coloured: bool, sized: float) -> Thing:
        size = _one_of(rng, SIZES) if rng.random() < sized else None
        return Thing(_one_of(rng, SHAPES), _one_of(rng, COLOURS) if coloured else None, size)

    background = _one_of(rng, BACKGROUNDS) if rng.random() < 0.25 else None
    if category == "counting":
        some = thing(rng.random() < 0.7, 0.0)
        return Prompt((some,), int(rng.integers(2, 5)), None, background)
    if category in SINGLE:
        return Prompt((thing(category == "colours", 0.5),), 1, None, background)
    coloured = category == "attribution" or (category == "position" and rng.random() < 0.6)
    while True:
        things = thing(coloured, 0.25), thing(coloured, 0.25)
        # As in GenEval the two differ in every name they are given.
        if things[0].shape != things[1].shape and (
            not coloured or things[0].colour != things[1].colour
        ):
            break
    relation = _one_of(rng, RELATIONS) if category == "position" else None
    return Prompt(things, 1, relation, background)


def holds(part: str, prompt: Prompt) -> bool:
    """Whether a prompt belongs to "train" (80 % of all sentences), "tune" or "test" (10 % each).

    By a hash of the sentence: no sentence of "tune" or "test" is ever trained on.
    """
    check_name("part", part, ("train", "tune", "test"))
    tenth = zlib.crc32(f"{_SALT}{prompt}".encode()) % 10
    return part == ("tune" if tenth == 0 else "test" if tenth == 1 else "train")


def prompts(
    part: str, count: int, seed: int = 0, categories: Sequence[str] = CATEGORIES
) -> list[Prompt]:
    """`count` different prompts of a part, the categories in turn; the same for the same seed.

    A category with few sentences (there are only 27 of a single object without a colour) gives
    what it has, and the others go on.

    Raises
    ------
    UnknownName
        Of the part or a category.
    InvalidArgument
        The part does not hold so many.
    """
    rng = np.random.default_rng(check_seed(seed))
    left = list(categories)
    found: dict[Prompt, None] = {}
    while len(found) < count:
        if not left:
            raise InvalidArgument(
                f"the part {part!r} has no {count} prompts of {', '.join(categories)}: "
                f"only {len(found)} were found; ask for fewer, or for more categories"
            )
        for category in tuple(left):
            drawn = (sample_prompt(rng, category) for _ in range(2_000))
            new = next((p for p in drawn if holds(part, p) and p not in found), None)
            if new is None:
                left.remove(category)
            elif len(found) < count:
                found[new] = None
    return list(found)


def related(relation: str, x: float, y: float) -> bool:
    """Whether (x, y), seen from the origin, lies to the "left", "right", "above" or "below"."""
    right, down = {"left": (-1, 0), "right": (1, 0), "above": (0, -1), "below": (0, 1)}[relation]
    return right * x + down * y > abs(down * x) + abs(right * y)


def sample_scene(prompt: Prompt, rng: np.random.Generator) -> tuple[list[Placed], str]:
    """Objects that meet a prompt, each in a quarter of the picture of its own; and the background.

    Every quarter holds one object at most, near its middle, so objects touch neither each other nor
    the border, and keep a clear distance from every line that a judge draws (sizes, relations).
    """
    background = prompt.background or ("white" if rng.random() < 0.2 else "black")
    colour = _one_of(rng, COLOURS)  # one for all of a counted group
    scene = []
    for one, (column, row) in zip(prompt.wanted, _quarters(prompt, rng), strict=True):
        own = one.colour or colour
        if one.colour is None and prompt.count == 1:
            own = _one_of(rng, COLOURS)
        sizes = SIZES[one.size or _one_of(rng, SIZES)]
        if prompt.count > 1 and one.size is None:
            sizes = SIZES["small"]
        radius = rng.uniform(*sizes)
        _, up, down = _REACH[SHAPES.index(one.shape)] * radius
        x = (column + 0.5) * SIDE / 2 + rng.uniform(-_JITTER, _JITTER)
        y = (row + 0.5) * SIDE / 2 + (up - down) / 2 + rng.uniform(-_JITTER, _JITTER)
        scene.append(Placed(one.shape, own, float(x), float(y), float(radius)))
    return scene, background


def _quarters(prompt: Prompt, rng: np.random.Generator) -> list[tuple[int, int]]:
    """(column, row) of a different quarter for each object, as the relation wants them."""
    free = [(0, 0), (1, 0), (0, 1), (1, 1)]
    chosen = [free[i] for i in rng.permutation(4)[: len(prompt.wanted)]]
    if prompt.relation is not None:
        line = int(rng.integers(2))  # the row or column that both are in
        pair = [(0, line), (1, line)]
        if prompt.relation in ("above", "below"):
            pair = [(line, 0), (line, 1)]
        chosen = pair if prompt.relation in ("left", "above") else pair[::-1]
    return chosen


def coverage(shape: str, x: float, y: float, radius: float) -> Array:
    """How much of each pixel (32, 32) a shape covers, from its signed distance; in [0, 1]."""
    dx, dy = _X - x, _Y - y
    if shape == "circle":
        distance = np.hypot(dx, dy) - radius
    elif shape == "square":
        distance = np.maximum(np.abs(dx), np.abs(dy)) - _HALF * radius
    else:
        slope = np.sqrt(3) / 2
        sides = np.maximum(slope * np.abs(dx) - dy / 2, dy)
        distance = sides - _CIRCUM * radius / 2
    return np.clip(0.5 - distance, 0, 1)


def render(
    scene: Sequence[Placed], background: str, rng: np.random.Generator | None = None
) -> NDArray[np.uint8]:
    """The picture (32, 32, 3) of a scene; with `rng` its colours vary a little."""

    def vary(spread: float, *shape: int) -> Array:
        return np.zeros(shape) if rng is None else rng.uniform(-spread, spread, shape)

    image = np.full((SIDE, SIDE, 3), np.array(BACKGROUNDS[background]) + vary(6, 1))
    for one in scene:
        alpha = coverage(one.shape, one.x, one.y, one.radius)[..., None]
        image = image * (1 - alpha) + (np.array(COLOURS[one.colour]) + vary(6, 3)) * alpha
    return np.clip(image + 0.5, 0, 255).astype(np.uint8)


def contradictions(prompt: Prompt) -> dict[str, list[Prompt]]:
    """Prompts that are false of every scene of this one, by what of it they change.

    Another "shape", "colour", "size", "count", "background" or "relation" in one place; or colours
    that two things have "exchanged". For prompts as :func:`sample_prompt` gives them (either both
    things have a colour or none has); none is longer than the networks read.
    """
    found: dict[str, list[Prompt]] = {}

    def change(kind: str, values: Iterable[T], own: T, changed: Callable[[T], Prompt]) -> None:
        if own is not None:
            new = [changed(value) for value in values if value != own]
            found.setdefault(kind, []).extend(p for p in new if len(str(p).split()) <= MAX_WORDS)

    for i, one in enumerate(prompt.things):

        def told(name: str, value: str, i: int = i, one: Thing = one) -> Prompt:
            things = (*prompt.things[:i], one._replace(**{name: value}), *prompt.things[i + 1 :])
            return replace(prompt, things=things)

        change("shape", SHAPES, one.shape, partial(told, "shape"))
        change("colour", COLOURS, one.colour, partial(told, "colour"))
        change("size", SIZES, one.size, partial(told, "size"))
    if prompt.count > 1:
        change("count", NUMBERS, prompt.count, lambda n: replace(prompt, count=n))
    change("background", BACKGROUNDS, prompt.background, lambda b: replace(prompt, background=b))
    change("relation", RELATIONS, prompt.relation, lambda r: replace(prompt, relation=r))
    if len(prompt.things) == 2:
        one, two = prompt.things
        if one.colour != two.colour and one.shape != two.shape:
            things = one._replace(colour=two.colour), two._replace(colour=one.colour)
            found["exchanged"] = [replace(prompt, things=things)]
    return {kind: changed for kind, changed in found.items() if changed}


def contradict(prompt: Prompt, rng: np.random.Generator) -> Prompt:
    """One of the :func:`contradictions` of a prompt, every kind equally likely."""
    return _one_of(rng, _one_of(rng, contradictions(prompt).values()))
