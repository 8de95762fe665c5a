"""The page of all pipelines, the table of refusals and the sources of diffusers agree."""

import importlib
import re
import sys
from pathlib import Path

import diffusers
import pytest

ROOT = Path(__file__).resolve().parent.parent.parent
sys.path.insert(0, str(ROOT / "tools"))
pipelines = importlib.import_module("pipelines")


@pytest.fixture(scope="module")
def sources():
    folder, _ = pipelines.installed()
    return pipelines.read(folder)


@pytest.fixture(scope="module")
def judged(sources):
    return [pipelines.judge(one) for one in sources]


@pytest.mark.slow
def test_the_table_says_what_is_done_about_all_that_is_found(judged):
    assert not pipelines.faults(judged), (
        "judge these in src/glass_flows/diffusers/refusals.py, then `python tools/pipelines.py "
        "--write`"
    )


@pytest.mark.slow
def test_the_page_is_that_of_the_sources(judged):
    page = pipelines.PAGE.read_text(encoding="utf-8")
    made_for = re.search(r"diffusers ([\w.]+)", page).group(1)
    if made_for != diffusers.__version__:
        pytest.skip(f"the page was made for diffusers {made_for}, here is {diffusers.__version__}")
    now = pipelines.page(judged, diffusers.__version__)
    new = sorted(set(now.splitlines()) - set(page.splitlines()))
    assert now == page, f"run `python tools/pipelines.py --write`, which changes {new}"


@pytest.mark.slow
def test_every_pipeline_that_can_be_imported_is_in_it_once(sources):
    names = {one.name for one in sources}
    public = {name for name in dir(diffusers) if name.endswith("Pipeline")}
    bases = {"DiffusionPipeline", "FlaxDiffusionPipeline", "ModularPipeline"}
    missing = {n for n in public - names - bases if "AutoPipeline" not in n and "Modular" not in n}
    assert not missing
    told = re.sub(r"^\|.*$", "", pipelines.PAGE.read_text(encoding="utf-8"), flags=re.M)
    lines = [line for line in told.splitlines() if line.startswith("- ")]
    listed = [n.strip("* ") for line in lines for n in line.rpartition(": ")[2].split(", ")]
    assert sorted(listed) == sorted(names)


LOOP = """
class DiffusionPipeline:
    pass
class NewPipeline(DiffusionPipeline):
    def __init__(self, scheduler: {scheduler}):
        pass
    def __call__(self, num_inference_steps, strength):
        timesteps = {timesteps}
        for i, t in enumerate(timesteps):
            {before}
            noise = self.unet(latents, t)
            latents = self.scheduler.step({step})[0]
"""
USUAL = {
    "scheduler": "DDIMScheduler",
    "timesteps": "self.scheduler.timesteps",
    "before": "pass",
    "step": "noise, t, latents, **extra_step_kwargs, return_dict=False",
}


def found(folder, **changes):
    (folder / "new.py").write_text(LOOP.format(**USUAL | changes), encoding="utf-8")
    (one,) = pipelines.read(folder)
    return pipelines.judge(one)


def test_a_plain_loop_is_right(tmp_path):
    one = found(tmp_path)
    assert (one.pipeline.name, one.features, one.open) == ("NewPipeline", [], [])
    assert pipelines.has_base(one.pipeline)
    assert not pipelines.has_base(found(tmp_path, scheduler="LCMScheduler").pipeline)


@pytest.mark.parametrize(
    ("feature", "changes"),
    [
        ("step arguments", {"step": "noise, t, latents, prev_timestep=s"}),
        ("step arguments", {"step": "noise, s, t, latents"}),
        ("private state", {"before": "self.scheduler._step_index -= 1"}),
        ("private state", {"before": "a = self.scheduler.betas[t]"}),
        ("private state", {"before": "self.scheduler.timesteps = timesteps"}),
        ("scheduler's type", {"before": "x = isinstance(self.scheduler, DDIMScheduler)"}),
        ("last timestep left out", {"timesteps": "self.scheduler.timesteps[:-1]"}),
        ("one step is special", {"before": "y = num_inference_steps == 1"}),
        ("window in steps", {"before": "w = i < int(num_inference_steps * factor)"}),
        ("window in steps", {"before": "w = i in thresholds"}),
        ("listed by step", {"before": "w = weights[i]"}),
        ("next timestep", {"before": "s = timesteps[i + 1]"}),
        ("edits latents", {"before": "latents = mask * known + (1 - mask) * latents"}),
        ("edits latents", {"before": "latents[:, 0] = first"}),
        ("frozen by its velocity", {"before": "noise = noise - mask * clean_latents"}),
        ("history of guidance", {"before": "noise = momentum * noise"}),
        ("several schedulers", {"before": "a = audio_scheduler.step(b, t, a)[0]"}),
        ("interval", {"before": "noise = self.unet(latents, timestep_r=r)"}),
    ],
)
def test_what_a_new_pipeline_counts_is_found_and_must_be_judged(tmp_path, feature, changes):
    one = found(tmp_path, **changes)
    assert feature in one.features

    assert feature in one.open
    assert any(f"NewPipeline: {feature}" in fault for fault in pipelines.faults([one]))


@pytest.mark.parametrize(
    "before",
    [
        "w = 1.0 - float(i / len(timesteps) < s)",  # a share of all evaluations
        "big = t >= boundary",
        "sigma = self.scheduler.sigmas[i]",
        "latents = latents.to(dtype).reshape(shape)",
        "latents = outputs.pop('latents', latents)",
        "last = i == len(timesteps) - 1 or (i + 1 > num_warmup_steps)",
    ],
)
def test_what_is_right_in_any_pipeline_needs_no_judgement(tmp_path, before):
    assert not found(tmp_path, before=before).open


def test_what_is_said_of_a_pipeline_that_does_no_such_thing_is_found(tmp_path, monkeypatch):
    stale = pipelines.Rule("next timestep", "looks ahead", "NewPipeline GonePipeline")
    monkeypatch.setattr(pipelines, "RULES", (stale,))
    monkeypatch.setattr(pipelines, "HANDLED", ())
    assert pipelines.faults([found(tmp_path)]) == [
        "NewPipeline: next timestep in rules.py, but not in its source",
        "GonePipeline: in rules.py, but diffusers has no such pipeline",
    ]
