"""Pre-trained rewards: preprocessing, scores, gradients, batches, loading and its errors."""

from __future__ import annotations

import copy
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn
from torch.nn import functional as F

from cases import fast, first
from glass_flows.errors import InvalidArgument, MissingExtra, ShapeError, UnknownName
from glass_flows.rewards import evaluate, evaluate_with_gradient
from glass_flows.rewards.pretrained import (
    PRETRAINED,
    AestheticReward,
    BlipReward,
    ImageTextReward,
    Preprocessing,
    pretrained_reward,
)
from glass_flows.worlds.shapes.clip import build_clip, build_clip_processor

PROMPTS = ["a red circle", "two blue squares", "a red circle", "a triangle on white"]


@pytest.fixture(scope="module")
def parts():
    torch.manual_seed(3)
    return build_clip(), build_clip_processor()


def build_blip():
    """A small ImageReward: image and text encoder, head and tokenizer."""
    import transformers

    torch.manual_seed(6)
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *" ".join(PROMPTS).split()]
    vocabulary = {word: i for i, word in enumerate(dict.fromkeys(words))}
    tokenizer = transformers.BertTokenizer(vocab=vocabulary)
    sizes = {"num_hidden_layers": 2, "num_attention_heads": 2, "initializer_range": 0.3}
    vision = transformers.BlipVisionConfig(
        hidden_size=32, intermediate_size=48, image_size=32, patch_size=8, **sizes
    )
    text = transformers.BlipTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=24,
        encoder_hidden_size=32,
        intermediate_size=48,
        max_position_embeddings=40,
        **sizes,
    )
    return (
        transformers.BlipVisionModel(vision),
        transformers.BlipTextModel(text, add_pooling_layer=False),
        nn.Linear(24, 1),
        tokenizer,
    )


@pytest.fixture(scope="module")
def blip():
    return build_blip()


def clip_vision(network):
    """The image half of a ``CLIPModel``."""
    import transformers

    config = copy.deepcopy(network.config.vision_config)
    config.projection_dim = network.config.projection_dim
    vision = transformers.CLIPVisionModelWithProjection(config)
    vision.load_state_dict(network.state_dict(), strict=False)
    return vision


@pytest.fixture(scope="module")
def every(parts, blip):
    """Makes a reward of each kind, on weights of its own."""
    network, processor = parts

    def make(name, **options):
        torch.manual_seed(7)
        if name == "imagereward":
            *networks, tokenizer = blip
            return BlipReward(*map(copy.deepcopy, networks), tokenizer, **options)
        if name == "aesthetic":
            head = nn.Linear(network.config.projection_dim, 1)
            return AestheticReward(clip_vision(network), head, processor.image_processor, **options)
        return ImageTextReward(copy.deepcopy(network), processor, **options)

    return make


KINDS = ["clip", "imagereward", "aesthetic"]


@pytest.fixture(scope="module")
def folder(parts, tmp_path_factory):
    home = tmp_path_factory.mktemp("clip")
    for part in parts:
        part.save_pretrained(home)
    return home


@pytest.fixture
def images():
    generator = torch.Generator().manual_seed(1)
    coarse = torch.rand(4, 3, 6, 6, generator=generator)
    return F.interpolate(coarse, (40, 48), mode="bicubic").clamp(0, 1)


@pytest.mark.parametrize("height, width", [(32, 32), (40, 48), (97, 61), (20, 31), (64, 200)])
@pytest.mark.parametrize("edge", [True, False])
def test_preprocessing_is_that_of_the_processor(height, width, edge):
    import transformers

    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32} if edge else {"height": 32, "width": 32},
        crop_size={"height": 28, "width": 30},
    )
    rng = np.random.default_rng(height)
    smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((width, height))
    wanted = processor(smooth, return_tensors="pt").pixel_values
    x = torch.from_numpy(np.asarray(smooth) / 255).permute(2, 0, 1)[None]
    grey_level = 1 / 255 / min(processor.image_std)
    found = Preprocessing(processor)(x)
    # Pillow rounds after each of its two passes.
    assert found.shape == wanted.shape
    assert (found - wanted).abs().max() < 1.5 * grey_level


