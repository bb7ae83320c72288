"""A training step by stage: what it must compute and move, how long that takes at the roofline, and how long it took.

    python recipes/benchmarks/roofline.py [--models resnet50] [--batch_size 256] [--compile] [--device none --gpu h100]

The step is forward, backward and optimizer, under bfloat16 autocast in channels-last memory: plain with SGD, and with
the exact norms of all layers and CLARS. FLOPs and bytes are counted from shapes alone (`roofline_account.py`), so that
part runs anywhere (`--device none`); what norms add is what the kernels for a GPU do. Time at the roofline is, summed
over operators, `max(FLOPs / peak, bytes / bandwidth)`; a stage is bound by whichever is longer in all. On a GPU the
time of its kernels is measured beside it, and of whole steps the time (median of interleaved rounds of steps in a row),
samples/s, peak memory above what was there before the step, and the time until the host has launched it all. On a CPU
(`--device cpu`) it is the operators' time.

A compiled model's operators are fused, so they move less than the account says, and they have no stages any more: all
of it is the "rest".

Prints one table per model; writes roofline.json and roofline.png into `--out`.
"""

import argparse
import importlib.util
import os
import random
import re
import warnings
from pathlib import Path
from typing import Any

import command_line
import torch
from norms_models import IMAGE_MODELS, TEXT_MODELS, check, make, mean_loss
from roofline_account import Account, Work, account
from roofline_profile import GRADIENTS, Trial, measure, summary, trials
from roofline_stages import KINDS, Stages
from torch import Tensor, nn

from hf_clars.errors import UserError
from hf_clars.validation.checks import positive, writable_folder

# TFLOP/s of dense bfloat16 and TF32 products and TB/s of memory, by the data sheets. The longest name that fits counts.
GPUS = {
    "h200 nvl": ("H200 NVL", {"bfloat16": 835.5, "float32": 417.5}, 4.8),
    "h200": ("H200 SXM", {"bfloat16": 989.0, "float32": 494.5}, 4.8),
    "h100": ("H100 SXM", {"bfloat16": 989.0, "float32": 494.5}, 3.35),
    "h100 nvl": ("H100 NVL", {"bfloat16": 835.5, "float32": 417.5}, 3.9),
    "h100 pcie": ("H100 PCIe", {"bfloat16": 756.0, "float32": 378.0}, 2.0),
    "a100": ("A100 40 GB", {"bfloat16": 312.0, "float32": 156.0}, 1.555),
    "a100-sxm4-80gb": ("A100 80 GB SXM", {"bfloat16": 312.0, "float32": 156.0}, 2.039),
    "a100 80gb pcie": ("A100 80 GB PCIe", {"bfloat16": 312.0, "float32": 156.0}, 1.935),
}


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [*IMAGE_MODELS, *TEXT_MODELS]
    parser.add_argument("--models", nargs="+", default=["resnet50"], metavar="MODEL", help=f"of {', '.join(models)}")
    parser.add_argument("--batch_size", type=int, default=256)
    parser.add_argument("--image_size", type=int, default=224)
    parser.add_argument("--width", type=int, default=768, help="of gpt2 and bert")
    parser.add_argument("--dtype", default="bfloat16", help="bfloat16 for autocast, or float32 (as TF32)")
    parser.add_argument("--channels_last", action=argparse.BooleanOptionalAction, default=True)
    parser.add_argument("--compile", action="store_true", help="torch.compile the model that is measured")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "none", help="cuda, cpu or none")
    parser.add_argument("--gpu", help=f"whose roofline, of {', '.join(GPUS)}; default: the GPU at hand, or h100")
    parser.add_argument("--peak_tflops", type=float, help="instead of --gpu's")
    parser.add_argument("--bandwidth_tbs", type=float, help="instead of --gpu's, TB/s")
    parser.add_argument("--steps", type=int, default=10, help="in a row")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", default=".", help="folder for roofline.json and roofline.png")
    options = parser.parse_args()
    choices = {"models": models, "dtype": ("float32", "bfloat16")}
    check(options, choices, ("batch_size", "image_size", "width", "steps", "rounds"))
    cuda = options.device.startswith("cuda") and torch.cuda.is_available()
    if not cuda and options.device not in ("cpu", "none"):
        raise UserError(f"--device {options.device} is not available here: choose cpu or none, or cuda with a GPU")
    writable_folder("--out", options.out)
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("the plot needs matplotlib: pip install matplotlib")
    return options


