"""Jobs from what a person writes: options as texts, and what each model and method has of them."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from ..batching import Batching
from ..errors import InvalidArgument, check_name, shown
from ..fronts import refuse_foreign
from ..plans import Sampler
from ..rewards.videos import Viewing
from ..runs.command import flag
from ..settings import build, kinds, spelled
from ..steering import METHODS, Method, Refine, Twist, method_of
from ..steering.methods import every_setting, foreign_settings, idle_settings, sampler_for
from ..steering.smc import Steering
from ..steering.strength import SCALE, Scale
from .budget import parse_budget
from .job import Job, Loading
from .models import Model, resolve

__all__ = ["Options", "able", "check_json", "jobs_of", "read_arguments", "read_seeds", "swept"]

_MOST_SEEDS = 100_000
_OF_COMMANDS = (
    "model", "prompt", "prompts", "reward", "method", "seed", "populations", "budget", "out",
    "init", "also", "micro_batch",
)  # fmt: skip


@dataclass(frozen=True)
class Options:
    """What was given on a command line, as texts, by settings object; of the job as it is."""

    method: Mapping[str, str] = field(default_factory=dict)
    sampler: Mapping[str, str] = field(default_factory=dict)
    batching: Mapping[str, str] = field(default_factory=dict)
    loading: Mapping[str, str] = field(default_factory=dict)
    viewing: Mapping[str, str] = field(default_factory=dict)
    call: Mapping[str, Any] = field(default_factory=dict)
    held_out: Mapping[str, Any] = field(default_factory=dict)
    placement: Mapping[str, str] = field(default_factory=dict)
    contest: Mapping[str, str] = field(default_factory=dict)
    job: Mapping[str, Any] = field(default_factory=dict)


def jobs_of(
    name: str,
    methods: Sequence[str],
    options: Options,
    announce: Any = lambda text: None,
    here: bool = True,
    **rest: Any,
) -> tuple[Model, dict[str, Job]]:
    """The model, resolved, and a job for each method; `rest` are further fields of the jobs, of
    which "init" goes to those that begin with it, and "budget", which is looked at only. They run
    `here`, or where there are other devices.

    Raises
    ------
    InvalidArgument
        An option cannot act: the model has no use for it, or none of the methods has it.
    """
    loading = build(Loading, {}, options.loading)
    budget = rest.pop("budget", None)
    if here:
        _ = loading.home  # refused if it is not there
    if budget is not None:
        parse_budget(budget)
    model = resolve(name, loading, announce)
    also = tuple(options.held_out.get("also", ()))
    for text in filter(None, (rest.get("reward"), *also)):
        model.check_reward(text)
    for method in methods:
        check_name("method", method, METHODS)
    _refuse_unused(model, methods, options, {**rest, "budget": budget})
    init = rest.pop("init", ())
    sampler = build(Sampler, {}, options.sampler)
    batching = build(Batching, {}, options.batching, **model.batching)
    viewing = build(Viewing, {}, options.viewing)
    found, idle = {}, []
    for method in methods:
        made = _method(model, method, options.method)
        found[method] = Job(
            model=name,
            method=made,
            sampler=sampler_for(made, sampler, options.sampler),
            batching=batching,
            loading=loading,
            viewing=viewing,
            call=dict(options.call),
            also=also,
            init=init if isinstance(made, Refine) else (),
            **rest,
        )
        idle.append(idle_settings(made, sampler, options.sampler))
        model.check_init(found[method])
    if all(idle):
        raise InvalidArgument(
            f"{', '.join(map(flag, idle[0]))}: nothing to --method {', '.join(methods)} without "
            "--rho, which runs the ODE in one go; give --rho ode or another, too"
        )
    return model, found


def able(methods: Sequence[str], options: Options) -> list[str]:
    """Those methods that have every method option that was given, and begin with what was; the
    first, which says what it lacks, if none has."""
    found = [m for m in methods if not foreign_settings(m, options.method)]
    begun = bool(options.job.get("init"))
    found = [m for m in found or methods[:1] if not begun or METHODS[m].kind is Refine]
    return found or [methods[0]]


def _short(scale: Scale) -> str:
    return spelled(SCALE.write(scale)).replace(":", "-")


def swept(name: str, methods: Sequence[str], options: Options, **rest: Any) -> dict[str, Job]:
    """Jobs as of :func:`jobs_of`; of several scales, "0,1,10", one for each and each method."""
    scales = options.method.get("scale", "").split(",")
    if len(scales) == 1:
        return jobs_of(name, methods, options, **rest)[1]
    found: dict[str, Job] = {}
    for scale in scales:
        one = replace(options, method={**options.method, "scale": scale.strip()})
        jobs = jobs_of(name, methods, one, **rest)[1]
        found |= {f"{method}-scale-{_short(job.method.scale)}": job for method, job in jobs.items()}
    return found


def _method(model: Model, name: str, texts: Mapping[str, str]) -> Method:
    """A method, with the options that it has, for the data of a model."""
    own = {n: text for n, text in texts.items() if not foreign_settings(name, {n: text})}
    method = method_of(name, {}, own)
    for setting in ("twist", "guidance"):
        held: Any = vars(method).get(setting)
        if held is not None and held.scale > 0 and "sigma_data" not in own.get(setting, ""):
            scaled: Any = {setting: replace(held, sigma_data=model.sigma_data)}
            method = replace(method, **scaled)
    return method


def _refuse_unused(
    model: Model, methods: Sequence[str], options: Options, rest: Mapping[str, Any]
) -> None:
    """What neither the model nor a method has a use for is refused, not ignored."""
    for name, value in options.call.items():
        check_json(flag(name), value)
        refuse_foreign(name)
        if name in _ours():
            raise InvalidArgument(f"--argument {name}=...: that is {flag(name)} here")
    given = {
        group: list(vars(options)[group]) for group in ("batching", "loading", "viewing", "call")
    }
    none = {"micro_batch": None, "budget": None, "populations": 1, "init": ()}
    given |= {name: [name] for name, value in none.items() if rest.get(name, value) != value}
    given["also"] = list(options.held_out)
    foreign = [n for group, names in given.items() if group not in model.takes for n in names]
    unused = [n for n in options.method if all(foreign_settings(m, {n: ""}) for m in methods)]
    reasons = []
    sizes = {"particles", "transitions", "steps", "moves"} & {*options.method, *options.sampler}
    if sizes and "budget" in given:
        reasons.append(f"{', '.join(map(flag, sorted(sizes)))}: --budget chooses them; give one")
    if foreign:
        others = "the digits" if foreign == ["populations"] else "a diffusers pipeline"
        others += " or the digits" * (foreign == ["init"])
        shown = ", ".join(map(flag, foreign))
        reasons.append(f"{shown}: only for {others}; --model is {model.name!r}")
    if unused:
        has = ", ".join(flag(n) for n in _settings_of(methods))
        shown, named = ", ".join(map(flag, unused)), ", ".join(methods)
        reasons.append(f"{shown}: nothing to --method {named}, which has {has}")
    if "init" in given and "refine" not in methods:
        named = ", ".join(methods)
        reasons.append(f"--init: only for --method refine, which begins with it; here is {named}")
    if reasons:
        raise InvalidArgument("; ".join(reasons))


def _settings_of(methods: Sequence[str]) -> list[str]:
    return [n for n in every_setting() if any(not foreign_settings(m, {n: ""}) for m in methods)]


def _ours() -> set[str]:
    """Names that a pipeline's call argument cannot have, for they are ours."""
    own = {*_OF_COMMANDS, *every_setting()}
    for cls in (Sampler, Batching, Loading, Viewing):
        own |= set(kinds(cls))
    return own


