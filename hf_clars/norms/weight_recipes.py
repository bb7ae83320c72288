"""How a tensor is computed from parameters, written down under torch.compile, to be done again in the backward pass.

A compiled pass leaves no graph from `u = g(w)` back to `w`. What it can leave is `g` itself. Any function can be
written down but those that draw random numbers.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from .recorded_calls import Recipe, call_steps, is_random, is_viewing, is_writing
from .sample_axis.call import first_of
from .tracked import PARAMETER, RECIPE

MEMORY = "_hf_clars_memory"  # tag on a tensor that has a recipe: what it shares with its views


class Memory:
    """Of tensors that may share it, one being a view of another."""

    def __init__(self) -> None:
        self.tensors = 1
        self.was_changed = False  # through one of several


def remember(func: Any, args: Any, kwargs: Any, out: Any) -> Any:
    """What a function of parameters returned, tagged with how it is computed."""
    if is_writing(func):
        target = first_of(args, kwargs)
        setattr(target, RECIPE, recipe(func, args, kwargs))
        memory = getattr(target, MEMORY, None)
        if memory is not None and memory.tensors > 1:
            note_change(target)
        return target if isinstance(out, Tensor) else out
    made = recipe(func, args, kwargs)
    several = isinstance(out, (tuple, list))
    for number, each in enumerate(out if several else (out,)):
        if isinstance(each, Tensor):
            setattr(each, RECIPE, made.item(number) if several and made is not None else made)
            memory = getattr(args[0], MEMORY, None) if args and is_viewing(func) else None
            if memory is None:
                memory = Memory()
            else:
                memory.tensors += 1
            setattr(each, MEMORY, memory)
    return out


def note_change(tensor: Tensor) -> None:
    """A function changed it in place: of what shares its memory the recipes hold no more."""
    memory = getattr(tensor, MEMORY, None)
    if memory is not None:
        memory.was_changed = True


def is_outdated(tensor: Tensor | None) -> bool:
    """Whether its recipe holds no more."""
    memory = getattr(tensor, MEMORY, None)
    return memory is not None and memory.was_changed


def recipe(func: Any, args: Any, kwargs: Any) -> Recipe | None:
    """Of a function call whose tensors are parameters, results of recipes, and constants; None if there is none."""
    if is_random(func, args, kwargs):
        return None
    constants: list[Tensor] = []

    def of_tensor(tensor: Tensor) -> tuple[Any, ...] | None:
        tracked = getattr(tensor, PARAMETER, None)
        if tracked is not None:
            return ("parameter", tracked.index)
        if not tensor.requires_grad:
            constants.append(tensor)
            return ("constant", len(constants) - 1)
        known = getattr(tensor, RECIPE, None)
        if known is None or is_outdated(tensor):
            return None
        steps = known.shifted(len(constants))
        constants.extend(known.constants)
        return steps

    steps = call_steps(func, args, kwargs, of_tensor)
    return None if steps is None else Recipe(steps, tuple(constants))
