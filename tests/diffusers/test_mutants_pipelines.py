"""Beginnings, few-step models and refusals on parts that are made by hand: what `tools/mutants.py`
asks first."""

from __future__ import annotations

import warnings
from pathlib import Path
from types import SimpleNamespace

import diffusers
import pytest
import torch
from diffusers.callbacks import MultiPipelineCallbacks, SDCFGCutoffCallback
from PIL import Image

from glass_flows.diffusers import rules
from glass_flows.diffusers.beginnings import beginning
from glass_flows.diffusers.families import Family
from glass_flows.diffusers.few_steps import few_steps_of, warn_of_several_evaluations
from glass_flows.diffusers.rules import RULES, Call, Rule
from glass_flows.errors import InvalidArgument, ShapeError
from glass_flows.plans import DDIM

# --- what refinement begins with ------------------------------------------------------------------


class Means(Family):
    """Its clean states are the means of the channels; pictures are 4 high and 6 wide."""

    height, width, shape, device = 4, 6, (3,), torch.device("cpu")

    def prepare(self):
        pass

    def encode_images(self, images):
        assert images.shape == (1, 3, 4, 6)
        return images.mean((2, 3))


class Both(Means):
    def decode(self, x):
        return x

    def encode_images(self, images):
        return 2 * super().encode_images(images)


class OnlyDecodes(Means):
    def decode(self, x):
        return x


class Repaired(OnlyDecodes):
    encode_images = Means.encode_images


def begun(init, prompts=1, family=Means, **changes):
    adapter = object.__new__(family)
    vars(adapter).update(changes)
    return beginning(init, adapter, prompts)


def plain(*levels):
    """Pictures of one level each: exact ones, black and white too."""
    return torch.tensor(levels)[:, None, None, None].expand(-1, 3, 4, 6)


def test_pictures_as_tensors_become_states():
    one, two = plain(0.25), plain(0.0, 1.0)
    for init in (one, one[0]):
        for prompts in (1, 3):
            assert begun(init, prompts).tolist() == [0.25] * 3
    assert begun(two, 2).tolist() == [[0.0] * 3, [1.0] * 3]
    assert begun(one.double()).dtype == torch.float32
    with pytest.raises(InvalidArgument, match="init has 2 images for 3 prompts"):
        begun(two, 3)
    with pytest.raises(InvalidArgument, match="init has 2 images for 1 prompt:"):
        begun(two, 1)


@pytest.mark.parametrize(
    ("size", "shape"),
    [
        ((4, 4, 6), (4, 4, 6)),  # another number of channels
        ((3, 5, 6), (3, 5, 6)),  # no batch
        ((2, 1, 3, 4, 6), (3, 4, 6)),  # (P, N, *shape), even of states like pictures
        ((2, 2, 2, 3), (2, 2, 3)),
        ((2, 4, 3, 3), (2, 3, 3)),  # latents gone wrong, which the population names
        ((2, 3, 2, 3), (3, 2, 3)),  # latents of three channels
        ((3,), (3,)),
    ],
)
def test_all_other_tensors_are_latents(size, shape):
    given = torch.full(size, 7.0)
    assert begun(given, 2, shape=shape) is given


def test_pictures_of_another_size_or_range_are_refused():
    with pytest.raises(ShapeError, match="init is 6 x 5 pixels, and what is drawn is 6 x 4"):
        begun(torch.zeros(1, 3, 5, 6), shape=(2, 2, 3))
    with pytest.raises(ShapeError, match="init is 6 x 5 pixels, and what is drawn is 6 x 4"):
        begun(Image.new("RGB", (6, 5)))
    for wrong in (-0.01, 1.01, torch.nan):
        with pytest.raises(InvalidArgument, match=r"must lie in \[0, 1\], got"):
            begun(plain(0.5, wrong), 2)
    with pytest.raises(InvalidArgument, match=r"must be floats in \[0, 1\], got torch.int64"):
        begun(plain(0))


