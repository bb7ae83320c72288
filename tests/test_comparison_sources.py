"""What real trainings left in folders: Trainer's own, TensorBoard's, results, and mixtures of them."""

import json
import math
import os
import pickle
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hf_clars import UserError
from hf_clars.comparison.runs import ComparedRun
from hf_clars.comparison.sources import read_sources
from hf_clars.comparison.sources.rows import History

from .helpers.comparison import points
from .helpers.processes import run_script

TRAININGS = """
import wandb
from transformers import Trainer, TrainingArguments
from hf_clars import ClarsTrainer, ClarsTrainingArguments
from tests.helpers.models import Classifier, dataset

def accuracy(predictions):
    return {"accuracy": float((predictions.predictions.argmax(-1) == predictions.label_ids).mean())}

common = dict(num_train_epochs=2, logging_steps=1, use_cpu=True, eval_strategy="epoch", disable_tqdm=True,
              learning_rate=0.05, save_strategy="epoch", report_to=["wandb", "tensorboard"], project="p")
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
RESULT = {
    "place": {"method": "lars", "B": 64, "seed": 1},
    "settings": {
        "optim": "lars", "total_batch_size": 64, "eta": "1e-3", "lr_scheduler_kwargs": {"power": "1.0"}, "seed": 1
    },
    "state": "finished", "seconds": 3.0, "commit": "abc", "hardware": {"device": "CPU"}, "final": {},
    "curve": [{"step": 2, "epoch": 1.0, "loss": 0.5, "eval_accuracy": 0.75}],
    "layers": [{"step": 1, "epoch": 0.5, "layers": {"head.weight": {"gamma": 0.25}}}],
}  # fmt: skip


@pytest.fixture(scope="session")
def made(tmp_path_factory) -> Path:
    """A folder with `clars/` and `plain/`, which a ClarsTrainer and a plain Trainer left, with `runs/` in them, and
    `wandb/` with the same two."""
    place = tmp_path_factory.mktemp("trainings")
    run_script(TRAININGS, place, environment={"WANDB_MODE": "offline"})
    return place


@pytest.fixture
def trainings(made, tmp_path) -> Path:
    """A copy, to change."""
    for name in ("clars", "plain", "wandb"):
        shutil.copytree(made / name, tmp_path / name, symlinks=True)
    return tmp_path


@pytest.fixture
def clars(trainings) -> Path:
    """The folder of ClarsTrainer without TensorBoard's."""
    shutil.rmtree(trainings / "clars" / "runs")
    return trainings / "clars"


@pytest.fixture
def plain(trainings) -> Path:
    shutil.rmtree(trainings / "plain" / "runs")
    return trainings / "plain"


def logged(folder: Path, key: str) -> list[float]:
    """What Trainer itself keeps of a training, at its newest checkpoint."""
    log = json.loads((folder / "checkpoint-4" / "trainer_state.json").read_text())["log_history"]
    return [entry[key] for entry in log if key in entry]


def change_log(folder: Path, change: Callable[[list[dict]], object]) -> None:
    for file in (folder / "trainer_state.json", folder / "checkpoint-4" / "trainer_state.json"):
        if file.exists():
            state = json.loads(file.read_text())
            change(state["log_history"])
            file.write_text(json.dumps(state))


def only(*sources: Path | str) -> ComparedRun:
    (run,), unreadable = read_sources([str(source) for source in sources])
    assert unreadable == []
    return run


def logged_as(rows: list[dict], **config) -> ComparedRun:
    history = History(config)
    history.add_all(rows)
    return history.run("name", "source", "finished")


def row(step: int, **values) -> dict:
    return {"train/global_step": step, **values}


# --- Trainer ---------------------------------------------------------------------------------------------------------


