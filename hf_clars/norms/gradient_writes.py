"""Whether gradients were changed between the backward pass and the step, as clipping does: what was measured is then of
other gradients.

Each parameter's `‖g‖` at the end of the backward pass is held against that at the step. Values are compared because
version counters tell too little: unscaling, a reduction over ranks, and a clipping that finds nothing to clip (with
which Trainer takes the norm, in each step) all write to gradients. It takes two reads of the gradients, so that some
steps are looked at: the first ones, in which gradients are longest, and every 512th. Nothing waits for the device.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor

from ..runtime import users_line
from .agreement import is_distributed
from .backward_passes import at_end_of_pass, backward_pass
from .flags import FlagsToHost
from .gradient_life import GradientLife
from .numerics.reductions import norm_dtype
from .tracked import TrackedParameter

_FIRST, _EVERY = 8, 512
_SIZE = 1e-2  # of a change; half precision rounds what is multiplied by less
_LEAST = 1e-15  # below it squares underflow in float32
_MANY = 3  # parameters that have no factor in common by chance

CHANGED = (
    "gradients were changed between backward() and step(), as clip_grad_norm_ does: the denominators of CLARS are of "
    "the gradients as backward() left them, so that its steps come out too small by as much, or too large. Leave out "
    "clipping, which CLARS does not need, and multiply the loss instead of gradients"
)


class GradientWrites:
    """Notices it, and warns once.

    Of several processes that reduce gradients themselves after the backward pass, as some do, only a factor that all
    parameters have in common is a change: that of clipping by the norm.

    Args:
        parameters, lives: all that are measured, in the order of their columns, and their gradients.

    Attributes:
        due: whether the gradient at hand is looked at.
    """

    def __init__(self, parameters: list[TrackedParameter], lives: list[GradientLife]) -> None:
        self.due = True
        self._parameters, self._lives = parameters, lives
        self._gradients = 0
        self._backward = -1  # the last backward pass of which the end is looked at
        self._norms: dict[TrackedParameter, Tensor] = {}  # ‖g‖ at the end of the last one, 0-dim
        self._handles: list[Any] = []
        self._news: FlagsToHost | None = None
        self._told = False

    # --- backward passes ---------------------------------------------------------------------------------------

    def begin(self) -> None:
        """A backward pass adds to gradients that are looked at; so may others do after it, which are not measured."""
        self._reach()
        if not self._handles:
            leaves = [t.parameter for t in self._parameters if t.parameter.requires_grad and t.parameter.is_leaf]
            this = weakref.ref(self)  # garbage collection does not see what such hooks hold

            def reach(_: Tensor) -> None:
                if (here := this()) is not None:
                    here._reach()

            self._handles = [parameter.register_post_accumulate_grad_hook(reach) for parameter in leaves]

    def _reach(self) -> None:
        if (backward := backward_pass()) not in (self._backward, -1):
            self._backward = backward
            # Behind what DistributedDataParallel does at the end, which writes to gradients.
            at_end_of_pass(lambda: at_end_of_pass(self._take_norms))

    @torch.no_grad()
    def _take_norms(self) -> None:
        if self.due and not _is_captured():
            alive = [t for t in self._parameters if self._lives[t.index].samples and not t.excluded]
            self._norms = {t: norm for t in alive if (norm := _norm(t)) is not None}

    # --- steps -------------------------------------------------------------------------------------------------

    @torch.no_grad()
    def look(self, parameters: Iterable[TrackedParameter], scale: Tensor | None) -> None:
        """A step begins, with these gradients.

        Args:
            scale: which the loss was multiplied with, and the gradients were divided by since.
        """
        self._tell()
        if not self._norms or backward_pass() != -1 or _is_captured():
            return
        pairs = [(self._norms[t], norm) for t in parameters if t in self._norms and (norm := _norm(t)) is not None]
        if pairs:
            device = pairs[0][0].device
            before, after = (
                torch.stack([norm.to(device, torch.float32, non_blocking=True) for norm in norms])
                for norms in zip(*pairs, strict=True)
            )
            if scale is not None:
                before = before / scale.to(device)
            self._news = FlagsToHost(_is_changed(before, after))
            self._tell()

    def ended(self, gradients: Iterable[TrackedParameter]) -> None:
        """These gradients were used or cleared."""
        self._gradients += 1
        self.due = not self._told and (self._gradients < _FIRST or self._gradients % _EVERY == 0)
        self.pause(gradients)

    def pause(self, gradients: Iterable[TrackedParameter]) -> None:
        """Look no more at these, until the next that is looked at begins."""
        for tracked in gradients:
            self._norms.pop(tracked, None)
        for handle in self._handles:
            handle.remove()
        self._handles = []

    def _tell(self) -> None:
        if self._news is not None and self._news.have_arrived():
            changed, self._news = bool(self._news.values()), None
            if changed and not self._told:
                self._told, self.due = True, False
                users_line.warn(CHANGED)


def _norm(tracked: TrackedParameter) -> Tensor | None:
    """`‖g‖` of what this rank holds, 0-dim."""
    gradient = tracked.parameter.grad
    if gradient is None or gradient.layout != torch.strided or gradient.is_meta:
        return None
    part = gradient.to_local() if isinstance(gradient, DTensor) else gradient
    return torch.linalg.vector_norm(part, dtype=norm_dtype(part.dtype))


def _is_changed(before: Tensor, after: Tensor) -> Tensor:
    """Whether gradients of these norms, `[K]`, were changed, 0-dim; those that are zero or not finite say nothing."""
    known = (before > _LEAST) & (after > _LEAST) & before.isfinite() & after.isfinite()
    factors = torch.where(known, after / before, torch.nan)
    changed = (factors - 1).abs() > _SIZE
    if not is_distributed():
        return changed.any()
    largest = torch.where(known, factors, 0).max()
    smallest = torch.where(known, factors, torch.inf).min()
    in_common = (largest - smallest <= _SIZE * largest) & (known.sum() >= _MANY)
    mean_with_zeros = (largest * dist.get_world_size() - 1).abs() <= _SIZE  # where no other rank had samples
    return changed.any() & in_common & ~mean_with_zeros


def _is_captured() -> bool:
    """Whether what is launched now becomes part of a CUDA graph."""
    return torch.cuda.is_available() and torch.cuda.is_current_stream_capturing()
