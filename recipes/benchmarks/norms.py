"""Time and peak memory of forward + backward with per-sample gradient norms, as ratios to plain forward + backward.

    python recipes/benchmarks/norms.py [--models resnet50 gpt2] [--methods per_sample backpack] [--rounds 5] [--compile]

Peers are measured where they can be imported; keep them out of the environment they must not change:

    pip install --no-deps --target PEERS opacus backpack-for-pytorch einops unfoldNd opt_einsum scipy \\
        git+https://github.com/awslabs/fast-differential-privacy && PYTHONPATH=PEERS python recipes/benchmarks/norms.py

Every round runs every method once, in random order; `time` is the median over rounds of a method's seconds by the plain
seconds of the same round. Those steps are waited for; with `--in_a_row 10`, as by default on CUDA, there are also
`in a row`, the same of ten steps without a wait in between, as in a training, by CUDA's clock, and `launched`, the time
until the host has launched a step. `memory` is a step's peak of tensor memory above what was there before it, by that
of plain: torch's own count of every allocation (of its allocator on CUDA, from the profiler on a CPU), so libraries'
private buffers are not in it. Freed memory stays with the process. `weights` counts the parameters of two or more
dimensions that have norms, of all there are; `error` is their largest relative difference from a slow float64
reference, over layers, as a vector over samples. In float32 it is up to a few 1e-3 for exact methods too: the pass
itself rounds, and in float64 they are within 1e-14.

A peer that cannot take BatchNorm in train mode is compared with plain on a model whose BatchNorm is frozen (eval mode,
affine weights fixed), in rows marked so. Prints one table per model and writes norms.json.
"""

import argparse
import copy
import os
import platform
import random
import statistics
import sys
import warnings
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import command_line
import torch
from norms_methods import METHODS, Norms, Step, Tools, exact_norms
from norms_models import IMAGE_MODELS, TEXT_MODELS, check, freeze_batch_norm, make, mean_loss, mixes_samples
from timing import in_a_row, keep_freed_memory, waited_for
from torch import Tensor, nn

from hf_clars.errors import UserError

MIB = 2**20


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    models = [*IMAGE_MODELS, *TEXT_MODELS]
    parser.add_argument("--models", nargs="+", default=models, metavar="MODEL", help=f"of {', '.join(models)}")
    parser.add_argument("--methods", nargs="+", default=[*METHODS], metavar="METHOD", help=f"of {', '.join(METHODS)}")
    parser.add_argument("--batch_size", type=int, default=32)
    parser.add_argument("--image_size", type=int, help="default: 96 on a CPU, 224 on CUDA")
    parser.add_argument("--width", type=int, help="of gpt2 and bert; default: 256 on a CPU, 512 on CUDA")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument(
        "--in_a_row", type=int, help="steps without a wait between them; default: 10 on CUDA, else none"
    )
    parser.add_argument("--threads", type=int, default=1, help="of a CPU")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--dtype", default="float32", help="float32, or bfloat16 for autocast")
    parser.add_argument("--channels_last", action="store_true")
    parser.add_argument("--compile", action="store_true", help="torch.compile everything")
    parser.add_argument("--no_error", action="store_true", help="without the reference, which takes float64 its memory")
    parser.add_argument("--json", default="norms.json")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    options.image_size = (224 if cuda else 96) if options.image_size is None else options.image_size
    options.width = (512 if cuda else 256) if options.width is None else options.width
    options.in_a_row = (10 if cuda else 0) if options.in_a_row is None else options.in_a_row
    choices = {"models": models, "methods": tuple(METHODS), "dtype": ("float32", "bfloat16")}
    check(options, choices, ("batch_size", "image_size", "width", "rounds", "threads"))
    if options.in_a_row < 0:
        raise UserError(f"--in_a_row {options.in_a_row} must be at least 1, or 0 for no such steps")
    if not (cuda and torch.cuda.is_available()) and options.device != "cpu":
        raise UserError(f"--device {options.device} is not available here: choose cpu, or cuda with a GPU")
    command_line.check_file("--json", options.json)
    return options


