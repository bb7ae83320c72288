"""A comparison as text, Markdown, CSV and JSON. Tables for people are frames of text, their index in front."""

import json
import shutil
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TextIO

from pandas import DataFrame, concat

from ..safety.texts import in_csv, in_markdown, printable
from .analysis import Comparison
from .axes import AXES
from .groups import compared_settings, mixed, settings_of, shown, varying
from .runs import TO_TARGET, VALUES
from .statistics import LEVEL, number, short_interval, spread
from .verdict import verdict

DIFFERENCES = f"differences [{LEVEL * 100:g} % interval]; n seed pairs, or W (Welch) where seeds do not pair"


def title(comparison: Comparison) -> str:
    """What the table of groups shows."""
    question = comparison.question
    unit = ", in percent" if question.percent else ""
    text = f"{comparison.metric_text}{unit}: mean ± standard deviation over finished runs"
    if comparison.range is not None:
        text += f"; the column mean is over {AXES[question.axis]} {' to '.join(map(number, comparison.range))}"
    if question.target is not None:
        text += f"; how long to {question.target_text}, of those that reached it"
    return text


def names_of_measures(comparison: Comparison) -> dict[str, str]:
    """Those that some group has, and what they are called; the one that decides first."""
    to_target = sorted(filter(comparison.has, TO_TARGET.values()), key=lambda measure: measure != comparison.deciding)
    values = {measure: f"{name}, %" if comparison.question.percent else name for measure, name in VALUES.items()}
    return {measure: measure.replace("_", " ") for measure in to_target} | values


def groups_table(comparison: Comparison) -> DataFrame:
    """The leader first; columns that no group fills are left out."""
    groups = comparison.groups
    table = groups[["runs", "diverged"]].astype(str)
    unfinished = groups["failed"] + groups["running"]
    if unfinished.any():
        table["unfinished"] = unfinished.astype(str)
    if comparison.question.target is not None:
        table["reached"] = groups["reached"].astype(str) + "/" + groups["tried"].astype(str)
    for measure, name in names_of_measures(comparison).items():
        scale = comparison.scale(measure)
        table[name] = list(map(spread, groups[f"{measure}_mean"] * scale, groups[f"{measure}_std"] * scale))
    return table


def differences_table(comparison: Comparison, short: bool = False) -> DataFrame:
    """Each group minus the leader; `short`: in what decides and the last value alone."""
    found = comparison.differences
    wanted = (comparison.deciding, "final") if short else {measure for _, measure in found}
    names = names_of_measures(comparison).items()
    measures = {measure: name.replace("%", "% points") for measure, name in names if measure in wanted}
    groups = [group for group in comparison.groups.index[1:] if any((group, m) in found for m in measures)]
    rows = [
        [short_interval(found[g, m].times(comparison.scale(m))) if (g, m) in found else "–" for m in measures]
        for g in groups
    ]
    return DataFrame(rows, groups, list(measures.values())).rename_axis(f"minus {comparison.leader}")


def runs_table(comparison: Comparison) -> DataFrame:
    runs = comparison.runs.reset_index()
    table = runs[["name", "group"]].assign(seed=runs["seed"].map(shown), state=runs["state"])
    for measure, name in names_of_measures(comparison).items():
        table[name] = (runs[measure] * comparison.scale(measure)).map(number)
    table["last step"] = [number(run.history["step"].max()) if len(run.history) else "–" for run in runs["run"]]
    return table.assign(**{"where it was read": runs["source"]}).set_index("name").rename_axis("run")


def settings_table(comparison: Comparison) -> DataFrame:
    """A row for each setting that is compared, those that vary first; a column for each group."""
    settings = settings_of(comparison.runs["run"])
    keys = compared_settings(dict.fromkeys([*varying(settings), *sorted(settings)]))
    table = DataFrame(index=keys).rename_axis("setting")
    for group in comparison.groups.index:
        runs = comparison.runs.loc[[group], "run"]
        several = mixed(settings_of(runs))
        values = {key: list(dict.fromkeys(shown(run.config.get(key)) for run in runs)) for key in keys}
        table[group] = [f"several: {', '.join(values[key])}" if key in several else values[key][0] for key in keys]
    return table


