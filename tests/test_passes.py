"""Streams without a length: a resumed training sees the examples that an uninterrupted one sees, in any pass."""

import json
import random
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch.utils.data import IterableDataset

from hf_clars import ClarsTrainer, UserError

from .helpers.models import dataset
from .helpers.processes import by_two
from .helpers.training import StopAfter, arguments, assert_same_weights, logged, seal, seeded

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with few cores

EXAMPLES = dataset(40)


def numbered(shards: list[int]):
    for shard in shards:
        for number in range(10 * shard, 10 * shard + 10):
            yield {"number": number}


def collate(examples: list[dict]) -> dict[str, torch.Tensor]:
    """The number of each example beside it, in a pixel that tells it."""
    numbers = [int(e["number"]) for e in examples]
    pixels = torch.stack([EXAMPLES[number]["pixel_values"] for number in numbers])
    pixels[:, 0, 0, 0] = torch.tensor(numbers, dtype=torch.float32)
    return {"pixel_values": pixels, "labels": torch.tensor([EXAMPLES[number]["labels"] for number in numbers])}


class Seeing(ClarsTrainer):
    """Keeps what each micro-batch had."""

    def training_step(self, model, inputs, *args, **kwargs):
        self.seen.append([self.state.global_step, *inputs["pixel_values"][:, 0, 0, 0].int().tolist()])
        return super().training_step(model, inputs, *args, **kwargs)


def run(folder, stream, stop: int = 0, resume: bool = False, kind_of_trainer=Seeing, **options) -> Seeing:
    options = {"total_batch_size": 8, "per_device_train_batch_size": 4, "max_steps": 13, "save_steps": 1,
               "save_strategy": "steps", "remove_unused_columns": False, **options}  # fmt: skip
    trainer = kind_of_trainer(
        seeded(dropout=0.2), arguments(folder, **options), train_dataset=stream, data_collator=collate,
        callbacks=[StopAfter(stop)],
    )  # fmt: skip
    trainer.seen = []
    trainer.train(resume_from_checkpoint="auto" if resume else None)
    return trainer


def check_resumed(tmp_path_factory, make, stop: int, **options) -> list[list[int]]:
    """That a training stopped after a step and resumed is the uninterrupted one; returns what it saw."""
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    whole = run(folders[0], make(), **options)
    part = run(folders[1], make(), stop, **options)
    rest = run(folders[1], make(), resume=True, **options)
    assert [row for row in part.seen if row[0] < stop] + rest.seen == whole.seen
    assert part.state.global_step == stop
    assert_same_weights(whole, rest)
    assert logged(whole, "loss", "epoch") == logged(rest, "loss", "epoch")
    return whole.seen


# --- streams -----------------------------------------------------------------------------------------------------


def from_generator(shards: int = 4, **options):
    stream = datasets.IterableDataset.from_generator(numbered, gen_kwargs={"shards": list(range(shards))})
    return stream.shuffle(seed=3, **options) if options else stream


class Plain(IterableDataset):
    """The same in every pass."""

    def __init__(self, size: int = 40) -> None:
        self.size = size

    def __iter__(self):
        return iter([{"number": number} for number in range(self.size)])


class OfEpoch(Plain):
    """Shuffled by the number of the epoch that it is told."""

    epoch = 0

    def set_epoch(self, epoch: int) -> None:
        self.epoch = epoch

    def __iter__(self):
        return iter(random.Random(self.epoch).sample(list(super().__iter__()), self.size))


