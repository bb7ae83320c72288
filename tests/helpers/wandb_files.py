"""What the real W&B client wrote into a `.wandb` file, read back with W&B's own tool."""

import json
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path


@dataclass
class WrittenRun:
    """One file: one part of a run."""

    id: str
    run: dict = field(default_factory=dict)
    config: dict = field(default_factory=dict)
    history: list[dict] = field(default_factory=list)
    summary: dict = field(default_factory=dict)
    metrics: dict[str, dict] = field(default_factory=dict)  # those of `define_metric`
    exit_code: int | None = None  # None: it has no end
    preempting: bool = False


def read_wandb_file(file: Path) -> WrittenRun:
    tool = Path(sys.executable).with_name("wandb")
    command = [tool, "leet", "inspect", "--json", file]
    lines = subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()
    written = WrittenRun(id=file.stem.removeprefix("run-"))
    for record in map(json.loads, lines):
        kind = record["type"]
        content = record.get(kind)
        if kind == "run":
            written.run |= content
            written.config |= content.get("config", {}).get("update", {})  # that of `wandb.init`
        elif kind == "config":
            written.config |= content.get("update", {})
        elif kind == "history":
            written.history.append(_items(content))
        elif kind == "summary":
            written.summary |= content.get("update", {})
        elif kind == "metric":
            written.metrics[content.get("name") or content["glob_name"]] = content
        elif kind == "exit":
            written.exit_code = content.get("exit_code", 0)
        elif kind == "preempting":
            written.preempting = True
    return written


def offline_runs(folder: Path) -> list[WrittenRun]:
    """All below `folder/wandb`, in order of their beginning."""
    return [read_wandb_file(file) for file in sorted(folder.glob("wandb/offline-run-*/run-*.wandb"))]


def _items(history: dict) -> dict:
    """Keys and values of a history record, however the tool nests them."""
    items = history.get("item", {})
    return items if isinstance(items, dict) else {item["key"]: item["value_json"] for item in items}
