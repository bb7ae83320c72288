"""What goes wrong in runs of days, made to go wrong: each time the message, the counts and the final state."""

import io
import json
import os
import resource
import shutil
import signal
from pathlib import Path

import datasets
import numpy as np
import psutil
import pytest
from PIL import Image
from safetensors.torch import load_file

from hf_clars import ClarsTrainer, UserError
from hf_clars.cli import train
from hf_clars.image_classification.plots import plot_run
from hf_clars.trainer.callbacks.layer_statistics import read_layer_statistics

from .helpers.data_files import huge, write_tar
from .helpers.hub import NAME, serving
from .helpers.models import dataset
from .helpers.processes import Training
from .helpers.recipe import RECIPES, assert_same, config, newest, noise, result, write_splits
from .helpers.scripts import run_python, without
from .helpers.training import arguments, log_of, seeded

SHORT = {"num_train_epochs": 3, "resume_from_checkpoint": "auto", "shuffle_buffer": 16}
LARGER = {"model_kwargs": {"channels": [16, 32, 64, 128], "stem_width": 8}}  # files of a megabyte
FULL = 300_000  # the size beyond which no file can be written: fails as a full disk does, and leaves the log alone
LONG = {**SHORT, "num_train_epochs": 400, "save_strategy": "steps", "save_steps": 2, "save_total_limit": 3}


def start(folder: Path, dataset: Path, world_size: int = 1, environment: dict | None = None, **changes) -> Training:
    argv = config(folder, dataset, **{**SHORT, **changes})
    return Training(argv, folder / "log", world_size, **(environment or {}))


def last(folder: Path, key: str) -> float | None:
    return next((entry[key] for entry in reversed(log_of(folder / "run")) if key in entry), None)


# --- images ------------------------------------------------------------------------------------------------------


