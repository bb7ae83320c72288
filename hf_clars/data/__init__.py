"""Labelled images from the Hub or from disk to uint8 batches on the device."""

from .batches import SKIP_REASONS, ImageCollator
from .decoded import DecodedImages, decode_all, ready_batch
from .handover import SharedBatches
from .opening import open_source
from .order import LAST_BATCH
from .resident import ResidentImages, check_resident_augmentation
from .source import ImageSource
from .steps import accumulation_steps, nearest_batch_size
from .stream import TrainStream
from .transforms import AUGMENTATIONS, decode_image, eval_transform, train_transform

__all__ = [
    "AUGMENTATIONS",
    "LAST_BATCH",
    "SKIP_REASONS",
    "DecodedImages",
    "ImageCollator",
    "ImageSource",
    "ResidentImages",
    "SharedBatches",
    "TrainStream",
    "accumulation_steps",
    "check_resident_augmentation",
    "decode_all",
    "decode_image",
    "eval_transform",
    "nearest_batch_size",
    "open_source",
    "ready_batch",
    "train_transform",
]
