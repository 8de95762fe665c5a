"""Searches on pipelines: through an adapter, inside the pipeline's own loop, stopped, dealt out."""

from __future__ import annotations

import math
import multiprocessing
from dataclasses import fields
from functools import cache
from itertools import pairwise

import numpy as np
import pytest
import torch
import torch.distributed as dist

import tiny_pipelines as tiny
from cases import fast, first, one_in
from glass_flows import Beam, Greedy, Sampler, Steering, steer_pipeline
from glass_flows.batching import Batching
from glass_flows.diffusers import GlassScheduler, can_record
from glass_flows.diffusers import pipeline as module
from glass_flows.errors import InvalidArgument, RewardError, ShapeError, UnknownName
from glass_flows.runs import RunFolder, read_run
from glass_flows.steering import Shards

SIZES = {"height": 16, "width": 16, "max_sequence_length": 32}
GIVEN = {**SIZES, "guidance_scale": 4.0, "progress": False}
PROMPTS = ["a cat", "a dog"]
K, M, N = 3, 2, 4
# Inside its own loop nobody knows the guidance: it is said.
SAMPLER = Sampler(K, M, 0.4, solver="default:guidance=4")
METHODS = {
    "beam": Beam(N, scale=50.0, children=2),
    "greedy": Greedy(N, scale=50.0, children=2),
    "svdd": Greedy(N, scale=20.0, children=2, pick="sample"),
}


def but(*names):
    """All methods, of which these are slow: they run the code of the others."""
    return [pytest.param(name, marks=[pytest.mark.slow] * (name in names)) for name in METHODS]


def redness(images):
    """Mean of red less that of the others, (B, 3, H, W) in [0, 1] to (B,)."""
    mean = images.mean((2, 3))
    return mean[:, 0] - 0.5 * (mean[:, 1] + mean[:, 2])


def draw(pipe, method, **changes):
    """Pictures of two prompts, all in one batch."""
    given = {"max_batch": None, "decode_batch": None, "seed": 0, **GIVEN, **changes}
    return steer_pipeline(pipe, PROMPTS, redness, method, SAMPLER, **given)


@cache
def shared(name):
    """A pipeline of this family that no test changes."""
    return tiny.build(name)


def shared_latents():
    return torch.randn(2 * N, 4, 8, 8, generator=torch.Generator().manual_seed(2))


def pixels(result):
    return np.stack([[np.asarray(image) for image in row] for row in result.rows])


def as_bytes(images):
    return (images.clamp(0, 1) * 255).round().permute(0, 2, 3, 1).numpy().astype(np.uint8)


def same(one, two):
    """The same bits, of everything that came out."""
    assert type(one.result) is type(two.result)
    for name in (field.name for field in fields(one.result)):
        found, other = getattr(one.result, name), getattr(two.result, name)
        if isinstance(found, torch.Tensor):
            assert torch.equal(found.nan_to_num(), other.nan_to_num()), name
        else:
            assert found == other, name
    assert (pixels(one) == pixels(two)).all()


@pytest.fixture
def inside(monkeypatch):
    """Makes pipelines run their own loops."""
    return lambda: monkeypatch.setattr(module, "family_of", lambda pipe: None)


# --- inside a pipeline's own loop -----------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", but("greedy", "svdd"))
def test_inside_its_own_loop_a_search_is_that_of_the_adapter(name, inside):
    """The same ancestry, rewards, samples and images, from the same latents and seed."""
    latents, pipe = shared_latents(), tiny.build("sd3")
    through = draw(pipe, METHODS[name], latents=latents)
    inside()
    within = draw(pipe, METHODS[name], latents=latents)
    assert torch.equal(within.result.ancestry, through.result.ancestry)
    assert (within.result.ancestry[1:] != torch.arange(N)).any()
    # Not to the bit: the loop encodes each prompt once for every particle.
    for found in ("samples", "rewards"):
        one, other = getattr(within.result, found), getattr(through.result, found)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-4)
    # The pipeline decodes for itself, and rounds as we do.
    assert np.abs(pixels(within).astype(int) - pixels(through)).max() <= 1
    assert within.result.costs == through.result.costs
    assert within.settings == through.settings


