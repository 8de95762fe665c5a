"""GLASS as a diffusers scheduler: the unmodified pipeline runs, its network is asked by our table.

``pipe.scheduler = GlassScheduler.from_pipeline(pipe, rho=0.4, steps=4)`` is all. The pipeline's
`num_inference_steps` becomes the number K of transitions (or that of evaluations, as `count` says),
and the network is called K M times, at times that are not monotone. The scheduler interprets the
same table as :func:`glass_flows.execute.iterate`, with the same code, only that the pipeline owns
the loop.
"""

from __future__ import annotations

import hashlib
import logging
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from itertools import accumulate
from math import isfinite
from typing import Any, ClassVar

import torch
from diffusers import ConfigMixin, SchedulerMixin
from diffusers.configuration_utils import register_to_config
from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput as GlassSchedulerOutput
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from ..denoisers import PREDICTIONS, check_device, clean_estimate
from ..errors import InvalidArgument, ShapeError, check_count, check_name, check_number, shown
from ..execute import Boundary
from ..noise import TRANSITION, KeyedNoise, Noise, check_seed, check_tensor, keyed_normals
from ..plans import DDIM, Sampler, Table
from ..plans.sampler import RHO, SOLVER
from ..settings import SHARE, build
from .few_steps import warn_of_several_evaluations
from .parts import rounds_its_clock
from .passes import Pass
from .refusals import check_call, check_pipeline
from .schedules import _DISCRETE, _FLOW, Schedule, plain

__all__ = ["GlassScheduler", "GlassSchedulerOutput", "LatentNoise", "compile_table"]

_OWN = ("base", "rho", "steps", "solver", "start", "end", "seed", "time_dtype", "count")
_COUNTS = ("transitions", "evaluations")
_ENDS = ("auto", "data", "trained")
_USUAL = 20  # steps of pipelines' own samplers, at least
_LOG = logging.getLogger(__name__)


class LatentNoise:
    """Transition noise keyed by the starting latents: one stream for each particle, found from it.

    The user's generator, which drew the latents, so decides the whole result, a second call repeats
    the first, and a particle's noise does not depend on the batch around it.
    """

    def __init__(self, latents: Tensor, seed: int = 0) -> None:
        rows = latents.detach().to("cpu", torch.float32).contiguous()
        self.sources = [
            KeyedNoise(_key(row.numpy().data, seed)) for row in rows.reshape(len(rows), -1)
        ]

    def __call__(self, step: int, like: Tensor, purpose: int = TRANSITION, draw: int = 0) -> Tensor:
        if len(like) != len(self.sources):
            raise ShapeError(f"{len(self.sources)} latents began this run, {len(like)} go on")
        return keyed_normals([(source, 0) for source in self.sources], step, like, purpose, draw)


