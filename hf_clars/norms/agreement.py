"""What is measured, all processes decide together.

They do so in the all-reduce that averages the sums: what one excludes is excluded on all, and what none has measured is
not taken for zero. What a device decides reaches the host later, as news.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from .accumulator import COUNT, EXCLUDED, Accumulator
from .backward_passes import BackwardPasses
from .flags import FlagsToHost
from .gradient_life import GradientLife
from .tracked import TrackedParameter


def is_distributed() -> bool:
    """Whether several processes train together."""
    return dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1


class Agreement:
    """Which parameters this process, and any, cannot measure.

    Args:
        parameters: all that are measured, in the order of their columns.
        passes: backward passes, of which some are not measured.
        looks_at_shares: whether each process looks at what it adds to gradients itself.
    """

    def __init__(self, parameters: list[TrackedParameter], passes: BackwardPasses, looks_at_shares: bool) -> None:
        self._parameters = parameters
        self._passes = passes
        self._looks_at_shares = looks_at_shares
        self._watches_shares = False
        self._watched: dict[TrackedParameter, list[weakref.ref[nn.Parameter]]] = {}  # whose shares are looked at
        self._reached: set[TrackedParameter] = set()  # by a backward pass that has not yet added to the gradient
        self._unwatched: dict[TrackedParameter, Tensor] = {}  # whether a part of the gradient was never watched, 0-dim
        self._news: list[tuple[Sequence[TrackedParameter], FlagsToHost]] = []
        self._reduced: Tensor | None = None
        self.handles: list[Any] = []

    # --- what this process finds ------------------------------------------------------------------------------

    def watch_shares(self) -> None:
        """With several processes: whose part of a gradient never came through a watched pass, each alone can tell."""
        if self._looks_at_shares and self._parameters and is_distributed():
            self._watches_shares = True
            for tracked in self._parameters:
                self.watch_share(tracked, tracked.parameter)

    def watch_share(self, tracked: TrackedParameter, parameter: nn.Parameter) -> None:
        """Look at what each backward pass of this process adds to the gradient before it is reduced over ranks."""
        if not self._watches_shares or not parameter.requires_grad:
            return
        watched = self._watched.setdefault(tracked, [])
        if not any(ref() is parameter for ref in watched):
            watched.append(weakref.ref(parameter))
            self.handles.append(parameter.register_hook(lambda share: self._look_at(tracked, share)))

    def reached(self, tracked: TrackedParameter) -> None:
        """A backward pass measures it, and will add to its gradient."""
        self._reached.add(tracked)

    def _look_at(self, tracked: TrackedParameter, share: Tensor) -> None:
        if tracked in self._reached:
            self._reached.remove(tracked)
        elif not tracked.excluded and not self._passes.is_unmeasured():
            share = share.to_local() if isinstance(share, DTensor) else share
            values = share._values() if share.is_sparse else share
            self.note_unwatched(tracked, (values != 0).any())

    def note_unwatched(self, tracked: TrackedParameter, flag: Tensor) -> None:
        earlier = self._unwatched.get(tracked)
        self._unwatched[tracked] = flag if earlier is None else earlier | flag
        self._reduced = None

    def abandon(self) -> None:
        """A backward pass never came to its end."""
        self._reached.clear()

    def begin_anew(self) -> None:
        """Sums changed, or are going to: whatever a pass brings to this rank, it brings to others, and all of them
        reduce again."""
        self._reduced = None

    # --- what all decide --------------------------------------------------------------------------------------

    def settled(self, sums: Accumulator | None) -> bool:
        """Whether the host knows what is measured; not so where several processes decide it on devices, or where what
        the gradient's check has found is still on its way."""
        if sums is None or sums.current.device.type == "cpu":
            return True
        return not is_distributed() and not self._unwatched

    def of_one_process(
        self, sums: Accumulator | None, lives: Sequence[GradientLife]
    ) -> tuple[Tensor, list[TrackedParameter]]:
        """As `of_all`, where there is one process, with three rows."""
        present = [t for t in self._parameters if lives[t.index].samples and not t.excluded]
        if sums is None or not self._unwatched:
            return (torch.zeros(3, 0) if sums is None else sums.current), present
        excluded = self._excluded(sums)
        if self.settled(sums):
            flags = excluded.tolist()
            return sums.current, [t for t in present if not flags[t.index]]
        values = sums.current.clone()
        values[:COUNT].masked_fill_(excluded, torch.nan)
        return values, present

    def of_all(self, sums: Accumulator) -> tuple[Tensor, list[TrackedParameter]]:
        """`[4, K]` as `Accumulator.reduced` has them, and the parameters that have a value.

        A collective operation: one all-reduce of 4K numbers, once per gradient. Where these are on a device, the host
        does not wait to know which are measured: those that are not have NaN.
        """
        self.watch_shares()
        if self._reduced is None:
            mine = self._excluded(sums)
            self._reduced = sums.reduced(mine)
            is_measured = (self._reduced[COUNT] > 0) & (self._reduced[EXCLUDED] == 0)
            self._announce(self._parameters, torch.stack((mine, self._reduced[EXCLUDED] > 0)))
            self._reduced[:COUNT].masked_fill_(~is_measured, torch.nan)
        if not self.settled(sums):
            return self._reduced, [t for t in self._parameters if not t.excluded]
        samples, excluded = self._reduced[COUNT:].tolist()
        return self._reduced, [t for t in self._parameters if samples[t.index] and not excluded[t.index]]

    def _excluded(self, sums: Accumulator) -> Tensor:
        """Which columns this process excludes, `[K]`."""
        excluded = torch.zeros(len(self._parameters), dtype=torch.bool, device=sums.current.device)
        known = [tracked.index for tracked in self._parameters if tracked.excluded]
        if known:
            excluded.index_fill_(0, sums.index(known), True)
        if self._unwatched:
            flags = torch.stack([flag.to(excluded.device, non_blocking=True) for flag in self._unwatched.values()])
            index = sums.index([tracked.index for tracked in self._unwatched])
            excluded.index_copy_(0, index, excluded.index_select(0, index) | flags)
        return excluded

    # --- what the host learns ---------------------------------------------------------------------------------

    def look_for_unwatched(self, gradients: dict[TrackedParameter, Tensor]) -> None:
        """In a single process: which of these gradients, that came past what was watched, are not zero."""
        if gradients:
            flags = [((g._values() if g.is_sparse else g) != 0).any() for g in gradients.values()]
            mine = torch.stack([flag.to(flags[0].device, non_blocking=True) for flag in flags])
            self._announce(list(gradients), torch.stack((mine, mine)))

    def note_checked(self, found: dict[TrackedParameter, Tensor]) -> None:
        """What the gradient's check has found: of which parameters the gradient is more than what was measured."""
        for tracked, flag in found.items():
            self.note_unwatched(tracked, flag)
        if found and not is_distributed():
            flags = torch.stack(list(found.values()))
            self._announce(list(found), torch.stack((flags, flags)))

    def _announce(self, parameters: Sequence[TrackedParameter], flags: Tensor) -> None:
        """Let the host know, when it may, of which this process, and any, has unwatched gradients."""
        self._news.append((parameters, FlagsToHost(flags)))

    def news(self, wait: bool) -> tuple[list[TrackedParameter], list[TrackedParameter]]:
        """Those found to be excluded by this process, and by others alone, that were not known to be.

        Args:
            wait: for the device, if need be.
        """
        mine: dict[TrackedParameter, bool] = {}
        while self._news and (wait or self._news[0][1].have_arrived()):
            parameters, flags = self._news.pop(0)
            for tracked, (here, anywhere) in zip(parameters, flags.values().T.tolist(), strict=True):
                if anywhere and not tracked.excluded:
                    mine[tracked] = mine.get(tracked, False) or here
        if not self._news and not is_distributed():
            self._unwatched = {}
        return [t for t, here in mine.items() if here], [t for t, here in mine.items() if not here]
