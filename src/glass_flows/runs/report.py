"""A page about runs: one HTML file that needs nothing else, from nowhere.

All that is drawn is laid out here, as numbers, and written by the template next to this file, which
escapes every text. A sheet of clean estimates is in the page once; its tiles are views of it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import jinja2
from PIL import Image

from ..errors import InvalidArgument, RunFolderError
from ..files import replace
from .listing import (
    COSTS,
    Passed,
    Seen,
    clean,
    differences,
    expand,
    figure,
    flat,
    look,
    names,
    position,
    rows,
)

__all__ = ["Lineage", "write_report"]

MOST_RUNS = 24
_MOST_POPULATIONS = 4
_MOST_PICTURES = 16
_MOST_IN_TREE = 128
_PICTURE = 384  # longest side of a final image on the page, in pixels
_PIXELATED = 40  # images with sides below this many pixels are shown as squares, not blurred
_SMALL = 20_000  # bytes; smaller pictures stay exact


# --- who descends from whom ---------------------------------------------------------------------


@dataclass(frozen=True)
class Lineage:
    """The particles of one population through the boundaries that were passed, a column for each.

    Attributes
    ----------
    parents : list of list of int
        For every column but the first the slot in the column before that each particle came from.
    alive : list of set of int
        The slots of each column that have descendants after the last.
    best : list of int
        The slot in each column of the line that leads to the highest reward at the last boundary;
        empty if no reward was taken there.
    """

    parents: list[list[int]]
    alive: list[set[int]]
    best: list[int]

    @classmethod
    def of(cls, boundaries: Sequence[Passed], population: int) -> Lineage:
        """Of at least one boundary."""
        last = boundaries[-1]
        parents = [b.ancestors[population] for b in boundaries[:-1]]
        alive = [set(last.ancestors[population])]
        for slots in reversed(parents):
            alive.insert(0, {slots[n] for n in alive[0]})
        rewards = last.rewards[population]
        valued = [n for n in sorted(alive[-1]) if not math.isnan(rewards[n])]
        best = [max(valued, key=rewards.__getitem__)] if valued else []
        for slots in reversed(parents if best else []):
            best.insert(0, slots[best[0]])
        return cls(parents, alive, best)

    def kind(self, column: int, slot: int) -> str:
        """ "best", "alive" or "lost"."""
        if self.best and self.best[column] == slot:
            return "best"
        return "alive" if slot in self.alive[column] else "lost"


# --- pictures -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class Sheet:
    """The clean estimates at one boundary, as it is in the page; sizes in its pixels."""

    name: str
    uri: str
    width: int
    height: int
    tile: tuple[int, int]

    @property
    def pixelated(self) -> bool:
        return max(self.tile) < _PIXELATED

    def view(self, population: int, slot: int) -> str:
        """The SVG viewBox of a particle's tile."""
        width, height = self.tile
        return f"{slot * width} {population * height} {width} {height}"


@dataclass(frozen=True)
class Picture:
    """A final image: a file of its own (`uri`), a tile of a sheet (`view`), or none of them."""

    reward: str
    alt: str
    uri: str = ""
    sheet: Sheet | None = None
    view: str = ""
    pixelated: bool = False
    aspect: str = "1 / 1"


