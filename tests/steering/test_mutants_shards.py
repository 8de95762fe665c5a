"""Dealing out particles, with threads for processes: every number that a process holds or sends."""

from __future__ import annotations

import threading
from collections import namedtuple
from concurrent.futures import ThreadPoolExecutor
from queue import Queue

import pytest
import torch

from glass_flows import Denoiser
from glass_flows.paths import Linear
from glass_flows.steering import Shards, shards
from glass_flows.steering.shards import Pieces

SECONDS = 5.0  # before a process that waits for another gives up
Operation = namedtuple("Operation", "what tensor peer")


class Threads:
    """What `shards` asks of torch.distributed, among threads of this process."""

    isend, irecv, P2POp = "send", "receive", Operation

    def __init__(self, count, backend):
        self.count, self.backend, self.me = count, backend, threading.local()
        self.barrier, self.board = threading.Barrier(count), [None] * count
        self.mail = {(a, b): Queue() for a in range(count) for b in range(count)}

    def is_available(self):
        return True

    is_initialized = is_available

    def get_rank(self):
        return self.me.rank

    def get_world_size(self):
        return self.count

    def get_backend(self):
        return self.backend

    def _shown(self, tensor):
        """Everybody's tensor of this call."""
        self.board[self.get_rank()] = tensor.clone()
        self.barrier.wait(SECONDS)
        found = list(self.board)
        self.barrier.wait(SECONDS)
        assert all(one.shape == tensor.shape for one in found)
        return found

    def all_gather(self, parts, sent):
        found = self._shown(sent)
        assert len(parts) == len(found)
        for part, one in zip(parts, found):
            part.copy_(one)

    def broadcast(self, tensor, source):
        tensor.copy_(self._shown(tensor)[source])

    def all_reduce(self, tensor):
        tensor.copy_(sum(self._shown(tensor)))

    def batch_isend_irecv(self, operations):
        for one in operations:
            if one.what == self.isend:
                self.mail[self.get_rank(), one.peer].put(one.tensor.clone())
        return [self._Received(self, one) for one in operations if one.what == self.irecv]

    class _Received:
        def __init__(self, threads, operation):
            self.mail = threads.mail[operation.peer, threads.get_rank()]
            self.tensor = operation.tensor

        def wait(self):
            found = self.mail.get(timeout=SECONDS)
            assert found.shape == self.tensor.shape
            self.tensor.copy_(found)


@pytest.fixture
def everywhere(monkeypatch):
    def run(count, work, backend="gloo"):
        """What `work(rank)` gives in each of so many processes."""
        threads = Threads(count, backend)
        monkeypatch.setattr(shards, "dist", threads)

        def one(rank):
            threads.me.rank = rank
            return work(rank)

        with ThreadPoolExecutor(count) as pool:
            return list(pool.map(one, range(count)))

    return run


PARENTS = {
    "themselves": [0, 1, 2, 3, 4, 5, 6],
    "all of one": [3, 3, 3, 3, 3, 3, 3],
    "of the ends": [6, 0, 6, 0, 6, 0, 6],
    "of neighbours": [1, 2, 3, 4, 5, 6, 0],
    "of others": [4, 5, 6, 0, 1, 2, 3],
    "of edges": [2, 2, 3, 4, 4, 5, 2],
}


ENDS = {2: (0, 3, 7), 3: (0, 2, 4, 7)}  # of the shares of seven particles
BYTES = 6 * 4 + 8  # a particle's six float32 and its reward in float64


@pytest.mark.parametrize("parents", PARENTS.values(), ids=PARENTS)
@pytest.mark.parametrize("count", ENDS)
def test_every_process_has_its_rows_of_the_whole_and_sends_what_others_lack(
    count, parents, everywhere
):
    x, rewards, rows = torch.arange(42.0).view(7, 2, 3), torch.arange(7.0).double(), parents
    ends, holder = ENDS[count], {}
    for rank in range(count):
        holder |= dict.fromkeys(range(ends[rank], ends[rank + 1]), rank)

    def work(rank):
        one = Shards(1)
        assert (one.rank, one.count, one.wire) == (rank, count, None)
        assert (one.exchanged, one.gathered) == (0, 0)
        one.cut(7)
        own = slice(ends[rank], ends[rank + 1])
        assert one.own == own
        assert torch.equal(one.gather(x[own]), x) and torch.equal(one.gather(rewards[own]), rewards)
        assert one.gathered == {2: 4, 3: 3}[count] * BYTES  # the longest share, from all
        assert one.total(rank, 5) == [count * (count - 1) // 2, 5 * count]
        assert one.agreed(torch.tensor([rank + 7.0])).tolist() == [7.0]
        found = one.select(torch.tensor(rows), x[own], rewards[own])
        assert torch.equal(found[0], x[rows][own]) and torch.equal(found[1], rewards[rows][own])
        return one.exchanged

    for rank, exchanged in enumerate(everywhere(count, work)):
        sent = {
            (parent, holder[i])
            for i, parent in enumerate(parents)
            if holder[parent] == rank != holder[i]
        }
        assert exchanged == BYTES * len(sent)


def test_with_nccl_all_is_sent_from_the_gpu(everywhere, monkeypatch):
    monkeypatch.setattr(torch.cuda, "current_device", lambda: 1)
    assert everywhere(2, lambda rank: Shards().wire) == [None, None]
    assert everywhere(2, lambda rank: Shards().wire, "nccl") == [torch.device("cuda", 1)] * 2
    assert everywhere(2, lambda rank: Shards.alone().wire, "nccl") == [None, None]


def labelled(**options):
    """A network that adds each row's label, and can be had under other guidance."""
    return Denoiser(
        lambda x, t, label: x + label, Linear(), "sample",
        conditioning={"label": torch.arange(8.0)[:, None]},
        unconditional={"label": torch.zeros(1, 1)}, **options,
    )  # fmt: skip


def test_micro_batches_have_their_rows_of_the_conditioning():
    """Of two processes the second holds rows 4 to 7."""
    second = Shards(2)
    second.rank, second.count = 1, 2
    second.cut(8)
    pieces = Pieces(labelled(guidance_scale=3.0), second, 8)
    for model, w in ((pieces, 3.0), (pieces.at_cfg_scale(2.0), 2.0)):
        assert model(torch.zeros(4, 1), 0.5).flatten().tolist() == [4 * w, 5 * w, 6 * w, 7 * w]
        assert (model.cfg_scale, model.evaluations_per_call) == (w, 2)
    assert pieces.at_cfg_scale(1.0).evaluations_per_call == 1
    alone = Pieces(Denoiser(lambda x, t: x, Linear()), second, 8)
    assert alone.at_cfg_scale(2.0) is None