@pytest.mark.parametrize("height, width", [(32, 32), (64, 64), (60, 33), (33, 61), (20, 31)])
@pytest.mark.parametrize("fit", ["round", "pad"])
def test_images_are_fitted_as_by_torchvision_and_hps(fit, height, width):
    """Both written for Pillow: a centre crop rounded to even, and black beside the image."""
    import transformers

    rng = np.random.default_rng(width)
    smooth = Image.fromarray(rng.integers(0, 256, (7, 9, 3), np.uint8)).resize((width, height))
    if fit == "round":
        scale = 32 / min(height, width)
        resized = smooth.resize((int(width * scale), int(height * scale)), Image.BICUBIC)
        left, top = (round((side - 32) / 2) for side in resized.size)
        wanted = resized.crop((left, top, left + 32, top + 32))
    else:
        scale = 32 / max(height, width)
        resized = smooth.resize((round(width * scale), round(height * scale)), Image.BICUBIC)
        wanted = Image.new("RGB", (32, 32))
        wanted.paste(resized, tuple((32 - side) // 2 for side in resized.size))
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": 32},
        crop_size={"height": 32, "width": 32},
        image_mean=[0.0] * 3,
        image_std=[1.0] * 3,
    )
    x = torch.from_numpy(np.asarray(smooth) / 255).permute(2, 0, 1)[None]
    found = Preprocessing(processor, fit)(x)[0].permute(1, 2, 0)
    assert np.abs(found.numpy() * 255 - np.asarray(wanted)).max() < 1.5


def test_the_score_is_the_models_own(parts, images):
    network, processor = parts
    reward = ImageTextReward(network, processor, 100.0)
    pictures = [
        Image.fromarray(i) for i in (images * 255).round().byte().permute(0, 2, 3, 1).numpy()
    ]
    batch = processor(text=PROMPTS, images=pictures, return_tensors="pt", padding=True)
    with torch.no_grad():
        logits = network(**batch).logits_per_image.diagonal() / network.logit_scale.exp()
    exact = torch.from_numpy(np.stack([np.asarray(p) for p in pictures])).permute(0, 3, 1, 2) / 255
    found = evaluate(reward, exact, "here", PROMPTS)
    torch.testing.assert_close(found.float(), 100 * logits, atol=0.2, rtol=0)
    assert found.std() > 1
    own = evaluate(ImageTextReward(network, processor), exact, "here", PROMPTS)
    torch.testing.assert_close(own / network.logit_scale.exp().item(), found / 100)


@pytest.mark.parametrize("kind", first(KINDS))
def test_the_gradient_reaches_the_pixels(kind, every, images):
    images = (0.2 + 0.6 * images).double()  # the clamp is not reached
    reward = every(kind, max_batch=3)
    reward.network.double()
    value, gradient = evaluate_with_gradient(reward, images, "here", PROMPTS)
    generator = torch.Generator().manual_seed(2)
    direction = torch.randn(images.shape, dtype=torch.float64, generator=generator)
    step = 1e-4
    ahead, behind = (
        evaluate(reward, images + sign * step * direction, "here", PROMPTS) for sign in (1, -1)
    )
    wanted = (ahead - behind) / (2 * step)
    found = (gradient * direction).flatten(1).sum(1)
    assert wanted.abs().min() > 1e-5
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-8)
    torch.testing.assert_close(value, (ahead + behind) / 2, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("kind", first(KINDS))
def test_batches_and_repeated_prompts_do_not_change_a_score(kind, every, images):
    whole = evaluate(every(kind), images, "here", PROMPTS)
    assert whole.std() > 1e-3
    parted = every(kind, max_batch=1)
    for i in (2, 0, 3, 1):
        one = evaluate(parted, images[i : i + 1], "here", [PROMPTS[i]])
        torch.testing.assert_close(one, whole[i : i + 1], rtol=1e-5, atol=1e-6)
    if kind == "clip":
        assert len(parted._texts) == 3


def test_an_aesthetic_score_asks_for_no_prompts(parts, every, images):
    reward = every("aesthetic")
    found = evaluate(reward, images, "here")
    seen = parts[0].get_image_features(pixel_values=reward.preprocess(images)).pooler_output
    head = reward.network["head"]
    wanted = (seen / seen.norm(dim=-1, keepdim=True)) @ head.weight[0] + head.bias
    torch.testing.assert_close(found, wanted.detach().double(), rtol=1e-5, atol=1e-6)


def test_imagereward_reads_35_tokens_of_a_prompt_at_the_image(every, images):
    reward = every("imagereward")
    images, whole = images[:1], "a red circle " * 40
    cut = " ".join(whole.split()[:33])  # and the two marks
    scores = [evaluate(reward, images, "here", [prompt]) for prompt in (whole, cut, cut[:-6])]
    assert scores[0] == scores[1] != scores[2]
    other = evaluate(reward, 1 - images, "here", [cut])
    assert other != scores[1]


def test_a_long_prompt_is_cut_to_the_models_length(parts, images):
    evaluate(ImageTextReward(*parts), images[:1], "here", ["a red circle and " * 20])


TYPED = {  # as people type and paste it, and as CLIP's authors read it
    "a cat on a mat": "a cat on a mat",
    "a dog\u2019s house": "a dog's house",
    "the word \u201chello\u201d": 'the word "hello"',
    "black &amp;amp; white": "black & white",
    "a caf\u00c3\u00a9": "a caf\u00e9",
    "\ufb01re": "fire",
    "\uff26\uff55\uff4c\uff4c": "Full",
    "two lines\u2028of it ": "two lines\nof it",
    "na\u00efve": "na\u00efve",
}


@pytest.mark.parametrize(
    "name", fast(["clip", "imagereward"], ["clip", "hps", "pickscore", "imagereward"])
)
def test_prompts_are_cleaned_where_the_authors_clean_them(name, every, folder, images):
    own = name == "imagereward"
    reward = every(name) if own else pretrained_reward(name, folder, device="cpu")
    heard, tokenizer = [], reward.tokenizer

    def listen(texts, **options):
        heard.extend(dict.fromkeys(texts))
        return tokenizer(texts, **options)

    reward.tokenizer = listen
    for prompt in TYPED:
        reward(images[:1], [prompt])
    assert heard == list(TYPED.values() if name in ("clip", "hps") else TYPED)


def test_cleaning_needs_its_package_and_says_so(parts, monkeypatch):
    monkeypatch.setitem(sys.modules, "ftfy", None)
    with pytest.raises(MissingExtra, match="ftfy"):
        ImageTextReward(*parts)
    ImageTextReward(*parts, clean=False)


def test_offloaded_weights_are_on_the_device_only_while_asked(parts, images, monkeypatch):
    network, processor = parts
    reward = ImageTextReward(network, processor, device="cpu:0", offload=True)
    moves = []
    monkeypatch.setattr(network, "to", lambda place: moves.append(str(place)))
    evaluate(reward, images, "here", PROMPTS)
    evaluate_with_gradient(reward, images, "here", PROMPTS)
    assert moves == ["cpu:0", "cpu"] + ["cpu:0"] * 2 + ["cpu"]
    reward(images.requires_grad_(), PROMPTS).sum().backward()
    assert moves[-1] == "cpu:0"


@pytest.mark.parametrize("name", first(["clip", "pickscore", "hps"]))
def test_loading_a_clip_from_a_folder(name, folder, parts, images):
    reward = pretrained_reward(name, folder, device="cpu")
    source = PRETRAINED[name]
    wanted = ImageTextReward(*parts, source.scale, fit=source.fit)
    wanted = evaluate(wanted, images, "here", PROMPTS)
    torch.testing.assert_close(evaluate(reward, images, "here", PROMPTS), wanted)


def save(name, reward, home):
    """A folder of the reward, as `convert_reward` lays it out."""
    network = reward.network
    where = home / "vision" if name == "imagereward" else home
    network["vision"].save_pretrained(where)
    if name == "imagereward":
        network["text"].save_pretrained(home / "text")
        reward.tokenizer.save_pretrained(home)
    save_file(network["head"].state_dict(), home / "head.safetensors")
    return home


@pytest.mark.slow
@pytest.mark.parametrize("name", ["imagereward", "aesthetic"])
def test_loading_a_reward_with_a_head(name, every, parts, images, tmp_path):
    reward = every(name)
    save(name, reward, tmp_path)
    parts[1].image_processor.save_pretrained(tmp_path)
    wanted = evaluate(reward, images, "here", PROMPTS)
    found = pretrained_reward(name, tmp_path, device="cpu", offload=True)
    torch.testing.assert_close(evaluate(found, images, "here", PROMPTS), wanted)
    half = pretrained_reward(name, tmp_path, device="cpu", dtype=torch.bfloat16)
    assert half.network["vision"].dtype == torch.bfloat16
    found = evaluate(half, images, "here", PROMPTS)
    torch.testing.assert_close(found, wanted, rtol=0.2, atol=0.2)


def test_weights_that_a_folder_lacks_are_named(every, parts, tmp_path):
    save("aesthetic", every("aesthetic"), tmp_path)
    parts[1].image_processor.save_pretrained(tmp_path)
    vision = clip_vision(parts[0]).state_dict()
    del vision["visual_projection.weight"]
    save_file(vision, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(InvalidArgument, match=r"lacks weights.*visual_projection\.weight"):
        pretrained_reward("aesthetic", tmp_path)


def test_errors_name_the_next_step(parts, folder, tmp_path, images, monkeypatch):
    vision_only = tmp_path / "vision"
    clip_vision(parts[0]).save_pretrained(vision_only)
    with pytest.raises(UnknownName, match="pickscore"):
        pretrained_reward("pikscore")
    with pytest.raises(InvalidArgument, match="give its folder"):
        pretrained_reward("clip", "nobody/no-such-model")
    with pytest.raises(InvalidArgument, match="must hold weights in safetensors"):
        pretrained_reward("clip", tmp_path)
    for name in ("hps", "imagereward", "aesthetic"):
        command = f"glass-flows convert reward {name} FILE OUT"
        with pytest.raises(InvalidArgument, match=rf"{command}.*--reward {name}:OUT"):
            pretrained_reward(name)
        with pytest.raises(InvalidArgument, match=f"{command}` writes one"):
            pretrained_reward(name, tmp_path)
    with pytest.raises(InvalidArgument, match=r"head\.safetensors"):
        pretrained_reward("aesthetic", vision_only)
    with pytest.raises(ShapeError, match=r"\(batch, 3, H, W\)"):
        ImageTextReward(*parts)(images[:, :1], PROMPTS)
    with pytest.raises(InvalidArgument, match="takes prompts"):
        ImageTextReward(*parts)(images)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingExtra, match=r"glass-flows\[rewards\]"):
        pretrained_reward("clip", folder)


def test_default_models_are_pinned_to_commits():
    for source in PRETRAINED.values():
        for place in (source.model, source.processor):
            assert place is None or (place.revision is not None and len(place.revision) == 40)
        assert (source.model is None) == bool(source.file)
