"""What refinement does to the law of a model, and for pictures.

    python -m benchmarks.refinement law          # the tilted law of the digits, by chains of moves
    python -m benchmarks.refinement guided       # moves without a reward under guidance
    python -m benchmarks.refinement less-guided  # the same, with a share of that guidance
    python -m benchmarks.refinement guided-shapes
    python -m benchmarks.refinement less-guided-shapes
    python -m benchmarks.refinement improve      # rejected pictures of Shapes, after some moves
    python -m benchmarks.refinement shapes       # plain, best-of-N, steering, refinement on Shapes

    [--quick] [--model shapes:FOLDER] [--out docs/refinement.md] [--picture FILE] [--evaluations E]

Tables go to stdout as Markdown, and into FILE between the two comments that name the command.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor

from benchmarks.pages import write_between_marks
from glass_flows import Refine, Sampler, best_of, refine, sample
from glass_flows.denoisers import Denoiser
from glass_flows.jobs.models import Digits, Shapes, digits_denoiser, resolve
from glass_flows.jobs.pictures import Strip, image_grid, save_png
from glass_flows.measures import diversity, frechet_distance, mean, share
from glass_flows.paths import Path as ProbabilityPath
from glass_flows.plans import Default, FirstOrder, Paper
from glass_flows.plans.kernels import Ends, Rho
from glass_flows.plans.table import Transition
from glass_flows.research.digits import judge_features, real_features
from glass_flows.research.recipe import Recipe, judged
from glass_flows.research.train_shapes import pixels
from glass_flows.research.writing import markdown
from glass_flows.rewards import ClassReward
from glass_flows.steering import BestOf, Ramp, Steering
from glass_flows.steering.loop import Watch
from glass_flows.worlds.digits import IMAGE
from glass_flows.worlds.shapes import prompts

SIGMA = 0.7  # of the digits' pixels
CYCLE = tuple(round(0.1 * i, 1) for i in range(1, 9))  # where the moves of the law noise to


@dataclass(frozen=True)
class AncestralDDPM:
    """A draw from x_t to data in m DDPM steps of one evaluation each, as a solver."""

    name = "ancestral"

    def config(self) -> dict[str, Any]:
        return {"solver": self.name}

    def transitions(
        self, path: ProbabilityPath, ends: Ends, rule: Rho, steps: int, pure: bool
    ) -> tuple[Transition, ...]:
        times = np.linspace(ends.t, ends.t_next, steps + 1).tolist()
        each = (Ends.of(path, t, later) for t, later in pairwise([*times[:-1], ends.t_next]))
        return tuple(tr for e in each for tr in FirstOrder().transitions(path, e, "ddpm", 1, pure))


# --- the law --------------------------------------------------------------------------------------


def law(quick: bool) -> Iterator[str]:
    """Chains of 60 moves at λ = 1, all ten classes, beside importance-weighted draws."""
    chains, draws, moves = (40, 400, 16) if quick else (400, 4_000, 60)
    model = cast(Digits, resolve("digits"))
    solvers: dict[str, Any] = {
        "GLASS": Default(sigma_data=SIGMA),
        "DDPM": AncestralDDPM(),
        "Algorithm 1": Paper(),
    }
    rows = [("exact: weighted draws", "", *_exact(model, draws))]
    for name, solver in solvers.items():
        for each in (2, 3, 6) if name == "GLASS" else (3, 6):
            rows.append((name, str(each), *_chains(model, solver, each, chains, moves)))
    yield markdown(("moves by", "evaluations", "judge accepts, %", "reward", "accepted, %"), rows)
    yield (
        f"Refine(scale=1, moves={moves}, schedule='constant', ess_threshold=0, returned='last'), "
        f"t = 0.1 to 0.8 in turn; {10 * chains:,} chains from 24 evaluations of the ODE, and "
        f"{10 * draws:,} weighted draws of the same, all ten classes. ± is one standard error."
    )


def _exact(model: Digits, count: int) -> tuple[str, str, str]:
    verdicts: list[list[float]] = []
    rewards: list[list[float]] = []
    for label in range(10):
        result = best_of(
            model.denoiser, ClassReward(model.classifiers["reward"], label), shape=IMAGE,
            particles=100, populations=count // 100, steps=24, seed=1_000 + label,
            solver=Default(sigma_data=SIGMA), progress=False,
        )  # fmt: skip
        weights = result.log_weights.flatten().softmax(0).view_as(result.rewards)
        found = model.verdicts(result.samples, [label] * len(result.samples))
        # Of ten batches of the draws, each by its own weights: their spread is the error.
        accepted = torch.tensor(found, dtype=torch.float64)
        for values, into in ((accepted, verdicts), (result.rewards.double(), rewards)):
            parts = zip(weights.chunk(4), values.chunk(4))
            into.append([float((w * v).sum() / w.sum()) for w, v in parts])
    return (*_told(np.mean(verdicts, 0), np.mean(rewards, 0)), "")


def _chains(model: Digits, solver: Any, steps: int, count: int, moves: int) -> tuple[str, str, str]:
    method = Refine(
        particles=1, scale=1.0, moves=moves, move_times=CYCLE, move_steps=steps,
        schedule="constant", ess_threshold=0.0, returned="last",
    )  # fmt: skip
    verdicts, rewards, accepted = [], [], []
    for label in range(10):
        begin = sample(
            model.denoiser, (count, *IMAGE), Sampler(1, 24, "ode", solver=Default(SIGMA)),
            seed=label, progress=False,
        )  # fmt: skip
        result = refine(
            model.denoiser, ClassReward(model.classifiers["reward"], label), method,
            Sampler(6, 4, 0.4, solver=solver), shape=IMAGE, populations=count, init=begin,
            seed=label, progress=False,
        )  # fmt: skip
        verdicts += model.verdicts(result.samples, [label] * count)
        rewards.append(result.rewards.flatten())
        accepted.append(float(result.acceptance.mean()))
    return (
        *_told(np.ravel(verdicts), torch.cat(rewards).numpy()),
        f"{100 * np.mean(accepted):.0f}",
    )


def _told(verdicts: Any, rewards: Any) -> tuple[str, str]:
    one, other = mean(np.asarray(verdicts, float)), mean(np.asarray(rewards, float))
    return (
        f"{100 * one.value:.1f} ± {100 * one.error:.1f}",
        f"{other.value:.3f} ± {other.error:.3f}",
    )


# --- under guidance -------------------------------------------------------------------------------


def guided(quick: bool, moves: int = 60) -> Iterator[str]:
    """Digits of a class under classifier-free guidance, moved again and again under all of it."""
    count, scales = (4, (1.0, 5.0)) if quick else (60, (1.0, 3.0, 5.0, 7.0))
    model = cast(Digits, resolve("digits"))
    times: tuple[float | Ramp, ...] = (0.1, 0.3, 0.5, 0.7, Ramp())
    labels = torch.arange(10).repeat_interleave(count)
    rows = []
    for scale in scales:
        networks = digits_denoiser(0, scale)
        denoiser = replace(networks, conditioning={"label": labels})
        begin = sample(denoiser, (len(labels), *IMAGE), Sampler.ode(24), seed=0, progress=False)
        blank = [""] * (len(times) - 1)
        rows.append((f"{scale:g}", "before", _digits(model, begin, labels), *blank))
        for steps in (3, None, 12):
            after = (_moved(denoiser, begin, t, steps, moves, 1.0) for t in times)
            told = "as by default" if steps is None else str(steps)
            rows.append((f"{scale:g}", told, *(_digits(model, z, labels) for z in after)))
    titles = ("ramp" if isinstance(t, Ramp) else f"t = {t:g}" for t in times)
    yield markdown(("guidance", "evaluations", *titles), rows)
    yield (
        "Judge accepts, in percent / squared Fréchet distance to the real digits / diversity / "
        f"standard deviation of the pixels; {len(labels)} digits, before and after {moves} moves "
        "that all noise to one t, or to times from 0.1 to 0.8, as by default. Real digits: "
        "diversity 10.8, standard deviation 0.76."
    )


def less_guided(quick: bool) -> Iterator[str]:
    """Guided digits, moved sixty times by the default's ramp with a share of their guidance."""
    count, scales = (4, (3.0,)) if quick else (60, (3.0, 5.0, 7.0))
    model, shares = cast(Digits, resolve("digits")), (0.0, 0.25, 0.5, 1.0)
    labels, rows = torch.arange(10).repeat_interleave(count), []
    for scale in scales:
        denoiser = replace(digits_denoiser(0, scale), conditioning={"label": labels})
        begin = sample(denoiser, (len(labels), *IMAGE), Sampler.ode(24), seed=0, progress=False)
        after = [_moved(denoiser, begin, Ramp(), None, 60, share) for share in shares]
        rows.append((f"{scale:g}", *(_digits(model, z, labels) for z in (begin, *after))))
    yield markdown(("guidance", "before", *(f"share {share:g}" for share in shares)), rows)
    yield f"As above; {len(labels)} digits, 60 moves to times from 0.1 to 0.8."


