"""A server that answers W&B's GraphQL on this machine, for the fields that `hf_clars.comparison` uses and no others.

The shapes of its answers are those that `wandb.Api` (0.31) was seen to ask for and to take: who the key belongs to,
pages of a project's runs, and a run's history; and of wandb-workspaces (0.4), which saves reports. It is no W&B: it
understands filters only as far as `Run.matches` does, has no runs whose history was exported to Parquet files, and
answers every other query with an error that names it.
"""

from __future__ import annotations

import gzip
import json
import re
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from .serving import in_background

KEY = "0123456789abcdef0123456789abcdef01234567"  # of the only user
_AUTHORIZATION = f"Basic {b64encode(f'api:{KEY}'.encode()).decode()}"


@dataclass
class Run:
    """One run as the server has it; `history` without `_step`, which it counts, and with `"NaN"` for NaN."""

    id: str
    config: dict[str, Any]
    history: list[dict[str, Any]]
    state: str = "finished"
    group: str | None = None
    tags: list[str] = field(default_factory=list)
    summary: dict[str, Any] = field(default_factory=dict)
    broken: bool = False  # asked for its history, the server fails

    def matches(self, filters: dict[str, Any]) -> bool:
        """`$and`, `$in` and equality, of its own fields and of its config."""
        for key, wanted in filters.items():
            if key == "$and":
                if not all(self.matches(part) for part in wanted):
                    return False
                continue
            own = {"name": self.id, "group": self.group, "state": self.state, "tags": self.tags}
            found = own[key] if key in own else self.config.get(key.removeprefix("config."))
            values = found if isinstance(found, list) else [found]
            if not set(values) & set(wanted["$in"] if isinstance(wanted, dict) else [wanted]):
                return False
        return True

    def node(self) -> dict[str, Any]:
        wrapped = {key: {"value": value, "desc": None} for key, value in self.config.items()}
        return {
            "id": f"storage-{self.id}", "projectId": "1", "name": self.id, "displayName": f"name of {self.id}",
            "state": self.state, "config": json.dumps(wrapped | {"_wandb": {"value": {"cli_version": "0.31.0"}}}),
            "group": self.group, "jobType": None, "tags": self.tags, "sweepName": None, "commit": None,
            "readOnly": True, "createdAt": "2026-01-01T00:00:00", "heartbeatAt": "2026-01-01T00:00:00",
            "description": "", "notes": "", "systemMetrics": "{}", "summaryMetrics": json.dumps(self.summary),
            "historyLineCount": len(self.history), "historyKeys": {"lastStep": len(self.history) - 1},
            "user": {"name": "me", "username": "me"},
        }  # fmt: skip

    def lines(self, first: int, end: int) -> list[str]:
        rows = [{"_step": step, "_runtime": 1.5 * step} | row for step, row in enumerate(self.history)]
        return [json.dumps(row) for row in rows[first:end]]


class Server:
    """Serves projects, `{"entity/project": [Run, …]}`.

    Attributes:
        asked: name of the query and its variables, of everything that was asked for.
        refusals: how many reports it will refuse.
    """

    def __init__(self, projects: dict[str, list[Run]], page: int) -> None:
        self.projects, self.page = projects, page
        self.asked: list[tuple[str, dict[str, Any]]] = []
        self.refusals = 0
        server = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
                if self.path != "/graphql":
                    self._send(404, {})
                elif self.headers.get("Authorization") != _AUTHORIZATION:
                    self._send(401, {"errors": [{"message": "user is not logged in"}]})
                else:
                    packed = self.headers.get("Content-Encoding") == "gzip"
                    self._send(200, server.answer(json.loads(gzip.decompress(body) if packed else body)))

            do_GET = do_HEAD = do_POST

            def _send(self, status: int, value: Any) -> None:
                data = json.dumps(value).encode()
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(data)))
                self.end_headers()
                if self.command != "HEAD":
                    self.wfile.write(data)

            def log_message(self, *args) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def answer(self, request: dict[str, Any]) -> dict[str, Any]:
        name = re.search(r"(?:query|mutation)\s+(\w+)", request["query"])[1]
        variables = request.get("variables") or {}
        self.asked.append((name, variables))
        if name in ("Viewer", "GetDefaultEntity"):
            viewer = {"id": "1", "entity": "me", "username": "me", "email": "me@example.com", "flags": None}
            return {"data": {"viewer": viewer | {"teams": {"edges": []}}}}
        if name in ("GetProjects", "ProjectInternalId", "upsertView"):
            return self._report(name, variables)
        project = self.projects.get(f"{variables.get('entity')}/{variables.get('project')}")
        if name == "Runs":
            return {"data": {"project": None if project is None else self._runs(project, variables)}}
        run = next(
            (
                r
                for r in project or ()
                if r.id == (variables.get("name") or variables.get("runName") or variables.get("run"))
            ),
            None,
        )
        if run is None or run.broken:
            return {"data": None, "errors": [{"message": f"{name} of this run is not to be had", "path": ["project"]}]}
        if name == "RunHistoryKeys":
            return {"data": {"project": {"run": {"historyKeys": {"lastStep": len(run.history) - 1}}}}}
        if name == "RunParquetHistory":  # nothing was exported to Parquet files yet: all steps are live
            live = [{"_step": step} for step in range(len(run.history))]
            return {"data": {"project": {"run": {"parquetHistory": {"parquetUrls": [], "liveData": live}}}}}
        if name == "HistoryPage":
            return {"data": {"project": {"run": {"history": run.lines(variables["minStep"], variables["maxStep"])}}}}
        return {"data": None, "errors": [{"message": f"this server has no answer to {name}"}]}

    def _report(self, name: str, given: dict[str, Any]) -> dict[str, Any]:
        """What saving a report asks."""
        if name == "ProjectInternalId":
            return {"data": {"project": {"id": "p", "internalId": "17"}}}
        if name == "GetProjects":
            rest = {"__typename": "Project", "createdAt": "2026-01-01T00:00:00", "user": None, "isBenchmark": False}
            named = [dict(zip(("entityName", "name"), key.split("/"), strict=True)) for key in self.projects]
            edges = [{"node": {"id": "p", **rest, **names}} for names in named]
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            return {"data": {"models": {"pageInfo": page, "edges": edges}}}
        if self.refusals:
            self.refusals -= 1
            return {"data": None, "errors": [{"message": "permission denied"}]}
        view = {key: given[key] for key in ("name", "displayName", "description", "spec")}
        view |= {"id": "Vmlldzox", "type": "runs", "updatedAt": "2026-01-01T00:00:00"}
        view["project"] = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
        return {"data": {"upsertView": {"view": view, "inserted": True}}}

    def _runs(self, project: list[Run], variables: dict[str, Any]) -> dict[str, Any]:
        """A page; cursors are positions."""
        runs = [run for run in project if run.matches(json.loads(variables["filters"]))]
        first = int(variables.get("cursor") or 0)
        end = first + min(self.page, variables["perPage"])
        edges = [{"node": r.node(), "cursor": str(first + n + 1)} for n, r in enumerate(runs[first:end])]
        return {
            "internalId": "1", "runCount": len(runs), "readOnly": True,
            "runs": {"edges": edges, "pageInfo": {"endCursor": str(end), "hasNextPage": end < len(runs)}},
        }  # fmt: skip


@contextmanager
def serving(projects: dict[str, list[Run]], page: int = 100) -> Iterator[Server]:
    """A server whose pages hold `page` runs at most."""
    server = Server(projects, page)
    with in_background(server.server):
        yield server
