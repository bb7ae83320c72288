"""One HTML file with all that was found, which needs no network and nothing beside it."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from .groups import compared_settings, shown, varying
from .heat_maps import HeatMap
from .question import MEASURE_NAMES, MEASURES, UNITS, VALUES, falls, target_text
from .report_pictures import chart, heat, style
from .series import STYLES, draws_single_runs
from .statistics import LEVEL
from .summaries import Comparison, Difference, RunSummary
from .tables import finite
from .verdict import verdict
from .words import number, short_interval, spread

_TEMPLATES = Path(__file__).parent / "templates"
_MOST_SETTINGS = 40


def report(comparison: Comparison, about: Mapping[str, Any], heat_rows: Sequence[Sequence[HeatMap]] = ()) -> str:
    """The page.

    Args:
        about: what was compared: `command`, `sources`, `date`, `versions` (name → version).
        heat_rows: of `heat_maps`.
    """
    from jinja2 import Environment, FileSystemLoader, StrictUndefined

    environment = Environment(
        loader=FileSystemLoader(_TEMPLATES),
        autoescape=True,  # names of runs and settings are untrusted
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["breakable"] = _breakable
    return environment.get_template("report.html").render(_content(comparison, about, heat_rows))


def _breakable(text: str) -> Any:
    """A name that a narrow screen may break behind its punctuation."""
    from markupsafe import Markup

    return Markup("<wbr>").join(re.split(r"(?<=[_.=/-])", text))


def _content(
    comparison: Comparison, about: Mapping[str, Any], heat_rows: Sequence[Sequence[HeatMap]]
) -> dict[str, Any]:
    question = comparison.question
    to_target = comparison.axes_to_target
    charts = [chart(comparison, axis) for axis in comparison.axes]
    heats = [heat(row) for row in heat_rows]
    return {
        "about": about,
        "question": question,
        "direction": "lower" if question.lower_is_better else "higher",
        "direction_from": "its name" if question.lower_is_better == falls(question.metric) else "--lower-is-better",
        "target": target_text(question),
        "unit": UNITS[question.axis],
        "range": None if comparison.range is None else [number(x) for x in comparison.range],
        "comparison": comparison,
        "level": f"{LEVEL * 100:g}",
        "verdict": verdict(comparison),
        "groups": _groups(comparison, to_target),
        "longest_name": max(len(group.name) for group in comparison.groups),
        "unfinished": any(group.count("failed", "running") for group in comparison.groups),
        "to_target": [UNITS[axis] for axis in to_target],
        "differences": _differences(comparison),
        "charts": charts,
        "first_axis": question.axis if question.axis in comparison.axes else next(iter(comparison.axes), None),
        "styles": STYLES,
        "few": draws_single_runs(comparison),
        "heats": heats,
        "lost": _lost(comparison),
        "settings": _settings(comparison),
        "runs": _runs(comparison, to_target),
        "data": finite(
            {
                "charts": {c["axis"]: c["data"] for c in charts},
                "heat": [m["data"] | {"symbol": row["symbol"]} for row in heats for m in row["maps"]],
            }
        ),
    }


def _groups(comparison: Comparison, to_target: Sequence[str]) -> list[dict[str, Any]]:
    def cell(group: Any, measure: str) -> dict[str, Any]:
        mean = group.means.get(measure)
        return {"text": spread(mean), "value": None if mean is None else mean.mean}

    return [
        {
            "name": group.name,
            "style": style(i if i < STYLES else None),
            "runs": len(group.runs),
            "diverged": group.count("diverged"),
            "unfinished": group.count("failed", "running"),
            "cells": [cell(group, measure) for measure in VALUES],
            "reached": group.reached,
            "tried": group.tried,
            "to_target": [cell(group, axis) for axis in to_target],
        }
        for i, group in enumerate(comparison.groups)
    ]


def _differences(comparison: Comparison) -> dict[str, Any]:
    """A row for each group but the leader, with a picture of the interval of the deciding measure."""
    measures = [m for m in (comparison.deciding, *MEASURES) if comparison.differences_in(m)]
    measures = list(dict.fromkeys(measures))
    found = {(d.group, d.measure): d for d in comparison.differences}
    deciding = comparison.differences_in(comparison.deciding)
    bounds = [x for d in deciding for x in (d.interval.low, d.interval.high, d.interval.difference) if x is not None]
    bounds.append(0.0)
    low, high = min(bounds), max(bounds)
    margin = 0.05 * (high - low) or 1.0

    def at(value: float) -> float:
        return 100 * (value - low + margin) / (high - low + 2 * margin)

    def picture(difference: Difference | None) -> dict[str, float] | None:
        if difference is None:
            return None
        interval = difference.interval
        drawn = {"zero": at(0.0), "middle": at(interval.difference)}
        if interval.low is not None and interval.high is not None:
            drawn |= {"low": at(interval.low), "width": at(interval.high) - at(interval.low)}
        return drawn

    rows = []
    for group in comparison.groups[1:]:
        cells = [found.get((group.name, measure)) for measure in measures]
        if any(cells):
            rows.append(
                {
                    "name": group.name,
                    "picture": picture(found.get((group.name, comparison.deciding))),
                    "cells": [_interval_cell(d) for d in cells],
                }
            )
    return {
        "leader": comparison.groups[0].name,
        "measures": [MEASURE_NAMES[measure] for measure in measures],
        "deciding": MEASURE_NAMES[comparison.deciding],
        "rows": rows,
    }


def _interval_cell(difference: Difference | None) -> dict[str, Any]:
    if difference is None:
        return {"text": "–", "value": None, "outside": False}
    interval = difference.interval
    return {"text": short_interval(interval), "value": interval.difference, "outside": interval.clear}


def _cell(value: float | None) -> dict[str, Any]:
    return {"text": "–" if value is None else number(value), "value": value}


def _lost(comparison: Comparison) -> list[dict[str, str]]:
    """Runs that are in no mean, and why."""

    def last(summary: RunSummary) -> str:
        rows = summary.run.history
        known = [f"{UNITS[axis]} {number(rows[-1][axis])}" for axis in ("step", "epoch") if rows and axis in rows[-1]]
        return f", last seen at {' = '.join(known) if len(known) < 2 else f'{known[0]}, {known[1]}'}" if known else ""

    why = {"diverged": "diverged", "failed": "ended before its time", "running": "still running, or cut off"}
    lost = [
        {"name": s.run.name, "source": s.run.source, "why": f"{why[s.run.state]}{last(s)}"}
        for s in comparison.runs
        if s.run.state in why
    ]
    for lines, what in ((comparison.left_out, ""), (comparison.skipped, "could not be read: ")):
        for line in lines:
            source, _, reason = line.partition(": ")
            lost.append({"name": "", "source": source, "why": what + reason})
    return lost


def _settings(comparison: Comparison) -> dict[str, Any]:
    """The settings that vary, of each group; and those that all runs share."""
    runs = [summary.run for summary in comparison.runs]
    changing = varying(runs)
    differing = compared_settings(changing)
    rows = []
    for group in comparison.groups:
        sharing = group.group.sharing()
        values = []
        for key in differing[:_MOST_SETTINGS]:
            if key in sharing or all(key not in run.config for run in group.group.runs):
                values.append(shown(sharing.get(key)))
            else:
                several = list(dict.fromkeys(shown(run.config.get(key)) for run in group.group.runs))
                values.append(f"several: {', '.join(several[:4])}{', …' if len(several) > 4 else ''}")
        rows.append({"name": group.name, "cells": values})
    everywhere = {k: v for k, v in runs[0].config.items() if k not in changing}
    return {
        "names": differing[:_MOST_SETTINGS],
        "more": len(differing) - len(differing[:_MOST_SETTINGS]),
        "rows": rows,
        "shared": {key: shown(everywhere[key]) for key in compared_settings(sorted(everywhere))},
    }


def _runs(comparison: Comparison, to_target: Sequence[str]) -> list[dict[str, Any]]:
    measures = [*VALUES, *to_target]
    return [
        {
            "group": group.name,
            "name": s.run.name,
            "source": s.run.source,
            "seed": shown(s.run.config.get("seed")),
            "state": s.run.state,
            "cells": [_cell(s.measures.get(measure)) for measure in measures],
        }
        for group in comparison.groups
        for s in group.runs
    ]
