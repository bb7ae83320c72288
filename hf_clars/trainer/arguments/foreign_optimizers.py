"""Optimizers of transformers beside ours: what they are told is used by them, or refused before anything is built."""

from __future__ import annotations

import math
from collections import UserDict
from typing import Any

import torch
from transformers import TrainingArguments, trainer_optimizer

from ...errors import UserError, one_line
from .options import parse_optim_args

_ADAM = {"adam_beta1": "betas", "adam_beta2": "betas", "adam_epsilon": "eps"}  # field → what of it reaches an optimizer
_TARGETED = ("galore", "apollo")  # those of `optim_target_modules`; they want the model, and so does LOMO
_TRUTH = ("true", "1", "yes", "false", "0", "no")  # a word of another kind is false to transformers


class _Noted(UserDict[str, str]):
    """Notes which of its keys somebody has asked for."""

    def __init__(self, given: dict[str, str]) -> None:
        self.asked: set[str] = set()
        super().__init__(given)

    def __getitem__(self, key: str) -> str:
        self.asked.add(key)
        return super().__getitem__(key)

    def __contains__(self, key: object) -> bool:
        self.asked.add(str(key))
        return super().__contains__(key)

    def __iter__(self) -> Any:  # whoever walks through them, or copies them, has them all
        self.asked.update(self.data)
        return super().__iter__()


def check_foreign_optimizer(args: TrainingArguments, name: str) -> None:
    """Make `args.optim` of a single number, as transformers would.

    Raises:
        UserError: its package is not installed, a value that it refuses, or an option that it would not look at.
    """
    given = parse_optim_args(args.optim_args)
    noted: Any = _Noted(given)
    adam = {"betas": (args.adam_beta1, args.adam_beta2), "eps": args.adam_epsilon}
    lr = args.learning_rate
    context = trainer_optimizer.OptimizerContext(args, None, {"lr": lr}, adam, noted)
    kwargs: dict[str, Any] = {}
    try:
        cls, kwargs = trainer_optimizer._OPTIMIZER_HANDLERS[args.optim](context)
        if isinstance(cls, type) and issubclass(cls, torch.optim.Optimizer):
            cls([torch.nn.Parameter(torch.zeros(1))], **kwargs)
    except (ImportError, ValueError, TypeError, AttributeError) as error:
        if isinstance(error, ImportError) or not name.startswith((*_TARGETED, "lomo", "adalomo")):
            raise UserError(f"optim={name!r} {_told(given)}: {one_line(error)}") from error
    for key, text in given.items():
        if key == "weight_decay":
            raise UserError(f"optim_args: weight_decay={text} would be ignored: give weight_decay itself")
        if key not in noted.asked:
            takes = ", ".join(sorted(noted.asked - {"weight_decay"}))
            hint = f"; it takes {takes}" if takes else ", which takes none"
            raise UserError(f"optim_args: {key!r} is unknown to optim={name!r}{hint}")
        if isinstance(kwargs.get(key), bool) and text.lower() not in _TRUTH:
            raise UserError(f"optim_args: {key}={text!r} must be true or false")
        if isinstance(kwargs.get(key), float) and not math.isfinite(kwargs[key]):
            raise UserError(f"optim_args: {key}={text!r} must be a finite number")
    refuse_adam(args, name, {field for field, made in _ADAM.items() if made in kwargs})
    if args.optim_target_modules is not None and not name.startswith(_TARGETED):
        raise UserError(f"optim_target_modules={args.optim_target_modules!r} is for galore and apollo, not {name}")


def refuse_adam(args: TrainingArguments, name: str, taken: set[str] | frozenset[str] = frozenset()) -> None:
    """Raises `UserError` for a setting of Adam's that an optimizer has no use for."""
    for field in _ADAM.keys() - taken:
        value = getattr(args, field)
        if value != getattr(TrainingArguments, field):
            raise UserError(f"{field}={value!r} is nothing that optim={name!r} takes: leave it out")


def _told(given: dict[str, str]) -> str:
    return f"with optim_args {', '.join(f'{k}={v}' for k, v in given.items())}" if given else "cannot be made"
