"""What is set is used, or refused in a line: every option of optimizers with every optimizer."""

import math
from dataclasses import dataclass
from typing import Annotated, Any

import pytest
import torch
from pydantic import Field

from hf_clars import ClarsTrainer, UserError
from hf_clars.image_classification.arguments import RecipeArguments
from hf_clars.validation.schema import Count, check, one_of

from .helpers.models import dataset
from .helpers.training import arguments, seeded

OPTIMIZERS = (
    "clars", "lars", "mnag", "lamb", "sgd", "adamw_torch", "adamw_torch_fused", "adafactor", "adagrad", "rmsprop",
)  # fmt: skip

# Field → a value that no optimizer has by default, with what else it wants.
FIELDS: dict[str, Any] = {
    "learning_rate": 0.25, "eta": 0.5, "momentum": 0.5, "weight_decay": 0.25, "bias_and_norm": "paper",
    "adam_beta1": 0.5,
    "mode": "micro_batch", "norm_samples": 8, "untracked": "error", "layerwise_epochs": 1.0, "adam_beta2": 0.5,
    "adam_epsilon": 0.25, "optim_target_modules": "all-linear",
}  # fmt: skip
IN_OPTIM_ARGS: dict[str, str] = {
    "eta": "0.5", "momentum": "0.5", "weight_decay": "0.25", "bias_and_norm": "paper", "mode": "micro_batch",
    "norm_samples": "8",
    "untracked": "error", "dampening": "0.5", "nesterov": "true", "alpha": "0.5", "centered": "true", "eps": "0.25",
    "lr_decay": "0.5", "beta1": "0.5", "rank": "4", "lr": "0.25", "betas": "0.5", "capturable": "true",
}  # fmt: skip
WANTS = {"norm_samples": {"mode": "subset"}}
WANTS_IN_OPTIM_ARGS = {"norm_samples": "mode=subset,", "nesterov": "momentum=0.25,"}


def in_force(tmp_path: Any, **options: Any) -> Any:
    """The optimizer as it is: its class, the values of its groups, how it measures, and when it is switched."""
    trainer = ClarsTrainer(seeded(), arguments(tmp_path, **options), train_dataset=dataset(16))
    optimizer = trainer.create_optimizer()
    norms = trainer.norms
    groups = [
        {k: v for k, v in group.items() if k not in ("params", "param_names")} for group in optimizer.param_groups
    ]
    measuring = None if norms is None else (norms.mode, norms.norm_samples, norms.on_untracked)
    return type(optimizer), groups, measuring, trainer.args.layerwise_epochs


def used_or_refused(tmp_path: Any, optim: str, cases: dict[str, tuple[dict, dict]]) -> tuple[set[str], dict[str, str]]:
    """Of settings, each with what it wants beside it: those that change something, and why the others are refused."""
    used, refused, without = set(), {}, {}
    for name, (beside, setting) in cases.items():
        try:
            after = in_force(tmp_path, optim=optim, **{**beside, **setting})
        except UserError as error:
            refused[name] = str(error)
            continue
        if str(beside) not in without:
            without[str(beside)] = in_force(tmp_path, optim=optim, **beside)
        assert after != without[str(beside)], name
        used.add(name)
    return used, refused


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_every_field_is_used_or_refused(tmp_path, optim):
    fields = {**FIELDS, "decay_in_denominator": optim != "lars"}
    wants = WANTS if optim == "clars" else {}
    cases = {name: (wants.get(name, {}), {name: value}) for name, value in fields.items()}
    used, refused = used_or_refused(tmp_path, optim, cases)
    for name, why in refused.items():
        assert why.startswith(f"{name}=")
        assert optim in why
    adam = {"adam_beta1", "adam_beta2", "adam_epsilon"}
    layerwise = {"eta", "momentum", "bias_and_norm", "decay_in_denominator", "layerwise_epochs"}
    assert used - {"learning_rate", "weight_decay"} == {
        "clars": {*layerwise, "mode", "norm_samples", "untracked"}, "lars": layerwise, "mnag": {"momentum"},
        "lamb": adam, "adamw_torch": adam, "adamw_torch_fused": adam,
    }.get(optim, set())  # fmt: skip


