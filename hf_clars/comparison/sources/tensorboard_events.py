"""TensorBoard's event files, read through its own `EventAccumulator`."""

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NamedTuple

from ...runtime.provenance import HOUSEKEEPING
from ..runs import ComparedRun
from .rows import TRAINING_LOSSES, History, Unreadable, flat_config, own, taken_apart

FILES = "events.out.tfevents.*"
_TEXTS = ("model_config", "args")  # of transformers' TensorBoardCallback, JSON; what comes later goes first


class _Part(NamedTuple):
    """What one file holds; `scalars`, `(time, step, tag, value)`, in the order of its clock."""

    place: Path
    file: Path
    config: dict[str, Any]
    scalars: Sequence[tuple[float, int, str, float]]

    @property
    def tags(self) -> set[str]:
        return {tag for _, _, tag, _ in self.scalars}

    @property
    def computed(self) -> dict[str, Any]:
        """The settings without those that may change where a training goes on."""
        return {key: value for key, value in self.config.items() if key not in HOUSEKEEPING}

    def first_step(self, tags: Collection[str]) -> int:
        return next(step for _, step, tag, _ in self.scalars if tag in tags)


def event_folders(folder: Path) -> list[Path]:
    """Those with event files: the folder itself, and what is in its `runs/`."""
    return sorted(
        {file.parent for pattern in (FILES, f"runs/*/{FILES}") for file in folder.glob(pattern) if file.is_file()}
    )


def read_event_files(places: Iterable[Path], one_training: bool = False) -> list[ComparedRun]:
    """The runs in event files and in folders of them (`one_training`: they are parts of one, wherever they lie).

    A file goes on with the run of the file before it, by the clock, if both have the same settings; or, where none are
    known, if both lie in one folder and its training losses (or what it has instead) begin at a later step. What has no
    training losses belongs to the run before it in its folder. Steps that two parts have count once.
    """
    files = [(place, file) for place in places for file in (place.glob(FILES) if place.is_dir() else [place])]
    parts = [part for place, file in files if file.is_file() and (part := _read(place, file)).scalars]
    if files and not parts:
        raise Unreadable("event files without scalars")
    runs: list[list[_Part]] = []
    for part in sorted(parts, key=lambda part: part.scalars[0][0]):
        if runs and _goes_on(runs[-1], part, one_training or part.place == runs[-1][-1].place):
            runs[-1].append(part)
        else:
            runs.append([part])
    sharing = Counter(place for run in runs for place in {part.place for part in run})
    with taken_apart("its event files"):
        return [_run(run, run[0].place if sharing[run[0].place] == 1 else run[0].file) for run in runs]


def _goes_on(run: Sequence[_Part], part: _Part, together: bool) -> bool:
    before = set().union(*(p.tags for p in run))
    common = before & part.tags
    losses = common.intersection(TRAINING_LOSSES)
    if not common or (not losses and before.intersection(TRAINING_LOSSES)):  # evaluated afterwards
        return together
    known = next((p.computed for p in run if p.computed), {})
    if known or part.computed:
        return known == part.computed
    tags = losses or common
    return together and part.first_step(tags) > next(p.first_step(tags) for p in run if p.tags & tags)


def _read(place: Path, file: Path) -> _Part:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise Unreadable("TensorBoard's event files want `pip install tensorboard`") from None
    events = EventAccumulator(str(own(file, file.parent)), size_guidance={"scalars": 0, "tensors": 1}).Reload()
    tags = events.Tags()
    config: dict[str, Any] = {}
    for text in (f"{text}/text_summary" for text in _TEXTS if f"{text}/text_summary" in tags["tensors"]):
        with suppress(ValueError, RecursionError, AttributeError):  # somebody's prose under the same name
            config |= flat_config(json.loads(events.Tensors(text)[-1].tensor_proto.string_val[0]))
    scalars = [(e.wall_time, e.step, tag, e.value) for tag in tags["scalars"] for e in events.Scalars(tag)]
    return _Part(place, file, config, sorted(scalars, key=lambda scalar: scalar[0]))


def _run(parts: Sequence[_Part], source: Path) -> ComparedRun:
    config = {key: value for part in parts for key, value in part.config.items()}
    history = History(config)
    scalars = [(scalar, part.scalars[0][0]) for part in parts for scalar in part.scalars]
    history.add_all([{tag: value, "_step": step, "_runtime": at - begin} for (at, step, tag, value), begin in scalars])
    return history.run(config.get("run_name") or parts[0].place.resolve().name, source, None)
