"""From clean latents to pictures and back: those that rewards see are those that are returned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from ..errors import ShapeError
from ..pixels import sheet_of, to_bytes, to_images
from ..steering import Shards

Picture = Image.Image | list[Image.Image]
"""An image, or the frames of a video."""


def decode_latents(
    vae: Any,
    latents: Tensor,
    *,
    shift: bool = False,
    statistics: bool = False,
    upcast: bool = False,
) -> Tensor:
    """Images, [0, 1] or so, of (B, channels, height, width) latents; differentiable.

    Pipelines differ in what they read of their autoencoder's configuration: `shift` its
    `shift_factor`, `statistics` its `latents_mean` and `latents_std`, `upcast` its `force_upcast`.
    """
    if statistics and _has_statistics(vae):
        mean, std = latent_statistics(vae, latents)
        latents = latents * std
        latents = latents + mean * vae.config.scaling_factor
    latents = latents / vae.config.scaling_factor
    if shift and getattr(vae.config, "shift_factor", None):
        latents = latents + vae.config.shift_factor
    return picture(vae, latents, upcast)


def encode_latents(
    vae: Any, images: Tensor, *, shift: bool = False, statistics: bool = False, upcast: bool = False
) -> Tensor:
    """Latents of images in [0, 1]: inverse of :func:`decode_latents` but for the autoencoder."""
    latents = encoding(vae, images, upcast)
    if shift and getattr(vae.config, "shift_factor", None):
        latents = latents - vae.config.shift_factor
    latents = latents * vae.config.scaling_factor
    if statistics and _has_statistics(vae):
        mean, std = latent_statistics(vae, latents)
        latents = (latents - mean * vae.config.scaling_factor) / std
    return latents


def _has_statistics(vae: Any) -> bool:
    """Whether its configuration tells the mean and the standard deviation of its latents."""
    return all(vae.config.get(name) is not None for name in ("latents_mean", "latents_std"))


def latent_statistics(vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of each channel, shaped to go with latents (B, channels, ...)."""
    size = (1, -1, *(1,) * (latents.ndim - 2))
    told = (vae.config.latents_mean, vae.config.latents_std)
    mean, std = (torch.tensor(one).to(latents).view(size) for one in told)
    return mean, std


def picture(vae: Any, latents: Tensor, upcast: bool = False) -> Tensor:
    """Images, [0, 1] or so, of what an autoencoder's decoder takes.

    With `upcast` one that overflows in float16 is widened, and is left so where a gradient goes
    back through it, which needs the weights as they were: :func:`as_it_was` puts it back.
    """
    widened = _widen(vae, upcast)
    image = unit_range(vae.decode(latents.to(vae.dtype), return_dict=False)[0])
    if widened and not image.requires_grad:
        vae.to(torch.float16)
    return image


def encoding(vae: Any, images: Tensor, upcast: bool = False) -> Tensor:
    """What an autoencoder's encoder makes of images in [0, 1], its mean, in float32 at least.

    With `upcast` one that overflows in float16 is widened for it.
    """
    widened = _widen(vae, upcast)
    found = vae.encode((2 * images - 1).to(vae.dtype))
    if widened:
        vae.to(torch.float16)
    return wide(found.latent_dist.mode() if hasattr(found, "latent_dist") else found.latent)


def _widen(vae: Any, upcast: bool) -> bool:
    """Whether its weights had to be widened from float16."""
    if not (upcast and vae.dtype == torch.float16 and vae.config.force_upcast):
        return False
    vae.to(torch.float32)
    return True


@contextmanager
def as_it_was(pipe: Any) -> Iterator[None]:
    """Put the dtype of its autoencoder back: pipelines, and gradients, leave it widened."""
    vae = pipe.components.get("vae")
    dtype = None if vae is None else vae.dtype
    try:
        yield
    finally:
        if vae is not None and vae.dtype != dtype:
            vae.to(dtype)


def unit_range(image: Tensor) -> Tensor:
    """A decoder's output, [-1, 1] or so, as an image, [0, 1] or so, in float32 at least."""
    return wide(image) / 2 + 0.5


def wide(x: Tensor) -> Tensor:
    """In float32 at least."""
    return x if x.dtype == torch.float64 else x.float()


