"""The folder of a run.

``run.json``
    What it is: the job (all that results depend on), the sampler's table, sizes, versions; and
    the boundaries at which it was taken up again.
``events.jsonl``
    A line for each boundary that was passed: values, weights, ESS, ancestors, costs, seconds.
``estimates/003.png``
    The clean estimates at a boundary, a row of tiles for each population.
``state.safetensors``
    The particles as they came to the last boundary, with what steering knew; goes when it is over.
``result.json``, ``result.safetensors``, images
    What came out. A run with a ``result.json`` is finished.
``error.json``
    Why it stopped, if it did.

Every file is written whole or not at all, a line of events in one piece, and the state of a
boundary before its event. So whatever kills a run, the same call goes on from the last boundary
that it came to, and ends with the same bits.
"""

from __future__ import annotations

import io
import json
import platform
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, fields
from datetime import UTC, datetime
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import InvalidArgument, RunFolderError, frames_of
from ..files import replace
from ..images import contact_sheet, image_name
from ..steering import Costs, Saved, SearchResult, SteeringResult, Step
from ..steering.population import Run
from ..steering.state import under
from .listing import differences, short
from .record import FORMAT, plain, read_events, read_run
from .result import RESULT, tell

__all__ = ["RunFolder", "clear_run"]

_LONGEST = 80  # of a setting in a message
_TILE = 96  # longest side of a clean estimate on a sheet, in pixels
_PACKAGES = ("glass-flows", "torch", "numpy", "diffusers", "transformers")
_KEPT = ("events.jsonl", "state.safetensors", RESULT)
_FIXED = (
    "method", "seed", "table", "populations", "particles", "shape", "prompts", "micro_batch"
)  # fmt: skip
_EMPTY: Mapping[str, Any] = {}


