"""Grids of runs: what is cached, what is run, and what is said when a run goes wrong."""

import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import filelock
import pytest
import yaml

from hf_clars import UserError
from hf_clars.cli import main
from hf_clars.experiments import Grid, Result, Run, Runner, read_grid, read_result
from hf_clars.experiments.drawing import mean_and_deviation, table
from hf_clars.experiments.results import curve_of, write_result
from hf_clars.experiments.tuning import Plan, tune
from hf_clars.runtime.provenance import commit

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
    presets = {"small": {"base": {"image_size": 4}, "axes": {"seed": [7]}, "choices": {"method": {"mgd": {"eta": 9}}}}}
    file = grid_file(tmp_path, Path("x"), presets=presets)
    runs = read_grid(file, "small").runs({"method": ["mgd"]}, {"num_train_epochs": 5})
    assert [(r.settings["image_size"], r.settings["seed"], r.settings["num_train_epochs"]) for r in runs] == [(4, 7, 5)]
    assert (runs[0].settings["optim"], runs[0].settings["eta"]) == ("sgd", 9)


def test_the_key_is_of_what_is_computed():
    def key(**settings):
        return Run({}, {**TINY, "dataset": "uoft-cs/cifar10", **settings}).key

    assert key(dataset="uoft-cs/cifar10/") == key(report_to="wandb", logging_steps=3, save_steps=9) == key()
    assert key(learning_rate="2e0", weight_decay=None) == key()  # YAML 1.1 reads 2e0 as text
    different = [
        {"seed": 1}, {"learning_rate": 2.1}, {"dataset": "uoft-cs/cifar100"}, {"dataset": "others/cifar10"},
        {"model_kwargs": {"width": 5}}, {"label_column": "coarse_label"}, {"dataset_revision": "x"}, {},
        {"gradient_variance": "train"}, {"gradient_variance": "train", "per_device_eval_batch_size": 9},
    ]  # fmt: skip
    assert len({key(**settings) for settings in different}) == len(different)
    assert key(per_device_eval_batch_size=9) == key()  # which computes the same where M_k is not measured


def test_flags():
    run = Run({}, {"a": 1, "b": True, "c": None, "d": [1, 2.5], "e": {"x": 1}, "f": "1e-2"})
    assert run.flags() == ["--a", "1", "--b", "true", "--d", "1", "2.5", "--e", '{"x": 1}', "--f", "1e-2"]


@pytest.mark.parametrize(
    ("change", "preset", "only", "message"),
    [
        ({}, "huge", {}, "has no preset 'huge': it has none"),
        ({"axis": {}}, None, {}, "unknown section 'axis'"),
        ({"axes": {}}, None, {}, "must hold axes"),
        ({"axes": ["seed"]}, None, {}, "'axes' must hold keys and values, not"),
        ({"base": [1]}, None, {}, "'base' must hold keys and values"),
        ({"choices": {"method": ["clars"]}}, None, {}, "'method' must hold keys and values"),
        ({"axes": {"seed": [1, 1]}}, None, {}, "axis 'seed' has a value twice: 1, 1"),
        ({"presets": {"small": None}}, "small", {"B": ["1"]}, "there is no axis 'B'"),
        ({"axes": {"seed": 1}}, None, {}, "axis 'seed' must be a list of values, not 1"),
        ({"axes": {"method": ["adam"]}}, None, {}, "method 'adam' is not among its choices clars, mgd"),
        ({}, None, {"B": ["1"]}, "there is no axis 'B': the axes are method, seed"),
        ({}, None, {"seed": ["3"]}, "seed is never '3': it is 0, 1"),
    ],
)
def test_bad_grids(tmp_path, change, preset, only, message):
    with pytest.raises(UserError, match=message):
        read_grid(grid_file(tmp_path, Path("x"), **change), preset).runs(only)


