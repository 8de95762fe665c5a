"""Published rewards, laid out as their authors did and run in plain torch, against converted ones.

The references are written from the papers' formulas and the original tensors' names; they share
nothing with the library.
"""

from __future__ import annotations

import math
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.nn import functional as F

from glass_flows.errors import InvalidArgument, MissingExtra, UnknownName, WeightsFileError
from glass_flows.rewards import evaluate
from glass_flows.rewards.pretrained import CONVERTIBLE, convert_reward, pretrained_reward
from glass_flows.rewards.pretrained.hub import BERT, CLIP_H, CLIP_L
from glass_flows.worlds.shapes.clip import build_clip, build_clip_processor

PROMPTS = ["a red circle", "two blue squares", "a triangle on white"]
WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "red", "blue", "circle", "two"]
WORDS += ["squares", "triangle", "on", "white"]
CLIP_MEAN = torch.tensor([0.48145466, 0.4578275, 0.40821073])[:, None, None]
CLIP_STD = torch.tensor([0.26862954, 0.26130258, 0.27577711])[:, None, None]


class Tensors(dict):
    """Random tensors under the names of a checkpoint."""

    def __init__(self, seed):
        super().__init__()
        self.generator = torch.Generator().manual_seed(seed)

    def draw(self, name, *shape, scale=1.0):
        self[name] = scale * torch.randn(shape, generator=self.generator)

    def linear(self, name, wide, out):
        self.draw(f"{name}.weight", out, wide, scale=wide**-0.5)
        self.draw(f"{name}.bias", out, scale=0.3)

    def norm(self, name, width):
        self.draw(f"{name}.weight", width, scale=0.2)
        self[f"{name}.weight"] += 1
        self.draw(f"{name}.bias", width, scale=0.2)

    def head(self, prefix, width):
        sizes = (width, 24, 20, 16, 8, 1)
        for i, wide, out in zip((0, 2, 4, 6, 7), sizes, sizes[1:]):
            self.linear(f"{prefix}{i}", wide, out)


def linear(s, name, x):
    return x @ s[f"{name}.weight"].T + s[f"{name}.bias"]


def norm(s, name, x, eps):
    x = x - x.mean(-1, keepdim=True)
    x = x / (x.square().mean(-1, keepdim=True) + eps).sqrt()
    return x * s[f"{name}.weight"] + s[f"{name}.bias"]


def attend(q, k, v, heads, bias=0.0):
    q, k, v = (x.unflatten(-1, (heads, -1)).transpose(-3, -2) for x in (q, k, v))
    weights = (q @ k.mT / math.sqrt(q.shape[-1]) + bias).softmax(-1)
    return (weights @ v).transpose(-3, -2).flatten(-2)


def head(s, prefix, x):
    for i in (0, 2, 4, 6, 7):
        x = linear(s, f"{prefix}{i}", x)
    return x.squeeze(-1)


def patches(x, weight):
    return F.conv2d(x, weight, stride=weight.shape[-1]).flatten(2).transpose(1, 2)


@pytest.fixture
def images():
    return torch.rand(3, 3, 32, 32, generator=torch.Generator().manual_seed(4))


# ImageReward: BLIP's image encoder (timm's names), a BERT with cross attention, and a linear head.

WIDE, READ = 128, 192  # two and three heads


def imagereward():
    s = Tensors(1)
    v = "blip.visual_encoder."
    s.draw(v + "cls_token", 1, 1, WIDE)
    s.draw(v + "pos_embed", 1, 17, WIDE)
    s.draw(v + "patch_embed.proj.weight", WIDE, 3, 8, 8, scale=0.07)
    s.draw(v + "patch_embed.proj.bias", WIDE)
    for i in range(2):
        b = f"{v}blocks.{i}."
        s.norm(b + "norm1", WIDE)
        s.linear(b + "attn.qkv", WIDE, 3 * WIDE)
        s.linear(b + "attn.proj", WIDE, WIDE)
        s.norm(b + "norm2", WIDE)
        s.linear(b + "mlp.fc1", WIDE, 160)
        s.linear(b + "mlp.fc2", 160, WIDE)
    s.norm(v + "norm", WIDE)
    t = "blip.text_encoder."
    s[t + "embeddings.position_ids"] = torch.arange(40)[None]
    s.draw(t + "embeddings.word_embeddings.weight", len(WORDS) + 2, READ)
    s.draw(t + "embeddings.position_embeddings.weight", 40, READ)
    s.norm(t + "embeddings.LayerNorm", READ)
    for i in range(2):
        b = f"{t}encoder.layer.{i}."
        for attention, wide in (("attention", READ), ("crossattention", WIDE)):
            s.linear(f"{b}{attention}.self.query", READ, READ)
            s.linear(f"{b}{attention}.self.key", wide, READ)
            s.linear(f"{b}{attention}.self.value", wide, READ)
            s.linear(f"{b}{attention}.output.dense", READ, READ)
            s.norm(f"{b}{attention}.output.LayerNorm", READ)
        s.linear(b + "intermediate.dense", READ, 160)
        s.linear(b + "output.dense", 160, READ)
        s.norm(b + "output.LayerNorm", READ)
    s.linear("blip.vision_proj", WIDE, 32)
    s.linear("blip.text_proj", READ, 32)
    s.head("mlp.layers.", READ)
    return dict(s)


