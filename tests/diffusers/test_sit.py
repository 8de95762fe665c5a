"""SiT checkpoints, on a synthetic state dict of a tiny one."""

import dataclasses
import os

import pytest
import torch

import glass_flows
from glass_flows.errors import InvalidArgument, WeightsFileError
from glass_flows.sit import SiT, SiTConfig, convert, load

TINY = SiTConfig(input_size=8, patch_size=2, channels=4, hidden_size=32, depth=2, heads=4,
                 classes=10, learned_sigma=True)  # fmt: skip


def tiny_state(config=TINY):
    state, noise = SiT(config).state_dict(), torch.Generator().manual_seed(0)
    return {k: 0.2 * torch.randn(v.shape, generator=noise) for k, v in state.items()}


@pytest.fixture
def folder(tmp_path):
    torch.save({"ema": tiny_state(), "model": {}, "args": "kept"}, tmp_path / "sit.pt")
    convert(tmp_path / "sit.pt", tmp_path / "sit", heads=4)
    return tmp_path / "sit"


def test_sizes_are_read_off_the_shapes(tmp_path):
    for config in (TINY, dataclasses.replace(TINY, learned_sigma=False, patch_size=4, depth=1)):
        torch.save(tiny_state(config), tmp_path / "sit.pt")
        assert convert(tmp_path / "sit.pt", tmp_path / "out", heads=4) == config
    assert sorted(os.listdir(tmp_path / "out")) == [".lock", "config.json", "model.safetensors"]


def test_the_published_names_are_the_networks():
    names = set(SiT(TINY).state_dict())
    for name in (
        "pos_embed", "x_embedder.proj.weight", "t_embedder.mlp.0.bias", "t_embedder.mlp.2.weight",
        "y_embedder.embedding_table.weight", "blocks.1.attn.qkv.bias", "blocks.0.attn.proj.weight",
        "blocks.0.mlp.fc1.weight", "blocks.0.mlp.fc2.bias", "blocks.0.adaLN_modulation.1.weight",
        "final_layer.linear.weight", "final_layer.adaLN_modulation.1.bias",
    ):  # fmt: skip
        assert name in names
    assert len(names) == 9 + 2 * 10 + 4 - 1


def test_clock_and_sign(folder):
    """x_t = t z + (1 - t) ε with velocity z - ε: D = x + (1 - t) v, the network told t itself."""
    denoiser = load(folder, 3)
    network, x = denoiser.network, torch.randn(2, 4, 8, 8)
    for t in (0.0, 0.3, 0.9):
        v = network(x, torch.full((2,), t), torch.tensor([3, 3]))
        torch.testing.assert_close(denoiser(x, t), x + (1 - t) * v)
    assert v.std() > 0.01 and v.shape == x.shape


def test_the_network_is_the_published_architecture():
    """Against torch's own attention and layers, put together differently."""
    torch.manual_seed(0)
    network, state = SiT(TINY), tiny_state()
    network.load_state_dict(state)
    block, x, c = network.blocks[0], torch.randn(2, 16, 32), torch.randn(2, 32)
    attention = torch.nn.MultiheadAttention(32, 4, batch_first=True)
    with torch.no_grad():
        attention.in_proj_weight.copy_(block.attn["qkv"].weight)
        attention.in_proj_bias.copy_(block.attn["qkv"].bias)
        attention.out_proj.weight.copy_(block.attn["proj"].weight)
        attention.out_proj.bias.copy_(block.attn["proj"].bias)
        norm = torch.nn.LayerNorm(32, elementwise_affine=False, eps=1e-6)
        s1, a1, g1, s2, a2, g2 = (p[:, None] for p in block.adaLN_modulation(c).chunk(6, 1))
        y = norm(x) * (1 + a1) + s1
        h = x + g1 * attention(y, y, y, need_weights=False)[0]
        mlp = torch.nn.Sequential(block.mlp["fc1"], torch.nn.GELU("tanh"), block.mlp["fc2"])
        torch.testing.assert_close(block(x, c), h + g2 * mlp(norm(h) * (1 + a2) + s2))
        # a patch's pixels land where they were taken from
        moved = torch.zeros(1, 4, 8, 8)
        moved[0, 1, 5, 2] = 1.0
        row = network.x_embedder["proj"].weight[:, 1, 1, 0]
        tokens = network.x_embedder["proj"](moved) - network.x_embedder["proj"].bias.view(
            1, -1, 1, 1
        )
        torch.testing.assert_close(tokens[0, :, 2, 1], row)


def test_outputs_go_back_to_their_patches():
    """With a last layer that is constant per output, pixel (p, q) of channel c is its bias."""
    network = SiT(TINY)
    with torch.no_grad():
        network.final_layer["linear"].weight.zero_()
        network.final_layer["linear"].bias.copy_(torch.arange(32.0))
        image = network(torch.randn(1, 4, 8, 8), torch.tensor([0.5]), torch.tensor([0]))
    for c in range(4):
        for p in range(2):
            for q in range(2):
                assert (image[0, c, p::2, q::2] == (2 * p + q) * 8 + c).all()


def test_it_samples_and_is_steered_for_several_classes(folder):
    denoiser = load(folder, [1, 2], guidance_scale=2.0)
    result = glass_flows.steer(
        denoiser, lambda z: z.mean((1, 2, 3)), shape=(4, 8, 8), particles=2, populations=2,
        scale=1.0, transitions=2, steps=2, rho=0.4, seed=0,
    )  # fmt: skip
    assert result.samples.shape == (2, 2, 4, 8, 8)
    assert result.network_evaluations == 2 * 4 * 4


class _Code:
    def __reduce__(self):
        return os.getcwd, ()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: {"ema": state, "args": _Code()}, "more than tensors"),
        (lambda state: {**state, "extra": torch.zeros(1)}, "extra"),
        (lambda state: {k: v for k, v in state.items() if k != "pos_embed"}, "pos_embed"),
        (lambda state: {**state, "blocks.0.attn.qkv.bias": torch.zeros(5)}, r"\(5,\)"),
        (lambda state: {**state, "pos_embed": state["pos_embed"] * torch.nan}, "NaN"),
        (lambda state: [1, 2], "state dict"),
        (lambda state: {"final_layer.linear.weight": torch.zeros(1)}, "not a SiT"),
    ],
)
def test_what_is_no_sit(change, message, tmp_path):
    torch.save(change(tiny_state()), tmp_path / "bad.pt")
    with pytest.raises(WeightsFileError, match=message):
        convert(tmp_path / "bad.pt", tmp_path / "out", heads=4)
    assert not (tmp_path / "out").exists()


def test_missing_files_heads_and_labels(folder, tmp_path):
    with pytest.raises(WeightsFileError, match="no such file"):
        convert(tmp_path / "nothing.pt", tmp_path / "out")
    torch.save(tiny_state(), tmp_path / "sit.pt")
    with pytest.raises(WeightsFileError, match="pass heads="):
        convert(tmp_path / "sit.pt", tmp_path / "out")
    with pytest.raises(WeightsFileError, match="no converted SiT"):
        load(tmp_path / "nothing", 0)
    for name, wrong in (("device", "bad"), ("device", [0]), ("dtype", "float32")):
        with pytest.raises(InvalidArgument, match=f"{name} must be a torch.{name}"):
            load(folder, 0, **{name: wrong})
    for labels in (10, [], [-1]):
        with pytest.raises(InvalidArgument, match="0 to 9"):
            load(folder, labels)
