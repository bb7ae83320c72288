"""Folders of runs and checkpoints of strangers: nothing opened outside of them, nothing run, whatever they contain."""

import json
import math
import os
import pickle
import shutil
import tracemalloc
from pathlib import Path

import pytest
import torch

from hf_clars import ClarsTrainer, UserError
from hf_clars.comparison.analysis import analyse
from hf_clars.comparison.pictures import runs_with_layers
from hf_clars.comparison.report import report
from hf_clars.comparison.runs import Question
from hf_clars.comparison.sources import read_sources
from hf_clars.image_classification.plots import plot_run
from hf_clars.safety.links import first_foreign
from hf_clars.trainer.checkpoints.folders import find, newest, what_is_wrong

from .helpers.audit import watched
from .helpers.hostile import make_file, one_line, secret_of
from .helpers.models import dataset
from .helpers.training import arguments, seal, seeded


@pytest.fixture
def secret(tmp_path) -> Path:
    return secret_of(tmp_path / "outside")


@pytest.fixture
def ours(tmp_path) -> Path:
    folder = tmp_path / "ours"
    folder.mkdir()
    return folder


def write_run(folder: Path, accuracy: float = 0.5) -> None:
    folder.mkdir(parents=True)
    log = [{"step": 1, "epoch": 1.0, "loss": 1.0}, {"step": 1, "epoch": 1.0, "eval_accuracy": accuracy}]
    (folder / "trainer_state.json").write_text(json.dumps({"log_history": log, "max_steps": 1}))
    (folder / "layer_statistics.jsonl").write_text(json.dumps({"step": 1, "epoch": 1.0, "layers": {}}) + "\n")


def read_harmlessly(folder: Path, secret: Path) -> tuple[list[str], list[str]]:
    """Names of the runs, and lines about what cannot be read."""
    with watched() as seen:
        runs, unreadable = read_sources([str(folder)])
    assert (seen.opened_in(secret.parent), seen.run, seen.asked) == ([], [], [])
    return [run.name for run in runs], unreadable


# --- folders of runs -------------------------------------------------------------------------------------------------

FILES_OF_RUNS = ("trainer_state.json", "layer_statistics.jsonl", "run.json", "config.json", "x.json")


@pytest.mark.parametrize("name", FILES_OF_RUNS)
def test_a_run_is_read_from_its_own_folder(ours, secret, name) -> None:
    (secret.parent / name).write_text('{"place": {}, "log_history": [], "config": {"password": "hunter2"}}')
    write_run(ours / "good")
    write_run(ours / "evil")
    (ours / "evil" / ("trainer_state.json" if name == "x.json" else name)).unlink(missing_ok=True)
    (ours / "evil" / name).symlink_to(secret.parent / name)
    names, unreadable = read_harmlessly(ours, secret)
    assert "good" in names
    assert [line for line in unreadable if f"{name} is a link that leads out of the run's folder" in line]


def test_folders_of_runs_are_in_the_folder_that_was_named(ours, secret) -> None:
    write_run(ours / "good")
    write_run(secret.parent / "theirs")
    (ours / "evil").symlink_to(secret.parent / "theirs")
    for place in ("wandb", "good/wandb"):
        (ours / place).mkdir()
        (ours / place / "offline-run-20250101_000000-abc").symlink_to(secret.parent)
    (secret.parent / "run-abc.wandb").write_bytes(b"secret")
    names, unreadable = read_harmlessly(ours, secret)
    assert names == ["good"]
    assert len([line for line in unreadable if "leads out of" in line]) >= 2
    runs, _ = read_sources([str(ours / "evil")])  # the user's own word
    assert [run.name for run in runs] == ["theirs"]


@pytest.mark.parametrize("kind", ["pipe", "sparse"])
@pytest.mark.parametrize(
    "name", [*FILES_OF_RUNS, "wandb/offline-run-20250101_000000-abc/run-abc.wandb", "events.out.tfevents.1.a"]
)
def test_a_file_of_a_run_is_a_file_and_bounded(ours, name, kind) -> None:
    write_run(ours / "good")
    write_run(ours / "evil")
    evil = ours / "evil" / name
    evil.parent.mkdir(parents=True, exist_ok=True)
    make_file(evil, kind, b":W&B\xe1\xbe\0" if evil.suffix == ".wandb" else b"")
    tracemalloc.start()
    runs, unreadable = read_sources([str(ours)])
    _, most = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert most < 2**27
    assert "good" in {run.name for run in runs}
    assert all("\n" not in line for line in unreadable)


