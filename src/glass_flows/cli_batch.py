"""`glass-flows batch`: many prompts, seeds and methods as one job that can be gone on with."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console

from .cli_options import arguments_of, rho_of
from .errors import InvalidArgument

__all__ = ["batch"]


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
    model: Annotated[
        str,
        typer.Option(
            help="'digits', 'shapes', 'shapes:FOLDER', or a pipeline by folder or hub id."
        ),
    ] = "shapes",
    reward: Annotated[
        str | None,
        typer.Option(
            help="As in `glass-flows align`: 'clip' (default), 'pickscore', 'module:function' and "
            "so on; of the digits log p(digit | image)."
        ),
    ] = None,
    method: Annotated[
        list[str],
        typer.Option(
            help="'plain', 'best-of-n', 'steering' (default), 'twist', 'beam', 'greedy', 'svdd'; "
            "may be given several times."
        ),
    ] = [],  # noqa: B006 (typer copies it)
    seeds: Annotated[str, typer.Option(help="'0', '0,1,7' or '0-3'.")] = "0",
    category: Annotated[
        list[str], typer.Option(help="Only these of the file; may be given several times.")
    ] = [],  # noqa: B006
    count: Annotated[int | None, typer.Option(help="Only so many prompts of the file.")] = None,
    particles: Annotated[int, typer.Option(help="N, particles per prompt.")] = 8,
    children: Annotated[int, typer.Option(help="w, children per particle of the searches.")] = 2,
    transitions: Annotated[int, typer.Option(help="K, the number of outer transitions.")] = 6,
    steps: Annotated[int, typer.Option(help="M, network evaluations per transition.")] = 4,
    rho: Annotated[
        str, typer.Option(help="Correlation of the noises: a number, 'ddpm' or 'ddim:ETA'.")
    ] = "0.4",
    scale: Annotated[float, typer.Option(help="λ of the target p(z) exp(λ r(z)).")] = 1.0,
    potential: Annotated[str, typer.Option(help="As in `glass-flows align`.")] = "difference",
    budget: Annotated[
        str | None,
        typer.Option(
            help="For each item a time (90s, 2min) or a number of network evaluations (2000): "
            "particles, transitions and steps are chosen for it after a short measurement."
        ),
    ] = None,
    argument: Annotated[
        list[str],
        typer.Option(help="A call argument of the pipeline, NAME=VALUE (JSON or text)."),
    ] = [],  # noqa: B006
    max_batch: Annotated[
        int | None, typer.Option(help="Samples through the network at a time; as many as fit.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="'cuda', 'cuda:1', 'cpu'.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="'float32', 'bfloat16' or 'float16' for the pipeline.")
    ] = None,
    offload: Annotated[str, typer.Option(help="'none', 'model' or 'sequential'.")] = "none",
    workers: Annotated[
        int,
        typer.Option(
            help="Processes (with --ray actors, if there are no GPUs), each with the model."
        ),
    ] = 1,
    threads: Annotated[
        int | None, typer.Option(help="Threads of each worker; the bits depend on it.")
    ] = None,
    ray: Annotated[
        str | None,
        typer.Option(
            help="Run on a Ray cluster that sees the folder: 'auto', ray://HOST:PORT, or 'local' "
            "to start one here."
        ),
    ] = None,
) -> None:
    """Run prompts × seeds × methods, each in a folder of its own, and sum them up.

    Whatever stops it (a kill, a full disk, a worker that died), the same command goes on where it
    was. What a prompt raises is written down and does not stop the others; it is tried again the
    next time. Exits with 1 if something failed.

    Example: glass-flows batch prompts.txt --method best-of-n --method steering --out out/batch

    Example: glass-flows batch evaluation_metadata.jsonl --model FOLDER --reward pickscore
    --seeds 0-3 --out out/geneval
    """
    from .errors import check_count
    from .experiments.align import DIGITS_STD
    from .experiments.batch import Work, items_of, run_batch
    from .experiments.prompt_sets import read_prompts
    from .steering import Twist

    check_count("workers", workers)
    digits = model == "digits"
    settings: dict[str, Any] = {
        "particles": particles,
        "transitions": transitions,
        "steps": steps,
        "rho": rho_of(rho, "default"),
        "scale": scale,
        "potential": potential,
    }
    loading = {"device": device, "dtype": dtype, "offload": offload}
    if digits:
        if argument or max_batch or device or dtype or offload != "none":
            raise InvalidArgument(
                "--argument, --max-batch, --device, --dtype, --offload: not for the digits"
            )
    else:
        settings |= arguments_of(argument)
        settings |= {"max_batch": max_batch} if max_batch else {}
    work = Work(
        model=model,
        reward=reward or ("class" if digits else "clip"),
        settings=settings,
        children=children,
        twist=Twist(sigma_data=DIGITS_STD) if digits else Twist(),
        loading={} if digits else loading,
        threads=threads,
    )
    entries = read_prompts(prompts, categories=category, count=count)
    items = items_of(entries, _seeds(seeds), method or ["steering"])
    console = Console(stderr=True)

    def announce(text: str) -> None:
        console.print(text, style="dim", markup=False)

    report = run_batch(work, items, out, workers=workers, ray=ray, budget=budget, announce=announce)
    typer.echo(report.table.read_text(encoding="utf-8"))
    typer.echo(f"finished {report.finished}, failed {report.failed}, left {report.left}")
    typer.echo(f"every item: {report.table.with_suffix('.csv')}")
    typer.echo(f"look at them: glass-flows report {out}")
    if report.failed or report.left:
        raise typer.Exit(1)


def _seeds(text: str) -> list[int]:
    """'0', '0,1,7' or '0-3'."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        if (
            not first.isdigit()
            or (dash and not last.isdigit())
            or (dash and int(last) < int(first))
        ):
            raise InvalidArgument(f"--seeds must be like 0 or 0,1,7 or 0-3, got {text!r}")
        found += range(int(first), int(last or first) + 1)
    return list(dict.fromkeys(found))