def _key(row: memoryview, seed: int) -> int:
    digest = hashlib.blake2b(row, digest_size=8, key=seed.to_bytes(8, "little"))
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
        "default", "second-order", "first-order", "paper" or "euler-maruyama".
        A scheduler does not know the pipeline's classifier-free guidance: "default:guidance=5".
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
    count : "transitions" or "evaluations"
        What a pipeline's number of steps n counts. "transitions": K = n, of M evaluations each.
        "evaluations": n network evaluations, and no more, in K = n // M transitions, of which the
        last has those that are left over; every M-th of the pipeline's own n times starts one.

    Notes
    -----
    A guided or distilled network is no posterior mean of anything, so that its samples' law does
    depend on ρ.
    """

    _compatibles: ClassVar[list[str]] = [*_FLOW, *_DISCRETE]
    order = 1

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
        count: str = "transitions",
    ) -> None:
        if base is None:
            raise InvalidArgument(
                "GlassScheduler stands on a pipeline's own scheduler: make it with "
                "GlassScheduler.from_pipeline(pipe) or from_config(pipe.scheduler.config)"
            )
        if not isinstance(base, Mapping):
            raise InvalidArgument(
                f"base must be a scheduler's configuration, a mapping, got {shown(base)}: "
                "GlassScheduler.from_pipeline(pipe) reads it"
            )
        base = plain(dict(base))
        steps = check_count("steps", steps)
        given = plain({"steps": steps, "rho": rho, "solver": solver, "start": start})
        self.sampler = build(Sampler, given)
        kept = {"rho": RHO.write(self.sampler.rho), "solver": SOLVER.write(self.sampler.solver)}
        if isinstance(self.sampler.rho, tuple) or "<" in f"{kept}":  # lists, and functions
            raise InvalidArgument(
                f"a scheduler's settings are kept in its configuration: give rho={rho!r} and "
                f"solver={solver!r} as numbers or texts, such as 'ddim:0.5' or 'paper:0.5'"
            )
        check_name("end", end, _ENDS)
        check_name("count", count, _COUNTS)
        seed = check_seed(seed)
        self.schedule = Schedule.of(base, time_dtype)
        self.register_to_config(base=base, steps=steps, seed=seed, **kept)
        # Pipelines read the settings of the scheduler they know.
        self.register_to_config(
            **{key: v for key, v in base.items() if key not in _OWN and not key.startswith("_")}
        )
        self.init_noise_sigma = 1.0
        self.at_boundary: Callable[[Boundary], None] | None = None
        self.noise: Noise | None = None  # in the place of that found from the latents
        self._run: Pass | None
        self._begin_index: int | None
        self.num_inference_steps: int | None = None
        self.table: Table | None = None
        self.running: Table | None = None  # what is left of it for image-to-image
        self._told = self.schedule.base.timesteps
        if self.schedule.discrete:
            self.alphas_cumprod = self.schedule.base.alphas_cumprod
            self._told = torch.arange(len(self.alphas_cumprod)).flip(0)
        self.sigmas = torch.tensor([self._sigma(t) for t in self.schedule.times(self._told)])
        self._starts = self._counted = tuple(range(len(self._told) + 1))
        self._clock: list[float] = []
        self._restart()

    def __getstate__(self) -> dict[str, Any]:
        """For copies: all but who looks on."""
        return {**vars(self), "at_boundary": None}

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
        scheduler: GlassScheduler = cls.from_config(config_of(pipe.scheduler), **options)
        warn_of_several_evaluations(pipe, scheduler.sampler.steps)
        return scheduler

    @classmethod
    def from_config(
        cls, config: Mapping[str, Any], return_unused_kwargs: bool = False, **options: Any
    ) -> Any:
        """From the configuration of any supported scheduler, or of a GlassScheduler."""
        if not isinstance(config, Mapping):
            raise InvalidArgument(
                f"expected a scheduler's configuration (pipe.scheduler.config), got {shown(config)}"
            )
        if "base" in config:
            settings = {key: config[key] for key in _OWN if key in config}
        else:
            settings = {"base": dict(config)}
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
        """Compile the table.

        Parameters
        ----------
        num_inference_steps : int
            K transitions, or n evaluations as `count` says.
        timesteps, sigmas : sequence of float, optional
            In its place the starts of the transitions, falling, in the scheduler's own terms; a
            list, array or tensor. With count="evaluations" they are those of the evaluations, of
            which every M-th starts a transition. A 0 at the end, where all go, may be left out.
        mu : float, optional
            The dynamic shift, where the pipeline's own scheduler has one.

        Raises
        ------
        InvalidArgument, PlanError, TimeError
            What was given is no such number or list, or does not fit on the trained timesteps.
        """
        check_call(self.config.steps)
        device = check_device(device)
        counted, M = self.config.count, self.config.steps
        self.table = compile_table(
            self.schedule,
            self.sampler,
            num_inference_steps,
            end=self.config.end,
            count=counted,
            timesteps=timesteps,
            sigmas=sigmas,
            mu=mu,
        )
        rows = [row for transition in self.table for row in transition.rows]
        told = [self.schedule.model_time(self.schedule.path, row.time) for row in rows]
        whole = self.schedule.discrete and all(k == int(k) for k in told)
        dtype = torch.int64 if whole else torch.float32
        self._clock, self._told = told, torch.tensor(told, dtype=dtype).to(device)
        self.sigmas = torch.tensor([*(self._sigma(row.time) for row in rows), 0.0]).to(device)
        self._starts = (0, *accumulate(transition.evaluations for transition in self.table))
        # Pipelines that give a list take the number of rows for that of steps. The others count the
        # steps they asked for, of `order` rows each, for the progress bar and for image-to-image;
        # where trained timesteps lie close, transitions have fewer rows than they count on.
        listed = timesteps is not None or sigmas is not None
        self.order = _Order(M if counted == "transitions" and not listed else 1)
        K = len(self.table)
        self.num_inference_steps = K if counted == "transitions" else len(rows)
        asked = K * M if counted == "transitions" else num_inference_steps or 0
        self._counted = self._starts if listed else (*range(0, K * M, M), asked)
        if counted == "transitions" and M > 1 and K >= _USUAL and self.at_boundary is None:
            _note_calls(K, M)
        self._restart()

    @property
    def timesteps(self) -> Tensor:
        """The network times of all rows, in the order in which :meth:`step` is to be called."""
        if self._starts[-1] == len(self._starts) - 1:  # every row starts a transition
            return self._told
        return _Timesteps.of(self._told, self._rest)

    def set_begin_index(self, begin_index: int = 0) -> None:
        """Start at the transition of this row, as `timesteps[begin_index:]` does."""
        self._begin_index = self._first_row(check_count("begin_index", begin_index, least=0))

    @property
    def begin_index(self) -> int | None:
        return self._begin_index

    @property
    def step_index(self) -> int | None:
        return None if self._run is None else self._run.row

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
        eta: float = 0.0,
        use_clipped_model_output: bool | None = None,
        **others: Any,
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
        eta : float
            DDIM's η: 0, or that which ρ says.
        use_clipped_model_output : bool, optional
            Where estimates are clipped, the transition starts from the clipped one, as with True;
            False is refused there.
        others
            What other schedulers take, as None.

        Returns
        -------
        GlassSchedulerOutput
            With `prev_sample`, the next network input (after a transition's last evaluation x_t'
            itself), and `pred_original_sample`, the clean estimate D of the evaluation just made;
            a tuple of the former without `return_dict`.

        Raises
        ------
        InvalidArgument, ShapeError
            Called out of order, with what it does not know, or the sample was edited inside a
            transition.
        NonFinite
            The network returned NaN or infinity, found at the end of the run.
        """
        check_tensor(sample, "sample")
        check_tensor(model_output, "model_output")
        generator = _checked_generator(generator, len(sample))
        self._refuse_eta(eta)
        if use_clipped_model_output is False and self.schedule.clips:
            others = {**others, "use_clipped_model_output": use_clipped_model_output}
        _refuse_others(others)
        if self._run is None:
            self._run = self._begin(timestep, sample)
        run = self._run
        query = run.asked(sample)
        self._check_time(timestep, run.row)
        output = self._output(model_output, sample)
        coefficients = PREDICTIONS[self.schedule.prediction](self.schedule.path, query.time)
        D = self.schedule.thresholded(
            clean_estimate(coefficients, query.y, output.to(query.y.dtype))
        )
        noise = run.noise
        noise.generator = generator
        y = run.answered(D, self.at_boundary)
        noise.generator = None
        handed = y.to(sample.dtype)
        run.hand(handed)
        if not return_dict:
            return (handed,)
        return GlassSchedulerOutput(prev_sample=handed, pred_original_sample=D)

    # --- noising (image-to-image, training) -----------------------------------------------------

    def add_noise(self, original_samples: Tensor, noise: Tensor, timesteps: Any) -> Tensor:
        """x_t = α_t z + σ_t ε at the network times given, one for each sample or one for all."""
        check_tensor(original_samples, "original_samples")
        if check_tensor(noise, "noise").shape != original_samples.shape:
            raise ShapeError(
                f"noise must be shaped like the samples {tuple(original_samples.shape)}, got "
                f"{tuple(noise.shape)}"
            )
        given = plain(timesteps)
        listed = [
            check_number("timesteps", k, "be finite numbers", isfinite)
            for k in (given if isinstance(given, list) else [given])
        ]
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
        return self._begin_index or 0 if self._run is None else self._run.row

    def _rest(self, counted: int) -> int:
        """Where ``timesteps[counted:]`` starts."""
        if self.order > 1 and not isinstance(counted, _Order):
            raise InvalidArgument(
                f"timesteps[{counted}:] counts steps without their scheduler's `order`, of which "
                f"each has {self.order} rows here: use steps=1, or count {self.order} for each step"
            )
        return self._first_row(counted)

    def _first_row(self, counted: int) -> int:
        """The first row of the transition at which a pipeline starts that has `counted` so far.

        Down, so that the share of the transitions is that of the pipeline's own steps:
        floor(floor(K M (1 - s)) / M) = floor(K (1 - s)) at strength s. Up where evaluations are
        counted, of which there must not be more.
        """
        down = self.config.count == "transitions"
        find = bisect_right if down else bisect_left
        number = find(self._counted, counted) - down
        if number >= len(self._starts) - 1:
            raise InvalidArgument(
                f"no transition is left to run after {counted} of {self._counted[-1]} evaluations: "
                "raise the strength, or the number of steps"
            )
        return self._starts[number]

    def _restart(self) -> None:
        self._begin_index = self._run = None

    def _begin(self, timestep: Any, sample: Tensor) -> Pass:
        """A run from the transition that the loop starts with."""
        table, row = self._table, self._begin_index
        if (given := _on_host(timestep, wait=True)) is not None:
            rows = range(len(self._clock))
            near = min(rows, key=lambda r: (abs(self._clock[r] - given), r not in self._starts))
            row = near if row is None else row  # some slice `timesteps` and say nothing of it
            if row not in self._starts or self._far(given, row):
                raise InvalidArgument(
                    f"the loop starts at timestep {given:g}, where no transition starts: take the "
                    "steps in the order of `timesteps`, from where set_begin_index says"
                )
        first = self._starts.index(row or 0)
        x = sample if sample.dtype == torch.float64 else sample.float()
        self.running = table.since(first)
        noise = _PipelineNoise(x, self.config.seed, self.noise)
        return Pass(self.running, x, noise, self._starts, self._starts[first])

    def _refuse_eta(self, eta: Any) -> None:
        """Raise InvalidArgument for another η than the scheduler's own."""
        eta = 0.0 if eta is None else SHARE.check("eta", eta)
        mine = self.sampler.steps == 1 and self.sampler.rho == DDIM(eta)
        if eta and not mine:
            raise InvalidArgument(
                f"eta={eta:g} is said by the scheduler here: make it with rho='ddim:{eta:g}' and "
                "steps=1, and leave eta out"
            )

    def _sigma(self, t: float) -> float:
        """σ as the base scheduler's users know it: of the flow, or noise over signal."""
        if not self.schedule.discrete:
            return self.schedule.path.sigma(t)
        return 1.0 / max(self.schedule.path.amplitude(t), 1e-6)

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
        given = _on_host(timestep)
        if given is not None and self._far(given, row):
            raise InvalidArgument(
                f"evaluation {row} is at timestep {self._clock[row]:g}, step was given {given:g}: "
                "take the steps in the order of `timesteps`"
            )

    def _far(self, given: float, row: int) -> bool:
        """Whether it is another timestep than the row's, not only a rounded one."""
        return abs(given - self._clock[row]) > 5e-3 * self.schedule.scale