def odd_images() -> list[bytes]:
    """One of each kind that photo collections hold; the last four cannot be used."""
    noise = np.random.default_rng(0).integers(0, 255, (20, 30, 3), dtype=np.uint8)

    def save(image: Image.Image, file_format: str, **options) -> bytes:
        data = io.BytesIO()
        image.save(data, file_format, **options)
        return data.getvalue()

    rgb = Image.fromarray(noise)
    jpeg = save(rgb, "JPEG")
    return [
        save(rgb.convert("CMYK"), "JPEG"), save(rgb.quantize(16), "PNG", transparency=bytes([0] * 16)),
        save(Image.fromarray(noise[..., 0].astype(np.uint16) << 8), "PNG"), save(rgb.resize((1, 1)), "JPEG"),
        save(rgb.convert("L"), "JPEG"), save(rgb, "GIF"), save(rgb, "WEBP"),
        jpeg[: len(jpeg) // 2], b"", b"<html>429 Too Many Requests</html>", huge(),
    ]  # fmt: skip


def write_odd(folder: Path, ordinary: int) -> Path:
    label = datasets.ClassLabel(names=["dark", "grey", "light"])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    write_splits(folder, {"train": 0, "validation": 30})
    images = [
        {"bytes": data, "path": f"{i}.jpg"} for i, data in enumerate([*odd_images(), *map(noise, range(ordinary))])
    ]
    rows = {"image": images, "label": [i % 3 for i in range(len(images))]}
    table = datasets.Dataset.from_dict(rows, features=features)
    table.to_parquet(folder / "train-00001-of-00002.parquet")
    (folder / "train-00000-of-00001.parquet").rename(folder / "train-00000-of-00002.parquet")  # an empty shard
    validation = datasets.Dataset.from_dict({k: v[:20] for k, v in rows.items()}, features=features)
    validation.to_parquet(folder / "validation-00000-of-00001.parquet")
    return folder


def test_odd_images_and_an_empty_shard(tmp_path, caplog):
    """Four of 96 images cannot be used: they are named, counted for each reason, and left out of the evaluation."""
    data = write_odd(tmp_path / "data", 85)
    assert train(config(tmp_path, data, **SHORT, max_skipped_share=0.1, eval_strategy="epoch")) == 0
    assert (last(tmp_path, "skipped_unreadable"), last(tmp_path, "skipped_too_large")) == (9, 3)  # in three epochs
    assert last(tmp_path, "eval_skipped") == 4
    assert np.isfinite(last(tmp_path, "eval_loss"))
    for line in (
        "skipped: cannot read image 7.jpg with label 1: ",
        "skipped: cannot read image 9.jpg with label 0: no image in a format that Pillow knows",
        "skipped: image 10.jpg is too large: Image size (400000000 pixels)",
    ):
        assert line in caplog.text
    assert last(tmp_path, "step") == 9


def test_too_many_skipped_images_end_the_run(tmp_path, capfd):
    assert train(config(tmp_path, write_odd(tmp_path / "data", 53), **SHORT)) == 1
    said = capfd.readouterr().err
    (error,) = [line for line in said.splitlines() if line.startswith("error: ")]
    assert "of 64 examples of an epoch were skipped (unreadable " in error
    assert error.endswith("more than max_skipped_share=0.01 allows: mend the data, or allow more")
    assert "Traceback" not in said


def test_a_wrong_label_that_nobody_saw_before(tmp_path, caplog):
    """Tar files say nothing about their labels: the first ones are looked at, and the 40th is wrong."""
    write_tar(tmp_path / "data" / "train-0.tar", range(64), label=lambda i: "7" if i == 40 else str(i % 2))
    write_tar(tmp_path / "data" / "val-0.tar", range(8))
    options = {**SHORT, "num_classes": 2, "max_skipped_share": 0.02, "num_train_epochs": 2}
    assert train(config(tmp_path, tmp_path / "data", **options)) == 0
    assert last(tmp_path, "skipped_label") == 2
    assert "skipped: label '7' of image 0040.png is not one of the 2 classes 0 to 1" in caplog.text


@pytest.mark.slow
def test_a_shard_that_disappears(tmp_path):
    data = tmp_path / "data"
    for number in range(8):
        write_splits(data, {"train": 20, "validation": 9})
        (data / "train-00000-of-00001.parquet").rename(data / f"train-{number:05d}-of-00008.parquet")
    training = start(tmp_path, data, num_train_epochs=12, max_skipped_share=0.5)
    assert training.wait_for(lambda: training.phase.value == 1)
    gone = data / "train-00003-of-00008.parquet"
    gone.unlink()
    assert training.wait() == [0], training.output()
    assert last(tmp_path, "skipped_shard") >= 20
    assert f"cannot read row group 0 of {gone}: its 20 examples are skipped (FileNotFoundError" in training.output()
    assert last(tmp_path, "step") == 60


@pytest.mark.slow
def test_a_server_that_is_busy_and_breaks_connections(tmp_path, images):
    """Every third answer is a 429, a 503 or cut short; the run sees every image, and is that of a quiet server."""
    trouble = lambda number: {0: "429", 3: "cut", 6: "503"}.get(number % 9)  # noqa: E731
    runs = []
    for name, how in (("quiet", lambda number: None), ("busy", trouble)):
        folder = tmp_path / name
        with serving(images, how) as hub:
            environment = without("HF_", HF_ENDPOINT=hub.address, HF_HOME=str(folder / "home"))
            words = config(folder, NAME, **SHORT, dataloader_num_workers=2)
            run_python(RECIPES / "imagenet_clars.py", *words, environment=environment)
        assert last(folder, "skipped_shard") is None
        runs.append(result(folder))
    assert min(hub.requests[kind] for kind in ("429", "503", "cut")) >= 1, hub.requests
    assert_same(*runs)


# --- processes ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("number", "persistent"), [(signal.SIGTERM, True), pytest.param(signal.SIGUSR1, False, marks=pytest.mark.slow)]
)
def test_asked_to_end_it_leaves_a_checkpoint_and_goes_on_exactly(tmp_path, images, number, persistent):
    options = {"num_train_epochs": 8, "dataloader_num_workers": 1, "eval_strategy": "epoch", "save_strategy": "epoch"}
    options["dataloader_persistent_workers"] = persistent
    whole = start(tmp_path / "whole", images, **options)
    cut = start(tmp_path / "cut", images, **options)
    assert cut.wait_for(lambda: newest(tmp_path / "cut") >= 2)
    os.killpg(cut.processes[0].pid, number)  # to all of the job step, data workers included
    assert cut.wait() == [75], cut.output()
    step = newest(tmp_path / "cut")
    line = f"stopped by {number.name} after step {step} with a checkpoint in {tmp_path}/cut/run: go on with "
    assert line + "resume_from_checkpoint=auto" in cut.output()
    assert "Traceback" not in cut.output()
    again = start(tmp_path / "cut", images, **options)
    assert again.wait() == [0], again.output()
    assert whole.wait() == [0], whole.output()
    assert_same(result(tmp_path / "cut"), result(tmp_path / "whole"))


@pytest.mark.slow
def test_one_of_two_processes_is_asked_to_end(tmp_path, images):
    training = start(tmp_path, images, 2, **LONG)
    assert training.wait_for(lambda: newest(tmp_path) >= 2)
    training.kill(signal.SIGUSR1, ranks=[1])
    assert training.wait() == [75, 75], training.output()
    assert training.output().count("stopped by SIGUSR1") == 1
    assert (tmp_path / "run" / f"checkpoint-{newest(tmp_path)}" / "rng_state_1.pth").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("victim", [0, 1])
