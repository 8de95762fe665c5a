"""`glass-flows compare`, `reproduce`, `check`, `audit` and `train`: the research commands."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Set
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidArgument, check_count, check_number, shown
from ..jobs.spelling import Options
from ..research.contest import Contest
from ..research.distil_digits import distil_digits
from ..research.train_clip import train_clip
from ..research.train_digits import train_digits
from ..research.train_shapes import train_shapes
from ..runs.command import flag
from ..settings import MOST, build
from .options import (
    Model,
    Out,
    Seed,
    announce,
    command_for,
    print_page,
    print_table,
    say,
    with_settings,
)

train_app = typer.Typer(help="Train the small bundled models again.", no_args_is_help=True)
_PROMPTS = 120


@with_settings("contest", "batching", "loading", "call")
def compare(
    out: Out,
    options: Options,
    model: Annotated[
        str,
        typer.Option(
            help="'digits' or 'shapes' (bundled), 'shapes:FOLDER' for one that you trained; with "
            "--prompts any pipeline, by folder or hub id."
        ),
    ] = "digits",
    reward: Annotated[
        list[str],
        typer.Option(
            help="Digits: 'class:N' (default class:8), or 'class:all'; may be given several times. "
            "Shapes: 'clip' (default), or 'clip:FOLDER'. With --prompts any reward of `align`."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    prompts: Annotated[
        Path | None,
        typer.Option(help="Your own, in the formats of `batch`, for a model of your own."),
    ] = None,
    evaluations: Annotated[
        int, typer.Option(help="Network passes per particle, forward and backward together.")
    ] = 24,
    particles: Annotated[int, typer.Option(help="N, particles of a population.")] = 8,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Part of a method's name (digits); may be given several times."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Best-of-N, steering, refinement, guidance and search on the same seeds at equal cost.

    Every method's λ, scales and split of the evaluations are tuned by an independent judge on other
    seeds. Prints one table, and writes it with the figures and a picture into the folder. Given
    again, digits are drawn again; of other models what was drawn is kept.

    Example: glass-flows compare --reward class:8 --evaluations 24 --out out/compare

    Example: glass-flows compare --model shapes --count 120 --out out/shapes

    Example: glass-flows compare --model black-forest-labs/FLUX.1-dev --prompts prompts.txt --reward
    pickscore --scale 20 --out out/flux
    """
    from ..jobs.models import Digits, Shapes, resolve
    from ..research.compare import compare as compare_digits

    size = build(Contest, {}, options.contest)
    shared: dict[str, Any] = {"particles": particles, "seed": seed, "announce": announce}
    shared |= {"evaluations": evaluations}
    if prompts is not None:
        _refuse(options.contest, {"count", "scale"}, only, "with --prompts")
        _print_report(_compare_own(out, model, prompts, reward, size, shared, options))
        return
    if unused := [n for group in ("batching", "loading", "call") for n in vars(options)[group]]:
        raise InvalidArgument(f"{', '.join(map(flag, unused))}: only with --prompts; leave it out")
    found = resolve(model)
    where = f"for --model {model}"
    if isinstance(found, Shapes):
        _refuse(options.contest, {"count"}, only, where)
        report = _compare_shapes(out, reward, size.count or _PROMPTS, {"model": found, **shared})
    elif isinstance(found, Digits):
        _refuse(options.contest, {"populations", "tuning_populations"}, None, where)
        wanted = [f"class:{n}" for n in range(10)] if reward == ["class:all"] else reward
        report = compare_digits(
            out, model=found, rewards=wanted or ["class:8"], populations=size.populations,
            tuning_populations=size.tuning_populations, only=only or [], **shared,
        )  # fmt: skip
    else:
        raise InvalidArgument(
            f"`compare` knows digits and shapes, which have judges, got {model!r}; any other model "
            "takes --prompts FILE and --scale"
        )
    _print_report(report)


def _refuse(
    given: Mapping[str, object], allowed: Set[str], only: list[str] | None, where: str
) -> None:
    """Raise for options that were given, and are nothing here."""
    foreign = [flag(name) for name in given if name not in allowed] + ["--only"] * bool(only)
    if foreign:
        raise InvalidArgument(f"{', '.join(foreign)}: not {where}; leave it out")