class _Order(int):
    """Rows of a pipeline's step. What was multiplied by it are rows, and known to be."""

    def __mul__(self, steps: int) -> _Order:
        return _Order(int(self) * int(steps))

    __rmul__ = __mul__


class _Timesteps(Tensor):
    """Timesteps of which a loop takes the rest, ``timesteps[row:]``, from a transition's start.

    Pipelines that pass sigmas count rows where they mean steps, and slice before they tell their
    scheduler where they begin. What is taken of it are plain tensors.
    """

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]
    begin: Callable[[int], int]

    @classmethod
    def of(cls, told: Tensor, begin: Callable[[int], int]) -> _Timesteps:
        timesteps = told.as_subclass(cls)
        timesteps.begin = begin
        return timesteps

    def __getitem__(self, index: Any) -> Tensor:
        if isinstance(index, slice) and index.stop is index.step is None and (index.start or 0) > 0:
            index = slice(self.begin(index.start), None)
        return super().__getitem__(index)

    def __deepcopy__(self, memo: Any) -> Tensor:
        return self.as_subclass(Tensor).clone()

    def __reduce_ex__(self, protocol: Any) -> Any:
        return self.as_subclass(Tensor).__reduce_ex__(protocol)


def _on_host(timestep: Any, wait: bool = False) -> float | None:
    """A single timestep as a number, unless the device that holds it must be waited for."""
    if isinstance(timestep, Tensor):
        near = timestep.device.type == "cpu" or (wait and not timestep.is_meta)
        return float(timestep) if near and timestep.numel() == 1 else None
    return check_number("timestep", timestep, "be a finite number or a tensor", isfinite)


