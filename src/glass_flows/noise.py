"""Randomness, keyed by what it is for.

A sampler asks a noise source for the ε of one transition. :class:`KeyedNoise`, the default, gives
particle i of transition k a stream of its own, found from (seed, purpose, k, i) alone and drawn in
float32 on the CPU, so that it does not depend on the batch size, on how particles are split over
calls or processes, on dtype or device. :class:`StreamNoise` draws whole batches from one stream:
faster for very large populations, and tied to the batch size.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from numbers import Integral
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .errors import (
    MOST_NUMBERS,
    MOST_PARTICLES,
    InvalidArgument,
    NonFinite,
    ShapeError,
    check_count,
    plain,
    shown,
)
from .settings import Choice, Is, Kind

# Words made into normals at a time: all of it stays in the cache. A thread among several takes as
# many as torch leaves to one thread, and is worth its start for a few such pieces.
_ALONE, _SHARED, _WORTH = 2**17, 2**15, 4
_STREAM = 2**63  # the particle number of a stream that belongs to no particle

# Purposes keep the streams of one seed apart.
START, TRANSITION, RESAMPLING, POSTERIOR, SINGLE, MOVE, ACCEPTANCE, PILOT = range(8)


class Noise(Protocol):
    """Standard normal noise shaped like `like` (B, *shape) for step k of one purpose.

    `draw` tells several draws of the same particle at the same step apart.
    """

    def __call__(
        self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0
    ) -> Tensor: ...


Draw = Callable[[int, Tensor], Tensor]
"""What the executor asks of a source: the ε of a transition, by its number, like the state."""


def wrong(flag: Tensor) -> bool:
    """Whether a check has failed, as far as it can be known: under vmap nobody can look."""
    try:
        return bool(flag)
    except RuntimeError:
        if torch._C._are_functorch_transforms_active():
            return False
        raise


def check_seed(seed: int | None) -> int:
    """A seed in [0, 2^63); None draws one from torch's global generator."""
    if seed is None:
        try:
            return int(torch.randint(2**62, ()).item())
        except RuntimeError as error:  # under torch.func.vmap no random number can be drawn
            raise InvalidArgument(f"give a seed=, for none can be drawn here: {error}") from error
    number = plain(seed)
    whole = isinstance(number, Integral) and not isinstance(number, bool)
    if not whole or not 0 <= int(number) < 2**63:
        raise InvalidArgument(f"seed must be an integer in [0, 2^63), got {shown(seed)}")
    return int(number)


class _Seed(Kind):
    """A seed, or None for one that is drawn when it is used."""

    optional = True

    def check(self, name: str, given: Any) -> int:
        return check_seed(given)


SEED = _Seed()
GENERATOR = Is(torch.Generator, "a torch.Generator or None", optional=True)


def key_of(number: float) -> int:
    """For streams that are keyed by a time or a level in the place of a step."""
    (key,) = struct.unpack("<Q", struct.pack("<d", number))
    return int(key)


def check_sizes(sizes: Sequence[int]) -> None:
    """Raise for a state (B, *shape) that would not fit, or take hours to draw."""
    if sizes[0] > MOST_PARTICLES:
        raise InvalidArgument(
            f"at most {MOST_PARTICLES:,} particles go into one batch, populations x particles, "
            f"got {sizes[0]}"
        )
    if math.prod(sizes) > MOST_NUMBERS:
        raise InvalidArgument(
            f"a state holds at most {MOST_NUMBERS:,} numbers, batch x shape, "
            f"got {' x '.join(map(str, sizes[:8]))}"
        )


def check_tensor(x: object, name: str = "x") -> Tensor:
    """Return `x` if it is a batch of real floating-point values, of whatever precision."""
    if not isinstance(x, Tensor) or x.ndim < 1 or x.shape[0] < 1:
        given = f"shape {tuple(x.shape)}" if isinstance(x, Tensor) else type(x).__name__
        raise ShapeError(f"{name} must be a tensor (batch, *shape) with batch >= 1, got {given}")
    if not x.is_floating_point():
        raise ShapeError(f"{name} must be of real floating point, got {x.dtype}")
    if x.is_meta or x.layout != torch.strided:
        raise ShapeError(f"{name} must be dense and hold values, got {x.layout} on {x.device}")
    return x


