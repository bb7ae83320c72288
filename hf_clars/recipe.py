"""The image classification recipe: a YAML file and flags in, a trained timm model, its logs and plots out."""

from __future__ import annotations

import importlib.util
import json
import os
import tempfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch.utils.data import DataLoader
from transformers import set_seed
from transformers.utils import logging as transformers_logging

from .configuration import parse
from .data import (
    ImageCollator,
    ImageSource,
    ResidentImages,
    TrainStream,
    check_resident_augmentation,
    decode_all,
    eval_transform,
    open_source,
    ready_batch,
    train_transform,
)
from .data.chunks import TableChunks
from .errors import Preempted, TrainingFailedError, UserError
from .models import build_model
from .plots import plot_run
from .preflight import summary
from .processes import once
from .training import ClarsTrainer, ClarsTrainingArguments, checkpoints
from .training.metrics import accuracies, best_classes
from .training.tracking import wandb_line
from .training.variance_records import MODES as VARIANCE_MODES
from .training.variance_records import GradientVarianceCallback


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
    gradient_variance: str = field(
        default="none",
        metadata={
            "help": "Measure M_k over all training images before and after each epoch: none, eval or train mode."
        },
    )
    plots: bool = field(default=True, metadata={"help": "Draw curves.png and layers.png at the end."})


def run(argv: list[str]) -> dict[str, float]:
    """Train and evaluate as `argv` says (see `parse`); returns the final metrics.

    Raises:
        UserError: anything the user can mend, before a model is built wherever that is possible.
    """
    recipe, args = parse(argv, RecipeArguments, ClarsTrainingArguments)
    args.remove_unused_columns = False  # the collator needs them
    args.logging_first_step = True
    os.environ.setdefault("WANDB_PROJECT", "hf_clars")
    if args.ddp_find_unused_parameters is None:
        args.ddp_find_unused_parameters = False  # looking for them walks the graph once more in every step
    if args.process_index:
        transformers_logging.set_verbosity_error()

    _check(args)
    model_kwargs = _model_kwargs(recipe)
    wanted = str(args.resume_from_checkpoint or "")
    found = once(lambda: checkpoints.find(wanted, Path(str(args.output_dir))))  # a mistake shows before data is read
    if wanted and not args.process_index:
        print(f"going on from {found}" if found else f"no checkpoint in {args.output_dir}: beginning", flush=True)
    if recipe.plots and importlib.util.find_spec("matplotlib") is None:
        raise UserError("plots need matplotlib: pip install matplotlib, or go without by --plots false")
    if recipe.data_on_device:
        check_resident_augmentation(recipe.augmentation)
    if recipe.gradient_variance not in VARIANCE_MODES:
        raise UserError(f"gradient_variance={recipe.gradient_variance!r} is none of: {', '.join(VARIANCE_MODES)}")
    train_source = _open(recipe, recipe.train_split, recipe.train_examples)
    eval_source = _open(recipe, recipe.eval_split, recipe.eval_examples)
    classes = _number_of_classes(recipe, train_source)
    for source in (train_source, eval_source):
        source.check_labels(classes)
    order: dict[str, Any] = {
        "total_batch_size": args.total_batch_size,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "tail": args.tail,
        "limit": recipe.train_examples,
    }
    train_collator = ImageCollator(
        train_transform(recipe.image_size, recipe.augmentation, recipe.min_scale), num_classes=classes
    )
    eval_collator = ImageCollator(
        eval_transform(recipe.image_size, recipe.eval_crop), num_classes=classes, training=False
    )
    stream: TrainStream
    decoded = None  # to evaluate on
    if recipe.data_on_device:
        fit = train_transform(recipe.image_size, "none")
        stream = ResidentImages(
            decode_all(train_source.chunks, fit, classes, args.device),
            augmentation=recipe.augmentation,
            max_skipped_share=args.max_skipped_share,
            **order,
        )
        decoded = decode_all(TableChunks(eval_source.table()), eval_collator.transform, classes, args.device)
    else:
        stream = TrainStream(train_source.chunks, shuffle_buffer=recipe.shuffle_buffer, **order)

    set_seed(args.seed)
    model = build_model(recipe.model_name, classes, **model_kwargs)
    _make_folder(str(args.output_dir))
    if train_source.class_names and len(train_source.class_names) == classes:
        model.config.id2label = dict(enumerate(train_source.class_names))
        model.config.label2id = {name: i for i, name in model.config.id2label.items()}
    if not args.process_index:
        about = {"model_name": recipe.model_name, "dataset": recipe.dataset, "image_size": recipe.image_size}
        print(summary(args, model, stream, **about), flush=True)

    trainer = ImageTrainer(
        model,
        args,
        train_dataset=stream,
        eval_dataset=eval_source.table() if decoded is None else decoded,
        data_collator=train_collator,
        eval_collator=eval_collator,
        compute_metrics=accuracies,
        preprocess_logits_for_metrics=best_classes,
    )
    if recipe.gradient_variance != "none":
        plain = train_transform(recipe.image_size, "none")
        batches = DataLoader(
            stream.decoded if isinstance(stream, ResidentImages) else train_source.table(),
            args.per_device_eval_batch_size,
            collate_fn=ready_batch if decoded is not None else ImageCollator(plain, classes, training=False),
        )
        trainer.add_callback(GradientVarianceCallback(trainer, batches, recipe.gradient_variance))
    try:
        result = trainer.train(resume_from_checkpoint=wanted)
    except (TrainingFailedError, Preempted):
        if trainer.is_world_process_zero():
            trainer.save_state()  # so that `hf-clars plot` shows how it went
        raise
    metrics = {**result.metrics, **trainer.evaluate()}
    try:
        trainer.save_model()
        trainer.save_state()
        trainer.save_metrics("all", metrics, combined=False)
    except (OSError, SafetensorError) as error:
        raise TrainingFailedError(
            f"the trained model cannot be written to {args.output_dir}: {' '.join(str(error).split())}. Make room, and "
            "run this again with --resume_from_checkpoint auto: no step is made twice that a checkpoint holds"
        ) from error
    if trainer.is_world_process_zero():
        _report(recipe, args, metrics, trainer.state.global_step)
    return metrics


