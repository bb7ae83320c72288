"""A training step against the roofline: FLOPs and bytes of its operators, and on a GPU where its time goes.

    python recipes/benchmarks/roofline.py [--models resnet50] [--batch_size 256] [--compile] [--no-measure --gpu h100]

The step is forward, backward and SGD, under bfloat16 autocast in channels-last memory. Its FLOPs and bytes are counted
from shapes (`roofline_account.py`), so that part runs anywhere (`--no-measure`). Time at the roofline is, summed over
operators, `max(FLOPs / peak, bytes / bandwidth)`.

On a GPU (or with `--measure`) one step of two trainings is in torch.profiler, plain with fused SGD, and with the exact
norms of all layers and CLARS: the kernels that take longest, or on a CPU the operators, and the sum of all.

Prints tables, writes roofline.json and the profiler's traces (for chrome://tracing) into `--out`.
"""

import argparse
import copy
import os
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path

import command_line
import torch
from norms_models import MODELS, check_sizes, make, mean_loss
from roofline_account import account
from timing import waited_for
from torch import Tensor, nn
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile

from hf_clars import CLARS, PerSampleNorms
from hf_clars.validation.checks import positive, writable_folder

# TFLOP/s of dense bfloat16 and TF32 products and TB/s of memory, by the data sheets of the SXM forms.
GPUS = {
    "h200": ({"bfloat16": 989.0, "float32": 494.5}, 4.8),
    "h100": ({"bfloat16": 989.0, "float32": 494.5}, 3.35),
    "a100": ({"bfloat16": 312.0, "float32": 156.0}, 2.039),
}
LONGEST = 15  # kernels in a table


def rows_of(work: dict[str, list[tuple[float, float]]], peak: float, bandwidth: float) -> list[dict]:
    """A row for each kind of work, and one for the whole step; peaks in FLOP/s and bytes/s."""
    work = {**work, "whole step": [operator for kind in work.values() for operator in kind]}
    return [
        {
            "kind": kind,
            "gflop": sum(flops for flops, _ in operators) / 1e9,
            "gb": sum(moved for _, moved in operators) / 1e9,
            "ms": sum(max(flops / peak, moved / bandwidth) for flops, moved in operators) * 1e3,
        }
        for kind, operators in work.items()
    ]


def trainings(
    model: nn.Module, x: Tensor, y: Tensor, loss: Callable[..., Tensor], *, compiled: bool
) -> dict[str, Callable[[], None]]:
    """Steps of two copies of the model: `plain` by fused SGD with Nesterov's momentum, `norms` by CLARS."""

    def step(forward: nn.Module, optimizer: torch.optim.Optimizer) -> None:
        loss(forward, x, y).backward()
        optimizer.step()
        optimizer.zero_grad()

    plain, ours = copy.deepcopy(model), copy.deepcopy(model)
    sgd = torch.optim.SGD(plain.parameters(), lr=1e-4, momentum=0.9, nesterov=True, fused=True)
    clars = CLARS(ours.parameters(), lr=1e-4, norms=PerSampleNorms(ours, bias_and_norm=False))
    both = {"plain": (plain, sgd), "norms": (ours, clars)}
    return {n: partial(step, torch.compile(of) if compiled else of, optimizer) for n, (of, optimizer) in both.items()}


def kernels(step: Callable[[], None], device: torch.device, trace: Path) -> list[dict]:
    """Those of one step, or on a CPU its operators; those that take longest first."""
    step()
    step()  # compiles, tunes, makes the optimizer's state
    on_cuda = device.type == "cuda"
    activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if on_cuda else [])]
    with profile(activities=activities, acc_events=True) as seen:
        waited_for(step, device)
    seen.export_chrome_trace(str(trace))
    host = {e.key: e for e in seen.key_averages() if e.device_type == DeviceType.CPU}
    # On the device the profiler draws what the host calls, too.
    found = [e for e in seen.key_averages() if e.key not in host] if on_cuda else list(host.values())
    took = {e.key: (e.self_device_time_total if on_cuda else e.self_cpu_time_total) / 1e3 for e in found}
    longest = sorted(found, key=lambda e: -took[e.key])
    return [{"ms": took[e.key], "calls": e.count, "kernel": e.key} for e in longest]


def show(title: str, rows: list[dict], measured: dict[str, list[dict]]) -> None:
    command_line.show(title, rows)
    for label, found in measured.items():
        total = sum(kernel["ms"] for kernel in found)
        longest = [{**kernel, "kernel": kernel["kernel"][:90]} for kernel in found[:LONGEST]]
        command_line.show(f"{label}: {total:.2f} ms in {len(found)} kernels", longest)


def parse() -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--models", nargs="+", default=["resnet50"], choices=MODELS)
    add("--batch_size", type=count, default=256)
    add("--image_size", type=count, default=224)
    add("--width", type=count, default=768, help="of gpt2 and bert")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float32"], help="autocast to bfloat16, or TF32")
    add("--channels_last", action=argparse.BooleanOptionalAction, default=True)
    add("--compile", action="store_true", help="torch.compile the model that is measured")
    add("--measure", action=argparse.BooleanOptionalAction, default=torch.cuda.is_available())
    parser.add_device()
    add("--gpu", choices=GPUS, type=str.lower, default="h100", help="whose roofline")
    add("--peak_tflops", type=float, help="instead of --gpu's")
    add("--bandwidth_tbs", type=float, help="instead of --gpu's, TB/s")
    add("--out", default=".", help="folder for roofline.json and the traces")
    options = parser.parse_args()
    check_sizes(options)
    peaks, bandwidth = GPUS[options.gpu]
    for flag, of_gpu in (("peak_tflops", peaks[options.dtype]), ("bandwidth_tbs", bandwidth)):
        given = getattr(options, flag)
        setattr(options, flag, positive(f"--{flag}", of_gpu if given is None else given))
    writable_folder("--out", options.out)
    return options


def main() -> None:
    options = parse()
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its start and stop
    torch.set_float32_matmul_precision("high")  # TF32, as the table has it
    warnings.filterwarnings("ignore", message=".*PerSampleNorms cannot measure")
    about = command_line.about(options, "timm", "transformers")

    def loss(model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            return mean_loss(model, x, y)

    models = {}
    for name in options.models:
        model, x, y = make(name, argparse.Namespace(**{**vars(options), "device": "cpu"}))
        rows = rows_of(account(model, loss, x, y), options.peak_tflops * 1e12, options.bandwidth_tbs * 1e12)
        measured = {}
        if options.measure:
            model, x, y = make(name, options)
            for label, step in trainings(model, x, y, loss, compiled=options.compile).items():
                measured[label] = kernels(step, x.device, Path(options.out) / f"{name}-{label}.trace.json.gz")
        show(f"{name}, {options.peak_tflops:g} TFLOP/s, {options.bandwidth_tbs:g} TB/s", rows, measured)
        models[name] = {"account": rows, "measured": measured}
        # After every model, so that an interrupted run keeps what it has.
        command_line.write(Path(options.out) / "roofline.json", {**about, "models": models})


if __name__ == "__main__":
    command_line.run(main)
