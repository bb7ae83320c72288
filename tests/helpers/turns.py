"""Models and steps for the mode `subset` that measures some passes: samples that are all alike have a known answer."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from unittest import mock

import torch
from torch import nn

from hf_clars.norms import PerSampleNorms, forward_passes

BATCH = 4
PERIOD = 4  # of 32 passes, with 32 of 128 samples
OPTIONS = {"norm_samples": 32, "total_batch_size": 128}


def network() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 2)).double()


def subset(model: nn.Module, **options: object) -> PerSampleNorms:
    return PerSampleNorms(model, "subset", **(OPTIONS | options))


def alike(samples: int = BATCH) -> torch.Tensor:
    """Samples of which each has the same gradient."""
    return torch.tensor([[1.0, -2.0, 0.5]]).double().repeat(samples, 1)


def backward(model: nn.Module, samples: int = BATCH) -> None:
    model(alike(samples)).square().sum().backward()


def norm_of_one(model: nn.Module) -> dict[str, float]:
    """Name → `‖c_i‖` of one of the samples that are alike."""
    gradients = torch.autograd.grad(model(alike(1)).square().sum(), list(model.parameters()))
    return {name: g.norm().item() for (name, _), g in zip(model.named_parameters(), gradients, strict=True)}


def found(model: nn.Module, norms: PerSampleNorms) -> dict[str, float]:
    names = {parameter: name for name, parameter in model.named_parameters()}
    return {names[parameter]: d.item() for parameter, d in norms.denominators().items()}


def counts(norms: PerSampleNorms) -> set[int]:
    return {int(n) for *_, n in norms.gradient_statistics().values()}


@contextmanager
def measured_passes() -> Iterator[list[int]]:
    """Fills in, for each forward pass, whether it is measured."""
    seen: list[int] = []
    enter = forward_passes.ForwardPasses.enter

    def noted(self, *args):
        seen.append(enter(self, *args))
        return seen[-1]

    with mock.patch.object(forward_passes.ForwardPasses, "enter", noted):
        yield seen