def imagereward_score(s, images, prompts):
    v = "blip.visual_encoder."
    seen = patches((images - CLIP_MEAN) / CLIP_STD, s[v + "patch_embed.proj.weight"])
    seen = seen + s[v + "patch_embed.proj.bias"]
    first = s[v + "cls_token"].expand(len(images), 1, -1)
    seen = torch.cat([first, seen], 1) + s[v + "pos_embed"]
    for i in range(2):
        b = f"{v}blocks.{i}."
        q, k, w = linear(s, b + "attn.qkv", norm(s, b + "norm1", seen, 1e-6)).chunk(3, -1)
        seen = seen + linear(s, b + "attn.proj", attend(q, k, w, WIDE // 64))
        hidden = F.gelu(linear(s, b + "mlp.fc1", norm(s, b + "norm2", seen, 1e-6)))
        seen = seen + linear(s, b + "mlp.fc2", hidden)
    seen = norm(s, v + "norm", seen, 1e-6)
    ids = [[2, *(WORDS.index(w) for w in p.split()), 3] for p in prompts]
    ids = torch.tensor([row + [0] * (35 - len(row)) for row in ids])
    mask = torch.where(ids == 0, -10000.0, 0.0)[:, None, None]
    t = "blip.text_encoder."
    x = s[t + "embeddings.word_embeddings.weight"][ids]
    x = x + s[t + "embeddings.position_embeddings.weight"][:35]
    x = norm(s, t + "embeddings.LayerNorm", x, 1e-12)
    for i in range(2):
        b = f"{t}encoder.layer.{i}."
        for attention, source, bias in (("attention", None, mask), ("crossattention", seen, 0.0)):
            a = b + attention
            key = x if source is None else source
            parts = (
                linear(s, f"{a}.self.{n}", y)
                for n, y in (("query", x), ("key", key), ("value", key))
            )
            mixed = linear(s, f"{a}.output.dense", attend(*parts, READ // 64, bias))
            x = norm(s, f"{a}.output.LayerNorm", x + mixed, 1e-12)
        hidden = F.gelu(linear(s, b + "intermediate.dense", x))
        x = norm(s, b + "output.LayerNorm", x + linear(s, b + "output.dense", hidden), 1e-12)
    return (head(s, "mlp.layers.", x[:, 0]) - 0.16717362830052426) / 1.0333394966054072


# HPS v2: open_clip's two transformers.


def clip_config():
    config = build_clip().config
    config.text_config.hidden_act = config.vision_config.hidden_act = "gelu"
    return config


def hps():
    s = Tensors(2)
    config = clip_config()
    vision, text, shared = config.vision_config, config.text_config, config.projection_dim
    width, patch = vision.hidden_size, vision.patch_size
    s.draw("visual.class_embedding", width)
    s.draw("visual.positional_embedding", (vision.image_size // patch) ** 2 + 1, width)
    s.draw("visual.conv1.weight", width, 3, patch, patch, scale=0.07)
    s.norm("visual.ln_pre", width)
    s.norm("visual.ln_post", width)
    s.draw("visual.proj", width, shared, scale=0.1)
    s.draw("token_embedding.weight", text.vocab_size, text.hidden_size)
    s.draw("positional_embedding", text.max_position_embeddings, text.hidden_size)
    s.norm("ln_final", text.hidden_size)
    s.draw("text_projection", text.hidden_size, shared, scale=0.1)
    for prefix, part in (("visual.", vision), ("", text)):
        for i in range(part.num_hidden_layers):
            b = f"{prefix}transformer.resblocks.{i}."
            s.norm(b + "ln_1", part.hidden_size)
            s.norm(b + "ln_2", part.hidden_size)
            s.draw(b + "attn.in_proj_weight", 3 * part.hidden_size, part.hidden_size, scale=0.1)
            s.draw(b + "attn.in_proj_bias", 3 * part.hidden_size, scale=0.3)
            s.linear(b + "attn.out_proj", part.hidden_size, part.hidden_size)
            s.linear(b + "mlp.c_fc", part.hidden_size, part.intermediate_size)
            s.linear(b + "mlp.c_proj", part.intermediate_size, part.hidden_size)
    s["logit_scale"] = torch.tensor(4.6)
    return dict(s)


def open_clip_layers(s, prefix, x, part, bias=0.0):
    for i in range(part.num_hidden_layers):
        b = f"{prefix}transformer.resblocks.{i}."
        y = norm(s, b + "ln_1", x, 1e-5)
        y = y @ s[b + "attn.in_proj_weight"].T + s[b + "attn.in_proj_bias"]
        y = attend(*y.chunk(3, -1), part.num_attention_heads, bias)
        x = x + linear(s, b + "attn.out_proj", y)
        y = F.gelu(linear(s, b + "mlp.c_fc", norm(s, b + "ln_2", x, 1e-5)))
        x = x + linear(s, b + "mlp.c_proj", y)
    return x


def hps_score(s, images, prompts):
    config, words = clip_config(), build_clip_processor().tokenizer
    x = patches((images - 0.5) / 0.5, s["visual.conv1.weight"])
    x = torch.cat([s["visual.class_embedding"].expand(len(x), 1, -1), x], 1)
    x = norm(s, "visual.ln_pre", x + s["visual.positional_embedding"], 1e-5)
    x = open_clip_layers(s, "visual.", x, config.vision_config)
    seen = norm(s, "visual.ln_post", x[:, 0], 1e-5) @ s["visual.proj"]
    scores = []
    for one, prompt in zip(seen, prompts):
        ids = torch.tensor(words(prompt).input_ids)
        later = torch.full((len(ids), len(ids)), -math.inf).triu(1)
        y = s["token_embedding.weight"][ids] + s["positional_embedding"][: len(ids)]
        y = open_clip_layers(s, "", y, config.text_config, later)
        read = norm(s, "ln_final", y, 1e-5)[ids.argmax()] @ s["text_projection"]
        scores.append((one * read).sum() / one.norm() / read.norm())
    return torch.stack(scores)


# The aesthetic predictor: a head only.


def aesthetic():
    s = Tensors(3)
    s.head("layers.", build_clip().config.projection_dim)
    return dict(s)


def build_base_clip():
    torch.manual_seed(5)
    return build_clip().eval()


@torch.no_grad()
def aesthetic_score(s, images, prompts):
    seen = build_base_clip().get_image_features(pixel_values=(images - 0.5) / 0.5).pooler_output
    return head(s, "layers.", seen / seen.norm(dim=-1, keepdim=True))


ORIGINAL = {
    "hps": (hps, hps_score),
    "imagereward": (imagereward, imagereward_score),
    "aesthetic": (aesthetic, aesthetic_score),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory):
    import transformers

    home = tmp_path_factory.mktemp("bases")
    clip_config().save_pretrained(home / "hps")
    build_base_clip().save_pretrained(home / "aesthetic")
    for name in ("hps", "aesthetic"):
        build_clip_processor().save_pretrained(home / name)
    words = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS)})
    words.save_pretrained(home / "imagereward")
    return home


def write(state, path, wrapped=False):
    torch.save({"state_dict": state, "epoch": 3} if wrapped else state, path)
    return path


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_a_converted_reward_scores_as_the_original(name, bases, tmp_path, images):
    build, score = ORIGINAL[name]
    state = build()
    file = write(state, tmp_path / "published.pt", wrapped=name == "hps")
    folder = convert_reward(name, file, tmp_path / "out", base=bases / name)
    reward = pretrained_reward(name, folder, device="cpu", max_batch=2)
    found = evaluate(reward, images, "here", PROMPTS)
    wanted = score(state, images, PROMPTS).double()
    assert wanted.std() > 1e-2
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


@pytest.mark.slow
def test_safetensors_and_the_names_of_parallel_training_are_read(bases, tmp_path):
    state = aesthetic()
    save_file({f"module.{k}": v for k, v in state.items()}, tmp_path / "head.safetensors")
    base = bases / "aesthetic"
    one = convert_reward("aesthetic", tmp_path / "head.safetensors", tmp_path / "a", base=base)
    two = convert_reward(
        "aesthetic", write(state, tmp_path / "b.pth"), tmp_path / "b", base=str(base)
    )
    for file in ("head.safetensors", "model.safetensors"):
        found, wanted = load_file(one / file), load_file(two / file)
        assert found.keys() == wanted.keys()
        assert all(torch.equal(found[k], wanted[k]) for k in wanted)


FAULTS = {
    "hps": ("visual.transformer.resblocks.1.mlp.c_fc.bias", r"vision_model.*layers\.1\.mlp\.fc1"),
    "imagereward": ("blip.text_encoder.encoder.layer.1.output.dense.bias", r"layer\.1\.output"),
    "aesthetic": ("layers.4.bias", r"4\.bias"),
}


@pytest.mark.parametrize("name", CONVERTIBLE)
def test_wrong_tensors_are_named_and_nothing_is_written(name, bases, tmp_path):
    key, shown = FAULTS[name]
    state = ORIGINAL[name][0]()

    def refused(changed, match):
        with pytest.raises(WeightsFileError, match=match) as caught:
            convert_reward(
                name, write(changed, tmp_path / "x.pt"), tmp_path / "out", base=bases / name
            )
        assert "x.pt" in str(caught.value)
        assert not (tmp_path / "out").exists()

    refused({k: v for k, v in state.items() if k != key}, f"missing.*{shown}")
    refused({**state, "score_predictor.weight": state[key]}, r"not known.*score_predictor\.weight")
    refused({**state, key: torch.full_like(state[key], math.nan)}, "NaN")
    refused({**state, key: state[key][:1].repeat(3)}, "expected|does not take")
    refused({}, "missing|is not an ImageReward")
    refused([1, 2], "not a state dict")


def test_only_tensors_are_read(tmp_path):
    torch.save({"layers.0.weight": pytest.fixture}, tmp_path / "code.pt")
    (tmp_path / "text.safetensors").write_text("no tensors")
    for file, match in (
        ("code.pt", "more than tensors"),
        ("text.safetensors", "damaged"),
        ("none.pt", r"no such file.*ImageReward\.pt"),
    ):
        with pytest.raises(WeightsFileError, match=match):
            convert_reward("imagereward", tmp_path / file, tmp_path / "out")


def test_other_heads_are_refused(bases, tmp_path):
    with_relu = {k.replace("layers.2.", "layers.3."): v for k, v in aesthetic().items()}
    state = aesthetic()
    state["layers.7.weight"], state["layers.7.bias"] = torch.ones(2, 8), torch.ones(2)
    for changed, match in ((with_relu, r"2\.bias"), (state, "gives 2 numbers")):
        with pytest.raises(WeightsFileError, match=match):
            convert_reward("aesthetic", write(changed, tmp_path / "x.pth"), tmp_path / "out")
    narrow = Tensors(0)
    narrow.head("layers.", 7)
    file = write(dict(narrow), tmp_path / "narrow.pth")
    with pytest.raises(InvalidArgument, match="features of 7 numbers"):
        convert_reward("aesthetic", file, tmp_path / "out", base=bases / "aesthetic")


def test_a_base_that_does_not_fit_is_named(bases, tmp_path):
    import transformers

    few = tmp_path / "few"
    words = transformers.BertTokenizer(vocab={word: i for i, word in enumerate(WORDS[:-1])})
    words.save_pretrained(few)
    file = write(imagereward(), tmp_path / "x.pt")
    with pytest.raises(InvalidArgument, match=r"has 15 words.*have 16.*give the base"):
        convert_reward("imagereward", file, tmp_path / "out", base=few)
    file = write(hps(), tmp_path / "y.pt")
    with pytest.raises(InvalidArgument, match=r"cannot load AutoConfig.*must hold"):
        convert_reward("hps", file, tmp_path / "out", base=tmp_path)
    part = tmp_path / "part"
    clip_config().vision_config.save_pretrained(part)
    build_clip_processor().save_pretrained(part)
    with pytest.raises(InvalidArgument, match="is a clip_vision_model: give"):
        convert_reward("hps", file, tmp_path / "out", base=part)


def test_names_and_the_missing_extra(tmp_path, monkeypatch):
    with pytest.raises(UnknownName, match="imagereward"):
        convert_reward("clip", tmp_path / "x.pt", tmp_path / "out")
    for base in (CLIP_L, CLIP_H, BERT):
        assert base.revision is not None and len(base.revision) == 40
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"glass-flows\[rewards\]"):
        convert_reward("hps", tmp_path / "x.pt", tmp_path / "out")
