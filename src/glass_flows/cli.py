"""The command line: `glass-flows --help`."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich import box
from rich.console import Console
from rich.table import Table as RichTable

from . import __version__
from .cli_batch import batch
from .cli_options import arguments_of, number_of, rho_of
from .cli_runs import report, runs_app
from .errors import GlassError, InvalidArgument

__all__ = ["app", "main"]

app = typer.Typer(
    help="GLASS transitions and reward steering for pre-trained flow and diffusion models.",
    no_args_is_help=True,
    add_completion=False,
    rich_markup_mode=None,
    pretty_exceptions_enable=False,
)
train_app = typer.Typer(help="Train the small bundled models again.", no_args_is_help=True)
app.add_typer(train_app, name="train")
convert_app = typer.Typer(
    help="Write published pickled weights as safetensors, reading tensors only.",
    no_args_is_help=True,
)
app.add_typer(convert_app, name="convert")
app.command()(batch)
app.command()(report)
app.add_typer(runs_app, name="runs")
console = Console()

Transitions = Annotated[int, typer.Option(help="K, the number of outer transitions.")]
Steps = Annotated[int, typer.Option(help="M, network evaluations per transition.")]
RhoOption = Annotated[
    str,
    typer.Option(
        help="Correlation of the noises of a transition's ends: a number in [-1, 1] (1 keeps the "
        "noise, 0 renews it), 'ddpm', 'ode', or 'ddim:ETA'. Euler-Maruyama has none."
    ),
]
SolverOption = Annotated[
    str, typer.Option(help="'default', 'first-order', 'paper' (Algorithm 1) or 'euler-maruyama'.")
]
Seed = Annotated[int, typer.Option(help="Same seed, same result.")]
Out = Annotated[Path, typer.Option(help="Folder for the results; made if it is missing.")]


def main() -> None:
    """Entry point: errors of ours end in one line and exit code 2."""
    try:
        app()
    except GlassError as error:
        Console(stderr=True, soft_wrap=True).print(f"error: {error}", style="red", markup=False)
        sys.exit(2)


def _version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"glass-flows {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    pass


@app.command()
def align(
    out: Out,
    model: Annotated[
        str,
        typer.Option(
            help="Model to steer: 'digits' or 'shapes' (bundled), 'shapes:FOLDER' for one that you "
            "trained, or a diffusers pipeline by hub id or folder."
        ),
    ] = "digits",
    prompt: Annotated[
        list[str],
        typer.Option(help="For pipelines; may be given several times (DiT: a class)."),
    ] = [],  # noqa: B006 (typer copies it)
    reward: Annotated[
        str | None,
        typer.Option(
            help="What to steer towards. For digits 'class:N', log p(N | image) (class:8). For "
            "pipelines 'clip' (default), 'pickscore', 'hps', 'imagereward' or 'aesthetic', with "
            "':FOLDER' or a hub id after it other weights; or 'module:function' of your own, "
            "images (B, 3, H, W) in [0, 1] to (B,)."
        ),
    ] = None,
    method: Annotated[
        str,
        typer.Option(
            help="'steering' (sequential Monte Carlo; digits: without and with twisted noise), or "
            "a search: 'beam', 'greedy', 'svdd'; pipelines also 'best-of-n'."
        ),
    ] = "steering",
    particles: Annotated[int, typer.Option(help="N, particles per run.")] = 8,
    children: Annotated[
        int, typer.Option(help="w, children per particle of the searches; N counts them all.")
    ] = 2,
    transitions: Transitions = 6,
    steps: Steps = 4,
    rho: RhoOption = "0.4",
    solver: SolverOption = "default",
    scale: Annotated[float, typer.Option(help="λ of the target p(z) exp(λ r(z)).")] = 1.0,
    potential: Annotated[
        str,
        typer.Option(
            help="'difference', 'max', 'sum', 'immediate', 'terminal'; 'fkd-...' for the formulas "
            "of the code released with Feynman-Kac steering."
        ),
    ] = "difference",
    schedule: Annotated[
        str,
        typer.Option(
            help="λ along the path: 'constant', 'linear', 'adaptive[:ESS]' (by bisection), or K "
            "comma-separated shares of λ."
        ),
    ] = "constant",
    boundaries: Annotated[
        int | None, typer.Option(help="Look at every n-th transition start only.")
    ] = None,
    resampling: Annotated[
        str,
        typer.Option(help="'systematic', 'ssp', 'stratified', 'residual' or 'multinomial'."),
    ] = "systematic",
    ess_threshold: Annotated[
        float,
        typer.Option(help="Resample when ESS falls to this fraction of N: 1 always, 0 never."),
    ] = 0.5,
    value: Annotated[
        str,
        typer.Option(
            help="'free': the reward at the clean estimate; 'posterior:n:m': from n posterior "
            "samples of m evaluations each."
        ),
    ] = "free",
    guidance: Annotated[
        str,
        typer.Option(
            help="Gradient guidance, which biases the proposal: 'none', 'reward' or 'network' "
            "(where the gradient flows)."
        ),
    ] = "none",
    guidance_scale: Annotated[float, typer.Option(help="Strength of the guidance.")] = 1.0,
    guidance_clip: Annotated[
        float | None,
        typer.Option(help="Longest step of the guidance, in posterior standard deviations."),
    ] = None,
    twist: Annotated[
        float | None,
        typer.Option(
            help="η of twisted noise, exactly weighted guidance; 0 is off. 1 for digits, 0 for "
            "pipelines, whose decoder and reward it differentiates."
        ),
    ] = None,
    twist_cap: Annotated[
        float, typer.Option(help="Longest shift of the noise, in its standard deviations.")
    ] = 0.75,
    runs: Annotated[
        int, typer.Option(help="Independent runs, for the standard errors (digits).")
    ] = 256,
    negative_prompt: Annotated[
        str | None, typer.Option(help="For pipelines that take one.")
    ] = None,
    cfg_scale: Annotated[
        float | None, typer.Option(help="The pipeline's own guidance_scale; its default without.")
    ] = None,
    height: Annotated[int | None, typer.Option(help="Of the pipeline's images, in pixels.")] = None,
    width: Annotated[int | None, typer.Option(help="Of the pipeline's images, in pixels.")] = None,
    argument: Annotated[
        list[str],
        typer.Option(help="Another call argument of the pipeline, NAME=VALUE (JSON or text)."),
    ] = [],  # noqa: B006
    device: Annotated[
        str | None, typer.Option(help="'cuda', 'cuda:1', 'cpu'; cuda where there is one.")
    ] = None,
    dtype: Annotated[
        str | None, typer.Option(help="'float32', 'bfloat16' or 'float16' for the pipeline.")
    ] = None,
    offload: Annotated[
        str, typer.Option(help="CPU offloading of the pipeline: 'none', 'model', 'sequential'.")
    ] = "none",
    revision: Annotated[str | None, typer.Option(help="Branch, tag or commit on the hub.")] = None,
    lora: Annotated[str | None, typer.Option(help="LoRA weights: hub id or path.")] = None,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Samples through the pipeline's network at a time; as many as fit."),
    ] = None,
    decode_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples through its decoder and the reward at a time; 1, for shapes all."
        ),
    ] = None,
    micro_batch: Annotated[
        int | None,
        typer.Option(
            help="Samples through the pipeline's network at a time, cut at the same places for "
            "any number of processes under torchrun: the bits of the result stay the same."
        ),
    ] = None,
    budget: Annotated[
        str | None,
        typer.Option(
            help="For pipelines: a time (90s, 2min) or a number of network evaluations (2000); "
            "particles, transitions and steps are chosen for it after a short measurement."
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option("--overwrite", help="Throw away another run in the folder.")
    ] = False,
    seed: Seed = 0,
) -> None:
    """Steer samples towards a reward.

    The digits are drawn beside plain samples and best-of-N at equal cost. A pipeline's images are
    written with prompt, reward and settings inside, beside a sheet with the best first; those of
    the bundled pipeline 'shapes' are judged by image analysis, too. The folder is that of a run:
    stopped and started again, a pipeline goes on where it was, and `glass-flows report` draws it.
    Under torchrun the particles of a pipeline are dealt out to all processes.

    Example: glass-flows align --model digits --reward class:8 --out out/eights

    Example: glass-flows align --model shapes --prompt "two blue squares" --out out/squares

    Example: glass-flows align --model FOLDER --prompt "a cat" --reward mine:sharpness --out out/cat
    """
    from .experiments.align import DIGITS_STD
    from .experiments.align import align as run_align
    from .experiments.align_pipeline import of_shapes
    from .runs import process_group
    from .steering import Twist

    own = _given(
        prompt=(prompt, []),
        negative_prompt=(negative_prompt, None),
        cfg_scale=(cfg_scale, None),
        height=(height, None),
        width=(width, None),
        argument=(argument, []),
        device=(device, None),
        dtype=(dtype, None),
        offload=(offload, "none"),
        revision=(revision, None),
        lora=(lora, None),
        max_batch=(max_batch, None),
        micro_batch=(micro_batch, None),
        budget=(budget, None),
    )
    pipeline = of_shapes(model) or "/" in model or Path(model).is_dir()
    std = 1.0 if pipeline else DIGITS_STD
    options = _given(
        scale=(scale, 1.0),
        potential=(potential, "difference"),
        schedule=(_schedule(schedule), "constant"),
        boundaries=(boundaries, None),
        resampling=(resampling, "systematic"),
        ess_threshold=(ess_threshold, 0.5),
        value=(_value(value), "free"),
        guidance=(_guidance(guidance, guidance_scale, guidance_clip, std), None),
    )
    if pipeline:
        searching = method in ("beam", "greedy", "svdd")
        if not searching:
            options["twist"] = Twist(twist or 0.0, twist_cap)
        call = {"guidance_scale": cfg_scale, "negative_prompt": negative_prompt}
        call |= {"height": height, "width": width, "decode_batch": decode_batch}
        with process_group() as rank:
            found = _align_pipeline(
                out,
                model=model,
                micro_batch=micro_batch,
                budget=budget,
                overwrite=overwrite,
                prompts=prompt,
                reward=reward or "clip",
                loading={
                    "device": device,
                    "dtype": dtype,
                    "offload": offload,
                    "revision": revision,
                    "lora": lora,
                },
                method=method,
                particles=particles,
                children=children,
                transitions=transitions,
                steps=steps,
                rho=rho_of(rho, solver),
                solver=solver,
                seed=seed,
                max_batch=max_batch or "auto",
                **{name: given for name, given in call.items() if given is not None},
                **arguments_of(argument),
                **options,
            )
        if rank == 0:
            typer.echo(found)
        return
    if own:
        flags = ", ".join("--" + name.replace("_", "-") for name in own)
        raise InvalidArgument(
            f"{flags}: only for a diffusers pipeline: 'shapes', a hub id (with its '/'), a folder; "
            f"--model is {model!r}"
        )
    report = run_align(
        out,
        model=model,
        reward=reward or "class:8",
        method=method,
        particles=particles,
        children=children,
        transitions=transitions,
        steps=steps,
        rho=rho_of(rho, solver),
        solver=solver,
        runs=runs,
        seed=seed,
        twist=Twist(1.0 if twist is None else twist, twist_cap, DIGITS_STD),
        announce=lambda text: console.print(text, style="dim"),
        **options,
    )
    table = RichTable(
        title=f"{reward or 'class:8'}, {runs} runs (± one standard error)", box=box.SIMPLE
    )
    for column in ("method", "reward", "judge", "ESS", "evals", "s"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for line in report.methods:
        backward = f" + {line.gradients} back" if line.gradients else ""
        table.add_row(
            line.method,
            f"{line.reward:.2f} ± {line.reward_error:.2f}",
            f"{line.accuracy:.1%} ± {line.accuracy_error:.1%}",
            "-" if line.ess is None else f"{line.ess:.2f}/{particles}",
            f"{line.evaluations}{backward}",
            f"{line.seconds:.0f}",
        )
    console.print(table)
    typer.echo(
        "judge: share of the images that an independent classifier accepts; "
        "evals: network evaluations per image returned"
    )
    typer.echo(f"picture: {report.picture}\nfigures: {report.results}")


@app.command()
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
    prompts: Annotated[
        int, typer.Option(help="Held-out prompts (shapes); a quarter as many to tune on.")
    ] = 120,
    evaluations: Annotated[
        int, typer.Option(help="Network passes per particle, forward and backward together.")
    ] = 24,
    particles: Annotated[int, typer.Option(help="N, particles per run.")] = 8,
    runs: Annotated[int, typer.Option(help="Runs per reward and method.")] = 256,
    tuning_runs: Annotated[
        int, typer.Option(help="Runs per reward and candidate setting, on other seeds.")
    ] = 96,
    only: Annotated[
        list[str], typer.Option(help="Part of a method's name; may be given several times.")
    ] = [],  # noqa: B006
    seed: Seed = 0,
) -> None:
    """Best-of-N, steering, guidance, twisted noise and search on the same seeds at equal cost.

    Every method's λ, scales and split of the evaluations are tuned by an independent judge on other
    seeds. Prints one table, and writes it with the figures and a picture into the folder.

    Example: glass-flows compare --reward class:8 --evaluations 24 --out out/compare

    Example: glass-flows compare --model shapes --prompts 120 --out out/shapes
    """
    from .errors import check_name
    from .experiments.align_pipeline import of_shapes
    from .experiments.compare import compare as run_compare

    shapes = of_shapes(model)
    if not shapes:
        check_name("model", model, ("digits", "shapes"))
    # What is of the other model is refused, not ignored.
    foreign = (
        _given(runs=(runs, 256), tuning_runs=(tuning_runs, 96), only=(only, []))
        if shapes
        else _given(prompts=(prompts, 120))
    )
    if foreign:
        flags = ", ".join("--" + name.replace("_", "-") for name in foreign)
        raise InvalidArgument(f"{flags}: not for --model {model}; leave it out")
    if shapes:
        if len(reward) > 1:
            raise InvalidArgument(f"--model {model} takes one --reward, got {len(reward)}")
        name = (reward or ["clip"])[0]
        typer.echo(_compare_shapes(out, model, name, prompts, evaluations, particles, seed))
        return
    reward = reward or ["class:8"]
    wanted = [f"class:{n}" for n in range(10)] if reward == ["class:all"] else reward
    report = run_compare(
        out,
        model=model,
        rewards=wanted,
        evaluations=evaluations,
        particles=particles,
        runs=runs,
        tuning_runs=tuning_runs,
        only=only,
        seed=seed,
        announce=lambda text: console.print(text, style="dim"),
    )
    title = f"{', '.join(reward)}: {runs} runs each (95 % intervals)"
    table = RichTable(title=title, box=box.SIMPLE, padding=(0, 1, 0, 0))
    for column in ("method", "judge, %", "gain", "reward", "Fréchet", "diversity", "passes"):
        table.add_column(column, justify="left" if column == "method" else "right")
    for line in report.methods:
        low, high = (100 * end for end in line.judge.interval)
        table.add_row(
            line.method,
            f"{100 * line.judge.value:.0f} ({low:.0f}-{high:.0f})",
            f"{100 * line.gain.value:+.0f} ± {196 * line.gain.error:.0f}",
            f"{line.reward.value:.2f}",
            f"{line.frechet.value:.0f} ± {1.96 * line.frechet.error:.0f}",
            f"{line.diversity.value:.1f}",
            f"{line.forward:g}" + (f"+{line.backward:g}" if line.backward else ""),
        )
    console.print(table)
    typer.echo(
        "judge: share of the returned images that an independent classifier accepts; gain: points "
        "more than best-of-N with the ODE, run by run; passes: of the network per particle, "
        f"forward+backward. Real images have diversity {report.real_diversity:.1f}."
    )
    typer.echo(f"table: {report.table}\nfigures: {report.results}\npicture: {report.picture}")


@app.command()
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
    model: Annotated[
        str,
        typer.Option(
            help="'digits'; for alignment, rho, settings and guidance also 'shapes', "
            "'shapes:FOLDER', a diffusers pipeline by folder or hub id, or 'sit:FOLDER' (a "
            "converted SiT with an autoencoder in its folder vae)."
        ),
    ] = "digits",
    reward: Annotated[str, typer.Option(help="For pipelines, as in `glass-flows align`.")] = "clip",
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

    Each writes table.csv, table.md and plot.png into a folder of its own. A run that was
    interrupted goes on where it was, to the same numbers.

    Example: glass-flows reproduce posterior values --out out/reproduce

    Example: glass-flows reproduce all --quick --out out/quick
    """
    from .experiments.reproduce import Scale, write_page
    from .experiments.reproduce import reproduce as run_reproduce

    foreign = _given(
        reward=(reward, "clip"), prompts=(prompts, None), also=(also, []), scale=(scale, None)
    )
    if model == "digits" and foreign:
        flags = ", ".join("--" + name for name in foreign)
        raise InvalidArgument(f"{flags}: for pipelines only; the digits have their classifiers")
    if page is not None and page.suffix != ".md":
        raise InvalidArgument(f"--page is a Markdown file, its name ends in .md: {str(page)!r}")
    chosen = Scale(seed, quick, model, reward, str(prompts or ""), scale, tuple(also))
    folders = run_reproduce(
        names, out, scale=chosen, announce=lambda text: console.print(text, style="dim")
    )
    for name, folder in folders.items():
        typer.echo(f"{name}: {folder / 'table.md'}, table.csv, plot.png")
    if page is not None:
        typer.echo(f"page: {write_page(folders, page, chosen)}")


