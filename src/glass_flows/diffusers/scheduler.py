"""GLASS as a diffusers scheduler: the unmodified pipeline runs, its network is asked by our table.

``pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=4)`` is all. The pipeline's
`num_inference_steps` becomes the number K of transitions, and the network is called K M times, at
times that are not monotone. The scheduler interprets the same table as
:func:`glass_flows.execute.iterate`, with the same code, only that the pipeline owns the loop.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput as GlassSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..denoisers import PREDICTIONS, Estimate, clean_estimate
from ..errors import InvalidArgument, PlanError, ShapeError, check_count, check_name, check_number
from ..execute import Boundary, Query, interpret
from ..noise import TRANSITION, KeyedNoise, Noise
from ..plans import DDIM, Sampler, Table
from ..settings import build
from .parts import rounds_its_clock
from .refusals import check_call, check_pipeline
from .schedules import _DISCRETE, _FLOW, Schedule

__all__ = ["GlassScheduler", "GlassSchedulerOutput", "LatentNoise", "compile_table"]

_OWN = ("base", "rho", "steps", "solver", "start", "end", "seed", "time_dtype")


class LatentNoise:
    """Transition noise keyed by the starting latents: one stream for each particle, found from it.

    The user's generator, which drew the latents, so decides the whole result, a second call repeats
    the first, and a particle's noise does not depend on the batch around it.
    """

    def __init__(self, latents: Tensor, seed: int = 0) -> None:
        rows = latents.detach().to("cpu", torch.float32).contiguous()
        self.sources = [
            KeyedNoise(_key(row.numpy().tobytes(), seed)) for row in rows.reshape(len(rows), -1)
        ]

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        if len(like) != len(self.sources):
            raise ShapeError(f"{len(self.sources)} latents began this run, {len(like)} go on")
        rows = [source(step, like[:1], purpose, draw) for source in self.sources]
        return torch.cat(rows)


def _key(data: bytes, seed: int) -> int:
    digest = hashlib.blake2b(data, digest_size=8, key=seed.to_bytes(8, "little"))
    return int.from_bytes(digest.digest(), "little") >> 1


class _PipelineNoise:
    """From the generator that the pipeline passes, else `keyed`, by the latents without one."""

    def __init__(self, latents: Tensor, seed: int, keyed: Noise | None = None) -> None:
        self.latents, self.seed, self.keyed = latents, seed, keyed
        self.generator: Any = None

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        if self.generator is not None:
            drawn = randn_tensor(like.shape, self.generator, like.device, torch.float32)
            return drawn.to(like.dtype)
        if self.keyed is None:
            self.keyed = LatentNoise(self.latents, self.seed)
        return self.keyed(step, like, purpose, draw)


class GlassScheduler(SchedulerMixin, ConfigMixin):  # type: ignore[misc]
    """GLASS transitions, ODE, DDIM(η), DDPM or the paper's solver behind diffusers' interface.

    Make one with :meth:`from_pipeline`, or ``from_config(pipe.scheduler.config, rho=0.4)``.

    Parameters
    ----------
    base : mapping
        The configuration of the pipeline's own scheduler, whose grid, shift, prediction type,
        thresholding and trained table are taken over.
    rho : float or str
        Correlation of the noises of a transition's ends, in [-1, 1]; "ddpm", "ode" or "ddim:ETA".
        None for Euler-Maruyama, which has none.
    steps : int
        M >= 1, network evaluations per transition. M = 1 is DDIM(η)/DDPM, K = 1 with rho="ode" the
        probability-flow ODE.
    solver : str
        "default", "first-order", "paper" or "euler-maruyama".
    start : "trained" or "pure"
        How the starting noise is read, see :func:`glass_flows.plan`.
    end : "auto", "data" or "trained"
        Where the last transition ends: at data, or at the last level of the pipeline's own
        sampler (DDIM with ``set_alpha_to_one=False`` stops at timestep 0). "auto" is "trained"
        where this is that sampler, M = 1 and ρ = 1, and "data" elsewhere.
    seed : int
        Of the transitions' noise, together with the latents: another seed, other samples from the
        same latents. Without effect where the pipeline passes its generator to the scheduler
        (Stable Diffusion, SDXL, Sana).
    time_dtype : str, optional
        "bfloat16" where a flow network rounds its clock to that: inner evaluations then fall on
        times that it can tell apart. :meth:`from_pipeline` sets it.

    Notes
    -----
    A guided or distilled network is no posterior mean of anything, so that its samples' law does
    depend on ρ.
    """

    _compatibles: ClassVar[list[str]] = [*_FLOW, *_DISCRETE]
    order = 1
    _begin_index: int | None
    _step_index: int | None
    _steps: Any
    _pending: Query | None
    _handed: Tensor | None
    _noise: _PipelineNoise

    @register_to_config  # type: ignore[untyped-decorator]
    def __init__(
        self,
        base: Mapping[str, Any] | None = None,
        rho: float | str | None = 0.4,
        steps: int = 4,
        solver: str = "default",
        start: str = "trained",
        end: str = "auto",
        seed: int = 0,
        time_dtype: str | None = None,
    ) -> None:
        if base is None:
            raise InvalidArgument(
                "GlassScheduler stands on a pipeline's own scheduler: make it with "
                "GlassScheduler.from_pipeline(pipe) or from_config(pipe.scheduler.config)"
            )
        check_count("steps", steps)
        self.sampler = build(
            Sampler, {"steps": steps, "rho": rho, "solver": solver, "start": start}
        )
        if not isinstance(rho, (int, float, str, type(None))) or not isinstance(solver, str):
            raise InvalidArgument(
                f"a scheduler's settings are kept in its configuration: give rho={rho!r} and "
                f"solver={solver!r} as numbers or texts, such as 'ddim:0.5' or 'paper:0.5'"
            )
        check_name("end", end, ("auto", "data", "trained"))
        check_count("seed", seed, least=0)
        check_number("seed", seed, "be an integer in [0, 2^63)", lambda v: v < 2**63)
        self.schedule = Schedule.of(base, time_dtype)
        # Pipelines read the settings of the scheduler they know.
        self.register_to_config(
            **{key: v for key, v in base.items() if key not in _OWN and not key.startswith("_")}
        )
        self.init_noise_sigma = 1.0
        self.at_boundary: Callable[[Boundary], None] | None = None
        self.noise: Noise | None = None  # in the place of that found from the latents
        self.num_inference_steps: int | None = None
        self.table: Table | None = None
        self.running: Table | None = None  # what is left of it for image-to-image
        self.timesteps = self.schedule.base.timesteps
        if self.schedule.discrete:
            self.alphas_cumprod = self.schedule.base.alphas_cumprod
            self.timesteps = torch.arange(len(self.alphas_cumprod)).flip(0)
        self.sigmas = torch.tensor([self._sigma(self.schedule.time(k)) for k in self.timesteps])
        self._edits: list[tuple[Tensor, int]] = []
        self._restart()

    # --- made from what there is --------------------------------------------------------------

    @classmethod
    def from_pipeline(cls, pipe: Any, **options: Any) -> GlassScheduler:
        """The scheduler for a pipeline, standing on the one it has.

        Raises
        ------
        InvalidArgument
            The pipeline or its scheduler cannot be sampled rightly in this way; it says why.
        """
        check_pipeline(pipe)
        if "time_dtype" not in options:
            options["time_dtype"] = rounds_its_clock(pipe)
        return cls.from_config(config_of(pipe.scheduler), **options)

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """From the configuration of any supported scheduler, or of a GlassScheduler."""
        if "base" in config:
            settings = {key: config[key] for key in _OWN if key in config}
        elif "_class_name" in config:
            settings = {"base": dict(config)}
        else:
            raise InvalidArgument(
                "this configuration does not say which scheduler it belongs to (it was not loaded "
                "from a file): use GlassScheduler.from_pipeline(pipe)"
            )
        unused = {key: value for key, value in options.items() if key not in _OWN}
        if unused and not return_unused_kwargs:
            check_name("option of GlassScheduler", next(iter(unused)), _OWN)
        settings |= {key: value for key, value in options.items() if key in _OWN}
        scheduler = cls(**settings)
        return (scheduler, unused) if return_unused_kwargs else scheduler

    # --- the grid -----------------------------------------------------------------------------

    def set_timesteps(
        self,
        num_inference_steps: int | None = None,
        device: str | torch.device | None = None,
        timesteps: Sequence[float] | None = None,
        sigmas: Sequence[float] | None = None,
        mu: float | None = None,
    ) -> None:
        """Compile the table for K = `num_inference_steps` transitions.

        `timesteps` or `sigmas` lists the starts of the transitions in the scheduler's own terms;
        `mu` is the dynamic shift. Sets `timesteps`, the network times of all rows.
        """
        check_call(self.config.steps)
        self.table = compile_table(
            self.schedule,
            self.sampler,
            num_inference_steps,
            end=self.config.end,
            timesteps=timesteps,
            sigmas=sigmas,
            mu=mu,
        )
        self.num_inference_steps = len(self.table)
        rows = [row for transition in self.table for row in transition.rows]
        told = [self.schedule.model_time(self.schedule.path, row.time) for row in rows]
        whole = self.schedule.discrete and all(k == int(k) for k in told)
        dtype = torch.int64 if whole else torch.float32
        self.timesteps = torch.tensor(told, dtype=dtype).to(device)
        self.sigmas = torch.tensor([*(self._sigma(row.time) for row in rows), 0.0]).to(device)
        # Pipelines that pass sigmas take the number of rows for that of steps; the others count K
        # steps of `order` rows each, for the progress bar and for image-to-image.
        counts = {transition.evaluations for transition in self.table}
        self.order = counts.pop() if sigmas is None and len(counts) == 1 else 1
        self._restart()

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at this row (image-to-image); it must be the first of a transition."""
        starts = self._boundaries()
        if begin_index not in starts:
            ends = [1.0 - k / len(self._table) for k in range(len(self._table))]
            raise InvalidArgument(
                f"evaluation {begin_index} lies inside a transition, where a sampler cannot start. "
                f"With {len(self._table)} transitions choose the strength among "
                f"{', '.join(f'{share:.4g}' for share in ends)}"
            )
        self._begin_index = begin_index

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        return self._step_index

    def __len__(self) -> int:
        return int(self.config.get("num_train_timesteps", self.schedule.scale))

    # --- the loop -----------------------------------------------------------------------------

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        """The sample as it is."""
        return sample

    def step(
        self,
        model_output: Tensor,
        timestep: float | Tensor,
        sample: Tensor,
        generator: torch.Generator | list[torch.Generator] | None = None,
        return_dict: bool = True,
    ) -> GlassSchedulerOutput | tuple[Tensor]:
        """One network evaluation's worth of the table.

        Parameters
        ----------
        model_output : Tensor
            (B, *shape), or (B, 2C, ...) with a learned variance, which is discarded.
        timestep : float or Tensor
            The entry of `timesteps` that the network was asked at.
        sample : Tensor
            The network's input. At the start of a transition it may have been edited.

        Returns
        -------
        GlassSchedulerOutput
            With `prev_sample`, the next network input (after a transition's last evaluation x_t'
            itself), and `pred_original_sample`, the clean estimate D of the evaluation just made;
            a tuple of the former without `return_dict`.

        Raises
        ------
        InvalidArgument, ShapeError
            Called out of order, or the sample was edited inside a transition.
        NonFinite
            The network returned NaN or infinity, found at the end of the run.
        """
        query = self._query(sample)
        query_row = self.table_row
        self._check_time(timestep, query_row)
        output = self._output(model_output, sample)
        coefficients = PREDICTIONS[self.schedule.prediction](self.schedule.path, query.time)
        D = self.schedule.thresholded(
            clean_estimate(coefficients, query.y, output.to(query.y.dtype))
        )
        self._noise.generator = generator
        answer = self._steps.send(Estimate(D, D))
        while isinstance(answer, Boundary):
            if self.at_boundary is not None:
                self.at_boundary(answer)
            y, answer = answer.x, next(self._steps, None)
        if answer is None:
            self._check_edits()
            self._steps, self._finished = None, True
        else:
            y = answer.y
        self._pending = answer
        self._step_index = query_row + 1
        self._handed = y.to(sample.dtype)
        self._version = self._handed._version
        if not return_dict:
            return (self._handed,)
        return GlassSchedulerOutput(prev_sample=self._handed, pred_original_sample=D)

    # --- noising (image-to-image, training) -----------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """x_t = α_t z + σ_t ε at the network times given, one for each sample or one for all."""
        listed = torch.as_tensor(timesteps).reshape(-1).tolist()
        if len(listed) not in (1, len(original_samples)):
            raise ShapeError(f"{len(listed)} timesteps given for {len(original_samples)} samples")
        path, times = self.schedule.path, [self.schedule.time(k) for k in listed]
        size = (-1, *(1,) * (original_samples.ndim - 1))
        alpha = torch.tensor([path.alpha(t) for t in times]).to(original_samples).view(size)
        sigma = torch.tensor([path.sigma(t) for t in times]).to(original_samples).view(size)
        return alpha * original_samples + sigma * noise

    def scale_noise(self, sample: Tensor, timestep: Any, noise: Tensor) -> Tensor:
        """:meth:`add_noise` under the name that flow pipelines use."""
        return self.add_noise(sample, noise, timestep)

    # --- within -------------------------------------------------------------------------------

    @property
    def _table(self) -> Table:
        if self.table is None:
            raise InvalidArgument("call set_timesteps first: there is no grid yet")
        return self.table

    @property
    def table_row(self) -> int:
        """Number of the row whose answer :meth:`step` expects."""
        return self._begin_index or 0 if self._step_index is None else self._step_index

    def _boundaries(self) -> dict[int, int]:
        """First row of every transition to its number."""
        rows, starts = 0, {}
        for number, transition in enumerate(self._table):
            starts[rows] = number
            rows += transition.evaluations
        return starts

    def _restart(self) -> None:
        self._begin_index = self._step_index = None
        self._steps = self._pending = self._handed = None
        self._finished = False
        self._edits.clear()

    def _sigma(self, t: float) -> float:
        """σ as the base scheduler's users know it: of the flow, or noise over signal."""
        if not self.schedule.discrete:
            return self.schedule.path.sigma(t)
        return 1.0 / max(self.schedule.path.amplitude(t), 1e-6)

    def _query(self, sample: Tensor) -> Query:
        """The evaluation just made, with its input in our precision."""
        if self._finished:
            raise InvalidArgument(
                f"all {len(self.timesteps)} evaluations of this run have been made: call "
                "set_timesteps before the next one"
            )
        if self._steps is None or self._pending is None:
            x = sample if sample.dtype == torch.float64 else sample.float()
            first = self._boundaries()[self._begin_index or 0]
            self.running = self._table.since(first)
            self._noise = _PipelineNoise(x, self.config.seed, self.noise)
            self._steps = interpret(
                self.running, x, self._noise, patient=sample.device.type != "cpu"
            )
            self._pending = next(self._steps)
            return self._pending
        query, handed = self._pending, self._handed
        in_place = sample is handed and sample._version != self._version
        if handed is None or (sample is handed and not in_place):
            return query
        if sample.shape != handed.shape:
            raise ShapeError(f"the sample was {tuple(handed.shape)}, now {tuple(sample.shape)}")
        if query.row == 0 and in_place:
            query.y = sample.to(query.y.dtype)
        elif query.row == 0:  # an edit passes through; without one this adds exact zeros
            query.y = query.y + (sample.to(query.y.dtype) - handed.to(query.y.dtype))
        else:
            edited = torch.tensor(True) if in_place else (sample != handed).any()
            self._edits.append((edited, self.table_row))
            if sample.device.type == "cpu" or len(self._edits) == 1:
                self._check_edits()
        return query

    def _check_edits(self) -> None:
        for edited, row in self._edits:
            if bool(edited):
                raise InvalidArgument(
                    f"the latents were changed before evaluation {row}, inside a transition, where "
                    "they are a query and not the sampler's state. Change them at the start of a "
                    f"transition only: after step i with i + 1 in {sorted(self._boundaries())}, or "
                    "use steps=1"
                )

    def _output(self, output: Tensor, sample: Tensor) -> Tensor:
        if output.shape == sample.shape:
            return output
        doubled = (sample.shape[0], 2 * sample.shape[1], *sample.shape[2:])
        if output.shape == doubled:
            return output[:, : sample.shape[1]]
        raise ShapeError(
            f"the network's output must be shaped like the sample {tuple(sample.shape)} (or have "
            f"twice its channels, with a learned variance), got {tuple(output.shape)}"
        )

    def _check_time(self, timestep: Any, row: int) -> None:
        """Called out of order? Looked at only where it costs no waiting for the device."""
        if isinstance(timestep, Tensor) and (timestep.numel() != 1 or timestep.is_cuda):
            return
        if self.timesteps.device.type != "cpu":
            return
        expected, given = float(self.timesteps[row]), float(timestep)
        if abs(given - expected) > 5e-3 * self.schedule.scale:
            raise InvalidArgument(
                f"evaluation {row} is at timestep {expected:g}, step was given {given:g}: take "
                "the steps in the order of `timesteps`"
            )


