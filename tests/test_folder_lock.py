"""Two trainings in one output folder: the second is refused, whoever the first is and however it ends."""

import errno
import fcntl
import os
import signal
from pathlib import Path

import pytest
from transformers import TrainerCallback

from hf_clars import ClarsTrainer, UserError
from hf_clars.trainer.checkpoints.folder_lock import FILE_NAME, alone_in

from .helpers.models import dataset
from .helpers.processes import FORKS, Training
from .helpers.recipe import config
from .helpers.training import arguments, seeded


def hold(folder: str, held, forked: bool = False) -> None:
    os.setpgid(0, 0)
    with alone_in(Path(folder)):
        if forked and os.fork() == 0:
            signal.pause()  # as a data worker that has not noticed yet
        held.set()
        signal.pause()


@pytest.fixture
def holder(tmp_path):
    """Somebody else who is at work in `tmp_path`, with a data worker."""
    held = FORKS.Event()
    process = FORKS.Process(target=hold, args=(str(tmp_path), held, True))
    process.start()
    assert held.wait(60)
    yield process
    os.killpg(process.pid, signal.SIGKILL)
    process.join()


def train(folder: Path, *callbacks: TrainerCallback) -> ClarsTrainer:
    args = arguments(folder, total_batch_size=8, max_steps=1)
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(16), callbacks=list(callbacks))
    trainer.train()
    return trainer


def test_refused_while_another_process_trains_there(tmp_path, holder):
    who = rf"process {holder.pid} on '.+', since \d{{4}}-\d\d-\d\d \d\d:\d\d:\d\d"
    with pytest.raises(UserError, match=rf"^output_dir: another training is at work in {tmp_path} \({who}.*\): wait"):
        train(tmp_path)
    assert not (tmp_path / "run.json").exists()  # nothing of the other's is touched


def test_it_ends_with_its_holder_though_workers_live_on(tmp_path, holder):
    os.kill(holder.pid, signal.SIGKILL)
    holder.join()
    assert train(tmp_path).state.global_step == 1


def test_refused_in_the_same_process_and_free_afterwards(tmp_path):
    class Second(TrainerCallback):
        def on_step_end(self, args, state, control, **kwargs):
            with pytest.raises(UserError, match=f"process {os.getpid()} on"):
                train(tmp_path)

    train(tmp_path, Second())
    train(tmp_path)
    with pytest.raises(ZeroDivisionError), alone_in(tmp_path):
        raise ZeroDivisionError
    train(tmp_path)


def test_a_program_that_has_the_lock_trains(tmp_path):
    args = arguments(tmp_path, total_batch_size=8, max_steps=1)
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(16))
    trainer.alone = True
    with alone_in(tmp_path):
        trainer.train()


def test_a_forked_process_neither_has_nor_ends_it(tmp_path):
    with alone_in(tmp_path):
        if (child := os.fork()) == 0:
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        with pytest.raises(UserError), alone_in(tmp_path):
            pass


@pytest.mark.parametrize("error", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_a_file_system_without_locks(tmp_path, monkeypatch, caplog, error):
    def flock(file, operation):
        raise OSError(error, os.strerror(error))

    monkeypatch.setattr(fcntl, "flock", flock)
    train(tmp_path)
    assert f"{tmp_path} cannot be locked ({os.strerror(error)}): a second training in it would not be" in caplog.text


def test_a_full_disk_and_a_strange_lock_file(tmp_path, monkeypatch, caplog):
    def pwrite(*args):
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "pwrite", pwrite)
        with alone_in(tmp_path), pytest.raises(UserError, match="it does not say which one it is"), alone_in(tmp_path):
            pass
    assert "does not say who holds it: No space left on device" in caplog.text
    (tmp_path / FILE_NAME).write_bytes(b"\xff[[[")
    with alone_in(tmp_path):
        pass
    (tmp_path / FILE_NAME).unlink()
    (tmp_path / FILE_NAME).symlink_to(tmp_path / "elsewhere")
    with alone_in(tmp_path):
        assert "cannot be locked" in caplog.text
    assert not (tmp_path / "elsewhere").exists()


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_the_program_says_who_is_there(tmp_path, images, world_size):
    """All ranks of the first share the lock; of the second, one says so, before it reads any data."""
    argv = config(tmp_path, images, num_train_epochs=200, total_batch_size=32, per_device_train_batch_size=8)
    first = Training(argv, tmp_path / "first.log", world_size)
    assert first.wait_for(lambda: first.phase.value == 1)
    second = Training(argv, tmp_path / "second.log", world_size)
    assert second.wait() == [2] * world_size, second.output()
    assert all(f"another training is at work in {tmp_path / 'run'} (process " in line for line in second.errors())
    first.kill()
    first.wait()
    third = Training([*argv, "--max_steps", "2"], tmp_path / "third.log", world_size)
    assert third.wait() == [0] * world_size, third.output()
