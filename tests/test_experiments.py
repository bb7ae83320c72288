"""Runs of a sweep: what is cached, what is run, how runs end, and what is shown of their results."""

import contextlib
import json
import math
import os
import pty
import signal
import subprocess
import sys
import termios
import time
from argparse import Namespace
from pathlib import Path

import pytest
import timm

from hf_clars import UserError
from hf_clars.cli import main
from hf_clars.experiments import Result, Run, Runner, read_result, read_sweep
from hf_clars.experiments.command import _settings_of
from hf_clars.experiments.drawing import draw, mean_and_deviation, table
from hf_clars.experiments.results import curve_of, write_result
from hf_clars.experiments.schema import Drawing
from hf_clars.experiments.searched import draw_search, search_table
from hf_clars.experiments.tuning import contestants, search
from hf_clars.runtime.provenance import commit
from hf_clars.trainer.checkpoints.folder_lock import alone_in

from .helpers.scripts import ROOT, run_python, without
from .helpers.sweeps import METHODS, STAND_IN, TINY, command, results_in, sweep_file
from .helpers.wandb_files import offline_runs

RESULTS = ROOT / "recipes" / "results"


def some_result(**changes) -> Result:
    values = {
        "place": {"method": "clars", "seed": 0}, "settings": {}, "state": "finished", "seconds": 3.0, "commit": "abc",
        "hardware": {}, "curve": [{"step": 1, "epoch": 1.0, "loss": 2.0, "eval_accuracy": 0.5}],
        "final": {"eval_accuracy": 0.5},
    }  # fmt: skip
    return Result(**{**values, **changes})


