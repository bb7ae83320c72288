"""Fields of the recipe's arguments: what is trained on what. No import of torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from ..validation.schema import Count, Whole, setting

Side = Annotated[int, Field(ge=1, le=8192)]  # pixels
Classes = Annotated[int, Field(ge=1, le=2**24)]
PartOfImage = Annotated[float, Field(ge=0.01, le=1)]


@dataclass
class RecipeFields:
    """Those of `RecipeArguments`, which checks them."""

    model_name: str = setting("resnet50", "A timm architecture.")
    model_kwargs: dict[str, Any] | str | None = setting(
        None, "Arguments of timm.create_model, as JSON on the command line."
    )
    dataset: str = setting(
        "ILSVRC/imagenet-1k",
        "A data set on the Hub, or a folder of Parquet files, images or tar files.",
    )
    dataset_config: str | None = setting(None, "Configuration of the data set.")
    dataset_revision: str | None = setting(None, "Revision of the data set on the Hub.")
    follow_links: bool = setting(False, "Follow links in the data set's folder that lead out of it.")
    train_split: str = setting("train", "Split to train on.")
    eval_split: str = setting("validation", "Split to evaluate on.")
    image_column: str | None = setting(None, "Column of the images; found by default.")
    label_column: str | None = setting(None, "Column of the labels; found by default.")
    num_classes: Classes | None = setting(None, "Number of classes; known by most data sets.")
    train_examples: Count | None = setting(None, "Examples in one epoch, to shorten it; all by default.")
    eval_examples: Count | None = setting(None, "Examples to evaluate on, likewise.")
    image_size: Side = setting(224, "Side of the square images the model sees.")
    augmentation: str = setting("random_resized_crop", "random_resized_crop, random_crop, flip or none.")
    min_scale: PartOfImage = setting(0.08, "Smallest share of the area that a random crop takes.")
    eval_crop: PartOfImage = setting(0.875, "Share of the shorter side that evaluation crops.")
    shuffle_buffer: Count = setting(8192, "Examples from which each process draws; their encoded images are in memory.")
    data_on_device: bool = setting(False, "Decode all images once and keep them on the device: for small ones.")
    channels_last: bool | None = setting(
        None, "Channels of a pixel are adjacent in memory; by default on CUDA, but for FSDP."
    )
    gradient_variance: str = setting(
        "none", "Measure M_k of all images before and after each epoch: none, eval or train."
    )
    gradient_statistics_steps: Whole = setting(0, "Measure noise scale and M_k every so many steps; 0 for never.")
    plots: bool | None = setting(
        None, "Draw curves.png and layers.png at the end; by default where matplotlib is installed."
    )
