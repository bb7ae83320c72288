"""Image folders, `<split>/<class>/*.jpg`: listed in seconds, where `load_dataset` takes a millisecond per file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from datasets import ClassLabel, Dataset, Features, Image
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ..errors import UserError
from .chunks import Chunks, Example
from .home import Home


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

    A folder that describes its images in a metadata file is left to `datasets`.
    """
    return {
        folder.name: folder
        for folder in _folders(root)
        if not any(folder.glob("metadata.*")) and any(_holds_images(inner) for inner in _folders(folder))
    }


def class_folders(folders: dict[str, Path], split: str) -> list[str]:
    """Class names in the order of their labels: those of `train` where there is one, so that all splits agree.

    Raises:
        UserError: the split has a class that is not trained on.
    """
    names = [folder.name for folder in _folders(folders.get("train", folders[split]))]
    for folder in _folders(folders[split]):
        if folder.name not in names:
            raise UserError(f"{folder} is a class that {folders['train']} does not have")
    return names


def list_images(folder: Path, class_names: list[str]) -> list[tuple[str, int]]:
    """Path and label of every image, sorted."""
    labels = {name: label for label, name in enumerate(class_names)}
    return make_dataset(str(folder), labels, extensions=IMG_EXTENSIONS, allow_empty=True)


def folder_table(images: list[tuple[str, int]], class_names: list[str]) -> Dataset:
    """All images in their sorted order; the files stay where they are."""
    features = Features({"image": Image(decode=False), "label": ClassLabel(names=class_names)})
    return Dataset.from_list([_example(path, label) for path, label in images], features=features)


def _example(path: str, label: int) -> Example:
    return {"image": {"bytes": None, "path": path}, "label": label}


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMG_EXTENSIONS for entry in folder.iterdir())
