"""Batches from workers to the training process through memory that is used again and again."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.data import get_worker_info

from .batches import ImageCollator


class SharedBatches:
    """An `ImageCollator` for workers, whose images lie in memory that workers and the training process share.

    `DataLoader` by itself gives every batch new shared memory, which the kernel has to find and to clear: a tenth of
    what decoding costs, on a virtual machine. Here a worker has a few places in turn. It is never given more than
    `prefetch_factor` batches to make; one more may have been taken out ahead of its use, and one is in use. Whoever
    takes a batch copies it (`received`), before the batch after the next is taken.

    Args:
        collator: makes the batches.
        batch_size: examples of each.
        workers, prefetch_factor: of the `DataLoader`.
    """

    def __init__(self, collator: ImageCollator, *, batch_size: int, workers: int, prefetch_factor: int) -> None:
        size = collator.transform.size
        shape = (workers, prefetch_factor + 2, batch_size, 3, size, size)
        self._places = torch.empty(shape, dtype=torch.uint8).share_memory_()
        self._collator = collator
        self._made = 0

    def __call__(self, examples: list[dict[str, Any]]) -> dict[str, Any]:
        """In a worker: `ImageCollator`'s batch, with the images' place as `"shared"`."""
        info = get_worker_info()
        assert info is not None
        place = (info.id, self._made % self._places.shape[1])
        self._made += 1
        batch: dict[str, Any] = self._collator(examples, out=self._places[place])
        del batch["pixel_values"]
        return {**batch, "shared": place}

    def received(self, batch: dict[str, Any], device: torch.device) -> dict[str, Any]:
        """In the training process: the batch with its images, on the device."""
        images: Tensor = self._places[batch["shared"]]
        images = images.clone() if device.type == "cpu" else images.pin_memory().to(device, non_blocking=True)
        return {"pixel_values": images, **{key: value for key, value in batch.items() if key != "shared"}}
