"""Options that are others than in the checkpoint: those of now are in force, and one line tells of it.

torch's `load_state_dict` brings back the options of parameter groups, and the base rates of schedules, with the state.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Set
from dataclasses import fields
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR
from transformers import Trainer

from ...errors import UserError
from ...safety.secrets import without_secrets
from ..arguments.derived import plain
from ..measuring import bare
from ..records.description import is_housekeeping

Groups = list[dict[str, Any]]
_NOT_A_FUNCTION_OF_THE_STEP = ("reduce_lr_on_plateau", "greedy")
_OWN_LINES = ("optim",)  # which others compare
_OF_OPTIMIZERS = (
    "optim", "optim_args", "learning_rate", "weight_decay", "adam_beta1", "adam_beta2", "adam_epsilon", "eta",
    "momentum", "bias_and_norm", "decay_in_denominator", "mode", "norm_samples", "untracked", "total_batch_size",
)  # fmt: skip
_HOW_ALONE = ("foreach", "fused", "capturable", "differentiable")  # of a step, which they do not change

logger = logging.getLogger(__name__)


class OptionsOfNow(Trainer):
    """A mix-in for `Trainer`: an optimizer and a schedule that go on keep what they reached, and take the new options.

    That is so on resume, and in a second `train()` whose arguments are others than those of the first.
    """

    options_made_with: Groups | None = None  # of the optimizer at hand, when it was made
    saved_options: Groups | None = None  # those of the checkpoint that is resumed from, if it tells
    told: Set[str] = frozenset()  # arguments that are told to have changed
    _options_of: Any = None
    _arguments: dict[str, Any] | None = None  # that the optimizer was made from

    def create_optimizer(self, model: nn.Module | None = None) -> Optimizer:
        kept, arguments = bare(self.optimizer), {name: getattr(self.args, name) for name in _OF_OPTIMIZERS}
        if kept is not None and self._arguments not in (None, arguments):
            self.optimizer = None
        is_new = self.optimizer is None
        optimizer = super().create_optimizer(model)
        inner = bare(optimizer)
        for group in inner.param_groups:  # a checkpoint, which holds them and the schedule's copies, has plain values
            group.update({key: plain(value) for key, value in group.items()})
        if is_new:
            self._arguments = arguments
            if type(inner) is type(kept):
                own, before, now = _own(inner), self.options_made_with or options_of(kept), options_of(inner)
                inner.load_state_dict(kept.state_dict())
                _take_options(inner, own, before, now)
                for group, mine in zip(inner.param_groups, own, strict=True):
                    group["lr"] = group["initial_lr"] = mine["lr"]  # whose schedule begins
        if inner is not self._options_of:
            self._options_of, self.options_made_with = inner, options_of(inner)
        return optimizer

    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        optimizer, schedule = bare(self.optimizer), self.lr_scheduler
        own, now = _own(optimizer), self.options_made_with or options_of(optimizer)
        rates = [group.get("initial_lr", group["lr"]) for group in optimizer.param_groups]
        try:
            super()._load_optimizer_and_scheduler(checkpoint)
        except ValueError as error:
            if "parameter group" not in str(error):
                raise
            raise UserError(f"{checkpoint} is of an optimizer of other parameters: {error}") from error
        before = self.saved_options or options_of(optimizer)
        self._tell_options(before, now)
        _take_options(optimizer, own, before, now)
        _set_rates(optimizer, schedule, rates, [was["lr"] for was in before])

    def _tell_options(self, before: Groups, now: Groups) -> None:
        """Those of an optimizer that was made by hand. Others follow from arguments, which are told."""
        if self._arguments is not None and not self.told.isdisjoint(self._arguments):
            return
        told = {"lr" if name == "learning_rate" else name for name in self.told}
        changed: dict[str, str] = {}
        for was, new in zip(before, now, strict=True):
            changed |= changes(was, {k: v for k, v in new.items() if k not in told})
        tell(changed, self.args)


def _take_options(optimizer: Optimizer, own: Groups, before: Groups, now: Groups) -> None:
    """Give the groups back those of their `own` options that are others `now` than `before`, but for the rate."""
    for group, mine, was, new in zip(optimizer.param_groups, own, before, now, strict=True):
        changed = {k for k in new if k != "lr" and (k in was or k not in group) and new[k] != was.get(k)}
        _check_state(optimizer, was, {k: mine[k] for k in changed})
        group.update({k: mine[k] for k in changed})


def _own(optimizer: Optimizer) -> Groups:
    return [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]


def _set_rates(optimizer: Optimizer, schedule: Any, rates: list[Any], before: list[float]) -> None:
    """The learning rates that a schedule has reached, from base rates of now and with factors of now."""
    is_function = isinstance(schedule, LambdaLR)
    reached: list[Any] = []
    for number, (group, base, was) in enumerate(zip(optimizer.param_groups, rates, before, strict=True)):
        if is_function:
            rate = base * schedule.lr_lambdas[number](schedule.last_epoch)
        elif float(base) == was:
            rate = group["lr"]
        elif was > 0:
            rate = group["lr"] * (float(base) / was)
        else:
            raise UserError(f"learning_rate was 0, and its schedule cannot go on with {float(base):g}")
        for key, value in (("lr", rate), ("initial_lr", base)):
            if isinstance(group.get(key), Tensor):
                group[key].fill_(float(value))
            elif key in group:
                group[key] = value
        reached.append(rate)
    if hasattr(schedule, "base_lrs"):
        schedule.base_lrs = list(rates)
    if hasattr(schedule, "_last_lr"):
        schedule._last_lr = reached


def _check_state(optimizer: Optimizer, was: Mapping[str, Any], new: Mapping[str, Any]) -> None:
    """Refuse what a state that was kept without it cannot go on with: torch's optimizers make theirs in a first step.

    Raises:
        UserError: such an option of one of torch's optimizers, `amsgrad=True`, say.
    """
    steps = {k: v for k, v in new.items() if k not in _HOW_ALONE}
    ours = not type(optimizer).__module__.startswith("torch.optim.")
    if not steps or ours or isinstance(optimizer, (torch.optim.LBFGS, torch.optim.SparseAdam)):  # which step otherwise
        return
    one = nn.Parameter(torch.zeros(2, 2))
    kind: Any = type(optimizer)
    probe = kind([one])
    plain = {k: v for k, v in was.items() if k in probe.defaults and k not in _HOW_ALONE}
    probe.param_groups[0].update({k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()})
    one.grad = torch.ones(2, 2)
    probe.step()
    probe.param_groups[0].update(steps)
    try:
        probe.step()
    except KeyError as error:
        told = ", ".join(f"{k}={v!r}" for k, v in steps.items())
        raise UserError(
            f"{type(optimizer).__name__} cannot go on from the checkpoint with {told}: its state has no {error}. Leave "
            "that as it was, or begin anew"
        ) from error


def options_of(optimizer: Any) -> Groups:
    """The options of each parameter group, as plain values; the learning rate is that of the schedule's top."""
    found = []
    for group in bare(optimizer).param_groups:
        options = {k: v for k, v in group.items() if k not in ("params", "param_names", "initial_lr")}
        options["lr"] = float(group.get("initial_lr", group["lr"]))
        found.append(json.loads(json.dumps(options, default=_number_or_text)))
    return found


