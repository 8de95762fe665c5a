"""SiT (Ma et al. 2024, arXiv 2401.08740): published checkpoints as a denoiser.

They are state dicts of a class-conditional transformer on the latents of Stable Diffusion's
autoencoder (scaling factor 0.18215), trained with x_t = t z + (1 - t) ε to predict the velocity
z - ε and told t itself: our own clock and sign. :func:`convert` reads one once and writes
safetensors; :func:`load` makes the denoiser.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from numbers import Integral
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn
from torch.nn import functional as F

from .checkpoints import State, check_tensors, read_tensors
from .denoisers import Denoiser, check_device
from .errors import InvalidArgument, WeightsFileError, check_count
from .files import replace
from .folders import alone
from .paths import Linear

_FREQUENCIES = 256
_HEADS = {384: 6, 768: 12, 1024: 16, 1152: 16}  # of the published S, B, L and XL
_FILES = ("config.json", "model.safetensors")


@dataclass(frozen=True)
class SiTConfig:
    """Sizes of a SiT; `classes` without the null class, whose number is `classes`."""

    input_size: int
    patch_size: int
    channels: int
    hidden_size: int
    depth: int
    heads: int
    classes: int
    learned_sigma: bool


class SiT(nn.Module):
    """The network, with the parameter names of the published checkpoints.

    ``network(x, t, label)``: x (B, channels, size, size), t (B,) in [0, 1], 1 is data, label (B,).
    """

    def __init__(self, config: SiTConfig) -> None:
        super().__init__()
        width, patch = config.hidden_size, config.patch_size
        self.config = config
        patches = nn.Conv2d(config.channels, width, patch, stride=patch)
        times = nn.Sequential(nn.Linear(_FREQUENCIES, width), nn.SiLU(), nn.Linear(width, width))
        labels = nn.Embedding(config.classes + 1, width)
        self.x_embedder = nn.ModuleDict({"proj": patches})
        self.t_embedder = nn.ModuleDict({"mlp": times})
        self.y_embedder = nn.ModuleDict({"embedding_table": labels})
        tokens = (config.input_size // patch) ** 2
        self.pos_embed = nn.Parameter(torch.zeros(1, tokens, width), requires_grad=False)
        self.blocks = nn.ModuleList(_Block(width, config.heads) for _ in range(config.depth))
        outputs = patch**2 * config.channels * (2 if config.learned_sigma else 1)
        self.final_layer = nn.ModuleDict(
            {"linear": nn.Linear(width, outputs), "adaLN_modulation": _modulation(width, 2)}
        )

    def forward(self, x: Tensor, t: Tensor, label: Tensor) -> Tensor:
        patch, batch = self.config.patch_size, len(x)
        tokens = self.x_embedder["proj"](x).flatten(2).transpose(1, 2) + self.pos_embed
        condition = self.t_embedder["mlp"](_frequencies(t).to(x.dtype))
        condition = condition + self.y_embedder["embedding_table"](label)
        for block in self.blocks:
            tokens = block(tokens, condition)
        shift, scale = self.final_layer["adaLN_modulation"](condition)[:, None].chunk(2, -1)
        tokens = self.final_layer["linear"](_normal(tokens) * (1 + scale) + shift)
        side = self.config.input_size // patch
        image = tokens.view(batch, side, side, patch, patch, -1).permute(0, 5, 1, 3, 2, 4)
        image = image.reshape(batch, -1, side * patch, side * patch)
        return image[:, : self.config.channels]  # a learned variance is dropped


class _Block(nn.Module):
    """Attention and MLP, each scaled, shifted and gated by the condition (adaLN)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.attn = nn.ModuleDict(
            {"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)}
        )
        self.mlp = nn.ModuleDict(
            {"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)}
        )
        self.adaLN_modulation = _modulation(width, 6)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        parts = self.adaLN_modulation(condition)[:, None].chunk(6, -1)
        shift, scale, gate, mlp_shift, mlp_scale, mlp_gate = parts
        x = x + gate * self._attend(_normal(x) * (1 + scale) + shift)
        hidden = self.mlp["fc1"](_normal(x) * (1 + mlp_scale) + mlp_shift)
        return x + mlp_gate * self.mlp["fc2"](F.gelu(hidden, approximate="tanh"))

    def _attend(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        parts = self.attn["qkv"](x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(*parts)
        out: Tensor = self.attn["proj"](mixed.transpose(1, 2).reshape(batch, tokens, width))
        return out


def _modulation(width: int, parts: int) -> nn.Sequential:
    return nn.Sequential(nn.SiLU(), nn.Linear(width, parts * width))


def _normal(x: Tensor) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], eps=1e-6)


def _frequencies(t: Tensor) -> Tensor:
    """cos and sin of t at 128 frequencies from 1 to 1/10000, (B, 256)."""
    half = _FREQUENCIES // 2
    rates = torch.exp(torch.arange(half, device=t.device) * (-math.log(10000.0) / half))
    angles = t[:, None].float() * rates
    return torch.cat([angles.cos(), angles.sin()], -1)


def convert(checkpoint: str | Path, folder: str | Path, *, heads: int | None = None) -> SiTConfig:
    """Read a published ``.pt`` checkpoint and write config.json and model.safetensors.

    Only tensors are read (``weights_only=True``): a file that holds code is refused. Of a training
    checkpoint the moving average ("ema") is taken.

    Parameters
    ----------
    heads : int, optional
        Attention heads; found from the width for the published S, B, L and XL.

    Raises
    ------
    WeightsFileError
        No such file, not a SiT, or a file that holds more than tensors.
    FolderInUse, InvalidArgument, RunFolderError
        Another process writes into the folder; it cannot be made; the disk is full.
    """

    def refuse(problem: str) -> WeightsFileError:
        return WeightsFileError(f"SiT checkpoint {str(checkpoint)!r}: {problem}")

    state = read_tensors(checkpoint, refuse, "ema", "model")
    try:
        config = _sizes(state, heads)
    except (KeyError, IndexError, ValueError) as error:
        raise refuse(f"it is not a SiT ({error})") from error
    check_tensors(SiT(config).state_dict(), state, refuse)
    text = json.dumps({"model": "SiT", **asdict(config)}, indent=2)
    with alone(folder) as target:
        replace(target / _FILES[1], save({k: v.contiguous() for k, v in state.items()}))
        replace(target / _FILES[0], f"{text}\n".encode())
    return config


def _sizes(state: State, heads: int | None) -> SiTConfig:
    """The configuration that these shapes belong to."""
    width, channels, patch, _ = state["x_embedder.proj.weight"].shape
    outputs = state["final_layer.linear.weight"].shape[0]
    if outputs not in (patch**2 * channels, 2 * patch**2 * channels):
        raise ValueError(f"{outputs} outputs for {channels} channels in patches of {patch}")
    if heads is None and width not in _HEADS:
        raise ValueError(f"width {width} is none of {sorted(_HEADS)}: pass heads=")
    if heads is not None and width % check_count("heads", heads):
        raise ValueError(f"width {width} is no multiple of {heads} heads")
    return SiTConfig(
        input_size=math.isqrt(state["pos_embed"].shape[1]) * patch,
        patch_size=patch,
        channels=channels,
        hidden_size=width,
        depth=len({key.split(".")[1] for key in state if key.startswith("blocks.")}),
        heads=_HEADS[width] if heads is None else heads,
        classes=state["y_embedder.embedding_table.weight"].shape[0] - 1,
        learned_sigma=outputs == 2 * patch**2 * channels,
    )


def load(
    folder: str | Path,
    labels: int | Sequence[int],
    *,
    guidance_scale: float = 1.0,
    device: torch.device | str | None = None,
    dtype: torch.dtype = torch.float32,
    max_batch: int | None = None,
) -> Denoiser:
    """The denoiser of a converted SiT, on latents (B, 4, size, size).

    Parameters
    ----------
    labels : int or sequence of int
        One class for all, or one for each population (or each row of the batch).
    guidance_scale : float
        Classifier-free guidance, on all channels. (The published sampling script guides the first
        three of four only.)

    Decode with Stable Diffusion's autoencoder: ``vae.decode(z / 0.18215).sample``.
    """
    device = check_device(device)
    if not isinstance(dtype, torch.dtype):
        raise InvalidArgument(f"dtype must be a torch.dtype such as torch.bfloat16, got {dtype!r}")
    home = Path(folder)
    try:
        data = json.loads((home / _FILES[0]).read_text(encoding="utf-8"))
        state = load_file(home / _FILES[1])
        if data.pop("model", None) != "SiT":
            raise ValueError("config.json is of another model")
        config = SiTConfig(**data)
    except (OSError, ValueError, TypeError, SafetensorError) as error:
        raise WeightsFileError(
            f"{str(home)!r} is no converted SiT ({error}): make one with glass_flows.sit.convert"
        ) from error
    network = SiT(config)
    check_tensors(
        network.state_dict(), state, lambda problem: WeightsFileError(f"{str(home)!r}: {problem}")
    )
    network.load_state_dict(state)
    network = network.to(device=device, dtype=dtype).eval().requires_grad_(False)
    listed = list(labels) if isinstance(labels, Iterable) else [labels]
    if isinstance(labels, Tensor):
        listed = labels.flatten().tolist()
    check_classes(network, listed)
    return Denoiser(
        network,
        Linear(),
        prediction="velocity",
        time="t",
        conditioning={"label": torch.tensor(listed, device=device)},
        unconditional={"label": torch.tensor([config.classes], device=device)},
        guidance_scale=guidance_scale,
        max_batch=max_batch,
    )


def check_classes(network: SiT, labels: Sequence[int]) -> None:
    """Raise :class:`InvalidArgument` unless the network knows these classes."""
    classes = network.config.classes
    whole = all(isinstance(label, Integral) and not isinstance(label, bool) for label in labels)
    if not labels or not whole or any(not 0 <= label < classes for label in labels):
        raise InvalidArgument(f"classes are numbered 0 to {classes - 1}, got {list(labels)}")
