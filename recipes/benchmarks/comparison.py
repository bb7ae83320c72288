"""How long `hf-clars compare` takes over many offline W&B runs.

    python recipes/benchmarks/comparison.py [--runs 500] [--folder comparison-runs] [--read_only]

Every run is written by the real W&B client, in one process (a fraction of a second each), as a training of `--steps`
optimizer steps logs it: Trainer's metrics in every step; an evaluation, and five statistics of `--layers` layers, every
tenth step; and a hundred settings. There are two optimizers, five seeds and several η; some runs diverge. Runs that the
folder already has are not written again. Then the runs are read, as `compare` reads them, and compared, report
included, in a process of its own.
"""

import argparse
import math
import os
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

STATISTICS = ("weight_norm", "gradient_norm", "denominator", "gamma", "variance_factor")


def write_runs(folder: Path, count: int, steps: int, layers: int) -> None:
    os.environ |= {"WANDB_MODE": "offline", "WANDB_DIR": str(folder), "WANDB_SILENT": "true"}
    import wandb

    there = len(list(folder.glob("wandb/offline-run-*")))
    quiet = wandb.Settings(console="off", x_disable_stats=True, x_disable_machine_info=True, save_code=False)
    names = [f"stage{i // 4}.block{i % 4}.conv.weight" for i in range(layers)]
    for number in range(there, count):
        chance = random.Random(number)
        optim, seed, trial = ("clars", "lars")[number % 2], number // 2 % 5, number // 10
        settings = {"optim": optim, "seed": seed, "total_batch_size": 1024, "eta": 0.001 * (trial + 1)}
        settings |= {f"argument_{i}": i for i in range(100)}
        run = wandb.init(
            project="comparison", name=f"{optim} trial {trial} seed {seed}", config=settings, settings=quiet
        )
        run.define_metric("train/global_step")
        run.define_metric("*", step_metric="train/global_step", step_sync=True)
        ends = steps // 3 if number % 20 == 19 else steps  # some diverge
        for step in range(1, ends + 1):
            common = {"train/epoch": step / 25, "train/global_step": step}
            loss = 2 * math.exp(-step / 100) + 0.1 * chance.random() if ends == steps or step < ends else math.nan
            progress = {
                "train/images_seen": 1024 * step,
                "train/seconds": 0.7 * step,
                "train/images_per_second": 1462.0,
            }
            run.log(
                {
                    "train/loss": loss,
                    "train/grad_norm": chance.random(),
                    "train/learning_rate": 1 / step,
                    **progress,
                    **common,
                }
            )
            if step % 10 == 0:
                accuracy = 0.9 * (1 - math.exp(-step / (60 + 10 * trial))) + 0.02 * chance.random()
                run.log({"eval/accuracy": accuracy, "eval/loss": loss, "eval/images_seen": 1024 * step, **common})
                scalars = {f"layers/{s}/{name}": chance.random() for name in names for s in STATISTICS}
                run.log({**scalars, "train/global_step": step})
        run.summary["diverged"] = ends < steps
        run.finish()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=500)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--layers", type=int, default=20)
    parser.add_argument(
        "--folder", type=Path, default=None, help="where runs are kept for the next time (default: nowhere)"
    )
    parser.add_argument("--read_only", action="store_true", help="read the runs, and compare nothing")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = (options.folder or Path(temporary) / "runs").resolve()
        folder.mkdir(parents=True, exist_ok=True)
        start = time.perf_counter()
        write_runs(folder, options.runs, options.steps, options.layers)
        size = sum(log.stat().st_size for log in folder.glob("wandb/*/*.wandb"))
        print(f"written: {options.runs} runs, {size / 1e6:.0f} MB, {time.perf_counter() - start:.1f} s")

        from hf_clars.comparison.sources import read_sources

        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        start = time.perf_counter()
        runs, unreadable = read_sources([str(folder / "wandb")])
        seconds = time.perf_counter() - start
        rows = sum(len(run.history) for run in runs)
        records = sum(max(map(len, run.layers.values()), default=0) for run in runs)
        memory = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
        print(
            f"read: {len(runs)} runs ({len(unreadable)} unreadable), {rows} rows and {records} records of layers in "
            f"{seconds:.1f} s, {memory:.0f} MiB"
        )
        if not options.read_only:
            report = Path(temporary) / "report"
            command = [
                sys.executable,
                "-m",
                "hf_clars",
                "compare",
                str(folder / "wandb"),
                "--target",
                "0.75",
                "--out",
                str(report),
            ]
            start = time.perf_counter()
            status = subprocess.run(command, stdout=subprocess.DEVNULL, check=False).returncode
            print(f"hf-clars compare: {time.perf_counter() - start:.1f} s, exit status {status}")


if __name__ == "__main__":
    main()
