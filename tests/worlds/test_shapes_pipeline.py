"""The Shapes pipeline before training: genuine classes, tokenizers of whole words, a round trip."""

from __future__ import annotations

import pytest
import torch

diffusers = pytest.importorskip("diffusers")

from cases import first  # noqa: E402
from glass_flows.worlds.shapes import prompts  # noqa: E402
from glass_flows.worlds.shapes.pipeline import (  # noqa: E402
    CLIP_TOKENS,
    MAX_TOKENS,
    NEGATIVE,
    build_pipeline,
    clip_tokenizer,
    t5_tokenizer,
)


@pytest.fixture(scope="module")
def pipe():
    torch.manual_seed(0)
    built = build_pipeline()
    built.set_progress_bar_config(disable=True)
    return built


@pytest.mark.parametrize("build", first([clip_tokenizer, t5_tokenizer]))
def test_every_word_is_one_token_and_every_prompt_fits(build):
    tokenizer = build()
    seen = {}
    for part in ("train", "test"):
        for prompt in prompts(part, 60):
            words = str(prompt).split()
            pieces = tokenizer.tokenize(str(prompt))
            assert [p.strip("▁").removesuffix("</w>") for p in pieces] == words
            ids = tokenizer(str(prompt)).input_ids
            assert tokenizer.unk_token_id not in ids or build is clip_tokenizer
            assert len(ids) <= len(words) + 2
            seen |= dict(zip(words, tokenizer.convert_tokens_to_ids(pieces)))
    assert len(set(seen.values())) == len(seen) == 27
    longest = "a small red triangle to the left of a large blue triangle"
    room = MAX_TOKENS if build is t5_tokenizer else CLIP_TOKENS
    assert len(tokenizer(longest).input_ids) == room


def draw(pipe):
    return pipe(
        ["a red circle", "two blue squares on white"],
        negative_prompt=[NEGATIVE] * 2,
        true_cfg_scale=3.0,
        height=32,
        width=32,
        num_inference_steps=2,
        max_sequence_length=MAX_TOKENS,
        generator=torch.Generator().manual_seed(0),
        output_type="pt",
    ).images


@pytest.mark.slow
def test_it_is_read_back_by_diffusers_and_draws_the_same(pipe, tmp_path):
    pipe.save_pretrained(tmp_path)
    again = diffusers.FluxPipeline.from_pretrained(tmp_path, local_files_only=True)
    again.set_progress_bar_config(disable=True)
    images = draw(pipe)
    assert images.shape == (2, 3, 32, 32)
    # Where in memory weights are read to may change the last bits of their products.
    torch.testing.assert_close(images, draw(again), rtol=0, atol=1e-4)
    for part in ("vae", "transformer", "text_encoder", "text_encoder_2"):
        read = getattr(again, part).state_dict()
        for key, value in getattr(pipe, part).state_dict().items():
            assert torch.equal(value, read[key]), key
    assert not list(tmp_path.rglob("*.bin"))
    for name in ("tokenizer", "tokenizer_2"):
        text = "a small red circle to the left of a large blue square"
        assert getattr(again, name)(text).input_ids == getattr(pipe, name)(text).input_ids
