"""`optim="clars"` in plain transformers."""

import math
import re
from dataclasses import fields

import pytest
import torch
from timm.optim import Lamb
from torch import nn
from transformers import Trainer, TrainingArguments, trainer_optimizer
from transformers.training_args import OptimizerNames

import hf_clars
from hf_clars import CLARS, LARS, NAG, ClarsTrainer, ClarsTrainingArguments, UserError

from .helpers.models import Classifier, dataset
from .helpers.training import logged


def plain(tmp_path, **options) -> Trainer:
    options = {"learning_rate": 1.0, "max_grad_norm": 0, "report_to": [], "use_cpu": True, **options}
    return Trainer(Classifier(), TrainingArguments(output_dir=str(tmp_path), **options), train_dataset=dataset(64))


def test_the_names_are_among_transformers_own():
    assert callable(trainer_optimizer.is_optimizer_factory)
    for name in ("clars", "lars", "mnag", "adascale", "lamb"):
        member = OptimizerNames(name)
        assert isinstance(member, OptimizerNames)
        assert (member.value, member, str.__str__(member)) == (name, name, name)
        assert member in list(OptimizerNames)
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
    group, bias_and_norm = optimizer.param_groups
    assert (group["eta"], group["momentum"], group["weight_decay"]) == (0.02, 0.8, 1e-3)
    assert (bias_and_norm["layer_adaptation"], bias_and_norm["weight_decay"]) == (False, 0.0)
    assert (optimizer.norms.mode, optimizer.norms.norm_samples, optimizer.norms.total_batch_size) == ("subset", 16, 32)
    losses = logged(trainer, "loss")
    assert losses[-1][1] < losses[0][1]


@pytest.mark.parametrize(("optim", "kind"), [("lars", LARS), ("mnag", NAG), ("lamb", Lamb)])
def test_plain_trainer_trains_with_the_others(tmp_path, optim, kind):
    trainer = plain(tmp_path, optim=optim, learning_rate=0.01, num_train_epochs=6, weight_decay=1e-4, logging_steps=1)
    trainer.train()
    assert isinstance(trainer.optimizer.optimizer, kind)
    group = trainer.optimizer.param_groups[0]
    assert group["weight_decay"] == 1e-4
    if optim == "lars":
        assert group["eta"] == 1e-3
    losses = logged(trainer, "loss")
    assert losses[-1][1] < losses[0][1]


@pytest.mark.parametrize("name", ["lars", "mnag"])
def test_a_class_that_takes_any_groups(tmp_path, name):
    """As trainers ask for it that build groups themselves (sentence-transformers: of the loss's parameters, too)."""
    trainer = plain(tmp_path, optim=name, optim_args="momentum=0.5", weight_decay=1e-3)
    cls, keywords = trainer.get_optimizer_cls_and_kwargs(trainer.args, trainer.model)
    assert cls is {"lars": LARS, "mnag": NAG}[name]
    assert not trainer_optimizer.is_optimizer_factory(cls)
    groups = [{"params": [p], "weight_decay": 0.0} for p in trainer.model.parameters()]
    optimizer = cls(groups, **keywords)
    assert [g["weight_decay"] for g in optimizer.param_groups] == [0.0] * len(groups)
    assert [optimizer.defaults[key] for key in ("lr", "momentum", "weight_decay")] == [1.0, 0.5, 1e-3]


@pytest.mark.parametrize("name", ["clars", "lars", "mnag"])
def test_groups_of_a_trainer_of_its_own_kind(tmp_path, name):
    class OwnGroups(Trainer):
        def get_optimizer_cls_and_kwargs(self, args, model=None):
            cls, keywords = Trainer.get_optimizer_cls_and_kwargs(args, model)
            slow, *rest = model.parameters()
            return cls, {**keywords, "optimizer_dict": [{"params": [slow], "lr": 0.25}, {"params": rest}]}

    first = plain(tmp_path, optim=name, max_steps=2)
    trainer = OwnGroups(first.model, first.args, train_dataset=dataset(64))
    trainer.create_optimizer()
    assert [g["lr"] for g in trainer.optimizer.param_groups] == [0.25, 1.0]
    trainer.train()


class Mixed(Classifier):
    """Parameters about which names and module types differ."""

    def __init__(self):
        super().__init__()
        self.bn1 = nn.BatchNorm1d(3)
        self.planes = nn.LayerNorm((2, 3))
        self.rel_bias = nn.Linear(3, 3)


def by_name(trainer, option):
    names = {p: n for n, p in trainer.model.named_parameters()}
    return {names[p]: group[option] for group in trainer.create_optimizer().param_groups for p in group["params"]}


