"""One HTML file with all that was found, which needs no network and nothing beside it."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from . import tables
from .analysis import Comparison
from .axes import AXES
from .pictures import curves_figure, layers_figure, on_page
from .runs import ComparedRun
from .statistics import LEVEL
from .verdict import verdict


def report(comparison: Comparison, about: Mapping[str, Any], layers_of: Sequence[ComparedRun] = ()) -> str:
    """The page, with `about`, what was compared: `command`, `date`, `versions` (name → version)."""
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    question = comparison.question
    environment = Environment(
        loader=FileSystemLoader(Path(__file__).parent / "templates"),
        autoescape=True,  # names of runs and settings are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    return environment.get_template("report.html").render(
        about=about,
        comparison=comparison,
        curves=[(AXES[axis], on_page(partial(curves_figure, comparison, axis), axis)) for axis in comparison.axes],
        layers=on_page(partial(layers_figure, layers_of), "layers"),
        level=f"{LEVEL * 100:g}",
        question=question,
        tables=tables,
        verdict=verdict(comparison),
    )