def test_one_of_two_processes_is_killed(tmp_path, images, victim):
    training = start(tmp_path, images, 2, **LONG)
    assert training.wait_for(lambda: newest(tmp_path) >= 2)
    training.kill(ranks=[victim])
    statuses = training.wait(60)  # the other one does not wait for it
    assert statuses[victim] == -signal.SIGKILL
    assert statuses[1 - victim] == 1
    (error,) = training.errors()
    assert error.startswith("error: lost the connection to another process: it ended or was killed, and may have said")
    assert error.endswith("Go on with resume_from_checkpoint=auto")


@pytest.mark.slow
def test_a_data_worker_is_killed(tmp_path, images):
    training = start(tmp_path, images, **LONG, dataloader_num_workers=2, dataloader_persistent_workers=True)
    assert training.wait_for(lambda: newest(tmp_path) >= 2)
    workers = psutil.Process(training.processes[0].pid).children(recursive=True)
    workers[-1].kill()
    assert training.wait(60) == [1], training.output()
    (error,) = training.errors()
    assert error.startswith(("error: a data worker ended (Killed): ", "error: a data worker ended (unexpectedly): "))
    assert "lower dataloader_num_workers or shuffle_buffer (after step " in error
    assert "Traceback" not in training.output()


@pytest.mark.slow
def test_the_disk_is_full_while_a_checkpoint_is_written(tmp_path, images):
    """The training goes on, says so, and keeps the checkpoints it has; when there is room again, it writes."""
    training = start(tmp_path, images, **{**LONG, **LARGER, "num_train_epochs": 150})
    assert training.wait_for(lambda: newest(tmp_path) >= 2)
    pid = training.processes[0].pid
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
    assert training.wait_for(lambda: training.output().count("could not be written") >= 3)
    kept = newest(tmp_path)
    assert not list((tmp_path / "run").glob("*/unfinished*"))
    resource.prlimit(pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert training.wait_for(lambda: newest(tmp_path) > kept)
    assert training.wait(600) == [0], training.output()
    assert "; the training goes on, and earlier checkpoints stay" in training.output()
    assert last(tmp_path, "step") == 300


@pytest.mark.slow
def test_the_disk_is_full_at_the_end(tmp_path, images):
    training = start(tmp_path, images, **LARGER, num_train_epochs=60)
    assert training.wait_for(lambda: training.phase.value == 1)
    resource.prlimit(training.processes[0].pid, resource.RLIMIT_FSIZE, (FULL, resource.RLIM_INFINITY))
    assert training.wait() == [1], training.output()
    (error,) = training.errors()
    assert error.startswith(f"error: the trained model cannot be written to {tmp_path}/run: ")
    assert not (tmp_path / "run" / "unfinished-checkpoint").exists()  # it would take the room that is left


# --- checkpoints -------------------------------------------------------------------------------------------------


def damage_truncated(checkpoint: Path) -> str:
    file = checkpoint / "optimizer.pt"
    size = file.stat().st_size
    os.truncate(file, size // 2)
    return f"optimizer.pt has {size // 2} bytes instead of {size}"


def damage_changed(checkpoint: Path) -> str:
    file = checkpoint / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    return "model.safetensors has changed since it was written"


def damage_missing(checkpoint: Path) -> str:
    (checkpoint / "scheduler.pt").unlink()
    return "scheduler.pt is missing"


def damage_state(checkpoint: Path) -> str:
    (checkpoint / "trainer_state.json").write_text('{"epoch": 1')
    return "its trainer_state.json cannot be read"


def damage_empty(checkpoint: Path) -> str:
    for file in checkpoint.iterdir():
        file.unlink()
    return "it has no trainer_state.json"


SAVING = {**SHORT, "save_strategy": "steps", "save_steps": 1, "save_total_limit": 2}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, images) -> Path:
    """A training of 6 steps: its last two checkpoints are kept, and whole."""
    folder = tmp_path_factory.mktemp("whole")
    assert train(config(folder, images, **SAVING)) == 0
    assert {p.name for p in (folder / "run").iterdir() if p.is_dir()} == {"checkpoint-5", "checkpoint-6"}
    for checkpoint in (folder / "run").glob("checkpoint-*"):
        listed = json.loads((checkpoint / "manifest.json").read_text())["files"]
        assert listed.keys() == {f.name for f in checkpoint.iterdir()} - {"manifest.json"}
        assert load_file(checkpoint / "model.safetensors")
    return folder


@pytest.mark.parametrize(
    "damage", [damage_truncated, damage_changed, damage_missing, damage_state, damage_empty], ids=lambda d: d.__name__
)
def test_a_broken_checkpoint_is_skipped_with_a_message(tmp_path, images, whole, caplog, capfd, damage):
    shutil.copytree(whole / "run", tmp_path / "run")
    checkpoint = tmp_path / "run" / "checkpoint-6"
    reason = damage(checkpoint)
    argv = config(tmp_path, images, **SAVING)
    assert train([*argv, "--resume_from_checkpoint", str(checkpoint)]) == 2
    assert f"checkpoint-6 is not a whole checkpoint ({reason})" in capfd.readouterr().err
    assert train(argv) == 0
    assert f"checkpoint-6 is broken ({reason}): trying the one before it; it is now broken-checkpoint-6" in caplog.text
    assert_same(result(tmp_path), result(whole))


# --- W&B ---------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "damage",
    [b"\xff\x00\n", b"1\n", b'{"step": "x", "layers": {}}\n', b'{"step": 1, "layers": [1]}\n', b"[" * 9999 + b"\n"],
)
def test_damaged_statistics_do_not_end_what_they_are_of(tmp_path, damage, caplog):
    """Neither a training that goes on, nor its pictures."""
    args = {"save_strategy": "steps", "save_steps": 2, "layer_statistics_steps": 1, "total_batch_size": 16}
    args |= {"max_steps": 4}
    ClarsTrainer(seeded(), arguments(tmp_path, **args), train_dataset=dataset(32)).train()
    file = tmp_path / "layer_statistics.jsonl"
    whole = file.read_bytes().splitlines(keepends=True)
    assert len(whole) == 4
    file.write_bytes(whole[0] + damage + b"".join(whole[1:]))
    with caplog.at_level("WARNING"):
        assert [r["step"] for r in read_layer_statistics(tmp_path)] == [1, 2, 3, 4]
    assert f"{file}: 1 of 5 lines cannot be read, and are left out" in caplog.text
    assert [path.name for path in plot_run(tmp_path)] == ["curves.png", "layers.png"]
    again = ClarsTrainer(seeded(), arguments(tmp_path, **args), train_dataset=dataset(32))
    again.train(resume_from_checkpoint=str(tmp_path / "checkpoint-2"))
    assert file.read_bytes().splitlines(keepends=True) == whole


