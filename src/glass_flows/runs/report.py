"""A page about runs: one HTML file that needs nothing else, from nowhere.

The template next to this file lays it out and escapes every text; here is what it draws. A sheet of
clean estimates is in the page once; its tiles are views of it.
"""

from __future__ import annotations

import base64
import io
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import InvalidArgument, RunFolderError
from ..files import render, replace
from .listing import clean, differences, expand, facts, figure, flat, names, rows
from .record import Passed, RunRecord
from .result import best_first

__all__ = ["write_report"]

MOST_RUNS = 24
_MOST_POPULATIONS = 4
_MOST_PICTURES = 16
_MOST_IN_TREE = 128
_PICTURE = 384  # longest side of a final image on the page, in pixels
_PIXELATED = 40  # images with sides below this many pixels are shown as squares, not blurred
_SMALL = 20_000  # bytes; smaller pictures stay exact


def _fates(boundaries: Sequence[Passed], population: int) -> list[list[str]]:
    """Of each slot at each boundary: "lost" has no descendants after the last, "alive" has some.

    "best" is the line that leads to the highest reward at the last, if any was taken there.
    """
    last = boundaries[-1]
    alive, rewards = set(last.ancestors[population]), last.rewards[population]
    best = max(
        (n for n in sorted(alive) if not math.isnan(rewards[n])),
        key=rewards.__getitem__,
        default=None,
    )
    fates: list[list[str]] = []
    for k in reversed(range(len(boundaries))):
        slots = range(len(rewards))
        fates.insert(0, ["alive" if n in alive else "lost" for n in slots])
        if best is not None:
            fates[0][best] = "best"
        if k > 0:
            parents = boundaries[k - 1].ancestors[population]
            alive = {parents[n] for n in alive}
            best = None if best is None else parents[best]
    return fates


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

    reward: float
    what: str
    uri: str = ""
    pixelated: bool = False
    sheet: Sheet | None = None
    view: str = ""