@pytest.mark.slow
@pytest.mark.parametrize("name", but("beam", "svdd"))
def test_inside_its_own_loop_it_selects_and_is_counted(name, inside):
    latents, pipe, method = shared_latents(), tiny.build("sd3"), METHODS[name]
    own, told = pipe.scheduler, {}
    through = draw(pipe, method, latents=latents, on_boundary=told.setdefault("adapter", []).append)
    rows, decoded = [], []

    def reward(images):
        decoded.extend(images)
        return redness(images)

    handle = tiny.network(pipe).register_forward_pre_hook(
        lambda _, args, kwargs: rows.append(len(kwargs["hidden_states"])), with_kwargs=True
    )
    inside()
    within = steer_pipeline(
        pipe, PROMPTS, reward, method, SAMPLER, latents=latents, seed=0,
        decode_batch=None, on_boundary=told.setdefault("loop", []).append, **GIVEN,
    )  # fmt: skip
    handle.remove()
    assert pipe.scheduler is own
    assert within.result.network_evaluations == sum(rows) == 2 * N * K * M * 2  # two for guidance
    assert len(rows) == K * M
    returned = N if name == "beam" else N // 2
    assert within.rewards.shape == (2, returned)
    assert within.result.samples.shape == (2, returned, 4, 8, 8)
    assert within.result.ancestry.shape == (K, 2, N)
    assert [len(row) for row in within.rows] == [returned] * 2
    # Every image is one of those decoded at the end, with the reward of that image.
    ends = torch.stack(decoded[-2 * N :]).view(2, N, 3, 16, 16)
    for p, row in enumerate(pixels(within)):
        for image, value in zip(row, within.rewards[p].tolist()):
            off = np.abs(as_bytes(ends[p]).astype(int) - image).max((1, 2, 3))
            assert off.min() <= 1
            assert redness(ends[p])[off.argmin()].item() == pytest.approx(value, abs=1e-6)
    assert [within.rows[p].index(image) for p, image in enumerate(within.best)] == (
        within.rewards.argmax(1).tolist()
    )
    # Both paths are the same.
    for steps in told.values():
        assert [step.boundary.index for step in steps] == list(range(K + 1))
        selected = [bool(step.resampled.all()) for step in steps]
        assert selected == [False, *[True] * (K - 1), False]  # pure noise has no value
        assert steps[-1].boundary.final
    one, other = (steps[1] for steps in told.values())
    torch.testing.assert_close(one.rewards, other.rewards, rtol=1e-5, atol=1e-6)
    assert torch.equal(one.ancestors, other.ancestors)
    torch.testing.assert_close(within.result.samples, through.result.samples, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_children_of_one_parent_part_inside_the_loop(inside):
    inside()
    seen = []
    draw(tiny.build("sd3"), METHODS["beam"], on_boundary=seen.append)
    parted = 0
    for step, later in pairwise(seen):
        if step.resampled.all():
            parent, *_ = step.ancestors[0].unique().tolist()
            (one, other) = torch.nonzero(step.ancestors[0] == parent).flatten().tolist()
            estimates = later.boundary.estimate.D
            assert not torch.allclose(estimates[one], estimates[other], atol=1e-2)
            parted += 1
    assert parted == K - 1


@pytest.mark.slow
def test_a_unet_is_searched_inside_its_loop_too(inside):
    """Stable Diffusion hands its generators to the scheduler."""
    inside()
    pipe = tiny.build("sd")
    given = {"height": 16, "width": 16, "guidance_scale": 5.0}
    results = [
        steer_pipeline(
            pipe, "a cat", redness, method=method, particles=4, transitions=2, steps=1, seed=seed,
            **given,
        )
        for method in ("beam", "greedy")
        for seed in (1, 1, 2)
    ]  # fmt: skip
    for one, again, other in (results[:3], results[3:]):
        same(one, again)
        assert not torch.equal(one.result.samples, other.result.samples)
    assert [len(r.images) for r in results] == [4] * 3 + [2] * 3


def test_what_needs_an_adapter_is_refused_inside_the_loop(inside, tmp_path):
    pipe = tiny.build("sd3")
    assert can_record(pipe)
    only = "record and shards: only on pipelines with an adapter"
    for kept in ({"record": RunFolder(tmp_path)}, {"shards": Shards()}):
        with pytest.raises(InvalidArgument, match=only):
            draw(pipe, METHODS["beam"], decode=lambda z: z[:, :3], **kept)
    inside()
    assert not can_record(pipe)
    for kept in ({"record": RunFolder(tmp_path)}, {"shards": Shards()}):
        with pytest.raises(InvalidArgument, match=only):
            draw(pipe, METHODS["beam"], **kept)
    for sampler in (
        {"steps": [2, 1]},
        {"rho": [0.4, 0.1]},
        {"rho": lambda t, t_next: 0.3},
        {"times": "uniform"},
    ):
        with pytest.raises(InvalidArgument, match="runs its own loop on its own grid"):
            steer_pipeline(pipe, "a cat", redness, "beam", transitions=2, **sampler, **GIVEN)


@pytest.mark.slow
def test_lists_and_times_go_through_an_adapter():
    result = steer_pipeline(
        tiny.build("sd3"), "a cat", redness, "beam", particles=2, transitions=3,
        steps=[1, 3, 2], rho=[0.4, "ddpm", lambda t, t_next: 0.1], times="shifted:2",
        seed=0, **GIVEN,
    )  # fmt: skip
    assert result.result.network_evaluations == 2 * (1 + 3 + 2) * 2
    assert result.settings["sampler"]["times"] == "shifted:2"


# --- what is returned -----------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", but("beam", "svdd"))
def test_images_and_rewards_belong_together(name):
    decoded = []

    def reward(images):
        decoded.extend(images)
        return redness(images)

    pipe, method = tiny.build("sd3"), METHODS[name]
    result = steer_pipeline(
        pipe, PROMPTS, reward, method, Sampler(K, M), seed=5, **GIVEN
    )  # fmt: skip
    groups = N if name == "beam" else N // 2
    assert result.rewards.shape == (2, groups)
    ends = torch.stack(decoded[-2 * N :])
    shown = as_bytes(ends)
    values = redness(ends).double()
    for p in range(2):
        for g in range(groups):
            at = [i for i in range(2 * N) if (shown[i] == pixels(result)[p, g]).all()]
            assert at and values[at[0]] == pytest.approx(result.rewards[p, g].item(), abs=1e-6)
            within = range(p * N + 2 * g, p * N + 2 * g + 2) if name != "beam" else [p * N + g]
            assert set(at) & set(within)
            if name == "greedy":  # of each group's children the best
                best = max(values[i].item() for i in within)
                assert result.rewards[p, g].item() == pytest.approx(best, abs=1e-6)
    best = result.rewards.argmax(1)
    assert all(result.best[p] is result.rows[p][best[p]] for p in range(2))
    assert torch.equal(result.rewards.amax(1), result.rewards[torch.arange(2), best])


@pytest.mark.slow
def test_objects_and_names_say_the_same():
    pipe = tiny.build("sd3")
    by_names = steer_pipeline(
        pipe, PROMPTS, redness, method="beam", particles=3, children=3, scale=2.0,
        transitions=2, steps=2, rho="ddpm", solver="first-order", decode_batch=2, max_batch=4,
        seed=3, **GIVEN,
    )  # fmt: skip
    by_objects = steer_pipeline(
        pipe, PROMPTS, redness, Beam(3, 2.0, children=3),
        Sampler(2, 2, "ddpm", solver="first-order"), Batching(4, 2), seed=3, **GIVEN,
    )  # fmt: skip
    same(by_names, by_objects)
    assert by_names.settings == by_objects.settings
    for name, made in {"twist": Steering(2, twist=1.0), "svdd": Greedy(2, pick="sample")}.items():
        named, given = (
            steer_pipeline(pipe, "a cat", redness, method, Sampler(2, 1), seed=1, **GIVEN, **few)
            for method, few in ((name, {"particles": 2}), (made, {}))
        )
        same(named, given)
        assert named.settings == given.settings


# --- stopped and gone on with ---------------------------------------------------------------------


class Stop:
    """Redness, which stops the run after so many images; None never does."""

    def __init__(self, after):
        self.left = after

    def __call__(self, images):
        if self.left is not None:
            if self.left < len(images):
                raise KeyboardInterrupt
            self.left -= len(images)
        return redness(images)


# Images at a boundary: 8, from the second on. Before the first, within one, at its last, ...
STOPS = ([0], [3], [7], [8, 0], [8, 7], [20], [15, 15], [0, 0, 8, 3, 5, 8], [23])


@pytest.mark.parametrize(
    ("name", "stopped"),
    [
        pytest.param("svdd", [[15, 15]], marks=pytest.mark.slow),
        *(pytest.param(name, STOPS, marks=pytest.mark.slow) for name in METHODS),
    ],
)
def test_a_search_that_was_stopped_goes_on_to_the_same_bits(name, stopped, tmp_path):
    pipe = tiny.build("sd3")

    def run(folder, after=None):
        record = RunFolder(tmp_path / folder, {"method": name})
        found = steer_pipeline(
            pipe, PROMPTS, Stop(after), METHODS[name], SAMPLER, seed=4, record=record,
            **GIVEN,
        )  # fmt: skip
        record.finish(found.result)
        return found

    whole = run("whole")
    for stops in stopped:
        folder = "-".join(map(str, stops))
        for after in stops:
            with pytest.raises(KeyboardInterrupt):
                run(folder, after)
        assert read_run(tmp_path / folder).status == "unfinished"
        parts = run(folder)
        same(parts, whole)
        one, two = (read_run(tmp_path / at) for at in ("whole", folder))
        assert [{**event, "seconds": 0} for event in one.events] == [
            {**event, "seconds": 0} for event in two.events
        ]
        assert one.result == two.result
        for k in range(1, K + 1):
            assert one.sheet(k).read_bytes() == two.sheet(k).read_bytes()


# --- dealt out ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", but(*METHODS))
def test_micro_batches_of_one_process(name):
    pipe, shards = tiny.build("sd3"), Shards(2)
    cut = draw(pipe, METHODS[name], shards=shards, seed=7)
    chunks = draw(pipe, METHODS[name], max_batch=2, decode_batch=2, seed=7)
    whole = draw(pipe, METHODS[name], seed=7)
    assert [(p.start, p.stop) for p in shards.pieces] == [(0, 2), (2, 4), (4, 6), (6, 8)]
    same(cut, chunks)
    for other in (cut, chunks):
        assert torch.equal(other.result.ancestry, whole.result.ancestry)
        torch.testing.assert_close(other.result.samples, whole.result.samples, rtol=1e-3, atol=1e-3)


def one_of_two(rank, folder, name):
    """A process of a group of two, which leaves what it found in a file."""
    torch.set_num_threads(1)
    store = dist.FileStore(f"{folder}/store", 2)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=2)
    record = RunFolder(f"{folder}/run", {}, writes=rank == 0)
    found = draw(tiny.build("sd3"), METHODS[name], shards=Shards(2), record=record)
    tensors = {k: v for k, v in vars(found.result).items() if isinstance(v, torch.Tensor)}
    torch.save({**tensors, "pixels": torch.from_numpy(pixels(found))}, f"{folder}/{rank}.pt")
    dist.destroy_process_group()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["beam", "greedy"])
