"""What the recipe trains on what, and what can be said about these settings before anything is read."""

from __future__ import annotations

import importlib.util
import json
from dataclasses import dataclass, field
from typing import Any

from .data import check_resident_augmentation
from .errors import UserError
from .training.variance_records import MODES as VARIANCE_MODES


@dataclass
class RecipeArguments:
    """What is trained on what; how is `ClarsTrainingArguments`' business."""

    model_name: str = field(default="resnet50", metadata={"help": "A timm architecture."})
    model_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of timm.create_model, as JSON on the command line."}
    )
    dataset: str = field(
        default="ILSVRC/imagenet-1k",
        metadata={"help": "A data set on the Hub, or a folder of Parquet files, of images by class, or of tar files."},
    )
    dataset_config: str | None = field(default=None, metadata={"help": "Configuration of the data set."})
    dataset_revision: str | None = field(default=None, metadata={"help": "Revision of the data set on the Hub."})
    follow_links: bool = field(
        default=False, metadata={"help": "Follow links in the data set's folder that lead out of it."}
    )
    train_split: str = field(default="train", metadata={"help": "Split to train on."})
    eval_split: str = field(default="validation", metadata={"help": "Split to evaluate on."})
    image_column: str | None = field(default=None, metadata={"help": "Column of the images; found by default."})
    label_column: str | None = field(default=None, metadata={"help": "Column of the labels; found by default."})
    num_classes: int | None = field(default=None, metadata={"help": "Number of classes; known by most data sets."})
    train_examples: int | None = field(
        default=None, metadata={"help": "Examples in one epoch, to shorten it; all by default."}
    )
    eval_examples: int | None = field(default=None, metadata={"help": "Examples to evaluate on, likewise."})
    image_size: int = field(default=224, metadata={"help": "Side of the square images the model sees."})
    augmentation: str = field(
        default="random_resized_crop", metadata={"help": "random_resized_crop, random_crop, flip or none."}
    )
    min_scale: float = field(default=0.08, metadata={"help": "Smallest share of the area that a random crop takes."})
    eval_crop: float = field(default=0.875, metadata={"help": "Share of the shorter side that evaluation crops."})
    shuffle_buffer: int = field(
        default=8192, metadata={"help": "Examples from which each process draws; their encoded images are in memory."}
    )
    data_on_device: bool = field(
        default=False,
        metadata={"help": "Decode all images once and keep them on the device: for small ones, such as CIFAR's."},
    )
    channels_last: bool | None = field(
        default=None,
        metadata={"help": "Whether the channels of a pixel are adjacent in memory; by default on CUDA, but for FSDP."},
    )
    gradient_variance: str = field(
        default="none",
        metadata={
            "help": "Measure M_k over all training images before and after each epoch: none, eval or train mode."
        },
    )
    plots: bool = field(default=True, metadata={"help": "Draw curves.png and layers.png at the end."})

    def check(self) -> None:
        """Raises `UserError` for what would only show after data were read."""
        if self.plots and importlib.util.find_spec("matplotlib") is None:
            raise UserError("plots need matplotlib: pip install matplotlib, or go without by --plots false")
        if self.data_on_device:
            check_resident_augmentation(self.augmentation)
        if self.gradient_variance not in VARIANCE_MODES:
            raise UserError(f"gradient_variance={self.gradient_variance!r} is none of: {', '.join(VARIANCE_MODES)}")
        self.timm_kwargs()

    def timm_kwargs(self) -> dict[str, Any]:
        """`model_kwargs`, from JSON if need be."""
        given = self.model_kwargs
        try:
            values = json.loads(given) if isinstance(given, str) else given or {}
        except json.JSONDecodeError as error:
            raise UserError(f"model_kwargs={given!r} is not JSON: {error}") from None
        if not isinstance(values, dict):
            raise UserError(f"model_kwargs={given!r} must be a mapping")
        return values
