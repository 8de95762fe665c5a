"""Are the results the same to the bit as those of another revision?

    python tools/bits.py --against REVISION      # both are run here and now, and compared
    python tools/bits.py record bits.json        # of this revision only
    python tools/bits.py compare bits.json

What is run: the digits with every potential, with and without twist and guidance, with every
resampling scheme; values, schedules, solvers, the searches; pipelines of all families, through
their adapters and from inside their own loops; the Shapes pipeline; and a population over two
processes.
The tool imports what this revision has: a revision whose modules have other names (0.1) is recorded
with the tool as it stood then (git show ef6f278:tools/bits.py), and compared with ``compare``.
A result is told by a hash of its tensors and images. Bits depend on the processor and on the number
of threads, which is one here: records of two machines may differ.
"""

from __future__ import annotations

import argparse
import hashlib
import inspect
import itertools
import json
import os
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
os.environ.setdefault("OMP_NUM_THREADS", "1")
Job = Callable[[], Any]

POTENTIALS = ("difference", "max", "sum", "immediate", "terminal",
              "fkd-difference", "fkd-max", "fkd-sum", "fkd-immediate")  # fmt: skip
RESAMPLERS = ("systematic", "ssp", "stratified", "residual", "multinomial")


def digits_jobs() -> Iterator[tuple[str, Job]]:
    import torch

    import glass_flows
    from glass_flows import Guidance, Twist
    from glass_flows.plans import DDIM, Paper
    from glass_flows.rewards import ClassReward
    from glass_flows.steering import Adaptive, PosteriorValue
    from glass_flows.worlds.digits import (
        IMAGE,
        NULL_CLASS,
        load_digits_classifier,
        load_digits_network,
    )

    denoiser = glass_flows.Denoiser(
        load_digits_network(),
        glass_flows.paths.Linear(),
        prediction="velocity",
        unconditional={"label": torch.tensor([NULL_CLASS])},
        conditioning={"label": torch.tensor([NULL_CLASS])},
    )
    reward = ClassReward(load_digits_classifier("reward"), 8)
    shared = {"shape": IMAGE, "populations": 2, "seed": 3, "progress": False}
    small = {**shared, "transitions": 4, "steps": 2, "rho": 0.4}

    def steered(**more: Any) -> Job:
        given = {**small, "particles": 6, "scale": 4.0, **more}
        return lambda: glass_flows.steer(denoiser, reward, **given)

    guides = {
        "none": None,
        "reward": Guidance(0.5, "reward", clip=1.0, sigma_data=0.7),
        "network": Guidance(0.5, "network", sigma_data=0.7),
    }
    for potential, twist, guide, scheme in itertools.product(
        POTENTIALS, (0.0, 1.0), guides, RESAMPLERS
    ):
        yield (
            f"digits: {potential}, twist {twist:g}, guidance {guide}, {scheme}",
            steered(
                potential=potential,
                twist=Twist(twist, sigma_data=0.7) if twist else 0.0,
                guidance=guides[guide],
                resampling=scheme,
                ess_threshold=0.7,
            ),
        )
    others: dict[str, dict[str, Any]] = {
        "posterior value": {"value": PosteriorValue(2, 3)},
        "posterior by name": {"value": "posterior"},
        "value function": {"value": lambda x, t, D: D.mean((1, 2, 3))},
        "linear": {"schedule": "linear"},
        "adaptive": {"schedule": Adaptive(0.6), "potential": "max"},
        "shares": {"schedule": [0.1, 0.2, 0.5, 1.0], "twist": 1.0},
        "every second boundary": {"boundaries": 2},
        "listed boundaries": {"boundaries": [1, 3]},
        "threshold 0": {"ess_threshold": 0.0, "twist": 1.0},
        "threshold 1": {"ess_threshold": 1.0},
        "paper": {"solver": "paper"},
        "paper, schedule": {"solver": Paper(sigma0=0.5)},
        "first-order": {"solver": "first-order"},
        "euler-maruyama": {"solver": "euler-maruyama", "rho": None, "boundaries": 2},
        "ddpm": {"rho": "ddpm"},
        "ddim": {"rho": DDIM(0.5), "steps": 1, "transitions": 8},
        "ode": {"rho": "ode"},
        "rho listed": {"rho": [0.1, 0.2, 0.3, "ddpm"], "steps": [1, 2, 3, 2]},
        "shifted": {"times": "shifted"},
        "karras": {"times": "karras"},
        "float64": {"dtype": torch.float64},
        "scale 0": {"scale": 0.0},
        "unadaptive twist": {"twist": Twist(1.0, cap=2.0, adaptive=False)},
    }
    for name, more in others.items():
        yield f"digits: {name}", steered(**more)
    yield (
        "digits: best of 6",
        lambda: glass_flows.best_of(
            denoiser, reward, particles=6, transitions=1, steps=8, rho="ode", **shared
        ),
    )
    yield (
        "digits: best of 6, transitions",
        lambda: glass_flows.best_of(denoiser, reward, particles=6, scale=2.0, **small),
    )
    if hasattr(glass_flows, "refine"):  # an older revision has none
        chains: dict[str, dict[str, Any]] = {
            "best": {},
            "last": {"returned": "last", "schedule": "constant", "ess_threshold": 0.0},
            "adaptive": {"move_times": "adaptive", "schedule": Adaptive(0.6), "rescore": 1},
            "given": {"init": torch.zeros(IMAGE), "move_times": (0.2, 0.7), "move_steps": (2, 3)},
        }
        for name, more in chains.items():
            yield (
                f"digits: refine, {name}",
                lambda more=more: glass_flows.refine(
                    denoiser, reward, particles=6, scale=4.0, moves=4, **shared, **more
                ),
            )
    old = "beams" in inspect.signature(glass_flows.beam).parameters
    by_beams = {"beams": 3, "children": 2} if old else {"particles": 6, "children": 2}
    by_parents = {"particles": 3 if old else 6, "children": 2}
    for name, more in {
        "free": {},
        "posterior": {"value": PosteriorValue(2, 2), "scale": 3.0},
        "guided": {"guidance": guides["reward"], "scale": 2.0},
        "boundaries": {"boundaries": [1, 2]},
    }.items():
        yield (
            f"digits: beam, {name}",
            lambda more=more: glass_flows.beam(denoiser, reward, **by_beams, **small, **more),
        )
        for pick in ("best", "sample"):
            yield (
                f"digits: greedy, {pick}, {name}",
                lambda more=more, pick=pick: glass_flows.greedy(
                    denoiser, reward, pick=pick, **{"scale": 1.0, **by_parents, **small, **more}
                ),
            )


