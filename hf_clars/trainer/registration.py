"""`optim="clars"`, `"lars"`, `"mnag"`, `"adascale"` and `"lamb"` for every `transformers.Trainer`.

transformers keeps optimizer names in an enum and their builders in a dictionary, and offers no public way to add to
either. This file is the one place that reaches for them; tests/test_registration.py fails when they move.

It adds to a module of transformers when somebody imports that. An import of hf_clars alone takes no time so.
"""

from __future__ import annotations

from collections.abc import Callable
from types import ModuleType
from typing import Any

from ..runtime.after_import import after_import

_NAMES = ("clars", "lars", "mnag", "adascale", "lamb")  # and of their functions in `optimizer_handlers`


def register() -> None:
    """Make transformers know the names. Doing it twice changes nothing."""
    for name, add in _ADDITIONS.items():
        after_import(name, add)


def _add_names(training_args: ModuleType) -> None:
    kind = training_args.OptimizerNames
    for name in _NAMES:
        if name in kind._value2member_map_:
            continue
        member = str.__new__(kind, name)
        member._name_ = name.upper()
        member._value_ = name
        kind._member_map_[member._name_] = member
        kind._member_names_.append(member._name_)
        kind._value2member_map_[name] = member


def _add_handlers(trainer_optimizer: ModuleType) -> None:
    for name in _NAMES:  # the enum is complete: this module imports it
        trainer_optimizer._OPTIMIZER_HANDLERS[trainer_optimizer.OptimizerNames(name)] = _handler(name)


def _handler(name: str) -> Callable[[Any], tuple[Any, dict[str, Any]]]:
    """One that is imported when a Trainer makes its optimizer: before that, the Trainer itself may not be whole."""

    def handler(context: Any) -> tuple[Any, dict[str, Any]]:
        from . import optimizer_handlers

        made: tuple[Any, dict[str, Any]] = getattr(optimizer_handlers, name)(context)
        return made

    return handler


_ADDITIONS = {"transformers.training_args": _add_names, "transformers.trainer_optimizer": _add_handlers}