def timeless(result: dict) -> list[dict]:
    """Its curve without how long it took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in result["curve"]]


def stand_in(folder: Path, **changes) -> Runner:
    """Makes runs without training."""
    return Runner(folder / "r", folder / "w", **{"threads": 1, "launch": STAND_IN, **changes})


def named(name: str, **settings) -> Run:
    return Run({"n": name}, {**TINY, "dataset": "x", "learning_rate": len(name), **settings})


# ---- results ---------------------------------------------------------------------------------------------------------


def test_a_result_is_read_as_it_was_written(tmp_path):
    run = Run({"method": "clars", "seed": 0}, {"seed": 0})
    path = write_result(tmp_path, run, some_result())
    assert path.name == f"clars_seed=0-{run.key}.json"
    assert read_result(tmp_path, run) == some_result()
    assert read_result(tmp_path, Run(run.place, {"seed": 1})) is None


@pytest.mark.parametrize("text", ["", "{", "3", "[]", "{}", "[" * 100_000, "\x00", '{"place": 3}', "curve", "state"])
def test_what_is_no_result_is_named(tmp_path, text):
    run = Run({"n": "a"}, {})
    path = write_result(tmp_path, run, some_result())
    whole = json.loads(path.read_text())
    path.write_text(json.dumps({**whole, text: "odd"}) if text in whole else text)
    with pytest.raises(UserError, match=rf"^[^\n]*{run.key}[^\n]*$"):
        read_result(tmp_path, run)


@pytest.mark.parametrize(
    ("file", "preset", "folder"),
    [
        *((f"hf_clars/experiments/figures/figure{n}.yaml", p, f"figure{n}/{p}")
          for n, p in ((1, "small"), (2, "paper"), (3, "small"), (4, "small"))),
        ("recipes/tuning/cifar.yaml", "small", "tuning-cifar/small"),
        ("recipes/sweeps/cifar10.yaml", None, "sweep-cifar10"),
    ],
)  # fmt: skip
def test_results_that_were_published_are_found(file, preset, folder):
    sweep = read_sweep(ROOT / file, preset)
    runs = sweep.runs()
    if sweep.tuning is not None:
        contest = contestants(sweep, {}, {})
        found = {run.key: result for run in search(contest) if (result := read_result(RESULTS / folder, run))}
        runs = [run for one in contest for run in [*one.trials(), *one.finals(found)]]
    read = [result for run in runs if (result := read_result(RESULTS / folder, run)) is not None]
    assert len(read) == len(list((RESULTS / folder).glob("*.json")))


def test_curves_have_a_row_for_each_step_and_no_nan():
    history = [
        {"step": 2, "epoch": 1.0, "loss": 1.25, "learning_rate": 0.1, "grad_norm": float("nan"),
         "images_seen": 123456789, "seconds": 1.5},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_runtime": 3.0, "seconds": 9.0},
        {"step": 4, "epoch": 2.0, "loss": float("inf")},
        {"step": 4, "epoch": 2.0, "train_runtime": 1.0},
    ]  # fmt: skip
    assert curve_of(history) == [
        {"step": 2, "epoch": 1.0, "images_seen": 123456789, "seconds": 1.5, "loss": 1.25, "learning_rate": 0.1,
         "eval_loss": 1.0, "eval_accuracy": 0.5},
        {"step": 4, "epoch": 2.0},
    ]  # fmt: skip


def test_tables_have_mean_and_deviation_over_seeds():
    runs = [Run({"method": "clars", "seed": s}, {}) for s in range(3)]
    results = [some_result(final={"eval_accuracy": a}) for a in (0.5, 0.6, 0.7)]
    results[2].state = "diverged"
    rows = table(list(zip(runs, results, strict=True))).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| clars | 3 | 55.0 ± 7.1 % | 50.0 ± 0.0 % | 2.000 ± 0.000 | 1 |")
    assert mean_and_deviation([], 1) == "–"
    assert "| final evaluation accuracy |" in rows[0]
    tested = [(Run(run.place, {"eval_split": "test"}), one) for run, one in zip(runs, results, strict=True)]
    assert "| final test accuracy |" in table(tested).splitlines()[0]


def test_the_commit_is_of_this_checkout():
    if not (ROOT / ".git").exists():
        pytest.skip("this is no checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert head.startswith(commit().removesuffix("+changes"))


# ---- running ---------------------------------------------------------------------------------------------------------


def test_a_run_is_a_training(tmp_path, fashion_mnist, capsys):
    """Two at a time; what they print, their curves and what is left of them. The same run again is the same run."""
    methods = {name: {**settings, "learning_rate": 2.0} for name, settings in METHODS.items()}
    methods["diverges"] = {"optim": "sgd", "learning_rate": 1e30}
    settings = {k: v for k, v in TINY.items() if k != "learning_rate"}
    settings |= {"dataset": str(fashion_mnist), "layer_statistics_steps": 2}
    parameters = {"method": {"choices": methods}, "seed": {"value": 0}}
    file = sweep_file(tmp_path, parameters=parameters, settings=settings)
    asked = command("sweep", file, tmp_path, "--jobs", "2")
    assert main(asked) == 0
    printed = capsys.readouterr().out.splitlines()
    assert printed[0] == f"0 of 3 runs have results in {tmp_path}/r/sweep-tiny"
    assert [line.split("]")[0] for line in printed[1:4]] == ["[1/3", "[2/3", "[3/3"]
    assert sum(line.startswith("| clars | 1 |") or line.startswith("| mgd | 1 |") for line in printed) == 2
    assert printed[-1] == f"hf-clars compare {tmp_path}/r/sweep-tiny"
    results = {result["place"]["method"]: result for result in results_in(tmp_path)}
    diverged = results.pop("diverges")  # with fewer steps than `max_nonfinite_steps`, all skipped but the first one
    assert (diverged["state"], diverged["final"]) == ("diverged", {})
    for result in results.values():
        assert result["state"] == "finished"
        assert {"optim", "seed", "total_batch_size", "model_name", "learning_rate"} <= result["settings"].keys()
        assert [(row["epoch"], row["images_seen"]) for row in result["curve"]] == [(0.25, 64), (1, 256), (2, 512)]
        assert all({"loss", "eval_accuracy", "learning_rate"} <= row.keys() for row in result["curve"][1:])
        seconds = [row["seconds"] for row in result["curve"]]
        assert 0 < seconds[0] < seconds[1] < seconds[2] < result["seconds"]
        assert result["final"]["eval_accuracy"] == result["curve"][-1]["eval_accuracy"]
        assert result["hardware"]["threads"] == 1
    assert "gamma" in next(iter(results["clars"]["layers"][-1]["layers"].values()))
    assert list((tmp_path / "w").iterdir()) == []  # neither folders nor locks
    next((tmp_path / "r" / "sweep-tiny").glob("clars*.json")).unlink()
    assert main(asked) == 0
    again = {result["place"]["method"]: result for result in results_in(tmp_path)}
    assert timeless(again["clars"]) == timeless(results["clars"])


def test_a_run_that_is_ended_for_its_divergence_has_a_result_that_says_so(tmp_path, fashion_mnist):
    settings = {**TINY, "dataset": str(fashion_mnist), "optim": "sgd", "learning_rate": 1e30, "max_nonfinite_steps": 2}
    runner = Runner(tmp_path / "results", tmp_path / "work", threads=1)
    (result,) = runner.fill([Run({"method": "sgd"}, settings)]).values()
    assert (result.state, result.final, runner.failed) == ("diverged", {}, [])


def test_what_has_a_result_is_not_run_again(tmp_path):
    runs = [named(name) for name in ("a", "bb", "ccc")]
    results = stand_in(tmp_path, jobs=2).fill(runs[:2])
    assert [results[run.key].final["eval_accuracy"] for run in runs[:2]] == [0.1, 0.2]
    assert results[runs[0].key].settings == runs[0].settings
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "r").iterdir()}
    again = stand_in(tmp_path).fill(runs)
    assert again.keys() == {run.key for run in runs}
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert list((tmp_path / "w").iterdir()) == []
    assert stand_in(tmp_path, draw_only=True).fill([*runs, named("dddd")]) == again


def test_a_run_that_fails_does_not_stop_the_others(tmp_path):
    runs = [named("a", run_name="fails"), named("bb", run_name="diverges"), named("ccc")]
    log = tmp_path / "w" / runs[2].file_name / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("error: of an earlier attempt\n")
    runner = stand_in(tmp_path)
    results = runner.fill(runs)
    assert [results[run.key].state for run in runs[1:]] == ["diverged", "finished"]
    assert len(runner.failed) == 1
    assert runner.failed[0].startswith("a: it broke (")


def test_nothing_runs_where_something_is_wrong(tmp_path):
    bad = named("bad", lerning_rate=3)
    with pytest.raises(UserError, match="bad: unknown flag --lerning_rate; did you mean learning_rate"):
        stand_in(tmp_path).fill([named("good"), bad])
    with pytest.raises(UserError, match="no-such-launcher"):
        stand_in(tmp_path, launch=["no-such-launcher"]).fill([named("good")])
    for folder in ("r", "w"):
        (tmp_path / folder).write_text("a file")
        with pytest.raises(UserError, match="cannot be written"):
            stand_in(tmp_path).fill([named("good")])
        (tmp_path / folder).unlink()
        assert not list(tmp_path.rglob("*.json"))


def test_two_do_not_make_the_same_run(tmp_path, fashion_mnist):
    """As where a training has outlived its command: its folder is left alone."""
    run = named("a", dataset=str(fashion_mnist))
    runner = Runner(tmp_path / "r", tmp_path / "w", threads=1)
    log = tmp_path / "w" / run.file_name / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("half a line of the other's")
    with alone_in(log.parent):
        assert runner.fill([run]) == {}
    assert "another training is at work in" in runner.failed[0]
    assert log.read_text().startswith("half a line of the other's")
    assert run.key in runner.fill([run])


def test_what_another_command_has_made_meanwhile_is_not_made_again(tmp_path):
    second = named("bb")
    other = write_result(tmp_path, second, some_result(commit="its"))
    first = named("a", run_name=f"copies {other} {tmp_path / 'r' / other.name}")
    results = stand_in(tmp_path).fill([first, second])
    assert [results[run.key].commit == "its" for run in (first, second)] == [False, True]


def test_data_sets_of_a_folder_stand_for_those_of_the_hub(tmp_path):
    (tmp_path / "cifar10").mkdir()
    runner = Runner(tmp_path / "r", tmp_path / "w", data_dir=tmp_path)

    def dataset_of(**settings) -> str | None:
        flags = runner.flags(Run({}, settings))
        return flags[flags.index("--dataset") + 1] if "--dataset" in flags else None

    assert dataset_of(dataset="uoft-cs/cifar10") == dataset_of(dataset="cifar10/") == str(tmp_path / "cifar10")
    assert dataset_of(dataset="uoft-cs/cifar100") == "uoft-cs/cifar100"
    assert dataset_of() is None


def test_data_are_those_around_the_sweep_and_runs_the_same_from_everywhere(tmp_path, monkeypatch, capsys):
    """A folder of that name where the program is started is another one, unless the command line names it."""
    for folder in ("data/ours", "conf/ours", "elsewhere/data/ours"):
        (tmp_path / folder).mkdir(parents=True)
    (tmp_path / "conf" / "b.yaml").write_text("dataset: ours\nseed: 5\n")
    beside = {"optim": {"value": "lars"}, "dataset": {"value": "data/ours"}}
    ways = {
        "parameter": sweep_file(tmp_path, parameters=beside, settings=None),
        "settings": sweep_file(tmp_path, "data/ours", called="settings"),
        "config": sweep_file(
            tmp_path, parameters={"config": {"value": "conf/b.yaml"}}, settings=None, called="config"
        ),
    }  # fmt: skip
    keys, used = set(), set()
    for place in (tmp_path, tmp_path / "elsewhere", tmp_path / "conf"):
        monkeypatch.chdir(place)
        for way, file in ways.items():
            (run, *_) = read_sweep(Path(os.path.relpath(file))).runs()
            flags = Runner(Path("r"), Path("w"), sweep_file=Path(os.path.relpath(file))).flags(run)
            keys.add((way, run.key))
            used.add((way, flags[flags.index("--dataset") + 1]))
    ours = str(tmp_path / "data" / "ours")
    assert used == {("parameter", ours), ("settings", ours), ("config", str(tmp_path / "conf" / "ours"))}
    assert len(keys) == 3

    monkeypatch.chdir(tmp_path / "elsewhere")
    options = Namespace(set=["dataset=data/ours"])
    assert _settings_of(options) == {"dataset": str(tmp_path / "elsewhere" / "data" / "ours")}


@contextlib.contextmanager
def started(folder: Path, *words: str, **options):
    """A command of its own, once its first run has left a checkpoint."""
    process = subprocess.Popen([sys.executable, "-m", "hf_clars", *words], stdout=subprocess.PIPE, text=True,
                               stderr=subprocess.PIPE, start_new_session=True, **options)  # fmt: skip
    with process:
        while not list((folder / "w").glob("*/checkpoint-*")):
            assert process.poll() is None, process.stderr.read()
            time.sleep(0.05)
        yield process


TUNED = {"parameters": {"method": {"choices": {"clars": {"optim": "clars"}}}},
         "tuning": {"search": {"seed": 0}, "seeds": [3], "trials": {"clars": [{}]}}}  # fmt: skip


@pytest.mark.slow
def test_a_stop_amid_the_search_begins_nothing_new(tmp_path):
    """SIGTERM for the whole process group of the command, while its last trial runs."""
    file = sweep_file(tmp_path, **TUNED, settings={**TINY, "dataset": "x", "run_name": "waits"})
    with started(tmp_path, *command("tune", file, tmp_path, "--launch", " ".join(STAND_IN))) as process:
        os.killpg(process.pid, signal.SIGTERM)
        printed, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error.strip() == "stopped: 1 runs have no result yet; start again to go on"
    assert "seed=3" not in printed
    assert results_in(tmp_path) == []


LONG = {**TINY, "num_train_epochs": 40, "save_strategy": "epoch", "save_total_limit": 1}


@pytest.mark.slow
def test_a_grid_that_is_stopped_goes_on(tmp_path, fashion_mnist):
    """SIGTERM amid a run of 40 epochs: it leaves a checkpoint; the second start finishes as an uninterrupted run."""
    file = sweep_file(tmp_path, **TUNED, settings={**LONG, "dataset": str(fashion_mnist)})
    with started(tmp_path, *command("tune", file, tmp_path)) as process:
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert "start again to go on" in error
    assert results_in(tmp_path) == []
    for folder in (tmp_path, tmp_path / "whole"):
        assert main(command("tune", file, folder)) == 0
    ours, whole = results_in(tmp_path), results_in(tmp_path / "whole")
    assert len(whole) == 2
    assert list(map(timeless, ours)) == list(map(timeless, whole))


@pytest.mark.slow
def test_a_sweep_that_is_killed_goes_on(tmp_path, fashion_mnist, capsys):
    """SIGKILL amid a run: what it started ends by itself, nothing else works on it meanwhile, and nothing is lost."""
    file = sweep_file(tmp_path, settings={**LONG, "num_train_epochs": 60, "dataset": str(fashion_mnist)})
    asked = command("sweep", file, tmp_path, "--only", "method=clars")
    with started(tmp_path, *asked) as process:
        process.kill()
    while main(asked) != 0:
        assert "another training is at work in" in capsys.readouterr().err
    assert [result["place"]["seed"] for result in results_in(tmp_path)] == [0, 1]
    for result in results_in(tmp_path):
        assert result["curve"][-1]["epoch"] == 60
        seconds = [row["seconds"] for row in result["curve"]]
        assert seconds == sorted(seconds)


@pytest.mark.slow
def test_a_random_sweep_with_offline_wandb_runs(tmp_path, fashion_mnist):
    """Runs are forks that end without Python's exit: their W&B runs have an end all the same."""
    parameters = {"learning_rate": {"distribution": "log_uniform_values", "min": 0.5, "max": 8}}
    settings = {k: v for k, v in TINY.items() if k != "learning_rate"} | {"dataset": str(fashion_mnist)}
    file = sweep_file(tmp_path, parameters=parameters, method="random", settings=settings)
    flags = command("sweep", file, tmp_path, "--count", "2", "--set", "report_to=wandb", "num_train_epochs=1")
    run_python("-m", "hf_clars", *flags, cwd=tmp_path,
               environment=without("WANDB", HOME=str(tmp_path), WANDB_MODE="offline"))  # fmt: skip
    written = offline_runs(tmp_path)
    assert {w.config["learning_rate"] for w in written} == {
        r["settings"]["learning_rate"] for r in results_in(tmp_path)
    }
    assert [(w.exit_code, w.summary["diverged"], w.run["project"]) for w in written] == [(0, False, "hf_clars")] * 2


