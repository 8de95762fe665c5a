"""What every method is: settings, and a course through a run that looks at its boundaries."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Self

from torch import Tensor

from ..denoisers import DenoiserLike, Estimate
from ..errors import MOST_PARTICLES, InvalidArgument, shown
from ..execute import Boundary
from ..guidance import Guidance
from ..plans import Sampler, Table
from ..settings import Count, Listed, Object, Settings, setting
from .overoptimisation import Rung
from .population import Run
from .results import Costs, SearchResult
from .state import History, Selection, Step
from .strength import SCALE, Auto, Scale
from .values import FreeValue, Look, PosteriorValue, Value, resolve_value

__all__ = ["BOUNDARIES", "GUIDANCE", "PARTICLES", "SCALE", "VALUE", "Course", "Method"]


def _no_guidance(given: object) -> object:
    raise InvalidArgument(
        f"guidance must be glass_flows.Guidance(...), {GUIDANCE.allowed}, or None, "
        f"got {shown(given)}"
    )


PARTICLES = Count(most=MOST_PARTICLES)
BOUNDARIES = Listed(Count(optional=True), item=Count(least=0))
VALUE = Object(
    "value",
    "'free', 'posterior[:SAMPLES[:STEPS]]', PosteriorValue(samples, steps) or a function "
    "V(x, t, D) in log units",
    heads={"free": FreeValue, "posterior": PosteriorValue},
    resolve=resolve_value,
)
GUIDANCE = Object(
    "guidance",
    "'reward[:SCALE]', 'network[:SCALE]', with ':clip=...' after it",
    heads={
        "reward": (Guidance, {"through": "reward"}),
        "network": (Guidance, {"through": "network"}),
    },
    resolve=_no_guidance,
    optional=True,
)


@dataclass(frozen=True, repr=False)
class Method(Settings, ABC):
    """A way to spend network evaluations and looks at the reward on N particles.

    Parameters
    ----------
    particles : int
        N >= 1, of a population: all that are moved at once.
    scale : float, "auto", or "auto:NATS"
        λ >= 0 of the target p(z) exp(λ r(z)); values are in log units, λ r. "auto" is the λ at
        which that law is 1.2 nats, or so many, from the model's, found from the reward's spread in
        a pilot of plain samples with noise of its own; or the λ that the reward brings.
    boundaries : None, int, or list of int
        Where values are taken: at every n-th transition start, or at those listed. None is
        wherever a transition draws noise, if what is seen there can act.
    value : "free", "posterior[:SAMPLES[:STEPS]]", a Value, or a function V(x, t, D)
        "free" is λ r(D_t(x_t)), which costs no network evaluation; a posterior value is the
        log-mean-exp of λ r over so many draws of p(z | x_t) of so many evaluations each; a
        function returns (B,) in log units.
    guidance : None, "reward[:SCALE]", "network[:SCALE]", or Guidance
        Tilt the denoiser that moves the particles by the reward's gradient, through the reward
        alone or through the network too. Biases the target; a result with weights says so.
    degenerate : "error" or "carry"
        When all weights of a population vanish: stop with DegenerateWeights, or carry the weights
        on without resampling (they count again at later boundaries; a population that ends
        without weight has log-evidence -inf).

    Notes
    -----
    The first two are of every method, the others of those that have such a field.
    """

    particles: int = setting(8, PARTICLES)
    scale: Scale = setting(Auto(), SCALE, unwritten=1.0)
    weighted: ClassVar[bool] = False
    """Whether the particles come with weights."""
    remedy: ClassVar[str] = "lower the scale, or refine"
    """What helps where all that is returned descends from one particle."""

    @property
    @abstractmethod
    def guidance(self) -> Guidance | None: ...

    @property
    def guided(self) -> bool:
        return self.guidance is not None and self.guidance.scale > 0.0

    @property
    def tilts(self) -> bool:
        """Whether λ has a say in what is returned; where not, "auto" needs no pilot and is 1."""
        return True

    @property
    def differentiates(self) -> bool:
        """Whether gradients of the reward are asked for."""
        return self.guided

    @property
    def looks_with(self) -> Value:
        """How values are taken at a boundary."""
        return FreeValue()

    def check_guidance(self, w: float) -> None:
        """Raise if a setting cannot act on a network under this classifier-free guidance."""

    def fitted(self, denoiser: DenoiserLike) -> Self:
        """With what was left to the denoiser; raises where a setting cannot act on it."""
        return self

    @abstractmethod
    def steered(self, table: Table) -> frozenset[int]:
        """The transition starts at which values are taken."""

    def check_table(self, table: Table) -> None:
        """Raise unless the table can be run in this way."""
        self.steered(table)

    def calls(self, table: Table, first: int = 0, guidance: float = 1.0) -> int:
        """Denoiser calls from transition `first` on, for progress bars, of a network under this
        much classifier-free guidance."""
        own = sum(len(transition.rows) for transition in table.transitions[first:])
        looks = (k for k in self.steered(table) if k >= first)
        return own + sum(self.looks_with.extra_calls(table.path, table.times[k]) for k in looks)

    def length(self, table: Table) -> int:
        """Boundaries of a run, without its end."""
        return len(table)

    def evaluations(self, sampler: Sampler, guidance: float = 1.0) -> int:
        """Network evaluations of each particle, without those of its looks, of a network under
        this much classifier-free guidance."""
        return sampler.evaluations

    @property
    def returns(self) -> int:
        """How many particles of each population are returned."""
        return self.particles

    @abstractmethod
    def begin(self, run: Run) -> Course:
        """Before the first boundary of a run."""

    def biases(self, denoiser: DenoiserLike) -> tuple[str, ...]:
        """Why the weighted particles would not target p(z) exp(λ r(z)), p the sampler's own law."""
        return ()


