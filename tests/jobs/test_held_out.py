"""`--also`: columns, warnings, sweeps over λ, and folders of runs with other held-out rewards."""

from __future__ import annotations

import csv
import json
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import jsonschema
import numpy as np
import pytest
import torch
from typer.testing import CliRunner

import glass_flows.runs
from glass_flows.cli import app
from glass_flows.errors import InvalidArgument, OtherJob, UnknownName
from glass_flows.jobs import Job, resolve
from glass_flows.jobs.align import align
from glass_flows.jobs.held_out import warnings_of
from glass_flows.jobs.items import Item
from glass_flows.jobs.spelling import Options, jobs_of
from glass_flows.pixels import to_bytes
from glass_flows.plans import Sampler
from glass_flows.runs import Sample, read_run
from glass_flows.steering import Steering
from glass_flows.worlds.shapes import Prompt, render, sample_scene

SCHEMA = json.loads((Path(glass_flows.runs.__file__).parent / "result.schema.json").read_text())
SMALL = ["--particles", "4", "--transitions", "3", "--steps", "1"]


def invoke(*arguments):
    shown = CliRunner().invoke(app, [str(one) for one in arguments])
    return shown.exit_code, " ".join(shown.output.split())


def test_the_digits_have_a_column_for_each(tmp_path):
    asked = ["align", "--reward", "class:8", "--also", "judge", "--also", "class:1", *SMALL]
    asked += ["--populations", "32", "--scale", "8", "--out", tmp_path / "out"]
    code, shown = invoke(*asked)
    assert code == 0, shown
    told = json.loads((tmp_path / "out" / "comparison.json").read_text())
    lines = {line["method"]: line["also"] for line in told["methods"]}
    assert list(lines) == ["plain", "best of 4", "steering", "steering + twist"]
    for also in lines.values():
        for name in ("judge", "class:1"):
            assert f"{also[name][0]:.2f} ±" in shown
    # Towards an 8 it goes away from a 1, and not from what the judge takes for an 8.
    assert any("steering: over-optimised beyond λ = 0" in one for one in told["warnings"])
    assert all("'class:1'" in one and one in shown for one in told["warnings"])
    assert lines["steering"]["judge"][0] > lines["plain"]["judge"][0]


def job_of(*also, scale=2.0):
    return Job("digits", Steering(4, scale=scale), Sampler(2, 1), ("8",), seed=1, also=also)


@pytest.mark.slow
def test_a_run_of_images_is_scored_beside_plain_samples(tmp_path):
    digits = resolve("digits")
    drawn = align(digits, job_of("judge", "class:3"), tmp_path / "also")
    plain = align(digits, job_of(), tmp_path / "plain")
    assert drawn.rewards == plain.rewards
    for one, two in zip(drawn.images, plain.images):
        assert torch.equal(*(torch.from_numpy(pixels_of(file)) for file in (one, two)))
    told = json.loads(drawn.results.read_text())
    jsonschema.validate(told, SCHEMA)
    jsonschema.validate(json.loads(plain.results.read_text()), SCHEMA)
    samples = read_run(tmp_path / "also").samples[0]
    judged = [sample.also["judge"] for sample in samples]
    assert drawn.means["steering"]["judge"] == pytest.approx(sum(judged) / 4)
    beside = told["populations"][0]["plain"]
    assert drawn.means["plain"]["class:3"] == sum(one["also"]["class:3"] for one in beside) / 4
    assert list(told["paths"]) == ["reward", "judge", "class:3"]
    assert read_run(tmp_path / "plain").samples[0][0].also == {}
    assert plain.means == {}
    # Given again, the same is told from the folder.
    assert align(digits, job_of("judge", "class:3"), tmp_path / "also") == drawn


def pixels_of(file):
    from PIL import Image

    return np.array(Image.open(file))


def test_a_folder_with_other_held_out_rewards_is_refused_by_name(tmp_path):
    digits = resolve("digits")
    align(digits, job_of("judge"), tmp_path)
    with pytest.raises(OtherJob, match=r'differs in also: \["judge"\] there, the default'):
        align(digits, job_of(), tmp_path)
    with pytest.raises(InvalidArgument, match="a reward is named twice in judge, judge"):
        job_of("judge", "judge")
    assert Job.from_json(job_of("judge").as_json()) == job_of("judge")
    assert "also" not in job_of().as_json()


