"""Gradient norms of small batches by passes of their own, beside the training's: what the authors' code measures."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor, nn


def mean_gradient_norms(
    model: nn.Module, parameters: Sequence[Tensor], losses: Iterable[Callable[[], Tensor]]
) -> Tensor:
    """`(1/n) Σ_j ‖∇_k f_j‖`, shape `[K]`: the mean over small batches j of the norm of each one's gradient.

    By the triangle inequality it is at least the norm of their mean gradient, and at most the mean over samples that
    Eq. 5 has; it comes the nearer to the latter the smaller the batches.

    One forward and backward pass for each loss. `.grad` is left alone and no hook of DDP runs; buffers (BatchNorm's
    running statistics) are as they were afterwards, also after an exception. Never waits for the device.

    Args:
        model: whose buffers the passes may change.
        parameters: the K tensors `w_k`, of one device; one that a loss does not depend on has the norm 0 there.
        losses: functions that compute `f_j`, 0-dim, from `model`; at least one.

    Returns:
        The means in float32, or wider where a parameter is, in the units of the gradient.
    """
    total, passes = None, 0
    with buffers_restored(model), torch.enable_grad():
        for loss in losses:
            gradients = torch.autograd.grad(loss(), parameters, allow_unused=True)
            norms = _norms(
                [torch.zeros_like(p) if g is None else g for p, g in zip(parameters, gradients, strict=True)]
            )
            total = norms if total is None else total + norms
            passes += 1
    if total is None:
        raise ValueError("mean_gradient_norms needs at least one loss")
    return total / passes


@contextmanager
def buffers_restored(model: nn.Module) -> Iterator[None]:
    """Undo, at the end, what the body does to the model's buffers."""
    before = [
        (module, name, buffer, buffer.clone())
        for module in model.modules()
        for name, buffer in module._buffers.items()
        if buffer is not None
    ]
    try:
        yield
    finally:
        with torch.no_grad():
            for module, name, buffer, value in before:
                buffer.copy_(value)
                module._buffers[name] = buffer


def _norms(gradients: list[Tensor]) -> Tensor:
    dtype = torch.float32
    for gradient in gradients:
        dtype = torch.promote_types(dtype, gradient.dtype)
    return torch.stack([norm.to(dtype) for norm in torch._foreach_norm(gradients, 2, dtype)])
