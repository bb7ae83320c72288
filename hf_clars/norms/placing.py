"""Tags on the results of a function: where samples stand in them, and how indices were made."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sample_axis.axis import Lost, Place, SampleAxis, seen_through
from .sample_axis.call import Call, Rule, name_of
from .sample_axis.index_tensors import index_after
from .sample_axis.table import FRESH, place_after
from .sample_axis.tags import INDEX, Bearers, place_of

SORTS = {torch.sort, Tensor.sort, torch.argsort, Tensor.argsort}


def placed(
    func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any, rule: Rule | None, bearers: Bearers
) -> Any:
    """The result, tagged with where samples stand in it."""
    if func in FRESH:
        return out
    if func is Tensor.__setitem__:
        _written(func, args[0], place_after(Call(func, args, kwargs, tensors, args[0]), rule), tensors, bearers)
        return out
    if isinstance(out, Tensor):
        place = place_after(Call(func, args, kwargs, tensors, out), rule)
        if True in [out is t for t in tensors]:
            _written(func, out, place, tensors, bearers)
        else:
            bearers.place(out, place)
        return out
    if not isinstance(out, (tuple, list)):
        return out
    if torch.compiler.is_compiling():
        out = type(out)([o.view_as(o) if isinstance(o, Tensor) else o for o in out])
    for number, each in enumerate(out):
        if isinstance(each, Tensor):
            bearers.place(each, place_after(Call(func, args, kwargs, tensors, each, number, out), rule))
    return out


def _written(func: Any, target: Tensor, place: Place, tensors: list[Tensor], bearers: Bearers) -> None:
    """A function wrote to `target`. If that is a view, of its base it is not known where samples stand, unless it
    was and samples were written to where they stood."""
    before, base = place_of(target), None if torch.compiler.is_compiling() else target._base
    bearers.place(target, place)
    if base is None:
        return
    known = type(before) is SampleAxis and type(place) is SampleAxis and before.same_as(place)
    others = [t for t in tensors if t is not target and place_of(t) is not None]
    if place_of(base) is None or (others and not known):
        found = seen_through(place, target, base) if type(place) is SampleAxis and place_of(base) is None else None
        bearers.place(base, found or Lost(f"its input was written to through a view by {name_of(func)}"))


def note_index(func: Any, args: Any, kwargs: Any, tensors: list[Tensor], out: Any) -> None:
    """Tag indices with how they are made."""
    if func is Tensor.__setitem__:
        tag_index(args[0], index_after(Call(func, args, kwargs, tensors, args[0])))
        return
    for number, each in enumerate([out] if isinstance(out, Tensor) else out if isinstance(out, tuple) else ()):
        if isinstance(each, Tensor):
            tag_index(each, index_after(Call(func, args, kwargs, tensors, each, number)))


def tag_index(index: Tensor, made: object) -> None:
    """Tag an index with how it is made, or, if it was written to otherwise, take the tag off."""
    if made is not None:
        setattr(index, INDEX, made)
    elif hasattr(index, INDEX):
        delattr(index, INDEX)
