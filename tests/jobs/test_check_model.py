"""`check-model`: its table is true, also of a pipeline in which one thing is broken."""

from __future__ import annotations

import inspect
import json
import re
import warnings
from functools import cache, wraps
from types import SimpleNamespace

import numpy as np
import pytest
import torch

pytest.importorskip("diffusers")
pytest.importorskip("typer")

from typer.testing import CliRunner

import glass_flows
import more_pipelines as more
import tiny_pipelines as tiny
from cases import first
from glass_flows.cli import app
from glass_flows.diffusers import GlassScheduler
from glass_flows.errors import InvalidArgument, UnknownName
from glass_flows.jobs import costs, trials
from glass_flows.steering import Beam
from glass_flows.steering.resampling import RESAMPLERS

NEED_AN_ADAPTER = {
    "the adapter, against its own loop", "posterior values", "reward guidance", "refinement",
    "image-to-image",
}  # fmt: skip
OWN = "its own sampler, M = 1 and ρ = 1"
UNDRAWN = dict.fromkeys(set(trials.TRIALS) - {OWN, "left as it was"}, "no")
WITHOUT = dict.fromkeys(NEED_AN_ADAPTER, "-")
TRUE = {name: {} for name in ("sd3", "sd", "flux2", "dit", "qwenimage_edit")} | {
    "flux_img2img": {"noise of your own": "-"},
    "AuraFlowPipeline": WITHOUT,
    "WanPipeline": WITHOUT,
    "KandinskyV22Img2ImgPipeline": UNDRAWN
    | WITHOUT
    | {"several prompts": "-", "noise of your own": "-"},
}
"""What does not say "yes", by pipeline: of families those that are asked unlike others."""
QUICK = ("sd3", "KandinskyV22Img2ImgPipeline")


def made(name):
    """A pipeline and its call, without a prompt, a size and, of an adapter, images."""
    if name in tiny.FAMILIES:
        pipe, call = tiny.build(name), dict(tiny.CALL[name])
        drop = {"prompt", "class_labels", "height", "width", "max_area", "_auto_resize", "strength"}
        drop |= {key for key in call if key.endswith("image")}
    else:
        pipe, call = more.build(name)
        takes = inspect.signature(pipe.__call__).parameters
        drop = {"prompt"} | {key for key in call if key not in takes}
    return pipe, {key: value for key, value in call.items() if key not in drop}


def checked(pipe, call, *rows, monkeypatch=None, **given):
    """The check, of these rows only if there are any."""
    if rows:
        monkeypatch.setattr(trials, "TRIALS", {name: trials.TRIALS[name] for name in rows})
    return glass_flows.check_model(pipe, progress=False, **given, **call)


def not_yes(check):
    return {row.what: row.works for row in check.rows if row.works != "yes"}


@pytest.fixture(scope="module")
def tried():
    """A pipeline with its check, done once."""

    @cache
    def check(name):
        pipe, call = made(name)
        return pipe, checked(pipe, call)

    return check


# --- what works -----------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::FutureWarning")  # diffusers' own
@pytest.mark.parametrize(
    "name", [n if n in QUICK else pytest.param(n, marks=pytest.mark.slow) for n in TRUE]
)
def test_the_table_is_true_of_tiny_pipelines(name, tried):
    pipe, check = tried(name)
    memory = check["memory"]
    if memory.told.startswith("not measured"):  # is allowed to be, and then says so
        assert memory.works == "-" and "memory" not in TRUE[name]
    expected = TRUE[name] | ({"memory": "-"} if memory.works == "-" else {})
    assert not_yes(check) == expected, check
    assert check.works == ("no" not in expected.values())
    assert not isinstance(pipe.scheduler, GlassScheduler)
    assert set(json.loads(json.dumps(check.as_json(), allow_nan=False))["facts"]) == set(
        check.facts
    )


def test_what_it_was_recognised_as(tried):
    pipe, check = tried("sd3")
    facts = check.facts
    count = sum(one.numel() for one in pipe.transformer.parameters())
    assert facts["pipeline"] == "StableDiffusion3Pipeline"
    assert facts["run by"].endswith("adapter StableDiffusion3")
    assert facts["network"] == f"SD3Transformer2DModel, {count:,} parameters in float32, on cpu"
    assert facts["path"].startswith("linear") and "FlowMatchEuler" in facts["path"]
    assert facts["guidance"] == "classifier-free of 4: 2 passes for an evaluation"
    assert facts["size"] == "16 x 16 pixels, latents (4, 8, 8)"
    assert "few steps" not in facts


