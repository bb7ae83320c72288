"""What a tensor is known to be while a forward pass runs: a parameter to measure, a function of some, or samples.

Marks are attributes of the tensors themselves: they die with them, and torch.compile follows them through a trace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .ledger import Entry
    from .recipes import Recipe

PREFIX = "_hf_clars_"  # of all names here
ENTRY = "_hf_clars_entry"  # on a parameter: its page in the ledger
ENTRIES = "_hf_clars_entries"  # on a tensor that depends on parameters but not on samples: their pages
LOOKUP = "_hf_clars_lookup"  # on rows picked from a table by indices that are the same for all samples: the indices
RECIPE = "_hf_clars_recipe"  # on such a tensor under torch.compile: how it is computed
ROWS = "_hf_clars_rows"  # on such a tensor: rows k·i … k·(i+1)−1 were made for sample i, by repetition or by constants
SAMPLES = "_hf_clars_samples"  # on a tensor that depends on samples: True
SHUFFLED = "_hf_clars_shuffled"  # on such a tensor whose rows stand in an order that is not known: True


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
        and not getattr(tensor, SAMPLES, False)
        and (hasattr(tensor, ENTRY) or hasattr(tensor, ENTRIES))
    )


def has_samples(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and getattr(tensor, SAMPLES, False)


def has_own_rows(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and getattr(tensor, ROWS, False)


def is_shuffled(tensor: Any) -> bool:
    return isinstance(tensor, Tensor) and getattr(tensor, SHUFFLED, False)


def marked(values: Any, name: str, value: Any) -> Any:
    """`values`, a tensor or a tuple or list of some, with a mark."""
    if isinstance(values, Tensor):
        setattr(values, name, value)
    elif type(values) in (tuple, list):
        if torch.compiler.is_compiling():  # which follows no attributes of the parts of a result, but of new views
            values = type(values)([v.view_as(v) if isinstance(v, Tensor) else v for v in values])
        for each in values:
            marked(each, name, value)
    elif isinstance(values, tuple) and not torch.compiler.is_compiling():  # such as torch.return_types.max
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