def test_what_an_axis_varies_is_not_for_all_runs():
    grid = Grid({}, {"method": ["clars"], "seed": [0]}, {"method": {"clars": {"eta": 1}}}, {})
    for key in ("eta", "seed"):
        with pytest.raises(UserError, match=f"{key} is what the grid's axes vary"):
            grid.runs(settings={key: 3})
    assert [run.settings["lr_milestones"] for run in Grid({}, {"lr_milestones": [None, [1, 2]]}, {}, {}).runs()] == [
        None,
        [1, 2],
    ]
    assert len(grid.runs({"seed": ["0", "0"]})) == 1


# ---- results ---------------------------------------------------------------------------------------------------------


def some_result(**changes) -> Result:
    values = {
        "place": {"method": "clars", "seed": 0}, "settings": {}, "state": "finished", "seconds": 3.0, "commit": "abc",
        "hardware": {}, "curve": [{"step": 1, "epoch": 1.0, "loss": 2.0, "eval_accuracy": 0.5}],
        "final": {"eval_accuracy": 0.5},
    }  # fmt: skip
    return Result(**{**values, **changes})


def timeless(curve: list[dict]) -> list[dict]:
    """The curve without how long it took."""
    return [{k: v for k, v in row.items() if k != "seconds"} for row in curve]


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
        {"step": 2, "epoch": 1.0, "loss": 1.23456789, "learning_rate": 0.1, "grad_norm": float("nan"),
         "images_seen": 123456789, "seconds": 1.23456789},
        {"step": 2, "epoch": 1.0, "eval_loss": 1.0, "eval_accuracy": 0.5, "eval_runtime": 3.0, "seconds": 9.0},
        {"step": 4, "epoch": 2.0, "loss": float("inf")},
        {"step": 4, "epoch": 2.0, "train_runtime": 1.0},
    ]  # fmt: skip
    assert curve_of(history) == [
        {"step": 2, "epoch": 1.0, "images_seen": 123456789, "seconds": 1.23457, "loss": 1.23457, "learning_rate": 0.1,
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
        assert [row["images_seen"] for row in result.curve] == [64, 256, 512]
        assert 0 < result.curve[0]["seconds"] < result.curve[1]["seconds"] < result.curve[2]["seconds"] < result.seconds
        assert result.final["eval_accuracy"] == result.curve[-1]["eval_accuracy"]
        assert result.settings == run.settings
        assert result.hardware["threads"] == 1
    assert list((tmp_path / "work").iterdir()) == []  # neither folders nor locks
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()}
    assert runner.fill(grid.runs({"seed": ["0"]})) == results
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "results").iterdir()} == written
    repeated = Runner(tmp_path / "again", tmp_path / "work", threads=1, say=said.append).fill(runs[:1])
    assert timeless(repeated[runs[0].key].curve) == timeless(results[runs[0].key].curve)


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


def test_nothing_but_infinite_losses_is_a_divergence(tmp_path, fashion_mnist):
    """Fewer steps than `max_nonfinite_steps`, all skipped but the first one: the run ends, but it did not train."""
    run = Run({"method": "sgd"}, {**TINY, "dataset": str(fashion_mnist), "optim": "sgd", "learning_rate": 1e30})
    runner = Runner(tmp_path / "results", tmp_path / "work", threads=1, say=lambda line: None)
    result = runner.fill([run])[run.key]
    assert (result.state, result.final, runner.failed) == ("diverged", {}, [])


@pytest.mark.parametrize("folder", ["results", "work"])
def test_folders_that_cannot_be_written_are_found_before_anything_runs(tmp_path, fashion_mnist, folder):
    (tmp_path / folder).write_text("a file")
    runner = Runner(tmp_path / "results", tmp_path / "work", say=lambda line: pytest.fail(line))
    with pytest.raises(UserError, match=f"--{folder} .* cannot be written"):
        runner.fill([Run({"n": "a"}, {**TINY, "dataset": str(fashion_mnist)})])


