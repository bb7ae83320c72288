"""Runs in a local `wandb/` folder: those that were kept offline, and the copies of those that were not.

A log, `run-ID.wandb`, has LevelDB's format and holds W&B's protocol buffers. `wandb leet inspect --json` prints them
(the tests hold this against it), but takes a process and most of a second for each run, of which a comparison reads
hundreds, and says of a log that was cut off what it says of a damaged one; wandb has no reader in Python since 0.31.
"""

import json
import re
import struct
import zlib
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import Preempted
from ...safety.files import read_bounded
from ...trainer.records.tracking import wandb_for
from ..runs import ComparedRun
from .rows import History, NothingLogged, Unreadable, flat_config, taken_apart

_PLACES = ("*.wandb", *(f"{where}{run}/*.wandb" for where in ("", "wandb/") for run in ("offline-run-*", "run-*")))
_DATE = re.compile(r"run-(\d{8}_\d{6})-")
_ENDS = {None: "running", Preempted.EXIT_STATUS: "running", 0: "finished"}  # by exit status
_MOST_BYTES = 2**31
_BLOCK = 32768  # bytes; no chunk crosses a multiple of it
_HEADER = struct.Struct("<4sHB")  # of the file
_MAGIC = (b":W&B", 0xBEE1)
_CHUNK = struct.Struct("<IHB")  # checksum, length, kind: a whole record, or the first, a middle, the last part of one
_WHOLE, _FIRST, _MIDDLE, _LAST = 1, 2, 3, 4
_SEEDS = {kind: zlib.crc32(bytes([kind])) for kind in (_WHOLE, _FIRST, _MIDDLE, _LAST)}  # the checksum covers the kind


@dataclass
class _Part:
    """What one log holds: a run, or one of the parts of a run that was resumed."""

    path: Path
    about: Any = None  # W&B's message about the run
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    diverged: Any = False
    exit_code: int | None = None


def logs_in(folder: Path) -> list[Path]:
    """The logs of a `wandb/` folder, of a folder with one in it, or of one run's folder; in order of their date."""
    dates = {log: _DATE.search(log.parent.name) for place in _PLACES for log in folder.glob(place) if log.is_file()}
    return sorted(dates, key=lambda log: (found[1] if (found := dates[log]) else "", str(log)))


def read_logs(logs: Iterable[Path], unreadable: list[str]) -> Iterator[tuple[str, ComparedRun]]:
    """W&B's id and the run, for each of them; parts of one run are put together. What cannot be read is told: a run of
    which a part is damaged is not that run, and a part without anything in it lacks nothing."""
    runs: dict[tuple[str, str], list[_Part]] = defaultdict(list)
    broken: dict[str, list[str]] = defaultdict(list)  # by the id in the file's name
    empty: dict[str, list[str]] = defaultdict(list)
    for log in logs:
        try:
            with taken_apart(log.name):
                part = _read(log)
            runs[part.about.project, part.about.run_id].append(part)
        except Unreadable as error:
            kind = empty if isinstance(error, NothingLogged) else broken
            kind[log.stem.removeprefix("run-")].append(f"{log}: {error}")
    for run_id in empty.keys() - {run_id for _, run_id in runs}:
        broken[run_id] += empty[run_id]
    for (_, run_id), parts in runs.items():
        if run_id not in broken:
            try:
                with taken_apart("its history"):
                    run = _run(parts)
            except Unreadable as error:
                broken[run_id] = [f"{parts[-1].path}: {error}"]
            else:
                yield run_id, run
        else:
            broken[run_id] += [f"{part.path}: not compared without the part that cannot be read" for part in parts]
    unreadable += [line for run_id in sorted(broken) for line in broken[run_id]]


def _read(log: Path) -> _Part:
    part = _Part(log)
    for record in read_log(log):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            part.rows.append(_values(record.history.item))
        elif kind == "run":
            part.about = record.run
            part.config |= _values(record.run.config.update)
        elif kind == "config":
            part.config |= _values(record.config.update)
        elif kind == "summary":
            said = [item for item in record.summary.update if item.key == "diverged"]  # of hundreds, in each step
            part.diverged = _values(said).get("diverged", part.diverged)
        elif kind == "exit":
            part.exit_code = record.exit.exit_code
    if part.about is None:
        raise NothingLogged("the run was cut off before anything was logged")
    return part


def _values(items: Any) -> dict[str, Any]:
    """Key → value of W&B's items; keys are one name or a path of several."""
    values: dict[str, Any] = {}
    for item, value in zip(items, json.loads(f"[{','.join(i.value_json for i in items)}]"), strict=True):
        *outer, name = item.nested_key or [item.key]
        inner: Any = values
        for key in outer:
            inner = inner.setdefault(key, {}) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[name] = value
    return values


def _run(parts: list[_Part]) -> ComparedRun:
    last = parts[-1]
    history = History(flat_config({key: value for part in parts for key, value in part.config.items()}))
    history.add_all([row for part in parts for row in part.rows])
    source = last.path.parent if _DATE.search(last.path.parent.resolve().name) else last.path
    name = last.about.display_name or last.about.run_id
    return history.run(name, source, _ENDS.get(last.exit_code, "failed"), last.diverged)


def read_log(path: Path) -> Iterator[Any]:
    """The records of a log, W&B's `Record`, in order; those until its end where it was cut off (it ends amid a record,
    or in zeros). Raises `NothingLogged` where there is not even a beginning, `Unreadable` where it is damaged."""
    wandb_for(str(path))
    from google.protobuf.message import DecodeError
    from wandb.proto import wandb_internal_pb2  # of the installed protobuf's version, which type checkers do not see

    content = read_bounded(path, _MOST_BYTES)
    if len(content) < _HEADER.size and _HEADER.pack(*_MAGIC, 0).startswith(content):
        raise NothingLogged("the file is empty: the run was cut off before anything was logged")
    if len(content) < _HEADER.size or _HEADER.unpack_from(content)[:2] != _MAGIC:
        raise Unreadable("not a W&B log: it does not begin as one")
    for data in _payloads(content):
        record: Any = wandb_internal_pb2.Record()  # type: ignore[attr-defined]
        try:
            record.ParseFromString(data)
        except DecodeError:
            raise Unreadable("damaged: a record that is none of W&B's") from None
        yield record


def _payloads(content: bytes) -> Iterator[bytes]:
    position = _HEADER.size
    parts: list[bytes] = []
    while True:
        if (left_in_block := _BLOCK - position % _BLOCK) < _CHUNK.size:
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
