"""Small trainings that end within a second: arguments, models and callbacks that many tests share."""

from __future__ import annotations

import json
import zlib
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from torch.utils.data import IterableDataset
from transformers import TrainerCallback

from hf_clars import ClarsTrainer, ClarsTrainingArguments

from .models import Classifier, dataset

TIMES = ("runtime", "time", "second", "flos")  # in names of what differs between two runs of one training


def arguments(folder: Path, **options: Any) -> ClarsTrainingArguments:
    defaults = {
        "learning_rate": 3.0, "per_device_train_batch_size": 8, "report_to": [], "use_cpu": True, "disable_tqdm": True,
        "save_strategy": "no", "logging_steps": 1,
    }  # fmt: skip
    return ClarsTrainingArguments(output_dir=str(folder), **{**defaults, **options})


def seeded(dropout: float = 0.0) -> Classifier:
    torch.manual_seed(1)
    return Classifier(dropout=dropout)


def weights(trainer: ClarsTrainer) -> list[torch.Tensor]:
    return [p.detach().clone() for p in trainer.model.parameters()]


def assert_equal(some: Iterable[torch.Tensor], others: Iterable[torch.Tensor]) -> None:
    assert all(torch.equal(a, b) for a, b in zip(some, others, strict=True))


def assert_same_weights(*trainers: ClarsTrainer) -> None:
    """Bit for bit."""
    first, *others = trainers
    for other in others:
        assert_equal(weights(first), weights(other))


def assert_close(some: Iterable[torch.Tensor], others: Iterable[torch.Tensor], rtol: float, atol: float) -> None:
    for a, b in zip(some, others, strict=True):
        torch.testing.assert_close(a, b, rtol=rtol, atol=atol)


def accuracy(prediction: Any) -> dict[str, float]:
    return {"accuracy": float((prediction.predictions.argmax(-1) == prediction.label_ids).mean())}


def without_times(rows: list[dict]) -> list[dict]:
    """What was logged, without how long it took."""
    return [{k: v for k, v in row.items() if not any(word in k for word in TIMES)} for row in rows]


def logged(trainer: ClarsTrainer, *keys: str) -> list[list]:
    """[step, value of each key] of every row of the log that has one of them."""
    return [[e.get(k) for k in ("step", *keys)] for e in trainer.state.log_history if any(k in e for k in keys)]


def log_of(folder: Path) -> list[dict]:
    return json.loads((folder / "trainer_state.json").read_text())["log_history"]


def layer_statistics(folder: Path) -> list[dict]:
    return [json.loads(line) for line in (folder / "layer_statistics.jsonl").read_text().splitlines()]


def seal(checkpoint: Path) -> None:
    """A manifest for what is there now, as whoever changed it would write one."""
    files = [f for f in sorted(checkpoint.rglob("*")) if f.is_file() and f.name != "manifest.json"]
    sums = {str(f.relative_to(checkpoint)): (f.stat().st_size, zlib.crc32(f.read_bytes())) for f in files}
    manifest = checkpoint / "manifest.json"
    written = json.loads(manifest.read_text())["written"] if manifest.exists() else 1
    manifest.write_text(json.dumps({"written": written, "files": sums}))


def state_of(folder: Path) -> str:
    return json.loads((folder / "run.json").read_text())["state"]


class StopAfter(TrainerCallback):
    def __init__(self, step: int) -> None:
        self.step = step

    def on_step_end(self, args, state, control, **kwargs):
        control.should_training_stop = state.global_step == self.step


class Call(TrainerCallback):
    """Calls `action()` whenever an event comes, or only when it comes at the given step."""

    def __init__(self, event: str, action: Callable[[], Any], step: int | None = None) -> None:
        def call(args, state, control, **kwargs):
            if step is None or state.global_step == step:
                action()

        setattr(self, event, call)


class Groups(TrainerCallback):
    """Options of the first parameter group in each step, copied when it begins."""

    def __init__(self) -> None:
        self.seen: dict[int, dict] = {}

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        group = optimizer.param_groups[0]
        self.seen[state.global_step] = {k: v for k, v in group.items() if k not in ("params", "param_names")}


class Unsized(IterableDataset):
    """A stream without a length, like a generator over tar files."""

    def __init__(self, size: int) -> None:
        self.examples = dataset(size)

    def __iter__(self):
        return iter(self.examples)
