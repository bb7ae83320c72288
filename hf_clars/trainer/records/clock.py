"""How long a training has lasted, and how far it has come, in every row of its log."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import Trainer


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


class LoggedProgress(Trainer):
    """A mix-in for `Trainer`: rows of its log have `images_seen` and `seconds`, some `images_per_second`, too."""

    clock: TrainingClock
    health: Any
    record: Any
    resume_point: Any
    progress_from = (0, 0, 0)  # step, images, and samples of a step from there on
    _log_mark: tuple[int, int, float] | None = None  # step, images and seconds of the last row with a loss

    @property
    def images_seen(self) -> int:
        """In all steps so far, also those of a checkpoint that the training goes on from, whatever their B was."""
        step, images, size = self.progress_from
        return images + (self.state.global_step - step) * size

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        step, images, seconds = self.state.global_step, self.images_seen, self.clock.seconds
        if "loss" in logs:
            if self._log_mark is not None and step > self._log_mark[0]:
                logs["images_per_second"] = (images - self._log_mark[1]) / max(seconds - self._log_mark[2], 1e-9)
            self._log_mark = (step, images, seconds)
            self.health.report(logs, step)
        if "train_loss" in logs:  # of the whole training, whatever part of it is this call's
            steps = step - self.resume_point.loss_since - self.health.skipped_steps
            logs["train_loss"] = self._total_loss_scalar / max(1, steps)
        self.record.before_log(logs)
        progress = {"images_seen": images, "seconds": seconds}
        logs |= progress
        super().log(logs, start_time)
        for name in progress:  # who asked for the evaluation gets metrics alone: a search adds all of them up
            del logs[name]
