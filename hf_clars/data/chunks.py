"""Examples where they lie, in chunks: what one read brings at least."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import datasets
import fsspec
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from fsspec.utils import get_protocol

from .home import Home
from .order import Ints

Example = dict[str, Any]

_ATTEMPTS = 6
_FIRST_WAIT = 1.0  # seconds, doubled each time: half a minute in all
_AT_ONCE = 16
_MOST_BYTES, _MOST_ROWS = 2**33, 2**24  # of a row group: usual ones have some 100 MB


class Chunks(ABC):
    """All examples of a split. Picklable: each worker reads with a copy of its own.

    Attributes:
        sizes: examples of each chunk, `[n]`.
    """

    sizes: Ints

    @abstractmethod
    def read(self, number: int) -> Sequence[Example]:
        """The examples `{"image": {"bytes", "path"}, "label"}` of one chunk; raises whatever its reader raises.

        An image without bytes has its `Home` beside its path, under `"home"`.
        """

    @abstractmethod
    def name(self, number: int) -> str:
        """What a user calls the chunk: its file, above all."""

    def read_patiently(self, number: int) -> Sequence[Example]:
        """`read`, tried several times with growing pauses where the trouble may pass: a busy server, a lost connection.

        Raises:
            OSError, ValueError: the trouble did not pass, or is of a kind that does not.
        """
        for attempt in range(_ATTEMPTS):
            try:
                return self.read(number)
            except Exception as error:
                gone = not self.is_far(number) or isinstance(error, (FileNotFoundError, PermissionError))
                if gone or attempt == _ATTEMPTS - 1:
                    raise
                time.sleep(_FIRST_WAIT * 2**attempt)
        raise AssertionError

    def is_far(self, number: int) -> bool:
        """Whether a chunk is read over a network, whose trouble may pass."""
        return False


class ParquetChunks(Chunks):
    """The row groups of Parquet files.

    Args:
        files: paths or addresses that fsspec opens.
        image, label: names of the two columns.
        row_groups: rows of each row group of each file, where they are known; otherwise the footers are read.
        home: where files lie that rows name in place of an image's bytes; by default they may name none.
    """

    def __init__(
        self,
        files: Sequence[str],
        image: str,
        label: str,
        row_groups: list[list[int]] | None = None,
        home: Home = Home(),  # noqa: B008  # frozen
    ) -> None:
        self.files = list(files)
        self._home = home
        self._columns = (image, label)
        if row_groups is None:
            with ThreadPoolExecutor(_AT_ONCE) as pool:
                row_groups = list(pool.map(rows_of_groups, self.files))
        self.row_groups = row_groups
        self._where = [(file, group) for file, groups in enumerate(self.row_groups) for group in range(len(groups))]
        self.sizes = np.array([rows for groups in self.row_groups for rows in groups], np.int64)
        self._metadata: dict[int, pq.FileMetaData] = {}

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_metadata": {}}

    def read(self, number: int) -> Sequence[Example]:
        file, group = self._where[number]
        with _opened(self.files[file]) as opened:
            parquet = pq.ParquetFile(opened, metadata=self._metadata.pop(file, None), pre_buffer=True)
            table = parquet.read_row_group(group, columns=list(self._columns))
            self._metadata[file] = parquet.metadata  # known for the next group, unless there was trouble
        if len(table) != self.sizes[number]:
            raise ValueError(f"it has {len(table)} rows instead of {self.sizes[number]}")
        return _Rows(table, *self._columns, self._home)

    def name(self, number: int) -> str:
        file, group = self._where[number]
        return f"row group {group} of {self.files[file]}"

    def is_far(self, number: int) -> bool:
        return is_remote(self.files[self._where[number][0]])


class TableChunks(Chunks):
    """A table of `datasets` with columns `image` and `label`, which is on disk and mapped into memory."""

    _ROWS = 64

    def __init__(self, table: datasets.Dataset) -> None:
        self._table = table
        whole, rest = divmod(len(table), self._ROWS)
        self.sizes = np.array([self._ROWS] * whole + [rest] * bool(rest), np.int64)

    def read(self, number: int) -> Sequence[Example]:
        start = number * self._ROWS
        rows = self._table[start : start + int(self.sizes[number])]
        return [{"image": image, "label": label} for image, label in zip(rows["image"], rows["label"], strict=True)]

    def name(self, number: int) -> str:
        return f"rows {number * self._ROWS} to {number * self._ROWS + int(self.sizes[number]) - 1} of the table"


class _Rows(Sequence[Example]):
    """Rows of an Arrow table as examples, made when they are asked for: a table in memory is one block."""

    def __init__(self, table: Any, image: str, label: str, home: Home) -> None:
        self._images, self._labels, self._home = table.column(image), table.column(label), home

    def __len__(self) -> int:
        return len(self._labels)

    def __getitem__(self, row: Any) -> Any:
        image = self._images[row].as_py()
        if isinstance(image, bytes):
            image = {"bytes": image}
        elif isinstance(image, str):
            image = {"path": image}
        if image is not None:
            image = {"bytes": None, "path": None, **image}
            if image["bytes"] is None:
                image["home"] = self._home
        return {"image": image, "label": self._labels[row].as_py()}


def is_remote(file: str) -> bool:
    return get_protocol(file) not in ("file", "local", "memory")


def _opened(file: str) -> Any:
    if not is_remote(file):
        return pa.OSFile(file)
    # The block cache of fsspec would fetch what pyarrow's coalesced requests have no use for.
    return fsspec.open(file, "rb", **({"cache_type": "none"} if file.startswith("hf://") else {})).open()


def rows_of_groups(file: str) -> list[int]:
    """Rows of each row group of a Parquet file.

    Raises:
        ValueError: a group that would fill the memory, where groups are read as a whole: zeros pack well.
    """
    with fsspec.open(file, "rb") as opened:
        metadata = pq.ParquetFile(opened).metadata
    groups = [metadata.row_group(i) for i in range(metadata.num_row_groups)]
    for number, group in enumerate(groups):
        if group.total_byte_size > _MOST_BYTES or group.num_rows > _MOST_ROWS:
            raise ValueError(
                f"row group {number} of {file} unpacks to {group.total_byte_size:,} bytes in {group.num_rows:,} rows; "
                "write smaller ones"
            )
    return [group.num_rows for group in groups]
