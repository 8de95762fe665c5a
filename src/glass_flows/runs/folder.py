"""The folder of a run.

``run.json``
    What it is: the job (all that results depend on), the sampler's table, sizes, versions; and
    the boundaries at which it was taken up again.
``events.jsonl``
    A line for each boundary that was passed: values, weights, ESS, ancestors, costs, seconds.
``estimates/003.png``
    The clean estimates at a boundary, a row of tiles for each population; of refinement what each
    move proposed.
``best-000.png``
    Of refinement, for each of the first 32 populations: the best sample that was seen so far. It
    stays beside what is returned, which an exchange may have moved away from it.
``state.safetensors``
    The particles as they came to the last boundary, with what steering knew, the events so far, and
    whose they are: job, weights, threads, versions. Goes when it is over.
``result.json``, ``result.safetensors``, images
    What came out. A run with a ``result.json`` is finished.
``error.json``
    Why it stopped, if it did.

Every file is written whole or not at all, a line of events in one piece, and the state of a
boundary before its event. So whatever kills a run, the same call goes on from the last boundary
that it came to, and ends with the same bits: the state alone is enough, and what the other files
say is written again from it. One process at a time writes into the folder.
"""

from __future__ import annotations

import io
import json
import math
import platform
import re
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
from PIL.PngImagePlugin import PngInfo
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_bytes
from torch import Tensor

from ..errors import InvalidArgument, OtherJob, RunFolderError, frames_of
from ..files import append, replace
from ..folders import FULL, Hold
from ..pixels import contact_sheet
from ..steering import Costs, RefinedResult, Saved, SearchResult, SteeringResult, Step
from ..steering.population import Run
from ..steering.state import under
from ..steering.strength import Strength
from ..stops import keep
from .listing import apart
from .record import FORMAT, plain, read_events, read_run
from .result import RESULT, tell

__all__ = ["RunFolder", "clear_run"]

