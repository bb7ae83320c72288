"""Networks in which the ranks do not see the same, trained for a few steps by one process or by two."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from hf_clars import CLARS, PerSampleNorms
from hf_clars.norms.agreement import Agreement

from . import processes

BATCH, STEPS = 6, 3


class Square(torch.autograd.Function):
    """`x @ (w · w)`, of which no forward pass tells where samples meet the weight."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor) -> Tensor:
        ctx.save_for_backward(x, w)
        return x @ (w * w)

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor, Tensor]:
        x, w = ctx.saved_tensors
        return d @ (w * w).t(), 2 * w * (x.t() @ d)


class Network(nn.Module):
    """A trunk, a layer that a case treats in its own way, and a head. Samples with a positive mark are marked."""

    def __init__(self, case: str) -> None:
        super().__init__()
        self.case = case
        self.trunk, self.special, self.head = nn.Linear(5, 4), nn.Linear(4, 4), nn.Linear(4, 3)
        if case == "frozen":
            self.special.requires_grad_(False)

    def forward(self, x: Tensor, mark: Tensor) -> Tensor:
        h = self.trunk(x).tanh()
        return self.head(self.middle(h, mark))

    def middle(self, h: Tensor, mark: Tensor) -> Tensor:
        special, some = self.special, bool((mark > 0).any())
        if self.case in ("all alike", "frozen", "empty batch", "excluded"):
            return special(h)
        if self.case == "expert without rows":
            return h + mark[:, None] * special(h) if some else h + special(h[:0]).sum()
        if self.case == "unused":
            return h + mark[:, None] * special(h) if some else h
        if self.case == "custom function":
            return Square.apply(h, special.weight)
        if self.case == "outside":
            return h
        if self.case == "outside on one rank":
            return h if some else special(h)
        raise AssertionError(self.case)

    def loss(self, forward: Callable[[Tensor, Tensor], Tensor], x: Tensor, mark: Tensor) -> Tensor:
        """Of each sample."""
        y = forward(x, mark)
        if self.case == "outside" or (self.case == "outside on one rank" and bool((mark > 0).any())):
            y = y + F.linear(torch.cat((y, y[:, :1]), 1), self.special.weight[:3], self.special.bias[:3])
        return (y - 1).square().mean(1)


def steps(case: str) -> list[tuple[Tensor, Tensor]]:
    """Of each step the samples and their marks, which the first half alone has."""
    generator = torch.Generator().manual_seed(1)
    mark = torch.tensor([1.0] * (BATCH // 2) + [0.0] * (BATCH // 2), dtype=torch.float64)
    found = [(torch.randn(BATCH, 5, generator=generator, dtype=torch.float64), mark) for _ in range(STEPS)]
    if case == "empty batch":
        found[-1] = found[-1][0][: BATCH // 2], mark[: BATCH // 2]
    return found


def train(case: str, rank: int = 0, world: int = 1, layout: str = "DDP", **options: Any) -> dict[str, Any]:
    """Weights; of each step what was measured and the rates; what is untracked, and what was said of it.

    Args:
        layout: DDP; FSDP2; or DDP as on devices, whose host does not wait to know what is measured.
    """
    torch.manual_seed(0)
    model = Network(case).double()
    forward: Any = model
    if world > 1 and layout == "FSDP2":
        fully_shard(model, mesh=init_device_mesh("cpu", (world,)))
    elif world > 1:
        forward = nn.parallel.DistributedDataParallel(model, find_unused_parameters="outside" not in case)
    bias_and_norm = options.pop("bias_and_norm", "eta")
    norms = PerSampleNorms(model, bias_and_norm=bias_and_norm == "paper", **options)
    optimizer = CLARS(model.parameters(), 0.5, eta=0.1, weight_decay=1e-3, norms=norms, bias_and_norm=bias_and_norm)
    names = {parameter: name for name, parameter in model.named_parameters()}
    measured, rates = [], []
    on_devices = world > 1 and layout == "devices"
    unsettled = mock.patch.object(Agreement, "settled", return_value=False) if on_devices else nullcontext()
    with warnings.catch_warnings(record=True) as caught, unsettled:
        warnings.simplefilter("always")
        for x, mark in steps(case):
            size = BATCH // world
            mine = slice(rank * size, (rank + 1) * size)
            if case == "excluded" and bool((mark[mine] > 0).any()):
                measurement = norms.watch.measurement
                measurement.exclude(measurement.recorder.tracked(model.special.parameters()), "the test says so")
            loss = model.loss(forward, x[mine], mark[mine]).sum() * world / len(x)
            loss.backward()
            found = {names[p]: d.item() for p, d in norms.denominators().items()}
            measured.append(found)
            optimizer.step()
            rates.append({names[p]: rate.item() for p, rate in optimizer.layer_rates().items()})
            optimizer.zero_grad()
    said = [str(w.message) for w in caught if "PerSampleNorms" in str(w.message)]
    weights = {name: p.full_tensor() if isinstance(p, DTensor) else p.detach() for name, p in model.named_parameters()}
    return {"weights": weights, "measured": measured, "rates": rates, "untracked": dict(norms.untracked), "said": said}


def by_two(folder: Path, cases: Mapping[str, dict[str, Any]]) -> dict[str, list[dict[str, Any]]]:
    """`train` by two processes, one case after the other; of each what either returns, or `{"error": …}`."""
    processes.by_two(_train_all, folder, cases, seconds=300)
    found = [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(2)]
    return {name: [results[name] for results in found] for name in cases}


def _train_all(rank: int, folder: Path, cases: Mapping[str, dict[str, Any]]) -> None:
    results = {}
    for name, options in cases.items():
        try:
            results[name] = train(rank=rank, world=2, **options)
        except Exception as error:
            results[name] = {"error": f"{type(error).__name__}: {error}"}
    torch.save(results, folder / f"{rank}.pt")