def test_two_processes_return_the_images_of_one(name, tmp_path, monkeypatch):
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    alone = draw(tiny.build("sd3"), METHODS[name], shards=Shards(2))
    context = multiprocessing.get_context("fork")  # what they import is imported already
    started = [
        context.Process(target=one_of_two, args=(rank, str(tmp_path), name)) for rank in (0, 1)
    ]
    for process in started:
        process.start()
    for process in started:
        process.join(200)
        assert process.exitcode == 0
    for rank in (0, 1):
        found = torch.load(tmp_path / f"{rank}.pt", weights_only=True)
        assert (found.pop("pixels").numpy() == pixels(alone)).all()
        for key, tensor in found.items():
            assert torch.equal(tensor, getattr(alone.result, key)), key


# --- what is refused ------------------------------------------------------------------------------


@pytest.mark.parametrize("adapted", [True, False])
@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"num_inference_steps": 20}, r"num_inference_steps is not.*: give transitions= \(K\)"),
        ({"generator": torch.Generator()}, "generator is not.*: give seed="),
        ({"num_images_per_prompt": 4}, r"num_images_per_prompt is not.*: give particles= \(N\)"),
        ({"callback_on_step_end": print}, "callback_on_step_end is not.*: give on_boundary="),
        ({"eta": 0.5}, "eta is not.*: give rho='ddim:ETA'"),
        ({"scael": 3}, "takes no 'scael'. Did you mean 'scale'"),
        ({"particels": 3}, "takes no 'particels'. Did you mean 'particles'"),
        ({"transition": 3}, "takes no 'transition'. Did you mean 'transitions'"),
        ({"boundarys": 3}, "takes no 'boundarys'. Did you mean 'boundaries'"),
        ({"max_bach": 3}, "takes no 'max_bach'. Did you mean 'max_batch'"),
        ({"recrod": 3}, "takes no 'recrod'. Did you mean 'record'"),
        ({"hight": 16}, "takes no 'hight'. Did you mean 'height'"),
        ({"negative_promt": ""}, "takes no 'negative_promt'. Did you mean 'negative_prompt'"),
        ({"zzz": 1}, "takes no 'zzz'. The pipeline's arguments: .*height.*width.*; for ours"),
        ({"twist": 1.0, "method": "beam"}, "method 'beam' has no twist: it has particles, scale"),
        ({"children": 2}, "method 'steering' has no children: it has .*potential"),
        ({"particles": 2, "method": "plain"}, "method 'plain' has no particles"),
        ({"pick": "best", "method": "svdd"}, "method 'svdd' has no pick"),
        ({"scale": 2.0, "method": Beam()}, r"scale: given beside Beam\(\); put them into it"),
        ({"steps": 2, "sampler": Sampler()}, r"steps given beside Sampler\(\): put them into it"),
        ({"sampler": "ode"}, r"expected Sampler\(...\), got 'ode'"),
        ({"method": "beam", "particles": 3}, "children = 2 must divide particles = 3"),
        ({"method": "baem"}, "unknown method 'baem'. Did you mean 'beam'"),
        ({"on_boundary": 3}, "on_boundary must be a function of a step, or None, got 3"),
        ({"prompt": []}, "give a prompt, or a list with at least one"),
    ],
)  # fmt: skip
def test_wrong_arguments_are_answered_with_the_right_ones(wrong, message, adapted, inside):
    pipe = shared("sd3")
    if not adapted:
        inside()
    asked = []
    handle = tiny.network(pipe).register_forward_pre_hook(lambda *_: asked.append(1))
    with pytest.raises(InvalidArgument, match=message) as caught:
        steer_pipeline(**{"pipe": pipe, "prompt": "a cat", "reward": redness, **SIZES, **wrong})
    handle.remove()
    assert "\n" not in str(caught.value) and not asked
    assert isinstance(caught.value, UnknownName) or "takes no" not in message


