"""The bundled digits models: contract, files, data, training."""

from __future__ import annotations

import importlib.resources
import os
import re
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from cases import first
from glass_flows import errors
from glass_flows import training as loop
from glass_flows.research import train_digits as training
from glass_flows.worlds import digits
from glass_flows.worlds.digits import (
    NULL_CLASS,
    DigitsClassifier,
    DigitsNet,
    digits_images,
    digits_labels,
    digits_split,
    load_digits_classifier,
    load_digits_network,
)

WEIGHTS = importlib.resources.files("glass_flows.worlds") / "weights"
TINY = {"steps": 6, "batch": 8, "classifier_steps": 4, "checkpoint_every": 2, "progress": False}


@pytest.fixture(scope="module")
def net() -> DigitsNet:
    return load_digits_network()


@pytest.fixture(scope="module")
def judge() -> DigitsClassifier:
    return load_digits_classifier("judge")


def inputs(count: int = 10, seed: int = 0, dtype: torch.dtype = torch.float32):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(count, 1, 8, 8, generator=generator).to(dtype)
    t = torch.rand(count, generator=generator).to(dtype)
    return x, t, torch.arange(count) % 10


# ------------------------------------------------------------------------------------- networks


def test_sizes():
    def count(model):
        return sum(p.numel() for p in model.parameters())

    assert count(DigitsNet()) == 496_384
    assert count(DigitsClassifier()) < 60_000


def test_untrained_network_is_the_zero_velocity():
    x, t, label = inputs()
    assert not DigitsNet()(x, t, label).any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_output_has_shape_and_dtype_of_x(net, dtype):
    x, t, label = inputs(dtype=dtype)
    out = net(x, t, label)
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert net(x[:0], t[:0], label[:0]).shape == (0, 1, 8, 8)


def test_float64_network_computes_in_float64(net):
    x, t, label = inputs(dtype=torch.float64)
    double = load_digits_network().double()
    out = double(x, t, label)
    assert 0 < (out - net(x, t, label)).abs().max() < 1e-4
    # A time step far below float32's resolution must be felt, and with the right slope.
    slopes = [(double(x, t + h, label) - out) / h for h in (1e-9, 1e-6)]
    torch.testing.assert_close(*slopes, rtol=1e-3, atol=1e-3)


def test_bfloat16_network_stays_close(net):
    x, t, label = inputs(100)
    exact = net(x, t, label)
    low = load_digits_network().bfloat16()(x.bfloat16(), t, label)
    assert low.dtype == torch.bfloat16
    assert (low - exact).norm() / exact.norm() < 0.02


def test_bfloat16_network_keeps_the_digits_of_time():
    low = load_digits_network().bfloat16()
    x, _, label = inputs(dtype=torch.bfloat16)
    t, later = torch.tensor(0.5), torch.tensor(0.501)
    assert t.bfloat16() == later.bfloat16()
    assert not torch.equal(low(x, t, label), low(x, later, label))


def test_scalar_time_is_the_same_as_a_batch_of_it(net):
    x, _, label = inputs()
    t = torch.tensor(0.3)
    torch.testing.assert_close(net(x, t, label), net(x, t.expand(10), label))


def test_rows_do_not_influence_one_another(net):
    x, t, label = inputs()
    each = [net(x[i : i + 1], t[i : i + 1], label[i : i + 1]) for i in range(10)]
    torch.testing.assert_close(net(x, t, label), torch.cat(each), rtol=1e-4, atol=1e-5)


def test_none_is_the_null_class_and_classes_matter(net):
    x, t, _ = inputs()
    null = net(x, t)
    assert torch.equal(null, net(x, t, torch.full((10,), NULL_CLASS)))
    outputs = [null, *(net(x, t, torch.full((10,), c)) for c in range(10))]
    for i, one in enumerate(outputs):
        assert all((one - other).abs().max() > 0.05 for other in outputs[:i])


@pytest.mark.parametrize(
    ("x", "t", "label"),
    [
        (torch.zeros(2, 8, 8), torch.zeros(2), None),
        (torch.zeros(2, 3, 8, 8), torch.zeros(2), None),
        (torch.zeros(2, 1, 8, 8, dtype=torch.long), torch.zeros(2), None),
        (torch.zeros(2, 1, 8, 8), torch.zeros(3), None),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, 1), None),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2, dtype=torch.long), None),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(1, dtype=torch.long)),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2)),
        (torch.zeros(2, 1, 8, 8), torch.zeros(2), torch.zeros(2, dtype=torch.bool)),
    ],
)
def test_wrong_shapes_and_dtypes_are_refused(net, x, t, label):
    with pytest.raises(errors.ShapeError, match="got"):
        net(x, t, label)


