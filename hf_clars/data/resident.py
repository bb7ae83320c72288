"""A training stream of images on the device, where whole batches are gathered and augmented."""

from __future__ import annotations

import logging
import zlib
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import default_collate

from ..errors import UserError
from ..runtime.processes import once
from ..safety.texts import plain_records
from .batches import IGNORED_LABEL
from .chunks import Chunks, Example
from .decoded import Batch, DecodedImages
from .order import Ints
from .stream import RankBatches, TrainStream

RESIDENT_AUGMENTATIONS = ("random_crop", "flip", "none")

logger = logging.getLogger(__name__)
logger.addFilter(plain_records)


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
    training was resumed, has a part in it. Both are computed for an epoch at a time (20 bytes on the device for
    each example), so a batch costs a few operations on the device, and no wait for it.

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
    """Of each position, `[positions, 3]`: shifts down and right, uniform in `[0, 2 reach]`, and whether to mirror."""
    rng = np.random.default_rng([seed, epoch, 0, 0, 2])  # another one than those of `Order`
    return rng.integers(0, [2 * reach + 1, 2 * reach + 1, 2], (positions, 3), np.int32)


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
