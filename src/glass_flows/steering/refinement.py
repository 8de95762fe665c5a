"""Refinement: reversible moves on clean samples.

Noise a clean sample z to x_t ~ p(x_t | z) and redraw it, z' ~ p(z | x_t), by a GLASS transition to
data. The pair (z, z') is symmetric under p(z) p(x_t | z) p(z' | x_t), so that with the acceptance

    min(1, exp(λ (r(z') - r(z))))

it is a Metropolis move (Hastings 1970) for p(z) exp(λ r(z)): no density, no gradient, and no value
of a blurred estimate. N chains move side by side while λ rises from 0 to its final value; they
carry the weights exp((λ_{k+1} - λ_k) r) of a tempered sampler (Del Moral, Doucet, Jasra 2006;
Neal 2001), by which they may be exchanged, and whose product estimates the evidence.
"""

from __future__ import annotations

import bisect
import itertools
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Union, cast

import numpy as np
import torch
from torch import Tensor

from ..denoisers import DenoiserLike, Estimate, as_denoiser
from ..errors import MOST_EVALUATIONS, InvalidArgument
from ..execute import Boundary
from ..execute import run as run_table
from ..guidance import Guidance, GuidedDenoiser
from ..noise import ACCEPTANCE, MOVE
from ..paths import Path
from ..plans import Default, EulerMaruyama, Sampler, Solver, Table, plan_transition
from ..plans.solvers import solver_for
from ..settings import SHARE, Checked, Choice, Count, Listed, Number, Object, setting
from .held_out import Beside
from .method import Course, Method
from .overoptimisation import Rung
from .population import Run, kept
from .resampling import RESAMPLERS
from .results import Costs, RefinedResult
from .schedules import Adaptive, ScaleSchedule, share_at
from .smc import DEGENERATE, SCHEDULE, ancestors_of
from .state import History, Selection, Step
from .values import Look, scaled
from .weights import LogWeights

__all__ = ["BEGINNING", "Acceptance", "Ramp", "Refine", "RefineStep", "evaluations_of"]

BEGINNING = 6
"""Evaluations of the ODE that draws the first samples, if nothing else is asked for."""
_INSIDE = Number("lie in (0, 1)", lambda t: 0.0 < t < 1.0)
_HALF = 0.5  # of the guidance: measured in docs/refinement.md
_GAIN = 2.0  # of the adaptation of t: how far log α/σ moves for a move that all refuse


@dataclass(frozen=True)
class Ramp(Checked):
    """From `first`, where nearly all is drawn anew, evenly to `last`, where little is."""

    first: float = setting(0.1, _INSIDE)
    last: float = setting(0.8, _INSIDE)


@dataclass(frozen=True)
class Acceptance(Checked):
    """Longer moves where more than `rate` of the proposals are accepted, shorter where fewer are.

    It begins at `first`. What past moves accepted decides on the next one, which biases the law a
    little: :meth:`Refine.fixed` takes the times of a run for others.
    """

    rate: float = setting(0.4, _INSIDE)
    first: float = setting(0.3, _INSIDE)


MoveTimes = Union[float, tuple[float, ...], Ramp, Acceptance]

TEMPERING = replace(SCHEDULE, one=replace(cast(Object, SCHEDULE.one), optional=True))
MOVE_TIMES = Listed(
    Object(
        "move times",
        "a number in (0, 1), a list of them, 'ramp[:FIRST:LAST]' or 'adaptive[:RATE:FIRST]'",
        heads={"ramp": (Ramp, {}), "adaptive": (Acceptance, {})},
        numbers=_INSIDE,
    ),
    item=_INSIDE,
)
MOVE_STEPS = Listed(Count(optional=True, most=MOST_EVALUATIONS), item=Count(most=MOST_EVALUATIONS))


