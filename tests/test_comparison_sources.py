"""What real trainings left in folders: Trainer's own, TensorBoard's, results, and mixtures of them."""

import json
import math
import os
import pickle
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path

import pytest

from hf_clars import UserError
from hf_clars.comparison.runs import ComparedRun
from hf_clars.comparison.sources import read_sources
from hf_clars.comparison.sources.rows import History
from hf_clars.experiments.grid import Run
from hf_clars.experiments.results import Result, write_result

from .comparison import environment, points

TRAININGS = """
import sys
import wandb
from transformers import Trainer, TrainingArguments
from hf_clars import ClarsTrainer, ClarsTrainingArguments
from tests.models import Classifier, dataset

def accuracy(predictions):
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}

common = dict(num_train_epochs=2, logging_steps=1, use_cpu=True, eval_strategy="epoch", disable_tqdm=True,
              learning_rate=0.05, save_strategy="epoch", report_to=sys.argv[1:], project="p")
data = dict(train_dataset=dataset(64), eval_dataset=dataset(32, 1), compute_metrics=accuracy)
args = ClarsTrainingArguments(output_dir="clars", total_batch_size=32, layer_statistics_steps=2, run_name="mine",
                              seed=7, **common)
trainer = ClarsTrainer(Classifier(), args, **data)
trainer.train()
trainer.save_state()
wandb.finish()
args = TrainingArguments(output_dir="plain", per_device_train_batch_size=32, run_name="its", **common)
Trainer(Classifier(), args, **data).train()
"""


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with `clars/` and `plain/`, which a ClarsTrainer and a plain Trainer left, with `runs/` in them, and
    `wandb/` with the same two."""
    place = tmp_path_factory.mktemp("trainings")
    reporters = ["wandb", "tensorboard"]
    result = subprocess.run(
        [sys.executable, "-c", TRAININGS, *reporters],
        cwd=place, env=environment(place), capture_output=True, text=True,
        stdin=subprocess.DEVNULL, timeout=240, check=False,
    )  # fmt: skip
    assert result.returncode == 0, result.stderr[-3000:]
    return place


@pytest.fixture
def trainings(made, tmp_path) -> Path:
    """A copy, to change."""
    for name in ("clars", "plain", "wandb"):
        shutil.copytree(made / name, tmp_path / name, symlinks=True)
    return tmp_path


def logged(folder: Path) -> list[dict]:
    """What Trainer itself keeps of a training, at its newest checkpoint."""
    return json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]


def only(*sources: Path | str):
    (run,), unreadable = read_sources([str(source) for source in sources])
    assert unreadable == []
    return run


def without_others(folder: Path) -> Path:
    shutil.rmtree(folder / "runs")
    return folder


# --- Trainer ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_clars_trainer(trainings):
    folder = without_others(trainings / "clars")
    settings = {"optim": "clars", "seed": 7, "total_batch_size": 32, "kwargs": {"power": 2}, "id2label": {"0": "cat"}}
    record = {"config": settings, "state": "finished", "wandb_run_id": "abc"}
    (folder / "run.json").write_text(json.dumps(record))
    run = only(folder)
    assert (run.name, run.source, run.state) == ("clars", str(folder), "finished")
    assert run.config == {"optim": "clars", "seed": 7, "total_batch_size": 32, "kwargs.power": 2}
    log = logged(folder)
    assert points(run, "train/loss") == ([1, 2, 3, 4], [e["loss"] for e in log if "loss" in e])
    accuracies = [e["eval_accuracy"] for e in log if "eval_accuracy" in e]
    assert points(run, "eval/accuracy", "epoch") == ([1.0, 2.0], accuracies)
    assert points(run, "eval/accuracy", "images") == ([64, 128], accuracies)
    assert run.layers.keys() >= {"gamma", "variance_factor"}
    assert list(run.layers["gamma"]["head.weight"].index) == [1, 3]
    assert not any("runtime" in metric and metric.startswith("train/") for metric in run.history)


def test_what_clars_trainer_says_of_images_and_seconds_goes_before_what_is_reckoned(trainings):
    folder = without_others(trainings / "clars")
    state = json.loads((folder / "trainer_state.json").read_text())
    for entry in state["log_history"]:
        entry |= {"images_seen": 10 * entry["step"], "seconds": 0.5 * entry["step"]}
        if "eval_accuracy" in entry:
            entry |= {"eval_images_seen": entry.pop("images_seen"), "eval_seconds": entry.pop("seconds")}
    (folder / "trainer_state.json").write_text(json.dumps(state))
    (folder / "run.json").write_text(json.dumps({"config": {"total_batch_size": 32}, "state": "finished"}))
    run = only(folder)
    assert points(run, "eval/accuracy", "images")[0] == [20, 40]
    assert points(run, "train/loss", "seconds")[0] == [0.5, 1.0, 1.5, 2.0]
    assert not {"train/images_seen", "eval/seconds"} & set(run.history)


@pytest.mark.parametrize(("kept", "state"), [("diverged", "diverged"), ("failed", "failed"), ("running", "running")])
def test_a_state_that_run_json_says(trainings, kept, state):
    folder = without_others(trainings / "clars")
    (folder / "run.json").write_text(json.dumps({"config": {}, "state": kept}))
    assert only(folder).state == state


def test_a_plain_trainers_folder_has_no_settings_but_those_that_are_safe_to_read(trainings, monkeypatch):
    folder = without_others(trainings / "plain")
    (folder / "checkpoint-4" / "config.json").write_text(json.dumps({"model_type": "tiny", "label2id": {"cat": 0}}))
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    run = only(folder)
    assert run.config == {"num_train_epochs": 2, "max_steps": 4, "train_batch_size": 32, "model_type": "tiny"}
    assert run.state == "finished"
    assert points(run, "train/loss")[0] == [1, 2, 3, 4]
    assert points(run, "eval/accuracy", "images") == ([], [])  # not known


def test_a_training_that_was_cut_off_is_read_from_its_newest_checkpoint(trainings):
    folder = without_others(trainings / "plain")
    (folder / "checkpoint-4" / "trainer_state.json").unlink()
    run = only(folder)
    assert points(run, "train/loss")[0] == [1, 2]
    assert run.state == "running"


def test_a_training_whose_last_loss_is_not_finite_has_diverged(trainings):
    file = without_others(trainings / "plain") / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    [e for e in state["log_history"] if "loss" in e][-1]["loss"] = math.nan
    file.write_text(json.dumps(state))
    run = only(trainings / "plain")
    assert run.state == "diverged"
    assert points(run, "train/loss")[0] == [1, 2, 3]


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("trainer_state.json", '{"log_hist', "trainer_state.json is damaged"),
        ("trainer_state.json", "[]", "trainer_state.json holds a list"),
        ("trainer_state.json", "{}", "has no log_history"),
        ("trainer_state.json", '{"log_history": [1]}', "has no log_history"),
        (
            "trainer_state.json",
            '{"log_history": [{"step": "one"}]}',
            "trainer_state.json is damaged, or something else",
        ),
        (
            "trainer_state.json",
            '{"log_history": [{"step": Infinity}]}',
            "trainer_state.json is damaged, or something else",
        ),
        ("trainer_state.json", '{"log_history": [], "stateful_callbacks": 1}', "trainer_state.json is damaged"),
        ("trainer_state.json", "[" * 100_000, "trainer_state.json is damaged"),
        ("run.json", "", "run.json is damaged"),
        ("layer_statistics.jsonl", '{"step": 1}{"step": x}\n', "layer_statistics.jsonl is damaged"),
        ("layer_statistics.jsonl", "1\n", "layer_statistics.jsonl is damaged"),
        (
            "layer_statistics.jsonl",
            '{"step": 1, "epoch": 1, "layers": {"a": 1}}\n',
            "layer_statistics.jsonl is damaged",
        ),
    ],
)
def test_a_damaged_training_is_named_and_the_others_are_read(trainings, file, content, told):
    (without_others(trainings / "clars") / file).write_text(content)
    shutil.rmtree(trainings / "wandb")
    runs, unreadable = read_sources([str(trainings)])
    assert [run.name for run in runs] == ["plain"]
    assert len(unreadable) == 1
    assert unreadable[0].startswith(f"{trainings / 'clars'}: ")
    assert told in unreadable[0]
    assert "\n" not in unreadable[0]


def test_a_plain_trainer_that_diverged_shows_in_its_evaluations_alone(trainings):
    """By default it logs a finite training loss in place of one that is not (`logging_nan_inf_filter`)."""
    file = without_others(trainings / "plain") / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    [e for e in state["log_history"] if "eval_loss" in e][-1]["eval_loss"] = math.nan
    file.write_text(json.dumps(state))
    assert only(trainings / "plain").state == "diverged"


def test_numbers_of_any_size(trainings):
    file = without_others(trainings / "plain") / "checkpoint-4" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["log_history"] += [
        {"step": 4, "eval_accuracy": 10**400, "epoch": 2.0},
        {"step": 5, "epoch": math.nan, "x": 1},
    ]
    file.write_text(json.dumps(state))
    run = only(trainings / "plain")
    assert points(run, "eval/accuracy", "epoch")[0] == [1, 2]
    assert points(run, "x", "epoch") == ([], [])


def test_output_folders_may_be_called_run(trainings):
    """As those of a search are; W&B's have a date behind it."""
    for number, name in enumerate(("clars", "plain")):
        without_others(trainings / name).rename(trainings / f"run-{number}")
    shutil.rmtree(trainings / "wandb")
    runs, unreadable = read_sources([str(trainings)])
    assert (len(runs), unreadable) == (2, [])


