"""What dynamo does without telling modes, shown to them while it traces: else a parameter may be used unseen.

All of these are private names. A test fails for each that goes; without it, what is used unseen is found by the
gradient's check alone.
"""

from __future__ import annotations

from typing import Any

import torch
from torch._dynamo.variables import tensor as tensors
from torch._dynamo.variables import torch as functions
from torch._dynamo.variables.base import VariableTracker
from torch._dynamo.variables.torch_function import can_dispatch_torch_function


def show_to_modes() -> None:
    _show_functions()
    _show_assignment()
    _show_iteration()


def _show_functions() -> None:
    """Those that it does not think to be overridable: what functions of `F` are or end in (`pad`, `glu`), what torch
    itself has for weights, and functions that work in place, which are no methods."""
    names = [name for name in dir(torch._C._VariableFunctions) if name.endswith("_") and not name.startswith("_")]
    in_place = {getattr(torch, name) for name in names if hasattr(torch, name)}
    own = {function for name, function in vars(torch._C._nn).items() if callable(function) and not name.startswith("_")}
    functions.get_overridable_functions().update(own, {torch._weight_norm}, in_place)


def _show_assignment() -> None:
    """`y[i] = x`. Before torch 2.12 it was called as a method, which modes are shown."""
    kind: Any = tensors.TensorVariable
    if not hasattr(kind, "mp_ass_subscript_impl"):
        return
    assign = kind.mp_ass_subscript_impl

    def shown(self: Any, tx: Any, key: Any, value: Any) -> Any:
        if value is not None and can_dispatch_torch_function(tx, (self, key, value), {}):
            return self.call_method(tx, "__setitem__", [key, value], {})
        return assign(self, tx, key, value)

    kind.mp_ass_subscript_impl = shown


def _show_iteration() -> None:
    """`for row in w` and `q, k, v = x`."""
    kind: Any = tensors.TensorVariable
    unpack = kind.unpack_var_sequence

    def shown(self: Any, tx: Any, idxes: Any = None) -> Any:
        rows = unpack(self, tx, idxes)
        if not can_dispatch_torch_function(tx, (self,), {}):
            return rows
        return [self.call_method(tx, "__getitem__", [VariableTracker.build(tx, i)], {}) for i in range(len(rows))]

    kind.unpack_var_sequence = shown
