"""Models distilled to few steps: which pipelines hold one, and how they are sampled.

Their network answers with a finished sample, or a stage on the way to one, and not with the mean
E[z | x_t]. One evaluation to a transition suits them; several add up what is no mean, and make the
samples worse (docs/few_steps.md has the figures, and what is known of each model).
"""

from __future__ import annotations

import inspect
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePath
from typing import Any
from weakref import WeakSet

from .parts import network_of


@dataclass(frozen=True)
class FewSteps:
    """A kind of few-step models.

    Attributes
    ----------
    name : str
    pattern : str
        Of the names they go by: of repositories, folders and adapters.
    rho : str
        With one evaluation to a transition, the ρ nearest to the sampler they are published with.
    """

    name: str
    pattern: str
    rho: str


_SCHNELL = FewSteps("FLUX.1-schnell", "schnell", "'ode'")
_LCM = FewSteps("a latent consistency model", "(?<![a-z])lcm(?![a-z])", "0.0")
_KINDS = (
    _SCHNELL,
    _LCM,
    FewSteps("SDXL Turbo", "sdxl-turbo", "'ddpm'"),
    FewSteps("a Turbo", "turbo", "'ode'"),
    FewSteps("a Lightning", "lightning", "'ode'"),
    FewSteps("Hyper-SD", "hyper-?(sd|flux)", "'ode'"),
    FewSteps("a trajectory consistency model", "(?<![a-z])tcd(?![a-z])", "0.0"),
    FewSteps("matched to a distribution (DMD)", "(?<![a-z])dmd2?(?![a-z])", "0.0"),
    FewSteps("Sana-Sprint", "(?<![a-z])sprint", "0.0"),
)
_WARNED: WeakSet[Any] = WeakSet()


def few_steps_of(pipe: Any) -> FewSteps | None:
    """Which kind of few-step model a pipeline holds, by its configuration or by its names.

    None for all others, and where neither tells.
    """
    network = network_of(pipe)
    config = getattr(network, "config", {})
    if pipe.config.get("is_distilled"):  # FLUX.2 Klein, Krea 2
        return FewSteps(f"a distilled {type(pipe).__name__}", "", "'ode'")
    if config.get("time_cond_proj_dim") is not None:  # where the guidance scale goes in
        return _LCM
    if type(network).__name__ == "FluxTransformer2DModel":
        shifts = pipe.scheduler.config.get("use_dynamic_shifting")
        if config.get("guidance_embeds") is False and shifts is False:
            return _SCHNELL
    names = " ".join(_names(pipe, network, config))
    return next((kind for kind in _KINDS if re.search(kind.pattern, names, re.IGNORECASE)), None)


def _names(pipe: Any, network: Any, config: Mapping[str, Any]) -> Iterator[str]:
    """What it was loaded from, repositories and folders without those around them; its adapters."""
    for path in (pipe.name_or_path, config.get("_name_or_path")):
        yield PurePath(str(path or "")).name
    yield from getattr(network, "peft_config", None) or ()


def warn_of_several_evaluations(
    pipe: Any, steps: int | Sequence[int], remedy: str = "steps=1"
) -> None:
    """Warn, once for each pipeline, of M = `steps` > 1 on a few-step model."""
    several = max(steps) if isinstance(steps, Sequence) else steps
    kind = few_steps_of(pipe) if several > 1 and pipe not in _WARNED else None
    if kind is None:
        return
    _WARNED.add(pipe)
    name = PurePath(str(pipe.name_or_path or "")).name or "this pipeline"
    warnings.warn(
        f"{name} looks distilled to few steps ({kind.name}): its network answers with a sample, "
        f"not with a mean, and {several} evaluations to a transition make the samples worse. Use "
        f"{remedy}, with rho={kind.rho} for what its own sampler does; see docs/few_steps.md",
        UserWarning,
        stacklevel=_outside(),
    )


def _outside() -> int:
    """The `stacklevel` at which a warning of the calling function points out of this package."""
    frame, level = inspect.currentframe(), 0
    while frame is not None and frame.f_globals.get("__name__", "").startswith("glass_flows."):
        frame, level = frame.f_back, level + 1
    return level
