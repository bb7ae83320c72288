"""What a comparison writes: tables, CSV, JSON, pictures, the page, a report in W&B; and what the command refuses."""

import csv
import io
import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.ticker import MaxNLocator
from transformers import TrainerState

from hf_clars.cli import main
from hf_clars.comparison import tables
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.pictures import STYLES, curves_figure, layers_figure, runs_with_layers
from hf_clars.comparison.report import report
from hf_clars.comparison.runs import ComparedRun, Question, is_share
from hf_clars.comparison.verdict import verdict
from hf_clars.errors import UserError

from .helpers.comparison import learning, run

ABOUT = {"command": "hf-clars compare <outputs>", "date": "today", "versions": {"torch": "2"}}
EVIL = "<script>alert('x')</script>&\"'"
SVG = frozenset({"path", "use", "image", "line", "rect", "clippath", "style"})


def some_runs() -> list[ComparedRun]:
    runs = [
        run(optim, seed, learning(top, speed, seed), layers=optim != "mnag" and seed == 0)
        for optim, top, speed in (("clars", 0.9, 0.6), ("lars", 0.92, 0.35), ("mnag", 0.6, 0.5))
        for seed in (0, 1, 2)
    ]
    return [*runs, run("lars", 3, [0.2, math.nan], state="diverged"), run("mnag", 4, [0.3], state="failed")]


def write_states(folder: Path, accuracies: list[float]) -> None:
    """What Trainer's own state writes of a training that was evaluated after every epoch of 10 steps."""
    folder.mkdir(parents=True)
    state = TrainerState(global_step=10 * len(accuracies), max_steps=10 * len(accuracies))
    state.log_history = [
        {"step": 10 * e, "epoch": float(e), "eval_accuracy": accuracy, "eval_loss": 1 - accuracy}
        for e, accuracy in enumerate(accuracies, 1)
    ]
    state.save_to_json(str(folder / "trainer_state.json"))


@pytest.fixture
def compare(monkeypatch, tmp_path):
    """The command, on runs that no source has; its folder is `report`."""
    monkeypatch.chdir(tmp_path)

    def command(runs: list[ComparedRun], *flags: str, skipped: tuple[str, ...] = ()) -> int:
        monkeypatch.setattr("hf_clars.comparison.sources.read_sources", lambda sources: (list(runs), list(skipped)))
        return main(["compare", "outputs", *flags])

    return command


class Page(HTMLParser):
    """Elements and texts of a page; fails where tags do not close."""

    VOID = frozenset({"meta", "link", "input", "img", "br", "wbr"})

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
        assert self._open.pop() == tag

    def handle_data(self, data):
        self.texts.append(data)

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.elements if name == tag]


def page_of(runs: list[ComparedRun], **question) -> tuple[Page, str]:
    comparison = analyse(runs, Question(**question), skipped=["wandb/run-1: cut short"])
    text = report(comparison, ABOUT, runs_with_layers(comparison))
    return Page(text), text


@pytest.fixture(scope="module")
def page() -> tuple[Page, str]:
    return page_of(some_runs(), target=0.75)


def test_the_page_stands_alone(page):
    page, text = page
    for tag, attributes in page.elements:
        for name in ("src", "href", "xlink:href", "action", "srcset", "data"):
            if attributes.get(name) is not None:
                assert attributes[name].startswith(("data:", "#")), (tag, attributes)
    for address in ("http://", "https://", "@import", "//cdn"):
        assert address not in text
    ids = [attributes["id"] for _, attributes in page.elements if attributes.get("id")]
    assert len(ids) == len(set(ids))
    inside = re.findall(r'(?:url\(#|href="#)([^)"]+)', text)
    labels = [attributes["aria-labelledby"] for _, attributes in page.elements if "aria-labelledby" in attributes]
    assert inside
    assert {*inside, *labels} <= set(ids)
    assert len(page.all("caption")) == len(page.all("table"))
    assert all(figure["aria-label"] for figure in page.all("figure"))
    assert page.all("html") == [{"lang": "en"}]
    for wanted in ("prefers-color-scheme: dark", "max-width: 40rem", "width=device-width", "aria-sort"):
        assert wanted in text