def test_two_do_not_make_the_same_run(tmp_path, fashion_mnist):
    run = Run({"n": "a"}, {**TINY, "dataset": str(fashion_mnist)})
    runner = Runner(tmp_path / "results", tmp_path / "work", threads=1, say=lambda line: None)
    log = tmp_path / "work" / run.file_name / "log.txt"
    log.parent.mkdir(parents=True)
    log.write_text("half a line of the other's")
    with filelock.FileLock(tmp_path / "work" / f"{run.file_name}.lock"):
        assert runner.fill([run]) == {}
    assert "another process is at work on this run" in runner.failed[0]
    assert log.read_text() == "half a line of the other's"
    assert run.key in runner.fill([run])


def test_what_another_command_has_made_meanwhile_is_not_made_again(tmp_path, fashion_mnist):
    first, second = (
        Run({"n": n}, {**TINY, "dataset": str(fashion_mnist), "seed": seed}) for seed, n in enumerate("ab")
    )
    other = Result(dict(second.place), dict(second.settings), "finished", 1.0, "its", {}, [], {"eval_accuracy": 0.5})

    def say(line: str) -> None:
        if line.startswith("[1/2]"):
            write_result(tmp_path / "results", second, other)

    runner = Runner(tmp_path / "results", tmp_path / "work", threads=1, say=say)
    results = runner.fill([first, second])
    assert results[second.key] == other
    assert results[first.key].commit != "its"


def test_data_sets_of_a_folder_stand_for_those_of_the_hub(tmp_path):
    (tmp_path / "cifar10").mkdir()
    runner = Runner(tmp_path / "r", tmp_path / "w", data_dir=tmp_path)

    def dataset_of(**settings) -> str | None:
        flags = runner.flags(Run({}, settings))
        return flags[flags.index("--dataset") + 1] if "--dataset" in flags else None

    assert dataset_of(dataset="uoft-cs/cifar10") == dataset_of(dataset="cifar10/") == str(tmp_path / "cifar10")
    assert dataset_of(dataset="uoft-cs/cifar100") == "uoft-cs/cifar100"
    assert dataset_of() is None


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--set", "x=["], "--set x=[: '[' is not a value as YAML has them"),
        (["--set", "only=1"], "unknown flag --only"),
        (["--launch", "'a"], "--launch 'a: No closing quotation"),
    ],
)
def test_mistakes_at_the_command_line_are_one_line(tmp_path, fashion_mnist, capsys, flags, message):
    tuning = {"search": {"seed": 0}, "seeds": [1], "trials": {"clars": [{}]}}
    file = grid_file(tmp_path, fashion_mnist, axes={"method": ["clars"]}, tuning=tuning)
    assert main(["tune", str(file), "--results", str(tmp_path / "r"), "--work", str(tmp_path / "w"), *flags]) == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert "\n" not in error