def test_latents_of_another_shape_are_refused():
    with pytest.raises(ShapeError, match=r"latents must be \(8, 4, 8, 8\).*got \(1, 2\)"):
        draw(tiny.build("sd3"), METHODS["beam"], latents=torch.zeros(1, 2))


@pytest.mark.parametrize("name", ["flux", "qwenimage"])
def test_a_guidance_scale_that_the_network_does_not_take_is_refused(name):
    pipe = tiny.build(name, **({"guidance_embeds": False} if name == "flux" else {}))
    given = {k: v for k, v in tiny.CALL[name].items() if k not in ("prompt", "guidance_scale")}
    with pytest.raises(InvalidArgument, match=r"does nothing.*true_cfg_scale"):
        steer_pipeline(pipe, "a cat", redness, guidance_scale=2.0, **given)
    few = {"particles": 1, "transitions": 1, "steps": 1, "seed": 0}
    steer_pipeline(pipe, "a cat", redness, **few, **given)


@pytest.mark.slow
def test_a_single_transition_starts_at_noise_whatever_the_terminal_sigma():
    """diffusers #14411: stretching one sigma to the terminal one divides 0 by 0."""
    pipe, given = tiny.build("qwenimage"), dict(tiny.CALL["qwenimage"])
    prompt = given.pop("prompt")
    result = steer_pipeline(
        pipe, prompt, redness, "best-of-n", particles=2, transitions=2, steps=2, seed=0, **given
    )
    assert len(result.result.ancestry) == 1  # the ODE in one go
    assert result.result.network_evaluations == 2 * 4 * 2
    assert torch.isfinite(result.rewards).all()
    inside = GlassScheduler.from_pipeline(pipe, rho="ode", steps=4)
    inside.set_timesteps(sigmas=[1.0], mu=0.7)
    assert inside.table.times == (0.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    fast(["sd"], ["sd", "dit", "flux", "sdxl", "sana"]),
)
def test_the_ode_in_one_go_starts_at_noise(name):
    """A grid of one step with "leading" spacing starts at timestep 1, which is data already."""
    pipe, given = tiny.build(name), dict(tiny.CALL[name])
    labels = given.pop("class_labels", None)
    prompt = given.pop("prompt", None) or labels
    whole, cut = (
        steer_pipeline(pipe, prompt, redness, "plain", sampler, seed=0, **given).result.samples
        for sampler in (Sampler.ode(8), Sampler(8, 1, "ode"))
    )
    # the same ODE by other steps, of random networks: .04 to .14 apart; from near data .9 and more
    assert (whole - cut).norm() < 0.5 * cut.norm()
    own = GlassScheduler.from_pipeline(pipe, rho="ode", steps=40)
    if name in ("sd", "sdxl", "dit", "sana"):
        own.set_timesteps(1)
        assert own.table.times[0] < 0.1