def test_the_page_says_what_was_found(page):
    page, text = page
    words = " ".join(" ".join(page.texts).split())
    for said in (
        "clars reaches eval/accuracy ≥ 0.75 first", "1 of 4 of lars", "wandb/run-1: cut short (skipped)",
        "hf-clars compare <outputs>", "lars-3 lars 3 diverged", "failed", "layer3", "γ_k: clars-0",
    ):  # fmt: skip
        assert said in words
    figures = [figure["aria-label"] for figure in page.all("figure")]
    assert figures[:4] == [f"eval/accuracy over {unit}" for unit in ("steps", "epochs", "images", "seconds")]
    assert len(page.all("image")) == 3 + 2  # γ_k of both, M_k of CLARS, and their scales
    colours = set(re.findall(r"(?:stroke|fill): ([^;\"]+)", text))
    assert {"var(--c-0)", "var(--c-1)", "var(--c-2)", "var(--text)", "var(--line)"} <= colours  # the page's own


def test_names_are_not_markup():
    runs = [run(EVIL, seed, name=f"{EVIL}{seed}", layers=True, **{"<b>key": EVIL + str(seed)}) for seed in (0, 1)]
    comparison = analyse([*runs, run("lars", 0)], Question(), skipped=[f"{EVIL}: {EVIL}"])
    text = report(comparison, ABOUT, runs_with_layers(comparison))
    page = Page(text)
    assert "<script>alert" not in text
    assert "<b>" not in text
    assert len(page.all("script")) == 1
    assert any(EVIL in words for words in page.texts)
    cells = tables.markdown(pd.DataFrame({"a": ["<b>|*x*`_\n"]}, ["x"]).rename_axis("b"))
    assert cells.splitlines()[2] == r"| x | &lt;b>\|\*x\*\`\_  |"


def test_a_page_without_target_layers_or_seeds():
    page, text = page_of([run("clars", None, [0.5])])
    assert "With --target VALUE" in text
    assert "No run has records of layers" in text
    assert "hf-clars compare <outputs>" in page.texts
    assert "eval/accuracy at the end: 0.5 (1 run)." in " ".join(page.texts)
    assert "±" not in re.search(r"<tbody>.*?</tbody>", text, re.DOTALL)[0]
    page_of([run("clars", 0, [0.5], state="diverged")], target=0.4)
    page_of([run("clars", s, [0.0, 0.0]) for s in (0, 1)], target=0.4)
    page_of([run(f"optimizer{i}", s) for i in range(STYLES + 2) for s in (0, 1)], target=0.7)


def test_what_is_seen_first_needs_no_scrolling_sideways(page):
    """Its tables become cards where they are too wide, in which each value has the name of its column."""
    page, text = page
    fits = [attributes["class"].split() for attributes in page.all("table")]
    assert [("fits" in classes) for classes in fits] == [True, True, False, False]
    first = text[text.index("<table") : text.index("</table>")]
    cells = Page(first + "</table>").all("td")
    names = ["runs", "diverged", "unfinished", "reached", "epochs to target", "steps to target", "images to target"]
    assert [cell["data-name"] for cell in cells[:7]] == names
    assert all(cell["data-name"] for cell in cells)
    assert "white-space: nowrap" not in text
    assert "background-attachment: local" in text  # of what does scroll, a shade shows that it does


def test_tables():
    comparison = analyse(some_runs(), Question(target=0.75))
    table = tables.groups_table(comparison)
    to_target = [f"{unit} to target" for unit in ("epochs", "steps", "images", "seconds")]
    assert list(table) == ["runs", "diverged", "unfinished", "reached", *to_target, "last", "best", "mean"]
    assert table[["runs", "diverged", "unfinished", "reached"]].to_numpy().tolist() == [
        ["3", "0", "0", "3/3"], ["4", "1", "0", "3/4"], ["4", "0", "1", "0/3"]
    ]  # fmt: skip
    assert list(table.loc["mnag", to_target]) == ["–"] * 4
    single = analyse([run("clars"), run("lars")], Question())
    assert list(tables.groups_table(single).loc["clars", ["last", "best", "mean"]]) == ["0.8", "0.8", "0.575"]
    assert tables.differences_table(single).to_numpy().tolist() == [["+0", "+0", "+0"]]


