"""Real processes: `accelerate launch --num_processes 2` gives the weights of one process."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from .helpers.processes import free_port

ROOT = Path(__file__).resolve().parents[1]


ENVIRONMENT = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "WANDB_MODE": "disabled"}


def launcher(processes: int, *options: str) -> list[str]:
    """`accelerate launch`. Its --cpu would start a single process; the script itself asks for the CPU."""
    return [
        sys.executable, "-m", "accelerate.commands.launch", *(["--multi_gpu"] if processes > 1 else ["--cpu"]),
        "--num_processes", str(processes), "--mixed_precision", "no", "--dynamo_backend", "no", *options,
        str(ROOT / "tests" / "helpers" / "launch.py"),
    ]  # fmt: skip


def saved(folder: Path, processes: int) -> dict[str, torch.Tensor]:
    assert (folder / "world_size").read_text() == str(processes)
    return torch.load(folder / "weights.pt", weights_only=True)


def train(folder: Path, processes: int, optim: str, per_device: int) -> dict[str, torch.Tensor]:
    folder.mkdir()
    command = [*launcher(processes, "--num_machines", "1", "--main_process_port", "0")]
    result = subprocess.run(
        [*command, str(folder), optim, str(per_device)], env={**os.environ, **ENVIRONMENT}, capture_output=True,
        text=True, timeout=120, cwd=ROOT, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return saved(folder, processes)


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


def test_two_nodes_are_one_process(tmp_path):
    """Two launches with machine ranks of their own that meet over loopback, two processes each: 64 = 4 × 4 × 4."""
    one = train(tmp_path / "one", 1, "clars", 16)
    folder = tmp_path / "nodes"
    folder.mkdir()
    port = free_port()
    nodes = []
    for rank in range(2):
        options = ["--num_machines", "2", "--machine_rank", str(rank), "--main_process_ip", "127.0.0.1"]
        command = launcher(4, *options, "--main_process_port", str(port), "--rdzv_backend", "static")
        nodes.append(
            subprocess.Popen(
                [*command, str(folder), "clars", "4"], env={**os.environ, **ENVIRONMENT}, cwd=ROOT, text=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
    for node in nodes:
        output, _ = node.communicate(timeout=180)
        assert node.returncode == 0, output[-3000:]
    four = saved(folder, 4)
    for name, weight in one.items():
        torch.testing.assert_close(four[name], weight, rtol=1e-5, atol=1e-7)


def test_what_clars_communicates(tmp_path):
    """Beside the gradient, which DDP reduces in its own way: two small vectors in each optimizer step, whatever B."""
    train(tmp_path / "two", 2, "clars", 4)  # 64 = 4 × 8 × 2
    calls = json.loads((tmp_path / "two" / "all_reduces.json").read_text())
    layers = 2  # weights of two or more dimensions
    assert calls == [[4 * layers], [7]] * 5  # Σ‖c‖, Σ‖c‖², samples, exclusions of each layer; StepHealth's numbers


def test_two_fsdp2_shards_are_one_model(tmp_path):
    from .helpers.launch_fsdp2 import batch
    from .helpers.launch_fsdp2 import train as train_whole
    from .helpers.models import Classifier

    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2",
        "-m", "tests.helpers.launch_fsdp2", str(tmp_path / "weights.pt"),
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


@pytest.mark.slow
def test_ssh_launches_on_two_hosts(tmp_path):
    """`recipes/launch/ssh.sh` with a remote shell that stays on this machine, and loopback addresses for hosts."""
    here = tmp_path / "here"
    here.write_text('#!/bin/bash\nshift\nexec bash -c "$*"\n')
    here.chmod(0o755)
    environment = {
        **os.environ, **ENVIRONMENT, "REMOTE_SHELL": str(here), "CPU": "1", "PROCESSES_PER_HOST": "1",
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
