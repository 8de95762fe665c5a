"""One population over several processes: the same bits, and only what must be exchanged."""

from __future__ import annotations

import json
import multiprocessing
import os
from pathlib import Path

import pytest
import sharded_run
import torch
from safetensors.torch import load_file

from glass_flows import Denoiser
from glass_flows.denoisers import Estimate
from glass_flows.errors import InvalidArgument, NonFinite
from glass_flows.paths import Linear
from glass_flows.runs import read_run
from glass_flows.steering import Shards, shards
from glass_flows.steering.shards import Pieces, joined

FORK = multiprocessing.get_context("fork")  # what they import is imported already


def run(out: Path, count: int, **options):
    """What every process of a dealt-out run ends with: (tensors, counts) by rank."""
    out.mkdir()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    given = [(out, rank, count, dict(options)) for rank in range(count)]
    if count == 1:
        sharded_run.main(*given[0])
    else:
        jobs = [FORK.Process(target=sharded_run.main, args=one) for one in given]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join(120)
        assert [job.exitcode for job in jobs] == [0] * count
    return [
        (load_file(out / f"{r}.safetensors"), json.loads((out / f"{r}.json").read_text()))
        for r in range(count)
    ]


CASES = {
    "twisted and uneven": {
        "twist": {"scale": 1.0, "cap": 0.75, "sigma_data": 0.7},
        "populations": 2,
        "particles": 5,
        "micro_batch": 1,
        "ess_threshold": 1.0,
    },
    "plain": {},
    "twisted": {"twist": {"scale": 1.0, "cap": 0.75, "sigma_data": 0.7}, "populations": 2},
    "guided": {"guidance": {"scale": 1.0, "through": "network", "clip": 1.0}, "value": "posterior"},
    "uneven": {"particles": 7, "micro_batch": 1, "ess_threshold": 1.0},
    "beam": {"call": "beam", "children": 2},
    "refine": {
        "call": "refine",
        "populations": 2,
        "moves": 4,
        "returned": "best",
        "ess_threshold": 1.0,
    },
    "svdd": {"call": "greedy", "children": 4, "pick": "sample", "populations": 2},
}


FAST = ("twisted and uneven",)


@pytest.mark.parametrize(
    "case", [pytest.param(c, marks=[pytest.mark.slow] * (c not in FAST)) for c in CASES]
)
def test_the_same_bits_for_any_number_of_processes(case, tmp_path):
    [(alone, costs)] = run(tmp_path / "1", 1, **CASES[case])
    assert torch.unique(alone["ancestry"]).numel() > 1
    assert (alone["ancestry"] != torch.arange(alone["ancestry"].shape[-1])).any()
    events = [{**e, "seconds": 0} for e in read_run(tmp_path / "1" / "run").events]
    for count in (2, 4) if case == "plain" else (2,):
        for tensors, counts in run(tmp_path / f"{count}", count, **CASES[case]):
            assert tensors.keys() == alone.keys()
            for name, found in tensors.items():
                assert torch.equal(found.nan_to_num(), alone[name].nan_to_num()), name
            skipped = ("exchanged", "gathered")
            assert {k: v for k, v in counts.items() if k not in skipped} == {
                k: v for k, v in costs.items() if k not in skipped
            }
        kept = read_run(tmp_path / f"{count}" / "run")
        assert [{**e, "seconds": 0} for e in kept.events] == events
        about = json.loads((tmp_path / f"{count}" / "run" / "run.json").read_text())
        assert (about["processes"], about["micro_batch"]) == (
            count,
            CASES[case].get("micro_batch", 2),
        )


def test_what_resampling_exchanges_is_each_foreign_survivor_once(tmp_path):
    """x and D in float32 of every particle that another process copies."""
    found = run(tmp_path / "2", 2)
    ancestry = found[0][0]["ancestry"][:, 0]
    size = 2 * 64 * 4
    for rank, (_, counts) in enumerate(found):
        own = range(4 * rank, 4 * rank + 4)
        other = slice(4, 8) if rank == 0 else slice(0, 4)
        moved = sum(len({i for i in row[other].tolist() if i in own}) for row in ancestry)
        assert counts["exchanged"] == size * moved


def test_one_process_holds_all():
    for one in (Shards.alone(3), Shards(3)):
        assert (one.rank, one.count, one.wire, one.micro_batch) == (0, 1, None, 3)
        assert (one.own, one.pieces) == (slice(0, 0), [slice(0, 0)])  # nothing is dealt out yet
        assert (one.exchanged, one.gathered) == (0, 0)
        one.cut(7)
        assert (one.own, one.pieces) == (slice(0, 7), [slice(0, 3), slice(3, 6), slice(6, 7)])
        x = torch.arange(7.0)
        assert one.gather(x) is x and one.agreed(x) is x and one.total(2, 3) == [2, 3]
        assert one.select(torch.tensor([6, 6, 0, 1, 2, 3, 4]), x)[0].tolist() == [
            6,
            6,
            0,
            1,
            2,
            3,
            4,
        ]