def test_accuracies_are_shown_in_percent_and_kept_as_they_are():
    runs = [run(one.config["optim"], one.config["seed"], list(one.history["eval/accuracy"]), eval_split="test")
            for one in some_runs() if one.state == "finished"]  # fmt: skip
    comparison = analyse(runs, Question(target=0.75, percent=True))
    table = tables.groups_table(comparison)
    assert list(table)[-3:] == ["last, %", "best, %", "mean, %"]
    final = comparison.groups["final_mean"]["clars"]
    assert table.loc["clars", "last, %"].startswith(f"{100 * final:.2f} ± 0.")
    assert list(tables.differences_table(comparison))[-3:] == [f"{name}, % points" for name in ("last", "best", "mean")]
    gap = comparison.differences["lars", "final"].difference
    assert tables.differences_table(comparison).loc["lars", "last, % points"].startswith(f"{100 * gap:+.3f}"[:4])
    assert float(tables.runs_table(comparison).loc["clars-0", "last, %"]) == pytest.approx(
        100 * comparison.runs["final"].iloc[0], abs=0.01
    )
    assert tables.title(comparison).startswith("eval/accuracy on test, in percent: mean ±")
    assert "how long to ≥ 75 %" in tables.title(comparison)
    (panel,) = curves_figure(comparison, "epoch").axes
    assert panel.get_ylabel() == "eval/accuracy on test"
    assert re.fullmatch(r"50(\.0+)? %", panel.yaxis.get_major_formatter()(0.5))
    page = Page(report(comparison, ABOUT))
    assert "eval/accuracy on test" in page.texts[page.texts.index("eval/accuracy: who reaches ≥ 75 % first?") :][2]
    written = json.loads(tables.to_json(comparison, {}))  # programs get what was measured
    assert written["groups"][0]["final_mean"] == pytest.approx(final)
    assert written["question"]["target"] == 0.75
    sentences = verdict(analyse(runs, Question(percent=True)))
    assert re.match(r"clars has the highest eval/accuracy at the end: 8\d\.\d+ ± 0\.\d+ % \(3 runs\)\.", sentences[0])
    assert " percentage points lower" in sentences[1]
    (line,) = [r for r in analyse(runs, Question(target=0.99, percent=True)).remarks if "no finished run" in r]
    assert re.search(r"reached eval/accuracy ≥ 99 %; the best mean is 8\d\.\d\d %, of clars", line)


def test_a_share_is_known_by_name_and_values():
    half, more = [run(accuracies=[0.2, 0.5])], [run(accuracies=[20.0, 50.0])]
    assert is_share("eval/accuracy", half)
    assert not is_share("eval/accuracy", [*half, *more])  # somebody logs percent
    assert not is_share("train/loss", half)


@pytest.mark.parametrize("width", [None, 80])
def test_what_is_printed_is_plain_and_as_wide_as_the_terminal(monkeypatch, width):
    monkeypatch.setenv("COLUMNS", str(width or 80))
    printed = io.StringIO()
    printed.isatty = lambda: width is not None
    tables.print_comparison(analyse(some_runs(), Question(target=0.75), skipped=["x: broken"]), printed)
    text = printed.getvalue()
    assert "\x1b" not in text
    assert "clars reaches eval/accuracy ≥ 0.75 first" in text
    assert "note: x: broken (skipped)" in text
    assert "minus clars" in text
    rows = [line for line in text.splitlines() if re.match(r"(clars|lars|mnag)  ", line)]
    assert all(len(line) <= width for line in rows) if width else len(rows) == 5


def test_csv_and_json_read_back():
    comparison = analyse(some_runs(), Question(target=0.75))
    groups = pd.read_csv(io.StringIO(tables.groups_csv(comparison)), index_col="group")
    assert list(groups["optim"]) == ["clars", "lars", "mnag"]
    pd.testing.assert_frame_equal(groups.drop(columns="optim"), comparison.groups, check_dtype=False)
    runs = pd.read_csv(io.StringIO(tables.runs_csv(comparison)))
    assert len(runs) == 11
    assert set(runs["state"]) == {"finished", "diverged", "failed"}
    assert list(runs["epochs_to_target"].dropna()) == list(comparison.runs["epochs_to_target"].dropna())

    def refuse(name):
        raise AssertionError(name)  # JSON knows neither NaN nor Infinity

    content = json.loads(tables.to_json(comparison, {"x": math.nan}), parse_constant=refuse)
    assert content["x"] is None
    assert (content["groups"][0]["epochs_to_target_n"], content["groups"][1]["diverged"]) == (3, 1)
    assert content["groups"][2]["epochs_to_target_mean"] is None
    assert content["groups"][0]["settings"] == {"optim": "clars"}
    assert {d["measure"] for d in content["differences"]} >= {"final", "best", "area", "epochs_to_target"}
    assert (content["differences"][0]["pairs"], len(content["runs"])) == (3, 11)


