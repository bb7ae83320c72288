"""Runs, read from wherever they were left. One file for each kind of source."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..runs import ComparedRun
from .folders import read_folders
from .result_files import read_result_file
from .rows import Unreadable
from .tensorboard_events import read_event_files
from .trackio_store import read_trackio_project
from .wandb_api import read_wandb_project
from .wandb_offline import read_logs

__all__ = ["KINDS", "read_sources"]

_NO_PATHS = ("wandb:", "trackio:")
KINDS = (
    "wandb:entity/project?filters, trackio:project, a wandb/ folder or a .wandb file, an output folder of Trainer, a "
    "folder of results (hf-clars sweep, figure, tune), TensorBoard's event files, or a folder of such folders"
)


def read_sources(sources: Sequence[str]) -> tuple[list[ComparedRun], list[str]]:
    """The runs of all sources, each once, and a line `where: why` for each that cannot be read.

    Raises:
        UserError: a source that is not there, is of no known kind or cannot be asked, or no run at all.
    """
    unreadable: list[str] = []
    folders = [source for source in dict.fromkeys(sources) if _is_folder(source)]
    found = _read_folders(folders, unreadable)
    for source in dict.fromkeys(sources):
        if source not in folders:
            found += _read_other(source, unreadable)
    runs: dict[str, ComparedRun] = {}
    for run in found:
        local = os.path.exists(run.source)  # a run that two sources name is the same one
        runs.setdefault(str(Path(run.source).resolve()) if local else run.source, run)
    unreadable = list(dict.fromkeys(unreadable))
    if not runs:
        none = f"no run in {', '.join(sources)}" if sources else "no source was named"
        reasons = f"; {len(unreadable)} could not be read: {'; '.join(unreadable[:3])}" if unreadable else ""
        raise UserError(f"{none}{reasons}. A source is {KINDS}")
    return list(runs.values()), unreadable


def _is_folder(source: str) -> bool:
    return not source.startswith(_NO_PATHS) and os.path.isdir(_path(source))


def _path(source: str) -> Path:
    return Path(os.path.expanduser(source))  # Path's own raises where there is no such user


def _read_folders(folders: Sequence[str], unreadable: list[str]) -> list[ComparedRun]:
    """All of them at once: what a training left may lie in several, as in `outputs` and `wandb`."""
    try:
        return read_folders(list(map(_path, folders)), unreadable)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror or error}") from None


def _read_other(source: str, unreadable: list[str]) -> list[ComparedRun]:
    kind, colon, rest = source.partition(":")
    path = _path(source)
    if colon and kind == "wandb":
        runs, lines = read_wandb_project(rest)
        unreadable += lines
        return runs
    if colon and kind == "trackio":
        return read_trackio_project(rest)
    if not os.path.exists(path):  # Path's own raises for names that are too long
        raise UserError(f"{source} does not exist. A source is {KINDS}")
    if path.suffix == ".wandb":
        return [run for _, run in read_logs([path], unreadable)]
    try:
        run = None
        if ".tfevents." in path.name:
            return read_event_files([path])
        if path.suffix == ".json":
            run = read_result_file(path)
    except Unreadable as error:
        unreadable.append(f"{path}: {error}")
        return []
    if run is None:
        raise UserError(f"{source} holds no run. A source is {KINDS}")
    return [run]
