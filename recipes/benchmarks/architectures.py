"""Time and peak memory of exact norms over many architectures, as ratios to plain forward + backward.

    python recipes/benchmarks/architectures.py [--source timm|transformers|all] [--names 'timm/convnext*' ...]
                                               [--batch_size 16] [--image_size 96] [--threads 1] [--dtype float32]

The architectures are the zoo's: the smallest model of every timm family (module file and prefix of the name), and the
transformers models that are trained most, 256 wide on 128 tokens. Each runs in a process of its own, in train mode, on
random numbers; images have `--image_size` pixels, or the least above that a network takes.

Every round runs a plain step, one of `per_sample` and one of `subset` once, in random order; gradients accumulate.
`time` is the median over rounds of the ratio of seconds within a round. `subset` is 512 samples of 16384: of so many
passes one is measured, as one of `per_sample` is, and the others are not. One of these is what is timed, and `subset`
is the mean over all. `memory` is the ratio of a step's peaks of tensor memory. `operators` says where the extra
milliseconds of a measured step are, by torch.profiler: those operators whose own time grew most. `HookBackward` is
measuring outside of operators: Python, and what calls of operators cost there.

A third of the architectures, chosen by a hash of the name, is held out: do not look at these while you tune. `--part`
chooses. Results are written after each architecture; the same command goes on where an earlier one ended.
"""

import argparse
import copy
import fnmatch
import hashlib
import json
import os
import random
import statistics
import sys
import warnings
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import command_line
import torch
from timing import interleaved, keep_freed_memory, peak_bytes, ratio, waited_for

from hf_clars import PerSampleNorms
from hf_clars.errors import UserError
from hf_clars.norms.turns import period_of

sys.path.append(str(command_line.ROOT / "recipes" / "zoo"))
from architecture import Case, Setting, call, functional
from of_timm import timm_cases
from of_transformers import transformers_cases
from survey import survey

TOTAL_BATCH_SIZE, NORM_SAMPLES = 16384, 512
SLOW = 1.20  # from here on the table says where the time goes
GOALS = "goals: mean ≤ 1.08, nine of ten ≤ 1.20, none > 1.35, memory ≤ 1.10, subset ≤ 1.02"


def is_held_out(name: str) -> bool:
    return hashlib.sha1(name.split("+")[0].encode()).digest()[0] % 3 == 0


def parse() -> argparse.Namespace:
    parser = command_line.Parser(__doc__)
    add, count = parser.add_argument, command_line.count
    add("--source", choices=["timm", "transformers", "all"], default="all")
    add("--names", nargs="+", metavar="PATTERN", help="only architectures that match one of these")
    add("--part", choices=["tuning", "held_out", "all"], default="all")
    add("--batch_size", type=count, default=16)
    add("--image_size", type=count, default=96)
    add("--threads", type=count, default=1)
    add("--dtype", choices=["float32", "bfloat16"], default="float32", help="bfloat16 for autocast")
    add("--rounds", type=count, default=5, help="at most 25: then a pass of the subset is measured")
    add("--jobs", type=count, default=1, help="processes at a time; they disturb each other")
    add("--time_limit", type=float, default=300.0, help="seconds for one architecture")
    add("--json", type=command_line.file, default="architectures.json")
    add("--table", type=command_line.file, help="write the results as a table in Markdown, too")
    return parser.parse_args()


def measure(case: Case, options: argparse.Namespace) -> dict[str, Any]:
    """One architecture's row."""
    warnings.simplefilter("ignore")
    torch.set_num_threads(options.threads)
    keep_freed_memory()
    torch.manual_seed(0)
    random.seed(0)
    model, inputs = case.build(Setting(options.batch_size, side=options.image_size, whole=True))
    model.train()
    autocast = torch.autocast("cpu", torch.bfloat16, enabled=options.dtype == "bfloat16")
    weights = [torch.randn_like(o[:1]) for o in call(model, inputs)]
    device = torch.device("cpu")

    def step_of(network: torch.nn.Module) -> Callable[[], None]:
        def step() -> None:
            with autocast:
                outputs = call(network, inputs)
            functional([o.float() for o in outputs], weights).mean().backward()

        return step

    with ExitStack() as stack:

        def measured(**how: Any) -> Callable[[], None]:
            network = copy.deepcopy(model)
            stack.enter_context(PerSampleNorms(network, bias_and_norm=False, **how))
            return step_of(network)

        steps = {
            "plain": step_of(model),
            "exact": measured(),
            "unmeasured": measured(mode="subset", total_batch_size=TOTAL_BATCH_SIZE, norm_samples=NORM_SAMPLES),
        }
        for step in steps.values():
            for _ in range(3):  # the first ones check gradients, and the first of a subset is measured
                step()
        seconds = interleaved({k: lambda s=s: waited_for(s, device)[0] for k, s in steps.items()}, options.rounds)
        peaks = {name: peak_bytes(steps[name], device) for name in ("plain", "exact")}
    (plain_peak, plain_ms), (exact_peak, exact_ms) = peaks["plain"], peaks["exact"]
    period = period_of(NORM_SAMPLES, TOTAL_BATCH_SIZE, options.batch_size, world_size=1)
    others = period - 1
    shares = [(e + others * u) / period for e, u in zip(seconds["exact"], seconds["unmeasured"], strict=True)]
    grown = {name: ms - plain_ms.get(name, 0.0) for name, ms in exact_ms.items()}
    most = sorted(grown.items(), key=lambda item: -item[1])[:4]
    return {
        "held_out": is_held_out(case.name),
        "inputs": " ".join(
            "×".join(map(str, v.shape)) for v in (inputs.values() if isinstance(inputs, dict) else inputs)
        ),
        "plain_ms": 1e3 * statistics.median(seconds["plain"]),
        "time": ratio(seconds["exact"], seconds["plain"]),
        "subset": ratio(shares, seconds["plain"]),
        "memory": exact_peak / plain_peak,
        "operators": ", ".join(f"{name.removeprefix('aten::')} {ms:+.1f}" for name, ms in most if ms > 0),
        "rounds": seconds,
    }