def test_settings_called_as_columns_are():
    runs = [run("clars", seed, group=g, runs=g, name=f"{g}{seed}") for g in ("x", "y") for seed in (0, 1)]
    comparison = analyse(runs, Question(), ["group", "runs"])
    head, *rows = csv.reader(io.StringIO(tables.groups_csv(comparison)))
    assert head[:4] == ["group", "group", "runs", "runs"]
    assert sorted(row[1:4] for row in rows) == [["x", "x", "2"], ["y", "y", "2"]]
    assert json.loads(tables.to_json(comparison, {}))["groups"][0]["settings"] == {"group": "x", "runs": "x"}


# --- pictures --------------------------------------------------------------------------------------------------------


def test_curves_show_what_finished_runs_measured():
    (panel,) = curves_figure(analyse(some_runs(), Question(target=0.75)), "epoch").axes
    low, high = panel.get_ylim()
    assert low < 0.3 < 0.75 < high < 1.2
    (cross,) = [line for line in panel.lines if line.get_marker() == "x" and len(line.get_xdata())]
    assert low <= cross.get_ydata()[0] <= high  # at the edge, where 0.2 is below it
    runs = [run("a", s, [1 - 10.0**-e for e in range(6)]) for s in (0, 1)]
    runs.append(run("a", 2, [-1e30], state="diverged"))  # train/loss 1e30
    (panel,) = curves_figure(analyse(runs, Question("train/loss", lower_is_better=True)), "epoch").axes
    low, high = panel.get_ylim()
    assert panel.get_yscale() == "log"
    assert 0 < low < 1e-5 < 1 < high < 20
    many = curves_figure(analyse([run(f"o{i}", 0) for i in range(STYLES + 2)], Question()), "epoch")
    assert len(many.legends[0].get_texts()) == STYLES


def test_the_line_is_the_mean_over_seeds():
    comparison = analyse([run("a", s, [0.5, 0.6 + s / 10]) for s in (0, 1, 2)], Question())
    (panel,) = curves_figure(comparison, "images").axes
    line = max(panel.lines, key=lambda line: line.get_linewidth())
    assert list(line.get_xdata()) == [10_000, 20_000]
    assert list(line.get_ydata()) == pytest.approx([0.5, 0.7])


def test_layers():
    comparison = analyse(some_runs(), Question())
    chosen = runs_with_layers(comparison)
    assert [one.name for one in chosen] == ["clars-0", "lars-0"]  # of the two best groups by the last value
    assert runs_with_layers(comparison, ["clars-0"]) == [chosen[0]]
    assert runs_with_layers(comparison, ["outputs/lars-0/"]) == [chosen[1]]
    images = [panel.images[0] for panel in layers_figure(chosen).axes if panel.images]
    gamma = images[0].get_array()
    assert gamma.shape == (4, 8)
    assert (gamma[0, 0], gamma[3, 7]) == (0.5, 0.5 * 4 * 8)
    assert {image.get_clim() for image in images[:2]} == {(0.5, 16)}  # one scale for both runs
    with pytest.raises(UserError, match="--layers nobody: no run has that name or path; those with layer records are"):
        runs_with_layers(comparison, ["nobody"])
    with pytest.raises(UserError, match="--layers mnag-0: that run has no layer records"):
        runs_with_layers(comparison, ["mnag-0"])
    twice = analyse([run("clars", 0, name="same"), run("lars", 0, name="same")], Question())
    with pytest.raises(UserError, match="--layers same: 2 runs have that name"):
        runs_with_layers(twice, ["same"])


def test_layers_of_a_run_without_them_say_so_under_its_name():
    comparison = analyse(some_runs(), Question())
    lars, clars = runs_with_layers(comparison, ["lars-0", "clars-0"])
    figure = layers_figure([lars, clars])
    titles = [panel.get_title() for panel in figure.axes[:4]]
    assert titles == ["γ_k: lars-0", "γ_k: clars-0", "M_k: lars-0", "M_k: clars-0"]
    empty = figure.axes[2]
    assert not empty.images
    assert [text.get_text() for text in empty.texts] == ["M_k is recorded by CLARS with mode per_sample or subset"]
    assert [len(panel.texts) for panel in figure.axes[:4]] == [0, 0, 1, 0]


