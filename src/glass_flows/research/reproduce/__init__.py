"""The experiments of the GLASS paper, re-run: `glass-flows reproduce NAME`.

Each is described in one place (an :class:`Experiment`: the question, the cells, the table, the
plot, and what is to be said of it); all are run, kept and written by the same few functions.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import check_name
from ...files import replace
from ...folders import alone, alone_in_out
from ...jobs.pictures import make_folder
from ..writing import write_markdown
from .base import Experiment, Result, Scale, model_of, run_experiment
from .exact import KERNEL, STABILITY, VALUES
from .networks import DISCRETE, POSTERIOR, SAMPLING
from .steered import ALIGNMENT, GUIDANCE, PROMPTS, RHO, SETTINGS

__all__ = ["ALL", "EXPERIMENTS", "Experiment", "Result", "Scale", "reproduce", "write_page"]

ALL = "all"
EXPERIMENTS = {
    one.name: one
    for one in (
        POSTERIOR,
        KERNEL,
        VALUES,
        SAMPLING,
        ALIGNMENT,
        PROMPTS,
        RHO,
        SETTINGS,
        GUIDANCE,
        DISCRETE,
        STABILITY,
    )
}
"""By name, in the order of the page."""


@alone_in_out
def reproduce(
    names: Sequence[str],
    out: str | os.PathLike[str],
    *,
    scale: Scale | None = None,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
) -> dict[str, Path]:
    """Run experiments by name; the folder of each, with table.csv, table.md and plot.png.

    Parameters
    ----------
    names : sequence of str
        Of :data:`EXPERIMENTS`; "all" stands for every one that the model can run.
    out : path
        Everything that was computed is kept there: an interrupted run goes on where it was.

    Raises
    ------
    UnknownName
        There is no such experiment.
    InvalidArgument, MissingExtra, NonFinite
        As of :func:`run_experiment`.
    """
    given = scale or Scale()
    model_of(given.model)  # refuses what it does not know, before anything is written
    for name in names:
        check_name("experiment", name, (ALL, *EXPERIMENTS))
    wanted = {name for name in names if name != ALL}
    if ALL in names:
        wanted |= {name for name, one in EXPERIMENTS.items() if one.runs_on(given.model)}
    make_folder(out)
    found = {}
    for name, experiment in EXPERIMENTS.items():
        if name in wanted:
            announce(f"{name}: {experiment.says['title']}")
            run_experiment(experiment, Path(out), given, progress)
            found[name] = Path(out) / name
    return found


def write_page(
    folders: dict[str, Path], file: str | os.PathLike[str], scale: Scale | None = None
) -> Path:
    """One page in Markdown of experiments that were run; their plots go into a folder beside it.

    What is said of the results was written for full runs on the digits with seed 0 and is left out
    of any other page.
    """
    target = Path(file)
    given = scale or Scale()
    command = [*folders] if set(folders) != set(EXPERIMENTS) else [ALL]
    command += ["--quick"] if given.quick else []
    options = {"seed": "seed", "model": "model", "reward": "reward", "prompts": "prompts"}
    for option, field in {**options, "scale": "strength"}.items():
        if getattr(given, field) != getattr(Scale(), field):
            command.append(f"--{option} {getattr(given, field)}")
    command += [f"--also {name}" for name in given.also]
    told = []
    with alone(target.with_suffix("")) as images:
        for name, folder in folders.items():
            replace(images / f"{name}.png", (folder / "plot.png").read_bytes())
            table = (folder / "table.md").read_text(encoding="utf-8").rstrip()
            told.append({"name": name, "table": table, **EXPERIMENTS[name].says})
        return write_markdown(
            target,
            "results",
            command=" ".join(command),
            name=target.name,
            images=images.name,
            experiments=told,
            full=given == Scale(),
        )