@pytest.mark.slow
@pytest.mark.parametrize("odd", [1e308, 10**400, math.inf, math.nan, -1e308, 1e-320, [], "x", {"a": {"b": 1}}], ids=str)
def test_numbers_beyond_any_axis_are_read_or_one_line(ours, odd) -> None:
    write_run(ours / "good")
    for number, key in enumerate(("step", "loss", "eval_accuracy", "epoch", "total_batch_size", "gamma")):
        folder = ours / str(number)
        write_run(folder)
        rows = [{"step": 1, "epoch": 1.0, "loss": 1.0, "eval_accuracy": 0.5} | ({} if number > 3 else {key: odd})]
        (folder / "trainer_state.json").write_text(json.dumps({"log_history": rows, "max_steps": 1}))
        (folder / "run.json").write_text(json.dumps({"config": {"total_batch_size": odd if number == 4 else 16384}}))
        layer = {"step": 1, "epoch": 1.0, "layers": {"a": {"gamma": odd if number == 5 else 1.0}}}
        (folder / "layer_statistics.jsonl").write_text(json.dumps(layer) + "\n")
        said = ""
        try:
            plot_run(folder)
        except UserError as error:
            said = str(error)
        assert "\n" not in said
    runs, _ = read_sources([str(ours)])
    comparison = analyse(runs, Question("eval/accuracy", 0.4, "step", False), None, [])
    about = {"versions": {}, "command": "", "date": ""}
    assert "<svg" in report(comparison, about, runs_with_layers(comparison))


def test_a_picture_is_not_written_through_a_link(ours, secret) -> None:
    write_run(ours / "run")
    (ours / "run" / "layer_statistics.jsonl").unlink()
    (ours / "run" / "curves.png").symlink_to(secret)
    before = secret.read_bytes()
    plot_run(ours / "run")
    assert secret.read_bytes() == before
    (ours / "run" / "trainer_state.json").unlink()
    (ours / "run" / "trainer_state.json").symlink_to(secret)
    with watched() as seen, one_line("leads out of the run's folder"):
        plot_run(ours / "run")
    assert seen.opened_in(secret.parent) == []


# --- checkpoints -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "manifest",
    [
        {"../../outside/secret.png": [1, 1]}, {"{outside}/secret.png": [1, 1]}, {"link": [1, 1]}, {"a": 5}, {"a": [1]},
        [1], 5, "deep",
    ],
    ids=str,
)  # fmt: skip
def test_a_checkpoint_is_read_from_its_own_folder(ours, secret, manifest) -> None:
    checkpoint = ours / "checkpoint-1"
    checkpoint.mkdir()
    (checkpoint / "trainer_state.json").write_text("{}")
    (checkpoint / "scheduler.pt").write_bytes(b"")
    files = json.dumps({"files": manifest, "written": 1}).replace("{outside}", str(secret.parent))
    (checkpoint / "manifest.json").write_text("[" * 100_000 if manifest == "deep" else files)
    if manifest == {"link": [1, 1]}:
        (checkpoint / "link").symlink_to(secret)
    with watched() as seen:
        assert what_is_wrong(checkpoint) is not None
        assert newest(ours) is None
    assert seen.opened_in(secret.parent) == []


