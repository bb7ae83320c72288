"""The backward pass under way: its number, its end, and what runs inside of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge


def backward_pass() -> int:
    """The number of the backward pass under way; -1 outside of any.

    This and `at_end_of_pass` are private names, those that DistributedDataParallel and FSDP build on; test_norms.py
    fails if they go. `reaches` has another; test_norms_edges.py fails if that goes.
    """
    return torch._C._current_graph_task_id()


def at_end_of_pass(callback: Callable[[], None]) -> None:
    """Have the engine call it once the backward pass under way is over."""
    torch.autograd.Variable._execution_engine.queue_callback(callback)


def reaches(node: Any) -> bool:
    """Whether the backward pass under way comes to this node of the graph."""
    return torch._C._will_engine_execute_node(node)


def computes_gradient_of(parameter: Tensor) -> bool:
    """Whether the backward pass under way computes this parameter's gradient, rather than an input's alone."""
    try:
        return reaches(get_gradient_edge(parameter).node)
    except RuntimeError:  # `torch.autograd.grad` for the parameter itself, which ends at it
        return True


def quiet_gradient(of: GradientEdge, parameter: Tensor, derivative: Tensor, batched: bool) -> Tensor:
    """From the derivative by `of` to that by a parameter, which its hooks, ours and those of others, are not told of.

    Args:
        batched: there is one of each sample.
    """
    hooks = parameter._backward_hooks or {}
    silenced = dict(hooks)
    hooks.clear()
    try:
        try:
            (gradient,) = torch.autograd.grad(of, parameter, derivative, retain_graph=True, is_grads_batched=batched)
        except RuntimeError:
            if not batched:
                raise
            # What it passes may know one derivative at a time, as sparse tensors and functions of users do.
            each = [torch.autograd.grad(of, parameter, one, retain_graph=True)[0] for one in derivative]
            gradient = torch.stack([one.to_dense() if one.is_sparse else one for one in each])
    finally:
        hooks.update(silenced)
    return gradient


class BackwardPasses:
    """What is to be done at the end of the backward pass under way, and which pass holds others.

    Attributes:
        held_others: the number of the last pass that held others, as reentrant checkpointing has it.
    """

    def __init__(self) -> None:
        self.held_others = -1
        self._holder: int | None = None
        self._unmeasured = -1
        self._closing: list[Callable[[], None]] = []

    def at_end(self, close: Callable[[], None]) -> None:
        if not self._closing:
            at_end_of_pass(self._close_all)
        self._closing.append(close)

    def begin_forward(self) -> bool:
        """A forward pass begins: drop what a backward pass that failed left behind, and say whether there was any."""
        self._holder = None
        return self.drop()

    def drop(self) -> bool:
        dropped, self._closing = self._closing, []
        return bool(dropped)

    def hold_others(self) -> None:
        """The backward pass under way is going to run another one inside."""
        if self._holder is None:
            self._holder = self.held_others = backward_pass()
            at_end_of_pass(self._hold_none)

    def outermost(self) -> int:
        """A number for the backward pass under way, or for the one that holds it."""
        return backward_pass() if self._holder is None else self._holder

    def begin_unmeasured(self) -> bool:
        """The backward pass under way is of a forward pass that was not measured; False if that was said before."""
        before, self._unmeasured = self._unmeasured, self.outermost()
        return before != self._unmeasured

    def is_unmeasured(self) -> bool:
        """Whether it has such a part."""
        return self.outermost() == self._unmeasured

    def _hold_none(self) -> None:
        self._holder = None

    def _close_all(self) -> None:
        closing, self._closing = self._closing, []
        with torch.no_grad():
            for close in closing:
                close()
