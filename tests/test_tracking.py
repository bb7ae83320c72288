"""W&B without a login, TensorBoard, run.json and what is logged: real runs written and read back."""

import json
import logging
import tracemalloc
from itertools import pairwise
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import TrainerControl, TrainerState

from hf_clars import ClarsTrainer, TrainingFailedError
from hf_clars.trainer.records import progress
from hf_clars.trainer.records.description import GROUP_LENGTH, TAG_LENGTH, describe
from hf_clars.trainer.records.layer_records import LayerRecords, read_records, thinned

from .helpers.models import Classifier, dataset
from .helpers.processes import run_script
from .helpers.training import accuracy, arguments, log_of, seeded, state_of
from .helpers.wandb_files import WrittenRun, offline_runs

SCRIPT = """
import json, os, sys
import wandb
from hf_clars import ClarsTrainer, ClarsTrainingArguments, Preempted, TrainingFailedError
from hf_clars.trainer.records.tracking import wandb_line
from tests.helpers.models import Classifier, dataset
from tests.helpers.training import Call, accuracy

options = json.loads(sys.argv[1])
kill_at, number = options.pop("kill", (0, 0))
after = options.pop("after", "")
resume = options.pop("resume", None)
theirs = options.pop("theirs", None)

if theirs:
    wandb.init(mode="offline", **theirs)
args = ClarsTrainingArguments(
    output_dir="run", total_batch_size=32, logging_steps=1, use_cpu=True, eval_strategy="epoch", disable_tqdm=True,
    layer_statistics_steps=1, **{"num_train_epochs": 2, "save_strategy": "no", "learning_rate": 2.0, **options},
)
trainer = ClarsTrainer(
    Classifier(), args, train_dataset=dataset(64), eval_dataset=dataset(16, 1), compute_metrics=accuracy,
    callbacks=[Call("on_step_end", lambda: os.kill(os.getpid(), number), kill_at)] if kill_at else [],
    about={"dataset": "somebody/toys", "image_size": 4},
)
try:
    trainer.train(resume_from_checkpoint=resume)
except (TrainingFailedError, Preempted) as error:
    print("ENDED", error)
if after == "evaluate":
    trainer.evaluate()
print("LINE", wandb_line())
"""


def run(folder: Path, environment: dict[str, str] | None = None, status: int = 0, **options) -> str:
    return run_script(SCRIPT, folder, json.dumps(options), environment=environment, status=status)


def run_json(folder: Path) -> dict:
    return json.loads((folder / "run" / "run.json").read_text())


def only(folder: Path) -> WrittenRun:
    (written,) = offline_runs(folder)
    return written


