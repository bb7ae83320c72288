"""`ClarsTrainer`: transformers' Trainer for very large batches."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import SaveStrategy

from ..data import TrainStream
from ..errors import Preempted, TrainingFailedError, UserError
from ..norms import PerSampleNorms
from ..optimizers import CLARS, LayerwiseOptimizer, parameter_groups
from ..runtime.output import forgiving
from ..runtime.processes import once, what_was_lost
from .arguments.options import refuse_data_parallel
from .arguments.schedules import EpochSchedules
from .arguments.training_arguments import ClarsTrainingArguments
from .arguments.without_effect import say_without_effect
from .authors_norms import AuthorsNorms
from .callbacks.first_epochs import FirstEpochs
from .callbacks.health import StepHealth
from .callbacks.layer_statistics import LayerStatisticsCallback
from .checkpoints import folders
from .checkpoints.changes import OptionsOfNow, settings_of
from .checkpoints.checkpointing import AtomicCheckpoints
from .checkpoints.folder_lock import alone_in
from .checkpoints.model_files import ModelFiles
from .checkpoints.reading import CheckedReading, readable
from .checkpoints.resuming import ResumePoint, saved_values, tell_differences
from .evaluating import Evaluations, share_buffers
from .measuring import MeasureWhileTraining, norms_of
from .records.progress import LoggedProgress, StepProgressCallback, TrainingClock
from .records.run_record import RunRecord
from .records.tracking import keep_wandb_offline_without_login
from .signals import listening
from .streaming import StreamedBatches

logger = logging.getLogger(__name__)


class ClarsTrainer(
    CheckedReading,
    StreamedBatches,
    Evaluations,
    LoggedProgress,
    AtomicCheckpoints,
    ModelFiles,
    OptionsOfNow,
    EpochSchedules,
    Trainer,
):
    """A `transformers.Trainer` for CLARS and LARS with large batches by accumulation, and for runs of days.

    What it changes, and nothing else:

    - Every step has B samples. Micro-batches are fetched one at a time instead of all before the first forward pass;
      an epoch is as many whole steps as one pass over the data allows; with `auto_find_batch_size` the accumulation is
      chosen anew, so that B stays.
    - Checkpoints are whole or not there (`AtomicCheckpoints`), and one that cannot be written does not end the
      training. `resume_from_checkpoint` takes `"auto"`, too: the newest whole checkpoint if there is one. A resumed
      training is the uninterrupted one (`ResumePoint`); with a `TrainStream` nothing is read that was read before.
      Arguments that have changed since count from there on (`OptionsOfNow`).
    - SIGTERM and SIGUSR1 make all processes write a checkpoint after the step under way and raise `Preempted`.
    - A step whose gradient is not finite is skipped, and so are examples of a `TrainStream` that cannot be used; both
      are counted and logged, and too many end the training (`StepHealth`).
    - Warmup and decay of the learning rate may be stated in epochs, fully-connected layers be frozen at first, and
      layer-wise learning rates be used at first only (`FirstEpochs`).
    - `mode="authors"` has passes of its own after a step, over some of its samples (`AuthorsNorms`).
    - Weight decay is decided by module type and dimension; layers' norms, γ_k and M_k are logged every
      `layer_statistics_steps`; evaluations take what a checkpoint would hold, and leave no trace (`Evaluations`).
      Measuring ends with `train()`, so the model comes back as it was.
    - Every row that is logged has `images_seen` (steps × B) and `seconds` (of training so far without evaluations,
      over all parts of a resumed run), those of training `images_per_second`, too. `run.json` and W&B know the run's
      settings and how it ended (`RunRecord`); W&B without a login or network is offline.

    It takes what `Trainer` takes, with `ClarsTrainingArguments`, and one argument of its own.

    Args:
        about: settings of the run that these do not have, for `run.json` and W&B's config (`model_name`, `dataset`, …).

    Raises:
        UserError: several devices in one process (`nn.DataParallel`); no whole step in the data.
        TrainingFailedError: from `train()`, see above; or a data worker that was killed.
        Preempted: from `train()`, see above; a `SystemExit` with status 75.
    """

    args: ClarsTrainingArguments
    alone = False  # set by a program that has locked `output_dir` itself, since it does more there than to train

    def __init__(
        self,
        model: Any = None,
        args: ClarsTrainingArguments | None = None,
        *rest: Any,
        about: Mapping[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if args is not None and not isinstance(args, ClarsTrainingArguments):
            raise UserError(f"ClarsTrainer takes ClarsTrainingArguments, not {type(args).__name__}")
        args = ClarsTrainingArguments() if args is None else args
        args.settle()
        refuse_data_parallel(args)
        keep_wandb_offline_without_login(args.report_to)
        super().__init__(model, args, *rest, **kwargs)
        if args.last_batch == "carry" and not isinstance(self.train_dataset, TrainStream):
            raise UserError("last_batch='carry' needs a TrainStream as train_dataset: use last_batch='drop'")
        if self.is_world_process_zero():
            say_without_effect(args)
        self.clock = TrainingClock()
        self.training_lasts = torch.zeros((), dtype=torch.int64).share_memory_()
        self.record = RunRecord(self, about or {})
        self.health = StepHealth(self)
        self.authors_norms = AuthorsNorms(self)
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
        for callback in (
            self.record,
            *(() if args.disable_tqdm else (StepProgressCallback(),)),
            _DropUnfinishedStep(self),
            FirstEpochs(self),
            MeasureWhileTraining(),  # behind `FirstEpochs`, which decides whether there is a use
            self.authors_norms,
            LayerStatisticsCallback(),
            self.health,
            ResumePoint(),
        ):
            self.add_callback(callback)
        self._settle()

    def _settle(self) -> None:
        """What the arguments say now counts, also where they have been set since."""
        self.args.settle()
        self._train_batch_size = self.args.train_batch_size
        if not isinstance(self.train_dataset, TrainStream):
            return
        for name in ("total_batch_size", "last_batch"):
            ours, its = getattr(self.args, name), getattr(self.train_dataset, name)
            if ours != its:
                raise UserError(f"{name} is {ours!r} in the arguments and {its!r} in the TrainStream: make them equal")

    def _hp_search_setup(self, trial: Any) -> None:
        super()._hp_search_setup(trial)
        self._settle()

    # --- optimizer -----------------------------------------------------------------------------------------------

    @property
    def norms(self) -> PerSampleNorms | None:
        """What measures for the optimizer; None before it exists and for optimizers other than CLARS."""
        return norms_of(self.optimizer)

    @property
    def resume_point(self) -> ResumePoint:
        """Which Trainer may have exchanged for another, to restore its state."""
        return next(c for c in self.callback_handler.callbacks if isinstance(c, ResumePoint))

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if isinstance(optimizer, CLARS):
            optimizer.grad_scaler = self.accelerator.scaler
        return optimizer

    @staticmethod
    def get_optimizer_cls_and_kwargs(args: Any, model: Any = None) -> tuple[Any, Any]:
        cls, keywords = Trainer.get_optimizer_cls_and_kwargs(args, model)
        if isinstance(cls, type) and issubclass(cls, LayerwiseOptimizer):  # in place of Trainer's own groups, by name
            rule = keywords.get("bias_and_norm", "eta")
            keywords = {**keywords, "params": parameter_groups(model, keywords["weight_decay"], rule)}
        return cls, keywords

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        decayed = [g for g in parameter_groups(model, 1.0) if g["weight_decay"]]
        return [name for group in decayed for name, _ in group["params"]]

    # --- training ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint="auto"` resumes where there is something to resume."""
        self._settle()
        run_dir = Path(self._get_output_dir(kwargs.get("trial")))
        with forgiving(), nullcontext() if self.alone else alone_in(run_dir):
            once(lambda: folders.tidy(run_dir))
            return self._resume_or_begin(str(resume_from_checkpoint or ""), *args, **kwargs)

    def _resume_or_begin(self, wanted: str, *args: Any, **kwargs: Any) -> Any:
        run_dir = Path(str(self.args.output_dir))
        checkpoint = once(lambda: folders.find(wanted, run_dir))
        self.resumed_from = checkpoint
        saved = {} if checkpoint is None else saved_values(checkpoint)
        if checkpoint is not None:
            settings = settings_of(self.args, self.record.about)
            with readable(checkpoint, "what it says of its training"):
                self.told = tell_differences(saved, self.train_dataset, self.args, settings)
        if checkpoint is None or checkpoint.resolve().parent != run_dir.resolve():
            once(lambda: folders.put_aside(run_dir))
        self.saved_options = saved.get("options")
        is_trial = kwargs.get("trial") is not None  # of a search, which has reporters begin its runs
        with nullcontext() if is_trial else self.record.of_training(saved.get("wandb_run_id")):
            return self._train(checkpoint, *args, **kwargs)

    def _train(self, checkpoint: Path | None, *args: Any, **kwargs: Any) -> Any:
        self._log_mark = self._smallest_tried = self._buffers = self.evaluated = None
        try:
            try:
                self.training_lasts.fill_(1)
                with listening() as self.health.stop_request:
                    result = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
            finally:
                self.training_lasts.zero_()
                self.clock.stop()
                if self.norms is not None:
                    self.norms.detach()
        except RuntimeError as error:
            if checkpoint is not None and "loading state_dict" in str(error):
                raise UserError(f"{checkpoint} is of another model: {str(error).splitlines()[-1].strip()}") from error
            reason = what_was_lost(error)
            if reason is None:
                raise
            step = self.state.global_step
            raise TrainingFailedError(
                f"{reason} (after step {step}). Go on with resume_from_checkpoint=auto"
            ) from error
        if self.health.stopped_by is not None:
            run_dir = Path(str(self.args.output_dir))
            there = (run_dir / f"checkpoint-{self.state.global_step}").is_dir()
            raise Preempted(
                f"stopped by {self.health.stopped_by.name} after step {self.state.global_step} "
                + (f"with a checkpoint in {run_dir}" if there else f"without a new checkpoint in {run_dir}")
                + ": go on with resume_from_checkpoint=auto"
            )
        share_buffers(self.model, self.args.device)
        return result._replace(training_loss=result.metrics["train_loss"])  # that of all steps

    def training_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> torch.Tensor:
        self.authors_norms.keep(inputs)
        return super().training_step(model, inputs, *args, **kwargs)

    def _determine_best_metric(self, metrics: dict[str, float], trial: Any) -> bool:
        best = super()._determine_best_metric(metrics, trial)
        # With save_strategy="best" Trainer saves if this is true, and then alone.
        return best or (self.args.save_strategy == SaveStrategy.BEST and self.health.stopped_by is not None)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.health.observe_gradient(norm)
        return norm


class _DropUnfinishedStep(TrainerCallback):
    """A data set without a length may end amid an accumulation, whose gradients nobody would clear."""

    def __init__(self, trainer: ClarsTrainer) -> None:
        self._trainer = trainer

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.model_wrapped.zero_grad()
        if self._trainer.norms is not None:
            self._trainer.norms.close_gradient()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self._trainer.norms is not None:
            self._trainer.norms.reset()

    def on_epoch_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._trainer.refuse_without_steps()
