"""Files as a whole: those that strangers may have made, read; our own, written."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

MOST_BYTES = 2**29  # of JSON, with room for a log of a million rows


def read_bounded(file: Path, most: int = MOST_BYTES) -> bytes:
    """The content of a file.

    Raises:
        OSError: it cannot be read; a pipe, which may never end; more bytes, of which a sparse file claims any number.
    """
    about = file.stat()
    if not stat.S_ISREG(about.st_mode):
        raise OSError(errno.EINVAL, "it is no regular file", str(file))
    if about.st_size > most:
        raise OSError(errno.EFBIG, f"it has {about.st_size:,} bytes, more than {most:,}", str(file))
    return file.read_bytes()


def write_whole(file: Path, text: str) -> None:
    """Put a text in the place of a file: whole or, where it raises an `OSError`, not at all."""
    file.parent.mkdir(parents=True, exist_ok=True)
    beside = file.with_name(f"{file.name}.new")
    beside.write_text(text, encoding="utf-8")
    os.replace(beside, file)
