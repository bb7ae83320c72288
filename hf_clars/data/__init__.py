"""Labelled images from the Hub or from disk to uint8 batches on the device."""

from .batches import ImageCollator, TrainStream
from .sources import ImageSource, open_source
from .steps import accumulation_steps, steps_per_epoch
from .transforms import AUGMENTATIONS, decode_image, eval_transform, train_transform

__all__ = [
    "AUGMENTATIONS",
    "ImageCollator",
    "ImageSource",
    "TrainStream",
    "accumulation_steps",
    "decode_image",
    "eval_transform",
    "open_source",
    "steps_per_epoch",
    "train_transform",
]
