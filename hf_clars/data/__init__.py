"""Labelled images from the Hub or from disk to uint8 batches on the device."""

from .batches import SKIP_REASONS, ImageCollator
from .handover import SharedBatches
from .order import TAILS
from .sources import ImageSource, open_source
from .steps import accumulation_steps, nearest_batch_size
from .stream import TrainStream
from .transforms import AUGMENTATIONS, decode_image, eval_transform, train_transform

__all__ = [
    "AUGMENTATIONS",
    "SKIP_REASONS",
    "TAILS",
    "ImageCollator",
    "ImageSource",
    "SharedBatches",
    "TrainStream",
    "accumulation_steps",
    "decode_image",
    "eval_transform",
    "nearest_batch_size",
    "open_source",
    "train_transform",
]
