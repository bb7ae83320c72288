"""Reading ahead: the windows of an order, from chunks that may be gone."""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from weakref import WeakValueDictionary

from ..errors import UserError
from ..safety.texts import plain_records
from .chunks import Chunks, Example
from .order import Order

_STAND_INS = 8  # chunks that are tried in place of one that cannot be read

logger = logging.getLogger(__name__)
logger.addFilter(plain_records)


class WindowReader:
    """Examples by their position; windows in memory, and the next ones under way, of each lane by epoch and number."""

    def __init__(self, chunks: Chunks) -> None:
        self.process = os.getpid()
        self._chunks = chunks
        self._lanes: dict[int, dict[tuple[int, int], _Window | Future[_Window]]] = {}
        self._shared: WeakValueDictionary[int, _Chunk] = WeakValueDictionary()  # chunks that windows have in common
        self._pool = ThreadPoolExecutor(1)

    def example(self, order: Order, epoch: int, position: int) -> Example:
        lane, number, place = order.place(position)
        this, following = (epoch, number), (epoch, number + 1)
        known = self._lanes.setdefault(lane, {})
        window = known.get(this) or self._load(order, lane, this)
        known[this] = window = window.result() if isinstance(window, Future) else window
        if 2 * place >= len(window) and number + 1 < order.windows(lane) and following not in known:
            known[following] = self._pool.submit(self._load, order, lane, following)
        for former in known.keys() - {this, following}:
            del known[former]
        chunk, row = window[place]
        return chunk.example(row)

    def _load(self, order: Order, lane: int, key: tuple[int, int]) -> _Window:
        window = order.window_at(key[0], lane, key[1])
        chunks = {number: self._chunk(number) for number in sorted(set(window.chunks.tolist()))}
        return [(chunks[number], row) for number, row in zip(window.chunks.tolist(), window.rows.tolist(), strict=True)]

    def _chunk(self, number: int) -> _Chunk:
        chunk = self._shared.get(number)
        if chunk is None:
            chunk = self._shared[number] = _Chunk(self._chunks, number)
        return chunk


class _Chunk:
    """A chunk's examples. Where it cannot be read, those of one after it stand in, marked as such."""

    def __init__(self, chunks: Chunks, number: int) -> None:
        self._mark: dict[str, str] = {}
        try:
            self._examples = chunks.read_patiently(number)
        except Exception as error:  # a reader's errors are of many kinds, and one chunk does not end a run
            trouble = f"{type(error).__name__}: {' '.join(str(error).split())}"
            logger.warning(
                "cannot read %s: its %d examples are skipped (%s)", chunks.name(number), chunks.sizes[number], trouble
            )
            self._examples = _stand_in(chunks, number)
            self._mark = {"skip": "shard"}

    def example(self, row: int) -> Example:
        return {**self._examples[row % len(self._examples)], **self._mark}


_Window = list[tuple[_Chunk, int]]  # rows of chunks


def _stand_in(chunks: Chunks, number: int) -> Sequence[Example]:
    for step in range(1, _STAND_INS + 1):
        other = (number + step) % len(chunks.sizes)
        if chunks.sizes[other]:
            with contextlib.suppress(Exception):
                return chunks.read(other)
    raise UserError(f"{chunks.name(number)} cannot be read, nor can the {_STAND_INS} chunks after it")
