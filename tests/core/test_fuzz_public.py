"""Calls of everything public, drawn at random, with right and wrong arguments.

Such a call is answered by a right result or by a named error, in time, and changes nothing that it
was given (tests/fuzzing.py). More calls, or others, by hand:

    PYTHONPATH=tests python tests/core/test_fuzz_public.py --seed 7 --calls 20000
"""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

import glass_flows as g
from fuzzing import (
    LINEAR,
    METHOD,
    REFINE,
    SAMPLER,
    SEARCH,
    STEERING,
    TABLE,
    TEXTS,
    TRAINED,
    Foreign,
    New,
    Surface,
    any_of,
    check,
    devices,
    dtypes,
    later,
    main,
    model,
    models,
    network,
    paths_,
    positive,
    returning,
    reward,
    rewarded,
    seeds,
    solvers,
    spoiling,
    states,
    switches,
    times,
    writing,
)
from glass_flows import execute, grids, noise, paths, plans, rewards
from glass_flows.batching import Batching
from glass_flows.k_diffusion import sample_glass
from glass_flows.pixels import to_bytes
from glass_flows.rewards import Viewing
from glass_flows.steering import (
    Acceptance,
    Adaptive,
    Costs,
    PosteriorValue,
    Ramp,
    SearchResult,
    iterate_steering,
    method_of,
    over_optimised,
    read_method,
)
from glass_flows.steering.shards import Shards
from glass_flows.steering.strength import Auto

FOUND = SearchResult(
    torch.zeros(1, 2, 3),
    torch.zeros(1, 2),
    torch.zeros(0, 1, 2, dtype=torch.int64),
    Costs(),
    also={"a": torch.zeros(1, 2)},
)


def total(z: Tensor) -> Tensor:
    return z.flatten(1).sum(1)


RUN = {
    "shape": any_of((3,), [2, 2], torch.Size([3]), np.array([3]), ()),
    "populations": any_of(None, 1, 2),
    "prompts": any_of(None, ["a"], ["a", "b"]),
    "seed": seeds,
    "dtype": dtypes,
    "device": devices,
    "x": any_of(None, New(lambda: torch.randn(4, 3))),
    "also": any_of(
        None, returning(None), total, [total], {"a": total, "b": total}, {"reward": total}
    ),
    "shards": any_of(None, New(Shards)),
    "record": any_of(None),
    "on_boundary": any_of(None, returning(None), returning(True)),
    "progress": any_of(False),
}


def finite(result: Tensor, shape: tuple[int, ...], dtype: torch.dtype) -> None:
    assert result.shape == shape, (tuple(result.shape), shape)
    assert result.dtype == dtype, (result.dtype, dtype)
    assert bool(torch.isfinite(result).all())


def like_x(result: Tensor, given: Mapping[str, Any]) -> None:
    if not bool(torch.isfinite(given["x"]).all()):  # a denoiser itself does not look
        return
    finite(result, given["x"].shape, given["x"].dtype)


def like_samples(result: Tensor, given: Mapping[str, Any]) -> None:
    samples = int(given["samples"])
    finite(result, (samples, *given["x"].shape), given["x"].dtype)


def like_start(result: Tensor, given: Mapping[str, Any]) -> None:
    start = given["shape_or_noise"]
    if isinstance(start, Tensor) and start.is_floating_point():
        return finite(result, start.shape, start.dtype)
    return finite(result, tuple(map(int, start)), given.get("dtype") or torch.float32)


