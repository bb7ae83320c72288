"""Settings that would have no effect beside others: each is refused in a line, and none that has one is."""

import dataclasses
import json

import pytest
from transformers import TrainingArguments

from hf_clars import ClarsTrainer, ClarsTrainingArguments, UserError
from hf_clars.configuration import parse
from hf_clars.image_classification.arguments import RecipeArguments, refuse_unused
from hf_clars.trainer.arguments.without_effect import without_effect

from .helpers.models import dataset
from .helpers.training import arguments, seeded

# What would be ignored, the setting that is named, and what beside it gives it an effect.
PAIRS = [
    ({"eval_steps": 3, "eval_strategy": "epoch"}, "eval_steps=3", {"eval_strategy": "steps"}),
    ({"eval_steps": 3}, "eval_steps=3", {"eval_strategy": "steps"}),
    ({"save_steps": 3, "save_strategy": "epoch"}, "save_steps=3", {"save_strategy": "steps"}),
    ({"logging_steps": 3, "logging_strategy": "epoch"}, "logging_steps=3", {"logging_strategy": "steps"}),
    ({"logging_steps": 3, "logging_strategy": "epoch"}, "logging_steps=3", {"eval_strategy": "steps"}),
    ({"eval_delay": 3}, "eval_delay=3", {"eval_strategy": "epoch"}),
    ({"metric_for_best_model": "accuracy"}, "metric_for_best_model='accuracy'", {"eval_strategy": "epoch"}),
    ({"greater_is_better": True}, "greater_is_better=True",
     {"metric_for_best_model": "accuracy", "eval_strategy": "epoch"}),
]  # fmt: skip
CONTRADICTIONS = [
    ({"load_best_model_at_end": True}, "load_best_model_at_end=True",
     {"eval_strategy": "epoch", "save_strategy": "epoch"}),
    ({"save_strategy": "best", "metric_for_best_model": "loss"}, "save_strategy=best", {"eval_strategy": "epoch"}),
    ({"dataloader_multiprocessing_context": "spawn"}, "dataloader_multiprocessing_context='spawn'",
     {"dataloader_num_workers": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("options", "named", "beside"), [*PAIRS, *CONTRADICTIONS], ids=str)
def test_refused_or_said_alone_and_taken_with_what_gives_it_an_effect(tmp_path, options, named, beside):
    """Steps of another strategy are said: a flag overrides the strategy of a file that has both."""

    def alone():
        return arguments(tmp_path, **{"logging_steps": 500, "remove_unused_columns": False, **options})

    if "_steps" in named:
        refuse_unused(alone())
        assert [text.startswith(f"{named} is for ") for _, text in without_effect(alone())] == [True]
    else:
        with pytest.raises(UserError, match=f"^{named} is for "):
            refuse_unused(alone())
    taken = arguments(tmp_path, **{"logging_steps": 500, **options, **beside})
    assert not list(without_effect(taken))
    again = dataclasses.replace(taken, seed=1)
    assert all(getattr(again, name) == getattr(taken, name) for name in {**options, **beside})


def test_what_follows_from_others_is_nothing_that_was_set(tmp_path):
    """transformers fills in evaluation steps, a metric and its direction: a copy may do without evaluation."""
    args = arguments(tmp_path, eval_strategy="steps", save_strategy="steps", logging_steps=250,
                     load_best_model_at_end=True)  # fmt: skip
    assert (args.eval_steps, args.metric_for_best_model, args.greater_is_better) == (250, "loss", False)
    plain = dataclasses.replace(args, eval_strategy="no", load_best_model_at_end=False)
    assert ClarsTrainingArguments(**json.loads(json.dumps(args.to_dict()))).eval_steps == 250
    assert dataclasses.replace(args, logging_steps=500).eval_steps == 500
    assert plain.eval_strategy == "no"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"accelerator_config": {"split_batches": True}}, "split_batches would divide the batch"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"num_steps": 3}}}, "num_steps would change"),
        ({"accelerator_config": {"gradient_accumulation_kwargs": {"bogus": 3}}}, "unexpected keyword argument 'bogus'"),
        ({"accelerator_config": [1]}, "accelerator_config=.* must be a mapping"),
        ({"fsdp": [1]}, "fsdp=.* must be"),
        ({"debug": {"a": 1}}, "debug=.* must be some of: "),
        ({"debug": "tpu_metrics_debug"}, "debug='tpu_metrics_debug' .* needs a TPU"),
        ({"ddp_backend": "gloo"}, "ddp_backend"),
        ({"torch_compile_backend": "inductr"}, "torch_compile_backend='inductr' is unknown; did you mean 'inductor'?"),
        ({"report_to": "clearml"}, "report_to='clearml' cannot be used: its package is not installed"),
        ({"report_to": ["tensorboard", "mlflow"]}, "report_to=.* its package is not installed"),
        ({"lr_scheduler_kwargs": {"power": -2}}, "lr_scheduler_kwargs={'power': -2}: 0.0 cannot be raised"),
        ({"lr_scheduler_kwargs": {"lr_end": -9.0}}, "becomes a learning rate of -"),
    ],
    ids=str,
)
def test_what_would_end_a_training_in_its_course_is_refused_before_it(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        arguments(tmp_path, **options)


def test_arguments_of_two_trainers(tmp_path):
    """transformers writes into accelerate's settings, which are taken again."""
    args = arguments(tmp_path, total_batch_size=16, accelerator_config={"gradient_accumulation_kwargs": {}})
    ClarsTrainer(seeded(), args, train_dataset=dataset(16))
    assert dataclasses.replace(args, seed=1).total_batch_size == 16


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ddp_bucket_cap_mb": 3, "ddp_timeout": 60}, "no effect with one process: ddp_bucket_cap_mb, ddp_timeout"),
        ({"save_steps": 3, "save_strategy": "no"}, "no effect with save_strategy=no: save_steps"),
        ({"logging_steps": 3, "logging_strategy": "no"}, "no effect with logging_strategy=no: logging_steps"),
        ({"logging_steps": 3, "logging_strategy": "no", "eval_strategy": "steps"}, None),
        ({"logging_steps": 3, "save_steps": 3, "save_strategy": "steps"}, None),
        ({"eval_steps": 3}, "no effect: eval_steps=3 is for eval_strategy=steps: state both, or leave it out"),
    ],
    ids=str,
)
def test_what_the_machine_or_a_switch_leaves_no_effect_is_said(tmp_path, caplog, options, message):
    args = arguments(tmp_path, **options)
    ClarsTrainer(seeded(), args, train_dataset=dataset(16), eval_dataset=dataset(8))
    assert [m for m in caplog.messages if m.startswith("no effect")] == ([message] if message else [])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"activation_checkpointing": True}, "activation_checkpointing=True is nothing that timm's models take"),
        ({"dataloader_in_order": False}, "dataloader_in_order=False is not for streams"),
        ({"hub_strategy": "end"}, "hub_strategy=.* is for push_to_hub"),
        ({"project": "x"}, "project='x' is for report_to=trackio"),
        ({"prediction_loss_only": True, "metric_for_best_model": "accuracy", "eval_strategy": "epoch"},
         "metric_for_best_model='accuracy' does not go with prediction_loss_only"),
    ],
    ids=str,
)  # fmt: skip
def test_image_classification_refuses_what_it_would_ignore(tmp_path, options, message):
    with pytest.raises(UserError, match=message):
        refuse_unused(arguments(tmp_path, remove_unused_columns=False, **options))


@pytest.mark.parametrize("name", ["name", "model_name", "num_classes"])
def test_a_models_name_and_classes_are_settings_of_their_own(name):
    with pytest.raises(UserError, match=f"model_kwargs=.* has '{name}': state (model_name|num_classes) itself"):
        RecipeArguments(model_kwargs={name: 3})


@pytest.mark.parametrize(
    "flags",
    [
        ["--seed", "1", "--seed", "2"],
        ["--seed=1", "--seed", "1"],
        ["--eval_strategy=no", "--eval-strategy", "epoch"],
        ["--logging_first_step", "--logging-first-step=false"],
        ["--dataloader_pin_memory", "false", "--no_dataloader_pin_memory"],
        ["--optim_target_modules", "a", "--seed", "1", "--optim_target_modules", "b"],
    ],
    ids=str,
)
def test_no_flag_stands_twice(tmp_path, flags):
    with pytest.raises(UserError, match=r"--\w+ is given before it, and one of them would be ignored"):
        parse(["--output_dir", str(tmp_path), *flags], TrainingArguments)