def test_pictures_in_memory_and_in_files(tmp_path):
    white, black = Image.new("RGB", (6, 4), "white"), Image.new("RGB", (6, 4))
    white.save(tmp_path / "white.png")
    for init in (white, [white], (white,), tmp_path / "white.png", str(tmp_path / "white.png")):
        assert begun(init, 2).tolist() == [1.0] * 3
    assert begun([tmp_path / "white.png", black], 2).tolist() == [[1.0] * 3, [0.0] * 3]
    for wrong in (3, [], {"a": white}, iter([white])):
        with pytest.raises(InvalidArgument, match=r"^init must be an image or its file, a list"):
            begun(wrong)
    with pytest.raises(InvalidArgument, match="got 3 in a list"):
        begun([white, 3])


def test_what_decodes_in_its_own_way_must_encode_so():
    assert begun(plain(0.25), family=Both).tolist() == [0.5] * 3
    assert begun(plain(0.25), family=Repaired).tolist() == [0.25] * 3
    with pytest.raises(InvalidArgument, match=r"^OnlyDecodes decodes in a way of its own"):
        begun(plain(0.25), family=OnlyDecodes)


# --- models of few steps --------------------------------------------------------------------------


class Pipe:
    """A pipeline by its parts."""

    def __init__(self, network=None, config=(), name=None, shifts=None):
        self.transformer, self.config, self.name_or_path = network, dict(config), name
        self.scheduler = SimpleNamespace(config={"use_dynamic_shifting": shifts})


class FluxTransformer2DModel:
    def __init__(self, adapters=None, **config):
        self.config, self.peft_config = config, adapters


class Other(FluxTransformer2DModel):
    pass


Flux = FluxTransformer2DModel


@pytest.mark.parametrize(
    ("pipe", "name"),
    [
        (Pipe(), None),
        (Pipe(Other()), None),
        (Pipe(Other(), {"is_distilled": True}), "a distilled Pipe"),
        (Pipe(Other(), {"is_distilled": False}), None),
        (Pipe(Other(time_cond_proj_dim=256)), "a latent consistency model"),
        (Pipe(Other(guidance_embeds=False), shifts=False), None),
        (Pipe(Flux(guidance_embeds=False), shifts=False), "FLUX.1-schnell"),
        (Pipe(Flux(guidance_embeds=False), shifts=True), None),
        (Pipe(Flux(guidance_embeds=False)), None),
        (Pipe(Flux(guidance_embeds=True), shifts=False), None),
        (Pipe(Flux(guidance_embeds=True), shifts=True), None),
        (Pipe(Flux(), shifts=False), None),
        (Pipe(Other(), name="/turbo/plain"), None),
        (Pipe(Other(), name="somebody/x-Turbo"), "a Turbo"),
        (Pipe(Other(_name_or_path="a/sdxl-lightning")), "a Lightning"),
        (Pipe(Other({"my-dmd2": None})), "matched to a distribution (DMD)"),
    ],
)
def test_kinds_of_few_step_models(pipe, name):
    found = few_steps_of(pipe)
    assert (found and found.name) == name


def test_a_warning_is_told_once_where_the_pipeline_is_used():
    pipe = Pipe(name="somebody/x-turbo")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for steps in (1, [1], [1, 1]):
            warn_of_several_evaluations(pipe, steps)
        warn_of_several_evaluations(Pipe(), 4)
    with pytest.warns(UserWarning, match="^x-turbo looks distilled.* and 2 eval") as caught:
        warn_of_several_evaluations(pipe, [1, 2, 1])
    assert caught[0].filename == __file__
    with pytest.warns(UserWarning, match="^this pipeline looks distilled.*steps=7, with rho='ode'"):
        warn_of_several_evaluations(Pipe(config={"is_distilled": True}), 2, "steps=7")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_several_evaluations(pipe, 2)


# --- refusals -------------------------------------------------------------------------------------