def a_run(result: Any, given: Mapping[str, Any]) -> None:
    particles, prompts = int(given.get("particles", 8)), given.get("prompts")
    count = given.get("populations")
    populations = int(count) if count is not None else 1 if prompts is None else len(prompts)
    x = given.get("x") if given.get("init") is None else given["init"]
    dtype = given.get("dtype") or torch.float32 if x is None else x.dtype
    returned = result.rewards.shape[1]
    shape = tuple(int(size) for size in given["shape"])
    finite(result.samples, (populations, returned, *shape), dtype)
    assert returned in (particles, particles // int(given.get("children", 2)))
    assert result.rewards.shape == (populations, returned)
    assert not bool(torch.isnan(result.rewards).any())
    for values in result.also.values():
        assert values.shape == result.rewards.shape
    if hasattr(result, "log_weights"):
        assert not bool(torch.isnan(result.log_weights).any())
    if hasattr(result, "log_weights") and given.get("init") is None:
        assert not bool(torch.isnan(result.log_evidence).any())


def a_table(result: g.Table, given: Mapping[str, Any]) -> None:
    assert g.Table.from_json(result.to_json()) == result
    assert str(result)


def a_number(result: Any, given: Mapping[str, Any]) -> None:
    assert type(result) is float, result
    assert not math.isnan(result)


def increasing(result: tuple[float, ...], given: Mapping[str, Any]) -> None:
    assert all(type(t) is float for t in result)
    assert all(s < t for s, t in itertools.pairwise(result))


def per_row(result: Any, given: Mapping[str, Any]) -> None:
    assert result.shape == given["z"].shape[:1]
    assert result.is_floating_point()
    assert not bool(torch.isnan(result).any())


def spelled(result: Any, given: Mapping[str, Any]) -> None:
    """Settings are read back from text and JSON, unless a function is among them."""
    text, data = str(result), json.dumps(result.as_json(), allow_nan=False)
    if "<" not in text:
        assert type(result).parse(text) == result
        assert type(result).from_json(json.loads(data)) == result


def surfaces() -> list[Surface]:
    return [
        *(*samplers(), *numbers(), *models_(), *scored(), *steered(), *settings()),
        *(*of_videos(), *of_others()),
    ]


def samplers() -> list[Surface]:
    drawn = {"generator": any_of(None, New(torch.Generator)), "seed": seeds}
    executed = {
        "table": any_of(TABLE, TABLE.since(1)),
        "denoiser": any_of(model(), Foreign()),
        "x": states,
        "noise": any_of(noise.KeyedNoise(0), noise.StreamNoise(1)),
    }
    return [
        Surface(
            "transition",
            g.transition,
            {"denoiser": models, "x": states, "t": times, "t_next": later}
            | {"rho": SAMPLER["rho"], "steps": any_of(1, 2, 3)},
            {"solver": solvers, "noise": states, **drawn},
            like_x,
        ),
        Surface(
            "sample",
            g.sample,
            {
                "denoiser": models,
                "shape_or_noise": any_of((4, 3), [2, 2], New(lambda: torch.ones(2, 3))),
            },
            {**SAMPLER, **drawn, "randomness": any_of("particle", "stream"), "dtype": dtypes}
            | {"device": devices, "differentiable": switches, "progress": any_of(False)},
            like_start,
        ),
        Surface(
            "posterior",
            g.posterior,
            {
                "denoiser": models,
                "x": states,
                "t": times,
                "samples": any_of(1, 2),
                "steps": any_of(1, 2),
            },
            {"solver": solvers, "differentiable": switches, **drawn},
            like_samples,
        ),
        Surface("run", execute.run, executed, check=like_x),
        Surface(
            "iterate",
            lambda **given: next(execute.iterate(**given)).x,
            executed,
            {"first": any_of(0, 1)},
            like_x,
        ),
        Surface(
            "select",
            lambda ancestors, delta: [step(ancestors, delta) for step in boundary()],
            {"ancestors": any_of(torch.tensor([0, 0, 1, 3])), "delta": states},
        ),
    ]


def boundary() -> list[Callable[[Any, Any], None]]:
    one = next(execute.iterate(TABLE.since(1), model(), torch.ones(4, 3), noise.KeyedNoise(0)))
    return [lambda ancestors, _: one.select(ancestors), lambda _, delta: one.shift(delta)]


def numbers() -> list[Surface]:
    count = SAMPLER["transitions"]
    rows = {"x": states, "step": any_of(0, 3), "purpose": any_of(0, 1), "draw": any_of(0, 2)}
    found = [
        Surface("plan", plans.plan, {"path": paths_, **SAMPLER}, {}, a_table),
        Surface(
            "plan_transition",
            plans.plan_transition,
            {"path": paths_, "t": times, "t_next": later, "rho": SAMPLER["rho"], "steps": count},
            {"solver": solvers},
            a_table,
        ),
        Surface(
            "outer_times",
            grids.outer_times,
            {"path": paths_, "transitions": count},
            {"times": SAMPLER["times"]},
            increasing,
        ),
        Surface(
            "grid",
            lambda grid, **given: grid(**given),
            {
                "grid": any_of(grids.Uniform(), grids.Shifted()),
                "path": paths_,
                "transitions": count,
            },
            {},
            increasing,
            "grid",
        ),
        Surface("Shifted", grids.Shifted, {"shift": positive}),
        Surface("from_tokens", grids.Shifted.from_tokens, {"tokens": any_of(256, 4096)}),
        Surface(
            "Karras",
            grids.Karras,
            {},
            {"rho": positive, "sigma_min": any_of(None, 0.1), "sigma_max": any_of(None, 9)},
        ),
        Surface("DDIM", g.DDIM, {"eta": any_of(0, 0.5, 1.0)}),
        Surface("Default", plans.Default, {"sigma_data": positive}),
        Surface(
            "Paper",
            plans.Paper,
            {},
            {"sigma0": positive, "s_range": any_of((0, 1), [0.1, 0.9], np.array([0.0, 0.5]))}
            | {"schedule": any_of("linear", "cosine"), "off_grid": any_of("nearest")},
        ),
        Surface("EulerMaruyama", plans.EulerMaruyama, {"noise_level": any_of(0, 0.7)}),
        Surface(
            "EDM", paths.EDM, {}, {"sigma_min": any_of(0.1, 0.01), "sigma_max": any_of(10, 80)}
        ),
        Surface(
            "VP", paths.VariancePreserving, {}, {"beta_min": any_of(0, 0.1), "beta_max": any_of(20)}
        ),
        Surface(
            "DiscreteDiffusion",
            paths.DiscreteDiffusion,
            {
                "alphas_cumprod": any_of(
                    [0.9, 0.1], np.linspace(0.9, 0.1, 5), torch.tensor([0.5, 0.2])
                )
            },
        ),
        Surface(
            "KnownTimes",
            paths.KnownTimes,
            {"path": any_of(LINEAR, paths.EDM()), "times": any_of([0.0, 0.5])},
        ),
        Surface(
            "from_config",
            paths.from_config,
            {"config": any_of(LINEAR.config(), TRAINED.config(), {"name": "edm", "sigma": 3})},
        ),
        Surface(
            "path.time",
            lambda path, a: path.time(a),
            {"path": any_of(LINEAR), "a": any_of(0.0, 1, math.inf)},
            check=a_number,
            fixed="path",
        ),
        Surface(
            "from_json",
            g.Table.from_json,
            {
                "text": any_of(
                    TABLE.to_json(), "{}", "[" * 10**5, TABLE.to_json().replace("0.4", '"a"')
                )
            },
        ),
        Surface("check_seed", noise.check_seed, {"seed": seeds}),
        Surface(
            "noise_source",
            noise.noise_source,
            {"seed": seeds, "generator": any_of(None)},
            {"mode": any_of("particle", "stream")},
        ),
        Surface(
            "KeyedNoise",
            lambda seed, first, x, step, purpose, draw: noise.KeyedNoise(seed, first)(
                step, x, purpose, draw
            ),
            {"seed": seeds, "first": any_of(0, 7), **rows},
            check=like_x,
        ),
        Surface(
            "StreamNoise",
            lambda seed, x, step: noise.StreamNoise(seed)(step, x),
            {"seed": seeds, "x": states, "step": any_of(0)},
            check=like_x,
        ),
        Surface(
            "GeneratorNoise",
            lambda generator, x: noise.GeneratorNoise(generator)(0, x),
            {"generator": any_of(New(torch.Generator)), "x": states},
            check=like_x,
        ),
        Surface(
            "FixedNoise",
            lambda noises, step, x: noise.FixedNoise(noises)(step, x),
            {"noises": any_of([torch.ones(4, 3)]), "step": any_of(0), "x": states},
            check=like_x,
        ),
    ]
    found += [
        Surface(
            f"path.{name}",
            lambda path, t, name=name: getattr(path, name)(t),
            {"path": any_of(LINEAR, TRAINED, paths.EDM()), "t": times},
            check=a_number,
            fixed="path",
        )
        for name in ("alpha", "sigma", "alpha_dot", "sigma_dot", "amplitude")
    ]
    return found


def models_() -> list[Surface]:
    asked = {"x": states, "t": any_of(0.2, 0.5, 1.0, np.float32(0.3), torch.tensor(0.5))}
    tilts = {
        "scale": positive,
        "through": any_of("reward", "network"),
        "schedule": any_of(None, lambda t: t),
    }
    tilts |= {"clip": any_of(None, 1.0), "sigma_data": positive, "max_batch": any_of(None, 2)}
    options = {
        "prediction": any_of("velocity", "sample", "v", "epsilon", "score", "reverse_velocity"),
        "time": any_of("t", "1-t", "1000t", "sigma", "log_snr", lambda path, t: t),
        "conditioning": any_of({}, {"y": torch.zeros(1, 2)}, {"y": [torch.zeros(4, 2), "a"]}),
        "unconditional": any_of(None, {}),
        "guidance_scale": any_of(1, 1.0),
        "dtype": any_of(None, torch.float64, torch.bfloat16),
        "max_batch": any_of(None, 1, 3, 10**9),
        "checkpoint": switches,
        "passes": any_of(1, 2),
    }
    return [
        Surface(
            "Denoiser",
            lambda x, t, **given: g.Denoiser(**given)(x, t),
            {"network": any_of(network, writing), "path": paths_, **asked},
            options,
            like_x,
        ),
        Surface(
            "GuidedDenoiser",
            lambda x, t, denoiser, reward, **given: g.GuidedDenoiser(denoiser, reward, **given)(
                x, t
            ),
            {"denoiser": any_of(model(), Foreign()), "reward": any_of(reward, spoiling), **asked},
            {
                "guidance": any_of(None, g.Guidance(0.5), g.Guidance(through="network")),
                "scale": positive,
            }
            | {"value": any_of(None), "prompts": any_of(None, ["a"] * 4)},
            like_x,
        ),
        Surface(
            "value guidance",
            lambda x, t, value: g.GuidedDenoiser(model(), value=value)(x, t),
            {
                "value": any_of(lambda x, t: x.mul_(2).sum(1), lambda x, t: -x.square().sum(1)),
                **asked,
            },
            check=like_x,
        ),
        Surface("Guidance", g.Guidance, {}, tilts),
    ]


def scored() -> list[Surface]:
    z = any_of(New(lambda: torch.randn(4, 3)))
    declared = {"name": any_of(None, "a"), "range": any_of((-99.0, 99), (-math.inf, math.inf))}
    declared |= {"takes_prompts": any_of(False), "differentiable": switches}
    declared |= {"max_batch": any_of(None, 1, 3), "device": devices}
    part = {"part": rewarded, "z": z}

    def around(cls: Any) -> Callable[..., Tensor]:
        return lambda z, **given: rewards.evaluate(cls(**given), z, "here")

    return [
        Surface(
            "FunctionReward",
            around(rewards.FunctionReward),
            {"function": any_of(reward, spoiling), "z": z},
            declared,
            per_row,
        ),
        Surface(
            "call",
            lambda reward, z, prompts: rewards.FunctionReward(reward, takes_prompts=True)(
                z, prompts
            ),
            {"reward": any_of(lambda z, p: z.sum(1)), "z": z, "prompts": any_of(["a"] * 4)},
        ),
        Surface(
            "OfImages",
            around(rewards.OfImages),
            {
                "function": any_of(lambda images: [0.5] * len(images), lambda image: 0.5),
                "z": any_of(New(lambda: torch.rand(4, 3, 5, 6))),
            },
            {
                "takes": any_of(None, "tensor", "pil", "numpy", "floats"),
                "each": any_of(None),
                **{name: declared[name] for name in ("name", "range", "max_batch")},
            },
            per_row,
        ),
        Surface(
            "WeightedSum",
            around(rewards.WeightedSum),
            {
                "parts": any_of([reward, spoiling], (reward, reward)),
                "weights": any_of([1, 2.0], np.array([1.0, 2.0]), [0, 1]),
                "z": z,
            },
            check=per_row,
        ),
        Surface(
            "Product",
            around(rewards.Product),
            {"parts": any_of([reward, spoiling], (reward,)), "z": z},
            check=per_row,
        ),
        Surface(
            "times",
            lambda weight, z: rewards.evaluate(weight * rewards.as_reward(reward), z, "here"),
            {"weight": any_of(2, 0.5, math.nan, 10**400), "z": z},
            {},
            per_row,
            "weight",
        ),
        Surface(
            "Clipped",
            around(rewards.Clipped),
            part,
            {"low": any_of(-1, -0.5), "high": any_of(0, 2.0)},
            per_row,
        ),
        Surface(
            "Normalised",
            around(rewards.Normalised),
            {**part, "mean": any_of(0, 1.0), "std": positive},
            check=per_row,
        ),
        Surface(
            "from_samples",
            lambda part, z: rewards.Normalised.from_samples(part, z).mean,
            part,
            check=a_number,
            fixed="path",
        ),
        Surface(
            "Decoded",
            around(rewards.Decoded),
            {**part, "decode": any_of(torch.sin, writing)},
            {"max_batch": any_of(None, 2)},
            per_row,
        ),
        Surface("Cached", around(rewards.Cached), part, {"size": any_of(1, 100)}, per_row),
        Surface(
            "ClassReward",
            around(rewards.ClassReward),
            {"classifier": any_of(torch.sin, writing), "label": any_of(0, 2), "z": z},
            {"floor": any_of(-12, -1.0)},
            per_row,
        ),
        Surface(
            "evaluate",
            rewards.evaluate,
            {"reward": rewarded, "z": z, "where": any_of("here")},
            {"prompts": any_of(None)},
            per_row,
        ),
        Surface(
            "gradient",
            lambda **given: rewards.evaluate_with_gradient(**given)[0],
            {"reward": any_of(reward, spoiling), "z": z, "where": any_of("here")},
            check=per_row,
        ),
        Surface("to_bytes", to_bytes, {"pictures": any_of(New(lambda: torch.rand(1, 3, 4, 4)))}),
    ]


def of_videos() -> list[Surface]:
    z = any_of(New(lambda: torch.rand(4, 3, 3, 5, 6)))
    frames = any_of(None, 1, "first", "all", np.int64(2))

    def around(cls: Any) -> Callable[..., Tensor]:
        return lambda z, **given: rewards.evaluate(cls(**given), z, "here")

    return [
        Surface(
            "OfVideos",
            around(rewards.OfVideos),
            {
                "function": any_of(lambda videos: [0.5] * len(videos), lambda video: 0.5),
                "z": z,
            },
            {
                "name": any_of(None, "a"),
                "each": any_of(None),
                "range": any_of((-99.0, 99), (-math.inf, math.inf)),
                "max_batch": any_of(None, 1, 3),
            },
            per_row,
        ),
        Surface(
            "Frames",
            around(rewards.Frames),
            {"part": any_of(total, lambda image: 0.5, lambda video: 0.5), "z": z},
            {"frames": frames},
            per_row,
        ),
    ]


def of_others() -> list[Surface]:
    """Samplers that other programs call, and the audit of somebody's sampler."""
    falling = any_of([5.0, 2.0, 1.0, 0.0], (9, 3, 0.5), torch.tensor([5.0, 1.0, 0.0]))
    return [
        Surface(
            "sample_glass",
            sample_glass,
            {
                "model": any_of(lambda x, sigma, **_: 0.5 * x, writing),
                "x": states,
                "sigmas": falling,
                "flow": any_of(False),
            },
            {
                "extra_args": any_of(None, {}, {"seed": 5}, {"seed": 2**64 - 1}),
                "callback": any_of(None, returning(None)),
                "disable": any_of(True),
                "noise_sampler": any_of(None, lambda sigma, to: torch.ones(4, 3)),
                "rho": any_of(0.4, "ddpm", "ode", [0.3], g.DDIM(0.5)),
                "steps": any_of(1, 2, np.int64(2)),
                "solver": any_of("second-order", "default", plans.FirstOrder()),
                "start": any_of("trained", "pure"),
            },
            like_x,
        ),
        Surface(
            "audit",
            g.audit,
            {
                "sampler": any_of(normals, "DDIMScheduler"),
                "transitions": any_of((1, 4), [2, np.int64(8)]),
                "samples": any_of(1000, np.int64(1020)),
                "progress": any_of(False),
            },
            {
                "options": any_of(None, {}),
                "path": any_of(None, "linear", "cosine"),
                "tolerance": any_of(0.02, np.float32(0.5)),
                "level": any_of(0.01, 1e-6),
                "seed": any_of(0, np.int64(5), 2**63 - 1),
            },
            an_audit,
        ),
        Surface(
            "snap_to_trained",
            grids.snap_to_trained,
            {"path": any_of(TRAINED, LINEAR), "times": any_of((0.0, 0.5, 1.0), [0.2, 1])},
        ),
        Surface("CPS", plans.CPS, {"eta": any_of(0, 0.5, 1.0)}),
        Surface("Ancestral", plans.Ancestral, {"eta": any_of(0, 0.5, 1.0)}),
        Surface("Precise", plans.Precise, {"eta": any_of(0, 0.5, 3.0)}),
        Surface(
            "SecondOrder",
            plans.SecondOrder,
            {"sigma_data": positive},
            {"guidance": any_of(None, 0, 3.5)},
        ),
        Surface("Auto", Auto, {"nats": any_of(None, 0.5, 3)}),
    ]


def normals(
    denoiser: Any, shape: tuple[int, ...], steps: int, generator: torch.Generator
) -> Tensor:
    return torch.randn(shape, generator=generator, dtype=torch.float64)


def an_audit(result: Any, given: Mapping[str, Any]) -> None:
    assert [row.transitions for row in result.rows] == [int(k) for k in given["transitions"]]
    kept = (result.tolerance, result.level, result.samples, result.seed)
    assert [type(one) for one in kept] == [float, float, int, int]
    assert str(result)


def steered() -> list[Surface]:
    asked = {
        "denoiser": models,
        "reward": rewarded,
        "shape": RUN["shape"],
        "particles": METHOD["particles"],
    }
    rest = {**SAMPLER, **{name: one for name, one in RUN.items() if name != "shape"}}

    def without(held: Mapping[str, Any], *names: str) -> dict[str, Any]:
        return {name: one for name, one in held.items() if name not in (*names, "particles")}

    stepped = {
        "table": any_of(TABLE),
        "denoiser": models,
        "reward": rewarded,
        "shape": RUN["shape"],
    }
    stepped |= {"method": any_of(g.Steering(4), g.Beam(4), g.BestOf(2), g.Refine(4))}
    return [
        Surface("steer", g.steer, asked, {**without(STEERING), **rest}, a_run),
        Surface(
            "best_of", g.best_of, asked, {**without(METHOD, "value", "boundaries"), **rest}, a_run
        ),
        Surface("beam", g.beam, asked, {**without(SEARCH), **rest}, a_run),
        Surface(
            "greedy",
            g.greedy,
            asked,
            {**without(SEARCH), "pick": any_of("best", "sample"), **rest},
            a_run,
        ),
        Surface(
            "refine",
            g.refine,
            asked,
            {**without(REFINE), **{name: one for name, one in rest.items() if name != "x"}}
            | {"init": any_of(None, New(lambda: torch.zeros(3)), New(lambda: torch.randn(1, 3)))},
            a_run,
        ),
        Surface("Ramp", Ramp, {}, {"first": any_of(0.1, 0.5), "last": any_of(0.9, 0.2)}),
        Surface("Acceptance", Acceptance, {}, {"rate": any_of(0.4), "first": any_of(0.3)}),
        Surface(
            "iterate_steering",
            lambda **given: list(iterate_steering(**given)),
            stepped,
            {n: RUN[n] for n in ("populations", "seed", "dtype", "x", "also", "shards", "record")},
        ),
        Surface(
            "over_optimised",
            over_optimised,
            {
                "results": any_of(
                    {0.0: FOUND, 2: FOUND}, {-1.0: FOUND, 1.0: FOUND}, {0.0: FOUND}, {}
                )
            },
        ),
        Surface(
            "method_of",
            method_of,
            {"method": any_of("steering", "beam", g.BestOf()), "given": any_of({}, {"scale": 2})},
        ),
        Surface(
            "read_method",
            read_method,
            {"data": any_of(g.Beam().as_json(), {"type": "beam", "scale": "a"}, {})},
        ),
        Surface("Shards", Shards, {"micro_batch": any_of(None, 2)}),
        Surface("Adaptive", Adaptive, {"ess": any_of(0.5, np.float32(0.3))}),
        Surface(
            "PosteriorValue",
            PosteriorValue,
            {},
            {"samples": any_of(1, 3), "steps": any_of(2), "solver": solvers},
        ),
        Surface(
            "Twist",
            g.Twist,
            {},
            {
                "scale": positive,
                "cap": any_of(1, math.inf),
                "sigma_data": positive,
                "adaptive": switches,
                "trust": positive,
            },
        ),
    ]


def settings() -> list[Surface]:
    batching = {
        "max_batch": any_of("auto", None, 2),
        "decode_batch": any_of(1, None),
        "checkpoint": switches,
    }
    fields = {
        g.Sampler: SAMPLER,
        g.Steering: STEERING,
        g.BestOf: {
            name: STEERING[name] for name in ("particles", "scale", "guidance", "degenerate")
        },
        g.Beam: SEARCH,
        g.Greedy: {**SEARCH, "pick": any_of("best", "sample")},
        g.Refine: REFINE,
        Batching: batching,
        Viewing: {"frames": any_of(None, 1, "first", "all")},
    }
    found = []
    for cls, given in fields.items():
        texts = [
            f"{cls.word} {name}={text}" for name in given for text in ("2", "0.5", "a", "", "none")
        ]
        texts += [
            f"{cls.word} {name}={text}" for name in given for text in TEXTS if isinstance(text, str)
        ]
        data = [{name: wrong} for name in given for wrong in (1, 0.5, "x", [1], None, {}, 10**400)]
        found += [
            Surface(cls.__name__, cls, {}, given, spelled),
            Surface(
                f"{cls.__name__}.parse", cls.parse, {"text": any_of(cls.word, *texts)}, {}, spelled
            ),
            Surface(
                f"{cls.__name__}.from_json", cls.from_json, {"data": any_of(*data)}, {}, spelled
            ),
        ]
    return found


@pytest.mark.parametrize(
    ("seed", "calls"), [(0, 600), pytest.param(1, 3000, marks=pytest.mark.slow)]
)
def test_every_call_is_right_or_refused_by_name(seed, calls):
    assert (
        check(surfaces(), seed, calls).total() > 0.25 * calls
    )  # a third are drawn without a wrong argument


if __name__ == "__main__":
    main(surfaces())
