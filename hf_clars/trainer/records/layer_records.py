"""What a run leaves about its layers: a line of JSON per record, and in W&B scalars and panels with all layers."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError
from transformers import TrainerCallback

from ...errors import UserError
from ...safety.files import write_whole
from .tracking import live_run

logger = logging.getLogger(__name__)

_MOST_DRAWN = 500
_LONGEST_LINE = 2**24

Layers = Mapping[str, Mapping[str, float]]


class LayerRecords(TrainerCallback):
    """Writes records of layers to `output_dir/<file_name>` and to W&B, from the main process. It keeps none in memory.

    A line of the file is `{"step": …, "epoch": …, …, "layers": {name: {statistic: value}}}`. In W&B the values are
    scalars `<group>s/<statistic>/<name>` without a panel of their own; at the end of training each statistic gets a
    panel, `<group> panels/<symbol>`, with a line per layer, of at most 500 records.

    Args:
        file_name: of the file in `output_dir`.
        drawn: statistic → symbol, of those that W&B gets.
        group: what W&B's keys begin with. Callbacks of one training must not share it.
    """

    def __init__(self, file_name: str, drawn: Mapping[str, str], group: str) -> None:
        self._file_name = file_name
        self._drawn = drawn
        self._group = group

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """A run begins, or goes on after `state.global_step`: what was written of later steps is dropped."""
        if not state.is_world_process_zero:
            return
        path = Path(args.output_dir) / self._file_name
        earlier = read_records(path) if state.global_step else []
        kept = [r for r in earlier if r["step"] <= state.global_step]
        try:
            write_whole(path, "".join(json.dumps(record) + "\n" for record in kept))
        except OSError as error:
            logger.warning("%s cannot be written: %s", path, error.strerror or error)

    def add(self, args: Any, state: Any, layers: Layers, **rest: Any) -> None:
        """One record of the current step; `rest` are further keys of it. Values are finite: JSON knows no NaN."""
        if not state.is_world_process_zero:
            return
        record = {"step": state.global_step, "epoch": state.epoch, **rest, "layers": layers}
        path = Path(args.output_dir) / self._file_name
        try:
            with open(path, "a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
        except OSError as error:  # a full disk does not end a training
            logger.warning("step %d is not in %s: %s", state.global_step, path, error.strerror or error)
        if (run := _wandb_run(args)) is not None:
            self._log_to_wandb(run, record)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        """Training is over: W&B gets its panels."""
        run = _wandb_run(args) if state.is_world_process_zero else None
        if run is not None and (records := thinned(read_records(Path(args.output_dir) / self._file_name))):
            run.log({**self._panels(records), "train/global_step": state.global_step})

    def _log_to_wandb(self, run: Any, record: dict[str, Any]) -> None:
        for statistic in self._drawn:
            run.define_metric(f"{self._group}s/{statistic}/*", step_metric="train/global_step", hidden=True)
        scalars = {
            f"{self._group}s/{statistic}/{name}": value
            for name, entry in record["layers"].items()
            for statistic, value in entry.items()
            if statistic in self._drawn
        }
        run.log({**scalars, "train/global_step": record["step"]})

    def _panels(self, records: Sequence[dict[str, Any]]) -> dict[str, Any]:
        import wandb

        steps = [record["step"] for record in records]
        panels = {}
        for statistic, symbol in self._drawn.items():
            names = [n for n, entry in records[-1]["layers"].items() if statistic in entry]
            if names:
                lines = [[r["layers"].get(n, {}).get(statistic) for r in records] for n in names]
                panels[f"{self._group} panels/{symbol}"] = wandb.plot.line_series(
                    xs=steps, ys=lines, keys=names, title=f"{symbol} per layer", xname="optimizer step"
                )
        return panels


def thinned(records: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """At most `_MOST_DRAWN` of them, as many steps apart, the last one among them."""
    every = -(-len(records) // _MOST_DRAWN) or 1
    return records[::-1][::every][::-1]


class Record(BaseModel):
    """A line of such a file."""

    model_config = ConfigDict(extra="allow")

    step: Annotated[int, Field(ge=0, lt=2**53)]
    layers: dict[str, dict[str, float]]


def read_records(path: Path, strict: bool = False) -> list[dict[str, Any]]:
    """The records of such a file; none if there is no file.

    A line that is no record is left out, with a warning; if `strict`, it is a `ValueError`. The last one, where it was
    cut short (by a kill, a full disk), is left out anyway.

    Raises:
        UserError: the file cannot be read.
    """
    records, number, damaged = [], 0, 0
    for line in _lines(path):
        number += 1
        if len(line) == _LONGEST_LINE:
            if strict:
                raise ValueError(f"a line of {_LONGEST_LINE:,} bytes")
            damaged += 1
            break
        try:
            records.append(_record(line))
        except ValidationError:
            if not line.endswith(b"\n"):
                continue
            if strict:
                raise
            damaged += 1
    if damaged:
        logger.warning("%s: %d of %d lines cannot be read, and are left out", path, damaged, number)
    return records


def _lines(path: Path) -> Iterator[bytes]:
    """The lines of a file, with their ends. None is longer than `_LONGEST_LINE`: a sparse file may be a single one."""
    if not path.is_file():
        return
    try:
        with path.open("rb") as file:
            while line := file.readline(_LONGEST_LINE):
                yield line
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror or error}") from None


def _record(line: bytes) -> dict[str, Any]:
    """A line that was cut short has what was written next behind it."""
    try:
        Record.model_validate_json(line)
    except ValidationError:
        line = line[max(0, line.rfind(b'{"step"')) :]
        Record.model_validate_json(line)
    return json.loads(line)


def _wandb_run(args: Any) -> Any:
    return live_run() if "wandb" in args.report_to else None
