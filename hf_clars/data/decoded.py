"""Small data sets, decoded once and held on the device."""

from __future__ import annotations

import logging
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import UserError
from ..safety.texts import plain_records
from .batches import IGNORED_LABEL, ImageCollator
from .chunks import Chunks
from .transforms import Transform

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
