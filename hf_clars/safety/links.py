"""Symbolic links in folders that strangers have made: where they may lead."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from os.path import realpath
from pathlib import Path

_CACHED = ("datasets--", "models--")


def own_folders(folder: Path) -> tuple[str, ...]:
    """Where links in a folder may lead: into it, and if it is a snapshot in the Hub's cache, to the files beside it."""
    real = Path(realpath(folder))
    caches = (p.parent for p in (real, *real.parents) if p.name == "snapshots" and p.parent.name.startswith(_CACHED))
    return (str(real), *(str(cache) for cache in caches if (cache / "blobs").is_dir()))


def is_within(path: str | Path, folders: Iterable[str]) -> bool:
    """Whether a path, all links followed, is in one of the folders."""
    return any(is_below(realpath(path), folder) for folder in folders)


def is_below(path: str, folder: str) -> bool:
    """The same of absolute paths as they stand."""
    return path == folder or path.startswith(folder.rstrip("/") + "/")


def first_foreign(folder: Path) -> str | None:
    """The first entry of a folder that does not belong into a copy of it, in words; None if there is none."""
    own = own_folders(folder)
    for entry in _entries(folder):
        if entry.is_symlink() and not is_within(entry, own):
            return f"{entry} is a link that leads out of the folder"
        if entry.is_symlink() and is_below(os.path.abspath(entry), realpath(entry)):
            return f"{entry} is a link to a folder that it is in"
        if not entry.is_dir() and not entry.is_file():
            return f"{entry} is {'a link to nothing' if entry.is_symlink() else 'neither a file nor a folder'}"
    return None


def _entries(folder: Path) -> Iterator[Path]:
    for root, folders, files in os.walk(folder):
        yield from (Path(root, name) for name in sorted((*folders, *files)))
