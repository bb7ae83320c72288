"""Options that are others than in the checkpoint: they are in force, run.json says so, and one line tells of it."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from hf_clars import ClarsTrainer, UserError

from .helpers.models import dataset
from .helpers.training import Groups, StopAfter, arguments, assert_same_weights, logged, seeded


def trainer_of(folder, *callbacks, by_hand=None, **options) -> ClarsTrainer:
    """By hand: an optimizer of torch, and its options."""
    steps = {"save_strategy": "steps", "save_steps": 4, "max_steps": 6, "lr_scheduler_type": "polynomial"}
    args = arguments(folder, total_batch_size=16, **{**steps, **options})
    model, optimizer = seeded(0.3), None
    if by_hand is not None:
        kind, keywords = by_hand
        optimizer = kind(model.parameters(), **{"lr": 0.01, **keywords})
    return ClarsTrainer(
        model, args, train_dataset=dataset(128), eval_dataset=dataset(8), callbacks=[*callbacks],
        optimizers=(optimizer, None),
    )  # fmt: skip


def resumed(folder, before: dict, after: dict) -> tuple[ClarsTrainer, dict]:
    """The training that goes on after step 4, and the options of its first step."""
    trainer_of(folder, StopAfter(4), **before).train()
    groups = Groups()
    trainer = trainer_of(folder, groups, **{**before, **after})
    trainer.train(resume_from_checkpoint=True)
    return trainer, groups.seen[4]


def told(caplog) -> list[str]:
    return [m for m in caplog.messages if m.startswith("changed since the checkpoint, and in force from there on: ")]


SGD = {"optim": "sgd", "learning_rate": 0.1}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2}
AUTHORS = {"mode": "authors", "learning_rate": 0.1}
# Of the training before, what is another afterwards, and what its groups then have.
CHANGES = [
    ({}, {"eta": 0.02, "momentum": 0.5, "weight_decay": 0.1, "decay_in_denominator": True},
     {"eta": 0.02, "momentum": 0.5, "weight_decay": 0.1, "decay_in_denominator": True}),
    ({"weight_decay": 0.1, "momentum": 0.0}, {"bias_and_norm": "paper", "momentum": 0.9},
     {"bias_and_norm": "paper", "momentum": 0.9}),
    ({}, {"optim_args": "eta=0.03,momentum=0.8"}, {"eta": 0.03, "momentum": 0.8}),
    ({"optim": "lars"}, {"eta": 0.002, "decay_in_denominator": False}, {"eta": 0.002, "decay_in_denominator": False}),
    ({"optim": "mnag", "learning_rate": 0.1}, {"momentum": 0.5}, {"momentum": 0.5}),
    (AUTHORS, {"eta": 0.02}, {"eta": 0.02}),
    (SGD, {"optim_args": "momentum=0.9,nesterov=true"}, {"momentum": 0.9, "nesterov": True}),
    ({**SGD, "optim_args": "momentum=0.9"}, {"optim_args": None}, {"momentum": 0}),
    (ADAM, {"adam_beta1": 0.8, "adam_epsilon": 1e-6, "weight_decay": 0.1},
     {"betas": (0.8, 0.999), "eps": 1e-6, "weight_decay": 0.1}),
    ({"optim": "lamb", "learning_rate": 1e-2}, {"adam_beta2": 0.9}, {"betas": (0.9, 0.9)}),
    ({}, {"learning_rate": 1.0}, {"lr": 1.0 * (1 - 4 / 6) ** 2, "initial_lr": 1.0}),
    (ADAM, {"learning_rate": 1e-3}, {"lr": 1e-3 * (1 - 4 / 6) ** 2, "initial_lr": 1e-3}),
    ({}, {"lr_scheduler_kwargs": {"power": 1.0}}, {"lr": 3.0 * (1 - 4 / 6)}),
    ({}, {"lr_scheduler_type": "constant"}, {"lr": 3.0}),
    ({}, {"max_steps": 16}, {"lr": 3.0 * (1 - 4 / 16) ** 2}),
]  # fmt: skip


@pytest.mark.parametrize(("before", "after", "expected"), CHANGES, ids=str)
def test_new_options_are_in_force_and_told(tmp_path, caplog, before, after, expected):
    _, group = resumed(tmp_path, before, after)
    rate = expected.get("lr")
    assert {key: group[key] for key in expected if key != "lr"} == {k: v for k, v in expected.items() if k != "lr"}
    if rate is not None:
        assert group["lr"] == pytest.approx(rate, rel=1e-3)  # transformers' polynomial ends at 1e-7
    (line,) = told(caplog)
    assert all(name in line for name in after)
    in_force = json.loads((tmp_path / "run.json").read_text())["config"]
    assert {name: in_force[name] for name in after} == after
    assert in_force["gamma_scale"] == in_force["learning_rate"]


@pytest.mark.parametrize(
    ("optim", "after"), [("clars", {"eta": 0.05, "momentum": 0.5, "weight_decay": 0.1}), ("sgd", {"weight_decay": 0.5})]
)
def test_it_is_the_training_whose_options_are_changed_in_its_course(tmp_path, optim, after):
    class Change(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **kwargs):
            if state.global_step == 4:
                for group in optimizer.param_groups:
                    decay = {"weight_decay": after["weight_decay"] if group["weight_decay"] else 0.0}
                    group.update({**after, **decay})

    before = {"optim": optim, "weight_decay": 1e-3, "learning_rate": 0.3}
    by_hand = trainer_of(tmp_path / "a", Change(), **before)
    by_hand.train()
    ours, _ = resumed(tmp_path / "b", before, after)
    assert_same_weights(by_hand, ours)


def test_what_a_callback_has_changed_stays_and_a_change_counts_once(tmp_path, caplog):
    """Only what is asked for otherwise is otherwise; the checkpoints that follow are those of the new options."""

    class Once(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **kwargs):
            if state.global_step == 2:
                for group in optimizer.param_groups:
                    group["weight_decay"] = 0.25

    trainer_of(tmp_path, Once(), StopAfter(4)).train()
    groups = Groups()
    trainer_of(tmp_path, groups, eta=0.02, save_steps=1).train(resume_from_checkpoint=True)
    assert (groups.seen[4]["weight_decay"], groups.seen[4]["eta"]) == (0.25, 0.02)
    assert len(told(caplog)) == 1
    caplog.clear()
    trainer_of(tmp_path, eta=0.02, save_steps=1).train(resume_from_checkpoint=str(tmp_path / "checkpoint-5"))
    assert told(caplog) == []


SCALED = {"learning_rate": None, "base_learning_rate": 0.5, "base_batch_size": 64}


@pytest.mark.parametrize(
    "optim", ["clars", "sgd", *(pytest.param(o, marks=pytest.mark.slow) for o in ("lars", "mnag"))]
)
def test_linear_scaling_is_resumed_exactly(tmp_path, caplog, optim):
    """A rate that follows from others is a plain number in every file, which torch reads without running code."""
    whole = trainer_of(tmp_path / "a", optim=optim, **SCALED)
    whole.train()
    cut, _ = resumed(tmp_path / "b", {"optim": optim, **SCALED}, {})
    assert_same_weights(whole, cut)
    assert told(caplog) == []
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "b" / "checkpoint-4" / name, weights_only=True)


def test_linear_scaling_of_an_optimizer_made_by_hand(tmp_path):
    rate = arguments(tmp_path, total_batch_size=16, **SCALED).learning_rate
    options = {"save_steps": 1, "max_steps": 1, **SCALED}
    trainer_of(tmp_path, by_hand=(torch.optim.SGD, {"lr": rate}), **options).train()
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "checkpoint-1" / name, weights_only=True)


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, {"nesterov": True}),
        (torch.optim.SGD, {}, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {"lr": 0.1}, {"lr": 0.2}),
        (torch.optim.Adam, {"amsgrad": True}, {"amsgrad": False}),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in (
                (torch.optim.Adam, {}, {"maximize": True}),
                (torch.optim.RMSprop, {}, {"alpha": 0.9}),
                (torch.optim.NAdam, {}, {"momentum_decay": 1e-3}),
            )
        ),
    ],
    ids=str,
)
def test_optimizers_of_torch_made_by_hand(tmp_path, caplog, kind, before, after):
    _, group = resumed(tmp_path, {"by_hand": (kind, before)}, {"by_hand": (kind, {**before, **after})})
    name = next(iter(after))
    assert group["initial_lr" if name == "lr" else name] == after[name]
    (line,) = told(caplog)
    assert f"{name} {before.get(name, kind([torch.zeros(1)], lr=0.01).defaults[name])} → {after[name]}" in line


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_an_option_that_needs_a_state_of_its_own_is_refused(tmp_path, kind, after):
    (name, value), *_ = after.items()
    with pytest.raises(UserError, match=f"cannot go on from the checkpoint with {name}={value}: its state has no"):
        resumed(tmp_path, {"by_hand": (kind, {})}, {"by_hand": (kind, after)})


def test_a_schedule_of_another_kind_is_refused(tmp_path):
    plateau = {
        "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 4,
        "metric_for_best_model": "loss", "lr_scheduler_kwargs": {"patience": 3},
    }  # fmt: skip
    with pytest.raises(UserError, match="the checkpoint is of lr_scheduler_type='polynomial', not 'reduce_lr_on_plat"):
        resumed(tmp_path, {}, plateau)


def test_steps_of_logging_and_saving_and_images_of_steps_of_another_size(tmp_path, caplog):
    """Those of now count; images that were seen before are counted as they were."""
    after = {"logging_steps": 1, "save_steps": 2, "total_batch_size": 32}
    trainer_of(tmp_path, StopAfter(4), logging_steps=4).train()
    args = arguments(tmp_path, max_steps=6, save_strategy="steps", **after)
    trainer = ClarsTrainer(seeded(0.3), args, train_dataset=dataset(256))
    trainer.train(resume_from_checkpoint=True)
    rows = [row for row in logged(trainer, "loss", "images_seen") if row[1] is not None]
    assert [(step, images) for step, _, images in rows] == [(4, 64), (5, 96), (6, 128)]
    assert math.isfinite(rows[-1][1])
    assert "total_batch_size 16 → 32" in caplog.text
    assert (tmp_path / "checkpoint-6").is_dir()
