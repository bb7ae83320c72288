"""A data set on the Hub or in a folder → raw, undecoded examples: chunks to train on, a table to evaluate on."""

from __future__ import annotations

import os
import tarfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import cached_property
from itertools import zip_longest
from pathlib import Path
from typing import Any

import datasets
import fsspec
import pyarrow.parquet as pq
from accelerate import PartialState
from datasets import ClassLabel, Image, load_dataset_builder
from datasets.exceptions import DatasetNotFoundError
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from ..errors import UserError
from ..runtime.processes import once
from ..safety.links import is_within
from .card import check_card
from .chunks import Chunks, ParquetChunks, TableChunks, is_remote
from .folders import FileChunks, class_folders, folder_table, list_images, split_folders, trained_classes
from .home import TO_FOLLOW, Home, home_of_folder
from .labels import label_number
from .names import IMAGE_COLUMNS, LABEL_COLUMNS, find_column, find_split, split_and_rows
from .own_files import with_own_files
from .tars import TarChunks, extensions, stored_examples

_KINDS = ("parquet", "arrow", "imagefolder", "webdataset", "json", "csv")
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4")


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
    _home: Home

    @cached_property
    def chunks(self) -> Chunks:
        """Where the examples lie. Called by all processes; the first one looks at what is far away for all."""
        if self.rows is not None:
            return TableChunks(
                replace(self, num_examples=None).table()
            )  # how many make an epoch is the order's business
        with _clear_errors(self.name):
            return self._whole_split()

    def _whole_split(self) -> Chunks:
        if _loader_name(self._builder) != "parquet":
            return TableChunks(replace(self, num_examples=None).table())
        files = [str(file) for file in self._builder.config.data_files[self.split]]
        known = once(lambda: self._row_groups(files)) if any(map(is_remote, files)) else None
        return ParquetChunks(files, self.image_column, self.label_column, known, self._home)

    def _row_groups(self, files: list[str]) -> list[list[int]]:
        with _clear_errors(self.name):
            return ParquetChunks(files, self.image_column, self.label_column).row_groups

    def table(self) -> datasets.Dataset:
        """The same examples, stored on this machine (in the cache of `datasets`) and open to random access."""
        with _clear_errors(self.name), PartialState().main_process_first():
            table = with_own_files(self._stored(), self._home, self.name)
        if self.rows is not None:
            table = table.select(range(len(table))[self.rows])
        if self.num_examples is not None and self.num_examples < len(table):
            table = table.select(range(self.num_examples))
        return table

    def _stored(self) -> datasets.Dataset:
        kind, files = _loader_name(self._builder), self._builder.config.data_files[self.split]
        options: dict[str, Any] = {}
        if kind == "parquet" or self.class_names is not None:  # this split alone may lack some of the classes
            options["features"] = self._features
        if kind == "imagefolder" and self.class_names is not None:
            options["drop_labels"] = False
        data = datasets.load_dataset(kind, data_files={"evaluation": list(files)}, split="evaluation", **options)
        data = data.select_columns([self.image_column, self.label_column])
        for old, new in ((self.image_column, "image"), (self.label_column, "label")):
            if old != new:
                data = data.rename_column(old, new)
        return data.cast_column("image", Image(decode=False))

    def check_labels(self, num_classes: int) -> None:
        """Look at all labels of local Parquet files, which is cheap, and at the first examples of everything else.

        Raises:
            UserError: a label outside the classes, or an empty split.
        """
        for where, labels in self._labels():
            for row, label in enumerate(labels):
                number = label_number(label)
                if number is None and label is not None:
                    raise UserError(
                        f"{self.name}: label {str(label)[:40]} of row {row} in {where} is no whole number: labels are "
                        f"0 to {num_classes - 1}"
                    )
                if number is None or not 0 <= number < num_classes:
                    raise UserError(
                        f"{self.name}: label {label} of row {row} in {where} is outside the {num_classes} classes "
                        f"(0 to {num_classes - 1}); is --num_classes right?"
                    )

    def _labels(self) -> Iterator[tuple[str, list[Any]]]:
        local = [Path(f) for f in self._builder.config.data_files[self.split] if "://" not in str(f)]
        if _loader_name(self._builder) == "parquet" and local:
            for path in local:
                self._check_class_names(path)
                yield path.name, pq.read_table(path, columns=[self.label_column]).column(0).to_pylist()
            return
        with _clear_errors(self.name):
            chunks = self.chunks
            number = next((i for i, size in enumerate(chunks.sizes) if size), None)
            first = [] if number is None else [example["label"] for example in chunks.read_patiently(number)][:16]
        if not first:
            raise UserError(f"{self.name}: split {self.split!r} is empty")
        yield f"split {self.split!r}", first

    def _check_class_names(self, file: Path) -> None:
        feature = datasets.Features.from_arrow_schema(pq.read_schema(file)).get(self.label_column)
        if self.class_names is None or not isinstance(feature, ClassLabel):
            return
        for number, (name, here) in enumerate(zip_longest(self.class_names, feature.names)):
            if name != here:
                raise UserError(
                    f"{self.name}: class {number} is {here!r} in {file.name} and {name!r} in the first file: "
                    "number the classes alike in all of them"
                )


