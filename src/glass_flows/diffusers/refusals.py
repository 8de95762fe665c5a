"""Where a pipeline would silently do the wrong thing with GLASS: said before anything runs.

A pipeline's loop knows timesteps, not transitions. What it counts, compares or blends by timestep
is wrong inside a transition, and there is no argument by which it would tell its scheduler. So
:func:`check_call`, called by `set_timesteps`, looks at the call that it is made from.

What is done about which pipeline is the table :data:`RULES`, and why the others are right is
:data:`HANDLED`. `tools/pipelines.py` finds the features named here in the sources of all pipelines,
and prints docs/diffusers/pipelines.md from both.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers import DiffusionPipeline, ModularPipeline, SchedulerMixin
from diffusers.hooks import HookRegistry

from ..errors import GlassError, InvalidArgument
from .few_steps import warn_of_several_evaluations
from .parts import caches_of, code_of, network_of
from .rules import RULES, Call

_UNREAD = ("Flux2Transformer2DModel",)  # whose blocks return what diffusers 0.42's cache fails on
_CACHES = ("FirstBlock", "fbc_")  # look at what they cache; the others count on ordered steps


def check_pipeline(pipe: Any) -> None:
    """Raise :class:`InvalidArgument` if this pipeline cannot be sampled rightly by a table."""
    if not isinstance(pipe, DiffusionPipeline):
        given = repr(pipe) if isinstance(pipe, (str, type)) else type(pipe).__name__
        raise InvalidArgument(
            f"expected a diffusers pipeline, got {given}. One of the hub or a folder is loaded "
            "first: DiffusionPipeline.from_pretrained(...). Modular pipelines count guidance by "
            "network steps and are not supported: use the pipeline class itself"
        )
    for rule in RULES:
        if rule.whole:
            rule.check(Call(pipe, {}, 1, None))
    if not hasattr(getattr(pipe, "scheduler", None), "config"):
        raise InvalidArgument(f"{type(pipe).__name__} has no scheduler that GLASS could replace")


def check_call(steps: int) -> None:
    """Look at the pipeline call, if there is one, for what is wrong with M = `steps` evaluations.

    Raises :class:`InvalidArgument`, which says what to do instead.
    """
    frame, rho = inspect.currentframe(), None
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, SchedulerMixin):
            rho = vars(owner)["sampler"].rho
        if isinstance(owner, ModularPipeline) and steps > 1:
            raise InvalidArgument(
                f"{type(owner).__name__} is not supported with steps={steps}: modular pipelines "
                "count guidance in network steps. Use steps=1, or the pipeline class itself"
            )
        if isinstance(owner, DiffusionPipeline) and frame.f_code.co_name == "__call__":
            check_pipeline(owner)
            warn_of_several_evaluations(owner, steps)
            call = Call(owner, frame.f_locals, steps, rho)
            for rule in RULES:
                rule.check(call)
            if steps > 1:
                check_caches(owner)
            return
        frame = frame.f_back


def check_caches(pipe: Any) -> None:
    """Refuse caches that count on ordered steps of the same rows; empty the one that may stay."""
    network = network_of(pipe)
    for name in caches_of(network):
        if not name.startswith(_CACHES):
            raise InvalidArgument(
                f"the cache {name} on the {type(network).__name__} reuses features from one "
                "timestep to the next, and these times go back and forth: call disable_cache(), "
                "or use steps=1"
            )
        if "cache_context" not in code_of(pipe):
            raise InvalidArgument(
                f"{type(pipe).__name__} opens no context for the cache {name}, so that it has "
                "nowhere to keep anything: call disable_cache()"
            )
        if type(network).__name__ in _UNREAD:
            raise InvalidArgument(
                f"the cache {name} cannot read the blocks of a {type(network).__name__}, in the "
                "pipeline's own loop either: call disable_cache()"
            )
        HookRegistry.check_if_exists_or_initialize(network).reset_stateful_hooks(recurse=True)


@contextmanager
def named_before_network(pipe: Any, asked: Callable[[], bool] = lambda: False) -> Iterator[None]:
    """What a pipeline's own code raises for its arguments, before its network has been `asked`.

    Memory that runs out is no argument's fault, and what was raised on purpose stays as it is.
    """
    try:
        yield
    except (GlassError, torch.OutOfMemoryError):
        raise
    except Exception as error:
        if asked():
            raise
        parts = pipe.components.items()
        gone = [name for name, part in parts if part is None and name.startswith("text_encoder")]
        hint = f" Prompts are encoded here: put back {', '.join(gone)}." if gone else ""
        raise InvalidArgument(
            f"{type(pipe).__name__} cannot be called like this: {type(error).__name__}: {error}."
            f"{hint}"
        ) from error
