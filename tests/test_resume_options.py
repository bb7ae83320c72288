"""Options that are others than in the checkpoint: they are in force, run.json says so, and one line tells of it."""

import json
import math

import pytest
import torch
from transformers import TrainerCallback

from hf_clars import ClarsTrainer, UserError

from .helpers.models import dataset
from .test_resume import StopAfter
from .test_trainer import arguments, seeded, weights


class Groups(TrainerCallback):
    """Options of the first parameter group in each step, copied when it begins."""

    def __init__(self) -> None:
        self.seen: dict[int, dict] = {}

    def on_step_begin(self, args, state, control, optimizer, **kwargs):
        group = optimizer.param_groups[0]
        self.seen[state.global_step] = {k: v for k, v in group.items() if k not in ("params", "param_names")}


def trainer_of(folder, *callbacks, optimizers=(None, None), **options) -> ClarsTrainer:
    steps = {"save_strategy": "steps", "save_steps": 4, "max_steps": 8, "lr_scheduler_type": "polynomial"}
    args = arguments(folder, total_batch_size=16, **{**steps, **options})
    return ClarsTrainer(
        seeded(0.3), args, train_dataset=dataset(128), eval_dataset=dataset(8), callbacks=[*callbacks],
        optimizers=optimizers,
    )  # fmt: skip


def resumed(folder, before: dict, after: dict) -> tuple[ClarsTrainer, dict]:
    """The training that goes on after step 4, and the options of its first step."""
    trainer_of(folder, StopAfter(4), **before).train()
    groups = Groups()
    trainer = trainer_of(folder, groups, **{**before, **after})
    trainer.train(resume_from_checkpoint=True)
    return trainer, groups.seen[4]


def config(folder) -> dict:
    return json.loads((folder / "run.json").read_text())["config"]


