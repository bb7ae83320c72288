"""Folders of results that `hf-clars sweep`, `figure` and `tune` fill."""

from __future__ import annotations

from pathlib import Path

from transformers.integrations import rewrite_logs

from ...configuration import with_numbers
from ...experiments.grid import Run
from ...experiments.results import Result
from ..runs import AXIS, ComparedRun
from .rows import History, Unreadable, end_state, flat_config, own, read_from, read_json

_KEYS = ("place", "settings", "state", "curve")


def read_result_file(file: Path) -> ComparedRun | None:
    """The run of a result's file; None for a JSON file that is something else, which its first bytes tell.

    Raises:
        Unreadable: a file that is not whole.
    """
    try:
        with open(own(file, file.parent), "rb") as opened:
            if b'"place"' not in opened.read(100):
                return None
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    value = read_json(file)
    if not isinstance(value, dict) or not value.keys() >= set(_KEYS):
        return None
    with read_from("the result"):
        result = Result(**value)
        axes = {f"{AXIS}{name}": value for name, value in result.place.items() if name not in result.settings}
        config = with_numbers({**axes, **result.settings})
        history = History(config.get("total_batch_size"))
        for row in result.curve:
            history.add(rewrite_logs({k: v for k, v in row.items() if k != "step"}), row["step"])
        history.add_layers(result.layers)
        rows = history.rows()
        return ComparedRun(
            name=Run(result.place, result.settings).title or file.stem,
            source=str(file),
            config=flat_config(config | {"commit": result.commit, "hardware": result.hardware}),
            history=rows,
            state=end_state(result.state, rows),
            layers=history.layers(),
        )