def _compare_own(
    out: Path,
    model: str,
    file: Path,
    reward: list[str],
    size: Contest,
    shared: Mapping[str, Any],
    options: Options,
) -> Any:
    """On a model, prompts and a reward of the user's own."""
    from ..jobs.prompts import read_prompts
    from ..jobs.spelling import jobs_of
    from ..research.compare_own import compare_own

    if size.scale is None:
        raise InvalidArgument(
            "--prompts needs --scale, the λ of steering and refinement: some 2 to 8 over the "
            "spread of the reward between images of a prompt (see `batch --method best-of-n`)"
        )
    if len(reward) > 1:
        raise InvalidArgument(f"one --reward at a time with --prompts, got {len(reward)}")
    rest = dict(shared)
    found, jobs = jobs_of(model, ["plain"], options, reward="".join(reward), seed=rest.pop("seed"))
    entries = read_prompts(file, count=size.count)
    return compare_own(
        out, model=found, job=jobs["plain"], entries=entries, scale=size.scale, **rest
    )


def _compare_shapes(out: Path, reward: list[str], count: int, shared: dict[str, Any]) -> Any:
    from ..research.compare_shapes import compare_shapes

    model, transitions, evaluations = shared["model"], 6, shared.pop("evaluations")
    if len(reward) > 1:
        raise InvalidArgument(f"--model {model.name} takes one --reward, got {len(reward)}")
    if evaluations % transitions:
        raise InvalidArgument(f"--evaluations must be a multiple of {transitions}: {evaluations}")
    return compare_shapes(
        out, reward=(reward or [model.reward_name])[0], count=count,
        tuning_count=max(2, count // 4), transitions=transitions,
        steps=evaluations // transitions, **shared,
    )  # fmt: skip


def _print_report(report: Any) -> None:
    """The page that was written, and where."""
    print_page(report.table.read_text(encoding="utf-8"))
    typer.echo(f"table: {report.table}\nfigures: {report.results}\npicture: {report.picture}")
    if report.hacking is not None:
        typer.echo(f"reward against judge: {report.hacking}")


def reproduce(
    names: Annotated[
        list[str],
        typer.Argument(
            help="posterior, kernel, values, sampling, alignment, prompts, rho, settings, "
            "guidance, discrete, stability, or all."
        ),
    ],
    out: Out,
    quick: Annotated[
        bool, typer.Option("--quick", help="Every part small: does it run, not what comes out.")
    ] = False,
    model: Model = "digits",
    reward: Annotated[
        str | None, typer.Option(help="For pipelines, as in `glass-flows align`; clip.")
    ] = None,
    prompts: Annotated[
        Path | None,
        typer.Option(
            help="For pipelines: a file of prompts, GenEval's metadata (.jsonl), PartiPrompts "
            "(.tsv), a line each (.txt), or .csv; for DiT and SiT classes. Shapes has its own."
        ),
    ] = None,
    also: Annotated[
        list[str],
        typer.Option(help="A reward to measure on the images, too; may be given several times."),
    ] = [],  # noqa: B006 (typer copies it)
    scale: Annotated[
        float | None, typer.Option(help="λ for pipelines; 0.5, of the Shapes CLIP.")
    ] = None,
    page: Annotated[
        Path | None,
        typer.Option(help="Write one page about all of them into this Markdown file, too."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Re-run the experiments of the GLASS paper at the scale of the bundled models.

    Each writes table.csv, table.md and plot.png into a folder of its own. What was interrupted goes
    on where it was, to the same numbers. Alignment, rho, settings and guidance can be run on any
    model, the others look inside the digits.

    Example: glass-flows reproduce posterior values --out out/reproduce

    Example: glass-flows reproduce all --quick --out out/quick
    """
    from ..files import check_place
    from ..jobs.models import Digits, resolve
    from ..research.reproduce import Scale, write_page
    from ..research.reproduce import reproduce as run_reproduce

    found = resolve(model)
    given = {"reward": reward, "prompts": prompts, "also": also, "scale": scale}
    foreign = [name for name, value in given.items() if value is not None and value != []]
    if isinstance(found, Digits) and foreign:
        flags = ", ".join("--" + name for name in foreign)
        raise InvalidArgument(f"{flags}: for pipelines only; the digits have their classifiers")
    if scale is not None:
        check_number("--scale", scale, "be finite and not negative", lambda x: 0 <= x < math.inf)
    if page is not None and page.suffix != ".md":
        raise InvalidArgument(f"--page is a Markdown file, its name ends in .md: {str(page)!r}")
    chosen = Scale(seed, quick, model, reward or "clip", str(prompts or ""), scale, tuple(also))
    if page is not None:
        check_place(page)
    folders = run_reproduce(names, out, scale=chosen, announce=announce)
    for name, folder in folders.items():
        typer.echo(f"{name}: {folder / 'table.md'}, table.csv, plot.png")
    if page is not None:
        typer.echo(f"page: {write_page(folders, page, chosen)}")


def check(
    seed: Seed = 0,
    samples: Annotated[int, typer.Option(help="Draws behind each statistical line.")] = 20_000,
) -> None:
    """Compare the samplers with exact answers on a Gaussian mixture (under a minute)."""
    from ..research.check import checks

    failed = 0
    check_count("--samples", samples, least=2, most=MOST)
    for item in checks(seed, samples):
        verdict = "ok  " if item.passed else "FAIL"
        failed += not item.passed
        typer.echo(f"{verdict} {item.what}: {item.value:.3g} (limit {item.limit:g})")
    if failed:
        typer.echo(f"{failed} checks failed")
        raise typer.Exit(1)
    typer.echo("all checks passed")


def audit(
    sampler: Annotated[
        str,
        typer.Argument(
            help="'module:function' of your own, (denoiser, shape, steps, generator) to samples, "
            "or the class name of a diffusers scheduler."
        ),
    ],
    option: Annotated[
        list[str],
        typer.Option(
            help="NAME=VALUE (JSON or text), of the function, or of the scheduler's configuration "
            "and calls; may be given several times."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    transitions: Annotated[
        str, typer.Option(help="K, numbers with commas between them.")
    ] = "4,8,16,32,64",
    samples: Annotated[int, typer.Option(help="At each K; a multiple of 20.")] = 20_000,
    path: Annotated[
        str | None,
        typer.Option(
            help="Of the denoiser that a function is given: 'linear' (without it), 'cosine', "
            "'variance_preserving' or 'edm'."
        ),
    ] = None,
    tolerance: Annotated[
        float, typer.Option(help="Of errors that last, relative to standard deviations.")
    ] = 0.02,
    out: Annotated[
        Path | None,
        typer.Option(help="Folder for table, figures and picture; made if it is missing."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Audit anybody's sampler on data whose answers are exact: what is wrong, and how much.

    The exit status is 1 if something is. A function's code is run: name only your own.

    Example: glass-flows audit EulerAncestralDiscreteScheduler

    Example: glass-flows audit DDIMScheduler --option eta=1 --out out/audit
    """
    from contextlib import nullcontext

    from ..folders import alone
    from ..jobs.spelling import read_arguments
    from ..research.audit import audit as run_audit
    from ..research.writing import blank_plot

    with nullcontext() if out is None else alone(out):
        if out is not None:
            blank_plot()  # is there something to draw it with?
        found = run_audit(
            sampler, transitions=_counts(transitions), samples=samples, path=path,
            options=read_arguments(option, "--option"), tolerance=tolerance, seed=seed,
        )  # fmt: skip
        print_table(*found.table, found.name)
        say(found.legend)
        for line in (*found.verdict, *found.notes):
            say(line)
        if out is not None:
            typer.echo("\n".join(f"{name}: {file}" for name, file in found.save(out).items()))
    if not found.right:
        raise typer.Exit(1)


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and len(part) < 10 for part in parts):
        raise InvalidArgument(f"--transitions must be numbers as '4,8,16', got {shown(text)}")
    return [int(part) for part in parts]


TRAINERS: dict[str, tuple[Callable[..., object], str]] = {
    "digits": (train_digits, "weights and model card"),
    "digits-turbo": (distil_digits, "weights"),
    "shapes": (train_shapes, "pipeline"),
    "clip": (train_clip, "model"),
}
"""By name the function, and what it writes."""
for name, (function, written) in TRAINERS.items():
    train_app.command(name)(command_for(function, f"train {name}", written))