SGD = {"optim": "sgd", "learning_rate": 0.1}
ADAM = {"optim": "adamw_torch", "learning_rate": 1e-2}
AUTHORS = {"mode": "authors", "learning_rate": 0.1}
CHANGES = [
    # of the training before, what is another afterwards, and what its groups then have
    ({}, {"eta": 0.02}, {"eta": 0.02}),
    ({}, {"momentum": 0.5}, {"momentum": 0.5}),
    ({"momentum": 0.0}, {"momentum": 0.9}, {"momentum": 0.9}),
    ({}, {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ({"weight_decay": 0.1}, {"bias_and_norm": "paper"}, {"bias_and_norm": "paper"}),
    ({}, {"decay_in_denominator": True}, {"decay_in_denominator": True}),
    ({}, {"optim_args": "eta=0.03,momentum=0.8"}, {"eta": 0.03, "momentum": 0.8}),
    ({"optim": "lars"}, {"eta": 0.002}, {"eta": 0.002}),
    ({"optim": "lars"}, {"decay_in_denominator": False}, {"decay_in_denominator": False}),
    ({"optim": "mnag", "learning_rate": 0.1}, {"momentum": 0.5}, {"momentum": 0.5}),
    (AUTHORS, {"eta": 0.02}, {"eta": 0.02}),
    (SGD, {"optim_args": "momentum=0.9,nesterov=true"}, {"momentum": 0.9, "nesterov": True}),
    ({**SGD, "optim_args": "momentum=0.9"}, {"optim_args": None}, {"momentum": 0}),
    (ADAM, {"adam_beta1": 0.8}, {"betas": (0.8, 0.999)}),
    (ADAM, {"adam_epsilon": 1e-6}, {"eps": 1e-6}),
    (ADAM, {"weight_decay": 0.1}, {"weight_decay": 0.1}),
    ({"optim": "lamb", "learning_rate": 1e-2}, {"adam_beta2": 0.9}, {"betas": (0.9, 0.9)}),
    ({}, {"learning_rate": 1.0}, {"lr": 1.0 * (1 - 4 / 8) ** 2, "initial_lr": 1.0}),
    (ADAM, {"learning_rate": 1e-3}, {"lr": 1e-3 * (1 - 4 / 8) ** 2, "initial_lr": 1e-3}),
    ({}, {"lr_scheduler_kwargs": {"power": 1.0}}, {"lr": 3.0 * (1 - 4 / 8)}),
    ({}, {"lr_scheduler_type": "constant"}, {"lr": 3.0}),
    ({}, {"max_steps": 16}, {"lr": 3.0 * (1 - 4 / 16) ** 2}),
]


@pytest.mark.parametrize(("before", "after", "expected"), CHANGES, ids=str)
def test_new_options_are_in_force_and_told(tmp_path, caplog, before, after, expected):
    _, group = resumed(tmp_path, before, after)
    rate = expected.pop("lr", None)
    assert {key: group[key] for key in expected} == expected
    if rate is not None:
        assert group["lr"] == pytest.approx(rate, rel=1e-3)  # transformers' polynomial ends at 1e-7
    told = [m for m in caplog.messages if m.startswith("changed since the checkpoint, and in force from there on: ")]
    assert len(told) == 1
    assert all(name in told[0] for name in after)
    in_force = config(tmp_path)
    for name, value in after.items():
        assert in_force[name] == value
    assert in_force["gamma_scale"] == in_force["learning_rate"]


def test_options_as_they_were_are_not_told(tmp_path, caplog):
    resumed(tmp_path, {"weight_decay": 1e-3}, {})
    assert not [m for m in caplog.messages if "changed since" in m]


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
    assert all(torch.equal(a, b) for a, b in zip(weights(by_hand), weights(ours), strict=True))


def test_what_a_callback_has_changed_stays(tmp_path):
    """Only what is asked for otherwise is otherwise."""

    class Once(TrainerCallback):
        def on_step_end(self, args, state, control, optimizer, **kwargs):
            if state.global_step == 2:
                for group in optimizer.param_groups:
                    group["weight_decay"] = 0.25

    trainer_of(tmp_path, Once(), StopAfter(4)).train()
    groups = Groups()
    trainer_of(tmp_path, groups, eta=0.02).train(resume_from_checkpoint=True)
    assert (groups.seen[4]["weight_decay"], groups.seen[4]["eta"]) == (0.25, 0.02)


SCALED = {"learning_rate": None, "base_learning_rate": 0.5, "base_batch_size": 64}


@pytest.mark.parametrize("optim", ["clars", "lars", "mnag", "sgd"])
def test_linear_scaling_is_resumed_exactly(tmp_path, optim):
    """A rate that follows from others is a plain number in every file, which torch reads without running code."""
    whole = trainer_of(tmp_path / "a", optim=optim, **SCALED)
    whole.train()
    cut, _ = resumed(tmp_path / "b", {"optim": optim, **SCALED}, {})
    assert all(torch.equal(a, b) for a, b in zip(weights(whole), weights(cut), strict=True))
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "b" / "checkpoint-4" / name, weights_only=True)


def test_linear_scaling_of_an_optimizer_made_by_hand(tmp_path):
    args = arguments(tmp_path, total_batch_size=16, save_strategy="steps", save_steps=1, max_steps=1, **SCALED)
    model = seeded()
    optimizer = torch.optim.SGD(model.parameters(), lr=args.learning_rate)
    ClarsTrainer(model, args, train_dataset=dataset(16), optimizers=(optimizer, None)).train()
    for name in ("optimizer.pt", "scheduler.pt"):
        torch.load(tmp_path / "checkpoint-1" / name, weights_only=True)


def test_a_change_counts_once(tmp_path, caplog):
    """The checkpoints that follow are those of the new options."""
    resumed(tmp_path, {}, {"eta": 0.02, "learning_rate": 1.0})
    caplog.clear()
    groups = Groups()
    trainer = trainer_of(tmp_path, groups, eta=0.02, learning_rate=1.0, max_steps=8)
    trainer.train(resume_from_checkpoint=str(tmp_path / "checkpoint-8"))
    assert not [m for m in caplog.messages if "changed since" in m]


@pytest.mark.parametrize(
    ("kind", "before", "after"),
    [
        (torch.optim.SGD, {"momentum": 0.9}, {"nesterov": True}),
        (torch.optim.SGD, {}, {"momentum": 0.9, "nesterov": True}),
        (torch.optim.SGD, {"lr": 0.1}, {"lr": 0.2}),
        (torch.optim.Adam, {"amsgrad": True}, {"amsgrad": False}),
        (torch.optim.Adam, {}, {"maximize": True}),
        (torch.optim.RMSprop, {}, {"alpha": 0.9}),
        (torch.optim.NAdam, {}, {"momentum_decay": 1e-3}),
    ],
    ids=str,
)
def test_optimizers_of_torch_made_by_hand(tmp_path, caplog, kind, before, after):
    def trained(folder, options, *callbacks, resume=False):
        model = seeded()
        args = arguments(folder, total_batch_size=16, save_strategy="steps", save_steps=4, max_steps=8)
        optimizer = kind(model.parameters(), **{"lr": 0.01, **options})
        trainer = ClarsTrainer(
            model, args, train_dataset=dataset(128), callbacks=[*callbacks], optimizers=(optimizer, None)
        )
        trainer.train(resume_from_checkpoint=resume)

    trained(tmp_path, before, StopAfter(4))
    groups = Groups()
    trained(tmp_path, {**before, **after}, groups, resume=True)
    name = next(iter(after))
    assert groups.seen[4]["initial_lr" if name == "lr" else name] == after[name]
    (told,) = [m for m in caplog.messages if "changed since" in m]
    assert f"{name} {before.get(name, kind([torch.zeros(1)], lr=0.01).defaults[name])} → {after[name]}" in told


@pytest.mark.parametrize(
    ("kind", "after"),
    [
        (torch.optim.Adam, {"amsgrad": True}),
        (torch.optim.RMSprop, {"momentum": 0.9}),
        (torch.optim.RMSprop, {"centered": True}),
    ],
)
def test_an_option_that_needs_a_state_of_its_own_is_refused(tmp_path, kind, after):
    def trainer(*callbacks, **options):
        model = seeded()
        args = arguments(tmp_path, total_batch_size=16, save_strategy="steps", save_steps=4, max_steps=8)
        optimizer = kind(model.parameters(), lr=0.01, **options)
        return ClarsTrainer(
            model, args, train_dataset=dataset(128), callbacks=[*callbacks], optimizers=(optimizer, None)
        )

    trainer(StopAfter(4)).train()
    (name, value), *_ = after.items()
    with pytest.raises(UserError, match=f"cannot go on from the checkpoint with {name}={value}: its state has no"):
        trainer(**after).train(resume_from_checkpoint=True)


def test_a_schedule_of_another_kind_is_refused(tmp_path):
    plateau = {
        "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "steps", "eval_steps": 4,
        "metric_for_best_model": "loss", "lr_scheduler_kwargs": {"patience": 3},
    }  # fmt: skip
    trainer_of(tmp_path, StopAfter(4)).train()
    with pytest.raises(UserError, match="the checkpoint is of lr_scheduler_type='polynomial', not 'reduce_lr_on_plat"):
        trainer_of(tmp_path, **plateau).train(resume_from_checkpoint=True)


def test_steps_of_logging_and_saving_are_those_of_now(tmp_path):
    trainer, _ = resumed(tmp_path, {"logging_steps": 4}, {"logging_steps": 1, "save_steps": 2})
    assert [row["step"] for row in trainer.state.log_history if "loss" in row] == [4, 5, 6, 7, 8]
    assert (tmp_path / "checkpoint-6").is_dir()


def test_images_of_steps_of_another_size_are_counted_as_they_were(tmp_path, caplog):
    trainer_of(tmp_path, StopAfter(4)).train()
    args = arguments(tmp_path, total_batch_size=32, max_steps=6)
    trainer = ClarsTrainer(seeded(0.3), args, train_dataset=dataset(256))
    trainer.train(resume_from_checkpoint=True)
    rows = [row for row in trainer.state.log_history if "loss" in row]
    assert [row["images_seen"] for row in rows] == [16, 32, 48, 64, 96, 128]
    assert "total_batch_size 16 → 32" in caplog.text
    assert math.isfinite(rows[-1]["loss"])