@pytest.mark.parametrize("label", [-1, 11])
def test_labels_out_of_range_are_refused(net, label):
    x, t, _ = inputs(2)
    with pytest.raises(errors.InvalidArgument, match=f"from 3 to {label}|from {label} to 3"):
        net(x, t, torch.tensor([3, label]))


def test_network_needs_a_size():
    with pytest.raises(errors.InvalidArgument, match="depth=0"):
        DigitsNet(depth=0)


def test_classifier_contract(judge):
    x, _, _ = inputs()
    assert judge(x).shape == (10, 10)
    assert judge.features(x).shape == (10, 64)
    torch.testing.assert_close(judge(x), judge.logits(judge.features(x)))
    assert judge(x.double()).dtype == torch.float32  # the weights' dtype
    with pytest.raises(errors.ShapeError):
        judge(x[:, :, :7])


def test_classifier_is_differentiable_in_its_input():
    judge = load_digits_classifier("judge").double()
    x = inputs(2, dtype=torch.float64)[0].requires_grad_()
    assert torch.autograd.gradcheck(lambda z: judge(z).logsumexp(1), x)


# -------------------------------------------------------------------------------------- weights


def test_loaded_models_are_frozen_and_fresh(net):
    again = load_digits_network()
    assert not again.training
    assert not any(p.requires_grad for p in again.parameters())
    next(again.parameters()).zero_()
    assert next(load_digits_network().parameters()).any()
    assert next(net.parameters()).any()


def test_reward_and_judge_are_different_models(judge):
    x, _, _ = inputs()
    assert (load_digits_classifier("reward")(x) - judge(x)).abs().max() > 0.1
    with pytest.raises(errors.UnknownName, match="'judge'"):
        load_digits_classifier("judg")  # pyright: ignore[reportArgumentType]


def shipped(name: str = "digits.safetensors") -> bytes:
    return (WEIGHTS / name).read_bytes()


@pytest.mark.parametrize("keep", [0, 7, 100, 5000, -1])
def test_truncated_file(tmp_path, keep):
    path = tmp_path / "cut.safetensors"
    path.write_bytes(shipped()[:keep])
    with pytest.raises(errors.WeightsFileError, match="truncated") as caught:
        load_digits_network(path)
    assert "cut.safetensors" in str(caught.value)
    assert "glass-flows train digits --out" in str(caught.value)


def test_garbage_and_missing_files(tmp_path):
    path = tmp_path / "pickle.safetensors"
    torch.save({"a": torch.zeros(1)}, path)
    with pytest.raises(errors.WeightsFileError, match="not a safetensors file"):
        load_digits_network(path)
    for missing in (tmp_path / "none.safetensors", tmp_path):
        with pytest.raises(errors.WeightsFileError, match="no such file"):
            load_digits_network(str(missing))


def test_file_of_another_model(tmp_path):
    path = tmp_path / "other.safetensors"
    path.write_bytes(shipped("digits_reward.safetensors"))
    assert load_digits_classifier("reward", path)
    with pytest.raises(errors.WeightsFileError, match="'digits-reward', needed is 'digits-judge'"):
        load_digits_classifier("judge", path)
    save_file(load_digits_network().state_dict(), path)  # right tensors, no metadata
    with pytest.raises(errors.WeightsFileError, match="model=None"):
        load_digits_network(path)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda w: w.pop("time.bias"), "missing: time.bias"),
        (lambda w: w.update(extra=torch.zeros(1)), "not known: extra"),
        (lambda w: w.update({"time.bias": torch.zeros(191)}), r"time.bias is \(191,\)"),
        (lambda w: w.update({"time.bias": torch.zeros(192).half()}), "time.bias is torch.float16"),
        (lambda w: w["label.weight"][3].fill_(torch.nan), "label.weight holds NaN"),
        (lambda w: w["label.weight"][3, 5].fill_(torch.inf), "label.weight holds NaN"),
    ],
)
def test_damaged_tensors(tmp_path, damage, message):
    path = tmp_path / "damaged.safetensors"
    path.write_bytes(shipped())
    tensors = load_file(path)
    damage(tensors)
    save_file(tensors, path, {"model": "digits-network"})
    with pytest.raises(errors.WeightsFileError, match=message):
        load_digits_network(path)


# ----------------------------------------------------------------------------------------- data


