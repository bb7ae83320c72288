"""Streams without a length: which pass a training is in, and how far, so that a resumed one sees the same examples.

Trainer counts the steps of such a stream as if there were one endless pass, so that it looks for a checkpoint of the
second pass behind the end of the first.
"""

from __future__ import annotations

import io
import logging
import pickle
import random
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import torch
from accelerate.utils import gather_object
from torch.utils._pytree import tree_leaves
from transformers import Trainer
from transformers.trainer_utils import has_length

from ..errors import UserError
from ..norms.restored import random_states

_LOOKED_AT = 1024  # values of each tensor of a micro-batch, to tell whether it is the same

logger = logging.getLogger(__name__)


class CountedPasses(Trainer):
    """A mix-in for `Trainer`: training on a stream without a length goes on exactly where it was.

    A resumed training reads the unfinished pass from its beginning, without training, and compares the last micro-batch
    that was used before the checkpoint. Reading again is what makes it exact: the `state_dict` of a stream leaves out
    what its shuffle buffers hold. For the same reason all random numbers that are drawn while reading follow from the
    seed and the number of the pass. Epochs are told to the stream with `set_epoch`; what else it carries from one pass
    to the next must be in its `state_dict`, which is restored to what it was when the pass began.
    """

    args: Any
    train_dataset: Any
    _pass: Pass | None = None
    _resumed: dict[str, Any] | None = None  # the position in a checkpoint, until the stream is there again
    _first_pass = 0
    _begins_amid_it = False

    def _init_training_state(
        self, max_steps: Any, steps_per_epoch: Any, epochs: Any, resume_from_checkpoint: Any, trial: Any
    ) -> tuple[int, int]:
        epoch, micro_batches = super()._init_training_state(
            max_steps, steps_per_epoch, epochs, resume_from_checkpoint, trial
        )
        self._pass = self._resumed = None
        if resume_from_checkpoint is not None and not self._has_length():
            file = self._position_file(resume_from_checkpoint)
            if not file.is_file():  # that of another process says how many there were
                file = self._position_file(resume_from_checkpoint, process=0)
            if not file.is_file():
                logger.warning(
                    "%s does not say where in its data the training was: what comes after it are other examples, "
                    "unless it is of the first pass",
                    resume_from_checkpoint,
                )
            else:
                epoch, micro_batches = self._resume_at(torch.load(file, weights_only=True))
        self._first_pass, self._begins_amid_it = epoch, micro_batches > 0
        return epoch, micro_batches

    def _resume_at(self, saved: dict[str, Any]) -> tuple[int, int]:
        self._resumed = saved
        if saved["over"]:
            return saved["pass"] + 1, 0
        if self.args.ignore_data_skip:
            return saved["pass"], 0
        layout = self._layout()
        if saved["layout"] != layout:
            then, now = (
                ", ".join(f"{value} {name}" for name, value in each.items()) for each in (saved["layout"], layout)
            )
            raise UserError(
                f"the checkpoint is of {then}, and now there are {now}: on a stream without a length a training can "
                "only go on exactly as it was; make them equal, or set ignore_data_skip to begin the pass anew"
            )
        return saved["pass"], saved["micro_batches"]

    def _layout(self) -> dict[str, int]:
        """What decides how the stream is divided into micro-batches."""
        return {
            "samples a step": self.args.total_batch_size,
            "a device": self._train_batch_size,
            "processes": self.args.world_size,
            "workers": self.args.dataloader_num_workers,
        }

    def _has_length(self) -> bool:
        return has_length(self.train_dataset)

    def micro_batches_of(self, epoch_iterator: Iterator[Any]) -> Iterator[Any]:
        """The rest of the pass that Trainer has begun to iterate over."""
        if self._has_length():
            return epoch_iterator
        if self._pass is None or self._pass.begun is not epoch_iterator:
            number = self._first_pass if self._pass is None else self._pass.number + 1
            seed = self.args.seed if self.args.data_seed is None else self.args.data_seed
            saved, self._resumed = self._resumed, None
            state = _state_of(self.train_dataset)
            if saved is not None and saved["state"] is not None:
                state = saved["state"]
                self.train_dataset.load_state_dict(state)
            self._pass = Pass(epoch_iterator, number, seed, state)
            if saved is not None and not saved["over"] and not self.args.ignore_data_skip:
                self._read_again(self._pass, saved)
        return self._pass

    def refuse_without_steps(self) -> None:
        """A pass is over. If it had no whole step, nor will the next one, and the training would not end.

        Raises:
            UserError: it had none.
        """
        last = self._pass
        if last is None or (self._begins_amid_it and last.number == self._first_pass):
            return
        if last.over and last.micro_batches < self.args.gradient_accumulation_steps:
            raise UserError(
                "one pass over the training data has fewer examples than one batch of "
                f"total_batch_size={self.args.total_batch_size}"
            )

    def _read_again(self, current: Pass, saved: dict[str, Any]) -> None:
        loader: Any = self.callback_handler.train_dataloader
        loader.set_epoch(current.number)
        current.batches = iter(loader)  # Trainer's own would skip them unseen
        for _ in range(saved["micro_batches"]):
            if next(current, None) is None:
                break
        same = current.micro_batches == saved["micro_batches"] and current.fingerprint() == saved["fingerprint"]
        if not all(gather_object([same])):
            raise UserError(
                f"pass {current.number + 1} over the training data gives other examples than before the checkpoint, so "
                "the training cannot go on exactly: shuffle with a seed, or give the data set set_epoch, or state_dict "
                "and load_state_dict; or set ignore_data_skip to begin the pass anew"
            )

    def _save_rng_state(self, output_dir: str) -> None:
        super()._save_rng_state(output_dir)
        position = self._resumed if self._pass is None else self._position(self._pass)
        if position is not None:
            torch.save(position, self._position_file(output_dir))

    def _position(self, current: Pass) -> dict[str, Any]:
        return {
            "pass": current.number,
            "micro_batches": current.micro_batches,
            "over": current.over,
            "fingerprint": current.fingerprint(),
            "state": _state_of(self.train_dataset) if current.over else current.state,  # the next pass begins with it
            "layout": self._layout(),
        }

    def _position_file(self, checkpoint: str, process: int | None = None) -> Path:
        return Path(checkpoint) / f"data_position_{self.args.process_index if process is None else process}.pt"


