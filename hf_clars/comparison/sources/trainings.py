"""What our own tools leave: output folders of `ClarsTrainer` and plain `Trainer`, and results of sweeps and figures."""

import re
from pathlib import Path
from typing import Any

from transformers.integrations import rewrite_logs

from ...configuration import with_numbers
from ...experiments.grid import Run
from ...trainer.callbacks.layer_statistics import FILE_NAME
from ...trainer.records.layer_records import read_records
from ..runs import AXIS, STATES, ComparedRun
from .rows import History, Unreadable, flat_config, own, read_json, taken_apart

_STATE = "trainer_state.json"
_RUN = "run.json"  # what `ClarsTrainer` leaves: its settings, its end, its W&B run
_OF_THE_STATE = ("num_train_epochs", "max_steps", "train_batch_size")


def is_trainer_folder(folder: Path) -> bool:
    return (folder / _STATE).is_file() or (folder / _RUN).is_file() or any(_checkpoints(folder))


def read_trainer_folder(folder: Path) -> tuple[str | None, ComparedRun]:
    """W&B's id of the run, "" if it has none and None if that is not known, and the run.

    Its settings are those of `run.json`; where there is none, what `trainer_state.json` and the model's `config.json`
    say of them. `training_args.bin`, a pickle, is never opened.
    """
    kept = read_json(folder / _RUN, folder) if (folder / _RUN).is_file() else {}
    file = next((f for f in (folder / _STATE, *_checkpoints(folder)) if f.is_file()), None)
    if file is None:
        raise Unreadable(f"it has a {_RUN}, and neither {_STATE} nor checkpoints: nothing was logged yet")
    state = read_json(file, folder)
    log = state.get("log_history")
    if not isinstance(log, list) or not all(isinstance(entry, dict) and "step" in entry for entry in log):
        raise Unreadable(f"{file.relative_to(folder)} has no log_history: it is not Trainer's")
    with taken_apart(_STATE):
        callbacks = state.get("stateful_callbacks") or {}
        saved = (callbacks.get("ResumePoint") or {}).get("attributes") or {}  # of `ClarsTrainer`, in its checkpoints
    known = {key: state[key] for key in _OF_THE_STATE if key in state}
    config = kept.get("config")
    if not isinstance(config, dict):
        models = (folder / "config.json", *(f.with_name("config.json") for f in _checkpoints(folder)))
        model = next((read_json(f, folder) for f in models if f.is_file()), {})
        config = model | known | {key: saved[key] for key in ("optim", "learning_rate") if key in saved}
    with taken_apart(_STATE):
        history = _history(flat_config(config), log)
    with taken_apart(FILE_NAME):
        records = read_records(own(folder / FILE_NAME, folder), strict=True)
        history.add_layers([record for record in records if "epoch" in record])
    done = any("train_runtime" in entry for entry in log)  # Trainer logs it when it is done, and only then
    ended = kept["state"] if kept.get("state") in STATES else "finished" if done else None
    run = history.run(history.config.get("run_name") or folder.resolve().name, folder, ended, **known)
    ids = kept if "wandb_run_id" in kept else saved
    return str(ids["wandb_run_id"] or "") if "wandb_run_id" in ids else None, run


def read_result_file(file: Path) -> ComparedRun | None:
    """The run of a result's file; None for a JSON file that is something else, which its first bytes tell."""
    with open(own(file, file.parent), "rb") as opened:
        if b'"place"' not in opened.read(100):
            return None
    result = read_json(file, file.parent)
    place, settings = result["place"], result["settings"]
    axes = {f"{AXIS}{name}": value for name, value in place.items() if name not in settings}
    made = {"commit": result["commit"], "hardware": result["hardware"]}
    config = flat_config({**with_numbers({**axes, **settings}), **made})
    history = _history(config, result["curve"])
    history.add_layers(result.get("layers", ()))
    return history.run(Run(place, settings).title or file.stem, file, result["state"])


def _history(config: dict[str, Any], log: Any) -> History:
    history = History(config)
    for entry in log:
        history.add(rewrite_logs({k: v for k, v in entry.items() if k != "step"}), entry["step"])
    return history


def _checkpoints(folder: Path) -> list[Path]:
    """Their `trainer_state.json`, the newest first."""
    found = [(re.fullmatch(r"checkpoint-(\d+)", f.parent.name), f) for f in folder.glob(f"checkpoint-*/{_STATE}")]
    return [file for _, file in sorted(((int(m[1]), f) for m, f in found if m), reverse=True)]