def test_a_folder_of_clars_trainer(clars):
    settings = {"optim": "clars", "seed": 7, "total_batch_size": 32, "kwargs": {"power": 2}, "id2label": {"0": "cat"}}
    (clars / "run.json").write_text(json.dumps({"config": settings, "state": "finished", "wandb_run_id": "abc"}))
    run = only(clars)
    assert (run.name, run.source, run.state) == ("clars", str(clars), "finished")
    assert run.config == {"optim": "clars", "seed": 7, "total_batch_size": 32, "kwargs.power": 2}
    assert points(run, "train/loss") == ([1, 2, 3, 4], logged(clars, "loss"))
    assert points(run, "eval/accuracy", "epoch") == ([1.0, 2.0], logged(clars, "eval_accuracy"))
    assert points(run, "eval/accuracy", "images")[0] == [64, 128]
    assert run.layers.keys() >= {"gamma", "variance_factor"}
    assert list(run.layers["gamma"]["head.weight"].index) == [1, 3]
    assert not any("runtime" in metric and metric.startswith("train/") for metric in run.history)


def test_what_clars_trainer_says_of_images_and_seconds_goes_before_what_is_reckoned(clars):
    def change(log):
        for entry in log:
            before = "eval_" if "eval_accuracy" in entry else ""
            entry |= {f"{before}images_seen": 10 * entry["step"], f"{before}seconds": 0.5 * entry["step"]}

    change_log(clars, change)
    (clars / "run.json").write_text(json.dumps({"config": {"total_batch_size": 32}, "state": "finished"}))
    run = only(clars)
    assert points(run, "eval/accuracy", "images")[0] == [20, 40]
    assert points(run, "train/loss", "seconds")[0] == [0.5, 1.0, 1.5, 2.0]
    assert not {"train/images_seen", "eval/seconds"} & set(run.history)


@pytest.mark.parametrize("state", ["diverged", "failed", "running"])
def test_a_state_that_run_json_says(clars, state):
    (clars / "run.json").write_text(json.dumps({"config": {}, "state": state}))
    assert only(clars).state == state


def test_a_plain_trainers_folder_has_no_settings_but_those_that_are_safe_to_read(plain, monkeypatch):
    (plain / "checkpoint-4" / "config.json").write_text(json.dumps({"model_type": "tiny", "label2id": {"cat": 0}}))
    monkeypatch.setattr(pickle, "load", lambda *a, **k: pytest.fail("a pickle was opened"))
    run = only(plain)
    assert run.config == {"num_train_epochs": 2, "max_steps": 4, "train_batch_size": 32, "model_type": "tiny"}
    assert run.state == "finished"
    assert points(run, "train/loss")[0] == [1, 2, 3, 4]
    assert points(run, "eval/accuracy", "images") == ([], [])  # not known


def test_a_training_that_was_cut_off_is_read_from_its_newest_checkpoint(plain):
    (plain / "checkpoint-4" / "trainer_state.json").unlink()
    run = only(plain)
    assert (points(run, "train/loss")[0], run.state) == ([1, 2], "running")


@pytest.mark.parametrize("loss", ["loss", "eval_loss"])
def test_a_training_whose_last_loss_is_not_finite_has_diverged(plain, loss):
    """By default Trainer logs a finite training loss in place of another (`logging_nan_inf_filter`)."""
    change_log(plain, lambda log: [entry for entry in log if loss in entry][-1].update({loss: math.nan}))
    assert only(plain).state == "diverged"


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("trainer_state.json", '{"log_hist', "is damaged"),
        ("trainer_state.json", "[]", "holds a list"),
        ("trainer_state.json", "{}", "has no log_history"),
        ("trainer_state.json", '{"log_history": [1]}', "has no log_history"),
        ("trainer_state.json", '{"log_history": [{"step": "one"}]}', "is damaged"),
        ("trainer_state.json", '{"log_history": [{"step": Infinity}]}', "is damaged"),
        ("trainer_state.json", '{"log_history": [], "stateful_callbacks": 1}', "is damaged"),
        ("trainer_state.json", "[" * 100_000, "is damaged"),
        ("run.json", "", "is damaged"),
        ("layer_statistics.jsonl", '{"step": 1}{"step": x}\n', "is damaged"),
        ("layer_statistics.jsonl", '{"step": 1, "epoch": 1, "layers": {"a": 1}}\n', "is damaged"),
    ],
)
def test_a_damaged_training_is_named_and_the_others_are_read(trainings, clars, file, content, told):
    (clars / file).write_text(content)
    shutil.rmtree(trainings / "wandb")
    runs, (line,) = read_sources([str(trainings)])
    assert [run.name for run in runs] == ["plain"]
    assert line.startswith(f"{clars}: {file} {told}")
    assert "\n" not in line


