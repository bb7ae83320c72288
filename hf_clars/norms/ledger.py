"""What was measured: per parameter `Σ‖c_i‖` and `Σ‖c_i‖²`, for the gradient at hand and since the last reset.

A denominator belongs to a gradient and lives as long: micro-batches add to both, and clearing the one clears the
other. Whoever clears gradients (`model.zero_grad()`, after a step that a GradScaler skipped too) tells us nothing, so
an entry looks: a backward pass that finds `parameter.grad` empty begins a new gradient.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from . import traced
from .marks import ENTRY
from .part import Part, squares_together

if TYPE_CHECKING:
    from .tap import Use


_INDICES = 64  # kept; a model that drops layers at random asks for ever others


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
        self.seen = False  # whether anything was ever recorded
        self.incomplete = False  # part of the gradient cannot be measured, so none of the measured counts
        self.last: Tensor | None = None
        self.samples = 0  # of the gradient at hand
        self.past_samples = 0
        self.traced_uses = 0  # by compiled code, in the current forward pass
        self._open: list[weakref.ref[Use]] = []  # forward passes that nothing holds on to any more leave no use
        self._parts: list[Part] = []
        self._first: tuple[Use, int, bool] | None = None  # of the uses that share this backward pass

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
        if not self._is_shared(use):
            self.record(part.squares() if squares is None else squares, use.batch, self._gradient_is_new())
            return
        if self._first is None:
            self._first = (use, part.batch, self._gradient_is_new())
            self.ledger.at_end_of_backward(self._close_shared)
        elif self._first[1] != part.batch:
            raise RuntimeError(
                f"{self.name} was used with batches of {self._first[1]} and {part.batch} samples in one backward "
                "pass, so its uses do not belong to the same samples: call backward() for each batch"
            )
        self._parts.append(part.kept())

    def _is_shared(self, use: Use) -> bool:
        """Whether other uses in the same pass have a part in the gradient too, so that `c_i` is a sum over uses."""
        self._open = self._others(use)
        shared_before = use.shared.get(self, False)
        use.shared[self] = shared_before or bool(self._open) or self._first is not None
        return use.shared[self]

    def abandon(self) -> None:
        """Forget uses of a backward pass that never came to its end."""
        self._parts, self._first = [], None

    def _close_shared(self) -> None:
        assert self._first is not None
        use, _, new = self._first
        parts = self._parts
        self.abandon()
        self.record(squares_together(parts), use.batch, new)

    def _gradient_is_new(self) -> bool:
        return self.ledger.follows_gradient and self.parameter.grad is None

    def record(self, squares: Tensor, batch: int, new_gradient: bool) -> None:
        """Add one backward pass: `squares [m]` are `‖c_i‖²` of m of its `batch` samples."""
        self.ledger.note(self, squares, batch, turn=new_gradient and self.samples > 0)
        self.seen = True
        self.samples += batch


class Ledger:
    """All entries, and their sums as two rows of one matrix each, so that a reduction over ranks is one call."""

    def __init__(self) -> None:
        self.entries: list[Entry] = []
        self.follows_gradient = True
        self._current: Tensor | None = None  # [2, K]: of the gradient at hand
        self._past: Tensor | None = None  # [2, K]: the rest, since reset()
        self._reduced: Tensor | None = None
        self._noted: dict[Entry, tuple[Tensor, int]] = {}  # not summed up yet: squares, and of how many samples
        self._turned: list[Entry] = []  # not done yet: their gradient began anew
        self._indices: dict[tuple[int, ...], Tensor] = {}
        self._closing: list = []
        # An input of every tap: in a compiled pass it gets what keeps the measuring from being dropped as unused.
        # And its node tells a pass for all gradients from one for some.
        self.anchor = torch.zeros((), requires_grad=True)
        self.anchor_node = get_gradient_edge(self.anchor).node
        self.key = traced.register(self)

    def open_entry(self, module: nn.Module, attribute: str, name: str) -> Entry:
        entry = Entry(self, module, attribute, name, len(self.entries))
        self.entries.append(entry)
        return entry

    def at_end_of_backward(self, close) -> None:
        if not self._closing:
            # The engine runs callbacks queued during a backward pass when that pass is over. A private name, the one
            # that DistributedDataParallel and FSDP build on; test_norms.py fails if it goes.
            torch.autograd.Variable._execution_engine.queue_callback(self._close_all)
        self._closing.append(close)

    def begin_pass(self) -> None:
        """A forward pass begins: drop what a backward pass that failed left behind."""
        for entry in self.entries:
            entry.traced_uses = 0
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

    def note(self, entry: Entry, squares: Tensor, batch: int, turn: bool) -> None:
        """Note `squares`, of `batch` samples, and whether a new gradient begins with them.

        Notes are summed up for all entries together, when sums are asked for or the next pass brings more.
        """
        if entry in self._noted:
            self._sum_up()
        self._noted[entry] = squares, batch
        if turn:
            self._turned.append(entry)
            entry.past_samples += entry.samples
            entry.samples = 0

    # Whoever asks in inference mode, the sums are changed outside of it, too.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _sum_up(self) -> None:
        noted, self._noted = self._noted, {}
        turned, self._turned = self._turned, []
        if turned and self._current is not None and self._past is not None:
            index = self._index(turned, self._current)
            self._past.index_add_(1, index, self._current.index_select(1, index))
            self._current.index_fill_(1, index, 0)
        alike: dict[Any, list[Entry]] = {}
        for entry, (squares, batch) in noted.items():
            alike.setdefault((squares.shape[0], squares.dtype, squares.device, batch), []).append(entry)
        for (measured, _, _, batch), entries in alike.items():
            squares = torch.stack([noted[entry][0] for entry in entries])
            norms = squares.sqrt()
            sums = torch.stack((norms.sum(1), squares.sum(1)))
            if batch != measured:
                sums *= batch / measured
            current, _ = self._sums(squares)
            sums = sums.to(current.device, current.dtype, non_blocking=True)
            current.index_add_(1, self._index(entries, current), sums)
            for entry, last in zip(entries, norms.unbind(), strict=True):
                entry.last = last
        if noted:
            self._reduced = None

    def _index(self, entries: list[Entry], like: Tensor) -> Tensor:
        """Columns of the entries. Kept on the device, because bringing them there makes the host wait."""
        columns = tuple(entry.index for entry in entries)
        if columns not in self._indices:
            if len(self._indices) >= _INDICES:
                self._indices.clear()
            self._indices[columns] = torch.tensor(columns, device=like.device)
        return self._indices[columns]

    def last(self) -> dict[str, Tensor]:
        """Name → norms of the last pass, of those samples that are measured."""
        self._sum_up()
        return {e.name: e.last for e in self.entries if e.last is not None and not e.incomplete}

    def turn_all(self, parameters: Iterable[Tensor] | None = None) -> None:
        """The gradients of these parameters, or all, were used or cleared: what was measured of them is past."""
        self._sum_up()
        wanted = None if parameters is None else {id(parameter) for parameter in parameters}
        turned = [e for e in self.entries if wanted is None or id(e.parameter) in wanted]
        if turned and self._current is not None and self._past is not None:
            index = self._index(turned, self._current)
            self._past.index_add_(1, index, self._current.index_select(1, index))
            self._current.index_fill_(1, index, 0)
            self._reduced = None
        for entry in turned:
            entry.past_samples += entry.samples
            entry.samples = 0

    def reset(self) -> None:
        self.begin_pass()
        self._noted, self._turned = {}, []
        self._current = self._past = self._reduced = None
        for entry in self.entries:
            entry.samples = entry.past_samples = 0
            entry.last = None

    def totals(self, row: int) -> dict[str, Tensor]:
        """Name → sum since reset, of this process alone."""
        self._sum_up()
        if self._current is None or self._past is None:
            return {}
        total = self._past[row] + self._current[row]
        return {e.name: total[e.index] for e in self.entries if e.samples + e.past_samples and not e.incomplete}

    def of_gradient(self) -> tuple[Tensor, list[Entry]]:
        """`[2, K]`, averaged over data-parallel ranks as the gradient is, and the entries that have a value.

        A collective operation when `torch.distributed` runs: one all-reduce of 2K numbers, once per gradient.
        """
        self._sum_up()
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
                self._reduced[0] /= world
                self._reduced[1] /= world**2
            return self._reduced, present
        present = [e for e in self.entries if e.samples and not e.incomplete]
        return (torch.zeros(2, 0) if self._current is None else self._current), present
