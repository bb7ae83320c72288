"""`optim="clars"` in plain transformers, and the private names that this leans on."""

import math

import pytest
from transformers import Trainer, TrainingArguments, trainer_optimizer
from transformers.training_args import OptimizerNames

import hf_clars
from hf_clars import CLARS, LARS, ClarsTrainingArguments, UserError

from .models import Classifier, dataset


def plain(tmp_path, **options) -> Trainer:
    options = {"learning_rate": 1.0, "max_grad_norm": 0, "report_to": [], "use_cpu": True, **options}
    return Trainer(Classifier(), TrainingArguments(output_dir=str(tmp_path), **options), train_dataset=dataset(64))


def test_the_private_names_are_where_they_were():
    assert callable(trainer_optimizer.is_optimizer_factory)
    for name in ("clars", "lars", "mnag", "lamb"):
        member = OptimizerNames(name)
        assert isinstance(member, OptimizerNames)
        assert (member.value, member, str.__str__(member)) == (name, name, name)
        assert member in list(OptimizerNames)
        assert callable(trainer_optimizer._OPTIMIZER_HANDLERS[member])
    before = len(OptimizerNames)
    hf_clars.register()
    assert len(OptimizerNames) == before
    with pytest.raises(ValueError, match="clars"):  # listed among the valid names
        OptimizerNames("nonsense")


def test_plain_trainer_trains_with_clars(tmp_path):
    trainer = plain(
        tmp_path, optim="clars", num_train_epochs=6, gradient_accumulation_steps=2, logging_steps=1, learning_rate=5.0,
        optim_args="eta=0.02,momentum=0.8,mode=subset,norm_samples=16,weight_decay=1e-3",
        per_device_train_batch_size=16,
    )  # fmt: skip
    trainer.train()
    optimizer = trainer.optimizer.optimizer
    assert isinstance(optimizer, CLARS)
    group, vectors = optimizer.param_groups
    assert (group["eta"], group["momentum"], group["weight_decay"]) == (0.02, 0.8, 1e-3)
    assert (vectors["layer_adaptation"], vectors["weight_decay"]) == (False, 0.0)
    assert (optimizer.norms.mode, optimizer.norms.norm_samples, optimizer.norms.total_batch_size) == ("subset", 16, 32)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    assert losses[-1] < losses[0]


def test_plain_trainer_trains_with_lars(tmp_path):
    trainer = plain(tmp_path, optim="lars", max_steps=2, weight_decay=1e-4)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, LARS)
    assert trainer.optimizer.param_groups[0]["eta"] == 1e-3
    assert trainer.optimizer.param_groups[0]["weight_decay"] == 1e-4


def test_a_second_trainer_may_take_the_same_model(tmp_path):
    first = plain(tmp_path, optim="clars", max_steps=1)
    first.train()
    second = Trainer(first.model, first.args, train_dataset=dataset(64))
    second.train()
    assert second.optimizer.optimizer.norms is not first.optimizer.optimizer.norms


def test_defaults_made_for_adamw_are_pointed_out(tmp_path):
    with (
        pytest.warns(UserWarning, match=r"learning_rate=5e-05 is transformers' default for AdamW"),
        pytest.warns(UserWarning, match=r"max_grad_norm=1\.0 clips the gradient but not the denominator"),
    ):
        plain(tmp_path, optim="clars", learning_rate=5e-5, max_grad_norm=1.0).create_optimizer()


@pytest.mark.parametrize(
    ("optim_args", "message"),
    [
        ("etta=0.1", "'etta' is unknown to optim='clars'; did you mean 'eta'?"),
        ("eta=big", "eta='big' is not a number"),
        ("eta=-1", "eta=-1.0 must be a finite number > 0"),
        ("momentum=nan", "momentum=nan must be in"),
        ("norm_samples=1.5", "norm_samples='1.5' is not a whole number"),
        ("norm_samples=0", "norm_samples=0 must be at least 1"),
        ("mode=exact", "mode='exact' is unknown: choose one of per_sample, subset, micro_batch"),
        ("decay_in_denominator=maybe", "must be true or false"),
    ],
)
def test_bad_optim_args(tmp_path, optim_args, message):
    with pytest.raises(UserError, match=message):
        plain(tmp_path, optim="clars", optim_args=optim_args).create_optimizer()
    with pytest.raises(UserError, match=message):
        ClarsTrainingArguments(output_dir=str(tmp_path), optim_args=optim_args, use_cpu=True)


def test_lars_takes_no_mode(tmp_path):
    with pytest.raises(UserError, match="'mode' is unknown to optim='lars'"):
        plain(tmp_path, optim="lars", optim_args="mode=subset").create_optimizer()


def test_deepspeed_is_refused_before_anything_is_built(tmp_path, monkeypatch):
    with pytest.raises(UserError, match="cannot run under DeepSpeed"):
        ClarsTrainingArguments(output_dir=str(tmp_path), deepspeed={"zero_optimization": {"stage": 2}}, use_cpu=True)
    trainer = plain(tmp_path, optim="clars")
    monkeypatch.setenv("ACCELERATE_USE_DEEPSPEED", "true")
    with pytest.raises(UserError, match="cannot run under DeepSpeed"):
        trainer.create_optimizer()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "clarz"}, "optim='clarz' is unknown; did you mean 'clars'"),
        ({"learning_rate": math.nan}, "learning_rate=nan must be a finite number"),
        ({"learning_rate": -1.0}, "learning_rate=-1.0 must be"),
        ({"eta": -0.1}, "eta=-0.1 must be"),
        ({"momentum": 1.0}, "momentum=1.0 must be"),
        ({"weight_decay": math.nan}, "weight_decay=nan must be"),
        ({"base_batch_size": 0}, "base_batch_size=0 must be"),
        ({"norm_mode": "all"}, "mode='all' is unknown"),
        ({"total_batch_size": 100}, "total_batch_size=100"),
        ({"total_batch_size": 64, "gradient_accumulation_steps": 3}, "leave that out"),
    ],
)
def test_bad_training_arguments(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        ClarsTrainingArguments(output_dir=str(tmp_path), use_cpu=True, **options)


def test_derived_training_arguments(tmp_path):
    args = ClarsTrainingArguments(str(tmp_path), total_batch_size=16384, per_device_train_batch_size=256, use_cpu=True)
    assert args.gradient_accumulation_steps == 64
    assert args.learning_rate == 0.1 * 16384 / 128
    assert args.optimizer_options().eta == 1e-2
    assert (args.max_grad_norm, args.logging_nan_inf_filter) == (0.0, False)
    assert args.accelerator_config.dispatch_batches is False
    assert args.lr_scheduler_kwargs == {"power": 2.0}
    given = ClarsTrainingArguments(str(tmp_path), optim="lars", learning_rate=25.0, use_cpu=True)
    assert (given.learning_rate, given.optimizer_options().eta, given.total_batch_size) == (25.0, 1e-3, 8)
    assert ClarsTrainingArguments(**{k: v for k, v in given.to_dict().items() if v is not None}).learning_rate == 25.0
