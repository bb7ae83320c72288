"""`wandb:entity/project?filters`: runs on W&B's server, through `wandb.Api`."""

import json
from concurrent.futures import ThreadPoolExecutor
from inspect import signature
from typing import Any
from urllib.parse import parse_qs

from ...errors import UserError, one_line
from ...trainer.records.tracking import somebody_is_logged_in, unreachable, wandb_for
from ..runs import ComparedRun
from .rows import History, flat_config

_RUNS_A_PAGE = 100
_AT_ONCE = 8  # runs whose histories are asked for; the time goes into waiting for the server
_FIELDS = {
    "group": "group", "state": "state", "tags": "tags", "tag": "tags", "name": "displayName", "id": "name",
    "job_type": "jobType", "sweep": "sweep", "user": "username", "host": "host",
}  # fmt: skip
_MAPPINGS = {"config": "config", "summary": "summary_metrics", "summary_metrics": "summary_metrics"}
_STATES = {"finished": "finished"} | dict.fromkeys(("running", "pending", "preempting", "preempted"), "running")


def read_wandb_project(address: str, unreadable: list[str]) -> list[ComparedRun]:
    """The runs of `entity/project?filters`; `project` alone is the default entity's, `entity/project/id` is one run. A
    `UserError` without login, project or network, or for filters that mean nothing.

    Every run's whole history is read, because metrics that were logged in different rows cannot be asked for together.
    """
    path, _, query = address.partition("?")
    filters = parse_filters(query)
    parts = path.strip("/").split("/")
    if not all(parts) or len(parts) > 3:
        raise UserError(f"wandb:{address}: write wandb:entity/project, wandb:project or wandb:entity/project/run-id")
    if len(parts) == 3:
        filters = _both(filters, {"name": parts.pop()})
    wandb = wandb_for(f"wandb:{address}")
    if not somebody_is_logged_in():  # `wandb.Api` would ask for a key on a terminal, and try for minutes to reach it
        raise UserError(f"wandb:{address} needs a login: `wandb login`, or WANDB_API_KEY")
    server = wandb.setup().settings.base_url
    if trouble := unreachable(server):
        local = "without a network, name the local wandb/ folder"
        raise UserError(f"wandb:{address}: {server} cannot be reached ({trouble}); {local}")
    whole: dict[str, Any] = {"include_sweeps": False}
    if "lazy" in signature(wandb.Api.runs).parameters:
        whole["lazy"] = False  # settings and summaries with the page, not by a request for each run
    try:
        found = list(wandb.Api().runs("/".join(parts), filters=filters, per_page=_RUNS_A_PAGE, **whole))
    except Exception as error:  # its errors have no common class: wandb.Error, ValueError, the service's own
        raise UserError(f"wandb:{address}: {one_line(error) or type(error).__name__}") from None
    with ThreadPoolExecutor(_AT_ONCE) as pool:
        outcomes = list(pool.map(_read, found))
    unreadable += [outcome for outcome in outcomes if isinstance(outcome, str)]
    return [outcome for outcome in outcomes if isinstance(outcome, ComparedRun)]


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
    raw = [(text, _json(text)) for text in given.pop("filters", [])]
    for key, values in given.items():
        kind, _, name = key.partition(".")
        if name and kind in _MAPPINGS:
            field, values = f"{_MAPPINGS[kind]}.{name}", list(map(_json, values))
        elif key in _FIELDS:
            field = _FIELDS[key]
        else:
            known = ", ".join([*_FIELDS, "config.KEY", "summary.KEY"])
            raise UserError(f"there is no filter {key!r}: there are {known}, and filters={{…}} for W&B's own")
        wanted[field] = values[0] if len(values) == 1 and field != "tags" else {"$in": values}
    for text, more in raw:
        if not isinstance(more, dict):
            raise UserError(f"filters={text} is no JSON object of W&B's filters")
        wanted = _both(wanted, more)
    return wanted


def _both(one: dict[str, Any], other: dict[str, Any]) -> dict[str, Any]:
    return {"$and": [one, other]} if one and other else one or other


def _json(text: str) -> Any:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return text


def _read(run: Any) -> ComparedRun | str:
    source = "wandb:" + "/".join(run.path)
    try:
        config, diverged = flat_config(run.config), run.summary.get("diverged")
        logged = list(run.scan_history())
    except Exception as error:  # see above; one run's trouble is not the others'
        return f"{source}: {one_line(error) or type(error).__name__}"
    history = History(config)
    history.add_all(logged)
    return history.run(run.name or run.id, source, _STATES.get(run.state, "failed"), diverged)