@pytest.mark.parametrize("bias_and_norm", ["eta", "mlperf", "authors", "paper"])
def test_clars_trainer_decides_by_module_type(tmp_path, bias_and_norm):
    args = ClarsTrainingArguments(
        str(tmp_path), optim="lars", bias_and_norm=bias_and_norm, weight_decay=0.1,
        optim_args="weight_decay=0.2", use_cpu=True, report_to=[],
    )  # fmt: skip
    trainer = ClarsTrainer(Mixed(), args, train_dataset=dataset(16))
    assert args.weight_decay == 0.2
    weights = {n for n, p in trainer.model.named_parameters() if p.ndim > 1} - {"planes.weight", "planes.bias"}
    assert {n for n, adapted in by_name(trainer, "layer_adaptation").items() if adapted} == weights
    decayed = {n for n, decay in by_name(trainer, "weight_decay").items() if decay == 0.2}
    assert decayed == (
        weights if bias_and_norm in ("eta", "mlperf") else {n for n, _ in trainer.model.named_parameters()}
    )


@pytest.mark.parametrize("name", ["lars", "mnag"])
def test_a_plain_trainer_decays_no_vector(tmp_path, name):
    args = TrainingArguments(str(tmp_path), optim=name, learning_rate=1.0, weight_decay=0.5, report_to=[], use_cpu=True)
    trainer = Trainer(Mixed(), args, train_dataset=dataset(16))
    optimizer = trainer.create_optimizer()
    before = {n: p.detach().clone() for n, p in trainer.model.named_parameters()}
    for p in trainer.model.parameters():
        p.grad = torch.zeros_like(p)
    optimizer.step()
    moved = {n for n, p in trainer.model.named_parameters() if not torch.equal(p, before[n])}
    assert moved == {
        n for n, p in trainer.model.named_parameters() if p.ndim > 1 and "bias" not in n and "planes" not in n
    }


def test_options_that_the_groups_of_a_plain_trainer_cannot_honour(tmp_path):
    with pytest.raises(UserError, match=r"weight_decay=0\.001 has no effect.*give weight_decay to TrainingArguments"):
        plain(tmp_path, optim="lars", optim_args="weight_decay=1e-3").create_optimizer()
    with pytest.warns(UserWarning, match=r"bias_and_norm='authors' decays biases .* not decayed here"):
        plain(tmp_path, optim="lars", optim_args="bias_and_norm=authors", weight_decay=0.1).create_optimizer()


@pytest.mark.parametrize(
    ("optim", "optim_args", "expected"),
    [
        ("lars", "", True),
        ("lars", "decay_in_denominator=false", False),
        ("clars", "", False),
        ("clars", "decay_in_denominator=true", True),
    ],
)
def test_where_decay_is_in_the_denominator(tmp_path, optim, optim_args, expected):
    trainer = plain(tmp_path, optim=optim, optim_args=optim_args)
    assert trainer.create_optimizer().defaults["decay_in_denominator"] is expected
    field = {"decay_in_denominator": expected} if optim_args else {}
    args = ClarsTrainingArguments(str(tmp_path), optim=optim, use_cpu=True, report_to=[], **field)
    own = ClarsTrainer(Classifier(), args, train_dataset=dataset(16)).create_optimizer()
    assert own.defaults["decay_in_denominator"] is expected
    bare = {"clars": lambda p: CLARS(p, norms={}), "lars": LARS}[optim](Classifier().parameters())
    assert bare.defaults["decay_in_denominator"] is (optim == "lars")


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
        ("Eta=0.1", "did you mean 'eta'"),
        ("momentun=0.1", "did you mean 'momentum'"),
        ("learnin_rate=1", "did you mean learning_rate, a setting of TrainingArguments, to give beside optim_args"),
        ("learning_rate=1", "'learning_rate' .*it is a setting of TrainingArguments: give learning_rate beside"),
        ("lr=1", "give learning_rate, which is γ_scale, beside optim_args"),
        ("max_grad_norm=0", "it is a setting of TrainingArguments: give max_grad_norm beside"),
        ("total_batch_size=64", "it is a setting of ClarsTrainingArguments: give total_batch_size beside"),
        ("trust_coefficient=1", "its name here is 'eta'"),
        ("betas=0.9", "its name here is 'momentum'"),
        ("always_adapt=true", "its name here is 'bias_and_norm'"),
        ("eps=1e-8", "nothing is added to denominators; it takes eta, momentum"),
        ("nesterov=false", "momentum is Nesterov's without dampening"),
        ("nonsense=1", "; it takes eta, momentum, weight_decay"),
        ("mode=persample", "mode='persample' is unknown; did you mean 'per_sample'"),
        ("bias_and_norm=mlperff", "bias_and_norm='mlperff' is unknown; did you mean 'mlperf'"),
        ("untracked=errors", "untracked='errors' is unknown; did you mean 'error'"),
        ("eta=big", "eta='big' is not a number"),
        ("eta=-1", "eta=-1.0 must be a finite number > 0"),
        ("momentum=nan", "momentum=nan must be in"),
        ("norm_samples=1.5", "norm_samples='1.5' is not a whole number"),
        ("norm_samples=0", "norm_samples=0 must be at least 1"),
        ("mode=exact", "mode='exact' is unknown; choose one of per_sample, subset, micro_batch"),
        ("decay_in_denominator=maybe", "must be true or false"),
    ],
)
def test_bad_optim_args(tmp_path, optim_args, message):
    with pytest.raises(UserError, match=message):
        plain(tmp_path, optim="clars", optim_args=optim_args).create_optimizer()
    with pytest.raises(UserError, match=message):
        ClarsTrainingArguments(output_dir=str(tmp_path), optim_args=optim_args, use_cpu=True)