@app.command()
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
    device: Annotated[str | None, typer.Option(help="'cuda' or 'cpu'.")] = None,
    seed: Seed = 0,
) -> None:
    """Compare folders of images, of any model: rewards, distances, diversity, pair by pair.

    Prompts are read from the images (as `glass-flows align` writes them) or from GenEval's
    metadata.jsonl. Writes evaluation.md and evaluation.json.

    Example: glass-flows evaluate out/plain out/steered --reward clip --features clip --out out/eval
    """
    from .experiments.evaluate import evaluate_folders

    evaluate_folders(
        folders,
        out,
        rewards=reward,
        features=features,
        reference=reference,
        device=device,
        seed=seed,
    )
    typer.echo((out / "evaluation.md").read_text(encoding="utf-8"))
    typer.echo(f"table: {out / 'evaluation.md'}\nfigures: {out / 'evaluation.json'}")


@app.command()
def sample(
    out: Out,
    model: Annotated[str, typer.Option(help="Model to sample; 'digits' is bundled.")] = "digits",
    label: Annotated[
        int | None, typer.Option("--class", help="Digit to draw; all kinds without it.")
    ] = None,
    guidance: Annotated[
        float, typer.Option(help="Classifier-free guidance scale; needs --class.")
    ] = 1.0,
    count: Annotated[int, typer.Option(help="Number of images.")] = 64,
    transitions: Transitions = 6,
    steps: Steps = 4,
    rho: RhoOption = "0.4",
    solver: SolverOption = "default",
    seed: Seed = 0,
) -> None:
    """Draw plain samples and write them as one picture.

    Example: glass-flows sample --class 3 --guidance 2 --out out/threes
    """
    from .errors import check_name
    from .experiments.align import digits_denoiser
    from .experiments.pictures import Row, image_grid, make_folder, save_png
    from .models.digits import IMAGE
    from .sampling import sample as draw

    check_name("model", model, ("digits",))
    if label is None and guidance != 1.0:
        raise InvalidArgument("--guidance needs --class: there is nothing to guide towards")
    folder = make_folder(out)
    images = draw(
        digits_denoiser(label, guidance),
        (count, *IMAGE),
        transitions=transitions,
        steps=steps,
        rho=rho_of(rho, solver),
        solver=solver,
        seed=seed,
    )
    caption = f"{model}: {transitions} transitions of {steps} evaluations, rho = {rho}, {solver}"
    grid = image_grid([Row(caption, images, [None] * count)])
    file = save_png(grid, folder / "samples.png", settings=caption, seed=seed)
    typer.echo(f"picture: {file}")


