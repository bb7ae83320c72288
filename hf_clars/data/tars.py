"""WebDataset tars: which members make an example, and where examples lie."""

from __future__ import annotations

import io
import json
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import fsspec
import numpy as np

from ..errors import UserError
from .chunks import Chunks, Example, is_remote

_EXAMPLES = 64
_AT_ONCE = 16


@dataclass(frozen=True)
class _Part:
    """Consecutive examples of a tar: bytes `start` to `end` of it (None: to its end), which are a tar themselves."""

    file: str
    start: int
    end: int | None
    examples: int


class TarChunks(Chunks):
    """Consecutive examples of WebDataset tars, whose members `name.jpg` and `name.cls` belong together.

    Tars on this machine are looked through once for where examples begin, which reads their headers alone. Those
    elsewhere are read as a whole; how many examples they have must stand in a `_info.json` beside them, as the tars
    that timm publishes have it (`{"splits": {name: {"filenames": […], "shard_lengths": […]}}}`).

    Args:
        files: paths or addresses that fsspec opens.
        image, label: the members' extensions.

    Raises:
        UserError: tars elsewhere without that file.
    """

    def __init__(self, files: Sequence[str], image: str, label: str) -> None:
        self._members = (image, label)
        remote = [file for file in files if is_remote(file)]
        lengths = _published_lengths(remote) if remote else {}
        with ThreadPoolExecutor(_AT_ONCE) as pool:
            scanned = pool.map(lambda f: [_Part(f, 0, None, lengths[f])] if f in lengths else _scan(f, image), files)
            self._parts = [part for parts in scanned for part in parts]
        self.sizes = np.array([part.examples for part in self._parts], np.int64)

    def read(self, number: int) -> Sequence[Example]:
        part = self._parts[number]
        with fsspec.open(part.file, "rb") as opened:
            opened.seek(part.start)
            data = opened.read() if part.end is None else opened.read(part.end - part.start)
        examples = list(self._examples(data))
        if len(examples) != part.examples:
            raise ValueError(f"{part.file} has {len(examples)} examples where there should be {part.examples}")
        return examples

    def name(self, number: int) -> str:
        part = self._parts[number]
        return f"{part.file} from byte {part.start} on"

    def _may_pass(self, number: int, error: Exception) -> bool:
        return is_remote(self._parts[number].file) and not isinstance(error, (FileNotFoundError, PermissionError))

    def _examples(self, data: bytes) -> Iterator[Example]:
        image, label = self._members
        found: dict[str, dict[str, Any]] = {}
        with tarfile.open(fileobj=io.BytesIO(data), mode="r:") as tar:
            for member in tar:
                name, extension = _split(member.name)
                if member.isfile() and extension in (image, label):
                    content = tar.extractfile(member)
                    assert content is not None
                    found.setdefault(name, {})[extension] = (member.name, content.read())
        for parts in found.values():
            if image in parts:
                number = parts[label][1].decode(errors="replace").strip() if label in parts else None
                yield {"image": {"bytes": parts[image][1], "path": parts[image][0]}, "label": number}


def _scan(file: str, image: str) -> list[_Part]:
    """Parts of at most 64 examples. An example begins with the first member of its name."""
    starts: list[int] = []
    has_image: list[bool] = []
    names: dict[str, int] = {}
    with fsspec.open(file, "rb") as opened, tarfile.open(fileobj=opened, mode="r:") as tar:
        for member in tar:
            if not member.isfile():
                continue
            name, extension = _split(member.name)
            if name not in names:
                names[name] = len(starts)
                starts.append(member.offset)
                has_image.append(False)
            has_image[names[name]] |= extension == image
    bounds: list[int | None] = [*starts[::_EXAMPLES], None]
    counts = [sum(has_image[i : i + _EXAMPLES]) for i in range(0, len(starts), _EXAMPLES)]
    return [_Part(file, a, b, n) for a, b, n in zip(starts[::_EXAMPLES], bounds[1:], counts, strict=True)]


def _split(member: str) -> tuple[str, str]:
    """`a/b/name.seg.jpg` is part `seg.jpg` of example `a/b/name`."""
    folder, _, base = member.rpartition("/")
    name, _, extension = base.partition(".")
    return f"{folder}/{name}", extension.lower()


def _published_lengths(files: Sequence[str]) -> dict[str, int]:
    folder = files[0].rpartition("/")[0]
    try:
        with fsspec.open(f"{folder}/_info.json") as opened:
            splits = json.load(opened)["splits"]
        lengths = {
            name: length
            for split in (splits.values() if isinstance(splits, dict) else splits)
            for name, length in zip(split["filenames"], split["shard_lengths"], strict=True)
        }
        return {file: int(lengths[file.rpartition("/")[2]]) for file in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(
            f"{folder}: tar files that are not on this machine need an _info.json that says how many examples each has "
            f"({type(error).__name__}: {' '.join(str(error).split())}); download them, or use Parquet"
        ) from error