def _sheets(seen: Seen, prefix: str) -> dict[int, Sheet]:
    """By boundary, cut to the populations that are shown; without those that are missing."""
    P, N = seen.record.populations, seen.record.particles
    found = {}
    for passed in seen.boundaries:
        file = seen.record.sheet(passed.boundary)
        image = None if file is None else _open(file)
        if image is None or image.width % N or image.height % P:
            continue
        tile = (image.width // N, image.height // P)
        image = image.crop((0, 0, image.width, min(P, _MOST_POPULATIONS) * tile[1]))
        name = f"{prefix}-{passed.boundary}"
        found[passed.boundary] = Sheet(name, _data_uri(image), image.width, image.height, tile)
    return found


def _pictures(seen: Seen, population: int, sheets: dict[int, Sheet]) -> list[Picture]:
    """The images that came out, or the last clean estimates, best first."""
    if population < len(seen.images) and seen.images[population]:
        return list(_from_files(seen, population))
    last = seen.boundary
    if last is None or last not in sheets:
        return []
    sheet, rewards = sheets[last], seen.boundaries[-1].rewards[population]
    order = sorted(range(len(rewards)), key=lambda n: _descending(rewards[n]))
    return [
        Picture(
            reward=figure(rewards[n]),
            alt=_alt(rank, rewards[n], f"particle {n}"),
            sheet=sheet,
            view=sheet.view(population, n),
            pixelated=sheet.pixelated,
            aspect=f"{sheet.tile[0]} / {sheet.tile[1]}",
        )
        for rank, n in enumerate(order)
    ]


def _from_files(seen: Seen, population: int) -> Iterator[Picture]:
    rewards = sorted(seen.rewards[population], key=_descending)
    for rank, (name, reward) in enumerate(zip(seen.images[population], rewards)):
        told, alt = figure(reward), _alt(rank, reward, name)
        image = _open(_inside(seen.record.folder, name)) if rank < _MOST_PICTURES else None
        if image is None:
            yield Picture(told, alt)
            continue
        pixelated, aspect = max(image.size) < _PIXELATED, f"{image.width} / {image.height}"
        image.thumbnail((_PICTURE, _PICTURE))
        yield Picture(told, alt, _data_uri(image), pixelated=pixelated, aspect=aspect)


def _alt(rank: int, reward: float, what: str) -> str:
    place = "best image" if rank == 0 else f"image {rank + 1}, best first"
    return f"{place}: {what}, reward {figure(reward)}"


def _descending(reward: float) -> float:
    return math.inf if math.isnan(reward) else -reward


def _inside(folder: Path, name: str) -> Path:
    """A file of the run; what lies elsewhere is none of its pictures."""
    file = (folder / name).resolve()
    return file if file.is_relative_to(folder.resolve()) else folder / "outside"


def _open(file: Path) -> Image.Image | None:
    """An image, or None where there is none that can be read."""
    try:
        with Image.open(file) as image:
            found: Image.Image = image.convert("RGB")
            return found
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None


def _data_uri(image: Image.Image) -> str:
    """Exact where that is small, else the smaller of PNG and JPEG."""
    content = {"png": io.BytesIO(), "jpeg": io.BytesIO()}
    image.save(content["png"], "PNG")
    image.save(content["jpeg"], "JPEG", quality=88, subsampling=0)
    sizes = {kind: len(held.getvalue()) for kind, held in content.items()}
    kind = "png" if sizes["png"] < _SMALL else min(sizes, key=sizes.__getitem__)
    return f"data:image/{kind};base64,{base64.b64encode(content[kind].getvalue()).decode()}"


# --- the family tree ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A particle at a boundary; its corner, in pixels."""

    id: str
    kind: str
    x: int
    y: int
    view: str
    sheet: Sheet | None
    reward: str
    title: str


@dataclass(frozen=True)
class Edge:
    """From a particle's ancestor to the particle, as an SVG path."""

    source: str
    target: str
    kind: str
    path: str


@dataclass(frozen=True)
class Tree:
    """Columns are boundaries, rows are slots; sizes in pixels."""

    width: int
    height: int
    tile: tuple[int, int]
    columns: list[tuple[int, str, str]]
    slots: list[tuple[int, str]]
    nodes: list[Node]
    edges: list[Edge]
    captions: bool
    summary: str


_LEFT, _TOP = 30, 46  # margins of a tree, for its labels


def _tree(seen: Seen, population: int, sheets: dict[int, Sheet]) -> Tree | None:
    """None where there is nothing to draw, or too much."""
    boundaries, N = seen.boundaries, seen.record.particles
    if not boundaries or N > _MOST_IN_TREE:
        return None
    family = Lineage.of(boundaries, population)
    captions = N <= 16
    width, height = tile = _tile_size(N, sheets)
    across, down = width + (44 if N <= 16 else 32), height + (20 if captions else 6)
    corner = [
        [(_LEFT + k * across, _TOP + n * down) for n in range(N)] for k in range(len(boundaries))
    ]
    nodes, edges = [], []
    for k, passed in enumerate(boundaries):
        sheet = sheets.get(passed.boundary)
        for n, reward in enumerate(passed.rewards[population]):
            kind, (x, y) = family.kind(k, n), corner[k][n]
            view = sheet.view(population, n) if sheet else ""
            told = "" if math.isnan(reward) else f", reward {figure(reward)}"
            fate = {"best": ", an ancestor of the best", "alive": "", "lost": ", no descendants"}
            if passed.final:
                fate["best"] = ", the best"
            title = f"slot {n} at t = {passed.t:.3g}{told}{fate[kind]}"
            shown = figure(reward, 3) if told else ""
            nodes.append(Node(f"{k}-{n}", kind, x, y, view, sheet, shown, title))
            if k == 0:
                continue
            parent = family.parents[k - 1][n]
            path = _curve(corner[k - 1][parent], (x, y), tile)
            edges.append(Edge(f"{k - 1}-{parent}", f"{k}-{n}", kind, path))
    # what is lost is drawn first, what leads to the best on top
    edges.sort(key=lambda edge: ("lost", "alive", "best").index(edge.kind))
    return Tree(
        width=_LEFT + len(boundaries) * across - (across - width) + 8,
        height=_TOP + N * down + 4,
        tile=tile,
        columns=[
            (corner[k][0][0] + width // 2, *_column(passed, population))
            for k, passed in enumerate(boundaries)
        ],
        slots=[(corner[0][n][1] + height // 2, str(n)) for n in range(N)],
        nodes=nodes,
        edges=edges,
        captions=captions,
        summary=_told(boundaries, population, family),
    )


def _tile_size(particles: int, sheets: dict[int, Sheet]) -> tuple[int, int]:
    """Of a tile in the tree, in pixels; smaller where there are many."""
    longest = next(
        size for most, size in ((8, 64), (16, 48), (32, 32), (128, 16)) if particles <= most
    )
    width, height = next((sheet.tile for sheet in sheets.values()), (1, 1))
    scale = longest / max(width, height)
    return max(4, round(width * scale)), max(4, round(height * scale))


def _curve(parent: tuple[int, int], child: tuple[int, int], tile: tuple[int, int]) -> str:
    (x0, y0), (x1, y1) = parent, child
    x0, middle = x0 + tile[0], tile[1] // 2
    half = (x0 + x1) / 2
    return f"M{x0} {y0 + middle}C{half:g} {y0 + middle} {half:g} {y1 + middle} {x1} {y1 + middle}"


def _column(passed: Passed, population: int) -> tuple[str, str]:
    what = "resampled" if passed.resampled[population] else ""
    return f"t = {passed.t:.2f}", "samples" if passed.final else what


def _told(boundaries: Sequence[Passed], population: int, family: Lineage) -> str:
    """A tree in words."""
    again = [str(b.boundary) for b in boundaries if b.resampled[population]]
    first, all_ = len(family.alive[0]), len(boundaries[0].ancestors[population])
    words = f"Family tree of {all_} particles at {len(boundaries)} boundaries. "
    words += f"Resampled at boundary {', '.join(again)}. " if again else "Never resampled. "
    words += f"{first} of the {all_} first particles have descendants at the last boundary."
    if family.best:
        words += f" The best particle's slots: {', '.join(map(str, family.best))}."
    return words


# --- charts -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Line:
    """Of a chart; `segments` are the points of the polylines."""

    kind: str
    segments: list[str]
    label: str = ""
    at: tuple[float, float] = (0.0, 0.0)


@dataclass(frozen=True)
class Dot:
    kind: str
    x: float
    y: float
    title: str


@dataclass
class Chart:
    """A small chart over the boundaries; positions in its own units, 380 by 210."""

    title: str
    columns: int
    low: float
    high: float
    summary: str = ""
    lines: list[Line] = field(default_factory=list)
    dots: list[Dot] = field(default_factory=list)

    width, height = 380, 210
    _left, _right, _top, _bottom = 50, 46, 14, 34

    def __post_init__(self) -> None:
        if self.low == self.high:
            room = abs(self.low) / 10 or 0.5
            self.low, self.high = self.low - room, self.high + room

    @property
    def bottom(self) -> int:
        return self.height - self._bottom

    @property
    def ends(self) -> tuple[int, int]:
        """Of the horizontal axis."""
        return self._left, self.width - self._right

    def x(self, column: int) -> float:
        left, right = self.ends
        return round(left + (right - left) * column / max(1, self.columns - 1), 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - self._top), 1)

    def ticks(self) -> list[tuple[float, str]]:
        """Heights and labels of round values."""
        step = _round_step((self.high - self.low) / 4)
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        values = [i * step for i in range(first, last + 1)]
        return [(self.y(value), f"{value:.6g}") for value in values]

    def add_line(self, kind: str, values: Sequence[float], label: str = "") -> None:
        """A value for each boundary; broken where there is none."""
        runs: list[list[str]] = [[]]
        drawn = [(self.x(k), self.y(v)) if math.isfinite(v) else None for k, v in enumerate(values)]
        for point in drawn:
            if point is None:
                runs.append([])
            else:
                runs[-1].append(f"{point[0]:g},{point[1]:g}")
        ends = [point for point in drawn if point is not None]
        segments = [" ".join(run) for run in runs if run]
        x, y = ends[-1] if ends else (0.0, 0.0)
        for other in self.lines:  # labels one below the other
            y = max(y, other.at[1] + 13) if abs(y - other.at[1]) < 13 else y
        self.lines.append(Line(kind, segments, label, (x, y)))

    def add_dot(self, kind: str, column: int, value: float, title: str) -> None:
        if math.isfinite(value):
            self.dots.append(Dot(kind, self.x(column), self.y(value), title))


def _round_step(rough: float) -> float:
    """The next 1, 2 or 5 times a power of ten."""
    power = 10.0 ** math.floor(math.log10(rough))
    return next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))


def _charts(seen: Seen, population: int) -> list[Chart]:
    """Rewards, ESS and log-evidence over the boundaries that were passed."""
    boundaries = seen.boundaries
    rewards = [b.rewards[population] for b in boundaries]
    finite = [r for row in rewards for r in row if math.isfinite(r)]
    charts = []
    if finite:
        chart = Chart("reward", len(boundaries), min(finite), max(finite))
        taken = [[r for r in row if math.isfinite(r)] for row in rewards]
        best = [max(row, default=math.nan) for row in taken]
        mean = [sum(row) / len(row) if row else math.nan for row in taken]
        for k, row in enumerate(rewards):
            for n, reward in enumerate(row):
                chart.add_dot("particle", k, reward, f"particle {n}: {figure(reward)}")
        chart.add_line("best", best, "best")
        chart.add_line("mean", mean, "mean")
        chart.summary = f"Best reward {_from_to(best)}, mean {_from_to(mean)}."
        charts.append(chart)
    ess = [b.ess[population] for b in boundaries]
    if any(map(math.isfinite, ess)):  # searches have no weights
        chart = Chart("effective sample size", len(boundaries), 0.0, float(seen.record.particles))
        chart.add_line("best", ess, "ESS")
        for k, passed in enumerate(boundaries):
            if passed.resampled[population]:
                chart.add_dot("resampled", k, ess[k], f"resampled at ESS {figure(ess[k], 3)}")
        chart.summary = f"ESS {_from_to(ess)}, of {seen.record.particles}; dots where resampled."
        charts.append(chart)
    evidence = [b.log_evidence[population] for b in boundaries]
    finite = [value for value in evidence if math.isfinite(value)]
    if finite:
        chart = Chart("log-evidence", len(boundaries), min(finite), max(finite))
        chart.add_line("best", evidence, "")
        chart.summary = f"Log-evidence {_from_to(evidence)}."
        charts.append(chart)
    return charts


def _from_to(values: Sequence[float]) -> str:
    known = [value for value in values if math.isfinite(value)]
    return f"from {figure(known[0])} to {figure(known[-1])}" if known else "not taken"


# --- the page -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class PopulationView:
    """One prompt of a run."""

    name: str
    pictures: list[Picture]
    more_pictures: int
    tree: Tree | None
    charts: list[Chart]
    rows: list[dict[str, str]]


@dataclass(frozen=True)
class Side:
    """All that is shown of one run."""

    name: str
    heading: str
    seen: Seen
    sheets: list[Sheet]
    populations: list[PopulationView]
    left_out: int
    facts: dict[str, str]
    settings: dict[str, str]
    versions: dict[str, str]


def write_report(folders: Sequence[str | Path], out: str | Path) -> Path:
    """Write one HTML file about runs, which asks for nothing from anywhere.

    Parameters
    ----------
    folders : sequence of path
        Runs, or folders that hold some, up to 24 in all. They may be going on or have failed.
    out : path
        The file.

    Raises
    ------
    RunFolderError
        There is no run, one is damaged, or the file cannot be written.
    InvalidArgument
        There are too many.
    """
    runs = expand(folders, MOST_RUNS)
    if not runs:
        raise InvalidArgument("give the folder of at least one run")
    sides = [
        _side(look(run), name, f"s{i}") for i, (run, name) in enumerate(zip(runs, names(runs)))
    ]
    environment = jinja2.Environment(
        loader=jinja2.PackageLoader("glass_flows.runs", "."),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["clean"] = clean
    text = environment.get_template("report.html.jinja").render(
        sides=sides,
        title=sides[0].heading if len(sides) == 1 else f"{len(sides)} runs",
        differences=differences([side.seen.record.job for side in sides]),
    )
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, text.encode())
    except OSError as error:
        raise RunFolderError(f"cannot write the report to {str(target)!r}: {error}") from error
    return target


def _side(seen: Seen, name: str, prefix: str) -> Side:
    record, figures = seen.record, seen.figures
    sheets = _sheets(seen, prefix)
    shown = min(record.populations, _MOST_POPULATIONS)
    prompts = [*record.prompts, *[""] * shown]
    populations = []
    for p in range(shown):
        pictures = _pictures(seen, p, sheets)
        populations.append(
            PopulationView(
                name=prompts[p] if record.populations > 1 else "",
                pictures=pictures[:_MOST_PICTURES],
                more_pictures=max(0, len(pictures) - _MOST_PICTURES),
                tree=_tree(seen, p, sheets),
                charts=_charts(seen, p) if seen.boundaries else [],
                rows=rows(seen.boundaries, p),
            )
        )
    known = not math.isnan(figures.ess)
    facts = {
        "best reward": figure(figures.best),
        "mean reward": figure(figures.mean),
        "ESS at the end": f"{figure(figures.ess, 3)} of {record.particles}" if known else "-",
        "log-evidence": figure(figures.log_evidence),
        "boundary": position(seen.boundary, record.transitions),
        **{told: f"{figures.costs[name]:,}" for name, told in COSTS.items() if figures.costs},
        "seconds": figure(figures.seconds),
    }
    return Side(
        name=name,
        heading=seen.heading,
        seen=seen,
        sheets=list(sheets.values()),
        populations=populations,
        left_out=record.populations - shown,
        facts=facts,
        settings=flat(record.job),
        versions=flat(record.versions),
    )