@dataclass(frozen=True)
class TarSource(ImageSource):
    """A split that is WebDataset tars."""

    _images: tuple[str, ...] = ()

    def _whole_split(self) -> Chunks:
        files = [str(file) for file in self._builder.config.data_files[self.split]]
        return TarChunks(files, self._images, self.label_column)

    def _stored(self) -> datasets.Dataset:
        return stored_examples(self._whole_split(), self._builder.config.data_files[self.split])


@dataclass(frozen=True)
class FolderSource(ImageSource):
    """A split that is a folder of images by class."""

    _images: list[tuple[str, int]] = field(default_factory=list, repr=False)

    @cached_property
    def chunks(self) -> Chunks:
        return FileChunks(self._images, self._home)

    def table(self) -> datasets.Dataset:
        assert self.class_names is not None
        table = folder_table(self._images[: self.num_examples], self.class_names)
        return with_own_files(table, self._home, self.name)

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
    train_split: str = "train",
    follow_links: bool = False,
) -> ImageSource:
    """Find a split of a data set on the Hub, or of a folder of Parquet files, image folders or WebDataset tars.

    The data set does not choose what is opened: what its card, its rows and the links in its folder lead to must lie in
    its folder, or in its repository on the Hub. Nothing is downloaded but what describes it. `validation` also finds
    `val`, `valid`, `dev`, `test` or `testing`, and `train` finds `training`. `train[:45000]` is a part of a split, by
    rows; it is downloaded as a whole.

    Args:
        train_split: whose classes the labels of image folders number, whatever split is asked for.
        follow_links: links in the folder may lead anywhere.

    Raises:
        UserError: no such folder, data set, split or column; an empty split; a data set that needs a login; data files
            elsewhere; image folders with a class that the training split does not have.
    """
    if num_examples is not None and num_examples < 1:
        raise UserError(f"a number of examples must be at least 1, not {num_examples}")
    split, rows = split_and_rows(split)
    path = Path(os.path.expanduser(name))
    looks_local = name.startswith((".", "~", os.sep)) or name.count("/") > 1 or path.exists()
    if looks_local and not path.is_dir():
        raise UserError(f"dataset {name!r}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    if looks_local and not any(path.rglob("*.*")):
        raise UserError(f"dataset {name!r}: the folder is empty")
    if looks_local and (folders := split_folders(path)):
        found = find_split(name, split, list(folders))
        home = home_of_folder(path, follow_links)
        _check_folders(name, folders.values(), home)
        class_names = class_folders(folders, found, split_and_rows(train_split)[0])
        return _open_folder(
            name, found, list_images(folders[found], class_names), class_names, rows, num_examples, home
        )
    home = home_of_folder(path, follow_links) if looks_local else Home(repository=name)
    check_card(name, path if looks_local else None, revision, home)
    with _clear_errors(name):
        builder = _builder(str(path) if looks_local else name, config, revision)
        home = _home_of(builder, home)
        found = find_split(name, split, [str(s) for s in (builder.config.data_files or builder.info.splits or {})])
        if _loader_name(builder) == "webdataset":  # datasets would have all parts of an example side by side
            features = dict.fromkeys(extensions(list(map(str, builder.config.data_files[found]))))
        else:
            features = builder.as_streaming_dataset(split=found).features
    if not features:
        raise UserError(f"{name}: split {found!r} is empty")
    if _loader_name(builder) == "webdataset":
        image_column, label_column = image_column and image_column.lower(), label_column and label_column.lower()
    image = find_column(name, "image", image_column, IMAGE_COLUMNS, features)
    label = find_column(name, "label", label_column, LABEL_COLUMNS, features)
    feature = features[label]
    if not _holds_encoded_images(features[image]):
        raise UserError(f"{name}: column {image!r} holds {features[image]}, not encoded images or their paths")
    if _loader_name(builder) == "imagefolder" and isinstance(feature, ClassLabel):
        trained = trained_classes(name, builder.config.data_files, found, split_and_rows(train_split)[0])
        feature = ClassLabel(names=trained) if trained else feature
        features = datasets.Features({**features, label: feature})
    known = _count(builder, found)
    if known is not None and rows is not None:
        known = len(range(known)[rows])
    if known == 0:
        raise UserError(f"{name}: split {found!r} is empty" + (" in these rows" if rows is not None else ""))
    if num_examples is not None and known is not None:
        num_examples = min(num_examples, known)
    common: dict[str, Any] = {
        "name": name,
        "split": found,
        "image_column": image,
        "label_column": label,
        "class_names": list(feature.names) if isinstance(feature, ClassLabel) else None,
        "num_examples": known if num_examples is None else num_examples,
        "rows": rows,
        "_builder": builder,
        "_features": features,
        "_home": home,
    }
    if _loader_name(builder) == "webdataset":
        return TarSource(**common, _images=IMAGE_COLUMNS if image_column is None else (image,))
    return ImageSource(**common)


def _open_folder(
    name: str,
    split: str,
    images: list[tuple[str, int]],
    class_names: list[str],
    rows: slice | None,
    num_examples: int | None,
    home: Home,
) -> FolderSource:
    images = images[rows or slice(None)]
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
        _home=home,
        _images=images,
    )


