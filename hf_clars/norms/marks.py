"""What a tensor is known to be while a forward pass runs: a parameter to measure, a function of some, or samples.

Marks are attributes of the tensors themselves: they die with them, and torch.compile follows them through a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .sample_axis.axis import Lost, Place, SampleAxis

if TYPE_CHECKING:
    from .ledger import Entry
    from .recipes import Recipe

PREFIX = "_hf_clars_"  # of all of them
ENTRY = "_hf_clars_entry"  # on a parameter: its page in the ledger
ENTRIES = "_hf_clars_entries"  # on a tensor that depends on parameters but not on samples: their pages
LOOKUP = "_hf_clars_lookup"  # on rows picked from a table by indices that are the same for all samples: the indices
CUT = "_hf_clars_cut"  # on such a tensor where no gradients are taken: their pages
RECIPE = "_hf_clars_recipe"  # on such a tensor under torch.compile: how it is computed
MEMORY = "_hf_clars_memory"  # and what it shares with its views
PLACE = "_hf_clars_place"  # on a tensor that depends on samples: where they stand in it, or since when that is lost
INDEX = "_hf_clars_index"  # on a tensor of indices: how they are made, see `indices.py`


@dataclass(frozen=True)
class Source:
    """A parameter, or a tensor `u = g(parameters)` in which samples have no part.

    Args:
        entries: the parameters' pages.
        u: the tensor; None for a parameter itself, which FSDP may exchange.
        lookup: indices and padding index, if `u` is rows of a table.
        recipe: how `u` is computed, if that is known.
    """

    entries: tuple[Entry, ...]
    u: Tensor | None
    lookup: tuple[Tensor, int] | None = None
    recipe: Recipe | None = None


def source_of(tensor: Any) -> Source | None:
    """What is to be measured of a tensor's use; None for nothing."""
    if not is_source(tensor):
        return None
    entry = getattr(tensor, ENTRY, None)
    if entry is not None:
        return Source((entry,), None)
    return Source(getattr(tensor, ENTRIES), tensor, getattr(tensor, LOOKUP, None), getattr(tensor, RECIPE, None))


def is_source(tensor: Any) -> bool:
    """Whether something is to be measured of a tensor's use."""
    return (
        isinstance(tensor, Tensor)
        and tensor.requires_grad
        and getattr(tensor, PLACE, None) is None
        and (hasattr(tensor, ENTRY) or hasattr(tensor, ENTRIES))
    )


def is_input(tensor: Tensor) -> bool:
    """Whether a tensor was not computed from others, as far as gradients tell."""
    return isinstance(tensor, nn.Parameter) if torch.compiler.is_compiling() else tensor.is_leaf


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


def is_lost(tensor: Any) -> bool:
    return type(place_of(tensor)) is Lost


def marked(values: Any, name: str, value: Any) -> Any:
    """`values`, a tensor or a tuple or list of some, with a mark."""
    if isinstance(values, Tensor):
        setattr(values, name, value)
    elif isinstance(values, (tuple, list)):  # such as torch.return_types.max
        if torch.compiler.is_compiling():  # which follows no attributes of the parts of a result, but of new views
            values = type(values)([v.view_as(v) if isinstance(v, Tensor) else v for v in values])
        for each in values:
            marked(each, name, value)
    return values


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
