"""A data set on the Hub or in a folder → raw, undecoded examples: chunks to train on, a table to evaluate on."""

from __future__ import annotations

import os
import re
import tarfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import ClassLabel, Image, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError

from ..errors import UserError
from ..processes import once
from .chunks import Chunks, ParquetChunks, TableChunks, is_remote
from .folders import FileChunks, class_folders, folder_table, list_images, split_folders
from .tars import TarChunks

_IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp")
_LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")
_SAME_SPLIT = ("validation", "val", "valid", "test")  # what people call the split that is not trained on


@dataclass(frozen=True)
class ImageSource:
    """One split of a data set.

    Attributes:
        name: what the user called the data set.
        split: the split's name in the data set.
        image_column, label_column: names of the two columns that count.
        class_names: names of the classes, None when labels are plain numbers.
        num_examples: None when nothing says.
        rows: the part of the split that is meant; None for all of it.
    """

    name: str
    split: str
    image_column: str
    label_column: str
    class_names: list[str] | None
    num_examples: int | None
    rows: slice | None
    _builder: Any
    _features: datasets.Features

    @cached_property
    def chunks(self) -> Chunks:
        """Where the examples lie. Called by all processes; the first one looks at what is far away for all."""
        everything = replace(self, num_examples=None)  # how many make an epoch is the order's business
        if self.rows is not None:
            return TableChunks(everything.table())
        files = [str(file) for file in self._builder.config.data_files[self.split]]
        kind = _loader_name(self._builder)
        columns = (self.image_column, self.label_column)
        with _clear_errors(self.name):
            if kind == "parquet":
                known = once(lambda: self._row_groups(files)) if any(map(is_remote, files)) else None
                return ParquetChunks(files, *columns, known)
            if kind == "webdataset":
                return TarChunks(files, *columns)
        return TableChunks(everything.table())

    def _row_groups(self, files: list[str]) -> list[list[int]]:
        with _clear_errors(self.name):
            return ParquetChunks(files, self.image_column, self.label_column).row_groups

    def table(self) -> datasets.Dataset:
        """The same examples, stored on this machine (in the cache of `datasets`) and open to random access."""
        with _clear_errors(self.name), PartialState().main_process_first():
            files = self._builder.config.data_files[self.split]
            table = datasets.load_dataset(
                _loader_name(self._builder), data_files={"evaluation": list(files)}, split="evaluation",
                **({"features": self._features} if _loader_name(self._builder) == "parquet" else {}),
            )  # fmt: skip
            table = self._raw(table)
        if self.rows is not None:
            table = table.select(range(len(table))[self.rows])
        if self.num_examples is not None and self.num_examples < len(table):
            table = table.select(range(self.num_examples))
        return table

    def check_labels(self, num_classes: int) -> None:
        """Look at all labels of local Parquet files, which is cheap, and at the first examples of everything else.

        Raises:
            UserError: a label outside the classes, or an empty split.
        """
        for where, labels in self._labels():
            for row, label in enumerate(labels):
                number = int(label) if str(label).isdecimal() else -1
                if not 0 <= number < num_classes:
                    raise UserError(
                        f"{self.name}: label {label} of row {row} in {where} is outside the {num_classes} classes "
                        f"(0 to {num_classes - 1}); is --num_classes right?"
                    )

    def _labels(self) -> Iterator[tuple[str, list[Any]]]:
        local = [Path(f) for f in self._builder.config.data_files[self.split] if "://" not in str(f)]
        if _loader_name(self._builder) == "parquet" and local:
            for path in local:
                yield path.name, pq.read_table(path, columns=[self.label_column]).column(0).to_pylist()
            return
        with _clear_errors(self.name):
            chunks = self.chunks
            number = next((i for i, size in enumerate(chunks.sizes) if size), None)
            first = [] if number is None else [example["label"] for example in chunks.read_patiently(number)][:16]
        if not first:
            raise UserError(f"{self.name}: split {self.split!r} is empty")
        yield f"split {self.split!r}", first

    def _raw(self, data: Any) -> Any:
        data = data.select_columns([self.image_column, self.label_column])
        for old, new in ((self.image_column, "image"), (self.label_column, "label")):
            if old != new:
                data = data.rename_column(old, new)
        return data.cast_column("image", Image(decode=False))


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """A split that is a folder of images by class."""

    _images: list[tuple[str, int]] = field(default_factory=list, repr=False)

    @cached_property
    def chunks(self) -> Chunks:
        return FileChunks(self._images)

    def table(self) -> datasets.Dataset:
        assert self.class_names is not None
        return folder_table(self._images[: self.num_examples], self.class_names)

    def _labels(self) -> Iterator[tuple[str, list[Any]]]:
        yield f"split {self.split!r}", [label for _, label in self._images]