@dataclass(frozen=True, repr=False)
class Refine(Method):
    """Refinement: N chains of clean samples, noised and redrawn, accepted by their reward.

    Parameters
    ----------
    moves : int
        K >= 0. What the sampler's settings say is how the chains begin.
    move_times : number in (0, 1), list of them, "ramp[:FIRST:LAST]", or "adaptive[:RATE:FIRST]"
        Where each move noises to, as a time of the linear path, t = a/(1 + a) at α/σ = a, whatever
        the model's own path: near 0 a new sample, near 1 a small change. A list is gone through
        again and again, a ramp once; adaptive looks for that share of accepted proposals.
    move_steps : int, list of int, or None
        Network evaluations of each move; None is 3, and where t is below 0.6 and moves are under
        classifier-free guidance w, 1.5 (w - 1) more, up to 9.
    move_guidance : number in [0, 1], or None
        Share of the model's classifier-free guidance w that moves have, 1 + share (w - 1): under
        all of it many moves drift away from the data. None is 0.5, or 1 where the denoiser cannot
        be asked under another w.
    schedule : None, "constant", "linear", "adaptive[:ESS]", a function of k/K, or K shares
        Share of λ that each move accepts by. None is linear from draws of the model, and constant
        from samples that are given, which a small λ would forget.
    resampling : str
        "systematic", "ssp", "stratified", "residual" or "multinomial".
    ess_threshold : float
        In [0, 1]: as steering's; 0 leaves the chains independent, with weights.
    returned : "best" or "last"
        Of each chain the best sample that it has been at, which weights say nothing of, or where it
        stands at the end.
    until : float, optional
        End when the best of every population has this reward.
    rescore : int
        So many fresh scores of what is returned, whose mean takes the place of its reward: for
        rewards that answer differently each time, of which Metropolis keeps the lucky ones.
    """

    moves: int = setting(6, Count(least=0, most=MOST_EVALUATIONS))
    move_times: MoveTimes = setting(Ramp(), MOVE_TIMES)
    move_steps: int | tuple[int, ...] | None = setting(None, MOVE_STEPS)
    move_guidance: float | None = setting(None, replace(SHARE, optional=True))
    schedule: ScaleSchedule | None = setting(None, TEMPERING)
    resampling: str = setting("systematic", Choice("resampling scheme", RESAMPLERS))
    ess_threshold: float = setting(0.5, SHARE)
    returned: str = setting("best", Choice("returned", ("best", "last")))
    until: float | None = setting(None, Number(optional=True))
    rescore: int = setting(0, Count(least=0, most=1000))
    degenerate: str = setting("error", DEGENERATE)
    word: ClassVar[str] = "refine"
    weighted: ClassVar[bool] = True
    remedy: ClassVar[str] = "lower the scale, or let the chains be (ess_threshold=0)"

    def check(self) -> None:
        for name in ("move_times", "move_steps"):
            if getattr(self, name) == ():
                raise InvalidArgument(f"{name} must list at least one, got []")
        if isinstance(self.schedule, tuple) and len(self.schedule) != self.moves:
            raise InvalidArgument(
                f"schedule lists {len(self.schedule)} shares of lambda for {self.moves} moves"
            )

    def fixed(self, pilot: RefinedResult) -> Refine:
        """With the times and λ that a pilot run has chosen, one and all populations' mean.

        Of another seed than the pilot's, the evidence is unbiased.
        """
        moves, shares = len(pilot.move_times), pilot.shares[:-1].mean(1)
        return replace(
            self, moves=moves, move_times=tuple(pilot.move_times.tolist()),
            schedule=tuple(shares.tolist()), until=None,
        )  # fmt: skip

    @property
    def guidance(self) -> Guidance | None:
        return None

    def weaker(self, w: float) -> float:
        """Classifier-free guidance of the moves, of a network under w."""
        share = _HALF if self.move_guidance is None else self.move_guidance
        return min(w, 1.0) + share * max(w - 1.0, 0.0)

    def check_guidance(self, w: float) -> None:
        share = self.move_guidance
        if share not in (None, 1.0) and self.weaker(w) == w:
            raise InvalidArgument(
                f"move_guidance={share:g} is a share of classifier-free guidance, and this "
                "denoiser is under none: leave it out"
            )

    def fitted(self, denoiser: DenoiserLike) -> Refine:
        model, share = as_denoiser(denoiser), self.move_guidance
        self.check_guidance(model.cfg_scale)
        w = self.weaker(model.cfg_scale)
        acts = w != model.cfg_scale and model.at_cfg_scale(w) is not None
        if share == 1.0 or acts:
            return self
        if share is None:
            return replace(self, move_guidance=1.0)
        raise InvalidArgument(
            f"move_guidance={share:g} asks for guidance {w:g}, and this denoiser knows "
            f"{model.cfg_scale:g} alone: give it unconditional={{...}} or network_at=..., or leave "
            "move_guidance out"
        )

    def steered(self, table: Table) -> frozenset[int]:
        return frozenset()

    def length(self, table: Table) -> int:
        return self.moves

    def time(self, move: int) -> float:
        """Where a move noises to, on the linear path's clock; adaptive ones begin there."""
        times = self.move_times
        if isinstance(times, Ramp):
            return times.first + (times.last - times.first) * move / max(self.moves - 1, 1)
        if isinstance(times, Acceptance):
            return times.first
        return times[move % len(times)] if isinstance(times, tuple) else times

    def evaluations(self, sampler: Sampler, guidance: float = 1.0) -> int:
        return sampler.evaluations + self._of_moves(guidance)

    def _of_moves(self, guidance: float, first: int = 0) -> int:
        return sum(self.asked(k, self.time(k), guidance) for k in range(first, self.moves))

    def asked(self, move: int, time: float, guidance: float) -> int:
        """Evaluations of a move to a time, of a network under this classifier-free guidance."""
        steps = self.move_steps
        if steps is None:
            return evaluations_of(time, self.weaker(guidance))
        return steps[move % len(steps)] if isinstance(steps, tuple) else steps

    def filling(self, evaluations: int, beginning: int, guidance: float = 1.0) -> Refine:
        """With as many moves as so many evaluations last after the beginning; one at least."""
        left = evaluations - beginning  # a move takes one at least
        fit = bisect.bisect_right(
            range(left), left, key=lambda more: replace(self, moves=1 + more)._of_moves(guidance)
        )
        return replace(self, moves=max(1, fit))

    def check_table(self, table: Table) -> None:
        if isinstance(table.solver, EulerMaruyama):
            raise InvalidArgument(
                "refinement draws from p(z | x_t) by an inner flow, and Euler-Maruyama has none: "
                "give another solver"
            )

    def calls(self, table: Table, first: int = 0, guidance: float = 1.0) -> int:
        return (0 if first else table.evaluations) + self._of_moves(guidance, first)

    def begin(self, run: Run) -> Refining:
        return Refining(self, run)

    @property
    def tilts(self) -> bool:
        """Without a move λ only makes weights."""
        return self.moves > 0

    def biases(self, denoiser: DenoiserLike) -> tuple[str, ...]:
        found = []
        if isinstance(denoiser, GuidedDenoiser):
            found.append("reward guidance tilts the moves, and their acceptance does not undo it")
        given = as_denoiser(denoiser).cfg_scale
        if self.weaker(given) not in (0.0, 1.0):
            found.append("under classifier-free guidance D is no posterior mean: moves keep no law")
        elif given > 1.0:
            found.append("moves are without the model's classifier-free guidance: of another law")
        if isinstance(self.schedule, Adaptive):
            found.append("λ was chosen by the ESS of the chains themselves")
        if isinstance(self.move_times, Acceptance):
            found.append("t was chosen by what the chains themselves accepted")
        if self.returned == "best":
            found.append("of each chain the best sample is returned, not where it stands")
        if self.until is not None:
            found.append("the chains end when a reward is reached")
        if self.rescore:
            found.append("the reward is taken to be random: chains keep lucky scores")
        return tuple(found)


