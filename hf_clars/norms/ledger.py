"""What was measured: per parameter `Σ‖c_i‖` and `Σ‖c_i‖²`, for the gradient at hand and since the last reset.

A denominator belongs to a gradient and lives as long: micro-batches add to both, and clearing the one clears the
other. Whoever clears gradients (`model.zero_grad()`, after a step that a GradScaler skipped too) tells us nothing, so
an entry looks: a backward pass that finds `parameter.grad` empty, or zero, begins a new gradient.

With several processes all of them decide together what is measured, in the all-reduce that averages the sums: what one
excludes is excluded on all, and what none has measured is not taken for zero.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge
from torch.distributed.tensor import DTensor

from . import traced
from .accumulator import COUNT, EXCLUDED, Accumulator
from .flags import FlagsToHost
from .marks import ENTRY
from .part import Part, squares_together

if TYPE_CHECKING:
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


class Ledger:
    """All entries, their sums, and what the processes decide of them together."""

    def __init__(self, looks_at_shares: bool = True) -> None:
        self.entries: list[Entry] = []
        self.follows_gradient = True
        self.watched = False  # whether a forward pass was
        self.watches_shares = False
        self._looks_at_shares = looks_at_shares
        self.handles: list[Any] = []
        self._sums: Accumulator | None = None
        self._reduced: Tensor | None = None
        self._noted: dict[Entry, tuple[Tensor, int]] = {}  # not summed up yet: squares, and of how many samples
        self._turned: dict[Entry, bool | Tensor] = {}  # not done yet: whether their gradient began anew
        self._unwatched: dict[Entry, Tensor] = {}  # whether a part of the gradient was never watched, 0-dim
        self._news: list[tuple[Sequence[Entry], FlagsToHost]] = []
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

    # --- passes ------------------------------------------------------------------------------------------------

    def at_end_of_backward(self, close) -> None:
        if not self._closing:
            # The engine runs callbacks queued during a backward pass when that pass is over. A private name, the one
            # that DistributedDataParallel and FSDP build on; test_norms.py fails if it goes.
            torch.autograd.Variable._execution_engine.queue_callback(self._close_all)
        self._closing.append(close)

    def begin_pass(self) -> None:
        """A forward pass begins: drop what a backward pass that failed left behind."""
        self.watched = True
        if torch.is_grad_enabled():
            # Whatever the pass brings to this rank, it brings to others: all of them reduce again.
            self._reduced = None
        self._drop_unfinished()
        if not torch.compiler.is_compiling():
            self.watch_shares()

    def _drop_unfinished(self) -> None:
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

    def complete(self, parameters: Iterable[Tensor]) -> None:
        """Record what these parameters' uses add up to, though the backward pass goes on: their gradient is whole."""
        for entry in self.entries_of(parameters):
            entry.close_shared()

    def entries_of(self, parameters: Iterable[Tensor]) -> list[Entry]:
        wanted = {id(parameter) for parameter in parameters}
        return [entry for entry in self.entries if id(entry.parameter) in wanted]

    def watch_shares(self) -> None:
        """With several processes: whose part of a gradient never came through a watched pass, each alone can tell."""
        if self._looks_at_shares and self.entries and is_distributed():
            self.watches_shares = True
            for entry in self.entries:
                entry.watch_share(entry.parameter)

    def note_unwatched(self, entry: Entry, flag: Tensor) -> None:
        earlier = self._unwatched.get(entry)
        self._unwatched[entry] = flag if earlier is None else earlier | flag
        self._reduced = None

    # --- sums --------------------------------------------------------------------------------------------------

    def _sums_for(self, like: Tensor) -> Accumulator:
        if self._sums is None:
            dtypes = {e.parameter.dtype for e in self.entries}
            dtype = torch.float64 if torch.float64 in dtypes else torch.float32
            self._sums = Accumulator(len(self.entries), dtype, like.device)
        return self._sums

    def note(self, entry: Entry, squares: Tensor, batch: int, turn: bool | Tensor) -> None:
        """Note `squares`, of `batch` samples, and whether a new gradient begins with them.

        Notes are summed up for all entries together, when sums are asked for or the next pass brings more.
        """
        if entry in self._noted:
            self._sum_up()
        self._noted[entry] = squares, batch
        if turn is not False:
            self._turned[entry] = turn
            if turn is True:
                entry.samples, entry.zeroed = 0, False

    # Whoever asks in inference mode, the sums are changed outside of it, too.
    @torch.inference_mode(False)
    @torch.no_grad()
    def _sum_up(self) -> None:
        noted, self._noted = self._noted, {}
        turned, self._turned = self._turned, {}
        if self._sums is not None:
            surely = [entry.index for entry, turn in turned.items() if turn is True]
            if surely:
                self._sums.turn(surely)
            flagged = {entry.index: turn for entry, turn in turned.items() if isinstance(turn, Tensor)}
            if flagged:
                device = self._sums.current.device
                where = torch.stack([flag.to(device, non_blocking=True) for flag in flagged.values()])
                self._sums.turn(list(flagged), where)
        alike: dict[Any, list[Entry]] = {}
        for entry, (squares, batch) in noted.items():
            alike.setdefault((squares.shape[0], squares.dtype, squares.device, batch), []).append(entry)
        for (*_, batch), entries in alike.items():
            squares = torch.stack([noted[entry][0] for entry in entries])
            norms = self._sums_for(squares).add([entry.index for entry in entries], squares, batch)
            for entry, last in zip(entries, norms.unbind(), strict=True):
                entry.last = last
        if noted:
            self._reduced = None

    def last(self) -> dict[str, Tensor]:
        """Name → norms of the last pass, of those samples that are measured."""
        self._sum_up()
        return {e.name: e.last for e in self.entries if e.last is not None and not e.incomplete}

    def turn(self, parameters: Iterable[Tensor] | None) -> None:
        """These gradients, by default all, were used or cleared: what was measured of them is past."""
        self._sum_up()
        entries = self.entries if parameters is None else self.entries_of(parameters)
        for entry in entries:
            entry.turn()
        if self._sums is not None and entries:
            if len(entries) == len(self.entries):
                self._sums.turn_all()
            else:
                self._sums.turn([entry.index for entry in entries])
        self._reduced = None

    def reset(self) -> None:
        self._drop_unfinished()
        self._noted, self._turned = {}, {}
        self._sums = self._reduced = None
        for entry in self.entries:
            entry.turn()
            entry.recorded = False
            entry.last = None

    def totals(self, row: int) -> dict[str, Tensor]:
        """Name → sum since reset, of this process alone."""
        self._sum_up()
        if self._sums is None:
            return {}
        total = self._sums.total(row)
        return {e.name: total[e.index] for e in self.entries if e.recorded and not e.incomplete}

    # --- what all processes decide -----------------------------------------------------------------------------

    def settled(self) -> bool:
        """Whether the host knows what is measured; not so where several processes decide it on devices."""
        return self._sums is None or self._sums.current.device.type == "cpu" or not is_distributed()

    def of_gradient(self) -> tuple[Tensor, list[Entry]]:
        """`[3 or 4, K]`: `Σ‖c‖`, `Σ‖c‖²`, averaged over data-parallel ranks as the gradient is, and the number of
        samples; and the entries that have a value.

        A collective operation when `torch.distributed` runs: one all-reduce of 4K numbers, once per gradient. Where
        these are on a device, the host does not wait to know which are measured: those that are not have NaN.
        """
        self._sum_up()
        if not is_distributed() or not self.entries:
            present = [e for e in self.entries if e.samples and not e.incomplete]
            return (torch.zeros(3, 0) if self._sums is None else self._sums.current), present
        self.watch_shares()
        sums = self._sums_for(self.entries[0].parameter)
        if self._reduced is None:
            mine = self._excluded(sums)
            self._reduced = sums.reduced(mine)
            is_measured = (self._reduced[COUNT] > 0) & (self._reduced[EXCLUDED] == 0)
            self._announce(self.entries, torch.stack((mine, self._reduced[EXCLUDED] > 0)))
            self._reduced[:COUNT].masked_fill_(~is_measured, torch.nan)
        if not self.settled():
            return self._reduced, [e for e in self.entries if not e.incomplete]
        samples, excluded = self._reduced[COUNT:].tolist()
        return self._reduced, [e for e in self.entries if samples[e.index] and not excluded[e.index]]

    def _excluded(self, sums: Accumulator) -> Tensor:
        """Which columns this process excludes, `[K]`."""
        excluded = torch.zeros(len(self.entries), dtype=torch.bool, device=sums.current.device)
        incomplete = [entry.index for entry in self.entries if entry.incomplete]
        if incomplete:
            excluded.index_fill_(0, sums.index(incomplete), True)
        if self._unwatched:
            flags = torch.stack([flag.to(excluded.device, non_blocking=True) for flag in self._unwatched.values()])
            index = sums.index([entry.index for entry in self._unwatched])
            excluded.index_copy_(0, index, excluded.index_select(0, index) | flags)
        return excluded

    def look_for_unwatched(self) -> None:
        """In a single process: which gradients came past what was watched."""
        found = [(entry, g) for entry in self.entries if (g := entry.unwatched_gradient()) is not None]
        if found:
            flags = [((g._values() if g.is_sparse else g) != 0).any() for _, g in found]
            mine = torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags])
            self._announce([entry for entry, _ in found], torch.stack((mine, mine)))

    def _announce(self, entries: Sequence[Entry], flags: Tensor) -> None:
        """Let the host know, when it may, of which entries this process, and any, has unwatched gradients."""
        self._news.append((entries, FlagsToHost(flags)))

    def news(self, wait: bool) -> tuple[list[Entry], list[Entry]]:
        """Entries found to be excluded by this process, and by others alone, that were not known to be.

        Args:
            wait: for the device, if need be.
        """
        mine: dict[Entry, bool] = {}
        while self._news and (wait or self._news[0][1].have_arrived()):
            entries, flags = self._news.pop(0)
            for entry, (here, anywhere) in zip(entries, flags.values().T.tolist(), strict=True):
                if anywhere and not entry.incomplete:
                    mine[entry] = mine.get(entry, False) or here
        return [e for e, here in mine.items() if here], [e for e, here in mine.items() if not here]


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
