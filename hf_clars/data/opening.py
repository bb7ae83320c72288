"""From the name of a data set on the Hub or of a folder to one of its splits; nothing elsewhere is opened."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import datasets
import yaml
from datasets import ClassLabel, Image, load_dataset_builder
from huggingface_hub.constants import HF_HUB_CACHE
from huggingface_hub.file_download import repo_folder_name

from ..errors import UserError
from ..safety.links import is_within
from .card import check_card
from .chunks import is_remote, rows_of_groups
from .folders import class_folders, is_image, list_images, split_folders, trained_classes
from .home import TO_FOLLOW, ForeignFileError, Home, home_of_folder
from .names import IMAGE_COLUMNS, LABEL_COLUMNS, find_column, find_split, same_split, split_and_rows
from .source import FileSource, FolderSource, ImageSource, TarSource, clear_errors
from .tars import extensions

_KINDS = ("parquet", "arrow", "imagefolder", "webdataset", "json", "csv")
_TEXTS = (".json", ".jsonl", ".ndjson", ".csv", ".tsv")
_MOST_TEXT = 2**30  # bytes; a line may be all of a file
_LOOKED_AT = 64  # rows of a split that does not say what its columns hold
_ARCHIVES = (".zip", ".tar", ".gz", ".tgz", ".bz2", ".xz", ".zst", ".7z", ".rar", ".lz4")


@dataclass(frozen=True)
class _Wanted:
    """What was asked for; `train` is the split whose classes count."""

    name: str
    split: str
    rows: slice | None
    limit: int | None
    train: str

    def found(self, split: str, known: int | None) -> dict[str, Any]:
        """What every source is told of a split with so many examples, of those that are asked for."""
        if known is not None and self.rows is not None:
            known = len(range(known)[self.rows])
        if known == 0:
            raise UserError(f"{self.name}: split {split!r} is empty" + (" in these rows" if self.rows else ""))
        number = min((n for n in (known, self.limit) if n is not None), default=None)
        return {"name": self.name, "split": split, "num_examples": number, "limit": self.limit}


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
        UserError: no such folder, data set, split or column; columns or a configuration for image folders, which have
            none; an empty split; a data set that needs a login; data files elsewhere; image folders with a class that
            the training split does not have, or beside a split in another form.
    """
    if num_examples is not None and num_examples < 1:
        raise UserError(f"a number of examples must be at least 1, not {num_examples}")
    wanted = _Wanted(name, *split_and_rows(split), num_examples, split_and_rows(train_split)[0])
    folder = local_folder(name)
    home = Home(repository=name) if folder is None else home_of_folder(folder, follow_links)
    if folder is not None and (splits := split_folders(folder)):
        for what, given in (("dataset_config", config), ("image_column", image_column), ("label_column", label_column)):
            if given is not None:
                raise UserError(f"{name} is a folder of images by class, which has no {what}: leave out {what}={given}")
        return _class_folders(wanted, splits, home)
    check_card(name, folder, revision, home)
    with clear_errors(name):
        builder = _builder(name if folder is None else str(folder), config, revision)
        return _files(wanted, builder, _home_of(builder, home), image_column, label_column)


def local_folder(name: str) -> Path | None:
    """The folder that a name is, wherever the program goes from here; None for what may be on the Hub.

    Raises:
        UserError: it is not there, or empty.
    """
    path = Path(os.path.abspath(os.path.expanduser(name)))
    if not (name.startswith((".", "~", os.sep)) or name.count("/") > 1 or path.exists()):
        return None
    if not path.is_dir():
        raise UserError(f"dataset {name!r}: {'a file, not a folder' if path.exists() else 'no such folder'}")
    if not any(path.rglob("*.*")):
        raise UserError(f"dataset {name!r}: the folder is empty")
    return path


def _class_folders(wanted: _Wanted, splits: dict[str, Path], home: Home) -> ImageSource:
    if same_split(wanted.split, list(splits)) is None:
        for other in sorted(next(iter(splits.values())).parent.iterdir()):
            if same_split(wanted.split, [re.split(r"[.-]", other.name)[0]]) is not None:
                has = "has metadata" if any(other.glob("metadata.*")) else "holds no folders of images"
                raise UserError(
                    f"{wanted.name}: {other.name} {has if other.is_dir() else 'is a file'}, and {', '.join(splits)} is "
                    "a folder of images by class: bring all splits into one of these forms"
                )
    split = find_split(wanted.name, wanted.split, list(splits))
    for folder in (each for where in splits.values() for each in (where, *where.iterdir())):
        if not home.follow_links and folder.is_dir() and not is_within(folder, home.folders):
            raise UserError(f"{wanted.name}: {folder} is a link that leads out of the data set's folder: {TO_FOLLOW}")
    class_names = class_folders(splits, split, wanted.train)
    images = list_images(splits[split], class_names)
    found = wanted.found(split, len(images))
    return FolderSource(**found, class_names=class_names, images=images[wanted.rows or slice(None)], home=home)