def _moved(
    denoiser: Denoiser, begin: Tensor, t: float | Ramp, steps: int | None, moves: int, share: float
) -> Tensor:
    method = replace(_walk(moves, t, share), move_steps=steps)
    result = refine(
        denoiser, _nothing, method, shape=IMAGE, populations=len(begin), init=begin, seed=1,
        progress=False,
    )  # fmt: skip
    return result.samples[:, 0]


def _walk(moves: int, t: float | Ramp, share: float) -> Refine:
    """Chains that accept everything, and are returned where they stand."""
    return Refine(
        particles=1, scale=0.0, moves=moves, move_times=t, move_guidance=share,
        ess_threshold=0.0, returned="last",
    )  # fmt: skip


def _nothing(z: Tensor) -> Tensor:
    return z.new_zeros(len(z))


def _digits(model: Digits, z: Tensor, labels: Tensor) -> str:
    features, apart = judge_features(model, z), []
    accepted = np.mean(model.verdicts(z[:, None], labels.tolist()))
    for label in sorted(set(labels.tolist())):
        own = features[(labels == label).numpy()]
        apart.append((frechet_distance(own, real_features(model, label)), diversity(own)))
    distance, spread = np.mean(apart, 0)
    return f"{100 * accepted:.0f} / {distance:.0f} / {spread:.1f} / {float(z.std()):.2f}"


