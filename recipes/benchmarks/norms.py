"""Time and peak memory of forward + backward with per-sample gradient norms, as ratios to plain forward + backward.

    python recipes/benchmarks/norms.py [--models resnet50 gpt2] [--methods per_sample backpack] [--rounds 5] [--compile]

Peers are measured where they can be imported; keep them out of the environment they must not change:

    pip install --no-deps --target PEERS opacus backpack-for-pytorch einops unfoldNd opt_einsum scipy \\
        git+https://github.com/awslabs/fast-differential-privacy && PYTHONPATH=PEERS python recipes/benchmarks/norms.py

Every round runs every method once, in random order; `time` is the median over rounds of a method's seconds by the plain
seconds of the same round. Those steps are waited for; with `--in_a_row 10`, as by default on CUDA, there are also
`in_a_row`, the same of ten steps without a wait in between, as in a training, and `launched_ms`, until the host has
launched a step. `memory` is a step's peak of tensor memory (`peak_mib`) above what was there before it, by that
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
import random
import statistics
import warnings
from collections.abc import Callable
from functools import partial

import command_line
import torch
from norms_methods import METHODS, Norms, Step, Tools, exact_norms
from norms_models import MODELS, check_sizes, freeze_batch_norm, make, mean_loss, mixes_samples
from timing import in_a_row, interleaved, keep_freed_memory, peak_bytes, ratio, waited_for
from torch import Tensor, nn

MIB = 2**20


def parse() -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--models", nargs="+", default=[*MODELS], choices=MODELS)
    add("--methods", nargs="+", default=[*METHODS], choices=[*METHODS])
    add("--batch_size", type=count, default=32)
    add("--image_size", type=count, help="default: 96 on a CPU, 224 on CUDA")
    add("--width", type=count, help="of gpt2 and bert; default: 256 on a CPU, 512 on CUDA")
    add("--rounds", type=count, default=5)
    add("--in_a_row", type=count, help="steps without a wait between them; default: 10 on CUDA, else none")
    add("--threads", type=count, default=1, help="of a CPU")
    parser.add_device()
    add("--dtype", default="float32", choices=["float32", "bfloat16"], help="bfloat16 for autocast")
    add("--channels_last", action="store_true")
    add("--compile", action="store_true", help="torch.compile everything")
    add("--no_error", action="store_true", help="without the reference, which takes float64 its memory")
    add("--json", type=command_line.file, default="norms.json")
    options = parser.parse_args()
    cuda = options.device.startswith("cuda")
    for flag, on_cpu, on_cuda in (("image_size", 96, 224), ("width", 256, 512), ("in_a_row", 0, 10)):
        if getattr(options, flag) is None:
            setattr(options, flag, on_cuda if cuda else on_cpu)
    check_sizes(options)
    return options


class Trial:
    """One method on its own copy of a model, and the batch that it is given."""

    def __init__(self, method: str, model: nn.Module, x: Tensor, y: Tensor, tools: Tools) -> None:
        self.method, self.model, self.x, self.y = method, copy.deepcopy(model), x, y
        self._step: Step = METHODS[method](self.model, tools)

    def step(self) -> Norms:
        """The gradients are gone after it."""
        return self.timed()[2]

    def timed(self) -> tuple[float, float, Norms]:
        found = waited_for(lambda: self._step(self.x, self.y), self.x.device)
        self.model.zero_grad(set_to_none=True)
        return found

    def in_a_row(self, steps: int) -> float:
        def step() -> None:
            self._step(self.x, self.y)
            self.model.zero_grad(set_to_none=True)

        return in_a_row(step, steps)

    def peak(self) -> int:
        """Bytes of a step's peak above what was allocated before it."""
        return peak_bytes(self.step, self.x.device)[0]


def compare(
    options: argparse.Namespace, methods: list[str], model: nn.Module, x: Tensor, y: Tensor, tools: Tools
) -> tuple[list, dict]:
    """Rows of the methods that take the model, `plain` first, and why the others do not: method → reason."""
    exact = {} if options.no_error else exact_norms(copy.deepcopy(model), x, y)
    weights = [name for name, p in model.named_parameters() if p.ndim >= 2 and p.requires_grad]
    trials, rows, refused = [], [], {}
    for method in ["plain", *(m for m in methods if m != "plain")]:
        try:
            trial = Trial(method, model, x, y, tools)
            norms = trial.step()  # also the warm-up, and the compilation
            trials.append(trial)
            rows.append(
                {
                    "method": method,
                    "weights": f"{len(norms.keys() & weights) if norms else 0}/{len(weights)}",
                    "error": _error(norms, exact),
                    "peak_mib": trial.peak() / MIB,
                }
            )
        except ImportError as error:
            refused[method] = f"not installed ({error})"
        except Exception as error:  # whatever a peer may raise: its reason becomes a footnote
            if method == "plain":
                raise
            refused[method] = " ".join(f"{type(error).__name__}: {error}".split())[:130]
    waited = interleaved({trial.method: lambda trial=trial: trial.timed()[:2] for trial in trials}, options.rounds)
    several = {}
    if options.in_a_row:
        several = interleaved({t.method: partial(t.in_a_row, options.in_a_row) for t in trials}, options.rounds)
    for row in rows:
        row["memory"] = row["peak_mib"] / rows[0]["peak_mib"]
        row["seconds"], row["launched_seconds"] = map(list, zip(*waited[row["method"]], strict=True))
        row["ms"] = 1e3 * statistics.median(row["seconds"])
        row["time"] = ratio(row["seconds"], rows[0]["seconds"])
        if several:
            row["launched_ms"] = 1e3 * statistics.median(row["launched_seconds"])
            row["in_a_row_seconds"] = several[row["method"]]
            row["in_a_row_ms"] = 1e3 * statistics.median(row["in_a_row_seconds"])
            row["in_a_row"] = ratio(row["in_a_row_seconds"], several["plain"])
            row["samples_per_second"] = 1e3 * options.batch_size / row["in_a_row_ms"]
    return rows, refused


def measure(name: str, options: argparse.Namespace, tools: Tools) -> tuple[list[dict], dict[str, str]]:
    """Rows of one model, and why methods are missing from it or are measured with frozen BatchNorm only."""
    model, x, y = make(name, options)
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
    marks = {method: f" [{number}]" for number, method in enumerate(notes, 1)}
    command_line.show(name, [{**row, "method": row["method"] + marks.get(row["method"], "")} for row in rows])
    for method, reason in notes.items():
        print(f" {marks[method]} {method}: {reason}", flush=True)


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
    about = command_line.about(options, "timm", "transformers", "opacus", "backpack-for-pytorch", "fastDP")
    results = {}
    for name in options.models:
        rows, notes = measure(name, options, tools)
        show(name, rows, notes)
        results[name] = {"rows": rows, "notes": notes}
        # After every model, so that an interrupted run keeps what it has.
        command_line.write(options.json, {**about, "models": results})


def _error(norms: Norms, exact: Norms) -> float | None:
    """Of the layers the reference has; None for methods that do not measure every sample."""
    errors = [
        (norms[name].double() - exact[name]).norm() / exact[name].norm()
        for name in norms.keys() & exact.keys()
        if norms[name].shape == exact[name].shape
    ]
    return torch.stack(errors).max().item() if errors else None


if __name__ == "__main__":
    command_line.run(main)