@pytest.mark.parametrize(
    "name", ["broken-checkpoint-4", "deleted-checkpoint-4", "deleted-replaced-checkpoint-4", "unfinished-checkpoint"]
)
def test_what_a_kill_leaves_of_a_checkpoint_is_no_run(trainings, name):
    left = trainings / "plain" / name
    shutil.copytree(trainings / "plain" / "checkpoint-4", left)
    assert only(trainings / "plain").source == str(trainings / "plain")


def test_what_is_no_file_of_a_run_is_left_alone(trainings):
    os.mkfifo(trainings / "pipe.json")
    (trainings / "folder.json").mkdir()
    (trainings / "self").symlink_to("self")
    shutil.rmtree(trainings / "wandb")
    runs, unreadable = read_sources([str(trainings)])
    assert (len(runs), unreadable) == (2, [])


# --- other kinds -----------------------------------------------------------------------------------------------------


def test_tensorboards_files(trainings):
    (events,) = (trainings / "clars" / "runs").iterdir()
    run = only(events)
    log = logged(trainings / "clars")
    assert points(run, "train/loss")[0] == [1, 2, 3, 4]
    assert points(run, "train/loss")[1] == pytest.approx([e["loss"] for e in log if "loss" in e], rel=1e-6)  # float32
    assert points(run, "eval/accuracy", "images")[0] == [64, 128]
    assert (run.name, run.config["optim"], run.config["seed"]) == ("mine", "clars", 7)
    seconds, _ = points(run, "train/loss", "seconds")
    assert seconds == sorted(seconds)
    assert seconds[0] < 30
    assert run.state == "finished"
    assert only(trainings / "clars" / "runs").history.equals(run.history)
    assert only(next(events.iterdir())).history.equals(run.history)


