"""Where a data set lies. What it says itself, in its rows, links and card, may lead to its own files and no others."""

from __future__ import annotations

import re
import stat
from dataclasses import dataclass
from os.path import normpath, realpath
from pathlib import Path

import fsspec

from ..safety.links import is_below, own_folders

TO_FOLLOW = "--follow_links true goes along"

MOST_BYTES = 2**29  # of an encoded image; a sparse file may claim any number
_HUB = re.compile(r"hf://datasets/([^/@]+(?:/[^/@]+)?)(?:@[^/]+)?(?:/|$)")


class ForeignFileError(ValueError):
    """A file that the data set may not name, or that is none, in a line."""


@dataclass(frozen=True)
class Home:
    """The places of one data set.

    Attributes:
        folders: on this machine; relative paths begin at the first one.
        repository: `owner/name` on the Hub, whose `hf://` addresses may be named.
        base: `hf://datasets/owner/name@revision`, where relative paths begin if there is no folder.
        follow_links: whether links in the folders, which whoever made the folder has made, may lead anywhere.
    """

    folders: tuple[str, ...] = ()
    repository: str | None = None
    base: str | None = None
    follow_links: bool = False

    def place(self, path: str) -> str:
        """The absolute path or the `hf://` address of a file that the data set names.

        Raises:
            ForeignFileError: anything that leads elsewhere: another path, through `..` or a link; another address or
                repository; addresses inside of others (`zip://…::…`).
        """
        if "\0" in path or "::" in path:
            raise ForeignFileError(f"{path!r} is no plain path")
        if "://" not in path and self.base is not None and not path.startswith("/"):
            path = f"{self.base}/{path}"
        if "://" in path:
            if not self.owns(path):
                raise ForeignFileError(f"{path!r} is an address outside of the data set")
            return path
        absolute = normpath(Path(self.folders[0] if self.folders else "", path))
        found = absolute if self.follow_links else realpath(absolute)
        if not any(is_below(found, folder) for folder in self.folders):
            is_link = any(is_below(absolute, folder) for folder in self.folders)
            how = (
                f"is a link that leads out of the data set's folder ({TO_FOLLOW})"
                if is_link
                else "is outside of the data set"
            )
            raise ForeignFileError(f"{path!r} {how}")
        return found

    def owns(self, address: str) -> bool:
        """Whether an address is one of the data set's repository on the Hub."""
        match = _HUB.match(address)
        return match is not None and match[1] == self.repository and ".." not in address.split("/")


def read_bytes(path: str) -> bytes:
    """The content of a regular file or of a file on the Hub.

    Raises:
        ForeignFileError: a device, a pipe, a folder; another address; more bytes than an image has.
        OSError: it cannot be read.
    """
    if "::" in path or ("://" in path and not path.startswith("hf://")):
        raise ForeignFileError(f"{path!r} is an address outside of the data set")
    if path.startswith("hf://"):
        with fsspec.open(path, "rb") as file:
            _check_size(file.size, path)
            return bytes(file.read())
    there = Path(path)
    about = there.stat()
    if not stat.S_ISREG(about.st_mode):
        raise ForeignFileError(f"{path!r} is no regular file")
    _check_size(about.st_size, path)
    return there.read_bytes()


def home_of_folder(folder: Path, follow_links: bool = False) -> Home:
    """Of a folder that the user named, wherever that name leads."""
    return Home(own_folders(folder), follow_links=follow_links)


def _check_size(size: int | None, path: str) -> None:
    if size is not None and size > MOST_BYTES:
        raise ForeignFileError(f"{path!r} has {size:,} bytes, more than an image may")
