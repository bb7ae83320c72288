"""`hf-clars compare`: which group of runs reaches the target first, and how sure that is."""

from __future__ import annotations

import io
import math
import os
import platform
import shlex
import sys
from argparse import ArgumentParser, Namespace, RawDescriptionHelpFormatter
from collections import defaultdict
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import UserError
from ..experiments.command import need_matplotlib
from ..safety.texts import printable
from ..validation import checks
from .analysis import analyse
from .document import document
from .groups import where
from .heat_maps import heat_maps, layers_figure, runs_with_layers
from .question import Question, falls, the_axis, the_metric
from .runs import AXES, ComparedRun
from .summaries import Comparison
from .tables import groups_csv, print_comparison, runs_csv, to_json

_PICTURES = (*(f"curves-{axis}" for axis in AXES), "layers-heat-maps")

_ABOUT = """\
A SOURCE is a W&B project (wandb:ENTITY/PROJECT?FILTERS), a trackio project (trackio:PROJECT), a folder of offline W&B
runs or one .wandb file, the output folder of a Trainer, TensorBoard's event files, the results of hf-clars sweep,
figure or tune, or a folder of such folders.

Runs with the same settings are a group, and should differ by their seed alone. By default the settings that count are
those that differ between runs, apart from the seed, from where and how comfortably a run was made, and from those that
add nothing to the ones before them (a learning rate that goes with the optimizer).
"""


def add_arguments(parser: ArgumentParser) -> None:
    parser.description = _ABOUT
    parser.formatter_class = RawDescriptionHelpFormatter
    parser.add_argument("sources", nargs="+", metavar="SOURCE", help="where runs are")
    parser.add_argument("--metric", default="eval/accuracy", help="what is compared (default: %(default)s)")
    parser.add_argument("--target", type=float, help="the value of the metric to reach")
    parser.add_argument(
        "--axis", choices=AXES, help="how long is measured in (default: epoch, or step where epochs are not known)"
    )
    parser.add_argument(
        "--lower-is-better",
        action="store_true",
        default=None,
        help="the metric falls; known of those with loss, error, perplexity or the like in their names",
    )
    parser.add_argument("--group-by", metavar="KEY[,KEY]", help="settings that make a group (default: see above)")
    parser.add_argument(
        "--where",
        nargs="+",
        action="extend",
        default=[],
        metavar="KEY=VALUE[,VALUE]",
        help="only runs with these settings",
    )
    parser.add_argument(
        "--layers",
        nargs="+",
        metavar="RUN",
        help="runs whose γ_k and M_k are drawn, by name or path (default: the best of each of the two best groups)",
    )
    parser.add_argument("--out", metavar="FOLDER", help="write tables, pictures and report.html there")
    parser.add_argument("--wandb-report", action="store_true", help="also save the comparison as a report in W&B")


def compare(options: Namespace) -> None:
    """What the command does.

    Raises:
        UserError: a flag that makes no sense, no run, no run with the metric or setting asked for; a folder that cannot
            be written. Before any run is read where that can be known.
    """
    target = None if options.target is None else checks.number("--target", options.target, "finite", math.isfinite)
    keys = _keys(options.group_by)
    conditions = _conditions(options.where)
    if options.layers and options.out is None:
        raise UserError("--layers chooses runs for the pictures: say where to write them with --out")
    if options.wandb_report:
        from .wandb_report import check_wandb_report

        check_wandb_report(options.sources)
    if options.out is not None:
        options.out = os.path.expanduser(options.out)  # shells leave `--out=~/report` as it is
        need_matplotlib()
        checks.writable_folder("--out", options.out)

    from .sources import read_sources

    found, skipped = read_sources(options.sources)
    runs = where(found, conditions)
    metric = the_metric(runs, options.metric)
    falling = falls(metric) if options.lower_is_better is None else options.lower_is_better
    question = Question(metric, target, the_axis(runs, metric, options.axis), falling)
    comparison = analyse(runs, question, keys, skipped)
    drawn = runs_with_layers(comparison, options.layers) if options.out is not None else []

    if isinstance(sys.stdout, io.TextIOWrapper):  # names may hold what its encoding has no letters for
        sys.stdout.reconfigure(errors="backslashreplace")
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


def _keys(group_by: str | None) -> list[str] | None:
    if group_by is None:
        return None
    keys = [key.strip() for key in group_by.split(",") if key.strip()]
    if not keys:
        raise UserError(f"--group-by {group_by!r}: name settings, as in --group-by optim,total_batch_size")
    return keys


def _conditions(texts: Sequence[str]) -> dict[str, list[str]]:
    conditions: dict[str, list[str]] = defaultdict(list)
    for text in texts:
        key, equals, values = text.partition("=")
        if not key or not equals or not values:
            raise UserError(f"--where {text}: write KEY=VALUE or KEY=VALUE,VALUE")
        conditions[key] += values.split(",")
    return conditions


def _write(comparison: Comparison, drawn: Sequence[ComparedRun], folder: Path, about: dict[str, Any]) -> list[Path]:
    """Tables, pictures and the report; pictures of an earlier comparison that this one does not have are removed."""
    from ..experiments.drawing import save
    from .curves import curves_figure
    from .report import report

    heat_rows = heat_maps(drawn)
    texts = {
        "table.csv": groups_csv(comparison),
        "runs.csv": runs_csv(comparison),
        "comparison.json": to_json(comparison, about),
        "comparison.md": document(comparison),
        "report.html": report(comparison, about, heat_rows),
    }
    for name, text in texts.items():
        # A file's name may hold bytes that are no UTF-8.
        (folder / name).write_text(text, encoding="utf-8", errors="backslashreplace")
    written = [folder / name for name in texts]
    for axis in comparison.axes:
        written += save(curves_figure(comparison, axis), folder / f"curves-{axis}")
    if heat_rows:
        written += save(layers_figure(heat_rows), folder / "layers-heat-maps")
    for name in _PICTURES:
        for path in (folder / f"{name}.png", folder / f"{name}.svg"):
            if path not in written:
                path.unlink(missing_ok=True)
    return written


def _about(options: Namespace) -> dict[str, Any]:
    """What was compared, and by what."""
    import numpy
    import torch

    from .. import __version__
    from ..runtime.provenance import commit

    return {
        "command": shlex.join(_command(options)),
        "sources": list(options.sources),
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "versions": {
            "hf_clars": f"{__version__} ({commit()})",
            "Python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": numpy.__version__,
        },
    }


def _command(options: Namespace) -> list[str]:
    """The command line that says the same."""
    words = ["hf-clars", "compare", *options.sources]
    for name in ("metric", "target", "axis", "group_by", "where", "layers", "out"):
        value = getattr(options, name)
        if value is not None and value != []:
            words += [f"--{name.replace('_', '-')}", *map(str, value if isinstance(value, list) else [value])]
    if options.lower_is_better:
        words.append("--lower-is-better")
    return words + (["--wandb-report"] if options.wandb_report else [])
