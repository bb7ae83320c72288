"""TensorBoard's event files, read through its own `EventAccumulator`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...runtime.provenance import HOUSEKEEPING
from ..runs import ComparedRun
from .rows import TRAINING_LOSSES, History, Unreadable, end_state, flat_config, guessed_end, own

FILES = "events.out.tfevents.*"
_TEXTS = ("model_config", "args")  # of transformers' TensorBoardCallback, JSON; what comes later goes first


@dataclass(frozen=True)
class _Part:
    """What one file holds, in the order of its clock: `(time, step, tag, value)`."""

    place: Path
    file: Path
    config: dict[str, Any]
    scalars: Sequence[tuple[float, int, str, float]]

    @property
    def tags(self) -> set[str]:
        return {tag for _, _, tag, _ in self.scalars}

    def first(self, tags: Collection[str]) -> int:
        """The first step of which it has one of them."""
        return next(step for _, step, tag, _ in self.scalars if tag in tags)

    @property
    def computed(self) -> dict[str, Any]:
        """The settings without those that may change where a training goes on."""
        return {key: value for key, value in self.config.items() if key not in HOUSEKEEPING}


def event_folders(folder: Path) -> list[Path]:
    """Those with event files: the folder itself, and what is in its `runs/`."""
    return sorted({file.parent for pattern in (FILES, f"runs/*/{FILES}") for file in folder.glob(pattern)})


def read_event_files(places: Iterable[Path], one_training: bool = False) -> list[ComparedRun]:
    """The runs in event files and in folders of them; parts of a run that was resumed are one.

    A file goes on with the run of the file before it, by the clock, if both have the same settings; or, where none are
    known, if both lie in one folder and its training losses (or what it has instead) begin at a later step. What has no
    training losses belongs to the run before it in its folder. Steps that two parts have count once.

    Args:
        one_training: the files are those of one training, whichever folders they lie in.

    Raises:
        Unreadable: damaged, without scalars, or TensorBoard is not installed.
    """
    files = [(place, file) for place in places for file in (place.glob(FILES) if place.is_dir() else [place])]
    parts = [part for place, file in files if (part := _read(place, file)).scalars]
    parts.sort(key=lambda part: part.scalars[0][0])
    if not parts:
        raise Unreadable("event files without scalars")
    runs: list[list[_Part]] = []
    for part in parts:
        if runs and _goes_on(runs[-1], part, one_training or part.place == runs[-1][-1].place):
            runs[-1].append(part)
        else:
            runs.append([part])
    sharing = Counter(place for run in runs for place in {part.place for part in run})
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
    return together and part.first(tags) > next(p.first(tags) for p in run if p.tags & tags)


def _read(place: Path, file: Path) -> _Part:
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise Unreadable("TensorBoard's event files want `pip install tensorboard`") from None
    own(file, file.parent)
    events = EventAccumulator(str(file), size_guidance={"scalars": 0, "tensors": 1}).Reload()
    tags = events.Tags()
    config: dict[str, Any] = {}
    for text in _TEXTS:
        if f"{text}/text_summary" in tags["tensors"]:
            (value,) = events.Tensors(f"{text}/text_summary")[-1].tensor_proto.string_val
            config |= flat_config(_settings(value))
    scalars = [(e.wall_time, e.step, tag, e.value) for tag in tags["scalars"] for e in events.Scalars(tag)]
    return _Part(place, file, config, sorted(scalars, key=lambda scalar: scalar[0]))


def _run(parts: Sequence[_Part], source: Path) -> ComparedRun:
    config = {key: value for part in parts for key, value in part.config.items()}
    history = History(config.get("total_batch_size"))
    history.add_all(
        [
            {tag: value, "_step": step, "_runtime": time - part.scalars[0][0]}
            for part in parts
            for time, step, tag, value in part.scalars
        ]
    )
    rows = history.rows()
    return ComparedRun(
        name=str(config.get("run_name") or parts[0].place.resolve().name),
        source=str(source),
        config=config,
        history=rows,
        state=end_state(guessed_end(config, rows), rows),
        layers=history.layers(),
    )


def _settings(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}  # somebody's prose under the same name
    return value if isinstance(value, dict) else {}
