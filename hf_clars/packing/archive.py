"""A folder as one tar file, or in parts that `cat` joins; and checksums as `sha256sum` has them."""

from __future__ import annotations

import hashlib
import tarfile
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import UserError

SUMS = "SHA256SUMS"
_MOST_PARTS = 1000  # numbered with three digits, so that a shell's `*` has them in their order
_COMPRESSIONS = {".tar": "", ".tar.gz": "gz", ".tar.xz": "xz"}  # suffix → tarfile's name for it


def compression_of(path: Path) -> str | None:
    """`gz`, `xz` or nothing, of an archive's name; None for a folder's."""
    return next((how for suffix, how in _COMPRESSIONS.items() if path.name.endswith(suffix)), None)


def stem_of(path: Path) -> str:
    """The name without the suffix of an archive."""
    suffix = next((suffix for suffix in _COMPRESSIONS if path.name.endswith(suffix)), "")
    return path.name.removesuffix(suffix)


def write_sums(folder: Path, name: str = SUMS) -> None:
    """`<sha256>  <path in the folder>` of every file, for `sha256sum --check`."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(folder).as_posix()}\n" for path in files]
    (folder / name).write_text("".join(lines))


def sha256(path: Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_archive(folder: Path, path: Path, part_bytes: int | None = None) -> list[Path]:
    """The folder as `path`, or as `path.000`, `path.001`, … of at most `part_bytes` each; returns what was written.

    The folder's name in the archive is `path`'s without its suffix. Owners are left out.

    Raises:
        UserError: more than 1,000 parts.
    """
    parts = _Parts(path, part_bytes)
    try:
        # "w|…" only ever writes on, which is all that parts can do.
        with tarfile.open(fileobj=parts, mode=f"w|{compression_of(path)}", format=tarfile.PAX_FORMAT) as archive:  # type: ignore[call-overload]
            archive.add(folder, stem_of(path), filter=_anonymous)
    finally:
        parts.close()
    return parts.written


def _anonymous(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    return entry


class _Parts:
    """A file to write to that goes on in the next one when it is full."""

    def __init__(self, path: Path, size: int | None) -> None:
        self._path, self._size = path, size
        self.written: list[Path] = []
        self._file: BinaryIO | None = None
        self._left = 0

    def write(self, data: Any) -> int:
        view = memoryview(data)
        while view:
            if self._file is None or (self._size is not None and not self._left):
                self._next()
            assert self._file is not None
            here = view if self._size is None else view[: self._left]
            self._file.write(here)
            self._left -= len(here)
            view = view[len(here) :]
        return len(data)

    def _next(self) -> None:
        self.close()
        if len(self.written) == _MOST_PARTS:
            raise UserError(f"--part_mb {(self._size or 0) / 1e6:g} makes more than {_MOST_PARTS:,} parts: choose more")
        name = self._path.name + ("" if self._size is None else f".{len(self.written):03d}")
        self.written.append(self._path.with_name(name))
        self._file, self._left = open(self.written[-1], "xb"), self._size or 0  # noqa: SIM115  # see close()

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