def test_numbers_of_any_size(plain):
    odd = [{"step": 4, "eval_accuracy": 10**400, "epoch": 2.0}, {"step": 5, "epoch": math.nan, "x": 1}]
    change_log(plain, lambda log: log.extend(odd))
    run = only(plain)
    assert points(run, "eval/accuracy", "epoch")[0] == [1, 2]
    assert points(run, "x", "epoch") == ([], [])


def test_which_folders_are_runs(trainings, clars, plain):
    """Folders may be called as those of a search are; W&B's have a date behind it. What a kill leaves is no run."""
    for number, folder in enumerate((clars, plain)):
        folder.rename(trainings / f"run-{number}")
    killed = [f"{word}-checkpoint-4" for word in ("broken", "deleted", "deleted-replaced")]
    for name in (*killed, "unfinished-checkpoint"):
        shutil.copytree(trainings / "run-1" / "checkpoint-4", trainings / "run-1" / name)
    shutil.rmtree(trainings / "wandb")
    os.mkfifo(trainings / "pipe.json")
    (trainings / "folder.json").mkdir()
    (trainings / "self").symlink_to("self")
    runs, unreadable = read_sources([str(trainings), str(trainings / "run-1")])
    assert [Path(run.source).name for run in runs] == ["run-0", "run-1"]
    assert unreadable == []


# --- TensorBoard and results -----------------------------------------------------------------------------------------


def write_events(folder: Path, steps: range, value: float, clock: float, args: dict | None = None, tag="train/loss"):
    """A file of transformers' TensorBoardCallback, or of somebody's own writer; its clock begins at `clock`."""
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(folder, filename_suffix=f".{clock:.0f}") as writer:
        writer.add_text("args", "not JSON at all" if args is None else json.dumps(args), walltime=clock)
        for step in steps:
            writer.add_scalar(tag, value + step, step, walltime=clock + step)


def test_tensorboards_files(trainings):
    (events,) = (trainings / "clars" / "runs").iterdir()
    run = only(events)
    assert points(run, "train/loss")[1] == pytest.approx(logged(trainings / "clars", "loss"), rel=1e-6)  # float32
    assert points(run, "eval/accuracy", "images")[0] == [64, 128]
    assert (run.name, run.config["optim"], run.config["seed"], run.state) == ("mine", "clars", 7, "finished")
    assert run.history["seconds"].is_monotonic_increasing
    assert run.history["seconds"][0] < 3600  # since the training began, not since 1970
    for place in (trainings / "clars" / "runs", next(events.iterdir())):
        assert only(place).history.equals(run.history)


def test_tensorboards_files_that_are_empty_or_damaged(tmp_path, trainings):
    (file,) = (trainings / "clars" / "runs").glob("*/*")
    whole = file.read_bytes()
    for name, content in {"whole": whole, "cut": whole[:-9], "none": b"", "odd": b"words"}.items():
        (tmp_path / "logs" / name).mkdir(parents=True)
        (tmp_path / "logs" / name / file.name).write_bytes(content)
    runs, unreadable = read_sources([str(tmp_path / "logs")])
    assert [Path(run.source).name for run in runs] == ["cut", "whole"]
    assert [line.partition(": ")[0] for line in unreadable] == [str(tmp_path / "logs" / n) for n in ("none", "odd")]


@pytest.mark.parametrize("places", [("a", "a"), ("runs/Jan31_23-00-00_host", "runs/Feb01_01-00-00_host")], ids=str)
def test_steps_that_parts_of_a_resumed_run_have_in_tensorboard_count_once(tmp_path, places):
    args = {"output_dir": "out", "learning_rate": 1.0, "seed": 1}
    first, second = (tmp_path / place for place in places)
    write_events(first, range(1, 8), 100.0, 1e9, {**args, "resume_from_checkpoint": None})
    write_events(second, range(5, 13), 200.0, 1e9 + 1000, {**args, "resume_from_checkpoint": "auto"})
    write_events(second, range(12, 13), 0.5, 1e9 + 2000, tag="eval/loss")
    run = only(first if first == second else tmp_path)
    assert points(run, "train/loss") == ([*range(1, 13)], [100.0 + s + 100 * (s > 4) for s in range(1, 13)])
    assert points(run, "eval/loss") == ([12], [12.5])