def test_tensorboards_files_that_are_empty_or_damaged(tmp_path, trainings):
    (file,) = (trainings / "clars" / "runs").glob("*/*")
    for name, content in {
        "whole": file.read_bytes(),
        "cut": file.read_bytes()[:-9],
        "none": b"",
        "odd": b"words",
    }.items():
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / file.name).write_bytes(content)
    runs, unreadable = read_sources([str(tmp_path / "logs")])
    assert [Path(run.source).name for run in runs] == ["cut", "whole"]
    assert [line.partition(": ")[0] for line in unreadable] == [str(tmp_path / "logs" / n) for n in ("none", "odd")]


def test_tensorboards_scalars_of_a_writer_of_ones_own(tmp_path):
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(tmp_path / "log") as writer:
        for step in range(3):
            writer.add_scalar("Loss/train", 1.0 / (step + 1), step)
        writer.add_text("args", "not JSON at all")
    run = only(tmp_path / "log")
    assert points(run, "Loss/train") == ([0, 1, 2], [1.0, 0.5, pytest.approx(1 / 3)])
    assert (run.config, run.state) == ({}, "finished")


def write_events(folder: Path, steps: range, value: float, clock: float, args: dict | None = None, tag="train/loss"):
    """A file of transformers' TensorBoardCallback, or of somebody's own writer; its clock begins at `clock`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, filename_suffix=f".{clock:.0f}") as writer:
        if args is not None:
            writer.add_text("args", json.dumps(args), walltime=clock)
        for step in steps:
            writer.add_scalar(tag, value + step, step, walltime=clock + step)


def test_steps_that_parts_of_a_resumed_run_have_in_tensorboard_count_once(tmp_path):
    args = {"output_dir": "out", "learning_rate": 1.0, "seed": 1}
    for name, (first, second) in {
        "in one folder": ("a", "a"), "in two": ("runs/Jan31_23-00-00_host", "runs/Feb01_01-00-00_host"),
    }.items():  # fmt: skip
        folder = tmp_path / name
        write_events(folder / first, range(1, 8), 100.0, 1e9, {**args, "resume_from_checkpoint": None})
        write_events(folder / second, range(5, 13), 200.0, 1e9 + 1000, {**args, "resume_from_checkpoint": "auto"})
        write_events(folder / second, range(12, 13), 0.5, 1e9 + 2000, tag="eval/loss")
        run = only(folder if name == "in two" else folder / "a")
        steps, losses = points(run, "train/loss")
        assert steps == [*range(1, 13)]
        assert losses == [*(100.0 + s for s in range(1, 5)), *(200.0 + s for s in range(5, 13))]
        assert points(run, "eval/loss") == ([12], [12.5])


@pytest.mark.parametrize("where", [("a", "a"), ("a", "b"), ("runs/a", "runs/b")], ids=str)
def test_runs_of_one_name_in_tensorboard_stay_apart(tmp_path, where):
    for number, folder in enumerate(where):
        args = {"output_dir": "out", "run_name": "mine", "seed": number}
        write_events(tmp_path / folder, range(1, 6), 100.0 * number, 1e9 + 1000 * number, args)
    runs, unreadable = read_sources([str(tmp_path)])
    assert unreadable == []
    assert [(run.name, run.config["seed"]) for run in runs] == [("mine", 0), ("mine", 1)]
    assert [points(run, "train/loss")[1][0] for run in runs] == [1.0, 101.0]
    assert len({run.source for run in runs}) == 2


@pytest.mark.parametrize(("first", "number"), [(4, 1), (1, 2)], ids=["goes on", "begins anew"])
def test_files_of_a_writer_of_ones_own_in_one_folder(tmp_path, first, number):
    write_events(tmp_path / "log", range(1, 6), 100.0, 1e9, tag="Loss/train")
    write_events(tmp_path / "log", range(first, 9), 200.0, 1e9 + 1000, tag="Loss/train")
    runs, _ = read_sources([str(tmp_path / "log")])
    assert len(runs) == number
    assert len({run.source for run in runs}) == number
    steps, values = points(runs[-1], "Loss/train")
    assert steps == [*range(1, 9)]
    assert values[first - 1 :] == [200.0 + step for step in range(first, 9)]


def test_a_folder_of_results(tmp_path):
    place = {"method": "lars", "B": 64, "seed": 1}
    settings = {"optim": "lars", "total_batch_size": 64, "eta": "1e-3", "lr_scheduler_kwargs": {"power": "1.0"}}
    run = Run(place, settings | {"seed": 1})
    layers = [{"step": 1, "epoch": 0.5, "layers": {"head.weight": {"gamma": 0.25}}}]
    curve = [{"step": 2, "epoch": 1.0, "loss": 0.5, "eval_accuracy": 0.75}]
    rest = {"seconds": 3.0, "commit": "abc", "hardware": {"device": "CPU"}, "final": {}, "layers": layers}
    write_result(tmp_path, run, Result(place, run.settings, "finished", curve=curve, **rest))
    other = Run(place | {"seed": 2}, run.settings | {"seed": 2})
    write_result(tmp_path, other, Result(dict(other.place), dict(other.settings), "diverged", curve=[], **rest))
    (tmp_path / "other.json").write_text("{}")
    (tmp_path / "broken.json").write_text('{"place": ')
    (tmp_path / "lacking.json").write_text('{"place": {}, "settings": {}, "state": "finished", "curve": [1]}')
    (one, two), unreadable = read_sources([str(tmp_path)])
    assert (one.name, one.state, two.state) == ("lars B=64 seed=1", "finished", "diverged")
    assert one.config == {
        "axis.method": "lars", "axis.B": 64, "seed": 1, "optim": "lars", "total_batch_size": 64, "eta": 0.001,
        "lr_scheduler_kwargs.power": "1.0", "commit": "abc", "hardware.device": "CPU",
    }  # fmt: skip
    assert points(one, "eval/accuracy", "images") == ([128], [0.75])
    assert points(one, "train/loss", "epoch") == ([1.0], [0.5])
    assert one.layers["gamma"].to_dict() == {"head.weight": {1: 0.25}}
    assert [line.partition(": ")[0] for line in unreadable] == [
        str(tmp_path / name) for name in ("broken.json", "lacking.json")
    ]
    assert only(next(tmp_path.glob("lars*seed=1*.json"))).history.equals(one.history)


# --- the same run in several forms -----------------------------------------------------------------------------------


def test_a_training_in_three_forms_is_one_run(trainings):
    runs, unreadable = read_sources([str(trainings)])
    assert unreadable == []
    assert [run.source for run in runs] == [str(trainings / "clars"), str(trainings / "plain")]
    assert runs[0].config["seed"] == 7  # W&B's: Trainer's own files do not have it
    assert runs[1].config["per_device_train_batch_size"] == 32
    assert points(runs[0], "eval/accuracy", "seconds")[0]
    assert points(runs[0], "train/loss")[1] == [e["loss"] for e in logged(trainings / "clars") if "loss" in e]


def test_a_training_whose_forms_are_in_several_sources_is_one_run(trainings):
    """`hf-clars compare outputs wandb` would otherwise count every run twice."""
    for sources, names in ((["clars", "wandb"], ["its", "mine"]), (["wandb", "clars", "plain"], ["mine", "plain"])):
        runs, _ = read_sources([str(trainings / name) for name in sources])
        assert sorted(run.name for run in runs) == names


def test_a_result_and_the_wandb_log_of_its_run_are_one_run(trainings):
    """A runner's output folders have the names of the results."""
    rest = {"seconds": 3.0, "commit": "abc", "hardware": {}, "final": {}, "place": {"seed": 7}}
    result = Result(settings={"optim": "clars", "seed": 7}, state="finished", curve=[{"step": 2, "loss": 0.5}], **rest)
    (trainings / "results").mkdir()
    (trainings / "results" / "clars.json").write_text(json.dumps(asdict(result)))
    (one, other), _ = read_sources([str(trainings / "wandb"), str(trainings / "results")])
    assert one.source == str(trainings / "results" / "clars.json")
    assert one.history["step"].max() == 4  # W&B's goes on longer
    assert one.config["total_batch_size"] == 32
    assert other.name == "its"


