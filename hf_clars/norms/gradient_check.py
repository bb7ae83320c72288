"""Whether `Σ_i c_i` is the gradient: what else uses a parameter, where nobody watches, shows as a difference.

A tied weight in the loss, a function with a derivative of its own, another thread: none of them passes what watches a
forward pass, and all of them add to the gradient. In the passes that are checked, the gradient that arrives at each
parameter is compared with the sum of what was measured of it, along one random direction `r`: `⟨r, g⟩` against
`⟨r, Σ_i c_i⟩`, so that neither has to be kept. Nothing waits for the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from .backward_passes import BackwardPasses
from .numerics.reductions import norm_dtype
from .samplers.base import Sampler
from .tracked import TrackedParameter

# Of a parameter's own size, ‖g‖ + Σ‖c_i‖, and of the largest in the model: rounding is relative to either. Half
# precision has the weight gradient rounded once more, by autocast.
_TOLERANCE = {torch.float64: (1e-7, 1e-11), torch.float32: (1e-3, 1e-5)}
_TOLERANCE_OF_HALF = (5e-2, 1e-3)
_EVERY = 512
_PART = 2**18  # numbers of r that are held at a time
# No seed that anybody takes: after `manual_seed(0)` the first weight drawn would be r. A gradient at a right angle to
# the weight, of a cosine for one, would not be seen.
_SEED = 0x2B7E151628AED2A6


class GradientCheck:
    """Compares what arrives at parameters with what was measured, in passes 1, 2, 4, 8, … 512, and from there in every
    512th.

    The first alone would not do: behind gates that begin at zero, gradients are zero at first, whatever is wrong.

    Args:
        passes: backward passes, of which some are not measured.
    """

    def __init__(self, passes: BackwardPasses) -> None:
        self._of_backward = passes
        self.active = False
        self._measuring = False  # derivatives that are taken to measure arrive at parameters, too
        self.decided = False  # of the pass at hand, when its forward pass began, whether it is checked
        self._passes = 0
        self._backward = -1  # the last backward pass of which it was to be decided
        self._handles: list[Any] = []
        self._received: dict[TrackedParameter, list[Tensor]] = {}
        self._claimed: dict[TrackedParameter, list[Tensor]] = {}
        self._half = False
        self._samplers: dict[TrackedParameter, str] = {}  # that users wrote

    def begin_pass(self, parameters: list[TrackedParameter]) -> None:
        """A forward pass begins, whose gradients are checked if it is its turn."""
        self.decided = True
        self._begin(parameters)

    def begin_backward(self, parameters: list[TrackedParameter]) -> bool:
        """A backward pass reaches a first use. If compiled code began its forward pass, it is decided here whether it
        is checked: gradients arrive at parameters later than at all of their uses.

        Returns whether the check begins here; then it is to end with this pass, by `pause()`.
        """
        backward = torch._C._current_graph_task_id()
        if self.decided or self.active or backward == self._backward:
            return False
        self._backward = backward
        self._begin(parameters)
        return self.active

    def _begin(self, parameters: list[TrackedParameter]) -> None:
        self._passes += 1
        if self._passes % _EVERY and self._passes.bit_count() > 1:
            return
        if True in [tracked.parameter.is_meta for tracked in parameters]:
            return  # such tensors have no values to compare
        self.active = True
        for tracked in parameters:
            parameter = tracked.parameter
            if parameter.requires_grad and not tracked.excluded and parameter.is_leaf:
                self._handles.append(parameter.register_hook(self._receiving(tracked)))

    def _receiving(self, tracked: TrackedParameter) -> Any:
        def receive(gradient: Tensor) -> None:
            if not self._measuring and not self._of_backward.is_unmeasured():
                # `backward()` under autocast: autograd multiplies in half precision, and measuring does not.
                self._half = self._half or torch.is_autocast_enabled(gradient.device.type)
                self._received.setdefault(tracked, []).append(_measures(tracked, gradient))

        return receive

    def sees(self, d: Tensor) -> None:
        """The derivative of an operator's result: autograd sums it up in its own precision, and may cast that."""
        self._half = self._half or d.dtype in (torch.bfloat16, torch.float16)

    def claim(self, tracked: TrackedParameter, total: Tensor, sampler: Sampler) -> None:
        """`Σ_i c_i` of one use of a parameter, all samples included."""
        if not type(sampler).__module__.startswith(f"{__package__}."):
            self._samplers[tracked] = type(sampler).__name__
        self._claimed.setdefault(tracked, []).append(_measures(tracked, total))

    def reason(self, tracked: TrackedParameter) -> str:
        """Why there is more, or less, in a gradient than what was measured."""
        reason = "its gradient, or part of it, did not come through a forward pass that was watched"
        sampler = self._samplers.get(tracked)
        return f"{reason}; or what {sampler} measures does not add up to it" if sampler else reason

    @contextmanager
    def measures(self) -> Iterator[None]:
        """Derivatives that are taken in here measure: they are no gradients."""
        outer, self._measuring = self._measuring, True
        try:
            yield
        finally:
            self._measuring = outer

    def pause(self) -> None:
        """Look no more, until the next pass that is checked begins."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.active = [], False

    @torch.no_grad()
    def settle(self) -> dict[TrackedParameter, Tensor]:
        """End the check of the passes before: whether a parameter's gradient has more than what was measured, 0-dim."""
        self.pause()
        received, self._received = self._received, {}
        claimed, self._claimed = self._claimed, {}
        if not received:
            return {}
        parameters = list(received)
        got = torch.stack([_sum(received[tracked]) for tracked in parameters])
        nothing = [got.new_zeros(2)]
        want = torch.stack([_sum(claimed.get(tracked, nothing)).to(got) for tracked in parameters])
        half, self._half = self._half, False
        of_own, of_largest = _TOLERANCE_OF_HALF if half else _TOLERANCE.get(got.dtype, _TOLERANCE_OF_HALF)
        sizes = got[:, 1] + want[:, 1]
        flags = (got[:, 0] - want[:, 0]).abs() > of_own * sizes + of_largest * sizes.max()
        return dict(zip(parameters, flags.unbind(), strict=True))


def _measures(tracked: TrackedParameter, gradient: Tensor) -> Tensor:
    """`⟨r, g⟩` with r from a standard normal distribution, the same for a parameter each time; and ‖g‖.

    r is drawn in parts, so that no second tensor of the parameter's size is held.
    """
    generator = torch.Generator(gradient.device).manual_seed(_SEED + tracked.index)
    g = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
    g = torch.view_as_real(g.resolve_conj()) if g.is_complex() else g
    dtype = norm_dtype(g.dtype)
    along = g.new_zeros((), dtype=dtype)
    rows = max(1, _PART * g.shape[0] // max(1, g.numel())) if g.ndim else 1
    for part in g.split(rows) if g.ndim else [g]:
        r = torch.randn(part.shape, generator=generator, device=g.device, dtype=dtype)
        along += r.mul_(part).sum()
    return torch.stack([along, torch.linalg.vector_norm(g, dtype=dtype)])


def _sum(measures: list[Tensor]) -> Tensor:
    return measures[0] if len(measures) == 1 else torch.stack(measures).sum(0)
