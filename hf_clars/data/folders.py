"""Image folders, `<split>/<class>/*.jpg`: listed in seconds, where `load_dataset` takes a millisecond per file."""

from __future__ import annotations

import logging
import os
import zipfile
from collections.abc import Mapping, Sequence
from mimetypes import guess_type
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from torchvision.datasets.folder import IMG_EXTENSIONS

from ..errors import UserError
from .chunks import Chunks, Example
from .home import Home
from .names import is_no_data, is_split, same_split, shortened

_DATA = (".parquet", ".arrow", ".csv", ".tsv", ".json", ".jsonl", ".tar", ".zip", ".gz", ".yaml", ".py")
_EXTENSIONS = (*IMG_EXTENSIONS, ".gif", ".jfif", ".jpe", ".pbm", ".pnm")

logger = logging.getLogger(__name__)


class FileChunks(Chunks):
    """Images that are files: each a chunk, so that a pass is in no order at all. Whoever decodes one reads it."""

    def __init__(self, images: list[tuple[str, int]], home: Home) -> None:
        self._home = home
        self._paths = np.array([path for path, _ in images], np.str_)  # one block, which forked workers share
        self._labels = np.array([label for _, label in images], np.int64)
        self.sizes = np.ones(len(images), np.int64)

    def read(self, number: int) -> Sequence[Example]:
        example = _example(str(self._paths[number]), int(self._labels[number]))
        example["image"]["home"] = self._home
        return [example]

    def name(self, number: int) -> str:
        return str(self._paths[number])


def split_folders(root: Path) -> dict[str, Path]:
    """The subfolders of `root` that hold one folder of images per class, by name; empty where there is none.

    Where the folders of classes lie right in `root`, it is the split `train`: `datasets` takes names that begin with
    `train` or `test`, of classes and of images, for those of splits, and leaves out the rest.

    A folder that describes its images in a metadata file is left to `datasets`.
    """
    folders = _folders(root)
    splits = {
        folder.name: folder
        for folder in folders
        if not any(folder.glob("metadata.*")) and any(_entries(inner)[0] for inner in _folders(folder))
    }
    if splits or any(is_split(folder.name) or any(folder.glob("metadata.*")) for folder in folders):
        return splits
    if any(file.suffix.lower() in _DATA or (file.name == "README.md" and _has_card(file)) for file in root.iterdir()):
        return {}
    return {"train": root} if sum(bool(_entries(folder)[0]) for folder in folders) > 1 else {}


def class_folders(folders: dict[str, Path], split: str, train_split: str) -> list[str]:
    """Names of the classes in the order of their labels: those of the training split, so that all splits agree.

    A folder in which there is no image is no class. Where no split is the training's, a split has its own classes.

    Raises:
        UserError: the split has a class that is not trained on.
    """
    train = same_split(train_split, list(folders)) or split
    names, empty = _classes(folders[train])
    for name in _classes(folders[split])[0] if split != train else ():
        if name not in names:
            raise UserError(f"{folders[split] / name} is a class that {folders[train]} does not have")
    if empty and split == train:
        logger.warning("%d folders without images are no classes: %s", len(empty), shortened(empty))
    return names


def trained_classes(name: str, files: Mapping[str, Sequence[Any]], split: str, train_split: str) -> list[str]:
    """As `class_folders`, of images that `datasets` has found, wherever they lie, in zip files too; empty if unknown.

    Raises:
        UserError: the split has a class that is not trained on.
    """
    train = same_split(train_split, list(files)) or split
    names = _names_of_folders(files[train])
    further = [each for each in _names_of_folders(files[split]) if each not in names]
    if names and further:
        raise UserError(f"{name}: split {split!r} has classes that {train!r} does not have: {shortened(further)}")
    return names


def list_images(folder: Path, class_names: list[str]) -> list[tuple[str, int]]:
    """Path and label of every image, sorted.

    The images of a class lie right in its folder, or, where none does, in folders below it. What lies below although
    there are images above it (thumbnails, masks, copies) is left out, and said.

    Raises:
        UserError: a name that is no text.
    """
    images, left_out, unknown = [], [], []
    for label, name in enumerate(class_names):
        if (folder / name).is_dir():
            own, further, others = _entries(folder / name)
            below = _images_below(further)
            images += [(path, label) for path in own or below]
            left_out += below if own else []
            unknown += [path for path in others if (guess_type(path)[0] or "").startswith("image/")]
    for path, _ in images:
        try:
            path.encode()
        except UnicodeEncodeError:  # tables have text alone
            raise UserError(f"{path}: its name is not UTF-8: rename it") from None
    if left_out:
        logger.warning(
            "%d images in folders beside the images of a class are left out: %s", len(left_out), shortened(left_out)
        )
    if unknown:
        logger.warning("%d images of formats that are not read are left out: %s", len(unknown), shortened(unknown))
    return images


def _has_card(readme: Path) -> bool:
    """Whether it begins as one that describes a data set; a link, which may lead anywhere, is left to `check_card`."""
    if readme.is_symlink() or not readme.is_file():
        return True
    with readme.open("rb") as file:
        return file.read(100).removeprefix(b"\xef\xbb\xbf").lstrip().startswith(b"---")


def is_image(name: str) -> bool:
    """Whether this is what an image's file is called."""
    return name.lower().endswith(_EXTENSIONS) and not is_no_data(name)


def folder_table(images: list[tuple[str, int]], class_names: list[str]) -> Dataset:
    """All images in their sorted order; the files stay where they are."""
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=class_names)})
    return Dataset.from_list([_example(path, label) for path, label in images], features=features)


def _example(path: str, label: int) -> Example:
    return {"image": {"bytes": None, "path": path}, "label": label}


def _names_of_folders(files: Sequence[Any]) -> list[str]:
    paths: list[str] = []
    for file in map(str, files):
        if zipfile.is_zipfile(file):
            with zipfile.ZipFile(file) as archive:
                paths += archive.namelist()
        else:
            paths.append(file)
    return sorted({path.name for path in (PurePosixPath(p).parent for p in paths if is_image(PurePosixPath(p).name))})


def _folders(folder: str | Path) -> list[Path]:
    return [Path(path) for path in _entries(folder)[1]]


def _classes(folder: Path) -> tuple[list[str], list[str]]:
    """Names of the folders that hold images, and of those that do not."""
    names: tuple[list[str], list[str]] = ([], [])
    for inner in _folders(folder):
        images, further, _ = _entries(inner)
        names[not (images or _images_below(further))].append(inner.name)
    return names


def _images_below(folders: list[str]) -> list[str]:
    images = []
    for folder in folders:
        if not os.path.islink(folder):  # which may lead back up
            own, further, _ = _entries(folder)
            images += own + _images_below(further)
    return images


def _entries(folder: str | Path) -> tuple[list[str], list[str], list[str]]:
    """Paths of the images, of the folders and of the other files in a folder, sorted."""
    images: list[str] = []
    folders: list[str] = []
    others: list[str] = []
    with os.scandir(folder) as entries:
        for entry in entries:
            if not is_no_data(entry.name):
                if is_image(entry.name) and entry.is_file():
                    images.append(entry.path)
                else:
                    (folders if entry.is_dir() else others).append(entry.path)
    return sorted(images), sorted(folders), sorted(others)
