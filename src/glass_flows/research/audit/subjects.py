"""What is audited: a function of one's own, or a scheduler of diffusers, as one kind of sampler."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...errors import InvalidArgument, MissingExtra, NonFinite, check_name, line_of, shown
from ...paths import Path
from .watch import Watch

SCHEDULERS = {
    "table": (
        "DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler",
        "DEISMultistepScheduler", "DPMSolverMultistepScheduler", "DPMSolverSDEScheduler",
        "DPMSolverSinglestepScheduler", "EulerAncestralDiscreteScheduler", "EulerDiscreteScheduler",
        "HeunDiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "KDPM2DiscreteScheduler",
        "LCMScheduler", "LMSDiscreteScheduler", "PNDMScheduler", "SASolverScheduler",
        "TCDScheduler", "UniPCMultistepScheduler",
    ),
    "flow": (
        "FlowMatchEulerDiscreteScheduler", "FlowMatchHeunDiscreteScheduler",
        "FlowMatchLCMScheduler", "LTXEulerAncestralRFScheduler",
    ),
    "edm": ("EDMDPMSolverMultistepScheduler", "EDMEulerScheduler"),
    "glass": ("GlassScheduler",),
}  # fmt: skip
"""Those whose clock is known: of a trained table, σ of a flow, log σ/4; and ours."""
_OURS = frozenset({"model_output", "timestep", "sample", "generator", "return_dict", "kwargs"})
_LAID_OUT = frozenset({"num_inference_steps", "device", "timesteps", "sigmas"})
_IDLE = {"FlowMatchEulerDiscreteScheduler": {"s_churn", "s_tmin", "s_tmax", "s_noise"}}
"""Options that a scheduler takes and does nothing with."""
_LEAST_SIGNAL = 1e-12
"""α² of tables that are rescaled to end in noise alone, whose logarithm would be infinite."""
_PREDICTIONS = ("epsilon", "v_prediction", "sample", "flow_prediction")


class Subject:
    """A sampler under audit.

    Attributes
    ----------
    name : str
    dtype : torch.dtype
        Of its states.
    """

    name: str
    dtype: torch.dtype

    def draw(self, watch: Watch, dimension: int, steps: int, generator: torch.Generator) -> Tensor:
        """(rows, dimension) samples with K = `steps`, the network being `watch`."""
        raise NotImplementedError

    def checked(
        self, watch: Watch, dimension: int, steps: int, generator: torch.Generator
    ) -> Tensor:
        """As :meth:`draw`, its samples in float64, checked; whatever it raises, said in a line."""
        try:
            drawn = self.draw(watch, dimension, steps, generator)
        except Exception as error:  # somebody's own code, or a scheduler that refuses K
            where = line_of(error)
            raise InvalidArgument(
                f"{self.name} raised {type(error).__name__} at K = {steps}: {error}"
                + (f" ({where})" if where else "")
            ) from error
        shape = (watch.rows, dimension)
        if not isinstance(drawn, Tensor) or tuple(drawn.shape) != shape:
            got = tuple(drawn.shape) if isinstance(drawn, Tensor) else type(drawn).__name__
            raise InvalidArgument(f"{self.name} must return a tensor {shape}, got {got}")
        drawn = drawn.detach().to("cpu", torch.float64)
        bad = (~torch.isfinite(drawn).all(1)).nonzero()[:, 0].tolist()
        if bad:
            raise NonFinite(
                f"{self.name} returned NaN or infinity at K = {steps}, in {len(bad)} of "
                f"{watch.rows} samples",
                tuple(bad),
            )
        return drawn


class _Asked:
    """The denoiser that a function is given: E[z | x_t = x] at a time of the path."""

    evaluations_per_call = 1

    def __init__(self, watch: Watch, path: Path) -> None:
        self.watch, self.path = watch, path

    def __call__(self, x: Tensor, t: float) -> Tensor:
        return self.watch.ask(x, self.path.alpha(t), self.path.sigma(t))


@dataclass
class OfFunction(Subject):
    """A function (denoiser, shape, steps, generator) → samples."""

    name: str
    function: Callable[..., Any]
    path: Path
    options: Mapping[str, Any] = field(default_factory=dict)
    dtype: torch.dtype = torch.float64

    def __post_init__(self) -> None:
        if not callable(self.function):
            raise InvalidArgument(
                f"{self.name} is no function but {shown(self.function)}: an audit takes "
                "(denoiser, shape, steps, generator) → samples"
            )
        try:
            signature = inspect.signature(self.function)
        except (TypeError, ValueError):  # of a builtin, which says nothing of itself
            return
        try:
            signature.bind(None, (1, 1), 1, None, **self.options)
        except TypeError as error:
            raise InvalidArgument(
                f"{self.name}{signature} cannot be called as (denoiser, shape, steps, generator"
                f"{''.join(f', {name}=...' for name in self.options)}): {error}"
            ) from None

    def draw(self, watch: Watch, dimension: int, steps: int, generator: torch.Generator) -> Tensor:
        asked, shape = _Asked(watch, self.path), (watch.rows, dimension)
        return self.function(asked, shape, steps, generator, **self.options)


class OfScheduler(Subject):
    """A scheduler of diffusers by its class name, run as a pipeline runs it.

    Parameters
    ----------
    name : str
        A class of diffusers, or "GlassScheduler".
    options : mapping
        Of its configuration, of `set_timesteps` or of `step`, by name. clip_sample is False unless
        it is given: our data are no pixels.

    Raises
    ------
    UnknownName, InvalidArgument, MissingExtra
        It is none of those whose clock is known, lacks a package, or has no such option.
    """

    dtype = torch.float32

    def __init__(self, name: str, options: Mapping[str, Any] | None = None) -> None:
        given = dict(options or {})
        self.kind = next(kind for kind, names in SCHEDULERS.items() if name in names)
        self.name = name + (f"({', '.join(f'{k}={v}' for k, v in given.items())})" if given else "")
        cls = _class(name)
        # three places that take options, the nearest to a pipeline's user first
        makes = _names(cls.__init__) - {"base"}
        lays = _names(cls.set_timesteps) - _LAID_OUT - _OURS
        takes = _names(cls.step) - _OURS - _IDLE.get(name, set())
        for option in given:
            check_name(f"option of {name}", option, makes | lays | takes)
        config = {key: value for key, value in given.items() if key in makes}
        if "clip_sample" in makes:
            config.setdefault("clip_sample", False)
        if self.kind == "glass":
            from diffusers import FlowMatchEulerDiscreteScheduler

            flow = FlowMatchEulerDiscreteScheduler()
            config["base"] = {**flow.config, "_class_name": type(flow).__name__}
        self.laid = {k: v for k, v in given.items() if k in lays and k not in makes}
        self.stepped = {k: v for k, v in given.items() if k in takes and k not in makes | lays}
        self.draws = "generator" in inspect.signature(cls.step).parameters
        try:
            self.made = cls(**config)
        except Exception as error:  # of a configuration that is none
            raise InvalidArgument(f"{self.name}: {type(error).__name__}: {error}") from error
        self.prediction = self._prediction(self.made)

    def _prediction(self, made: Any) -> str:
        """What the model of this configuration predicts; learned variances are not audited."""
        if self.kind in ("flow", "glass"):
            return "flow_prediction"
        if str(made.config.get("variance_type", "")).startswith("learned"):
            raise InvalidArgument(f"{self.name}: a learned variance needs a network that has one")
        given = made.config.get("prediction_type", "epsilon")
        return check_name("prediction_type", given, _PREDICTIONS)

    def draw(self, watch: Watch, dimension: int, steps: int, generator: torch.Generator) -> Tensor:
        one = deepcopy(self.made)  # some are slow to make, and all remember
        one.set_timesteps(steps, **self.laid)
        kept = {"generator": generator} if self.draws else {}
        shape = (watch.rows, dimension)
        x = torch.randn(shape, generator=generator, dtype=torch.float32)
        x = x * getattr(one, "init_noise_sigma", 1.0)  # those of flows have none
        for t in one.timesteps:
            scaled = one.scale_model_input(x, t) if hasattr(one, "scale_model_input") else x
            output = self._output(watch, one, scaled, t)
            x = one.step(output, t, x, **kept, **self.stepped, return_dict=False)[0]
        return x

    def _output(self, watch: Watch, one: Any, x: Tensor, t: Tensor) -> Tensor:
        """What an exact network of this configuration says to an input and its timestep."""
        if self.kind == "edm":
            data = one.config.sigma_data
            sigma = math.exp(4 * float(t))
            size = math.hypot(sigma, data)
            state = x * size
            D = watch.ask(state, 1.0, sigma)
            scale = sigma * data / size
            if self.prediction == "v_prediction":
                scale = -scale
            return (D - (data / size) ** 2 * state) / scale
        alpha, sigma = self._levels(one, float(t))
        D = watch.ask(x, alpha, sigma)
        if self.prediction == "sample":
            return D
        noise = (x - alpha * D) / sigma
        if self.prediction == "v_prediction":
            return alpha * noise - sigma * D
        return noise - D if self.prediction == "flow_prediction" else noise

    def _levels(self, one: Any, t: float) -> tuple[float, float]:
        """α and σ of a timestep; between those of a table on a line in log σ/α."""
        if self.prediction == "flow_prediction":
            sigma = t / one.config.num_train_timesteps
            return 1.0 - sigma, sigma
        table = one.alphas_cumprod.double().numpy()
        table = np.maximum(table, _LEAST_SIGNAL)
        logs = np.log((1 - table) / table) / 2
        ratio = math.exp(float(np.interp(t, np.arange(len(logs)), logs)))
        return 1 / math.hypot(1, ratio), ratio / math.hypot(1, ratio)


def _class(name: str) -> Any:
    if name == "GlassScheduler":
        from ...diffusers import GlassScheduler

        return GlassScheduler
    try:
        import diffusers
    except ImportError as error:
        raise MissingExtra("diffusers", "diffusers", "an audit of a scheduler") from error
    found = getattr(diffusers, name)
    try:
        inspect.signature(found.step)
    except ImportError as error:  # a stand-in for what lacks a package
        lacks = " ".join(str(error).split())
        raise InvalidArgument(f"diffusers has {name} only with another package: {lacks}") from None
    return found


def _names(function: Callable[..., Any]) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self"}
