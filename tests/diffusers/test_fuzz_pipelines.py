"""Calls of the scheduler and of `steer_pipeline` with arguments drawn at random, as those of the
rest of what is public (tests/core/test_fuzz_public.py). More of them, or others, by hand:

    PYTHONPATH=tests python tests/diffusers/test_fuzz_pipelines.py --seed 7 --calls 5000
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from torch import Tensor

import fuzzing
import tiny_pipelines as tiny
from fuzzing import REFINE, SAMPLER, STEERING, New, Surface, any_of, check
from glass_flows import check_model, steer_pipeline
from glass_flows.diffusers import GlassScheduler
from glass_flows.jobs.trials import TRIALS

SIZES = {"height": 16, "width": 16, "max_sequence_length": 32}
FLOW = {"_class_name": "FlowMatchEulerDiscreteScheduler", "shift": 3.0}
DISCRETE = {"_class_name": "DDIMScheduler", "beta_schedule": "scaled_linear"}
CONFIGS = {"base": any_of(FLOW, DISCRETE)}
OPTIONS = {
    "rho": any_of(0.4, "ddpm", "ode", np.float64(0.3)),
    "steps": any_of(1, 2, np.int64(3)),
    "solver": any_of("default", "first-order", "paper:0.5"),
    "start": any_of("trained", "pure"),
    "end": any_of("auto", "data", "trained"),
    "seed": fuzzing.seeds,
    "time_dtype": any_of(None, "float32", "bfloat16"),
    "count": any_of("transitions", "evaluations"),
}
GRID = {
    "num_inference_steps": any_of(2, 4, np.int32(3)),
    "device": any_of(None, "cpu", torch.device("cpu")),
    "timesteps": any_of(None, [900, 500, 100], np.array([800.0, 300.0])),
    "sigmas": any_of(None, [0.9, 0.5, 0.1], np.linspace(1.0, 0.2, 4)),
    "mu": any_of(None, 0.5),
}


def reward(images: Tensor) -> Tensor:
    return images.flatten(1).mean(1)


def by_prompt(images: Tensor, prompts: list[str]) -> Tensor:
    return images.flatten(1).mean(1) + len(prompts[0])


ASKED = {
    "prompt": any_of("a cat", ["a cat"], ["a cat", "a dog"]),
    "reward": any_of(reward, by_prompt, lambda image: float(np.asarray(image).mean())),
    "particles": any_of(2, np.int64(2)),
    "transitions": any_of(1, 2),
    "steps": any_of(1, 2),
}


def made(**given: Any) -> GlassScheduler:
    """With a grid, where what does not fit together is refused at the latest."""
    scheduler = GlassScheduler(**given)
    scheduler.set_timesteps(6)
    return scheduler


def gridded(base: Any, **given: Any) -> GlassScheduler:
    scheduler = GlassScheduler(base, steps=2)
    scheduler.set_timesteps(**given)
    return scheduler


def stepped(base: Any, model_output: Any, sample: Any, **given: Any) -> Any:
    """Two evaluations; the timestep is the scheduler's own unless it is given."""
    scheduler = gridded(base, num_inference_steps=2)
    for k in scheduler.timesteps[:2]:
        timestep = {"timestep": k, **given}
        sample = scheduler.step(model_output, sample=sample, return_dict=False, **timestep)[0]
    return sample


def noised(base: Any, **given: Any) -> Tensor:
    return gridded(base, num_inference_steps=3).add_noise(**given)


def a_grid(result: GlassScheduler, given: Any) -> None:
    told = result.timesteps.double()
    assert len(told) and bool(torch.isfinite(told).all())
    assert len(result.sigmas) == len(told) + 1
    assert result.sigmas[-1] == 0.0


def a_scheduler(result: GlassScheduler, given: Any) -> None:
    again = GlassScheduler.from_config(result.config)
    assert again.sampler == result.sampler
    a_grid(result, given)


def like_sample(result: Tensor, given: Any) -> None:
    sample = given.get("sample", given.get("original_samples"))
    assert result.shape == sample.shape
    assert result.dtype == sample.dtype


@cache
def pipeline(name: str) -> Any:
    return tiny.build(name)


def steered(pipe: str, **given: Any) -> Any:
    call = SIZES if pipe.startswith("flux") else {}
    return steer_pipeline(pipeline(pipe), progress=False, **call, **given)


