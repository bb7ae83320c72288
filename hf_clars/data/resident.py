"""Small data sets decoded once and held on the device, where whole batches are gathered and augmented."""

from __future__ import annotations

import logging
import os
import zlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset, default_collate

from ..errors import UserError
from ..runtime.processes import once
from ..safety.texts import plain_records
from .batches import IGNORED_LABEL, ImageCollator
from .chunks import Chunks, Example
from .order import Ints
from .stream import RankBatches, TrainStream
from .transforms import Transform

RESIDENT_AUGMENTATIONS = ("random_crop", "flip", "none")

_FREE_SHARE = 0.8  # of the free memory that images may fill: the model and its activations want some, too
_DECODED_TOGETHER = 256
_THREADS = 8

Batch = dict[str, Tensor]

logger = logging.getLogger(__name__)
logger.addFilter(plain_records)


class DecodedImages(Dataset):
    """Images to evaluate on; asked for several of them, it gives a batch that no collator need touch (`ready_batch`).

    Attributes:
        images: uint8 `[N, 3, S, S]`; black where one cannot be used.
        labels: int64 `[N]` on the same device; `IGNORED_LABEL` where the image cannot be used.
    """

    def __init__(self, images: Tensor, labels: Tensor) -> None:
        self.images, self.labels = images, labels

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> Batch:
        return {"pixel_values": self.images[index], "labels": self.labels[index]}

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        first = indices[0]
        where: Any = slice(first, first + len(indices))  # a view
        if list(indices) != list(range(first, first + len(indices))):
            where = torch.tensor(indices, device=self.labels.device)
        return {"pixel_values": self.images[where], "labels": self.labels[where]}