class _Clamped(torch.autograd.Function):
    """Into [0, 1], with the gradient of the identity.

    The clamp's own is zero outside, so that nothing could pull a pixel back that is out a little.
    Weights stay exact: a twist may shift by whatever is known before the noise.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clamp(0, 1)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        return gradient


def _pictures(made: Tensor, count: int) -> bool:
    """Whether they are so many images, in colours or greys, or videos in colours."""
    if made.ndim not in (4, 5) or len(made) != count:
        return False
    return made.shape[-3] == 3 or made.shape[1:-2] == (1,)


def _pictured(pixels: Tensor) -> Picture:
    """Of bytes, (H, W, 3) or (F, H, W, 3)."""
    images = to_images(list(pixels[None] if pixels.ndim == 3 else pixels))
    return images if pixels.ndim == 4 else images[0]


class Pictures:
    """Decodes for rewards, and keeps the last images: those of the end are not decoded again.

    Parameters
    ----------
    decode : callable
        (B, *shape) clean states to images (B, 3, height, width), or (B, 1, height, width) in
        greys, or to videos (B, F, 3, height, width); [0, 1] or so.
    keep : int
        How many are kept.
    device : torch.device, optional
        Where states are decoded.
    again : bool
        Whether others are asked about the same pictures, which are kept for them unrounded.
    """

    def __init__(
        self,
        decode: Callable[[Tensor], Tensor],
        keep: int,
        device: torch.device | None = None,
        again: bool = False,
    ) -> None:
        self.decode, self.device, self.again = decode, device, again
        self.keep = keep * (2 if again else 1)  # what is asked for may be older than one batch
        self.kept: list[tuple[Tensor, Tensor]] = []
        self.whole: list[tuple[Tensor, Tensor]] = []

    def __call__(self, z: Tensor) -> Tensor:
        """Images in [0, 1], as they are returned but for the rounding to bytes."""
        made = self.decode(z)
        if not isinstance(made, Tensor) or not _pictures(made, len(z)):
            given = tuple(made.shape) if isinstance(made, Tensor) else type(made).__name__
            raise ShapeError(
                f"decode must make images ({len(z)}, 3, height, width) or videos ({len(z)}, "
                f"frames, 3, height, width) of latents {tuple(z.shape)}, got {given}; of a video, "
                "choose or lay out its frames"
            )
        video = made.ndim == 5
        pictures: Tensor = _Clamped.apply(made.expand(*made.shape[:-3], 3, -1, -1))
        pixels = to_bytes(pictures.flatten(0, -4)).unflatten(0, pictures.shape[:-3])
        # A video is large, and to wait for it costs little beside its decoding.
        pixels = pixels.cpu() if video else pixels
        self.kept = [*self.kept, *zip(z.detach(), pixels)][-self.keep :]
        if self.again:
            unrounded = pictures.detach().cpu() if video else pictures.detach()
            self.whole = [*self.whole, *zip(z.detach(), unrounded)][-self.keep :]
        return pictures

    def once_more(self, z: Tensor) -> Tensor:
        """The images of states that were decoded last; those that were not are decoded now."""
        found = {}
        for i, one in enumerate(z):
            known = (p for state, p in reversed(self.whole) if torch.equal(state, one))
            if (picture := next(known, None)) is not None:
                found[i] = picture
        if missing := [i for i in range(len(z)) if i not in found]:
            found |= zip(missing, self(z[missing]))
        return torch.stack([found[i].to(z.device) for i in range(len(z))])

    def _download(self) -> None:
        """What is kept, from the device: the host waits for it only where somebody looks."""
        self.kept = [(state.cpu(), pixels.cpu()) for state, pixels in self.kept]

    def known(self, z: Tensor) -> list[Image.Image] | None:
        """Images of (B, *shape) states if all have been decoded already."""
        self._download()
        found = [self._find(one) for one in z.cpu()]
        known = [pixels for pixels in found if pixels is not None]
        return to_images(known) if len(known) == len(found) else None

    def shown(self, z: Tensor) -> list[Image.Image]:
        """Images of (B, *shape) states, decoded one by one unless they have been; of videos their
        contact sheets."""
        self._download()
        found = [_pictured(self._pixels(one)) for one in z.cpu()]
        return [sheet_of(one) if isinstance(one, list) else one for one in found]

    def images(self, samples: Tensor, shards: Shards | None = None) -> list[Any]:
        """Pictures of (P, n, *shape) samples, each from the process that decoded it."""
        self._download()
        if shards is not None:  # what it decoded last are its own particles at the end
            own = self.kept[-len(range(shards.own.start, shards.own.stop)) :]
            states, pixels = (shards.gather(torch.stack(part)) for part in zip(*own))
            self.kept = list(zip(states, pixels))
        return [_pictured(self._pixels(z)) for z in samples.flatten(0, 1).cpu()]

    def _find(self, z: Tensor) -> Tensor | None:
        return next((pixels for state, pixels in self.kept if torch.equal(state, z)), None)

    def _pixels(self, z: Tensor) -> Tensor:
        known = self._find(z)
        if known is None:
            with torch.no_grad():
                self(z[None] if self.device is None else z[None].to(self.device))
            known = self.kept[-1][1].cpu()
        return known