# --- pictures -------------------------------------------------------------------------------------


def improve(quick: bool, model: Shapes, picture: Path | None) -> Iterator[str]:
    """Plain pictures that the judge rejects, refined under their prompts and the CLIP."""
    wanted, most = (4, (1, 2)) if quick else (40, (5, 10, 20))
    plain = Recipe(BestOf(1), Sampler.ode(12))
    rejected: list[tuple[str, Tensor]] = []
    asked = [str(prompt) for prompt in prompts("test", 200)]
    for i in range(0, len(asked), 10):
        batch = tuple(asked[i : i + 10])
        result = model.run(plain.job(model, prompts=batch, seed=i), Watch(progress=False))
        verdicts = judged(model, result) or []
        found = zip(batch, result.result.samples[:, 0], verdicts)
        rejected += [(prompt, z) for prompt, z, accepted in found if not accepted]
        if len(rejected) >= wanted:
            break
    names, states = zip(*rejected[:wanted])
    begin, rows, strips = torch.stack(states), [], []
    for scale in (0.25, 1.0):
        for moves in (0, *most):
            method = Refine(1, scale, moves=moves, move_times=Ramp(0.3, 0.7))
            result = _refined(model, method, names, begin)
            verdicts = judged(model, result) or []
            accepted = share(np.array(verdicts, float))
            low, high = (100 * end for end in accepted.interval)
            told = f"{100 * accepted.value:.0f} ({low:.0f} to {high:.0f})"
            cost = result.result.network_evaluations / len(names)
            if moves:
                rows.append((f"{scale:g}", str(moves), told, f"{cost:.0f}"))
            if scale == 1.0:
                arrays = np.stack([np.asarray(image.convert("RGB")) for image in result.best])
                caption = f"after {moves} moves" if moves else "rejected by the judge"
                shown = pixels(arrays[:8], torch.device("cpu"))
                strips.append(Strip(caption, shown, verdicts[:8]))
    yield markdown(("λ", "moves", "judge accepts, % (95 %)", "passes of the network"), rows)
    yield (
        f"{len(names)} plain samples that the judge rejected, one chain each from that picture, "
        "t from 0.3 to 0.7, reward the Shapes CLIP, classifier-free guidance 3."
    )
    if picture is not None:
        save_png(
            image_grid(strips, 8, 96), picture, command="python -m benchmarks.refinement improve"
        )
        yield "Shown are, from left to right: " + "; ".join(names[:8]) + "."