@pytest.mark.slow
def test_on_a_terminal_one_line_says_how_it_stands(tmp_path):
    terminal, ours = pty.openpty()
    termios.tcsetwinsize(ours, (24, 120))
    flags = ["--only", "method=clars", "seed=0", "--launch", " ".join(STAND_IN)]
    words = command("sweep", sweep_file(tmp_path), tmp_path, *flags)
    process = subprocess.Popen([sys.executable, "-m", "hf_clars", *words], stdout=ours, stderr=ours, cwd=ROOT)
    os.close(ours)
    shown = b""
    try:
        while chunk := os.read(terminal, 4096):
            shown += chunk
    except OSError:  # how a terminal ends on Linux
        pass
    assert process.wait() == 0
    text = shown.decode()
    assert "0 of 1 runs done, 0 failed, 1 running (clars seed=0); " in text
    assert "[1/1] clars seed=0: " in text


# ---- tuning ----------------------------------------------------------------------------------------------------------

FAIR = {
    "search": {"seed": 0, "eval_split": "train[100:]"},
    "seeds": [5, 6],
    "trials": {"clars": [{"learning_rate": 1.0}, {"learning_rate": 4.0}], "mgd": [{}, {"learning_rate": 3.0}]},
}
METHOD = {"method": {"choices": METHODS}}