_TILE = 96  # longest side of a clean estimate on a sheet, in pixels
_PACKAGES = ("glass-flows", "torch", "numpy", "diffusers", "transformers")
_STATE = "state.safetensors"
_BEST = 32  # populations whose best sample so far has a picture
_KEPT = ("events.jsonl", _STATE, RESULT)
_FIXED = (
    "method", "seed", "table", "populations", "particles", "shape", "prompts", "micro_batch", "also"
)  # fmt: skip
_BY_NAME = ("also", "paths")  # fields of a result that hold tensors by name
_ANOTHER = "holds a run of another job, which differs in"
_ELSEWHERE = "holds a run that was begun where its bits come out otherwise:"
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
    weights : dict
        Hashes of the files that the bits depend on, by what they are for; a run of others is
        another job.
    patience : float
        Seconds to wait for another process that writes into the folder, and may be dying.

    Raises
    ------
    RunFolderError
        It cannot be written, or is damaged.
    FolderInUse, OtherJob
        Another process writes into it; it belongs to another job.
    """

    pictures: Callable[[Tensor], list[Any] | None] | None = None

    def __init__(
        self,
        folder: str | Path,
        job: Mapping[str, Any] = _EMPTY,
        *,
        title: str = "",
        writes: bool = True,
        weights: Mapping[str, str] = _EMPTY,
        patience: float = 0.0,
    ) -> None:
        self.folder, self.writes, self.patience = Path(folder), writes, patience
        self.job = plain(json.loads(json.dumps(job, default=repr)))
        self.about: dict[str, Any] = {"format": FORMAT, "title": title, "job": self.job}
        self.about["weights"] = dict(weights)
        self._hold()
        self._goes_on = self._begun()
        if not self.finished and (self.folder / _STATE).exists():
            whose, _ = self._read_state(tensors=False)
            self._match({"format": FORMAT, **whose})
        if self._goes_on and (self.folder / "run.json").exists():
            read_run(self.folder)
            found = json.loads((self.folder / "run.json").read_text(encoding="utf-8"))
            self._match(found)
            self.about = found
            if self.finished:  # it may have been killed between its result and this
                self._clear(_STATE)
                self._clear("error.json")
        else:
            self.about["created"] = datetime.now(UTC).isoformat(timespec="seconds")
            self.about["versions"] = {"python": platform.python_version(), **_circumstances()}
            self._put("run.json", self.about)
        self._run: Run | None = None
        self._whose: dict[str, Any] | None = None  # of the state that was gone on from
        self._events: list[str] = []
        self._best: list[float] = []  # of refinement, by population
        self._again = self._goes_on and not self.finished
        self._since, self._seconds = time.monotonic(), 0.0

    def _hold(self) -> None:
        """Nobody else writes here, until this is over or has failed, or is gone."""
        if self.writes:
            with self._writing():
                self._held = Hold(self.folder, self.patience)

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT).exists()

    # --- the recorder of a run ------------------------------------------------------------------

    def saved(self) -> Saved | None:
        """The boundary that the run had come to; what was written after it is taken back."""
        self._whose = None
        if not (self._goes_on and (self.folder / _STATE).exists()):
            self._resumed(0, [])
            return None
        whose, tensors = self._read_state()
        self._same(_ELSEWHERE, whose["circumstances"], _circumstances())
        try:
            saved = Saved(
                index=int(whose["index"]),
                x=tensors.pop("x"),
                carried=under("carried.", tensors),
                history=under("history.", tensors),
                costs=Costs(**whose["costs"]),
            )
            events = [json.dumps(json.loads(line)) for line in whose["events"]]
            if len(events) != saved.index:
                raise ValueError(f"{len(events)} events before boundary {saved.index}")
        except (ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error
        self._resumed(saved.index, events)
        self._whose = whose
        return saved

    def _read_state(self, *, tensors: bool = True) -> tuple[dict[str, Any], dict[str, Tensor]]:
        """Whose the state is and how far it has come, and its tensors."""
        try:
            with safe_open(self.folder / _STATE, framework="pt") as opened:
                whose = json.loads(opened.metadata()["run"])
                for name in ("job", "weights", "circumstances", "index", "costs", "events"):
                    whose[name]
                names = opened.keys() if tensors else ()
                return whose, {name: opened.get_tensor(name) for name in names}
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise self._damaged(error) from error

    def _damaged(self, error: Exception) -> RunFolderError:
        file = str(self.folder / _STATE)
        return RunFolderError(
            f"{file!r} is damaged ({error}); delete it, and the run starts afresh"
        )

    def begin(self, run: Run) -> None:
        self._run, self._goes_on, table = run, True, run.table
        prompts = run.population.prompts
        told = {
            "method": run.asked.as_json(),
            "scale": run.scale,
            "pilot": None if run.found is None else asdict(run.found),
            "seed": run.population.seed,
            "table": json.loads(table.to_json()),
            "table_text": str(table),
            "populations": run.population.count,
            "particles": run.population.particles,
            "returned": run.returns,
            "transitions": run.length,
            "shape": list(run.x.shape[1:]),
            "prompts": [] if prompts is None else list(prompts[:: run.population.particles]),
            "processes": run.shards.count,
            "micro_batch": run.shards.micro_batch,
            **({"also": list(run.beside)} if run.beside else {}),
        }
        now = plain(json.loads(json.dumps(told, default=repr)))
        fixed = {name: now[name] for name in _FIXED if name in now}
        if self._whose is not None:  # what the job does not say, and a boundary's state depends on
            self._same(_ANOTHER, self._whose["fixed"], fixed)
        self._whose = {
            "job": self.job,
            "weights": self.about["weights"],
            "circumstances": _circumstances(),
            "fixed": fixed,
        }
        if self.writes and not self._held.release.alive:  # the record is used again
            self._hold()
        if not now.items() <= self.about.items():
            self.about |= now
            self._put("run.json", self.about)
        self._clear("error.json")
        self._clear(RESULT)  # it is run again
        if torch.cuda.is_available():
            torch.cuda.reset_peak_memory_stats()
        self._since = time.monotonic()

    def save(self, saved: Saved) -> None:
        tensors = {"x": saved.x.detach()}
        tensors |= {f"carried.{name}": found for name, found in saved.carried.items()}
        tensors |= {f"history.{name}": found for name, found in saved.history.items()}
        so_far = {"index": saved.index, "costs": asdict(saved.costs), "events": self._events}
        about = {"run": json.dumps({**(self._whose or {}), **so_far})}
        self._put_bytes(_STATE, _tensors(tensors, about))
        if self._run is not None:
            keep("run", f"up to boundary {saved.index} of {self._run.length}")

    def step(self, step: Step) -> None:
        run, boundary = self._run, step.boundary
        shown = None
        if self.pictures is not None and run is not None:
            shown = self.pictures(step.pictured(run.shards.own))
            if shown:
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
        if torch.cuda.is_available():
            event["peak_memory"] = torch.cuda.max_memory_allocated()
        event = {name: plain(value) for name, value in event.items()}
        self._keep_best(event, shown or [])
        self._events.append(json.dumps(event))
        with self._writing():
            if self.writes:
                append(self.folder / "events.jsonl", self._events[-1].encode() + b"\n")

    def _keep_best(self, event: Mapping[str, Any], shown: Sequence[Image.Image]) -> None:
        """The best samples so far of refinement, wherever a move has found a better one.

        Decided by the events alone, so that a run that is taken up leaves the same files.
        """
        found = _accepted(event)
        for p, row in enumerate(found):
            n = max(range(len(row)), key=row.__getitem__)
            before = self._best[p] if self._best else -math.inf
            if shown and p < _BEST and row[n] > before:
                content, info = io.BytesIO(), PngInfo()
                info.add_itxt("reward", repr(row[n]))
                shown[p * len(row) + n].save(content, "PNG", pnginfo=info)
                self._put_bytes(f"best-{p:03}.png", content.getvalue())
        self._best = _highest(self._best, found)

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
            "accepted", "plain_accepted", "plain", "plain_files" and "videos"
            (:func:`.result.tell`).
        """
        values = {field.name: getattr(result, field.name) for field in fields(result)}
        tensors = {name: value for name, value in values.items() if isinstance(value, Tensor)}
        for name in _BY_NAME:
            tensors |= {f"{name}.{one}": value for one, value in values[name].items()}
        self._put_bytes("result.safetensors", _tensors(tensors, {"format": "pt"}))
        known = {"prompts": self.job.get("prompts", ()), "seed": self.job.get("seed"), **self.about}
        told = {"prompts": known["prompts"], "seed": known["seed"], **told}
        self._put(RESULT, tell(result, self.job, files=files, **told))
        self._clear(_STATE)
        self._clear("error.json")
        self._over()

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
            beside: dict[str, Any] = {name: under(f"{name}.", tensors) for name in _BY_NAME}
            beside |= {
                "costs": Costs(**found["costs"]),
                "warnings": tuple(found.get("warnings", ())),
                "stopped": found.get("stopped"),
            }
            if (strength := found.get("strength")) is not None:
                beside["strength"] = Strength.from_json(strength)
            own = {name: tensor for name, tensor in tensors.items() if "." not in name}
            if "log_weights" not in own:
                return SearchResult(**beside, **own)
            kind = RefinedResult if "acceptance" in own else SteeringResult
            return kind(biases=tuple(found["biases"]), **beside, **own)
        except (SafetensorError, OSError, ValueError, KeyError, TypeError) as error:
            raise RunFolderError(
                f"the run in {str(self.folder)!r} is not finished or damaged: {error}"
            ) from error

    def check(self) -> None:
        """Look whether a finished run is whole, before it is taken for done.

        Raises
        ------
        RunFolderError
            A file of its result is missing or damaged.
        """
        self.result()
        file = self.folder / "events.jsonl"
        try:
            events = read_events(self.folder)
            whole = [event["boundary"] for event in events] == list(range(len(events)))
            recorded = "transitions" in self.about  # not in a pipeline's own loop
            if recorded and not (whole and events and events[-1]["final"]):
                raise ValueError("boundaries are missing")
            every = [one for row in read_run(self.folder).samples for one in row]
            for name in filter(None, (held for one in every for held in (one.file, one.video))):
                file = self.folder / name
                with Image.open(file) as image:
                    image.verify()
        except (OSError, ValueError, KeyError, TypeError, SyntaxError) as error:
            raise RunFolderError(
                f"{str(file)!r} of a finished run is missing or damaged ({error}): put it back, or "
                "draw the run again (--overwrite, clear_run)"
            ) from error

    @contextmanager
    def failures(self) -> Iterator[None]:
        """What is raised inside is written, with :meth:`fail`, on its way.

        Except for what is said of settings before anything is drawn: of that nothing is left.
        """
        try:
            yield
        except RunFolderError:
            raise
        except Exception as error:
            if self._run is None and not self._goes_on and isinstance(error, InvalidArgument):
                self._clear("run.json")  # nothing was begun that could have failed
                self._over()
            else:
                self.fail(error)
            raise

    def fail(self, error: BaseException) -> None:
        """Write why the run stopped; the next one goes on from where it was."""
        boundary = getattr(getattr(error, "boundary", None), "index", None)
        found = {"type": type(error).__name__, "message": str(error), "boundary": boundary}
        self._put("error.json", found | {"frames": frames_of(error)})
        self._over()

    def _over(self) -> None:
        """Others may write here."""
        keep("run", None)
        if self.writes:
            self._held.release()

    # --- files ----------------------------------------------------------------------------------

    def _begun(self) -> bool:
        """Whether there is anything of a run to be lost."""
        about = (self.folder / "run.json").exists()
        if self.finished and not about:
            raise RunFolderError(
                f"{str(self.folder)!r} holds a result.json without the run.json that says whose it "
                "is: give another folder, or throw it away (--overwrite, clear_run)"
            )
        if about:
            return any((self.folder / name).exists() for name in _KEPT)
        return (self.folder / _STATE).exists()

    def _match(self, about: Mapping[str, Any]) -> None:
        if about.get("format") != FORMAT:
            raise RunFolderError(
                f"{str(self.folder)!r} holds a run of an older version of glass-flows (format "
                f"{about.get('format')!r}, this one writes {FORMAT}): it can be looked at and not "
                "gone on with. Give another folder, or throw it away (--overwrite, clear_run)"
            )
        there, here = about.get("weights", {}), self.about["weights"]
        known = there.keys() & here.keys()  # those of a hub are not, before they are loaded
        self._same(
            _ANOTHER,
            {**about["job"], "weights": {name: there[name] for name in known}},
            {**self.job, "weights": {name: here[name] for name in known}},
        )

    def _same(self, what: str, there: Mapping[str, Any], here: Mapping[str, Any]) -> None:
        """Raise, with what differs, unless that of the folder is this one."""
        if there == here:
            return
        shown = apart(there, here) or "the version of a setting"
        raise OtherJob(
            f"{str(self.folder)!r} {what} {shown}. Give another folder, the same settings to go "
            "on with that run, or throw it away (--overwrite, clear_run)"
        )

    def _resumed(self, index: int, events: list[str]) -> None:
        """Write the events of the boundaries before `index`, and note that it was taken up."""
        self._events, self._best = events, []
        for event in map(json.loads, events):
            self._best = _highest(self._best, _accepted(event))
        self._seconds = float(json.loads(events[-1])["seconds"]) if events else 0.0
        if self._again:
            self.about["resumed"] = [*self.about.get("resumed", ()), index]
            self._put("run.json", self.about)
        if events or (self.folder / "events.jsonl").exists():
            self._put_bytes("events.jsonl", "".join(line + "\n" for line in events).encode())

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


