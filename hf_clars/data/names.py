"""What people call things: splits, columns, and files that lie beside data without being any."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from ..errors import UserError

IMAGE_COLUMNS = ("image", "img", "jpg", "jpeg", "png", "webp", "gif", "bmp", "tif", "tiff")
LABEL_COLUMNS = ("label", "labels", "fine_label", "cls")

# Each group is one split in the words of different people; the first word of a group stands for all of it.
_SAME_SPLIT = (("train", "training"), ("validation", "val", "valid", "dev", "test", "testing"))
_NAMED = 3
_NO_DATA = ("__macosx", "@eadir", "lost+found", "$recycle.bin", "system volume information", "thumbs.db", "desktop.ini")


def is_no_data(name: str) -> bool:
    """Whether a file or folder of this name is what systems and editors leave behind: `._1.jpg`, `.DS_Store`, …"""
    return name.startswith(".") or name.lower() in _NO_DATA


def shortened(names: Sequence[str]) -> str:
    """The first of many names, for a message."""
    return ", ".join(names[:_NAMED]) + (", …" if len(names) > _NAMED else "")


def split_and_rows(split: str) -> tuple[str, slice | None]:
    """`train[:45000]` → `train` and the rows meant."""
    match = re.fullmatch(r"([^\[\]]+)\[(\d*):(\d*)\]", split)
    if match is None:
        if "[" in split:
            raise UserError(f"split {split!r} is not of the form NAME, NAME[FROM:TO], NAME[FROM:] or NAME[:TO]")
        return split, None
    name, start, stop = match.groups()
    return name, slice(int(start) if start else None, int(stop) if stop else None)


def is_split(name: str) -> bool:
    """Whether this is what people call a split."""
    return any(name.lower() in words for words in _SAME_SPLIT)


def same_split(split: str, existing: Sequence[str]) -> str | None:
    """Of the existing splits the one meant: the name itself, or, for `train` and `validation`, what stands for it."""
    if split in existing:
        return split
    by_word = {name.lower(): name for name in reversed(existing)}
    for words in _SAME_SPLIT:
        if split == words[0]:
            return next((by_word[word] for word in words if word in by_word), None)
    return None


def find_split(name: str, split: str, existing: Sequence[str]) -> str:
    """`same_split`.

    Raises:
        UserError: there is none.
    """
    found = same_split(split, existing)
    if found is None:
        raise UserError(f"{name} has no split {split!r}: it has {', '.join(existing)}")
    return found


def find_column(name: str, what: str, given: str | None, usual: tuple[str, ...], existing: Iterable[str]) -> str:
    """The column that the user named, or the first with a usual name.

    Raises:
        UserError: there is none.
    """
    columns = list(existing)
    if given is not None:
        if given not in columns:
            raise UserError(f"{what}_column={given!r}: {name} has no such column; it has {', '.join(columns)}")
        return given
    for column in usual:
        if column in columns:
            return column
    raise UserError(
        f"{name} has no column that looks like the {what}: it has {', '.join(columns)}; name it with --{what}_column"
    )