def notes(comparison: Comparison) -> list[str]:
    """What else a reader must know: remarks, then runs that are not in it."""
    return [*comparison.remarks, *comparison.left_out, *(f"{line} (skipped)" for line in comparison.skipped)]


def print_comparison(comparison: Comparison, file: TextIO) -> None:
    """Verdict, tables and remarks, without control characters; on a terminal, wide tables in parts of its width."""
    width = shutil.get_terminal_size().columns if file.isatty() else None
    tables = {title(comparison): groups_table(comparison), DIFFERENCES: differences_table(comparison, short=True)}
    for heading, table in tables.items():
        if len(table):
            text = table.map(printable).rename(printable, axis=0).rename(printable, axis=1)
            text = text.rename_axis(None, axis=0).rename_axis(printable(table.index.name), axis=1)
            print(printable(heading), text.to_string(line_width=width), "", sep="\n", file=file)
    lines = [f"note: {note}" for note in notes(comparison)]
    more = [f"and {len(lines) - 40} more lines of this kind"] if len(lines) > 40 else []
    print(*map(printable, [*verdict(comparison), *lines[:40], *more]), sep="\n", file=file)


def markdown(table: DataFrame) -> str:
    """Names are untrusted: what Markdown or HTML would read in them is written out."""
    rows = [(table.index.name, *table.columns), *table.itertuples(name=None)]
    head, *body = [f"| {' | '.join(map(in_markdown, row))} |" for row in rows]
    return "\n".join([head, f"| --- |{' ---: |' * len(table.columns)}", *body])


def document(comparison: Comparison) -> str:
    """Markdown: the verdict, the table of groups, that of differences if there are any, and the notes."""
    parts = [*map(in_markdown, verdict(comparison)), in_markdown(title(comparison)), markdown(groups_table(comparison))]
    if len(table := differences_table(comparison)):
        parts += [DIFFERENCES, markdown(table)]
    return "\n\n".join([*parts, "\n".join(f"- {in_markdown(note)}" for note in notes(comparison))]).rstrip() + "\n"


def groups_csv(comparison: Comparison) -> str:
    """A line for each group: its settings, counts, and of every measure the mean, deviation and number of runs."""
    groups = comparison.groups
    settings = DataFrame(_settings(comparison), groups.index, list(comparison.keys), dtype=object)
    return _csv(concat([settings, groups], axis=1))


def runs_csv(comparison: Comparison) -> str:
    """A line for each run: its group, name, source, seed, state, measures."""
    return _csv(comparison.runs.drop(columns="run"))


def _csv(table: DataFrame) -> str:
    cells = table.astype(object).map(in_csv).rename(columns=in_csv, index=in_csv)
    return cells.to_csv(index_label="group", lineterminator="\n")


def _settings(comparison: Comparison) -> list[dict[str, Any]]:
    """Of each group, those that it was made by."""
    firsts = (comparison.runs.loc[[group], "run"].iloc[0].config for group in comparison.groups.index)
    return [{key: config.get(key) for key in comparison.keys} for config in firsts]


def to_json(comparison: Comparison, about: Mapping[str, Any]) -> str:
    """Everything that was found; `about` says what was compared. NaN and infinity are null."""
    groups = comparison.groups.reset_index().assign(settings=_settings(comparison))
    differences = [
        {"group": group, "minus": comparison.leader, "measure": measure, **asdict(interval)}
        for (group, measure), interval in comparison.differences.items()
    ]
    content = {
        **about, "question": asdict(comparison.question), "verdict": verdict(comparison),
        "area_range": comparison.range, "groups": groups.to_dict("records"), "differences": differences,
        "runs": comparison.runs.drop(columns="run").reset_index().to_dict("records"),
        **{lines: getattr(comparison, lines) for lines in ("remarks", "left_out", "skipped")},
    }  # fmt: skip
    text = json.dumps(content, default=str)
    return json.dumps(json.loads(text, parse_constant=lambda _: None), indent=1, ensure_ascii=False) + "\n"
