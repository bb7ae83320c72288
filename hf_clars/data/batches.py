"""Raw examples into batches: the endless training stream and what decodes and stacks its examples."""

from __future__ import annotations

import contextlib
import itertools
import random
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import datasets
import numpy as np
import torch
from datasets.distributed import split_dataset_by_node
from PIL import Image, UnidentifiedImageError
from torch import Tensor
from torch.utils.data import IterableDataset, default_collate, get_worker_info

from ..errors import UserError
from .transforms import decode_image

_SHARDS_PER_RANK = 4  # from here on uneven shares are small enough not to read everything on every rank
_READ_CHUNK = 64
_EMPTY_PASSES = 10


class DataError(UserError):
    """A bad example. DataLoader rebuilds a worker's exception from its traceback: only the last line is the message."""

    def __init__(self, message: str) -> None:
        super().__init__(message.strip().rpartition("\n")[2].removeprefix(f"{__name__}.DataError: "))


class ImageCollator:
    """Decode and stack raw examples: `{"pixel_values": uint8 [b, 3, H, W], "labels": int64 [b]}`. Picklable.

    Args:
        transform: PIL image in RGB → uint8 `[3, H, W]`, the same H and W for every image.
        num_classes: labels must lie in `[0, num_classes)`.

    Raises:
        DataError: (a `UserError`) a label outside the classes or an image that cannot be read, when it meets one.
    """

    def __init__(self, transform: Callable[[Image.Image], Tensor], num_classes: int) -> None:
        self.transform = transform
        self.num_classes = num_classes

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Tensor]:
        labels = torch.tensor([self._label(example) for example in examples], dtype=torch.int64)
        with _randomness_of(examples[0]):
            pixels = [self._pixels(example) for example in examples]
        # default_collate stacks right into the shared memory that a worker hands over
        return {"pixel_values": default_collate(pixels), "labels": labels}

    def _label(self, example: dict[str, Any]) -> int:
        label = example["label"]
        number = int(label) if isinstance(label, str) and label.isdecimal() else label
        if not isinstance(number, int) or not 0 <= number < self.num_classes:
            raise DataError(
                f"label {label!r} of {_name(example)} is not one of the {self.num_classes} classes "
                f"0 to {self.num_classes - 1}: correct num_classes or the data"
            )
        return number

    def _pixels(self, example: dict[str, Any]) -> Tensor:
        try:
            image = decode_image(example["image"])
        except Exception as error:  # Pillow's plug-ins raise whatever their formats' parsers raise
            reason = "no image in a format that Pillow knows"
            if not isinstance(error, UnidentifiedImageError):
                reason = " ".join(str(error).split()) or type(error).__name__
            raise DataError(f"cannot read {_name(example)} with label {example['label']}: {reason}") from error
        return self.transform(image)


@contextlib.contextmanager
def _randomness_of(example: dict[str, Any]) -> Iterator[None]:
    """Random numbers that follow from the stream's position alone, so that a resumed run crops as it would have."""
    if "draw" not in example:
        yield
        return
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(example["draw"])
        yield


def _name(example: dict[str, Any]) -> str:
    image = example["image"] or {"path": None, "bytes": None}
    if image["path"] is not None:
        return f"image {image['path']}"
    return f"an image of {len(image['bytes'] or b'')} bytes without a name"