def evaluations_of(time: float, guidance: float) -> int:
    """Evaluations of a move that noises to a time of the linear path.

    Under classifier-free guidance w long moves need more, or harm: measured in
    `docs/refinement.md`.
    """
    extra = math.ceil(1.5 * (min(guidance, 7.0) - 1.0))
    return 3 + max(extra, 0) if time < 0.6 else 3


@dataclass(frozen=True)
class RefineStep(Step):
    """What happened after one move of the chains.

    Attributes
    ----------
    rewards : Tensor
        (P, N), of the states after acceptance, before any exchange.
    proposed, accepted : Tensor
        (P, N), rewards of the proposals, and whether each was accepted; of the first samples all.
    best_rewards : Tensor
        (P, N), of each chain the highest so far, after exchange.
    log_weights : LogWeights
        After exchange.
    ess : Tensor
        (P,), before exchange.
    log_evidence : Tensor
        (P,), the estimate so far; NaN where the chains began with samples that were given.
    share : Tensor
        (P,), λ_{k+1}/λ, by which the next move accepts.
    time : float
        Where the next move noises to, on the linear path's clock; 1 at the end.
    """

    proposed: Tensor
    accepted: Tensor
    best_rewards: Tensor
    log_weights: LogWeights
    ess: Tensor
    log_evidence: Tensor
    share: Tensor
    time: float

    def remembered(self) -> dict[str, Tensor]:
        return super().remembered() | {
            "ess": self.ess,
            "share": self.share,
            "acceptance": self.accepted.double().mean(1),
            "time": torch.tensor(self.time, dtype=torch.float64),
        }

    def told(self) -> dict[str, Any]:
        names = ("proposed", "accepted", "ess", "log_evidence", "share", "time")
        weights = {"log_weights": self.log_weights.values}
        return super().told() | weights | {name: getattr(self, name) for name in names}

    def pictured(self, own: slice) -> Tensor:
        """The proposals of this process, also at the end."""
        return self.boundary.estimate.untilted

    def news(self) -> str:
        best, mean = float(self.best_rewards.amax(1).mean()), float(self.rewards.mean())
        told = f"best {best:.4g}, mean {mean:.4g}, {self.costs.network_evaluations} evaluations"
        if self.boundary.index == 0:
            return told
        return f"{told}, {float(self.accepted.double().mean()):.0%} accepted"