def test_figures_and_the_printed_table(tried):
    _, check = tried("sd3")
    assert check["sampling"].figures == {"passes": 8}  # two transitions, two evaluations, guidance
    assert 0.0 <= check["batches of 1, 2 and 4"].figures["batch 4"] < 1e-4
    assert check["memory"].figures["bytes per particle"] >= 4 * 8 * 8 * 4  # a latent in float32
    assert check["time"].figures["seconds with 4"] > 0.0
    lines = repr(check).splitlines()
    for row in check.rows:
        assert any(line.startswith(row.what) and f" {row.works} " in line for line in lines)
    assert lines[-1] == f"works: {len(trials.TRIALS)}, does not: 0, does not apply: 0"
    with pytest.raises(UnknownName, match=r"no row 'memry'.*memory"):
        check["memry"]


@pytest.mark.parametrize(("asked", "told"), first([({"size": 32}, "none"), ({}, "none")]))
def test_guidance_and_size_as_they_were_asked_for(asked, told, monkeypatch):
    pipe, call = made("sd3")
    call["guidance_scale"] = 1.0
    check = checked(pipe, call, "sampling", monkeypatch=monkeypatch, **asked)
    side = asked.get("size", 16)
    assert check.facts["guidance"] == told and check["sampling"].figures == {"passes": 4}
    assert check.facts["size"] == f"{side} x {side} pixels, latents (4, {side // 2}, {side // 2})"


def test_passes_are_counted_by_what_the_pipelines_own_loop_asks(monkeypatch):
    """Half the strength is half the transitions, and all under guidance still."""
    pipe, call = made("StableDiffusionImg2ImgPipeline")
    assert call["strength"] == 0.5
    rows = ("sampling", "noise of your own", "refinement")
    check = checked(pipe, call, *rows, monkeypatch=monkeypatch)
    assert check.facts["guidance"] == "classifier-free: 2 passes for an evaluation"
    assert check["sampling"].figures["passes"] in (2, 4)
    assert not_yes(check) == {"noise of your own": "-", "refinement": "-"}
    assert check["noise of your own"].told.endswith("takes no latents")
    assert "needs an adapter" in check["refinement"].told


@pytest.mark.slow
def test_particles_one_by_one_under_perturbed_attention(monkeypatch):
    """Whose network tells its three passes apart by their places in the batch."""
    pipe, call = made("SanaPAGPipeline")
    check = checked(pipe, call, "sampling", "micro-batches", monkeypatch=monkeypatch)
    assert check.works, check
    assert check.facts["guidance"] == "classifier-free: 3 passes for an evaluation"


def test_a_size_that_is_refused_is_told_and_the_next_is_taken(monkeypatch):
    pipe, call = made("sana")
    check = checked(pipe, call, "sampling", monkeypatch=monkeypatch)
    assert check["sampling"].works == "yes"
    assert check.facts["size"].startswith("32 x 32 pixels, latents (4, 16, 16); not 16 x 16: ")


LOOP, NOISE = "the adapter, against its own loop", "noise of your own"


@pytest.mark.parametrize(
    ("name", "latents", "told"),
    [
        pytest.param("kontext", "(16, 16)", "image, _auto_resize=False", marks=pytest.mark.slow),
        ("flux_img2img", "(16, 16)", "image, strength=0.5"),
        pytest.param("flux_control", "(16, 16)", "control_image", marks=pytest.mark.slow),
    ],
)
def test_pipelines_with_images_are_tried_with_some(name, latents, told, monkeypatch):
    """At the smallest size, also where an area is filled; what the encoder says has a mean."""
    pipe, call = made(name)
    check = checked(pipe, call, "sampling", LOOP, NOISE, "image-to-image", monkeypatch=monkeypatch)
    begins = name == "flux_img2img"
    assert not_yes(check) == ({NOISE: "-"} if begins else {}), check
    assert check["image-to-image"].told.startswith("it begins with noise on the image") == begins
    assert check.facts["size"] == f"16 x 16 pixels, latents {latents}"
    assert check.facts["tried with"].endswith(f"; of check-model's own {told}")
    assert "encode" not in vars(pipe.vae)


