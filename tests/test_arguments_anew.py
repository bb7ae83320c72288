"""Arguments that are set again: B, the learning rate and `images_seen` follow what is set last."""

import copy
import dataclasses
import json
import pickle
from types import SimpleNamespace

import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.trainer_utils import HPSearchBackend

from hf_clars import ClarsTrainer, ClarsTrainingArguments, UserError
from hf_clars.data import TrainStream
from hf_clars.norms.watch import watches_of
from hf_clars.trainer.arguments.derived import derived
from hf_clars.trainer.arguments.derived import given as was_given

from .helpers.models import dataset
from .helpers.streams import Pictures, collate
from .helpers.training import Groups, arguments, assert_equal, logged, seeded


def made(output_dir="nowhere", **options) -> ClarsTrainingArguments:
    return arguments(output_dir, **{"learning_rate": None, **options})


def replaced(args: ClarsTrainingArguments, **changes) -> ClarsTrainingArguments:
    return dataclasses.replace(args, **changes)


def through_a_dictionary(args: ClarsTrainingArguments, **changes) -> ClarsTrainingArguments:
    return ClarsTrainingArguments(**{**args.to_dict(), **changes})


def set_one_by_one(args: ClarsTrainingArguments, **changes) -> ClarsTrainingArguments:
    args = copy.deepcopy(args)
    for name, value in changes.items():
        setattr(args, name, value)
    args.settle()
    return args


def from_a_pickle(args: ClarsTrainingArguments, **changes) -> ClarsTrainingArguments:
    return set_one_by_one(pickle.loads(pickle.dumps(args)), **changes)


WAYS = [replaced, through_a_dictionary, set_one_by_one, from_a_pickle]


def numbers(args: ClarsTrainingArguments) -> tuple[int, int, int, float]:
    return (
        args.total_batch_size, args.per_device_train_batch_size, args.gradient_accumulation_steps, args.learning_rate,
    )  # fmt: skip


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize(
    ("first", "then", "expected"),
    [
        ({"total_batch_size": 64}, {}, (64, 8, 8, 10.0)),
        ({"total_batch_size": 64}, {"total_batch_size": 128}, (128, 8, 16, 10.0)),
        ({"total_batch_size": 64}, {"per_device_train_batch_size": 16}, (64, 16, 4, 10.0)),
        ({"total_batch_size": 64}, {"base_learning_rate": 1.0}, (64, 8, 8, 0.5)),
        ({"total_batch_size": 64}, {"base_batch_size": 64}, (64, 8, 8, 0.1)),
        ({"total_batch_size": 64}, {"optim": "mnag"}, (64, 8, 8, 0.05)),
        ({"total_batch_size": 64}, {"optim": "lars"}, (64, 8, 8, 10.0)),
        ({"total_batch_size": 64}, {"mode": "authors"}, (64, 8, 8, 0.05)),
        ({"total_batch_size": 64, "base_learning_rate": 1.0}, {"base_batch_size": 64}, (64, 8, 8, 1.0)),
        ({"total_batch_size": 64, "base_learning_rate": 1.0}, {"total_batch_size": 128}, (128, 8, 16, 1.0)),
        ({"total_batch_size": 64, "learning_rate": 3.0}, {"total_batch_size": 128}, (128, 8, 16, 3.0)),
        ({}, {"per_device_train_batch_size": 128}, (128, 128, 1, 10.0)),
        ({"base_batch_size": 128}, {"gradient_accumulation_steps": 4}, (32, 8, 4, 0.025)),
        ({"gradient_accumulation_steps": 4}, {"per_device_train_batch_size": 16}, (64, 16, 4, 10.0)),
        ({"base_learning_rate": 0.1}, {"total_batch_size": 64}, (64, 8, 8, 0.05)),
        ({}, {"learning_rate": 3.0}, (8, 8, 1, 3.0)),
    ],
    ids=str,
)
def test_what_follows_follows_what_is_set_last(way, first, then, expected):
    args = way(made(**first), **then)
    assert numbers(args) == pytest.approx(expected)
    assert numbers(way(args)) == numbers(args)


def test_what_is_set_last_wins():
    args = set_one_by_one(made(learning_rate=3.0), base_learning_rate=1.0, total_batch_size=64)
    assert numbers(args) == (64, 8, 8, 0.5)
    args = set_one_by_one(args, learning_rate=2.0)
    assert numbers(args) == (64, 8, 8, 2.0)
    assert numbers(replaced(args)) == (64, 8, 8, 2.0)
    args = set_one_by_one(args, gradient_accumulation_steps=2)
    assert numbers(args) == (16, 8, 2, 2.0)
    with pytest.raises(UserError, match="total_batch_size=20"):
        set_one_by_one(args, total_batch_size=20)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.just("total_batch_size"), st.sampled_from([16, 32, 64, 96])),
            st.tuples(st.just("per_device_train_batch_size"), st.sampled_from([1, 2, 4, 8, 16])),
            st.tuples(st.just("gradient_accumulation_steps"), st.integers(1, 6)),
            st.tuples(st.just("learning_rate"), st.sampled_from([0.5, 2.0])),
            st.tuples(st.just("base_learning_rate"), st.sampled_from([0.2, 0.4])),
            st.tuples(st.just("base_batch_size"), st.sampled_from([64, 256])),
        ),
        max_size=6,
    )
)
def test_whatever_is_set_the_numbers_agree(changes):
    args = made()
    last = dict(changes)
    set_names = [name for name, _ in changes]
    for name, value in changes:
        setattr(args, name, value)
    try:
        args.settle()
    except UserError:
        assert "total_batch_size" in last
        return
    assert args.total_batch_size == args.per_device_train_batch_size * args.gradient_accumulation_steps
    size = {"total_batch_size", "gradient_accumulation_steps"}
    for names in (size, {"per_device_train_batch_size"}, {"learning_rate"}):
        latest = next((name for name in reversed(set_names) if name in names), None)
        rates = [name for name in set_names if "rate" in name or name.startswith("base_")]
        if latest is not None and (latest != "learning_rate" or rates[-1] == latest):
            assert getattr(args, latest) == last[latest]
    if "learning_rate" not in last or rates[-1] != "learning_rate":
        base, size = args.base_learning_rate or 0.1, args.base_batch_size or 128
        scaled = args.base_learning_rate or args.base_batch_size
        assert args.learning_rate == pytest.approx(base * args.total_batch_size / size if scaled else 10)
    assert numbers(replaced(args)) == numbers(args)


