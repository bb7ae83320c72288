"""All runs in folders, of whatever kind, each once."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pandas import DataFrame

from ...safety.links import is_within, own_folders
from ..runs import AXES, ComparedRun
from .rows import Unreadable, read_or_name
from .tensorboard_events import event_folders, read_event_files
from .trainings import is_trainer_folder, read_result_file, read_trainer_folder
from .wandb_offline import logs_in, read_logs

_CHECKPOINTS = r"((broken|deleted|replaced)-)*checkpoint-\d|unfinished-checkpoint$"  # that a kill leaves, too
_NO_PLACE_OF_RUNS = re.compile(rf"\.|{_CHECKPOINTS}|(offline-)?run-\d{{8}}_\d{{6}}-|latest-run$|(wandb|runs)$")


class _Form(NamedTuple):
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
    places = _places(folders, unreadable)
    trained = [place for place in places if is_trainer_folder(place)]
    read = [(place, read_or_name(read_trainer_folder, place, unreadable)) for place in trained]
    trainings = [_Form(found[1], place, found[0]) for place, found in read if found]
    logs = dict.fromkeys(log for place in places for log in _own(logs_in(place), place, unreadable))
    logged = [_Form(run, Path(run.source), run_id) for run_id, run in read_logs(logs, unreadable)]
    events = list(_events(places, {training.place for training in trainings}, unreadable))
    for file in (file for place in places if place not in trained for file in sorted(place.glob("*.json"))):
        if file.is_file() and (run := read_or_name(read_result_file, file, unreadable)):
            trainings.append(_Form(run, file.with_suffix("")))

    owners = Counter(training.place.resolve().name for training in trainings)
    folder_of = {form: Path(str(form.run.config.get("output_dir", ""))).name for form in logged}
    times = Counter(folder_of.values())
    by_name = {name: form for form, name in folder_of.items() if times[name] == owners[name] == 1}
    by_id = {form.wandb_id: form for form in logged}
    runs, taken = [], []
    for training in trainings:
        name, wandb_id = training.place.resolve().name, training.wandb_id
        log = by_name.get(name) if wandb_id is None else by_id.get(wandb_id)
        forms = [training, *([log] if log else []), *(form for form in events if form.place == training.place)]
        runs.append(_joined([form.run for form in forms]))
        taken += forms
    return [*runs, *(form.run for form in (*logged, *events) if form not in taken)]


def _places(folders: Sequence[Path], unreadable: list[str]) -> list[Path]:
    """The folders and those in them that may hold runs, each once, as it was named first."""
    places: dict[Path, Path] = {}
    for folder in folders:
        places.setdefault(folder.resolve(), folder)
        for inner in sorted(p for p in folder.iterdir() if p.is_dir() and not _NO_PLACE_OF_RUNS.match(p.name)):
            if not is_within(inner, own_folders(folder)):
                unreadable.append(f"{inner}: it is a link that leads out of {folder}; name the folder itself")
            elif not os.access(inner, os.R_OK | os.X_OK):
                unreadable.append(f"{inner}: it may not be read")
            else:
                places.setdefault(inner.resolve(), inner)
    return list(places.values())


def _events(places: list[Path], trainings: set[Path], unreadable: list[str]) -> Iterator[_Form]:
    """Event folders of one training are one run, and no news if they cannot be read; others are as many as they say."""
    for place in places:
        folders = _own(event_folders(place), place, unreadable)
        runs: list[ComparedRun] = []
        try:
            runs = read_event_files(folders, place in trainings)
        except Unreadable:  # one of them at least
            for folder in folders if place not in trainings else []:
                runs += read_or_name(lambda one: read_event_files([one]), folder, unreadable) or []
        yield from (_Form(run, place) for run in (runs[-1:] if place in trainings else runs))


def _own(paths: list[Path], place: Path, unreadable: list[str]) -> list[Path]:
    own = [path for path in paths if is_within(path, own_folders(place))]
    unreadable += [f"{path}: it is a link that leads out of {place}" for path in paths if path not in own]
    return own


def _joined(forms: list[ComparedRun]) -> ComparedRun:
    """One run of its several forms, Trainer's or the result first, then W&B's, then TensorBoard's.

    The history is that which goes on longest, the first of them where several do, with axes that its rows lack and
    metrics that it does not have from the others'. Of settings, those of the form that has most of them go first. It
    diverged if one form says so, and else ended as the first one says that knows an end.
    """
    if len(forms) == 1:
        return forms[0]
    histories = [run.history.set_index("step") for run in forms if len(run.history)]
    history = longest = max(histories, key=lambda rows: rows.index[-1], default=DataFrame())
    for rows in histories:
        news = rows.drop(columns=[metric for metric in longest if metric not in AXES], errors="ignore")
        told = news.drop(columns=list(AXES), errors="ignore").notna().any(axis=1)
        history = history.combine_first(news[told | news.index.isin(history.index)])
    ends = [run.state for run in forms]
    return replace(
        forms[0],
        history=history.rename_axis("step").reset_index(),
        config={k: v for run in sorted(forms, key=lambda run: len(run.config)) for k, v in run.config.items()},
        state="diverged" if "diverged" in ends else next((end for end in ends if end != "running"), "running"),
        layers=max((run.layers for run in forms), key=lambda layers: max(map(len, layers.values()), default=0)),
    )