@app.command()
def plan(
    path: Annotated[
        str, typer.Option(help="'linear', 'cosine', 'variance_preserving' or 'edm'.")
    ] = "linear",
    transitions: Transitions = 6,
    steps: Steps = 4,
    rho: RhoOption = "0.4",
    solver: SolverOption = "default",
    times: Annotated[
        str, typer.Option(help="'uniform', 'shifted', 'karras', or K + 1 numbers: 0,0.3,1.")
    ] = "uniform",
    start: Annotated[str, typer.Option(help="'trained' or 'pure'.")] = "trained",
    json: Annotated[bool, typer.Option("--json", help="Print JSON instead of text.")] = False,
) -> None:
    """Print a sampler as the table of numbers that will be run, and its cost.

    Example: glass-flows plan --transitions 2 --steps 3 --rho ddpm
    """
    from .errors import check_name
    from .paths import from_config
    from .plans import plan as compile_plan

    check_name("path", path, ("linear", "cosine", "variance_preserving", "edm"))
    table = compile_plan(
        from_config({"name": path}),
        transitions=transitions,
        steps=steps,
        rho=rho_of(rho, solver),
        times=[number_of(t, "--times") for t in times.split(",")] if "," in times else times,
        solver=solver,
        start=start,
    )
    typer.echo(table.to_json() if json else str(table))


