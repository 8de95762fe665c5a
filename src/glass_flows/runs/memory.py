"""A result that has no folder, looked at like a run that has."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from ..pixels import contact_sheet
from ..steering import SearchResult
from .record import RunRecord
from .result import samples_of, tell

_TILE = 96  # longest side of an image in the tree, in pixels


@dataclass(frozen=True)
class RunInMemory(RunRecord):
    """A finished run that was not recorded: of its boundaries only who descends from whom is known.

    Attributes
    ----------
    pictures : dict
        Images by the names of the samples' files.
    passed : list of dict
        Its events.
    """

    pictures: Mapping[str, Image.Image] = field(default_factory=dict)
    passed: Sequence[dict[str, Any]] = ()

    @property
    def events(self) -> list[dict[str, Any]]:
        return list(self.passed)

    @classmethod
    def of(
        cls,
        result: SearchResult,
        rows: Sequence[Sequence[Image.Image]],
        files: Sequence[Sequence[str]],
        prompts: Sequence[Any],
        job: Mapping[str, Any],
        **beside: Any,
    ) -> RunInMemory:
        """Of images (P, N), the names of their files and the settings as JSON; `beside` is what
        :func:`.result.tell` is told further."""
        told = tell(result, job, prompts, job.get("seed"), files, **beside)
        texts = [str(prompt) for prompt in prompts]
        K, P, N = result.ancestry.shape
        return cls(
            folder=Path(),
            title="; ".join(texts),
            created="",
            job=json.loads(json.dumps(job, default=repr)),
            table=None,
            table_text="",
            populations=P,
            particles=N,
            returned=result.rewards.shape[1],
            transitions=K,
            prompts=texts,
            versions={},
            result=told,
            error=None,
            samples=samples_of(told, texts, job.get("seed")),
            pictures={name: one for pair in zip(files, rows) for name, one in zip(*pair)},
            passed=_events(result),
        )

    def picture(self, name: str) -> Image.Image | None:
        found = self.pictures.get(name)
        return None if found is None else found.copy()  # a report makes it smaller in place

    def estimates(self, boundary: int) -> Image.Image | None:
        """The images, at the end."""
        if boundary < self.transitions or self.returned < self.particles:
            return None
        rows = [
            [self.pictures[one.file] for one in row if one.file is not None] for row in self.samples
        ]
        return contact_sheet(rows, _TILE, Image.Resampling.BILINEAR)


def _events(result: SearchResult) -> list[dict[str, Any]]:
    """Boundaries without what nobody wrote down: times, values, costs on the way."""
    K, P, N = result.ancestry.shape
    found, every = vars(result), torch.arange(N).expand(P, N)
    nothing = [[math.nan] * N] * P
    events = []
    for k in range(K + 1):
        final = k == K
        ancestors = every if final else result.ancestry[k]
        event = {
            "boundary": k,
            "t": 1.0 if final else math.nan,
            "final": final,
            "rewards": nothing,
            "ancestors": ancestors.tolist(),
            "resampled": (ancestors != every).any(1).tolist(),
            "seconds": math.nan,
        }
        if final and result.rewards.shape[1] == N:
            event["rewards"] = result.rewards.tolist()
        if "ess" in found:
            event["ess"] = found["ess"][k].tolist()
        if final:
            event["costs"] = asdict(result.costs)
            if "log_evidence" in found:
                event["log_evidence"] = found["log_evidence"].tolist()
        events.append(event)
    return events
