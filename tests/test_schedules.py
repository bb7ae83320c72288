"""Warmup, milestones and frozen layers stated in epochs, against their formulas."""

import itertools

import pytest
import torch

from hf_clars import ClarsTrainer, ClarsTrainingArguments, UserError
from hf_clars.cli import train
from hf_clars.trainer.arguments.schedules import milestone_factor, warmup_factor

from .helpers.models import dataset
from .helpers.recipe import config
from .helpers.training import Groups, Unsized, arguments, log_of, seeded

# An epoch has 4 steps: 32 examples, B = 8.


def rates(folder, epochs: int = 5, resume: str | None = None, **options) -> list[float]:
    """The learning rate of each step."""
    groups = Groups()
    args = arguments(folder, total_batch_size=8, num_train_epochs=epochs, learning_rate=2.0, **options)
    trainer = ClarsTrainer(seeded(), args, train_dataset=dataset(32), callbacks=[groups])
    trainer.train(resume_from_checkpoint=resume)
    assert trainer.state.global_step == 4 * epochs
    return [group["lr"] for group in groups.seen.values()]


CONSTANT = {"lr_scheduler_type": "constant"}
STABLE = {"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"decay_type": "linear"}}
SCHEDULES = [
    # Goyal et al.'s warmup: γ grows linearly from 2 · 0.25 to 2 over 2 epochs, and is constant afterwards.
    ({**CONSTANT, "warmup_epochs": 2, "warmup_start": 0.25},
     lambda t: 2 * (0.25 + 0.75 * t / 8) if t < 8 else 2.0),
    # Fig. 3: a constant rate, times 0.1 after the epochs given.
    ({**CONSTANT, "lr_milestones": [1, 2.5, 4]}, lambda t: 2 * 0.1 ** ((t >= 4) + (t >= 10) + (t >= 16))),
    ({**CONSTANT, "warmup_steps": 6, "lr_milestones": [2]}, lambda t: 2 * min(1, t / 6) * 0.1 ** (t >= 8)),
    # The same in steps and in epochs, before a polynomial of power 2.
    ({"warmup_steps": 6}, lambda t: 2 * (t / 6 if t < 6 else (1 - (t - 6) / 14) ** 2)),
    ({"warmup_epochs": 1.5}, lambda t: 2 * (t / 6 if t < 6 else (1 - (t - 6) / 14) ** 2)),
    # A warmup, a constant rate and a linear decay to 0, each of them stated in epochs.
    ({**STABLE, "warmup_epochs": 1, "decay_epochs": 1.5}, lambda t: 2 * min(1, t / 4, (20 - t) / 6)),
    ({**STABLE, "decay_epochs": 9}, lambda t: 2 * (20 - t) / 20),  # no longer than the training
]  # fmt: skip


@pytest.mark.parametrize(("options", "formula"), SCHEDULES, ids=[str(options) for options, _ in SCHEDULES])
def test_rates_are_those_of_the_formula(tmp_path, options, formula):
    expected = [formula(t) for t in range(20)]
    assert rates(tmp_path, **options) == pytest.approx(expected, rel=1e-5, abs=2e-7)  # transformers' ends at 1e-7


@pytest.mark.parametrize(
    "stated", [{"warmup_epochs": 2}, {"warmup_steps": 8}, {"warmup_epochs": 2, "lr_milestones": [1]}]
)
def test_a_warmup_as_long_as_the_training_is_all_of_it(tmp_path, stated, caplog):
    """transformers' polynomial would divide by zero after the last step."""
    decay = 0.1 if "lr_milestones" in stated else 1
    expected = [2 * t / 8 * (decay if t >= 4 else 1) for t in range(8)]
    assert rates(tmp_path, epochs=2, **stated) == pytest.approx(expected)
    assert "the warmup of 8 steps lasts as long as the training, of 8" in caplog.text


def test_a_resumed_schedule_goes_on(tmp_path):
    options = {"lr_milestones": [1, 2], "warmup_epochs": 1.0, "save_strategy": "epoch"}
    whole = rates(tmp_path, epochs=3, **options)
    again = rates(tmp_path, epochs=3, resume=str(tmp_path / "checkpoint-4"), **options)
    assert again == pytest.approx(whole[4:])


def test_factors():
    assert [warmup_factor(t, 4, 0.5) for t in range(6)] == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    assert warmup_factor(0, 0, 0.5) == 1.0
    assert [milestone_factor(t, [2, 4], 0.5) for t in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_epochs_of_carried_tails_are_passes(tmp_path, images):
    """72 examples at B = 16: 4 epochs are 18 steps, and 2 epochs are 9 of them."""
    options = {"last_batch": "carry", "lr_milestones": [2], "num_train_epochs": 4, "learning_rate": 1.0}
    options |= {"total_batch_size": 16, "eval_strategy": "no", "lr_scheduler_kwargs": None, **CONSTANT}
    assert train(config(tmp_path, images, **options)) == 0
    seen = [entry["learning_rate"] for entry in log_of(tmp_path / "run") if "learning_rate" in entry]
    assert seen == pytest.approx([1.0] * 9 + [0.1] * 9)


@pytest.mark.parametrize("optim", ["clars", "lars", "sgd"])
def test_frozen_layers_stand_still_at_first(tmp_path, optim):
    """Nothing of the frozen epochs is left behind, momentum included: the head moves as if they had not been."""
    seen: list[dict[str, torch.Tensor]] = []

    class Watching(ClarsTrainer):
        def training_step(self, model, *args, **kwargs):
            seen.append({n: p.detach().clone() for n, p in model.named_parameters()})
            return super().training_step(model, *args, **kwargs)

    args = arguments(
        tmp_path, optim=optim, learning_rate=0.5, total_batch_size=8, num_train_epochs=3, freeze_fc_epochs=1.5,
        weight_decay=0.1,
    )  # fmt: skip
    Watching(seeded(), args, train_dataset=dataset(32)).train()
    for step, (before, after) in enumerate(itertools.pairwise(seen)):
        for name, value in before.items():
            assert torch.equal(value, after[name]) == (name.startswith("head.") and step < 6), (step, name)


# --- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "stated", ["lr_milestones", "warmup_epochs", "decay_epochs", "freeze_fc_epochs", "layerwise_epochs"]
)
def test_epochs_of_data_without_a_length_are_refused(tmp_path, stated):
    value = [1] if stated == "lr_milestones" else 1.0
    schedule = STABLE if stated == "decay_epochs" else {}
    args = arguments(tmp_path, total_batch_size=32, max_steps=3, **{stated: value}, **schedule)
    with pytest.raises(UserError, match=f"{stated}=.* needs training data whose length is known: state it in steps"):
        ClarsTrainer(seeded(), args, train_dataset=Unsized(64)).train()


def test_what_transformers_refuses_when_the_schedule_is_made(tmp_path):
    args = arguments(tmp_path, total_batch_size=32)
    args.lr_scheduler_kwargs = {"power": 1, "lr_end": 5}
    with pytest.raises(UserError, match=r"lr_scheduler_kwargs={'power': 1, 'lr_end': 5}: lr_end"):
        ClarsTrainer(seeded(), args, train_dataset=dataset(64)).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({**CONSTANT, "warmup_steps": 3}, "warmup_steps=3.0: lr_scheduler_type=constant has no"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch", "warmup_steps": 3}, "has no warmup"),
        ({**CONSTANT, "lr_scheduler_kwargs": {"power": 1}}, "are nothing that"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 1}}, "'power'"),
        ({"lr_scheduler_kwargs": "power"}, "lr_scheduler_kwargs='power' must be a .*mapping, in JSON"),
        ({"lr_scheduler_kwargs": {"power": 1, "lr_end": 50}},
         r"lr_scheduler_kwargs={'power': 1, 'lr_end': 50}: lr_end"),
        ({"lr_milestones": [1], "lr_scheduler_type": "reduce_lr_on_plateau", "eval_strategy": "epoch"},
         "need a schedule that is a function of the step"),
        ({"warmup_steps": 2.5}, "warmup_steps=2.5 must be a whole number"),
        ({"warmup_start": 0.5}, "warmup_start=0.5 is for warmup_epochs"),
        ({"lr_decay": 0.5}, "lr_decay=0.5 is for lr_milestones"),
        ({"decay_epochs": 2}, "decay_epochs=2.0 is for lr_scheduler_type=warmup_stable_decay, not polynomial"),
        ({"lr_scheduler_type": "warmup_stable_decay", "lr_scheduler_kwargs": {"num_decay_steps": 3}, "decay_epochs": 2},
         "decay_epochs=2.0 and num_decay_steps=3: leave one out"),
        ({"warmup_epochs": -1}, "warmup_epochs=-1 must be at least 0"),
        ({"freeze_fc_epochs": float("nan")}, "freeze_fc_epochs=nan must be a finite number"),
        ({"warmup_epochs": 1, "warmup_steps": 3}, "warmup_epochs=1.0 and warmup_steps=3.0: leave one out"),
        ({"warmup_start": 1.5}, "warmup_start=1.5 must be at most 1"),
        ({"lr_decay": 0}, "lr_decay=0 must be greater than 0"),
        ({"lr_milestones": [3, 2]}, r"lr_milestones=\[3.0, 2.0\] must be in ascending order"),
    ],
    ids=str,
)  # fmt: skip
def test_what_is_refused_before_anything_is_built(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        ClarsTrainingArguments(output_dir=str(tmp_path), use_cpu=True, total_batch_size=32, **options)
