"""Parameters without a model, their gradients and copies, for tests of optimizers."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence

import torch
from torch import Tensor, nn


def parameters(
    *shapes: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu", seed: int = 0
) -> list[nn.Parameter]:
    generator = torch.Generator().manual_seed(seed)
    return [nn.Parameter(torch.randn(shape, generator=generator).to(device, dtype)) for shape in shapes]


def give_gradients(params: Iterable[Tensor], seed: int = 1) -> None:
    """Random ones, which lie in memory as their parameters do."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.empty_like(p).copy_(torch.randn(p.shape, generator=generator))


def step_all(optimizers: Iterable[torch.optim.Optimizer], seed: int = 1, without: Collection[int] = ()) -> None:
    """Each with the same gradients; parameters of the numbers `without` have none."""
    for optimizer in optimizers:
        params = [p for group in optimizer.param_groups for p in group["params"]]
        give_gradients(params, seed)
        for k in without:
            params[k].grad = None
        optimizer.step()


def copies(params: Iterable[Tensor], dtype: torch.dtype | None = None) -> list[nn.Parameter]:
    return [nn.Parameter(p.detach().clone().to(dtype or p.dtype)) for p in params]


def snapshot(params: Iterable[Tensor]) -> list[Tensor]:
    return [p.detach().clone() for p in params]


def assert_close(params: Iterable[Tensor], others: Iterable[Tensor], **tolerances: float | bool) -> None:
    torch.testing.assert_close([p.detach() for p in params], [p.detach() for p in others], **tolerances)


def unchanged(params: Sequence[Tensor], before: Sequence[Tensor]) -> bool:
    return all(torch.equal(p.detach(), b.detach()) for p, b in zip(params, before, strict=True))