def _builder(path: str, config: str | None, revision: str | None) -> Any:
    """`load_dataset_builder`, for kinds of files that hold images and lead nowhere else."""
    try:
        builder = load_dataset_builder(path, config, revision=revision)
    except (TypeError, KeyError, AttributeError, RecursionError) as error:  # of a card that is not what it should be
        raise ValueError(f"its README.md or dataset_infos.json is damaged ({type(error).__name__}: {error})") from error
    if (kind := _loader_name(builder)) not in _KINDS:
        raise ValueError(f"its files are of the kind {kind!r}, which is none of {', '.join(_KINDS)}")
    return builder


def _home_of(builder: Any, home: Home) -> Home:
    """Where rows may lead; raises `ForeignFileError` where the files of a split are not at home already."""
    files = [str(file) for split in (builder.config.data_files or {}).values() for file in split]
    if not home.folders:
        cached = Path(HF_HUB_CACHE) / repo_folder_name(repo_id=str(home.repository), repo_type="dataset")
        home = replace(home, base=builder.base_path, folders=(os.path.realpath(cached),))
    seen: set[str] = set()
    for file in files:
        if (folder := os.path.dirname(file)) not in seen or os.path.islink(file):  # a million files lie in few folders
            home.place(file)
            seen.add(folder)
    if _loader_name(builder) == "imagefolder" and any(file.lower().endswith(_ARCHIVES) for file in files):
        unpacked = os.path.realpath(datasets.config.EXTRACTED_DATASETS_PATH)
        home = replace(home, folders=(*home.folders, unpacked))
    return home


def _check_folders(name: str, splits: Iterable[Path], home: Home) -> None:
    for folder in (each for split in splits for each in (split, *split.iterdir())):
        if not home.follow_links and folder.is_dir() and not is_within(folder, home.folders):
            raise UserError(f"{name}: {folder} is a link that leads out of the data set's folder: {TO_FOLLOW}")


def _loader_name(builder: Any) -> str:
    """`parquet`, `imagefolder`, `webdataset`, …: the packaged loader behind a builder."""
    return type(builder).__module__.rsplit(".", 1)[-1]


def _holds_encoded_images(feature: Any) -> bool:
    if isinstance(feature, dict):
        return bool({"bytes", "path"} & set(feature))
    kind = str(getattr(feature, "dtype", ""))
    return feature is None or isinstance(feature, Image) or kind.endswith(("binary", "string", "binary_view"))


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
    except (OSError, ValueError, tarfile.TarError, RecursionError) as error:  # pyarrow's errors are ValueErrors
        raise UserError(f"dataset {name!r} cannot be read: {' '.join(str(error).split())}") from error