class Runs:
    """A pickle of it runs a command."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self):
        return os.system, (f"touch {self.mark}",)


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    run_dir = tmp_path_factory.mktemp("trained")
    train(run_dir)
    return run_dir / "checkpoint-1"


@pytest.fixture
def checkpoint(trained, ours) -> Path:
    """A copy, to change."""
    return Path(shutil.copytree(trained, ours / "checkpoint-1"))


def train(run_dir: Path, checkpoint: Path | None = None) -> ClarsTrainer:
    options = {"save_strategy": "steps", "save_steps": 1, "max_steps": 2, "total_batch_size": 8}
    options |= {"eval_strategy": "steps", "eval_steps": 1, "load_best_model_at_end": True}
    args = arguments(run_dir, **options)
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(16), eval_dataset=dataset(8))
    trainer.train(resume_from_checkpoint=None if checkpoint is None else str(checkpoint))
    return trainer


def refused(checkpoint: Path, secret: Path, match: str) -> None:
    seal(checkpoint)
    with watched() as seen, one_line(match):
        train(checkpoint.parent, checkpoint)
    assert seen.opened_in(secret.parent) == []
    assert not (secret.parent / "executed").exists()


@pytest.mark.parametrize("name", ["optimizer.pt", "scheduler.pt", "rng_state.pth", "pytorch_model.bin", "scaler.pt"])
@pytest.mark.parametrize("kind", ["pickle", "torch's", "empty", "junk", "another"])
def test_a_file_of_a_checkpoint_that_is_not_what_it_should_be_is_one_line(checkpoint, secret, name, kind) -> None:
    evil = Runs(secret.parent / "executed")
    contents = {"pickle": pickle.dumps(evil, 2), "torch's": evil, "empty": b"", "junk": b"\xff" * 200, "another": [1]}
    if name == "pytorch_model.bin":
        (checkpoint / "model.safetensors").unlink()
    if isinstance(contents[kind], bytes):
        (checkpoint / name).write_bytes(contents[kind])
    else:
        torch.save(contents[kind], checkpoint / name)
    refused(checkpoint, secret, "cannot be resumed from")


@pytest.mark.parametrize("index", ["model.safetensors.index.json", "pytorch_model.bin.index.json"])
def test_an_index_names_files_of_its_checkpoint_alone(checkpoint, ours, index) -> None:
    (checkpoint / "model.safetensors").rename(ours / "w.safetensors")
    shards = ("../w.safetensors", str(ours / "w.safetensors"), "missing.safetensors", "", None, "manifest.json")
    texts = {json.dumps({"metadata": {}, "weight_map": {"conv.weight": s}}): "names a file that is none of its own"
             for s in shards}  # fmt: skip
    for text, why in {**texts, "[" * 5000: "cannot be read"}.items():
        (checkpoint / index).write_text(text)
        seal(checkpoint)
        with one_line(f"its {index} {why}"):
            find(str(checkpoint), ours)


ODD = ("x", None, [], {}, -1, 1.5, 10**400)
STATE = ("global_step", "max_steps", "log_history", "best_metric", "best_model_checkpoint", "stateful_callbacks", "new")
KEPT = ("loss", "total_loss", "last_logged", "skipped_examples", "skipped_steps", "evaluated", "settings", "options")


@pytest.mark.slow
@pytest.mark.parametrize("key", [*STATE, *(f"ResumePoint.{key}" for key in KEPT), "ResumePoint._trainer"])
@pytest.mark.parametrize("odd", ODD, ids=lambda odd: str(odd)[:9])
def test_a_state_of_odd_values_is_taken_or_one_line(checkpoint, key, odd) -> None:
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    kept = state["stateful_callbacks"]["ResumePoint"]["attributes"]
    (kept if "." in key else state)[key.removeprefix("ResumePoint.")] = odd
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    seal(checkpoint)
    said = ""
    try:
        assert train(checkpoint.parent, checkpoint).state.global_step == 2
    except UserError as error:
        said = str(error)
    assert "\n" not in said


def test_the_best_model_is_that_of_its_own_run(trained, checkpoint, secret) -> None:
    theirs = shutil.copytree(trained, secret.parent / "checkpoint-7")
    state = json.loads((checkpoint / "trainer_state.json").read_text())
    state |= {"best_model_checkpoint": str(theirs), "best_metric": -1e9, "best_global_step": None}
    (checkpoint / "trainer_state.json").write_text(json.dumps(state))
    refused(checkpoint, secret, "checkpoint-7 cannot be used")


@pytest.mark.parametrize("name", ["manifest.json", "trainer_state.json", "optimizer.pt", "model.safetensors"])
def test_no_file_of_a_checkpoint_is_a_link_that_leads_out_of_it(ours, secret, name) -> None:
    checkpoint = ours / "checkpoint-1"
    checkpoint.mkdir()
    for file in ("trainer_state.json", "scheduler.pt"):
        (checkpoint / file).write_text("{}")
    (checkpoint / name).unlink(missing_ok=True)
    (checkpoint / name).symlink_to(secret)
    with watched() as seen, one_line(f"{name} is a link that leads out of the folder"):
        find(str(checkpoint), ours)
    assert seen.opened_in(secret.parent) == []


@pytest.mark.parametrize("kind", ["a file", "a folder", "a chain", "a loop", "nothing", "a pipe"])
def test_a_folder_that_is_taken_whole_has_its_own_files_alone(ours, secret, kind) -> None:
    (ours / "train").mkdir()
    (ours / "train" / "a.bin").write_bytes(b"bytes")
    (ours / "train" / "b.bin").symlink_to("a.bin")
    assert first_foreign(ours) is None
    evil = ours / "train" / "evil"
    if kind == "a pipe":
        make_file(evil, "pipe")
    else:
        target = {"a file": secret, "a folder": secret.parent, "a chain": "../hop", "a loop": ours, "nothing": "none"}
        evil.symlink_to(target[kind])
        if kind == "a chain":
            (ours / "hop").symlink_to(secret.parent)
    with watched() as seen:
        assert first_foreign(ours) is not None
        assert what_is_wrong(ours) == first_foreign(ours)
    assert seen.opened_in(secret.parent) == []


def test_a_snapshot_in_the_hubs_cache_has_its_own_files(tmp_path) -> None:
    cache = tmp_path / "datasets--me--pictures"
    (cache / "blobs").mkdir(parents=True)
    (cache / "blobs" / "0123").write_bytes(b"bytes")
    (cache / "snapshots" / "abc").mkdir(parents=True)
    (cache / "snapshots" / "abc" / "a.parquet").symlink_to("../../blobs/0123")
    assert first_foreign(cache / "snapshots" / "abc") is None
