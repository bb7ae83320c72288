"""Runs in a local `wandb/` folder: those that were kept offline, and the copies of those that were not."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from ...errors import Preempted
from ..runs import ComparedRun
from .rows import History, NothingLogged, Unreadable, end_state, flat_config, read_from
from .wandb_log import read_log

_FOLDERS = ("offline-run-*", "run-*")
_DATE = re.compile(r"run-(\d{8}_\d{6})-")


@dataclass
class _Part:
    """What one log holds: a run, or one of the parts of a run that was resumed."""

    path: Path
    id: str = ""
    project: str = ""
    name: str = ""
    config: dict[str, Any] = field(default_factory=dict)
    rows: list[dict[str, Any]] = field(default_factory=list)
    diverged: Any = False
    exit_code: int | None = None


def logs_in(folder: Path) -> list[Path]:
    """The logs of a `wandb/` folder, of a folder with one in it, or of one run's folder; in order of their date."""
    found = {*folder.glob("*.wandb")}
    for place in (folder, folder / "wandb"):
        found |= {log for pattern in _FOLDERS for log in place.glob(f"{pattern}/*.wandb")}
    return sorted((log for log in found if log.is_file()), key=_date)


def read_logs(logs: Iterable[Path], unreadable: list[str]) -> Iterator[tuple[str, ComparedRun]]:
    """W&B's id and the run, for each of them; parts of one run are put together. What cannot be read is told: a run of
    which a part is damaged is not that run, and a part without anything in it lacks nothing."""
    runs: dict[tuple[str, str], list[_Part]] = {}
    broken: dict[str, list[str]] = {}  # by the id in the file's name
    empty: dict[str, list[str]] = {}
    for log in logs:
        try:
            with read_from("the log"):
                part = _read(log)
        except Unreadable as error:
            kind = empty if isinstance(error, NothingLogged) else broken
            kind.setdefault(log.stem.removeprefix("run-"), []).append(f"{log}: {error}")
        else:
            runs.setdefault((part.project, part.id), []).append(part)
    whole = {run_id for _, run_id in runs}
    broken |= {run_id: lines + broken.get(run_id, []) for run_id, lines in empty.items() if run_id not in whole}
    for (_, run_id), parts in runs.items():
        if run_id not in broken:
            try:
                with read_from("its history"):
                    run = _run(parts)
            except Unreadable as error:
                broken[run_id] = [f"{parts[-1].path}: {error}"]
            else:
                yield run_id, run
        else:
            broken[run_id] += [f"{p.path}: not compared without the part that cannot be read" for p in parts]
    unreadable += [line for lines in broken.values() for line in lines]


def _read(log: Path) -> _Part:
    part = _Part(log)
    for record in read_log(log):
        kind = record.WhichOneof("record_type")
        if kind == "history":
            part.rows.append(_values(record.history.item))
        elif kind == "run":
            part.id, part.project, part.name = record.run.run_id, record.run.project, record.run.display_name
            part.config |= _values(record.run.config.update)
        elif kind == "config":
            part.config |= _values(record.config.update)
        elif kind == "summary":
            part.diverged = next(
                (json.loads(i.value_json) for i in record.summary.update if i.key == "diverged"), part.diverged
            )
        elif kind == "exit":
            part.exit_code = record.exit.exit_code
    if not part.id:
        raise NothingLogged("the run was cut off before anything was logged")
    return part


def _values(items: Any) -> dict[str, Any]:
    """Key → value of W&B's items; keys are one name or a path of several."""
    values: dict[str, Any] = {}
    for item, value in zip(items, json.loads(f"[{','.join(i.value_json for i in items)}]"), strict=True):
        path = item.nested_key
        if len(path) < 2:
            values[path[0] if path else item.key] = value
            continue
        *outer, name = path
        inner: Any = values
        for key in outer:
            inner = inner.setdefault(key, {}) if isinstance(inner, dict) else None
        if isinstance(inner, dict):
            inner[name] = value
    return values


def _run(parts: list[_Part]) -> ComparedRun:
    last = parts[-1]
    config = flat_config({key: value for part in parts for key, value in part.config.items()})
    history = History(config.get("total_batch_size"))
    history.add_all([row for part in parts for row in part.rows])
    rows = history.rows()
    ended = {None: "running", Preempted.EXIT_STATUS: "running", 0: "finished"}.get(last.exit_code, "failed")
    return ComparedRun(
        name=last.name or last.id,
        source=str(last.path.parent if _DATE.search(last.path.parent.resolve().name) else last.path),
        config=config,
        history=rows,
        state=end_state(ended, rows, last.diverged),
        layers=history.layers(),
    )


def _date(log: Path) -> tuple[str, str]:
    found = _DATE.search(log.parent.name)
    return (found[1] if found else "", str(log))
