"""The training stream: every example once, in an order that anybody can compute, from any position on."""

import itertools
import threading
from collections import Counter
from itertools import chain

import numpy as np
import pytest
from accelerate.data_loader import skip_first_batches
from datasets import Image, load_dataset
from hypothesis import given
from hypothesis import strategies as st
from torch.utils.data import DataLoader

from hf_clars import UserError
from hf_clars.data import TrainStream, open_source
from hf_clars.data.order import Order

from .helpers.streams import Numbered

pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")  # on machines with few cores


def stream(*sizes: int, batch: int = 8, **options) -> TrainStream:
    options = {"seed": 0, "shuffle_buffer": 16, **options}
    return TrainStream(Numbered(*sizes), total_batch_size=batch, **options)


def labels(examples: list[dict]) -> list[int]:
    return [example["label"] for example in examples]


def loader(train: TrainStream, micro: int, rank: int, world: int, workers: int, **options) -> DataLoader:
    batches = train.batches(micro, rank=rank, world_size=world, workers=workers)
    return DataLoader(train, batch_sampler=batches, collate_fn=labels, num_workers=workers, **options)


def epoch(train: TrainStream, number: int = 0, micro: int = 4, rank: int = 0, world: int = 1, workers: int = 0):
    """The micro-batches of one rank, as numbers of examples."""
    load = loader(train, micro, rank, world, workers)
    load.batch_sampler.set_epoch(number)
    return list(load)


def flat(batches) -> list[int]:
    return list(chain.from_iterable(batches))


# --- the order ---------------------------------------------------------------------------------------------------


@st.composite
def orders(draw) -> tuple[Order, int]:
    sizes = draw(st.lists(st.integers(0, 12), min_size=1, max_size=12).filter(lambda s: sum(s) > 0))
    world, accumulation, micro = (draw(st.integers(1, 3)) for _ in range(3))
    total = world * accumulation * micro
    sizes[0] += total
    last_batch = draw(st.sampled_from(["drop", "carry"]))
    order = Order(np.array(sizes), total, draw(st.integers(0, 9)), last_batch)
    return order.laid_out(
        batch_size=micro, world_size=world, workers=draw(st.integers(0, 10)), shuffle_buffer=draw(st.integers(1, 60))
    ), draw(st.integers(0, 5))


def locate(order: Order, epoch: int, position: int) -> tuple[int, int]:
    lane, number, place = order.place(position)
    assert number < order.windows(lane)
    window = order.window_at(epoch, lane, number)
    return int(window.chunks[place]), int(window.rows[place])


@given(orders())
def test_an_epoch_has_each_example_at_most_once_and_only_those_that_exist(drawn):
    order, number = drawn
    seen = [locate(order, number, position) for position in range(len(order))]
    assert all(0 <= row < order.sizes[chunk] for chunk, row in seen)
    if order.last_batch == "drop":
        assert len(set(seen)) == len(seen) == order.examples // order.total_batch_size * order.total_batch_size


