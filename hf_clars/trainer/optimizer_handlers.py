"""What builds the optimizers that `registration.py` names, for every `transformers.Trainer`."""

from pathlib import Path
from typing import Any

from timm.optim import Lamb
from torch import nn
from transformers import TrainingArguments

from ..errors import UserError
from ..norms import PerSampleNorms
from ..optimizers import CLARS, LARS, NAG, AdaScale, AuthorsCLARS, LayerwiseOptimizer, parameter_groups
from ..runtime import users_line
from ..starting_rate import BASE_BATCH_SIZE, START, linear_scaling
from .arguments.options import AUTHORS, OptimizerOptions, check_lamb, parse_optim_args, refuse_deepspeed
from .callbacks.resumed_options import RefuseOtherOptions
from .checkpoints.model_tensors import refuse_other_names
from .measuring import MeasureWhileTraining
from .seams import resumed_from, trainer_on_the_stack


def _options_of(args: TrainingArguments, optim_args: dict[str, str]) -> OptimizerOptions:
    own = getattr(args, "optimizer_options", None)
    name = str(getattr(args.optim, "value", args.optim))
    return own() if own else OptimizerOptions.in_force(name, {"weight_decay": args.weight_decay}, optim_args)


def clars(context: Any) -> tuple[Any, dict[str, Any]]:
    args, options = context.args, _options(context)
    if not hasattr(args, "optimizer_options") and options.mode == AUTHORS:
        raise UserError("mode='authors' needs ClarsTrainer and ClarsTrainingArguments, which make its extra passes")
    # transformers calls the first element, and the result of that with the model and the keywords.
    keywords = {"lr": args.learning_rate, "options": options, "total_batch_size": _total_batch_size(args)}
    return lambda: _build_clars, keywords


def lars(context: Any) -> tuple[Any, dict[str, Any]]:
    options = _options(context)
    _check_groups_of_trainer(context, options)
    return LARS, {"lr": context.args.learning_rate, **options.layerwise_keywords()}


def mnag(context: Any) -> tuple[Any, dict[str, Any]]:
    options = _options(context)
    _check_groups_of_trainer(context, options)
    return NAG, {
        "lr": context.args.learning_rate,
        "momentum": options.momentum,
        "weight_decay": options.weight_decay,
    }


def adascale(context: Any) -> tuple[Any, dict[str, Any]]:
    args, options = context.args, _options(context)
    base = getattr(args, "base_batch_size", None) or BASE_BATCH_SIZE
    return lambda: _build_adascale, {"lr": args.learning_rate, "options": options, "base_batch_size": base}


def lamb(context: Any) -> tuple[Any, dict[str, Any]]:
    """timm's LAMB with the groups that Trainer makes for AdamW, too; those not decayed then have no trust ratio."""
    refuse_deepspeed(context.args.deepspeed, "LAMB")
    check_lamb(context.optim_args)
    # Clipping is Trainer's business (`max_grad_norm`), and timm's Lamb would clip once more by default.
    return Lamb, {"lr": context.args.learning_rate, **context.adam_kwargs, "max_grad_norm": None}


def _total_batch_size(args: TrainingArguments) -> int:
    return int(args.train_batch_size * args.gradient_accumulation_steps * args.world_size)


def _options(context: Any) -> OptimizerOptions:
    args = context.args
    refuse_deepspeed(args.deepspeed, "CLARS, LARS, mNAG and AdaScale")
    plain = not hasattr(args, "optimizer_options")
    if plain:
        parse_optim_args(args.optim_args)  # of two values for one key transformers takes the last
    options = _options_of(args, context.optim_args)
    if plain:
        _check_plain_arguments(args, str(getattr(args.optim, "value", args.optim)))
        _check_resumed()
    return options