def check_like(x: object, name: str = "x") -> Tensor:
    """Return `x` if it can be a state, a batch in float32 or float64."""
    if isinstance(x, Tensor) and x.dtype not in (torch.float32, torch.float64):
        raise ShapeError(
            f"{name} must be float32 or float64 (the network may run in another dtype: "
            f"Denoiser(dtype=torch.bfloat16)), got {x.dtype}"
        )
    return check_tensor(x, name)


class KeyedNoise:
    """A stream of its own for every (seed, purpose, step, particle); counter-based (Philox).

    Parameters
    ----------
    seed : int or None
        In [0, 2^63); None draws one from torch's global generator (so `torch.manual_seed` rules).
    first_particle : int
        Number of the batch's first particle, for populations split over several calls.
    """

    def __init__(self, seed: int | None = None, first_particle: int = 0) -> None:
        self.seed = check_seed(seed)
        self.first_particle = check_count("first_particle", first_particle, 0, _STREAM)

    def bits(self, purpose: int, step: int, particle: int, draw: int = 0) -> np.random.Philox:
        """The random bits behind one key; steering draws its uniforms from them."""
        _check_key(purpose, step, particle, draw)
        return _at(np.random.Philox(_NO_ENTROPY), (self.seed, purpose), (0, draw, step, particle))

    def seed_of(self, purpose: int) -> int:
        """A seed of its own for what stands beside a run, such as its pilot."""
        return int(self.bits(purpose, 0, 0).random_raw()) >> 1

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        numbers = range(self.first_particle, self.first_particle + len(check_like(like)))
        return keyed_normals([(self, i) for i in numbers], step, like, purpose, draw)


class _NoEntropy(np.random.bit_generator.ISeedSequence):
    """For bits whose place is set at once: without it numpy asks the system for entropy."""

    def generate_state(self, n_words: int, dtype: Any = np.uint32) -> npt.NDArray[Any]:
        return np.zeros(n_words, dtype)


_NO_ENTROPY: Any = _NoEntropy()


def _at(bits: np.random.Philox, key: Sequence[int], counter: Sequence[int]) -> np.random.Philox:
    """`bits` moved to where a stream begins: far faster than making others for each."""
    state: Any = {
        "bit_generator": "Philox",
        "state": {"key": key, "counter": counter},
        "buffer": (0, 0, 0, 0),
        "buffer_pos": 4,  # nothing is left in it
        "has_uint32": 0,
        "uinteger": 0,
    }
    bits.state = state
    return bits


def _check_key(*parts: int) -> None:
    if not all(isinstance(part, int | np.integer) and 0 <= part < 2**64 for part in parts):
        raise InvalidArgument(
            f"purpose, step, particle and draw are integers >= 0, got {shown(parts)}"
        )


class StreamNoise:
    """One stream per (seed, purpose, step) for the whole batch: for very large populations."""

    def __init__(self, seed: int | None = None) -> None:
        self.seed = check_seed(seed)

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        whole = check_like(like).reshape(1, -1)
        drawn = KeyedNoise(self.seed, _STREAM)(step, whole, purpose, draw)
        return drawn.view(like.shape)


