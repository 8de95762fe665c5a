"""`glass-flows plan`, `check-model`, `evaluate` and `convert`: tables, figures, weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..jobs.spelling import Options
from .options import Device, Out, Seed, announce, print_page, print_table, say, with_settings

convert_app = typer.Typer(
    help="Write published pickled weights as safetensors, reading tensors only.",
    no_args_is_help=True,
)


@with_settings("sampler")
def plan(
    options: Options,
    path: Annotated[
        str, typer.Option(help="'linear', 'cosine', 'variance_preserving' or 'edm'.")
    ] = "linear",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print a sampler as the table of numbers that will be run, and its cost.

    Example: glass-flows plan --transitions 2 --steps 3 --rho ddpm
    """
    from ..errors import check_name
    from ..paths import from_config
    from ..plans import Sampler
    from ..settings import build

    check_name("path", path, ("linear", "cosine", "variance_preserving", "edm"))
    table = build(Sampler, {}, options.sampler).plan(from_config({"name": path}))
    typer.echo(table.to_json() if json else str(table))


@with_settings("loading", "call")
def check_model(
    model: Annotated[
        str,
        typer.Argument(
            help="A diffusers pipeline by folder or hub id, 'shapes' or 'shapes:FOLDER'."
        ),
    ],
    options: Options,
    prompt: Annotated[
        list[str] | None,
        typer.Option(help="One, or two that differ; DiT: a class. Of its own without them."),
    ] = None,
    size: Annotated[
        int | None,
        typer.Option(
            help="Height and width in pixels. Without it the smallest of 8, 16 and 32 latents at "
            "which it draws, else the pipeline's own.",
            show_default=False,
        ),
    ] = None,
    json: Annotated[
        Path | None, typer.Option("--json", help="Write the table with its figures here, too.")
    ] = None,
) -> None:
    """Try a pipeline with two transitions, and say in a table what works, what not, and why.

    Every row is compared with what must come out: the same samples drawn in two ways, or a choice
    with the rewards it was made by. A row that fails does not stop the others. Exits with 1 if a
    row says no, with 2 if nothing could be tried.

    Example: glass-flows check-model shapes

    Example: glass-flows check-model FOLDER --dtype bfloat16 --size 256 --json check.json
    """
    from ..files import check_place
    from ..jobs.check_model import check_model as check
    from ..jobs.job import Loading
    from ..jobs.spelling import check_json
    from ..runs.command import flag
    from ..settings import build

    if json is not None:
        check_place(json)
    for name, value in options.call.items():
        check_json(flag(name), value)
    loading = build(Loading, {}, options.loading)
    _ = loading.home  # refused if it is not there
    found = check(
        model, prompt or None, size=size, loading=loading, announce=announce, **options.call
    )
    for name, told in found.facts.items():
        say(f"{name}: {told}")
    lines = ((row.what, row.works, row.told) for row in found.rows)
    print_table(("tried", "works", "seen, or why not"), lines)
    for note in found.notes:
        say(note)
    if json is not None:
        typer.echo(f"figures: {found.save(json)}")
    typer.echo(found.summary())
    if not found.works:
        raise typer.Exit(1)


def evaluate(
    folders: Annotated[
        list[Path], typer.Argument(help="Folders of images; the others are compared to the first.")
    ],
    out: Out,
    reward: Annotated[
        list[str],
        typer.Option(
            help="'clip', 'pickscore', 'hps', 'imagereward', 'aesthetic', with ':FOLDER' or a hub "
            "id after it other weights, or 'module:function'; may be given several times."
        ),
    ] = [],  # noqa: B006
    model: Annotated[
        str | None,
        typer.Option(help="That drew them: 'clip' is then the reward of this name in `align`."),
    ] = None,
    features: Annotated[
        str | None,
        typer.Option(
            help="Network for diversity and distances: 'clip[:PLACE]', 'pickscore[:PLACE]', or "
            "'dino:PLACE' (DINOv2)."
        ),
    ] = None,
    reference: Annotated[
        Path | None,
        typer.Option(help="Folder of real images, for the Fréchet distance, precision and recall."),
    ] = None,
    device: Device = None,
    seed: Seed = 0,
) -> None:
    """Compare folders of images, of any model: rewards, distances, diversity, pair by pair.

    Prompts are read from the images (as `glass-flows align` writes them) or from GenEval's
    metadata.jsonl. Writes evaluation.md and evaluation.json; those that are there are replaced.

    Example: glass-flows evaluate out/plain out/steered --reward clip --features clip --out out/eval
    """
    from ..jobs.evaluate import evaluate_folders

    evaluate_folders(
        folders,
        out,
        rewards=reward,
        model=model,
        features=features,
        reference=reference,
        device=device,
        seed=seed,
    )
    print_page((out / "evaluation.md").read_text(encoding="utf-8"))
    typer.echo(f"table: {out / 'evaluation.md'}\nfigures: {out / 'evaluation.json'}")


@convert_app.command("reward")
def convert_reward(
    name: Annotated[str, typer.Argument(help="'hps', 'imagereward' or 'aesthetic'.")],
    file: Annotated[Path, typer.Argument(help="The file as its authors publish it.")],
    out: Annotated[Path, typer.Argument(help="Folder to write; made if it is missing.")],
    base: Annotated[
        str | None,
        typer.Option(
            help="Hub id or folder of what the file lacks: the processor of 'hps', the tokenizer "
            "of 'imagereward', the CLIP of 'aesthetic'; the published ones without it."
        ),
    ] = None,
) -> None:
    """Make a reward's published weights loadable: `--reward NAME:OUT` afterwards.

    Example: glass-flows convert reward imagereward ImageReward.pt weights/imagereward
    """
    from ..folders import alone
    from ..rewards.pretrained import convert_reward as run_conversion

    with alone(out):
        folder = run_conversion(name, file, out, base=base)
    typer.echo(f"reward: {folder}\nuse it with: --reward {name}:{folder}")