def read_arguments(given: Sequence[str], option: str = "--argument") -> dict[str, Any]:
    """--argument NAME=VALUE, the value as JSON where it is, else as text."""
    found: dict[str, Any] = {}
    for text in given:
        name, equals, value = text.partition("=")
        if not equals or not name.isidentifier():
            raise InvalidArgument(f"{option} must be NAME=VALUE, got {shown(text)}")
        try:
            found[name] = json.loads(value)
        except (ValueError, RecursionError):
            found[name] = value
        check_json(f"{option} {name}", found[name])
    return found


def check_json(name: str, value: Any) -> None:
    """A value of a call is a part of the job, which is strict JSON."""
    try:
        json.dumps(value, allow_nan=False)
    except ValueError:
        raise InvalidArgument(f"{name} must be finite, got {shown(value)}") from None


def read_seeds(text: str) -> list[int]:
    """--seeds: '0', '0,1,7' or '0-3'."""
    found: list[int] = []
    for part in text.split(","):
        first, dash, last = part.strip().partition("-")
        ends = (first, last) if dash else (first, first)
        least, most = (int(end) if re.fullmatch("[0-9]{1,19}", end) else -1 for end in ends)
        if not 0 <= least <= most < least + _MOST_SEEDS:
            raise InvalidArgument(
                f"--seeds must be like 0 or 0,1,7 or 0-3, at most {_MOST_SEEDS:,} in a row, "
                f"got {shown(text)}"
            )
        found += range(least, most + 1)
    return list(dict.fromkeys(found))


def twisted(method: Method, sigma_data: float, asked: bool) -> dict[str, Method]:
    """A method, and beside it, if it is steering, the same with twisted noise."""
    if not isinstance(method, Steering):
        return {}
    twist = method.twist if asked or method.twisted else Twist(sigma_data=sigma_data)
    found: dict[str, Method] = {"steering": replace(method, twist=Twist(0.0))}
    if twist.scale > 0.0:
        found["steering + twist"] = replace(method, twist=twist)
    return found