class TrainStream(IterableDataset):
    """The raw training examples of one rank: exactly `batches_per_epoch` batches an epoch, without an end of its own.

    Every epoch goes over the split in another order, the same for the same seed, epoch, world size and number of
    workers. Ranks share the shards out, or every rank reads all of them and keeps one example in `world_size` where
    there are too few shards to share evenly; workers share the rank's shards, and batches in proportion to them. Where
    a share holds less than is asked of it, its reader goes on with the next, newly shuffled pass, so that all ranks
    always take the same number of steps. Where everything divides, no example comes twice in an epoch. Each example
    carries a random `"draw"`, as reproducible as the order, from which its augmentation follows.

    Args:
        split_stream: raw examples, e.g. `ImageSplit.stream`.
        batches_per_epoch: of this rank; micro-batches, not steps.
        batch_size: of one micro-batch; give the `DataLoader` the same.
        seed: not negative.
        shuffle_buffer: raw examples each worker holds and draws from, at least 1 (no mixing within a shard).
        rank, world_size: this process among all.

    Raises:
        UserError: `seed` or `shuffle_buffer` out of range; on iteration (a `DataError`) when there is no example.
    """

    def __init__(
        self,
        split_stream: datasets.IterableDataset,
        *,
        batches_per_epoch: int,
        batch_size: int,
        seed: int,
        shuffle_buffer: int,
        rank: int,
        world_size: int,
    ) -> None:
        if shuffle_buffer < 1:
            raise UserError(f"shuffle_buffer={shuffle_buffer} must be at least 1")
        if seed < 0:
            raise UserError(f"seed={seed} must not be negative")
        self.batches_per_epoch = batches_per_epoch
        self.batch_size = batch_size
        self._stream = split_stream
        self._seed = seed
        self._shuffle_buffer = shuffle_buffer
        self._rank = rank
        self._world_size = world_size
        self._epoch = torch.zeros((), dtype=torch.int64).share_memory_()  # persistent workers see it change

    def set_epoch(self, epoch: int) -> None:
        """Choose the order of the next iteration, in workers that live on as well."""
        self._epoch.fill_(epoch)

    def __len__(self) -> int:
        return self.batches_per_epoch * self.batch_size

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self._examples(int(self._epoch))

    def _examples(self, epoch: int) -> Iterator[dict[str, Any]]:
        info = get_worker_info()
        worker, workers = (info.id, info.num_workers) if info is not None else (0, 1)
        # datasets gives worker w the shards w, w + workers, ...; dealing the batches out the same way gives each worker
        # as many as its shards can fill, and none to one without a shard
        shards = max(1, self._pass(epoch, 0).num_shards)
        remaining = self.batch_size * sum(n % shards % workers == worker for n in range(self.batches_per_epoch))
        empty_passes = 0
        for number in itertools.count():
            if not remaining:
                return
            rng = random.Random(f"{self._seed} {epoch} {number} {self._rank} {worker}")
            before = remaining
            for example in itertools.islice(_mixed(self._pass(epoch, number), self._shuffle_buffer, rng), remaining):
                remaining -= 1
                yield {**example, "draw": rng.getrandbits(62)}
            empty_passes = empty_passes + 1 if remaining == before else 0
            if empty_passes == _EMPTY_PASSES:  # one alone may be a shard without examples
                raise DataError(
                    f"the training split has no example for worker {worker} of rank {self._rank}: "
                    f"it is empty, or too small for {workers} workers on each of {self._world_size} processes"
                )

    def _pass(self, epoch: int, number: int) -> datasets.IterableDataset:
        """This rank's part of pass `number` of an epoch; ranks shuffle the shards alike, so parts do not overlap."""
        generator = np.random.default_rng([self._seed, epoch, number])
        # Only the order of the shards is taken from datasets. Its buffer cannot hold more than 2 GiB of Parquet bytes
        # ("offset overflow while concatenating arrays"), and filling it from several shards ends with a sleep of 5 s.
        shuffled = self._stream.shuffle(generator=generator, buffer_size=_READ_CHUNK, max_buffer_input_shards=1)
        if shuffled.num_shards >= _SHARDS_PER_RANK * self._world_size:
            return shuffled.shard(self._world_size, self._rank, contiguous=False)
        return split_dataset_by_node(shuffled, self._rank, self._world_size)


def _mixed(examples: Iterable[dict[str, Any]], size: int, rng: random.Random) -> Iterator[dict[str, Any]]:
    """Each example once, in the order in which they are drawn at random from a buffer of `size`."""
    buffer: list[dict[str, Any]] = []
    for example in examples:
        if len(buffer) < size:
            buffer.append(example)
            continue
        place = rng.randrange(size)
        yield buffer[place]
        buffer[place] = example
    rng.shuffle(buffer)
    yield from buffer