def decode_all(chunks: Chunks, transform: Transform, num_classes: int, device: torch.device) -> DecodedImages:
    """Read, decode and transform every example, in the order of the chunks.

    Args:
        chunks: where the examples lie.
        transform: nothing random; the same size for every image.
        num_classes: labels must lie in `[0, num_classes)`.
        device: where the images are to be.

    Raises:
        UserError: there is obviously not enough memory for them.
    """
    sizes = chunks.sizes
    starts = np.concatenate(([0], np.cumsum(sizes)))
    total, size = int(starts[-1]), transform.size
    _check_memory(total, size, device)
    images = torch.zeros(total, 3, size, size, dtype=torch.uint8)
    labels = torch.full((total,), IGNORED_LABEL, dtype=torch.int64)
    collator = ImageCollator(transform, num_classes, training=False)

    def decode(number: int) -> None:
        try:
            examples = chunks.read_patiently(number)
        except Exception as error:  # as in `TrainStream`
            trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning(
                "cannot read %s: its %d examples are left out (%s)", chunks.name(number), sizes[number], trouble
            )
            return
        for first in range(0, len(examples), _DECODED_TOGETHER):
            some = [examples[row] for row in range(first, min(first + _DECODED_TOGETHER, len(examples)))]
            where = slice(starts[number] + first, starts[number] + first + len(some))
            labels[where] = collator(some, out=images[where])["labels"]

    with ThreadPoolExecutor(max(1, min(_THREADS, (os.cpu_count() or 1) // _local_processes()))) as pool:
        list(pool.map(decode, range(len(sizes))))
    return DecodedImages(images.to(device), labels.to(device))


def ready_batch(batch: Any) -> Any:
    """A collator for what is a batch already. Picklable, as a lambda is not."""
    return batch


def check_resident_augmentation(augmentation: str) -> None:
    """Raises `UserError` for what cannot be done to whole batches of images of one size."""
    if augmentation not in RESIDENT_AUGMENTATIONS:
        raise UserError(
            f"augmentation={augmentation!r} does not work with data_on_device, which has "
            f"{', '.join(RESIDENT_AUGMENTATIONS)}: choose one of them, or --data_on_device false"
        )


class ResidentImages(TrainStream):
    """A `TrainStream` of images in the device's memory; several items are a batch, augmented there as a whole.

    A pass is a permutation of all examples, an epoch one of its own. Example and augmentation of each position are a
    function of `(seed, epoch, position)` alone: neither the micro-batch nor the number of processes, nor where a
    training was resumed, has a part in it. Both are computed for an epoch at a time (20 bytes on the device for each
    example), so a batch costs a few operations on the device, and no wait for it.

    Args:
        decoded: all images; those that cannot be used are left out.
        augmentation: `random_crop`, `flip` or `none`, see `train_transform`.
        max_skipped_share: share of the images that may be left out.
        total_batch_size, seed, last_batch, limit: see `Order`.

    Raises:
        UserError: see `Order`; another augmentation; too many images that cannot be used; processes that could not
            read the same images.
    """

    def __init__(
        self,
        decoded: DecodedImages,
        *,
        augmentation: str,
        total_batch_size: int,
        seed: int,
        last_batch: str = "drop",
        limit: int | None = None,
        max_skipped_share: float = 0.0,
    ) -> None:
        check_resident_augmentation(augmentation)
        self.augmentation = augmentation
        self.decoded = _usable(decoded, max_skipped_share)
        n = len(self.decoded)
        super().__init__(
            _Memory(n),
            total_batch_size=total_batch_size,
            seed=seed,
            last_batch=last_batch,
            limit=limit,
            shuffle_buffer=max(1, n),
        )
        # One lane, one window: the order of an epoch in one piece, whoever reads it.
        self._first = self.order = replace(self._first, lanes=1)
        self._epoch: tuple[int, Tensor, Tensor] | None = None
        self._labels_seen = zlib.crc32(self.decoded.labels.cpu().numpy().tobytes())
        if once(self._fingerprint) != self._fingerprint():
            raise UserError("some processes could not read images that others could: see the lines before")

    @property
    def device(self) -> torch.device:
        return self.decoded.labels.device

    def batches(self, batch_size: int, *, rank: int, world_size: int, workers: int) -> RankBatches:
        return RankBatches(len(self), batch_size, rank, world_size)

    def _fingerprint(self) -> str:
        return f"{len(self.decoded)} decoded images {self._labels_seen:08x}"

    def __getitem__(self, index: int) -> Example:
        return {key: value[0] for key, value in self._batch(index, 1).items()}

    def __getitems__(self, indices: Sequence[int]) -> Any:
        if list(indices) == list(range(indices[0], indices[0] + len(indices))):  # always, but for the curious
            return self._batch(indices[0], len(indices))
        return default_collate([self[index] for index in indices])

    def _batch(self, first: int, length: int) -> Batch:
        """Consecutive items, all of one epoch: `{"pixel_values": uint8 [b, 3, S, S], "labels": int64 [b]}`."""
        epoch, position = divmod(first, len(self))
        if self._epoch is None or self._epoch[0] != epoch:
            self._epoch = (epoch, *self._drawn(epoch))
        _, order, draws = self._epoch
        examples = order[position : position + length]
        images = self.decoded.images[examples]
        if self.augmentation != "none":
            reach = images.shape[-1] // 8 if self.augmentation == "random_crop" else 0
            images = shifted_and_mirrored(images, draws[position : position + length], reach)
        return {"pixel_values": images, "labels": self.decoded.labels[examples]}

    def _drawn(self, epoch: int) -> tuple[Tensor, Tensor]:
        """Of each position: the example, int64 `[U]`, and its `random_shifts`, on the device."""
        order = self._order_of(epoch).window_at(epoch, 0, 0).rows
        reach = self.decoded.images.shape[-1] // 8 if self.augmentation == "random_crop" else 0
        draws = random_shifts(self._first.seed, epoch, len(self), reach)
        return torch.from_numpy(order).to(self.device), torch.from_numpy(draws).to(self.device)


def random_shifts(seed: int, epoch: int, positions: int, reach: int) -> NDArray[np.int32]:
    """Shift down and right, each uniform in `[0, 2 reach]`, and whether to mirror, of each position: `[positions, 3]`.

    From a hash (splitmix64) instead of a generator's sequence.
    """
    key = _mixed(_mixed(np.array([seed], np.uint64)) + np.uint64(epoch))
    hashed = _mixed(key + np.arange(positions, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15))
    part, ways = np.uint64(0xFFFFFF), np.uint64(2 * reach + 1)
    down = ((hashed & part) * ways) >> np.uint64(24)
    right = ((hashed >> np.uint64(24) & part) * ways) >> np.uint64(24)
    return np.stack([down, right, hashed >> np.uint64(63)], axis=1).astype(np.int32)


def _mixed(x: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """The output function of splitmix64, a bijection. Of arrays: numpy warns where scalars overflow."""
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))


def shifted_and_mirrored(images: Tensor, draws: Tensor, reach: int) -> Tensor:
    """Each image over a black border of `reach` pixels, cut out at its own place, and mirrored or not.

    One gather from the bordered images: on one core half of what cutting by `unfold` and mirroring after it take.

    Args:
        images: uint8 `[b, 3, S, S]`.
        draws: `[b, 3]`, see `random_shifts`.
        reach: of the shifts.

    Returns:
        uint8 `[b, 3, S, S]`.
    """
    b, channels, size, _ = images.shape
    width = size + 2 * reach
    bordered = torch.nn.functional.pad(images, (reach,) * 4) if reach else images
    down, right, mirror = draws.long().unbind(1)
    along = torch.arange(size, device=images.device)
    rows = along + down[:, None]
    columns = torch.where(mirror[:, None] > 0, size - 1 - along, along) + right[:, None]
    pixels = (rows[:, :, None] * width + columns[:, None, :]).view(b, 1, -1).expand(-1, channels, -1)
    return bordered.view(b, channels, -1).gather(2, pixels).view(images.shape)


class _Memory(Chunks):
    """All examples as one chunk, for their order; nobody reads it."""

    def __init__(self, examples: int) -> None:
        self.sizes: Ints = np.array([examples], np.int64)

    def read(self, number: int) -> Sequence[Example]:
        raise NotImplementedError

    def name(self, number: int) -> str:
        return "the images on the device"


def _usable(decoded: DecodedImages, max_share: float) -> DecodedImages:
    usable = decoded.labels != IGNORED_LABEL
    total, skipped = len(decoded), len(decoded) - int(usable.sum())
    if not skipped:
        return decoded
    if skipped > max_share * total:
        raise UserError(
            f"{skipped} of {total} training images cannot be used, more than max_skipped_share={max_share:g} allows: "
            "mend the data (the first of them are named above), or allow more"
        )
    logger.warning("%d of %d training images cannot be used and are left out", skipped, total)
    return DecodedImages(decoded.images[usable], decoded.labels[usable])


def _check_memory(examples: int, size: int, device: torch.device) -> None:
    wanted = examples * 3 * size**2
    free = {"this machine": psutil.virtual_memory().available // _local_processes()}  # each process decodes
    if device.type == "cuda":
        free[str(device)] = torch.cuda.mem_get_info(device)[0]
    for where, there in free.items():
        if wanted > _FREE_SHARE * there:
            raise UserError(
                f"data_on_device: {examples:,} images of {size} × {size} are {wanted / 2**30:,.1f} GiB, more than "
                f"{_FREE_SHARE:.0%} of the {there / 2**30:,.1f} GiB free on {where} for each process: lower "
                "image_size, or go without data_on_device"
            )


def _local_processes() -> int:
    return int(os.environ.get("LOCAL_WORLD_SIZE", 1))
