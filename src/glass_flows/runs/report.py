"""A page about runs: one HTML file that needs nothing else, from nowhere.

The template next to this file lays it out and escapes every text; here is what it draws. A sheet of
clean estimates is in the page once; its tiles are views of it.
"""

from __future__ import annotations

import base64
import io
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from PIL import Image

from ..errors import GlassError, InvalidArgument, RunFolderError
from ..files import render, replace
from ..steering import read_method
from .command import command_of
from .listing import clean, differences, expand, facts, figure, flat, names, rows
from .record import COSTS, Passed, RunRecord
from .result import best_first

MOST_RUNS = 24  # on a page
_MOST_POPULATIONS = 4
_MOST_PICTURES = 16
_MOST_IN_TREE = 128
_PICTURE = 384  # longest side of a final image on the page, in pixels
_LARGE = 768  # the same where there is one run
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

    def picture(self, population: int, slot: int, reward: float, what: str) -> Picture:
        """A particle's tile as a picture of its own."""
        view = self.view(population, slot)
        return Picture(reward, what, size=self.tile, sheet=self, view=view)


@dataclass(frozen=True)
class Picture:
    """A final image: a file of its own (`uri`), a tile of a sheet (`view`), or none of them."""

    reward: float
    what: str
    uri: str = ""
    pixelated: bool = False
    size: tuple[int, int] = (1, 1)
    sheet: Sheet | None = None
    view: str = ""
    also: Mapping[str, float] = field(default_factory=dict)
    accepted: bool | None = None

    @classmethod
    def of(
        cls, image: Image.Image | None, most: int, reward: float, what: str, **rest: Any
    ) -> Picture:
        """Of an image at most so large; of none only what is said of it."""
        if image is None:
            return cls(reward, what, **rest)
        pixelated = max(image.size) < _PIXELATED
        image.thumbnail((most, most))
        return cls(reward, what, _data_uri(image), pixelated, image.size, **rest)


