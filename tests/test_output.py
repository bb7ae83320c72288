"""Standard output and error that fail: a training goes on, and everything it makes is there."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import wandb  # noqa: F401 (for good, it wraps the streams that it finds when it is imported: not those of a test)
from transformers import TrainerCallback

from hf_clars import ClarsTrainer
from hf_clars.runtime.output import forgiving

from .helpers.models import dataset
from .helpers.recipe import ROOT, config
from .helpers.training import arguments, seeded, state_of


class Chatty(TrainerCallback):
    def on_step_end(self, args, state, control, **kwargs):
        print("γ" * 9000, flush=True)
        print("γ" * 9000, file=sys.stderr, flush=True)
        sys.stdout.write("step\n")


def trained(folder: Path) -> None:
    args = arguments(
        folder, total_batch_size=8, max_steps=2, disable_tqdm=False, save_strategy="steps", save_steps=1,
        eval_strategy="steps", eval_steps=1,
    )  # fmt: skip
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(16), eval_dataset=dataset(8), callbacks=[Chatty()])
    trainer.train()
    assert (folder / "checkpoint-2" / "manifest.json").is_file()
    assert state_of(folder) == "finished"


def full():
    return open("/dev/full", "w")


def closed():
    with open(os.devnull, "w") as stream:
        return stream


def unread():
    reading, writing = os.pipe()
    os.close(reading)
    return os.fdopen(writing, "w")


def ascii_only():
    return open(os.devnull, "w", encoding="ascii", errors="strict")


@pytest.mark.parametrize("kind", [full, closed, unread, ascii_only, lambda: None])
def test_a_training_goes_on(tmp_path, monkeypatch, kind):
    streams = kind(), kind()
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", streams[0])
        patch.setattr(sys, "stderr", streams[1])
        trained(tmp_path)
        assert sys.stdout is streams[0]
        assert sys.stderr is streams[1]
    for stream in streams:
        if stream is not None:
            assert not {"write", "flush"} & set(vars(stream))  # nothing of ours is left on it
            try:
                stream.close()
            except OSError:
                assert kind in (full, unread)


def test_what_can_be_written_is(tmp_path):
    with open(tmp_path / "out", "w", encoding="ascii") as stream:
        before, sys.stdout = sys.stdout, stream
        try:
            with forgiving():
                print("γ_scale × 2")
                with pytest.raises(TypeError):
                    sys.stdout.write(3)
                write = sys.stdout.write
                sys.stdout.write = lambda text: write(text.upper())  # as W&B does, and leaves it so
                print("later")
            print("last")
        finally:
            sys.stdout = before
    assert (tmp_path / "out").read_text() == "\\u03b3_scale \\xd7 2\nLATER\nLAST\n"


PLACES = {
    "full": ("> /dev/full 2> /dev/full", {}),
    "closed": (">&- 2>&- <&-", {}),
    "unread": ("2>&1 | true", {}),
    "ascii": ("> out 2>&1", {"PYTHONIOENCODING": "ascii:strict"}),
    "C": ("> out 2>&1", {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}),
}


@pytest.mark.slow
@pytest.mark.parametrize("place", PLACES)
def test_the_program_goes_on_and_ends_well(tmp_path, images, place):
    where, environment = PLACES[place]
    argv = config(tmp_path, images, num_train_epochs=2, disable_tqdm=False, save_strategy="epoch")
    flags = " ".join(f"'{word}'" for word in argv)
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {sys.executable} -m hf_clars train {flags} {where}"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **environment},
        check=False,
    )
    output = (tmp_path / "out").read_text() if (tmp_path / "out").exists() else ""
    assert done.returncode == 0, output
    run = tmp_path / "run"
    assert {"model.safetensors", "all_results.json", "trainer_state.json"} <= {p.name for p in run.iterdir()}
    assert state_of(run) == "finished"
    for checkpoint in run.glob("checkpoint-*"):  # what was printed went into no file
        assert not any(b"step" in f.read_bytes()[:4] for f in checkpoint.iterdir())


@pytest.mark.parametrize("words", ["recipes", "recipes resnet50_clars", "train --help", "rates --help"])
@pytest.mark.parametrize("others", ["", "2> /dev/full"])
def test_what_is_asked_for_and_cannot_be_written_is_an_error_of_one_line(tmp_path, words, others):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m hf_clars {words} > /dev/full {others}"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1
    assert done.stderr == ("" if others else "error: cannot write any more: No space left on device\n")


def test_errors_keep_their_status_where_they_cannot_be_written(tmp_path):
    done = subprocess.run(
        ["bash", "-c", f"{sys.executable} -m hf_clars trian 2> /dev/full"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False,
    )  # fmt: skip
    assert done.returncode == 2
