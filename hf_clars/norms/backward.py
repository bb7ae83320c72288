"""The autograd function behind an operator's output: where the backward pass is met."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from . import compiled
from .measuring import measure
from .recorder import Recorder
from .samplers.base import Saved
from .uses import Use


def hooked(
    recorder: Recorder, y: Tensor, use: Use, saved: Saved, weight: Tensor | None = None, in_place: bool = True
) -> Tensor:
    """`y`, behind which the backward pass measures `use`; `weight` is what it returns the gradient of."""
    use.dtype = y.dtype if weight is None else weight.dtype
    if weight is not None and _is_channels_last(weight):
        use.memory_format = torch.channels_last  # autograd copies a gradient that lies otherwise than its parameter
    for of in (use.weight, use.bias):
        for tracked in () if of is None else of.parameters:
            tracked.used(use)
    if torch.compiler.is_compiling():
        use.number, use.sizes = compiled.numbered(use)
        saved = (*saved, *compiled.constants_of(use))
    return Hook.apply(y, weight, recorder.anchor, recorder, use, in_place, *saved)


def _is_channels_last(weight: Tensor) -> bool:
    """By its strides: of one pixel, or one channel, `is_contiguous` says it is so in either way. And DDP and optimizers
    compare strides, those of such dimensions too."""
    strides = weight.stride()
    if len(strides) != 4 or strides[1] != 1:
        return False
    _, channels, height, width = weight.shape
    return strides == (channels * height * width, 1, width * channels, channels)


class Hook(torch.autograd.Function):
    """Identity on a layer's output `y` whose backward sees what was saved and `d`, and measures `‖c_i‖`.

    In the fused case it also returns the weight gradient: formed sample by sample for the norms, it is the sum of what
    was formed, and autograd is spared computing it again. With `in_place`, `y` is passed through as it is, so that
    layers behind it may work in place on it, as they may on the layer's own output.
    """

    @staticmethod
    def forward(
        ctx: Any,
        y: Tensor,
        weight: Tensor | None,
        anchor: Tensor,
        recorder: Recorder,
        use: Use,
        in_place: bool,
        *saved: Tensor,
    ) -> Tensor:
        ctx.save_for_backward(*saved)
        ctx.recorder, ctx.use = recorder, use
        if torch.compiler.is_compiling():  # of what is dirty, torch 2.11's compiler says that it is a view
            return y.clone() if in_place else y.view_as(y)
        if in_place and torch._C._len_torch_dispatch_stack():
            return y.clone()  # selective checkpointing keeps results, and none may be dirty when it brings them back
        if not in_place:
            return y.view_as(y)
        ctx.mark_dirty(y)
        return y

    @staticmethod
    def backward(ctx: Any, d: Tensor) -> tuple[Tensor | None, ...]:
        if torch.is_grad_enabled():
            raise RuntimeError(
                "PerSampleNorms does not measure derivatives of gradients (create_graph=True): detach() it first"
            )
        xs, use = ctx.saved_tensors, ctx.use
        rest = (None, None, None, *(None for _ in xs))
        if torch.compiler.is_compiling():
            gradient, token = compiled.close(list(xs), d, ctx.recorder.key, use.number, use.sizes)
            return (d, gradient if use.fused else None, token, *rest)
        device = d.device.type
        if torch.is_autocast_enabled(device):  # `backward()` was called under it, and norms are taken in float32
            with torch.autocast(device, enabled=False):
                gradient = measure(ctx.recorder, use, xs, d)
        else:
            gradient = measure(ctx.recorder, use, xs, d)
        return (d, gradient, None, *rest)