def guided_shapes(quick: bool, model: Shapes, moves: int = 60) -> Iterator[str]:
    """Plain samples of Shapes at several guidances, moved again and again under all of it."""
    count, scales = (4, (3.0,)) if quick else (30, (1.0, 3.0, 5.0, 7.0))
    times: tuple[float | Ramp, ...] = (0.3, Ramp())
    asked, rows = [str(prompt) for prompt in prompts("test", count)], []
    for scale in scales:
        call = _under(model, scale)
        plain = _moved_shapes(model, asked, call, BestOf(1), Sampler.ode(24), None)
        rows.append((f"{scale:g}", "before", _accepted(model, plain), *[""] * (len(times) - 1)))
        for steps in (3, None):
            told = "as by default" if steps is None else str(steps)
            found = []
            for t in times:
                method = replace(_walk(moves, t, 1.0), move_steps=steps)
                begin = plain.result.samples
                after = _moved_shapes(model, asked, call, method, Sampler.ode(6), begin)
                found.append(_accepted(model, after))
            rows.append((f"{scale:g}", told, *found))
    yield markdown(("guidance", "evaluations", "t = 0.3", "ramp"), rows)
    yield (
        "Judge accepts, in percent / standard deviation of the latents; one sample for each of "
        f"{len(asked)} held-out prompts, before and after {moves} moves that all noise to 0.3, or "
        "to times from 0.1 to 0.8, as by default. An error of a share is about "
        f"{100 * (0.1 / len(asked)) ** 0.5:.0f} points."
    )


def less_guided_shapes(quick: bool, model: Shapes) -> Iterator[str]:
    """Plain samples of Shapes, moved sixty times with a share of their guidance."""
    count, scales = (4, (3.0,)) if quick else (30, (3.0, 5.0, 7.0))
    times: tuple[float | Ramp, ...] = (0.3, Ramp())
    asked, rows = [str(prompt) for prompt in prompts("test", count)], []
    for scale in scales:
        call = _under(model, scale)
        plain = _moved_shapes(model, asked, call, BestOf(1), Sampler.ode(24), None)
        rows.append((f"{scale:g}", "before", _accepted(model, plain), ""))
        for part in (0.25, 0.5):
            found = (
                _moved_shapes(
                    model, asked, call, _walk(60, t, part), Sampler.ode(6), plain.result.samples
                )
                for t in times
            )
            rows.append((f"{scale:g}", f"{part:g}", *(_accepted(model, one) for one in found)))
    yield markdown(("guidance", "share in moves", "t = 0.3", "ramp"), rows)
    yield f"As above; {len(asked)} held-out prompts, 60 moves."


def _under(model: Shapes, scale: float) -> dict[str, Any]:
    """The pipeline's call at this guidance."""
    call = {**model.call, "true_cfg_scale": scale}
    if scale == 1.0:
        del call["true_cfg_scale"], call["negative_prompt"]
    return call


def _moved_shapes(
    model: Shapes, asked: Sequence[str], call: Any, method: Any, sampler: Sampler, begin: Any
) -> Any:
    from glass_flows.diffusers import steer_pipeline

    def nothing(images: Tensor) -> Tensor:
        return images.new_zeros(len(images))

    init = {} if begin is None else {"init": begin}
    return steer_pipeline(
        model.pipe, list(asked), nothing, method, sampler, seed=0, decode_batch=None,
        progress=False, **init, **call,
    )  # fmt: skip


def _accepted(model: Shapes, result: Any) -> str:
    share = np.mean(judged(model, result) or [])
    return f"{100 * share:.0f} / {float(result.result.samples.std()):.2f}"


def _refined(model: Shapes, method: Refine, asked: Sequence[str], begin: Tensor) -> Any:
    from glass_flows.diffusers import steer_pipeline

    job = Recipe(method, Sampler.ode(6)).job(model, prompts=tuple(asked))
    return steer_pipeline(
        model.pipe, list(asked), model.reward(job), method, Sampler.ode(6), init=begin, seed=0,
        decode_batch=None, progress=False, **model.call,
    )  # fmt: skip