def test_the_best_trial_of_each_method_gets_fresh_seeds(tmp_path, capsys):
    drawing = {"columns": ["method"], "rows": ["loss", "gamma"], "lines": ["method"]}
    file = sweep_file(tmp_path, parameters=METHOD, tuning=FAIR, drawing=drawing)
    asked = command("tune", file, tmp_path, "--jobs", "2", "--launch", " ".join(STAND_IN))
    assert main([*asked, "--only", "method=mgd"]) == 0
    assert main(asked) == 0  # a part adds to the whole
    printed = capsys.readouterr().out
    folder = tmp_path / "r" / "tuning-tiny"
    assert (folder / "table.md").read_text().strip() in printed
    assert (folder / "search.md").read_text().strip() in printed
    assert "| clars | 0: 10.0, 1: 40.0 | learning_rate 4.0 | 2 | 40.0 ± 0.0 % |" in printed
    assert "| mgd | 0: 20.0, 1: 30.0 | learning_rate 3.0 | 2 | 30.0 ± 0.0 % |" in printed
    finals = [result for result in results_in(tmp_path) if "trial" not in result["place"]]
    assert sorted((r["place"]["method"], r["settings"]["seed"]) for r in finals) == [
        ("clars", 5), ("clars", 6), ("mgd", 5), ("mgd", 6),
    ]  # fmt: skip
    assert {r["settings"]["eval_split"] for r in finals} == {"test"}
    assert {tuple(r["place"]) for r in finals} == {("method", "seed")}
    assert {r["settings"]["eval_split"] for r in results_in(tmp_path) if "trial" in r["place"]} == {"train[100:]"}
    assert (folder / "tiny.png").stat().st_size > 1000
    assert "by the method's best" in (folder / "search.svg").read_text()
    assert "γ_k" in (folder / "tiny.svg").read_text()
    assert main([*asked, "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 4  # the trials


def test_what_cannot_be_written_is_printed_and_said(tmp_path, capsys):
    """In one line, with the runs that failed; everything else is there."""
    how = {"how": {"choices": {"well": {"learning_rate": 3}, "badly": {"run_name": "fails"}}}}
    drawing = {"columns": ["how"], "rows": ["loss"]}
    folder = tmp_path / "r" / "sweep-tiny"
    for file in ("table.md", "tiny.png"):
        (folder / file).mkdir(parents=True)
    asked = command("sweep", sweep_file(tmp_path, parameters=how, drawing=drawing), tmp_path)
    assert main([*asked, "--launch", " ".join(STAND_IN)]) == 1
    out, error = capsys.readouterr()
    assert "| well | 1 | 30.0" in out
    (line,) = [line for line in error.splitlines() if line.startswith("error: ")]
    for words in ("badly: it broke", f"{folder / 'table.md'} cannot be written: Is a directory", "tiny.png cannot be"):
        assert words in line

    (tmp_path / "r" / "tuning-tiny" / "search.md").mkdir(parents=True)
    asked = command("tune", sweep_file(tmp_path, parameters=METHOD, tuning=FAIR), tmp_path)
    assert main([*asked, "--launch", " ".join(STAND_IN)]) == 1
    out, error = capsys.readouterr()
    assert error.strip().endswith("search.md cannot be written: Is a directory; what it would say is printed")
    assert "| method | settings |" in out
    assert "| 2 | 30.0 ± 0.0 % |" in out
    assert (tmp_path / "r" / "tuning-tiny" / "table.md").is_file()


def test_how_far_from_the_best_rate_one_may_be(tmp_path):
    """Between trials by straight lines over the logarithm of the rate; a search that ends too early is said to."""
    rates = {"clars": (4.0, 1.0, 16.0, 64.0), "mgd": (1.0, 2.0, 4.0, 8.0)}
    trials = {method: [{"learning_rate": rate} for rate in given] for method, given in rates.items()}
    trials["mgd"][3] = {"learning_rate": None}
    sweep = read_sweep(sweep_file(tmp_path, parameters=METHOD, tuning={**FAIR, "trials": trials}))
    scores = {"clars": (0.60, 0.58, 0.595, 0.575), "mgd": (0.5, 0.495, None, math.nan)}
    contest, found = contestants(sweep), {}
    for one in contest:
        for run, score in zip(one.trials(), scores[one.place.place["method"]], strict=True):
            curve = [{"step": n, "epoch": n + 0.2, "eval_accuracy": 0.1 * n} for n in (1, 3)]
            if score is not None:
                found[run.key] = some_result(final={"eval_accuracy": score}, curve=curve)
    clars, mgd = search_table(contest, found).splitlines()[2:]
    # Half of the way from 4 down to 1, a quarter of the way from 16 up to 64.
    assert clars == "| clars |  | 1: 58.0, 4: 60.0, 16: 59.5, 64: 57.5 | 2 to 22.6 (× 11.3) | 10.0 / 30.0 / × |"
    assert mgd == "| mgd |  | 1: 50.0, 2: 49.5, 4: –, default: × | – | 10.0 / 30.0 / × |"
    del found[contest[1].trials()[3].key]
    assert search_table(contest, found).splitlines()[3].split("|")[4] == " ≤ 1 to ≥ 2 (≥ × 2.0) "
    assert search_table(contest, {}) == ""


def with_layers(method: str, statistics: tuple[str, ...], names: list[str]) -> tuple[Run, Result]:
    layers = [{"epoch": e, "layers": {n: dict.fromkeys(statistics, e + 1.0) for n in names}} for e in (1, 2)]
    curve = [{"step": e, "epoch": e, "loss": 3.0 - e} for e in (1, 2)]
    run = Run({"network": "deep", "method": method}, {"seed": 1})
    return run, Result(dict(run.place), dict(run.settings), "finished", 1.0, "abc", {}, curve, {}, layers=layers)


def test_long_names_of_layers_leave_a_panel_its_place_and_the_run_that_has_a_statistic_shows_it():
    names = [f"features.denseblock3.denselayer{k}.conv2.weight" for k in range(121)]
    runs = [with_layers("lars", ("gamma",), names), with_layers("clars", ("gamma", "variance_factor"), names)]
    drawing = Drawing(columns=("network",), rows=["loss", "variance_factor", "gamma"], lines=("method",))
    figure = draw(drawing, runs)
    figure.canvas.draw()
    loss, factors, gammas, *_ = figure.axes
    for axis in (loss, factors, gammas):
        assert axis.get_position().width * figure.get_figwidth() > 2, "inches"
    assert factors.get_title().endswith("M_k, clars")
    assert gammas.get_title().endswith("γ_k, lars")
    assert len(factors.lines) == len(names)


def test_the_picture_of_a_search_has_each_method_around_its_best_rate(tmp_path):
    schedules = [{"lr_scheduler_type": kind} for kind in ("linear", "constant")]
    tried = [{"learning_rate": rate, **schedule} for rate in (4.0, 1.0) for schedule in schedules]
    trials = {"clars": tried, "mgd": [{"learning_rate": None, "momentum": share} for share in (0.6, 0.7, 0.8, 0.9)]}
    axes = {**METHOD, "B": {"values": [1, 2], "choices": {1: {"total_batch_size": 32}, 2: {"total_batch_size": 64}}}}
    contest = contestants(read_sweep(sweep_file(tmp_path, parameters=axes, tuning={**FAIR, "trials": trials})))
    found = {}
    for one in contest:
        scores = {"1": (0.5, 0.6, math.nan, 0.55), "2": (None, 0.3, 0.4, 0.2)}[str(one.place.place["B"])]
        for run, score in zip(one.trials(), scores, strict=True):
            if score is not None:
                found[run.key] = some_result(final={"eval_accuracy": score})
    figure = draw_search(contest, found)
    panels = [axis for axis in figure.axes if axis.lines]
    assert [axis.get_title() for axis in panels] == ["B = 1", "B = 2"]
    # The better of two schedules; a method without rates has no line.
    assert [axis.lines[0].get_xydata().tolist() for axis in panels] == [[[0.25, 0.55], [1, 0.6]], [[1, 0.4], [4, 0.3]]]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["clars"]
    figure.canvas.draw()
    numbers = [text.get_text() for which in ("major", "minor") for text in panels[0].get_xticklabels(which=which)]
    assert {"0.5", "1"} < {*numbers} < {"", *(f"{k}{e}" for k in (1, 2, 5) for e in ("", "0")), "0.1", "0.2", "0.5"}
    assert draw_search(contest, {}) is None


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"trials": {"clars": [{}, {}], "mgd": [{}]}}, "as many trials: they have clars 2, mgd 1"),
        ({"trials": {"clars": [{}]}}, "trials for each of its values"),
        ({"seeds": []}, "it needs values"),
        ({"seeds": [1, 1]}, "twice: 1, 1"),
        ({"search": {"learning_rate": 3.0}}, "learning_rate stands in search and in trials of clars"),
        ({"seeds": [0, 1]}, "must be fresh: they are 0, 1, and clars trial=0 of the search has 0, too"),
        ({"seeds": [2], "search": {"seed": "2"}}, "and clars trial=0 of the search has 2, too"),
        ({"seeds": [42], "search": {}}, "has 42, by default: give search a seed of its own"),
        ({"seeds": [42], "search": {"seed": None}}, "has 42, by default"),
        ({"trials": {m: [{"eta": 1.0}, {"eta": "1e0"}] for m in METHODS}}, "clars trial=0 and clars trial=1 are one"),
        ({"trials": {m: [{"optim": "lars"}] for m in METHODS}}, "clars trial=0 and mgd trial=0 are one run"),
    ],
)
def test_unfair_comparisons_are_refused(tmp_path, change, message):
    """Before any run: nothing is tried and ignored, and no seed that was chosen on is called a fresh one."""
    with pytest.raises(UserError, match=message):
        contestants(read_sweep(sweep_file(tmp_path, parameters=METHOD, tuning={**FAIR, **change})))


