"""`wandb:entity/project?filters`: runs on W&B's server, through `wandb.Api`."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import Any
from urllib.parse import parse_qs

from ...errors import UserError
from ...trainer.records.tracking import somebody_is_logged_in, unreachable, wandb_for
from ..runs import ComparedRun
from .rows import History, end_state, flat_config

_RUNS_A_PAGE = 100
_AT_ONCE = 8  # runs whose histories are asked for; the time goes into waiting for the server
_FIELDS = {
    "group": "group", "state": "state", "tags": "tags", "tag": "tags", "name": "displayName", "id": "name",
    "job_type": "jobType", "sweep": "sweep", "user": "username", "host": "host",
}  # fmt: skip
_STATES = {"finished": "finished"} | dict.fromkeys(("running", "pending", "preempting", "preempted"), "running")


def read_wandb_project(address: str) -> tuple[list[ComparedRun], list[str]]:
    """The runs of `entity/project?filters`, and a line for each that could not be read.

    `project` alone is the default entity's; `entity/project/id` is one run. Every run's whole history is read, because
    metrics that were logged in different rows cannot be asked for together: one request for each page of runs, and for
    each run those that `Run.scan_history` makes, several runs at a time.

    Raises:
        UserError: no login, no such project, no network, filters that mean nothing.
    """
    path, _, query = address.partition("?")
    filters = parse_filters(query)
    parts = path.strip("/").split("/")
    if not all(parts) or len(parts) > 3:
        raise UserError(f"wandb:{address}: write wandb:entity/project, wandb:project or wandb:entity/project/run-id")
    if len(parts) == 3:
        filters = _both(filters, {"name": parts.pop()})
    wandb = wandb_for(f"wandb:{address}")
    _check_login(address, wandb)
    whole: dict[str, Any] = {"include_sweeps": False}
    if "lazy" in signature(wandb.Api.runs).parameters:
        whole["lazy"] = False  # settings and summaries with the page, not by a request for each run
    try:
        found = list(wandb.Api().runs("/".join(parts), filters=filters, per_page=_RUNS_A_PAGE, **whole))
    except Exception as error:  # its errors have no common class: wandb.Error, ValueError, the service's own
        raise UserError(f"wandb:{address}: {_line(error)}") from None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        outcomes = list(pool.map(_read, found))
    return [o for o in outcomes if isinstance(o, ComparedRun)], [o for o in outcomes if isinstance(o, str)]


def parse_filters(query: str) -> dict[str, Any]:
    """W&B's filters, which are MongoDB's, of a query string.

    `group=a&config.optim=lars&config.seed=1` asks for runs that have all of them; a key that is given twice, for either
    value; `filters={…}` is passed on as it is. Values of `config.` and `summary.` are read as JSON where they are JSON.
    """
    wanted: dict[str, Any] = {}
    try:
        given = parse_qs(query, keep_blank_values=True, strict_parsing=bool(query))
    except ValueError:
        raise UserError(f"filters are key=value&key=value, not {query!r}") from None
    raw = given.pop("filters", [])
    for key, values in given.items():
        kind, dot, name = key.partition(".")
        if dot and name and kind in ("config", "summary", "summary_metrics"):
            typed = [_typed(value) for value in values]
            wanted[f"{'config' if kind == 'config' else 'summary_metrics'}.{name}"] = (
                typed[0] if len(typed) == 1 else {"$in": typed}
            )
        elif key in _FIELDS:
            one = len(values) == 1 and _FIELDS[key] != "tags"
            wanted[_FIELDS[key]] = values[0] if one else {"$in": values}
        else:
            known = ", ".join([*_FIELDS, "config.KEY", "summary.KEY"])
            raise UserError(f"there is no filter {key!r}: there are {known}, and filters={{…}} for W&B's own")
    for text in raw:
        try:
            more = json.loads(text)
        except ValueError:
            more = None
        if not isinstance(more, dict):
            raise UserError(f"filters={text} is no JSON object of W&B's filters")
        wanted = _both(wanted, more)
    return wanted


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"$and": [one, other]} if one and other else one or other


def _typed(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def _check_login(address: str, wandb: Any) -> None:
    """Before `wandb.Api`, which would ask for a key on a terminal, and try for minutes to reach a server."""
    if not somebody_is_logged_in():
        raise UserError(f"wandb:{address} needs a login: `wandb login`, or WANDB_API_KEY")
    server = wandb.setup().settings.base_url
    trouble = unreachable(server)
    if trouble is not None:
        raise UserError(
            f"wandb:{address}: {server} cannot be reached ({trouble}); without a network, name the local wandb/ folder"
        )


def _read(run: Any) -> ComparedRun | str:
    source = "wandb:" + "/".join(run.path)
    try:
        config, diverged = flat_config(run.config), run.summary.get("diverged")
        logged = list(run.scan_history())
    except Exception as error:  # see above; one run's trouble is not the others'
        return f"{source}: {_line(error)}"
    history = History(config.get("total_batch_size"))
    history.add_all(logged)
    rows = history.rows()
    return ComparedRun(
        name=run.name or run.id,
        source=source,
        config=config,
        history=rows,
        state=end_state(_STATES.get(run.state, "failed"), rows, diverged),
        layers=history.layers(),
    )


def _line(error: Exception) -> str:
    return " ".join(str(error).split()) or type(error).__name__