def redness(images: Any) -> Any:
    mean = images.mean((2, 3))
    return mean[:, 0] - 0.5 * (mean[:, 1] + mean[:, 2])


def pipeline_jobs() -> Iterator[tuple[str, Job]]:
    sys.path.insert(0, str(ROOT / "tests"))
    import diffusers
    import torch
    from PIL import Image

    import glass_flows
    import tiny_pipelines as tiny

    small = {"particles": 4, "transitions": 3, "steps": 2, "seed": 3, "progress": False}
    small |= {"scale": 20.0, "ess_threshold": 1.0}

    def asked(name: str) -> tuple[Any, dict[str, Any]]:
        given = dict(tiny.CALL[name])
        given.pop("class_labels", None)
        return given.pop("prompt", [1, 2]), given

    for name in tiny.FAMILIES:
        prompt, given = asked(name)
        for more in ({"twist": 0.5}, {"max_batch": None, "decode_batch": 2}):
            yield (
                f"{name}: {', '.join(more)}",
                lambda name=name, prompt=prompt, given=given, more=more: glass_flows.steer_pipeline(
                    tiny.build(name), prompt, redness, **small, **more, **given
                ),
            )
    prompt, given = asked("flux")
    for method in ("best-of-n", "beam", "greedy", "svdd"):
        fewer = {k: v for k, v in small.items() if k != "ess_threshold"}
        fewer |= {"rho": 0.4} | ({} if method == "beam" else {"steps": 3})
        yield (
            f"flux: {method}",
            lambda method=method, fewer=fewer: glass_flows.steer_pipeline(
                tiny.build("flux"), [prompt, "a dog"], redness, method=method, **fewer, **given
            ),
        )

    if hasattr(glass_flows, "refine"):
        image = Image.new("RGB", (given["width"], given["height"]), (40, 120, 200))
        for name, more in {"drawn": {}, "a picture": {"init": image}}.items():
            yield (
                f"flux: refine, {name}",
                lambda more=more: glass_flows.steer_pipeline(
                    tiny.build("flux"), [prompt, "a dog"], redness, method="refine", particles=4,
                    moves=2, scale=20.0, seed=3, progress=False, **more, **given,
                ),
            )  # fmt: skip

    def inside() -> Any:
        base = tiny.build("sd")
        words, call = asked("sd")
        pipe = diffusers.StableDiffusionControlNetPipeline(
            **base.components,
            controlnet=diffusers.ControlNetModel.from_unet(
                base.unet, conditioning_embedding_out_channels=(8, 16)
            ),
            requires_safety_checker=False,
        )
        pipe.set_progress_bar_config(disable=True)
        picture = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(1))
        latents = torch.randn(4, 4, 8, 8, generator=torch.Generator().manual_seed(2))
        own = {k: v for k, v in small.items() if k != "progress"}
        return glass_flows.steer_pipeline(
            pipe, words, redness, image=picture, latents=latents, twist=1.0, **own, **call
        )

    with warnings.catch_warnings():
        yield "inside its own loop: controlnet", inside


