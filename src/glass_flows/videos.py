"""Videos of particles with their rewards: results whose pictures are contact sheets of frames."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image

from .files import replace, written
from .images import ImageResult
from .pixels import contact_sheet
from .rewards.videos import chosen

__all__ = ["VideoResult", "save_video"]

_IN_A_ROW, _FRAME = 8, 128  # frames of a video on the sheet of all, and their longest side


@dataclass(frozen=True, repr=False)
class VideoResult(ImageResult):
    """Videos with their rewards, and all that is known of the run.

    `frames` are the videos, as those of a diffusers pipeline. Whatever shows pictures (`images`,
    `rows`, `image`, `best`, notebooks, reports) shows their contact sheets: at most 16 frames,
    evenly spaced, the first and the last among them.

    Attributes
    ----------
    frames : list of list of PIL.Image
        Of each video its frames: P N videos, in the order of `images`.
    rate : float
        Frames a second of the files, > 0.
    """

    frames: list[list[Image.Image]] = field(default_factory=list)
    rate: float = 16.0
    word: ClassVar[str] = "video"

    @property
    def best_frames(self) -> list[list[Image.Image]]:
        """The video of the highest reward for each prompt, P of them."""
        N = self.rewards.shape[1]
        return [self.frames[p * N + order[0]] for p, order in enumerate(self.order)]

    def write(self, folder: Path, prefix: str = "") -> list[list[str]]:
        """Write the contact sheets as PNG, which say what they were drawn with, and beside each
        its video, of the same name with ``.webp``; the names of the sheets, (P, N)."""
        names = super().write(folder, prefix)
        every = [name for row in names for name in row]
        for frames, name in zip(self.frames, every, strict=True):
            save_video(frames, folder / _video(name), self.rate)
        return names

    def beside(self, names: list[list[str]]) -> dict[str, Any]:
        return {"videos": [[_video(name) for name in row] for row in names]}

    def sheet(self) -> Image.Image:
        """A row of at most 8 frames for each video, prompt by prompt, best first."""
        N = self.rewards.shape[1]
        every = [self.frames[p * N + n] for p, order in enumerate(self.order) for n in order]
        rows = [[video[i] for i in chosen(len(video), _IN_A_ROW)] for video in every]
        return contact_sheet(rows, _FRAME, Image.Resampling.BICUBIC)


def _video(name: str) -> str:
    """The file of a video, by that of its contact sheet."""
    return str(Path(name).with_suffix(".webp"))


def save_video(frames: Sequence[Image.Image], file: Path, rate: float) -> None:
    """Write an animated WebP without loss, which browsers play, again and again.

    Equal frames in a row are one that lasts longer, to whoever reads it.

    Parameters
    ----------
    frames : sequence of PIL.Image
        Of one size, at least one.
    rate : float
        Frames a second; each ends at the nearest millisecond.
    """
    ends = [round(1000 * (i + 1) / rate) for i in range(len(frames))]
    lasts = [end - before for before, end in zip([0, *ends], ends)]
    save = partial(
        frames[0].save, format="WEBP", save_all=True, append_images=list(frames[1:]),
        duration=lasts, loop=0, lossless=True, quality=0, method=0,
    )  # fmt: skip
    replace(file, written(save))
