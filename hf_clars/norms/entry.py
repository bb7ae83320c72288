"""A parameter that is measured: its uses in the passes at hand, and the life of its gradient."""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .marks import ENTRY
from .part import Part, squares_together

if TYPE_CHECKING:
    from .ledger import Ledger
    from .tap import Use


_NONE = nn.Parameter(torch.empty(0), requires_grad=False)


class Entry:
    """One parameter's page in the ledger."""

    def __init__(self, ledger: Ledger, module: nn.Module, attribute: str, name: str, index: int) -> None:
        self.ledger = ledger
        self.module = module
        self.attribute = attribute
        self._known = weakref.ref(self.parameter)  # once it has left the module
        self.name = name
        self.index = index
        self.incomplete = False  # part of the gradient cannot be measured, so none of the measured counts
        self.last: Tensor | None = None
        self.samples = 0  # of the gradient at hand, if it was not zeroed in place
        self.zeroed = False  # whether it may have been, which the device alone knows
        self.recorded = False  # whether anything was since the last reset
        self._recorded_in = -1  # the last backward pass that used it
        self.traced_uses = 0  # by compiled code, in the current forward pass
        self._open: list[weakref.ref[Use]] = []  # forward passes that nothing holds on to any more leave no use
        self._parts: list[Part] = []
        self._first: tuple[Use, int, bool | Tensor] | None = None  # of the uses that share this backward pass
        self._version = 0  # that the gradient has, if nobody but backward passes wrote to it
        self._closed: tuple[weakref.ref[Tensor], int] | None = None  # the gradient that was used up, and its version
        self._reached = False  # by a backward pass that has not yet added to the gradient
        self._shares: list[weakref.ref[nn.Parameter]] = []  # whose gradients are looked at before they are reduced

    def __reduce__(self) -> Any:
        return type(None), ()  # parameters carry their entry; a pickled one has none

    @property
    def parameter(self) -> nn.Parameter:
        """Looked up each time: FSDP exchanges a module's parameters. One that left the module may live on elsewhere, as
        pruning and parametrizations have it; of one that does not, an empty one is left."""
        parameter = self.module._parameters.get(self.attribute)
        if parameter is not None:
            return parameter
        parameter = self._known()
        return _NONE if parameter is None else parameter

    def belongs_to(self, parameter: nn.Parameter) -> None:
        """Note whose page it is, on the parameter as well."""
        setattr(parameter, ENTRY, self)
        if not torch.compiler.is_compiling():
            self._known = weakref.ref(parameter)
            if self.ledger.watches_shares:
                self.watch_share(parameter)

    def open(self, use: Use) -> None:
        """A forward pass uses the parameter."""
        if torch.compiler.is_compiling():
            self.traced_uses += 1
        else:
            self._open = [*self._others(use), weakref.ref(use)]

    def in_use(self) -> bool:
        """Whether a forward pass whose backward is still to come uses the parameter."""
        return self.traced_uses > 0 or any(ref() is not None for ref in self._open)

    def _others(self, use: Use) -> list[weakref.ref[Use]]:
        return [ref for ref in self._open if (other := ref()) is not None and other is not use]

    def close(self, use: Use, part: Part, squares: Tensor | None = None) -> None:
        """The backward pass reached `use`; `squares` are the part's, if they are known already."""
        self._reached = True
        if not self._is_shared(use):
            self.record(part.squares() if squares is None else squares, use.batch, self.gradient_is_new())
            return
        if self._first is None:
            self._first = (use, part.batch, self.gradient_is_new())
            self.ledger.at_end_of_backward(self.close_shared)
        elif self._first[1] != part.batch:
            reason = (
                f"it was used with batches of {self._first[1]} and {part.batch} samples in one backward pass, so its "
                "uses do not belong to the same samples; backward() for each batch would tell them apart"
            )
            self.ledger.exclude([self], reason)
            return
        self._parts.append(part.kept())

    def _is_shared(self, use: Use) -> bool:
        """Whether other uses in the same pass have a part in the gradient too, so that `c_i` is a sum over uses."""
        self._open = self._others(use)
        shared_before = use.shared.get(self, False)
        use.shared[self] = shared_before or bool(self._open) or self._first is not None
        return use.shared[self]

    def abandon(self) -> None:
        """Forget uses of a backward pass that never came to its end."""
        self._parts, self._first, self._reached = [], None, False

    def close_shared(self) -> None:
        """The backward pass reached all uses that have a part in the gradient; nothing happens if it is recorded."""
        if self._first is not None:
            use, _, new = self._first
            parts, self._parts, self._first = self._parts, [], None
            self.record(squares_together(parts), use.batch, new)

    def gradient_is_new(self) -> bool | Tensor:
        """Whether the backward pass at hand, which has not yet added to `parameter.grad`, begins a new gradient.

        So it does where there is none, and where it was set to zero. Of a gradient that somebody wrote to since the
        last backward pass (clipping and reductions over ranks do so as well) the device alone knows: a 0-dim flag.
        """
        if not self.ledger.follows_gradient:
            return False
        gradient = self.parameter.grad
        expected, self._version = self._version, 0 if gradient is None else gradient._version + 1
        if gradient is None:
            return True
        if not self.samples or gradient._version == expected or gradient.is_sparse or isinstance(gradient, DTensor):
            return False
        self.zeroed = True
        return (gradient == 0).all()

    def record(self, squares: Tensor, batch: int, new_gradient: bool | Tensor) -> None:
        """Add one backward pass: `squares [m]` are `‖c_i‖²` of m of its `batch` samples."""
        backward = self.ledger.outermost_backward()
        if backward == self._recorded_in and backward == self.ledger.held_others:
            reason = "it is used both inside and outside of reentrant checkpointing, or in several parts of that"
            self.ledger.exclude([self], reason)
        self._recorded_in = backward
        self.ledger.note(self, squares, batch, new_gradient if self.samples > 0 else False)
        self.recorded = True
        self.samples += batch

    def turn(self) -> None:
        """The gradient was used or cleared. It may stay where it is, though: then it is no new one."""
        gradient = self.parameter.grad
        self._closed = None if gradient is None else (weakref.ref(gradient), gradient._version)
        self.samples, self.zeroed = 0, False

    def unwatched_gradient(self) -> Tensor | None:
        """A gradient of which nothing was measured, and which is not one that was used up."""
        if self.samples or self.incomplete or self._first is not None or self.parameter.grad is None:
            return None
        gradient = self.parameter.grad
        if self._closed is not None and self._closed[0]() is gradient and self._closed[1] == gradient._version:
            return None
        return gradient

    def watch_share(self, parameter: nn.Parameter) -> None:
        """Look at what each backward pass of this process adds to the gradient before it is reduced over ranks."""
        if parameter.requires_grad and not any(ref() is parameter for ref in self._shares):
            self._shares.append(weakref.ref(parameter))
            self.ledger.handles.append(parameter.register_hook(self._look_at_share))

    def _look_at_share(self, share: Tensor) -> None:
        reached, self._reached = self._reached, False
        if not reached and not self.incomplete:
            share = share.to_local() if isinstance(share, DTensor) else share
            values = share._values() if share.is_sparse else share
            self.ledger.note_unwatched(self, (values != 0).any())
