"""One split of a data set as raw, undecoded examples: chunks to train on, a table to evaluate on."""

from __future__ import annotations

import glob
import tarfile
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import ClassLabel, Image
from datasets.exceptions import DataFilesNotFoundError, DatasetGenerationError, DatasetNotFoundError

from ..errors import UserError, one_line
from ..runtime.processes import once
from .chunks import Chunks, ParquetChunks, TableChunks, is_remote
from .folders import FileChunks, folder_table
from .home import Home
from .labels import label_number
from .own_files import with_own_files
from .tars import TarChunks, stored_examples

_LONGEST = 600  # characters of a message by others


@dataclass(frozen=True, kw_only=True)
class ImageSource(ABC):
    """One split of a data set.

    Attributes:
        name: what the user called the data set.
        split: the split's name in the data set.
        class_names: names of the classes, None when labels are plain numbers.
        num_examples: how many there are, or were asked for; None when nothing says. A card may be wrong about it.
        limit: how many were asked for; None for all.
        home: where what the data set names must lie.
    """

    name: str
    split: str
    class_names: list[str] | None
    num_examples: int | None
    limit: int | None
    home: Home

    @property
    @abstractmethod
    def chunks(self) -> Chunks:
        """Where the examples lie, whatever the limit. Called by all processes: the first one may look for all."""

    @abstractmethod
    def whole_table(self) -> datasets.Dataset:
        """The same examples, stored on this machine (in the cache of `datasets`) and open to random access."""

    def table(self) -> datasets.Dataset:
        """`whole_table` up to the limit."""
        table = self.whole_table()
        return table if self.limit is None or self.limit >= len(table) else table.select(range(self.limit))

    def check_labels(self, num_classes: int | None) -> None:
        """Look at all labels where that is cheap, and at those of the first examples elsewhere.

        Args:
            num_classes: None where nothing says.

        Raises:
            UserError: a label outside the classes, or an empty split.
        """
        for where, labels in self._labels():
            for row, label in enumerate(labels):
                number = label_number(label)
                if number is None and label is not None:
                    labels = "whole numbers from 0" if num_classes is None else f"0 to {num_classes - 1}"
                    raise UserError(
                        f"{self.name}: label {str(label)[:40]} of row {row} in {where} is no whole number: labels are "
                        f"{labels}, or names of folders that hold the images of a class each, without metadata files"
                    )
                if num_classes is not None and (number is None or not 0 <= number < num_classes):
                    raise UserError(
                        f"{self.name}: label {label} of row {row} in {where} is outside the {num_classes} classes "
                        f"(0 to {num_classes - 1}); is --num_classes right?"
                    )

    def _labels(self) -> Iterator[tuple[str, Iterable[Any]]]:
        """Labels to check, by what holds them."""
        with clear_errors(self.name):
            chunks = self.chunks
            number = next((i for i, size in enumerate(chunks.sizes) if size), None)
            first = [] if number is None else [example["label"] for example in chunks.read_patiently(number)][:16]
        if not first:
            raise UserError(f"{self.name}: split {self.split!r} is empty")
        yield f"split {self.split!r}", first


@dataclass(frozen=True, kw_only=True)
class FolderSource(ImageSource):
    """A split that is a folder of images by class: their paths and labels."""

    class_names: list[str]
    images: list[tuple[str, int]] = field(repr=False)

    @cached_property
    def chunks(self) -> Chunks:
        return FileChunks(self.images, self.home)

    def whole_table(self) -> datasets.Dataset:
        return with_own_files(folder_table(self.images, self.class_names), self.home, self.name)

    def table(self) -> datasets.Dataset:
        return with_own_files(folder_table(self.images[: self.limit], self.class_names), self.home, self.name)

    def _labels(self) -> Iterator[tuple[str, list[Any]]]:
        yield f"split {self.split!r}", [label for _, label in self.images]


