"""`hf-clars compare`: which group of runs reaches the target first, and how sure that is."""

import importlib.util
import math
import os
import platform
import shlex
import sys
from argparse import Namespace
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..safety.texts import printable
from ..validation import checks
from .analysis import Comparison, analyse
from .arguments import FLAGS
from .axes import AXES
from .groups import where
from .pictures import curves_figure, layers_figure, runs_with_layers, save
from .runs import ComparedRun, Question, falls, is_share, the_axis, the_metric
from .tables import document, groups_csv, print_comparison, runs_csv, to_json


def compare(options: Namespace) -> None:
    """What the command does; a `UserError`, before any run is read where that can be known, for a flag that makes no
    sense, no run, no run with the metric or setting asked for, a folder that cannot be written."""
    target = None if options.target is None else checks.number("--target", options.target, "finite", math.isfinite)
    keys = None if options.group_by is None else [key.strip() for key in options.group_by.split(",") if key.strip()]
    if keys == []:
        raise UserError(f"--group_by {options.group_by!r}: name settings, as in --group_by optim,total_batch_size")
    conditions: dict[str, list[str]] = defaultdict(list)
    for text in options.where:
        key, _, values = text.partition("=")
        if not key or not values:
            raise UserError(f"--where {text}: write KEY=VALUE or KEY=VALUE,VALUE")
        conditions[key] += values.split(",")
    if options.layers and options.out is None:
        raise UserError("--layers chooses runs for the pictures: say where to write them with --out")
    if options.out is not None:
        options.out = os.path.expanduser(options.out)  # shells leave `--out=~/report` as it is
        if importlib.util.find_spec("matplotlib") is None:
            raise UserError("--out draws pictures with matplotlib: pip install 'hf_clars[compare]'")
        checks.writable_folder("--out", options.out)
    if options.wandb_report:
        if elsewhere := [source for source in options.sources if not source.startswith("wandb:")]:
            raise UserError(f"--wandb_report shows runs that are in W&B: give wandb:ENTITY/PROJECT, not {elsewhere[0]}")
        if importlib.util.find_spec("wandb_workspaces") is None:
            raise UserError("--wandb_report makes its report with wandb-workspaces: pip install 'hf_clars[reports]'")

    from .sources import read_sources

    found, skipped = read_sources(options.sources)
    runs = where(found, conditions)
    metric = the_metric(runs, options.metric)
    falling = falls(metric) if options.lower_is_better is None else options.lower_is_better
    percent = is_share(metric, runs)
    if percent and target is not None and target > 1:
        raise UserError(f"--target {target:g}: {metric} is a share of 1: write {target / 100:g} or {target:g}%")
    question = Question(metric, target, the_axis(runs, metric, options.axis), falling, percent)
    comparison = analyse(runs, question, keys, skipped)
    drawn = runs_with_layers(comparison, options.layers) if options.out is not None else []

    print_comparison(comparison, sys.stdout)
    if options.out is not None:
        try:
            written = _write(comparison, drawn, Path(options.out), _about(options))
        except OSError as error:
            raise UserError(f"--out {options.out}: {error.filename or ''} {error.strerror or error}") from None
        print(*map(printable, written), sep="\n")
    if options.wandb_report:
        from .wandb_report import create_wandb_report

        print(printable(create_wandb_report(comparison)))


def _write(comparison: Comparison, drawn: Sequence[ComparedRun], folder: Path, about: dict[str, Any]) -> list[Path]:
    """Tables, pictures and the report; pictures of an earlier comparison that this one does not have are removed."""
    from .report import report

    texts = {
        "table.csv": groups_csv(comparison),
        "runs.csv": runs_csv(comparison),
        "comparison.json": to_json(comparison, about),
        "comparison.md": document(comparison),
        "report.html": report(comparison, about, drawn),
    }
    for name, text in texts.items():  # a file's name may hold bytes that are no UTF-8
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    figures = {f"curves-{axis}": curves_figure(comparison, axis) if axis in comparison.axes else None for axis in AXES}
    figures["layers-heat-maps"] = layers_figure(drawn)
    return [folder / name for name in texts] + [path for name in figures for path in save(figures[name], folder / name)]


def _about(options: Namespace) -> dict[str, Any]:
    """What was compared, and by what; `command` is the command line that says the same."""
    from ..runtime.provenance import commit
    from ..runtime.version import __version__

    words = ["hf-clars", "compare", *options.sources]
    for flag in FLAGS:
        value = getattr(options, flag)
        if value is not None and value != []:
            words += [f"--{flag}", *(value if isinstance(value, list) else [] if value is True else [str(value)])]
    versions = {"hf_clars": f"{__version__} ({commit()})", "Python": platform.python_version()}
    return {
        "command": shlex.join(words),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": versions | {name: version(name) for name in ("torch", "numpy", "pandas")},
    }