@pytest.mark.parametrize("optim", OPTIMIZERS)
def test_all_of_optim_args_is_used_or_refused(tmp_path, optim):
    cases = {}
    for name, value in IN_OPTIM_ARGS.items():
        beside = WANTS_IN_OPTIM_ARGS.get(name, "")
        cases[name] = ({"optim_args": beside.rstrip(",")}, {"optim_args": f"{beside}{name}={value}"})
    used, refused = used_or_refused(tmp_path, optim, cases)
    assert all("optim_args" in why for why in refused.values())
    layerwise = {"eta", "momentum", "weight_decay", "bias_and_norm"}
    assert used == {
        "clars": {*layerwise, "mode", "norm_samples", "untracked"}, "lars": layerwise,
        "mnag": {"momentum", "weight_decay"},
        "sgd": {"momentum", "dampening", "nesterov"}, "adagrad": {"lr_decay", "eps"},
        "rmsprop": {"momentum", "alpha", "eps", "centered"},
    }.get(optim, set())  # fmt: skip


@pytest.mark.parametrize(
    ("optim_args", "message"),
    [
        ("momentum=0.9,momentum=0.8", "'momentum' stands twice"),
        ("momentum=0.9,", "'' is not of the form key=value"),
        ("momentum=0.9=1", "'momentum' is not of the form key=value"),
        ("momentum=fast", "'fast'"),
        ("momentum=-1", "momentum"),
        ("momentum=nan", "momentum='nan' must be a finite number"),
        ("momentum=0.9,nesterov=maybe", "nesterov='maybe' must be true or false"),
        ("weight_decay=0.1", "would be ignored: give weight_decay itself"),
        ("eta=0.1", "'eta' is unknown to optim='sgd'; it takes dampening, momentum, nesterov"),
    ],
)
def test_optim_args_of_transformers_optimizers(tmp_path, optim_args, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, optim="sgd", optim_args=optim_args)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"optim": "sgd", "momentum": 0.9}, r"momentum=0.9 is nothing that optim='sgd' takes.*optim_args: momentum="),
        ({"optim": "mnag", "eta": 3.0}, "eta=3.0 is nothing that optim='mnag' takes"),
        ({"optim": "adamw_torch", "eta": -3.0}, "eta=-3.0 must be greater than 0"),
        ({"optim": "mnag", "optim_args": "eta=0.1"}, "'eta' is unknown to optim='mnag'.*takes momentum, weight_decay"),
        ({"optim": "mnag", "layerwise_epochs": 1.0}, "layerwise_epochs=1.0 is for clars and lars, not mnag"),
        ({"optim": "lamb", "optim_args": "eps=1e-6"}, "'eps' is unknown to optim='lamb', which takes none; its"),
        ({"optim": "lars", "mode": "authors"}, "mode='authors' is nothing that optim='lars' takes"),
        ({"layerwise_epochs": -1.0}, "layerwise_epochs=-1.0 must be at least 0"),
        ({"mode": "authors", "fp16": True}, "mode='authors' with fp16=True"),
        ({"optim_args": "mode=authors", "fp16": True}, "mode='authors' with fp16=True"),
        ({"bias_and_norm": "raw"}, "bias_and_norm='raw' is unknown"),
        ({"norm_samples": 8}, "norm_samples=8 is for mode=subset"),
        ({"mode": "authors", "untracked": "error"}, "untracked=error is nothing that mode=authors"),
        ({"fp16": True}, "fp16=True needs a GPU"),
        ({"fsdp": "full_shard"}, "fsdp=.* is for several processes"),
        ({"optim": "lomo"}, "optim='lomo' cannot be made: .*`lomo_optim`"),
        ({"optim": "galore_adamw"}, "optim='galore_adamw' cannot be made: .*`galore_torch`"),
        ({"accelerator_config": {"x": 1}}, "accelerator_config={'x': 1} cannot be used: .*'x'"),
        ({"max_steps": 0}, "max_steps=0 must be"),
        ({"num_train_epochs": None}, "num_train_epochs=None must be a valid number"),
        ({"seed": 2**32}, "seed=4294967296 must be less than 4294967296"),
        ({"report_to": ["bogus"]}, r"report_to=\['bogus'\] is unknown"),
        ({"log_level": "wrning"}, "log_level='wrning' is unknown; did you mean 'warning'"),
        ({"torch_compile_mode": "fast"}, "torch_compile_mode='fast' is unknown"),
        ({"weight_decay": math.inf}, "weight_decay=inf must be a finite number"),
        ({"learning_rate": 1e308}, r"learning_rate=1e\+308 must be at most 1"),
        ({"lr_milestones": [1.0, "x"]}, r"lr_milestones=\[1.0, 'x'\] must be a valid number"),
    ],
)  # fmt: skip
def test_what_would_be_ignored_or_fail_later(tmp_path, options, message):
    with pytest.raises(UserError, match=message) as refused:
        arguments(tmp_path, **options)
    assert "\n" not in str(refused.value)