class Trial:
    """One method on its own copy of a model."""

    def __init__(self, method: str, model: nn.Module, tools: Tools) -> None:
        self.label, prepare = METHODS[method]
        self.method, self.model = method, copy.deepcopy(model)
        self.step: Step = prepare(self.model, tools)
        self.seconds: list[float] = []
        self.launched: list[float] = []
        self.in_a_row: list[float] = []

    def run(self, x: Tensor, y: Tensor) -> Norms:
        """One timed step; the gradients are gone after it."""
        seconds, launched, norms = waited_for(lambda: self.step(x, y), x.device)
        self.seconds.append(seconds)
        self.launched.append(launched)
        self.model.zero_grad(set_to_none=True)
        return norms

    def run_in_a_row(self, x: Tensor, y: Tensor, steps: int) -> None:
        def step() -> None:
            self.step(x, y)
            self.model.zero_grad(set_to_none=True)

        self.in_a_row.append(in_a_row(step, steps, x.device))

    def peak(self, x: Tensor, y: Tensor) -> int:
        """Bytes of a step's peak above what was allocated before it."""
        if x.is_cuda:
            before = torch.cuda.memory_allocated()
            torch.cuda.reset_peak_memory_stats()
            self.run(x, y)
            return torch.cuda.max_memory_allocated() - before
        activities = [torch.profiler.ProfilerActivity.CPU]
        with torch.profiler.profile(activities=activities, profile_memory=True) as profile:
            self.run(x, y)
        events = [e for e in profile.profiler.kineto_results.events() if e.name() == "[memory]"]
        total = peak = 0
        for event in sorted(events, key=lambda e: e.start_ns()):
            total += event.nbytes()
            peak = max(peak, total)
        return peak


def compare(
    options: argparse.Namespace, methods: list[str], model: nn.Module, x: Tensor, y: Tensor, tools: Tools
) -> tuple[list, dict]:
    """Rows of the methods that take the model, `plain` first, and why the others do not: method → reason."""
    exact = {} if options.no_error else exact_norms(copy.deepcopy(model), x, y)
    weights = [name for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad]
    trials, rows, refused = [], [], {}
    for method in ["plain", *(m for m in methods if m != "plain")]:
        try:
            trial = Trial(method, model, tools)
            norms = trial.run(x, y)  # also the warm-up, and the compilation
            trials.append(trial)
            rows.append(
                {
                    "method": method,
                    "label": trial.label,
                    "peak_mib": trial.peak(x, y) / MIB,
                    "measured": len(norms.keys() & weights) if norms else None,
                    "weights": len(weights),
                    "error": _error(norms, exact),
                }
            )
        except ImportError as error:
            refused[method] = f"not installed ({error})"
        except Exception as error:  # whatever a peer may raise: its reason becomes a footnote
            if method == "plain":
                raise
            refused[method] = " ".join(f"{type(error).__name__}: {error}".split())[:130]
    for trial in trials:
        trial.seconds.clear()
        trial.launched.clear()
    for _ in range(options.rounds):
        for trial in random.sample(trials, len(trials)):
            trial.run(x, y)
    for _ in range(options.rounds if options.in_a_row else 0):
        for trial in random.sample(trials, len(trials)):
            trial.run_in_a_row(x, y, options.in_a_row)
    for row, trial in zip(rows, trials, strict=True):
        row["seconds"] = trial.seconds
        row["time"] = _ratio(trial.seconds, trials[0].seconds)
        row["launched_seconds"] = trial.launched
        if options.in_a_row:
            row["in_a_row_seconds"] = trial.in_a_row
            row["in_a_row"] = _ratio(trial.in_a_row, trials[0].in_a_row)
            row["samples_per_second"] = options.batch_size / statistics.median(trial.in_a_row)
        row["memory"] = row["peak_mib"] / rows[0]["peak_mib"]
    return rows, refused


def measure(name: str, options: argparse.Namespace, tools: Tools) -> tuple[list[dict], dict[str, str]]:
    """Rows of one model, and why methods are missing from it or are measured with frozen BatchNorm only."""
    model, x, y = make(
        name,
        batch_size=options.batch_size,
        image_size=options.image_size,
        width=options.width,
        device=options.device,
        channels_last=options.channels_last,
    )
    mixes = mixes_samples(model)
    rows, notes = compare(options, options.methods, model, x, y, tools)
    for row in rows:
        row["batch_norm"] = "train" if mixes else "-"
    again = [method for method, reason in notes.items() if not reason.startswith("not installed")]
    if mixes and again:
        freeze_batch_norm(model, x)
        ours = [method for method in options.methods if method == "per_sample"]
        frozen, reasons = compare(options, [*ours, *again], model, x, y, tools)
        rows += [row | {"batch_norm": "frozen"} for row in frozen]
        for method in again:
            notes[method] = f"BatchNorm in train mode: {notes[method]}"
        for method, reason in reasons.items():
            notes[method] += f"; frozen: {reason}"
    return rows, notes


