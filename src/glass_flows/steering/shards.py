"""One batch of particles over several processes, with torch.distributed.

The rows of the batch are cut into micro-batches at fixed places, and every process holds a run of
whole ones. The network and the reward see one micro-batch at a time, noise is keyed by the
particle's number, and decisions are taken by every process alike from the values of all. So for a
given micro-batch the results have the same bits, whatever the number of processes.

What is exchanged at a boundary: 8 bytes a particle for every number gathered (values, rewards) and,
where particles are resampled, each survivor that another process copies, once, with its D; with
twisted noise also the gradients and estimates of all.
"""

from __future__ import annotations

from collections.abc import Sequence
from copy import copy

import torch
import torch.distributed as dist
from torch import Tensor

from ..denoisers import BaseDenoiser, Estimate, WrappedDenoiser
from ..errors import InvalidArgument, check_count, rows_from

__all__ = ["Pieces", "Shards"]


class Shards:
    """How the particles of a run lie over the processes of torch.distributed's default group.

    Outside of a group there is one process that holds all of them, in the same micro-batches.

    Parameters
    ----------
    micro_batch : int, optional
        Rows that the network and the reward see at a time. The same for one process and for many,
        it makes their results the same to the bit (on the CPU, with as many threads). Without it
        every process takes its share at once.

    Attributes
    ----------
    rank, count : int
        Of this process, and how many there are.
    own : slice
        This process's rows of the batch.
    pieces : list of slice
        Its micro-batches, counted from its first row.
    exchanged : int
        Bytes of particles that this process has sent to others when resampling.
    gathered : int
        Bytes that it has sent to each of the others otherwise.
    """

    def __init__(self, micro_batch: int | None = None) -> None:
        self.micro_batch = None if micro_batch is None else check_count("micro_batch", micro_batch)
        together = dist.is_available() and dist.is_initialized()
        self.rank = dist.get_rank() if together else 0
        self.count = dist.get_world_size() if together else 1
        nccl = together and dist.get_backend() == "nccl"
        self.wire = torch.device("cuda", torch.cuda.current_device()) if nccl else None
        self.exchanged = self.gathered = 0
        self.own, self.pieces = slice(0, 0), [slice(0, 0)]
        self._bounds = [0]

    @classmethod
    def alone(cls, micro_batch: int | None = None) -> Shards:
        """All particles in this process, whatever groups it belongs to."""
        found = cls(micro_batch)
        found.rank, found.count, found.wire = 0, 1, None
        return found

    def cut(self, rows: int) -> None:
        """Deal out a batch of so many rows.

        Raises
        ------
        InvalidArgument
            There are fewer micro-batches than processes.
        """
        size = self.micro_batch or -(-rows // self.count)
        number = -(-rows // size)
        if number < self.count:
            raise InvalidArgument(
                f"{rows} particles in micro-batches of {size} are {number} of them, for "
                f"{self.count} processes: take more particles, fewer processes, or micro_batch <= "
                f"{rows // self.count}"
            )
        ends = [min(rows, size * (r * number // self.count)) for r in range(self.count + 1)]
        self._bounds = ends
        first, last = ends[self.rank], ends[self.rank + 1]
        self.own = slice(first, last)
        self.pieces = [
            slice(i - first, min(i + size, last) - first) for i in range(first, last, size)
        ]

    def gather(self, own: Tensor) -> Tensor:
        """The rows of all processes, in order, from those of each."""
        if self.count == 1:
            return own
        sizes = [b - a for a, b in zip(self._bounds, self._bounds[1:])]
        sent = own.new_zeros((max(sizes), *own.shape[1:]), device=self.wire or own.device)
        sent[: len(own)] = own
        parts = [torch.empty_like(sent) for _ in sizes]
        dist.all_gather(parts, sent)
        self.gathered += sent.nbytes
        return torch.cat([part[:size] for part, size in zip(parts, sizes)]).to(own.device)

    def agreed(self, numbers: Tensor) -> Tensor:
        """Those of the first process, in all."""
        if self.count == 1:
            return numbers
        sent = numbers.to(self.wire or numbers.device, copy=True)
        dist.broadcast(sent, 0)
        return sent.to(numbers.device)

    def total(self, *numbers: int) -> list[int]:
        """Sums over the processes."""
        if self.count == 1:
            return list(numbers)
        sums = torch.tensor(numbers, device=self.wire)
        dist.all_reduce(sums)
        found: list[int] = sums.tolist()
        return found

    def select(self, rows: Tensor, *tensors: Tensor) -> list[Tensor]:
        """This process's rows of every ``tensor[rows]``, were it one of all processes.

        `rows` (P N,) int64 are numbers in the whole batch, the same in every process.
        """
        wanted = rows[self.own].cpu()
        if self.count == 1:
            return [tensor[wanted.to(tensor.device)] for tensor in tensors]
        held = range(self.own.start, self.own.stop)
        places = [slice(a, b) for a, b in zip(self._bounds, self._bounds[1:])]
        others = [r for r in range(self.count) if r != self.rank]
        needed = {r: sorted({i for i in rows[places[r]].tolist() if i in held}) for r in others}
        missing = {
            r: [i for i in sorted(set(wanted.tolist())) if places[r].start <= i < places[r].stop]
            for r in others
        }
        known = [*held, *(i for r in others for i in missing[r])]
        place = {row: k for k, row in enumerate(known)}
        index = torch.tensor([place[row] for row in wanted.tolist()])
        return [self._swap(tensor, needed, missing)[index.to(tensor.device)] for tensor in tensors]

    def _swap(
        self, own: Tensor, needed: dict[int, list[int]], missing: dict[int, list[int]]
    ) -> Tensor:
        """Own rows, followed by those that are missing, which others send; sends what they need."""
        wired = own.to(self.wire) if self.wire else own
        received, steps = [], []
        for r in sorted(needed):
            if missing[r]:
                received.append(wired.new_empty((len(missing[r]), *own.shape[1:])))
                steps.append(dist.P2POp(dist.irecv, received[-1], r))
            if needed[r]:
                sent = wired[torch.tensor(needed[r], device=wired.device) - self.own.start]
                self.exchanged += sent.nbytes
                steps.append(dist.P2POp(dist.isend, sent, r))
        for request in dist.batch_isend_irecv(steps) if steps else ():
            request.wait()
        return torch.cat([wired, *received]).to(own.device)


class Pieces(WrappedDenoiser):
    """A denoiser that is asked about one micro-batch at a time.

    `rows` is the whole batch that the denoiser's conditioning is for; `shards` says which of them
    are here.
    """

    def __init__(self, denoiser: BaseDenoiser, shards: Shards, rows: int) -> None:
        super().__init__(denoiser)
        self.first = first = shards.own.start
        self.parts = [
            (piece, denoiser.rows(slice(first + piece.start, first + piece.stop), rows))
            for piece in shards.pieces
        ]

    def estimate(self, x: Tensor, t: float) -> Estimate:
        found = []
        for piece, denoiser in self.parts:
            with rows_from(self.first + piece.start):
                found.append(denoiser.estimate(x[piece], t))
        return joined(found)

    def at_cfg_scale(self, scale: float) -> Pieces | None:
        other = copy(self)
        other.parts = []
        for piece, one in self.parts:
            denoiser = one.at_cfg_scale(scale)
            if denoiser is None:
                return None
            other.denoiser = denoiser  # whose costs and guidance are those of all parts
            other.parts.append((piece, denoiser))
        return other


def joined(parts: Sequence[Estimate]) -> Estimate:
    """One estimate of the estimates of its parts."""
    if len(parts) == 1:
        return parts[0]
    D = torch.cat([part.D for part in parts])
    same = parts[0].untilted is parts[0].D
    untilted = D if same else torch.cat([part.untilted for part in parts])
    rewards = [part.rewards for part in parts if part.rewards is not None]
    gradients = [part.gradient for part in parts if part.gradient is not None]
    return Estimate(
        D,
        untilted,
        torch.cat(rewards) if rewards else None,
        torch.cat(gradients) if gradients else None,
    )
