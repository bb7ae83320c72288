"""WebDataset tars: which members make an example, and where examples lie."""

from __future__ import annotations

import io
import itertools
import json
import os
import tarfile
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import IO, Any

import fsspec
import numpy as np
from datasets import Dataset, Features, Image, Value
from fsspec.core import url_to_fs

from ..errors import UserError
from .chunks import Chunks, Example, is_remote
from .home import MOST_BYTES
from .names import is_no_data

_EXAMPLES = 64
_LOOKED_AT = 64  # members of a tar that is not on this machine, to find out what members there are
_AT_ONCE = 16
_LONGEST_HEADER = 2**20


@dataclass(frozen=True)
class _Part:
    """Examples of a tar: ranges of its bytes (to its end: None) that are a tar themselves, one after the other."""

    file: str
    ranges: tuple[tuple[int, int | None], ...]
    examples: int


class TarChunks(Chunks):
    """Examples of WebDataset tars, whose members `name.jpg` and `name.cls` belong together, wherever they stand.

    `name` may have dots: `x.1.jpg` is an image of its own, unless it has no label and there is `x.jpg`, of which it is
    a further part then. Extensions are the same in capitals. What systems leave behind (`._1.jpg`) is no member.

    Tars on this machine are looked through once for their members, which reads their headers alone. Those elsewhere
    are read as a whole; how many examples they have must stand in a `_info.json` beside them, as the tars that timm
    publishes have it (`{"splits": {name: {"filenames": […], "shard_lengths": […]}}}`).

    Args:
        files: paths or addresses that fsspec opens.
        images: extensions of images; of several images of one name that of the first extension counts.
        label: extension of labels.

    Raises:
        UserError: tars elsewhere without that file.
    """

    def __init__(self, files: Sequence[str], images: Sequence[str], label: str) -> None:
        self._images, self._label = tuple(images), label
        remote = [file for file in files if is_remote(file)]
        lengths = _published_lengths(remote) if remote else {}

        def parts_of(file: str) -> list[_Part]:
            return [_Part(file, ((0, None),), lengths[file])] if file in lengths else self._scan(file)

        with ThreadPoolExecutor(_AT_ONCE) as pool:
            self._parts = [part for parts in pool.map(parts_of, files) for part in parts]
        self.sizes = np.array([part.examples for part in self._parts], np.int64)

    def read(self, number: int) -> Sequence[Example]:
        part = self._parts[number]
        data = io.BytesIO()
        with fsspec.open(part.file, "rb") as opened:
            for start, end in part.ranges:
                opened.seek(start)
                data.write(opened.read() if end is None else opened.read(end - start))
        data.seek(0)
        examples = self._examples(data)
        if len(examples) != part.examples:
            raise ValueError(f"{part.file} has {len(examples)} examples where there should be {part.examples}")
        return examples

    def name(self, number: int) -> str:
        part = self._parts[number]
        return f"{part.file} from byte {part.ranges[0][0]} on"

    def is_far(self, number: int) -> bool:
        return is_remote(self._parts[number].file)

    def _scan(self, file: str) -> list[_Part]:
        """Parts of at most 64 examples, in the order in which their first members stand."""
        ranges: dict[str, tuple[int, int]] = {}
        with fsspec.open(file, "rb") as opened, tarfile.open(fileobj=_headers(opened), mode="r:") as tar:
            for member in tar:
                if member.isfile():
                    of_example = _extension(member.name, (*self._images, self._label))
                    if of_example and member.size > MOST_BYTES and not member.issparse():  # it would fill the memory
                        raise ValueError(f"member {member.name!r} has {member.size:,} bytes, more than an image may")
                    ranges[member.name] = (member.offset, tar.offset)
        examples = [sorted(ranges[name] for name in pair if name) for pair in self._pairs(ranges)]
        examples.sort()
        some = [examples[i : i + _EXAMPLES] for i in range(0, len(examples), _EXAMPLES)]
        return [_Part(file, _joined(r for example in part for r in example), len(part)) for part in some]

    def _examples(self, file: IO[bytes]) -> list[Example]:
        contents: dict[str, bytes] = {}
        with tarfile.open(fileobj=file, mode="r:") as tar:
            for member in tar:
                if member.isfile() and _extension(member.name, (*self._images, self._label)):
                    content = tar.extractfile(member)
                    assert content is not None
                    # Holes are zeros of any number, so that a small tar could fill the memory; they are no image.
                    is_whole = not member.issparse() and member.size <= MOST_BYTES
                    contents[member.name] = content.read() if is_whole else b""
        return [
            {
                "image": {"bytes": contents[image], "path": image},
                "label": contents[label].decode(errors="replace").strip() if label else None,
            }
            for image, label in self._pairs(contents)
        ]

    def _pairs(self, members: Iterable[str]) -> list[tuple[str, str | None]]:
        """The members that are the image and the label of each example."""
        found: dict[str, dict[str, str]] = {}
        for member in members:
            extension = _extension(member, (*self._images, self._label))
            if extension and not any(map(_left_behind, member.split("/"))):
                found.setdefault(member[: -len(extension) - 1], {})[extension] = member
        images = {key: next((parts[e] for e in self._images if e in parts), None) for key, parts in found.items()}
        return [
            (image, found[key].get(self._label))
            for key, image in images.items()
            if image and (self._label in found[key] or not any(images.get(whole) for whole in _without_dots(key)))
        ]


