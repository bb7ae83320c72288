"""`trackio:project`: runs that trackio keeps on this machine, in `TRACKIO_DIR` or Hugging Face's cache."""

from __future__ import annotations

import sqlite3
from collections import Counter
from datetime import datetime
from typing import Any

from ...errors import UserError
from ..runs import ComparedRun
from .rows import History, end_state, flat_config, guessed_end


def read_trackio_project(project: str) -> list[ComparedRun]:
    """Its runs. trackio does not keep how a run ended: see `guessed_end`.

    Raises:
        UserError: no such project, trackio is not installed, or its file is damaged.
    """
    try:
        import trackio
        from trackio.sqlite_storage import SQLiteStorage  # its public `Api` knows runs and settings, no metrics
    except ImportError:
        raise UserError(f"trackio:{project} is read by trackio: pip install trackio") from None
    if not project or not SQLiteStorage.get_project_db_path(project).is_file():
        projects = ", ".join(SQLiteStorage.get_projects()) or "none"
        raise UserError(
            f"trackio:{project}: there is no such project in {trackio.TRACKIO_DIR}; those there are: {projects}"
        )
    try:
        found = [
            (kept, flat_config(kept.config or {}), SQLiteStorage.get_logs(project, kept.name, run_id=kept.id))
            for kept in trackio.Api().runs(project)
        ]
    except sqlite3.Error as error:
        raise UserError(f"trackio:{project} cannot be read: {error}") from None
    names = Counter(kept.name for kept, _, _ in found)
    runs = []
    for kept, config, logs in found:
        history = History(config.get("total_batch_size"))
        history.add_all(_timed(logs), step="step", time="_seconds")
        rows = history.rows()
        runs.append(
            ComparedRun(
                name=kept.name,
                source=f"trackio:{project}/{kept.name if names[kept.name] == 1 else kept.id}",
                config=config,
                history=rows,
                state=end_state(guessed_end(config, rows), rows),
                layers=history.layers(),
            )
        )
    return runs


def _timed(logs: list[dict[str, Any]]) -> list[dict[str, Any]]:
    times = [datetime.fromisoformat(log["timestamp"]) for log in logs]
    return [log | {"_seconds": (time - times[0]).total_seconds()} for log, time in zip(logs, times, strict=True)]