def test_a_schedule_leaves_its_arguments_behind():
    args = made()
    assert args.lr_scheduler_kwargs == {"power": 2.0}
    for way in (replaced, through_a_dictionary):
        assert not way(args, lr_scheduler_type="cosine").lr_scheduler_kwargs
        kept = way(made(lr_scheduler_kwargs={"power": 1.0}), num_train_epochs=2)
        assert kept.lr_scheduler_kwargs == {"power": 1.0}


def test_numbers_that_follow_are_numbers():
    args = made(total_batch_size=64)
    plain = json.loads(args.to_json_string())
    assert yaml.safe_load(yaml.safe_dump({k: v for k, v in args.to_dict().items() if k in plain})) == plain
    assert numbers(ClarsTrainingArguments(**plain)) == numbers(args)
    for value in (derived(3), derived(0.5), derived({"a": 1})):
        assert was_given(value) is None
        assert was_given(copy.deepcopy(value)) is None
        assert was_given(type(value)(value) if not isinstance(value, dict) else dict(value)) == value


# --- in a Trainer ----------------------------------------------------------------------------------------------------


def trainer_of(folder, *callbacks, anew: bool = False, **options) -> ClarsTrainer:
    """Anew: each training has a model of its own."""
    defaults = {"total_batch_size": 16, "max_steps": 2, "lr_scheduler_type": "constant"}
    given = {"model_init": lambda: seeded()} if anew else {"model": seeded()}
    args = made(folder, **{**defaults, **options})
    return ClarsTrainer(args=args, train_dataset=dataset(128), callbacks=[*callbacks], **given)


def images(trainer: ClarsTrainer) -> list[int]:
    return [seen for _, loss, seen in logged(trainer, "loss", "images_seen") if loss is not None]


@pytest.mark.parametrize("anew", [True, False])
def test_a_second_training_takes_what_was_set_in_between(tmp_path, anew):
    groups = Groups()
    trainer = trainer_of(tmp_path, groups, anew=anew, momentum=0.5, base_learning_rate=0.1)
    trainer.train()
    assert images(trainer) == [16, 32]
    assert groups.seen[0]["lr"] == pytest.approx(0.1 * 16 / 128)
    trainer.args.total_batch_size, trainer.args.momentum, trainer.args.layer_statistics_steps = 32, 0.25, 1
    trainer.train()
    assert images(trainer) == [32, 64]
    assert trainer.args.gradient_accumulation_steps == 4
    assert groups.seen[0]["lr"] == pytest.approx(0.1 * 32 / 128)
    assert groups.seen[0]["momentum"] == 0.25
    assert trainer.norms.total_batch_size == 32
    assert len((tmp_path / "layer_statistics.jsonl").read_text().splitlines()) == 2
    assert not watches_of(trainer.model)


@pytest.mark.parametrize("rate", [1.0, 2.0])  # as before, and another
def test_a_second_training_keeps_the_momentum(tmp_path, rate):
    trainer = trainer_of(tmp_path, learning_rate=1.0)
    trainer.train()
    before = [state["momentum_buffer"].clone() for state in trainer.optimizer.optimizer.state.values()]
    trainer.args.learning_rate = rate
    trainer.create_optimizer()
    optimizer = getattr(trainer.optimizer, "optimizer", trainer.optimizer)
    assert_equal(before, [state["momentum_buffer"] for state in optimizer.state.values()])
    assert before


def test_a_search_sets_what_it_likes(tmp_path, monkeypatch):
    """What `hyperparameter_search` does for each trial."""
    monkeypatch.setattr("wandb.run", SimpleNamespace(id="trial"))
    groups = Groups()
    trainer = trainer_of(tmp_path, groups, anew=True)
    trainer.hp_search_backend, trainer.hp_name = HPSearchBackend.WANDB, None
    for trial, size, rate in [
        ({"total_batch_size": 32}, 32, 10),
        ({"per_device_train_batch_size": 4}, 32, 10),
        ({"base_learning_rate": 1.0}, 32, 32 / 128),
        ({"learning_rate": 0.5}, 32, 0.5),
        ({"gradient_accumulation_steps": 2}, 8, 0.5),
        ({"base_learning_rate": 2.0, "total_batch_size": 16}, 16, 2.0 * 16 / 128),
    ]:
        trainer.train(trial=trial)
        assert images(trainer) == [size, 2 * size], trial
        assert groups.seen[0]["lr"] == pytest.approx(rate), trial
        assert trainer.norms.total_batch_size == size


def test_a_stream_of_another_batch_size_is_refused_in_a_trial(tmp_path):
    args = made(tmp_path, total_batch_size=16, remove_unused_columns=False, max_steps=2)
    stream = TrainStream(Pictures(), total_batch_size=16, seed=0)
    trainer = ClarsTrainer(seeded(), args, train_dataset=stream, data_collator=collate)
    trainer.args.total_batch_size = 32
    with pytest.raises(UserError, match="total_batch_size is 32 in the arguments and 16 in the TrainStream"):
        trainer.train()
