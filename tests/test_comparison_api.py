"""`wandb:entity/project`, through the real `wandb.Api`, against a server on this machine (`wandb_server`)."""

import json
import os
import pty

import pytest

from hf_clars import UserError
from hf_clars.comparison.sources.wandb_api import parse_filters

from .helpers.processes import free_port, run_script
from .helpers.wandb_server import KEY, Run, serving

SCRIPT = """
import json, os, sys
from hf_clars import UserError
from hf_clars.comparison.sources import read_sources

if "TERMINAL" in os.environ:  # where `wandb.Api` would ask for a key
    for number in (0, 2):
        os.dup2(os.open(os.environ["TERMINAL"], os.O_RDWR), number)
    sys.stdin = os.fdopen(0)
for source in sys.argv[1:]:
    try:
        runs, unreadable = read_sources([source])
        print(json.dumps([[{
            **vars(run), "history": run.history.to_dict("records"),
            "layers": {name: frame.to_dict() for name, frame in run.layers.items()},
        } for run in runs], unreadable]))
    except UserError as error:
        print(json.dumps(str(error)))
"""


def history(steps: int, **rest) -> list[dict]:
    rows = [{"train/loss": 1 / s, "train/epoch": s / 4, "train/global_step": s} for s in range(1, steps + 1)]
    layers = {"layers/gamma/head.weight": 0.5, "train/global_step": 2}
    return [*rows[:2], layers, *rows[2:], {"eval/accuracy": 0.5, "train/global_step": steps, **rest}]


RUNS = [
    Run("a", {"optim": "clars", "seed": 0, "total_batch_size": 32}, history(3), group="g", tags=["x", "y"]),
    Run("b", {"optim": "clars", "seed": 1}, history(3, **{"train/loss": "NaN"}), group="g", tags=["y"]),
    Run("c", {"optim": "lars", "seed": 0, "nested": {"power": 2}}, history(2), state="crashed", tags=["x"]),
    Run("d", {"optim": "lars", "seed": 1}, history(2), state="running", summary={"diverged": True}),
    Run("long", {"optim": "mnag", "seed": 0}, history(1500)),
]
SOURCES = {
    "all": "wandb:me/p",
    "default entity": "wandb:p",
    "one": "wandb:me/p/c",
    "filters": "wandb:me/p?config.optim=clars&config.seed=1&state=finished",
    "tags": 'wandb:me/p?tags=x&filters={"config.optim":{"$in":["lars"]}}',
    "none": "wandb:me/p?group=other",
    "broken": "wandb:me/broken",
    "unknown": "wandb:me/nothing",
}


def read(home, *sources: str, base_url: str, key: str = KEY, **more: str) -> list:
    environment = {
        "WANDB_MODE": "online",
        "WANDB_BASE_URL": base_url,
        **({"WANDB_API_KEY": key} if key else {}),
        **more,
    }
    return [json.loads(line) for line in run_script(SCRIPT, home, *sources, environment=environment).splitlines()]


@pytest.fixture(scope="module")
def answers(tmp_path_factory):
    """What each of `SOURCES` gave, and what the server was asked for."""
    broken = [Run("good", {}, history(2)), Run("bad", {}, history(2), broken=True)]
    with serving({"me/p": RUNS, "me/broken": broken}, page=2) as server:
        printed = read(tmp_path_factory.mktemp("home"), *SOURCES.values(), base_url=server.address)
    return dict(zip(SOURCES, printed, strict=True)), server.asked


def test_all_runs_of_all_pages(answers):
    """Of runs and of histories, whose pages at W&B are 1,000 steps long."""
    (runs, unreadable), asked = answers[0]["all"], answers[1]
    assert unreadable == []
    assert [run["source"] for run in runs] == [f"wandb:me/p/{i}" for i in ("a", "b", "c", "d", "long")]
    assert [run["state"] for run in runs] == ["finished", "diverged", "failed", "diverged", "finished"]
    assert [v["cursor"] for name, v in asked if name == "Runs"][:3] == [None, "2", "4"]
    first = runs[0]
    assert first["name"] == "name of a"
    assert first["config"] == {"optim": "clars", "seed": 0, "total_batch_size": 32}
    assert runs[2]["config"] == {"optim": "lars", "seed": 0, "nested.power": 2}
    assert [(row["step"], row["images"], row["train/loss"], row["seconds"]) for row in first["history"]] == [
        (1, 32, 1.0, 0.0), (2, 64, 0.5, 3.0), (3, 96, pytest.approx(1 / 3), 6.0),
    ]  # fmt: skip
    assert first["history"][2]["eval/accuracy"] == 0.5
    assert first["layers"] == {"gamma": {"head.weight": {"2": 0.5}}}
    assert [row["step"] for row in runs[-1]["history"]] == list(range(1, 1501))
    pages = [v["minStep"] for name, v in asked if name == "HistoryPage" and v["run"] == "long"]
    assert pages[:2] == [0, 1000]


def test_sources_that_are_parts_of_it(answers):
    said, asked = answers
    assert said["default entity"] == said["all"]
    for name, run in (("one", "c"), ("filters", "b"), ("tags", "c")):
        assert [run["source"] for run in said[name][0]] == [f"wandb:me/p/{run}"]
    sent = [json.loads(v["filters"]) for name, v in asked if name == "Runs"]
    assert {"config.optim": "clars", "config.seed": 1, "state": "finished"} in sent
    assert {"$and": [{"tags": {"$in": ["x"]}}, {"config.optim": {"$in": ["lars"]}}]} in sent


