"""A comparison as a report in W&B, through wandb-workspaces (the extra `reports`)."""

import re
from collections import defaultdict
from typing import Any
from urllib.parse import unquote

import wandb_workspaces.reports.v2 as wr

from ..errors import UserError, one_line
from .analysis import Comparison
from .axes import AXES
from .tables import document
from .verdict import verdict

_MOST_GROUPS = 20
_NAMES = {"step": "train/global_step", "epoch": "train/epoch", "images": "{}/images_seen", "seconds": "{}/seconds"}


def create_wandb_report(comparison: Comparison) -> str:
    """Save a new report in the project of the leader's first run; returns its address. A `UserError` if W&B refused it
    or could not be reached.

    The report has what `comparison.md` has, and curves over every axis of the best 20 groups.

    wandb-workspaces asks W&B for the entity's projects and each project's number, and sends the mutation `upsertView`.
    The tests' server answers with the fields that these requests name. No answer was recorded from W&B's cloud.
    """
    metric = comparison.question.metric
    entity, project, _ = _address(comparison.runs["source"].iloc[0])
    report = wr.Report(
        entity=entity,
        project=project,
        title=f"{metric.replace('/', ' ')}: {len(comparison.groups)} groups compared"[:128],
        description=verdict(comparison)[0],
        blocks=[
            wr.MarkdownBlock(document(comparison)),
            wr.PanelGrid(runsets=_run_sets(comparison), panels=_panels(comparison)),
        ],
    )
    try:
        report.save()
    except Exception as error:  # what it raises has no common class: wandb.Error, ValueError, the service's own
        raise UserError(f"W&B did not take the report: {one_line(error) or type(error).__name__}") from None
    return report.url


def _run_sets(comparison: Comparison) -> list[Any]:
    """Of each group, one for each project that it has runs in. It names the very runs that were compared by their ids:
    a filter by settings would also find runs that were left out here."""
    ids: dict[tuple[str, str, str], list[str]] = defaultdict(list)
    for group, source in comparison.runs.loc[comparison.groups.index[:_MOST_GROUPS], "source"].items():
        entity, project, run_id = _address(source)
        # W&B's ids may hold `=` and `<`, which wandb-workspaces would change in the text of a filter.
        text = re.sub(r"[^\w-]", lambda found: f"\\U{ord(found[0]):08x}", run_id)
        ids[group, entity, project].append(f"'{text}'")
    keys = [f"config.{key}" for key in comparison.keys]
    return [
        wr.Runset(entity, project, group, filters=f"Metric('ID') in [{', '.join(found)}]", groupby=keys)
        for (group, entity, project), found in ids.items()
    ]


def _panels(comparison: Comparison) -> list[Any]:
    metric = comparison.question.metric
    part = "eval" if metric.startswith("eval/") else "train"
    return [
        wr.LinePlot(
            title=f"{metric} over {AXES[axis]}",
            x=_NAMES[axis].format(part),
            y=[metric],
            log_y=comparison.question.lower_is_better,
            groupby_aggfunc="mean",
            groupby_rangefunc="stddev",
            layout=wr.Layout(x=12 * (index % 2), y=8 * (index // 2), w=12, h=8),
        )
        for index, axis in enumerate(comparison.axes)
    ]


def _address(source: str) -> list[str]:
    """Entity, project and id of `wandb:entity/project/id`, the parts of an address of a page."""
    return [unquote(part) for part in source.removeprefix("wandb:").split("/")]
