"""W&B's transaction log, `run-ID.wandb`: LevelDB's log format, holding W&B's own protocol buffers.

`wandb leet inspect --json` prints the same records and is what the tests hold this against. It takes one process and
40 to 70 ms of a core for each run, of which a comparison reads hundreds, and exists since wandb 0.31; the Python
reader that older versions had (`wandb.sdk.internal.datastore`) is gone since then. The messages are in all of them.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ...trainer.records.tracking import wandb_for
from .rows import NothingLogged, Unreadable

_BLOCK = 32768  # bytes; no chunk crosses a multiple of it
_HEADER = struct.Struct("<4sHB")  # of the file
_MAGIC = (b":W&B", 0xBEE1)
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind: a whole record, or the first, a middle, the last part of one
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = {kind: zlib.crc32(bytes([kind])) for kind in (_WHOLE, _FIRST, _MIDDLE, _LAST)}  # the checksum covers the kind


def read_log(path: Path) -> Iterator[Any]:
    """The records of a log, `wandb.proto.wandb_internal_pb2.Record`, in order.

    A log that ends amid a record, or in zeros, is one of a run that was cut off: its records until there are given.

    Raises:
        NothingLogged: not even the beginning.
        Unreadable: no log at all, or one that is damaged before its end.
    """
    wandb_for(str(path))
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2  # of the installed protobuf's version, which type checkers do not see

    new_record: Any = wandb_internal_pb2.Record  # type: ignore[attr-defined]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    if len(content) < _HEADER.size and _HEADER.pack(*_MAGIC, 0).startswith(content):
        raise NothingLogged("the file is empty: the run was cut off before anything was logged")
    if len(content) < _HEADER.size or _HEADER.unpack_from(content)[:2] != _MAGIC:
        raise Unreadable("not a W&B log: it does not begin as one")
    for data in _payloads(content):
        record = new_record()
        try:
            record.ParseFromString(data)
        except DecodeError:
            raise Unreadable("damaged: a record that is none of W&B's") from None
        yield record


def _payloads(content: bytes) -> Iterator[bytes]:
    position = _HEADER.size
    parts: list[bytes] = []
    while True:
        left_in_block = _BLOCK - position % _BLOCK
        if left_in_block < _CHUNK.size:
            position += left_in_block
            left_in_block = _BLOCK
        if position + _CHUNK.size > len(content):
            return
        checksum, length, kind = _CHUNK.unpack_from(content, position)
        start = position + _CHUNK.size
        data = content[start : start + length]
        whole = kind in _SEEDS and _CHUNK.size + length <= left_in_block
        if whole and len(data) < length:
            return  # cut off
        if not whole or zlib.crc32(data, _SEEDS[kind]) != checksum:
            if not any(content[start + length :]):
                return  # cut off, too: nothing follows, or zeros that a file system had set aside
            raise Unreadable(f"damaged at byte {position} of {len(content)}")
        parts = [data] if kind in (_WHOLE, _FIRST) else [*parts, data]
        if kind in (_WHOLE, _LAST):
            yield b"".join(parts)
        position = start + length
