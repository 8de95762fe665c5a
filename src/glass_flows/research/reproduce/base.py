"""An experiment is a list of cells; a cell is a piece of work with a name and a result.

Each cell's result is kept in a file of its own as soon as it is there, and its random numbers
depend on nothing but its own settings. So an experiment that was interrupted at any moment goes on
where it was and ends with the same numbers, and a cell can be looked up or thrown away by hand.
"""

from __future__ import annotations

import csv
import hashlib
import io
import json
import math
import platform
import time
import tomllib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, lru_cache, partial
from pathlib import Path
from statistics import fmean, stdev
from typing import Any, TypeVar, Union

import torch

from ... import __version__
from ...errors import InvalidArgument, NonFinite, WeightsFileError
from ...files import replace, written
from ...jobs import Model, resolve
from ...jobs.models import Digits
from ...jobs.pictures import make_folder
from ...measures import Measure
from ...progress import progress_bar
from ...stops import keep
from ..writing import blank_plot, key_of, markdown, write_json

Value = Union[str, int, float]
Settings = dict[str, Value]
Found = dict[str, Union[Value, Measure]]
Work = Callable[[], Found]
T = TypeVar("T")
_ERROR = " error"  # `x error` is the standard error of the result `x`


@dataclass(frozen=True)
class Cell:
    """A piece of an experiment.

    Attributes
    ----------
    settings : dict
        What it is; no two cells of an experiment have the same.
    work : () -> results by name
        Numbers, or :class:`Measure` with their standard errors.
    """

    settings: Settings
    work: Work


@dataclass(frozen=True)
class Result:
    """What a cell found; ``result[name]`` is a setting or a value.

    Attributes
    ----------
    settings : dict
    values : dict
        Numbers, or text; the standard error of `x` is `x error`.
    """

    settings: Settings
    values: dict[str, Value]

    def __getitem__(self, name: str) -> Any:
        return self.settings[name] if name in self.settings else self.values[name]

    def error(self, name: str) -> float:
        """The standard error of a value; 0 where it has none."""
        return float(self.values.get(name + _ERROR, 0.0))


@dataclass(frozen=True)
class Scale:
    """How an experiment is run.

    Attributes
    ----------
    seed : int
    quick : bool
        A tenth of the work or less: does it run, not what comes out.
    model : str
        See :func:`glass_flows.jobs.resolve`.
    reward : str
        For models other than the digits: the one that is steered towards.
    also : tuple of str
        Rewards that are measured, too.
    prompts : str
        A file of them, for pipelines; that of the Shapes world has its own.
    strength : float or None
        λ for pipelines; 0.5 by default, of the CLIP of the Shapes world.
    """

    seed: int = 0
    quick: bool = False
    model: str = "digits"
    reward: str = "clip"
    prompts: str = ""
    strength: float | None = None
    also: tuple[str, ...] = ()

    def identity(self) -> dict[str, Any]:
        """What results depend on: of the file of prompts its content, not its name."""
        found = dict(vars(self))
        if not self.also:  # as before there were any
            del found["also"]
        if self.prompts:
            try:
                content = Path(self.prompts).read_bytes()
            except OSError as error:
                raise InvalidArgument(
                    f"cannot read the prompts in {self.prompts!r}: {error}"
                ) from error
            found["prompts"] = hashlib.sha256(content).hexdigest()
        return found

    def of(self, full: T, quick: T) -> T:
        """A size, or what to go over, by how much time there is."""
        return quick if self.quick else full


@lru_cache(maxsize=2)
def model_of(name: str) -> Model:
    """The model of a name, which is loaded once for all experiments."""
    return resolve(name)


def digits_of(scale: Scale) -> Digits:
    """The digits, for experiments that look inside them."""
    model = model_of(scale.model)
    if not isinstance(model, Digits):
        raise InvalidArgument(f"expected digits, got the model {scale.model!r}")
    return model


@dataclass(frozen=True)
class Column:
    """A column of the printed table: `title`, and how a result is written ("{:.2f}")."""

    name: str
    title: str
    form: str = "{:.3g}"
    factor: float = 1.0


@dataclass(frozen=True)
class Experiment:
    """One experiment; what the page says of it stands in ``templates/experiments.toml``.

    Attributes
    ----------
    name : str
    cells : (Scale, folder) -> list of Cell
        `folder` is where an experiment may keep what its cells share.
    columns : tuple of Column
    draw : (results, figure) -> None
        The plot, into a matplotlib figure.
    across : str or None
        A setting whose values become columns, each with the first of `columns`. The others name
        the rows of the printed table.
    pool : tuple of str
        Settings over whose values results are averaged in the printed table and the plot (the
        file of numbers keeps them apart).
    pipelines : bool
        Whether it can be run on one, too.
    """

    name: str
    cells: Callable[[Scale, Path], list[Cell]]
    columns: tuple[Column, ...]
    draw: Callable[[list[Result], Any], None]
    across: str | None = None
    pool: tuple[str, ...] = ()
    pipelines: bool = False

    def runs_on(self, model: str) -> bool:
        """Whether it can be run on the model of this name."""
        return self.pipelines or isinstance(model_of(model), Digits)

    @property
    def says(self) -> dict[str, str]:
        """Its "title" and the paragraphs "asks", "paper" and "found"."""
        return {part: " ".join(text.split()) for part, text in _texts()[self.name].items()}

    def printed(self, results: list[Result]) -> str:
        """The table in Markdown."""
        pooled = average(results, self.pool)
        names = [name for name in pooled[0].settings if name != self.across]
        rows: dict[tuple[str, ...], dict[str, str]] = {}
        for one in pooled:
            row = rows.setdefault(tuple(shown(one[name]) for name in names), {})
            if self.across is None:
                row |= {column.title: _entry(one, column) for column in self.columns}
            else:
                row[shown(one[self.across])] = _entry(one, self.columns[0])
        ends = list(dict.fromkeys(end for row in rows.values() for end in row))
        titles = list(ends)
        if self.across is not None:
            titles[0] = f"{self.columns[0].title}, {self.across} = {ends[0]}"
        lines = [[*key, *(row.get(end, "") for end in ends)] for key, row in rows.items()]
        return markdown([*names, *titles], lines)