def test_a_single_measurement_and_few_steps_in_curves():
    comparison = analyse([run("a", 0, [0.3]), run("b", 0, [0.2])], Question())
    (panel,) = curves_figure(comparison, "images").axes
    assert {line.get_marker() for line in panel.lines} == {"."}
    assert isinstance(panel.xaxis.get_major_locator(), MaxNLocator)
    assert panel.xaxis.get_major_formatter()(10_000) == "10,000"
    diverged = analyse([run("a", s, [0.3, 0.4]) for s in (0, 1)] + [run("b", 0, [0.2], state="diverged")], Question())
    (legend,) = curves_figure(diverged, "step").legends
    assert [text.get_text() for text in legend.get_texts()] == [" a (2)", " b (0)", " diverged"]
    assert legend.get_title().get_text() == "group (finished runs)"


@pytest.mark.parametrize("values", [[0.5], [0.0], [math.inf, 2.0], [3.0, 3.0, 3.0], list(range(1, 1001))], ids=len)
def test_layers_with_holes_and_of_any_length(tmp_path, values):
    frame = pd.DataFrame({"head.weight": values}, [5 * i for i in range(len(values))], dtype=float)
    figure = layers_figure([replace(run("clars", 0), layers={"gamma": frame})])
    drawn = figure.axes[0].images[0].get_array()
    assert drawn.shape == (1, min(len(values), 200))
    figure.savefig(tmp_path / "layers.png")
    assert drawn.compressed().tolist()[-1:] == [v for v in values if 0 < v < math.inf][-1:]


# --- the command -----------------------------------------------------------------------------------------------------


def test_the_command_writes_its_files_and_no_others(tmp_path, compare, capsys):
    out = tmp_path / "report"
    out.mkdir()
    (out / "mine.txt").write_text("keep")
    flags = ["--target", "0.75", "--where", "seed=0,1,2,3", "--out", str(out)]
    assert compare(some_runs(), *flags, skipped=("wandb/run-7: damaged",)) == 0
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
    assert "95 % interval" in text
    assert Page((out / "report.html").read_text()).all("title") == [{}]
    assert compare([run("clars", s, [0.5, 0.9]) for s in (0, 1)], "--target", "0", "--out", str(out)) == 0
    assert "--target 0.0 --out" in json.loads((out / "comparison.json").read_text())["command"]
    left = {path.name for path in out.iterdir()}  # without layers: an earlier picture would be a lie
    assert left == (expected | {"mine.txt"}) - {"layers-heat-maps.png", "layers-heat-maps.svg"}


@pytest.mark.parametrize(
    ("count", "state"), [(1, "running"), (70, "diverged"), pytest.param(70, "failed", marks=pytest.mark.slow)]
)
def test_a_page_where_no_run_finished(tmp_path, compare, count, state):
    assert compare([run("clars", seed, [0.2, 0.3], state=state) for seed in range(count)], "--out", "report") == 0
    page = Page((tmp_path / "report" / "report.html").read_text())
    drawn = state == "diverged"
    assert any("No run has finished" in text for text in page.texts)
    assert ("No run has finished or diverged: there is no curve to draw yet." in page.texts) == (not drawn)
    assert bool(page.all("figure")) == drawn == (tmp_path / "report" / "curves-epoch.png").exists()


def test_an_axis_that_only_a_running_run_knows_is_not_drawn():
    runs = [replace(one, history=one.history.drop(columns="seconds")) for one in (run(seed=0), run(seed=1))]
    page, _ = page_of([*runs, run("clars", 2, state="running")])
    assert len(page.all("figure")) == 3


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_names_that_an_output_has_no_letters_for(tmp_path, monkeypatch, encoding):
    write_states(tmp_path / os.fsdecode(b"\xff"), [0.25, 0.5])
    (tmp_path / os.fsdecode(b"\xfe.json")).write_text('{"place": ')
    output = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(output, encoding, "strict", write_through=True))
    assert main(["compare", str(tmp_path), "--out", str(tmp_path / "report")]) == 0
    assert b"\\udcfe.json" in output.getvalue()
    assert "\\udcff" in (tmp_path / "report" / "runs.csv").read_text()


