"""What was measured: per parameter `Σ‖c_i‖` and `Σ‖c_i‖²`, for the gradient at hand and since the last reset.

A denominator belongs to a gradient and lives as long: micro-batches add to both, and clearing the one clears the
other. Whoever clears gradients (`model.zero_grad()`, after a step that a GradScaler skipped too) tells us nothing, so
an entry looks: a backward pass that finds `parameter.grad` empty begins a new gradient.
"""

from __future__ import annotations

import weakref
from typing import TYPE_CHECKING

import torch
import torch.distributed as dist
from torch import Tensor, nn

from . import forms, measure

if TYPE_CHECKING:
    from .rule import Rule
    from .tap import Call


class Entry:
    """One parameter's page in the ledger."""

    def __init__(self, ledger: Ledger, module: nn.Module, attribute: str, name: str, index: int) -> None:
        self.ledger = ledger
        self.module = module
        self.attribute = attribute
        self.name = name
        self.index = index
        self.seen = False  # whether anything was ever recorded
        self.incomplete = False  # part of the gradient cannot be measured, so none of the measured counts
        self.last: Tensor | None = None
        self.samples = 0  # of the gradient at hand
        self.past_samples = 0
        self._open: weakref.WeakSet[Call] = weakref.WeakSet()
        self._shared: list[tuple[Rule, Tensor, Tensor]] = []
        self._shared_bias: Tensor | None = None
        self._shared_call: tuple[Call, int, bool] | None = None

    @property
    def parameter(self) -> nn.Parameter:
        """Looked up each time: FSDP exchanges a module's parameters."""
        parameter = self.module._parameters[self.attribute]
        assert parameter is not None
        return parameter

    def open(self, call: Call) -> None:
        """A forward pass used the parameter in `call`."""
        self._open.add(call)

    def close(self, call: Call, x: Tensor, d: Tensor, batch: int) -> Tensor | None:
        """The backward pass reached `call`. Returns the weight gradient if `call` is to provide it."""
        if not self._is_shared(call):
            squares, gradient = measure.measure(call.rule, x, d, batch, call.fused)
            self.record(squares, call.batch, self._gradient_is_new())
            return gradient
        self._share(call, batch)
        self._shared.append((call.rule, x, d))
        return measure.measure(call.rule, x, d, batch, True)[1] if call.fused else None

    def close_bias(self, call: Call, d: Tensor, batch: int) -> None:
        samples = call.rule.bias_samples(d, batch)
        if not self._is_shared(call):
            self.record(forms.squared_norms(samples), call.batch, self._gradient_is_new())
            return
        self._share(call, batch)
        self._shared_bias = samples if self._shared_bias is None else self._shared_bias + samples

    def _is_shared(self, call: Call) -> bool:
        """Whether other calls of the same pass use the parameter too, so that `c_i` is a sum over calls.

        Calls of forward passes that nothing holds on to any more have left `_open` by themselves.
        """
        others = any(other is not call for other in self._open)
        self._open.discard(call)
        shared_before = call.shared.get(self.index, False)
        call.shared[self.index] = shared_before or others or self._shared_call is not None
        return call.shared[self.index]

    def _share(self, call: Call, batch: int) -> None:
        if self._shared_call is None:
            self._shared_call = (call, batch, self._gradient_is_new())
            self.ledger.at_end_of_backward(self._close_shared)
        elif self._shared_call[1] != batch:
            raise RuntimeError(
                f"{self.name} was used with batches of {self._shared_call[1]} and {batch} samples in one backward "
                "pass, so its calls do not belong to the same samples: call backward() for each batch"
            )

    def abandon(self) -> None:
        """Forget calls of a backward pass that never came to its end."""
        self._shared, self._shared_bias, self._shared_call = [], None, None

    def _close_shared(self) -> None:
        assert self._shared_call is not None
        call, batch, new = self._shared_call
        if self._shared_bias is not None:
            squares = forms.squared_norms(self._shared_bias)
        else:
            squares = measure.measure_together(self._shared, batch)
        self._shared, self._shared_bias, self._shared_call = [], None, None
        self.record(squares, call.batch, new)

    def _gradient_is_new(self) -> bool:
        return self.ledger.follows_gradient and self.parameter.grad is None

    def record(self, squares: Tensor, batch: int, new_gradient: bool) -> None:
        """Add one backward pass: `squares [m]` are `‖c_i‖²` of m of its `batch` samples."""
        if new_gradient and self.samples:
            self.ledger.turn(self)
        norms = squares.sqrt()
        self.last, self.seen = norms, True
        self.samples += batch
        pair = torch.stack((norms.sum(), squares.sum()))
        if batch != squares.shape[0]:
            pair = pair * (batch / squares.shape[0])
        self.ledger.add(self, pair)


