"""What was measured: per parameter `Σ‖c_i‖` and `Σ‖c_i‖²`, for the gradient at hand and since the last reset.

A denominator belongs to a gradient and lives as long: micro-batches add to both, and clearing the one clears the
other. Whoever clears gradients (`model.zero_grad()`, after a step that a GradScaler skipped too) tells us nothing, so
an entry looks: a backward pass that finds `parameter.grad` empty, or zero, begins a new gradient.

With several processes all of them decide together what is measured, in the all-reduce that averages the sums: what one
excludes is excluded on all, and what none has measured is not taken for zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.autograd.graph import get_gradient_edge

from . import traced
from .accumulator import COUNT, EXCLUDED, Accumulator
from .entry import Entry as Entry
from .flags import FlagsToHost
from .gradient_check import GradientCheck


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
        self._holder: int | None = None  # the backward pass in which others run, those of reentrant checkpointing
        self.held_others = -1  # the last one that was such
        self.exclude: Callable[[list[Entry], str], None] = lambda entries, reason: None
        # An input of every tap: in a compiled pass it gets what keeps the measuring from being dropped as unused.
        # And its node tells a pass for all gradients from one for some.
        self.anchor = torch.zeros((), requires_grad=True)
        self.anchor_node = get_gradient_edge(self.anchor).node
        self.key = traced.register(self)
        self.check = GradientCheck()

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

    def holds_other_passes(self) -> None:
        """The backward pass under way is going to run another one inside."""
        if self._holder is None:
            self._holder = self.held_others = torch._C._current_graph_task_id()
            torch.autograd.Variable._execution_engine.queue_callback(self._no_holder)

    def _no_holder(self) -> None:
        self._holder = None

    def outermost_backward(self) -> int:
        """A number for the backward pass under way, or for the one that holds it."""
        return torch._C._current_graph_task_id() if self._holder is None else self._holder

    def begin_backward(self) -> None:
        """A backward pass reaches a use of a parameter."""
        if self.follows_gradient and self.check.begin_backward(self.entries):
            torch.autograd.Variable._execution_engine.queue_callback(self.check.pause)

    def begin_pass(self) -> None:
        """A forward pass begins: drop what a backward pass that failed left behind."""
        self.watched = True
        self._holder = None
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
        self.check.measuring = True
        try:
            with torch.no_grad():
                for close in closing:
                    close()
        finally:
            self.check.measuring = False

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
        """Whether the host knows what is measured; not so where several processes decide it on devices, or where what
        the gradient's check has found is still on its way."""
        if self._sums is None or self._sums.current.device.type == "cpu":
            return True
        return not is_distributed() and not self._unwatched

    def of_gradient(self) -> tuple[Tensor, list[Entry]]:
        """`[3 or 4, K]`: `Σ‖c‖`, `Σ‖c‖²`, averaged over data-parallel ranks as the gradient is, and the number of
        samples; and the entries that have a value.

        A collective operation when `torch.distributed` runs: one all-reduce of 4K numbers, once per gradient. Where
        these are on a device, the host does not wait to know which are measured: those that are not have NaN.
        """
        self._sum_up()
        if not is_distributed() or not self.entries:
            present = [e for e in self.entries if e.samples and not e.incomplete]
            if self._sums is None or not self._unwatched:
                return (torch.zeros(3, 0) if self._sums is None else self._sums.current), present
            excluded = self._excluded(self._sums)
            if self.settled():
                flags = excluded.tolist()
                return self._sums.current, [e for e in present if not flags[e.index]]
            values = self._sums.current.clone()
            values[:COUNT].masked_fill_(excluded, torch.nan)
            return values, present
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

    def settle_check(self) -> None:
        """Exclude what the gradient's check has found since it was last asked."""
        found = self.check.settle()
        for entry, flag in found.items():
            self.note_unwatched(entry, flag)
        if found and not is_distributed():
            flags = torch.stack(list(found.values()))
            self._announce(list(found), torch.stack((flags, flags)))

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
        if not self._news and not is_distributed():
            self._unwatched = {}
        return [e for e, here in mine.items() if here], [e for e, here in mine.items() if not here]


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1