def test_layers_are_in_the_models_order_where_that_is_known_and_else_by_name(trainings):
    names = ["stem.weight", "head.weight"]
    records = [{"step": 1, "epoch": 0.5, "layers": {name: {"gamma": 1.0} for name in names}}]
    (trainings / "clars" / "layer_statistics.jsonl").write_text(json.dumps(records[0]) + "\n")
    assert list(only(without_others(trainings / "clars")).layers["gamma"]) == names
    rows = [{f"layers/gamma/layer{k}.weight": 1.0 for k in (10, 2, 1)}]
    assert list(logged_as(rows).layers["gamma"]) == ["layer1.weight", "layer2.weight", "layer10.weight"]


def test_the_form_that_goes_on_longest_has_the_history(trainings):
    """The training was killed after its first checkpoint, and logged on until then."""
    for file in ("trainer_state.json", "checkpoint-4/trainer_state.json"):
        (trainings / "clars" / file).unlink()
    shutil.rmtree(trainings / "plain")
    runs, _ = read_sources([str(trainings)])
    run = next(run for run in runs if run.source == str(trainings / "clars"))
    assert points(run, "train/loss")[0] == [1, 2, 3, 4]
    assert len(runs) == 2  # the other one is in W&B's log only


def test_metrics_that_only_one_form_has_are_not_lost(trainings):
    """Such as those that somebody logs to W&B beside Trainer's."""
    file = trainings / "clars" / "trainer_state.json"
    state = json.loads(file.read_text())
    state["log_history"] = [{k: v for k, v in e.items() if k != "eval_accuracy"} for e in state["log_history"]]
    file.write_text(json.dumps(state))
    (run,) = (run for run in read_sources([str(trainings)])[0] if run.name == "mine")
    assert points(run, "eval/accuracy")[0] == [2, 4]
    assert run.history["step"].is_monotonic_increasing
    assert run.history["step"].is_unique


