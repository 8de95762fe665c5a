"""`glass-flows check-model`: what works of a pipeline, tried at its smallest size, as a table."""

from __future__ import annotations

import inspect
import json
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from dataclasses import replace as replaced
from numbers import Integral
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import Tensor

from .. import __version__
from ..errors import MOST_PIXELS, InvalidArgument, UnknownName, check_count, shown
from ..files import replace
from ..pixels import opened
from ..progress import progress_bar
from ..runs.listing import clean
from .job import Loading
from .models import Model, Pipeline, resolve

if TYPE_CHECKING:
    from .trials import Bench, Trial

__all__ = ["ModelCheck", "Row", "check_model"]

YES, NO, NONE = "yes", "no", "-"
_PROMPTS = ("two blue squares", "a red circle")


@dataclass(frozen=True)
class Row:
    """What was tried, and what became of it.

    Attributes
    ----------
    what : str
    works : str
        "yes"; "no"; or "-" where it does not apply to this pipeline, or could not be measured.
    told : str
        What was seen; of what does not work the first line of the error, or what is wrong.
    figures : dict
        Numbers by name, such as relative differences, bytes and seconds.
    """

    what: str
    works: str
    told: str
    figures: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, repr=False)
class ModelCheck:
    """What works of a pipeline; prints as a table.

    Attributes
    ----------
    facts : dict of str
        As what it was recognised, and how it was tried.
    rows : tuple of Row
    notes : tuple of str
        What was warned of on the way.
    """

    facts: Mapping[str, str]
    rows: tuple[Row, ...]
    notes: tuple[str, ...] = ()

    @property
    def works(self) -> bool:
        """Whether no row says no."""
        return all(row.works != NO for row in self.rows)

    def __getitem__(self, what: str) -> Row:
        """The row of this name."""
        for row in self.rows:
            if row.what == what:
                return row
        raise UnknownName(f"no row {what!r}: {', '.join(row.what for row in self.rows)}")

    def __repr__(self) -> str:
        wide = max(map(len, self.facts), default=0)
        facts = [f"{name:{wide}}  {told}" for name, told in self.facts.items()]
        wide = max((len(row.what) for row in self.rows), default=0)
        rows = [f"{row.what:{wide}}  {row.works:3}  {row.told}" for row in self.rows]
        return clean("\n".join([*facts, "", *rows, "", *self.notes, self.summary()]))

    def summary(self) -> str:
        """How many rows work, in a line."""
        count = Counter(row.works for row in self.rows)
        return f"works: {count[YES]}, does not: {count[NO]}, does not apply: {count[NONE]}"

    def as_json(self) -> dict[str, Any]:
        """Strict JSON: facts, rows with their figures, notes."""
        rows = []
        for row in self.rows:
            figures = {n: v if math.isfinite(v) else None for n, v in row.figures.items()}
            rows.append({**asdict(row), "figures": figures})
        return {
            "version": 1, "glass_flows": __version__, "works": self.works,
            "facts": dict(self.facts), "rows": rows, "notes": list(self.notes),
        }  # fmt: skip

    def save(self, file: str | Path) -> Path:
        """Write :meth:`as_json` to a file; its folder is made if it is missing."""
        text = json.dumps(self.as_json(), indent=1, ensure_ascii=False, allow_nan=False)
        place = Path(file)
        place.parent.mkdir(parents=True, exist_ok=True)
        replace(place, f"{text}\n".encode())
        return place


def check_model(
    model: Any,
    prompt: Any = None,
    *,
    size: int | None = None,
    decode: Callable[[Tensor], Tensor] | None = None,
    loading: Loading | None = None,
    progress: bool | None = None,
    announce: Callable[[str], None] = lambda text: None,
    **call: Any,
) -> ModelCheck:
    """Try a pipeline with two transitions of two evaluations, and say what works.

    Every row is compared with what must come out: the same samples drawn in two ways, or a choice
    with the rewards it was made by. A row that fails does not stop the others.

    Parameters
    ----------
    model : DiffusionPipeline, Model or str
        A pipeline as the user has it; or the name of one as of `align`: a folder, a hub id,
        "shapes". It is not changed.
    prompt : str or list, optional
        One or two of them, class labels for DiT; of its own without them.
    size : int, optional
        Height and width of the pictures in pixels. Without it the smallest of 8, 16 and 32 latents
        at which it draws, else the pipeline's own.
    decode : callable, optional
        Clean latents to images (B, 3, H, W) in [0, 1], as of :func:`glass_flows.steer_pipeline`.
    loading : Loading, optional
        How a pipeline is loaded by its name.
    progress : bool, optional
        A bar; by default after two seconds, on a terminal or in a notebook.
    announce : callable, optional
        Is told what goes on, a line each.
    call
        The pipeline's own call arguments. Images that an adapter takes are check-model's own
        without them, as is the strength of image-to-image: 0.5, one of two transitions.

    Returns
    -------
    ModelCheck

    Raises
    ------
    InvalidArgument, UnknownName
        There is no such pipeline, or its call has no such argument.

    Example
    -------
    >>> print(check_model(pipe))
    >>> check_model("shapes").works
    """
    bench = _bench(model, prompt, size, decode, loading, announce, call)
    from .trials import TRIALS

    rows: list[Row] = []
    with (
        warnings.catch_warnings(record=True) as warned,
        progress_bar(len(TRIALS), progress, "trying") as advance,
    ):
        warnings.simplefilter("always")
        for what, trial in TRIALS.items():
            advance.say(what)
            rows.append(_tried(what, trial, bench))
            advance()
        facts = _facts(bench)
    ours = (str(one.message) for one in warned if one.category is UserWarning)
    return ModelCheck(facts, tuple(_once(rows)), tuple(dict.fromkeys(ours)))


