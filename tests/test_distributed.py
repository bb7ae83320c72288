"""Real processes: `accelerate launch --num_processes 2` gives the weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]


def launch(processes: int, *arguments: str, config: str | None = None) -> subprocess.CompletedProcess:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}
    options = ["--config_file", str(ROOT / "recipes" / "accelerate" / config)] if config else ["--cpu"]
    command = [
        sys.executable, "-m", "accelerate.commands.launch", *options, "--num_processes", str(processes),
        "--num_machines", "1", "--mixed_precision", "no", "--dynamo_backend", "no", "--main_process_port", "0",
        *arguments,
    ]  # fmt: skip
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def train(folder: Path, processes: int, optim: str, per_device: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    result = launch(processes, str(ROOT / "tests" / "launch.py"), str(folder), optim, str(per_device))
    assert result.returncode == 0, result.stderr[-3000:]
    return torch.load(folder / "weights.pt", weights_only=True)


@pytest.mark.parametrize("optim", ["clars", "lars"])
def test_two_processes_are_one(tmp_path, optim):
    """Five steps of B = 64: one process with 64 = 16 × 4, two with 64 = 8 × 4 × 2."""
    one = train(tmp_path / "one", 1, optim, 16)
    two = train(tmp_path / "two", 2, optim, 8)
    for name, weight in one.items():
        torch.testing.assert_close(two[name], weight, rtol=1e-5, atol=1e-7)
    records = [
        [json.loads(line) for line in (tmp_path / f / "layer_statistics.jsonl").read_text().splitlines()]
        for f in ("one", "two")
    ]
    assert len(records[0]) == len(records[1]) == 5
    for a, b in zip(*records, strict=True):  # the reduced statistics are those of the whole batch, too
        for name, layer in a["layers"].items():
            assert b["layers"][name] == pytest.approx(layer, rel=1e-4)


def test_two_fsdp2_shards_are_one_model(tmp_path):
    from .launch_fsdp2 import batch
    from .launch_fsdp2 import train as train_whole
    from .models import Classifier

    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.launch_fsdp2", str(tmp_path / "weights.pt"),
    ]  # fmt: skip
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    result = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False
    )
    assert result.returncode == 0, result.stderr[-3000:]
    torch.manual_seed(1)
    model = Classifier()
    train_whole(model, *batch(), 4, False)
    sharded = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(sharded[name], parameter.detach(), rtol=1e-5, atol=1e-7)