def test_images_of_your_own_are_opened_first_and_used(tmp_path, monkeypatch):
    pipe, call = made("flux_img2img")
    tiny.picture(16, 16).save(tmp_path / "in.png")
    given = {**call, "image": str(tmp_path / "in.png"), "strength": 0.5, "size": 16}
    check = checked(pipe, given, "sampling", OWN, LOOP, monkeypatch=monkeypatch)
    assert check.works and "check-model's own" not in check.facts["tried with"], check
    with pytest.raises(InvalidArgument, match=r"'none\.png' cannot be read as an image"):
        glass_flows.check_model("no/such/folder", image="none.png")


def test_an_image_that_is_not_looked_at_is_told(monkeypatch):
    pipe, call = made("flux_img2img")
    monkeypatch.setattr(
        pipe.image_processor, "preprocess", lambda image, **size: torch.zeros(1, 3, 16, 16)
    )
    check = checked(pipe, call, "sampling", "image-to-image", monkeypatch=monkeypatch, size=16)
    assert not_yes(check) == {"image-to-image": "no"}
    assert "another image draws the same sample" in check["image-to-image"].told


def test_a_size_is_an_area_where_one_is_filled(monkeypatch):
    pipe, call = made("kontext")
    check = checked(pipe, call, "sampling", monkeypatch=monkeypatch, size=24)
    assert check.facts["size"].startswith("24 x 24 pixels"), check


def test_memory_counts_what_is_alive_at_once_in_the_network():
    class Network(torch.nn.Module):
        def forward(self, x):
            y = torch.ones_like(x)
            y += x  # in place
            z = (y.view(-1) * 2).view_as(x)
            del y
            return z + z

    network, cpu = Network(), torch.device("cpu")

    def run(n):
        x = torch.ones(n, 1000)  # 4,000 n bytes
        network(x)
        return torch.ones(n, 5000)  # not of the network

    peaks = [costs.peak([network], cpu, lambda n=n: run(n)) for n in (1, 3)]
    assert peaks == [12_000, 36_000]
    assert costs.peak([network], torch.device("meta"), lambda: run(1)) is None