def open_source(
    name: str,
    split: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    image_column: str | None = None,
    label_column: str | None = None,
    num_examples: int | None = None,
) -> ImageSource:
    """Find a split of a data set on the Hub, or of a folder of Parquet files, image folders or WebDataset tars.

    Nothing is downloaded but what describes it. `validation` also finds `val`, `valid` or `test`. `train[:45000]` is a
    part of a split, by rows; it is downloaded as a whole.

    Raises:
        UserError: no such folder, data set, split or column; an empty split; a data set that needs a login.
    """
    if num_examples is not None and num_examples < 1:
        raise UserError(f"a number of examples must be at least 1, not {num_examples}")
    split, rows = _split_and_rows(split)
    path = Path(os.path.expanduser(name))
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or path.exists()
    if looks_local and not path.is_dir():
        raise UserError(f"dataset {name!r}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    if looks_local and not any(path.rglob("*.*")):
        raise UserError(f"dataset {name!r}: the folder is empty")
    if looks_local and (folders := split_folders(path)):
        return _open_folder(name, folders, _find_split(name, split, list(folders)), rows, num_examples)
    with _clear_errors(name):
        builder = load_dataset_builder(str(path) if looks_local else name, config, revision=revision)
        found = _find_split(name, split, [str(s) for s in (builder.config.data_files or builder.info.splits or {})])
        features = builder.as_streaming_dataset(split=found).features
    if features is None:  # tar files say nothing about themselves
        with _clear_errors(name):
            first = next(iter(builder.as_streaming_dataset(split=found)), None)
        if first is None:
            raise UserError(f"{name}: split {found!r} is empty")
        features = datasets.Features({key: datasets.Value("string") for key in first})
    image = _find_column(name, "image", image_column, _IMAGE_COLUMNS, features)
    label = _find_column(name, "label", label_column, _LABEL_COLUMNS, features)
    feature = features[label]
    known = _count(builder, found)
    if known is not None and rows is not None:
        known = len(range(known)[rows])
    if known == 0:
        raise UserError(f"{name}: split {found!r} is empty" + (" in these rows" if rows is not None else ""))
    if num_examples is not None and known is not None:
        num_examples = min(num_examples, known)
    return ImageSource(
        name=name,
        split=found,
        image_column=image,
        label_column=label,
        class_names=list(feature.names) if isinstance(feature, ClassLabel) else None,
        num_examples=known if num_examples is None else num_examples,
        rows=rows,
        _builder=builder,
        _features=features,
    )


def _split_and_rows(split: str) -> tuple[str, slice | None]:
    """`train[:45000]` → `train` and the rows meant."""
    match = re.fullmatch(r"([^\[\]]+)\[(\d*):(\d*)\]", split)
    if match is None:
        if "[" in split:
            raise UserError(f"split {split!r} is not of the form NAME, NAME[FROM:TO], NAME[FROM:] or NAME[:TO]")
        return split, None
    name, start, stop = match.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def _open_folder(
    name: str, folders: dict[str, Path], split: str, rows: slice | None, num_examples: int | None
) -> FolderSource:
    class_names = class_folders(folders, split)
    images = list_images(folders[split], class_names)[rows or slice(None)]
    if not images:
        raise UserError(f"{name}: split {split!r} is empty in these rows")
    return FolderSource(
        name=name,
        split=split,
        image_column="image",
        label_column="label",
        class_names=class_names,
        num_examples=len(images) if num_examples is None else min(num_examples, len(images)),
        rows=rows,
        _builder=None,
        _features=datasets.Features(),
        _images=images,
    )


def _loader_name(builder: Any) -> str:
    """`parquet`, `imagefolder`, `webdataset`, …: the packaged loader behind a builder."""
    return type(builder).__module__.rsplit(".", 1)[-1]


def _find_split(name: str, split: str, existing: list[str]) -> str:
    if split in existing:
        return split
    if split == _SAME_SPLIT[0]:
        for other in _SAME_SPLIT:
            if other in existing:
                return other
    raise UserError(f"{name} has no split {split!r}: it has {', '.join(existing)}")


def _find_column(name: str, what: str, given: str | None, usual: tuple[str, ...], features: Any) -> str:
    if given is not None:
        if given not in features:
            raise UserError(f"{name} has no column {given!r} ({what}): it has {', '.join(features)}")
        return given
    for column in usual:
        if column in features:
            return column
    raise UserError(
        f"{name} has no column that looks like the {what}: it has {', '.join(features)}; name it with --{what}_column"
    )


def _count(builder: Any, split: str) -> int | None:
    if builder.info.splits and split in builder.info.splits:
        return builder.info.splits[split].num_examples
    files = [str(f) for f in builder.config.data_files[split]]
    kind = _loader_name(builder)
    if kind == "parquet":
        total = 0
        for file in files:
            with fsspec.open(file) as opened:
                total += pq.ParquetFile(opened).metadata.num_rows
        return total
    return len(files) if kind == "imagefolder" else None


@contextmanager
def _clear_errors(name: str) -> Iterator[None]:
    """The Hub's and the loaders' errors as one line each."""
    try:
        yield
    except DatasetNotFoundError as error:
        if "gated" in str(error):
            raise UserError(
                f"dataset {name!r} is gated: accept its terms on https://huggingface.co/datasets/{name}, then run "
                "`hf auth login` (or set HF_TOKEN)"
            ) from error
        raise UserError(f"dataset {name!r} is neither a folder nor a data set on the Hub that you may see") from error
    except (datasets.exceptions.DataFilesNotFoundError, datasets.exceptions.DatasetGenerationError) as error:
        raise UserError(f"dataset {name!r}: {str(error).splitlines()[0]}") from error
    except ConnectionError as error:
        raise UserError(f"dataset {name!r}: the Hub cannot be reached ({str(error).splitlines()[0]})") from error
    except UserError:
        raise
    except (OSError, ValueError, tarfile.TarError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"dataset {name!r} cannot be read: {' '.join(str(error).split())}") from error
