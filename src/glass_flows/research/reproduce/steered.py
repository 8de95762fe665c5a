"""The experiments on reward alignment: methods, ρ and the split of a budget, over-optimisation."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ...guidance import Guidance
from ...plans import EulerMaruyama, Paper, Rho, Sampler
from ...steering import BestOf, Steering, Twist
from ..recipe import Aid, Recipe
from .base import Cell, Column, Experiment, Result, Scale, Value, shown
from .benches import Bench, DigitsBench, bench_of
from .plots import lines, of, points

_SAMPLER = Sampler(6, 4, 0.4)
_COLUMNS = (
    Column("judge", "judge accepts, %", "{:.1f}", 100),
    Column("reward", "reward", "{:.2f}"),
    Column("other reward", "another reward", "{:.2f}"),
    Column("Fréchet", "Fréchet distance", "{:.1f}"),
    Column("diversity", "diversity", "{:.2f}"),
    Column("evaluations", "evaluations per image returned", "{:g}"),
)
Told = tuple[dict[str, Value], Recipe]
"""What a recipe goes by in the table, and the recipe."""


def _steered(
    name: str,
    recipes: Callable[[Bench, Scale], Sequence[Told]],
    draw: Callable[[list[Result], Any], None],
    columns: Sequence[Column] = _COLUMNS[:5],
    model: str | None = None,
    every: int = 1,
) -> Experiment:
    """An experiment with a cell for each recipe and target, with a folder for its images.

    Of the digits, `every` so many are targets.
    """

    def cells(scale: Scale, folder: Path) -> list[Cell]:
        scale = scale if model is None else replace(scale, model=model)
        bench = bench_of(scale)
        return [
            Cell({**told, **target}, partial(bench.run, recipe, target["target"], images))
            for told, recipe in recipes(bench, scale)
            for images in [folder / "images" / _slug(" ".join(map(shown, told.values())))]
            for target in bench.targets[:: every if isinstance(bench, DigitsBench) else 1]
        ]

    return Experiment(
        name,
        cells,
        tuple(columns),
        draw,
        pool=("category", "target"),
        pipelines=model is None,
    )


def _slug(name: str) -> str:
    """A name as a folder may have it."""
    return re.sub(r"[^a-z0-9.]+", "-", name.lower()).strip("-")


def _measure(results: Sequence[Result]) -> str:
    """The independent verdict where there is one."""
    return "judge" if "judge" in results[0].values else "reward"


# ------------------------------------------------------------------------------------- alignment


def methods(bench: Bench) -> dict[str, Recipe]:
    """The methods by title: 24 evaluations on each of N particles."""
    ours = bench.steering(_SAMPLER)
    ode = _SAMPLER.baseline()
    # The SDEs, whose transitions are of one evaluation, stop where GLASS does.
    single = Sampler(_SAMPLER.evaluations, 1, "ddpm")
    sde = Recipe(Steering(bench.particles, bench.scale, boundaries=4), single)
    maruyama = replace(single, rho=None, solver=EulerMaruyama())
    return {
        "plain": Recipe(BestOf(1), ode),
        "best-of-n": Recipe(BestOf(bench.particles), ode),
        "steering: DDPM": sde,
        "steering: Euler-Maruyama": replace(sde, sampler=maruyama),
        "steering: GLASS, Algorithm 1": bench.steering(replace(_SAMPLER, solver=Paper())),
        "steering: GLASS": ours,
        "steering: GLASS + guidance": bench.steering(_SAMPLER, Guidance(bench.guidance)),
        "steering: GLASS + twist": bench.steering(_SAMPLER, Twist(cap=1.5)),
    }


def _alignment(bench: Bench, scale: Scale) -> list[Told]:
    listed = list(methods(bench).items())
    chosen = scale.of(listed, [listed[i] for i in (1, 5, 7)])
    return [({"method": title}, recipe) for title, recipe in chosen]


def _draw_alignment(results: list[Result], figure: Any) -> None:
    axis, measure = figure.subplots(), _measure(results)
    axis.barh(
        [str(one["method"]) for one in results],
        [one[measure] for one in results],
        xerr=[1.96 * one.error(measure) for one in results],
        color="tab:green" if measure == "judge" else "tab:blue",
        capsize=2,
    )
    axis.invert_yaxis()
    axis.set(xlabel="judge accepts (95 %)" if measure == "judge" else measure)


ALIGNMENT = _steered("alignment", _alignment, _draw_alignment, _COLUMNS)
PROMPTS = _steered(
    "prompts", _alignment, _draw_alignment, [_COLUMNS[i] for i in (0, 1, 4, 5)], model="shapes"
)


# ------------------------------------------------------------------------------------------- rho


def _late(t: float, t_next: float) -> float:
    """Keeps the noise early and renews it late."""
    return 1.0 - t_next


def _early(t: float, t_next: float) -> float:
    return t


_RHOS: dict[str, Rho] = {
    **{f"{rho}": rho for rho in (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)},
    "ddpm": "ddpm",
    "1 - t'": _late,
    "t": _early,
}
_SPLITS = ((24, 1), (12, 2), (8, 3), (4, 6), (3, 8), (2, 12))


def _rho(bench: Bench, scale: Scale) -> list[Told]:
    listed = [(rho, 6, 4) for rho in scale.of([*_RHOS], ["0.4"])]
    listed += [("0.4", k, m) for k, m in scale.of(_SPLITS, _SPLITS[-1:])]
    return [
        ({"rho": rho, "K": k, "M": m}, bench.steering(Sampler(k, m, _RHOS[rho])))
        for rho, k, m in listed
    ]


def _draw_rho(results: list[Result], figure: Any) -> None:
    measure = _measure(results)
    by_rho, by_split = figure.subplots(1, 2, sharey=True)
    own = of(results, K=6, M=4)
    points(by_rho, own, [str(r["rho"]) for r in own], measure, xlabel="ρ, at 6 transitions of 4")
    own = sorted(of(results, rho="0.4"), key=lambda r: r["M"])
    points(by_split, own, [f"{r['K']}×{r['M']}" for r in own], measure, xlabel="K × M, at ρ = 0.4")
    by_rho.set(ylabel=f"{measure} (95 %)")


RHO = _steered("rho", _rho, _draw_rho)


# -------------------------------------------------------------------------------------- settings

_SHARES = (0.125, 0.25, 0.5, 1.0, 2.0, 4.0)
_POTENTIALS = ("difference", "max", "sum", "immediate", "terminal")
_POPULATIONS = ((2, 12, 4), (4, 6, 4), (8, 3, 4), (4, 24, 1), (8, 12, 1), (16, 6, 1), (32, 3, 1))


def _settings(bench: Bench, scale: Scale) -> list[Told]:
    steering = Steering(bench.particles, bench.scale)

    def told(what: str, value: str, sampler: Sampler = _SAMPLER, **changes: Any) -> Told:
        return {"varied": what, "value": value}, Recipe(replace(steering, **changes), sampler)

    strengths = [bench.scale * share for share in scale.of(_SHARES, (0.25,))]
    potentials = scale.of(_POTENTIALS, ("max",))
    populations = scale.of(_POPULATIONS, ((8, 3, 4),))
    return [
        *(told("λ", f"{strength:g}", scale=strength) for strength in strengths),
        *(told("potential", name, potential=name) for name in potentials),
        *(
            told("particles", f"{n}, {k}×{m}", Sampler(k, m, 0.4), particles=n)
            for n, k, m in populations
        ),
    ]


def _draw_settings(results: list[Result], figure: Any) -> None:
    measure, kinds = _measure(results), list(dict.fromkeys(r["varied"] for r in results))
    axes = figure.subplots(1, len(kinds), sharey=True)
    for axis, kind in zip(axes, kinds):
        own = of(results, varied=kind)
        points(axis, own, [r["value"] for r in own], measure, xlabel=kind)
        axis.tick_params("x", rotation=40, labelsize=8)
    axes[0].set(ylabel=f"{measure} (95 %)")


SETTINGS = _steered("settings", _settings, _draw_settings)


# -------------------------------------------------------------------------------------- guidance

_STRENGTHS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)


def _guidance(bench: Bench, scale: Scale) -> list[Told]:
    aids: dict[str, Callable[[float], Aid]] = {
        "guidance": lambda strength: Guidance(bench.guidance * strength),
        "twist": lambda strength: Twist(strength, cap=3.0),
    }
    return [
        ({"kind": k, "strength": w}, bench.steering(_SAMPLER, aid(w) if w else None))
        for k, aid in aids.items()
        for w in scale.of(_STRENGTHS, (0.0, 2.0))
    ]


def _draw_guidance(results: list[Result], figure: Any) -> None:
    measure = _measure(results)
    along, against = figure.subplots(1, 2)
    lines(along, results, "strength", measure, "kind", xscale="symlog")
    along.legend(fontsize=8)
    other = "Fréchet" if "Fréchet" in results[0].values else measure
    for kind in ("guidance", "twist"):
        own = of(results, kind=kind)
        against.plot([r["reward"] for r in own], [r[other] for r in own], "o-", label=kind)
    for one in results:
        against.annotate(
            f"{one['strength']:g}", (one["reward"], one[other]), fontsize=7, xytext=(3, 3),
            textcoords="offset points",
        )  # fmt: skip
    against.set(xlabel="reward", ylabel=other, yscale="log" if other == "Fréchet" else "linear")


GUIDANCE = _steered("guidance", _guidance, _draw_guidance, every=2)
