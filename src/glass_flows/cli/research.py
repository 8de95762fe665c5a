"""`glass-flows compare`, `reproduce`, `check` and `train`: the research commands."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Annotated, Any

import typer

from ..errors import InvalidArgument, check_count, check_number
from ..settings import MOST
from .options import Model, Out, Seed, announce, print_table

__all__ = ["check", "compare", "reproduce", "train_app"]

train_app = typer.Typer(help="Train the small bundled models again.", no_args_is_help=True)
_RUNS, _TUNING_RUNS, _PROMPTS = 256, 96, 120
Scenes = Annotated[int, typer.Option(help="Different scenes to train on.")]
Resume = Annotated[bool, typer.Option(help="Go on from the checkpoints in the folder, if any.")]
Device = Annotated[str | None, typer.Option(help="cpu, cuda or mps.")]


def compare(
    out: Out,
    model: Annotated[
        str,
        typer.Option(
            help="'digits' or 'shapes' (bundled), or 'shapes:FOLDER' for one that you trained."
        ),
    ] = "digits",
    reward: Annotated[
        list[str],
        typer.Option(
            help="Digits: 'class:N' (default class:8), or 'class:all'; may be given several times. "
            "Shapes: 'clip' (default), or 'clip:FOLDER'."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    count: Annotated[
        int | None,
        typer.Option(help="Held-out prompts (shapes; 120); a quarter as many to tune on."),
    ] = None,
    evaluations: Annotated[
        int, typer.Option(help="Network passes per particle, forward and backward together.")
    ] = 24,
    particles: Annotated[int, typer.Option(help="N, particles of a population.")] = 8,
    populations: Annotated[
        int | None, typer.Option(help="Per reward and method (digits; 256).")
    ] = None,
    tuning_populations: Annotated[
        int | None,
        typer.Option(help="Per reward and candidate setting, on other seeds (digits; 96)."),
    ] = None,
    only: Annotated[
        list[str] | None,
        typer.Option(help="Part of a method's name (digits); may be given several times."),
    ] = None,
    seed: Seed = 0,
) -> None:
    """Best-of-N, steering, guidance, twisted noise and search on the same seeds at equal cost.

    Every method's λ, scales and split of the evaluations are tuned by an independent judge on other
    seeds. Prints one table, and writes it with the figures and a picture into the folder.

    Example: glass-flows compare --reward class:8 --evaluations 24 --out out/compare

    Example: glass-flows compare --model shapes --count 120 --out out/shapes
    """
    from ..jobs.models import Digits, Shapes, resolve

    found = resolve(model)
    if not isinstance(found, (Digits, Shapes)):
        raise InvalidArgument(f"`compare` knows digits and shapes, which have judges: {model!r}")
    foreign: dict[str, object] = {"--count": count}
    if isinstance(found, Shapes):
        foreign = {"--populations": populations, "--tuning-populations": tuning_populations}
        foreign |= {"--only": only}
    if given := [name for name, value in foreign.items() if value not in (None, [])]:
        raise InvalidArgument(f"{', '.join(given)}: not for --model {model}; leave it out")
    shared = {"model": found, "particles": particles, "seed": seed, "announce": announce}
    if isinstance(found, Shapes):
        count = _PROMPTS if count is None else check_count("--count", count)
        _compare_shapes(out, reward, count, evaluations, shared)
        return
    sizes = (
        _RUNS if populations is None else populations,
        _TUNING_RUNS if tuning_populations is None else tuning_populations,
    )
    for name, size in zip(("--populations", "--tuning-populations"), sizes):
        check_count(name, size, least=2, most=MOST)  # a standard error needs two
    _compare_digits(out, reward or ["class:8"], evaluations, *sizes, only or [], shared)


def _compare_digits(
    out: Path,
    reward: list[str],
    evaluations: int,
    populations: int,
    tuning_populations: int,
    only: list[str],
    shared: dict[str, Any],
) -> None:
    """Run it, and print the table."""
    from ..research.compare import compare as run_compare

    wanted = [f"class:{n}" for n in range(10)] if reward == ["class:all"] else reward
    report = run_compare(
        out, rewards=wanted, evaluations=evaluations, populations=populations,
        tuning_populations=tuning_populations, only=only, **shared,
    )  # fmt: skip
    lines = []
    for line in report.methods:
        low, high = (100 * end for end in line.judge.interval)
        lines.append(
            (
                line.method,
                f"{100 * line.judge.value:.0f} ({low:.0f}-{high:.0f})",
                f"{100 * line.gain.value:+.0f} ± {196 * line.gain.error:.0f}",
                f"{line.reward.value:.2f}",
                f"{line.frechet.value:.0f} ± {1.96 * line.frechet.error:.0f}",
                f"{line.diversity.value:.1f}",
                f"{line.forward:g}" + (f"+{line.backward:g}" if line.backward else ""),
            )
        )
    print_table(
        ("method", "judge, %", "gain", "reward", "Fréchet", "diversity", "passes"),
        lines,
        f"{', '.join(reward)}: {populations} populations each (95 % intervals)",
    )
    typer.echo(
        "judge: share of the returned images that an independent classifier accepts; gain: points "
        "more than best-of-N with the ODE, population by population; passes: of the network per "
        f"particle, forward+backward. Real images have diversity {report.real_diversity:.1f}."
    )
    typer.echo(f"table: {report.table}\nfigures: {report.results}\npicture: {report.picture}")


def _compare_shapes(
    out: Path, reward: list[str], count: int, evaluations: int, shared: dict[str, Any]
) -> None:
    """Run it, and print what came out."""
    from ..research.compare_shapes import compare_shapes

    model, transitions = shared["model"], 6
    if len(reward) > 1:
        raise InvalidArgument(f"--model {model.name} takes one --reward, got {len(reward)}")
    if evaluations % transitions:
        raise InvalidArgument(f"--evaluations must be a multiple of {transitions}: {evaluations}")
    report = compare_shapes(
        out, reward=(reward or [model.reward_name])[0], count=count,
        tuning_count=max(2, count // 4), transitions=transitions,
        steps=evaluations // transitions, **shared,
    )  # fmt: skip
    typer.echo(
        f"{report.table.read_text(encoding='utf-8')}\nfigures: {report.results}\n"
        f"pictures: {report.picture}, {report.hacking}"
    )


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


@train_app.command("digits")
def train_digits(
    out: Out,
    steps: Annotated[int, typer.Option(help="Training steps of the network.")] = 1000,
    batch: Annotated[int, typer.Option(help="Images per step.")] = 512,
    classifier_steps: Annotated[int, typer.Option(help="Training steps of each classifier.")] = 600,
    seed: Seed = 0,
    resume: Resume = True,
) -> None:
    """Train the digits network and its two classifiers (about a minute on two cores).

    Example: glass-flows train digits --out out/digits
    """
    from ..research.train_digits import train_digits as run_training

    run_training(
        out,
        steps=steps,
        batch=batch,
        seed=seed,
        resume=resume,
        classifier_steps=classifier_steps,
    )
    typer.echo(f"weights and model card: {out}")


@train_app.command("shapes")
def train_shapes(
    out: Out,
    steps: Annotated[int, typer.Option(help="Training steps of the flow.")] = 8_000,
    vae_steps: Annotated[int, typer.Option(help="Training steps of the autoencoder.")] = 1_500,
    text_steps: Annotated[
        int | None,
        typer.Option(
            help="Training steps of the text encoders before the flow: 200, none with --start."
        ),
    ] = None,
    scenes: Scenes = 60_000,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a trained Shapes pipeline to go on from (its autoencoder is kept)."
        ),
    ] = None,
    device: Device = None,
    seed: Seed = 0,
    resume: Resume = True,
) -> None:
    """Train a small FluxPipeline on the Shapes world (one to three hours on two cores).

    The folder can be opened with diffusers, and steered with `glass-flows align --model
    shapes:FOLDER`.

    Example: glass-flows train shapes --out out/shapes
    """
    from ..research.train_shapes import train_shapes as run_training

    run_training(
        out, steps=steps, vae_steps=vae_steps, text_steps=text_steps, scenes=scenes, start=start,
        device=device, seed=seed, resume=resume,
    )  # fmt: skip
    typer.echo(f"pipeline: {out}")


@train_app.command("clip")
def train_clip(
    out: Out,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 3_000,
    scenes: Scenes = 20_000,
    drawn: Annotated[
        int, typer.Option(help="Samples of the pipeline to train on, with the judge's verdict.")
    ] = 4_000,
    pipeline: Annotated[
        Path | None, typer.Option(help="Folder of a trained Shapes pipeline; bundled by default.")
    ] = None,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a trained Shapes CLIP to go on from; half of the samples are steered "
            "by it."
        ),
    ] = None,
    device: Device = None,
    seed: Seed = 1,
    resume: Resume = True,
) -> None:
    """Train the CLIPModel that serves as reward in the Shapes world (15 minutes on one core).

    Example: glass-flows train clip --out out/clip
    """
    from ..research.train_clip import train_clip as run_training

    run_training(
        out, steps=steps, scenes=scenes, drawn=drawn, pipeline=pipeline, start=start,
        device=device, seed=seed, resume=resume,
    )  # fmt: skip
    typer.echo(f"model: {out}")
