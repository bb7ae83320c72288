"""Torch functions that are written in Python, such that an interception sees what they call."""

from __future__ import annotations

import types
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


class _Quiet:
    """In place of the module `warnings`, into which dynamo cannot follow."""

    @staticmethod
    def warn(*_: Any, **__: Any) -> None:
        pass


def _opened(function: types.FunctionType, **instead: Any) -> Callable[..., Any]:
    """A copy of a torch function written in Python that does not hand itself to the mode, so that what it calls is."""
    unasked = {name: _never for name in function.__globals__ if name.startswith("has_torch_function")}
    copy = types.FunctionType(
        function.__code__,
        {**function.__globals__, **unasked, **instead},
        function.__name__,
        function.__defaults__,
        function.__closure__,
    )
    copy.__kwdefaults__ = function.__kwdefaults__
    return copy


def _never(*_: Any) -> bool:
    return False


def _openable(space: Any, **instead: Any) -> dict[Callable[..., Any], Callable[..., Any]]:
    return {
        function: _opened(function, **instead)
        for function in vars(space).values()
        if isinstance(function, types.FunctionType)
        and any(name.startswith("has_torch_function") for name in function.__code__.co_names)
        and "super" not in function.__code__.co_names  # whose method hands itself to the mode by the same name
    }


FUNCTIONS = _openable(F) | _openable(torch.functional)
METHODS = _openable(Tensor)
_WRITTEN_IN_PYTHON = {name: method for name, method in vars(Tensor).items() if isinstance(method, types.FunctionType)}
TRACED = _openable(F, warnings=_Quiet)  # dynamo does not trace the others, and needs not see into methods


def opened(func: Any) -> Callable[..., Any] | None:
    """The function to call in place of `func` to see what that calls; None if it is no Python."""
    if torch.compiler.is_compiling():
        return TRACED.get(func)
    return FUNCTIONS.get(func) or METHODS.get(func)


def recognised(func: Any) -> Any:
    """The function that the compiler hands to a mode, such that tables of functions find it.

    A method that torch writes in Python (`1 - x` is `Tensor.__rsub__`) is handed on without a source. Dynamo takes it
    for a function of its own then, which is in no table, and its guards, which look at the real tables, fail.
    """
    if func is Tensor.unflatten:
        return torch.unflatten  # the method asks super(), where torch 2.11's compiler cannot follow
    name = _name_of_method(func) if isinstance(func, types.FunctionType) else ""
    return _WRITTEN_IN_PYTHON[name] if name else func


@torch.compiler.assume_constant_result
def _name_of_method(func: types.FunctionType) -> str:
    return next((name for name, method in _WRITTEN_IN_PYTHON.items() if method is func), "")
