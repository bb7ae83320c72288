"""The recipe's data: from its arguments to a training stream, evaluation data and collators."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.utils.data import DataLoader

from ..data import (
    ImageCollator,
    ImageSource,
    ResidentImages,
    TrainStream,
    decode_all,
    decode_image,
    eval_transform,
    open_source,
    ready_batch,
    train_transform,
)
from ..data.batches import IGNORED_LABEL
from ..data.chunks import TableChunks
from ..errors import UserError
from ..trainer import ClarsTrainingArguments
from .arguments import RecipeArguments

_LOOKED_AT = 16  # images: one alone might have the size by chance

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class RecipeData:
    """What `ImageTrainer` is given.

    Attributes:
        stream: the training examples.
        evaluation: a table of raw examples, or decoded images.
        eval_split: the split that they are, as the data set calls it, and which rows: `validation` may be its `test`.
        train_collator, eval_collator: of raw examples.
        classes: number of classes.
        class_names: theirs, where they are known.
        eval_crop: the crop that evaluation makes. It is the whole image where images have the size already.
    """

    stream: TrainStream
    evaluation: Any
    eval_split: str
    train_collator: ImageCollator
    eval_collator: ImageCollator
    classes: int
    class_names: list[str] | None
    eval_crop: float
    _source: ImageSource

    def plain_batches(self, batch_size: int) -> Iterable[dict[str, Tensor]]:
        """All training images that can be used, once and in their order, without augmentation; as often as asked."""
        if isinstance(self.stream, ResidentImages):
            return DataLoader(self.stream.decoded, batch_size, collate_fn=ready_batch)
        plain = train_transform(self.train_collator.transform.size, "none")
        collator = ImageCollator(plain, self.classes, training=False)
        everything = self._source.whole_table()
        return _Usable(DataLoader(everything, batch_size, collate_fn=collator))


class _Usable:
    """Batches without the examples that could not be used."""

    def __init__(self, batches: Iterable[dict[str, Tensor]]) -> None:
        self._batches = batches

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for batch in self._batches:
            usable = batch["labels"] != IGNORED_LABEL
            if usable.any():
                yield {name: values[usable] for name, values in batch.items()}


def open_data(recipe: RecipeArguments, args: ClarsTrainingArguments) -> RecipeData:
    """Find and check the data; with `data_on_device`, decode them.

    Raises:
        UserError: see `open_source`, `TrainStream` and `ResidentImages`; labels outside the classes.
    """
    source = _open(recipe, "train_split", recipe.train_examples)
    eval_source = _open(recipe, "eval_split", recipe.eval_examples)
    if not args.process_index:
        _name_without_effect(recipe, {"train_examples": source, "eval_examples": eval_source})
    classes = _number_of_classes(recipe, source)
    for each in (source, eval_source):
        each.check_labels(classes)
    train_collator = ImageCollator(train_transform(recipe.image_size, recipe.augmentation, recipe.min_scale), classes)
    eval_collator = ImageCollator(eval_transform(recipe.image_size, recipe.eval_crop), classes, training=False)
    order: dict[str, Any] = {
        "total_batch_size": args.total_batch_size,
        "seed": args.seed if args.data_seed is None else args.data_seed,
        "last_batch": args.last_batch,
        "limit": recipe.train_examples,
    }
    stream: TrainStream
    evaluation: Any = eval_source.table()
    eval_crop = 1.0 if _have_size(evaluation, recipe.image_size) else recipe.eval_crop
    if recipe.data_on_device:
        plain = train_transform(recipe.image_size, "none")
        stream = ResidentImages(
            decode_all(source.chunks, plain, classes, args.device),
            augmentation=recipe.augmentation,
            max_skipped_share=args.max_skipped_share,
            **order,
        )
        evaluation = decode_all(TableChunks(evaluation), eval_collator.transform, classes, args.device)
    else:
        stream = TrainStream(source.chunks, shuffle_buffer=recipe.shuffle_buffer, **order)
    return RecipeData(
        stream=stream,
        evaluation=evaluation,
        eval_split=eval_source.split + "".join(recipe.eval_split.partition("[")[1:]),
        train_collator=train_collator,
        eval_collator=eval_collator,
        classes=classes,
        class_names=source.class_names,
        eval_crop=eval_crop,
        _source=source,
    )


def _have_size(table: Any, size: int) -> bool:
    """Whether the first images have the size that the model sees, so that `eval_transform` leaves them whole."""
    sizes = set()
    for example in table.select(range(min(_LOOKED_AT, len(table)))):
        with contextlib.suppress(Exception):  # Pillow's plug-ins raise whatever they meet; the collator names the image
            sizes.add(tuple(decode_image(example["image"]).shape[-2:]))
    return sizes == {(size, size)}


def _open(recipe: RecipeArguments, split: str, examples: int | None) -> ImageSource:
    """The data of a split, whose setting is called so; a message gets the name of the setting whose value it has."""
    try:
        return open_source(
            recipe.dataset,
            getattr(recipe, split),
            config=recipe.dataset_config,
            revision=recipe.dataset_revision,
            image_column=recipe.image_column,
            label_column=recipe.label_column,
            num_examples=examples,
            follow_links=recipe.follow_links,
            train_split=recipe.train_split,
        )
    except UserError as error:
        of_data = (split, "dataset_config", "dataset_revision", "image_column", "label_column")
        named = [name for name in of_data if (value := getattr(recipe, name)) and f"'{value}'" in str(error)]
        raise UserError(f"{', '.join(named)}: {error}" if named else str(error)) from error


def _name_without_effect(recipe: RecipeArguments, sources: Mapping[str, ImageSource]) -> None:
    """Settings that other data would give an effect."""
    for name, source in sources.items():
        wanted, there = getattr(recipe, name), source.num_examples
        if wanted is not None and there is not None and there < wanted:
            logger.warning("%s=%d has no effect: there are %d", name, wanted, there)
    if Path(recipe.dataset).expanduser().is_dir():
        if recipe.dataset_revision is not None:
            logger.warning("dataset_revision=%s has no effect: %s is a folder", recipe.dataset_revision, recipe.dataset)
    elif recipe.follow_links:
        logger.warning("follow_links=True has no effect: %s is no folder", recipe.dataset)


def _number_of_classes(recipe: RecipeArguments, source: ImageSource) -> int:
    if recipe.num_classes is not None:
        if recipe.num_classes < 1:
            raise UserError(f"num_classes={recipe.num_classes} must be at least 1")
        return recipe.num_classes
    if source.class_names is None:
        source.check_labels(None)  # a number of them would be of no use
        raise UserError(f"{recipe.dataset} does not name its classes: state their number with --num_classes")
    return len(source.class_names)
