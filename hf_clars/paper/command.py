"""`hf-clars figure N`: make the runs of one of the paper's figures that have no result yet, and draw what there is."""

from __future__ import annotations

from argparse import ArgumentParser, Namespace
from pathlib import Path

from ..errors import TrainingFailedError
from ..experiments import Result, Run, read_grid, read_result
from ..experiments.command import add_running_arguments, draws, list_runs, only_of, runner_of, settings_of

_GRIDS = Path(__file__).parent


def add_arguments(parser: ArgumentParser) -> None:
    parser.add_argument("number", type=int, choices=(1, 2, 3, 4), help="figure of the paper; 4 is Table 1, too")
    parser.add_argument("--preset", default="small", help="paper: its settings; small (default): minutes on a CPU")
    add_running_arguments(parser)


def figure(options: Namespace) -> None:
    """What the command does.

    Raises:
        UserError: an unknown preset, axis, value or setting, before anything is run.
        TrainingFailedError: some runs ended without a result; the others were made and drawn.
    """
    grid = read_grid(_GRIDS / f"figure{options.number}.yaml", options.preset)
    settings = settings_of(options)
    runs = grid.runs(only_of(options), settings)
    folder = Path(options.results) / f"figure{options.number}" / options.preset
    runner = runner_of(options, folder)
    if options.list:
        runner.check(runs, here=False)
        list_runs(folder, runs)
        return
    pictured = draws(options)
    runner.fill(runs)
    drawn = runs if settings else grid.runs()  # a part of the grid adds to the picture of the whole
    found = [(run, result) for run in drawn if (result := read_result(folder, run)) is not None]
    if found:
        _draw(options.number, folder, found, pictured)
    else:
        print(f"no results in {folder}")
    if runner.failed:
        raise TrainingFailedError("; ".join(runner.failed))


def _draw(number: int, folder: Path, found: list[tuple[Run, Result]], pictures: bool) -> None:
    from ..experiments.drawing import save, table
    from .drawing import DRAWINGS

    for path in save(DRAWINGS[number](found), folder / f"figure{number}") if pictures else ():
        print(path)
    text = table(found)
    (folder / "table.md").write_text(text + "\n")
    print(text)