class Course(ABC):
    """What a method knows on its way through one run, and what it does at each boundary."""

    run: Run

    def boundaries(self) -> Iterator[Boundary]:
        """Where the run stops, the last with the samples: at the transitions of its table."""
        return self.run.boundaries()

    def wants_gradient(self, boundary: Boundary) -> bool:
        """Whether ∇r at D will be wanted with r."""
        return False

    @abstractmethod
    def value(self, look: Look) -> None:
        """Take values, or at the end rewards, and weigh by them."""

    @property
    def shares(self) -> Tensor | None:
        """Weights (P, N) that sum to 1, before selection; None without any."""
        return None

    def clean(self, boundary: Boundary) -> Tensor | None:
        """The clean states of this process that held-out rewards are asked about; None where no
        values were taken."""
        return boundary.x if boundary.final else boundary.estimate.untilted

    def settled(self, boundary: Boundary, new: Tensor, before: Tensor | None) -> Tensor:
        """What a held-out reward says of the particles, (P, N): what it says of those states, or
        said of the particles before."""
        return new

    def ladder(self, last: Step, history: Mapping[str, Tensor]) -> list[Rung]:
        """Clean samples of this one run at rising λ, with what held-out rewards say of them; none
        where nothing can be compared."""
        return []

    @abstractmethod
    def select(self, boundary: Boundary) -> Selection:
        """Who goes on."""

    def gather(self, selection: Selection) -> None:
        """What is known of each particle goes to its copies."""
        return

    def move(self, look: Look, selection: Selection) -> None:
        """Shift the noise of the transition about to run."""
        return

    @abstractmethod
    def step(
        self, boundary: Boundary, selection: Selection, costs: Costs, history: History
    ) -> Step:
        """What happened."""

    def carried(self) -> dict[str, Tensor]:
        """All that the next boundary needs."""
        return {}

    def restore(self, carried: Mapping[str, Tensor]) -> None:
        """Inverse of :meth:`carried`."""
        return

    def end(self, boundary: Boundary) -> Boundary:
        """The end of a run that is stopped at a boundary, once everything is done there: its clean
        estimates, in the place of samples."""
        return Boundary(boundary.index + 1, 1.0, boundary.D, Estimate(boundary.D, boundary.D), None)

    def stop_bias(self, boundary: Boundary) -> str:
        """Why the weights of a run that was stopped there are not exact; "" if they are."""
        return (
            f"stopped at boundary {boundary.index} of {self.run.length} (t = {boundary.t:.4g}) by "
            "on_boundary: the samples are clean estimates"
        )

    def weighed(self, last: Step) -> tuple[Tensor, Tensor, Tensor] | None:
        """Rewards, log-weights (P, N) and log-evidence (P,) at the end; None without weights."""
        return None

    def returned(self, last: Step) -> Tensor:
        """The particles that are returned of each population, (P, n)."""
        return Selection.everyone(*last.rewards.shape).ancestors

    @abstractmethod
    def result(self, last: Step, biases: tuple[str, ...]) -> SearchResult:
        """What the whole run comes to."""
