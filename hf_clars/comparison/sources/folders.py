"""All runs in folders, of whatever kind, each once."""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ...safety.links import is_within, own_folders
from ..runs import AXES, ComparedRun
from .result_files import read_result_file
from .rows import Row, Unreadable
from .tensorboard_events import event_folders, read_event_files
from .trainer_folder import is_trainer_folder, read_trainer_folder
from .wandb_offline import logs_in, read_logs

_CHECKPOINTS = r"((broken|deleted|replaced)-)*checkpoint-\d|unfinished-checkpoint$"  # that a kill leaves, too
_NO_PLACE_OF_RUNS = re.compile(rf"\.|{_CHECKPOINTS}|(offline-)?run-\d{{8}}_\d{{6}}-|latest-run$|(wandb|runs)$")


@dataclass
class _Found:
    """A run in one of its forms, found in a folder; `wandb_id` is "" if it has none, None if that is not known."""

    run: ComparedRun
    place: Path
    wandb_id: str | None = None


def read_folders(folders: Sequence[Path], unreadable: list[str]) -> list[ComparedRun]:
    """The runs in folders and in the folders in them: Trainer's output folders, W&B's logs (also those in a `wandb/`),
    TensorBoard's event files (also those in a `runs/`), results.

    A training that left several of them, in whichever of the folders, is one run, see `_joined`: W&B's is Trainer's
    where the ids are equal or, if Trainer's is not known, where each is the only one with that name of `output_dir`,
    which a result's file has, too; TensorBoard's where it lies in Trainer's folder.
    """
    places: list[Path] = []
    for folder in folders:
        inner = sorted(p for p in folder.iterdir() if p.is_dir() and not _NO_PLACE_OF_RUNS.match(p.name))
        away = [p for p in inner if not is_within(p, own_folders(folder))]
        unreadable += [f"{p}: it is a link that leads out of {folder}; name the folder itself" for p in away]
        inner = [p for p in inner if p not in away]
        closed = [p for p in inner if not os.access(p, os.R_OK | os.X_OK)]
        unreadable += [f"{p}: it may not be read" for p in closed]
        places += [folder, *(p for p in inner if p not in closed)]
    places = list({p.resolve(): p for p in reversed(places)}.values())[::-1]  # each once, as it was named first
    trainings = list(_trainings(places, unreadable))
    logs = dict.fromkeys(log for place in places for log in _own(logs_in(place), place, unreadable))
    logged = [_Found(run, Path(run.source), run_id) for run_id, run in read_logs(logs, unreadable)]
    events = list(_events(places, {t.place for t in trainings}, unreadable))
    files = [f for place in places if not is_trainer_folder(place) for f in sorted(place.glob("*.json")) if f.is_file()]
    results = [
        _Found(run, file.with_suffix("")) for file in files if (run := _read(read_result_file, file, unreadable))
    ]

    by_id = {found.wandb_id: found for found in logged}
    times = Counter(map(_output_dir, logged))
    named = Counter(training.place.resolve().name for training in (*trainings, *results))
    by_output_dir = {name: found for found in logged if times[name := _output_dir(found)] == 1}
    joined = []
    taken: set[int] = set()
    for training in (*trainings, *results):
        if training.wandb_id is None:
            same = by_output_dir.get(name) if named[name := training.place.resolve().name] == 1 else None
        else:
            same = by_id.get(training.wandb_id)
        forms = [training, *([same] if same else []), *(found for found in events if found.place == training.place)]
        joined.append(_joined([found.run for found in forms]))
        taken |= {id(found) for found in forms}
    return [*joined, *(found.run for found in (*logged, *events) if id(found) not in taken)]


def _trainings(places: list[Path], unreadable: list[str]) -> Iterator[_Found]:
    for place in places:
        if is_trainer_folder(place) and (read := _read(read_trainer_folder, place, unreadable)):
            yield _Found(read[1], place, read[0])


def _events(places: list[Path], trainings: set[Path], unreadable: list[str]) -> Iterator[_Found]:
    """Event folders of one training are one run, and no news if they cannot be read; others are as many as they say."""
    for place in places:
        folders = _own(event_folders(place), place, unreadable)
        if folders and place in trainings:
            parts = _read_each([folders], [], one_training=True)
            yield from (_Found(run, place) for run in parts[-1:])
            continue
        troubles: list[str] = []
        runs = _read_each([folders] if folders else [], troubles)
        if troubles:  # one of them at least cannot be read
            runs = _read_each([[folder] for folder in folders], unreadable)
        yield from (_Found(run, place) for run in runs)


def _read_each(groups: list[list[Path]], unreadable: list[str], one_training: bool = False) -> list[ComparedRun]:
    runs = []
    for folders in groups:
        try:
            runs += read_event_files(folders, one_training)
        except Unreadable as error:
            unreadable.append(f"{folders[0]}: {error}")
    return runs


def _own(paths: list[Path], place: Path, unreadable: list[str]) -> list[Path]:
    own = [path for path in paths if is_within(path, own_folders(place))]
    unreadable += [f"{path}: it is a link that leads out of {place}" for path in paths if path not in own]
    return own


def _read(read: Callable[[Path], Any], path: Path, unreadable: list[str]) -> Any:
    try:
        return read(path)
    except Unreadable as error:
        unreadable.append(f"{path}: {error}")
        return None


def _joined(forms: list[ComparedRun]) -> ComparedRun:
    """One run of its several forms, Trainer's or the result first, then W&B's, then TensorBoard's.

    The history is that which goes on longest, the first of them where several do, with axes that its rows lack and
    metrics that it does not have from the others'. Of settings, those of the form that has most of them go first. It
    diverged if one form says so, and else ended as the first one says that knows an end.
    """
    longest = max(forms, key=lambda run: run.history[-1]["step"] if run.history else -1)
    rows: dict[float, Row] = {row["step"]: row for row in longest.history}
    known = set(longest.metrics())
    for row in (row for run in forms for row in run.history):
        more = {key: value for key, value in row.items() if key not in known}
        if row["step"] in rows or not more.keys() <= set(AXES):
            rows[row["step"]] = more | rows.get(row["step"], {})
    ends = [run.state for run in forms]
    return replace(
        forms[0],
        history=[rows[step] for step in sorted(rows)],
        config={k: v for run in sorted(forms, key=lambda run: len(run.config)) for k, v in run.config.items()},
        state="diverged" if "diverged" in ends else next((end for end in ends if end != "running"), "running"),
        layers=max(forms, key=lambda run: len(run.layers)).layers,
    )


def _output_dir(found: _Found) -> str:
    return Path(str(found.run.config.get("output_dir", ""))).name
