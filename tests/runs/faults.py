"""Faults: commands that are killed, whose disk is full, or whose files are damaged.

Every command here is small, and runs in a child that is forked from this process, where all is
imported. `test_faults.py` takes some faults of each kind; by hand, with a count and a seed:

    PYTHONPATH=src:tests:tests/runs python tests/runs/faults.py --count 20 --seed 1
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import multiprocessing
import os
import random
import shutil
import signal
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from functools import cache, partial
from multiprocessing.context import BaseContext
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import nn

from glass_flows import BestOf, Refine, Sampler, Steering, files
from glass_flows.errors import FolderInUse, GlassError, InvalidArgument, OtherJob
from glass_flows.folders import LOCKS, alone
from glass_flows.jobs import Job, resolve, workers
from glass_flows.jobs.align import align, compare_digits
from glass_flows.jobs.batch import run_batch
from glass_flows.jobs.evaluate import evaluate_folders
from glass_flows.jobs.items import Work, items_of
from glass_flows.jobs.job import Loading
from glass_flows.jobs.models import Digits, Pipeline
from glass_flows.jobs.pictures import digit_image
from glass_flows.jobs.prompts import PromptEntry
from glass_flows.research import recipe
from glass_flows.research.audit import audit
from glass_flows.research.compare import compare
from glass_flows.research.compare_own import compare_own
from glass_flows.research.reproduce import Scale, base, reproduce
from glass_flows.rewards import Viewing
from glass_flows.training import Trained, TrainingTask, checkpoints, save_tensors
from glass_flows.worlds.digits import digits_images

FORK = multiprocessing.get_context("fork")
Command = Callable[[Path], object]
JOB = Job("digits", Steering(4, 4.0, ess_threshold=1.0), Sampler(3, 1), ("8",), seed=1)
WORK = Work({"steering": replace(JOB, prompts=())})
ITEMS = items_of([PromptEntry(i, str(digit)) for i, digit in enumerate((8, 3))], [0], ["steering"])
NOTIMES = ("seconds", "created", "resumed")
RUNS = (  # commands whose results are runs: finished, they draw nothing
    "align", "align digits", "refine", "init", "also", "again", "videos", "batch", "budget",
    "compare own",
)  # fmt: skip
_TOGETHER = "two at once"
DAMAGED = (*RUNS, "compare shapes", "reproduce", "train")


# --- commands -------------------------------------------------------------------------------------


def aligned(out: Path, seed: int = 1) -> object:
    job = replace(JOB, seed=seed)
    return align(resolve("digits"), job, out, progress=False)


def compared_digits(out: Path) -> object:
    job = replace(JOB, prompts=(), reward="class:8", populations=2)
    return compare_digits(job, out, progress=False)


def refined(out: Path) -> object:
    method = Refine(3, 4.0, moves=3, ess_threshold=1.0)
    job = replace(JOB, method=method, sampler=Sampler.ode(2), populations=2)
    return compare_digits(job, out, progress=False)


def picture(out: Path) -> str:
    """A file of a digit, beside what a trial writes."""
    file = out.parent.parent / "digit.png"
    if not file.exists():
        digit_image(digits_images()[3]).save(file)
    return str(file)


def begun(out: Path) -> object:
    """Refinement from a picture, which may end early."""
    method = Refine(3, 4.0, moves=3, ess_threshold=1.0, until=-0.5)
    job = replace(JOB, method=method, sampler=Sampler.ode(2), init=(picture(out),))
    return align(resolve("digits"), job, out, progress=False)


def held_out(out: Path) -> object:
    """With plain samples beside, and a λ that a pilot finds."""
    job = replace(JOB, method=replace(JOB.method, scale="auto"), also=("judge",))
    return align(resolve("digits"), job, out, progress=False)


def again(out: Path) -> object:
    """What a picture says that it was drawn with."""
    file = out.parent.parent / "again" / "000-00.png"
    if not file.exists():
        aligned(file.parent)
    return align(resolve("digits"), Job.from_image(file), out, progress=False)


@cache
def shapes() -> Any:
    model = resolve("shapes")
    model.load()
    return model


@cache
def films() -> Any:
    """A pipeline of videos."""
    import more_pipelines

    model = Pipeline("wan", "", Loading())
    pipe, model.call = more_pipelines.build("WanPipeline")
    model.__dict__ |= {"pipe": pipe, "call": {k: v for k, v in model.call.items() if k != "prompt"}}
    return model


def filmed(out: Path) -> object:
    method = Steering(2, 1.0, ess_threshold=1.0)
    job = Job("wan", method, Sampler(2, 1), ("a cat",), "faults:ink", viewing=Viewing(2))
    return align(films(), job, out, progress=False)


def batched(out: Path, count: int = 1, **more: str) -> object:
    workers.get_context = lambda name: FORK  # the models are imported already
    report = run_batch(WORK, ITEMS, out, workers=count, progress=False, **more)
    if report.failed:
        raise GlassError(report.table.read_text(encoding="utf-8"))
    return report


def ink(images: torch.Tensor) -> torch.Tensor:
    return images.mean((1, 2, 3))


def evaluated(out: Path) -> object:
    seen = out.parent.parent / "images"
    if not seen.exists():
        seen.mkdir()
        for i in range(3):
            Image.new("RGB", (8, 8), (80 * i, 0, 0)).save(seen / f"{i}.png")
    return evaluate_folders([seen], out, rewards=["faults:ink"], progress=False)


def compared(out: Path) -> object:
    sizes = {"evaluations": 8, "particles": 2, "populations": 4, "tuning_populations": 2}
    return compare(
        out, model=resolve("digits"), rewards=["class:8"], only=["best"], progress=False, **sizes
    )


def compared_shapes(out: Path) -> object:
    """On the bundled pipeline, cut down to what a child has time for."""
    module = importlib.import_module("glass_flows.research.compare_shapes")
    module._SCALES, module._GUIDES, module._CAPS, module._COLUMNS = (0.5, 1), (1.0, 2), (0.75,), 1
    module.refinement, recipe.BEGINNING = partial(recipe.refinement, move_steps=1), 1
    sizes = {"count": 12, "tuning_count": 2, "particles": 2, "transitions": 2, "steps": 1}
    return module.compare_shapes(out, model=shapes(), progress=False, **sizes)


def compared_own(out: Path) -> object:
    entries = [PromptEntry(i, str(digit)) for i, digit in enumerate((8, 3))]
    job = Job("digits", BestOf(1), Sampler.ode(9), reward="class")
    try:
        return compare_own(
            out, model=resolve("digits"), job=job, entries=entries, scale=4.0, evaluations=9,
            particles=2, progress=False,
        )  # fmt: skip
    except InvalidArgument as error:  # which names the summary
        raise GlassError((out / "summary.md").read_text(encoding="utf-8")) from error


def audited(out: Path) -> object:
    with alone(out):
        return audit("DDIMScheduler", transitions=(2, 8), samples=1000, progress=False).save(out)


def reproduced(out: Path) -> object:
    return reproduce(["kernel"], out, scale=Scale(quick=True), progress=False)


def trained(out: Path) -> object:
    def loss(net: nn.Module, generator: torch.Generator) -> torch.Tensor:
        found: torch.Tensor = net(torch.randn(4, 3, generator=generator)).square().mean()
        return found

    trained = Trained(out, "line", {"steps": 4, "seed": 0}, ("line.safetensors",))
    with alone(out):
        if trained.kept(False, print) is not None:
            return None
        with checkpoints(trained, 1, False) as fit:
            task = TrainingTask("line", lambda: nn.Linear(3, 1), loss, 4, 0, 0.1)
            net = fit(task, "line.safetensors")
            save_tensors(out / "line.safetensors", net.state_dict(), {"model": "line"})
            trained.finish({})
    return net


COMMANDS: dict[str, Command] = {
    "align": aligned,
    "align digits": compared_digits,
    "refine": refined,
    "init": begun,
    "also": held_out,
    "again": again,
    "videos": filmed,
    "batch": batched,
    "budget": partial(batched, budget="60"),
    "batch by two workers": lambda out: batched(out, 2),
    "evaluate": evaluated,
    "compare": compared,
    "compare shapes": compared_shapes,
    "compare own": compared_own,
    "audit": audited,
    "reproduce": reproduced,
    "train": trained,
}


# --- what they leave ------------------------------------------------------------------------------


def content(out: Path) -> dict[str, object]:
    """Every file, without times and what tells how often it was taken up."""
    found: dict[str, object] = {}
    for file in sorted(p for p in out.rglob("*") if p.is_file() and p.name not in LOCKS):
        name = str(file.relative_to(out))
        found[name] = file.read_bytes()
        with suppress(ValueError):  # it may be damaged
            if file.suffix == ".jsonl":
                found[name] = [_timeless(json.loads(one)) for one in file.read_bytes().splitlines()]
            elif file.suffix == ".json":
                found[name] = _timeless(json.loads(file.read_bytes()))
            elif b"| seconds |" in found[name]:  # the last column but one
                found[name] = [row.split(b" | ")[:-2] for row in found[name].split(b"\n")]
    return found


def _timeless(found: object) -> object:
    if isinstance(found, dict):
        return {k: _timeless(v) for k, v in found.items() if k not in NOTIMES}
    return [_timeless(one) for one in found] if isinstance(found, list) else found


# --- faults ---------------------------------------------------------------------------------------


class Faults:
    """Counts what is done to files, and does something at the one of number `at`.

    That is killing the process before, inside or after it, or a full disk from then on.
    """

    def __init__(self, at: int = 0, phase: str = "before") -> None:
        self.at, self.phase, self.count = at, phase, 0
        self.last = 0  # of the numbers, that of a write

    def __enter__(self) -> Faults:
        self.real = files._write, os.replace, os.unlink
        files._write = self._around(self.real[0], self._half)
        os.replace, os.unlink = (self._around(one) for one in self.real[1:])
        return self

    def __exit__(self, *error: object) -> None:
        files._write, os.replace, os.unlink = self.real

    def _half(self, file: int, data: bytes) -> None:
        os.write(file, data[: len(data) // 2])

    def _around(self, real: Callable[..., object], half: Callable[..., object] | None = None):
        def faulty(*given: object, **named: object) -> object:
            self.count += 1
            self.last = self.last if half is None else self.count
            if self.phase == "full":
                if half is not None and 0 < self.at <= self.count:
                    half(*given)
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
                return real(*given, **named)
            if self.count == self.at:
                if self.phase == "inside" and half is not None:
                    half(*given)
                if self.phase == "after":
                    real(*given, **named)
                os.kill(os.getpid(), signal.SIGKILL)
            return real(*given, **named)

        return faulty


def _child(command: Command, out: Path, faults: Faults, pipe: object) -> None:
    os.fsync = lambda file: None
    os.setsid()  # so that what it starts can be found
    base.model_of.cache_clear()
    try:
        with faults:
            command(out)
        pipe.send(("done", ""))
    except GlassError as error:
        pipe.send(("refused", f"{type(error).__name__}: {error}"))
    except BaseException as error:
        pipe.send(("broken", repr(error)))


def run(
    command: Command, out: Path, faults: Faults | None = None, seconds: float | None = None
) -> tuple[str, str]:
    """("done", ""), ("killed", ""), ("refused", why) or ("broken", why): in a child of its own."""
    here, there = FORK.Pipe(duplex=False)
    child = FORK.Process(target=_child, args=(command, out, faults or Faults(), there))
    child.start()
    there.close()
    if seconds is not None:
        child.join(seconds)
        child.kill()
    try:
        found = here.recv() if here.poll(120) else ("broken", "no answer")
    except EOFError:
        found = ("killed", "")
    child.join()
    left_over(child.pid)
    return found


def left_over(session: int, patience: float = 5.0) -> None:
    """Raise if there are processes of a session after so many seconds."""
    deadline = time.monotonic() + patience
    while found := _processes(session):
        if time.monotonic() > deadline:
            raise AssertionError(f"processes {found} are left")
        time.sleep(0.02)


def _processes(session: int) -> list[int]:
    found = []
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            try:
                about = Path(f"/proc/{entry}/stat").read_text(encoding="utf-8")
                state, _, _, own = about.rpartition(")")[2].split()[:4]
            except (OSError, ValueError):
                continue
            if int(own) == session and state != "Z":
                found.append(int(entry))
    return found


# --- what must hold -------------------------------------------------------------------------------


class Trial:
    """A command with what it leaves when nobody disturbs it."""

    def __init__(self, name: str, home: Path) -> None:
        self.command, self.home, self.number = COMMANDS[name], home, 0
        self.whole = self.fresh()
        self.command(self.whole)  # in this process first: what is imported, children have
        with Faults() as counted:
            self.command(self.fresh())
        self.events, self.last_write = counted.count, counted.last
        self.wanted = content(self.whole)

    def fresh(self) -> Path:
        self.number += 1
        (self.home / str(self.number)).mkdir(parents=True)
        return self.home / str(self.number) / "out"

    def again(self, out: Path) -> None:
        """The same command goes on, to the same bits."""
        found = run(self.command, out)
        assert found == ("done", ""), found
        assert not (names := self.differing(out)), names

    def differing(self, out: Path) -> set[str]:
        """Names of the files that are not those of an undisturbed run."""
        now, wanted = content(out), self.wanted
        return {name for name in now.keys() | wanted.keys() if now.get(name) != wanted.get(name)}

    def killed(self, draw: random.Random) -> str:
        """Once or twice, the second time in what goes on: at a write, or at a time."""
        out, kinds = self.fresh(), []
        for _ in range(draw.choice((1, 2))):
            if draw.random() < 0.25:
                began = time.monotonic()
                kinds.append(run(self.command, out, seconds=draw.uniform(0, 0.3))[0])
                del began
            else:
                phase = draw.choice(("before", "inside", "after"))
                kinds.append(run(self.command, out, Faults(draw.randint(1, self.events), phase))[0])
            assert kinds[-1] in ("killed", "done"), kinds
        self.again(out)
        return "killed" if "killed" in kinds else "done"

    def idle(self) -> None:
        """Given again once it is finished, it draws nothing, and changes nothing."""
        out = self.fresh()
        shutil.copytree(self.whole, out)
        found = run(partial(_drawing_nothing, self.command), out)
        assert found == ("done", ""), found
        assert not (names := self.differing(out)), names

    def full(self, draw: random.Random) -> str:
        """A full disk is said by name, and nothing is lost."""
        out = self.fresh()
        kind, why = run(self.command, out, Faults(draw.randint(1, self.last_write), "full"))
        assert kind in ("refused", "done"), (kind, why)
        assert kind == "done" or "No space left on device" in why, why
        self.again(out)
        return kind

    def damaged(self, draw: random.Random, finished: bool, how: str) -> str:
        """A damaged file is named, or written again; never taken for what it was."""
        out = self.fresh()
        if finished:
            shutil.copytree(self.whole, out)
        else:
            run(self.command, out, Faults(draw.randint(3, self.events), "before"))
        there = [p for p in out.rglob("*") if p.is_file() and p.name not in LOCKS]
        if not there:
            return "nothing"
        file = draw.choice(sorted(there))
        DAMAGES[how](file, draw)
        kind, why = run(self.command, out)
        told = f"{file.relative_to(out)}, {how}: {kind} {why}"
        assert kind in ("done", "refused"), told
        if kind == "done":
            differs = self.differing(out)
            assert not differs - {str(file.relative_to(out))}, (told, differs)  # at worst as it was
            if differs:
                assert file.suffix not in (".safetensors", ".jsonl"), told
                over = any((place / "result.json").exists() for place in (out, file.parent))
                assert file.parent.name == "estimates" or over, told
        else:
            assert str(file.parent) in why, told
        return kind


def _drawing_nothing(command: Command, out: Path) -> None:
    def drawn(*given: object, **named: object) -> None:
        raise AssertionError("something is drawn")

    Digits.steer = Digits.run = Pipeline.run = drawn
    command(out)


def _cut(file: Path, draw: random.Random) -> None:
    data = file.read_bytes()
    file.write_bytes(data[: len(data) * draw.randint(1, 9) // 10])


def _directory(file: Path, draw: random.Random) -> None:
    file.unlink()
    file.mkdir()


DAMAGES: dict[str, Callable[[Path, random.Random], object]] = {
    "cut": _cut,
    "empty": lambda file, draw: file.write_bytes(b""),
    "foreign": lambda file, draw: file.write_bytes(b'{"format": 2, "job": {}}\n'),
    "bad UTF-8": lambda file, draw: file.write_bytes(file.read_bytes()[:-9] + b"\xff\xfe\xff"),
    "a directory": _directory,
    "gone": lambda file, draw: file.unlink(),
}


def two_at_once(home: Path, wanted: dict[int, dict[str, object]], draw: random.Random) -> Counter:
    """Two seeds into one folder: one runs, the other is refused, and nothing is mixed."""
    out, answers = home / "out", []
    home.mkdir(parents=True)
    children = []
    for seed in draw.sample(sorted(wanted), 2):
        here, there = FORK.Pipe(duplex=False)
        given = (lambda out, seed=seed: aligned(out, seed), out, Faults(), there)
        children.append((seed, here, FORK.Process(target=_child, args=given)))
        children[-1][2].start()
        time.sleep(draw.uniform(0, 0.05))
    for seed, here, child in children:
        answers.append((seed, *here.recv()))
        child.join()
    done = [seed for seed, kind, _ in answers if kind == "done"]
    (refused,) = [why for _, kind, why in answers if kind == "refused"]
    assert refused.startswith((FolderInUse.__name__, OtherJob.__name__)), refused
    assert content(out) == wanted[done[0]]
    return Counter([refused.partition(":")[0]])


def many(out: Path, context: BaseContext = FORK) -> None:
    """More items than are finished before somebody is killed."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    workers.get_context = lambda name: context
    items = items_of([PromptEntry(0, "8")], range(400), ["steering"])
    run_batch(WORK, items, out, workers=2, progress=False)


