"""Folders of images side by side: rewards, distance to real images, diversity, pair by pair.

For images of any model and method, ours or not. Two folders are compared image by image: those of
the same prompt, seed and place belong together, or, where they are of no run, of the same name.
"""

from __future__ import annotations

import json
import os
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import InvalidArgument, NonFinite, check_name
from ..files import render
from ..files import replace as write
from ..folders import alone_in_out
from ..measures import bootstrap, diversity, frechet_distance, precision_recall
from ..progress import progress_bar
from ..rewards import Reward
from ..rewards import evaluate as reward_of
from ..rewards.named import load_reward
from ..rewards.pretrained.base import Preprocessing
from ..rewards.pretrained.hub import Place, transformers_for
from ..runs import find_runs, read_run
from ..runs.listing import as_json
from .job import Loading
from .models import Pipeline, kind_of, resolve
from .pictures import SHEET, make_folder

_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
_BATCH = 16
_BOMBS = (Image.DecompressionBombWarning, Image.DecompressionBombError)
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
        Differences to the first folder, over the pairs.
    pairs : int
        Of images that belong together.
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
class Found:
    """An image file, and what is known of it.

    Attributes
    ----------
    name : str
        Below the folder that was asked for.
    file : Path
    prompt : str or None
    model : str
        That drew it; "" where nothing says so.
    key : object
        Images of the same key in two folders belong together: of a run the prompt, the seed, the
        population and the particle, of any other the name.
    """

    name: str
    file: Path
    prompt: str | None
    model: str
    key: object


def read_images(folder: str | os.PathLike[str]) -> list[Found]:
    """The samples in a folder, by name.

    Of the runs in it the images that came out, as their ``result.json`` tells; and every other
    image file, but none of the sheets that this library draws. The prompt of those is the text
    "prompt" inside a PNG, or that of ``metadata.jsonl`` in a folder above (GenEval's layout).

    Raises
    ------
    InvalidArgument
        There is no such folder, no image in it, or one that cannot be read.
    RunFolderError
        A run in it is damaged, or one of its images is not there.
    """
    home = Path(folder)
    if not home.is_dir():
        raise InvalidArgument(f"{str(home)!r} is no folder")
    runs = find_runs(home)
    found = [one for run in runs for one in _of_run(run, home)]
    others = (f for f in home.rglob("*") if f.suffix.lower() in _SUFFIXES and f.is_file())
    # Beside a run's images, and among its estimates, nothing came out of it but what it tells.
    bare = (f for f in others if not set(f.parents[:2]) & set(runs))
    found += filter(None, (_bare(f, home) for f in bare))
    if not found:
        raise InvalidArgument(
            f"{str(home)!r} holds no images ({', '.join(_SUFFIXES)}) that are samples; of runs "
            "those count that have ended"
        )
    return sorted(_told_apart(found), key=lambda one: one.name)


def _of_run(run: Path, home: Path) -> Iterator[Found]:
    """The samples of a run that have images."""
    record = read_run(run)
    model = str(record.job.get("model", ""))
    for sample in (one for row in record.samples for one in row if one.file):
        if sample.video is not None:
            raise InvalidArgument(
                f"{str(run)!r} is a run of videos, whose images are contact sheets: evaluate "
                "measures images. Rewards of videos are in its result.json (--also adds others)"
            )
        file = run / str(sample.file)
        _open(file)
        place = (sample.prompt, sample.seed, sample.population, sample.particle)
        yield Found(str(file.relative_to(home)), file, sample.prompt, model, place)


def _told_apart(found: Sequence[Found]) -> Iterator[Found]:
    """Where a folder has several of a key, as of a batch of two methods, names tell them apart."""
    many = Counter(one.key for one in found)
    return (one if many[one.key] == 1 else replace(one, key=(one.name, one.key)) for one in found)


def _bare(file: Path, home: Path) -> Found | None:
    """An image that no run tells of; None for a sheet of ours."""
    inside, name = _open(file), str(file.relative_to(home))
    if SHEET in inside:
        return None
    try:
        model = json.loads(inside.get("settings", "{}")).get("model", "")
    except (ValueError, RecursionError, TypeError, AttributeError):  # of another program
        model = ""
    prompt = inside.get("prompt")
    if not isinstance(prompt, str):
        prompt = _prompt_above(file, home)
    return Found(name, file, prompt, str(model), name)


