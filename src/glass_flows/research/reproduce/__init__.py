"""The experiments of the GLASS paper, re-run: `glass-flows reproduce NAME`.

Each is described in one place (an :class:`Experiment`: the question, the cells, the table, the
plot, and what is to be said of it); all are run, kept and written by the same few functions.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path

from ...errors import check_name
from ...files import replace
from ...jobs.pictures import make_folder
from .base import Experiment, Result, Scale, kind_of, run_experiment
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
    kind = kind_of(given)
    for name in names:
        check_name("experiment", name, (ALL, *EXPERIMENTS))
    wanted = {name for name in names if name != ALL}
    if ALL in names:
        wanted |= {name for name, one in EXPERIMENTS.items() if kind in one.models}
    make_folder(out)
    found = {}
    for name, experiment in EXPERIMENTS.items():
        if name in wanted:
            announce(f"{name}: {experiment.title}")
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
    images = make_folder(target.with_suffix(""))
    full = given == Scale()
    names = " ".join(folders) if set(folders) != set(EXPERIMENTS) else ALL
    flags = " --quick" if given.quick else ""
    options = ("seed", "seed"), ("model", "model"), ("reward", "reward"), ("prompts", "prompts")
    for option, field in (*options, ("scale", "strength")):
        if getattr(given, field) != getattr(Scale(), field):
            flags += f" --{option} {getattr(given, field)}"
    flags += "".join(f" --also {name}" for name in given.also)
    lines = [
        "# Results",
        "",
        "The experiments of the GLASS paper "
        "([arXiv 2509.25170](https://arxiv.org/abs/2509.25170)), re-run at the scale of the "
        "bundled models. This page is written by",
        "",
        "```",
        f"glass-flows reproduce {names}{flags} --out FOLDER --page {target.name}",
        "```",
        "",
        "± is one standard error. What the paper reports is told in our words, of its own and far "
        "larger models; its numbers are not comparable with these.",
        "",
    ]
    for name, folder in folders.items():
        one = EXPERIMENTS[name]
        shutil.copyfile(folder / "plot.png", images / f"{name}.png")
        lines += [f"## {one.title}", "", one.asks, ""]
        lines += [f"![{one.title}]({images.name}/{name}.png)", ""]
        lines += [(folder / "table.md").read_text(encoding="utf-8").rstrip(), ""]
        lines += [f"**The paper.** {one.paper}", ""]
        if full and one.found:
            lines += [f"**Here.** {one.found}", ""]
        lines += [f"(`glass-flows reproduce {name}`)", ""]
    replace(target, ("\n".join(lines).rstrip() + "\n").encode())
    return target
