"""A pipeline dealt out to processes, with micro-batches that cross prompts: the same bits."""

from __future__ import annotations

import copy
import multiprocessing
import os
from dataclasses import replace

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from glass_flows import Sampler, Steering
from glass_flows.jobs import Job, resolve
from glass_flows.steering import Shards
from glass_flows.steering.loop import Watch

FORK = multiprocessing.get_context("fork")  # what they import and load is there already
PROMPTS = ("a red circle", "two blue squares", "a green triangle above a red square")


JOB = Job("shapes", Steering(6, 0.5), Sampler(2, 1), prompts=PROMPTS, seed=3, micro_batch=4)


@pytest.fixture(scope="module")
def model():
    pytest.importorskip("diffusers")
    found = resolve(JOB.model)
    found.load()
    found.reward(JOB)
    return found


def draw(model, job, out, rank, count):
    """What one of the processes comes to; the texts of the reward are new to it."""
    torch.set_num_threads(1)
    if count > 1:
        os.environ["GLOO_SOCKET_IFNAME"] = "lo"
        store = dist.FileStore(str(out / f"store{count}"), count)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=count)
    result = model.run(job, Watch(progress=False), Shards(job.micro_batch)).result
    found = {"samples": result.samples, "rewards": result.rewards, "weights": result.log_weights}
    save_file({k: v.contiguous() for k, v in found.items()}, out / f"{count}-{rank}.safetensors")
    if count > 1:
        dist.destroy_process_group()


@pytest.mark.parametrize(
    ("prompts", "counts"),
    [
        pytest.param(2, (1, 2), id="two prompts"),
        pytest.param(3, (1, 2, 3, 4), id="three prompts", marks=pytest.mark.slow),
        pytest.param(2, (1, 2, 3), id="two prompts, three processes", marks=pytest.mark.slow),
    ],
)
def test_micro_batches_that_cross_prompts_have_the_bits_of_one_process(
    prompts, counts, model, tmp_path
):
    job = replace(JOB, prompts=PROMPTS[:prompts])
    for count in counts:
        given = [(model, job, tmp_path, rank, count) for rank in range(count)]
        ranks = [FORK.Process(target=draw, args=one) for one in given]
        for one in ranks:
            one.start()
        for one in ranks:
            one.join(120)
        assert [one.exitcode for one in ranks] == [0] * count
    alone = load_file(tmp_path / "1-0.safetensors")
    for file in tmp_path.glob("*-*.safetensors"):
        for name, found in load_file(file).items():
            assert torch.equal(found, alone[name]), (file.name, name)


def test_the_features_of_a_text_do_not_depend_on_what_is_read_beside_it(model):
    reward = copy.copy(model.reward(JOB))
    together = reward._read(list(PROMPTS))
    for i, prompt in enumerate(PROMPTS):
        reward._texts = {}
        assert torch.equal(reward._read([prompt])[0], together[i])