def test_a_seed_of_all_runs_is_that_of_the_search(tmp_path):
    tuning = {**FAIR, "seeds": [7, 2], "search": {}}
    sweep = read_sweep(sweep_file(tmp_path, parameters=METHOD, settings={**TINY, "seed": 7}, tuning=tuning))
    with pytest.raises(UserError, match="they are 7, 2, and clars trial=0 of the search has 7, too"):
        contestants(sweep)


def test_what_the_tuning_decides_is_nobody_elses(tmp_path):
    sweep = read_sweep(sweep_file(tmp_path, parameters=METHOD, tuning=FAIR))
    for key in ("learning_rate", "seed", "eval_split"):
        with pytest.raises(UserError, match=f"{key} is what the section tuning decides"):
            contestants(sweep, {}, {key: 3})
    sweep = read_sweep(sweep_file(tmp_path, tuning=FAIR))
    with pytest.raises(UserError, match="seed is what the section tuning decides"):
        contestants(sweep, {}, {})


def test_the_evidence_is_of_deep_networks_and_equal_trials():
    """None is shallower than the paper's; the recipe takes all runs; schedules are the same for all methods."""
    sweep = read_sweep(ROOT / "recipes" / "tuning" / "evidence.yaml")
    contest = contestants(sweep, {"B": ["4096"]})
    Runner(Path(), Path()).check(search(contest[:6]))
    layers = {}
    for one in contest:
        settings = one.place.settings
        model = timm.create_model(settings["model_name"], num_classes=10, **settings.get("model_kwargs", {}))
        layers[one.place.place["network"]] = sum(parameter.ndim >= 2 for parameter in model.parameters())
        schedules = [run.settings["lr_scheduler_type"] for run in one.trials()]
        assert schedules == ["polynomial", "warmup_stable_decay"] * 4
    assert layers == {"mobilenetv2": 53, "resnet20": 20, "resnet56": 56, "densenet121": 121, "vgg11_bn": 11}
    assert {run.settings["train_split"] for run in search(contest)} == {"train[:45000]"}