def _checked_generator(given: Any, count: int) -> Any:
    """A list of one generator or of `count`, or None; raise InvalidArgument for others."""
    several = list(given) if isinstance(given, (list, tuple)) else [given]
    if given is None:
        return None
    enough = len(several) == 1 or len(several) >= count
    if not enough or not all(isinstance(g, torch.Generator) for g in several):
        raise InvalidArgument(
            f"generator must be a torch.Generator, or one for each of {count} samples, got "
            f"{shown(given)}"
        )
    return several


def _refuse_others(others: Mapping[str, Any]) -> None:
    """Refuse what a pipeline asks of its own scheduler's step and this one has not."""
    asked = sorted(name for name, given in others.items() if given is not None)
    if asked:
        raise InvalidArgument(
            f"the pipeline passes {', '.join(asked)} to its scheduler's step, which a "
            "GlassScheduler has not: leave it out, or use the pipeline's own scheduler"
        )


@lru_cache
def _note_calls(K: int, M: int) -> None:
    """Said once: who comes with a usual number of steps gets M times as many network calls."""
    _LOG.warning(
        "%d transitions of %d evaluations: %d network calls. "
        "GlassScheduler(count='evaluations') counts evaluations instead",
        K, M, K * M,
    )  # fmt: skip


def config_of(scheduler: Any) -> dict[str, Any]:
    """A scheduler's configuration with its class; of a GlassScheduler, that of its base."""
    if isinstance(scheduler, GlassScheduler):
        return dict(scheduler.config.base)
    return {**scheduler.config, "_class_name": type(scheduler).__name__}


