"""What a comparison writes: tables, CSV, JSON, pictures, the page, a report in W&B; and what the command refuses."""

from __future__ import annotations

import csv
import gzip
import io
import json
import math
import os
import re
import subprocess
import sys
import threading
import types
from html.parser import HTMLParser
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hf_clars.cli import main
from hf_clars.comparison import tables, words
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.heat_maps import heat_map, heat_maps, runs_with_layers, value_range
from hf_clars.comparison.question import Question
from hf_clars.comparison.report import report
from hf_clars.comparison.report_pictures import brief
from hf_clars.comparison.runs import ComparedRun
from hf_clars.comparison.series import STYLES, scale_of, series_of
from hf_clars.comparison.statistics import Interval, Mean
from hf_clars.errors import UserError

from .comparison import learning, run

ABOUT = {"command": "hf-clars compare <outputs>", "sources": ["out&puts"], "date": "today", "versions": {"torch": "2"}}
EVIL = "<script>alert('x')</script>&\"'"


def some_runs() -> list[ComparedRun]:
    runs = [
        run(optim, seed, learning(top, speed, seed), layers=optim != "mnag" and seed == 0)
        for optim, top, speed in (("clars", 0.9, 0.6), ("lars", 0.92, 0.35), ("mnag", 0.6, 0.5))
        for seed in (0, 1, 2)
    ]
    return [*runs, run("lars", 3, [0.2, math.nan], state="diverged"), run("mnag", 4, [0.3], state="failed")]


@pytest.fixture
def read(monkeypatch):
    """Runs that `read_sources` is made to return."""

    def returns(runs: list[ComparedRun], skipped: tuple[str, ...] = ()) -> None:
        module = types.ModuleType("hf_clars.comparison.sources")
        module.read_sources = lambda sources: (list(runs), list(skipped))
        monkeypatch.setitem(sys.modules, module.__name__, module)

    return returns