def roofline(options: argparse.Namespace) -> dict[str, Any]:
    """`{"gpu", "peak", "bandwidth"}` in FLOP/s and bytes/s.

    Raises:
        UserError: of a GPU that is not in the table, and peaks are not given.
    """
    given = options.peak_tflops, options.bandwidth_tbs
    if options.gpu is not None and options.gpu.lower() not in GPUS:
        raise UserError(f"--gpu {options.gpu} is unknown: choose from {', '.join(GPUS)}, or give its peaks")
    key, name = (options.gpu or "h100").lower(), ""
    if options.gpu is None and options.device.startswith("cuda"):
        name = torch.cuda.get_device_name(options.device)
        key = max((k for k in GPUS if re.search(rf"\b{k}\b", name.lower())), key=len, default="")
        if not key and None in given:
            raise UserError(
                f"{name} is not in the table of peaks: give --peak_tflops and --bandwidth_tbs of its data sheet"
            )
    known, peaks, bandwidth = GPUS.get(key, (name, {options.dtype: 0.0}, 0.0))
    peak = peaks[options.dtype] if given[0] is None else positive("--peak_tflops", given[0])
    bandwidth = bandwidth if given[1] is None else positive("--bandwidth_tbs", given[1])
    return {"gpu": known if given == (None, None) else "as given", "peak": peak * 1e12, "bandwidth": bandwidth * 1e12}


def step_of(options: argparse.Namespace) -> Any:
    def step(model: nn.Module, x: Tensor, y: Tensor) -> None:
        with torch.autocast(x.device.type, torch.bfloat16, enabled=options.dtype == "bfloat16"):
            loss = mean_loss(model, x, y)
        loss.backward()

    return step


def rows_of(stages: Stages, counted: Account, limits: dict[str, Any], measured: dict[str, Trial]) -> list[dict]:
    """A row for each stage and kind that there is: work, seconds at the roofline, and those that were measured."""
    rows = []
    for cell in ((stage, kind) for stage in stages.names for kind in (*KINDS, GRADIENTS)):
        plain, added = counted.plain.get(cell, []), counted.norms.get(cell, [])
        seconds = {name: trial.cells.get(cell) for name, trial in measured.items()}
        if not any(work.bytes for work in plain) and not any(seconds.values()):
            continue
        row: dict[str, Any] = {"stage": cell[0], "kind": cell[1], "bound": _bound(plain, limits)}
        row["plain"] = _figures(plain, limits) | {"measured_seconds": seconds.get("plain")}
        row["norms"] = _figures([*plain, *added], limits) | {"measured_seconds": seconds.get("norms")}
        rows.append(row)
    return rows


def _figures(work: list[Work], limits: dict[str, Any]) -> dict[str, float]:
    total = sum(work, Work())
    seconds = sum(w.seconds(limits["peak"], limits["bandwidth"]) for w in work)
    return {"flops": total.flops, "bytes": total.bytes, "roofline_seconds": seconds}


def _bound(work: list[Work], limits: dict[str, Any]) -> str:
    total = sum(work, Work())
    return "memory" if total.bytes / limits["bandwidth"] >= total.flops / limits["peak"] else "products"


def total_of(rows: list[dict]) -> dict[str, Any]:
    total: dict[str, Any] = {"stage": "whole step", "kind": "", "bound": ""}
    for name in ("plain", "norms"):
        total[name] = {
            key: None if all(row[name][key] is None for row in rows) else sum(row[name][key] or 0 for row in rows)
            for key in ("flops", "bytes", "roofline_seconds", "measured_seconds")
        }
    return total


