"""What loggers wrote, as a comparison wants it: one row for each optimizer step, layers apart, settings flat."""

import json
import math
import re
import sys
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeGuard

from pandas import DataFrame

from ...errors import one_line
from ...safety.files import read_bounded
from ...safety.links import is_within, own_folders
from ...safety.secrets import without_secrets
from ..runs import STATES, ComparedRun, words

_LAYERS = "layers/"  # layers/<statistic>/<parameter>, as `LayerRecords` logs them
_STEPS = ("train/global_step", "trainer/global_step", "global_step")  # Trainer's, Lightning's, TRL's and others'
_NAMES = {"epoch": "epoch", "images_seen": "images", "seconds": "seconds"}
_AXES = {before + name: axis for before in ("", "train/", "eval/") for name, axis in _NAMES.items()}
_NOT_FINITE = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}  # as W&B has them in its JSON
_NO_METRICS = {  # the step itself, and what Trainer says once, of the whole training
    *_STEPS, "step", "train/train_loss", "train/train_runtime", "train/train_samples_per_second",
    "train/train_steps_per_second", "train/total_flos",
}  # fmt: skip
_MOST_STEPS = 2**53  # and of a batch's images
_LARGEST = 1e100  # what is larger counts as infinite: no axis has room for it
TRAINING_LOSSES = ("train/loss", "loss", "train_loss")
_LOSSES = (TRAINING_LOSSES, ("eval/loss", "eval_loss"))
_ENDS = {"max_steps": "step", "num_train_epochs": "epoch"}
_NO_SETTINGS = ("id2label", "label2id")  # names of classes, of which there may be thousands


class Unreadable(Exception):
    """Why one run cannot be read, in one line without its name."""


class NothingLogged(Unreadable):
    """It was cut off before anything was logged."""


@contextmanager
def taken_apart(file: str) -> Iterator[None]:
    """While what a file holds is read, which may be anything, whoever wrote it: what that raises is `Unreadable`."""
    try:
        yield
    except OSError as error:
        raise Unreadable(f"{file}: {error.strerror or error}") from None
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError, RecursionError) as error:
        raise Unreadable(f"{file} is damaged, or something else ({one_line(error)})") from None


def read_or_name(read: Callable[[Path], Any], path: Path, unreadable: list[str]) -> Any:
    """What `read` makes of a path; None, and a line that says why, if it cannot."""
    try:
        with taken_apart(path.name):
            return read(path)
    except Unreadable as error:
        unreadable.append(f"{path}: {error}")
        return None


def own(file: Path, folder: Path) -> Path:
    """A file of a run that a stranger may have made; raises `Unreadable` where it is a link that leads elsewhere."""
    if not is_within(file, own_folders(folder)):
        raise Unreadable(f"{file.name} is a link that leads out of the run's folder")
    return file


def read_json(file: Path, folder: Path) -> dict[str, Any]:
    """The keys and values that a file in a run's folder holds."""
    with taken_apart(file.name):
        value = json.loads(read_bounded(own(file, folder)))
    if not isinstance(value, dict):
        raise Unreadable(f"{file.name} holds a {type(value).__name__}, not keys and values")
    return value


