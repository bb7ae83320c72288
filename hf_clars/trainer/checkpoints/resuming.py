"""What a checkpoint of `ClarsTrainer` holds beyond Trainer's own, so that a resumed run is the uninterrupted one."""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Set
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import TrainerCallback
from transformers.trainer_callback import ExportableState
from transformers.trainer_pt_utils import nested_gather

from ...data import TrainStream
from ...errors import UserError
from ..arguments.options import AUTHORS
from ..records.tracking import wandb_run_id
from ..seams import calling_trainer
from .changes import changes, refuse_another_schedule, settings_of, tell
from .reading import Steps, readable, wrong

logger = logging.getLogger(__name__)


class ResumePoint(TrainerCallback, ExportableState):
    """The loss that is not logged yet, what was skipped, the order of an unfinished epoch, and W&B's run.

    Also: a checkpoint at the last step of an epoch is written when the epoch is over. Before that it would lack the
    evaluation that follows, which a resumed training, beginning with the next epoch, would never make.
    """

    def __init__(self) -> None:
        self._trainer: Any = None
        self._values: dict[str, Any] = {}
        self._save_at_epoch_end = False
        self.loss_since = 0  # the step from which on the total loss counts

    def state(self) -> dict[str, Any]:
        return {"args": {}, "attributes": self._values}

    def gather(self, trainer: Any) -> None:
        """Collect what is to be saved. Collective."""
        losses = nested_gather(trainer._tr_loss, trainer.args.parallel_mode)
        self._values = {
            "loss": losses.view(-1).tolist(),  # float32 values, which JSON keeps exactly
            "total_loss": trainer._total_loss_scalar,
            "last_logged": trainer._globalstep_last_logged,
            "skipped_examples": trainer.health.skipped_examples,
            "skipped_steps": trainer.health.skipped_steps,
            "unlogged_skipped_steps": trainer.health.unlogged_skipped_steps,
            "nonfinite_in_a_row": [trainer.health.in_a_row, trainer.health.lost_in_a_row],
            "evaluated": trainer.evaluated,
            "wandb_run_id": wandb_run_id(),
            "seconds": trainer.clock.seconds,
            "world_size": trainer.args.world_size,
            "optim": _method(trainer.args),
            "options": trainer.options_made_with,
            "settings": settings_of(trainer.args, trainer.record.about),
            "images": trainer.images_seen,
        }
        if isinstance(trainer.train_dataset, TrainStream):
            epoch = trainer.state.global_step // trainer.steps_per_epoch
            self._values["stream"] = trainer.train_dataset.state(epoch)

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer = calling_trainer()
        # Trainer fails at its next checkpoint when the one it resumed from knows no such callback.
        state.stateful_callbacks.setdefault(type(self).__name__, self.state())
        saved = state.stateful_callbacks[type(self).__name__]["attributes"]
        trainer = self._trainer
        self.loss_since = 0 if saved else state.global_step
        trainer.health.logged_at = state.global_step
        trainer.clock.start(saved.get("seconds", 0.0) if state.global_step else 0.0)
        size = args.total_batch_size
        images = saved.get("images", state.global_step * size) if state.global_step else 0
        trainer.progress_from = (state.global_step, images, size)
        state.compute_steps(args, state.max_steps)  # those of now, where a checkpoint's state brought its own
        if not state.global_step or not saved:
            return
        losses = saved["loss"]
        same = len(losses) == args.world_size
        trainer._tr_loss.fill_(losses[args.process_index] if same else sum(losses) / len(losses))
        trainer._total_loss_scalar = saved["total_loss"]
        trainer._globalstep_last_logged = trainer.health.logged_at = saved["last_logged"]
        trainer.health.skipped_examples = {**trainer.health.skipped_examples, **saved["skipped_examples"]}
        trainer.health.skipped_steps = saved["skipped_steps"]
        trainer.health.unlogged_skipped_steps = saved["unlogged_skipped_steps"]
        trainer.health.in_a_row, trainer.health.lost_in_a_row = saved.get("nonfinite_in_a_row", (0, 0))
        if not changes(saved.get("settings", {}), settings_of(args, trainer.record.about)):
            trainer.evaluated = saved.get("evaluated")

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        ends_epoch = self._trainer.steps_per_epoch and state.global_step % self._trainer.steps_per_epoch == 0
        self._save_at_epoch_end = bool(ends_epoch and control.should_save)
        if self._save_at_epoch_end:
            control.should_save = False

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._save_at_epoch_end:
            self._save_at_epoch_end, control.should_save = False, True
        elif self._trainer.health.stopped_by is not None:  # amid an epoch, whose end is the resumed training's
            control.should_save = control.should_evaluate = control.should_log = False