def _files(
    wanted: _Wanted, builder: Any, home: Home, image_column: str | None, label_column: str | None
) -> ImageSource:
    """A split of files, whose columns are those named, or those with usual names."""
    name, kind = wanted.name, _loader(builder)
    split = find_split(name, wanted.split, [str(s) for s in (builder.config.data_files or builder.info.splits or {})])
    files = [str(file) for file in builder.config.data_files[split]]
    features: Any
    if kind == "webdataset":  # datasets would have all parts of an example side by side
        features = dict.fromkeys(extensions(files))
        image_column, label_column = image_column and image_column.lower(), label_column and label_column.lower()
    else:
        features = _columns(builder, split)
    if not features:
        raise UserError(f"{name}: split {split!r} is empty")
    image = find_column(name, "image", image_column, IMAGE_COLUMNS, features)
    label = find_column(name, "label", label_column, LABEL_COLUMNS, features)
    if not _holds_encoded_images(features[image]):
        raise UserError(f"{name}: column {image!r} holds {features[image]}, not encoded images or their paths")
    if kind == "imagefolder" and isinstance(features[label], ClassLabel):
        trained = trained_classes(name, builder.config.data_files, split, wanted.train)
        if trained:
            features = datasets.Features({**features, label: ClassLabel(names=trained)})
    source: dict[str, Any] = {
        **wanted.found(split, _count(kind, files, (builder.info.splits or {}).get(split))),
        "class_names": list(features[label].names) if isinstance(features[label], ClassLabel) else None,
        "home": home,
        "rows": wanted.rows,
        "kind": kind,
        "files": files,
        "image_column": image,
        "label_column": label,
        "features": features,
    }
    if kind == "webdataset":
        return TarSource(**source, image_extensions=IMAGE_COLUMNS if image_column is None else (image,))
    return FileSource(**source)


def _builder(path: str, config: str | None, revision: str | None) -> Any:
    """`load_dataset_builder`, for kinds of files that hold images and lead nowhere else."""
    try:
        builder = load_dataset_builder(path, config, revision=revision)
    except (TypeError, KeyError, AttributeError, RecursionError, yaml.YAMLError) as error:  # of what a card says
        raise ValueError(f"its README.md or dataset_infos.json is damaged ({type(error).__name__}: {error})") from error
    except RuntimeError as error:  # a script beside the data, which `datasets` does not run
        raise ValueError(str(error)) from error
    if (kind := _loader(builder)) not in _KINDS:
        raise ValueError(f"its files are of the kind {kind!r}, which is none of {', '.join(_KINDS)}")
    return builder


def _loader(builder: Any) -> str:
    """`parquet`, `imagefolder`, `webdataset`, …: the packaged loader behind a builder."""
    return type(builder).__module__.rsplit(".", 1)[-1]


def _columns(builder: Any, split: str) -> datasets.Features | None:
    """The columns of a split and what they hold; None where it is empty. CSV says so in its rows alone."""
    try:
        stream = builder.as_streaming_dataset(split=split)
        if stream.features:
            return stream.features
        rows = list(stream.take(_LOOKED_AT))
        return datasets.Dataset.from_list(rows).features if rows else None
    except (TypeError, KeyError, AttributeError, OverflowError, IndexError) as error:
        raise ValueError(f"its columns are described wrongly ({type(error).__name__}: {error})") from error


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
        if file.lower().endswith(_TEXTS) and not is_remote(file) and os.path.getsize(file) > _MOST_TEXT:
            raise ForeignFileError(f"{file!r} has {os.path.getsize(file):,} bytes, which are read at once: use Parquet")
    if _loader(builder) == "imagefolder" and _any_archive(files):
        unpacked = os.path.realpath(datasets.config.EXTRACTED_DATASETS_PATH)
        home = replace(home, folders=(*home.folders, unpacked))
    return home


def _any_archive(files: Iterable[str]) -> bool:
    return any(file.lower().endswith(_ARCHIVES) for file in files)


def _holds_encoded_images(feature: Any) -> bool:
    if isinstance(feature, dict):
        return bool({"bytes", "path"} & set(feature))
    kind = str(getattr(feature, "dtype", ""))
    return feature is None or isinstance(feature, Image) or kind.endswith(("binary", "string", "binary_view"))


def _count(kind: str, files: list[str], info: Any) -> int | None:
    """How many examples files have: what the card says of remote ones, as each of thousands would have to be asked."""
    if any(map(is_remote, files)) and info is not None and type(info.num_examples) is int and info.num_examples >= 0:
        return info.num_examples
    if kind == "parquet":
        return sum(sum(rows_of_groups(file)) for file in files)
    if kind == "imagefolder" and not _any_archive(files):
        return sum(is_image(os.path.basename(file)) for file in files)
    return None
