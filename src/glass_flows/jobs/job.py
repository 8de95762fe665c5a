"""A job: what is to be drawn, and all that the bits of it depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any, ClassVar

import torch

from ..batching import Batching
from ..checkpoints import identity
from ..errors import InvalidArgument, check_count, check_name, shown
from ..noise import check_seed
from ..pixels import files_in, open_image
from ..plans import Sampler
from ..rewards.videos import Viewing
from ..settings import MOST, Choice, Count, Settings, Text, defaults, setting
from ..steering import Beam, BestOf, Greedy, Method, Refine, read_method

__all__ = ["DTYPES", "OFFLOADS", "Job", "Loading", "Placement", "device_named", "settings_in"]

DTYPES = ("float32", "bfloat16", "float16")
OFFLOADS = ("none", "model", "sequential")


@dataclass(frozen=True, repr=False)
class Loading(Settings):
    """How a pipeline is loaded.

    Parameters
    ----------
    device : str
        "cuda", "cuda:1" or "cpu"; without one cuda where there is one.
    dtype : "float32", "bfloat16" or "float16"
        Of the networks; bfloat16 on cuda without one, else float32.
    offload : "none", "model" or "sequential"
        diffusers' CPU offloading.
    revision : str
        Branch, tag or commit on the hub.
    lora : str
        LoRA weights: hub id or path.
    """

    device: str | None = setting(None, Text(optional=True))
    dtype: str | None = setting(None, Choice("dtype", DTYPES, optional=True))
    offload: str = setting("none", Choice("offload", OFFLOADS))
    revision: str | None = setting(None, Text(optional=True))
    lora: str | None = setting(None, Text(optional=True))
    word: ClassVar[str] = "loading"

    @property
    def home(self) -> str:
        """The device that is meant; InvalidArgument if it cannot be used here."""
        if self.device is None:
            return "cuda" if torch.cuda.is_available() else "cpu"
        device_named(self.device)
        return self.device


@dataclass(frozen=True, repr=False)
class Placement(Settings):
    """Where the jobs of a batch run.

    Parameters
    ----------
    workers : int
        Processes, or with Ray actors if there are no GPUs, each with the model.
    threads : int
        Of torch in every worker; the bits depend on it.
    ray : "auto", "local" or ray://HOST:PORT
        A Ray cluster that sees the folder; "local" starts one here.
    """

    workers: int = setting(1, Count(most=MOST))
    threads: int | None = setting(None, Count(optional=True))
    ray: str | None = setting(None, Text(optional=True))
    word: ClassVar[str] = "placement"


_FORMS: Mapping[str, type] = {
    "model": str, "reward": str, "prompts": list, "call": dict, "init": list, "also": list,
}  # fmt: skip
"""Of the fields of a job as JSON, where the field itself does not look."""


def settings_in(file: str | Path) -> dict[str, Any]:
    """What a PNG says it was drawn with, as JSON.

    Raises
    ------
    InvalidArgument
        It cannot be read, or says nothing.
    """
    try:
        found = json.loads(open_image(file).info["settings"])
    except (KeyError, TypeError, ValueError, RecursionError) as error:
        if isinstance(error, InvalidArgument):
            raise
        found = None
    if not isinstance(found, dict):
        raise InvalidArgument(
            f"{str(file)!r} does not say what it was drawn with: the PNGs that `align` and `batch` "
            "write do, and those of result.save(), as long as no other program has saved them again"
        )
    return found


def device_named(name: str | None) -> torch.device:
    """The device of this name, or the best there is; InvalidArgument if it is not there."""
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    check_name("device", name.split(":")[0], ("cpu", "cuda", "mps"))
    try:
        return torch.empty(0, device=name).device
    except (RuntimeError, AssertionError) as error:  # torch asserts that it was built with CUDA
        raise InvalidArgument(
            f"device {name!r} cannot be used here ({str(error).splitlines()[0]}); "
            "leave the device out to take the best there is"
        ) from error


@dataclass(frozen=True)
class Job:
    """What is to be drawn: the command line, batches, run folders, workers and Ray handle these.

    Attributes
    ----------
    model : str
        See :func:`glass_flows.jobs.resolve`.
    method : Method
    sampler : Sampler
    prompts : tuple of str
        One population of particles for each.
    reward : str
        By name, "module:function", or "class:N"; "" is the model's own.
    seed : int
    populations : int
        Independent runs of each prompt.
    call : dict
        Call arguments of a pipeline, as JSON; of those whose names end in "image" files. A run of
        other bytes in them is another (:meth:`beginnings`).
    batching : Batching
    loading : Loading
    micro_batch : int, optional
        Rows that the network and the reward see at a time, cut at the same places for any number
        of processes.
    threads : int, optional
        Of torch; as many as there are without it.
    init : tuple of str
        Files of pictures that refinement begins with, one for all prompts or one for each. A run
        of other bytes is another (:meth:`beginnings`).
    viewing : Viewing
    also : tuple of str
        Held-out rewards by name. The samples do not depend on them; what is recorded of the run
        does, so that a folder with others is refused.
    """

    model: str
    method: Method
    sampler: Sampler
    prompts: tuple[str, ...] = ()
    reward: str = ""
    seed: int = 0
    populations: int = 1
    call: Mapping[str, Any] = field(default_factory=dict)
    batching: Batching = field(default_factory=Batching)
    loading: Loading = field(default_factory=Loading)
    micro_batch: int | None = None
    threads: int | None = None
    init: tuple[str, ...] = ()
    also: tuple[str, ...] = ()
    viewing: Viewing = field(default_factory=Viewing)
    version: ClassVar[int] = 2
    """1 was a dictionary without one, of glass-flows 0.1."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        check_count("populations", self.populations, most=MOST)
        for name in ("micro_batch", "threads"):
            if getattr(self, name) is not None:
                check_count(name, getattr(self, name), most=MOST)
        if len(set(self.also)) < len(self.also):
            raise InvalidArgument(f"also: a reward is named twice in {', '.join(self.also)}")
        if self.init and not isinstance(self.method, Refine):
            raise InvalidArgument(
                f"init: only for the method refine, which begins with clean samples; the method is "
                f"{self.method.word}"
            )

    @property
    def pictures(self) -> dict[str, tuple[str, ...]]:
        """Files of pictures: those that it begins with, and those among the arguments of a call."""
        return {**({"init": self.init} if self.init else {}), **files_in(self.call)}

    def beginnings(self) -> dict[str, str]:
        """Hashes of the pictures, by their places."""
        return {
            f"{name} {i}": found
            for name, files in self.pictures.items()
            for i, file in enumerate(files)
            if (found := identity(file)) is not None
        }

    def as_json(self) -> dict[str, Any]:
        """Strict JSON that leaves out what is as by default."""
        found: dict[str, Any] = {"version": self.version}
        standard = defaults(type(self))
        for name, value in vars(self).items():
            if name in standard and value == standard[name]:
                continue
            if isinstance(value, Settings):
                value = value.as_json()
            found[name] = list(value) if isinstance(value, tuple) else value
        return found

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> Job:
        """Inverse of :meth:`as_json`.

        Raises
        ------
        InvalidArgument
            It is of another version, or a field is not what it may be.
        """
        given = dict(data)
        if given.pop("version", 1) != cls.version:
            raise InvalidArgument(
                f"a job of version {data.get('version', 1)!r}, this glass-flows reads {cls.version}"
            )
        for name in given:
            check_name("field of a job", name, (one.name for one in fields(cls)))
        for name, kind in _FORMS.items():
            if not isinstance(given.get(name, kind()), kind):
                raise InvalidArgument(
                    f"{name} of a job must be of the type {kind.__name__}, got {shown(given[name])}"
                )
        if lacking := {"model", "method", "sampler"} - set(given):
            raise InvalidArgument(f"a job needs {', '.join(sorted(lacking))}: {data!r}")
        kinds: tuple[type[Settings], ...] = (Sampler, Batching, Loading, Viewing)
        for kind in kinds:
            if kind.word in given:
                given[kind.word] = kind.from_json(given[kind.word])
        given["method"] = read_method(given["method"])
        for name in ("prompts", "init", "also"):
            given[name] = tuple(given.get(name, ()))
            if name != "prompts" and not all(isinstance(one, str) for one in given[name]):
                raise InvalidArgument(f"{name} of a job must list texts, got {shown(data[name])}")
        return cls(**given)

    @classmethod
    def from_image(cls, file: str | Path) -> Job:
        """The job that drew a PNG, from the text inside it.

        Whoever made the file chose it: look at `model`, `reward`, `loading`, `init` and the images
        in `call` before you run it, which may load code, weights or files.

        Raises
        ------
        InvalidArgument
            It is no image of a job of glass-flows.
        """
        return cls.from_json(settings_in(file))

    def sized(self, particles: int, transitions: int, steps: int, guidance: float = 1.0) -> Job:
        """With N, K and M, as far as they act: plain samples stay one, the ODE one transition.

        Refinement has as many moves as K M evaluations last, of a network under this guidance.
        """
        method, sampler = self.method, self.sampler
        if isinstance(method, (Beam, Greedy)):
            particles = max(1, particles // method.children) * method.children
        elif isinstance(method, BestOf) and method.particles == 1:
            particles = 1
        if isinstance(method, Refine):
            begin = 0 if self.init else sampler.evaluations
            method = method.filling(transitions * steps, begin, guidance)
        elif sampler.rho == "ode":
            sampler = sampler.baseline(transitions * steps)
        else:
            sampler = replace(sampler, transitions=transitions, steps=steps)
        return replace(self, method=replace(method, particles=particles), sampler=sampler)

    @property
    def title(self) -> str:
        """For people."""
        return "; ".join(self.prompts) or self.reward or self.model