class GloballyShuffled(Plain):
    """Shuffled with whatever random numbers are at hand."""

    def __iter__(self):
        order = (
            torch.randperm(self.size // 2).tolist() + np.random.permutation(range(self.size // 2, self.size)).tolist()
        )
        random.shuffle(order)
        for number in order:
            torch.rand(())  # as an augmentation would
            yield {"number": number}


class Stateful(Plain):
    """Shuffled by a generator that goes on from pass to pass."""

    def __init__(self, size: int = 40) -> None:
        super().__init__(size)
        self.generator = torch.Generator().manual_seed(5)

    def __iter__(self):
        return iter([{"number": number} for number in torch.randperm(self.size, generator=self.generator).tolist()])

    def state_dict(self):
        return {"generator": self.generator.get_state()}

    def load_state_dict(self, state) -> None:
        self.generator.set_state(state["generator"])


class Unstated(Stateful):
    """The same, and says nothing of it."""

    state_dict = load_state_dict = property()  # no such attribute


KINDS = {
    "from_generator": from_generator,
    "shuffled": lambda: from_generator(buffer_size=7),
    "shuffled as a whole": lambda: from_generator(buffer_size=100),
    "a shard": lambda: from_generator(4, buffer_size=5).shard(2, 1),
    "three shards": lambda: from_generator(3, buffer_size=5),
    "of a table": lambda: datasets.Dataset.from_list(list(numbered([0, 1, 2]))).to_iterable_dataset(3).shuffle(1),
    "mapped and cut": lambda: from_generator(buffer_size=5).map(lambda e: e).skip(3).take(30),
    "plain": Plain,
    "of epoch": OfEpoch,
    "globally shuffled": GloballyShuffled,
    "stateful": Stateful,
}  # fmt: skip


@pytest.mark.parametrize(
    "kind", [k if k in ("shuffled", "stateful") else pytest.param(k, marks=pytest.mark.slow) for k in KINDS]
)
def test_resumed_in_its_second_pass_a_stream_gives_the_examples_that_were_to_come(tmp_path_factory, kind):
    seen = check_resumed(tmp_path_factory, KINDS[kind], stop=7)
    assert len(seen) >= 26
    assert len({number for row in seen for number in row[1:]}) > 10


@pytest.mark.slow
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    kind=st.sampled_from(sorted(KINDS)),
    stop=st.integers(1, 12),
    size=st.sampled_from([(8, 4), (8, 8), (12, 4), (6, 2)]),
    save=st.sampled_from(
        [{"save_strategy": "steps"}, {"save_strategy": "steps", "save_steps": 3}, {"save_strategy": "epoch"}]
    ),
)
def test_resumed_at_any_step_of_any_pass(tmp_path_factory, kind, stop, size, save):
    folders = [tmp_path_factory.mktemp("run") for _ in range(2)]
    options = {"total_batch_size": size[0], "per_device_train_batch_size": size[1], **save}
    whole = run(folders[0], KINDS[kind](), **options)
    run(folders[1], KINDS[kind](), stop, **options)
    rest = run(folders[1], KINDS[kind](), resume=True, **options)
    assert rest.seen == [row for row in whole.seen if row[0] >= rest.seen[0][0]]
    assert_same_weights(whole, rest)


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("kind", ["shuffled", "three shards", "of epoch", "globally shuffled"])
def test_resumed_with_workers(tmp_path_factory, kind, workers):
    check_resumed(tmp_path_factory, KINDS[kind], stop=7, dataloader_num_workers=workers)


def as_rank(rank: int, folder: Path, kind: str, **how) -> None:
    trainer = run(folder, KINDS[kind](), **{"per_device_train_batch_size": 2, **how})
    (folder / f"seen_{rank}.json").write_text(json.dumps(trainer.seen))


