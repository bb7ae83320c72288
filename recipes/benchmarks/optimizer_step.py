"""Time of one optimizer step on the parameters of timm models, as ratios to `torch.optim.SGD(foreach=True)`.

    OMP_NUM_THREADS=1 python recipes/benchmarks/optimizer_step.py [--models resnet50 vit_base_patch16_224]
        [--rounds 31] [--threads 1] [--device cpu] [--json optimizer_step.json]
    python recipes/benchmarks/optimizer_step.py --device cuda --rounds 101

pytorch_optimizer's LARS is measured where it can be imported; keep it out of the environment:

    pip install --no-deps --target PEERS pytorch_optimizer
    PYTHONPATH=PEERS python recipes/benchmarks/optimizer_step.py

Every round runs every optimizer once, in random order, each on weights of its own, to which nothing else writes, as in
a training. They get the same random gradients, restored outside the time measured (some peers change them). Gradients
lie elsewhere in every other round, as after `zero_grad()`. `ms` is the median over rounds; the ratios are medians of a
step's time by that of SGD in the same round, so that what else the machine does cancels. `host ms` is when `step()`
returns to Python. With `--device cuda` a step is timed by events, from an idle device on, so that a GPU that waits for
the host counts; `graph ms` is a replay of the step captured in a CUDA graph, for SGD and hf_clars, which is the work
alone, and for the fused form more of it, because a graph takes the norms of weights afresh. hf_clars' rows without a
word more are its default: fused on a GPU, layer by layer on a CPU. SGD, AdamW and the peers take all parameters in one
group with one weight decay, hf_clars takes the same list; CLARS is given the norms of all layers, as 0-dim tensors,
because to measure them is part of the backward pass. Prints one table per model and number of threads and writes
optimizer_step.json.
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
from torch import Tensor, nn

from hf_clars.optimizers import CLARS, LARS

FOREACH, FUSED = "torch SGD foreach", "torch SGD fused"
PACKAGES = ("torch", "timm", "pytorch_optimizer", "hf_clars")


def version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def optimizers(copy: Callable[[], list[Tensor]]) -> dict[str, torch.optim.Optimizer]:
    """All rows of the table, each on a copy of parameters and gradients; learning rates so small that weights stay."""
    decay = {"lr": 1e-4, "weight_decay": 5e-5}
    nesterov = {**decay, "momentum": 0.9, "nesterov": True}
    layerwise = {**decay, "momentum": 0.9, "eta": 1e-2}

    def clars(**options: bool) -> CLARS:
        parameters = copy()
        norms = {p: 2 * p.grad.norm() for p in parameters if p.grad is not None}
        return CLARS(parameters, norms=norms, **layerwise, **options)

    rows: dict[str, torch.optim.Optimizer] = {
        FOREACH: torch.optim.SGD(copy(), foreach=True, **nesterov),
        FUSED: torch.optim.SGD(copy(), fused=True, **nesterov),
        "torch SGD single": torch.optim.SGD(copy(), foreach=False, **nesterov),
        "torch AdamW foreach": torch.optim.AdamW(copy(), foreach=True, **decay),
        "torch AdamW fused": torch.optim.AdamW(copy(), fused=True, **decay),
        "timm Lars": timm.optim.Lars(copy(), **nesterov),
    }
    if version("pytorch_optimizer"):
        rows["pytorch_optimizer LARS"] = importlib.import_module("pytorch_optimizer").LARS(copy(), **nesterov)
    rows["hf_clars LARS"] = LARS(copy(), **layerwise)
    rows["hf_clars CLARS"] = clars()
    rows["hf_clars CLARS foreach"] = clars(foreach=True)
    return rows


def seconds(call: Callable[[], object], device: torch.device) -> tuple[float, float]:
    """Of a call from an idle device on: until all is done, and until it returns."""
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(2)] if device.type == "cuda" else []
    if events:
        events[0].record()
    start = time.perf_counter()
    call()
    host = time.perf_counter() - start
    if events:
        events[1].record()
    if device.type != "cpu":
        torch.accelerator.synchronize(device)
    return events[0].elapsed_time(events[1]) / 1e3 if events else time.perf_counter() - start, host


def captured(step: Callable[[], object]) -> Callable[[], object]:
    """A replay of the step as a CUDA graph; the step has been made before."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step()
    return graph.replay


def measure(model_name: str, rounds: int, device: torch.device) -> list[dict]:
    torch.manual_seed(0)
    start = list(timm.create_model(model_name).to(device).parameters())
    places = [[torch.empty_like(p) for p in start] for _ in range(2)]  # of gradients
    gradients = [1e-3 * torch.randn_like(p) for p in start]

    def restore(parameters: list[Tensor], place: list[Tensor]) -> None:
        torch._foreach_copy_(place, gradients)
        for parameter, gradient in zip(parameters, place, strict=True):
            parameter.grad = gradient

    def copy() -> list[Tensor]:
        parameters: list[Tensor] = [nn.Parameter(p.detach().clone()) for p in start]
        restore(parameters, places[0])
        return parameters

    def time_all(steps: dict[str, Callable[[], object]], alternate: bool) -> dict[str, list[tuple[float, float]]]:
        times: dict[str, list[tuple[float, float]]] = {name: [] for name in steps}
        for round_number in range(-4, rounds):  # four to make the state and to warm up, with gradients in both places
            for name in random.sample(list(steps), len(steps)):
                restore(weights_of(name), places[round_number % 2 if alternate else 0])
                elapsed = seconds(steps[name], device)
                if round_number >= 0:
                    times[name].append(elapsed)
        return times

    def weights_of(name: str) -> list[Tensor]:
        return rows[name].param_groups[0]["params"]

    rows = optimizers(copy)
    times = time_all({name: row.step for name, row in rows.items()}, alternate=True)
    graphs: dict[str, list[tuple[float, float]]] = {}
    if device.type == "cuda":
        steps = {}
        for name in rows:
            if "SGD f" in name or "hf_clars" in name:
                restore(weights_of(name), places[0])
                steps[name] = captured(rows[name].step)
        graphs = time_all(steps, alternate=False)

    def ratio(of: dict[str, list[tuple[float, float]]], name: str, to: str) -> float | None:
        if name not in of:
            return None
        return statistics.median(a / b for (a, _), (b, _) in zip(of[name], of[to], strict=True))

    return [
        {
            "optimizer": name,
            "ms": 1e3 * statistics.median(total for total, _ in times[name]),
            "host_ms": 1e3 * statistics.median(host for _, host in times[name]),
            "graph_ms": 1e3 * statistics.median(total for total, _ in graphs[name]) if name in graphs else None,
            "to_foreach": ratio(times, name, FOREACH),
            "to_fused": ratio(times, name, FUSED),
            "graph_to_fused": ratio(graphs, name, FUSED),
            "seconds": [total for total, _ in times[name]],
        }
        for name in rows
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
            columns = {
                "ms": "ms", "to_foreach": "/ SGD foreach", "to_fused": "/ SGD fused", "host_ms": "host ms",
                "graph_ms": "graph ms", "graph_to_fused": "/ SGD fused's graph",
            }  # fmt: skip
            columns = {key: title for key, title in columns.items() if any(row[key] is not None for row in rows)}
            print(f"{'optimizer':<25}", *(f"{title:>{max(8, len(title))}}" for title in columns.values()))
            for row in rows:
                cells = [
                    " " * max(8, len(title)) if row[key] is None else f"{row[key]:>{max(8, len(title))}.3f}"
                    for key, title in columns.items()
                ]
                print(f"{row['optimizer']:<25}", *cells, flush=True)
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
