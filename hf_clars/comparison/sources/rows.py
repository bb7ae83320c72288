"""What loggers wrote, as a comparison wants it: one row for each optimizer step, layers apart, settings flat."""

from __future__ import annotations

import json
import math
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from sys import intern
from typing import Any, TypeGuard

from ...errors import one_line
from ...safety.links import is_within, own_folders
from ...safety.secrets import without_secrets
from ..runs import STATES

Row = dict[str, float]

_LAYERS = "layers/"  # layers/<statistic>/<parameter>, as `LayerRecords` logs them
_STEPS = ("train/global_step", "trainer/global_step", "global_step")  # Trainer's, Lightning's, TRL's and others'
_AXES = {"epoch": "epoch", "images_seen": "images", "seconds": "seconds"}
_AXES = {before + name: axis for before in ("", "train/", "eval/") for name, axis in _AXES.items()}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as W&B has them in its JSON
_NO_METRICS = {  # the step itself, and what Trainer says once, of the whole training
    *_STEPS, "step", "train/train_loss", "train/train_runtime", "train/train_samples_per_second",
    "train/train_steps_per_second", "train/total_flos",
}  # fmt: skip
TRAINING_LOSSES = ("train/loss", "loss", "train_loss")
_EVALUATION_LOSSES = ("eval/loss", "eval_loss")
_NO_SETTINGS = ("id2label", "label2id")  # names of classes, of which there may be thousands


class Unreadable(Exception):
    """Why one run cannot be read, in one line without its name."""


class NothingLogged(Unreadable):
    """It was cut off before anything was logged."""


@contextmanager
def read_from(file: str) -> Iterator[None]:
    """While a file's content is taken apart, which may be anything, whoever wrote it.

    Raises:
        Unreadable: in place of what something missing or of another kind raises.
    """
    try:
        yield
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise Unreadable(f"{file} lacks something, or has something else ({one_line(error)})") from None


def own(file: Path, folder: Path) -> Path:
    """A file of a run that a stranger may have made; raises `Unreadable` where it is a link that leads elsewhere."""
    if not is_within(file, own_folders(folder)):
        raise Unreadable(f"{file.name} is a link that leads out of the run's folder")
    return file


def read_json(file: Path, folder: Path | None = None) -> Any:
    """What a file in a run's folder (its own by default) holds; raises `Unreadable`."""
    try:
        own(file, file.parent if folder is None else folder)
        return json.loads(file.read_text())
    except OSError as error:
        raise Unreadable(f"{file.name}: {error.strerror or error}") from None
    except (ValueError, RecursionError) as error:
        raise Unreadable(f"{file.name} is damaged: {' '.join(str(error).split())}") from None


