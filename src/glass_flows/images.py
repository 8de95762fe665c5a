"""Images of particles with their rewards, and all that is known of the run that drew them."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property, partial
from pathlib import Path
from typing import Any, ClassVar

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from torch import Tensor

from .errors import InvalidArgument
from .files import render, replace, written
from .pixels import contact_sheet
from .runs import RunFolder
from .runs.listing import as_text, clean, figure, short
from .runs.memory import RunInMemory
from .runs.report import lines_of_descent, report_of
from .runs.result import best_first
from .steering import SearchResult

__all__ = ["ImageResult", "Rows", "image_name"]

_THUMBNAIL = 160  # longest side of an image in a notebook, in pixels
_MOST_PROMPTS, _MOST_IMAGES = 4, 16  # in a notebook
_TILE = 256  # longest side of an image on a sheet, in pixels
_LONGEST = 60  # of a prompt in a line


class Rows(list[dict[str, Any]]):
    """Lines of a table, by column; printed as one, also in a notebook."""

    def __repr__(self) -> str:
        return as_text(self)

    def _repr_html_(self) -> str:
        return _page(rows=list(self), head="")


@dataclass(frozen=True, repr=False)
class ImageResult:
    """Images with their rewards, and all that is known of the run.

    `images` are always in one row, as those of a diffusers pipeline: prompt by prompt, and of each
    prompt particle by particle, in the order of `rewards.flatten()`. `rows` are the same, a list
    for each prompt.

    Attributes
    ----------
    rows : list of list of PIL.Image
        For every prompt its N particles.
    rewards : Tensor
        (P, N), of the images.
    prompts : tuple
        P of them.
    result : SearchResult
        Samples (latents), weights, ancestry, costs; a SteeringResult for "steering",
        a RefinedResult for "refine".
    settings : dict
        What was asked for, as JSON: the whole job, or of a pipeline from Python "pipeline",
        "prompts", "reward", "method", "sampler", "batching", "seed" and the arguments of its
        "call".
    """

    rows: list[list[Image.Image]]
    rewards: Tensor
    prompts: tuple[Any, ...]
    result: SearchResult
    settings: Mapping[str, Any]
    word: ClassVar[str] = "image"

    @property
    def images(self) -> list[Image.Image]:
        """All images, P N of them, prompt by prompt."""
        return [image for row in self.rows for image in row]

    @property
    def best(self) -> list[Image.Image]:
        """The image of the highest reward for each prompt, P of them."""
        return [row[order[0]] for row, order in zip(self.rows, self.order)]

    @property
    def image(self) -> Image.Image:
        """The image of the highest reward, where there is one prompt.

        Raises
        ------
        InvalidArgument
            There are several prompts: `best` has an image for each.
        """
        if len(self.rows) != 1:
            raise InvalidArgument(
                f"result.image is of one prompt, and there are {len(self.rows)}: result.best is a "
                "list of the best image of each"
            )
        return self.best[0]

    @property
    def seed(self) -> int | None:
        """With which the same call draws the same images; None if the settings do not say."""
        return self.settings.get("seed")

    @cached_property
    def order(self) -> list[list[int]]:
        """Of each prompt its particles, the one of the highest reward first."""
        return [best_first(row) for row in self.rewards.tolist()]

    @property
    def method(self) -> str:
        """Its name."""
        return self._run.method

    # --- looked at ------------------------------------------------------------------------------

    def __repr__(self) -> str:
        P, N = self.rewards.shape
        prompts = ", ".join(repr(short(str(p), _LONGEST)) for p in self.prompts[:_MOST_PROMPTS])
        more = ", ..." if P > _MOST_PROMPTS else ""
        each = f" for each of {P} prompts," if P > 1 else " of"
        each = f"{N} {self.word}{'s' * (N > 1)}{each}"
        return clean(
            "\n".join(
                [f"{self.method}: {each} {prompts}{more}, seed {self.seed}", *self.result.lines()]
            )
        )

    def _repr_html_(self) -> str:
        """For notebooks: the images best first, and who descends from whom."""
        shown = [
            {
                "prompt": str(prompt),
                "images": [
                    (_thumbnail(self.rows[p][n]), f"particle {n}", float(self.rewards[p, n]))
                    for n in self.order[p][:_MOST_IMAGES]
                ],
                "left_out": max(0, len(self.rows[p]) - _MOST_IMAGES),
                "tree": lines_of_descent(self._run, p),
            }
            for p, prompt in enumerate(self.prompts[:_MOST_PROMPTS])
        ]
        return _page(
            head=f"{self.method}, seed {self.seed}",
            lines=self.result.lines(),
            shown=shown,
            left_out=max(0, len(self.prompts) - _MOST_PROMPTS),
        )

    def table(self) -> Rows:
        """A line for each image, best first: a list of dicts that prints as a table.

        "prompt", "particle", "reward", "seed", then what the run knows beside: "log_weight", the
        "ancestor" at the first boundary, and held-out rewards by their names.
        """
        found = Rows()
        for row, order in zip(self._run.samples, self.order):
            for n in order:
                one = row[n]
                line: dict[str, Any] = {"prompt": one.prompt, "particle": n, "reward": one.reward}
                line |= {name: told[one.population][n] for name, told in self._run.also.items()}
                if one.log_weight is not None:
                    line["log_weight"] = one.log_weight
                found.append(line | {"ancestor": one.ancestor, "seed": one.seed})
        return found

    # --- kept -----------------------------------------------------------------------------------

    def save(self, folder: str | Path) -> list[Path]:
        """Write every image as PNG, best first, and the result beside them as a run's folder.

        ``003-00.png`` is the best image of prompt 3, ``003-01.png`` the next. Each holds prompt,
        reward and settings, from which ``glass-flows align --again FILE.png`` draws it again.
        ``result.json`` is that of a run (docs/runs.md), so that `report`, `runs` and `evaluate`
        read the folder.

        Returns
        -------
        list of Path
            The images, in the order of their names.

        Raises
        ------
        RunFolderError
            The folder holds another result, or cannot be written.
        """
        record = RunFolder(folder, self.settings, title=self._run.heading)
        names = self.write(record.folder)
        told = self.beside(names)
        record.finish(self.result, names, prompts=self.prompts, seed=self.seed, **told)
        return [record.folder / name for name in sorted(name for row in names for name in row)]

    def write(self, folder: Path, prefix: str = "") -> list[list[str]]:
        """Write the images alone; their names, (P, N) in the order of the particles."""
        folder.mkdir(parents=True, exist_ok=True)
        names = self._names(prefix)
        for row, files, rewards, prompt in zip(
            self.rows, names, self.rewards.tolist(), self.prompts
        ):
            for image, name, reward in zip(row, files, rewards):
                info = PngInfo()
                info.add_itxt("prompt", str(prompt))
                info.add_itxt("reward", repr(reward))
                info.add_itxt("settings", json.dumps(dict(self.settings), default=repr))
                replace(folder / name, written(partial(image.save, format="PNG", pnginfo=info)))
        return names

    def beside(self, names: list[list[str]]) -> dict[str, Any]:
        """What :meth:`write` wrote beside the files of these names, as a run's folder is told."""
        return {}

    def sheet(self) -> Image.Image:
        """All images in a row for each prompt, best first."""
        rows = [[row[n] for n in order] for row, order in zip(self.rows, self.order)]
        return contact_sheet(rows, _TILE, Image.Resampling.BICUBIC)

    def report(self, file: str | Path = "report.html", plain: ImageResult | None = None) -> Path:
        """Write one HTML file about the result, as ``glass-flows report`` does of a run's folder.

        What was not recorded on the way (`record=`) is not in it: clean estimates and rewards at
        the boundaries.

        Parameters
        ----------
        file : path
        plain : ImageResult, optional
            Images of the same prompts without steering, shown beside.

        Raises
        ------
        InvalidArgument
            `plain` is of other prompts.
        RunFolderError
            The file cannot be written.
        """
        if plain is not None and plain.prompts != self.prompts:
            raise InvalidArgument(
                f"plain must be of the same prompts, {self.prompts!r}, got {plain.prompts!r}"
            )
        run = self._run
        beside = None if plain is None else [plain.ranked(p) for p in range(len(self.prompts))]
        return report_of(run, Path(file), beside)

    def ranked(self, p: int) -> list[tuple[Image.Image, float]]:
        """The images of prompt p with their rewards, best first."""
        return [(self.rows[p][n], float(self.rewards[p, n])) for n in self.order[p]]

    def _names(self, prefix: str = "") -> list[list[str]]:
        return [
            [f"{prefix}{image_name(p, order.index(n))}" for n in range(len(order))]
            for p, order in enumerate(self.order)
        ]

    @cached_property
    def _run(self) -> RunInMemory:
        names = self._names()
        return RunInMemory.of(
            self.result, self.rows, names, self.prompts, self.settings, **self.beside(names)
        )


def image_name(population: int, rank: int) -> str:
    """The file of an image, by its place among those of its prompt, best first."""
    return f"{population:03d}-{rank:02d}.png"


def _thumbnail(image: Image.Image) -> str:
    """As a data URI."""
    small = image.copy()
    small.thumbnail((_THUMBNAIL, _THUMBNAIL))
    content = written(partial(small.save, format="PNG"))
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"


def _page(**given: Any) -> str:
    filters: dict[str, Callable[..., Any]] = {"clean": clean, "figure": figure, "told": _told}
    return render(Path(__file__).with_name("images.html.jinja"), filters, **given)


def _told(value: Any) -> str:
    return figure(value) if isinstance(value, float) else str(value)