# --- every family alike ---------------------------------------------------------------------------

SMALL = {
    "transitions": 2, "steps": 1, "particles": 2, "scale": 1.0, "seed": 0, "progress": False,
}  # fmt: skip
GUIDED = {"flux": "true_cfg_scale", "qwenimage": "true_cfg_scale"}
NEGATIVE = ["flux", "sd", "sdxl", "sd3", "sana", "qwenimage", "zimage"]


def drawn(name, prompt, **changes):
    given = {k: v for k, v in tiny.CALL[name].items() if k not in ("prompt", "class_labels")}
    return steer_pipeline(shared(name), prompt, redness, **{**given, **SMALL, **changes})


@pytest.mark.slow
@pytest.mark.parametrize("name", NEGATIVE)
def test_texts_of_each_prompt_go_to_their_own_particles(name):
    given = {GUIDED.get(name, "guidance_scale"): 5.0}
    both = drawn(name, PROMPTS, negative_prompt=["x", "yy"], **given)
    equal = drawn(name, PROMPTS, negative_prompt=["x", "x"], **given)
    one = drawn(name, PROMPTS, negative_prompt="x", **given)
    assert torch.equal(equal.rewards, one.rewards)
    assert torch.equal(both.rewards[0], equal.rewards[0])
    assert not torch.equal(both.rewards[1], equal.rewards[1])
    for wrong, message in ((["x"] * 3, "3 of negative_prompt given for 2"), (5, "text or a list")):
        with pytest.raises(InvalidArgument, match=message):
            drawn(name, PROMPTS, negative_prompt=wrong, **given)