def shapes(quick: bool, model: Shapes, budgets: Sequence[int]) -> Iterator[str]:
    """The methods on held-out prompts, four particles of so many evaluations each."""
    count, scale = (6 if quick else 120), 0.5
    asked = [str(prompt) for prompt in prompts("test", count)]
    rows = []
    for evaluations in budgets[:1] if quick else budgets:
        recipes = {
            "plain": Recipe(BestOf(1), Sampler.ode(evaluations)),
            "best-of-4": Recipe(BestOf(4), Sampler.ode(evaluations)),
            "steering": Recipe(Steering(4, scale), Sampler(evaluations // 4, 4, 0.4)),
            "steering, a look at each": Recipe(Steering(4, scale), Sampler(evaluations, 1, "ddpm")),
            "refinement": _at(evaluations, 0.5, scale),
            "refinement, no exchange": _at(evaluations, 0.0, scale),
            "refinement, all the guidance": _at(evaluations, 0.5, scale, 1.0),
            "refinement, all of it, no exchange": _at(evaluations, 0.0, scale, 1.0),
        }
        for name, recipe in recipes.items():
            rows.append((name, *_worth(model, recipe, asked)))
    head = ("method", "passes per particle", "judge accepts, %", "reward", "diversity", "decodes")
    yield markdown(head, rows)
    yield (
        f"{count} held-out prompts, λ = {scale:g}, classifier-free guidance 3 (two passes of the "
        "network for an evaluation). Diversity: mean distance between the images returned for one "
        "prompt, in the CLIP's features times 100. ± is one standard error."
    )


def _at(evaluations: int, threshold: float, scale: float, share: float | None = None) -> Recipe:
    """As many moves as the evaluations last, with a share of classifier-free guidance 3."""
    method = Refine(
        4, scale, ess_threshold=threshold, move_times=Ramp(0.3, 0.8), move_guidance=share
    )
    return Recipe(method.filling(evaluations, 6, 3.0), Sampler.ode(6))


def _worth(model: Shapes, recipe: Recipe, asked: Sequence[str]) -> tuple[str, ...]:
    verdicts, rewards, spread, costs = [], [], [], np.zeros(2)
    for i in range(0, len(asked), 10):
        job = recipe.job(model, prompts=tuple(asked[i : i + 10]), seed=i)
        result = model.run(job, Watch(progress=False))
        verdicts += judged(model, result) or []
        rewards += result.rewards.amax(1).tolist()
        costs += result.result.network_evaluations, result.result.decodes
        if recipe.method.particles > 1:
            spread += [_apart(model, row) for row in result.rows]
    particles = recipe.method.particles * len(asked)
    one, other = mean(np.array(verdicts, float)), mean(np.array(rewards))
    return (
        f"{costs[0] / particles:.0f}",
        f"{100 * one.value:.0f} ± {100 * one.error:.0f}",
        f"{other.value:.2f} ± {other.error:.2f}",
        f"{np.mean(spread):.1f}" if spread else "",
        f"{costs[1] / particles:.0f}",
    )


@torch.no_grad()
def _apart(model: Shapes, images: Sequence[Any]) -> float:
    """Mean distance between images, in the features of the CLIP."""
    from glass_flows.worlds.shapes.clip import load_clip

    clip = load_clip()
    arrays = np.stack([np.asarray(image.convert("RGB")) for image in images])
    seen = clip.get_image_features(pixel_values=pixels(arrays, torch.device("cpu"))).pooler_output
    return 100 * float(torch.pdist(torch.nn.functional.normalize(seen, dim=-1)).mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument(
        "what",
        choices=(
            "law",
            "guided",
            "less-guided",
            "guided-shapes",
            "less-guided-shapes",
            "improve",
            "shapes",
        ),
    )
    parser.add_argument("--quick", action="store_true", help="a look at it, in a minute")
    parser.add_argument("--model", default="shapes", help="shapes, or shapes:FOLDER")
    parser.add_argument("--out", type=Path, help="a page with a place for the table")
    parser.add_argument("--picture", type=Path, help="PNG of the first eight (improve)")
    parser.add_argument(
        "--evaluations", type=int, nargs="+", default=[24, 60], help="of a particle (shapes)"
    )
    parser.add_argument(
        "--moves", type=int, default=60, help="without a reward (guided, guided-shapes)"
    )
    given = parser.parse_args()
    model = resolve(given.model)
    if not isinstance(model, Shapes):
        parser.error(f"--model is shapes or shapes:FOLDER, got {given.model!r}")
    sections: dict[str, Callable[[], Iterator[str]]] = {
        "law": lambda: law(given.quick),
        "guided": lambda: guided(given.quick, given.moves),
        "less-guided": lambda: less_guided(given.quick),
        "guided-shapes": lambda: guided_shapes(given.quick, model, given.moves),
        "less-guided-shapes": lambda: less_guided_shapes(given.quick, model),
        "improve": lambda: improve(given.quick, model, given.picture),
        "shapes": lambda: shapes(given.quick, model, given.evaluations),
    }
    text = "\n".join(sections[given.what]()) + "\n"
    print(text)
    if given.out is not None:
        write_between_marks(given.out, f"python -m benchmarks.refinement {given.what}", text)


if __name__ == "__main__":
    main()