def test_a_time_is_that_of_the_networks_calls(monkeypatch):
    clock = iter([1.0, 3.0, 10.0, 10.5])
    monkeypatch.setattr(costs, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    network = torch.nn.Identity()
    with costs.timed([network], torch.device("cpu")) as spent:
        network(1), network(2)
    assert spent == [2.0, 0.5]
    network(3)  # nobody looks any more


def test_differences_are_relative_and_infinite_of_what_is_not_finite():
    a = torch.tensor([3.0, 4.0])
    assert trials.difference(a + torch.tensor([0.5, 0.0]), a) == pytest.approx(0.1)
    assert trials.difference(a * torch.nan, a) == trials.difference(a[:1], a) == float("inf")


# --- one thing is broken, and the table says so ---------------------------------------------------


@pytest.fixture(scope="module")
def sound():
    return made("sd3")


def no_decoder(pipe, monkeypatch):
    def broken(*args, **given):
        raise RuntimeError("the decoder is broken\nand has more to say")

    monkeypatch.setattr(pipe.vae, "decode", broken)


def no_gradient(pipe, monkeypatch):
    monkeypatch.setattr(pipe.vae, "decode", torch.no_grad()(pipe.vae.decode))


def one_sample_only(pipe, monkeypatch):
    forward = pipe.transformer.forward

    def alone(hidden_states, **given):
        output = forward(hidden_states=hidden_states, **given)
        return tuple(one * torch.nan for one in output) if len(hidden_states) > 2 else output

    monkeypatch.setattr(pipe.transformer, "forward", alone)  # two under guidance


def at_random(pipe, monkeypatch):
    forward = pipe.transformer.forward

    def shaken(**given):
        return tuple(one + torch.randn_like(one) for one in forward(**given))

    monkeypatch.setattr(pipe.transformer, "forward", shaken)


def deaf(pipe, monkeypatch):
    encode = type(pipe).encode_prompt

    @wraps(encode)
    def the_same(self, **given):
        return tuple(torch.zeros_like(one) for one in encode(self, **given))

    monkeypatch.setattr(type(pipe), "encode_prompt", the_same)


def other_guidance(pipe, monkeypatch):
    family = trials.family_of(pipe)
    monkeypatch.setattr(family, "guide", lambda self, cond, uncond: uncond - cond)


def other_grid(pipe, monkeypatch):
    kind = type(pipe.scheduler)
    monkeypatch.setattr(
        trials, "first_order", lambda own: kind.from_config(own.config, shift=own.config.shift + 1)
    )


def no_choice(pipe, monkeypatch):
    found = dict(RESAMPLERS._things)
    found["systematic"] = lambda weights, *rest: np.broadcast_to(
        np.arange(weights.shape[-1]), weights.shape
    )
    monkeypatch.setattr(RESAMPLERS, "_things", found)


def the_worst(pipe, monkeypatch):
    choose = Beam.choose
    monkeypatch.setattr(Beam, "choose", lambda self, values, *rest: choose(self, -values, *rest))


def one_picture(pipe, monkeypatch):
    monkeypatch.setattr(pipe.vae, "decode", lambda z, **given: (torch.zeros(len(z), 3, 16, 16),))


def blind(pipe, monkeypatch):
    encode = pipe.vae.encode
    monkeypatch.setattr(pipe.vae, "encode", lambda x: encode(torch.zeros_like(x)))


BROKEN = {
    no_decoder: {
        "sampling": "RuntimeError: the decoder is broken",
        OWN: "",
        "steering": "as sampling",
        "gradients": "as sampling",
    },
    no_gradient: {
        "sampling": "",
        "steering": "",
        "gradients": "does not require grad",
        "twist": "does not depend on the samples by autograd",
        "reward guidance": "autograd",
    },
    one_sample_only: {
        "sampling": "",
        "noise by seed": "",
        "batches of 1, 2 and 4": "NaN|finite",
        "several prompts": "NaN|finite",
        "steering": "NaN|finite",
    },
    at_random: {"noise by seed": "the same seed draws another sample"},
    deaf: {"sampling": "", "several prompts": "prompts do not reach the network"},
    other_guidance: {
        "sampling": "",
        OWN: "",
        "the adapter, against its own loop": "does not draw what the pipeline's own loop draws",
    },
    other_grid: {OWN: "it is not what FlowMatchEulerDiscrete"},
    no_choice: {"search": "", "steering": "another than the best goes on"},
    the_worst: {"steering": "", "search": "others than the best go on"},
    one_picture: {"sampling": "", "steering": "same reward", "gradients": "grad"},
    blind: {"refinement": "", "image-to-image": "two pictures have the same latents"},
}
"""What is broken, and of each row what it says then; nothing where it works all the same."""


RARER = (
    no_decoder, no_gradient, one_picture, one_sample_only, other_grid, other_guidance, the_worst
)  # fmt: skip


@pytest.mark.parametrize(
    "broken",
    [pytest.param(one, marks=[pytest.mark.slow] * (one in RARER)) for one in BROKEN],
    ids=lambda one: one.__name__,
)
def test_what_is_broken_is_told_and_nothing_else(broken, sound, monkeypatch):
    pipe, call = sound
    broken(pipe, monkeypatch)
    rows = BROKEN[broken]
    check = checked(pipe, call, *rows, monkeypatch=monkeypatch)
    assert {row.what: row.works for row in check.rows} == {
        what: "no" if told else "yes" for what, told in rows.items()
    }, check
    assert not check.works
    for what, told in rows.items():
        assert not told or re.search(told, check[what].told), check[what]
        assert "\n" not in check[what].told


def test_latents_that_a_pipeline_ignores_are_told(monkeypatch):
    pipe, call = made("AuraFlowPipeline")
    own = pipe.prepare_latents

    def ignored(*args, **given):
        latents = own(*args, **given)
        return torch.linspace(-1, 1, latents.numel()).view_as(latents)

    pipe.prepare_latents = ignored
    rows = ("sampling", "noise of your own")
    check = checked(pipe, call, *rows, monkeypatch=monkeypatch)
    assert check["sampling"].works == "yes" and check["noise of your own"].works == "no"
    assert "other latents draw the same sample" in check["noise of your own"].told


def test_a_pipeline_that_is_not_left_as_it_was_is_told(monkeypatch):
    pipe, call = made("sd3")

    def careless(bench):
        bench.pipe.vae.double()
        return "it widens the autoencoder"

    found = {"careless": careless, "left as it was": trials.TRIALS["left as it was"]}
    monkeypatch.setattr(trials, "TRIALS", found)
    row = checked(pipe, call)["left as it was"]
    assert (row.works, row.told) == ("no", "changed by these trials: vae")


def test_a_row_of_any_error_stops_no_other_and_ctrl_c_stops_all(sound, monkeypatch):
    def fails(bench):
        raise MemoryError

    def interrupted(bench):
        raise KeyboardInterrupt

    monkeypatch.setattr(trials, "TRIALS", {"a": fails, "b": lambda bench: "well"})
    check = checked(*sound)
    assert [(row.works, row.told) for row in check.rows] == [("no", "MemoryError"), ("yes", "well")]
    monkeypatch.setattr(trials, "TRIALS", {"a": interrupted})
    with pytest.raises(KeyboardInterrupt):
        checked(*sound)


def test_what_the_rows_warn_of_stands_below_them_once(sound, monkeypatch):
    def warns(bench):
        warnings.warn("it looks distilled", UserWarning, stacklevel=1)
        return "seen"

    monkeypatch.setattr(trials, "TRIALS", {"a": warns, "b": warns})
    check = checked(*sound)
    assert check.notes == ("it looks distilled",) and "it looks distilled" in repr(check)


def test_a_few_step_model_is_told(monkeypatch):
    pipe, call = made("flux")
    pipe.register_to_config(_name_or_path="somebody/flux-lightning")
    check = checked(pipe, call, "sampling", monkeypatch=monkeypatch)
    assert check.facts["few steps"].startswith("a Lightning: use steps=1 with rho='ode'")
    assert check.facts["guidance"] == "a scale that its distilled network takes as an input"
    assert any("looks distilled" in note for note in check.notes)


# --- what is said before anything is drawn --------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ({"size": 16, "height": 16}, "size is height and width: leave height out"),
        ({"size": 0}, "size must be"),
        ({"heigth": 16}, "takes no 'heigth'.*height"),
        ({"num_inference_steps": 3}, "transitions"),
        ({"prompt": ["a", "b", "c"]}, "one prompt, or two that differ"),
        ({"prompt": ["a", "a"]}, "one prompt, or two that differ"),
        ({"prompt": 1.5}, "one prompt, or two that differ, got 1.5"),
        ({"prompt": [["a"]]}, "one prompt, or two that differ"),
        ({"prompt": range(10**12)}, "one prompt, or two that differ"),
        ({"loading": glass_flows.jobs.Loading()}, "loading: only for a model by its name"),
    ],
)
def test_wrong_arguments_come_before_the_trials(given, told, sound, monkeypatch):
    monkeypatch.setattr(trials, "TRIALS", {"a": lambda bench: pytest.fail("it was tried")})
    pipe, call = sound
    with pytest.raises(InvalidArgument, match=told):
        glass_flows.check_model(pipe, **{**call, **given})