class ImageTrainer(ClarsTrainer):
    """`ClarsTrainer` with a collator of its own for evaluation: centre crops instead of random ones."""

    def __init__(self, *args: Any, eval_collator: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._eval_collator = eval_collator

    def get_eval_dataloader(self, eval_dataset: Any = None) -> Any:
        train_collator, self.data_collator = self.data_collator, self._eval_collator
        try:
            return super().get_eval_dataloader(eval_dataset)
        finally:
            self.data_collator = train_collator


def _open(recipe: RecipeArguments, split: str, examples: int | None) -> ImageSource:
    return open_source(
        recipe.dataset,
        split,
        config=recipe.dataset_config,
        revision=recipe.dataset_revision,
        image_column=recipe.image_column,
        label_column=recipe.label_column,
        num_examples=examples,
    )


def _number_of_classes(recipe: RecipeArguments, source: ImageSource) -> int:
    if recipe.num_classes is not None:
        if recipe.num_classes < 1:
            raise UserError(f"num_classes={recipe.num_classes} must be at least 1")
        return recipe.num_classes
    if source.class_names is None:
        raise UserError(f"{recipe.dataset} does not name its classes: state their number with --num_classes")
    return len(source.class_names)


def _model_kwargs(recipe: RecipeArguments) -> dict[str, Any]:
    given = recipe.model_kwargs
    try:
        values = json.loads(given) if isinstance(given, str) else given or {}
    except json.JSONDecodeError as error:
        raise UserError(f"model_kwargs={given!r} is not JSON: {error}") from None
    if not isinstance(values, dict):
        raise UserError(f"model_kwargs={given!r} must be a mapping")
    return values


def _check(args: ClarsTrainingArguments) -> None:
    """What transformers would only notice while it trains."""
    if args.max_steps <= 0 and not args.num_train_epochs > 0:
        raise UserError(f"num_train_epochs={args.num_train_epochs} must be above 0 (or max_steps at least 1)")
    if args.per_device_eval_batch_size < 1:
        raise UserError(f"per_device_eval_batch_size={args.per_device_eval_batch_size} must be at least 1")
    if isinstance(args.lr_scheduler_kwargs, str):
        raise UserError(f"lr_scheduler_kwargs={args.lr_scheduler_kwargs!r} is not JSON")
    if args.dataloader_num_workers < 0:
        raise UserError(f"dataloader_num_workers={args.dataloader_num_workers} must be at least 0")
    if args.dataloader_num_workers == 0:
        args.dataloader_persistent_workers = False


def _make_folder(path: str) -> None:
    try:
        Path(path).mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except OSError as error:
        raise UserError(f"output_dir {path} cannot be written: {error.strerror or error}") from None


def _report(recipe: RecipeArguments, args: ClarsTrainingArguments, metrics: dict[str, float], steps: int) -> None:
    folder = Path(os.path.relpath(str(args.output_dir)))
    pictures = plot_run(str(args.output_dir)) if recipe.plots else []
    print(
        f"\n{recipe.model_name}: {steps} steps of {args.total_batch_size:,} images, training loss "
        f"{metrics['train_loss']:.3f}, accuracy {metrics.get('eval_accuracy', float('nan')):.1%} on "
        f"{recipe.eval_split} after {metrics['train_runtime']:.0f} s"
    )
    print(f"model, logs and plots: {folder}/" + (f" ({', '.join(p.name for p in pictures)})" if pictures else ""))
    print(
        wandb_line() or f"reported to: {', '.join(args.report_to or ()) or 'nothing but the files above'}", flush=True
    )