def test_without_scikit_learn(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    digits._digits.cache_clear()
    for function in (digits_images, digits_labels, digits_split):
        with pytest.raises(errors.MissingExtra, match=r"glass-flows\[digits\]"):
            function()


def test_images_and_labels():
    pytest.importorskip("sklearn")
    images, labels = digits_images(), digits_labels()
    assert images.shape == (1797, 1, 8, 8)
    assert (images.dtype, labels.dtype) == (torch.float32, torch.int64)
    assert (images.min(), images.max()) == (-1, 1)
    assert torch.equal(images * 8, (images * 8).round())
    assert labels.bincount().tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    images.zero_()  # a caller's changes stay the caller's
    assert digits_images().any()


def test_split_is_fixed_disjoint_and_stratified():
    pytest.importorskip("sklearn")
    reward, judge = digits_split()
    assert torch.equal(torch.cat([reward, judge]).sort().values, torch.arange(1797))
    labels = digits_labels()
    difference = labels[reward].bincount() - labels[judge].bincount()
    assert difference.abs().max() <= 1
    # The shipped classifiers were trained on this very split.
    assert reward[:8].tolist() == [5, 9, 10, 16, 17, 18, 20, 21]
    assert not torch.equal(reward, torch.arange(1, 1797, 2))


# -------------------------------------------------------------------------------------- quality


def test_velocity_at_pure_noise_points_to_the_class_mean(net):
    # At t = 0 the input says nothing about z: E[z | x, label] = x + v is the mean of the class.
    pytest.importorskip("sklearn")
    images, labels = digits_images(), digits_labels()
    x, _, _ = inputs(200)
    for c in range(10):
        guess = (x + net(x, torch.tensor(0.0), torch.full((200,), c))).mean(0)
        assert (guess - images[labels == c].mean(0)).abs().mean() < 0.06


def test_judge_and_reward_know_real_images(judge):
    pytest.importorskip("sklearn")
    images, labels = digits_images(), digits_labels()
    reward_half, judge_half = digits_split()
    card = (WEIGHTS / "MODEL_CARD.md").read_text(encoding="utf-8")
    for role, model, unseen in (
        ("judge", judge, reward_half),
        ("reward", load_digits_classifier("reward"), judge_half),
    ):
        right = (model(images[unseen]).argmax(1) == labels[unseen]).float().mean().item()
        assert right >= 0.95
        row = re.search(rf"\| {role} is right \| ([\d.]+)%", card)
        assert row, role
        assert float(row[1]) == pytest.approx(100 * right, abs=0.3)  # the card tells the truth


@pytest.mark.parametrize("guidance", first([1, 3]))
def test_judge_recognises_conditional_samples(net, judge, guidance):
    label = torch.arange(200) % 10
    x, _, _ = inputs(200, seed=1)
    for i in range(20):
        t = torch.tensor(i / 20)
        null = net(x, t)
        x = x + (null + guidance * (net(x, t, label) - null)) / 20
    assert (judge(x).argmax(1) == label).float().mean() >= 0.9


# ------------------------------------------------------------------------------------- training


def shrink(patch):
    """Small batches, and a model card of few samples."""
    pytest.importorskip("sklearn")
    patch.setattr(training, "CLASSIFIER_BATCH", 16)
    patch.setattr(training, "SAMPLES", 20)
    patch.setattr(training, "_euler", partial(training._euler, steps=4))


@pytest.fixture
def quick(monkeypatch):
    shrink(monkeypatch)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """The weights of a training that nothing interrupts."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        shrink(patch)
        training.train_digits(folder, **TINY)
    return weight_files(folder)


def weight_files(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.glob("*.safetensors")}


class Stop(Exception):
    """The interruption."""


def stop_after(monkeypatch, steps: int) -> list[int]:
    """Let `Training.advance` run `steps` times, then raise; the list holds the count so far."""
    count, advance = [0], loop.Training.advance

    def counted(self):
        if count[0] == steps:
            raise Stop
        count[0] += 1
        advance(self)

    monkeypatch.setattr(loop.Training, "advance", counted)
    return count


@pytest.mark.slow
def test_training_writes_models_and_leaves_the_random_stream_alone(quick, tmp_path, capsys):
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    figures = training.train_digits(tmp_path / "new" / "out", **{**TINY, "progress": True})
    assert capsys.readouterr() == ("", "")  # bars are for terminals
    assert torch.equal(torch.random.get_rng_state(), before)
    out = tmp_path / "new" / "out"
    assert sorted(path.name for path in out.glob("[!.]*")) == [
        "MODEL_CARD.md",
        "digits.safetensors",
        "digits_judge.safetensors",
        "digits_reward.safetensors",
        "training.json",
    ]
    x, t, label = inputs()
    assert load_digits_network(out / "digits.safetensors")(x, t, label).any()
    for role in ("reward", "judge"):
        assert load_digits_classifier(role, out / f"digits_{role}.safetensors")
    card = (out / "MODEL_CARD.md").read_text(encoding="utf-8")
    assert "steps 6, batch 8" in card
    assert f"| judge is right | {figures['judge_accuracy']:.1%} |" in card


@pytest.mark.slow
def test_same_seed_same_bytes_other_seed_other_bytes(quick, whole, tmp_path):
    for name, seed in (("again", 0), ("other", 1)):
        training.train_digits(tmp_path / name, seed=seed, **TINY)
    again, other = (weight_files(tmp_path / name) for name in ("again", "other"))
    assert again == whole
    assert len(whole) == 3
    assert all(whole[name] != other[name] for name in whole)


# Steps: network 1-6, reward 7-10, judge 11-14; a checkpoint after every second one.
@pytest.mark.parametrize(("stop", "left"), first([(9, 6), (1, 14), (5, 10), (6, 8), (13, 2)]))
def test_resumed_is_bit_for_bit_uninterrupted(quick, whole, tmp_path, monkeypatch, stop, left):
    with monkeypatch.context() as patch:
        stop_after(patch, stop)
        with pytest.raises(Stop):
            training.train_digits(tmp_path / "parts", **TINY)
    assert not weight_files(tmp_path / "parts")
    count = stop_after(monkeypatch, 10**9)
    training.train_digits(tmp_path / "parts", **TINY)
    assert count == [left]  # it did go on from the checkpoint
    assert weight_files(tmp_path / "parts") == whole


@pytest.mark.slow
@pytest.mark.parametrize(
    "change",
    [
        *(pytest.param(one, marks=pytest.mark.slow) for one in ({"steps": 8}, {"batch": 9})),
        {"seed": 1},
    ],
)
def test_checkpoint_of_other_settings(quick, tmp_path, monkeypatch, change):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            training.train_digits(tmp_path, **TINY)
    settings = {**TINY, **change}
    with pytest.raises(errors.InvalidArgument, match=r"which differs in settings\."):
        training.train_digits(tmp_path, **settings)
    training.train_digits(tmp_path, overwrite=True, **settings)
    assert len(weight_files(tmp_path)) == 3


def test_checkpoints_are_no_weights_of_a_folder_that_is_begun_with(tmp_path):
    weights = {"w": torch.arange(3.0)}
    loop.save_tensors(tmp_path / "w.safetensors", weights, {})
    before = loop.fingerprint(tmp_path)
    (tmp_path / "checkpoints").mkdir()
    loop.save_tensors(tmp_path / "checkpoints" / "w.safetensors", weights, {})
    assert loop.fingerprint(tmp_path) == before
    loop.save_tensors(tmp_path / "w.safetensors", {"w": -weights["w"]}, {})
    assert loop.fingerprint(tmp_path) != before


@pytest.mark.parametrize("damage", [lambda data: data[:5000], lambda data: b"garbage"])
def test_damaged_checkpoint(quick, tmp_path, monkeypatch, damage):
    with monkeypatch.context() as patch:
        stop_after(patch, 5)
        with pytest.raises(Stop):
            training.train_digits(tmp_path, **TINY)
    path = tmp_path / "checkpoints" / "digits.safetensors"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(errors.WeightsFileError, match="damaged"):
        training.train_digits(tmp_path, **TINY)


@pytest.mark.parametrize(
    "wrong",
    [
        {"steps": 0},
        {"batch": 0},
        {"batch": 2.5},
        {"classifier_steps": 0},
        {"checkpoint_every": 0},
        {"seed": -1},
        {"steps": True},
    ],
)
def test_bad_numbers_are_refused_early(tmp_path, wrong):
    (name,) = wrong
    with pytest.raises(errors.InvalidArgument, match=name):
        training.train_digits(tmp_path / "out", **{**TINY, **wrong})
    assert not (tmp_path / "out").exists()


def test_unwritable_folder_is_refused_early(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(errors.InvalidArgument, match="cannot write"):
        training.train_digits(tmp_path / "file" / "out", **TINY)


def test_a_failed_write_keeps_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "weights"
    path.write_bytes(b"old")

    def fail(source, target):
        raise OSError("disk full")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="disk full"):
        loop.replace(path, b"new")
    assert path.read_bytes() == b"old"


def test_diverged_training_is_named(quick, tmp_path, monkeypatch):
    monkeypatch.setattr(training, "LEARNING_RATE", float("inf"))
    with pytest.raises(errors.NonFinite, match="digits-network is nan"):
        training.train_digits(tmp_path, **TINY)


def test_shift_moves_by_at_most_one_pixel_over_paper():
    images = torch.rand(500, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    moved = training._shift(images, torch.Generator().manual_seed(1))
    padded = torch.nn.functional.pad(images, (1, 1, 1, 1), value=-1.0)
    candidates = [padded[..., i : i + 8, j : j + 8] for i in range(3) for j in range(3)]
    same = torch.stack([(moved == c).all(dim=(1, 2, 3)) for c in candidates])
    assert torch.equal(same.sum(0), torch.ones(500, dtype=torch.long))
    counts = same.sum(1)
    assert 230 < counts[4] < 320  # 1/2 + 1/18 of 500 stay where they are: 278
    assert counts.min() > 10
