"""One pass through a table in a loop that somebody else owns, and that may edit what it is handed.

A generator runs the table (:func:`glass_flows.execute.interpret`), and no generator can be copied.
Between two transitions, though, all that there is to a run is its state x, from which a copy begins
anew: so schedulers can be copied and pickled at any time, and pipelines that keep a copy for every
view of theirs run where every evaluation is a transition.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from typing import Any

import torch
from torch import Tensor

from ..denoisers import Estimate
from ..errors import InvalidArgument, ShapeError
from ..execute import Boundary, Query, interpret
from ..plans import Table
from ..plans.table import Mix


class Pass:
    """A table on its way from x: :meth:`asked` and :meth:`answered` by turns, row after row.

    Attributes
    ----------
    table : Table
        What is run: for image-to-image the rest of the scheduler's.
    noise : Noise
        Of the transitions; it is copied with the pass.
    row : int
        Number of the row whose answer is due, in the scheduler's table.
    query : Query or None
        That row's evaluation; None at the end, and in a copy that was made inside a transition.
    """

    def __init__(self, table: Table, x: Tensor, noise: Any, starts: Sequence[int], row: int):
        self.table, self.noise, self.row = table, noise, row
        self.starts = tuple(starts)  # first rows of the transitions, the end among them
        self.patient = x.device.type != "cpu"
        self.cut = False  # in a copy that cannot go on
        self.edits: list[tuple[Tensor, int]] = []
        self.hand(None)
        self._begin(x, 0)

    def _begin(self, x: Tensor, first: int) -> None:
        self.steps: Generator[Query | Boundary, Estimate | None, None] | None = interpret(
            self.table, x, self.noise, patient=self.patient, first=first
        )
        step = next(self.steps)
        self.query: Query | None = step if isinstance(step, Query) else None

    def __getstate__(self) -> dict[str, Any]:
        state = {key: held for key, held in vars(self).items() if key not in ("steps", "query")}
        at, state["whole"] = self.query, None
        if at is not None:
            between = at.row == 0 and self.table.transitions[at.index].input == Mix(x=1.0)
            state |= {"whole": (at.y, at.index)} if between else {"cut": True}
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        whole = state.pop("whole")
        vars(self).update(state, steps=None, query=None)
        if whole is not None:
            self._begin(*whole)
        self.hand(self.handed)

    def asked(self, sample: Tensor) -> Query:
        """The evaluation that was just made on `sample`, with its input in our precision."""
        query = self.query
        if query is None:
            where = (
                "this scheduler was copied inside a transition, where it cannot go on (with "
                "steps=1 there is no inside)"
                if self.cut
                else f"all {self.row} evaluations of this run have been made, or it was stopped"
            )
            raise InvalidArgument(f"{where}: call set_timesteps before the next one")
        handed, before = self.handed, self.before
        if handed is None or before is None:  # the run begins
            return query
        counted = sample is handed and self.version is not None
        if counted and sample._version == self.version:
            return query
        if sample.shape != handed.shape:
            raise ShapeError(f"the sample was {tuple(handed.shape)}, now {tuple(sample.shape)}")
        if query.row == 0 and counted:
            query.y = sample.to(query.y.dtype)
        elif query.row == 0:
            if query.y is not sample:  # an edit passes through; without one these are exact zeros
                query.y = query.y + (sample.to(query.y.dtype) - before.to(query.y.dtype))
        else:
            edited = torch.tensor(True) if counted else (sample != before).any()
            self.edits.append((edited, self.row))
            if not self.patient or len(self.edits) == 1:
                self.check_edits()
        return query

    def answered(self, D: Tensor, look: Callable[[Boundary], None] | None = None) -> Tensor:
        """The next network input, or the samples; `look` is told of every boundary passed."""
        if self.steps is None:
            raise InvalidArgument("no evaluation was asked for")
        self.query, steps = None, self.steps  # so it stays if what follows raises
        step: Query | Boundary | None = steps.send(Estimate(D, D))
        while isinstance(step, Boundary):
            if look is not None:
                look(step)
            y, step = step.x, next(steps, None)
        self.row += 1
        if step is None:
            self.check_edits()
            return y
        self.query = step
        return step.y

    def hand(self, y: Tensor | None) -> None:
        """Remember what the loop is given, to tell later whether it was edited."""
        # Without a counter of versions, under torch.inference_mode, only a copy tells of edits.
        counted = y is not None and not y.is_inference()
        self.handed: Tensor | None = y
        self.before = y if y is None or counted else y.clone()
        self.version = y._version if y is not None and counted else None

    def check_edits(self) -> None:
        """Raise InvalidArgument if latents were edited inside a transition."""
        for edited, row in self.edits:
            if bool(edited):
                raise InvalidArgument(
                    f"the latents were changed before evaluation {row}, inside a transition, where "
                    "they are a query and not the sampler's state. Change them at the start of a "
                    f"transition only: after step i with i + 1 in {list(self.starts[:-1])}, or "
                    "use steps=1"
                )