def chosen(options: argparse.Namespace) -> list[Case]:
    cases = timm_cases(families=True) if options.source != "transformers" else []
    cases += transformers_cases(common=True) if options.source != "timm" else []
    if options.part != "all":
        cases = [c for c in cases if is_held_out(c.name) == (options.part == "held_out")]
    if options.names:
        cases = [c for c in cases if any(fnmatch.fnmatch(c.name, p) for p in options.names)]
    if not cases:
        raise UserError("no architecture matches; python recipes/zoo --list shows their names")
    return cases


def earlier(options: argparse.Namespace, about: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Results that stand in the file already, if they were measured in the same way."""
    if not Path(options.json).exists():
        return {}
    try:
        kept = json.loads(Path(options.json).read_text(encoding="utf-8"))
        then, results = kept["options"], kept["architectures"]
    except (ValueError, KeyError, TypeError):
        raise UserError(f"{options.json} is no file of this benchmark: name another with --json") from None
    for key in ("batch_size", "image_size", "threads", "dtype", "rounds"):
        if then.get(key) != getattr(options, key):
            raise UserError(f"{options.json} has {key}={then.get(key)}: name another with --json")
    if kept["commit"] != about["commit"]:
        raise UserError(f"{options.json} is of commit {kept['commit']}: name another with --json")
    return {name: row for name, row in results.items() if "failed" not in row}


def summary(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """A row for each part."""
    parts = {
        "tuning": [r for r in rows if not r["held_out"]],
        "held out": [r for r in rows if r["held_out"]],
        "all": rows,
    }
    found = []
    for part, of in parts.items():
        times = sorted(r["time"] for r in of)
        if times:
            found.append(
                {
                    "part": part,
                    "architectures": len(of),
                    "mean": statistics.geometric_mean(times),
                    "nine of ten": times[max(0, -(-9 * len(times) // 10) - 1)],
                    "worst": times[-1],
                    "memory": max(r["memory"] for r in of),
                    "subset": statistics.geometric_mean(r["subset"] for r in of),
                    "worst subset": max(r["subset"] for r in of),
                }
            )
    return found


def markdown(about: dict[str, Any], ordered: list[dict[str, Any]], results: dict[str, dict[str, Any]]) -> str:
    """Goals and figures, every architecture with the slowest first, and those of which there are none."""
    lines = [
        "# What exact norms cost over architectures",
        "",
        *"\n\n".join((__doc__ or "").split("\n\n")[2:]).splitlines(),
        "",
    ]
    lines += [f"`{about['command']}`", "", f"commit {about['commit']}, {about['hardware']['device']}, "]
    lines[-1] += ", ".join(f"{package} {number}" for package, number in about["versions"].items())
    head = ["part", "architectures", "mean", "nine of ten", "worst", "memory", "subset", "worst subset"]
    lines += ["", GOALS, "", *_table(head, [[_shown(row[key]) for key in head] for row in summary(ordered)])]
    head = ["architecture", "inputs", "plain, ms", "time ×", "subset ×", "memory ×", "held out", "where, ms"]
    rows = []
    for row in ordered:
        figures = [_shown(row[key]) for key in ("time", "subset", "memory")]
        where = row["operators"] if row["time"] > SLOW else ""
        rows.append(
            [row["architecture"], row["inputs"], f"{row['plain_ms']:.0f}", *figures, "✓" * row["held_out"], where]
        )
    lines += ["", *_table(head, rows)]
    failed = [[name, row["failed"]] for name, row in results.items() if "failed" in row]
    lines += ["", "Not measured:", "", *_table(["architecture", "why"], failed)] if failed else []
    return "\n".join(lines) + "\n"


def _shown(value: Any) -> str:
    return f"{value:.2f}" if isinstance(value, float) else str(value)


def _table(head: list[str], rows: list[list[str]]) -> list[str]:
    return [f"| {' | '.join(cells)} |" for cells in (head, ["---"] * len(head), *rows)]


def main() -> None:
    options = parse()
    if options.rounds > 25:
        raise UserError(f"--rounds is {options.rounds}: at most 25")
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler would tell of its start and stop
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)  # before there are forks
    about = command_line.about(options, "timm", "transformers")
    results = earlier(options, about)
    cases = [case for case in chosen(options) if case.name not in results]
    for row in survey(cases, partial(measure, options=options), options.jobs, options.time_limit):
        name = row.pop("name")
        results[name] = row
        command_line.write(options.json, {**about, "architectures": results})
        print(
            f"{name:60} " + (row["failed"] if "failed" in row else f"{row['time']:6.3f}  {row['operators']}"),
            flush=True,
        )
    rows = [{"architecture": name, **row} for name, row in results.items() if "failed" not in row]
    shown = ("architecture", "inputs", "plain_ms", "time", "subset", "memory", "operators")
    ordered = sorted(rows, key=lambda row: -row["time"])
    command_line.show("slowest first", [{key: row[key] for key in shown} for row in ordered])
    command_line.show(GOALS, summary(rows))
    if options.table:
        Path(options.table).write_text(markdown(about, ordered, results), encoding="utf-8")


if __name__ == "__main__":
    command_line.run(main)