@pytest.mark.parametrize("where", [("a", "a"), ("a", "b"), ("runs/a", "runs/b")], ids=str)
def test_runs_of_one_name_in_tensorboard_stay_apart(tmp_path, where):
    for number, folder in enumerate(where):
        args = {"output_dir": "out", "run_name": "mine", "seed": number}
        write_events(tmp_path / folder, range(1, 6), 100.0 * number, 1e9 + 1000 * number, args)
    runs, unreadable = read_sources([str(tmp_path)])
    assert unreadable == []
    found = [(run.name, run.config["seed"], points(run, "train/loss")[1][0]) for run in runs]
    assert found == [("mine", 0, 1), ("mine", 1, 101)]
    assert len({run.source for run in runs}) == 2


@pytest.mark.parametrize(("first", "number"), [(4, 1), (1, 2)], ids=["goes on", "begins anew"])
def test_files_of_a_writer_of_ones_own_in_one_folder(tmp_path, first, number):
    write_events(tmp_path / "log", range(1, 6), 100.0, 1e9, tag="Loss/train")
    write_events(tmp_path / "log", range(first, 9), 200.0, 1e9 + 1000, tag="Loss/train")
    runs, _ = read_sources([str(tmp_path / "log")])
    assert len(runs) == len({run.source for run in runs}) == number
    steps, values = points(runs[-1], "Loss/train")
    assert steps == [*range(1, 9)]
    assert values[first - 1 :] == [200.0 + step for step in range(first, 9)]
    assert (runs[0].config, runs[0].state) == ({}, "finished")


def test_a_folder_of_results(tmp_path):
    contents = {
        "one": RESULT, "two": {**RESULT, "place": {"seed": 2}, "state": "diverged", "curve": []}, "other": {},
        "lacking": {**RESULT, "curve": [1]},
    }  # fmt: skip
    for name, content in contents.items():
        (tmp_path / f"{name}.json").write_text(json.dumps(content))
    (tmp_path / "broken.json").write_text('{"place": ')
    (one, two), unreadable = read_sources([str(tmp_path)])
    assert (one.name, one.state, two.state) == ("lars B=64 seed=1", "finished", "diverged")
    assert one.config == {
        "axis.method": "lars", "axis.B": 64, "seed": 1, "optim": "lars", "total_batch_size": 64, "eta": 0.001,
        "lr_scheduler_kwargs.power": "1.0", "commit": "abc", "hardware.device": "CPU",
    }  # fmt: skip
    assert points(one, "eval/accuracy", "images") == ([128], [0.75])
    assert points(one, "train/loss", "epoch") == ([1.0], [0.5])
    assert one.layers["gamma"].to_dict() == {"head.weight": {1: 0.25}}
    broken = [str(tmp_path / name) for name in ("broken.json", "lacking.json")]
    assert [line.partition(": ")[0] for line in unreadable] == broken
    assert only(tmp_path / "one.json").history.equals(one.history)


def test_the_results_of_this_repository():
    folder = Path(__file__).resolve().parents[1] / "recipes" / "results" / "sweep-cifar10"
    runs, unreadable = read_sources([str(folder)])
    assert unreadable == []
    assert len(runs) == len(list(folder.glob("*.json"))) > 0
    for run in runs:
        raw = json.loads(Path(run.source).read_text())
        assert points(run, "eval/accuracy")[1] == [r["eval_accuracy"] for r in raw["curve"] if "eval_accuracy" in r]


# --- the same run in several forms -----------------------------------------------------------------------------------


