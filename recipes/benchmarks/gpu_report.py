"""Everything that is to be measured on a GPU, most telling first, within a time budget.

    python recipes/benchmarks/gpu_report.py [--minutes 13] [--out recipes/results/gpu] [--only norms-resnet50 …]

Every measurement is a process of its own with a time limit; one that fails or takes too long is reported and the next
one begins. What has a result of this commit in `--out` is not measured again, so the same command goes on after it was
cut off, or ran out of time. `--list` shows the measurements, `--tiny` tries all of them at tiny sizes on a CPU (which
says that they work, nothing else). Peers are measured where they can be imported, see `norms.py`.

`--out` gets for each its output (`NAME.log`), figures (`NAME.json`) and how it ended (`NAME.status.json`), and in the
end `report.md` and `report.json`: goals and what was measured. Exit status 0 if all ran, reached or not; else 1.
"""

import argparse
import importlib.util
import os
import sys
import time
from dataclasses import replace
from pathlib import Path

import command_line
import psutil
from gpu_goals import Finding, findings, markdown
from gpu_runs import Run, end_with_us, run_all

from hf_clars.errors import UserError
from hf_clars.runtime.provenance import commit
from hf_clars.validation.checks import positive, writable_folder

HERE = Path(__file__).resolve().parent.relative_to(command_line.ROOT)
MODELS = ("resnet50", "vit_small_patch16_224", "gpt2", "mobilenetv2_100", "densenet121")
PEERS = ("backpack", "fastdp", "opacus_ghost", "vmap")
NEEDED = ("torch", "triton", "timm", "transformers", "accelerate")
NEEDED_BY = {"tests": ("pytest", "hypothesis"), "roofline": ("matplotlib",)}  # by measurements of such names


def measurements(out: Path, *, tiny: bool) -> list[Run]:
    """In the order in which they are worth their time."""
    device = "cpu" if tiny else "cuda"
    sizes = ["--batch_size", "4", "--image_size", "32", "--width", "64", "--rounds", "1", "--in_a_row", "1"]
    norms = [
        "--dtype", "bfloat16", "--channels_last", "--no_error", "--device", device,
        *(sizes if tiny else ["--batch_size", "256", "--width", "768", "--rounds", "9"]),
    ]  # fmt: skip
    variables = {"PYTHONUNBUFFERED": "1", "WANDB_MODE": "disabled", "HF_HUB_OFFLINE": "1"}
    found = filter(None, (str(command_line.ROOT), os.environ.get("PYTHONPATH")))
    variables["PYTHONPATH"] = os.pathsep.join(found)

    def script(name: str, file: str, seconds: float, *arguments: str, json: str = "--json") -> Run:
        target = out / (name if json == "--out" else f"{name}.json")
        return Run(name, [sys.executable, str(HERE / file), *arguments, json, str(target)], seconds, variables)

    def tests(name: str, pattern: str, seconds: float, *if_tiny: str) -> list[Run]:
        files = sorted(str(f.relative_to(command_line.ROOT)) for f in (command_line.ROOT / "tests").glob(pattern))
        workers = (
            ["-n", "8"] if importlib.util.find_spec("xdist") and not tiny else []
        )  # Triton's compiler takes a core
        options = ["-q", "-p", "no:cacheprovider", *workers, *(if_tiny if tiny else ())]
        pytest = [sys.executable, "-m", "pytest", *options, *files]
        return [Run(name, pytest, seconds, variables)] if files else []

    def of_norms(model: str, *more: str, seconds: float, name: str, methods: tuple[str, ...] = ("per_sample",)) -> Run:
        arguments = ["--models", model, "--methods", *methods, *norms, *more]
        return script(f"{name}-{model}", "norms.py", seconds, *arguments)

    resnet = ["resnet18" if tiny else "resnet50"]
    step = ["--models", *resnet, "--rounds", "1"] if tiny else ["--rounds", "31"]
    roofline = ["--models", *resnet]
    large = ["--model_name", *resnet]
    wait = ["--model_name", *resnet]
    if tiny:
        roofline += ["--batch_size", "2", "--image_size", "32", "--steps", "1", "--rounds", "1"]
        large += ["--total_batch_size", "8", "--micro_batch", "4", "--image_size", "32", "--rounds", "1"]
        wait += ["--batch_size", "2"]
    on = ["--device", device]
    few = ["--rounds", "3", "--in_a_row", "3"]  # some peers take ten times as long
    return [
        *(of_norms(model, name="norms", seconds=60) for model in MODELS),
        script("step", "optimizer_step.py", 60, *step, *on),
        script("no-wait", "no_wait.py", 60, *wait, *on),
        script("roofline", "roofline.py", 60, *roofline, *on, json="--out"),
        script("large-step", "large_step.py", 90, *large, *on),
        # Most of their time is Triton's, which compiles a kernel for nearly each shape.
        *tests("tests-kernels", "test_norms_kernels.py", 200, "-k", "which_kernel or not_served"),
        *tests("tests-step", "test_optimizers_fused*.py", 90, "--collect-only"),
        *(of_norms(model, "--compile", name="compiled", seconds=240) for model in MODELS),
        script("roofline-compiled", "roofline.py", 120, *roofline, *on, "--compile", json="--out"),
        *(of_norms(model, *few, name="peers", seconds=90, methods=("per_sample", *PEERS)) for model in MODELS),
    ]


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=13.0, help="that all may take together")
    parser.add_argument("--out", default="recipes/results/gpu", help="folder of results, relative to the checkout")
    parser.add_argument("--patience", type=float, default=1.0, help="multiplies the limits of the measurements")
    parser.add_argument("--only", nargs="+", metavar="NAME", help="these measurements, see --list")
    parser.add_argument("--list", action="store_true", help="show the measurements and measure nothing")
    parser.add_argument("--tiny", action="store_true", help="try all of them at tiny sizes on a CPU")
    options = parser.parse_args()
    positive("--minutes", options.minutes)
    positive("--patience", options.patience)
    return options