@pytest.mark.parametrize(
    ("model", "told"),
    [("digits", "'digits' is none"), (3, "expected a diffusers pipeline"), ("shape", "shapes")],
)
def test_what_is_no_pipeline_is_refused(model, told):
    with pytest.raises(InvalidArgument, match=told):
        glass_flows.check_model(model)


# --- the command ----------------------------------------------------------------------------------


def test_the_command_prints_the_table_and_its_exit_code_tells(tmp_path, monkeypatch):
    folder = tiny.save("dit", tmp_path / "dit")

    def fails(bench):
        raise trials.Wrong(f"not for {bench.prompts}")

    rows = {"sampling": trials.sampling}
    monkeypatch.setattr(trials, "TRIALS", rows)
    words = ["check-model", str(folder), "--prompt", "207", "--json", str(tmp_path / "check.json")]
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert shown.exit_code == 0, shown.output
    assert "pipeline: DiTPipeline" in shown.output and "does not: 0" in shown.output
    data = json.loads((tmp_path / "check.json").read_text())
    assert data["works"] and data["rows"][0]["figures"] == {"passes": 6}
    monkeypatch.setattr(trials, "TRIALS", {**rows, "another": fails})
    shown = CliRunner().invoke(app, words, catch_exceptions=False)
    assert shown.exit_code == 1 and "does not: 1" in shown.output
    assert "not for (207, 0)" in " ".join(shown.output.split())


@pytest.mark.slow
def test_the_table_is_true_of_shapes():
    check = glass_flows.check_model("shapes", progress=False)
    assert not_yes(check) == {} and check.works, check
    assert check.facts["guidance"] == "classifier-free of 3: 2 passes for an evaluation"
    assert check.facts["size"] == "32 x 32 pixels, latents (16, 32)"
    assert check["image-to-image"].figures["rms"] < 0.1  # a trained autoencoder, unlike the tiny
