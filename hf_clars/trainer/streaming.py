"""How `ClarsTrainer` takes its data: B samples in every step, one micro-batch at a time."""

from __future__ import annotations

import copy
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from accelerate.data_loader import DataLoaderShard, IterableDatasetShard
from accelerate.utils.memory import should_reduce_batch_size
from torch import nn
from torch.utils.data import DataLoader, IterableDataset
from transformers.trainer_utils import has_length

from ..data import (
    DecodedImages,
    ImageCollator,
    ResidentImages,
    SharedBatches,
    TrainStream,
    nearest_batch_size,
    ready_batch,
)
from ..data.batches import IGNORED_LABEL
from ..errors import UserError
from .arguments.derived import derived
from .callbacks.health import StepHealth
from .passes import CountedPasses
from .signals import PatientWorkers


class StreamedBatches(CountedPasses):
    """A mix-in for `Trainer`: every step has B samples, and memory does not grow with their number."""

    args: Any
    health: StepHealth
    training_lasts: torch.Tensor  # a flag that workers see
    steps_per_epoch = 0
    examples_per_epoch = 0
    _mean_loss: torch.Tensor
    _losses: int
    _smallest_tried: int | None = None
    _buffers: list[tuple[torch.Tensor, torch.Tensor]] | None = None
    _shared: SharedBatches | None = None

    def _inner_training_loop(  # type: ignore[override]
        self, batch_size: int | None = None, args: Any = None, **kwargs: Any
    ) -> Any:
        # What auto_find_batch_size tries next: transformers would keep the accumulation, and so change B.
        if args is not None and args.auto_find_batch_size and batch_size is not None:
            if self._smallest_tried is not None:
                batch_size = min(batch_size, self._smallest_tried - 1)
            assert args.total_batch_size is not None
            batch_size = nearest_batch_size(args.total_batch_size, batch_size, args.world_size)
            self._smallest_tried = batch_size
            args.gradient_accumulation_steps = derived(args.accumulation_of(batch_size))
            self._undo_attempt()
        try:
            return super()._inner_training_loop(batch_size, args, **kwargs)
        except Exception as error:
            if batch_size == 1 and args is not None and args.auto_find_batch_size and should_reduce_batch_size(error):
                raise UserError("auto_find_batch_size: not even one sample a device fits into its memory") from error
            raise

    def _undo_attempt(self) -> None:
        """Take back what an attempt that ran out of memory did to running statistics."""
        model: Any = self.model
        if self._buffers is None:
            self._buffers = [(buffer, buffer.clone()) for buffer in model.buffers()]
        for buffer, before in self._buffers:
            buffer.copy_(before.to(buffer.device))

    def get_train_dataloader(self) -> DataLoader:
        """As `Trainer`'s; a `TrainStream` already yields this rank's share and is not divided again.

        Raises:
            UserError: there are no examples.
        """
        if has_length(self.train_dataset) and len(self.train_dataset) == 0:
            raise UserError("the training data has no examples")
        if not isinstance(self.train_dataset, TrainStream):
            of_stream = isinstance(self.train_dataset, IterableDataset)
            return self._patient(self._whole_micro_batches() if of_stream else super().get_train_dataloader())
        args = self.args
        resident = isinstance(self.train_dataset, ResidentImages)  # which leaves nothing to do for workers
        workers = 0 if resident else args.dataloader_num_workers
        pin_memory = args.dataloader_pin_memory and self.accelerator.device.type != "cpu" and not resident
        collator: Any = ready_batch if resident else self.data_collator
        self._shared = None
        if workers and isinstance(collator, ImageCollator):
            try:
                collator = self._shared = SharedBatches(
                    collator,
                    batch_size=self._train_batch_size,
                    workers=workers,
                    prefetch_factor=args.dataloader_prefetch_factor or 2,
                )
            except RuntimeError as error:
                raise UserError(
                    f"no shared memory for the batches of {workers} workers ({str(error).splitlines()[0]}): enlarge "
                    "/dev/shm (docker run --shm-size), or lower dataloader_num_workers"
                ) from error
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
            worker_init_fn=PatientWorkers(self.training_lasts),
            generator=torch.Generator(),  # the global one's numbers belong to the training
            _non_blocking=pin_memory,  # copies then wait for nobody, and nobody for them
        )

    def _whole_micro_batches(self) -> DataLoader:
        """As `Trainer`'s of a stream, which would end with what is left over, so that the last step has less than B."""
        args = self.args
        loader = DataLoader(
            self.train_dataset,
            batch_size=self._train_batch_size,
            drop_last=True,
            collate_fn=self._get_collator_with_removed_columns(self.data_collator, description="training"),
            num_workers=args.dataloader_num_workers,
            pin_memory=args.dataloader_pin_memory,
            persistent_workers=args.dataloader_persistent_workers,
            multiprocessing_context=args.dataloader_multiprocessing_context,
            prefetch_factor=args.dataloader_prefetch_factor,
        )
        return self.accelerator.prepare(loader)

    def get_eval_dataloader(self, eval_dataset: Any = None) -> DataLoader:
        """As `Trainer`'s; `DecodedImages` need neither workers nor a collator."""
        dataset: Any = self.eval_dataset if eval_dataset is None else eval_dataset
        if isinstance(dataset, str):
            everything: Any = self.eval_dataset
            dataset = everything[dataset]
        if not isinstance(dataset, DecodedImages):
            return self._patient(super().get_eval_dataloader(eval_dataset))
        args = self.args
        return self.accelerator.prepare(
            DataLoader(dataset, args.eval_batch_size, collate_fn=ready_batch, drop_last=args.dataloader_drop_last)
        )

    def _patient(self, loader: DataLoader) -> DataLoader:
        base: Any = getattr(loader, "base_dataloader", loader)  # accelerate's loaders wrap torch's
        if base.num_workers and not isinstance(base.worker_init_fn, PatientWorkers):
            base.worker_init_fn = PatientWorkers(self.training_lasts, base.worker_init_fn)
        return loader

    def set_initial_training_values(self, args: Any, dataloader: DataLoader) -> Any:
        """As `Trainer`'s, with whole steps alone."""
        loader: Any = dataloader
        steps = 0
        if has_length(dataloader):
            size = self.get_total_train_batch_size(args)
            examples = self.num_examples(dataloader)
            steps = min(examples // size, len(dataloader) // args.gradient_accumulation_steps)
            if steps < 1:
                raise UserError(
                    f"the training data has {examples} examples, fewer than one batch of total_batch_size={size}"
                )
            if args.max_steps < 0 and isinstance(self.train_dataset, TrainStream) and args.last_batch == "carry":
                args = copy.copy(args)
                args.max_steps = self.train_dataset.steps_of(args.num_train_epochs)
            loader = _WholeSteps(dataloader, steps * args.gradient_accumulation_steps)
        values = super().set_initial_training_values(args, loader)
        self.steps_per_epoch = steps
        self.examples_per_epoch = steps * self.get_total_train_batch_size(args)
        return values

    def steps_in(self, name: str, epochs: float) -> int:
        """The optimizer steps of so many epochs, which the argument `name` states.

        Raises:
            UserError: the training data have no length.
        """
        if not self.steps_per_epoch:
            raise UserError(f"{name}={epochs} needs training data whose length is known: state it in steps")
        if isinstance(self.train_dataset, TrainStream) and self.args.last_batch == "carry":
            return round(epochs * self.train_dataset.steps_per_pass)
        return round(epochs * self.steps_per_epoch)

    def num_examples(self, dataloader: DataLoader) -> int:
        """Of all ranks. Trainer's would give those of one where accelerate has divided a stream."""
        dataset = getattr(dataloader, "dataset", None)
        while isinstance(dataset, IterableDatasetShard):
            dataset = dataset.dataset
        return len(dataset) if has_length(dataset) else super().num_examples(dataloader)

    def get_batch_samples(
        self, epoch_iterator: Iterator[Any], num_batches: int, device: torch.device
    ) -> tuple[Any, torch.Tensor | int | None]:
        """The micro-batches of one step, fetched one by one, so that memory does not grow with their number.

        Losses that are normalised by the number of items of the whole step (a `compute_loss_func`, a language model)
        need all micro-batches first; for them it is as in `Trainer`.
        """
        if self.state.global_step >= self.state.max_steps:
            return [], None  # resumed from a checkpoint of the last step, which Trainer would go beyond
        batches = self._watched(self.micro_batches_of(epoch_iterator))
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
        labels = inputs.get("labels")
        loss, *rest = super().prediction_step(model, inputs, *args, **kwargs)
        if loss is not None and isinstance(labels, torch.Tensor):  # those of a detector are dictionaries in a list
            # Nothing in this batch counts, so it has no loss; a NaN would be the mean's, and the mean so far is not.
            loss = torch.where((labels == IGNORED_LABEL).all(), self._mean_loss.nan_to_num(0).to(loss), loss)
            self._losses += 1
            self._mean_loss = self._mean_loss.to(loss) + (loss - self._mean_loss.to(loss)) / self._losses
        return (loss, *rest)

    def evaluation_loop(self, *args: Any, **kwargs: Any) -> Any:
        self._mean_loss, self._losses = torch.zeros(()), 0
        return super().evaluation_loop(*args, **kwargs)


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
