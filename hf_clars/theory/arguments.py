"""What `hf-clars rates` takes. No import of torch, so that `--help` is quick."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Annotated, Any

from ..command_line import page
from ..image_classification.fields import Classes, Side
from ..validation.schema import Count, PartOfOne, Positive, Seed, check, one_of

MODES = ("train", "eval")


@dataclass
class RatesArguments:
    """Model, data and optimizer settings whose learning rates are compared."""

    dataset: str = field(metadata={"help": "A data set on the Hub, or a folder of Parquet files, images or tar files."})
    model_name: str | None = field(default=None, metadata={"help": "A timm architecture, at its initial weights."})
    model_kwargs: dict[str, Any] | str | None = field(
        default=None, metadata={"help": "Arguments of timm.create_model, as JSON."}
    )
    checkpoint: str | None = field(default=None, metadata={"help": "Folder of a saved model, for trained weights."})
    split: str = field(default="train", metadata={"help": "Split to draw examples from."})
    num_classes: Classes | None = field(default=None, metadata={"help": "Number of classes; known by most data sets."})
    examples: Count = field(default=1024, metadata={"help": "Examples to measure on, drawn at random."})
    image_size: Side | None = field(default=None, metadata={"help": "Side of the images; the model's own by default."})
    model_mode: Annotated[str, one_of(MODES)] = field(
        default="train",
        metadata={"help": "train: BatchNorm sees each batch, as in training; eval: running statistics."},
    )
    per_device_batch_size: Count = field(default=128, metadata={"help": "Examples of one forward pass."})
    total_batch_size: Count = field(default=128, metadata={"help": "B, the samples of one optimizer step."})
    learning_rate: Positive = field(default=1.0, metadata={"help": "γ_scale of LARS and CLARS."})
    momentum: PartOfOne = field(default=0.9, metadata={"help": "β."})
    eta_lars: Positive = field(default=1e-3, metadata={"help": "η of LARS."})
    eta_clars: Positive = field(default=1e-2, metadata={"help": "η of CLARS."})
    iterations: Count = field(default=20, metadata={"help": "Hessian-vector products per layer, at most."})
    seed: Seed = field(default=0, metadata={"help": "Of the initial weights, the examples and the power iteration."})

    def __post_init__(self) -> None:
        check(self)


def rates_help() -> str:
    return page(
        "hf-clars rates --dataset DATASET (--model_name NAME | --checkpoint FOLDER) [--KEY VALUE ...]",
        "The learning rates that Theorem 2 allows each layer, beside those of LARS and CLARS. Defaults stand in [].",
        {"options": fields(RatesArguments)},
        "example:\n  hf-clars rates --dataset cifar10 --model_name resnet20_cifar --examples 256",
    )