class Page(HTMLParser):
    """Elements, texts and ids of a page; fails where tags do not close."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "wbr", "line", "path"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in self.VOID:
            self._open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        if tag not in self.VOID:
            assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(runs: list[ComparedRun], **question) -> tuple[Page, str]:
    comparison = analyse(runs, Question(**question), skipped=["wandb/run-1: cut short"])
    text = report(comparison, ABOUT, heat_maps(runs_with_layers(comparison)))
    return Page(text), text


def test_the_page_stands_alone():
    page, text = page_of(some_runs(), target=0.75)
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            if attributes.get(name) is not None:
                assert attributes[name].startswith("data:"), (tag, attributes)
    for address in ("http://", "https://", "@import", "url(", "//cdn"):
        assert address not in text
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:  # labels name what is there
        for key in ("aria-labelledby", "for"):
            assert attributes.get(key) is None or attributes[key] in ids
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(image["alt"] for image in page.all("img"))
    (html,) = page.all("html")
    assert html["lang"] == "en"


def test_the_page_says_what_was_found():
    page, text = page_of(some_runs(), target=0.75)
    words_ = " ".join(" ".join(page.texts).split())
    assert "clars reaches eval/accuracy ≥ 0.75 first" in words_
    assert "1 of 4 of lars" in words_  # diverged
    assert "diverged, last seen at steps 20, epochs 2" in words_
    assert "ended before its time" in words_
    assert "could not be read: cut short" in words_
    assert "hf-clars compare <outputs>" in words_
    for group in ("clars", "lars", "mnag"):
        assert group in words_
    assert {f["data-axis"] for f in page.all("figure") if "data-axis" in f} == {"step", "epoch", "images", "seconds"}
    assert len([f for f in page.all("figure") if "data-heat" in f]) == 3  # γ_k of both, M_k of CLARS
    data = json.loads(re.search(r'<script type="application/json" id="data">(.*?)</script>', text, re.DOTALL)[1])
    assert [series["name"] for series in data["charts"]["epoch"]["series"]] == ["clars", "lars", "mnag"]
    assert data["heat"][0]["values"][0][0] == 0.5


def test_names_are_not_markup():
    runs = [run(EVIL, seed, name=f"{EVIL}{seed}", layers=True, **{"<b>key": EVIL + str(seed)}) for seed in (0, 1)]
    comparison = analyse([*runs, run("lars", 0)], Question("eval/accuracy"), skipped=[f"{EVIL}: {EVIL}"])
    text = report(comparison, ABOUT, heat_maps(runs_with_layers(comparison)))
    page = Page(text)
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert len(page.all("script")) == 2
    assert any(EVIL in words_ for words_ in page.texts)
    cells = tables.markdown(["a"], [["<b>|*x*`_\n"]])
    assert cells.splitlines()[2] == r"| &lt;b>\|\*x\*\`\_  |"


def test_a_page_without_target_layers_or_seeds():
    page, text = page_of([run("clars", None, [0.5])])
    assert "With <code>--target VALUE</code>" in text
    assert "eval/accuracy at the end: 0.5 (1 run)." in " ".join(page.texts)
    assert "±" not in re.search(r"<tbody>.*?</tbody>", text, re.DOTALL)[0]
    page_of([run("clars", 0, [0.5], state="diverged")], target=0.4)
    page_of([run("clars", s, [0.0, 0.0]) for s in (0, 1)], target=0.4)
    page_of([run(f"optimizer{i}", s) for i in range(30) for s in (0, 1)], target=0.7)  # more than there are colours


def test_tables():
    comparison = analyse(some_runs(), Question(target=0.75))
    head, rows = tables.table(comparison)
    assert head == [
        "group", "runs", "diverged", "unfinished", "reached", "epochs", "steps", "images", "seconds", "last", "best",
        "mean",
    ]  # fmt: skip
    assert [row[0] for row in rows] == ["clars", "lars", "mnag"]
    assert [row[1:5] for row in rows] == [["3", "0", "0", "3/3"], ["4", "1", "0", "3/4"], ["4", "0", "1", "0/3"]]
    assert rows[2][5:9] == ["–"] * 4
    lines = tables.aligned(head, rows).splitlines()
    assert len({len(line) for line in lines}) == 1
    single = analyse([run("clars"), run("lars")], Question())
    assert tables.table(single)[1][0][3:] == ["0.8", "0.8", "0.575"]  # no deviation of one run
    assert tables.differences(single)[1] == [["lars", "+0", "+0", "+0"]]


def test_a_terminal_without_rich_gets_plain_text(monkeypatch):
    monkeypatch.setitem(sys.modules, "rich.console", None)
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    tables.print_comparison(analyse(some_runs(), Question()), terminal)
    assert "───" in terminal.getvalue()
    assert "\x1b" not in terminal.getvalue()


def test_plain_text_where_it_is_piped_and_rich_on_a_terminal():
    comparison = analyse(some_runs(), Question(target=0.75), skipped=["x: broken"])
    plain = io.StringIO()
    tables.print_comparison(comparison, plain)
    assert "\x1b" not in plain.getvalue()
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    tables.print_comparison(comparison, terminal)
    for text in (plain.getvalue(), terminal.getvalue()):
        assert "clars reaches eval/accuracy ≥ 0.75 first" in text.replace("\n", " ")
        assert "note: x: broken (skipped)" in text
        assert "minus clars" in text
    assert all(len(line) <= 80 for line in re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines())


def test_numbers():
    assert words.spread(None) == "–"
    assert words.spread(Mean(0.86827, 0.00213, 3)) == "0.8683 ± 0.0021"
    assert words.spread(Mean(376832, 28378, 3)) == "376,832 ± 28,378"
    assert words.spread(Mean(4.0, 0.0, 3)) == "4 ± 0"
    assert words.spread(Mean(0.123456, None, 1)) == "0.1235"
    assert words.short_interval(Interval(1.5, 0.91, 2.09, 3)) == "+1.50 [+0.91, +2.09] n=3"
    assert words.short_interval(Interval(-1.5, -1.9, 0.2, None)) == "-1.5 [-1.9, +0.2] W"
    assert words.short_interval(Interval(2.0, 2.0, 2.0, 4)) == "+2 n=4"
    assert words.short_interval(Interval(2.0, None, None, None)) == "+2"
    assert words.number(1e-9) == "1e-09"
    assert words.number(math.inf) == "inf"
    assert [brief(x) for x in (0, 0.75, 1200, 40_000, 1_500_000, 5e-6, 3e12)] == [
        "0", "0.75", "1,200", "40k", "1.5M", "5e-6", "3e12"
    ]  # fmt: skip


def test_csv_and_json_read_back(tmp_path):
    comparison = analyse(some_runs(), Question(target=0.75))
    groups = list(csv.DictReader(io.StringIO(tables.groups_csv(comparison))))
    assert [g["optim"] for g in groups] == ["clars", "lars", "mnag"]
    for line, group in zip(groups, comparison.groups, strict=True):
        assert float(line["final_mean"]) == group.means["final"].mean
        assert int(line["diverged"]) == group.count("diverged")
    assert groups[2]["epochs_to_target_mean"] == ""
    assert groups[2]["epochs_to_target_n"] == "0"
    lines = list(csv.DictReader(io.StringIO(tables.runs_csv(comparison))))
    assert len(lines) == 11
    assert {line["state"] for line in lines} == {"finished", "diverged", "failed"}
    assert float(lines[0]["epochs_to_target"]) == comparison.runs[0].measures["epoch"]

    def refuse(name):
        raise AssertionError(name)  # JSON knows neither NaN nor Infinity

    content = json.loads(tables.to_json(comparison, {"x": math.nan}), parse_constant=refuse)
    assert content["x"] is None
    assert content["groups"][0]["epochs_to_target"]["n"] == 3
    assert content["groups"][1]["diverged"] == 1
    assert {d["measure"] for d in content["differences"]} >= {"final", "best", "area", "epochs_to_target"}
    assert content["differences"][0]["pairs"] == 3
    assert len(content["runs"]) == 11


def test_series():
    comparison = analyse(some_runs(), Question(target=0.75))
    clars, lars, mnag = series_of(comparison, "epoch")
    assert (clars.name, clars.n, len(clars.single), len(lars.diverged), mnag.style) == ("clars", 3, 3, 1, 2)
    scale = scale_of(comparison, [clars, lars, mnag])
    assert not scale.log
    assert scale.low < 0.75 < scale.high < 1.2
    runs = [run("a", s, [1 - 10.0**-e for e in range(6)]) for s in (0, 1)]
    runs.append(run("a", 2, [-1e30], state="diverged"))  # train/loss 1e30
    losses = analyse(runs, Question("train/loss", lower_is_better=True))
    scale = scale_of(losses, series_of(losses, "epoch"))
    assert scale.log
    assert 0 < scale.low < 1e-5 < 1 < scale.high < 2
    many = analyse([run(f"o{i}", 0) for i in range(STYLES + 2)], Question())
    assert [s.style for s in series_of(many, "epoch")][-3:] == [STYLES - 1, None, None]


def test_heat_maps():
    comparison = analyse(some_runs(), Question())
    chosen = runs_with_layers(comparison)
    assert [one.name for one in chosen] == ["clars-0", "lars-0"]  # of the two best groups by the last value
    assert runs_with_layers(comparison, ["clars-0"]) == [chosen[0]]
    assert runs_with_layers(comparison, ["outputs/lars-0/"]) == [chosen[1]]
    one = heat_map(chosen[0], "gamma")
    assert (one.symbol, list(one.layers)) == ("γ_k", ["layer0", "layer1", "layer2", "layer3"])
    assert one.values.shape == (4, 8)
    assert (one.values[0, 0], one.values[3, 7]) == (0.5, 0.5 * 4 * 8)
    assert value_range([one]) == (0.5, 16)
    assert heat_map(chosen[1], "variance_factor") is None
    with pytest.raises(UserError, match="--layers nobody: no run has that name or path; those with layer records are"):
        runs_with_layers(comparison, ["nobody"])
    with pytest.raises(UserError, match="--layers mnag-0: that run has no layer records"):
        runs_with_layers(comparison, ["mnag-0"])
    twice = analyse([run("clars", 0, name="same"), run("lars", 0, name="same")], Question())
    with pytest.raises(UserError, match="--layers same: 2 runs have that name"):
        runs_with_layers(twice, ["same"])


def test_heat_maps_with_holes():
    layers = [{"step": 0, "layers": {"a": {"gamma": 0.0}}}, {"step": 7, "layers": {"b": {"gamma": math.inf}}}]
    one = heat_map(ComparedRun("x", "x", {}, [], layers=layers), "gamma")
    assert not any(map(math.isfinite, one.values.flat))
    assert value_range([one]) == (1.0, 10.0)
    long = [{"step": s, "layers": {"a": {"gamma": float(s + 1)}}} for s in range(1000)]
    one = heat_map(ComparedRun("x", "x", {}, [], layers=long[::-1]), "gamma")
    assert one.values.shape == (1, 200)
    assert (one.values[0, 0], one.values[0, -1]) == (1, 1000)


def test_the_command_writes_its_files_and_no_others(tmp_path, read, capsys):
    read(some_runs(), ("wandb/run-7: damaged",))
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    command = ["compare", "outputs", "--target", "0.75", "--out", str(out), "--where", "seed=0,1,2,3"]
    assert main(command) == 0
    pictures = [f"curves-{axis}" for axis in ("step", "epoch", "images", "seconds")] + ["layers-heat-maps"]
    expected = {"table.csv", "runs.csv", "comparison.json", "comparison.md", "report.html"}
    expected |= {f"{name}.{kind}" for name in pictures for kind in ("png", "svg")}
    assert {path.name for path in out.iterdir()} == expected | {"mine.txt"}
    printed = capsys.readouterr().out
    assert "wandb/run-7: damaged (skipped)" in printed
    assert set(expected) == {Path(line).name for line in printed.splitlines() if line.startswith(str(out))}
    assert (out / "curves-epoch.png").read_bytes().startswith(b"\x89PNG")
    assert "<svg" in (out / "curves-epoch.svg").read_text()
    assert json.loads((out / "comparison.json").read_text())["command"] == (
        f"hf-clars compare outputs --metric eval/accuracy --target 0.75 --where seed=0,1,2,3 --out {out}"
    )
    text = (out / "comparison.md").read_text()
    assert "| clars | 3 | 0 |" in text
    assert "clars reaches" in text or "clars has the highest" in text
    assert "95 % interval" in text
    assert Page((out / "report.html").read_text()).all("title") == [{}]

    read([run("clars", s, [0.5, 0.9]) for s in (0, 1)])  # without layers: an earlier picture would be a lie
    assert main(["compare", "outputs", "--out", str(out)]) == 0
    left = {path.name for path in out.iterdir()}
    assert left == (expected | {"mine.txt"}) - {"layers-heat-maps.png", "layers-heat-maps.svg"}


@pytest.mark.parametrize(("count", "state"), [(1, "running"), (1, "failed"), (70, "diverged"), (70, "running")])
def test_a_page_where_no_run_finished(tmp_path, read, count, state):
    read([run("clars", seed, [0.2, 0.3], state=state) for seed in range(count)])
    assert main(["compare", "outputs", "--out", str(tmp_path)]) == 0
    page = Page((tmp_path / "report.html").read_text())
    drawn = state == "diverged"
    assert any("No run has finished" in text for text in page.texts)
    assert bool(page.all("figure")) == drawn == (tmp_path / "curves-epoch.png").exists()
    lost = [path for path in page.all("path") if path["class"] == "single lost"]
    assert len(lost) == (4 * count if drawn else 0)  # over each axis


def test_an_axis_that_only_a_running_run_knows_is_not_drawn():
    runs = [run("clars", seed) for seed in (0, 1)]
    for row in (row for one in runs for row in one.history):
        del row["seconds"]
    page, _ = page_of([*runs, run("clars", 2, state="running")])
    assert len(page.all("figure")) == 3


def test_groups_of_one_name_are_told_apart():
    runs = [run(seed=seed, betas=betas) for betas in ([1], "[1]") for seed in (0, 1)]
    comparison = analyse(runs, Question())
    assert [group.name for group in comparison.groups] == ["betas=[1]", "betas=[1] (2)"]
    assert len(comparison.differences_in("final")) == 1


def test_no_cell_is_folded_where_a_part_of_the_table_fits():
    runs = [run(o, s, learning(0.9, 0.5, s)) for o in ("clars", "lars") for s in range(3)]
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    tables.print_comparison(analyse(runs, Question(target=0.75)), terminal)
    lines = [line.split() for line in re.sub(r"\x1b\[[0-9;]*m", "", terminal.getvalue()).splitlines()]
    starts = [i for i, words in enumerate(lines) if words[:1] == ["group"]]
    assert len(starts) > 1
    assert all([words[:1] for words in lines[i : i + 4]] == [["group"], ["clars"], ["lars"], []] for i in starts)


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_an_output_has_no_letters_for(tmp_path, encoding):
    folder = tmp_path / os.fsdecode(b"\xff")
    folder.mkdir()
    log = [{"step": step, "epoch": step, "eval_accuracy": step / 4} for step in (1, 2)]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    (tmp_path / os.fsdecode(b"\xfe.json")).write_text('{"place": ')
    command = [sys.executable, "-m", "hf_clars", "compare", str(tmp_path), "--out", str(tmp_path / "report")]
    environment = {**os.environ, "PYTHONIOENCODING": f"{encoding}:strict"}
    result = subprocess.run(command, capture_output=True, env=environment, check=False)
    assert result.returncode == 0, result.stderr
    assert b"\\udcfe.json" in result.stdout
    assert "\\udcff" in (tmp_path / "report" / "runs.csv").read_text()


def test_who_reads_the_output_may_stop(tmp_path):
    log = [{"step": step, "epoch": step, "eval_accuracy": step / 4} for step in (1, 2)]
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": log}))
    for unbuffered in ("", "1"):
        with subprocess.Popen(
            [sys.executable, "-m", "hf_clars", "compare", str(tmp_path), "--out", str(tmp_path)],
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        ) as process:  # fmt: skip
            process.stdout.close()
            assert process.stderr.read() == b""
        assert process.returncode == 141


def test_pictures_of_odd_names(tmp_path, read):
    """What matplotlib would read as mathematics, or hide."""
    names = ["$\\frac{", "_hidden", "{x}", "a" * 300]
    read([run(optim, seed, name=f"{optim}{seed}", layers=True) for optim in names for seed in (0, 1)])
    assert main(["compare", "outputs", "--out", str(tmp_path)]) == 0
    assert (
        "_hidden (2)" in (tmp_path / "report.html").read_text() or "_hidden" in (tmp_path / "report.html").read_text()
    )


def test_without_out_nothing_is_written(tmp_path, read, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    read(some_runs())
    assert main(["compare", "outputs", "--group-by", "optim, total_batch_size", "--metric", "eval_accuracy"]) == 0
    assert "lars, total_batch_size=1000 has the highest eval/accuracy" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metric eval/f1", "--metric eval/f1: no run has it; there is eval/accuracy, train/loss"),
        ("--target nan", "--target must be finite, got nan"),
        ("--group-by depth", "--group-by depth: no run has that setting; those that differ are optim, seed"),
        ("--group-by ,", "--group-by ',': name settings, as in --group-by optim,total_batch_size"),
        ("--where optim", "--where optim: write KEY=VALUE or KEY=VALUE,VALUE"),
        ("--where optim=sgd", "--where optim=sgd: no run is left; optim is clars, lars, mnag"),
        ("--layers clars-0", "--layers chooses runs for the pictures: say where to write them with --out"),
        ("--wandb-report", "--wandb-report shows runs that are in W&B: give wandb:ENTITY/PROJECT, not outputs"),
        ("--out file/below", "--out file/below cannot be written: Not a directory"),
    ],
)
def test_what_the_command_refuses(tmp_path, read, capsys, monkeypatch, flags, message):
    monkeypatch.chdir(tmp_path)
    Path("file").write_text("")
    read(some_runs())
    assert main(["compare", "outputs", *flags.split()]) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


def test_a_missing_wandb_workspaces_is_one_line(monkeypatch, capsys):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["compare", "wandb:team/cifar", "--wandb-report"]) == 2
    assert capsys.readouterr().err == "error: --wandb-report needs wandb-workspaces: pip install wandb-workspaces\n"


SAVE = """
import sys
sys.path.insert(0, sys.argv[1])
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.question import Question
from hf_clars.comparison.runs import ComparedRun
from hf_clars.comparison.wandb_report import create_wandb_report
from hf_clars.errors import UserError
from tests.test_comparison_report import some_runs
runs = [ComparedRun(r.name, f"wandb:team/cifar/id{i}", r.config, r.history, r.state) for i, r in enumerate(some_runs())]
for _ in range(2):
    try:
        print("URL", create_wandb_report(analyse(runs, Question(target=0.75), ["optim"])))
    except UserError as error:
        print("REFUSED", error)
