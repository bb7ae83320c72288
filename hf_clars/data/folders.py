"""Image folders, `<split>/<class>/*.jpg`: listed in seconds and dealt into many shards.

`load_dataset` takes about a millisecond per file to find them (20 minutes for ImageNet, in every process) and streams
them as one shard, class after class, which neither workers nor a shuffle buffer can do anything with.
"""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from datasets import ClassLabel, Dataset, Features, Image, IterableDataset
from torchvision.datasets.folder import IMG_EXTENSIONS, make_dataset

from ..errors import UserError

_SHARDS = 1024


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


def folder_stream(images: list[tuple[str, int]], class_names: list[str]) -> IterableDataset:
    """Raw examples of all classes mixed, always in the same way, in up to 1024 shards of equal size."""
    mixed = random.Random(0).sample(images, len(images))
    shards = [mixed[start::_SHARDS] for start in range(min(_SHARDS, len(mixed)))]
    return IterableDataset.from_generator(_examples, features=_features(class_names), gen_kwargs={"shards": shards})


def folder_table(images: list[tuple[str, int]], class_names: list[str]) -> Dataset:
    """The same examples in their sorted order; the files stay where they are."""
    return Dataset.from_list(list(_examples([images])), features=_features(class_names))


def _examples(shards: list[list[tuple[str, int]]]) -> Iterator[dict[str, Any]]:
    for shard in shards:
        for path, label in shard:
            yield {"image": {"bytes": None, "path": path}, "label": label}


def _features(class_names: list[str]) -> Features:
    return Features({"image": Image(decode=False), "label": ClassLabel(names=class_names)})


def _folders(folder: Path) -> list[Path]:
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _holds_images(folder: Path) -> bool:
    return any(entry.suffix.lower() in IMG_EXTENSIONS for entry in folder.iterdir())