def test_a_training_in_three_forms_is_one_run(trainings):
    runs, unreadable = read_sources([str(trainings)])
    assert unreadable == []
    assert [run.source for run in runs] == [str(trainings / "clars"), str(trainings / "plain")]
    assert runs[0].config["seed"] == 7  # W&B's: Trainer's own files do not have it
    assert runs[1].config["per_device_train_batch_size"] == 32
    assert points(runs[0], "eval/accuracy", "seconds")[0]
    assert points(runs[0], "train/loss")[1] == logged(trainings / "clars", "loss")
    for sources, names in ((["clars", "wandb"], ["its", "mine"]), (["wandb", "clars", "plain"], ["mine", "plain"])):
        runs, _ = read_sources([str(trainings / name) for name in sources])
        assert sorted(run.name for run in runs) == names


def test_a_result_and_the_wandb_log_of_its_run_are_one_run(trainings):
    """A runner's output folders have the names of the results."""
    (trainings / "results").mkdir()
    (trainings / "results" / "clars.json").write_text(json.dumps(RESULT))
    (one, other), _ = read_sources([str(trainings / "wandb"), str(trainings / "results")])
    assert one.source == str(trainings / "results" / "clars.json")
    assert one.history["step"].max() == 4  # W&B's goes on longer
    assert (one.config["layer_statistics_steps"], other.name) == (2, "its")


def test_layers_are_in_the_models_order_where_that_is_known_and_else_by_name(clars):
    names = ["stem.weight", "head.weight"]
    record = {"step": 1, "epoch": 0.5, "layers": {name: {"gamma": 1.0} for name in names}}
    (clars / "layer_statistics.jsonl").write_text(json.dumps(record) + "\n")
    assert list(only(clars).layers["gamma"]) == names
    rows = [{f"layers/gamma/layer{k}.weight": 1.0 for k in (10, 2, 1)}]
    assert list(logged_as(rows).layers["gamma"]) == ["layer1.weight", "layer2.weight", "layer10.weight"]


def test_the_form_that_goes_on_longest_has_the_history(trainings):
    """The training was killed after its first checkpoint, and logged on until then."""
    for file in ("trainer_state.json", "checkpoint-4/trainer_state.json"):
        (trainings / "clars" / file).unlink()
    shutil.rmtree(trainings / "plain")
    runs, _ = read_sources([str(trainings)])
    (run,) = (run for run in runs if run.source == str(trainings / "clars"))
    assert points(run, "train/loss")[0] == [1, 2, 3, 4]
    assert len(runs) == 2  # the other one is in W&B's log only


def test_metrics_that_only_one_form_has_are_not_lost(trainings):
    """Such as those that somebody logs to W&B beside Trainer's."""
    change_log(trainings / "clars", lambda log: [entry.pop("eval_accuracy", None) for entry in log])
    (run,) = (run for run in read_sources([str(trainings)])[0] if run.name == "mine")
    assert points(run, "eval/accuracy")[0] == [2, 4]
    assert run.history["step"].is_monotonic_increasing
    assert run.history["step"].is_unique


@pytest.mark.parametrize(("id_kept", "number"), [("own", 2), (None, 3)])
def test_runs_of_the_same_output_folder_are_told_apart_by_wandbs_id(trainings, id_kept, number):
    """Two W&B runs wrote `clars`; the folder is that of the later one, or of neither."""
    (log,) = [f for f in (trainings / "wandb").glob("*/*.wandb") if b"total_batch_size" in f.read_bytes()]
    copy = trainings / "wandb" / "offline-run-20200101_000000-older"
    shutil.copytree(log.parent, copy)
    next(copy.glob("*.wandb")).rename(copy / "run-older.wandb")
    shutil.rmtree(trainings / "plain")
    kept = log.stem.removeprefix("run-") if id_kept else None
    (trainings / "clars" / "run.json").write_text(json.dumps({"config": {}, "state": "finished", "wandb_run_id": kept}))
    assert len(read_sources([str(trainings)])[0]) == number


