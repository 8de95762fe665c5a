"""`glass-flows plan`, `evaluate` and `convert`: tables, figures of images, published weights."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from ..jobs.spelling import Options
from .options import Device, Out, Seed, print_page, with_settings

__all__ = ["convert_app", "evaluate", "plan"]

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
    metadata.jsonl. Writes evaluation.md and evaluation.json.

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
