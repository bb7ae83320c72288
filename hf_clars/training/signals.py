"""SIGTERM and SIGUSR1 as wishes to end soon."""

from __future__ import annotations

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGTERM, signal.SIGUSR1)


class StopRequest:
    """Which signal came, if one did; 0 otherwise."""

    def __init__(self) -> None:
        self.signal = 0

    def __call__(self, number: int, frame: FrameType | None) -> None:
        self.signal = number


@contextmanager
def listening() -> Iterator[StopRequest]:
    """Signals only leave a note while this lasts. Data workers have `SurviveOneSigterm`.

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


class SurviveOneSigterm:
    """A `worker_init_fn`: a SIGTERM for the whole process group lets data workers finish what the step needs.

    The second one ends the worker, which is how `DataLoader` gets rid of one that does not come to an end.

    Args:
        further: another `worker_init_fn`, called first.
    """

    def __init__(self, further: Callable[[int], None] | None = None) -> None:
        self.further = further

    def __call__(self, worker: int) -> None:
        if self.further is not None:
            self.further(worker)
        signal.signal(signal.SIGUSR1, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, _ignore_once)


def _ignore_once(number: int, frame: FrameType | None) -> None:
    signal.signal(number, signal.SIG_DFL)