class Pass(Iterator[Any]):
    """The micro-batches of one pass, read with random numbers of their own.

    Args:
        begun: the iterator of Trainer's that this stands for.
        number: of the pass, from 0 on.
        seed: of the data.
        state: of the data set when the pass begins, None if it has none.
    """

    def __init__(self, begun: Iterator[Any], number: int, seed: int, state: Any) -> None:
        self.begun = self.batches = begun
        self.number = number
        self.state = state
        self.micro_batches = 0
        self.over = False
        self._last: list[Any] = []
        # The same on all ranks: whoever shuffles a stream must do so alike everywhere.
        own_seed = int(np.random.SeedSequence([seed, number]).generate_state(1)[0])
        self._set_randomness: Callable[[], None] = lambda: _seed(own_seed)

    def __next__(self) -> Any:
        with self._own_randomness():
            try:
                batch = next(self.batches)
            except StopIteration:
                self.over = True
                raise
        self.micro_batches += 1
        leaves = tree_leaves(dict(batch) if isinstance(batch, Mapping) else batch)
        # On the device and without waiting for it; copies, as a model may write to its inputs.
        self._last = [_some_of(leaf) if isinstance(leaf, torch.Tensor) else leaf for leaf in leaves]
        return batch

    @contextmanager
    def _own_randomness(self) -> Iterator[None]:
        set_outside = random_states()
        self._set_randomness()
        try:
            yield
        finally:
            self._set_randomness = random_states()
            set_outside()

    def fingerprint(self) -> int:
        """A checksum of the last micro-batch."""
        checksum = 0
        for leaf in self._last:
            is_tensor = isinstance(leaf, torch.Tensor)
            content = leaf.cpu().view(torch.uint8).numpy().tobytes() if is_tensor else repr(leaf).encode()
            checksum = zlib.crc32(content, checksum)
        return checksum


def _some_of(tensor: torch.Tensor) -> torch.Tensor:
    values = tensor.detach().reshape(-1)
    return values[:: max(1, len(values) // _LOOKED_AT)][:_LOOKED_AT].clone()


def _state_of(dataset: Any) -> Any:
    """What a data set carries from pass to pass; those of `datasets` carry the number of the epoch alone.

    Raises:
        UserError: it cannot be restored from a file without running code.
    """
    if isinstance(dataset, datasets.IterableDataset) or not (
        hasattr(dataset, "state_dict") and hasattr(dataset, "load_state_dict")
    ):
        return None
    file = io.BytesIO()
    torch.save(dataset.state_dict(), file)
    file.seek(0)
    try:
        return torch.load(file, weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"state_dict() of {type(dataset).__name__} must hold numbers, text, tensors, lists and dictionaries alone, "
            "or no checkpoint could be resumed from"
        ) from error


def _seed(seed: int) -> None:
    random.seed(seed)
    np.random.seed(seed)
    torch.default_generator.manual_seed(seed)
