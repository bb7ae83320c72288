"""What commands that fill a grid have in common, and `hf-clars tune`."""

from __future__ import annotations

import importlib.util
import os
import shlex
from argparse import ArgumentParser, Namespace
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrainingFailedError, UserError
from ..safety.texts import printable
from ..safety.yaml_files import parse_yaml
from .grid import Run, read_grid
from .results import read_result
from .running import OURS, Runner


def add_running_arguments(parser: ArgumentParser) -> None:
    """What every command that fills a grid takes."""
    parser.add_argument("--results", default="results", help="folder of results and pictures")
    parser.add_argument("--work", default="outputs", help="folder of runs under way, with their checkpoints")
    parser.add_argument("--data_dir", help="folder with data sets by name (cifar10/, …); others come from the Hub")
    parser.add_argument("--only", nargs="+", default=[], metavar="AXIS=VALUE[,VALUE]", help="a part of the grid")
    parser.add_argument("--set", nargs="+", default=[], metavar="KEY=VALUE", help="settings of all runs: bf16=true")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time")
    parser.add_argument("--threads", type=int, help="CPU threads of each run; all cores by default")
    parser.add_argument("--launch", help="launch each run with this, for several GPUs: 'accelerate launch …'")
    parser.add_argument("--draw", action="store_true", help="run nothing, draw the results there are")
    parser.add_argument("--list", action="store_true", help="say which runs there are and which have results")


def runner_of(options: Namespace, folder: Path) -> Runner:
    if options.jobs < 1 or (options.threads is not None and options.threads < 1):
        raise UserError("--jobs and --threads must be at least 1")
    data_dir = None if options.data_dir is None else Path(os.path.expanduser(options.data_dir))
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data_dir {options.data_dir}: no such folder")
    try:
        launch = shlex.split(options.launch or "")
    except ValueError as error:
        raise UserError(f"--launch {options.launch}: {error}") from None
    return Runner(
        results=folder,
        work=Path(options.work),
        data_dir=data_dir,
        jobs=options.jobs,
        threads=options.threads,
        launch=launch,
        draw_only=options.draw,
        say=lambda line: print(printable(line), flush=True),
    )


def only_of(options: Namespace) -> dict[str, list[str]]:
    only: dict[str, list[str]] = defaultdict(list)
    for text in options.only:
        axis, equals, values = text.partition("=")
        if not equals or not values:
            raise UserError(f"--only {text}: write AXIS=VALUE or AXIS=VALUE,VALUE")
        only[axis] += values.split(",")
    return only


def settings_of(options: Namespace) -> dict[str, Any]:
    settings = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set {text}: write KEY=VALUE")
        if key in OURS:
            raise UserError(f"--set {text}: {key} is the command's to choose, from --work")
        if key in settings:
            raise UserError(f"--set {text}: {key} is set twice")
        try:
            word = key.endswith("_strategy") and value.isalpha()  # `no`, which YAML takes for false
            settings[key] = value if word else parse_yaml(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: {value!r} is not a value as YAML has them") from None
    return settings


def list_runs(folder: Path, runs: Sequence[Run]) -> None:
    for run in runs:
        result = read_result(folder, run)
        said = "no result" if result is None else f"{result.state}, commit {result.commit}"
        print(printable(f"{run.title}: {said}"))


def draws(options: Namespace) -> bool:
    """Whether pictures are drawn: runs can be made without matplotlib, unless `--draw` asks for nothing else."""
    if not options.draw and importlib.util.find_spec("matplotlib") is None:
        print("matplotlib is not installed: no pictures. --draw makes them of the same results where it is", flush=True)
        return False
    need_matplotlib()
    return True


def need_matplotlib() -> None:
    if importlib.util.find_spec("matplotlib") is None:
        raise UserError("pictures need matplotlib: pip install matplotlib")
    import matplotlib

    matplotlib.use("Agg")
    matplotlib.rcParams["svg.hashsalt"] = "hf_clars"  # the same results make the same file


def add_tuning_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("file", help="a grid with a section `tuning`, such as recipes/tuning/cifar.yaml")
    parser.add_argument("--preset", help="one of the grid's presets")
    add_running_arguments(parser)


def tune(options: Namespace) -> None:
    """`hf-clars tune`: search, final runs, a table and curves.

    Raises:
        UserError: as `figure`; or the grid has no fair `tuning`.
        TrainingFailedError: some runs ended without a result; the others were made.
    """
    from .contest import contest_figure, contest_table, layers_figure
    from .drawing import save
    from .tuning import Plan
    from .tuning import tune as contest

    file = Path(options.file)
    plan = Plan(read_grid(file, options.preset), only_of(options), settings_of(options))
    folder = Path(options.results) / f"tuning-{file.stem}" / (options.preset or "")
    runner = runner_of(options, folder)
    pictured = not options.list and draws(options)
    if options.list:
        trials = plan.search()
        runner.check(trials, here=False)
        list_runs(folder, trials)
        return
    contestants = contest(plan, runner)
    if not plan.settings:  # a part of the grid adds to the table of the whole
        contestants = contest(replace(plan, only={}), replace(runner, draw_only=True))
    contestants = [c for c in contestants if any(score is not None for score in c.searched)]
    if contestants:
        pictures = {"contest": contest_figure(contestants), "layers": layers_figure(contestants)} if pictured else {}
        for name, picture in pictures.items():
            for path in save(picture, folder / name) if picture is not None else ():
                print(path)
        text = contest_table(contestants)
        (folder / "table.md").write_text(text + "\n")
        print(text)
    else:
        print(f"no results in {folder}")
    if runner.failed:
        raise TrainingFailedError("; ".join(runner.failed))
