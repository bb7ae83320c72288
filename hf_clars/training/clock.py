"""How long a training has lasted."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager


class TrainingClock:
    """Seconds of training so far, over all parts of a run that was resumed. It stands still while it is `paused`."""

    def __init__(self) -> None:
        self._past = 0.0
        self._since: float | None = None

    def start(self, past: float = 0.0) -> None:
        """Go on from `past` seconds, those of earlier parts up to the checkpoint that is resumed from."""
        self._past, self._since = past, time.monotonic()

    def stop(self) -> None:
        self._past, self._since = self.seconds, None

    @property
    def seconds(self) -> float:
        return self._past if self._since is None else self._past + time.monotonic() - self._since

    @contextmanager
    def paused(self) -> Iterator[None]:
        runs = self._since is not None
        self.stop()
        try:
            yield
        finally:
            if runs:
                self.start(self._past)