def config_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration with its class; of a GlassScheduler, that of its base."""
    if isinstance(scheduler, GlassScheduler):
        return dict(scheduler.config.base)
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def compile_table(
    schedule: Schedule,
    sampler: Sampler,
    transitions: int | None = None,
    *,
    end: str = "auto",
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Table:
    """The table of a scheduler's own grid; see :class:`GlassScheduler`."""
    times = schedule.outer_times(transitions, timesteps=timesteps, sigmas=sigmas, mu=mu)
    steps = sampler.steps
    if transitions == 1 and isinstance(steps, int) and steps > 1 and timesteps is sigmas is None:
        # Many a grid of one step starts near data: go from where that of M steps starts.
        times = (schedule.outer_times(steps, mu=mu)[0], 1.0)
    last = schedule.time(0.0) if schedule.discrete else 1.0
    stops_short = schedule.discrete and not schedule.base.config.get("set_alpha_to_one", True)
    itself = sampler.steps == 1 and sampler.rho in (1.0, DDIM(0.0)) and stops_short
    if (end == "trained" or (end == "auto" and itself)) and times[-2] < last:
        times = (*times[:-1], last)
    try:
        return sampler.at(times).plan(schedule.path)
    except PlanError as error:
        raise PlanError(f"{error} (timesteps of the grid: {times})") from error
