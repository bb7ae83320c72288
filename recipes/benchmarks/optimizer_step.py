"""Time of one optimizer step on the parameters of timm models, as ratios to `torch.optim.SGD(foreach=True)`.

    OMP_NUM_THREADS=1 python recipes/benchmarks/optimizer_step.py [--models resnet50 vit_base_patch16_224]
        [--rounds 31] [--threads 1] [--device cpu] [--json optimizer_step.json]

pytorch_optimizer's LARS is measured where it can be imported; keep it out of the environment:

    pip install --no-deps --target PEERS pytorch_optimizer
    PYTHONPATH=PEERS python recipes/benchmarks/optimizer_step.py

Every round runs every optimizer once, in random order, and each starts from the same weights and random gradients,
restored outside the time measured (some peers change the gradients). `ms` is the median over rounds; the ratios are
medians of a step's time by that of SGD in the same round, so that what else the machine does cancels. SGD, AdamW and
the peers take all parameters in one group with one weight decay, hf_clars takes the same list; CLARS is given the norms
of all layers, as 0-dim tensors, because to measure them is part of the backward pass. Prints one table per model and
number of threads and writes optimizer_step.json.
"""

import argparse
import importlib
import importlib.metadata
import platform
import random
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import command_line
import timm
import timm.optim
import torch
from torch import Tensor

from hf_clars.optimizers import CLARS, LARS

FOREACH, FUSED = "torch SGD foreach", "torch SGD fused"
PACKAGES = ("torch", "timm", "pytorch_optimizer", "hf_clars")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def optimizers(parameters: list[Tensor]) -> dict[str, torch.optim.Optimizer]:
    """All rows of the table, on the same parameters; learning rates so small that the weights stay what they are."""
    decay = {"lr": 1e-4, "weight_decay": 5e-5}
    nesterov = {**decay, "momentum": 0.9, "nesterov": True}
    layerwise = {**decay, "momentum": 0.9, "eta": 1e-2}
    norms = {p: 2 * p.grad.norm() for p in parameters if p.grad is not None}
    rows: dict[str, torch.optim.Optimizer] = {
        FOREACH: torch.optim.SGD(parameters, foreach=True, **nesterov),
        FUSED: torch.optim.SGD(parameters, fused=True, **nesterov),
        "torch SGD single": torch.optim.SGD(parameters, foreach=False, **nesterov),
        "torch AdamW foreach": torch.optim.AdamW(parameters, foreach=True, **decay),
        "torch AdamW fused": torch.optim.AdamW(parameters, fused=True, **decay),
        "timm Lars": timm.optim.Lars(parameters, **nesterov),
    }
    if version("pytorch_optimizer"):
        rows["pytorch_optimizer LARS"] = importlib.import_module("pytorch_optimizer").LARS(parameters, **nesterov)
    rows["hf_clars LARS"] = LARS(parameters, **layerwise)
    rows["hf_clars CLARS"] = CLARS(parameters, norms=norms, **layerwise)
    other = parameters[0].device.type == "cpu"
    name = "hf_clars CLARS foreach" if other else "hf_clars CLARS per layer"
    rows[name] = CLARS(parameters, norms=norms, foreach=other, **layerwise)
    return rows


def seconds(call: Callable[[], object], device: torch.device) -> float:
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    start = time.perf_counter()
    call()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return time.perf_counter() - start


def measure(model_name: str, rounds: int, device: torch.device) -> list[dict]:
    torch.manual_seed(0)
    parameters = list(timm.create_model(model_name).to(device).parameters())
    for parameter in parameters:
        parameter.grad = 1e-3 * torch.randn_like(parameter)
    tensors = [t for p in parameters for t in (p.detach(), p.grad)]
    start = [t.clone() for t in tensors]
    rows = optimizers(parameters)
    times: dict[str, list[float]] = {name: [] for name in rows}
    for round_number in range(-2, rounds):  # two rounds to make the state and to warm up
        for name in random.sample(list(rows), len(rows)):
            torch._foreach_copy_(tensors, start)
            elapsed = seconds(rows[name].step, device)
            if round_number >= 0:
                times[name].append(elapsed)

    def ratio(name: str, to: str) -> float:
        return statistics.median(a / b for a, b in zip(times[name], times[to], strict=True))

    return [
        {
            "optimizer": name,
            "ms": 1e3 * statistics.median(measured),
            "to_foreach": ratio(name, FOREACH),
            "to_fused": ratio(name, FUSED),
            "seconds": measured,
        }
        for name, measured in times.items()
    ]


def processor(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    info = Path("/proc/cpuinfo")
    names = [line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["resnet50", "vit_base_patch16_224"])
    parser.add_argument("--rounds", type=int, default=31)
    parser.add_argument("--threads", type=int, nargs="+", default=[1], help="numbers of CPU threads to measure with")
    parser.add_argument("--device", type=torch.device, default=torch.device("cpu"))
    parser.add_argument("--json", default="optimizer_step.json")
    options = parser.parse_args()
    if min(options.rounds, *options.threads) < 1:
        parser.error("--rounds and --threads must be at least 1")
    for model in options.models:
        if not timm.is_model(model):
            parser.error(f"--models {model} is no timm model")
    command_line.check_file("--json", options.json)

    random.seed(0)
    versions = {"python": platform.python_version(), **{package: version(package) for package in PACKAGES}}
    machine = processor(options.device)
    print(", ".join(f"{package} {number or '(absent: no row)'}" for package, number in versions.items()))
    tables = []
    for model in options.models:
        for threads in options.threads:
            torch.set_num_threads(threads)
            rows = measure(model, options.rounds, options.device)
            tables.append({"model": model, "threads": threads, "rows": rows})
            print(f"\n{model}, {machine}, {threads} thread{'s' * (threads > 1)}, {options.rounds} rounds")
            print(f"{'optimizer':<25} {'ms':>8} {'/ SGD foreach':>14} {'/ SGD fused':>12}")
            for row in rows:
                print(
                    f"{row['optimizer']:<25} {row['ms']:>8.2f} {row['to_foreach']:>14.3f} {row['to_fused']:>12.3f}",
                    flush=True,
                )
    report = {
        "command": command_line.command(),
        **command_line.origin(str(options.device)),
        "options": {**vars(options), "device": str(options.device)},
        "machine": {"processor": machine, **versions},
        "tables": tables,
    }
    command_line.write(Path(options.json), report)


if __name__ == "__main__":
    command_line.run(main)
