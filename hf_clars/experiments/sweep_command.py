"""`hf-clars sweep`: the runs of a `wandb sweep` file, without W&B's cloud."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from dataclasses import replace
from pathlib import Path

from ..errors import TrainingFailedError
from .command import add_running_arguments, list_runs, only_of, runner_of, settings_of
from .drawing import table
from .status import StatusLine
from .sweeps import read_sweep


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", help="a sweep as `wandb sweep` takes it, such as recipes/sweeps/cifar10.yaml")
    parser.add_argument("--count", type=int, help="runs of a sweep with method: random; its run_cap by default")
    parser.add_argument("--seed", type=int, default=0, help="of the draws of a sweep with method: random")
    add_running_arguments(parser)


def sweep(options: Namespace) -> None:
    """`hf-clars sweep`: make the runs that have no result yet, print a table, and say how to compare them.

    Raises:
        UserError: a file that is no such sweep, settings that the recipe does not take, folders that cannot be written.
        TrainingFailedError: some runs ended without a result; the others were made.
    """
    file = Path(options.file)
    plan = read_sweep(file)
    drawn = plan.runs(only_of(options), settings_of(options), options.count, options.seed)
    runs = list({run.key: run for run in drawn}.values())  # draws may repeat
    folder = Path(options.results) / f"sweep-{file.stem}"
    runner = runner_of(options, folder)
    runner = replace(runner, launch=runner.launch or plan.launch)
    if options.list:
        runner.check(runs, here=False)
        list_runs(folder, runs)
        return
    status = StatusLine()
    try:
        results = replace(runner, say=status.say, watch=status.watch).fill(runs)
    finally:
        status.close()
    if results:
        print(table([(run, results[run.key]) for run in runs if run.key in results]))
        print(f"hf-clars compare {folder}", flush=True)
    else:
        print(f"no results in {folder}")
    if runner.failed:
        raise TrainingFailedError("; ".join(runner.failed))