@given(orders())
def test_carried_over_every_example_comes_equally_often(drawn):
    order, _ = drawn
    if order.last_batch == "carry":
        passes = 3
        length = passes * order.examples
        epochs = -(-length // len(order))
        seen = [locate(order, e, p) for e in range(epochs) for p in range(len(order))]
        # Lanes mix examples within an epoch; whole passes are complete where epochs and passes end together.
        counts = Counter(seen)
        assert max(counts.values()) - min(counts.values()) <= 2
        assert len(counts) == order.examples


def test_the_order_changes_with_the_epoch_and_the_seed_and_with_nothing_else():
    def order(seed: int = 0, number: int = 0, **options) -> list[int]:
        return flat(epoch(stream(*[5] * 40, batch=40, seed=seed), number, 5, **options))

    assert order() == order()
    assert order() == order(workers=2) == order(workers=1)
    assert len({tuple(order(seed=s, number=n)) for s in range(3) for n in range(3)}) == 9


def test_ranks_and_micro_batches_do_not_change_what_a_step_sees():
    """Laid out for one process, the order can be read by two with other micro-batches: what a resumed epoch needs."""
    one = stream(*[5] * 40, batch=40)
    batches = epoch(one, 3, micro=20)
    steps = [set(flat(batches[i : i + 2])) for i in range(0, 10, 2)]
    state = one.state(3)
    shares = []
    for rank in range(2):
        two = stream(*[5] * 40, batch=40)
        assert two.restore(state) == []
        shares.append(epoch(two, 3, micro=5, rank=rank, world=2))
    together = [set(flat(a[4 * i : 4 * i + 4]) + flat(b[4 * i : 4 * i + 4])) for i in range(5) for a, b in [shares]]
    assert together == steps
    assert set(flat(epoch(two, 4, micro=5, world=2))) <= set(range(200))


def test_many_ranks_do_not_read_everything():
    """1,280,000 examples: each window of a rank holds whole row groups, however many ranks share the buffer."""
    for world in (8, 64, 1024):
        train = TrainStream(Numbered(*[100] * 12_800), total_batch_size=16_384, seed=0, shuffle_buffer=8192)
        train.batches(16, rank=0, world_size=world, workers=8)
        assert not train.order.by_example
        assert len(np.unique(train.order.window_at(0, 0, 0).chunks)) <= 12


def test_a_stream_may_be_read_before_workers_are_forked():
    train = stream(*[6] * 16, batch=8, shuffle_buffer=24)
    assert epoch(train, 2) == epoch(train, 2, workers=2)


def test_examples_mix_within_a_shard_and_between_shards():
    order = flat(epoch(stream(*[64] * 32, batch=64, shuffle_buffer=256), micro=64))
    first = order[:64]
    assert len({number // 64 for number in first}) >= 1
    assert sum(abs(b - a) > 2 for a, b in itertools.pairwise(order)) > 0.8 * len(order)
    step = [number // 64 for number in order[:512]]
    assert len(set(step)) >= 8  # eight lanes


def test_a_small_data_set_is_shuffled_as_a_whole():
    order = flat(epoch(stream(50, 50, batch=100, shuffle_buffer=100), micro=10))
    assert sorted(order) == list(range(100))
    assert 2 < sum(number < 50 for number in order[:10]) < 8


def test_294_shards_over_two_ranks_of_two_workers_for_three_epochs():
    """Each example once per epoch, but for the tail; another order every time; what is left out changes."""
    rng = np.random.default_rng(0)
    sizes = rng.integers(1, 9, 294).tolist()
    total = sum(sizes)
    orders, left_out = [], []
    streams = [stream(*sizes, batch=64, shuffle_buffer=64) for _ in range(2)]
    loaders = [loader(s, 8, rank, 2, 2, persistent_workers=True) for rank, s in enumerate(streams)]
    for number in range(3):
        shares = []
        for load in loaders:
            load.batch_sampler.set_epoch(number)
            shares.append(list(load))
        assert [len(share) for share in shares] == [total // 64 * 4] * 2
        assert {len(batch) for share in shares for batch in share} == {8}
        seen = flat(shares[0]) + flat(shares[1])
        assert len(set(seen)) == len(seen) == total // 64 * 64
        orders.append(tuple(seen))
        left_out.append(frozenset(range(total)) - set(seen))
    assert len(set(orders)) == len(set(left_out)) == 3


def test_carry_leaves_nothing_out():
    train = stream(10, 10, 10, batch=8, last_batch="carry")  # 24 of 30 in an epoch
    seen = Counter(flat(epoch(train, e)[i] for e in range(5) for i in range(6)))
    assert set(seen) == set(range(30))
    assert set(seen.values()) == {4}  # five epochs are four passes
    assert train.steps_of(4) == 15 == 5 * len(train) // 8


# --- reading -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("skipped", [1, 7, 23])
def test_skipping_is_going_on_in_the_middle(workers, skipped):
    train = stream(*[6] * 16, batch=8, shuffle_buffer=24)
    whole = epoch(train, 2, workers=workers)
    load = loader(train, 4, 0, 1, workers)
    rest = skip_first_batches(load, skipped)
    load.batch_sampler.set_epoch(2)
    assert list(rest) == whole[skipped:]


def test_going_on_reads_only_what_is_still_to_come():
    train = stream(*[6] * 100, batch=8, shuffle_buffer=24)
    train.batches(4, rank=0, world_size=1, workers=0)
    labels(train.__getitems__(range(400, 408)))
    assert len(train.chunks.read_chunks) <= 8  # two windows of three examples, not the 66 chunks before them


def test_every_chunk_is_read_about_once():
    train = stream(*[8] * 64, batch=32, shuffle_buffer=256)
    epoch(train, micro=32)
    assert len(train.chunks.read_chunks) <= 64 + 16  # lanes begin and end within chunks


def test_windows_are_read_ahead_in_the_background():
    train = stream(*[4] * 40, batch=8, shuffle_buffer=64)
    train.batches(8, rank=0, world_size=1, workers=0)
    threads = set()
    read = train.chunks.read
    train.chunks.read = lambda number: (threads.add(threading.current_thread().name), read(number))[1]
    for position in range(160):
        train[position]
    assert {name for name in threads if name.startswith("ThreadPoolExecutor")}


def test_each_example_has_a_draw_of_its_own():
    train = stream(40, batch=8)
    draws = [train[i]["draw"] for i in range(80)]
    assert len(set(draws)) == 80
    assert draws == [stream(40, batch=8)[i]["draw"] for i in range(80)]


class Failing(Numbered):
    """A chunk that cannot be read, and one that can at the third attempt."""

    def __init__(self, *sizes: int) -> None:
        super().__init__(*sizes)
        self.attempts: Counter[int] = Counter()

    def read(self, number):
        self.attempts[number] += 1
        if number == 1:
            raise FileNotFoundError("gone")
        if number == 2 and self.attempts[2] < 3:
            raise ConnectionError("reset by peer")
        return super().read(number)

    def is_far(self, number):
        return True


def test_nothing_can_be_read(monkeypatch):
    train = stream(4, 4)
    train.chunks.read = lambda number: (_ for _ in ()).throw(FileNotFoundError("gone"))
    with pytest.raises(UserError, match=r"chunk [01] cannot be read, nor can the 8 chunks after it"):
        train[0]


def test_what_may_pass_is_tried_again_and_what_is_gone_is_skipped(monkeypatch, caplog):
    waits = []
    monkeypatch.setattr("time.sleep", waits.append)
    train = TrainStream(Failing(4, 4, 4, 4), total_batch_size=16, seed=0)
    examples = [train[i] for i in range(16)]
    assert Counter(example.get("skip") for example in examples) == {None: 12, "shard": 4}
    assert sorted(labels(examples)) == sorted([*range(4), *range(8, 12), *range(8, 16)])  # the next chunk stands in
    assert waits == [1.0, 2.0]
    assert train.chunks.attempts[1] == 1
    assert caplog.messages == ["cannot read chunk 1: its 4 examples are skipped (FileNotFoundError: gone)"]


def test_real_parquet_over_two_ranks_of_two_workers(shared_data):
    source = open_source(str(shared_data / "cifar10"), "test")
    seen = []
    for rank in range(2):
        train = TrainStream(source.chunks, total_batch_size=1000, seed=0, shuffle_buffer=2048)
        batches = train.batches(500, rank=rank, world_size=2, workers=2)
        for batch in DataLoader(train, batch_sampler=batches, num_workers=2, collate_fn=image_bytes):
            seen += batch
    split = load_dataset(str(shared_data / "cifar10"), split="test", streaming=True)
    assert len(seen) == 10_000
    assert set(seen) == {e["image"]["bytes"] for e in split.cast_column("image", Image(decode=False))}


def image_bytes(examples) -> list[bytes]:
    return [example["image"]["bytes"] for example in examples]


@pytest.mark.slow
def test_workers_may_be_started_afresh(fashion_mnist):
    train = TrainStream(open_source(str(fashion_mnist), "test").chunks, total_batch_size=100, seed=0)
    batches = train.batches(100, rank=0, world_size=1, workers=1)
    load = DataLoader(
        train, batch_sampler=batches, num_workers=1, collate_fn=image_bytes, multiprocessing_context="spawn"
    )
    assert sum(map(len, load)) == 2000


# --- what cannot be ----------------------------------------------------------------------------------------------


def test_a_stream_rejects_what_it_cannot_use():
    for options, message in (
        ({"shuffle_buffer": 0}, "shuffle_buffer=0 must be at least 1"),
        ({"seed": -1}, "seed=-1 must not be negative"),
        ({"last_batch": "keep"}, "last_batch='keep' is unknown: choose drop or carry"),
        ({"batch": 11}, "the split has 10 examples, fewer than one batch of total_batch_size=11: use a total_batch_"),
    ):
        with pytest.raises(UserError, match=message):
            stream(10, **options)


def test_a_checkpoint_of_other_data_says_so():
    state = stream(*[5] * 40).state(0)
    other = stream(*[5] * 39, 6, batch=16, seed=3)
    assert other.restore(state) == [
        "the seed of the data was 0 and is 3",
        "total_batch_size was 8 and is 16",
        "the number of examples in an epoch was 200 and is 192",
        "the training data are not those of the checkpoint",
    ]