@pytest.mark.parametrize("name", NEGATIVE)
def test_what_acts_under_guidance_only_is_refused_without_it(name):
    off = {GUIDED.get(name, "guidance_scale"): 0.0 if name == "zimage" else 1.0}
    with pytest.raises(InvalidArgument, match=r"negative_prompt: nothing to do without"):
        drawn(name, "a cat", negative_prompt="x", **off)
    if name == "qwenimage":
        with pytest.raises(InvalidArgument, match="true_cfg_scale > 1 needs a negative_prompt"):
            drawn(name, "a cat", negative_prompt=None, true_cfg_scale=7.0)


@pytest.mark.parametrize("name", one_in(3, tiny.CALL))
@pytest.mark.parametrize("wrong", first(["5", math.nan, [3.0]]))
def test_a_guidance_scale_is_a_number(name, wrong):
    argument = "true_cfg_scale" if name == "qwenimage" else "guidance_scale"
    prompt = 1 if name == "dit" else "a cat"
    with pytest.raises(InvalidArgument, match=f"{argument} must be finite"):
        drawn(name, prompt, **{argument: wrong})


@pytest.mark.parametrize("name", one_in(3, [name for name in tiny.CALL if name != "dit"]))
def test_a_prompt_is_a_text(name):
    with pytest.raises(InvalidArgument, match=r"prompts of .* must be texts, got 2"):
        drawn(name, ["a cat", 2])