def show(name: str, rows: list[dict], notes: dict[str, str]) -> None:
    marks = {method: f"[{number}]" for number, method in enumerate(notes, 1)}
    several = "in_a_row" in rows[0]
    more = f"{'in a row':>9} {'samples/s':>9} {'launched':>9}" if several else ""
    print(f"\n{name:<38}{'BatchNorm':>9} {'time':>7} {'memory':>7} {'weights':>8} {'error':>8} {more}".rstrip())
    for row in rows:
        absolute = row["method"] == "plain"
        seconds, peak = f"{statistics.median(row['seconds']):.3f} s", f"{row['peak_mib']:.0f} M"
        label = f"{row['label']} {marks.get(row['method'], '')}"
        print(
            f"{label:<38}{row['batch_norm']:>9} {seconds if absolute else format(row['time'], '.2f'):>7} "
            f"{peak if absolute else format(row['memory'], '.2f'):>7} "
            f"{'-' if row['measured'] is None else '{measured}/{weights}'.format(**row):>8} "
            f"{'-' if row['error'] is None else format(row['error'], '.0e'):>8}" + (_of_several(row) if several else "")
        )
    for method, reason in notes.items():
        print(f"  {marks[method]} {METHODS[method][0]}: {reason}")
    sys.stdout.flush()


def _of_several(row: dict) -> str:
    seconds = f"{statistics.median(row['in_a_row_seconds']) * 1e3:.2f} ms"
    ratio = seconds if row["method"] == "plain" else f"{row['in_a_row']:.3f}"
    launched = f"{statistics.median(row['launched_seconds']) * 1e3:.2f} ms"
    return f" {ratio:>9} {row['samples_per_second']:>9.1f} {launched:>9}"


def environment(options: argparse.Namespace) -> dict[str, str]:
    if options.device == "cpu":
        names = [line for line in _read("/proc/cpuinfo").splitlines() if line.startswith("model name")]
        machine = f"{names[0].split(': ')[1] if names else platform.machine()}, {options.threads} thread(s)"
    else:
        machine = torch.cuda.get_device_name(options.device)
    return {
        "machine": machine,
        "versions": ", ".join(_versions("torch", "timm", "transformers", "opacus", "backpack-for-pytorch", "fastDP")),
        "commit": command_line.commit(),
        "command": command_line.command(),
    }


def main() -> None:
    options = parse()
    warnings.simplefilter("ignore")  # peers' deprecated hooks, ours' unmeasured parameters: the table says it
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its start and stop
    random.seed(0)
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    device = torch.device(options.device).type
    autocast = torch.autocast(device, torch.bfloat16, enabled=options.dtype == "bfloat16")

    def loss(forward: Callable[[Tensor], Tensor], x: Tensor, y: Tensor) -> Tensor:
        with autocast:
            return mean_loss(forward, x, y)

    tools = Tools(loss, torch.compile if options.compile else lambda function: function)
    about = environment(options)
    for key, value in about.items():
        print(f"{key}: {value}")
    results = {}
    for name in options.models:
        rows, notes = measure(name, options, tools)
        show(name, rows, notes)
        results[name] = {"rows": rows, "notes": notes}
        # After every model, so that an interrupted run keeps what it has.
        command_line.write(Path(options.json), {"options": vars(options), **about, "models": results})


def _error(norms: Norms, exact: Norms) -> float | None:
    """Of the layers the reference has; None for methods that do not measure every sample."""
    errors = [
        (norms[name].double() - exact[name]).norm() / exact[name].norm()
        for name in norms.keys() & exact.keys()
        if norms[name].shape == exact[name].shape
    ]
    return torch.stack(errors).max().item() if errors else None


def _ratio(seconds: list[float], to: list[float]) -> float:
    return statistics.median(s / p for s, p in zip(seconds, to, strict=True))


def _read(path: str) -> str:
    return Path(path).read_text() if Path(path).exists() else ""


def _versions(*packages: str) -> list[str]:
    found = []
    for package in packages:
        try:
            found.append(f"{package} {version(package)}")
        except PackageNotFoundError:
            continue
    return found


if __name__ == "__main__":
    command_line.run(main)
