"""Warmup, milestones and frozen layers stated in epochs, against their formulas."""

import json

import pytest
import torch
from torch.utils.data import IterableDataset

from hf_clars import ClarsTrainer, ClarsTrainingArguments, UserError
from hf_clars.image_classification.recipe import run as train
from hf_clars.trainer.arguments.schedules import milestone_factor, warmup_factor

from .helpers.models import dataset
from .test_trainer import arguments, seeded

STEPS = 4  # of an epoch: 128 examples, B = 32


def rates(tmp_path, epochs: int = 5, **options) -> list[float]:
    """The learning rate of each step."""
    seen = []

    class Watching(ClarsTrainer):
        def create_optimizer(self, *args, **kwargs):
            optimizer = super().create_optimizer(*args, **kwargs)
            step = optimizer.step
            optimizer.step = lambda *a, **k: (seen.append(optimizer.param_groups[0]["lr"]), step(*a, **k))[1]
            return optimizer

    args = arguments(tmp_path, total_batch_size=32, num_train_epochs=epochs, learning_rate=2.0, **options)
    Watching(seeded(), args, train_dataset=dataset(128)).train()
    assert len(seen) == epochs * STEPS
    return seen


def test_goyals_warmup_begins_at_the_base_learning_rate(tmp_path):
    """γ grows linearly from `2 · 0.25` to 2 over 2 epochs, and is constant afterwards."""
    seen = rates(tmp_path, lr_scheduler_type="constant", warmup_epochs=2, warmup_start=0.25)
    expected = [2 * (0.25 + 0.75 * t / 8) if t < 8 else 2.0 for t in range(20)]
    assert seen == pytest.approx(expected)


def test_a_step_schedule(tmp_path):
    """Fig. 3: a constant rate, times 0.1 after the epochs given."""
    seen = rates(tmp_path, lr_scheduler_type="constant", lr_milestones=[1, 2.5, 4])
    expected = [2 * 0.1 ** ((t >= 4) + (t >= 10) + (t >= 16)) for t in range(20)]
    assert seen == pytest.approx(expected)


def test_warmup_in_epochs_is_transformers_warmup_in_steps(tmp_path):
    seen = rates(tmp_path / "a", warmup_epochs=1.5)
    assert seen == pytest.approx(rates(tmp_path / "b", warmup_steps=6))
    assert seen[0] == 0
    assert seen[10] == pytest.approx(2 * (1 - 4 / 14) ** 2, rel=1e-5)  # a polynomial of power 2


def test_warmup_in_steps_stays_where_there_are_milestones(tmp_path):
    seen = rates(tmp_path, lr_scheduler_type="constant", warmup_steps=6, lr_milestones=[2])
    assert seen == pytest.approx([2 * min(1, t / 6) * 0.1 ** (t >= 8) for t in range(20)])


def test_epochs_of_carried_tails_are_passes(tmp_path, fashion_mnist):
    """80 examples at B = 32: 20 epochs are 50 steps, and 10 epochs are 25 of them."""
    train([
        "--dataset", str(fashion_mnist), "--train_split", "train[:80]", "--eval_split", "test", "--eval_examples", "8",
        "--model_name", "resnet8_cifar", "--model_kwargs", '{"width": 4}', "--image_size", "8",
        "--augmentation", "flip", "--total_batch_size", "32", "--per_device_train_batch_size", "32",
        "--num_train_epochs", "20", "--last_batch", "carry", "--lr_milestones", "10", "--learning_rate", "1",
        "--lr_scheduler_type", "constant", "--logging_steps", "1",
        "--use_cpu", "true", "--report_to", "none", "--save_strategy", "no", "--plots", "false",
        "--output_dir", str(tmp_path),
    ])  # fmt: skip
    history = json.loads((tmp_path / "trainer_state.json").read_text())["log_history"]
    seen = [entry["learning_rate"] for entry in history if "learning_rate" in entry]
    assert seen == pytest.approx([1.0] * 25 + [0.1] * 25)


class Unsized(IterableDataset):
    def __iter__(self):
        return iter(dataset(64))


@pytest.mark.parametrize(
    "stated", [{"lr_milestones": [1]}, {"warmup_epochs": 1}, {"freeze_fc_epochs": 1}, {"layerwise_epochs": 1}]
)
def test_epochs_of_data_without_a_length_are_refused(tmp_path, stated):
    args = arguments(tmp_path, total_batch_size=32, max_steps=3, **stated)
    with pytest.raises(UserError, match="needs training data whose length is known: state it in steps"):
        ClarsTrainer(seeded(), args, train_dataset=Unsized()).train()


