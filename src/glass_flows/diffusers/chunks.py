"""A network inside a pipeline's own loop, asked about some rows of a batch at a time."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidArgument

_INPUTS = ("hidden_states", "sample", "x")


def batch_of(network: nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> int:
    """How many rows a network is called with: those of its first input."""
    given = args[0] if args else next((kwargs[n] for n in _INPUTS if n in kwargs), None)
    if given is None:
        raise InvalidArgument(f"cannot tell the batch of a call of {type(network).__name__}")
    return len(given)


@contextmanager
def replaced(owner: Any, name: str, method: Callable[..., Any]) -> Iterator[None]:
    """Within, an object has another method of this name; hooks keep theirs in the same place."""
    own = vars(owner).get(name)
    setattr(owner, name, method)
    try:
        yield
    finally:
        delattr(owner, name)
        if own is not None:
            setattr(owner, name, own)


def in_chunks(network: nn.Module, rows: int, most: int) -> AbstractContextManager[None]:
    """Within, `network` sees at most `most` of a pipeline's `rows` particles at a time.

    A call of several passes, as of classifier-free guidance, has a multiple of `rows`. Each part
    has all passes of its particles, in the order of the whole: there are networks that tell passes
    apart by their place in the batch (perturbed attention). What has a row for each of the batch is
    cut with it, tensors by their first dimension and lists by their length; all else is shared.
    """
    whole = network.forward

    def forward(*args: Any, **kwargs: Any) -> Any:
        batch = batch_of(network, args, kwargs)
        if batch <= most * max(1, batch // rows):
            return whole(*args, **kwargs)
        answers, parts = [], _parts(batch, rows, most)
        for part in parts:
            some, named = rows_of(args, part, batch), rows_of(kwargs, part, batch)
            answers.append(_copied(whole(*some, **named)))
        back = sorted(range(batch), key=[row for part in parts for row in part].__getitem__)
        return _joined(answers, back)

    return replaced(network, "forward", forward)


def _parts(batch: int, rows: int, most: int) -> list[list[int]]:
    """Rows of the batch that are asked about together."""
    if batch % rows:
        size = most * max(1, batch // rows)
        return [[*range(i, min(i + size, batch))] for i in range(0, batch, size)]
    first = (range(i, min(i + most, rows)) for i in range(0, rows, most))
    return [[start + i for start in range(0, batch, rows) for i in some] for some in first]


def rows_of(value: Any, part: list[int], batch: int, name: str = "") -> Any:
    """The rows of a part, of all in it that has a row for each of a batch."""
    if isinstance(value, Mapping):
        return {key: rows_of(held, part, batch, key) for key, held in value.items()}
    if isinstance(value, tuple):
        return tuple(rows_of(held, part, batch, name) for held in value)
    if isinstance(value, list):
        tensors = [held for held in value if isinstance(held, Tensor)]
        apart = len(value) == batch
        each = bool(tensors) and all(held.ndim and len(held) == batch for held in tensors)
        if apart and each:
            raise InvalidArgument(
                f"max_batch: {name} is a list of {batch} tensors of {batch} rows: it cannot be "
                "told what is whose. Take another number of particles"
            )
        return (
            [value[i] for i in part]
            if apart
            else [rows_of(held, part, batch, name) for held in value]
        )
    shared = name.endswith("_ids") and isinstance(value, Tensor) and value.shape[-1:] == (3,)
    if not isinstance(value, Tensor) or value.ndim == 0 or shared:  # places of tokens have no rows
        return value
    return value[part] if len(value) == batch else value


def _copied(answer: Any) -> Any:
    """In memory of its own: a compiled network may answer in the same memory again."""
    if isinstance(answer, Tensor):
        return answer.clone()
    if isinstance(answer, Mapping):  # an output object of diffusers
        return type(answer)(**{key: _copied(held) for key, held in answer.items()})
    if isinstance(answer, (tuple, list)):
        copies = map(_copied, answer)
        return tuple(copies) if isinstance(answer, tuple) else list(copies)
    return answer


def _joined(answers: list[Any], back: list[int]) -> Any:
    """What the parts returned, as the whole would have been: row i is `back[i]` of theirs."""
    first = answers[0]
    if isinstance(first, Tensor):
        return torch.cat(answers)[back]
    if isinstance(first, Mapping):
        return type(first)(**{key: _joined([one[key] for one in answers], back) for key in first})
    if isinstance(first, tuple):
        return tuple(_joined(list(parts), back) for parts in zip(*answers))
    if isinstance(first, list):
        whole = [one for answer in answers for one in answer]
        return [whole[i] for i in back]
    return first
