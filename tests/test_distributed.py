"""Several processes give the weights of one: under `accelerate launch`, and as ranks that a launcher might start."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from .helpers.launch import train_and_save
from .helpers.launch_fsdp2 import batch, sharded
from .helpers.launch_fsdp2 import train as train_whole
from .helpers.models import Classifier
from .helpers.processes import by_two, free_port
from .helpers.recipe import ROOT
from .helpers.scripts import run_python, without
from .helpers.training import assert_close, layer_statistics

ENVIRONMENT = without(WANDB_MODE="disabled")


def launcher(processes: int, *options: str) -> list[str]:
    """Words behind `python`. The --cpu of `accelerate launch` would start a single process; the script asks for it."""
    return [
        "-m", "accelerate.commands.launch", *(["--multi_gpu"] if processes > 1 else ["--cpu"]), "--num_processes",
        str(processes), "--mixed_precision", "no", "--dynamo_backend", "no", *options,
        str(ROOT / "tests" / "helpers" / "launch.py"),
    ]  # fmt: skip


def saved(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    assert (folder / "world_size").read_text() == str(processes)
    return torch.load(folder / "weights.pt", weights_only=True)


def forked(folder: Path, processes: int, optim: str, per_device: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    by_two(train_and_save, str(folder), optim, per_device, world_size=processes)
    return saved(folder, processes)


def launched(folder: Path, processes: int, optim: str, per_device: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    words = launcher(processes, "--num_machines", "1", "--main_process_port", "0")
    run_python(*words, folder, optim, per_device, environment=ENVIRONMENT)
    return saved(folder, processes)


@pytest.mark.parametrize(
    ("way", "optim"), [(forked, "clars"), (forked, "lars"), pytest.param(launched, "clars", marks=pytest.mark.slow)]
)
def test_two_processes_are_one(tmp_path, way, optim):
    """Five steps of B = 64: one process with 64 = 16 × 4, two with 64 = 8 × 4 × 2."""
    one, two = forked(tmp_path / "one", 1, optim, 16), way(tmp_path / "two", 2, optim, 8)
    assert one.keys() == two.keys()
    assert_close(two.values(), one.values(), rtol=1e-5, atol=1e-7)
    records = [layer_statistics(tmp_path / folder) for folder in ("one", "two")]
    assert len(records[0]) == len(records[1]) == 5
    for a, b in zip(*records, strict=True):  # the reduced statistics are those of the whole batch, too
        for name, layer in a["layers"].items():
            assert b["layers"][name] == pytest.approx(layer, rel=1e-4)
    # Beside the gradient, which DDP reduces in its own way: two small vectors in each optimizer step, whatever B.
    layers = 2  # weights of two or more dimensions
    calls = json.loads((tmp_path / "two" / "all_reduces.json").read_text())
    if optim == "clars":  # Σ‖c‖, Σ‖c‖², samples, exclusions of each layer; StepHealth's numbers
        assert calls == [[4 * layers], [7]] * 5


@pytest.mark.slow
def test_two_nodes_are_one_process(tmp_path):
    """Two launches with machine ranks of their own that meet over loopback, two processes each: 64 = 4 × 4 × 4."""
    one = forked(tmp_path / "one", 1, "clars", 16)
    folder = tmp_path / "nodes"
    folder.mkdir()
    port = free_port()
    nodes = []
    for rank in range(2):
        options = ["--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
        words = launcher(4, *options, "--main_process_port", str(port), "--rdzv_backend", "static")
        nodes.append(
            subprocess.Popen(
                [sys.executable, *words, str(folder), "clars", "4"], env=ENVIRONMENT, cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    for node in nodes:
        output, _ = node.communicate(timeout=180)
        assert node.returncode == 0, output[-3000:]
    assert_close(saved(folder, 4).values(), one.values(), rtol=1e-5, atol=1e-7)


def test_two_fsdp2_shards_are_one_model(tmp_path):
    by_two(sharded, str(tmp_path / "weights.pt"))
    torch.manual_seed(1)
    model: nn.Module = Classifier()
    train_whole(model, *batch(), 4, False)
    found = torch.load(tmp_path / "weights.pt", weights_only=True)
    for name, parameter in model.named_parameters():
        torch.testing.assert_close(found[name], parameter.detach(), rtol=1e-5, atol=1e-7)


@pytest.mark.slow
def test_ssh_launches_on_two_hosts(tmp_path):
    """`recipes/launch/ssh.sh` with a remote shell that stays on this machine, and loopback addresses for hosts."""
    here = tmp_path / "here"
    here.write_text('#!/bin/bash\nshift\nexec bash -c "$*"\n')
    here.chmod(0o755)
    environment = {
        **ENVIRONMENT, "REMOTE_SHELL": str(here), "CPU": "1", "PROCESSES_PER_HOST": "1",
        "PORT": str(free_port()), "ACCELERATE": str(Path(sys.executable).with_name("accelerate")),
        "CONFIG": "recipes/demo/fashion_mnist.yaml",
    }  # fmt: skip
    flags = ["--max_steps", "2", "--total_batch_size", "256", "--report_to", "none", "--plots", "false"]
    result = subprocess.run(
        ["bash", "recipes/launch/ssh.sh", "127.0.0.1,127.0.0.2", *flags, "--output_dir", str(tmp_path / "run")],
        env=environment, capture_output=True, text=True, timeout=300, cwd=ROOT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    assert "B = 256 = 128 a device × 1 accumulated × 2 process(es)" in result.stdout
    assert (tmp_path / "run" / "model.safetensors").is_file()