class Ledger:
    """All entries, and their sums as two rows of one matrix each, so that a reduction over ranks is one call."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.follows_gradient = True
        self._current: Tensor | None = None  # [2, K]: of the gradient at hand
        self._past: Tensor | None = None  # [2, K]: the rest, since reset()
        self._reduced: Tensor | None = None
        self._closing: list = []

    def open_entry(self, module: nn.Module, attribute: str, name: str) -> Entry:
        entry = Entry(self, module, attribute, name, len(self.entries))
        self.entries.append(entry)
        return entry

    def at_end_of_backward(self, close) -> None:
        if not self._closing:
            # The engine runs callbacks queued during a backward pass when that pass is over. A private name, the one
            # that DistributedDataParallel and FSDP build on; test_norms_shared.py fails if it goes.
            torch.autograd.Variable._execution_engine.queue_callback(self._close_all)
        self._closing.append(close)

    def abandon_unfinished(self) -> None:
        """Drop what a backward pass that failed left behind."""
        if self._closing:
            self._closing = []
            for entry in self.entries:
                entry.abandon()

    def _close_all(self) -> None:
        closing, self._closing = self._closing, []
        with torch.no_grad():
            for close in closing:
                close()

    def _sums(self, like: Tensor) -> tuple[Tensor, Tensor]:
        if self._current is None or self._past is None:
            dtypes = {e.parameter.dtype for e in self.entries}
            dtype = torch.float64 if torch.float64 in dtypes else torch.float32
            self._current = torch.zeros(2, len(self.entries), dtype=dtype, device=like.device)
            self._past = torch.zeros_like(self._current)
        return self._current, self._past

    def add(self, entry: Entry, pair: Tensor) -> None:
        current, _ = self._sums(pair)
        current[:, entry.index] += pair.to(current.device, current.dtype, non_blocking=True)
        self._reduced = None

    def turn(self, entry: Entry) -> None:
        """The entry's gradient was cleared: what was measured of it is past."""
        if self._current is not None and self._past is not None:
            self._past[:, entry.index] += self._current[:, entry.index]
            self._current[:, entry.index] = 0
            self._reduced = None
        entry.past_samples += entry.samples
        entry.samples = 0

    def turn_all(self) -> None:
        if self._current is not None and self._past is not None:
            self._past += self._current
            self._current.zero_()
            self._reduced = None
        for entry in self.entries:
            entry.past_samples += entry.samples
            entry.samples = 0

    def reset(self) -> None:
        self.abandon_unfinished()
        self._current = self._past = self._reduced = None
        for entry in self.entries:
            entry.samples = entry.past_samples = 0
            entry.last = None

    def totals(self, row: int) -> dict[str, Tensor]:
        """Name → sum since reset, of this process alone."""
        if self._current is None or self._past is None:
            return {}
        total = self._past[row] + self._current[row]
        return {e.name: total[e.index] for e in self.entries if e.samples + e.past_samples and not e.incomplete}

    def of_gradient(self) -> tuple[Tensor, list[Entry]]:
        """`[2, K]`, averaged over data-parallel ranks as the gradient is, and the entries that have a value.

        A collective operation when `torch.distributed` runs: one all-reduce of 2K numbers, once per gradient.
        """
        distributed = dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
        if distributed:
            # A layer that this rank did not reach may still have a gradient, from the others.
            present = [e for e in self.entries if e.parameter.requires_grad and not e.incomplete]
            if not present:
                return torch.zeros(2, 0), []
            current, _ = self._sums(present[0].parameter)
            if self._reduced is None:
                self._reduced = current.clone()
                dist.all_reduce(self._reduced)
                world = dist.get_world_size()
                # Ranks average their gradients: each contribution is divided by the world size, its square twice.
                self._reduced /= torch.tensor([[world], [world**2]], device=current.device)
            return self._reduced, present
        present = [e for e in self.entries if e.samples and not e.incomplete]
        return (torch.zeros(2, 0) if self._current is None else self._current), present
