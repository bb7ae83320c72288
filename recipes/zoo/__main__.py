"""What `PerSampleNorms` measures, and whether it is right, over timm's and transformers' architectures.

    python recipes/zoo [--source timm|transformers|all] [--names PATTERN ...] [--json zoo.json]
                       [--batch 3] [--checkpointing] [--compile [BACKEND]] [--jobs 1] [--time_limit 120] [--list]

timm: in every module file, the smallest model of each name prefix and of each set of layer types. transformers: every
model type of the auto classes for language modelling, image classification and CTC, built from a tiny configuration,
and some others. `--names` takes shell patterns such as `timm/swin*`. Weights are random; nothing is downloaded.

Each architecture runs in a process of its own, in float64 and eval mode (BatchNorm by running statistics, no dropout),
on B samples with loss (1/B) Σ f_i, f_i being random linear plus square in sample i's outputs. Sequences have 8 tokens:
`--batch 2` divides that, 3 does not, and a fault that takes positions for samples may show with one of them alone. With
`--checkpointing` activations are computed again in the backward pass (not reentrantly), sequences have 60 tokens and
images their model's own size. With `--compile` the measured pass is torch.compile's, the passes that it is compared
with are not.

An architecture's line says how many parameters are measured, and the largest error of any norm against ‖∇f_i‖/B of
batches of one by `torch.autograd.grad`, relative to that parameter's largest norm. Weight gradients with and without
measuring must agree to 1e-9 (to 1e-6 where a model casts to float32 inside) and outputs to 1e-12; where an output is
not the same to the bit, the line says so. Ends with how many parameters and architectures are right, named, absent
(neither measured nor named), wrong or crashed by measuring, and with what is not measured, grouped by reason; exit
status 1 if any number was wrong, any architecture crashed, or nothing ran.
"""

import argparse
import fnmatch
import hashlib
import json
import logging
import platform
import sys
import time
import warnings
from functools import partial
from pathlib import Path

import timm
import torch
import transformers
from architecture import Setting
from examine import examine
from of_timm import timm_cases
from of_transformers import transformers_cases
from report import line, summary, verdict
from survey import survey

import hf_clars


def _fingerprint() -> str:
    """Of the code that is measured: an editable install may be another than the one meant, and change."""
    sources = sorted(Path(hf_clars.__file__).parent.rglob("*.py"))
    return hashlib.sha1(b"".join(p.read_bytes() for p in sources)).hexdigest()[:10]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--source", choices=["timm", "transformers", "all"], default="all")
    parser.add_argument("--names", nargs="+", metavar="PATTERN", help="only architectures that match one of these")
    parser.add_argument("--json", metavar="FILE", help="write all results there")
    parser.add_argument("--batch", type=int, default=3, help="samples; 2 divides the lengths of sequences, 3 does not")
    parser.add_argument("--checkpointing", action="store_true", help="compute activations again; longer sequences")
    parser.add_argument("--compile", nargs="?", const="aot_eager", default="", metavar="BACKEND", help="torch.compile")
    parser.add_argument("--jobs", type=int, default=1, help="processes at a time")
    parser.add_argument("--time_limit", type=float, default=120.0, help="seconds for one architecture")
    parser.add_argument("--list", action="store_true", help="only list the architectures")
    options = parser.parse_args()
    if min(options.jobs, options.batch) < 1 or options.time_limit <= 0:
        parser.error("--jobs and --batch must be at least 1 and --time_limit above 0")
    setting = Setting(options.batch, options.checkpointing, options.compile)

    warnings.simplefilter("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    cases = timm_cases() if options.source != "transformers" else []
    cases += transformers_cases() if options.source != "timm" else []
    if options.names:
        cases = [c for c in cases if any(fnmatch.fnmatch(c.name, p) for p in options.names)]
        if not cases:
            parser.error(f"no architecture matches {' '.join(options.names)}; --list shows their names")
    if options.list:
        print("\n".join(c.name for c in cases))
        return 0

    versions = {"torch": torch.__version__, "timm": timm.__version__, "transformers": transformers.__version__}
    measured = {"hf_clars": str(Path(hf_clars.__file__).parent), "sources": _fingerprint()}
    about = {"command": " ".join(sys.argv), "python": platform.python_version(), **versions, **measured}
    start, results = time.monotonic(), []
    print(f"hf_clars of {measured['hf_clars']}, sources {measured['sources']}")
    print(f"{'architecture':52} {'time':>8}  ≥ 2-d     1-d       largest error of a norm; exceptions")
    for result in survey(cases, partial(examine, setting=setting), options.jobs, options.time_limit):
        results.append(result)
        print(line(result), flush=True)
        if options.json:  # each time, so that an interrupted survey leaves what it has
            Path(options.json).write_text(
                json.dumps({**about, "architectures": results}, indent=1) + "\n", encoding="utf-8"
            )
    print(f"\n{len(results)} architectures in {time.monotonic() - start:.0f} s\n{summary(results)}")
    return int(any(verdict(r) for r in results) or all("failed" in r for r in results))


if __name__ == "__main__":
    sys.exit(main())