def test_runs_of_the_same_output_folder_are_told_apart_by_wandbs_id(trainings):
    """Two W&B runs wrote `clars`; the folder is that of the later one."""
    (log,) = [f for f in (trainings / "wandb").glob("*/*.wandb") if b"total_batch_size" in f.read_bytes()]
    copy = trainings / "wandb" / "offline-run-20200101_000000-older"
    shutil.copytree(log.parent, copy)
    old = next(copy.glob("*.wandb"))
    old.rename(copy / "run-older.wandb")
    shutil.rmtree(trainings / "plain")
    (trainings / "clars" / "run.json").write_text(
        json.dumps({"config": {"seed": 7}, "state": "finished", "wandb_run_id": log.stem.removeprefix("run-")})
    )
    runs, _ = read_sources([str(trainings)])
    assert len(runs) == 2


# --- rows ------------------------------------------------------------------------------------------------------------


def logged_as(rows: list[dict], **config) -> ComparedRun:
    history = History(config)
    history.add_all(rows)
    return history.run("name", "source", "finished")


def row(step: int, **values) -> dict:
    return {"train/global_step": step, **values}


def test_a_training_that_goes_on_from_a_checkpoint_replaces_what_it_had_lost():
    losses = [row(s, **{"train/loss": s}) for s in (1, 2, 3, 4)]
    again = [row(3, **{"layers/gamma/w": 1.0}), row(3, **{"train/loss": 30})]
    run = logged_as([*losses, row(4, **{"layers/gamma/w": 9.0}), *again])
    assert points(run, "train/loss") == ([1, 2, 3], [1, 2, 30])
    assert run.layers["gamma"].to_dict() == {"w": {3: 1.0}}