@pytest.mark.parametrize("optim", ["adamw_torch", "lamb", "sgd", "adafactor"])
def test_linear_scaling_is_not_assumed_of_other_optimizers(tmp_path, optim):
    sizes = {"total_batch_size": 16384, "per_device_train_batch_size": 64}
    with pytest.raises(UserError, match=f"optim={optim} has no learning rate of its own here: state learning_rate"):
        arguments(tmp_path, optim=optim, learning_rate=None, **sizes)
    assert arguments(tmp_path, optim=optim, learning_rate=1e-3, **sizes).learning_rate == 1e-3
    scaled = arguments(tmp_path, optim=optim, learning_rate=None, base_learning_rate=1e-4, **sizes)
    assert scaled.learning_rate == pytest.approx(1e-4 * 128)
    assert arguments(tmp_path, optim="mnag", learning_rate=None, **sizes).learning_rate == pytest.approx(12.8)


@dataclass
class Sample:
    number: Annotated[float, Field(gt=0)] = 1.0
    count: Count = 1
    word: Annotated[str, one_of(("one", "two"))] = "one"
    some: list[float] | None = None

    def __post_init__(self) -> None:
        check(self)


def test_values_are_what_their_types_make_of_them():
    sample = Sample("1e-2", 2.0, "two", ("1", torch.tensor(2.0)))
    assert (sample.number, sample.count, sample.word, sample.some) == (0.01, 2, "two", [1.0, 2.0])
    assert isinstance(sample.count, int)


def test_what_has_its_type_already_stays_itself():
    class Known(float):
        """A number that knows where it is from."""

    number = Known(2.0)
    assert Sample(number).number is number


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"number": 0}, "number=0 must be greater than 0"),
        ({"number": math.nan}, "number=nan must be a finite number"),
        ({"count": 1.5}, "count=1.5 must be a valid integer, got a number with a fractional part"),
        ({"count": 0}, "count=0 must be at least 1"),
        ({"word": "tow"}, "word='tow' is unknown; did you mean 'two'?"),
        ({"word": b"\xff"}, r"word=b'\xff' must be a valid string, unable to parse raw data as a unicode string"),
        ({"word": "x" * 9999}, f"word='{'x' * 99}… is unknown; choose one of one, two"),
        ({"some": {"a": 1}}, "some={'a': 1} must be a valid list"),
    ],
)
def test_one_line_for_each_mistake(given, message):
    with pytest.raises(UserError) as refused:
        Sample(**given)
    assert str(refused.value) == message


def test_a_recipes_own_settings():
    for options, message in (
        ({"eval_crop": 0}, "eval_crop=0 must be at least 0.01"),
        ({"image_size": 100_000}, "image_size=100000 must be at most 8192"),
        ({"model_kwargs": {1: 2}}, "model_kwargs={1: 2} must be a valid string"),
        ({"data_on_device": None}, "data_on_device=None must be a valid boolean"),
    ):
        with pytest.raises(UserError, match=message):
            RecipeArguments(**options)
