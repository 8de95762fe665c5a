"""The command that repeats a job: the inverse of what the command line makes of its options."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

from ..batching import Batching
from ..errors import GlassError
from ..guidance import Guidance
from ..plans import Sampler
from ..rewards.videos import Viewing
from ..settings import Settings, Switch, kinds, spelled
from ..steering import BestOf, Method, Refine, Twist, read_method

_FLAGS = {"guidance": "--reward-guidance", "call": "--argument"}
_OWN_FLAG = {"negative_prompt": str, "guidance_scale": float, "height": int, "width": int}
"""Call arguments that have an option of their own, and what they are read as."""
_LOADING = ("device", "dtype", "offload", "revision", "lora")


def flag(name: str) -> str:
    """The option that spells a setting."""
    return _FLAGS.get(name, "--" + name.replace("_", "-"))


def texts_of(settings: Settings) -> dict[str, str]:
    """The settings that are not as by default, as an option spells them."""
    return {name: text_of(settings, name) for name in settings.differing()}


def text_of(settings: Settings, name: str) -> str:
    """A setting, as its option spells it."""
    value = vars(settings)[name]
    text = spelled(kinds(type(settings))[name].write(value))
    if text.startswith("<"):
        raise ValueError(f"{name} is {text}, a function")
    if isinstance(value, (Twist, Guidance)) and "sigma_data" not in text:
        text += f":sigma_data={spelled(value.sigma_data)}"  # without it the model's own is meant
    return text


def sampler_texts(method: Method, sampler: Sampler) -> dict[str, str]:
    """Of a sampler; in full where the method would choose another if ρ were not asked for."""
    told = texts_of(sampler)
    if isinstance(method, (BestOf, Refine)):
        names = ("transitions", "steps", "rho")
        told = {name: text_of(sampler, name) for name in names} | told
    return told


def command_of(job: Mapping[str, Any], out: str = "again") -> str | None:
    """The command line that draws a job again, quoted for a shell, into another folder.

    None where there is none: of a job that was asked for from Python, of settings that have no
    text, and of what only a batch draws.

    Parameters
    ----------
    job : dict
        As JSON, such as that of ``run.json``. It is looked at, and nothing of it is loaded.
    """
    try:
        words = list(_words(job))
    except (GlassError, AttributeError, KeyError, TypeError, ValueError):
        return None
    return shlex.join(["glass-flows", "align", *words, "--out", out])


def _words(job: Mapping[str, Any]) -> Iterator[str]:
    method = read_method(job["method"])
    sampler = Sampler.from_json(job["sampler"])
    scheme = str(job["model"]).partition(":")[0]
    if "threads" in job or (scheme == "digits" and job.get("populations", 1) < 2):
        raise ValueError("only a batch draws this")
    yield from ("--model", job["model"])
    for prompt in job.get("prompts", ()):
        yield from ("--prompt", prompt)
    if job.get("reward"):
        yield from ("--reward", job["reward"])
    for name in job.get("also", ()):
        yield from ("--also", name)
    yield from ("--method", method.word)
    yield from _options(method, texts_of(method))
    yield from _options(sampler, sampler_texts(method, sampler))
    batching = Batching.from_json(job.get("batching", Batching().as_json()))
    own = {} if scheme != "shapes" else {"decode_batch": text_of(batching, "decode_batch")}
    yield from _options(batching, own | texts_of(batching))
    viewing = Viewing.from_json(job.get("viewing", Viewing().as_json()))
    yield from _options(viewing, texts_of(viewing))
    for name in _LOADING:
        if name in job.get("loading", {}):
            yield from (flag(name), spelled(job["loading"][name]))
    yield from _call(job.get("call", {}))
    for name in ("populations", "micro_batch"):
        if name in job:
            yield from (flag(name), str(job[name]))
    for file in job.get("init", ()):
        yield from ("--init", file)
    yield from ("--seed", str(job.get("seed", 0)))


def _options(settings: Settings, texts: Mapping[str, str]) -> Iterator[str]:
    for name, text in texts.items():
        if isinstance(kinds(type(settings))[name], Switch):
            yield flag(name) if text == "true" else f"--no-{flag(name)[2:]}"
        else:
            yield from (flag(name), text)


def _call(given: Mapping[str, Any]) -> Iterator[str]:
    for name, value in given.items():
        if name in _OWN_FLAG and type(value) in (_OWN_FLAG[name], int):
            yield from (flag(name), str(value))
        elif re.fullmatch(r"\w+", name):
            yield from ("--argument", f"{name}={json.dumps(value)}")
        else:
            raise ValueError(name)
