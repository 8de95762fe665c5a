"""`glass-flows align`, `sample` and `batch`: drawing images."""

from __future__ import annotations

from copy import copy
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from ..errors import InvalidArgument, check_count
from ..jobs.spelling import Options
from .options import Model, Out, Reward, Seed, announce, print_page, print_table, say, with_settings

_MOST_IMAGES = 10_000  # in one picture
Budget = Annotated[
    str | None,
    typer.Option(
        help="A time (90s, 2min) or a number of network evaluations (2000): particles, transitions "
        "and steps are chosen for it after a short measurement (pipelines), and told."
    ),
]


def _told_default(option: Any, default: str) -> Any:
    """An option that is None where it is not given, with the default that is then meant."""
    held = copy(option.__metadata__[0])
    held.show_default = default
    return held


@with_settings("job", "held_out", "method", "sampler", "batching", "loading", "viewing", "call")
def align(
    out: Out,
    options: Options,
    model: Annotated[str | None, _told_default(Model, "digits")] = None,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="May be given several times. DiT and SiT: a class; digits: a digit."),
    ] = None,
    reward: Reward = None,
    method: Annotated[
        str | None,
        typer.Option(
            show_default="steering; with --budget also refine, if it is worth more",
            help="'steering' (sequential Monte Carlo), 'twist' (the same with twisted noise), the "
            "searches 'beam', 'greedy' and 'svdd', 'refine' (moves on clean samples), or "
            "'best-of-n' and 'plain' (of the ODE, unless --rho is given).",
        ),
    ] = None,
    budget: Budget = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away another run in the folder.")
    ] = False,
    seed: Annotated[int | None, _told_default(Seed, "0")] = None,
) -> None:
    """Steer samples towards a reward.

    The digits are drawn beside plain samples and best-of-N at equal cost. A pipeline's images are
    written with prompt, reward and settings inside, beside a sheet with the best first; those of
    the bundled pipeline 'shapes' are judged by image analysis, too. The folder is that of a run:
    stopped and started again, a pipeline goes on where it was, and `glass-flows report` draws it.
    Under torchrun the particles of a pipeline are dealt out to all processes.

    Example: glass-flows align --model digits --reward class:8 --out out/eights

    Example: glass-flows align --model shapes --prompt "two blue squares" --out out/squares

    Example: glass-flows align --model shapes --prompt "two blue squares" --method refine
    --init out/squares/000-00.png --out out/better

    Example: glass-flows align --model FOLDER --prompt "a cat" --reward mine:sharpness --out out/cat

    Example: glass-flows align --again out/squares/000-00.png --particles 16 --out out/more
    """
    from ..jobs.again import Wish, repeated
    from ..jobs.models import Digits
    from ..jobs.spelling import able, jobs_of
    from ..runs.command import command_of
    from ..runs.listing import clean

    again = options.job.get("again")
    wish = Wish(model, tuple(prompt or ()), reward, method, seed, budget, options)
    wish = wish if again is None else repeated(again, wish)
    model = "digits" if wish.model is None else wish.model
    methods = ["steering" if wish.method is None else wish.method]
    if budget is not None and wish.method is None:
        methods = able(("steering", "refine"), wish.options)
    found, jobs = jobs_of(
        model, methods, wish.options, announce, prompts=wish.prompts,
        reward=wish.reward or "", seed=wish.seed or 0, budget=budget, **wish.of_job(),
    )  # fmt: skip
    job = jobs[methods[0]]
    if again is not None:
        announce(f"again: {clean(command_of(job.as_json(), str(out)) or job.title)}")
    if not isinstance(found, Digits):
        _align_images(found, list(jobs.values()), out, budget, overwrite)
        return
    if budget is not None:
        raise InvalidArgument(f"--budget: only for a diffusers pipeline; --model is {found.name!r}")
    twist, count = "twist" in wish.options.method, wish.options.job.get("populations", 256)
    _align_digits(found, job, methods[0], count, twist, out, overwrite)