def test_checkpoints_that_were_evaluated_afterwards_drop_nothing():
    run = logged_as([row(s, **{"train/loss": s}) for s in (1, 2, 3)] + [row(s, **{"test/acc": s / 4}) for s in (1, 2)])
    assert points(run, "train/loss") == ([1, 2, 3], [1, 2, 3])
    assert points(run, "test/acc") == ([1, 2], [0.25, 0.5])


def test_the_clock_of_a_run_that_went_on_counts_what_was_not_lost():
    times = [(1, 10.0), (2, 20.0), (3, 30.0), (2, 4.0), (3, 9)]
    run = logged_as([row(step, **{"train/loss": 1.0, "_runtime": time}) for step, time in times])
    assert list(run.history["seconds"]) == [10, 14, 19]


def test_steps_of_other_loggers():
    for key in ("trainer/global_step", "global_step", "_step"):
        run = logged_as([{key: s, "loss": 1.0, "epoch": s / 2} for s in (2, 4)], total_batch_size=8)
        assert run.history.to_dict("list") == {"step": [2, 4], "loss": [1, 1], "epoch": [1, 2], "images": [16, 32]}


# --- what cannot be read ---------------------------------------------------------------------------------------------


def test_sources_that_are_none(tmp_path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "notes.txt").write_text("words")
    (tmp_path / "other.json").write_text("[]")
    for source, message in {
        "empty": r"no run in .*empty\. A source is wandb:entity/project\?filters",
        "notes.txt": r"notes\.txt holds no run\. A source is",
        "other.json": r"other\.json holds no run\. A source is",
        "nowhere": r"nowhere does not exist\. A source is",
    }.items():
        with pytest.raises(UserError, match=message):
            read_sources([str(tmp_path / source)])
    with pytest.raises(UserError, match="no source was named"):
        read_sources([])
    with pytest.raises(UserError, match="write wandb:entity/project"):
        read_sources(["wandb:"])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(tmp_path):
    (tmp_path / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="Permission denied"):
        read_sources([str(tmp_path / "closed")])


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_among_others_that_may_not_be_read_is_named(trainings):
    (trainings / "closed").mkdir(mode=0)
    runs, unreadable = read_sources([str(trainings)])
    assert len(runs) == 2
    assert unreadable == [f"{trainings / 'closed'}: it may not be read"]