@pytest.mark.parametrize(
    ("optim", "optim_args", "message"),
    [
        ("lars", "mode=subset", "'mode' is unknown to optim='lars'; it is for clars; it takes eta, momentum"),
        ("lars", "norm_samples=8", "it is for clars; it takes eta"),
        ("mnag", "eta=0.1", "it is for clars, lars; it takes momentum, weight_decay"),
        ("mnag", "trust_coefficient=0.1", "mnag has no such thing; it takes momentum, weight_decay"),
        ("adascale", "decay_in_denominator=true", "it is for clars, lars; it takes momentum, weight_decay"),
    ],
)
def test_keys_that_another_optimizer_takes(tmp_path, optim, optim_args, message):
    with pytest.raises(UserError, match=message):
        plain(tmp_path, optim=optim, optim_args=optim_args).create_optimizer()


def test_keys_are_documented():
    from hf_clars.trainer.arguments.options import OptimizerOptions

    documented = re.findall(r"^ {8}(\w+): ", OptimizerOptions.__doc__, re.MULTILINE)
    assert documented == [f.name for f in fields(OptimizerOptions)]


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
        ({"mode": "all"}, "mode='all' is unknown"),
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
    assert args.learning_rate == 10
    assert args.optimizer_options().eta == 1e-2
    assert (args.max_grad_norm, args.logging_nan_inf_filter) == (0.0, False)
    assert args.accelerator_config.dispatch_batches is False
    assert args.lr_scheduler_kwargs == {"power": 2.0}
    given = ClarsTrainingArguments(str(tmp_path), optim="lars", learning_rate=25.0, use_cpu=True)
    assert (given.learning_rate, given.optimizer_options().eta, given.total_batch_size) == (25.0, 1e-3, 8)
    assert ClarsTrainingArguments(**{k: v for k, v in given.to_dict().items() if v is not None}).learning_rate == 25.0


RESUMED = {
    "the same": ({}, None),
    "another optimizer": ({"optim": "lars", "optim_args": None}, "of an optimizer with decay_in_denominator=False"),
    "one of one rate": ({"optim": "mnag", "optim_args": None}, "is of an optimizer with uniform=False, not True"),
    "another eta": ({"optim_args": "eta=0.05,weight_decay=0.1"}, "with eta=0.02, not 0.05, and transformers.Trainer"),
    "another decay": ({"optim_args": "eta=0.02,weight_decay=0.2"}, "with weight_decay=0.1, not 0.2"),
    "no decay": ({"optim_args": "eta=0.02"}, "with weight_decay=0.1, not 0.0"),
    "another rule": ({"optim_args": "eta=0.02,weight_decay=0.1,bias_and_norm=mlperf"}, "with bias_and_norm='eta', not"),
    "from AdamW": ({"first": "adamw_torch"}, r"the state of CLARS lacks .*: it is of another optimizer, or another v"),
}  # fmt: skip


@pytest.mark.parametrize("name", RESUMED)
def test_plain_trainer_resumes_with_the_options_that_it_had(tmp_path, name):
    """`Trainer` goes on with those of the checkpoint, whatever its arguments say."""
    changed, message = RESUMED[name]
    first = changed.get("first", "clars")
    options = {"max_steps": 2, "save_steps": 1, "per_device_train_batch_size": 16}
    of_clars = {"optim": "clars", "optim_args": "eta=0.02,weight_decay=0.1"}
    plain(tmp_path, **options, **(of_clars if first == "clars" else {"optim": first})).train()
    resumed = plain(tmp_path, **options, **{**of_clars, **{k: v for k, v in changed.items() if k != "first"}})
    if message is None:
        resumed.train(resume_from_checkpoint=True)
        resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))
        assert resumed.state.global_step == 2
    else:
        with pytest.raises(UserError, match=message):
            resumed.train(resume_from_checkpoint=str(tmp_path / "checkpoint-1"))


def test_an_option_that_stands_twice_is_refused(tmp_path):
    with pytest.raises(UserError, match=r"eta=0.02': 'eta' stands twice"):
        plain(tmp_path, optim="clars", optim_args="eta=0.01,eta=0.02", max_steps=1).train()
