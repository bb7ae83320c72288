"""Time of one optimizer step on the parameters of timm models, as ratios to `torch.optim.SGD(foreach=True)`.

    OMP_NUM_THREADS=1 python recipes/benchmarks/optimizer_step.py [--models resnet50 vit_base_patch16_224]
        [--rounds 31] [--threads 1] [--device cpu] [--json optimizer_step.json]
    python recipes/benchmarks/optimizer_step.py --device cuda --rounds 101

pytorch_optimizer's LARS is measured where it can be imported; keep it out of the environment:

    pip install --no-deps --target PEERS pytorch_optimizer
    PYTHONPATH=PEERS python recipes/benchmarks/optimizer_step.py

Every round runs every optimizer once, in random order, each on weights of its own, to which nothing else writes, as in
a training. They get the same random gradients, restored outside the time measured (some peers change them). Gradients
lie elsewhere in every other round, as after `zero_grad()`. `ms` is the median over rounds of the time from an idle
device to an idle device, so that a GPU that waits for the host counts; the ratios are medians of a step's time by that
of SGD in the same round. `host ms` is when `step()` returns to Python. hf_clars' rows without a word more are its
default: fused on a GPU, layer by layer on a CPU. SGD, AdamW and the peers take all parameters in one group with one
weight decay, hf_clars takes the same list; CLARS is given the norms of all layers, as 0-dim tensors, because to measure
them is part of the backward pass. Prints one table per model and number of threads and writes optimizer_step.json.
"""

import importlib
import random
import statistics
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec

import command_line
import timm
import timm.optim
import torch
from timing import interleaved, ratio, waited_for
from torch import Tensor, nn

from hf_clars.optimizers import CLARS, LARS

FOREACH, FUSED = "torch SGD foreach", "torch SGD fused"


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
    if find_spec("pytorch_optimizer"):
        rows["pytorch_optimizer LARS"] = importlib.import_module("pytorch_optimizer").LARS(copy(), **nesterov)
    rows["hf_clars LARS"] = LARS(copy(), **layerwise)
    rows["hf_clars CLARS"] = clars()
    rows["hf_clars CLARS foreach"] = clars(foreach=True)
    return rows


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

    rows = optimizers(copy)
    turns = dict.fromkeys(rows, 0)

    def timed(name: str) -> tuple[float, float]:
        restore(rows[name].param_groups[0]["params"], places[turns[name] % 2])
        turns[name] += 1
        return waited_for(rows[name].step, device)[:2]

    steps = {name: partial(timed, name) for name in rows}
    interleaved(steps, 4)  # to make the state and to warm up, with gradients in both places
    times = {name: [*map(list, zip(*found, strict=True))] for name, found in interleaved(steps, rounds).items()}
    return [
        {
            "optimizer": name,
            "ms": 1e3 * statistics.median(seconds),
            "host_ms": 1e3 * statistics.median(host),
            "to_foreach": ratio(seconds, times[FOREACH][0]),
            "to_fused": ratio(seconds, times[FUSED][0]),
            "seconds": seconds,
        }
        for name, (seconds, host) in times.items()
    ]


def main() -> None:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--models", nargs="+", type=command_line.timm_model, default=["resnet50", "vit_base_patch16_224"])
    add("--rounds", type=count, default=31)
    add("--threads", type=count, nargs="+", default=[1], help="numbers of CPU threads to measure with")
    parser.add_device()
    add("--json", type=command_line.file, default="optimizer_step.json")
    options = parser.parse_args()
    random.seed(0)
    about = command_line.about(options, "timm", "pytorch_optimizer", "hf_clars")
    tables = []
    for model in options.models:
        for threads in options.threads:
            torch.set_num_threads(threads)
            rows = measure(model, options.rounds, torch.device(options.device))
            tables.append({"model": model, "threads": threads, "rows": rows})
            command_line.show(f"{model}, {threads} thread{'s' * (threads > 1)}, {options.rounds} rounds", rows)
    command_line.write(options.json, {**about, "tables": tables})


if __name__ == "__main__":
    command_line.run(main)
