"""Flags that the device decides and the host wants to know, without ever waiting for them."""

from __future__ import annotations

import torch
from torch import Tensor


class FlagsToHost:
    """A small tensor on its way to the host; of the CPU's own it is there at once.

    Args:
        flags: any shape; copied, so that it may change afterwards.
    """

    def __init__(self, flags: Tensor) -> None:
        if flags.device.type != "cuda":
            self._host, self._arrival = flags.clone(), None
            return
        self._host = torch.empty(flags.shape, dtype=flags.dtype, pin_memory=True).copy_(flags, non_blocking=True)
        self._arrival = torch.cuda.Event()
        self._arrival.record(torch.cuda.current_stream(flags.device))

    def have_arrived(self) -> bool:
        """Whether `values()` need not wait."""
        return self._arrival is None or self._arrival.query()

    def values(self) -> Tensor:
        """The flags on the host; waits for them."""
        if self._arrival is not None:
            self._arrival.synchronize()
        return self._host