"""


def save_to(handler: type[BaseHTTPRequestHandler]) -> str:
    """What a process prints that saves a report on a server of this test."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    environment = {k: v for k, v in os.environ.items() if not k.startswith("WANDB")}
    environment |= {
        "WANDB_BASE_URL": f"http://127.0.0.1:{server.server_port}", "WANDB_API_KEY": "0" * 40, "WANDB_SILENT": "true"
    }  # fmt: skip
    try:
        done = subprocess.run(
            [sys.executable, "-c", SAVE, str(Path(__file__).resolve().parents[1])], env=environment, timeout=120,
            capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False,
        )  # fmt: skip
    finally:
        server.shutdown()
        server.server_close()
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


class WandbServer(BaseHTTPRequestHandler):
    """Answers what saving a report asks, with the fields that the clients' own GraphQL documents name."""

    saved: list[dict]
    refusals: int

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path != "/graphql":  # the client's telemetry
            return self._answer(404, b"")
        asked = json.loads(gzip.decompress(body) if self.headers.get("Content-Encoding") == "gzip" else body)
        query, given = asked["query"], asked.get("variables") or {}
        if "query Viewer" in query:
            data = {
                "viewer": {"id": "u", "entity": "team", "username": "me", "email": "", "flags": "{}", "admin": False}
            }
        elif "query GetProjects" in query:
            node = {"__typename": "Project", "id": "p", "name": "cifar", "entityName": "team", "isBenchmark": False}
            node |= {"createdAt": "2026-01-01T00:00:00", "user": None}
            page = {"__typename": "PageInfo", "endCursor": None, "hasNextPage": False}
            data = {"models": {"pageInfo": page, "edges": [{"node": node}]}}
        elif "query ProjectInternalId" in query:
            data = {"project": {"id": "p", "internalId": "17"}}
        elif "mutation upsertView" in query and self.refusals:
            type(self).refusals -= 1
            return self._answer(200, b'{"errors": [{"message": "permission denied"}]}')
        elif "mutation upsertView" in query:
            type(self).saved.append(given)
            view = {"id": "Vmlldzox", "type": "runs", "updatedAt": "2026-01-01T00:00:00", "spec": given["spec"]}
            view |= {key: given[key] for key in ("name", "displayName", "description")}
            view["project"] = {"id": "p", "name": given["projectName"], "entityName": given["entityName"]}
            data = {"upsertView": {"view": view, "inserted": True}}
        else:
            return self._answer(400, b'{"errors": [{"message": "unknown request"}]}')
        return self._answer(200, json.dumps({"data": data}).encode())

    def _answer(self, status: int, body: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


def test_a_report_in_wandb_refused_and_then_taken():

    class Server(WandbServer):
        saved: list[dict] = []  # noqa: RUF012
        refusals = 1

    refused, taken = save_to(Server).splitlines()
    assert refused.startswith("REFUSED W&B did not take the report: ")
    assert "permission denied" in refused
    assert re.fullmatch(r"URL http://[\d.:]+/team/cifar/reports/eval-accuracy:-3-groups-compared--Vmlldzox", taken)
    (given,) = Server.saved
    assert (given["entityName"], given["projectName"], given["type"]) == ("team", "cifar", "runs")
    blocks = json.loads(given["spec"])["blocks"]
    assert "clars reaches eval/accuracy ≥ 0.75 first" in blocks[1]["content"]
    assert "| clars | 3 | 0 |" in blocks[1]["content"]
    grid = next(block for block in blocks if block["type"] == "panel-grid")["metadata"]
    assert [p["config"]["xAxis"] for p in grid["panelBankSectionConfig"]["panels"]] == [
        "train/global_step", "train/epoch", "eval/images_seen", "eval/seconds"
    ]  # fmt: skip
    assert all(p["config"]["metrics"] == ["eval/accuracy"] for p in grid["panelBankSectionConfig"]["panels"])
    assert [one["name"] for one in grid["runSets"]] == ["clars", "lars", "mnag"]
    assert '"id0"' in json.dumps(grid["runSets"][0]["filters"])
    assert '"id3"' not in json.dumps(grid["runSets"][0]["filters"])


def test_from_output_folders_of_trainer_to_the_page(tmp_path, monkeypatch, capsys):
    """Of files that Trainer's own state writes."""
    from transformers import TrainerState

    for optim, speed in (("clars", 0.6), ("lars", 0.3)):
        for seed in (0, 1, 2):
            folder = tmp_path / "outputs" / f"{optim}-{seed}"
            folder.mkdir(parents=True)
            state = TrainerState(global_step=80, max_steps=80)
            state.log_history = [
                {"step": 10 * e, "epoch": float(e), "eval_accuracy": accuracy, "eval_loss": 1 - accuracy}
                for e, accuracy in enumerate(learning(0.9, speed, seed), 1)
            ]
            state.save_to_json(str(folder / "trainer_state.json"))
            config = {"optim": optim, "seed": seed, "total_batch_size": 1024}
            (folder / "run.json").write_text(json.dumps({"config": config, "state": "finished"}))
    (tmp_path / "outputs" / "broken").mkdir()
    (tmp_path / "outputs" / "broken" / "trainer_state.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "outputs", "--target", "0.6", "--out", "report"]) == 0
    printed = capsys.readouterr().out
    assert "clars reaches eval/accuracy ≥ 0.6 first: after 2 ± 0 epochs, in 3 of 3 runs." in printed
    assert "broken" in printed  # named, and skipped
    page = Page((tmp_path / "report" / "report.html").read_text())
    assert {f["data-axis"] for f in page.all("figure") if "data-axis" in f} >= {"step", "epoch", "images"}


@pytest.mark.parametrize("gammas", [[0.5], [0.0], [math.inf, 2.0], [3.0, 3.0, 3.0]])
def test_pictures_of_few_layer_records(tmp_path, read, gammas):
    layers = [{"step": 5 * i, "layers": {"head.weight": {"gamma": gamma}}} for i, gamma in enumerate(gammas)]
    one = run("clars", 0)
    read([ComparedRun(one.name, one.source, one.config, one.history, layers=layers)])
    assert main(["compare", "outputs", "--out", str(tmp_path)]) == 0
    (figure,) = [f for f in Page((tmp_path / "report.html").read_text()).all("figure") if "data-heat" in f]
    assert figure["data-heat"] == "0"
    assert (tmp_path / "layers-heat-maps.png").stat().st_size > 1000