def test_what_transformers_says_of_a_schedule_is_one_line(tmp_path):
    with pytest.raises(UserError, match=r"lr_scheduler_kwargs={'power': 1, 'lr_end': 5}: lr_end"):
        arguments(tmp_path, total_batch_size=32, lr_scheduler_kwargs={"power": 1, "lr_end": 5})
    args = arguments(tmp_path, total_batch_size=32)
    args.lr_scheduler_kwargs = {"power": 1, "lr_end": 5}
    with pytest.raises(UserError, match=r"lr_scheduler_kwargs={'power': 1, 'lr_end': 5}: lr_end"):
        ClarsTrainer(seeded(), args, train_dataset=dataset(64)).train()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lr_scheduler_type": "constant", "warmup_steps": 3}, "warmup_steps=3.0: lr_scheduler_type=constant has no"),
        ({"lr_scheduler_type": "greedy", "eval_strategy": "epoch", "warmup_steps": 3}, "has no warmup"),
        ({"lr_scheduler_type": "constant", "lr_scheduler_kwargs": {"power": 1}}, "are nothing that"),
        ({"lr_scheduler_type": "linear", "lr_scheduler_kwargs": {"power": 1}}, "unexpected keyword argument 'power'"),
        ({"lr_scheduler_kwargs": "power"}, "lr_scheduler_kwargs='power' must be a .*mapping, in JSON"),
        ({"warmup_steps": 2.5}, "warmup_steps=2.5 must be a whole number"),
        ({"warmup_start": 0.5}, "warmup_start=0.5 is for warmup_epochs"),
        ({"lr_decay": 0.5}, "lr_decay=0.5 is for lr_milestones"),
    ],
)
def test_what_a_schedule_would_ignore_is_refused(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, total_batch_size=32, **options)


@pytest.mark.parametrize(
    "stated", [{"warmup_epochs": 2}, {"warmup_steps": 8}, {"warmup_epochs": 2, "lr_milestones": [1]}]
)
def test_a_warmup_as_long_as_the_training_is_all_of_it(tmp_path, stated, caplog):
    """transformers' polynomial would divide by zero after the last step."""
    seen = rates(tmp_path, epochs=2, **stated)
    decay = 0.1 if "lr_milestones" in stated else 1
    assert seen == pytest.approx([2 * t / 8 * (decay if t >= 4 else 1) for t in range(8)])
    assert "the warmup of 8 steps lasts as long as the training, of 8" in caplog.text


def test_factors():
    assert [warmup_factor(t, 4, 0.5) for t in range(6)] == [0.5, 0.625, 0.75, 0.875, 1.0, 1.0]
    assert warmup_factor(0, 0, 0.5) == 1.0
    assert [milestone_factor(t, [2, 4], 0.5) for t in range(6)] == [1, 1, 0.5, 0.5, 0.25, 0.25]


def test_a_resumed_schedule_goes_on(tmp_path):
    options = {"lr_milestones": [1, 2], "warmup_epochs": 1.0, "save_strategy": "epoch"}
    whole = rates(tmp_path, epochs=3, **options)
    seen = []

    class Watching(ClarsTrainer):
        def log(self, logs, *args, **kwargs):
            if "learning_rate" in logs:
                seen.append(logs["learning_rate"])
            super().log(logs, *args, **kwargs)

    args = arguments(tmp_path, total_batch_size=32, num_train_epochs=3, learning_rate=2.0, **options)
    Watching(seeded(), args, train_dataset=dataset(128)).train(resume_from_checkpoint=str(tmp_path / "checkpoint-4"))
    assert seen == pytest.approx(whole[4:])


@pytest.mark.parametrize("optim", ["clars", "lars", "sgd"])
def test_frozen_layers_stand_still_at_first(tmp_path, optim):
    """Nothing of the frozen epochs is left behind, momentum included: the head moves as if they had not been."""
    moved: list[dict[str, bool]] = []
    before: dict[str, torch.Tensor] = {}

    class Watching(ClarsTrainer):
        def training_step(self, model, inputs, *args, **kwargs):
            now = {n: p.detach().clone() for n, p in model.named_parameters()}
            if before:
                moved.append({n: not torch.equal(before[n], p) for n, p in now.items()})
            before.update(now)
            return super().training_step(model, inputs, *args, **kwargs)

    args = arguments(
        tmp_path, optim=optim, learning_rate=0.5, total_batch_size=32, per_device_train_batch_size=32,
        num_train_epochs=3, freeze_fc_epochs=1.5, weight_decay=0.1,
    )  # fmt: skip
    model = seeded()
    linear = {
        f"{n}.{p}" for n, m in model.named_modules() if isinstance(m, torch.nn.Linear) for p in ("weight", "bias")
    }
    assert linear
    trainer = Watching(model, args, train_dataset=dataset(128))
    trainer.train()
    for step, names in enumerate(moved):
        for name, has_moved in names.items():
            assert has_moved == (name not in linear or step >= 6), (step, name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"warmup_epochs": -1}, "warmup_epochs=-1 must be at least 0"),
        ({"freeze_fc_epochs": float("nan")}, "freeze_fc_epochs=nan must be a finite number"),
        ({"warmup_epochs": 1, "warmup_steps": 3}, "warmup_epochs=1.0 and warmup_steps=3.0: leave one out"),
        ({"warmup_start": 1.5}, "warmup_start=1.5 must be at most 1"),
        ({"lr_decay": 0}, "lr_decay=0 must be greater than 0"),
        ({"lr_milestones": [3, 2]}, r"lr_milestones=\[3.0, 2.0\] must be in ascending order"),
    ],
)
def test_bad_input(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        ClarsTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_a_schedule_that_is_no_function_of_the_step_cannot_be_refined(tmp_path):
    with pytest.raises(UserError, match="need a schedule that is a function of the step"):
        arguments(tmp_path, total_batch_size=32, lr_milestones=[1], lr_scheduler_type="reduce_lr_on_plateau",
                  eval_strategy="epoch")  # fmt: skip