@cache
def _texts() -> dict[str, dict[str, str]]:
    file = Path(__file__).parent.parent / "templates" / "experiments.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def shown(value: Value) -> str:
    """A setting for people."""
    return f"{value:g}" if isinstance(value, float) else str(value)


def _entry(result: Result, column: Column) -> str:
    value = result.values.get(column.name, "")
    if isinstance(value, str):
        return value
    text = column.form.format(column.factor * value)
    if error := result.error(column.name):
        text += f" ± {column.form.format(column.factor * error)}"
    return text


def average(results: list[Result], over: Sequence[str]) -> list[Result]:
    """Results averaged over settings; text is left out.

    Errors are those of independent results, or where results have none, of their spread.
    """
    if not over:
        return results
    groups: dict[tuple[Any, ...], list[Result]] = {}
    for one in results:
        key = tuple((name, value) for name, value in one.settings.items() if name not in over)
        groups.setdefault(key, []).append(one)
    pooled = []
    for key, group in groups.items():
        values: dict[str, Value] = {}
        for name in group[0].values:
            found = [one.values[name] for one in group]
            if name.endswith(_ERROR):
                values[name] = math.sqrt(sum(float(v) ** 2 for v in found)) / len(group)
            elif not any(isinstance(v, str) for v in found):
                numbers = [float(v) for v in found]
                values[name] = fmean(numbers)
                if name + _ERROR not in group[0].values and len(group) > 1:
                    values[name + _ERROR] = stdev(numbers) / math.sqrt(len(group))
        pooled.append(Result(dict(key), values))
    return pooled


def run_experiment(
    experiment: Experiment,
    out: str | Path,
    scale: Scale,
    progress: bool | None = None,
) -> list[Result]:
    """Run what is missing of an experiment; write ``table.csv``, ``table.md`` and ``plot.png``.

    Raises
    ------
    InvalidArgument
        `out` cannot be written, or the experiment does not know such a model.
    MissingExtra
        matplotlib, scikit-learn or what the model needs is not installed.
    NonFinite
        A result is NaN or infinite, with the cell named.
    """
    if not experiment.runs_on(scale.model):
        raise InvalidArgument(
            f"the experiment {experiment.name!r} looks inside the digits network and exact "
            f"mixtures, and cannot be run on {scale.model!r}; leave --model out"
        )
    plot = blank_plot()
    weights = model_of(scale.model).weights(scale.reward)
    folder = make_folder(Path(out) / experiment.name)
    kept = make_folder(folder / "cells")
    cells = experiment.cells(scale, folder)
    shared = {"experiment": experiment.name, "scale": scale.identity(), "weights": weights}
    results = []
    with progress_bar(len(cells), progress, experiment.name) as advance:
        for cell in cells:
            values = _values(cell, shared, kept)
            results.append(Result(cell.settings, values))
            advance()
            keep("cells", f"{len(results)} of {len(cells)} cells of {experiment.name!r}")
    experiment.draw(average(results, experiment.pool), plot)
    drawn = written(partial(plot.savefig, dpi=100, metadata={"Software": None}))
    replace(folder / "plot.png", drawn)
    _write(experiment, results, folder, scale)
    return results


def _values(cell: Cell, shared: Mapping[str, Any], folder: Path) -> dict[str, Value]:
    """What a cell found: from its file, or by its work; `shared` is what all cells depend on."""
    identity = {**shared, **cell.settings}
    file = folder / f"{key_of(identity)}.json"
    if file.exists():
        try:
            found: dict[str, Value] = json.loads(file.read_text(encoding="utf-8"))["values"]
            return found
        except (ValueError, KeyError) as error:
            raise WeightsFileError(
                f"{str(file)!r} is damaged ({error}); delete it, and it is computed again"
            ) from error
    before = time.perf_counter()
    values: dict[str, Value] = {}
    for title, value in cell.work().items():
        if isinstance(value, Measure):
            values |= {title: value.value, title + _ERROR: value.error}
        else:
            values[title] = value
    for title, value in values.items():
        if isinstance(value, float) and not math.isfinite(value):
            raise NonFinite(f"{shared['experiment']}, {cell.settings}: {title} is {value}")
    seconds = time.perf_counter() - before
    write_json(file, {**identity, "values": values, "seconds": seconds})
    return values


def _write(experiment: Experiment, results: list[Result], folder: Path, scale: Scale) -> None:
    bare = [{**one.settings, **one.values} for one in results]
    names = list(dict.fromkeys(name for row in bare for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, names, lineterminator="\n")
    writer.writeheader()
    writer.writerows(bare)
    replace(folder / "table.csv", text.getvalue().encode())
    replace(folder / "table.md", experiment.printed(results).encode())
    about = {
        **vars(scale),
        "glass_flows": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }
    write_json(folder / "about.json", about)
