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
    }


FUNCTIONS = _openable(F) | _openable(torch.functional)
METHODS = _openable(Tensor)
TRACED = _openable(F, warnings=_Quiet)  # dynamo does not trace the others, and needs not see into methods


def opened(func: Any) -> Callable[..., Any] | None:
    """The function to call in place of `func` to see what that calls; None if it is no Python."""
    if torch.compiler.is_compiling():
        return TRACED.get(func)
    return FUNCTIONS.get(func) or METHODS.get(func)
