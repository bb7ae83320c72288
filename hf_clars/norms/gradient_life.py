"""When a parameter's gradient begins anew: a denominator belongs to a gradient, and lives as long.

Micro-batches add to both, and clearing the one clears the other. Whoever clears gradients (`model.zero_grad()`, after a
step that a GradScaler skipped too) tells us nothing, so we look: a backward pass that finds `parameter.grad` empty, or
zero, begins a new gradient.
"""

from __future__ import annotations

import weakref

from torch import Tensor
from torch.distributed.tensor import DTensor

from .tracked import TrackedParameter


class GradientLife:
    """Of one parameter's gradient.

    Attributes:
        samples: of the gradient at hand, if it was not zeroed in place.
        zeroed: whether it may have been, which the device alone knows.
        recorded: whether anything was measured since the last reset.
        recorded_in: the last backward pass in which something was.
        last: `‖c_i‖` of the last pass, of the samples that are measured.
    """

    def __init__(self, tracked: TrackedParameter) -> None:
        self._tracked = tracked
        self.samples = 0
        self.zeroed = False
        self.recorded = False
        self.recorded_in = -1
        self.last: Tensor | None = None
        self._version = 0  # that the gradient has, if nobody but backward passes wrote to it
        self._closed: tuple[weakref.ref[Tensor], int] | None = None  # the gradient that was used up, and its version

    def begins(self) -> bool | Tensor:
        """Whether the backward pass at hand, which has not yet added to `parameter.grad`, begins a new gradient.

        So it does where there is none, and where it was set to zero. Of a gradient that somebody wrote to since the
        last backward pass (clipping and reductions over ranks do so as well) the device alone knows: a 0-dim flag.
        """
        gradient = self._tracked.parameter.grad
        expected, self._version = self._version, 0 if gradient is None else gradient._version + 1
        if gradient is None:
            return True
        if not self.samples or gradient._version == expected or gradient.is_sparse or isinstance(gradient, DTensor):
            return False
        self.zeroed = True
        return (gradient == 0).all()

    def begun(self) -> None:
        """A new gradient surely began."""
        self.samples, self.zeroed = 0, False

    def left(self) -> None:
        """A backward pass is over, and leaves the gradient as it is now."""
        gradient = self._tracked.parameter.grad
        self._version = 0 if gradient is None else gradient._version

    def is_as_left(self) -> bool:
        """Whether the gradient is there, and nobody wrote to it since."""
        gradient = self._tracked.parameter.grad
        return gradient is not None and gradient._version == self._version

    def end(self) -> None:
        """The gradient was used or cleared. It may stay where it is, though: then it is no new one."""
        gradient = self._tracked.parameter.grad
        self._closed = None if gradient is None else (weakref.ref(gradient), gradient._version)
        self.samples, self.zeroed = 0, False

    def unwatched_gradient(self) -> Tensor | None:
        """A gradient of which nothing was measured, and which is not one that was used up."""
        gradient = self._tracked.parameter.grad
        if self.samples or self._tracked.excluded or gradient is None or self.is_used_up():
            return None
        return gradient

    def is_used_up(self) -> bool:
        """Whether the gradient is still the one that was used, or cleared."""
        gradient, closed = self._tracked.parameter.grad, self._closed
        if gradient is None or closed is None:
            return False
        return closed[0]() is gradient and closed[1] == gradient._version