def test_what_is_not_there_or_cannot_be_read_is_named(answers):
    said, _ = answers
    assert said["none"].startswith("no run in wandb:me/p?group=other")
    assert said["unknown"].startswith("wandb:me/nothing: ")
    runs, (line,) = said["broken"]
    assert [run["source"] for run in runs] == ["wandb:me/broken/good"]
    assert line.startswith("wandb:me/broken/bad: ")
    assert "is not to be had" in line


def test_a_wrong_key_and_a_server_that_is_not_there(tmp_path):
    with serving({"me/p": RUNS}) as server:
        (line,) = read(tmp_path, "wandb:me/p", base_url=server.address, key="1" * 40)
    assert line.startswith("wandb:me/p: ")
    assert "1" * 40 not in line
    (line,) = read(tmp_path, "wandb:me/p", base_url=f"http://127.0.0.1:{free_port()}")
    assert "cannot be reached (ConnectionError)" in line


def test_nobody_is_asked_for_a_key(tmp_path):
    inner, outer = pty.openpty()
    try:
        terminal = {"TERMINAL": os.ttyname(outer)}
        (line,) = read(tmp_path, "wandb:me/p", base_url="http://127.0.0.1:9", key="", **terminal)
    finally:
        os.close(outer)
        os.close(inner)
    assert line == "wandb:me/p needs a login: `wandb login`, or WANDB_API_KEY"


COMPARE = """
import sys
from hf_clars.cli import main

for _ in range(2):
    print("STATUS", main(["compare", *sys.argv[1:]]))
"""


@pytest.mark.slow
def test_a_report_that_is_refused_and_then_taken(tmp_path):
    """Of runs whose ids hold what the language of filters would read."""
    ids = {("clars", 0): "seed=0<b", ("clars", 1): r'"b"\(1)', ("lars", 0): "c", ("lars", 1): "é-_.!"}
    runs = []
    for (optim, seed), run_id in ids.items():
        top = 0.9 if optim == "clars" else 0.5
        rows = [{"train/global_step": s, "train/epoch": s, "eval/accuracy": top * s / 4} for s in range(1, 5)]
        runs.append(Run(run_id, {"optim": optim, "seed": seed, "total_batch_size": 8}, rows))
    other = [Run("left", {"optim": "clars", "seed": 2}, [{"train/loss": 1.0, "train/global_step": 1}])]
    with serving({"me/p": runs[:3] + other, "me/q": runs[3:]}) as server:
        server.refusals = 1
        environment = {"WANDB_MODE": "online", "WANDB_BASE_URL": server.address, "WANDB_API_KEY": KEY}
        words = ["wandb:me/p", "wandb:me/q", "--target=0.6", "--wandb-report"]
        printed = run_script(COMPARE, tmp_path, *words, environment=environment)
    first, second, _ = printed.split("STATUS")
    assert "clars reaches eval/accuracy" in first
    assert second.startswith(" 2")  # it was refused
    address = second.splitlines()[-1]
    assert address == f"{server.address}/me/p/reports/eval-accuracy:-2-groups-compared--Vmlldzox"
    given = [variables for name, variables in server.asked if name == "upsertView"][-1]
    assert (given["entityName"], given["projectName"], given["type"]) == ("me", "p", "runs")
    assert given["description"].startswith("clars reaches eval/accuracy ≥ 60 % first")
    blocks = {block["type"]: block for block in json.loads(given["spec"])["blocks"]}
    assert "| clars | 2 | 0 |" in blocks["markdown-block"]["content"]
    grid = blocks["panel-grid"]["metadata"]
    panels = [panel["config"] for panel in grid["panelBankSectionConfig"]["panels"]]
    axes = ["train/global_step", "train/epoch", "eval/images_seen", "eval/seconds"]
    assert [(panel["xAxis"], panel["metrics"]) for panel in panels] == [(axis, ["eval/accuracy"]) for axis in axes]
    found = [(one["name"], one["project"]["name"], one["filters"]["filters"][0]["value"]) for one in grid["runSets"]]
    assert found == [
        ("clars", "p", [ids["clars", 0], ids["clars", 1]]), ("lars", "p", ["c"]), ("lars", "q", [ids["lars", 1]])
    ]  # fmt: skip
    assert all(one["grouping"] == [{"section": "config", "name": "optim.value"}] for one in grid["runSets"])


@pytest.mark.parametrize(
    ("query", "filters"),
    [
        ("", {}),
        ("group=a&group=b", {"group": {"$in": ["a", "b"]}}),
        ("name=the+run&config.lr=1e-2&config.model=resnet&summary.eval/accuracy=0.5",
         {"displayName": "the run", "config.lr": 0.01, "config.model": "resnet", "summary_metrics.eval/accuracy": 0.5}),
        ("config.seed=0&config.seed=1", {"config.seed": {"$in": [0, 1]}}),
        ('filters={"$or":[{"state":"finished"}]}', {"$or": [{"state": "finished"}]}),
        ("optim=lars", r"no filter 'optim': there are group, state, .*config\.KEY"),
        ("config.=1", "no filter 'config.'"),
        ("state", "filters are key=value&key=value, not 'state'"),
        ("filters=[1]", "no JSON object"),
        ("filters={", "no JSON object"),
    ],
)  # fmt: skip
def test_filters_of_a_query(query, filters):
    if isinstance(filters, dict):
        assert parse_filters(query) == filters
    else:
        with pytest.raises(UserError, match=filters):
            parse_filters(query)