def test_a_search_with_a_trial_missing_has_no_winner(tmp_path):
    sweep = read_sweep(sweep_file(tmp_path, parameters=METHOD, tuning=FAIR))
    one = contestants(sweep, {"method": ["clars"]}, {})[0]
    results = [some_result(final={}, state="diverged"), some_result(final={"eval_accuracy": 0.1})]
    found = {run.key: result for run, result in zip(one.trials(), results, strict=True)}
    assert [run.settings["learning_rate"] for run in one.finals(found)] == [4.0, 4.0]
    assert one.finals(dict.fromkeys(found, results[0])) == []  # all of them diverged
    assert one.finals(dict(list(found.items())[1:])) == []


def test_methods_take_turns_in_a_search():
    """Cut off anywhere, it has given every method at a place as many trials, or one more."""
    contest = contestants(read_sweep(ROOT / "recipes" / "tuning" / "cifar.yaml", "paper"), {"B": ["8192", "1024"]}, {})
    runs = search(contest)
    assert {run.key for run in runs} == {run.key for one in contest for run in one.trials()}
    turn = len({one.place.place["method"] for one in contest})
    for first in range(0, len(runs), turn):
        together = [run.place for run in runs[first : first + turn]]
        assert len({place["method"] for place in together}) == turn
        assert len({(place["dataset"], place["B"], place["trial"]) for place in together}) == 1