class History:
    """Rows of one run with these settings, as they come in; those of one optimizer step become one, the later wins."""

    def __init__(self, config: Mapping[str, Any]) -> None:
        self.config = config
        self._rows: dict[int, dict[str, float]] = {}
        self._layers: Any = defaultdict(lambda: defaultdict(dict))  # statistic → step → layer → value
        self._in_order = False  # the layers
        self._clock = self._last_time = 0.0  # seconds of the parts before, until the step from which this one goes on

    def add_all(self, rows: Sequence[Mapping[str, Any]]) -> None:
        """All rows of a logger that counts its own, `_step`, and has a clock, `_runtime`.

        An optimizer step that some row names (`train/global_step`) goes before the count; rows that name none then
        belong to the one before them. Where the step falls back and training losses follow, a training was cut off and
        went on from a checkpoint: what had been logged of that step and of later ones is dropped. Where none follow,
        somebody has evaluated checkpoints afterwards.
        """
        keys = _STEPS if any(key in row for row in rows for key in _STEPS) else ("_step",)
        stretches: list[list[tuple[Mapping[str, Any], float]]] = [[]]
        now: float = 0
        for row in rows:
            before, now = now, next((row[k] for k in keys if _is_number(row.get(k)) and math.isfinite(row[k])), now)
            if now < before:
                stretches.append([])
            stretches[-1].append((row, now))
        for stretch in stretches:
            if any(name in row for row, _ in stretch for name in TRAINING_LOSSES):
                for kept in (self._rows, *self._layers.values()):
                    for step in [step for step in kept if step >= stretch[0][1]]:
                        del kept[step]
            for row, at in stretch:
                self.add(row, at, row.get("_runtime"))

    def add(self, values: Mapping[str, Any], at: Any, time: Any = None) -> None:
        """The row of a step, under W&B's names. Its `time` is by some clock that may begin anew when a run goes on."""
        if not (_is_number(at) and abs(at) <= _MOST_STEPS):
            raise ValueError(f"step {str(at)[:20]}")
        step = int(at)
        row = self._rows.setdefault(step, {"step": step})
        if _is_number(time) and abs(time) <= _LARGEST:
            if time < self._last_time:
                self._clock = max((r["_time"] for r in self._rows.values() if "_time" in r), default=0.0)
            self._last_time = time
            row["_time"] = self._clock + time
        for key, value in values.items():
            value = _NOT_FINITE.get(value) if isinstance(value, str) else value
            if not _is_number(value):
                if isinstance(value, Mapping) and "_type" not in value:  # otherwise a table, an image, …
                    self.add({f"{key}.{k}": v for k, v in value.items()}, step)
            elif key.startswith(_LAYERS):
                statistic, _, layer = key.removeprefix(_LAYERS).partition("/")
                if layer and _is_drawn(value):
                    self._layers[statistic][step][words(layer)] = value
            elif not key.startswith("_") and key not in _NO_METRICS:
                row[_AXES.get(key) or words(key)] = value if abs(value) <= _LARGEST else value * math.inf

    def add_layers(self, records: Iterable[Mapping[str, Any]]) -> None:
        """Records of a `layer_statistics.jsonl`, whose layers are in the order of the model."""
        self._in_order = True
        for record in records:
            for layer, entry in record["layers"].items():
                for statistic, value in entry.items():
                    if _is_drawn(value):
                        self._layers[statistic][int(record["step"])][words(layer)] = value

    def run(self, name: Any, source: object, end: str | None, diverged: Any = False, **limits: Any) -> ComparedRun:
        """The run of these rows, which ended so, for all that is known. Where `end` is None its logger does not keep
        that, and it has finished if it came to its `max_steps` or `num_train_epochs`, or has neither."""
        rows = [self._rows[step] for step in sorted(self._rows)]
        losses = ([row[name] for row in rows for name in names if name in row] for names in _LOSSES)
        if diverged in (True, "true") or any(values and not math.isfinite(values[-1]) for values in losses):
            end = "diverged"  # a plain Trainer logs finite training losses in place of others (its filter)
        elif end is None:
            limits = {key: value for key, value in {**self.config, **limits}.items() if _is_number(value) and value > 0}
            key = next((key for key in _ENDS if key in limits), "")
            reached = max((row.get(_ENDS.get(key, ""), 0) for row in rows), default=0)
            end = "finished" if reached >= limits.get(key, 0) - 1e-6 else "running"
        history = DataFrame(rows, dtype=float)
        if "_time" in history:
            clock = history.pop("_time")
            history["seconds"] = history.get("seconds", clock)
        batch = self.config.get("total_batch_size")
        if _is_number(batch) and 0 < batch <= _MOST_STEPS and rows:
            reckoned = history["step"] * batch
            history["images"] = history.get("images", reckoned).fillna(reckoned)
        layers = {}
        for statistic, steps in self._layers.items():
            frame = DataFrame.from_dict(steps, orient="index", dtype=float).sort_index()
            by_number = sorted(frame, key=lambda name: re.sub(r"\d+", lambda digits: digits[0].zfill(9), name))
            layers[statistic] = frame if self._in_order else frame[by_number]  # `layer10` after `layer9`
        return ComparedRun(words(name), words(source), self.config, history, end if end in STATES else "failed", layers)


def flat_config(config: Mapping[str, Any], before: str = "") -> dict[str, Any]:
    """Settings without nesting: `{"a": {"b": 1}}` is `{"a.b": 1}`; without W&B's own (`_wandb`) and classes' names."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key not in _NO_SETTINGS and not key.startswith("_"):
            nested = isinstance(value, Mapping)
            name = words(before + key)
            flat |= flat_config(value, f"{name}.") if nested else {name: without_secrets(value, key)}
    return flat


def _is_drawn(value: Any) -> TypeGuard[float]:
    """Whether it is a number that has a place on a logarithmic axis, or zero."""
    return _is_number(value) and (value == 0 or 1 / _LARGEST <= abs(value) <= _LARGEST)


def _is_number(value: Any) -> TypeGuard[float]:
    if isinstance(value, int):  # JSON has some that are no float
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float)
