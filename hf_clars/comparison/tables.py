"""A comparison as text, Markdown, CSV and JSON."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, TextIO

from ..safety.texts import in_csv, in_markdown, printable
from .question import MEASURE_NAMES, MEASURES, UNITS, VALUES, target_text
from .statistics import LEVEL, Mean
from .summaries import Comparison, GroupSummary
from .verdict import verdict
from .words import number, short_interval, spread

Rows = list[list[str]]

DIFFERENCES = f"differences [{LEVEL * 100:g} % interval]; n seed pairs, or W (Welch) where seeds do not pair"


def table(comparison: Comparison) -> tuple[list[str], Rows]:
    """The head and a row for each group, the leader first; columns that no group fills are left out."""
    head = ["group", "runs", "diverged"]
    unfinished = any(group.count("running", "failed") for group in comparison.groups)
    to_target = comparison.axes_to_target
    if unfinished:
        head.append("unfinished")
    if comparison.question.target is not None:
        head += ["reached", *(UNITS[axis] for axis in to_target)]
    head += ["last", "best", "mean"]
    rows = []
    for group in comparison.groups:
        row = [group.name, str(len(group.runs)), str(group.count("diverged"))]
        if unfinished:
            row.append(str(group.count("running", "failed")))
        if comparison.question.target is not None:
            row += [f"{group.reached}/{group.tried}", *(spread(group.means.get(axis)) for axis in to_target)]
        row += [spread(group.means.get(measure)) for measure in VALUES]
        rows.append(row)
    return head, rows


def title(comparison: Comparison) -> str:
    """What the table shows: `eval/accuracy over the finished runs of a group; …`."""
    question = comparison.question
    text = f"{question.metric}, mean ± standard deviation over finished runs"
    if comparison.range is not None:
        begin, end = comparison.range
        text += f"; `mean` over {UNITS[question.axis]} {number(begin)} to {number(end)}"
    if question.target is not None:
        text += f"; how long to {target_text(question)}, of those that reached it"
    return text


def differences(comparison: Comparison, measures: Sequence[str] = MEASURES) -> tuple[list[str], Rows]:
    """The head and a row for each group but the leader: `measures` minus the leader's."""
    shown = [m for m in measures if comparison.differences_in(m)]
    head = [f"minus {comparison.groups[0].name}", *(MEASURE_NAMES[measure] for measure in shown)]
    found = {(d.group, d.measure): short_interval(d.interval) for d in comparison.differences}
    rows = [
        [group.name, *(found.get((group.name, measure), "–") for measure in shown)] for group in comparison.groups[1:]
    ]
    return head, [row for row in rows if any(cell != "–" for cell in row[1:])]


def lines(comparison: Comparison) -> list[str]:
    """What else a reader must know: remarks, then runs that are not in it."""
    return [*comparison.remarks, *comparison.left_out, *(f"{line} (skipped)" for line in comparison.skipped)]


def print_comparison(comparison: Comparison, file: TextIO) -> None:
    """Verdict, tables and remarks: with rich on a terminal, as plain aligned text elsewhere or without rich."""
    sections = [
        _printable(title(comparison), *table(comparison)),
        _printable(DIFFERENCES, *differences(comparison, ("final", comparison.question.axis))),
    ]
    try:
        from rich.console import Console
    except ImportError:
        Console = None  # type: ignore[assignment,misc]
    if Console is not None and file.isatty():
        _print_rich(comparison, sections, Console(file=file, highlight=False))
        return
    for heading, head, rows in sections:
        if rows:
            print(heading, aligned(head, rows), "", sep="\n", file=file)
    for sentence in verdict(comparison):
        print(printable(sentence), file=file)
    for line in _most(lines(comparison)):
        print(f"note: {printable(line)}", file=file)


def _printable(heading: str, head: list[str], rows: Rows) -> tuple[str, list[str], Rows]:
    return printable(heading), list(map(printable, head)), [list(map(printable, row)) for row in rows]


def _print_rich(comparison: Comparison, sections: Sequence[tuple[str, list[str], Rows]], console: Any) -> None:
    from rich.table import Table
    from rich.text import Text

    for heading, head, rows in sections:
        if rows:
            console.print(Text(heading, style="italic"))
        for part in _parts(head, rows, console.width) if rows else ():
            drawn = Table(box=None, pad_edge=False)
            for column in part:
                drawn.add_column(Text(head[column]), justify="right" if column else "left", overflow="fold")
            for i, row in enumerate(rows):
                drawn.add_row(
                    *(Text(row[column]) for column in part), style="bold" if i == 0 and head[0] == "group" else ""
                )
            console.print(drawn)
            console.print()
    for i, sentence in enumerate(verdict(comparison)):
        console.print(Text(printable(sentence), style="bold green" if i == 0 else ""))
    for line in _most(lines(comparison)):
        console.print(Text(f"note: {printable(line)}", style="yellow"))


