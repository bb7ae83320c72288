"""`optim="clars"` and `optim="lars"` for every `transformers.Trainer`.

transformers keeps optimizer names in an enum and their builders in a dictionary, and offers no public way to add to
either. This file is the one place that reaches for them; tests/test_registration.py fails when they move.
"""

import warnings
from typing import Any

from torch import nn
from transformers import trainer_optimizer
from transformers.training_args import OptimizerNames, TrainingArguments

from ..errors import UserError
from ..norms import PerSampleNorms
from ..optimizers import CLARS, LARS, LayerwiseOptimizer, parameter_groups
from .options import OPTIMIZERS, OptimizerOptions, refuse_deepspeed


def register() -> None:
    """Make transformers know both names. Doing it twice changes nothing."""
    for name, handler in (("clars", _clars_handler), ("lars", _lars_handler)):
        trainer_optimizer._OPTIMIZER_HANDLERS[_member(name)] = handler


def _member(name: str) -> OptimizerNames:
    if name in OptimizerNames._value2member_map_:
        return OptimizerNames(name)
    member = str.__new__(OptimizerNames, name)
    member._name_ = name.upper()
    member._value_ = name
    OptimizerNames._member_map_[member._name_] = member
    OptimizerNames._member_names_.append(member._name_)
    OptimizerNames._value2member_map_[name] = member
    return member


def resolve_options(args: TrainingArguments, optim_args: dict[str, str]) -> OptimizerOptions:
    """Options of a run: those of `optim_args`, else of `ClarsTrainingArguments`' fields, else the defaults."""
    name = str(getattr(args.optim, "value", args.optim))
    given = getattr(args, "optimizer_options", None)
    base = given() if given is not None else OptimizerOptions(eta=OPTIMIZERS[name], weight_decay=args.weight_decay)
    return base.override(name, optim_args)


def _clars_handler(context: Any) -> tuple[Any, dict[str, Any]]:
    return _handle(context, _build_clars)


def _lars_handler(context: Any) -> tuple[Any, dict[str, Any]]:
    return _handle(context, _build_lars)


def _handle(context: Any, build: Any) -> tuple[Any, dict[str, Any]]:
    args = context.args
    refuse_deepspeed(args.deepspeed)
    options = resolve_options(args, context.optim_args)
    if not hasattr(args, "optimizer_options"):
        _check_plain_arguments(args, build is _build_clars)
    # transformers calls the first element, and the result of that with the model and the keywords.
    keywords = {"lr": args.learning_rate, "options": options, "total_batch_size": _total_batch_size(args)}
    return lambda: build, keywords


def _total_batch_size(args: TrainingArguments) -> int:
    return args.train_batch_size * args.gradient_accumulation_steps * args.world_size


def _check_plain_arguments(args: TrainingArguments, is_clars: bool) -> None:
    """Defaults of plain `TrainingArguments` that were made for AdamW."""
    if is_clars and args.mixed_precision == "fp16":
        raise UserError(
            "optim='clars' with fp16=True needs ClarsTrainer and ClarsTrainingArguments, which know the loss scale; "
            "or use bf16=True"
        )
    if args.learning_rate == TrainingArguments.learning_rate:
        warnings.warn(
            f"learning_rate={args.learning_rate} is transformers' default for AdamW; as γ_scale of CLARS or LARS it "
            "hardly moves the weights. A start is 0.1 × batch size / 128",
            stacklevel=2,
        )
    if is_clars and args.max_grad_norm > 0:
        warnings.warn(
            f"max_grad_norm={args.max_grad_norm} clips the gradient but not the denominator of CLARS's learning rate; "
            "set max_grad_norm=0",
            stacklevel=2,
        )


def _build_clars(
    model: nn.Module, *, lr: float, options: OptimizerOptions, total_batch_size: int
) -> LayerwiseOptimizer:
    PerSampleNorms.detach_all(model)  # an earlier Trainer's
    norms = PerSampleNorms(
        model,
        options.mode,
        options.norm_samples,
        total_batch_size=total_batch_size,
        vectors=options.vectors == "paper",
    )
    return CLARS(
        parameter_groups(model, options.weight_decay, options.vectors),
        lr,
        momentum=options.momentum,
        eta=options.eta,
        norms=norms,
        vectors=options.vectors,
        decay_in_denominator=options.decay_in_denominator,
    )


def _build_lars(model: nn.Module, *, lr: float, options: OptimizerOptions, total_batch_size: int) -> LayerwiseOptimizer:
    return LARS(
        parameter_groups(model, options.weight_decay, options.vectors),
        lr,
        momentum=options.momentum,
        eta=options.eta,
        vectors=options.vectors,
        decay_in_denominator=options.decay_in_denominator,
    )