class Refining(Course):
    """N chains: accept, weigh, exchange, move."""

    def __init__(self, settings: Refine, run: Run) -> None:
        self.settings, self.run, self.path = settings, run, run.table.path
        self.moving = run.moving_at(settings.weaker(run.moving.cfg_scale))
        solver = cast(Solver, run.table.solver or Default())
        if isinstance(solver, Default) and solver.guidance is not None:
            solver = replace(solver, guidance=settings.weaker(solver.guidance))
        self.solver = solver_for(solver, self.moving.cfg_scale)
        self.tables: dict[tuple[float, int], Table] = {}
        P, N = run.population.count, settings.particles
        self.z: Tensor | None = None  # this process's states
        self.best: Tensor | None = None
        self.rewards = self.best_rewards = torch.full((P, N), -math.inf, dtype=torch.float64)
        self.share = torch.zeros(P, 1, dtype=torch.float64)
        self.weights = LogWeights.uniform(P, N)
        self.ess = self.weights.ess()
        self.log_evidence = torch.zeros(P, dtype=torch.float64)
        self.proposed, self.accepted = self.rewards, torch.ones(P, N, dtype=torch.bool)
        self.told = self.stood = self.rewards  # before any exchange; and of where chains stand
        self.time = settings.time(run.first)
        self.given = run.population.init is not None
        self.begun = self.left_out = False

    # --- the chain --------------------------------------------------------------------------------

    def boundaries(self) -> Iterator[Boundary]:
        """The first samples, and what every move proposes."""
        run, K = self.run, self.settings.moves
        x = run.x
        if not (self.begun or self.given):
            for drawn in run.boundaries():
                x = drawn.x
        for k in itertools.count(run.first):
            transition = None
            if k < K:
                if not isinstance(self.settings.move_times, Acceptance):
                    self.time = self.settings.time(k)
                (transition,) = self._table(k)
            boundary = Boundary(k, 1.0, x, Estimate(x, x), transition)
            yield boundary
            if boundary.final:
                return
            with kept(boundary):
                x = self._proposal(self._table(k), boundary)

    def _table(self, k: int) -> Table:
        """Of move k: from where it noises to, to data; planned once."""
        t = time_on(self.path, self.time)
        steps = self.settings.asked(k, self.time, self.run.model.cfg_scale)
        if (t, steps) not in self.tables:
            self.tables[t, steps] = plan_transition(
                self.path, t, 1.0, rho=0.0, steps=steps, solver=self.solver
            )
        return self.tables[t, steps]

    def _proposal(self, table: Table, boundary: Boundary) -> Tensor:
        """Noise z to x_t, and draw z' from p(z | x_t)."""
        noise, k, t, z = self.run.noise, boundary.index, table.times[0], boundary.x
        x = self.path.alpha(t) * z + self.path.sigma(t) * noise(k, z, MOVE)
        return run_table(table, self.moving, x, lambda _, like: noise(k, like, MOVE, 1))

    def value(self, look: Look) -> None:
        run, boundary = self.run, look.boundary
        if self.left_out:
            self.proposed, self.accepted = self.rewards, torch.zeros_like(self.accepted)
        else:
            self._accept(boundary, run.split(run.scorer.rewards(boundary.x, look.where)))
        wanted = self.settings.until
        if wanted is not None and (self.best_rewards.amax(1) >= wanted).all():
            boundary.transition = None  # the end
        ahead = self._share(boundary)
        may_vanish = self.settings.degenerate == "carry"
        gained = self._gained(ahead)
        self.weights = self.weights.times(gained, look.where, all_may_vanish=may_vanish)
        self.ess = self.weights.ess()
        self.share = ahead
        self.stood = self.rewards
        if boundary.final:
            self._end(boundary, look.where)
        self.told = self.rewards

    def _end(self, boundary: Boundary, where: str) -> None:
        """What is returned, and its rewards."""
        if self.best is not None:
            boundary.x, self.rewards = self.best, self.best_rewards
        if count := self.settings.rescore:
            scorer, split = self.run.scorer, self.run.split
            fresh = [split(scorer.rewards(boundary.x, where)) for _ in range(count)]
            self.rewards = torch.stack(fresh).double().mean(0)

    def _accept(self, boundary: Boundary, proposed: Tensor) -> None:
        """Metropolis: z' where log u < λ_k (r' - r)."""
        run, k = self.run, boundary.index
        self.proposed = proposed.double()
        if self.z is not None:
            gain = scaled(run.scale * self.share, _difference(proposed, self.rewards))
            P, N = proposed.shape
            streams = (np.random.Generator(run.noise.bits(ACCEPTANCE, k, p)) for p in range(P))
            drawn = torch.from_numpy(np.stack([stream.random(N) for stream in streams]))
            self.accepted = drawn.log() < gain
            mine = self._own(self.accepted, boundary.x)
            boundary.x = torch.where(mine, boundary.x, self.z)
            proposed = torch.where(self.accepted, proposed, self.rewards)
            self._adapt(k)
        boundary.D = self.z = boundary.x
        self.rewards = proposed.double()
        better = self.rewards > self.best_rewards
        if self.settings.returned == "best":
            best = self.z if self.best is None else self.best
            self.best = torch.where(self._own(better, self.z), self.z, best)
        self.best_rewards = torch.where(better, self.rewards, self.best_rewards)

    def _own(self, flags: Tensor, like: Tensor) -> Tensor:
        """Flags (P, N) of this process's rows, to choose among states by."""
        mine = flags.flatten()[self.run.shards.own].to(like.device)
        return mine.view(-1, *[1] * (like.ndim - 1))

    def _adapt(self, k: int) -> None:
        """Robbins-Monro on log α/σ, by what the move to this boundary accepted."""
        rule = self.settings.move_times
        if isinstance(rule, Acceptance):
            rate = float(self.accepted.double().mean())
            signal = self.time / (1.0 - self.time) * math.exp(_GAIN * (rule.rate - rate) / k**0.5)
            self.time = min(max(signal / (1.0 + signal), 0.02), 0.98)

    def _gained(self, share: Tensor) -> Tensor:
        """(λ_{k+1} - λ_k) r; nothing more where λ_k excludes a sample already."""
        before, after = (scaled(self.run.scale * s, self.rewards) for s in (self.share, share))
        return torch.where(before == -math.inf, 0.0, after - before)

    def _share(self, boundary: Boundary) -> Tensor:
        """λ_{k+1}/λ, (P, 1): of the move ahead; 1 at the end."""
        settings, k = self.settings, boundary.index
        if boundary.final:
            return torch.ones_like(self.share)
        schedule = settings.schedule
        if schedule is None:
            schedule = "constant" if self.given else "linear"
        if isinstance(schedule, Adaptive):
            return schedule.choose(lambda s: self.weights.values + self._gained(s), self.share)
        fixed = share_at(schedule, k, (k + 1) / settings.moves, settings.moves)
        return torch.full_like(self.share, fixed)

    # --- held out ---------------------------------------------------------------------------------

    @property
    def shares(self) -> Tensor:
        return self.weights.normalized()

    def clean(self, boundary: Boundary) -> Tensor:
        """The proposals, which are decoded for the reward; at the end what is returned."""
        ended = boundary.final and self.best is not None
        return boundary.x if ended else boundary.estimate.untilted

    def settled(self, boundary: Boundary, new: Tensor, before: Tensor | None) -> Tensor:
        if before is None or (boundary.final and self.best is not None):
            return new
        return torch.where(self.accepted, new, before)

    def ladder(self, last: Step, history: Mapping[str, Tensor]) -> list[Rung]:
        """The chains at every boundary, which tilt towards the share of λ ahead."""
        names, rungs = list(last.also), list[Rung]()
        roots = Selection.everyone(*last.ancestors.shape).ancestors
        for k, ancestors in enumerate(history["ancestors"]):
            also = {name: history[f"also.{name}"][k] for name in names}
            rewards, weights = (history[f"beside.{name}"][k] for name in ("rewards", "weights"))
            scale = self.run.scale * float(history["share"][k].mean())
            plain = self.run.moving is self.run.model and not self.given
            if not k and plain:  # draws of the model, before they are weighted
                rungs.append(Rung(0.0, also, rewards, Beside.of({}, weights, None).weights, roots))
            rungs.append(Rung(scale, also, rewards, weights, roots, move=k))
            roots = roots.gather(1, ancestors)
        return rungs

    def end(self, boundary: Boundary) -> Boundary:
        """A move that was left out, so that it accepted nothing: the chains end where they are."""
        self.left_out = True
        return super().end(boundary)

    def stop_bias(self, boundary: Boundary) -> str:
        after = f"{boundary.index} of {self.run.length}"
        return f"the chains were stopped after move {after} by on_boundary"

    # --- exchange ---------------------------------------------------------------------------------

    def select(self, boundary: Boundary) -> Selection:
        settings, ess = self.settings, self.ess
        few = ess <= settings.ess_threshold * settings.particles
        tired = few & (ess > 0.0) & (not boundary.final)
        scheme, noise = settings.resampling, self.run.noise
        return Selection(ancestors_of(self.weights, tired, scheme, noise, boundary.index), tired)

    def gather(self, selection: Selection) -> None:
        tired, ancestors = selection.selected, selection.ancestors
        self.log_evidence = self.log_evidence + torch.where(tired, self.weights.log_mean(), 0.0)
        settled = torch.where(tired[:, None], 0.0, self.weights.values)
        self.weights = LogWeights(settled)
        self.rewards = self.rewards.gather(1, ancestors)
        self.best_rewards = self.best_rewards.gather(1, ancestors)
        if tired.any():
            rows = self.run.population.rows(ancestors)
            held = [t for t in (self.z, self.best) if t is not None]
            self.z, *rest = self.run.shards.select(rows, *held)
            self.best = rest[0] if rest else None

    # --- what is remembered -----------------------------------------------------------------------

    def step(
        self, boundary: Boundary, selection: Selection, costs: Costs, history: History
    ) -> RefineStep:
        return RefineStep(
            boundary=boundary,
            rewards=self.told,
            ancestors=selection.ancestors,
            resampled=selection.selected,
            costs=costs,
            history=history,
            proposed=self.proposed,
            accepted=self.accepted,
            best_rewards=self.best_rewards,
            log_weights=self.weights,
            ess=self.ess,
            log_evidence=self._evidence(),
            share=self.share[:, 0],
            time=1.0 if boundary.final else self.time,
        )

    def _evidence(self) -> Tensor:
        """Of samples of no known law there is none."""
        found = self.log_evidence + self.weights.log_mean()
        return torch.full_like(found, math.nan) if self.given else found

    def carried(self) -> dict[str, Tensor]:
        whole, held = self.run.shards.gather, {"z": self.z, "best": self.best}
        return {
            "rewards": self.rewards,
            "best_rewards": self.best_rewards,
            "share": self.share,
            "log_weights": self.weights.values,
            "log_evidence": self.log_evidence,
            "given": torch.tensor(self.given),
            "time": torch.tensor(self.time, dtype=torch.float64),
            **{name: whole(states) for name, states in held.items() if states is not None},
        }

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        own, self.begun = self.run.shards.own, True
        for name in ("rewards", "best_rewards", "share", "log_evidence"):
            setattr(self, name, carried[name])
        for name in ("z", "best"):
            if name in carried:
                setattr(self, name, carried[name][own].to(self.run.x))
        self.weights = LogWeights(carried["log_weights"])
        self.given, self.time = bool(carried["given"]), float(carried["time"])

    def weighed(self, last: Step) -> tuple[Tensor, Tensor, Tensor]:
        return self.stood, self.weights.values, self._evidence()

    def result(self, last: Step, biases: tuple[str, ...]) -> RefinedResult:
        end, history = cast(RefineStep, last), last.history.stacked()
        samples = end.boundary.x
        if self.given:
            biases = (*biases, "the chains began with samples that were given, of no known law")
        return RefinedResult(
            samples=samples.view(*end.ancestors.shape, *samples.shape[1:]),
            rewards=end.rewards,
            ancestry=history["ancestors"][:-1],
            costs=end.costs,
            log_weights=end.log_weights.values,
            ess=history["ess"],
            log_evidence=end.log_evidence,
            shares=history["share"],
            biases=biases,
            acceptance=history["acceptance"][1:],
            move_times=history["time"][:-1],
        )


def time_on(path: Path, time: float) -> float:
    """The path's time where α/σ is that of the linear path; a trained one where it has some."""
    low, high = path.amplitude(0.0), path.amplitude(1.0)
    t = path.time(min(max(time / (1.0 - time), low), high))
    if path.trained_times is None:
        return t
    return min(path.trained_times, key=lambda trained: abs(trained - t))


def _difference(new: Tensor, old: Tensor) -> Tensor:
    """r' - r; between excluded samples 0, from one to any other a gain."""
    return torch.where(new == old, 0.0, new - old)