@pytest.mark.parametrize("name", ["sd", "sdxl", "sd3"])
def test_skipped_layers_are_a_count(name):
    with pytest.raises(InvalidArgument, match="clip_skip must be an integer >= 0, got 'a'"):
        drawn(name, "a cat", clip_skip="a")


def test_dit_is_asked_for_classes_by_number_or_by_name():
    pipe = tiny.build("dit")
    pipe.labels = {"golden retriever": 3}
    given = {"guidance_scale": 4.0, **SMALL}
    named = steer_pipeline(pipe, "golden retriever", redness, **given)
    assert torch.equal(named.rewards, steer_pipeline(pipe, np.array([3]), redness, **given).rewards)
    with pytest.raises(UnknownName, match="unknown class 'golden retreiver'"):
        steer_pipeline(pipe, "golden retreiver", redness, **given)


def test_a_decoder_that_was_widened_is_as_it_was_when_the_run_is_over():
    pipe = tiny.build("sdxl")
    pipe.vae.to(torch.float16)
    pipe.vae.register_to_config(force_upcast=True)
    given = {k: v for k, v in tiny.CALL["sdxl"].items() if k != "prompt"}
    steer_pipeline(pipe, "a cat", redness, guidance="reward:1", **{**given, **SMALL})
    assert pipe.vae.dtype == torch.float16
    with pytest.raises(RewardError):
        steer_pipeline(pipe, "a cat", lambda z: 1 / 0, guidance="reward:1", **{**given, **SMALL})
    assert pipe.vae.dtype == torch.float16


@pytest.mark.parametrize("setting", first([{"times": "karras"}, {"solver": "first-order"}]))
def test_best_of_n_on_the_ode_refuses_what_is_nothing_to_it(setting):
    with pytest.raises(InvalidArgument, match=f"{next(iter(setting))}: nothing to BestOf"):
        drawn("sd3", "a cat", method="best-of-n", **setting)
    drawn("sd3", "a cat", method="best-of-n", rho=0.4, solver="first-order")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"checkpoint": True}, "checkpoint needs an adapter"),
        ({"output_type": "latent"}, "output_type: images are returned as PIL"),
        ({"return_dict": False}, "return_dict: images are returned as PIL"),
        ({"negative_prompt": ["x"]}, "1 of negative_prompt given for 2 prompts"),
    ],
)
def test_inside_a_loop_what_cannot_act_is_refused(wrong, message, inside):
    inside()
    with pytest.raises(InvalidArgument, match=message):
        draw(tiny.build("sd3"), METHODS["beam"], **wrong)


@pytest.mark.slow
def test_inside_a_loop_the_bar_is_the_one_that_was_asked_for(inside, capsys):
    inside()
    pipe = tiny.build("sd3")
    pipe.set_progress_bar_config(desc="own")
    texts = {"negative_prompt": ["x", "yy"]}
    quiet = draw(pipe, METHODS["beam"], **texts)
    assert "own" not in capsys.readouterr().err
    shown = draw(pipe, METHODS["beam"], **{**texts, "progress": True})
    assert "own" in capsys.readouterr().err
    same(quiet, shown)