def _align_digits(
    model: Any, job: Any, method: str, populations: int, twist: bool, out: Path, overwrite: bool
) -> None:
    """Compare, and print the table."""
    from dataclasses import replace

    from ..jobs.align import compare_digits
    from ..jobs.spelling import twisted

    reward = job.reward if job.reward or job.prompts else "class:8"
    job = replace(job, populations=populations, reward=reward)
    methods = twisted(job.method, model.sigma_data, twist) or (
        {method: job.method} if method not in ("plain", "best-of-n") else {}
    )
    report = compare_digits(
        job, out, model=model, methods=methods, overwrite=overwrite, announce=announce
    )
    print_table(
        ("method", "reward", "judge", *(f"also {one}" for one in job.also), "ESS", "evals", "s"),
        [
            (
                line.method,
                f"{line.reward:.2f} ± {line.reward_error:.2f}",
                f"{line.accuracy:.1%} ± {line.accuracy_error:.1%}",
                *(f"{mean:.2f} ± {error:.2f}" for mean, error in line.also.values()),
                "-" if line.ess is None else f"{line.ess:.2f}/{job.method.particles}",
                f"{line.evaluations}" + (f" + {line.gradients} back" if line.gradients else ""),
                f"{line.seconds:.0f}",
            )
            for line in report.methods
        ],
        f"{job.title}, {populations} populations (± one standard error)",
    )
    say(
        "judge: share of the images that an independent classifier accepts; "
        "evals: network evaluations per image returned"
    )
    for warning in report.warnings:
        typer.echo(warning)
    for line in report.methods:
        if line.strength:
            typer.echo(f"strength of {line.method}: {line.strength}")
    typer.echo(f"picture: {report.picture}\nfigures: {report.results}")


def _align_images(model: Any, jobs: Any, out: Path, budget: str | None, overwrite: bool) -> None:
    """Draw the first job, or within a budget the best of them, and print what came out."""
    from dataclasses import replace

    from ..jobs.align import align as draw
    from ..runs import process_group
    from ..runs.listing import clean

    job, *others = [replace(job, prompts=model.read_prompts(job.prompts)) for job in jobs]
    with process_group() as rank:
        report = draw(
            model, job, out, budget=budget, others=others, overwrite=overwrite, announce=announce
        )
    if rank:  # the first tells of all
        return
    word = "videos" if report.videos else "images"
    for prompt, values in zip(report.prompts, report.rewards):
        shown = ", ".join(f"{r:.4g}" for r in sorted(values, reverse=True))
        typer.echo(f"{clean(prompt)}: rewards {shown}")
    if report.judged is not None:
        judged = zip(report.prompts, report.rewards, report.judged.plain, report.judged.returned)
        for prompt, values, before, after in judged:
            typer.echo(
                f"{clean(prompt)}: the judge accepts {sum(before)} of {len(before)} plain samples "
                f"and {sum(after)} of {len(after)} here; of the highest reward, "
                f"{'yes' if after[values.index(max(values))] else 'no'}"
            )
    if report.means:
        print_table(
            (f"mean of all {word}", "reward", *job.also),
            [
                (name, *(f"{value:.4g}" for value in means.values()))
                for name, means in report.means.items()
            ],
        )
    for warning in report.warnings:
        typer.echo(warning)
    backward = f" + {report.gradients} backward" if report.gradients else ""
    typer.echo(f"network evaluations: {report.evaluations}{backward}")
    if report.strength:
        typer.echo(f"strength: {report.strength}")
    for reason in report.biases:
        typer.echo(f"biased: {reason}")
    typer.echo(f"best first: {report.picture}\n{word}: {report.images[0].parent}")
    typer.echo(f"figures: {report.results}")


@with_settings("sampler")
def sample(
    out: Out,
    options: Options,
    model: Annotated[str, typer.Option(help="'digits', or 'digits:FOLDER'.")] = "digits",
    label: Annotated[
        int | None, typer.Option("--class", help="Digit to draw; all kinds without it.")
    ] = None,
    guidance_scale: Annotated[
        float, typer.Option(help="Classifier-free guidance; needs --class.")
    ] = 1.0,
    count: Annotated[int, typer.Option(help="Number of images.")] = 64,
    seed: Seed = 0,
) -> None:
    """Draw plain samples and write them as one picture.

    For images of a pipeline: glass-flows align --method plain

    Example: glass-flows sample --class 3 --guidance-scale 2 --out out/threes
    """
    from ..folders import alone
    from ..jobs.models import Digits, digits_denoiser, resolve
    from ..jobs.pictures import Strip, image_grid, save_png
    from ..plans import Sampler
    from ..sampling import sample as draw
    from ..settings import build
    from ..worlds.digits import IMAGE

    sampler = build(Sampler, {}, options.sampler)
    check_count("--count", count, most=_MOST_IMAGES)
    if not isinstance(found := resolve(model), Digits):
        raise InvalidArgument(f"`sample` draws digits; for {model!r}: align --method plain")
    if label is None and guidance_scale != 1.0:
        raise InvalidArgument("--guidance-scale needs --class: there is nothing to guide towards")
    denoiser = digits_denoiser(label, guidance_scale, found.place or None)
    with alone(out) as folder:
        images = draw(denoiser, (count, *IMAGE), sampler, seed=seed)
        caption = f"{model}: {sampler}"
        grid = image_grid([Strip(caption, images, [None] * count)])
        file = save_png(grid, folder / "samples.png", settings=caption, seed=seed)
    typer.echo(f"picture: {file}")


