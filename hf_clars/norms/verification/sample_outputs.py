"""What of a model's outputs belongs to a sample, and how the loss depends on it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ..batches import named_tensors


def differentiable(result: Any, loss: Tensor | None) -> list[Tensor]:
    """The tensors in a model's result that gradients go through; a loss, a number, is none of them."""
    return [t for _, t in named_tensors(result, "") if t.requires_grad and t.numel() and t is not loss]


def slopes_at(loss: Tensor, tensors: list[Tensor]) -> list[Tensor]:
    """The loss's partial derivative by each of these, zero where it does not depend on one.

    Where one is computed from another (logits from hidden states), the other has what does not go through the first.
    """
    found = [torch.zeros_like(t) for t in tensors]
    if not tensors or not loss.requires_grad:
        return found

    def stop_at(k: int) -> Callable[[Tensor], Tensor]:
        def hook(gradient: Tensor) -> Tensor:
            found[k] = gradient
            return torch.zeros_like(gradient)

        return hook

    hooks = [tensor.register_hook(stop_at(k)) for k, tensor in enumerate(tensors)]
    try:
        torch.autograd.grad(loss, tensors, retain_graph=True, allow_unused=True)
    finally:
        for each in hooks:
            each.remove()
    return found


def rows_of(whole: Tensor, alone: torch.Size, size: int, i: int) -> list[Tensor]:
    """What may be sample i's of a batch's output, given the shape of a batch of one's; empty if it is not by sample.

    Where a sample has several rows, they stand one after the other, or every sample's first before any's second.
    """
    if whole.ndim != len(alone):
        return []
    differing = [d for d in range(whole.ndim) if whole.shape[d] != alone[d]]
    if len(differing) != 1 or whole.shape[differing[0]] != size * alone[differing[0]]:
        return []
    (d,) = differing
    rows = alone[d]
    choices = [whole.narrow(d, i * rows, rows)]
    if rows > 1:
        choices.append(whole.unflatten(d, (rows, size)).select(d + 1, i))
    return choices


def is_close(rows: Tensor, alone: Tensor, distance: float) -> bool:
    """Whether no element differs by more than `distance`; infinities and NaN must be in the same places."""
    return torch.allclose(rows.detach(), alone.detach(), rtol=0.0, atol=distance, equal_nan=True)


def weight_of(alone: list[Tensor], in_batch: list[Tensor], tolerance: float) -> float | None:
    """`w` for which `in_batch = w · alone`; None if there is none."""
    a, b = (torch.cat([as_real(t).flatten().double().cpu() for t in tensors]) for tensors in (alone, in_batch))
    square = a.dot(a).item()
    if not 0 < square < float("inf"):
        return None
    weight = a.dot(b).item() / square
    return weight if (b - weight * a).norm() <= tolerance * b.norm() else None


def as_real(tensor: Tensor) -> Tensor:
    tensor = tensor.detach()
    return torch.view_as_real(tensor.resolve_conj()) if tensor.is_complex() else tensor