class _Evaluated(BaseModel):
    """The last evaluation."""

    step: Steps
    metrics: dict[str, Any]


class _Saved(BaseModel):
    """What `ResumePoint` leaves."""

    model_config = ConfigDict(strict=True, extra="forbid")

    loss: Annotated[list[float], Field(min_length=1)]
    total_loss: float
    last_logged: Steps
    skipped_examples: dict[str, Steps]
    skipped_steps: Steps
    unlogged_skipped_steps: Steps
    nonfinite_in_a_row: Annotated[list[Steps], Field(min_length=2, max_length=2)] = [0, 0]
    evaluated: _Evaluated | None = None
    wandb_run_id: str | None = None
    seconds: float = 0.0
    world_size: Steps
    optim: str
    options: list[dict[str, Any]] | None = None
    settings: dict[str, Any] = {}
    images: Steps = 0
    stream: dict[str, Any] = {}


def saved_values(checkpoint: Path) -> dict[str, Any]:
    """What `ResumePoint` left in a checkpoint; nothing in those of other Trainers.

    Raises:
        UserError: it is not what `ResumePoint` leaves.
    """
    with readable(checkpoint, "trainer_state.json"):
        state = json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
        saved = ((state.get("stateful_callbacks") or {}).get(ResumePoint.__name__) or {}).get("attributes") or {}
        if saved:
            try:
                _Saved.model_validate(saved)
            except ValidationError as error:
                raise ValueError(f"{ResumePoint.__name__}.{wrong(error)}") from error
        return saved


def tell_differences(saved: dict[str, Any], stream: Any, args: Any, settings: Mapping[str, Any]) -> Set[str]:
    """Lay out the unfinished epoch of a checkpoint as it was, and say where the training cannot go on exactly.

    `settings` are those of now, see `settings_of`. Returns the names of those that have changed.
    """
    say = logger.debug if args.process_index else logger.warning
    if not saved:
        say("the checkpoint is not one of ClarsTrainer: the order of the unfinished epoch is not known")
        return frozenset()
    world_size = args.world_size
    if saved["optim"] != _method(args):
        raise UserError(
            f"the checkpoint is of optim={saved['optim']!r}, not {_method(args)!r}: it cannot go on with it"
        )
    before = saved.get("settings", {})
    refuse_another_schedule(before, settings)
    changed = changes(before, settings)
    tell(changed, args)
    if saved["world_size"] != world_size:
        say(
            "the checkpoint is of %d processes and there are %d: sums are rounded in another order, and random numbers "
            "on the devices (dropout) are others",
            saved["world_size"],
            world_size,
        )
    if isinstance(stream, TrainStream):
        others = stream.restore(saved.get("stream", {}))
        if others:
            say(
                "%s: the unfinished epoch goes on in another order, so that some of its examples come again and as "
                "many do not come",
                "; ".join(others),
            )
    return changed.keys()


def _method(args: Any) -> str:
    """Whose state an optimizer's is: that of `mode="authors"` means something else than that of CLARS."""
    name: str = args.optim_name
    authors = name == "clars" and args.optimizer_options().mode == AUTHORS
    return f"{name} with mode=authors" if authors else name
