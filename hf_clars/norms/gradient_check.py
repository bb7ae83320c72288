"""Whether `Σ_i c_i` is the gradient: what else uses a parameter, where nobody watches, shows as a difference.

A tied weight in the loss, a function with a derivative of its own, another thread: none of them passes what watches a
forward pass, and all of them add to the gradient. In the passes that are checked, the gradient that arrives at each
parameter is compared with the sum of what was measured of it, along one random direction `r`: `⟨r, g⟩` against
`⟨r, Σ_i c_i⟩`, so that neither has to be kept. Nothing waits for the device.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from .reductions import norm_dtype

if TYPE_CHECKING:
    from .entry import Entry

# Of a parameter's own size, ‖g‖ + Σ‖c_i‖, and of the largest in the model: rounding is relative to either. Half
# precision has the weight gradient rounded once more, by autocast.
_TOLERANCE = {torch.float64: (1e-7, 1e-11), torch.float32: (1e-3, 1e-5)}
_TOLERANCE_OF_HALF = (5e-2, 1e-3)
_FIRST, _EVERY = 2, 512
_PART = 2**18  # numbers of r that are held at a time


class GradientCheck:
    """Compares, in the first passes and in every 512th, what arrives at parameters with what was measured."""

    def __init__(self) -> None:
        self.active = False
        self.measuring = False  # derivatives that are taken to measure arrive at parameters, too
        self.decided = False  # of the pass at hand, when its forward pass began, whether it is checked
        self._passes = 0
        self._backward = -1  # the last backward pass of which it was to be decided
        self._handles: list[Any] = []
        self._received: dict[Entry, list[Tensor]] = {}
        self._claimed: dict[Entry, list[Tensor]] = {}
        self._half = False

    def begin_pass(self, entries: list[Entry]) -> None:
        """A forward pass begins, whose gradients are checked if it is its turn."""
        self.decided = True
        self._begin(entries)

    def begin_backward(self, entries: list[Entry]) -> bool:
        """A backward pass reaches a first use. If compiled code began its forward pass, it is decided here whether it
        is checked: gradients arrive at parameters later than at all of their uses.

        Returns whether the check begins here; then it is to end with this pass, by `pause()`.
        """
        backward = torch._C._current_graph_task_id()
        if self.decided or self.active or backward == self._backward:
            return False
        self._backward = backward
        self._begin(entries)
        return self.active

    def _begin(self, entries: list[Entry]) -> None:
        self._passes += 1
        if self._passes > _FIRST and self._passes % _EVERY:
            return
        if True in [entry.parameter.is_meta for entry in entries]:
            return  # such tensors have no values to compare
        self.active = True
        for entry in entries:
            parameter = entry.parameter
            if parameter.requires_grad and not entry.incomplete and parameter.is_leaf:
                self._handles.append(parameter.register_hook(self._receiving(entry)))

    def _receiving(self, entry: Entry) -> Any:
        def receive(gradient: Tensor) -> None:
            if not self.measuring:
                self._received.setdefault(entry, []).append(_measures(entry, gradient))

        return receive

    def sees(self, d: Tensor) -> None:
        """The derivative of an operator's result: autograd sums it up in its own precision, and may cast that."""
        self._half = self._half or d.dtype in (torch.bfloat16, torch.float16)

    def claim(self, entry: Entry, total: Tensor) -> None:
        """`Σ_i c_i` of one use of a parameter, all samples included."""
        self._claimed.setdefault(entry, []).append(_measures(entry, total))

    def pause(self) -> None:
        """Look no more, until the next pass that is checked begins."""
        for handle in self._handles:
            handle.remove()
        self._handles, self.active = [], False

    @torch.no_grad()
    def settle(self) -> dict[Entry, Tensor]:
        """End the check of the passes before: whether a parameter's gradient has more than what was measured, 0-dim."""
        self.pause()
        received, self._received = self._received, {}
        claimed, self._claimed = self._claimed, {}
        if not received:
            return {}
        entries = list(received)
        got = torch.stack([_sum(received[entry]) for entry in entries])
        nothing = [got.new_zeros(2)]
        want = torch.stack([_sum(claimed.get(entry, nothing)).to(got) for entry in entries])
        half, self._half = self._half, False
        of_own, of_largest = _TOLERANCE_OF_HALF if half else _TOLERANCE.get(got.dtype, _TOLERANCE_OF_HALF)
        sizes = got[:, 1] + want[:, 1]
        flags = (got[:, 0] - want[:, 0]).abs() > of_own * sizes + of_largest * sizes.max()
        return dict(zip(entries, flags.unbind(), strict=True))


def _measures(entry: Entry, gradient: Tensor) -> Tensor:
    """`⟨r, g⟩` with r from a standard normal distribution, the same for a parameter each time; and ‖g‖.

    r is drawn in parts, so that no second tensor of the parameter's size is held.
    """
    generator = torch.Generator(gradient.device).manual_seed(entry.index)
    dtype = norm_dtype(gradient.dtype)
    g = gradient.detach().to_dense() if gradient.is_sparse else gradient.detach()
    along = g.new_zeros((), dtype=dtype)
    rows = max(1, _PART * g.shape[0] // max(1, g.numel())) if g.ndim else 1
    for part in g.split(rows) if g.ndim else [g]:
        r = torch.randn(part.shape, generator=generator, device=g.device, dtype=dtype)
        along += r.mul_(part).sum()
    return torch.stack([along, torch.linalg.vector_norm(g, dtype=dtype)])


def _sum(measures: list[Tensor]) -> Tensor:
    return measures[0] if len(measures) == 1 else torch.stack(measures).sum(0)