def extensions(files: Sequence[str]) -> list[str]:
    """Of the members of the first tar that has any: what stands behind the last dot, and behind the first."""
    for file in files:
        if not file.lower().endswith(".tar"):
            raise UserError(f"{file}: tars that are compressed are not read: decompress it")
        with fsspec.open(file, "rb") as opened, tarfile.open(fileobj=_headers(opened), mode="r:") as tar:
            members = itertools.islice(tar, _LOOKED_AT) if is_remote(file) else tar
            bases = [member.name.rpartition("/")[2].lower() for member in members if member.isfile()]
        found = [e for base in bases if not is_no_data(base) for e in (base.rpartition(".")[2], base.partition(".")[2])]
        if found:
            return list(dict.fromkeys(found))
    return []


def stored_examples(chunks: Chunks, files: Sequence[str]) -> Dataset:
    """All examples as a table in the cache of `datasets`, which is used again while the tars are what they were."""
    state = [(str(file), *_stamp(str(file))) for file in files]
    features = Features({"image": Image(decode=False), "label": Value("string")})
    return Dataset.from_generator(_examples_of, features, gen_kwargs={"chunks": chunks, "state": (state,)})


def _examples_of(chunks: Chunks, state: Any) -> Iterator[Example]:
    for number in range(len(chunks.sizes)):
        yield from chunks.read_patiently(number)


def _stamp(file: str) -> tuple[int, int]:
    if is_remote(file):
        return (0, 0)
    there = os.stat(url_to_fs(file)[1])
    return there.st_size, there.st_mtime_ns


def _headers(file: Any) -> Any:
    """A file to read headers from."""
    return _Headers(file)


class _Headers:
    """A tar of which headers alone are read: one that claims to have megabytes would be read into memory."""

    def __init__(self, file: Any) -> None:
        self._file = file
        self.seek, self.tell = file.seek, file.tell

    def read(self, size: int) -> bytes:
        if size > _LONGEST_HEADER:
            raise tarfile.ReadError(f"a header of {size:,} bytes")
        return self._file.read(size)


def _extension(member: str, known: Sequence[str]) -> str:
    """Which of the extensions a member has; empty if none."""
    name = member.lower()
    return next((extension for extension in known if name.endswith(f".{extension}")), "")


def _left_behind(name: str) -> bool:
    return name != "." and is_no_data(name)  # tars made of `.` have members `./1.jpg`


def _without_dots(key: str) -> list[str]:
    """`a/b.c.d` → `a/b` and `a/b.c`."""
    base = key.rpartition("/")[2]
    return [key[: len(key) - len(base) + place] for place, letter in enumerate(base) if letter == "."]


def _joined(ranges: Iterable[tuple[int, int]]) -> tuple[tuple[int, int | None], ...]:
    """The same in ascending order, as few as possible."""
    joined: list[tuple[int, int]] = []
    for start, end in sorted(ranges):
        if joined and joined[-1][1] == start:
            start = joined.pop()[0]
        joined.append((start, end))
    return tuple(joined)


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