@pytest.mark.parametrize(
    ("content", "told"),
    [
        ("", "it is no log of a Trainer"),
        ("[]", "it is no log of a Trainer"),
        ('{"log_history": {}}', "log_history is no log of a Trainer"),
        ('{"log_history": [{"loss": 1}]}', "log_history is no log of a Trainer (Value error, an entry without step)"),
        ('{"log_history": [{"step": 1, "loss": "x"}]}', "loss is 'x', not a number"),
    ],
)
def test_a_damaged_log_is_named(tmp_path, content, told):
    (tmp_path / "trainer_state.json").write_text(content)
    with pytest.raises(UserError) as refused:
        plot_run(tmp_path)
    assert str(refused.value).startswith(f"{tmp_path / 'trainer_state.json'} is damaged: ")
    assert told in str(refused.value)


def test_wandb_cannot_be_reached(tmp_path, images):
    environment = {"WANDB_MODE": "online", "WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9",
                   "WANDB_DIR": str(tmp_path)}  # fmt: skip
    training = start(tmp_path, images, environment=environment, report_to="wandb")
    assert training.wait(200) == [0], training.output()
    assert "W&B cannot be reached (ConnectionError): the run is kept offline, for `wandb sync` afterwards" in (
        training.output()
    )
    assert list(tmp_path.glob("wandb/offline-run-*/run-*.wandb"))
    assert "0" * 40 not in training.output()


@pytest.mark.slow
def test_a_resumed_run_is_the_same_run_of_wandb(tmp_path, images):
    environment = {"WANDB_MODE": "offline", "WANDB_DIR": str(tmp_path)}
    options = {**LONG, "report_to": "wandb"}
    for _ in range(2):
        training = start(tmp_path, images, environment=environment, **options)
        step = newest(tmp_path)
        assert training.wait_for(lambda step=step: newest(tmp_path) > step)
        training.kill(signal.SIGTERM)
        assert training.wait() == [75], training.output()
    ids = [folder.name.rpartition("-")[2] for folder in tmp_path.glob("wandb/offline-run-*")]
    assert len(ids) == 2
    assert len(set(ids)) == 1