def orphaned(out: Path, number: int, draw: random.Random, context: BaseContext) -> None:
    """The parent of workers gets a signal: none is left after five seconds, and all goes on."""
    _, there = FORK.Pipe(duplex=False)
    command = partial(many, context=context)
    child = FORK.Process(target=_child, args=(command, out, Faults(), there))
    child.start()
    wait_for(lambda: len(list(out.glob("*/run.json"))) > 1)
    time.sleep(draw.uniform(0, 0.2))
    os.kill(child.pid, number)
    child.join()
    assert child.exitcode == -number  # it was not over
    left_over(child.pid)
    assert run(batched, out) == ("done", "")


def wait_for(condition: Callable[[], object], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.01)


def main() -> None:
    reading = argparse.ArgumentParser(description=__doc__)
    reading.add_argument("--count", type=int, default=10, help="of each kind and command")
    reading.add_argument("--seed", type=int, default=0)
    reading.add_argument("--only", default="", help="of these commands, with commas between them")
    given = reading.parse_args()
    draw, ways = random.Random(given.seed), list(DAMAGES)
    with tempfile.TemporaryDirectory() as place:
        home = Path(place)
        names = given.only.split(",") if given.only else [*COMMANDS, _TOGETHER]
        for name in (one for one in names if one != _TOGETHER):
            trial = Trial(name, home / name)
            kinds = {
                "killed": lambda t: t.killed(draw),
                "full disk": lambda t: t.full(draw),
                "damaged": lambda t: t.damaged(draw, False, draw.choice(ways)),
                "damaged when finished": lambda t: t.damaged(draw, True, draw.choice(ways)),
            }
            for kind, act in kinds.items():
                if kind.startswith("damaged") and name not in DAMAGED:
                    continue
                print(name, kind, dict(Counter(act(trial) for _ in range(given.count))), flush=True)
            if name in RUNS:
                trial.idle()
                print(name, "given again: draws nothing", flush=True)
            shutil.rmtree(trial.home)
        if _TOGETHER not in names:
            return
        wanted = {}
        for seed in (1, 2):
            aligned(home / f"seed{seed}", seed)
            wanted[seed] = content(home / f"seed{seed}")
        told = Counter()
        for i in range(2 * given.count):
            told += two_at_once(home / f"two{i}", wanted, draw)
        print("two at once", dict(told), flush=True)
        for i in range(given.count + 2):  # spawned workers, as on the command line
            number = (signal.SIGKILL, signal.SIGTERM)[i % 2]
            orphaned(home / f"orphans{i}", number, draw, multiprocessing.get_context("spawn"))
        print("parents of workers killed", given.count + 2)


if __name__ == "__main__":
    main()