@pytest.mark.parametrize("group", [False, True])
def test_a_stop_amid_the_search_begins_nothing_new(tmp_path, fashion_mnist, group):
    """SIGTERM for the command, or for its whole process group, while its last trial runs."""
    base = {
        **TINY,
        "dataset": str(fashion_mnist),
        "num_train_epochs": 500,
        "save_strategy": "epoch",
        "save_total_limit": 1,
    }
    file = grid_file(tmp_path, fashion_mnist, base=base, axes={"method": ["clars"]},
                     tuning={"search": {"seed": 0}, "seeds": [3], "trials": {"clars": [{}]}})  # fmt: skip
    command = [sys.executable, "-m", "hf_clars", "tune", str(file), "--work", str(tmp_path / "w"), "--threads", "1"]
    process = subprocess.Popen([*command, "--results", str(tmp_path / "r")], stdout=subprocess.PIPE,
                               stderr=subprocess.PIPE, text=True, start_new_session=True)  # fmt: skip
    end = time.monotonic() + 120
    while not list((tmp_path / "w").glob("*/checkpoint-*")):
        assert time.monotonic() < end
        assert process.poll() is None
        time.sleep(0.05)
    (os.killpg if group else os.kill)(process.pid, signal.SIGTERM)
    printed, error = process.communicate(timeout=60)
    assert process.returncode == 75
    assert error.strip() == "stopped: 1 runs have no result yet; start again to go on"
    assert "seed=3" not in printed
    assert not list((tmp_path / "r").rglob("*.json"))


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
    file = grid_file(tmp_path, fashion_mnist, base=base, axes={"method": ["clars"]},
                     tuning={"search": {"seed": 0}, "seeds": [3], "trials": {"clars": [{}]}})  # fmt: skip
    command = [sys.executable, "-m", "hf_clars", "tune", str(file), "--work", str(tmp_path / "w"), "--threads", "1"]
    first = subprocess.Popen([*command, "--results", str(tmp_path / "r")], stderr=subprocess.PIPE, text=True)
    end = time.monotonic() + 120
    while not list((tmp_path / "w").glob("*/checkpoint-*")):
        assert time.monotonic() < end
        assert first.poll() is None
        time.sleep(0.05)
    first.send_signal(signal.SIGTERM)
    _, error = first.communicate(timeout=60)
    assert first.returncode == 75
    assert "start again to go on" in error
    assert not list((tmp_path / "r").rglob("*.json"))
    subprocess.run([*command, "--results", str(tmp_path / "r")], check=True)
    subprocess.run([*command, "--results", str(tmp_path / "whole")], check=True)
    results = list((tmp_path / "r").rglob("*.json"))
    assert len(results) == 2
    for path in results:
        whole = next((tmp_path / "whole").rglob(path.name))
        curves = [json.loads(file.read_text())["curve"] for file in (path, whole)]
        assert timeless(curves[0]) == timeless(curves[1])


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
    plan = Plan(read_grid(file), {}, {"num_train_epochs": 8})
    (contestant,) = tune(plan, runner)
    assert runner.failed == []
    assert contestant.winner == {"learning_rate": 2.0}
    assert contestant.searched[1] > contestant.searched[0]
    assert [run.place["seed"] for run, _ in contestant.finals] == [5, 6]
    assert all(run.settings["eval_split"] == "test" for run, _ in contestant.finals)


FAIR = {"search": {"seed": 0}, "seeds": [1, 2], "trials": {"clars": [{"eta": 1}, {"eta": 2}], "mgd": [{}, {}]}}


@pytest.mark.parametrize(
    ("change", "settings", "message"),
    [
        ({"trials": {"clars": [{}, {}], "mgd": [{}]}}, {}, "needs as many trials: they have clars 2, mgd 1"),
        ({"trials": [1]}, {}, "tuning.trials: it must be a valid dictionary"),
        ({"seeds": None}, {}, "tuning.seeds: it must be a valid list"),
        ({"seeds": [1, 1]}, {}, r"must be fresh: \[1, 1\], and 0 of the search"),
        ({"seeds": [0, 1]}, {}, r"must be fresh: \[0, 1\], and 0 of the search"),
        ({}, {"eta": 3}, "eta is what the grid's section tuning decides"),
        ({}, {"seed": 3}, "seed is what the grid's section tuning decides"),
    ],
)
def test_unfair_comparisons_are_refused(tmp_path, change, settings, message):
    axes = {"method": ["clars", "mgd"]}
    grid = read_grid(grid_file(tmp_path, Path("x"), axes=axes, tuning={**FAIR, **change}))
    with pytest.raises(UserError, match=message):
        Plan(grid, {}, settings)


def test_a_search_with_a_trial_missing_has_no_winner(tmp_path):
    plan = Plan(read_grid(grid_file(tmp_path, Path("x"), axes={"method": ["clars"]}, tuning=FAIR)), {}, {})
    (place,) = plan.places()
    assert plan.winner(place, [0.5, None]) is None
    assert plan.winner(place, [math.nan, math.nan]) is None
    assert plan.winner(place, [math.nan, 0.1]) == {"eta": 2}
    assert [run.settings["eta"] for run in plan.finals(place, {"eta": 2})] == [2, 2]


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
    assert main([*command, "--set", "num_train_epochs=1", "layer_statistics_steps=2", "--list"]) == 0
    assert capsys.readouterr().out.count("finished") == 2  # the trials