def test_what_the_first_process_says_is_no_longer_ones_own(monkeypatch):
    def broadcast(tensor, source):
        assert source == 0
        tensor.copy_(torch.tensor([5.0, 6.0]))

    monkeypatch.setattr(shards.dist, "broadcast", broadcast)
    second, own = Shards(), torch.tensor([1.0, 2.0])
    second.rank, second.count = 1, 2
    assert second.agreed(own).tolist() == [5.0, 6.0]
    assert own.tolist() == [1.0, 2.0]


@pytest.mark.parametrize("guided", [False, True])
def test_estimates_of_parts_are_one_estimate(guided):
    whole = torch.arange(15.0).view(5, 3)
    extra = {"rewards": whole[:, 0], "gradient": 2 * whole} if guided else {}
    estimate = Estimate(whole, -whole if guided else whole, **extra)

    def part(rows):
        D = whole[rows]
        told = {name: one[rows] for name, one in extra.items()}
        return Estimate(D, -D if guided else D, **told)

    for cuts in (
        [slice(0, 5)],
        [slice(0, 2), slice(2, 5)],
        [slice(0, 2), slice(2, 4), slice(4, 5)],
    ):
        found = joined([part(rows) for rows in cuts])
        assert torch.equal(found.D, estimate.D) and torch.equal(found.untilted, estimate.untilted)
        assert (found.untilted is found.D) == (not guided)
        assert (found.rewards is None) == (found.gradient is None) == (not guided)
        if guided:
            assert torch.equal(found.rewards, estimate.rewards)
            assert torch.equal(found.gradient, estimate.gradient)


def test_an_error_names_the_row_of_the_whole_batch():
    """Of two processes the second, whose micro-batches begin at rows 4 and 6."""

    def network(x, t):
        if (x == 7.0).any():
            raise NonFinite("seven", tuple((x[:, 0] == 7.0).nonzero().flatten().tolist()))
        return x.clone()

    second = Shards(2)
    second.rank, second.count = 1, 2
    second.cut(8)
    pieces = Pieces(Denoiser(network, Linear(), "sample"), second, 8)
    assert torch.equal(pieces(torch.ones(4, 1), 0.5), torch.ones(4, 1))
    with pytest.raises(NonFinite) as raised:
        pieces(torch.arange(4.0, 8.0)[:, None], 0.5)
    assert raised.value.particles == (7,)


def test_more_processes_than_micro_batches_are_refused():
    shards = Shards(4)
    shards.count = 3
    with pytest.raises(InvalidArgument, match=r"8 particles in micro-batches of 4 are 2.*<= 2"):
        shards.cut(8)
    shards.cut(9)
    assert shards.pieces == [slice(0, 4)]


@pytest.mark.parametrize("rows", [1, 5, 8, 13])
@pytest.mark.parametrize("count", [1, 2, 3])
@pytest.mark.parametrize("micro", [1, 2, 3])
def test_micro_batches_lie_at_the_same_places_for_any_number_of_processes(rows, count, micro):
    if -(-rows // micro) < count:
        return
    found = []
    for rank in range(count):
        shards = Shards(micro)
        shards.rank, shards.count = rank, count
        shards.cut(rows)
        start = shards.own.start
        found += [(start + p.start, start + p.stop) for p in shards.pieces]
    assert found == [(i, min(i + micro, rows)) for i in range(0, rows, micro)]


@pytest.mark.parametrize(
    ("call", "name"), [("gather", "all_gather"), ("agreed", "broadcast")], ids=["gather", "agreed"]
)
def test_what_is_sent_is_where_the_processes_can_send_it(call, name, monkeypatch):
    """With NCCL from a GPU, here a device without values; of the longest share its shape."""

    class Sent(Exception):
        pass

    def send(*given):
        (sent,) = [one for one in given if isinstance(one, torch.Tensor)]
        raise Sent(sent.device.type, tuple(sent.shape))

    monkeypatch.setattr(shards.dist, name, send)
    first = Shards(2)
    first.rank, first.count, first.wire = 0, 2, torch.device("meta")
    first.cut(5)
    with pytest.raises(Sent) as caught:
        getattr(first, call)(torch.ones(2, 3))
    assert caught.value.args == ("meta", (3, 3) if call == "gather" else (2, 3))


@pytest.mark.parametrize(("count", "share"), [(1, 7), (2, 4), (3, 3)])
def test_without_micro_batches_a_process_takes_its_share_at_once(count, share):
    first = Shards()
    first.count = count
    first.cut(7)
    assert (first.own, first.pieces) == (slice(0, share), [slice(0, share)])
