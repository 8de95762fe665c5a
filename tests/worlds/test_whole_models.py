"""Models are whole or refused: every file of the bundled ones damaged in every way."""

from __future__ import annotations

import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file

pytest.importorskip("diffusers")

from glass_flows.errors import GlassError, InvalidArgument, WeightsFileError
from glass_flows.jobs.job import Loading
from glass_flows.jobs.models import SiT
from glass_flows.jobs.pipelines import load_pipeline as load_any
from glass_flows.rewards.pretrained import pretrained_reward
from glass_flows.whole import NotWhole, check_files
from glass_flows.worlds.digits import FILES, NETWORK, load_digits_network
from glass_flows.worlds.shapes.clip import BUNDLED as CLIP
from glass_flows.worlds.shapes.clip import load_clip
from glass_flows.worlds.shapes.pipeline import BUNDLED, load_pipeline


def gone(file):
    file.unlink()


def empty(file):
    file.write_bytes(b"")


def cut(file):
    file.write_bytes(file.read_bytes()[: file.stat().st_size // 2])


def foreign(file):
    file.write_bytes(b"\xff\xfe no model")


def changed(file, change):
    tensors = load_file(file)
    name = sorted(name for name in tensors if name.endswith("weight"))[-1]
    change(tensors, name)
    file.unlink()
    save_file(tensors, file, {"format": "pt"})


def without(file):
    changed(file, lambda tensors, name: tensors.pop(name))


def of_integers(file):
    changed(file, lambda tensors, name: tensors.update({name: tensors[name].to(torch.int32)}))


def of_another_shape(file):
    changed(file, lambda tensors, name: tensors.update({name: torch.zeros(3, 5)}))


FILES_OF = {
    home: sorted(str(file.relative_to(home)) for file in home.rglob("*.*") if file.suffix != ".md")
    for home in (BUNDLED, CLIP)
}
RARER = (empty, foreign, of_another_shape, of_integers)
ONCE = [("text_encoder/model.safetensors", of_another_shape)]
DAMAGES = [
    pytest.param(
        home,
        name,
        damage,
        id=f"{home.name}/{name}-{damage.__name__}",
        marks=[pytest.mark.slow] * (damage in RARER and (name, damage) not in ONCE),
    )
    for home, names in FILES_OF.items()
    for name in names
    for damage in (gone, empty, cut, foreign, without, of_integers, of_another_shape)
    if name.endswith(".safetensors") or damage in (gone, empty, cut, foreign)
]


@pytest.fixture
def copy(tmp_path):
    """A copy of a model, file by file the same ones until they are written."""

    def make(home, name, damage):
        shutil.copytree(home, tmp_path / "model", copy_function=os.link)
        file = tmp_path / "model" / name
        content = file.read_bytes()
        file.unlink()
        file.write_bytes(content)
        damage(file)
        return tmp_path / "model"

    return make


def as_reward(folder):
    return pretrained_reward("clip", folder)


def test_undamaged_they_load(copy):
    assert load_pipeline(copy(BUNDLED, "model_index.json", lambda file: None)) is not None


@pytest.mark.parametrize(("home", "name", "damage"), DAMAGES)
def test_every_damaged_file_of_the_bundled_models_is_named(home, name, damage, copy):
    folder = copy(home, name, damage)
    *inside, file = name.split("/")
    where = "/".join([*inside, ""]) if inside else ""
    named = re.escape(where) + ".*" + re.escape(file)
    if home == BUNDLED:
        loaders = [load_pipeline]
    else:
        tokens = file.startswith(("tokenizer", "processor"))
        loaders = [as_reward] if tokens and damage is gone else [as_reward, load_clip]
    for load in loaders:
        with pytest.raises(GlassError, match=f"(?s){named}"):
            load(folder)


@pytest.mark.parametrize("damage", [gone, without, of_integers])
def test_so_is_one_of_any_pipeline(copy, damage):
    folder = copy(BUNDLED, "text_encoder/model.safetensors", damage)
    with pytest.raises(InvalidArgument, match=r"(?s)cannot load.*text_encoder.*model\.safetensors"):
        load_any(str(folder), Loading(device="cpu"))


def test_a_model_of_the_hub_is_looked_at_too_and_keeps_its_name(copy, monkeypatch):
    import diffusers

    asked = []

    def download(name, **options):
        asked.append((name, options["revision"]))
        return str(BUNDLED)

    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", download)
    loading = Loading(device="cpu", revision="v1")
    pipe = load_any("some/flux-turbo", loading)
    assert (asked, pipe.name_or_path) == ([("some/flux-turbo", "v1")], "some/flux-turbo")
    damaged = copy(BUNDLED, "vae/config.json", empty)
    monkeypatch.setattr(diffusers.DiffusionPipeline, "download", lambda *a, **k: damaged)
    with pytest.raises(InvalidArgument, match=r"some/flux-turbo.*vae/config\.json is damaged"):
        load_any("some/flux-turbo", loading)


def test_so_is_the_autoencoder_of_a_sit(copy, tmp_path):
    folder = copy(BUNDLED, "vae/diffusion_pytorch_model.safetensors", without)
    with pytest.raises(InvalidArgument, match=r"vae/diffusion_pytorch_model\.safetensors lacks"):
        _ = SiT("sit", str(folder), Loading(device="cpu")).vae


@pytest.mark.parametrize("damage", [gone, empty, cut, foreign, without, of_integers])
def test_so_is_every_file_of_the_digits(damage, tmp_path):
    from glass_flows.worlds import digits

    file = tmp_path / FILES[NETWORK]
    shutil.copy(os.path.join(os.path.dirname(digits.__file__), "weights", file.name), file)
    damage(file)
    with pytest.raises(WeightsFileError, match=file.name):
        load_digits_network(file)


def test_shards_that_an_index_names_are_missed(tmp_path):
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors.index.json").write_text(
        '{"weight_map": {"a.weight": "model-00001-of-00002.safetensors"}}'
    )
    with pytest.raises(NotWhole, match=r"model-00001-of-00002\.safetensors is missing"):
        check_files(tmp_path)


def test_quantised_weights_may_be_integers(tmp_path):
    save_file({"a.weight": torch.zeros(2, dtype=torch.uint8)}, tmp_path / "model.safetensors")
    with pytest.raises(NotWhole, match=r"a\.weight as U8"):
        check_files(tmp_path)
    (tmp_path / "config.json").write_text('{"quantization_config": {"load_in_8bit": true}}')
    check_files(tmp_path)
