"""Output folders of `ClarsTrainer` and of plain `transformers.Trainer`."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from transformers.integrations import rewrite_logs

from ...trainer.callbacks.layer_statistics import FILE_NAME
from ...trainer.records.layer_records import read_records
from ..runs import STATES, ComparedRun
from .rows import History, Unreadable, end_state, flat_config, guessed_end, own, read_from, read_json

_STATE = "trainer_state.json"
_RUN = "run.json"  # what `ClarsTrainer` leaves: its settings, its end, its W&B run
_OF_THE_STATE = ("num_train_epochs", "max_steps", "train_batch_size")


def is_trainer_folder(folder: Path) -> bool:
    return (folder / _STATE).is_file() or (folder / _RUN).is_file() or any(_checkpoints(folder))


def read_trainer_folder(folder: Path) -> tuple[str | None, ComparedRun]:
    """W&B's id of the run, "" if it has none and None if that is not known, and the run.

    Its settings are those of `run.json`; where there is none, what `trainer_state.json` and the model's `config.json`
    say of them. `training_args.bin`, a pickle, is never opened.

    Raises:
        Unreadable: a file of it is not whole, or it has no history.
    """
    kept = _mapping(folder / _RUN, folder) if (folder / _RUN).is_file() else {}
    state_file = next((f for f in (folder / _STATE, *_checkpoints(folder)) if f.is_file()), None)
    if state_file is None:
        raise Unreadable(f"it has a {_RUN}, and neither {_STATE} nor checkpoints: nothing was logged yet")
    state = _mapping(state_file, folder)
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(e, dict) and "step" in e for e in log):
        raise Unreadable(f"{state_file.relative_to(folder)} has no log_history: it is not Trainer's")
    with read_from(str(state_file.relative_to(folder))):
        return _read(folder, kept, state)


def _read(folder: Path, kept: Mapping[str, Any], state: Mapping[str, Any]) -> tuple[str | None, ComparedRun]:
    callbacks = state.get("stateful_callbacks") or {}
    saved = (callbacks.get("ResumePoint") or {}).get("attributes") or {}  # of `ClarsTrainer`, in its checkpoints
    config = (
        flat_config(kept["config"]) if isinstance(kept.get("config"), dict) else _other_config(folder, state, saved)
    )
    history = History(config.get("total_batch_size"))
    log = state["log_history"]
    for entry in log:
        history.add(rewrite_logs({k: v for k, v in entry.items() if k != "step"}), entry["step"])
    history.add_layers(_layer_records(folder))
    rows = history.rows()
    done = any("train_runtime" in entry for entry in log)  # Trainer logs it when it is done, and only then
    ended = kept["state"] if kept.get("state") in STATES else "finished" if done else guessed_end(state, rows)
    run = ComparedRun(
        name=str(config.get("run_name") or folder.resolve().name),
        source=str(folder),
        config=config,
        history=rows,
        state=end_state(ended, rows),
        layers=history.layers(),
    )
    known = kept if "wandb_run_id" in kept else saved
    return str(known["wandb_run_id"] or "") if "wandb_run_id" in known else None, run


def _checkpoints(folder: Path) -> list[Path]:
    """Their `trainer_state.json`, the newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", f.parent.name), f) for f in folder.glob(f"checkpoint-*/{_STATE}")]
    return [file for _, file in sorted(((int(m[1]), f) for m, f in found if m), reverse=True)]


def _mapping(file: Path, folder: Path) -> dict[str, Any]:
    value = read_json(file, folder)
    if not isinstance(value, dict):
        raise Unreadable(f"{file.name} holds a {type(value).__name__}, not keys and values")
    return value


def _other_config(folder: Path, state: Mapping[str, Any], saved: Mapping[str, Any]) -> dict[str, Any]:
    """Settings of a run that left no `run.json`, as far as other files have them."""
    models = [folder / "config.json", *(f.with_name("config.json") for f in _checkpoints(folder))]
    model = next((_mapping(f, folder) for f in models if f.is_file()), {})
    known = {key: state[key] for key in _OF_THE_STATE if key in state}
    return flat_config(model | known | {key: saved[key] for key in ("optim", "learning_rate") if key in saved})


def _layer_records(folder: Path) -> list[dict[str, Any]]:
    try:
        with read_from(FILE_NAME):
            return [r for r in read_records(own(folder / FILE_NAME, folder), strict=True) if "epoch" in r]
    except (OSError, RecursionError) as error:
        raise Unreadable(f"{FILE_NAME} is damaged: {error}") from None
