"""Folders of images side by side: rewards, distance to real images, diversity, pair by pair.

For images of any model and method, ours or not. Two folders are compared image by image: files of
the same name under both belong together.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, UnidentifiedImageError
from torch import Tensor

from ..errors import InvalidArgument, NonFinite, check_name
from ..files import render, replace
from ..folders import alone_in_out
from ..measures import bootstrap, diversity, frechet_distance, precision_recall
from ..progress import progress_bar
from ..rewards import evaluate as reward_of
from ..rewards.pretrained.base import Preprocessing
from ..rewards.pretrained.hub import Place, transformers_for
from ..runs import find_runs, read_run
from .job import Loading
from .models import resolve
from .pictures import make_folder
from .rewards import load_reward

__all__ = ["FolderFigures", "Interval", "evaluate_folders", "load_features", "read_images"]

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_BATCH = 16
Interval = tuple[float, float, float]
"""A mean and the ends of its 95 % bootstrap interval."""
Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class FolderFigures:
    """One folder.

    Attributes
    ----------
    images : int
    rewards : dict
        Mean of each, with its interval.
    gains : dict
        Differences to the first folder, over the files that both have.
    pairs : int
        How many those are.
    diversity : float or None
        Mean distance of two images in the features.
    frechet, precision, recall : float or None
        Against the reference.
    """

    folder: str
    images: int
    rewards: dict[str, Interval]
    gains: dict[str, Interval]
    pairs: int
    diversity: float | None = None
    frechet: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class _Found:
    """An image file with its prompt."""

    name: str
    file: Path
    prompt: str | None


def read_images(folder: str | os.PathLike[str]) -> list[_Found]:
    """The image files under a folder, by name, with their prompts.

    Of a run's folder only the images that came out of it. A prompt is the text "prompt" inside a
    PNG (as this library writes it), or that of
    ``metadata.jsonl`` in a folder above (GenEval's layout).

    Raises
    ------
    InvalidArgument
        There is no such folder, or no image in it.
    """
    home = Path(folder)
    runs = {
        run: {run / name for row in read_run(run).images for name in row} for run in find_runs(home)
    }

    def came_out(file: Path) -> bool:
        """Not one of the sheets of a run, beside its images or in its estimates."""
        return all(file in runs[run] for run in file.parents[:2] if run in runs)

    every = sorted(f for f in home.rglob("*") if f.suffix.lower() in _SUFFIXES)
    files = list(filter(came_out, every))
    if not files:
        raise InvalidArgument(
            f"{str(home)!r} holds no images ({', '.join(_SUFFIXES)})"
            if home.is_dir()
            else f"{str(home)!r} is no folder"
        )
    return [_Found(str(f.relative_to(home)), f, _prompt(f, home)) for f in files]


def _prompt(file: Path, home: Path) -> str | None:
    try:
        with Image.open(file) as image:
            inside = image.info.get("prompt")
    except (OSError, UnidentifiedImageError) as error:
        raise InvalidArgument(f"{str(file)!r} is no image: {error}") from error
    if isinstance(inside, str):
        return inside
    for above in file.relative_to(home).parents:
        metadata = home / above / "metadata.jsonl"
        if metadata.is_file():
            try:
                found = json.loads(metadata.read_text(encoding="utf-8").partition("\n")[0])[
                    "prompt"
                ]
                return str(found)
            except (ValueError, KeyError, IndexError, TypeError) as error:
                raise InvalidArgument(f"{str(metadata)!r} names no prompt: {error}") from error
    return None


def load_features(text: str, device: str | None = None) -> Callable[[Tensor], Tensor]:
    """A network's features of images (B, 3, H, W) in [0, 1], by "clip[:PLACE]" or "dino:PLACE".

    "clip" and "pickscore" are those of the rewards; "dino" takes DINOv2 or another vision model of
    transformers, by hub id or folder.

    Raises
    ------
    UnknownName, InvalidArgument, MissingExtra
    """
    name, _, place = text.partition(":")
    check_name("features", name, ("clip", "pickscore", "dino"))
    if name != "dino":
        scored: Any = load_reward(text, device=device)
        return lambda images: scored.features(images)
    if not place:
        raise InvalidArgument("'dino' needs a model: dino:FOLDER or dino:facebook/dinov2-base")
    transformers = transformers_for("DINO's features")
    network = Place(place).load(transformers.AutoModel, use_safetensors=True)
    preprocess = Preprocessing(Place(place).load(transformers.AutoImageProcessor, use_fast=False))
    home = Loading(device=device).home
    network = network.eval().to(home)

    @torch.no_grad()
    def features(images: Tensor) -> Tensor:
        found: Tensor = network(pixel_values=preprocess(images.to(home))).pooler_output
        return found

    return features


@alone_in_out
def evaluate_folders(
    folders: Sequence[str | os.PathLike[str]],
    out: str | os.PathLike[str],
    *,
    rewards: Sequence[str] = (),
    model: str | None = None,
    features: str | None = None,
    reference: str | os.PathLike[str] | None = None,
    device: str | None = None,
    seed: int = 0,
    progress: bool | None = None,
) -> list[FolderFigures]:
    """Figures of every folder; ``evaluation.md`` and ``evaluation.json`` in `out`.

    Parameters
    ----------
    folders : sequence of paths
        The first is the one that the others are compared with.
    rewards : sequence of str
        As of ``glass-flows align``: names, names with places, "module:function".
    model : str, optional
        The one that drew the images, whose names of rewards are meant: for "shapes" the reward
        "clip" is the CLIP of that world.
    features : str, optional
        As of :func:`load_features`, for diversity and for the distances to the reference.
    reference : path, optional
        A folder of real images.
    seed : int
        Of the bootstrap.

    Raises
    ------
    InvalidArgument
        Nothing is asked for, a reference without features, an image without a prompt where a reward
        needs one.
    NonFinite
        A reward is NaN, with the file named.
    """
    if not rewards and features is None:
        raise InvalidArgument("nothing to measure: give rewards, features, or both")
    if reference is not None and features is None:
        raise InvalidArgument("a reference is compared in features: give them, too")
    if model is not None and not rewards:
        raise InvalidArgument(f"the model {model!r} is asked for its rewards: give some, too")
    # The files first: a wrong folder should not wait for large networks.
    listed = [(str(folder), read_images(folder)) for folder in folders]
    wanted = None if reference is None else read_images(reference)
    reward = (
        (lambda name: load_reward(name, device=device))
        if model is None
        else resolve(model, Loading(device=device)).load_reward
    )
    scored = {name: reward(name) for name in rewards}
    network = None if features is None else load_features(features, device)
    target = make_folder(out)
    real = None
    if wanted is not None:
        _, real = _measure(wanted, {}, network, "reference", progress)
    lines: list[FolderFigures] = []
    first: dict[str, dict[str, float]] = {}
    for folder, found in listed:
        values, seen = _measure(found, scored, network, Path(folder).name, progress)
        shared = [one.name for one in found if all(one.name in kept for kept in first.values())]
        gains = {
            name: _interval([values[name][k] - first[name][k] for k in shared], seed)
            for name in scored
            if shared and first
        }
        first = first or values
        means = {name: _interval(list(v.values()), seed) for name, v in values.items()}
        pairs = len(shared) if gains else 0
        more = _in_features(seen, real)
        lines.append(FolderFigures(folder, len(found), means, gains, pairs, **more))
    table = render(Path(__file__).with_name("evaluation.md.jinja"), lines=lines, rewards=rewards)
    replace(target / "evaluation.md", table.encode())
    content = json.dumps([asdict(line) for line in lines], indent=1) + "\n"
    replace(target / "evaluation.json", content.encode())
    return lines


def _in_features(seen: Array | None, real: Array | None) -> dict[str, float]:
    """Diversity, and what is measured against real images, as far as there are enough."""
    if seen is None:
        return {}
    found = {"diversity": diversity(seen)} if len(seen) > 1 else {}
    if real is not None:
        found["frechet"] = frechet_distance(seen, real)
        if min(len(seen), len(real)) > 3:
            found["precision"], found["recall"] = precision_recall(seen, real)
    return found


def _interval(values: Sequence[float], seed: int) -> Interval:
    return (float(np.mean(values)), *bootstrap(np.array(values), seed=seed))


def _batches(found: Sequence[_Found]) -> Iterator[tuple[Sequence[_Found], Tensor]]:
    """Files with their pixels (B, 3, H, W) in [0, 1]: images of one size that follow each other."""
    start, pixels = 0, list[Tensor]()
    for i, one in enumerate(found):
        with Image.open(one.file) as image:
            new = torch.from_numpy(np.array(image.convert("RGB"))).movedim(-1, 0) / 255.0
        if pixels and (len(pixels) == _BATCH or pixels[-1].shape != new.shape):
            yield found[start:i], torch.stack(pixels)
            start, pixels = i, []
        pixels.append(new)
    yield found[start:], torch.stack(pixels)


def _measure(
    found: Sequence[_Found],
    scored: Mapping[str, Any],
    network: Callable[[Tensor], Tensor] | None,
    title: str,
    progress: bool | None,
) -> tuple[dict[str, dict[str, float]], Array | None]:
    """Rewards of every file, by reward and file, and features (n, d); each file is read once."""
    bare = next((one for one in found if one.prompt is None), None)
    for name, reward in scored.items():
        if reward.takes_prompts and bare is not None:
            raise InvalidArgument(
                f"the reward {name!r} reads prompts, and {str(bare.file)!r} has none: write it "
                'into the PNG as text "prompt", or lay the folder out like GenEval, with '
                "metadata.jsonl"
            )
    values: dict[str, dict[str, float]] = {name: {} for name in scored}
    features: list[Array] = []
    with progress_bar(len(found), progress, title) as advance:
        for part, pixels in _batches(found):
            for name, reward in scored.items():
                try:
                    scores = reward_of(
                        reward, pixels, f"of {title}", [one.prompt or "" for one in part]
                    )
                except NonFinite as error:
                    raise NonFinite(f"{error} (among {part[0].name} to {part[-1].name})") from error
                values[name] |= {one.name: float(score) for one, score in zip(part, scores)}
            if network is not None:
                features.append(network(pixels).double().cpu().numpy())
            for _ in part:
                advance()
    return values, np.concatenate(features) if features else None