def _open(file: Path) -> dict[Any, Any]:
    """The texts inside an image, which can be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(file) as image:
                return dict(image.info)
    except (OSError, ValueError, SyntaxError, *_BOMBS) as error:
        raise InvalidArgument(f"{str(file)!r} is no image: {error}") from error


def _prompt_above(file: Path, home: Path) -> str | None:
    for above in file.relative_to(home).parents:
        metadata = home / above / "metadata.jsonl"
        if metadata.is_file():
            try:
                found = json.loads(metadata.read_text(encoding="utf-8").partition("\n")[0])
                return str(found["prompt"])
            except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
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
    network = Place(place).network(transformers.AutoModel)
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
        The one whose names of rewards are meant: for "shapes" the reward "clip" is the CLIP of that
        world. By default the one that drew the images, as runs and PNGs of this library tell.
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
    loading = Loading(device=device)
    _ = loading.home  # refused if it is not there
    # The files first: a wrong folder should not wait for large networks.
    listed = [(str(folder), read_images(folder)) for folder in folders]
    wanted = None if reference is None else read_images(reference)
    reward = _rewards_of([one for _, found in listed for one in found], model, loading)
    scored = {name: reward(name) for name in rewards}
    for _, found in listed:
        _check_prompts(found, scored)
    network = None if features is None else load_features(features, device)
    target = make_folder(out)
    real = None
    if wanted is not None:
        _, real = _measure(wanted, {}, network, "reference", progress)
    lines: list[FolderFigures] = []
    first: dict[str, dict[object, float]] = {}
    for folder, found in listed:
        values, seen = _measure(found, scored, network, Path(folder).name, progress)
        shared = [one.key for one in found if all(one.key in kept for kept in first.values())]
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
    table = render(
        Path(__file__).with_name("evaluation.md.jinja"), lines=lines, rewards=list(scored)
    )
    write(target / "evaluation.md", table.encode())
    write(target / "evaluation.json", f"{as_json(list(map(asdict, lines)))}\n".encode())
    return lines


def _rewards_of(
    found: Sequence[Found], model: str | None, loading: Loading
) -> Callable[[str], Reward]:
    """How names of rewards are read: as the model does that was given, or that drew the images."""
    if model is not None:
        return resolve(model, loading).load_reward
    models = {kind_of(one.model): one.model for one in found if one.model}
    if len(models) > 1:
        raise InvalidArgument(
            f"the images are of {', '.join(sorted(models.values()))}, which may mean different "
            "rewards by the same name: say whose are meant, with --model"
        )
    kind, name = next(iter(models.items()), (Pipeline, ""))
    return kind(name, "", loading).load_reward


def _check_prompts(found: Sequence[Found], scored: Mapping[str, Reward]) -> None:
    bare = next((one for one in found if one.prompt is None), None)
    for name, reward in scored.items():
        if reward.takes_prompts and bare is not None:
            raise InvalidArgument(
                f"the reward {name!r} reads prompts, and {str(bare.file)!r} has none: write it "
                'into the PNG as text "prompt", or lay the folder out like GenEval, with '
                "metadata.jsonl"
            )


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


def _batches(found: Sequence[Found]) -> Iterator[tuple[Sequence[Found], Tensor]]:
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
    found: Sequence[Found],
    scored: Mapping[str, Reward],
    network: Callable[[Tensor], Tensor] | None,
    title: str,
    progress: bool | None,
) -> tuple[dict[str, dict[object, float]], Array | None]:
    """Rewards of every file, by reward and key, and features (n, d); each file is read once."""
    values: dict[str, dict[object, float]] = {name: {} for name in scored}
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
                values[name] |= {one.key: float(score) for one, score in zip(part, scores)}
            if network is not None:
                features.append(network(pixels).double().cpu().numpy())
            for _ in part:
                advance()
    return values, np.concatenate(features) if features else None