INDEX = SDCFGCutoffCallback(None, cutoff_step_index=2)
RATIO = SDCFGCutoffCallback(cutoff_step_ratio=0.5)


@pytest.mark.parametrize(
    ("wrong", "value", "steps", "rho", "expected"),
    [
        (rules._is_given, None, 1, 0.0, False),
        (rules._is_given, 0, 1, 0.0, True),
        (rules._is_below_one, None, 1, 0.0, False),
        (rules._is_below_one, 0.99, 1, 0.0, True),
        (rules._is_below_one, 1.0, 1, 0.0, False),
        (rules._is_one, 1, 1, 0.0, True),
        (rules._is_one, 2, 1, 0.0, False),
        (rules._is_another_eta, None, 1, 0.0, False),
        (rules._is_another_eta, 0.0, 4, 0.4, False),
        (rules._is_another_eta, 0.5, 1, DDIM(0.5), False),
        (rules._is_another_eta, 1.0, 1, DDIM(1.0), False),
        (rules._is_another_eta, 0.5, 1, DDIM(0.4), True),
        (rules._is_another_eta, 0.5, 2, DDIM(0.5), True),
        (rules._is_part_of_a_window, 0.0, 4, 0.0, False),
        (rules._is_part_of_a_window, 0.5, 4, 0.0, True),
        (rules._is_part_of_a_window, 3.5, 4, 0.0, True),
        (rules._is_part_of_a_window, 4.0, 4, 0.0, False),
        (rules._cuts_at_an_index, INDEX, 1, 0.0, True),
        (rules._cuts_at_an_index, RATIO, 1, 0.0, False),
        (rules._cuts_at_an_index, MultiPipelineCallbacks([RATIO, INDEX]), 1, 0.0, True),
        (rules._cuts_at_an_index, MultiPipelineCallbacks([RATIO]), 1, 0.0, False),
        (rules._cuts_at_an_index, lambda *given: {}, 1, 0.0, False),
    ],
)
def test_values_of_arguments_that_are_wrong(wrong, value, steps, rho, expected):
    assert wrong(value, Call(Pipe(), {}, steps, rho)) is expected


def test_an_eta_out_of_its_range_is_refused():
    for eta in (-0.1, 1.5):
        with pytest.raises(InvalidArgument, match=r"eta must lie in \[0, 1\]"):
            rules._is_another_eta(eta, Call(Pipe(), {}, 1, 0.0))


UNIPC = diffusers.UniPCMultistepScheduler()


@pytest.mark.parametrize(
    ("only", "parts", "expected"),
    [
        (rules._always, {}, True),
        (rules._blends, {}, True),
        (rules._blends, {"unet": Other(in_channels=4)}, True),
        (rules._blends, {"unet": Other(in_channels=9)}, False),
        (rules._blends, {"unet": Other(in_channels=33)}, False),
        (rules._has_audio_scheduler, {}, False),
        (rules._has_audio_scheduler, {"audio_scheduler": None}, False),
        (rules._has_audio_scheduler, {"audio_scheduler": UNIPC}, True),
        (rules._is_mean_flow, {}, False),
        (rules._is_mean_flow, {"unet": Other()}, False),
        (rules._is_mean_flow, {"unet": Other(use_meanflow=True)}, True),
        (rules._stands_on_unipc, {}, False),
        (rules._stands_on_unipc, {"scheduler": UNIPC}, True),
        (rules._stands_on_unipc, {"scheduler": diffusers.DDIMScheduler()}, False),
    ],
)
def test_parts_of_pipelines_that_make_a_rule_hold(only, parts, expected):
    assert only(SimpleNamespace(**parts)) is expected


def test_a_scheduler_of_ours_stands_on_what_it_was_made_from():
    for name in ("UniPCMultistepScheduler", "DDIMScheduler"):
        ours = SimpleNamespace(config={"base": {"_class_name": name}, "_class_name": "Glass"})
        found = rules._stands_on_unipc(SimpleNamespace(scheduler=ours))
        assert found is (name == "UniPCMultistepScheduler")


