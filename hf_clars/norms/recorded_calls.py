"""A function call, written down so that it can be done again: nested tuples of functions of torch, numbers and places
of tensors, which compare by value. A call that works in place is done again on a copy.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .sample_axis.call import SPACES, functions_named

OfTensor = Callable[[Tensor], tuple[Any, ...] | None]


@dataclass(frozen=True)
class Recipe:
    """`steps`: of kind "call" or "change" (in place, of the first argument), "item" (one of several results),
    "parameter" (by index), "constant" (by place), "sequence", "slice" or "value"."""

    steps: tuple[Any, ...]
    constants: tuple[Tensor, ...]

    def item(self, number: int) -> Recipe:
        return Recipe(("item", number, self.steps), self.constants)

    def shifted(self, by: int) -> tuple[Any, ...]:
        """Its steps, with the constants in places `by` further on."""
        return _shifted(self.steps, by)

    def made_of(self, of_parameter: Callable[[int], Tensor]) -> Tensor:
        """The tensor, with the parameters that `of_parameter` has for their indices."""
        return cook(self.steps, self.constants, of_parameter)


def call_steps(func: Any, args: Any, kwargs: Any, of_tensor: OfTensor) -> tuple[Any, ...] | None:
    """A function call, written down; None if `of_tensor` says so of one of its tensors."""
    steps, named = _steps(tuple(args), of_tensor), _steps(tuple(kwargs.values()), of_tensor)
    if steps is None or named is None:
        return None
    return ("change" if is_writing(func) else "call", func, steps, tuple(kwargs), named)


def _steps(value: Any, of_tensor: OfTensor) -> tuple[Any, ...] | None:
    if isinstance(value, Tensor):
        return of_tensor(value)
    if isinstance(value, (tuple, list)):
        each = [_steps(v, of_tensor) for v in value]
        return None if None in each else ("sequence", isinstance(value, list), tuple(each))
    if isinstance(value, slice):
        return ("slice", value.start, value.stop, value.step)
    return ("value", value)


def _shifted(steps: Any, by: int) -> Any:
    """The same steps with their constants in places `by` further on."""
    if steps[0] == "constant":
        return ("constant", steps[1] + by)
    if steps[0] == "item":
        return ("item", steps[1], _shifted(steps[2], by))
    if steps[0] == "sequence":
        return ("sequence", steps[1], tuple([_shifted(s, by) for s in steps[2]]))
    if steps[0] in ("call", "change"):
        return (steps[0], steps[1], _shifted(steps[2], by), steps[3], _shifted(steps[4], by))
    return steps


def cook(steps: Any, constants: tuple[Tensor, ...], of_parameter: Callable[[int], Tensor] | None = None) -> Any:
    """Do the steps, with the parameters that `of_parameter` has for their indices."""
    kind = steps[0]
    if kind == "parameter":
        assert of_parameter is not None
        return of_parameter(steps[1])
    if kind == "constant":
        return constants[steps[1]]
    if kind == "value":
        return steps[1]
    if kind == "slice":
        return slice(*steps[1:])
    if kind == "item":
        return cook(steps[2], constants, of_parameter)[steps[1]]
    if kind == "sequence":
        values = [cook(s, constants, of_parameter) for s in steps[2]]
        return values if steps[1] else tuple(values)
    _, func, args, names, named = steps
    given = cook(args, constants, of_parameter)
    options = dict(zip(names, cook(named, constants, of_parameter), strict=True))
    if kind == "call":
        return func(*given, **options)
    changed = (given[0] if given else options.pop(names[0])).clone()
    func(changed, *given[1:], **options)
    return changed


def is_random(func: Any, args: Any, kwargs: Any) -> bool:
    """Whether a function may give something else when it is done again."""
    kind = _may_be_random(func)
    if kind == 0:
        return False
    if kind == 1:  # of (input, p, train)
        p = args[1] if len(args) > 1 else kwargs.get("p", 0.5)
        train = args[2] if len(args) > 2 else kwargs.get("train", True)
        return bool(train) and p != 0
    if kind == 2:  # of (query, key, value, attn_mask, dropout_p)
        return bool((args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0)) != 0)
    return True


@torch.compiler.assume_constant_result
def is_writing(func: Any) -> bool:
    """Whether a function changes its first argument."""
    return func in WRITING


@torch.compiler.assume_constant_result
def is_viewing(func: Any) -> bool:
    return func in VIEWING


@torch.compiler.assume_constant_result
def _may_be_random(func: Any) -> int:
    if func not in RANDOM:
        return 0
    return 1 if func in _DROPOUT else 2 if func in _ATTENTION else 3


def _named(names: set[str]) -> set[Any]:
    return {function for name in names for function in functions_named(name)}


def _writing() -> set[Any]:
    """Functions that change their first argument."""
    names = {name for space in SPACES for name in dir(space)}
    plain = {name for name in names if name.endswith("_") and not name.endswith("__")}
    signs = {name for name in vars(torch.Tensor) | vars(torch._C.TensorBase) if name.startswith("__i")}
    operators = signs - {"__init__", "__init_subclass__", "__int__", "__invert__", "__index__", "__iter__"}
    return {
        function
        for name in plain | operators | {"__setitem__"}
        for space in SPACES
        if callable(function := getattr(space, name, None))
    }


def _tagged() -> tuple[set[str], set[str]]:
    """Names of functions that draw random numbers, and of those whose result may be a view: torch says so of each."""
    random, viewing = set(), set()
    for name in {name for space in SPACES for name in dir(space)}:
        packet: Any = getattr(torch.ops.aten, name, None)
        for each in packet.overloads() if hasattr(packet, "overloads") else ():
            function = getattr(packet, each)
            if torch.Tag.nondeterministic_seeded in function.tags:
                random.add(name)
            if any(r.alias_info is not None and not r.alias_info.is_write for r in function._schema.returns):
                viewing.add(name)
    return random, viewing


_DROPOUT = _named({"dropout", "alpha_dropout", "feature_dropout", "feature_alpha_dropout"})
_ATTENTION = _named({"scaled_dot_product_attention"})
WRITING = _writing()
_random, _viewing = _tagged()
RANDOM = (
    _named(_random | {"feature_dropout", "feature_alpha_dropout", "rrelu", "gumbel_softmax", "binomial"}) | _DROPOUT
) - WRITING
# The schemas of the others leave it open.
VIEWING = (
    _named(
        _viewing
        | {"T", "H", "mT", "mH", "adjoint", "numpy_T", "matrix_H", "swapaxes", "swapdims", "movedim", "moveaxis"}
        | {"reshape_as", "view_as", "expand_as", "broadcast_to", "broadcast_tensors", "flatten", "unflatten", "ravel"}
        | {"contiguous", "type", "type_as", "float", "double", "half", "bfloat16", "cpu", "cuda", "chunk", "hsplit"}
        | {"vsplit", "dsplit", "unsafe_chunk", "atleast_1d", "atleast_2d", "atleast_3d", "__getitem__", "view_as_real"}
        | {"resolve_conj", "resolve_neg", "real", "imag", "positive", "requires_grad", "squeeze", "diag", "diagonal"}
    )
    - WRITING
)