@app.command()
def check(
    seed: Seed = 0,
    samples: Annotated[int, typer.Option(help="Draws behind each statistical line.")] = 20_000,
) -> None:
    """Compare the samplers with exact answers on a Gaussian mixture (under a minute)."""
    from .experiments.check import checks

    failed = 0
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
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoints in the folder, if any.")
    ] = True,
) -> None:
    """Train the digits network and its two classifiers (about a minute on two cores).

    Example: glass-flows train digits --out out/digits
    """
    from .experiments.train_digits import train_digits as run_training

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
    scenes: Annotated[int, typer.Option(help="Different scenes to train on.")] = 60_000,
    start: Annotated[
        Path | None,
        typer.Option(
            help="Folder of a trained Shapes pipeline to go on from (its autoencoder is kept)."
        ),
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    seed: Seed = 0,
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoints in the folder, if any.")
    ] = True,
) -> None:
    """Train a small FluxPipeline on the Shapes world (one to three hours on two cores).

    The folder can be opened with diffusers, and steered with `glass-flows align --model
    shapes:FOLDER`.

    Example: glass-flows train shapes --out out/shapes
    """
    from .experiments.train_shapes import train_shapes as run_training

    run_training(
        out,
        steps=steps,
        vae_steps=vae_steps,
        text_steps=text_steps,
        scenes=scenes,
        start=start,
        device=device,
        seed=seed,
        resume=resume,
    )
    typer.echo(f"pipeline: {out}")