def _sheets(run: RunRecord, prefix: str) -> dict[int, Sheet]:
    """By boundary, cut to the populations that are shown; without those that are missing."""
    P, N = run.populations, run.particles
    found = {}
    for passed in run.boundaries:
        image = run.estimates(passed.boundary)
        if image is None or image.width % N or image.height % P:
            continue
        tile = (image.width // N, image.height // P)
        image = image.crop((0, 0, image.width, min(P, _MOST_POPULATIONS) * tile[1]))
        name = f"{prefix}-{passed.boundary}"
        found[passed.boundary] = Sheet(name, _data_uri(image), image.width, image.height, tile)
    return found


def _pictures(run: RunRecord, p: int, sheets: dict[int, Sheet], most: int) -> Iterator[Picture]:
    """The images that came out, or the last clean estimates, best first."""
    kept = [sample for sample in run.samples[p] if sample.file] if run.samples else []
    if kept:
        order = best_first([sample.reward for sample in kept])
        for rank, sample in enumerate(kept[n] for n in order):
            name = sample.file or ""
            image = run.picture(name) if rank < _MOST_PICTURES else None
            also = {title: told[p][sample.particle] for title, told in run.also.items()}
            yield Picture.of(image, most, sample.reward, name, also=also, accepted=sample.accepted)
    elif run.chains:
        states, rewards = run.chains[p].states[-1], run.chains[p].rewards[-1]
        for n in best_first(rewards):
            k, slot = states[n]
            if sheet := sheets.get(k):
                yield sheet.picture(p, slot, rewards[n], f"chain {n}")
    elif run.boundary in sheets:
        sheet, rewards = sheets[run.boundary], run.boundaries[-1].rewards[p]
        for n in best_first(rewards):
            yield sheet.picture(p, n, rewards[n], f"particle {n}")


def _plain(run: RunRecord, p: int, most: int) -> Iterator[Picture]:
    """Those without steering, best first; none if none were drawn."""
    found = [one for one in run.plain[p] if one.file] if run.plain else []
    judged = (run.result or {}).get("populations", ())
    verdicts = judged[p].get("plain_accepted") if found else None
    order = best_first([one.reward for one in found])
    for n in order[:_MOST_PICTURES]:
        accepted = None if verdicts is None else bool(verdicts[n])
        one = found[n]
        name = one.file or ""
        yield Picture.of(run.picture(name), most, one.reward, name, accepted=accepted)


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
    """A family tree: two lines above each column, and what stands in its slots.

    `columns` are the boundaries that are shown, and `parents` of every slot the one in the column
    before.
    """

    told: str
    heads: list[tuple[str, str]]
    nodes: list[list[Node]]
    columns: list[int]
    parents: list[list[int]]


def _columns(run: RunRecord, p: int, sheets: Mapping[int, Sheet]) -> list[int]:
    """The boundaries at which there is something to see, and the last."""
    last = len(run.boundaries) - 1
    return [
        k
        for k, b in enumerate(run.boundaries)
        if k == last
        or b.boundary in sheets
        or b.resampled[p]
        or not all(map(math.isnan, b.rewards[p]))
    ]


def _parents(run: RunRecord, p: int, columns: Sequence[int]) -> list[list[int]]:
    found: list[list[int]] = [[]]
    for before, k in pairwise(columns):
        slots = list(range(run.particles))
        for passed in reversed(run.boundaries[before:k]):
            slots = [passed.ancestors[p][n] for n in slots]
        found.append(slots)
    return found


def _tree(run: RunRecord, p: int, sheets: Mapping[int, Sheet]) -> Tree:
    fates = _fates(run.boundaries, p)
    columns = _columns(run, p, sheets)
    again = ", ".join(str(b.boundary) for b in run.boundaries if b.resampled[p])
    told = [
        f"Family tree of {run.particles} particles at {len(columns)} boundaries.",
        f"Resampled at boundary {again}." if again else "Never resampled.",
        f"{run.particles - fates[0].count('lost')} of the {run.particles} first particles have "
        "descendants at the last boundary.",
    ]
    line = [str(fates[k].index("best")) for k in columns if "best" in fates[k]]
    told += [f"The best particle's slots: {', '.join(line)}."] if line else []
    heads, nodes = [], []
    for k in columns:
        b = run.boundaries[k]
        below = "samples" if b.final else "resampled" if b.resampled[p] else ""
        head = f"boundary {b.boundary}" if math.isnan(b.t) else f"t = {b.t:.2f}"
        heads.append((head, below))
        nodes.append(_slots(b, b.rewards[p], fates[k]))
    return Tree(" ".join(told), heads, nodes, columns, _parents(run, p, columns))


def _slots(b: Passed, rewards: Sequence[float], fates: Sequence[str]) -> list[Node]:
    ends = {"lost": ", no descendants", "best": ", an ancestor of the best"}
    ends |= {"best": ", the best"} if b.final else {}
    where = f"boundary {b.boundary}" if math.isnan(b.t) else f"t = {b.t:.3g}"
    found = []
    for n, (reward, fate) in enumerate(zip(rewards, fates)):
        told = "" if math.isnan(reward) else f", reward {figure(reward)}"
        found.append(Node(fate, f"slot {n} at {where}{told}{ends.get(fate, '')}", reward))
    return found


def lines_of_descent(run: RunRecord, p: int) -> dict[str, Any] | None:
    """Who descends from whom, small: `lines` and `dots` in pixels, each with a kind; None where
    nothing was ever resampled, or there are too many."""
    if not 0 < run.particles <= _MOST_IN_TREE or not run.boundaries:
        return None
    tree = _tree(run, p, {})
    if len(tree.columns) < 2:
        return None
    down = 12 if run.particles <= 32 else 6

    def at(j: int, n: int) -> tuple[int, int]:
        return 8 + 48 * j, 8 + down * n

    columns = range(1, len(tree.columns))
    lines = [
        (tree.nodes[j][n].kind, *at(j - 1, parent), *at(j, n))
        for j in columns
        for n, parent in enumerate(tree.parents[j])
    ]
    dots = [
        (node.kind, *at(j, n)) for j, row in enumerate(tree.nodes) for n, node in enumerate(row)
    ]
    width, height = at(len(tree.columns) - 1, run.particles - 1)
    return {
        "told": tree.told,
        "lines": sorted(lines, key=lambda line: ("lost", "alive", "best").index(line[0])),
        "dots": dots,
        "size": (width + 8, height + 8),
    }


def _tree_of_chains(run: RunRecord, p: int, sheets: Mapping[int, Sheet]) -> Tree:
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
    columns = list(range(len(nodes)))
    return Tree(" ".join(filter(None, told)), heads, nodes, columns, _parents(run, p, columns))


# --- charts -------------------------------------------------------------------------------------


@dataclass
class Chart:
    """A small chart over the boundaries; positions in its own units, 380 by 210.

    `lines` are kind, values and label, and `dots` kind, boundary, value and title. `at` are other
    places of the columns, and `names` what stands below them. `legend` says what the dots are.
    """

    title: str
    summary: str
    span: Sequence[float]
    lines: Sequence[tuple[str, Sequence[float], str]]
    dots: Sequence[tuple[str, int, float, str]] = ()
    at: Sequence[float] = ()
    names: Sequence[str] = ()
    legend: str = ""
    width, left, right, bottom, top = 380, 50, 334, 176, 14
    height = 210

    def __post_init__(self) -> None:
        if not any(math.isfinite(dot[2]) for dot in self.dots):
            self.legend = ""
        self.columns = len(self.lines[0][1])
        self.at = self.at or range(self.columns)
        self.names = self.names or [str(k) for k in range(self.columns)]
        self.low, self.high = min(self.span), max(self.span)
        if self.low == self.high:
            room = abs(self.low) / 10 or 0.5
            self.low, self.high = self.low - room, self.high + room

    @property
    def moves(self) -> bool:
        """Whether there is more than one value to see of any line."""
        return any(len(_finite(values)) > 1 for _, values, _ in self.lines)

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
    first = next((k for k, b in enumerate(run.boundaries) if _finite(b.rewards[p])), 0)
    rewards = [b.rewards[p] for b in run.boundaries[first:]]
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
        labels = [str(b.boundary) for b in run.boundaries[first:]]
        yield Chart(
            "reward", told, span, lines, particles, names=labels, legend="a dot for each particle"
        )
    yield from _charts_of_weights(run, p, "resampled")


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
        legend = "a dot for each accepted proposal"
        yield Chart(title, told, span, lines, proposals, spent, names, legend)
    if len(passed) > 1:
        accepted = [chains.acceptance(k) for k in range(1, len(passed))]
        times = [move.time for move in chains.moves[:-1]]
        told = f"Share accepted {_from_to(accepted)}; times noised to {_from_to(times)}."
        lines = [("best", accepted, "share"), ("mean", times, "t")]
        lines.sort(key=lambda line: -line[1][-1])  # labels stand below each other
        names, title = [str(k) for k in range(1, len(passed))], "share accepted over moves, and t"
        yield Chart(title, told, (0.0, 1.0), lines, names=names)
    yield from _charts_of_weights(run, p, "exchanged")


def _charts_of_weights(run: RunRecord, p: int, word: str) -> Iterator[Chart]:
    """ESS, with a dot where particles were resampled or exchanged, and log-evidence."""
    ess, N = [b.ess[p] for b in run.boundaries], run.particles
    if _finite(ess):  # searches have no weights
        again = [
            ("resampled", k, ess[k], f"{word} at ESS {figure(ess[k], 3)}")
            for k, b in enumerate(run.boundaries)
            if b.resampled[p]
        ]
        told = f"ESS {_from_to(ess)}, of {N}; dots where {word}."
        yield Chart(
            f"effective sample size, of {N}", told, (0.0, N), [("best", ess, "ESS")], again,
            legend=f"a dot where {word}",
        )  # fmt: skip
    evidence = [b.log_evidence[p] for b in run.boundaries]
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

    Of more than 24 runs there are pages, ``report.html``, ``report-2.html``, ..., of which the
    first lists all.

    Parameters
    ----------
    folders : sequence of path
        Runs, or folders that hold some. They may be going on or have failed.
    out : path
        The file.

    Returns
    -------
    Path
        The file, that of the first page.

    Raises
    ------
    RunFolderError
        There is no run, one is damaged, or the file cannot be written.
    InvalidArgument
        No folder is given.
    """
    runs = expand(folders)
    if not runs:
        raise InvalidArgument("give the folder of at least one run")
    return _write(runs, Path(out), names(runs))


def report_of(
    run: RunRecord,
    out: Path,
    plain: Sequence[Sequence[tuple[Image.Image, float]]] | None = None,
) -> Path:
    """:func:`write_report` of one run; `plain` are images without steering, by population."""
    most = range(_MOST_PICTURES)
    beside = [
        [Picture.of(image.copy(), _LARGE, reward, "") for (image, reward), _ in zip(row, most)]
        for row in plain or ()
    ]
    return _write([run], out, [""], beside)


def _write(
    runs: Sequence[RunRecord],
    out: Path,
    named: Sequence[str],
    beside: Sequence[Sequence[Picture]] = (),
) -> Path:
    count = -(-len(runs) // MOST_RUNS)
    files = [out, *(out.with_name(f"{out.stem}-{n}{out.suffix}") for n in range(2, count + 1))]
    pages = [file.name for file in files] if count > 1 else []
    found = []
    if pages:
        places = [(pages[i // MOST_RUNS], f"s{i}") for i in range(len(runs))]
        found = [(name, run, facts(run), *at) for name, run, at in zip(named, runs, places)]
    for number, file in enumerate(files):
        chosen = range(number * MOST_RUNS, min(len(runs), (number + 1) * MOST_RUNS))
        large = _LARGE if len(runs) == 1 else _PICTURE
        sides = [_side(runs[i], named[i], f"s{i}", large, beside) for i in chosen]
        text = render(
            Path(__file__).with_name("report.html.jinja"),
            {"clean": clean, "figure": figure, "finite": math.isfinite, "flat": flat},
            sides=sides,
            facts=list(dict.fromkeys(fact for side in sides for fact in side["facts"])),
            title=runs[0].heading if len(runs) == 1 else f"{len(runs)} runs",
            differences=differences([runs[i].job for i in chosen]),
            pages=pages,
            page=number,
            index=found if number == 0 else [],
        )
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            replace(file, text.encode())
        except OSError as error:
            raise RunFolderError(f"cannot write the report to {str(file)!r}: {error}") from error
    return out


def _side(
    run: RunRecord,
    name: str,
    prefix: str,
    large: int,
    beside: Sequence[Sequence[Picture]],
) -> dict[str, Any]:
    """All that is shown of one run."""
    sheets = _sheets(run, prefix)
    shown = range(min(run.populations, _MOST_POPULATIONS))
    prompts = [*run.prompts, *[""] * len(shown)] if run.populations > 1 else [""]
    drawn = 0 < run.particles <= _MOST_IN_TREE and run.boundaries
    tree, charts = (_tree_of_chains, _charts_of_chains) if run.chains else (_tree, _charts)
    trees = [tree(run, p, sheets) if drawn else None for p in shown]
    return {
        "run": run,
        "name": name,
        "id": prefix,
        "head": _head(run),
        "command": _options(command_of(run.job)),
        "facts": {fact: told for fact, told in facts(run).items() if told != "-"},
        "sheets": sheets,
        "tile": _tile_size(run.particles, sheets) if drawn else None,
        "populations": [
            {
                "place": p,
                "name": prompts[p],
                "pictures": list(_pictures(run, p, sheets, large)),
                "plain": list(beside[p] if beside else _plain(run, p, large)),
                "tree": one if one is not None and len(one.columns) > 1 else None,
                "charts": [one for one in charts(run, p) if one.moves],
                "rows": [] if math.isnan(run.figures["seconds"]) else rows(run, p),
            }
            for p, one in enumerate(trees)
        ],
        "most_pictures": _MOST_PICTURES,
    }


def _options(command: str | None) -> list[str]:
    """A command cut before its options, where lines may be broken."""
    found: list[str] = []
    for word in shlex.split(command or ""):
        if word.startswith("--") or not found:
            found.append(shlex.quote(word))
        else:
            found[-1] += f" {shlex.quote(word)}"
    return found


def _frames(run: RunRecord) -> Any:
    """Of a video, as far as it is said; else nothing."""
    if not run.videos:
        return None
    told = run.job.get("viewing")
    given = told.get("frames") if isinstance(told, Mapping) else None
    usual = "4, or all of a reward of videos, or as the reward itself says"
    return usual if given is None else given


def _head(run: RunRecord) -> dict[str, str]:
    """What a reader asks first, as far as the run says it."""
    job, costs = run.job, run.figures["costs"]
    told: dict[str, Any] = {
        "model": job.get("model") or job.get("pipeline"),
        "reward": job.get("reward") or ("the model's own" if "model" in job else None),
        "λ": None,
        "seed": job.get("seed", 0 if "model" in job else None),
        "frames scored": _frames(run),
        "method": run.method,
    }
    try:
        method = read_method(job["method"])
        scale: Any = method.scale
        told |= {"method": str(method), "λ": figure(scale) if isinstance(scale, float) else scale}
    except (GlassError, KeyError, TypeError, ValueError):  # of a caller of his own, or an old run
        pass
    spent = [f"{costs[name]:,} {told_as}" for name, told_as in COSTS.items() if costs.get(name)]
    if not math.isnan(run.figures["seconds"]):
        spent.append(f"{figure(run.figures['seconds'], 3)} s")
    told["cost"] = ", ".join(spent) or None
    if (strength := (run.result or {}).get("strength")) is not None:
        told |= {"λ": figure(strength["scale"]), "strength": strength["told"]}
    return {name: str(value) for name, value in told.items() if value is not None}
