"""SIGKILL at random moments, again and again: the run that goes on is the run that was never cut off."""

import random
import signal
from collections import Counter

import pytest

from .helpers.processes import PHASES, Training
from .helpers.recipe import assert_same, config, newest, result, write_splits


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    return write_splits(tmp_path_factory.mktemp("images"), {"train": 100, "validation": 30})


OPTIONS = {
    "augmentation": "random_resized_crop", "dataloader_num_workers": 2, "dataloader_persistent_workers": True,
    "num_train_epochs": 24, "eval_strategy": "steps", "eval_steps": 2, "save_strategy": "steps", "save_steps": 2,
    "save_total_limit": 2, "logging_steps": 3, "shuffle_buffer": 16, "total_batch_size": 32,
    "per_device_train_batch_size": 8, "resume_from_checkpoint": "auto", "layer_statistics_steps": 5,
    "model_kwargs": {"channels": [4, 4, 4, 4], "stem_width": 4, "drop_rate": 0.2},
}  # fmt: skip


def run(folder, images, world_size: int = 1, strike: tuple[float, float] = (-1, 0), **changes) -> Training:
    return Training(config(folder, images, **{**OPTIONS, **changes}), folder / "log", world_size, strike)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_killed_again_and_again(tmp_path, images, world_size):
    """At least 20 kills in each, in every phase; weights and the log are bit for bit those of the uninterrupted run."""
    whole = run(tmp_path / "whole", images, world_size)
    assert whole.wait() == [0] * world_size, whole.output()
    dice = random.Random(world_size)
    hit: Counter[str] = Counter()
    reached = set()
    for attempt in range(200):
        if sum(hit.values()) >= 24 and len(hit) == len(PHASES):
            break
        # Two steps are eight micro-batches, an evaluation and a checkpoint.
        events = (0, dice.randrange(1, 21), dice.choice((9, 19)), dice.choice((10, 20)))[attempt % 4]
        strike = (events, dice.random() * (0.6, 0.15, 0.03, 0.03)[attempt % 4])
        training = run(tmp_path / "cut", images, world_size, strike)
        first = training.processes[0]
        first.join(120)
        if first.exitcode == -signal.SIGKILL:
            hit[PHASES[training.phase.value]] += 1
            reached.add(newest(tmp_path / "cut"))
        training.kill()
        training.wait()
    training = run(tmp_path / "cut", images, world_size)
    assert training.wait() == [0] * world_size, training.output()
    assert sum(hit.values()) >= 20, hit
    assert set(hit) == set(PHASES), hit
    assert len(reached) >= 6, reached  # the training went on from many places
    assert_same(result(tmp_path / "cut"), result(tmp_path / "whole"))


def test_killed_twice(tmp_path, images):
    """The same in short: once while a checkpoint is written, once amid an epoch."""
    whole = run(tmp_path / "whole", images, num_train_epochs=4)
    for events in (20, 22):  # its second checkpoint; the third step from there
        cut = run(tmp_path / "cut", images, strike=(events, 0), num_train_epochs=4)
        assert cut.wait() == [-signal.SIGKILL], cut.output()
    last = run(tmp_path / "cut", images, num_train_epochs=4)
    assert [last.wait(), whole.wait()] == [[0], [0]], last.output()
    assert_same(result(tmp_path / "cut"), result(tmp_path / "whole"))