@train_app.command("clip")
def train_clip(
    out: Out,
    steps: Annotated[int, typer.Option(help="Training steps.")] = 3_000,
    scenes: Annotated[int, typer.Option(help="Different scenes to train on.")] = 60_000,
    start: Annotated[
        Path | None, typer.Option(help="Folder of a trained Shapes CLIP to go on from.")
    ] = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda or mps.")] = None,
    seed: Seed = 1,
    resume: Annotated[
        bool, typer.Option(help="Go on from the checkpoints in the folder, if any.")
    ] = True,
) -> None:
    """Train the CLIPModel that serves as reward in the Shapes world (half an hour on one core).

    Example: glass-flows train clip --out out/clip
    """
    from .experiments.train_clip import train_clip as run_training

    run_training(
        out, steps=steps, scenes=scenes, start=start, device=device, seed=seed, resume=resume
    )
    typer.echo(f"model: {out}")


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
    from .integrations.rewards import convert_reward as run_conversion

    folder = run_conversion(name, file, out, base=base)
    typer.echo(f"reward: {folder}\nuse it with: --reward {name}:{folder}")


def _align_pipeline(out: Path, **options: Any) -> str:
    """Run it; what to print."""
    from .experiments.align_pipeline import align_pipeline

    report = align_pipeline(out, announce=lambda text: console.print(text, style="dim"), **options)
    if not report.images:  # of a process that writes nothing
        return ""
    lines = [
        f"{prompt}: rewards {', '.join(f'{r:.4g}' for r in sorted(values, reverse=True))}"
        for prompt, values in zip(options["prompts"], report.rewards)
    ]
    if report.judged is not None:
        lines += [
            f"{prompt}: the judge accepts {sum(before)} of {len(before)} plain samples and "
            f"{sum(after)} of {len(after)} here; of the highest reward, "
            f"{'yes' if after[values.index(max(values))] else 'no'}"
            for prompt, values, before, after in zip(
                options["prompts"], report.rewards, report.judged.plain, report.judged.returned
            )
        ]
    backward = f" + {report.gradients} backward" if report.gradients else ""
    lines.append(f"network evaluations: {report.evaluations}{backward}")
    lines += [f"biased: {reason}" for reason in report.biases]
    lines.append(f"best first: {report.picture}\nimages: {report.images[0].parent}")
    lines.append(f"figures: {report.results}")
    return "\n".join(lines)


