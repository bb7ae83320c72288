"""The training examples as one endless data set of which any micro-batch can be asked for."""

from __future__ import annotations

import hashlib
import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any

from torch.utils.data import BatchSampler, Dataset

from ..errors import UserError
from .chunks import Chunks, Example
from .order import Order
from .reader import WindowReader

_LAYOUT = ("lanes", "piece", "window", "by_example")  # of an `Order`, what processes and their data decide


class TrainStream(Dataset):
    """Raw training examples in the order of an `Order`; item `epoch × U + i` is example i of an epoch.

    Nothing is kept from one item to the next but what reading ahead needs, so a training goes on at any position
    without reading what comes before it, but for the windows (see `Order`) it stops in. Each example carries a `"draw"`
    from which its augmentation follows, as reproducible as the order. Where a chunk cannot be read, after several
    attempts where that may help, examples of another one stand in, with `"skip": "shard"`.

    A process reads windows: one of each of its lanes is in memory, and the next one is read in the background from the
    middle of the one before it. That is up to twice `shuffle_buffer` encoded images for each rank.

    Args:
        chunks: where examples lie.
        total_batch_size, seed, last_batch, limit: see `Order`.
        shuffle_buffer: examples from which each rank draws, all its workers together.

    Raises:
        UserError: see `Order`.
    """

    def __init__(
        self,
        chunks: Chunks,
        *,
        total_batch_size: int,
        seed: int,
        last_batch: str = "drop",
        limit: int | None = None,
        shuffle_buffer: int = 8192,
    ) -> None:
        if shuffle_buffer < 1:
            raise UserError(f"shuffle_buffer={shuffle_buffer} must be at least 1")
        self.chunks = chunks
        self.shuffle_buffer = shuffle_buffer
        small = int(chunks.sizes.sum()) <= shuffle_buffer
        self._first = Order(
            chunks.sizes, total_batch_size, seed, last_batch, limit, window=shuffle_buffer, by_example=small
        )
        self.total_batch_size, self.last_batch = total_batch_size, last_batch
        self.order = self._first  # until processes are known
        self._unfinished: tuple[int, Order] | None = None
        self._reader: WindowReader | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_reader": None}

    def __len__(self) -> int:
        """U, the examples of an epoch over all ranks."""
        return len(self._first)

    @property
    def steps_per_pass(self) -> float:
        """Examples of a pass over B: with `last_batch="carry"` an epoch's steps, on average."""
        return self._first.examples / self._first.total_batch_size

    def steps_of(self, epochs: float) -> int:
        """Whole optimizer steps of so many passes over the data, at least one."""
        return max(1, int(epochs * self.steps_per_pass + 1e-9))

    def batches(self, batch_size: int, *, rank: int, world_size: int, workers: int) -> RankBatches:
        """Lay the order out for these processes; returns the micro-batches of one of them."""
        self.order = self._first.laid_out(
            batch_size=batch_size, world_size=world_size, workers=workers, shuffle_buffer=self.shuffle_buffer
        )
        return RankBatches(len(self), batch_size, rank, world_size)

    # --- what a checkpoint keeps ---------------------------------------------------------------------------------

    def state(self, epoch: int) -> dict[str, int | str]:
        """How the order of an epoch was laid out, to finish that epoch after a checkpoint."""
        order = self._order_of(epoch)
        return {
            **{key: getattr(order, key) for key in (*_LAYOUT, "seed", "last_batch", "total_batch_size")},
            **{"epoch": epoch, "examples": len(order), "data": self._fingerprint()},
        }

    def restore(self, state: dict[str, Any]) -> list[str]:
        """Finish the epoch of a checkpoint in the order in which it began, whatever processes there are now.

        Later epochs are in the order that suits these processes. Before the first item is asked for.

        Returns:
            What is not as it was, one line each; then the epoch goes on in another order, and examples of its rest may
            be repeated, and others left out.
        """
        changed = [
            f"{what} was {state.get(key)!r} and is {now!r}"
            for key, what, now in (
                ("seed", "the seed of the data", self._first.seed),
                ("last_batch", "last_batch", self._first.last_batch),
                ("total_batch_size", "total_batch_size", self._first.total_batch_size),
                ("examples", "the number of examples in an epoch", len(self)),
            )
            if state.get(key) != now
        ]
        if state.get("data") != self._fingerprint():
            changed.append("the training data are not those of the checkpoint")
        self._unfinished = None
        if not changed:
            layout = {key: state[key] for key in _LAYOUT}
            self._unfinished = (state["epoch"], replace(self._first, **layout))
        return changed

    def _order_of(self, epoch: int) -> Order:
        if self._unfinished is not None and self._unfinished[0] == epoch:
            return self._unfinished[1]
        return self.order

    def _fingerprint(self) -> str:
        return f"{len(self.chunks.sizes)} chunks {zlib.crc32(self.chunks.sizes.tobytes()):08x}"

    # --- reading -------------------------------------------------------------------------------------------------

    def __getitem__(self, index: int) -> Example:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Example]:
        if self._reader is None or self._reader.process != os.getpid():  # threads do not survive a fork
            self._reader = WindowReader(self.chunks)
        examples = []
        for index in indices:
            epoch, position = divmod(index, len(self))
            example = self._reader.example(self._order_of(epoch), epoch, position)
            examples.append({**example, "draw": _draw(self._first.seed, epoch, position)})
        return examples


class RankBatches(BatchSampler):
    """The micro-batches of one rank, of an epoch that `set_epoch` chooses: every `world_size`-th, from `rank` on."""

    def __init__(self, epoch_length: int, batch_size: int, rank: int, world_size: int) -> None:
        self.batch_size = batch_size
        self.drop_last = True
        self._epoch_length = epoch_length
        self._rank, self._world_size = rank, world_size
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        self._start = epoch * self._epoch_length

    def __len__(self) -> int:
        return self._epoch_length // (self.batch_size * self._world_size)

    def __iter__(self) -> Iterator[list[int]]:
        start = self._start + self._rank * self.batch_size
        for number in range(len(self)):
            first = start + number * self._world_size * self.batch_size
            yield list(range(first, first + self.batch_size))


def _draw(*numbers: int) -> int:
    """A random number that follows from the numbers alone."""
    digest = hashlib.blake2b(struct.pack(f"{len(numbers)}Q", *numbers), digest_size=8).digest()
    return int.from_bytes(digest) >> 1
