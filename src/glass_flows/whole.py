"""Models of diffusers and transformers are whole or refused.

Both libraries draw at random, or leave empty, what a file lacks, and say so in their logs at most.
Here a folder is looked at first (every file that its parts need, readable, of tensors that are
numbers), and what was loaded is held to what the library reports.
"""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

_LIBRARIES = ("diffusers", "transformers")
_INDEX = "model_index.json"


def _weights(name: str) -> Sequence[Sequence[str]]:
    """In one file or in several."""
    return [(f"{name}.safetensors",), (f"{name}.safetensors.index.json",)]


_TOKENIZERS = (
    ("tokenizer.json",), ("vocab.json", "merges.txt"), ("spiece.model",), ("tokenizer.model",),
    ("vocab.txt",),
)  # fmt: skip
_PROCESSORS = (("processor_config.json",), ("preprocessor_config.json",))
# What a class needs, by the name of a base: for each need, sets of files of which one is there.
_NEEDS: Mapping[str, Sequence[Sequence[Sequence[str]]]] = {
    "ImageProcessingMixin": (_PROCESSORS,),
    "ProcessorMixin": (_PROCESSORS, [("tokenizer_config.json",)], _TOKENIZERS),
    "PreTrainedTokenizerBase": ([("tokenizer_config.json",)], _TOKENIZERS),
    "PreTrainedModel": ([("config.json",)], _weights("model")),
    "ModelMixin": ([("config.json",)], _weights("diffusion_pytorch_model")),
    "SchedulerMixin": ([("scheduler_config.json",)],),
}
_NETWORKS = ("PreTrainedModel", "ModelMixin")
_NUMBERS = ("F", "BF")  # dtypes of safetensors that begin so are of real numbers


class NotWhole(ValueError):
    """A file of a model is missing or damaged, or lacks tensors; the message names it."""


def load_whole(kind: Any, place: str, subfolder: str = "", **options: Any) -> Any:
    """``kind.from_pretrained``, of which nothing was missing or of another shape.

    Parameters
    ----------
    kind : type
        A network of diffusers or transformers.
    place, subfolder : str
        A folder or hub id, and where in it.

    Raises
    ------
    NotWhole
        And whatever the library raises.
    """
    home = Path(place) / subfolder
    if home.is_dir():
        check_files(home, kind)
    with quiet():
        network, report = kind.from_pretrained(
            place, subfolder=subfolder, use_safetensors=True, output_loading_info=True,
            ignore_mismatched_sizes=True, **options,
        )  # fmt: skip
    files = sorted(home.glob("*.safetensors"))
    name = ", ".join(map(str, files[:3])) or f"{place} {subfolder}".strip()
    shapes = [str(entry[0]) for entry in report.get("mismatched_keys") or ()]
    for what, tensors in (("lacks", report["missing_keys"]), ("has of another shape", shapes)):
        if found := sorted(tensors):
            raise NotWhole(f"{name} {what} weights of a {kind.__name__}: {', '.join(found[:8])}")
    return network


def load_parts(kind: Any, folder: str, **options: Any) -> dict[str, Any]:
    """The networks of a saved pipeline by their names, each :func:`load_whole`.

    Parameters
    ----------
    kind : type
        ``DiffusionPipeline``, to whose ``from_pretrained`` they can be handed.
    folder : str
        Of which all files are looked at before any is loaded.
    options
        Such as "dtype".
    """
    home = Path(folder)
    _check_file(home / _INDEX)
    index = kind.load_config(folder, local_files_only=True)
    parts = {name: _named(*entry) for name, entry in index.items() if _is_part(entry)}
    for name, part in parts.items():
        check_files(home / name, part)
    networks = {name: part for name, part in parts.items() if _bases(part) & set(_NETWORKS)}
    return {name: load_whole(part, folder, name, **options) for name, part in networks.items()}


def check_files(folder: Path, *kinds: Any) -> None:
    """Raise NotWhole unless a folder has what classes of `kinds` read from it, undamaged."""
    if not folder.is_dir():
        raise NotWhole(f"{folder} is missing")
    for file in sorted(folder.iterdir()):
        if file.suffix in (".json", ".safetensors"):
            _check_file(file)
    for kind in kinds:
        for base in sorted(_bases(kind) & set(_NEEDS)):
            for need in _NEEDS[base]:
                if not any(all((folder / name).is_file() for name in names) for names in need):
                    told = " or ".join(
                        " and ".join(str(folder / n) for n in names) for names in need
                    )
                    raise NotWhole(f"{told} is missing, which a {kind.__name__} needs")


def _check_file(file: Path) -> None:
    try:
        if file.suffix == ".safetensors":
            _check_tensors(file)
            return
        found = json.loads(file.read_text(encoding="utf-8"))
        if file.name.endswith(".safetensors.index.json"):
            for shard in sorted(set(found["weight_map"].values())):
                if not (file.parent / shard).is_file():
                    raise NotWhole(f"{file.parent / shard} is missing, which {file.name} names")
    except FileNotFoundError:
        raise NotWhole(f"{file} is missing") from None
    except NotWhole:
        raise
    except (OSError, ValueError, LookupError, TypeError, RecursionError, SafetensorError) as error:
        raise NotWhole(f"{file} is damaged: {error}") from error


def _check_tensors(file: Path) -> None:
    """Its weights are real numbers, unless the model says that it is quantised."""
    config = file.with_name("config.json")
    if config.is_file() and "quantization_config" in config.read_text(encoding="utf-8"):
        return
    with safe_open(file, framework="pt") as opened:
        for name in opened.keys():  # noqa: SIM118
            kind = opened.get_slice(name).get_dtype()
            if name.endswith(("weight", "bias")) and not kind.startswith(_NUMBERS):
                raise NotWhole(f"{file} has {name} as {kind}: weights are floating-point numbers")


def _is_part(entry: Any) -> bool:
    return isinstance(entry, (list, tuple)) and len(entry) == 2 and all(entry)


def _named(library: str, name: str) -> Any:
    """A class of diffusers or transformers; None for what is of no such library."""
    if library not in _LIBRARIES:
        return None
    return getattr(importlib.import_module(library), name, None)


def _bases(kind: Any) -> set[str]:
    return {base.__name__ for base in kind.__mro__} if isinstance(kind, type) else set()


@contextmanager
def quiet() -> Iterator[None]:
    """Without the libraries' reports, which are read instead, and bars that nobody waits for."""
    loggers = []
    for name in _LIBRARIES:
        with suppress(ImportError):  # rewards need no diffusers
            loggers.append(importlib.import_module(name).utils.logging)
    before = [log.get_verbosity() for log in loggers]
    barred = [log for log in loggers if not sys.stderr.isatty() and log.is_progress_bar_enabled()]
    for log in loggers:
        log.set_verbosity_error()
    for log in barred:
        log.disable_progress_bar()
    try:
        yield
    finally:
        for log, level in zip(loggers, before):
            log.set_verbosity(level)
        for log in barred:
            log.enable_progress_bar()
