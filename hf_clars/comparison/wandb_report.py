"""A comparison as a report in W&B, through wandb-workspaces."""

from __future__ import annotations

import importlib.util
from collections import defaultdict
from collections.abc import Sequence
from typing import Any

from ..errors import UserError
from .document import findings, notes
from .groups import compared_settings
from .question import UNITS
from .summaries import Comparison, GroupSummary
from .verdict import verdict

_PREFIX = "wandb:"
_MOST_GROUPS = 20
_AXES = {
    "epoch": "train/epoch",
    "step": "train/global_step",
    "images": "{part}/images_seen",
    "seconds": "{part}/seconds",
}


def check_wandb_report(sources: Sequence[str]) -> None:
    """What can be known before any run is read.

    Raises:
        UserError: a source is not W&B's (those that are want a login when they are read), or wandb-workspaces is not
            installed.
    """
    for source in sources:
        if not source.startswith(_PREFIX):
            raise UserError(f"--wandb-report shows runs that are in W&B: give wandb:ENTITY/PROJECT, not {source}")
    if importlib.util.find_spec("wandb_workspaces") is None:
        raise UserError("--wandb-report needs wandb-workspaces: pip install wandb-workspaces")


def create_wandb_report(comparison: Comparison) -> str:
    """Save a new report in the project of the first run; returns its address.

    It has the verdict, the tables, and a grid of the metric over every axis. Each of the best 20 groups is a run set of
    the very runs that were compared, by their ids: a filter by settings would also find runs that were left out here.

    wandb-workspaces asks W&B for the entity's projects and each project's number, and sends the mutation `upsertView`.
    The tests answer these three with shapes that the fragments of the installed clients' own requests prescribe, from
    a server on the same machine; they were not recorded from W&B's cloud.

    Raises:
        UserError: W&B refused the report, or could not be reached.
    """
    import wandb_workspaces.reports.v2 as wr

    entity, project, _ = _address(comparison.groups[0].runs[0].run.source)
    remarks = notes(comparison)
    grid = wr.PanelGrid(
        runsets=[one for group in comparison.groups[:_MOST_GROUPS] for one in _run_sets(group)],
        panels=[_panel(comparison, axis, i) for i, axis in enumerate(comparison.axes)],
    )
    report = wr.Report(
        entity=entity,
        project=project,
        title=f"{comparison.question.metric.replace('/', ' ')}: {len(comparison.groups)} groups compared"[:128],
        description=verdict(comparison)[0],
        blocks=[
            wr.MarkdownBlock(findings(comparison)),
            grid,
            *([wr.MarkdownBlock(remarks)] if remarks else []),
        ],
    )
    try:
        report.save()
    except Exception as error:  # what it raises has no common class: wandb.Error, ValueError, the service's own
        why = " ".join(str(error).split()) or type(error).__name__
        raise UserError(f"W&B did not take the report: {why}") from None
    return report.url


def _run_sets(group: GroupSummary) -> list[Any]:
    """One for each project that the group has runs in."""
    import wandb_workspaces.reports.v2 as wr
    from wandb_workspaces import expr

    ids: dict[tuple[str, str], list[str]] = defaultdict(list)
    for summary in group.runs:
        entity, project, run_id = _address(summary.run.source)
        ids[entity, project].append(run_id)
    keys = [f"config.{key}" for key in compared_settings(group.group.settings)]
    return [
        wr.Runset(
            entity=entity, project=project, name=group.name, filters=[expr.Metric("ID").isin(found)], groupby=keys
        )
        for (entity, project), found in ids.items()
    ]


def _panel(comparison: Comparison, axis: str, index: int) -> Any:
    import wandb_workspaces.reports.v2 as wr

    metric = comparison.question.metric
    part = metric.partition("/")[0]
    return wr.LinePlot(
        title=f"{metric} over {UNITS[axis]}",
        x=_AXES[axis].format(part=part if part in ("train", "eval") else "train"),
        y=[metric],
        log_y=comparison.question.lower_is_better,
        groupby_aggfunc="mean",
        groupby_rangefunc="stddev",
        layout=wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8),
    )


def _address(source: str) -> tuple[str, str, str]:
    """Entity, project and id of `wandb:entity/project/id`."""
    entity, project, run_id = source.removeprefix(_PREFIX).split("/")[:3]
    return entity, project, run_id