def _check_groups_of_trainer(context: Any, options: OptimizerOptions) -> None:
    """Trainer makes the parameter groups of LARS and mNAG, which say what is decayed and by how much."""
    args = context.args
    if options.weight_decay != args.weight_decay:
        raise UserError(
            f"optim_args: weight_decay={options.weight_decay} has no effect on the groups that Trainer makes: "
            "give weight_decay to TrainingArguments"
        )
    if (
        options.weight_decay
        and options.bias_and_norm in ("authors", "paper")
        and not hasattr(args, "optimizer_options")
    ):
        users_line.warn(
            f"bias_and_norm={options.bias_and_norm!r} decays biases and norm weights, which Trainer exempts by name: "
            "they are not decayed here, and are in ClarsTrainer"
        )


def _check_resumed() -> None:
    """Trainer makes its optimizer when it has loaded a checkpoint, as far as that fitted the model."""
    trainer, checkpoint = trainer_on_the_stack(), resumed_from()
    if checkpoint is None or trainer is None:
        return
    if not trainer.is_fsdp_enabled:
        refuse_other_names(Path(checkpoint), trainer.model)
    RefuseOtherOptions.add_to(trainer)


def _check_plain_arguments(args: TrainingArguments, optim: str) -> None:
    """Defaults of plain `TrainingArguments` that were made for AdamW."""
    if optim == "clars" and args.mixed_precision == "fp16":
        raise UserError(
            "optim='clars' with fp16=True needs ClarsTrainer and ClarsTrainingArguments, which know the loss scale; "
            "or use bf16=True"
        )
    if args.learning_rate == TrainingArguments.learning_rate:
        start = START if optim in ("clars", "lars") else f"A start is {linear_scaling(_total_batch_size(args)):g}"
        users_line.warn(
            f"learning_rate={args.learning_rate} is transformers' default for AdamW; with optim={optim!r} it hardly "
            f"moves the weights. {start}"
        )
    if optim == "clars" and args.max_grad_norm > 0:
        users_line.warn(
            f"max_grad_norm={args.max_grad_norm} clips the gradient but not the denominator of CLARS's learning rate; "
            "set max_grad_norm=0"
        )


def _build_clars(
    model: nn.Module,
    *,
    lr: float,
    options: OptimizerOptions,
    total_batch_size: int,
    optimizer_dict: list[dict[str, Any]] | None = None,
) -> LayerwiseOptimizer:
    """CLARS for a model; `optimizer_dict` are groups that a trainer of its own kind makes (sentence-transformers)."""
    groups = optimizer_dict or parameter_groups(model, options.weight_decay, options.bias_and_norm)
    if options.mode == AUTHORS:
        return AuthorsCLARS(groups, lr, **options.layerwise_keywords())
    norms = PerSampleNorms(
        model,
        options.mode,
        options.norm_samples or 512,
        total_batch_size=total_batch_size,
        bias_and_norm=options.bias_and_norm == "paper",
        untracked=options.untracked or "stand_in",
    )
    return CLARS(groups, lr, norms=_measuring_while_training(norms), **options.layerwise_keywords())


def _build_adascale(
    model: nn.Module,
    *,
    lr: float,
    options: OptimizerOptions,
    base_batch_size: int,
    optimizer_dict: list[dict[str, Any]] | None = None,
) -> AdaScale:
    """AdaScale for a model; `optimizer_dict` as for CLARS."""
    return AdaScale(
        optimizer_dict or parameter_groups(model, options.weight_decay),
        lr,
        momentum=options.momentum,
        weight_decay=options.weight_decay,
        base_batch_size=base_batch_size,
        norms=_measuring_while_training(PerSampleNorms(model)),
    )


def _measuring_while_training(norms: PerSampleNorms) -> PerSampleNorms:
    """The same, attached from when a Trainer's training begins until it is over; where there is no Trainer, at once."""
    if (trainer := trainer_on_the_stack()) is not None:
        norms.detach()
        MeasureWhileTraining.add_to(trainer)
    return norms