def show(name: str, rows: list[dict], whole: dict[str, dict], limits: dict[str, Any]) -> None:
    measured = bool(whole)
    print(
        f"\n{name}, roofline of {limits['gpu']}: {limits['peak'] / 1e12:g} TFLOP/s, {limits['bandwidth'] / 1e12:g} TB/s"
    )
    head = (
        f"{'stage':<15}{'':<16}{'GFLOP':>9}{'GB':>8} {'bound by':>9}{'ms':>8} |{'norms: GFLOP':>13}{'GB':>7}{'ms':>7}"
    )
    print(head + (f" |{'measured ms':>12}{'norms':>9}{'ratio':>7}" if measured else ""))
    for row in [*rows, total_of(rows)]:
        plain, norms = row["plain"], row["norms"]
        flops, moved, seconds = (norms[key] - plain[key] for key in ("flops", "bytes", "roofline_seconds"))
        line = f"{row['stage']:<15}{row['kind']:<16}{plain['flops'] / 1e9:>9.1f}{plain['bytes'] / 1e9:>8.2f} "
        line += f"{row['bound']:>9}{plain['roofline_seconds'] * 1e3:>8.2f} |"
        line += f"{flops / 1e9:>13.1f}{moved / 1e9:>7.2f}{seconds * 1e3:>7.2f}"
        if measured:
            took, with_norms = plain["measured_seconds"], norms["measured_seconds"]
            ratio = f"{with_norms / took:.2f}" if took and with_norms else "-"
            line += f" |{_ms(took):>12}{_ms(with_norms):>9}{ratio:>7}"
        print(line)
    for label, of in whole.items():
        peak = "" if of["peak_bytes"] is None else f", peak {of['peak_bytes'] / 2**20:.0f} MiB"
        print(
            f"{label}: {of['seconds'] * 1e3:.2f} ms a step, {of['images_per_second']:.1f} samples/s, launched after "
            f"{of['launched_seconds'] * 1e3:.2f} ms, {of['profiled_seconds'] * 1e3:.2f} ms in the profiler{peak}"
        )
    if measured:
        print(f"norms / plain: {whole['norms']['seconds'] / whole['plain']['seconds']:.3f}", flush=True)


def _ms(seconds: float | None) -> str:
    return "-" if seconds is None else f"{seconds * 1e3:.2f}"


def main() -> None:
    options = parse()
    limits = roofline(options)
    random.seed(0)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its start and stop
    torch.set_float32_matmul_precision("high")  # TF32, as the table has it
    warnings.filterwarnings("ignore", message=".*PerSampleNorms cannot measure")
    on_device = options.device != "none"
    about = {
        "command": command_line.command(),
        **command_line.origin(options.device),
        "measured": on_device,
        "options": vars(options),
        "roofline": limits,
    }
    print(f"{about['command']}\ncommit {about['commit']}, {about['hardware']['device']}, torch {torch.__version__}")
    if not on_device:
        print("account only, nothing measured")
    step, models = step_of(options), {}
    for name in options.models:
        sizes = {"image_size": options.image_size, "width": options.width, "channels_last": options.channels_last}
        stages, counted = account(*make(name, batch_size=1, device="cpu", **sizes), options.batch_size, step)
        if options.compile:
            counted.without_stages()
        measured: dict[str, Trial] = {}
        if on_device:
            batch = make(name, batch_size=options.batch_size, device=options.device, **sizes)
            measured = trials(*batch, step, compiled=options.compile)
            measure(measured, steps=options.steps, rounds=options.rounds, compiled=options.compile)
        rows = rows_of(stages, counted, limits, measured)
        whole = {label: summary(trial, options.batch_size) for label, trial in measured.items()}
        show(name, rows, whole, limits)
        models[name] = {"rows": rows, "total": total_of(rows), "whole": whole}
        # After every model, so that an interrupted run keeps what it has.
        command_line.write(Path(options.out) / "roofline.json", {**about, "models": models})
        from roofline_plot import draw

        draw(models, limits, Path(options.out) / "roofline.png", measured=on_device)


if __name__ == "__main__":
    command_line.run(main)