def _number_or_text(value: Any) -> Any:
    return value.tolist() if isinstance(value, Tensor) else str(value)


# --- what is told ----------------------------------------------------------------------------------------------------


def settings_of(args: Any, about: Mapping[str, Any]) -> dict[str, Any]:
    """What changes the training, under the names that a user knows, as plain values."""
    plain = args.to_dict()  # which hides tokens
    names = [f.name for f in fields(args) if f.init and not is_housekeeping(f.name) and f.name not in _OWN_LINES]
    values = {name: plain[name] for name in (*names, "seed", "data_seed")}
    return json.loads(json.dumps({**values, **without_secrets(about)}, default=str))


def changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, str]:
    """What is not as it was: its name → `eta 0.01 → 0.02`."""
    changed = [name for name in now if name in saved and saved[name] != now[name]]
    return {name: f"{name} {_word(saved[name])} → {_word(now[name])}" for name in changed}


def tell(changed: Mapping[str, str], args: Any) -> None:
    """In a line, on the first process."""
    if changed and not args.process_index:
        logger.warning("changed since the checkpoint, and in force from there on: %s", ", ".join(changed.values()))


def _word(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def refuse_another_schedule(saved: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `UserError` where the state of one schedule means nothing to the other."""
    was, new = (settings.get("lr_scheduler_type") for settings in (saved, now))
    if was is not None and was != new and {was, new}.intersection(_NOT_A_FUNCTION_OF_THE_STEP):
        raise UserError(f"the checkpoint is of lr_scheduler_type={was!r}, not {new!r}: it cannot go on with it")
