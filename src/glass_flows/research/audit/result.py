"""What an audit found: rows, verdict, table and picture."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from ...files import replace, written
from ...folders import alone
from ...measures import Measure
from ..writing import blank_plot, markdown, write_json
from .figures import ratio_of
from .laws import SPREADS
from .verdict import Fault, order, references

_HEAD = ("K", "evals", "left", *(f"s={s:g}" for s in SPREADS), "mean", "cov", "energy", "inputs")


@dataclass(frozen=True)
class Row:
    """What came out at one K.

    Attributes
    ----------
    transitions : int
        K.
    evaluations : float
        Of the network, for a sample.
    figures : mapping
        By name, each zero for an exact sampler.
    marginals : tuple
        Of the network's inputs in their order: α/σ, then noise at the point and the standard
        deviation of each spread over exact ones.
    """

    transitions: int
    evaluations: float
    figures: Mapping[str, Measure]
    marginals: tuple[tuple[float, ...], ...] = ()

    def worst(self, *starts: str) -> Measure | None:
        """The largest of the figures whose names start so."""
        own = [m for name, m in self.figures.items() if name.startswith(starts)]
        return max(own, key=lambda m: abs(m.value), default=None)


@dataclass(frozen=True)
class Audit:
    """What an audit found.

    Attributes
    ----------
    name : str
    rows : tuple of Row
        One for each K.
    faults : tuple of Fault
        What is wrong, causes first; empty for a right sampler.
    notes : tuple of str
        What was not looked at.
    tolerance, level : float
    samples, seed : int
    """

    name: str
    rows: tuple[Row, ...]
    faults: tuple[Fault, ...]
    notes: tuple[str, ...]
    tolerance: float
    level: float
    samples: int
    seed: int

    @property
    def right(self) -> bool:
        return not self.faults

    @property
    def verdict(self) -> tuple[str, ...]:
        """A line for each thing that is wrong, or one that says that the sampler is right."""
        if self.faults:
            return tuple(map(str, self.faults))
        last = self.rows[-1]
        figures = {row.transitions: row.figures for row in self.rows}
        names = [n for n in last.figures if n.startswith(("std ", "modes std "))]
        worst = max((last.figures[n] for n in names), key=lambda m: abs(m.value))
        falls = order(figures, names)
        speed = "" if falls is None else f", errors fall as K^-{falls:.1f}"
        return (
            f"right: no error above {self.tolerance:g} lasts; at K = {last.transitions} standard "
            f"deviations are within {abs(worst.value):.2g} ± {worst.error:.1g} of exact{speed}",
        )

    @property
    def table(self) -> tuple[tuple[str, ...], list[tuple[str, ...]]]:
        """Head and lines of the table: one line for each K."""
        return _HEAD, [_line(row) for row in self.rows]

    @property
    def legend(self) -> str:
        """What the columns of the table are."""
        error = self.rows[-1].figures[f"std {SPREADS[0]:g}"].error
        return (
            "evals: network evaluations of a sample; left: standard deviation of the samples of a "
            f"point; s=...: standard deviation over exact, of Gaussian data (± {error:.1g}); mean: "
            "largest error of a mean, in standard deviations; cov: of a covariance, over standard "
            "deviations; energy: distance of a mixture's samples to exact ones, relative; inputs: "
            "largest error of signal or noise of the network's inputs, of a point, against the "
            f"time told. {self.samples:,} samples."
        )

    @property
    def text(self) -> str:
        """The audit as a page of Markdown."""
        head, lines = self.table
        found = "\n".join(f"- {line}" for line in (*self.verdict, *self.notes))
        return f"# Audit of {self.name}\n\n{found}\n\n{markdown(head, lines)}\n{self.legend}\n"

    def save(self, folder: str | Path) -> dict[str, Path]:
        """Write audit.md, audit.json and audit.png into the folder; their places by name."""
        picture = blank_plot()  # before anything is written
        with alone(folder) as place:
            files = {
                "table": place / "audit.md",
                "figures": place / "audit.json",
                "picture": place / "audit.png",
            }
            replace(files["table"], self.text.encode())
            write_json(files["figures"], {**asdict(self), "verdict": self.verdict})
            _draw(picture, self)
            replace(files["picture"], written(partial(picture.savefig, dpi=120)))
        return files


def _line(row: Row) -> tuple[str, ...]:
    figures = row.figures
    return (
        f"{row.transitions}",
        f"{row.evaluations:g}",
        f"{figures['noise left'].value:.3f}",
        *(f"{ratio_of(figures[f'std {s:g}'].value):.3f}" for s in SPREADS),
        _signed(row.worst("mean ", "modes mean ")),
        _signed(row.worst("correlation", "modes correlation")),
        f"{figures['energy distance'].value:.4f}",
        _signed(row.worst("input signal", "input noise")),
    )


def _signed(found: Measure | None) -> str:
    return "-" if found is None else f"{found.value:+.3f}"


def _draw(figure: Any, one: Audit) -> None:
    """Standard deviations over K; inputs of the network along the way."""
    ends, way = figure.subplots(1, 2)
    counts = [row.transitions for row in one.rows]
    for spread in SPREADS:
        values = [row.figures[f"std {spread:g}"] for row in one.rows]
        ends.errorbar(
            counts, [ratio_of(v.value) for v in values],
            [2 * v.error * min(ratio_of(v.value), 1.0) for v in values], fmt="o-",
            markersize=3.5, capsize=2, linewidth=1.2, label=f"s = {spread:g}",
        )  # fmt: skip
    ends.axhspan(1 - one.tolerance, 1 + one.tolerance, color="0.9", zorder=0)
    ends.set(xscale="log", xticks=counts, xticklabels=counts, xlabel="K",
             ylabel="standard deviation / exact", title="samples")  # fmt: skip
    ends.minorticks_off()
    ends.legend(fontsize="small")
    shown_at = references(counts)[0]
    marginals = next(row.marginals for row in one.rows if row.transitions == shown_at)
    looks = {"a point": "black", **{f"s = {s:g}": f"C{i}" for i, s in enumerate(SPREADS)}}
    for i, (name, color) in enumerate(looks.items(), start=1):
        points = sorted((line[0] / (1 + line[0]), line[i]) for line in marginals)
        if points:
            way.plot(*zip(*points, strict=True), "o-", color=color, markersize=3, label=name)
            way.legend(fontsize="small")
    way.axhspan(1 - one.tolerance, 1 + one.tolerance, color="0.9", zorder=0)
    way.set(xlabel="α/(α + σ) of the time told", title=f"inputs of the network, K = {shown_at}")
    figure.suptitle(f"{one.name}: {'right' if one.right else one.faults[0].kind}", fontsize=10)