def test_trainings_of_one_name_do_not_share_a_log_of_wandb(tmp_path, monkeypatch):
    """Which of them it is of is not known where Trainer kept no id."""
    log = logged_as([row(1, **{"train/loss": 9.0})], output_dir="somewhere/run")
    monkeypatch.setattr("hf_clars.comparison.sources.folders.read_logs", lambda *_: [("id", log)])
    for parent, loss in (("a", 1.0), ("b", 2.0)):
        (tmp_path / parent / "run").mkdir(parents=True)
        state = {"log_history": [{"step": step, "epoch": 1.0, "loss": loss} for step in (1, 2)]}
        (tmp_path / parent / "run" / "trainer_state.json").write_text(json.dumps(state))
    runs, _ = read_sources([str(tmp_path / "a"), str(tmp_path / "b")])
    assert sorted(points(run, "train/loss")[1][0] for run in runs) == [1.0, 2.0, 9.0]
    assert points(only(tmp_path / "a"), "train/loss")[1] == [1.0, 1.0]


# --- rows ------------------------------------------------------------------------------------------------------------


def test_a_training_that_goes_on_from_a_checkpoint_replaces_what_it_had_lost():
    losses = [row(s, **{"train/loss": s}) for s in (1, 2, 3, 4)]
    again = [row(3, **{"layers/gamma/w": 1.0}), row(3, **{"train/loss": 30})]
    run = logged_as([*losses, row(4, **{"layers/gamma/w": 9.0}), *again])
    assert points(run, "train/loss") == ([1, 2, 3], [1, 2, 30])
    assert run.layers["gamma"].to_dict() == {"w": {3: 1.0}}
    evaluated = logged_as([*losses, *(row(s, **{"test/acc": s / 4}) for s in (1, 2))])  # checkpoints, afterwards
    assert points(evaluated, "train/loss")[0] == [1, 2, 3, 4]
    assert points(evaluated, "test/acc") == ([1, 2], [0.25, 0.5])


def test_the_clock_of_a_run_that_went_on_counts_what_was_not_lost():
    times = [(1, 10.0), (2, 20.0), (3, 30.0), (2, 4.0), (3, 9)]
    run = logged_as([row(step, **{"train/loss": 1.0, "_runtime": time}) for step, time in times])
    assert list(run.history["seconds"]) == [10, 14, 19]


@pytest.mark.parametrize("key", ["trainer/global_step", "global_step", "_step"])
def test_steps_of_other_loggers(key):
    run = logged_as([{key: s, "loss": 1.0, "epoch": s / 2} for s in (2, 4)], total_batch_size=8)
    assert run.history.to_dict("list") == {"step": [2, 4], "loss": [1, 1], "epoch": [1, 2], "images": [16, 32]}


def test_halves_of_characters_are_written_out():
    run = logged_as([row(1, **{"\ud800": 1.0, "layers/gamma/\udfff": 2.0})], **{"\udc80": "\ud800"})
    assert "\\ud800" in run.history
    assert list(run.layers["gamma"]) == ["\\udfff"]


# --- what cannot be read ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        (["empty"], r"no run in empty\. A source is wandb:entity/project\?filters"),
        (["notes.txt"], r"notes\.txt holds no run\. A source is"),
        (["other.json"], r"other\.json holds no run\. A source is"),
        (["nowhere"], r"nowhere does not exist\. A source is"),
        (["a" * 5000], "does not exist"),
        (["~nobody-of-that-name/x"], "does not exist"),
        (["trackio:p"], "does not exist"),
        ([], "no source was named"),
        (["wandb:"], "write wandb:entity/project"),
    ],
    ids=lambda value: str(value)[:20],
)
def test_sources_that_are_none(tmp_path, monkeypatch, sources, message):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("notes.txt").write_text("words")
    Path("other.json").write_text("[]")
    with pytest.raises(UserError, match=message):
        read_sources(sources)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_folder_that_may_not_be_read(trainings):
    (trainings / "closed").mkdir(mode=0)
    with pytest.raises(UserError, match="Permission denied"):
        read_sources([str(trainings / "closed")])
    runs, unreadable = read_sources([str(trainings)])
    assert (len(runs), unreadable) == (2, [f"{trainings / 'closed'}: it may not be read"])


def test_without_tensorboard_its_files_are_named_and_trainers_are_read(trainings, monkeypatch):
    monkeypatch.setitem(sys.modules, "tensorboard.backend.event_processing.event_accumulator", None)
    assert len(read_sources([str(trainings)])[0]) == 2
    with pytest.raises(UserError, match=r"no run in .*pip install tensorboard"):
        read_sources([str(trainings / "clars" / "runs")])
