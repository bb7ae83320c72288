"""How long a training has lasted, and how far it has come: in every row of its log, and on the terminal."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from tqdm.auto import tqdm
from transformers import ProgressCallback, Trainer

_SHOWN = ("loss", "grad_norm", "learning_rate", "images_per_second")
_NOISE = ("_runtime", "_per_second")


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


class StepProgressCallback(ProgressCallback):
    """transformers' progress bar, counting optimizer steps and showing images/s; one short line per log."""

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if state.is_world_process_zero:
            self.training_bar = tqdm(
                total=state.max_steps, initial=state.global_step, unit="step", desc="training", dynamic_ncols=True
            )
        self.current_step = state.global_step

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.training_bar is not None:
            rate = self.training_bar.format_dict["rate"]
            if rate:
                self.training_bar.set_postfix_str(f"{rate * args.total_batch_size:,.0f} images/s", refresh=False)
        super().on_step_end(args, state, control, **kwargs)

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if self.training_bar is None or not logs:
            return
        shown = {
            k: v
            for k, v in logs.items()
            if k in _SHOWN or k.startswith("skipped_") or (k.startswith("eval_") and not k.endswith(_NOISE))
        }
        if shown:
            values = "  ".join(f"{k} {v:.4g}" for k, v in shown.items() if isinstance(v, (int, float)))
            self.training_bar.write(f"step {state.global_step:>6}  epoch {state.epoch or 0:.2f}  {values}")