@pytest.mark.parametrize("source", ["a" * 5000, "~nobody-of-that-name/x"])
def test_names_that_no_file_can_have(source):
    with pytest.raises(UserError, match="does not exist"):
        read_sources([source])


def test_without_tensorboard_its_files_are_named_and_trainers_are_read(trainings, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    assert len(read_sources([str(trainings)])[0]) == 2
    with pytest.raises(UserError, match=r"no run in .*pip install tensorboard"):
        read_sources([str(trainings / "clars" / "runs")])


def test_a_training_that_had_no_wandb_run_is_none_of_wandbs(trainings):
    (trainings / "clars" / "run.json").write_text(json.dumps({"config": {}, "state": "finished", "wandb_run_id": None}))
    runs, _ = read_sources([str(trainings)])
    assert len(runs) == 3


def test_trainings_of_one_name_do_not_share_a_log_of_wandb(tmp_path, monkeypatch):
    """Which of them it is of is not known where Trainer kept no id."""
    logged_run = logged_as([row(1, **{"train/loss": 9.0})], output_dir="somewhere/run")
    monkeypatch.setattr("hf_clars.comparison.sources.folders.read_logs", lambda *_: [("id", logged_run)])
    for parent, loss in (("a", 1.0), ("b", 2.0)):
        (tmp_path / parent / "run").mkdir(parents=True)
        log = {"log_history": [{"step": step, "epoch": 1.0, "loss": loss} for step in (1, 2)]}
        (tmp_path / parent / "run" / "trainer_state.json").write_text(json.dumps(log))
    runs, _ = read_sources([str(tmp_path / "a"), str(tmp_path / "b")])
    assert sorted(points(run, "train/loss")[1][0] for run in runs) == [1.0, 2.0, 9.0]
    runs, _ = read_sources([str(tmp_path / "a")])
    assert [points(run, "train/loss")[1] for run in runs] == [[1.0, 1.0]]
