"""`hf-clars sweep`, `figure` and `tune`: the runs that a sweep's file asks for, a table of them, and a picture."""

from __future__ import annotations

import importlib.util
import os
import shlex
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import yaml

from ..errors import TrainingFailedError, UserError
from ..image_classification.panels import need_matplotlib, save
from ..recipes.packaged import SEARCHES, SWEEPS, find
from ..safety.files import write_whole
from ..safety.texts import printable
from ..safety.yaml_files import parse_yaml
from .drawing import draw, table
from .grid import Run
from .results import Result, read_result
from .running import Runner
from .searched import draw_search, search_table
from .sweeps import Sweep, read_sweep
from .tuning import contestants, finals, search

_FIGURES = Path(__file__).parent / "figures"


def run(options: Namespace) -> None:
    """Make the runs that have no result yet, print a table, draw the picture if the file has one.

    Raises:
        TrainingFailedError: some runs ended without a result, or a table or picture cannot be written. All the others
            were made, and all tables printed.
    """
    figure = options.command == "figure"
    folders = SEARCHES if options.command == "tune" else SWEEPS
    file = _FIGURES / f"figure{options.number}.yaml" if figure else find(options.file, folders, options.file)
    sweep = read_sweep(file, options.preset)
    if (sweep.tuning is not None) != (options.command == "tune"):
        says = "a" if sweep.tuning else "no"
        raise UserError(f"{file} has {says} section tuning: it is for hf-clars {'tune' if sweep.tuning else 'sweep'}")
    name = file.stem if figure else f"{'tuning' if sweep.tuning else 'sweep'}-{file.stem}"
    runner = _runner_of(options, Path(options.results) / name / (options.preset or ""), file, sweep.launch)
    only, settings = _only_of(options), _settings_of(options)
    asked: tuple[Any, ...] = (only, settings, options.count, options.seed)
    if options.draw and sweep.drawing is not None:
        need_matplotlib()
    if options.list:
        return _list(search(contestants(sweep, *asked)) if sweep.tuning else sweep.runs(*asked), runner)
    results = _fill(runner, sweep, *asked)
    if only and not settings and sweep.method == "grid":  # a part of the grid adds to the table of the whole
        asked = ()
        results = _fill(replace(runner, draw_only=True), sweep)
    failed = [*runner.failed]
    if sweep.tuning is not None:
        failed += _show_search(sweep, replace(runner, draw_only=True), asked)
    if results:
        failed += _show(sweep, results, runner.results, file.stem)
    else:
        print(f"no results in {runner.results}")
    if failed:
        raise TrainingFailedError("; ".join(failed))


def _fill(runner: Runner, sweep: Sweep, *asked: Any) -> list[tuple[Run, Result]]:
    """What there is in the end; of a tuned sweep, the final runs."""
    if sweep.tuning is None:
        runs = sweep.runs(*asked)
        found = runner.fill(runs)
    else:
        contest = contestants(sweep, *asked)
        trials = runner.fill(search(contest))
        found = runner.fill(finals(contest, trials))
        runs = finals(contest, trials, searched=True)
    return [(run, found[run.key]) for run in {run.key: run for run in runs}.values() if run.key in found]


def _show(sweep: Sweep, results: Sequence[tuple[Run, Result]], folder: Path, name: str) -> list[str]:
    """Runs can be made without matplotlib; returns what cannot be written, and why."""
    failed = _keep(folder / "table.md", table(results))
    print(f"hf-clars compare {printable(folder)}", flush=True)
    if sweep.drawing is not None:
        if importlib.util.find_spec("matplotlib") is None:
            print("no picture: matplotlib is not installed. --draw draws one where it is", flush=True)
        else:
            need_matplotlib()
            failed += _keep_figure(folder / name, draw(sweep.drawing, results))
    return failed


def _show_search(sweep: Sweep, runner: Runner, asked: Sequence[Any]) -> list[str]:
    """Likewise."""
    contest = contestants(sweep, *asked)
    found = runner.fill(search(contest))
    text = search_table(contest, found)
    if not text:
        return []
    failed = _keep(runner.results / "search.md", text)
    if importlib.util.find_spec("matplotlib") is not None:
        need_matplotlib()
        if (figure := draw_search(contest, found)) is not None:
            failed += _keep_figure(runner.results / "search", figure)
    return failed


def _keep(file: Path, text: str) -> list[str]:
    """Printed, whatever becomes of the file."""
    print(text, flush=True)
    try:
        write_whole(file, text + "\n")
    except OSError as error:
        return [f"{file} cannot be written: {error.strerror or error}; what it would say is printed"]
    return []


def _keep_figure(path: Path, figure: Any) -> list[str]:
    try:
        for kind in (".png", ".svg"):
            print(printable(save(figure, path.with_suffix(kind))))
    except UserError as error:
        return [str(error)]
    return []


def _list(runs: Sequence[Run], runner: Runner) -> None:
    runner.check(runs, here=False)
    for run in runs:
        result = read_result(runner.results, run)
        said = "no result" if result is None else f"{result.state}, commit {result.commit}"
        print(printable(f"{run.title}: {said}"))


def _runner_of(options: Namespace, folder: Path, file: Path, launch: Sequence[str]) -> Runner:
    if options.jobs < 1 or (options.threads is not None and options.threads < 1):
        raise UserError("--jobs and --threads must be at least 1")
    data_dir = Path(os.path.expanduser(options.data_dir)) if options.data_dir else None
    if data_dir is not None and not data_dir.is_dir():
        raise UserError(f"--data_dir {options.data_dir}: no such folder")
    try:
        words = shlex.split(options.launch or "") or launch
    except ValueError as error:
        raise UserError(f"--launch {options.launch}: {error}") from None
    work = Path(options.work)
    return Runner(folder, work, data_dir, file, options.jobs, options.threads, words, draw_only=options.draw)


def _only_of(options: Namespace) -> dict[str, list[str]]:
    only: dict[str, list[str]] = {}
    for text in options.only:
        axis, _, values = text.partition("=")
        if not values:
            raise UserError(f"--only {text}: write AXIS=VALUE or AXIS=VALUE,VALUE")
        only.setdefault(axis, []).extend(values.split(","))
    return only


def _settings_of(options: Namespace) -> dict[str, Any]:
    settings: dict[str, Any] = {}
    for text in options.set:
        key, equals, value = text.partition("=")
        if not equals or not key.isidentifier():
            raise UserError(f"--set {text}: write KEY=VALUE")
        if key in settings:
            raise UserError(f"--set {text}: {key} is set twice")
        try:
            word = key.endswith("_strategy") and value.isalpha()  # `no`, which YAML takes for false
            settings[key] = value if word else parse_yaml(value)
        except yaml.YAMLError:
            raise UserError(f"--set {text}: {value!r} is not a value as YAML has them") from None
    if os.path.isdir(data := str(settings.get("dataset") or "")):  # typed here, and not beside the sweep's file
        settings["dataset"] = os.path.abspath(data)
    return settings