def main() -> int:
    options = parse()
    os.chdir(command_line.ROOT)
    out = Path(options.out)
    if out.is_relative_to(command_line.ROOT):  # files name commands, and no paths of this machine
        out = out.relative_to(command_line.ROOT)
    runs = measurements(out, tiny=options.tiny)
    names = [run.name for run in runs]
    for name in options.only or []:
        if name not in names:
            raise UserError(f"--only {name} is unknown: choose from {', '.join(names)}")
    runs = [
        replace(run, seconds=run.seconds * options.patience)
        for run in runs
        if not options.only or run.name in options.only
    ]
    if options.list:
        for run in runs:
            print(f"{run.name:<24} {run.seconds:>4.0f} s  {' '.join(run.command)}")
        return 0
    kinds = dict.fromkeys(run.name.partition("-")[0] for run in runs)
    needed = [*NEEDED, *(package for kind in kinds for package in NEEDED_BY.get(kind, ()))]
    missing = [package for package in needed if importlib.util.find_spec(package) is None]
    if missing:
        raise UserError(f"{', '.join(missing)} not installed: pip install {' '.join(missing)}")
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        raise UserError("torch sees no GPU here: run it where there is one, or try it out with --tiny")
    writable_folder("--out", out)
    end_with_us()
    print(f"{command_line.command()}\ncommit {commit()}, torch {torch.__version__}")
    spent = time.time() - psutil.Process().create_time()  # to import torch
    ended = run_all(runs, out, seconds=60 * options.minutes - spent, commit=commit(), cwd=command_line.ROOT)
    # Only now, because this process would hold memory of the GPU.
    about = {"command": command_line.command(), **command_line.origin("cpu" if options.tiny else "cuda")}
    found: list[Finding] = findings(ended, out)
    if options.tiny:  # for which there are no goals
        found = [replace(finding, goal=None) for finding in found]
    text = ("Tiny sizes on a CPU: that it works, and nothing else.\n\n" if options.tiny else "") + markdown(
        ended, found, about
    )
    command_line.write(
        out / "report.json",
        {**about, "runs": [vars(e) for e in ended], "findings": [vars(f) for f in found]},
    )
    (out / "report.md").write_text(text)
    print(f"\n{text}")
    return 0 if all(e.ran for e in ended) else 1


if __name__ == "__main__":
    command_line.run(main)