class History:
    """Rows of one run, as they come in.

    Rows of one optimizer step become one; what comes later wins.

    Args:
        total_batch_size: images of a step, for rows that do not say how many were trained on; None if not known.
    """

    def __init__(self, total_batch_size: Any = None) -> None:
        self._batch = total_batch_size if _is_number(total_batch_size) and total_batch_size > 0 else None
        self._rows: dict[int, Row] = {}
        self._layers: dict[int, dict[str, dict[str, float]]] = {}
        self._layers_in_order = False
        self._step = 0
        self._clock = 0.0  # seconds of the parts before this one, until the step from which it goes on
        self._last_time = 0.0

    def add_all(self, rows: Sequence[Mapping[str, Any]], step: str = "_step", time: str = "_runtime") -> None:
        """All rows of a logger that counts its own, `step`, and has a clock, `time`.

        An optimizer step that some row names (`train/global_step`) goes before the count; rows that name none then
        belong to the one before them. Where the step falls back and training losses follow, a training was cut off and
        went on from a checkpoint: what had been logged of that step and of later ones is dropped. Where none follow,
        somebody has evaluated checkpoints afterwards.
        """
        named = any(key in row for row in rows for key in _STEPS)
        stretches: list[list[tuple[Mapping[str, Any], float]]] = [[]]
        now: float = 0
        for row in rows:
            before, now = now, _first_number((*(row.get(key) for key in _STEPS), None if named else row.get(step), now))
            if now < before:
                stretches.append([])
            stretches[-1].append((row, now))
        for stretch in stretches:
            if any(name in row for row, _ in stretch for name in TRAINING_LOSSES):
                self._drop_from(stretch[0][1])
            for row, at in stretch:
                self.add(row, at, row.get(time))

    def add(self, values: Mapping[str, Any], step: float | None = None, time: float | None = None) -> None:
        """One row, under W&B's names.

        Args:
            step: its optimizer step; None for that of the row before.
            time: seconds by some clock that may begin anew when a run goes on; used where no row says `*/seconds`.
        """
        if step is not None and not _is_number(step):
            raise ValueError(f"step {str(step)[:20]}")
        self._step = self._step if step is None else int(step)
        row = self._rows.setdefault(self._step, {"step": self._step})
        if _is_number(time):
            if time < self._last_time:
                self._clock = max((r["_time"] for r in self._rows.values() if "_time" in r), default=0.0)
            self._last_time = time
            row["_time"] = self._clock + time
        for key, value in values.items():
            if type(value) is not float:
                value = _NOT_FINITE.get(value) if isinstance(value, str) else value
                if not _is_number(value):
                    if isinstance(value, Mapping) and "_type" not in value:  # otherwise a table, an image, …
                        self.add({f"{key}.{k}": v for k, v in value.items()}, self._step)
                    continue
            if key.startswith(_LAYERS):
                statistic, name = _layer(key)
                if name and math.isfinite(value):
                    self._layers.setdefault(self._step, {}).setdefault(name, {})[statistic] = value
            elif not key.startswith("_") and key not in _NO_METRICS:
                row[_AXES.get(key) or intern(key)] = value

    def _drop_from(self, step: float) -> None:
        self._rows = {s: row for s, row in self._rows.items() if s < step}
        self._layers = {s: layers for s, layers in self._layers.items() if s < step}

    def add_layers(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Records of a `layer_statistics.jsonl`, whose layers are in the order of the model."""
        self._layers_in_order = True
        for record in records:
            self._layers[int(record["step"])] = {
                name: {statistic: value for statistic, value in entry.items() if _is_number(value)}
                for name, entry in record["layers"].items()
            }
            self._rows.setdefault(int(record["step"]), {"step": record["step"]}).setdefault("epoch", record["epoch"])

    def rows(self) -> list[Row]:
        """In order of their step; `images` and `seconds` filled in where they can be known."""
        rows = [self._rows[step] for step in sorted(self._rows)]
        timed = any("seconds" in row for row in rows)
        for row in rows:
            clock = row.pop("_time", None)
            if clock is not None and not timed:
                row["seconds"] = clock
            if self._batch is not None:
                row.setdefault("images", row["step"] * self._batch)
        return [row for row in rows if len(row) > 1]

    def layers(self) -> list[dict[str, Any]]:
        """In order of their step. Where a step's row has no epoch, it is reckoned from the last one that has.

        Layers are in the order of a file's records; single values come in any order, and then they are by name.
        """
        known = [(step, row["epoch"]) for step, row in self._rows.items() if step and "epoch" in row]
        per_step = known[-1][1] / known[-1][0] if known else None
        records = []
        for step in sorted(self._layers):
            epoch = self._rows.get(step, {}).get("epoch", None if per_step is None else step * per_step)
            layers = self._layers[step]
            if not self._layers_in_order:
                layers = {name: layers[name] for name in sorted(layers, key=_by_numbers)}
            records.append({"step": step, **({} if epoch is None else {"epoch": epoch}), "layers": layers})
        return records


def _by_numbers(name: str) -> list[tuple[int, str]]:
    """So that `layer10` comes after `layer9`."""
    return [(int(word), "") if word.isdecimal() else (-1, word) for word in re.split(r"(\d+)", name)]


def flat_config(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings without nesting: `{"a": {"b": 1}}` is `{"a.b": 1}`. W&B's own entries (`_wandb`) and names of classes
    are left out."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in _NO_SETTINGS or key.startswith("_"):
            continue
        if isinstance(value, Mapping):
            flat |= flat_config(value, f"{before}{key}.")
        else:
            flat[intern(before + key)] = without_secrets(value, key)
    return flat


def guessed_end(config: Mapping[str, Any], rows: list[Row]) -> str:
    """`finished` or `running`, for loggers that do not keep how a run ended: by `max_steps` or `num_train_epochs`, and
    `finished` where neither is known."""
    for setting, axis in (("max_steps", "step"), ("num_train_epochs", "epoch")):
        wanted = config.get(setting)
        if _is_number(wanted) and wanted > 0:
            reached = max((row[axis] for row in rows if axis in row), default=0)
            return "finished" if reached >= wanted - 1e-6 else "running"
    return "finished"


def end_state(state: str, rows: list[Row], diverged: Any = False) -> str:
    """`state`, unless the run says that it diverged, or its last loss, of training or evaluation, is not finite.

    That of training alone would not tell: a plain Trainer logs finite ones in place of others (its filter).
    """
    if diverged is True or diverged == "true":
        return "diverged"
    for names in (TRAINING_LOSSES, _EVALUATION_LOSSES):
        losses = next(filter(None, ([row[name] for row in rows if name in row] for name in names)), [0.0])
        if not math.isfinite(losses[-1]):
            return "diverged"
    return state if state in STATES else "failed"


@cache
def _layer(key: str) -> tuple[str, str]:
    """Statistic and parameter of `layers/<statistic>/<parameter>`."""
    statistic, _, name = key.removeprefix(_LAYERS).partition("/")
    return intern(statistic), intern(name)


def _first_number(values: Iterable[Any]) -> float:
    return next(value for value in values if _is_number(value) and math.isfinite(value))


def _is_number(value: Any) -> TypeGuard[float]:
    if isinstance(value, int):  # JSON has some that are no float
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float)