def shapes_jobs() -> Iterator[tuple[str, Job]]:
    import diffusers
    import torch

    import glass_flows
    from glass_flows.worlds.shapes.clip import BUNDLED as CLIP
    from glass_flows.worlds.shapes.pipeline import BUNDLED, CALL

    pretrained = None
    for place in ("integrations.rewards", "rewards.pretrained"):
        try:
            module = __import__(f"glass_flows.{place}", fromlist=["pretrained_reward"])
            pretrained = module.pretrained_reward
            break
        except ImportError:
            continue
    pipe = diffusers.DiffusionPipeline.from_pretrained(
        BUNDLED, dtype=torch.float32, local_files_only=True, use_safetensors=True
    )
    reward = pretrained("clip", CLIP)
    sentences = ["two blue squares", "a red circle and a green triangle"]
    for more in ({"scale": 0.5}, {"scale": 0.5, "twist": 1.0}, {"method": "best-of-n", "rho": 0.4}):
        yield (
            f"shapes: {more}",
            lambda more=more: glass_flows.steer_pipeline(
                pipe, sentences, reward, particles=4, transitions=4, steps=2, seed=1,
                decode_batch=None, progress=False, **CALL, **more,
            ),
        )  # fmt: skip


def sharded_jobs() -> Iterator[tuple[str, Job]]:
    def two() -> Any:
        with tempfile.TemporaryDirectory() as folder:
            command = [sys.executable, str(ROOT / "tools" / "bits.py"), "process", folder]
            environment = {**os.environ, "GLOO_SOCKET_IFNAME": "lo"}
            jobs = [
                subprocess.Popen([*command, str(r), "2"], env=environment, cwd=ROOT)
                for r in range(2)
            ]
            codes = [job.wait(timeout=120) for job in jobs]
            if any(codes):
                raise RuntimeError("a process failed")
            return [Path(folder, f"{r}.txt").read_text() for r in range(2)]

    yield "two processes", two