def test_what_a_training_with_tensorboard_leaves(tmp_path):
    """Without the recipe, and nothing of W&B, which nobody asked for."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    run(tmp_path, report_to=["tensorboard"])
    assert [row["step"] for row in log_of(tmp_path / "run") if "loss" in row] == [1, 2, 3, 4]
    record = run_json(tmp_path)
    assert (record["state"], record["wandb_run_id"]) == ("finished", None)
    assert not (tmp_path / "wandb").exists()
    (file,) = tmp_path.rglob("events.out.tfevents.*")
    events = EventAccumulator(str(file)).Reload()
    assert [event.value for event in events.Scalars("train/images_seen")] == [32, 64, 64, 96, 128, 128, 128]
    assert "train/seconds" in events.Tags()["scalars"]


# ---- W&B -------------------------------------------------------------------------------------------------------------


def test_wandb_without_a_login_is_an_offline_run_with_everything_in_it(tmp_path):
    printed = run(tmp_path, report_to=["wandb"])
    (line,) = [line for line in printed.splitlines() if line.startswith("LINE")]
    assert "W&B run (offline): wandb/offline-run-" in line
    assert "`wandb sync`" in line
    written = only(tmp_path)
    keys = {key for row in written.history for key in row}
    for statistic in ("weight_norm", "gradient_norm", "denominator", "gamma", "variance_factor"):
        assert f"layers/{statistic}/head.weight" in keys, sorted(keys)
    assert {"train/loss", "train/learning_rate", "train/images_per_second"} <= keys
    assert len({k.partition("_table")[0] for k in keys if k.startswith("layer panels/")}) == 5

    # what runs are compared by
    expected = {
        "optim": "clars", "eta": 0.01, "gamma_scale": 2, "momentum": 0.9, "mode": "per_sample", "seed": 42,
        "total_batch_size": 32, "model_name": "Classifier", "dataset": "somebody/toys", "image_size": 4,
    }  # fmt: skip
    assert {k: written.config.get(k) for k in expected} == expected
    assert written.config["commit"]
    assert "torch" in written.config["hardware"]
    assert written.run["display_name"] == "clars Classifier B=32 seed=42"
    assert written.run["run_group"].startswith("clars Classifier B=32 toys lr=2 eta=0.01 per_sample ")
    assert set(written.run["tags"]) == {"clars", "Classifier", "toys"}
    rows = [row for row in written.history if "train/loss" in row or "eval/accuracy" in row]
    assert [row["train/images_seen"] for row in rows] == [32, 64, 64, 96, 128, 128]
    assert [row["train/global_step"] for row in rows] == [1, 2, 2, 3, 4, 4]
    seconds = [row["train/seconds"] for row in rows]
    assert seconds == sorted(seconds)
    assert all("train/epoch" in row for row in rows)

    # how W&B draws them and sums them up
    assert written.metrics["eval/accuracy"]["summary"] == {"last": True, "max": True}
    assert written.metrics["eval/loss"]["summary"] == {"last": True, "min": True}
    assert {written.metrics[m]["step_metric"] for m in ("eval/*", "eval/loss")} == {"train/global_step"}
    assert {"train/epoch", "train/images_seen", "train/seconds"} <= written.metrics.keys()
    accuracies = [row["eval/accuracy"] for row in written.history if "eval/accuracy" in row]
    assert written.summary["eval/accuracy"] == {"last": accuracies[-1], "max": max(accuracies)}
    assert written.summary["diverged"] is False
    assert written.exit_code == 0

    record = run_json(tmp_path)
    assert (record["state"], record["wandb_run_id"]) == ("finished", written.id)
    assert {k: record["config"][k] for k in expected} == expected


@pytest.mark.parametrize("chosen", [{"WANDB_NAME": "called so"}, {"run_name": "called so"}])
def test_what_the_environment_and_the_user_say_wins(tmp_path, chosen):
    environment = {"WANDB_RUN_GROUP": "mine", "WANDB_TAGS": "b, a"} | {k: v for k, v in chosen.items() if k.isupper()}
    options = {k: v for k, v in chosen.items() if k.islower()}
    run(tmp_path, environment, report_to=["wandb"], num_train_epochs=1, **options)
    written = only(tmp_path)
    assert (written.run["run_group"], written.run["display_name"]) == ("mine", "called so")
    assert set(written.run["tags"]) == {"a", "b", "clars", "Classifier", "toys"}


def test_a_run_that_somebody_else_began_is_added_to_and_nothing_is_overwritten(tmp_path):
    theirs = {"config": {"dataset": "theirs", "lr": 3}, "tags": ["mine"], "group": "ours", "name": "my run"}
    run(tmp_path, report_to=["wandb"], num_train_epochs=1, theirs=theirs, optim_args="eta=0.02,mode=subset")
    written = only(tmp_path)
    assert {k: written.config[k] for k in ("dataset", "lr", "model_name", "gamma_scale", "eta", "mode")} == {
        "dataset": "theirs", "lr": 3, "model_name": "Classifier", "gamma_scale": 2, "eta": 0.02, "mode": "subset",
    }  # fmt: skip
    assert (written.run["run_group"], written.run["display_name"]) == ("ours", "my run")
    assert set(written.run["tags"]) == {"mine", "clars", "Classifier", "toys"}
    assert "eval/accuracy" not in written.metrics
    assert written.summary["diverged"] is False


DIVERGES = {"report_to": ["wandb"], "learning_rate": 1e30, "optim": "sgd", "max_nonfinite_steps": 2}


def test_their_run_survives_a_training_that_fails(tmp_path):
    """It is theirs to end; that it diverged is in its summary."""
    run(tmp_path, theirs={"name": "x"}, **DIVERGES)
    written = only(tmp_path)
    assert written.summary["diverged"] is True
    assert written.exit_code == 0  # the program's


def test_a_run_that_diverges_has_failed(tmp_path):
    """And what is logged afterwards goes to the same run."""
    assert "the training has diverged" in run(tmp_path, after="evaluate", **DIVERGES)
    written, second = offline_runs(tmp_path)
    assert (written.exit_code, written.summary["diverged"]) == (1, True)
    assert written.config["optim"] == "sgd"
    assert "mode" not in written.run["run_group"]
    assert run_json(tmp_path)["state"] == "diverged"
    assert second.id == written.id
    assert any("eval/loss" in row for row in second.history)


@pytest.mark.slow
@pytest.mark.parametrize(("number", "status"), [(9, -9), (15, 0)])
def test_a_run_that_is_cut_off_goes_on_as_the_same_wandb_run(tmp_path, number, status):
    """Offline these are two folders with one id, which `wandb sync` makes one run of."""
    options = {"report_to": ["wandb"], "num_train_epochs": 4, "save_strategy": "steps", "save_steps": 2}
    run(tmp_path, status=status, kill=[3, number], **options)
    cut = run_json(tmp_path)
    assert cut["state"] == "running"
    printed = run(tmp_path, resume="auto", **options)
    first, second = offline_runs(tmp_path)
    assert {first.id, second.id, cut["wandb_run_id"]} == {first.id}
    assert "W&B run (offline, 2 parts)" in printed
    if number == 15:  # the client had the time to write
        assert first.run["run_group"] == second.run["run_group"]
    assert (first.exit_code, first.preempting) == ((75, True) if number == 15 else (None, False))
    assert second.exit_code == 0
    assert run_json(tmp_path)["state"] == "finished"
    assert run_json(tmp_path)["wandb_run_id"] == first.id
    history = json.loads((tmp_path / "run" / "checkpoint-8" / "trainer_state.json").read_text())["log_history"]
    assert [row["images_seen"] for row in history if "loss" in row] == [32 * step for step in range(1, 9)]
    seconds = [row["seconds"] for row in history]
    assert seconds == sorted(seconds)


# ---- run.json and what every run logs --------------------------------------------------------------------------------


def trainer_of(folder: Path, **options) -> ClarsTrainer:
    args = arguments(folder, total_batch_size=16, **{"max_steps": 4, **options})
    return ClarsTrainer(
        seeded(), args, train_dataset=dataset(64), eval_dataset=dataset(16, 1), compute_metrics=accuracy
    )


def test_every_row_has_images_and_seconds_and_who_evaluates_gets_metrics_alone(tmp_path):
    trainer = trainer_of(tmp_path, eval_strategy="steps", eval_steps=2)
    before = trainer.evaluate()
    trainer.train()
    metrics = trainer.evaluate()
    history = trainer.state.log_history
    assert [row["images_seen"] for row in history] == [16 * row["step"] for row in history]
    seconds = [row["seconds"] for row in history]
    assert seconds == sorted(seconds)
    assert seconds[-1] > 0
    assert not {"images_seen", "seconds"} & (metrics.keys() | before.keys())  # a search's objective is their sum


def test_the_clock_stands_still_in_evaluations(tmp_path, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(progress.time, "monotonic", lambda: now[0])
    watch = progress.TrainingClock()
    assert watch.seconds == 0
    with watch.paused():
        now[0] = 5
    assert watch.seconds == 0  # it had not been started
    watch.start(past=10)
    now[0] = 6
    with watch.paused():
        now[0] = 60
        assert watch.seconds == 11
    now[0] = 61
    watch.stop()
    now[0] = 99
    assert watch.seconds == 12


def test_run_json_says_that_it_failed(tmp_path):
    with pytest.raises(TrainingFailedError):
        trainer_of(tmp_path / "a", learning_rate=1e30, optim="sgd", max_steps=9, max_nonfinite_steps=2).train()
    assert state_of(tmp_path / "a") == "diverged"
    broken = trainer_of(tmp_path / "b")
    broken.train_dataset = [{"pixel_values": 1, "labels": 1}] * 64
    with pytest.raises(Exception):  # noqa: B017, PT011 (whatever the model says to that)
        broken.train()
    assert state_of(tmp_path / "b") == "failed"


def test_a_disk_that_takes_no_run_json_is_said_and_the_training_goes_on(tmp_path, caplog):
    (tmp_path / "run.json.new").mkdir(parents=True)
    with caplog.at_level(logging.WARNING):
        trainer = trainer_of(tmp_path)
        trainer.train()
    assert trainer.state.global_step == 4
    assert [m for m in caplog.messages if "run.json cannot be written (state: running): Is a directory" in m]


# ---- groups and names ------------------------------------------------------------------------------------------------


def description(folder: Path, about: dict | None = None, **options):
    return describe(arguments(folder, **options), Classifier(), about or {})


def test_numbers_are_plain_numbers(tmp_path):
    """Those that nobody gave are marked in the arguments, and W&B takes such a number for text."""
    config = description(tmp_path, learning_rate=None, total_batch_size=32, base_learning_rate=0.2).config
    numbers = {key: value for key, value in config.items() if isinstance(value, int | float)}
    assert config["gamma_scale"] == pytest.approx(0.2 * 32 / 128)
    assert {type(value) for value in numbers.values()} <= {int, float, bool}


def test_a_group_is_all_that_counts_but_the_seed(tmp_path):
    group = description(tmp_path, learning_rate=2.0).group
    same = [
        {"seed": 7}, {"run_name": "x"}, {"output_dir": "y"}, {"logging_steps": 9}, {"save_steps": 3}, {"data_seed": 3},
        {"dataloader_num_workers": 2}, {"hub_token": "z"}, {"layer_statistics_steps": 3}, {"eta": None},
    ]  # fmt: skip
    for options in same:
        folder = options.pop("output_dir", str(tmp_path))
        assert description(Path(folder), learning_rate=2.0, **options).group == group, options
    different = [
        {"learning_rate": 2.5}, {"eta": 0.02}, {"weight_decay": 1e-4}, {"optim": "lars"}, {"num_train_epochs": 9},
        {"warmup_epochs": 1}, {"mode": "subset"}, {"momentum": 0.8}, {"lr_scheduler_kwargs": {"power": 1.0}},
    ]  # fmt: skip
    groups = {description(tmp_path, **{"learning_rate": 2.0, **options}).group for options in different}
    assert len(groups | {group}) == len(different) + 1


def test_a_group_is_the_same_wherever_the_data_are(tmp_path):
    groups = {description(tmp_path, {"dataset": d, "image_size": 4}).group for d in ("a/toys", "/data/toys/", "toys")}
    assert len(groups) == 1
    assert description(tmp_path, {"dataset": "toys", "image_size": 8}).group not in groups


def test_long_names_are_cut(tmp_path):
    about = {"model_name": "m" * 200, "dataset": "d" * 200}
    long = description(tmp_path, about)
    other = description(tmp_path, {**about, "dataset": "e" * 200})
    assert len(long.group) == len(other.group) == GROUP_LENGTH
    assert long.group != other.group
    assert max(map(len, long.tags)) == TAG_LENGTH


def test_a_description_has_the_settings_in_force(tmp_path):
    lars = description(tmp_path, optim="lars", optim_args="momentum=0.5")
    assert (lars.config["eta"], lars.config["momentum"]) == (1e-3, 0.5)
    assert lars.config["gamma_scale"] == lars.config["learning_rate"] == 3
    mnag = description(tmp_path, optim="mnag")
    assert "eta" not in mnag.group
    adam = description(tmp_path, optim="adamw_torch")
    assert "adamw_torch Classifier B=" in adam.group


# ---- long runs -------------------------------------------------------------------------------------------------------


def test_records_of_a_long_run_are_in_its_file_and_not_in_memory(tmp_path):
    args, state = SimpleNamespace(output_dir=str(tmp_path), report_to=[]), TrainerState(is_world_process_zero=True)
    records = LayerRecords("records.jsonl", {"gamma": "γ_k"}, "layer")
    records.on_train_begin(args, state, TrainerControl())
    tracemalloc.start()
    for step in range(1, 3001):
        state.global_step, state.epoch = step, step / 10
        records.add(args, state, {f"layer{i}": {"gamma": step + i / 7} for i in range(20)})
    held, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert held < 200_000  # 60,000 numbers are some megabytes
    assert [r["step"] for r in read_records(tmp_path / "records.jsonl")] == [*range(1, 3001)]
    state.global_step = 1000
    LayerRecords("records.jsonl", {}, "layer").on_train_begin(args, state, TrainerControl())  # resumed
    assert [r["step"] for r in read_records(tmp_path / "records.jsonl")] == [*range(1, 1001)]


@pytest.mark.parametrize("number", [0, 1, 500, 501, 100_000])
def test_a_panel_has_so_many_records_and_the_last_one(number):
    drawn = thinned([{"step": step} for step in range(number)])
    assert len(drawn) == number if number <= 500 else 250 <= len(drawn) <= 500
    assert [r["step"] for r in drawn[-1:]] == [*range(number)][-1:]
    assert len({b["step"] - a["step"] for a, b in pairwise(drawn)}) <= 1