def seen_by_two(folder: Path, kind: str, **how) -> list[list[list[int]]]:
    by_two(as_rank, folder, kind, **how)
    return [json.loads((folder / f"seen_{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
@pytest.mark.parametrize("dispatched", [False, True])
@pytest.mark.parametrize("kind", ["shuffled", "of epoch", "globally shuffled"])
def test_two_processes(tmp_path, kind, dispatched):
    options = {"accelerator_config": {"dispatch_batches": dispatched}}
    whole = seen_by_two(tmp_path / "whole", kind, **options)
    part = seen_by_two(tmp_path / "part", kind, stop=7, **options)
    rest = seen_by_two(tmp_path / "part", kind, resume=True, **options)
    assert whole[0] != whole[1]
    for rank in (0, 1):
        assert [row for row in part[rank] if row[0] < 7] + rest[rank] == whole[rank]


@pytest.mark.slow
def test_another_number_of_processes_is_refused_by_all_of_them(tmp_path):
    run(tmp_path, from_generator(), 7)
    by_two(as_rank, tmp_path, "from_generator", resume=True, status=1)
    assert not (tmp_path / "seen_1.json").exists()


@pytest.mark.slow
def test_a_checkpoint_at_the_last_step_of_a_pass(tmp_path_factory):
    for stop in (5, 10):
        check_resumed(tmp_path_factory, KINDS["shuffled as a whole"], stop=stop)


@pytest.mark.parametrize("kind", ["of epoch", "stateful"])
def test_a_checkpoint_when_a_pass_is_over(tmp_path, kind):
    class Killed(Seeing):
        def training_step(self, *args, **kwargs):
            if self.state.global_step == 7:
                raise KeyboardInterrupt
            return super().training_step(*args, **kwargs)

    whole = run(tmp_path / "whole", KINDS[kind]())
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "part", KINDS[kind](), kind_of_trainer=Killed, save_strategy="epoch")
    rest = run(tmp_path / "part", KINDS[kind](), resume=True, save_strategy="epoch")
    assert rest.seen == [row for row in whole.seen if row[0] >= 5]
    assert_same_weights(whole, rest)


# --- what cannot go on exactly -----------------------------------------------------------------------------------

INEXACT = {
    "no seed": lambda: datasets.IterableDataset.from_generator(numbered, gen_kwargs={"shards": [0, 1, 2, 3]}).shuffle(),
    "no state": Unstated,
}  # fmt: skip


@pytest.mark.parametrize("kind", INEXACT)
def test_a_stream_that_gives_other_examples_is_refused(tmp_path, kind):
    run(tmp_path, INEXACT[kind](), 7)
    with pytest.raises(UserError, match="pass 2 over the training data gives other examples than before") as error:
        run(tmp_path, INEXACT[kind](), resume=True)
    assert "\n" not in str(error.value)
    rest = run(tmp_path, INEXACT[kind](), resume=True, ignore_data_skip=True)
    assert (rest.state.global_step, len(rest.seen)) == (13, 12)


def test_other_micro_batches_are_refused(tmp_path):
    run(tmp_path, from_generator(), 7)
    message = (
        "of 8 samples a step, 4 a device, 1 processes, 0 workers, and now there are 8 samples a step, 8 a device, "
    )
    with pytest.raises(UserError, match=message):
        run(tmp_path, from_generator(), resume=True, per_device_train_batch_size=8)


def test_a_checkpoint_that_does_not_say_where_it_was(tmp_path, caplog):
    run(tmp_path, from_generator(), 7)
    (position,) = (tmp_path / "checkpoint-7").glob("*position*")
    position.unlink()
    seal(tmp_path / "checkpoint-7")
    run(tmp_path, from_generator(), resume=True)
    assert "does not say where in its data the training was" in caplog.text


def test_a_state_that_cannot_be_restored_is_refused_at_once(tmp_path):
    class Odd(Stateful):
        def state_dict(self):
            return {"generator": random.Random(1)}

    with pytest.raises(UserError, match=r"state_dict\(\) of Odd must hold numbers, text, tensors"):
        run(tmp_path, Odd())


# --- steps -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [39, 25, 8])
@pytest.mark.parametrize("micro", [8, 4, 2, 1])
def test_every_step_has_its_samples_however_they_are_split(tmp_path, micro, size):
    """What is left at the end of a pass, and stands before the next step, is nobody's."""
    seen = run(tmp_path, Plain(size), per_device_train_batch_size=micro, max_steps=7).seen
    steps = [[number for row in seen if row[0] == step for number in row[1:]][-8:] for step in range(7)]
    whole = [list(range(first, first + 8)) for first in range(0, size - 7, 8)]
    assert steps == (7 * whole)[:7]


@pytest.mark.slow
def test_every_step_has_its_samples_with_workers(tmp_path):
    """Each of whom has something left, in the midst of the pass."""
    seen = run(tmp_path, from_generator(), dataloader_num_workers=2, per_device_train_batch_size=8, max_steps=5).seen
    assert [len(row) - 1 for row in seen] == [8] * 5


@pytest.mark.parametrize("micro", [8, 2])
@pytest.mark.parametrize("size", [0, 1, 7])
def test_a_stream_without_a_whole_step_is_refused(tmp_path, size, micro):
    with pytest.raises(UserError, match="has fewer examples than one batch of total_batch_size=8"):
        run(tmp_path, Plain(size), per_device_train_batch_size=micro)


def test_an_empty_list_is_refused(tmp_path):
    with pytest.raises(UserError, match="the training data has no examples"):
        run(tmp_path, [])