@pytest.mark.slow
def test_who_reads_the_output_may_stop(tmp_path):
    write_states(tmp_path / "run", [0.25, 0.5])
    command = [sys.executable, "-m", "hf_clars", "compare", str(tmp_path), "--out", str(tmp_path)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


def test_pictures_of_odd_names(tmp_path, compare):
    """What matplotlib would read as mathematics, or hide."""
    names = ["$\\frac{", "_hidden", "{x}", "a" * 300]
    runs = [run(optim, seed, name=f"{optim}{seed}", layers=True) for optim in names for seed in (0, 1)]
    assert compare(runs, "--out", "report") == 0
    texts = Page((tmp_path / "report" / "report.html").read_text()).texts
    assert " _hidden (2)" in texts
    assert " $\\frac{ (2)" in texts


def test_without_out_nothing_is_written(tmp_path, compare, capsys):
    for flag in ("--group_by", "--group-by"):  # the same
        assert compare(some_runs(), flag, "optim, total_batch_size", "--metric", "eval_accuracy") == 0
    assert "lars, total_batch_size=1000 has the highest eval/accuracy" in capsys.readouterr().out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ("--metric eval/f1", "--metric eval/f1: no run has it; there is eval/accuracy, train/loss"),
        ("--target nan", "--target must be finite, got nan"),
        ("--target 75", "--target 75: eval/accuracy is a share of 1: write 0.75 or 75%"),
        ("--group_by depth", "--group_by depth: no run has that setting; those that differ are optim, seed"),
        ("--group_by ,", "--group_by ',': name settings, as in --group_by optim,total_batch_size"),
        ("--where eta=1", "--where eta: no run has that setting; those that differ are optim, seed"),
        ("--where optim", "--where optim: write KEY=VALUE or KEY=VALUE,VALUE"),
        ("--where optim=sgd", "--where optim=sgd: no run is left; optim is clars, lars, mnag"),
        ("--layers clars-0", "--layers chooses runs for the pictures: say where to write them with --out"),
        ("--wandb_report", "--wandb_report shows runs that are in W&B: give wandb:ENTITY/PROJECT, not outputs"),
        ("--out file/below", "--out file/below cannot be written: Not a directory"),
    ],
)
def test_what_the_command_refuses(compare, capsys, flags, message):
    Path("file").write_text("")
    assert compare(some_runs(), *flags.split()) == 2
    assert capsys.readouterr().err == f"error: {message}\n"


@pytest.mark.parametrize(
    ("flag", "package", "extra"),
    [("--out=x", "matplotlib", "compare"), ("--wandb_report", "wandb-workspaces", "reports")],
)
def test_a_missing_package_is_one_line(monkeypatch, capsys, flag, package, extra):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    assert main(["compare", "wandb:team/cifar", flag]) == 2
    told = capsys.readouterr().err
    assert re.fullmatch(rf"error: .*{package}: pip install 'hf_clars\[{extra}\]'\n", told)


def test_from_output_folders_of_trainer_to_the_page(tmp_path, monkeypatch, capsys):
    for optim, speed in (("clars", 0.6), ("lars", 0.3)):
        for seed in (0, 1, 2):
            folder = tmp_path / "outputs" / f"{optim}-{seed}"
            write_states(folder, learning(0.9, speed, seed))
            config = {"optim": optim, "seed": seed, "total_batch_size": 1024}
            (folder / "run.json").write_text(json.dumps({"config": config, "state": "finished"}))
    (tmp_path / "outputs" / "broken").mkdir()
    (tmp_path / "outputs" / "broken" / "trainer_state.json").write_text("{")
    monkeypatch.chdir(tmp_path)
    assert main(["compare", "outputs", "--target", "0.6", "--out", "report"]) == 0
    printed = capsys.readouterr().out
    assert "clars reaches eval/accuracy ≥ 60 % first: after 2 ± 0 epochs, in 3 of 3 runs." in printed
    assert "broken" in printed  # named, and skipped
    figures = Page((tmp_path / "report" / "report.html").read_text()).all("figure")
    assert [f["aria-label"] for f in figures] == [
        f"eval/accuracy over {unit}" for unit in ("steps", "epochs", "images")
    ]