def _compare_shapes(
    out: Path,
    model: str,
    reward: str,
    prompts: int,
    evaluations: int,
    particles: int,
    seed: int,
) -> str:
    """Run it; what to print."""
    from .experiments.align_pipeline import load_pipeline, load_reward
    from .experiments.compare_shapes import compare_shapes

    transitions = 6
    if evaluations % transitions:
        raise InvalidArgument(f"--evaluations must be a multiple of {transitions}: {evaluations}")
    report = compare_shapes(
        out,
        pipe=load_pipeline(model),
        reward=load_reward(reward, model=model),
        count=prompts,
        tuning_count=max(2, prompts // 4),
        particles=particles,
        transitions=transitions,
        steps=evaluations // transitions,
        seed=seed,
        announce=lambda text: console.print(text, style="dim"),
    )
    return (
        f"{report.table.read_text(encoding='utf-8')}\nfigures: {report.results}\n"
        f"pictures: {report.picture}, {report.hacking}"
    )


def _given(**options: tuple[Any, Any]) -> dict[str, Any]:
    """Those options that differ from their defaults."""
    return {name: value for name, (value, default) in options.items() if value != default}


def _schedule(text: str) -> Any:
    """--schedule: a name, 'adaptive:ESS', or shares of λ."""
    from .steering import Adaptive

    if text.startswith("adaptive:"):
        return Adaptive(number_of(text.removeprefix("adaptive:"), "--schedule adaptive:"))
    return [number_of(part, "--schedule") for part in text.split(",")] if "," in text else text


def _value(text: str) -> Any:
    """--value: 'free' or 'posterior:n:m'."""
    from .errors import check_name
    from .steering import PosteriorValue

    name, _, sizes = text.partition(":")
    check_name("value", name, ("free", "posterior"))
    if name == "free" or not sizes:
        return name
    samples, _, steps = sizes.partition(":")
    if not samples.isdigit() or not steps.isdigit():
        raise InvalidArgument(f"--value posterior:n:m needs two integers, got {text!r}")
    return PosteriorValue(int(samples), int(steps))


def _guidance(through: str, scale: float, clip: float | None, sigma_data: float) -> Any:
    """--guidance: 'none', 'reward' or 'network'."""
    from .errors import check_name
    from .guidance import Guidance

    if check_name("guidance", through, ("none", "reward", "network")) == "none":
        return None
    return Guidance(scale, through, clip=clip, sigma_data=sigma_data)