def _tried(what: str, trial: Trial, bench: Bench) -> Row:
    from .trials import NEED_AN_ADAPTER, NotHere, first_line

    bench.figures = {}
    try:
        works, told = YES, trial(bench)
    except NotHere as error:
        works, told = NONE, first_line(error)
    except Exception as error:  # whatever goes wrong in the code of others is what is looked for
        refused = isinstance(error, InvalidArgument) and what in NEED_AN_ADAPTER
        works = NONE if refused and bench.family is None else NO
        told = first_line(error)
    return Row(what, works, told, bench.figures)


def _once(rows: Sequence[Row]) -> Iterator[Row]:
    """A reason that sampling has already is not said again."""
    for row in rows:
        again = row is not rows[0] and row.works != YES and row.told == rows[0].told
        yield replaced(row, told=f"as {rows[0].what}") if again else row


# --- what it is -----------------------------------------------------------------------------------


def _bench(
    model: Any,
    prompt: Any,
    size: int | None,
    decode: Any,
    loading: Loading | None,
    announce: Callable[[str], None],
    call: dict[str, Any],
) -> Bench:
    """The pipeline of a name, its prompts and its call, looked at before anything is drawn."""
    prompts, call = _listed(prompt), opened(call)  # own loops take no files
    if size is not None:
        if given := {"height", "width"} & set(call):
            raise InvalidArgument(f"size is height and width: leave {' and '.join(given)} out")
        check_count("size", size, most=MOST_PIXELS)
    if isinstance(model, str):
        model = resolve(model, loading, announce)
    elif loading is not None:
        raise InvalidArgument("loading: only for a model by its name; this one is loaded")
    read: Callable[[Sequence[Any]], Sequence[Any]] = tuple
    pipe = model
    if isinstance(model, Model) and not isinstance(model, Pipeline):
        raise InvalidArgument(
            f"check_model tries diffusers pipelines, and {model.name!r} is none: give a folder, a "
            "hub id or shapes"
        )
    from ..diffusers.pipeline import check_arguments  # after what needs no diffusers
    from ..diffusers.refusals import check_pipeline
    from .trials import Bench, square

    if isinstance(model, Pipeline):
        pipe, call, read = model.pipe, {**model.call, **call}, _reader(model)
    if not hasattr(pipe, "components"):
        check_pipeline(pipe)  # which says what it is instead
    bench = Bench(pipe, _two(read(prompts), read(_own_prompts(pipe))), call, decode)
    if size is not None:
        bench.call = {**call, **square(size, bench.areas)}
    check_arguments(pipe, bench.call, bench.family)
    bench.own = _own_arguments(bench)
    bench.call = {**bench.own, **bench.call}
    if size is not None and bench.family is not None:
        # It refuses a size that is no multiple of what it draws.
        bench.family(pipe, **bench.call)
    return bench


def _own_arguments(bench: Bench) -> dict[str, Any]:
    """Images for an adapter that takes some, where none are given, and what goes with them."""
    from .trials import SAMPLER, own_images

    options = {} if bench.family is None else dict(bench.family.options)
    found = {name: one for name, one in own_images().items() if name in options}
    if options.get("strength", 1.0) < 1.0:  # of two transitions one has to be left out
        found["strength"] = 1 - 1 / SAMPLER.transitions
    if "_auto_resize" in options and "image" not in bench.call:  # to a million pixels
        found["_auto_resize"] = False
    return {name: one for name, one in found.items() if name not in bench.call}