@dataclass(frozen=True, kw_only=True)
class FileSource(ImageSource):
    """A split of files that a loader of `datasets` reads.

    Attributes:
        rows: the part of the split that is meant; None for all of it.
        kind: which loader: `parquet`, `imagefolder`, `json`, ….
        files: paths or addresses that fsspec opens.
        image_column, label_column: names of the two columns that count.
        features: what all columns hold.
    """

    rows: slice | None
    kind: str
    files: list[str]
    image_column: str
    label_column: str
    features: datasets.Features

    @cached_property
    def chunks(self) -> Chunks:
        if self.rows is not None:
            return TableChunks(self.whole_table())
        with clear_errors(self.name):
            return self._chunks()

    def _chunks(self) -> Chunks:
        if self.kind != "parquet":
            return TableChunks(self.whole_table())
        known = once(self._row_groups) if any(map(is_remote, self.files)) else None
        return ParquetChunks(self.files, self.image_column, self.label_column, known, self.home)

    def _row_groups(self) -> list[list[int]]:
        with clear_errors(self.name):  # which is for all processes
            return ParquetChunks(self.files, self.image_column, self.label_column).row_groups

    def whole_table(self) -> datasets.Dataset:
        with clear_errors(self.name), PartialState().main_process_first():
            table = with_own_files(self._stored(), self.home, self.name)
        return table if self.rows is None else table.select(range(len(table))[self.rows])

    def _stored(self) -> datasets.Dataset:
        options: dict[str, Any] = {}
        if self.kind == "parquet" or self.class_names is not None:  # this split alone may lack some of the classes
            options["features"] = self.features
        if self.kind == "imagefolder" and self.class_names is not None:
            options["drop_labels"] = False
        plain = [glob.escape(file) for file in self.files]  # a file may be called `*`, and others not be its match
        data = datasets.load_dataset(self.kind, data_files={"evaluation": plain}, split="evaluation", **options)
        data = data.select_columns([self.image_column, self.label_column])
        for old, new in ((self.image_column, "image"), (self.label_column, "label")):
            if old != new:
                data = data.rename_column(old, new)
        return data.cast_column("image", Image(decode=False))

    def _labels(self) -> Iterator[tuple[str, Iterable[Any]]]:
        local = [Path(file) for file in self.files if "://" not in file]
        if self.kind != "parquet" or not local:
            yield from super()._labels()
        else:
            for file in local:
                yield file.name, self._labels_in(file)

    def _labels_in(self, file: Path) -> Iterator[Any]:
        with clear_errors(self.name), pq.ParquetFile(file) as parquet:
            self._check_class_names(file.name, parquet.schema_arrow)
            for batch in parquet.iter_batches(columns=[self.label_column]):
                yield from batch.column(0).to_pylist()

    def _check_class_names(self, file: str, schema: Any) -> None:
        feature = datasets.Features.from_arrow_schema(schema).get(self.label_column)
        if self.class_names is None or not isinstance(feature, ClassLabel):
            return
        for number, (name, here) in enumerate(zip_longest(self.class_names, feature.names)):
            if name != here:
                raise UserError(
                    f"{self.name}: class {number} is {here!r} in {file} and {name!r} in the first file: "
                    "number the classes alike in all of them"
                )


@dataclass(frozen=True, kw_only=True)
class TarSource(FileSource):
    """A split that is WebDataset tars; several extensions may be those of images."""

    image_extensions: tuple[str, ...]

    def _chunks(self) -> Chunks:
        return TarChunks(self.files, self.image_extensions, self.label_column)

    def _stored(self) -> datasets.Dataset:
        return stored_examples(self._chunks(), self.files)


@contextmanager
def clear_errors(name: str) -> Iterator[None]:
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
    except (DataFilesNotFoundError, DatasetGenerationError) as error:
        why = error.__cause__ or error  # the loader's own error says nothing
        raise UserError(f"dataset {name!r}: {one_line(why)}"[:_LONGEST]) from error
    except ConnectionError as error:
        raise UserError(f"dataset {name!r}: the Hub cannot be reached ({str(error).splitlines()[0]})") from error
    except UserError:
        raise
    except (OSError, ValueError, tarfile.TarError, RecursionError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"dataset {name!r} cannot be read: {' '.join(str(error).split())}"[:_LONGEST]) from error