class SubPipe(Pipe):
    pass


def refused(rule, given=(), steps=4, rho=0.4, pipe=SubPipe):
    """What is told of a call, or "" if it is none that the rule refuses."""
    try:
        rule.check(Call(pipe(), dict(given), steps, rho))
    except InvalidArgument as error:
        return str(error)
    return ""


def test_a_rule_holds_on_all_its_conditions():
    whole = Rule("", "fails", "Pipe Another")
    assert refused(whole) == "Pipe is not supported: it fails"
    assert refused(Rule("", "fails", "SubPipe")) == "SubPipe is not supported: it fails"
    assert refused(Rule("", "fails", "Another")) == ""
    assert refused(Rule("", "fails", "Pipe", only=lambda pipe: False)) == ""
    inside = Rule("", "fails", "Pipe", inside=True)
    assert refused(inside) == "Pipe is not supported with steps=4: it fails. Use steps=1"
    assert refused(inside, rho="ode") and refused(inside, steps=2)
    assert refused(inside, steps=1) == ""
    random = Rule("", "fails", "Pipe", random=True)
    assert refused(random, steps=1) == (
        "Pipe is not supported with rho=0.4: it fails. Use rho='ode'"
    )
    for still in ("ode", 1.0, DDIM(0.0)):
        assert refused(random, rho=still) == ""
    both = Rule("", "fails", inside=True, random=True)
    assert "SubPipe is not supported with steps=4 and rho=0.4" in refused(both)
    assert refused(both, steps=1) == refused(both, rho="ode") == ""


def test_a_rule_of_arguments_names_the_one_that_is_wrong():
    rule = Rule(
        "", "fails", arguments=("a", "b"), wrong=lambda value, call: value > call.steps,
        right=lambda call: call.steps, instead="c={value}",
    )  # fmt: skip
    assert refused(rule) == refused(rule, {"a": 4, "b": 3, "c": 9}) == ""
    assert refused(rule, {"a": 4, "b": 5}) == (
        "SubPipe is not supported with b=5: it fails. Use b=4, or c=5"
    )
    assert "with b=...: it fails. Use b=None" in refused(
        Rule("", "fails", arguments=("b",)), {"b": []}
    )


def test_whole_and_conditional_rules():
    told = {
        Rule("", "fails", "Pipe"): (True, False),
        Rule("", "fails", "Pipe", only=rules._blends): (True, True),
        Rule("", "fails", "Pipe", inside=True): (False, False),
        Rule("", "fails", "Pipe", random=True): (False, False),
        Rule("", "fails", arguments=("a",)): (False, True),
        Rule("", "fails", arguments=("a",), only=rules._blends): (False, True),
    }
    assert {rule: (rule.whole, rule.conditional) for rule in told} == told


def test_of_one_evaluation_without_noise_is_refused_what_the_page_says():
    """What it refuses however pipelines are called, and five conditions."""
    page = (Path(__file__).parents[2] / "docs/diffusers/pipelines.md").read_text(encoding="utf-8")
    whole = page.partition("\n## Refused\n")[2].partition("\n## ")[0]
    alone = {"enable_temporal_reasoning", "num_inference_steps", "eta"}
    parts = {rules._is_mean_flow, rules._stands_on_unipc}
    for rule in RULES:
        always = f"- it {rule.why}: " in whole or alone & {*rule.arguments} or rule.only in parts
        assert (rule.inside or rule.random) is not bool(always), rule


def test_the_values_that_are_told_to_use():
    found = {
        argument: rule.right(Call(None, {}, 4, 0.4)) if callable(rule.right) else rule.right
        for rule in RULES
        for argument in rule.arguments
        if rule.right is not None
    }
    assert found == {
        "enable_temporal_reasoning": False,
        "num_inference_steps": 2,
        "eta": 0.0,
        "strength": 1.0,
        "adapter_conditioning_factor": 4.0,
    }