def _listed(prompt: Any) -> list[Any]:
    given = [] if prompt is None else [prompt] if isinstance(prompt, (str, Integral)) else prompt
    listed = isinstance(given, Sequence) and len(given) <= 2
    if (
        not listed
        or not all(isinstance(one, (str, Integral)) for one in given)
        or len(set(given)) < len(given)
    ):
        raise InvalidArgument(f"give one prompt, or two that differ, got {shown(prompt)}")
    return [*given]


def _reader(model: Pipeline) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Prompts as this model takes them."""

    def read(prompts: Sequence[Any]) -> Sequence[Any]:
        if not prompts or prompts[0] is None:
            return prompts
        return model.as_asked(model.read_prompts([str(one) for one in prompts]))

    return read


def _own_prompts(pipe: Any) -> tuple[Any, Any]:
    takes = inspect.signature(pipe.__call__).parameters
    if "class_labels" in takes:
        return (0, 1)
    return _PROMPTS if "prompt" in takes else (None, None)


def _two(given: Sequence[Any], own: Sequence[Any]) -> tuple[Any, Any]:
    """Those that were given, and else ours."""
    first, second = [*given, *(one for one in own if one is None or one not in given)][:2]
    return first, second


def _facts(bench: Bench) -> dict[str, str]:
    """As what a pipeline was recognised, and how it was tried, a line each."""
    from .trials import SAMPLER, first_line

    facts = {
        "pipeline": type(bench.pipe).__name__,
        "run by": "its own loop, steered from inside: it has no adapter"
        if bench.family is None
        else f"our executor, through the adapter {bench.family.__name__}",
        "network": _network(bench),
    }
    told: dict[str, Callable[[Bench], str]] = {
        "path": _path, "guidance": _guidance, "size": _size, "few steps": _few_steps,
    }  # fmt: skip
    for name, tell in told.items():
        try:
            fact = tell(bench)
        except Exception as error:  # a fact that cannot be told is one of its own
            fact = f"not known: {first_line(error)}"
        if fact:
            facts[name] = fact
    first, second = bench.prompts
    sizes = f"{SAMPLER.transitions} transitions of {SAMPLER.steps} evaluations"
    words = "no prompt" if first is None else f"the prompts {first!r} and {second!r}"
    more = [n if n.endswith("image") else f"{n}={value}" for n, value in bench.own.items()]
    ours = f"; of check-model's own {', '.join(more)}" if more else ""
    facts["tried with"] = f"{sizes}, {words}{ours}"
    return facts


def _network(bench: Bench) -> str:
    told = []
    for network in bench.networks:
        weights = list(network.parameters())
        dtypes = {str(one.dtype).removeprefix("torch.") for one in weights}
        count = sum(one.numel() for one in weights)
        told.append(f"{type(network).__name__}, {count:,} parameters in {', '.join(dtypes)}")
    return f"{'; '.join(told) or 'none'}, on {bench.pipe._execution_device}"


def _path(bench: Bench) -> str:
    from ..diffusers import Schedule
    from ..diffusers.parts import rounds_its_clock
    from ..diffusers.scheduler import config_of

    schedule = Schedule.of(config_of(bench.pipe.scheduler), rounds_its_clock(bench.pipe))
    kind = type(bench.pipe.scheduler).__name__
    return f"{schedule.path.name}, it predicts {schedule.prediction}, as {kind} says"


def _guidance(bench: Bench) -> str:
    """How classifier-free guidance is had, as far as it is known."""
    config = getattr(next(iter(bench.networks), None), "config", {})
    embedded = config.get("guidance_embeds") or config.get("time_cond_proj_dim") is not None
    inside = ", and a scale that its distilled network takes as an input" if embedded else ""
    if bench.passes == 1:
        return inside[6:] if inside else "none"
    scale = "" if bench.family is None else f" of {bench.adapter.cfg_scale:g}"
    return f"classifier-free{scale}: {bench.passes} passes for an evaluation{inside}"


def _size(bench: Bench) -> str:
    from .trials import first_picture

    result = bench.plain()
    shape = tuple(result.result.samples.shape[2:])
    image, frames = first_picture(result)
    told = f"{image.width} x {image.height} pixels, latents {shape}"
    told = f"{frames} frames of {told}" if frames else told
    return f"{told}; not {bench.refused}" if bench.refused else told


def _few_steps(bench: Bench) -> str:
    from ..diffusers.few_steps import few_steps_of

    kind = few_steps_of(bench.pipe)
    if kind is None:
        return ""
    return f"{kind.name}: use steps=1 with rho={kind.rho} (docs/few_steps.md)"
