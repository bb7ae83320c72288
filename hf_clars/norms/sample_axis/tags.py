"""What is tagged on a tensor while a forward pass runs: where samples stand in it, and how an index was made.

Tags are attributes of the tensors themselves: they die with them, and torch.compile follows them through a trace.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from .axis import Place, SampleAxis

PREFIX = "_hf_clars_"  # of all tags
PLACE = "_hf_clars_place"  # on a tensor that depends on samples: where they stand in it, or since when that is lost
INDEX = "_hf_clars_index"  # on a tensor of indices: how they are made, see `indices.py`


def place_of(tensor: Any) -> Place | None:
    """Where samples stand in a tensor; None if it does not depend on any."""
    place = getattr(tensor, PLACE, None)
    if type(place) is SampleAxis and place.assumed and True in [a.refuted for a in place.assumed]:
        return None
    return place


def axis_of(tensor: Any) -> SampleAxis | None:
    """Where samples stand in a tensor, if that is known."""
    place = place_of(tensor)
    return place if type(place) is SampleAxis else None


class Bearers:
    """The tensors that were told where samples of the pass at hand stand in them.

    Some live on: a memory bank that the pass wrote to, what a module keeps as an attribute. To the next pass they hold
    no samples.
    """

    def __init__(self) -> None:
        self._refs: list[weakref.ref[Tensor]] = []

    def place(self, tensor: Tensor, place: Place | None) -> None:
        setattr(tensor, PLACE, place)
        if not torch.compiler.is_compiling():
            self._refs.append(weakref.ref(tensor))

    def forget(self) -> None:
        """A pass over other samples begins. What carries gradients back to the last one keeps its place."""
        refs, self._refs = self._refs, []
        for tensor in [ref() for ref in refs]:
            if tensor is not None and tensor.is_leaf:
                vars(tensor).pop(PLACE, None)


def tagged(values: Any, name: str, value: Any) -> Any:
    """`values`, a tensor or a tuple or list of some, with a tag."""
    if isinstance(values, Tensor):
        setattr(values, name, value)
    elif isinstance(values, (tuple, list)):  # such as torch.return_types.max
        if torch.compiler.is_compiling():  # which follows no attributes of the parts of a result, but of new views
            values = type(values)([v.view_as(v) if isinstance(v, Tensor) else v for v in values])
        for each in values:
            tagged(each, name, value)
    return values


def tags_of(tensor: Tensor) -> dict[str, Any]:
    return {name: value for name, value in vars(tensor).items() if name.startswith(PREFIX)}


def tensors_in(values: Any) -> list[Tensor]:
    """All tensors in nested tuples, lists and mappings."""
    found: list[Tensor] = []
    for value in values:
        if isinstance(value, Tensor):
            found.append(value)
        elif value is None or isinstance(value, (bool, int, float, str)):
            continue
        elif isinstance(value, (list, tuple)):
            found += tensors_in(value)
        elif isinstance(value, Mapping):
            found += tensors_in(value.values())
    return found