def compile_table(
    schedule: Schedule,
    sampler: Sampler,
    number: int | None = None,
    *,
    end: str = "auto",
    count: str = "transitions",
    timesteps: Sequence[float] | None = None,
    sigmas: Sequence[float] | None = None,
    mu: float | None = None,
) -> Table:
    """The table of a scheduler's own grid; see :class:`GlassScheduler`."""
    check_name("end", end, _ENDS)
    check_name("count", count, _COUNTS)
    M = sampler.steps
    times = schedule.outer_times(number, timesteps=timesteps, sigmas=sigmas, mu=mu)
    if count == "evaluations":
        if not isinstance(M, int):
            raise InvalidArgument(
                f"count='evaluations' makes transitions of one number of steps each, got "
                f"steps={list(M)}: give one number, or count='transitions'"
            )
        times, steps = _every(M, times)
        sampler = replace(sampler, transitions=len(steps), steps=steps, times=times)
    elif isinstance(M, int) and number == 1 and timesteps is sigmas is None:
        # Many a grid of one step starts near data: go from where that of M steps starts.
        times = (schedule.outer_times(M, mu=mu)[0], 1.0)
    last = schedule.time(0.0) if schedule.discrete else 1.0
    stops_short = schedule.discrete and not schedule.base.config.get("set_alpha_to_one", True)
    itself = M == 1 and sampler.rho in (1.0, DDIM(0.0)) and stops_short
    if (end == "trained" or (end == "auto" and itself)) and times[-2] < last:
        times = (*times[:-1], last)
    return sampler.at(times).plan(schedule.path)


def _every(M: int, times: tuple[float, ...]) -> tuple[tuple[float, ...], tuple[int, ...]]:
    """Every M-th of the times of single evaluations; the last transition has what is left over."""
    n = len(times) - 1
    K = n // M
    if not K:
        raise InvalidArgument(
            f"{n} evaluations do not make a transition of {M}: ask for at least {M} steps, or make "
            f"the scheduler with steps={n}"
        )
    return (*times[: K * M : M], 1.0), (*[M] * (K - 1), n - M * (K - 1))
