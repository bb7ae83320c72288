"""Trainings on a `TrainStream`, with checkpoints, that are cut off and go on; and models on which they fail."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hf_clars import ClarsTrainer
from hf_clars.data import TrainStream
from hf_clars.data.chunks import Chunks

from .models import Classifier, dataset
from .training import arguments, seeded


class Pictures(Chunks):
    """Four examples in each chunk, as `ImageCollator` would leave them."""

    def __init__(self, size: int = 64) -> None:
        self.examples = dataset(size)
        self.sizes = np.full(size // 4, 4, np.int64)

    def read(self, number):
        return self.examples[4 * number : 4 * number + 4]

    def name(self, number):
        return f"chunk {number}"


class Numbered(Chunks):
    """Chunks of examples that are numbered through; counts what is read."""

    def __init__(self, *sizes: int) -> None:
        self.sizes = np.array(sizes, np.int64)
        self.read_chunks: list[int] = []

    def read(self, number):
        self.read_chunks.append(number)
        first = int(self.sizes[:number].sum())
        return [{"image": None, "label": first + row} for row in range(int(self.sizes[number]))]

    def name(self, number):
        return f"chunk {number}"


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    return {
        "pixel_values": torch.stack([e["pixel_values"] for e in examples]),
        "labels": torch.tensor([e["labels"] for e in examples]),
        "skipped": torch.zeros(4, dtype=torch.int64),
    }


def streaming(
    folder: Path, model: Classifier | None = None, callbacks: Sequence = (), size: int = 64, **options: Any
) -> ClarsTrainer:
    """4 steps an epoch, a checkpoint every 3 steps; its metric draws random numbers."""
    options = {"total_batch_size": 16, "num_train_epochs": 3, "save_strategy": "steps", "save_steps": 3, **options}
    args = arguments(folder, remove_unused_columns=False, **options)
    stream = TrainStream(
        Pictures(size), total_batch_size=args.total_batch_size, seed=0, shuffle_buffer=16, last_batch=args.last_batch
    )
    return ClarsTrainer(
        model or seeded(), args, train_dataset=stream, eval_dataset=dataset(16, 1), data_collator=collate,
        callbacks=list(callbacks), compute_metrics=lambda p: {"chance": float(np.random.rand() + torch.rand(()))},
    )  # fmt: skip


class Poisoned(Classifier):
    """With BatchNorm; NaN comes out of chosen forward passes, counted from 1."""

    def __init__(self, *when: int) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(8)
        self.passes, self.when = 0, when

    def forward(self, pixel_values, labels=None):
        self.passes += self.training
        if self.training and self.passes in self.when:
            pixel_values = pixel_values * float("nan")
        return super().forward(pixel_values, labels)


def poisoned(*when: int) -> Poisoned:
    torch.manual_seed(1)
    return Poisoned(*when)


class Small(Classifier):
    """With running statistics, on a device that holds `room` samples; notes the sizes that were tried."""

    def __init__(self, room: int = 4) -> None:
        torch.manual_seed(1)
        super().__init__()
        self.norm = torch.nn.BatchNorm2d(8)
        self.room, self.sizes = room, []

    def forward(self, pixel_values, labels=None):
        if self.training:
            self.sizes.append(len(pixel_values))
            if len(pixel_values) > self.room:
                raise RuntimeError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return super().forward(pixel_values, labels)
