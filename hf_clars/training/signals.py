"""SIGTERM and SIGUSR1 as wishes to end soon."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
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
    """Signals only leave a note while this lasts. Data workers inherit that, and so live until the step is done.

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
            signal.signal(number, handler)
