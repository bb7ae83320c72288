"""Each rank decides alone which of its passes are measured."""

import pytest
import torch
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from .helpers import processes
from .helpers.turns import BATCH, PERIOD, alike, counts, found, measured_passes, network, norm_of_one, subset


def step(model: nn.Module, forward: nn.Module, passes: int, layout: str) -> None:
    for number in range(passes):
        last = number == passes - 1
        if layout == "FSDP2":
            model.set_requires_gradient_sync(last)
        elif layout == "DDP":
            forward.require_backward_grad_sync = last
        forward(alike()).square().sum().backward()
    if layout == "by hand":
        for parameter in model.parameters():
            torch.distributed.all_reduce(parameter.grad)
            parameter.grad /= 2


def work(rank: int, layout: str, passes: list[int]) -> None:
    model = network()
    one = norm_of_one(model)
    forward: nn.Module = model
    if layout == "FSDP2":
        fully_shard(model, mesh=init_device_mesh("cpu", (2,)))
    elif layout.startswith("DDP"):
        forward = DistributedDataParallel(model, gradient_as_bucket_view=layout == "DDP in buckets")
    # 64 of 256 samples, of which each rank has half: as 32 of 128 by one process.
    with subset(model, norm_samples=64, total_batch_size=256) as norms, measured_passes() as measured:
        for number in range(3):
            model.zero_grad(set_to_none=number < 2)
            step(model, forward, passes[rank], layout)
            samples = sum(passes) * BATCH
            # Each rank's gradient is the sum over its samples, and half of both ranks' is the gradient.
            expected = {name: samples / 2 * norm for name, norm in one.items()}
            assert found(model, norms) == pytest.approx(expected, rel=1e-9)
            assert counts(norms) == {samples}
            norms.close_gradient()
        assert norms.untracked == {}
    assert measured == 3 * [n % PERIOD == 0 for n in range(passes[rank])]


CASES = [
    ("DDP", [6, 6]),
    ("DDP in each pass", [6, 6]),
    ("DDP in buckets", [6, 6]),
    ("FSDP2", [6, 6]),
    ("by hand", [6, 2]),
    ("by hand", [9, 4]),
]


@pytest.mark.parametrize(("layout", "passes"), CASES, ids=str)
def test_ranks_need_not_measure_the_same_passes(layout, passes):
    processes.by_two(work, layout, passes)


def alone(rank: int) -> None:
    """One rank reads its sums, so that its next pass is measured, and the other's is not."""
    model = network()
    forward = DistributedDataParallel(model)
    one = norm_of_one(model)
    with subset(model, norm_samples=64, total_batch_size=256) as norms, measured_passes() as measured:
        for number in range(3):
            step(model, forward, 1, "DDP" if number == 2 else "DDP, later")
            if rank == 0:
                norms.sums()
        assert measured == [True, rank == 0, rank == 0]
        assert found(model, norms) == pytest.approx({n: 3 * BATCH * norm for n, norm in one.items()}, rel=1e-9)
        assert norms.untracked == {}


def test_a_measured_pass_on_one_rank_waits_for_no_other():
    processes.by_two(alone)
