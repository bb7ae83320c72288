"""SIGKILL before each file operation of a training, one after the other: what goes on is what was never cut off."""

import json
import random
import signal
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from .helpers.file_operations import FileOperations
from .helpers.processes import FORKS
from .helpers.streams import streaming

OPTIONS = {"max_steps": 4, "save_steps": 2, "save_total_limit": 1, "layer_statistics_steps": 2}
BEST = {
    "load_best_model_at_end": True, "metric_for_best_model": "eval_loss", "eval_strategy": "steps", "eval_steps": 2,
    "greater_is_better": True,  # so that an early one is
}  # fmt: skip
# What is in the folder before, and settings: a first start; one over the checkpoints of an earlier training.
KINDS = {"fresh": (None, {}), "best": (None, BEST), "anew": ({"save_total_limit": 4}, {"save_total_limit": 1})}


def _train(folder: Path, deadly: int, order: int, wanted: str, options: dict) -> None:
    torch.set_num_threads(1)
    operations = FileOperations(deadly, order)
    trainer = streaming(folder / "run", **options)
    with operations.watched():
        trainer.train(resume_from_checkpoint=wanted)
    weights = {name: value.contiguous().clone() for name, value in trainer.model.state_dict().items()}
    save_file(weights, folder / "weights.safetensors")
    (folder / "operations.json").write_text(json.dumps(operations.done))


def train(folder: Path, deadly: int = 0, order: int = 0, wanted: str = "auto", **options) -> int:
    folder.mkdir(exist_ok=True)
    process = FORKS.Process(target=_train, args=(folder, deadly, order, wanted, {**OPTIONS, **options}))
    process.start()
    process.join(120)
    assert process.exitcode is not None
    return process.exitcode


def whole(folder: Path, kind: str) -> tuple[dict[str, torch.Tensor], list[str]]:
    """Weights and file operations of the run that nothing cuts off."""
    assert begun(folder, kind) == 0
    return load_file(folder / "weights.safetensors"), json.loads((folder / "operations.json").read_text())


def begun(folder: Path, kind: str, **how) -> int:
    earlier, options = KINDS[kind]
    if earlier is not None:
        assert train(folder, wanted="", **earlier) == 0
    return train(folder, wanted="auto" if earlier is None else "", **options, **how)


def survives(folder: Path, kind: str, deadly: int, expected: dict[str, torch.Tensor]) -> None:
    assert begun(folder, kind, deadly=deadly, order=deadly) == -signal.SIGKILL
    assert train(folder, order=deadly + 1, **KINDS[kind][1]) == 0
    weights = load_file(folder / "weights.safetensors")
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    left = {p.name.rpartition("-")[0] for p in (folder / "run").iterdir() if p.is_dir()}
    assert left <= ({"checkpoint", "earlier"} if kind == "anew" else {"checkpoint"}), left
    limit = {**OPTIONS, **KINDS[kind][1]}["save_total_limit"]
    assert len(list((folder / "run").glob("checkpoint-*"))) <= limit + 1 + (4 if kind == "anew" else 0)


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_before_every_operation(tmp_path, kind):
    expected, operations = whole(tmp_path / "whole", kind)
    assert {"replace", "rmdir", "unlink", "fsync", "torch.save", "open", "mkdir", "half"} <= {
        operation.split()[0] for operation in operations
    }
    assert any(operation.startswith("unlink") and "pth" in operation for operation in operations)
    for deadly in range(1, len(operations) + 1):
        survives(tmp_path / f"at-{deadly}", kind, deadly, expected)


def test_before_some_operations(tmp_path):
    """The same in short: amid the deletion of an old checkpoint, and wherever else the dice say."""
    expected, operations = whole(tmp_path / "whole", "fresh")
    deletions = [n for n, operation in enumerate(operations, 1) if operation.split()[0] in ("unlink", "rmdir")]
    dice = random.Random(0)
    for deadly in (deletions[len(deletions) // 2], dice.randrange(1, len(operations) + 1)):
        survives(tmp_path / f"at-{deadly}", "fresh", deadly, expected)
