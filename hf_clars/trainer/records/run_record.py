"""What a run is and how it ended, for those who compare runs: in `output_dir/run.json`, and in W&B."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from ...errors import DIVERGED, Preempted, TrainingFailedError
from ...safety.files import write_whole
from . import tracking
from .description import Description, describe

FILE_NAME = "run.json"
logger = logging.getLogger(__name__)


class RunRecord(TrainerCallback):
    """Keeps `run.json`, and the W&B run where one is wanted, up to date. All of it in the main process.

    `run.json` is `{"name": …, "config": {…}, "state": …, "wandb_run_id": …}`, see `Description`. The state is
    `running` until the training has ended, also where it was cut off, or asked to end and left a checkpoint; then
    `finished`, `diverged` (too many gradients were not finite, or those of its last steps, see
    `StepHealth.divergence`) or `failed`; and `trainer_state.json` has the whole log. In W&B the summary gets
    `diverged`, and a run that this one has begun is ended with status 1 where the training ended early. What goes on
    afterwards goes on with the same W&B run.

    Args:
        trainer: whose training.
        about: settings that its arguments do not have, such as `model_name`, `dataset`, `image_size`.
    """

    def __init__(self, trainer: Any, about: Mapping[str, Any]) -> None:
        self._trainer = trainer
        self.about = about
        self._description: Description | None = None
        self._ours: str | None = None  # the W&B run that was begun here
        self._defined: set[str] = set()  # metrics that it knows

    @contextmanager
    def of_training(self, wandb_run_id: str | None) -> Iterator[None]:
        """While a training lasts; `wandb_run_id` is that of the checkpoint it goes on from."""
        if not self._trainer.is_world_process_zero():
            yield
            return
        self._description = describe(self._trainer.args, self._trainer.model, self.about)
        self._begin(wandb_run_id)
        self._write("running")
        try:
            yield
        except BaseException as error:
            self._end(_outcome(error), error)
            raise
        self._end("diverged" if self._trainer.health.divergence() else "finished")

    @contextmanager
    def closed_afterwards(self) -> Iterator[None]:
        """For a program that is about this training alone: the W&B run that was begun for it has an end, too."""
        status = 1
        try:
            yield
            status = int(self._trainer.health.divergence() is not None)
        finally:
            if self._is_ours():
                tracking.end_wandb(status)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._description is not None and self._has_wandb():
            tracking.describe_wandb_run(args, self._description, ours=self._is_ours())

    def before_log(self, metrics: Mapping[str, Any]) -> None:
        """Called before what a Trainer logs reaches its reporters."""
        if self._description is None or not self._has_wandb():
            return
        if self._ours is not None and tracking.live_run() is None:  # ended with a training that failed
            self._begin(self._ours)
        if self._is_ours():
            tracking.define_best(metrics.keys() - self._defined)
            self._defined |= metrics.keys()

    def _begin(self, wandb_run_id: str | None) -> None:
        assert self._description is not None
        self._defined = set()
        if tracking.begin_wandb(self._trainer.args, wandb_run_id, self._description):
            self._ours = tracking.wandb_run_id()

    def _end(self, state: str, error: BaseException | None = None) -> None:
        self._write(state)
        try:
            self._trainer.save_state()  # the whole log; a checkpoint's ends with the step before its evaluation
        except OSError as trouble:
            logger.warning("the log of this training cannot be written: %s", trouble.strerror or trouble)
        run = tracking.live_run() if self._has_wandb() else None
        if run is None:
            return
        if state != "running":
            run.summary["diverged"] = state == "diverged"
        if error is not None and self._is_ours():
            again = isinstance(error, Preempted)
            tracking.end_wandb(Preempted.EXIT_STATUS if again else 1, again)

    def _has_wandb(self) -> bool:
        return "wandb" in (self._trainer.args.report_to or ())

    def _is_ours(self) -> bool:
        return self._ours is not None and self._ours == tracking.wandb_run_id()

    def _write(self, state: str) -> None:
        assert self._description is not None
        record = {
            "name": self._description.name,
            "config": self._description.config,
            "state": state,
            "wandb_run_id": tracking.wandb_run_id() if self._has_wandb() else None,
        }
        path = Path(str(self._trainer.args.output_dir)) / FILE_NAME
        try:
            write_whole(path, json.dumps(record, indent=1, default=str) + "\n")
        except OSError as error:  # a full disk does not end a training
            logger.warning("%s cannot be written (state: %s): %s", path, state, error.strerror or error)


def _outcome(error: BaseException) -> str:
    if isinstance(error, Preempted):
        return "running"
    return "diverged" if isinstance(error, TrainingFailedError) and DIVERGED in str(error) else "failed"