@with_settings(
    "held_out", "method", "sampler", "batching", "loading", "viewing", "call", "placement"
)
def batch(
    prompts: Annotated[
        Path,
        typer.Argument(
            help="A line each (.txt), GenEval's metadata or JSON lines (.jsonl), a table (.csv, "
            ".tsv). For digits a line is a digit, for DiT a class."
        ),
    ],
    out: Annotated[
        Path, typer.Option(help="Folder of the batch; what is finished there is not done again.")
    ],
    options: Options,
    model: Model = "digits",
    reward: Reward = None,
    method: Annotated[
        list[str] | None,
        typer.Option(
            help="'plain', 'best-of-n', 'steering' (default), 'twist', 'refine', 'beam', 'greedy', "
            "'svdd'; may be given several times. An option goes to those that have it."
        ),
    ] = None,
    seeds: Annotated[str, typer.Option(help="'0', '0,1,7' or '0-3'.")] = "0",
    category: Annotated[
        list[str] | None, typer.Option(help="Only these of the file; may be given several times.")
    ] = None,
    count: Annotated[int | None, typer.Option(help="Only so many prompts of the file.")] = None,
    duplicates: Annotated[
        bool, typer.Option("--duplicates", help="Run a prompt as often as it stands in the file.")
    ] = False,
    init: Annotated[
        list[Path] | None,
        typer.Option(
            help="A picture that --method refine begins with: once for all prompts, or once for "
            "each, in their order."
        ),
    ] = None,
    budget: Budget = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away runs of other settings in the folder.")
    ] = False,
) -> None:
    """Run prompts × seeds × methods, each in a folder of its own, and sum them up.

    Whatever stops it (a kill, a full disk, a worker that died), the same command goes on where it
    was. What a prompt raises is written down, does not stop the others, and is tried again the next
    time. Exits with 1 if something failed.

    Example: glass-flows batch prompts.txt --model shapes --method best-of-n --method steering
    --out out/batch

    Example: glass-flows batch evaluation_metadata.jsonl --model FOLDER --reward pickscore
    --seeds 0-3 --out out/geneval

    Example: glass-flows batch prompts.txt --model shapes --also judge --scale 0,0.1,1
    --out out/sweep
    """
    from dataclasses import replace

    from ..jobs.batch import run_batch
    from ..jobs.items import Work, items_of
    from ..jobs.job import Placement
    from ..jobs.prompts import read_prompts
    from ..jobs.spelling import read_seeds, swept
    from ..settings import build

    methods = method or ["steering"]
    place = build(Placement, {}, options.placement)
    entries = read_prompts(prompts, categories=category or (), count=count, duplicates=duplicates)
    jobs = swept(
        model, methods, options, here=place.ray is None, reward=reward or "",
        threads=place.threads, budget=budget, prompts=tuple(entry.text for entry in entries),
        init=tuple(map(str, init or ())),
    )  # fmt: skip
    work = Work(
        {name: replace(job, prompts=()) for name, job in jobs.items()},
        tuple(entry.number for entry in entries),
    )
    items = items_of(entries, read_seeds(seeds), list(jobs))
    say = partial(Console(stderr=True).print, style="dim", markup=False)
    report = run_batch(
        work, items, out, workers=place.workers, ray=place.ray, budget=budget,
        overwrite=overwrite, announce=say,
    )  # fmt: skip
    print_page(report.table.read_text(encoding="utf-8"))
    typer.echo(f"finished {report.finished}, failed {report.failed}, left {report.left}")
    told = f"every item: {report.table.with_suffix('.csv')}"
    typer.echo(f"{told}\nlook at them: glass-flows report {out}")
    if report.failed or report.left:
        raise typer.Exit(1)
