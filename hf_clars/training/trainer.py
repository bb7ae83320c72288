"""`ClarsTrainer`: transformers' Trainer for very large batches."""

from __future__ import annotations

import copy
import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback
from transformers.trainer_utils import has_length

from ..data import ImageCollator, SharedBatches, TrainStream, accumulation_steps, nearest_batch_size
from ..errors import Preempted, TrainingFailedError, UserError
from ..norms import PerSampleNorms
from ..optimizers import CLARS, parameter_groups
from ..processes import lost_a_process, once
from . import checkpoints
from .arguments import ClarsTrainingArguments
from .checkpointing import AtomicCheckpoints
from .health import StepHealth
from .options import refuse_data_parallel
from .progress import StepProgressCallback
from .resuming import ResumePoint, same_randomness_afterwards, saved_values, tell_differences
from .signals import listening
from .statistics import LayerStatisticsCallback
from .tracking import begin_wandb, keep_wandb_offline_without_login


class ClarsTrainer(AtomicCheckpoints, Trainer):
    """A `transformers.Trainer` for CLARS and LARS with large batches by accumulation, and for runs of days.

    What it changes, and nothing else:

    - Every step has B samples. Micro-batches are fetched one at a time instead of all before the first forward pass;
      an epoch is as many whole steps as one pass over the data allows; with `auto_find_batch_size` the accumulation is
      chosen anew, so that B stays.
    - Checkpoints are whole or not there (`AtomicCheckpoints`), and one that cannot be written does not end the
      training. `resume_from_checkpoint` takes `"auto"`, too: the newest whole checkpoint if there is one. A resumed
      training is the uninterrupted one (`ResumePoint`); with a `TrainStream` nothing is read that was read before.
    - SIGTERM and SIGUSR1 make all processes write a checkpoint after the step under way and raise `Preempted`.
    - A step whose gradient is not finite is skipped, and so are examples of a `TrainStream` that cannot be used; both
      are counted and logged, and too many end the training (`StepHealth`).
    - Weight decay is decided by module type and dimension; `images_per_second` is logged; layers' norms, γ_k and M_k
      are logged every `layer_statistics_steps`; W&B without a login or network is offline; evaluation draws random
      numbers of its own. Measuring ends with `train()`, so the model comes back as it was.

    Takes what `Trainer` takes, with `ClarsTrainingArguments`.

    Raises:
        UserError: several devices in one process (`nn.DataParallel`); no whole step in the data.
        TrainingFailedError: from `train()`, see above; or a data worker that was killed.
        Preempted: from `train()`, see above; a `SystemExit` with status 75.
    """

    args: ClarsTrainingArguments

    def __init__(
        self, model: Any = None, args: ClarsTrainingArguments | None = None, *rest: Any, **kwargs: Any
    ) -> None:
        if args is not None and not isinstance(args, ClarsTrainingArguments):
            raise UserError(f"ClarsTrainer takes ClarsTrainingArguments, not {type(args).__name__}")
        args = ClarsTrainingArguments() if args is None else args
        refuse_data_parallel(args)
        keep_wandb_offline_without_login(args.report_to)
        super().__init__(model, args, *rest, **kwargs)
        if args.tail == "carry" and not isinstance(self.train_dataset, TrainStream):
            raise UserError("tail='carry' needs a TrainStream as train_dataset: use tail='drop'")
        self.steps_per_epoch = 0
        self.examples_per_epoch = 0
        self._shared: SharedBatches | None = None
        self._smallest_tried: int | None = None
        self._log_mark: tuple[int, float] | None = None
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self.add_callback(StepProgressCallback(args.total_batch_size))
        self.add_callback(_DropUnfinishedStep(self))
        if args.layer_statistics_steps > 0:
            self.add_callback(LayerStatisticsCallback(args.layer_statistics_steps))
        self.health = StepHealth(self, args.max_nonfinite_steps, args.max_skipped_share)
        self.add_callback(self.health)
        self.resume_point = ResumePoint(self)
        self.add_callback(self.resume_point)

    # --- optimizer -----------------------------------------------------------------------------------------------

    @property
    def norms(self) -> PerSampleNorms | None:
        """What measures for the optimizer; None before it exists and for optimizers other than CLARS."""
        optimizer = getattr(self.optimizer, "optimizer", self.optimizer)
        norms = optimizer.norms if isinstance(optimizer, CLARS) else None
        return norms if isinstance(norms, PerSampleNorms) else None

    def create_optimizer(self, model: nn.Module | None = None) -> torch.optim.Optimizer:
        optimizer = super().create_optimizer(model)
        if isinstance(optimizer, CLARS):
            optimizer.grad_scaler = self.accelerator.scaler
        return optimizer

    def get_decay_parameter_names(self, model: nn.Module) -> list[str]:
        decayed = [g for g in parameter_groups(model, 1.0) if g["weight_decay"]]
        return [name for group in decayed for name, _ in group["params"]]

    # --- training ------------------------------------------------------------------------------------------------

    def train(self, resume_from_checkpoint: str | bool | None = None, *args: Any, **kwargs: Any) -> Any:
        """As `Trainer.train`; `resume_from_checkpoint="auto"` resumes where there is something to resume."""
        wanted, run_dir = str(resume_from_checkpoint or ""), Path(str(self.args.output_dir))
        checkpoint = once(lambda: checkpoints.find(wanted, run_dir))
        saved = {} if checkpoint is None else saved_values(checkpoint)
        if checkpoint is not None:
            tell_differences(saved, self.train_dataset, self.args.world_size)
        if self.is_world_process_zero() and kwargs.get("trial") is None:
            begin_wandb(self.args, saved.get("wandb_run_id"))
        if self.norms is not None:  # a second call: the first one detached
            self.norms.attach()
        self._log_mark = self._smallest_tried = None
        try:
            with listening() as self.health.stop_request:
                result = super().train(None if checkpoint is None else str(checkpoint), *args, **kwargs)
        except RuntimeError as error:
            reason = _what_was_lost(error)
            if reason is None:
                raise
            step = self.state.global_step
            raise TrainingFailedError(
                f"{reason} (after step {step}). Go on with resume_from_checkpoint=auto"
            ) from error
        finally:
            if self.norms is not None:
                self.norms.detach()
        if self.health.stopped_by is not None:
            raise Preempted(
                f"stopped by {self.health.stopped_by.name} after step {self.state.global_step}"
                + (", without a new checkpoint" if self.last_checkpoint_failed else " with a checkpoint")
                + f" in {run_dir}: go on with resume_from_checkpoint=auto"
            )
        return result

    def evaluate(self, *args: Any, **kwargs: Any) -> dict[str, float]:
        """As `Trainer.evaluate`, without influence on the random numbers of the training."""
        with same_randomness_afterwards():
            return super().evaluate(*args, **kwargs)

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: ClarsTrainingArguments | None = None, **kwargs: Any
    ) -> Any:
        # What auto_find_batch_size tries next: transformers would keep the accumulation, and so change B.
        if args is not None and args.auto_find_batch_size and batch_size is not None:
            if self._smallest_tried is not None:
                batch_size = min(batch_size, self._smallest_tried - 1)
            if batch_size < 1:
                raise UserError("auto_find_batch_size: not even one sample a device fits into its memory")
            assert args.total_batch_size is not None
            batch_size = nearest_batch_size(args.total_batch_size, batch_size, args.world_size)
            self._smallest_tried = batch_size
            args.gradient_accumulation_steps = accumulation_steps(args.total_batch_size, batch_size, args.world_size)
        return super()._inner_training_loop(batch_size, args, **kwargs)

    def _get_grad_norm(self, model: nn.Module, grad_norm: Any = None) -> Any:
        norm = super()._get_grad_norm(model, grad_norm)
        self.health.observe_gradient(norm)
        return norm

    # --- data ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; a `TrainStream` already yields this rank's share and is not divided again."""
        if not isinstance(self.train_dataset, TrainStream):
            return super().get_train_dataloader()
        args = self.args
        workers = args.dataloader_num_workers
        pin_memory = args.dataloader_pin_memory and self.accelerator.device.type != "cpu"
        collator = self.data_collator
        if workers and isinstance(collator, ImageCollator):
            collator = self._shared = SharedBatches(
                collator,
                batch_size=self._train_batch_size,
                workers=workers,
                prefetch_factor=args.dataloader_prefetch_factor or 2,
            )
        return DataLoaderShard(
            self.train_dataset,
            device=self.accelerator.device,
            batch_sampler=self.train_dataset.batches(
                self._train_batch_size, rank=args.process_index, world_size=args.world_size, workers=workers
            ),
            collate_fn=collator,
            num_workers=workers,
            pin_memory=pin_memory,
            persistent_workers=args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            generator=torch.Generator(),  # the global one's numbers belong to the training
            _non_blocking=pin_memory,  # copies then wait for nobody, and nobody for them
        )

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> Any:
        """As `Trainer`'s, with whole steps alone."""
        loader: Any = dataloader
        steps = 0
        if has_length(dataloader):
            size = self.get_total_train_batch_size(args)
            steps = self.num_examples(dataloader) // size
            if steps < 1:
                raise UserError(
                    f"the training data has {self.num_examples(dataloader)} examples, fewer than one batch of "
                    f"total_batch_size={size}"
                )
            if args.max_steps < 0 and isinstance(self.train_dataset, TrainStream) and args.tail == "carry":
                args = copy.copy(args)
                args.max_steps = self.train_dataset.steps_of(args.num_train_epochs)
            loader = _WholeSteps(dataloader, steps * args.gradient_accumulation_steps)
        values = super().set_initial_training_values(args, loader)
        self.steps_per_epoch = steps
        self.examples_per_epoch = steps * self.get_total_train_batch_size(args)
        return values

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[Any, torch.Tensor | int | None]:
        """The micro-batches of one step, fetched one by one, so that memory does not grow with their number.

        Losses that are normalised by the number of items of the whole step (a `compute_loss_func`, a language model)
        need all micro-batches first; for them it is as in `Trainer`.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from a checkpoint of the last step, which Trainer would go beyond
        batches = self._watched(epoch_iterator)
        if self.model_accepts_loss_kwargs or self.compute_loss_func is not None:
            return super().get_batch_samples(batches, num_batches, device)
        return _MicroBatches(batches, num_batches), None

    def _watched(self, batches: Iterator[Any]) -> Iterator[Any]:
        """The same batches, received and without what the collator reports of skipped examples."""
        for batch in batches:
            if self._shared is not None:
                batch = self._shared.received(batch, self.accelerator.device)
            if isinstance(self.train_dataset, TrainStream) and "skipped" in batch:
                self.health.observe_skipped(batch.pop("skipped"))
            yield batch

    def prediction_step(self, model: nn.Module, inputs: dict[str, Any], *args: Any, **kwargs: Any) -> Any:
        inputs.pop("skipped", None)  # of a collator that serves training, too
        return super().prediction_step(model, inputs, *args, **kwargs)

    # --- logging -------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        now, step = time.monotonic(), self.state.global_step
        if "loss" in logs:
            if self._log_mark is not None and step > self._log_mark[0]:
                images = (step - self._log_mark[0]) * (self.args.total_batch_size or 0)
                logs["images_per_second"] = images / (now - self._log_mark[1])
            self._log_mark = (step, now)
            self.health.report(logs, step)
        if "train_loss" in logs:  # of the whole training, whatever part of it is this call's
            steps = step - self.resume_point.loss_since - self.health.skipped_steps
            logs["train_loss"] = self._total_loss_scalar / max(1, steps)
        super().log(logs, start_time)


def _what_was_lost(error: RuntimeError) -> str | None:
    """Which process is gone, where that is what the error is about. DataLoader may raise anywhere, from a signal."""
    if lost_a_process(error):
        return "lost the connection to another process: it ended or was killed, and may have said why"
    message = str(error)
    if "DataLoader worker" not in message:
        return None
    how = message.partition(" killed by signal: ")[2].partition(".")[0] or "unexpectedly"
    return (
        f"a data worker ended ({how}): where memory ran out (a Bus error: /dev/shm), lower dataloader_num_workers or "
        "shuffle_buffer"
    )


class _WholeSteps:
    """A data loader to which its first `length` batches are all there are. Only asked, never iterated."""

    def __init__(self, dataloader: DataLoader, length: int) -> None:
        self.dataset = getattr(dataloader, "dataset", None)
        self._length = length

    def __len__(self) -> int:
        return self._length


class _MicroBatches:
    """The next `number` batches of an iterator, taken when they are needed. Iterated once.

    The first one is taken at once: Trainer restores the random state of a checkpoint after it asked for batches, and
    what beginning to iterate draws from it must come before.
    """

    def __init__(self, iterator: Iterator[Any], number: int) -> None:
        first = list(itertools.islice(iterator, 1))
        self._batches = itertools.chain(first, itertools.islice(iterator, number - 1))
        self._number = number if first else 0

    def __len__(self) -> int:
        return self._number

    def __iter__(self) -> Iterator[Any]:
        return self._batches


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
