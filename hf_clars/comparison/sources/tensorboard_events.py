"""TensorBoard's event files, read through its own `EventAccumulator`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ..runs import ComparedRun
from .rows import History, Unreadable, end_state, flat_config, guessed_end, own

FILES = "events.out.tfevents.*"
_TEXTS = ("model_config", "args")  # of transformers' TensorBoardCallback, JSON; what comes later goes first


def event_folders(folder: Path) -> list[Path]:
    """Those with event files, in order of their name, which begins with the date where Trainer gave it: the folder
    itself, and what is in its `runs/`."""
    return sorted({file.parent for pattern in (FILES, f"runs/*/{FILES}") for file in folder.glob(pattern)})


def read_event_folders(folders: Sequence[Path], source: Path) -> ComparedRun:
    """One run, that wrote into these folders one after the other (a resumed training begins a new one).

    Raises:
        Unreadable: damaged, without scalars, or TensorBoard is not installed.
    """
    try:
        from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    except ImportError:
        raise Unreadable("TensorBoard's event files want `pip install tensorboard`") from None
    config: dict[str, Any] = {}
    rows: list[dict[str, Any]] = []
    for folder in folders:
        for file in folder.glob(FILES):
            own(file, folder)
        events = EventAccumulator(str(folder), size_guidance={"scalars": 0, "tensors": 1}).Reload()
        tags = events.Tags()
        for text in _TEXTS:
            if f"{text}/text_summary" in tags["tensors"]:
                (value,) = events.Tensors(f"{text}/text_summary")[-1].tensor_proto.string_val
                config |= flat_config(_settings(value))
        scalars = [(e.wall_time, e.step, tag, e.value) for tag in tags["scalars"] for e in events.Scalars(tag)]
        scalars.sort(key=lambda scalar: scalar[0])
        rows += [{tag: value, "_step": step, "_runtime": time - scalars[0][0]} for time, step, tag, value in scalars]
    if not rows:
        raise Unreadable("event files without scalars")
    history = History(config.get("total_batch_size"))
    history.add_all(rows)
    rows = history.rows()
    return ComparedRun(
        name=str(config.get("run_name") or source.resolve().name),
        source=str(source),
        config=config,
        history=rows,
        state=end_state(guessed_end(config, rows), rows),
        layers=history.layers(),
    )


def _settings(text: bytes) -> dict[str, Any]:
    try:
        value = json.loads(text)
    except ValueError:
        return {}  # somebody's prose under the same name
    return value if isinstance(value, dict) else {}
