"""Grids of runs: what is cached, what is run, and what is said when a run goes wrong."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hf_clars import UserError
from hf_clars.cli import main
from hf_clars.experiments import Result, Run, Runner, read_grid, read_result
from hf_clars.experiments.drawing import mean_and_deviation, table
from hf_clars.experiments.results import commit, curve_of, write_result
from hf_clars.experiments.tuning import tune

TINY = {
    "model_name": "resnet8_cifar", "model_kwargs": {"width": 4}, "image_size": 8, "augmentation": "flip",
    "eval_crop": 1.0, "eval_split": "test", "train_examples": 256, "eval_examples": 64, "total_batch_size": 64,
    "per_device_train_batch_size": 64, "num_train_epochs": 2, "learning_rate": 2.0, "use_cpu": True,
    "eval_strategy": "epoch", "logging_strategy": "epoch", "save_strategy": "no", "layer_statistics_steps": 0,
}  # fmt: skip


def grid_file(folder: Path, data: Path, **sections) -> Path:
    content = {
        "base": {**TINY, "dataset": str(data)},
        "axes": {"method": ["clars", "mgd"], "seed": [0, 1]},
        "choices": {"method": {"clars": {"optim": "clars"}, "mgd": {"optim": "sgd"}}},
        **sections,
    }
    file = folder / "grid.yaml"
    file.write_text(yaml.safe_dump(content))
    return file


# ---- grids -----------------------------------------------------------------------------------------------------------


def test_a_grid_is_all_combinations_of_its_axes(tmp_path):
    runs = read_grid(grid_file(tmp_path, Path("x"))).runs()
    assert [tuple(run.place.values()) for run in runs] == [("clars", 0), ("clars", 1), ("mgd", 0), ("mgd", 1)]
    assert runs[3].settings["optim"] == "sgd"
    assert runs[3].settings["seed"] == 1
    assert "method" not in runs[3].settings
    assert len({run.key for run in runs}) == 4


def test_a_preset_lies_over_the_file(tmp_path):
    presets = {"small": {"base": {"image_size": 4}, "axes": {"seed": [7]}, "choices": {"method": {"mgd": {"seed": 9}}}}}
    file = grid_file(tmp_path, Path("x"), presets=presets)
    runs = read_grid(file, "small").runs({"method": ["mgd"]}, num_train_epochs=5)
    assert [(r.settings["image_size"], r.settings["seed"], r.settings["num_train_epochs"]) for r in runs] == [(4, 7, 5)]
    assert runs[0].settings["optim"] == "sgd"


def test_the_key_is_of_what_is_computed():
    def key(**settings):
        return Run({}, {**TINY, "dataset": "uoft-cs/cifar10", **settings}).key

    assert key(dataset="/somewhere/cifar10/") == key(report_to="wandb", logging_steps=3, save_steps=9) == key()
    assert key(learning_rate="2e0", weight_decay=None) == key()  # YAML 1.1 reads 2e0 as text
    different = [key(seed=1), key(learning_rate=2.1), key(dataset="cifar100"), key(model_kwargs={"width": 5}), key()]
    assert len(set(different)) == 5


def test_flags():
    run = Run({}, {"a": 1, "b": True, "c": None, "d": [1, 2.5], "e": {"x": 1}, "f": "1e-2"})
    assert run.flags() == ["--a", "1", "--b", "true", "--d", "1", "2.5", "--e", '{"x": 1}', "--f", "1e-2"]


@pytest.mark.parametrize(
    ("change", "preset", "only", "message"),
    [
        ({}, "huge", {}, "has no preset 'huge': it has none"),
        ({"axis": {}}, None, {}, "unknown section 'axis'"),
        ({"axes": {}}, None, {}, "must hold axes"),
        ({"axes": {"seed": 1}}, None, {}, "axis 'seed' must be a list of values, not 1"),
        ({"axes": {"method": ["adam"]}}, None, {}, "method 'adam' is not among its choices clars, mgd"),
        ({}, None, {"B": ["1"]}, "there is no axis 'B': the axes are method, seed"),
        ({}, None, {"seed": ["3"]}, "seed is never '3': it is 0, 1"),
    ],
)
def test_bad_grids(tmp_path, change, preset, only, message):
    with pytest.raises(UserError, match=message):
        read_grid(grid_file(tmp_path, Path("x"), **change), preset).runs(only)


# ---- results ---------------------------------------------------------------------------------------------------------


def some_result(**changes) -> Result:
    values = {
        "place": {"method": "clars", "seed": 0}, "settings": {}, "state": "finished", "seconds": 3.0, "commit": "abc",
        "hardware": {}, "curve": [{"step": 1, "epoch": 1.0, "loss": 2.0, "eval_accuracy": 0.5}],
        "final": {"eval_accuracy": 0.5},
    }  # fmt: skip
    return Result(**{**values, **changes})


def test_a_result_is_read_as_it_was_written(tmp_path):
    run = Run({"method": "clars", "seed": 0}, {"seed": 0})
    path = write_result(tmp_path, run, some_result())
    assert path.name == f"clars_seed=0-{run.key}.json"
    assert read_result(tmp_path, run) == some_result()
    assert read_result(tmp_path, Run(run.place, {"seed": 1})) is None
    path.write_text(path.read_text()[:50])
    with pytest.raises(UserError, match="is no result of a run"):
        read_result(tmp_path, run)


def test_curves_have_a_row_for_each_step_and_no_nan():
    history = [
        {"step": 2, "epoch": 1.0, "loss": 1.23456789, "learning_rate": 0.1, "grad_norm": float("nan")},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_runtime": 3.0},
        {"step": 4, "epoch": 2.0, "loss": float("inf")},
        {"step": 4, "epoch": 2.0, "train_runtime": 1.0},
    ]
    assert curve_of(history) == [
        {"step": 2, "epoch": 1.0, "loss": 1.23457, "learning_rate": 0.1, "eval_loss": 1.0, "eval_accuracy": 0.5},
        {"step": 4, "epoch": 2.0},
    ]


def test_tables_have_mean_and_deviation_over_seeds():
    runs = [Run({"method": "clars", "seed": s}, {}) for s in range(3)]
    results = [some_result(final={"eval_accuracy": a}) for a in (0.5, 0.6, 0.7)]
    results[2].state = "diverged"
    rows = table(list(zip(runs, results, strict=True))).splitlines()
    assert len(rows) == 3
    assert rows[2].startswith("| clars | 3 | 55.0 ± 7.1 % | 50.0 ± 0.0 % | 2.000 ± 0.000 | 1 |")
    assert mean_and_deviation([]) == "–"


def test_the_commit_is_of_this_checkout():
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():
        pytest.skip("this is no checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True).stdout
    assert head.startswith(commit().removesuffix("+changes"))


# ---- running ---------------------------------------------------------------------------------------------------------


def test_what_has_a_result_is_not_run_again(tmp_path, fashion_mnist):
    grid = read_grid(grid_file(tmp_path, fashion_mnist))
    said: list[str] = []
    runner = Runner(tmp_path / "results", tmp_path / "work", jobs=2, threads=1, say=said.append)
    runs = grid.runs({"seed": ["0"]})
    results = runner.fill(runs)
    assert runner.failed == []
    assert len(said) == 3
    assert "0 of 2 runs have results" in said[0]
    assert said[1].startswith("[1/2] ")
    for run in runs:
        result = results[run.key]
        assert result.state == "finished"
        assert [row["epoch"] for row in result.curve] == [0.25, 1, 2]
        assert all({"loss", "eval_accuracy", "learning_rate"} <= row.keys() for row in result.curve[1:])
        assert result.final["eval_accuracy"] == result.curve[-1]["eval_accuracy"]
        assert result.settings == run.settings
        assert result.hardware["threads"] == 1
    assert list((tmp_path / "work").iterdir()) == []
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert runner.fill(grid.runs({"seed": ["0"]})) == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()} == written
    repeated = Runner(tmp_path / "again", tmp_path / "work", threads=1, say=said.append).fill(runs[:1])
    assert repeated[runs[0].key].curve == results[runs[0].key].curve


def test_a_run_that_diverges_has_a_result_that_says_so(tmp_path, fashion_mnist):
    run = Run({"method": "sgd"}, {**TINY, "dataset": str(fashion_mnist), "optim": "sgd", "learning_rate": 1e30,
                                  "max_nonfinite_steps": 2})  # fmt: skip
    runner = Runner(tmp_path / "results", tmp_path / "work", threads=1, say=lambda line: None)
    result = runner.fill([run])[run.key]
    assert result.state == "diverged"
    assert runner.failed == []
    assert result.final == {}


def test_settings_that_the_recipe_does_not_take_are_found_before_anything_runs(tmp_path, fashion_mnist):
    good = Run({"n": "good"}, {**TINY, "dataset": str(fashion_mnist)})
    bad = Run({"n": "bad"}, {**TINY, "dataset": str(fashion_mnist), "lerning_rate": 3})
    runner = Runner(tmp_path / "results", tmp_path / "work", say=lambda line: None)
    with pytest.raises(UserError, match="bad: unknown flag --lerning_rate; did you mean learning_rate"):
        runner.fill([good, bad])
    assert not (tmp_path / "work").exists()


def test_a_run_that_fails_does_not_stop_the_others(tmp_path, fashion_mnist):
    base = {**TINY, "dataset": str(fashion_mnist)}
    runs = [Run({"n": "a"}, {**base, "dataset": str(tmp_path / "nowhere")}), Run({"n": "b"}, base)]
    runner = Runner(tmp_path / "results", tmp_path / "work", threads=1, say=lambda line: None)
    results = runner.fill(runs)
    assert list(results) == [runs[1].key]
    assert len(runner.failed) == 1
    assert "no such folder" in runner.failed[0]


@pytest.mark.slow
def test_a_grid_that_is_stopped_goes_on(tmp_path, fashion_mnist):
    """SIGTERM amid a run of 40 epochs: it leaves a checkpoint; the second start finishes as an uninterrupted run."""
    base = {
        **TINY,
        "dataset": str(fashion_mnist),
        "num_train_epochs": 40,
        "save_strategy": "epoch",
        "save_total_limit": 1,
    }
    file = grid_file(tmp_path, fashion_mnist, base=base, axes={"method": ["clars"], "seed": [0]},
                     tuning={"search": {}, "seeds": [3], "trials": {"clars": [{}]}})  # fmt: skip
    command = [sys.executable, "-m", "hf_clars", "tune", str(file), "--work", str(tmp_path / "w"), "--threads", "1"]
    first = subprocess.Popen([*command, "--results", str(tmp_path / "r")], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list((tmp_path / "w").glob("*/checkpoint-*")):
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    assert first.wait(60) == 75
    assert "start again to go on" in first.stderr.read()
    assert not list((tmp_path / "r").rglob("*.json"))
    subprocess.run([*command, "--results", str(tmp_path / "r")], check=True)
    subprocess.run([*command, "--results", str(tmp_path / "whole")], check=True)
    for path in (tmp_path / "r").rglob("*.json"):
        whole = next((tmp_path / "whole").rglob(path.name))
        assert json.loads(path.read_text())["curve"] == json.loads(whole.read_text())["curve"]


# ---- tuning ----------------------------------------------------------------------------------------------------------


def test_a_fair_comparison(tmp_path, fashion_mnist):
    """The best of two trials on held-out rows gets fresh seeds on the test images."""
    tuning = {
        "search": {"seed": 0, "eval_split": "train[11900:]"},
        "seeds": [5, 6],
        "trials": {"clars": [{"learning_rate": 1e-6}, {"learning_rate": 2.0}], "mgd": [{}, {"momentum": 0.0}]},
    }
    file = grid_file(tmp_path, fashion_mnist, axes={"method": ["clars"]}, tuning=tuning)
    runner = Runner(tmp_path / "results", tmp_path / "work", jobs=2, threads=1, say=lambda line: None)
    (contestant,) = tune(read_grid(file), runner, {}, num_train_epochs=8)
    assert runner.failed == []
    assert contestant.winner == {"learning_rate": 2.0}
    assert contestant.searched[1] > contestant.searched[0]
    assert [run.place["seed"] for run, _ in contestant.finals] == [5, 6]
    assert all(run.settings["eval_split"] == "test" for run, _ in contestant.finals)


def test_unequal_budgets_are_refused(tmp_path):
    tuning = {"search": {}, "seeds": [1], "trials": {"clars": [{}, {}], "mgd": [{}]}}
    grid = read_grid(grid_file(tmp_path, Path("x"), tuning=tuning))
    with pytest.raises(UserError, match="every method needs as many trials: they have clars 2, mgd 1"):
        tune(grid, Runner(tmp_path, tmp_path), {})


def test_the_tune_command_draws_and_tables(tmp_path, fashion_mnist, capsys):
    tuning = {"search": {"seed": 0}, "seeds": [1], "trials": {"clars": [{}], "lars": [{}]}}
    choices = {"method": {"clars": {"optim": "clars"}, "lars": {"optim": "lars", "eta": 1e-2}}}
    file = grid_file(tmp_path, fashion_mnist, axes={"method": ["clars", "lars"]}, choices=choices, tuning=tuning)
    command = ["tune", str(file), "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), "--jobs", "2"]
    assert main([*command, "--set", "num_train_epochs=1", "layer_statistics_steps=2"]) == 0
    printed = capsys.readouterr().out
    assert "| clars |" in printed
    folder = tmp_path / "r" / "tuning-grid"
    assert (folder / "contest.png").stat().st_size > 1000
    assert "γ_k, lars" in (folder / "layers.svg").read_text()
    assert (folder / "table.md").read_text().strip() in printed
    assert os.listdir(tmp_path / "w") == []