def process(folder: Path, rank: int, count: int) -> None:
    import torch
    import torch.distributed as dist

    import glass_flows
    from glass_flows import Twist
    from glass_flows.rewards import ClassReward
    from glass_flows.steering import Shards
    from glass_flows.worlds.digits import (
        IMAGE,
        NULL_CLASS,
        load_digits_classifier,
        load_digits_network,
    )

    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / "store"), count)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    null = {"label": torch.tensor([NULL_CLASS])}
    denoiser = glass_flows.Denoiser(
        load_digits_network(), glass_flows.paths.Linear(), prediction="velocity", conditioning=null
    )
    result = glass_flows.steer(
        denoiser, ClassReward(load_digits_classifier("reward"), 8), shape=IMAGE, particles=8,
        transitions=4, steps=2, rho=0.4, scale=4.0, seed=5, twist=Twist(sigma_data=0.7),
        populations=2, shards=Shards(2), progress=False,
    )  # fmt: skip
    (folder / f"{rank}.txt").write_text(digest(result))
    dist.destroy_process_group()


def digest(result: Any) -> str:
    """A hash of all tensors and images of a result."""
    from PIL import Image
    from torch import Tensor

    found = hashlib.sha256()

    def add(name: str, value: Any) -> None:
        if isinstance(value, Tensor):
            found.update(f"{name} {tuple(value.shape)} {value.dtype}".encode())
            found.update(value.detach().cpu().contiguous().numpy().tobytes())
        elif isinstance(value, Image.Image):
            found.update(f"{name} {value.size}".encode() + value.tobytes())
        elif isinstance(value, (list, tuple)):
            for i, item in enumerate(value):
                add(f"{name}.{i}", item)
        elif isinstance(value, str):
            found.update(value.encode())

    tensors = result
    if hasattr(result, "result"):  # of a pipeline
        add("images", vars(result).get("rows", None) or result.images)  # by prompt, as ever
        add("rewards", result.rewards)
        tensors = result.result
    if isinstance(tensors, list):
        add("parts", tensors)
        return found.hexdigest()[:24]
    names = ("samples", "rewards", "ancestry", "log_weights", "ess", "log_evidence", "shares",
             "twist_shares", "acceptance", "move_times")  # fmt: skip
    for name in names:
        if getattr(tensors, name, None) is not None:
            add(name, getattr(tensors, name))
    costs = tensors.costs
    counted = [costs.network_evaluations, costs.network_gradients, costs.reward_evaluations]
    found.update(json.dumps([*counted, costs.decodes]).encode())
    return found.hexdigest()[:24]


def record() -> dict[str, str]:
    import torch

    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    found = {}
    for name, job in itertools.chain(digits_jobs(), pipeline_jobs(), shapes_jobs(), sharded_jobs()):
        found[name] = digest(job())
    return found


def recorded_at(revision: str) -> dict[str, str]:
    """The record of another revision, made in a worktree of it."""
    with tempfile.TemporaryDirectory() as folder:
        tree, file = Path(folder) / "tree", Path(folder) / "bits.json"
        git = ["git", "-C", str(ROOT), "worktree"]
        subprocess.run([*git, "add", "--detach", "-q", str(tree), revision], check=True)
        try:
            environment = {**os.environ, "PYTHONPATH": str(tree / "src")}
            command = [sys.executable, __file__, "record", str(file)]
            subprocess.run(command, check=True, env=environment)
            return json.loads(file.read_text())
        finally:
            subprocess.run([*git, "remove", "--force", str(tree)], check=True)


def differences(before: dict[str, str], after: dict[str, str]) -> list[str]:
    every = dict.fromkeys([*before, *after])
    return [name for name in every if before.get(name) != after.get(name)]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--against", metavar="REVISION")
    parser.add_argument("what", nargs="?", choices=("record", "compare", "process"))
    parser.add_argument("given", nargs="*")
    asked = parser.parse_args()
    if asked.what == "process":
        folder, rank, count = asked.given
        process(Path(folder), int(rank), int(count))
        return
    if asked.what == "record":
        Path(asked.given[0]).write_text(json.dumps(record(), indent=1) + "\n")
        return
    if asked.what == "compare":
        before = json.loads(Path(asked.given[0]).read_text())
    elif asked.against:
        before = recorded_at(asked.against)
    else:
        parser.error("give --against REVISION, or record FILE, or compare FILE")
    found = differences(before, record())
    print(f"{len(before)} results, {len(found)} differ")
    for name in found:
        print(f"  {name}")
    sys.exit(1 if found else 0)


if __name__ == "__main__":
    main()