def test_a_batch_over_several_scales(tmp_path):
    (tmp_path / "digits.txt").write_text("8\n")
    asked = ["batch", tmp_path / "digits.txt", "--also", "class:0", "--also", "judge", *SMALL]
    asked += ["--scale", "0,0.5", "--out", tmp_path / "out"]
    code, shown = invoke(*asked)
    assert code == 0, shown
    with open(tmp_path / "out" / "summary.csv", encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [row["method"] for row in rows] == ["steering-scale-0", "steering-scale-0.5"]
    for row in rows:
        samples = read_run(tmp_path / "out" / Path(row["image"]).parent).samples[0]
        best = max(samples, key=lambda sample: sample.reward)
        assert float(row["also class:0"]) == best.also["class:0"]
        assert f"{best.also['judge']:.4g}" in shown
    assert all(name in shown for name in ("also class:0", "also judge", "judge, %"))


def runs_of(values, method="steering", **more):
    """Runs of one population at λ = 0, 5 and 50 for 2 prompts and 4 seeds, of these means."""
    draws, found = np.random.default_rng(0), {}
    for scale, mean in values.items():
        for place in range(8):
            item = Item(place // 4, "a", "", place % 4, f"{method}-{scale}")
            samples = [
                Sample(0, n, "a", item.seed, scale + n, 0.0, n, None, None, {"judge": value})
                for n, value in enumerate(draws.normal(mean, 1.0, 4))
            ]
            settings = {"type": method, **({} if scale == 1.0 else {"scale": scale}), **more}
            job = {"method": settings, "seed": item.seed, "prompts": [place // 4]}
            found[item] = SimpleNamespace(job=job, samples=[samples], method=method)
    return found


def test_where_a_batch_is_over_optimised():
    falling = runs_of({0.0: 0.0, 5.0: 1.0, 50.0: -2.0})
    (told,) = warnings_of(falling)
    assert told.startswith("steering: over-optimised beyond λ = 5: there the held-out 'judge' is")
    assert "at λ = 50, while the reward rises from" in told
    assert warnings_of(runs_of({0.0: 0.0, 5.0: 1.0, 50.0: 1.0})) == []
    # λ = 1 is the default, which a job leaves out; two samplers are not compared with each other.
    assert warnings_of(runs_of({0.0: 2.0, 1.0: -2.0}))[0].endswith("rises from 1.5 to 2.5")
    other = runs_of({5.0: 3.0}, particles=2) | runs_of({50.0: -3.0}, particles=4)
    assert warnings_of(other) == []
    # Of prompts and seeds that are there at every λ.
    lost = {item: run for item, run in falling.items() if "50" not in item.method or item.seed == 9}
    assert warnings_of(lost) == []


def test_best_of_n_without_weights_stands_at_no_lambda():
    plain = runs_of({20.0: 0.0}, "best-of-n")
    (told,) = warnings_of(plain | runs_of({40.0: -3.0}))
    assert "beyond λ = 0: there" in told
    guided = runs_of({20.0: 0.0}, "best-of-n", guidance={"scale": 1.0})
    assert warnings_of(guided | runs_of({40.0: -3.0})) == []
    assert warnings_of(plain) == []


def weighing(runs, log_weight, values=None):
    """The same runs, of which all particles but the first have this weight, and other values."""
    return {
        item: SimpleNamespace(
            job=run.job,
            method=run.method,
            samples=[
                [
                    replace(
                        one,
                        log_weight=log_weight if one.particle else 0.0,
                        also=one.also if values is None else {"judge": values[one.particle > 0]},
                    )
                    for one in run.samples[0]
                ]
            ],
        )
        for item, run in runs.items()
    }


def test_best_of_n_alone_has_no_weights_at_no_lambda():
    """Particles that a value of one's own has chosen are of p itself only with their weights."""
    steered, values = runs_of({40.0: -3.0}), (-3.0, 3.0)
    chosen = weighing(runs_of({0.0: 0.0}), -50.0, values)
    assert warnings_of(chosen | steered) == []
    assert warnings_of(weighing(chosen, 0.0) | steered)
    assert warnings_of(weighing(runs_of({20.0: 0.0}, "best-of-n"), -50.0, values) | steered)


def test_the_judges_are_rewards():
    shapes, digits = resolve("shapes"), resolve("digits")
    prompt, other = Prompt.parse("a red circle"), Prompt.parse("a blue square")
    scene = render(*sample_scene(prompt, np.random.default_rng(0)))
    images = torch.from_numpy(scene).permute(2, 0, 1)[None].repeat(2, 1, 1, 1) / 255
    assert (to_bytes(images)[0].numpy() == scene).all()
    judge = shapes.load_reward("judge")
    assert judge(images, [str(prompt), str(other)]).tolist() == [1.0, 0.0]
    job = Job("digits", Steering(), Sampler(), ("8",), reward="judge")
    assert digits.reward(job).classifier is digits.classifiers["judge"]
    for model, text in ((shapes, "juge"), (digits, "juge")):
        with pytest.raises(UnknownName):
            model.check_reward(text)
    with pytest.raises(InvalidArgument, match="'judge:N' needs a digit"):
        digits.check_reward("judge:x")


def test_an_unknown_one_is_refused_before_anything_is_loaded(tmp_path):
    asked = ["align", "--model", "shapes", "--prompt", "a red circle", "--also", "pikscore"]
    with pytest.raises(UnknownName, match="pickscore"):
        CliRunner().invoke(app, [*asked, "--out", str(tmp_path / "out")], catch_exceptions=False)
    assert not (tmp_path / "out").exists()


def test_a_model_that_has_no_use_for_them_refuses(monkeypatch):
    shapes = type(resolve("shapes"))
    monkeypatch.setattr(shapes, "takes", ("batching", "loading", "call"))
    options = Options(held_out={"also": ["judge"]})
    with pytest.raises(InvalidArgument, match="--also: only for a diffusers pipeline"):
        jobs_of("shapes", ["steering"], options)


def test_plain_samples_beside_best_of_n_do_not_mix():
    """The larger N stands at λ = 0, whichever was named last, and also where one failed."""
    best, steered = runs_of({20.0: 0.0}, "best-of-n"), runs_of({40.0: -3.0})
    plain = {
        replace(item, method="plain"): SimpleNamespace(
            **{**vars(run), "samples": [run.samples[0][:1]]}
        )
        for item, run in best.items()
    }
    told = warnings_of({**best, **steered})
    assert told
    assert warnings_of({**best, **plain, **steered}) == told
    assert warnings_of({**plain, **best, **steered}) == told
    assert warnings_of({**dict(list(best.items())[1:]), **plain, **steered})