def _most(lines: list[str], most: int = 40) -> list[str]:
    return lines[:most] + ([f"and {len(lines) - most} more lines of this kind"] if len(lines) > most else [])


def _parts(head: Sequence[str], rows: Rows, width: int) -> list[list[int]]:
    """Columns of tables that fit a width, the first column in each of them."""
    widths = [max(len(row[i]) for row in [head, *rows]) + 2 for i in range(len(head))]  # rich's padding
    first = min(widths[0], width // 2)
    parts: list[list[int]] = [[0]]
    for i in range(1, len(head)):
        if len(parts[-1]) > 1 and first + sum(widths[j] for j in parts[-1][1:]) + widths[i] > width:
            parts.append([0])
        parts[-1].append(i)
    return parts


def aligned(head: Sequence[str], rows: Rows) -> str:
    """Columns of equal width: the first to the left, numbers to the right."""
    widths = [max(len(row[i]) for row in [head, *rows]) for i in range(len(head))]

    def line(row: Sequence[str]) -> str:
        return "  ".join(
            cell.ljust(w) if i == 0 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths, strict=True))
        )

    return "\n".join(text.rstrip() for text in (line(head), line(["─" * w for w in widths]), *map(line, rows)))


def markdown(head: Sequence[str], rows: Rows) -> str:
    """A Markdown table. Names are untrusted: what Markdown or HTML would read in them is written out."""
    align = ["---", *["---:"] * (len(head) - 1)]
    escaped = [list(map(in_markdown, row)) for row in [head, *rows]]
    return "\n".join(f"| {' | '.join(row)} |" for row in [escaped[0], align, *escaped[1:]])


def groups_csv(comparison: Comparison) -> str:
    """A line for each group: its settings, counts, and of every measure the mean, deviation and number of runs."""
    keys = list(comparison.groups[0].group.settings)
    head = ["group", *keys, "runs", "finished", "diverged", "failed", "running", "reached"]
    head += [f"{measure}_{part}" for measure in map(_column, MEASURES) for part in ("mean", "std", "n")]
    return _csv(head, [_group_row(group, keys) for group in comparison.groups])


def _group_row(group: GroupSummary, keys: Sequence[str]) -> list[Any]:
    row = [group.name, *(group.group.settings[key] for key in keys), len(group.runs)]
    row += [group.count(state) for state in ("finished", "diverged", "failed", "running")]
    row.append(group.reached)
    for measure in MEASURES:
        mean = group.means.get(measure, Mean(math.nan, None, 0))
        row += [mean.mean if mean.n else None, mean.std, mean.n]
    return row


def runs_csv(comparison: Comparison) -> str:
    """A line for each run: its group, name, source, seed, state, measures."""
    head = ["group", "name", "source", "seed", "state", *map(_column, MEASURES)]
    rows = [
        [group.name, s.run.name, s.run.source, s.run.config.get("seed"), s.run.state, *map(s.measures.get, MEASURES)]
        for group in comparison.groups
        for s in group.runs
    ]
    return _csv(head, rows)


def to_json(comparison: Comparison, about: Mapping[str, Any]) -> str:
    """Everything that was found; `about` says what was compared. NaN and infinity are null."""
    content = {
        **about,
        "question": asdict(comparison.question),
        "verdict": verdict(comparison),
        "area_range": comparison.range,
        "groups": [
            {
                "name": group.name,
                "settings": dict(group.group.settings),
                "runs": len(group.runs),
                **{state: group.count(state) for state in ("finished", "diverged", "failed", "running")},
                "reached": group.reached,
                **{_column(measure): asdict(mean) for measure, mean in group.means.items()},
            }
            for group in comparison.groups
        ],
        "differences": [
            {"group": d.group, "minus": d.leader, "measure": _column(d.measure), **asdict(d.interval)}
            for d in comparison.differences
        ],
        "runs": [
            {
                "group": group.name,
                "name": s.run.name,
                "source": s.run.source,
                "seed": s.run.config.get("seed"),
                "state": s.run.state,
                **{_column(measure): value for measure, value in s.measures.items()},
            }
            for group in comparison.groups
            for s in group.runs
        ],
        "remarks": list(comparison.remarks),
        "left_out": list(comparison.left_out),
        "skipped": list(comparison.skipped),
    }
    return json.dumps(finite(content), indent=1, ensure_ascii=False, allow_nan=False, default=str) + "\n"


def finite(value: Any) -> Any:
    """The same with None for numbers that JSON does not know."""
    if isinstance(value, Mapping):
        return {str(key): finite(v) for key, v in value.items()}
    if isinstance(value, list | tuple):
        return [finite(v) for v in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _column(measure: str) -> str:
    return f"{UNITS[measure]}_to_target" if measure in UNITS else measure


def _csv(head: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerows([in_csv(cell) for cell in row] for row in [head, *rows])
    return text.getvalue()
