"""`optim="clars"`, `"lars"`, `"mnag"` and `"lamb"` for every `transformers.Trainer`.

transformers keeps optimizer names in an enum and their builders in a dictionary, and offers no public way to add to
either. This file is the one place that reaches for them; tests/test_registration.py fails when they move.
"""

import warnings
from typing import Any

from timm.optim import Lamb
from torch import nn
from transformers import trainer_optimizer
from transformers.training_args import OptimizerNames, TrainingArguments

from ..errors import UserError
from ..norms import PerSampleNorms
from ..optimizers import CLARS, LARS, NAG, AuthorsCLARS, LayerwiseOptimizer, parameter_groups
from .measuring import MeasureWhileTraining
from .options import AUTHORS, OPTIMIZERS, OptimizerOptions, check_lamb, refuse_deepspeed
from .seams import trainer_on_the_stack


def register() -> None:
    """Make transformers know the names. Doing it twice changes nothing."""
    handlers = {"clars": _clars_handler, "lars": _lars_handler, "mnag": _mnag_handler, "lamb": _lamb_handler}
    for name, handler in handlers.items():
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


def _mnag_handler(context: Any) -> tuple[Any, dict[str, Any]]:
    return _handle(context, _build_mnag)


def _lamb_handler(context: Any) -> tuple[Any, dict[str, Any]]:
    """timm's LAMB with the groups that Trainer makes for AdamW, too; vectors, not decayed, then have no trust ratio."""
    refuse_deepspeed(context.args.deepspeed, "LAMB")
    check_lamb(context.optim_args)
    # Clipping is Trainer's business (`max_grad_norm`), and timm's Lamb would clip once more by default.
    return Lamb, {"lr": context.args.learning_rate, **context.adam_kwargs, "max_grad_norm": None}


def _handle(context: Any, build: Any) -> tuple[Any, dict[str, Any]]:
    args = context.args
    refuse_deepspeed(args.deepspeed, "CLARS, LARS and mNAG")
    options = resolve_options(args, context.optim_args)
    if not hasattr(args, "optimizer_options"):
        _check_plain_arguments(args, build is _build_clars)
        if build is _build_clars and options.mode == AUTHORS:
            raise UserError("mode='authors' needs ClarsTrainer and ClarsTrainingArguments, which make its extra passes")
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
            f"learning_rate={args.learning_rate} is transformers' default for AdamW; as γ_scale of CLARS, LARS or mNAG "
            "it hardly moves the weights. A start is 0.1 × batch size / 128",
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
    if options.mode == AUTHORS:
        return AuthorsCLARS(
            parameter_groups(model, options.weight_decay, options.vector_rule),
            lr,
            momentum=options.momentum,
            eta=options.eta,
            vectors=options.vector_rule,
            decay_in_denominator=options.decay_in_denominator,
        )
    norms = PerSampleNorms(
        model,
        options.mode,
        options.norm_samples,
        total_batch_size=total_batch_size,
        vectors=options.vector_rule == "paper",
        untracked=options.untracked,
    )
    if (trainer := trainer_on_the_stack()) is not None:  # which says when a training begins, and when it is over
        norms.detach()
        MeasureWhileTraining.add_to(trainer)
    return CLARS(
        parameter_groups(model, options.weight_decay, options.vector_rule),
        lr,
        momentum=options.momentum,
        eta=options.eta,
        norms=norms,
        vectors=options.vector_rule,
        decay_in_denominator=options.decay_in_denominator,
    )


def _build_lars(model: nn.Module, *, lr: float, options: OptimizerOptions, total_batch_size: int) -> LayerwiseOptimizer:
    return LARS(
        parameter_groups(model, options.weight_decay, options.vector_rule),
        lr,
        momentum=options.momentum,
        eta=options.eta,
        vectors=options.vector_rule,
        decay_in_denominator=options.decay_in_denominator,
    )


def _build_mnag(model: nn.Module, *, lr: float, options: OptimizerOptions, total_batch_size: int) -> LayerwiseOptimizer:
    return NAG(parameter_groups(model, options.weight_decay), lr, momentum=options.momentum)