def keyed_normals(
    streams: Sequence[tuple[KeyedNoise, int]], step: int, like: Tensor, purpose: int, draw: int
) -> Tensor:
    """Shaped like `like`, (B, *shape), row by row from the streams (source, particle number).

    A block of four words of a stream is found from its number, so that pieces of rows are drawn in
    any order, by as many threads as torch may use: the bits are the same.
    """
    _check_key(purpose, step, draw)
    batch, size = len(like), like[0].numel()
    half = (size + 1) // 2  # a word makes two numbers
    drawn = np.empty((batch, 2, half), dtype=np.float32)
    threads = min(torch.get_num_threads(), batch * half // (_WORTH * _SHARED))
    most = _SHARED if threads > 1 else _ALONE
    rows = max(1, most // max(half, 1))

    def fill(first: int, start: int) -> None:
        out = drawn[first : first + rows, :, start : start + most]
        bits = np.random.Philox(_NO_ENTROPY)
        words: list[Any] = [
            _at(bits, (source.seed, purpose), (start // 4, draw, step, particle)).random_raw(
                out.shape[2]
            )
            for source, particle in streams[first : first + rows]
        ]
        _normal(words[0][None] if len(words) == 1 else np.stack(words), out)

    pieces = [(i, start) for i in range(0, batch, rows) for start in range(0, half, most)]
    if threads > 1:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(fill, *zip(*pieces)))
    else:
        for piece in pieces:
            fill(*piece)
    flat = torch.from_numpy(drawn).view(batch, -1)[:, :size]
    return flat.reshape(like.shape).to(device=like.device, dtype=like.dtype)


def _normal(words: npt.NDArray[np.uint64], out: npt.NDArray[np.float32]) -> None:
    """Box-Muller: (n, m) random words to standard normals in `out`, (n, 2, m).

    A radius comes from 31 bits, so that the tails reach to 6.6 standard deviations. The functions
    are torch's, twice as fast as numpy's normals; torch's own normals are seeded by 32 bits only.
    """
    pairs = words.view(np.int32).reshape(*words.shape, 2)
    radius = (pairs[..., 0] & 0x7FFFFFFF).astype(np.float32)
    radius += 0.5
    radius *= 2.0**-31
    torch.from_numpy(radius).log_().mul_(-2.0).sqrt_()
    cosine = pairs[..., 1].astype(np.float32)
    cosine *= math.pi * 2.0**-31
    sine = cosine.copy()  # all in place: under transforms such as jvp new tensors are not numpy's
    torch.from_numpy(cosine).cos_()
    torch.from_numpy(sine).sin_()
    np.multiply(cosine, radius, out=out[:, 0])
    np.multiply(sine, radius, out=out[:, 1])


class GeneratorNoise:
    """Draws from a torch.Generator, on its own device, in the order of the calls."""

    def __init__(self, generator: torch.Generator) -> None:
        self.generator = Is(torch.Generator, "a torch.Generator").check("generator", generator)

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        check_like(like)
        drawn = torch.randn(
            like.shape, generator=self.generator, device=self.generator.device, dtype=torch.float32
        )
        return drawn.to(device=like.device, dtype=like.dtype)


class FixedNoise:
    """The user's own ε for each transition, in order; every one shaped like the state."""

    def __init__(self, noises: Sequence[Tensor]) -> None:
        self.noises = tuple(Is((list, tuple), "a list of tensors").check("noises", noises))

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        if check_count("step", step, 0, 2**63) >= len(self.noises):
            raise InvalidArgument(f"{len(self.noises)} noises given, transition {step} needs one")
        noise = self.noises[step]
        check_like(like)
        if not isinstance(noise, Tensor) or noise.shape != like.shape:
            given = tuple(noise.shape) if isinstance(noise, Tensor) else type(noise).__name__
            raise ShapeError(f"noise must be a tensor like x, {tuple(like.shape)}, got {given}")
        check_tensor(noise, "noise")
        if wrong(~torch.isfinite(noise).all()):
            raise NonFinite(f"the noise of transition {step} contains NaN or infinity")
        return noise.to(device=like.device, dtype=like.dtype)


_MODES: dict[str, Callable[[int | None], Noise]] = {
    "particle": KeyedNoise,
    "stream": StreamNoise,
}


RANDOMNESS = Choice("randomness", _MODES)


def noise_source(
    seed: int | None, generator: torch.Generator | None, mode: str = "particle"
) -> Noise:
    """The source for `seed` or `generator` (not both): keyed per particle, or one stream."""
    RANDOMNESS.check("randomness", mode)
    GENERATOR.read("generator", generator)
    if generator is None:
        return _MODES[mode](seed)
    if seed is not None:
        raise InvalidArgument("give either seed or generator, not both")
    return GeneratorNoise(generator)
