"""Runs, read from wherever they were left. One file for each kind of source."""

import os
from collections.abc import Sequence
from pathlib import Path

from ...errors import UserError
from ..runs import ComparedRun
from .folders import read_folders
from .rows import read_or_name
from .tensorboard_events import read_event_files
from .trainings import read_result_file
from .wandb_api import read_wandb_project
from .wandb_offline import read_logs

_WANDB = "wandb:"
KINDS = (
    "wandb:entity/project?filters, a wandb/ folder or a .wandb file, an output folder of Trainer, a folder of results "
    "(hf-clars sweep, figure, tune), TensorBoard's event files, or a folder of such folders"
)


def read_sources(sources: Sequence[str]) -> tuple[list[ComparedRun], list[str]]:
    """The runs of all sources, each once, and a line `where: why` for each that cannot be read; a `UserError` if there
    is no run at all, or a source that is not there, of no known kind, or cannot be asked."""
    unreadable: list[str] = []
    paths = {source: Path(os.path.expanduser(source)) for source in sources if not source.startswith(_WANDB)}
    try:  # all folders at once: what a training left may lie in several, as in `outputs` and `wandb`
        found = read_folders([path for path in paths.values() if os.path.isdir(path)], unreadable)
    except OSError as error:
        raise UserError(f"{error.filename} cannot be read: {error.strerror or error}") from None
    for source in dict.fromkeys(sources):
        if source not in paths:
            found += read_wandb_project(source.removeprefix(_WANDB), unreadable)
        elif not os.path.exists(paths[source]):  # Path's own raises for names that are too long
            raise UserError(f"{source} does not exist. A source is {KINDS}")
        elif not os.path.isdir(paths[source]):
            told = len(unreadable)
            runs = _read_file(paths[source], unreadable)
            if not runs and told == len(unreadable):
                raise UserError(f"{source} holds no run. A source is {KINDS}")
            found += runs
    once: dict[str, ComparedRun] = {}
    for run in found:  # a run that two sources name is the same one
        once.setdefault(str(Path(run.source).resolve()) if os.path.exists(run.source) else run.source, run)
    unreadable = list(dict.fromkeys(unreadable))
    if not once:
        none = f"no run in {', '.join(sources)}" if sources else "no source was named"
        reasons = f"; {len(unreadable)} could not be read: {'; '.join(unreadable[:3])}" if unreadable else ""
        raise UserError(f"{none}{reasons}. A source is {KINDS}")
    return list(once.values()), unreadable


def _read_file(path: Path, unreadable: list[str]) -> list[ComparedRun]:
    if path.suffix == ".wandb":
        return [run for _, run in read_logs([path], unreadable)]
    if ".tfevents." in path.name:
        return read_or_name(lambda file: read_event_files([file]), path, unreadable) or []
    run = read_or_name(read_result_file, path, unreadable) if path.suffix == ".json" else None
    return [run] if run else []