def disk_is_full(error: BaseException) -> bool:
    """Whether it was raised since nothing more can be written anywhere near."""
    return isinstance(error.__cause__, OSError) and error.__cause__.errno in FULL


def clear_run(folder: str | Path) -> None:
    """Throw away what a run has written into a folder, its images included, and nothing else.

    Raises
    ------
    FolderInUse
        Another process writes into it.
    """
    home = Path(folder)
    if not home.is_dir():
        return
    hold = Hold(home)
    for name in _images(home):
        (home / name).unlink(missing_ok=True)
    for best in home.glob("best-*.png"):
        if re.fullmatch("best-[0-9]{3,}", best.stem):
            best.unlink()
    for sheet in (home / "estimates").glob("*.png"):
        if re.fullmatch("[0-9]{3,}", sheet.stem):
            sheet.unlink()
    with suppress(OSError):  # somebody else's files are in it
        (home / "estimates").rmdir()
    for name in (*_KEPT, "result.safetensors", "error.json", "best-first.png", "run.json"):
        (home / name).unlink(missing_ok=True)
    hold.release()


def _images(home: Path) -> set[str]:
    """Those of a run's sizes and those that its result tells, whatever either is worth."""
    found = set[str]()
    with suppress(OSError, ValueError, LookupError, TypeError):
        about = json.loads((home / "run.json").read_text(encoding="utf-8"))
        P, N = about["populations"], about["returned"]
        for file in (*home.glob("*-*.png"), *home.glob("*-*.webp")):
            place = re.fullmatch("(?:plain-)?([0-9]{3,})-([0-9]{2,})", file.stem)
            if place and int(place[1]) < P and int(place[2]) < N:
                found.add(file.name)
    with suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
        told = json.loads((home / RESULT).read_text(encoding="utf-8"))
        if told.get("version", 1) == 1:
            files = [name for row in told["images"] for name in row]
        else:
            beside = [one for p in told["populations"] for one in p.get("plain") or ()]
            files = [one.get("file") for one in (*told["samples"], *beside)]
            if any("video" in sample for sample in told["samples"]):
                files += [str(Path(name).with_suffix(".webp")) for name in files if name]
        found |= {name for name in files if isinstance(name, str) and Path(name).name == name}
    return found


def _accepted(event: Mapping[str, Any]) -> list[list[float]]:
    """Rewards of what a move of refinement proposed and was accepted, (P, N); else -inf."""
    rows = zip(event.get("proposed", ()), event.get("accepted", ()))
    return [[float(r) if ok else -math.inf for r, ok in zip(*row)] for row in rows]


def _highest(before: Sequence[float], found: Sequence[Sequence[float]]) -> list[float]:
    """Of each population."""
    now = [max(row) for row in found]
    return [max(pair) for pair in zip(before, now)] if before else now


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


def _circumstances() -> dict[str, Any]:
    """What the bits depend on beside the job and the weights."""
    return {**_packages(), "machine": platform.machine(), "threads": torch.get_num_threads()}


@cache
def _packages() -> dict[str, str]:
    """Read once: a batch makes a folder for every item."""
    found = {}
    for name in _PACKAGES:
        with suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found
