"""SIGTERM and SIGUSR1 as wishes to end soon."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from torch import Tensor

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Which signal came, if one did; 0 otherwise."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Signals only leave a note while this lasts. Data workers have `PatientWorkers`.

    Outside the main thread, where Python forbids handlers, everything stays as it is.
    """
    request = StopRequest()
    if threading.current_thread() is not threading.main_thread():
        yield request
        return
    before = {number: signal.signal(number, request) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, signal.SIG_DFL if handler is None else handler)


class PatientWorkers:
    """A `worker_init_fn`: while the training lasts, a SIGTERM for the whole process group leaves data workers alone.

    They are needed until the step is done. Otherwise it ends them, which is how Python gets rid of them at its exit.

    Args:
        training: shared flag, one while a training lasts.
        further: another `worker_init_fn`, called first.
    """

    def __init__(self, training: Tensor, further: Callable[[int], None] | None = None) -> None:
        self.training = training
        self.further = further

    def __call__(self, worker: int) -> None:
        if self.further is not None:
            self.further(worker)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end_or_stay)

    def _end_or_stay(self, number: int, frame: FrameType | None) -> None:
        if not self.training:
            os._exit(0)  # as torch's own handler does