class RunFolder:
    """A run that is written as it goes: the `record` of :func:`glass_flows.steer`.

    Parameters
    ----------
    folder : path
        Made if it is missing. If it holds a part of the same job already, the run goes on there.
    job : dict
        All that results depend on, as JSON: that of a :class:`glass_flows.jobs.Job`, or your own.
        A folder of another job is refused.
    title : str
        For people.
    writes : bool
        False in all processes but one, where several share a run.

    Raises
    ------
    RunFolderError
        It cannot be written, is damaged, or belongs to another job.
    """

    pictures: Callable[[Tensor], list[Any] | None] | None = None

    def __init__(
        self,
        folder: str | Path,
        job: Mapping[str, Any] = _EMPTY,
        *,
        title: str = "",
        writes: bool = True,
    ) -> None:
        self.folder, self.writes = Path(folder), writes
        self.job = plain(json.loads(json.dumps(job, default=repr)))
        self.about: dict[str, Any] = {"format": FORMAT, "title": title, "job": self.job}
        self._goes_on = self._begun()
        if self._goes_on:
            read_run(self.folder)
            found = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            self._match(found)
            self.about = found
            if self.finished:  # it may have been killed between its result and this
                self._clear("state.safetensors")
                self._clear("error.json")
        else:
            self.about["created"] = datetime.now(UTC).isoformat(timespec="seconds")
            self.about["versions"] = _versions()
            self._put("run.json", self.about)
        self._run: Run | None = None
        self._from_state, self._again = False, self._goes_on and not self.finished
        self._since, self._seconds = time.monotonic(), 0.0

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).exists()

    # --- the recorder of a run ------------------------------------------------------------------

    def saved(self) -> Saved | None:
        """The boundary that the run had come to; what was written after it is taken back."""
        file = self.folder / "state.safetensors"
        if not (self._goes_on and file.exists()):  # without a run.json it may be of any job
            self._resumed(0)
            return None
        try:
            with safe_open(file, framework="pt") as opened:
                about = opened.metadata()
                tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118
            saved = Saved(
                index=int(about["index"]),
                x=tensors.pop("x"),
                carried=under("carried.", tensors),
                history=under("history.", tensors),
                costs=Costs(**json.loads(about["costs"])),
            )
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"{str(file)!r} is damaged ({error}); delete it, and the run starts afresh"
            ) from error
        self._resumed(saved.index)
        self._from_state = True
        return saved

    def begin(self, run: Run) -> None:
        self._run, self._goes_on, table = run, True, run.table
        prompts = run.population.prompts
        told = {
            "method": run.tilt.as_json(),
            "seed": run.population.seed,
            "table": json.loads(table.to_json()),
            "table_text": str(table),
            "populations": run.population.count,
            "particles": run.population.particles,
            "returned": run.returns,
            "transitions": len(table),
            "shape": list(run.x.shape[1:]),
            "prompts": [] if prompts is None else list(prompts[:: run.population.particles]),
            "processes": run.shards.count,
            "micro_batch": run.shards.micro_batch,
        }
        now = plain(json.loads(json.dumps(told, default=repr)))
        if self._from_state:  # what the job does not say, and a boundary's state depends on
            fixed = [name for name in _FIXED if name in self.about]
            self._same({n: self.about[n] for n in fixed}, {n: now[n] for n in fixed})
        if not now.items() <= self.about.items():
            self.about |= now
            self._put("run.json", self.about)
        self._clear("error.json")
        self._clear(RESULT)  # it is run again
        self._since = time.monotonic()

    def save(self, saved: Saved) -> None:
        tensors = {"x": saved.x.detach()}
        tensors |= {f"carried.{name}": found for name, found in saved.carried.items()}
        tensors |= {f"history.{name}": found for name, found in saved.history.items()}
        about = {"index": str(saved.index), "costs": json.dumps(asdict(saved.costs))}
        self._put_bytes("state.safetensors", _tensors(tensors, about))

    def step(self, step: Step) -> None:
        run, boundary = self._run, step.boundary
        shown = None
        if self.pictures is not None and run is not None:
            # At the end the samples are whole already.
            own = boundary.x[run.shards.own] if boundary.final else boundary.estimate.untilted
            if shown := self.pictures(own):
                pixels = np.stack([np.asarray(image.convert("RGB")) for image in shown])
                whole = run.shards.gather(torch.from_numpy(pixels))
                shown = [Image.fromarray(array) for array in whole.numpy()]
        if shown:
            self._put_bytes(f"estimates/{boundary.index:03}.png", _sheet(shown, step.ancestors))
        self._seconds += time.monotonic() - self._since
        self._since = time.monotonic()
        event = {
            "boundary": boundary.index,
            "t": boundary.t,
            "final": boundary.final,
            **step.told(),
            "costs": asdict(step.costs),
            "seconds": round(self._seconds, 4),
        }
        line = json.dumps({name: plain(value) for name, value in event.items()})
        with self._writing():
            if self.writes:
                with open(self.folder / "events.jsonl", "ab", buffering=0) as file:
                    file.write(line.encode() + b"\n")

    # --- the end --------------------------------------------------------------------------------

    def finish(
        self, result: SearchResult, files: Sequence[Sequence[str]] = (), **told: Any
    ) -> None:
        """Write what came out.

        Parameters
        ----------
        files : sequence of sequence of str
            Names of images in the folder, (P, N) in the order of the samples.
        told
            What is known beside: "prompts" and "seed" where the run was not recorded,
            "accepted" and "plain_accepted" (:func:`.result.tell`).
        """
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        self._put_bytes("result.safetensors", _tensors(tensors, {"format": "pt"}))
        known = {"prompts": self.job.get("prompts", ()), "seed": self.job.get("seed"), **self.about}
        told = {"prompts": known["prompts"], "seed": known["seed"], **told}
        self._put(RESULT, tell(result, self.job, files=files, **told))
        self._clear("state.safetensors")
        self._clear("error.json")

    def result(self) -> SearchResult:
        """What :meth:`finish` was given.

        Raises
        ------
        RunFolderError
            The run is not finished, or its files are damaged.
        """
        try:
            found = json.loads((self.folder / RESULT).read_text(encoding="utf-8"))
            with safe_open(self.folder / "result.safetensors", framework="pt") as file:
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            costs = Costs(**found["costs"])
            if "log_weights" not in tensors:
                return SearchResult(costs=costs, **tensors)
            return SteeringResult(costs=costs, biases=tuple(found["biases"]), **tensors)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"the run in {str(self.folder)!r} is not finished or damaged: {error}"
            ) from error

    @contextmanager
    def failures(self) -> Iterator[None]:
        """What is raised inside is written, with :meth:`fail`, on its way."""
        try:
            yield
        except RunFolderError:
            raise
        except InvalidArgument as error:
            if self._run is None and not self._goes_on:
                self._clear("run.json")  # nothing was begun that could have failed
            else:
                self.fail(error)
            raise
        except Exception as error:
            self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Write why the run stopped; the next one goes on from where it was."""
        boundary = getattr(getattr(error, "boundary", None), "index", None)
        found = {"type": type(error).__name__, "message": str(error), "boundary": boundary}
        self._put("error.json", found | {"frames": frames_of(error)})

    # --- files ----------------------------------------------------------------------------------

    def _begun(self) -> bool:
        """Whether there is anything of a run to be lost."""
        if not (self.folder / "run.json").exists():
            return False
        return any((self.folder / name).exists() for name in _KEPT)

    def _match(self, about: Mapping[str, Any]) -> None:
        if about.get("format") != FORMAT:
            raise RunFolderError(
                f"{str(self.folder)!r} holds a run of an older version of glass-flows (format "
                f"{about.get('format')!r}, this one writes {FORMAT}): it can be looked at and not "
                "gone on with. Give another folder, or throw it away (--overwrite, clear_run)"
            )
        self._same(about["job"], self.job)

    def _same(self, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Raise, with what differs, unless the job of the folder is this one."""
        if there == here:
            return
        found = differences((there, here), missing="the default")
        shown = "; ".join(
            f"{name}: {short(old, _LONGEST)} there, {short(new, _LONGEST)} here"
            for name, (old, new) in found.items()
        )
        shown = shown or "the version of a setting"
        raise RunFolderError(
            f"{str(self.folder)!r} holds a run of another job, which differs in {shown}. Give "
            "another folder, the same settings to go on with that run, or throw it away "
            "(--overwrite, clear_run)"
        )

    def _resumed(self, index: int) -> None:
        """Keep the events of the boundaries before `index` only, and note that it was taken up."""
        if self._again:
            self.about["resumed"] = [*self.about.get("resumed", ()), index]
            self._put("run.json", self.about)
        lines, seconds = [], 0.0
        for event in read_events(self.folder)[:index]:
            lines.append(json.dumps(event))
            seconds = event["seconds"]
        self._seconds = seconds
        if (self.folder / "events.jsonl").exists():
            self._put_bytes("events.jsonl", "".join(line + "\n" for line in lines).encode())

    def _put(self, name: str, content: Mapping[str, Any]) -> None:
        # A prompt may be any object.
        text = json.dumps(plain(content), indent=1, default=repr, allow_nan=False)
        self._put_bytes(name, text.encode() + b"\n")

    def _put_bytes(self, name: str, content: bytes) -> None:
        if self.writes:
            with self._writing():
                file = self.folder / name
                file.parent.mkdir(parents=True, exist_ok=True)
                replace(file, content)

    def _clear(self, name: str) -> None:
        if self.writes:
            with self._writing():
                (self.folder / name).unlink(missing_ok=True)

    @contextmanager
    def _writing(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise RunFolderError(
                f"cannot write the run in {str(self.folder)!r}: {error}. What was written is "
                "whole: free some space, or give back the right to write, and start the same "
                "again; it goes on where it was"
            ) from error


def clear_run(folder: str | Path) -> None:
    """Throw away what :class:`RunFolder` and `align` have written into a folder, nothing else."""
    home = Path(folder)
    names = [*_KEPT, "result.safetensors", "error.json", "best-first.png"]
    with suppress(RunFolderError):  # a damaged run does not tell its sizes
        run = read_run(home)
        names += [image_name(p, n) for p in range(run.populations) for n in range(run.returned)]
        names += [f"estimates/{k:03}.png" for k in range(run.transitions + 1)]
    for name in names:
        (home / name).unlink(missing_ok=True)
    with suppress(OSError):  # somebody else's files are in it
        (home / "estimates").rmdir()
    (home / "run.json").unlink(missing_ok=True)


def _tensors(tensors: Mapping[str, Tensor], about: dict[str, str]) -> bytes:
    # Copies: the format has no tensors that share memory.
    apart = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    content: bytes = to_bytes(apart, about)
    return content


def _sheet(images: Sequence[Image.Image], like: Tensor) -> bytes:
    """Tiles in P rows of N, as PNG."""
    P, N = like.shape
    rows = [images[p * N : (p + 1) * N] for p in range(P)]
    content = io.BytesIO()
    contact_sheet(rows, _TILE, Image.Resampling.BILINEAR).save(content, "PNG", compress_level=1)
    return content.getvalue()


def _versions() -> dict[str, Any]:
    machine = {"machine": platform.machine(), "threads": torch.get_num_threads()}
    return {"python": platform.python_version(), **_packages(), **machine}


@cache
def _packages() -> dict[str, str]:
    """Read once: a batch makes a folder for every item."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
