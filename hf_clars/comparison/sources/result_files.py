"""Folders of results that `hf-clars sweep`, `figure` and `tune` fill."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from transformers.integrations import rewrite_logs

from ...configuration import with_numbers
from ...experiments.grid import Run
from ...experiments.results import Result
from ..runs import ComparedRun
from .rows import History, Unreadable, end_state, flat_config

_KEYS = ("place", "settings", "state", "curve")


def read_result_file(file: Path) -> ComparedRun | None:
    """The run of a result's file; None for a JSON file that is something else, which its first bytes tell.

    Raises:
        Unreadable: a file that is not whole.
    """
    try:
        with open(file, "rb") as opened:
            if b'"place"' not in opened.read(100):
                return None
        value: Any = json.loads(file.read_text())
    except OSError as error:
        raise Unreadable(error.strerror or str(error)) from None
    except ValueError as error:
        raise Unreadable(f"not JSON: {' '.join(str(error).split())}") from None
    if not isinstance(value, dict) or not value.keys() >= set(_KEYS):
        return None
    try:
        result = Result(**value)
        config = with_numbers({**result.place, **result.settings})
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
    except (TypeError, KeyError, AttributeError, ValueError) as error:
        raise Unreadable(f"a result that lacks something, or has something else ({error})") from None
