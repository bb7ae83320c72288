"""Settings that have no effect beside the others.

They are refused where a user wrote them for this one run, and said where a program may have put them together, or where
the machine, or a switch, leaves them none.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields
from typing import Any

from transformers.trainer_utils import IntervalStrategy, SaveStrategy

from ...errors import UserError
from .derived import given

logger = logging.getLogger(__name__)


def _evaluates(args: Any) -> bool:
    return bool(args.eval_strategy != IntervalStrategy.NO)


def _uses_logging_steps(args: Any) -> bool:
    evaluates_then = args.eval_strategy == IntervalStrategy.STEPS and given(args.eval_steps) is None
    return bool(args.logging_strategy != IntervalStrategy.EPOCH or evaluates_then)


# Setting → whether the others give it an effect, and what would.
_NEEDS: dict[str, tuple[Callable[[Any], bool], str]] = {
    "logging_steps": (_uses_logging_steps, "logging_strategy=steps"),
    "eval_steps": (lambda args: args.eval_strategy == IntervalStrategy.STEPS, "eval_strategy=steps"),
    "save_steps": (lambda args: args.save_strategy in (SaveStrategy.STEPS, SaveStrategy.NO), "save_strategy=steps"),
    "eval_delay": (_evaluates, "eval_strategy=steps or epoch"),
    # A loss is what transformers takes by itself, and stays in copies of the arguments.
    "metric_for_best_model": (
        lambda args: args.metric_for_best_model in ("loss", "eval_loss") or _evaluates(args),
        "eval_strategy=steps or epoch",
    ),
    "greater_is_better": (lambda args: args.metric_for_best_model is not None, "metric_for_best_model"),
}
_OF_SEVERAL_PROCESSES = ("ddp_bucket_cap_mb", "ddp_broadcast_buffers", "ddp_static_graph", "ddp_timeout")


def without_effect(args: Any) -> Iterator[tuple[str, str]]:
    """What was set, and would not be used with all else that was set; and a line about it."""
    for name, (has_effect, needed) in _NEEDS.items():
        if (value := _set(args, name)) is not None and not has_effect(args):
            word = f"{value:g}" if isinstance(value, int | float) and not isinstance(value, bool) else repr(value)
            yield name, f"{name}={word} is for {needed}: state both, or leave it out"


def refuse_contradictions(args: Any) -> None:
    """Raises `UserError` where a training would never do what was asked for, or fail with it."""
    if not _evaluates(args):
        if args.save_strategy == SaveStrategy.BEST:
            raise UserError("save_strategy=best is for eval_strategy=steps or epoch: nothing would ever be saved")
        if args.load_best_model_at_end:
            raise UserError("load_best_model_at_end=True is for eval_strategy=steps or epoch: state both, or none")
    if args.dataloader_multiprocessing_context is not None and not args.dataloader_num_workers:
        raise UserError(
            f"dataloader_multiprocessing_context={args.dataloader_multiprocessing_context!r} is for "
            "dataloader_num_workers > 0: state both, or none"
        )


def say_without_effect(args: Any) -> None:
    """A line for each."""
    for _, text in without_effect(args):
        logger.warning("no effect: %s", text)

    def say(why: str, names: Sequence[str]) -> None:
        if names := [name for name in names if _set(args, name) is not None]:
            logger.warning("no effect with %s: %s", why, ", ".join(names))

    if args.world_size == 1:
        say("one process", _OF_SEVERAL_PROCESSES)
    if args.save_strategy == SaveStrategy.NO:
        say("save_strategy=no", ["save_steps"])
    if args.logging_strategy == IntervalStrategy.NO and args.eval_strategy != IntervalStrategy.STEPS:
        say("logging_strategy=no", ["logging_steps"])


def _set(args: Any, name: str) -> Any:
    """The value, where somebody gave one; one that is the default cannot be told from none."""
    default = next(f.default for f in fields(args) if f.name == name)
    value = given(getattr(args, name))
    return None if value == default else value