def pictures(result: Any, given: Any) -> None:
    prompts = given["prompt"]
    prompts = prompts if isinstance(prompts, list) else [prompts]
    assert len(result.rows) == len(prompts)
    assert not bool(torch.isnan(result.rewards).any())
    assert bool(torch.isfinite(result.result.samples).all())
    assert all(image.size == (16, 16) for image in result.images)
    assert str(result)


def tried(model: str, **given: Any) -> Any:
    """A pipeline's table, with the first of its trials only."""
    first = dict(list(TRIALS.items())[:1])
    with mock.patch.dict(TRIALS, first, clear=True):
        return check_model(pipeline(model), **given)


def a_table(result: Any, given: Any) -> None:
    assert [row.what for row in result.rows] == list(TRIALS)[:1]
    assert str(result)


def scheduled() -> list[Surface]:
    latents = any_of(New(lambda: torch.randn(2, 4, 3, 3)), New(lambda: torch.ones(2, 4, 3, 3)))
    several = {"timesteps": any_of(500, torch.tensor([100]), torch.tensor([900, 20]), [3.0])}
    return [
        Surface("GlassScheduler", made, CONFIGS, OPTIONS, a_scheduler),
        Surface("from_config", GlassScheduler.from_config, {"config": CONFIGS["base"]}, OPTIONS),
        Surface("set_timesteps", gridded, CONFIGS, GRID, a_grid, "base"),
        Surface(
            "step", stepped, {**CONFIGS, "model_output": latents, "sample": latents},
            {"eta": any_of(0.0), "generator": any_of(None), "timestep": any_of(999, 1000.0)}
            | {"use_clipped_model_output": any_of(None)},
            like_sample, "base",
        ),
        Surface(
            "add_noise", noised,
            {**CONFIGS, "original_samples": latents, "noise": latents, **several},
            {}, like_sample, "base",
        ),
    ]  # fmt: skip


def piped() -> list[Surface]:
    rest = {
        **{name: draw for name, draw in STEERING.items() if name != "particles"},
        **{name: draw for name, draw in REFINE.items() if name.startswith("move")},
        "method": any_of("steering", "plain", "best-of-n", "beam", "refine", "twist"),
        "rho": SAMPLER["rho"],
        "solver": fuzzing.solvers,
        "times": any_of(None, "uniform", "karras"),
        "max_batch": any_of("auto", None, 1),
        "decode_batch": any_of(1, None),
        "frames": any_of(None),
        "seed": fuzzing.seeds,
        "latents": any_of(None),
        "init": any_of(None),
        "also": any_of(None, reward, {"mean": reward}),
        "guidance_scale": any_of(1.0, 3.5),
    }
    return [
        Surface(
            "steer_pipeline", steered, {"pipe": any_of("flux"), **ASKED}, rest, pictures, "pipe"
        )
    ]


def of_others() -> list[Surface]:
    """An image to begin with, and the table of what works."""
    begun = {
        "image": any_of(tiny.picture(16, 16), [tiny.picture(16, 16)]),
        "strength": any_of(0.5, np.float64(0.4)),
        "transitions": any_of(2, 4),
    }
    rest = {
        "method": any_of("steering", "plain", "best-of-n", "beam", "refine", "twist"),
        "seed": fuzzing.seeds,
        "also": any_of(None, reward, {"mean": reward}),
        "frames": any_of(None),
    }
    return [
        Surface(
            "image-to-image", steered, {"pipe": any_of("flux_img2img"), **ASKED, **begun},
            rest, pictures, "pipe",
        ),
        Surface(
            "check_model", tried, {"model": any_of("dit")},
            {
                "prompt": any_of(None, 1, [0, 2]),
                "size": any_of(None, 16, np.int64(32)),
                "decode": any_of(None),
                "loading": any_of(None),
                "progress": any_of(False),
                "announce": any_of(lambda text: None),
                "guidance_scale": any_of(4.0),
            },
            a_table, "model",
        ),
    ]  # fmt: skip


def surfaces() -> list[Surface]:
    return [*scheduled(), *piped(), *of_others()]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("seed", "calls"), [(0, 120), pytest.param(1, 600, marks=pytest.mark.slow)]
)
@pytest.mark.filterwarnings("ignore")  # of few steps, of settings that are worth a word
def test_every_call_is_right_or_refused_by_name(seed, calls):
    right = check(scheduled(), seed, calls * 9 // 10) + check(piped(), seed, calls // 4)
    right += check(of_others(), seed, calls // 10)
    assert all(right[one.name] for one in surfaces()), "one was never right"


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    fuzzing.main(surfaces())