def _sheets(run: RunRecord, prefix: str) -> dict[int, Sheet]:
    """By boundary, cut to the populations that are shown; without those that are missing."""
    P, N = run.populations, run.particles
    found = {}
    for passed in run.boundaries:
        file = run.sheet(passed.boundary)
        image = None if file is None else _open(file)
        if image is None or image.width % N or image.height % P:
            continue
        tile = (image.width // N, image.height // P)
        image = image.crop((0, 0, image.width, min(P, _MOST_POPULATIONS) * tile[1]))
        name = f"{prefix}-{passed.boundary}"
        found[passed.boundary] = Sheet(name, _data_uri(image), image.width, image.height, tile)
    return found


def _pictures(run: RunRecord, p: int, sheets: dict[int, Sheet]) -> Iterator[Picture]:
    """The images that came out, or the last clean estimates, best first."""
    kept = [sample for sample in run.samples[p] if sample.file] if run.samples else []
    if kept:
        order = best_first([sample.reward for sample in kept])
        for rank, sample in enumerate(kept[n] for n in order):
            name = sample.file or ""
            image = _open(_inside(run.folder, name)) if rank < _MOST_PICTURES else None
            if image is None:
                yield Picture(sample.reward, name)
                continue
            pixelated = max(image.size) < _PIXELATED
            image.thumbnail((_PICTURE, _PICTURE))
            yield Picture(sample.reward, name, _data_uri(image), pixelated)
    elif run.chains:
        states, rewards = run.chains[p].states[-1], run.chains[p].rewards[-1]
        for n in best_first(rewards):
            k, slot = states[n]
            if sheet := sheets.get(k):
                yield Picture(rewards[n], f"chain {n}", sheet=sheet, view=sheet.view(p, slot))
    elif run.boundary in sheets:
        sheet, rewards = sheets[run.boundary], run.boundaries[-1].rewards[p]
        for n in best_first(rewards):
            yield Picture(rewards[n], f"particle {n}", sheet=sheet, view=sheet.view(p, n))


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


def _tile_size(particles: int, sheets: dict[int, Sheet]) -> tuple[int, int]:
    """Of a tile in the tree, in pixels; smaller where there are many."""
    longest = next(
        size for most, size in ((8, 64), (16, 48), (32, 32), (128, 16)) if particles <= most
    )
    width, height = next((sheet.tile for sheet in sheets.values()), (1, 1))
    scale = longest / max(width, height)
    return max(4, round(width * scale)), max(4, round(height * scale))


# --- the tree ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Node:
    """A tile of the tree: what it is called, how it is drawn, and a figure below it."""

    kind: str
    title: str
    reward: float


@dataclass(frozen=True)
class Tree:
    """A family tree: two lines above each column, and what stands in its slots."""

    told: str
    heads: list[tuple[str, str]]
    nodes: list[list[Node]]


def _tree(run: RunRecord, p: int) -> Tree:
    fates = _fates(run.boundaries, p)
    again = ", ".join(str(b.boundary) for b in run.boundaries if b.resampled[p])
    told = [
        f"Family tree of {run.particles} particles at {len(fates)} boundaries.",
        f"Resampled at boundary {again}." if again else "Never resampled.",
        f"{run.particles - fates[0].count('lost')} of the {run.particles} first particles have "
        "descendants at the last boundary.",
    ]
    line = [str(column.index("best")) for column in fates if "best" in column]
    told += [f"The best particle's slots: {', '.join(line)}."] if line else []
    heads, nodes = [], []
    for k, b in enumerate(run.boundaries):
        below = "samples" if b.final else "resampled" if b.resampled[p] else ""
        heads.append((f"t = {b.t:.2f}", below))
        ends = {"lost": ", no descendants", "best": ", an ancestor of the best"}
        ends |= {"best": ", the best"} if b.final else {}
        nodes.append(
            [
                Node(
                    fate,
                    f"slot {n} at t = {b.t:.3g}"
                    + ("" if math.isnan(reward) else f", reward {figure(reward)}")
                    + ends.get(fate, ""),
                    reward,
                )
                for n, (reward, fate) in enumerate(zip(b.rewards[p], fates[k]))
            ]
        )
    return Tree(" ".join(told), heads, nodes)


def _tree_of_chains(run: RunRecord, p: int) -> Tree:
    """What each move proposed; what was rejected is dim, and the way to the best is marked."""
    chains = run.chains[p]
    fates, moves = chains.fates(), chains.moves
    again = ", ".join(str(b.boundary) for b in run.boundaries if b.resampled[p] and not b.final)
    shares = [f"{chains.acceptance(k):.0%}" for k in range(1, len(moves))]
    told = [
        f"{run.particles} chains and what {len(shares)} moves proposed.",
        f"Accepted: {', '.join(shares)}." if shares else "",
        f"Exchanged after move {again}." if again else "Never exchanged.",
    ]
    heads = [("given" if run.given else "drawn", "")]
    heads += [(f"t = {moves[k].time:.2f}", shares[k]) for k in range(len(shares))]
    nodes = []
    for k, column in enumerate(fates):
        where = f"move {k}, noised to {moves[k - 1].time:.3g}" if k else "the beginning"
        row = []
        for n, fate in enumerate(column):
            accepted, reward = moves[k].accepted[p][n], moves[k].proposed[p][n]
            what = ("accepted" if accepted else "rejected") if k else "begun with"
            title = f"chain {n}, {where}: reward {figure(reward)}, {what}"
            title += ", on the way to the best" if fate == "best" else ""
            row.append(Node(fate if accepted else f"{fate} rejected", title, reward))
        nodes.append(row)
    return Tree(" ".join(filter(None, told)), heads, nodes)


# --- charts -------------------------------------------------------------------------------------


class Chart:
    """A small chart over the boundaries; positions in its own units, 380 by 210.

    `lines` are kind, values and label, and `dots` kind, boundary, value and title. `at` are other
    places of the columns, and `names` what stands below them.
    """

    width, left, right, bottom, top = 380, 50, 334, 176, 14
    height = 210

    def __init__(
        self,
        title: str,
        summary: str,
        span: Sequence[float],
        lines: Sequence[tuple[str, Sequence[float], str]],
        dots: Sequence[tuple[str, int, float, str]] = (),
        at: Sequence[float] = (),
        names: Sequence[str] = (),
    ) -> None:
        self.title, self.summary, self.lines, self.dots = title, summary, lines, dots
        self.columns = len(lines[0][1])
        self.at = at or range(self.columns)
        self.names = names or [str(k) for k in range(self.columns)]
        self.low, self.high = min(span), max(span)
        if self.low == self.high:
            room = abs(self.low) / 10 or 0.5
            self.low, self.high = self.low - room, self.high + room

    def x(self, column: int) -> float:
        first, last = self.at[0], self.at[-1]
        share = (self.at[column] - first) / ((last - first) or 1)
        return round(self.left + (self.right - self.left) * share, 1)

    def y(self, value: float) -> float:
        share = (value - self.low) / (self.high - self.low)
        return round(self.bottom - share * (self.bottom - self.top), 1)

    def ticks(self) -> list[float]:
        """Round values: the next 1, 2 or 5 times a power of ten apart that gives up to five."""
        rough = (self.high - self.low) / 4
        power = 10.0 ** math.floor(math.log10(rough))
        step = next(m * power for m in (1, 2, 5, 10) if m * power >= rough * (1 - 1e-9))
        first, last = math.ceil(self.low / step), math.floor(self.high / step)
        return [i * step for i in range(first, last + 1)]


def _charts(run: RunRecord, p: int) -> Iterator[Chart]:
    """Rewards, ESS and log-evidence over the boundaries that were passed."""
    passed = list(enumerate(run.boundaries))
    rewards = [b.rewards[p] for _, b in passed]
    known = [_finite(row) for row in rewards]
    if span := [reward for row in known for reward in row]:
        best = [max(row, default=math.nan) for row in known]
        mean = [sum(row) / len(row) if row else math.nan for row in known]
        particles = [
            ("particle", k, reward, f"particle {n}: {figure(reward)}")
            for k, row in enumerate(rewards)
            for n, reward in enumerate(row)
        ]
        told = f"Best reward {_from_to(best)}, mean {_from_to(mean)}."
        lines = [("best", best, "best"), ("mean", mean, "mean")]
        yield Chart("reward", told, span, lines, particles)
    ess, N = [b.ess[p] for _, b in passed], run.particles
    if _finite(ess):  # searches have no weights
        again = [
            ("resampled", k, ess[k], f"resampled at ESS {figure(ess[k], 3)}")
            for k, b in passed
            if b.resampled[p]
        ]
        told = f"ESS {_from_to(ess)}, of {N}; dots where resampled."
        yield Chart("effective sample size", told, (0.0, N), [("best", ess, "ESS")], again)
    evidence = [b.log_evidence[p] for _, b in passed]
    if span := _finite(evidence):
        told = f"Log-evidence {_from_to(evidence)}."
        yield Chart("log-evidence", told, span, [("best", evidence, "")])


def _charts_of_chains(run: RunRecord, p: int) -> Iterator[Chart]:
    """Rewards over network evaluations, acceptance over moves; ESS and log-evidence."""
    chains, passed = run.chains[p], run.boundaries
    count = run.populations * run.particles
    spent = [b.costs.get("network_evaluations", 0) / count for b in passed]
    known = [_finite(row) for row in chains.rewards]
    mean = [sum(row) / len(row) if row else math.nan for row in known]
    proposals = [
        ("particle", k, reward, f"move {k}, chain {n}: {figure(reward)}, accepted")
        for k, move in enumerate(chains.moves)
        for n, (reward, ok) in enumerate(zip(move.proposed[p], move.accepted[p]))
        if ok
    ]
    if span := _finite([*chains.best, *mean, *(reward for _, _, reward, _ in proposals)]):
        told = f"Best reward {_from_to(chains.best)}, mean of the chains {_from_to(mean)}."
        lines = [("best", chains.best, "best"), ("mean", mean, "mean")]
        names, title = [f"{x:,.0f}" for x in spent], "reward over network evaluations of each chain"
        yield Chart(title, told, span, lines, proposals, spent, names)
    if len(passed) > 1:
        accepted = [chains.acceptance(k) for k in range(1, len(passed))]
        times = [move.time for move in chains.moves[:-1]]
        told = f"Share accepted {_from_to(accepted)}; times noised to {_from_to(times)}."
        lines = [("best", accepted, "share"), ("mean", times, "t")]
        lines.sort(key=lambda line: -line[1][-1])  # labels stand below each other
        names, title = [str(k) for k in range(1, len(passed))], "share accepted over moves, and t"
        yield Chart(title, told, (0.0, 1.0), lines, names=names)
    again = [
        ("resampled", k, b.ess[p], f"exchanged at ESS {figure(b.ess[p], 3)}")
        for k, b in enumerate(passed)
        if b.resampled[p]
    ]
    ess = [b.ess[p] for b in passed]
    told = f"ESS {_from_to(ess)}, of {run.particles}; dots where exchanged."
    yield Chart("effective sample size", told, (0.0, run.particles), [("best", ess, "ESS")], again)
    evidence = [b.log_evidence[p] for b in passed]
    if span := _finite(evidence):
        told = f"Log-evidence {_from_to(evidence)}."
        yield Chart("log-evidence", told, span, [("best", evidence, "")])


def _finite(values: Sequence[float]) -> list[float]:
    return [value for value in values if math.isfinite(value)]


def _from_to(values: Sequence[float]) -> str:
    known = _finite(values)
    return f"from {figure(known[0])} to {figure(known[-1])}" if known else "not taken"


# --- the page -----------------------------------------------------------------------------------


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
    sides = [_side(run, name, f"s{i}") for i, (run, name) in enumerate(zip(runs, names(runs)))]
    text = render(
        Path(__file__).with_name("report.html.jinja"),
        {"clean": clean, "figure": figure, "finite": math.isfinite, "flat": flat},
        sides=sides,
        facts=list(dict.fromkeys(fact for side in sides for fact in side["facts"])),
        title=runs[0].heading if len(runs) == 1 else f"{len(runs)} runs",
        differences=differences([run.job for run in runs]),
    )
    target = Path(out)
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        replace(target, text.encode())
    except OSError as error:
        raise RunFolderError(f"cannot write the report to {str(target)!r}: {error}") from error
    return target


def _side(run: RunRecord, name: str, prefix: str) -> dict[str, Any]:
    """All that is shown of one run."""
    sheets = _sheets(run, prefix)
    shown = range(min(run.populations, _MOST_POPULATIONS))
    prompts = [*run.prompts, *[""] * len(shown)] if run.populations > 1 else [""]
    drawn = 0 < run.particles <= _MOST_IN_TREE and run.boundaries
    tree, charts = (_tree_of_chains, _charts_of_chains) if run.chains else (_tree, _charts)
    return {
        "run": run,
        "name": name,
        "facts": facts(run),
        "sheets": sheets,
        "tile": _tile_size(run.particles, sheets) if drawn else None,
        "populations": [
            {
                "name": prompts[p],
                "pictures": list(_pictures(run, p, sheets)),
                "tree": tree(run, p) if drawn else None,
                "charts": list(charts(run, p)) if run.boundaries else [],
                "rows": rows(run, p),
            }
            for p in shown
        ],
        "most_pictures": _MOST_PICTURES,
    }
