"""`ClarsTrainer`: transformers' Trainer for very large batches."""

from __future__ import annotations

import itertools
import time
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard
from torch import nn
from torch.utils.data import DataLoader
from transformers import PrinterCallback, ProgressCallback, Trainer, TrainerCallback

from ..data import TrainStream
from ..errors import UserError
from ..norms import PerSampleNorms
from ..optimizers import CLARS, parameter_groups
from .arguments import ClarsTrainingArguments
from .options import refuse_data_parallel
from .progress import StepProgressCallback
from .statistics import LayerStatisticsCallback
from .tracking import keep_wandb_offline_without_login


class ClarsTrainer(Trainer):
    """A `transformers.Trainer` for CLARS and LARS with large batches by accumulation.

    What it changes, and nothing else: micro-batches are fetched one at a time instead of all before the first forward
    pass; gradients of an accumulation that a data set's end left unfinished are dropped instead of leaking into the
    next pass; weight decay is decided by module type and dimension; `images_per_second` is logged; layers' norms,
    γ_k and M_k are logged every `layer_statistics_steps`; W&B without a login is offline. Measuring ends with
    `train()`, so the model comes back as it was.

    Takes what `Trainer` takes, with `ClarsTrainingArguments`.

    Raises:
        UserError: several devices in one process (`nn.DataParallel`).
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
        self._log_mark: tuple[int, float] | None = None
        if not args.disable_tqdm:
            self.remove_callback(ProgressCallback)
            self.remove_callback(PrinterCallback)
            self.add_callback(StepProgressCallback(args.total_batch_size))
        self.add_callback(_DropUnfinishedStep(self))
        if args.layer_statistics_steps > 0:
            self.add_callback(LayerStatisticsCallback(args.layer_statistics_steps))

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

    def train(self, *args: Any, **kwargs: Any) -> Any:
        if self.norms is not None:  # a second call: the first one detached
            self.norms.attach()
        self._log_mark = None
        try:
            return super().train(*args, **kwargs)
        finally:
            if self.norms is not None:
                self.norms.detach()

    # --- data ----------------------------------------------------------------------------------------------------

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; a `TrainStream` already yields this rank's share and is not divided again."""
        if not isinstance(self.train_dataset, TrainStream):
            return super().get_train_dataloader()
        args = self.args
        workers = args.dataloader_num_workers
        return DataLoaderShard(
            self.train_dataset,
            device=self.accelerator.device,
            batch_size=self._train_batch_size,
            collate_fn=self.data_collator,
            num_workers=workers,
            pin_memory=args.dataloader_pin_memory and self.accelerator.device.type != "cpu",
            persistent_workers=args.dataloader_persistent_workers and workers > 0,
            prefetch_factor=args.dataloader_prefetch_factor if workers else None,
            multiprocessing_context=args.dataloader_multiprocessing_context if workers else None,
            _non_blocking=self.accelerator.non_blocking,
        )

    def num_examples(self, dataloader: DataLoader) -> int:
        share = super().num_examples(dataloader)
        return share * self.args.world_size if isinstance(self.train_dataset, TrainStream) else share

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[Any, torch.Tensor | int | None]:
        """The micro-batches of one step, fetched one by one, so that memory does not grow with their number.

        Losses that are normalised by the number of items of the whole step (a `compute_loss_func`, a language model)
        need all micro-batches first; for them it is as in `Trainer`.
        """
        if self.model_accepts_loss_kwargs or self.compute_loss_func is not None:
            return super().get_batch_samples(epoch_iterator, num_batches, device)
        return _MicroBatches(epoch_iterator, num_batches), None

    # --- logging -------------------------------------------------------------------------------------------------

    def log(self, logs: dict[str, float], start_time: float | None = None) -> None:
        now, step = time.monotonic(), self.state.global_step
        if "loss" in logs:
            if self._log_mark is not None and step > self._log_mark[0]:
                images = (step - self._log_mark[0]) * (self.args.total_batch_size or 0)
                logs["images_per_second"] = images / (now - self._log_mark[1])
            self._log_mark = (step, now)
        super().log(logs, start_time)


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
